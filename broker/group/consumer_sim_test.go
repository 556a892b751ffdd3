package group

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group/assignor"
)

// view is a Topics for tests.
type view struct {
	version int64
	byName  map[string]Topic
}

func (v *view) Version() int64                   { return v.version }
func (v *view) ByName(name string) (Topic, bool) { t, ok := v.byName[name]; return t, ok }
func (v *view) ByID(id topicID) (Topic, bool) {
	for _, t := range v.byName {
		if t.ID == id {
			return t, true
		}
	}
	return Topic{}, false
}
func (v *view) Names() []string { return slices.Sorted(maps.Keys(v.byName)) }

// with is the next version, in which a topic has so many partitions; none if 0.
func (v *view) with(name string, id byte, partitions int32, racks ...[]string) *view {
	n := &view{version: v.version + 1, byName: maps.Clone(v.byName)}
	if n.byName == nil {
		n.byName = map[string]Topic{}
	}
	delete(n.byName, name)
	if partitions > 0 {
		n.byName[name] = Topic{ID: topicID{15: id}, Name: name, Partitions: partitions, Racks: racks}
	}
	return n
}

// consumer is a consumer as clients are: it has what it was told it may have, and gives up what it may not have any more
// before it says so.
type consumer struct {
	id       string
	instance *string
	epoch    int32
	has      map[spot]bool // what it reads from
	told     map[spot]bool // what it may read, as of the last answer with an assignment
	topics   []string
	regex    *string
	full     bool // the next heartbeat says everything
	said     string
	asked    uint64 // its heartbeat under way
	leaving  int32
	classic  bool                           // of the classic protocol
	sync     bool                           // it has joined and wants its assignment
	stable   bool                           // it has its assignment
	members  []kmsg.JoinGroupResponseMember // as leader: whom it has to assign to
	silent   bool                           // does not speak any more; it still reads
	slow     bool                           // does not give partitions up yet
}

type spot struct {
	topic     topicID
	partition int32
}

type csim struct {
	t         testing.TB
	pick      func(n int) int // what happens next: one of n
	shard     *Shard
	cfg       Config
	now       time.Time
	view      *view
	log       []logged
	dumps     []string // of the log's state after so many records, "" in the middle of an append
	trace     []string
	token     uint64
	names     int
	clients   []*consumer
	waiting   map[uint64]*consumer
	flying    []flight
	epochs    [3]int32 // highest seen: group, target; and whether the group was there
	commits   int
	late      int // of which with an earlier epoch
	ended     int // transactions with something pending
	owners    int
	rebalance int
	classics  bool   // clients of the classic protocol come too
	coop      bool   // which keep what they own while they join again; eager ones give up everything before
	hostile   bool   // somebody forges requests; what clients own then means nothing
	kind      string // of the group
	up, down  int    // how often it moved from one protocol to the other with members
}

// newConsumerSim is a simulation with the seed's own way of a group, in which pick says what happens.
func newConsumerSim(t testing.TB, seed uint64, pick func(n int) int) *csim {
	cfg := Config{ConsumerSession: 20 * time.Second, ConsumerMaxSize: 6, OffsetsRetention: time.Hour}
	if seed%3 == 0 {
		cfg.ConsumerAssignmentInterval = 2 * time.Second
	}
	s := &csim{t: t, pick: pick, shard: NewShard(cfg), cfg: cfg, now: time.UnixMilli(1 << 40), waiting: map[uint64]*consumer{}}
	s.classics, s.coop, s.hostile = seed%2 == 1, seed%4 == 3, seed%5 == 4
	s.view = (&view{}).with("t1", 1, 4).with("t2", 2, 3).with("u", 3, 2)
	s.dumps = []string{dumpConsumers(s.shard)}
	return s
}

func (s *csim) failf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nlast steps:\n%s\nstate:\n%s", fmt.Sprintf(format, args...), strings.Join(s.trace[max(0, len(s.trace)-60):], "\n"), dumpConsumers(s.shard))
}

func (s *csim) tracef(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf(format, args...))
}

// dumpConsumers is all that the log says of the groups.
func dumpConsumers(s *Shard) string {
	var b strings.Builder
	for _, id := range s.GroupIDs() {
		e := s.groups[id]
		for _, topic := range slices.Sorted(maps.Keys(e.offsets)) {
			for _, p := range slices.Sorted(maps.Keys(e.offsets[topic])) {
				fmt.Fprintf(&b, "%s %s/%d at %d\n", id, topic, p, e.offsets[topic][p].Offset)
			}
		}
		for _, topic := range slices.Sorted(maps.Keys(e.open)) {
			for _, p := range slices.Sorted(maps.Keys(e.open[topic])) {
				for _, x := range e.open[topic][p] {
					fmt.Fprintf(&b, "%s %s/%d pending at %d\n", id, topic, p, s.txns[x].groups[id][topic][p].Offset)
				}
			}
		}
		c := e.consumer
		if c == nil {
			if e.saved { // otherwise the log knows nothing of it
				fmt.Fprintf(&b, "%s of the classic protocol\n", id)
			}
			continue
		}
		fmt.Fprintf(&b, "%s epoch=%d hash=%x target=%d at %d static=%v legacy=%v\n", id, c.epoch, c.hash, c.targetEpoch, c.assignedAt, c.static, c.legacy)
		for _, expr := range slices.Sorted(maps.Keys(c.regexes)) {
			fmt.Fprintf(&b, "  %q: %v\n", expr, c.regexes[expr])
		}
		for _, m := range slices.Sorted(maps.Keys(c.target)) {
			fmt.Fprintf(&b, "  %s is meant to have %s\n", m, partitions(c.target[m]))
		}
		for _, id := range c.ids() {
			m := c.members[id]
			fmt.Fprintf(&b, "  %s epoch=%d/%d state=%d has=%s gives=%s topics=%v regex=%q instance=%s rebalance=%v\n", id, m.epoch, m.previous, m.state,
				heldText(m.assigned), heldText(m.revoking), m.topics, m.regex, deref(m.instance), m.rebalance)
		}
	}
	return b.String()
}

