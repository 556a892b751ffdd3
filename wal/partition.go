package wal

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/slab"
)

// part is one local partition.
//
// Two views of it are kept. Callers see start, end, hw and mem, which count what is queued. Records that are durable
// have made the rest, through apply: recovery builds the same from the same records. Reads are served from mem,
// which always reaches from some offset to end without a gap, and below that from pieces.
type part struct {
	// What every append touches comes first, so that it is in few lines of the processors' caches: with many partitions
	// none of them is there.
	mu         sync.Mutex
	end        int64
	mem        ring[chunk]
	chunks     uint64 // that there were in mem
	id         PartitionID
	block      uint64 // of the writer alone: where the partition's items are in the block being laid out
	group      int32
	dropped    bool
	hole       bool    // of apply: blocks are missing since a record last said where the log ended
	appliedEnd int64   // of apply: of what is here, without a gap, from appliedStart on
	claimedEnd int64   // of apply: of the log as records claim it; above appliedEnd only if something is missing
	pieces     []piece // of apply: ascending, disjoint

	hw          int64
	hwDirty     bool
	overShare   atomic.Bool
	start       int64
	reclaimable int64

	// Made by apply.
	known        bool // a PARTITION_MAP was seen; without one there are only pieces, of footers
	topicID      [16]byte
	index        int32
	appliedStart int64
	appliedHW    int64
	lineage      lineage.Lineage
	snapshot     snapshotRef
	appliedCuts  uint32 // truncations: a carried copy read before one is void
	stuck        bool   // it cannot be uploaded, says the owner
	held         int64  // if stuck: what copies of the pieces take that cannot go
	control      int64  // its part of Log.controlSize

	look uint64 // of the keeper alone: the last look that has seen it
}

func newPart(id PartitionID) *part { return &part{id: id} }

// piece is what one segment has of a partition in one stretch: its runs follow each other without a gap.
type piece struct {
	seg        *segment
	base, next int64 // a cut may have left less of it than its runs hold
	maxTS      int64
	bytes      int64
	runs       []run // nil: in the segment's footer
	carried    bool
	foot       footerPiece
}

// copyCost is what must be written to copy it.
func (x *piece) copyCost() int64 {
	return x.bytes + int64(max(len(x.runs), int(x.foot.runs)))*cost(0)
}

const pieceBytes = 160 // of a piece in memory

// chunk is one append in memory.
type chunk struct {
	id         uint64 // of the partition's chunks
	base, next int64
	maxTS      int64
	bytes      []byte
	buf        *slab.Buf // nil: bytes is the garbage collector's
	cut        bool      // bytes hold batches at next and above, which do not count
}

// clip takes away what lies outside [base, next), of a piece that overlaps it.
func (x *piece) clip(base, next int64) {
	x.base, x.next = max(x.base, base), min(x.next, next)
	if x.runs == nil {
		return
	}
	lo := sort.Search(len(x.runs), func(i int) bool { return x.runs[i].next > x.base })
	hi := sort.Search(len(x.runs), func(i int) bool { return x.runs[i].base >= x.next })
	x.runs = x.runs[lo:hi:hi]
	if n := len(x.runs); n > 0 {
		// The run keeps its bytes, which are verified as a whole, and counts only up to here: what is appended next
		// begins here.
		x.runs[n-1].next = min(x.runs[n-1].next, x.next)
	}
	x.bytes, x.maxTS = 0, -1
	for i := range x.runs {
		x.bytes += int64(x.runs[i].length)
		x.maxTS = max(x.maxTS, x.runs[i].maxTS)
	}
}

// cutFrom drops everything from offset on.
func (p *part) cutFrom(l *Log, offset int64) {
	n := len(p.pieces)
	for n > 0 && p.pieces[n-1].base >= offset {
		n--
		p.discount(l, &p.pieces[n])
		p.pieces[n] = piece{}
	}
	p.pieces = p.pieces[:n]
	if n > 0 && p.pieces[n-1].next > offset {
		p.reclip(l, &p.pieces[n-1], p.pieces[n-1].base, offset)
	}
}

// cutBelow drops the pieces that lie below offset whole.
func (p *part) cutBelow(l *Log, offset int64) {
	n := 0
	for n < len(p.pieces) && p.pieces[n].next <= offset {
		p.discount(l, &p.pieces[n])
		n++
	}
	if n > 0 {
		p.pieces = slices.Delete(p.pieces, 0, n)
	}
}

func (p *part) reclip(l *Log, x *piece, base, next int64) {
	before := len(x.runs)
	x.clip(base, next)
	l.indexBytes.Add(int64(len(x.runs)-before) * runBytes)
}

func (p *part) discount(l *Log, x *piece) {
	l.indexBytes.Add(-pieceBytes - int64(len(x.runs))*runBytes)
}

