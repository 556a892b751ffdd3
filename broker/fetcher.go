package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/wal/slab"
)

// fetchers copy partitions from the brokers that lead them: one connection and
// one goroutine for each of these. A round is
//
//	Fetch    in a session (KIP-227): it names the partitions whose position moved, and no others
//	answer   into one buffer, from which records are appended to the local log without a copy
//	fsync    of what came, which is waited for: the next Fetch tells the leader that it is durable
//
// so that a partition without news costs nothing, and a round with news one
// fsync, however many partitions it is about.
//
// Lock ordering: mu, then a fetcher's mu, which are leaves: a replica's lock may
// be held when they are taken.
type fetchers struct {
	b *Broker

	mu       sync.Mutex
	byLeader map[int32]*fetcher
	of       map[*replica]*fetcher
	over     bool
	wg       sync.WaitGroup
}

// fetcher copies from one broker.
type fetcher struct {
	b      *Broker
	leader int32
	cancel context.CancelFunc
	wake   chan struct{}

	heard   atomic.Int64 // when the leader last answered (Broker.uptimeMs), or the first partition was given
	refused int          // connections in a row; of run alone

	mu    sync.Mutex
	moved []*copying // assigned or taken away since the last round
	parts map[*replica]*copying
}

// copying is one partition that is copied.
type copying struct {
	r     *replica
	key   partitionKey
	epoch int32

	gone bool // guarded by fetcher.mu

	// Of the fetcher's goroutine.
	at       partition.Position // that the leader's session knows
	told     bool               // it knows the partition
	due      bool               // it is to be told where the partition stands
	rests    time.Time          // nothing is asked of it until then
	refusals int                // answers in a row that were errors of the leader's
}

// add has a partition copied from a leader, in a leader epoch. It takes the
// place of what was said of it before.
func (fs *fetchers) add(r *replica, leader, epoch int32) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.over {
		return
	}
	fs.drop(r)
	f := fs.byLeader[leader]
	if f == nil {
		ctx, cancel := context.WithCancel(fs.b.ctx)
		f = &fetcher{b: fs.b, leader: leader, cancel: cancel, wake: make(chan struct{}, 1), parts: map[*replica]*copying{}}
		fs.byLeader[leader] = f
		fs.wg.Add(1)
		go func() {
			defer fs.wg.Done()
			f.run(ctx)
		}()
	}
	fs.of[r] = f
	r.source.Store(f)
	c := &copying{r: r, key: partitionKey{id: r.topicID, index: r.index}, epoch: epoch}
	f.mu.Lock()
	if len(f.parts) == 0 {
		f.heard.Store(fs.b.uptimeMs())
	}
	f.parts[r] = c
	f.moved = append(f.moved, c)
	f.mu.Unlock()
	f.poke()
}

// remove ends the copying of a partition. An answer that is being worked on is
// of no effect any more, for the replica does not follow.
func (fs *fetchers) remove(r *replica) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.drop(r)
}

func (fs *fetchers) drop(r *replica) {
	f := fs.of[r]
	if f == nil {
		return
	}
	delete(fs.of, r)
	r.source.Store(nil)
	f.mu.Lock()
	if c := f.parts[r]; c != nil {
		c.gone = true
		delete(f.parts, r)
		f.moved = append(f.moved, c)
	}
	f.mu.Unlock()
	f.poke()
}

func (fs *fetchers) close() {
	fs.mu.Lock()
	fs.over = true
	for _, f := range fs.byLeader {
		f.cancel()
	}
	fs.mu.Unlock()
	fs.wg.Wait()
}

func (f *fetcher) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// copySession is what the leader keeps of the fetcher, and what it does not know
// yet. Its id is 0 while the leader keeps nothing: then each request names all.
type copySession struct {
	link  *link
	id    int32
	epoch int32
	as    int64                     // the broker epoch in which the leader knows this broker
	parts map[partitionKey]*copying // that are copied
	due   []*copying                // to be told
	gone  []*copying                // to be forgotten by the leader
	rests []*copying                // left alone for a while
}

