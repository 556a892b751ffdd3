package wal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/varve/varve/wal/vfs"
)

// segment is one file of the log.
//
// It is referenced by the log while it is in use and by each read under way; the last one to let go closes the file
// and, if the segment was reclaimed, hands it back to be recycled.
type segment struct {
	at   place
	seed uint32
	file vfs.File
	size int64

	refs   atomic.Int32
	onLast func() // set before the log lets go of it
	unread bool   // by nobody any more, after the log let go of it; guarded by Log.segMu

	// Of the writer, until the segment is sealed; not changed after.
	firstSeq     uint64
	lastSeq      uint64
	paged        bool    // blocks may be
	end          int64   // of the blocks
	parts        []*part // that have pieces or snapshots here, some more than once
	runs, pieces int     // that were added: what the footer has at most
	tail         tail
	sealed       bool
}

func (l *Log) newSegment(generation uint64, file vfs.File, size int64) *segment {
	at := place{l.id.uuid, generation}
	g := &segment{at: at, seed: at.seed(), file: file, size: size, end: segmentHeaderSize}
	g.refs.Store(1)
	return g
}

func (g *segment) retain() { g.refs.Add(1) }

func (g *segment) release() {
	switch n := g.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic(fmt.Sprintf("wal: segment %d released below zero", g.at.generation))
	}
	g.file.Close()
	if g.onLast != nil {
		g.onLast()
	}
}

// footerBound is how many bytes the footer may take once so many more runs and pieces have been added.
func (g *segment) footerBound(runs, pieces int) int64 {
	return alignUp(footerHeadSize + int64(g.pieces+pieces)*footerPieceSize + int64(g.runs+runs)*footerRunSize)
}

// room is how many bytes of blocks still fit if they add so many runs and pieces.
func (g *segment) room(runs, pieces int) int64 {
	return g.size - segmentTailSize - g.footerBound(runs, pieces) - g.end
}

const (
	segmentSuffix = ".wal"
	spareSuffix   = ".free"
	tempSuffix    = ".tmp"
	identityName  = "identity"
	lockName      = "LOCK"
)

func segmentName(generation uint64) string { return fmt.Sprintf("%016x%s", generation, segmentSuffix) }

func spareName(n uint64) string { return fmt.Sprintf("%016x%s", n, spareSuffix) }

func parseName(name, suffix string) (n uint64, ok bool) {
	base, found := strings.CutSuffix(name, suffix)
	if !found || len(base) != 16 || strings.ToLower(base) != base {
		return 0, false
	}
	if _, err := fmt.Sscanf(base, "%016x", &n); err != nil {
		return 0, false
	}
	return n, true
}

func (l *Log) path(name string) string { return filepath.Join(l.o.Dir, name) }

// buildFooter lays out what the segment has of every partition. It also notes in each piece where its runs are, so
// that they can be dropped from memory and read again.
func (l *Log) buildFooter(g *segment) []byte {
	parts := slices.Clone(g.parts)
	slices.SortFunc(parts, func(a, b *part) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		}
		return 0
	})
	parts = slices.Compact(parts)
	pieces, runs := 0, 0
	each := func(f func(p *part, x *piece)) {
		for _, p := range parts {
			p.mu.Lock()
			for i := range p.pieces {
				if p.pieces[i].seg == g {
					f(p, &p.pieces[i])
				}
			}
			p.mu.Unlock()
		}
	}
	// Only the writer changes pieces, and it is the writer that is here, so both passes see the same.
	each(func(_ *part, x *piece) { pieces++; runs += len(x.runs) })
	b := make([]byte, footerHeadSize+pieces*footerPieceSize+runs*footerRunSize)
	dir, at := footerHeadSize, footerHeadSize+pieces*footerPieceSize
	each(func(p *part, x *piece) {
		from := at
		for i := range x.runs {
			encodeRun(b[at:], &x.runs[i])
			at += footerRunSize
		}
		x.foot = footerPiece{
			partition: p.id, carried: x.carried, base: x.base, next: x.next, bytes: x.bytes, maxTS: x.maxTS,
			runsAt: uint32(from), runs: uint32(len(x.runs)), crc: checksum(g.seed, b[from:at]),
		}
		x.foot.encode(b[dir:])
		dir += footerPieceSize
	})
	encodeFooterHead(b, g.at, pieces)
	return b
}

// seal writes footer and tail of a segment that gets no more blocks. If this does not become durable, nothing is
// lost but time: the segment is scanned.
func (l *Log) seal(g *segment) error {
	footer := l.buildFooter(g)
	t := tail{blocksEnd: g.end, lastSeq: g.lastSeq, footerAt: g.end, footerLen: int64(len(footer))}
	if g.end+int64(len(footer)) > g.size-segmentTailSize {
		// Only of a file that somebody cut short. Without a footer it is scanned.
		l.log.Warn("write-ahead log: no room for the footer of a segment", "generation", g.at.generation, "size", g.size)
		return nil
	}
	// Whole pages, so that the kernel need not read the rest of the last one.
	footer = append(footer, make([]byte, alignUp(int64(len(footer)))-int64(len(footer)))...)
	defer l.waits()()
	if _, err := g.file.WriteAt(footer, t.footerAt); err != nil {
		return fmt.Errorf("write footer of segment %d: %w", g.at.generation, err)
	}
	if _, err := g.file.WriteAt(encodeTail(g.at, t), g.size-segmentTailSize); err != nil {
		return fmt.Errorf("write tail of segment %d: %w", g.at.generation, err)
	}
	if err := g.file.Sync(); err != nil {
		return fmt.Errorf("sync footer of segment %d: %w", g.at.generation, err)
	}
	l.stats.syncs.Add(1)
	g.tail, g.sealed = t, true
	return nil
}

