package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
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
		case client && isInternal(topic):
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

// verifyTxn asks the coordinator of a transaction, which is this broker, whether
// partitions are in it, or with add to put them there, all with one record. It
// answers one code for each partition of each topic.
func (b *Broker) verifyTxn(ctx context.Context, transactionalID string, producerID int64, epoch int16, topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, add bool) [][]int16 {
	t := kmsg.NewAddPartitionsToTxnRequestTransaction()
	t.TransactionalID, t.ProducerID, t.ProducerEpoch, t.VerifyOnly = transactionalID, producerID, epoch, !add
	t.Topics = topics
	const asksAbortable = 5
	got := b.addPartitions(ctx, asksAbortable, []kmsg.AddPartitionsToTxnRequestTransaction{t})[0]
	codes := make([][]int16, len(topics))
	for i := range codes {
		codes[i] = make([]int16, len(topics[i].Partitions))
		for j := range codes[i] {
			codes[i][j] = got.Topics[i].Partitions[j].ErrorCode
		}
	}
	return codes
}
