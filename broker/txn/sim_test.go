package txn

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// sim drives a shard as the runtime does, with appends that take their time, fail, or succeed, with producer ids that are
// there or not, and with markers that are written in any order, twice, or late, as a source of bytes decides. After every
// step it checks what must always hold.
type sim struct {
	t     testing.TB
	src   func() int
	cfg   Config
	shard *Shard
	now   time.Time
	epoch int32
	log   []Record
	after []string // what is durable after each record
	trace []string

	token  uint64
	asked  map[uint64]string // not answered yet
	flying []simFlight       // appends under way, in order
	ids    int64

	known  map[string][]identity // that somebody was told, forged ones among them
	high   map[string]identity   // the newest of each id
	orders []Markers             // markers asked for; those of deposed coordinators go on for a while
	txns   map[string]*simTxn    // the transaction that is open or ending
}

type identity struct {
	id    int64
	epoch int16
}

func (a identity) before(b identity) bool { return a.id < b.id || a.id == b.id && a.epoch < b.epoch }

type simFlight struct {
	r Result
	c Command
}

// simTxn is a transaction as an outsider sees it: what the records say of it, and which markers its partitions have.
type simTxn struct {
	topics  []Topic
	ended   bool
	commit  bool
	by      identity // of the markers
	order   uint64
	markers map[place]bool
}

func newSim(t testing.TB, src func() int) *sim {
	s := &sim{t: t, src: src, now: time.UnixMilli(1 << 40), asked: map[uint64]string{}, ids: 1000, high: map[string]identity{},
		known: map[string][]identity{"x": {{900, 3}}, "y": {{900, 3}}}, txns: map[string]*simTxn{}}
	s.cfg = Config{MaxTimeout: time.Minute, Expiration: time.Hour, TransactionVersion: int16(s.pick(3)), MaxPartitions: 5}
	s.shard = NewShard(s.cfg)
	s.shard.Loaded(0)
	for _, id := range []string{"x", "y"} { // epochs are soon exhausted
		if s.pick(2) == 0 {
			continue
		}
		m := metadata{producerID: 500, previousID: -1, nextID: -1, last: -1, epoch: int16(32760 + s.pick(7)), timeout: 10_000, started: -1, updated: s.now.UnixMilli()}
		s.apply(recordOf(id, m, s.cfg.TransactionVersion))
		s.known[id] = append(s.known[id], identity{500, m.epoch})
	}
	return s
}

func (s *sim) pick(n int) int { return s.src() % n }

func (s *sim) failf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nlast steps:\n%s\nstate:\n%s", fmt.Sprintf(format, args...), strings.Join(s.trace[max(0, len(s.trace)-40):], "\n"), dump(s.shard))
}

func (s *sim) tracef(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf(format, args...))
}

func (s *sim) ask(what string) uint64 {
	s.token++
	s.asked[s.token] = what
	return s.token
}

// producer is mostly the current one.
func (s *sim) producer(id string) identity {
	if e := s.shard.entries[id]; e != nil && s.pick(3) > 0 {
		return identity{e.m.producerID, e.m.epoch}
	}
	return s.known[id][s.pick(len(s.known[id]))]
}

func (s *sim) topics() (ts []Topic) {
	for range 1 + s.pick(2) {
		ts = append(ts, Topic{[]string{"t", "u"}[s.pick(2)], []int32{int32(s.pick(3)), int32(s.pick(3))}})
	}
	return ts
}

