// Package group decides what consumer groups do: who is a member, when a group rebalances, which offset commits
// count. It is Kafka's group coordinator for the classic protocol (KIP-62, 345, 394, 814, 1043) and the consumer
// protocol (KIP-848, 1082, 1251), as a pure state machine: it knows no clock, no log, no goroutine and no lock, and
// draws no random numbers.
//
// A Shard holds the groups of one partition of __consumer_offsets. It knows two sorts of state:
//
//   - What is in the log: committed offsets, and each group's members and assignments as of the last completed
//     rebalance; all of a group of the consumer protocol. Only Apply changes it, at recovery and at run time alike.
//   - What is lost with the leader and rebuilt by the clients: a rebalance under way, parked requests, deadlines.
//     Only Settle changes it.
//
// Handle decides and changes neither. The one commit point of a transition is the append of its records: until it
// succeeded, the state is what it was before the command, and the command may be repeated.
//
//	Handle(now, command) -> Result{records, replies, ...}
//	    no records                 Settle(result), replies leave
//	    records, append succeeded  Apply(each record), Settle(result), replies leave
//	    records, append failed     Fail(result) -> an error reply; nothing else happened
//
// While a Result waits for its append, further commands to the same group may be handled only as AccessOf allows;
// Settle panics if that was broken.
package group

import (
	"maps"
	"slices"
	"time"
)

// State is where a group is in its life.
type State int8

const (
	// Empty groups have no members; they may have offsets.
	Empty State = iota
	// PreparingRebalance groups wait for their members to join the next generation.
	PreparingRebalance
	// CompletingRebalance groups wait for their leader's assignment.
	CompletingRebalance
	// Stable groups have members with assignments.
	Stable
)

// String is the state's name on the wire.
func (s State) String() string {
	switch s {
	case Empty:
		return "Empty"
	case PreparingRebalance:
		return "PreparingRebalance"
	case CompletingRebalance:
		return "CompletingRebalance"
	case Stable:
		return "Stable"
	}
	return "Dead"
}

// consumerType is the protocol type whose subscriptions the coordinator can read.
const consumerType = "consumer"

// protocol is one way in which a member offers to have partitions assigned, with what its leader needs for it.
type protocol struct {
	name     string
	metadata []byte
}

// member is one member of a group. Members are shared between copies of a group and so never changed in place: see
// classic.edit.
type member struct {
	id         string
	instance   *string // static membership: the identity that outlives the member id
	clientID   string
	clientHost string
	rebalance  time.Duration
	session    time.Duration
	protocols  []protocol
	assignment []byte

	// held is what a member had when the group came back from the consumer protocol, until it is assigned anew: should
	// the group go there again before that, nobody else may get it.
	held holding

	fresh   bool   // has not been told yet that it is a member, so it cannot heartbeat
	joining uint64 // token of the parked JoinGroup, 0 if none
	syncing uint64 // token of the parked SyncGroup, 0 if none
}

// excused says that a member owes no heartbeat: it waits for the coordinator, not the other way round. A fresh member
// is not excused even then, since clients that went away while parked would otherwise stay for ever.
func (m *member) excused() bool { return !m.fresh && (m.joining != 0 || m.syncing != 0) }

func (m *member) metadata(name string) []byte {
	for _, p := range m.protocols {
		if p.name == name {
			return p.metadata
		}
	}
	return nil
}

// offers says whether the member offers exactly these protocols, in this order, with the same metadata.
func (m *member) offers(ps []protocol) bool {
	return slices.EqualFunc(m.protocols, ps, func(a, b protocol) bool {
		return a.name == b.name && string(a.metadata) == string(b.metadata)
	})
}

func (m *member) size() int64 {
	n := int64(256 + len(m.id) + len(m.clientID) + len(m.clientHost) + len(m.assignment))
	if m.instance != nil {
		n += int64(len(*m.instance))
	}
	for _, p := range m.protocols {
		n += int64(64 + len(p.name) + len(p.metadata))
	}
	return n
}

// classic is a group of the classic protocol, in which clients assign partitions themselves. A classic that a shard
// holds is never changed in place: Handle works on a clone, Settle puts the clone in.
type classic struct {
	state, prev  State
	generation   int32
	protocolType string  // "" before the first member, and for offsets committed without a group
	protocol     *string // chosen for this generation
	leader       string  // "" if none
	since        int64   // ms since the epoch of the last change of state; -1 unknown (old records)

	members  map[string]*member
	static   map[string]string    // instance id -> member id
	pending  map[string]time.Time // member ids handed out (KIP-394) that have not joined yet, and until when they may
	unsynced map[string]struct{}  // members of this generation that have not sent SyncGroup yet

	joinBy    time.Time // when the join phase ends whoever is missing; zero: none running
	initial   bool      // joinBy is the initial delay: more members extend it
	grown     bool      // a member came during the initial delay
	delay     time.Duration
	delayLeft time.Duration
	syncBy    time.Time // when members that did not sync are removed; zero: none running

	topics map[string]struct{} // what the members subscribe to; nil unknown
}

func newClassic(now int64) *classic {
	return &classic{since: now, members: map[string]*member{}, static: map[string]string{},
		pending: map[string]time.Time{}, unsynced: map[string]struct{}{}}
}

// clone copies the group; the members are shared.
func (g *classic) clone() *classic {
	c := *g
	c.members = maps.Clone(g.members)
	c.static = maps.Clone(g.static)
	c.pending = maps.Clone(g.pending)
	c.unsynced = maps.Clone(g.unsynced)
	return &c
}

// edit makes the member the clone's own and returns it for changing.
func (g *classic) edit(id string) *member {
	m := *g.members[id]
	g.members[id] = &m
	return &m
}

