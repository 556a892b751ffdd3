package group

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// sim drives a shard as the runtime does, with appends that take their time, fail, or succeed, in an order that a source
// of bytes decides; after every step it checks what must always hold.
type sim struct {
	t     testing.TB
	src   func() int
	shard *Shard
	cfg   Config
	now   time.Time
	log   []logged
	trace []string

	token   uint64
	asked   map[uint64]string // not answered yet
	flying  []flight          // appends under way, in order
	members []string          // ids that somebody was told, forged ones among them
	gens    map[string]int32  // highest generation seen of a group
	prep    map[string]bool   // whether it was preparing a rebalance

	epochs  map[int64]int16 // of producers, as the partition knows them: it refuses earlier ones
	dumps   []string        // what a replay of so many entries of the log must know; "" in the middle of an append
	decided int             // transactions that ended with something pending
}

// flight is an append under way: of a command's records, or of a marker.
type flight struct {
	r      Result
	a      Access
	marker *logged
}

func newSim(t testing.TB, src func() int) *sim {
	cfg := Config{MaxSize: 4, MaxPending: 3, InitialRebalanceDelay: time.Second, OffsetsRetention: time.Hour, MinSessionTimeout: time.Second}
	return &sim{t: t, src: src, shard: NewShard(cfg), cfg: cfg, now: time.UnixMilli(1 << 40), asked: map[uint64]string{},
		members: []string{"", "forged"}, gens: map[string]int32{}, prep: map[string]bool{}, epochs: map[int64]int16{}, dumps: []string{""}}
}

func (s *sim) pick(n int) int { return s.src() % n }

func (s *sim) failf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nlast steps:\n%s\nstate:\n%s", fmt.Sprintf(format, args...), strings.Join(s.trace[max(0, len(s.trace)-40):], "\n"), dump(s.shard, s.now))
}

func (s *sim) group() string  { return []string{"g", "h"}[s.pick(2)] }
func (s *sim) member() string { return s.members[s.pick(len(s.members))] }
func (s *sim) instance() *string {
	return []*string{nil, nil, kmsg.StringPtr("one"), kmsg.StringPtr("two")}[s.pick(4)]
}

func (s *sim) gen(group string) int32 {
	g := int32(0)
	if e := s.shard.groups[group]; e != nil {
		g = e.group.generation
	}
	return []int32{g, g, g, g, g - 1, -1}[s.pick(6)]
}

// speaker is mostly a real member of the group, with its own instance id.
func (s *sim) speaker(group string) (id string, instance *string) {
	if e := s.shard.groups[group]; e != nil && len(e.group.members) > 0 && s.pick(4) > 0 {
		ids := e.group.ids()
		m := e.group.members[ids[s.pick(len(ids))]]
		return m.id, m.instance
	}
	return s.member(), s.instance()
}

func (s *sim) ask(what string) uint64 {
	s.token++
	s.asked[s.token] = what
	return s.token
}