// run is the fetcher's goroutine.
func (f *fetcher) run(ctx context.Context) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		if f.count() == 0 {
			select {
			case <-f.wake:
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := f.connected(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			backoff = firstBackoff
			continue // nothing is copied from there any more
		}
		if time.Since(began) > 10*time.Second {
			backoff = firstBackoff
		}
		if f.b.failures.copyBrokeOff.Allow() {
			f.b.log.Warn("copying from the leader broke off, and is taken up again", "leader", f.leader, "partitions", f.count(), "err", err, "retry_in", backoff)
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, f.b.conf().ReplicaFetchBackoff)
	}
}

const firstBackoff = 20 * time.Millisecond

func (f *fetcher) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.parts)
}

// connected goes on in rounds until the connection breaks, or nothing is to be
// copied any more.
func (f *fetcher) connected(ctx context.Context) error {
	to := f.b.meta.Image().Broker(f.leader)
	if to == nil {
		return fmt.Errorf("broker %d is not known", f.leader)
	}
	// Who leads again is asked over a connection of its present life, and not over one on which nothing comes any more.
	life, stop := f.b.peers.bind(ctx, to)
	defer stop()
	k, err := f.b.dial(life, to)
	if err != nil {
		f.suspect(to, err)
		return err
	}
	f.refused = 0
	defer k.close()
	s := &copySession{link: k}
	for life.Err() == nil {
		f.gather(s)
		if len(s.parts) == 0 {
			return nil
		}
		f.place(s, time.Now())
		if s.epoch == 0 && len(s.due) == 0 {
			// Nothing can be asked for yet.
			f.rest(life, s)
			continue
		}
		if err := f.round(life, s); err != nil {
			if life.Err() != nil {
				break
			}
			f.b.suspected(to, false)
			return err
		}
	}
	return context.Cause(life)
}

// refusals is how many connections in a row have to be refused before the leader
// is taken to be gone. They are firstBackoff and its double apart.
const refusals = 3

// suspect has the controller look after a leader that cannot be connected to. One whose
// address refuses connections is taken to have ended.
func (f *fetcher) suspect(to *image.Broker, err error) {
	if !errors.Is(err, syscall.ECONNREFUSED) {
		f.refused = 0
		f.b.suspected(to, false)
		return
	}
	f.refused++
	f.b.suspected(to, f.refused >= refusals)
}

// gather takes over what was assigned and taken away.
func (f *fetcher) gather(s *copySession) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.parts == nil {
		// A new session: all there are.
		s.parts = make(map[partitionKey]*copying, len(f.parts))
		for _, c := range f.parts {
			s.parts[c.key] = c
			c.told, c.due, c.rests = false, true, time.Time{}
			s.due = append(s.due, c)
		}
		f.moved = nil
		s.as = f.b.meta.BrokerEpoch()
		return
	}
	if now := f.b.meta.BrokerEpoch(); now != s.as {
		// This broker has registered again, and what the leader knows of it is of
		// the epoch before: no ISR with this broker could be proposed, of idle
		// partitions neither, until it is told anew (KIP-903).
		s.as = now
		for _, c := range s.parts {
			if c.rests.IsZero() {
				s.tell(c)
			}
		}
	}
	for _, c := range f.moved {
		old := s.parts[c.key]
		if c.gone {
			if old == c {
				delete(s.parts, c.key)
				s.gone = append(s.gone, c)
			}
			continue
		}
		if old != nil {
			c.told = old.told
		}
		s.parts[c.key] = c
		s.tell(c)
	}
	f.moved = nil
}

// tell lists a partition as one whose position the leader is to be told.
func (s *copySession) tell(c *copying) {
	if !c.due {
		c.due = true
		s.due = append(s.due, c)
	}
}

// place finds where the due partitions stand. What is not durable yet, or does
// not follow any more, is left for later.
func (f *fetcher) place(s *copySession, now time.Time) {
	s.rests = slices.DeleteFunc(s.rests, func(c *copying) bool {
		if s.parts[c.key] != c {
			return true
		}
		if now.Before(c.rests) {
			return false
		}
		c.rests = time.Time{}
		s.tell(c)
		return true
	})
	s.due = slices.DeleteFunc(s.due, func(c *copying) bool {
		if s.parts[c.key] != c || !c.rests.IsZero() {
			c.due = false
			return true
		}
		at, durable := c.r.position(c.epoch)
		switch {
		case !durable:
			c.due = false
			s.leave(c, now, 5*time.Millisecond)
			return true
		case c.r.copiesThrottled() && f.b.copying.exceeded():
			c.due = false
			s.leave(c, now, throttledRest)
			return true
		}
		c.at = at
		return false
	})
}

