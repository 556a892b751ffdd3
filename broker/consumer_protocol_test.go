package broker_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
)

// Groups of the consumer protocol (KIP-848), of a real client and of requests by hand.

// quickConsumers are settings under which members hear of things soon, and are taken for gone soon.
var quickConsumers = []string{
	"group.consumer.heartbeat.interval.ms", "100", "group.consumer.min.heartbeat.interval.ms", "50",
	"group.consumer.session.timeout.ms", "3000", "group.consumer.min.session.timeout.ms", "1000",
}

// member is a franz-go client in the group "g", of the consumer protocol unless classic. It reads all the time and counts
// what it got by value.
type groupMember struct {
	*kgo.Client
	stop func()
}

func joinGroup(b *servertest.Broker, t testing.TB, got chan<- string, opts ...kgo.Opt) *groupMember {
	t.Helper()
	cl := b.Client(append([]kgo.Opt{kgo.ConsumerGroup("g"), kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond })}, opts...)...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				if got != nil {
					select {
					case got <- string(r.Value):
					case <-ctx.Done():
					}
				}
			})
		}
	}()
	m := &groupMember{Client: cl, stop: func() { cancel(); <-done }}
	t.Cleanup(m.stop)
	return m
}

// describeGroup is the group "g" as soon as f likes it.
func describeGroup(t testing.TB, b *servertest.Broker, f func(kadm.DescribedConsumerGroup) error) kadm.DescribedConsumerGroup {
	t.Helper()
	adm := kadm.NewClient(b.Client())
	var g kadm.DescribedConsumerGroup
	servertest.Eventually(t, func() error {
		gs, err := adm.DescribeConsumerGroups(within(t), "g")
		if err != nil {
			return err
		}
		if g = gs["g"]; g.Err != nil {
			return g.Err
		}
		if err := f(g); err != nil {
			return fmt.Errorf("%w: %+v", err, g)
		}
		return nil
	})
	return g
}

// shares says that the group is stable, has so many members, and that together they have each of the partitions once.
func shares(members int, partitions map[string]int) func(kadm.DescribedConsumerGroup) error {
	return func(g kadm.DescribedConsumerGroup) error {
		if g.State != "Stable" || len(g.Members) != members {
			return fmt.Errorf("%s with %d members", g.State, len(g.Members))
		}
		has, want := map[string]int{}, map[string]int{}
		for _, m := range g.Members {
			for topic, ps := range m.Assignment {
				for p := range ps {
					has[topic+"-"+strconv.Itoa(int(p))]++
				}
			}
		}
		for topic, n := range partitions {
			for p := range n {
				want[topic+"-"+strconv.Itoa(p)] = 1
			}
		}
		if fmt.Sprint(has) != fmt.Sprint(want) {
			return fmt.Errorf("assigned %v, want %v", has, want)
		}
		return nil
	}
}

func produceAll(t testing.TB, b *servertest.Broker, topic string, partitions int32, values ...string) {
	t.Helper()
	cl := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i, v := range values {
		mustProduce(t, cl, topic, int32(i)%partitions, v)
	}
}

// expectAll takes the values from the channel, in any order.
func expectAll(t testing.TB, got <-chan string, want ...string) {
	t.Helper()
	var have []string
	for range want {
		select {
		case v := <-got:
			have = append(have, v)
		case <-time.After(30 * time.Second):
			t.Fatalf("read %q, want %q", have, want)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Fatalf("read %q, want %q", have, want)
	}
}

func series(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%s%02d", prefix, i))
	}
	return out
}

