package coordinator

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/broker/txn"
	"github.com/varve/varve/wal/batch"
)

// Transactions is the transaction coordinator of one broker.
type Transactions struct {
	*host[*txnMachine, txn.Command, txn.Result]
}

// Markers is what a transaction coordinator needs of the partitions that transactions write to.
type Markers interface {
	// Write writes a marker to the leader of a partition: one of those that m names, and with its outcome. done is called
	// once, from any goroutine, with 0 when the marker is committed, or with the error code for which it was not. It does
	// not block. What goes to one broker may wait for Send, so as to go together.
	Write(topic string, partition int32, m *txn.Markers, done func(code int16))
	// Send has everything on its way that Write was told before.
	Send()
	// Exists says whether there is such a partition: one that is gone needs no marker.
	Exists(topic string, partition int32) bool
}

// NewTransactions returns a coordinator that leads nothing. The number of partitions is that of __transaction_state; 0
// until the topic exists.
func NewTransactions(o Options, partitions int32) *Transactions {
	return &Transactions{newHost(o, kind[*txnMachine, txn.Command, txn.Result]{
		name: "transaction state",
		machine: func(s *txnShard) *txnMachine {
			return &txnMachine{Shard: txn.NewShard(s.o.Transactions), s: s, marking: map[string]*marking{}, waiting: map[string][]*patient{}}
		},
		of: func(c txn.Command) subject {
			if l, ok := c.(leading); ok {
				c = l.Command
			}
			_, tick := c.(*txn.Tick)
			on := subject{c.TransactionalID(), exclusive, tick}
			if txn.AccessOf(c) == txn.Free {
				on.access = free
			}
			return on
		},
		tick:   func(key string) txn.Command { return &txn.Tick{ID: key} },
		expire: func(key string) txn.Command { return &txn.Expire{ID: key} },
		refused: func(m *txnMachine, c txn.Command, code int16) {
			for _, rep := range txn.Refused(c, code) {
				m.s.answer(rep.Token, rep.Response)
			}
		},
	}, partitions)}
}

type txnShard = shard[*txnMachine, txn.Command, txn.Result]

// txnMachine is the transactional ids of a partition as a shard drives them, and the markers that they have written.
type txnMachine struct {
	*txn.Shard
	s *txnShard

	marking  map[string]*marking
	waiting  map[string][]*patient // requests that wait for the markers of their id
	attempts int                   // under way
	backlog  []attempt             // that wait for their turn
	warnedAt time.Time             // of the last failed attempt that was logged
}

func (m *txnMachine) Handle(now time.Time, c txn.Command) (txn.Result, outcome) {
	l, confirmed := c.(leading)
	if confirmed {
		c = l.Command
	}
	p, again := c.(*patient)
	if again {
		c = p.Command
	}
	if m.Ending(c.TransactionalID()) && mayWait(c) {
		if !again {
			p = &patient{Command: c, until: now.Add(m.s.o.Patience)}
		}
		if now.Before(p.until) {
			m.putOff(p, now)
			return txn.Result{}, outcome{key: c.TransactionalID(), later: true}
		}
	}
	r := m.Shard.Handle(now, c)
	if r.NeedProducerID {
		m.supply(c)
		return r, outcome{key: r.ID, later: true}
	}
	if !confirmed && assures(c, r) && m.confirm(c) {
		return r, outcome{key: r.ID, later: true}
	}
	return r, outcome{key: r.ID, records: len(r.Records), moves: r.Moves()}
}

// leading is a command that comes back after it was confirmed that this broker leads.
type leading struct{ txn.Command }