func partitions(a assignor.Assignment) string {
	var parts []string
	for _, t := range sortedIDs(a) {
		parts = append(parts, fmt.Sprintf("%d:%v", t[15], a[t]))
	}
	return strings.Join(parts, " ")
}

func heldText(h holding) string {
	var parts []string
	for _, t := range h.topics() {
		parts = append(parts, fmt.Sprintf("%d:%v", t[15], h[t]))
	}
	return "[" + strings.Join(parts, " ") + "]"
}

func (s *csim) group() *consumers {
	if e := s.shard.groups["g"]; e != nil {
		return e.consumer
	}
	return nil
}

// join starts a new process, under an instance id that has one already or not.
func (s *csim) join() {
	s.names++
	c := &consumer{id: fmt.Sprint("c", s.names), has: map[spot]bool{}, told: map[spot]bool{}, full: true}
	if s.classics && s.pick(2) == 0 {
		c.id, c.classic, c.full, c.topics = "", true, false, []string{"t1", "t2"}
		s.clients = append(s.clients, c)
		s.tracef("a client of the classic protocol starts")
		return
	}
	if s.pick(3) == 0 {
		c.instance = ptr([]string{"i1", "i2"}[s.pick(2)])
	}
	s.subscribe(c)
	s.clients = append(s.clients, c)
	s.tracef("%s starts, instance %s, %v %s", c.id, deref(c.instance), c.topics, deref(c.regex))
}

func (s *csim) subscribe(c *consumer) {
	c.topics, c.regex = []string{}, nil
	for _, name := range []string{"t1", "t2", "u", "none"} {
		if s.pick(2) == 0 {
			c.topics = append(c.topics, name)
		}
	}
	c.regex = ptr([]string{"", "", "t.*", "u|t1"}[s.pick(4)])
	c.full = true
}

func (c *consumer) owned() []kmsg.ConsumerGroupHeartbeatRequestTopic {
	by := map[topicID][]int32{}
	for p := range c.has {
		by[p.topic] = append(by[p.topic], p.partition)
	}
	ts := []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	for _, id := range sortedIDs(by) {
		slices.Sort(by[id])
		t := kmsg.NewConsumerGroupHeartbeatRequestTopic()
		t.TopicID, t.Partitions = id, by[id]
		ts = append(ts, t)
	}
	return ts
}

// heartbeat is what a client says next.
func (s *csim) heartbeat(c *consumer) {
	if c.asked != 0 || c.silent {
		return
	}
	if c.classic {
		s.classicTurn(c)
		return
	}
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch, req.InstanceID = 1, "g", c.id, c.epoch, c.instance
	if c.leaving != 0 {
		req.MemberEpoch = c.leaving
	} else {
		// It gives up what it may not have, and then takes what it may.
		if !c.slow {
			maps.DeleteFunc(c.has, func(p spot, _ bool) bool { return !c.told[p] })
		}
		owned := c.owned()
		if said := fmt.Sprint(owned); c.full || said != c.said {
			req.Topics, c.said = owned, said
		}
		if c.full {
			req.RebalanceTimeoutMillis = 10_000
			req.SubscribedTopicNames, req.SubscribedTopicRegex = c.topics, c.regex
		}
		c.full = false
	}
	s.token++
	cmd := &ConsumerHeartbeat{Token: s.token, Req: req, ClientID: "c", ClientHost: "/h", Topics: s.view}
	if !s.admitted(cmd) {
		c.full, c.said = true, "" // as after a request that failed
		return
	}
	c.asked = s.token
	s.waiting[s.token] = c
	s.do(cmd)
}

func (s *csim) admitted(c Command) bool {
	a := AccessOf(c)
	for _, f := range s.flying {
		if f.r.Group == c.GroupID() && a != Free && (f.a != Shared || a == Exclusive) {
			return false
		}
	}
	return true
}

