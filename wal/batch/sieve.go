package batch

import (
	"crypto/sha256"
	"fmt"
	"math"
)

// Sieve takes records out of batches, as log compaction does. A batch that has been sieved covers the offsets it
// covered before, so that neither its place in the log nor its producer's sequence is lost, and what remains of its
// records are the same bytes, unless a delete horizon moves what their timestamps are counted from.
//
// A batch whose records take no more than the window is held inflated, once, and what is kept of it too. A larger one is
// gone over piece by piece through the window: once by Open, and a second time, inflated again and deflated as it comes,
// by Build. (One pass cannot do: whether there is anything to build, and by how much the timestamps move, shows at the
// batch's end.) So a Sieve holds up to three windows and what it has built, whatever a batch inflates to, and what Held
// says.
//
// The zero value is ready. Its buffers are used again for the next batch: what Build returns is valid until the next
// call of Open.
type Sieve struct {
	// Check, if not nil, is asked now and then while a large batch is gone over, which takes long if it inflates
	// enormously. Its error ends that.
	Check func() error

	h        Header
	section  []byte // the records that are kept, inflated; may alias the batch
	count    int32  // of them
	dropped  int32
	max      int64 // their largest timestamp
	inflated []byte
	kept     []byte
	moved    []byte
	out      []byte

	window int
	rec    Record // that keep is asked about
	key    []byte // stands for a long one
	large  large
}

// maxSieveKey is the longest key that is given as it is.
const maxSieveKey = 64 << 10

// minSieveWindow is room for a key of half of it and what is around it.
const minSieveWindow = 128

// Open inflates b, which is exactly one batch, through a window of that many bytes, checks every record and asks keep
// about each. Of a record, Headers is nil; Key and Value are valid during the call; of a large batch's, Value is empty if
// there is one. A key longer than 64 KiB, or than half the window, is replaced by a longer one that stands for it and for
// no other. Offset deltas ascend and lie in the batch's range. Errors are those of Records, and Check's.
//
// keep depends on nothing but the record: about those of a large batch Build asks it again.
func (s *Sieve) Open(b []byte, window int, keep func(h Header, r *Record) bool) error {
	h, err := ParseHeader(b)
	if err != nil {
		return err
	}
	s.h, s.count, s.dropped, s.max = h, 0, 0, NoTimestamp
	s.window, s.large.batch = max(window, minSieveWindow), nil
	section := b[HeaderSize:h.Size()]
	if h.Codec() != None {
		src, err := inflateSome(h.Codec(), section, s.window)
		if err != nil {
			return err
		}
		out, ended, err := readTo(src, s.inflated, 4*len(section), s.window)
		s.inflated = out
		if err == nil && len(out) > s.window {
			return s.openLarge(b, cursor{win: out, w: len(out), src: src, left: math.MaxInt, lim: math.MaxInt, eof: ended}, keep)
		}
		src.close()
		if err != nil {
			return err
		}
		section = out
	} else if len(section) > s.window {
		return s.openLarge(b, cursor{win: section, w: len(section), eof: true}, keep)
	}
	kept, longest := s.kept[:0], s.longest()
	if h.Codec() != None {
		kept = section[:0] // the bytes are ours: what is kept moves to the front
	}
	s.section = section
	var c cursor
	if err := c.open(None, section, 0); err != nil {
		return err
	}
	r := &s.rec
	last := int32(-1)
	for i := range h.RecordCount {
		start := c.r
		if err := c.next(r, nil); err != nil {
			return fmt.Errorf("record %d of %d: %w", i, h.RecordCount, err)
		}
		if r.OffsetDelta <= last || r.OffsetDelta > h.LastOffsetDelta {
			return fmt.Errorf("record %d of %d: %w: offset delta %d after %d, the batch ends at %d", i, h.RecordCount, ErrRecord,
				r.OffsetDelta, last, h.LastOffsetDelta)
		}
		last = r.OffsetDelta
		if len(r.Key) > longest {
			r.Key = s.standIn(r.Key[:longest], sha256.Sum256(r.Key))
		}
		if !keep(h, r) {
			if s.dropped == 0 {
				kept = append(kept, section[:start]...)
			}
			s.dropped++
			continue
		}
		if s.dropped > 0 {
			kept = append(kept, section[start:c.r]...)
		}
		if t := h.Timestamp(*r); s.count == 0 || t > s.max {
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

// longest is the longest key that is given as it is.
func (s *Sieve) longest() int { return min(maxSieveKey, s.window/2) }

// standIn is what stands for a long key: the digest of all of it behind its beginning, longer by one byte than any key
// that is given as it is.
func (s *Sieve) standIn(begin []byte, sum [sha256.Size]byte) []byte {
	n := s.longest() + 1
	s.key = append(append(s.key[:0], begin[:n-len(sum)]...), sum[:]...)
	return s.key
}

// Kept is how many records remain, Dropped how many do not.
func (s *Sieve) Kept() int    { return int(s.count) }
func (s *Sieve) Dropped() int { return int(s.dropped) }

// Build returns the batch with the records that remain, of which there is at least one. Of a large batch it fails with
// ErrGrown if that takes more than a window and 32 times what the batch took.
func (s *Sieve) Build(codec Codec, level int) ([]byte, error) {
	if s.Large() {
		return s.buildLarge(s.h, codec, level)
	}
	return s.build(s.h, codec, level, s.section)
}

// BuildHorizon is Build with a delete horizon (KIP-534), which takes the place of the base timestamp: every record's
// delta is counted from it.
func (s *Sieve) BuildHorizon(codec Codec, level int, horizonMs int64) ([]byte, error) {
	h := s.h
	h.Attributes |= attrDeleteHorizon
	h.BaseTimestamp = horizonMs
	if s.Large() {
		return s.buildLarge(h, codec, level)
	}
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
	return s.build(h, codec, level, p)
}

func (s *Sieve) build(h Header, codec Codec, level int, section []byte) ([]byte, error) {
	out, err := assemble(s.out, s.built(h, codec), codec, level, section)
	if err != nil {
		return nil, err
	}
	s.out = out
	return out, nil
}

// built is the header of what is built of h.
func (s *Sieve) built(h Header, codec Codec) Header {
	h.MaxTimestamp = s.max // with LogAppendTime what it was: that of every record
	h.Attributes = h.Attributes&^attrCodec | int16(codec)
	h.RecordCount = s.count
	return h
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