// insert puts a piece at its place; nothing overlaps it.
func (p *part) insert(l *Log, x piece) {
	i := sort.Search(len(p.pieces), func(i int) bool { return p.pieces[i].base >= x.base })
	p.pieces = slices.Insert(p.pieces, i, x)
	l.indexBytes.Add(pieceBytes + int64(len(x.runs))*runBytes)
}

// addRun adds what a DATA or CARRY record of segment g holds, to the piece that it continues or as a new one.
// Nothing overlaps it.
func (p *part) addRun(l *Log, g *segment, r run, carried bool) {
	i := len(p.pieces)
	if i > 0 && p.pieces[i-1].base >= r.base {
		i = sort.Search(len(p.pieces), func(i int) bool { return p.pieces[i].base >= r.base })
	}
	if i > 0 {
		if x := &p.pieces[i-1]; x.seg == g && x.carried == carried && x.next == r.base && x.runs != nil {
			x.runs = append(x.runs, r)
			x.next, x.bytes, x.maxTS = r.next, x.bytes+int64(r.length), max(x.maxTS, r.maxTS)
			l.indexBytes.Add(runBytes)
			g.runs++
			p.grown(l, cost(int64(r.length)))
			return
		}
	}
	p.insert(l, piece{seg: g, base: r.base, next: r.next, maxTS: r.maxTS, bytes: int64(r.length), runs: []run{r}, carried: carried})
	g.runs++
	g.pieces++
	g.parts = append(g.parts, p)
	p.grown(l, cost(int64(r.length)))
}

func (p *part) setStuck(l *Log, stuck bool) {
	if p.stuck != stuck {
		p.stuck = stuck
		if stuck {
			l.stuck.Add(1)
		} else {
			l.stuck.Add(-1)
		}
	}
	p.hold(l)
}

// grown counts what was added against the share of a partition that cannot be uploaded.
func (p *part) grown(l *Log, bytes int64) {
	if p.stuck {
		p.held += bytes
		p.judge(l)
	}
}

// judge says whether the partition has used its share.
func (p *part) judge(l *Log) {
	p.overShare.Store(p.stuck && p.held > l.stuckShare())
}

// hold counts what the partition holds that cannot go.
func (p *part) hold(l *Log) {
	if p.held = 0; p.stuck {
		from := max(p.start, p.reclaimable)
		for i := range p.pieces {
			if x := &p.pieces[i]; x.next > from {
				p.held += x.copyCost()
			}
		}
	}
	p.judge(l)
}

// stuckShare is what one of the partitions may hold that cannot be uploaded: all of them together a quarter of the log, so that
// there is room for the others.
func (l *Log) stuckShare() int64 { return min(l.share, l.o.MaxBytes/4/max(l.stuck.Load(), 1)) }

// replace makes room for a copy of [base, next): whatever was there gives way, and what is around it stays.
func (p *part) replace(l *Log, base, next int64) {
	for i := 0; i < len(p.pieces); i++ {
		x := &p.pieces[i]
		switch {
		case x.next <= base || x.base >= next:
		case x.base >= base && x.next <= next:
			p.discount(l, x)
			p.pieces = slices.Delete(p.pieces, i, i+1)
			i--
		case x.base < base && x.next > next:
			right := *x
			right.runs = slices.Clone(x.runs)
			p.reclip(l, x, x.base, base)
			right.clip(next, right.next)
			p.insert(l, right)
			return
		case x.base < base:
			p.reclip(l, x, x.base, base)
		default:
			p.reclip(l, x, next, x.next)
		}
	}
}

// contiguous returns where the stretch of pieces that contains from ends; from itself if none does.
func (p *part) contiguous(from int64) int64 {
	for i := range p.pieces {
		if x := &p.pieces[i]; x.next > from {
			if x.base > from {
				break
			}
			from = x.next
		}
	}
	return from
}

// record is a descriptor with where its payload is.
type record struct {
	descriptor
	p       *part // set by the writer; recovery looks it up
	pos     int64 // of the payload in the segment
	payload []byte

	// Of the writer: the CRC-32C of the payload, and its shift, 0 if it is still to be made.
	summed bool
	sum    uint32
	shift  crc32c.Shift
}