func (s *csim) do(c Command) {
	before := dumpConsumers(s.shard)
	r := s.shard.Handle(s.now, c)
	if dumpConsumers(s.shard) != before {
		s.failf("Handle of %T changed the state from\n%s", c, before)
	}
	again := s.shard.Handle(s.now, c)
	if !slices.EqualFunc(r.Records, again.Records, func(a, b Record) bool {
		return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
	}) {
		s.failf("Handle of %T decides differently the second time", c)
	}
	s.tracef("%T: %d records", c, len(r.Records))
	if len(r.Records) == 0 {
		s.settle(r)
		return
	}
	s.flying = append(s.flying, flight{r: r, a: AccessOf(c)})
}

func (s *csim) land(fail bool) {
	f := s.flying[0]
	s.flying = s.flying[1:]
	if f.marker != nil {
		if !fail {
			if len(s.shard.txns) > 0 {
				s.ended++
			}
			s.keep(*f.marker)
			s.dumps[len(s.dumps)-1] = dumpConsumers(s.shard)
			s.tracef("%s", f.marker.text())
		}
		return
	}
	if fail {
		before := dumpConsumers(s.shard)
		s.answered(Fail(f.r, codeCoordinatorNotAvailable))
		if dumpConsumers(s.shard) != before {
			s.failf("a failed append changed the state")
		}
		s.tracef("append fails")
		return
	}
	for _, r := range f.r.Records {
		s.keep(logged{Record: r, txn: f.r.Txn})
	}
	s.dumps[len(s.dumps)-1] = dumpConsumers(s.shard)
	for _, n := range f.r.Notes {
		if n.Kind == NoteRebalance {
			s.rebalance++
		}
	}
	s.settle(f.r)
}

func (s *csim) keep(l logged) {
	s.log, s.dumps = append(s.log, l), append(s.dumps, "")
	if err := l.apply(s.shard); err != nil {
		s.failf("%v", err)
	}
}

func (s *csim) settle(r Result) {
	s.shard.Settle(s.now, r)
	s.answered(r.Replies)
}

func (s *csim) answered(rs []Reply) {
	for _, rep := range rs {
		resp, ok := rep.Response.(*kmsg.ConsumerGroupHeartbeatResponse)
		c := s.waiting[rep.Token]
		if c != nil && c.classic {
			delete(s.waiting, rep.Token)
			c.asked = 0
			if s.pick(6) != 0 {
				s.hearClassic(c, rep.Response)
			} else {
				s.tracef("%s does not get its answer", c.id)
			}
			continue
		}
		if !ok {
			continue
		}
		if c == nil && s.hostile {
			continue
		}
		if c == nil {
			s.failf("token %d is answered twice", rep.Token)
		}
		delete(s.waiting, rep.Token)
		c.asked = 0
		if s.pick(6) == 0 {
			s.tracef("%s does not get its answer", c.id)
			c.full, c.said = true, ""
			continue
		}
		s.hear(c, resp)
	}
}

// hear is what a client does with an answer.
func (s *csim) hear(c *consumer, resp *kmsg.ConsumerGroupHeartbeatResponse) {
	s.tracef("%s hears %d, epoch %d, assignment %v", c.id, resp.ErrorCode, resp.MemberEpoch, resp.Assignment != nil)
	switch resp.ErrorCode {
	case codeNone:
	case codeFencedMemberEpoch, codeUnknownMemberID, codeGroupIDNotFound:
		clear(c.has)
		clear(c.told)
		c.epoch, c.full = 0, true
		if c.leaving != 0 || c.silent {
			s.gone(c)
		}
		return
	case codeCoordinatorNotAvailable:
		c.full, c.said = true, ""
		return
	case codeFencedInstanceID, codeUnreleasedInstanceID, codeGroupMaxSizeReached:
		s.gone(c)
		return
	default:
		s.failf("%s is told %d %s", c.id, resp.ErrorCode, deref(resp.ErrorMessage))
	}
	if c.leaving != 0 {
		s.gone(c)
		return
	}
	if resp.MemberEpoch < c.epoch && !s.hostile {
		s.failf("%s goes from epoch %d back to %d", c.id, c.epoch, resp.MemberEpoch)
	}
	c.epoch = resp.MemberEpoch
	if resp.Assignment == nil {
		return
	}
	clear(c.told)
	for _, t := range resp.Assignment.Topics {
		for _, p := range t.Partitions {
			c.told[spot{t.TopicID, p}] = true
		}
	}
	if !c.slow {
		maps.DeleteFunc(c.has, func(p spot, _ bool) bool { return !c.told[p] })
	}
	maps.Copy(c.has, c.told)
}

