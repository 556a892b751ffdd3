package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/varve/varve/wal/vfs"
)

// unsealed is a log whose footers wait: nothing of the second segment's reaches the disk while the log goes on in the third.
type unsealed struct {
	fs    *vfs.Faulty
	mem   *vfs.Mem
	o     Options
	l     *Log
	id    PartitionID
	end   int64
	data  []byte
	ends  []int   // of data, after each append
	first []int64 // the first offset of each segment
	open  chan struct{}
	err   atomic.Pointer[error] // of the writes of the footer
}

func newUnsealed(t *testing.T, paged bool) *unsealed {
	u := &unsealed{mem: vfs.NewMem(), open: make(chan struct{})}
	u.fs = vfs.NewFaulty(u.mem)
	u.o = testOptions(u.fs)
	u.o.paged, u.o.idle = paged, time.Hour
	u.l = mustOpen(t, u.o)
	u.id = u.l.Create([16]byte{1}, 0, 0, nil, []byte("snapshot"), nil)
	u.roll(t) // the first segment is sealed
	for !u.l.segments[0].sealed.Load() {
		time.Sleep(time.Millisecond)
	}
	held := u.l.path(segmentName(2))
	begun := u.l.path(segmentName(3))
	var rolled atomic.Bool
	u.fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		switch {
		case op == vfs.OpOpen && name == begun:
			rolled.Store(true)
		case name == held && rolled.Load() && op == vfs.OpWrite:
			<-u.open
			if e := u.err.Load(); e != nil {
				return vfs.Fault{Err: *e}
			}
		}
		return vfs.Fault{}
	})
	u.roll(t)
	for range 4 {
		u.append(t)
	}
	return u
}

func (u *unsealed) append(t *testing.T) {
	u.data = append(u.data, mustAppend(t, u.l, u.id, u.end, 1, 3000)...)
	u.end++
	u.ends = append(u.ends, len(u.data))
	if g := u.l.Stats().NewestGenration; int(g) > len(u.first) {
		u.first = append(u.first, u.end-1)
	}
}

func (u *unsealed) roll(t *testing.T) {
	for n := u.l.Stats().NewestGenration; u.l.Stats().NewestGenration == n; {
		u.append(t)
	}
}

// reopen opens a copy, and returns what it calls corrupt.
func (u *unsealed) reopen(t *testing.T, fs *vfs.Mem) (l *Log, corrupt []string) {
	t.Helper()
	o := u.o
	o.FS = fs
	o.Events.Corrupt = func(what string) { corrupt = append(corrupt, what) }
	return mustOpen(t, o), corrupt
}

func (u *unsealed) holds(t *testing.T, l *Log, what string) {
	t.Helper()
	r := l.Partitions()[0]
	got, err := readAll(l, u.id, 0, r.End, 1<<20)
	if err != nil || r.Suspect || r.End != u.end || !bytes.Equal(got, u.data) {
		t.Fatalf("%s: %+v, %d bytes, want the end at %d and %d bytes; %v", what, r, len(got), u.end, len(u.data), err)
	}
}

// TestUnsealed ends while a segment is not sealed and the next one has acknowledged data. By a crash nothing is lost, nothing
// is called corrupt, and the segment is sealed by the time the log is open.
func TestUnsealed(t *testing.T) {
	for _, paged := range []bool{false, true} {
		u := newUnsealed(t, paged)
		copies := map[string]*vfs.Mem{"killed": u.mem.Clone()}
		for seed := range uint64(5) {
			copies[fmt.Sprint("power lost ", seed)] = u.mem.Crash(seed)
		}
		for name, fs := range copies {
			what := fmt.Sprintf("paged %v, %s", paged, name)
			if b := fs.Bytes("wal/" + segmentName(2)); bytes.Contains(b[len(b)-segmentTailSize:], magicTail[:]) {
				t.Fatalf("%s: the second segment has a tail: this is not what it is there for", what)
			}
			l, corrupt := u.reopen(t, fs)
			if len(corrupt) > 0 {
				t.Fatalf("%s: %v", what, corrupt)
			}
			u.holds(t, l, what)
			l.Close()
			// All that was there is durable now, and so is what recovery has added.
			fs = fs.Crash(9)
			b := fs.Bytes("wal/" + segmentName(2))
			at := place{l.id.uuid, 2}
			if tail, err := decodeTail(b[len(b)-segmentTailSize:], at, int64(len(b))); err != nil || decodeFooter(b, at, tail) != nil {
				t.Fatalf("%s: the second segment has no footer after recovery: %v", what, err)
			}
			l, corrupt = u.reopen(t, fs)
			if len(corrupt) > 0 {
				t.Fatalf("%s, again: %v", what, corrupt)
			}
			u.holds(t, l, what+", again")
			mustClose(t, l)
		}
		close(u.open)
		mustClose(t, u.l)
	}
}

// decodeFooter says what is wrong with a footer.
func decodeFooter(b []byte, at place, tail tail) error {
	_, err := decodeFooterDirectory(b[tail.footerAt:tail.footerAt+tail.footerLen], at, tail.footerLen)
	return err
}

