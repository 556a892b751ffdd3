package wal

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/vfs"
)

const (
	// maxBlockBytes bounds the payloads of one block: a longer one gains nothing per byte and keeps its waiters
	// longer. A single append above it makes a block of its own.
	maxBlockBytes = 16 << 20
	// maxBlockRecords bounds the items of a block, and the high watermarks that go with them: twice as many records
	// are what a reader accepts, who must allocate for the descriptors before it knows that they are valid.
	maxBlockRecords = 1 << 15
	// maxRunBytes is the length up to which appends that follow each other in a block become one record. A reader
	// reads and verifies a record as a whole, so this is what a read costs at least.
	maxRunBytes = 256 << 10

	// minApart is how many records are worth two calls in place of one, so that they are applied while they are written.
	minApart = 16

	defaultIdle = 100 * time.Millisecond
)

// writer is the state of the one goroutine that writes. One block is in flight: more would make blocks small, since
// what gathers behind a sync is what makes the next block large.
type writer struct {
	running bool // beside its callers: this is no start any more
	active  *segment
	round   uint64
	seq     uint64 // of the last block written, which is durable when the next is laid out

	items  []item // being written
	left   []item // taken from the queue, for the next block
	groups []group
	recs   []record
	head   []byte // header and descriptors
	vector [][]byte
	iov    [][]byte      // vector, for the call that consumes it
	seen   chan struct{} // of space, when take looked: closed once that has changed
	region *region       // where the payloads of items and left lie; nil: nowhere
	staged struct {
		ok       bool // the block is written from there
		from, to int  // its payloads
	}
	pad    [pageSize]byte
	dirty  []*part
	seeds  shifted
	claim  bool // the log has been idle
	refuse bool // closed without room for what is queued
	blank  bool // the last block was empty: it claimed the one before, and nothing is left to claim
}

// group is a partition's items in the block, linked through item.follow.
type group struct{ first, last int32 }

// write is the writer goroutine.
func (l *Log) write() {
	defer close(l.writerEnd)
	defer close(l.completed)
	l.w.running = true
	idle := time.NewTimer(time.Hour)
	defer idle.Stop()
	for {
		work, blocked, closed := l.take()
		failed := l.failed.Load() != nil
		switch {
		case work && failed:
			// Durable or not: nobody can tell any more, so nobody is told that it is.
		case work:
			if err := l.writeItems(); err != nil {
				l.fail(err)
			}
		case blocked:
			l.awaitSpace()
			continue
		case failed:
			if closed {
				return
			}
			l.sleep(nil)
			continue
		case closed:
			if l.w.blank && len(l.w.dirty) == 0 {
				return
			}
			if err := l.writeItems(); err != nil {
				l.fail(err)
			}
			continue
		default:
			// An idle log claims its last block with an empty one: else a bit that flips in the last acknowledged
			// block would make it look torn, and it would be cut off as if nobody had been told.
			owed := !l.w.blank || len(l.w.dirty) > 0
			switch {
			case owed && l.w.claim && l.begins(l.w.active.room(len(l.w.dirty), len(l.w.dirty)), alignUp(int64(blockHeaderSize+len(l.w.dirty)*descriptorSize))):
				l.w.claim = false
				if err := l.writeItems(); err != nil {
					l.fail(err)
				}
				l.mu.Lock()
				l.wrote()
				l.mu.Unlock()
			case owed:
				idle.Reset(l.o.idle)
				l.w.claim = !l.sleep(idle.C)
			default:
				l.w.claim = false
				l.sleep(nil)
			}
			continue
		}
		l.finish()
	}
}

