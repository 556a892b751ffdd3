package controller

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/varve/varve/metadata/image"
)

// Random lives of a cluster of five brokers: processes die, come back, lose
// their disks, controllers stop halfway through what they write, leaders
// produce, shrink and grow the ISR. After every single write:
//
//   - who leads a partition in an epoch does not change, process by process;
//   - a leader holds everything that was committed (no loss is accepted here);
//   - the leader epoch never goes back, and the sets are what they should be.
func TestRandomLives(t *testing.T) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("VARVE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("VARVE_SEED=%d", seed)
	committed, elections := 0, 0
	for life := range 60 {
		m := newModel(t, rand.New(rand.NewPCG(seed, uint64(life))))
		for range 400 {
			m.step()
		}
		committed, elections = committed+m.committed, elections+m.elections
	}
	t.Logf("%d commits, %d elections", committed, elections)
	if committed == 0 || elections == 0 {
		t.Fatal("nothing happened")
	}
}

type model struct {
	*world
	t    *testing.T
	rnd  *rand.Rand
	next int

	wal     map[int32]int                // which disk each broker has
	holds   map[string]int               // what each copy (partition, broker, disk) holds
	commit  map[image.PartitionRef]int   // what was acknowledged
	epochs  map[image.PartitionRef]int32 // highest leader epoch seen
	leaders map[string]string            // (partition, epoch) -> (broker, incarnation)

	committed, elections int
}

func newModel(t *testing.T, rnd *rand.Rand) *model {
	m := &model{world: newWorld(), t: t, rnd: rnd, wal: map[int32]int{}, holds: map[string]int{},
		commit: map[image.PartitionRef]int{}, epochs: map[image.PartitionRef]int32{}, leaders: map[string]string{}}
	m.env.MinISR = 2
	for b := int32(1); b <= 5; b++ {
		m.start(b)
	}
	m.reconcile(false)
	changes, reply := Handle(m.im, m.env, CreateTopics{Topics: []NewTopic{
		{Name: "t", ID: name16("t"), Partitions: 6, ReplicationFactor: 3, Configs: nil},
		{Name: "u", ID: name16("u"), Partitions: 3, ReplicationFactor: 2},
	}})
	for _, r := range reply.Results {
		if r.ErrorCode != 0 {
			t.Fatalf("%+v", r)
		}
	}
	m.write(changes)
	return m
}

func (m *model) start(b int32) {
	m.next++
	m.apply(image.SetSession{Session: image.Session{ID: b, Incarnation: name16(fmt.Sprint(m.next)), WAL: name16(fmt.Sprint(b, "/", m.wal[b]))}})
}

// write applies changes one by one, as if the controller could stop after each.
func (m *model) write(changes []image.Change) {
	for _, c := range changes {
		m.apply(c)
		m.check()
	}
}

func (m *model) copyOf(ref image.PartitionRef, b int32) string {
	return fmt.Sprint(ref, b, "/", m.wal[b])
}

func (m *model) check() {
	for tp := range m.im.AllTopics() {
		for i, p := range tp.Partitions {
			ref := image.PartitionRef{TopicID: tp.ID, Index: int32(i)}
			where := func() string { return fmt.Sprintf("%s-%d %s", tp.Name, i, showPartition(p)) }
			if p.LeaderEpoch < m.epochs[ref] {
				m.t.Fatalf("epoch went back from %d: %s", m.epochs[ref], where())
			}
			m.epochs[ref] = p.LeaderEpoch
			for _, b := range p.ISR {
				if !slices.Contains(p.Replicas, b) || slices.Contains(p.ELR, b) {
					m.t.Fatalf("bad sets: %s", where())
				}
			}
			if len(p.ELR) > 0 && len(p.ISR) >= minISR(m.im, m.env, tp, len(p.Replicas)) {
				m.t.Fatalf("eligible beyond a sufficient ISR: %s", where())
			}
			if p.Leader == image.NoLeader {
				continue
			}
			if !slices.Contains(p.ISR, p.Leader) {
				m.t.Fatalf("leader not in sync: %s", where())
			}
			b := m.im.Broker(p.Leader)
			if b.Fenced {
				continue // leads nothing
			}
			key, who := fmt.Sprint(ref, p.LeaderEpoch), fmt.Sprint(b.ID, text(b.Incarnation))
			switch was, ok := m.leaders[key]; {
			case !ok:
				m.leaders[key] = who
				m.elections++
				if have := m.holds[m.copyOf(ref, b.ID)]; have < m.commit[ref] {
					m.t.Fatalf("leader %d holds %d of %d committed: %s", b.ID, have, m.commit[ref], where())
				}
			case was != who:
				m.t.Fatalf("two processes lead in one epoch, %s and %s: %s", was, who, where())
			}
		}
	}
}

