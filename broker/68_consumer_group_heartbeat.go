package broker

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// ConsumerGroupHeartbeat (68), versions 0 and 1.
//
// Behavior: joining, going on and leaving of a member of the consumer protocol
// (KIP-848). The answer says what the member may have; it is not held back for
// others. UNSUPPORTED_VERSION if group.coordinator.rebalance.protocols leaves
// the protocol out: clients then say that it is not offered.
//
// Version 1: SubscribedTopicRegex, and member ids are the clients' own (KIP-1082).
func (b *Broker) consumerGroupHeartbeat(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ConsumerGroupHeartbeatRequest)
	if !b.offersConsumerProtocol() {
		resp := req.ResponseKind().(*kmsg.ConsumerGroupHeartbeatResponse)
		resp.ErrorCode = protocol.CodeUnsupportedVersion
		return resp
	}
	return b.groups.ConsumerGroupHeartbeat(ctx, req, r.clientID(), r.clientHost())
}

// offersConsumerProtocol says whether groups of the consumer protocol are served.
func (b *Broker) offersConsumerProtocol() bool {
	return slices.Contains(b.conf().GroupProtocols, "consumer")
}
