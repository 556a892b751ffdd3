package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
)

// ElectLeaders (key 43), versions 0 to 2.
//
// Behavior: the preferred leaders, or, where a partition has no leader, any
// replica: one that was not in sync only by this request. No topics means all of
// them; the answer then has those that needed an election.
//
// Versions: 1 the kind of election and an error of the whole request (KIP-460).

// The kinds of election that a request may ask for.
const (
	electPreferred = 0
	electUnclean   = 1
)

func (b *Broker) electLeaders(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ElectLeadersRequest)
	resp := req.ResponseKind().(*kmsg.ElectLeadersResponse)
	ctx, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	c := controller.ElectLeaders{Unclean: req.ElectionType == electUnclean, All: req.Topics == nil}
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			c.Partitions = append(c.Partitions, controller.PartitionName{Topic: t.Topic, Partition: p})
		}
	}
	var reply controller.Reply
	if req.ElectionType == electPreferred || req.ElectionType == electUnclean {
		reply = b.meta.Do(ctx, c)
	} else {
		reply = controller.Fail(c, protocol.CodeInvalidRequest, "Unknown election type.")
	}
	resp.ErrorCode = reply.ErrorCode
	for _, r := range reply.Partitions {
		if n := len(resp.Topics); n == 0 || resp.Topics[n-1].Topic != r.Topic {
			t := kmsg.NewElectLeadersResponseTopic()
			t.Topic = r.Topic
			resp.Topics = append(resp.Topics, t)
		}
		p := kmsg.NewElectLeadersResponseTopicPartition()
		p.Partition, p.ErrorCode = r.Partition, r.ErrorCode
		if r.ErrorCode != 0 {
			p.ErrorMessage = kmsg.StringPtr(r.Message)
		}
		t := &resp.Topics[len(resp.Topics)-1]
		t.Partitions = append(t.Partitions, p)
	}
	return resp
}
