package controller

import (
	"fmt"
	"slices"

	"github.com/varve/varve/metadata/image"
)

// elect chooses a leader among the replicas that are known to hold everything
// committed: the leader it has, the others of the ISR in the order of the
// assignment, then the eligible ones outside of it (KIP-966: what left the ISR
// while it was below min.insync.replicas, when nothing could be committed
// without it). Nobody else: an unclean leader would cut what was acknowledged.
// Those whose log was cut come after all the others, for they may lack a block.
//
// Whoever is not to lead (candidates.reserve) does so only if nobody else of the
// same set can: it has everything, and a partition without a leader helps nobody.
// So does whoever is only not known to be gone, after all that are there.
//
// minISR is the setting; see image.Partition.MinISR.
//
// The leader epoch is raised unless there was no leader and there is none:
// also when the leader stays, because then it is a new incarnation of it.
func elect(p *image.Partition, of candidates, minISR int) {
	before := p.Leader
	p.Leader = image.NoLeader
	fit := func(set []int32, cut bool) bool {
		for _, can := range []func(int32) bool{of.here(of.willing), of.here(of.alive), of.willing, of.alive} {
			fits := func(id int32) bool {
				return slices.Contains(set, id) && slices.Contains(p.Cut, id) == cut && can(id)
			}
			if fits(before) {
				p.Leader = before
				return true
			}
			if at := slices.IndexFunc(p.Replicas, fits); at >= 0 {
				p.Leader = p.Replicas[at]
				return true
			}
		}
		return false
	}
	eligible := false // it is one of those outside of the ISR
	for _, cut := range []bool{false, true} {
		if fit(p.ISR, cut) {
			break
		}
		if eligible = fit(p.ELR, cut); eligible {
			break
		}
	}
	if eligible {
		// The ISR that is away still has everything: it stays eligible.
		p.ELR = without(union(p.ELR, p.ISR), p.Leader)
		p.ISR = []int32{p.Leader}
		if len(p.ISR) >= p.MinISR(minISR) {
			p.ELR = nil
		}
	}
	if before != image.NoLeader || p.Leader != image.NoLeader {
		p.LeaderEpoch++
	}
}

// doubt notes that the log of a replica was cut at its end, and reports whether
// that makes a difference: with all of them cut, or one alone, nobody is known to
// have more.
func doubt(p *image.Partition, id int32) bool {
	p.Cut = union(p.Cut, []int32{id})
	p.Cut = cutOf(p)
	return len(p.Cut) > 0
}

// cutOf returns who is among Partition.Cut for the ISR and ELR that there are.
func cutOf(p *image.Partition) []int32 {
	if len(p.Cut) == 0 {
		return nil
	}
	complete := union(p.ISR, p.ELR)
	cut := intersect(p.Cut, complete)
	if len(cut) == 0 || len(cut) == len(complete) {
		return nil
	}
	return cut
}

// yield has a replica without a cut lead, where one is there, and takes those with
// one out of the ISR when that leads: they are back when they have caught up. It
// reports whether it changed anything. there says whose processes run; a broker that is
// being admitted is one of them: once it is, it would follow the one that was cut, and
// cut off what that lacks.
//
// A partition is not without a leader for this: a log that was cut most often
// lacks nothing, since what is torn had not been acknowledged. Where nobody else is
// there it leads, and hands over to one that comes, unless it has committed
// something alone by then.
func yield(p *image.Partition, of candidates, there func(int32) bool, minISR int) (changed bool) {
	if p.Cut = cutOf(p); len(p.Cut) == 0 {
		return false
	}
	// Those that are only not known to be gone are waited for, and do not take over.
	now := of
	now.alive = func(id int32) bool { return of.alive(id) && there(id) }
	whole := func(id int32) bool { return !slices.Contains(p.Cut, id) && now.alive(id) }
	if slices.Contains(p.Cut, p.Leader) && slices.ContainsFunc(union(p.ISR, p.ELR), whole) {
		elect(p, now, minISR)
		changed = true
	}
	if slices.Contains(p.Cut, p.Leader) || !there(p.Leader) {
		return changed
	}
	if rest := difference(p.ISR, p.Cut); len(rest) < len(p.ISR) {
		resize(p, rest, minISR)
		changed = true
	}
	return changed
}

