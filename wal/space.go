package wal

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/varve/varve/wal/slab"
)

const (
	// reserveSegments are kept prepared for control records: a trim, a truncation or an epoch can be written when
	// nothing else can, and so can what it takes to give a segment back.
	reserveSegments = 2
	// spareTarget is how many files are kept prepared: the reserve, and enough to roll without waiting.
	spareTarget = reserveSegments + 2
	spareExtra  = 2

	defaultRetry = time.Second

	// What a look at the oldest segment may cost without a rest after it, and for which cost that grows.
	minLook = 20 * time.Microsecond
	maxLook = 10 * time.Millisecond
)

// space decides who may still append. Only prepared files count, so that what was admitted can be written whatever
// the disk says later. Guarded by Log.mu.
type space struct {
	segment  int64
	usable   int64 // of a prepared file: what is left for blocks beside the control state, with which it will begin
	maxFiles int
	left     int64 // in the active segment, for blocks
	spares   int   // prepared files
	files    int   // all
	leaving  int   // given back, and not prepared again yet: a read may hold them up
	diskFull bool  // the disk refused the last file
	noFiles  bool  // it could not be opened: too many are
	halted   bool  // nor could that which the writer waits for
	working  bool  // a segment is being given back
	promised int64 // to the keeper, for what it writes so that a segment can go
	unkept   bool  // no promise could be given when it asked: it asks again when a block is written
	writing  int64 // what the block of others takes that is under way, with what it leaves of a segment
	coming   bool  // more room is on its way: worth waiting for
	changed  chan struct{}
	full     bool // as last told
	refused  bool // a client, since there was last more room
}

// need is what must be left beside an append, by class: clients stop first, then internal topics, then replication.
func (s *space) need(c Class) int64 {
	return reserveSegments*s.usable + int64(max(ClassReplication-c, 0)+1)*s.segment/8
}

// ahead is how much can be written once so much has been that is on its way. What blocks add to their payloads is
// an allowance.
func (s *space) ahead(onItsWay int64) int64 {
	return s.left + int64(s.spares)*s.usable - onItsWay - onItsWay/16
}

// holds says whether as much can be written: into the active segment, into the next one, or into both, with what one block may leave.
func (s *space) holds(left int64, spares int, bytes int64) bool {
	return bytes <= left || spares > 0 && (bytes <= s.usable || bytes+s.segment/4 <= left+int64(spares)*s.usable)
}

// promise keeps so much for the keeper, if it can: else it would wait for the file that it is to bring.
func (s *space) promise(bytes int64) bool {
	if s.unkept = !s.holds(s.left-s.writing, s.spares, bytes); s.unkept {
		return false
	}
	s.promised = bytes
	return true
}

// begins takes note of a block of others than the keeper that is to be written, unless it would take what is promised. room is that of the
// active segment. With no file prepared, most of it is for what gives segments back, in any case; the last file is as long as that
// goes on. When the log is closed, nobody makes space any more that would need what was promised.
func (s *space) begins(room, block int64, anyway, closed bool) bool {
	left, spares, takes := room-block, s.spares, block
	if left < 0 {
		left, spares, takes = s.usable-block, spares-1, block+room
	}
	switch {
	case anyway:
	case s.spares == 0 && (spares < 0 || left < s.segment*5/8):
		return false
	case !closed && (s.working && s.spares == 1 && spares == 0 || s.promised > 0 && !s.holds(left, spares, s.promised)):
		return false
	}
	s.writing = takes
	return true
}

func (s *space) admits(c Class, bytes int64) bool { return !s.halted && s.ahead(bytes) >= s.need(c) }

// most is how much may be on its way so that a class is admitted: admits of most is true, unless it is 0.
func (s *space) most(c Class) int64 {
	if s.halted {
		return 0
	}
	return max(0, (s.ahead(0)-s.need(c))*16/17)
}

func (s *space) canGrow() bool { return !s.diskFull && !s.noFiles && s.files < s.maxFiles }

