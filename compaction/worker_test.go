package compaction

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// scene is a world with one leader, in which a test tells a story.
type scene struct {
	*world
	rnd    *rand.Rand
	skew   time.Duration
	broker *process
	leader *tiering.Tier
}

// inScene runs f in a bubble of fake time.
func inScene(t *testing.T, f func(t *testing.T, s *scene)) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{world: newWorld(t), rnd: rand.New(rand.NewPCG(1, 1))}
		s.label = t.Name()
		s.start()
		defer func() { s.leader.Close() }()
		f(t, s)
	})
}

// start opens the leader's Tier, again if there was one.
func (s *scene) start() {
	if s.leader != nil {
		s.leader.Close()
	}
	s.broker = &process{w: s.world}
	s.leader = s.tier(s.broker, nil)
	for _, p := range s.parts {
		p.newEpoch()
		p.lead(s.leader)
	}
}

func (s *scene) now() time.Time { return time.Now().Add(s.skew) }

// compacted is a policy under which everything dirty is worth a round.
var compacted = picker.Policy{Compact: true, DeleteRetention: 1000, MaxLag: math.MaxInt64, RetentionMs: -1, RetentionBytes: -1}

var kept = picker.Policy{MaxLag: math.MaxInt64, RetentionMs: -1, RetentionBytes: -1}

func (s *scene) lead(id byte, policy picker.Policy) *partition {
	p := s.partition(id, 0, policy)
	p.lead(s.leader)
	return p
}

// single makes every object a group of its own.
var single = picker.Limits{Target: 1, Fanin: 100}

func (s *scene) work(limits picker.Limits) *workers {
	return s.worker(s.now, func(o *Options, _ *tiering.Options) { o.Limits = limits })
}

// put writes one batch, of "key=value", and "key" for a tombstone.
func (s *scene) put(p *partition, pairs ...string) {
	s.write(p, nil, pairs...)
}

func (s *scene) write(p *partition, x *txn, pairs ...string) {
	b, f := batch.NewBuilder(), &fact{txn: x}
	if x != nil {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = x.pid, 0, int32(p.end()), true
	}
	for _, kv := range pairs {
		r := record{offset: p.end() + int64(len(f.records)), ts: time.Now().UnixMilli()}
		k, v, ok := strings.Cut(kv, "=")
		if r.key = []byte(k); ok {
			r.value = []byte(v)
		}
		b.Add(r.ts, r.key, r.value)
		f.records = append(f.records, r)
	}
	raw, err := b.Build()
	if err != nil {
		s.fatalf("%v", err)
	}
	p.append(f, raw, s.now().UnixMilli())
}

func (s *scene) begin(p *partition, pid int64) *txn {
	x := &txn{pid: pid, first: p.end(), last: math.MaxInt64}
	p.txns = append(p.txns, x)
	return x
}

func (s *scene) end(p *partition, x *txn, commit bool) {
	x.last, x.aborted = p.end(), !commit
	p.append(&fact{txn: x, commit: commit}, batch.Marker(x.pid, 0, commit, 1, time.Now().UnixMilli()), s.now().UnixMilli())
}

// aborted writes three objects: an aborted transaction begins in the first and ends in the second.
func (s *scene) aborted(p *partition) {
	x := s.begin(p, 7)
	s.write(p, x, "a=aborted")
	s.put(p, "b=1")
	s.upload()
	s.end(p, x, false)
	s.put(p, "c=1")
	s.upload()
	y := s.begin(p, 7) // so that the producer is known from here
	s.write(p, y, "d=1")
	s.end(p, y, true)
	s.upload()
}

// upload waits until everything is in the bucket.
func (s *scene) upload() {
	s.t.Helper()
	time.Sleep(flush + time.Second)
	for _, p := range s.parts {
		if !p.dropped {
			p.drained(s.leader)
		}
	}
}

// three uploads objects in which later ones have newer values of the keys of earlier ones, and one key is deleted.
func (s *scene) three(ps ...*partition) {
	s.t.Helper()
	for i := range 3 {
		for _, p := range ps {
			s.put(p, fmt.Sprintf("a=%d", i), fmt.Sprintf("b%d=x", i))
			if i == 1 {
				s.put(p, "b0")
			}
		}
		s.upload()
	}
}

// round is a round that nothing happened to.
func (s *scene) round(k *workers) int {
	s.t.Helper()
	n, err := k.Round(bg, k.lease)
	if failed := k.failures(); err != nil || len(failed) > 0 {
		s.fatalf("%v, %v", err, failed)
	}
	return n
}

// finish does all there is to do.
func (s *scene) finish(k *workers) {
	s.t.Helper()
	for i := 0; s.round(k) > 0; i++ {
		if i > 50 {
			s.fatalf("there is always something to do: %+v", k.done)
		}
	}
}

func (s *scene) verifyAll() {
	s.t.Helper()
	for _, p := range s.parts {
		if !p.dropped {
			for range 4 {
				p.verify(s.leader, s.rnd, s.now().UnixMilli(), true)
			}
		}
	}
}

// settled waits until garbage is collected, and looks at everything.
func (s *scene) settled() {
	s.t.Helper()
	time.Sleep(6 * time.Minute)
	s.verifyAll()
	if a := s.audit(); len(a.Unnamed) > 0 {
		s.fatalf("left in the bucket: %v", a.Unnamed)
	}
	if err := s.leader.Healthy(); err != nil {
		s.fatalf("%v", err)
	}
}

// entries are those of a partition that are not dead.
func (s *scene) live(p *partition) (list []manifest.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := p.head()
	all, _ := s.world.entries(p, h)
	for _, e := range all {
		if !h.Dead(e) {
			list = append(list, e)
		}
	}
	return list
}

