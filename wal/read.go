package wal

import (
	"errors"
	"fmt"
	"sort"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/slab"
)

// Run is what a read found: whole record batches, back to back, in chunks that may be used until Release.
type Run struct {
	Chunks     [][]byte
	Base, Next int64 // the first batch's first offset; the offset after the last batch
	Bytes      int
	FromMemory bool
	bufs       []*slab.Buf
}

// Release lets go of the chunks.
func (r *Run) Release() {
	for _, b := range r.bufs {
		b.Release()
	}
	r.bufs, r.Chunks = nil, nil
}

// Held is what the buffers take that the chunks lie in, and that stay until Release: a whole request's for one
// batch of it.
func (r *Run) Held() (n int64) {
	for i, b := range r.bufs {
		if i == 0 || b != r.bufs[i-1] { // requests that arrived together lie in one
			n += int64(b.Charge())
		}
	}
	return n
}

// add appends batches [base, next), which lie in buf if that is not nil; the run takes over one reference to it.
func (r *Run) add(chunk []byte, base, next int64, buf *slab.Buf) {
	if r.Bytes == 0 {
		r.Base = base
	}
	r.Chunks = append(r.Chunks, chunk)
	r.Bytes += len(chunk)
	r.Next = next
	if buf != nil {
		r.bufs = append(r.bufs, buf)
	}
}

// Read returns whole batches from the one that contains offset on, that end at or below upTo: as many as fit in
// maxBytes, and at least one if there is one. It sees what is queued. At the end, or if the batch at offset reaches
// beyond upTo, the run is empty. ErrOutOfRange: below the local start, above the end, or no such partition;
// ErrCorrupt: what is stored is not what was written, and is not served.
//
// What memory has is served from memory, without a copy; below that, from disk. A run is all of one kind.
func (l *Log) Read(id PartitionID, offset int64, maxBytes int, upTo int64) (Run, error) {
	r := Run{Base: offset, Next: offset}
	p := l.part(id)
	if p == nil {
		return r, noPartition(id)
	}
	var loaded piece // whose runs were read from a footer for this read
	for {
		p.mu.Lock()
		if p.dropped {
			p.mu.Unlock()
			r.Release()
			return Run{Base: offset, Next: offset}, noPartition(id)
		}
		if offset < p.start || offset > p.end {
			start, end := p.start, p.end
			p.mu.Unlock()
			if r.Bytes > 0 {
				return r, nil
			}
			return r, fmt.Errorf("%w: %d is outside [%d, %d)", ErrOutOfRange, offset, start, end)
		}
		limit := min(upTo, p.end)
		if offset >= limit {
			p.mu.Unlock()
			return r, nil
		}
		if p.mem.n > 0 && offset >= p.mem.at(0).base {
			if r.Bytes > 0 {
				p.mu.Unlock()
				return r, nil
			}
			r.FromMemory = true
			err := r.fromMemory(p, offset, maxBytes, limit)
			p.mu.Unlock()
			if err != nil {
				r.Release()
				return Run{Base: offset, Next: offset}, err
			}
			return r, nil
		}
		// Memory reaches to the end without a gap. A truncation that is queued has not cut the pieces yet, but what
		// it cut off lies above where memory begins now.
		if p.mem.n > 0 {
			limit = min(limit, p.mem.at(0).base)
		}
		i := sort.Search(len(p.pieces), func(i int) bool { return p.pieces[i].next > offset })
		if i == len(p.pieces) || p.pieces[i].base > offset {
			p.mu.Unlock()
			if r.Bytes > 0 {
				return r, nil
			}
			return r, fmt.Errorf("%w: local partition %d has nothing at offset %d", ErrCorrupt, id, offset)
		}
		x := p.pieces[i]
		if x.runs == nil && loaded.seg == x.seg && loaded.foot == x.foot {
			x.runs = loaded.runs
			if l.indexBytes.Load()+int64(len(x.runs))*runBytes <= l.o.IndexBytes {
				y := &p.pieces[i]
				y.runs = x.runs
				l.indexBytes.Add(int64(len(y.runs)) * runBytes)
			}
		}
		x.seg.retain()
		runs, resident := x.runs, x.runs != nil
		if resident {
			// A copy of the few that are read: the writer may cut the others.
			lo := sort.Search(len(runs), func(k int) bool { return runs[k].next > offset })
			hi, total := lo, r.Bytes
			for hi < len(runs) && runs[hi].base < min(limit, x.next) && (total == 0 || total+int(runs[hi].length) <= maxBytes) {
				total += int(runs[hi].length)
				hi++
			}
			runs = append([]run(nil), runs[lo:hi]...)
		}
		p.mu.Unlock()
		if !resident {
			got, err := l.runsOf(x.seg, &x.foot)
			x.seg.release()
			if err != nil {
				l.corrupt("%v", err)
				r.Release()
				return Run{Base: offset, Next: offset}, err
			}
			loaded = x
			loaded.runs = got
			continue
		}
		before := r.Next
		full, err := l.fromDisk(&r, x.seg, runs, offset, maxBytes, min(limit, x.next))
		x.seg.release()
		if err != nil {
			r.Release()
			return Run{Base: offset, Next: offset}, err
		}
		if full || r.Next == before || r.Next != x.next || r.Bytes >= maxBytes {
			return r, nil
		}
		offset = r.Next // the next piece may fit, too
	}
}

