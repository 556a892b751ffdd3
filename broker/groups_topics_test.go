package broker

import (
	"fmt"
	"testing"

	"github.com/varve/varve/metadata/image"
)

// TestTopicView: the version grows with what groups depend on and with nothing else, or every change of a leader would
// have all groups look at their topics again.
func TestTopicView(t *testing.T) {
	id := [16]byte{1}
	partition := func(i int32, p image.Partition) image.Change {
		return image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id, Index: i}, State: p}
	}
	member := func(id int32, rack string) image.Change {
		return image.SetBroker{Broker: image.Broker{ID: id, Rack: rack}}
	}
	b := &Broker{}
	im := image.Empty().Apply(image.Delta{Revision: 1})
	b.followTopics(nil, im)
	for _, tc := range []struct {
		what    string
		changes []image.Change
		want    string // version, and the topic as it is seen
	}{
		{"brokers without racks", []image.Change{member(1, ""), member(2, "")}, "1 false 0 []"},
		{"a topic", []image.Change{partition(0, image.Partition{Leader: 1, Replicas: []int32{1, 2}}), image.SetTopic{ID: id, Name: "t", Partitions: 1}}, "3 true 1 []"},
		{"another leader", []image.Change{partition(0, image.Partition{Leader: 2, LeaderEpoch: 1, Replicas: []int32{1, 2}})}, "3 true 1 []"},
		{"other replicas, of no rack", []image.Change{partition(0, image.Partition{Leader: 2, LeaderEpoch: 1, Replicas: []int32{2}})}, "3 true 1 []"},
		{"its settings", []image.Change{image.SetTopic{ID: id, Name: "t", Partitions: 1, Config: map[string]string{"retention.ms": "1"}}}, "3 true 1 []"},
		{"racks", []image.Change{member(1, "a"), member(2, "b")}, "7 true 1 [[b]]"},
		{"other replicas", []image.Change{partition(0, image.Partition{Leader: 2, LeaderEpoch: 1, Replicas: []int32{2, 1}})}, "8 true 1 [[b a]]"},
		{"another leader, with racks", []image.Change{partition(0, image.Partition{Leader: 1, LeaderEpoch: 2, Replicas: []int32{2, 1}})}, "8 true 1 [[b a]]"},
		{"a partition more", []image.Change{partition(1, image.Partition{Leader: 1, Replicas: []int32{1}}), image.SetTopic{ID: id, Name: "t", Partitions: 2}}, "10 true 2 [[b a] [a]]"},
		{"the topic is deleted", []image.Change{image.DropTopic{ID: id}}, "11 false 0 []"},
	} {
		next := im.Apply(image.Delta{Revision: im.Revision + 1, Changes: tc.changes})
		b.followTopics(im, next)
		im = next
		v := b.topics.Load()
		topic, ok := v.ByName("t")
		if got := fmt.Sprint(v.Version(), ok, topic.Partitions, topic.Racks); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, got, tc.want)
		}
		if _, same := v.ByID(id); same != ok || len(v.Names()) != map[bool]int{true: 1}[ok] {
			t.Errorf("%s: by id %v, names %v", tc.what, same, v.Names())
		}
	}
}
