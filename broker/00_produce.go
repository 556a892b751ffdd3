package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/config"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
)

// Produce (key 0), versions 3 to 13; advertised from 0, as Kafka does, because
// librdkafka compresses only for brokers that list it.
//
// Behavior:
//   - A batch is checked by its header and its CRC, given its offset and its
//     leader epoch in place, and queued to the log verbatim: the bytes that
//     arrived are the bytes that are written, cached and served. It is inflated
//     only where a rule of the topic needs its records: null keys on compacted
//     topics, bounds on how old a timestamp may be, record.validation=full,
//     another compression.type.
//   - Commit point: the fsync of the block that holds the batch, for acks=1
//     here, for acks=all on every in-sync replica. acks=0 is not answered;
//     an error then closes the connection, which is all the client can see.
//
//   - A transactional batch is appended only if the transaction coordinator knows
//     of it; see produce_txn.go.
//
// Versions: 7 zstd, 8 record errors, 9 flexible, 10 leader hints, 11
// TRANSACTION_ABORTABLE, 12 adds partitions to transactions, 13 topic ids.

// produce is one Produce request whose partitions are on their way. It is used
// again once it was answered: a small request costs little more than what is
// allocated for it.
type produce struct {
	b    *Broker
	p    *pending
	acks int16
	left atomic.Int32  // partitions not settled, and one for the request itself
	turn atomic.Uint64 // two for every request: odd once it is answered, in time or not

	topics []producedTopic
	parts  []protocol.ProducedPartition // of all topics, one after the other
	slots  []produceSlot                // one for each of parts

	encoder protocol.ProduceEncoder
	frame   [1][]byte
	charged int64
}

type producedTopic struct {
	name       string
	id         [16]byte
	partitions int
}

// produceSlot is told what became of one partition's records.
type produceSlot struct {
	po  *produce
	out *protocol.ProducedPartition
}

func (s *produceSlot) settle(code int16) {
	if code != 0 {
		s.out.Refuse(code)
	}
	s.po.settled()
}

var produces = sync.Pool{New: func() any { return new(produce) }}

// begin makes room for the answer to req.
func (po *produce) begin(b *Broker, r *request, req *protocol.ProduceRequest) {
	po.b, po.p, po.acks = b, r.p, req.Acks
	po.turn.Store((po.turn.Load() | 1) + 1)
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	po.topics = slices.Grow(po.topics[:0], len(req.Topics))
	po.parts = slices.Grow(po.parts[:0], n)[:n]
	po.slots = slices.Grow(po.slots[:0], n)[:n]
	po.left.Store(int32(n) + 1)
}

// What a produce that is kept for the next request may hold on to.
const keepProduced = 256

// recycle is called once the answer was sent, or dropped: every partition has
// been settled, so nobody else knows of po any more.
func (po *produce) recycle() {
	if po.charged != 0 {
		po.b.responses.add(-po.charged)
		po.charged = 0
	}
	po.b, po.p = nil, nil
	po.frame[0] = nil
	if cap(po.parts) > keepProduced || cap(po.topics) > keepProduced {
		return
	}
	clear(po.topics)
	clear(po.parts)
	produces.Put(po)
}

func (b *Broker) produce(r *request) error {
	req := &r.c.produceReq
	if err := req.Decode(r.hdr.Version, r.body); err != nil {
		r.buf.Release()
		return fmt.Errorf("broker: Produce v%d: %w", r.hdr.Version, err)
	}
	if req.TransactionalID != nil && r.c.txns.defers(r, req) {
		return nil
	}
	defer r.buf.Release()
	return b.produceAll(r, req, nil)
}

