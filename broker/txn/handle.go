package txn

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// turn is the handling of one command.
type turn struct {
	cfg   *Config
	now   time.Time
	id    string
	e     *entry // nil if the shard does not know the id
	m     metadata
	fresh int64 // a producer id that nobody has; -1 none
	r     Result
}

// Handle decides what a command leads to and changes nothing: see the package comment for what to do with the result.
func (s *Shard) Handle(now time.Time, c Command) Result {
	t := &turn{cfg: &s.cfg, now: now, id: c.TransactionalID(), fresh: -1}
	if given, ok := c.(*Supplied); ok {
		c, t.fresh = given.Command, given.ProducerID
	}
	t.r.ID, t.r.cmd = t.id, c
	if t.e = s.entries[t.id]; t.e != nil {
		t.m, t.r.version, t.r.last = t.e.m, t.e.version, t.e.last
		t.m.last = t.e.last
	}
	switch c := c.(type) {
	case *Init:
		t.init(c)
	case *AddPartitions:
		t.addPartitions(c)
	case *AddOffsets:
		t.addOffsets(c)
	case *End:
		t.end(c)
	case *MarkersWritten:
		t.markersWritten(c)
	case *Completed:
		t.markersWritten(&c.MarkersWritten)
		for _, next := range c.Then {
			switch next := next.(type) {
			case *AddPartitions:
				t.addPartitions(next)
			case *AddOffsets:
				t.addOffsets(next)
			default:
				panic(fmt.Sprintf("txn: %T cannot wait for markers", next))
			}
		}
	case *Tick:
		t.tick()
	case *Expire:
		t.expire()
	default:
		panic(fmt.Sprintf("txn: unknown command %T", c))
	}
	return t.r
}

// Fail is what to answer when a result's append failed with that code, or when there was no producer id to supply.
func Fail(r Result, code int16) []Reply {
	switch c := r.cmd.(type) {
	case *Init:
		return []Reply{{c.Token, initReply(c, -1, -1, code)}}
	case *AddPartitions:
		return []Reply{{c.Token, addPartitionsReply(c, func(string, int32) int16 { return code })}}
	case *AddOffsets:
		return []Reply{{c.Token, addOffsetsReply(c, code)}}
	case *End:
		return []Reply{{c.Token, endReply(c, -1, -1, code)}}
	case *Completed:
		var all []Reply
		for _, next := range c.Then {
			all = append(all, Fail(Result{cmd: next}, code)...)
		}
		return all
	}
	return nil // nobody asked
}

// Refused is what to answer to a command that was not handled.
func Refused(c Command, code int16) []Reply { return Fail(Result{cmd: c}, code) }

func (t *turn) reply(token uint64, resp kmsg.Response) {
	t.r.Replies = append(t.r.Replies, Reply{token, resp})
}

func (t *turn) note(n Note) {
	n.ID, n.ProducerID, n.Epoch = t.id, t.m.producerID, t.m.epoch
	t.r.Notes = append(t.r.Notes, n)
}

// age is how long the transaction has been going on.
func (t *turn) age() time.Duration {
	if t.m.started < 0 {
		return 0
	}
	return max(t.now.Sub(time.UnixMilli(t.m.started)), 0)
}

// move is a transition: a record, and the state from which the turn goes on.
func (t *turn) move(to metadata) {
	if !legal(t.m.state, to.state) {
		panic(fmt.Sprintf("txn: %q: from %s to %s", t.id, t.m.state, to.state))
	}
	to.previousID, to.updated = t.m.producerID, t.now.UnixMilli()
	t.r.Records = append(t.r.Records, recordOf(t.id, to, t.cfg.TransactionVersion))
	t.r.settles, t.r.last, t.r.ongoing = true, to.last, to.state == Ongoing
	t.m = to
}

// unused takes the producer id that was supplied, or asks for one. If it does, the turn must end.
func (t *turn) unused() (id int64, ok bool) {
	t.r.NeedProducerID = t.fresh < 0
	return t.fresh, t.fresh >= 0
}

// older is the code for clients that do not know PRODUCER_FENCED yet.
func older(code, version, since int16) int16 {
	if code == codeProducerFenced && version < since {
		return codeInvalidProducerEpoch
	}
	return code
}

