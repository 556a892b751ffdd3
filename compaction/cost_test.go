package compaction_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
)

// slow is a partition that gets one record a second.
type slow struct {
	topic [16]byte
	index int32
	born  time.Time
	batch []byte

	mu        sync.Mutex
	committed int64
}

func (s *slow) TopicID() [16]byte    { return s.topic }
func (s *slow) TopicName() string    { return "slow" }
func (s *slow) Partition() int32     { return s.index }
func (s *slow) LeaderEpoch() int32   { return 1 }
func (s *slow) HighWatermark() int64 { return int64(time.Since(s.born) / time.Second) }
func (s *slow) Extent() (logStart, localStart, highWatermark, logEnd int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hw := s.HighWatermark()
	return 0, min(s.committed, hw), hw, hw
}
func (s *slow) Pending(from int64) (bytes, oldestMs int64) {
	n := s.HighWatermark() - from
	if n <= 0 {
		return 0, 0
	}
	return n * int64(len(s.batch)), s.at(from)
}
func (s *slow) at(offset int64) int64 {
	return s.born.Add(time.Duration(offset+1) * time.Second).UnixMilli()
}
func (s *slow) Read(offset int64, maxBytes int, upTo int64) (tiering.Run, error) {
	r := tiering.Run{Base: offset, Next: offset, Release: func() {}}
	for n := 0; r.Next < upTo && n < maxBytes; r.Next++ {
		b := append([]byte(nil), s.batch...)
		batch.SetBaseOffset(b, r.Next)
		batch.SetLeaderEpoch(b, 1)
		r.Chunks, n = append(r.Chunks, b), n+len(b)
	}
	return r, nil
}
func (s *slow) Lineage() lineage.Lineage { return lineage.Lineage{}.Assign(1, 0) }
func (s *slow) Policy() tiering.Policy {
	return tiering.Policy{RetentionMs: -1, RetentionBytes: -1, LocalRetentionMs: -2, LocalRetentionBytes: -2, CopyLagBytes: -1, SegmentBytes: 1 << 30, SegmentMs: 7 * 24 * 3600 * 1000, Delete: true}
}
func (s *slow) Committed(st tiering.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = max(s.committed, st.RemoteEnd)
}

// bill counts requests. Prices are those of S3 Standard for 1,000.
type bill struct {
	mu       sync.Mutex
	get, put int64
}

func (c *bill) of(b objstore.Bucket) objstore.Bucket {
	return objstore.Observe(b, objstore.Events{End: func(e objstore.Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch e.Op {
		case objstore.OpGet:
			c.get++
		case objstore.OpPut, objstore.OpList: // which costs the same
			c.put++
		}
	}})
}

func (c *bill) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.get, c.put = 0, 0
}

func (c *bill) dollars() float64 { return float64(c.get)*0.0004/1000 + float64(c.put)*0.005/1000 }

