package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

// mortal is a process that dies at its n-th request to the outside, before the
// request is sent or before its answer arrives. From then on nothing it does has
// an effect.
type mortal struct {
	mu    sync.Mutex
	at    int // 0: immortal
	after bool
	ops   int
	dead  bool
	where string
}

var errDead = errors.New("the process is dead")

func (m *mortal) do(what string, f func() error) error {
	m.mu.Lock()
	if m.dead {
		m.mu.Unlock()
		return errDead
	}
	m.ops++
	mine := m.ops == m.at
	if mine && !m.after {
		m.dead, m.where = true, "before "+what
		m.mu.Unlock()
		return errDead
	}
	m.mu.Unlock()
	err := f()
	m.mu.Lock()
	defer m.mu.Unlock()
	if mine {
		m.dead, m.where = true, "after "+what
	}
	if m.dead {
		return errDead
	}
	return err
}

type mortalBucket struct {
	objstore.Bucket
	m *mortal
}

func (b mortalBucket) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	return b.m.do("put "+key, func() error { return b.Bucket.Put(ctx, key, body, size, crc) })
}

func (b mortalBucket) GetRange(ctx context.Context, key string, off, n int64) (r io.ReadCloser, err error) {
	err = b.m.do("get "+key, func() error { r, err = b.Bucket.GetRange(ctx, key, off, n); return err })
	return r, err
}

func (b mortalBucket) Head(ctx context.Context, key string) (n int64, err error) {
	err = b.m.do("head "+key, func() error { n, err = b.Bucket.Head(ctx, key); return err })
	return n, err
}

func (b mortalBucket) List(ctx context.Context, prefix, after string, limit int) (l []objstore.Info, more bool, err error) {
	err = b.m.do("list "+prefix, func() error { l, more, err = b.Bucket.List(ctx, prefix, after, limit); return err })
	return l, more, err
}

func (b mortalBucket) Delete(ctx context.Context, keys []string) error {
	return b.m.do("delete "+keys[0], func() error { return b.Bucket.Delete(ctx, keys) })
}

type mortalStore struct {
	*MemManifests
	m *mortal
}

func (s mortalStore) Load(ctx context.Context, id [16]byte, p int32) (h []byte, rev int64, err error) {
	err = s.m.do("load", func() error { h, rev, err = s.MemManifests.Load(ctx, id, p); return err })
	return h, rev, err
}

func (s mortalStore) Commit(ctx context.Context, r CommitRequest) (rev int64, err error) {
	err = s.m.do("commit", func() error { rev, err = s.MemManifests.Commit(ctx, r); return err })
	return rev, err
}

func (s mortalStore) Delete(ctx context.Context, id [16]byte, p int32, rev int64) error {
	return s.m.do("delete head", func() error { return s.MemManifests.Delete(ctx, id, p, rev) })
}

func (s mortalStore) DropTombstone(ctx context.Context, id [16]byte) error {
	return s.m.do("drop tombstone", func() error { return s.MemManifests.DropTombstone(ctx, id) })
}

func (s mortalStore) Deleted(ctx context.Context) (l []Tombstone, err error) {
	err = s.m.do("deleted", func() error { l, err = s.MemManifests.Deleted(ctx); return err })
	return l, err
}

// A process dies at every single step of seal, upload, verify, spill, commit,
// read back, retire, publish, collect and bury; the next one goes on. Nothing is
// lost, nothing is there twice, nothing is left (F38, K1, K9, I7, I8).
func TestCrashEverywhere(t *testing.T) {
	step := 9
	if os.Getenv("VARVE_LONG") != "" {
		step = 1
	}
	steps := map[string]int{}
	total := 0
	for at := 1; ; at += step {
		done := false
		for _, after := range []bool{false, true} {
			inWorld(t, func(t *testing.T, w *world) {
				m := &mortal{at: at, after: after}
				crashLife(t, w, m)
				done = !m.dead
				if os.Getenv("VARVE_TRACE") != "" {
					fmt.Println("crash at", at, after, m.where, m.ops)
				}
				if w := strings.Fields(m.where); len(w) > 1 {
					steps[w[0]+" "+w[1]+" "+kindOf(m.where)]++
				}
			})
		}
		if t.Failed() || done {
			break
		}
		total += 2
	}
	t.Logf("%d crashes: %v", total, steps)
}

func kindOf(where string) string {
	for _, k := range []string{"data/", "page/", "state/", "cluster"} {
		if strings.Contains(where, k) {
			return k
		}
	}
	return ""
}