// isFull says that clients are refused.
func (s *space) isFull(onItsWay int64) bool {
	return !s.coming && (s.refused || !s.admits(ClassClient, onItsWay))
}

// update is called after every change.
func (s *space) update() {
	s.coming = !s.halted && (s.working || s.canGrow() && s.spares < spareTarget)
	close(s.changed)
	s.changed = make(chan struct{})
}

// spaceChanged is called after every change of space, with mu held.
func (l *Log) spaceChanged() {
	control := l.controlSize.Load()
	l.space.usable = l.space.segment - l.space.segment/16 - control - control/8
	l.space.update()
	l.setRoom()
}

// pressed says that segments should be given back although their data might still be wanted here: no more files may
// be made, and fewer are prepared, or about to be, than should be.
// forFiles: that is why; else it is the index alone, which copies do not make smaller.
func (l *Log) pressed() (pressed, forFiles bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.space
	forFiles = !s.canGrow() && s.spares+s.leaving < spareTarget
	return forFiles || l.indexBytes.Load() > l.o.IndexBytes, forFiles
}

// keeper is the goroutine that keeps files prepared and gives segments back.
func (l *Log) keeper() {
	defer l.wg.Done()
	l.mu.Lock()
	l.keeping = true
	l.mu.Unlock()
	defer l.setWorking(false)
	// A ticker: a timer that begins anew whenever there is something else to do would never end while producers come
	// back more often than it does.
	retry := time.NewTicker(l.o.retry)
	defer retry.Stop()
	for {
		for l.failed.Load() == nil && (l.recycle() || l.reclaimOldest() || l.prepare() || l.improve()) {
			l.tellFull()
			select {
			case <-l.stop:
				return
			default:
			}
		}
		l.lookForward()
		l.tellFull()
		// With many partitions a look costs something, and each of them asks for one when it has moved: at most a tenth
		// of the time is spent on looking in vain.
		if took := min(l.keeperState.took, maxLook); took > minLook {
			select {
			case <-time.After(9 * took):
			case <-l.stop:
				return
			}
		}
		l.keeperState.took = 0
		select {
		case <-l.keep:
		case <-retry.C:
			l.mu.Lock()
			again := l.space.diskFull || l.space.noFiles
			l.space.diskFull, l.space.noFiles = false, false
			if again {
				l.spaceChanged()
			}
			l.mu.Unlock()
		case <-l.stop:
			return
		}
	}
}

// tellFull reports when clients begin to be refused, and when they are not any more.
func (l *Log) tellFull() {
	l.mu.Lock()
	full := l.space.isFull(l.reserved.Load())
	changed := full != l.space.full
	l.space.full = full
	diskFull, noFiles := l.space.diskFull, l.space.noFiles || l.space.halted
	l.mu.Unlock()
	if !changed {
		return
	}
	if full {
		l.log.Warn("write-ahead log is full: clients are refused until segments can be given back", "disk_full", diskFull, "too_many_open_files", noFiles, "max_bytes", l.o.MaxBytes)
	} else {
		l.log.Info("write-ahead log has room again")
	}
	if l.o.Events.Full != nil {
		l.o.Events.Full(full)
	}
}

// prepare makes one file, if one is wanted and allowed. It says whether it did.
func (l *Log) prepare() bool {
	l.mu.Lock()
	want := l.space.spares < spareTarget && l.space.canGrow()
	if want {
		l.space.files++
	}
	l.mu.Unlock()
	if !want {
		return false
	}
	l.segMu.Lock()
	l.lastSpare++
	name := spareName(l.lastSpare)
	l.segMu.Unlock()
	made, err := l.makeSpare(name)
	if err == nil {
		l.keeperState.noFiles = false
		l.addSpare(made)
		return true
	}
	l.mu.Lock()
	l.space.files--
	l.space.diskFull, l.space.noFiles = isNoSpace(err), isNoFiles(err)
	l.spaceChanged()
	l.mu.Unlock()
	switch {
	case isNoFiles(err):
		if !l.keeperState.noFiles {
			l.keeperState.noFiles = true
			l.tellNoFiles(err)
		}
	case !isNoSpace(err) && !errors.Is(err, ErrClosed):
		l.fail(err)
	}
	return false
}