// TestConsumerProtocol: members come and go, topics come and grow, the broker restarts.
func TestConsumerProtocol(t *testing.T) {
	b := startQuiet(t, quickConsumers...)
	b.CreateTopic("t", 4)
	got := make(chan string, 1000)
	a := joinGroup(b, t, got, kgo.ConsumeTopics("t", "later"))
	describeGroup(t, b, shares(1, map[string]int{"t": 4}))
	produceAll(t, b, "t", 4, series("a", 20)...)
	expectAll(t, got, series("a", 20)...)

	c := joinGroup(b, t, got, kgo.ConsumeTopics("t", "later"))
	g := describeGroup(t, b, shares(2, map[string]int{"t": 4}))
	for _, m := range g.Members {
		if len(m.Assignment["t"]) != 2 || m.ClientID != "kgo" || m.ClientHost != "/127.0.0.1" {
			t.Errorf("member %+v", m)
		}
	}

	b.CreateTopic("later", 2) // somebody waits for it
	describeGroup(t, b, shares(2, map[string]int{"t": 4, "later": 2}))
	if _, err := kadm.NewClient(b.Client()).CreatePartitions(within(t), 3, "t"); err != nil {
		t.Fatal(err)
	}
	describeGroup(t, b, shares(2, map[string]int{"t": 7, "later": 2}))
	produceAll(t, b, "t", 7, series("b", 21)...)
	expectAll(t, got, series("b", 21)...)

	before := describeGroup(t, b, shares(2, map[string]int{"t": 7, "later": 2}))
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	// All of the group is in the log: nobody joins again, nothing is assigned anew.
	after := describeGroup(t, b, shares(2, map[string]int{"t": 7, "later": 2}))
	if after.Epoch != before.Epoch || after.AssignmentEpoch != before.AssignmentEpoch {
		t.Errorf("after a restart the group has epoch %d and assignment %d, before %d and %d", after.Epoch, after.AssignmentEpoch, before.Epoch, before.AssignmentEpoch)
	}
	for i, m := range after.Members {
		if w := before.Members[i]; m.MemberID != w.MemberID || m.MemberEpoch != w.MemberEpoch {
			t.Errorf("after a restart member %s at epoch %d, before %s at %d", m.MemberID, m.MemberEpoch, w.MemberID, w.MemberEpoch)
		}
	}
	produceAll(t, b, "t", 7, series("c", 21)...)
	expectAll(t, got, series("c", 21)...)

	if err := c.CommitUncommittedOffsets(within(t)); err != nil {
		t.Error(err)
	}
	c.stop()
	c.Close() // leaves
	describeGroup(t, b, shares(1, map[string]int{"t": 7, "later": 2}))
	if err := a.CommitUncommittedOffsets(within(t)); err != nil {
		t.Error(err)
	}
	a.stop()
	a.Close()
	describeGroup(t, b, func(g kadm.DescribedConsumerGroup) error {
		if g.State != "Empty" || len(g.Members) != 0 {
			return fmt.Errorf("%s", g.State)
		}
		return nil
	})
	// Whoever comes next goes on where they stopped.
	produceAll(t, b, "t", 7, series("d", 7)...)
	joinGroup(b, t, got, kgo.ConsumeTopics("t", "later"))
	expectAll(t, got, series("d", 7)...)
}

// TestConsumerRegex: the broker resolves the expression, now and when topics come.
func TestConsumerRegex(t *testing.T) {
	t.Parallel()
	b := startQuiet(t, quickConsumers...)
	b.CreateTopic("r-1", 2)
	b.CreateTopic("other", 1)
	got := make(chan string, 100)
	joinGroup(b, t, got, kgo.ConsumeRegex(), kgo.ConsumeTopics("r-.*"))
	g := describeGroup(t, b, shares(1, map[string]int{"r-1": 2}))
	if m := g.Members[0]; m.SubscribedTopicRegex == nil || *m.SubscribedTopicRegex == "" || len(m.SubscribedTopics) != 0 {
		t.Errorf("the member does not leave the expression to the broker: %+v", m)
	}
	b.CreateTopic("r-2", 3)
	describeGroup(t, b, shares(1, map[string]int{"r-1": 2, "r-2": 3}))
	produceAll(t, b, "r-2", 3, series("a", 6)...)
	expectAll(t, got, series("a", 6)...)
	dial(t, b).deleteTopic("r-1")
	describeGroup(t, b, shares(1, map[string]int{"r-2": 3}))
}

