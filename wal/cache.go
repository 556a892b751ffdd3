package wal

import (
	"sort"
	"sync/atomic"
)

// cache keeps the buffers of the newest appends for readers: first in, first out over all partitions, bounded by
// what the buffers cost. A buffer that several appends share (the partitions of one request) is charged once, whole,
// for as long as any of them is kept. The batches are in part.mem; here is only the order, and the sum.
//
// What a truncation or the end of a partition takes out of the middle stays in the order as a blank. The bound of bytes
// does not reach blanks, which cost none: topics that come and go would make the order longer for ever. So it is closed
// up once more than half of it is blank.
type cache struct {
	bytes atomic.Int64
	blank atomic.Int64 // about how many of fifo are gone already, or will be when they come into it
	// fifo has what is durable, in the order of the log. Of the completer alone.
	fifo  ring[cached]
	order atomic.Int64 // its length
}

// minBlank is how many blanks are not worth a look at the whole order.
const minBlank = 1024

type cached struct {
	p  *part
	id uint64
}

// trimCache takes note of the chunks of a block that is durable, and lets go of the oldest until the bound holds. What
// is not durable can only be read from memory and is never let go. It is the completer that calls it, after it has told
// the block's callers.
func (l *Log) trimCache(items []item) {
	f := &l.cache.fifo
	for i := range items {
		if it := &items[i]; it.chunk > 0 && it.err == nil {
			f.push(cached{it.p, it.chunk})
		}
	}
	var p *part // locked
	for f.n > 0 && l.cache.bytes.Load() > l.o.CacheBytes {
		v := f.popFront()
		if v.p != p {
			if p != nil {
				p.mu.Unlock()
			}
			p = v.p
			p.mu.Lock()
		}
		// It may be gone: cut off, or its partition dropped.
		if p.mem.n > 0 && p.mem.at(0).id == v.id {
			l.let(p.mem.popFront())
		} else {
			l.cache.blank.Add(-1)
		}
	}
	if p != nil {
		p.mu.Unlock()
	}
	if n := l.cache.blank.Load(); n >= minBlank && n > int64(f.n/2) {
		var kept ring[cached]
		for i := range f.n {
			if v := f.at(i); v.p.has(v.id) {
				kept.push(*v)
			}
		}
		l.cache.blank.Add(-int64(f.n - kept.n))
		*f = kept
	}
	l.cache.order.Store(int64(f.n))
}

// has tells whether a chunk is still kept.
func (p *part) has(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := sort.Search(p.mem.n, func(i int) bool { return p.mem.at(i).id >= id })
	return i < p.mem.n && p.mem.at(i).id == id
}

// let gives up a chunk that is not in its partition's mem any more. Called with the partition's lock held.
func (l *Log) let(x chunk) {
	if x.buf == nil {
		l.cache.bytes.Add(-int64(len(x.bytes)))
	} else if n := int64(x.buf.Charge()); x.buf.ReleaseCached() {
		l.cache.bytes.Add(-n)
	}
}

// forget drops the n oldest chunks of a partition out of turn, forgetLast the n newest. Called with p.mu held.
func (l *Log) forget(p *part, n int) {
	l.cache.blank.Add(int64(n))
	for range n {
		l.let(p.mem.popFront())
	}
}

func (l *Log) forgetLast(p *part, n int) {
	l.cache.blank.Add(int64(n))
	for range n {
		l.let(p.mem.popBack())
	}
}
