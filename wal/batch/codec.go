package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec is how a records section is compressed.
type Codec int8

// The codecs, by their number in a batch's attributes.
const (
	None Codec = iota
	Gzip
	Snappy
	LZ4
	Zstd
)

var codecNames = [...]string{"none", "gzip", "snappy", "lz4", "zstd"}

// String returns the name that Kafka's tools print.
func (c Codec) String() string {
	if c.Valid() {
		return codecNames[c]
	}
	return fmt.Sprintf("codec(%d)", int8(c))
}

// Valid reports whether c is one of the five codecs.
func (c Codec) Valid() bool { return c >= None && c <= Zstd }

// ParseCodec returns the codec of a compression.type, for which "uncompressed" is a name of None; "producer"
// is none of them.
func ParseCodec(name string) (Codec, bool) {
	if name == "uncompressed" {
		return None, true
	}
	for i, n := range codecNames {
		if n == name {
			return Codec(i), true
		}
	}
	return None, false
}

// DefaultLevel asks for the level that Kafka uses when none is configured.
const DefaultLevel = -1 << 31

// freeList keeps a few idle values for the next caller. A buffered channel is chosen over sync.Pool because
// it has a bound that a garbage collection does not reset: a zstd decoder holds its window, and what is idle here
// must be countable. More callers at once than the list is long allocate their own and drop them afterwards.
type freeList[T any] chan T

func (f freeList[T]) get() (v T, ok bool) {
	select {
	case v = <-f:
		return v, true
	default:
		return v, false
	}
}

func (f freeList[T]) put(v T) {
	select {
	case f <- v:
	default:
	}
}

// Apart runs f, which makes a codec that is kept for others. Codecs of zstd have channels, and in a test of fake time
// (testing/synctest) a channel that was made in it cannot be used in the next one, which is handed the codec: such tests
// have f run by a goroutine that belongs to none of them.
var Apart = func(f func()) { f() }

const (
	idle = 8

	// streamWindow is the largest zstd window that is decoded as a stream, for the decoder allocates the window
	// a frame asks for. Encoders that know the size of their input, and levels up to 15, ask for no more;
	// frames that do are decoded in one piece into a buffer that grows with what is really there.
	streamWindow = 4 << 20
)

var (
	windows     = make(freeList[[]byte], 2*idle)
	gzipReaders = make(freeList[*gzipReader], idle)
	lz4Readers  = make(freeList[*lz4Reader], idle)
	zstdReaders = make(freeList[*zstdReader], idle)
	snapReaders = make(freeList[*snappyReader], idle)
	zstdBlocks  = make(freeList[*zstd.Decoder], 2)
)

const windowSize = 64 << 10

func getWindow() []byte {
	if b, ok := windows.get(); ok {
		return b
	}
	return make([]byte, windowSize)
}

// inflater is a stream of a section's inflated bytes. Its Read returns io.EOF only when the compressed stream
// is complete and nothing follows it. close gives its buffers back; it is called once and nothing after it.
type inflater interface {
	io.Reader
	close()
}

// inflate opens the records section of a batch. It allocates by what the section holds, not by what it says it
// holds; the caller counts what it reads and stops at its limit, given here only to those decoders that cannot
// work piece by piece.
func inflate(c Codec, section []byte, limit int) (inflater, error) {
	switch c {
	case Gzip:
		return openGzip(section)
	case Snappy:
		return openSnappy(section, limit), nil
	case LZ4:
		return openLZ4(section)
	case Zstd:
		return openZstd(section, limit)
	default:
		return nil, fmt.Errorf("%w: %v", ErrCodec, c)
	}
}

func codecError(c Codec, err error) error {
	if errors.Is(err, ErrInflated) || errors.Is(err, ErrCodec) || errors.Is(err, ErrTrailing) {
		return err
	}
	return fmt.Errorf("%w: %v: %v", ErrCodec, c, err)
}

type gzipReader struct {
	src bytes.Reader
	z   gzip.Reader
}

func openGzip(section []byte) (inflater, error) {
	r, ok := gzipReaders.get()
	if !ok {
		r = new(gzipReader)
	}
	r.src.Reset(section)
	if err := r.z.Reset(&r.src); err != nil {
		r.close()
		return nil, codecError(Gzip, err)
	}
	return r, nil
}

func (r *gzipReader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	if err != nil && err != io.EOF {
		err = codecError(Gzip, err)
	}
	return n, err
}