// produceAll appends what a request brings. verdicts has one for each of its
// partitions, if any was to be verified.
func (b *Broker) produceAll(r *request, req *protocol.ProduceRequest, verdicts []txnVerdict) error {
	po := produces.Get().(*produce)
	po.begin(b, r, req)
	var whole int16
	if req.Acks < -1 || req.Acks > 1 {
		whole = protocol.CodeInvalidRequiredAcks
	}
	at := 0
	for i := range req.Topics {
		t := &req.Topics[i]
		answer := producedTopic{id: t.ID, partitions: len(t.Partitions)}
		topic, refused := "", whole
		if r.hdr.Version < 13 {
			topic = b.replicas.name(t.Name)
			answer.name = topic
		} else if it := b.meta.Image().TopicByID(t.ID); it != nil {
			topic = it.Name
		} else if refused == 0 {
			refused = protocol.CodeUnknownTopicID
		}
		po.topics = append(po.topics, answer)
		if refused == 0 && isInternal(topic) && r.clientID() != adminClientID {
			refused = protocol.CodeInvalidTopicException
		}
		for j := range t.Partitions {
			out, slot := &po.parts[at], &po.slots[at]
			var verdict txnVerdict
			if verdicts != nil {
				verdict = verdicts[at]
			}
			at++
			*out = protocol.ProducedPartition{Index: t.Partitions[j].Index, LogAppendTime: -1, LogStartOffset: -1}
			*slot = produceSlot{po, out}
			if refused != 0 {
				slot.settle(refused)
				continue
			}
			po.one(r, topic, t.Partitions[j].Index, t.Partitions[j].Records, req.TransactionalID != nil, verdict, slot)
		}
	}
	if po.acks == 0 {
		return po.unanswered()
	}
	if po.left.Load() > 1 && req.TimeoutMillis >= 0 {
		wait := max(time.Duration(req.TimeoutMillis)*time.Millisecond, minCommitWait)
		turn := po.turn.Load()
		if !r.p.park(time.Now().Add(wait), func() { po.expire(turn) }) {
			po.expire(turn)
		}
	}
	po.settled()
	return nil
}

// unanswered ends a request with acks=0: nobody is told; but nothing is read
// further while the log is full, and an error ends the connection.
func (po *produce) unanswered() error {
	var err error
	at := 0
	for _, t := range po.topics {
		for _, p := range po.parts[at : at+t.partitions] {
			if p.ErrorCode != 0 && err == nil {
				err = fmt.Errorf("%w: acks=0 produce to %s-%d: %s: closing the connection is the only way to tell",
					errUnanswerable, t.name, p.Index, protocol.Name(p.ErrorCode))
			}
		}
		at += t.partitions
	}
	po.p.complete(nil, nil)
	po.recycle()
	return err
}

// minCommitWait is how long a commit may take, whatever the client says: its
// timeout is meant for other replicas. Kafka does not count the leader's own
// append, so that a client may ask for 0; here there is always a sync to wait
// for, and REQUEST_TIMED_OUT would make that client write everything twice.
const minCommitWait = 5 * time.Second

// adminClientID is the client id with which Kafka's own tools may write to
// internal topics.
const adminClientID = "__admin_client"