// take moves what is queued into w.items, as much as one block may hold. blocked: there is something, and no room for
// it. It never sleeps.
func (l *Log) take() (work, blocked, closed bool) {
	w := &l.w
	l.mu.Lock()
	if len(l.urgent) > 0 {
		n := l.oneBlock(l.urgent)
		w.items, l.urgent = l.urgent[:n:n], l.urgent[n:]
		l.mu.Unlock()
		return true, false, false
	}
	closed = l.closed
	if len(w.left) == 0 {
		w.dirty = append(w.dirty, l.dirty...)
		clear(l.dirty)
		l.dirty = l.dirty[:0]
		if len(l.queue) > 0 {
			w.left = l.queue
			l.queue = nil
			if w.region != nil {
				w.region.end = regionHead
				w.region, l.filling = l.filling, w.region
			}
			select {
			case l.queue = <-l.recycled:
			default:
			}
		}
	}
	l.mu.Unlock()
	if w.region != nil {
		w.region.wait()
	}
	n := l.oneBlock(w.left)
	if n == 0 {
		return false, false, closed
	}
	bytes := 0
	for i := range w.left[:n] {
		bytes += len(w.left[i].payload)
	}
	recs := n + min(len(w.dirty), maxBlockRecords)
	size := alignUp(int64(blockHeaderSize + recs*descriptorSize + bytes))
	if w.region != nil {
		size += pageSize // payloads may begin on one
	}
	room := w.active.room(recs, recs)
	if w.refuse || !l.begins(room, size) {
		if !closed {
			return false, true, false
		}
		w.refuse = true // also what would fit: nothing overtakes
		for i := range w.left[:n] {
			w.left[i].err = fmt.Errorf("%w: %w", ErrClosed, ErrNoSpace)
		}
	}
	if n == len(w.left) {
		w.items, w.left = w.left, nil // with its room, for the next that are queued
	} else {
		w.items, w.left = w.left[:n:n], w.left[n:]
	}
	return true, false, false
}

// begins says whether a block may be written that does not make space.
func (l *Log) begins(room, size int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.seen = l.space.changed
	return l.space.begins(room, size, l.failed.Load() != nil, l.closed)
}

// oneBlock says how many of the items go into one block: a bounded number of them, and of bytes, counting what each
// adds to block and footer, so that many small ones fit into a segment, too. A single one may be larger.
func (l *Log) oneBlock(items []item) int {
	n, bytes := 0, 0
	for n < len(items) && n < maxBlockRecords {
		bytes += len(items[n].payload) + descriptorSize + footerPieceSize + footerRunSize
		if n > 0 && bytes > l.blockBytes {
			break
		}
		n++
	}
	return n
}

// awaitSpace waits until there may be room, or something urgent to write.
func (l *Log) awaitSpace() {
	l.mu.Lock()
	if len(l.urgent) > 0 || l.closed || l.failed.Load() != nil {
		l.mu.Unlock()
		return
	}
	changed := l.w.seen
	l.waiting, l.deep = true, false
	l.mu.Unlock()
	l.poke(l.keep)
	woken := false
	select {
	case <-l.wake:
		woken = true
	case <-changed:
	case <-time.After(time.Second):
		l.log.Warn("write-ahead log: control records wait for space", "dir", l.o.Dir, "max_bytes", l.o.MaxBytes)
	}
	if woken {
		return
	}
	l.mu.Lock()
	sent := !l.waiting
	l.waiting = false
	l.mu.Unlock()
	if sent {
		<-l.wake
	}
}

// sleep waits until something is queued, or the log is closed, or timeout fires: then it returns false.
func (l *Log) sleep(timeout <-chan time.Time) bool {
	l.mu.Lock()
	if len(l.queue) > 0 || len(l.urgent) > 0 || l.closed {
		l.mu.Unlock()
		return true
	}
	if timeout == nil && len(l.dirty) > 0 {
		l.mu.Unlock()
		return true
	}
	l.waiting, l.deep = true, timeout == nil
	l.mu.Unlock()
	select {
	case <-l.wake:
		return true
	case <-timeout:
	}
	l.mu.Lock()
	woken := !l.waiting
	l.waiting = false
	l.mu.Unlock()
	if woken {
		<-l.wake // somebody has sent, or is about to
	}
	return woken
}

// wrote takes note of what room is left after a block. Called with mu held.
func (l *Log) wrote() {
	l.space.left, l.space.writing = l.w.active.room(0, 0), 0
	l.setRoom()
	if l.space.unkept {
		l.space.unkept = false
		l.poke(l.keep)
	}
}

