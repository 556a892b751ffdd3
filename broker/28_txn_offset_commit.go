package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// TxnOffsetCommit (key 28), versions 0 to 5.
//
// Behavior: offsets that count if and when the producer's transaction commits;
// until its marker, OffsetFetch shows what was there before, or with
// RequireStable says UNSTABLE_OFFSET_COMMIT. Members, generations and epochs are
// checked as OffsetCommit does, where the request names any; what package group
// decides is in its transaction.go. Topics and partitions have to exist.
//
// Before the first offsets of a transaction, its coordinator is asked whether the
// group's partition of the offsets topic is in it (see produce_txn.go): nothing
// else would ever end what is pending.
//
// Commit point: the append of the records, as a transactional batch. What they
// say counts from the append of the marker.
//
// Versions: 2 has leader epochs, and from it on clients know
// COORDINATOR_LOAD_IN_PROGRESS; 3 names member and generation (KIP-447); 4 knows
// TRANSACTION_ABORTABLE; 5 adds the group's partition to the transaction, in
// place of AddOffsetsToTxn (KIP-890).

// Versions of TxnOffsetCommit that change answers.
const (
	txnCommitLoading   = 2
	txnCommitAbortable = 4
	txnCommitAdds      = 5
)

func (b *Broker) txnOffsetCommit(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.TxnOffsetCommitRequest)
	out := b.commitOffsets(offsetCommitOf(req), func(as *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
		switch {
		case len(as.Topics) == 0:
			return group.CommitError(as, protocol.CodeNone)
		case req.Group == "":
			return group.CommitError(as, protocol.CodeInvalidGroupID)
		}
		guard, code := b.verifyOffsets(ctx, req)
		if code != protocol.CodeNone {
			return group.CommitError(as, code)
		}
		return b.groups.TxnOffsetCommit(ctx, as, group.Txn{ProducerID: req.ProducerID, ProducerEpoch: req.ProducerEpoch}, guard)
	})
	resp := req.ResponseKind().(*kmsg.TxnOffsetCommitResponse)
	for _, t := range out.Topics {
		rt := kmsg.NewTxnOffsetCommitResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			if p.ErrorCode == protocol.CodeCoordinatorLoadInProgress && req.Version < txnCommitLoading {
				p.ErrorCode = protocol.CodeCoordinatorNotAvailable // the other ends such a client
			}
			rp := kmsg.NewTxnOffsetCommitResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, p.ErrorCode
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// offsetCommitOf is what the request asks for in the form of OffsetCommit, with
// topics by name.
func offsetCommitOf(req *kmsg.TxnOffsetCommitRequest) *kmsg.OffsetCommitRequest {
	as := kmsg.NewPtrOffsetCommitRequest()
	as.Version, as.Group, as.Generation, as.MemberID, as.InstanceID = 9, req.Group, req.Generation, req.MemberID, req.InstanceID
	for _, t := range req.Topics {
		at := kmsg.NewOffsetCommitRequestTopic()
		at.Topic = t.Topic
		for _, p := range t.Partitions {
			ap := kmsg.NewOffsetCommitRequestTopicPartition()
			ap.Partition, ap.Offset, ap.LeaderEpoch, ap.Metadata = p.Partition, p.Offset, p.LeaderEpoch, p.Metadata
			at.Partitions = append(at.Partitions, ap)
		}
		as.Topics = append(as.Topics, at)
	}
	return as
}