// classicTurn is what a client of the classic protocol says next.
func (s *csim) classicTurn(c *consumer) {
	s.token++
	var cmd Command
	switch {
	case c.stable:
		req := kmsg.NewPtrHeartbeatRequest()
		req.Group, req.MemberID, req.Generation = "g", c.id, c.epoch
		cmd = &Heartbeat{Token: s.token, Req: req}
	case c.sync:
		req := kmsg.NewPtrSyncGroupRequest()
		req.Version, req.Group, req.MemberID, req.Generation = 5, "g", c.id, c.epoch
		// A cooperative leader assigns what somebody owns to nobody else yet (KIP-429).
		owner := map[string]map[int32]string{}
		for _, m := range c.members {
			said, _ := readSubscription(m.ProtocolMetadata)
			for name, ps := range said.owned {
				if owner[name] == nil {
					owner[name] = map[int32]string{}
				}
				for _, p := range ps {
					owner[name][p] = m.MemberID
				}
			}
		}
		for i, m := range c.members {
			var a kmsg.ConsumerMemberAssignment
			for _, name := range c.topics {
				at := kmsg.ConsumerMemberAssignmentTopic{Topic: name}
				for p := range s.view.byName[name].Partitions {
					if o := owner[name][p]; int(p)%len(c.members) == i && (o == "" || o == m.MemberID) {
						at.Partitions = append(at.Partitions, p)
					}
				}
				a.Topics = append(a.Topics, at)
			}
			req.GroupAssignment = append(req.GroupAssignment, kmsg.SyncGroupRequestGroupAssignment{MemberID: m.MemberID, MemberAssignment: a.AppendTo(nil)})
		}
		cmd = &Sync{Token: s.token, Req: req, Topics: s.view}
	default:
		offer := metadata("sub/" + strings.Join(c.topics, "/"))
		if s.coop {
			sub := kmsg.ConsumerMemberMetadata{Version: 1, Topics: c.topics}
			for _, name := range c.topics {
				owned := kmsg.ConsumerMemberMetadataOwnedPartition{Topic: name}
				for p := range c.has {
					if p.topic == s.view.byName[name].ID {
						owned.Partitions = append(owned.Partitions, p.partition)
					}
				}
				slices.Sort(owned.Partitions)
				sub.OwnedPartitions = append(sub.OwnedPartitions, owned)
			}
			offer = sub.AppendTo(nil)
		} else {
			clear(c.has)
		}
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.MemberID, req.ProtocolType = 3, "g", c.id, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 20_000, 10_000
		req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: offer}}
		s.names++
		cmd = &Join{Token: s.token, Req: req, ClientID: "x", ClientHost: "/h", Suffix: fmt.Sprint(s.names), Topics: s.view}
	}
	if !s.admitted(cmd) {
		return
	}
	c.asked = s.token
	s.waiting[s.token] = c
	s.do(cmd)
}

func (s *csim) hearClassic(c *consumer, r kmsg.Response) {
	s.tracef("%s hears %s", c.id, response(r))
	again := func(code int16) {
		c.sync, c.stable, c.members = false, false, nil
		switch code {
		case codeUnknownMemberID:
			clear(c.has)
			c.id = ""
		case codeIllegalGeneration:
			clear(c.has)
		}
	}
	switch r := r.(type) {
	case *kmsg.JoinGroupResponse:
		if again(r.ErrorCode); r.ErrorCode != codeNone {
			if r.ErrorCode == codeGroupMaxSizeReached || r.ErrorCode == codeInconsistentGroupProtocol {
				s.gone(c)
			}
			return
		}
		c.id, c.epoch, c.sync = r.MemberID, r.Generation, true
		c.members = r.Members
	case *kmsg.SyncGroupResponse:
		if r.ErrorCode != codeNone {
			again(r.ErrorCode)
			return
		}
		c.sync, c.stable = false, true
		var a kmsg.ConsumerMemberAssignment
		if len(r.MemberAssignment) > 0 {
			if err := a.ReadFrom(r.MemberAssignment); err != nil {
				s.failf("%s: assignment %x: %v", c.id, r.MemberAssignment, err)
			}
		}
		may := map[spot]bool{}
		for _, t := range a.Topics {
			for _, p := range t.Partitions {
				may[spot{s.view.byName[t.Topic].ID, p}] = true
			}
		}
		n := len(c.has)
		maps.DeleteFunc(c.has, func(p spot, _ bool) bool { return !may[p] })
		if len(c.has) < n {
			c.stable = false // it has given something up: it joins again, so that others can have it
		}
		maps.Copy(c.has, may)
	case *kmsg.HeartbeatResponse:
		if r.ErrorCode != codeNone && r.ErrorCode != codeCoordinatorNotAvailable {
			again(r.ErrorCode)
		}
	}
}

func (s *csim) leaveClassic(c *consumer) {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Version, req.Group = 5, "g"
	req.Members = []kmsg.LeaveGroupRequestMember{{MemberID: c.id}}
	s.token++
	cmd := &Leave{Token: s.token, Req: req}
	if c.asked != 0 || !s.admitted(cmd) {
		c.leaving = 0
		return
	}
	s.gone(c)
	s.do(cmd)
}

func (s *csim) gone(c *consumer) {
	clear(c.has)
	s.clients = slices.DeleteFunc(s.clients, func(x *consumer) bool { return x == c })
}

