package producer

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/varve/varve/wal/crc32c"
)

// The encoding of a snapshot. Integers are varints: u unsigned, s zig-zag.
//
//	1 byte  magic 0xE2    1 byte  version 1
//	u offset: the state is that after all batches below it
//	u count, then for each producer, ascending by id:
//	    u id - id of the one before, s epoch, s coordinator epoch, s last timestamp, u last offset,
//	    u first offset of the open transaction + 1, or 0
//	    u batches (0..5), then for each: s last sequence, u last offset, u offset delta, s timestamp
//	u count, then for each aborted transaction, ascending by last offset:
//	    u producer id, u first offset, u last offset, u last stable offset
//	u count, then for each ended transaction that is not known to be committed: u first offset, u last offset
//	4 bytes CRC-32C of all before, big-endian
const (
	magic   = 0xE2
	version = 1

	// What a list element takes at least, to check a count before room is made for it.
	minProducer = 7
	minAborted  = 4
	minDecided  = 2
)

// ErrCorrupt says that bytes are no snapshot.
var ErrCorrupt = errors.New("producer: corrupt snapshot")

// Encode returns the state as a snapshot: what is known after all batches below offset. Equal states give
// equal bytes.
func (s *State) Encode(offset int64) []byte {
	b := make([]byte, 0, 32+48*len(s.entries)+16*len(s.aborted)+8*len(s.decided))
	u := func(v int64) { b = binary.AppendUvarint(b, uint64(v)) }
	z := func(v int64) { b = binary.AppendVarint(b, v) }
	b = append(b, magic, version)
	u(offset)
	u(int64(len(s.entries)))
	prev := int64(0)
	for _, id := range s.ids() {
		e := s.entries[id]
		u(id - prev)
		prev = id
		z(int64(e.epoch))
		z(int64(e.coordinatorEpoch))
		z(e.lastTimestamp)
		u(e.lastOffset)
		u(e.txnFirst + 1)
		u(int64(e.batches))
		for _, l := range e.last[:e.batches] {
			z(int64(l.lastSeq))
			u(l.lastOffset)
			u(int64(l.delta))
			z(l.timestamp)
		}
	}
	u(int64(len(s.aborted)))
	for _, a := range s.aborted {
		u(a.ProducerID)
		u(a.FirstOffset)
		u(a.LastOffset)
		u(a.LastStableOffset)
	}
	u(int64(len(s.decided)))
	for _, d := range s.decided {
		u(d.first)
		u(d.last)
	}
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
}

// Decode reads what Encode wrote; b is exactly that. It returns ErrCorrupt for anything else, having allocated no
// more than a small multiple of len(b).
func Decode(b []byte) (*State, int64, error) {
	if len(b) < 10 || b[0] != magic {
		return nil, 0, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
	}
	body := b[:len(b)-4]
	if crc32c.Checksum(body) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return nil, 0, fmt.Errorf("%w: checksum mismatch", ErrCorrupt)
	}
	if b[1] != version {
		return nil, 0, fmt.Errorf("%w: version %d, this program reads %d", ErrCorrupt, b[1], version)
	}
	d := decoder{b: body[2:]}
	s := New()
	offset := d.offset()

	n := d.count(minProducer)
	if n > 0 {
		s.entries = make(map[int64]*entry, n)
	}
	prev := int64(-1)
	for i := 0; i < n && d.err == nil; i++ {
		id := d.offset()
		if i > 0 {
			if id == 0 || id > math.MaxInt64-prev {
				d.fail("producer ids do not ascend")
				break
			}
			id += prev
		}
		prev = id
		e := &entry{epoch: int16(d.signed(math.MinInt16, math.MaxInt16)), coordinatorEpoch: int32(d.signed(math.MinInt32, math.MaxInt32)),
			lastTimestamp: d.signed(math.MinInt64, math.MaxInt64), lastOffset: d.offset(), txnFirst: d.offset() - 1}
		batches := d.offset()
		if batches > Remembered {
			d.fail("too many batches")
			break
		}
		for range batches {
			e.remember(sent{lastSeq: int32(d.signed(0, math.MaxInt32)), lastOffset: d.offset(), delta: int32(d.below(math.MaxInt32)),
				timestamp: d.signed(math.MinInt64, math.MaxInt64)})
		}
		if e.txnFirst != noOffset {
			s.open = append(s.open, OpenTxn{id, e.txnFirst})
		}
		s.entries[id] = e
	}
	slices.SortFunc(s.open, func(a, b OpenTxn) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })

	n = d.count(minAborted)
	s.aborted = makeList[Aborted](n)
	for i := 0; i < n && d.err == nil; i++ {
		a := Aborted{d.offset(), d.offset(), d.offset(), d.offset()}
		if len(s.aborted) > 0 && a.LastOffset <= s.aborted[len(s.aborted)-1].LastOffset {
			d.fail("aborted transactions do not ascend")
		}
		s.aborted = append(s.aborted, a)
	}

	n = d.count(minDecided)
	if n > maxDecided {
		d.fail("too many ended transactions")
		n = 0
	}
	s.decided = makeList[decided](n)
	for i := 0; i < n && d.err == nil; i++ {
		t := decided{d.offset(), d.offset()}
		if len(s.decided) > 0 && t.last <= s.decided[len(s.decided)-1].last {
			d.fail("ended transactions do not ascend")
		}
		s.decided = append(s.decided, t)
	}
	if d.err == nil && len(d.b) != 0 {
		d.fail("bytes too many")
	}
	if d.err != nil {
		return nil, 0, d.err
	}
	return s, offset, nil
}

func makeList[T any](n int) []T {
	if n == 0 {
		return nil
	}
	return make([]T, 0, n)
}

// decoder keeps the first error; after it every read returns 0.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s, %d bytes before the end", ErrCorrupt, what, len(d.b))
	}
}

func (d *decoder) below(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit || d.err != nil {
		d.fail("number out of range")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) offset() int64 { return int64(d.below(math.MaxInt64)) }

func (d *decoder) signed(lo, hi int64) int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 || v < lo || v > hi || d.err != nil {
		d.fail("number out of range")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads the length of a list whose elements take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.below(math.MaxInt32)
	if n > uint64(len(d.b)/size) {
		d.fail("list longer than the snapshot")
		return 0
	}
	return int(n)
}