// one starts the append of one partition's records.
func (po *produce) one(r *request, topic string, index int32, records []byte, transactional bool, verdict txnVerdict, slot *produceSlot) {
	b, out := po.b, slot.out
	fail := func(code int16, message string) {
		if message != "" {
			out.ErrorMessage = &message
		}
		b.ev.ProduceFailed(code)
		r.c.held.refused(topic, index, records, code)
		slot.settle(code)
	}
	rep := b.replicas.find(topic, index)
	if rep == nil {
		fail(b.missingNamed(topic, index), "")
		return
	}
	v := rep.view.Load()
	if v.Role != partition.Leader {
		fail(rep.notServing(), "")
		return
	}
	cfg := rep.cfg()
	h, code, message, errs := b.checkBatch(r.ctx, records, r.hdr.Version, cfg)
	if code != 0 {
		for _, e := range errs {
			out.RecordErrors = append(out.RecordErrors, protocol.RecordError{Index: e.Index, Message: kmsg.StringPtr(e.Message)})
		}
		fail(code, message)
		return
	}
	if h.Transactional() && !transactional {
		// Kafka refuses the whole request, whatever else is in it.
		fail(protocol.CodeTransactionalIDAuthorizationFailed, "transactional batch in a request without a transactional id")
		return
	}
	if verdict.code != 0 {
		fail(verdict.code, verdict.message)
		return
	}
	buf := r.buf
	if to, level, ok := recompressTo(cfg, h); ok {
		again, err := b.opening.recompress(r.ctx, records, to, level, maxInflated(cfg))
		if err != nil {
			fail(protocol.CodeInvalidRecord, err.Error())
			return
		}
		records, buf = again, nil
		h, _ = batch.ParseHeader(records)
		if len(records) > cfg.MaxMessageBytes {
			fail(protocol.CodeMessageTooLarge, fmt.Sprintf("batch of %d bytes after recompression with %s; max.message.bytes is %d", len(records), to, cfg.MaxMessageBytes))
			return
		}
	}
	if cfg.LogAppendTime {
		now := time.Now().UnixMilli()
		batch.SetLogAppendTime(records, now)
		h, _ = batch.ParseHeader(records)
		out.LogAppendTime = now
	}
	if err := b.log_.Admit(rep.localID()); err != nil {
		code, message := b.appendCode(err)
		if errors.Is(err, wal.ErrPartitionFull) {
			message = rep.overShare()
			if b.failures.overShare.Allow() {
				b.log.Error("producers of one partition are refused: "+message, "partition", rep.String())
			}
		}
		fail(code, message)
		return
	}
	if err := b.log_.Reserve(r.ctx, wal.ClassClient, int64(len(records))); err != nil {
		code, message := b.appendCode(err)
		fail(code, message)
		return
	}
	acks := po.acks
	out.LogStartOffset = v.LogStart
	after := r.c.held.before(topic, index, h)
	d := rep.append(&appendArgs{header: h, bytes: records, buf: buf, class: wal.ClassClient, acks: acks, to: slot, base: &out.BaseOffset,
		verify: b.mustVerify(r.hdr.Version), guard: verdict.guard, after: after})
	switch d.Kind {
	case partition.Append:
		if after {
			r.c.held.passed(topic, index, h)
		}
		b.ev.Produced(h.RecordCount, len(records))
		if acks == 0 {
			slot.settle(0)
		}
	case partition.Duplicate:
		b.log_.Unreserve(int64(len(records)))
		out.BaseOffset = d.Base
		if cfg.LogAppendTime {
			out.LogAppendTime = d.Timestamp
		}
		// The original may still be on its way to disk: the answer waits
		// for the same commit point.
		rep.waitCommitted(d.Base+int64(h.LastOffsetDelta)+1, acks, slot)
	case partition.Reject:
		b.log_.Unreserve(int64(len(records)))
		fail(d.Code, d.Message)
	}
}

// settled counts one partition of the request, and answers with the last.
func (po *produce) settled() {
	if po.left.Add(-1) != 0 || po.acks == 0 {
		return
	}
	if turn := po.turn.Load(); turn&1 == 1 || !po.turn.CompareAndSwap(turn, turn+1) {
		return
	}
	po.frame[0] = po.encode(&po.encoder, po.parts)
	if n := int64(cap(po.frame[0])); n >= countedResponse {
		po.charged = n
		po.b.responses.add(n)
	}
	po.p.complete(po.frame[:], po.recycle)
}

func (po *produce) encode(e *protocol.ProduceEncoder, parts []protocol.ProducedPartition) []byte {
	e.Begin(po.p.hdr, len(po.topics))
	leaders := newLeaders{b: po.b, c: po.p.c}
	at := 0
	for i := range po.topics {
		t := &po.topics[i]
		e.Topic(t.name, t.id, t.partitions)
		for j := range parts[at : at+t.partitions] {
			p := &parts[at+j]
			p.CurrentLeader = leaders.of(p.ErrorCode, t.name, t.id, p.Index)
			e.Partition(p)
		}
		at += t.partitions
	}
	return e.Finish(0, leaders.endpoints)
}

// expire answers a request whose records did not become durable on all in-sync
// replicas in time. They may still, and then po is what they are settled with:
// it is not used again. turn is that of the request: a connection that ends may
// call this when the answer was dropped and po is in use for another one.
func (po *produce) expire(turn uint64) {
	if !po.turn.CompareAndSwap(turn, turn+1) {
		return
	}
	late := make([]protocol.ProducedPartition, len(po.parts))
	for i := range late {
		late[i] = protocol.ProduceError(po.parts[i].Index, protocol.CodeRequestTimedOut)
	}
	b := po.encode(new(protocol.ProduceEncoder), late)
	po.p.complete(net.Buffers{b}, nil)
}

