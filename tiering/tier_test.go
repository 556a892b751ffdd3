package tiering

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

func TestUploadAndReplay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.opts.OwnBytes = 100 << 10
		w.lead(x, f)
		for range 5 {
			f.plain(t, 10, 50, 100)
			time.Sleep(1500 * time.Millisecond)
		}
		w.drained(x, f)
		a := w.check(x, f)
		if a.Entries < 3 || len(a.Unnamed) > 0 {
			t.Errorf("%+v", a)
		}
		s, _ := x.State(f.id, 0)
		if s.RemoteEnd != f.hw || f.local != f.hw || s.LastError != nil || s.UploadLag != 0 {
			t.Errorf("%+v, local start %d", s, f.local)
		}
		// A restart knows all of it.
		x.Close()
		f.newEpoch()
		y := w.open()
		w.lead(y, f)
		w.check(y, f)
		f.plain(t, 3, 5, 100)
		w.drained(y, f)
		w.check(y, f)
		lin, snap, end, err := y.Tail(bg, f.id, 0)
		if err != nil || end != f.hw || !lin.Equal(f.lin) {
			t.Errorf("tail %v %d %v, lineage %v", lin, end, err, f.lin)
		}
		if _, at, err := producer.Decode(snap); err != nil || at != end {
			t.Errorf("snapshot at %d: %v", at, err)
		}
		// One that does not lead reads as well.
		z := w.open()
		f.compare(t, z, 0, f.hw, 4096)
		if _, err := z.Read(bg, f.id, 0, f.hw, 1); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("read at the remote end: %v", err)
		}
		if _, err := z.Read(bg, [16]byte{99}, 0, 0, 1); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("read of nothing: %v", err)
		}
	})
}

// 1,000 partitions that say little cost one upload per flush.
func TestManySlowPartitions(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x := w.open()
		var logs []*fakeLog
		for i := range int32(1000) {
			logs = append(logs, newLog(byte(i%7), i))
		}
		w.lead(x, logs...)
		for range 3 {
			for _, f := range logs {
				f.plain(t, 1, 1, 50)
			}
			w.drained(x, logs...)
		}
		if n := w.counts.get(&w.counts.uploaded); n != 3 {
			t.Errorf("%d uploads for three flushes", n)
		}
		a := w.check(x, logs[0], logs[500], logs[999])
		if a.Entries != 3000 || len(a.Unnamed) > 0 {
			t.Errorf("%d entries, unnamed %v", a.Entries, a.Unnamed)
		}
		// They expire one by one; a mixed object goes with its last section.
		for _, f := range logs[1:] {
			f.set(func(p *Policy) { p.RetentionMs = 1000 })
		}
		w.clean(x, logs[0])
		if n := w.objects(); n != 3 {
			t.Errorf("%d objects while one partition still has its records", n)
		}
		logs[0].set(func(p *Policy) { p.RetentionMs = 1000 })
		w.clean(x, logs[0])
		if n := w.objects(); n != 1 {
			t.Errorf("%d objects, the one with the newest footers was to stay", n)
		}
	})
}

func TestBusyPartitionSealsBySize(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes, w.opts.FlushInterval = 1<<20, time.Hour
		x, f, slow := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, slow)
		slow.plain(t, 1, 1, 10)
		f.plain(t, 64, 10, 10_000) // 6.4 MB
		time.Sleep(10 * time.Second)
		s, _ := x.State(f.id, 0)
		if s.Objects != 6 || s.UploadLag == 0 {
			t.Errorf("%+v", s)
		}
		if s, _ := x.State(slow.id, 0); s.Objects != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(2 * time.Hour)
		w.check(x, f, slow)
		if s, _ := x.State(f.id, 0); s.RemoteEnd != f.hw {
			t.Errorf("%+v", s)
		}
	})
}

