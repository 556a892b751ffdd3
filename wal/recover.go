package wal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/varve/varve/wal/vfs"
)

const (
	defaultSegmentBytes = 256 << 20
	minSegmentBytes     = 64 << 10
	maxSegmentBytes     = 2 << 30 // positions in the index are 32-bit
	minSegments         = 8
	defaultSegments     = 16
)

func (o *Options) fill() error {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	if o.MaxBytes > 0 {
		def(&o.SegmentBytes, min(defaultSegmentBytes, o.MaxBytes/defaultSegments))
		o.SegmentBytes = min(o.SegmentBytes, o.MaxBytes/minSegments)
	}
	def(&o.SegmentBytes, defaultSegmentBytes)
	o.SegmentBytes = min(o.SegmentBytes, maxSegmentBytes) &^ (pageSize - 1)
	def(&o.MaxBytes, defaultSegments*o.SegmentBytes)
	if o.SegmentBytes < minSegmentBytes {
		return fmt.Errorf("wal: %d bytes for the whole log are too few: at least %d", o.MaxBytes, minSegmentBytes*minSegments)
	}
	if len(o.ClusterID) > maxClusterID {
		return fmt.Errorf("wal: cluster id of %d bytes", len(o.ClusterID))
	}
	def(&o.QueueBytes, 64<<20)
	def(&o.CacheBytes, 256<<20)
	def(&o.IndexBytes, 64<<20)
	if o.idle <= 0 {
		o.idle = defaultIdle
	}
	if o.retry <= 0 {
		o.retry = defaultRetry
	}
	return nil
}

// Open opens the log in o.Dir, or begins one if the directory is empty. It recovers what a crash left: it reads the
// footers of sealed segments and scans the newest one, cuts off a block that was written in part, and marks
// partitions as suspect when blocks are missing that had been durable.
func Open(o Options) (l *Log, err error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	l = &Log{
		o: o, fs: o.FS, log: o.Logger, opened: time.Now(), applied: map[PartitionID]*part{},
		maxAppend: o.SegmentBytes / 2, blockBytes: int(min(maxBlockBytes, o.SegmentBytes/4)), share: o.MaxBytes / 16,
		space: space{segment: o.SegmentBytes, maxFiles: int(o.MaxBytes / o.SegmentBytes), changed: make(chan struct{})},
		wake:  make(chan struct{}, 1), failedCh: make(chan struct{}), completed: make(chan []item, 2), recycled: make(chan []item, 4),
		keep: make(chan struct{}, 1), rolled: make(chan struct{}, 1), stop: make(chan struct{}), writerEnd: make(chan struct{}),
	}
	l.needed.Store(math.MaxInt64)
	if err := l.fs.MkdirAll(o.Dir); err != nil {
		return nil, fmt.Errorf("wal: create %s: %w", o.Dir, err)
	}
	if l.lock, err = l.fs.Lock(l.path(lockName)); err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	if l.dir, err = l.fs.OpenDir(o.Dir); err != nil {
		l.lock.Close()
		return nil, fmt.Errorf("wal: open %s: %w", o.Dir, err)
	}
	defer func() {
		if err != nil {
			for _, g := range l.segments {
				g.file.Close()
			}
			l.dir.Close()
			l.lock.Close()
			l = nil
		}
	}()
	if err := l.recover(); err != nil {
		return l, err
	}
	l.openRegions()
	l.wg.Add(3) // the writer is waited for by itself
	go l.write()
	go l.complete()
	go l.keeper()
	go l.checkpointer()
	l.poke(l.keep)
	return l, nil
}

