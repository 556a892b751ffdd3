package batch

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ErrGrown says that a batch made anew takes so much more than the one it was made of that nobody asked for that.
var ErrGrown = errors.New("batch: made anew it takes much more than it took")

// maxGrowth bounds by how much. It is above what any codec of ours makes of the same one's work: snappy of a foreign
// encoder, whose blocks may be larger than ours, is at most 22 times as dense. Only frames of zstd that refer far back can
// be denser, and nobody's records are.
const maxGrowth = 32

// maxZstdWindow is the largest window of a zstd frame that is read as a stream by a Sieve: that of the highest level,
// and what decoders take unless they are told to take more.
const maxZstdWindow = 128 << 20

// large is what a Sieve knows of a batch that is not held inflated.
type large struct {
	batch []byte // nil: it is held
	keep  func(h Header, r *Record) bool
	long  []bool // what keep said of the records with long keys, in their order: such a key is not there to ask again
}

// Large tells whether the batch that was opened is larger than the window.
func (s *Sieve) Large() bool { return s.large.batch != nil }

// Held tells how much a Sieve holds of batch b at one time beside its window: a raw snappy block, the window that a zstd
// frame asks for. 0: little.
func Held(b []byte) int64 {
	return atOnce(b, func(section []byte) int64 {
		n := wholeZstd(section)
		if n > 0 {
			window, _ := zstdWindow(section)
			n = min(n, int64(min(window, maxZstdWindow)))
		}
		return n
	})
}

// inflateSome is inflate for a section of which no more than a window is looked at together.
func inflateSome(c Codec, section []byte, window int) (inflater, error) {
	switch c {
	case Snappy:
		return openSnappy(section, math.MaxInt), nil // a block's size is bounded by what it is made of
	case Zstd:
		return openZstdSome(section, window)
	}
	return inflate(c, section, window)
}

type largeZstd struct{ *zstd.Decoder }

func (r largeZstd) Read(p []byte) (int, error) {
	n, err := r.Decoder.Read(p)
	if err != nil && err != io.EOF {
		err = codecError(Zstd, err)
	}
	return n, err
}

func (r largeZstd) close() { r.Decoder.Close() }

// openZstdSome reads frames with a window above what openZstd takes as a stream too, if they may be so large. Their
// decoders are not kept.
func openZstdSome(section []byte, window int) (inflater, error) {
	asked, err := zstdWindow(section)
	if err != nil {
		return nil, codecError(Zstd, err)
	}
	if asked <= streamWindow {
		return openZstd(section, window)
	}
	bound, err := zstdBound(section)
	if err != nil {
		return nil, codecError(Zstd, err)
	}
	if bound <= int64(window) || asked > maxZstdWindow {
		return openZstdWhole(section, maxZstdWindow)
	}
	z, err := zstd.NewReader(bytes.NewReader(section), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecodeBuffersBelow(0))
	if err != nil {
		return nil, codecError(Zstd, err)
	}
	return largeZstd{z}, nil
}

// record is where the next record has what.
type record struct {
	size   int // with its length
	moment int // where its timestamp delta ends
	key    int // where its key begins
	keyLen int // -1: null
	long   bool
}

// maxRecordHead is the longest length, attributes, timestamp delta, offset delta and length of a key.
const maxRecordHead = 5 + 1 + 10 + 5 + 5

// peek looks at the next record without taking it: r is then what keep is asked about, without the key if that is long.
// Only what comes before the key has been checked.
func (s *Sieve) peek(c *cursor, r *Record) (rec record, err error) {
	look, err := c.ahead(maxRecordHead)
	if err != nil {
		return rec, err
	}
	head := cursor{win: look, w: len(look), eof: true}
	size, err := head.varint32()
	if err != nil {
		return rec, err
	}
	if size < 0 {
		return rec, fmt.Errorf("%w: length %d", ErrRecord, size)
	}
	rec.size = head.r + int(size)
	attr, err := head.byte()
	if err != nil {
		return rec, err
	}
	if r.TimestampDelta, err = head.varint64(); err != nil {
		return rec, err
	}
	rec.moment = head.r
	if r.OffsetDelta, err = head.varint32(); err != nil {
		return rec, err
	}
	n, err := head.varint32()
	if err != nil {
		return rec, err
	}
	rec.key, rec.keyLen = head.r, int(n)
	if rec.keyLen < -1 || rec.key+max(rec.keyLen, 0) > rec.size {
		return rec, fmt.Errorf("%w: key of %d bytes with %d left in the record", ErrRecord, rec.keyLen, rec.size-rec.key)
	}
	r.Attributes, r.Key, r.Headers = int8(attr), nil, nil
	if rec.long = rec.keyLen > s.longest(); rec.long {
		return rec, nil
	}
	end := rec.key + max(rec.keyLen, 0)
	if look, err = c.ahead(end + 5); err != nil {
		return rec, err
	}
	if end > len(look) {
		return rec, errEnds
	}
	if rec.keyLen >= 0 {
		r.Key = look[rec.key:end:end]
	}
	r.Value, err = peekValue(look[end:])
	return rec, err
}