func (s *csim) step() {
	pick := func() *consumer { return s.clients[s.pick(len(s.clients))] }
	n := s.pick(20)
	switch {
	case n < 4 && len(s.flying) > 0:
		s.land(s.pick(5) == 0)
	case n == 4 || len(s.clients) == 0:
		if len(s.clients) < 8 {
			s.join()
		}
	case n == 5:
		s.now = s.now.Add(time.Duration(s.pick(8000)) * time.Millisecond)
	case n == 6 && s.pick(3) == 0:
		name := []string{"t1", "t2", "u", "t3"}[s.pick(4)]
		old := s.view.byName[name]
		parts := old.Partitions + int32(s.pick(3))
		id := old.ID[15]
		if s.pick(4) == 0 || old.Partitions == 0 {
			parts, id = int32(s.pick(6)), byte(10+s.view.version%200) // deleted, or made anew
		}
		s.view = s.view.with(name, id, parts)
		s.tracef("topic %s has %d partitions", name, parts)
	case n == 7:
		c := pick()
		what := s.pick(6)
		if c.classic && what != 0 && what != 2 {
			break
		}
		switch what {
		case 0:
			c.leaving = epochLeave
		case 1:
			if c.instance != nil {
				c.leaving = epochLeaveStatic
			}
		case 2:
			c.silent = true // and reads on, until somebody notices
			s.tracef("%s falls silent", c.id)
		case 3:
			c.slow = !c.slow
		case 4:
			s.subscribe(c)
		default:
			c.full, c.said = true, ""
		}
		if c.leaving != 0 && c.classic {
			s.leaveClassic(c)
		} else if c.leaving != 0 {
			clear(c.has) // who leaves gives up everything first
		}
	case n == 8:
		s.commit(pick())
	case n >= 17 && s.hostile:
		s.forge()
	case n == 9 && s.pick(20) == 0:
		if c := (&Expire{Group: "g"}); s.admitted(c) {
			s.do(c)
		}
	case n == 10 && s.pick(40) == 0:
		s.token++
		if c := (&Delete{Token: s.token, Group: "g"}); s.admitted(c) {
			s.do(c)
		}
	case n == 11 && s.pick(100) == 0:
		s.reload()
	default:
		s.heartbeat(pick())
	}
	s.ticks()
	s.check()
}

// forge says what no client would, in the name of any.
func (s *csim) forge() {
	ids := []string{"forged", "", "c1", "c2", "c3", "x-2"}
	instances := []*string{nil, nil, ptr("i1"), ptr("i2"), ptr("i3")}
	if g := s.group(); g != nil {
		ids = append(ids, g.ids()...)
	}
	id, instance := ids[s.pick(len(ids))], instances[s.pick(len(instances))]
	epoch := int32(s.pick(12) - 3)
	if g := s.group(); g != nil && g.members[id] != nil && s.pick(2) == 0 {
		epoch, instance = g.members[id].epoch-int32(s.pick(2)), g.members[id].instance
	}
	s.token++
	var cmd Command
	switch s.pick(5) {
	case 0:
		req := kmsg.NewPtrSyncGroupRequest()
		req.Version, req.Group, req.MemberID, req.Generation, req.InstanceID = 5, "g", id, epoch, instance
		cmd = &Sync{Token: s.token, Req: req, Topics: s.view}
	case 1:
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Version, req.Group = 5, "g"
		req.Members = []kmsg.LeaveGroupRequestMember{{MemberID: id, InstanceID: instance}, {MemberID: id}}
		cmd = &Leave{Token: s.token, Req: req}
	case 2:
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.MemberID, req.InstanceID, req.ProtocolType = []int16{3, 9}[s.pick(2)], "g", id, instance, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 20_000, 10_000
		for range s.pick(3) {
			req.Protocols = append(req.Protocols, kmsg.JoinGroupRequestProtocol{Name: []string{"range", "x"}[s.pick(2)], Metadata: metadata([]string{"sub/t1", "sub/u/t2+u-0+t2-1", "?", ""}[s.pick(4)])})
		}
		s.names++
		cmd = &Join{Token: s.token, Req: req, ClientID: "x", ClientHost: "/h", Suffix: fmt.Sprint(s.names), Topics: s.view}
	default:
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		req.Version, req.Group, req.MemberID, req.MemberEpoch, req.InstanceID = int16(s.pick(2)), "g", id, epoch, instance
		if s.pick(2) == 0 || epoch == 0 {
			req.RebalanceTimeoutMillis = int32(s.pick(20_000)) - 100
			req.SubscribedTopicNames = []string{"t1", "t1", "", "u"}[:s.pick(5)]
			req.SubscribedTopicRegex = []*string{nil, ptr(""), ptr("t.*"), ptr("(")}[s.pick(4)]
		}
		if s.pick(2) == 0 || epoch == 0 {
			req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			for range s.pick(3) {
				req.Topics = append(req.Topics, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: topicID{15: byte(s.pick(4))}, Partitions: []int32{int32(s.pick(6)) - 1, int32(s.pick(6))}})
			}
			if epoch == 0 {
				req.Topics = req.Topics[:0]
			}
		}
		req.ServerAssignor = []*string{nil, nil, ptr("range"), ptr("none")}[s.pick(4)]
		req.RackID = []*string{nil, ptr("r")}[s.pick(2)]
		s.names++
		cmd = &ConsumerHeartbeat{Token: s.token, Req: req, ClientID: "f", ClientHost: "/f", Suffix: fmt.Sprint("f", s.names), Topics: s.view}
	}
	if s.admitted(cmd) {
		s.do(cmd)
	}
}

