package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// EndTxn (key 26), versions 0 to 5.
//
// Behavior: commits or aborts a transaction. The answer says that it is decided,
// and leaves when the decision is in the coordinator's log; the markers are
// written after that, and until they are, the next transaction is told
// CONCURRENT_TRANSACTIONS.
//
// Commit point: the Prepare record in __transaction_state.
//
// Versions: 5 is for producers of transaction version 2, which get the epoch of
// their next transaction with the answer (KIP-890).

func (b *Broker) endTxn(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	return b.txns.EndTxn(ctx, in.(*kmsg.EndTxnRequest))
}