// apply is the only place where a record changes what the log knows. It is called in the order of the log: by the
// writer for the block that it makes durable, and by recovery. Under corruption records may be missing before this one, and
// apply is written for that: what does not follow from what was there makes the partition suspect, and what says
// where the log ended makes it trusted again.
func (l *Log) apply(g *segment, r *record) {
	switch r.kind {
	case kindReclaim:
		l.applyReclaim(uint64(r.base))
		return
	case kindCheckpoint:
		return // recovery acts on it; here the state is whole anyway
	}
	p := r.p
	if p == nil {
		if p = l.applied[r.partition]; p == nil {
			if r.kind == kindDrop {
				return
			}
			p = newPart(r.partition)
			l.applied[r.partition] = p
		}
	}
	if r.base < 0 && r.kind != kindEpoch { // of an EPOCH it says that there is nothing to note
		l.corrupt("%v record of local partition %d at offset %d", r.kind, r.partition, r.base)
		p.mu.Lock()
		p.hole = true // whatever it said is missing
		p.mu.Unlock()
		return
	}
	l.maxID = max(l.maxID, r.partition)
	p.mu.Lock()
	if r.kind == kindData && r.base == p.appliedEnd && r.base == p.claimedEnd && !p.hole {
		// As nearly always.
		p.addRun(l, g, run{r.base, r.next, r.maxTS, uint32(r.pos), r.length, r.crc}, false)
		p.appliedEnd, p.claimedEnd = r.next, r.next
		p.mu.Unlock()
		return
	}
	defer p.mu.Unlock()
	defer func() {
		p.hold(l)
		p.weigh(l)
	}()
	switch r.kind {
	case kindPartitionMap:
		m, err := decodePartitionMap(r.payload)
		if err != nil {
			l.corrupt("partition map record of local partition %d", r.partition)
			p.hole = true
			return
		}
		l.applied[p.id] = p
		if len(m.inline) > 0 {
			m.snapshot = snapshotRef{offset: m.start, generation: g.at.generation, pos: r.pos + int64(m.inlineAt), length: uint32(len(m.inline)), crc: checksum(g.seed, m.inline)}
			g.parts = append(g.parts, p)
		}
		p.applyMap(l, &m)
	case kindData:
		if e, _ := p.lineage.Latest(); p.hole && r.epoch >= 0 && (len(p.lineage) == 0 || e.Epoch < r.epoch) {
			// The EPOCH record is among what is missing. If no data is, the epoch began here.
			p.lineage = p.lineage.Assign(r.epoch, r.base)
		}
		p.endsAt(l, r.base)
		p.addRun(l, g, run{r.base, r.next, r.maxTS, uint32(r.pos), r.length, r.crc}, false)
		p.claimedEnd = r.next
		if r.base == p.appliedEnd {
			p.appliedEnd = r.next
		}
	case kindCarry:
		next := r.next
		if p.known { // else there is no telling yet
			if r.base >= p.claimedEnd {
				return // cut off since
			}
			next = min(next, p.claimedEnd)
		}
		p.claimedEnd = max(p.claimedEnd, next)
		p.replace(l, r.base, next)
		p.addRun(l, g, run{r.base, next, r.maxTS, uint32(r.pos), r.length, r.crc}, true)
		p.appliedEnd = max(p.appliedEnd, p.contiguous(p.appliedStart))
	case kindTruncate:
		p.appliedCuts++
		if r.base < p.claimedEnd {
			p.cutFrom(l, r.base)
			p.claimedEnd = r.base
		}
		if r.base <= p.appliedEnd {
			p.appliedEnd = r.base
			p.hole = false
		}
		p.appliedStart = min(p.appliedStart, r.base)
		p.lineage = p.lineage.TruncateEnd(r.base)
		p.appliedHW = min(p.appliedHW, r.base)
		if p.snapshot.length > 0 && p.snapshot.offset > r.base {
			p.snapshot = snapshotRef{}
		}
	case kindEpoch:
		if r.epoch >= 0 && r.base >= 0 {
			switch {
			case r.base == p.appliedEnd: // an epoch begins where the log ends
				p.endsAt(l, r.base)
			case p.hole:
				p.claimedEnd = max(p.claimedEnd, r.base)
			}
			p.lineage = p.lineage.Assign(r.epoch, r.base)
		}
	case kindHighWatermark:
		p.appliedHW = r.base
	case kindTrim:
		p.appliedStart = max(p.appliedStart, min(r.base, p.claimedEnd))
		p.cutBelow(l, p.appliedStart)
		if p.appliedStart > p.appliedEnd {
			p.appliedEnd = min(p.contiguous(p.appliedStart), p.claimedEnd)
		}
	case kindSnapshot:
		if p.snapshot.length > 0 && p.snapshot.offset > r.base {
			return // a copy of an old one, overtaken on its way
		}
		p.snapshot = snapshotRef{offset: r.base, generation: g.at.generation, pos: r.pos, length: r.length, crc: r.crc}
		if r.length == 0 {
			p.snapshot = snapshotRef{}
		}
		g.parts = append(g.parts, p)
	case kindDrop:
		p.dropped = true
		p.setStuck(l, false)
		for i := range p.pieces {
			p.discount(l, &p.pieces[i])
		}
		p.pieces, p.snapshot = nil, snapshotRef{}
		delete(l.applied, p.id)
	default:
		p.hole = true // whatever it said is missing
		l.corrupt("record of unknown kind %d", r.kind)
	}
}

