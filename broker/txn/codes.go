package txn

// Kafka's error codes, as far as transactions use them.
const (
	codeNone                               int16 = 0
	codeUnsupportedVersion                 int16 = 35
	codeInvalidRequest                     int16 = 42
	codeInvalidProducerEpoch               int16 = 47
	codeInvalidTxnState                    int16 = 48
	codeInvalidProducerIDMapping           int16 = 49
	codeInvalidTransactionTimeout          int16 = 50
	codeConcurrentTransactions             int16 = 51
	codeTransactionalIDAuthorizationFailed int16 = 53
	codeProducerFenced                     int16 = 90
	codeTransactionalIDNotFound            int16 = 105
	codeTransactionAbortable               int16 = 120
	codeInvalidRegularExpression           int16 = 128
)
