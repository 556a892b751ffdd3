// Package wal is the local log of a broker: one write-ahead log into which all its partitions are multiplexed, so
// that one fsync serves all of them.
//
// One goroutine writes. It takes everything that is queued, lays it out as one block, writes, syncs and applies it (or
// applies it while it is written), and only then are those told who wait. Meanwhile the next block gathers: that is the
// whole of group commit, without a timer.
//
// What the log knows of its partitions it knows from records: apply is the only place where a record changes state,
// and it is the same function for a record of the block that is made durable and for one that recovery has read. What
// callers see ahead of that (an end that counts what is queued, batches in memory) is kept apart from it.
//
// README.md has the bytes, the commit points, what a crash leaves, and what is not obvious.
package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

// PartitionID is a local partition id: one for each assignment of a partition to this log, never used again.
type PartitionID uint64

// Class says who is refused first when space runs out.
type Class int8

const (
	// ClassClient is what producers send.
	ClassClient Class = iota
	// ClassInternal is what the broker writes to its own topics.
	ClassInternal
	// ClassReplication is what a follower copies from a leader.
	ClassReplication
)

// What callers branch on.
var (
	// ErrNoSpace says that the log is at its bound, its disk full, or no more files may be opened, for appends of this
	// class. It passes when segments are reclaimed, or files closed.
	ErrNoSpace = errors.New("wal: no space")
	// ErrPartitionFull says that one partition holds more than its share of what cannot be reclaimed.
	ErrPartitionFull = errors.New("wal: partition holds more than its share of data that cannot be reclaimed")
	// ErrTooLarge says that an append does not fit into a segment.
	ErrTooLarge = errors.New("wal: append too large")
	// ErrOutOfRange says that an offset is below the local start or above the end, or that there is no such
	// partition.
	ErrOutOfRange = errors.New("wal: offset out of range")
	// ErrOrder says that an append does not begin where its partition ends.
	ErrOrder = errors.New("wal: append out of order")
	// ErrClosed says that the log is closed.
	ErrClosed = errors.New("wal: closed")
	// ErrFailed says that a write or an fsync has failed: nothing after it may be believed, and the process should
	// end.
	ErrFailed = errors.New("wal: failed")
	// ErrForeign says that the directory belongs to another cluster or broker.
	ErrForeign = errors.New("wal: the directory belongs to another broker")
	// ErrCorrupt says that stored bytes are not those that were written.
	ErrCorrupt = errors.New("wal: corrupt")
	// ErrVersion says that stored bytes are of a format that this program does not know.
	ErrVersion = errors.New("wal: unknown format version")
	// ErrLocked says that another process has the directory open.
	ErrLocked = vfs.ErrLocked
)

// Options of a log. Zero values get defaults.
type Options struct {
	FS        vfs.FS // nil: the operating system's
	Dir       string
	ClusterID string
	BrokerID  int32

	SegmentBytes int64 // of one file; 256 MiB, less when MaxBytes is below 16 of them
	MaxBytes     int64 // of all files together; 16 segments
	QueueBytes   int64 // waiting to be written; 64 MiB
	CacheBytes   int64 // of buffers kept for reading; 256 MiB
	IndexBytes   int64 // of the run index in memory; 64 MiB

	Logger *slog.Logger
	Events Events
	// Fatal is called once when the log has failed; the process should end.
	Fatal func(error)
	// Checkpoint is called, from a goroutine of the log, after a segment was begun: now is the time to append
	// producer snapshots of partitions that got data.
	Checkpoint func()

	// idle is how long the log waits before it claims its last block; see writer.
	idle time.Duration
	// paged lets a block be written from where its appenders have put its payloads although it takes another page for that.
	paged bool
	// retry is how long it waits before it tries again what a full disk, or the limit of open files, refused.
	retry time.Duration
}

// Events are called, if set, beside the path; they must not block.
type Events struct {
	Block     func(records int, bytes int64, sync time.Duration) // written and synced
	Rolled    func(generation uint64)                            // segment begun
	Reclaimed func(generation uint64)                            // segment given back
	Carried   func(bytes int64)                                  // copied so that a segment can go
	Corrupt   func(what string)
	Full      func(full bool) // clients are refused; or not any more
	// Telling is called with true before the callers of a block's appends are told that they are durable, and with
	// false after the last of them was: what they do can be put together in between.
	Telling func(bool)
}