// readIdentity loads or creates the identity of the directory.
func (l *Log) readIdentity(segments int) error {
	f, err := l.fs.Open(l.path(identityName))
	if errors.Is(err, vfs.ErrNotExist) {
		if segments > 0 {
			return fmt.Errorf("%w: %s has %d segments and no %s file", ErrCorrupt, l.o.Dir, segments, identityName)
		}
		l.id = identity{broker: l.o.BrokerID, clusterID: l.o.ClusterID}
		if _, err := rand.Read(l.id.uuid[:]); err != nil {
			return fmt.Errorf("wal: draw an identity: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("wal: open identity: %w", err)
	}
	defer f.Close()
	b := make([]byte, 2*maxClusterID)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wal: read identity: %w", err)
	}
	if l.id, err = decodeIdentity(b[:n]); err != nil {
		if errors.Is(err, ErrVersion) {
			return err
		}
		return fmt.Errorf("%w: the %s file of %s", ErrCorrupt, identityName, l.o.Dir)
	}
	if l.id.clusterID != l.o.ClusterID || l.id.broker != l.o.BrokerID {
		return fmt.Errorf("%w: %s is of broker %d of cluster %q, this is broker %d of cluster %q", ErrForeign, l.o.Dir,
			l.id.broker, l.id.clusterID, l.o.BrokerID, l.o.ClusterID)
	}
	return nil
}

func (l *Log) writeIdentity() error { return l.replace(identityName, l.id.encode()) }

// replace gives a small file another content, durably: the old or the new one is there.
func (l *Log) replace(name string, b []byte) error {
	tmp := l.path(name + tempSuffix)
	f, err := l.fs.Create(tmp)
	if err == nil {
		_, err = f.WriteAt(b, 0)
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = l.fs.Rename(tmp, l.path(name))
	}
	if err == nil {
		err = l.dir.Sync()
	}
	if err != nil {
		return fmt.Errorf("wal: write %s: %w", name, err)
	}
	return nil
}

// recover brings the log to where it was, and makes it ready to be appended to.
func (l *Log) recover() error {
	// A process that was killed may have left names that are not durable yet; what is done in this life builds on them.
	if err := l.dir.Sync(); err != nil {
		return fmt.Errorf("wal: sync %s: %w", l.o.Dir, err)
	}
	names, err := l.fs.List(l.o.Dir)
	if err != nil {
		return fmt.Errorf("wal: list %s: %w", l.o.Dir, err)
	}
	var generations []uint64
	var spares []string
	for _, name := range names {
		if n, ok := parseName(name, segmentSuffix); ok {
			generations = append(generations, n)
			l.lastSpare = max(l.lastSpare, n)
		} else if n, ok := parseName(name, spareSuffix); ok {
			spares = append(spares, name)
			l.lastSpare = max(l.lastSpare, n)
		} else if strings.HasSuffix(name, tempSuffix) {
			if err := l.fs.Remove(l.path(name)); err != nil {
				return fmt.Errorf("wal: remove %s: %w", name, err)
			}
		}
	}
	slices.Sort(generations)
	if err := l.readIdentity(len(generations)); err != nil {
		return err
	}
	if err := l.readMarks(); err != nil {
		return err
	}
	if !l.id.ready {
		// The first start did not come to its end: nothing was ever acknowledged by it.
		for _, n := range generations {
			if err := l.fs.Remove(l.path(segmentName(n))); err != nil {
				return fmt.Errorf("wal: remove segment of an unfinished start: %w", err)
			}
		}
		generations = nil
		l.fresh = true
		if err := l.writeIdentity(); err != nil {
			return err
		}
	} else if len(generations) == 0 {
		return fmt.Errorf("%w: %s had segments and has none; to start empty, remove the %s file", ErrCorrupt, l.o.Dir, identityName)
	}
	for _, n := range generations {
		f, err := l.fs.Open(l.path(segmentName(n)))
		if err != nil {
			return fmt.Errorf("wal: open segment %d: %w", n, err)
		}
		size, err := f.Size()
		if err != nil {
			f.Close()
			return fmt.Errorf("wal: size of segment %d: %w", n, err)
		}
		g := l.newSegment(n, f, size&^(pageSize-1))
		l.segments = append(l.segments, g)
		if err := l.readEnds(g); err != nil {
			return err
		}
	}
	for _, name := range spares {
		if err := l.checkSpare(name); err != nil {
			return err
		}
	}
	reclaimed, last, whole, err := l.replay()
	if err != nil {
		return err
	}
	if err := l.noteCut(); err != nil {
		return err
	}
	l.finishParts()
	for len(l.segments) > 1 && l.segments[0].at.generation <= reclaimed {
		g := l.segments[0]
		l.segments = l.segments[1:]
		l.retire(g)
	}
	l.space.files = len(l.segments) + len(l.spares) + len(l.retired)
	l.space.spares = len(l.spares)
	for l.recycle() {
	}
	if n := len(l.segments); n > 0 {
		l.w.active = l.segments[n-1]
	}
	// Sealed, or nearly: of a seal that was not synced parts may be on disk, so it is done again.
	roll := l.w.active == nil || l.w.active.tail.footerLen > 0 || l.w.active.size < minSegmentBytes
	if !roll {
		if err := l.settle(l.w.active, last); err != nil {
			return fmt.Errorf("wal: %w", err)
		}
		if !whole {
			// The segment's own checkpoint is damaged. Where it ends is no matter of how large the control state is:
			// it may just be full.
			err := l.checkpoint()
			if roll = errors.Is(err, errControlState); err != nil && !roll {
				return fmt.Errorf("wal: %w", err)
			}
		}
	}
	if roll {
		if len(l.spares) == 0 {
			l.lastSpare++
			name := spareName(l.lastSpare)
			made, err := l.makeSpare(name)
			if err != nil {
				if isNoSpace(err) {
					return fmt.Errorf("%w: %w", ErrNoSpace, err)
				}
				return fmt.Errorf("wal: %w", err)
			}
			l.space.files++
			l.addSpare(made)
		}
		if err := l.roll(); err != nil {
			return fmt.Errorf("wal: %w", err)
		}
	}
	l.space.left = l.w.active.room(0, 0)
	l.spaceChanged()
	if !l.id.ready {
		l.id.ready = true
		return l.writeIdentity()
	}
	return nil
}

// settle makes durable what was read of the active segment, before anything builds on it. Its last block, which
// begins at last, may never have reached the disk: it may be in the page cache only because the process before this
// one was killed, or because its fsync failed. After a failed fsync file systems count the pages as clean, so a Sync
// alone would prove nothing; the same bytes are written again, which makes them dirty, and then synced. Every block
// before the last was synced before the last was written.
func (l *Log) settle(g *segment, last int64) error {
	b := make([]byte, min(readAhead, max(g.end-last, 0)))
	for pos := last; pos < g.end; pos += int64(len(b)) {
		b = b[:min(int64(len(b)), g.end-pos)]
		if err := readFull(g.file, b, pos); err != nil {
			return fmt.Errorf("read the last block of segment %d: %w", g.at.generation, err)
		}
		if _, err := g.file.WriteAt(b, pos); err != nil {
			return fmt.Errorf("write the last block of segment %d again: %w", g.at.generation, err)
		}
	}
	if err := g.file.Sync(); err != nil {
		return fmt.Errorf("sync segment %d: %w", g.at.generation, err)
	}
	return nil
}

// readEnds reads a segment's first and last page.
func (l *Log) readEnds(g *segment) (err error) {
	b := make([]byte, pageSize)
	if g.size < segmentHeaderSize+segmentTailSize {
		return nil // of no use; the scan finds nothing in it
	}
	if err := readFull(g.file, b, 0); err != nil {
		return fmt.Errorf("wal: read header of segment %d: %w", g.at.generation, err)
	}
	if g.paged, err = checkSegmentVersion(b, g.at); err != nil {
		return err
	}
	if err := readFull(g.file, b, g.size-segmentTailSize); err != nil {
		return fmt.Errorf("wal: read tail of segment %d: %w", g.at.generation, err)
	}
	if t, err := decodeTail(b, g.at, g.size); err == nil {
		g.tail, g.sealed, g.end, g.lastSeq = t, true, t.blocksEnd, t.lastSeq
	}
	return nil
}

// checkSpare keeps a prepared file if it is of the size that is wanted.
func (l *Log) checkSpare(name string) error {
	f, err := l.fs.Open(l.path(name))
	if err != nil {
		return fmt.Errorf("wal: open %s: %w", name, err)
	}
	size, err := f.Size()
	f.Close()
	if err != nil {
		return fmt.Errorf("wal: size of %s: %w", name, err)
	}
	if size == l.o.SegmentBytes {
		l.spares = append(l.spares, spare{name: name})
		return nil
	}
	if err := l.fs.Remove(l.path(name)); err != nil {
		return fmt.Errorf("wal: remove %s: %w", name, err)
	}
	return nil
}

// replay rebuilds the state of all partitions. The newest segments, back to one that has a whole checkpoint of the
// control state, are scanned block by block; of those before it the footers say what data they hold. whole: the
// newest segment has a checkpoint of its own. last: where its last block begins.
func (l *Log) replay() (reclaimed uint64, last int64, whole bool, err error) {
	scans := make([]*scan, len(l.segments))
	first := -1
	for i := len(l.segments) - 1; i >= 0; i-- {
		g := l.segments[i]
		newest := i == len(l.segments)-1
		if scans[i], err = l.scanSegment(g, newest); err != nil {
			return 0, 0, false, err
		}
		if newest && len(scans[i].blocks) == 0 && !g.sealed {
			// Begun, and nothing durable in it: the crash came before its first block. The name is free again.
			l.log.Info("write-ahead log: segment was begun and holds nothing", "generation", g.at.generation)
			l.segments, scans = l.segments[:i], scans[:i]
			l.retire(g)
			continue
		}
		if scans[i].checkpoint || g.at.generation == 1 {
			first = i
			break
		}
	}
	if len(l.segments) == 0 {
		if l.id.ready {
			return 0, 0, false, fmt.Errorf("%w: no segment of %s holds a valid block", ErrCorrupt, l.o.Dir)
		}
		return 0, 0, true, nil
	}
	if first < 0 {
		return 0, 0, false, fmt.Errorf("%w: no segment of %s holds a whole checkpoint of the control state", ErrCorrupt, l.o.Dir)
	}
	for i, g := range l.segments[:first] {
		if i > 0 && g.at.generation != l.segments[i-1].at.generation+1 {
			l.corrupt("segments %d to %d are missing", l.segments[i-1].at.generation+1, g.at.generation-1)
		}
		if err := l.foldFooter(g); err != nil {
			return 0, 0, false, err
		}
	}
	var lastSeq uint64
	for i := first; i < len(l.segments); i++ {
		g, s := l.segments[i], scans[i]
		if i > first && s.firstSeq != 0 && s.firstSeq != lastSeq+1 {
			l.corrupt("blocks %d to %d are missing before segment %d", lastSeq+1, s.firstSeq-1, g.at.generation)
			l.suspectAll()
		}
		for _, b := range s.blocks {
			if b.hole {
				l.suspectAll()
			}
			for k := range b.recs {
				r := &b.recs[k]
				l.apply(g, r)
				switch r.kind {
				case kindReclaim:
					reclaimed = max(reclaimed, uint64(r.base))
				case kindCheckpoint:
					if c, err := decodeCheckpointEnd(r.payload); err == nil && c.nextID > 0 {
						l.maxID = max(l.maxID, c.nextID-1)
					}
				}
			}
		}
		g.end, g.lastSeq = s.end, s.lastSeq
		if g.sealed && g.tail.lastSeq > s.lastSeq {
			l.suspectAll() // the scan has reported it
			g.end, g.lastSeq = g.tail.blocksEnd, g.tail.lastSeq
		}
		lastSeq, last = g.lastSeq, s.last
		scans[i] = nil
		g.sealed = false // its runs are in memory, and its footer has not been looked at
	}
	l.w.seq = lastSeq
	return reclaimed, last, first == len(l.segments)-1, nil
}

// suspectAll marks every partition: blocks are missing, and nobody knows of which.
func (l *Log) suspectAll() {
	l.damaged = true
	for _, p := range l.applied {
		p.hole = true
	}
}

// finishParts forgets what has no control state (its partition was dropped since), and makes the rest visible.
func (l *Log) finishParts() {
	for id, p := range l.applied {
		l.maxID = max(l.maxID, id)
		if !p.known {
			for i := range p.pieces {
				p.discount(l, &p.pieces[i])
			}
			p.dropped, p.pieces = true, nil
			delete(l.applied, id)
			continue
		}
		l.parts.put(p)
		p.start, p.end, p.hw = p.appliedStart, p.appliedEnd, p.appliedHW
		r := Recovered{
			ID: id, TopicID: p.topicID, Partition: p.index, Start: p.start, End: p.end, Lineage: p.lineage,
			HighWatermark: min(p.appliedHW, p.end), Suspect: p.suspect(), ClaimedEnd: p.claimedEnd,
		}
		if p.hole {
			r.ClaimedEnd = math.MaxInt64
		}
		if p.snapshot.length > 0 {
			r.Snapshot, r.SnapshotOffset = l.readSnapshot(p), p.snapshot.offset
			if r.Snapshot == nil || r.SnapshotOffset > p.end {
				// Producer state can be made again from the batches, further back; wrong state cannot be unmade.
				r.Snapshot, r.SnapshotOffset = nil, 0
			}
		}
		if r.Suspect {
			l.log.Error("partition is suspect: blocks that were durable are corrupt or missing", "topic_id", fmt.Sprintf("%x", p.topicID),
				"partition", p.index, "local_start", r.Start, "intact_end", r.End, "claimed_end", p.claimedEnd)
		}
		l.recovered = append(l.recovered, r)
	}
	slices.SortFunc(l.recovered, func(a, b Recovered) int { return int(int64(a.ID) - int64(b.ID)) })
	l.lastID.Store(uint64(l.maxID))
}

// readSnapshot returns the newest producer snapshot of a partition, or nil if it cannot be read.
func (l *Log) readSnapshot(p *part) []byte {
	ref := p.snapshot
	for _, g := range l.segments {
		if g.at.generation != ref.generation {
			continue
		}
		if ref.pos < segmentHeaderSize || ref.pos > g.size-int64(ref.length) {
			break
		}
		buf, err := l.readVerified(g, ref.pos, ref.length, ref.crc)
		if err != nil {
			break
		}
		defer buf.Release()
		g.parts = append(g.parts, p) // so that it is carried before the segment goes
		return slices.Clone(buf.Bytes())
	}
	l.corrupt("producer snapshot of local partition %d", p.id)
	return nil
}

// foldFooter adds what a sealed segment holds, from its footer; if that is of no use, from its blocks.
func (l *Log) foldFooter(g *segment) error {
	var pieces []footerPiece
	err := errInvalid
	if g.sealed {
		head := make([]byte, footerHeadSize)
		if err := readFull(g.file, head, g.tail.footerAt); err != nil {
			return fmt.Errorf("wal: read footer of segment %d: %w", g.at.generation, err)
		}
		var n int64
		if n, err = footerDirectorySize(head, g.at, g.tail.footerLen); err == nil {
			b := make([]byte, n)
			if err := readFull(g.file, b, g.tail.footerAt); err != nil {
				return fmt.Errorf("wal: read footer of segment %d: %w", g.at.generation, err)
			}
			pieces, err = decodeFooterDirectory(b, g.at, g.tail.footerLen)
		}
	}
	if err != nil {
		l.corrupt("footer of segment %d; its blocks are scanned", g.at.generation)
		s, err := l.scanSegment(g, false)
		if err != nil {
			return err
		}
		for _, b := range s.blocks {
			for k := range b.recs {
				switch b.recs[k].kind {
				case kindData, kindCarry, kindTruncate:
					l.apply(g, &b.recs[k])
				}
			}
		}
		// Its runs cannot be read from the footer, so they stay in memory.
		g.sealed = false
		return nil
	}
	for _, e := range pieces {
		p := l.applied[e.partition]
		if p == nil {
			p = newPart(e.partition)
			l.applied[e.partition] = p
		}
		x := piece{seg: g, base: e.base, next: e.next, maxTS: e.maxTS, bytes: e.bytes, foot: e, carried: e.carried}
		if e.carried {
			p.replace(l, e.base, e.next)
			p.claimedEnd = max(p.claimedEnd, e.next)
		} else {
			p.endsAt(l, e.base)
			p.claimedEnd = e.next
		}
		p.insert(l, x)
		g.parts = append(g.parts, p)
	}
	return nil
}

// --- the scanner ---

// scan is what the blocks of one segment say.
type scan struct {
	blocks     []scannedBlock
	firstSeq   uint64 // 0: none
	lastSeq    uint64
	last       int64 // where the last block begins
	end        int64 // where the next block goes
	checkpoint bool  // a whole one is in it
}

type scannedBlock struct {
	hole bool // before it blocks are missing
	recs []record
}

// scanSegment reads a segment block by block. What it meets that is no valid block is either the end (of the newest
// segment: blank, or a torn write, which is cut off) or corruption: a later block, the segment's tail, or a later
// segment say that there was more.
func (l *Log) scanSegment(g *segment, newest bool) (*scan, error) {
	limit := g.size - segmentTailSize
	if g.sealed {
		limit = g.tail.blocksEnd
	}
	s := &scan{last: segmentHeaderSize, end: segmentHeaderSize}
	rd := &blockReader{f: g.file, at: g.at, seed: g.seed, limit: limit, budget: 4 * g.size}
	hole := false
	for pos := int64(segmentHeaderSize); pos < limit; {
		h, recs, err := rd.block(pos)
		if err == nil && s.firstSeq != 0 && h.seq != s.lastSeq+1 {
			err = errInvalid
			if h.seq > s.lastSeq && h.durable > s.lastSeq { // else it says itself that there was nothing between
				l.corrupt("block %d follows block %d in segment %d", h.seq, s.lastSeq, g.at.generation)
				hole, err = true, nil
			}
		}
		if err != nil && !errors.Is(err, errInvalid) {
			return nil, fmt.Errorf("wal: scan segment %d: %w", g.at.generation, err)
		}
		if err == nil {
			if s.firstSeq == 0 {
				s.firstSeq = h.seq
			}
			s.lastSeq = h.seq
			s.blocks = append(s.blocks, scannedBlock{hole, recs})
			hole = false
			for i := range recs {
				s.checkpoint = s.checkpoint || recs[i].kind == kindCheckpoint && s.soundCheckpoint()
			}
			s.last = pos
			pos += alignUp(h.size())
			s.end = pos
			continue
		}
		next, err := rd.later(pos+pageSize, s.lastSeq)
		if err != nil {
			return nil, fmt.Errorf("wal: scan segment %d: %w", g.at.generation, err)
		}
		if next < 0 {
			break
		}
		l.corrupt("block after %d, at %d of segment %d: a later block says that it was durable", s.lastSeq, pos, g.at.generation)
		hole, pos = true, next
	}
	switch {
	case g.sealed && s.lastSeq < g.tail.lastSeq:
		l.corrupt("blocks %d to %d of segment %d: its tail says that they were durable", s.lastSeq+1, g.tail.lastSeq, g.at.generation)
		s.blocks = append(s.blocks, scannedBlock{hole: true})
	case newest && !g.sealed && rd.begun(s.end, s.lastSeq):
		l.cutTail = true
		l.log.Warn("write-ahead log: a block that was written in part is cut off; nothing in it was acknowledged", "generation", g.at.generation, "at", s.end, "after_block", s.lastSeq)
	}
	return s, nil
}

// soundCheckpoint says that no block is missing since the segment began, so that a checkpoint in it is whole.
func (s *scan) soundCheckpoint() bool {
	maps := uint64(0)
	for _, b := range s.blocks {
		if b.hole {
			maps = 0
		}
		for i := range b.recs {
			switch b.recs[i].kind {
			case kindPartitionMap:
				maps++
			case kindCheckpoint:
				if c, err := decodeCheckpointEnd(b.recs[i].payload); err == nil && c.partitions <= maps {
					return true
				}
				maps = 0
			}
		}
	}
	return false
}

// blockReader reads and verifies blocks through one buffer. What it allocates is bounded by what it has verified.
type blockReader struct {
	f      vfs.File
	at     place
	seed   uint32
	limit  int64
	budget int64 // bytes that may still be verified in vain
	buf    []byte
	bufAt  int64
}

const readAhead = 1 << 20

// bytes returns n bytes at pos, n at most readAhead, valid until the next call.
func (r *blockReader) bytes(pos, n int64) ([]byte, error) {
	if n > readAhead || n < 0 || pos < 0 || pos+n > r.limit {
		return nil, errInvalid
	}
	if pos < r.bufAt || pos+n > r.bufAt+int64(len(r.buf)) {
		if r.buf == nil {
			r.buf = make([]byte, 0, readAhead)
		}
		r.buf = r.buf[:min(readAhead, r.limit-pos)]
		r.bufAt = pos
		if err := readFull(r.f, r.buf, pos); err != nil {
			r.buf = r.buf[:0]
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = errInvalid // a file that was cut short
			}
			return nil, err
		}
	}
	return r.buf[pos-r.bufAt : pos-r.bufAt+n], nil
}

