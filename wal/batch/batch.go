// Package batch reads, checks and builds Kafka record batches of format 2.
//
// A batch is stored and served as the bytes in which its producer sent it. Two fields are the broker's to set,
// and both lie before the checksummed part, so setting them costs eight and four bytes of writing and no
// checksum work:
//
//	bytes  field                  bytes  field
//	0-7    base offset         *  27-34  base timestamp
//	8-11   length (after this)    35-42  max timestamp
//	12-15  leader epoch        *  43-50  producer id
//	16     magic = 2              51-52  producer epoch
//	17-20  CRC-32C of 21..end     53-56  base sequence
//	21-22  attributes             57-60  record count
//	23-26  last offset delta      61-    records, compressed as one stream
//
// Three depths of trust, from cheap to dear: ParseHeader and Walk check that the bytes hold what they claim
// to hold; VerifyCRC checks that they are what the producer sent; CheckRecords inflates and checks every
// record. Nothing here believes a length, a count or a content size before the bytes behind it have been
// seen, and no input makes it use more memory than its caller allowed.
//
// The package is pure: no clock, no disk, no goroutine.
package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/varve/varve/wal/crc32c"
)

const (
	// HeaderSize is the length of the fixed part of a batch, up to the records.
	HeaderSize = 61
	// MinSize is the length of the smallest batch: a header whose records section is empty, as compaction
	// leaves it when it must keep a producer's last sequence but none of its records.
	MinSize = HeaderSize

	// Magic is the only record format that is stored.
	Magic = 2

	// NoTimestamp, NoProducerID, NoProducerEpoch, NoSequence and NoLeaderEpoch stand for an absent value.
	NoTimestamp     int64 = -1
	NoProducerID    int64 = -1
	NoProducerEpoch int16 = -1
	NoSequence      int32 = -1
	NoLeaderEpoch   int32 = -1

	overhead = 12 // base offset and length, which the length field does not count
)

const (
	offBaseOffset      = 0
	offLength          = 8
	offLeaderEpoch     = 12
	offMagic           = 16
	offCRC             = 17
	offAttributes      = 21
	offLastOffsetDelta = 23
	offBaseTimestamp   = 27
	offMaxTimestamp    = 35
	offProducerID      = 43
	offProducerEpoch   = 51
	offBaseSequence    = 53
	offRecordCount     = 57
)

// The bits of the attributes field.
const (
	attrCodec         = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	attrDeleteHorizon = 0x40
)

var (
	// ErrShort says that the bytes end before the batch does.
	ErrShort = errors.New("batch: bytes end before the batch does")
	// ErrMagic says that the bytes are of another record format.
	ErrMagic = errors.New("batch: not record format 2")
	// ErrLength says that the length field cannot be that of a batch.
	ErrLength = errors.New("batch: impossible length field")
	// ErrCRC says that the bytes are not those that were checksummed.
	ErrCRC = errors.New("batch: checksum mismatch")
	// ErrInflated says that the records section inflates to more than the caller allows.
	ErrInflated = errors.New("batch: records inflate past the limit")
	// ErrCodec says that the records section is not a valid stream of the codec its attributes name.
	ErrCodec = errors.New("batch: records are no valid stream of their codec")
	// ErrRecord says that a record does not parse, or that there are fewer than the header counts.
	ErrRecord = errors.New("batch: malformed record")
	// ErrTrailing says that bytes follow the last record, or the end of the compressed stream.
	ErrTrailing = errors.New("batch: bytes after the last record")
	// ErrControl says that a batch is no control batch, or one that does not hold a transaction marker.
	ErrControl = errors.New("batch: no transaction marker")
)

// Header is the fixed part of a batch.
type Header struct {
	BaseOffset      int64
	Length          int32 // as on the wire: bytes that follow the length field
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32
	Attributes      int16
	LastOffsetDelta int32
	BaseTimestamp   int64 // ms; with HasDeleteHorizon still what the records' deltas are added to
	MaxTimestamp    int64 // ms
	ProducerID      int64
	ProducerEpoch   int16
	BaseSequence    int32
	RecordCount     int32
}

