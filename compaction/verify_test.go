package compaction

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal/batch"
)

// reading is what a consumer was given of [from, end).
type reading struct {
	from, end int64
	kept      map[int64]bool // offsets of records
	ends      map[int64]bool // last offsets of batches
}

// fetch reads [from, end) in fetches of random size and holds every batch against the one that was written.
func (p *partition) fetch(x *tiering.Tier, rnd *rand.Rand, from, end int64) reading {
	w := p.w
	r := reading{from: from, end: end, kept: make(map[int64]bool), ends: make(map[int64]bool)}
	for at := from; at < end; {
		run, err := x.Read(bg, p.id, p.index, at, 1<<rnd.IntN(12))
		if err != nil {
			w.fatalf("read %s at %d of [%d, %d): %v", p.name, at, from, end, err)
		}
		for _, c := range run.Chunks {
			err = batch.Walk(c, func(h batch.Header, raw []byte) error {
				if h.LastOffset() < at {
					w.fatalf("read %s at %d: batch %d-%d comes again", p.name, at, h.BaseOffset, h.LastOffset())
				}
				at = h.NextOffset()
				r.ends[h.LastOffset()] = true
				p.same(h, raw, func(o int64) {
					if o >= from {
						r.kept[o] = true
					}
				})
				return nil
			})
			if err != nil {
				w.fatalf("read %s at %d: %v", p.name, at, err)
			}
		}
		if run.Next != at {
			w.fatalf("read %s: the next offset is %d, not %d", p.name, run.Next, at)
		}
		run.Release()
	}
	return r
}

// same holds a batch against what was written there, and calls kept for the offset of each record of it.
func (p *partition) same(h batch.Header, raw []byte, kept func(int64)) {
	w, f := p.w, p.byBase[h.BaseOffset]
	if f == nil {
		w.fatalf("%s has no batch at %d", p.name, h.BaseOffset)
	}
	if bytes.Equal(raw, f.raw) {
		for _, r := range f.records {
			kept(r.offset)
		}
		return
	}
	if h.LastOffset() != f.h.LastOffset() || h.LeaderEpoch != f.h.LeaderEpoch || h.ProducerID != f.h.ProducerID || h.ProducerEpoch != f.h.ProducerEpoch ||
		h.BaseSequence != f.h.BaseSequence || h.Control() != f.h.Control() || h.Transactional() != f.h.Transactional() || h.LogAppendTime() != f.h.LogAppendTime() {
		w.fatalf("batch of %s %+v, written as %+v", p.name, h, f.h)
	}
	if err := batch.VerifyCRC(raw); err != nil {
		w.fatalf("batch of %s at %d: %v", p.name, h.BaseOffset, err)
	}
	if h.Control() {
		if commit, _, err := batch.ControlMarker(raw); err != nil || commit != f.commit {
			w.fatalf("marker of %s at %d: commit %v, %v", p.name, h.BaseOffset, commit, err)
		}
		return
	}
	rest := f.records
	for r, err := range batch.Records(raw, 1<<20) {
		if err != nil {
			w.fatalf("batch of %s at %d: %v", p.name, h.BaseOffset, err)
		}
		o := h.BaseOffset + int64(r.OffsetDelta)
		for len(rest) > 0 && rest[0].offset < o {
			rest = rest[1:]
		}
		if len(rest) == 0 || rest[0].offset != o {
			w.fatalf("%s has no record at %d", p.name, o)
		}
		was := rest[0]
		rest = rest[1:]
		if h.Timestamp(r) != was.ts || !equal(r.Key, was.key) || !equal(r.Value, was.value) || !slices.EqualFunc(r.Headers, was.headers, func(a, b batch.RecordHeader) bool {
			return a.Key == b.Key && equal(a.Value, b.Value)
		}) {
			w.fatalf("record of %s at %d: %+v, written as %+v", p.name, o, r, was)
		}
		kept(o)
	}
}

