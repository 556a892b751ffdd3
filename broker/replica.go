package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
	"github.com/varve/varve/wal/slab"
)

// replica binds one partition's state machine to the log, the bucket, and the
// clients that wait for it.
//
// Lock ordering: mu, then the log's own locks. watchMu is taken alone, then
// the lock of a fetch session. Nothing is sent and no I/O is done under mu:
// an append is queued, a durable end comes back later.
type replica struct {
	b        *Broker
	topicID  [16]byte
	topic    string
	index    int32
	internal bool

	config    atomic.Pointer[config.TopicConfig]
	view      atomic.Pointer[partition.View] // what readers see; never nil
	pid       atomic.Uint64                  // wal.PartitionID, 0 until there is a local log
	compacted atomic.Int64                   // below it consumers are given what the bucket has
	source    atomic.Pointer[fetcher]        // that copies the partition, or nil
	readHere  atomic.Int64                   // where a coordinator that reads the log on this broker has come to; 0: none has

	// working is held by who takes up a role or begins the local log anew, which
	// reads and asks others: one at a time, and one that is not wanted any more
	// ends before the next begins. No mutex: it is held over I/O. It comes before mu.
	working chan struct{}

	mu        sync.Mutex
	st        *partition.State
	recov     *wal.Recovered // what the log held at start, until the first leadership takes it
	waiting   []appendWait   // appended, not yet below the high watermark; ascending by end
	ages      []ageMark      // when what is not uploaded yet was appended; ascending
	unsaved   bool           // producer state changed since its last snapshot in the log
	savedAt   int64          // offset of that snapshot, -1 without one
	maxTS     int64          // largest batch timestamp appended since start, -1 without one
	started   bool           // leads and serves
	leads     bool           // is to lead
	following bool           // copies from a leader
	multi     bool           // has other replicas; counted by replicas.multi
	stopped   bool           // deleted or moved away: for good
	lastSeen  int32          // leader epoch of the last image applied
	term      partition.Term // the leadership that metadata gave this broker last
	offline   error          // why the partition does not serve although it should
	dropped   bool           // that there is no local log is this replica's doing

	role context.CancelFunc // ends what goes on for the current role; nil without one

	confirming confirming

	watchMu sync.Mutex
	watches map[*watch]struct{}
	copiers atomic.Int32 // of watches, those of followers; changed with watchMu held
}

// appendWait is one append that somebody waits for.
type appendWait struct {
	end     int64
	bytes   int64
	durable settler // acks=1: settled when durable here; nil once it was
	commit  settler // acks=all: settled when below the high watermark
}

// settler is told, once, what became of an append. It does not block.
type settler interface{ settle(code int16) }

func newReplica(b *Broker, t *image.Topic, index int32, rec *wal.Recovered) *replica {
	r := &replica{
		b: b, topicID: t.ID, topic: t.Name, index: index, internal: t.Internal,
		recov: rec, maxTS: -1, savedAt: -1, lastSeen: -1, watches: map[*watch]struct{}{}, working: make(chan struct{}, 1),
	}
	r.view.Store(&partition.View{Role: partition.Offline, Epoch: -1})
	if rec != nil {
		r.pid.Store(uint64(rec.ID))
	}
	return r
}

// work waits for the turn to take up a role, which worked ends. An error: it is
// not wanted any more.
func (r *replica) work(ctx context.Context) error {
	select {
	case r.working <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		r.worked()
		return err
	}
	return nil
}

func (r *replica) worked() { <-r.working }

func (r *replica) String() string { return fmt.Sprintf("%s-%d", r.topic, r.index) }

func (r *replica) localID() wal.PartitionID { return wal.PartitionID(r.pid.Load()) }

func (r *replica) cfg() *config.TopicConfig { return r.config.Load() }

// localStart is the first offset that the log on this broker still has.
func (r *replica) localStart() int64 {
	if r.pid.Load() == 0 {
		return r.view.Load().LogStart
	}
	start, _ := r.b.log_.Bounds(r.localID())
	return start
}

// servedStart is the first offset that consumers are given from the log on this
// broker: of what has been compacted they get what is left of it.
func (r *replica) servedStart() int64 { return max(r.localStart(), r.compacted.Load()) }

// seen notes how far the partition has been compacted. That does not depend on what cleanup.policy is now: what has
// been compacted away, the values of deleted keys among it, does not come back as long as the log has it; and a
// reader who went from the log to the bucket would have read a value of which the bucket has no tombstone any more.
func (r *replica) seen(s tiering.State) {
	for to := min(s.Compacted, s.RemoteEnd); ; {
		// Whoever read the head first may tell last.
		if was := r.compacted.Load(); to <= was || r.compacted.CompareAndSwap(was, to) {
			return
		}
	}
}

