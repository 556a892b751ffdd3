// Package txn is the transaction coordinator (KIP-98, 360, 447, 664, 890, 994, 1152) as a pure state machine: it knows no
// clock, no log, no goroutine and no lock, and draws no random numbers.
//
// A Shard holds the transactional ids of one partition of __transaction_state. It knows two sorts of state:
//
//   - What is in the log: of each transactional id its producer id and epoch, the state of its transaction and the
//     partitions in it. Only Apply changes it, at recovery and at run time alike.
//   - What is lost with the leader: which partitions have their marker already. Only Settle takes from it; a Prepare record
//     puts all its partitions back.
//
// Handle decides and changes neither. The one commit point of a transition is the append of its records: until it
// succeeded, the state is what it was before the command, and the command may be repeated.
//
//	Handle(now, command) -> Result{records, replies, markers, ...}
//	    NeedProducerID             get a producer id, then Handle(now, Supplied{command, id}); without one Fail(result)
//	    no records                 Settle(result), replies leave, markers are written
//	    records, append succeeded  Apply(each record), Settle(result), replies leave, markers are written
//	    records, append failed     Fail(result) -> an error reply; nothing else happened
//
// While a Result waits for its append, further commands to the same transactional id may be handled only as AccessOf
// allows; Settle panics if that was broken.
//
// The life of a transactional id:
//
//	              InitProducerId                 AddPartitions, AddOffsets
//	(unknown) ------------------> Empty --------------------------------------> Ongoing <-+ more partitions
//	    ^                         ^   |                                          |  |  |___|
//	    |                         |   | EndTxn(abort), version 2,                |  |
//	    |          InitProducerId |   | nothing to abort           EndTxn(abort),|  | EndTxn(commit)
//	    | expiry                  |   |                     timeout, InitProducerId |
//	    |                         |   v                                          v  v
//	    +---------- CompleteAbort, <--------- all markers written --- PrepareAbort, PrepareCommit
//	                CompleteCommit --- AddPartitions, AddOffsets ---> Ongoing
//
// A transaction is committed, or aborted, when its Prepare record is: from then on it cannot end in another way, whoever
// is the coordinator. The markers make that known to the partitions; they may be written any number of times. The
// Complete record says that they need not be any more, and lets the next transaction begin.
package txn

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// State is the state of a transactional id, numbered as in records.
type State int8

const (
	// Empty ids have a producer id and have had no transaction since they got it.
	Empty State = iota
	// Ongoing transactions have partitions and have not ended.
	Ongoing
	// PrepareCommit transactions are committed; not all partitions know it yet.
	PrepareCommit
	// PrepareAbort transactions are aborted; not all partitions know it yet.
	PrepareAbort
	// CompleteCommit transactions are committed and all partitions know it.
	CompleteCommit
	// CompleteAbort transactions are aborted and all partitions know it.
	CompleteAbort
	// Dead ids have expired. Their record is a tombstone, so that no record has this state.
	Dead
	// PrepareEpochFence is an Ongoing transaction that gets a higher epoch so as to be aborted. That and the abort are
	// one record here, as in Kafka, so that no record has this state.
	PrepareEpochFence
)

var stateNames = [...]string{"Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort", "Dead", "PrepareEpochFence"}

// String is the state's name on the wire.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "Unknown"
	}
	return stateNames[s]
}

// prepared says that the transaction has ended and that markers are being written.
func (s State) prepared() bool { return s == PrepareCommit || s == PrepareAbort }

// at rest nothing is open: the next transaction may begin, and the id may expire.
func (s State) atRest() bool { return s == Empty || s == CompleteCommit || s == CompleteAbort }

// before has for each state those that may come before it. Dead and PrepareEpochFence never are in a record; they stand
// here because Kafka's table has them.
var before = [...][]State{
	Empty:             {Empty, CompleteCommit, CompleteAbort},
	Ongoing:           {Ongoing, Empty, CompleteCommit, CompleteAbort},
	PrepareCommit:     {Ongoing},
	PrepareAbort:      {Ongoing, PrepareEpochFence, Empty, CompleteCommit, CompleteAbort},
	CompleteCommit:    {PrepareCommit},
	CompleteAbort:     {PrepareAbort},
	Dead:              {Empty, CompleteCommit, CompleteAbort},
	PrepareEpochFence: {Ongoing},
}

