// Package slab hands out reference-counted buffers from size-class pools.
//
// A produce request arrives in one buffer, which is then shared by the write-ahead log, its tail cache and every
// fetch response that serves the batch from memory. Allocating and zeroing a fresh buffer per request costs more
// CPU than the checksum of what it holds, and copying it costs as much again; so buffers are recycled, and they
// are recycled only when the last holder has let go. Returning a buffer while somebody still reads it is silent
// corruption of another client's data: Release panics below zero, and builds with the race detector or with
// `-tags slabdebug` overwrite a buffer's content on its last release so that a late reader sees garbage that no
// checksum accepts.
package slab

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	minShift   = 9  // 512 B, so that a small request does not hold a page of cache
	largeShift = 12 // above 4 KiB there are four classes to each doubling
	maxShift   = 24 // 16 MiB

	small   = largeShift - minShift + 1
	classes = small + 4*(maxShift-largeShift)

	// MaxPooled is the largest size that is recycled. Larger buffers are plain allocations.
	MaxPooled = 1 << maxShift

	// keepFree bounds the large buffers that wait for their next use.
	keepFree = 64 << 20
)

// Buf is a buffer with a reference count. The zero value is not usable; Get makes one.
//
// The holder of a reference may read the bytes. Only the holder of the sole reference may write them.
type Buf struct {
	mem   []byte // the whole size class
	n     int
	class int8 // -1: not pooled
	// count has the references in its lower half, and in its upper half how many of them are a cache's: one word, as
	// every change of it is a cache line on its way from one processor to another.
	count atomic.Int64
}

const cached = 1<<32 + 1 // a reference of a cache

var (
	pools [small]sync.Pool
	large freeList
	inUse atomic.Int64
)

// freeList keeps large buffers, the last one given back on top: its memory is still in the processor's cache. A
// sync.Pool would be emptied by every second garbage collection, and a broker that takes requests of megabytes would
// spend more on fresh zeroed memory than on what it does with them.
type freeList struct {
	mu    sync.Mutex
	free  [classes][]*Buf
	bytes int
}

func (l *freeList) get(c int) *Buf {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.free[c]
	if len(f) == 0 {
		return nil
	}
	b := f[len(f)-1]
	f[len(f)-1] = nil
	l.free[c] = f[:len(f)-1]
	l.bytes -= len(b.mem)
	return b
}

// put keeps a buffer; when there are too many, one of another size is let go for it.
func (l *freeList) put(b *Buf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := classes - 1; c >= small && l.bytes+len(b.mem) > keepFree; {
		f := l.free[c]
		if len(f) == 0 || c == int(b.class) {
			c--
			continue
		}
		l.bytes -= len(f[len(f)-1].mem)
		f[len(f)-1] = nil
		l.free[c] = f[:len(f)-1]
	}
	if l.bytes+len(b.mem) > keepFree {
		return
	}
	l.bytes += len(b.mem)
	l.free[b.class] = append(l.free[b.class], b)
}

// Get returns a buffer with len(Bytes()) == n and one reference. Its content is whatever it held before.
func Get(n int) *Buf {
	if n < 0 {
		panic(fmt.Sprintf("slab: negative size %d", n))
	}
	c := classOf(n)
	if c < 0 {
		b := &Buf{mem: make([]byte, n), n: n, class: -1}
		b.count.Store(1)
		inUse.Add(int64(n))
		return b
	}
	var b *Buf
	if c < small {
		b, _ = pools[c].Get().(*Buf)
	} else {
		b = large.get(c)
	}
	if b == nil {
		b = &Buf{mem: make([]byte, sizeOf(c)), class: int8(c)}
	}
	b.n = n
	b.count.Store(1)
	inUse.Add(int64(len(b.mem)))
	return b
}

// classOf returns the smallest class that holds n bytes, or -1.
func classOf(n int) int {
	switch {
	case n > MaxPooled:
		return -1
	case n <= 1<<minShift:
		return 0
	case n <= 1<<largeShift:
		return bits.Len(uint(n-1)) - minShift
	}
	e := bits.Len(uint(n-1)) - 1 // 2^e < n
	step := 1 << (e - 2)
	return small + 4*(e-largeShift) + (n-1<<e+step-1)/step - 1
}

// sizeOf is the size of a class's buffers.
func sizeOf(c int) int {
	if c < small {
		return 1 << (minShift + c)
	}
	c -= small
	e := largeShift + c/4
	return 1<<e + (c%4+1)<<(e-2)
}

// Bytes is the usable part of the buffer. It is invalid after the caller's reference is released.
func (b *Buf) Bytes() []byte { return b.mem[:b.n:b.n] }

// Charge is what the buffer costs while it is held: the whole size class, however little of it is used.
func (b *Buf) Charge() int { return len(b.mem) }

// Retain adds a reference. The caller must hold one.
func (b *Buf) Retain() { b.added(b.count.Add(1), 1) }

// RetainCached adds two references, one of them that of a cache, which ends with ReleaseCached. first: no other cache's
// reference was there, so that a buffer which a cache holds several times is charged once. The caller must hold a reference.
func (b *Buf) RetainCached() (first bool) {
	c := b.count.Add(cached + 1)
	b.added(c, 2)
	return c>>32 == 1
}

// ReleaseCached gives up a cache's reference. last: there is no other one.
func (b *Buf) ReleaseCached() (last bool) {
	c := b.count.Add(-cached)
	b.released(int32(c))
	return c>>32 == 0
}

func (b *Buf) added(count int64, n int32) {
	if r := int32(count); r <= n {
		panic(fmt.Sprintf("slab: retain of a released buffer (references now %d)", r))
	}
}

// Release gives up one reference. The last one returns the buffer to its pool.
func (b *Buf) Release() { b.released(int32(b.count.Add(-1))) }

func (b *Buf) released(refs int32) {
	switch r := refs; {
	case r > 0:
		return
	case r < 0:
		panic(fmt.Sprintf("slab: release below zero (references now %d)", r))
	}
	inUse.Add(-int64(len(b.mem)))
	if Debug {
		poison(b.mem)
	}
	switch {
	case b.class >= small:
		large.put(b)
	case b.class >= 0:
		pools[b.class].Put(b)
	}
}

// InUse is the sum of Charge over all buffers that are held now.
func InUse() int64 { return inUse.Load() }

// poison fills m with a byte that is neither zero nor a plausible batch header.
func poison(m []byte) {
	if len(m) == 0 {
		return
	}
	m[0] = 0xDB
	for n := 1; n < len(m); n *= 2 {
		copy(m[n:], m[:n])
	}
}