func (r *gzipReader) close() {
	r.src.Reset(nil)
	gzipReaders.put(r)
}

type lz4Reader struct {
	src bytes.Reader
	z   *lz4.Reader
}

const lz4Magic = 0x184D2204

func openLZ4(section []byte) (inflater, error) {
	// The library also reads the frames of the format's first years, with their blocks of 8 MiB, and skips
	// frames of foreign data. Neither is in Kafka's format.
	if len(section) < 4 || binary.LittleEndian.Uint32(section) != lz4Magic {
		return nil, fmt.Errorf("%w: lz4: no frame", ErrCodec)
	}
	r, ok := lz4Readers.get()
	if !ok {
		r = &lz4Reader{z: lz4.NewReader(nil)}
	}
	r.src.Reset(section)
	r.z.Reset(&r.src)
	return r, nil
}

func (r *lz4Reader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	if err == io.EOF && r.src.Len() > 0 {
		err = fmt.Errorf("%w: %d bytes after the lz4 frame", ErrTrailing, r.src.Len())
	} else if err != nil && err != io.EOF {
		err = codecError(LZ4, err)
	}
	return n, err
}

func (r *lz4Reader) close() {
	r.src.Reset(nil)
	r.z.Reset(&r.src)
	lz4Readers.put(r)
}

type zstdReader struct {
	src bytes.Reader
	z   *zstd.Decoder
}

func openZstd(section []byte, limit int) (inflater, error) {
	window, err := zstdWindow(section)
	if err != nil {
		return nil, codecError(Zstd, err)
	}
	if window > streamWindow {
		return openZstdWhole(section, limit)
	}
	r, ok := zstdReaders.get()
	if !ok {
		var z *zstd.Decoder
		var err error
		Apart(func() {
			z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(streamWindow), zstd.WithDecodeBuffersBelow(0))
		})
		if err != nil {
			panic(err) // constant options
		}
		r = &zstdReader{z: z}
	}
	r.src.Reset(section)
	if err := r.z.Reset(&r.src); err != nil {
		r.close()
		return nil, codecError(Zstd, err)
	}
	return r, nil
}

// zstdWindow is what the first frame of a section asks for.
func zstdWindow(section []byte) (uint64, error) {
	var h zstd.Header
	if err := h.Decode(section); err != nil {
		return 0, err
	}
	if h.SingleSegment {
		return h.FrameContentSize, nil
	}
	return h.WindowSize, nil
}

func (r *zstdReader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	if err != nil && err != io.EOF {
		err = codecError(Zstd, err)
	}
	return n, err
}

func (r *zstdReader) close() {
	r.src.Reset(nil)
	if r.z.Reset(&r.src) == nil {
		zstdReaders.put(r)
	}
}

// openZstdWhole decodes a frame that asks for a large window (level 16 and above, of an encoder that did not
// know the size of its input, asks for up to 128 MiB even for ten bytes). What is decoded is its own window.
func openZstdWhole(section []byte, limit int) (inflater, error) {
	z, ok := zstdBlocks.get()
	if !ok {
		var err error
		Apart(func() {
			z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecodeAllCapLimit(true))
		})
		if err != nil {
			panic(err) // constant options
		}
	}
	defer zstdBlocks.put(z)
	bound, err := zstdBound(section)
	if err != nil {
		return nil, codecError(Zstd, err)
	}
	// The buffer grows from what is plausible to what the blocks can hold, fourfold; decoding afresh each time costs at
	// most a third of the last round again. Whether it is too small shows in no error of its own: a block that runs out of it in
	// the midst of a copy looks like one that is larger than blocks may be.
	most := int(min(bound, int64(limit)))
	for size := min(max(windowSize, 4*len(section)), most); ; size = min(4*size, most) {
		out, err := z.DecodeAll(section, make([]byte, 0, size))
		switch {
		case err == nil:
			return &sliceInflater{*bytes.NewReader(out)}, nil
		case size < most:
		case bound > int64(limit):
			return nil, fmt.Errorf("%w: zstd: more than %d bytes", ErrInflated, limit)
		default:
			return nil, codecError(Zstd, err)
		}
	}
}

// maxZstdBlock is what a block of a zstd frame inflates to at most (RFC 8878, 3.1.1.2.4).
const maxZstdBlock = 128 << 10