func (s *sim) command() Command {
	group := s.group()
	switch s.pick(16) {
	case 0, 1, 2:
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version = []int16{0, 3, 5, 8, 9}[s.pick(5)]
		req.Group = group
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(1000*(1+s.pick(20))), int32(1000*s.pick(30))
		if s.pick(2) == 0 {
			req.MemberID, req.InstanceID = s.speaker(group)
		} else {
			req.MemberID, req.InstanceID = "", s.instance()
		}
		req.ProtocolType = []string{"consumer", "consumer", "consumer", "connect", ""}[s.pick(5)]
		for range s.pick(4) {
			p := kmsg.NewJoinGroupRequestProtocol()
			p.Name = []string{"range", "sticky", "x"}[s.pick(3)]
			p.Metadata = [][]byte{metadata("sub/t"), metadata("sub/t/u"), []byte("?"), nil}[s.pick(4)]
			req.Protocols = append(req.Protocols, p)
		}
		return &Join{Token: s.ask("join"), Req: req, ClientID: "c", ClientHost: "/h", Suffix: fmt.Sprint(s.token)}
	case 3, 4, 5:
		req := kmsg.NewPtrSyncGroupRequest()
		req.Version = 5
		req.Group, req.Generation = group, s.gen(group)
		req.MemberID, req.InstanceID = s.speaker(group)
		if e := s.shard.groups[group]; e != nil && s.pick(2) == 0 {
			if l := e.group.members[e.group.leader]; l != nil {
				req.MemberID, req.InstanceID = l.id, l.instance
			}
		}
		for range s.pick(4) {
			a := kmsg.NewSyncGroupRequestGroupAssignment()
			a.MemberID, a.MemberAssignment = s.member(), []byte{byte(s.pick(256))}
			req.GroupAssignment = append(req.GroupAssignment, a)
		}
		return &Sync{Token: s.ask("sync"), Req: req}
	case 6:
		req := kmsg.NewPtrHeartbeatRequest()
		req.Group, req.Generation = group, s.gen(group)
		req.MemberID, req.InstanceID = s.speaker(group)
		return &Heartbeat{Token: s.ask("heartbeat"), Req: req}
	case 7:
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Version = []int16{1, 5}[s.pick(2)]
		req.Group = group
		req.MemberID, _ = s.speaker(group)
		for range 1 + s.pick(2) {
			m := kmsg.NewLeaveGroupRequestMember()
			m.MemberID, m.InstanceID = s.speaker(group)
			if m.InstanceID != nil && s.pick(2) == 0 {
				m.MemberID = ""
			}
			req.Members = append(req.Members, m)
		}
		return &Leave{Token: s.ask("leave"), Req: req}
	case 8, 9, 10, 11:
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version = []int16{2, 5, 6, 9}[s.pick(4)]
		req.Group, req.Generation = group, s.gen(group)
		req.MemberID, req.InstanceID = s.speaker(group)
		if s.pick(4) == 0 {
			req.Generation, req.MemberID, req.InstanceID = -1, "", nil
		}
		req.RetentionTimeMillis = []int64{-1, -1, 60_000, 1<<63 - 1}[s.pick(4)]
		for range 1 + s.pick(3) {
			t := kmsg.NewOffsetCommitRequestTopic()
			t.Topic = []string{"t", "u"}[s.pick(2)]
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch = int32(s.pick(3)), int64(s.pick(1000)), int32(s.pick(9))
			if s.pick(4) == 0 {
				p.Metadata = kmsg.StringPtr("note")
			}
			t.Partitions = append(t.Partitions, p)
			req.Topics = append(req.Topics, t)
		}
		c := &Commit{Token: s.ask("commit"), Req: req}
		if s.pick(2) == 0 {
			req.Version, req.RetentionTimeMillis = 9, -1
			c.Txn = s.producer()
			if s.pick(3) == 0 {
				req.Generation, req.MemberID, req.InstanceID = -1, "", nil
			}
		}
		return c
	case 12:
		return &Delete{Token: s.ask("delete"), Group: group}
	case 13:
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = group
		t := kmsg.NewOffsetDeleteRequestTopic()
		t.Topic = []string{"t", "u"}[s.pick(2)]
		t.Partitions = []kmsg.OffsetDeleteRequestTopicPartition{{Partition: int32(s.pick(3))}}
		req.Topics = append(req.Topics, t)
		return &DeleteOffsets{Token: s.ask("delete offsets"), Req: req}
	case 14:
		return &Expire{Group: group}
	default:
		if s.pick(3) == 0 {
			return &DropTopic{Group: group, Topic: "u"}
		}
		return &Tick{Group: group}
	}
}

// producer is one of a few, mostly in the epoch that the partition knows, else in one before or after.
func (s *sim) producer() *Txn {
	id := int64(1 + s.pick(3))
	return &Txn{id, s.epochs[id] + []int16{0, 0, 0, 0, 0, -1, -1, 1}[s.pick(8)]}
}