func crashLife(t *testing.T, w *world, m *mortal) {
	busy, slow, idle, gone := newLog(1, 0), newLog(2, 0), newLog(2, 1), newLog(3, 0)
	busy.policy.RetentionBytes = 12_000
	logs := []*fakeLog{busy, slow, idle}
	w.opts.OwnBytes, w.opts.SweepInterval = 2000, 20*time.Second
	store := w.store

	run := func(x *Tier) {
		for i := range 10 {
			busy.plain(t, 2, 2, 800)
			slow.plain(t, 1, 2, 20)
			if i%4 == 0 {
				idle.plain(t, 1, 1, 10)
			}
			if i < 2 && gone.leading {
				gone.plain(t, 1, 1, 100)
			}
			time.Sleep(2 * time.Second)
			if i == 5 && gone.leading {
				gone.mu.Lock()
				gone.leading = false
				gone.mu.Unlock()
				x.Resign(gone.id, 0)
				store.DeleteTopic(gone.id, gone.name, 1)
			}
			if i == 7 {
				ctx, cancel := context.WithTimeout(bg, 3*time.Second)
				x.AdvanceLogStart(ctx, slow.id, 0, slow.hw/2+1) // whether it answers or not
				cancel()
			}
		}
	}
	w.opts.Bucket, w.opts.Manifests = mortalBucket{w.once, m}, mortalStore{store, m}
	x := w.open()
	x.limits = manifest.Limits{Tail: 3, Keep: 1, Page: 3, Pages: 1, Index: 1000}
	for _, f := range append(logs, gone) {
		store.SetEpoch(f.id, f.index, f.epoch)
		if s, err := x.Lead(bg, f); err == nil {
			f.Committed(s)
		}
	}
	run(x)
	time.Sleep(20 * time.Second)
	x.Close()
	// What was acknowledged is in the local log or in a committed object (I1).
	for _, f := range logs {
		f.newEpoch()
	}
	w.opts.Bucket, w.opts.Manifests = w.once, store
	y := w.open()
	y.limits = x.limits
	w.lead(y, logs...)
	for _, f := range logs {
		_, local, _, _ := f.Extent() // before the state: uploads are going on
		if s, _ := y.State(f.id, f.index); local > max(s.RemoteEnd, s.LogStart) {
			t.Fatalf("crash %s: %s reclaimed up to %d, remote end %d", m.where, f.name, local, s.RemoteEnd)
		}
	}
	busy.plain(t, 1, 1, 10)
	slow.plain(t, 1, 1, 10)
	w.drained(y, logs...)
	time.Sleep(90 * time.Second)
	synctest.Wait()
	a := w.check(y, logs...)
	if len(a.Unnamed) > 0 {
		t.Fatalf("crash %s: left in the bucket: %v", m.where, a.Unnamed)
	}
	if gone.leading == false && len(store.dead) > 0 {
		t.Fatalf("crash %s: tombstone left", m.where)
	}
	if err := y.Healthy(); err != nil {
		t.Fatalf("crash %s: %v", m.where, err)
	}
}

// F34: a PUT that succeeds after its client gave up, or hangs.
func TestAmbiguousPut(t *testing.T) {
	for _, kind := range []objstore.Kind{objstore.FailAfter, objstore.HangAfter, objstore.FailBefore, objstore.Hang} {
		inWorld(t, func(t *testing.T, w *world) {
			x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
			w.lead(x, f, g)
			w.bucket.Inject(objstore.Fault{Op: objstore.OpPut, Key: "data/", Kind: kind, Count: 5})
			for range 5 {
				f.plain(t, 1, 10, 100)
				g.plain(t, 1, 10, 100)
				time.Sleep(2 * time.Second)
			}
			w.drained(x, f, g)
			w.clean(x, f, g)
		})
	}
}

// liar is a store that acknowledges what it has not stored as it was given.
type liar struct {
	objstore.Bucket
	mu   sync.Mutex
	lies int // still to be told
	make func(b []byte) []byte
}

func (l *liar) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	l.mu.Lock()
	lie := l.lies > 0 && (strings.HasPrefix(key, manifest.DataPrefix) || strings.HasPrefix(key, manifest.PagePrefix))
	if lie {
		l.lies--
	}
	l.mu.Unlock()
	if !lie {
		return l.Bucket.Put(ctx, key, body, size, crc)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if b = l.make(b); b == nil {
		return nil
	}
	return l.Bucket.Put(ctx, key, strings.NewReader(string(b)), int64(len(b)), objstore.CRC32C(b))
}