// followCompaction looks now and then how far the partitions here have been
// compacted: whoever leads one does not hear of what the compaction worker
// commits before its own next commit, and whoever follows does not at all.
func (b *Broker) followCompaction(ctx context.Context) {
	since := int64(0)
	for {
		rev, err := b.tier.Changed(ctx, since, func(id [16]byte, index int32, s tiering.State) {
			if r := b.replicas.byKey(partitionKey{id: id, index: index}); r != nil {
				r.seen(s) // one that is not here yet reads its head itself
			}
		})
		if err == nil {
			since = rev
		} else if ctx.Err() == nil {
			b.log.Debug("no look at what has been compacted", "err", err) // that etcd is away is said elsewhere
		}
		select {
		case <-time.After(max(b.conf().Cleaner.Backoff, 100*time.Millisecond)):
		case <-ctx.Done():
			return
		}
	}
}

// abortedHere lists the aborted transactions whose marker is in [from, to) of the
// local log. The bucket's list says so, unless compaction has taken some away
// that are still here: then the log itself is read.
func (r *replica) abortedHere(ctx context.Context, s tiering.State, from, to int64) ([]producer.Aborted, error) {
	if s.Compacted <= from {
		list, err := r.b.tier.Aborted(ctx, r.topicID, r.index, from, to, to)
		if err != nil {
			return nil, fmt.Errorf("aborted transactions of the newest objects: %w", err)
		}
		return list, nil
	}
	p := producer.New()
	if _, err := r.replay(ctx, r.localID(), p, from, to); err != nil {
		return nil, err
	}
	return p.Aborted(from, to), nil
}

// publish makes the state visible to readers. Called with mu held.
func (r *replica) publish() {
	v := r.st.View()
	if !r.started && !r.following {
		v.Role = partition.Offline
	}
	if len(r.term.Replicas) > 1 && v.HighWatermark != r.view.Load().HighWatermark {
		// With one replica, all that is durable is below it.
		r.b.log_.HighWatermark(r.localID(), v.HighWatermark)
	}
	r.view.Store(&v)
	r.b.tier.Moved()
}

// keepTrying takes a role up again and again until it succeeds or ends: the
// metadata store or the bucket may be away.
func (r *replica) keepTrying(ctx context.Context, role string, err error, try func(context.Context) error) {
	backoff := shortestBackoff
	for {
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.offline = err
		r.mu.Unlock()
		switch {
		case errors.Is(err, errBehind):
			r.b.log.Error("local log to be given up", "partition", r.String(), "err", err)
			r.giveUp()
		case !errors.Is(err, errSuspect):
			r.b.log.Warn(role+" not taken up yet", "partition", r.String(), "err", err)
		case !r.giveUp() && r.toLead():
			r.b.log.Error("partition stays offline", "partition", r.String(), "err", err)
			return
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, 2*time.Second)
		if err = try(ctx); err == nil {
			return
		}
	}
}

// giveUp tells the controller that this replica does not have all that it should
// have, so that another leads, and this one begins anew. It reports false where
// there is no other that has it.
func (r *replica) giveUp() bool {
	// Not the role's context: that ends when the controller has done what is asked.
	ctx, cancel := context.WithTimeout(r.b.ctx, peerTimeout)
	defer cancel()
	reply := r.b.meta.Do(ctx, controller.GiveUp{Broker: r.b.opts.BrokerID, Incarnation: r.b.meta.Incarnation(),
		Partitions: []image.PartitionRef{{TopicID: r.topicID, Index: r.index}}})
	if reply.ErrorCode == 0 && len(reply.Partitions) == 1 && reply.Partitions[0].ErrorCode == protocol.CodeEligibleLeadersNotAvailable {
		return false
	}
	if reply.ErrorCode == 0 {
		r.b.log.Error("local log given up: other replicas have what was acknowledged", "partition", r.String())
	}
	return true
}

const shortestBackoff = 50 * time.Millisecond

// errSuspect keeps a partition offline: serving it could serve wrong records,
// and cutting it could lose acknowledged ones.
var errSuspect = errors.New("the local log has corrupt blocks, so that records of this partition may be missing or wrong; with no other replica, " +
	"start the broker once with --accept-corrupt-log to go on with what is intact, losing the rest")

// errBehind keeps a replica from going on with a log that lacks what it is counted on
// to have, as long as others have it: an old copy of the disk, or a disk that has
// forgotten what it had synced.
var errBehind = errors.New("the local log ends below what is in object storage, although this replica counts as in sync")

// behind says so of a replica whose local log, or none, was found at start. Nothing
// is uploaded that not all in-sync replicas have.
func (r *replica) behind(rec *wal.Recovered, state tiering.State) bool {
	end := int64(0)
	if rec != nil {
		end = rec.End
	}
	if end >= max(state.RemoteEnd, state.LogStart) {
		return false
	}
	p := r.b.meta.Image().Partition(r.topicID, r.index)
	self := r.b.opts.BrokerID
	return p != nil && !p.Recovering && r.inSync() && slices.ContainsFunc(slices.Concat(p.ISR, p.ELR), func(id int32) bool { return id != self })
}

