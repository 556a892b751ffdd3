package assignor

import (
	"cmp"
	"container/heap"
	"slices"
)

// Uniform assigns every member the same number of partitions, or one more, wherever the subscriptions allow it. Within
// that it moves as few as possible: if all members subscribe to the same topics, exactly those that the balance costs.
// Racks break ties only: of the partitions that have to go somewhere, a member with room gets those that have a replica
// in its rack first (KIP-881 puts racks before stickiness as well; Kafka's server does without them).
//
// Subscriptions that differ are balanced by single moves, until no partition can be moved from a member to one that has
// at least two fewer. That is what Kafka calls balanced; a better balance may be possible by moving partitions
// in a ring, at the price of moving more.
func Uniform(topics []Topic, members []Member) map[string]Assignment {
	result := make(map[string]Assignment, len(members))
	for _, m := range members {
		result[m.ID] = Assignment{}
	}
	u := newUniform(topics, members)
	if len(u.members) == 0 {
		return result
	}
	if homogeneous(u.topics, u.members) {
		u.equal()
	} else {
		u.spread()
		u.balance()
	}
	for t, owners := range u.owner {
		id := u.topics[t].ID
		for p, m := range owners {
			if m >= 0 {
				a := result[u.members[m].ID]
				a[id] = append(a[id], int32(p))
			}
		}
	}
	return result
}

// uniform is one assignment in the making. Members and topics are numbered in their order.
type uniform struct {
	topics  []Topic
	members []Member
	readers [][]int // of each topic: the members that subscribe to it
	before  [][]int // of each partition: who owned it, -1 nobody
	owner   [][]int // of each partition: who gets it, -1 nobody yet
	load    []int   // of each member
}

func newUniform(topics []Topic, members []Member) *uniform {
	u := &uniform{members: slices.Clone(members), load: make([]int, len(members))}
	slices.SortFunc(u.members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	for _, t := range sorted(topics) {
		var readers []int
		for i, m := range u.members {
			if _, ok := m.Topics[t.ID]; ok {
				readers = append(readers, i)
			}
		}
		if len(readers) == 0 || t.Partitions <= 0 {
			continue
		}
		before, owner := make([]int, t.Partitions), make([]int, t.Partitions)
		for p := range before {
			before[p], owner[p] = -1, -1
		}
		for _, i := range readers {
			for _, p := range u.members[i].Owned[t.ID] {
				// Nobody else can own it; should that be broken, the first one wins.
				if p >= 0 && p < t.Partitions && before[p] < 0 {
					before[p], owner[p] = i, i
					u.load[i]++
				}
			}
		}
		u.topics = append(u.topics, t)
		u.readers = append(u.readers, readers)
		u.before = append(u.before, before)
		u.owner = append(u.owner, owner)
	}
	return u
}

// near says whether a partition has a replica in the member's rack.
func (u *uniform) near(topic, partition, member int) bool {
	rack, racks := u.members[member].Rack, u.topics[topic].Racks
	return rack != "" && partition < len(racks) && slices.Contains(racks[partition], rack)
}

type spot struct{ topic, partition int }

// equal assigns if all subscribe to the same. Every member has a quota: the average, rounded up for as many as it takes,
// and these are the ones that own most, since each of them that owns more than the average keeps one more for it.
func (u *uniform) equal() {
	total := 0
	for _, o := range u.owner {
		total += len(o)
	}
	n := len(u.members)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return u.load[b] - u.load[a] })
	quota := make([]int, n)
	for rank, i := range order {
		quota[i] = total / n
		if rank < total%n {
			quota[i]++
		}
	}
	// Whoever has too many gives those of other racks first, and then the last.
	for _, far := range []bool{true, false} {
		for t := len(u.owner) - 1; t >= 0; t-- {
			for p := len(u.owner[t]) - 1; p >= 0; p-- {
				if i := u.owner[t][p]; i >= 0 && u.load[i] > quota[i] && !(far && u.near(t, p, i)) {
					u.owner[t][p] = -1
					u.load[i]--
				}
			}
		}
	}
	var left []spot
	for t, o := range u.owner {
		for p, i := range o {
			if i < 0 {
				left = append(left, spot{t, p})
			}
		}
	}
	left = u.handOutNear(left, quota)
	// The rest in turn, so that a topic is spread over the members rather than being one's alone.
	turn := 0
	for _, s := range left {
		for u.load[turn] >= quota[turn] {
			turn = (turn + 1) % n
		}
		u.owner[s.topic][s.partition] = turn
		u.load[turn]++
		turn = (turn + 1) % n
	}
}