// F35: the store says that it has an object, or a page, and has nothing, less, or
// other bytes. The log keeps its records until a look at the bucket says so too.
func TestLyingPuts(t *testing.T) {
	for name, lie := range map[string]func(b []byte) []byte{
		"nothing":       func([]byte) []byte { return nil },
		"less":          func(b []byte) []byte { return b[:len(b)-1] },
		"more":          func(b []byte) []byte { return append(b, 0) },
		"a flipped bit": func(b []byte) []byte { b[len(b)-40] ^= 1; return b },
	} {
		inWorld(t, func(t *testing.T, w *world) {
			l := &liar{Bucket: w.once, make: lie}
			w.opts.Bucket = l
			x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
			x.limits = manifest.Limits{Tail: 2, Keep: 1, Page: 3, Pages: 2, Index: 1000}
			w.lead(x, f, g)
			for range 10 {
				l.mu.Lock()
				l.lies = 2
				l.mu.Unlock()
				f.plain(t, 1, 10, 100)
				g.plain(t, 1, 10, 100)
				w.drained(x, f, g)
				w.check(x, f, g)
			}
			l.mu.Lock()
			if l.lies == 2 {
				t.Errorf("%s: no lie was told", name)
			}
			l.lies = 0
			l.mu.Unlock()
			w.clean(x, f, g)
		})
	}
}

// The metadata store loses answers: the commit was applied, was not, or is
// applied later, after reads that lack it.
func TestAmbiguousCommit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		n := 0
		w.store.Hook = func(op string, id [16]byte, p int32, after bool) error {
			if op != "commit" {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			n++
			if n%3 != 0 {
				return fmt.Errorf("%w: answer lost", ErrAmbiguous)
			}
			return nil
		}
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		for range 10 {
			f.plain(t, 1, 10, 100)
			time.Sleep(2 * time.Second)
		}
		if _, err := x.AdvanceLogStart(bg, f.id, 0, 15); err != nil {
			t.Error(err)
		}
		w.drained(x, f)
		w.clean(x, f)
	})
}

type delayedStore struct {
	*MemManifests
	mu    sync.Mutex
	delay int // commits still to be delayed
}

func (s *delayedStore) Commit(ctx context.Context, r CommitRequest) (int64, error) {
	s.mu.Lock()
	late := s.delay > 0
	if late {
		s.delay--
	}
	s.mu.Unlock()
	if !late {
		return s.MemManifests.Commit(ctx, r)
	}
	time.AfterFunc(3*time.Second, func() { s.MemManifests.Commit(bg, r) })
	return 0, ErrAmbiguous
}

func TestCommitAppliedLate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &delayedStore{MemManifests: w.store}
		w.opts.Manifests = s
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		for i := range 10 {
			if i%3 == 0 {
				s.mu.Lock()
				s.delay = 4
				s.mu.Unlock()
			}
			f.plain(t, 1, 10, 100)
			time.Sleep(2 * time.Second)
		}
		w.drained(x, f)
		w.clean(x, f)
		// One that is applied after its leader is gone, and after the next one
		// loaded the head: it loses its place or has it, nothing in between.
		s.mu.Lock()
		s.delay = 100
		s.mu.Unlock()
		f.plain(t, 1, 10, 100)
		time.Sleep(1100 * time.Millisecond)
		x.Close()
		s.mu.Lock()
		s.delay = 0
		s.mu.Unlock()
		f.mu.Lock()
		f.epoch++
		f.mu.Unlock()
		y := w.open()
		if st, err := y.Lead(bg, f); err != nil { // the epoch key has not moved yet
			t.Fatal(err)
		} else {
			f.Committed(st)
		}
		time.Sleep(4 * time.Second)
		w.store.SetEpoch(f.id, 0, f.epoch)
		w.lead(y, f)
		f.plain(t, 1, 10, 100)
		w.drained(y, f)
		w.clean(y, f)
	})
}

