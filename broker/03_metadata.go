package broker

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// Metadata (key 3), versions 0 to 13.
//
// Behavior:
//   - Brokers are shown with the address of the listener that the request came
//     through, so that a client on one network is not sent to another.
//   - A topic that does not exist is created when the client allows it and
//     auto.create.topics.enable is on. As in Kafka the answer to that request
//     is UNKNOWN_TOPIC_OR_PARTITION, which clients ask again on; by then it has
//     its leaders (some clients give up on LEADER_NOT_AVAILABLE).
//
// Versions: 0 asks for all topics by an empty list, 1 on by a null one; 4
// allow_auto_topic_creation; 8 authorized operations; 10 topic ids; 12 by
// topic id; 13 top-level error.

// Operations that authorized-operations fields can name, as bits. Without an
// authorizer everything that a resource supports is allowed.
const (
	clusterOperations = 1<<5 | 1<<9 | 1<<7 | 1<<8 | 1<<10 | 1<<11 | 1<<12
	topicOperations   = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11
	groupOperations   = 1<<3 | 1<<6 | 1<<8 | 1<<10 | 1<<11
)

// maxMetadataTopics bounds the topics one request may name.
const maxMetadataTopics = 100_000

func (b *Broker) metadata(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.MetadataRequest)
	resp := req.ResponseKind().(*kmsg.MetadataResponse)
	if len(req.Topics) > maxMetadataTopics {
		resp.ErrorCode = protocol.CodeInvalidRequest
		return resp
	}
	// A topic named twice is answered once, as in Kafka: an answer can be
	// thousands of times as large as the name.
	req.Topics = distinct(req.Topics, func(t kmsg.MetadataRequestTopic) any {
		if t.TopicID != [16]byte{} || t.Topic == nil {
			return t.TopicID
		}
		return *t.Topic
	})
	im := b.meta.Image()
	b.autoCreate(ctx, req, im)
	for _, br := range im.Brokers() {
		if br.Fenced {
			continue
		}
		ep, ok := br.Endpoint(r.c.listener.name)
		if !ok {
			continue
		}
		mb := kmsg.NewMetadataResponseBroker()
		mb.NodeID, mb.Host, mb.Port = br.ID, ep.Host, ep.Port
		if br.Rack != "" {
			mb.Rack = kmsg.StringPtr(br.Rack)
		}
		resp.Brokers = append(resp.Brokers, mb)
	}
	resp.ClusterID = kmsg.StringPtr(im.ClusterID)
	resp.ControllerID = b.controllerID(im)
	resp.AuthorizedOperations = math.MinInt32
	if req.IncludeClusterAuthorizedOperations {
		resp.AuthorizedOperations = clusterOperations
	}
	if req.Topics == nil || req.Version == 0 && len(req.Topics) == 0 {
		for t := range im.AllTopics() {
			resp.Topics = append(resp.Topics, b.metadataTopic(im, t, req))
		}
		return resp
	}
	for i := range req.Topics {
		rt := &req.Topics[i]
		var t *image.Topic
		code := protocol.CodeUnknownTopicOrPartition
		switch {
		case rt.Topic != nil && (req.Version < 12 || rt.TopicID == [16]byte{}):
			if t = im.Topic(*rt.Topic); t == nil && !validTopicName(*rt.Topic) {
				code = protocol.CodeInvalidTopicException
			}
		case rt.TopicID != [16]byte{}:
			t = im.TopicByID(rt.TopicID)
			code = protocol.CodeUnknownTopicID
		default:
			code = protocol.CodeInvalidRequest
		}
		if t != nil {
			resp.Topics = append(resp.Topics, b.metadataTopic(im, t, req))
			continue
		}
		mt := kmsg.NewMetadataResponseTopic()
		mt.ErrorCode, mt.TopicID = code, rt.TopicID
		mt.Topic = rt.Topic
		if rt.Topic == nil && req.Version < 12 {
			mt.Topic = kmsg.StringPtr("")
		}
		if rt.Topic != nil {
			mt.IsInternal = isInternal(*rt.Topic)
		}
		mt.AuthorizedOperations = math.MinInt32
		resp.Topics = append(resp.Topics, mt)
	}
	return resp
}

// distinct drops, in place, the elements whose key an earlier one has.
func distinct[T any](list []T, key func(T) any) []T {
	if len(list) < 2 {
		return list
	}
	seen := make(map[any]struct{}, len(list))
	return slices.DeleteFunc(list, func(x T) bool {
		k := key(x)
		_, again := seen[k]
		seen[k] = struct{}{}
		return again
	})
}

