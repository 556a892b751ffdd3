package assignor

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// Range gives each member a run of neighbouring partitions of every topic that it subscribes to; the first members get
// one more where it does not come out even. Topics with the same number of partitions and the same subscribers are
// assigned alike, so that they can be joined.
//
// The order of members decides. That of static members, who come first, is the order of their instance ids and so
// outlives them: a group of static members is assigned the same again after a restart. What members owned before
// does not count, as in Kafka since 4.0.
//
// Racks come before runs, as KIP-881 has it for the clients' range assignor: where a topic's partitions are not in the
// same racks, members get those that have a replica in theirs first, as many as they are to have anyway, and the
// remaining ones are handed out in order. Of topics that are assigned alike a partition is near if it is in all of them
// that have racks to tell it by.
func Range(topics []Topic, members []Member) map[string]Assignment {
	ms := slices.Clone(members)
	slices.SortFunc(ms, func(a, b Member) int {
		switch {
		case a.Instance != nil && b.Instance != nil:
			return cmp.Compare(*a.Instance, *b.Instance)
		case a.Instance != nil:
			return -1
		case b.Instance != nil:
			return 1
		}
		return cmp.Compare(a.ID, b.ID)
	})
	result := make(map[string]Assignment, len(ms))
	for _, m := range ms {
		result[m.ID] = Assignment{}
	}
	for _, a := range alikes(sorted(topics), ms) {
		owner := a.assign()
		parts := make([][]int32, len(a.readers))
		for p, i := range owner {
			parts[i] = append(parts[i], int32(p))
		}
		for i, m := range a.readers {
			if len(parts[i]) == 0 {
				continue
			}
			for _, t := range a.topics {
				result[ms[m].ID][t.ID] = slices.Clone(parts[i])
			}
		}
	}
	return result
}

// alike are topics of the same size with the same subscribers.
type alike struct {
	partitions int32
	topics     []Topic
	readers    []int    // of the members, in their order
	racks      []string // of the readers
}

func alikes(topics []Topic, ms []Member) (list []*alike) {
	seed := maphash.MakeSeed() // only finds what is then compared
	known := map[uint64][]*alike{}
	var buf []byte
	for _, t := range topics {
		var readers []int
		buf = binary.BigEndian.AppendUint32(buf[:0], uint32(t.Partitions))
		for i, m := range ms {
			if _, ok := m.Topics[t.ID]; ok {
				readers = append(readers, i)
				buf = binary.BigEndian.AppendUint32(buf, uint32(i))
			}
		}
		if len(readers) == 0 {
			continue
		}
		h := maphash.Bytes(seed, buf)
		i := slices.IndexFunc(known[h], func(a *alike) bool { return a.partitions == t.Partitions && slices.Equal(a.readers, readers) })
		if i >= 0 {
			known[h][i].topics = append(known[h][i].topics, t)
			continue
		}
		a := &alike{partitions: t.Partitions, topics: []Topic{t}, readers: readers}
		for _, m := range readers {
			a.racks = append(a.racks, ms[m].Rack)
		}
		known[h] = append(known[h], a)
		list = append(list, a)
	}
	return list
}

// assign returns which reader has each partition.
func (a *alike) assign() (owner []int) {
	n, m := int(a.partitions), len(a.readers)
	owner = make([]int, n)
	for p := range owner {
		owner[p] = -1
	}
	each, extra := n/m, n%m
	load := make([]int, m)
	room := func(i int) bool { return load[i] < each || load[i] == each && extra > 0 } // once there is none it stays so
	take := func(i, p int) {
		if load[i] == each {
			extra--
		}
		load[i]++
		owner[p] = i
	}
	if near := a.near(); near != nil {
		a.assignNear(near, owner, room, take)
	}
	p := 0
	for i := range m {
		for ; p < n && (owner[p] >= 0 || room(i)); p++ {
			if owner[p] < 0 {
				take(i, p)
			}
		}
	}
	return owner
}

// near are the racks in which each partition has a replica in all topics that tell their partitions apart by racks; nil
// if none does.
func (a *alike) near() (racks [][]string) {
	for _, t := range a.topics {
		if !a.tells(t) {
			continue
		}
		if racks == nil {
			racks = make([][]string, a.partitions)
			copy(racks, t.Racks)
			continue
		}
		for p := range racks {
			var other []string
			if p < len(t.Racks) {
				other = t.Racks[p]
			}
			racks[p] = slices.DeleteFunc(slices.Clone(racks[p]), func(r string) bool { return !slices.Contains(other, r) })
		}
	}
	return racks
}

// tells says whether racks matter for a topic: some reader is in one of its racks, and not every partition is in all of
// them.
func (a *alike) tells(t Topic) bool {
	all := map[string]struct{}{}
	for _, rs := range t.Racks {
		for _, r := range rs {
			all[r] = struct{}{}
		}
	}
	inAll := func(rs []string) bool {
		for r := range all {
			if !slices.Contains(rs, r) {
				return false
			}
		}
		return true
	}
	if !slices.ContainsFunc(a.racks, func(r string) bool { _, ok := all[r]; return ok && r != "" }) {
		return false
	}
	return len(t.Racks) < int(t.Partitions) || slices.ContainsFunc(t.Racks, func(rs []string) bool { return !inAll(rs) })
}

// assignNear gives out partitions to readers in the racks of their replicas, as far as these have room. A topic by itself
// goes reader by reader, topics that are assigned alike partition by partition, as in the KIP.
func (a *alike) assignNear(near [][]string, owner []int, room func(int) bool, take func(i, p int)) {
	if len(a.topics) == 1 {
		byRack := map[string][]int{} // partitions that nobody has, perhaps
		for p, rs := range near {
			for _, r := range rs {
				byRack[r] = append(byRack[r], p)
			}
		}
		for i, r := range a.racks {
			if r == "" {
				continue
			}
			ps := byRack[r]
			for len(ps) > 0 && (owner[ps[0]] >= 0 || room(i)) {
				if owner[ps[0]] < 0 {
					take(i, ps[0])
				}
				ps = ps[1:]
			}
			byRack[r] = ps
		}
		return
	}
	byRack := map[string][]int{} // readers that have room, perhaps
	for i, r := range a.racks {
		if r != "" {
			byRack[r] = append(byRack[r], i)
		}
	}
	for p, rs := range near {
		first := -1
		for _, r := range rs {
			is := byRack[r]
			for len(is) > 0 && !room(is[0]) {
				is = is[1:]
			}
			byRack[r] = is
			if len(is) > 0 && (first < 0 || is[0] < first) {
				first = is[0]
			}
		}
		if first >= 0 {
			take(first, p)
		}
	}
}
