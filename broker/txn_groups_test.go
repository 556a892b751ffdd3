package broker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve/varve/cmd/varve/servertest"
)

// processor reads from the topic in and writes to the topic out, each poll in a transaction that also has the offsets of
// what it read, until ctx ends. Every fifth transaction it aborts. Sessions that cannot go on are replaced.
func processor(ctx context.Context, b *servertest.Broker, id string, old bool, rnd *rand.Rand, commits, aborts *atomic.Int64) {
	for ctx.Err() == nil {
		opts := []kgo.Opt{kgo.SeedBrokers(b.Addr()), kgo.TransactionalID(id), kgo.TransactionTimeout(3 * time.Second), kgo.DefaultProduceTopic("out"),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumerGroup("etl"), kgo.ConsumeTopics("in"),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50 * time.Millisecond), kgo.HeartbeatInterval(100 * time.Millisecond),
			kgo.SessionTimeout(6 * time.Second), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond })}
		if old {
			opts = append(opts, kgo.MaxVersions(kversion.V3_6_0()))
		}
		s, err := kgo.NewGroupTransactSession(opts...)
		if err != nil {
			continue
		}
		for ctx.Err() == nil {
			fetches := s.PollRecords(ctx, 1+rnd.IntN(20))
			if fetches.NumRecords() == 0 {
				continue
			}
			if s.Begin() != nil {
				break
			}
			failed := kgo.AbortingFirstErrPromise(s.Client())
			fetches.EachRecord(func(r *kgo.Record) {
				s.Produce(ctx, &kgo.Record{Value: r.Value}, failed.Promise())
			})
			ok := failed.Err() == nil && rnd.IntN(5) > 0
			committed, err := s.End(context.WithoutCancel(ctx), kgo.TransactionEndTry(ok))
			switch {
			case err != nil:
			case committed:
				commits.Add(1)
			default:
				aborts.Add(1)
			}
			if err != nil {
				break
			}
		}
		s.Close()
	}
}

// TestReadProcessWrite: processors move records from one topic to another in transactions, come and go, and abort some, and
// the broker is started anew in between. What is in is out exactly once, in the order of each partition, and the offsets
// that the group has committed say so.
func TestReadProcessWrite(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%v", old), func(t *testing.T) {
			b := startTxn(t)
			b.CreateTopic("in", 4)
			b.CreateTopic("out", 1)
			const n = 1200
			in := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			var commits, aborts atomic.Int64
			for i := range 3 {
				wg.Go(func() {
					processor(ctx, b, fmt.Sprint("tx-", i), old, rand.New(rand.NewPCG(1, uint64(i))), &commits, &aborts)
				})
			}
			for i := range n {
				r := &kgo.Record{Topic: "in", Partition: int32(i % 4), Value: fmt.Append(nil, i)}
				in.Produce(ctx, r, func(_ *kgo.Record, err error) {
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Errorf("produce: %v", err)
					}
				})
				if i%400 == 399 {
					if err := in.Flush(ctx); err != nil {
						t.Fatal(err)
					}
					servertest.Eventually(t, func() error {
						if c := commits.Load(); c < int64(i/100) {
							return fmt.Errorf("%d transactions", c)
						}
						return nil
					})
					if err := b.Restart(nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			c := dial(t, b)
			var got []seen
			next := int64(0)
			servertest.Eventually(t, func() error {
				more, at := c.readCommitted("out", 0, next, 1<<20)
				got, next = append(got, more...), at
				if len(got) < n {
					return fmt.Errorf("%d of %d records, %d transactions, %d aborted", len(got), n, commits.Load(), aborts.Load())
				}
				return nil
			})
			cancel()
			wg.Wait()
			more, _ := c.readCommitted("out", 0, next, 1<<20)
			got = append(got, more...)
			var last [4]int
			for _, s := range got {
				v, err := strconv.Atoi(s.value)
				if err != nil {
					t.Fatal(err)
				}
				if want := last[v%4]*4 + v%4; v != want {
					t.Fatalf("record %d is out where %d should be: lost, twice, or out of order", v, want)
				}
				last[v%4]++
			}
			if len(got) != n || aborts.Load() == 0 {
				t.Errorf("%d records of %d; %d transactions, %d aborted", len(got), n, commits.Load(), aborts.Load())
			}
			offsets, err := kadm.NewClient(b.Client()).FetchOffsets(within(t), "etl")
			if err != nil {
				t.Fatal(err)
			}
			for p := range int32(4) {
				if o, ok := offsets.Lookup("in", p); !ok || o.Err != nil || o.At != n/4 {
					t.Errorf("partition %d: committed at %d (%v, %v) of %d", p, o.At, ok, o.Err, n/4)
				}
			}
			t.Logf("%d transactions, %d aborted", commits.Load(), aborts.Load())
		})
	}
}