// end queues a marker, of the transaction's epoch or the next (KIP-890), behind what is under way already.
func (s *sim) end() {
	by := &Txn{ProducerID: int64(1 + s.pick(3))}
	by.ProducerEpoch = s.epochs[by.ProducerID] + int16(s.pick(2))
	s.flying = append(s.flying, flight{marker: &logged{txn: by, marker: true, commit: s.pick(3) > 0}})
	s.trace = append(s.trace, "queue "+s.flying[len(s.flying)-1].marker.text())
}

// admitted is the table of AccessOf.
func (s *sim) admitted(c Command) bool {
	a := AccessOf(c)
	for _, f := range s.flying {
		if f.r.Group == c.GroupID() && a != Free && (f.a != Shared || a == Exclusive) {
			return false
		}
	}
	return true
}

func (s *sim) step() {
	switch s.pick(8) {
	case 0:
		s.now = s.now.Add(time.Duration(s.pick(5000)) * time.Millisecond)
		s.trace = append(s.trace, "time passes")
	case 1, 2, 3:
		s.landOne()
	case 4:
		if s.pick(2) == 0 {
			s.end()
			break
		}
		fallthrough
	default:
		c := s.command()
		if !s.admitted(c) {
			s.trace = append(s.trace, fmt.Sprintf("%T %s must wait", c, c.GroupID()))
			s.forget(c)
			return
		}
		s.do(c)
	}
	for _, id := range s.shard.GroupIDs() {
		if at, ok := s.shard.Deadline(id); ok && !at.After(s.now) {
			if c := (&Tick{Group: id}); s.admitted(c) {
				s.do(c)
				if at, ok := s.shard.Deadline(id); ok && !at.After(s.now) && s.admitted(c) {
					// Only an initial delay of no length may be due again at once.
					if s.do(c); s.admitted(c) {
						if at, ok := s.shard.Deadline(id); ok && !at.After(s.now) {
							s.failf("%s: still due after two ticks", id)
						}
					}
				}
			}
		}
	}
	s.check()
}

func (s *sim) forget(c Command) {
	switch c := c.(type) {
	case *Join:
		delete(s.asked, c.Token)
	case *Sync:
		delete(s.asked, c.Token)
	case *Heartbeat:
		delete(s.asked, c.Token)
	case *Leave:
		delete(s.asked, c.Token)
	case *Commit:
		delete(s.asked, c.Token)
	case *Delete:
		delete(s.asked, c.Token)
	case *DeleteOffsets:
		delete(s.asked, c.Token)
	}
}

func (s *sim) do(c Command) {
	before := dump(s.shard, s.now)
	r := s.shard.Handle(s.now, c)
	if after := dump(s.shard, s.now); after != before {
		s.failf("Handle of %T changed the state from\n%s", c, before)
	}
	if again := s.shard.Handle(s.now, c); !slices.EqualFunc(r.Records, again.Records, func(a, b Record) bool {
		return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
	}) {
		s.failf("Handle of %T decides differently the second time", c)
	}
	s.trace = append(s.trace, fmt.Sprintf("%T %s: %d records, %d replies", c, c.GroupID(), len(r.Records), len(r.Replies)))
	if m, ok := c.(*Commit); ok && len(r.Records) > 0 {
		s.checkCommit(m)
	}
	if len(r.Records) == 0 {
		s.settle(r)
		return
	}
	s.flying = append(s.flying, flight{r: r, a: AccessOf(c)})
}

// checkCommit says independently who may commit.
func (s *sim) checkCommit(c *Commit) {
	e := s.shard.groups[c.Req.Group]
	if e == nil {
		if c.Req.Generation >= 0 {
			s.failf("a member committed for a group that does not exist")
		}
		return
	}
	g := e.group
	if c.Txn != nil && c.Req.Generation < 0 && c.Req.MemberID == "" && c.Req.InstanceID == nil {
		return // an old producer, which could not say more
	}
	if c.Req.Generation < 0 {
		if g.state != Empty && (c.Req.MemberID == "" || g.generation >= 0) {
			s.failf("a stranger committed for a group with members")
		}
		return
	}
	m := g.members[c.Req.MemberID]
	if m == nil || c.Req.Generation != g.generation || c.Txn == nil && g.state == CompletingRebalance {
		s.failf("a zombie committed: %s in generation %d", c.Req.MemberID, c.Req.Generation)
	}
	if i := c.Req.InstanceID; i != nil && (m.instance == nil || *m.instance != *i) {
		s.failf("a fenced instance committed")
	}
}

