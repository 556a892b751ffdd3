package coordinator

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// The handlers below take a decoded request and return its response, of the same version. They block in the caller's
// goroutine, JoinGroup and SyncGroup for as long as a rebalance takes, until ctx ends at the latest. Authorisation,
// existence of topics and resolution of topic ids are the caller's: topics are named in every version.

// JoinGroup serves key 11, versions 0-9.
func (c *Coordinator) JoinGroup(ctx context.Context, req *kmsg.JoinGroupRequest, clientID, clientHost string) *kmsg.JoinGroupResponse {
	fail := func(code int16) *kmsg.JoinGroupResponse {
		r := kmsg.NewPtrJoinGroupResponse()
		r.Version, r.MemberID, r.ErrorCode = req.Version, req.MemberID, code
		return r
	}
	if req.Group == "" {
		return fail(protocol.CodeInvalidGroupID)
	}
	own := *req
	own.Protocols = slices.Clone(req.Protocols)
	for i := range own.Protocols {
		own.Protocols[i].Metadata = bytes.Clone(own.Protocols[i].Metadata)
	}
	r, code := request[*kmsg.JoinGroupResponse](ctx, c.host, req.Group, 0, func(token uint64) group.Command {
		return &group.Join{Token: token, Req: &own, ClientID: clientID, ClientHost: clientHost, Suffix: suffix(), Topics: c.topics(),
			AssignmentInterval: c.settings(req.Group).AssignmentInterval}
	})
	if code != protocol.CodeNone {
		return fail(code)
	}
	r.Version = req.Version
	return r
}

// SyncGroup serves key 14, versions 0-5.
func (c *Coordinator) SyncGroup(ctx context.Context, req *kmsg.SyncGroupRequest) *kmsg.SyncGroupResponse {
	fail := func(code int16) *kmsg.SyncGroupResponse {
		if code == protocol.CodeCoordinatorLoadInProgress {
			// The rebalance that this is part of was lost with the last coordinator, and clients do not expect
			// the code here: this one makes them join again.
			code = protocol.CodeRebalanceInProgress
		}
		r := kmsg.NewPtrSyncGroupResponse()
		r.Version, r.ErrorCode, r.MemberAssignment = req.Version, code, []byte{}
		return r
	}
	if req.Group == "" {
		return fail(protocol.CodeInvalidGroupID)
	}
	own := *req
	own.GroupAssignment = slices.Clone(req.GroupAssignment)
	for i := range own.GroupAssignment {
		own.GroupAssignment[i].MemberAssignment = bytes.Clone(own.GroupAssignment[i].MemberAssignment)
	}
	r, code := request[*kmsg.SyncGroupResponse](ctx, c.host, req.Group, 0, func(token uint64) group.Command {
		return &group.Sync{Token: token, Req: &own, Topics: c.topics()}
	})
	if code != protocol.CodeNone {
		return fail(code)
	}
	r.Version = req.Version
	return r
}

// Heartbeat serves key 12, versions 0-4.
func (c *Coordinator) Heartbeat(ctx context.Context, req *kmsg.HeartbeatRequest) *kmsg.HeartbeatResponse {
	code := protocol.CodeInvalidGroupID
	if req.Group != "" {
		var r *kmsg.HeartbeatResponse
		if r, code = request[*kmsg.HeartbeatResponse](ctx, c.host, req.Group, c.o.ReplyTimeout, func(token uint64) group.Command {
			return &group.Heartbeat{Token: token, Req: req}
		}); code == protocol.CodeNone {
			r.Version = req.Version
			return r
		}
		if code == protocol.CodeCoordinatorLoadInProgress {
			code = protocol.CodeNone // sessions begin anew when the group is loaded; until then nobody is late
		}
	}
	r := kmsg.NewPtrHeartbeatResponse()
	r.Version, r.ErrorCode = req.Version, code
	return r
}

// LeaveGroup serves key 13, versions 0-5.
func (c *Coordinator) LeaveGroup(ctx context.Context, req *kmsg.LeaveGroupRequest) *kmsg.LeaveGroupResponse {
	code := protocol.CodeInvalidGroupID
	if req.Group != "" {
		var r *kmsg.LeaveGroupResponse
		if r, code = request[*kmsg.LeaveGroupResponse](ctx, c.host, req.Group, c.o.ReplyTimeout, func(token uint64) group.Command {
			return &group.Leave{Token: token, Req: req}
		}); code == protocol.CodeNone {
			r.Version = req.Version
			return r
		}
	}
	r := kmsg.NewPtrLeaveGroupResponse()
	r.Version, r.ErrorCode = req.Version, code
	return r
}

