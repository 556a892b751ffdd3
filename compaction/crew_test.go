package compaction

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/tiering"
)

// crewed is a worker that is made to run.
func (s *scene) crewed(change func(*Options)) *workers {
	var k *workers
	k = s.worker(s.now, func(o *Options, _ *tiering.Options) {
		o.Lease = func(context.Context) (int64, <-chan struct{}, error) { return k.lease, nil, nil }
		change(o)
	})
	return k
}

// running runs it until stop, which returns when it has ended.
func (k *workers) running() (stop func()) {
	ctx, cancel := context.WithCancel(bg)
	over := make(chan struct{})
	go func() { k.Run(ctx); close(over) }()
	return func() { cancel(); <-over }
}

// While one thread is at a partition for an hour, looks go on and pass it over, and other threads do what becomes
// necessary meanwhile. Then it goes on with what has been written to its own.
func TestLongPartition(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.lead(1, compacted), s.lead(2, compacted)
		s.three(a)
		var mu sync.Mutex
		var rounds []Round
		k := s.crewed(func(o *Options) {
			o.Threads = 2
			o.Events.Round = func(r Round) { mu.Lock(); rounds = append(rounds, r); mu.Unlock() }
		})
		defer k.close()
		long := make(chan struct{})
		k.pauseAt("put data", func() { <-long })
		stop := k.running()
		time.Sleep(time.Minute)
		before := a.head().Compaction
		s.three(b)
		s.three(a)
		time.Sleep(time.Minute)
		if end := b.head().Compaction.CleanEnd; end != b.end() {
			t.Errorf("the other is clean up to %d of %d", end, b.end())
		}
		if now := a.head().Compaction; now != before {
			t.Errorf("%+v, was %+v", now, before)
		}
		if _, claimed, _ := s.store.Claimed(bg, a.id, a.index); !claimed {
			t.Error("the claim is gone")
		}
		mu.Lock()
		last := rounds[len(rounds)-1]
		if len(rounds) < 6 || last.Partitions != 2 || last.Jobs != 1 || last.Working != 1 {
			t.Errorf("%d looks, the last %+v", len(rounds), last)
		}
		for _, r := range rounds {
			if r.Claimed > 0 {
				t.Errorf("the worker has met its own claim: %+v", r)
			}
		}
		looks := len(rounds)
		mu.Unlock()
		close(long)
		time.Sleep(time.Second) // it looks at once, and not only after the backoff
		if end := a.head().Compaction.CleanEnd; end != a.end() {
			t.Errorf("clean up to %d of %d", end, a.end())
		}
		time.Sleep(time.Minute)
		stop()
		mu.Lock()
		if last := rounds[len(rounds)-1]; last.Jobs != 0 || last.Working != 0 || len(rounds)-looks > 10 {
			t.Errorf("%d looks, the last %+v", len(rounds)-looks, last)
		}
		mu.Unlock()
		if failed := k.failures(); len(failed) > 0 {
			t.Errorf("%v", failed)
		}
		s.settled()
	})
}

// The end of the worker, or of its lease, calls off what is under way and begins nothing more; Run returns when all threads
// have ended and given their claims back.
func TestEndWhileWorking(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b, c := s.lead(1, compacted), s.lead(2, compacted), s.lead(3, compacted)
		s.three(a, b, c)
		k := s.crewed(func(o *Options) { o.Threads = 2 })
		defer k.close()
		long := make(chan struct{})
		k.p.tracing()
		k.p.fail = func(what string) (error, error) {
			if strings.HasPrefix(what, "put data") {
				k.p.mu.Unlock()
				<-long
				k.p.mu.Lock()
			}
			return nil, nil
		}
		stop := k.running()
		time.Sleep(time.Minute)
		ended := make(chan struct{})
		go func() { stop(); close(ended) }()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("ended, and two threads are still at work")
		default:
		}
		close(long)
		<-ended
		if n := k.p.count("claim"); n != 2 {
			t.Errorf("%d claims were taken", n)
		}
		for _, p := range []*partition{a, b, c} {
			if _, claimed, _ := s.store.Claimed(bg, p.id, p.index); claimed {
				t.Errorf("a claim of %s is left", p.name)
			}
		}
		if failed := k.failures(); len(failed) > 0 {
			t.Errorf("%v", failed)
		}
		if len(k.crew.at) > 0 {
			t.Errorf("%v", k.crew.at)
		}
		k = s.work(single)
		defer k.close()
		s.finish(k)
		s.settled()
	})
}