func (s *sim) landOne() {
	if len(s.flying) == 0 {
		return
	}
	f := s.flying[0]
	s.flying = s.flying[1:]
	by := f.r.Txn
	if f.marker != nil {
		by = f.marker.txn
	}
	if by != nil && by.ProducerEpoch < s.epochs[by.ProducerID] {
		s.trace = append(s.trace, fmt.Sprintf("the partition refuses epoch %d of %d", by.ProducerEpoch, by.ProducerID))
		s.answered(Fail(f.r, codeInvalidProducerEpoch))
		return
	}
	if s.pick(5) == 0 {
		s.trace = append(s.trace, f.r.Group+": append fails")
		before := dump(s.shard, s.now)
		s.answered(Fail(f.r, codeCoordinatorNotAvailable))
		if dump(s.shard, s.now) != before {
			s.failf("a failed append changed the state")
		}
		return
	}
	if by != nil {
		s.epochs[by.ProducerID] = by.ProducerEpoch
	}
	if f.marker != nil {
		if s.shard.txns[by.ProducerID] != nil {
			s.decided++
		}
		s.trace = append(s.trace, f.marker.text()+" lands")
		s.keep(*f.marker)
		s.landed()
		return
	}
	s.trace = append(s.trace, f.r.Group+": append lands")
	for _, r := range f.r.Records {
		s.keep(logged{Record: r, txn: f.r.Txn})
	}
	s.settle(f.r)
	s.landed()
}

func (s *sim) keep(l logged) {
	s.log, s.dumps = append(s.log, l), append(s.dumps, "")
	if err := l.apply(s.shard); err != nil {
		s.failf("%v", err)
	}
}

// landed compares the offsets with what the log says, read in another way than Apply's: a record of a transaction
// counts if a marker that commits comes after it, is pending if none comes, and of what counts the last is right.
func (s *sim) landed() {
	s.dumps[len(s.log)] = durable(s.shard)
	next := map[int64]*logged{} // the marker that a record of the producer meets, going back
	seen, pending := map[string]bool{}, map[string]bool{}
	for i := len(s.log) - 1; i >= 0; i-- {
		l := &s.log[i]
		if l.marker {
			next[l.txn.ProducerID] = l
			continue
		}
		d, known, err := decode(l.Record)
		if err != nil || !known || !d.isOffset {
			continue
		}
		key := fmt.Sprint(d.group, d.topic, d.partition)
		if l.txn != nil && next[l.txn.ProducerID] == nil {
			if one := fmt.Sprint(key, l.txn.ProducerID); !seen[key+"null"] && !pending[one] {
				pending[one] = true
				o, ok := s.shard.txns[l.txn.ProducerID].groups[d.group][d.topic][d.partition]
				if o.at = 0; !ok || o != *d.offset {
					s.failf("%s is pending, the shard has %+v, %v", l.text(), o, ok)
				}
			}
			continue
		}
		if l.Value == nil {
			seen[key+"null"] = true
		}
		if l.txn != nil && !next[l.txn.ProducerID].commit || seen[key] {
			continue
		}
		seen[key] = true
		o, ok := s.shard.Lookup(d.group, d.topic, d.partition)
		if o.at = 0; ok != (d.offset != nil) || ok && o != *d.offset {
			s.failf("the last that counts is %s, the shard has %+v, %v", l.text(), o, ok)
		}
	}
	n := 0
	for _, e := range s.shard.groups {
		for topic, ps := range e.offsets {
			for p := range ps {
				if key := fmt.Sprint(topic, p); !seen["g"+key] && !seen["h"+key] {
					s.failf("an offset of %s that nobody committed", key)
				}
			}
		}
		for _, ps := range e.open {
			for _, ids := range ps {
				n += len(ids)
			}
		}
	}
	if n != len(pending) || n != s.shard.pendings {
		s.failf("%d offsets are pending, of %d counted and %d in the log", n, s.shard.pendings, len(pending))
	}
}