// F33: 30 % and then 100 % of requests are turned away, for long. The backlog
// drains by itself, without a storm of requests meanwhile.
func TestOutage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes = 20_000
		x, f, slow := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, slow)
		remove := w.bucket.Inject(objstore.Fault{Kind: objstore.Throttle, Prob: 0.3})
		for range 30 {
			f.plain(t, 5, 10, 100)
			slow.plain(t, 1, 1, 100)
			time.Sleep(2 * time.Second)
		}
		remove()
		w.drained(x, f, slow)
		w.bucket.SetOutage(true)
		calls := w.bucket.Calls(objstore.OpPut)
		for range 300 {
			f.plain(t, 1, 10, 100)
			time.Sleep(2 * time.Second)
		}
		if n := w.bucket.Calls(objstore.OpPut) - calls; n > 3000 || n < 100 {
			t.Errorf("%d PUTs in ten minutes of outage", n)
		}
		s, _ := x.State(f.id, 0)
		if s.LastError == nil || s.UploadLag < 9*time.Minute || x.Healthy() == nil {
			t.Errorf("%+v, %v", s, x.Healthy())
		}
		w.bucket.SetOutage(false)
		w.drained(x, f, slow)
		time.Sleep(time.Minute) // the next sweep
		if s, _ := x.State(f.id, 0); s.LastError != nil || x.Healthy() != nil {
			t.Errorf("%+v, %v", s, x.Healthy())
		}
		w.clean(x, f, slow)
	})
}

// F33: the pauses between attempts double up to their bound, and those of many brokers
// that failed at one moment end at moments of their own.
func TestBackoff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		o := &Options{MinBackoff: 200 * time.Millisecond, MaxBackoff: 30 * time.Second}
		brokers := make([]*pauser, 50)
		for i := range brokers {
			brokers[i] = &pauser{}
		}
		err := fmt.Errorf("put: %w", objstore.ErrThrottled)
		for fails := range 12 {
			want := min(o.MinBackoff<<fails, o.MaxBackoff)
			now := time.Now()
			var ends []time.Duration
			for _, p := range brokers {
				if !p.begin(now) {
					t.Fatalf("after %d failures: no attempt is allowed when the pause is over", fails)
				}
				if fails > 0 && p.begin(now) {
					t.Fatalf("after %d failures: two attempts at a time", fails)
				}
				p.end(err, o)
				d := p.until.Sub(now)
				if d < want/2 || d > want*3/2 {
					t.Errorf("after %d failures: a pause of %v, want about %v", fails+1, d, want)
				}
				if p.begin(now.Add(d-1)) || p.running != 0 {
					t.Fatalf("after %d failures: an attempt within the pause", fails+1)
				}
				ends = append(ends, d)
			}
			slices.Sort(ends)
			if spread := ends[len(ends)-1] - ends[0]; len(slices.Compact(ends)) < 45 || spread < want/2 {
				t.Errorf("after %d failures: the pauses of 50 brokers lie within %v", fails+1, spread)
			}
			time.Sleep(2 * want)
		}
		// A success ends it at once, and another failure begins anew.
		p := brokers[0]
		if !p.begin(time.Now()) {
			t.Fatal("no attempt")
		}
		p.end(nil, o)
		for range 2 {
			if !p.begin(time.Now()) {
				t.Error("there is a pause after a success")
			}
		}
		p.end(err, o)
		if d := time.Until(p.until); d > o.MinBackoff*3/2 {
			t.Errorf("a pause of %v after the first failure", d)
		}
	})
}

// unfaithful stores something else than it is given, and says that all is well.
type unfaithful struct {
	objstore.Bucket
	prefix string
	mu     sync.Mutex
	lies   func([]byte) []byte // nil: none; of nil nothing is stored
	told   int
}

func (u *unfaithful) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	u.mu.Lock()
	lies := u.lies
	if lies != nil && strings.HasPrefix(key, u.prefix) {
		u.told++
	} else {
		lies = nil
	}
	u.mu.Unlock()
	if lies == nil {
		return u.Bucket.Put(ctx, key, body, size, crc)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if b = lies(b); b == nil {
		return nil
	}
	return u.Bucket.Put(ctx, key, bytes.NewReader(b), int64(len(b)), objstore.CRC32C(b))
}

