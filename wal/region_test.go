package wal

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

// pagedOf tells of the blocks of a segment's image that are not empty, in order, which of them are paged.
func pagedOf(b []byte, at place) (paged []bool) {
	for pos := int64(segmentHeaderSize); pos < int64(len(b))-segmentTailSize; {
		h, err := decodeBlock(b[pos:], at, at.seed(), nil)
		if err != nil {
			return paged
		}
		if h.count > 0 {
			paged = append(paged, h.paged)
		}
		pos += alignUp(h.size())
	}
	return paged
}

// TestStagedAgainAndAgain: the two regions are used anew with each block, so that also what comes after them many times over is
// written from where it was put.
func TestStagedAgainAndAgain(t *testing.T) {
	noLeak(t)
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.SegmentBytes, o.MaxBytes, o.paged = 32<<20, 8*32<<20, true
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	mustAppend(t, l, p, 0, 1, 100)
	const appends = 2*regionBytes/maxStaged + 100
	for i := range int64(appends) {
		mustAppend(t, l, p, i+1, 1, maxStaged)
	}
	mustAppend(t, l, p, appends+1, 1, maxStaged+1)
	at := l.segments[0].at
	mustClose(t, l)
	paged := pagedOf(mem.Bytes(filepath.Join("wal", segmentName(1))), at)
	if len(paged) < appends+2 {
		t.Fatalf("%d blocks", len(paged))
	}
	n := 0
	for _, p := range paged {
		if p {
			n++
		}
	}
	if n < appends || n > appends+1 {
		t.Errorf("%d blocks are paged of %d appends that are short enough", n, appends)
	}
}

// TestStagedPlaces makes blocks of all that can come between payloads in the order of the queue: what is too long for the region,
// what has no payload, what is refused, and what no room was left for. Each is read back as it was appended.
func TestStagedPlaces(t *testing.T) {
	noLeak(t)
	mem := vfs.NewMem()
	fs, hold := gate(mem)
	o := testOptions(fs)
	o.SegmentBytes, o.MaxBytes, o.CacheBytes, o.paged = 32<<20, 8*32<<20, 1, true
	l := mustOpen(t, o)
	var ids []PartitionID
	for i := range int32(4) {
		ids = append(ids, l.Create([16]byte{1}, i, 0, nil, nil, nil))
	}
	want, end := make([][]byte, len(ids)), make([]int64, len(ids))
	mustAppend(t, l, l.Create([16]byte{2}, 0, 0, nil, nil, nil), 0, 1, 100)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 12 {
		release := hold()
		var done sync.WaitGroup
		add := func(i, size int) {
			b := mkBatch(end[i], 1, size, 1, byte(rng.IntN(256)))
			want[i] = append(want[i], b...)
			done.Add(1)
			if err := appendAsync(l, ids[i], end[i], b, 1, 1, func(err error) {
				if err != nil {
					t.Error(err)
				}
				done.Done()
			}); err != nil {
				t.Fatal(err)
			}
			end[i]++
		}
		add(0, 100) // the block whose fsync is held up
		bytes := []int{300 << 10, 1 << 20, 5 << 20}[round%3]
		for n := 0; n < bytes; {
			size := 61 + rng.IntN(2*pageSize)
			switch k := rng.IntN(40); {
			case k == 0 && round%2 == 0:
				size = maxStaged + rng.IntN(maxStaged)
			case k == 1 && round%4 == 1:
				l.Epoch(ids[rng.IntN(4)], -1, -1, nil)
			case k == 2 && round%4 == 2: // out of order
				done.Add(1)
				b := mkBatch(7, 1, 1000, 1, 1)
				if err := appendAsync(l, ids[0], end[0]+7, b, 1, 1, func(err error) {
					if !errors.Is(err, ErrOrder) {
						t.Errorf("out of order: %v", err)
					}
					done.Done()
				}); err != nil {
					t.Fatal(err)
				}
			case k == 3 && round%4 == 3:
				l.Snapshot(ids[1], end[1], []byte(strings.Repeat("s", 100)), nil)
			}
			add(rng.IntN(4), size)
			n += size
		}
		release()
		done.Wait()
	}
	check := func(l *Log) {
		t.Helper()
		for i, id := range ids {
			if got, err := readAll(l, id, 0, end[i], 1<<20); err != nil || !bytes.Equal(got, want[i]) {
				t.Errorf("partition %d: %d bytes, want %d; %v", i, len(got), len(want[i]), err)
			}
		}
	}
	check(l)
	mustClose(t, l)
	o.FS = mem.Crash(1)
	l = mustOpen(t, o)
	check(l)
	mustClose(t, l)
}