// Log is a write-ahead log. Open makes it, Close ends it.
//
// Lock ordering: part.mu, then Log.mu. Log.segMu, partTable.mu and marksMu are taken alone or last. No I/O is done and nothing is
// waited for under any of them.
type Log struct {
	o    Options
	fs   vfs.FS
	log  *slog.Logger
	lock io.Closer
	dir  vfs.Dir
	id   identity

	fresh      bool
	cutTail    bool // this recovery cut off a block that was not blank
	damaged    bool // recovery missed blocks that had been durable
	recovered  []Recovered
	maxAppend  int64        // bytes of one append
	blockBytes int          // of payloads in a block, unless one append is larger
	share      int64        // what a partition that is stuck may hold
	stuck      atomic.Int64 // partitions that cannot be uploaded

	marksMu sync.Mutex
	marks   marks

	parts  partTable
	lastID atomic.Uint64 // given out to a partition
	// applied has the partitions as of the last block, and maxID the largest id that was ever seen. Of the
	// writer alone: a checkpoint must not know of what is still queued.
	applied map[PartitionID]*part
	maxID   PartitionID

	// reserved is the cost of what is reserved or queued and not yet durable. It grows without mu as long as it stays
	// within room of the class, which is set with mu held, before reserved falls when both do.
	reserved atomic.Int64
	room     [ClassReplication + 1]atomic.Int64
	cache    cache

	mu      sync.Mutex
	queue   []item
	filling *region // where the payloads of the queue are put; nil: nowhere
	urgent  []item  // of the keeper: overtakes the queue, so that space can be made when only that has room
	waiting bool    // the writer waits for wake
	deep    bool    // and for nothing else
	closed  bool
	dirty   []*part // partitions whose high watermark moved
	waiters []*waiter
	space   space
	keeping bool                          // the keeper runs
	looked  struct{ blocks, bytes int64 } // the keeper's: written when it last looked for a file to fill

	keeperState struct {
		look     uint64 // how often it has looked at a segment's partitions
		took     time.Duration
		holdings []holding
		noFiles  bool // was told, and no file has been made since
	}
	wake chan struct{}

	failed   atomic.Pointer[error]
	failedCh chan struct{}

	segMu     sync.Mutex
	segments  []*segment  // ascending by generation; the last is active
	spares    []spare     // prepared or recycled files, ready for use
	leaving   []*segment  // reclaimed, in that order, and read still, or behind one that is
	retired   []*segment  // reclaimed and not read any more
	lastSpare uint64      // number given to a prepared file
	pinnedBy  PartitionID // has the most in the oldest segment, which cannot go

	w         writer
	completed chan []item
	recycled  chan []item
	keep      chan struct{} // the keeper looks for something to do
	free      atomic.Uint64 // segments up to this generation may go when room is needed
	late      atomic.Bool   // much of it could be in object storage
	needed    atomic.Int64  // what would have to be copied so that any sealed segment may go; MaxInt64 where that is not worth it
	rolled    chan struct{} // the checkpointer asks the owner for snapshots
	stop      chan struct{}
	writerEnd chan struct{}
	wg        sync.WaitGroup

	indexBytes  atomic.Int64
	controlSize atomic.Int64 // bytes of the control state, as a checkpoint writes it
	opened      time.Time
	atDisk      atomic.Int64 // since when the writer waits for the disk, in ns after opened; 0: it does not
	stats       struct {
		syncs, blocks, bytes, records, diskReads, corrupt, carried, reclaimed atomic.Int64
	}
}

// Recovered is what the log held of a partition when it was opened.
type Recovered struct {
	ID             PartitionID
	TopicID        [16]byte
	Partition      int32
	Start, End     int64
	Lineage        lineage.Lineage
	HighWatermark  int64
	Snapshot       []byte // newest producer snapshot, nil without one
	SnapshotOffset int64
	// Suspect says that acknowledged records may be missing or hidden by corrupt blocks: [Start, End) is what is
	// contiguous and intact in the index, and there may have been more. It ends when a record proves that the log did
	// end at End: an append, an epoch or a truncation there, which is also how an operator's decision to go on with
	// what is left is recorded.
	Suspect bool
	// ClaimedEnd is where the log ended as far as its records say: above End if something is missing in between,
	// math.MaxInt64 if blocks are missing after the last record that says it.
	ClaimedEnd int64
}

