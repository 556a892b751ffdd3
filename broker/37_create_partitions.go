package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/metadata/controller"
)

// CreatePartitions (key 37), versions 0 to 3.
//
// Behavior: the number of partitions of an internal topic stays. Kafka lets it
// be raised, and every group is then looked for where it is not.

func (b *Broker) createPartitions(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.CreatePartitionsRequest)
	resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	ctx, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	var grow []controller.Growth
	var names []string
	for i := range req.Topics {
		t := &req.Topics[i]
		g := controller.Growth{Name: t.Topic, Count: t.Count}
		for _, a := range t.Assignment {
			g.Assignments = append(g.Assignments, a.Replicas)
		}
		grow = append(grow, g)
		names = append(names, t.Topic)
	}
	results := b.meta.CreatePartitions(ctx, grow, req.ValidateOnly)
	if !req.ValidateOnly {
		b.awaitServing(ctx, names)
	}
	first := once[string]()
	for _, res := range results {
		if !first(res.Name) {
			continue
		}
		t := kmsg.NewCreatePartitionsResponseTopic()
		t.Topic, t.ErrorCode = res.Name, res.ErrorCode
		if res.ErrorCode != 0 {
			t.ErrorMessage = kmsg.StringPtr(res.Message)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}