// OffsetCommit serves key 8, versions 2-10. In version 10 the caller fills in the names of the topics, and leaves out
// those whose ids it does not know; ids are handed back.
func (c *Coordinator) OffsetCommit(ctx context.Context, req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	r, code := request[*kmsg.OffsetCommitResponse](ctx, c.host, req.Group, c.o.ReplyTimeout, func(token uint64) group.Command {
		return &group.Commit{Token: token, Req: req, Topics: c.topics()}
	})
	if code != protocol.CodeNone {
		r = group.CommitError(req, code)
	}
	r.Version = req.Version
	return r
}

// OffsetDelete serves key 47, version 0.
func (c *Coordinator) OffsetDelete(ctx context.Context, req *kmsg.OffsetDeleteRequest) *kmsg.OffsetDeleteResponse {
	code := protocol.CodeInvalidGroupID
	if req.Group != "" {
		var r *kmsg.OffsetDeleteResponse
		if r, code = request[*kmsg.OffsetDeleteResponse](ctx, c.host, req.Group, c.o.ReplyTimeout, func(token uint64) group.Command {
			return &group.DeleteOffsets{Token: token, Req: req}
		}); code == protocol.CodeNone {
			r.Version = req.Version
			return r
		}
	}
	r := kmsg.NewPtrOffsetDeleteResponse()
	r.Version, r.ErrorCode = req.Version, code
	return r
}