func (s *sim) command() Command {
	id := []string{"x", "y"}[s.pick(2)]
	by := s.producer(id)
	switch s.pick(16) {
	case 0, 1, 2:
		req := kmsg.NewPtrInitProducerIDRequest()
		req.Version = []int16{3, 4, 5}[s.pick(3)]
		req.TransactionalID, req.TransactionTimeoutMillis = &id, int32(s.pick(30)*1000)
		if s.pick(2) == 0 {
			req.ProducerID, req.ProducerEpoch = by.id, by.epoch
		}
		return &Init{Token: s.ask("init"), Req: req}
	case 3, 4, 5, 6:
		c := &AddPartitions{Token: s.ask("add"), Version: []int16{1, 3, 5, 5}[s.pick(4)], Txn: kmsg.NewAddPartitionsToTxnRequestTransaction()}
		c.Txn.TransactionalID, c.Txn.ProducerID, c.Txn.ProducerEpoch, c.Txn.VerifyOnly = id, by.id, by.epoch, s.pick(4) == 0
		for _, t := range s.topics() {
			ct := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
			ct.Topic, ct.Partitions = t.Topic, t.Partitions
			c.Txn.Topics = append(c.Txn.Topics, ct)
		}
		if s.pick(16) == 0 {
			c.Txn.Topics = nil
		}
		return c
	case 7:
		req := kmsg.NewPtrAddOffsetsToTxnRequest()
		req.Version = 4
		req.TransactionalID, req.ProducerID, req.ProducerEpoch = id, by.id, by.epoch
		return &AddOffsets{Token: s.ask("add offsets"), Req: req, Partition: int32(s.pick(2))}
	case 8, 9, 10, 11, 12:
		req := kmsg.NewPtrEndTxnRequest()
		req.Version = []int16{4, 5, 5}[s.pick(3)]
		req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = id, by.id, by.epoch, s.pick(2) == 0
		return &End{Token: s.ask("end"), Req: req}
	case 13:
		return &Expire{ID: id}
	case 14:
		return &Tick{ID: id}
	default:
		// News of markers that this coordinator may not have asked for.
		return &MarkersWritten{ID: id, Order: uint64(s.pick(8)), Topics: nil}
	}
}

// author is who asks for a command, if anybody does.
func author(c Command) (by identity, ok bool) {
	switch c := c.(type) {
	case *Init:
		return identity{c.Req.ProducerID, c.Req.ProducerEpoch}, c.Req.ProducerID != -1
	case *AddPartitions:
		return identity{c.Txn.ProducerID, c.Txn.ProducerEpoch}, true
	case *AddOffsets:
		return identity{c.Req.ProducerID, c.Req.ProducerEpoch}, true
	case *End:
		return identity{c.Req.ProducerID, c.Req.ProducerEpoch}, true
	}
	return by, false
}

// admitted is the table of AccessOf.
func (s *sim) admitted(c Command) bool {
	return AccessOf(c) == Free || !slices.ContainsFunc(s.flying, func(f simFlight) bool { return f.r.ID == c.TransactionalID() })
}

func (s *sim) step() {
	switch n := s.pick(16); n {
	case 0:
		s.now = s.now.Add(time.Duration(s.pick(5000)) * time.Millisecond)
		if s.pick(6) == 0 {
			s.now = s.now.Add(time.Hour)
		}
		s.tracef("time passes")
	case 1, 2, 3, 4:
		s.landOne()
	case 5, 6, 7:
		s.mark()
	case 8:
		if s.pick(32) == 0 {
			s.takeOver()
		}
	default:
		c := s.command()
		if !s.admitted(c) {
			s.forget(c)
			return
		}
		s.do(c)
	}
	for _, id := range s.shard.IDs() {
		if at, ok := s.shard.Deadline(id); ok && !at.After(s.now) {
			if c := (&Tick{ID: id}); s.admitted(c) {
				s.do(c)
			}
		}
	}
	s.check()
}

func (s *sim) forget(c Command) {
	switch c := c.(type) {
	case *Init:
		delete(s.asked, c.Token)
	case *AddPartitions:
		delete(s.asked, c.Token)
	case *AddOffsets:
		delete(s.asked, c.Token)
	case *End:
		delete(s.asked, c.Token)
	}
}