// assures says whether a result tells a client from memory alone that something is done: there is no append that would fail if
// another broker leads by now. A producer that keeps its epoch and asks for the end of its transaction would be told by a
// coordinator that has been replaced, and does not know it, that the transaction has ended, which is the one before; and a batch
// that comes when its transaction has ended would be let into the partition, where nobody would end it any more.
func assures(c txn.Command, r txn.Result) bool {
	if len(r.Records) > 0 || len(r.Replies) == 0 {
		return false
	}
	switch resp := r.Replies[0].Response.(type) {
	case *kmsg.EndTxnResponse:
		return resp.ErrorCode == protocol.CodeNone
	case *kmsg.AddOffsetsToTxnResponse:
		return resp.ErrorCode == protocol.CodeNone
	case *kmsg.AddPartitionsToTxnResponse:
		if resp.Version < 4 {
			return len(resp.Topics) > 0 && len(resp.Topics[0].Partitions) > 0 && resp.Topics[0].Partitions[0].ErrorCode == protocol.CodeNone
		}
		for _, t := range resp.Transactions[0].Topics { // of a verification, some may be in the transaction and some not
			for _, p := range t.Partitions {
				if p.ErrorCode == protocol.CodeNone {
					return true
				}
			}
		}
	}
	return false
}

// confirm finds out whether this broker leads, and brings the command back. It is false where there is nobody to ask.
func (m *txnMachine) confirm(c txn.Command) bool {
	log, ok := m.s.o.Log.(ConfirmLog)
	if !ok {
		return false
	}
	if s, ok := c.(*txn.Supplied); ok {
		c = s.Command // the producer id was not needed
	}
	token := tokenOf(c)
	if token == 0 {
		return false // requests that waited for markers: they would be lost
	}
	m.s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(m.s.ctx, m.s.o.ReplyTimeout)
		defer cancel()
		m.s.resume(token, leading{c}, log.Confirm(ctx, m.s.partition))
	})
	return true
}

// supplyTimeout bounds the wait for a producer id.
const supplyTimeout = 10 * time.Second

// supply gets a producer id and brings the command back with it. Others of the same id may come in between; then the
// command is decided anew, and the producer id may be lost.
func (m *txnMachine) supply(c txn.Command) {
	m.s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(m.s.ctx, supplyTimeout)
		defer cancel()
		id, err := m.s.o.ProducerID(ctx)
		if err != nil {
			if m.s.ctx.Err() == nil {
				m.s.log.Warn("no producer id for a transactional id", "id", c.TransactionalID(), "err", err)
			}
			m.s.resume(tokenOf(c), c, protocol.CodeCoordinatorLoadInProgress) // clients ask again
			return
		}
		m.s.resume(tokenOf(c), &txn.Supplied{Command: c, ProducerID: id}, protocol.CodeNone)
	})
}

// tokenOf is the token of the request that a command is, or 0.
func tokenOf(c txn.Command) uint64 {
	switch c := c.(type) {
	case *txn.Init:
		return c.Token
	case *txn.AddPartitions:
		return c.Token
	case *txn.AddOffsets:
		return c.Token
	case *txn.End:
		return c.Token
	}
	return 0
}

func (m *txnMachine) Record(r txn.Result, i int) (key, value []byte) {
	return r.Records[i].Key, r.Records[i].Value
}

// Apply passes over control batches: no transaction writes here.
func (m *txnMachine) Apply(h batch.Header, _ int64, key, value []byte) error {
	if h.Control() {
		return nil
	}
	return m.Shard.Apply(txn.Record{Key: key, Value: value})
}

func (m *txnMachine) Settle(now time.Time, r txn.Result) {
	m.Shard.Settle(now, r)
	for _, rep := range r.Replies {
		m.s.answer(rep.Token, rep.Response)
	}
	for _, n := range r.Notes {
		if n.Kind == txn.NoteComplete {
			delete(m.marking, n.ID)
			for _, p := range m.waiting[n.ID] {
				p.timer.Stop()
				m.s.resume(tokenOf(p.Command), p, protocol.CodeNone)
			}
			delete(m.waiting, n.ID)
		}
		m.tell(n)
	}
	if r.Markers != nil {
		m.mark(*r.Markers)
	}
}

func (m *txnMachine) tell(n txn.Note) {
	m.s.ev.Transaction(m.s.partition, n)
	level := slog.LevelDebug
	if n.Kind == txn.NoteTimedOut || n.Kind == txn.NoteRefused {
		level = slog.LevelInfo
	}
	if m.s.log.Enabled(m.s.ctx, level) {
		m.s.log.Log(m.s.ctx, level, txnNoteText[n.Kind], "id", n.ID, "producer_id", n.ProducerID, "epoch", n.Epoch,
			"partitions", n.Partitions, "age", n.Age, "reason", n.Reason)
	}
}

