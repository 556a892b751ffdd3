package group

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group/assignor"
)

// Config bounds and times what groups do. While MaxSessionTimeout is 0, every setting of Kafka's that is 0 takes its
// default; otherwise 0 means 0, as these settings may be. Of Varve's own bounds 0 always means the default.
type Config struct {
	MinSessionTimeout     time.Duration // group.min.session.timeout.ms
	MaxSessionTimeout     time.Duration // group.max.session.timeout.ms
	InitialRebalanceDelay time.Duration // group.initial.rebalance.delay.ms; may be 0
	MaxSize               int           // group.max.size; at most MaxMembers
	OffsetMetadataMax     int           // offset.metadata.max.bytes
	OffsetsRetention      time.Duration // offsets.retention.minutes

	ConsumerSession  time.Duration // group.consumer.session.timeout.ms
	ConsumerInterval time.Duration // group.consumer.heartbeat.interval.ms
	ConsumerMaxSize  int           // group.consumer.max.size; at most MaxMembers

	// ConsumerAssignmentInterval is group.consumer.assignment.interval.ms, of Kafka since 4.3. 0, which is the default
	// here, assigns at once, as Kafka did before: otherwise a member that comes right after another waits for its next
	// heartbeat but one.
	ConsumerAssignmentInterval time.Duration
	ConsumerAssignors          []string // group.consumer.assignors; the first is that of groups without a preference
	MigrationPolicy            string   // group.consumer.migration.policy: bidirectional, upgrade, downgrade or disabled

	// Of is what a group has set for itself; nil: none has. It is asked when the members of a loaded group get their
	// session timeouts; later on commands say it.
	Of func(groupID string) Settings

	// Bounds of Varve's own; Kafka leaves the first to the size of a request.
	MaxMemberBytes     int           // what one member offers, all protocols together
	MaxAssignmentBytes int           // what a leader assigns to all members together
	MaxGroupBytes      int64         // a group's members together: further ones are refused
	MaxPending         int           // member ids handed out and not used yet
	NewMemberTimeout   time.Duration // how long a parked JoinGroup of a new member keeps its place
}

// Settings are what a group of the consumer protocol can have set for itself; 0 stands for Config's.
type Settings struct{ Session, Interval, AssignmentInterval time.Duration }

// Defaults of Config, Kafka's where Kafka has them.
const (
	DefaultMinSessionTimeout  = 6 * time.Second
	DefaultMaxSessionTimeout  = 30 * time.Minute
	DefaultOffsetMetadataMax  = 4096
	DefaultOffsetsRetention   = 7 * 24 * time.Hour
	DefaultMaxMemberBytes     = 1 << 20
	DefaultMaxAssignmentBytes = 16 << 20
	DefaultMaxGroupBytes      = 32 << 20
	DefaultMaxPending         = 1000
	DefaultNewMemberTimeout   = 5 * time.Minute
)

// MaxMembers is the largest group, whatever group.max.size says: a JoinGroup costs time in proportion to the members
// that are there, and with so many of them about 1.5 ms.
const MaxMembers = 10_000

func (c Config) filled() Config {
	or := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.MaxSessionTimeout == 0 {
		c.MaxSessionTimeout = DefaultMaxSessionTimeout
		or(&c.MinSessionTimeout, DefaultMinSessionTimeout)
		or(&c.OffsetsRetention, DefaultOffsetsRetention)
		c.OffsetMetadataMax = cmp.Or(c.OffsetMetadataMax, DefaultOffsetMetadataMax)
	}
	or(&c.NewMemberTimeout, DefaultNewMemberTimeout)
	c.MaxSize = min(cmp.Or(c.MaxSize, MaxMembers), MaxMembers)
	or(&c.ConsumerSession, DefaultConsumerSession)
	or(&c.ConsumerInterval, DefaultConsumerInterval)
	c.MigrationPolicy = strings.ToLower(cmp.Or(c.MigrationPolicy, "bidirectional"))
	c.ConsumerMaxSize = min(cmp.Or(c.ConsumerMaxSize, MaxMembers), MaxMembers)
	if len(c.ConsumerAssignors) == 0 {
		c.ConsumerAssignors = []string{assignor.UniformName, assignor.RangeName}
	}
	c.MaxMemberBytes = cmp.Or(c.MaxMemberBytes, DefaultMaxMemberBytes)
	c.MaxAssignmentBytes = cmp.Or(c.MaxAssignmentBytes, DefaultMaxAssignmentBytes)
	c.MaxGroupBytes = cmp.Or(c.MaxGroupBytes, DefaultMaxGroupBytes)
	c.MaxPending = cmp.Or(c.MaxPending, DefaultMaxPending)
	return c
}

