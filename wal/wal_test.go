package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"github.com/varve/varve/wal/crc32c"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

// mkBatch makes a record batch whose records are junk but whose header and checksum are right: the log never looks
// inside.
func mkBatch(base int64, records int, size int, ts int64, fill byte) []byte {
	b := make([]byte, max(size, 61))
	for i := 61; i < len(b); i++ {
		b[i] = fill + byte(i)
	}
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	binary.BigEndian.PutUint32(b[23:], uint32(records-1))
	binary.BigEndian.PutUint64(b[27:], uint64(ts))
	binary.BigEndian.PutUint64(b[35:], uint64(ts))
	binary.BigEndian.PutUint64(b[43:], ^uint64(0))
	binary.BigEndian.PutUint32(b[57:], uint32(records))
	binary.BigEndian.PutUint32(b[17:], crc32c.Checksum(b[21:]))
	return b
}

func testOptions(fs vfs.FS) Options {
	return Options{
		FS: fs, Dir: "wal", ClusterID: "c", BrokerID: 1, SegmentBytes: 64 << 10, MaxBytes: 64 * 64 << 10,
		idle: time.Millisecond, retry: time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	}
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// wait turns a call with a done function into one that blocks.
func wait(f func(done func(error))) error {
	c := make(chan error, 1)
	f(func(err error) { c <- err })
	return <-c
}

func appendAsync(l *Log, p PartitionID, base int64, b []byte, records int, ts int64, done func(error)) error {
	buf := slab.Get(len(b))
	copy(buf.Bytes(), b)
	defer buf.Release()
	if err := l.Reserve(context.Background(), ClassClient, int64(len(b))); err != nil {
		return err
	}
	l.Append(&Append{Partition: p, BaseOffset: base, LastOffset: base + int64(records) - 1, MaxTimestamp: ts, Run: buf.Bytes(), Buf: buf, Done: done})
	return nil
}

func mustAppend(t testing.TB, l *Log, p PartitionID, base int64, records, size int) []byte {
	t.Helper()
	b := mkBatch(base, records, size, 1000+base, byte(base))
	if err := wait(func(done func(error)) {
		if err := appendAsync(l, p, base, b, records, 1000+base, done); err != nil {
			done(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

// readAll reads [from, to) in steps and returns it as one.
func readAll(l *Log, p PartitionID, from, to int64, step int) ([]byte, error) {
	var out []byte
	for from < to {
		r, err := l.Read(p, from, step, to)
		if err != nil {
			return out, err
		}
		if r.Next <= from {
			r.Release()
			return out, fmt.Errorf("read of %d makes no progress", from)
		}
		for _, c := range r.Chunks {
			out = append(out, c...)
		}
		from = r.Next
		r.Release()
	}
	return out, nil
}

func noLeak(t *testing.T) {
	t.Helper()
	before := slab.InUse()
	t.Cleanup(func() {
		if n := slab.InUse(); n != before {
			t.Errorf("%d bytes of buffers still in use, %d before", n, before)
		}
	})
}

func TestAppendReadReopen(t *testing.T) {
	for _, memory := range []int64{1, 1 << 20} {
		t.Run(fmt.Sprintf("cache=%d", memory), func(t *testing.T) {
			noLeak(t)
			o := testOptions(vfs.NewMem())
			o.CacheBytes = memory
			l := mustOpen(t, o)
			if !l.Fresh() || len(l.Partitions()) != 0 {
				t.Fatal("not fresh")
			}
			var ids []PartitionID
			want := map[PartitionID][]byte{}
			next := map[PartitionID]int64{}
			for i := range int32(5) {
				ids = append(ids, l.Create([16]byte{byte(i)}, i, int64(i)*10, lineage.Lineage{{Epoch: i, Start: int64(i) * 10}}, nil, nil))
				next[ids[i]] = int64(i) * 10
			}
			rng := rand.New(rand.NewPCG(1, 2))
			for range 200 {
				p := ids[rng.IntN(len(ids))]
				n := 1 + rng.IntN(3)
				want[p] = append(want[p], mustAppend(t, l, p, next[p], n, 100+rng.IntN(5000))...)
				next[p] += int64(n)
			}
			check := func(l *Log) {
				t.Helper()
				for i, p := range ids {
					start, end := l.Bounds(p)
					if start != int64(i)*10 || end != next[p] {
						t.Fatalf("partition %d: [%d, %d), want end %d", p, start, end, next[p])
					}
					for _, step := range []int{1, 3000, 100000} {
						got, err := readAll(l, p, start, end, step)
						if err != nil {
							t.Fatal(err)
						}
						if !bytes.Equal(got, want[p]) {
							t.Fatalf("partition %d: %d bytes, want %d", p, len(got), len(want[p]))
						}
					}
					if n := l.BytesBetween(p, start, end); n != int64(len(want[p])) {
						t.Fatalf("BytesBetween = %d, want %d", n, len(want[p]))
					}
					if _, err := l.Read(p, end+1, 1, 1<<60); !errors.Is(err, ErrOutOfRange) {
						t.Fatalf("read above the end: %v", err)
					}
					if _, err := l.Read(p, start-1, 1, 1<<60); !errors.Is(err, ErrOutOfRange) {
						t.Fatalf("read below the start: %v", err)
					}
				}
			}
			check(l)
			if s := l.Stats(); s.Segments < 3 || s.AppendedBytes == 0 {
				t.Fatalf("stats %+v", s)
			}
			uuid := l.UUID()
			mustClose(t, l)
			for range 2 {
				l = mustOpen(t, o)
				if l.Fresh() || l.UUID() != uuid || l.CutTail() {
					t.Fatal("not the same log")
				}
				rec := l.Partitions()
				if len(rec) != len(ids) {
					t.Fatalf("%d partitions", len(rec))
				}
				for i, r := range rec {
					if r.ID != ids[i] || r.TopicID != [16]byte{byte(i)} || r.Partition != int32(i) || r.Suspect || !r.Lineage.Equal(lineage.Lineage{{Epoch: int32(i), Start: int64(i) * 10}}) {
						t.Fatalf("recovered %+v", r)
					}
				}
				check(l)
				want[ids[0]] = append(want[ids[0]], mustAppend(t, l, ids[0], next[ids[0]], 1, 700)...)
				next[ids[0]]++
				mustClose(t, l)
			}
		})
	}
}

func TestReadBounds(t *testing.T) {
	for _, memory := range []int64{1, 1 << 20} {
		o := testOptions(vfs.NewMem())
		o.CacheBytes = memory
		l := mustOpen(t, o)
		p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
		// One append of three batches of two records each, then one of one.
		run := slices.Concat(mkBatch(0, 2, 100, 5, 1), mkBatch(2, 2, 200, 9, 2), mkBatch(4, 2, 300, 7, 3))
		if err := wait(func(done func(error)) {
			if err := appendAsync(l, p, 0, run, 6, 9, done); err != nil {
				done(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, l, p, 6, 1, 400)
		for _, tc := range []struct {
			offset, upTo int64
			max          int
			base, next   int64
			bytes        int
		}{
			{0, 100, 1 << 20, 0, 7, 1000},
			{1, 100, 1 << 20, 0, 7, 1000},
			{2, 100, 1 << 20, 2, 7, 900},
			{3, 100, 250, 2, 4, 200},
			{3, 100, 1, 2, 4, 200},
			{0, 4, 1 << 20, 0, 4, 300},
			{0, 3, 1 << 20, 0, 2, 100},
			{0, 1, 1 << 20, 0, 0, 0},
			{6, 7, 1, 6, 7, 400},
			{7, 100, 1, 7, 7, 0},
			{0, 100, 600, 0, 6, 600},
			{0, 100, 999, 0, 6, 600},
		} {
			r, err := l.Read(p, tc.offset, tc.max, tc.upTo)
			if err != nil {
				t.Fatal(err)
			}
			if r.Base != tc.base || r.Next != tc.next || r.Bytes != tc.bytes || r.FromMemory != (memory > 1) && tc.bytes > 0 {
				t.Errorf("memory %d: Read(%d, max %d, up to %d) = [%d, %d) %d bytes, memory %v; want [%d, %d) %d bytes", memory, tc.offset, tc.max, tc.upTo, r.Base, r.Next, r.Bytes, r.FromMemory, tc.base, tc.next, tc.bytes)
			}
			r.Release()
		}
		for _, tc := range []struct {
			ts, from, upTo int64
			base           int64
			found          bool
		}{
			{0, 0, 100, 0, true}, {6, 0, 100, 2, true}, {6, 4, 100, 4, true}, {8, 4, 100, 6, true}, {10, 0, 6, 0, false}, {10, 0, 100, 6, true}, {5000, 0, 100, 0, false},
		} {
			base, found, err := l.Find(p, tc.ts, tc.from, tc.upTo)
			if err != nil || base != tc.base || found != tc.found {
				t.Errorf("Find(%d, from %d, up to %d) = %d, %v, %v; want %d, %v", tc.ts, tc.from, tc.upTo, base, found, err, tc.base, tc.found)
			}
		}
		if ts, base, found, err := l.MaxTimestamp(p, 0, 6); err != nil || !found || ts != 9 || base != 2 {
			t.Errorf("MaxTimestamp = %d at %d, %v", ts, base, found)
		}
		if ts, base, found, err := l.MaxTimestamp(p, 4, 6); err != nil || !found || ts != 7 || base != 4 {
			t.Errorf("MaxTimestamp from 4 = %d at %d, %v", ts, base, found)
		}
		mustClose(t, l)
	}
}

func TestTruncateTrimDrop(t *testing.T) {
	for _, memory := range []int64{1, 1 << 20} {
		noLeak(t)
		o := testOptions(vfs.NewMem())
		o.CacheBytes = memory
		l := mustOpen(t, o)
		p := l.Create([16]byte{1}, 0, 0, lineage.Lineage{{Epoch: 0, Start: 0}}, nil, nil)
		q := l.Create([16]byte{1}, 1, 0, nil, []byte("state"), nil)
		var want []byte
		for i := range int64(10) {
			b := mustAppend(t, l, p, i, 1, 500)
			if i < 4 {
				want = append(want, b...)
			}
		}
		mustAppend(t, l, q, 0, 1, 500)
		l.Epoch(p, 3, 10, nil)
		l.Snapshot(p, 10, []byte("beyond"), nil)
		// The cut and what follows it are queued together, so they share a block or follow each other.
		l.Truncate(p, 4, nil)
		l.Epoch(p, 5, 4, nil)
		if _, end := l.Bounds(p); end != 4 {
			t.Fatalf("end %d after the cut", end)
		}
		nb := mkBatch(4, 2, 900, 1, 77)
		if err := appendAsync(l, p, 4, nb, 2, 1, nil); err != nil {
			t.Fatal(err)
		}
		want = append(want, nb...)
		check := func(l *Log) {
			t.Helper()
			got, err := readAll(l, p, 0, 6, 700)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("after the cut: %d bytes, want %d; %v", len(got), len(want), err)
			}
		}
		check(l)
		l.HighWatermark(p, 5)
		if err := wait(func(done func(error)) { l.Trim(p, 2, done) }); err != nil {
			t.Fatal(err)
		}
		check2 := func(l *Log) {
			t.Helper()
			start, end := l.Bounds(p)
			got, err := readAll(l, p, 2, 6, 1<<20)
			if err != nil || start != 2 || end != 6 || !bytes.Equal(got, want[1000:]) {
				t.Fatalf("after the trim: [%d, %d), %d bytes; %v", start, end, len(got), err)
			}
		}
		check2(l)
		if err := wait(func(done func(error)) { l.Drop(q, done) }); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Read(q, 0, 1, 1); !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("read of a dropped partition: %v", err)
		}
		if err := wait(func(done func(error)) { l.Epoch(q, 1, 1, done) }); !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("epoch of a dropped partition: %v", err)
		}
		mustClose(t, l)
		for range 2 {
			l = mustOpen(t, o)
			rec := l.Partitions()
			if len(rec) != 1 || rec[0].ID != p || rec[0].Start != 2 || rec[0].End != 6 || rec[0].HighWatermark != 5 || rec[0].Suspect ||
				!rec[0].Lineage.Equal(lineage.Lineage{{Epoch: 0, Start: 0}, {Epoch: 5, Start: 4}}) || rec[0].Snapshot != nil {
				t.Fatalf("recovered %+v", rec)
			}
			check2(l)
			if n := l.Create([16]byte{1}, 1, 0, nil, nil, nil); n <= q {
				t.Fatalf("local id %d was used before", n)
			} else if err := wait(func(done func(error)) { l.Drop(n, done) }); err != nil {
				t.Fatal(err)
			}
			mustClose(t, l)
		}
	}
}

func TestOutOfOrder(t *testing.T) {
	l := mustOpen(t, testOptions(vfs.NewMem()))
	defer l.Close()
	p := l.Create([16]byte{1}, 0, 5, nil, nil, nil)
	b := mkBatch(7, 1, 100, 0, 0)
	if err := wait(func(done func(error)) { appendAsync(l, p, 7, b, 1, 0, done) }); !errors.Is(err, ErrOrder) {
		t.Fatalf("append at 7 of a log that ends at 5: %v", err)
	}
	if s := l.Stats(); s.QueueBytes != 0 {
		t.Fatalf("%d bytes still reserved", s.QueueBytes)
	}
	mustAppend(t, l, p, 5, 1, 100)
}

func TestConcurrent(t *testing.T) {
	noLeak(t)
	o := testOptions(vfs.NewMem())
	o.SegmentBytes, o.MaxBytes, o.CacheBytes, o.QueueBytes = 256<<10, 64<<20, 100<<10, 64<<10
	l := mustOpen(t, o)
	const parts, each = 8, 150
	var wg sync.WaitGroup
	want := make([][]byte, parts)
	ids := make([]PartitionID, parts)
	for i := range parts {
		ids[i] = l.Create([16]byte{byte(i)}, 0, 0, nil, nil, nil)
	}
	for i := range parts {
		wg.Add(2)
		go func() {
			defer wg.Done()
			var acks sync.WaitGroup
			last := int64(-1)
			for k := range int64(each) {
				b := mkBatch(k, 1, 100+int(k*37)%3000, k, byte(i))
				want[i] = append(want[i], b...)
				acks.Add(1)
				if err := appendAsync(l, ids[i], k, b, 1, k, func(err error) {
					if err != nil || last != k-1 {
						t.Errorf("append %d told after %d: %v", k, last, err)
					}
					last = k
					acks.Done()
				}); err != nil {
					t.Error(err)
					acks.Done()
					return
				}
			}
			acks.Wait()
		}()
		go func() {
			defer wg.Done()
			at := int64(0)
			var got []byte
			for at < each {
				r, err := l.Read(ids[i], at, 5000, 1<<60)
				if err != nil {
					t.Error(err)
					return
				}
				for _, c := range r.Chunks {
					got = append(got, c...)
				}
				at = r.Next
				r.Release()
			}
			if !bytes.Equal(got, want[i]) {
				t.Errorf("partition %d: what was read while it was written is not what was written", i)
			}
		}()
	}
	wg.Wait()
	mustClose(t, l)
	l = mustOpen(t, o)
	for i, p := range ids {
		got, err := readAll(l, p, 0, each, 1<<20)
		if err != nil || !bytes.Equal(got, want[i]) {
			t.Fatalf("partition %d after reopening: %v", i, err)
		}
	}
	mustClose(t, l)
}

func TestIdentity(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	l := mustOpen(t, o)
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	mustClose(t, l)
	for _, change := range []func(o *Options){func(o *Options) { o.BrokerID = 2 }, func(o *Options) { o.ClusterID = "d" }} {
		x := o
		change(&x)
		if _, err := Open(x); !errors.Is(err, ErrForeign) {
			t.Fatalf("foreign log opened: %v", err)
		}
	}
	id := fs.Bytes("wal/identity")
	fs.Remove("wal/identity")
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("without identity: %v", err)
	}
	fs.Put("wal/identity", id[:20])
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("short identity: %v", err)
	}
	fs.Put("wal/identity", id)
	names, _ := fs.List("wal")
	for _, n := range names {
		if _, ok := parseName(n, segmentSuffix); ok {
			fs.Remove("wal/" + n)
		}
	}
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("without segments: %v", err)
	}
}

func TestOSFileSystem(t *testing.T) {
	noLeak(t)
	o := testOptions(nil)
	o.Dir = t.TempDir()
	o.CacheBytes = 1
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	var want []byte
	for i := range int64(60) {
		want = append(want, mustAppend(t, l, p, i, 1, 3000)...)
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	got, err := readAll(l, p, 0, 60, 10000)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
	}
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	mustClose(t, l)
	if _, err := os.Stat(o.Dir + "/" + identityName); err != nil {
		t.Fatal(err)
	}
}

func TestReserveQueueBound(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.QueueBytes = 1000
	l := mustOpen(t, o)
	defer l.Close()
	ctx := context.Background()
	if err := l.Reserve(ctx, ClassClient, 800); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := l.Reserve(short, ClassClient, 300); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("reserved beyond the bound: %v", err)
	}
	got := make(chan error, 2)
	go func() { got <- l.Reserve(ctx, ClassClient, 5000) }() // more than the bound: alone
	time.Sleep(5 * time.Millisecond)
	go func() { got <- l.Reserve(ctx, ClassClient, 10) }() // behind it
	time.Sleep(5 * time.Millisecond)
	l.Unreserve(800)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	l.Unreserve(5000)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	l.Unreserve(10)
	if err := l.Reserve(ctx, ClassClient, 1<<30); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	if s := l.Stats(); s.QueueBytes != 0 {
		t.Fatalf("%d bytes reserved", s.QueueBytes)
	}
}

// Partitions that come and go leave nothing behind in the order of the cache, which the bound of its bytes never
// reaches, and what stays in it is still let go of oldest first.
func TestCacheOrderIsBounded(t *testing.T) {
	noLeak(t)
	o := testOptions(vfs.NewMem())
	o.CacheBytes, o.MaxBytes = 64<<10, 512*64<<10 // 64 appends of 1 KiB; room for all of them
	l := mustOpen(t, o)
	defer mustClose(t, l)
	kept := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	mustAppend(t, l, kept, 0, 1, 1000)
	for round := range 80 {
		id := l.Create([16]byte{2}, int32(round), 0, nil, nil, nil)
		for i := range int64(32) {
			mustAppend(t, l, id, i, 1, 1000)
			if i%8 == 7 {
				l.Truncate(id, i, nil)
				mustAppend(t, l, id, i, 1, 1000)
			}
		}
		l.Drop(id, nil)
	}
	// The order is the completer's, which looks once more after it has told.
	settled := func(ok func(n, blank, bytes int64) bool) (n, blank, bytes int64) {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			n, blank, bytes = l.cache.order.Load(), l.cache.blank.Load(), l.cache.bytes.Load()
			if ok(n, blank, bytes) || time.Now().After(end) {
				return n, blank, bytes
			}
		}
	}
	n, blank, bytes := settled(func(n, blank, bytes int64) bool { return n <= 2*minBlank && blank <= n && bytes == 1024 })
	if n > 2*minBlank || blank > n {
		t.Errorf("after 80 partitions of 36 appends the order of the cache has %d entries, %d of them blank", n, blank)
	}
	if bytes != 1024 {
		t.Errorf("the cache holds %d bytes, of one append of 1 KiB", bytes)
	}
	// Over the bound: the oldest goes, then blanks, then the next.
	for i := int64(1); i < 200; i++ {
		mustAppend(t, l, kept, i, 1, 1000)
	}
	n, blank, bytes = settled(func(n, blank, bytes int64) bool { return bytes <= o.CacheBytes && n == bytes/1024 && blank == 0 })
	p := l.part(kept)
	p.mu.Lock()
	first, next := p.mem.at(0).base, p.mem.at(p.mem.n-1).next
	p.mu.Unlock()
	if next != 200 || first == 0 || bytes > o.CacheBytes || n != next-first || blank != 0 {
		t.Errorf("the cache holds [%d, %d) in %d bytes of %d, its order %d entries, %d of them blank", first, next, bytes, o.CacheBytes, n, blank)
	}
}

// The newest producer snapshot that is durable can be asked for while the log runs; a cut below it does away with it.
func TestProducerSnapshot(t *testing.T) {
	l := mustOpen(t, testOptions(vfs.NewMem()))
	defer mustClose(t, l)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	q := l.Create([16]byte{1}, 1, 7, nil, []byte("inherited"), nil)
	for i := range int64(6) {
		mustAppend(t, l, p, i, 1, 100)
	}
	is := func(id PartitionID, want string, offset int64) {
		t.Helper()
		got, at, err := l.ProducerSnapshot(id)
		if err != nil || string(got) != want || at != offset {
			t.Errorf("%q of %d, %v; want %q of %d", got, at, err, want, offset)
		}
	}
	is(p, "", 0)
	snapshot := func(s string, offset int64) {
		t.Helper()
		if err := wait(func(done func(error)) { l.Snapshot(p, offset, []byte(s), done) }); err != nil {
			t.Fatal(err)
		}
	}
	snapshot("of three", 3)
	is(p, "of three", 3)
	is(q, "inherited", 7)
	snapshot("of six", 6)
	is(p, "of six", 6)
	for _, cut := range []struct {
		to     int64
		want   string
		offset int64
	}{{6, "of six", 6}, {5, "", 0}} {
		if err := wait(func(done func(error)) { l.Truncate(p, cut.to, done) }); err != nil {
			t.Fatal(err)
		}
		is(p, cut.want, cut.offset)
	}
	if _, _, err := l.ProducerSnapshot(99); err == nil {
		t.Error("of no partition")
	}
}

// TestReserveAll: a run that is larger than the queue goes when it is alone, and while it waits it has nothing that those before it
// wait for. Reserved one after the other, its pieces would be held behind who waits for them.
func TestReserveAll(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.QueueBytes, o.SegmentBytes, o.MaxBytes = 1<<20, 16<<20, 160<<20
	l := mustOpen(t, o)
	defer mustClose(t, l)
	piece := int64(400 << 10)
	run := []int64{piece, piece, piece, piece}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.ReserveAll(ctx, ClassReplication, run); err != nil {
		t.Fatalf("alone: %v", err)
	}
	large, all := make(chan error, 1), make(chan error, 1)
	go func() { large <- l.Reserve(ctx, ClassClient, 2<<20) }() // larger than the queue, too
	waiting := func(want int) {
		t.Helper()
		for n := 0; n < want; time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatalf("%d wait, and not %d", n, want)
			}
			l.mu.Lock()
			n = len(l.waiters)
			l.mu.Unlock()
		}
	}
	waiting(1)
	if err := l.ReserveAll(ctx, ClassReplication, nil); err != nil {
		t.Errorf("nothing, where others wait: %v", err)
	}
	go func() { all <- l.ReserveAll(ctx, ClassReplication, run) }()
	waiting(2)
	for _, n := range run {
		l.Unreserve(n)
	}
	if err := <-large; err != nil {
		t.Fatalf("behind a run: %v", err)
	}
	l.Unreserve(2 << 20)
	if err := <-all; err != nil {
		t.Fatalf("behind who waits for all: %v", err)
	}
	for _, n := range run {
		l.Unreserve(n)
	}
	if n := l.Stats().QueueBytes; n != 0 {
		t.Errorf("%d bytes of the queue are taken, and nobody has any", n)
	}
	if err := l.ReserveAll(ctx, ClassReplication, []int64{1, 1 << 30}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a piece that fits into no segment: %v", err)
	}
	if n := l.Stats().QueueBytes; n != 0 {
		t.Errorf("%d bytes taken by who was refused", n)
	}
}