// tryLead begins a leadership: the head of the manifest is read, the local log
// is taken over or started, and only then does the partition serve.
func (r *replica) tryLead(ctx context.Context) error {
	if err := r.work(ctx); err != nil {
		return err
	}
	defer r.worked()
	state, err := r.b.tier.Lead(ctx, r)
	if err != nil {
		return fmt.Errorf("read manifest head: %w", err)
	}
	r.mu.Lock()
	rec, st, id, epoch, dropped := r.recov, r.st, r.localID(), r.term.Epoch, r.dropped
	r.mu.Unlock()

	// Where what is appended next has its offset at least: what is below is in the bucket, or deleted.
	least := max(state.RemoteEnd, state.LogStart)
	if st != nil && st.View().LogEnd < least {
		// It was not in sync, and is elected all the same: an operator's word.
		r.b.log.Warn("local log dropped: it ends below the remote end", "partition", r.String(), "local_end", st.View().LogEnd, "remote_end", state.RemoteEnd, "log_start", state.LogStart)
		r.dropLocal(r.localID())
		st, dropped = nil, true
	}
	if st == nil && rec != nil && rec.Suspect && rec.ClaimedEnd > state.RemoteEnd {
		// What is damaged may be in the bucket; the rest of what was acknowledged is only here.
		if whole, ok := r.b.log_.Skip(rec.ID, state.RemoteEnd); ok {
			r.b.log.Warn("local log is damaged below the remote end only: it goes on above", "partition", r.String(),
				"remote_end", state.RemoteEnd, "local_end", whole.End)
			rec = r.recovered(whole)
		} else if !r.b.opts.AcceptCorruptLog {
			return errSuspect
		} else {
			r.b.log.Error("corrupt local log accepted: acknowledged records may be lost", "partition", r.String(),
				"intact_end", rec.End, "claimed_end", rec.ClaimedEnd, "remote_end", state.RemoteEnd)
		}
	}
	if st == nil && rec == nil && epoch > 0 && r.b.log_.Damaged() && !dropped {
		// It has been led before, and that it has no log here may be the damage.
		if !r.b.opts.AcceptCorruptLog {
			return errSuspect
		}
		r.b.log.Error("corrupt local log accepted: it may have held this partition, and acknowledged records may be lost",
			"partition", r.String(), "remote_end", state.RemoteEnd)
	}
	if st == nil && r.behind(rec, state) {
		return errBehind
	}
	if parted, err := r.parted(ctx, st, rec, state); err != nil {
		return fmt.Errorf("compare the local log with the newest object: %w", err)
	} else if parted {
		r.b.log.Warn("local log dropped: it has another history than the bucket below the remote end", "partition", r.String(), "remote_end", state.RemoteEnd)
		r.dropLocal(r.localID())
		st, rec = nil, nil
	}
	if st == nil && rec != nil {
		switch {
		case rec.End < least:
			// Everything that was committed is in the bucket or deleted; what
			// this log holds is older than that, or of a lost history.
			r.b.log.Warn("local log dropped: it ends below the remote end", "partition", r.String(),
				"local_end", rec.End, "remote_end", state.RemoteEnd, "log_start", state.LogStart)
			r.dropLocal(rec.ID)
		default:
			if st, err = r.restore(ctx, rec, state); err != nil {
				return fmt.Errorf("restore producer state: %w", err)
			}
			id = rec.ID
		}
	}
	if st == nil {
		if st, id, err = r.startLocal(ctx, state); err != nil {
			return err
		}
	}
	r.mu.Lock()
	if !r.keep(ctx, st, id) {
		r.mu.Unlock()
		return ctx.Err()
	}
	st.LiftTo(state.RemoteEnd, state.LogStart)
	t := r.term
	began, err := st.Lead(t, r.b.uptimeMs())
	if err != nil {
		r.mu.Unlock()
		return err
	}
	if began.NewEpoch {
		r.b.log_.Epoch(r.localID(), began.Epoch, began.Start, nil)
	}
	r.started = true
	r.seen(state) // before a coordinator loads: it reads what is left, not all that was
	before := r.view.Load()
	r.publish()
	// Under the lock, as the end is told: told in the other order, a coordinator
	// would keep what it has of a topic that is gone, and of the next one with
	// its name nothing.
	r.b.leaderStarted(r, t.Epoch)
	// With the new term, or by what the bucket has, appends of an earlier one may be committed: nothing else has to
	// happen that would tell those who wait for them.
	r.advanced(before)
	r.b.log_.SetReclaimable(r.localID(), least)
	r.changed()
	r.b.sessions.hasten(t.Replicas, time.Now())
	return nil
}

