package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/lineage"
)

// The layout of every structure here is drawn in README.md. All integers are little-endian.
const (
	formatVersion = 1
	// segmentVersion is that of the segments that are begun: blocks may be paged from version 2 on.
	segmentVersion = 2

	// pageSize is what blocks are aligned to. No sector is ever shared by two blocks, so a torn write cannot hurt
	// what was durable before it; no page is written in part, so the kernel never reads before it writes; and a
	// scan that has lost its way looks for the next block at few places.
	pageSize = 4096

	segmentHeaderSize = pageSize // what the file is; read by people and by version checks, not by recovery
	segmentTailSize   = pageSize // the last page of the file: where the footer is, once there is one
	blockHeaderSize   = 72
	descriptorSize    = 48
	blockChecked      = 64 // bytes of a block header that its checksum covers, before the descriptors

	footerHeadSize  = 48
	footerPieceSize = 64
	footerRunSize   = 40
)

var (
	magicSegment  = [8]byte{'V', 'A', 'R', 'V', 'E', 'W', 'A', 'L'}
	magicTail     = [8]byte{'V', 'A', 'R', 'V', 'T', 'A', 'I', 'L'}
	magicFooter   = [8]byte{'V', 'A', 'R', 'V', 'F', 'O', 'O', 'T'}
	magicIdentity = [8]byte{'V', 'A', 'R', 'V', 'E', 'I', 'D', 'N'}
	magicBlock    = [4]byte{'V', 'B', 'L', 'K'}
)

var le = binary.LittleEndian

// errInvalid says that bytes are not what they should be here. What follows from it (torn, blank, corrupt) is for
// the caller to decide.
var errInvalid = errors.New("invalid")

// kind is what a record is. Values are part of the format.
type kind uint8

const (
	kindData          kind = 1  // record batches verbatim: [base, next) of a partition
	kindTruncate      kind = 2  // offsets from base on are cut off
	kindEpoch         kind = 3  // leader epoch begins at base
	kindHighWatermark kind = 4  // the high watermark is base
	kindPartitionMap  kind = 5  // a local partition with its whole control state
	kindDrop          kind = 6  // the local partition is gone
	kindTrim          kind = 7  // the local start is base
	kindSnapshot      kind = 8  // producer state at base
	kindCarry         kind = 9  // as DATA, but a copy of what lies in an older segment
	kindReclaim       kind = 10 // segments up to generation base are gone
	kindCheckpoint    kind = 11 // the control state of all partitions stands before this, since the last one of these
)