// fromMemory is called with p.mu held.
func (r *Run) fromMemory(p *part, offset int64, maxBytes int, upTo int64) error {
	i := sort.Search(p.mem.n, func(i int) bool { return p.mem.at(i).next > offset })
	for ; i < p.mem.n; i++ {
		c := p.mem.at(i)
		bytes, base, next := c.bytes, c.base, c.next
		if c.cut || base < offset || next > upTo || r.Bytes+len(bytes) > maxBytes {
			var err error
			if bytes, base, next, err = clipBatches(bytes, offset, maxBytes-r.Bytes, min(upTo, c.next), r.Bytes == 0); err != nil {
				return err
			}
			if len(bytes) == 0 {
				return nil
			}
		}
		if c.buf != nil {
			c.buf.Retain()
		}
		r.add(bytes, base, next, c.buf)
		if next != c.next || r.Bytes >= maxBytes {
			return nil
		}
	}
	return nil
}

// clipBatches cuts whole batches to those from the one that contains offset on, that end at or below upTo and fit in
// room; one at least if first is set.
func clipBatches(b []byte, offset int64, room int, upTo int64, first bool) (out []byte, base, next int64, err error) {
	from, to := -1, 0
	for at := 0; at < len(b); {
		h, err := batch.ParseHeader(b[at:])
		if err != nil || h.Size() > len(b)-at {
			return nil, 0, 0, fmt.Errorf("%w: batch at byte %d of a run of %d: %v", ErrCorrupt, at, len(b), err)
		}
		end := at + h.Size()
		if h.NextOffset() > offset {
			if h.NextOffset() > upTo {
				break
			}
			if from < 0 {
				from, to, base = at, at, h.BaseOffset
			}
			if end-from > room && !(first && at == from) {
				break
			}
			to, next = end, h.NextOffset()
		}
		at = end
	}
	if from < 0 || to == from {
		return nil, 0, 0, nil
	}
	return b[from:to], base, next, nil
}

// readVerified reads length bytes whose checksum is known. The buffer is the caller's.
func (l *Log) readVerified(g *segment, pos int64, length uint32, crc uint32) (*slab.Buf, error) {
	buf, err := l.readUnverified(g, pos, length)
	if err != nil {
		return nil, err
	}
	if checksum(g.seed, buf.Bytes()) != crc {
		buf.Release()
		l.corrupt("%d bytes at %d of segment %d fail their checksum", length, pos, g.at.generation)
		return nil, fmt.Errorf("%w: %d bytes at %d of segment %d", ErrCorrupt, length, pos, g.at.generation)
	}
	return buf, nil
}