// loadRuns reads the runs of a piece from its segment's footer. The caller holds a reference to the segment.
func (g *segment) loadRuns(foot *footerPiece) ([]run, error) {
	b := make([]byte, int(foot.runs)*footerRunSize)
	if _, err := g.file.ReadAt(b, g.tail.footerAt+int64(foot.runsAt)); err != nil {
		return nil, fmt.Errorf("wal: read footer of segment %d: %w", g.at.generation, err)
	}
	runs, err := decodeRuns(b, foot, g.seed, g.tail.blocksEnd)
	if err != nil {
		return nil, fmt.Errorf("%w: footer of segment %d, runs of local partition %d", ErrCorrupt, g.at.generation, foot.partition)
	}
	return runs, nil
}

// runsOf reads the runs of a piece whose runs are not in memory: from the footer, or, if that is damaged, from the
// blocks, which it was made of. The caller holds a reference to the segment.
func (l *Log) runsOf(g *segment, foot *footerPiece) ([]run, error) {
	runs, err := g.loadRuns(foot)
	if !errors.Is(err, ErrCorrupt) {
		return runs, err
	}
	l.corrupt("%v; its blocks are scanned", err)
	s, serr := l.scanSegment(g, false)
	if serr != nil {
		return nil, serr
	}
	if runs := s.runsOf(foot); runs != nil {
		return runs, nil
	}
	return nil, err
}

// runsOf puts together the runs of a piece. nil: not all of it is there.
func (s *scan) runsOf(foot *footerPiece) []run {
	want := kindData
	if foot.carried {
		want = kindCarry
	}
	var all []run // ascending; the later record counts
	for _, b := range s.blocks {
		for i := range b.recs {
			r := &b.recs[i]
			if r.partition != foot.partition || r.kind != want && r.kind != kindTruncate {
				continue
			}
			// What begins before goes up to here. What begins here or behind is cut off, but a copy replaces only what
			// it covers.
			n := sort.Search(len(all), func(i int) bool { return all[i].base >= r.base })
			if n > 0 {
				all[n-1].next = min(all[n-1].next, r.base)
			}
			var behind []run
			if r.kind == kindCarry {
				behind = slices.DeleteFunc(slices.Clone(all[n:]), func(x run) bool { return x.next <= r.next })
			}
			all = all[:n]
			if r.kind == want {
				all = append(all, run{r.base, r.next, r.maxTS, uint32(r.pos), r.length, r.crc})
			}
			all = append(all, behind...)
		}
	}
	lo := sort.Search(len(all), func(i int) bool { return all[i].next > foot.base })
	hi := sort.Search(len(all), func(i int) bool { return all[i].base >= foot.next })
	all = all[lo:max(lo, hi)]
	at := foot.base
	for i := range all {
		if all[i].base > at {
			return nil
		}
		at = all[i].next
	}
	if len(all) == 0 || at < foot.next {
		return nil
	}
	return all
}

var zeros [1 << 20]byte

// spare is a prepared file. raw: only allocated, so that a sync of what is written to it has metadata to write too.
type spare struct {
	name string
	raw  bool
}

