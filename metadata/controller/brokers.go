package controller

import (
	"fmt"
	"slices"

	"github.com/varve/varve/metadata/image"
)

// Event is something that Reconcile or a command did that an operator wants to
// know.
type Event struct {
	Kind    string // one of EventKinds
	Broker  int32
	Count   int // partitions concerned
	Message string
}

// EventKinds are the kinds of events there are.
var EventKinds = []string{"admitted", "reregistered", "fenced", "disk-lost", "disk-stale", "log-cut", "data-lost", "offline", "cleaned", "shutting-down", "elected", "unclean",
	"relieved", "yielded", "reassigned", "rebalanced", "unresponsive", "responsive"}

// Reconcile returns what the image calls for, one matter at a time: the caller
// writes the changes and calls again until there are none. The state it works
// from is all in the image, so a new controller takes up whatever its
// predecessor left half done.
func Reconcile(im *image.Image, env Env) ([]image.Change, []Event) {
	env = env.withDefaults()
	for _, s := range im.Sessions() {
		b := im.Broker(s.ID)
		if b != nil && !b.Fenced && b.Epoch == s.Revision && b.Incarnation == s.Incarnation {
			continue
		}
		return admit(im, env, b, s)
	}
	if !env.Hold {
		for _, b := range im.Brokers() {
			if im.Session(b.ID) == nil && (!b.Fenced || b.Epoch == admitting) {
				return fence(im, env, b)
			}
		}
	}
	if !env.Hold {
		for _, b := range im.Brokers() {
			r, ok := env.Responds[b.ID]
			if ok && r.Incarnation == b.Incarnation && r.Unresponsive != b.Unresponsive && running(im, b.ID) {
				return respond(b, r.Unresponsive)
			}
		}
	}
	if loose := im.Loose(1000); len(loose) > 0 {
		changes := make([]image.Change, len(loose))
		for i, ref := range loose {
			changes[i] = image.DropPartition{PartitionRef: ref}
		}
		return changes, []Event{{Kind: "cleaned", Broker: image.NoLeader, Count: len(loose),
			Message: fmt.Sprintf("removed %d partitions of a creation that did not finish", len(loose))}}
	}
	return settle(im, env)
}

// The broker epochs of a record that names an incarnation whose admission is
// not known to be complete: being admitted, and fenced before it was.
const (
	admitting   = 0
	notAdmitted = -1
)

// present says whether a broker can be elected: admitted, not about to end, and
// not known to have been replaced by, or ended for, a process that is not
// admitted yet.
func present(im *image.Image, env Env, id int32) bool {
	b := im.Broker(id)
	if b == nil || b.Fenced || b.ShuttingDown {
		return false
	}
	s := im.Session(id)
	if s == nil {
		return env.Hold
	}
	return s.Incarnation == b.Incarnation && !setBack(b, s)
}

// running says whether the process of a broker that was admitted is there now.
func running(im *image.Image, id int32) bool {
	b, s := im.Broker(id), im.Session(id)
	return b != nil && !b.Fenced && s != nil && s.Incarnation == b.Incarnation && !setBack(b, s)
}

// setBack says that an admitted process has registered again with an old copy of what it
// had, as one whose machine was set back together with its memory, and that its partitions
// have not been told of it yet.
func setBack(b *image.Broker, s *image.Session) bool {
	return s.Stale && !b.Stale && s.Revision != b.Epoch
}

