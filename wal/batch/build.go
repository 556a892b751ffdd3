package batch

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Builder builds one batch from records. The zero value, with NewBuilder's defaults filled in, is ready; after
// Build it can be reset and used again.
type Builder struct {
	// Set before Build.
	BaseOffset    int64
	LeaderEpoch   int32
	Codec         Codec
	Level         int // of the codec; DefaultLevel: the codec's default
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
	Transactional bool
	Control       bool
	LogAppendTime bool // every record counts as of the largest timestamp added

	section  []byte
	count    int32
	last     int32 // offset delta of the last record
	base     int64 // timestamp of the first record
	max      int64
	overflow bool
}

// NewBuilder returns a builder of plain batches: uncompressed, no producer, offset 0.
func NewBuilder() *Builder {
	return &Builder{LeaderEpoch: NoLeaderEpoch, Level: DefaultLevel, ProducerID: NoProducerID,
		ProducerEpoch: NoProducerEpoch, BaseSequence: NoSequence}
}

// Reset forgets the records and keeps the settings.
func (b *Builder) Reset() {
	b.section, b.count, b.last, b.base, b.max, b.overflow = b.section[:0], 0, 0, 0, 0, false
}

// Add appends a record at the next offset. A nil key or value is null.
func (b *Builder) Add(timestamp int64, key, value []byte, headers ...RecordHeader) {
	delta := int32(0)
	if b.count > 0 {
		delta = b.last + 1
	}
	b.AddAt(delta, timestamp, key, value, headers...)
}

// AddAt appends a record with an offset delta of its own, larger than the last: what compaction leaves has
// gaps.
func (b *Builder) AddAt(offsetDelta int32, timestamp int64, key, value []byte, headers ...RecordHeader) {
	if offsetDelta < 0 || (b.count > 0 && offsetDelta <= b.last) {
		panic(fmt.Sprintf("batch: offset delta %d after %d", offsetDelta, b.last))
	}
	if b.count == 0 {
		b.base, b.max = timestamp, timestamp
	}
	b.max = max(b.max, timestamp)
	ts := timestamp - b.base

	size := 1 + sizeVarint(ts) + sizeVarint(int64(offsetDelta)) + sizeBytes(key) + sizeBytes(value) + sizeVarint(int64(len(headers)))
	for _, h := range headers {
		size += sizeVarint(int64(len(h.Key))) + len(h.Key) + sizeBytes(h.Value)
	}
	if size > math.MaxInt32 {
		b.overflow = true
		return
	}
	p := appendVarint(b.section, int64(size))
	p = append(p, 0) // attributes: unused
	p = appendVarint(p, ts)
	p = appendVarint(p, int64(offsetDelta))
	p = appendBytes(p, key)
	p = appendBytes(p, value)
	p = appendVarint(p, int64(len(headers)))
	for _, h := range headers {
		p = appendVarint(p, int64(len(h.Key)))
		p = append(p, h.Key...)
		p = appendBytes(p, h.Value)
	}
	b.section = p
	b.count++
	b.last = offsetDelta
}

// Len is the number of records added.
func (b *Builder) Len() int { return int(b.count) }

// Size is the length of the batch if it were built now without compression.
func (b *Builder) Size() int { return HeaderSize + len(b.section) }

// Build returns the batch in memory of its own. It fails when it is empty or longer than a batch can be.
func (b *Builder) Build() ([]byte, error) {
	if b.count == 0 {
		return nil, fmt.Errorf("batch: build: no records")
	}
	h := Header{BaseOffset: b.BaseOffset, LeaderEpoch: b.LeaderEpoch, Attributes: int16(b.Codec) & attrCodec, LastOffsetDelta: b.last,
		BaseTimestamp: b.base, MaxTimestamp: b.max, ProducerID: b.ProducerID, ProducerEpoch: b.ProducerEpoch,
		BaseSequence: b.BaseSequence, RecordCount: b.count}
	for _, a := range []struct {
		on  bool
		bit int16
	}{{b.LogAppendTime, attrLogAppendTime}, {b.Transactional, attrTransactional}, {b.Control, attrControl}} {
		if a.on {
			h.Attributes |= a.bit
		}
	}
	if b.overflow || len(b.section) > math.MaxInt32-HeaderSize {
		return nil, fmt.Errorf("batch: build: records section too long")
	}
	return assemble(nil, h, b.Codec, b.Level, b.section)
}