// Long manifests: spills, an index page, retention through it all.
func TestManyObjects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes, w.opts.FlushInterval, w.opts.PublishInterval, w.opts.SweepInterval = 1000, time.Hour, time.Hour, 10*time.Hour
		w.opts.FullInterval = 24 * time.Hour
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		for range 40 {
			f.plain(t, 10, 1, 1000)
			time.Sleep(time.Second)
		}
		w.drained(x, f)
		s, _ := x.State(f.id, 0)
		if s.Objects < 390 {
			t.Fatalf("%+v", s)
		}
		a := w.check(x, f)
		if a.Pages != 1 {
			t.Errorf("%d pages", a.Pages)
		}
		if _, err := x.AdvanceLogStart(bg, f.id, 0, 200); err != nil {
			t.Fatal(err)
		}
		s, _ = x.State(f.id, 0)
		if s.RemoteStart != 200 || s.Objects != 200 {
			t.Errorf("%+v", s)
		}
		w.check(x, f)
		time.Sleep(3 * time.Hour) // published and collected
		if n := w.objects(); n != 200 {
			t.Errorf("%d objects", n)
		}
		w.check(x, f)
	})
}

func TestRetention(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, byTime, bySize, compact, forever, off := w.open(), newLog(1, 0), newLog(2, 0), newLog(3, 0), newLog(4, 0), newLog(5, 0)
		byTime.policy.RetentionMs = 60_000
		bySize.policy.RetentionBytes = 10_000
		compact.policy.RetentionMs, compact.policy.Delete = 1, false
		off.policy.CopyDisabled, off.policy.RetentionMs = true, 60_000
		logs := []*fakeLog{byTime, bySize, compact, forever, off}
		w.lead(x, logs...)
		for range 100 {
			for _, f := range logs {
				f.plain(t, 1, 10, 100)
			}
			time.Sleep(2 * time.Second)
			for _, f := range logs {
				s, _ := x.State(f.id, 0)
				kept := int64(0)
				for _, b := range f.batches {
					if b.h.LastOffset() >= s.LogStart {
						kept += int64(len(b.raw))
					} else if age := time.Now().UnixMilli() - b.h.MaxTimestamp; f.policy.RetentionMs > 0 && age < f.policy.RetentionMs {
						t.Fatalf("%s: batch at %d gone at age %d ms", f.name, b.h.BaseOffset, age)
					}
				}
				if all := int64(len(f.batches)) * int64(len(f.batches[0].raw)); f == bySize && kept < min(all, 10_000) {
					t.Fatalf("%d bytes kept", kept)
				}
			}
		}
		time.Sleep(time.Minute)
		w.clean(x, byTime, bySize, compact, forever)
		for _, f := range []*fakeLog{compact, forever} {
			if s, _ := x.State(f.id, 0); s.LogStart != 0 {
				t.Errorf("%s: %+v", f.name, s)
			}
		}
		if s, _ := x.State(byTime.id, 0); s.LogStart != byTime.hw || s.Objects != 0 {
			t.Errorf("%+v", s)
		}
		if s, _ := x.State(bySize.id, 0); s.Bytes > 13_000 || s.Bytes < 10_000 {
			t.Errorf("%+v", s)
		}
		if s, _ := x.State(off.id, 0); s.LogStart != off.hw || s.RemoteEnd != 0 {
			t.Errorf("%+v", s)
		}
		// Producing goes on behind it.
		byTime.plain(t, 1, 5, 5)
		w.drained(x, byTime)
		w.check(x, byTime)
	})
}