func (s *sim) do(c Command) {
	before := dump(s.shard)
	r := s.shard.Handle(s.now, c)
	if r.NeedProducerID {
		if len(r.Records)+len(r.Replies)+len(r.Notes) > 0 || r.Markers != nil {
			s.failf("%T needs a producer id and has a result already", c)
		}
		if s.pick(4) == 0 {
			s.tracef("%T %s finds no producer id", c, c.TransactionalID())
			s.replies(Fail(r, 14))
			return
		}
		s.ids++
		r = s.shard.Handle(s.now, &Supplied{Command: c, ProducerID: s.ids})
		if r.NeedProducerID {
			s.failf("%T needs another producer id", c)
		}
	}
	if got := dump(s.shard); got != before {
		s.failf("Handle of %T changed the state; it was\n%s", c, before)
	}
	s.judge(c, r)
	by, _ := author(c)
	s.tracef("%T %s by %v: %d records", c, c.TransactionalID(), by, len(r.Records))
	if len(r.Records) == 0 {
		s.settle(c, r)
		return
	}
	s.flying = append(s.flying, simFlight{r: r, c: c})
}

// judge checks a decision against who asked for it.
func (s *sim) judge(c Command, r Result) {
	e := s.shard.entries[c.TransactionalID()]
	if _, ended := c.(*End); !ended && e != nil && e.m.state == Ongoing && len(r.Records) > 0 {
		// An abort of the coordinator's own fences the producer.
		if _, m, _ := decode(r.Records[0]); m.state == PrepareAbort && m.epoch <= e.m.epoch {
			s.failf("%T aborts at epoch %d what is at %d", c, m.epoch, e.m.epoch)
		}
	}
	if with, ok := c.(*Completed); ok && e != nil {
		m := e.m
		if m.state.prepared() {
			m = m.complete()
		}
		for i, next := range with.Then {
			by, _ := author(next)
			if by != (identity{m.producerID, m.epoch}) && slices.Contains(codesOf(r.Replies[i].Response), codeNone) {
				s.failf("%T by %v begins a transaction at %d/%d", next, by, m.producerID, m.epoch)
			}
		}
	}
	by, ok := author(c)
	if !ok || e == nil {
		return
	}
	current := identity{e.m.producerID, e.m.epoch}
	if by == current {
		return
	}
	// What its producer asks for has no effect, with the one exception that it may be told its new epoch once more.
	if i, ok := c.(*Init); ok && by.epoch == e.last && len(r.Records) == 1 {
		_, m, err := decode(r.Records[0])
		if err != nil || m.state != Empty || m.producerID != current.id || m.epoch != current.epoch || !e.m.state.atRest() {
			s.failf("%v repeats InitProducerId and gets %v at %v", by, m, current)
		}
		if resp := r.Replies[0].Response.(*kmsg.InitProducerIDResponse); resp.ProducerID != current.id || resp.ProducerEpoch != current.epoch {
			s.failf("%s: told %d/%d at %v", *i.Req.TransactionalID, resp.ProducerID, resp.ProducerEpoch, current)
		}
		return
	}
	if len(r.Records) > 0 || r.settles {
		s.failf("%T by %v has an effect at %v", c, by, current)
	}
	if end, ok := c.(*End); ok {
		resp := r.Replies[0].Response.(*kmsg.EndTxnResponse)
		if resp.ErrorCode == codeNone && (e.m.state != map[bool]State{true: CompleteCommit, false: CompleteAbort}[end.Req.Commit] ||
			resp.ProducerID != current.id || resp.ProducerEpoch != current.epoch) {
			s.failf("%v is told that its transaction ended, and to go on as %d/%d, at %v", by, resp.ProducerID, resp.ProducerEpoch, current)
		}
		return
	}
	for _, rep := range r.Replies {
		if slices.Contains(codesOf(rep.Response), codeNone) {
			s.failf("%T by %v is answered%s at %v", c, by, response(rep.Response), current)
		}
	}
}

func codesOf(r kmsg.Response) (codes []int16) {
	switch r := r.(type) {
	case *kmsg.InitProducerIDResponse:
		codes = append(codes, r.ErrorCode)
	case *kmsg.AddOffsetsToTxnResponse:
		codes = append(codes, r.ErrorCode)
	case *kmsg.EndTxnResponse:
		codes = append(codes, r.ErrorCode)
	case *kmsg.AddPartitionsToTxnResponse:
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				codes = append(codes, p.ErrorCode)
			}
		}
		for _, x := range r.Transactions {
			for _, t := range x.Topics {
				for _, p := range t.Partitions {
					codes = append(codes, p.ErrorCode)
				}
			}
		}
	}
	return codes
}

