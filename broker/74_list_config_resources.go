package broker

import (
	"context"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
)

// ListConfigResources (74), versions 0 and 1.
//
// Behavior: the names of what has settings. Topics and brokers are listed whether
// or not anything is set for them; groups and client metrics subscriptions if
// something is.
//
// Version 0: client metrics subscriptions only, as ListClientMetricsResources.
// Version 1: the types asked for, none meaning all; UNSUPPORTED_VERSION if one of
// them is not known (KIP-1142).
func (b *Broker) listConfigResources(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ListConfigResourcesRequest)
	resp := req.ResponseKind().(*kmsg.ListConfigResourcesResponse)
	types := distinct(req.ResourceTypes, func(t int8) any { return t })
	switch {
	case req.Version == 0:
		types = []int8{image.ClientMetricsResource}
	case len(types) == 0:
		types = []int8{image.TopicResource, image.BrokerResource, brokerLoggerResource, image.ClientMetricsResource, image.GroupResource}
	}
	im := b.meta.Image()
	for _, kind := range types {
		add := func(name string) {
			r := kmsg.NewListConfigResourcesResponseConfigResource()
			r.Type, r.Name = kind, name
			resp.ConfigResources = append(resp.ConfigResources, r)
		}
		switch kind {
		case image.TopicResource:
			for t := range im.AllTopics() {
				add(t.Name)
			}
		case image.BrokerResource, brokerLoggerResource:
			for _, br := range im.Brokers() {
				add(strconv.Itoa(int(br.ID)))
			}
		case image.ClientMetricsResource, image.GroupResource:
			for _, c := range im.Configs(kind) {
				add(c.Name)
			}
		default:
			resp.ConfigResources, resp.ErrorCode = nil, protocol.CodeUnsupportedVersion
			return resp
		}
	}
	return resp
}