// leave leaves a partition alone for a while, so that the leader does not answer
// for it again and again.
func (s *copySession) leave(c *copying, now time.Time, d time.Duration) {
	if c.told {
		s.gone = append(s.gone, c)
		c.told = false
	}
	if c.rests.IsZero() {
		s.rests = append(s.rests, c)
	}
	c.rests = now.Add(d)
}

// rest waits until something is due, or ctx ends.
func (f *fetcher) rest(ctx context.Context, s *copySession) {
	d := time.Second
	for _, c := range s.rests {
		d = min(d, time.Until(c.rests))
	}
	select {
	case <-time.After(max(d, time.Millisecond)):
	case <-f.wake:
	case <-ctx.Done():
	}
}

// round is one Fetch, and what comes of it.
func (f *fetcher) round(ctx context.Context, s *copySession) error {
	cfg := f.b.conf()
	wait := cfg.ReplicaFetchWait
	now := time.Now()
	for _, c := range s.rests {
		// Not longer than until the next is due.
		wait = max(min(wait, c.rests.Sub(now)), time.Millisecond)
	}
	req := f.request(s, wait)
	asked := s.due
	s.due, s.gone = nil, nil
	for _, c := range asked {
		c.due, c.told = false, true
	}
	buf, body, err := s.link.exchange(ctx, req, wait+peerTimeout, func(n int) (*slab.Buf, []byte) {
		b := slab.Get(n)
		return b, b.Bytes()
	})
	if err != nil {
		return fmt.Errorf("fetch from broker %d: %w", f.leader, err)
	}
	defer buf.Release()
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	resp.SetVersion(req.Version)
	if err := resp.ReadFrom(body); err != nil {
		return fmt.Errorf("fetch from broker %d: answer of %d bytes: %w", f.leader, len(body), err)
	}
	if resp.ErrorCode != 0 {
		return fmt.Errorf("fetch from broker %d: %s", f.leader, protocol.Name(resp.ErrorCode))
	}
	f.heard.Store(f.b.uptimeMs())
	s.id = resp.SessionID
	if s.id != 0 {
		s.epoch = max(1, (s.epoch+1)&math.MaxInt32)
		return f.take(ctx, s, buf, resp)
	}
	// All sessions that the leader may keep are taken, by consumers perhaps.
	s.epoch = 0
	err = f.take(ctx, s, buf, resp)
	for _, c := range s.parts {
		c.told = false
		if c.rests.IsZero() {
			s.tell(c)
		}
	}
	return err
}

// fetchVersion is the version of Fetch among brokers: with topic ids, replica
// state and divergence in the answer.
const fetchVersion = 17

// remoteEndTag is the tagged field by which a leader tells its followers where
// the committed part of the partition in the bucket ends: 8 bytes.
const remoteEndTag = 0x7661

