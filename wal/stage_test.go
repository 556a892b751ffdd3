package wal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/wal/vfs"
)

// held lets the first write of blocks wait until it is opened, so that what is queued meanwhile is one block.
type held struct {
	waits  chan struct{} // closed when the writer is there
	open   chan struct{}
	closed atomic.Bool
}

func newHeld(fs *vfs.Faulty) *held {
	g := &held{waits: make(chan struct{}), open: make(chan struct{})}
	fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpWrite && strings.HasSuffix(name, segmentSuffix) && g.closed.CompareAndSwap(true, false) { // not of a file that is being prepared
			close(g.waits)
			<-g.open
		}
		return vfs.Fault{}
	})
	return g
}

// blocksOf returns the headers of all blocks of a segment that is intact.
func blocksOf(t *testing.T, l *Log, g *segment) (out []blockHeader) {
	t.Helper()
	b := make([]byte, g.size)
	if err := readFull(g.file, b, 0); err != nil {
		t.Fatal(err)
	}
	for pos := int64(segmentHeaderSize); pos < g.end; {
		h, err := decodeBlock(b[pos:g.end], g.at, g.seed, nil)
		if err != nil {
			t.Fatalf("segment %d at %d: %v", g.at.generation, pos, err)
		}
		out = append(out, h)
		pos += alignUp(h.size())
	}
	return out
}