// pauseAt makes a worker stop at its next request of a kind, until f is over.
func (k *workers) pauseAt(kind string, f func()) {
	k.p.mu.Lock()
	defer k.p.mu.Unlock()
	hit := false
	k.p.fail = func(what string) (error, error) {
		if !hit && strings.HasPrefix(what, kind) {
			hit = true
			k.p.mu.Unlock()
			f()
			k.p.mu.Lock()
		}
		return nil, nil
	}
}

// failNext makes a worker's next n requests of a kind fail, before they have an effect or after it.
func (k *workers) failNext(kind string, n int, after bool) {
	k.p.mu.Lock()
	defer k.p.mu.Unlock()
	k.p.fail = func(what string) (error, error) {
		if n == 0 || !strings.HasPrefix(what, kind) {
			return nil, nil
		}
		n--
		err := errInjected
		if strings.Contains(what, "/") {
			err = objstore.ErrUnavailable
		}
		if after {
			return nil, err
		}
		return err, nil
	}
}

func (p *process) count(kind string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		if strings.HasPrefix(s, kind) {
			n++
		}
	}
	return n
}

func (p *process) tracing() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trace, p.seen = true, nil
}

// A worker dies before and after every request of a life that has a round of three groups, a purge and a merge, and what
// it publishes and deletes. The next one goes on, and comes to the same.
func TestCrashEverywhere(t *testing.T) {
	type end struct {
		entries  [2]int
		readable [2]int
	}
	life := func(t *testing.T, at int, after bool) (p *process, out end, died bool) {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.lead(1, compacted), s.lead(2, kept)
			s.three(a, b)
			a.topic.Policy.SegmentBytes = 1 // every object of a is a group of its own; those of b become one
			limits := picker.Limits{Fanin: 3}
			k := s.work(limits)
			k.p.trace, k.p.crashAt, k.p.after = true, at, after
			ctx, cancel := context.WithCancel(bg)
			k.p.died = cancel
			p = k.p
			defer k.close()
			defer cancel()
			steps := func(k *workers, ctx context.Context) {
				for range 3 { // a round, a purge, and nothing
					for i := 0; ; i++ {
						if n, _ := k.Round(ctx, k.lease); n == 0 || i > 20 {
							break
						}
					}
					time.Sleep(30 * time.Second)
				}
			}
			steps(k, ctx)
			if k.p.mu.Lock(); at > 0 && !k.p.dead {
				k.p.mu.Unlock()
				return
			}
			died = k.p.dead
			k.p.mu.Unlock()
			if died {
				s.verifyAll()
				s.store.EndLease(k.lease)
				k = s.work(limits)
				defer k.close()
				steps(k, bg)
			}
			if failed := k.failures(); len(failed) > 0 {
				s.fatalf("crash %s: %v", p.where, failed)
			}
			s.settled()
			if c := a.head().Compaction; c != (manifest.Compaction{CleanEnd: a.end()}) {
				s.fatalf("crash %s: %+v, end %d", p.where, c, a.end())
			}
			for i, q := range []*partition{a, b} {
				out.entries[i] = len(s.live(q))
				out.readable[i] = len(q.fetch(s.leader, s.rnd, 0, q.end()).kept)
			}
		})
		return p, out, died
	}
	p, want, _ := life(t, 0, false)
	if want.readable != [2]int{3, 7} || want.entries != [2]int{3, 1} { // a=2, b1, b2; everything
		t.Fatalf("without a crash: %+v", want)
	}
	kinds := map[string]int{}
	for _, s := range p.seen {
		kinds[strings.Split(s, "/")[0]]++
	}
	for _, k := range []string{"range", "claim", "load", "get data", "put data", "head data", "commit", "unclaim", "put state", "delete data"} {
		if kinds[k] == 0 {
			t.Errorf("no %s in %v", k, kinds)
		}
	}
	crashes, looks := 0, 0
	for i, what := range p.seen {
		if what == "deleted" { // the collector asks whether topics were deleted, again and again
			if looks++; looks > 5 && os.Getenv("VARVE_LONG") == "" {
				continue
			}
		}
		for _, after := range []bool{false, true} {
			at := i + 1
			p, got, died := life(t, at, after)
			if !died {
				continue // the last requests come sooner or later
			}
			crashes++
			if got != want {
				t.Errorf("crash %d %s: %+v, want %+v", at, p.where, got, want)
			}
		}
	}
	if crashes < len(p.seen)-looks {
		t.Errorf("%d crashes at %d requests", crashes, len(p.seen))
	}
	t.Logf("%d crashes: %v", crashes, kinds)
}

// Two workers share ten partitions: each is compacted by one of them, once.
func TestTwoWorkers(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		var ps []*partition
		for i := range 10 {
			ps = append(ps, s.lead(byte(i+1), compacted))
		}
		s.three(ps...)
		var ks []*workers
		for range 2 {
			k := s.worker(s.now, func(o *Options, _ *tiering.Options) { o.Threads = 2 })
			defer k.close()
			ks = append(ks, k)
		}
		var wg sync.WaitGroup
		for _, k := range ks {
			wg.Go(func() {
				for range 3 {
					k.Round(bg, k.lease)
					time.Sleep(time.Second)
				}
			})
		}
		wg.Wait()
		rounds := 0
		for _, k := range ks {
			if failed := k.failures(); len(failed) > 0 {
				t.Errorf("%v", failed)
			}
			for _, d := range k.done {
				if d.Kind == picker.Compact {
					rounds++
				}
			}
		}
		if rounds != 10 {
			t.Errorf("%d rounds for 10 partitions", rounds)
		}
		s.settled()
	})
}

