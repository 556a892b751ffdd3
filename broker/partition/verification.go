package partition

import (
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// A transaction may begin in a partition only if its coordinator knows that the
// partition is in it (KIP-890): else nobody would ever write its marker, and
// readers of committed records would wait for it for ever. So the leader asks
// the coordinator before it appends the first batch, and what it was told must
// still hold when it does:
//
//	BeginVerification -> guard; the coordinator is asked, without any lock held
//	Decide(batch, guard)      Append: the guard is spent, the transaction is open
//	marker in between         the guard is gone: INVALID_TXN_STATE; unless it can
//	                          only be of an earlier transaction
//	leadership in between     NOT_LEADER_OR_FOLLOWER, and the batch comes again
//
// Guards live in memory alone. What begins again (a leadership, a process) asks
// again: a batch that nobody asked about, since this broker did not lead the
// partition yet when it came, or whose guard is of another leadership, has done
// nothing wrong, and INVALID_TXN_STATE would end its transaction.
type verification struct {
	guard uint64
	epoch int16
	// lowest is the lowest sequence that was asked about in this epoch. While it
	// is being tried again, a higher one that came later is not let in before it:
	// the lower would be out of order from then on.
	lowest int32
	// bumps: the producer begins each transaction with an epoch of its own
	// (transaction version 2), and each epoch with sequence 0.
	bumps bool
	seen  int64 // when ExpireProducers first saw it, 0 before that
}

// Guard is what BeginVerification hands out; the zero value verifies nothing.
// They count up.
type Guard struct{ id uint64 }

// VerificationKind is what a batch needs before it may be appended.
type VerificationKind int8

const (
	// NotNeeded: the batch begins no transaction, or it is not going to be
	// appended anyway.
	NotNeeded VerificationKind = iota
	// Needed: the coordinator is to be asked.
	Needed
	// Refused: too many verifications are under way.
	Refused
)

// Verification says whether the coordinator has to be asked before a
// transactional batch may be appended. It changes nothing.
func (s *State) Verification(h batch.Header, nowMs int64) VerificationKind {
	if s.role != Leader || !h.Transactional() || !h.HasProducer() || s.inTransaction(h) {
		return NotNeeded
	}
	switch v := s.producers.Check(h, nowMs); {
	case v.Kind == producer.Duplicate, v.Kind == producer.Refuse && v.Code == codeProducerEpoch:
		return NotNeeded
	}
	if s.verifying[h.ProducerID] == nil && len(s.verifying) >= s.producers.Limit() {
		return Refused
	}
	return Needed
}

// BeginVerification notes that the coordinator is about to be asked whether the
// batch of header h may begin a transaction. bumps is transaction version 2.
func (s *State) BeginVerification(h batch.Header, bumps bool) Guard {
	v := s.verifying[h.ProducerID]
	if v == nil {
		s.guards++
		v = &verification{guard: s.guards, epoch: h.ProducerEpoch, lowest: h.BaseSequence}
		s.verifying[h.ProducerID] = v
	}
	v.seen = 0
	v.bumps = bumps
	switch {
	case h.ProducerEpoch > v.epoch:
		v.epoch, v.lowest = h.ProducerEpoch, h.BaseSequence
	case h.ProducerEpoch == v.epoch:
		v.lowest = min(v.lowest, h.BaseSequence)
	}
	return Guard{v.guard}
}

// EndVerification forgets a verification whose answer was no, and is not going
// to be another when asked again.
func (s *State) EndVerification(h batch.Header, g Guard) {
	if v := s.verifying[h.ProducerID]; v != nil && v.guard == g.id && v.epoch <= h.ProducerEpoch {
		delete(s.verifying, h.ProducerID)
	}
}

// voidGuards ends all verifications, as a leadership begins or ends.
func (s *State) voidGuards() {
	clear(s.verifying)
	s.void = s.guards
}

// inTransaction says that the batch goes on with a transaction that has begun
// here: it was verified then.
func (s *State) inTransaction(h batch.Header) bool {
	epoch, open := s.producers.InTransaction(h.ProducerID)
	return open && epoch == h.ProducerEpoch
}

// ofEarlier says that a marker is of an earlier transaction than the one that is
// being verified: of transaction version 2, whose markers are an epoch above
// their transaction. The coordinator is often asked while the last of them are
// on their way, and says yes only when they have been written.
func (s *State) ofEarlier(h batch.Header) bool {
	v := s.verifying[h.ProducerID]
	return h.Control() && v != nil && v.bumps && h.ProducerEpoch <= v.epoch
}

// verified checks what Decide was given against what is being verified.
func (s *State) verified(h batch.Header, g Guard) (code int16, message string) {
	if g.id <= s.void {
		return codeNotLeader, "the partition was not led here when the transaction was to be verified"
	}
	v := s.verifying[h.ProducerID]
	if v == nil || v.guard != g.id {
		return codeInvalidTxnState, "the batch is not part of an ongoing transaction"
	}
	switch {
	case h.BaseSequence < 0: // of a coordinator
	case v.bumps && h.BaseSequence != 0 && !s.producers.Known(h.ProducerID):
		return codeOutOfOrderSequence, "a producer of transaction version 2 that is not known here begins with sequence 0"
	case h.ProducerEpoch == v.epoch && h.BaseSequence > v.lowest:
		return codeOutOfOrderSequence, "a batch with a lower sequence is still being verified"
	}
	return codeNone, ""
}

// Marker is a control batch that ends a transaction, as the transaction
// coordinator asks for it.
type Marker struct {
	ProducerID         int64
	ProducerEpoch      int16
	CoordinatorEpoch   int32
	TransactionVersion int16
}

// DecideMarker says whether a marker may be appended. It changes nothing:
// Appended does. A marker that is there already may be appended again; so may
// one of a producer that nothing is known of.
func (s *State) DecideMarker(m Marker) Decision {
	if d, ok := s.writable(true); !ok {
		return d
	}
	if v := s.producers.CheckMarker(m.ProducerID, m.ProducerEpoch, m.CoordinatorEpoch, m.TransactionVersion); v.Kind == producer.Refuse {
		return Decision{Kind: Reject, Code: v.Code, Message: v.Message}
	}
	return Decision{Kind: Append, Base: s.logEnd}
}
