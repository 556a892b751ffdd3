package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
)

var bg = context.Background()

// fakeLog is a partition's local log and the leader that serves it: batches that
// are all below the high watermark, and what the tier says may be reclaimed.
type fakeLog struct {
	id    [16]byte
	name  string
	index int32

	mu      sync.Mutex
	epoch   int32
	leading bool
	stuck   atomic.Bool // as told
	batches []fakeBatch // all ever appended: what the remote part is compared with
	local   int64       // reads below it fail: reclaimed
	start   int64
	hw      int64
	lin     lineage.Lineage
	policy  Policy
	states  []State
	readErr error
}

type fakeBatch struct {
	h   batch.Header
	raw []byte
	at  int64 // ms, appended
}

var keepAll = Policy{RetentionMs: -1, RetentionBytes: -1, LocalRetentionMs: -2, LocalRetentionBytes: -2, CopyLagBytes: -1, SegmentBytes: 1 << 30, SegmentMs: 7 * 24 * 3600 * 1000, Delete: true}

func newLog(id byte, index int32) *fakeLog {
	return &fakeLog{id: [16]byte{id}, name: fmt.Sprintf("topic-%d", id), index: index, epoch: 1, leading: true, policy: keepAll, lin: lineage.Lineage{}.Assign(1, 0)}
}

func (f *fakeLog) TopicID() [16]byte { return f.id }
func (f *fakeLog) TopicName() string { return f.name }
func (f *fakeLog) Partition() int32  { return f.index }

func (f *fakeLog) LeaderEpoch() int32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch
}

func (f *fakeLog) Stuck(stuck bool) { f.stuck.Store(stuck) }

func (f *fakeLog) HighWatermark() int64 {
	_, _, hw, _ := f.Extent()
	return hw
}

func (f *fakeLog) Extent() (logStart, localStart, highWatermark, logEnd int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.leading {
		return 0, 0, 0, 0
	}
	return f.start, f.local, f.hw, f.end()
}

func (f *fakeLog) end() int64 {
	if n := len(f.batches); n > 0 {
		return f.batches[n-1].h.NextOffset()
	}
	return 0
}

func (f *fakeLog) Pending(from int64) (bytes int64, oldest int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.batches {
		if b.h.LastOffset() >= from && b.h.LastOffset() < f.hw {
			if bytes == 0 {
				oldest = b.at
			}
			bytes += int64(len(b.raw))
		}
	}
	return bytes, oldest
}

func (f *fakeLog) Read(offset int64, maxBytes int, upTo int64) (Run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readErr != nil {
		return Run{}, f.readErr
	}
	if offset < f.local {
		return Run{}, fmt.Errorf("offset %d is below the local start %d", offset, f.local)
	}
	r := Run{Base: -1, Next: offset, Release: func() {}}
	n := 0
	for _, b := range f.batches {
		if b.h.LastOffset() < offset || b.h.LastOffset() >= upTo {
			continue
		}
		if n > 0 && n+len(b.raw) > maxBytes {
			break
		}
		if r.Base < 0 {
			r.Base = b.h.BaseOffset
		}
		r.Chunks, r.Next, n = append(r.Chunks, b.raw), b.h.NextOffset(), n+len(b.raw)
	}
	return r, nil
}

func (f *fakeLog) Lineage() lineage.Lineage {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lin
}

func (f *fakeLog) Policy() Policy {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.policy
}

func (f *fakeLog) localStart() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.local
}

// Committed reclaims at once all that it may.
func (f *fakeLog) Committed(s State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states = append(f.states, s)
	f.local = max(f.local, min(max(s.RemoteEnd, s.LogStart), f.end()))
	f.start = max(f.start, s.LogStart)
}

// append appends a batch built by b, at the log's end.
func (f *fakeLog) append(t testing.TB, b *batch.Builder) int64 {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	b.BaseOffset, b.LeaderEpoch = f.end(), f.epoch
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	b.Reset()
	return f.appendRaw(t, raw)
}