// F35: what was stored is looked at before a manifest names it, and nothing
// leaves the log for an object that is not there as planned.
func TestUnfaithfulPut(t *testing.T) {
	for name, lie := range map[string]func([]byte) []byte{
		"a byte short":      func(b []byte) []byte { return b[:len(b)-1] },
		"a byte long":       func(b []byte) []byte { return append(b, 0) },
		"nothing":           func([]byte) []byte { return nil },
		"another last byte": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"zeros at the end":  func(b []byte) []byte { clear(b[len(b)-tailSize:]); return b },
	} {
		for _, prefix := range []string{"data/", "page/"} {
			inWorld(t, func(t *testing.T, w *world) {
				u := &unfaithful{Bucket: w.once, prefix: prefix}
				w.opts.Bucket = u
				x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
				x.limits = manifest.Limits{Tail: 3, Keep: 1, Page: 3, Pages: 1, Index: 1000}
				w.lead(x, f, g)
				f.plain(t, 1, 10, 100)
				w.drained(x, f)
				u.mu.Lock()
				u.lies = lie
				u.mu.Unlock()
				lied := func() int {
					u.mu.Lock()
					defer u.mu.Unlock()
					return u.told
				}
				for i := 0; lied() == 0; i++ {
					if i == 100 {
						s, _ := x.State(f.id, 0)
						t.Fatalf("%s for %s: nothing was stored: %+v", name, prefix, s)
					}
					f.plain(t, 1, 10, 100)
					g.plain(t, 1, 10, 100)
					time.Sleep(2 * time.Second)
				}
				before, _ := x.State(f.id, 0)
				f.plain(t, 1, 10, 100)
				time.Sleep(time.Minute)
				s, _ := x.State(f.id, 0)
				if s.RemoteEnd != before.RemoteEnd || s.LastError == nil {
					t.Errorf("%s for %s: remote end %d, then %d, last error %v", name, prefix, before.RemoteEnd, s.RemoteEnd, s.LastError)
				}
				if _, local, _, _ := f.Extent(); local > s.RemoteEnd {
					t.Errorf("%s for %s: the log begins at %d, the remote end is %d", name, prefix, local, s.RemoteEnd)
				}
				f.compare(t, w.open(), 0, s.RemoteEnd, 1000)
				if x.Healthy() == nil {
					t.Errorf("%s for %s: no alarm", name, prefix)
				}
				u.mu.Lock()
				u.lies = nil
				u.mu.Unlock()
				w.drained(x, f, g)
				w.check(x, f, g)
			})
		}
	}
}

// F36: answers to reads that are cut, shifted, flipped, or of nothing. They are
// noticed; a second request helps if the store recovers; wrong bytes are never
// served.
func TestLyingReads(t *testing.T) {
	for _, kind := range []objstore.Kind{objstore.Truncate, objstore.ShortBody, objstore.WrongRange, objstore.Flip, objstore.Missing, objstore.FailBefore} {
		inWorld(t, func(t *testing.T, w *world) {
			w.opts.BlockBytes, w.opts.ChunkBytes, w.opts.TargetBytes = 2000, 4000, 20_000
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			f.plain(t, 50, 10, 100)
			w.drained(x, f)
			y := w.open() // nothing cached
			w.bucket.Inject(objstore.Fault{Op: objstore.OpGet, Key: "data/", Kind: kind, Prob: 0.3})
			served := 0
			for _, b := range f.batches {
				r, err := y.Read(bg, f.id, 0, b.h.BaseOffset, 1)
				if err != nil {
					continue
				}
				if string(r.Chunks[0]) != string(b.raw) {
					t.Fatalf("%v: wrong bytes at %d", kind, b.h.BaseOffset)
				}
				served++
				r.Release()
			}
			if served < 10 {
				t.Errorf("%v: %d of 50 reads served", kind, served)
			}
			w.bucket.Clear()
			f.compare(t, y, 0, f.hw, 5000)
			// Bytes that are really damaged stay an error, and an alarm.
			damage := func(key string, b []byte) {
				if err := w.mem.Delete(bg, []string{key}); err != nil {
					t.Fatal(err)
				}
				if err := w.mem.Put(bg, key, strings.NewReader(string(b)), int64(len(b)), objstore.CRC32C(b)); err != nil {
					t.Fatal(err)
				}
			}
			list, _ := listAll(bg, w.mem, "data/")
			for _, o := range list {
				raw, _ := objstore.ReadRange(bg, w.mem, o.Key, 0, o.Size)
				raw[200] ^= 1
				damage(o.Key, raw)
			}
			z := w.open()
			bad := 0
			for _, b := range f.batches {
				r, err := z.Read(bg, f.id, 0, b.h.BaseOffset, 1)
				if err != nil {
					if !errors.Is(err, ErrCorrupt) {
						t.Fatal(err)
					}
					bad++
				} else if string(r.Chunks[0]) != string(b.raw) {
					t.Fatalf("wrong bytes at %d", b.h.BaseOffset)
				} else {
					r.Release()
				}
			}
			if bad == 0 || w.counts.get(&w.counts.corrupt) == 0 {
				t.Error("damage was not noticed")
			}
			if a, err := Check(bg, w.mem, w.store, AuditOptions{Data: true}); err != nil || len(a.Problems) == 0 {
				t.Errorf("audit: %+v %v", a, err)
			}
		})
	}
}

