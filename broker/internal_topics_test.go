package broker_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
)

const offsetsTopic = "__consumer_offsets"

// commit commits an offset as a client without a group's membership does: it
// looks for the coordinator, and looks again where it is told to.
func (c *client) commit(group, topic string, offset int64) {
	c.t.Helper()
	var code int16
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		find := c.do(at(4, &kmsg.FindCoordinatorRequest{CoordinatorKeys: []string{group}})).(*kmsg.FindCoordinatorResponse).Coordinators[0]
		if code = find.ErrorCode; code != 0 {
			continue
		}
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = group, -1
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = topic
		rp := kmsg.NewOffsetCommitRequestTopicPartition()
		rp.Offset = offset
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		switch code = c.do(at(8, req)).(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode; code {
		case 0:
			return
		case protocol.CodeNotCoordinator, protocol.CodeCoordinatorNotAvailable, protocol.CodeCoordinatorLoadInProgress:
		default:
			c.t.Fatalf("commit of group %s: %s", group, protocol.Name(code))
		}
	}
	c.t.Fatalf("commit of group %s: still %s", group, protocol.Name(code))
}

// committed is the offset of partition 0 that a group has committed, or -1.
func (c *client) committed(group, topic string) int64 {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		req := kmsg.NewPtrOffsetFetchRequest()
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = group
		gt := kmsg.NewOffsetFetchRequestGroupTopic()
		gt.Topic, gt.Partitions = topic, []int32{0}
		g.Topics = append(g.Topics, gt)
		req.Groups = append(req.Groups, g)
		switch r := c.do(at(9, req)).(*kmsg.OffsetFetchResponse).Groups[0]; {
		case r.ErrorCode == 0:
			return r.Topics[0].Partitions[0].Offset
		case time.Now().After(end):
			c.t.Fatalf("offsets of group %s: still %s", group, protocol.Name(r.ErrorCode))
		}
	}
}

// tryDelete deletes a topic that may be gone already.
func (c *client) tryDelete(topic string) {
	c.t.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames, req.TimeoutMillis = []string{topic}, 30_000
	switch code := c.do(at(5, req)).(*kmsg.DeleteTopicsResponse).Topics[0].ErrorCode; code {
	case 0, protocol.CodeUnknownTopicOrPartition:
	default:
		c.t.Errorf("delete %s: %s", topic, protocol.Name(code))
	}
}

// TestOffsetsTopicOfAClient: clients may create the offsets topic, change its
// settings, and delete it, as they may in Kafka; and no client may write to it
// but Kafka's own tools (B6).
func TestOffsetsTopicOfAClient(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("t", 1)
	if got := y.create(false, newTopic("__cluster_metadata", 1, 1)); got[0].ErrorCode != protocol.CodeInvalidRequest {
		t.Errorf("creation of __cluster_metadata: %s", protocol.Name(got[0].ErrorCode))
	}
	got := y.create(false, newTopic(offsetsTopic, 3, 1, "cleanup.policy", "compact"), newTopic("__transaction_state", 2, 1))
	if got[0].ErrorCode != 0 || got[1].ErrorCode != 0 {
		t.Fatalf("creation of internal topics: %s, %s", protocol.Name(got[0].ErrorCode), protocol.Name(got[1].ErrorCode))
	}
	if got := y.create(false, newTopic(offsetsTopic, 3, 1)); got[0].ErrorCode != protocol.CodeTopicAlreadyExists {
		t.Errorf("creation of one that exists: %s", protocol.Name(got[0].ErrorCode))
	}
	for _, topic := range y.do(at(12, kmsg.NewPtrMetadataRequest())).(*kmsg.MetadataResponse).Topics {
		if topic.IsInternal != (*topic.Topic != "t") {
			t.Errorf("topic %s: internal %v", *topic.Topic, topic.IsInternal)
		}
		if *topic.Topic == offsetsTopic && len(topic.Partitions) != 3 {
			t.Errorf("the offsets topic has %d partitions, 3 were asked for", len(topic.Partitions))
		}
	}
	// Groups are found on all of its partitions.
	for g := range 20 {
		y.commit(fmt.Sprint("g", g), "t", int64(g))
	}

	// What a client writes is refused, but for the tools of Kafka, whose client
	// id says so; nonsense of theirs does not harm the groups beside it.
	for p := range int32(3) {
		if code := produceTo(y.client, 9, -1, offsetsTopic, p, plain(1).bytes()).ErrorCode; code != protocol.CodeInvalidTopicException {
			t.Errorf("write to partition %d: %s", p, protocol.Name(code))
		}
		tool := dial(t, b)
		tool.fmt = kmsg.NewRequestFormatter(kmsg.FormatterClientID("__admin_client"))
		if code := produceTo(tool, 9, -1, offsetsTopic, p, plain(3).bytes()).ErrorCode; code != 0 {
			t.Errorf("write of a tool to partition %d: %s", p, protocol.Name(code))
		}
	}
	if code := produceTo(y.client, 9, -1, "__transaction_state", 0, plain(1).bytes()).ErrorCode; code != protocol.CodeInvalidTopicException {
		t.Errorf("write to __transaction_state: %s", protocol.Name(code))
	}

	if codes := y.alter(false, alteration{topicResource, offsetsTopic, []op{{"segment.bytes", kmsg.IncrementalAlterConfigOpSet, "2097152"}}}); !slices.Equal(codes, []int16{0}) {
		t.Errorf("alteration: %v", codes)
	}
	if v := y.overrides(offsetsTopic)["segment.bytes"]; v != "2097152" {
		t.Errorf("segment.bytes is %q", v)
	}
	// A group's partition follows from their number: with another one, every
	// group that exists would be looked for where it is not.
	for _, topic := range []string{offsetsTopic, "__transaction_state"} {
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis = 30_000
		g := kmsg.NewCreatePartitionsRequestTopic()
		g.Topic, g.Count = topic, 7
		req.Topics = append(req.Topics, g)
		if r := y.do(at(3, req)).(*kmsg.CreatePartitionsResponse).Topics[0]; r.ErrorCode != protocol.CodeInvalidRequest || r.ErrorMessage == nil {
			t.Errorf("more partitions for %s: %s", topic, protocol.Name(r.ErrorCode))
		}
	}
	for range 2 {
		for g := range 20 {
			if o := y.committed(fmt.Sprint("g", g), "t"); o != int64(g) {
				t.Errorf("group g%d is committed at %d", g, o)
			}
		}
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
		y = newBystander(t, b)
	}

	// Deleted: what was committed is gone with it, and groups go on in a new one,
	// which is the broker's own.
	y.deleteTopic(offsetsTopic)
	y.commit("g1", "t", 100)
	for g, want := range map[string]int64{"g0": -1, "g1": 100, "g2": -1} {
		if o := y.committed(g, "t"); o != want {
			t.Errorf("group %s is committed at %d after the deletion, want %d", g, o, want)
		}
	}
	if n := len(y.do(&kmsg.MetadataRequest{Version: 12, Topics: []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr(offsetsTopic)}}}).(*kmsg.MetadataResponse).Topics[0].Partitions); n != 2 {
		t.Errorf("the new offsets topic has %d partitions, offsets.topic.num.partitions is 2", n)
	}
	if o := y.overrides(offsetsTopic); o["cleanup.policy"] != "compact" {
		t.Errorf("settings of the new offsets topic: %v", o)
	}
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	if o := y.committed("g1", "t"); o != 100 {
		t.Errorf("group g1 is committed at %d after a restart", o)
	}
	y.unharmed("an offsets topic of a client's")
}