func (l *Log) tellNoFiles(err error) {
	l.log.Warn("write-ahead log: too many open files: clients are refused when the prepared files are used up; raise the limit of this process (ulimit -n, LimitNOFILE= of its unit) or of the machine (fs.file-max)", "dir", l.o.Dir, "err", err)
}

// addSpare counts a file that is ready; it is in space.files already.
func (l *Log) addSpare(s spare) {
	l.segMu.Lock()
	l.spares = append(l.spares, s)
	n := len(l.spares)
	l.segMu.Unlock()
	l.mu.Lock()
	l.space.spares, l.space.refused = n, false
	l.spaceChanged()
	l.mu.Unlock()
}

// recycle turns the file of a reclaimed segment into a prepared one, or removes it if there are enough. Its RECLAIM
// record is durable, so a crash here leaves a file that recovery knows to be free.
func (l *Log) recycle() bool {
	l.segMu.Lock()
	if len(l.retired) == 0 {
		l.segMu.Unlock()
		return false
	}
	g := l.retired[0]
	l.retired = l.retired[1:]
	// A few more than are made: what is removed would have to be filled with zeros again.
	keep := g.size == l.o.SegmentBytes && len(l.spares) < spareTarget+spareExtra
	l.lastSpare++
	free := spareName(l.lastSpare)
	l.segMu.Unlock()
	name := l.path(segmentName(g.at.generation))
	var err error
	if keep {
		err = l.fs.Rename(name, l.path(free))
	} else {
		err = l.fs.Remove(name)
	}
	if err == nil {
		// Before it is written again: else a crash could bring the old name back for the new bytes.
		err = l.dir.Sync()
	}
	if err != nil {
		l.fail(fmt.Errorf("recycle segment %d: %w", g.at.generation, err))
		return false
	}
	if keep {
		l.addSpare(spare{name: free})
		l.mu.Lock()
		l.space.leaving--
		l.mu.Unlock()
		return true
	}
	l.mu.Lock()
	l.space.leaving--
	l.space.files--
	l.space.diskFull, l.space.noFiles = false, false
	l.spaceChanged()
	l.mu.Unlock()
	return true
}

// holding is what a segment has of a partition.
type holding struct {
	p            *part
	live, pinned int64 // bytes: readable; of these, not in object storage
	cost         int64 // what must be written before the segment may go: copies, and the record that says what is not here
	from         int64 // offset from which they are pinned
	some         bool  // if only below the start: the record that says so may not be durable
	snapshot     bool
	dropping     bool
}

// holdings looks at every partition that has something in a sealed segment. What it returns is the keeper's, until the
// next call.
func (l *Log) holdings(g *segment) []holding {
	k := &l.keeperState
	k.look++
	out := k.holdings[:0]
	for _, p := range g.parts {
		if p.look == k.look {
			continue
		}
		p.look = k.look
		p.mu.Lock()
		h := holding{p: p, from: max(p.start, p.reclaimable), snapshot: p.snapshot.length > 0 && p.snapshot.generation == g.at.generation, cost: descriptorSize}
		if h.snapshot {
			h.cost += int64(p.snapshot.length) + descriptorSize
		}
		for i := range p.pieces {
			if x := &p.pieces[i]; x.seg == g {
				h.some = true
				if x.next > p.start {
					h.live += x.bytes
				}
				if x.next > h.from {
					h.pinned += x.bytes
					h.cost += x.copyCost()
				}
			}
		}
		if p.dropped {
			// If it still has pieces, the DROP record is queued; it must be durable before the data goes.
			h = holding{p: p, dropping: len(p.pieces) > 0}
		}
		p.mu.Unlock()
		if h.some || h.snapshot || h.dropping {
			out = append(out, h)
		}
	}
	k.holdings = out
	return out
}