// zstdBound is what the frames of a section can inflate to at most, by the number and kind of their blocks.
func zstdBound(section []byte) (n int64, err error) {
	for len(section) > 0 {
		var h zstd.Header
		if err := h.Decode(section); err != nil {
			return 0, err
		}
		section = section[min(h.HeaderSize, len(section)):]
		if h.Skippable {
			if uint64(h.SkippableSize) > uint64(len(section)) {
				return 0, io.ErrUnexpectedEOF
			}
			section = section[h.SkippableSize:]
			continue
		}
		for last := false; !last; {
			if len(section) < 3 {
				return 0, io.ErrUnexpectedEOF
			}
			head := uint32(section[0]) | uint32(section[1])<<8 | uint32(section[2])<<16
			size := int(head >> 3)
			stored := size
			last = head&1 == 1
			switch head >> 1 & 3 {
			case 0:
				n += int64(size)
			case 1: // one byte, repeated
				n, stored = n+int64(size), 1
			default:
				n += maxZstdBlock
			}
			if section = section[3:]; stored > len(section) {
				return 0, io.ErrUnexpectedEOF
			}
			section = section[stored:]
		}
		if h.HasCheckSum {
			if len(section) < 4 {
				return 0, io.ErrUnexpectedEOF
			}
			section = section[4:]
		}
	}
	return n, nil
}

// pieceSize is what opening a batch may hold at one time without a question.
const pieceSize = 1 << 20

// Whole tells how much batch b can inflate to, if that has to be in memory at one time: the content of a zstd frame
// whose window is too large to be read as a stream, a large snappy block. 0: it is read piece by piece, or it is small,
// or is not opened at all. Whoever opens batches that others made bounds what all that he opens at one time hold, and
// gives what he has for this one as maxInflated.
func Whole(b []byte) int64 { return atOnce(b, wholeZstd) }

// atOnce tells how much of batch b has to be in memory at one time to open it, where zstd tells it of a section of that codec;
// 0: no more than pieceSize.
func atOnce(b []byte, zstd func(section []byte) int64) (n int64) {
	h, err := ParseHeader(b)
	if err != nil {
		return 0
	}
	switch section := b[HeaderSize:h.Size()]; h.Codec() {
	case Snappy:
		n = wholeSnappy(section)
	case Zstd:
		n = zstd(section)
	}
	if n <= pieceSize {
		return 0
	}
	return n
}

func wholeZstd(section []byte) int64 {
	window, err := zstdWindow(section)
	if err != nil || window <= streamWindow {
		return 0
	}
	n, err := zstdBound(section)
	if err != nil {
		return 0 // refused
	}
	return n
}

func wholeSnappy(section []byte) int64 {
	declared := func(block []byte) int64 {
		n, err := snappy.DecodedLen(block)
		if err != nil || n > snappyRatio*len(block) {
			return 0 // refused
		}
		return int64(n)
	}
	if !bytes.HasPrefix(section, xerialMagic) {
		return declared(section)
	}
	all, most := int64(0), int64(0)
	for {
		for bytes.HasPrefix(section, xerialMagic) && len(section) >= xerialHeader {
			section = section[xerialHeader:]
		}
		if len(section) < 4 {
			break
		}
		n := uint64(binary.BigEndian.Uint32(section))
		if n > uint64(len(section)-4) {
			break
		}
		d := declared(section[4 : 4+n])
		all, most = all+d, max(most, d)
		section = section[4+n:]
	}
	if most <= pieceSize {
		return 0
	}
	return all
}

type sliceInflater struct{ bytes.Reader }

func (*sliceInflater) close() {}

// Snappy comes in two shapes. librdkafka and franz-go send one raw block. The Java client sends what its library's
// output stream writes: a header of 16 bytes, then chunks, each a big-endian length and a raw block of up to
// 32 KiB. Which of the two it is shows in the first eight bytes: as a raw block they would declare a
// content of 10,626 bytes that begins with an impossible copy.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const (
	xerialHeader = 16
	xerialChunk  = 32 << 10

	// snappyRatio bounds what a snappy block can inflate to: the densest element is a copy of 64 bytes in three.
	// A block that declares more is refused before a byte is allocated for it.
	snappyRatio = 22
)

type snappyReader struct {
	in     []byte // what is left of the section
	out    []byte // what is left of the current block
	buf    []byte // backs out
	limit  int    // of a block: what the whole section may inflate to
	framed bool
	done   bool
}

func openSnappy(section []byte, limit int) inflater {
	r, ok := snapReaders.get()
	if !ok {
		r = new(snappyReader)
	}
	r.in, r.out, r.limit, r.done = section, nil, limit, false
	r.framed = bytes.HasPrefix(section, xerialMagic)
	return r
}

