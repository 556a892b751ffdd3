package partition

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

// A cluster of three replicas of one partition, a controller that elects from
// the ISR and the eligible replicas, disks that lose what was not fsynced,
// messages that are late, lost or doubled. What a seed decides happens in an
// order that a real cluster could have. Checked after every step:
//
//   - what a leader has shown to be committed stays, at its offset, in every
//     later leader (promise 1), and no replica shows anything else there
//   - the high watermark of one process never goes back (I3)
//   - an offset and an epoch never mean two records (I4)
type cluster struct {
	t      *testing.T
	rnd    *rand.Rand
	now    int64
	minISR int
	unique int32

	// What metadata says, and the controller's rules for it.
	leader, epoch, partitionEpoch int32
	isr, elr                      []int32
	brokerEpochs                  map[int32]int64
	alive                         map[int32]bool

	nodes     map[int32]*node
	late      []func() // messages under way
	committed []record
	steps     []string
}

// record is a batch of one record: who appended it, and which one.
type record struct {
	epoch, unique int32
}

type node struct {
	id          int32
	st          *State
	log         []record
	durable     int
	hw          int64 // persisted now and then
	lineage     lineage.Lineage
	brokerEpoch int64
	knows       int32 // partition epoch of the metadata it has seen
	suspect     bool
	shown       int64
	leads       int32 // leader epoch in which it leads, -1
}

func (c *cluster) note(format string, args ...any) {
	c.steps = append(c.steps, fmt.Sprintf(format, args...))
}

func (c *cluster) fail(format string, args ...any) {
	c.t.Helper()
	for _, s := range c.steps[max(0, len(c.steps)-60):] {
		c.t.Log(s)
	}
	c.t.Fatalf(format, args...)
}

func newCluster(t *testing.T, seed uint64) *cluster {
	c := &cluster{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), now: 1000, minISR: 1 + int(seed%2),
		leader: 1, epoch: 0, partitionEpoch: 0, isr: []int32{1, 2, 3},
		brokerEpochs: map[int32]int64{1: 1, 2: 2, 3: 3}, alive: map[int32]bool{1: true, 2: true, 3: true},
		nodes: map[int32]*node{},
	}
	for id := int32(1); id <= 3; id++ {
		c.nodes[id] = &node{id: id, brokerEpoch: int64(id), knows: -1, leads: -1}
		c.start(c.nodes[id])
		c.tell(c.nodes[id])
	}
	return c
}

// start is a process that has recovered its log.
func (c *cluster) start(n *node) {
	n.st = New(n.id, Recovered{LogEnd: int64(len(n.log)), HighWatermark: n.hw, Lineage: n.lineage, Producers: producer.New()})
	n.knows, n.leads, n.shown = -1, -1, 0
}

// tell shows a node the metadata.
func (c *cluster) tell(n *node) {
	if n.suspect {
		if !slices.Contains(c.isr, n.id) && !slices.Contains(c.elr, n.id) && c.leader != n.id {
			// Out of the ISR: it starts again, with nothing.
			c.note("%d starts again with nothing", n.id)
			n.log, n.durable, n.hw, n.lineage, n.suspect = nil, 0, 0, nil, false
			c.start(n)
		} else {
			return
		}
	}
	t := Term{Epoch: c.epoch, PartitionEpoch: c.partitionEpoch, Replicas: []int32{1, 2, 3}, ISR: c.isr, MinISR: c.minISR}
	n.knows = c.partitionEpoch
	if c.leader != n.id || c.brokerEpochs[n.id] != n.brokerEpoch {
		n.leads = -1
		if err := n.st.Follow(t); err != nil {
			c.fail("%v", err)
		}
		return
	}
	began, err := n.st.Lead(t, c.now)
	if err != nil {
		c.fail("%v", err)
	}
	if began.NewEpoch {
		n.lineage = n.lineage.Assign(began.Epoch, began.Start)
	}
	if n.leads != c.epoch {
		n.leads = c.epoch
		c.note("%d leads in epoch %d from %d on, isr %v elr %v", n.id, c.epoch, len(n.log), c.isr, c.elr)
		if len(n.log) < len(c.committed) || !slices.Equal(n.log[:len(c.committed)], c.committed) {
			c.fail("leader %d of epoch %d lacks what was committed: has %v, committed %v", n.id, c.epoch, n.log, c.committed)
		}
	}
}

