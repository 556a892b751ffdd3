package broker

import (
	"context"
	"errors"
	"fmt"
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
// Versions: 7 zstd, 8 record errors, 9 flexible, 10 leader hints, 13 topic ids.

// produce is one Produce request whose partitions are on their way.
type produce struct {
	b       *Broker
	p       *pending
	resp    *kmsg.ProduceResponse
	acks    int16
	left    atomic.Int32 // partitions not settled, and one for the request itself
	expired atomic.Bool
}

func (b *Broker) produce(r *request) error {
	defer r.buf.Release()
	req := &r.c.produceReq
	if err := req.Decode(r.hdr.Version, r.body); err != nil {
		return fmt.Errorf("broker: Produce v%d: %w", r.hdr.Version, err)
	}
	po := &produce{b: b, p: r.p, acks: req.Acks, resp: kmsg.NewPtrProduceResponse()}
	po.resp.SetVersion(r.hdr.Version)
	po.resp.Topics = make([]kmsg.ProduceResponseTopic, len(req.Topics))
	n := 0
	var whole int16
	if req.Acks < -1 || req.Acks > 1 {
		whole = protocol.CodeInvalidRequiredAcks
	}
	for i := range req.Topics {
		t := &req.Topics[i]
		out := &po.resp.Topics[i]
		*out = kmsg.NewProduceResponseTopic()
		out.TopicID = t.ID
		out.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(t.Partitions))
		for j := range t.Partitions {
			out.Partitions[j] = kmsg.NewProduceResponseTopicPartition()
			out.Partitions[j].Partition = t.Partitions[j].Index
		}
		n += len(t.Partitions)
		if r.hdr.Version < 13 {
			out.Topic = b.replicas.name(t.Name)
		}
	}
	po.left.Store(int32(n) + 1)
	for i := range req.Topics {
		t := &req.Topics[i]
		topic, refused := po.resp.Topics[i].Topic, whole
		if r.hdr.Version >= 13 {
			if it := b.meta.Image().TopicByID(t.ID); it != nil {
				topic = it.Name
			} else if refused == 0 {
				refused = protocol.CodeUnknownTopicID
			}
		}
		if refused == 0 && isInternal(topic) && r.clientID() != adminClientID {
			refused = protocol.CodeInvalidTopicException
		}
		for j := range t.Partitions {
			out := &po.resp.Topics[i].Partitions[j]
			if refused != 0 {
				out.ErrorCode, out.BaseOffset = refused, -1
				po.settled()
				continue
			}
			po.one(r, topic, t.Partitions[j].Index, t.Partitions[j].Records, out)
		}
	}
	if po.acks == 0 {
		// Nobody is told; but nothing is read further while the log is full,
		// and an error ends the connection.
		for i := range po.resp.Topics {
			for j := range po.resp.Topics[i].Partitions {
				if code := po.resp.Topics[i].Partitions[j].ErrorCode; code != 0 {
					r.p.complete(nil, nil)
					return fmt.Errorf("broker: acks=0 produce to %s-%d failed with %s: closing the connection is the only way to tell",
						po.resp.Topics[i].Topic, po.resp.Topics[i].Partitions[j].Partition, protocol.Name(code))
				}
			}
		}
		r.p.complete(nil, nil)
		return nil
	}
	if po.left.Load() > 1 && req.TimeoutMillis >= 0 {
		wait := max(time.Duration(req.TimeoutMillis)*time.Millisecond, minCommitWait)
		r.p.park(time.Now().Add(wait), po.expire)
	}
	po.settled()
	return nil
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
func (po *produce) one(r *request, topic string, index int32, records []byte, out *kmsg.ProduceResponseTopicPartition) {
	b := po.b
	fail := func(code int16, message string) {
		out.ErrorCode, out.BaseOffset = code, -1
		if message != "" {
			out.ErrorMessage = &message
		}
		b.ev.ProduceFailed(code)
		po.settled()
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
	h, code, message, errs := checkBatch(records, r.hdr.Version, cfg, b.conf().FullValidation)
	if code != 0 {
		for _, e := range errs {
			re := kmsg.NewProduceResponseTopicPartitionErrorRecord()
			re.RelativeOffset = e.Index
			re.ErrorMessage = kmsg.StringPtr(e.Message)
			out.ErrorRecords = append(out.ErrorRecords, re)
		}
		fail(code, message)
		return
	}
	buf := r.buf
	if to, level, ok := recompressTo(cfg, h); ok {
		again, err := batch.Recompress(records, to, level, maxInflated(cfg))
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
	out.LogAppendTime = -1
	if cfg.LogAppendTime {
		now := time.Now().UnixMilli()
		batch.SetLogAppendTime(records, now)
		h, _ = batch.ParseHeader(records)
		out.LogAppendTime = now
	}
	if err := b.log_.Admit(rep.localID()); err != nil {
		code, message := b.appendCode(err)
		fail(code, message)
		return
	}
	if err := b.log_.Reserve(r.ctx, wal.ClassClient, int64(len(records))); err != nil {
		code, message := b.appendCode(err)
		fail(code, message)
		return
	}
	acks := po.acks
	d := rep.append(&appendArgs{header: h, bytes: records, buf: buf, class: wal.ClassClient, acks: acks, done: func(code int16) {
		if code != 0 {
			out.ErrorCode, out.BaseOffset = code, -1
		}
		po.settled()
	}, assigned: func(base int64) {
		out.BaseOffset, out.LogStartOffset = base, v.LogStart
	}})
	switch d.Kind {
	case partition.Append:
		b.ev.Produced(h.RecordCount, len(records))
		if acks == 0 {
			po.settled()
		}
	case partition.Duplicate:
		b.log_.Unreserve(int64(len(records)))
		out.BaseOffset, out.LogStartOffset = d.Base, v.LogStart
		if cfg.LogAppendTime {
			out.LogAppendTime = d.Timestamp
		}
		// The original may still be on its way to disk: the answer waits
		// for the same commit point.
		rep.waitCommitted(d.Base+int64(h.LastOffsetDelta)+1, acks, func(code int16) {
			if code != 0 {
				out.ErrorCode, out.BaseOffset = code, -1
			}
			po.settled()
		})
	case partition.Reject:
		b.log_.Unreserve(int64(len(records)))
		fail(d.Code, d.Message)
	}
}

// settled counts one partition of the request, and completes it with the last.
func (po *produce) settled() {
	if po.left.Add(-1) != 0 || po.acks == 0 {
		return
	}
	if po.expired.CompareAndSwap(false, true) {
		po.p.respond(po.resp)
	}
}

// expire answers a request whose records did not become durable on all in-sync
// replicas in time. They may still.
func (po *produce) expire() {
	if !po.expired.CompareAndSwap(false, true) {
		return
	}
	// The answer being built belongs to the appends that are still under way.
	late := kmsg.NewPtrProduceResponse()
	late.SetVersion(po.resp.Version)
	for i := range po.resp.Topics {
		t := kmsg.NewProduceResponseTopic()
		t.Topic, t.TopicID = po.resp.Topics[i].Topic, po.resp.Topics[i].TopicID
		for j := range po.resp.Topics[i].Partitions {
			p := kmsg.NewProduceResponseTopicPartition()
			p.Partition = po.resp.Topics[i].Partitions[j].Partition
			p.ErrorCode, p.BaseOffset = protocol.CodeRequestTimedOut, -1
			t.Partitions = append(t.Partitions, p)
		}
		late.Topics = append(late.Topics, t)
	}
	po.p.respond(late)
}

// waitCommitted calls done when everything below end is committed (acks=all),
// durable here (acks=1), or at once (acks=0).
func (r *replica) waitCommitted(end int64, acks int16, done func(code int16)) {
	r.mu.Lock()
	if !r.started {
		r.mu.Unlock()
		done(protocol.CodeNotLeaderOrFollower)
		return
	}
	v := r.st.View()
	n := len(r.waiting)
	if acks == 0 || end <= v.HighWatermark || n == 0 || r.waiting[n-1].end < end {
		r.mu.Unlock()
		done(protocol.CodeNone)
		return
	}
	for i := range r.waiting {
		if w := &r.waiting[i]; w.end >= end {
			next := w.commit
			if acks == 1 && w.durable != nil {
				next = w.durable
				w.durable = func(code int16) { next(code); done(code) }
			} else {
				w.commit = func(code int16) {
					if next != nil {
						next(code)
					}
					done(code)
				}
			}
			break
		}
	}
	r.mu.Unlock()
}

// checkBatch applies Kafka's rules for what a producer may send for one
// partition: exactly one batch of format 2, whole, unharmed, within the
// topic's limits.
func checkBatch(records []byte, version int16, cfg *config.TopicConfig, full bool) (h batch.Header, code int16, message string, errs []batch.RecordError) {
	if len(records) == 0 {
		return h, protocol.CodeInvalidRecord, "no record batch", nil
	}
	h, err := batch.ParseHeader(records)
	switch {
	case errors.Is(err, batch.ErrMagic):
		return h, protocol.CodeInvalidRecord, "only record batches of format 2 (magic 2) are accepted: " + err.Error(), nil
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
	if h.Transactional() {
		// Nothing could end the transaction, and read_committed consumers of
		// the partition would wait for its end for ever.
		return h, protocol.CodeTransactionalIDAuthorizationFailed, "transactions are not served by this broker yet", nil
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
	if !cfg.LogAppendTime && h.MaxTimestamp > hi {
		return h, protocol.CodeInvalidTimestamp, fmt.Sprintf("timestamp %d is more than message.timestamp.after.max.ms=%d after the broker's time", h.MaxTimestamp, cfg.TimestampAfterMaxMs), nil
	}
	opts := batch.CheckOptions{RequireKey: cfg.Compact}
	bounded := !cfg.LogAppendTime && (cfg.TimestampBeforeMaxMs != noTimestampBound)
	if bounded {
		opts.MinTimestamp, opts.MaxTimestamp = lo, hi
	}
	// As in Kafka, what is recompressed is checked: the new checksum must not
	// vouch for records that nobody has looked at.
	_, _, recompressed := recompressTo(cfg, h)
	if full || opts.RequireKey || bounded || recompressed {
		errs, err := batch.CheckRecords(records, maxInflated(cfg), opts)
		if err != nil {
			return h, protocol.CodeInvalidRecord, err.Error(), nil
		}
		if len(errs) > 0 {
			return h, errs[0].Code, errs[0].Message, errs
		}
	}
	return h, 0, "", nil
}

// minRecord is the size of a record of nothing: its length, and six fields of
// one byte each.
const minRecord = 7

// noTimestampBound is Kafka's default of message.timestamp.before.max.ms.
const noTimestampBound = 1<<63 - 1

// maxInflated bounds what a batch may inflate to: 64 times what may be sent.
func maxInflated(cfg *config.TopicConfig) int { return 64 * max(cfg.MaxMessageBytes, 1<<20) }

// appendCode says what to tell a client whose append the log refused.
func (b *Broker) appendCode(err error) (int16, string) {
	switch {
	case errors.Is(err, wal.ErrNoSpace):
		b.ev.AppendRefused()
		st := b.log_.Stats()
		why, message := "the write-ahead log is at its bound until object storage takes what it holds", "the write-ahead log is at its bound (wal.max.bytes): object storage is behind or away"
		if st.DiskFull {
			why, message = "the disk of the write-ahead log is full", "the disk of the write-ahead log is full"
		}
		if b.errorLog.Allow() {
			b.log.Error("producers are refused: "+why, "wal_bytes", st.Bytes, "wal.max.bytes", st.MaxBytes)
		}
		return protocol.CodeNotEnoughReplicas, message
	case errors.Is(err, wal.ErrTooLarge):
		return protocol.CodeMessageTooLarge, err.Error()
	case errors.Is(err, wal.ErrPartitionFull):
		b.ev.AppendRefused()
		return protocol.CodeNotEnoughReplicas, "what this partition holds cannot be uploaded and has used its share of the write-ahead log"
	case errors.Is(err, wal.ErrOutOfRange):
		return protocol.CodeNotLeaderOrFollower, "" // its local log was dropped in between
	case errors.Is(err, context.Canceled):
		return protocol.CodeRequestTimedOut, ""
	default:
		return protocol.CodeKafkaStorageError, err.Error()
	}
}

// appendInternal appends a batch of this broker's own (coordinators). The log
// owns records.
func (r *replica) appendInternal(ctx context.Context, records []byte, done func(base int64, code int16)) {
	h, err := batch.ParseHeader(records)
	if err != nil || h.Size() != len(records) {
		panic(fmt.Sprintf("broker: internal append of a malformed batch: %v", err))
	}
	if err := r.b.log_.Reserve(ctx, wal.ClassInternal, int64(len(records))); err != nil {
		code, _ := r.b.appendCode(err)
		done(-1, code)
		return
	}
	var at int64
	d := r.append(&appendArgs{header: h, bytes: records, class: wal.ClassInternal, origin: partition.Coordinator, acks: -1,
		assigned: func(base int64) { at = base },
		done:     func(code int16) { done(at, code) }})
	switch d.Kind {
	case partition.Reject:
		r.b.log_.Unreserve(int64(len(records)))
		done(-1, d.Code)
	case partition.Duplicate:
		r.b.log_.Unreserve(int64(len(records)))
		done(d.Base, protocol.CodeNone)
	}
}