func equal(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// verify reads from a random offset on and tells whether that is a compaction of what was written (I9). now is the
// clock of the workers. If fresh is not set, x may read by an older head.
func (p *partition) verify(x *tiering.Tier, rnd *rand.Rand, now int64, fresh bool) {
	p.w.t.Helper()
	w := p.w
	if fresh {
		if _, err := x.Peek(bg, p.id, p.index); err != nil {
			w.fatalf("%v", err)
		}
	}
	s, ok := x.State(p.id, p.index)
	if !ok || s.RemoteEnd == s.RemoteStart {
		return
	}
	from := s.RemoteStart
	whole := rnd.IntN(2) == 0
	if !whole {
		from += rnd.Int64N(s.RemoteEnd - s.RemoteStart)
	}
	r := p.fetch(x, rnd, from, s.RemoteEnd)
	if after, _ := x.State(p.id, p.index); after.Rev != s.Rev {
		// Something had vanished, and x went over to another head in between: what was read is of two.
		w.saw("heads changed between reads")
		p.verify(x, rnd, now, true)
		return
	}
	p.justify(r, now)
	if fresh && whole {
		p.stays(r)
	}
	if h := p.head(); fresh && whole && h.RemoteStart() == r.from {
		p.clean(r, h.Compaction.CleanEnd)
	}
	got, want := p.committedIn(x, rnd, r)
	if after, _ := x.State(p.id, p.index); after.Rev != s.Rev {
		w.saw("heads changed between reads")
		p.verify(x, rnd, now, true)
		return
	}
	if !slices.Equal(got, want) {
		w.fatalf("read committed %s from %d: %v, want %v", p.name, r.from, got, want)
	}
}

// justify looks for records that are missing and should not be.
func (p *partition) justify(r reading, now int64) {
	w := p.w
	p.mu.Lock()
	reach, progress, retention := p.reach, p.progress, p.topic.Policy.DeleteRetention
	p.mu.Unlock()
	type newest struct{ offset, gone int64 } // of the key below reach; the oldest of its tombstones that are gone
	keys := make(map[string]*newest)
	for i := len(p.facts) - 1; i >= 0; i-- {
		f := p.facts[i]
		for j := len(f.records) - 1; j >= 0; j-- {
			x := f.records[j]
			if x.offset < r.from || x.offset >= r.end {
				if x.offset < reach && x.offset >= r.end && x.key != nil && f.committed() && keys[string(x.key)] == nil {
					keys[string(x.key)] = &newest{x.offset, -1}
				}
				continue
			}
			kept := r.kept[x.offset]
			k := keys[string(x.key)]
			if x.key == nil || !f.committed() {
				k = nil
			}
			switch {
			case kept && k != nil && k.gone >= 0:
				w.fatalf("%s: the record at %d (key %q) is there, and the tombstone at %d that deletes it is not", p.name, x.offset, x.key, k.gone)
			case kept:
			case x.offset >= progress:
				w.fatalf("%s: the record at %d is gone, above %d", p.name, x.offset, progress)
			case x.key == nil:
				w.saw("records without a key gone")
			case !f.committed() && !f.txn.ended():
				w.fatalf("%s: the record at %d of a transaction that is open is gone", p.name, x.offset)
			case !f.committed():
				w.saw("aborted gone")
			case k != nil: // a newer one, below reach
			case x.value != nil:
				w.fatalf("%s: the newest record of key %q, at %d, is gone; reach %d", p.name, x.key, x.offset, reach)
			case now < f.clock+retention:
				w.fatalf("%s: the tombstone at %d is gone after %d ms", p.name, x.offset, now-f.clock)
			default:
				w.saw("tombstones gone")
			}
			if x.key != nil && f.committed() && x.offset < reach {
				if k == nil {
					k = &newest{x.offset, -1}
					keys[string(x.key)] = k
				}
				if !kept && x.value == nil {
					k.gone = x.offset
				}
			}
		}
	}
}

// stays looks for batches that must stay: markers as long as there is a record of their transaction, and those that tell a
// producer's epoch and sequence.
func (p *partition) stays(r reading) {
	for _, f := range p.facts {
		if f.txn == nil || !f.txn.ended() || f.txn.last >= r.end || r.ends[f.txn.last] {
			continue
		}
		for _, x := range f.records {
			if r.kept[x.offset] {
				p.w.fatalf("%s: the marker at %d is gone, and the record at %d of its transaction is there", p.name, f.txn.last, x.offset)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for x := range p.known.Producers() {
		if x.StateOffset >= r.from && x.StateOffset < r.end && !r.ends[x.StateOffset] {
			p.w.fatalf("%s: the batch that ends at %d is gone, from which producer %d is known", p.name, x.StateOffset, x.ID)
		}
	}
}

// clean looks at what a round that is completed leaves below its end.
func (p *partition) clean(r reading, end int64) {
	w := p.w
	at := make(map[string]int64)
	for _, f := range p.facts {
		for _, x := range f.records {
			if !r.kept[x.offset] || x.offset >= end {
				continue
			}
			switch was, twice := at[string(x.key)]; {
			case x.key == nil:
				w.fatalf("%s: the record at %d has no key and is there, below the clean end %d", p.name, x.offset, end)
			case f.txn != nil && !f.txn.ended():
				w.fatalf("%s: the transaction at %d is open, below the clean end %d", p.name, x.offset, end)
			case !f.committed() && f.h.NextOffset() <= end:
				w.fatalf("%s: the record at %d was aborted and is there, below the clean end %d", p.name, x.offset, end)
			case !f.committed():
			case twice:
				w.fatalf("%s: key %q is there at %d and at %d, below the clean end %d", p.name, x.key, was, x.offset, end)
			default:
				at[string(x.key)] = x.offset
			}
		}
	}
}

// committedIn reads what r is as a consumer at read_committed, which sees no aborted record and all committed ones that
// are left.
func (p *partition) committedIn(x *tiering.Tier, rnd *rand.Rand, r reading) (got, want []int64) {
	stable := min(p.stable(), r.end)
	for _, f := range p.facts {
		if f.committed() && f.h.NextOffset() <= stable {
			for _, rec := range f.records {
				if rec.offset >= r.from && r.kept[rec.offset] {
					want = append(want, rec.offset)
				}
			}
		}
	}
	if _, err := p.consume(x, rnd, r.from, stable, func(o int64, _ record) { got = append(got, o) }); err != nil {
		p.w.fatalf("read committed %s [%d, %d): %v", p.name, r.from, stable, err)
	}
	return got, want
}

// consume reads [from, to) at read_committed, as Kafka's consumer does it, and returns where it stopped.
func (p *partition) consume(x *tiering.Tier, rnd *rand.Rand, from, to int64, f func(int64, record)) (int64, error) {
	stable := p.stable()
	for at := from; at < to; {
		out, err := x.ReadCommitted(bg, p.id, p.index, at, 1<<rnd.IntN(12), stable, to)
		if err != nil {
			return at, err
		}
		list := out.Aborted
		dropping := map[int64]bool{}
		past := false
		next := at
		for _, c := range out.Chunks {
			err := batch.Walk(c, func(h batch.Header, raw []byte) error {
				if past = past || h.NextOffset() > stable; past {
					return nil
				}
				next = h.NextOffset()
				for len(list) > 0 && list[0].FirstOffset <= h.LastOffset() {
					dropping[list[0].ProducerID] = true
					list = list[1:]
				}
				if h.Control() {
					if commit, _, err := batch.ControlMarker(raw); err == nil && !commit {
						delete(dropping, h.ProducerID)
					}
					return nil
				}
				if h.Transactional() && dropping[h.ProducerID] {
					return nil
				}
				was := p.byBase[h.BaseOffset]
				if was == nil {
					p.w.fatalf("%s has no batch at %d", p.name, h.BaseOffset)
				}
				p.same(h, raw, func(o int64) {
					if o >= at && o < to {
						f(o, was.records[slices.IndexFunc(was.records, func(r record) bool { return r.offset == o })])
					}
				})
				return nil
			})
			if err != nil {
				p.w.fatalf("read committed %s at %d: %v", p.name, at, err)
			}
		}
		out.Release()
		if next == at {
			return at, nil
		}
		at = next
	}
	return to, nil
}

// consumer has read a part of a log into a map.
type consumer struct {
	p      *partition
	x      *tiering.Tier
	at     int64
	since  int64 // clock of the workers, ms
	values map[string]string
}

func newConsumer(p *partition, x *tiering.Tier, now int64) *consumer {
	// It begins with what the bucket has now: that brokers learn of it later is added to delete.retention.ms where that is
	// given to the worker.
	s, err := x.Peek(bg, p.id, p.index)
	if err != nil {
		p.w.fatalf("%v", err)
	}
	return &consumer{p: p, x: x, at: s.RemoteStart, since: now, values: map[string]string{}}
}

// read goes on to about to. It tells whether the log start has passed it.
func (c *consumer) read(rnd *rand.Rand, to int64) (passed bool) {
	p := c.p
	at, err := p.consume(c.x, rnd, c.at, to, func(_ int64, r record) {
		switch {
		case r.key == nil:
		case r.value == nil:
			delete(c.values, string(r.key))
		default:
			c.values[string(r.key)] = string(r.value)
		}
	})
	if errors.Is(err, tiering.ErrOutOfRange) && p.head().RemoteStart() > at {
		return true
	}
	if err != nil {
		p.w.fatalf("consumer of %s at %d: %v", p.name, at, err)
	}
	c.at = at
	return false
}

// finish reads the rest. One that took no longer than delete.retention.ms ends with the newest value of each key and
// without the deleted ones, whatever was rewritten while it read.
func (c *consumer) finish(rnd *rand.Rand, now int64) (done bool) {
	p := c.p
	s, _ := c.x.State(p.id, p.index)
	end := min(p.stable(), s.RemoteEnd)
	if c.read(rnd, end) {
		return false
	}
	start := p.head().RemoteStart()
	late := now-c.since >= p.topic.Policy.DeleteRetention
	seen := map[string]bool{}
	for i := len(p.facts) - 1; i >= 0; i-- {
		f := p.facts[i]
		if !f.committed() || f.h.NextOffset() > end || f.h.Control() {
			continue
		}
		for j := len(f.records) - 1; j >= 0; j-- {
			x := f.records[j]
			if x.key == nil || seen[string(x.key)] {
				continue
			}
			seen[string(x.key)] = true
			got, ok := c.values[string(x.key)]
			switch {
			case x.offset < start:
			case x.value == nil && ok && !late:
				p.w.fatalf("%s: a consumer of %v has %q for key %q, which was deleted at %d", p.name, time.Duration(now-c.since)*time.Millisecond, got, x.key, x.offset)
			case x.value != nil && got != string(x.value):
				p.w.fatalf("%s: a consumer has %q (%v) for key %q, and not %q of %d", p.name, got, ok, x.key, x.value, x.offset)
			}
		}
	}
	return true
}
