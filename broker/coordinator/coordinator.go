// Package coordinator hosts the state machines of internal topics: a group shard for every partition of __consumer_offsets
// that this broker leads, a shard of transactional ids for every one of __transaction_state. It replays the partition into
// the machine, hands it commands one after the other, appends the records that come out, and lets replies leave when the
// records are committed. It has the timers, the queues and the bounds; every decision is package group's or txn's.
//
//	handler goroutine            shard goroutine                 log
//	JoinGroup ----- command ---> Handle
//	   |                           |  records ----- Append ----->|
//	   |  (waits)                Apply, Settle <---- done -------|
//	   |<------- reply ------------|
//
// State changes only after the append: a failed one leaves nothing to undo, and a read never shows what could still be
// lost. Appends of one shard are gathered into batches while earlier ones are under way.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/broker/txn"
	"github.com/varve/varve/wal/batch"
)

// Log is what a coordinator needs of the partitions of its topic that this broker leads.
type Log interface {
	// Append queues a record batch without offsets, which the log owns from then on; leaderEpoch is the epoch in which the
	// shard was elected, and an append in a later epoch must be refused. done is called once, from any goroutine and perhaps
	// before Append returns, when the batch is committed (acks=all) or will not be; it does not block. An error means that the
	// batch is not in the log, or that this broker no longer leads the partition: the shard's state leaves it out. Batches
	// of one partition are in the log in the order in which they were appended; done may be called in any. Append may wait
	// for room, not for the disk.
	Append(partition int32, leaderEpoch int32, run []byte, done func(base int64, err error))
	// Read returns whole batches from the one that contains offset, up to about maxBytes but at least one, and the offset
	// after them. Unlike a client's read it goes up to the log end, beyond the high watermark. release may be nil.
	Read(ctx context.Context, partition int32, offset int64, maxBytes int) (run [][]byte, next int64, release func(), err error)
	// Extent is the log start and the log end: the offset of the next append.
	Extent(partition int32) (start, end int64)
}

// TicketLog is a Log that wants to know more of the batches of transactions than their bytes say.
type TicketLog interface {
	// AppendWith is Append for a batch that came with a ticket: see group.Commit and group.EndTxn.
	AppendWith(partition int32, leaderEpoch int32, run []byte, ticket any, done func(base int64, err error))
}

// ConfirmLog is a Log of partitions that have other replicas. A coordinator that has been replaced and does not know it could
// tell old offsets; so whether it leads is confirmed before they are read.
type ConfirmLog interface {
	// Confirm says whether this broker has led the partition at some time since the call: 0, or an error code. It waits for
	// other replicas.
	Confirm(ctx context.Context, partition int32) (code int16)
}

// CommittedLog is a Log of partitions that have other replicas. What a new leader finds above its high watermark it has from a leader
// that did not live to see it committed, and it may die before that as well; then the next one does not have it. So nothing of it is
// told before it is committed, and no marker is written for a decision that is found there: the next leader could decide otherwise.
type CommittedLog interface {
	// Committed returns when everything below end is committed. An error: this broker does not lead, or ctx has ended.
	Committed(ctx context.Context, partition int32, end int64) error
}

// Coder is what an error that Append reports may be: one that carries a Kafka error code, from which what the client
// is told follows. Other errors are told as COORDINATOR_NOT_AVAILABLE.
type Coder interface{ Code() int16 }

// AppendFailed is the simplest Coder.
type AppendFailed int16

// Code is the Kafka error code.
func (c AppendFailed) Code() int16 { return int16(c) }

func (c AppendFailed) Error() string {
	return fmt.Sprintf("coordinator: append refused with code %d: %s", int16(c), protocol.Message(int16(c)))
}

// Options are what a coordinator is made of. Zero limits take their defaults.
type Options struct {
	Log    Log
	Logger *slog.Logger
	Events *Events

	// Of New.
	Groups group.Config
	Topics func() group.Topics // as of now; nil: no group of the consumer protocol

	// Of NewTransactions.
	Transactions txn.Config
	Markers      Markers
	ProducerID   func(context.Context) (int64, error) // one that nobody else has
	Patience     time.Duration                        // how long a request waits for markers before it is answered CONCURRENT_TRANSACTIONS; half of ReplyTimeout at most

	Codec          batch.Codec   // offsets.topic.compression.codec
	ReplyTimeout   time.Duration // offsets.commit.timeout.ms: an append that takes longer is answered COORDINATOR_NOT_AVAILABLE
	ExpiryInterval time.Duration // offsets.retention.check.interval.ms; how often the regular search for what has expired begins

	QueueLength  int   // commands of one shard that wait to be handled
	WritesLength int   // commands of one shard whose append is under way
	BatchBytes   int   // of one append, unless a single command needs more
	MaxBatch     int   // bytes that a single command may append
	LoadBytes    int   // offsets.load.buffer.size: read at a time when loading
	MaxBytes     int64 // memory of all shards together: above it new groups and members, or transactional ids, are refused; from half as much more, also what adds to those there are
	MaxInflated  int   // bytes that a batch may inflate to when loading
}

