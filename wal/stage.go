package wal

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

const (
	regionBytes = 4 << 20
	// regionHead is kept free before the payloads, for header and descriptors of the block.
	regionHead = 256 << 10
	// maxStaged is the length up to which appenders put their payloads together themselves. The writer copies what is longer
	// while it writes what came before; an append holds its partition meanwhile.
	maxStaged = 16 << 10
)

// region is memory in which payloads lie as they are written, one behind the other in the order of the queue, put there by
// those who append them: they have just had the bytes in their hands, there are more of them than there are writers, and
// what takes the writer's time keeps everybody waiting. There are two: one is filled while the other is written.
type region struct {
	mem    []byte
	end    int          // guarded by Log.mu while it is filled; then the writer's
	copies atomic.Int32 // of payloads that have a place and are on their way to it
}

// openRegions makes the two, where a file system gains from them.
func (l *Log) openRegions() {
	if t, ok := l.fs.(vfs.Together); !ok || !t.Together() {
		return
	}
	for _, r := range []**region{&l.filling, &l.w.region} {
		*r = &region{mem: vfs.TakePages(regionBytes), end: regionHead}
	}
}

// closeRegions gives them back, when nothing is appended any more. The writer's is nil if the disk may still read it.
func (l *Log) closeRegions() {
	for _, r := range []*region{l.filling, l.w.region} {
		if r != nil {
			r.wait()
			vfs.GivePages(r.mem)
		}
	}
}

// place finds room for n bytes: where, or 0 if there is none. Called with Log.mu held.
func (r *region) place(n int) int {
	if r == nil || n > maxStaged || n > len(r.mem)-r.end {
		return 0
	}
	at := r.end
	r.end += n
	r.copies.Add(1)
	return at
}

// put copies a payload to its place. Until it returns, the writer waits.
func (r *region) put(at int, payload []byte) {
	vfs.Stream(r.mem[at:], payload)
	r.copies.Add(-1)
}

// block completes what lies there to a block: the head before the payloads, in whole pages. It is in one piece.
func (r *region) block(head []byte, from, to int) []byte {
	at := from - int(alignUp(int64(len(head))))
	n := vfs.Stream(r.mem[at:], head)
	clear(r.mem[at+n : from])
	return r.mem[at:alignUp(int64(to))]
}

// wait waits until all that has a place has come to it. That is as long as a copy of 16 KiB takes, unless the thread of one
// was interrupted.
func (r *region) wait() {
	for n := 0; r.copies.Load() != 0; n++ {
		if n > 100 {
			runtime.Gosched()
		}
	}
}

// staged says where in the writer's region the payloads of all items lie, if they can be written from there: without a gap,
// in the order of the queue, and from the beginning of a page. In this order a partition may have more than one run in a
// block, and between descriptors and payloads is the rest of a page: at most twice as many runs, and an eighth more pages.
func (l *Log) staged(items []item) (from, to int, ok bool) {
	w := &l.w
	if w.region == nil || !w.active.paged {
		return 0, 0, false
	}
	packed := int64(blockHeaderSize + (len(items)+min(len(w.dirty), maxBlockRecords))*descriptorSize)
	if packed > regionHead {
		return 0, 0, false
	}
	paged := alignUp(packed)
	stretches := 0
	var last *part
	for i := range items {
		it := &items[i]
		if it.err != nil {
			if it.at != 0 {
				return 0, 0, false
			}
			continue
		}
		if it.p != last {
			last = it.p
			stretches++
		}
		if len(it.payload) == 0 {
			continue
		}
		if from == 0 {
			from, to = int(it.at), int(it.at)
		}
		if it.at == 0 || int(it.at) != to {
			return 0, 0, false
		}
		to += len(it.payload)
		if slab.Debug && crc32c.Checksum(it.payload) != it.sum {
			panic(fmt.Sprintf("wal: the payload of offset %d at %d of the region is not what was appended", it.base, it.at))
		}
	}
	if from == 0 || from%pageSize != 0 || stretches > 2*len(w.groups) {
		return 0, 0, false
	}
	packed, paged = alignUp(packed+int64(to-from)), paged+alignUp(int64(to-from))
	return from, to, paged-packed <= packed/8 || l.o.paged
}
