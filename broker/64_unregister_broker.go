package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/metadata/controller"
)

// UnregisterBroker (key 64), version 0.
//
// Behavior: forgets a broker that will not come back. Unlike in Kafka it is
// refused with INVALID_REQUEST while the broker is alive, which would register
// again at once, or has one of the last copies of a partition.

func (b *Broker) unregisterBroker(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.UnregisterBrokerRequest)
	resp := req.ResponseKind().(*kmsg.UnregisterBrokerResponse)
	reply := b.meta.Do(ctx, controller.UnregisterBroker{Broker: req.BrokerID})
	if resp.ErrorCode = reply.ErrorCode; reply.ErrorCode != 0 {
		resp.ErrorMessage = kmsg.StringPtr(reply.Message)
	}
	return resp
}