// maxID is the longest id that a record's key can hold.
const maxID = 1<<15 - 1

// ---- InitProducerId

func initReply(c *Init, id int64, epoch, code int16) *kmsg.InitProducerIDResponse {
	r := c.Req.ResponseKind().(*kmsg.InitProducerIDResponse)
	r.ProducerID, r.ProducerEpoch, r.ErrorCode = id, epoch, older(code, c.Req.Version, 4)
	return r
}

// Refuses is the code that an InitProducerId gets whoever coordinates its id, and whether or not there is a coordinator yet; 0 for
// one that a coordinator has to decide on. It looks at the timeout and at whether producer id and epoch are both there.
func (c Config) Refuses(req *kmsg.InitProducerIDRequest) int16 {
	timeout := time.Duration(req.TransactionTimeoutMillis) * time.Millisecond
	switch {
	case (req.ProducerID != -1) != (req.ProducerEpoch != -1):
		return codeInvalidRequest
	case timeout <= 0 || timeout > c.filled().MaxTimeout:
		return codeInvalidTransactionTimeout
	}
	return 0
}

func (t *turn) init(c *Init) {
	req := c.Req
	refuse := func(code int16) { t.reply(c.Token, initReply(c, -1, -1, code)) }
	expects := req.ProducerID != -1
	switch code := t.cfg.Refuses(req); {
	case t.id == "", len(t.id) > maxID:
		refuse(codeInvalidRequest)
		return
	case c.Enable2PC:
		// As if the principal lacked the right to it (KIP-939); there is nobody who has it.
		refuse(codeTransactionalIDAuthorizationFailed)
		return
	case c.KeepPreparedTxn:
		refuse(codeUnsupportedVersion)
		return
	case code != 0:
		refuse(code)
		return
	}
	if t.e == nil {
		// Whoever expects something else is taken for a producer whose id has expired.
		id, ok := t.unused()
		if !ok {
			return
		}
		t.m = metadata{producerID: id, nextID: -1, epoch: -1, last: -1}
		t.initialized(c, id, 0, -1)
		return
	}
	m, last := t.m, t.m.last
	current := req.ProducerID == m.producerID && req.ProducerEpoch == m.epoch && m.epoch <= lastClientEpoch
	// The answer to a request that named the last epoch was lost. Nobody else can have got the current one, or the last would
	// be forgotten.
	repeated := last >= 0 && req.ProducerEpoch == last && m.epoch <= lastClientEpoch &&
		(last < m.epoch && req.ProducerID == m.producerID || last > m.epoch && req.ProducerID == m.previousID)
	switch {
	case m.state.prepared():
		// Before all else: the producer may name an identity that it was told and that is current only after the markers.
		refuse(codeConcurrentTransactions)
	case expects && !current && !(repeated && m.state.atRest()):
		// Were there a transaction, Kafka would abort it, though the one who asks is fenced already.
		refuse(codeProducerFenced)
	case m.state == Ongoing:
		// The producer is told to ask again. Without an expected epoch it gets one above that of the abort then.
		if t.fence(NoteFenced) {
			refuse(codeConcurrentTransactions)
		}
	case repeated:
		t.initialized(c, m.producerID, m.epoch, last)
	default:
		last = -1 // whoever had an epoch until now is fenced
		if expects {
			last = m.epoch
		}
		if !exhausted(m.epoch) {
			t.initialized(c, m.producerID, m.epoch+1, last)
		} else if id, ok := t.unused(); ok {
			t.initialized(c, id, 0, last)
		}
	}
}

func (t *turn) initialized(c *Init, id int64, epoch, last int16) {
	to := t.m
	to.state, to.producerID, to.epoch, to.last = Empty, id, epoch, last
	to.timeout, to.topics, to.started = c.Req.TransactionTimeoutMillis, nil, -1
	t.move(to)
	t.note(Note{Kind: NoteInitialized})
	t.reply(c.Token, initReply(c, id, epoch, codeNone))
}

// ---- AddPartitionsToTxn, AddOffsetsToTxn

