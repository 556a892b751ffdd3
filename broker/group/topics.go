package group

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
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

// Bounds of regular expressions. Matching takes time in proportion to the length of a topic's name, whatever the
// expression; but counted repetitions make a small expression into a large program, and that is paid for each byte.
const (
	maxRegex     = 4096
	maxRegexCost = 10_000
)

var errRegexTooLarge = errors.New("the expression is too large")

// compileRegex compiles a subscription's expression, which has to match the whole name of a topic.
func compileRegex(s string) (*regexp.Regexp, error) {
	if len(s) > maxRegex {
		return nil, errRegexTooLarge
	}
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, err
	}
	if cost(parsed) > maxRegexCost {
		return nil, errRegexTooLarge
	}
	return regexp.Compile(`\A(?:` + s + `)\z`)
}

// cost is about how many instructions an expression becomes.
func cost(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		if n += cost(sub); n > maxRegexCost {
			return n
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return n
}

// match are the topics that an expression matches and that its owner may see, in order.
func match(expr string, view Topics, visible func(string) bool) ([]string, error) {
	re, err := compileRegex(expr)
	if err != nil {
		return nil, fmt.Errorf("group: %.200q is no regular expression: %w", expr, err)
	}
	var names []string
	for _, name := range view.Names() {
		if re.MatchString(name) && (visible == nil || visible(name)) {
			names = append(names, name)
		}
	}
	return names, nil
}