func (s *sim) landOne() {
	if len(s.flying) == 0 {
		return
	}
	f := s.flying[0]
	s.flying = s.flying[1:]
	if s.pick(4) == 0 {
		s.tracef("append of %T %s fails", f.c, f.r.ID)
		before := dump(s.shard)
		s.replies(Fail(f.r, 15))
		if got := dump(s.shard); got != before {
			s.failf("a failed append changed the state")
		}
		return
	}
	for _, rec := range f.r.Records {
		s.tracef("append %s", text(rec))
		s.apply(rec)
	}
	s.settle(f.c, f.r)
}

// apply follows a record as an outsider would.
func (s *sim) apply(rec Record) {
	id, m, err := decode(rec)
	if err != nil {
		s.failf("%v", err)
	}
	var old *metadata
	if e := s.shard.entries[id]; e != nil {
		c := e.m
		old = &c
	}
	if err := s.shard.Apply(rec); err != nil {
		s.failf("%v", err)
	}
	s.log = append(s.log, rec)
	s.after = append(s.after, durable(s.shard))
	if m == nil {
		if old == nil || !old.state.atRest() {
			s.failf("%s: expires in state %v", id, old)
		}
		return
	}
	now := identity{m.producerID, m.epoch}
	if now.before(s.high[id]) {
		s.failf("%s: from %v to %v", id, s.high[id], now)
	}
	s.high[id] = now
	x := s.txns[id]
	switch m.state {
	case Empty:
		if x != nil {
			s.failf("%s: Empty with a transaction", id)
		}
	case Ongoing:
		if x == nil {
			x = &simTxn{markers: map[place]bool{}}
			s.txns[id] = x
		}
		if x.ended || !hasAll(m.topics, x.topics) || old == nil || now != (identity{old.producerID, old.epoch}) {
			s.failf("%s: partitions are added to what ended, or are lost", id)
		}
		x.topics = m.topics
	case PrepareCommit, PrepareAbort:
		if x == nil { // an end of nothing
			x = &simTxn{markers: map[place]bool{}}
			s.txns[id] = x
		}
		if x.ended || places(x.topics) != places(m.topics) {
			s.failf("%s: ends twice, or with other partitions", id)
		}
		x.ended, x.commit, x.by = true, m.state == PrepareCommit, now
	case CompleteCommit, CompleteAbort:
		if x == nil || !x.ended || x.commit != (m.state == CompleteCommit) {
			s.failf("%s: complete otherwise than it ended", id)
		}
		for _, t := range x.topics {
			for _, p := range t.Partitions {
				if commit, ok := x.markers[place{t.Topic, p}]; !ok || commit != x.commit {
					s.failf("%s: complete without the marker of %s/%d", id, t.Topic, p)
				}
			}
		}
		delete(s.txns, id)
	}
}

func (s *sim) settle(c Command, r Result) {
	s.shard.Settle(s.now, r)
	if e := s.shard.entries[r.ID]; e != nil && r.Moves() != (e.m.state == Ongoing && len(r.Records) > 0) {
		s.failf("%T: moves: %v", c, r.Moves())
	}
	s.replies(r.Replies)
	if r.Markers != nil {
		s.order(*r.Markers)
	}
}

func (s *sim) replies(rs []Reply) {
	for _, r := range rs {
		if _, ok := s.asked[r.Token]; !ok {
			s.failf("token %d answered twice, or never asked", r.Token)
		}
		delete(s.asked, r.Token)
		switch resp := r.Response.(type) {
		case *kmsg.InitProducerIDResponse:
			if resp.ErrorCode == 0 {
				s.learn(identity{resp.ProducerID, resp.ProducerEpoch})
			}
		case *kmsg.EndTxnResponse:
			if resp.ErrorCode == 0 && resp.Version >= 5 {
				s.learn(identity{resp.ProducerID, resp.ProducerEpoch})
			}
		}
	}
}