// ids are the members' ids in order.
func (g *classic) ids() []string { return slices.Sorted(maps.Keys(g.members)) }

func (g *classic) transition(to State, now time.Time) {
	g.prev, g.state, g.since = g.state, to, now.UnixMilli()
}

func (g *classic) add(m *member, protocolType string) {
	if len(g.members) == 0 {
		g.protocolType = protocolType
	}
	if g.leader == "" {
		g.leader = m.id
	}
	g.members[m.id] = m
	if m.instance != nil {
		g.static[*m.instance] = m.id
	}
	delete(g.pending, m.id)
}

// remove drops a member, or a member id that was only handed out. Without its leader the group takes the first of
// the others; which of them does not matter, since a rebalance follows and asks each to join.
func (g *classic) remove(id string) {
	if m := g.members[id]; m != nil {
		delete(g.members, id)
		if m.instance != nil && g.static[*m.instance] == id {
			delete(g.static, *m.instance)
		}
		if g.leader == id {
			g.leader = ""
			for other := range g.members {
				if g.leader == "" || other < g.leader {
					g.leader = other
				}
			}
		}
	}
	delete(g.pending, id)
	delete(g.unsynced, id)
}

func (g *classic) joined() (n int) {
	for _, m := range g.members {
		if m.joining != 0 {
			n++
		}
	}
	return n
}

func (g *classic) allJoined() bool { return len(g.pending) == 0 && g.joined() == len(g.members) }

// rebalanceTimeout is the longest of the members': the slowest decides.
func (g *classic) rebalanceTimeout() (d time.Duration) {
	for _, m := range g.members {
		d = max(d, m.rebalance)
	}
	return d
}

// common are the protocols that every member offers.
func (g *classic) common() map[string]bool {
	count := map[string]int{}
	for _, m := range g.members {
		for _, p := range m.protocols {
			count[p.name]++
		}
	}
	c := map[string]bool{}
	for name, n := range count {
		if n == len(g.members) {
			c[name] = true
		}
	}
	return c
}

// supports says whether a member with these protocols can be one of the group.
func (g *classic) supports(protocolType string, ps []protocol) bool {
	if len(g.members) == 0 { // nobody there to differ from, be it that all left in the middle of a rebalance
		return protocolType != "" && len(ps) > 0
	}
	if g.protocolType != protocolType {
		return false
	}
	c := g.common()
	return slices.ContainsFunc(ps, func(p protocol) bool { return c[p.name] })
}

// choose is the protocol of the next generation: of those that all members offer, the one that most of them prefer.
// Kafka leaves ties to the order of a hash table; here the leader's preference decides, and then the name, so that
// the same group always chooses the same.
func (g *classic) choose() string {
	c := g.common()
	votes := map[string]int{}
	for _, m := range g.members {
		for _, p := range m.protocols {
			if c[p.name] {
				votes[p.name]++
				break
			}
		}
	}
	best, most := "", 0
	try := func(name string) {
		if votes[name] > most {
			best, most = name, votes[name]
		}
	}
	if l := g.members[g.leader]; l != nil {
		for _, p := range l.protocols {
			try(p.name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(votes)) {
		try(name)
	}
	return best
}

// subscribe reads what the members subscribe to, if their protocol is one that can be read.
func (g *classic) subscribe() {
	g.topics = nil
	if g.protocolType != consumerType {
		return
	}
	topics := map[string]struct{}{}
	if len(g.members) > 0 && g.protocol == nil {
		return
	}
	for _, m := range g.members {
		names, ok := subscription(m.metadata(*g.protocol))
		if !ok {
			return
		}
		for _, name := range names {
			topics[name] = struct{}{}
		}
	}
	g.topics = topics
}

// subscribed says whether the group counts as reading the topic. Consumers whose subscriptions cannot be read count
// as reading everything: an offset too many is harmless.
func (g *classic) subscribed(topic string) bool {
	if g.topics == nil {
		return g.protocolType == consumerType
	}
	_, ok := g.topics[topic]
	return ok
}

// idle says that the group consists of nothing.
func (g *classic) idle() bool { return len(g.members) == 0 && len(g.pending) == 0 && g.state == Empty }

func (g *classic) size() int64 {
	n := int64(512)
	for _, m := range g.members {
		n += m.size()
	}
	for id := range g.pending {
		n += int64(96 + len(id))
	}
	for t := range g.topics {
		n += int64(32 + len(t))
	}
	return n
}

// check validates who speaks: an instance id belongs to one member id at a time, and the one before is fenced.
func (g *classic) check(id string, instance *string) int16 {
	if instance != nil {
		switch holder, ok := g.static[*instance]; {
		case !ok:
			return codeUnknownMemberID
		case holder != id:
			return codeFencedInstanceID
		}
	}
	if g.members[id] == nil {
		return codeUnknownMemberID
	}
	return codeNone
}

// subscription reads the topics of a consumer's subscription. Every version begins as version 0 does: a version and
// an array of topic names.
func subscription(b []byte) (topics []string, ok bool) {
	u16 := func() (int, bool) {
		if len(b) < 2 {
			return 0, false
		}
		n := int(int16(uint16(b[0])<<8 | uint16(b[1])))
		b = b[2:]
		return n, n >= 0
	}
	if _, ok := u16(); !ok {
		return nil, false
	}
	hi, ok1 := u16()
	if !ok1 || len(b) < 2 {
		return nil, false
	}
	lo := int(b[0])<<8 | int(b[1])
	b = b[2:]
	for n := hi<<16 | lo; n > 0; n-- {
		l, ok := u16()
		if !ok || l > len(b) {
			return nil, false
		}
		topics = append(topics, string(b[:l]))
		b = b[l:]
	}
	return topics, true
}
