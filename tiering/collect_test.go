package tiering

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

// A commit that takes longer than grace and sweeps: its object is named by nobody
// yet, and is no garbage, for its writer's epoch is alive and nothing has taken
// its place. Neither is it once the next leader has found it committed.
func TestSlowCommitKeepsItsObject(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.OwnBytes = 2000
		var slow atomic.Bool
		w.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
			if op == "commit" && slow.Load() {
				return errInjected
			}
			return nil
		}
		x, own, a, b := w.open(), newLog(1, 0), newLog(2, 0), newLog(2, 1)
		logs := []*fakeLog{own, a, b}
		w.lead(x, logs...)
		for round := range 2 { // the first objects of all, and those behind others
			slow.Store(true)
			own.plain(t, 3, 1, 1000)
			a.plain(t, 1, 1, 10)
			b.plain(t, 1, 1, 10)
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if n := w.objects(); n != 2*(round+1) {
				t.Fatalf("round %d: %d objects, %d have their commit or wait for it", round, n, 2*(round+1))
			}
			slow.Store(false)
			w.drained(x, logs...)
			w.check(x, logs...)
		}
		w.clean(x, logs...)
		if n := w.objects(); n != 4 {
			t.Errorf("%d objects", n)
		}
	})
}

// Mixed objects that are alive do not fill the list of what may be garbage: there
// are as many of them as there were flushes, and a full list takes no more.
func TestLiveObjectsAreNotCondemned(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, g)
		for range 40 {
			f.plain(t, 1, 1, 10)
			g.plain(t, 1, 1, 10)
			w.drained(x, f, g)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		listed := func() int {
			x.gc.mu.Lock()
			defer x.gc.mu.Unlock()
			return len(x.gc.list)
		}
		if n := listed(); n != 0 || w.objects() != 40 {
			t.Errorf("%d of %d live objects are listed as garbage", n, w.objects())
		}
		// They go all the same once their last section has, whichever it is.
		f.set(func(p *Policy) { p.RetentionMs = 1 })
		w.clean(x, f, g)
		if n := listed(); n != 0 || w.objects() != 40 {
			t.Errorf("%d of %d live objects are listed as garbage", n, w.objects())
		}
		g.set(func(p *Policy) { p.RetentionMs = 1 })
		w.clean(x, f, g)
		if n := w.objects(); n != 1 {
			t.Errorf("%d objects, the one with the newest footers was to stay", n)
		}
	})
}

// What a process that ended had retired but not published is found by the next
// one's sweep, which must wait for a published state without it as well: until
// then a cluster rebuilt from the bucket would name what is gone.
func TestSweepWaitsForPublication(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes, w.opts.PublishInterval = 1000, 2*time.Second
		x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, g)
		f.plain(t, 20, 1, 1000)
		f.plain(t, 1, 1, 10)
		g.plain(t, 1, 1, 10)
		w.drained(x, f, g)
		f.plain(t, 1, 1, 10)
		g.plain(t, 1, 1, 10)
		w.drained(x, f, g)
		time.Sleep(10 * time.Second)
		w.bucket.Inject(objstore.Fault{Op: objstore.OpPut, Key: "state/", Kind: objstore.Throttle})
		for _, l := range []*fakeLog{f, g} {
			if _, err := x.AdvanceLogStart(bg, l.id, 0, l.hw-1); err != nil {
				t.Fatal(err)
			}
		}
		x.Close()
		y := w.open()
		w.lead(y, f, g)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		list, err := ReadPublished(bg, w.mem)
		if err != nil || len(list) != 2 {
			t.Fatal(len(list), err)
		}
		rebuilt := NewMemManifests()
		for _, h := range list {
			rebuilt.heads[partitionKey{h.TopicID, h.Partition}] = h.StoredHead
		}
		if a, err := Check(bg, w.mem, rebuilt, AuditOptions{}); err != nil || a.Err() != nil {
			t.Errorf("what is published names what is gone: %v %v", err, a.Err())
		}
		w.bucket.Clear()
		w.clean(y, f, g)
		if n := w.objects(); n != 1 {
			t.Errorf("%d objects", n)
		}
	})
}