// An object that was replaced by another for the same offsets while a reader had
// the old head: the manifest is read again and the read goes on.
func TestObjectVanishes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.ViewAge = time.Hour
		w.opts.SweepInterval = time.Hour // a sweep would show the leader the new head before its commit
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 5, 10, 100)
		w.drained(x, f)
		y := w.open()
		f.compare(t, y, 0, 10, 1) // y believes this head for an hour
		// The compaction worker's part: same section, new name.
		raw, rev, _ := w.store.Load(bg, f.id, 0)
		h, _ := manifest.DecodeHead(raw)
		old := h.Tail[0]
		next := old
		next.Kind, next.Suffix = manifest.Rewritten, newSuffix()
		size, _ := w.mem.Head(bg, old.Key(f.id, 0))
		body, _ := objstore.ReadRange(bg, w.mem, old.Key(f.id, 0), 0, size)
		if err := w.mem.Put(bg, next.Key(f.id, 0), strings.NewReader(string(body)), size, objstore.CRC32C(body)); err != nil {
			t.Fatal(err)
		}
		res, err := h.Apply(manifest.Edit{Epoch: h.Epoch, Replace: &manifest.Replace{Old: []manifest.Entry{old}, New: []manifest.Entry{next}}}, manifest.Input{Rev: rev, NewSuffix: newSuffix})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.Commit(bg, CommitRequest{TopicID: f.id, Rev: rev, LeaderEpoch: 1, Head: res.Head.Encode()}); err != nil {
			t.Fatal(err)
		}
		w.mem.Delete(bg, []string{old.Key(f.id, 0)})
		y.meta = newMeta(1 << 20)
		f.compare(t, y, 0, f.hw, 1000)
		// The leader's next commit finds the head moved and rebases.
		f.plain(t, 5, 10, 100)
		w.drained(x, f)
		if w.counts.get(&w.counts.conflicts) == 0 {
			t.Error("no conflict")
		}
		w.clean(x, f)
	})
}

// F37: listings that are stale, empty or incomplete change nothing but how much
// garbage is found.
func TestLyingLists(t *testing.T) {
	for _, kind := range []objstore.Kind{objstore.StaleList, objstore.EmptyList, objstore.DropFromList} {
		inWorld(t, func(t *testing.T, w *world) {
			x, f := w.open(), newLog(1, 0)
			f.policy.RetentionBytes = 5000
			w.bucket.Inject(objstore.Fault{Op: objstore.OpList, Kind: kind})
			w.lead(x, f)
			for range 60 {
				f.plain(t, 1, 10, 100)
				time.Sleep(3 * time.Second)
			}
			w.drained(x, f)
			w.check(x, f)
			w.bucket.Clear()
			w.clean(x, f)
		})
	}
}