func (m *model) reconcile(crash bool) {
	for {
		changes, _ := Reconcile(m.im, m.env)
		if len(changes) == 0 {
			return
		}
		if crash && m.rnd.IntN(3) == 0 {
			m.write(changes[:m.rnd.IntN(len(changes)+1)])
			return
		}
		m.write(changes)
	}
}

// alive says whether the process that the cluster admitted is running.
func (m *model) alive(b int32) bool {
	s, rec := m.im.Session(b), m.im.Broker(b)
	return s != nil && rec != nil && !rec.Fenced && s.Incarnation == rec.Incarnation
}

func (m *model) step() {
	b := int32(1 + m.rnd.IntN(5))
	switch m.rnd.IntN(24) {
	case 0:
		if m.im.Session(b) != nil {
			m.apply(image.DropSession{ID: b})
		}
	case 1:
		m.start(b) // a new process, whether or not the old one's end was noticed
	case 2:
		if s := m.im.Session(b); s != nil { // the same process registers again
			m.apply(image.SetSession{Session: *s})
		}
	case 3:
		if m.rnd.IntN(4) == 0 && m.disksIntact() {
			m.wal[b]++
			m.start(b)
		}
	case 4, 5:
		m.reconcile(true)
	case 6, 7, 8:
		m.reconcile(false)
	default:
		m.lead()
	}
}

// disksIntact keeps the model within what can be survived: a disk is only lost
// while every partition has another full copy, else data is gone by
// definition.
func (m *model) disksIntact() bool {
	for tp := range m.im.AllTopics() {
		for i, p := range tp.Partitions {
			ref := image.PartitionRef{TopicID: tp.ID, Index: int32(i)}
			n := 0
			for _, b := range append(slices.Clone(p.ISR), p.ELR...) {
				if m.holds[m.copyOf(ref, b)] >= m.commit[ref] {
					n++
				}
			}
			if n < 2 {
				return false
			}
		}
	}
	return true
}

// lead lets the leader of some partition do something.
func (m *model) lead() {
	tp := m.im.Topics()[m.rnd.IntN(m.im.NumTopics())]
	index := int32(m.rnd.IntN(len(tp.Partitions)))
	p, ref := tp.Partitions[index], image.PartitionRef{TopicID: tp.ID, Index: index}
	if p.Leader == image.NoLeader || !m.alive(p.Leader) {
		return
	}
	mine := m.copyOf(ref, p.Leader)
	switch m.rnd.IntN(3) {
	case 0: // produce; committed when everyone in sync has it, and they are enough
		m.holds[mine]++
		for _, b := range p.ISR {
			if !m.alive(b) {
				return
			}
		}
		for _, b := range p.ISR {
			m.holds[m.copyOf(ref, b)] = m.holds[mine]
		}
		if len(p.ISR) >= minISR(m.im, m.env, tp, len(p.Replicas)) {
			m.commit[ref] = m.holds[mine]
			m.committed++
		}
		return
	case 1: // a replica has caught up
		isr := slices.Clone(p.ISR)
		for _, b := range p.Replicas {
			if !slices.Contains(isr, b) && m.alive(b) {
				m.holds[m.copyOf(ref, b)] = m.holds[mine]
				isr = append(isr, b)
			}
		}
		m.propose(p, ref, isr)
	case 2: // a replica is slow
		isr := without(p.ISR, p.Replicas[m.rnd.IntN(len(p.Replicas))])
		if slices.Contains(isr, p.Leader) {
			m.propose(p, ref, isr)
		}
	}
}

func (m *model) propose(p *image.Partition, ref image.PartitionRef, isr []int32) {
	prop := Proposal{TopicID: ref.TopicID, Partition: ref.Index, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch}
	for _, b := range isr {
		prop.ISR = append(prop.ISR, ISRMember{b, m.im.Broker(b).Epoch})
	}
	changes, _ := Handle(m.im, m.env, AlterPartition{Broker: p.Leader, BrokerEpoch: m.im.Broker(p.Leader).Epoch, Partitions: []Proposal{prop}})
	m.write(changes)
}