func (r *snappyReader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

func (r *snappyReader) next() error {
	block := r.in
	if r.framed {
		// Concatenated streams repeat the header.
		for bytes.HasPrefix(r.in, xerialMagic) {
			if len(r.in) < xerialHeader {
				return fmt.Errorf("%w: snappy: header cut short", ErrCodec)
			}
			r.in = r.in[xerialHeader:]
		}
		if len(r.in) == 0 {
			return io.EOF
		}
		if len(r.in) < 4 {
			return fmt.Errorf("%w: snappy: chunk length cut short", ErrCodec)
		}
		n := binary.BigEndian.Uint32(r.in)
		if uint64(n) > uint64(len(r.in)-4) {
			return fmt.Errorf("%w: snappy: chunk of %d bytes with %d left", ErrCodec, n, len(r.in)-4)
		}
		block = r.in[4 : 4+n]
		r.in = r.in[4+n:]
	} else {
		if r.done {
			return io.EOF
		}
		r.done = true
	}
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return codecError(Snappy, err)
	}
	if n > snappyRatio*len(block) {
		return fmt.Errorf("%w: snappy: %d bytes declared by a block of %d", ErrCodec, n, len(block))
	}
	if n > r.limit {
		return fmt.Errorf("%w: snappy: a block of more than %d bytes", ErrInflated, r.limit)
	}
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	// The library's other decoder also takes an extension of the format that no other implementation reads.
	r.out, err = snappy.DecodeStrict(r.buf[:cap(r.buf)], block)
	if err != nil {
		return codecError(Snappy, err)
	}
	return nil
}

func (r *snappyReader) close() {
	r.in, r.out = nil, nil
	if cap(r.buf) > 1<<20 {
		r.buf = nil // an unframed block: do not keep the largest ever seen
	}
	snapReaders.put(r)
}

// inflateAll returns the records section as it was before compression: the section itself if c is None, else in the
// memory of buf as far as that goes.
func inflateAll(buf []byte, c Codec, section []byte, limit int) ([]byte, error) {
	if c == None {
		return section, nil
	}
	r, err := inflate(c, section, limit)
	if err != nil {
		return nil, err
	}
	defer r.close()
	out, _, err := readTo(r, buf, 4*len(section), limit)
	if err != nil {
		return nil, err
	}
	if len(out) > limit {
		return nil, fmt.Errorf("%w: %v: more than %d bytes", ErrInflated, c, limit)
	}
	return out, nil
}