// admit lets a registered broker in.
//
// A process that registers again after its session ran out (same incarnation)
// goes on where it was. A new incarnation must not append in an epoch that an
// earlier process opened: followers may hold what that process never fsynced,
// and the same offset and epoch must never mean other bytes. So:
//
//	SetBroker  incarnation new, fenced, admitting: an earlier process of this id that still
//	           runs reads that it is deposed, before it can see an epoch raised below
//	SetPartition ...  every partition that this broker led, its epoch raised
//	SetBroker  admitted, with the session's epoch: the commit point
//
// A controller that finds a record in the state of the first step does the
// second again. Until the last step the record keeps the old WAL, so that a lost
// disk is seen again too. A process that was fenced and registers again goes the same
// way: what the second step has it lead is found again if it ends before the last. So
// does one that was set back to what it had been before (setBack): it has forgotten what
// it appended in its epochs.
//
// In the second step, too, the ISRs and ELRs are made right, for they say who has
// everything. A lost disk has nothing. An old copy of one (Session.Stale) lacks what
// came since, so others lead. Where none of them is known to have everything, one may
// still have more than the copy, and would cut that off to follow it: nobody leads until
// an operator has said who, as after a lost disk. Only of what has no other replica
// the copy is all there is, and it goes on with that. A log whose end was cut
// (Session.Cut) may lack its last block: it stays where it is, behind the others; see yield.
func admit(im *image.Image, env Env, old *image.Broker, s *image.Session) ([]image.Change, []Event) {
	admitted := image.Broker{ID: s.ID, Epoch: s.Revision, Incarnation: s.Incarnation, Rack: s.Rack, Endpoints: s.Endpoints, WAL: s.WAL, Stale: s.Stale}
	fresh := old != nil && (old.Incarnation != s.Incarnation || old.Epoch == admitting || old.Epoch == notAdmitted)
	lost := old != nil && old.WAL != s.WAL
	stale := old != nil && !lost && s.Stale && (fresh || !old.Stale) // of a process that was admitted with one it was dealt with then
	cut := fresh && !lost && !stale && s.Cut
	// What is accepted is what was known to be lost when the process was started: not what
	// others lose while it runs, which it would take over when it next registers again.
	accepts := s.AcceptLoss && (old == nil || fresh || lost)
	// A process that lost its session while it was shutting down still is.
	admitted.ShuttingDown = old != nil && old.ShuttingDown && old.Incarnation == s.Incarnation
	// And one that did not answer has to do so before it counts as it did.
	admitted.Unresponsive = old != nil && old.Unresponsive && old.Incarnation == s.Incarnation

	of := electable(im, env)
	of.alive = func(id int32) bool {
		return id == s.ID && !admitted.ShuttingDown || id != s.ID && present(im, env, id)
	}
	there := func(id int32) bool { return id == s.ID || running(im, id) }
	var partitions []image.Change
	var raised, dropped, forfeited, kept, behind, offline int
	for t := range im.AllTopics() {
		least := minISR(im, env, t)
		for i, p := range t.Partitions {
			if !slices.Contains(p.Replicas, s.ID) {
				continue
			}
			next := *p
			if slices.Contains(p.ISR, s.ID) || slices.Contains(p.ELR, s.ID) {
				switch {
				case lost, stale && len(p.Replicas) > 1:
					dropped++
					next.ISR, next.ELR = without(p.ISR, s.ID), without(p.ELR, s.ID)
				case stale:
					kept++
					next.Recovering = true // what is in the bucket may go further
				case cut && doubt(&next, s.ID):
					behind++
				}
			}
			if len(next.ISR) == 0 && len(next.ELR) == 0 && accepts {
				// Nobody is known to have what was not in the bucket yet.
				forfeited++
				next.ISR = []int32{s.ID}
				next.Recovering = true // it may have an older log, of another history
			}
			switch {
			case p.Leader == s.ID && (fresh || lost || stale || !slices.Contains(next.ISR, s.ID)), p.Leader == image.NoLeader:
				elect(&next, of, least)
			}
			yield(&next, of, there, least)
			if next.Leader == image.NoLeader {
				offline++
			}
			if same(p, &next) {
				continue
			}
			if next.Leader == s.ID {
				raised++
			}
			partitions = append(partitions, setPartition(t.ID, i, next))
		}
	}

	var changes []image.Change
	if (fresh || stale || old != nil && old.Fenced) && len(partitions) > 0 {
		deposed := *old
		deposed.Incarnation, deposed.Epoch, deposed.Fenced, deposed.ShuttingDown, deposed.Unresponsive = s.Incarnation, admitting, true, admitted.ShuttingDown, admitted.Unresponsive
		changes = append(changes, image.SetBroker{Broker: deposed})
	}
	changes = append(changes, partitions...)
	changes = append(changes, image.SetBroker{Broker: admitted})

	kind := "admitted"
	if old != nil && !fresh && !lost {
		kind = "reregistered"
	}
	events := []Event{{Kind: kind, Broker: s.ID, Count: raised, Message: fmt.Sprintf("broker %d %s, leading %d partitions in a new epoch", s.ID, kind, raised)}}
	tell := func(kind string, n int, format string, args ...any) {
		events = append(events, Event{Kind: kind, Broker: s.ID, Count: n, Message: fmt.Sprintf(format, args...)})
	}
	if lost {
		tell("disk-lost", dropped, "broker %d came back with another log directory: it is out of the ISR of %d partitions until it has caught up", s.ID, dropped)
	}
	if stale {
		tell("disk-stale", dropped, "broker %d came back with an old copy of its log directory: it is out of the ISR of %d partitions until it has caught up", s.ID, dropped)
	}
	if behind > 0 {
		tell("log-cut", behind, "broker %d cut off the end of its log, a block that had been begun: others lead %d partitions before it does, until it has caught up", s.ID, behind)
	}
	if kept > 0 {
		tell("data-lost", kept, "%d partitions have their only replica in the old copy of the log directory of broker %d: they go on with what it has, and what came since and was not uploaded is lost", kept, s.ID)
	}
	if forfeited > 0 {
		tell("data-lost", forfeited, "%d partitions had nobody left who is known to have everything: broker %d leads them from their remote end, and what was not uploaded is lost", forfeited, s.ID)
	}
	if offline > 0 {
		tell("offline", offline, "%d partitions with a replica on broker %d have no leader", offline, s.ID)
	}
	return changes, events
}

