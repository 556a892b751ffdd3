package wal

import (
	"bytes"
	"context"
	"errors"
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
