package broker

import (
	"context"

	"github.com/varve/varve/broker/protocol"
)

// verifyTxn stands in until a transaction coordinator is served: it knows of no
// transaction.
func (b *Broker) verifyTxn(_ context.Context, _ string, _ int64, _ int16, _ string, partitions []int32, _ bool) []int16 {
	codes := make([]int16, len(partitions))
	for i := range codes {
		codes[i] = protocol.CodeCoordinatorNotAvailable
	}
	return codes
}