// finish hands the items of a block, durable or failed, to the completer, and gives their room back.
func (l *Log) finish() {
	w := &l.w
	var bytes int64
	for i := range w.items {
		bytes += w.items[i].reserved
	}
	l.mu.Lock()
	l.wrote() // first, or it could be taken twice
	l.reserved.Add(-bytes)
	l.grant()
	l.mu.Unlock()
	l.completed <- w.items
	w.items = nil
}

// complete is the completer goroutine: it tells callers, so that what they do then cannot hold up the next block.
func (l *Log) complete() {
	defer l.wg.Done()
	for items := range l.completed {
		failed := l.Failed()
		if l.o.Events.Telling != nil {
			l.o.Events.Telling(true)
		}
		for i := range items {
			it := &items[i]
			err := it.err
			if err == nil {
				err = failed
			}
			if it.buf != nil {
				it.buf.Release()
			}
			if it.done != nil {
				it.done(err)
			}
		}
		if l.o.Events.Telling != nil {
			l.o.Events.Telling(false)
		}
		if failed == nil {
			l.trimCache(items)
		}
		clear(items)
		select {
		case l.recycled <- items[:0]:
		default:
		}
	}
}

// writeItems makes one block of w.items: it lays it out, writes it, syncs it, and applies it. When it returns nil,
// and not before, everything in it is durable.
func (l *Log) writeItems() error {
	w := &l.w
	l.group()
	l.layOut()
	if len(w.recs) == 0 && len(w.items) > 0 {
		return nil // all of them were refused
	}
	w.blank = len(w.recs) == 0
	size := w.size()
	if !l.fitsBlock(size) {
		if err := l.roll(); err != nil {
			return err
		}
		if !l.fitsBlock(size) {
			return fmt.Errorf("block of %d bytes does not fit into a segment of %d beside the control state of %d partitions", size, w.active.size, l.partitions())
		}
	}
	if err := l.emit(); err != nil {
		return err
	}
	l.applyRecords()
	if l.indexBytes.Load() > l.o.IndexBytes && int64(w.active.runs)*runBytes > l.o.IndexBytes/2 {
		// Over budget by the active segment alone, whose runs must stay in memory: seal it early. Not when files are
		// scarce: what gives segments back goes through here, and would wait for the file that it is to bring, or fill half
		// empty files as fast as it frees them.
		l.mu.Lock()
		plenty := l.space.spares > reserveSegments && l.space.canGrow()
		l.mu.Unlock()
		if plenty {
			return l.roll()
		}
	}
	return nil
}

// applyRecords applies the records of the block that was laid out, once. What they change is in memory, and nothing that
// follows from it can be written before they are durable, as all is written in the order of the log; so it does no harm if
// that is still under way. If it fails, nothing is written any more.
func (l *Log) applyRecords() {
	w := &l.w
	for i := range w.recs {
		l.apply(w.active, &w.recs[i])
		w.recs[i] = record{}
	}
	w.recs = w.recs[:0]
}

func (l *Log) fitsBlock(size int64) bool {
	w := &l.w
	return alignUp(size) <= w.active.room(len(w.recs), len(w.recs))
}

// group links the items of each partition, in the order of the queue, so that a partition is one run in a block.
func (l *Log) group() {
	w := &l.w
	w.round++ // not the sequence: a block may come to nothing
	w.groups = w.groups[:0]
	for i := range w.items {
		it := &w.items[i]
		it.follow = -1
		if it.err != nil {
			continue
		}
		p := it.p
		if p == nil {
			w.groups = append(w.groups, group{int32(i), int32(i)})
			continue
		}
		if p.block != w.round {
			p.block, p.group = w.round, int32(len(w.groups))
			w.groups = append(w.groups, group{int32(i), int32(i)})
			continue
		}
		g := &w.groups[p.group]
		w.items[g.last].follow = int32(i)
		g.last = int32(i)
	}
}

