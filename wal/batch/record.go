package batch

import (
	"fmt"
	"io"
	"iter"
)

// MaxHeaders is how many headers a record may have. A header takes two bytes on the wire and twenty times that
// when decoded, so a limit on bytes alone would not bound memory.
const MaxHeaders = 1 << 16

// Record is one record of a batch. Its offset and time are relative to the batch; Header.Timestamp adds up the
// time.
type Record struct {
	Attributes     int8
	TimestampDelta int64
	OffsetDelta    int32
	Key, Value     []byte // nil is null, which is not the same as empty
	Headers        []RecordHeader
}

// RecordHeader is one header of a record. Keys may repeat; a nil value is null.
type RecordHeader struct {
	Key   string
	Value []byte
}

// Records iterates over the records of b, which is exactly one batch, inflating piece by piece and no more than
// maxInflated bytes. The first error ends the iteration: ErrInflated, ErrCodec, ErrRecord, ErrTrailing, or one of
// ParseHeader. Offset deltas are not checked: compaction leaves gaps.
//
// What is yielded stays valid after the iteration. Slices of an uncompressed batch alias b, and so live as
// long as b does.
func Records(b []byte, maxInflated int) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		h, err := ParseHeader(b)
		if err != nil {
			yield(Record{}, err)
			return
		}
		var c cursor
		if err := c.open(h.Codec(), b[HeaderSize:h.Size()], maxInflated); err != nil {
			yield(Record{}, err)
			return
		}
		defer c.close()
		a := arena{chunk: min(windowSize, max(1024, 4*h.Size()))}
		for i := range h.RecordCount {
			var r Record
			if err := c.next(&r, &a); err != nil {
				yield(Record{}, fmt.Errorf("record %d of %d: %w", i, h.RecordCount, err))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
		if err := c.end(); err != nil {
			yield(Record{}, err)
		}
	}
}

// FirstAtOrAfter finds the first record of b in the offsets [from, to) whose time is ts or later. Times in a batch are
// in no order, so it looks at each.
func FirstAtOrAfter(b []byte, ts, from, to int64, maxInflated int) (offset, timestamp int64, ok bool, err error) {
	err = scan(b, maxInflated, func(h Header, r *Record) bool {
		o := h.BaseOffset + int64(r.OffsetDelta)
		if t := h.Timestamp(*r); t >= ts && o >= from && o < to {
			offset, timestamp, ok = o, t, true
			return false
		}
		return true
	})
	return offset, timestamp, ok, err
}

// MaxTimestampOffset finds the first record of b in the offsets [from, to) that has the largest time, in ms, of those
// records.
func MaxTimestampOffset(b []byte, from, to int64, maxInflated int) (offset, timestamp int64, ok bool, err error) {
	err = scan(b, maxInflated, func(h Header, r *Record) bool {
		o := h.BaseOffset + int64(r.OffsetDelta)
		if t := h.Timestamp(*r); o >= from && o < to && (!ok || t > timestamp) {
			offset, timestamp, ok = o, t, true
		}
		return !(ok && h.LogAppendTime()) // then all are equal
	})
	return offset, timestamp, ok, err
}

// scan calls f with the fixed fields of each record (of Key and Value only whether they are null) until f
// returns false. It allocates nothing per record.
func scan(b []byte, maxInflated int, f func(h Header, r *Record) bool) error {
	h, err := ParseHeader(b)
	if err != nil {
		return err
	}
	var c cursor
	if err := c.open(h.Codec(), b[HeaderSize:h.Size()], maxInflated); err != nil {
		return err
	}
	defer c.close()
	var r Record
	for i := range h.RecordCount {
		if err := c.next(&r, nil); err != nil {
			return fmt.Errorf("record %d of %d: %w", i, h.RecordCount, err)
		}
		if !f(h, &r) {
			return nil
		}
	}
	return c.end()
}

// arena hands out memory for records that outlive the cursor's window, in chunks, so that a batch of small
// records costs a few allocations.
type arena struct {
	chunk int
	free  []byte
}

func (a *arena) get(n int) []byte {
	if n > a.chunk/4 {
		return make([]byte, n)
	}
	if len(a.free) < n {
		a.free = make([]byte, a.chunk)
	}
	p := a.free[:n:n]
	a.free = a.free[n:]
	return p
}