// One deleted topic whose page is damaged keeps no other from being buried, and
// one partition's damaged page nobody's garbage from being found.
func TestDamagedPageStopsOnlyItself(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, bad, next, alive := w.open(), newLog(1, 0), newLog(2, 0), newLog(3, 0)
		x.limits = manifest.Limits{Tail: 3, Keep: 1, Page: 3, Pages: 2, Index: 1000}
		logs := []*fakeLog{bad, next, alive}
		w.lead(x, logs...)
		for range 10 {
			for _, f := range logs {
				f.plain(t, 1, 1, 10)
				w.drained(x, f)
			}
		}
		time.Sleep(10 * time.Second)
		damage := func(f *fakeLog) {
			raw, _, _ := w.store.Load(bg, f.id, 0)
			h, err := manifest.DecodeHead(raw)
			if err != nil || len(h.Pages) == 0 {
				t.Fatal("no page", err)
			}
			key := h.Pages[0].Key(f.id, 0)
			b, _ := objstore.ReadRange(bg, w.mem, key, 0, int64(h.Pages[0].Size))
			b[len(b)/2] ^= 1
			w.mem.Delete(bg, []string{key})
			if err := w.mem.Put(bg, key, bytesReader(b), int64(len(b)), objstore.CRC32C(b)); err != nil {
				t.Fatal(err)
			}
		}
		damage(bad)
		damage(alive)
		x.Close()
		y := w.open()
		y.limits = x.limits
		w.lead(y, alive)
		w.store.DeleteTopic(bad.id, bad.name, 1)
		w.store.DeleteTopic(next.id, next.name, 1)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if _, rev, _ := w.store.Load(bg, next.id, 0); rev != 0 {
			t.Error("a deleted topic is not buried because of another's damaged page")
		}
		if _, rev, _ := w.store.Load(bg, bad.id, 0); rev == 0 {
			t.Error("the head of a topic whose page cannot be read is gone, and with it the names of what is left")
		}
		if y.Healthy() == nil {
			t.Error("no alarm")
		}
		// Garbage of others, behind the partition that cannot be judged.
		n := manifest.Name{TopicID: next.id, Base: 5, Epoch: 1, Suffix: newSuffix()}
		for {
			if n.Key() > (manifest.DataPrefix + "f0") {
				break
			}
			n.Suffix = newSuffix()
		}
		if err := w.mem.Put(bg, n.Key(), bytesReader([]byte("x")), 1, objstore.CRC32C([]byte("x"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if _, err := w.mem.Head(bg, n.Key()); err == nil {
			t.Error("garbage is not found because of another partition's damaged page")
		}
	})
}

func bytesReader(b []byte) io.ReadSeeker { return bytes.NewReader(b) }

// A mixed object whose sections are led by two brokers: the grace of one does not
// stand for that of the other, which let go of its section later.
func TestMixedObjectOfTwoBrokers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, y, f, g := w.open(), w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, f, g)
		for range 2 {
			f.plain(t, 1, 1, 10)
			g.plain(t, 1, 1, 10)
			w.drained(x, f, g)
		}
		x.Resign(g.id, 0)
		g.newEpoch()
		w.lead(y, g)
		raw, _, _ := w.store.Load(bg, g.id, 0)
		h, err := manifest.DecodeHead(raw)
		if err != nil || len(h.Tail) != 2 || h.Tail[0].Kind != manifest.Mixed {
			t.Fatalf("%+v %v", h, err)
		}
		key := h.Tail[0].Key(g.id, 0)
		time.Sleep(10 * time.Second)
		if _, err := x.AdvanceLogStart(bg, f.id, 0, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(w.opts.Grace - 500*time.Millisecond)
		if _, err := y.AdvanceLogStart(bg, g.id, 0, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(w.opts.Grace - time.Second)
		synctest.Wait()
		if _, err := w.mem.Head(bg, key); err != nil {
			t.Errorf("gone while readers of the other broker's head may still want it: %v", err)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if _, err := w.mem.Head(bg, key); err == nil {
			t.Error("never deleted")
		}
		w.check(x, f)
		w.check(y, g)
	})
}

// A mixed object that was let go of waits for the longest file.delete.delay.ms of its topics: in the process that let go of it, and in one that
// leads none of them and finds it in the bucket. A topic that is deleted meanwhile does not count any more.
func TestDelayOfMixedObjects(t *testing.T) {
	const first, second = 2 * time.Hour, 10 * time.Minute
	for _, c := range []struct {
		name     string
		deleted  time.Duration // after both have let go of it, the topic with the longer delay; -1: it stays
		from, to time.Duration // when it goes
	}{
		{"both stay", -1, first, first + time.Minute},
		{"one is deleted at once", 0, second, second + time.Minute},
		{"one is deleted before the other's delay is over", time.Minute, second, second + time.Minute},
		{"one is deleted when the other's delay is over", time.Hour, time.Hour, time.Hour + time.Minute},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			var deleted atomic.Bool
			w.opts.DeleteDelay = func(id [16]byte) time.Duration {
				switch {
				case id[0] == 1 && !deleted.Load():
					return first
				case id[0] == 2:
					return second
				}
				return 0
			}
			w.opts.SweepInterval = 10 * time.Second
			x, f, g := w.open(), newLog(1, 0), newLog(2, 0)
			f.policy.DeleteDelayMs, g.policy.DeleteDelayMs = first.Milliseconds(), second.Milliseconds()
			w.lead(x, f, g)
			for range 2 {
				f.plain(t, 1, 1, 10)
				g.plain(t, 1, 1, 10)
				w.drained(x, f, g)
			}
			raw, _, _ := w.store.Load(bg, g.id, 0)
			h, err := manifest.DecodeHead(raw)
			if err != nil || len(h.Tail) != 2 || h.Tail[0].Kind != manifest.Mixed {
				t.Fatalf("%+v %v", h, err)
			}
			key := h.Tail[0].Key(g.id, 0)
			time.Sleep(time.Minute) // and it is published
			for _, l := range []*fakeLog{g, f} {
				if _, err := x.AdvanceLogStart(bg, l.id, 0, 1); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			w.open()
			if c.deleted >= 0 {
				time.Sleep(c.deleted)
				x.Resign(f.id, 0)
				w.store.DeleteTopic(f.id, f.name, 1)
				deleted.Store(true)
			}
			time.Sleep(c.from - time.Since(began) - time.Second)
			synctest.Wait()
			if _, err := w.mem.Head(bg, key); err != nil {
				t.Errorf("%s: gone before its time: %v", c.name, err)
			}
			time.Sleep(c.to - time.Since(began))
			synctest.Wait()
			if _, err := w.mem.Head(bg, key); err == nil {
				t.Errorf("%s: still there after its time: %+v", c.name, x.Retired())
			}
			if c.deleted >= 0 {
				w.clean(x, g)
			}
		})
	}
}

