package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/varve/varve/metadata/image"
)

// Random lives of a cluster of five brokers: processes die, come back, shut
// down, lose their disks, come back from old copies of them, also with the memory of
// that time, or without the last block of their logs, all of a partition's at once,
// controllers stop halfway through what they write, or wait for sessions to return,
// leaders produce, shrink and grow the ISR, operators reassign, elect and drain, brokers
// do not answer and answer again. After every single write:
//
//   - who leads a partition in an epoch does not change, process by process;
//   - a leader holds everything that was committed, and comes from the ISR or the
//     ELR, but for one topic in every other life, which elects unclean leaders;
//   - the leader epoch never goes back, and the sets are what they should be;
//   - somebody is always known to have everything;
//   - a replica whose log was cut at its end leads only where no other that has
//     everything is there;
//   - a broker that shuts down is not elected and joins no ISR, and one that does not
//     answer joins none;
//   - a broker that is not to lead, or does not answer, is elected only where nobody else in sync can be,
//     and a cordoned one is given no replica;
//   - a partition has the replicas it was given, or is on the way from those it
//     had to those it is given, and gets there only when all of them are in sync.
func TestRandomLives(t *testing.T) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("VARVE_SEED"), 10, 64); err == nil {
		seed = s
	}
	lives(t, seed)
}

// Lives that went wrong before: a process of an old copy that had caught up was taken out of the ISR when it registered again, and
// the other member's disk was lost.
func TestKnownLives(t *testing.T) { lives(t, 352924827663093379) }

func lives(t *testing.T, seed uint64) {
	t.Logf("VARVE_SEED=%d", seed)
	var all counts
	for life := range 60 {
		m := newModel(t, rand.New(rand.NewPCG(seed, uint64(life))), life%2 == 1)
		for range 600 {
			m.step()
		}
		all.add(m.counts)
	}
	t.Logf("%+v", all)
	if all.Committed == 0 || all.Elections == 0 || all.Unclean == 0 || all.Reassigned == 0 || all.Cancelled == 0 || all.Handed == 0 || all.Preferred == 0 || all.Relieved == 0 || all.Deserted == 0 ||
		all.Stale == 0 || all.Original == 0 || all.SetBack == 0 || all.AllGone == 0 || all.Half == 0 || all.Cut == 0 || all.CutLed == 0 || all.CutLost == 0 {
		t.Fatal("something did not happen at all")
	}
}

type counts struct {
	Committed, Elections, Unclean, Reassigned, Cancelled, Handed, Preferred, Relieved, Deserted int
	Stale, Original, SetBack, AllGone, Half, Cut, CutLed, CutLost                               int
}

func (c *counts) add(o counts) {
	c.Committed += o.Committed
	c.Elections += o.Elections
	c.Unclean += o.Unclean
	c.Reassigned += o.Reassigned
	c.Cancelled += o.Cancelled
	c.Handed += o.Handed
	c.Preferred += o.Preferred
	c.Relieved += o.Relieved
	c.Deserted += o.Deserted
	c.Stale += o.Stale
	c.Original += o.Original
	c.SetBack += o.SetBack
	c.AllGone += o.AllGone
	c.Half += o.Half
	c.Cut += o.Cut
	c.CutLed += o.CutLed
	c.CutLost += o.CutLost
}

type model struct {
	*world
	t    *testing.T
	rnd  *rand.Rand
	next int

	wal     map[int32]int                // which disk each broker has
	holds   map[string]int               // what each copy (partition, broker, disk) holds
	copies  map[int32]map[string]int     // what an old copy of a disk holds
	stale   map[int32]bool               // it came back from such a copy, which has no mark of its own
	others  map[int32]map[string]int     // then: what the disk holds that it is a copy of
	cut     map[int32]bool               // its log was cut, until it is admitted
	doubt   map[string]bool              // copies that may lack their last block
	commit  map[image.PartitionRef]int   // what was acknowledged
	epochs  map[image.PartitionRef]int32 // highest leader epoch seen
	leaders map[string]string            // (partition, epoch) -> (broker, incarnation)
	before  map[image.PartitionRef]*image.Partition
	had     map[image.PartitionRef][]int32 // the assignment, sorted, and
	given   map[image.PartitionRef][]int32 // what it is to become

	counts
}

