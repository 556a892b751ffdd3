package main

import (
	"cmp"
	"fmt"
	"slices"
)

// placed is where a partition's replicas are, or are to be; the first is the
// preferred leader.
type placed struct {
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Replicas  []int32 `json:"replicas"`
}

// spread plans where replicas are to be.
type spread struct {
	racks map[int32]string // of the brokers that replicas may be placed on
	load  map[int32]int    // replicas of each broker, of all topics
	own   map[int32]int    // of these, the ones of the partitions that are planned
	led   map[int32]int    // how many of the partitions that are planned it would lead
}

// planSpread places partitions on the brokers of racks, factor replicas each (0:
// as many as there are), with as few replicas that move as an even spread over
// the brokers allows. Replicas stay where they are if they can; a new one goes
// where its partition has no replica in the same rack yet, and then to the broker
// with the fewest. all is where everything is, which decides between equals.
func planSpread(partitions, all []placed, racks map[int32]string, factor int) ([]placed, error) {
	s := newSpread(all, racks)
	for _, p := range partitions {
		for _, id := range p.Replicas {
			s.load[id]-- // they are placed again
		}
	}
	out := make([]placed, len(partitions))
	for i, p := range partitions {
		rf := factor
		if rf == 0 {
			rf = len(p.Replicas)
		}
		if rf > len(racks) {
			return nil, fmt.Errorf("%s-%d is to have %d replicas, and there are %d brokers to place them on", p.Topic, p.Partition, rf, len(racks))
		}
		out[i] = placed{p.Topic, p.Partition, nil}
		for _, id := range p.Replicas {
			if _, ok := racks[id]; ok && len(out[i].Replicas) < rf {
				s.place(&out[i], id)
			}
		}
	}
	for i, p := range partitions {
		rf := factor
		if rf == 0 {
			rf = len(p.Replicas)
		}
		for len(out[i].Replicas) < rf {
			s.place(&out[i], s.best(&out[i]))
		}
	}
	s.even(out)
	s.lead(out)
	return out, nil
}

// planEvacuation takes a broker's replicas elsewhere; all others stay.
func planEvacuation(partitions, all []placed, racks map[int32]string, from int32) ([]placed, error) {
	s := newSpread(all, racks)
	out := make([]placed, 0, len(partitions))
	for _, p := range partitions {
		at := slices.Index(p.Replicas, from)
		if at < 0 {
			continue
		}
		next := placed{p.Topic, p.Partition, slices.Delete(slices.Clone(p.Replicas), at, at+1)}
		id := s.best(&next)
		if id < 0 {
			return nil, fmt.Errorf("%s-%d has a replica on every broker that is left: lower its replication factor, or name more brokers", p.Topic, p.Partition)
		}
		s.place(&next, id)
		out = append(out, next)
	}
	// Who takes a replica over does not lead because of that: others have the records.
	s.lead(out)
	return out, nil
}

// replaced is a partition some of whose replicas are to be elsewhere.
type replaced struct {
	placed
	keep []int32 // those that stay
}

// planDrain places what partitions do not keep on the brokers of racks. A partition
// that these cannot hold stays as it is.
func planDrain(partitions []replaced, all []placed, racks map[int32]string) (next, stay []placed) {
	s := newSpread(all, racks)
	for _, p := range partitions {
		moved := placed{p.Topic, p.Partition, slices.Clone(p.keep)}
		for len(moved.Replicas) < len(p.Replicas) {
			id := s.best(&moved)
			if id < 0 {
				break
			}
			s.place(&moved, id)
		}
		if len(moved.Replicas) == len(p.Replicas) {
			next = append(next, moved)
			continue
		}
		stay = append(stay, p.placed)
		for _, id := range moved.Replicas[len(p.keep):] {
			s.own[id]--
			s.load[id]--
		}
	}
	s.lead(next)
	return next, stay
}

func newSpread(all []placed, racks map[int32]string) *spread {
	s := &spread{racks: racks, load: map[int32]int{}, own: map[int32]int{}, led: map[int32]int{}}
	for _, p := range all {
		for _, id := range p.Replicas {
			s.load[id]++
		}
	}
	return s
}

func (s *spread) place(p *placed, id int32) {
	p.Replicas = append(p.Replicas, id)
	s.own[id]++
	s.load[id]++
}

// shares says whether a partition has a replica in the rack of a broker already,
// that of except aside. Brokers without a rack share none.
func (s *spread) shares(p *placed, id, except int32) bool {
	return s.racks[id] != "" && slices.ContainsFunc(p.Replicas, func(other int32) bool {
		return other != id && other != except && s.racks[other] == s.racks[id]
	})
}

// best is the broker to place one more replica of a partition on, -1 if each has one.
func (s *spread) best(p *placed) int32 {
	best := int32(-1)
	for _, id := range s.brokers() {
		if slices.Contains(p.Replicas, id) {
			continue
		}
		if best < 0 || s.before(p, id, best) {
			best = id
		}
	}
	return best
}

func (s *spread) before(p *placed, a, b int32) bool {
	if x, y := s.shares(p, a, -1), s.shares(p, b, -1); x != y {
		return y
	}
	return cmp.Or(cmp.Compare(s.own[a], s.own[b]), cmp.Compare(s.load[a], s.load[b])) < 0
}

// even moves replicas from the brokers that have the most to those that have the
// fewest, until no two differ by more than one or no move is left that keeps
// racks apart. Each move brings two brokers closer, so it ends.
func (s *spread) even(out []placed) {
	for s.evenOnce(out) {
	}
}

func (s *spread) evenOnce(out []placed) bool {
	order := s.brokers()
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(s.own[a], s.own[b]) })
	for _, to := range order {
		for _, from := range slices.Backward(order) {
			if s.own[from]-s.own[to] < 2 {
				break
			}
			for i := range out {
				p := &out[i]
				at := slices.Index(p.Replicas, from)
				if at < 0 || slices.Contains(p.Replicas, to) || s.shares(p, to, from) && !s.shares(p, from, -1) {
					continue
				}
				p.Replicas[at] = to
				s.own[from], s.own[to] = s.own[from]-1, s.own[to]+1
				s.load[from], s.load[to] = s.load[from]-1, s.load[to]+1
				return true
			}
		}
	}
	return false
}

// lead evens out the preferred leaders: the order of the replicas costs no copy.
func (s *spread) lead(out []placed) {
	for _, p := range out {
		s.led[p.Replicas[0]]++
	}
	for moved := true; moved; {
		moved = false
		for _, p := range out {
			first := p.Replicas[0]
			for at, id := range p.Replicas {
				if s.led[first]-s.led[id] >= 2 {
					p.Replicas[0], p.Replicas[at] = id, first
					s.led[first], s.led[id] = s.led[first]-1, s.led[id]+1
					moved = true
					break
				}
			}
		}
	}
}

func (s *spread) brokers() []int32 {
	out := make([]int32, 0, len(s.racks))
	for id := range s.racks {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}