// While one worker works, another finds the partition claimed and does something else.
func TestClaimedElsewhere(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.lead(1, compacted), s.lead(2, compacted)
		s.three(a, b)
		k, other := s.work(single), s.work(single)
		defer k.close()
		defer other.close()
		k.pauseAt("put data", func() {
			if n := s.round(other); n != 1 {
				t.Errorf("%d jobs, one partition is free", n)
			}
		})
		if n := s.round(k); n != 1 || other.crew.others != 1 {
			t.Errorf("%d jobs, %d found claimed", n, other.crew.others)
		}
		s.finish(k)
		s.settled()
	})
}

// A worker loses its claim between upload and commit: its work is thrown away, what it uploaded is garbage, and that is no
// failure.
func TestClaimLost(t *testing.T) {
	for _, next := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			p := s.lead(1, compacted)
			s.three(p)
			k, other := s.work(single), s.work(single)
			defer k.close()
			defer other.close()
			k.pauseAt("commit", func() {
				s.store.EndLease(k.lease)
				if next {
					s.finish(other)
				}
			})
			before := p.head()
			if n := s.round(k); n != 0 {
				t.Errorf("%d jobs done", n)
			}
			if s.times("work thrown away") != 1 {
				t.Errorf("%v", s.seen)
			}
			if !next && p.head().Compaction != before.Compaction {
				t.Errorf("%+v, was %+v", p.head(), before)
			}
			k.lease = other.lease + 1
			s.finish(k)
			s.settled()
		})
	}
}

// The leader appends while a worker works, and the other way round. The loser makes its edit again; nobody uploads twice.
func TestConflict(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		k := s.work(single)
		defer k.close()
		k.p.tracing()
		s.broker.tracing()
		k.pauseAt("commit", func() {
			s.put(p, "c=1")
			s.upload()
		})
		if n := s.round(k); n != 1 {
			t.Fatalf("%d jobs", n)
		}
		// Of three groups the last is as it was.
		if n, m := k.p.count("put data"), k.p.count("commit"); n != 2 || m != 4 || s.times("commits rebased") != 1 {
			t.Errorf("%d objects, %d commits, %v", n, m, s.seen)
		}
		if c := p.head().Compaction; c.CleanEnd != p.end()-1 {
			t.Errorf("%+v", c)
		}
		// The leader may know an old head.
		s.put(p, "c=2")
		s.upload()
		if n, m := s.broker.count("put data"), s.broker.count("commit"); n != 2 || m > 3 {
			t.Errorf("%d objects, %d commits of the leader", n, m)
		}
		s.settled()
	})
}

// The answer to a commit is lost. It was applied, or was not, and is sent again until that is known.
func TestAmbiguousCommit(t *testing.T) {
	for _, after := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			inScene(t, func(t *testing.T, s *scene) {
				p := s.lead(1, compacted)
				s.three(p)
				k := s.work(picker.Limits{})
				defer k.close()
				k.p.tracing()
				k.failNext("commit", 2, after)
				if lost { // and the claim with it
					fail, lease := k.p.fail, k.lease
					k.p.fail = func(what string) (error, error) {
						b, a := fail(what)
						if a != nil || b != nil {
							time.AfterFunc(time.Millisecond, func() { s.store.EndLease(lease) })
						}
						return b, a
					}
				}
				n := s.round(k)
				done := after || !lost
				if c := p.head().Compaction.CleanEnd; (n == 1) != done || (c == p.end()) != done {
					t.Errorf("applied %v, claim lost %v: %d jobs, clean end %d", after, lost, n, c)
				}
				if n := k.p.count("put data"); n != 1 {
					t.Errorf("%d objects", n)
				}
				k.lease += 1 << 20
				s.finish(k)
				if n := len(s.live(p)); n != 1 {
					t.Errorf("%d entries", n)
				}
				s.settled()
			})
		}
	}
}

// A PUT fails although the object arrives. It is made again under another name, and the first is garbage.
func TestPutArrives(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		k := s.work(picker.Limits{})
		defer k.close()
		k.p.tracing()
		k.failNext("put data", 2, true)
		s.finish(k)
		if n := k.p.count("put data"); n != 3 {
			t.Errorf("%d attempts", n)
		}
		s.settled()
		if n := k.p.count("delete data"); n == 0 {
			t.Error("the worker has deleted nothing itself")
		}
	})
}

// tamper changes the bytes of an object.
func (s *scene) tamper(key string, change func([]byte) []byte) (restore func()) {
	size, err := s.mem.Head(bg, key)
	if err != nil {
		s.fatalf("%v", err)
	}
	raw, err := objstore.ReadRange(bg, s.mem, key, 0, size)
	if err != nil {
		s.fatalf("%v", err)
	}
	set := func(b []byte) {
		if err := s.mem.Delete(bg, []string{key}); err != nil {
			s.fatalf("%v", err)
		}
		if b == nil {
			return
		}
		if err := s.mem.Put(bg, key, bytes.NewReader(b), int64(len(b)), objstore.CRC32C(b)); err != nil {
			s.fatalf("%v", err)
		}
	}
	set(change(slices.Clone(raw)))
	return func() { set(raw) }
}

