package compaction_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
)

// slow is a partition that gets a small record now and then.
type slow struct {
	topic [16]byte
	index int32
	born  time.Time
	every time.Duration
	batch []byte

	mu        sync.Mutex
	committed int64
}

func (s *slow) TopicID() [16]byte  { return s.topic }
func (s *slow) TopicName() string  { return "slow" }
func (s *slow) Partition() int32   { return s.index }
func (s *slow) LeaderEpoch() int32 { return 1 }
func (s *slow) Stuck(bool)         {}

func (s *slow) HighWatermark() int64 { return max(0, int64(time.Since(s.born)/s.every)) }
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
	return s.born.Add(time.Duration(offset+1) * s.every).UnixMilli()
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

// bill counts the requests of one process: those to the object store by operation, those to etcd by what it asks.
type bill struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *bill) add(what string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]int64)
	}
	c.n[what] += n
}

func (c *bill) of(b objstore.Bucket) objstore.Bucket {
	return objstore.Observe(b, objstore.Events{End: func(e objstore.Event) {
		c.add(string(e.Op), 1)
		if e.Op == objstore.OpDelete {
			c.add("deleted", int64(e.Objects))
		}
	}})
}

// since is what came on top of an earlier count.
func (c *bill) since(was counts) counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := maps.Clone(c.n)
	for k, n := range was {
		now[k] -= n
	}
	return now
}

type counts map[string]int64

// dollars is what they cost: prices are those of S3 Standard for 1,000.
func (c counts) dollars() float64 {
	return float64(c["get"]+c["head"])*0.0004/1000 + float64(c["put"]+c["list"])*0.005/1000
}

// etcd sums up: what is written, what is read, and how many heads reading all of them, or all that have changed, gives.
func (c counts) etcd() string {
	return fmt.Sprintf("%d writes, %d reads, %d scans of %d heads, %.1f MB", c["commit"]+c["claim"]+c["unclaim"], c["load"]+c["epoch"]+c["standing"],
		c["range"]+c["changed"]+c["deleted topics"], c["heads"], float64(c["head bytes"])/1e6)
}

// billed is a metadata store whose requests are counted.
type billed struct {
	tiering.ManifestStore
	c *bill
}

func (s billed) Load(ctx context.Context, id [16]byte, i int32) ([]byte, int64, error) {
	s.c.add("load", 1)
	return s.ManifestStore.Load(ctx, id, i)
}

func (s billed) Commit(ctx context.Context, r tiering.CommitRequest) (int64, error) {
	s.c.add("commit", 1)
	return s.ManifestStore.Commit(ctx, r)
}

func (s billed) LeaderEpoch(ctx context.Context, id [16]byte, i int32) (int32, bool, error) {
	s.c.add("epoch", 1)
	return s.ManifestStore.LeaderEpoch(ctx, id, i)
}

func (s billed) Claim(ctx context.Context, id [16]byte, i int32, c tiering.Claim) error {
	s.c.add("claim", 1)
	return s.ManifestStore.Claim(ctx, id, i, c)
}

func (s billed) Unclaim(ctx context.Context, id [16]byte, i int32, c tiering.Claim) error {
	s.c.add("unclaim", 1)
	return s.ManifestStore.Unclaim(ctx, id, i, c)
}

func (s billed) Standing(ctx context.Context, ids []tiering.PartitionID) ([]tiering.Standing, error) {
	s.c.add("standing", 1)
	s.c.add("stand", int64(len(ids)))
	return s.ManifestStore.Standing(ctx, ids)
}

func (s billed) Range(ctx context.Context, f func(tiering.StoredHead) error) error {
	s.c.add("range", 1)
	return s.ManifestStore.Range(ctx, s.head(f))
}

func (s billed) Changed(ctx context.Context, since int64, f func(tiering.StoredHead) error) (int64, error) {
	s.c.add("changed", 1)
	return s.ManifestStore.Changed(ctx, since, s.head(f))
}

func (s billed) head(f func(tiering.StoredHead) error) func(tiering.StoredHead) error {
	return func(h tiering.StoredHead) error {
		s.c.add("heads", 1)
		s.c.add("head bytes", int64(len(h.Head)))
		return f(h)
	}
}

func (s billed) Deleted(ctx context.Context) ([]tiering.Tombstone, error) {
	s.c.add("deleted topics", 1)
	return s.ManifestStore.Deleted(ctx)
}

