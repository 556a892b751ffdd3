package controller

import (
	"fmt"
	"slices"

	"github.com/varve/varve/metadata/image"
)

// AlterReassignments gives partitions other replicas, or takes that back
// (KIP-455).
//
// A reassignment begins with one write that shows both assignments: the leader
// copies to the new replicas and takes them into the ISR as it does with any
// other. It ends with one write (see settle) as soon as all of the target is in
// sync. In between, the replicas that are to go count as they did: they lead,
// and what is committed is on them. A second target takes the place of the
// first, and cancelling is the assignment there was as the target.
type AlterReassignments struct {
	Partitions []Reassignment
	// KeepReplicationFactor refuses targets of another size than the assignment.
	KeepReplicationFactor bool
}

// Reassignment is the target of one partition, the preferred leader first; nil
// cancels.
type Reassignment struct {
	Topic     string
	Partition int32
	Replicas  []int32
}

func (c AlterReassignments) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	var changes []image.Change
	var reply Reply
	seen := make(map[image.PartitionRef]bool, len(c.Partitions))
	for _, a := range c.Partitions {
		r := PartitionResult{Topic: a.Topic, Partition: a.Partition}
		t, p, r := named(im, r)
		if p != nil {
			ref := image.PartitionRef{TopicID: t.ID, Index: a.Partition}
			next, code, message := a.apply(im, env, t, p, c.KeepReplicationFactor)
			switch {
			case seen[ref]:
				r = r.fail(codeInvalidRequest, "The partition is named twice.")
			case code != codeNone:
				r = r.fail(code, message)
			case !same(p, &next):
				changes = append(changes, setPartition(t.ID, int(a.Partition), next))
			}
			seen[ref] = true
		}
		reply.Partitions = append(reply.Partitions, r)
	}
	return changes, reply
}

// named finds the partition that a result is about; if there is none, the
// result says so.
func named(im *image.Image, r PartitionResult) (*image.Topic, *image.Partition, PartitionResult) {
	t := im.Topic(r.Topic)
	if t == nil {
		return nil, nil, r.fail(codeUnknownTopicOrPartition, fmt.Sprintf("Unable to find a topic named %s.", r.Topic))
	}
	p := im.Partition(t.ID, r.Partition)
	if p == nil {
		return nil, nil, r.fail(codeUnknownTopicOrPartition, fmt.Sprintf("Unable to find partition %s-%d.", r.Topic, r.Partition))
	}
	return t, p, r
}

func (a Reassignment) apply(im *image.Image, env Env, t *image.Topic, p *image.Partition, keepRF bool) (next image.Partition, code int16, message string) {
	assigned := p.Assigned()
	target := a.Replicas
	switch {
	case target != nil:
		if err := checkAssignment(im, Assignment{a.Partition, target}, 0); err != nil {
			return next, codeInvalidReplicaAssignment, err.Error()
		}
		for _, id := range target {
			if !slices.Contains(p.Replicas, id) && !im.Active(id) {
				return next, codeInvalidReplicaAssignment, fmt.Sprintf("The target includes broker %d, which has no replica of %s-%d yet and is fenced or in controlled shutdown.", id, t.Name, a.Partition)
			}
			if !slices.Contains(p.Replicas, id) && im.Cordoned(id) {
				return next, codeInvalidReplicaAssignment, fmt.Sprintf("The target includes broker %d, which has no replica of %s-%d yet and is cordoned (%s).", id, t.Name, a.Partition, image.CordonedSetting)
			}
		}
		if keepRF && len(target) != len(assigned) {
			return next, codeInvalidReplicationFactor, fmt.Sprintf("The replication factor is changed from %d to %d.", len(assigned), len(target))
		}
	case p.Reassigning():
		target = assigned
	case env.Retry:
		return *p, codeNone, "" // cancelled by an earlier attempt
	default:
		return next, codeNoReassignment, "No partition reassignment is in progress for the partition."
	}

	next = *p
	next.Adding, next.Removing = difference(target, assigned), difference(assigned, target)
	next.Replicas = slices.Concat(target, next.Removing)
	// A former target's replica that is in neither assignment goes at once.
	next.ISR, next.ELR = intersect(p.ISR, next.Replicas), intersect(p.ELR, next.Replicas)
	complete := union(p.ISR, p.ELR)
	drops := len(intersect(complete, next.Replicas)) < len(complete)
	if p.Leader != image.NoLeader && !slices.Contains(next.Replicas, p.Leader) {
		elect(&next, electable(im, env), minISR(im, env, t))
	}
	// Those that stay may be about to turn out to have lost their disks: one of
	// them must lead, and not one that may lack a block.
	if drops && (!running(im, next.Leader) || slices.Contains(p.Cut, next.Leader)) {
		return next, codeInvalidReplicaAssignment, fmt.Sprintf("None of %v that is alive has all of %s-%d: only %v has. Keep one of these until another is in sync.",
			next.Replicas, t.Name, a.Partition, difference(complete, next.Replicas))
	}
	return next, codeNone, ""
}

// finish ends the reassignment of a partition that has a leader, if the target is
// all in sync. A leader that is to go hands over in the same write; if no replica
// of the target can lead just now, it waits.
func finish(p *image.Partition, of candidates, minISR int) bool {
	if !p.Reassigning() {
		return false
	}
	target := p.Target()
	if len(difference(target, difference(p.ISR, p.Cut))) > 0 {
		return false
	}
	next := *p
	next.Replicas, next.Adding, next.Removing = target, nil, nil
	next.ISR, next.ELR = intersect(p.ISR, target), nil
	if !slices.Contains(target, p.Leader) {
		if elect(&next, of, minISR); next.Leader == image.NoLeader {
			return false
		}
	}
	*p = next
	return true
}

// difference returns the members of a that are not in b, in the order of a.
func difference(a, b []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(a), func(id int32) bool { return slices.Contains(b, id) })
}

// intersect returns the members of a that are in b, in the order of a.
func intersect(a, b []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(a), func(id int32) bool { return !slices.Contains(b, id) })
}
