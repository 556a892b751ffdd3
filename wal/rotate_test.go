package wal

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/wal/vfs"
)

// refusedAtLast waits until a client is refused, which it is once the log has come to rest, and fails if more is copied until
// then than most.
func refusedAtLast(t *testing.T, l *Log, size, most int64) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		err := l.Reserve(ctx, ClassClient, size)
		cancel()
		if err == nil {
			l.Unreserve(size)
			time.Sleep(time.Millisecond)
		}
		switch st := l.Stats(); {
		case st.CarriedBytes > most:
			t.Fatalf("%d bytes copied in a log of %d, and no end of it: %+v", st.CarriedBytes, st.MaxBytes, st)
		case errors.Is(err, ErrNoSpace):
			return
		}
	}
}

// TestControlStateIsNoGain: each segment begins with the control state of all partitions, which nobody copies. Where it is large,
// there is nothing to gain all the same by copying the rest from segment to segment.
func TestControlStateIsNoGain(t *testing.T) {
	for name, partitions := range map[string]int{"third": 500, "half": 900} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(vfs.NewMem())
			o.SegmentBytes, o.MaxBytes = 256<<10, 10*256<<10
			l := mustOpen(t, o)
			ids := make([]PartitionID, partitions)
			for i := range ids {
				if err := l.AdmitPartition(nil); err != nil {
					t.Fatal(i, err)
				}
				ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
			}
			var want [4][]byte
			var ends [4]int64
			for i := 0; ; i = (i + 1) % len(want) {
				b := mkBatch(ends[i], 1, 8000, ends[i], byte(i))
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				err := l.Reserve(ctx, ClassClient, int64(len(b)))
				cancel()
				if err != nil {
					break
				}
				if err := wait(func(done func(error)) {
					l.Append(&Append{Partition: ids[i], BaseOffset: ends[i], LastOffset: ends[i], Run: b, Done: done})
				}); err != nil {
					t.Fatal(err)
				}
				want[i], ends[i] = append(want[i], b...), ends[i]+1
			}
			refusedAtLast(t, l, 8000, o.MaxBytes)
			for i := range want {
				if got, err := readAll(l, ids[i], 0, ends[i], 1<<20); err != nil || !bytes.Equal(got, want[i]) {
					t.Fatalf("partition %d: %d of %d bytes, %v", i, len(got), len(want[i]), err)
				}
			}
			mustClose(t, l)
		})
	}
}

// TestLargeAppendsAtTheBound fills the log with appends of nearly half a segment, of which only one goes into each.
func TestLargeAppendsAtTheBound(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.SegmentBytes, o.MaxBytes = 256<<10, 10*256<<10
	l := mustOpen(t, o)
	ids := make([]PartitionID, 100)
	for i := range ids {
		ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
	}
	for end := int64(0); ; end++ {
		b := mkBatch(end, 1, 115<<10, end, byte(end))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := l.Reserve(ctx, ClassClient, int64(len(b)))
		cancel()
		if err != nil {
			break
		}
		if err := wait(func(done func(error)) {
			l.Append(&Append{Partition: ids[0], BaseOffset: end, LastOffset: end, Run: b, Done: done})
		}); err != nil {
			t.Fatal(err)
		}
	}
	refusedAtLast(t, l, 115<<10, o.MaxBytes)
	mustClose(t, l)
}

// TestTruncationWaitsForSpace: a truncation is behind what waits for space; the segment that is to be given back holds data of its
// partition, and does not wait for it.
func TestTruncationWaitsForSpace(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.MaxBytes = 24 * o.SegmentBytes
	l := mustOpen(t, o)
	ids, end := exhaust(t, l)
	for n := range 2000 {
		l.Epoch(ids[n%len(ids)], int32(n), end, nil)
	}
	for _, id := range ids {
		l.Truncate(id, end-1, nil)
	}
	for _, id := range ids {
		_, e := l.Bounds(id)
		l.SetReclaimable(id, e)
	}
	for range 5000 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		err := l.Reserve(ctx, ClassClient, 100)
		cancel()
		if err == nil {
			l.Unreserve(100)
			mustClose(t, l)
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("still no room: %+v", l.Stats())
}

// TestSnapshotsWhileCarrying: while segments are carried of which all is needed, more is queued than anybody has reserved room for. It
// waits for the copies, and they do not wait for the file that they are to bring.
func TestSnapshotsWhileCarrying(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.SegmentBytes, o.MaxBytes = 256<<10, 16*256<<10
	var l *Log
	ids := make([]PartitionID, 16)
	var carried atomic.Int64
	o.Events.Carried = func(int64) {
		if n := carried.Add(1); n%8 == 1 && n < 40 {
			for _, id := range ids {
				l.Snapshot(id, 0, make([]byte, 30000), nil)
			}
			for waits := false; !waits; time.Sleep(10 * time.Microsecond) { // until they are written, or have to wait
				l.mu.Lock()
				waits = l.waiting
				l.mu.Unlock()
			}
		}
	}
	l = mustOpen(t, o)
	for i := range ids {
		ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
	}
	busy, frozen := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{2}, 0, 0, nil, nil, nil)
	var want []byte
	var n int64
	for ; len(want) < 4*256<<10; n++ {
		want = append(want, mustAppend(t, l, frozen, n, 1, 10000)...)
	}
	pass(t, l, busy, 0, 2*o.MaxBytes/3000)
	if got, err := readAll(l, frozen, 0, n, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
	}
	if n := carried.Load(); n < 20 {
		t.Errorf("copied %d times", n)
	}
	mustClose(t, l)
}
