package partition

import (
	"math"
	"slices"
)

// The in-sync replicas, as the leader keeps them (KIP-497, KIP-903, KIP-966).
//
// The set that counts is in the cluster metadata; the leader proposes another
// to the controller. Until it knows what became of the proposal, it needs the
// replicas of both sets for the high watermark (the maximal ISR): the
// controller may elect a leader from either.

// follower is what a leader knows of another replica, from its fetches.
type follower struct {
	brokerEpoch int64 // of the process that fetches; -1 before its first fetch in this leader epoch
	end         int64 // everything below is durable there
	fetchedAt   int64 // ms
	endThen     int64 // the leader's log end at that time
	caughtUp    int64 // last time (ms) at which it is known to have had all that the leader had
}

// unknownBroker is the broker epoch of one that has not fetched yet, and of one
// that cannot be in sync.
const unknownBroker int64 = -1

// joinAfterMs is how long after the last change of a partition's state a replica
// may be proposed to join its ISR. The controller takes a broker that is gone out
// of the ISRs first, and says last that it is gone.
const joinAfterMs = 500

// Member is a replica in a proposed ISR, and the broker epoch in which it has
// been seen to catch up: a broker that has restarted since, perhaps without
// its disk, is not meant (KIP-903).
type Member struct {
	Broker int32
	Epoch  int64
}

// Proposal is an ISR that the leader asks the controller for.
type Proposal struct {
	LeaderEpoch, PartitionEpoch int32
	ISR                         []Member // in the order of the assignment
}

// Fetched tells that a follower asks for what is at offset and above: it has
// everything below on stable storage. brokerEpoch is of the process that asks,
// which has been authenticated. It reports whether the high watermark moved.
func (s *State) Fetched(id int32, brokerEpoch, offset, nowMs int64) (moved bool) {
	if s.role != Leader || id == s.self || !slices.Contains(s.term.Replicas, id) {
		return false
	}
	f := s.follower(id)
	switch {
	case brokerEpoch < f.brokerEpoch:
		return false // of a process that was replaced
	case brokerEpoch > f.brokerEpoch:
		// What it was is not what it is: it may have lost its disk.
		*f = follower{brokerEpoch: brokerEpoch, caughtUp: f.caughtUp}
	}
	f.end = min(offset, s.logEnd)
	switch {
	case offset >= s.logEnd:
		f.caughtUp = nowMs
	case offset >= f.endThen && f.fetchedAt > 0:
		// It has what the leader had at its fetch before.
		f.caughtUp = max(f.caughtUp, f.fetchedAt)
	}
	f.fetchedAt, f.endThen = nowMs, s.logEnd
	return s.advance()
}

func (s *State) follower(id int32) *follower {
	f := s.followers[id]
	if f == nil {
		f = &follower{brokerEpoch: unknownBroker, caughtUp: math.MinInt64 / 2}
		s.followers[id] = f
	}
	return f
}

// inSync says that a follower has had everything at some moment of the last
// maxLagMs (replica.lag.time.max.ms).
func (s *State) inSync(f *follower, nowMs, maxLagMs int64) bool {
	if f.brokerEpoch != unknownBroker && f.end >= s.logEnd {
		f.caughtUp = max(f.caughtUp, nowMs) // nothing that it could be behind with
	}
	return nowMs-f.caughtUp <= maxLagMs
}