// learn lets anybody use an identity that somebody was told: both ids share them, which makes some forged.
func (s *sim) learn(i identity) {
	if i.epoch > lastClientEpoch {
		s.failf("a client is given %v", i)
	}
	for id := range s.known {
		s.known[id] = append(s.known[id][max(0, len(s.known[id])-6):], i)
	}
}

// order checks what markers are asked for.
func (s *sim) order(m Markers) {
	x := s.txns[m.ID]
	if x == nil || !x.ended || m.Commit != x.commit || x.by != (identity{m.ProducerID, m.ProducerEpoch}) || m.CoordinatorEpoch != s.epoch {
		s.failf("%s: markers %+v of another transaction", m.ID, m)
	}
	for _, t := range x.topics {
		for _, p := range t.Partitions {
			if _, ok := x.markers[place{t.Topic, p}]; !ok && !has(m.Topics, t.Topic, p) {
				s.failf("%s: no marker asked for %s/%d", m.ID, t.Topic, p)
			}
		}
	}
	if x.order == 0 {
		for _, old := range s.orders {
			if old.ID == m.ID && old.Order == m.Order {
				s.failf("%s: order %d was another transaction's", m.ID, m.Order)
			}
		}
		x.order = m.Order
	}
	if x.order != m.Order {
		s.failf("%s: order %d was %d before", m.ID, m.Order, x.order)
	}
	if !hasAll(x.topics, m.Topics) {
		s.failf("%s: markers for strangers: %v", m.ID, m.Topics)
	}
	s.orders = append(s.orders, m)
}

// mark writes some of the markers of an order. Of an order whose transaction is complete there is only late news.
func (s *sim) mark() {
	if len(s.orders) == 0 {
		return
	}
	i := s.pick(len(s.orders))
	m := s.orders[i]
	var done []Topic
	for _, t := range m.Topics {
		for _, p := range t.Partitions {
			if s.pick(3) > 0 {
				done = append(done, Topic{t.Topic, []int32{p}})
			}
		}
	}
	if s.pick(3) == 0 {
		s.orders = slices.Delete(s.orders, i, i+1) // lost
	}
	s.written(m, done, s.pick(2) == 0)
}

func (s *sim) written(m Markers, done []Topic, begin bool) {
	for _, t := range done {
		for _, p := range t.Partitions {
			if x := s.txns[m.ID]; x != nil && x.order == m.Order {
				at := place{t.Topic, p}
				if commit, ok := x.markers[at]; ok && commit != m.Commit {
					s.failf("%s: %v is told both", m.ID, at)
				}
				x.markers[at] = m.Commit
			}
		}
	}
	c := &MarkersWritten{ID: m.ID, Order: m.Order, Topics: done}
	if !s.admitted(c) {
		return
	}
	if !begin {
		s.do(c)
		return
	}
	with := &Completed{MarkersWritten: *c}
	for range 1 + s.pick(2) {
		by := s.producer(m.ID)
		if s.pick(3) == 0 {
			req := kmsg.NewPtrAddOffsetsToTxnRequest()
			req.Version, req.TransactionalID, req.ProducerID, req.ProducerEpoch = 4, m.ID, by.id, by.epoch
			with.Then = append(with.Then, &AddOffsets{Token: s.ask("add offsets"), Req: req, Partition: int32(s.pick(2))})
			continue
		}
		add := &AddPartitions{Token: s.ask("add"), Version: []int16{3, 5}[s.pick(2)], Txn: kmsg.NewAddPartitionsToTxnRequestTransaction()}
		add.Txn.TransactionalID, add.Txn.ProducerID, add.Txn.ProducerEpoch = m.ID, by.id, by.epoch
		for _, t := range s.topics() {
			ct := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
			ct.Topic, ct.Partitions = t.Topic, t.Partitions
			add.Txn.Topics = append(add.Txn.Topics, ct)
		}
		with.Then = append(with.Then, add)
	}
	s.do(with)
}