func (s *csim) ticks() {
	for range 3 {
		if at, ok := s.shard.Deadline("g"); !ok || at.After(s.now) {
			return
		}
		if c := (&Tick{Group: "g"}); s.admitted(c) {
			s.do(c)
		}
	}
}

// commit commits the offset of a partition, and says independently who may.
func (s *csim) commit(c *consumer) {
	g := s.group()
	if c.leaving != 0 || c.classic && (g == nil || c.id == "") {
		return
	}
	name := []string{"t1", "t2", "u"}[s.pick(3)]
	topic := s.view.byName[name]
	p := int32(s.pick(4))
	req := kmsg.NewPtrOffsetCommitRequest()
	epoch := c.epoch - int32([]int{0, 0, 0, 1, 2}[s.pick(5)])
	req.Version, req.Group, req.MemberID, req.Generation = 9, "g", c.id, epoch
	s.commits++
	req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: name, Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Partition: p, Offset: int64(s.commits)}}}}
	s.token++
	cmd := &Commit{Token: s.token, Req: req, Topics: s.view}
	if by := (Txn{ProducerID: int64(1 + s.pick(2))}); s.pick(2) == 0 {
		cmd.Txn = &by
	} else if s.pick(4) == 0 {
		s.flying = append(s.flying, flight{marker: &logged{txn: &by, marker: true, commit: s.pick(2) == 0}})
	}
	if !s.admitted(cmd) {
		return
	}
	if r := s.shard.Handle(s.now, cmd); len(r.Records) > 0 && g != nil && (epoch >= 0 || len(g.members) > 0) {
		m := g.members[c.id]
		if m == nil {
			s.failf("%s committed and is no member", c.id)
		}
		if m.epoch != epoch {
			h, ok := m.assigned.has(topic.ID, p)
			if !ok {
				h, ok = m.revoking.has(topic.ID, p)
			}
			if !ok || h.epoch > epoch || epoch > m.epoch {
				s.failf("%s committed %s-%d at epoch %d, it is at %d", c.id, name, p, epoch, m.epoch)
			}
			s.late++
		}
	}
	s.do(cmd)
}

// reload is another coordinator that replays the log. Appends under way are lost with their answers.
func (s *csim) reload() {
	for _, c := range s.waiting {
		c.asked, c.full, c.said = 0, !c.classic, ""
	}
	clear(s.waiting)
	s.flying = nil
	before := dumpConsumers(s.shard)
	s.shard = s.replayed(s.log)
	if after := dumpConsumers(s.shard); after != before {
		s.failf("replay has\n%s\nlive had\n%s", after, before)
	}
	s.shard.Loaded(s.now)
	s.tracef("another coordinator")
}

func (s *csim) replayed(log []logged) *Shard {
	fresh := NewShard(s.cfg)
	for _, l := range log {
		if err := l.apply(fresh); err != nil {
			s.failf("replay: %v", err)
		}
	}
	return fresh
}

