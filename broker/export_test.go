package broker

import "time"

// SetLateAfter is how long after the longest timeout transactions are late, until restore is called.
func SetLateAfter(d time.Duration) (restore func()) {
	was := lateAfter
	lateAfter = d
	return func() { lateAfter = was }
}

// Verifier is a transaction coordinator of a test's own, as produce asks it.
type Verifier = txnVerifier

// SetVerifier has brokers that start from now on ask v, until restore is called.
func SetVerifier(v Verifier) (restore func()) {
	was := newTxnVerifier
	newTxnVerifier = func(*Broker) txnVerifier { return v }
	return func() { newTxnVerifier = was }
}
