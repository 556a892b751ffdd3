package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/producer"
	"github.com/varve/varve/wal/slab"
)

// The follower's side of a replica: what it holds is brought in line with the
// leader's log, and grows with it. Its commit point is the fsync of this
// broker's log: only then is the next offset asked for, which tells the leader.

// errCorruptCopy says that what a leader sent is not what it has.
var errCorruptCopy = errors.New("broker: a batch of the leader is damaged")

// tryFollow begins to follow the leader: the local log is taken over or started
// as for a leadership, and then the fetcher of that leader is given the
// partition.
func (r *replica) tryFollow(ctx context.Context, leader int32) error {
	if err := r.work(ctx); err != nil {
		return err
	}
	defer r.worked()
	r.mu.Lock()
	rec, st, id := r.recov, r.st, r.localID()
	r.mu.Unlock()
	if st == nil {
		state, err := r.b.tier.Peek(ctx, r.topicID, r.index)
		if err != nil {
			return fmt.Errorf("read manifest head: %w", err)
		}
		if st, id, err = r.takeOver(ctx, rec, state); err != nil {
			return err
		}
		r.seen(state) // consumers may read here from now on
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.keep(ctx, st, id) {
		return ctx.Err()
	}
	if err := st.Follow(r.term); err != nil {
		return err
	}
	r.following = true
	r.b.fetchers.add(r, leader, r.term.Epoch)
	r.publish()
	return nil
}

// takeOver makes the partition's state from what this broker has of it, and from
// the bucket what it has not. A suspect log, which may lack what it once said it
// had, is of no use to follow with: it claims by its offsets what may be missing.
func (r *replica) takeOver(ctx context.Context, rec *wal.Recovered, state tiering.State) (*partition.State, wal.PartitionID, error) {
	if rec == nil && r.b.log_.Damaged() && r.leaderEpoch() > 0 && r.inSync() && !r.hasDropped() {
		return nil, 0, errSuspect // that it has no log here may be the damage
	}
	if rec != nil && rec.Suspect && rec.ClaimedEnd > state.RemoteEnd {
		if whole, ok := r.b.log_.Skip(rec.ID, state.RemoteEnd); ok {
			rec = r.recovered(whole)
		} else if r.inSync() {
			return nil, 0, errSuspect
		} else {
			r.b.log.Warn("damaged local log dropped: the leader has what was acknowledged", "partition", r.String(), "intact_end", rec.End, "remote_end", state.RemoteEnd)
			r.dropLocal(rec.ID)
			rec = nil
		}
	}
	if r.behind(rec, state) {
		return nil, 0, errBehind
	}
	if rec != nil && rec.End < max(state.RemoteEnd, state.LogStart) {
		r.b.log.Info("local log dropped: it ends below the remote end", "partition", r.String(), "local_end", rec.End, "remote_end", state.RemoteEnd, "log_start", state.LogStart)
		r.dropLocal(rec.ID)
		rec = nil
	}
	if rec == nil {
		return r.startLocal(ctx, state)
	}
	st, err := r.restore(ctx, rec, state)
	if err != nil {
		return nil, 0, fmt.Errorf("restore producer state: %w", err)
	}
	return st, rec.ID, nil
}

func (r *replica) hasDropped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

// inSync says whether the metadata counts this replica among those that have
// everything.
func (r *replica) inSync() bool {
	p := r.b.meta.Image().Partition(r.topicID, r.index)
	self := r.b.opts.BrokerID
	return p != nil && (slices.Contains(p.ISR, self) || slices.Contains(p.ELR, self))
}

// fresh says whether consumers are served by this follower: while it hears from
// its leader, and counts as in sync. A consumer that the leader has sent here
// (KIP-392) asks nobody else for minutes, and would be told again and again that
// there is nothing new.
func (r *replica) fresh() bool {
	f := r.source.Load()
	return f != nil && r.b.uptimeMs()-f.heard.Load() <= r.b.staleAfter().Milliseconds() && r.inSync()
}

// staleAfter is how long a follower and its leader hear nothing of each other
// while neither polls nor answers are late.
func (b *Broker) staleAfter() time.Duration { return 2*b.conf().ReplicaFetchWait + time.Second }

// position is where the replica's next fetch begins; false while something that
// it has is not durable yet, or if it does not follow in that epoch.
func (r *replica) position(epoch int32) (p partition.Position, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.following || r.term.Epoch != epoch {
		return p, false
	}
	return r.st.Position()
}

// copyRun is what a leader sent of a partition.
type copyRun struct {
	epoch   int32 // in which it was asked
	from    partition.Position
	records []byte // whole batches
	buf     *slab.Buf
	// Of the leader; remoteEnd is 0 if it did not say.
	highWatermark, logStart, remoteEnd int64
}

// copy appends what the leader sent. done is told when it is durable, once if
// true is returned, else never. Room in the log is waited for.
func (r *replica) copy(ctx context.Context, c *copyRun, done func(error)) (appended bool, err error) {
	pieces, err := piecesOf(c.records)
	if err != nil {
		return false, err
	}
	sizes := make([]int64, len(pieces))
	for i := range pieces {
		sizes[i] = int64(len(pieces[i].bytes))
	}
	if err := r.b.log_.ReserveAll(ctx, wal.ClassReplication, sizes); err != nil {
		return false, err
	}
	if len(pieces) > 0 && pieces[0].base < c.from.Offset && c.from.Offset < pieces[0].next {
		if err := r.beginInside(ctx, c, pieces[0].base); err != nil {
			r.unreserve(pieces)
			return false, err
		}
	}
	r.mu.Lock()
	if !r.current(c.epoch, c.from) {
		r.mu.Unlock()
		r.unreserve(pieces)
		return false, nil
	}
	if err := r.appendPieces(c, pieces, done); err != nil {
		r.mu.Unlock()
		r.unreserve(pieces)
		return false, err
	}
	before := r.view.Load()
	r.leaderSaid(c)
	now := r.view.Load()
	r.mu.Unlock()
	r.moved(before, now)
	return len(pieces) > 0, nil
}

// beginInside begins the local log anew at base, from where the leader has sent a batch that the log's start lies in: records were
// deleted up to there, and the bucket had none of the batch. Only a log that has nothing yet can begin elsewhere; of any other
// it is said below that the batch does not follow. What was sent has to be appended then: from base, the leader gives nothing.
func (r *replica) beginInside(ctx context.Context, c *copyRun, base int64) error {
	if err := r.work(ctx); err != nil {
		return err
	}
	defer r.worked()
	old := r.localID()
	if start, end := r.b.log_.Bounds(old); start != end || end != c.from.Offset {
		return nil
	}
	if err := r.b.log_.AdmitPartition(nil); err != nil {
		return err
	}
	id := r.b.log_.Create(r.topicID, r.index, base, nil, nil, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.current(c.epoch, c.from) || r.localID() != old {
		r.b.log_.Drop(id, nil)
		return nil
	}
	v := r.st.View()
	st := partition.New(r.b.opts.BrokerID, partition.Recovered{LogStart: v.LogStart, LogEnd: base, HighWatermark: base, RemoteEnd: v.RemoteEnd})
	st.Producers().SetLimit(r.b.conf().MaxProducersPerPartition)
	r.b.log_.Drop(old, nil)
	r.ages, r.savedAt, r.unsaved = nil, -1, true
	// Not with ctx: that ends with the leader's life, and r goes on to follow in this epoch.
	if !r.keep(context.WithoutCancel(ctx), st, id) {
		return nil
	}
	if err := st.Follow(r.term); err != nil {
		return err
	}
	c.from, _ = st.Position()
	return nil
}

func (r *replica) unreserve(pieces []copyPiece) {
	for i := range pieces {
		r.b.log_.Unreserve(int64(len(pieces[i].bytes)))
	}
}

// moved tells consumers that read here that a follower's high watermark or log
// start has moved.
func (r *replica) moved(before, now *partition.View) {
	if now.HighWatermark == before.HighWatermark && now.LogStart == before.LogStart {
		return
	}
	r.watchMu.Lock()
	watched := len(r.watches) > 0
	r.watchMu.Unlock()
	if watched {
		r.grown(r.b.log_.BytesBetween(r.localID(), before.HighWatermark, now.HighWatermark), now.LastStableOffset > before.LastStableOffset)
	}
}

// current says that an answer is to the question that stands: nothing else has
// moved the log since. Called with mu held.
func (r *replica) current(epoch int32, from partition.Position) bool {
	if !r.following || r.term.Epoch != epoch {
		return false
	}
	now, durable := r.st.Position()
	return durable && now == from
}

// copyPiece is what goes to the log as one: batches of one leader epoch.
type copyPiece struct {
	bytes      []byte
	sum        uint32 // CRC-32C of bytes
	epoch      int32
	base, next int64
	maxTS      int64
}

// maxPiece bounds the batches that are put together, so that they fit into a
// segment of the log whatever its size: at its smallest, 1 MiB, it takes appends
// of half of that.
const maxPiece = 256 << 10

// piecesOf checks the checksums of a run of whole batches, and puts those
// together that the log can take as one.
func piecesOf(records []byte) (pieces []copyPiece, err error) {
	start, end := 0, 0 // of the last piece
	err = batch.Walk(records, func(h batch.Header, b []byte) error {
		if err := batch.VerifyCRC(b); err != nil {
			return err
		}
		n := len(pieces)
		end += len(b)
		if n == 0 || pieces[n-1].epoch != h.LeaderEpoch || pieces[n-1].next != h.BaseOffset || len(pieces[n-1].bytes)+len(b) > maxPiece {
			start = end - len(b)
			pieces = append(pieces, copyPiece{bytes: records[start:end:end], sum: batch.Sum(b), epoch: h.LeaderEpoch, base: h.BaseOffset, next: h.NextOffset(), maxTS: h.MaxTimestamp})
			return nil
		}
		x := &pieces[n-1]
		x.bytes = records[start:end:end]
		x.sum = crc32c.Then(x.sum, batch.Sum(b), crc32c.ShiftOf(len(b)))
		x.next, x.maxTS = h.NextOffset(), max(x.maxTS, h.MaxTimestamp)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCorruptCopy, err)
	}
	return pieces, nil
}

// appendPieces queues what was sent to the log, and the leader epochs that begin
// with it. All of it is checked before the first is queued. Called with mu held.
func (r *replica) appendPieces(c *copyRun, pieces []copyPiece, done func(error)) error {
	at := c.from
	err := batch.Walk(c.records, func(h batch.Header, _ []byte) error {
		if err := r.st.Copy(h, at); err != nil {
			return fmt.Errorf("%w: %w", errCorruptCopy, err)
		}
		at = partition.After(h)
		return nil
	})
	if err != nil {
		return err
	}
	now, id := time.Now().UnixMilli(), r.localID()
	for i := range pieces {
		x := &pieces[i]
		batch.Walk(x.bytes, func(h batch.Header, b []byte) error { // it was walked before: there is no error
			if r.st.Copied(h, b) {
				r.b.log_.Epoch(id, h.LeaderEpoch, h.BaseOffset, nil)
			}
			r.unsaved = r.unsaved || h.ProducerID >= 0
			return nil
		})
		r.mark(x.base, now)
		r.maxTS = max(r.maxTS, x.maxTS)
		last := i == len(pieces)-1
		r.b.log_.Append(&wal.Append{
			Partition: id, LeaderEpoch: x.epoch, BaseOffset: x.base, LastOffset: x.next - 1,
			MaxTimestamp: x.maxTS, Run: x.bytes, Sum: x.sum, Summed: true, Buf: c.buf, Class: wal.ClassReplication,
			Done: func(err error) {
				r.durable(id, x.next, err)
				if last {
					done(err)
				}
			},
		})
	}
	return nil
}

// leaderSaid takes over what the leader says of its log. Called with mu held.
func (r *replica) leaderSaid(c *copyRun) {
	moved := r.st.LeaderAt(c.highWatermark, c.logStart, c.remoteEnd)
	r.publish()
	if moved {
		v := r.view.Load()
		r.b.log_.SetReclaimable(r.localID(), min(max(v.RemoteEnd, v.LogStart), v.LogEnd))
		r.st.ForgetAborted(r.localStart())
	}
}

// diverged cuts off what the leader does not have.
func (r *replica) diverged(ctx context.Context, c *copyRun, epoch int32, end int64) error {
	r.mu.Lock()
	if !r.current(c.epoch, c.from) {
		r.mu.Unlock()
		return nil
	}
	to, suspect := r.st.Diverged(epoch, end)
	v := r.st.View()
	r.mu.Unlock()
	// What has a leader epoch without records is cut at its end: only the epoch goes.
	var producers *producer.State
	start := r.localStart()
	whole := suspect || to < start
	if !whole && to < v.LogEnd {
		var err error
		producers, err = r.producersAt(ctx, to)
		if whole = errors.Is(err, errNotHere); err != nil && !whole {
			return fmt.Errorf("producer state at %d: %w", to, err)
		}
	}
	if whole {
		if r.inSync() {
			return fmt.Errorf("the leader's log parts from this one at offset %d, below what was committed (%d) or can be cut: nothing is cut while this replica counts as in sync", to, v.HighWatermark)
		}
		r.b.log.Warn("local log dropped: it parts from the leader's below what was committed or is here", "partition", r.String(),
			"at", to, "high_watermark", v.HighWatermark, "local_start", start)
		return r.restart(ctx, c)
	}
	if to < v.LogEnd {
		r.b.log.Info("local log cut: the leader has other records, other epochs, or none, from there on", "partition", r.String(), "at", to, "end", v.LogEnd, "epoch", c.epoch)
	} else {
		r.b.log.Debug("leader epoch without records forgotten: the leader does not have it", "partition", r.String(), "at", to, "epoch", c.epoch)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.current(c.epoch, c.from) {
		return nil
	}
	if producers == nil {
		producers = r.st.Producers()
	}
	r.b.log_.Truncate(r.localID(), to, nil)
	r.st.Truncated(to, producers)
	r.savedAt, r.unsaved = min(r.savedAt, to), true
	for len(r.ages) > 0 && r.ages[len(r.ages)-1].offset >= to {
		r.ages = r.ages[:len(r.ages)-1]
	}
	r.publish()
	return nil
}

// errNotHere says that the producer state at an offset cannot be made: the local
// log does not go back far enough, and objects reach beyond.
var errNotHere = errors.New("broker: the state of the producers there is not known")

// producersAt makes the producer state as it was at an offset that is here: from
// the log's own snapshot and what came after it, or from all records, if the log
// has them; only where a cut goes below that snapshot from the bucket.
func (r *replica) producersAt(ctx context.Context, to int64) (*producer.State, error) {
	start, _ := r.b.log_.Bounds(r.localID())
	producers, from := producer.New(), start
	snap, at, err := r.b.log_.ProducerSnapshot(r.localID())
	if err != nil {
		return nil, err
	}
	switch {
	case len(snap) > 0 && start <= at && at <= to:
		if producers, _, err = producer.Decode(snap); err != nil {
			return nil, fmt.Errorf("producer snapshot of the local log: %w", err)
		}
		from = at
	case start > 0:
		state, err := r.b.tier.Peek(ctx, r.topicID, r.index)
		if err != nil {
			return nil, err
		}
		if state.RemoteEnd == 0 {
			break // what was before was deleted
		}
		_, snap, end, err := r.b.tier.Tail(ctx, r.topicID, r.index)
		if err != nil {
			return nil, fmt.Errorf("read the newest object's footer: %w", err)
		}
		if end > to {
			return nil, errNotHere
		}
		if end < start {
			break // what was between was deleted before the bucket had it; see startLocal
		}
		if len(snap) > 0 {
			if producers, _, err = producer.Decode(snap); err != nil {
				return nil, fmt.Errorf("producer snapshot of the newest object: %w", err)
			}
			from = end
			aborted, err := r.abortedHere(ctx, state, start, end)
			if err != nil {
				return nil, err
			}
			producers.RestoreAborted(aborted)
		}
	}
	_, err = r.replay(ctx, r.localID(), producers, from, to)
	producers.SetLimit(r.b.conf().MaxProducersPerPartition)
	return producers, err
}

// restart begins the local log anew at the remote end: what is below is in the
// bucket, and what is above is the leader's to give.
func (r *replica) restart(ctx context.Context, c *copyRun) error {
	if err := r.work(ctx); err != nil {
		return err
	}
	defer r.worked()
	state, err := r.b.tier.Peek(ctx, r.topicID, r.index)
	if err != nil {
		return fmt.Errorf("read manifest head: %w", err)
	}
	r.mu.Lock()
	ok := r.current(c.epoch, c.from)
	r.mu.Unlock()
	if !ok {
		return nil
	}
	if c.from.Offset > max(state.RemoteEnd, state.LogStart) && r.inSync() {
		return fmt.Errorf("the leader does not have offset %d any more, the bucket ends at %d, and this replica counts as in sync: it stays as it is", c.from.Offset, state.RemoteEnd)
	}
	old := r.localID()
	st, id, err := r.startLocal(ctx, state)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b.log_.Drop(old, nil)
	r.ages, r.savedAt, r.unsaved = nil, -1, true
	if !r.keep(context.WithoutCancel(ctx), st, id) || !r.following || r.term.Epoch != c.epoch { // as in beginInside
		return nil
	}
	if err := st.Follow(r.term); err != nil {
		return err
	}
	r.publish()
	return nil
}

// stopFollowing ends the copying; the state stays as it is.
func (r *replica) stopFollowing() {
	r.mu.Lock()
	r.following = false
	if r.st != nil && !r.started {
		r.publish()
	}
	r.mu.Unlock()
	r.b.fetchers.remove(r)
}

// offsetGone says that a leader does not have the offset that it was asked for.
func offsetGone(code int16) bool {
	return code == protocol.CodeOffsetOutOfRange || code == protocol.CodeOffsetMovedToTieredStorage
}