// A source object is damaged, or is not there: the job ends with an error and changes nothing, it is tried again, later
// and later, and somebody hears of it; other partitions go on.
func TestDamagedSource(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"block":  func(b []byte) []byte { b[100] ^= 1; return b },
		"footer": func(b []byte) []byte { b[len(b)-100] ^= 1; return b },
		"gone":   func([]byte) []byte { return nil },
	} {
		for _, policy := range []picker.Policy{compacted, kept} {
			inScene(t, func(t *testing.T, s *scene) {
				a := s.lead(1, policy)
				s.three(a)
				b := s.lead(2, policy)
				s.three(b)
				e := s.live(a)[1]
				restore := s.tamper(e.Key(a.id, a.index), change)
				k := s.work(picker.Limits{Fanin: 3})
				defer k.close()
				before := a.head().Encode()
				for i := 1; i <= 3; i++ {
					n, err := k.Round(bg, k.lease)
					failed := k.failures()
					if err != nil || len(failed) != 1 || !strings.Contains(failed[0].Error(), "topic-1-0") || !errors.Is(failed[0], tiering.ErrCorrupt) && !errors.Is(failed[0], objstore.ErrNotExist) {
						t.Errorf("%s: %v, %v", name, err, failed)
					}
					if i == 1 && n != 1 {
						t.Errorf("%s: %d jobs done, one partition is sound", name, n)
					}
					if k.Round(bg, k.lease); len(k.failures()) > 0 {
						t.Errorf("%s: tried again at once", name)
					}
					if err := k.Healthy(); (err != nil) != (i == 3) {
						t.Errorf("%s: after %d attempts: %v", name, i, err)
					}
					s.skew += 15 * time.Second << i
				}
				if !bytes.Equal(a.head().Encode(), before) {
					t.Errorf("%s: the head has changed", name)
				}
				if n := len(s.live(b)); n != 1 {
					t.Errorf("%s: %d entries of the sound one", name, n)
				}
				restore()
				s.finish(k)
				if err := k.Healthy(); err != nil || len(s.live(a)) != 1 {
					t.Errorf("%s: %v, %d entries", name, err, len(s.live(a)))
				}
				s.settled()
			})
		}
	}
}

// From each read of a round on, no read is answered. The job ends with an error that somebody hears of, and what it has
// committed by then is true: nothing counts as filtered that was not read.
func TestReadsFail(t *testing.T) {
	for answered, failed := 0, 1; failed > 0; answered++ {
		inScene(t, func(t *testing.T, s *scene) {
			p := s.lead(1, compacted)
			s.three(p)
			s.put(p, "c=0") // the last group leaves something out as well
			s.put(p, "c=1")
			s.upload()
			k := s.work(single)
			defer k.close()
			reads := 0
			failed = 0
			k.p.fail = func(what string) (before, after error) {
				if !strings.HasPrefix(what, "get data/") {
					return nil, nil
				}
				if reads++; reads <= answered {
					return nil, nil
				}
				failed++
				return objstore.ErrUnavailable, nil
			}
			n, err := k.Round(bg, k.lease)
			heard := k.failures()
			synctest.Wait() // for what was read ahead
			switch {
			case err != nil:
				t.Fatal(err)
			case failed == 0 && (n != 1 || len(heard) > 0):
				t.Errorf("all of %d reads were answered: %d jobs done, %v", reads, n, heard)
			case failed > 0 && (n != 0 || len(heard) != 1 || !errors.Is(heard[0], objstore.ErrUnavailable)):
				t.Errorf("after %d reads none was answered: %d jobs done, %v", answered, n, heard)
			}
			if failed == 0 && answered < 8 {
				t.Errorf("a round of four groups has made %d reads", reads)
			}
			k.p.fail = nil
			s.skew += time.Minute // until it is tried again
			s.finish(k)
			s.settled()
		})
	}
}

// A batch inflates to much more than is held at one time. It is compacted like others, whether it stays as it is or not.
func TestInflatesFar(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		k := s.worker(s.now, func(o *Options, _ *tiering.Options) { o.Limits, o.Window = picker.Limits{Fanin: 3}, 200 })
		defer k.close()
		for i := range 3 {
			for c := batch.None; c <= batch.Zstd; c++ {
				b, f := batch.NewBuilder(), &fact{}
				b.Codec = c
				for j, key := range []string{"a", fmt.Sprint("b", c), fmt.Sprint("c", c, i)} {
					f.records = append(f.records, record{offset: p.end() + int64(j), ts: time.Now().UnixMilli(), key: []byte(key), value: make([]byte, 3000)})
					b.Add(f.records[j].ts, f.records[j].key, f.records[j].value)
				}
				raw, err := b.Build()
				if err != nil {
					t.Fatal(err)
				}
				p.append(f, raw, s.now().UnixMilli())
			}
			s.upload()
		}
		s.finish(k)
		if clean := p.head().Compaction.CleanEnd; clean != p.end() {
			t.Errorf("clean up to %d of %d", clean, p.end())
		}
		s.settled()
		if n := len(p.fetch(s.leader, s.rnd, 0, p.end()).kept); n != 1+5+15 {
			t.Errorf("%d records", n)
		}
	})
}

// What batches that cannot be opened piece by piece take of all threads is bounded; one that needs more than that has all
// of it, alone.
func TestHold(t *testing.T) {
	w := &Worker{held: semaphore.NewWeighted(heldBytes)}
	ctx, cancel := context.WithCancel(bg)
	release, err := w.hold(ctx, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := w.hold(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("beside one that has all: %v", err)
	}
	release()
	if release, err = w.hold(bg, heldBytes); err != nil {
		t.Error(err)
	}
	release()
}

// While a consumer at read_committed reads from a replica, an aborted transaction's records are taken away and then its
// marker, and the replica learns of it. The old records are never shown with the new list, which lacks the transaction.
func TestOneManifestForAReader(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.aborted(p)
		end := p.end()
		k := s.work(picker.Limits{Fanin: 3})
		defer k.close()
		broker := &process{w: s.world}
		replica := s.tier(broker, func(o *tiering.Options) { o.RequestTimeout = time.Hour })
		defer replica.Close()
		hit := false
		broker.fail = func(what string) (before, after error) {
			if hit || !strings.HasPrefix(what, "get data/") {
				return nil, nil
			}
			hit = true
			broker.mu.Unlock()
			defer broker.mu.Lock()
			s.finish(k)
			s.skew += time.Hour
			s.finish(k)
			time.Sleep(6 * time.Second) // longer than it believes a head
			return nil, nil
		}
		var got []int64
		if _, err := p.consume(replica, s.rnd, 0, end, func(o int64, _ record) { got = append(got, o) }); err != nil {
			t.Fatal(err)
		}
		if want := []int64{1, 3, 4}; !hit || !slices.Equal(got, want) {
			t.Errorf("offsets %v, want %v", got, want)
		}
		now, err := replica.Aborted(bg, p.id, p.index, 0, end, end)
		if err != nil || len(now) != 0 {
			t.Errorf("by now the transaction is listed nowhere: %v, %v", now, err)
		}
		s.settled()
	})
}