func TestDeleteRecords(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 10, 10, 100)
		w.drained(x, f)
		if s, err := x.AdvanceLogStart(bg, f.id, 0, 35); err != nil || s != 35 {
			t.Fatal(s, err)
		}
		if s, err := x.AdvanceLogStart(bg, f.id, 0, 20); err != nil || s != 35 {
			t.Fatal(s, err)
		}
		if f.start != 35 {
			t.Errorf("the replica was told %d", f.start)
		}
		if _, err := x.Read(bg, f.id, 0, 34, 1); !errors.Is(err, ErrOutOfRange) {
			t.Error(err)
		}
		if r, err := x.Read(bg, f.id, 0, 35, 1); err != nil || r.Base != 30 {
			t.Errorf("%+v %v", r, err)
		} else {
			r.Release()
		}
		if _, err := x.AdvanceLogStart(bg, f.id, 0, 101); err == nil {
			t.Error("log start above the high watermark")
		}
		if _, err := x.AdvanceLogStart(bg, [16]byte{9}, 0, 1); !errors.Is(err, ErrNotLed) {
			t.Error(err)
		}
		// It needs no bucket; and it may pass the remote end, into a batch.
		w.bucket.SetOutage(true)
		f.plain(t, 10, 10, 100)
		if s, err := x.AdvanceLogStart(bg, f.id, 0, 155); err != nil || s != 155 {
			t.Fatal(s, err)
		}
		w.bucket.SetOutage(false)
		w.drained(x, f)
		s, _ := x.State(f.id, 0)
		if s.RemoteStart != 155 || s.RemoteEnd != 200 {
			t.Errorf("%+v", s)
		}
		w.clean(x, f)
		if n := w.objects(); n != 1 {
			t.Errorf("%d objects", n)
		}
	})
}

func TestFindTimestamp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.BlockBytes, w.opts.ChunkBytes, w.opts.TargetBytes = 500, 1000, 3000
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		rng := rand.New(rand.NewPCG(1, 1))
		b := batch.NewBuilder()
		var times []int64
		for range 100 {
			for range 1 + rng.IntN(5) {
				ts := rng.Int64N(10_000) // in no order at all
				times = append(times, ts)
				b.Add(ts, nil, []byte("v"))
			}
			f.append(t, b)
		}
		w.drained(x, f)
		if s, _ := x.State(f.id, 0); s.Objects < 3 {
			t.Fatalf("%+v", s)
		}
		for _, start := range []int64{0, 17, 150} {
			if _, err := x.AdvanceLogStart(bg, f.id, 0, start); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				ts := rng.Int64N(10_100)
				want := int64(-1)
				for o, at := range times {
					if int64(o) >= start && at >= ts {
						want = int64(o)
						break
					}
				}
				run, found, err := x.FindTimestamp(bg, f.id, 0, ts)
				if err != nil || found != (want >= 0) || found && (run.Base > want || run.Next <= want) {
					t.Fatalf("time %d from %d: %d-%d %v %v, want %d", ts, start, run.Base, run.Next, found, err, want)
				}
				if found {
					run.Release()
				}
			}
		}
	})
}

// Aborted transactions at every seam, compared with what a fold of the whole log
// says; and the producer state at each object's end.
func TestTransactions(t *testing.T) {
	for seed := range uint64(5) {
		inWorld(t, func(t *testing.T, w *world) {
			w.opts.BlockBytes, w.opts.TargetBytes, w.opts.FlushInterval = 300, 700, 100*time.Millisecond
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			rng := rand.New(rand.NewPCG(seed, 1))
			open := map[int64]bool{}
			seq := map[int64]int32{}
			for range 150 {
				pid := int64(100 + rng.IntN(4))
				if open[pid] && rng.IntN(3) == 0 {
					f.mu.Lock()
					f.appendRaw(t, batch.Marker(pid, 0, rng.IntN(2) == 0, 0, time.Now().UnixMilli()))
					f.mu.Unlock()
					open[pid] = false
				} else {
					b := batch.NewBuilder()
					b.ProducerID, b.Transactional, b.BaseSequence = pid, true, seq[pid]
					for range 1 + rng.IntN(3) {
						b.Add(time.Now().UnixMilli(), nil, []byte("x"))
						seq[pid]++
					}
					f.append(t, b)
					open[pid] = true
				}
				if rng.IntN(10) == 0 {
					time.Sleep(200 * time.Millisecond)
				}
				if rng.IntN(60) == 0 {
					f.newEpoch()
					w.lead(x, f)
				}
			}
			w.drained(x, f)
			w.check(x, f)
			all := producer.New()
			for _, b := range f.batches {
				all.Apply(b.h, b.raw)
			}
			for range 200 {
				from := rng.Int64N(f.hw)
				to := from + 1 + rng.Int64N(f.hw-from)
				got, err := x.Aborted(bg, f.id, 0, from, to, f.hw)
				if err != nil {
					t.Fatal(err)
				}
				want := map[producer.Aborted]bool{}
				for _, a := range all.Aborted(from, to) {
					want[a] = true
				}
				for i, a := range got {
					if !want[a] || i > 0 && a.FirstOffset < got[i-1].FirstOffset {
						t.Fatalf("seed %d: [%d, %d): %+v is not in %v", seed, from, to, a, want)
					}
					delete(want, a)
				}
				if len(want) > 0 {
					t.Fatalf("seed %d: [%d, %d): %v missing from %v", seed, from, to, want, got)
				}
			}
			// A new replica goes on exactly where the log's own state is.
			_, snap, end, err := x.Tail(bg, f.id, 0)
			if err != nil {
				t.Fatal(err)
			}
			st, _, err := producer.Decode(snap)
			if err != nil {
				t.Fatal(err)
			}
			all.TrimAborted(end)
			all.Commit(end)
			if got, want := fmt.Sprint(st.Open(), collect(st)), fmt.Sprint(all.Open(), collect(all)); got != want {
				t.Errorf("seed %d: state at %d\n%s\nwant\n%s", seed, end, got, want)
			}
		})
	}
}