var txnNoteText = map[txn.NoteKind]string{
	txn.NoteInitialized: "transactional producer initialized", txn.NoteBegun: "transaction begun", txn.NoteCommitting: "transaction committed",
	txn.NoteAborting: "transaction aborted", txn.NoteFenced: "transaction aborted: another producer has its id",
	txn.NoteTimedOut: "transaction aborted: it took longer than its timeout", txn.NoteComplete: "transaction complete",
	txn.NoteExpired: "transactional id expired", txn.NoteRefused: "partitions of a transaction refused",
}

func (m *txnMachine) Fail(r txn.Result, code int16) {
	for _, rep := range txn.Fail(r, code) {
		m.s.answer(rep.Token, rep.Response)
	}
}

// Loaded leads to no commands: Led asks for what is to be done.
func (m *txnMachine) Loaded(time.Time) []txn.Command { return nil }

// Led has the markers written that the log asks for, in the new epoch.
func (m *txnMachine) Led(epoch int32) {
	for _, k := range m.Shard.Loaded(epoch) {
		m.mark(k)
	}
}

func (m *txnMachine) Grows(c txn.Command) growth {
	switch c.(type) {
	case *txn.Init:
		if !m.Has(c.TransactionalID()) {
			return fresh
		}
	case *txn.AddPartitions, *txn.AddOffsets:
		if txn.AccessOf(c) != txn.Free {
			return further
		}
	}
	return noGrowth
}

func (m *txnMachine) Keys() []string { return m.IDs() }

// txnTally is what Stats has of a shard of transactional ids.
type txnTally struct {
	states [txn.PrepareEpochFence + 1]int
	oldest time.Time // when the oldest began that has not ended; zero: none
	bytes  int64
}

func (m *txnMachine) Count() tally {
	t := txnTally{states: m.Counts(), bytes: m.Bytes()}
	t.oldest, _ = m.Oldest()
	return t
}

func (t txnTally) line() []any {
	n := 0
	for _, k := range t.states {
		n += k
	}
	return []any{"ids", n, "ongoing", t.states[txn.Ongoing], "ending", t.states[txn.PrepareCommit] + t.states[txn.PrepareAbort]}
}

// ---- Waiting for markers

// patient is a request that begins a transaction, or takes an id over, while markers of the last transaction are being
// written. A client that is told CONCURRENT_TRANSACTIONS comes again after a while; mostly the markers take a few syncs.
//
// Until the last marker only that one is waited for, and not for the record that the transaction is complete: the machine
// appends what the request begins together with that record, as Completed says. One append is as good as two, since none of
// both is answered or taken over before both are committed.
type patient struct {
	txn.Command
	until time.Time
	timer *time.Timer
}

// mayWait says whether a command waits for markers. EndTxn does not: whoever is told CONCURRENT_TRANSACTIONS has not begun
// the transaction that it ends. Neither does a verification, which is not for a client that has just begun.
func mayWait(c txn.Command) bool {
	switch c.(type) {
	case *txn.Init:
		return true
	case *txn.AddPartitions, *txn.AddOffsets:
		return txn.AccessOf(c) != txn.Free
	}
	return false
}

func (m *txnMachine) putOff(p *patient, now time.Time) {
	id := p.TransactionalID()
	m.waiting[id] = append(m.waiting[id], p)
	p.timer = time.AfterFunc(p.until.Sub(now), func() {
		m.s.do(func(m *txnMachine) {
			if i := slices.Index(m.waiting[id], p); i >= 0 {
				m.drop(id, i)
				m.s.resume(tokenOf(p.Command), p, protocol.CodeNone)
			}
		})
	})
}

func (m *txnMachine) drop(id string, i int) {
	if m.waiting[id] = slices.Delete(m.waiting[id], i, i+1); len(m.waiting[id]) == 0 {
		delete(m.waiting, id)
	}
}