// takeOver makes a new coordinator of the log, or leads on in the next epoch.
func (s *sim) takeOver() {
	s.epoch++
	if s.pick(3) > 0 {
		s.tracef("a new coordinator")
		s.flying = nil // those that are not in the log by now never will be
		s.asked = map[uint64]string{}
		s.shard = s.replay()
		s.orders = nil // they are the old shard's
		for _, x := range s.txns {
			x.order = 0
		}
	} else {
		s.tracef("the same coordinator, in another epoch")
	}
	s.loaded()
}

func (s *sim) loaded() {
	asked := s.shard.Loaded(s.epoch)
	want := 0
	for _, e := range s.shard.entries {
		if e.m.state.prepared() {
			want++
		}
	}
	if len(asked) != want {
		s.failf("%d orders of markers after a takeover, of %d", len(asked), want)
	}
	for _, m := range asked {
		s.order(m)
	}
}

// check is what must always hold.
func (s *sim) check() {
	var bytes int64
	for id, e := range s.shard.entries {
		bytes += e.size(id)
		m := e.m
		if e.bytes != e.size(id) {
			s.failf("%s: %d bytes counted, %d found", id, e.bytes, e.size(id))
		}
		if m.state.atRest() && len(m.topics) > 0 || !m.state.prepared() && len(e.unmarked) > 0 || !m.state.prepared() && m.nextID != -1 {
			s.failf("%s: %s with %v, %d unmarked, next %d", id, m.state, m.topics, len(e.unmarked), m.nextID)
		}
		if places(union(nil, m.topics)) != places(m.topics) {
			s.failf("%s: %v is not in order", id, m.topics)
		}
		if n := count(m.topics); n > s.cfg.MaxPartitions {
			s.failf("%s: %d partitions", id, n)
		}
		if m.state.prepared() && len(m.topics) == 0 {
			s.failf("%s: waits for no marker", id)
		}
		if m.state == Ongoing && m.epoch > lastClientEpoch {
			s.failf("%s: a transaction of epoch %d", id, m.epoch)
		}
		for at := range e.unmarked {
			if !has(m.topics, at.topic, at.partition) {
				s.failf("%s: no marker in %v, which is not in the transaction", id, at)
			}
		}
		x := s.txns[id]
		if (x != nil) != (m.state == Ongoing || m.state.prepared()) || x != nil && x.ended != m.state.prepared() {
			s.failf("%s: %s, and the records say %+v", id, m.state, x)
		}
	}
	if bytes != s.shard.Bytes() {
		s.failf("%d bytes counted, %d found", s.shard.Bytes(), bytes)
	}
}

// replay reads the log into a new shard, which must know what the old one knows of the log.
func (s *sim) replay() *Shard {
	fresh := NewShard(s.cfg)
	for i, r := range s.log {
		if err := fresh.Apply(r); err != nil {
			s.failf("replay: %v", err)
		}
		if got := durable(fresh); got != s.after[i] {
			s.failf("%d records replay to\n%s\nthere was\n%s", i+1, got, s.after[i])
		}
	}
	for id, e := range fresh.entries {
		// Below transaction.version 1 there is no room for it in a record.
		if live := s.shard.entries[id]; e.last != live.last && (s.cfg.TransactionVersion > 0 || e.last != -1) {
			s.failf("%s: the last epoch is %d after a replay, was %d", id, e.last, live.last)
		}
	}
	return fresh
}

// durable is what a shard knows that is in the log.
func durable(s *Shard) string {
	var b strings.Builder
	for _, id := range s.IDs() {
		fmt.Fprintf(&b, "%s: %s\n", id, s.entries[id].m.text())
	}
	return b.String()
}