func (f *fakeLog) appendRaw(t testing.TB, raw []byte) int64 {
	t.Helper()
	batch.SetBaseOffset(raw, f.end())
	batch.SetLeaderEpoch(raw, f.epoch)
	h, err := batch.ParseHeader(raw)
	if err != nil {
		t.Fatal(err)
	}
	f.batches = append(f.batches, fakeBatch{h, raw, time.Now().UnixMilli()})
	f.hw = f.end()
	return h.BaseOffset
}

// plain appends n batches of some records each.
func (f *fakeLog) plain(t testing.TB, n, records, size int) {
	t.Helper()
	b := batch.NewBuilder()
	for range n {
		for i := range records {
			v := bytes.Repeat([]byte{byte(i)}, size)
			b.Add(time.Now().UnixMilli(), []byte(fmt.Sprintf("k%d", i)), v)
		}
		f.append(t, b)
	}
}

// damage flips a bit of a batch, or back.
func (f *fakeLog) damage(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw := slices.Clone(f.batches[i].raw)
	raw[80] ^= 1
	f.batches[i].raw = raw
}

func (f *fakeLog) setHW(to int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hw = to
}

func (f *fakeLog) newEpoch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	f.lin = f.lin.Assign(f.epoch, f.end())
}

func (f *fakeLog) set(change func(*Policy)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.policy)
}

// world is a bucket and a metadata store with tiers that come and go.
type world struct {
	t      *testing.T
	mem    *objstore.Mem
	bucket *objstore.Faulty
	once   *writeOnce
	store  *MemManifests
	opts   Options
	tiers  []*Tier
	counts counts
}

type counts struct {
	mu                                                                 sync.Mutex
	uploaded, sections, committed, conflicts, fenced, deleted, retired int
	orphans, published                                                 int
	failed                                                             map[Duty]int
	corrupt                                                            int
	lastErr                                                            error
}

func (c *counts) events() Events {
	add := func(p *int, n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		*p += n
	}
	c.failed = map[Duty]int{}
	return Events{
		Uploaded:  func(s int, _ int64, _ time.Duration) { add(&c.uploaded, 1); add(&c.sections, s) },
		Committed: func(n int) { add(&c.committed, 1) },
		Conflict:  func() { add(&c.conflicts, 1) },
		Fenced:    func() { add(&c.fenced, 1) },
		Deleted:   func(n int) { add(&c.deleted, n) },
		Retired:   func(n int, _ int64) { add(&c.retired, n) },
		Orphans:   func(n int) { add(&c.orphans, n) },
		Published: func(n int) { add(&c.published, n) },
		Corrupt:   func(string, error) { add(&c.corrupt, 1) },
		Failed: func(d Duty, err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.failed[d]++
			c.lastErr = err
		},
	}
}

func (c *counts) get(p *int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *p
}

// writeOnce fails the test when a key is put twice (I8), whether or not the
// first attempt looked as if it had failed.
type writeOnce struct {
	objstore.Bucket
	t    testing.TB
	mu   sync.Mutex
	keys map[string]bool
}

func (w *writeOnce) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	w.mu.Lock()
	if w.keys[key] && key != clusterKey { // the mark has one name and one content
		w.t.Errorf("%s is written twice", key)
	}
	w.keys[key] = true
	w.mu.Unlock()
	return w.Bucket.Put(ctx, key, body, size, crc)
}

// inWorld runs f in a bubble of fake time.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, mem: objstore.NewMem(), store: NewMemManifests()}
		w.bucket = objstore.NewFaulty(w.mem, 1)
		w.once = &writeOnce{Bucket: w.bucket, t: t, keys: map[string]bool{}}
		w.opts = Options{
			Bucket: w.once, Manifests: w.store, ClusterID: "test", BrokerID: 1, Events: w.counts.events(),
			FlushInterval: time.Second, RetentionInterval: time.Second, CollectInterval: time.Second, SweepInterval: time.Minute,
			Grace: 5 * time.Second, PublishInterval: 2 * time.Second, FullInterval: 30 * time.Second, MinBackoff: 10 * time.Millisecond, MaxBackoff: time.Second,
			RequestTimeout: 5 * time.Second, UploadTimeout: 10 * time.Second,
		}
		if testing.Verbose() {
			w.opts.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		defer func() {
			for _, x := range w.tiers {
				x.Close()
			}
		}()
		f(t, w)
	})
}