func addPartitionsReply(c *AddPartitions, code func(topic string, partition int32) int16) *kmsg.AddPartitionsToTxnResponse {
	r := kmsg.NewPtrAddPartitionsToTxnResponse()
	r.Version = c.Version
	if c.Version < 4 {
		for _, t := range c.Txn.Topics {
			rt := kmsg.NewAddPartitionsToTxnResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p, older(code(t.Topic, p), c.Version, 2)
				rt.Partitions = append(rt.Partitions, rp)
			}
			r.Topics = append(r.Topics, rt)
		}
		return r
	}
	txn := kmsg.NewAddPartitionsToTxnResponseTransaction()
	txn.TransactionalID = c.Txn.TransactionalID
	for _, t := range c.Txn.Topics {
		rt := kmsg.NewAddPartitionsToTxnResponseTransactionTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewAddPartitionsToTxnResponseTransactionTopicPartition()
			rp.Partition, rp.ErrorCode = p, code(t.Topic, p)
			rt.Partitions = append(rt.Partitions, rp)
		}
		txn.Topics = append(txn.Topics, rt)
	}
	r.Transactions = append(r.Transactions, txn)
	return r
}

// AddPartitionsError is the answer to a command that no shard could be asked to handle.
func AddPartitionsError(c *AddPartitions, code int16) *kmsg.AddPartitionsToTxnResponse {
	return addPartitionsReply(c, func(string, int32) int16 { return code })
}

func (t *turn) addPartitions(c *AddPartitions) {
	if c.verifies() {
		t.verify(c)
		return
	}
	version := int16(0)
	if c.Version >= 4 {
		version = bumps // a partition asks so for clients that leave it to ask
	}
	topics := make([]Topic, 0, len(c.Txn.Topics))
	for _, at := range c.Txn.Topics {
		topics = append(topics, Topic{at.Topic, at.Partitions})
	}
	code := t.add(c.Txn.ProducerID, c.Txn.ProducerEpoch, topics, version)
	t.reply(c.Token, addPartitionsReply(c, func(string, int32) int16 { return code }))
}

// verify says whether partitions are in the transaction: the guard of clients that do not bump epochs (KIP-890).
func (t *turn) verify(c *AddPartitions) {
	code := codeNone
	switch {
	case t.id == "":
		code = codeInvalidRequest
	case t.e == nil || t.m.producerID != c.Txn.ProducerID:
		code = codeInvalidProducerIDMapping
	case t.m.epoch != c.Txn.ProducerEpoch:
		code = codeProducerFenced
	case t.m.state.prepared():
		code = codeConcurrentTransactions
	}
	t.reply(c.Token, addPartitionsReply(c, func(topic string, partition int32) int16 {
		switch {
		case code != codeNone:
			return code
		case has(t.m.topics, topic, partition):
			return codeNone
		}
		return codeTransactionAbortable // the broker that asks knows what its client understands
	}))
}

// OffsetsTopic is where groups have their offsets.
const OffsetsTopic = "__consumer_offsets"

func addOffsetsReply(c *AddOffsets, code int16) *kmsg.AddOffsetsToTxnResponse {
	r := c.Req.ResponseKind().(*kmsg.AddOffsetsToTxnResponse)
	r.ErrorCode = older(code, c.Req.Version, 2)
	return r
}

func (t *turn) addOffsets(c *AddOffsets) {
	// Clients that bump epochs do not ask: TxnOffsetCommit adds the partition.
	code := t.add(c.Req.ProducerID, c.Req.ProducerEpoch, []Topic{{OffsetsTopic, []int32{c.Partition}}}, 0)
	t.reply(c.Token, addOffsetsReply(c, code))
}