// parted says whether the local log of a leader that was not in sync when it was
// elected has another history below the remote end than the bucket: leading with
// it, it would serve the one here and the other from there. The same epoch at the
// same offset means that all below is the same, so the last record is enough. A
// log with an epoch in which objects were committed, or a later one, is of a
// leader that had all of them; only else the bucket has to be asked.
//
// A log whose first epoch begins at the remote end or above, as where records had
// been deleted up to there, shares no offset with the bucket: there is nothing in
// which the two could differ. What is here goes behind what is there, then, and is
// of one history with it unless the bucket ends in a later epoch than the log begins
// in, since epochs do not go back. Between the two may be what was deleted, and
// nothing else: a log that begins above the log start, too, would leave a hole above
// least of tryLead, which looks at where the log ends only.
func (r *replica) parted(ctx context.Context, st *partition.State, rec *wal.Recovered, state tiering.State) (bool, error) {
	var lin lineage.Lineage
	switch {
	case st != nil:
		lin = st.Lineage()
	case rec != nil:
		lin = rec.Lineage
	default:
		return false, nil
	}
	p := r.b.meta.Image().Partition(r.topicID, r.index)
	if state.RemoteEnd == 0 || p == nil || !p.Recovering {
		return false, nil
	}
	head, err := r.b.tier.Peek(ctx, r.topicID, r.index)
	if err != nil {
		return false, err
	}
	if last, ok := lin.Latest(); ok && last.Epoch >= head.LeaderEpoch {
		return false, nil
	}
	remote, _, end, err := r.b.tier.Tail(ctx, r.topicID, r.index)
	if err != nil {
		return false, err
	}
	last := remote.EpochAt(end - 1)
	if len(lin) > 0 && lin[0].Start >= end {
		return lin[0].Epoch < last || lin[0].Start > max(end, state.LogStart), nil
	}
	return lin.EpochAt(end-1) != last, nil
}

// keep makes st the state of the partition, and id the local log that it is of,
// at one moment: what goes on beside must not write of the one into the other.
// It reports false if the role that they were made for is over. Called with mu
// held.
func (r *replica) keep(ctx context.Context, st *partition.State, id wal.PartitionID) bool {
	r.st, r.recov = st, nil
	r.pid.Store(uint64(id))
	if r.stopped {
		r.b.log_.Drop(id, nil)
		return false
	}
	if ctx.Err() != nil {
		return false
	}
	r.offline = nil
	return true
}

// dropLocal gives the local log back. Whoever waits for an append to it is told to
// look for the leader: the next log has other records at those offsets, or begins
// above them, and that these are committed would acknowledge what is gone.
func (r *replica) dropLocal(id wal.PartitionID) {
	r.mu.Lock()
	r.b.log_.Drop(id, nil) // under the lock: what it refuses from now on concerns nobody (durable)
	r.pid.Store(0)
	r.st, r.recov, r.dropped = nil, nil, true
	r.ages, r.savedAt, r.unsaved = nil, -1, true
	waiting := r.waiting
	r.waiting = nil
	// Readers are not to be shown an end of what is gone until the next log is there, which takes as long as the bucket is away.
	v := *r.view.Load()
	v.Role = partition.Offline
	r.view.Store(&v)
	r.mu.Unlock()
	for _, w := range waiting {
		w.fail(protocol.CodeNotLeaderOrFollower)
	}
	r.changed()
}

// recovered notes what is now known of the local log that was found at start.
func (r *replica) recovered(rec wal.Recovered) *wal.Recovered {
	r.mu.Lock()
	r.recov = &rec
	r.mu.Unlock()
	return &rec
}

// restore rebuilds the state of a partition from its newest producer snapshot
// in the log and the batches since. Where the log no longer holds all batches
// since that snapshot, the newest object's snapshot is the newer one: nothing
// leaves the log before the bucket has it (I2).
func (r *replica) restore(ctx context.Context, rec *wal.Recovered, state tiering.State) (*partition.State, error) {
	producers, from := producer.New(), int64(0)
	savedAt := int64(-1)
	if rec.Snapshot != nil {
		p, off, err := producer.Decode(rec.Snapshot)
		if err != nil {
			return nil, err
		}
		producers, from, savedAt = p, off, off
	}
	if from < rec.Start && from < state.RemoteEnd {
		_, snap, end, err := r.b.tier.Tail(ctx, r.topicID, r.index)
		if err != nil {
			return nil, fmt.Errorf("read the newest object's footer: %w", err)
		}
		if len(snap) > 0 && end > from {
			if producers, _, err = producer.Decode(snap); err != nil {
				return nil, fmt.Errorf("producer snapshot of the newest object: %w", err)
			}
			from = end
			// An object's snapshot leaves to the objects' own indexes what was
			// aborted below its end; part of that is here as well.
			if rec.Start < end {
				aborted, err := r.abortedHere(ctx, state, rec.Start, min(end, rec.End))
				if err != nil {
					return nil, err
				}
				producers.RestoreAborted(aborted)
			}
		}
	}
	if from < rec.Start {
		producers = producer.New() // what was between was deleted before the bucket had it; see startLocal
	}
	maxTS, err := r.replay(ctx, rec.ID, producers, max(from, rec.Start), rec.End)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.maxTS = max(r.maxTS, maxTS)
	r.mark(rec.Start, time.Now().UnixMilli())
	r.unsaved, r.savedAt = true, savedAt
	r.mu.Unlock()
	producers.SetLimit(r.b.conf().MaxProducersPerPartition)
	logStart := state.LogStart
	if state.RemoteEnd < rec.Start {
		// Nothing in the bucket reaches up to what is here.
		logStart = max(logStart, rec.Start)
	}
	return partition.New(r.b.opts.BrokerID, partition.Recovered{
		LogStart: logStart,
		// What the bucket has is not taken to be what is here: that is known of a
		// leader, and of a follower when its leader has compared their logs.
		LogEnd: rec.End, HighWatermark: rec.HighWatermark,
		Lineage: rec.Lineage, Producers: producers,
	}), nil
}