// readTwice is readVerified for what is given up if it is damaged: a read that went wrong is no damage.
func (l *Log) readTwice(g *segment, pos int64, length uint32, crc uint32) (*slab.Buf, error) {
	buf, err := l.readVerified(g, pos, length, crc)
	if errors.Is(err, ErrCorrupt) {
		return l.readVerified(g, pos, length, crc)
	}
	return buf, err
}

func (l *Log) readUnverified(g *segment, pos int64, length uint32) (*slab.Buf, error) {
	l.stats.diskReads.Add(1)
	buf := slab.Get(int(length))
	if err := readFull(g.file, buf.Bytes(), pos); err != nil {
		buf.Release()
		return nil, fmt.Errorf("wal: read %d bytes at %d of segment %d: %w", length, pos, g.at.generation, err)
	}
	return buf, nil
}

var errDamaged = fmt.Errorf("%w: damaged on disk, as was found when their segment was given back", ErrCorrupt)

// fromDisk reads runs, one pread for each, verifies each as a whole, and adds what is asked for. full: nothing more
// fits.
func (l *Log) fromDisk(r *Run, g *segment, runs []run, offset int64, maxBytes int, upTo int64) (full bool, err error) {
	for i := range runs {
		q := &runs[i]
		var buf *slab.Buf
		err := errDamaged
		if !q.damaged() {
			buf, err = l.readVerified(g, int64(q.pos), q.length, q.crc)
		}
		if err != nil {
			err = fmt.Errorf("offsets [%d, %d): %w", q.base, q.next, err)
			if r.Bytes > 0 {
				return true, nil // what came before is good; the next read says what is wrong
			}
			return true, err
		}
		bytes, base, next, err := clipBatches(buf.Bytes(), offset, maxBytes-r.Bytes, min(upTo, q.next), r.Bytes == 0)
		if err != nil || len(bytes) == 0 {
			buf.Release()
			return true, err
		}
		if r.Bytes > 0 && base != r.Next {
			buf.Release()
			return true, nil
		}
		r.add(bytes, base, next, buf)
		if next != q.next {
			return true, nil
		}
	}
	return false, nil
}

// span is a stretch of offsets with its largest timestamp, for lookups.
type span struct {
	base, next, maxTS int64
}

// spans lists the stretches of a partition that overlap [from, upTo), in order: runs as far as records are durable,
// appends in memory beyond.
func (l *Log) spans(id PartitionID, from, upTo int64) ([]span, error) {
	p := l.part(id)
	if p == nil {
		return nil, noPartition(id)
	}
	for {
		p.mu.Lock()
		from, upTo = max(from, p.start), min(upTo, p.end)
		reach := p.end // of memory
		if p.mem.n > 0 {
			reach = p.mem.at(0).base
		}
		var out []span
		var missing *piece
		for i := range p.pieces {
			x := &p.pieces[i]
			if x.next <= from || x.base >= min(upTo, reach) {
				continue
			}
			if x.runs == nil {
				c := *x
				c.seg.retain()
				missing = &c
				break
			}
			for k := sort.Search(len(x.runs), func(k int) bool { return x.runs[k].next > from }); k < len(x.runs); k++ {
				if q := &x.runs[k]; q.base < min(upTo, x.next, reach) {
					out = append(out, span{max(q.base, x.base), min(q.next, x.next, reach), q.maxTS})
				}
			}
		}
		for i := 0; i < p.mem.n && missing == nil; i++ {
			if c := p.mem.at(i); c.next > from && c.base < upTo {
				out = append(out, span{c.base, c.next, c.maxTS})
			}
		}
		p.mu.Unlock()
		if missing == nil {
			return out, nil
		}
		runs, err := l.runsOf(missing.seg, &missing.foot)
		if err == nil {
			p.mu.Lock()
			for i := range p.pieces {
				if x := &p.pieces[i]; x.seg == missing.seg && x.foot == missing.foot && x.runs == nil {
					// Over the budget for a moment; the next roll evicts.
					x.runs = runs
					l.indexBytes.Add(int64(len(runs)) * runBytes)
				}
			}
			p.mu.Unlock()
		}
		missing.seg.release()
		if err != nil {
			l.corrupt("%v", err)
			return nil, err
		}
	}
}

