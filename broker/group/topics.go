package group

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/varve/varve/broker/pattern"
)

// Topic is what assigning depends on of a topic.
type Topic struct {
	ID         [16]byte
	Name       string
	Partitions int32
	Racks      [][]string // of each partition's replicas; nil if racks are not known
}

// Topics is a view of the cluster's topics that does not change.
type Topics interface {
	// Version grows with every change of what the other methods say. It is at least 1.
	Version() int64
	ByName(name string) (Topic, bool)
	ByID(id [16]byte) (Topic, bool)
	// Names are all topics' names, in order.
	Names() []string
}

// topicSet is a Topics made of a list.
type topicSet struct {
	version int64
	names   []string
	byName  map[string]Topic
	byID    map[topicID]string
}

// NewTopics is a view of these topics, which must not be changed after that. Versions begin at 1.
func NewTopics(version int64, topics []Topic) Topics {
	s := &topicSet{version: version, byName: make(map[string]Topic, len(topics)), byID: make(map[topicID]string, len(topics))}
	for _, t := range topics {
		s.byName[t.Name] = t
		s.byID[t.ID] = t.Name
	}
	s.names = slices.Sorted(maps.Keys(s.byName))
	return s
}

func (s *topicSet) Version() int64                   { return s.version }
func (s *topicSet) ByName(name string) (Topic, bool) { t, ok := s.byName[name]; return t, ok }
func (s *topicSet) Names() []string                  { return s.names }
func (s *topicSet) ByID(id [16]byte) (Topic, bool) {
	name, ok := s.byID[id]
	if !ok {
		return Topic{}, false
	}
	return s.byName[name], true
}

// hashTopics is the hash of these topics, as far as they exist: of their names, ids, partitions and racks. It is never
// 0, which stands for no hash. Kafka's is of another kind; a group that moves from one to the other is assigned once
// more.
func hashTopics(view Topics, names []string) int64 {
	h := fnv.New64a()
	var b []byte
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for _, name := range names {
		t, ok := view.ByName(name)
		if !ok {
			continue
		}
		b = b[:0]
		str(name)
		b = append(b, t.ID[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(t.Partitions))
		for _, racks := range t.Racks {
			racks = slices.Clone(racks)
			slices.Sort(racks)
			b = binary.AppendUvarint(b, uint64(len(racks)))
			for _, r := range racks {
				str(r)
			}
		}
		h.Write(b)
	}
	return cmp.Or(int64(h.Sum64()), 1)
}

// Matched is what an expression matches, in a version of the topics.
type Matched struct {
	Expr    string
	Version int64
	Topics  []string // in order
	Err     error    // it is none, or takes too long
}

func (c *ConsumerHeartbeat) match(expr string) (names []string, known bool, err error) {
	switch k := c.Matched; {
	case !c.Elsewhere:
		names, err = Match(expr, c.Topics, nil)
		return names, true, err
	case k == nil || k.Expr != expr || k.Version != c.Topics.Version():
		return nil, false, nil
	default:
		return k.Topics, true, k.Err
	}
}

// Match are the topics that an expression matches, in order. goOn is asked before every name,
// and its error ends the search; it may be nil.
func Match(expr string, view Topics, goOn func() error) ([]string, error) {
	re, err := pattern.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("group: %.200q is no regular expression: %w", expr, err)
	}
	var names []string
	for _, name := range view.Names() {
		if goOn != nil {
			if err := goOn(); err != nil {
				return nil, err
			}
		}
		if re.MatchString(name) {
			names = append(names, name)
		}
	}
	return names, nil
}