// TestUnsealedDamage: what is missing at the end of a segment that was not sealed is not taken for its end, as the next one
// says where it begins; and a segment without a tail anywhere else is corrupt.
func TestUnsealedDamage(t *testing.T) {
	u := newUnsealed(t, false)
	intact := u.mem.Clone()
	close(u.open)
	mustClose(t, u.l)
	name := "wal/" + segmentName(2)
	b := intact.Bytes(name)
	at := place{u.l.id.uuid, 2}
	var blocks []int64
	for pos := int64(segmentHeaderSize); ; {
		h, err := decodeBlock(b[pos:], at, at.seed(), nil)
		if err != nil {
			break
		}
		blocks = append(blocks, pos)
		pos += alignUp(h.size())
	}
	for i, pos := range blocks[2:] {
		for _, how := range []string{"flipped", "gone"} {
			fs := intact.Clone()
			damaged := bytes.Clone(b)
			if how == "flipped" {
				damaged[pos+200] ^= 1
			} else {
				clear(damaged[pos : pos+pageSize])
			}
			fs.Put(name, damaged)
			l, corrupt := u.reopen(t, fs)
			if len(corrupt) == 0 || !l.Partitions()[0].Suspect {
				t.Fatalf("block %d %s: corrupt: %v; %+v", i+2, how, corrupt, l.Partitions()[0])
			}
			l.Close()
		}
	}
	// With a tail that is damaged it was sealed once.
	u.l = mustOpen(t, u.o)
	mustClose(t, u.l)
	for generation := uint64(1); generation < 3; generation++ {
		for _, how := range []string{"flipped", "gone"} {
			fs := u.mem.Clone()
			name := "wal/" + segmentName(generation)
			b := fs.Bytes(name)
			if how == "flipped" {
				b[len(b)-segmentTailSize+40] ^= 1
			} else {
				clear(b[len(b)-segmentTailSize:])
			}
			fs.Put(name, b)
			l, corrupt := u.reopen(t, fs)
			u.holds(t, l, fmt.Sprintf("tail of segment %d %s", generation, how))
			if quiet := generation == 2 && how == "gone"; len(corrupt) == 0 != quiet || !quiet && !strings.Contains(corrupt[0], "footer of segment") {
				t.Errorf("tail of segment %d %s: %v", generation, how, corrupt)
			}
			mustClose(t, l)
		}
	}
}

// TestRollWaitsForSeal: a third segment without a footer never comes to be, and a footer that cannot be written ends the log.
func TestRollWaitsForSeal(t *testing.T) {
	for _, fails := range []bool{false, true} {
		u := newUnsealed(t, false)
		var fatal atomic.Int32
		u.l.o.Fatal = func(error) { fatal.Add(1) }
		acked := make(chan error, 100)
		n := 0
		for range 20 { // more than a segment holds
			if err := appendAsync(u.l, u.id, u.end+int64(n), mkBatch(u.end+int64(n), 1, 3000, 1, 1), 1, 1, func(err error) { acked <- err }); err != nil {
				t.Fatal(err)
			}
			n++
			for u.l.Stats().QueueBytes > 0 && len(acked) < n && u.l.Stats().Stalled == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		for u.l.Stats().Stalled == 0 { // at the roll
			time.Sleep(time.Millisecond)
		}
		if g := u.l.Stats().NewestGenration; g != 3 || len(acked) == n {
			t.Fatalf("segment %d was begun, %d of %d appends are acknowledged, and the second segment is not sealed", g, len(acked), n)
		}
		if fails {
			err := error(syscall.EIO)
			u.err.Store(&err)
		}
		close(u.open)
		failed := 0
		for range n {
			if err := <-acked; err != nil {
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("acknowledged with %v", err)
				}
				failed++
			}
		}
		if fails != (failed > 0) {
			t.Errorf("footer fails: %v; appends that failed: %d of %d", fails, failed, n)
		}
		if fails {
			for fatal.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			if err := u.l.Reserve(context.Background(), ClassClient, 1); !errors.Is(err, ErrFailed) {
				t.Errorf("after the failure: %v", err)
			}
		}
		u.l.Close()
	}
}

// TestFailedSealLies is TestFailedSyncLies for a footer: the process that comes next reads a footer that was never made
// durable, and no fsync of its own would make it so.
func TestFailedSealLies(t *testing.T) {
	u := newUnsealed(t, false)
	u.fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpSync && name == u.l.path(segmentName(2)) {
			if b := u.mem.Bytes(name); bytes.Contains(b[len(b)-segmentTailSize:], magicTail[:]) {
				u.mem.Forget(name)
				return vfs.Fault{Err: syscall.EIO}
			}
		}
		return vfs.Fault{}
	})
	close(u.open)
	for u.l.Failed() == nil {
		time.Sleep(time.Millisecond)
	}
	u.l.Close()
	l, corrupt := u.reopen(t, u.mem) // which has a tail in its cache
	if len(corrupt) > 0 {
		t.Fatal(corrupt)
	}
	u.holds(t, l, "after the failure")
	u.l = l
	u.roll(t) // the second one is not the last but one any more
	u.append(t)
	mustClose(t, l)
	l, corrupt = u.reopen(t, u.mem.Crash(3))
	if len(corrupt) > 0 {
		t.Fatalf("after power was lost: %v", corrupt)
	}
	u.holds(t, l, "after power was lost")
	mustClose(t, l)
}
