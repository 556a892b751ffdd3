package broker_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

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