// The topic is deleted during a job. That is no failure, and nothing is left of it.
func TestTopicDeleted(t *testing.T) {
	for _, at := range []string{"claim", "load", "get data", "put data", "commit"} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.lead(1, compacted), s.lead(2, compacted)
			s.three(a, b)
			k := s.work(single)
			defer k.close()
			k.pauseAt(at, func() {
				s.leader.Resign(a.id, a.index)
				s.mu.Lock()
				a.dropped = true
				s.mu.Unlock()
				s.store.DeleteTopic(a.id, a.name, 1)
				time.Sleep(4 * time.Minute)
			})
			k.Round(bg, k.lease)
			for _, err := range k.failures() {
				if !errors.Is(err, objstore.ErrNotExist) { // its objects went while they were read
					t.Errorf("at %s: %v", at, err)
				}
			}
			s.skew += time.Hour
			s.finish(k)
			s.settled()
			if h := a.head(); len(h.Tail) > 0 {
				t.Errorf("at %s: %+v", at, h)
			}
		})
	}
}

// The log start passes the group, or goes into it, while a worker works on it.
func TestLogStartPasses(t *testing.T) {
	for name, c := range map[string]struct {
		policy picker.Policy
		limits picker.Limits
		to     func(end int64) int64
		done   bool
	}{
		"all":                     {compacted, single, func(end int64) int64 { return end }, false},
		"into the first object":   {compacted, single, func(int64) int64 { return 1 }, true},
		"past the first of three": {kept, picker.Limits{Fanin: 3}, func(int64) int64 { return 3 }, false},
		"into the first of three": {kept, picker.Limits{Fanin: 3}, func(int64) int64 { return 1 }, true},
	} {
		inScene(t, func(t *testing.T, s *scene) {
			p := s.lead(1, c.policy)
			s.three(p)
			k := s.work(c.limits)
			defer k.close()
			k.pauseAt("commit", func() {
				if _, err := s.leader.AdvanceLogStart(bg, p.id, p.index, c.to(p.end())); err != nil {
					t.Error(err)
				}
			})
			if n := s.round(k); (n == 1) != c.done {
				t.Errorf("%s: %d jobs done", name, n)
			}
			s.finish(k)
			s.settled()
		})
	}
}

// etcd was restored from a backup that is older than what is published in the bucket: a worker commits nothing and deletes
// nothing, and says so (F41).
func TestRegressed(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		head := p.head().Encode()
		s.put(p, "a=newer")
		s.upload()
		time.Sleep(time.Minute) // it is published
		was := s.store
		old := tiering.NewMemManifests()
		old.SetEpoch(p.id, p.index, 1)
		if _, err := old.Commit(bg, tiering.CommitRequest{TopicID: p.id, Partition: p.index, LeaderEpoch: 1, Head: head}); err != nil {
			t.Fatal(err)
		}
		s.store = &ledger{old, s.world}
		k := s.work(single)
		defer k.close()
		for range 3 {
			if _, err := k.Round(bg, k.lease); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Minute)
		}
		if failed := k.failures(); len(failed) == 0 || !errors.Is(failed[0], tiering.ErrRegressed) || k.Healthy() == nil {
			t.Errorf("%v, healthy: %v", failed, k.Healthy())
		}
		if !bytes.Equal(p.head().Encode(), head) || len(k.done) > 0 {
			t.Errorf("something was committed: %+v", k.done)
		}
		s.store = was
		s.verifyAll()
		s.settled()
	})
}

// What is uploaded stays as long as the claim does, even where the log start has gone into it, and however long the commit
// takes: another broker's search for garbage must not take it for an orphan.
func TestUncommittedObjectIsKept(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		k := s.work(single)
		defer k.close()
		k.pauseAt("commit", func() {
			if _, err := s.leader.AdvanceLogStart(bg, p.id, p.index, 1); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Minute)
		})
		if n := s.round(k); n != 1 {
			t.Errorf("%d jobs", n)
		}
		s.settled()
	})
}

