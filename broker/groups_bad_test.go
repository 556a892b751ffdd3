package broker_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
)

// TestGroupsBadInput: what a client can send to a group that no client should,
// over the wire. It is refused with a code that says why, the group goes on, and
// memory does not keep what was refused (B26).
func TestGroupsBadInput(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("t", 1)
	join := func(group, member string, instance *string, sessionMs int32, metadata ...[]byte) *kmsg.JoinGroupResponse {
		t.Helper()
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.MemberID, req.InstanceID, req.ProtocolType = group, member, instance, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = sessionMs, 60_000 // no slow machine takes a member away
		for _, m := range metadata {
			req.Protocols = append(req.Protocols, kmsg.JoinGroupRequestProtocol{Name: "range", Metadata: m})
		}
		return y.do(at(9, req)).(*kmsg.JoinGroupResponse)
	}
	sync := func(member string, generation int32, assignment []byte) int16 {
		t.Helper()
		req := kmsg.NewPtrSyncGroupRequest()
		req.Group, req.MemberID, req.Generation = "g", member, generation
		req.ProtocolType, req.Protocol = kmsg.StringPtr("consumer"), kmsg.StringPtr("range")
		req.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: member, MemberAssignment: assignment}}
		return y.do(at(5, req)).(*kmsg.SyncGroupResponse).ErrorCode
	}
	commit := func(member string, generation int32) int16 {
		t.Helper()
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.MemberID, req.Generation = "g", member, generation
		req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Offset: 7, LeaderEpoch: -1}}}}
		return y.do(at(9, req)).(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
	}
	expect := func(what string, got, want int16) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, protocol.Name(got), protocol.Name(want))
		}
	}
	beat := func(member string, epoch int32, regex *string) int16 {
		t.Helper()
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = "k", member, epoch, 60_000
		req.SubscribedTopicRegex, req.Topics = regex, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		if regex == nil {
			req.SubscribedTopicNames = []string{"t"}
		}
		return y.do(at(1, req)).(*kmsg.ConsumerGroupHeartbeatResponse).ErrorCode
	}

	const minute = 60_000
	small := []byte{0, 0}
	st := kmsg.StringPtr("static")
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorKeys = []string{"g", "k"} // the topic of group state is created when it is asked for
	for _, c := range y.do(at(4, find)).(*kmsg.FindCoordinatorResponse).Coordinators {
		expect("coordinator of "+c.Key, c.ErrorCode, 0)
	}
	var in *kmsg.JoinGroupResponse
	servertest.Eventually(t, func() error {
		if in = join("g", "", st, minute, small); in.ErrorCode != 0 {
			return errors.New(protocol.Name(in.ErrorCode))
		}
		return nil
	})
	_, kept := allocated(func() {
		for range 3 {
			expect("metadata of 10 MB", join("g", "", kmsg.StringPtr("a"), minute, make([]byte, 10<<20)).ErrorCode, protocol.CodeInvalidRequest)
			expect("assignment of 50 MB", sync(in.MemberID, in.Generation, make([]byte, 50<<20)), protocol.CodeInvalidRequest)
		}
	})
	if kept > 60<<20 { // one request's buffer may wait for the next
		t.Errorf("%d MB are held after 180 MB were refused", kept>>20)
	}
	expect("sync", sync(in.MemberID, in.Generation, small), 0)

	expect("session timeout 0", join("g", "", kmsg.StringPtr("a"), 0, small).ErrorCode, protocol.CodeInvalidSessionTimeout)
	expect("session timeout of a day", join("g", "", kmsg.StringPtr("a"), 24*60*minute, small).ErrorCode, protocol.CodeInvalidSessionTimeout)
	expect("no protocols", join("g", "", kmsg.StringPtr("a"), minute).ErrorCode, protocol.CodeInconsistentGroupProtocol)
	expect("generation from the future", commit(in.MemberID, in.Generation+1), protocol.CodeIllegalGeneration)
	expect("generation of the past", commit(in.MemberID, in.Generation-1), protocol.CodeIllegalGeneration)
	expect("member of nobody", commit("nobody", in.Generation), protocol.CodeUnknownMemberID)
	expect("who is no member while there are members", commit("", -1), protocol.CodeUnknownMemberID)
	expect("the member goes on", commit(in.MemberID, in.Generation), 0)

	// Who comes with the same instance id takes its place.
	again := join("g", "", st, minute, small)
	expect("the same static member again", again.ErrorCode, 0)
	expect("the one before with its member id", join("g", in.MemberID, st, minute, small).ErrorCode, protocol.CodeFencedInstanceID)
	expect("its commit", commit(in.MemberID, in.Generation), protocol.CodeUnknownMemberID)

	expect("join", beat("AAAAAAAAAAAAAAAAAAAAAQ", 0, nil), 0)
	for _, regex := range []string{"((a{1,1000}){1,1000}){1,1000}", "(a)\\1", "((", "(?=a)"} {
		expect(regex, beat("AAAAAAAAAAAAAAAAAAAAAg", 0, &regex), protocol.CodeInvalidRegularExpression)
	}
	expect("an epoch from the future", beat("AAAAAAAAAAAAAAAAAAAAAQ", 9, nil), protocol.CodeFencedMemberEpoch)
	expect("an epoch that there is not", beat("AAAAAAAAAAAAAAAAAAAAAQ", -3, nil), protocol.CodeInvalidRequest)
	expect("the member goes on", beat("AAAAAAAAAAAAAAAAAAAAAQ", 1, nil), 0)
	y.unharmed("groups")
}