// elect is the controller's rule.
func (c *cluster) elect() {
	ok := func(set []int32) int32 {
		for _, id := range []int32{1, 2, 3} {
			if slices.Contains(set, id) && c.alive[id] {
				return id
			}
		}
		return -1
	}
	before := c.leader
	c.leader = ok(c.isr)
	if c.leader < 0 {
		if c.leader = ok(c.elr); c.leader >= 0 {
			all := append(slices.Clone(c.isr), c.elr...)
			c.isr, c.elr = []int32{c.leader}, slices.DeleteFunc(all, func(id int32) bool { return id == c.leader })
			if c.minISR == 1 {
				c.elr = nil
			}
		}
	}
	if before >= 0 || c.leader >= 0 {
		c.epoch++
	}
	c.partitionEpoch++
}

func (c *cluster) resize(isr []int32) {
	left := slices.DeleteFunc(append(slices.Clone(c.elr), c.isr...), func(id int32) bool { return slices.Contains(isr, id) })
	slices.Sort(left)
	c.isr, c.elr = isr, slices.Compact(left)
	if len(isr) >= c.minISR {
		c.elr = nil
	}
	c.partitionEpoch++
}

// down ends a process: what was not fsynced is gone, and of the high watermark
// an older value is left.
func (c *cluster) down(n *node) {
	lost := n.durable + c.rnd.IntN(len(n.log)-n.durable+1) // some of it may have reached the disk
	c.note("%d goes down, %d of %d durable, %d stay", n.id, n.durable, len(n.log), lost)
	n.log, n.durable = n.log[:lost], lost
	n.lineage = n.lineage.TruncateEnd(int64(lost) + 1)
	if c.rnd.IntN(2) == 0 {
		n.hw = min(n.st.View().HighWatermark, int64(n.durable))
	}
	n.hw = min(n.hw, int64(lost))
	c.alive[n.id] = false
	n.st, n.leads = nil, -1
}

func (c *cluster) step() {
	c.now += int64(c.rnd.IntN(200))
	n := c.nodes[int32(1+c.rnd.IntN(3))]
	switch k := c.rnd.IntN(100); {
	case k < 8 && n.st == nil: // a new process, admitted in a new epoch
		c.brokerEpochs[n.id] += 10
		n.brokerEpoch = c.brokerEpochs[n.id]
		c.alive[n.id] = true
		if c.leader == n.id || c.leader < 0 {
			c.elect()
		}
		c.start(n)
		c.note("%d is up with %d records, leader %d epoch %d", n.id, len(n.log), c.leader, c.epoch)
	case k < 9 && n.st != nil && c.rnd.IntN(2) == 0:
		c.down(n)
	case k < 13: // the controller notices who is away
		for _, id := range []int32{1, 2, 3} {
			if c.alive[id] {
				continue
			}
			if rest := slices.DeleteFunc(slices.Clone(c.isr), func(m int32) bool { return m == id }); len(rest) > 0 && len(rest) < len(c.isr) {
				c.resize(rest)
			}
			if c.leader == id {
				c.elect()
			}
		}
	case k < 14 && c.leader >= 0: // a leader is moved
		if to := c.isr[c.rnd.IntN(len(c.isr))]; c.alive[to] && to != c.leader {
			c.leader = to
			c.epoch++
			c.partitionEpoch++
		}
	case k < 30:
		if n.st != nil {
			c.tell(n)
		}
	case k < 50:
		c.append(n)
	case k < 65:
		c.sync(n)
	case k < 85:
		c.fetch(n)
	case k < 92:
		c.propose(n)
	default:
		if len(c.late) > 0 {
			i := c.rnd.IntN(len(c.late))
			f := c.late[i]
			if c.rnd.IntN(5) > 0 {
				c.late = slices.Delete(c.late, i, i+1)
			}
			f()
		}
	}
	c.check()
}