// F39: a deposed leader that does not know it, beside the new one.
func TestTwoUploaders(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, y := w.open(), w.open()
		old, now := newLog(1, 0), newLog(1, 0)
		w.lead(x, old)
		b := 0
		both := func() {
			b++
			old.plain(t, 1, 10, 100)
			now.mu.Lock()
			now.batches, now.hw = append(now.batches[:0:0], old.batches...), old.hw
			now.mu.Unlock()
		}
		for range 5 {
			both()
			time.Sleep(2 * time.Second)
		}
		now.epoch, now.local = 2, 0
		now.lin = old.lin.Assign(2, now.hw)
		// Both lead for a while; only the epoch key decides.
		w.lead(y, now)
		for range 20 {
			both()
			time.Sleep(time.Second)
		}
		w.drained(y, now)
		if w.counts.get(&w.counts.fenced) == 0 {
			t.Error("nobody was fenced")
		}
		old.set(func(p *Policy) { p.RetentionBytes = 1 }) // nor may the old one delete
		time.Sleep(time.Minute)
		x.Resign(old.id, 0)
		w.clean(y, now)
		if s, _ := y.State(now.id, 0); s.LogStart != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// F42: credentials revoked, the bucket gone. An alarm stands, and when they are
// back everything goes on.
func TestDenied(t *testing.T) {
	for _, kind := range []objstore.Kind{objstore.Deny, objstore.NoBucket} {
		inWorld(t, func(t *testing.T, w *world) {
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			f.plain(t, 1, 10, 100)
			w.drained(x, f)
			w.bucket.Inject(objstore.Fault{Kind: kind})
			f.plain(t, 1, 10, 100)
			time.Sleep(10 * time.Minute)
			err := x.Healthy()
			if !errors.Is(err, objstore.ErrDenied) && !errors.Is(err, objstore.ErrNoBucket) {
				t.Errorf("alarm: %v", err)
			}
			if s, _ := x.State(f.id, 0); s.RemoteEnd != 10 {
				t.Errorf("%+v", s)
			}
			w.bucket.Clear()
			w.drained(x, f)
			w.clean(x, f)
			if err := x.Healthy(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Damaged records are not uploaded, and keep nobody else from it.
func TestDamagedLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, g)
		f.plain(t, 3, 1, 100)
		g.plain(t, 1, 1, 100)
		f.damage(1)
		time.Sleep(10 * time.Second)
		if s, _ := x.State(f.id, 0); s.LastError == nil || s.RemoteEnd != 0 {
			t.Errorf("%+v", s)
		}
		if s, _ := x.State(g.id, 0); s.RemoteEnd != 1 {
			t.Errorf("%+v", s)
		}
		if x.Healthy() == nil {
			t.Error("no alarm")
		}
		f.damage(1)
		w.drained(x, f, g)
		w.clean(x, f, g)
	})
}

// The metadata store is away: uploads wait at the commit, and are not repeated.
func TestStoreAway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var away atomic.Bool
		w.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
			if away.Load() {
				return errInjected
			}
			return nil
		}
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 1, 10, 100)
		w.drained(x, f)
		away.Store(true)
		puts := w.bucket.Calls(objstore.OpPut)
		for range 100 {
			f.plain(t, 1, 10, 100)
			time.Sleep(3 * time.Second)
		}
		if n := w.bucket.Calls(objstore.OpPut) - puts; n > 3 {
			t.Errorf("%d PUTs", n)
		}
		f.compare(t, x, 0, 10, 1000) // reading needs no metadata store
		away.Store(false)
		w.drained(x, f)
		w.clean(x, f)
	})
}

// Everything at once, from a seed.
func TestRandomFaults(t *testing.T) {
	seeds := uint64(6)
	if os.Getenv("VARVE_LONG") != "" {
		seeds = 200
	}
	for seed := range seeds {
		inWorld(t, func(t *testing.T, w *world) {
			rng := rand.New(rand.NewPCG(seed, 7))
			w.opts.TargetBytes, w.opts.OwnBytes = 6000, 2000
			w.opts.BlockBytes, w.opts.ChunkBytes = 1000, 2000
			var logs []*fakeLog
			for i := range int32(6) {
				f := newLog(byte(1+i%3), i)
				if i%2 == 0 {
					f.policy.RetentionBytes = 8000
				}
				logs = append(logs, f)
			}
			var smu sync.Mutex
			srng := rand.New(rand.NewPCG(seed, 8))
			calm := false
			w.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
				smu.Lock()
				defer smu.Unlock()
				if calm || srng.IntN(10) > 0 {
					return nil
				}
				if op == "commit" && after {
					return ErrAmbiguous
				}
				if !after {
					return errInjected
				}
				return errInjected
			}
			limits := manifest.Limits{Tail: 3, Keep: 1, Page: 4, Pages: 2, Index: 1000}
			start := func() *Tier {
				x := w.open()
				x.limits = limits
				for _, f := range logs {
					f.newEpoch()
					w.store.SetEpoch(f.id, f.index, f.epoch)
					for {
						s, err := x.Lead(bg, f)
						if err == nil {
							f.Committed(s)
							break
						}
						time.Sleep(100 * time.Millisecond)
					}
				}
				return x
			}
			x := start()
			kinds := map[objstore.Op][]objstore.Kind{
				objstore.OpPut:    {objstore.FailBefore, objstore.FailAfter, objstore.Hang, objstore.HangAfter, objstore.Throttle, objstore.Delay},
				objstore.OpGet:    {objstore.FailBefore, objstore.Truncate, objstore.ShortBody, objstore.WrongRange, objstore.Flip, objstore.Hang, objstore.Delay},
				objstore.OpHead:   {objstore.FailBefore, objstore.Throttle},
				objstore.OpList:   {objstore.StaleList, objstore.EmptyList, objstore.DropFromList, objstore.FailBefore},
				objstore.OpDelete: {objstore.FailBefore, objstore.FailAfter, objstore.Hang},
			}
			ops := objstore.Ops()
			for range 150 {
				f := logs[rng.IntN(len(logs))]
				f.plain(t, 1+rng.IntN(4), 1+rng.IntN(5), rng.IntN(600))
				switch rng.IntN(12) {
				case 0, 1, 2, 3:
					op := ops[rng.IntN(len(ops))]
					w.bucket.Inject(objstore.Fault{Op: op, Kind: kinds[op][rng.IntN(len(kinds[op]))], Count: 1 + rng.IntN(5), Prob: 0.5, Delay: time.Duration(rng.IntN(8000)) * time.Millisecond})
				case 4:
					w.bucket.SetOutage(true)
				case 5, 6:
					w.bucket.SetOutage(false)
				case 7:
					ctx, cancel := context.WithTimeout(bg, time.Duration(rng.IntN(3000))*time.Millisecond)
					x.AdvanceLogStart(ctx, f.id, f.index, rng.Int64N(f.hw+1))
					cancel()
				case 8:
					f.newEpoch() // led again in the next epoch
					w.store.SetEpoch(f.id, f.index, f.epoch)
					if s, err := x.Lead(bg, f); err == nil {
						f.Committed(s)
					}
				case 9:
					if rng.IntN(4) == 0 {
						if rng.IntN(2) == 0 {
							x.Close()
						}
						x = start()
					}
				}
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			}
			w.bucket.Clear()
			smu.Lock()
			calm = true
			smu.Unlock()
			x = start()
			for _, f := range logs {
				f.plain(t, 1, 1, 1) // a healthy last phase
			}
			w.drained(x, logs...)
			w.clean(x, logs...)
			if err := x.Healthy(); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		})
	}
}

