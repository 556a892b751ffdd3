package broker

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
)

// The in-sync replicas of the partitions led here: what followers' fetches say
// is noted, and another set is proposed to the controller where it is due.

// uptimeMs is the clock of lags: no step of the machine's clock makes a follower
// late, or keeps one in sync that is. It is above 0.
func (b *Broker) uptimeMs() int64 { return 1 + time.Since(b.start).Milliseconds() }

// copier is the follower whose fetch is answered: a broker, and the epoch of its
// registration.
type copier struct {
	id    int32
	epoch int64
}

// fetched notes that a follower has everything below offset on stable storage.
// moved reports whether the high watermark moved. A code other than 0: nothing was
// noted, and the follower has to say it again. It may know before this broker does
// that it is to have a replica.
func (r *replica) fetched(c *copier, epoch int32, offset int64) (moved bool, code int16) {
	r.mu.Lock()
	if !r.started || r.term.Epoch != epoch {
		r.mu.Unlock()
		return false, protocol.CodeNotLeaderOrFollower
	}
	if !slices.Contains(r.term.Replicas, c.id) {
		r.mu.Unlock()
		return false, protocol.CodeUnknownLeaderEpoch // as Kafka: what is known here is not new enough
	}
	before := r.view.Load()
	if !r.st.Fetched(c.id, c.epoch, offset, r.b.uptimeMs()) {
		r.mu.Unlock()
		return false, protocol.CodeNone
	}
	r.advanced(before)
	return true, protocol.CodeNone
}

// advanced tells everybody that the high watermark moved. Called with mu held,
// which it releases.
func (r *replica) advanced(before *partition.View) {
	tell, told, bytes := r.settle(r.st.DurableEnd())
	r.publish()
	now := r.view.Load()
	decided := before.LastStableOffset < before.HighWatermark && now.LastStableOffset > before.LastStableOffset
	r.mu.Unlock()
	if told != nil {
		told.settle(protocol.CodeNone)
	}
	for _, w := range tell {
		w.settle(protocol.CodeNone)
	}
	r.grown(bytes, decided)
}

// isrInterval is how often the followers of all partitions are looked at. A
// round costs a lock for each partition here, unless none has a second replica.
const isrInterval = 200 * time.Millisecond

// maxProposals bounds the partitions of one proposal to the controller.
const maxProposals = 1000

// keepISR looks after the in-sync replicas until ctx ends.
func (b *Broker) keepISR(ctx context.Context) {
	tick := time.NewTicker(isrInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		b.proposeISRs(ctx)
	}
}

// proposeISRs asks the controller for the in-sync replicas that should be, and
// waits for its answer. A proposal that it did not answer is made again until
// metadata shows what became of it.
func (b *Broker) proposeISRs(ctx context.Context) {
	if b.replicas.multi.Load() == 0 {
		return
	}
	im, now, lag := b.meta.Image(), b.uptimeMs(), b.conf().ReplicaLagMax.Milliseconds()
	epochOf := func(id int32) int64 {
		if im.MayJoin(id) {
			return im.Broker(id).Epoch
		}
		return -1
	}
	var asked []*replica
	c := controller.AlterPartition{Broker: b.opts.BrokerID, BrokerEpoch: b.meta.BrokerEpoch()}
	for _, r := range b.replicas.all() {
		if r.view.Load().Role != partition.Leader {
			continue // most are followed here, and cost no lock
		}
		r.mu.Lock()
		if !r.started || len(r.term.Replicas) < 2 {
			r.mu.Unlock()
			continue
		}
		p, ok := r.st.ProposeISR(now, lag, epochOf)
		was := r.term.ISR
		r.mu.Unlock()
		if !ok {
			continue
		}
		prop := controller.Proposal{TopicID: r.topicID, Partition: r.index, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch}
		var isr []int32
		for _, m := range p.ISR {
			prop.ISR = append(prop.ISR, controller.ISRMember{Broker: m.Broker, Epoch: m.Epoch})
			isr = append(isr, m.Broker)
		}
		b.log.Debug("in-sync replicas proposed", "partition", r.String(), "isr", isr, "were", was)
		c.Partitions = append(c.Partitions, prop)
		asked = append(asked, r)
		if len(asked) == maxProposals {
			break
		}
	}
	if len(asked) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	reply := b.meta.AlterPartition(ctx, c)
	if reply.ErrorCode != 0 && ctx.Err() == nil && b.failures.inSync.Allow() {
		b.log.Warn("the controller did not answer for in-sync replicas: they are proposed again", "partitions", len(asked), "error", protocol.Name(reply.ErrorCode), "message", reply.Message)
	}
	for i := range min(len(reply.Partitions), len(asked)) {
		res, r := &reply.Partitions[i], asked[i]
		if !refuses(res.ErrorCode) {
			continue
		}
		b.log.Debug("in-sync replicas not changed", "partition", r.String(), "error", protocol.Name(res.ErrorCode), "message", res.Message)
		r.mu.Lock()
		if !r.started {
			r.mu.Unlock()
			continue
		}
		before := r.view.Load()
		if r.st.ProposalRefused(c.Partitions[i].PartitionEpoch) {
			r.advanced(before)
		} else {
			r.mu.Unlock()
		}
	}
}