// compacted is a compaction of the log: of every key the newest record, some older ones, tombstones at random.
func (s *sim) compacted() (kept []Record) {
	last := map[string]int{}
	for i, r := range s.log {
		last[string(r.Key)] = i
	}
	for i, r := range s.log {
		// A tombstone goes only after what it removes.
		gone := s.log[last[string(r.Key)]].Value == nil
		if newest := last[string(r.Key)] == i; newest && r.Value != nil || !gone && s.pick(3) == 0 {
			kept = append(kept, r)
		}
	}
	return kept
}

// finish lets everything come to an end: whatever happened before, no transaction waits for ever.
func (s *sim) finish() {
	for len(s.flying) > 0 {
		s.landOne()
	}
	s.check()
	fresh := s.replay()
	c := NewShard(s.cfg)
	for _, r := range s.compacted() {
		if err := c.Apply(r); err != nil {
			s.failf("compacted: %v", err)
		}
	}
	if got, want := durable(c), durable(fresh); got != want {
		s.failf("a compacted log replays to\n%s\nthe whole log to\n%s", got, want)
	}
	s.tracef("the end: time passes")
	s.now = s.now.Add(time.Minute)
	for range 50 {
		open := false
		for _, id := range s.shard.IDs() {
			if e := s.shard.entries[id]; !e.m.state.atRest() {
				open = true
				s.orders = nil
				s.do(&Tick{ID: id})
				for len(s.flying) > 0 {
					s.landOne()
				}
				for _, m := range s.orders {
					s.written(m, m.Topics, false)
				}
				for len(s.flying) > 0 {
					s.landOne()
				}
			}
		}
		s.check()
		if !open {
			return
		}
	}
	s.failf("a transaction does not end")
}

func TestRandomCommands(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	seen := map[State]int{}
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := newSim(t, func() int { return rnd.IntN(1 << 20) })
		s.tracef("seed %d", seed)
		for range 400 {
			s.step()
		}
		s.finish()
		for _, r := range s.log {
			if _, m, _ := decode(r); m != nil {
				seen[m.state]++
			} else {
				seen[Dead]++
			}
		}
	}
	for st := Empty; st <= Dead; st++ {
		if seen[st] < rounds/4 {
			t.Errorf("%d records of state %s: the walk does not get there", seen[st], st)
		}
	}
}

// FuzzCommands lets the fuzzer choose the order of events.
func FuzzCommands(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		b := make([]byte, 2000)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<13 {
			return
		}
		n := 0
		s := newSim(t, func() int {
			n++
			if n > len(b) {
				return n // goes on, so that what is open ends
			}
			return int(b[n-1])
		})
		for n < len(b) {
			s.step()
		}
		s.finish()
	})
}

// FuzzApply feeds a shard records that it did not write.
func FuzzApply(f *testing.F) {
	for _, r := range samples() {
		f.Add(r.Key, r.Value)
	}
	now := time.UnixMilli(1 << 40)
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if len(v) == 0 {
			v = nil
		}
		s := NewShard(Config{})
		if err := s.Apply(Record{Key: k, Value: v}); err != nil {
			if len(s.IDs()) > 0 || s.Bytes() != 0 {
				t.Fatalf("%v, and taken over", err)
			}
			if errors.Is(err, ErrUnknownVersion) && len(k) >= 2 && k[0] == 0 && k[1] == 0 && len(v) >= 2 && v[0] == 0 && v[1] < 2 {
				t.Fatalf("%v: that version is known", err)
			}
			return
		}
		for _, m := range s.Loaded(1) {
			r := s.Handle(now, &MarkersWritten{ID: m.ID, Order: m.Order, Topics: m.Topics})
			if len(r.Records) != 1 {
				t.Fatalf("%+v is written, and the transaction not complete", m)
			}
		}
		for _, id := range s.IDs() {
			s.Deadline(id)
			s.Describe(id)
			for _, c := range []Command{&Tick{ID: id}, &Expire{ID: id}} {
				if r := s.Handle(now.Add(50*365*24*time.Hour), c); r.NeedProducerID {
					s.Handle(now, &Supplied{Command: c, ProducerID: 1})
				}
			}
		}
	})
}
