package broker

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// sessionEvictAfter is the age at which an unused fetch session may make room
// for a new one (Kafka's min.incremental.fetch.session.eviction.ms).
const sessionEvictAfter = 2 * time.Minute

// sessionPartitionBytes is what one partition of a kept session may count as:
// it takes about a fifth of that, so that sessions stay a small part beside the
// responses, by whose share of the memory they are bounded.
const sessionPartitionBytes = 1 << 10

// sessions keeps incremental fetch sessions (KIP-227), at most slots of them
// (max.incremental.fetch.session.cache.slots). A client that finds no slot is
// served without a session.
//
// Followers go before clients, however many there are: without a session each of
// their rounds would name every partition. They take no slot and are not held to
// the bound of partitions, for there is one session of each.
//
// Lock ordering: mu, then a session's mu.
type sessions struct {
	slots         int
	maxPartitions int64 // of all kept sessions together

	partitions atomic.Int64 // changed with the lock of the session they belong to

	mu        sync.Mutex
	byID      map[int32]*session
	followers map[int32]*session // of byID, by broker
}

func newSessions(slots int, maxPartitions int64) *sessions {
	return &sessions{slots: slots, maxPartitions: maxPartitions, byID: map[int32]*session{}, followers: map[int32]*session{}}
}

// full says whether more partitions than are kept and n of a request under
// way are too many.
func (c *sessions) full(n int) bool { return c.partitions.Load()+int64(n) >= c.maxPartitions }

func (c *sessions) find(id int32) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[id]
}

// create keeps s under a new id, or reports false when there is no room.
func (c *sessions) create(s *session, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots <= 0 || !s.copies && c.full(len(s.watches)) {
		return false
	}
	if s.copies {
		if old := c.followers[s.of]; old != nil {
			delete(c.byID, old.id)
			go c.end(old)
		}
		c.followers[s.of] = s
	} else if len(c.byID)-len(c.followers) >= c.slots {
		// The longest unused goes, if it is old enough.
		var oldest *session
		var at time.Time
		for _, o := range c.byID {
			if o.copies {
				continue
			}
			o.mu.Lock()
			used, busy := o.lastUsed, o.busy || o.parked != nil
			o.mu.Unlock()
			if !busy && (oldest == nil || used.Before(at)) {
				oldest, at = o, used
			}
		}
		if oldest == nil || now.Sub(at) < sessionEvictAfter {
			return false
		}
		delete(c.byID, oldest.id)
		go c.end(oldest) // takes the replicas' locks, which are not to be taken under mu
	}
	for {
		id := rand.Int32()
		if id > 0 && c.byID[id] == nil {
			s.id = id
			c.byID[id] = s
			c.partitions.Add(int64(len(s.watches)))
			return true
		}
	}
}

// asked says whether a broker that copies from this one has asked for more within d, or waits for an answer.
func (c *sessions) asked(broker int32, d time.Duration) bool {
	c.mu.Lock()
	s := c.followers[broker]
	c.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy || s.parked != nil || time.Since(s.lastUsed) <= d
}

func (c *sessions) remove(id int32) {
	c.mu.Lock()
	s := c.byID[id]
	delete(c.byID, id)
	if s != nil && s.copies {
		delete(c.followers, s.of)
	}
	c.mu.Unlock()
	if s != nil {
		c.end(s)
	}
}

// A broker that has begun to lead a partition does not leave the others that have a replica of it in long polls: only what
// they ask next names the partition, and until then nothing of it that is appended is acknowledged. hastened is how long
// their fetches are answered within hastenedWait: long enough for metadata that a follower sees late.
const (
	hastened     = time.Second
	hastenedWait = 10 * time.Millisecond
)

// hasten has the followers among brokers ask again soon. One without a session names all that it copies anyway.
func (c *sessions) hasten(brokers []int32, now time.Time) {
	for _, id := range brokers {
		c.mu.Lock()
		s := c.followers[id]
		c.mu.Unlock()
		if s == nil {
			continue
		}
		s.mu.Lock()
		s.hastened = now.Add(hastened)
		wake := s.parked
		if wake != nil && wake.f.end.Sub(now) > hastenedWait {
			s.parked = nil
		} else {
			wake = nil
		}
		s.mu.Unlock()
		if wake != nil {
			go wake.f.p.c.guard(wake.f.p, wake.f.finish)
		}
	}
}

func (c *sessions) end(s *session) { c.partitions.Add(-int64(s.detach())) }