// readTo reads r to its end, or more than limit bytes of it, into the memory of buf as far as that goes; guess is how many
// there may be. ended tells that it came to the end.
func readTo(r io.Reader, buf []byte, guess, limit int) (out []byte, ended bool, err error) {
	// One byte above the limit shows that there is more.
	out = buf[:0]
	if cap(out) == 0 {
		out = make([]byte, 0, min(limit+1, max(512, guess)))
	}
	for len(out) <= limit {
		if len(out) == cap(out) {
			more := make([]byte, len(out), max(len(out)+1, min(limit+1, 2*cap(out))))
			copy(more, out)
			out = more
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		if err == io.EOF {
			return out, true, nil
		}
		if err != nil {
			return out, false, err
		}
	}
	return out, false, nil
}

// Encoders, by codec and level; a level is a small number, so there are few.

type gzipWriter = gzip.Writer

var (
	gzipWriters [11]freeList[*gzipWriter] // by level+1: -1 .. 9
	lz4Writers  [lz4Levels]freeList[*lz4.Writer]
	zstdWriters [zstd.SpeedBestCompression + 1]freeList[*zstd.Encoder]
)

func init() {
	for i := range gzipWriters {
		gzipWriters[i] = make(freeList[*gzipWriter], 2)
	}
	for i := range lz4Writers {
		lz4Writers[i] = make(freeList[*lz4.Writer], 2)
	}
	for i := range zstdWriters {
		zstdWriters[i] = make(freeList[*zstd.Encoder], 2)
	}
}

const lz4Levels = 10

var lz4LevelOf = [lz4Levels]lz4.CompressionLevel{lz4.Fast, lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4,
	lz4.Level5, lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9}

// deflate appends the compressed section to dst. Levels are those of compression.gzip.level (-1, 1..9),
// compression.lz4.level (1..17) and compression.zstd.level (-131072..22); one out of range counts as the
// nearest that is in it.
func deflate(dst []byte, c Codec, level int, section []byte) ([]byte, error) {
	switch c {
	case None:
		return append(dst, section...), nil
	case Gzip:
		return deflateGzip(dst, level, section)
	case Snappy:
		return deflateSnappy(dst, section), nil
	case LZ4:
		return deflateLZ4(dst, level, section)
	case Zstd:
		return deflateZstd(dst, level, section)
	default:
		return nil, fmt.Errorf("%w: %v", ErrCodec, c)
	}
}

func deflateGzip(dst []byte, level int, section []byte) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	w, free, err := gzipTo(out, level)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(section); err != nil {
		return nil, fmt.Errorf("batch: gzip: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("batch: gzip: %w", err)
	}
	w.Reset(nil)
	free.put(w)
	return out.Bytes(), nil
}

func gzipTo(out io.Writer, level int) (w *gzipWriter, free freeList[*gzipWriter], err error) {
	if level == DefaultLevel || level == 0 {
		level = gzip.DefaultCompression
	}
	level = min(max(level, gzip.DefaultCompression), gzip.BestCompression)
	free = gzipWriters[level+1]
	w, ok := free.get()
	if !ok {
		if w, err = gzip.NewWriterLevel(out, level); err != nil {
			return nil, nil, fmt.Errorf("batch: gzip level %d: %w", level, err)
		}
		return w, free, nil
	}
	w.Reset(out)
	return w, free, nil
}

// deflateSnappy writes the chunked shape, which every client reads: those that send the raw shape try this
// one first, and the oldest Java clients read no other.
func deflateSnappy(dst []byte, section []byte) []byte {
	dst = append(dst, snappyHead...)
	for len(section) > 0 {
		n := min(len(section), xerialChunk)
		dst = appendSnappy(dst, section[:n])
		section = section[n:]
	}
	return dst
}

// snappyHead is what the chunked shape begins with: the magic, its version, and the oldest version that can read it.
var snappyHead = slices.Concat(xerialMagic, []byte{0, 0, 0, 1, 0, 0, 0, 1})

// appendSnappy appends one chunk.
func appendSnappy(dst, chunk []byte) []byte {
	at := len(dst)
	need := 4 + snappy.MaxEncodedLen(len(chunk))
	if cap(dst)-at < need {
		dst = append(dst, make([]byte, need)...)[:at]
	}
	block := snappy.Encode(dst[at+4:at+need], chunk)
	binary.BigEndian.PutUint32(dst[at:at+4], uint32(len(block)))
	return dst[:at+4+len(block)]
}

func deflateLZ4(dst []byte, level int, section []byte) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	w, free, err := lz4To(out, level)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(section); err != nil {
		return nil, fmt.Errorf("batch: lz4: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("batch: lz4: %w", err)
	}
	w.Reset(nil)
	free.put(w)
	return out.Bytes(), nil
}

func lz4To(out io.Writer, level int) (*lz4.Writer, freeList[*lz4.Writer], error) {
	// Kafka's default of 9 stands for the fast compressor; every other number for the thorough one, whose
	// levels above 9 try longer than ours can.
	i := 0
	if level != DefaultLevel && level != 9 {
		i = min(max(level, 1), lz4Levels-1)
	}
	free := lz4Writers[i]
	w, ok := free.get()
	if !ok {
		w = lz4.NewWriter(nil)
		// Blocks of 64 KiB, independent, with no content checksum: what Kafka's clients write and can read.
		if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false),
			lz4.CompressionLevelOption(lz4LevelOf[i]), lz4.ConcurrencyOption(1)); err != nil {
			return nil, nil, fmt.Errorf("batch: lz4 level %d: %w", level, err)
		}
	}
	w.Reset(out)
	return w, free, nil
}

func deflateZstd(dst []byte, level int, section []byte) ([]byte, error) {
	speed := zstdSpeed(level)
	free := zstdWriters[speed]
	w, ok := free.get()
	if !ok {
		var err error
		Apart(func() {
			w, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(speed),
				zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
			if err == nil {
				w.EncodeAll(nil, nil) // makes what it has
			}
		})
		if err != nil {
			return nil, fmt.Errorf("batch: zstd level %d: %w", level, err)
		}
	}
	dst = w.EncodeAll(section, dst)
	free.put(w)
	return dst, nil
}

func zstdSpeed(level int) zstd.EncoderLevel {
	if level == DefaultLevel {
		level = 3
	}
	return zstd.EncoderLevelFromZstd(level)
}