// TestOffsetDelete: offsets are deleted of partitions that exist; the others are refused by name. A group that does not
// exist is told as such whatever was asked for, as in Kafka.
func TestOffsetDelete(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("t", 2)
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorKeys = []string{"g"}
	y.do(at(4, find))
	servertest.Eventually(t, func() error {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group = "g"
		req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Partition: 0, Offset: 7}, {Partition: 1, Offset: 8}}}}
		if code := y.do(at(9, req)).(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode; code != 0 {
			return errors.New(protocol.Name(code))
		}
		return nil
	})
	remove := func(group string, topics map[string][]int32) (int16, map[string]map[int32]int16) {
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = group
		for topic, ps := range topics {
			rt := kmsg.OffsetDeleteRequestTopic{Topic: topic}
			for _, p := range ps {
				rt.Partitions = append(rt.Partitions, kmsg.OffsetDeleteRequestTopicPartition{Partition: p})
			}
			req.Topics = append(req.Topics, rt)
		}
		resp := y.do(req).(*kmsg.OffsetDeleteResponse)
		got := map[string]map[int32]int16{}
		for _, rt := range resp.Topics {
			if got[rt.Topic] != nil {
				t.Errorf("the topic %s comes twice: clients keep the last", rt.Topic)
			}
			got[rt.Topic] = map[int32]int16{}
			for _, p := range rt.Partitions {
				got[rt.Topic][p.Partition] = p.ErrorCode
			}
		}
		return resp.ErrorCode, got
	}
	const unknown = protocol.CodeUnknownTopicOrPartition
	for _, tc := range []struct {
		group string
		ask   map[string][]int32
		code  int16
		want  map[string]map[int32]int16
	}{
		{"g", map[string][]int32{"t": {0, 2, -1}, "no": {0}}, 0, map[string]map[int32]int16{"t": {0: 0, 2: unknown, -1: unknown}, "no": {0: unknown}}},
		{"g", map[string][]int32{"no": {0}}, 0, map[string]map[int32]int16{"no": {0: unknown}}},
		{"other", map[string][]int32{"no": {0}}, protocol.CodeGroupIDNotFound, map[string]map[int32]int16{}},
		{"other", map[string][]int32{"t": {0}, "no": {0}}, protocol.CodeGroupIDNotFound, map[string]map[int32]int16{}},
		{"", nil, protocol.CodeInvalidGroupID, map[string]map[int32]int16{}},
	} {
		if code, got := remove(tc.group, tc.ask); code != tc.code || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("group %q, %v: %s %v, want %s %v", tc.group, tc.ask, protocol.Name(code), got, protocol.Name(tc.code), tc.want)
		}
	}
	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Groups = []kmsg.OffsetFetchRequestGroup{{Group: "g"}}
	left := y.do(at(9, fetch)).(*kmsg.OffsetFetchResponse).Groups[0].Topics
	if len(left) != 1 || len(left[0].Partitions) != 1 || left[0].Partitions[0].Partition != 1 || left[0].Partitions[0].Offset != 8 {
		t.Errorf("left of the offsets: %+v", left)
	}
}

// TestCommitOfMissingPartitions: what is refused of a topic is told with what is committed of it. kgo takes an answer with more
// topics than it asked for as none, and kadm keeps the last of those that have the same name.
func TestCommitOfMissingPartitions(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("t", 2)
	b.CreateTopic("u", 1)
	y.ready("g")
	ids := map[string][16]byte{"no": {9}}
	meta := kmsg.NewPtrMetadataRequest()
	for _, topic := range y.do(at(12, meta)).(*kmsg.MetadataResponse).Topics {
		ids[*topic.Topic] = topic.TopicID
	}
	for _, version := range []int16{2, 9, 10} {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group = "g"
		for _, topic := range []struct {
			name       string
			partitions []int32
		}{{"t", []int32{7, 0, -1, 1}}, {"no", []int32{0}}, {"u", []int32{0}}} {
			rt := kmsg.OffsetCommitRequestTopic{Topic: topic.name, TopicID: ids[topic.name]}
			for _, p := range topic.partitions {
				rt.Partitions = append(rt.Partitions, kmsg.OffsetCommitRequestTopicPartition{Partition: p, Offset: 5, LeaderEpoch: -1})
			}
			req.Topics = append(req.Topics, rt)
		}
		got := map[string]map[int32]int16{}
		resp := y.do(at(version, req)).(*kmsg.OffsetCommitResponse)
		for _, rt := range resp.Topics {
			name := rt.Topic
			for of, id := range ids {
				if version >= 10 && id == rt.TopicID {
					name = of
				}
			}
			got[name] = map[int32]int16{}
			for _, p := range rt.Partitions {
				got[name][p.Partition] = p.ErrorCode
			}
		}
		const unknown = protocol.CodeUnknownTopicOrPartition
		no := unknown
		if version >= 10 {
			no = protocol.CodeUnknownTopicID
		}
		want := map[string]map[int32]int16{"t": {0: 0, 1: 0, 7: unknown, -1: unknown}, "no": {0: no}, "u": {0: 0}}
		if len(resp.Topics) != len(want) || !reflect.DeepEqual(got, want) {
			t.Errorf("version %d: %d topics, %v, want %v", version, len(resp.Topics), got, want)
		}
	}
}
