package tiering

import (
	"context"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// readCounter counts the reads that a bucket is asked for.
type readCounter struct {
	objstore.Bucket
	n atomic.Int64
}

func (c *readCounter) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	c.n.Add(1)
	return c.Bucket.GetRange(ctx, key, off, length)
}

// reader opens a tier that leads nothing and has nothing in memory, and counts what it reads from the bucket.
func (w *world) reader() (*Tier, *readCounter) {
	c := &readCounter{Bucket: w.opts.Bucket}
	was := w.opts.Bucket
	w.opts.Bucket = c
	defer func() { w.opts.Bucket = was }()
	return w.open(), c
}

// head is the committed head of a partition.
func (w *world) head(f *fakeLog) *manifest.Head {
	w.t.Helper()
	raw, _, err := w.store.Load(bg, f.id, f.index)
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := manifest.DecodeHead(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// latest is what MaxTimestamp has to find, looked for record by record.
func (f *fakeLog) latest(t *testing.T, from, to int64) (offset, timestamp int64) {
	t.Helper()
	offset, timestamp = -1, -1
	for _, b := range f.batches {
		for r, err := range batch.Records(b.raw, 1<<20) {
			if err != nil {
				t.Fatal(err)
			}
			o, ts := b.h.BaseOffset+int64(r.OffsetDelta), b.h.Timestamp(r)
			if o >= from && o < to && ts > timestamp {
				offset, timestamp = o, ts
			}
		}
	}
	return offset, timestamp
}

// Timestamps in no order, some equal, some absent; markers; batches that compaction has emptied and that promise what no
// record has; manifests of every shape; a log start anywhere: the answer is that of a look at every record.
func TestMaxTimestamp(t *testing.T) {
	for seed := range uint64(6) {
		inWorld(t, func(t *testing.T, w *world) {
			w.opts.BlockBytes, w.opts.ChunkBytes, w.opts.TargetBytes = 300, 600, 900
			if seed%2 == 0 {
				w.opts.ManifestLimits = manifest.Limits{Tail: 6, Keep: 2, Page: 4, Pages: 2, Index: 1 << 16}
			}
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			rng := rand.New(rand.NewPCG(seed, 1))
			b := batch.NewBuilder()
			for range 150 {
				for range 1 + rng.IntN(4) {
					b.Add(rng.Int64N(300)-1, nil, []byte("value"))
				}
				b.LogAppendTime = false
				switch rng.IntN(8) {
				case 0:
					f.mu.Lock()
					f.appendRaw(t, batch.Marker(7, 0, true, 0, rng.Int64N(300)))
					f.mu.Unlock()
				case 1:
					b.Add(300+rng.Int64N(20), nil, nil)
					raw, err := b.Build()
					if err != nil {
						t.Fatal(err)
					}
					h, _ := batch.ParseHeader(raw)
					b.Reset()
					f.mu.Lock()
					f.appendRaw(t, batch.Empty(h))
					f.mu.Unlock()
				default:
					b.LogAppendTime = rng.IntN(10) == 0
					f.append(t, b)
				}
			}
			w.drained(x, f)
			end := f.end()
			for start := int64(0); ; start += 1 + rng.Int64N(end/8) {
				if start = min(start, end); start > 0 {
					if _, err := x.AdvanceLogStart(bg, f.id, 0, start); err != nil {
						t.Fatal(err)
					}
				}
				for range 60 {
					from, to := rng.Int64N(end+1), rng.Int64N(end+2)
					floor := rng.Int64N(400) - 1
					if rng.IntN(3) > 0 {
						from, floor = 0, 0
					}
					wantOffset, want := f.latest(t, max(from, start), to)
					o, ts, ok, err := x.MaxTimestamp(bg, f.id, 0, from, to, floor)
					if err != nil || ok != (want >= max(floor, 0)) || ok && (o != wantOffset || ts != want) {
						t.Fatalf("seed %d, log start %d, in [%d, %d) from time %d on: %d at offset %d, %v, %v; want %d at %d",
							seed, start, from, to, floor, ts, o, ok, err, want, wantOffset)
					}
				}
				if start == end {
					break
				}
			}
			if _, _, ok, err := x.MaxTimestamp(bg, [16]byte{9}, 0, 0, end, 0); ok || err != nil {
				t.Errorf("of a partition that has nothing in the bucket: %v, %v", ok, err)
			}
		})
	}
}

// The oldest objects have the largest timestamps, and are dead: the pages that had them say so still, and so does the
// object that the log start lies in. What is looked at does not grow with the manifest.
func TestMaxTimestampBehindDeadPages(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits manifest.Limits
		move   func(t *testing.T, w *world, x *Tier, f *fakeLog)
	}{
		{"DeleteRecords", manifest.Limits{}, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			if _, err := x.AdvanceLogStart(bg, f.id, 0, 61); err != nil {
				t.Fatal(err)
			}
		}},
		{"DeleteRecords, index page", manifest.Limits{Tail: 12, Keep: 4, Page: 24, Pages: 2, Index: 1 << 16}, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			if _, err := x.AdvanceLogStart(bg, f.id, 0, 61); err != nil {
				t.Fatal(err)
			}
		}},
		{"retention", manifest.Limits{}, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			f.set(func(p *Policy) { p.RetentionBytes = 200_000 })
			w.clean(x, f)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.opts.TargetBytes, w.opts.FlushInterval, w.opts.ManifestLimits = 1000, time.Hour, tc.limits
				x, f := w.open(), newLog(1, 0)
				w.lead(x, f)
				b := batch.NewBuilder()
				const objects = 300
				for i := range int64(objects) { // three records to an object: the first is the latest
					for j := range int64(3) {
						b.Add(1_000_000-3*i-j, nil, make([]byte, 400))
					}
					f.append(t, b)
				}
				w.drained(x, f)
				if s, _ := x.State(f.id, 0); s.Objects != objects {
					t.Fatalf("%+v", s)
				}
				tc.move(t, w, x, f)
				h := w.head(f)
				want, ts := f.latest(t, h.LogStart, f.end())
				if stale := h.Named()[0]; h.LogStart == 0 || want != h.LogStart || stale.MaxTimestamp <= ts {
					t.Fatalf("log start %d, the oldest page has %d and the latest record %d: nothing is tested", h.LogStart, stale.MaxTimestamp, ts)
				}
				y, reads := w.reader()
				for what, tier := range map[string]*Tier{"leader": x, "reader": y} {
					o, at, ok, err := tier.MaxTimestamp(bg, f.id, 0, h.LogStart, f.end(), 0)
					if !ok || err != nil || o != want || at != ts {
						t.Errorf("%s: %d at offset %d, %v, %v; want %d at %d", what, at, o, ok, err, ts, want)
					}
				}
				// An index page, a page, two footers, two chunks.
				if n := reads.n.Load(); n > 6 {
					t.Errorf("%d reads of the bucket", n)
				}
			})
		})
	}
}