// block verifies the whole block at pos and returns its records; payloads only of control records.
func (r *blockReader) block(pos int64) (h blockHeader, recs []record, err error) {
	b, err := r.bytes(pos, blockHeaderSize)
	if err != nil {
		return h, nil, err
	}
	if h, err = decodeBlockHeader(b, r.at, r.limit-pos); err != nil {
		return h, nil, err
	}
	if h.count > 2*maxBlockRecords {
		return h, nil, errInvalid
	}
	crc := le.Uint32(b[64:])
	sum := checksum(r.seed, b[:blockChecked])
	// The descriptors, in pieces: first verified, then believed.
	const step = 16 << 10
	for i := int64(0); i < int64(h.count); i += step {
		n := min(step, int64(h.count)-i)
		if b, err = r.bytes(pos+blockHeaderSize+i*descriptorSize, n*descriptorSize); err != nil {
			return h, nil, err
		}
		sum = checksum(sum, b)
	}
	if sum != crc {
		return h, nil, errInvalid
	}
	recs = make([]record, 0, h.count)
	at := pos + h.payloadsAt()
	for i := int64(0); i < int64(h.count); i++ {
		if b, err = r.bytes(pos+blockHeaderSize+i*descriptorSize, descriptorSize); err != nil {
			return h, nil, err
		}
		d := decodeDescriptor(b)
		if at+int64(d.length) > pos+h.size() || (d.kind == kindData || d.kind == kindCarry) && (d.base < 0 || d.next <= d.base || d.length == 0) {
			return h, nil, errInvalid
		}
		recs = append(recs, record{descriptor: d, pos: at})
		at += int64(d.length)
	}
	if at != pos+h.size() {
		return h, nil, errInvalid
	}
	for i := range recs {
		d := &recs[i]
		sum := r.seed
		keep := d.kind != kindData && d.kind != kindCarry
		for off := int64(0); off < int64(d.length); {
			n := min(int64(d.length)-off, readAhead)
			if b, err = r.bytes(d.pos+off, n); err != nil {
				return h, nil, err
			}
			sum = checksum(sum, b)
			if keep {
				d.payload = append(d.payload, b...)
			}
			off += n
		}
		if sum != d.crc {
			return h, nil, errInvalid
		}
	}
	return h, recs, nil
}

