package group

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/varve/varve/broker/group/assignor"
)

// topicID is a topic's id.
type topicID = [16]byte

// memberState is how far a member has come towards what it is meant to have (KIP-848). Its number is in the log.
type memberState int8

const (
	// memberStable members have what they are meant to have, as of their epoch.
	memberStable memberState = 0
	// memberUnrevoked members have to give up partitions before they may move to the next epoch.
	memberUnrevoked memberState = 1
	// memberUnreleased members are at the target's epoch and wait for partitions that others still have.
	memberUnreleased memberState = 2
)

// Epochs with which members ask for something else than to go on.
const (
	epochJoin        int32 = 0
	epochLeave       int32 = -1
	epochLeaveStatic int32 = -2 // a static member that will be back within its session timeout
)

// held is a partition that a member has, and the epoch in which it got it: commits from before that are not its own
// (KIP-1251).
type held struct{ partition, epoch int32 }

// holding are partitions by topic, in order, no topic without partitions.
type holding map[topicID][]held

func (h holding) has(t topicID, p int32) (held, bool) {
	i, ok := slices.BinarySearchFunc(h[t], p, func(x held, p int32) int { return cmp.Compare(x.partition, p) })
	if !ok {
		return held{}, false
	}
	return h[t][i], true
}

func (h holding) topics() []topicID { return sortedIDs(h) }

func (h holding) count() (n int) {
	for _, ps := range h {
		n += len(ps)
	}
	return n
}

func sortedIDs[V any](m map[topicID]V) []topicID {
	return slices.SortedFunc(maps.Keys(m), func(a, b topicID) int { return bytes.Compare(a[:], b[:]) })
}

func sameHolding(a, b holding) bool {
	return maps.EqualFunc(a, b, func(x, y []held) bool { return slices.Equal(x, y) })
}

// samePartitions compares without epochs: what the client sees.
func samePartitions(a, b holding) bool {
	return maps.EqualFunc(a, b, func(x, y []held) bool {
		return slices.EqualFunc(x, y, func(p, q held) bool { return p.partition == q.partition })
	})
}

// consumerMember is a member of a group of the consumer protocol. Both parts are records of their own; a member is
// never changed in place.
type consumerMember struct {
	id         string
	instance   *string
	rack       *string
	clientID   string
	clientHost string
	topics     []string // subscribed by name, in order, each once
	regex      string   // subscribed by regular expression; "" none
	rebalance  time.Duration
	assignor   *string // which it prefers; nil any
	classic    *classicPart

	// epoch is the last that the member was told, previous the one before: the answer may have been lost. A static
	// member that has left for a while has epochLeaveStatic.
	epoch, previous int32
	state           memberState
	assigned        holding // what it may read
	revoking        holding // what it may not read any more and has not given up yet
}

// classicPart is what a member of the classic protocol has in a group of the consumer protocol, while the group moves
// from one to the other.
type classicPart struct {
	session   time.Duration
	protocols []protocol
}

func (m *consumerMember) size() int64 {
	n := int64(320 + len(m.id) + len(m.clientID) + len(m.clientHost) + len(m.regex))
	for _, s := range []*string{m.instance, m.rack, m.assignor} {
		if s != nil {
			n += int64(16 + len(*s))
		}
	}
	for _, t := range m.topics {
		n += int64(16 + len(t))
	}
	for _, h := range []holding{m.assigned, m.revoking} {
		n += int64(64*len(h) + 8*h.count())
	}
	if m.classic != nil {
		for _, p := range m.classic.protocols {
			n += int64(64 + len(p.name) + len(p.metadata))
		}
	}
	return n
}

// resolved is what a regular expression matched.
type resolved struct {
	topics  []string
	version int64 // of the view of the topics
	at      int64 // ms since the epoch
}

func (r resolved) size() (n int64) {
	for _, t := range r.topics {
		n += int64(16 + len(t))
	}
	return n
}

func targetSize(a assignor.Assignment) (n int64) {
	for _, ps := range a {
		n += int64(64 + 4*len(ps))
	}
	return n
}

// consumers is a group of the consumer protocol, in which the coordinator assigns partitions. All of it is in the log:
//
//	group epoch       counts what the assignment depends on: members, subscriptions, topics
//	target            who is meant to have what, and of which group epoch that is
//	current           of each member, what it has
//
// and every heartbeat moves its member a step from what it has to what it is meant to have:
//
//	                 +---------------------------------------------+
//	 target changes  v            gave everything up               | what it waits for is released
//	STABLE -----> UNREVOKED ----------------------------> UNRELEASED ----> STABLE
//	   |        keeps its epoch          takes the target's epoch
//	   +------------- nothing to give up ------------------^
//
// A partition is somebody's from when it is among a member's assigned partitions until it is in neither of its two
// sets. It is given to nobody else before that, so it never has two owners.
type consumers struct {
	epoch       int32
	hash        int64 // of the topics that members subscribe to
	targetEpoch int32
	assignedAt  int64 // when the target was made, ms since the epoch; 0 unknown
	target      map[string]assignor.Assignment
	members     map[string]*consumerMember
	static      map[string]string // instance id -> member id
	regexes     map[string]resolved
	legacy      bool // the log has a record of the topics' partitions, as Kafka before 4.1 wrote

	owner map[topicID]map[int32]string // derived from the members
	bytes int64
}