// Defaults of Options.
const (
	DefaultReplyTimeout   = 5 * time.Second
	DefaultExpiryInterval = 10 * time.Minute
	DefaultQueueLength    = 10_000
	DefaultWritesLength   = 10_000
	DefaultBatchBytes     = 1 << 20
	DefaultMaxBatch       = 64 << 20
	DefaultLoadBytes      = 5 << 20
	DefaultMaxBytes       = 1 << 30
	DefaultMaxInflated    = 256 << 20
)

// Events are told what happens. Nil functions are not called; none may block.
type Events struct {
	Loaded       func(partition int32, keys int, records, bytes int64, took time.Duration)
	LoadFailed   func(partition int32, err error) // and is tried again
	Unloaded     func(partition int32)
	Appended     func(partition int32, records, bytes int, took time.Duration)
	AppendFailed func(partition int32, err error)
	Refused      func(partition int32, code int16) // a bound of the runtime refused a request
	BadRecord    func(partition int32, offset int64, err error)
	Group        func(partition int32, n group.Note)
	Transaction  func(partition int32, n txn.Note)
}

// fill takes the defaults.
func (o *Options) fill() {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.QueueLength, DefaultQueueLength)
	def(&o.WritesLength, DefaultWritesLength)
	def(&o.BatchBytes, DefaultBatchBytes)
	def(&o.MaxBatch, DefaultMaxBatch)
	def(&o.LoadBytes, DefaultLoadBytes)
	def(&o.MaxInflated, DefaultMaxInflated)
	if o.ReplyTimeout == 0 {
		o.ReplyTimeout = DefaultReplyTimeout
	}
	o.Patience = min(o.Patience, o.ReplyTimeout/2)
	if o.ExpiryInterval == 0 {
		o.ExpiryInterval = DefaultExpiryInterval
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func (e *Events) fill() {
	if e.Loaded == nil {
		e.Loaded = func(int32, int, int64, int64, time.Duration) {}
	}
	if e.LoadFailed == nil {
		e.LoadFailed = func(int32, error) {}
	}
	if e.Unloaded == nil {
		e.Unloaded = func(int32) {}
	}
	if e.Appended == nil {
		e.Appended = func(int32, int, int, time.Duration) {}
	}
	if e.AppendFailed == nil {
		e.AppendFailed = func(int32, error) {}
	}
	if e.Refused == nil {
		e.Refused = func(int32, int16) {}
	}
	if e.BadRecord == nil {
		e.BadRecord = func(int32, int64, error) {}
	}
	if e.Group == nil {
		e.Group = func(int32, group.Note) {}
	}
	if e.Transaction == nil {
		e.Transaction = func(int32, txn.Note) {}
	}
}

// replyCode is what clients of a coordinator are told when an append fails: codes that they know, and that send them to
// look for the coordinator where that may help.
func replyCode(err error) int16 {
	var f Coder
	if !errors.As(err, &f) {
		return protocol.CodeCoordinatorNotAvailable
	}
	switch f.Code() {
	case protocol.CodeNotCoordinator, protocol.CodeNotLeaderOrFollower, protocol.CodeKafkaStorageError, protocol.CodeFencedLeaderEpoch, protocol.CodeUnknownLeaderEpoch:
		return protocol.CodeNotCoordinator
	case protocol.CodeInvalidProducerEpoch, protocol.CodeInvalidTxnState, protocol.CodeTransactionCoordinatorFenced:
		return f.Code() // of batches of transactions only
	case protocol.CodeMessageTooLarge, protocol.CodeRecordListTooLarge, protocol.CodeInvalidFetchSize:
		return protocol.CodeUnknownServerError
	}
	return protocol.CodeCoordinatorNotAvailable
}