// makeSpare makes a file of zeros and syncs it: allocated, and written too if there is time for it.
func (l *Log) makeSpare(name string) (spare, error) {
	tmp := l.path(name + tempSuffix)
	f, err := l.fs.Create(tmp)
	if err != nil {
		return spare{}, err
	}
	raw := false
	// Asking for the space first finds a full disk before anything is written.
	err = f.Allocate(l.o.SegmentBytes)
	if err == nil {
		raw, err = l.fill(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = l.fs.Rename(tmp, l.path(name))
	}
	if err == nil {
		err = l.dir.Sync()
	}
	if err != nil {
		if rerr := l.fs.Remove(tmp); rerr != nil && !errors.Is(rerr, vfs.ErrNotExist) {
			l.log.Warn("temporary file not removed", "name", tmp, "err", rerr)
		}
		return spare{}, fmt.Errorf("prepare segment file: %w", err)
	}
	return spare{name, raw}, nil
}

// largeBlock is the size of blocks from which zeros cost more than they gain: a sync of 64 KiB takes 0.2 ms in a file that
// is only allocated and 0.13 in one that was written, which took as long as the difference.
const largeBlock = 32 << 10

// fill writes zeros, in the background of what clients write. They take as much of the disk as everything that is
// written later, and make syncs of small blocks a third cheaper. So while blocks are large, or files are needed, one that is
// allocated is left at that: it reads as zeros too, improve may fill it later, and once its data has written it, it is as
// good as any other. raw says that it was left.
func (l *Log) fill(f vfs.File) (raw bool, err error) {
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	allocated := size >= l.o.SegmentBytes // else the file system cannot
	begin := time.Now()
	blocks, written := l.stats.blocks.Load(), l.stats.bytes.Load()
	for off, synced := int64(0), int64(0); off < l.o.SegmentBytes; {
		l.mu.Lock()
		starting := !l.keeping && l.fresh // nobody writes yet, and the first file is worth waiting for
		hurry := !starting && l.space.spares <= reserveSegments
		l.mu.Unlock()
		if n := l.stats.blocks.Load() - blocks; allocated && (hurry || n > 0 && (l.stats.bytes.Load()-written)/n >= largeBlock) {
			return true, f.Sync()
		}
		step := min(int64(len(zeros)), l.o.SegmentBytes-off)
		if _, err := f.WriteVAt([][]byte{zeros[:step]}, off); err != nil {
			return false, err
		}
		// Synced in steps, and with pauses unless the file is needed at once: one long flush would hold up the fsync
		// of the block that somebody waits for.
		if off += step; off-synced >= 2<<20 || off == l.o.SegmentBytes {
			if err := f.Sync(); err != nil {
				return false, err
			}
			synced = off
			pause := 3 * time.Since(begin)
			if hurry || starting {
				pause = 0
			}
			if off < l.o.SegmentBytes {
				select {
				case <-time.After(pause):
				case <-l.stop:
					return false, ErrClosed
				}
			}
			begin = time.Now()
		}
	}
	return false, nil
}

// improve fills a spare that was only allocated, when nobody needs it. It says whether it did. Meanwhile the file is
// nobody's: whoever takes a spare takes another one.
func (l *Log) improve() bool {
	blocks, written := l.stats.blocks.Load(), l.stats.bytes.Load()
	since, bytes := blocks-l.looked.blocks, written-l.looked.bytes
	l.looked.blocks, l.looked.bytes = blocks, written
	if since > 0 && bytes/since >= largeBlock {
		return false // it would be given up, and begun again at the next look
	}
	l.segMu.Lock()
	i := slices.IndexFunc(l.spares, func(s spare) bool { return s.raw })
	if i < 0 || len(l.spares) < spareTarget {
		l.segMu.Unlock()
		return false
	}
	s := l.spares[i]
	l.spares = slices.Delete(l.spares, i, i+1)
	n := len(l.spares)
	l.segMu.Unlock()
	l.mu.Lock()
	l.space.spares = n
	l.spaceChanged()
	l.mu.Unlock()
	f, err := l.fs.Open(l.path(s.name))
	if err == nil {
		s.raw, err = l.fill(f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, ErrClosed), isNoFiles(err), isNoSpace(err): // no space: of a file system that does not write in place
		s.raw = true
	default:
		l.fail(fmt.Errorf("fill segment file: %w", err))
		return false
	}
	l.addSpare(s)
	return !s.raw
}

// begin makes a spare file the segment of a generation. Its header is durable with the first block.
func (l *Log) begin(spare string, generation, firstSeq uint64) (*segment, error) {
	name := l.path(segmentName(generation))
	if err := l.fs.Rename(l.path(spare), name); err != nil {
		return nil, fmt.Errorf("begin segment %d: %w", generation, err)
	}
	if err := l.dir.Sync(); err != nil {
		return nil, fmt.Errorf("begin segment %d: sync directory: %w", generation, err)
	}
	f, err := l.openBegun(name)
	if err != nil {
		return nil, fmt.Errorf("begin segment %d: %w", generation, err)
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("begin segment %d: %w", generation, err)
	}
	g := l.newSegment(generation, f, size&^(pageSize-1))
	g.firstSeq, g.lastSeq, g.paged = firstSeq, firstSeq-1, true
	if _, err := f.WriteAt(encodeSegmentHeader(g.at, g.size, firstSeq, time.Now().UnixMilli()), 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("begin segment %d: write header: %w", generation, err)
	}
	return g, nil
}

// openBegun opens the file of a segment that begins. Nothing was written to it yet: while too many files are open the
// writer waits, and everybody is refused meanwhile; but for a start, which fails.
func (l *Log) openBegun(name string) (vfs.File, error) {
	for told := false; ; told = true {
		f, err := l.fs.Open(name)
		if !isNoFiles(err) || !l.w.running {
			if told {
				l.setHalted(false)
			}
			return f, err
		}
		if !told {
			l.setHalted(true)
			l.tellNoFiles(err)
		}
		select {
		case <-time.After(l.o.retry):
		case <-l.stop:
			return nil, fmt.Errorf("closed while waiting for it: %w", err)
		}
	}
}

// readFull reads exactly len(b) bytes; a file that ends before is not what its index says.
func readFull(f vfs.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isNoFiles says that too many files are open, of this process or of the machine. Only what opens one fails so: nothing was
// done then.
func isNoFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