// Append is one run of record batches for a partition. Offsets and epochs are assigned in the bytes already.
type Append struct {
	Partition              PartitionID
	LeaderEpoch            int32
	BaseOffset, LastOffset int64
	MaxTimestamp           int64
	Run                    []byte
	// Sum is the CRC-32C of Run if the caller knows it and says so with Summed: as a batch brings one, the log need not
	// read the bytes to make it.
	Sum    uint32
	Summed bool
	Buf    *slab.Buf // holds Run; retained by the log; nil: Run belongs to the log
	Class  Class
	// Done is told when the block that holds the run is durable, or why it is not. It is called from one goroutine,
	// in the order of the appends, and must not block.
	Done func(error)
}

// UUID is the log's identity: another directory has another.
func (l *Log) UUID() [16]byte { return l.id.uuid }

// Fresh says that the directory was empty when the log was opened.
func (l *Log) Fresh() bool { return l.fresh }

// Damaged says that recovery missed blocks that had been durable. Then a partition that is not among Partitions may
// have been here all the same: its PARTITION_MAP record may be what is missing.
func (l *Log) Damaged() bool { return l.damaged }

// Partitions returns what recovery found, in the order of local ids.
func (l *Log) Partitions() []Recovered { return l.recovered }

// Failed returns why the log has failed, or nil.
func (l *Log) Failed() error {
	if e := l.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// fail ends the log: the first reason counts. Nothing that is not durable by now will be acknowledged.
func (l *Log) fail(err error) {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if !l.failed.CompareAndSwap(nil, &err) {
		return
	}
	close(l.failedCh)
	l.log.Error("write-ahead log failed; nothing more is acknowledged", "dir", l.o.Dir, "err", err)
	l.mu.Lock()
	l.grant()
	l.mu.Unlock()
	if l.o.Fatal != nil {
		go l.o.Fatal(err)
	}
}

func (l *Log) part(id PartitionID) *part { return l.parts.get(id) }

func (l *Log) partitions() int { return l.parts.count() }

func noPartition(id PartitionID) error {
	return fmt.Errorf("%w: no local partition %d", ErrOutOfRange, id)
}

// item is one record on its way into a block.
type item struct {
	kind       kind
	epoch      int32
	base, next int64
	maxTS      int64
	p          *part // nil: of the log itself
	payload    []byte
	sum        uint32       // of DATA: CRC-32C of payload
	shift      crc32c.Shift // of DATA: of payload
	buf        *slab.Buf    // holds payload until it is written
	done       func(error)
	reserved   int64
	urgent     bool
	carried    bool   // a copy of what is in an older segment: void if the partition was cut since it was read
	cuts       uint32 // of the partition when it was read
	from       uint64 // of a carried snapshot: the segment that it was read from
	chunk      uint64 // of DATA: its id among the partition's chunks
	at         int32  // of DATA: where in the region its payload is put, 0 if it is not
	follow     int32  // of the writer: the partition's next item in the block, -1 at its end
	err        error  // refused: goes through the queue only so that done is told in order
}

// waiter waits for room in the queue.
type waiter struct {
	n       int64
	granted bool
	ready   chan struct{}
}

// largest is how large an append may be: with the control state, which begins every segment, it must fit into one.
func (l *Log) largest() int64 {
	control := l.controlSize.Load()
	return min(l.maxAppend, l.o.SegmentBytes-6*pageSize-control-control/8)
}

// AdmitPartition says whether there is room for another local partition with this lineage: ErrNoSpace when the
// control state of all would outgrow half a segment, each of which begins with it. To be asked before Create.
func (l *Log) AdmitPartition(lin lineage.Lineage) error {
	if n := l.controlSize.Load() + controlBytes(lin); n > l.o.SegmentBytes/2 {
		return fmt.Errorf("%w: the control state of %d partitions would take %d bytes of each segment of %d; larger segments (wal.segment.bytes) hold more",
			ErrNoSpace, l.partitions()+1, n, l.o.SegmentBytes)
	}
	return nil
}

// controlBytes is about what a partition's PARTITION_MAP record takes.
func controlBytes(lin lineage.Lineage) int64 {
	return descriptorSize + mapFixed + 8 + 8*int64(len(lin))
}

// cost is about what an append takes of a segment, beside what its block takes.
func cost(n int64) int64 { return n + descriptorSize + footerPieceSize + footerRunSize }

// Reserve waits until size bytes may be queued. What it reserved is used up by the Append of as many that follows, or
// given back with Unreserve. ErrNoSpace is retriable.
func (l *Log) Reserve(ctx context.Context, class Class, size int64) error {
	if most := l.largest(); size > most {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, most)
	}
	return l.reserve(ctx, class, cost(size))
}