// Merging costs requests and saves those of whoever reads the data again. What it costs has to stay below what one
// replay of everything would cost without it, or it is not worth it.
func TestMergingIsWorthItsRequests(t *testing.T) {
	partitions, hours := 10, 3
	if os.Getenv("VARVE_LONG") == "1" {
		partitions, hours = 100, 24
	}
	type result struct {
		upload, merge, replay bill
		entries               int
		jobs                  int
	}
	simulate := func(t *testing.T, fanin int) (out *result) {
		out = &result{}
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			mem, store := objstore.NewMem(), tiering.NewMemManifests()
			o := tiering.Options{Manifests: store, ClusterID: "c", BrokerID: 1, Bucket: out.upload.of(mem), Grace: time.Hour}
			leader, err := tiering.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			bb := batch.NewBuilder()
			bb.Add(time.Now().UnixMilli(), []byte("key"), make([]byte, 200))
			b, err := bb.Build()
			if err != nil {
				t.Fatal(err)
			}
			var all []*slow
			for i := range int32(partitions) {
				s := &slow{topic: [16]byte{1}, index: i, born: time.Now(), batch: b}
				store.SetEpoch(s.topic, i, 1)
				if _, err := leader.Lead(ctx, s); err != nil {
					t.Fatal(err)
				}
				all = append(all, s)
			}
			var wg sync.WaitGroup
			var worker *tiering.Tier
			if fanin > 0 {
				wo := o
				wo.Worker, wo.SpoolDir, wo.Bucket, wo.BrokerID = true, t.TempDir(), out.merge.of(mem), math.MaxInt32
				if worker, err = tiering.Open(wo); err != nil {
					t.Fatal(err)
				}
				w, err := compaction.New(compaction.Options{
					Tier: worker, Store: store, Settings: compaction.Settings{TableBytes: 1 << 16}, Limits: picker.Limits{Fanin: fanin},
					Lease: func(context.Context) (int64, <-chan struct{}, error) { return 1, nil, nil },
					Topic: func([16]byte) (compaction.Topic, bool) {
						return compaction.Topic{Name: "slow", Codec: cleaner.KeepCodec, Policy: picker.Policy{Delete: true, RetentionMs: -1, RetentionBytes: -1}}, true
					},
					Events: compaction.Events{
						Done:   func(compaction.Done) { out.jobs++ },
						Failed: func(_ string, _ int32, err error) { t.Error(err) },
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() { w.Run(ctx) })
			}
			time.Sleep(time.Duration(hours) * time.Hour)
			cancel()
			wg.Wait()
			if worker != nil {
				worker.Close()
			}
			leader.Close()
			// Somebody reads everything again, from a broker that has nothing of it in its caches.
			ro := o
			ro.Bucket = out.replay.of(mem)
			reader, err := tiering.Open(ro)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			out.replay.reset() // what opening took
			for _, s := range all {
				r, err := reader.Remote(t.Context(), s.topic, s.index)
				if err != nil {
					t.Fatal(err)
				}
				out.entries += len(r.Entries)
				next := int64(0)
				for end := r.Head.RemoteEnd(); next < end; {
					run, err := reader.Read(t.Context(), s.topic, s.index, next, 1<<20)
					if err != nil {
						t.Fatal(err)
					}
					if next = run.Next; run.Release != nil {
						run.Release()
					}
				}
				if next < int64(hours)*3600-120 {
					t.Errorf("partition %d ends at %d", s.index, next)
				}
			}
		})
		return out
	}
	show := func(name string, r *result) {
		per := 1000.0 / float64(partitions) / float64(hours)
		t.Logf("%-10s for 1,000 partitions an hour: upload %6.0f put; merging %6.0f get %6.0f put $%.3f in %5.0f jobs; %6.0f objects; a replay of it %6.0f get $%.3f", name,
			float64(r.upload.put)*per, float64(r.merge.get)*per, float64(r.merge.put)*per, r.merge.dollars()*per, float64(r.jobs)*per, float64(r.entries)*per,
			float64(r.replay.get)*per, r.replay.dollars()*per)
	}
	without := simulate(t, 0)
	show("no merging", without)
	fanins := []int{picker.DefaultFanin}
	if testing.Verbose() {
		fanins = append(fanins, 8, 16, 32, 64, 128)
	}
	for i, fanin := range fanins {
		with := simulate(t, fanin)
		show(fmt.Sprintf("fanin %d", fanin), with)
		if i > 0 {
			continue // for comparison
		}
		if with.jobs == 0 || with.entries*4 > without.entries {
			t.Errorf("%d jobs leave %d objects of %d", with.jobs, with.entries, without.entries)
		}
		if saved := without.replay.dollars() - with.replay.dollars(); with.merge.dollars() > 2*saved {
			t.Errorf("merging cost $%.6f, a replay costs $%.6f less for it", with.merge.dollars(), saved)
		}
	}
}