// One object of many chunks that the log start lies in: nothing that is dead in it is read, for the largest timestamp or by
// time.
func TestLookupsReadNothingDead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.BlockBytes, w.opts.ChunkBytes = 1000, 2000
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		b := batch.NewBuilder()
		for i := range int64(100) {
			for j := range int64(3) {
				b.Add(1_000_000-3*i-j, nil, make([]byte, 300))
			}
			f.append(t, b)
		}
		w.drained(x, f)
		if s, _ := x.State(f.id, 0); s.Objects != 1 {
			t.Fatalf("%+v", s)
		}
		const start = 250 // the second record of a batch
		if _, err := x.AdvanceLogStart(bg, f.id, 0, start); err != nil {
			t.Fatal(err)
		}
		y, reads := w.reader()
		if o, ts, ok, err := y.MaxTimestamp(bg, f.id, 0, 0, f.end(), 0); !ok || err != nil || o != start || ts != 1_000_000-start {
			t.Errorf("the largest: %d at offset %d, %v, %v", ts, o, ok, err)
		}
		if n := reads.n.Load(); n > 2 { // the footer, a chunk
			t.Errorf("the largest timestamp: %d reads of the bucket", n)
		}
		y, reads = w.reader()
		run, found, err := y.FindTimestamp(bg, f.id, 0, 1_000_000-start)
		if err != nil || !found || run.Base != start-1 {
			t.Fatalf("by time: %+v %v %v", run, found, err)
		}
		run.Release()
		if n := reads.n.Load(); n > 2 {
			t.Errorf("by time: %d reads of the bucket", n)
		}
		if _, found, err := y.FindTimestamp(bg, f.id, 0, 1_000_001-start); found || err != nil {
			t.Errorf("by a time that only deleted records have: %v, %v", found, err)
		}
	})
}