// resize gives the partition another ISR and keeps the ELR in step: who leaves
// while the ISR is below the minimum stays eligible, since the high watermark
// does not move without it; with the minimum in sync nobody else is needed.
func resize(p *image.Partition, isr []int32, minISR int) {
	left := p.ISR
	p.ISR = isr
	if len(isr) >= p.MinISR(minISR) {
		p.ELR = nil
		return
	}
	elr := union(p.ELR, left)
	for _, id := range isr {
		elr = without(elr, id)
	}
	p.ELR = elr
}

// GiveUp is a broker's word that it does not have all of some partitions that
// it counts as a complete replica of: its log turned out to be damaged. It leaves
// their ISRs and ELRs, and others lead. Refused where it is the last: what it has
// may be all there is, and an operator is to decide.
type GiveUp struct {
	Broker      int32
	Incarnation [16]byte
	Partitions  []image.PartitionRef
}

func (c GiveUp) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	b := im.Broker(c.Broker)
	if b == nil || b.Fenced || b.Incarnation != c.Incarnation {
		return nil, Reply{ErrorCode: codeStaleBrokerEpoch, Message: fmt.Sprintf("Broker %d is not registered, or by another process.", c.Broker)}
	}
	others := electable(im, env)
	others.alive = func(id int32) bool { return id != c.Broker && present(im, env, id) }
	var changes []image.Change
	var reply Reply
	for _, ref := range c.Partitions {
		r := PartitionResult{TopicID: ref.TopicID, Partition: ref.Index}
		t, p := im.TopicByID(ref.TopicID), im.Partition(ref.TopicID, ref.Index)
		switch {
		case p == nil:
			r = r.fail(codeUnknownTopicOrPartition, "Unknown partition.")
		case !slices.Contains(p.ISR, c.Broker) && !slices.Contains(p.ELR, c.Broker):
		case len(without(union(p.ISR, p.ELR), c.Broker)) == 0:
			r = r.fail(codeEligibleNotAvailable, fmt.Sprintf("Broker %d has the last copy of %s-%d.", c.Broker, t.Name, ref.Index))
		default:
			next := *p
			next.ISR, next.ELR = without(p.ISR, c.Broker), without(p.ELR, c.Broker)
			if p.Leader == c.Broker {
				elect(&next, others, minISR(im, env, t))
			}
			changes = append(changes, setPartition(t.ID, int(ref.Index), next))
		}
		reply.Partitions = append(reply.Partitions, r)
	}
	return changes, reply
}

// candidates are the brokers that can be elected.
type candidates struct {
	alive   func(int32) bool
	reserve map[int32]bool // those that lead only what nobody else can
	away    map[int32]bool // those without a session: it is not known that they are gone (Env.Hold)
}

// willing says whether a broker can lead and may.
func (c candidates) willing(id int32) bool { return !c.reserve[id] && c.alive(id) }

// here narrows down who can lead to those that have a session.
func (c candidates) here(can func(int32) bool) func(int32) bool {
	return func(id int32) bool { return !c.away[id] && can(id) }
}

// electable are the brokers that are present.
func electable(im *image.Image, env Env) candidates {
	c := candidates{alive: func(id int32) bool { return present(im, env, id) }}
	note := func(of *map[int32]bool, id int32) {
		if *of == nil {
			*of = map[int32]bool{}
		}
		(*of)[id] = true
	}
	for _, b := range im.Brokers() {
		if !im.MayLead(b.ID) || b.Unresponsive {
			note(&c.reserve, b.ID)
		}
		if im.Session(b.ID) == nil {
			note(&c.away, b.ID)
		}
	}
	return c
}

