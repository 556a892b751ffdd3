package broker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// What Produce does about transactions (KIP-890).
//
// Before the first batch of a transaction is appended to a partition, the
// transaction coordinator is asked: below version 12 whether the partition is in
// the transaction, from 12 on (transaction version 2) to put it there. What it
// says holds only as long as no marker of the producer comes in between, which
// partition.Guard sees to.
//
// Asking takes a while. The request waits for it aside of the connection's
// reader, and those that come after it and are transactional wait behind it, so
// that batches are appended in the order in which they were sent. All others go
// on.

// Versions of Produce that change what the coordinator's answers become.
const (
	produceAbortable = 11 // knows TRANSACTION_ABORTABLE
	produceAdds      = 12 // transaction version 2
)

// txnVerifier asks the coordinator of a transactional id whether partitions, in
// order and each once, are in its transaction, or with add to put them there. It
// answers one code for each partition of each topic.
type txnVerifier func(ctx context.Context, transactionalID string, producerID int64, epoch int16, topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, add bool) [][]int16

// newTxnVerifier is replaced by tests that have no coordinator.
var newTxnVerifier = func(b *Broker) txnVerifier { return b.verifyTxn }

// mustVerify says whether transactions begin only after their coordinator was
// asked.
func (b *Broker) mustVerify(version int16) bool {
	return version >= produceAdds || b.conf().VerifyTransactions
}

// txnVerdict is what became of the verification of one partition's batch: a
// guard, an error, or nothing for one that needed none.
type txnVerdict struct {
	guard   partition.Guard
	code    int16
	message string
}

// txnQueue holds a connection's transactional Produce requests behind one that
// is being verified. Its goroutine lives while there are some.
type txnQueue struct {
	wg      sync.WaitGroup
	mu      sync.Mutex
	waiting []*request
	running bool
}

// defers takes a request over if it has to wait. Called by the connection's
// reader.
func (q *txnQueue) defers(r *request, req *protocol.ProduceRequest) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.running && !r.c.b.verifies(r, req) {
		return false
	}
	q.waiting = append(q.waiting, r)
	if !q.running {
		q.running = true
		q.wg.Add(1)
		go q.run(r.c)
	}
	return true
}

func (q *txnQueue) run(c *conn) {
	defer q.wg.Done()
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.waiting, q.running = nil, false
			q.mu.Unlock()
			return
		}
		r := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		c.guard(r.p, func() {
			if err := c.b.produceVerified(r); err != nil {
				// acks=0: the end of the connection is the answer.
				c.logEnd(err)
				c.cancel()
				c.nc.Close()
			}
		})
	}
}

// verifies says whether any batch of a request has to be verified.
func (b *Broker) verifies(r *request, req *protocol.ProduceRequest) bool {
	found := false
	b.transactional(r, req, func(_ int, _ string, rep *replica, h batch.Header) {
		found = found || rep != nil && b.mustVerify(r.hdr.Version) && rep.verification(h) != partition.NotNeeded
	})
	return found
}

// transactional calls f with each transactional batch of a request, with its
// place in the request. It looks at nothing but headers.
func (b *Broker) transactional(r *request, req *protocol.ProduceRequest, f func(at int, topic string, rep *replica, h batch.Header)) {
	at := 0
	for i := range req.Topics {
		t := &req.Topics[i]
		topic := ""
		for j := range t.Partitions {
			p := &t.Partitions[j]
			if h, err := batch.PeekHeader(p.Records); err == nil && h.Transactional() && h.HasProducer() {
				if topic == "" {
					if r.hdr.Version < 13 {
						topic = b.replicas.name(t.Name)
					} else if it := b.meta.Image().TopicByID(t.ID); it != nil {
						topic = it.Name
					}
				}
				f(at, topic, b.replicas.find(topic, p.Index), h)
			}
			at++
		}
	}
}

// verification says whether the coordinator has to be asked about a batch.
func (r *replica) verification(h batch.Header) partition.VerificationKind {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.started {
		return partition.NotNeeded // and it is not going to be appended
	}
	return r.st.Verification(h, time.Now().UnixMilli())
}

// produceVerified has what a request begins verified, and appends it.
func (b *Broker) produceVerified(r *request) error {
	defer r.buf.Release()
	if r.ctx.Err() != nil {
		r.p.complete(nil, nil) // nobody reads the answer, and nothing of it has been appended
		return nil
	}
	var req protocol.ProduceRequest // the connection's own is in use
	if err := req.Decode(r.hdr.Version, r.body); err != nil {
		return err
	}
	return b.produceAll(r, &req, b.verify(r, &req))
}

// asked is one batch that is being verified.
type asked struct {
	at     int
	topic  int // place in what the coordinator is asked
	rep    *replica
	header batch.Header
}

