package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeTransactions (key 65), version 0.
//
// Behavior: what the coordinator knows of transactional ids. While markers are
// being written, the partitions are those that have none yet.

func (b *Broker) describeTransactions(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeTransactionsRequest)
	req.TransactionalIDs = distinct(req.TransactionalIDs, func(id string) any { return id })
	return b.txns.DescribeTransactions(ctx, req)
}