// TestPaged puts together what makes a block be written from where its appenders have put it, and what does not; either way
// it is there when the log is opened again, in its order.
func TestPaged(t *testing.T) {
	noLeak(t)
	type app struct{ part, size int }
	each := func(parts, times, size int) (out []app) {
		for range times {
			for p := range parts {
				out = append(out, app{p, size})
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		apps    []app
		after   func(i int, l *Log, ids []PartitionID) // called after that append
		paged   bool
		segment int64 // bytes; the bound of a block is a quarter
	}{
		"100 partitions":          {apps: each(100, 1, 1000), paged: true},
		"one":                     {apps: each(1, 1, 16<<10), paged: true},
		"one small":               {apps: each(1, 1, 1000)},
		"one partition":           {apps: each(1, 100, 1000), paged: true},
		"10 partitions in turn":   {apps: each(10, 10, 1000)},
		"too long":                {apps: append(each(50, 1, 1000), app{0, maxStaged + 1})},
		"longest":                 {apps: append(each(20, 1, maxStaged), app{0, maxStaged}), paged: true},
		"more than there is room": {apps: each(245, 1, maxStaged), segment: 16 << 20},
		"one page more":           {apps: each(1, 1, 16<<10-200)},
		"epochs and trims between": {apps: each(60, 1, 1000), paged: true, after: func(i int, l *Log, ids []PartitionID) {
			l.Epoch(ids[i], 3, 1, nil)
			if i%7 == 0 {
				l.Trim(ids[i], 1, nil)
				l.HighWatermark(ids[i], 1)
			}
		}},
		"a cut between": {apps: each(60, 2, 1000), paged: true, after: func(i int, l *Log, ids []PartitionID) {
			if i == 30 {
				l.Truncate(ids[i], 0, nil)
				l.Truncate(ids[i], 0, nil)
			}
		}},
		"a snapshot between": {apps: each(60, 1, 1000), after: func(i int, l *Log, ids []PartitionID) {
			if i == 30 {
				l.Snapshot(ids[i], 1, []byte("state"), nil)
			}
		}},
		"something refused between": {apps: each(60, 1, 1000), paged: true, after: func(i int, l *Log, ids []PartitionID) {
			if i == 30 {
				l.Epoch(1<<40, 1, 0, func(err error) {
					if !errors.Is(err, ErrOutOfRange) {
						t.Errorf("epoch of no partition: %v", err)
					}
				})
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewFaulty(vfs.NewMem())
			gate := newHeld(fs)
			o := testOptions(fs)
			o.SegmentBytes, o.MaxBytes, o.idle = max(c.segment, 8<<20), 128<<20, time.Hour
			l := mustOpen(t, o)
			var ids []PartitionID
			for i := range 250 {
				id := l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
				ids = append(ids, id)
			}
			first := l.Create([16]byte{2}, 0, 0, nil, nil, nil)
			mustAppend(t, l, first, 0, 1, 100)
			gate.closed.Store(true)
			if err := appendAsync(l, first, 1, mkBatch(1, 1, 100, 1, 1), 1, 1, nil); err != nil {
				t.Fatal(err)
			}
			<-gate.waits
			want := make([][]byte, len(ids))
			ends := make([]int64, len(ids))
			var wg sync.WaitGroup
			for i, a := range c.apps {
				if _, end := l.Bounds(ids[a.part]); end < ends[a.part] { // cut
					ends[a.part], want[a.part] = end, nil
				}
				b := mkBatch(ends[a.part], 1, a.size, int64(i), byte(i))
				wg.Add(1)
				if err := appendAsync(l, ids[a.part], ends[a.part], b, 1, int64(i), func(err error) {
					if err != nil {
						t.Error(err)
					}
					wg.Done()
				}); err != nil {
					t.Fatal(err)
				}
				ends[a.part]++
				want[a.part] = append(want[a.part], b...)
				if c.after != nil {
					c.after(i, l, ids)
				}
			}
			check := func(l *Log, when string) {
				for i, id := range ids {
					start, end := l.Bounds(id)
					if cut := end < ends[i]; cut {
						ends[i], want[i] = end, want[i][:0]
					}
					from := 0
					if start > 0 {
						from = len(want[i])
					}
					if got, err := readAll(l, id, start, end, 1<<20); err != nil || end != ends[i] || !bytes.Equal(got, want[i][from:]) {
						t.Fatalf("%s: partition %d [%d, %d): %d bytes, want %d; %v", when, i, start, end, len(got), len(want[i]), err)
					}
				}
			}
			check(l, "queued")
			close(gate.open)
			wg.Wait()
			paged := 0
			for _, h := range blocksOf(t, l, l.w.active) {
				if h.paged {
					paged++
				}
			}
			if paged > 0 != c.paged {
				t.Errorf("%d paged blocks, want some: %v", paged, c.paged)
			}
			mustClose(t, l)
			l = mustOpen(t, o)
			check(l, "opened again")
			mustClose(t, l)
		})
	}
}

// TestPagedUnderLoad appends from many goroutines, so that there are places that are not filled yet when the writer takes the
// region.
func TestPagedUnderLoad(t *testing.T) {
	noLeak(t)
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.SegmentBytes, o.MaxBytes, o.CacheBytes, o.idle, o.paged = 4<<20, 256<<20, 16<<10, time.Hour, true
	l := mustOpen(t, o)
	const parts, appenders, times = 100, 16, 100
	var ids []PartitionID
	for i := range parts {
		ids = append(ids, l.Create([16]byte{1}, int32(i), 0, nil, nil, nil))
	}
	var mus [parts]sync.Mutex
	var ends [parts]int64
	var want [parts][]byte
	var wg sync.WaitGroup
	for a := range appenders {
		wg.Go(func() {
			for i := range times {
				p := (a*37 + i*53) % parts
				mus[p].Lock()
				b := mkBatch(ends[p], 1, 100+(a*7919+i*104729)%3000, int64(i), byte(a+i))
				done := make(chan error, 1)
				err := appendAsync(l, ids[p], ends[p], b, 1, int64(i), func(err error) { done <- err })
				ends[p]++
				want[p] = append(want[p], b...)
				mus[p].Unlock()
				if err == nil {
					err = <-done
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	paged := 0
	l.segMu.Lock()
	segments := append([]*segment(nil), l.segments...)
	l.segMu.Unlock()
	for _, g := range segments {
		for _, h := range blocksOf(t, l, g) {
			if h.paged {
				paged++
			}
		}
	}
	if paged == 0 {
		t.Error("no paged block: this is not what it is there for")
	}
	for range 2 {
		for p, id := range ids {
			if got, err := readAll(l, id, 0, ends[p], 5000); err != nil || !bytes.Equal(got, want[p]) {
				t.Fatalf("partition %d: %d bytes, want %d; %v", p, len(got), len(want[p]), err)
			}
		}
		mustClose(t, l)
		l = mustOpen(t, o)
	}
	mustClose(t, l)
}

// TestSegmentOfBefore goes on in a segment that was begun when there were no paged blocks: none is written to it, and the next
// one may have them.
func TestSegmentOfBefore(t *testing.T) {
	mem := openSample(t, "v1", nil)
	o := testOptions(mem)
	o.ClusterID, o.BrokerID, o.MaxBytes, o.paged = "sample", 7, 8*o.SegmentBytes, true
	l := mustOpen(t, o)
	begun := l.w.active.at.generation
	id := l.Partitions()[0].ID
	_, end := l.Bounds(id)
	from := end
	var want []byte
	for l.Stats().NewestGenration < begun+2 {
		want = append(want, mustAppend(t, l, id, end, 1, 3000)...)
		end++
	}
	if got, err := readAll(l, id, from, end, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
	}
	mustClose(t, l)
	for _, generation := range []uint64{begun, begun + 1} {
		b := mem.Bytes(fmt.Sprintf("wal/%s", segmentName(generation)))
		paged := slices.Contains(pagedOf(b, place{l.id.uuid, generation}), true)
		if version, after := le.Uint16(b[8:]), generation > begun; paged != after || (version == segmentVersion) != after {
			t.Errorf("segment %d of version %d has paged blocks: %v; the log was opened at segment %d", generation, version, paged, begun)
		}
	}
}

// TestRefusedClaimsNothing is an idle log whose last items came to nothing: the block before them is claimed all the same.
func TestRefusedClaimsNothing(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.idle = time.Hour
	l := mustOpen(t, o)
	id := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	mustAppend(t, l, id, 0, 1, 100)
	if err := wait(func(done func(error)) { l.Epoch(1<<40, 1, 0, done) }); !errors.Is(err, ErrOutOfRange) {
		t.Fatal(err)
	}
	last := l.w.active.lastSeq
	mustClose(t, l) // which claims the last block
	if l.w.active.lastSeq != last+1 {
		t.Errorf("the last block is %d after the log was closed, and was %d: nothing claims it", l.w.active.lastSeq, last)
	}
}