// peekValue tells by its length, which b begins with, whether there is a value.
func peekValue(b []byte) ([]byte, error) {
	c := cursor{win: b, w: len(b), eof: true}
	n, err := c.varint32()
	if n == -1 {
		return nil, err
	}
	return present, err
}

// longKey takes the next record up to the end of its key.
func (s *Sieve) longKey(c *cursor, rec record, r *Record) error {
	if err := c.skip(rec.key); err != nil {
		return err
	}
	all, begin := sha256.New(), s.key[:0]
	err := c.each(rec.keyLen, func(piece []byte) error {
		all.Write(piece)
		begin = append(begin, piece[:min(len(piece), s.longest()-len(begin))]...)
		return nil
	})
	if err != nil {
		return err
	}
	s.key = begin
	r.Key = s.standIn(begin, [sha256.Size]byte(all.Sum(nil)))
	look, err := c.ahead(5)
	if err != nil {
		return err
	}
	r.Value, err = peekValue(look)
	return err
}

// often is after how many inflated bytes Check is asked.
const often = 1 << 20

// records calls f for every record of the batch, f takes it.
func (s *Sieve) records(c *cursor, f func(rec record, r *Record) error) error {
	asked := int64(0)
	last := int32(-1)
	var r Record
	for i := range s.h.RecordCount {
		if s.Check != nil && c.pos-asked >= often {
			asked = c.pos
			if err := s.Check(); err != nil {
				return err
			}
		}
		rec, err := s.peek(c, &r)
		if err == nil && (r.OffsetDelta <= last || r.OffsetDelta > s.h.LastOffsetDelta) {
			err = fmt.Errorf("%w: offset delta %d after %d, the batch ends at %d", ErrRecord, r.OffsetDelta, last, s.h.LastOffsetDelta)
		}
		if err == nil {
			last = r.OffsetDelta
			err = f(rec, &r)
		}
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i, s.h.RecordCount, err)
		}
	}
	return c.end()
}

// openLarge is Open for a batch whose section is read through c.
func (s *Sieve) openLarge(b []byte, c cursor, keep func(h Header, r *Record) bool) error {
	defer c.closeSource()
	s.large.batch, s.large.keep, s.large.long = b, keep, s.large.long[:0]
	var rest Record
	return s.records(&c, func(rec record, r *Record) error {
		var kept bool
		if rec.long {
			end := c.pos + int64(rec.size)
			if err := s.longKey(&c, rec, r); err != nil {
				return err
			}
			kept = keep(s.h, r)
			s.large.long = append(s.large.long, kept)
			if err := c.rest(&rest, end, nil); err != nil {
				return err
			}
		} else {
			kept = keep(s.h, r)
			if err := c.next(&rest, nil); err != nil {
				return err
			}
		}
		if !kept {
			s.dropped++
			return nil
		}
		if t := s.h.Timestamp(*r); s.count == 0 || t > s.max {
			s.max = t
		}
		s.count++
		return nil
	})
}