// layOut makes the records of the block from its items, and the vector of what is to be written from their payloads,
// which are not copied. Appends that follow each other become one record. Items are in the order of the queue where they are
// written from the region, and else partition by partition.
func (l *Log) layOut() {
	w := &l.w
	w.recs, w.vector = w.recs[:0], append(w.vector[:0], nil) // the first is the head
	w.staged.from, w.staged.to, w.staged.ok = l.staged(w.items)
	if w.staged.ok {
		for i := range w.items {
			if it := &w.items[i]; it.err == nil {
				l.addRecord(it)
			}
		}
	} else {
		for _, g := range w.groups {
			for i := g.first; i >= 0; i = w.items[i].follow {
				l.addRecord(&w.items[i])
			}
		}
	}
	// As many as a reader accepts beside the rest; the others go with the next block. Beside what makes space there are none: it has what it
	// was promised.
	dirty := w.dirty[:min(len(w.dirty), maxBlockRecords)]
	if len(w.items) > 0 && w.items[0].urgent {
		dirty = nil
	}
	for _, p := range dirty {
		p.mu.Lock()
		hw, dropped := p.hw, p.dropped
		p.hwDirty = false
		p.mu.Unlock()
		if !dropped {
			w.recs = append(w.recs, record{descriptor: descriptor{kind: kindHighWatermark, partition: p.id, base: hw}, p: p})
		}
	}
	n := copy(w.dirty, w.dirty[len(dirty):])
	clear(w.dirty[n:])
	w.dirty = w.dirty[:n]
}

// addRecord makes a record of an item, or makes the last record longer.
func (l *Log) addRecord(it *item) {
	w := &l.w
	if it.carried && !it.p.uncut(it.cuts) || it.from > 0 && it.p.snapshotIn() != it.from {
		it.err = errStale
		return
	}
	if len(it.payload) > 0 && !w.staged.ok {
		w.vector = append(w.vector, it.payload)
	}
	if n := len(w.recs); n > 0 && it.kind == kindData {
		r := &w.recs[n-1]
		if r.kind == kindData && r.p == it.p && r.epoch == it.epoch && r.next == it.base && int(r.length)+len(it.payload) <= maxRunBytes {
			r.next, r.maxTS = it.next, max(r.maxTS, it.maxTS)
			r.length += uint32(len(it.payload))
			r.sum, r.shift = crc32c.Then(r.sum, it.sum, it.shift), 0
			return
		}
	}
	d := descriptor{kind: it.kind, epoch: it.epoch, base: it.base, next: it.next, maxTS: it.maxTS, length: uint32(len(it.payload))}
	if it.p != nil {
		d.partition = it.p.id
	}
	r := record{descriptor: d, p: it.p, summed: it.kind == kindData, sum: it.sum, shift: it.shift}
	if it.kind == kindPartitionMap {
		r.payload = it.payload
	}
	w.recs = append(w.recs, r)
}

// headSpace is how much the head of the block takes that was laid out, with the rest of its last page if the payloads begin
// on one.
func (w *writer) headSpace() int64 {
	return blockHeader{count: uint32(len(w.recs)), paged: w.staged.ok}.payloadsAt()
}

// size is how long the block is that was laid out.
func (w *writer) size() int64 {
	n := w.headSpace()
	for i := range w.recs {
		n += int64(w.recs[i].length)
	}
	return n
}

// emit writes and syncs the block that was laid out.
func (l *Log) emit() error {
	w, g := &l.w, l.w.active
	n, size := len(w.recs), l.encode()
	defer l.waits()()
	if err := l.writeVector(g, alignUp(size)); err != nil {
		return fmt.Errorf("write block %d at %d of segment %d: %w", w.seq+1, g.end, g.at.generation, err)
	}
	begin := time.Now()
	if err := g.file.Sync(); err != nil {
		return fmt.Errorf("sync block %d of segment %d: %w", w.seq+1, g.at.generation, err)
	}
	took := time.Since(begin)
	w.seq++
	g.end += alignUp(size)
	g.lastSeq = w.seq
	l.stats.syncs.Add(1)
	l.stats.blocks.Add(1)
	l.stats.bytes.Add(size)
	l.stats.records.Add(int64(n))
	if l.o.Events.Block != nil {
		l.o.Events.Block(n, alignUp(size), took)
	}
	return nil
}