// headers calls f with the header of each batch that overlaps [from, next), until it returns false.
func (l *Log) headers(id PartitionID, from, next int64, f func(h batch.Header) bool) error {
	for from < next {
		r, err := l.Read(id, from, 1<<20, next)
		if err != nil {
			return err
		}
		if r.Bytes == 0 {
			return nil
		}
		stop := false
		for _, c := range r.Chunks {
			err = batch.Walk(c, func(h batch.Header, _ []byte) error {
				if !stop && !f(h) {
					stop = true
				}
				return nil
			})
			if err != nil || stop {
				break
			}
		}
		from = r.Next
		r.Release()
		if err != nil || stop {
			return err
		}
	}
	return nil
}

// Find returns the first batch that ends in (from, upTo] and whose largest timestamp is at or above timestamp: where
// to begin looking for the record. Timestamps need not ascend, so all runs before it are looked at, in the index.
func (l *Log) Find(id PartitionID, timestamp, from, upTo int64) (base int64, found bool, err error) {
	spans, err := l.spans(id, from, upTo)
	if err != nil {
		return 0, false, err
	}
	for _, s := range spans {
		if s.maxTS < timestamp && s.maxTS != damagedTS {
			continue
		}
		err := l.headers(id, max(s.base, from), min(s.next, upTo), func(h batch.Header) bool {
			if h.MaxTimestamp >= timestamp {
				base, found = h.BaseOffset, true
			}
			return !found
		})
		if err != nil || found {
			return base, found, err
		}
	}
	return 0, false, nil
}

// MaxTimestamp returns the largest batch timestamp in [from, upTo) and the first batch that has it.
func (l *Log) MaxTimestamp(id PartitionID, from, upTo int64) (timestamp, base int64, found bool, err error) {
	spans, err := l.spans(id, from, upTo)
	if err != nil {
		return 0, 0, false, err
	}
	for _, s := range spans {
		if s.maxTS == damagedTS {
			return 0, 0, false, fmt.Errorf("offsets [%d, %d): %w", s.base, s.next, errDamaged)
		}
	}
	sort.SliceStable(spans, func(i, j int) bool { return spans[i].maxTS > spans[j].maxTS })
	for _, s := range spans {
		if found && (s.maxTS < timestamp || s.maxTS == timestamp && s.base >= base) {
			break
		}
		// A run may promise more than it keeps, if its largest timestamp lies outside the range.
		err := l.headers(id, max(s.base, from), min(s.next, upTo), func(h batch.Header) bool {
			if !found || h.MaxTimestamp > timestamp || h.MaxTimestamp == timestamp && h.BaseOffset < base {
				timestamp, base, found = h.MaxTimestamp, h.BaseOffset, true
			}
			return true
		})
		if err != nil {
			return 0, 0, false, err
		}
	}
	return timestamp, base, found, nil
}

// BytesBetween is how many bytes the offsets [from, to) take, to the precision of a run, or of what a segment has of
// the partition if its runs are not in memory.
func (l *Log) BytesBetween(id PartitionID, from, to int64) (n int64) {
	p := l.part(id)
	if p == nil || from >= to {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	reach := p.end
	if p.mem.n > 0 {
		reach = p.mem.at(0).base
	}
	from = max(from, p.start)
	for i := range p.pieces {
		x := &p.pieces[i]
		lo, hi := max(from, x.base), min(to, x.next, reach)
		switch {
		case lo >= hi:
		case lo == x.base && hi == x.next:
			n += x.bytes
		case x.runs == nil:
			n += int64(float64(x.bytes) * float64(hi-lo) / float64(x.next-x.base))
		default:
			for k := sort.Search(len(x.runs), func(k int) bool { return x.runs[k].next > lo }); k < len(x.runs) && x.runs[k].base < hi; k++ {
				n += int64(x.runs[k].length)
			}
		}
	}
	for i := sort.Search(p.mem.n, func(i int) bool { return p.mem.at(i).next > from }); i < p.mem.n; i++ {
		if c := p.mem.at(i); c.base < to {
			n += int64(len(c.bytes))
		}
	}
	return n
}