// later looks for a valid block from pos on that says that a block after lastSeq was durable before it; -1: none.
func (r *blockReader) later(pos int64, lastSeq uint64) (int64, error) {
	for ; pos+blockHeaderSize <= r.limit; pos += pageSize {
		b, err := r.bytes(pos, blockHeaderSize)
		if err != nil {
			if errors.Is(err, errInvalid) {
				return -1, nil
			}
			return -1, err
		}
		h, err := decodeBlockHeader(b, r.at, r.limit-pos)
		if err != nil || h.seq <= lastSeq+1 || h.durable <= lastSeq {
			continue
		}
		if r.budget -= h.size(); r.budget < 0 {
			// Far more promises of blocks than the file could hold: somebody wrote them. Take the first at its word.
			return pos, nil
		}
		if _, _, err = r.block(pos); err == nil {
			return pos, nil
		}
		if !errors.Is(err, errInvalid) {
			return -1, err
		}
	}
	return -1, nil
}

// begun says that what is at pos, and is no valid block, is the beginning of one that follows lastSeq.
func (r *blockReader) begun(pos int64, lastSeq uint64) bool {
	b, err := r.bytes(pos, blockHeaderSize)
	if err != nil {
		return false
	}
	h, err := decodeBlockHeader(b, r.at, r.limit-pos)
	return err == nil && h.seq == lastSeq+1 && h.count > 0
}