// next are the waiting requests that may go to the log with the record that the transaction is complete. They are no longer
// put off.
func (m *txnMachine) next(id string) (cmds []txn.Command) {
	for i := 0; i < len(m.waiting[id]); {
		p := m.waiting[id][i]
		if _, init := p.Command.(*txn.Init); init {
			i++
			continue
		}
		p.timer.Stop()
		m.drop(id, i)
		m.s.nLater--
		cmds = append(cmds, p.Command)
	}
	return cmds
}

// ---- Markers

// marking is the end of one transaction as its partitions come to know it.
//
// A partition that has its marker never gets it again in the same transaction, however often the machine asks: its
// producer may be in the next transaction by then, with the same epoch. So it has one attempt at a time, and none once the
// machine was told.
type marking struct {
	m    txn.Markers
	at   map[place]markState
	left int     // have no marker yet
	told []place // have their marker, and the machine does not know yet
}

type place struct {
	topic     string
	partition int32
}

type markState int8

const (
	writing markState = iota // or waiting for its turn, or for the next attempt
	written
)

// attempt is a marker on its way to a partition.
type attempt struct {
	k     *marking
	at    place
	again time.Duration // after how long to try the next time
}

// Backoff of markers, and how many attempts of a shard are under way at most.
const (
	markerBackoff    = 10 * time.Millisecond
	maxMarkerBackoff = 5 * time.Second
	maxAttempts      = 256
)

// mark has markers written. What is under way goes on; what is done is told again.
func (m *txnMachine) mark(want txn.Markers) {
	k := m.marking[want.ID]
	if k == nil || k.m.Order != want.Order {
		k = &marking{at: map[place]markState{}}
		m.marking[want.ID] = k
	}
	k.m = want
	if len(want.Topics) == 0 {
		m.written(k, txn.MarkersWritten{ID: want.ID, Order: want.Order})
		return
	}
	for _, t := range want.Topics {
		for _, p := range t.Partitions {
			at := place{t.Topic, p}
			switch st, ok := k.at[at]; {
			case !ok:
				k.at[at] = writing
				k.left++
				m.try(attempt{k, at, markerBackoff})
			case st == written:
				m.marked(k, at)
			}
		}
	}
	m.s.o.Markers.Send()
}

// try writes a marker, if it is still wanted. Send comes after it.
func (m *txnMachine) try(a attempt) {
	if m.marking[a.k.m.ID] != a.k {
		return // the transaction is complete; this cannot be its last marker
	}
	if !m.s.o.Markers.Exists(a.at.topic, a.at.partition) {
		m.marked(a.k, a.at)
		return
	}
	if m.attempts >= maxAttempts {
		m.backlog = append(m.backlog, a)
		return
	}
	m.attempts++
	want := a.k.m
	m.s.o.Markers.Write(a.at.topic, a.at.partition, &want, func(code int16) {
		m.s.do(func(m *txnMachine) { m.tried(a, code) })
	})
}

func (m *txnMachine) tried(a attempt, code int16) {
	m.attempts--
	// One that is not wanted any more takes no place: the next has its turn.
	for len(m.backlog) > 0 && m.attempts < maxAttempts {
		next := m.backlog[0]
		m.backlog[0] = attempt{}
		m.backlog = m.backlog[1:]
		m.try(next)
	}
	m.s.o.Markers.Send()
	if code == protocol.CodeNone {
		m.marked(a.k, a.at)
		return
	}
	if now := time.Now(); now.Sub(m.warnedAt) >= 10*time.Second && code != protocol.CodeNotLeaderOrFollower {
		m.warnedAt = now
		m.s.log.Warn("a marker could not be written and is tried again", "id", a.k.m.ID, "producer_id", a.k.m.ProducerID, "epoch", a.k.m.ProducerEpoch,
			"topic", a.at.topic, "of_partition", a.at.partition, "error", protocol.Name(code), "again_in", a.again)
	}
	next := a
	next.again = min(2*a.again, maxMarkerBackoff)
	time.AfterFunc(a.again, func() { m.s.do(func(m *txnMachine) { m.try(next); m.s.o.Markers.Send() }) })
}

