package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// DescribeTransactions (key 65), version 0.
//
// Behavior: what the coordinator knows of transactional ids. While markers are
// being written, the partitions are those that have none yet.

func (b *Broker) describeTransactions(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeTransactionsRequest)
	if tooMany(&req.TransactionalIDs) {
		resp := req.ResponseKind().(*kmsg.DescribeTransactionsResponse)
		for _, id := range req.TransactionalIDs {
			t := kmsg.NewDescribeTransactionsResponseTransactionState()
			t.TransactionalID, t.ErrorCode = id, protocol.CodeInvalidRequest
			resp.TransactionStates = append(resp.TransactionStates, t)
		}
		return resp
	}
	req.TransactionalIDs = distinct(req.TransactionalIDs, func(id string) any { return id })
	return b.txns.DescribeTransactions(ctx, req)
}