// ProposeISR returns the ISR that the controller is to be asked for, if it
// should be another than it is: without those that have fallen behind for
// maxLagMs, with those that have caught up. epochOf tells the broker epoch of
// a broker that may be in an ISR, or a negative number.
//
// A proposal stands, and is returned again, until metadata shows a newer state
// of the partition or ProposalRefused tells that it was not taken.
func (s *State) ProposeISR(nowMs, maxLagMs int64, epochOf func(id int32) int64) (Proposal, bool) {
	if s.role != Leader {
		return Proposal{}, false
	}
	if s.proposed != nil {
		return *s.proposed, true
	}
	belongs := func(id int32, in bool) bool {
		f := s.follower(id)
		if stays := s.inSync(f, nowMs, maxLagMs); in || !stays {
			return stays
		}
		epoch := epochOf(id)
		return nowMs-s.changedMs >= joinAfterMs && epoch >= 0 && f.brokerEpoch == epoch && f.end >= max(s.hw, s.epochStart())
	}
	// All partitions are asked again and again, and nearly all have nothing to propose: nothing is made for them.
	changed := false
	for _, id := range s.term.Replicas {
		if id == s.self {
			continue
		}
		in := slices.Contains(s.term.ISR, id)
		if belongs(id, in) != in {
			changed = true // the others are looked at all the same: it is noted when they have everything
		}
	}
	if !changed {
		return Proposal{}, false
	}
	next := make([]Member, 0, len(s.term.Replicas))
	for _, id := range s.term.Replicas {
		if id == s.self {
			next = append(next, Member{id, epochOf(id)})
			continue
		}
		in := slices.Contains(s.term.ISR, id)
		if !belongs(id, in) {
			continue
		}
		m := Member{Broker: id, Epoch: s.follower(id).brokerEpoch}
		if in && m.Epoch == unknownBroker {
			m.Epoch = epochOf(id) // it has not fetched yet, and has time until it must have
		}
		next = append(next, m)
	}
	s.proposed = &Proposal{LeaderEpoch: s.term.Epoch, PartitionEpoch: s.term.PartitionEpoch, ISR: next}
	return *s.proposed, true
}

// ProposalRefused tells that the controller, still in the partition epoch that
// the proposal names, will not take it. That the epoch has passed is no refusal:
// the same proposal, sent before, may be why. It reports whether the high watermark
// moved.
func (s *State) ProposalRefused(partitionEpoch int32) bool {
	if s.proposed == nil || s.proposed.PartitionEpoch != partitionEpoch {
		return false
	}
	s.proposed = nil
	return s.advance()
}

func (s *State) epochStart() int64 {
	start, _ := s.lineage.Start(s.term.Epoch)
	return start
}

// committedEnd is the lowest durable end over the maximal ISR.
func (s *State) committedEnd() int64 {
	end := s.durable
	need := func(id int32) {
		if id != s.self {
			end = min(end, s.follower(id).end)
		}
	}
	for _, id := range s.term.ISR {
		need(id)
	}
	if s.proposed != nil {
		for _, m := range s.proposed.ISR {
			need(m.Broker)
		}
	}
	return end
}

// Electable lists the other replicas that the controller may elect without loss while this one leads, in the order of the
// assignment: the maximal ISR.
func (s *State) Electable() (ids []int32) {
	for _, id := range s.term.Replicas {
		if id != s.self && (slices.Contains(s.term.ISR, id) || s.proposed != nil && slices.ContainsFunc(s.proposed.ISR, func(m Member) bool { return m.Broker == id })) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Lag is what a leader knows of a follower.
type Lag struct {
	Broker int32
	InSync bool  // in the ISR that metadata shows
	End    int64 // everything below is durable there; 0 before its first fetch
	Behind int64 // offsets
	// SinceMs is how long ago it is known to have had everything, -1: never in this leadership.
	SinceMs int64
}

// Progress lists the followers of a leader, in the order of the assignment.
func (s *State) Progress(nowMs int64) []Lag {
	if s.role != Leader {
		return nil
	}
	var out []Lag
	for _, id := range s.term.Replicas {
		if id == s.self {
			continue
		}
		l := Lag{Broker: id, InSync: slices.Contains(s.term.ISR, id), Behind: s.logEnd, SinceMs: -1}
		if f := s.followers[id]; f != nil {
			l.End, l.Behind = f.end, max(0, s.logEnd-f.end)
			if f.caughtUp >= 0 {
				l.SinceMs = max(0, nowMs-f.caughtUp)
			}
		}
		out = append(out, l)
	}
	return out
}