// TestConsumerStaticMember: a static member that is away for less than a session timeout gets back what it had, and
// nobody else gets it meanwhile.
func TestConsumerStaticMember(t *testing.T) {
	t.Parallel()
	b := startQuiet(t, append(quickConsumers[:len(quickConsumers):len(quickConsumers)], "group.consumer.session.timeout.ms", "30000")...)
	b.CreateTopic("t", 4)
	topics := kgo.ConsumeTopics("t")
	one := joinGroup(b, t, nil, topics, kgo.InstanceID("one"))
	joinGroup(b, t, nil, topics, kgo.InstanceID("two"))
	whole := map[string]int{"t": 4}
	parts := func(g kadm.DescribedConsumerGroup) string {
		for _, m := range g.Members {
			if m.InstanceID != nil && *m.InstanceID == "one" {
				return fmt.Sprint(m.Assignment)
			}
		}
		return "not there"
	}
	before := describeGroup(t, b, shares(2, whole))
	c := dial(t, b)
	id, _ := one.GroupMetadata()
	one.stop()
	one.Close()
	// The client says that it leaves for a while without its instance id, which is refused, as in Kafka. This is what the
	// Java client says.
	bye := going(id, -2)
	expectCode(t, "leaving without the instance id", c.beat(bye).ErrorCode, protocol.CodeInvalidRequest)
	bye.InstanceID = kmsg.StringPtr("one")
	expectCode(t, "leaving for a while", c.beat(bye).ErrorCode, 0)
	away := describeGroup(t, b, func(g kadm.DescribedConsumerGroup) error {
		for _, m := range g.Members {
			if *m.InstanceID == "one" && m.MemberEpoch != -2 {
				return fmt.Errorf("it is still here")
			}
		}
		return nil
	})
	if len(away.Members) != 2 || away.Epoch != before.Epoch {
		t.Errorf("while it is away: %+v", away)
	}
	joinGroup(b, t, nil, topics, kgo.InstanceID("one"))
	after := describeGroup(t, b, shares(2, whole))
	if parts(after) != parts(before) || after.AssignmentEpoch != before.AssignmentEpoch {
		t.Errorf("it had %s in epoch %d and has %s in epoch %d", parts(before), before.AssignmentEpoch, parts(after), after.AssignmentEpoch)
	}
	// Its place is taken: another process with the same instance id is not let in.
	req := joining("third")
	req.InstanceID = kmsg.StringPtr("one")
	if r := c.beat(req); r.ErrorCode != protocol.CodeUnreleasedInstanceID {
		t.Errorf("another with the same instance id: %s", protocol.Name(r.ErrorCode))
	}
}

// groupType is what ListGroups says of the group "g".
func (c *client) groupType(types ...string) string {
	c.t.Helper()
	req := kmsg.NewPtrListGroupsRequest()
	req.TypesFilter = types
	for _, g := range c.do(at(5, req)).(*kmsg.ListGroupsResponse).Groups {
		if g.Group == "g" {
			return g.GroupType + " " + g.ProtocolType
		}
	}
	return "none"
}