func (b *Broker) metadataTopic(im *image.Image, t *image.Topic, req *kmsg.MetadataRequest) kmsg.MetadataResponseTopic {
	mt := kmsg.NewMetadataResponseTopic()
	mt.Topic, mt.TopicID, mt.IsInternal = kmsg.StringPtr(t.Name), t.ID, t.Internal
	mt.AuthorizedOperations = math.MinInt32
	if req.IncludeTopicAuthorizedOperations {
		mt.AuthorizedOperations = topicOperations
	}
	mt.Partitions = make([]kmsg.MetadataResponseTopicPartition, 0, len(t.Partitions))
	for i, p := range t.Partitions {
		mp := kmsg.NewMetadataResponseTopicPartition()
		mp.Partition = int32(i)
		if p == nil {
			mp.ErrorCode, mp.Leader = protocol.CodeLeaderNotAvailable, -1
		} else {
			mp.Leader, mp.LeaderEpoch, mp.Replicas, mp.ISR = p.Leader, p.LeaderEpoch, p.Replicas, p.ISR
			if p.Leader < 0 || !im.Alive(p.Leader) {
				mp.ErrorCode, mp.Leader = protocol.CodeLeaderNotAvailable, -1
			}
			for _, id := range p.Replicas {
				if !im.Alive(id) {
					mp.OfflineReplicas = append(mp.OfflineReplicas, id)
				}
			}
		}
		mt.Partitions = append(mt.Partitions, mp)
	}
	return mt
}

// autoCreate creates the topics that a Metadata request names and that do not
// exist, where that is allowed.
func (b *Broker) autoCreate(ctx context.Context, req *kmsg.MetadataRequest, im *image.Image) {
	if !b.conf().AutoCreateTopics || req.Version >= 4 && !req.AllowAutoTopicCreation {
		return
	}
	var missing []string
	for i := range req.Topics {
		name := req.Topics[i].Topic
		if name == nil || im.Topic(*name) != nil || !validTopicName(*name) {
			continue
		}
		missing = append(missing, *name)
	}
	if len(missing) > 0 {
		b.createNow(ctx, missing)
	}
}

// createNow creates topics with the broker's defaults, or an internal topic's
// own, and waits until their partitions serve. What fails shows in the image:
// the topic is not there.
func (b *Broker) createNow(ctx context.Context, names []string) []controller.Result {
	ctx, cancel := context.WithTimeout(ctx, autoCreateTimeout)
	defer cancel()
	specs := make([]controller.NewTopic, 0, len(names))
	for _, name := range names {
		specs = append(specs, b.newTopicSpec(name))
	}
	results := b.meta.CreateTopics(ctx, specs, false)
	failed := 0
	for _, res := range results {
		switch res.ErrorCode {
		case protocol.CodeNone, protocol.CodeTopicAlreadyExists:
		default:
			// The first of a request says why; that there were more is one line.
			if failed++; failed == 1 && b.badInputLog.Allow() {
				b.log.Warn("topic not created on demand", "topic", res.Name, "error", protocol.Name(res.ErrorCode), "message", res.Message)
			}
		}
	}
	if failed > 1 && b.badInputLog.Allow() {
		b.log.Warn("topics not created on demand", "topics", failed)
	}
	b.awaitServing(ctx, names)
	return results
}

const autoCreateTimeout = 10 * time.Second

// controllerID is the broker that clients are told to send administrative
// requests to. While nobody holds the election it is this one: it keeps such a
// request until somebody does, and a client that is told of no controller does
// not ask again by itself (librdkafka lets the request time out). Kafka's
// brokers name a living broker too, whoever leads the quorum.
func (b *Broker) controllerID(im *image.Image) int32 {
	if im.Controller == image.NoLeader {
		return b.opts.BrokerID
	}
	return im.Controller
}

// awaitServing waits until every partition of the named topics that this
// broker leads serves, or ctx ends.
func (b *Broker) awaitServing(ctx context.Context, names []string) {
	for {
		im := b.meta.Image()
		waiting := false
		for _, name := range names {
			t := im.Topic(name)
			if t == nil {
				continue
			}
			for i, p := range t.Partitions {
				if p == nil || p.Leader != b.opts.BrokerID {
					continue
				}
				r := b.replicas.find(name, int32(i))
				if r == nil || r.view.Load().Epoch < p.LeaderEpoch {
					waiting = true
				}
			}
		}
		if !waiting {
			return
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// validTopicName is Kafka's rule for topic names.
func validTopicName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 249 {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}) < 0
}

const (
	offsetsTopic = "__consumer_offsets"
	txnTopic     = "__transaction_state"
)

// isInternal says whether clients may not write to a topic.
func isInternal(topic string) bool { return topic == offsetsTopic || topic == txnTopic }

// missingID is the error code for a partition that has no replica here, asked
// for by its topic's id.
func (b *Broker) missingID(id [16]byte, index int32) int16 {
	t := b.meta.Image().TopicByID(id)
	switch {
	case t == nil:
		return protocol.CodeUnknownTopicID
	case index < 0 || int(index) >= len(t.Partitions):
		return protocol.CodeUnknownTopicOrPartition
	}
	return protocol.CodeNotLeaderOrFollower
}

// missingNamed is missingID for requests that name topics, be it by an empty
// name.
func (b *Broker) missingNamed(topic string, index int32) int16 {
	t := b.meta.Image().Topic(topic)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return protocol.CodeUnknownTopicOrPartition
	}
	return protocol.CodeNotLeaderOrFollower
}