// ReserveAll is Reserve for several appends, which are used up, or given back, one by one. Whoever has several to make asks for
// all at once: who has some and waits for more stands behind those who wait for what he has.
func (l *Log) ReserveAll(ctx context.Context, class Class, sizes []int64) error {
	if len(sizes) == 0 {
		return nil // nothing waits for nothing, nor is it refused by a full log
	}
	n, most := int64(0), l.largest()
	for _, size := range sizes {
		if size > most {
			return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, most)
		}
		n += cost(size)
	}
	return l.reserve(ctx, class, n)
}

// reserve waits until appends of that cost may be queued: together more than the queue holds when they are alone.
func (l *Log) reserve(ctx context.Context, class Class, n int64) error {
	for room := &l.room[class]; ; {
		r := l.reserved.Load()
		if r+n > room.Load() {
			break
		}
		if !l.reserved.CompareAndSwap(r, r+n) {
			continue
		}
		if r+n <= room.Load() {
			return nil
		}
		l.giveRoom(n) // there was less room already
		break
	}
	for {
		l.mu.Lock()
		if err := l.endedLocked(); err != nil {
			l.mu.Unlock()
			return err
		}
		r := l.reserved.Load()
		if !l.space.admits(class, r+n) {
			coming, changed := l.space.coming, l.space.changed
			l.space.refused = l.space.refused || class == ClassClient && !coming
			l.mu.Unlock()
			l.poke(l.keep)
			if !coming {
				return ErrNoSpace
			}
			select {
			case <-changed:
			case <-l.failedCh:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		if len(l.waiters) == 0 && l.fits(r, n) {
			taken := l.reserved.CompareAndSwap(r, r+n)
			l.mu.Unlock()
			if taken {
				return nil
			}
			continue
		}
		w := &waiter{n: n, ready: make(chan struct{})}
		l.waiters = append(l.waiters, w)
		l.setRoom() // nobody overtakes it
		l.mu.Unlock()
		select {
		case <-w.ready:
			l.mu.Lock()
			err := l.endedLocked()
			if err != nil && w.granted {
				l.reserved.Add(-n)
			}
			l.mu.Unlock()
			return err
		case <-ctx.Done():
		}
		l.mu.Lock()
		if w.granted {
			l.reserved.Add(-n)
		}
		for i, x := range l.waiters {
			if x == w {
				l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
				break
			}
		}
		l.grant()
		l.mu.Unlock()
		return ctx.Err()
	}
}

// fits lets an append above the queue's bound through when it is alone. Called with mu held.
func (l *Log) fits(reserved, n int64) bool { return reserved == 0 || reserved+n <= l.o.QueueBytes }

// setRoom says how much may be reserved without mu: what leaves the classes their space, nothing while somebody waits
// or when the log has ended. Called with mu held, after every change of those.
func (l *Log) setRoom() {
	for class := range l.room {
		n := min(l.o.QueueBytes, l.space.most(Class(class)))
		if len(l.waiters) > 0 || l.endedLocked() != nil {
			n = 0
		}
		l.room[class].Store(n)
	}
}

// grant lets waiters go on, first come first served. Called with mu held.
func (l *Log) grant() {
	ended := l.endedLocked() != nil
	for len(l.waiters) > 0 && (ended || l.fits(l.reserved.Load(), l.waiters[0].n)) {
		w := l.waiters[0]
		l.waiters = l.waiters[1:]
		if !ended {
			w.granted = true
			l.reserved.Add(w.n)
		}
		close(w.ready)
	}
	l.setRoom()
}

// endedLocked says why nothing more may be queued. Called with mu held.
func (l *Log) endedLocked() error {
	if err := l.Failed(); err != nil {
		return err
	}
	if l.closed {
		return ErrClosed
	}
	return nil
}

// Unreserve gives back what Reserve took for an append of so many bytes.
func (l *Log) Unreserve(n int64) { l.giveRoom(cost(n)) }

func (l *Log) giveRoom(n int64) {
	l.mu.Lock()
	l.reserved.Add(-n)
	l.grant()
	l.mu.Unlock()
}

// Admit says whether a partition may take more: ErrPartitionFull when it has used its share of the log with what
// cannot be uploaded (SetStuck). To be asked before an offset is assigned.
func (l *Log) Admit(id PartitionID) error {
	p := l.part(id)
	if p == nil {
		return noPartition(id)
	}
	if p.overShare.Load() {
		return ErrPartitionFull
	}
	return nil
}

// Append queues a run whose bytes were reserved. It does not block; the caller holds whatever lock makes the
// offsets of a partition come in order. The run can be read at once.
func (l *Log) Append(a *Append) {
	it := item{
		kind: kindData, epoch: a.LeaderEpoch, base: a.BaseOffset, next: a.LastOffset + 1, maxTS: a.MaxTimestamp,
		payload: a.Run, sum: a.Sum, shift: crc32c.ShiftOf(len(a.Run)), done: a.Done, reserved: cost(int64(len(a.Run))),
	}
	if it.maxTS == damagedTS {
		it.maxTS++ // lookups take it for a bound
	}
	if !a.Summed {
		it.sum = crc32c.Checksum(a.Run) // here, and not where everybody waits for it
	} else if slab.Debug && it.sum != crc32c.Checksum(a.Run) {
		panic(fmt.Sprintf("wal: append at offset %d of local partition %d with checksum %08x, which is not that of its bytes", a.BaseOffset, a.Partition, a.Sum))
	}
	p := l.part(a.Partition)
	if p == nil {
		it.err = noPartition(a.Partition)
		l.enqueue(&it)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.dropped:
		it.err = noPartition(a.Partition)
	case a.BaseOffset != p.end || a.LastOffset < a.BaseOffset || len(a.Run) == 0:
		it.err = fmt.Errorf("%w: [%d, %d] in %d bytes, local partition %d ends at %d", ErrOrder, a.BaseOffset, a.LastOffset, len(a.Run), a.Partition, p.end)
	}
	if it.err != nil {
		l.enqueue(&it)
		return
	}
	it.p, it.buf = p, a.Buf
	charge := int64(len(a.Run))
	if a.Buf != nil {
		// One reference for the write, one for the cache: a truncation may drop the second before the first is done.
		charge = 0
		if a.Buf.RetainCached() {
			charge = int64(a.Buf.Charge())
		}
	}
	p.chunks++
	it.chunk = p.chunks
	region, ok := l.enqueueIn(&it, true)
	if !ok {
		if a.Buf != nil {
			a.Buf.Release()
			a.Buf.ReleaseCached()
		}
		return
	}
	if region != nil {
		region.put(int(it.at), a.Run)
		if a.Buf != nil {
			a.Buf.Release() // the write has its own
		}
	}
	l.cache.bytes.Add(charge)
	// The completer does not look before it has this lock.
	p.mem.push(chunk{id: it.chunk, base: it.base, next: it.next, maxTS: it.maxTS, bytes: a.Run, buf: a.Buf})
	p.end = it.next
}

// enqueue adds a record to the next block. False: the log has ended, and done has been told. Called with p.mu
// held if the record is of a partition, so that its records are queued in the order in which they took effect.
func (l *Log) enqueue(it *item) bool {
	_, ok := l.enqueueIn(it, false)
	return ok
}

// enqueueIn is enqueue, and finds a place for the payload, where the caller puts it at once; nil: there was none.
func (l *Log) enqueueIn(it *item, place bool) (in *region, ok bool) {
	l.mu.Lock()
	if l.closed {
		l.reserved.Add(-it.reserved)
		l.mu.Unlock()
		if it.done != nil {
			go it.done(ErrClosed) // the completer has ended
		}
		return nil, false
	}
	if place {
		if at := l.filling.place(len(it.payload)); at > 0 {
			in = l.filling
			it.at, it.buf, it.payload = int32(at), nil, in.mem[at:at+len(it.payload)]
		}
	}
	if it.urgent {
		l.urgent = append(l.urgent, *it)
	} else {
		l.queue = append(l.queue, *it)
	}
	wake := l.waiting
	l.waiting = false
	l.mu.Unlock()
	if wake {
		l.wake <- struct{}{} // has room for the one that waits
	}
	return in, true
}

// control queues a control record of a partition. ahead is what callers see of it at once.
func (l *Log) control(id PartitionID, it item, ahead func(p *part)) {
	p := l.part(id)
	if p == nil {
		it.err = noPartition(id)
		l.enqueue(&it)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped {
		it.err = noPartition(id)
		l.enqueue(&it)
		return
	}
	it.p = p
	if l.enqueue(&it) && ahead != nil {
		ahead(p)
	}
}

// Create begins a local partition that starts, empty, at an offset. lin and snapshot are its lineage and producer
// state there.
func (l *Log) Create(topicID [16]byte, partition int32, start int64, lin lineage.Lineage, snapshot []byte, done func(error)) PartitionID {
	p := newPart(PartitionID(l.lastID.Add(1)))
	p.start, p.end = start, start
	p.control = controlBytes(lin)
	l.controlSize.Add(p.control)
	l.parts.put(p)
	m := partitionMap{topicID: topicID, index: partition, start: start, end: start, hw: start, lineage: lin, inline: snapshot}
	p.mu.Lock()
	l.enqueue(&item{kind: kindPartitionMap, base: start, p: p, payload: m.append(nil), done: done})
	p.mu.Unlock()
	return p.id
}

// Epoch records that a leader epoch begins at an offset.
func (l *Log) Epoch(id PartitionID, epoch int32, start int64, done func(error)) {
	l.control(id, item{kind: kindEpoch, epoch: epoch, base: start, done: done}, nil)
}

// Truncate cuts off everything from offset on. The cut takes effect for readers at once.
func (l *Log) Truncate(id PartitionID, offset int64, done func(error)) {
	l.control(id, item{kind: kindTruncate, base: offset, done: done}, func(p *part) { l.truncateAhead(p, offset) })
}

// Trim moves the local start up: what is below is not read any more, and may go. At most to the end.
func (l *Log) Trim(id PartitionID, start int64, done func(error)) {
	l.control(id, item{kind: kindTrim, base: start, done: done}, func(p *part) { p.start = max(p.start, min(start, p.end)) })
	l.poke(l.keep)
}

// HighWatermark records the high watermark. It is not urgent: it goes with the next block.
func (l *Log) HighWatermark(id PartitionID, hw int64) {
	p := l.part(id)
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped || hw == p.hw {
		return
	}
	p.hw = hw
	if !p.hwDirty {
		p.hwDirty = true
		l.mu.Lock()
		l.dirty = append(l.dirty, p)
		wake := l.waiting && l.deep
		if wake {
			l.waiting = false
		}
		l.mu.Unlock()
		if wake {
			l.wake <- struct{}{}
		}
	}
}

// Snapshot records the producer state at an offset. The log owns the bytes.
func (l *Log) Snapshot(id PartitionID, offset int64, snapshot []byte, done func(error)) {
	l.control(id, item{kind: kindSnapshot, base: offset, payload: snapshot, done: done}, nil)
}

// ProducerSnapshot returns the newest producer snapshot of a partition that is durable, and the offset that it is of;
// nil if there is none. A truncation below that offset has done away with it.
func (l *Log) ProducerSnapshot(id PartitionID) (snapshot []byte, offset int64, err error) {
	p := l.part(id)
	if p == nil {
		return nil, 0, noPartition(id)
	}
	p.mu.Lock()
	ref := p.snapshot
	p.mu.Unlock()
	if ref.length == 0 {
		return nil, 0, nil
	}
	l.segMu.Lock()
	at := slices.IndexFunc(l.segments, func(g *segment) bool { return g.at.generation == ref.generation })
	if at < 0 {
		l.segMu.Unlock()
		return nil, 0, nil // its segment has just been given back
	}
	g := l.segments[at]
	g.retain()
	l.segMu.Unlock()
	defer g.release()
	buf, err := l.readVerified(g, ref.pos, ref.length, ref.crc)
	if err != nil {
		return nil, 0, fmt.Errorf("producer snapshot of local partition %d: %w", id, err)
	}
	defer buf.Release()
	return slices.Clone(buf.Bytes()), ref.offset, nil
}

// Drop ends a local partition; its data may go.
func (l *Log) Drop(id PartitionID, done func(error)) {
	l.control(id, item{kind: kindDrop, done: done}, func(p *part) {
		p.dropped = true
		l.forget(p, p.mem.n)
	})
	l.parts.remove(id)
}

// Skip lets a suspect partition go on above its damage: if all is intact from an offset on, up to where its records
// say that the log ended, that is what it holds from now on, and it is suspect no more. What lies below must be known
// to be elsewhere. It is for what recovery found, before anything is appended.
func (l *Log) Skip(id PartitionID, to int64) (rec Recovered, ok bool) { return l.above(id, to, true) }

// CanSkip returns what Skip would, and changes nothing.
func (l *Log) CanSkip(id PartitionID, to int64) (rec Recovered, ok bool) {
	return l.above(id, to, false)
}

func (l *Log) above(id PartitionID, to int64, skip bool) (rec Recovered, ok bool) {
	i := slices.IndexFunc(l.recovered, func(r Recovered) bool { return r.ID == id })
	p := l.part(id)
	if i < 0 || p == nil {
		return rec, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped || p.hole || to < p.start || to > p.claimedEnd || p.contiguous(to) != p.claimedEnd {
		return rec, false
	}
	if skip && !l.enqueue(&item{kind: kindTrim, base: to, p: p}) {
		return rec, false
	}
	rec = l.recovered[i]
	rec.Start, rec.End, rec.HighWatermark, rec.Suspect = to, p.claimedEnd, min(p.appliedHW, p.claimedEnd), false
	if skip {
		p.start, p.end = rec.Start, rec.End
	}
	return rec, true
}

// SetReclaimable tells how far a partition is in object storage, as read back from a committed manifest, or where
// its log starts: nothing at or above it is ever reclaimed (I2). Until it is told, nothing is. It never goes back.
func (l *Log) SetReclaimable(id PartitionID, below int64) {
	p := l.part(id)
	if p == nil {
		return
	}
	p.mu.Lock()
	moved := below > p.reclaimable
	p.reclaimable = max(p.reclaimable, below)
	if p.stuck {
		p.hold(l)
	}
	p.mu.Unlock()
	if moved {
		l.poke(l.keep)
	}
}

// SetStuck says that a partition cannot be uploaded for a reason of its own, or that it can. As long as it cannot, Admit
// holds it to a share of the log, which is less the more partitions there are like it: to be told again now and then.
func (l *Log) SetStuck(id PartitionID, stuck bool) {
	p := l.part(id)
	if p == nil {
		return
	}
	p.mu.Lock()
	if !p.dropped && (stuck || p.stuck) {
		p.setStuck(l, stuck)
	}
	p.mu.Unlock()
}

// Bounds returns the offsets that are here: [start, end), counting what is queued.
func (l *Log) Bounds(id PartitionID) (start, end int64) {
	p := l.part(id)
	if p == nil {
		return 0, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start, p.end
}

func (l *Log) poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Stats is how the log stands.
type Stats struct {
	Bytes, MaxBytes                   int64       // of all files, prepared ones included; bound
	PinnedBytes                       int64       // that cannot be given back: segments from the oldest on that has more than could be carried, or less if copying is worth it
	late                              bool        // three eighths are copied that could be in object storage
	PinnedBy                          PartitionID // if Full: the partition that has the most in the oldest segment
	Segments, FreeSegments            int         // in use; prepared
	QueueBytes, QueueMax              int64
	CacheBytes, CacheMax              int64
	IndexBytes, IndexMax              int64
	Syncs, Blocks                     int64
	AppendedBytes, Records            int64
	DiskReads                         int64
	CarriedBytes, Reclaimed           int64
	CorruptReads                      int64
	Full                              bool // clients are refused
	DiskFull                          bool // Full, and by the disk rather than by MaxBytes
	NoFiles                           bool // Full, as no more files may be opened
	OldestGeneration, NewestGenration uint64
	// Stalled is how long the write and fsync under way has taken, 0 if there is none: where it does not end, nothing
	// is acknowledged any more, and nothing fails.
	Stalled time.Duration
}

// Short says that there will be no room soon if SetReclaimable is told of nothing more, or that room costs copies of what could be in
// object storage: clients are refused, a quarter is left, or so much is copied. Segments that may go are room, though the log keeps them
// for readers until it needs their files.
func (s Stats) Short() bool { return s.Full || s.PinnedBytes > s.MaxBytes/4*3 || s.late }

// Stats returns how the log stands.
func (l *Log) Stats() Stats {
	s := Stats{
		MaxBytes: l.o.MaxBytes, QueueMax: l.o.QueueBytes, CacheMax: l.o.CacheBytes, IndexMax: l.o.IndexBytes, IndexBytes: l.indexBytes.Load(),
		Syncs: l.stats.syncs.Load(), Blocks: l.stats.blocks.Load(), AppendedBytes: l.stats.bytes.Load(), Records: l.stats.records.Load(),
		DiskReads: l.stats.diskReads.Load(), CarriedBytes: l.stats.carried.Load(), Reclaimed: l.stats.reclaimed.Load(), CorruptReads: l.stats.corrupt.Load(),
	}
	l.mu.Lock()
	s.QueueBytes, s.CacheBytes = l.reserved.Load(), l.cache.bytes.Load()
	s.Full = l.space.isFull(s.QueueBytes)
	s.DiskFull, s.NoFiles = s.Full && l.space.diskFull, s.Full && (l.space.noFiles || l.space.halted)
	l.mu.Unlock()
	l.segMu.Lock()
	s.Segments, s.FreeSegments = len(l.segments), len(l.spares)
	free := l.free.Load()
	for _, g := range l.segments {
		s.Bytes += g.size
		if g.at.generation > free {
			s.PinnedBytes += g.size
		}
	}
	s.PinnedBytes, s.late = min(s.PinnedBytes, l.needed.Load()), l.late.Load()
	if s.Full {
		s.PinnedBy = l.pinnedBy
	}
	s.Bytes += int64(len(l.spares)) * l.o.SegmentBytes
	if n := len(l.segments); n > 0 {
		s.OldestGeneration, s.NewestGenration = l.segments[0].at.generation, l.segments[n-1].at.generation
	}
	l.segMu.Unlock()
	if began := l.atDisk.Load(); began != 0 {
		s.Stalled = max(0, time.Since(l.opened)-time.Duration(began))
	}
	return s
}

// waits notes that the writer begins to wait for the disk; what it returns, that it has ended.
func (l *Log) waits() func() {
	l.atDisk.Store(max(1, int64(time.Since(l.opened))))
	return func() { l.atDisk.Store(0) }
}

// Close writes what is queued, claims the last block, and ends the log. Callers have ended before.
func (l *Log) Close() error {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.grant()
	wake := l.waiting
	l.waiting = false
	l.mu.Unlock()
	if already {
		return nil
	}
	close(l.stop)
	if wake {
		l.wake <- struct{}{}
	}
	<-l.writerEnd
	l.wg.Wait()
	l.closeRegions()
	for _, p := range l.parts.empty() {
		p.mu.Lock()
		p.dropped = true
		l.forget(p, p.mem.n)
		p.mu.Unlock()
	}
	l.segMu.Lock()
	for _, g := range l.segments {
		g.release() // closes the file once the last reader is done
	}
	l.segments = nil
	l.segMu.Unlock()
	l.dir.Close()
	if err := l.lock.Close(); err != nil {
		return fmt.Errorf("wal: unlock: %w", err)
	}
	return l.Failed()
}