// replay applies the batches of [from, to) of a local log to a producer state,
// and returns their largest timestamp.
func (r *replica) replay(ctx context.Context, id wal.PartitionID, producers *producer.State, from, to int64) (maxTS int64, err error) {
	maxTS = -1
	for from < to {
		run, err := r.b.log_.Read(id, from, 4<<20, to)
		if err != nil {
			return maxTS, fmt.Errorf("read [%d, %d) of the local log: %w", from, to, err)
		}
		if run.Next <= from {
			run.Release()
			return maxTS, fmt.Errorf("the local log has no batch at %d although it ends at %d", from, to)
		}
		for _, chunk := range run.Chunks {
			err = batch.Walk(chunk, func(h batch.Header, b []byte) error {
				maxTS = max(maxTS, h.MaxTimestamp)
				if h.ProducerID >= 0 && h.BaseOffset >= from {
					producers.Apply(h, b)
				}
				return nil
			})
			if err != nil {
				break
			}
		}
		from = run.Next
		run.Release()
		if err != nil {
			return maxTS, err
		}
		if err := ctx.Err(); err != nil {
			return maxTS, err
		}
	}
	return maxTS, nil
}

// startLocal begins a local log: at the start for a new partition, at the
// remote end for one whose local log is gone.
func (r *replica) startLocal(ctx context.Context, state tiering.State) (*partition.State, wal.PartitionID, error) {
	start, lin, producers := state.LogStart, lineage.Lineage(nil), producer.New()
	var snapshot []byte
	if state.RemoteEnd > 0 {
		l, snap, end, err := r.b.tier.Tail(ctx, r.topicID, r.index)
		if err != nil {
			return nil, 0, fmt.Errorf("read the newest object's footer: %w", err)
		}
		start = max(end, state.LogStart)
		if start == end {
			lin, snapshot = l, snap
		}
		// Else what is between was deleted and is nowhere any more: which leader epochs began there, how far sequences went, which
		// transactions ended. What is known of before would be held against what comes: a leader that is told the older epoch
		// says that the logs part below what was committed, each time that this one is begun anew; sequences that go on would be
		// refused, and a transaction that ended there kept open for ever. Of whom nothing is known may go on with any sequence,
		// and a transaction that is still open shows again with its next batch.
		if len(snapshot) > 0 {
			p, _, err := producer.Decode(snapshot)
			if err != nil {
				return nil, 0, fmt.Errorf("producer snapshot of the newest object: %w", err)
			}
			producers = p
		}
		if r.toLead() {
			r.b.log.Warn("local log starts at the remote end: records that were acknowledged but not uploaded are lost if this broker was the only replica",
				"partition", r.String(), "remote_end", start)
		}
		r.b.ev.RestartedAtRemoteEnd()
	}
	producers.SetLimit(r.b.conf().MaxProducersPerPartition)
	if err := r.b.log_.AdmitPartition(lin); err != nil {
		return nil, 0, err
	}
	id := r.b.log_.Create(r.topicID, r.index, start, lin, snapshot, nil)
	return partition.New(r.b.opts.BrokerID, partition.Recovered{
		LogStart: state.LogStart, LogEnd: start, HighWatermark: start, RemoteEnd: state.RemoteEnd,
		Lineage: lin, Producers: producers,
	}), id, nil
}

func (r *replica) toLead() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leads
}

// resign ends the leadership: whoever waits is told to look for the leader.
func (r *replica) resign(epoch int32, code int16) {
	r.mu.Lock()
	if r.role != nil {
		r.role()
		r.role = nil
	}
	was := r.started
	r.started, r.leads, r.following = false, false, false
	waiting := r.waiting
	r.waiting = nil
	if r.st != nil {
		r.st.Resign(epoch)
		r.publish()
	}
	if was {
		r.b.leaderStopped(r, epoch)
	}
	r.mu.Unlock()
	r.b.tier.Resign(r.topicID, r.index)
	for _, w := range waiting {
		w.fail(code)
	}
	r.changed()
}