func (t *turn) add(id int64, epoch int16, topics []Topic, version int16) (code int16) {
	m := t.m
	switch {
	case t.id == "":
		return codeInvalidRequest
	case t.e == nil:
		return codeInvalidProducerIDMapping
	case m.state.prepared():
		// First, as for InitProducerId: the producer may have an identity already that is current after the markers.
		return codeConcurrentTransactions
	case m.producerID != id:
		return codeInvalidProducerIDMapping
	case m.epoch != epoch, epoch > lastClientEpoch:
		return codeProducerFenced
	case m.state == Ongoing && hasAll(m.topics, topics):
		return codeNone
	}
	to := m
	to.state, to.version = Ongoing, version
	to.topics = union(m.topics, topics)
	if n, size := count(to.topics), sizeOf(to.topics); n > t.cfg.MaxPartitions || size > t.cfg.MaxBytes {
		t.note(Note{Kind: NoteRefused, Partitions: n, Age: t.age(),
			Reason: fmt.Sprintf("%d partitions of about %d bytes, of %d and %d", n, size, t.cfg.MaxPartitions, t.cfg.MaxBytes)})
		return codeInvalidRequest
	}
	if m.state != Ongoing {
		to.started = t.now.UnixMilli()
	}
	t.move(to)
	if m.state != Ongoing {
		t.note(Note{Kind: NoteBegun, Partitions: count(to.topics)})
	}
	return codeNone
}

// ---- EndTxn

func endReply(c *End, id int64, epoch, code int16) *kmsg.EndTxnResponse {
	r := c.Req.ResponseKind().(*kmsg.EndTxnResponse)
	r.ProducerID, r.ProducerEpoch, r.ErrorCode = id, epoch, older(code, c.Req.Version, 2)
	return r
}

func (t *turn) end(c *End) {
	req := c.Req
	code := codeNone
	switch {
	case t.id == "":
		code = codeInvalidRequest
	case req.Version >= 5 && valueVersion(t.cfg.TransactionVersion) < flexibleVersion:
		code = codeUnsupportedVersion // a record has no room for the next producer id
	case t.e == nil:
		code = codeInvalidProducerIDMapping
	case req.Version >= 5:
		t.endBumping(c)
		return
	default:
		code = t.endKeeping(c)
	}
	t.reply(c.Token, endReply(c, -1, -1, code))
}

// endKeeping is EndTxn of clients that keep their epoch. It may be repeated: the same epoch and the same end tell that it
// is the same transaction, or that there was none since.
func (t *turn) endKeeping(c *End) (code int16) {
	m := t.m
	switch {
	case m.producerID != c.Req.ProducerID:
		return codeInvalidProducerIDMapping
	case m.epoch != c.Req.ProducerEpoch, m.epoch > lastClientEpoch:
		return codeProducerFenced
	case m.state.prepared():
		return codeConcurrentTransactions
	case m.state == Ongoing:
		to := m
		to.version = 0
		t.prepare(to, c.Req.Commit, NoteAborting)
		return codeNone
	case m.state == CompleteCommit && c.Req.Commit, m.state == CompleteAbort && !c.Req.Commit:
		return codeNone
	}
	return codeInvalidTxnState
}

// endBumping is EndTxn of clients that get a new epoch with every end of a transaction (KIP-890). An epoch tells which
// transaction is meant, so that one that was never begun can be aborted too: the producer may not know that it was not.
//
//	               abort               commit
//	               repeated  current   repeated  current
//	Empty          fenced    bump      fenced    refused
//	CompleteAbort  told      bump      fenced    refused
//	CompleteCommit refused   bump      told      refused
//
// A commit that finds the transaction aborted is no repetition: the coordinator was quicker. Kafka up to 4.3 refuses it, which
// clients take for a fault of their own (KAFKA-20785).
func (t *turn) endBumping(c *End) {
	req, m := c.Req, t.m
	refuse := func(code int16) { t.reply(c.Token, endReply(c, -1, -1, code)) }
	current := m.producerID == req.ProducerID && m.epoch == req.ProducerEpoch && m.epoch <= lastClientEpoch
	// After an end that bumped the epoch. Where the coordinator fenced without that, nobody is to get the epoch.
	repeated := req.ProducerEpoch >= 0 && req.ProducerEpoch == m.endedFrom() && m.epoch <= lastClientEpoch &&
		(m.producerID == req.ProducerID && m.epoch > 0 || m.previousID == req.ProducerID && m.epoch == 0)
	switch {
	case m.state.prepared():
		refuse(codeConcurrentTransactions) // first, as for AddPartitionsToTxn
		return
	case m.producerID != req.ProducerID && !repeated:
		refuse(codeInvalidProducerIDMapping)
		return
	case !current && !repeated:
		refuse(codeProducerFenced)
		return
	case repeated:
		switch {
		case req.Commit == (m.state == CompleteCommit):
			t.reply(c.Token, endReply(c, m.producerID, m.epoch, codeNone))
		case req.Commit:
			refuse(codeProducerFenced)
		default:
			refuse(codeInvalidTxnState)
		}
		return
	case m.state != Ongoing && req.Commit:
		refuse(codeInvalidTxnState)
		return
	}
	to, ok := t.bump()
	if !ok {
		return
	}
	if m.state != Ongoing {
		to.started = t.now.UnixMilli() // there was nothing; Kafka's tools want a time
	}
	id, epoch := t.prepare(to, req.Commit, NoteAborting)
	t.reply(c.Token, endReply(c, id, epoch, codeNone))
}

