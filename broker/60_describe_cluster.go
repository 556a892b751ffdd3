package broker

import (
	"context"
	"math"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// DescribeCluster (key 60), versions 0 to 2.
//
// Versions: 1 endpoint type (KIP-919): controllers have no endpoints of their
// own here, so that only brokers can be asked for; 2 fenced brokers (KIP-1073).

// BrokerStateTag is the tagged field of a broker that is given no new replicas
// (bit 0) or no leaderships (bit 1), or that the controller has found to answer
// nobody though its session lasts (bit 2): one byte. Kafka says the first per log
// directory (DescribeLogDirs), which only the broker itself answers, while it
// runs.
const BrokerStateTag = 0x7662

// StaleTag is the tagged field of the answer by which a broker says that it does not hear from the metadata store, so that what it
// shows may be old, or that nothing can be changed there: why, in words.
const StaleTag = 0x7666

func (b *Broker) describeCluster(_ context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeClusterRequest)
	resp := req.ResponseKind().(*kmsg.DescribeClusterResponse)
	resp.ClusterAuthorizedOperations = math.MinInt32
	resp.EndpointType = 1
	if req.Version >= 1 && req.EndpointType != 1 {
		resp.ErrorCode = protocol.CodeUnsupportedEndpointType
		if req.EndpointType == 2 {
			resp.ErrorCode = protocol.CodeMismatchedEndpointType
		}
		resp.ErrorMessage = kmsg.StringPtr("this endpoint is a broker's: the controller is elected among the brokers")
		return resp
	}
	im := b.meta.Image()
	resp.ClusterID, resp.ControllerID = im.ClusterID, b.controllerID(im)
	if m, ok := b.meta.(interface{ Healthy() error }); ok {
		if err := m.Healthy(); err != nil {
			why := err.Error()
			resp.UnknownTags.Set(StaleTag, []byte(why[:min(len(why), 1000)]))
		}
	}
	if req.IncludeClusterAuthorizedOperations {
		resp.ClusterAuthorizedOperations = clusterOperations
	}
	for _, br := range im.Brokers() {
		if br.Fenced && !req.IncludeFencedBrokers {
			continue
		}
		ep, ok := br.Endpoint(r.c.listener.name)
		if !ok {
			continue
		}
		d := kmsg.NewDescribeClusterResponseBroker()
		d.NodeID, d.Host, d.Port, d.IsFenced = br.ID, ep.Host, ep.Port, br.Fenced
		if br.Rack != "" {
			d.Rack = kmsg.StringPtr(br.Rack)
		}
		state := byte(0)
		if im.Cordoned(br.ID) {
			state |= 1
		}
		if !im.MayLead(br.ID) {
			state |= 2
		}
		if br.Unresponsive {
			state |= 4
		}
		if state != 0 {
			d.UnknownTags.Set(BrokerStateTag, []byte{state})
		}
		resp.Brokers = append(resp.Brokers, d)
	}
	return resp
}