// waitCommitted settles w when everything below end is committed (acks=all),
// durable here (acks=1), or at once (acks=0).
func (r *replica) waitCommitted(end int64, acks int16, w settler) {
	r.mu.Lock()
	if !r.started {
		r.mu.Unlock()
		w.settle(protocol.CodeNotLeaderOrFollower)
		return
	}
	n := len(r.waiting)
	switch durable := end <= r.st.DurableEnd(); {
	case acks == 0, acks == 1 && durable, end <= r.st.View().HighWatermark:
		r.mu.Unlock()
		w.settle(protocol.CodeNone)
		return
	case n > 0 && r.waiting[n-1].end >= end:
	case durable:
		// Appended by the process before this one: no request waits for it here.
		r.waiting = append(r.waiting, appendWait{end: end, commit: w})
		r.mu.Unlock()
		return
	default:
		// Whoever waited for it has been told that the log has failed, between
		// Reserve, which would have said so, and now.
		r.mu.Unlock()
		w.settle(protocol.CodeKafkaStorageError)
		return
	}
	for i := range r.waiting {
		if x := &r.waiting[i]; x.end >= end {
			if acks == 1 && x.durable != nil {
				x.durable = both{x.durable, w}
			} else if x.commit != nil {
				x.commit = both{x.commit, w}
			} else {
				x.commit = w
			}
			break
		}
	}
	r.mu.Unlock()
}

// both are settled with the same append: a batch and its repetition.
type both struct{ first, then settler }

func (b both) settle(code int16) {
	b.first.settle(code)
	b.then.settle(code)
}

// checkBatch applies Kafka's rules for what a producer may send for one
// partition: exactly one batch of format 2, whole, unharmed, within the
// topic's limits.
func (b *Broker) checkBatch(ctx context.Context, records []byte, version int16, cfg *config.TopicConfig) (h batch.Header, code int16, message string, errs []batch.RecordError) {
	if len(records) == 0 {
		return h, protocol.CodeInvalidRecord, "no record batch", nil
	}
	h, err := batch.ParseHeader(records)
	switch {
	case errors.Is(err, batch.ErrMagic):
		return h, protocol.CodeInvalidRecord, "only record batches of format 2 (magic 2) are accepted: " + err.Error(), nil
	case errors.Is(err, batch.ErrShort):
		// As in Kafka. What is corrupt is sent again by clients, and this would be the same.
		return h, protocol.CodeInvalidRecord, err.Error(), nil
	case err != nil:
		return h, protocol.CodeCorruptMessage, err.Error(), nil
	case h.Size() != len(records):
		return h, protocol.CodeInvalidRecord, fmt.Sprintf("exactly one record batch per partition: %d bytes follow the first", len(records)-h.Size()), nil
	}
	if err := batch.VerifyCRC(records); err != nil {
		return h, protocol.CodeCorruptMessage, err.Error(), nil
	}
	if len(records) > cfg.MaxMessageBytes {
		return h, protocol.CodeMessageTooLarge, fmt.Sprintf("batch of %d bytes; max.message.bytes is %d", len(records), cfg.MaxMessageBytes), nil
	}
	if err := h.CheckClient(); err != nil {
		var inv *batch.InvalidError
		if errors.As(err, &inv) {
			return h, inv.Code, inv.Message, nil
		}
		return h, protocol.CodeInvalidRecord, err.Error(), nil
	}
	if h.Codec() == batch.Zstd && version < 7 {
		return h, protocol.CodeUnsupportedCompressionType, "zstd needs Produce v7 or later", nil
	}
	room := len(records) - batch.HeaderSize
	if h.Codec() != batch.None {
		room = maxInflated(cfg)
	}
	if int(h.RecordCount) > room/minRecord {
		// Each counted record takes an offset, be it there or not.
		return h, protocol.CodeInvalidRecord, fmt.Sprintf("batch reports %d records, which %d bytes cannot hold", h.RecordCount, room), nil
	}
	now := time.Now().UnixMilli()
	lo, hi := batch.TimestampRange(now, cfg.TimestampBeforeMaxMs, cfg.TimestampAfterMaxMs)
	ahead := !cfg.LogAppendTime && h.MaxTimestamp > hi // refused, and of which records it is so is told where they can be read
	opts := batch.CheckOptions{RequireKey: cfg.Compact}
	bounded := ahead || !cfg.LogAppendTime && cfg.TimestampBeforeMaxMs != noTimestampBound
	if bounded {
		opts.MinTimestamp, opts.MaxTimestamp = lo, hi
	}
	// As in Kafka, what is recompressed is checked: the new checksum must not
	// vouch for records that nobody has looked at.
	_, _, recompressed := recompressTo(cfg, h)
	if b.conf().FullValidation || opts.RequireKey || bounded || recompressed {
		err := b.opening.open(ctx, records, maxInflated(cfg), func(limit int) (err error) {
			errs, err = batch.CheckRecords(records, limit, opts)
			return err
		})
		if err != nil {
			return h, protocol.CodeInvalidRecord, err.Error(), nil
		}
		if len(errs) > 0 && ahead && errs[0].Code == protocol.CodeInvalidTimestamp {
			return h, protocol.CodeInvalidTimestamp, aheadOf(cfg, h), errs
		}
		if len(errs) > 0 {
			return h, errs[0].Code, errs[0].Message, errs
		}
	}
	if ahead {
		return h, protocol.CodeInvalidTimestamp, aheadOf(cfg, h), nil
	}
	return h, 0, "", nil
}