// log.cleaner.threads partitions are worked on at a time, also after that was changed, and their tables never take more
// than log.cleaner.dedupe.buffer.size.
func TestThreads(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		var ps []*partition
		for i := range 12 {
			ps = append(ps, s.lead(byte(i+1), compacted))
		}
		var mu sync.Mutex
		var now Settings
		k := s.crewed(func(o *Options) {
			o.Changed = func() Settings { mu.Lock(); defer mu.Unlock(); return now }
		})
		defer k.close()
		at, most := 0, 0
		var bytes int64
		k.p.fail = func(what string) (error, error) {
			if strings.HasPrefix(what, "put data") {
				at++
				most = max(most, at)
				k.p.mu.Unlock()
				k.Worker.mu.Lock()
				tables := k.crew.bytes
				k.Worker.mu.Unlock()
				time.Sleep(time.Minute)
				k.p.mu.Lock()
				bytes = max(bytes, tables)
				at--
			}
			return nil, nil
		}
		stop := func() {}
		for i, c := range []Settings{{Threads: 2, TableBytes: 1200 * cleaner.SlotSize}, {Threads: 4, TableBytes: 1200 * cleaner.SlotSize},
			{Threads: 1, TableBytes: 1200 * cleaner.SlotSize}, {Threads: 3, TableBytes: 600 * cleaner.SlotSize}} {
			mu.Lock()
			now = c
			mu.Unlock()
			if i == 0 {
				stop = k.running()
			}
			time.Sleep(time.Minute)
			k.p.mu.Lock()
			most, bytes = 0, 0
			k.p.mu.Unlock()
			s.three(ps...)
			time.Sleep(2 * time.Hour)
			k.p.mu.Lock()
			if most != c.Threads || bytes != c.TableBytes {
				t.Errorf("%d at a time, tables of %d bytes: %+v", most, bytes, c)
			}
			k.p.mu.Unlock()
			for _, p := range ps {
				if end := p.head().Compaction.CleanEnd; end != p.end() {
					t.Errorf("%s is clean up to %d of %d", p.name, end, p.end())
				}
			}
		}
		stop()
		if failed := k.failures(); len(failed) > 0 {
			t.Errorf("%v", failed)
		}
		s.settled()
	})
}

// late is a store whose answers to Range may be late.
type late struct {
	tiering.ManifestStore
	answered func()
}

func (l late) Range(ctx context.Context, f func(tiering.StoredHead) error) error {
	defer l.answered()
	return l.ManifestStore.Range(ctx, f)
}

// A thread that ends during a look has made what the look read of its partition out of date: that is left to the next one.
func TestLookWhileWorking(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		once := compacted
		once.DeleteRetention = 24 * time.Hour.Milliseconds() // there is nothing to purge
		s.three(s.lead(1, once), s.lead(2, once))
		claimed, looks := 0, 0
		put := make(chan struct{})
		k := s.crewed(func(o *Options) {
			o.Threads = 2
			o.Events.Round = func(r Round) { claimed += r.Claimed }
			o.Store = late{o.Store, func() {
				if looks++; looks == 3 {
					close(put)
					time.Sleep(time.Minute)
				}
			}}
		})
		defer k.close()
		k.p.tracing()
		k.p.fail = func(what string) (error, error) {
			if strings.HasPrefix(what, "put data") {
				k.p.mu.Unlock()
				<-put
				k.p.mu.Lock()
			}
			return nil, nil
		}
		stop := k.running()
		time.Sleep(10 * time.Minute)
		stop()
		if n := k.p.count("claim"); n != 2 || claimed > 0 || looks < 4 || len(k.done) != 2 {
			t.Errorf("%d claims for two partitions, %d found claimed, %d looks, %+v", n, claimed, looks, k.done)
		}
		s.settled()
	})
}

