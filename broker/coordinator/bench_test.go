package coordinator

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/wal/batch"
)

// BenchmarkCommit commits one partition at a time from many goroutines, over a log that costs nothing.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			c := one(b, newMemLog(), Options{})
			var off atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for i := range n {
				wg.Go(func() {
					for {
						o := off.Add(1)
						if o > int64(b.N) {
							return
						}
						if code := commit(c, fmt.Sprint("g", i%8), "", -1, int32(i), o); code != 0 {
							b.Error("code", code)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	c := one(b, newMemLog(), Options{})
	j := formed(b, c, "g", 50)[0]
	b.ResetTimer()
	for b.Loop() {
		if code := heartbeat(c, "g", j.MemberID, j.Generation); code != 0 {
			b.Fatal(code)
		}
	}
}

// BenchmarkRebalance is a rebalance of a stable group: the leader joins again, the others follow, all sync.
func BenchmarkRebalance(b *testing.B) {
	for _, n := range []int{20, 200} {
		b.Run(fmt.Sprintf("members=%d", n), func(b *testing.B) {
			c := one(b, newMemLog(), Options{})
			js := formed(b, c, "g", n)
			b.ResetTimer()
			for b.Loop() {
				var wg sync.WaitGroup
				var leading sync.WaitGroup
				leading.Add(1)
				for i := range js {
					wg.Go(func() {
						if i == 0 {
							go func() {
								for state(c, "g") == "Stable" {
									time.Sleep(100 * time.Microsecond)
								}
								leading.Done()
							}()
						} else {
							leading.Wait()
						}
						js[i] = join(c, "g", js[i].MemberID, nil)
						if code := syncGroup(c, "g", js[i]).ErrorCode; code != 0 {
							b.Error("code", code)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

// BenchmarkLoad replays a history of one million commits to ten thousand partitions.
func BenchmarkLoad(b *testing.B) {
	log := newMemLog()
	sh := group.NewShard(group.Config{})
	bb := batch.NewBuilder()
	const records = 1_000_000
	for i := range records {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version, req.Group, req.Generation = 9, fmt.Sprint("g", i%100), -1
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = "topic"
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = int32(i%10_000), int64(i)
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		for _, r := range sh.Handle(time.UnixMilli(int64(i)), &group.Commit{Token: 1, Req: req}).Records {
			bb.Add(int64(i), r.Key, r.Value)
		}
		if bb.Len() == 100 {
			run, err := bb.Build()
			if err != nil {
				b.Fatal(err)
			}
			bb.Reset()
			log.Append(0, 1, run, func(int64, error) {})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		c := New(Options{Log: log}, 1)
		c.Elected(0, 1)
		until(b, func() bool { return c.Ready(0) })
		if st := c.Stats(); st.Offsets != 10_000 {
			b.Fatal(st)
		}
		c.Close()
	}
	b.ReportMetric(records*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
