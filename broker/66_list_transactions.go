package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListTransactions (key 66), versions 0 to 2.
//
// Behavior: the transactional ids that this broker coordinates, whatever their
// state, unless the request filters them by state, producer id, time that the
// transaction has been going on (version 1) or pattern (version 2).

func (b *Broker) listTransactions(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	return b.txns.ListTransactions(ctx, in.(*kmsg.ListTransactionsRequest))
}
