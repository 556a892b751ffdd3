package wal

import "github.com/varve/varve/wal/slab"

// cache keeps the buffers of the newest appends for readers: first in, first out over all partitions, bounded by
// what the buffers cost. A buffer that several appends share (the partitions of one request) is charged once, whole,
// for as long as any of them is kept. The batches are in part.mem; here is only the order, and the sum.
type cache struct {
	bytes  int64
	fifo   ring[cached]
	lastID uint64
}

type cached struct {
	id    uint64
	p     *part
	bytes int
}

// add counts a new chunk. Called with Log.mu held, as are all methods.
func (c *cache) add(p *part, buf *slab.Buf, n int) (id uint64) {
	c.lastID++
	c.fifo.push(cached{c.lastID, p, n})
	if buf == nil {
		c.bytes += int64(n)
		return c.lastID
	}
	if buf.Cached++; buf.Cached == 1 {
		c.bytes += int64(buf.Charge())
	}
	return c.lastID
}

func (c *cache) remove(x *chunk) {
	if x.buf == nil {
		c.bytes -= int64(len(x.bytes))
		return
	}
	if x.buf.Cached--; x.buf.Cached == 0 {
		c.bytes -= int64(x.buf.Charge())
	}
}

// trimCache lets go of the oldest chunks until the bound holds. What is not durable can only be read from memory and is
// never let go: durable is the last chunk that is. It is the completer that calls it, after it has told a block's callers.
func (l *Log) trimCache(durable uint64) {
	var victims [64]cached
	var out [64]chunk
	for {
		l.mu.Lock()
		n := 0
		over := l.cache.bytes - l.o.CacheBytes
		for n < len(victims) && over > 0 && l.cache.fifo.n > n && l.cache.fifo.at(n).id <= durable {
			victims[n] = *l.cache.fifo.at(n)
			over -= int64(victims[n].bytes)
			n++
		}
		l.mu.Unlock()
		if n == 0 {
			return
		}
		k := 0
		for _, v := range victims[:n] {
			v.p.mu.Lock()
			// It may be gone: cut off, or its partition dropped.
			if v.p.mem.n > 0 && v.p.mem.at(0).id == v.id {
				out[k] = v.p.mem.popFront()
				k++
			}
			v.p.mu.Unlock()
		}
		l.mu.Lock()
		for i := range out[:k] {
			l.cache.remove(&out[i])
		}
		for range n {
			l.cache.fifo.popFront()
		}
		l.mu.Unlock()
		for i := range out[:k] {
			if out[i].buf != nil {
				out[i].buf.Release()
			}
		}
		clear(out[:k])
	}
}

func (l *Log) let(x chunk) {
	l.mu.Lock()
	l.cache.remove(&x)
	l.mu.Unlock()
	if x.buf != nil {
		x.buf.Release()
	}
}

// forget drops the n oldest chunks of a partition, forgetLast the n newest. Called with p.mu held.
func (l *Log) forget(p *part, n int) {
	for range n {
		l.let(p.mem.popFront())
	}
}

func (l *Log) forgetLast(p *part, n int) {
	for range n {
		l.let(p.mem.popBack())
	}
}
