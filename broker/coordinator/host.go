package coordinator

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// host has the shards of the partitions of one topic that this broker leads.
type host[M machine[C, R], C, R any] struct {
	o    Options
	ev   Events
	log  *slog.Logger
	kind kind[M, C, R]

	tokens atomic.Uint64 // of requests; 0 is none

	mu         sync.Mutex
	partitions int32
	shards     map[int32]*shard[M, C, R]
	closed     bool
	wg         sync.WaitGroup
}

func newHost[M machine[C, R], C, R any](o Options, k kind[M, C, R], partitions int32) *host[M, C, R] {
	o.fill()
	c := &host[M, C, R]{o: o, log: o.Logger, kind: k, partitions: partitions, shards: map[int32]*shard[M, C, R]{}}
	if o.Events != nil {
		c.ev = *o.Events
	}
	c.ev.fill()
	return c
}

// SetPartitions says how many partitions the topic has, once it was created. It must not change after
// that: keys would be looked for elsewhere.
func (c *host[M, C, R]) SetPartitions(n int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partitions = n
}

// PartitionFor is the partition that holds the group or transactional id, or -1 while the topic does not exist. It is
// Kafka's choice, so that tools can compute it: the absolute value of the hash of Java's String over UTF-16 code units.
func (c *host[M, C, R]) PartitionFor(key string) int32 {
	c.mu.Lock()
	n := c.partitions
	c.mu.Unlock()
	return PartitionOf(key, n)
}

// PartitionOf is PartitionFor for a topic of n partitions.
func PartitionOf(key string, n int32) int32 {
	if n <= 0 {
		return -1
	}
	var h int32
	for _, r := range key {
		if r > 0xffff {
			hi, lo := utf16.EncodeRune(r)
			h = 31*(31*h+hi) + lo
		} else {
			h = 31*h + r
		}
	}
	if h == math.MinInt32 {
		return 0 // which has no absolute value
	}
	return max(h, -h) % n
}

// Elected says that this broker leads the partition in that epoch: it is loaded, and then served. Being elected
// again in the very next epoch keeps the state, as nobody else can have written in between; any other epoch loads
// again.
func (c *host[M, C, R]) Elected(partition, leaderEpoch int32) {
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
func (c *host[M, C, R]) Resigned(partition int32) {
	c.mu.Lock()
	s := c.shards[partition]
	delete(c.shards, partition)
	c.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

// Close resigns from everything and returns when all goroutines have ended.
func (c *host[M, C, R]) Close() {
	c.mu.Lock()
	c.closed = true
	shards := c.shards
	c.shards = map[int32]*shard[M, C, R]{}
	c.mu.Unlock()
	for _, s := range shards {
		s.stop()
	}
	c.wg.Wait()
}

// Ready says whether the partition is being served.
func (c *host[M, C, R]) Ready(partition int32) bool {
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

// shardFor finds who answers for a key: a shard, or a code.
func (c *host[M, C, R]) shardFor(key string) (*shard[M, C, R], int16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := PartitionOf(key, c.partitions)
	if c.closed || p < 0 {
		return nil, protocol.CodeCoordinatorNotAvailable
	}
	s := c.shards[p]
	if s == nil {
		return nil, protocol.CodeNotCoordinator
	}
	return s, protocol.CodeNone
}

// full says whether the memory of all shards is used up, for what grows in that way.
func (c *host[M, C, R]) full(g growth) bool {
	var n int64
	limit := c.o.MaxBytes
	if g == further {
		limit += limit / 2
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.shards {
		n += s.bytes.Load()
	}
	return n >= limit
}

// begin sends a command to the key's shard. The call is answered in any case.
func (c *host[M, C, R]) begin(key string, cmd func(token uint64) C) *call {
	o := op[M, C]{token: c.tokens.Add(1), call: newCall()}
	o.cmd = cmd(o.token)
	s, code := c.shardFor(key)
	if code == protocol.CodeNone {
		code = s.submit(o)
	}
	if code != protocol.CodeNone {
		o.call.answer <- answer{code: code}
	}
	return o.call
}

// request sends a command to the key's shard and waits for the answer, with no limit until ctx ends.
func request[A kmsg.Response, M machine[C, R], C, R any](ctx context.Context, c *host[M, C, R], key string, limit time.Duration, cmd func(token uint64) C) (r A, code int16) {
	a := await(ctx, c.begin(key, cmd), limit)
	if a.resp == nil {
		return r, a.code
	}
	return a.resp.(A), protocol.CodeNone
}

// await waits for an answer, with no limit until ctx ends.
func await(ctx context.Context, call *call, limit time.Duration) answer {
	var late <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		late = t.C
	}
	select {
	case a := <-call.answer:
		return a
	case <-late:
	case <-ctx.Done():
	}
	// The command may still be carried out. Clients treat that as they treat a lost answer.
	return answer{code: protocol.CodeCoordinatorNotAvailable}
}

// look reads in the key's shard; stable: only when nothing of the key is being appended.
func look[T any, M machine[C, R], C, R any](ctx context.Context, c *host[M, C, R], key string, stable bool, read func(M) T) (v T, code int16) {
	s, code := c.shardFor(key)
	if code != protocol.CodeNone {
		return v, code
	}
	if !stable {
		key = ""
	}
	return lookInto(ctx, c, s, key, read)
}

// lookInto reads in a shard, once nothing of the key is being appended, if it is not "".
func lookInto[T any, M machine[C, R], C, R any](ctx context.Context, c *host[M, C, R], s *shard[M, C, R], stable string, read func(M) T) (v T, code int16) {
	o := op[M, C]{call: newCall(), stable: stable}
	out := make(chan T, 1) // the read may come when nobody waits for it any more
	o.read = func(m M) {
		out <- read(m)
		o.call.answer <- answer{}
	}
	if code := s.submit(o); code != protocol.CodeNone {
		return v, code
	}
	if a := await(ctx, o.call, c.o.ReplyTimeout); a.code != protocol.CodeNone {
		return v, a.code
	}
	return <-out, protocol.CodeNone
}

// Load is what the shards of a coordinator are at.
type Load struct {
	Shards, Loading int
	Queued, Writing int // commands waiting to be handled, which is what is bounded, and waiting for their append
}

// tallies adds up what shards are at, and hands out what they hold, as of the last command of each.
func (c *host[M, C, R]) tallies(each func(tally)) (l Load) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.shards {
		s.mu.Lock()
		l.Shards++
		if !s.active {
			l.Loading++
		}
		l.Queued += len(s.queue) + s.held
		l.Writing += s.writing
		if s.tally != nil {
			each(s.tally)
		}
		s.mu.Unlock()
	}
	return l
}

// all are the shards in order of their partitions.
func (c *host[M, C, R]) all() []*shard[M, C, R] {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ss []*shard[M, C, R]
	for _, s := range c.shards {
		ss = append(ss, s)
	}
	slices.SortFunc(ss, func(a, b *shard[M, C, R]) int { return int(a.partition - b.partition) })
	return ss
}
