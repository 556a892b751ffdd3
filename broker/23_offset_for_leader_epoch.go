package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
)

// OffsetForLeaderEpoch (key 23), versions 2 to 4.
//
// Behavior: the largest epoch at or below the asked one and where it ends, so
// that a client whose position belongs to a lost history can find where it
// forked (KIP-101, KIP-320). Another broker may ask, with a tagged field, what
// this one has, whoever leads (unclean.go).

func (b *Broker) offsetForLeaderEpoch(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.OffsetForLeaderEpochRequest)
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	refused := tooManyPartitions(req.Topics, func(t *kmsg.OffsetForLeaderEpochRequestTopic) *[]kmsg.OffsetForLeaderEpochRequestTopicPartition {
		return &t.Partitions
	})
	var asked []*replica // what another broker asks the logs of
	if r.c.peer != nil && !refused {
		for i := range req.Topics {
			for j := range req.Topics[i].Partitions {
				p := &req.Topics[i].Partitions[j]
				if rep := b.replicas.find(req.Topics[i].Topic, p.Partition); rep != nil && asksForLog(&p.UnknownTags) {
					asked = append(asked, rep)
				}
			}
		}
	}
	logs := heldOf(ctx, asked)
	for i := range req.Topics {
		t := kmsg.NewOffsetForLeaderEpochResponseTopic()
		t.Topic = req.Topics[i].Topic
		for j := range req.Topics[i].Partitions {
			p := &req.Topics[i].Partitions[j]
			out := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			out.Partition, out.LeaderEpoch, out.EndOffset = p.Partition, -1, -1
			rep := b.replicas.find(t.Topic, p.Partition)
			l, told := logs[rep]
			switch {
			case refused:
				out.ErrorCode = protocol.CodeInvalidRequest
			case told && asksForLog(&p.UnknownTags):
				l.tell(&out)
			case p.CurrentLeaderEpoch >= 0 && p.CurrentLeaderEpoch < leaderEpochIn(b.meta.Image(), t.Topic, p.Partition):
				out.ErrorCode = protocol.CodeFencedLeaderEpoch
			case rep == nil:
				out.ErrorCode = b.missingNamed(t.Topic, p.Partition)
			case rep.view.Load().Role != partition.Leader:
				out.ErrorCode = rep.notServing()
			default:
				out.ErrorCode = partition.CheckEpoch(rep.view.Load().Epoch, p.CurrentLeaderEpoch)
				if out.ErrorCode == 0 {
					out.LeaderEpoch, out.EndOffset = rep.endOfEpoch(p.LeaderEpoch)
				}
			}
			t.Partitions = append(t.Partitions, out)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// leaderEpochIn is the leader epoch of a partition as metadata shows it, -1 if
// there is no such partition. Nobody leads before its metadata says so.
func leaderEpochIn(im *image.Image, topic string, index int32) int32 {
	if t := im.Topic(topic); t != nil {
		if p := im.Partition(t.ID, index); p != nil {
			return p.LeaderEpoch
		}
	}
	return -1
}