func legal(from, to State) bool { return slices.Contains(before[to], from) }

// lastClientEpoch is the highest epoch that a client may have. The one above is kept for the coordinator, which must be
// able to fence whoever has this one.
const lastClientEpoch = math.MaxInt16 - 1

func exhausted(epoch int16) bool { return epoch >= lastClientEpoch }

// bumped is the next epoch. Above the highest there is none: such an epoch is never a client's.
func bumped(epoch int16) int16 {
	if epoch == math.MaxInt16 {
		return epoch
	}
	return epoch + 1
}

// bumps is the first transaction.version that gives every transaction an epoch of its own (KIP-890).
const bumps = 2

// noTimeout is the timeout of transactions that are part of a distributed one (KIP-939). They are not begun here, but may
// lie in a log.
const noTimeout = math.MaxInt32

// metadata is what is in the log of a transactional id. It is never changed in place, and neither are its topics.
type metadata struct {
	producerID int64
	previousID int64 // before the last transition; -1 unknown
	nextID     int64 // while a transaction ends at an exhausted epoch: the producer id from then on; -1 none
	epoch      int16
	last       int16 // the epoch before, if its producer may still name it; -1 none
	timeout    int32 // ms
	state      State
	topics     []Topic
	updated    int64 // ms since the epoch
	started    int64 // ms since the epoch; -1 no transaction since InitProducerId
	version    int16 // transaction.version of the client, as far as known; at least 2: its epochs are bumped
}

// complete is what follows a Prepare state once all markers are written.
func (m metadata) complete() metadata {
	m.state = map[State]State{PrepareCommit: CompleteCommit, PrepareAbort: CompleteAbort}[m.state]
	if m.version >= bumps && m.nextID >= 0 {
		m.producerID, m.epoch = m.nextID, 0
	}
	m.nextID, m.topics = -1, nil
	return m
}

// endedFrom is the epoch in which a transaction was that has ended, if the end bumped it; -1 otherwise.
func (m metadata) endedFrom() int16 {
	switch {
	case m.version < bumps || m.state < PrepareCommit || m.state > CompleteAbort:
		return -1
	case m.epoch == 0:
		return lastClientEpoch // the producer id is a new one
	}
	return m.epoch - 1
}

// Topic is a topic with partitions of it. Lists of topics are in order and without repetitions, and so are the partitions.
type Topic struct {
	Topic      string
	Partitions []int32
}

func has(ts []Topic, topic string, partition int32) bool {
	i, ok := slices.BinarySearchFunc(ts, topic, func(t Topic, name string) int { return strings.Compare(t.Topic, name) })
	if !ok {
		return false
	}
	_, ok = slices.BinarySearch(ts[i].Partitions, partition)
	return ok
}

func hasAll(ts, some []Topic) bool {
	for _, t := range some {
		for _, p := range t.Partitions {
			if !has(ts, t.Topic, p) {
				return false
			}
		}
	}
	return true
}

func count(ts []Topic) (n int) {
	for _, t := range ts {
		n += len(t.Partitions)
	}
	return n
}

// union is a list of all that is in both; add need not be in order. It shares with have, and keeps nothing of add.
func union(have, add []Topic) []Topic {
	all := slices.Clone(have)
	for _, t := range add {
		if len(t.Partitions) > 0 {
			all = append(all, Topic{strings.Clone(t.Topic), slices.Clone(t.Partitions)})
		}
	}
	slices.SortStableFunc(all, func(a, b Topic) int { return cmp.Compare(a.Topic, b.Topic) })
	var out []Topic
	for i := 0; i < len(all); {
		j := i + 1
		for j < len(all) && all[j].Topic == all[i].Topic {
			j++
		}
		t := all[i]
		if j > i+1 || !increasing(t.Partitions) {
			var ps []int32
			for _, same := range all[i:j] {
				ps = append(ps, same.Partitions...)
			}
			slices.Sort(ps)
			t.Partitions = slices.Compact(ps)
		}
		out = append(out, t)
		i = j
	}
	return out
}

func increasing(ps []int32) bool {
	for i := 1; i < len(ps); i++ {
		if ps[i] <= ps[i-1] {
			return false
		}
	}
	return true
}

func sizeOf(ts []Topic) (n int64) {
	for _, t := range ts {
		n += 48 + int64(len(t.Topic)) + 4*int64(len(t.Partitions))
	}
	return n
}