// TestConsumerMigration: the members of a group are replaced one by one, from one protocol to the other and back, while
// it reads and commits.
func TestConsumerMigration(t *testing.T) {
	t.Parallel()
	b := startQuiet(t, quickConsumers...)
	b.CreateTopic("t", 4)
	c := dial(t, b)
	got := make(chan string, 1000)
	classic := []kgo.Opt{kgo.MaxVersions(kversion.V3_6_0()), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.HeartbeatInterval(100 * time.Millisecond)}
	sent, seen := 0, map[string]bool{}
	read := func(what string) { // everything from the beginning on has been read when this returns
		t.Helper()
		var want []string
		for range 8 {
			want = append(want, fmt.Sprint("v", sent))
			sent++
		}
		produceAll(t, b, "t", 4, want...)
		for _, v := range want {
			for deadline := time.After(30 * time.Second); !seen[v]; {
				select {
				case x := <-got:
					seen[x] = true
				case <-deadline:
					t.Fatalf("%s: %s was not read", what, v)
				}
			}
		}
	}
	leave := func(m *groupMember) {
		t.Helper()
		m.stop()
		if err := m.CommitUncommittedOffsets(within(t)); err != nil {
			t.Error(err)
		}
		m.Close()
	}
	is := func(want string) {
		t.Helper()
		servertest.Eventually(t, func() error {
			if now := c.groupType(); now != want {
				return fmt.Errorf("the group is %q, want %q", now, want)
			}
			return nil
		})
	}
	whole := map[string]int{"t": 4}

	a := joinGroup(b, t, got, classic...)
	read("one classic member")
	is("classic consumer")
	d := joinGroup(b, t, got, kgo.ConsumeTopics("t"))
	is("consumer consumer")
	g := describeGroup(t, b, shares(2, whole))
	if len(g.Members[0].Assignment["t"]) != 2 {
		t.Errorf("the members of both protocols share the topic unevenly: %+v", g)
	}
	read("members of both protocols")
	leave(a)
	describeGroup(t, b, shares(1, whole))
	read("one member of the consumer protocol")
	if x, y := c.groupType("classic"), c.groupType("consumer"); x != "none" || y != "consumer consumer" {
		t.Errorf("listed by type: classic %q, consumer %q", x, y)
	}

	a = joinGroup(b, t, got, classic...)
	describeGroup(t, b, shares(2, whole))
	read("members of both protocols again")
	leave(d)
	is("classic consumer")
	read("one classic member again")
	adm := kadm.NewClient(b.Client())
	servertest.Eventually(t, func() error {
		gs, err := adm.DescribeGroups(within(t), "g")
		if err == nil && (gs["g"].State != "Stable" || len(gs["g"].Members) != 1) {
			err = fmt.Errorf("%+v", gs["g"])
		}
		return err
	})
	leave(a)

	// What they committed together is all of it.
	joinGroup(b, t, got, kgo.ConsumeTopics("t"))
	describeGroup(t, b, shares(1, whole))
	produceAll(t, b, "t", 4, "last")
	for v := range got {
		if v == "last" {
			break
		}
		if seen[v] {
			t.Errorf("%s was committed and is read again", v)
		}
	}
}

// joining is the first heartbeat of a member of "g" that subscribes to "t".
func joining(member string) *kmsg.ConsumerGroupHeartbeatRequest {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Group, req.MemberID, req.RebalanceTimeoutMillis = "g", member, 60_000
	req.SubscribedTopicNames, req.Topics = []string{"t"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	return req
}

// going is a later heartbeat that says nothing new.
func going(member string, epoch int32) *kmsg.ConsumerGroupHeartbeatRequest {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = "g", member, epoch, -1
	return req
}

// beat sends a heartbeat, again while the coordinator is not there yet.
func (c *client) beat(req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c.do(at(4, &kmsg.FindCoordinatorRequest{CoordinatorKeys: []string{req.Group}}))
		r := c.do(at(1, req)).(*kmsg.ConsumerGroupHeartbeatResponse)
		switch r.ErrorCode {
		case protocol.CodeNotCoordinator, protocol.CodeCoordinatorNotAvailable, protocol.CodeCoordinatorLoadInProgress:
			if time.Now().Before(end) {
				continue
			}
		}
		return r
	}
}