// assemble compresses a section and puts the header before it, with length, magic and checksum of its own. The batch
// is in the memory of buf as far as that goes.
func assemble(buf []byte, h Header, c Codec, level int, section []byte) ([]byte, error) {
	// Guess half for what is compressed; append mends a wrong guess.
	room := len(section)
	if c != None {
		room = room/2 + 64
	}
	b := buf[:0]
	if cap(b) < HeaderSize {
		b = make([]byte, 0, HeaderSize+room)
	}
	b, err := deflate(b[:HeaderSize], c, level, section)
	if err != nil {
		return nil, err
	}
	return seal(b, h)
}

// seal puts the header before the records of b, which has room for it.
func seal(b []byte, h Header) ([]byte, error) {
	if len(b)-overhead > math.MaxInt32 {
		return nil, fmt.Errorf("batch: build: %d bytes are too many for one batch", len(b))
	}
	binary.BigEndian.PutUint64(b[offBaseOffset:], uint64(h.BaseOffset))
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-overhead))
	binary.BigEndian.PutUint32(b[offLeaderEpoch:], uint32(h.LeaderEpoch))
	b[offMagic] = Magic
	binary.BigEndian.PutUint16(b[offAttributes:], uint16(h.Attributes))
	binary.BigEndian.PutUint32(b[offLastOffsetDelta:], uint32(h.LastOffsetDelta))
	binary.BigEndian.PutUint64(b[offBaseTimestamp:], uint64(h.BaseTimestamp))
	binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(h.MaxTimestamp))
	binary.BigEndian.PutUint64(b[offProducerID:], uint64(h.ProducerID))
	binary.BigEndian.PutUint16(b[offProducerEpoch:], uint16(h.ProducerEpoch))
	binary.BigEndian.PutUint32(b[offBaseSequence:], uint32(h.BaseSequence))
	binary.BigEndian.PutUint32(b[offRecordCount:], uint32(h.RecordCount))
	setCRC(b)
	return b, nil
}

// Recompress returns the records of b, which is exactly one batch, under another codec; offsets, timestamps,
// producer fields and the records' own bytes stay. A batch that has the codec already is returned as it is,
// whatever its level: that is what Kafka does with compression.type. Errors are those of Records; a batch that
// becomes longer is not one of them.
func Recompress(b []byte, to Codec, level int, maxInflated int) ([]byte, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return nil, err
	}
	if h.Codec() == to {
		return b, nil
	}
	section, err := inflateAll(nil, h.Codec(), b[HeaderSize:h.Size()], maxInflated)
	if err != nil {
		return nil, err
	}
	h.Attributes = h.Attributes&^attrCodec | int16(to)
	return assemble(nil, h, to, level, section)
}

func appendVarint(p []byte, v int64) []byte {
	return binary.AppendUvarint(p, uint64(v<<1)^uint64(v>>63))
}

func sizeVarint(v int64) int {
	u, n := uint64(v<<1)^uint64(v>>63), 1
	for u >= 0x80 {
		u >>= 7
		n++
	}
	return n
}

func appendBytes(p, v []byte) []byte {
	if v == nil {
		return appendVarint(p, -1)
	}
	return append(appendVarint(p, int64(len(v))), v...)
}

func sizeBytes(v []byte) int {
	if v == nil {
		return 1
	}
	return sizeVarint(int64(len(v))) + len(v)
}