func collect(s *producer.State) (out []producer.Producer) {
	for p := range s.Producers() {
		out = append(out, p)
	}
	return out
}

func TestCopyLag(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var urgent atomic.Bool
		w.opts.Urgent = urgent.Load
		x, byTime, bySize := w.open(), newLog(1, 0), newLog(2, 0)
		byTime.policy.CopyLagMs, bySize.policy.CopyLagMs, bySize.policy.CopyLagBytes = 60_000, 600_000, 5000
		w.lead(x, byTime, bySize)
		byTime.plain(t, 1, 10, 100)
		bySize.plain(t, 1, 10, 100)
		time.Sleep(50 * time.Second)
		byTime.plain(t, 1, 10, 100)
		if w.objects() != 0 {
			t.Error("uploaded before the lag is over")
		}
		time.Sleep(15 * time.Second)
		if s, _ := x.State(byTime.id, 0); s.RemoteEnd != 10 {
			t.Errorf("%+v", s)
		}
		bySize.plain(t, 5, 10, 100)
		time.Sleep(5 * time.Second)
		if s, _ := x.State(bySize.id, 0); s.RemoteEnd != bySize.hw {
			t.Errorf("%+v", s)
		}
		urgent.Store(true)
		time.Sleep(5 * time.Second)
		if s, _ := x.State(byTime.id, 0); s.RemoteEnd != byTime.hw {
			t.Errorf("%+v", s)
		}
	})
}

// The limits hold, and may change while there are uploads and reads.
func TestLimits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var running, most atomic.Int64
		w.opts.Limits, w.opts.OwnBytes = Limits{Uploads: 1}, 1000
		w.bucket.Inject(objstore.Fault{Op: objstore.OpPut, Key: "data/", Kind: objstore.Delay, Do: func(context.Context, objstore.Op, string) error {
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(5 * time.Second)
			running.Add(-1)
			return nil
		}})
		x := w.open()
		var logs []*fakeLog
		for i := range int32(6) {
			logs = append(logs, newLog(1, i))
		}
		w.lead(x, logs...)
		for _, uploads := range []int{1, 3, 2} {
			x.SetLimits(Limits{Uploads: uploads})
			most.Store(0)
			for _, f := range logs {
				f.plain(t, 1, 20, 1000)
			}
			w.drained(x, logs...)
			if n := int(most.Load()); n != uploads {
				t.Errorf("%d uploads at once where %d may be", n, uploads)
			}
		}

		// 20 KB at 200 bytes a second are on their way for 100 s.
		f := logs[0]
		remote := func() int64 { s, _ := x.State(f.id, f.index); return s.RemoteEnd }
		x.SetLimits(Limits{UploadRate: 200})
		f.plain(t, 1, 20, 1000)
		time.Sleep(60 * time.Second)
		if remote() >= f.hw {
			t.Error("20 KB are uploaded in a minute at 200 bytes a second")
		}
		time.Sleep(2 * time.Minute)
		if remote() != f.hw {
			t.Error("20 KB are not uploaded in three minutes at 200 bytes a second")
		}
		f.plain(t, 1, 20, 1000)
		time.Sleep(20 * time.Second)
		x.SetLimits(Limits{})
		time.Sleep(20 * time.Second)
		if remote() != f.hw {
			t.Error("an upload under way goes on at the old rate")
		}

		took := func(l Limits) time.Duration {
			y := w.open()
			y.SetLimits(l)
			begin := time.Now()
			f.compare(t, y, 0, f.hw, 1<<20)
			return time.Since(begin)
		}
		free, bounded := took(Limits{}), took(Limits{ReadRate: 10_000})
		// Five times 20 KB, of which one second's worth may go at once.
		if free > time.Second || bounded < 8*time.Second {
			t.Errorf("100 KB read in %v, at 10 KB a second in %v", free, bounded)
		}
	})
}

