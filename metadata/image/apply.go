package image

import "fmt"

// Delta is what one revision of the store changed. A delta that loads a whole
// store has every entry as a change.
type Delta struct {
	Revision int64
	Changes  []Change
}

// Change is one of the types below. The controller emits them, the store
// adapter turns them into transactions and watch events back into them.
type Change interface{ change() }

type (
	// SetCluster gives the cluster its identity.
	SetCluster struct{ ID string }
	// SetController names who holds the election, and since which revision.
	SetController struct {
		Broker int32
		Epoch  int64
	}
	// DropController says that nobody holds the election.
	DropController struct{}

	// SetSession and DropSession follow a broker's lease.
	SetSession  struct{ Session Session }
	DropSession struct{ ID int32 }

	// SetBroker writes the controller's record of a broker.
	SetBroker  struct{ Broker Broker }
	DropBroker struct{ ID int32 }

	// SetTopic writes a topic's own entry: name, partition count and config.
	// It is the commit point of a creation and of a growth: partitions become
	// visible by it, and must have been written before.
	SetTopic struct {
		ID         [16]byte
		Name       string
		Internal   bool
		Partitions int32
		Config     map[string]string
	}
	// DropTopic forgets a topic and all partitions of it, visible or not. The
	// controller writes BuryTopic.
	DropTopic struct{ ID [16]byte }
	// SetPartition writes the state of a partition.
	SetPartition struct {
		PartitionRef
		State Partition
	}
	// DropPartition removes a partition that no topic shows.
	DropPartition struct{ PartitionRef }

	// SetConfig writes the config of a resource other than a topic.
	SetConfig struct {
		ConfigKey
		Values map[string]string
	}
	DropConfig struct{ ConfigKey }

	// BuryTopic deletes a topic: one transaction writes the tombstone and
	// removes the topic, its partitions and their leader epoch keys.
	BuryTopic struct{ Tombstone Tombstone }
	// SetTombstone and DropTombstone are the tombstone alone.
	SetTombstone  struct{ Tombstone Tombstone }
	DropTombstone struct{ ID [16]byte }

	// At is a change that was written at another revision than the delta's:
	// what a load finds, whose delta has the revision of the read.
	At struct {
		Revision int64
		Change   Change
	}
)

func (SetCluster) change()     {}
func (SetController) change()  {}
func (DropController) change() {}
func (SetSession) change()     {}
func (DropSession) change()    {}
func (SetBroker) change()      {}
func (DropBroker) change()     {}
func (SetTopic) change()       {}
func (DropTopic) change()      {}
func (SetPartition) change()   {}
func (DropPartition) change()  {}
func (SetConfig) change()      {}
func (DropConfig) change()     {}
func (BuryTopic) change()      {}
func (SetTombstone) change()   {}
func (DropTombstone) change()  {}
func (At) change()             {}

// absent stands for a partition below its topic's count that the store does
// not have. The order of writes rules that out; a damaged store does not.
var absent = &Partition{Leader: NoLeader, LeaderEpoch: -1, PartitionEpoch: -1}

// Apply returns the image after d. The receiver stays as it was; everything
// that d does not touch is shared. The cost follows the number of changes,
// plus one copy of the pointer slice of each topic touched (8 bytes per
// partition of that topic, once per delta and not once per partition).
func (im *Image) Apply(d Delta) *Image {
	e := edit{im: *im, rev: d.Revision}
	if d.Revision == 0 {
		e.rev = im.Revision
	}
	e.im.Revision = e.rev
	for _, c := range d.Changes {
		e.apply(c)
	}
	e.finish()
	return &e.im
}

// edit is an image under construction. Topics touched by the delta are held
// apart and put back once each, so that a delta with many partitions of one
// topic copies its slice once.
type edit struct {
	im      Image
	rev     int64
	touched map[[16]byte]*touchedTopic
	order   [][16]byte
}

type touchedTopic struct {
	before *Topic
	meta   *Topic // nil: no topic; Partitions unset
	count  int
	parts  []*Partition
	copied bool // parts is ours to write
}

func (e *edit) topic(id [16]byte) *touchedTopic {
	if t, ok := e.touched[id]; ok {
		return t
	}
	if e.touched == nil {
		e.touched = make(map[[16]byte]*touchedTopic)
	}
	t := &touchedTopic{before: e.im.TopicByID(id)}
	t.parts, _ = e.im.parts.get(id)
	if t.before != nil {
		t.meta, t.count = t.before, len(t.before.Partitions)
	}
	e.im.loose -= looseIn(t.parts, t.count)
	e.im.partitions -= t.count
	if t.before != nil {
		e.im.unsettled -= unsettled(t.before.Partitions)
	}
	e.touched[id] = t
	e.order = append(e.order, id)
	return t
}