// bump is the transaction with its epoch bumped, and a new producer id in store if that was the last.
func (t *turn) bump() (to metadata, ok bool) {
	to = t.m
	if exhausted(to.epoch) {
		if to.nextID, ok = t.unused(); !ok {
			return to, false
		}
	}
	to.last, to.epoch, to.version = to.epoch, bumped(to.epoch), bumps
	return to, true
}

// fence aborts a transaction on the coordinator's own account. Its producer's epoch is over; it learns that when it asks
// for anything. It is false if a producer id is needed first.
func (t *turn) fence(why NoteKind) bool {
	if t.cfg.TransactionVersion >= bumps {
		to, ok := t.bump()
		if ok {
			t.prepare(to, false, why)
		}
		return ok
	}
	to := t.m
	to.last, to.epoch, to.version = -1, bumped(to.epoch), 0
	t.prepare(to, false, why)
	return true
}

// prepare ends a transaction and returns with which identity its producer goes on. What has no partitions needs no markers:
// both records are appended at once.
func (t *turn) prepare(to metadata, commit bool, aborts NoteKind) (id int64, epoch int16) {
	to.state = PrepareAbort
	if commit {
		to.state, aborts = PrepareCommit, NoteCommitting
	}
	t.move(to)
	t.note(Note{Kind: aborts, Partitions: count(to.topics), Age: t.age()})
	after := t.m.complete()
	if len(to.topics) == 0 {
		t.move(after)
		t.note(Note{Kind: NoteComplete})
	} else {
		t.r.Markers = markersOf(t.id, t.m, t.m.topics)
	}
	return after.producerID, after.epoch
}

// ---- Markers and deadlines

// markersWritten takes note of markers; the last makes the transaction complete. News of another transaction, or of markers
// of which there was news before, is old.
func (t *turn) markersWritten(c *MarkersWritten) {
	if t.e == nil || !t.m.state.prepared() || t.e.order != c.Order {
		return
	}
	news := map[place]struct{}{}
	for _, ts := range c.Topics {
		for _, p := range ts.Partitions {
			at := place{ts.Topic, p}
			if _, ok := t.e.unmarked[at]; ok {
				news[at] = struct{}{}
			}
		}
	}
	if len(news) < len(t.e.unmarked) {
		if len(news) > 0 {
			t.r.settles, t.r.marked = true, c.Topics
		}
		return
	}
	n, age := count(t.m.topics), t.age()
	t.move(t.m.complete())
	t.note(Note{Kind: NoteComplete, Partitions: n, Age: age})
}

// tick does what is due.
func (t *turn) tick() {
	switch {
	case t.e == nil:
	case t.m.state.prepared():
		t.r.Markers = markersOf(t.id, t.m, t.e.left())
	case t.m.state == Ongoing && t.m.timeout != noTimeout &&
		!t.now.Before(time.UnixMilli(t.m.started).Add(time.Duration(t.m.timeout)*time.Millisecond)):
		t.fence(NoteTimedOut)
	}
}

// expire forgets an id that was not used for long. Its producer, should it still be there, is told so by
// INVALID_PRODUCER_ID_MAPPING.
func (t *turn) expire() {
	if t.e == nil || !t.m.state.atRest() || t.now.Sub(time.UnixMilli(t.m.updated)) < t.cfg.Expiration {
		return
	}
	t.r.Records = append(t.r.Records, tombstone(t.id))
	t.note(Note{Kind: NoteExpired, Age: t.now.Sub(time.UnixMilli(t.m.updated))})
}