// P7: the bucket alone tells what was uploaded.
func TestPublish(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x := w.open()
		var logs []*fakeLog
		for i := range int32(5) {
			logs = append(logs, newLog(byte(1+i), i))
		}
		w.lead(x, logs...)
		for range 100 {
			for _, f := range logs {
				f.plain(t, 1, 1, 100)
			}
			time.Sleep(3 * time.Second)
		}
		w.drained(x, logs...)
		time.Sleep(5 * time.Second)
		restored := NewMemManifests()
		list, err := ReadPublished(bg, w.mem)
		if err != nil || len(list) != 5 {
			t.Fatal(len(list), err)
		}
		for i, h := range list {
			if h.Topic != logs[i].name {
				t.Errorf("name %q", h.Topic)
			}
			restored.heads[partitionKey{h.TopicID, h.Partition}] = h.StoredHead
		}
		y, err := Open(Options{Bucket: w.mem, Manifests: restored, ClusterID: "test"})
		if err != nil {
			t.Fatal(err)
		}
		defer y.Close()
		for _, f := range logs {
			f.compare(t, y, 0, f.end(), 1<<20)
		}
		states, _ := listAll(bg, w.mem, "state/")
		if len(states) > 60 {
			t.Errorf("%d publications are kept", len(states))
		}
		// A topic that is deleted leaves nothing, and is not published any more.
		w.store.DeleteTopic(logs[0].id, logs[0].name, 1)
		x.Resign(logs[0].id, 0)
		time.Sleep(5 * time.Minute)
		if list, _ := ReadPublished(bg, w.mem); len(list) != 4 {
			t.Errorf("%d heads published", len(list))
		}
		if d, _ := w.store.Deleted(bg); len(d) != 0 {
			t.Error("the tombstone is still there")
		}
		w.clean(x, logs[1:]...)
	})
}

