package broker

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
)

// CreateTopics (key 19), versions 2 to 7.
//
// Behavior: topics are created in the metadata store, by the controller; the
// answer leaves when this broker's image has them and the partitions that it
// leads serve, within the request's time.
//
// Versions: 4 defaults by -1, 5 the created topic's settings in the answer, 7
// its id.

// once is a filter that lets each of several values through once: what a request names twice is answered once, as in
// Kafka, which collects such names.
func once[K comparable]() func(K) bool {
	seen := map[K]bool{}
	return func(k K) bool {
		first := !seen[k]
		seen[k] = true
		return first
	}
}

// maxAdminItems bounds the items of one administrative request.
const maxAdminItems = 10_000

func (b *Broker) createTopics(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.CreateTopicsRequest)
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	ctx, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	specs := make([]controller.NewTopic, 0, len(req.Topics))
	var names []string
	for i := range req.Topics {
		t := &req.Topics[i]
		spec := controller.NewTopic{Name: t.Topic, Partitions: t.NumPartitions, ReplicationFactor: t.ReplicationFactor}
		for _, a := range t.ReplicaAssignment {
			spec.Assignments = append(spec.Assignments, controller.Assignment{Partition: a.Partition, Replicas: a.Replicas})
		}
		for _, c := range t.Configs {
			spec.Configs = append(spec.Configs, controller.ConfigEntry{Name: c.Name, Value: c.Value})
		}
		specs = append(specs, spec)
		names = append(names, t.Topic)
	}
	var results []controller.Result
	if len(specs) > maxAdminItems {
		for _, n := range names {
			results = append(results, controller.Result{Name: n, ErrorCode: protocol.CodeInvalidRequest, Message: "too many topics in one request"})
		}
	} else {
		results = b.meta.CreateTopics(ctx, specs, req.ValidateOnly)
	}
	if !req.ValidateOnly {
		b.awaitServing(ctx, names)
	}
	im := b.meta.Image()
	first := once[string]()
	for _, res := range results {
		if !first(res.Name) {
			continue
		}
		t := kmsg.NewCreateTopicsResponseTopic()
		t.Topic, t.TopicID, t.ErrorCode = res.Name, res.ID, res.ErrorCode
		t.NumPartitions, t.ReplicationFactor = -1, -1
		if res.ErrorCode != 0 {
			t.TopicID = [16]byte{} // the id that it would have got names nothing
			t.ErrorMessage = kmsg.StringPtr(res.Message)
		} else {
			t.NumPartitions, t.ReplicationFactor = res.Partitions, res.ReplicationFactor
			if req.Version >= 5 {
				overrides := map[string]string{}
				if it := im.Topic(res.Name); it != nil && !req.ValidateOnly {
					overrides = it.Config
				} else if i := slices.Index(names, res.Name); i >= 0 {
					for _, c := range specs[i].Configs {
						if c.Value != nil {
							overrides[c.Name] = *c.Value
						}
					}
				}
				for _, e := range b.topicEntries(im, overrides) {
					c := kmsg.NewCreateTopicsResponseTopicConfig()
					c.Name, c.Value, c.ReadOnly, c.IsSensitive, c.Source = e.Name, e.Value, e.ReadOnly, e.Sensitive, int8(e.Source)
					t.Configs = append(t.Configs, c)
				}
			}
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// adminTimeout is how long an administrative request may take.
func adminTimeout(ms int32) time.Duration {
	d := time.Duration(ms) * time.Millisecond
	return min(max(d, time.Second), 10*time.Minute)
}

// newTopicSpec is what a topic gets that is created on demand.
func (b *Broker) newTopicSpec(name string) controller.NewTopic {
	spec := controller.NewTopic{Name: name, Partitions: -1, ReplicationFactor: -1}
	switch name {
	case offsetsTopic:
		spec.Partitions = b.conf().OffsetsTopicPartitions
		spec.ReplicationFactor = b.possibleRF(name, b.conf().OffsetsTopicReplicationFactor)
		spec.Configs = []controller.ConfigEntry{
			{Name: "cleanup.policy", Value: kmsg.StringPtr("compact")},
			{Name: "compression.type", Value: kmsg.StringPtr("producer")},
			{Name: "segment.bytes", Value: kmsg.StringPtr(strconv.Itoa(max(b.conf().OffsetsTopicSegmentBytes, 1<<20)))},
		}
	case txnTopic:
		// As Kafka creates it. What decides about transactions is never taken from
		// a replica that was not in sync.
		c := b.conf()
		spec.Partitions = c.TxnTopicPartitions
		spec.ReplicationFactor = b.possibleRF(name, c.TxnTopicReplication)
		spec.Configs = []controller.ConfigEntry{
			{Name: "unclean.leader.election.enable", Value: kmsg.StringPtr("false")},
			{Name: "compression.type", Value: kmsg.StringPtr("uncompressed")},
			{Name: "cleanup.policy", Value: kmsg.StringPtr("compact")},
			{Name: "min.insync.replicas", Value: kmsg.StringPtr(strconv.Itoa(c.TxnTopicMinISR))},
			{Name: "segment.bytes", Value: kmsg.StringPtr(strconv.Itoa(max(c.TxnTopicSegmentBytes, 1<<20)))},
		}
	}
	return spec
}

// possibleRF is a replication factor that the brokers alive, and not cordoned, can satisfy: one
// broker must serve by itself although offsets.topic.replication.factor and its
// like are 3.
func (b *Broker) possibleRF(topic string, want int16) int16 {
	alive := 0
	for _, br := range b.meta.Image().Brokers() {
		if !br.Fenced && !b.meta.Image().Cordoned(br.ID) {
			alive++
		}
	}
	if int(want) > alive && alive > 0 {
		b.log.Warn("internal topic gets fewer replicas than configured: there are not more brokers", "topic", topic, "configured", want, "brokers", alive)
		return int16(alive)
	}
	return want
}
