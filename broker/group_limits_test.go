package broker_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

func joinRequest(group, member string, protocols ...kmsg.JoinGroupRequestProtocol) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.SetVersion(9)
	req.Group, req.MemberID, req.ProtocolType = group, member, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.Protocols = 600_000, 10_000, protocols // no slow machine takes a member away
	return req
}

func offers(name string, size int) kmsg.JoinGroupRequestProtocol {
	return kmsg.JoinGroupRequestProtocol{Name: name, Metadata: make([]byte, size)}
}

func (y *bystander) join(req *kmsg.JoinGroupRequest) *kmsg.JoinGroupResponse {
	y.t.Helper()
	resp := y.do(req).(*kmsg.JoinGroupResponse)
	if resp.ErrorCode == protocol.CodeMemberIDRequired {
		req.MemberID = resp.MemberID
		resp = y.do(req).(*kmsg.JoinGroupResponse)
	}
	return resp
}

func (y *bystander) sync(group, member string, generation int32, assignments ...kmsg.SyncGroupRequestGroupAssignment) int16 {
	y.t.Helper()
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation, req.GroupAssignment = group, member, generation, assignments
	return y.do(at(3, req)).(*kmsg.SyncGroupResponse).ErrorCode
}

// closes is what becomes of a request that would take memory out of proportion: its connection is closed before it is decoded.
const closes = int16(-1000)

// once sends a request over a connection of its own; no answer is nil.
func (y *bystander) once(req kmsg.Request) kmsg.Response {
	y.t.Helper()
	c := dial(y.t, y.b)
	defer c.nc.Close()
	f, id := c.frame(req)
	go c.nc.Write(f) // the broker may close before it has all of it
	b, err := c.answer()
	if err != nil {
		return nil
	}
	resp, err := decode(req, b, id)
	if err != nil {
		y.t.Fatal(err)
	}
	return resp
}

// ready waits until groups are served.
func (y *bystander) ready(group string) {
	y.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.CoordinatorKeys = []string{group}
		beat := kmsg.NewPtrHeartbeatRequest()
		beat.Group, beat.MemberID = group, "none"
		if y.do(at(4, find)).(*kmsg.FindCoordinatorResponse).Coordinators[0].ErrorCode == 0 &&
			y.do(at(3, beat)).(*kmsg.HeartbeatResponse).ErrorCode == protocol.CodeUnknownMemberID {
			return
		}
		if time.Now().After(end) {
			y.t.Fatalf("no coordinator of the group %s", group)
		}
	}
}

