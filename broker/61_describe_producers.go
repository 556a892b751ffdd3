package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/producer"
)

// DescribeProducers (key 61), version 0 (KIP-664).
//
// Behavior: what the leader of a partition knows of the producers that wrote to
// it: where their sequences are and where a transaction of theirs began that is
// still open. An operator finds the transaction that holds up readers with it.

// maxDescribedProducers bounds an answer, at 48 bytes each: a partition may have
// ten thousand producers, and a request a hundred thousand partitions.
const maxDescribedProducers = 500_000

func (b *Broker) describeProducers(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeProducersRequest)
	resp := req.ResponseKind().(*kmsg.DescribeProducersResponse)
	room := maxDescribedProducers
	type partitionOf struct {
		topic string
		index int32
	}
	seen := map[partitionOf]struct{}{}
	for i := range req.Topics {
		t := kmsg.NewDescribeProducersResponseTopic()
		t.Topic = req.Topics[i].Topic
		for _, index := range req.Topics[i].Partitions {
			k := partitionOf{t.Topic, index}
			if _, again := seen[k]; again {
				continue
			}
			seen[k] = struct{}{}
			p := kmsg.NewDescribeProducersResponseTopicPartition()
			p.Partition = index
			rep := b.replicas.find(t.Topic, index)
			switch {
			case rep == nil && !validTopicName(t.Topic):
				p.ErrorCode = protocol.CodeInvalidTopicException
			case rep == nil:
				p.ErrorCode = b.missingNamed(t.Topic, index)
			case rep.view.Load().Role != partition.Leader:
				p.ErrorCode = rep.notServing()
			default:
				list, ok := rep.producers(room)
				if !ok {
					p.ErrorCode = protocol.CodePolicyViolation
					p.ErrorMessage = kmsg.StringPtr(fmt.Sprintf("an answer has room for %d producers: ask for fewer partitions at a time", maxDescribedProducers))
					break
				}
				room -= len(list)
				for _, x := range list {
					a := kmsg.NewDescribeProducersResponseTopicPartitionActiveProducer()
					a.ProducerID, a.ProducerEpoch = x.ID, int32(x.Epoch)
					a.LastSequence, a.LastTimestamp = x.LastSequence, x.LastTimestamp
					a.CoordinatorEpoch, a.CurrentTxnStartOffset = x.CoordinatorEpoch, x.TxnFirstOffset
					p.ActiveProducers = append(p.ActiveProducers, a)
				}
			}
			t.Partitions = append(t.Partitions, p)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// producers lists the producers of a partition, if they are no more than room.
// One partition always has room.
func (r *replica) producers(room int) ([]producer.Producer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st == nil {
		return nil, true
	}
	st := r.st.Producers()
	if st.Len() > room && room < maxDescribedProducers {
		return nil, false
	}
	list := make([]producer.Producer, 0, st.Len())
	for p := range st.Producers() {
		list = append(list, p)
	}
	return list, true
}
