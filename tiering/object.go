package tiering

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"sort"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
	"github.com/varve/varve/wal/slab"
)

// An object of version 1, integers big-endian where fixed:
//
//	header     "VARVOBJ" 1
//	sections   record batches verbatim, one section after the other
//	footers    one per section, see Footer
//	directory  one line per section, see Section
//	tail       directory position u64, length u32, CRC32C u32, sections u32,
//	           version u16, zero u16, CRC32C of these u32, "VARVTAIL"
//
// A manifest entry points at its section's footer, so a reader needs neither
// tail nor directory; they are for those who have only the object.
const (
	objectMagic   = "VARVOBJ\x01"
	tailMagic     = "VARVTAIL"
	footerMagic   = "VARVFTR"
	objectVersion = 1
	footerHorizon = 2 // version of a footer that ends with a delete horizon
	headerSize    = len(objectMagic)
	tailSize      = 8 + 4 + 4 + 4 + 2 + 2 + 4 + len(tailMagic)

	// What is read is bounded before memory is taken for it.
	maxFooter    = 64 << 20
	maxDirectory = 16 << 20
	maxBlock     = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Block is a piece of a section, cut at a batch boundary, with a checksum of its
// own: what is checked before a byte of it is served.
type Block struct {
	Base         int64 // offset of its first batch
	Pos          int64 // in the object
	Len          int32 // bytes
	MaxTimestamp int64
	CRC          uint32 // CRC32C
}

// Link leads to the section before.
type Link struct {
	End int64  // its offset after the last; 0: there was none
	CRC uint32 // of its footer
}

// Footer describes a section. With the bytes it describes, it is enough to go on
// from: lineage and producer state are those at the section's end.
type Footer struct {
	TopicID                    [16]byte
	Partition                  int32
	Base, Last                 int64
	Epoch                      int32 // of the leader that uploaded it
	Created                    int64 // ms
	Bytes, Batches, Records    int64
	MinTimestamp, MaxTimestamp int64 // of batches; -1: none has one
	Prev                       Link
	Blocks                     []Block
	Lineage                    lineage.Lineage
	Producers                  []byte             // snapshot at Last+1, see package producer
	Aborted                    []producer.Aborted // whose marker is in the section
	OpenStart, OpenEnd         []producer.OpenTxn // open before the first and after the last batch

	// Of a section that was compacted: about how many bytes go when the time Horizon, in ms, has passed. 0: none.
	Horizon, HorizonBytes int64
}

// size is about what the footer takes in memory, and encoded.
func (f *Footer) size() int64 {
	return int64(256 + 32*(len(f.Blocks)+len(f.Aborted)+len(f.OpenStart)+len(f.OpenEnd)) + len(f.Producers) + 16*len(f.Lineage))
}

// Encode returns the footer as stored. Its checksum stands with whoever names it.
func (f *Footer) Encode() []byte {
	b := append(make([]byte, 0, 256+24*len(f.Blocks)+len(f.Producers)), footerMagic...)
	if f.HorizonBytes > 0 {
		b = append(b, footerHorizon)
	} else {
		b = append(b, objectVersion)
	}
	b = append(b, f.TopicID[:]...)
	for _, v := range []int64{int64(f.Partition), f.Base, f.Last - f.Base, int64(f.Epoch)} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendVarint(b, f.Created)
	for _, v := range []int64{f.Bytes, f.Batches, f.Records} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendVarint(b, f.MinTimestamp)
	b = binary.AppendVarint(b, f.MaxTimestamp)
	b = binary.AppendUvarint(b, uint64(f.Prev.End))
	b = binary.BigEndian.AppendUint32(b, f.Prev.CRC)

	b = binary.AppendUvarint(b, uint64(len(f.Blocks)))
	base, pos, ts := f.Base, int64(0), int64(0)
	for _, k := range f.Blocks {
		b = binary.AppendUvarint(b, uint64(k.Base-base))
		b = binary.AppendUvarint(b, uint64(k.Pos-pos))
		b = binary.AppendUvarint(b, uint64(k.Len))
		b = binary.AppendVarint(b, k.MaxTimestamp-ts)
		b = binary.BigEndian.AppendUint32(b, k.CRC)
		base, pos, ts = k.Base, k.Pos+int64(k.Len), k.MaxTimestamp
	}
	for _, p := range [][]byte{f.Lineage.Encode(), f.Producers} {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	b = binary.AppendUvarint(b, uint64(len(f.Aborted)))
	for _, a := range f.Aborted {
		for _, v := range []int64{a.ProducerID, a.FirstOffset, a.LastOffset, a.LastStableOffset} {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	for _, open := range [][]producer.OpenTxn{f.OpenStart, f.OpenEnd} {
		b = binary.AppendUvarint(b, uint64(len(open)))
		for _, o := range open {
			b = binary.AppendUvarint(b, uint64(o.ProducerID))
			b = binary.AppendUvarint(b, uint64(o.FirstOffset))
		}
	}
	if f.HorizonBytes > 0 {
		b = binary.AppendVarint(b, f.Horizon)
		b = binary.AppendUvarint(b, uint64(f.HorizonBytes))
	}
	return b
}

// DecodeFooter reads what Encode wrote. Anything else is ErrCorrupt; no more
// memory is taken than a small multiple of len(b).
func DecodeFooter(b []byte) (*Footer, error) {
	if len(b) < len(footerMagic)+1 || string(b[:len(footerMagic)]) != footerMagic {
		return nil, fmt.Errorf("%w: no footer", ErrCorrupt)
	}
	v := b[len(footerMagic)]
	if v != objectVersion && v != footerHorizon {
		return nil, fmt.Errorf("%w: footer of version %d, known %d", ErrCorrupt, v, footerHorizon)
	}
	d := &decoder{b: b[len(footerMagic)+1:]}
	f := &Footer{TopicID: [16]byte(d.bytes(16)), Partition: d.int32()}
	f.Base = d.uint()
	f.Last = d.add(f.Base, d.uint())
	f.Epoch = d.int32()
	f.Created = d.int()
	f.Bytes, f.Batches, f.Records = d.uint(), d.uint(), d.uint()
	f.MinTimestamp, f.MaxTimestamp = d.int(), d.int()
	f.Prev.End = d.uint()
	f.Prev.CRC = d.fixed32()

	base, pos, ts, total := f.Base, int64(0), int64(0), int64(0)
	n := d.count(8)
	f.Blocks = make([]Block, 0, n)
	for i := range n {
		k := Block{Base: d.add(base, d.uint()), Pos: d.add(pos, d.uint()), Len: d.int32(), MaxTimestamp: d.timestamp(ts), CRC: d.fixed32()}
		if d.err == nil && (k.Len < batch.MinSize || k.Len > maxBlock || k.Base > f.Last || k.Pos < int64(headerSize) ||
			i == 0 && k.Base != f.Base || i > 0 && (k.Base == base || k.Pos != pos)) {
			d.fail(fmt.Sprintf("block %d: %+v", i, k))
		}
		if d.err != nil {
			break
		}
		f.Blocks = append(f.Blocks, k)
		base, pos, ts = k.Base, d.add(k.Pos, int64(k.Len)), k.MaxTimestamp
		total += int64(k.Len)
	}
	lin := d.bytes(d.count(1))
	f.Producers = d.bytes(d.count(1))
	n = d.count(4)
	for range n {
		f.Aborted = append(f.Aborted, producer.Aborted{ProducerID: d.uint(), FirstOffset: d.uint(), LastOffset: d.uint(), LastStableOffset: d.uint()})
	}
	for _, open := range []*[]producer.OpenTxn{&f.OpenStart, &f.OpenEnd} {
		n = d.count(2)
		for range n {
			*open = append(*open, producer.OpenTxn{ProducerID: d.uint(), FirstOffset: d.uint()})
		}
	}
	if v == footerHorizon {
		if f.Horizon, f.HorizonBytes = d.int(), d.uint(); f.HorizonBytes == 0 {
			d.fail("a delete horizon of nothing")
		}
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes behind the end")
	}
	if d.err != nil {
		return nil, fmt.Errorf("footer: %w", d.err)
	}
	if f.Last == math.MaxInt64 || len(f.Blocks) == 0 || total != f.Bytes {
		return nil, fmt.Errorf("footer: %w: %d blocks of %d bytes for %d", ErrCorrupt, len(f.Blocks), total, f.Bytes)
	}
	var err error
	if f.Lineage, err = lineage.Decode(lin); err != nil {
		return nil, fmt.Errorf("footer: %w: %w", ErrCorrupt, err)
	}
	return f, nil
}

// decoder reads until the first error, which it keeps.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) uint() int64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > math.MaxInt64 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return int64(v)
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int32() int32 {
	v := d.uint()
	if v > math.MaxInt32 {
		d.fail("number out of range")
		return 0
	}
	return int32(v)
}

func (d *decoder) fixed32() uint32 { return binary.BigEndian.Uint32(d.bytes(4)) }

// add sums two numbers that are not negative.
func (d *decoder) add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		d.fail("number out of range")
		return a
	}
	return a + b
}

// timestamp adds a delta to a timestamp, modulo 2^64: from -1 to 2^63-1, which
// clients may send, is more than an int64 holds.
func (d *decoder) timestamp(prev int64) int64 {
	v := prev + d.int()
	if v < -1 {
		d.fail("number out of range")
		return -1
	}
	return v
}

func (d *decoder) bytes(n int) []byte {
	if len(d.b) < n {
		d.fail("too short")
		return make([]byte, min(n, 16))
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

// count reads the length of a list whose elements take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.uint()
	if n > int64(len(d.b)/size) {
		d.fail("list longer than its bytes")
		return 0
	}
	return int(n)
}

// Section is a line of an object's directory.
type Section struct {
	TopicID    [16]byte
	Partition  int32
	Base, Last int64
	Epoch      int32
	FooterPos  int64
	FooterLen  int32
	FooterCRC  uint32
}

const minSection = 16 + 1 + 1 + 1 + 1 + 1 + 1 + 4

func encodeDirectory(list []Section) []byte {
	var b []byte
	for _, s := range list {
		b = append(b, s.TopicID[:]...)
		for _, v := range []int64{int64(s.Partition), s.Base, s.Last - s.Base, int64(s.Epoch), s.FooterPos, int64(s.FooterLen)} {
			b = binary.AppendUvarint(b, uint64(v))
		}
		b = binary.BigEndian.AppendUint32(b, s.FooterCRC)
	}
	return b
}

func encodeTail(pos int64, dir []byte, sections int) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, tailSize), uint64(pos))
	b = binary.BigEndian.AppendUint32(b, uint32(len(dir)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(dir, castagnoli))
	b = binary.BigEndian.AppendUint32(b, uint32(sections))
	b = binary.BigEndian.AppendUint16(b, objectVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return append(b, tailMagic...)
}

// decodeTail returns where the directory is, in an object of size bytes.
func decodeTail(b []byte, size int64) (pos int64, length int, crc uint32, sections int, err error) {
	if len(b) != tailSize || string(b[tailSize-len(tailMagic):]) != tailMagic {
		return 0, 0, 0, 0, fmt.Errorf("%w: no tail", ErrCorrupt)
	}
	body := b[:tailSize-len(tailMagic)-4]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return 0, 0, 0, 0, fmt.Errorf("%w: tail checksum", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(b[20:]); v != objectVersion {
		return 0, 0, 0, 0, fmt.Errorf("%w: object of version %d, known %d", ErrCorrupt, v, objectVersion)
	}
	upos, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
	count := binary.BigEndian.Uint32(b[16:])
	if n > maxDirectory || upos < uint64(headerSize) || upos > uint64(size) || upos+uint64(n)+uint64(tailSize) != uint64(size) || count > n/minSection {
		return 0, 0, 0, 0, fmt.Errorf("%w: directory of %d bytes and %d sections at %d in an object of %d", ErrCorrupt, n, count, upos, size)
	}
	return int64(upos), int(n), binary.BigEndian.Uint32(b[12:]), int(count), nil
}

func decodeDirectory(b []byte, sections int, end int64) ([]Section, error) {
	d := &decoder{b: b}
	var list []Section
	for range sections {
		s := Section{TopicID: [16]byte(d.bytes(16)), Partition: d.int32(), Base: d.uint()}
		s.Last = d.add(s.Base, d.uint())
		s.Epoch, s.FooterPos, s.FooterLen, s.FooterCRC = d.int32(), d.uint(), d.int32(), d.fixed32()
		if d.err == nil && (s.FooterLen > maxFooter || s.FooterPos < int64(headerSize) || s.FooterPos > end-int64(s.FooterLen)) {
			d.fail(fmt.Sprintf("section %+v", s))
		}
		if d.err != nil {
			return nil, fmt.Errorf("directory: %w", d.err)
		}
		list = append(list, s)
	}
	if len(d.b) > 0 {
		return nil, fmt.Errorf("directory: %w: bytes behind the end", ErrCorrupt)
	}
	return list, nil
}

// ReadDirectory reads what sections an object holds, from the object alone.
func ReadDirectory(ctx context.Context, b objstore.Bucket, key string) ([]Section, error) {
	size, err := b.Head(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", key, err)
	}
	if size < int64(headerSize+tailSize) {
		return nil, fmt.Errorf("%s: %w: %d bytes", key, ErrCorrupt, size)
	}
	tail, err := objstore.ReadRange(ctx, b, key, size-int64(tailSize), int64(tailSize))
	if err != nil {
		return nil, fmt.Errorf("tail of %s: %w", key, err)
	}
	pos, n, crc, sections, err := decodeTail(tail, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	dir, err := objstore.ReadRange(ctx, b, key, pos, int64(n))
	if err != nil {
		return nil, fmt.Errorf("directory of %s: %w", key, err)
	}
	if crc32.Checksum(dir, castagnoli) != crc {
		return nil, fmt.Errorf("%s: %w: directory checksum", key, ErrCorrupt)
	}
	list, err := decodeDirectory(dir, sections, pos)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return list, nil
}

// ReadFooter reads one section's footer and checks that it is the one named.
func ReadFooter(ctx context.Context, b objstore.Bucket, key string, s Section) (*Footer, error) {
	if s.FooterLen <= 0 || s.FooterLen > maxFooter {
		return nil, fmt.Errorf("footer of %s: %w: %d bytes", key, ErrCorrupt, s.FooterLen)
	}
	raw, err := objstore.ReadRange(ctx, b, key, s.FooterPos, int64(s.FooterLen))
	if err != nil {
		return nil, fmt.Errorf("footer of %s: %w", key, err)
	}
	if got := crc32.Checksum(raw, castagnoli); got != s.FooterCRC {
		return nil, fmt.Errorf("footer of %s: %w: checksum %08x, named %08x", key, ErrCorrupt, got, s.FooterCRC)
	}
	f, err := DecodeFooter(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	last := f.Blocks[len(f.Blocks)-1]
	if f.TopicID != s.TopicID || f.Partition != s.Partition || f.Base != s.Base || f.Last != s.Last || last.Pos+int64(last.Len) > s.FooterPos {
		return nil, fmt.Errorf("footer of %s: %w: is of %x-%d %d-%d", key, ErrCorrupt, f.TopicID, f.Partition, f.Base, f.Last)
	}
	return f, nil
}

func section(key partitionKey, e manifest.Entry) Section {
	return Section{TopicID: key.topic, Partition: key.index, Base: e.Base, Last: e.Last, Epoch: e.Epoch,
		FooterPos: e.FooterPos, FooterLen: e.FooterLen, FooterCRC: e.FooterCRC}
}

// checkBlock compares the bytes of a block with its checksum.
func checkBlock(key string, k Block, b []byte) error {
	if got := crc32.Checksum(b, castagnoli); got != k.CRC {
		return fmt.Errorf("block at %d of %s: %w: checksum %08x, footer %08x", k.Pos, key, ErrCorrupt, got, k.CRC)
	}
	return nil
}

// body is an object on its way: what was appended, in pooled buffers that double
// in size, so that a small object does not take a large buffer.
type body struct {
	bufs   []*slab.Buf
	starts []int64 // position of each buffer in the body
	room   []byte
	size   int64
	crc    uint32
	spool  *spool // instead of buffers
}

// spool is a body on local disk: a file without a name, so that a crash leaves nothing.
type spool struct {
	file *os.File
	w    *bufio.Writer
	err  error // the first of a write
}

// newSpool makes the file in a directory that is there.
func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, "object-*")
	if err != nil {
		return nil, fmt.Errorf("spool file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("spool file: %w", err)
	}
	return &spool{file: f, w: bufio.NewWriterSize(f, spoolBuf)}, nil
}

// flush makes what was written readable.
func (s *spool) flush() error {
	if s.err == nil {
		s.err = s.w.Flush()
	}
	if s.err != nil {
		return fmt.Errorf("spool file: %w", s.err)
	}
	return nil
}

const (
	minBodyBuf = 4 << 10
	maxBodyBuf = 1 << 20
	spoolBuf   = 128 << 10
)

// Write appends; it never fails. What a spool could not take is told when it is flushed.
func (b *body) Write(p []byte) (int, error) {
	b.add(p, crc32.Update(b.crc, castagnoli, p))
	return len(p), nil
}

// add is Write for whoever knows what the checksum is then.
func (b *body) add(p []byte, crc uint32) {
	b.crc = crc
	if b.spool != nil {
		if b.spool.err == nil {
			_, b.spool.err = b.spool.w.Write(p)
		}
		b.size += int64(len(p))
		return
	}
	for rest := p; len(rest) > 0; {
		if len(b.room) == 0 {
			buf := slab.Get(int(min(max(b.size, minBodyBuf), maxBodyBuf)))
			b.bufs, b.starts, b.room = append(b.bufs, buf), append(b.starts, b.size), buf.Bytes()
		}
		n := copy(b.room, rest)
		b.room, rest = b.room[n:], rest[n:]
		b.size += int64(n)
	}
}

// release gives the memory back; the body is empty afterwards.
func (b *body) release() {
	for _, buf := range b.bufs {
		buf.Release()
	}
	if b.spool != nil {
		b.spool.file.Close()
	}
	*b = body{}
}

// ReadAt implements io.ReaderAt: stores upload parts concurrently.
func (b *body) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if b.spool != nil {
		return b.spool.file.ReadAt(p, off)
	}
	for n < len(p) && off < b.size {
		i := sort.Search(len(b.starts), func(i int) bool { return b.starts[i] > off }) - 1
		end := b.size - b.starts[i]
		buf := b.bufs[i].Bytes()
		m := copy(p[n:], buf[off-b.starts[i]:min(int64(len(buf)), end)])
		n, off = n+m, off+int64(m)
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// reader is a fresh reader of the whole body.
func (b *body) reader() *io.SectionReader { return io.NewSectionReader(b, 0, b.size) }

// fold is what a partition's sections hand on from one to the next: producer
// state and lineage at an offset.
type fold struct {
	state *producer.State
	lin   lineage.Lineage
	at    int64
}

// builder makes an object of one or more sections.
type builder struct {
	body     body
	block    int // bytes
	sections []*sectionBuilder
}

func newBuilder(blockBytes int) *builder {
	b := &builder{block: blockBytes}
	b.body.Write([]byte(objectMagic))
	return b
}

// sectionBuilder takes the batches of one partition.
type sectionBuilder struct {
	b      *builder
	f      Footer
	fold   fold
	next   int64
	cur    Block
	footer struct {
		pos int64
		len int32
		crc uint32
	}
}

// section begins a section. f has its identity filled in; fo is taken over.
func (b *builder) section(f Footer, fo fold) *sectionBuilder {
	s := &sectionBuilder{b: b, f: f, fold: fo, next: f.Base}
	s.f.MinTimestamp, s.f.MaxTimestamp = -1, -1
	s.f.OpenStart = fo.state.Open()
	fo.state.TrimAborted(f.Base)
	b.sections = append(b.sections, s)
	return s
}

// add appends the batch, which begins where the last one ended.
func (s *sectionBuilder) add(h batch.Header, raw []byte) error {
	if h.BaseOffset != s.next {
		return fmt.Errorf("batch at %d where %d should follow", h.BaseOffset, s.next)
	}
	if err := s.take(h, raw); err != nil {
		return err
	}
	if h.ProducerID >= 0 {
		s.fold.state.Apply(h, raw)
	}
	return nil
}

// take appends a batch that may begin behind where the last one ended.
func (s *sectionBuilder) take(h batch.Header, raw []byte) error {
	// What was acknowledged is checked once more before its copy becomes the only
	// one.
	if err := batch.VerifyCRC(raw); err != nil {
		return fmt.Errorf("batch at %d: %w", h.BaseOffset, err)
	}
	if s.cur.Len > 0 && int(s.cur.Len)+len(raw) > s.b.block {
		s.cut()
	}
	if s.cur.Len == 0 {
		s.cur = Block{Base: h.BaseOffset, Pos: s.b.body.size, MaxTimestamp: -1}
		if len(s.f.Blocks) == 0 {
			s.cur.Base = s.f.Base // what came before it is gone
		}
	}
	// Its checksum holds: those of block and object follow from it.
	sum, shift := batch.Sum(raw), crc32c.ShiftOf(len(raw))
	s.b.body.add(raw, crc32c.Then(s.b.body.crc, sum, shift))
	s.cur.Len += int32(len(raw))
	s.cur.CRC = crc32c.Then(s.cur.CRC, sum, shift)
	s.cur.MaxTimestamp = max(s.cur.MaxTimestamp, h.MaxTimestamp)

	f := &s.f
	f.Bytes += int64(len(raw))
	f.Batches++
	f.Records += int64(h.RecordCount)
	f.MaxTimestamp = max(f.MaxTimestamp, h.MaxTimestamp)
	if first := min(h.BaseTimestamp, h.MaxTimestamp); first >= 0 && (f.MinTimestamp < 0 || first < f.MinTimestamp) {
		f.MinTimestamp = first
	}
	s.next = h.NextOffset()
	return nil
}

func (s *sectionBuilder) cut() {
	if s.cur.Len > 0 {
		s.f.Blocks = append(s.f.Blocks, s.cur)
	}
	s.cur = Block{}
}

// end closes the section; lin is the lineage of the local log, start the log start.
//
// The local log may know only the epochs since its own start: older ones come from
// the section before. An epoch that begins where the section ends has no record
// yet, but it has begun, and who starts from this footer must know.
func (s *sectionBuilder) end(lin lineage.Lineage, start int64) {
	s.cut()
	f, st := &s.f, s.fold.state
	f.Last = s.next - 1
	s.fold.at = s.next
	for _, a := range st.Aborted(0, s.next) {
		if a.LastOffset >= f.Base && a.LastOffset < s.next {
			f.Aborted = append(f.Aborted, a)
		}
	}
	f.OpenEnd = st.Open()
	st.Commit(s.next)
	st.TrimAborted(s.next)
	f.Producers = st.Encode(s.next)
	f.Lineage = join(s.fold.lin, lin).Range(min(start, f.Base), s.next+1)
	s.fold.lin = f.Lineage
}

// join completes a lineage with what an older one knows of the time before it.
func join(old, lin lineage.Lineage) lineage.Lineage {
	if len(lin) == 0 {
		return old
	}
	out := old.TruncateEnd(lin[0].Start)
	for _, e := range lin {
		out = out.Assign(e.Epoch, e.Start)
	}
	return out
}

// finish writes footers, directory and tail.
func (b *builder) finish() error {
	dir := make([]Section, 0, len(b.sections))
	for _, s := range b.sections {
		raw := s.f.Encode()
		if len(raw) > maxFooter {
			return fmt.Errorf("footer of %d bytes, at most %d", len(raw), maxFooter)
		}
		s.footer.pos, s.footer.len, s.footer.crc = b.body.size, int32(len(raw)), crc32.Checksum(raw, castagnoli)
		b.body.Write(raw)
		dir = append(dir, Section{s.f.TopicID, s.f.Partition, s.f.Base, s.f.Last, s.f.Epoch, s.footer.pos, s.footer.len, s.footer.crc})
	}
	pos, raw := b.body.size, encodeDirectory(dir)
	if len(raw) > maxDirectory {
		return fmt.Errorf("directory of %d bytes, at most %d", len(raw), maxDirectory)
	}
	b.body.Write(raw)
	b.body.Write(encodeTail(pos, raw, len(dir)))
	if b.body.spool != nil {
		return b.body.spool.flush()
	}
	return nil
}

// entry is the section's line in the manifest.
func (s *sectionBuilder) entry(kind manifest.Kind, suffix manifest.Suffix) manifest.Entry {
	return manifest.Entry{Base: s.f.Base, Last: s.f.Last, Epoch: s.f.Epoch, Kind: kind, Suffix: suffix, Bytes: s.f.Bytes,
		FooterPos: s.footer.pos, FooterLen: s.footer.len, FooterCRC: s.footer.crc, MaxTimestamp: max(s.f.MaxTimestamp, -1), Created: s.f.Created}
}