// weigh brings its part of the control state up to date. A partition whose PARTITION_MAP is queued counts as Create has
// counted it.
func (p *part) weigh(l *Log) {
	n := p.control
	switch {
	case p.dropped:
		n = 0
	case p.known:
		n = controlBytes(p.lineage)
	}
	l.controlSize.Add(n - p.control)
	p.control = n
}

// suspect says that acknowledged records may be missing.
func (p *part) suspect() bool { return p.hole || p.appliedEnd < p.claimedEnd }

// endsAt takes note that the log of this partition ended at offset when the record at hand was written. If that is
// where it ends here, whatever blocks may be missing held nothing of it that counts.
func (p *part) endsAt(l *Log, offset int64) {
	if offset < p.claimedEnd {
		p.cutFrom(l, offset)
	}
	if offset < p.appliedEnd { // the record of a truncation is missing
		p.appliedEnd = offset
		p.lineage = p.lineage.TruncateEnd(offset)
	}
	p.claimedEnd, p.hole = offset, false
}

// applyMap takes over the control state that a PARTITION_MAP record holds.
func (p *part) applyMap(l *Log, m *partitionMap) {
	p.topicID, p.index = m.topicID, m.index
	p.lineage, p.appliedHW, p.snapshot = m.lineage, m.hw, m.snapshot
	p.appliedStart = max(p.appliedStart, m.start)
	if !p.known {
		// The first sight of it: what pieces there are came from the footers of older segments.
		p.known, p.claimedEnd = true, m.end
		p.cutFrom(l, m.end)
		p.cutBelow(l, p.appliedStart)
		p.appliedEnd = p.contiguous(p.appliedStart)
		p.hole = m.hole
		return
	}
	p.endsAt(l, m.end)
	p.hole = m.hole
	p.cutBelow(l, p.appliedStart)
}

// partitionMap is the control state as a record.
func (p *part) partitionMap() partitionMap {
	return partitionMap{
		topicID: p.topicID, index: p.index, start: min(p.appliedStart, p.claimedEnd), end: p.claimedEnd, hw: p.appliedHW,
		hole: p.hole, snapshot: p.snapshot, lineage: p.lineage,
	}
}

// applyReclaim forgets what segments up to a generation hold: nothing that counts, since TRIM and CARRY records come
// before.
func (l *Log) applyReclaim(generation uint64) {
	l.segMu.Lock()
	var parts []*part
	for _, g := range l.segments {
		if g.at.generation <= generation {
			parts = append(parts, g.parts...)
		}
	}
	l.segMu.Unlock()
	for _, p := range parts {
		p.mu.Lock()
		for i := 0; i < len(p.pieces); i++ {
			if x := &p.pieces[i]; x.seg.at.generation <= generation {
				p.discount(l, x)
				p.pieces = slices.Delete(p.pieces, i, i+1)
				i--
			}
		}
		if p.snapshot.length > 0 && p.snapshot.generation <= generation {
			p.snapshot = snapshotRef{}
		}
		p.mu.Unlock()
	}
}

// truncateAhead is what a truncation does to what callers see. Called with p.mu held.
func (l *Log) truncateAhead(p *part, offset int64) {
	if offset >= p.end {
		return
	}
	n := 0
	for n < p.mem.n && p.mem.at(p.mem.n-1-n).base >= offset {
		n++
	}
	l.forgetLast(p, n)
	if p.mem.n > 0 {
		// A cut inside an append, which holds several batches: what is kept of it is below end.
		if c := p.mem.at(p.mem.n - 1); c.next > offset {
			c.next, c.cut = offset, true
		}
	}
	p.end = offset
	p.start = min(p.start, offset)
	p.hw = min(p.hw, offset)
}

// ring is a queue that grows and keeps its memory.
type ring[T any] struct {
	buf     []T // length a power of two
	head, n int
}

func (r *ring[T]) at(i int) *T { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring[T]) push(v T) {
	if r.n == len(r.buf) {
		grown := make([]T, max(2*len(r.buf), 2))
		for i := range r.n {
			grown[i] = *r.at(i)
		}
		r.buf, r.head = grown, 0
	}
	r.n++
	*r.at(r.n - 1) = v
}

func (r *ring[T]) popFront() T {
	v := *r.at(0)
	var zero T
	*r.at(0) = zero
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	r.shrink()
	return v
}

func (r *ring[T]) popBack() T {
	v := *r.at(r.n - 1)
	var zero T
	*r.at(r.n - 1) = zero
	r.n--
	r.shrink()
	return v
}

// shrink gives the memory of a long queue back once it is empty: ten thousand idle partitions hold nothing.
func (r *ring[T]) shrink() {
	if r.n == 0 && len(r.buf) > 8 {
		r.buf, r.head = nil, 0
	}
}
