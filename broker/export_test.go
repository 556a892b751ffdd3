package broker

import "context"

// Verifier is a transaction coordinator of a test's own, as produce asks it.
type Verifier = func(ctx context.Context, transactionalID string, producerID int64, epoch int16, topic string, partitions []int32, add bool) []int16

// SetVerifier has brokers that start from now on ask v, until restore is called.
func SetVerifier(v Verifier) (restore func()) {
	was := newTxnVerifier
	newTxnVerifier = func(*Broker) txnVerifier { return v }
	return func() { newTxnVerifier = was }
}