// What the sweep has found waits for file.delete.delay.ms before and after it was judged, until the topic is deleted.
func TestOrphanOfADeletedTopic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.TargetBytes = 1000
		x, f := w.open(), newLog(1, 0)
		f.policy.DeleteDelayMs = 600_000
		w.lead(x, f)
		f.plain(t, 20, 1, 500)
		w.drained(x, f)
		orphan := manifest.Name{TopicID: f.id, Epoch: 1, Suffix: newSuffix()}.Key()
		if err := w.mem.Put(bg, orphan, bytesReader([]byte("x")), 1, objstore.CRC32C([]byte("x"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Minute)
		if _, err := w.mem.Head(bg, orphan); err != nil {
			t.Fatal("gone before its time:", err)
		}
		x.Resign(f.id, 0)
		w.store.DeleteTopic(f.id, f.name, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, err := w.mem.Head(bg, orphan); err == nil {
			t.Errorf("it waits for the delay of a topic that was deleted: %+v", x.Retired())
		}
	})
}

// Whether a mixed object of many partitions is garbage is asked of many of them in one request.
func TestMixedObjectIsJudgedInFewRequests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var asked atomic.Int64
		w.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
			if op == "standing" && !after {
				asked.Add(1)
			}
			return nil
		}
		x := w.open()
		var logs []*fakeLog
		for i := range int32(100) {
			logs = append(logs, newLog(byte(1+i/50), i%50))
		}
		w.lead(x, logs...)
		for range 2 {
			for _, f := range logs {
				f.plain(t, 1, 1, 10)
			}
			w.drained(x, logs...)
		}
		if n := w.objects(); n != 2 {
			t.Fatalf("%d objects, of which each was to have a section of every partition", n)
		}
		for _, f := range logs {
			if _, err := x.AdvanceLogStart(bg, f.id, f.index, 1); err != nil {
				t.Fatal(err)
			}
		}
		asked.Store(0)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		// It is judged twice, before and after the grace of others; 1 + 2 + 4 + ... + 32 + 32 + 5.
		if n := asked.Load(); w.objects() != 1 || n < 8 || n > 24 {
			t.Errorf("%d objects are left, %d requests", w.objects(), n)
		}
		w.clean(x, logs...)
	})
}

// A leader commits, or a compaction worker does, while the collector asks how partitions stand and while a head is read back: the answer is older than
// what is known when it comes, and no store that has lost something.
func TestCommitsMeanwhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		var failed []error
		w.opts.Events.Failed = func(d Duty, err error) {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, fmt.Errorf("%s: %w", d, err))
		}
		x, f := w.open(), newLog(1, 0)
		claim := Claim{Worker: "worker", Lease: 1}
		var busy atomic.Bool // by what the hook does itself
		var asked, readBack atomic.Int64
		w.store.Hook = func(op string, id [16]byte, _ int32, after bool) error {
			if !after || !busy.CompareAndSwap(false, true) {
				return nil
			}
			defer busy.Store(false)
			switch l := x.leader(partitionKey{f.id, 0}); {
			case op == "standing":
				asked.Add(1)
				f.plain(t, 1, 1, 10)
				time.Sleep(2 * time.Second)
			case op == "load" && id == f.id && l != nil && l.unread.Load():
				readBack.Add(1)
				head, rev, err := w.store.Load(bg, f.id, 0)
				if err == nil {
					err = w.store.Claim(bg, f.id, 0, claim)
				}
				if err == nil {
					_, err = w.store.Commit(bg, CommitRequest{TopicID: f.id, Rev: rev, Claim: &claim, Head: head})
				}
				if err == nil {
					err = x.refresh(bg, map[partitionKey]error{})
				}
				if err != nil {
					t.Error(err)
				}
			}
			return nil
		}
		w.lead(x, f)
		for range 5 {
			f.plain(t, 1, 1, 10)
			w.drained(x, f)
			if _, err := x.AdvanceLogStart(bg, f.id, 0, f.hw-1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		if asked.Load() == 0 || readBack.Load() == 0 {
			t.Errorf("asked %d times how a partition stands, read a head back %d times", asked.Load(), readBack.Load())
		}
		mu.Lock()
		defer mu.Unlock()
		if len(failed) > 0 {
			t.Errorf("%d failures, the first: %v", len(failed), failed[0])
		}
		w.clean(x, f)
	})
}