func (t *touchedTopic) own(n int) {
	if !t.copied {
		old := t.parts
		t.parts = make([]*Partition, max(n, len(old)))
		copy(t.parts, old)
		t.copied = true
	}
	for len(t.parts) < n {
		t.parts = append(t.parts, nil)
	}
}

func looseIn(parts []*Partition, count int) (n int) {
	for i := count; i < len(parts); i++ {
		if parts[i] != nil {
			n++
		}
	}
	return n
}

func unsettled(parts []*Partition) (n int) {
	for _, p := range parts {
		if p.Leader == NoLeader || p.Reassigning() || len(p.Cut) > 0 {
			n++
		}
	}
	return n
}

func (e *edit) apply(c Change) {
	im := &e.im
	switch c := c.(type) {
	case At:
		rev := e.rev
		e.rev = c.Revision
		e.apply(c.Change)
		e.rev = rev
	case SetCluster:
		im.ClusterID = c.ID
	case SetController:
		im.Controller, im.ControllerEpoch = c.Broker, c.Epoch
	case DropController:
		im.Controller = NoLeader
	case SetSession:
		s := c.Session
		s.Revision = e.rev
		im.sessions = im.sessions.with(s.ID, &s)
	case DropSession:
		im.sessions = im.sessions.without(c.ID)
	case SetBroker:
		b := c.Broker
		b.Revision = e.rev
		im.brokers = im.brokers.with(b.ID, &b)
	case DropBroker:
		im.brokers = im.brokers.without(c.ID)
	case SetTopic:
		t := e.topic(c.ID)
		t.count = int(c.Partitions)
		t.meta = &Topic{ID: c.ID, Name: c.Name, Internal: c.Internal, Config: c.Config, Revision: e.rev}
	case DropTopic:
		t := e.topic(c.ID)
		t.meta, t.count, t.parts, t.copied = nil, 0, nil, true
	case SetPartition:
		if c.Index < 0 || c.Index > MaxPartitionIndex {
			return
		}
		t := e.topic(c.TopicID)
		t.own(int(c.Index) + 1)
		p := c.State
		p.Revision = e.rev
		t.parts[c.Index] = &p
	case DropPartition:
		t := e.topic(c.TopicID)
		if c.Index >= 0 && int(c.Index) < len(t.parts) {
			t.own(len(t.parts))
			t.parts[c.Index] = nil
		}
	case SetConfig:
		im.configs = im.configs.with(c.ConfigKey, &Config{ConfigKey: c.ConfigKey, Values: c.Values, Revision: e.rev})
	case DropConfig:
		im.configs = im.configs.without(c.ConfigKey)
	case BuryTopic:
		e.apply(DropTopic{c.Tombstone.ID})
		e.apply(SetTombstone(c))
	case SetTombstone:
		t := c.Tombstone
		t.Revision = e.rev
		im.deleted = im.deleted.with(t.ID, &t)
	case DropTombstone:
		im.deleted = im.deleted.without(c.ID)
	default:
		panic(fmt.Sprintf("image: unknown change %T", c))
	}
}

func (e *edit) finish() {
	im := &e.im
	for _, id := range e.order {
		t := e.touched[id]
		for len(t.parts) > 0 && t.parts[len(t.parts)-1] == nil {
			t.parts = t.parts[:len(t.parts)-1]
		}
		switch {
		case len(t.parts) == 0:
			im.parts = im.parts.without(id)
		case t.copied:
			im.parts = im.parts.with(id, t.parts)
		}
		im.loose += looseIn(t.parts, t.count)
		im.partitions += t.count

		if t.before != nil && (t.meta == nil || t.meta.Name != t.before.Name) {
			// The name may already belong to a topic created after this one
			// was deleted, within the same delta.
			if cur := im.Topic(t.before.Name); cur != nil && cur.ID == id {
				im.byName = im.byName.without(t.before.Name)
			}
		}
		if t.meta == nil {
			if t.before != nil {
				im.byID = im.byID.without(id)
			}
			continue
		}
		next := *t.meta
		next.Partitions = visible(t.parts, t.count)
		im.unsettled += unsettled(next.Partitions)
		im.byID = im.byID.with(id, &next)
		im.byName = im.byName.with(next.Name, &next)
	}
}

// visible returns the first count partitions, sharing the slice when it has
// them all.
func visible(parts []*Partition, count int) []*Partition {
	whole := len(parts) >= count
	for i := 0; whole && i < count; i++ {
		whole = parts[i] != nil
	}
	if whole {
		return parts[:count:count]
	}
	out := make([]*Partition, count)
	for i := range out {
		out[i] = absent
		if i < len(parts) && parts[i] != nil {
			out[i] = parts[i]
		}
	}
	return out
}
