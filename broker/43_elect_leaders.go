package broker

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
)

// ElectLeaders (key 43), versions 0 to 2.
//
// Behavior: the preferred leaders, or, where a partition has no leader, any
// replica: one that was not in sync only by this request, and then the one that
// has most of the log (unclean.go). No topics means all of them; the answer then
// has those that needed an election. A type of our own shows what an unclean
// election would do.
//
// Versions: 1 the kind of election and an error of the whole request (KIP-460).

// The kinds of election that a request may ask for; see also ElectShow.
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
	req.UnknownTags.Each(func(tag uint32, v []byte) {
		if tag == LeaderTag && len(v) == 4 {
			id := int32(binary.BigEndian.Uint32(v))
			c.Leader = &id
		}
	})
	var reply controller.Reply
	switch {
	case req.ElectionType == electPreferred:
		reply = b.meta.Do(ctx, c)
	case req.ElectionType == electUnclean:
		reply = b.electAnyway(ctx, c)
	case req.ElectionType == ElectShow && (c.All || len(c.Partitions) > maxShownElections):
		reply = controller.Fail(c, protocol.CodeInvalidRequest, fmt.Sprintf("Elections are shown of up to %d partitions that are named.", maxShownElections))
	case req.ElectionType == ElectShow:
		for _, s := range b.showElections(ctx, c.Partitions) {
			p := addElection(resp, s.PartitionResult)
			if s.election != nil {
				p.UnknownTags.Set(LogsTag, s.election)
			}
		}
		return resp
	default:
		reply = controller.Fail(c, protocol.CodeInvalidRequest, "Unknown election type.")
	}
	resp.ErrorCode = reply.ErrorCode
	for _, r := range reply.Partitions {
		addElection(resp, r)
	}
	return resp
}

// addElection adds the outcome for a partition. It is good until the next is added.
func addElection(resp *kmsg.ElectLeadersResponse, r controller.PartitionResult) *kmsg.ElectLeadersResponseTopicPartition {
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
	return &t.Partitions[len(t.Partitions)-1]
}

func comparePartitions(a, b controller.PartitionName) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}