func (s *sim) settle(r Result) {
	s.shard.Settle(s.now, r)
	s.answered(r.Replies)
}

func (s *sim) answered(rs []Reply) {
	for _, r := range rs {
		if _, ok := s.asked[r.Token]; !ok {
			s.failf("token %d was answered and not asked, or twice: %s", r.Token, response(r.Response))
		}
		delete(s.asked, r.Token)
		s.trace = append(s.trace, fmt.Sprintf("  -> %d %s", r.Token, response(r.Response)))
		if j, ok := r.Response.(*kmsg.JoinGroupResponse); ok && j.MemberID != "" && !slices.Contains(s.members, j.MemberID) {
			s.members = append(s.members, j.MemberID)
			if len(s.members) > 12 {
				s.members = slices.Delete(s.members, 2, 3)
			}
		}
	}
}

func (s *sim) check() {
	waiting := s.shard.Parked()
	for _, f := range s.flying {
		if f.r.token != 0 {
			waiting = append(waiting, f.r.token)
		}
	}
	for t, what := range s.asked {
		if !slices.Contains(waiting, t) {
			s.failf("%s %d is neither answered nor parked", what, t)
		}
	}
	size := pendingSize(s.shard)
	offsets := 0
	for _, id := range s.shard.GroupIDs() {
		e := s.shard.groups[id]
		g := e.group
		size += int64(e.name) + g.size()
		for _, ps := range e.offsets {
			for _, o := range ps {
				size += offsetBytes + int64(len(o.Metadata))
				offsets++
			}
		}
		if g.generation < s.gens[id] && g.generation != 0 {
			s.failf("%s: generation %d after %d", id, g.generation, s.gens[id])
		}
		if s.prep[id] && (g.state == CompletingRebalance || g.state == Stable) && g.generation <= s.gens[id] {
			s.failf("%s: a rebalance ends in generation %d", id, g.generation)
		}
		s.prep[id] = g.state == PreparingRebalance
		s.gens[id] = g.generation
		if g.state == Empty && len(g.members) > 0 || len(g.members) == 0 && (g.state == Stable || g.state == CompletingRebalance) {
			s.failf("%s: %d members in state %s", id, len(g.members), g.state)
		}
		if len(g.members) > 0 && g.members[g.leader] == nil {
			s.failf("%s: the leader %q is no member", id, g.leader)
		}
		if (g.state == Stable || g.state == CompletingRebalance) && (g.protocol == nil || !g.common()[*g.protocol]) {
			s.failf("%s: protocol %s is not everybody's", id, deref(g.protocol))
		}
		if (g.state == PreparingRebalance) != !g.joinBy.IsZero() {
			s.failf("%s: %s with join deadline %v", id, g.state, g.joinBy)
		}
		if len(g.unsynced) > 0 != !g.syncBy.IsZero() && g.state != CompletingRebalance {
			s.failf("%s: %s with %d not synced and deadline %v", id, g.state, len(g.unsynced), g.syncBy)
		}
		for id, m := range g.members {
			if m.instance != nil && g.static[*m.instance] != id {
				s.failf("instance %s of %s belongs to %s", *m.instance, id, g.static[*m.instance])
			}
			if m.joining != 0 && g.state != PreparingRebalance || m.syncing != 0 && g.state != CompletingRebalance {
				s.failf("%s is parked in state %s", id, g.state)
			}
			if e.sessions[id].IsZero() {
				s.failf("%s has no session", id)
			}
		}
		for i, id := range g.static {
			if m := g.members[id]; m == nil || m.instance == nil || *m.instance != i {
				s.failf("instance %s belongs to nobody", i)
			}
		}
		for id := range e.sessions {
			if g.members[id] == nil {
				s.failf("a session of %s, who is no member", id)
			}
		}
		if g.idle() && !e.saved && len(e.offsets)+len(e.open) == 0 {
			s.failf("%s: nothing is left of it", id)
		}
	}
	if size != s.shard.bytes || offsets != s.shard.offsets {
		s.failf("%d bytes and %d offsets counted, %d and %d found", s.shard.bytes, s.shard.offsets, size, offsets)
	}
}