func (c *client) commitAs(version int16, member string, epoch int32, partition int32) int16 {
	c.t.Helper()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation = "g", member, epoch
	rt := kmsg.NewOffsetCommitRequestTopic()
	rt.Topic = "t"
	if version >= 10 {
		rt.TopicID = c.topicID("t")
	}
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Partition, rp.Offset = partition, 1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return c.do(at(version, req)).(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
}

func (c *client) fetchAs(version int16, member *string, epoch int32) int16 {
	c.t.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group, g.MemberID, g.MemberEpoch = "g", member, epoch
	gt := kmsg.NewOffsetFetchRequestGroupTopic()
	gt.Topic, gt.Partitions = "t", []int32{0}
	if version >= 10 {
		gt.TopicID = c.topicID("t")
	}
	g.Topics = append(g.Topics, gt)
	req.Groups = append(req.Groups, g)
	return c.do(at(version, req)).(*kmsg.OffsetFetchResponse).Groups[0].ErrorCode
}

func expectCode(t testing.TB, what string, got, want int16) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, protocol.Name(got), protocol.Name(want))
	}
}

// TestConsumerFencing: a member that is not heard of is removed, what it had is another's, and whatever it sends after
// that is refused, by hand since a good client does none of it.
func TestConsumerFencing(t *testing.T) {
	t.Parallel()
	// In that time, and less, all is asked for which a has to be there.
	b := startQuiet(t, append(quickConsumers[:len(quickConsumers):len(quickConsumers)], "group.consumer.session.timeout.ms", "5000")...)
	b.CreateTopic("t", 2)
	c := dial(t, b)
	r := c.beat(joining("a"))
	expectCode(t, "a joins", r.ErrorCode, 0)
	if r.HeartbeatIntervalMillis != 100 || r.MemberEpoch != 1 || r.MemberID == nil || *r.MemberID != "a" || r.Assignment == nil || len(r.Assignment.Topics) != 1 || len(r.Assignment.Topics[0].Partitions) != 2 {
		t.Fatalf("a joins: %+v", r)
	}
	for _, v := range []int16{9, 10} {
		expectCode(t, "commit", c.commitAs(v, "a", 1, 0), 0)
		expectCode(t, "commit of an epoch to come", c.commitAs(v, "a", 2, 0), protocol.CodeStaleMemberEpoch)
		expectCode(t, "commit of somebody else", c.commitAs(v, "x", 1, 0), protocol.CodeUnknownMemberID)
		expectCode(t, "fetch", c.fetchAs(v, kmsg.StringPtr("a"), 1), 0)
		expectCode(t, "fetch of a tool", c.fetchAs(v, nil, -1), 0)
		expectCode(t, "fetch of another epoch", c.fetchAs(v, kmsg.StringPtr("a"), 0), protocol.CodeStaleMemberEpoch)
		expectCode(t, "fetch of somebody else", c.fetchAs(v, kmsg.StringPtr("x"), 1), protocol.CodeUnknownMemberID)
	}
	expectCode(t, "commit in a version without epochs", c.commitAs(8, "a", 1, 0), protocol.CodeUnsupportedVersion)
	expectCode(t, "fetch in a version without members", c.fetchAs(8, nil, 0), 0)
	expectCode(t, "heartbeat of an epoch to come", c.beat(going("a", 5)).ErrorCode, protocol.CodeFencedMemberEpoch)
	expectCode(t, "heartbeat of somebody else", c.beat(going("x", 1)).ErrorCode, protocol.CodeUnknownMemberID)

	// b joins, and goes on; a says nothing any more. So b has to wait until a's time is over, and then has everything.
	r = c.beat(joining("b"))
	expectCode(t, "b joins", r.ErrorCode, 0)
	epoch, parts := r.MemberEpoch, 0
	for end := time.Now().Add(20 * time.Second); parts < 2 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		req := going("b", epoch)
		req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		req.SubscribedTopicNames, req.RebalanceTimeoutMillis = []string{"t"}, 60_000 // a full request is answered in full
		r = c.beat(req)
		expectCode(t, "b goes on", r.ErrorCode, 0)
		epoch = r.MemberEpoch
		parts = 0
		for _, topic := range r.Assignment.Topics {
			parts += len(topic.Partitions)
		}
	}
	if parts != 2 {
		t.Fatalf("b has %d partitions of the 2", parts)
	}
	expectCode(t, "a, removed", c.beat(going("a", 1)).ErrorCode, protocol.CodeUnknownMemberID)
	expectCode(t, "a commits", c.commitAs(9, "a", 1, 0), protocol.CodeUnknownMemberID)
	expectCode(t, "a fetches", c.fetchAs(9, kmsg.StringPtr("a"), 1), protocol.CodeUnknownMemberID)
	expectCode(t, "a tool commits beside members", c.commitAs(9, "", -1, 0), protocol.CodeUnknownMemberID)

	// b leaves; the group is there and empty.
	expectCode(t, "b leaves", c.beat(going("b", -1)).ErrorCode, 0)
	expectCode(t, "a tool commits", c.commitAs(9, "", -1, 0), 0)
}

