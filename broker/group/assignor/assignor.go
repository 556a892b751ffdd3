// Package assignor decides which member of a group reads which partitions, for groups of the consumer protocol
// (KIP-848), whose coordinator assigns. Both assignors are functions of what they are given: the same group always
// gets the same assignment, in whatever order its members and topics come.
//
//	uniform  as many partitions for each as for any other, and as few moved as that allows
//	range    of every topic a run of neighbours for each member, the same runs of topics of the same size
package assignor

import (
	"bytes"
	"maps"
	"slices"
)

// Names of the assignors, as clients ask for them.
const (
	UniformName = "uniform"
	RangeName   = "range"
)

// Topic is a topic that somebody subscribes to.
type Topic struct {
	ID         [16]byte
	Partitions int32
	// Racks are those of each partition's replicas; nil if not known.
	Racks [][]string
}

// Assignment is a member's partitions by topic, in order. It has no topics without partitions.
type Assignment map[[16]byte][]int32

// Member is a member of the group. Topics it subscribes to that are not given as a Topic do not exist (yet).
type Member struct {
	ID       string
	Instance *string // of a static member
	Rack     string  // "" unknown
	Topics   map[[16]byte]struct{}
	Owned    Assignment // what it was assigned before
}

// Func is an assignor. The result has an entry for every member.
type Func func(topics []Topic, members []Member) map[string]Assignment

// ByName is the assignor of that name, nil if there is none.
func ByName(name string) Func {
	switch name {
	case UniformName:
		return Uniform
	case RangeName:
		return Range
	}
	return nil
}

// sorted are the topics in order of their ids, each once.
func sorted(topics []Topic) []Topic {
	ts := slices.Clone(topics)
	slices.SortFunc(ts, func(a, b Topic) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return slices.CompactFunc(ts, func(a, b Topic) bool { return a.ID == b.ID })
}

// homogeneous says whether all members subscribe to the same of the topics.
func homogeneous(topics []Topic, members []Member) bool {
	for _, t := range topics {
		n := 0
		for _, m := range members {
			if _, ok := m.Topics[t.ID]; ok {
				n++
			}
		}
		if n != 0 && n != len(members) {
			return false
		}
	}
	return true
}

// Equal says whether two assignments are the same.
func Equal(a, b Assignment) bool {
	return maps.EqualFunc(a, b, func(x, y []int32) bool { return slices.Equal(x, y) })
}