// TestWriterWaitsForCopies: a payload that has a place and is still on its way to it holds up the block, and nothing else does.
func TestWriterWaitsForCopies(t *testing.T) {
	l := mustOpen(t, testOptions(vfs.NewMem()))
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	mustAppend(t, l, p, 0, 1, 100)
	l.mu.Lock()
	r := l.filling
	at := r.place(100)
	l.mu.Unlock()
	done := make(chan error, 1)
	if err := appendAsync(l, p, 1, mkBatch(1, 1, 100, 1, 1), 1, 1, func(err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	for taken := false; !taken && len(done) == 0; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		taken = l.filling != r
		l.mu.Unlock()
	}
	select {
	case <-done:
		t.Error("written before all of it was there")
	case <-time.After(20 * time.Millisecond): // as long as it takes where nobody waits
	}
	r.put(at, make([]byte, 100))
	if err := <-done; err != nil {
		t.Error(err)
	}
	mustClose(t, l)
}

// TestStagedOnDisk appends from several goroutines to a log on a real disk, where blocks are written from the regions while
// others are filled, and applied meanwhile. What is read from the disk is what was appended.
func TestStagedOnDisk(t *testing.T) {
	noLeak(t)
	o := testOptions(nil)
	o.Dir = t.TempDir()
	o.SegmentBytes, o.MaxBytes, o.CacheBytes, o.paged = 2<<20, 64*2<<20, 1, true
	l := mustOpen(t, o)
	var wg sync.WaitGroup
	const partitions, appends = 8, 150
	ids := make([]PartitionID, partitions)
	want := make([][]byte, partitions)
	for i := range ids {
		ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			var done sync.WaitGroup
			for n := range int64(appends) {
				size := 61 + rng.IntN(6000)
				if rng.IntN(200) == 0 {
					size = maxStaged + 1
				}
				b := mkBatch(n, 1, size, 1, byte(rng.IntN(256)))
				want[i] = append(want[i], b...)
				buf := slab.Get(len(b))
				copy(buf.Bytes(), b)
				if err := l.Reserve(context.Background(), ClassClient, int64(len(b))); err != nil {
					t.Error(err)
				}
				done.Add(1)
				l.Append(&Append{Partition: ids[i], BaseOffset: n, LastOffset: n, Run: buf.Bytes(), Buf: buf, Sum: crc32c.Checksum(b), Summed: true, Done: func(err error) {
					if err != nil {
						t.Error(err)
					}
					done.Done()
				}})
				buf.Release()
				if rng.IntN(5) == 0 {
					done.Wait()
				}
			}
			done.Wait()
		}()
	}
	wg.Wait()
	check := func() {
		t.Helper()
		for i, id := range ids {
			if got, err := readAll(l, id, 0, appends, 1<<20); err != nil || !bytes.Equal(got, want[i]) {
				t.Errorf("partition %d: %d bytes, want %d; %v", i, len(got), len(want[i]), err)
			}
		}
	}
	check()
	newest := l.Stats().NewestGenration
	mustClose(t, l)
	paged := 0
	for g := uint64(1); g <= newest; g++ {
		b, err := os.ReadFile(filepath.Join(o.Dir, segmentName(g)))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pagedOf(b, place{l.id.uuid, g}) {
			if p {
				paged++
			}
		}
	}
	if paged == 0 {
		t.Error("no block was paged")
	}
	l = mustOpen(t, o)
	check()
	mustClose(t, l)
}

// TestRollFails: the next segment cannot be begun. The log ends, and Close does.
func TestRollFails(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpRename, vfs.OpSyncDir, vfs.OpOpen, vfs.OpWrite, vfs.OpSync} {
		t.Run(string(op), func(t *testing.T) {
			mem := vfs.NewMem()
			fs := vfs.NewFaulty(mem)
			o := testOptions(fs)
			l := mustOpen(t, o)
			p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
			want := mustAppend(t, l, p, 0, 1, 3000)
			for l.Stats().FreeSegments < spareTarget { // else the keeper meets the fault
				time.Sleep(time.Millisecond)
			}
			second := filepath.Join("wal", segmentName(2))
			renamed := false // by the writer, as everything that follows
			fs.Decide(func(o vfs.Op, name string) vfs.Fault {
				free := strings.HasSuffix(name, spareSuffix)
				if o == vfs.OpRename && free {
					renamed = true
				}
				if o == op && renamed && (free || name == second || o == vfs.OpSyncDir) {
					return vfs.Fault{Err: syscall.EIO}
				}
				return vfs.Fault{}
			})
			end := int64(1)
			for {
				b := mkBatch(end, 1, 3000, 1, 1)
				err := wait(func(done func(error)) {
					if err := appendAsync(l, p, end, b, 1, 1, done); err != nil {
						done(err)
					}
				})
				if err != nil {
					break
				}
				want, end = append(want, b...), end+1
			}
			if err := l.Close(); !errors.Is(err, ErrFailed) {
				t.Errorf("close: %v", err)
			}
			for seed := range uint64(4) {
				l := mustOpen(t, crashOptions(mem.Crash(seed)))
				if got, err := readAll(l, p, 0, end, 1<<20); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes read, want %d; %v", len(got), len(want), err)
				}
				mustClose(t, l)
			}
		})
	}
}