// Elected counts the partitions that changes gave a leader, or another one, in a new
// leader epoch, and of these the ones that have a leader that was not in sync. next
// is the image with what of them was written.
func Elected(base, next *image.Image, changes []image.Change) (elected, unclean int) {
	seen := map[image.PartitionRef]bool{}
	for _, c := range changes {
		c, ok := c.(image.SetPartition)
		if !ok || seen[c.PartitionRef] {
			continue
		}
		seen[c.PartitionRef] = true
		was, is := base.StoredPartition(c.TopicID, c.Index), next.StoredPartition(c.TopicID, c.Index)
		if was == nil || is == nil || is.LeaderEpoch == was.LeaderEpoch || is.Leader == image.NoLeader {
			continue
		}
		elected++
		if is.Recovering && !slices.Contains(was.ISR, is.Leader) && !slices.Contains(was.ELR, is.Leader) {
			unclean++
		}
	}
	return elected, unclean
}

func setPartition(topic [16]byte, index int, next image.Partition) image.Change {
	next.PartitionEpoch++
	next.Cut = cutOf(&next)
	return image.SetPartition{PartitionRef: image.PartitionRef{TopicID: topic, Index: int32(index)}, State: next}
}

func same(a, b *image.Partition) bool {
	return a.Leader == b.Leader && a.LeaderEpoch == b.LeaderEpoch && a.Recovering == b.Recovering && slices.Equal(a.ISR, b.ISR) && slices.Equal(a.ELR, b.ELR) &&
		slices.Equal(a.Replicas, b.Replicas) && slices.Equal(a.Adding, b.Adding) && slices.Equal(a.Removing, b.Removing) && slices.Equal(a.Cut, b.Cut)
}

// without returns set without id; it never writes to set.
func without(set []int32, id int32) []int32 {
	at := slices.Index(set, id)
	if at < 0 {
		return set
	}
	if len(set) == 1 {
		return nil
	}
	return slices.Delete(slices.Clone(set), at, at+1)
}

// union returns the members of both, ascending.
func union(a, b []int32) []int32 {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// AlterPartition is a leader's proposal of new in-sync replica sets.
type AlterPartition struct {
	Broker      int32
	BrokerEpoch int64
	Partitions  []Proposal
}

// Proposal is what a leader wants the ISR of one partition to be.
type Proposal struct {
	TopicID        [16]byte
	Partition      int32
	LeaderEpoch    int32
	PartitionEpoch int32
	ISR            []ISRMember
}

// ISRMember is a replica and the broker epoch in which the leader saw it catch
// up, -1 if it does not say (KIP-903: a broker that restarted since, and may
// have lost its disk, must catch up again).
type ISRMember struct {
	Broker int32
	Epoch  int64
}

// PartitionResult is the outcome for one partition, named as the command names
// it.
type PartitionResult struct {
	Topic     string
	TopicID   [16]byte
	Partition int32
	ErrorCode int16
	Message   string
	State     *image.Partition // after a proposal; nil with an error
}

func (r PartitionResult) fail(code int16, message string) PartitionResult {
	r.ErrorCode, r.Message = code, message
	return r
}

func (c AlterPartition) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	b := im.Broker(c.Broker)
	if b == nil || b.Epoch != c.BrokerEpoch || b.Fenced {
		return nil, Reply{ErrorCode: codeStaleBrokerEpoch, Message: fmt.Sprintf("Broker %d is not registered with epoch %d.", c.Broker, c.BrokerEpoch)}
	}
	var changes []image.Change
	var reply Reply
	seen := make(map[image.PartitionRef]bool, len(c.Partitions))
	for _, prop := range c.Partitions {
		ref := image.PartitionRef{TopicID: prop.TopicID, Index: prop.Partition}
		r := PartitionResult{TopicID: prop.TopicID, Partition: prop.Partition}
		t := im.TopicByID(prop.TopicID)
		p := im.Partition(prop.TopicID, prop.Partition)
		code, message := codeNone, ""
		switch {
		case t == nil:
			code, message = codeUnknownTopicID, "Unknown topic id."
		case p == nil:
			code, message = codeUnknownTopicOrPartition, "Unknown partition."
		case seen[ref]:
			code, message = codeInvalidRequest, "The partition is named twice."
		default:
			code, message = prop.check(im, c.Broker, p)
		}
		seen[ref] = true
		if code != codeNone {
			r.ErrorCode, r.Message = code, message
			reply.Partitions = append(reply.Partitions, r)
			continue
		}
		var isr []int32
		for _, m := range prop.ISR {
			isr = append(isr, m.Broker)
		}
		slices.Sort(isr)
		next := *p
		resize(&next, isr, minISR(im, env, t))
		next.Recovering = false // it leads, and whoever is in sync with it has the same log
		if joined := difference(isr, p.ISR); slices.Contains(p.Cut, c.Broker) {
			next.Cut = union(next.Cut, joined) // they have what it has
		} else {
			next.Cut = difference(next.Cut, joined)
		}
		if same(p, &next) {
			r.State = p
		} else {
			change := setPartition(t.ID, int(prop.Partition), next).(image.SetPartition)
			changes = append(changes, change)
			r.State = &change.State
		}
		reply.Partitions = append(reply.Partitions, r)
	}
	return changes, reply
}