// Real time, a real directory, readers and writers at once.
func TestFileBucket(t *testing.T) {
	bucket, err := objstore.OpenFile(t.TempDir(), true)
	if err != nil {
		t.Fatal(err)
	}
	store := NewMemManifests()
	x, err := Open(Options{Bucket: bucket, Manifests: store, ClusterID: "c", FlushInterval: 30 * time.Millisecond, TargetBytes: 200_000,
		CollectInterval: 20 * time.Millisecond, RetentionInterval: 20 * time.Millisecond, SweepInterval: 100 * time.Millisecond,
		PublishInterval: 20 * time.Millisecond, FullInterval: 100 * time.Millisecond, Grace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	var logs []*fakeLog
	for i := range int32(8) {
		f := newLog(1, i)
		if i == 7 {
			f.policy.RetentionBytes = 100_000
		}
		if _, err := x.Lead(bg, f); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, f)
	}
	var wg sync.WaitGroup
	for i, f := range logs {
		wg.Go(func() {
			for range 20 {
				f.plain(t, 1+i, 10, 1000)
				time.Sleep(10 * time.Millisecond)
				if s, ok := x.State(f.id, f.index); ok && s.RemoteEnd > s.RemoteStart {
					r, err := x.Read(bg, f.id, f.index, s.RemoteEnd-1, 1<<20)
					if err == nil {
						r.Release()
					} else if !errors.Is(err, ErrOutOfRange) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, f := range logs {
		for {
			s, _ := x.State(f.id, f.index)
			if s.RemoteEnd == f.end() {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	for _, f := range logs[:7] {
		f.compare(t, x, 0, f.hw, 300_000)
	}
	// What was looked for where the log has let go of it meanwhile is found elsewhere by the next look.
	for end := time.Now().Add(10 * time.Second); x.Healthy() != nil && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := x.Healthy(); err != nil {
		t.Error(err)
	}
	a, err := Check(bg, bucket, store, AuditOptions{Data: true})
	if err != nil || a.Err() != nil {
		t.Errorf("%v %+v", err, a)
	}
}

// The metadata store was wiped, or restored from before the topics existed, while
// its cluster's name is the same: then nothing is garbage.
func TestWipedStore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, g)
		f.plain(t, 1, 1, 10)
		g.plain(t, 5000, 1, 1000)
		w.drained(x, f, g)
		time.Sleep(10 * time.Second)
		before := w.objects()
		w.store.mu.Lock()
		clear(w.store.heads)
		clear(w.store.epochs)
		w.store.mu.Unlock()
		x.Resign(f.id, 0)
		time.Sleep(10 * time.Minute)
		x.Close()
		y := w.open()
		time.Sleep(10 * time.Minute)
		if n := w.objects(); n != before {
			t.Errorf("%d of %d objects left", n, before)
		}
		if y.Healthy() == nil {
			t.Error("no alarm")
		}
	})
}
