package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
)

// DeleteRecords (key 21), versions 0 to 2.
//
// Behavior: the log start moves up to the asked offset, or to the high
// watermark for -1. Commit point: the manifest head with the new log start;
// only after it is the answer sent and the space given back.

func (b *Broker) deleteRecords(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DeleteRecordsRequest)
	resp := req.ResponseKind().(*kmsg.DeleteRecordsResponse)
	ctx, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	refused := tooManyPartitions(req.Topics, func(t *kmsg.DeleteRecordsRequestTopic) *[]kmsg.DeleteRecordsRequestTopicPartition {
		return &t.Partitions
	})
	for i := range req.Topics {
		t := kmsg.NewDeleteRecordsResponseTopic()
		t.Topic = req.Topics[i].Topic
		for j := range req.Topics[i].Partitions {
			p := &req.Topics[i].Partitions[j]
			out := kmsg.NewDeleteRecordsResponseTopicPartition()
			out.Partition = p.Partition
			if refused {
				out.LowWatermark, out.ErrorCode = -1, protocol.CodeInvalidRequest
			} else {
				out.LowWatermark, out.ErrorCode = b.deleteBelow(ctx, t.Topic, p.Partition, p.Offset)
			}
			t.Partitions = append(t.Partitions, out)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

func (b *Broker) deleteBelow(ctx context.Context, topic string, index int32, offset int64) (low int64, code int16) {
	rep := b.replicas.find(topic, index)
	if rep == nil {
		return -1, b.missingNamed(topic, index)
	}
	v := *rep.view.Load()
	if v.Role != partition.Leader {
		return -1, rep.notServing()
	}
	if isInternal(topic) {
		return -1, protocol.CodeInvalidTopicException
	}
	if cfg := rep.cfg(); !cfg.Delete && cfg.Compact {
		// As in Kafka: a compacted topic keeps the newest value of each key.
		return -1, protocol.CodePolicyViolation
	}
	if offset == -1 {
		offset = v.HighWatermark
	}
	switch {
	case offset < 0 || offset > v.HighWatermark:
		return -1, protocol.CodeOffsetOutOfRange
	case offset <= v.LogStart:
		return v.LogStart, 0
	}
	start, err := b.tier.AdvanceLogStart(ctx, rep.topicID, rep.index, offset)
	if err != nil {
		b.log.Warn("records not deleted", "partition", rep.String(), "below", offset, "err", err)
		return -1, protocol.CodeRequestTimedOut
	}
	return start, 0
}
