// Package coordinator hosts group shards: one for every partition of __consumer_offsets that this broker leads. It
// replays the partition into the shard, hands it commands one after the other, appends the records that come out, and
// lets replies leave when the records are committed. It has the timers, the queues and the bounds; every decision is
// package group's.
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
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf16"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// Log is what the coordinator needs of the partitions of __consumer_offsets that this broker leads.
type Log interface {
	// Append queues a record batch without offsets, which the log owns from then on; leaderEpoch is the epoch in which the
	// shard was elected, and an append in a later epoch must be refused. done is called once, from any goroutine and perhaps
	// before Append returns, when the batch is committed (acks=all) or will not be; it does not block. An error means that the
	// batch is not in the log, or that this broker no longer leads the partition: the shard's state leaves it out. Batches
	// of one partition are done in the order in which they were appended. Append may wait for room, not for the disk.
	Append(partition int32, leaderEpoch int32, run []byte, done func(base int64, err error))
	// Read returns whole batches from the one that contains offset, up to about maxBytes but at least one, and the offset
	// after them. Unlike a client's read it goes up to the log end, beyond the high watermark. release may be nil.
	Read(ctx context.Context, partition int32, offset int64, maxBytes int) (run [][]byte, next int64, release func(), err error)
	// Extent is the log start and the log end: the offset of the next append.
	Extent(partition int32) (start, end int64)
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

// Options are what a Coordinator is made of. Zero limits take their defaults.
type Options struct {
	Log    Log
	Groups group.Config
	Logger *slog.Logger
	Events *Events

	Codec          batch.Codec   // offsets.topic.compression.codec
	ReplyTimeout   time.Duration // offsets.commit.timeout.ms: an append that takes longer is answered COORDINATOR_NOT_AVAILABLE
	ExpiryInterval time.Duration // offsets.retention.check.interval.ms

	QueueLength  int   // commands of one shard that wait to be handled
	WritesLength int   // commands of one shard whose append is under way
	BatchBytes   int   // of one append, unless a single command needs more
	MaxBatch     int   // bytes that a single command may append
	LoadBytes    int   // offsets.load.buffer.size: read at a time when loading
	MaxBytes     int64 // memory of all shards together: above it new groups and members are refused
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
	Loaded       func(partition int32, groups, offsets int, records int64, took time.Duration)
	LoadFailed   func(partition int32, err error) // and is tried again
	Unloaded     func(partition int32)
	Appended     func(partition int32, records, bytes int, took time.Duration)
	AppendFailed func(partition int32, err error)
	Refused      func(partition int32, code int16) // a bound of the runtime refused a request
	BadRecord    func(partition int32, offset int64, err error)
	Group        func(partition int32, n group.Note)
}

// Coordinator is the group coordinator of one broker.
type Coordinator struct {
	o   Options
	ev  Events
	log *slog.Logger

	tokens atomic.Uint64 // of requests; 0 is none

	mu         sync.Mutex
	partitions int32
	shards     map[int32]*shard
	closed     bool
	wg         sync.WaitGroup
}

// New returns a coordinator that leads nothing. The number of partitions is that of __consumer_offsets; 0 until the
// topic exists.
func New(o Options, partitions int32) *Coordinator {
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
	if o.ExpiryInterval == 0 {
		o.ExpiryInterval = DefaultExpiryInterval
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Coordinator{o: o, log: o.Logger, partitions: partitions, shards: map[int32]*shard{}}
	if o.Events != nil {
		c.ev = *o.Events
	}
	c.ev.fill()
	return c
}

func (e *Events) fill() {
	if e.Loaded == nil {
		e.Loaded = func(int32, int, int, int64, time.Duration) {}
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
}

// SetPartitions says how many partitions __consumer_offsets has, once it was created. It must not change after
// that: groups would be looked for elsewhere.
func (c *Coordinator) SetPartitions(n int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partitions = n
}

// PartitionFor is the partition of __consumer_offsets that holds the group, or -1 while the topic does not exist. It
// is Kafka's choice, so that tools can compute it: the hash of Java's String over UTF-16 code units.
func (c *Coordinator) PartitionFor(groupID string) int32 {
	c.mu.Lock()
	n := c.partitions
	c.mu.Unlock()
	return PartitionOf(groupID, n)
}

// PartitionOf is PartitionFor for a topic of n partitions.
func PartitionOf(groupID string, n int32) int32 {
	if n <= 0 {
		return -1
	}
	var h int32
	for _, r := range groupID {
		if r > 0xffff {
			hi, lo := utf16.EncodeRune(r)
			h = 31*(31*h+hi) + lo
		} else {
			h = 31*h + r
		}
	}
	return (h & 0x7fffffff) % n
}

// Elected says that this broker leads the partition in that epoch: it is loaded, and then served. Being elected
// again in the very next epoch keeps the state, as nobody else can have written in between; any other epoch loads
// again.
func (c *Coordinator) Elected(partition, leaderEpoch int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if s := c.shards[partition]; s != nil {
		if !s.promote(leaderEpoch) {
			return
		}
		s.stop()
	}
	s := newShard(c, partition, leaderEpoch)
	c.shards[partition] = s
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		s.run()
	}()
}

// Resigned says that this broker no longer leads the partition. Whoever waits is sent to look for the new
// coordinator. Appends under way may still succeed; their outcome is the new leader's to tell.
func (c *Coordinator) Resigned(partition int32) {
	c.mu.Lock()
	s := c.shards[partition]
	delete(c.shards, partition)
	c.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

// Close resigns from everything and returns when all goroutines have ended.
func (c *Coordinator) Close() {
	c.mu.Lock()
	c.closed = true
	shards := c.shards
	c.shards = map[int32]*shard{}
	c.mu.Unlock()
	for _, s := range shards {
		s.stop()
	}
	c.wg.Wait()
}

// Ready says whether the partition's groups are being served.
func (c *Coordinator) Ready(partition int32) bool {
	c.mu.Lock()
	s := c.shards[partition]
	c.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active && !s.stopped
}

// Stats are what the coordinator holds.
type Stats struct {
	Shards, Loading int
	Groups          map[string]int // by state
	Members         int
	Offsets         int
	Bytes           int64 // about; all shards
	Queued, Writing int   // commands waiting to be handled, and waiting for their append
}

// Stats adds up what the shards hold, as of the last command of each.
func (c *Coordinator) Stats() Stats {
	st := Stats{Groups: map[string]int{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.shards {
		s.mu.Lock()
		st.Shards++
		if !s.active {
			st.Loading++
		}
		st.Queued += len(s.queue)
		st.Writing += s.writing
		st.Members += s.counts.members
		st.Offsets += s.counts.offsets
		st.Bytes += s.counts.bytes
		for i, n := range s.counts.states {
			if n > 0 {
				st.Groups[group.State(i).String()] += n
			}
		}
		s.mu.Unlock()
	}
	return st
}

// shardFor finds who answers for a group: a shard, or a code.
func (c *Coordinator) shardFor(groupID string) (*shard, int16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := PartitionOf(groupID, c.partitions)
	if c.closed || p < 0 {
		return nil, protocol.CodeCoordinatorNotAvailable
	}
	s := c.shards[p]
	if s == nil {
		return nil, protocol.CodeNotCoordinator
	}
	return s, protocol.CodeNone
}

// full says whether the memory of all shards is used up.
func (c *Coordinator) full() bool {
	var n int64
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.shards {
		n += s.bytes.Load()
	}
	return n >= c.o.MaxBytes
}

// suffix makes a member id unique.
func suffix() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
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
	case protocol.CodeMessageTooLarge, protocol.CodeRecordListTooLarge, protocol.CodeInvalidFetchSize:
		return protocol.CodeUnknownServerError
	}
	return protocol.CodeCoordinatorNotAvailable
}
