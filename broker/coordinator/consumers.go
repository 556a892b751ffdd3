package coordinator

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// The consumer protocol (KIP-848). What its groups depend on beside what members say comes with each command: the
// topics, and what the group has set for itself.

// topics is the view of the topics that commands are decided on; nil if this coordinator has none.
func (c *Coordinator) topics() group.Topics {
	if c.o.Topics == nil {
		return nil
	}
	return c.o.Topics()
}

func (c *Coordinator) settings(groupID string) group.Settings {
	if c.o.Groups.Of == nil {
		return group.Settings{}
	}
	return c.o.Groups.Of(groupID)
}

// ConsumerGroupHeartbeat serves key 68, versions 0-1.
func (c *Coordinator) ConsumerGroupHeartbeat(ctx context.Context, req *kmsg.ConsumerGroupHeartbeatRequest, clientID, clientHost string) *kmsg.ConsumerGroupHeartbeatResponse {
	view := c.topics()
	code := protocol.CodeUnsupportedVersion
	if view != nil {
		own, bad := c.settings(req.Group), group.BadRegex(req)
		var r *kmsg.ConsumerGroupHeartbeatResponse
		if r, code = request[*kmsg.ConsumerGroupHeartbeatResponse](ctx, c.host, req.Group, c.o.ReplyTimeout, func(token uint64) group.Command {
			return &group.ConsumerHeartbeat{Token: token, Req: req, ClientID: clientID, ClientHost: clientHost, Suffix: suffix(), Topics: view,
				Elsewhere: true, BadRegex: bad,
				Session: own.Session, Interval: own.Interval, AssignmentInterval: own.AssignmentInterval}
		}); code == protocol.CodeNone {
			r.Version = req.Version
			return r
		}
	}
	r := kmsg.NewPtrConsumerGroupHeartbeatResponse()
	r.Version, r.ErrorCode = req.Version, code
	return r
}

// ConsumerGroupDescribe serves key 69, versions 0-1. Authorized operations are the caller's to fill in.
func (c *Coordinator) ConsumerGroupDescribe(ctx context.Context, req *kmsg.ConsumerGroupDescribeRequest) *kmsg.ConsumerGroupDescribeResponse {
	resp := kmsg.NewPtrConsumerGroupDescribeResponse()
	resp.Version = req.Version
	view := c.topics()
	for _, id := range req.Groups {
		code := protocol.CodeInvalidGroupID
		if id != "" {
			var g kmsg.ConsumerGroupDescribeResponseGroup
			if g, code = look(ctx, c.host, id, false, func(m *groupMachine) kmsg.ConsumerGroupDescribeResponseGroup {
				return m.DescribeConsumer(id, view)
			}); code == protocol.CodeNone {
				resp.Groups = append(resp.Groups, g)
				continue
			}
		}
		g := kmsg.NewConsumerGroupDescribeResponseGroup()
		g.Group, g.ErrorCode = id, code
		resp.Groups = append(resp.Groups, g)
	}
	return resp
}
