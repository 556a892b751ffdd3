package broker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
)

// A leader that was replaced while its process did not run, or while it was cut
// off from the metadata, does not know it at once. What it appends is refused:
// its followers have gone. What it knows by heart it could still tell, and a group
// would be told an offset that is not its last any more; a processor that goes on
// from there does twice what it has committed once.
//
// So the other replicas are asked before. Only one that was in the maximal ISR
// can have been elected (and of those out of it the eligible ones of KIP-966,
// when nobody in it was left); it has heard of its epoch before it leads, and
// nothing has been committed there if it has not. That is the question of
// OffsetForLeaderEpoch, asked of followers. It costs one round trip between
// brokers, which all who ask meanwhile share, and needs nothing of etcd.

// confirming is who waits for a confirmation. What began before a question is no
// answer to it: who comes while a round is under way waits for the next.
type confirming struct {
	mu   sync.Mutex
	on   bool // rounds are under way
	next *confirmation
}

type confirmation struct {
	done chan struct{}
	code int16
}

const (
	// confirmTimeout bounds a round. A replica that does not answer is out of
	// the ISR before.
	confirmTimeout = 5 * time.Second
	confirmAsk     = 500 * time.Millisecond
	confirmAgain   = 50 * time.Millisecond
)

// confirm says whether this broker has led the partition at some time since the
// call: 0, or NOT_LEADER_OR_FOLLOWER, or COORDINATOR_NOT_AVAILABLE if that cannot
// be found out.
func (r *replica) confirm(ctx context.Context) int16 {
	r.mu.Lock()
	serves, alone := r.started, r.started && len(r.term.Replicas) == 1
	r.mu.Unlock()
	switch {
	case !serves:
		return protocol.CodeNotLeaderOrFollower
	case alone:
		return protocol.CodeNone // a second replica joins through this leader
	}
	f := &r.confirming
	f.mu.Lock()
	if f.next == nil {
		f.next = &confirmation{done: make(chan struct{})}
	}
	mine := f.next
	if !f.on {
		f.on = true
		r.b.replicas.wg.Go(r.confirmAll)
	}
	f.mu.Unlock()
	select {
	case <-mine.done:
		return mine.code
	case <-ctx.Done():
		return protocol.CodeCoordinatorNotAvailable
	}
}

// confirmAll makes rounds until nobody waits.
func (r *replica) confirmAll() {
	f := &r.confirming
	for {
		f.mu.Lock()
		c := f.next
		f.next = nil
		if c == nil {
			f.on = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		c.code = r.confirmOnce()
		close(c.done)
	}
}

func (r *replica) confirmOnce() int16 {
	ctx, cancel := context.WithTimeout(r.b.ctx, confirmTimeout)
	defer cancel()
	for {
		r.mu.Lock()
		if !r.started {
			r.mu.Unlock()
			return protocol.CodeNotLeaderOrFollower
		}
		epoch, must := r.term.Epoch, r.st.Electable()
		r.mu.Unlock()
		ask := slices.Clone(must)
		if p := r.b.meta.Image().Partition(r.topicID, r.index); p != nil {
			for _, id := range p.ELR {
				if id != r.b.opts.BrokerID && !slices.Contains(must, id) {
					ask = append(ask, id) // the answer counts if it comes
				}
			}
		}
		confirmed, replaced := r.askEpoch(ctx, ask, must, epoch)
		switch {
		case replaced:
			return protocol.CodeNotLeaderOrFollower
		case confirmed:
			return protocol.CodeNone
		}
		select {
		case <-time.After(confirmAgain): // who has not answered may be out of the ISR
		case <-ctx.Done():
			return protocol.CodeCoordinatorNotAvailable
		}
	}
}

// askEpoch asks replicas for an epoch later than the one given. replaced: there is
// one. confirmed: those that must have answered, and know of none.
func (r *replica) askEpoch(ctx context.Context, ids, must []int32, epoch int32) (confirmed, replaced bool) {
	ctx, cancel := context.WithTimeout(ctx, confirmAsk)
	defer cancel()
	type said struct {
		id        int32
		ok, later bool
	}
	answers := make(chan said, len(ids))
	for _, id := range ids {
		go func() {
			ok, later := r.askLater(ctx, id, epoch)
			answers <- said{id, ok, later}
		}()
	}
	left := len(must)
	for range ids {
		a := <-answers
		replaced = replaced || a.later
		if a.ok && slices.Contains(must, a.id) {
			left--
		}
	}
	return left == 0 && !replaced, replaced
}

// askLater asks a replica whether it knows of a later leader epoch; ok: it has
// answered.
func (r *replica) askLater(ctx context.Context, id, epoch int32) (ok, later bool) {
	to := r.b.meta.Image().Broker(id)
	if to == nil {
		return false, false
	}
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.Version, req.ReplicaID = 4, r.b.opts.BrokerID
	t, p := kmsg.NewOffsetForLeaderEpochRequestTopic(), kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
	t.Topic, p.Partition, p.CurrentLeaderEpoch, p.LeaderEpoch = r.topic, r.index, epoch, epoch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	if err := r.b.peers.ask(ctx, to, req, resp, confirmAsk, true); err != nil || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return false, false
	}
	switch resp.Topics[0].Partitions[0].ErrorCode {
	case protocol.CodeFencedLeaderEpoch, protocol.CodeNone: // the latter leads itself
		return true, true
	case protocol.CodeUnknownTopicOrPartition:
		return false, false // its metadata is not there yet: it does not know what it led before
	}
	return true, false
}

// Confirm says whether this broker leads a partition of the topic as of now
// (coordinator.ConfirmLog).
func (l topicLog) Confirm(ctx context.Context, index int32) int16 {
	r := l.find(index)
	if r == nil || r.view.Load().Role != partition.Leader {
		return protocol.CodeNotCoordinator
	}
	if code := r.confirm(ctx); code != protocol.CodeNotLeaderOrFollower {
		return code
	}
	return protocol.CodeNotCoordinator
}