// What no head names any more stays for the grace at least: a reader may still go
// by an older head. It stays until the published state lacks it, too.
func TestGrace(t *testing.T) {
	const grace = time.Minute
	// gone measures how long an object is still there.
	gone := func(t *testing.T, w *world, atMost time.Duration) time.Duration {
		t.Helper()
		began, n := time.Now(), w.objects()
		if n == 0 {
			t.Fatal("there was nothing to delete")
		}
		for w.objects() == n {
			if time.Since(began) > atMost {
				t.Fatalf("%d objects are still there after %v", n, atMost)
			}
			time.Sleep(100 * time.Millisecond)
		}
		return time.Since(began)
	}
	for _, c := range []struct {
		name    string
		atMost  time.Duration
		atLeast time.Duration
		retire  func(t *testing.T, w *world, x *Tier, f *fakeLog)
	}{
		{"records are deleted", 2 * grace, grace, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			if _, err := x.AdvanceLogStart(bg, f.id, 0, f.hw); err != nil {
				t.Fatal(err)
			}
		}},
		{"file.delete.delay.ms is longer", 6 * grace, 5 * grace, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			f.set(func(p *Policy) { p.DeleteDelayMs = 5 * grace.Milliseconds() })
			if _, err := x.AdvanceLogStart(bg, f.id, 0, f.hw); err != nil {
				t.Fatal(err)
			}
		}},
		{"retention by size", 2 * grace, grace, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			f.set(func(p *Policy) { p.RetentionBytes = 1 })
			for {
				if s, _ := x.State(f.id, 0); s.LogStart > 0 {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}},
		{"the topic is deleted", 2 * grace, grace, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			x.Resign(f.id, 0)
			w.store.DeleteTopic(f.id, f.name, 1)
		}},
		{"publishing fails for ten minutes", 13 * grace, 10 * grace, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			remove := w.bucket.Inject(objstore.Fault{Op: objstore.OpPut, Key: "state/", Kind: objstore.FailBefore})
			if _, err := x.AdvanceLogStart(bg, f.id, 0, f.hw); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(10*grace, remove)
		}},
		{"a topic is deleted and publishing fails for ten minutes", 13 * grace, 10 * grace, func(t *testing.T, w *world, x *Tier, f *fakeLog) {
			remove := w.bucket.Inject(objstore.Fault{Op: objstore.OpPut, Key: "state/", Kind: objstore.FailBefore})
			x.Resign(f.id, 0)
			w.store.DeleteTopic(f.id, f.name, 1)
			time.AfterFunc(10*grace, remove)
		}},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.opts.Grace, w.opts.TargetBytes, w.opts.ViewAge = grace, 1000, grace/2
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			f.plain(t, 20, 1, 500)
			w.drained(x, f)
			y := w.open()
			f.compare(t, y, 0, f.hw, 1)  // y knows this head
			time.Sleep(10 * time.Second) // and it is published
			c.retire(t, w, x, f)
			synctest.Wait() // for what y reads ahead
			y.meta = newMeta(1 << 20)
			f.compare(t, y, 0, f.hw, 1)
			if d := gone(t, w, c.atMost); d < c.atLeast-time.Second {
				t.Errorf("%s: an object went after %v", c.name, d)
			}
		})
	}
}

// The longest file.delete.delay.ms that there may be, until the topic is deleted.
func TestKeptForEver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes = 1000
		x, f := w.open(), newLog(1, 0)
		f.policy.DeleteDelayMs = math.MaxInt64
		w.lead(x, f)
		f.plain(t, 20, 1, 500)
		w.drained(x, f)
		before := w.objects()
		if _, err := x.AdvanceLogStart(bg, f.id, 0, f.hw); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		list := x.Retired()
		if n := w.objects(); n != before || len(list) != n-1 {
			t.Fatalf("%d objects of %d are left, %d wait", n, before, len(list))
		}
		if r := list[0]; r.Earliest.Sub(r.Since) < MaxDeleteDelay {
			t.Errorf("%+v", r)
		}
		x.Resign(f.id, 0)
		w.store.DeleteTopic(f.id, f.name, 1)
		time.Sleep(10 * time.Minute)
		if n := w.objects(); n != 0 {
			t.Errorf("%d objects of the topic that was deleted are left: %+v", n, x.Retired())
		}
	})
}

func TestDeletedTopics(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes = 1000
		x, f, mixed, other := w.open(), newLog(1, 0), newLog(1, 1), newLog(2, 0)
		w.lead(x, f, mixed, other)
		f.plain(t, 50, 1, 1000)
		mixed.plain(t, 1, 1, 10)
		other.plain(t, 1, 1, 10)
		w.drained(x, f, mixed, other)
		x.Resign(f.id, 0)
		x.Resign(f.id, 1)
		w.store.DeleteTopic(f.id, f.name, 2)
		w.clean(x, other)
		if n := w.objects(); n != 1 {
			t.Errorf("%d objects", n)
		}
		if n := len(w.store.heads); n != 1 {
			t.Errorf("%d heads", n)
		}
	})
}