// Manifests of many pages: what is in them is replaced there, page by page. A leader that was quiet meanwhile, and keeps
// nothing in memory, goes on with pages and objects that it has not heard of: it uploads, and retention and the search for
// garbage work.
func TestPages(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for more := range 4 {
			inScene(t, func(t *testing.T, s *scene) {
				s.limits, s.meta, s.sweep = manifest.Limits{Tail: 3, Keep: 1, Page: 3, Pages: 1, Index: 1000}, 1, 24*time.Hour
				s.start()
				p := s.lead(1, compacted)
				for i := range 13 + more { // so that the tail is full, or is not
					s.put(p, fmt.Sprintf("a=%d", i), fmt.Sprintf("b%d=x", i))
					s.upload()
				}
				if h := p.head(); h.Index == nil || len(h.Pages) == 0 {
					t.Fatalf("%+v", h)
				}
				if restart {
					s.start()
				}
				k := s.work(picker.Limits{})
				defer k.close()
				k.p.tracing()
				s.finish(k)
				if s.times("swaps in pages") < 3 {
					t.Errorf("%v", s.seen)
				}
				time.Sleep(5 * time.Minute) // what was replaced is gone
				if pages, objects := k.p.count("delete page"), k.p.count("delete data"); pages == 0 || objects == 0 {
					t.Errorf("the worker itself has deleted %d pages and %d objects", pages, objects)
				}
				s.audit()
				if err := s.leader.Healthy(); err != nil {
					t.Error(err)
				}
				if more%2 == 0 {
					p.set(func(o *tiering.Policy, _ *picker.Policy) { o.Delete, o.RetentionBytes = true, 300 })
					time.Sleep(time.Minute)
					if h := p.head(); h.LogStart == 0 {
						t.Errorf("retention lets nothing go: %v", s.leader.Healthy())
					}
				}
				s.put(p, "c=1")
				s.upload()
				s.finish(k)
				time.Sleep(3 * time.Hour) // until a sweep has found the pages that were behind an index page
				s.settled()
			})
		}
	}
}

// A tombstone goes when its horizon has passed, whichever worker comes by then.
func TestPurge(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		k := s.work(single)
		s.finish(k)
		k.close()
		s.verifyAll()
		if n := len(p.fetch(s.leader, s.rnd, 0, p.end()).kept); n != 4 { // a=2, b1, b2, and that b0 is deleted
			t.Errorf("%d records", n)
		}
		s.skew += time.Hour
		k = s.work(single)
		defer k.close()
		s.finish(k)
		s.verifyAll()
		if n := len(p.fetch(s.leader, s.rnd, 0, p.end()).kept); n != 3 {
			t.Errorf("%d records", n)
		}
		s.settled()
	})
}

// A partition whose head does not move is looked at again when a record reaches its lag, or a tombstone its horizon.
func TestDue(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		lag := compacted
		lag.MinDirtyRatio, lag.MaxLag = 1, 10*time.Minute.Milliseconds()
		p := s.lead(1, lag)
		s.three(p)
		k := s.worker(s.now, func(o *Options, _ *tiering.Options) {
			o.Recheck = time.Hour
			o.Lease = func(context.Context) (int64, <-chan struct{}, error) { return 1, nil, nil }
		})
		defer k.close()
		ctx, cancel := context.WithCancel(bg)
		over := make(chan struct{})
		go func() { k.Run(ctx); close(over) }()
		time.Sleep(5 * time.Minute)
		if end := p.head().Compaction.CleanEnd; end != 0 {
			t.Errorf("compacted up to %d before anything is due", end)
		}
		time.Sleep(6 * time.Minute)
		if end := p.head().Compaction.CleanEnd; end != p.end() {
			t.Errorf("compacted up to %d, want %d", end, p.end())
		}
		if n := len(p.fetch(s.leader, s.rnd, 0, p.end()).kept); n != 3 { // a=2, b1, b2; that b0 is deleted has gone
			t.Errorf("%d records", n)
		}
		cancel()
		<-over
		s.settled()
	})
}

// Without room on the local disk nothing is committed and nothing is lost.
func TestNoSpoolDirectory(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		dir := filepath.Join(t.TempDir(), "spool")
		k := s.worker(s.now, func(_ *Options, o *tiering.Options) { o.SpoolDir = dir })
		defer k.close()
		if n, err := k.Round(bg, k.lease); n != 0 || err != nil {
			t.Errorf("%d jobs, %v", n, err)
		}
		if failed := k.failures(); len(failed) != 1 || !errors.Is(failed[0], os.ErrNotExist) {
			t.Errorf("%v", failed)
		}
		s.verifyAll()
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s.skew += time.Minute
		s.finish(k)
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("%v, %v", list, err)
		}
		if p.head().Compaction.CleanEnd != p.end() {
			t.Errorf("%+v", p.head())
		}
		s.settled()
	})
}

// log.cleaner.io.max.bytes.per.second bounds what is read and written together.
func TestRate(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		for i := range 3 {
			s.put(p, "a="+strings.Repeat("x", 3000+i), fmt.Sprintf("b%d=x", i))
			s.upload()
		}
		const rate = 1000
		k := s.worker(s.now, func(o *Options, _ *tiering.Options) { o.BytesPerSecond = rate })
		defer k.close()
		s.round(k)
		if len(k.done) != 1 {
			t.Fatalf("%+v", k.done)
		}
		d := k.done[0]
		want := time.Duration(float64(d.Read+d.Written-rate) / rate * float64(time.Second)) // a second's worth may go at once
		if d.Read < 18_000 || d.Written < 3000 || d.Took < want-10*time.Millisecond || d.Took > want+100*time.Millisecond {
			t.Errorf("%+v, and not %v", d, want)
		}
	})
}

// Settings that change while a worker runs count: the rate at once, threads and tables from the next look on.
func TestSettingsChange(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		put := func() {
			for i := range 3 {
				s.put(p, "a="+strings.Repeat("x", 3000+i), fmt.Sprintf("b%d=x", i))
				s.upload()
			}
		}
		now := Settings{TableBytes: 1000 * cleaner.SlotSize}
		k := s.worker(s.now, func(o *Options, _ *tiering.Options) { o.Changed = func() Settings { return now } })
		defer k.close()
		put()
		s.round(k)
		now.BytesPerSecond, now.Threads = 1000, 3
		put()
		s.round(k)
		if len(k.done) != 2 || k.done[0].Took > time.Second || k.done[1].Took < 10*time.Second {
			t.Fatalf("%+v", k.done)
		}
		if n, bytes := k.crew.s.Threads, k.crew.bytes; n != 3 || bytes != 333*cleaner.SlotSize {
			t.Errorf("%d threads, tables of %d bytes", n, bytes)
		}
		now.TableBytes = 1 // of no use
		put()
		s.round(k)
		if bytes := k.crew.bytes; bytes != 333*cleaner.SlotSize || len(k.done) != 3 {
			t.Errorf("tables of %d bytes, %+v", bytes, k.done)
		}
		s.settled()
	})
}