// TestGroupLimits: what no member of a group may be, say or send (B26). All of
// it is refused at a bounded cost, and the group goes on.
func TestGroupLimits(t *testing.T) {
	b := startQuiet(t)
	b.CreateTopic("t", 4)
	y := newBystander(t, b)
	y.ready("g")
	in := y.join(joinRequest("g", "", offers("range", 10)))
	if in.ErrorCode != 0 || y.sync("g", in.MemberID, 1, kmsg.SyncGroupRequestGroupAssignment{MemberID: in.MemberID, MemberAssignment: []byte("mine")}) != 0 {
		t.Fatalf("the member that is in: %s", protocol.Name(in.ErrorCode))
	}

	millis := func(session int32) *kmsg.JoinGroupRequest {
		req := joinRequest("g", "", offers("range", 10))
		req.SessionTimeoutMillis = session
		return req
	}
	const day = 24 * 60 * 60 * 1000
	many := make([]kmsg.JoinGroupRequestProtocol, 1_000_000)
	for _, tc := range []struct {
		what string
		req  *kmsg.JoinGroupRequest
		code int16
	}{
		{"10 MB of metadata", joinRequest("g", "", offers("range", 10<<20)), protocol.CodeInvalidRequest},
		{"10 MB of metadata in small pieces", joinRequest("g", "", slices.Repeat([]kmsg.JoinGroupRequestProtocol{offers("range", 100)}, 100_000)...), protocol.CodeInvalidRequest},
		{"10 MB of metadata for a new group", joinRequest("new", "", offers("range", 10<<20)), protocol.CodeInvalidRequest},
		{"a million empty protocols", joinRequest("g", "", many...), closes},
		{"no protocol", joinRequest("g", ""), protocol.CodeInconsistentGroupProtocol},
		{"no protocol for a new group", joinRequest("new", ""), protocol.CodeInconsistentGroupProtocol},
		{"a protocol that the others have not", joinRequest("g", "", offers("other", 1)), protocol.CodeInconsistentGroupProtocol},
		{"no session timeout", millis(0), protocol.CodeInvalidSessionTimeout},
		{"a negative one", millis(-1), protocol.CodeInvalidSessionTimeout},
		{"the most negative one", millis(math.MinInt32), protocol.CodeInvalidSessionTimeout},
		{"a day", millis(day), protocol.CodeInvalidSessionTimeout},
		{"the longest", millis(math.MaxInt32), protocol.CodeInvalidSessionTimeout},
		{"no group", joinRequest("", "", offers("range", 1)), protocol.CodeInvalidGroupID},
		{"a member id that nobody gave out", joinRequest("g", "forged", offers("range", 1)), protocol.CodeUnknownMemberID},
	} {
		var code int16
		_, live := allocated(func() {
			code = closes
			for range 2 { // the first time to get a member id
				if r, ok := y.once(tc.req).(*kmsg.JoinGroupResponse); ok {
					if code = r.ErrorCode; code == protocol.CodeMemberIDRequired {
						tc.req.MemberID = r.MemberID
						continue
					}
				}
				break
			}
		})
		if code != tc.code {
			t.Errorf("%s: %s (%d), want %s (%d)", tc.what, protocol.Name(code), code, protocol.Name(tc.code), tc.code)
		}
		if live > 32<<20 {
			t.Errorf("%s: %d MB stay", tc.what, live>>20)
		}
	}
	y.unharmed("JoinGroup")

	// Forged generations.
	for _, generation := range []int32{0, 2, -1, math.MaxInt32, math.MinInt32} {
		beat := kmsg.NewPtrHeartbeatRequest()
		beat.Group, beat.MemberID, beat.Generation = "g", in.MemberID, generation
		if code := y.do(at(3, beat)).(*kmsg.HeartbeatResponse).ErrorCode; code != protocol.CodeIllegalGeneration {
			t.Errorf("Heartbeat of generation %d: %s", generation, protocol.Name(code))
		}
		if code := y.sync("g", in.MemberID, generation); code != protocol.CodeIllegalGeneration {
			t.Errorf("SyncGroup of generation %d: %s", generation, protocol.Name(code))
		}
		commit := kmsg.NewPtrOffsetCommitRequest()
		commit.Group, commit.MemberID, commit.Generation = "g", in.MemberID, generation
		commit.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Offset: 5}}}}
		if code := y.do(at(8, commit)).(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode; code != protocol.CodeIllegalGeneration {
			t.Errorf("OffsetCommit of generation %d: %s", generation, protocol.Name(code))
		}
	}
	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Groups = []kmsg.OffsetFetchRequestGroup{{Group: "g", Topics: []kmsg.OffsetFetchRequestGroupTopic{{Topic: "t", Partitions: []int32{0}}}}}
	if p := y.do(at(8, fetch)).(*kmsg.OffsetFetchResponse).Groups[0].Topics[0].Partitions[0]; p.Offset != -1 {
		t.Errorf("a forged generation has committed %d", p.Offset)
	}

	// 50 MB of assignments, from the leader of a generation that waits for them.
	lead := y.join(joinRequest("big", "", offers("range", 1)))
	if lead.ErrorCode != 0 {
		t.Fatal(protocol.Name(lead.ErrorCode))
	}
	for what, as := range map[string][]kmsg.SyncGroupRequestGroupAssignment{
		"50 MB for one": {{MemberID: lead.MemberID, MemberAssignment: make([]byte, 50<<20)}},
		"50 MB for 500": slices.Repeat([]kmsg.SyncGroupRequestGroupAssignment{{MemberID: lead.MemberID, MemberAssignment: make([]byte, 100<<10)}}, 500),
	} {
		var code int16
		_, live := allocated(func() { code = y.sync("big", lead.MemberID, lead.Generation, as...) })
		if code != protocol.CodeInvalidRequest || live > 32<<20 {
			t.Errorf("an assignment of %s: %s, %d MB stay", what, protocol.Name(code), live>>20)
		}
	}
	if code := y.sync("big", lead.MemberID, lead.Generation, kmsg.SyncGroupRequestGroupAssignment{MemberID: lead.MemberID}); code != 0 {
		t.Errorf("an assignment after those that were refused: %s", protocol.Name(code))
	}

	// Two with one static id: the second has it, the first is told.
	static := func() *kmsg.JoinGroupResponse {
		req := joinRequest("static", "", offers("range", 1))
		req.InstanceID = kmsg.StringPtr("me")
		return y.join(req)
	}
	first := static()
	if code := y.sync("static", first.MemberID, first.Generation, kmsg.SyncGroupRequestGroupAssignment{MemberID: first.MemberID}); code != 0 {
		t.Fatal(protocol.Name(code))
	}
	second := static()
	beat := kmsg.NewPtrHeartbeatRequest()
	beat.Group, beat.MemberID, beat.Generation, beat.InstanceID = "static", first.MemberID, second.Generation, kmsg.StringPtr("me")
	if code := y.do(at(4, beat)).(*kmsg.HeartbeatResponse).ErrorCode; second.ErrorCode != 0 || code != protocol.CodeFencedInstanceID {
		t.Errorf("a static id taken over: %s, then %s", protocol.Name(second.ErrorCode), protocol.Name(code))
	}

	// A member id for everybody who asks, up to a bound.
	refused := 0
	_, live := allocated(func() {
		for range 15_000 {
			switch code := y.do(joinRequest("crowd", "", offers("range", 100))).(*kmsg.JoinGroupResponse).ErrorCode; code {
			case protocol.CodeMemberIDRequired:
			case protocol.CodeGroupMaxSizeReached:
				refused++
			default:
				t.Fatal(protocol.Name(code))
			}
		}
	})
	if refused == 0 || live > 64<<20 {
		t.Errorf("15,000 who want to join: %d are refused, %d MB stay", refused, live>>20)
	}

	// A crowd that leaves, of which nobody is there.
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = "g"
	leave.Members = make([]kmsg.LeaveGroupRequestMember, 1000)
	left := 0
	_, live = allocated(func() {
		for _, m := range y.do(at(5, leave)).(*kmsg.LeaveGroupResponse).Members {
			if m.ErrorCode == 0 {
				left++
			}
		}
		leave.Members = make([]kmsg.LeaveGroupRequestMember, 1_000_000)
		if y.once(leave) != nil {
			t.Error("a million members that leave are answered")
		}
	})
	if left > 0 || live > 64<<20 {
		t.Errorf("members that leave and were never there: %d have left, %d MB stay", left, live>>20)
	}
	ok := kmsg.NewPtrHeartbeatRequest()
	ok.Group, ok.MemberID, ok.Generation = "g", in.MemberID, 1
	if code := y.do(at(3, ok)).(*kmsg.HeartbeatResponse).ErrorCode; code != 0 {
		t.Errorf("the member that is in, after all that: %s", protocol.Name(code))
	}
	y.unharmed("groups")
}

