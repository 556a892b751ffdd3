package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"slices"
	"time"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// Coordinator is the group coordinator of one broker.
type Coordinator struct {
	*host[*groupMachine, group.Command, group.Result]
	matcher *matcher
}

// New returns a coordinator that leads nothing. The number of partitions is that of __consumer_offsets; 0 until the
// topic exists.
func New(o Options, partitions int32) *Coordinator {
	matcher := newMatcher()
	return &Coordinator{matcher: matcher, host: newHost(o, kind[*groupMachine, group.Command, group.Result]{
		name: "group state",
		machine: func(s *groupShard) *groupMachine {
			return &groupMachine{Shard: group.NewShard(s.o.Groups), s: s, matcher: matcher}
		},
		of: func(c group.Command) subject {
			_, tick := c.(*group.Tick)
			return subject{c.GroupID(), access(group.AccessOf(c)), tick}
		},
		tick:   func(key string) group.Command { return &group.Tick{Group: key} },
		expire: func(key string) group.Command { return &group.Expire{Group: key} },
		once:   func(c group.Command) bool { _, drops := c.(*group.DropTopic); return drops },
	}, partitions)}
}

type groupShard = shard[*groupMachine, group.Command, group.Result]

// groupMachine is the groups of a partition as a shard drives them. The values of access are those of group.Access.
type groupMachine struct {
	*group.Shard
	s       *groupShard
	matcher *matcher
	live    bool // loaded: what happens is new
}

var _ = [1]int{}[int(exclusive)-int(group.Exclusive)]

func (m *groupMachine) Handle(now time.Time, c group.Command) (group.Result, outcome) {
	if d, ok := c.(*group.DropTopic); ok && d.Until == 0 {
		d.Until = m.Position() // should it come again, what was committed meanwhile is of the next topic of that name
	}
	r := m.Shard.Handle(now, c)
	if r.NeedMatch != "" {
		m.match(c.(*group.ConsumerHeartbeat), r.NeedMatch)
		return r, outcome{key: r.Group, later: true}
	}
	out := outcome{key: r.Group, records: len(r.Records), more: r.More, moves: r.Moves()}
	switch {
	case r.Marker != nil:
		by := r.Marker.By
		out.records, out.header = 1, &header{producerID: by.ProducerID, producerEpoch: by.ProducerEpoch, transactional: true, control: true, ticket: r.Ticket}
	case r.Txn != nil:
		out.header = &header{producerID: r.Txn.ProducerID, producerEpoch: r.Txn.ProducerEpoch, transactional: true, ticket: r.Ticket}
	}
	return r, out
}

func (m *groupMachine) Record(r group.Result, i int) (key, value []byte) {
	if r.Marker != nil {
		return batch.MarkerRecord(r.Marker.Commit, r.Marker.CoordinatorEpoch)
	}
	return r.Records[i].Key, r.Records[i].Value
}

// Apply passes over control records that are no markers.
func (m *groupMachine) Apply(h batch.Header, _ int64, key, value []byte) error {
	by := group.Txn{ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch}
	switch {
	case h.Control():
		commit, _, err := batch.ReadMarker(key, value)
		if err != nil {
			return nil
		}
		for _, n := range m.ApplyMarker(by, commit) {
			if m.live {
				m.tell(n)
			}
		}
		return nil
	case h.Transactional():
		return m.ApplyTxn(group.Record{Key: key, Value: value}, by)
	}
	return m.Shard.Apply(group.Record{Key: key, Value: value})
}

func (m *groupMachine) Loaded(now time.Time) []group.Command {
	m.live = true
	// A topic that was deleted while nobody led this partition: nobody could hear of it. Whoever was elected has seen, in the
	// metadata, all topics that its predecessors took commits of.
	if m.s.o.Topics != nil {
		topics := m.s.o.Topics()
		m.s.sweep = append(m.s.sweep, m.Orphaned(func(name string) bool { _, ok := topics.ByName(name); return ok })...)
	}
	return m.Shard.Loaded(now)
}

func (m *groupMachine) Settle(now time.Time, r group.Result) {
	m.Shard.Settle(now, r)
	for _, rep := range r.Replies {
		m.s.answer(rep.Token, rep.Response)
	}
	for _, n := range r.Notes {
		m.tell(n)
	}
}

func (m *groupMachine) tell(n group.Note) {
	m.s.ev.Group(m.s.partition, n)
	level := slog.LevelInfo
	if n.Kind == group.NoteCommitted || n.Kind == group.NoteExpired {
		level = slog.LevelDebug
	}
	if m.s.log.Enabled(m.s.ctx, level) {
		m.s.log.Log(m.s.ctx, level, noteText[n.Kind], "group", n.Group, "generation", n.Generation, "members", n.Members,
			"member", n.Member, "offsets", n.N, "reason", n.Reason)
	}
}