// hour is what slow partitions did in an hour, and what it left.
type hour struct {
	broker, worker, replay counts
	jobs                   int64
	sections               int64          // more than an hour before, that manifests name
	objects                map[string]int // more than an hour before, by the folder that they are in
	live                   map[string]int // at its end
}

// simulate runs slow partitions, one broker that leads them all, and a worker that merges so many at a time, if any. They
// begin one after the other, so that what a partition does once in fanin flushes is spread over the hours. The hour that
// is counted comes after each has been merged at least once.
func simulate(t *testing.T, partitions, fanin int, every time.Duration) (out hour) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var broker, worker, replay bill
		mem, store := objstore.NewMem(), tiering.NewMemManifests()
		// As varve wires them with its defaults.
		o := tiering.Options{ClusterID: "c", Grace: time.Minute, CollectInterval: 10 * time.Second, DeleteDelay: func([16]byte) time.Duration { return time.Minute }}
		bo := o
		bo.BrokerID, bo.Bucket, bo.Manifests, bo.PublishInterval = 1, broker.of(mem), billed{store, &broker}, time.Minute
		leader, err := tiering.Open(bo)
		if err != nil {
			t.Fatal(err)
		}
		bb := batch.NewBuilder()
		bb.Add(time.Now().UnixMilli(), []byte("key"), make([]byte, 200))
		b, err := bb.Build()
		if err != nil {
			t.Fatal(err)
		}
		// A flush is every 61 s. Sections are merged when they stand in a page, and come there by the fold.
		fold := manifest.DefaultLimits.Tail + 1 - manifest.DefaultLimits.Keep
		spread := time.Duration((max(fanin, picker.DefaultFanin)+fold-1)/fold*fold) * 61 * time.Second
		var all []*slow
		for i := range int32(partitions) {
			s := &slow{topic: [16]byte{1}, index: i, born: time.Now().Add(spread * time.Duration(i) / time.Duration(partitions)), every: every, batch: b}
			store.SetEpoch(s.topic, i, 1)
			if _, err := leader.Lead(ctx, s); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		var wg sync.WaitGroup
		wg.Go(func() { // brokers look what workers have done
			for rev := int64(0); ctx.Err() == nil; {
				rev, _ = leader.Changed(ctx, rev, func([16]byte, int32, tiering.State) {})
				select {
				case <-ctx.Done():
				case <-time.After(15 * time.Second):
				}
			}
		})
		var jobs atomic.Int64
		var tier *tiering.Tier
		if fanin > 0 {
			wo := o
			wo.Worker, wo.SpoolDir, wo.BrokerID, wo.PublishInterval = true, t.TempDir(), math.MaxInt32, 30*time.Second
			wo.Bucket, wo.Manifests = worker.of(mem), billed{store, &worker}
			if tier, err = tiering.Open(wo); err != nil {
				t.Fatal(err)
			}
			w, err := compaction.New(compaction.Options{
				Tier: tier, Store: wo.Manifests, Settings: compaction.Settings{TableBytes: 1 << 16}, Limits: picker.Limits{Fanin: fanin},
				Lease: func(context.Context) (int64, <-chan struct{}, error) { return 1, nil, nil },
				Topic: func([16]byte) (compaction.Topic, bool) {
					return compaction.Topic{Name: "slow", Codec: cleaner.KeepCodec, DeleteDelay: time.Minute, Policy: picker.Policy{Delete: true, RetentionMs: -1, RetentionBytes: -1}}, true
				},
				Events: compaction.Events{
					Done:   func(compaction.Done) { jobs.Add(1) },
					Failed: func(_ string, _ int32, err error) { t.Error(err) },
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { w.Run(ctx) })
		}
		// look is what there is: sections that manifests name, objects by folder.
		look := func() (sections int64, objects map[string]int) {
			objects = make(map[string]int)
			for _, s := range all {
				if st, ok := leader.State(s.topic, s.index); ok {
					sections += int64(st.Objects)
				}
			}
			for after, more := "", true; more; {
				var list []objstore.Info
				if list, more, err = mem.List(t.Context(), "", after, 1000); err != nil {
					t.Fatal(err)
				}
				for _, i := range list {
					after = i.Key
					objects[folder(i.Key)]++
				}
			}
			return sections, objects
		}
		time.Sleep(2*spread + 5*time.Minute)
		had, were := look()
		brokerWas, workerWas, jobsWere := broker.since(nil), worker.since(nil), jobs.Load()
		time.Sleep(time.Hour)
		out.broker, out.worker, out.jobs = broker.since(brokerWas), worker.since(workerWas), jobs.Load()-jobsWere
		out.sections, out.live = look()
		out.sections -= had
		out.objects = maps.Clone(out.live)
		for k, n := range were {
			out.objects[k] -= n
		}
		cancel()
		wg.Wait()
		if tier != nil {
			tier.Close()
		}
		leader.Close()
		// Somebody reads everything again, from a broker that has nothing of it in its caches.
		ro := o
		ro.Bucket, ro.Manifests, ro.BrokerID = replay.of(mem), store, 2
		reader, err := tiering.Open(ro)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		opened := replay.since(nil)
		hours := 0.0
		for _, s := range all {
			r, err := reader.Remote(t.Context(), s.topic, s.index)
			if err != nil {
				t.Fatal(err)
			}
			next, end := int64(0), r.Head.RemoteEnd()
			for next < end {
				run, err := reader.Read(t.Context(), s.topic, s.index, next, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				if next = run.Next; run.Release != nil {
					run.Release()
				}
			}
			if behind := time.Duration(s.HighWatermark()-next) * every; behind > 2*time.Minute {
				t.Errorf("partition %d ends %s before its newest record", s.index, behind)
			}
			hours += float64(end) * every.Hours()
		}
		out.replay = replay.since(opened)
		for k, n := range out.replay {
			out.replay[k] = int64(float64(n) / hours * float64(partitions))
		}
	})
	return out
}

// folder tells what an object is by its name.
func folder(key string) string {
	switch {
	case strings.HasPrefix(key, manifest.PagePrefix):
		return "pages"
	case strings.HasPrefix(key, "state/"):
		return "states"
	case !strings.HasPrefix(key, manifest.DataPrefix):
		return "others"
	case strings.HasPrefix(path.Base(key), "c-"):
		return "merged"
	}
	return "uploaded"
}

// Merging costs requests and saves those of whoever reads the data again. What it costs has to stay below what one or two
// replays of everything would cost without it, or it is not worth it. With VARVE_LONG there are 1,000 partitions; what
// they share, such as mixed objects and published states, makes up more of fewer.
func TestMergingIsWorthItsRequests(t *testing.T) {
	partitions, every := 50, 10*time.Second
	if os.Getenv("VARVE_LONG") == "1" {
		partitions = 1000
	}
	show := func(name string, h hour) {
		t.Logf("%s: %d partitions in an hour\n  %+d sections, %+v objects, of %v\n  broker $%.3f: %v\n    etcd: %s\n  worker $%.3f in %d jobs: %v\n    etcd: %s\n  a replay of an hour $%.3f: %v", name, partitions,
			h.sections, h.objects, h.live, h.broker.dollars(), h.broker, h.broker.etcd(), h.worker.dollars(), h.jobs, h.worker, h.worker.etcd(), h.replay.dollars(), h.replay)
	}
	without := simulate(t, partitions, 0, every)
	show("no merging", without)
	with := simulate(t, partitions, picker.DefaultFanin, every)
	show(fmt.Sprintf("fanin %d", picker.DefaultFanin), with)
	uploaded := without.sections // in the hour
	if uploaded < 58*int64(partitions) {
		t.Errorf("%d sections of %d partitions in an hour, at a flush a minute", uploaded, partitions)
	}
	if with.jobs == 0 || with.sections*10 > uploaded {
		t.Errorf("%d jobs leave %d sections of %d", with.jobs, with.sections, uploaded)
	}
	if 3*with.replay["get"] > without.replay["get"] {
		t.Errorf("a replay of an hour takes %d reads, %d without merging", with.replay["get"], without.replay["get"])
	}
	if n := with.worker["get"]; 2*n > 5*uploaded {
		t.Errorf("%d reads of the worker for %d sections", n, uploaded)
	}
	if n := with.worker["load"] + with.worker["epoch"] + with.worker["standing"]; n > uploaded {
		t.Errorf("the worker reads etcd %d times for %d sections", n, uploaded)
	}
	if partitions == 1000 {
		if saved := without.replay.dollars() - with.replay.dollars(); with.worker.dollars() > 2*saved {
			t.Errorf("merging cost $%.6f, a replay costs $%.6f less for it", with.worker.dollars(), saved)
		}
	}
	if testing.Verbose() {
		for _, fanin := range []int{8, 16, 32, 128} { // for comparison
			show(fmt.Sprintf("fanin %d", fanin), simulate(t, partitions, fanin, every))
		}
	}
}