// refuses says that a proposal was not taken and never will be: the controller's
// state of the partition is still the one that it names. After the other errors
// it may have been taken when it was sent before.
func refuses(code int16) bool {
	return code == protocol.CodeIneligibleReplica || code == protocol.CodeInvalidRequest
}

// ReplicationStats are what this broker leads and follows, at one moment.
type ReplicationStats struct {
	UnderReplicated, UnderMinISR int // partitions led here
	Unserved                     int // partitions to be led here that are not served
	Following                    int // partitions copied here
	Followers                    []FollowerLag
	Sessions, SessionPartitions  int
	Shrinks, Expands             int64 // replicas, since the broker started
}

// FollowerLag is a broker and how many records it lacks of the partition in
// which it is furthest behind this one.
type FollowerLag struct {
	Broker int32
	Lag    int64
}

// Name is the broker's id as a label.
func (f FollowerLag) Name() string { return strconv.Itoa(int(f.Broker)) }

// ReplicationStats goes through the partitions.
func (b *Broker) ReplicationStats() ReplicationStats {
	st := ReplicationStats{Shrinks: b.shrinks.Load(), Expands: b.expands.Load(), SessionPartitions: int(b.sessions.partitions.Load())}
	b.sessions.mu.Lock()
	st.Sessions = len(b.sessions.byID)
	b.sessions.mu.Unlock()
	lags, im := map[int32]int64{}, b.meta.Image()
	for _, r := range b.replicas.all() {
		r.mu.Lock()
		switch {
		case r.following:
			st.Following++
		case r.started:
			t := &r.term
			assigned := len(t.Replicas)
			if p := im.Partition(r.topicID, r.index); p != nil {
				assigned = len(p.Assigned()) // as Kafka: without those that a reassignment is adding
			}
			if len(t.ISR) < assigned {
				st.UnderReplicated++
			}
			if len(t.ISR) < min(t.MinISR, len(t.Replicas)) {
				st.UnderMinISR++
			}
			if len(t.Replicas) > 1 {
				for _, l := range r.st.Progress(0) {
					lags[l.Broker] = max(lags[l.Broker], l.Behind)
				}
			}
		case r.leads:
			st.Unserved++
		}
		r.mu.Unlock()
	}
	for id, lag := range lags {
		st.Followers = append(st.Followers, FollowerLag{id, lag})
	}
	slices.SortFunc(st.Followers, func(a, b FollowerLag) int { return cmp.Compare(a.Broker, b.Broker) })
	return st
}

// isrChanged counts who has left and who has joined.
func (b *Broker) isrChanged(was, is []int32) {
	for _, id := range was {
		if !slices.Contains(is, id) {
			b.shrinks.Add(1)
		}
	}
	for _, id := range is {
		if !slices.Contains(was, id) {
			b.expands.Add(1)
		}
	}
}
