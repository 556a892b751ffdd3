package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/coordinator"
	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/txn"
)

// The transaction APIs: InitProducerId (22) with a transactional id,
// AddPartitionsToTxn (24), AddOffsetsToTxn (25), EndTxn (26),
// DescribeTransactions (65), ListTransactions (66).
//
// Behavior: what a transaction is and does is decided in packages txn and
// coordinator. Here requests are routed to them, and markers to the partitions.

func (b *Broker) registerTxnAPIs() {
	t := &b.apis
	t.handle(kmsg.AddPartitionsToTxn.Int16(), b.addPartitionsToTxn)
	t.handle(kmsg.AddOffsetsToTxn.Int16(), b.addOffsetsToTxn)
	t.handle(kmsg.EndTxn.Int16(), b.endTxn)
	t.handle(kmsg.DescribeTransactions.Int16(), b.describeTransactions)
	t.handle(kmsg.ListTransactions.Int16(), b.listTransactions)
}

// transactionVersion is the finalized level of the feature of that name: every
// transaction has an epoch of its own, and partitions are added as they are
// written to, by clients that can (KIP-890).
const transactionVersion = 2

// txnReplyTimeout is how long a request waits for the log of its coordinator
// (Kafka's request.timeout.ms). It may be carried out all the same.
const txnReplyTimeout = 30 * time.Second

// newTransactions makes the transaction coordinator; its shards come and go with
// the leaderships of its topic.
func (b *Broker) newTransactions() *coordinator.Transactions {
	partitions := int32(0)
	if t := b.meta.Image().Topic(txnTopic); t != nil {
		partitions = int32(len(t.Partitions))
	}
	c := b.conf()
	events := b.coordinatorEvents("transaction")
	events.Transaction = func(_ int32, n txn.Note) {
		if outcome := txnOutcome[n.Kind]; outcome != "" {
			b.ev.TransactionEnded(outcome)
		}
	}
	return coordinator.NewTransactions(coordinator.Options{
		Log: topicLog{b, txnTopic}, Logger: b.log,
		Transactions: txn.Config{MaxTimeout: c.TxnMaxTimeout, Expiration: c.TransactionalIDExpiry, TransactionVersion: transactionVersion},
		Markers:      markers{b},
		ProducerID:   func(ctx context.Context) (int64, error) { return b.pids.next(ctx, b.meta) },
		Patience:     c.AddToTxnMax,
		ReplyTimeout: txnReplyTimeout, ExpiryInterval: c.TxnExpiryInterval,
		MaxBytes: b.opts.TxnBytes,
		Events:   events,
	}, partitions)
}

var txnOutcome = map[txn.NoteKind]string{txn.NoteCommitting: "commit", txn.NoteAborting: "abort", txn.NoteFenced: "fenced", txn.NoteTimedOut: "timeout"}

// markers are the partitions that transactions write to, as their coordinator
// sees them (coordinator.Markers).
type markers struct{ b *Broker }

// Write has a marker appended by the leader of the partition, here or, after
// Send, on another broker.
func (m markers) Write(topic string, index int32, k *txn.Markers, done func(code int16)) {
	marker := txnMarker{producerID: k.ProducerID, producerEpoch: k.ProducerEpoch, coordinatorEpoch: k.CoordinatorEpoch,
		commit: k.Commit, transactionVersion: k.TransactionVersion}
	if to, term := m.b.leaderElsewhere(topic, index); to != nil {
		m.b.outbox.add(to, sentMarker{marker, topic, index, term, done})
		return
	}
	m.b.writeMarker(topic, index, anyTerm, marker, done)
}

func (m markers) Send() { m.b.outbox.send(m.b) }

// Exists says whether the cluster has the partition.
func (m markers) Exists(topic string, index int32) bool {
	t := m.b.meta.Image().Topic(topic)
	return t != nil && index >= 0 && int(index) < len(t.Partitions)
}

// TransactionStats are what this broker coordinates.
func (b *Broker) TransactionStats() coordinator.TransactionStats { return b.txns.Stats() }

// lateAfter is how long after the longest timeout a transaction is late: its
// coordinator would have ended it by then, if it knew of it (Kafka's buffer, too).
var lateAfter = 5 * time.Minute

// LateTransactions counts the partitions led here in which a transaction is open
// whose producer has not written for longer than any transaction may take. As
// likely as not nobody is going to end it: readers of committed records wait there.
func (b *Broker) LateTransactions() int {
	now, after := time.Now().UnixMilli(), (b.conf().TxnMaxTimeout + lateAfter).Milliseconds()
	n := 0
	for _, r := range b.replicas.all() {
		if r.late(now, after) {
			n++
		}
	}
	return n
}

func (r *replica) late(nowMs, afterMs int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started && r.view.Load().Role == partition.Leader && r.st.Late(nowMs, afterMs)
}

// partitionFor finds the partition of a coordinator's topic that a key belongs
// to; the topic is created when the first client asks.
func (b *Broker) partitionFor(ctx context.Context, topic, key string) (int32, error) {
	if b.meta.Image().Topic(topic) == nil {
		b.createNow(ctx, []string{topic})
	}
	t := b.meta.Image().Topic(topic)
	if t == nil {
		return -1, fmt.Errorf("%s could not be created", topic)
	}
	index := coordinator.PartitionOf(key, int32(len(t.Partitions)))
	if index < 0 || t.Partitions[index] == nil {
		return -1, fmt.Errorf("partition %d of %s does not exist", index, topic)
	}
	return index, nil
}