// A round is broken off, and the table of whoever goes on is too small to reach what has been filtered: the round ends there,
// and another begins behind it.
func TestTableShrinks(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		s.put(p, "c=0")
		s.put(p, "c=1")
		s.upload()
		k := s.work(single)
		puts := 0
		k.p.fail = func(what string) (before, after error) {
			if strings.HasPrefix(what, "put data/") {
				if puts++; puts > 2 {
					return objstore.ErrUnavailable, nil
				}
			}
			return nil, nil
		}
		if _, err := k.Round(bg, k.lease); err != nil || len(k.failures()) != 1 {
			t.Fatalf("the round was not broken off: %v", err)
		}
		k.close()
		if c := p.head().Compaction; c != (manifest.Compaction{End: p.end(), Next: 5}) {
			t.Fatalf("%+v", c)
		}
		s.verifyAll()
		k = s.worker(s.now, func(o *Options, _ *tiering.Options) { o.Limits, o.TableBytes = single, 2*cleaner.SlotSize }) // one key
		defer k.close()
		if n := s.round(k); n != 1 || p.head().Compaction != (manifest.Compaction{CleanEnd: 5}) {
			t.Errorf("%d jobs, %+v", n, p.head().Compaction)
		}
		s.verifyAll()
		s.finish(k)
		if c := p.head().Compaction; c != (manifest.Compaction{CleanEnd: p.end()}) {
			t.Errorf("%+v, end %d", c, p.end())
		}
		s.settled()
	})
}

// Merged objects of a topic with retention.ms are not merged with what comes so much later that their oldest records would be
// kept for longer than segment.ms beyond it; nor does a worker that is new do so.
func TestMergedForNoLongerThanASegment(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		policy := kept
		policy.Delete, policy.RetentionMs, policy.SegmentMs = true, 3_600_000, 60_000
		p := s.lead(1, policy)
		p.tierOpts.RetentionMs = 3_600_000
		var k *workers
		for i := range 24 { // one every 9 s
			s.put(p, fmt.Sprintf("a%d=1", i))
			s.upload()
			k = s.work(picker.Limits{Fanin: 2})
			s.finish(k)
			k.close()
		}
		list := s.live(p)
		for _, e := range list {
			if f := s.footer(p, e); f.MaxTimestamp-f.MinTimestamp > 60_000 {
				t.Errorf("%d-%d: %d ms from the oldest to the newest record", e.Base, e.Last, f.MaxTimestamp-f.MinTimestamp)
			}
		}
		if len(list) < 4 || len(list) > 12 {
			t.Errorf("%d entries of 24", len(list))
		}
		s.settled()
	})
}

// What was replaced stays for file.delete.delay.ms, and no longer.
func TestReplacedObjectsStay(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		p.topic.DeleteDelay, p.tierOpts.DeleteDelayMs = 10*time.Minute, 600_000 // for the worker, and for the brokers' sweep
		s.three(p)
		var old []string
		for _, e := range s.live(p) {
			old = append(old, e.Key(p.id, p.index))
		}
		k := s.work(picker.Limits{})
		defer k.close()
		s.finish(k)
		there := func() (n int) {
			for _, key := range old {
				if _, err := s.mem.Head(bg, key); err == nil {
					n++
				}
			}
			return n
		}
		time.Sleep(10*time.Minute - time.Second)
		if n := there(); n != 3 {
			t.Errorf("%d objects of 3 are left before their time", n)
		}
		time.Sleep(time.Minute)
		if n := there(); n != 0 {
			t.Errorf("%d objects are left after it", n)
		}
		s.settled()
	})
}

// cleanup.policy no longer says compact while a worker works: what it has not come to is kept. When the topic is to be compacted
// again, the round goes on.
func TestPolicyChangesMeanwhile(t *testing.T) {
	for name, purge := range map[string]bool{"round": false, "purge": true} {
		inScene(t, func(t *testing.T, s *scene) {
			p := s.lead(1, compacted)
			for i := range 4 { // in each object a tombstone, and what goes
				s.put(p, fmt.Sprint("b", i), fmt.Sprintf("c%d=1", i), "a=1")
				s.upload()
			}
			k := s.work(single)
			defer k.close()
			want := manifest.Compaction{End: p.end(), Next: 3}
			if purge {
				s.finish(k)
				s.skew += time.Hour
				want = manifest.Compaction{CleanEnd: p.end()}
			}
			before := s.live(p)
			k.pauseAt("commit", func() { p.set(func(o *tiering.Policy, _ *picker.Policy) { o.Compact, o.Delete = false, true }) })
			s.round(k)
			s.finish(k)
			after := s.live(p)
			if after[0] == before[0] || !slices.Equal(after[1:], before[1:]) || p.head().Compaction != want {
				t.Errorf("%s: %+v: %v in the place of %v", name, p.head().Compaction, after, before)
			}
			s.verifyAll()
			p.set(func(o *tiering.Policy, _ *picker.Policy) { o.Compact, o.Delete = true, false })
			s.finish(k)
			s.skew += time.Hour
			s.finish(k)
			s.verifyAll()
			if n := len(p.fetch(s.leader, s.rnd, 0, p.end()).kept); n != 5 { // a, c0 to c3
				t.Errorf("%s: %d records", name, n)
			}
			s.settled()
		})
	}
}