// reclaimOldest gives the oldest segment back if nothing in it is wanted, or if space is needed and everything in it
// is in object storage, but for a part small enough to be carried. It says whether anything changed.
//
// What makes this safe is order. Copies of what is still needed are durable first, then the TRIM records that say
// what is not here any more, then the RECLAIM record; only then is the file touched. A sealed segment gains nothing,
// and what was once reclaimable remains so, so what was found needless stays needless.
func (l *Log) reclaimOldest() (changed bool) {
	defer func() {
		if !changed {
			l.setWorking(false) // else it goes on: who waits for room is not refused in between
		}
	}()
	l.segMu.Lock()
	var g *segment
	// The newest sealed segment stays: it has the checkpoint that recovery goes back to if the active segment's own
	// is damaged.
	if len(l.segments) > 2 {
		g = l.segments[0]
	}
	l.segMu.Unlock()
	if g == nil {
		return false
	}
	begin := time.Now()
	hs := l.holdings(g)
	l.keeperState.took = time.Since(begin)
	var live, pinned, need int64
	most := holding{}
	l.mu.Lock()
	spares, files := l.space.spares, l.space.files
	scarce := spares <= reserveSegments || l.space.refused
	l.mu.Unlock()
	blocked := spares == 0
	l.segMu.Lock()
	read := files > len(l.segments)+len(l.spares)+len(l.retired)
	l.segMu.Unlock()
	if blocked && read {
		return false // a read holds up a file, or one is being made: that is the room that is wanted
	}
	for _, h := range hs {
		if h.dropping && !blocked {
			return false // until the record is durable
		}
		live, pinned, need = live+h.live, pinned+h.pinned, need+h.cost
		if h.pinned > most.pinned {
			most = h
		}
	}
	if pressed, forFiles := l.pressed(); live > 0 && !pressed || pinned > 0 && !forFiles {
		return false
	}
	// Copying more than half would not free enough to be worth it: what counts is all that it takes, or small batches
	// would be copied round and round for nothing. With no file prepared, the copies must fit into the rest of the active
	// segment, or they would wait for the file that they are to bring; and there must be room left to give back another
	// segment that needs no copies. When nothing is left but the reserve, what counts is what comes after this segment, too:
	// a partition that cannot be uploaded may fill segments in one stretch, and would be in the way of all others.
	need -= int64(len(hs)) * descriptorSize
	fits := true
	if pinned > 0 && !l.carriable(g, need) {
		if fits = scarce; fits {
			_, _, fits = l.rotatable()
		}
	}
	// What is written of it: the TRIM records with what each adds to the footer, and what fills the last pages of its blocks.
	blocks := need / l.carryBytes()
	all := need + int64(len(hs))*cost(0) + (5+blocks+min(3+blocks, g.size/(32*pageSize)))*pageSize
	if fits {
		l.mu.Lock()
		fits = l.space.promise(all) || need == 0
		l.mu.Unlock()
		defer l.promise(0)
	}
	if !fits {
		l.isPinned(most)
		return false
	}
	l.setWorking(true)
	if err := l.carry(g, hs, all); err != nil {
		if errors.Is(err, errStale) {
			return l.lookAgain()
		}
		if l.failed.Load() == nil && !errors.Is(err, ErrClosed) {
			l.log.Error("segment cannot be given back: what is still needed of it cannot be copied", "generation", g.at.generation, "err", err)
			l.isPinned(most)
		}
		return false
	}
	if err := l.giveBack(g, hs); err != nil {
		return errors.Is(err, errStale) && l.lookAgain()
	}
	return true
}

// carriable says whether copying so much is worth the segment that it frees. The control state, with which each begins, takes its
// part of every one; and if what is copied is in one piece, two of them must fit into the place of two segments.
func (l *Log) carriable(g *segment, need int64) bool {
	return need <= (g.size-6*pageSize-l.controlSize.Load())/2
}

