package broker_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// reassign gives a topic's partitions, in order, targets; nil cancels.
func (c *client) reassign(version int16, keepRF bool, topic string, targets ...[]int32) (codes []int16) {
	c.t.Helper()
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.TimeoutMillis, req.AllowReplicationFactorChange = 30_000, !keepRF
	t := kmsg.NewAlterPartitionAssignmentsRequestTopic()
	t.Topic = topic
	for i, target := range targets {
		p := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
		p.Partition, p.Replicas = int32(i), target
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	resp := c.do(at(version, req)).(*kmsg.AlterPartitionAssignmentsResponse)
	if resp.ErrorCode != 0 || len(resp.Topics) != 1 || resp.Topics[0].Topic != topic {
		c.t.Fatalf("%s: %+v", protocol.Name(resp.ErrorCode), resp.Topics)
	}
	for _, p := range resp.Topics[0].Partitions {
		if (p.ErrorCode != 0) != (p.ErrorMessage != nil) {
			c.t.Errorf("partition %d: %s without or with a message", p.Partition, protocol.Name(p.ErrorCode))
		}
		codes = append(codes, p.ErrorCode)
	}
	return codes
}

// elect asks for leaders of a topic's partitions; none for all of all topics.
func (c *client) elect(version int16, kind int8, topic string, partitions ...int32) map[string]int16 {
	c.t.Helper()
	req := kmsg.NewPtrElectLeadersRequest()
	req.TimeoutMillis, req.ElectionType = 30_000, kind
	if topic != "" {
		t := kmsg.NewElectLeadersRequestTopic()
		t.Topic, t.Partitions = topic, partitions
		req.Topics = append(req.Topics, t)
	}
	resp := c.do(at(version, req)).(*kmsg.ElectLeadersResponse)
	codes := map[string]int16{}
	if resp.ErrorCode != 0 {
		codes[""] = resp.ErrorCode
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			codes[fmt.Sprintf("%s-%d", t.Topic, p.Partition)] = p.ErrorCode
		}
	}
	return codes
}

func (c *client) unregister(id int32) int16 {
	c.t.Helper()
	req := kmsg.NewPtrUnregisterBrokerRequest()
	req.BrokerID = id
	return c.do(req).(*kmsg.UnregisterBrokerResponse).ErrorCode
}

// TestReassignmentRules: what a single broker can be asked for.
func TestReassignmentRules(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("a", 2)
	self := y.do(at(12, kmsg.NewPtrMetadataRequest())).(*kmsg.MetadataResponse).Brokers[0].NodeID
	const assignment, unknown = protocol.CodeInvalidReplicaAssignment, protocol.CodeUnknownTopicOrPartition
	for _, tc := range []struct {
		name, topic string
		keepRF      bool
		targets     [][]int32
		codes       []int16
	}{
		{"as it is", "a", true, [][]int32{{self}, {self}}, []int16{0, 0}},
		{"no replicas", "a", false, [][]int32{{}, {self}}, []int16{assignment, 0}},
		{"twice the same", "a", false, [][]int32{{self, self}}, []int16{assignment}},
		{"unknown broker", "a", false, [][]int32{{self, 77}}, []int16{assignment}},
		{"broker -1", "a", false, [][]int32{{-1}}, []int16{assignment}},
		{"cancel what is not", "a", false, [][]int32{nil}, []int16{protocol.CodeNoReassignmentInProgress}},
		{"partition 2", "a", false, [][]int32{{self}, {self}, {self}}, []int16{0, 0, unknown}},
		{"unknown topic", "b", false, [][]int32{{self}}, []int16{unknown}},
	} {
		for _, version := range []int16{0, 1} {
			if got := y.reassign(version, tc.keepRF, tc.topic, tc.targets...); !slices.Equal(got, tc.codes) {
				t.Errorf("%s, version %d: %v, expected %v", tc.name, version, got, tc.codes)
			}
		}
	}
	for _, version := range []int16{0, 1, 2} {
		for want, got := range map[int16]map[string]int16{
			protocol.CodeElectionNotNeeded: y.elect(version, 0, "a", 0),
			unknown:                        y.elect(version, 0, "a", 7),
		} {
			if len(got) != 1 || got["a-0"]+got["a-7"] != want {
				t.Errorf("version %d: %v, expected %s", version, got, protocol.Name(want))
			}
		}
		if got := y.elect(version, 0, ""); len(got) != 0 {
			t.Errorf("version %d: of all topics %v need an election", version, got)
		}
	}
	if got := y.elect(2, 1, "a", 1)["a-1"]; got != protocol.CodeElectionNotNeeded {
		t.Errorf("unclean, with a leader: %s", protocol.Name(got))
	}
	if got := y.elect(2, 2, "a", 1); got["a-1"] != protocol.CodeInvalidRequest || got[""] != protocol.CodeInvalidRequest {
		t.Errorf("another kind: %v", got)
	}
	if got := y.unregister(self); got != protocol.CodeInvalidRequest {
		t.Errorf("a broker that is alive: %s", protocol.Name(got))
	}
	if got := y.unregister(77); got != protocol.CodeBrokerIDNotRegistered {
		t.Errorf("an unknown broker: %s", protocol.Name(got))
	}
	y.unharmed("reassignments")
}