// check is what must always be true.
func (s *csim) check() {
	g := s.group()
	kind := ""
	if x := s.shard.groups["g"]; g != nil && len(g.members) > 0 {
		kind = "consumer"
	} else if x != nil && len(x.group.members) > 0 {
		kind = "classic"
	}
	switch {
	case s.kind == "classic" && kind == "consumer":
		s.up++
	case s.kind == "consumer" && kind == "classic":
		s.down++
	}
	s.kind = kind
	// No partition is read by two that are members. Who is none any more may not know it yet.
	readers := map[spot]string{}
	for _, c := range s.clients {
		if x := s.shard.groups["g"]; x == nil || !x.has(c.id) || c.leaving != 0 || s.hostile {
			continue
		}
		for p := range c.has {
			if _, there := s.view.ByID(p.topic); !there {
				continue // nobody reads a topic that is gone, and clients of the classic protocol know names only
			}
			if other, ok := readers[p]; ok {
				s.failf("%d-%d is read by %s and %s", p.topic[15], p.partition, other, c.id)
			}
			readers[p] = c.id
			s.owners++
		}
	}
	e := s.shard.groups["g"]
	if e == nil {
		s.epochs = [3]int32{}
		return
	}
	if e.bytes < 0 || s.shard.bytes != e.bytes+int64(offsetsOf(e))*offsetBytes+pendingSize(s.shard) {
		s.failf("%d bytes of the shard, %d of the group", s.shard.bytes, e.bytes)
	}
	if g == nil {
		s.epochs = [3]int32{}
		return
	}
	if want := int64(e.name) + g.measured() + e.group.size(); e.bytes != want {
		s.failf("%d bytes counted, %d found", e.bytes, want)
	}
	if s.epochs[2] == 1 && (g.epoch < s.epochs[0] || g.targetEpoch < s.epochs[1]) || g.targetEpoch > g.epoch {
		s.failf("epochs %d and %d after %v", g.epoch, g.targetEpoch, s.epochs)
	}
	s.epochs = [3]int32{g.epoch, g.targetEpoch, 1}
	owner := map[spot]string{}
	for id, m := range g.members {
		if m.epoch > g.targetEpoch || m.previous > m.epoch && m.epoch != epochLeaveStatic {
			s.failf("%s is at epoch %d, was at %d, the target's is %d", id, m.epoch, m.previous, g.targetEpoch)
		}
		for _, h := range []holding{m.assigned, m.revoking} {
			for t, ps := range h {
				if len(ps) == 0 {
					s.failf("%s has an empty topic", id)
				}
				for _, p := range ps {
					if other, ok := owner[spot{t, p.partition}]; ok {
						s.failf("%d-%d belongs to %s and %s", t[15], p.partition, id, other)
					}
					owner[spot{t, p.partition}] = id
					if g.owner[t][p.partition] != id {
						s.failf("%d-%d belongs to %s, not %s", t[15], p.partition, id, g.owner[t][p.partition])
					}
				}
			}
		}
		if (len(m.revoking) > 0) != (m.state == memberUnrevoked) {
			s.failf("%s is in state %d and gives up %s", id, m.state, heldText(m.revoking))
		}
		if m.instance != nil && g.static[*m.instance] != id {
			s.failf("instance %s of %s belongs to %s", *m.instance, id, g.static[*m.instance])
		}
		if e.sessions[id].IsZero() {
			s.failf("%s has no session", id)
		}
		if r, ok := e.revokes[id]; m.state == memberUnrevoked && (!ok || r.epoch != m.epoch || r.by.IsZero()) {
			s.failf("%s has no deadline", id)
		}
	}
	n := 0
	for _, ps := range g.owner {
		n += len(ps)
	}
	if n != len(owner) {
		s.failf("%d partitions have owners, %d belong to members", n, len(owner))
	}
	for id := range e.sessions {
		if g.members[id] == nil {
			s.failf("a session of %s, who is no member", id)
		}
	}
	for id := range e.revokes {
		if g.members[id] == nil {
			s.failf("a deadline of %s, who is no member", id)
		}
	}
	for id := range g.target {
		if g.members[id] == nil {
			s.failf("a target of %s, who is no member", id)
		}
	}
}

// measured counts anew what bytes counts.
func (c *consumers) measured() int64 {
	n := newConsumers().bytes
	for _, m := range c.members {
		n += m.size()
	}
	for _, a := range c.target {
		n += targetSize(a)
	}
	for _, r := range c.regexes {
		n += r.size()
	}
	return n
}

func offsetsOf(e *entry) (n int) {
	for _, ps := range e.offsets {
		n += len(ps)
	}
	return n
}

// settleDown lets everybody speak until nothing changes: members get what they are meant to have.
func (s *csim) settleDown() {
	s.view = s.view.with("t9", 99, 1) // who subscribes to an expression has to look again
	if t := s.view.byName["t2"]; t.Partitions > 0 {
		s.view = s.view.with("t2", t.ID[15], t.Partitions+1)
	}
	for round := range 60 {
		for len(s.flying) > 0 {
			s.land(false)
		}
		s.now = s.now.Add(3 * time.Second)
		s.ticks()
		for _, c := range slices.Clone(s.clients) {
			c.slow = false
			s.heartbeat(c)
			for len(s.flying) > 0 {
				s.land(false)
			}
			s.check()
		}
		g := s.group()
		if round < 20 || g == nil {
			continue
		}
		quiet := g.stateName() == "Stable" && !slices.ContainsFunc(s.clients, func(c *consumer) bool { return c.silent || c.leaving != 0 || c.full })
		if quiet || g.stateName() == "Empty" {
			s.converged(g)
			return
		}
	}
	if g := s.group(); g != nil && len(g.members) > 0 {
		// Answers are still lost now and then; the state is what counts.
		if g.stateName() != "Stable" {
			s.failf("the group does not come to rest: %s", g.stateName())
		}
		s.converged(g)
	}
}

func (s *csim) converged(g *consumers) {
	seen := map[spot]bool{}
	for id, m := range g.members {
		got := assignor.Assignment{}
		for t, ps := range m.assigned {
			for _, p := range ps {
				got[t] = append(got[t], p.partition)
				seen[spot{t, p.partition}] = true
			}
		}
		if !assignor.Equal(got, g.target[id]) {
			s.failf("%s has %s, meant was %s", id, partitions(got), partitions(g.target[id]))
		}
	}
	want := 0
	for _, name := range allTopics(g.members, g.regexes) {
		t, ok := s.view.ByName(name)
		if !ok {
			continue
		}
		want += int(t.Partitions)
		for p := range t.Partitions {
			if !seen[spot{t.ID, p}] {
				s.failf("%s-%d is nobody's", name, p)
			}
		}
	}
	if len(seen) != want {
		s.failf("%d partitions are assigned, %d are subscribed to", len(seen), want)
	}
}