// OffsetFetch serves key 9, versions 1-10. In version 10 the caller fills in the names of the topics asked for, and in
// answers about all topics their ids. With RequireStable the answer waits for commits that are under way.
func (c *Coordinator) OffsetFetch(ctx context.Context, req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	resp := kmsg.NewPtrOffsetFetchResponse()
	resp.Version = req.Version
	if req.Version >= 8 {
		confirmed := c.confirm(ctx, req.Groups)
		for i := range req.Groups {
			resp.Groups = append(resp.Groups, c.fetchOffsets(ctx, &req.Groups[i], req.RequireStable, confirmed))
		}
		return resp
	}
	one := kmsg.NewOffsetFetchRequestGroup()
	one.Group = req.Group
	if req.Topics != nil {
		one.Topics = make([]kmsg.OffsetFetchRequestGroupTopic, len(req.Topics))
		for i, t := range req.Topics {
			one.Topics[i].Topic, one.Topics[i].Partitions = t.Topic, t.Partitions
		}
	}
	g := c.fetchOffsets(ctx, &one, req.RequireStable, c.confirm(ctx, []kmsg.OffsetFetchRequestGroup{one}))
	resp.ErrorCode = g.ErrorCode
	if g.ErrorCode != protocol.CodeNone && req.Version < 2 {
		// There is no other place for the code in these versions.
		for _, t := range one.Topics {
			rt := kmsg.NewOffsetFetchResponseGroupTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewOffsetFetchResponseGroupTopicPartition()
				none := ""
				rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata, rp.ErrorCode = p, -1, -1, &none, g.ErrorCode
				rt.Partitions = append(rt.Partitions, rp)
			}
			g.Topics = append(g.Topics, rt)
		}
	}
	for _, t := range g.Topics {
		rt := kmsg.NewOffsetFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetFetchResponseTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata, rp.ErrorCode = p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// confirm says of the partitions of groups whether they are led here as of now.
func (c *Coordinator) confirm(ctx context.Context, groups []kmsg.OffsetFetchRequestGroup) (codes map[int32]int16) {
	log, ok := c.o.Log.(ConfirmLog)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.ReplyTimeout)
	defer cancel()
	codes = map[int32]int16{}
	for i := range groups {
		if p := c.PartitionFor(groups[i].Group); p >= 0 {
			codes[p] = protocol.CodeNone
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, p := range slices.Collect(maps.Keys(codes)) {
		wg.Go(func() {
			code := log.Confirm(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			codes[p] = code
		})
	}
	wg.Wait()
	return codes
}

// fetchOffsets reads the offsets of a group, in a partition of which confirm has said the code.
func (c *Coordinator) fetchOffsets(ctx context.Context, req *kmsg.OffsetFetchRequestGroup, stable bool, confirmed map[int32]int16) kmsg.OffsetFetchResponseGroup {
	var resp kmsg.OffsetFetchResponseGroup
	code := confirmed[c.PartitionFor(req.Group)]
	if code == protocol.CodeNone {
		resp, code = look(ctx, c.host, req.Group, stable, func(m *groupMachine) kmsg.OffsetFetchResponseGroup { return m.Fetch(req, stable) })
	}
	switch code {
	case protocol.CodeNone:
		return resp
	case protocol.CodeCoordinatorNotAvailable:
		code = protocol.CodeNotCoordinator // consumers before 3.9 do not expect the other
	}
	resp = kmsg.NewOffsetFetchResponseGroup()
	resp.Group, resp.ErrorCode = req.Group, code
	return resp
}

// DescribeGroups serves key 15, versions 0-6. Authorized operations are the caller's to fill in.
func (c *Coordinator) DescribeGroups(ctx context.Context, req *kmsg.DescribeGroupsRequest) *kmsg.DescribeGroupsResponse {
	resp := kmsg.NewPtrDescribeGroupsResponse()
	resp.Version = req.Version
	for _, id := range req.Groups {
		g, code := look(ctx, c.host, id, false, func(m *groupMachine) kmsg.DescribeGroupsResponseGroup { return m.Describe(id, req.Version) })
		if code != protocol.CodeNone {
			g = kmsg.NewDescribeGroupsResponseGroup()
			g.Group, g.State, g.ErrorCode = id, "Dead", code
		}
		resp.Groups = append(resp.Groups, g)
	}
	return resp
}

// ListGroups serves key 16, versions 0-5: the groups that this broker coordinates, in order of their names.
func (c *Coordinator) ListGroups(ctx context.Context, req *kmsg.ListGroupsRequest) *kmsg.ListGroupsResponse {
	resp := kmsg.NewPtrListGroupsResponse()
	resp.Version = req.Version
	states, types := req.StatesFilter, req.TypesFilter
	if req.Version < 4 {
		states = nil
	}
	if req.Version < 5 {
		types = nil
	}
	for _, s := range c.all() {
		list, code := lookInto(ctx, c.host, s, "", func(m *groupMachine) []kmsg.ListGroupsResponseGroup { return m.List(states, types) })
		switch code {
		case protocol.CodeNone:
			resp.Groups = append(resp.Groups, list...)
		case protocol.CodeNotCoordinator: // has just moved
		default:
			resp.Groups, resp.ErrorCode = nil, code
			return resp
		}
	}
	slices.SortFunc(resp.Groups, func(a, b kmsg.ListGroupsResponseGroup) int {
		if a.Group < b.Group {
			return -1
		}
		return 1
	})
	return resp
}

// DeleteGroups serves key 42, versions 0-2. The groups are deleted side by side, so that their appends are gathered.
func (c *Coordinator) DeleteGroups(ctx context.Context, req *kmsg.DeleteGroupsRequest) *kmsg.DeleteGroupsResponse {
	resp := kmsg.NewPtrDeleteGroupsResponse()
	resp.Version = req.Version
	ctx, cancel := context.WithTimeout(ctx, c.o.ReplyTimeout)
	defer cancel()
	calls := map[string]*call{}
	for _, id := range req.Groups {
		if calls[id] != nil {
			continue
		}
		calls[id] = c.begin(id, func(token uint64) group.Command { return &group.Delete{Token: token, Group: id} })
	}
	for _, id := range req.Groups {
		call := calls[id]
		if call == nil {
			continue // named before
		}
		delete(calls, id)
		g := kmsg.NewDeleteGroupsResponseGroup()
		g.Group = id
		if a := await(ctx, call, 0); a.resp != nil {
			g = a.resp.(*kmsg.DeleteGroupsResponse).Groups[0]
		} else {
			g.ErrorCode = a.code
		}
		resp.Groups = append(resp.Groups, g)
	}
	return resp
}

// TopicDeleted drops the offsets of a deleted topic from the groups of all partitions that this broker leads. It does
// not wait. A partition that is being loaded drops them when it has been. What comes after this of the next topic with the
// name stays: the groups take it in its turn, behind the drop. Only of very many groups the last may find themselves late.
func (c *Coordinator) TopicDeleted(topic string) {
	for _, s := range c.all() {
		s.do(func(st *groupMachine) {
			now := time.Now()
			for i, id := range st.GroupsOf(topic) {
				c := &group.DropTopic{Group: id, Topic: topic}
				if i < s.o.WritesLength/2-s.nWriting {
					s.admit(op[*groupMachine, group.Command]{cmd: c}, now)
				} else {
					s.sweep = append(s.sweep, c)
				}
			}
		})
	}
}