// replay reads the log into a new shard, which must know what the old one knows of the log.
func (s *sim) replay() *Shard {
	fresh := NewShard(s.cfg)
	for i, l := range s.log {
		if want := s.dumps[i]; want != "" && durable(fresh) != want {
			s.failf("a replay of %d entries has\n%s\nthen it was\n%s", i, durable(fresh), want)
		}
		if err := l.apply(fresh); err != nil {
			s.failf("replay: %v", err)
		}
	}
	if got, want := durable(fresh), durable(s.shard); got != want {
		s.failf("replay has\n%s\nlive has\n%s", got, want)
	}
	for id, e := range fresh.groups {
		live := s.shard.groups[id]
		if !e.saved || live.group.state == PreparingRebalance || live.group.state == CompletingRebalance {
			continue
		}
		if len(live.group.pending) > 0 {
			continue
		}
		if a, b := lasting(e.group), lasting(live.group); a != b {
			s.failf("replay has\n%s\nlive has\n%s", a, b)
		}
	}
	return fresh
}

// lasting is what of a group must survive its coordinator.
func lasting(g *classic) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s gen=%d type=%s protocol=%s leader=%s since=%d topics=%v static=%v\n", g.state, g.generation, g.protocolType, deref(g.protocol),
		g.leader, g.since, g.topics, g.static)
	for _, id := range g.ids() {
		m := g.members[id]
		var chosen []byte
		if g.protocol != nil {
			chosen = m.metadata(*g.protocol)
		}
		fmt.Fprintf(&b, "  %s %s %s%s %v %v %q %q\n", id, m.clientID, m.clientHost, instance(m.instance), m.session, m.rebalance, chosen, m.assignment)
	}
	return b.String()
}

// durable is what a shard knows that is in the log.
func durable(s *Shard) string {
	var b strings.Builder
	for _, id := range s.GroupIDs() {
		e := s.groups[id]
		if !e.saved && len(e.offsets)+len(e.open) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s saved=%v\n", id, e.saved)
		for _, t := range []string{"t", "u"} {
			for p := range int32(3) {
				if o, ok := e.offsets[t][p]; ok {
					o.at = 0
					fmt.Fprintf(&b, "  %s/%d %+v\n", t, p, o)
				}
				for _, producerID := range slices.Sorted(slices.Values(e.open[t][p])) {
					o := s.txns[producerID].groups[id][t][p]
					o.at = 0
					fmt.Fprintf(&b, "  %s/%d %+v pending of %d\n", t, p, o, producerID)
				}
			}
		}
	}
	return b.String()
}

// compacted is a compaction of the log below its last stable offset: of every key the newest record that is not of an
// aborted transaction; older and aborted ones at random; where the newest is a tombstone, all or nothing. Markers stay.
func (s *sim) compacted() []logged {
	stable, open, aborted := len(s.log), map[int64]bool{}, map[int]bool{}
	var since = map[int64][]int{}
	for i, l := range s.log {
		if l.txn == nil {
			continue
		}
		if !l.marker {
			since[l.txn.ProducerID] = append(since[l.txn.ProducerID], i)
			continue
		}
		for _, i := range since[l.txn.ProducerID] {
			aborted[i] = !l.commit
		}
		delete(since, l.txn.ProducerID)
	}
	for id, is := range since {
		open[id], stable = true, min(stable, is[0])
	}
	newest := map[string]int{}
	for i, l := range s.log[:stable] {
		if !l.marker && !aborted[i] {
			newest[string(l.Key)] = i
		}
	}
	gone := map[string]bool{}
	for key, i := range newest {
		if s.log[i].Value == nil {
			gone[key] = s.pick(2) == 0
		}
	}
	var kept []logged
	for i, l := range s.log {
		last, ok := newest[string(l.Key)]
		switch {
		case l.marker, i >= stable, ok && last == i && l.Value != nil:
		case gone[string(l.Key)], ok && s.log[last].Value != nil && s.pick(3) > 0, !ok && s.pick(3) > 0:
			continue
		}
		kept = append(kept, l)
	}
	return kept
}

