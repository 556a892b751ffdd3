package tiering

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// A commit whose answer was lost, and which a later request finds in the head: the
// log of a partition that says nothing more must hear of it, or it keeps for ever
// what is in the bucket.
func TestLostAnswerFreesTheLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var lose atomic.Int32
		w.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
			if op == "commit" && after && lose.Add(-1) >= 0 {
				return fmt.Errorf("%w: answer lost", ErrAmbiguous)
			}
			return nil
		}
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		lose.Store(1)
		f.plain(t, 1, 10, 100)
		w.drained(x, f)
		if f.local != 10 {
			t.Errorf("the log was told that it may reclaim up to %d of 10", f.local)
		}
		if err := x.Healthy(); err != nil {
			t.Errorf("alarm: %v", err)
		}
		lose.Store(1)
		if s, err := x.AdvanceLogStart(bg, f.id, 0, 5); err != nil || s != 5 {
			t.Fatal(s, err)
		}
		if f.start != 5 {
			t.Errorf("the replica was told of log start %d", f.start)
		}
		w.clean(x, f)
	})
}

// failingLoads has heads not be read while it is set.
func (w *world) failingLoads() *atomic.Bool {
	var fail atomic.Bool
	w.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
		if op == "load" && fail.Load() {
			return errInjected
		}
		return nil
	}
	return &fail
}

// An alarm ends with its cause: a head that could not be read back once, and then
// was, is no failure any more, also if nothing is committed afterwards.
func TestReadBackAlarmEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		fail := w.failingLoads()
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		fail.Store(true)
		f.plain(t, 1, 10, 100)
		time.Sleep(5 * time.Second)
		if f.local != 0 || x.Healthy() == nil {
			t.Errorf("local start %d, alarm %v, while the head could not be read back", f.local, x.Healthy())
		}
		fail.Store(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if f.local != 10 || x.Healthy() != nil {
			t.Errorf("local start %d, alarm %v", f.local, x.Healthy())
		}
	})
}

// What is sealed fits the memory that was reserved for it, whatever arrives
// between the two.
func TestSealTakesWhatWasReserved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		// Nobody may look at the bucket for a while: the upload stands before
		// its first read of the log.
		<-x.adopting
		x.ours.Store(false)
		f.plain(t, 1, 1, 1000)
		time.Sleep(3 * time.Second)
		f.plain(t, 100, 1, 1000)
		x.adopting <- struct{}{}
		w.drained(x, f)
		raw, _, _ := w.store.Load(bg, f.id, 0)
		h, err := manifest.DecodeHead(raw)
		if err != nil {
			t.Fatal(err)
		}
		if first := h.Tail[0]; first.Bytes > 3000 {
			t.Errorf("%d bytes in an object for which a record's room was reserved", first.Bytes)
		}
		w.clean(x, f)
	})
	o := Options{UploadBytes: 16 << 20}
	o.defaults()
	if o.TargetBytes > o.UploadBytes || o.MixedBytes > o.UploadBytes {
		t.Errorf("objects of %d and %d bytes in %d bytes of memory", o.TargetBytes, o.MixedBytes, o.UploadBytes)
	}
}

// A partition that cannot be uploaded is an alarm that stands, however well
// others do.
func TestStuckPartitionKeepsTheAlarm(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, stuck, fine := w.open(), newLog(1, 0), newLog(2, 0)
		w.lead(x, stuck, fine)
		stuck.plain(t, 1, 1, 100)
		stuck.damage(0)
		fine.plain(t, 1, 1, 100)
		time.Sleep(10 * time.Second)
		for range 50 {
			fine.plain(t, 1, 1, 100)
			time.Sleep(700 * time.Millisecond)
			if x.Healthy() == nil {
				t.Fatal("no alarm while a partition is stuck")
			}
		}
		stuck.damage(0)
		w.drained(x, stuck, fine)
		time.Sleep(5 * time.Second)
		if err := x.Healthy(); err != nil {
			t.Errorf("alarm: %v", err)
		}
	})
}