func newConsumers() *consumers {
	return &consumers{target: map[string]assignor.Assignment{}, members: map[string]*consumerMember{}, static: map[string]string{},
		regexes: map[string]resolved{}, owner: map[topicID]map[int32]string{}, bytes: 512}
}

// ids are the members' ids in order.
func (c *consumers) ids() []string { return slices.Sorted(maps.Keys(c.members)) }

// describe takes over what is new of a member but what it has. That must not be looked at: in a log of which older
// records are missing it may be somebody else's since.
func (c *consumers) describe(m *consumerMember) {
	old := c.members[m.id]
	if old.instance != nil && c.static[*old.instance] == m.id {
		delete(c.static, *old.instance)
	}
	if m.instance != nil {
		c.static[*m.instance] = m.id
	}
	c.bytes += m.size() - old.size()
	c.members[m.id] = m
}

// put takes over a member and what it has, nil if it is gone. It is part of Apply.
func (c *consumers) put(id string, m *consumerMember) {
	old := c.members[id]
	if old != nil {
		c.bytes -= old.size()
		c.own(id, old.assigned, false)
		c.own(id, old.revoking, false)
		if old.instance != nil && c.static[*old.instance] == id {
			delete(c.static, *old.instance)
		}
		delete(c.members, id)
	}
	if m == nil {
		return
	}
	c.members[id] = m
	c.bytes += m.size()
	c.own(id, m.assigned, true)
	c.own(id, m.revoking, true)
	if m.instance != nil {
		c.static[*m.instance] = id
	}
}

// own notes who owns partitions. While a log is replayed of which older records are missing, a partition may seem to
// have two owners: the newer record is right, and the older owner's next one must not take it away.
func (c *consumers) own(id string, h holding, yes bool) {
	for t, ps := range h {
		for _, p := range ps {
			switch {
			case yes:
				if c.owner[t] == nil {
					c.owner[t] = map[int32]string{}
				}
				c.owner[t][p.partition] = id
			case c.owner[t][p.partition] == id:
				delete(c.owner[t], p.partition)
				if len(c.owner[t]) == 0 {
					delete(c.owner, t)
				}
			}
		}
	}
}

// subscription are the names that a member subscribes to, as far as its expression has been resolved.
func (c *consumers) subscription(m *consumerMember) []string {
	r, ok := c.regexes[m.regex]
	if m.regex == "" || !ok || len(r.topics) == 0 {
		return m.topics
	}
	if len(m.topics) == 0 {
		return r.topics
	}
	all := slices.Concat(m.topics, r.topics)
	slices.Sort(all)
	return slices.Compact(all)
}

// subscribed says whether somebody subscribes to the topic.
func (c *consumers) subscribed(topic string) bool {
	for _, m := range c.members {
		if _, ok := slices.BinarySearch(m.topics, topic); ok {
			return true
		}
		if m.regex != "" {
			if _, ok := slices.BinarySearch(c.regexes[m.regex].topics, topic); ok {
				return true
			}
		}
	}
	return false
}

// stateName is the group's state on the wire.
func (c *consumers) stateName() string { return c.state().ConsumerName() }

// ConsumerName is what the state is called of a group of the consumer protocol.
func (s State) ConsumerName() string {
	switch s {
	case PreparingRebalance:
		return "Assigning"
	case CompletingRebalance:
		return "Reconciling"
	}
	return s.String()
}

// state is the group's state in the terms of the classic protocol: a group that has to be assigned prepares a
// rebalance, one whose members are on the way to their targets completes it.
func (c *consumers) state() State {
	switch {
	case len(c.members) == 0:
		return Empty
	case c.epoch > c.targetEpoch:
		return PreparingRebalance
	}
	for _, m := range c.members {
		if m.state != memberStable || m.epoch != c.targetEpoch {
			return CompletingRebalance
		}
	}
	return Stable
}

// assignorName is the assignor that most members prefer; those without a preference do not vote.
func (c *consumers) assignorName(first string) string { return preferred(c.members, first) }

func preferred(members map[string]*consumerMember, first string) string {
	votes := map[string]int{}
	for _, m := range members {
		if m.assignor != nil {
			votes[*m.assignor]++
		}
	}
	best := first
	for _, name := range slices.Sorted(maps.Keys(votes)) {
		if votes[name] > votes[best] {
			best = name
		}
	}
	return best
}