// rotatable says whether copying what is needed of every sealed segment would bring room: a quarter of what is written
// in them, beside the control state, which is written anew, is not needed. Each byte that is made room for so costs at most three that are copied. need is what is copied, and waits
// that of partitions that are not stuck.
func (l *Log) rotatable() (need, waits int64, ok bool) {
	begin := time.Now()
	defer func() { l.keeperState.took += time.Since(begin) }()
	var written int64
	control := l.controlSize.Load()
	l.segMu.Lock()
	n := len(l.segments) - 1
	active := l.segments[n].at.generation
	for _, g := range l.segments[:n] {
		written += max(0, g.end-segmentHeaderSize-control)
	}
	l.segMu.Unlock()
	for p := range l.parts.all() {
		p.mu.Lock()
		before := need
		if p.snapshot.length > 0 && p.snapshot.generation < active {
			need += int64(p.snapshot.length) + descriptorSize
		}
		from := max(p.start, p.reclaimable)
		for i := range p.pieces {
			if x := &p.pieces[i]; x.next > from && x.seg.at.generation < active && !p.dropped {
				need += x.copyCost()
			}
		}
		if !p.stuck {
			waits += need - before
		}
		p.mu.Unlock()
	}
	return need, waits, need <= written/4*3
}

// isPinned notes which partition has the most in a segment that cannot be given back.
func (l *Log) isPinned(h holding) {
	if h.p == nil {
		return
	}
	l.segMu.Lock()
	l.pinnedBy = h.p.id
	l.segMu.Unlock()
}

// lookForward finds out how many of the oldest segments may go when room is needed. What may go once may go for ever. Where
// one may not, and there will be no more files, it finds out whether what follows makes up for copying it.
func (l *Log) lookForward() {
	begin := time.Now()
	defer func() { l.keeperState.took += time.Since(begin) }()
	l.mu.Lock()
	bound := !l.space.canGrow()
	l.mu.Unlock()
	l.segMu.Lock()
	sealed := slices.Clone(l.segments[:max(0, len(l.segments)-1)])
	l.segMu.Unlock()
	needed, late := int64(math.MaxInt64), false
	defer func() { l.needed.Store(needed); l.late.Store(late) }()
	for _, g := range sealed {
		if g.at.generation <= l.free.Load() {
			continue
		}
		var pinned, need int64
		hs := l.holdings(g)
		for _, h := range hs {
			pinned, need = pinned+h.pinned, need+h.cost
		}
		if pinned > 0 && !l.carriable(g, need-int64(len(hs))*descriptorSize) {
			if bound {
				if need, waits, ok := l.rotatable(); ok {
					needed, late = need, waits > l.o.MaxBytes/8*3
				}
			}
			return
		}
		l.free.Store(g.at.generation)
	}
}

// staleWait is how long the keeper leaves to what has come between: about what a write takes.
const staleWait = time.Millisecond

// lookAgain waits a moment for what was in the way, and is true unless the log is being closed.
func (l *Log) lookAgain() bool {
	select {
	case <-time.After(staleWait):
		return true
	case <-l.stop:
		return false
	}
}

// setHalted says whether the writer waits for a file.
func (l *Log) setHalted(halted bool) {
	l.mu.Lock()
	l.space.halted = halted
	if !halted {
		l.space.refused = false
	}
	l.spaceChanged()
	l.mu.Unlock()
	l.poke(l.keep)
}

func (l *Log) setWorking(working bool) {
	l.mu.Lock()
	if l.space.working != working {
		l.space.working = working
		l.spaceChanged()
	}
	l.mu.Unlock()
}

// promise says that no more than so much is kept for the keeper any longer.
func (l *Log) promise(bytes int64) {
	l.mu.Lock()
	if l.space.promised > bytes {
		l.space.promised = bytes
		l.spaceChanged()
	}
	l.mu.Unlock()
}