// Shard is the groups of one partition of __consumer_offsets. Its methods must not be called at the same time.
type Shard struct {
	cfg     Config
	groups  map[string]*entry
	bytes   int64
	offsets int

	position int64              // of the last record of an offset
	txns     map[int64]*openTxn // by producer id: what waits for its marker
	pendings int                // offsets in txns
}

// entry is what a shard knows of one group.
type entry struct {
	group   *classic
	saved   bool // the log has a record of the group, not only of its offsets
	version int  // counts Settle, to catch results that were overtaken
	name    int  // length of its name, which may be 32 KiB
	bytes   int64
	offsets map[string]map[int32]Offset
	open    map[string]map[int32][]int64 // partitions with pending offsets, and the producers whose they are

	// sessions are the members' deadlines. They are not part of the group, as every heartbeat moves one.
	sessions map[string]time.Time

	// consumer is the group if it is one of the consumer protocol, nil otherwise; group is empty then.
	consumer *consumers
	revokes  map[string]revocation // deadlines of members that have to give partitions up
	rejoins  map[string]revocation // of members of the classic protocol that have to join or to sync
	seen     map[string]int64      // of regular expressions: see seenRegex
	viewed   int64                 // version of the topics that the group's hash was last compared with
}

// state is the group's state, in the terms of the classic protocol for groups of either.
func (e *entry) state() State {
	if e.consumer != nil {
		return e.consumer.state()
	}
	return e.group.state
}

// subscribed says whether the group counts as reading the topic.
func (e *entry) subscribed(topic string) bool {
	if e.consumer != nil {
		return e.consumer.subscribed(topic)
	}
	return e.group.subscribed(topic)
}

func (e *entry) has(member string) bool {
	return e.group.members[member] != nil || e.consumer != nil && e.consumer.members[member] != nil
}

// NewShard returns a shard without groups.
func NewShard(cfg Config) *Shard { return &Shard{cfg: cfg.filled(), groups: map[string]*entry{}} }

// offsetBytes is about what an offset costs in memory beside its metadata.
const offsetBytes = 104

// Bytes is about the memory that the shard holds.
func (s *Shard) Bytes() int64 { return s.bytes }

// Counts are the numbers of what a shard holds.
type Counts struct {
	Classic, Consumer [Stable + 1]int // groups of either protocol by state; see State.ConsumerName
	Members           int
	Offsets           int // committed
}

// Counts looks at every group.
func (s *Shard) Counts() Counts {
	c := Counts{Offsets: s.offsets}
	for _, e := range s.groups {
		c.Members += len(e.group.members)
		if e.consumer == nil {
			c.Classic[e.state()]++
			continue
		}
		c.Consumer[e.state()]++
		c.Members += len(e.consumer.members)
	}
	return c
}

// Offsets is how many offsets are committed.
func (s *Shard) Offsets() int { return s.offsets }

// Committed is an offset that a group has committed.
type Committed struct {
	Group, Topic string
	Partition    int32
	Offset       int64
}

// Compare orders by group, topic and partition.
func (c Committed) Compare(d Committed) int {
	return cmp.Or(strings.Compare(c.Group, d.Group), strings.Compare(c.Topic, d.Topic), cmp.Compare(c.Partition, d.Partition))
}

// Committed are the first n offsets that groups have committed, in order. Groups with names of more than maxName bytes
// are passed over. It costs a look at every group, and what it returns, however many offsets there are.
func (s *Shard) Committed(n, maxName int) []Committed {
	var out []Committed
	for _, id := range s.committers(n, maxName) {
		e := s.groups[id]
		for _, topic := range slices.Sorted(maps.Keys(e.offsets)) {
			ps := e.offsets[topic]
			for _, p := range slices.Sorted(maps.Keys(ps)) {
				if len(out) >= n {
					return out
				}
				out = append(out, Committed{id, topic, p, ps[p].Offset})
			}
		}
	}
	return out
}

