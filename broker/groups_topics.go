package broker

import (
	"slices"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/metadata/image"
)

// topicView is the topics of a metadata image as groups of the consumer protocol
// depend on them (group.Topics). Nothing is copied out of the image but the names.
//
// The version is the revision of the image in which something of it last
// changed, so it grows over restarts too; leaders and in-sync replicas, which
// change far more often, do not count.
type topicView struct {
	im      *image.Image
	version int64
	names   []string
	racks   map[int32]string // of brokers; empty: no broker says where it is
}

func newTopicView(im *image.Image) *topicView {
	v := &topicView{im: im, version: max(im.Revision, 1), racks: racksOf(im)}
	v.names = make([]string, 0, im.NumTopics())
	for t := range im.AllTopics() {
		v.names = append(v.names, t.Name)
	}
	return v
}

func racksOf(im *image.Image) map[int32]string {
	racks := map[int32]string{}
	for _, b := range im.Brokers() {
		if b.Rack != "" {
			racks[b.ID] = b.Rack
		}
	}
	return racks
}

// Version is that of the topics, at least 1.
func (v *topicView) Version() int64 { return v.version }

// Names are all topics' names, in order.
func (v *topicView) Names() []string { return v.names }

// ByName is the topic of that name.
func (v *topicView) ByName(name string) (group.Topic, bool) { return v.describe(v.im.Topic(name)) }

// ByID is the topic with that id.
func (v *topicView) ByID(id [16]byte) (group.Topic, bool) { return v.describe(v.im.TopicByID(id)) }

func (v *topicView) describe(t *image.Topic) (group.Topic, bool) {
	if t == nil {
		return group.Topic{}, false
	}
	out := group.Topic{ID: t.ID, Name: t.Name, Partitions: int32(len(t.Partitions))}
	if len(v.racks) > 0 {
		out.Racks = make([][]string, len(t.Partitions))
		for i, p := range t.Partitions {
			for _, id := range p.Replicas {
				if rack := v.racks[id]; rack != "" && !slices.Contains(out.Racks[i], rack) {
					out.Racks[i] = append(out.Racks[i], rack)
				}
			}
		}
	}
	return out, true
}

// followTopics replaces the view if the next image has other topics. It is
// called with every image in order.
func (b *Broker) followTopics(prev, next *image.Image) {
	if prev == nil || topicsDiffer(prev, next) {
		b.topics.Store(newTopicView(next))
	}
}

// topicsDiffer says whether two images differ in what topicView shows.
func topicsDiffer(prev, next *image.Image) bool {
	d := image.Diff(prev, next)
	for _, id := range d.Brokers {
		rack := func(b *image.Broker) string {
			if b == nil {
				return ""
			}
			return b.Rack
		}
		if rack(prev.Broker(id)) != rack(next.Broker(id)) {
			return true
		}
	}
	racks := len(racksOf(next)) > 0
	for _, t := range d.Topics {
		if t.Prev == nil || t.Next == nil || len(t.Prev.Partitions) != len(t.Next.Partitions) {
			return true
		}
		for _, p := range t.Partitions {
			if racks && !slices.Equal(t.Prev.Partitions[p].Replicas, t.Next.Partitions[p].Replicas) {
				return true
			}
		}
	}
	return false
}