// handOutNear gives partitions to members with room in the racks of their replicas, and returns the others.
func (u *uniform) handOutNear(left []spot, quota []int) (rest []spot) {
	byRack := map[string][]int{}
	for i, m := range u.members {
		if m.Rack != "" && u.load[i] < quota[i] {
			byRack[m.Rack] = append(byRack[m.Rack], i)
		}
	}
	if len(byRack) == 0 {
		return left
	}
	for _, s := range left {
		given := false
		if racks := u.topics[s.topic].Racks; s.partition < len(racks) {
			for _, r := range racks[s.partition] {
				ms := byRack[r]
				for len(ms) > 0 && u.load[ms[0]] >= quota[ms[0]] {
					ms = ms[1:]
				}
				if len(ms) > 0 {
					u.owner[s.topic][s.partition] = ms[0]
					u.load[ms[0]]++
					ms = append(slices.Clone(ms[1:]), ms[0]) // in turn
					given = true
				}
				byRack[r] = ms
				if given {
					break
				}
			}
		}
		if !given {
			rest = append(rest, s)
		}
	}
	return rest
}

// spread gives partitions that nobody owns to whoever has fewest of those that subscribe. Topics with few readers for
// their partitions come first: there is least choice.
func (u *uniform) spread() {
	for _, t := range u.byPressure() {
		h := &loads{}
		for _, i := range u.readers[t] {
			heap.Push(h, load{u.load[i], i})
		}
		for p, o := range u.owner[t] {
			if o >= 0 {
				continue
			}
			least := (*h)[0]
			at := 0
			if u.topics[t].Racks != nil && !u.near(t, p, least.member) {
				// Of those with equally few, one in the partition's rack.
				for k, l := range *h {
					if l.n == least.n && u.near(t, p, l.member) && (at == 0 || l.member < (*h)[at].member) {
						at = k
					}
				}
			}
			i := (*h)[at].member
			u.owner[t][p] = i
			u.load[i]++
			(*h)[at].n++
			heap.Fix(h, at)
		}
	}
}

// byPressure are the topics by partitions for each reader, most first.
func (u *uniform) byPressure() []int {
	order := make([]int, len(u.topics))
	for t := range order {
		order[t] = t
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x := int64(u.topics[a].Partitions) * int64(len(u.readers[b]))
		y := int64(u.topics[b].Partitions) * int64(len(u.readers[a]))
		return cmp.Or(cmp.Compare(y, x), cmp.Compare(len(u.readers[a]), len(u.readers[b])))
	})
	return order
}

// maxRounds bounds the balancing. Every move makes the loads' squares smaller, so that it ends anyway, but a group of
// many partly overlapping subscriptions might take long over its last few moves.
const maxRounds = 64

func (u *uniform) balance() {
	order := u.byPressure()
	for range maxRounds {
		moved := false
		for _, t := range order {
			moved = u.balanceTopic(t) || moved
		}
		if !moved {
			return
		}
	}
}

// balanceTopic moves the topic's partitions from the members with most to the readers with least while that evens them
// out. Entries of the heaps that are out of date are recognised by their load.
func (u *uniform) balanceTopic(t int) (moved bool) {
	has := make(map[int][]int) // member -> its partitions of the topic
	for p, i := range u.owner[t] {
		has[i] = append(has[i], p)
	}
	least, most := &loads{}, &loads{}
	for _, i := range u.readers[t] {
		heap.Push(least, load{u.load[i], i})
		if len(has[i]) > 0 {
			heap.Push(most, load{-u.load[i], i})
		}
	}
	for {
		for most.Len() > 0 && (-(*most)[0].n != u.load[(*most)[0].member] || len(has[(*most)[0].member]) == 0) {
			heap.Pop(most)
		}
		for least.Len() > 0 && (*least)[0].n != u.load[(*least)[0].member] {
			heap.Pop(least)
		}
		if most.Len() == 0 || least.Len() == 0 {
			return moved
		}
		from, to := (*most)[0].member, (*least)[0].member
		if u.load[from] < u.load[to]+2 {
			return moved
		}
		k := u.cheapest(t, has[from], from, to)
		p := has[from][k]
		has[from] = slices.Delete(has[from], k, k+1)
		has[to] = append(has[to], p)
		u.owner[t][p] = to
		u.load[from]--
		u.load[to]++
		for _, i := range []int{from, to} {
			heap.Push(least, load{u.load[i], i})
			heap.Push(most, load{-u.load[i], i})
		}
		moved = true
	}
}

// cheapest is which of the partitions to move: one that had to move anyway, or comes home, or comes nearer.
func (u *uniform) cheapest(t int, ps []int, from, to int) (best int) {
	most := -1
	for k, p := range ps {
		score := 2 // never below 0, so that there is one
		switch u.before[t][p] {
		case to:
			score += 8
		case from:
		default:
			score += 4
		}
		if u.near(t, p, to) {
			score++
		}
		if u.near(t, p, from) {
			score--
		}
		if score > most {
			best, most = k, score
		}
	}
	return best
}

// loads is a heap of members by how much they have, the fewest first.
type loads []load

type load struct{ n, member int }

func (l loads) Len() int { return len(l) }
func (l loads) Less(i, j int) bool {
	return l[i].n < l[j].n || l[i].n == l[j].n && l[i].member < l[j].member
}
func (l loads) Swap(i, j int) { l[i], l[j] = l[j], l[i] }
func (l *loads) Push(x any)   { *l = append(*l, x.(load)) }
func (l *loads) Pop() any {
	old := *l
	x := old[len(old)-1]
	*l = old[:len(old)-1]
	return x
}