func (w *world) open() *Tier {
	w.t.Helper()
	o := w.opts
	c, err := cache.Open(cache.Options{MemoryBytes: 8 << 20})
	if err != nil {
		w.t.Fatal(err)
	}
	o.Cache = c
	x, err := Open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	x.ownsCache = true
	w.tiers = append(w.tiers, x)
	return x
}

func (w *world) lead(x *Tier, logs ...*fakeLog) {
	w.t.Helper()
	for _, f := range logs {
		w.store.SetEpoch(f.id, f.index, f.epoch)
		s, err := x.Lead(bg, f)
		if err != nil {
			w.t.Fatal(err)
		}
		f.Committed(s)
	}
}

// drained waits until everything is in the bucket.
func (w *world) drained(x *Tier, logs ...*fakeLog) {
	w.t.Helper()
	for _, f := range logs {
		for i := 0; ; i++ {
			s, _ := x.State(f.id, f.index)
			if max(s.RemoteEnd, s.LogStart) >= f.end() {
				break
			}
			if i > 6000 {
				w.t.Fatalf("%s-%d: remote end %d of %d: %v", f.name, f.index, s.RemoteEnd, f.end(), s.LastError)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	time.Sleep(time.Second)
	synctest.Wait()
}

// check reads the whole remote part with several sizes and compares it byte for
// byte; then it audits the bucket.
func (w *world) check(x *Tier, logs ...*fakeLog) *Audit {
	w.t.Helper()
	for _, f := range logs {
		s, ok := x.State(f.id, f.index)
		if !ok {
			w.t.Fatalf("no state of %s", f.name)
		}
		for _, max := range []int{1, 1000, 1 << 20} {
			f.compare(w.t, x, s.RemoteStart, s.RemoteEnd, max)
		}
		if s.RemoteEnd > f.end() {
			w.t.Fatalf("remote end %d beyond the log's end %d", s.RemoteEnd, f.end())
		}
	}
	a, err := Check(bg, w.mem, w.store, AuditOptions{Data: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := a.Err(); err != nil {
		w.t.Fatal(err, a.Problems)
	}
	return a
}

func (f *fakeLog) compare(t *testing.T, x *Tier, from, to int64, maxBytes int) {
	t.Helper()
	i := slices.IndexFunc(f.batches, func(b fakeBatch) bool { return b.h.LastOffset() >= from })
	for at := from; at < to; {
		r, err := x.Read(bg, f.id, f.index, at, maxBytes)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, c := range r.Chunks {
			err := batch.Walk(c, func(h batch.Header, raw []byte) error {
				if n > 0 && n+len(raw) > maxBytes {
					return fmt.Errorf("%d bytes asked for, %d given", maxBytes, n+len(raw))
				}
				n += len(raw)
				if !bytes.Equal(raw, f.batches[i].raw) {
					return fmt.Errorf("batch at %d differs from the one appended at %d", h.BaseOffset, f.batches[i].h.BaseOffset)
				}
				i++
				return nil
			})
			if err != nil {
				t.Fatalf("read at %d: %v", at, err)
			}
		}
		if r.Next <= at || n == 0 {
			t.Fatalf("read at %d: next %d, %d bytes", at, r.Next, n)
		}
		at = r.Next
		r.Release()
	}
}

// clean waits until garbage is collected and checks that none is left.
func (w *world) clean(x *Tier, logs ...*fakeLog) {
	w.t.Helper()
	time.Sleep(5 * time.Minute)
	synctest.Wait()
	if a := w.check(x, logs...); len(a.Unnamed) > 0 {
		w.t.Fatalf("left in the bucket: %v", a.Unnamed)
	}
}

func (w *world) objects() (n int) {
	list, err := listAll(bg, w.mem, "data/")
	if err != nil {
		w.t.Fatal(err)
	}
	return len(list)
}

var errInjected = errors.New("injected")