var noteText = map[group.NoteKind]string{
	group.NoteRebalance: "group rebalances", group.NoteGeneration: "group has a new generation", group.NoteStable: "group is stable",
	group.NoteEmpty: "group is empty", group.NoteMemberExpired: "member removed", group.NoteMemberLeft: "member left",
	group.NoteFenced: "static member replaced", group.NoteRefused: "member refused", group.NoteCommitted: "offsets committed",
	group.NoteExpired: "offsets expired", group.NoteDeleted: "group deleted",
}

func (m *groupMachine) Fail(r group.Result, code int16) {
	for _, rep := range group.Fail(r, code) {
		m.s.answer(rep.Token, rep.Response)
	}
}

// Led has no consequences: what groups write is told apart by the log.
func (m *groupMachine) Led(int32) {}

func (m *groupMachine) Grows(c group.Command) growth {
	news := false
	switch c := c.(type) {
	case *group.Join:
		if news = c.Req.MemberID == ""; !news && m.Swells(c) {
			return further
		}
	case *group.Sync:
		if m.Swells(c) {
			return further
		}
	case *group.ConsumerHeartbeat:
		if news = c.Req.MemberEpoch == 0; !news && m.Swells(c) {
			return further
		}
	case *group.Commit:
		news = c.Txn != nil || !m.Has(c.Req.Group)
		if !news && m.Adds(c.Req) {
			return further
		}
	}
	if news {
		return fresh
	}
	return noGrowth
}

func (m *groupMachine) Keys() []string { return m.GroupIDs() }

// groupTally is what Stats has of a shard of groups.
type groupTally struct {
	group.Counts
	pending, txns int
	bytes         int64
}

func (m *groupMachine) Count() tally {
	t := groupTally{Counts: m.Counts(), bytes: m.Bytes()}
	t.pending, t.txns = m.Pending()
	return t
}

func (t groupTally) line() []any {
	n := 0
	for i := range t.Classic {
		n += t.Classic[i] + t.Consumer[i]
	}
	return []any{"groups", n, "offsets", t.Offsets, "pending", t.pending}
}

// GroupKind is what groups are counted by.
type GroupKind struct{ Protocol, State string }

// GroupKinds are all that there can be, in order.
func GroupKinds() (kinds []GroupKind) {
	for _, s := range []group.State{group.Empty, group.PreparingRebalance, group.CompletingRebalance, group.Stable} {
		kinds = append(kinds, GroupKind{"classic", s.String()})
	}
	for _, s := range []group.State{group.Empty, group.PreparingRebalance, group.CompletingRebalance, group.Stable} {
		kinds = append(kinds, GroupKind{"consumer", s.ConsumerName()})
	}
	return kinds
}

// Stats are what the coordinator holds.
type Stats struct {
	Load
	Groups        map[GroupKind]int // those of which there are any
	Members       int
	Offsets       int
	Pending, Txns int   // offsets that wait for the end of a transaction, and transactions that they belong to
	Bytes         int64 // about; all shards
}

// Stats adds up what the shards hold, as of the last command of each.
func (c *Coordinator) Stats() Stats {
	st := Stats{Groups: map[GroupKind]int{}}
	add := func(protocol, state string, n int) {
		if n > 0 {
			st.Groups[GroupKind{protocol, state}] += n
		}
	}
	st.Load = c.tallies(func(of tally) {
		t := of.(groupTally)
		st.Members += t.Members
		st.Offsets += t.Offsets
		st.Pending += t.pending
		st.Txns += t.txns
		st.Bytes += t.bytes
		for i := range t.Classic {
			add("classic", group.State(i).String(), t.Classic[i])
			add("consumer", group.State(i).ConsumerName(), t.Consumer[i])
		}
	})
	return st
}

// Committed are the first n offsets that groups have committed, in order, and how many there are in all. Shards that load,
// or do not answer until ctx ends, are left out. Groups with names of more than maxName bytes are only counted.
func (c *Coordinator) Committed(ctx context.Context, n, maxName int) (list []group.Committed, total int) {
	type part struct {
		list  []group.Committed
		total int
	}
	first := func() {
		slices.SortFunc(list, group.Committed.Compare)
		list = list[:min(n, len(list))]
	}
	for _, s := range c.all() {
		p, code := lookInto(ctx, c.host, s, "", func(m *groupMachine) part { return part{m.Shard.Committed(n, maxName), m.Shard.Offsets()} })
		if code != protocol.CodeNone {
			continue
		}
		list, total = append(list, p.list...), total+p.total
		if len(list) > 2*n {
			first()
		}
	}
	first()
	return slices.Clip(list), total
}

// suffix makes a member id unique.
func suffix() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