// TransactionalHeader is the header of a batch without sequence in a producer's transaction, as far as it is known before
// the batch is: a group coordinator's.
func TransactionalHeader(producerID int64, producerEpoch int16) Header {
	return Header{Attributes: attrTransactional, ProducerID: producerID, ProducerEpoch: producerEpoch, BaseSequence: NoSequence}
}

// Size is the length of the whole batch in bytes.
func (h Header) Size() int { return int(h.Length) + overhead }

// LastOffset is the offset of the last record, or of the last that the batch ever had: compaction removes
// records and keeps the range.
func (h Header) LastOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) }

// NextOffset is the offset after the batch.
func (h Header) NextOffset() int64 { return h.LastOffset() + 1 }

// LastSequence is the sequence number of the last record. Sequences count from 0 to 2^31-1 and start again
// at 0.
func (h Header) LastSequence() int32 {
	if h.BaseSequence == NoSequence {
		return NoSequence
	}
	return AddSequence(h.BaseSequence, h.LastOffsetDelta)
}

// AddSequence returns the sequence number n records after seq, for seq and n not negative.
func AddSequence(seq, n int32) int32 {
	if seq > math.MaxInt32-n {
		return int32(int64(seq) + int64(n) - math.MaxInt32 - 1)
	}
	return seq + n
}

// Codec is how the records section is compressed. Values 5 to 7 fit the field and name nothing.
func (h Header) Codec() Codec { return Codec(h.Attributes & attrCodec) }

// LogAppendTime reports whether MaxTimestamp is the broker's clock and counts for every record.
func (h Header) LogAppendTime() bool { return h.Attributes&attrLogAppendTime != 0 }

// Transactional reports whether the batch belongs to a transaction, as data or as its marker.
func (h Header) Transactional() bool { return h.Attributes&attrTransactional != 0 }

// Control reports whether the batch holds a marker and not a client's records.
func (h Header) Control() bool { return h.Attributes&attrControl != 0 }

// HasDeleteHorizon reports whether BaseTimestamp is the time from which compaction may drop the batch's
// tombstones or marker (KIP-534).
func (h Header) HasDeleteHorizon() bool { return h.Attributes&attrDeleteHorizon != 0 }

// HasProducer reports whether an idempotent producer wrote the batch.
func (h Header) HasProducer() bool { return h.ProducerID > NoProducerID }

// Timestamp is the time of a record of this batch, in ms.
func (h Header) Timestamp(r Record) int64 {
	if h.LogAppendTime() {
		return h.MaxTimestamp
	}
	return h.BaseTimestamp + r.TimestampDelta
}

// PeekHeader reads a header of which the records need not be there: b holds at least HeaderSize bytes. It
// returns ErrShort, ErrMagic or ErrLength.
func PeekHeader(b []byte) (Header, error) {
	// The older formats have their magic byte at the same place and may be shorter than our header.
	if len(b) > offMagic && b[offMagic] != Magic {
		return Header{}, fmt.Errorf("%w: magic %d", ErrMagic, int8(b[offMagic]))
	}
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: %d bytes of a header", ErrShort, len(b))
	}
	h := Header{
		BaseOffset:      int64(binary.BigEndian.Uint64(b[offBaseOffset:])),
		Length:          int32(binary.BigEndian.Uint32(b[offLength:])),
		LeaderEpoch:     int32(binary.BigEndian.Uint32(b[offLeaderEpoch:])),
		Magic:           int8(b[offMagic]),
		CRC:             binary.BigEndian.Uint32(b[offCRC:]),
		Attributes:      int16(binary.BigEndian.Uint16(b[offAttributes:])),
		LastOffsetDelta: int32(binary.BigEndian.Uint32(b[offLastOffsetDelta:])),
		BaseTimestamp:   int64(binary.BigEndian.Uint64(b[offBaseTimestamp:])),
		MaxTimestamp:    int64(binary.BigEndian.Uint64(b[offMaxTimestamp:])),
		ProducerID:      int64(binary.BigEndian.Uint64(b[offProducerID:])),
		ProducerEpoch:   int16(binary.BigEndian.Uint16(b[offProducerEpoch:])),
		BaseSequence:    int32(binary.BigEndian.Uint32(b[offBaseSequence:])),
		RecordCount:     int32(binary.BigEndian.Uint32(b[offRecordCount:])),
	}
	if h.Length < HeaderSize-overhead {
		return Header{}, fmt.Errorf("%w: %d", ErrLength, h.Length)
	}
	return h, nil
}