// The log is told which partitions cannot be uploaded for a reason of their own, so that they do not take it from the others; an
// outage of the bucket is none.
func TestStuckIsTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x := w.open()
		var logs []*fakeLog
		for i := range int32(5) {
			logs = append(logs, newLog(1, i))
		}
		plain, damaged, disabled, frozen := logs[0], logs[1], logs[2], logs[3] // and one that is idle
		for _, l := range logs {
			l.stuck.Store(true) // as a leader before it has said
		}
		w.lead(x, logs...)
		told := func(what string, want ...*fakeLog) {
			t.Helper()
			for i, l := range logs {
				if got := l.stuck.Load(); got != slices.Contains(want, l) {
					t.Errorf("%s: partition %d stuck: %v", what, i, got)
				}
			}
		}
		write := func(seconds int) {
			for range seconds {
				plain.plain(t, 1, 1, 100)
				time.Sleep(time.Second)
			}
		}
		for _, l := range logs[:4] {
			l.plain(t, 1, 1, 100)
		}
		write(20)
		told("all is well")
		w.bucket.SetOutage(true)
		write(60)
		told("the bucket is away")
		w.bucket.SetOutage(false)
		write(40)

		damaged.plain(t, 1, 1, 100)
		damaged.damage(1)
		disabled.set(func(p *Policy) { p.CopyDisabled = true })
		frozen.plain(t, 1, 1, 100)
		frozen.setHW(1)
		write(5)
		told("not for long", damaged, disabled)
		write(40)
		told("three of them cannot go", damaged, disabled, frozen)

		disabled.set(func(p *Policy) { p.CopyDisabled = false })
		frozen.setHW(2)
		write(60)
		told("two can again", damaged)
		x.Resign(damaged.id, damaged.index)
		write(20)
		told("it is led by another broker")
		w.lead(x, damaged)
		write(40)
		told("and by this one again", damaged)
		damaged.plain(t, 1, 1, 100)
		if _, err := x.AdvanceLogStart(bg, damaged.id, damaged.index, 2); err != nil {
			t.Fatal(err)
		}
		write(5)
		told("what was damaged is deleted")
		for _, l := range logs {
			l.plain(t, 1, 1, 100)
		}
		if err := x.Healthy(); err != nil {
			t.Errorf("as soon as there are records again: %v", err)
		}
		write(5)
		if s, _ := x.State(damaged.id, damaged.index); s.RemoteEnd != 4 || s.LastError != nil {
			t.Errorf("behind what was damaged: %+v", s)
		}
		if err := x.Healthy(); err != nil {
			t.Error(err)
		}
	})
}

// Partitions with little to say but many producers: their footers count too, so
// that one object does not take memory without bound. All of them get their turn.
func TestManyProducersMakeSmallerObjects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.MixedBytes = 64 << 10
		x := w.open()
		var logs []*fakeLog
		for i := range int32(60) {
			f := newLog(1, i)
			for pid := range int64(200) {
				b := batch.NewBuilder()
				b.ProducerID = 1000 + pid
				b.Add(time.Now().UnixMilli(), nil, []byte("x"))
				f.append(t, b)
			}
			logs = append(logs, f)
		}
		w.lead(x, logs...)
		w.drained(x, logs...)
		time.Sleep(10 * time.Second)
		before := w.objects()
		for _, f := range logs {
			f.plain(t, 1, 1, 10)
		}
		w.drained(x, logs...)
		list, err := listAll(bg, w.mem, "data/")
		if err != nil {
			t.Fatal(err)
		}
		if len(list) <= before+1 {
			t.Errorf("%d objects for one flush", len(list)-before)
		}
		for _, o := range list {
			if o.Size > 3*w.opts.MixedBytes {
				t.Errorf("an object of %d bytes where %d were meant", o.Size, w.opts.MixedBytes)
			}
		}
		w.clean(x, logs...)
	})
}