// submit queues records that belong together and waits until they are durable.
func (l *Log) submit(items []item) error {
	if len(items) == 0 {
		return nil
	}
	done := make(chan error, len(items))
	for i := range items {
		it := &items[i]
		it.done = func(err error) { done <- err }
		it.urgent = true
		if it.p == nil {
			l.enqueue(it)
			continue
		}
		it.p.mu.Lock()
		if it.p.dropped && it.kind != kindDrop {
			it.err = errStale
		}
		if !l.enqueue(it) && it.buf != nil {
			it.buf.Release()
		}
		it.p.mu.Unlock()
	}
	var first error
	for range items {
		if err := <-done; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// carryBytes is how much is copied at a time.
func (l *Log) carryBytes() int64 { return min(4<<20, int64(l.blockBytes)) }

// carry copies to the end of the log what is still needed of a segment, which takes, with what giveBack writes, as much as was promised.
func (l *Log) carry(g *segment, hs []holding, promised int64) error {
	var items []item
	var bytes int64
	flush := func() error {
		err := l.submit(items)
		if err == nil {
			promised -= bytes
			l.promise(promised)
			l.stats.carried.Add(bytes)
			if l.o.Events.Carried != nil && bytes > 0 {
				l.o.Events.Carried(bytes)
			}
		}
		items, bytes = items[:0], 0
		return err
	}
	add := func(it item, buf *slab.Buf) error {
		it.carried, it.payload, it.buf = true, buf.Bytes(), buf
		items = append(items, it)
		bytes += int64(len(it.payload))
		if bytes >= l.carryBytes() {
			return flush()
		}
		return nil
	}
	for _, h := range hs {
		p := h.p
		p.mu.Lock()
		// A truncation that is queued is behind the copies, and cuts them as it would have cut what they are of; that one may be
		// waiting for the space that is being made here.
		cuts, ref, dropped := p.appliedCuts, p.snapshot, p.dropped
		topicID, index := p.topicID, p.index
		var pieces []piece
		for i := range p.pieces {
			if x := &p.pieces[i]; x.seg == g && x.next > h.from {
				c := *x
				c.runs = slices.Clone(x.runs)
				pieces = append(pieces, c)
			}
		}
		p.mu.Unlock()
		if dropped {
			continue
		}
		if ref.length > 0 && ref.generation == g.at.generation {
			it := item{kind: kindSnapshot, base: ref.offset, p: p, cuts: cuts, from: ref.generation, carried: true}
			buf, err := l.readTwice(g, ref.pos, ref.length, ref.crc)
			switch {
			case errors.Is(err, ErrCorrupt): // as if there had been none: the owner makes it from the records, and writes another when it has anything new
				l.log.Error("write-ahead log: a damaged producer snapshot is dropped", "topic_id", fmt.Sprintf("%x", topicID), "partition", index)
				items = append(items, it)
				l.poke(l.rolled)
			case err != nil:
				return fmt.Errorf("producer snapshot of local partition %d: %w", p.id, err)
			default:
				if err := add(it, buf); err != nil {
					return err
				}
			}
		}
		for i := range pieces {
			x := &pieces[i]
			runs := x.runs
			if runs == nil {
				var err error
				if runs, err = l.runsOf(g, &x.foot); err != nil {
					return err
				}
			}
			for _, r := range runs {
				if r.next <= max(h.from, x.base) || r.base >= x.next {
					continue
				}
				maxTS := r.maxTS
				buf, err := l.readTwice(g, int64(r.pos), r.length, r.crc)
				if errors.Is(err, ErrCorrupt) {
					// They are kept as they are, to be looked into, and marked: else all partitions would have to wait for what
					// only an operator can decide about one of them.
					maxTS = damagedTS
					if buf, err = l.readUnverified(g, int64(r.pos), r.length); err == nil {
						l.log.Error("write-ahead log: damaged records are carried along as they are, and not served; if no replica has them, `varve partition delete-records` up to where the damage ends has the rest uploaded",
							"topic_id", fmt.Sprintf("%x", topicID), "partition", index, "from", r.base, "to", r.next)
					}
				}
				if err != nil {
					return fmt.Errorf("local partition %d, offsets [%d, %d): %w", p.id, r.base, r.next, err)
				}
				if err := add(item{kind: kindCarry, base: max(r.base, x.base), next: min(r.next, x.next), maxTS: maxTS, p: p, cuts: cuts}, buf); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// giveBack writes down that a segment is gone, and lets go of it.
func (l *Log) giveBack(g *segment, hs []holding) error {
	var items []item
	for _, h := range hs {
		p := h.p
		p.mu.Lock()
		to := int64(-1)
		for i := range p.pieces {
			if p.pieces[i].seg == g {
				to = max(to, p.pieces[i].next)
			}
		}
		bound, dropped := max(p.start, p.reclaimable), p.dropped
		if !dropped && to > p.start && to <= bound {
			p.start = max(p.start, min(to, p.end)) // before the record: who reads now finds it in object storage
		}
		p.mu.Unlock()
		switch {
		case h.dropping:
			// A second one: the first may be behind what waits for the space that is being made here.
			items = append(items, item{kind: kindDrop, p: p})
		case dropped || to < 0:
		case to > bound:
			return errStale // a truncation of something that was carried; look again
		default:
			items = append(items, item{kind: kindTrim, base: to, p: p})
		}
	}
	if err := l.submit(items); err != nil && !errors.Is(err, errStale) {
		return err
	}
	if err := l.submit([]item{{kind: kindReclaim, base: int64(g.at.generation)}}); err != nil {
		return err
	}
	l.segMu.Lock()
	l.segments = l.segments[1:]
	l.segMu.Unlock()
	l.stats.reclaimed.Add(1)
	if l.o.Events.Reclaimed != nil {
		l.o.Events.Reclaimed(g.at.generation)
	}
	l.retire(g)
	return nil
}

// retire lets go of a segment that the log does not use any more; its file is free once the last read of it, and of those
// retired before it, has ended. Files go in the order of their generations, so that a crash leaves no gap between them:
// recovery need not go back to the records that say what was given back to know that nothing is missing.
func (l *Log) retire(g *segment) {
	l.mu.Lock()
	l.space.leaving++
	l.mu.Unlock()
	l.segMu.Lock()
	l.leaving = append(l.leaving, g)
	l.segMu.Unlock()
	g.onLast = func() {
		l.segMu.Lock()
		g.unread = true
		for len(l.leaving) > 0 && l.leaving[0].unread {
			l.retired = append(l.retired, l.leaving[0])
			l.leaving = l.leaving[1:]
		}
		l.segMu.Unlock()
		l.mu.Lock()
		l.spaceChanged()
		l.mu.Unlock()
		l.poke(l.keep)
	}
	g.release()
}

// evictRuns drops the runs of sealed segments from memory, oldest first, until the index fits its budget. They are
// read from the footers again when somebody asks.
func (l *Log) evictRuns() {
	if l.indexBytes.Load() <= l.o.IndexBytes {
		return
	}
	l.segMu.Lock()
	segments := slices.Clone(l.segments)
	l.segMu.Unlock()
	for _, g := range segments {
		if l.indexBytes.Load() <= l.o.IndexBytes*3/4 {
			return
		}
		if !g.sealed {
			continue // the active one, or one without a footer to read them from
		}
		for _, p := range g.parts {
			p.mu.Lock()
			for i := range p.pieces {
				if x := &p.pieces[i]; x.seg == g && x.runs != nil {
					l.indexBytes.Add(-int64(len(x.runs)) * runBytes)
					x.runs = nil
				}
			}
			p.mu.Unlock()
		}
	}
}

// checkpointer asks the owner for producer snapshots after a roll, beside the writer, whose queue they go through.
func (l *Log) checkpointer() {
	defer l.wg.Done()
	for {
		select {
		case <-l.rolled:
			if l.o.Checkpoint != nil && l.failed.Load() == nil {
				l.o.Checkpoint()
			}
		case <-l.stop:
			return
		}
	}
}

func (l *Log) corrupt(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	l.stats.corrupt.Add(1)
	l.log.Error("write-ahead log: corrupt", "dir", l.o.Dir, "what", what)
	if l.o.Events.Corrupt != nil {
		l.o.Events.Corrupt(what)
	}
}
