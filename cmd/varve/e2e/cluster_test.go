package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

// inSync waits until every partition of a topic has n replicas in sync, and
// returns who leads the first.
func inSync(t *testing.T, b *servertest.Broker, topic string, n int) (leader int32) {
	t.Helper()
	adm := kadm.NewClient(b.Client())
	servertest.Eventually(t, func() error {
		topics, err := adm.ListTopics(context.Background(), topic)
		if err != nil {
			return err
		}
		td := topics[topic]
		if td.Err != nil || len(td.Partitions) == 0 {
			return fmt.Errorf("%s: %v", topic, td.Err)
		}
		for _, p := range td.Partitions {
			if len(p.ISR) != n {
				return fmt.Errorf("%s-%d: leader %d, replicas %v, isr %v", topic, p.Partition, p.Leader, p.Replicas, p.ISR)
			}
		}
		leader = td.Partitions[0].Leader
		return nil
	})
	return leader
}

// put produces n records and returns the offset behind them, by partition.
func put(t *testing.T, cl *kgo.Client, topic string, from, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := from; i < from+n; i++ {
		r := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "%d", i), Value: fmt.Appendf(nil, "value %d", i)}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

// readAll reads a topic to its end and checks that it holds each of n records once.
func readAll(t *testing.T, b *servertest.Broker, topic string, n int) {
	t.Helper()
	cl := b.Client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	seen := map[string]int{}
	for len(seen) < n {
		fs := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("%d of %d records: %v", len(seen), n, errors.Join(err, fs.Err()))
		}
		fs.EachRecord(func(r *kgo.Record) { seen[string(r.Key)]++ })
	}
	for k, times := range seen {
		if times != 1 {
			t.Errorf("record %s is there %d times", k, times)
		}
	}
}

func byID(brokers []*servertest.Broker, id int32) *servertest.Broker { return brokers[id-1] }

// A topic with three replicas outlives its leaders, one after the other, and
// every one of them comes back into the ISR.
func TestReplication(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	brokers[1].CreateReplicated("t", 4, 3, "min.insync.replicas", "2")
	inSync(t, brokers[0], "t", 3)
	var seeds []string
	for _, b := range brokers {
		seeds = append(seeds, b.Addr())
	}
	cl := brokers[0].Client(kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.MetadataMinAge(50*time.Millisecond))
	n := 0
	more := func(k int) { put(t, cl, "t", n, k); n += k }
	more(200)
	for range 3 {
		alive := slices.Clone(brokers)
		leader := inSync(t, brokers[0], "t", 3)
		gone := byID(brokers, leader)
		alive = slices.DeleteFunc(alive, func(b *servertest.Broker) bool { return b == gone })
		gone.Stop()
		more(100)
		readAll(t, alive[0], "t", n)
		if err := gone.Restart(nil); err != nil {
			t.Fatal(err)
		}
		more(50)
		inSync(t, alive[0], "t", 3)
	}
	for _, b := range brokers {
		readAll(t, b, "t", n)
	}
}