// prefixes replays the log up to where appends ended, and compacted as it may come from compaction.
func (s *csim) prefixes() {
	for range 12 {
		n := s.pick(len(s.dumps))
		if s.dumps[n] == "" && n > 0 {
			continue
		}
		if got := dumpConsumers(s.replayed(s.log[:n])); got != s.dumps[n] {
			s.failf("replay of %d records has\n%s\nthere was\n%s", n, got, s.dumps[n])
		}
	}
	last, txn := map[string]int{}, map[string]bool{}
	for i, r := range s.log {
		last[string(r.Key)] = i
		txn[string(r.Key)] = txn[string(r.Key)] || r.txn != nil
	}
	var kept []logged
	for i, r := range s.log {
		// What compaction makes of transactions is the other simulation's to show.
		if last[string(r.Key)] != i && !txn[string(r.Key)] && s.pick(3) > 0 {
			continue // of an older record a newer one may be missing: not all of a log is compacted at once
		}
		kept = append(kept, r)
	}
	fresh := s.replayed(kept)
	if got, want := dumpConsumers(fresh), dumpConsumers(s.shard); got != want {
		s.failf("replay of the compacted log has\n%s\nlive has\n%s", got, want)
	}
	if g := s.group(); g != nil && !maps.EqualFunc(fresh.groups["g"].consumer.owner, g.owner, func(a, b map[int32]string) bool { return maps.Equal(a, b) }) {
		s.failf("owners after replay of the compacted log are\n%v\nlive\n%v", fresh.groups["g"].consumer.owner, g.owner)
	}
}

func TestConsumerSim(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 30
	}
	commits, late, ended, owners, rebalances, up, down := 0, 0, 0, 0, 0, 0, 0
	for seed := range seeds {
		func() {
			s := newConsumerSim(t, seed, rand.New(rand.NewPCG(seed, 848)).IntN)
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			for range 400 {
				s.step()
			}
			s.settleDown()
			s.prefixes()
			commits, ended, owners, rebalances = commits+s.commits, ended+s.ended, owners+s.owners, rebalances+s.rebalance
			late, up, down = late+s.late, up+s.up, down+s.down
		}()
	}
	t.Logf("%d commits, %d late, %d transactions, %d owners, %d rebalances, %d moves to the consumer protocol and %d back", commits, late, ended, owners, rebalances, up, down)
	if commits == 0 || late == 0 || ended == 0 || owners == 0 || rebalances < int(seeds) || up < 5 || down < 5 {
		t.Fatal("too little happened")
	}
}

// What lies in the log may be anything: nothing that was ever written in any order brings the coordinator down, whatever
// is asked of it then.
func TestConsumerAnyLog(t *testing.T) {
	answered := 0
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 848))
		s := newConsumerSim(t, seed, rnd.IntN)
		s.classics, s.coop, s.hostile = true, false, true
		for range 150 {
			s.step()
		}
		log := slices.Clone(s.log)
		rnd.Shuffle(len(log), func(i, j int) { log[i], log[j] = log[j], log[i] })
		s.shard = NewShard(s.cfg)
		for _, r := range log[:s.pick(len(log)+1)] {
			if r.Value != nil && len(r.Key) > 1 && r.Key[1] == keyConsumerCurrent && s.pick(4) == 0 {
				r.Value = bytes.Clone(r.Value)
				r.Value[10] = 99 // a state of a later version
			}
			r.apply(s.shard) // some are refused
		}
		s.shard.Loaded(s.now)
		s.flying = nil
		clear(s.waiting)
		for range 200 {
			s.now = s.now.Add(time.Duration(s.pick(500)) * time.Millisecond)
			before := s.token
			s.forge()
			if s.token > before {
				answered++
			}
			for len(s.flying) > 0 {
				f := s.flying[0]
				s.flying = s.flying[1:]
				if f.marker != nil {
					f.marker.apply(s.shard)
					continue
				}
				for _, r := range f.r.Records {
					logged{Record: r, txn: f.r.Txn}.apply(s.shard)
				}
				s.shard.Settle(s.now, f.r)
			}
			if at, ok := s.shard.Deadline("g"); ok && !at.After(s.now) {
				s.do(&Tick{Group: "g"})
			}
			s.shard.DescribeConsumer("g", s.view)
			s.shard.List(nil, nil)
			s.shard.Counts()
		}
	}
	if answered == 0 {
		t.Error("nothing was asked")
	}
}

// FuzzConsumerCommands lets the fuzzer choose what happens: the first byte is the way of the group, the others are what
// clients do, when appends end and how, and what is lost. At last everybody speaks until the group has come to rest.
func FuzzConsumerCommands(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 1<<12 {
			return
		}
		way := uint64(b[0])
		b = b[1:]
		rest := rand.New(rand.NewPCG(way, 848)) // when the input has come to its end
		s := newConsumerSim(t, way, func(n int) int {
			if len(b) == 0 {
				return rest.IntN(n)
			}
			v := int(b[0])
			b = b[1:]
			if n > 256 && len(b) > 0 {
				v, b = v<<8|int(b[0]), b[1:]
			}
			return v % n
		})
		for len(b) > 0 {
			s.step()
		}
		s.settleDown()
		s.prefixes()
	})
}