func (w *appendWait) fail(code int16) {
	if w.durable != nil {
		w.durable.settle(code)
	}
	if w.commit != nil {
		w.commit.settle(code)
	}
}

// appendArgs is one validated batch on its way into the log.
type appendArgs struct {
	header batch.Header
	bytes  []byte
	buf    *slab.Buf // holds bytes; retained by the log; nil when bytes belong to nobody else
	origin partition.Origin
	class  wal.Class
	acks   int16 // -1, 0, 1
	// verify: a batch that begins a transaction needs a guard that still stands.
	verify bool
	guard  partition.Guard
	after  bool              // a batch with a lower sequence was refused, and is to be sent again
	marker *partition.Marker // what the batch was made from, if it is a marker
	// term is the only leader epoch that the batch may be appended in; nil: any.
	// Who decided on it in an earlier one did not see what came after.
	term *int32
	// base takes the offset of the first record before the batch can become
	// durable; it may be nil.
	base *int64
	// to is told the outcome: for acks=-1 when the batch is below the high
	// watermark, for 1 when it is durable here, for 0 never.
	to settler
}

// append gives the batch its place. Room in the log's queue has been reserved;
// when the decision is not Append, the caller gives it back. This is the
// commit point's beginning: the record counts from the moment the block that
// holds it is fsynced, and done is told then.
func (r *replica) append(a *appendArgs) partition.Decision {
	now := time.Now().UnixMilli()
	r.mu.Lock()
	if !r.started {
		code := r.unavailable()
		r.mu.Unlock()
		return partition.Decision{Kind: partition.Reject, Code: code, Message: "this broker does not lead the partition"}
	}
	if a.term != nil && *a.term != r.term.Epoch {
		r.mu.Unlock()
		return partition.Decision{Kind: partition.Reject, Code: protocol.CodeFencedLeaderEpoch, Message: "the partition is led in another epoch by now"}
	}
	var d partition.Decision
	if a.marker != nil {
		d = r.st.DecideMarker(*a.marker)
	} else {
		d = r.st.Decide(partition.Ask{Header: a.header, Origin: a.origin, AcksAll: a.acks == -1, Verify: a.verify, Guard: a.guard, After: a.after}, now)
	}
	if d.Kind != partition.Append {
		r.mu.Unlock()
		return d
	}
	a.header.BaseOffset = d.Base
	v := r.view.Load()
	batch.SetBaseOffset(a.bytes, d.Base)
	batch.SetLeaderEpoch(a.bytes, v.Epoch)
	end := a.header.NextOffset()
	w := appendWait{end: end, bytes: int64(len(a.bytes))}
	switch a.acks {
	case -1:
		w.commit = a.to
	case 1:
		w.durable = a.to
	}
	r.waiting = append(r.waiting, w)
	r.st.Appended(a.header, a.bytes)
	r.mark(d.Base, now)
	r.maxTS = max(r.maxTS, a.header.MaxTimestamp)
	r.unsaved = r.unsaved || a.header.ProducerID >= 0
	r.publish()
	if a.base != nil {
		*a.base = d.Base
	}
	id := r.localID()
	r.b.log_.Append(&wal.Append{
		Partition: id, LeaderEpoch: v.Epoch, BaseOffset: d.Base, LastOffset: end - 1,
		MaxTimestamp: a.header.MaxTimestamp, Run: a.bytes, Sum: batch.Sum(a.bytes), Summed: true, Buf: a.buf, Class: a.class,
		Done: func(err error) { r.durable(id, end, err) },
	})
	r.mu.Unlock()
	r.appended(int64(len(a.bytes)))
	return d
}

// unavailable is the code for a partition that this broker does not serve now. Called with mu held.
func (r *replica) unavailable() int16 {
	if errors.Is(r.offline, errSuspect) {
		return protocol.CodeKafkaStorageError
	}
	return protocol.CodeNotLeaderOrFollower
}

