package batch

import (
	"fmt"
	"math"
)

// Sieve takes records out of batches, as log compaction does. A batch that has been sieved covers the offsets it
// covered before, so that neither its place in the log nor its producer's sequence is lost, and what remains of its
// records are the same bytes, unless a delete horizon moves what their timestamps are counted from.
//
// The zero value is ready. Its buffers are used again for the next batch: what Build returns is valid until the next
// call of Open, and the Sieve holds up to three times what the largest batch inflates to.
type Sieve struct {
	h        Header
	section  []byte // the records that are kept, inflated; may alias the batch
	count    int32  // of them
	dropped  int32
	max      int64 // their largest timestamp
	inflated []byte
	kept     []byte
	moved    []byte
	out      []byte
}

// Open inflates b, which is exactly one batch, to at most maxInflated bytes, checks every record and asks keep about
// each. Of a record, Headers is nil; Key and Value are valid during the call. Offset deltas ascend and lie in the
// batch's range. Errors are those of Records.
func (s *Sieve) Open(b []byte, maxInflated int, keep func(h Header, r *Record) bool) error {
	h, err := ParseHeader(b)
	if err != nil {
		return err
	}
	section, err := inflateAll(s.inflated, h.Codec(), b[HeaderSize:h.Size()], maxInflated)
	if err != nil {
		return err
	}
	kept := s.kept[:0]
	if h.Codec() != None {
		// The bytes are ours: what is kept moves to the front.
		s.inflated, kept = section, section[:0]
	}
	s.h, s.section, s.count, s.dropped, s.max = h, section, 0, 0, NoTimestamp
	var c cursor
	if err := c.open(None, section, 0); err != nil {
		return err
	}
	var r Record
	last := int32(-1)
	for i := range h.RecordCount {
		start := c.r
		if err := c.next(&r, nil); err != nil {
			return fmt.Errorf("record %d of %d: %w", i, h.RecordCount, err)
		}
		if r.OffsetDelta <= last || r.OffsetDelta > h.LastOffsetDelta {
			return fmt.Errorf("record %d of %d: %w: offset delta %d after %d, the batch ends at %d", i, h.RecordCount, ErrRecord,
				r.OffsetDelta, last, h.LastOffsetDelta)
		}
		last = r.OffsetDelta
		if !keep(h, &r) {
			if s.dropped == 0 {
				kept = append(kept, section[:start]...)
			}
			s.dropped++
			continue
		}
		if s.dropped > 0 {
			kept = append(kept, section[start:c.r]...)
		}
		if t := h.Timestamp(r); s.count == 0 || t > s.max {
			s.max = t
		}
		s.count++
	}
	if s.dropped > 0 {
		s.section = kept
		if h.Codec() == None {
			s.kept = kept
		}
	}
	return c.end()
}

// Kept is how many records remain, Dropped how many do not.
func (s *Sieve) Kept() int    { return int(s.count) }
func (s *Sieve) Dropped() int { return int(s.dropped) }

// Build returns the batch with the records that remain, of which there is at least one.
func (s *Sieve) Build(codec Codec, level int) ([]byte, error) {
	return s.build(s.h, codec, level, s.section)
}

// BuildHorizon is Build with a delete horizon (KIP-534), which takes the place of the base timestamp: every record's
// delta is counted from it.
func (s *Sieve) BuildHorizon(codec Codec, level int, horizonMs int64) ([]byte, error) {
	p := s.moved[:0]
	var c cursor
	if err := c.open(None, s.section, 0); err != nil {
		return nil, err
	}
	for range s.count {
		size, err := c.varint32()
		if err != nil {
			return nil, err
		}
		start := c.r
		attr, err := c.byte()
		if err != nil {
			return nil, err
		}
		delta, err := c.varint64()
		if err != nil {
			return nil, err
		}
		rest, err := c.take(start+int(size)-c.r, nil)
		if err != nil {
			return nil, err
		}
		delta += s.h.BaseTimestamp - horizonMs
		n := 1 + sizeVarint(delta) + len(rest)
		if n > math.MaxInt32 {
			return nil, fmt.Errorf("%w: %d bytes with a delete horizon", ErrRecord, n)
		}
		p = append(appendVarint(p, int64(n)), attr)
		p = append(appendVarint(p, delta), rest...)
	}
	s.moved = p
	h := s.h
	h.Attributes |= attrDeleteHorizon
	h.BaseTimestamp = horizonMs
	return s.build(h, codec, level, p)
}

func (s *Sieve) build(h Header, codec Codec, level int, section []byte) ([]byte, error) {
	h.MaxTimestamp = s.max // with LogAppendTime what it was: that of every record
	h.Attributes = h.Attributes&^attrCodec | int16(codec)
	h.RecordCount = s.count
	out, err := assemble(s.out, h, codec, level, section)
	if err != nil {
		return nil, err
	}
	s.out = out
	return out, nil
}

// Empty returns what is left of the batch of h when all its records are gone: its offsets, its producer's epoch and
// sequence, its largest timestamp.
func Empty(h Header) []byte {
	h.Attributes &^= attrCodec | attrDeleteHorizon
	h.BaseTimestamp, h.RecordCount = NoTimestamp, 0
	b, err := assemble(nil, h, None, 0, nil)
	if err != nil {
		panic(err) // a header without records
	}
	return b
}