func newModel(t *testing.T, rnd *rand.Rand, unclean bool) *model {
	m := &model{world: newWorld(), t: t, rnd: rnd, wal: map[int32]int{}, holds: map[string]int{},
		copies: map[int32]map[string]int{}, stale: map[int32]bool{}, others: map[int32]map[string]int{}, cut: map[int32]bool{}, doubt: map[string]bool{},
		commit: map[image.PartitionRef]int{}, epochs: map[image.PartitionRef]int32{}, leaders: map[string]string{},
		before: map[image.PartitionRef]*image.Partition{}, had: map[image.PartitionRef][]int32{}, given: map[image.PartitionRef][]int32{}}
	m.env.MinISR = 2
	for b := int32(1); b <= 5; b++ {
		m.start(b)
	}
	m.reconcile(false)
	value := fmt.Sprint(unclean)
	changes, reply := Handle(m.im, m.env, CreateTopics{Topics: []NewTopic{
		{Name: "t", ID: name16("t"), Partitions: 6, ReplicationFactor: 3, Configs: nil},
		{Name: "u", ID: name16("u"), Partitions: 3, ReplicationFactor: 2, Configs: []ConfigEntry{{Name: uncleanName, Value: &value}}},
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
	m.apply(image.SetSession{Session: image.Session{ID: b, Incarnation: name16(fmt.Sprint(m.next)), WAL: m.disk(b), Stale: m.stale[b], Cut: m.cut[b]}})
}

func (m *model) disk(b int32) [16]byte { return name16(fmt.Sprint(b, "/", m.wal[b])) }

// write applies changes one by one, as if the controller could stop after each.
func (m *model) write(changes []image.Change) {
	for _, c := range changes {
		m.apply(c)
		if c, ok := c.(image.SetBroker); ok && m.alive(c.Broker.ID) {
			delete(m.cut, c.Broker.ID) // what was cut off is forgotten
			m.told(c.Broker.ID)
		}
		m.check()
	}
}

// member is a replica that is known to have everything.
func member(p *image.Partition, b int32) bool {
	return slices.Contains(p.ISR, b) || slices.Contains(p.ELR, b)
}

// isCut says that the controller knows, or is about to be told, that the end of a
// replica's log was cut.
func (m *model) isCut(p *image.Partition, b int32) bool { return slices.Contains(p.Cut, b) || m.cut[b] }

// whole has another replica that has everything, as far as that is known, and is there.
func (m *model) whole(p *image.Partition, but int32) bool {
	return slices.ContainsFunc(union(p.ISR, p.ELR), func(b int32) bool {
		return b != but && !m.isCut(p, b) && m.alive(b) && m.im.Active(b) && !m.im.Session(b).Stale
	})
}

// lacks is for a leader that has not all that was committed. It is one whose log was
// cut; and if nobody is known to have more, what it has is the log from now on.
func (m *model) lacks(ref image.PartitionRef, p *image.Partition, where string) {
	mine := m.copyOf(ref, p.Leader)
	if !m.doubt[mine] {
		m.t.Fatalf("leader %d holds %d of %d committed: %s", p.Leader, m.holds[mine], m.commit[ref], where)
	}
	if slices.ContainsFunc(union(p.ISR, p.ELR), func(b int32) bool { return !m.doubt[m.copyOf(ref, b)] }) {
		return
	}
	m.CutLost++
	m.commit[ref] = m.holds[mine]
	for _, b := range p.Replicas {
		c := m.copyOf(ref, b)
		m.holds[c] = min(m.holds[c], m.commit[ref])
		if !m.cut[b] && m.holds[c] == m.commit[ref] { // who was cut twice may have less still
			delete(m.doubt, c)
		}
	}
}

// cutOff has a broker come back without the last block of its log, which may have
// been acknowledged where another has it.
func (m *model) cutOff(b int32) {
	for tp := range m.im.AllTopics() {
		for i, p := range tp.Partitions {
			ref := image.PartitionRef{TopicID: tp.ID, Index: int32(i)}
			if !member(p, b) || m.im.Broker(b).WAL != m.disk(b) {
				continue
			}
			c := m.copyOf(ref, b)
			m.doubt[c] = true
			if m.holds[c] > 0 && m.rnd.IntN(2) == 0 && slices.ContainsFunc(union(p.ISR, p.ELR), func(o int32) bool {
				return o != b && m.holds[m.copyOf(ref, o)] >= m.commit[ref]
			}) {
				m.holds[c]--
			}
		}
	}
	m.cut[b] = true
	m.Cut++
	m.start(b)
}

// copy returns what a broker's disk holds, restore has a broker come back from an
// old copy of it, and original from the disk itself after that, for which etcd still
// has the mark as long as the copy has none.
func (m *model) copy(b int32) map[string]int {
	held := map[string]int{}
	for tp := range m.im.AllTopics() {
		for i := range tp.Partitions {
			c := m.copyOf(image.PartitionRef{TopicID: tp.ID, Index: int32(i)}, b)
			held[c] = m.holds[c]
		}
	}
	return held
}

func (m *model) restore(b int32) {
	if !m.stale[b] {
		m.others[b] = m.copy(b)
	}
	for c, n := range m.copy(b) {
		m.holds[c] = min(n, m.copies[b][c])
	}
	m.stale[b] = true
	m.Stale++
	if s, rec := m.im.Session(b), m.im.Broker(b); s != nil && rec != nil && !rec.Stale && m.rnd.IntN(3) == 0 { // together with its memory
		m.SetBack++
		back := *s
		back.Stale = true
		m.apply(image.SetSession{Session: back})
		return
	}
	m.start(b)
}

func (m *model) original(b int32) {
	for c := range m.copy(b) {
		m.holds[c] = m.others[b][c]
	}
	delete(m.stale, b)
	m.Original++
	m.start(b)
}

// mark gives a broker's directory a mark of its own, and told has the controller know
// it, sooner or later.
func (m *model) mark(b int32) {
	if m.stale[b] && m.alive(b) {
		delete(m.stale, b)
		m.told(b)
	}
}

func (m *model) told(b int32) {
	if rec := m.im.Broker(b); rec.Stale && !m.stale[b] && m.rnd.IntN(2) == 0 {
		m.command(Marked{Broker: b, BrokerEpoch: rec.Epoch})
	}
}

func (m *model) copyOf(ref image.PartitionRef, b int32) string {
	return fmt.Sprint(ref, b, "/", m.wal[b])
}

func (m *model) check() {
	unsettled := 0
	for tp := range m.im.AllTopics() {
		for i, p := range tp.Partitions {
			ref := image.PartitionRef{TopicID: tp.ID, Index: int32(i)}
			where := func() string { return fmt.Sprintf("%s-%d %s", tp.Name, i, showPartition(p)) }
			if p.LeaderEpoch < m.epochs[ref] {
				m.t.Fatalf("epoch went back from %d: %s", m.epochs[ref], where())
			}
			m.epochs[ref] = p.LeaderEpoch
			if p.Leader == image.NoLeader || p.Reassigning() || len(p.Cut) > 0 {
				unsettled++
			}
			if p != m.before[ref] {
				m.checkStep(tp, ref, p, where())
				m.before[ref] = p
			}
			for _, b := range p.ISR {
				if !slices.Contains(p.Replicas, b) || slices.Contains(p.ELR, b) {
					m.t.Fatalf("bad sets: %s", where())
				}
			}
			if len(p.ELR) > 0 && len(p.ISR) >= p.MinISR(minISR(m.im, m.env, tp)) {
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
				m.Elections++
				if m.doubt[m.copyOf(ref, b.ID)] {
					m.CutLed++
				}
			case was != who:
				m.t.Fatalf("two processes lead in one epoch, %s and %s: %s", was, who, where())
			}
			if m.holds[m.copyOf(ref, b.ID)] < m.commit[ref] && m.alive(b.ID) {
				m.lacks(ref, p, where())
			}
		}
	}
	if unsettled != m.im.Unsettled() {
		m.t.Fatalf("%d partitions are unsettled, the image says %d", unsettled, m.im.Unsettled())
	}
}

// checkStep compares a partition's state with the one before.
func (m *model) checkStep(tp *image.Topic, ref image.PartitionRef, p *image.Partition, where string) {
	sorted := func(l []int32) []int32 { return union(l, nil) }
	if len(p.ISR)+len(p.ELR) == 0 {
		m.t.Fatalf("nobody is known to have everything: %s", where)
	}
	for _, b := range slices.Concat(p.ISR, p.ELR) {
		if !slices.Contains(p.Replicas, b) {
			m.t.Fatalf("%d is no replica: %s", b, where)
		}
	}
	old := m.before[ref]
	if old == nil {
		m.had[ref], m.given[ref] = sorted(p.Replicas), p.Replicas
		return
	}
	where = fmt.Sprintf("%s, before: %s", where, showPartition(old))
	for _, b := range p.Replicas {
		if !slices.Contains(old.Replicas, b) && m.im.Cordoned(b) {
			m.t.Fatalf("%d is cordoned and given a replica: %s", b, where)
		}
	}
	if p.Leader != image.NoLeader && p.LeaderEpoch != old.LeaderEpoch && m.isCut(old, p.Leader) && m.whole(old, p.Leader) {
		m.t.Fatalf("the log of leader %d was cut, and another was there: %s", p.Leader, where)
	}
	clean := member(old, p.Leader)
	if p.Leader != old.Leader && p.Leader != image.NoLeader {
		if m.im.Broker(p.Leader).ShuttingDown {
			m.t.Fatalf("the leader shuts down: %s", where)
		}
		if !m.im.MayLead(p.Leader) || m.im.Broker(p.Leader).Unresponsive {
			for _, b := range old.ISR {
				if b != p.Leader && !slices.Contains(old.Cut, b) && slices.Contains(p.Replicas, b) && m.alive(b) && m.im.Active(b) && m.im.MayLead(b) && !m.im.Session(b).Stale {
					m.t.Fatalf("%d leads, which is not to, and %d could: %s", p.Leader, b, where)
				}
			}
		}
		switch b := m.im.Broker(old.Leader); {
		case p.Leader == p.Replicas[0] && slices.Equal(p.ISR, old.ISR):
			m.Preferred++
		case b != nil && b.ShuttingDown && !b.Fenced:
			m.Handed++
		case b != nil && m.alive(b.ID) && !m.im.MayLead(b.ID):
			m.Relieved++
		case b != nil && m.alive(b.ID) && b.Unresponsive:
			m.Deserted++
		}
		if !clean {
			if !isUnclean(m.im, m.env, tp) {
				m.t.Fatalf("an unclean leader: %s", where)
			}
			if slices.ContainsFunc(slices.Concat(old.ISR, old.ELR), m.alive) {
				m.t.Fatalf("an unclean leader, and a clean one was there: %s", where)
			}
			m.Unclean++
			m.commit[ref] = min(m.commit[ref], m.holds[m.copyOf(ref, p.Leader)])
			// Others are cut to what it has before they can be in sync again.
			for _, b := range p.Replicas {
				m.holds[m.copyOf(ref, b)] = min(m.holds[m.copyOf(ref, b)], m.holds[m.copyOf(ref, p.Leader)])
			}
		}
	}
	for _, b := range p.ISR {
		if !slices.Contains(old.ISR, b) && b != p.Leader && m.im.Broker(b).ShuttingDown {
			m.t.Fatalf("%d joined while it shuts down: %s", b, where)
		}
		if !slices.Contains(old.ISR, b) && b != p.Leader && m.im.Broker(b).Unresponsive {
			m.t.Fatalf("%d joined and does not answer: %s", b, where)
		}
	}
	switch {
	case p.Reassigning():
		if !slices.Equal(sorted(p.Assigned()), m.had[ref]) || !slices.Equal(p.Target(), m.given[ref]) {
			m.t.Fatalf("on the way from %v to %v, not from %v to %v: %s", p.Assigned(), p.Target(), m.had[ref], m.given[ref], where)
		}
	case !slices.Equal(p.Replicas, m.given[ref]):
		m.t.Fatalf("the replicas are not %v: %s", m.given[ref], where)
	case old.Reassigning() && !slices.Equal(sorted(m.given[ref]), m.had[ref]):
		m.Reassigned++
		if len(difference(p.Replicas, old.ISR)) > 0 {
			m.t.Fatalf("reassigned before all were in sync: %s", where)
		}
	}
	if !p.Reassigning() {
		m.had[ref] = sorted(p.Replicas)
	}
	for b := range m.wal { // a replica that goes takes its copy along
		if !slices.Contains(p.Replicas, b) {
			delete(m.holds, m.copyOf(ref, b))
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

// alive says whether the process that the cluster admitted is running, and has not been set back.
func (m *model) alive(b int32) bool { return running(m.im, b) }

func (m *model) step() {
	b := int32(1 + m.rnd.IntN(5))
	switch m.rnd.IntN(38) {
	case 0:
		if m.im.Session(b) != nil {
			m.apply(image.DropSession{ID: b})
		}
	case 1:
		m.start(b) // a new process, whether or not the old one's end was noticed
	case 2:
		if s := m.im.Session(b); s != nil { // the same process registers again
			again := *s
			again.Stale = m.stale[b]
			m.apply(image.SetSession{Session: again})
		}
	case 3:
		if m.rnd.IntN(4) == 0 && m.disksIntact() {
			m.wal[b]++
			delete(m.stale, b)
			m.start(b)
		}
	case 9:
		if rec := m.im.Broker(b); rec != nil {
			m.command(BeginShutdown{Broker: b, Incarnation: rec.Incarnation})
		}
	case 10, 11:
		m.reassign()
	case 17:
		if rec := m.im.Broker(b); rec != nil {
			responds := maps.Clone(m.env.Responds)
			if responds == nil {
				responds = map[int32]Response{}
			}
			responds[b] = Response{Incarnation: rec.Incarnation, Unresponsive: m.rnd.IntN(3) == 0}
			m.env.Responds = responds
		}
	case 13:
		op, all, no := Delete, "*", "false"
		if m.rnd.IntN(3) == 0 {
			op = Set
		}
		m.command(AlterConfigs{Incremental: true, Resources: []AlterResource{{Type: image.BrokerResource, Name: fmt.Sprint(b),
			Ops: []ConfigOp{{Name: image.CordonedSetting, Op: op, Value: &all}, {Name: image.LeadershipSetting, Op: op, Value: &no}}}}})
	case 12:
		switch m.rnd.IntN(3) {
		case 0:
			m.command(ElectLeaders{All: true})
		case 1:
			m.command(Balance{Percentage: 10, Limit: 3})
		default:
			tp, index, _ := m.some()
			m.command(ElectLeaders{Partitions: []PartitionName{{tp.Name, index}}})
		}
	case 14:
		m.copies[b] = m.copy(b)
	case 15:
		if m.copies[b] != nil && m.disksIntact() {
			m.restore(b)
		}
	case 16:
		if m.rnd.IntN(3) == 0 && !m.cut[b] { // else it has written nothing since
			m.cutOff(b)
		}
	case 18:
		if m.stale[b] && m.rnd.IntN(3) == 0 {
			m.original(b)
		} else {
			m.mark(b)
		}
	case 19:
		if m.rnd.IntN(2) == 0 { // all that have a partition lose their power at one moment
			_, _, p := m.some()
			for _, b := range p.Replicas {
				m.apply(image.DropSession{ID: b})
			}
			m.AllGone++
		}
	case 20:
		m.halfReturn(b)
	case 21:
		m.env.Hold = m.rnd.IntN(2) == 0
	case 4, 5:
		m.reconcile(true)
	case 6, 7, 8:
		m.reconcile(false)
	default:
		m.lead()
	}
}

// halfReturn has a process that was fenced register again, or another in its place, the
// controller stop before it has let it in, and the process end.
func (m *model) halfReturn(b int32) {
	rec := m.im.Broker(b)
	if rec == nil || !rec.Fenced || m.im.Session(b) != nil {
		return
	}
	if m.rnd.IntN(2) == 0 || rec.WAL != m.disk(b) {
		m.start(b)
	} else {
		m.apply(image.SetSession{Session: image.Session{ID: b, Incarnation: rec.Incarnation, WAL: rec.WAL, Stale: m.stale[b], Cut: m.cut[b]}})
	}
	changes, _ := Reconcile(m.im, m.env)
	m.write(changes[:m.rnd.IntN(len(changes)+1)])
	m.apply(image.DropSession{ID: b})
	m.Half++
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
				if m.im.Broker(b).WAL == m.disk(b) && !m.stale[b] && m.holds[m.copyOf(ref, b)] >= m.commit[ref] {
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

// command has the controller decide one, and perhaps stop before all is written.
func (m *model) command(c Command) (changes []image.Change) {
	changes, _ = Handle(m.im, m.env, c)
	if m.rnd.IntN(4) == 0 {
		changes = changes[:m.rnd.IntN(len(changes)+1)]
	}
	m.write(changes)
	return changes
}

// some returns some partition.
func (m *model) some() (tp *image.Topic, index int32, p *image.Partition) {
	tp = m.im.Topics()[m.rnd.IntN(m.im.NumTopics())]
	index = int32(m.rnd.IntN(len(tp.Partitions)))
	return tp, index, tp.Partitions[index]
}

// reassign gives some partition other replicas, often while it is still on its
// way to such, or takes that back.
func (m *model) reassign() {
	tp, index, p := m.some()
	ref := image.PartitionRef{TopicID: tp.ID, Index: index}
	a := Reassignment{Topic: tp.Name, Partition: index}
	if m.rnd.IntN(3) > 0 {
		for _, b := range m.rnd.Perm(5)[:1+m.rnd.IntN(4)] {
			a.Replicas = append(a.Replicas, int32(1+b))
		}
	}
	changes, _ := Handle(m.im, m.env, AlterReassignments{Partitions: []Reassignment{a}})
	if len(changes) == 0 {
		return
	}
	m.given[ref] = a.Replicas
	if a.Replicas == nil {
		m.given[ref] = p.Assigned()
		m.Cancelled++
	}
	m.write(changes)
}

// lead lets the leader of some partition do something.
func (m *model) lead() {
	tp, index, p := m.some()
	ref := image.PartitionRef{TopicID: tp.ID, Index: index}
	if p.Leader == image.NoLeader || !m.alive(p.Leader) {
		return
	}
	mine := m.copyOf(ref, p.Leader)
	switch m.rnd.IntN(3) {
	case 0: // produce; committed when everyone in sync has it, and they are enough
		m.holds[mine]++
		for _, b := range p.ISR {
			if !m.alive(b) || m.ahead(ref, p, b) {
				return
			}
		}
		for _, b := range p.ISR {
			m.holds[m.copyOf(ref, b)] = m.holds[mine]
		}
		if len(p.ISR) >= p.MinISR(minISR(m.im, m.env, tp)) {
			m.commit[ref] = m.holds[mine]
			m.Committed++
		}
		return
	case 1: // a replica has caught up
		isr := slices.Clone(p.ISR)
		for _, b := range p.Replicas {
			if !slices.Contains(isr, b) && m.alive(b) && !m.ahead(ref, p, b) && (m.rnd.IntN(10) == 0 || m.im.Active(b)) {
				c := m.copyOf(ref, b)
				m.holds[c] = m.holds[mine]
				isr = append(isr, b)
				was := m.doubt[c]
				m.doubt[c] = m.doubt[mine] // what it lacks is what the leader lacks
				defer func() {
					if !slices.Contains(m.im.Partition(ref.TopicID, ref.Index).ISR, b) {
						m.doubt[c] = was
					}
				}()
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

// ahead says that a replica has more than a leader that lacks its last block: as
// long as it is known to have everything, it cuts nothing.
func (m *model) ahead(ref image.PartitionRef, p *image.Partition, b int32) bool {
	return m.doubt[m.copyOf(ref, p.Leader)] && member(p, b) && m.holds[m.copyOf(ref, b)] > m.holds[m.copyOf(ref, p.Leader)]
}

func (m *model) propose(p *image.Partition, ref image.PartitionRef, isr []int32) {
	prop := Proposal{TopicID: ref.TopicID, Partition: ref.Index, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch}
	for _, b := range isr {
		prop.ISR = append(prop.ISR, ISRMember{b, m.im.Broker(b).Epoch})
	}
	changes, _ := Handle(m.im, m.env, AlterPartition{Broker: p.Leader, BrokerEpoch: m.im.Broker(p.Leader).Epoch, Partitions: []Proposal{prop}})
	m.write(changes)
}