// ParseHeader reads the header of the batch that b begins with and checks that b holds all of it; b may be
// longer. It checks bounds, not content. It returns ErrShort, ErrMagic or ErrLength.
func ParseHeader(b []byte) (Header, error) {
	h, err := PeekHeader(b)
	if err != nil {
		return Header{}, err
	}
	if h.Size() > len(b) {
		return Header{}, fmt.Errorf("%w: %d of %d bytes", ErrShort, len(b), h.Size())
	}
	return h, nil
}

// Walk calls f with each batch of a run, in order. The bytes given to f are exactly one batch and alias run. It
// stops at the first error, its own (as ParseHeader) or f's.
func Walk(run []byte, f func(h Header, b []byte) error) error {
	for len(run) > 0 {
		h, err := ParseHeader(run)
		if err != nil {
			return err
		}
		n := h.Size()
		if err := f(h, run[:n:n]); err != nil {
			return err
		}
		run = run[n:]
	}
	return nil
}

// VerifyCRC checks the checksum of b, which is exactly one batch that ParseHeader has accepted.
func VerifyCRC(b []byte) error {
	if len(b) < HeaderSize {
		return fmt.Errorf("%w: %d bytes", ErrShort, len(b))
	}
	want := binary.BigEndian.Uint32(b[offCRC:])
	if got := crc32c.Checksum(b[offAttributes:]); got != want {
		return fmt.Errorf("%w: stored %08x, computed %08x", ErrCRC, want, got)
	}
	return nil
}

// Sum returns the CRC-32C of all bytes of b, which is exactly one batch whose checksum has been verified: it follows from
// that, and from the few bytes before.
func Sum(b []byte) uint32 {
	return crc32c.Then(crc32c.Checksum(b[:offAttributes]), binary.BigEndian.Uint32(b[offCRC:]), crc32c.ShiftOf(len(b)-offAttributes))
}

// SetBaseOffset gives the batch its place in the log. The checksum does not cover it.
func SetBaseOffset(b []byte, o int64) {
	binary.BigEndian.PutUint64(b[offBaseOffset:offBaseOffset+8], uint64(o))
}

// SetLeaderEpoch stamps the epoch in which the batch was appended. The checksum does not cover it.
func SetLeaderEpoch(b []byte, e int32) {
	binary.BigEndian.PutUint32(b[offLeaderEpoch:offLeaderEpoch+4], uint32(e))
}

// SetLogAppendTime makes ms the timestamp of every record of b, which is exactly one batch, and recomputes
// the checksum. The records are not touched: readers of such a batch ignore their deltas.
func SetLogAppendTime(b []byte, ms int64) {
	b[offAttributes+1] |= attrLogAppendTime
	SetMaxTimestamp(b, ms)
}

// SetMaxTimestamp corrects the header's maximum of b, which is exactly one batch, and recomputes the checksum.
func SetMaxTimestamp(b []byte, ms int64) {
	binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(ms))
	setCRC(b)
}

func setCRC(b []byte) {
	binary.BigEndian.PutUint32(b[offCRC:], crc32c.Checksum(b[offAttributes:]))
}
