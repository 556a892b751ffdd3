package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/metadata/controller"
)

// AlterPartitionReassignments (key 45), versions 0 and 1.
//
// Behavior: the answer leaves when the reassignment has begun;
// ListPartitionReassignments tells what is under way. A new replica copies only
// what is not in object storage yet. Unlike Kafka's, a second target leaves what
// a cancellation goes back to as it was before the first, and a reassignment
// ends only when all of the target is in sync, not just what is new in it.
//
// Versions: 1 whether the replication factor may change (KIP-860).

func (b *Broker) alterPartitionReassignments(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.AlterPartitionAssignmentsRequest)
	resp := req.ResponseKind().(*kmsg.AlterPartitionAssignmentsResponse)
	resp.AllowReplicationFactorChange = req.AllowReplicationFactorChange
	ctx, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	c := controller.AlterReassignments{KeepReplicationFactor: !req.AllowReplicationFactorChange}
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			c.Partitions = append(c.Partitions, controller.Reassignment{Topic: t.Topic, Partition: p.Partition, Replicas: p.Replicas})
		}
	}
	reply := b.meta.Do(ctx, c)
	if resp.ErrorCode = reply.ErrorCode; reply.ErrorCode != 0 {
		resp.ErrorMessage = kmsg.StringPtr(reply.Message)
	}
	for _, r := range reply.Partitions {
		if n := len(resp.Topics); n == 0 || resp.Topics[n-1].Topic != r.Topic {
			t := kmsg.NewAlterPartitionAssignmentsResponseTopic()
			t.Topic = r.Topic
			resp.Topics = append(resp.Topics, t)
		}
		p := kmsg.NewAlterPartitionAssignmentsResponseTopicPartition()
		p.Partition, p.ErrorCode = r.Partition, r.ErrorCode
		if r.ErrorCode != 0 {
			p.ErrorMessage = kmsg.StringPtr(r.Message)
		}
		t := &resp.Topics[len(resp.Topics)-1]
		t.Partitions = append(t.Partitions, p)
	}
	return resp
}