func (k kind) String() string {
	names := [...]string{1: "DATA", "TRUNCATE", "EPOCH", "HIGH_WATERMARK", "PARTITION_MAP", "DROP", "TRIM", "PRODUCER_SNAPSHOT", "CARRY", "RECLAIM", "CHECKPOINT"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("KIND(%d)", uint8(k))
}

func alignUp(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// place is what ties bytes to one file at one time: a recycled file is full of blocks that were valid once.
type place struct {
	uuid       [16]byte
	generation uint64
}

// seed begins every checksum in a segment, so that bytes of another log or of an earlier life of the file fail it.
func (p place) seed() uint32 {
	var b [24]byte
	copy(b[:], p.uuid[:])
	le.PutUint64(b[16:], p.generation)
	return crc32c.Checksum(b[:])
}

func checksum(seed uint32, b []byte) uint32 { return crc32c.Update(seed, b) }

// blockHeader stands before the records of one group commit.
type blockHeader struct {
	seq     uint64
	durable uint64 // highest block sequence known durable when this block was written; below seq
	timeMs  int64  // when it was written; for people and for the age of what is recovered
	body    uint32 // bytes of descriptors and payloads, and of what is between them
	count   uint32 // records
	paged   bool   // the payloads begin at the first page after the descriptors
}

const flagPaged = 1

// encodeBlockHead fills in the header before the descriptors, which are in head already. The checksum in it covers
// header and descriptors; each descriptor holds the checksum of its payload. So every byte is checksummed once,
// and a payload can be verified by itself when it is read back.
func encodeBlockHead(head []byte, h blockHeader, at place, seed uint32) {
	copy(head, magicBlock[:])
	le.PutUint16(head[4:], formatVersion)
	le.PutUint16(head[6:], 0)
	if h.paged {
		le.PutUint16(head[6:], flagPaged)
	}
	copy(head[8:], at.uuid[:])
	le.PutUint64(head[24:], at.generation)
	le.PutUint64(head[32:], h.seq)
	le.PutUint64(head[40:], h.durable)
	le.PutUint64(head[48:], uint64(h.timeMs))
	le.PutUint32(head[56:], h.body)
	le.PutUint32(head[60:], h.count)
	le.PutUint32(head[68:], 0)
	le.PutUint32(head[64:], headChecksum(head, seed))
}

func headChecksum(head []byte, seed uint32) uint32 {
	return checksum(checksum(seed, head[:blockChecked]), head[blockHeaderSize:])
}

// decodeBlockHeader reads the fixed part and believes it as far as bounds go: room is how many bytes there are from
// the block's beginning.
func decodeBlockHeader(b []byte, at place, room int64) (h blockHeader, err error) {
	if len(b) < blockHeaderSize || !bytes.Equal(b[:4], magicBlock[:]) || le.Uint16(b[4:]) != formatVersion ||
		!bytes.Equal(b[8:24], at.uuid[:]) || le.Uint64(b[24:]) != at.generation || le.Uint16(b[6:])&^flagPaged != 0 || le.Uint32(b[68:]) != 0 {
		return h, errInvalid
	}
	h = blockHeader{seq: le.Uint64(b[32:]), durable: le.Uint64(b[40:]), timeMs: int64(le.Uint64(b[48:])), body: le.Uint32(b[56:]), count: le.Uint32(b[60:]), paged: le.Uint16(b[6:])&flagPaged != 0}
	if int64(h.body) > room-blockHeaderSize || h.payloadsAt() > h.size() || h.durable >= h.seq {
		return h, errInvalid
	}
	return h, nil
}

func (h blockHeader) size() int64     { return blockHeaderSize + int64(h.body) }
func (h blockHeader) headSize() int64 { return blockHeaderSize + int64(h.count)*descriptorSize }

// payloadsAt is where in the block the payloads begin.
func (h blockHeader) payloadsAt() int64 {
	if h.paged {
		return alignUp(h.headSize())
	}
	return h.headSize()
}

// descriptor says what one record of a block is.
type descriptor struct {
	kind      kind
	epoch     int32
	partition PartitionID
	base      int64
	next      int64 // of DATA and CARRY: the offset after the last
	maxTS     int64 // of DATA and CARRY: the largest batch timestamp; of CARRY, damagedTS
	length    uint32
	crc       uint32 // of the payload, seeded
}

func (d *descriptor) encode(b []byte) {
	le.PutUint32(b, uint32(d.kind))
	le.PutUint32(b[4:], uint32(d.epoch))
	le.PutUint64(b[8:], uint64(d.partition))
	le.PutUint64(b[16:], uint64(d.base))
	le.PutUint64(b[24:], uint64(d.next))
	le.PutUint64(b[32:], uint64(d.maxTS))
	le.PutUint32(b[40:], d.length)
	le.PutUint32(b[44:], d.crc)
}

func decodeDescriptor(b []byte) descriptor {
	return descriptor{
		kind: kind(b[0]), epoch: int32(le.Uint32(b[4:])), partition: PartitionID(le.Uint64(b[8:])),
		base: int64(le.Uint64(b[16:])), next: int64(le.Uint64(b[24:])), maxTS: int64(le.Uint64(b[32:])),
		length: le.Uint32(b[40:]), crc: le.Uint32(b[44:]),
	}
}

// decodeBlock verifies a whole block and calls f for each record with the position of its payload in b. f is called
// only if all of the block is valid.
func decodeBlock(b []byte, at place, seed uint32, f func(d descriptor, pos int64, payload []byte)) (h blockHeader, err error) {
	h, err = decodeBlockHeader(b, at, int64(len(b)))
	if err != nil {
		return h, err
	}
	if headChecksum(b[:h.headSize()], seed) != le.Uint32(b[64:]) {
		return h, errInvalid
	}
	b = b[:h.size()]
	pos := h.payloadsAt()
	for i := range int64(h.count) {
		d := decodeDescriptor(b[blockHeaderSize+i*descriptorSize:])
		if int64(d.length) > int64(len(b))-pos {
			return h, errInvalid
		}
		if checksum(seed, b[pos:pos+int64(d.length)]) != d.crc {
			return h, errInvalid
		}
		if (d.kind == kindData || d.kind == kindCarry) && (d.base < 0 || d.next <= d.base || d.length == 0) {
			return h, errInvalid
		}
		pos += int64(d.length)
	}
	if pos != int64(len(b)) {
		return h, errInvalid
	}
	if f != nil {
		pos = h.payloadsAt()
		for i := range int64(h.count) {
			d := decodeDescriptor(b[blockHeaderSize+i*descriptorSize:])
			f(d, pos, b[pos:pos+int64(d.length)])
			pos += int64(d.length)
		}
	}
	return h, nil
}

// --- the segment's first and last page ---

func encodeSegmentHeader(at place, size int64, firstSeq uint64, nowMs int64) []byte {
	b := make([]byte, segmentHeaderSize)
	copy(b, magicSegment[:])
	le.PutUint16(b[8:], segmentVersion)
	copy(b[12:], at.uuid[:])
	le.PutUint64(b[28:], at.generation)
	le.PutUint64(b[36:], uint64(size))
	le.PutUint64(b[44:], firstSeq)
	le.PutUint64(b[52:], uint64(nowMs))
	le.PutUint32(b[60:], checksum(at.seed(), b[:60]))
	return b
}

// checkSegmentVersion refuses a segment of a format version that is not known, and says whether blocks may be paged in it.
// Everything else in the header is said again by the blocks, with checksums, so a damaged header alone loses nothing.
func checkSegmentVersion(b []byte, at place) (paged bool, err error) {
	if len(b) < 64 || !bytes.Equal(b[:8], magicSegment[:]) || !bytes.Equal(b[12:28], at.uuid[:]) {
		return false, nil
	}
	switch v := le.Uint16(b[8:]); v {
	case 1:
		return false, nil
	case segmentVersion:
		return true, nil
	default:
		return false, fmt.Errorf("%w: segment of format version %d, this program reads versions 1 to %d", ErrVersion, v, segmentVersion)
	}
}

// tail says where a sealed segment's blocks end and where its footer is.
type tail struct {
	blocksEnd int64
	lastSeq   uint64
	footerAt  int64
	footerLen int64
}

func encodeTail(at place, t tail) []byte {
	b := make([]byte, segmentTailSize)
	copy(b, magicTail[:])
	le.PutUint16(b[8:], formatVersion)
	copy(b[12:], at.uuid[:])
	le.PutUint64(b[28:], at.generation)
	le.PutUint64(b[36:], uint64(t.blocksEnd))
	le.PutUint64(b[44:], t.lastSeq)
	le.PutUint64(b[52:], uint64(t.footerAt))
	le.PutUint64(b[60:], uint64(t.footerLen))
	le.PutUint32(b[68:], checksum(at.seed(), b[:68]))
	return b
}

func decodeTail(b []byte, at place, size int64) (t tail, err error) {
	if len(b) < 72 || !bytes.Equal(b[:8], magicTail[:]) || le.Uint16(b[8:]) != formatVersion || !bytes.Equal(b[12:28], at.uuid[:]) ||
		le.Uint64(b[28:]) != at.generation || checksum(at.seed(), b[:68]) != le.Uint32(b[68:]) {
		return t, errInvalid
	}
	t = tail{blocksEnd: int64(le.Uint64(b[36:])), lastSeq: le.Uint64(b[44:]), footerAt: int64(le.Uint64(b[52:])), footerLen: int64(le.Uint64(b[60:]))}
	limit := size - segmentTailSize
	if t.blocksEnd < segmentHeaderSize || t.blocksEnd > t.footerAt || t.footerAt > limit || t.footerLen < footerHeadSize || t.footerLen > limit-t.footerAt {
		return t, errInvalid
	}
	return t, nil
}

// --- the footer ---

// run is a range of offsets of one partition that lies in one piece of one segment: one DATA record. It is what a
// reader reads at once.
type run struct {
	base, next int64
	maxTS      int64
	pos        uint32 // in the file
	length     uint32
	crc        uint32 // seeded
}

const runBytes = 40 // of a run in memory

// damagedTS as its largest timestamp marks a run whose bytes are not those that were written. Its checksum, made when it was carried, says that
// they are what was found. No batch has it by chance, and of one that has it by intention the log notes the next (Append).
const damagedTS = -0x6a2f_91c4_d3b8_57e3

func (r *run) damaged() bool { return r.maxTS == damagedTS }

func encodeRun(b []byte, r *run) {
	le.PutUint64(b, uint64(r.base))
	le.PutUint64(b[8:], uint64(r.next))
	le.PutUint64(b[16:], uint64(r.maxTS))
	le.PutUint32(b[24:], r.pos)
	le.PutUint32(b[28:], r.length)
	le.PutUint32(b[32:], r.crc)
	le.PutUint32(b[36:], 0)
}

func decodeRun(b []byte) run {
	return run{base: int64(le.Uint64(b)), next: int64(le.Uint64(b[8:])), maxTS: int64(le.Uint64(b[16:])), pos: le.Uint32(b[24:]), length: le.Uint32(b[28:]), crc: le.Uint32(b[32:])}
}

// footerPiece is the directory entry of a piece: a range of one partition in the segment whose runs follow each
// other without a gap.
type footerPiece struct {
	partition  PartitionID
	carried    bool
	base, next int64
	bytes      int64
	maxTS      int64
	runsAt     uint32 // in the footer
	runs       uint32
	crc        uint32 // of the runs as stored, seeded
}

func (e *footerPiece) encode(b []byte) {
	le.PutUint64(b, uint64(e.partition))
	le.PutUint64(b[8:], uint64(e.base))
	le.PutUint64(b[16:], uint64(e.next))
	le.PutUint64(b[24:], uint64(e.bytes))
	le.PutUint64(b[32:], uint64(e.maxTS))
	le.PutUint32(b[40:], e.runsAt)
	le.PutUint32(b[44:], e.runs)
	le.PutUint32(b[48:], e.crc)
	clear(b[52:footerPieceSize])
	if e.carried {
		b[52] = 1
	}
}

// footerHead: magic 8, version 2, 2 zero, uuid 16, generation 8, pieces 4, checksum of head and directory 4, 4 zero.
func encodeFooterHead(b []byte, at place, pieces int) {
	copy(b, magicFooter[:])
	le.PutUint16(b[8:], formatVersion)
	le.PutUint16(b[10:], 0)
	copy(b[12:], at.uuid[:])
	le.PutUint64(b[28:], at.generation)
	le.PutUint32(b[36:], uint32(pieces))
	le.PutUint64(b[40:], 0)
	dir := b[footerHeadSize : footerHeadSize+pieces*footerPieceSize]
	le.PutUint32(b[40:], checksum(checksum(at.seed(), b[:40]), dir))
}

// footerDirectorySize says how long head and directory are, from the head alone.
func footerDirectorySize(head []byte, at place, footerLen int64) (int64, error) {
	if len(head) < footerHeadSize || !bytes.Equal(head[:8], magicFooter[:]) || le.Uint16(head[8:]) != formatVersion ||
		!bytes.Equal(head[12:28], at.uuid[:]) || le.Uint64(head[28:]) != at.generation {
		return 0, errInvalid
	}
	n := footerHeadSize + int64(le.Uint32(head[36:]))*footerPieceSize
	if n > footerLen {
		return 0, errInvalid
	}
	return n, nil
}

func decodeFooterDirectory(b []byte, at place, footerLen int64) ([]footerPiece, error) {
	n, err := footerDirectorySize(b, at, footerLen)
	if err != nil || n > int64(len(b)) {
		return nil, errInvalid
	}
	dir := b[footerHeadSize:n]
	if checksum(checksum(at.seed(), b[:40]), dir) != le.Uint32(b[40:]) {
		return nil, errInvalid
	}
	out := make([]footerPiece, 0, len(dir)/footerPieceSize)
	for ; len(dir) > 0; dir = dir[footerPieceSize:] {
		e := footerPiece{
			partition: PartitionID(le.Uint64(dir)), base: int64(le.Uint64(dir[8:])), next: int64(le.Uint64(dir[16:])),
			bytes: int64(le.Uint64(dir[24:])), maxTS: int64(le.Uint64(dir[32:])),
			runsAt: le.Uint32(dir[40:]), runs: le.Uint32(dir[44:]), crc: le.Uint32(dir[48:]), carried: dir[52] == 1,
		}
		if e.base < 0 || e.next <= e.base || e.runs == 0 || int64(e.runsAt) < n || int64(e.runsAt)+int64(e.runs)*footerRunSize > footerLen {
			return nil, errInvalid
		}
		out = append(out, e)
	}
	return out, nil
}

// decodeRuns reads the runs of one piece, which are in the order of their offsets, without gaps, and cover it.
func decodeRuns(b []byte, e *footerPiece, seed uint32, blocksEnd int64) ([]run, error) {
	if len(b) != int(e.runs)*footerRunSize || checksum(seed, b) != e.crc {
		return nil, errInvalid
	}
	out := make([]run, e.runs)
	for i := range out {
		r := decodeRun(b[i*footerRunSize:])
		if r.next <= r.base || r.length == 0 || r.pos < segmentHeaderSize || int64(r.pos)+int64(r.length) > blocksEnd || (i > 0 && r.base != out[i-1].next) {
			return nil, errInvalid
		}
		out[i] = r
	}
	if out[0].base > e.base || out[len(out)-1].next < e.next {
		return nil, errInvalid
	}
	return out, nil
}

// --- payloads of control records ---

// snapshotRef says where the newest producer snapshot of a partition lies.
type snapshotRef struct {
	offset     int64
	generation uint64
	pos        int64
	length     uint32
	crc        uint32
}

// partitionMap is the control state of a partition at one place in the log.
type partitionMap struct {
	topicID    [16]byte
	index      int32
	start, end int64
	hw         int64
	hole       bool
	snapshot   snapshotRef // length 0: none
	lineage    lineage.Lineage
	inline     []byte // a new partition's producer snapshot, at start: partition and snapshot exist together or not at all
	inlineAt   int    // where it begins in the payload
}

const mapFixed = 16 + 4 + 4 + 3*8 + 8 + 8 + 8 + 4 + 4 + 4

func (m *partitionMap) append(b []byte) []byte {
	b = append(b, m.topicID[:]...)
	b = le.AppendUint32(b, uint32(m.index))
	flags := uint32(0)
	if m.hole {
		flags = 1
	}
	b = le.AppendUint32(b, flags)
	for _, v := range []int64{m.start, m.end, m.hw, m.snapshot.offset, int64(m.snapshot.generation), m.snapshot.pos} {
		b = le.AppendUint64(b, uint64(v))
	}
	b = le.AppendUint32(b, m.snapshot.length)
	b = le.AppendUint32(b, m.snapshot.crc)
	lin := m.lineage.Encode()
	b = le.AppendUint32(b, uint32(len(lin)))
	b = append(b, lin...)
	return append(b, m.inline...)
}

func decodePartitionMap(b []byte) (m partitionMap, err error) {
	if len(b) < mapFixed {
		return m, errInvalid
	}
	copy(m.topicID[:], b)
	m.index = int32(le.Uint32(b[16:]))
	m.hole = le.Uint32(b[20:])&1 != 0
	for i, p := range []*int64{&m.start, &m.end, &m.hw, &m.snapshot.offset} {
		*p = int64(le.Uint64(b[24+8*i:]))
	}
	m.snapshot.generation = le.Uint64(b[56:])
	m.snapshot.pos = int64(le.Uint64(b[64:]))
	m.snapshot.length, m.snapshot.crc = le.Uint32(b[72:]), le.Uint32(b[76:])
	if m.start < 0 || m.end < m.start || m.index < 0 {
		return m, errInvalid
	}
	n := int64(le.Uint32(b[80:]))
	if n > int64(len(b)-mapFixed) {
		return m, errInvalid
	}
	m.inlineAt = mapFixed + int(n)
	if m.lineage, err = lineage.Decode(b[mapFixed:m.inlineAt]); err != nil {
		return m, errInvalid
	}
	m.inline = b[m.inlineAt:]
	return m, nil
}

// checkpointEnd is the payload of a CHECKPOINT record.
type checkpointEnd struct {
	nextID     PartitionID
	partitions uint64
}

func (c checkpointEnd) encode() []byte {
	return le.AppendUint64(le.AppendUint64(nil, uint64(c.nextID)), c.partitions)
}

func decodeCheckpointEnd(b []byte) (c checkpointEnd, err error) {
	if len(b) != 16 {
		return c, errInvalid
	}
	return checkpointEnd{PartitionID(le.Uint64(b)), le.Uint64(b[8:])}, nil
}

// --- the identity file ---

type identity struct {
	uuid      [16]byte
	broker    int32
	ready     bool // the first start came to its end: there have been segments since
	clusterID string
}

const maxClusterID = 1024

func (id identity) encode() []byte {
	b := append([]byte(nil), magicIdentity[:]...)
	b = le.AppendUint16(b, formatVersion)
	b = append(b, id.uuid[:]...)
	b = le.AppendUint32(b, uint32(id.broker))
	ready := byte(0)
	if id.ready {
		ready = 1
	}
	b = append(b, ready)
	b = le.AppendUint32(b, uint32(len(id.clusterID)))
	b = append(b, id.clusterID...)
	return le.AppendUint32(b, crc32c.Checksum(b))
}

func decodeIdentity(b []byte) (id identity, err error) {
	if len(b) < 39 || !bytes.Equal(b[:8], magicIdentity[:]) || crc32c.Checksum(b[:len(b)-4]) != le.Uint32(b[len(b)-4:]) {
		return id, errInvalid
	}
	if v := le.Uint16(b[8:]); v != formatVersion {
		return id, fmt.Errorf("%w: identity file of format version %d, this program reads version %d", ErrVersion, v, formatVersion)
	}
	copy(id.uuid[:], b[10:])
	id.broker = int32(le.Uint32(b[26:]))
	id.ready = b[30] == 1
	n := le.Uint32(b[31:])
	if n > maxClusterID || int(n) != len(b)-39 {
		return id, errInvalid
	}
	id.clusterID = string(b[35 : 35+n])
	return id, nil
}