// A partition that has been queued is taken from the queue once, whatever becomes of it.
func TestCrew(t *testing.T) {
	c := crew{}
	set := func(s Settings) {
		t.Helper()
		s.defaults()
		if err := c.set(s); err != nil {
			t.Fatal(err)
		}
	}
	cand := func(i int) candidate { return candidate{key: partitionKey{index: int32(i)}} }
	set(Settings{Threads: 2, TableBytes: 100 * cleaner.SlotSize})
	if len(c.look()) != 0 {
		t.Error("a queue from nowhere")
	}
	c.found([]candidate{cand(1), cand(2), cand(3)})
	one, t1, ok1 := c.take()
	two, t2, ok2 := c.take()
	_, _, ok3 := c.take()
	if !ok1 || !ok2 || ok3 || one.key.index != 1 || two.key.index != 2 || t1 == t2 || t1.Bytes() != 50*cleaner.SlotSize {
		t.Fatalf("%+v %+v, %v %v %v", one, two, ok1, ok2, ok3)
	}
	if q := c.look(); len(q) != 1 || q[partitionKey{index: 3}].key.index != 3 {
		t.Errorf("%+v", q)
	}
	c.give(one, t1, 1, false)
	// A look that began before the job ended knows of 1 and 2 what is not so any more.
	if jobs, working, others := c.found([]candidate{cand(1), cand(2), cand(3)}); jobs != 3 || working != 1 || others != 0 || len(c.queue) != 1 {
		t.Errorf("%d %d %d %+v", jobs, working, others, c.queue)
	}
	if c.idler() {
		t.Error("there is something in the queue")
	}
	three, t3, ok := c.take()
	if !ok || three.key.index != 3 || t3 != t1 {
		t.Errorf("%+v %v", three, ok)
	}
	c.give(three, t3, 0, true)
	if !c.idler() {
		t.Error("nobody looks, though something was done")
	}
	// Larger tables for fewer threads, when those at work have given theirs back.
	set(Settings{Threads: 1, TableBytes: 100 * cleaner.SlotSize})
	c.look()
	c.found([]candidate{cand(4)})
	if _, _, ok := c.take(); ok {
		t.Error("two at work, of one")
	}
	set(Settings{Threads: 3, TableBytes: 100 * cleaner.SlotSize})
	four, t4, ok := c.take()
	if !ok || t4.Bytes() != 33*cleaner.SlotSize || c.bytes != 83*cleaner.SlotSize {
		t.Errorf("%+v %v, %d bytes", four, ok, c.bytes)
	}
	c.queue = []candidate{cand(5)}
	if _, _, ok := c.take(); ok {
		t.Error("tables take more than they may")
	}
	c.give(two, t2, 1, false)
	if c.bytes != 33*cleaner.SlotSize || len(c.idle) != 0 {
		t.Errorf("%d bytes, %d tables", c.bytes, len(c.idle))
	}
	if _, _, ok := c.take(); !ok || c.bytes != 66*cleaner.SlotSize {
		t.Errorf("%v, %d bytes", ok, c.bytes)
	}
	if err := c.set(Settings{Threads: 3, TableBytes: 10, LoadFactor: 0.9}); err == nil || c.s.TableBytes == 10 {
		t.Error(err)
	}
}

// TestIdleCrew: who has nothing to do keeps no tables, and gets one when there is something again.
func TestIdleCrew(t *testing.T) {
	s := Settings{Threads: 2, TableBytes: 100 * cleaner.SlotSize}
	s.defaults()
	c := crew{}
	if err := c.set(s); err != nil {
		t.Fatal(err)
	}
	job := candidate{key: partitionKey{index: 1}}
	for range 2 {
		c.look()
		c.found([]candidate{job})
		q, table, ok := c.take()
		if !ok || c.bytes != 50*cleaner.SlotSize {
			t.Fatalf("%v, %d bytes", ok, c.bytes)
		}
		c.found(nil)
		if c.bytes != 50*cleaner.SlotSize {
			t.Errorf("a job is under way, and the tables are of %d bytes", c.bytes)
		}
		c.give(q, table, 1, false)
		c.look()
		c.found(nil)
		if c.bytes != 0 || len(c.idle) != 0 {
			t.Errorf("nothing to do: %d tables, %d bytes", len(c.idle), c.bytes)
		}
	}
}