func (prop Proposal) check(im *image.Image, leader int32, p *image.Partition) (int16, string) {
	switch {
	case prop.LeaderEpoch > p.LeaderEpoch || prop.PartitionEpoch > p.PartitionEpoch:
		// The leader knows more than this controller does.
		return codeNotController, "The proposal is ahead of this controller."
	case prop.LeaderEpoch < p.LeaderEpoch:
		return codeFencedLeaderEpoch, fmt.Sprintf("The leader epoch is %d.", p.LeaderEpoch)
	case p.Leader != leader:
		return codeInvalidRequest, fmt.Sprintf("The leader is %d.", p.Leader)
	case prop.PartitionEpoch < p.PartitionEpoch:
		return codeInvalidUpdateVersion, fmt.Sprintf("The partition epoch is %d.", p.PartitionEpoch)
	}
	hasLeader := false
	for i, m := range prop.ISR {
		if m.Broker == leader {
			hasLeader = true
		}
		for _, other := range prop.ISR[:i] {
			if other.Broker == m.Broker {
				return codeInvalidRequest, fmt.Sprintf("Broker %d is named twice in the ISR.", m.Broker)
			}
		}
		if !slices.Contains(p.Replicas, m.Broker) {
			return codeInvalidRequest, fmt.Sprintf("Broker %d is not a replica.", m.Broker)
		}
		b := im.Broker(m.Broker)
		if b == nil || b.Fenced || m.Epoch != -1 && m.Epoch != b.Epoch {
			return codeIneligibleReplica, fmt.Sprintf("Broker %d is fenced, or restarted since.", m.Broker)
		}
		if b.ShuttingDown && !slices.Contains(p.ISR, m.Broker) {
			return codeIneligibleReplica, fmt.Sprintf("Broker %d is shutting down.", m.Broker)
		}
		if b.Unresponsive && !slices.Contains(p.ISR, m.Broker) {
			return codeIneligibleReplica, fmt.Sprintf("Broker %d does not answer.", m.Broker)
		}
		if b.Stale && !slices.Contains(p.ISR, m.Broker) {
			return codeIneligibleReplica, fmt.Sprintf("Broker %d has an old copy of its log directory, which has got no mark yet.", m.Broker)
		}
	}
	if !hasLeader {
		return codeInvalidRequest, "The leader is missing from the ISR."
	}
	return codeNone, ""
}