// TestConsumerHeartbeatRules: what is wrong with a request by itself.
func TestConsumerHeartbeatRules(t *testing.T) {
	t.Parallel()
	b := startQuiet(t, append(quickConsumers[:len(quickConsumers):len(quickConsumers)], "group.consumer.max.size", "2", "group.consumer.assignors", "range",
		"group.consumer.session.timeout.ms", "30000")...) // no slow machine takes a member away
	y := newBystander(t, b)
	b.CreateTopic("t", 3)
	c := dial(t, b)
	c.beat(joining("a"))
	with := func(f func(*kmsg.ConsumerGroupHeartbeatRequest)) *kmsg.ConsumerGroupHeartbeatRequest {
		r := joining("b")
		f(r)
		return r
	}
	for _, tc := range []struct {
		what string
		req  *kmsg.ConsumerGroupHeartbeatRequest
		want int16
	}{
		{"no member id", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID = "" }), protocol.CodeInvalidRequest},
		{"no group", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Group = "" }), protocol.CodeInvalidRequest},
		{"no subscription", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.SubscribedTopicNames = nil }), protocol.CodeInvalidRequest},
		{"no rebalance timeout", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = -1 }), protocol.CodeInvalidRequest},
		{"no partitions", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Topics = nil }), protocol.CodeInvalidRequest},
		{"epoch -3", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch = -3 }), protocol.CodeInvalidRequest},
		{"an empty rack", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RackID = kmsg.StringPtr("") }), protocol.CodeInvalidRequest},
		{"an assignor that is not offered", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.ServerAssignor = kmsg.StringPtr("uniform") }), protocol.CodeUnsupportedAssignor},
		{"no regular expression", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.SubscribedTopicRegex = kmsg.StringPtr("(") }), protocol.CodeInvalidRegularExpression},
		{"a large expression", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.SubscribedTopicRegex = kmsg.StringPtr("((a{100}){100}){100}")
		}), protocol.CodeInvalidRegularExpression},
		{"a group that is not there", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Group, r.MemberEpoch = "none", 3 }), protocol.CodeGroupIDNotFound},
		{"a second member", with(func(*kmsg.ConsumerGroupHeartbeatRequest) {}), 0},
		{"a third member", with(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID = "c" }), protocol.CodeGroupMaxSizeReached},
	} {
		expectCode(t, tc.what, c.beat(tc.req).ErrorCode, tc.want)
	}
	// Version 0 has the coordinator give out member ids.
	req := joining("")
	req.Group = "h"
	if r := c.do(at(0, req)).(*kmsg.ConsumerGroupHeartbeatResponse); r.ErrorCode != 0 || r.MemberID == nil || len(*r.MemberID) < 20 {
		t.Errorf("version 0: %+v", r)
	}

	dr := kmsg.NewPtrConsumerGroupDescribeRequest()
	dr.Groups, dr.IncludeAuthorizedOperations = []string{"g", "none", "", "g"}, true
	d := c.do(at(1, dr)).(*kmsg.ConsumerGroupDescribeResponse).Groups
	if len(d) != 3 || d[0].AssignorName != "range" || d[0].AuthorizedOperations == math.MinInt32 || d[0].Members[0].MemberType != 1 {
		t.Fatalf("described as %+v", d)
	}
	expectCode(t, "a group that is not there", d[1].ErrorCode, protocol.CodeGroupIDNotFound)
	expectCode(t, "a group without a name", d[2].ErrorCode, protocol.CodeInvalidGroupID)
	if d[1].ErrorMessage == nil {
		t.Error("a group that is not there has no message")
	}
	// The other API says that it is none of its groups.
	cr := kmsg.NewPtrDescribeGroupsRequest()
	cr.Groups = []string{"g"}
	if g := c.do(at(6, cr)).(*kmsg.DescribeGroupsResponse).Groups[0]; g.ErrorCode != protocol.CodeGroupIDNotFound || g.State != "Dead" {
		t.Errorf("DescribeGroups: %+v", g)
	}
	y.unharmed("heartbeats that are wrong")
}