// TestOffsetsTopicComesAndGoes: however deletions and creations of the offsets
// topic fall together, whoever leads the one that is there in the end serves
// groups, with what was committed to that one and nothing else.
func TestOffsetsTopicComesAndGoes(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("t", 1)
	y.commit("g", "t", 1)
	// From now on the leader epochs of an old one and of a new one differ.
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	var callers []*client
	for range 6 {
		callers = append(callers, dial(t, b))
	}
	for round := range 40 {
		var wg sync.WaitGroup
		for i, c := range callers {
			wg.Go(func() {
				switch i % 3 {
				case 0:
					c.tryDelete(offsetsTopic)
				case 1:
					if code := c.create(false, newTopic(offsetsTopic, int32(1+round%3), 1))[0].ErrorCode; code != 0 && code != protocol.CodeTopicAlreadyExists {
						t.Errorf("creation: %s", protocol.Name(code))
					}
				case 2:
					// Or others: the controller takes up together what comes while it works.
					c.create(false, newTopic(fmt.Sprintf("x-%d-%d", round, i), 1, 1))
				}
			})
		}
		wg.Wait()
		for g := range 6 {
			y.commit(fmt.Sprint("g", g), "t", int64(round))
			if o := y.committed(fmt.Sprint("g", g), "t"); o != int64(round) {
				t.Fatalf("round %d: group g%d is committed at %d", round, g, o)
			}
		}
	}
	y.unharmed("deletions")
}

// TestOffsetsTopicDeletedUnderAGroup: a consumer whose group's state is deleted
// joins again and goes on reading.
func TestOffsetsTopicDeletedUnderAGroup(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("t", 1)
	var mu sync.Mutex
	seen := map[string]int{}
	cl := b.Client(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.HeartbeatInterval(50*time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				mu.Lock()
				seen[string(r.Value)]++
				mu.Unlock()
			})
			cl.CommitUncommittedOffsets(ctx) // refused while the group is away: the next one goes through
		}
	})
	defer wg.Wait()
	defer cancel()
	producer := b.Client()
	n := 0
	all := func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) < n {
			return fmt.Errorf("%d of %d records read", len(seen), n)
		}
		return nil
	}
	for range 5 {
		for range 10 {
			if err := producer.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Value: []byte(strconv.Itoa(n))}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			n++
		}
		servertest.Eventually(t, all)
		servertest.Eventually(t, func() error {
			if o := y.committed("g", "t"); o != int64(n) {
				return fmt.Errorf("committed at %d of %d", o, n)
			}
			return nil
		})
		y.deleteTopic(offsetsTopic)
	}
	// The member is in the group that there is now.
	servertest.Eventually(t, func() error {
		d, err := kadm.NewClient(producer).DescribeGroups(t.Context(), "g")
		if err != nil {
			return err
		}
		if g := d["g"]; g.Err != nil || g.State != "Stable" || len(g.Members) != 1 {
			return fmt.Errorf("group: %s, %d members, %v", g.State, len(g.Members), g.Err)
		}
		return nil
	})
	y.unharmed("deletions under a group")
}