func (s *sim) run(steps int) {
	for i := range steps {
		s.step()
		if i%50 == 49 {
			s.replay()
		}
	}
	for len(s.flying) > 0 {
		s.landOne()
	}
	fresh := s.replay()
	cs := NewShard(s.cfg)
	for _, l := range s.compacted() {
		if err := l.apply(cs); err != nil {
			s.failf("compacted: %v", err)
		}
	}
	if got, want := durable(cs), durable(fresh); got != want {
		s.failf("a compacted log replays to\n%s\nthe whole log to\n%s", got, want)
	}

	// A new coordinator takes over and goes on.
	fresh.Loaded(s.now)
	s.shard, s.asked, s.gens = fresh, map[uint64]string{}, map[string]int32{}
	s.prep = map[string]bool{}
	s.check()
}

func TestRandomCommands(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	decided := 0
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := newSim(t, func() int { return rnd.IntN(1 << 20) })
		s.trace = append(s.trace, fmt.Sprintf("seed %d", seed))
		for range 3 {
			s.run(200)
		}
		decided += s.decided
	}
	if decided < rounds {
		t.Errorf("%d transactions in %d rounds", decided, rounds)
	}
}

// FuzzCommands lets the fuzzer choose the order of events.
func FuzzCommands(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		b := make([]byte, 2000)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<13 {
			return
		}
		more := true
		s := newSim(t, nil)
		s.src = func() int {
			if len(b) == 0 {
				more = false
				return 0
			}
			v := int(b[0])
			b = b[1:]
			return v
		}
		for more {
			s.step()
		}
		s.replay()
	})
}

// FuzzApply feeds a shard records that it did not write.
func FuzzApply(f *testing.F) {
	s := newStory(Config{})
	f.Add(offsetKey("g", "t", 1), offsetRecord("g", "t", 1, Offset{Offset: 5, Expires: -1}).Value)
	f.Add(offsetKey("g", "t", 1), offsetRecord("g", "t", 1, Offset{Offset: 5, Expires: 7}).Value)
	g := newClassic(5)
	g.add(&member{id: "m", protocols: []protocol{{"range", metadata("sub/t")}}}, "consumer")
	g.protocol = kmsg.StringPtr("range")
	f.Add(groupKey("g"), groupRecord("g", g).Value)
	f.Add(groupKey("g"), []byte(nil))
	f.Fuzz(func(t *testing.T, k, v []byte) {
		sh := NewShard(s.shard.cfg)
		if len(v) == 0 {
			v = nil
		}
		if err := sh.Apply(Record{Key: k, Value: v}); err != nil {
			return
		}
		sh.Loaded(s.now)
		for _, id := range sh.GroupIDs() {
			sh.Deadline(id)
			sh.Handle(s.now, &Tick{Group: id})
			sh.Handle(s.now.Add(time.Hour*24*365*50), &Tick{Group: id})
			sh.Handle(s.now, &Expire{Group: id})
			sh.Describe(id, 6)
		}
		if by := (Txn{ProducerID: 1}); sh.ApplyTxn(Record{Key: k, Value: v}, by) == nil {
			sh.ApplyMarker(by, len(k)%2 == 0)
		}
		if offsets, txns := sh.Pending(); offsets != 0 || txns != 0 {
			t.Fatalf("%d offsets of %d transactions are left", offsets, txns)
		}
	})
}
