package controller

import (
	"reflect"
	"strings"
	"testing"

	"github.com/varve/varve/metadata/image"
)

func TestCommandsAsBytes(t *testing.T) {
	value := "1"
	commands := []Command{
		CreateTopics{Topics: []NewTopic{{Name: "a", ID: [16]byte{1, 2}, Partitions: 3, ReplicationFactor: -1,
			Assignments: []Assignment{{Partition: 1, Replicas: []int32{1, 2}}}, Configs: []ConfigEntry{{Name: "x", Value: &value}, {Name: "y"}}}}, ValidateOnly: true},
		DeleteTopics{Topics: []TopicRef{{Name: "a"}, {ID: [16]byte{9}}}},
		CreatePartitions{Topics: []Growth{{Name: "a", Count: 4, Assignments: [][]int32{}}, {Name: "b", Assignments: [][]int32{{1}}}}},
		AlterConfigs{Resources: []AlterResource{{Type: image.TopicResource, Name: "a", Ops: []ConfigOp{{Name: "x", Op: Append, Value: &value}}}}, Incremental: true},
		AlterPartition{Broker: 1, BrokerEpoch: 1 << 60, Partitions: []Proposal{{TopicID: [16]byte{7}, Partition: 2, LeaderEpoch: 3, PartitionEpoch: 4, ISR: []ISRMember{{1, -1}, {2, 1 << 61}}}}},
		AlterReassignments{Partitions: []Reassignment{{Topic: "a", Partition: 1, Replicas: []int32{1, 2}}, {Topic: "a", Replicas: []int32{}}, {Topic: "b"}}, KeepReplicationFactor: true},
		GiveUp{Broker: 3, Incarnation: [16]byte{4}, Partitions: []image.PartitionRef{{TopicID: [16]byte{5}, Index: 6}}},
		ElectLeaders{Unclean: true, Partitions: []PartitionName{{Topic: "a", Partition: 1}}, Leader: new(int32),
			Logs: []PartitionLogs{{PartitionName{"a", 1}, []ReplicaLog{{Broker: 2, LeaderEpoch: 3, LogEnd: 1 << 60}, {Broker: 3, Damaged: true}}}}},
		BeginShutdown{Broker: 3, Incarnation: [16]byte{8}},
		AcceptLoss{Broker: 4},
		UnregisterBroker{Broker: 5},
		Marked{Broker: 6, BrokerEpoch: 11},
		Suspect{Broker: 6, Incarnation: [16]byte{10}},
	}
	if len(commands) != len(decoders) {
		t.Errorf("%d commands here, %d are known", len(commands), len(decoders))
	}
	for i, c := range commands {
		b, err := EncodeCommand(c, i%2 == 0)
		if err != nil {
			t.Fatal(err)
		}
		got, retry, err := DecodeCommand(b)
		if err != nil || !reflect.DeepEqual(got, c) || retry != (i%2 == 0) {
			t.Errorf("%+v became %+v (retry %v, %v)", c, got, retry, err)
		}
	}
	for _, bad := range []string{"", "{}", `{"kind":"Format"}`, `{"kind":"CreateTopics","command":{"Topics":7}}`} {
		if c, _, err := DecodeCommand([]byte(bad)); err == nil {
			t.Errorf("%q is command %+v", bad, c)
		} else if !strings.HasPrefix(err.Error(), "controller: ") {
			t.Error(err)
		}
	}
}