// When the lease is gone, or may be, everything under it is called off, and begins again under another.
func TestLeaseLost(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		var mu sync.Mutex
		lost := make(map[int64]chan struct{})
		var taken []int64
		lostEvents, tries := 0, 0
		k := s.worker(s.now, func(o *Options, _ *tiering.Options) {
			o.Lease = func(context.Context) (int64, <-chan struct{}, error) {
				mu.Lock()
				defer mu.Unlock()
				if tries++; tries == 1 {
					return 0, nil, errInjected
				}
				id := int64(1000 + tries)
				lost[id] = make(chan struct{})
				taken = append(taken, id)
				return id, lost[id], nil
			}
			o.Events.Lost = func() { lostEvents++ }
		})
		defer k.close()
		before := p.head().Encode()
		k.pauseAt("put data", func() {
			mu.Lock()
			close(lost[taken[0]])
			mu.Unlock()
			s.store.EndLease(taken[0])
			time.Sleep(time.Second) // the context of the work has ended meanwhile
			if !bytes.Equal(p.head().Encode(), before) {
				t.Error("the head has changed")
			}
		})
		ctx, cancel := context.WithCancel(bg)
		over := make(chan struct{})
		go func() { k.Run(ctx); close(over) }()
		time.Sleep(time.Second)
		if err := k.Healthy(); !errors.Is(err, errInjected) {
			t.Errorf("without a lease: %v", err)
		}
		time.Sleep(time.Minute)
		if err := k.Healthy(); err != nil {
			t.Error(err)
		}
		cancel()
		<-over
		if failed := k.failures(); len(failed) > 0 || len(taken) != 2 || lostEvents != 1 {
			t.Errorf("%v, leases %v, lost %d", failed, taken, lostEvents)
		}
		if p.head().Compaction.CleanEnd != p.end() {
			t.Errorf("%+v", p.head())
		}
		if _, claimed, _ := s.store.Claimed(bg, p.id, p.index); claimed {
			t.Error("a claim is left")
		}
		s.settled()
	})
}

// A claim that cannot be given back is given back later, or the partition would be nobody's for as long as the worker
// lives.
func TestClaimGivenBackLater(t *testing.T) {
	for _, kind := range []string{"unclaim", "claim"} {
		inScene(t, func(t *testing.T, s *scene) {
			p := s.lead(1, compacted)
			s.three(p)
			k := s.work(picker.Limits{})
			defer k.close()
			fails := 0
			k.p.fail = func(what string) (error, error) {
				if fails < 2 && (what == "unclaim" || what == kind) {
					fails++
					if what == "claim" {
						return nil, errInjected // it was taken
					}
					return errInjected, nil
				}
				return nil, nil
			}
			k.Round(bg, k.lease)
			k.failures()
			if _, claimed, _ := s.store.Claimed(bg, p.id, p.index); !claimed {
				t.Fatal("no claim is left")
			}
			s.put(p, "c=1")
			s.upload()
			s.skew += time.Hour
			k.Round(bg, k.lease)
			s.skew += time.Hour
			s.finish(k)
			if _, claimed, _ := s.store.Claimed(bg, p.id, p.index); claimed || p.head().Compaction.CleanEnd != p.end() {
				t.Errorf("claimed %v, %+v", claimed, p.head().Compaction)
			}
			s.settled()
		})
	}
}

// A pass that begins in the midst of a transaction cannot tell that nothing is left of it, and keeps its marker. It is not
// tried again and again.
func TestPurgeOfNothing(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.aborted(p)
		k := s.work(single)
		defer k.close()
		s.finish(k)
		s.skew += time.Hour
		s.finish(k)
		if len(k.done) > 5 {
			t.Errorf("%+v", k.done)
		}
		s.settled()
	})
}

// Merged objects of transactions are read like those they were made of.
func TestMergedTransactions(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, kept)
		var open []*txn
		for i := range int64(6) {
			x := s.begin(p, 100+i)
			s.write(p, x, "a=1")
			s.put(p, "b=1")
			if open = append(open, x); len(open) > 2 {
				s.end(p, open[0], i%2 == 0)
				open = open[1:]
			}
			s.upload()
		}
		for _, x := range open {
			s.end(p, x, false)
		}
		s.put(p, "c=1")
		s.upload()
		k := s.work(picker.Limits{Fanin: 3})
		defer k.close()
		s.finish(k)
		if n := len(s.live(p)); n != 1 {
			t.Errorf("%d entries", n)
		}
		for range 20 {
			p.verify(s.leader, s.rnd, s.now().UnixMilli(), true)
		}
		s.settled()
	})
}

// The jobs of all partitions are done in the order of their worth, and rest when there are none.
func TestOrder(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.lead(1, kept), s.lead(2, compacted)
		s.three(a, b)
		k := s.work(picker.Limits{Fanin: 3})
		defer k.close()
		var stats []Round
		k.o.Events.Round = func(r Round) { stats = append(stats, r) }
		s.round(k)
		if len(k.done) != 2 || k.done[0].Kind != picker.Compact || k.done[1].Kind != picker.Merge || len(stats) != 1 || stats[0].MaxDirty != 1 || stats[0].Jobs != 2 || stats[0].Partitions != 2 {
			t.Errorf("%+v, %+v", k.done, stats)
		}
		if n := s.round(k); n != 0 || stats[1].MaxDirty != 0 {
			t.Errorf("%d jobs, %+v", n, stats)
		}
		s.settled()
	})
}