// buildLarge builds a batch with header h of the records that remain.
func (s *Sieve) buildLarge(h Header, codec Codec, level int) ([]byte, error) {
	section := s.large.batch[HeaderSize:s.h.Size()]
	c := cursor{win: section, w: len(section), eof: true}
	if s.h.Codec() != None {
		src, err := inflateSome(s.h.Codec(), section, s.window)
		if err != nil {
			return nil, err
		}
		c = cursor{win: s.inflated[:cap(s.inflated)], src: src, left: math.MaxInt, lim: math.MaxInt}
	}
	defer c.closeSource()
	out := &bounded{b: append(s.out[:0], make([]byte, HeaderSize)...), max: s.window + maxGrowth*len(s.large.batch)}
	w, err := deflateTo(out, codec, level)
	if err != nil {
		return nil, err
	}
	write := func(p []byte) error { _, err := w.Write(p); return err }
	shift, long, count := s.h.BaseTimestamp-h.BaseTimestamp, s.large.long, int32(0)
	var head []byte
	err = s.records(&c, func(rec record, r *Record) error {
		var kept bool
		if rec.long {
			kept, long = long[0], long[1:]
		} else {
			kept = s.large.keep(s.h, r)
		}
		if !kept {
			return c.skip(rec.size)
		}
		count++
		if shift == 0 {
			return c.each(rec.size, write)
		}
		look, err := c.ahead(maxRecordHead)
		if err != nil {
			return err
		}
		length := cursor{win: look, w: len(look), eof: true}
		if _, err := length.varint32(); err != nil {
			return err
		}
		delta := r.TimestampDelta + shift
		n := 1 + sizeVarint(delta) + rec.size - rec.moment
		if n > math.MaxInt32 {
			return fmt.Errorf("%w: %d bytes with a delete horizon", ErrRecord, n)
		}
		head = appendVarint(append(appendVarint(head[:0], int64(n)), byte(r.Attributes)), delta)
		if err := write(head); err != nil {
			return err
		}
		if err := c.skip(rec.moment); err != nil {
			return err
		}
		return c.each(rec.size-rec.moment, write)
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("batch: build: %w", err)
	}
	if count != s.count {
		panic(fmt.Sprintf("batch: of the same records %d were kept, and then %d", s.count, count))
	}
	if s.out, err = seal(out.b, s.built(h, codec)); err != nil {
		return nil, err
	}
	return s.out, nil
}

func (c *cursor) closeSource() {
	if c.src != nil {
		c.src.close()
		c.src = nil
	}
}

// bounded is memory that grows up to a bound.
type bounded struct {
	b   []byte
	max int
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(p) > w.max-len(w.b) {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrGrown, w.max)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

// deflateTo is deflate for a section that comes piece by piece. Close ends the stream.
func deflateTo(w io.Writer, c Codec, level int) (io.WriteCloser, error) {
	switch c {
	case None:
		return plainTo{w}, nil
	case Gzip:
		z, free, err := gzipTo(w, level)
		return reused[*gzip.Writer]{z, free}, err
	case Snappy:
		return &snappyTo{w: w, head: snappyHead}, nil
	case LZ4:
		z, free, err := lz4To(w, level)
		return reused[*lz4.Writer]{z, free}, err
	case Zstd:
		// What is built can be read as a stream. Not kept: it holds its window.
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstdSpeed(level)), zstd.WithWindowSize(streamWindow),
			zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, fmt.Errorf("batch: zstd level %d: %w", level, err)
		}
		return z, nil
	}
	return nil, fmt.Errorf("%w: %v", ErrCodec, c)
}

type plainTo struct{ io.Writer }

func (plainTo) Close() error { return nil }

// reused is an encoder that is kept for others when it is closed.
type reused[T interface {
	io.WriteCloser
	Reset(io.Writer)
}] struct {
	w    T
	free freeList[T]
}

func (k reused[T]) Write(p []byte) (int, error) { return k.w.Write(p) }

func (k reused[T]) Close() error {
	if err := k.w.Close(); err != nil {
		return err
	}
	k.w.Reset(nil)
	k.free.put(k.w)
	return nil
}

// snappyTo writes the chunked shape.
type snappyTo struct {
	w    io.Writer
	head []byte // that is not written yet
	in   []byte // of the next chunk
	out  []byte
}

func (s *snappyTo) Write(p []byte) (n int, err error) {
	n = len(p)
	for len(p) > 0 {
		k := min(len(p), xerialChunk-len(s.in))
		s.in, p = append(s.in, p[:k]...), p[k:]
		if len(s.in) == xerialChunk {
			if err := s.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (s *snappyTo) flush() error {
	s.out = append(s.out[:0], s.head...)
	if len(s.in) > 0 {
		s.out = appendSnappy(s.out, s.in)
	}
	s.head, s.in = nil, s.in[:0]
	_, err := s.w.Write(s.out)
	return err
}

func (s *snappyTo) Close() error {
	if len(s.in) == 0 && s.head == nil {
		return nil
	}
	return s.flush()
}