// encode makes the head of the block, and completes the vector. It returns the block's size.
func (l *Log) encode() int64 {
	w, g := &l.w, l.w.active
	headSize := blockHeaderSize + len(w.recs)*descriptorSize
	if cap(w.head) < headSize {
		w.head = make([]byte, 2*headSize)
	}
	w.head = w.head[:headSize]
	// Payloads and records are in the same order, so a record's checksum runs over the next payloads until its
	// length is reached.
	pos := g.end + w.headSpace()
	v := 1
	for i := range w.recs {
		r := &w.recs[i]
		r.pos, r.crc = pos, g.seed
		for n := uint32(0); n < r.length && !w.staged.ok; v++ {
			if !r.summed {
				r.crc = checksum(r.crc, w.vector[v])
			}
			n += uint32(len(w.vector[v]))
		}
		if r.summed {
			if r.shift == 0 {
				r.shift = crc32c.ShiftOf(int(r.length))
			}
			r.crc = w.seeds.by(g.seed, r.length, r.shift) ^ r.sum
		}
		pos += int64(r.length)
		r.encode(w.head[blockHeaderSize+i*descriptorSize:])
	}
	size := pos - g.end
	encodeBlockHead(w.head, blockHeader{seq: w.seq + 1, durable: w.seq, timeMs: time.Now().UnixMilli(), body: uint32(size - blockHeaderSize), count: uint32(len(w.recs)), paged: w.staged.ok}, g.at, g.seed)
	w.vector[0] = w.head
	if w.staged.ok {
		w.vector[0] = w.region.block(w.head, w.staged.from, w.staged.to)
	} else if pad := alignUp(size) - size; pad > 0 {
		w.vector = append(w.vector, w.pad[:pad])
	}
	return size
}

// shifted keeps what a segment's seed becomes before payloads of some lengths: most are of few lengths, and a multiplication
// takes as long as everything else that is done for a small record here.
type shifted struct {
	seed uint32
	kept [256]struct {
		shift crc32c.Shift
		seed  uint32
	}
}

func (s *shifted) by(seed, length uint32, shift crc32c.Shift) uint32 {
	if s.seed != seed {
		*s = shifted{seed: seed}
	}
	k := &s.kept[length%uint32(len(s.kept))]
	if k.shift != shift {
		k.shift, k.seed = shift, crc32c.Then(seed, 0, shift)
	}
	return k.seed
}

// writeVector writes w.vector at the end of the segment. The records of a block that is written from the region are applied
// meanwhile, if they are many and the file can do that.
func (l *Log) writeVector(g *segment, size int64) error {
	w := &l.w
	var n int64
	var err error
	if f, ok := g.file.(vfs.AsyncWriter); ok && w.staged.ok && len(w.recs) >= minApart && f.BeginWrite(w.vector[0], g.end) {
		l.applyRecords()
		if n, err = f.EndWrite(); errors.Is(err, vfs.ErrInFlight) {
			w.region = nil // for good
		}
	} else {
		w.iov = append(w.iov[:0], w.vector...)
		n, err = g.file.WriteVAt(w.iov, g.end)
	}
	// A write that ends early without saying why is continued once: writing the same bytes to the same place again is
	// harmless, unlike a second fsync.
	if err != nil && errors.Is(err, io.ErrShortWrite) && n < size {
		rest := n
		w.iov = w.iov[:0]
		for _, b := range w.vector {
			if rest >= int64(len(b)) {
				rest -= int64(len(b))
				continue
			}
			w.iov = append(w.iov, b[rest:])
			rest = 0
		}
		var more int64
		more, err = g.file.WriteVAt(w.iov, g.end+n)
		n += more
	}
	clear(w.vector)
	clear(w.iov)
	if err == nil && n != size {
		err = io.ErrShortWrite
	}
	return err
}

