package broker

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
)

// DescribeTopicPartitions (key 75), version 0 (KIP-966).
//
// Behavior: topics in the order of their names, at most ResponsePartitionLimit
// partitions an answer (and never more than max.request.partition.size.limit);
// the cursor says where the next request goes on. A cursor that points to none of
// the topics asked for is INVALID_REQUEST.

func (b *Broker) describeTopicPartitions(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeTopicPartitionsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	im := b.meta.Image()
	var names []string
	all := len(req.Topics) == 0
	if all {
		for t := range im.AllTopics() {
			names = append(names, t.Name)
		}
	} else {
		for _, t := range req.Topics {
			names = append(names, t.Topic)
		}
		slices.Sort(names)
		names = slices.Compact(names)
	}
	room := min(max(int(req.ResponsePartitionLimit), 1), b.conf().MaxRequestPartitions)
	from, at := int32(0), ""
	if req.Cursor != nil {
		at, from = req.Cursor.Topic, max(req.Cursor.Partition, 0)
		if !all && (req.Cursor.Partition < 0 || !slices.Contains(names, at)) {
			// No answer of ours had this cursor: to go on somewhere else would
			// leave out topics without a word.
			for _, name := range names {
				out := kmsg.NewDescribeTopicPartitionsResponseTopic()
				out.Topic, out.ErrorCode = kmsg.StringPtr(name), protocol.CodeInvalidRequest
				out.AuthorizedOperations = math.MinInt32
				resp.Topics = append(resp.Topics, out)
			}
			return resp
		}
	}
	for _, name := range names {
		if strings.Compare(name, at) < 0 {
			continue
		}
		first := int32(0)
		if name == at {
			first = from
		}
		if room <= 0 {
			resp.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name, Partition: first}
			return resp
		}
		t := im.Topic(name)
		out := kmsg.NewDescribeTopicPartitionsResponseTopic()
		out.Topic = kmsg.StringPtr(name)
		out.AuthorizedOperations = topicOperations
		if t == nil {
			out.AuthorizedOperations = math.MinInt32
			out.ErrorCode = protocol.CodeUnknownTopicOrPartition
			if !validTopicName(name) {
				out.ErrorCode = protocol.CodeInvalidTopicException
			}
			resp.Topics = append(resp.Topics, out) // takes no room: the limit is one of partitions
			continue
		}
		out.TopicID, out.IsInternal = t.ID, t.Internal
		for i := int(first); i < len(t.Partitions); i++ {
			if room <= 0 {
				resp.Topics = append(resp.Topics, out)
				resp.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name, Partition: int32(i)}
				return resp
			}
			out.Partitions = append(out.Partitions, describePartition(im, t, i))
			room--
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp
}

func describePartition(im *image.Image, t *image.Topic, i int) kmsg.DescribeTopicPartitionsResponseTopicPartition {
	d := kmsg.NewDescribeTopicPartitionsResponseTopicPartition()
	d.Partition = int32(i)
	p := t.Partitions[i]
	if p == nil {
		d.ErrorCode, d.LeaderID = protocol.CodeLeaderNotAvailable, -1
		return d
	}
	d.LeaderID, d.LeaderEpoch = p.Leader, p.LeaderEpoch
	d.Replicas, d.ISR = p.Replicas, p.ISR
	d.EligibleLeaderReplicas = append([]int32{}, p.ELR...)
	d.LastKnownELR = []int32{}
	d.OfflineReplicas = []int32{}
	for _, id := range p.Replicas {
		if !im.Alive(id) {
			d.OfflineReplicas = append(d.OfflineReplicas, id)
		}
	}
	if p.Leader < 0 || !im.Alive(p.Leader) {
		d.ErrorCode, d.LeaderID = protocol.CodeLeaderNotAvailable, -1
	}
	return d
}