func (c *cluster) append(n *node) {
	if n.st == nil || n.leads < 0 || n.suspect {
		return
	}
	if d := n.st.Decide(Ask{Header: batch.Header{ProducerID: -1}, AcksAll: true}, c.now); d.Kind != Append {
		return
	}
	v := n.st.View()
	c.unique++
	n.log = append(n.log, record{v.Epoch, c.unique})
	n.st.Appended(batch.Header{BaseOffset: v.LogEnd, LeaderEpoch: v.Epoch, ProducerID: -1}, nil)
}

func (c *cluster) sync(n *node) {
	if n.st != nil && n.durable < len(n.log) {
		n.durable += 1 + c.rnd.IntN(len(n.log)-n.durable)
		n.st.Durable(int64(n.durable))
	}
}

// fetch is a round: the request may come late, twice or never, and so may its
// answer.
func (c *cluster) fetch(n *node) {
	if n.st == nil || n.suspect || n.st.View().Role != Follower || c.leader < 0 {
		return
	}
	p, durable := n.st.Position()
	if !durable {
		return
	}
	st, to, epoch, sender := n.st, c.nodes[c.leader], n.st.View().Epoch, n.brokerEpoch
	request := func() {
		if to.st == nil || to.leads < 0 || to.st.CheckEpoch(epoch) != 0 {
			return
		}
		if p.LastEpoch >= 0 {
			if e, end := to.st.EndOfEpoch(p.LastEpoch); e < p.LastEpoch || end < p.Offset {
				c.send(func() { c.diverged(n, st, e, end, epoch, p) })
				return
			}
		}
		if p.Offset > to.st.View().LogEnd {
			return
		}
		to.st.Fetched(n.id, sender, p.Offset, c.now)
		rest := to.log[p.Offset:]
		rest = slices.Clone(rest[:c.rnd.IntN(len(rest)+1)])
		hw := to.st.View().HighWatermark
		c.send(func() {
			if n.st != st || n.suspect || st.View().Role != Follower || st.View().Epoch != epoch {
				return
			}
			if now, _ := st.Position(); now != p {
				return // of an answer that came twice
			}
			for _, r := range rest {
				h := batch.Header{BaseOffset: int64(len(n.log)), LeaderEpoch: r.epoch, ProducerID: -1}
				at, _ := st.Position()
				if err := st.Copy(h, at); err != nil {
					c.fail("%d copies: %v", n.id, err)
				}
				if st.Copied(h, nil) {
					n.lineage = n.lineage.Assign(r.epoch, h.BaseOffset)
				}
				n.log = append(n.log, r)
			}
			st.LeaderAt(hw, 0, 0)
		})
	}
	c.send(request)
}

func (c *cluster) diverged(n *node, st *State, e int32, end int64, epoch int32, p Position) {
	if n.st != st || n.suspect || st.View().Role != Follower || st.View().Epoch != epoch {
		return
	}
	if now, _ := st.Position(); now != p {
		return
	}
	if e < 0 || end < 0 {
		return
	}
	to, suspect := st.Diverged(e, end)
	c.note("%d diverges at %d of %d, suspect %v", n.id, to, len(n.log), suspect)
	if suspect {
		n.suspect = true
		if slices.Contains(c.isr, n.id) && c.epoch == epoch {
			c.fail("%d of the ISR %v would cut at %d below its high watermark %d", n.id, c.isr, to, st.View().HighWatermark)
		}
		return
	}
	n.log = n.log[:to]
	n.durable = min(n.durable, len(n.log))
	n.lineage = n.lineage.TruncateEnd(to)
	n.hw = min(n.hw, to)
	st.Truncated(to, producer.New())
}

func (c *cluster) send(f func()) {
	switch c.rnd.IntN(10) {
	case 0: // lost
	case 1, 2:
		c.late = append(c.late, f)
		if len(c.late) > 8 {
			c.late = c.late[1:]
		}
	default:
		f()
	}
}