// verify asks the coordinator about every batch of a request that begins a
// transaction.
func (b *Broker) verify(r *request, req *protocol.ProduceRequest) []txnVerdict {
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	verdicts := make([]txnVerdict, n)
	var who batch.Header
	many, first := false, true
	b.transactional(r, req, func(_ int, _ string, _ *replica, h batch.Header) {
		if first {
			who, first = h, false
		}
		many = many || h.ProducerID != who.ProducerID || h.ProducerEpoch != who.ProducerEpoch
	})
	if many {
		for i := range verdicts {
			verdicts[i] = txnVerdict{code: protocol.CodeInvalidProducerIDMapping, message: "transactional batches of more than one producer in a request"}
		}
		return verdicts
	}
	var list []asked
	var topics []kmsg.AddPartitionsToTxnRequestTransactionTopic // in the order of the request
	byName := map[string]int{}
	bumps := r.hdr.Version >= produceAdds
	b.transactional(r, req, func(at int, topic string, rep *replica, h batch.Header) {
		if rep == nil || isInternal(topic) || !b.mustVerify(r.hdr.Version) {
			return
		}
		guard, kind := rep.beginVerification(h, bumps)
		switch kind {
		case partition.Refused:
			verdicts[at] = txnVerdict{code: protocol.CodeNotEnoughReplicas, message: "too many transactions are about to begin in the partition"}
		case partition.Needed:
			verdicts[at].guard = guard
			i, ok := byName[topic]
			if !ok {
				i = len(topics)
				byName[topic] = i
				topics = append(topics, kmsg.AddPartitionsToTxnRequestTransactionTopic{Topic: topic})
			}
			t := &topics[i]
			if to, again := slices.BinarySearch(t.Partitions, rep.index); !again {
				t.Partitions = slices.Insert(t.Partitions, to, rep.index)
			}
			list = append(list, asked{at, i, rep, h})
		}
	})
	if len(list) == 0 {
		return verdicts
	}
	codes := b.askCoordinator(r.ctx, string(req.TransactionalID), who, topics, bumps)
	for _, a := range list {
		at, _ := slices.BinarySearch(topics[a.topic].Partitions, a.rep.index)
		code, final, message := verificationCode(codes[a.topic][at], r.hdr.Version)
		if code == 0 {
			continue
		}
		if final {
			a.rep.endVerification(a.header, verdicts[a.at].guard)
		}
		verdicts[a.at] = txnVerdict{code: code, message: message}
	}
	return verdicts
}

// askTimeout is how long a coordinator may take (Kafka's request.timeout.ms).
const askTimeout = 30 * time.Second

// askCoordinator spares a producer of transaction version 2 CONCURRENT_TRANSACTIONS
// for a while (add.partitions.to.txn.retry.backoff.max.ms): it begins its next
// transaction while the markers of the last are being written, which takes a few
// syncs; sending a batch again takes longer. The coordinator waits for the markers
// itself, and asking again is for when it says no all the same.
func (b *Broker) askCoordinator(ctx context.Context, id string, who batch.Header, topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, add bool) [][]int16 {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c := b.conf()
	until := time.Now().Add(c.AddToTxnMax)
	for {
		codes := b.verifyTransaction(ctx, id, who.ProducerID, who.ProducerEpoch, topics, add)
		again := false
		for _, of := range codes {
			again = again || slices.Contains(of, protocol.CodeConcurrentTransactions)
		}
		if !add || !again || !time.Now().Before(until) {
			return codes
		}
		select {
		case <-time.After(c.AddToTxnBackoff):
		case <-ctx.Done():
			return codes
		}
	}
}

// verificationCode turns what a coordinator said into what a producer of that
// version makes the best of. final: asking again leads nowhere.
func verificationCode(code, version int16) (_ int16, final bool, message string) {
	const unable = "it cannot be verified that the partition is in the transaction: "
	switch code {
	case protocol.CodeNone:
		return code, false, ""
	case protocol.CodeNetworkException, protocol.CodeCoordinatorLoadInProgress, protocol.CodeCoordinatorNotAvailable, protocol.CodeNotCoordinator, protocol.CodeRequestTimedOut,
		protocol.CodeOperationNotAttempted: // another partition of the request is gone
		// Not all clients try again on these; on this one they do, without
		// asking for metadata first.
		return protocol.CodeNotEnoughReplicas, false, unable + protocol.Name(code)
	case protocol.CodeConcurrentTransactions:
		if version >= produceAdds {
			return code, false, ""
		}
		return protocol.CodeNotEnoughReplicas, false, unable + protocol.Name(code)
	case protocol.CodeProducerFenced:
		return protocol.CodeInvalidProducerEpoch, true, "a newer producer has the transactional id"
	case protocol.CodeTransactionAbortable:
		if version < produceAbortable {
			code = protocol.CodeInvalidTxnState
		}
		return code, true, "the partition is not in the transaction"
	case protocol.CodeInvalidTxnState:
		return code, true, "the partition is not in the transaction"
	}
	return code, true, ""
}

func (r *replica) beginVerification(h batch.Header, bumps bool) (partition.Guard, partition.VerificationKind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.started {
		return partition.Guard{}, partition.NotNeeded
	}
	kind := r.st.Verification(h, time.Now().UnixMilli())
	if kind != partition.Needed {
		return partition.Guard{}, kind
	}
	return r.st.BeginVerification(h, bumps), kind
}

func (r *replica) endVerification(h batch.Header, g partition.Guard) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st != nil {
		r.st.EndVerification(h, g)
	}
}