func TestForeignBucket(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		mark := "varve cluster 1\nanother\n"
		if err := w.mem.Put(bg, "cluster", strings.NewReader(mark), int64(len(mark)), objstore.CRC32C([]byte(mark))); err != nil {
			t.Fatal(err)
		}
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 1, 1, 1)
		time.Sleep(time.Minute)
		if s, _ := x.State(f.id, 0); !errors.Is(s.LastError, ErrForeign) || w.objects() != 0 {
			t.Errorf("%+v, %d objects", s, w.objects())
		}
		if err := x.Healthy(); !errors.Is(err, ErrForeign) {
			t.Error(err)
		}
	})
}

// etcd restored from an old backup: nothing is committed, nothing deleted.
func TestRegressedManifests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		for range 3 {
			f.plain(t, 1, 1, 100)
			w.drained(x, f)
		}
		time.Sleep(10 * time.Second) // published
		x.Close()
		old := NewMemManifests()
		old.rev = 1
		w.store, w.opts.Manifests = old, old
		f.local = 0
		y := w.open()
		w.lead(y, f)
		before := w.objects()
		time.Sleep(10 * time.Minute)
		if s, _ := y.State(f.id, 0); !errors.Is(s.LastError, ErrRegressed) || s.RemoteEnd != 0 {
			t.Errorf("%+v", s)
		}
		if n := w.objects(); n < before {
			t.Errorf("%d of %d objects left", n, before)
		}
		if y.Healthy() == nil {
			t.Error("no alarm")
		}
	})
}

// The log start overtakes the remote end. What producers did in between is folded
// where it can still be read; a transaction that ended there is not open.
func TestSkippedTransaction(t *testing.T) {
	for _, readable := range []bool{true, false} {
		inWorld(t, func(t *testing.T, w *world) {
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			data := func(pid int64, seq int32, n int) {
				b := batch.NewBuilder()
				b.ProducerID, b.Transactional, b.BaseSequence = pid, true, seq
				for range n {
					b.Add(time.Now().UnixMilli(), nil, []byte("x"))
				}
				f.append(t, b)
			}
			mark := func(pid int64, commit bool) {
				f.mu.Lock()
				f.appendRaw(t, batch.Marker(pid, 0, commit, 0, time.Now().UnixMilli()))
				f.mu.Unlock()
			}
			data(7, 0, 5)
			data(8, 0, 5)
			w.drained(x, f) // both are open at the remote end
			w.bucket.SetOutage(true)
			mark(7, true)
			data(8, 5, 5)
			data(9, 0, 4)
			if _, err := x.AdvanceLogStart(bg, f.id, 0, f.hw); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			if readable {
				f.local = 10
			} else {
				f.local = f.end()
			}
			f.mu.Unlock()
			data(8, 10, 5)
			first := f.hw - 5
			w.bucket.SetOutage(false)
			w.drained(x, f)
			_, snap, _, err := x.Tail(bg, f.id, 0)
			if err != nil {
				t.Fatal(err)
			}
			st, _, err := producer.Decode(snap)
			if err != nil {
				t.Fatal(err)
			}
			open := fmt.Sprint(st.Open())
			want := fmt.Sprintf("[{8 %d}]", first)
			if readable {
				want = "[{8 5} {9 16}]"
			}
			if open != want {
				t.Errorf("readable %v: open %s, want %s", readable, open, want)
			}
			mark(8, false)
			w.drained(x, f)
			got, err := x.Aborted(bg, f.id, 0, first, f.hw, f.hw)
			if err != nil || len(got) != 1 || got[0].ProducerID != 8 {
				t.Errorf("aborted %+v %v", got, err)
			}
			w.clean(x, f)
		})
	}
}