func (c *cluster) propose(n *node) {
	if n.st == nil || n.leads < 0 || n.suspect {
		return
	}
	p, ok := n.st.ProposeISR(c.now, 1000, func(id int32) int64 {
		if !c.alive[id] {
			return -1
		}
		return c.brokerEpochs[id]
	})
	if !ok {
		return
	}
	st, sender := n.st, n.brokerEpoch
	c.send(func() {
		if c.brokerEpochs[n.id] != sender || c.leader != n.id || p.LeaderEpoch != c.epoch || p.PartitionEpoch != c.partitionEpoch {
			return // that it is too late says nothing of the same proposal sent before
		}
		refused := false
		var isr []int32
		for _, m := range p.ISR {
			isr = append(isr, m.Broker)
			refused = refused || !c.alive[m.Broker] || m.Epoch != c.brokerEpochs[m.Broker]
		}
		if !refused {
			c.note("isr of %d: %v", n.id, isr)
			c.resize(isr)
		}
		c.send(func() { // the answer
			if n.st == st && refused {
				st.ProposalRefused(p.PartitionEpoch)
			}
		})
	})
}

func (c *cluster) check() {
	nodes := []*node{c.nodes[1], c.nodes[2], c.nodes[3]}
	slices.SortStableFunc(nodes, func(a, b *node) int { return int(b.leads) - int(a.leads) }) // leaders first
	for _, n := range nodes {
		id := n.id
		if n.st == nil || n.suspect {
			continue
		}
		v := n.st.View()
		switch {
		case v.LogEnd != int64(len(n.log)):
			c.fail("%d ends at %d, its log at %d", id, v.LogEnd, len(n.log))
		case v.HighWatermark < n.shown:
			c.fail("the high watermark of %d went back from %d to %d", id, n.shown, v.HighWatermark)
		case !n.st.Lineage().Equal(n.lineage):
			c.fail("lineage of %d: %v in memory, %v in the log", id, n.st.Lineage(), n.lineage)
		}
		n.shown = v.HighWatermark
		shown := n.log[:v.HighWatermark]
		both := min(len(shown), len(c.committed))
		if !slices.Equal(shown[:both], c.committed[:both]) {
			c.fail("%d shows %v, committed was %v", id, shown, c.committed)
		}
		if len(shown) > len(c.committed) {
			if n.leads < 0 {
				c.fail("follower %d shows %d records, leaders showed %d", id, len(shown), len(c.committed))
			}
			c.committed = slices.Clone(shown)
		}
	}
	seen := map[record]int{}
	for id := int32(1); id <= 3; id++ {
		for at, r := range c.nodes[id].log {
			if where, ok := seen[r]; ok && where != at {
				c.fail("record %v at %d and at %d", r, where, at)
			}
			seen[r] = at
		}
	}
}

func TestCluster(t *testing.T) {
	seeds, committed, epochs := uint64(400), 0, 0
	for seed := range seeds {
		c := newCluster(t, seed)
		for range 600 {
			c.step()
		}
		// What is left of it comes together: all are up, and nothing is lost any more.
		for range 400 {
			for _, n := range c.nodes {
				if n.st == nil {
					c.brokerEpochs[n.id] += 10
					n.brokerEpoch = c.brokerEpochs[n.id]
					c.alive[n.id] = true
					if c.leader == n.id || c.leader < 0 {
						c.elect()
					}
					c.start(n)
				}
				if n.knows != c.partitionEpoch || n.suspect {
					c.tell(n)
				}
				c.sync(n)
				c.fetch(n)
				c.propose(n)
				c.now += 10
			}
			c.check()
		}
		if l := c.nodes[c.leader]; len(c.isr) != 3 || int(l.st.View().HighWatermark) != len(l.log) {
			c.fail("seed %d: in the end isr %v, high watermark %d of %d", seed, c.isr, l.st.View().HighWatermark, len(l.log))
		}
		for _, n := range c.nodes {
			if !slices.Equal(n.log, c.nodes[1].log) {
				c.fail("seed %d: in the end %d has %v, 1 has %v", seed, n.id, n.log, c.nodes[1].log)
			}
		}
		committed += len(c.committed)
		epochs += int(c.epoch)
	}
	t.Logf("%d records committed in %d leader epochs", committed, epochs)
	if committed < 1000 || epochs < 1000 {
		t.Errorf("only %d records in %d epochs: nothing was tested", committed, epochs)
	}
}
