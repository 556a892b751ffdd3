package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// ConsumerGroupDescribe (69), versions 0 and 1.
//
// Behavior: of each group of the consumer protocol its members, what each has and
// what it is meant to have. A group of another kind is GROUP_ID_NOT_FOUND, with
// the reason: tools then ask with DescribeGroups.
//
// Version 1: MemberType, 0 for a member of the classic protocol (KIP-1099).
func (b *Broker) consumerGroupDescribe(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ConsumerGroupDescribeRequest)
	refuse := func(code int16, message *string) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.ConsumerGroupDescribeResponse)
		for _, id := range req.Groups {
			g := kmsg.NewConsumerGroupDescribeResponseGroup()
			g.Group, g.ErrorCode, g.ErrorMessage = id, code, message
			resp.Groups = append(resp.Groups, g)
		}
		return resp
	}
	if tooMany(&req.Groups) {
		return refuse(protocol.CodeInvalidRequest, tooManyNamed)
	}
	req.Groups = distinct(req.Groups, func(g string) any { return g })
	if !b.offersConsumerProtocol() {
		return refuse(protocol.CodeUnsupportedVersion, nil)
	}
	resp := b.groups.ConsumerGroupDescribe(ctx, req)
	if req.IncludeAuthorizedOperations {
		for i := range resp.Groups {
			if resp.Groups[i].ErrorCode == protocol.CodeNone {
				resp.Groups[i].AuthorizedOperations = groupOperations
			}
		}
	}
	return resp
}