// The marker of a transaction comes with a later object than its records. A broker that does not lead, and whose manifest
// is from between the two, knows from the leader that there is more.
func TestAbortedBehindTheManifestAtHand(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.ViewAge = time.Hour
		leader, follower, f := w.open(), w.open(), newLog(1, 0)
		w.lead(leader, f)
		b := batch.NewBuilder()
		b.ProducerID, b.Transactional = 7, true
		b.Add(time.Now().UnixMilli(), nil, []byte("x"))
		f.append(t, b)
		w.drained(leader, f)
		end := f.hw
		if got, err := follower.Aborted(bg, f.id, 0, 0, end, end); err != nil || len(got) != 0 {
			t.Errorf("open: aborted %+v %v", got, err)
		}
		f.mu.Lock()
		f.appendRaw(t, batch.Marker(7, 0, false, 0, time.Now().UnixMilli()))
		f.mu.Unlock()
		w.drained(leader, f)
		if got, err := follower.Aborted(bg, f.id, 0, 0, end, f.hw); err != nil || len(got) != 1 || got[0].ProducerID != 7 {
			t.Errorf("ended: aborted %+v %v", got, err)
		}
	})
}

// A broker that does not lead reads by a head that it has at hand. What it is told has changed it does not read by the old one.
func TestChangedHeadsAreReadBy(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.ViewAge = time.Hour
		leader, follower, f := w.open(), w.open(), newLog(1, 0)
		w.lead(leader, f)
		f.plain(t, 1, 10, 100)
		w.drained(leader, f)
		key := partitionKey{f.id, 0}
		before, err := follower.current(bg, key, false)
		if err != nil {
			t.Fatal(err)
		}
		f.plain(t, 1, 10, 100)
		w.drained(leader, f)
		if v, err := follower.current(bg, key, false); err != nil || v != before {
			t.Fatalf("another head without having been told: %v", err)
		}
		if _, err := follower.Changed(bg, before.rev, func([16]byte, int32, State) {}); err != nil {
			t.Fatal(err)
		}
		if v, err := follower.current(bg, key, false); err != nil || v.rev <= before.rev || v.head.RemoteEnd() != 20 {
			t.Errorf("revision %d after %d, %v", v.rev, before.rev, err)
		}
	})
}

// The local log forgets epochs below its start; footers do not.
func TestLineageOutlivesTheLocalLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		whole := f.lin
		for range 4 {
			f.plain(t, 2, 10, 10)
			w.drained(x, f)
			f.newEpoch()
			whole = whole.Assign(f.epoch, f.end())
			f.mu.Lock()
			f.lin = f.lin.TruncateStart(f.local)
			f.mu.Unlock()
			w.lead(x, f)
		}
		f.plain(t, 1, 10, 10)
		w.drained(x, f)
		lin, _, _, err := x.Tail(bg, f.id, 0)
		if err != nil || !lin.Equal(whole) {
			t.Errorf("%v, want %v, %v", lin, whole, err)
		}
	})
}

// Who reads on through many small sections waits for the bucket about once for as
// many as may be read at a time: their footers and what is in them come ahead.
func TestSmallSectionsComeAhead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := newLog(1, 0)
		x := w.open()
		w.lead(x, f)
		const objects, delay = 320, 20 * time.Millisecond
		for range objects {
			f.plain(t, 1, 1, 100)
			for s := (State{}); s.RemoteEnd < f.HighWatermark(); s, _ = x.State(f.id, 0) {
				time.Sleep(100 * time.Millisecond)
			}
		}
		if s, _ := x.State(f.id, 0); s.Objects != objects {
			t.Fatalf("%d objects", s.Objects)
		}
		w.bucket.Inject(objstore.Fault{Op: objstore.OpGet, Kind: objstore.Delay, Delay: delay})
		y := w.open()
		began := time.Now()
		read := 0
		for at := int64(0); at < f.HighWatermark(); {
			r, err := y.Read(bg, f.id, 0, at, 4<<20)
			if err != nil {
				t.Fatal(err)
			}
			read += len(r.Chunks)
			at = r.Next
			r.Release()
		}
		took := time.Since(began)
		t.Logf("%d sections in %v", read, took)
		// 16 at a time, one after the other, footers and then chunks, would be more than 40 waits.
		if read != objects || took > 32*delay {
			t.Errorf("%d of %d sections in %v", read, objects, took)
		}
	})
}