// marked tells the machine of a marker, together with those that come until it is its turn.
func (m *txnMachine) marked(k *marking, at place) {
	if k.at[at] == writing {
		k.at[at] = written
		k.left--
	}
	k.told = append(k.told, at)
	if len(k.told) == 1 {
		m.s.do(func(m *txnMachine) { m.report(k) })
	}
}

func (m *txnMachine) report(k *marking) {
	told := map[string][]int32{}
	for _, at := range k.told {
		told[at.topic] = append(told[at.topic], at.partition)
	}
	k.told = nil
	if m.marking[k.m.ID] != k {
		return
	}
	c := txn.MarkersWritten{ID: k.m.ID, Order: k.m.Order}
	for topic, ps := range told {
		c.Topics = append(c.Topics, txn.Topic{Topic: topic, Partitions: ps})
	}
	m.written(k, c)
}

// written tells the machine of markers, and with the last of them of those who wait for it.
func (m *txnMachine) written(k *marking, c txn.MarkersWritten) {
	if k.left == 0 {
		if next := m.next(c.ID); len(next) > 0 {
			m.s.own(&txn.Completed{MarkersWritten: c, Then: next})
			return
		}
	}
	m.s.own(&c)
}

// ---- Stats

// TransactionStats are what the coordinator holds.
type TransactionStats struct {
	Load
	IDs    map[string]int // transactional ids by state
	Oldest time.Time      // when the oldest transaction began that has not ended; zero: there is none
	Bytes  int64
}

// Stats adds up what the shards hold, as of the last command of each.
func (c *Transactions) Stats() TransactionStats {
	st := TransactionStats{IDs: map[string]int{}}
	st.Load = c.tallies(func(of tally) {
		t := of.(txnTally)
		st.Bytes += t.bytes
		for i, n := range t.states {
			if n > 0 {
				st.IDs[txn.State(i).String()] += n
			}
		}
		if !t.oldest.IsZero() && (st.Oldest.IsZero() || t.oldest.Before(st.Oldest)) {
			st.Oldest = t.oldest
		}
	})
	return st
}

// ---- Handlers. As for groups: they take a decoded request and return its response, of the same version.

// InitProducerID serves key 22 of producers with a transactional id, versions 0-5.
func (c *Transactions) InitProducerID(ctx context.Context, req *kmsg.InitProducerIDRequest) *kmsg.InitProducerIDResponse {
	began := time.Now()
	r := c.initProducerID(ctx, req)
	if r.ErrorCode == protocol.CodeConcurrentTransactions && time.Since(began) < c.o.Patience {
		r = c.initProducerID(ctx, req) // it has aborted a transaction; now it waits for that
	}
	return r
}

func (c *Transactions) initProducerID(ctx context.Context, req *kmsg.InitProducerIDRequest) *kmsg.InitProducerIDResponse {
	id := ""
	if req.TransactionalID != nil {
		id = *req.TransactionalID
	}
	if code := c.o.Transactions.Refuses(req); code != protocol.CodeNone {
		r := kmsg.NewPtrInitProducerIDResponse()
		r.Version, r.ProducerID, r.ProducerEpoch, r.ErrorCode = req.Version, -1, -1, code
		return r
	}
	r, code := request[*kmsg.InitProducerIDResponse](ctx, c.host, id, c.o.ReplyTimeout, func(token uint64) txn.Command {
		return &txn.Init{Token: token, Req: req}
	})
	if code != protocol.CodeNone {
		r = kmsg.NewPtrInitProducerIDResponse()
		r.ProducerID, r.ProducerEpoch, r.ErrorCode = -1, -1, code
	}
	r.Version = req.Version
	return r
}

