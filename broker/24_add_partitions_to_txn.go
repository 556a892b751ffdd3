package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
)

// AddPartitionsToTxn (key 24), versions 0 to 5.
//
// Behavior: producers below transaction version 2 say which partitions a
// transaction is about to write to; it begins with that. From version 4 on only
// brokers ask, for many transactions at a time: to put partitions into them for
// producers of transaction version 2, or to verify that they are in them.
//
// If one of the partitions does not exist, none is added: the others are
// answered OPERATION_NOT_ATTEMPTED. Clients may not write to internal topics,
// and so cannot have them in a transaction.
//
// Versions: 4 has several transactions in a request; 5 may answer
// TRANSACTION_ABORTABLE to a verification, as 4 does here.

func (b *Broker) addPartitionsToTxn(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.AddPartitionsToTxnRequest)
	resp := req.ResponseKind().(*kmsg.AddPartitionsToTxnResponse)
	if req.Version < 4 {
		one := kmsg.NewAddPartitionsToTxnRequestTransaction()
		one.TransactionalID, one.ProducerID, one.ProducerEpoch = req.TransactionalID, req.ProducerID, req.ProducerEpoch
		for _, t := range req.Topics {
			one.Topics = append(one.Topics, kmsg.AddPartitionsToTxnRequestTransactionTopic{Topic: t.Topic, Partitions: t.Partitions})
		}
		if bad := b.unwritable(one.Topics, true); bad != nil {
			for _, t := range one.Topics {
				rt := kmsg.NewAddPartitionsToTxnResponseTopic()
				rt.Topic = t.Topic
				for _, p := range t.Partitions {
					rp := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
					rp.Partition, rp.ErrorCode = p, bad(t.Topic, p)
					rt.Partitions = append(rt.Partitions, rp)
				}
				resp.Topics = append(resp.Topics, rt)
			}
			return resp
		}
		got := b.txns.AddPartitionsToTxn(ctx, req.Version, []kmsg.AddPartitionsToTxnRequestTransaction{one})
		resp.Topics = got[0].Topics
		return resp
	}
	if tooMany(&req.Transactions) {
		resp.ErrorCode = protocol.CodeInvalidRequest
		return resp
	}
	resp.Transactions = b.addPartitions(ctx, req.Version, req.Transactions)
	return resp
}

// addPartitions is the request of a broker.
func (b *Broker) addPartitions(ctx context.Context, version int16, txns []kmsg.AddPartitionsToTxnRequestTransaction) []kmsg.AddPartitionsToTxnResponseTransaction {
	out := make([]kmsg.AddPartitionsToTxnResponseTransaction, len(txns))
	var ask []kmsg.AddPartitionsToTxnRequestTransaction
	var at []int
	for i, t := range txns {
		bad := b.unwritable(t.Topics, false)
		if bad == nil {
			ask, at = append(ask, t), append(at, i)
			continue
		}
		out[i] = kmsg.NewAddPartitionsToTxnResponseTransaction()
		out[i].TransactionalID = t.TransactionalID
		for _, topic := range t.Topics {
			rt := kmsg.NewAddPartitionsToTxnResponseTransactionTopic()
			rt.Topic = topic.Topic
			for _, p := range topic.Partitions {
				rp := kmsg.NewAddPartitionsToTxnResponseTransactionTopicPartition()
				rp.Partition, rp.ErrorCode = p, bad(topic.Topic, p)
				rt.Partitions = append(rt.Partitions, rp)
			}
			out[i].Topics = append(out[i].Topics, rt)
		}
	}
	for i, got := range b.txns.AddPartitionsToTxn(ctx, version, ask) {
		out[at[i]] = got.Transactions[0]
	}
	return out
}

