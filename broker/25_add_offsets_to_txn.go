package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// AddOffsetsToTxn (key 25), versions 0 to 4.
//
// Behavior: a producer below transaction version 2 says that it is about to
// commit offsets of a group in its transaction, which gets the group's partition
// of the offsets topic. From then on TxnOffsetCommit may be sent.
//
// Versions: 4 knows TRANSACTION_ABORTABLE, which is never answered.

func (b *Broker) addOffsetsToTxn(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.AddOffsetsToTxnRequest)
	index, err := b.partitionFor(ctx, offsetsTopic, req.Group)
	if err != nil {
		b.log.Warn("offsets not added to a transaction", "group", req.Group, "err", err)
		resp := req.ResponseKind().(*kmsg.AddOffsetsToTxnResponse)
		resp.ErrorCode = protocol.CodeCoordinatorNotAvailable
		return resp
	}
	return b.txns.AddOffsetsToTxn(ctx, req, index)
}
