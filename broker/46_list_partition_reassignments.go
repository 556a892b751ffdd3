package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListPartitionReassignments (key 46), version 0: the partitions that are
// being moved, which the image shows as adding or removing replicas.

func (b *Broker) listPartitionReassignments(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ListPartitionReassignmentsRequest)
	resp := req.ResponseKind().(*kmsg.ListPartitionReassignmentsResponse)
	im := b.meta.Image()
	want := map[string]map[int32]bool{}
	for _, t := range req.Topics {
		want[t.Topic] = map[int32]bool{}
		for _, p := range t.Partitions {
			want[t.Topic][p] = true
		}
	}
	for t := range im.AllTopics() {
		if req.Topics != nil && want[t.Name] == nil {
			continue
		}
		out := kmsg.NewListPartitionReassignmentsResponseTopic()
		out.Topic = t.Name
		for i, p := range t.Partitions {
			if p == nil || len(p.Adding)+len(p.Removing) == 0 || req.Topics != nil && !want[t.Name][int32(i)] {
				continue
			}
			d := kmsg.NewListPartitionReassignmentsResponseTopicPartition()
			d.Partition, d.Replicas, d.AddingReplicas, d.RemovingReplicas = int32(i), p.Replicas, p.Adding, p.Removing
			out.Partitions = append(out.Partitions, d)
		}
		if len(out.Partitions) > 0 {
			resp.Topics = append(resp.Topics, out)
		}
	}
	return resp
}