// cursor reads records from a section, through a window when it is compressed. For an uncompressed section
// the window is the section itself.
type cursor struct {
	win  []byte
	r, w int // win[r:w] is unread
	src  inflater
	left int   // bytes that src may still deliver
	eof  bool  // src is at its end
	pos  int64 // bytes taken so far
	lim  int
}

func (c *cursor) open(codec Codec, section []byte, limit int) error {
	*c = cursor{lim: limit}
	if codec == None {
		c.win, c.w, c.eof = section, len(section), true
		return nil
	}
	src, err := inflate(codec, section, limit)
	if err != nil {
		return err
	}
	c.src, c.left, c.win = src, limit, getWindow()
	return nil
}

func (c *cursor) close() {
	if c.src != nil {
		c.src.close()
		windows.put(c.win)
		c.src, c.win = nil, nil
	}
}

// ahead returns what is unread in the window, at least n bytes unless the section ends before; the window is not smaller.
func (c *cursor) ahead(n int) ([]byte, error) {
	for c.w-c.r < n && !c.eof {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	return c.win[c.r:c.w], nil
}

// each passes over n bytes and gives them to f piece by piece.
func (c *cursor) each(n int, f func(piece []byte) error) error {
	for n > 0 {
		if c.r == c.w {
			if c.eof {
				return errEnds
			}
			if err := c.fill(); err != nil {
				return err
			}
			continue
		}
		k := min(n, c.w-c.r)
		if err := f(c.win[c.r : c.r+k]); err != nil {
			return err
		}
		c.r, c.pos, n = c.r+k, c.pos+int64(k), n-k
	}
	return nil
}

// fill reads more into the window, which has room because what is unread is less than any caller needs at once.
func (c *cursor) fill() error {
	if c.r > 0 {
		c.w = copy(c.win, c.win[c.r:c.w])
		c.r = 0
	}
	n, err := c.read(c.win[c.w:])
	c.w += n
	return err
}

// read reads from src, counting against the limit. It returns bytes, or an error, or sets eof.
func (c *cursor) read(p []byte) (int, error) {
	// A reader may return nothing and no error; one that does so for long is broken.
	for range 100 {
		n, err := c.src.Read(p)
		if c.left -= n; c.left < 0 {
			return 0, fmt.Errorf("%w: more than %d bytes", ErrInflated, c.lim)
		}
		if err == io.EOF {
			c.eof = true
			return n, nil
		}
		if n > 0 {
			// An error that came with bytes comes again without.
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%w: %v", ErrCodec, io.ErrNoProgress)
}

var errEnds = fmt.Errorf("%w: the section ends inside it", ErrRecord)

func (c *cursor) byte() (byte, error) {
	for c.r == c.w {
		if c.eof {
			return 0, errEnds
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	v := c.win[c.r]
	c.r++
	c.pos++
	return v, nil
}

// varint reads a zig-zag varint of at most max bytes; the last of them may carry only the bits in last.
func (c *cursor) varint(max int, last byte) (int64, error) {
	var u uint64
	if win := c.win[c.r:c.w]; len(win) >= max { // all of it is there, as nearly always
		for i, v := range win[:max] {
			if i == max-1 && v&^last != 0 {
				break
			}
			u |= uint64(v&0x7f) << (7 * i)
			if v < 0x80 {
				c.r, c.pos = c.r+i+1, c.pos+int64(i+1)
				return int64(u>>1) ^ -int64(u&1), nil
			}
		}
		return 0, fmt.Errorf("%w: varint out of range", ErrRecord)
	}
	for i := 0; ; i++ {
		v, err := c.byte()
		if err != nil {
			return 0, err
		}
		if i == max-1 && v&^last != 0 {
			return 0, fmt.Errorf("%w: varint out of range", ErrRecord)
		}
		u |= uint64(v&0x7f) << (7 * i)
		if v < 0x80 {
			return int64(u>>1) ^ -int64(u&1), nil
		}
	}
}

func (c *cursor) varint32() (int32, error) {
	v, err := c.varint(5, 0x0f)
	return int32(v), err
}

func (c *cursor) varint64() (int64, error) { return c.varint(10, 0x01) }

// skip passes over n bytes.
func (c *cursor) skip(n int) error {
	for {
		k := min(n, c.w-c.r)
		c.r += k
		c.pos += int64(k)
		if n -= k; n == 0 {
			return nil
		}
		if c.eof {
			return errEnds
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// take returns the next n bytes: a part of the section when it is uncompressed, memory from a otherwise. What is
// longer than a window is allocated as it arrives, so that a false length buys nothing.
func (c *cursor) take(n int, a *arena) ([]byte, error) {
	if c.src == nil {
		if n > c.w-c.r {
			return nil, errEnds
		}
		p := c.win[c.r : c.r+n : c.r+n]
		c.r += n
		c.pos += int64(n)
		return p, nil
	}
	var p []byte
	for size := min(n, windowSize); ; size = min(n, 2*size) {
		q := a.get(size)
		at := copy(q, p)
		p = q
		for at < size {
			if c.r == c.w {
				if c.eof {
					return nil, errEnds
				}
				if err := c.fill(); err != nil {
					return nil, err
				}
			}
			k := copy(p[at:], c.win[c.r:c.w])
			at += k
			c.r += k
			c.pos += int64(k)
		}
		if size == n {
			return p, nil
		}
	}
}

// next reads one record. Without an arena, headers are checked and passed over, and so are key and value of a section
// that is read through a window: they are then non-nil if the record has them, and empty.
func (c *cursor) next(r *Record, a *arena) error {
	size, err := c.varint32()
	if err != nil {
		return err
	}
	if size < 0 || (c.src == nil && int(size) > c.w-c.r) {
		return fmt.Errorf("%w: length %d", ErrRecord, size)
	}
	end := c.pos + int64(size)
	attr, err := c.byte()
	if err != nil {
		return err
	}
	r.Attributes = int8(attr)
	if r.TimestampDelta, err = c.varint64(); err != nil {
		return err
	}
	if r.OffsetDelta, err = c.varint32(); err != nil {
		return err
	}
	if r.Key, err = c.bytes("key", end, a); err != nil {
		return err
	}
	return c.rest(r, end, a)
}

// rest reads what a record that ends at end has behind its key.
func (c *cursor) rest(r *Record, end int64, a *arena) (err error) {
	if r.Value, err = c.bytes("value", end, a); err != nil {
		return err
	}
	n, err := c.varint32()
	if err != nil {
		return err
	}
	// Every header takes at least two bytes.
	if n < 0 || int64(n) > (end-c.pos)/2 {
		return fmt.Errorf("%w: %d headers in %d bytes", ErrRecord, n, end-c.pos)
	}
	if n > MaxHeaders {
		return fmt.Errorf("%w: %d headers, at most %d are allowed", ErrRecord, n, MaxHeaders)
	}
	r.Headers = nil
	for i := range n {
		key, err := c.bytes("header key", end, a)
		if err != nil {
			return err
		}
		if key == nil {
			return fmt.Errorf("%w: null header key", ErrRecord)
		}
		value, err := c.bytes("header value", end, a)
		if err != nil {
			return err
		}
		if a == nil {
			continue
		}
		if r.Headers == nil {
			// The count is believed only as far as it is cheap: append does the rest.
			r.Headers = make([]RecordHeader, 0, min(n-i, 16))
		}
		r.Headers = append(r.Headers, RecordHeader{Key: string(key), Value: value})
	}
	if c.pos != end {
		return fmt.Errorf("%w: fields take %d bytes more than its length", ErrRecord, c.pos-end)
	}
	return nil
}

var present = []byte{}

func (c *cursor) bytes(what string, end int64, a *arena) ([]byte, error) {
	n, err := c.varint32()
	if err != nil {
		return nil, err
	}
	if n == -1 {
		return nil, nil
	}
	if n < 0 || int64(n) > end-c.pos {
		return nil, fmt.Errorf("%w: %s of %d bytes with %d left in the record", ErrRecord, what, n, end-c.pos)
	}
	if n == 0 {
		return present, nil
	}
	if a == nil && c.src != nil {
		return present, c.skip(int(n))
	}
	return c.take(int(n), a)
}

// end checks that nothing is left, and that the compressed stream ends well.
func (c *cursor) end() error {
	for c.r == c.w && !c.eof {
		if err := c.fill(); err != nil {
			return err
		}
	}
	if c.r != c.w {
		return ErrTrailing
	}
	return nil
}