// TestConsumerProtocolOff: group.coordinator.rebalance.protocols without it.
func TestConsumerProtocolOff(t *testing.T) {
	t.Parallel()
	b := startQuiet(t, "group.coordinator.rebalance.protocols", "classic")
	b.CreateTopic("t", 1)
	c := dial(t, b)
	expectCode(t, "heartbeat", c.beat(joining("a")).ErrorCode, protocol.CodeUnsupportedVersion)
	dr := kmsg.NewPtrConsumerGroupDescribeRequest()
	dr.Groups = []string{"g"}
	if d := c.do(at(1, dr)).(*kmsg.ConsumerGroupDescribeResponse).Groups; len(d) != 1 || d[0].ErrorCode != protocol.CodeUnsupportedVersion {
		t.Errorf("described as %+v", d)
	}
}

// TestGroupVersion: clients learn of the protocol by the feature.
func TestGroupVersion(t *testing.T) {
	t.Parallel()
	b := startQuiet(t)
	r := dial(t, b).do(at(4, &kmsg.ApiVersionsRequest{ClientSoftwareName: "t", ClientSoftwareVersion: "1"})).(*kmsg.ApiVersionsResponse)
	for _, f := range r.SupportedFeatures {
		if f.Name == "group.version" && f.MinVersion == 0 && f.MaxVersion == 1 {
			for _, l := range r.FinalizedFeatures {
				if l.Name == "group.version" && l.MinVersionLevel == 1 && l.MaxVersionLevel == 1 {
					return
				}
			}
		}
	}
	t.Errorf("features %+v, finalized %+v", r.SupportedFeatures, r.FinalizedFeatures)
}