// durable takes the log's word that everything below end of a local log is on stable storage
// here. It runs on the log's completion goroutine and does not block.
func (r *replica) durable(id wal.PartitionID, end int64, err error) {
	if err != nil {
		// The log has failed and the process is about to end. What was not
		// fsynced is not acknowledged.
		r.mu.Lock()
		if r.localID() != id && !errors.Is(err, wal.ErrFailed) {
			r.mu.Unlock() // refused, for its log was dropped: who waits for the next one is not concerned
			return
		}
		waiting := r.waiting
		r.waiting = nil
		r.mu.Unlock()
		for _, w := range waiting {
			w.fail(protocol.CodeKafkaStorageError)
		}
		return
	}
	r.mu.Lock()
	if r.st == nil || r.localID() != id {
		// Dropped while the disk was slow. What has its place may end below: that says nothing of it.
		r.mu.Unlock()
		return
	}
	before := r.view.Load()
	moved := r.st.Durable(end)
	tell, told, bytes := r.settle(end)
	decided := false
	if moved {
		r.publish()
		now := r.view.Load()
		decided = before.LastStableOffset < before.HighWatermark && now.LastStableOffset > before.LastStableOffset
	}
	r.mu.Unlock()
	if told != nil {
		told.settle(protocol.CodeNone)
	}
	for _, w := range tell {
		w.settle(protocol.CodeNone)
	}
	switch {
	case moved && before.Role == partition.Follower:
		r.moved(before, r.view.Load())
	case moved:
		r.grown(bytes, decided)
	}
}

// settle takes off the queue what is below the high watermark, and returns who
// is to be told, the first one apart so that the usual single wait costs no
// slice. Called with mu held.
func (r *replica) settle(durable int64) (tell []settler, one settler, bytes int64) {
	add := func(f settler) {
		if one == nil {
			one = f
		} else {
			tell = append(tell, f)
		}
	}
	hw := r.st.View().HighWatermark
	n := 0
	for i := range r.waiting {
		w := &r.waiting[i]
		if w.end > durable && w.end > hw {
			break
		}
		if w.durable != nil && w.end <= durable {
			add(w.durable)
			w.durable = nil
		}
		if w.end <= hw {
			if w.commit != nil {
				add(w.commit)
			}
			bytes += w.bytes
			n = i + 1
		}
	}
	clear(r.waiting[:n])
	r.waiting = r.waiting[n:]
	if len(r.waiting) == 0 {
		r.waiting = nil
	}
	return tell, one, bytes
}

// snapshot queues the producer state into the log, so that a restart replays
// only what came after it. A state that has not changed is saved too where the
// log has grown: what is not known to be without producers is read.
func (r *replica) snapshot() { r.snapshotFor(math.MaxInt64) }

// snapshotFor is snapshot for when the records below start are about to leave
// the log: a restart finds the state here and does not depend on the bucket.
func (r *replica) snapshotFor(start int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.started && !r.following {
		return
	}
	end := r.st.View().LogEnd
	if !r.unsaved && r.savedAt >= min(start, end) {
		return
	}
	r.unsaved, r.savedAt = false, end
	r.b.log_.Snapshot(r.localID(), end, r.st.Producers().Encode(end), nil)
}

// What the uploader asks (tiering.Replica).

func (r *replica) TopicID() [16]byte  { return r.topicID }
func (r *replica) TopicName() string  { return r.topic }
func (r *replica) Partition() int32   { return r.index }
func (r *replica) LeaderEpoch() int32 { return r.leaderEpoch() }

// leaderEpoch is the epoch of the leadership that metadata gave this broker;
// the view shows it only once the leadership has begun.
func (r *replica) leaderEpoch() int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.term.Epoch
}

func (r *replica) HighWatermark() int64 {
	if v := r.view.Load(); v.Role == partition.Leader {
		return v.HighWatermark
	}
	return 0
}

func (r *replica) Extent() (logStart, localStart, highWatermark, logEnd int64) {
	v := r.view.Load()
	if v.Role != partition.Leader {
		return 0, 0, 0, 0
	}
	return v.LogStart, r.localStart(), v.HighWatermark, v.LogEnd
}

func (r *replica) Pending(from int64) (bytes int64, oldestMs int64) {
	v := r.view.Load()
	if v.Role != partition.Leader || from >= v.HighWatermark {
		return 0, 0
	}
	r.mu.Lock()
	r.rewind(time.Now().UnixMilli())
	for len(r.ages) > 1 && r.ages[1].offset <= from {
		r.ages = r.ages[1:]
	}
	if len(r.ages) > 0 {
		oldestMs = r.ages[0].ms
	}
	r.mu.Unlock()
	return r.b.log_.BytesBetween(r.localID(), from, v.HighWatermark), oldestMs
}

// ageMark says when the records from offset on began to be appended. A mark is
// made at most every ageStep, which is as exact as a flush interval needs.
type ageMark struct {
	offset, ms int64
}

const (
	ageStep = 100 // milliseconds
	maxAges = 1024
)

// mark notes the time of an append at offset. Called with mu held.
func (r *replica) mark(offset, now int64) {
	r.rewind(now)
	if n := len(r.ages); n > 0 && now-r.ages[n-1].ms < ageStep {
		return
	}
	if len(r.ages) == maxAges {
		// Thinned to every other mark: the oldest stays, the rest get coarser.
		for i := 1; i < maxAges/2; i++ {
			r.ages[i] = r.ages[2*i]
		}
		r.ages = r.ages[:maxAges/2]
	}
	r.ages = append(r.ages, ageMark{offset, now})
}