// A read of the bucket that hangs is given up when the time of one request is over, and made again.
func TestHangingRead(t *testing.T) {
	for nth := range 2 { // the object's footer, and its blocks
		inWorld(t, func(t *testing.T, w *world) {
			x, f := w.open(), newLog(1, 0)
			w.lead(x, f)
			f.plain(t, 1, 10, 100)
			w.drained(x, f)
			hung := w.bucket.Fired()
			w.bucket.Inject(objstore.Fault{Op: objstore.OpGet, Key: "data/", Nth: nth + 1, Kind: objstore.Hang})
			began := time.Now()
			y := w.open()
			ctx, cancel := context.WithTimeout(bg, 10*time.Minute)
			defer cancel()
			for {
				run, err := y.Read(ctx, f.id, 0, 0, 1<<20)
				if err == nil {
					run.Release()
					break
				}
				if ctx.Err() != nil {
					t.Fatal(err)
				}
			}
			if w.bucket.Fired() == hung {
				t.Fatal("nothing has hung")
			}
			if took := time.Since(began); took > x.o.RequestTimeout+time.Second {
				t.Errorf("read %d hung, and the data came after %s; a request may take %s", nth+1, took, x.o.RequestTimeout)
			}
			w.clean(x, f)
		})
	}
}

// Who starts looks whose bucket it is and what was published, before anything is uploaded. A request of that which hangs is
// given up when the time of one request is over.
func TestHangingAdoption(t *testing.T) {
	for _, op := range []objstore.Op{objstore.OpHead, objstore.OpGet, objstore.OpList} {
		for nth := 1; nth <= 3; nth++ {
			inWorld(t, func(t *testing.T, w *world) {
				x, f := w.open(), newLog(1, 0)
				w.lead(x, f)
				f.plain(t, 1, 10, 100)
				w.drained(x, f)
				time.Sleep(2 * x.o.PublishInterval) // so that there is something published
				x.Close()
				began := time.Now()
				w.bucket.Inject(objstore.Fault{Op: op, Nth: nth, Kind: objstore.Hang})
				y := w.open()
				w.lead(y, f)
				f.plain(t, 1, 10, 100)
				for f.localStart() < 20 && time.Since(began) < time.Hour {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
				}
				if took, most := time.Since(began), 3*x.o.RequestTimeout; took > most {
					t.Errorf("%s %d hung, and the upload took %s; a request may take %s", op, nth, took, x.o.RequestTimeout)
				}
				w.clean(y, f)
			})
		}
	}
}

// A leader that does not know yet that it was replaced reads back a head, and it is its successor's: its own log may have
// gone on in another way, and it must not take for committed there what is committed in the other.
func TestSuccessorsHead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 1, 10, 100)
		w.drained(x, f)
		key := partitionKey{f.id, f.index}
		old := x.led[key]
		y, g := w.open(), newLog(1, 0)
		g.plain(t, 1, 10, 100)
		g.newEpoch()
		w.lead(y, g)
		g.plain(t, 1, 10, 100)
		w.drained(y, g)
		v, err := x.load(bg, key)
		if err != nil || v.head.RemoteEnd() != 20 {
			t.Fatalf("%+v, %v", v, err)
		}
		before := len(f.states)
		x.tell(old, v)
		if more := f.states[before:]; len(more) > 0 {
			t.Errorf("the old leader's log was told what its successor has committed: %+v", more)
		}
	})
}

// Nobody is told that records are deleted before the replica is, which would go on showing them.
func TestDeletedIsToldToTheReplicaFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		fail := w.failingLoads()
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 1, 10, 100)
		w.drained(x, f)
		fail.Store(true)
		var answered atomic.Bool
		go func() {
			if s, err := x.AdvanceLogStart(bg, f.id, 0, 5); err != nil || s != 5 || f.start != 5 {
				t.Errorf("answered %d, %v, and the replica was told %d", s, err, f.start)
			}
			answered.Store(true)
		}()
		time.Sleep(5 * time.Second)
		if answered.Load() {
			t.Error("answered while the head could not be read back")
		}
		fail.Store(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !answered.Load() {
			t.Error("not answered when it could")
		}
		fail.Store(true)
		ctx, cancel := context.WithTimeout(bg, 3*time.Second)
		defer cancel()
		if _, err := x.AdvanceLogStart(ctx, f.id, 0, 7); err == nil {
			t.Error("answered, and the replica was not told")
		}
		fail.Store(false)
	})
}