func aheadOf(cfg *config.TopicConfig, h batch.Header) string {
	return fmt.Sprintf("timestamp %d is more than message.timestamp.after.max.ms=%d after the broker's time", h.MaxTimestamp, cfg.TimestampAfterMaxMs)
}

// minRecord is the size of a record of nothing: its length, and six fields of
// one byte each.
const minRecord = 7

// noTimestampBound is Kafka's default of message.timestamp.before.max.ms.
const noTimestampBound = 1<<63 - 1

// maxInflated is MaxInflated for a topic.
func maxInflated(cfg *config.TopicConfig) int { return MaxInflated(cfg.MaxMessageBytes) }

// MaxInflated bounds what a batch may inflate to where somebody has to look into it: 64 times what may be sent.
func MaxInflated(maxMessageBytes int) int { return 64 * max(maxMessageBytes, 1<<20) }

// appendCode says what to tell a client whose append the log refused.
func (b *Broker) appendCode(err error) (int16, string) {
	switch {
	case errors.Is(err, wal.ErrNoSpace):
		b.ev.AppendRefused()
		st := b.log_.Stats()
		reason := refusalOf(st)
		if n, tell := b.refusals.count(reason, time.Now()); tell {
			b.log.Error("producers are refused: "+b.full(st), "refused", n, "pinned_bytes", st.PinnedBytes, "wal.max.bytes", st.MaxBytes)
		}
		return protocol.CodeNotEnoughReplicas, refusalMessages[reason]
	case errors.Is(err, wal.ErrTooLarge):
		return protocol.CodeMessageTooLarge, err.Error()
	case errors.Is(err, wal.ErrPartitionFull):
		b.ev.AppendRefused()
		return protocol.CodeNotEnoughReplicas, "what this partition holds cannot be uploaded and has used its share of the write-ahead log"
	case errors.Is(err, wal.ErrOutOfRange):
		return protocol.CodeNotLeaderOrFollower, "" // its local log was dropped in between
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return protocol.CodeRequestTimedOut, ""
	default:
		return protocol.CodeKafkaStorageError, err.Error()
	}
}

// appendOwn appends a batch that this broker has made, which the log owns then;
// of the arguments those are filled in that follow from that.
func (r *replica) appendOwn(ctx context.Context, a *appendArgs, done func(base int64, code int16)) {
	records := a.bytes
	h, err := batch.ParseHeader(records)
	if err != nil || h.Size() != len(records) {
		panic(fmt.Sprintf("broker: internal append of a malformed batch: %v", err))
	}
	if err := r.b.log_.Reserve(ctx, a.class, int64(len(records))); err != nil {
		code, _ := r.b.appendCode(err)
		done(-1, code)
		return
	}
	in := &internalAppend{done: done}
	a.header, a.origin, a.acks, a.to, a.base = h, partition.Coordinator, -1, in, &in.base
	d := r.append(a)
	switch d.Kind {
	case partition.Reject:
		r.b.log_.Unreserve(int64(len(records)))
		done(-1, d.Code)
	case partition.Duplicate:
		r.b.log_.Unreserve(int64(len(records)))
		done(d.Base, protocol.CodeNone)
	}
}

// internalAppend is told the outcome of an append of this broker's own.
type internalAppend struct {
	base int64
	done func(base int64, code int16)
}

func (a *internalAppend) settle(code int16) { a.done(a.base, code) }
