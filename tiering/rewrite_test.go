package tiering

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/wal/batch"
)

// worker opens the Tier of a compaction worker that has the claim c of the log.
func (w *world) worker(f *fakeLog, c Claim) *Tier {
	w.t.Helper()
	o := w.opts
	defer func() { w.opts = o }()
	w.opts.Worker, w.opts.BrokerID, w.opts.SpoolDir = true, 99, w.t.TempDir()
	if err := w.store.Claim(bg, f.id, f.index, c); err != nil {
		w.t.Fatal(err)
	}
	return w.open()
}

// copied makes one object of the first n entries of a log, batch for batch.
func (w *world) copied(x *Tier, f *fakeLog, n int) (*Rewrite, []manifest.Entry) {
	w.t.Helper()
	r, err := x.Remote(bg, f.id, f.index)
	if err != nil {
		w.t.Fatal(err)
	}
	var run []manifest.Entry
	var list []EntryBlocks
	var footers []*Footer
	for _, e := range r.Entries[:n] {
		foot, err := x.EntryFooter(bg, f.id, f.index, e.Entry, true)
		if err != nil {
			w.t.Fatal(err)
		}
		run, list, footers = append(run, e.Entry), append(list, EntryBlocks{e.Entry, foot.Blocks}), append(footers, foot)
	}
	o, err := x.NewRewrite(footers[0], footers[n-1], run[n-1].Epoch)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := x.ReadEntries(bg, f.id, f.index, list, 0, nil, o.Add); err != nil {
		w.t.Fatal(err)
	}
	return o, run
}

// Somebody else lets go of an object that the search for garbage has proposed before: its grace begins when it is found
// dead, for whoever reads by the head before, and for what is published.
func TestGraceOfWhatOthersLetGo(t *testing.T) {
	for name, mixed := range map[string]bool{"own": false, "mixed": true} {
		inWorld(t, func(t *testing.T, w *world) {
			x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
			w.lead(x, f, g)
			for range 2 {
				f.plain(t, 2, 2, 100)
				if mixed {
					g.plain(t, 1, 1, 10)
				}
				w.drained(x, f, g)
			}
			if mixed { // f is all that keeps the objects
				if _, err := x.AdvanceLogStart(bg, g.id, 0, g.hw); err != nil {
					t.Fatal(err)
				}
				g.plain(t, 1, 1, 10)
				w.drained(x, g)
			}
			c := Claim{Worker: "w", Tag: [4]byte{1}, Lease: 1}
			y := w.worker(f, c)
			o, run := w.copied(y, f, 2)
			defer o.Close()
			e, err := o.Upload(bg, c, nil, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			key := run[0].Key(f.id, 0)
			x.gc.propose(condemned{name: run[0].Name(f.id, 0)}, true)
			time.Sleep(w.opts.Grace - 100*time.Millisecond)
			if err := y.Replace(bg, f.id, 0, c, Replacement{Old: run, New: []manifest.Entry{e}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(w.opts.Grace - 100*time.Millisecond)
			synctest.Wait()
			if _, err := w.mem.Head(bg, key); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			w.clean(x, f, g)
			if _, err := w.mem.Head(bg, key); err == nil {
				t.Errorf("%s: still there", name)
			}
		})
	}
}

// A full disk under the spool is an error before anything is uploaded.
func TestSpoolFull(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 2, 2, 100)
		w.drained(x, f)
		c := Claim{Worker: "w", Tag: [4]byte{1}, Lease: 1}
		y := w.worker(f, c)
		o, _ := w.copied(y, f, 1)
		full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		o.b.body.spool.file.Close()
		o.b.body.spool.file = full
		o.b.body.spool.w.Reset(full) // as if none of it had fitted
		o.b.body.spool.w.WriteByte(0)
		objects := w.objects()
		if _, err := o.Upload(bg, c, nil, 0, 0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v", err)
		}
		o.Close()
		if n := w.objects(); n != objects {
			t.Errorf("%d objects, there were %d", n, objects)
		}
		w.check(x, f)
	})
}

// What would not be the run that it replaces is refused where it is made.
func TestRewriteRefuses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		for range 2 {
			f.plain(t, 2, 2, 100)
			w.drained(x, f)
		}
		c := Claim{Worker: "w", Tag: [4]byte{1}, Lease: 1}
		y := w.worker(f, c)
		o, run := w.copied(y, f, 1)
		defer o.Close()
		h := f.batches[2].h
		if err := o.Add(h, f.batches[2].raw); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a batch behind the end: %v", err)
		}
		if err := o.Add(f.batches[0].h, f.batches[0].raw); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a batch that comes again: %v", err)
		}
		foot, err := y.EntryFooter(bg, f.id, 0, run[0], true)
		if err != nil {
			t.Fatal(err)
		}
		short, err := y.NewRewrite(foot, foot, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer short.Close()
		if err := short.Add(f.batches[0].h, f.batches[0].raw); err != nil {
			t.Fatal(err)
		}
		if _, err := short.Upload(bg, c, nil, 0, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("one that ends too early: %v", err)
		}
		// Batches of another place, or that reach out of the entry.
		blocks := EntryBlocks{run[0], foot.Blocks}
		blocks.Last--
		err = y.ReadEntries(bg, f.id, 0, []EntryBlocks{blocks}, 0, nil, func(batch.Header, []byte) error { return nil })
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("a batch that reaches out of its entry: %v", err)
		}
		// What was called off is not begun.
		ctx, cancel := context.WithCancel(bg)
		cancel()
		objects := w.objects()
		if _, err := o.Upload(ctx, c, nil, 0, 0); err == nil || w.objects() != objects {
			t.Errorf("%v, %d objects, there were %d", err, w.objects(), objects)
		}
	})
}
