package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/coordinator"
	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
)

// The offsets topic's part in transactions. What is written there belongs to the
// group coordinator, batches of transactions and their markers too: both go
// through the queue of its shard, so that
//
//   - a marker comes after everything of its transaction that was answered or is
//     still waiting to be written, and
//   - the shard learns of the marker where the log has it, between the same
//     records, and what is read at the next start is what was shown before.

// offsetsMarker ends a transaction in a partition of the offsets topic: the
// offsets that were committed in it count from then on, or never. done is told
// when the marker is committed and the group coordinator has taken it over.
func (b *Broker) offsetsMarker(r *replica, m markerOf, done func(code int16)) {
	b.groups.WriteMarker(r.index, &group.EndTxn{
		By:               group.Txn{ProducerID: m.producerID, ProducerEpoch: m.producerEpoch},
		CoordinatorEpoch: m.coordinatorEpoch, Commit: m.commit, Ticket: m,
	}, func(code int16) {
		switch code {
		case protocol.CodeCoordinatorNotAvailable, protocol.CodeNotCoordinator, protocol.CodeCoordinatorLoadInProgress:
			code = protocol.CodeNotLeaderOrFollower // these say to a transaction coordinator that it is none itself
		}
		done(code)
	})
}

var _ coordinator.TicketLog = topicLog{}

// AppendWith is Append for a batch of a transaction, with the guard that it was
// verified under, or for a marker.
func (l topicLog) AppendWith(index, leaderEpoch int32, run []byte, ticket any, done func(base int64, err error)) {
	a := &appendArgs{bytes: run, class: wal.ClassInternal}
	switch t := ticket.(type) {
	case markerOf:
		if t.term != anyTerm && t.term != leaderEpoch {
			done(-1, codeError(protocol.CodeNotLeaderOrFollower))
			return
		}
		a.marker = t.partition()
	case verifiedOffsets:
		a.verify, a.guard = t.verify, t.guard
	}
	l.append(index, leaderEpoch, a, done)
}

// verifiedOffsets is what the partition wants with offsets of a transaction.
type verifiedOffsets struct {
	verify bool // a transaction begins only under a guard
	guard  partition.Guard
}

// verifyOffsets asks the transaction's coordinator about the group's partition,
// if it has nothing of the transaction yet. What it gives goes with the append.
func (b *Broker) verifyOffsets(ctx context.Context, req *kmsg.TxnOffsetCommitRequest) (verifiedOffsets, int16) {
	adds := req.Version >= txnCommitAdds
	v := verifiedOffsets{verify: adds || b.conf().VerifyTransactions}
	if !v.verify {
		return v, protocol.CodeNone
	}
	if req.TransactionalID == "" {
		return v, protocol.CodeInvalidRequest
	}
	r := b.replicas.find(offsetsTopic, b.groups.PartitionFor(req.Group))
	if r == nil {
		return v, protocol.CodeNotCoordinator
	}
	h := batch.TransactionalHeader(req.ProducerID, req.ProducerEpoch)
	guard, kind := r.beginVerification(h, adds)
	switch kind {
	case partition.Refused:
		return v, protocol.CodeCoordinatorNotAvailable
	case partition.NotNeeded:
		return v, protocol.CodeNone
	}
	v.guard = guard
	of := []kmsg.AddPartitionsToTxnRequestTransactionTopic{{Topic: offsetsTopic, Partitions: []int32{r.index}}}
	code := b.askCoordinator(ctx, req.TransactionalID, h, of, adds)[0][0]
	code, final := verifiedOffsetsCode(code, req.Version)
	if final {
		r.endVerification(h, guard)
	}
	return v, code
}

// verifiedOffsetsCode turns what a transaction coordinator said into what a
// producer can do something with that commits offsets. final: asking again leads
// nowhere.
func verifiedOffsetsCode(code, version int16) (_ int16, final bool) {
	switch code {
	case protocol.CodeNone:
		return code, false
	case protocol.CodeNetworkException, protocol.CodeCoordinatorLoadInProgress, protocol.CodeCoordinatorNotAvailable, protocol.CodeNotCoordinator,
		protocol.CodeRequestTimedOut, protocol.CodeConcurrentTransactions:
		// It is not this group's coordinator that is to be looked for again; every
		// client tries again on this one.
		return protocol.CodeCoordinatorLoadInProgress, false
	case protocol.CodeProducerFenced:
		return protocol.CodeInvalidProducerEpoch, true
	case protocol.CodeTransactionAbortable:
		if version < txnCommitAbortable {
			code = protocol.CodeInvalidTxnState
		}
	}
	return code, true
}