// TestGroupSettings: what a group sets for itself holds at its members' next heartbeats, and after a restart.
func TestGroupSettings(t *testing.T) {
	t.Parallel()
	const groupResource = kmsg.ConfigResourceType(32)
	b := startQuiet(t, quickConsumers...)
	b.CreateTopic("t", 1)
	c := dial(t, b)
	interval := func(want int32) {
		t.Helper()
		servertest.Eventually(t, func() error {
			if r := c.beat(joining("a")); r.ErrorCode != 0 || r.HeartbeatIntervalMillis != want {
				return fmt.Errorf("%s, heartbeats every %d ms, want %d", protocol.Name(r.ErrorCode), r.HeartbeatIntervalMillis, want)
			}
			return nil
		})
	}
	interval(100)
	set, del := kmsg.IncrementalAlterConfigOpSet, kmsg.IncrementalAlterConfigOpDelete
	for _, tc := range []struct {
		what string
		op   op
		want int16
	}{
		{"interval below the least", op{"consumer.heartbeat.interval.ms", set, "49"}, protocol.CodeInvalidConfig},
		{"interval above the most", op{"consumer.heartbeat.interval.ms", set, "15001"}, protocol.CodeInvalidConfig},
		{"interval as long as the session", op{"consumer.heartbeat.interval.ms", set, "3000"}, protocol.CodeInvalidConfig},
		{"session above the most", op{"consumer.session.timeout.ms", set, "60001"}, protocol.CodeInvalidConfig},
		{"a setting of no group", op{"retention.ms", set, "1"}, protocol.CodeInvalidConfig},
		{"interval", op{"consumer.heartbeat.interval.ms", set, "250"}, 0},
	} {
		expectCode(t, tc.what, c.alter(false, alteration{groupResource, "g", []op{tc.op}})[0], tc.want)
	}
	interval(250)
	expectCode(t, "no name", c.alter(false, alteration{groupResource, "", []op{{"consumer.heartbeat.interval.ms", set, "250"}}})[0], protocol.CodeInvalidRequest)

	described := func(name string) string {
		t.Helper()
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.IncludeSynonyms = true
		req.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: groupResource, ResourceName: "g", ConfigNames: []string{name}}}
		r := c.do(at(4, req)).(*kmsg.DescribeConfigsResponse).Resources[0].Configs[0]
		s := fmt.Sprintf("%d:%s", r.Source, *r.Value)
		for _, syn := range r.ConfigSynonyms {
			s += fmt.Sprintf(" %d:%s=%s", syn.Source, syn.Name, *syn.Value)
		}
		return s
	}
	own, static, dflt := kmsg.ConfigSource(8), kmsg.ConfigSourceStaticBrokerConfig, kmsg.ConfigSourceDefaultConfig
	broker := fmt.Sprintf(" %d:group.consumer.heartbeat.interval.ms=100 %d:group.consumer.heartbeat.interval.ms=5000", static, dflt)
	if got, want := described("consumer.heartbeat.interval.ms"), fmt.Sprintf("%d:250 %d:consumer.heartbeat.interval.ms=250", own, own)+broker; got != want {
		t.Errorf("described as %s, want %s", got, want)
	}

	listed := func(version int16, types ...int8) (names []string, code int16) {
		t.Helper()
		r := c.do(at(version, &kmsg.ListConfigResourcesRequest{ResourceTypes: types})).(*kmsg.ListConfigResourcesResponse)
		for _, x := range r.ConfigResources {
			names = append(names, fmt.Sprintf("%d/%s", x.Type, x.Name))
		}
		slices.Sort(names)
		return names, r.ErrorCode
	}
	if names, _ := listed(1, 32); fmt.Sprint(names) != "[32/g]" {
		t.Errorf("groups with settings: %v", names)
	}
	if names, _ := listed(1); fmt.Sprint(names) != "[2/__consumer_offsets 2/t 32/g 4/1 8/1]" {
		t.Errorf("whatever has settings: %v", names)
	}
	if names, code := listed(0); len(names) != 0 || code != 0 {
		t.Errorf("version 0: %v, %s", names, protocol.Name(code))
	}
	if names, code := listed(1, 32, 99); len(names) != 0 || code != protocol.CodeUnsupportedVersion {
		t.Errorf("a type that is not known: %v, %s", names, protocol.Name(code))
	}

	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	c = dial(t, b)
	interval(250)
	expectCode(t, "the setting is taken back", c.alter(false, alteration{groupResource, "g", []op{{"consumer.heartbeat.interval.ms", del, "-"}}})[0], 0)
	interval(100)
	if got, want := described("consumer.heartbeat.interval.ms"), fmt.Sprintf("%d:100", static)+broker; got != want {
		t.Errorf("described as %s, want %s", got, want)
	}
	if names, _ := listed(1, 32); len(names) != 0 {
		t.Errorf("groups with settings: %v", names)
	}
}