// AddPartitionsToTxn adds partitions to each of several transactions, or verifies that they are in it, and returns one
// answer for each, in the form that the version has. They are handled side by side.
func (c *Transactions) AddPartitionsToTxn(ctx context.Context, version int16, txns []kmsg.AddPartitionsToTxnRequestTransaction) []*kmsg.AddPartitionsToTxnResponse {
	ctx, cancel := context.WithTimeout(ctx, c.o.ReplyTimeout)
	defer cancel()
	cmds, calls := make([]*txn.AddPartitions, len(txns)), make([]*call, len(txns))
	for i := range txns {
		calls[i] = c.begin(txns[i].TransactionalID, func(token uint64) txn.Command {
			cmds[i] = &txn.AddPartitions{Token: token, Version: version, Txn: txns[i]}
			return cmds[i]
		})
	}
	out := make([]*kmsg.AddPartitionsToTxnResponse, len(txns))
	for i, call := range calls {
		if a := await(ctx, call, 0); a.resp != nil {
			out[i] = a.resp.(*kmsg.AddPartitionsToTxnResponse)
		} else {
			out[i] = txn.AddPartitionsError(cmds[i], a.code)
		}
	}
	return out
}

// AddOffsetsToTxn serves key 25, versions 0-4. partition is the group's, of __consumer_offsets.
func (c *Transactions) AddOffsetsToTxn(ctx context.Context, req *kmsg.AddOffsetsToTxnRequest, partition int32) *kmsg.AddOffsetsToTxnResponse {
	r, code := request[*kmsg.AddOffsetsToTxnResponse](ctx, c.host, req.TransactionalID, c.o.ReplyTimeout, func(token uint64) txn.Command {
		return &txn.AddOffsets{Token: token, Req: req, Partition: partition}
	})
	if code != protocol.CodeNone {
		r = kmsg.NewPtrAddOffsetsToTxnResponse()
		r.ErrorCode = code
	}
	r.Version = req.Version
	return r
}

// EndTxn serves key 26, versions 0-5.
func (c *Transactions) EndTxn(ctx context.Context, req *kmsg.EndTxnRequest) *kmsg.EndTxnResponse {
	r, code := request[*kmsg.EndTxnResponse](ctx, c.host, req.TransactionalID, c.o.ReplyTimeout, func(token uint64) txn.Command {
		return &txn.End{Token: token, Req: req}
	})
	if code != protocol.CodeNone {
		r = kmsg.NewPtrEndTxnResponse()
		r.ProducerID, r.ProducerEpoch, r.ErrorCode = -1, -1, code
	}
	r.Version = req.Version
	return r
}

// DescribeTransactions serves key 65, version 0.
func (c *Transactions) DescribeTransactions(ctx context.Context, req *kmsg.DescribeTransactionsRequest) *kmsg.DescribeTransactionsResponse {
	resp := kmsg.NewPtrDescribeTransactionsResponse()
	resp.Version = req.Version
	for _, id := range req.TransactionalIDs {
		d, code := look(ctx, c.host, id, false, func(m *txnMachine) kmsg.DescribeTransactionsResponseTransactionState { return m.Describe(id) })
		if code != protocol.CodeNone {
			d = kmsg.NewDescribeTransactionsResponseTransactionState()
			d.TransactionalID, d.ErrorCode = id, code
		}
		resp.TransactionStates = append(resp.TransactionStates, d)
	}
	return resp
}

// ListTransactions serves key 66, versions 0-2: the transactional ids that this broker coordinates, in order within each
// partition.
func (c *Transactions) ListTransactions(ctx context.Context, req *kmsg.ListTransactionsRequest) *kmsg.ListTransactionsResponse {
	resp := kmsg.NewPtrListTransactionsResponse()
	resp.Version = req.Version
	filter, unknown, code := txn.NewFilter(req)
	if code != protocol.CodeNone {
		resp.ErrorCode = code
		return resp
	}
	resp.UnknownStateFilters = unknown
	for _, s := range c.all() {
		list, code := lookInto(ctx, c.host, s, "", func(m *txnMachine) []kmsg.ListTransactionsResponseTransactionState {
			return m.List(time.Now(), filter)
		})
		switch code {
		case protocol.CodeNone:
			for _, t := range list {
				if ctx.Err() != nil {
					break // nobody waits for it any more
				}
				if filter.Matches(t.TransactionalID) {
					resp.TransactionStates = append(resp.TransactionStates, t)
				}
			}
		case protocol.CodeNotCoordinator: // has just moved
		default:
			resp.TransactionStates, resp.ErrorCode = nil, code
			return resp
		}
	}
	return resp
}