// rewind takes marks of a time that has yet to come for marks of now: the clock was
// set back, and what was appended before would not get old enough to be uploaded
// until it has caught up. Called with mu held.
func (r *replica) rewind(now int64) {
	for i := len(r.ages) - 1; i >= 0 && r.ages[i].ms > now; i-- {
		r.ages[i].ms = now
	}
}

func (r *replica) Read(offset int64, maxBytes int, upTo int64) (tiering.Run, error) {
	v := r.view.Load()
	run, err := r.b.log_.Read(r.localID(), offset, maxBytes, min(upTo, v.HighWatermark))
	if err != nil {
		return tiering.Run{}, err
	}
	return tiering.Run{Chunks: run.Chunks, Base: run.Base, Next: run.Next, Release: run.Release}, nil
}

func (r *replica) Lineage() lineage.Lineage {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st == nil {
		return nil
	}
	return r.st.Lineage()
}

// Committed takes what a committed manifest head says, as read back: only now
// may the log reclaim what the head covers (I2).
func (r *replica) Committed(s tiering.State) {
	r.mu.Lock()
	if r.st == nil || !r.started {
		r.mu.Unlock()
		return
	}
	r.seen(s)
	moved := r.st.LiftTo(s.RemoteEnd, s.LogStart)
	r.st.ForgetAborted(r.localStart())
	r.publish()
	r.mu.Unlock()
	r.b.log_.SetReclaimable(r.localID(), max(s.RemoteEnd, s.LogStart))
	if moved {
		r.changed()
	}
}

// Stuck takes note that its records cannot be uploaded: it has a share of the log only, so that the others have theirs.
func (r *replica) Stuck(stuck bool) { r.b.log_.SetStuck(r.localID(), stuck) }

// stop ends the replica for good and gives its local log back.
func (r *replica) stop() {
	r.mu.Lock()
	r.stopped = true
	epoch := r.lastSeen
	r.mu.Unlock()
	r.b.replicas.countMulti(r, false)
	if trims(r.config.Load()) {
		r.b.replicas.trimming.Add(-1)
	}
	r.resign(epoch, protocol.CodeUnknownTopicOrPartition)
	r.b.fetchers.remove(r)
	if id := r.localID(); id != 0 {
		r.b.log_.Drop(id, nil)
	}
}

// notServing is the error code for a partition that is here but not served.
func (r *replica) notServing() int16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unavailable()
}

// endOfEpoch answers OffsetForLeaderEpoch from the lineage.
func (r *replica) endOfEpoch(epoch int32) (int32, int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st == nil {
		return -1, -1
	}
	return r.st.EndOfEpoch(epoch)
}

// epochAt is the leader epoch that the record at offset was appended in.
func (r *replica) epochAt(offset int64) int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st == nil {
		return -1
	}
	return r.st.Lineage().EpochAt(offset)
}

// aborted lists the aborted transactions with records in [from, to), those whose
// markers are no longer in the local log excepted: Committed forgets them. Who
// needs all of a range looks at the local start afterwards, or asks the bucket
// afterwards, for what it has up to remoteEnd at least.
func (r *replica) aborted(from, to int64) (list []producer.Aborted, remoteEnd int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st == nil {
		return nil, 0
	}
	return r.st.Producers().Aborted(from, to), r.st.View().RemoteEnd
}

// retainLocally lets go of local records that object storage has and that
// local.retention.bytes or local.retention.ms no longer keep here. -2 keeps
// them while there is room: then the log decides.
func (r *replica) retainLocally(nowMs int64) {
	v := r.view.Load()
	cfg := r.cfg()
	if v.Role == partition.Offline || !trims(cfg) {
		return
	}
	id := r.localID()
	start := r.localStart()
	if start >= v.RemoteEnd {
		return
	}
	to := start
	if limit := cfg.LocalRetentionBytes; limit >= 0 {
		// The lowest offset from which on no more than the limit is here.
		lo, hi := start, v.RemoteEnd
		for lo < hi {
			mid := lo + (hi-lo)/2
			if r.b.log_.BytesBetween(id, mid, v.LogEnd) > limit {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		to = max(to, lo)
	}
	if keep := cfg.LocalRetentionMs; keep >= 0 {
		base, found, err := r.b.log_.Find(id, nowMs-keep, start, v.RemoteEnd)
		switch {
		case err != nil:
			return
		case found:
			to = max(to, base)
		default:
			to = v.RemoteEnd
		}
	}
	if to = min(to, v.RemoteEnd); to > start {
		r.snapshotFor(to)
		r.b.log_.Trim(id, to, nil)
	}
}

func (r *replica) expireProducers(nowMs, expirationMs int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started || r.following {
		r.st.ExpireProducers(nowMs, expirationMs)
	}
}