func (f *fetcher) request(s *copySession, wait time.Duration) *kmsg.FetchRequest {
	cfg := f.b.conf()
	req := kmsg.NewPtrFetchRequest()
	req.Version = fetchVersion
	req.ReplicaState.ID, req.ReplicaState.Epoch = f.b.opts.BrokerID, s.as
	req.MaxWaitMillis = int32(wait.Milliseconds())
	req.MinBytes, req.MaxBytes = int32(cfg.ReplicaFetchMinBytes), int32(cfg.ReplicaFetchResponseMaxBytes)
	req.SessionID, req.SessionEpoch = s.id, s.epoch
	byTopic := map[[16]byte]int{}
	for _, c := range s.due {
		i, ok := byTopic[c.key.id]
		if !ok {
			i = len(req.Topics)
			byTopic[c.key.id] = i
			t := kmsg.NewFetchRequestTopic()
			t.TopicID = c.key.id
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.CurrentLeaderEpoch = c.key.index, c.epoch
		p.FetchOffset, p.LastFetchedEpoch = c.at.Offset, c.at.LastEpoch
		p.PartitionMaxBytes = int32(cfg.ReplicaFetchMaxBytes)
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, p)
	}
	if s.epoch == 0 {
		return req
	}
	clear(byTopic)
	for _, c := range s.gone {
		if now := s.parts[c.key]; now != nil && now.due {
			continue // it is there again
		}
		i, ok := byTopic[c.key.id]
		if !ok {
			i = len(req.ForgottenTopics)
			byTopic[c.key.id] = i
			t := kmsg.NewFetchRequestForgottenTopic()
			t.TopicID = c.key.id
			req.ForgottenTopics = append(req.ForgottenTopics, t)
		}
		req.ForgottenTopics[i].Partitions = append(req.ForgottenTopics[i].Partitions, c.key.index)
	}
	return req
}

// take works an answer into the replicas, and waits until all that came with it
// is durable.
func (f *fetcher) take(ctx context.Context, s *copySession, buf *slab.Buf, resp *kmsg.FetchResponse) error {
	var synced sync.WaitGroup
	var failed error
	var failedMu sync.Mutex
	done := func(err error) {
		if err != nil {
			failedMu.Lock()
			failed = err
			failedMu.Unlock()
		}
		synced.Done()
	}
	bytes := 0
	now := time.Now()
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			c := s.parts[partitionKey{id: t.TopicID, index: p.Partition}]
			if c == nil || !c.told {
				continue
			}
			run := &copyRun{epoch: c.epoch, from: c.at, records: p.RecordBatches, buf: buf,
				highWatermark: p.HighWatermark, logStart: p.LogStartOffset}
			p.UnknownTags.Each(func(tag uint32, v []byte) {
				if tag == remoteEndTag && len(v) == 8 {
					run.remoteEnd = int64(binary.BigEndian.Uint64(v))
				}
			})
			if p.ErrorCode == 0 {
				c.refusals = 0
			}
			var err error
			switch {
			case p.ErrorCode == 0 && p.DivergingEpoch.EndOffset >= 0:
				err = c.r.diverged(ctx, run, p.DivergingEpoch.Epoch, p.DivergingEpoch.EndOffset)
				s.tell(c)
			case p.ErrorCode == 0:
				synced.Add(1)
				var appended bool
				if appended, err = c.r.copy(ctx, run, done); !appended {
					synced.Done()
				} else {
					bytes += len(p.RecordBatches)
					if c.r.copiesThrottled() {
						f.b.copying.took(len(p.RecordBatches))
					}
					s.tell(c)
				}
			case offsetGone(p.ErrorCode):
				err = c.r.restart(ctx, run)
				s.tell(c)
			default:
				// Another leader, another epoch, or a partition that does not
				// serve yet: metadata tells, or it passes.
				s.leave(c, now, min(refusedBackoff<<c.refusals, maxRefusedBackoff))
				c.refusals = min(c.refusals+1, 10)
				continue
			}
			if err != nil && ctx.Err() == nil {
				if f.b.failures.copiedPartition.Allow() {
					f.b.log.Error("partition not copied, tried again", "partition", c.r.String(), "leader", f.leader, "offset", c.at.Offset, "err", err)
				}
				if errors.Is(err, errCorruptCopy) {
					f.b.ev.CorruptCopy()
				}
				s.leave(c, now, f.b.conf().ReplicaFetchBackoff)
			}
		}
	}
	synced.Wait()
	f.b.ev.Copied(bytes)
	failedMu.Lock()
	defer failedMu.Unlock()
	return failed
}

// throttledRest is how long a throttled partition is left alone while the bound
// is exceeded.
const throttledRest = 100 * time.Millisecond

// refusedBackoff is how long a partition is left alone whose leader did not
// answer for it, and then twice as long each time. Leaderships that have just
// moved come up within a few milliseconds.
const (
	refusedBackoff    = 5 * time.Millisecond
	maxRefusedBackoff = 80 * time.Millisecond
)
