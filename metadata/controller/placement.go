package controller

import (
	"encoding/binary"

	"github.com/varve/varve/metadata/image"
)

// placer spreads replicas over brokers and racks, round robin. Where a topic
// starts follows from its id, so that topics of one partition do not all land
// on the first broker and the same topic is always placed the same way.
type placer struct {
	alive  []*image.Broker // interleaved by rack
	fenced []*image.Broker // or about to be; interleaved by rack; used when the others do not suffice
	racks  int

	cordoned int // brokers that are given no new replicas
}

func newPlacer(im *image.Image) *placer {
	p := &placer{}
	var alive, fenced []*image.Broker
	racks := map[string]bool{}
	for _, b := range im.Brokers() {
		if im.Cordoned(b.ID) {
			p.cordoned++
			continue
		}
		racks[b.Rack] = true
		if !im.Active(b.ID) {
			fenced = append(fenced, b)
		} else {
			alive = append(alive, b)
		}
	}
	p.racks = len(racks)
	p.alive, p.fenced = interleave(alive), interleave(fenced)
	return p
}

// interleave orders brokers (ascending by id) so that neighbours are in
// different racks as far as possible: one of each rack in turn.
func interleave(brokers []*image.Broker) []*image.Broker {
	var order []string
	byRack := map[string][]*image.Broker{}
	for _, b := range brokers {
		if byRack[b.Rack] == nil {
			order = append(order, b.Rack)
		}
		byRack[b.Rack] = append(byRack[b.Rack], b)
	}
	out := make([]*image.Broker, 0, len(brokers))
	for len(out) < len(brokers) {
		for _, r := range order {
			if bs := byRack[r]; len(bs) > 0 {
				out = append(out, bs[0])
				byRack[r] = bs[1:]
			}
		}
	}
	return out
}

// place assigns n partitions of rf replicas each, the first of which has index
// first. The leader goes to the next broker each time; the followers are the
// brokers after it, skipping further ahead each time the list has been gone
// through (or the same pairs would always share), and taking a rack twice only
// when every rack has one.
func (p *placer) place(n, rf, first int, topic [16]byte) ([][]int32, error) {
	total := len(p.alive) + len(p.fenced)
	if len(p.alive) == 0 {
		if p.cordoned > 0 {
			return nil, refusal("All brokers are currently fenced or cordoned.")
		}
		return nil, refusal("All brokers are currently fenced.")
	}
	if rf > total && p.cordoned > 0 {
		return nil, refuse("Unable to replicate the partition %d time(s): The target replication factor of %d cannot be reached because only %d broker(s) are registered and not cordoned.",
			rf, rf, total)
	}
	if rf > total {
		return nil, refuse("Unable to replicate the partition %d time(s): The target replication factor of %d cannot be reached because only %d broker(s) are registered.",
			rf, rf, total)
	}
	start := int(binary.BigEndian.Uint32(topic[:4])%uint32(len(p.alive))) + first
	out := make([][]int32, n)
	for i := range out {
		at := start + i
		out[i] = p.replicas(at%len(p.alive), at/len(p.alive), rf)
	}
	return out, nil
}

func (p *placer) replicas(leader, round, rf int) []int32 {
	replicas := make([]int32, 0, rf)
	replicas = append(replicas, p.alive[leader].ID)
	if rf == 1 {
		return replicas
	}
	used := map[int32]bool{p.alive[leader].ID: true}
	racks := map[string]bool{p.alive[leader].Rack: true}
	take := func(list []*image.Broker, from int, newRack bool) {
		for j := 0; j < len(list) && len(replicas) < rf; j++ {
			b := list[(from+j)%len(list)]
			if used[b.ID] || newRack && racks[b.Rack] {
				continue
			}
			used[b.ID], racks[b.Rack] = true, true
			replicas = append(replicas, b.ID)
		}
	}
	from := leader + 1
	if others := len(p.alive) - 1; others > 0 {
		from += round % others
	}
	if p.racks > 1 {
		take(p.alive, from, true)
	}
	take(p.alive, from, false)
	take(p.fenced, round, false)
	return replicas
}