// TestConsumerGroupLimits is the same of the consumer protocol (B26).
func TestConsumerGroupLimits(t *testing.T) {
	b := startQuiet(t)
	b.CreateTopic("t", 4)
	b.CreateTopic(strings.Repeat("a", 200), 1)
	y := newBystander(t, b)
	y.ready("g")
	request := func(change func(*kmsg.ConsumerGroupHeartbeatRequest)) *kmsg.ConsumerGroupHeartbeatRequest {
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = "g", "in", 0, 10_000
		req.SubscribedTopicNames, req.Topics = []string{"t"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		change(req)
		req.SetVersion(1)
		return req
	}
	beat := func(change func(*kmsg.ConsumerGroupHeartbeatRequest)) *kmsg.ConsumerGroupHeartbeatResponse {
		return y.do(request(change)).(*kmsg.ConsumerGroupHeartbeatResponse)
	}
	in := beat(func(*kmsg.ConsumerGroupHeartbeatRequest) {})
	if in.ErrorCode != 0 {
		t.Fatal(protocol.Name(in.ErrorCode))
	}
	regex := func(expr string) func(*kmsg.ConsumerGroupHeartbeatRequest) {
		return func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.MemberID, r.SubscribedTopicNames, r.SubscribedTopicRegex = "other", nil, &expr
		}
	}
	const invalid, badRegex = protocol.CodeInvalidRequest, protocol.CodeInvalidRegularExpression
	for _, tc := range []struct {
		what   string
		change func(*kmsg.ConsumerGroupHeartbeatRequest)
		code   int16
	}{
		{"a bomb that grows", regex("((((a{30}){30}){30}){30}){30}"), badRegex},
		{"a bomb that nests", regex(strings.Repeat("(", 5000) + strings.Repeat(")", 5000)), badRegex},
		{"a bomb of choices", regex(strings.Repeat("(a|b|ab){500}", 50)), badRegex},
		{"30 kB of expression", regex(strings.Repeat("a|", 15_000)), badRegex},
		{"10 MB of expression", regex(strings.Repeat("a|", 5<<20)), closes},
		{"no expression", regex("(a"), badRegex},
		{"what RE2 has not", regex(`(a)\1`), badRegex},
		{"a bomb for engines that go back", regex("(a+)+b"), 0},
		{"a million topics", func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.MemberID = "many"
			r.SubscribedTopicNames = nil
			for i := range 1_000_000 {
				r.SubscribedTopicNames = append(r.SubscribedTopicNames, fmt.Sprint(i))
			}
		}, invalid},
		{"a million partitions that it has", func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.MemberID, r.MemberEpoch = "in", in.MemberEpoch
			r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{{TopicID: [16]byte{9}, Partitions: make([]int32, 1_000_000)}}
		}, 0},
		{"10 MB of member id", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID = strings.Repeat("m", 10<<20) }, closes},
		{"10 MB of rack", func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.MemberID, r.RackID = "rack", kmsg.StringPtr(strings.Repeat("r", 10<<20))
		}, closes},
		{"no member id", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID = "" }, invalid},
		{"no group", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Group = "" }, invalid},
		{"a blank group", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Group = "  " }, invalid},
		{"a blank rack", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID, r.RackID = "rack", kmsg.StringPtr(" ") }, invalid},
		{"a forged epoch", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch = math.MaxInt32 }, protocol.CodeFencedMemberEpoch},
		{"an epoch below all", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch = math.MinInt32 }, invalid},
		{"an epoch of nobody", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID, r.MemberEpoch = "ghost", 7 }, protocol.CodeUnknownMemberID},
		{"no time to rebalance", func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberID, r.RebalanceTimeoutMillis = "late", -1 }, invalid},
		{"an assignor that is none", func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.MemberID, r.ServerAssignor = "odd", kmsg.StringPtr("none")
		}, protocol.CodeUnsupportedAssignor},
	} {
		code, req := closes, request(tc.change)
		_, live := allocated(func() {
			if r, ok := y.once(req).(*kmsg.ConsumerGroupHeartbeatResponse); ok {
				code = r.ErrorCode
			}
		})
		if code != tc.code {
			t.Errorf("%s: %s (%d), want %s (%d)", tc.what, protocol.Name(code), code, protocol.Name(tc.code), tc.code)
		}
		if live > 32<<20 {
			t.Errorf("%s: %d MB stay", tc.what, live>>20)
		}
	}
	// Static ids: a second member with the id of one that has not left.
	static := func(member string, epoch int32) int16 {
		return beat(func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.Group, r.MemberID, r.MemberEpoch, r.InstanceID = "static", member, epoch, kmsg.StringPtr("me")
		}).ErrorCode
	}
	if one, two := static("one", 0), static("two", 0); one != 0 || two != protocol.CodeUnreleasedInstanceID {
		t.Errorf("one static id, two members: %s, %s", protocol.Name(one), protocol.Name(two))
	}
	if code := beat(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.MemberEpoch = in.MemberEpoch }).ErrorCode; code != 0 {
		t.Errorf("the member that is in, after all that: %s", protocol.Name(code))
	}
	y.unharmed("ConsumerGroupHeartbeat")
}