// committers are the first n groups that have committed offsets, in order. Of many groups few are sorted: once there are n,
// only those before the last of them count.
func (s *Shard) committers(n, maxName int) []string {
	if n <= 0 {
		return nil
	}
	var ids []string
	last, full := "", false
	for id, e := range s.groups {
		if len(id) > maxName || len(e.offsets) == 0 || full && id > last {
			continue
		}
		if ids = append(ids, id); len(ids) >= 2*n {
			slices.Sort(ids)
			ids = ids[:n]
			last, full = ids[n-1], true
		}
	}
	slices.Sort(ids)
	return ids[:min(n, len(ids))]
}

// GroupIDs are the groups in order.
func (s *Shard) GroupIDs() []string { return slices.Sorted(maps.Keys(s.groups)) }

// GroupsOf are the groups that have offsets of the topic, committed or pending, in order.
func (s *Shard) GroupsOf(topic string) (ids []string) {
	for id, e := range s.groups {
		if len(e.offsets[topic])+len(e.open[topic]) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Orphaned are the commands that drop offsets of topics that do not exist, committed or pending.
func (s *Shard) Orphaned(exists func(topic string) bool) (drops []Command) {
	known := map[string]bool{}
	gone := func(topic string) bool {
		there, ok := known[topic]
		if !ok {
			there = exists(topic)
			known[topic] = there
		}
		return !there
	}
	for _, id := range s.GroupIDs() {
		e := s.groups[id]
		for _, topic := range slices.Sorted(maps.Keys(e.offsets)) {
			if gone(topic) {
				drops = append(drops, &DropTopic{Group: id, Topic: topic})
			}
		}
		for _, topic := range slices.Sorted(maps.Keys(e.open)) {
			if e.offsets[topic] == nil && gone(topic) {
				drops = append(drops, &DropTopic{Group: id, Topic: topic})
			}
		}
	}
	return drops
}

// Position is how many records of offsets the shard has applied: the place of the last one.
func (s *Shard) Position() int64 { return s.position }

// Has says whether the shard knows the group.
func (s *Shard) Has(id string) bool { return s.groups[id] != nil }

func (s *Shard) entry(id string) *entry {
	e := s.groups[id]
	if e == nil {
		e = &entry{name: len(id), group: newClassic(-1), offsets: map[string]map[int32]Offset{}, open: map[string]map[int32][]int64{}, sessions: map[string]time.Time{}}
		s.groups[id] = e
		s.weigh(e)
	}
	return e
}

func (s *Shard) put(e *entry, g *classic) {
	e.group = g
	s.weigh(e)
}

func (s *Shard) weigh(e *entry) {
	n := int64(e.name) + e.group.size()
	if e.consumer != nil {
		n += e.consumer.bytes
	}
	s.bytes += n - e.bytes
	e.bytes = n
}

// tidy forgets a group of which nothing is left.
func (s *Shard) tidy(id string, e *entry) {
	if !e.saved && len(e.offsets)+len(e.open) == 0 && e.group.idle() && e.consumer == nil {
		delete(s.groups, id)
		s.bytes -= e.bytes
	}
}

// Apply takes over what a record of the log says. It is the same for a log that is replayed and for records just
// committed, and does not mind which older records of the same key compaction has removed. Records of other
// protocols are ignored; malformed ones change nothing and are reported.
func (s *Shard) Apply(r Record) error {
	if isConsumer(r.Key) {
		return s.applyConsumer(r)
	}
	d, known, err := decode(r)
	if err != nil || !known {
		return err
	}
	switch {
	case d.isOffset && d.offset != nil:
		e := s.entry(d.group)
		s.position++
		d.offset.at = s.position
		s.putOffset(e, d.topic, d.partition, *d.offset)
	case d.isOffset:
		e := s.groups[d.group]
		if e == nil {
			return nil
		}
		if old, ok := e.offsets[d.topic][d.partition]; ok {
			s.bytes -= offsetBytes + int64(len(old.Metadata))
			s.offsets--
			delete(e.offsets[d.topic], d.partition)
			if len(e.offsets[d.topic]) == 0 {
				delete(e.offsets, d.topic)
			}
		}
		s.dropPending(d.group, e, d.topic, d.partition)
		s.tidy(d.group, e)
	case d.value != nil:
		e := s.entry(d.group)
		e.saved = true
		s.put(e, classicOf(d.value))
	default:
		if e := s.groups[d.group]; e != nil {
			e.saved = false
			clear(e.sessions)
			s.put(e, newClassic(-1))
			s.tidy(d.group, e)
		}
	}
	return nil
}

func (s *Shard) putOffset(e *entry, topic string, partition int32, o Offset) {
	ps := inner(e.offsets, topic)
	if old, ok := ps[partition]; ok {
		s.bytes -= offsetBytes + int64(len(old.Metadata))
	} else {
		s.offsets++
	}
	ps[partition] = o
	s.bytes += offsetBytes + int64(len(o.Metadata))
}

// Settle takes over the part of a result that is not in the log. It comes after Apply of the result's records; that
// may be long after Handle, so members get their time from now on.
func (s *Shard) Settle(now time.Time, r Result) {
	if r.next != nil {
		e := s.groups[r.Group]
		if e == nil {
			e = s.entry(r.Group)
			e.version = r.version
		}
		if e.version != r.version {
			panic(fmt.Sprintf("group: %q: a result decided at version %d settles at %d", r.Group, r.version, e.version))
		}
		e.version++
		s.put(e, r.next)
	}
	e := s.groups[r.Group]
	if e == nil {
		return
	}
	for _, d := range r.sessions {
		switch {
		case !e.has(d.member):
			delete(e.sessions, d.member)
		case d.by.IsZero():
			delete(e.sessions, d.member)
		case d.touch && e.sessions[d.member].After(d.by):
			// A heartbeat was heard while the append was under way.
		default:
			by := d.by
			if !d.touch {
				by = by.Add(now.Sub(r.at))
			}
			e.sessions[d.member] = by
		}
	}
	if e.consumer != nil {
		e.settleConsumer(now, r)
	}
	s.tidy(r.Group, e)
}

// Loaded gives the members of every group their session timeouts anew, after a replay: no heartbeat could be heard
// before. It returns the commands that follow from the configuration having changed since.
func (s *Shard) Loaded(now time.Time) (follow []Command) {
	for _, id := range s.GroupIDs() {
		e := s.groups[id]
		for _, m := range e.group.members {
			e.sessions[m.id] = now.Add(m.session)
		}
		if c := e.consumer; c != nil {
			session := s.cfg.ConsumerSession
			if s.cfg.Of != nil {
				session = cmp.Or(s.cfg.Of(id).Session, session)
			}
			for _, m := range c.members {
				e.sessions[m.id] = now.Add(session)
				if m.classic != nil {
					e.sessions[m.id] = now.Add(m.classic.session)
				}
				if m.state == memberUnrevoked {
					e.revokes[m.id] = revocation{m.id, now.Add(m.rebalance), m.epoch}
				}
			}
		}
		if len(e.group.members) > s.cfg.MaxSize {
			follow = append(follow, &Shrink{Group: id})
		}
	}
	return follow
}

// Deadline is when the group next needs a Tick. It looks at every member; between changes of the group deadlines
// only move away, so a caller may keep an old answer until it has passed, and ask again then.
func (s *Shard) Deadline(id string) (at time.Time, ok bool) {
	e := s.groups[id]
	if e == nil {
		return at, false
	}
	earliest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	g := e.group
	for _, m := range g.members {
		if !m.excused() {
			earliest(e.sessions[m.id])
		}
	}
	for _, by := range g.pending {
		earliest(by)
	}
	if e.consumer != nil {
		for id := range e.consumer.members {
			earliest(e.sessions[id])
		}
		for _, r := range e.revokes {
			earliest(r.by)
		}
		for _, r := range e.rejoins {
			earliest(r.by)
		}
	}
	earliest(g.joinBy)
	earliest(g.syncBy)
	return at, !at.IsZero()
}

// Parked are the requests that wait for an answer, in order of tokens.
func (s *Shard) Parked() (tokens []uint64) {
	for _, e := range s.groups {
		for _, m := range e.group.members {
			for _, t := range []uint64{m.joining, m.syncing} {
				if t != 0 {
					tokens = append(tokens, t)
				}
			}
		}
	}
	slices.Sort(tokens)
	return tokens
}

// Lookup is the committed offset of a group.
func (s *Shard) Lookup(group, topic string, partition int32) (Offset, bool) {
	e := s.groups[group]
	if e == nil {
		return Offset{}, false
	}
	o, ok := e.offsets[topic][partition]
	return o, ok
}

// Fetch answers one group of an OffsetFetch request. Topics null means all. Names are looked up; the ids of the
// request are handed back. With stable, a partition for which a transaction has an offset pending is answered
// UNSTABLE_OFFSET_COMMIT.
func (s *Shard) Fetch(req *kmsg.OffsetFetchRequestGroup, stable bool) kmsg.OffsetFetchResponseGroup {
	resp := kmsg.NewOffsetFetchResponseGroup()
	resp.Group = req.Group
	if resp.ErrorCode = s.mayFetch(req); resp.ErrorCode != codeNone {
		return resp
	}
	none := ""
	e := s.groups[req.Group]
	one := func(t *kmsg.OffsetFetchResponseGroupTopic, p int32, o Offset, ok bool) {
		rp := kmsg.NewOffsetFetchResponseGroupTopicPartition()
		rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = p, -1, -1, &none
		switch {
		case stable && e != nil && e.unstable(t.Topic, p):
			rp.ErrorCode = codeUnstableOffsetCommit
		case ok:
			rp.Offset, rp.LeaderEpoch, rp.Metadata = o.Offset, o.LeaderEpoch, &o.Metadata
		}
		t.Partitions = append(t.Partitions, rp)
	}
	if req.Topics != nil {
		for _, t := range req.Topics {
			rt := kmsg.NewOffsetFetchResponseGroupTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				o, ok := s.Lookup(req.Group, t.Topic, p)
				one(&rt, p, o, ok)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp
	}
	if e != nil {
		for _, topic := range slices.Sorted(maps.Keys(e.offsets)) {
			rt := kmsg.NewOffsetFetchResponseGroupTopic()
			rt.Topic = topic
			for _, p := range slices.Sorted(maps.Keys(e.offsets[topic])) {
				one(&rt, p, e.offsets[topic][p], true)
			}
			resp.Topics = append(resp.Topics, rt)
		}
	}
	return resp
}

// Describe answers one group of a DescribeGroups request. A group that does not exist is Dead; from version 6 on
// that is an error too (KIP-1043).
func (s *Shard) Describe(id string, version int16) kmsg.DescribeGroupsResponseGroup {
	resp := kmsg.NewDescribeGroupsResponseGroup()
	resp.Group = id
	e := s.groups[id]
	if e == nil || e.consumer != nil {
		resp.State = "Dead"
		if version >= 6 {
			resp.ErrorCode = codeGroupIDNotFound
			msg := fmt.Sprintf("Group %s not found.", id)
			if e != nil {
				msg = fmt.Sprintf("Group %s is not a classic group.", id)
			}
			resp.ErrorMessage = &msg
		}
		return resp
	}
	g := e.group
	resp.State, resp.ProtocolType = g.state.String(), g.protocolType
	stable := g.state == Stable && g.protocol != nil
	if stable {
		resp.Protocol = *g.protocol
	}
	for _, id := range g.ids() {
		m := g.members[id]
		rm := kmsg.NewDescribeGroupsResponseGroupMember()
		rm.MemberID, rm.InstanceID, rm.ClientID, rm.ClientHost = m.id, m.instance, m.clientID, m.clientHost
		rm.MemberAssignment = m.assignment
		if stable {
			rm.ProtocolMetadata = m.metadata(*g.protocol)
		}
		resp.Members = append(resp.Members, rm)
	}
	return resp
}

// List answers a ListGroups request: the groups in one of the states and of one of the types, whatever the case of
// the letters; no states or no types means any.
func (s *Shard) List(states, types []string) (groups []kmsg.ListGroupsResponseGroup) {
	among := func(filter []string, v string) bool {
		return len(filter) == 0 || slices.ContainsFunc(filter, func(f string) bool { return strings.EqualFold(strings.TrimSpace(f), v) })
	}
	for _, id := range s.GroupIDs() {
		e := s.groups[id]
		protocolType, state, kind := e.group.protocolType, e.group.state.String(), "classic"
		if e.consumer != nil {
			protocolType, state, kind = consumerType, e.consumer.stateName(), "consumer"
		}
		if !among(states, state) || !among(types, kind) {
			continue
		}
		lg := kmsg.NewListGroupsResponseGroup()
		lg.Group, lg.ProtocolType, lg.GroupState, lg.GroupType = id, protocolType, state, kind
		groups = append(groups, lg)
	}
	return groups
}