// roll seals the active segment and begins the next one, whose first blocks are the control state of all partitions:
// from then on no older segment is needed for it.
func (l *Log) roll() error {
	w := &l.w
	recs, vector, staged := w.recs, w.vector, w.staged // of the block that waits
	w.recs, w.vector, w.staged.ok = nil, nil, false
	if w.active != nil && !w.active.sealed {
		if err := l.seal(w.active); err != nil {
			return err
		}
	}
	file, err := l.takeSpare()
	if err != nil {
		return err
	}
	generation := uint64(1)
	if w.active != nil {
		generation = w.active.at.generation + 1
	}
	g, err := l.begin(file, generation, w.seq+1)
	if err != nil {
		return err
	}
	w.active = g
	l.segMu.Lock()
	l.segments = append(l.segments, g)
	l.segMu.Unlock()
	if err := l.checkpoint(); err != nil {
		return err
	}
	w.recs, w.vector, w.staged = recs, vector, staged
	l.evictRuns()
	l.mu.Lock()
	l.space.left = g.room(0, 0)
	l.spaceChanged()
	l.mu.Unlock()
	if l.o.Events.Rolled != nil {
		l.o.Events.Rolled(generation)
	}
	l.poke(l.keep)
	l.poke(l.rolled)
	return nil
}

var errControlState = errors.New("the control state does not fit")

// checkpoint writes the control state of every partition into the active segment, and the mark that it is whole.
// errControlState: there is no room for all of it. What was written of it is true and does no harm.
func (l *Log) checkpoint() error {
	w := &l.w
	parts := make([]*part, 0, len(l.applied))
	for _, p := range l.applied {
		parts = append(parts, p)
	}
	n, bytes := uint64(0), 0
	w.recs, w.vector = w.recs[:0], append(w.vector[:0], nil)
	add := func(p *part, d descriptor, payload []byte) {
		d.length = uint32(len(payload))
		w.recs = append(w.recs, record{descriptor: d, p: p})
		if len(payload) > 0 {
			w.vector = append(w.vector, payload)
		}
		bytes += len(payload) + descriptorSize
	}
	flush := func() error {
		size := w.size()
		if alignUp(size) > w.active.room(0, 0) {
			return fmt.Errorf("%w: that of %d partitions, into a segment of %d bytes; larger segments (wal.segment.bytes) would hold it", errControlState, len(parts), w.active.size)
		}
		err := l.emit()
		w.recs, w.vector, bytes = w.recs[:0], append(w.vector[:0], nil), 0
		return err
	}
	for _, p := range parts {
		p.mu.Lock()
		known := p.known
		m := p.partitionMap()
		p.mu.Unlock()
		if !known {
			continue // its PARTITION_MAP is in the queue
		}
		n++
		add(p, descriptor{kind: kindPartitionMap, partition: p.id, base: m.start}, m.append(nil))
		if bytes > 1<<20 || len(w.recs) >= maxBlockRecords {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	add(nil, descriptor{kind: kindCheckpoint}, checkpointEnd{l.maxID + 1, n}.encode())
	return flush()
}

var errStale = errors.New("wal: what was to be carried has changed")

// uncut says that no truncation has become durable since n had.
func (p *part) uncut(n uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.appliedCuts == n && !p.dropped
}

// snapshotIn is the segment that has the newest snapshot. A copy of one from before would take its place: the newer one may be of
// the same offset.
func (p *part) snapshotIn() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshot.generation
}

// takeSpare waits for a prepared file. Admission keeps two of them for control records, so waiting here means that
// those have been used up too.
func (l *Log) takeSpare() (string, error) {
	var warned bool
	for {
		l.mu.Lock()
		changed := l.space.changed
		l.mu.Unlock()
		l.segMu.Lock()
		if len(l.spares) > 0 {
			i := max(0, slices.IndexFunc(l.spares, func(s spare) bool { return !s.raw }))
			name := l.spares[i].name
			l.spares = slices.Delete(l.spares, i, i+1)
			n := len(l.spares)
			l.segMu.Unlock()
			l.mu.Lock()
			l.space.spares = n
			l.spaceChanged()
			l.mu.Unlock()
			return name, nil
		}
		l.segMu.Unlock()
		// The keeper may be waiting for this very block, to give a segment back: what readers have let go of since is
		// made ready here.
		if l.recycle() {
			continue
		}
		l.poke(l.keep)
		select {
		case <-changed:
		case <-l.stop:
			return "", fmt.Errorf("closed while waiting for space: %w", ErrNoSpace)
		case <-time.After(time.Second):
			if !warned {
				warned = true
				l.log.Error("no space left even for control records; everything waits", "dir", l.o.Dir, "max_bytes", l.o.MaxBytes)
			}
		}
	}
}