// unwritable says why partitions cannot be in a transaction, or is nil if they
// can.
func (b *Broker) unwritable(topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, client bool) func(topic string, partition int32) int16 {
	im := b.meta.Image()
	one := func(topic string, partition int32) int16 {
		t := im.Topic(topic)
		switch {
		case client && isInternal(topic), topic == txnTopic: // no marker is written there, so it would never end
			return protocol.CodeTopicAuthorizationFailed
		case t == nil, partition < 0, int(partition) >= len(t.Partitions):
			return protocol.CodeUnknownTopicOrPartition
		}
		return protocol.CodeNone
	}
	for _, t := range topics {
		for _, p := range t.Partitions {
			if one(t.Topic, p) != protocol.CodeNone {
				return func(topic string, partition int32) int16 {
					if code := one(topic, partition); code != protocol.CodeNone {
						return code
					}
					return protocol.CodeOperationNotAttempted
				}
			}
		}
	}
	return nil
}

// verifyTxn asks the coordinator of a transaction whether partitions are in it,
// or with add to put them there, all with one record. It answers one code for
// each partition of each topic.
func (b *Broker) verifyTxn(ctx context.Context, transactionalID string, producerID int64, epoch int16, topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, add bool) [][]int16 {
	t := kmsg.NewAddPartitionsToTxnRequestTransaction()
	t.TransactionalID, t.ProducerID, t.ProducerEpoch, t.VerifyOnly = transactionalID, producerID, epoch, !add
	t.Topics = topics
	got := b.inTransaction(ctx, t)
	codes := make([][]int16, len(topics))
	for i := range codes {
		codes[i] = make([]int16, len(topics[i].Partitions))
		for j := range codes[i] {
			codes[i][j] = got(i, j)
		}
	}
	return codes
}

// inTransaction asks the coordinator of a transaction, here or on another
// broker, about its partitions. What it returns gives the code of a partition by
// its place in the question.
func (b *Broker) inTransaction(ctx context.Context, t kmsg.AddPartitionsToTxnRequestTransaction) func(topic, partition int) int16 {
	const version = 5 // knows TRANSACTION_ABORTABLE
	all := func(code int16) func(int, int) int16 { return func(int, int) int16 { return code } }
	read := func(got kmsg.AddPartitionsToTxnResponseTransaction) func(int, int) int16 {
		for i := range t.Topics {
			if i >= len(got.Topics) || len(got.Topics[i].Partitions) != len(t.Topics[i].Partitions) {
				return all(protocol.CodeUnknownServerError)
			}
		}
		return func(i, j int) int16 { return got.Topics[i].Partitions[j].ErrorCode }
	}
	index, err := b.partitionFor(ctx, txnTopic, t.TransactionalID)
	if err != nil {
		return all(protocol.CodeCoordinatorNotAvailable)
	}
	to, _ := b.leaderElsewhere(txnTopic, index)
	if to == nil {
		return read(b.addPartitions(ctx, version, []kmsg.AddPartitionsToTxnRequestTransaction{t})[0])
	}
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.Version, req.Transactions = version, []kmsg.AddPartitionsToTxnRequestTransaction{t}
	resp := req.ResponseKind().(*kmsg.AddPartitionsToTxnResponse)
	// Partitions may be added twice.
	if err := b.peers.ask(ctx, to, req, resp, txnReplyTimeout, true); err != nil {
		b.log.Warn("the coordinator of a transaction did not answer", "broker", to.ID, "err", err)
		return all(protocol.CodeCoordinatorNotAvailable)
	}
	if resp.ErrorCode != 0 || len(resp.Transactions) != 1 {
		return all(protocol.CodeCoordinatorNotAvailable)
	}
	return read(resp.Transactions[0])
}

// leaderElsewhere is the broker that leads a partition, and the leader epoch in
// which it does, or nil if that is this one or nobody.
func (b *Broker) leaderElsewhere(topic string, index int32) (to *image.Broker, epoch int32) {
	im := b.meta.Image()
	t := im.Topic(topic)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil, anyTerm
	}
	if p := t.Partitions[index]; p.Leader != b.opts.BrokerID {
		return im.Broker(p.Leader), p.LeaderEpoch
	}
	return nil, anyTerm
}
