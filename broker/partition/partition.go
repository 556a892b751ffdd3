// Package partition decides what one partition on this broker does: who leads,
// which offsets a batch gets, which producer sequences are accepted, how far
// the high watermark and the last stable offset have come. It is pure: events
// go in as method calls, decisions come out as values, and the caller does the
// I/O. It knows no clock, no disk, no network, no goroutine and no lock; the
// caller serialises calls.
//
// Offsets of a partition, lowest first:
//
//	log start <= last stable offset <= high watermark <= durable end <= log end
//
// The log end moves when a batch is queued to the log, the durable end when
// the log says that it is on stable storage here, the high watermark when it
// is durable on every in-sync replica, and the last stable offset follows the
// high watermark except that it stops before the earliest undecided
// transaction (KIP-98).
package partition

import (
	"fmt"
	"maps"
	"math"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

// Kafka error codes that a decision can carry.
const (
	codeNone                     = 0
	codeNotLeader                = 6  // NOT_LEADER_OR_FOLLOWER
	codeNotEnoughReplicas        = 19 // NOT_ENOUGH_REPLICAS
	codeFencedLeaderEpoch        = 74 // FENCED_LEADER_EPOCH
	codeUnknownLeaderEpoch       = 75 // UNKNOWN_LEADER_EPOCH
	codeInvalidRecord            = 87 // INVALID_RECORD
	codeOffsetOutOfRange         = 1  // OFFSET_OUT_OF_RANGE
	codePolicyViolation          = 44 // POLICY_VIOLATION
	codeOutOfOrderSequence       = 45 // OUT_OF_ORDER_SEQUENCE_NUMBER
	codeProducerEpoch            = 47 // INVALID_PRODUCER_EPOCH
	codeInvalidTxnState          = 48 // INVALID_TXN_STATE
	noEpoch                int32 = -1
)

// Role is what this broker is to the partition.
type Role int8

const (
	// Offline replicas serve nothing: not opened yet, failed, or deleted.
	Offline Role = iota
	// Follower replicas copy from a leader.
	Follower
	// Leader replicas append, serve, and decide the high watermark.
	Leader
)

func (r Role) String() string {
	switch r {
	case Follower:
		return "follower"
	case Leader:
		return "leader"
	}
	return "offline"
}

// Recovered is what a restart knows of a partition before anybody leads it.
type Recovered struct {
	LogStart      int64 // first offset that may be read, wherever it lives
	LogEnd        int64 // next offset; everything below it is durable here
	HighWatermark int64 // highest one known to have been exposed
	RemoteEnd     int64 // end of the committed remote part; 0 without one
	Lineage       lineage.Lineage
	Producers     *producer.State
}

// Term is one leadership as the cluster metadata states it.
type Term struct {
	Epoch          int32
	PartitionEpoch int32
	Replicas       []int32
	ISR            []int32
	MinISR         int
}

// needed is how many replicas must be in sync: min.insync.replicas, but no more
// than there are, as in Kafka. A file made for three brokers must not stop the
// topics that have one replica, nor the groups.
func (t *Term) needed() int { return max(1, min(t.MinISR, len(t.Replicas))) }

// State is one partition on this broker.
type State struct {
	self      int32
	role      Role
	term      Term
	logStart  int64
	logEnd    int64
	durable   int64
	hw        int64
	remoteEnd int64
	lineage   lineage.Lineage
	producers *producer.State

	followers map[int32]*follower // of a leader; see isr.go
	proposed  *Proposal           // of a leader: an ISR that the controller may have taken
	changedMs int64               // of a leader: when it learned of the term as it stands
	leaderHW  int64               // of a follower: the highest one its leader told in this epoch

	// verifying holds, by producer, the transactions that are about to begin.
	verifying map[int64]*verification
	guards    uint64 // handed out
	void      uint64 // of them, those up to here were handed out in earlier leaderships
}

// New returns the partition as it was recovered, led by nobody.
func New(self int32, r Recovered) *State {
	p := r.Producers
	if p == nil {
		p = producer.New()
	}
	return &State{
		self:      self,
		term:      Term{Epoch: noEpoch, PartitionEpoch: noEpoch},
		logStart:  r.LogStart,
		logEnd:    r.LogEnd,
		durable:   r.LogEnd,
		hw:        min(max(r.HighWatermark, r.LogStart, r.RemoteEnd), r.LogEnd),
		remoteEnd: r.RemoteEnd,
		lineage:   r.Lineage,
		producers: p,
		followers: map[int32]*follower{},
		verifying: map[int64]*verification{},
	}
}

// Began says what the log has to record when a term begins.
type Began struct {
	NewEpoch bool  // an EPOCH record is due
	Epoch    int32 // its epoch
	Start    int64 // and the first offset of it
}

// Lead begins (or, for the same epoch, adjusts) a leadership of this broker.
// A term older than the current one is refused: metadata arrives in order, so
// it can only be a repeat. At nowMs (of a clock above 0 that does not go back or
// jump, as Fetched's and ProposeISR's), the in-sync replicas are taken to have all
// there is: they get the time of replica.lag.time.max.ms to show it.
func (s *State) Lead(t Term, nowMs int64) (Began, error) {
	if t.Epoch < s.term.Epoch {
		return Began{}, fmt.Errorf("partition: term of epoch %d refused: already in epoch %d", t.Epoch, s.term.Epoch)
	}
	fresh := t.Epoch > s.term.Epoch || s.role != Leader
	if fresh || t.PartitionEpoch > s.term.PartitionEpoch {
		s.proposed = nil // taken, or void: it named an older state
	}
	if fresh || t.PartitionEpoch != s.term.PartitionEpoch {
		s.changedMs = nowMs
	}
	s.term = t
	s.role = Leader
	var b Began
	if fresh {
		clear(s.followers)
		s.voidGuards()
		for _, id := range t.ISR {
			if id != s.self {
				s.follower(id).caughtUp = nowMs
			}
		}
		if last, ok := s.lineage.Latest(); !ok || t.Epoch > last.Epoch {
			s.lineage = s.lineage.Assign(t.Epoch, s.logEnd)
			b = Began{NewEpoch: true, Epoch: t.Epoch, Start: s.logEnd}
		}
	}
	s.advance()
	return b, nil
}

// Resign ends a leadership; epoch is the epoch of whoever leads now.
func (s *State) Resign(epoch int32) {
	s.role = Offline
	s.proposed = nil
	clear(s.followers)
	s.voidGuards()
	if epoch > s.term.Epoch {
		s.term = Term{Epoch: epoch, PartitionEpoch: noEpoch}
	}
}

// Origin says who asks for an append.
type Origin int8

const (
	// Client appends come from a Produce request.
	Client Origin = iota
	// Coordinator appends come from this broker's own coordinators, which
	// may write control markers.
	Coordinator
)

// Kind is the outcome of Decide.
type Kind int8

const (
	// Append: assign Base and queue the batch.
	Append Kind = iota
	// Duplicate: the batch is in the log already, at Base.
	Duplicate
	// Reject: answer with Code and Message.
	Reject
)

// Decision is what to do with one batch.
type Decision struct {
	Kind      Kind
	Base      int64 // offset of the first record
	Timestamp int64 // for Duplicate: the append time it had, or -1
	Code      int16 // for Reject: Kafka's error code
	Message   string
}

// Ask is a batch that is about to be appended.
type Ask struct {
	Header  batch.Header
	Origin  Origin
	AcksAll bool
	// Verify says that a batch which begins a transaction has to have been
	// verified; Guard is what BeginVerification gave for it.
	Verify bool
	Guard  Guard
	// After says that a batch of the producer with a lower sequence was refused
	// on the same connection, and is to be sent again.
	After bool
}

// writable says whether anything may be appended.
func (s *State) writable(acksAll bool) (Decision, bool) {
	switch {
	case s.role != Leader:
		return Decision{Kind: Reject, Code: codeNotLeader, Message: "this broker does not lead the partition"}, false
	case acksAll && len(s.term.ISR) < s.term.needed():
		return Decision{Kind: Reject, Code: codeNotEnoughReplicas,
			Message: fmt.Sprintf("%d in-sync replicas of min.insync.replicas=%d", len(s.term.ISR), s.term.MinISR)}, false
	}
	return Decision{}, true
}

// Decide says what to do with a batch. It changes nothing: Appended does, once
// the batch is queued.
func (s *State) Decide(a Ask, nowMs int64) Decision {
	if d, ok := s.writable(a.AcksAll); !ok {
		return d
	}
	h := a.Header
	if h.Control() && a.Origin == Client {
		return Decision{Kind: Reject, Code: codeInvalidRecord, Message: "clients may not write control batches"}
	}
	if s.logEnd > math.MaxInt64-int64(h.LastOffsetDelta)-1 {
		return Decision{Kind: Reject, Code: codePolicyViolation, Message: "the partition's offsets are used up"}
	}
	if h.ProducerID >= 0 && !h.Control() {
		v := s.producers.Check(h, nowMs)
		if v.Kind == producer.Duplicate {
			return Decision{Kind: Duplicate, Base: v.BaseOffset, Timestamp: v.Timestamp}
		}
		// As in Kafka: who is fenced is told that first, and who is not in a
		// transaction is told that before anything is said of its sequence.
		if stale := v.Kind == producer.Refuse && v.Code == codeProducerEpoch; !stale && a.Verify && h.Transactional() && !s.inTransaction(h) {
			if code, message := s.verified(h, a.Guard); code != codeNone {
				return Decision{Kind: Reject, Code: code, Message: message}
			}
		}
		if v.Kind == producer.Refuse {
			return Decision{Kind: Reject, Code: v.Code, Message: v.Message}
		}
		if a.After && !s.producers.Known(h.ProducerID) {
			return Decision{Kind: Reject, Code: codeOutOfOrderSequence, Message: fmt.Sprintf("producer %d sent sequence %d; a batch before it was refused and has not been sent again", h.ProducerID, h.BaseSequence)}
		}
	}
	return Decision{Kind: Append, Base: s.logEnd}
}

// Appended applies a batch that is queued in the log with its offset and epoch
// assigned.
func (s *State) Appended(h batch.Header, b []byte) {
	if h.BaseOffset != s.logEnd {
		panic(fmt.Sprintf("partition: batch at %d appended to a log that ends at %d", h.BaseOffset, s.logEnd))
	}
	if h.ProducerID >= 0 {
		s.producers.Apply(h, b)
		if h.Transactional() && len(s.verifying) > 0 && !s.ofEarlier(h) {
			// Its transaction has begun here, or has ended: what was verified
			// before says nothing of the next one.
			delete(s.verifying, h.ProducerID)
		}
	}
	s.logEnd = h.NextOffset()
}

// Durable tells that everything below end is on stable storage here. It
// reports whether the high watermark moved.
func (s *State) Durable(end int64) bool {
	if end > s.logEnd {
		panic(fmt.Sprintf("partition: durable end %d above log end %d", end, s.logEnd))
	}
	if end <= s.durable {
		return false
	}
	s.durable = end
	return s.advance()
}

// Heard is the highest high watermark that this replica knows of: its own, or one
// that its leader has told and that it does not have everything below yet.
func (s *State) Heard() int64 { return max(s.hw, s.leaderHW) }

// DurableEnd is where the records end that are on stable storage here.
func (s *State) DurableEnd() int64 { return s.durable }

// advance lifts the high watermark: of a leader to the lowest durable end of the
// maximal ISR, of a follower to what its leader told, as far as it is durable
// here. It never goes back (I3), and a leader's is frozen while fewer replicas
// are in sync than min.insync.replicas (KIP-966).
func (s *State) advance() bool {
	var hw int64
	switch s.role {
	case Leader:
		if len(s.term.ISR) < s.term.needed() {
			return false
		}
		hw = s.committedEnd()
	case Follower:
		hw = min(s.leaderHW, s.durable)
	}
	if hw <= s.hw {
		return false
	}
	s.hw = hw
	s.producers.Commit(hw)
	return true
}

// LiftTo applies what a committed manifest says: everything below remoteEnd is
// in the bucket, and the log starts at logStart. The remote part was below a
// high watermark when it was uploaded, so the high watermark is at least its
// end. It reports whether the high watermark or the log start moved.
func (s *State) LiftTo(remoteEnd, logStart int64) bool {
	moved := false
	s.remoteEnd = max(s.remoteEnd, remoteEnd)
	if up := min(s.remoteEnd, s.logEnd); up > s.hw {
		s.hw, moved = up, true
	}
	if logStart > s.logStart {
		s.logStart, moved = logStart, true
		s.hw = max(s.hw, min(logStart, s.logEnd))
		s.lineage = s.lineage.TruncateStart(logStart)
		s.producers.TrimAborted(logStart)
	}
	return moved
}

// CheckEpoch compares the leader epoch that a client believes in; -1 means
// that it states none (KIP-320).
func (s *State) CheckEpoch(epoch int32) int16 { return CheckEpoch(s.term.Epoch, epoch) }

// CheckEpoch compares a client's leader epoch with the current one.
func CheckEpoch(current, epoch int32) int16 {
	switch {
	case epoch < 0 || epoch == current:
		return codeNone
	case epoch < current:
		return codeFencedLeaderEpoch
	}
	return codeUnknownLeaderEpoch
}

// View is what readers need of a partition, taken at one moment.
type View struct {
	Role             Role
	Epoch            int32
	LogStart         int64
	LogEnd           int64
	HighWatermark    int64
	LastStableOffset int64
	RemoteEnd        int64
	EpochStart       int64 // first offset of the current epoch
}

// View returns the partition's offsets as they stand.
func (s *State) View() View {
	v := View{
		Role:             s.role,
		Epoch:            s.term.Epoch,
		LogStart:         s.logStart,
		LogEnd:           s.logEnd,
		HighWatermark:    s.hw,
		LastStableOffset: s.lastStable(),
		RemoteEnd:        s.remoteEnd,
	}
	if n := len(s.lineage); n > 0 {
		v.EpochStart = s.lineage[n-1].Start
	}
	return v
}

func (s *State) lastStable() int64 {
	lso := s.producers.LastStable(s.hw)
	return max(lso, min(s.logStart, s.hw))
}

// Lineage returns the leader epochs and their first offsets.
func (s *State) Lineage() lineage.Lineage { return s.lineage }

// Producers gives access to the producer state; callers must not change it.
func (s *State) Producers() *producer.State { return s.producers }

// Late says whether a transaction has been open here for too long. See producer.State.Late.
func (s *State) Late(nowMs, afterMs int64) bool { return s.producers.Late(nowMs, afterMs) }

// ExpireProducers forgets producers that have not written for expirationMs,
// and verifications that have led to nothing for as long.
func (s *State) ExpireProducers(nowMs, expirationMs int64) {
	s.producers.Expire(nowMs, expirationMs)
	maps.DeleteFunc(s.verifying, func(_ int64, v *verification) bool {
		if v.seen == 0 {
			v.seen = max(nowMs, 1)
		}
		return nowMs-v.seen >= expirationMs
	})
}

// ForgetAborted forgets the aborted transactions whose markers lie below
// offset. They are in the indexes of committed objects, and nobody reads that
// part here.
func (s *State) ForgetAborted(below int64) { s.producers.TrimAborted(min(below, s.remoteEnd)) }

// EndOfEpoch answers OffsetForLeaderEpoch (KIP-101, KIP-320): the largest epoch
// at or below the asked one and the offset where it ends.
func (s *State) EndOfEpoch(epoch int32) (int32, int64) {
	if epoch == s.term.Epoch && s.role == Leader {
		return epoch, s.logEnd
	}
	return s.lineage.EndOffset(epoch, s.logEnd)
}