// fence takes a broker without a session out: its partitions get other leaders
// or none, then its record says so. Others without one leave an ISR together with
// it: one by one, the first would not be eligible (nothing can be committed without
// it, though, as long as the others are not there).
func fence(im *image.Image, env Env, b *image.Broker) ([]image.Change, []Event) {
	others := electable(im, env)
	others.alive = func(id int32) bool { return id != b.ID && present(im, env, id) }
	var changes []image.Change
	var led, offline int
	for t := range im.AllTopics() {
		for i, p := range t.Partitions {
			inISR := slices.Contains(p.ISR, b.ID)
			if p.Leader != b.ID && !inISR {
				continue
			}
			next := *p
			least := minISR(im, env, t)
			if rest := without(p.ISR, b.ID); inISR && len(rest) > 0 {
				if there := slices.DeleteFunc(slices.Clone(rest), func(id int32) bool { return im.Session(id) == nil }); len(there) > 0 {
					rest = there
				} else if p.MinISR(least) > 1 {
					rest = rest[:1] // nobody is there: all the others are eligible
				}
				resize(&next, rest, least)
			} // else the last one stays: the ISR says who has everything
			if p.Leader == b.ID || p.Leader != image.NoLeader && !slices.Contains(next.ISR, p.Leader) {
				led++
				elect(&next, others, least)
				if next.Leader == image.NoLeader {
					offline++
				}
			}
			if same(p, &next) {
				continue
			}
			changes = append(changes, setPartition(t.ID, i, next))
		}
	}
	fenced := *b
	fenced.Fenced = true
	if b.Epoch == admitting {
		fenced.Epoch = notAdmitted
	}
	changes = append(changes, image.SetBroker{Broker: fenced})
	events := []Event{{Kind: "fenced", Broker: b.ID, Count: led,
		Message: fmt.Sprintf("broker %d has no session: fenced, %d partitions led by it move", b.ID, led)}}
	if offline > 0 {
		events = append(events, Event{Kind: "offline", Broker: b.ID, Count: offline,
			Message: fmt.Sprintf("%d partitions have no leader until broker %d is back", offline, b.ID)})
	}
	return changes, events
}

// Marked is a broker's word that the old copy of a log directory which it was admitted
// with, in the registration of that epoch, has been given a mark: from then on the copy
// is its directory, and it may join ISRs.
type Marked struct {
	Broker      int32
	BrokerEpoch int64
}

func (c Marked) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	b := im.Broker(c.Broker)
	switch {
	case b == nil || b.Fenced || b.Epoch != c.BrokerEpoch:
		return nil, Reply{ErrorCode: codeStaleBrokerEpoch, Message: fmt.Sprintf("Broker %d is not registered with epoch %d.", c.Broker, c.BrokerEpoch)}
	case !b.Stale:
		return nil, Reply{}
	}
	next := *b
	next.Stale = false
	return []image.Change{image.SetBroker{Broker: next}}, Reply{}
}

// UnregisterBroker forgets a broker that will not come back, so that nothing is
// placed on it any more. Its replicas stay assigned: they are an operator's to
// reassign. Refused while it is alive or may still be needed.
type UnregisterBroker struct{ Broker int32 }

func (c UnregisterBroker) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	b := im.Broker(c.Broker)
	switch {
	case b == nil:
		return nil, Reply{ErrorCode: codeBrokerIDNotRegistered, Message: fmt.Sprintf("Broker ID %d is not currently registered.", c.Broker)}
	case !b.Fenced || im.Session(c.Broker) != nil:
		return nil, Reply{ErrorCode: codeInvalidRequest, Message: fmt.Sprintf("Broker %d is alive.", c.Broker)}
	}
	for t := range im.AllTopics() {
		for i, p := range t.Partitions {
			// Its record is what tells whether it comes back with its disk:
			// without it an empty disk would pass for a full copy.
			if slices.Contains(p.ISR, c.Broker) || slices.Contains(p.ELR, c.Broker) {
				return nil, Reply{ErrorCode: codeInvalidRequest, Message: fmt.Sprintf(
					"Broker %d has one of the last copies of %s-%d.", c.Broker, t.Name, i)}
			}
		}
	}
	return []image.Change{image.DropBroker{ID: c.Broker}}, Reply{}
}

// AcceptLoss is an operator's command: partitions that nobody can lead because
// their last in-sync replica's disk is gone are led by this broker, which has a
// replica of them, from their remote end. What was not uploaded is lost.
type AcceptLoss struct{ Broker int32 }

func (c AcceptLoss) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	if !im.Alive(c.Broker) {
		return nil, Reply{ErrorCode: codeInvalidRequest, Message: fmt.Sprintf("Broker %d is not alive.", c.Broker)}
	}
	var changes []image.Change
	var results []Result
	for t := range im.AllTopics() {
		n := int32(0)
		for i, p := range t.Partitions {
			if p.Leader != image.NoLeader || len(p.ISR) > 0 || len(p.ELR) > 0 || !slices.Contains(p.Replicas, c.Broker) {
				continue
			}
			next := *p
			next.Leader, next.ISR = c.Broker, []int32{c.Broker}
			next.LeaderEpoch++
			next.Recovering = true // what it has of it may be older
			changes = append(changes, setPartition(t.ID, i, next))
			n++
		}
		if n > 0 {
			results = append(results, Result{Name: t.Name, ID: t.ID, Partitions: n})
		}
	}
	return changes, Reply{Results: results}
}
