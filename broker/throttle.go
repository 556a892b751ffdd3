package broker

import (
	"slices"
	"strconv"
	"sync"
	"time"
)

// throttle bounds the bytes a second of replication that topics have listed for
// it ({leader,follower}.replication.throttled.replicas), and of those only
// replicas that are not in sync: it is for what is moved, and must not push a
// replica out of an ISR (KIP-73). What was over the bound is waited for.
type throttle struct {
	mu   sync.Mutex
	rate float64 // bytes a second
	room float64 // at most those of a second; below zero after more was taken
	at   time.Time
}

func (t *throttle) set(rate int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refill(time.Now())
	t.rate = float64(rate)
	t.room = min(t.room, t.rate)
}

func (t *throttle) refill(now time.Time) {
	if t.at.IsZero() {
		t.room = t.rate
	} else {
		t.room = min(t.room+t.rate*max(0, now.Sub(t.at).Seconds()), t.rate)
	}
	t.at = now
}

// exceeded says that nothing more may be taken now.
func (t *throttle) exceeded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refill(time.Now())
	return t.room <= 0
}

func (t *throttle) took(n int) {
	t.mu.Lock()
	t.room -= float64(n)
	t.mu.Unlock()
}

// lists says whether a topic's list of throttled replicas names this one, as
// partition:broker, or all, as *.
func lists(throttled []string, index, broker int32) bool {
	return len(throttled) > 0 &&
		(slices.Contains(throttled, "*") || slices.Contains(throttled, strconv.Itoa(int(index))+":"+strconv.Itoa(int(broker))))
}

// sendsThrottled says that what this leader sends to a follower is throttled.
func (r *replica) sendsThrottled(to int32) bool {
	cfg := r.cfg()
	return cfg != nil && lists(cfg.LeaderThrottledReplicas, r.index, r.b.opts.BrokerID) && !r.counts(to)
}

// copiesThrottled says that what this follower copies is throttled.
func (r *replica) copiesThrottled() bool {
	cfg := r.cfg()
	return cfg != nil && lists(cfg.FollowerThrottledReplicas, r.index, r.b.opts.BrokerID) && !r.counts(r.b.opts.BrokerID)
}

// counts says that a replica is in the ISR.
func (r *replica) counts(id int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.term.ISR, id)
}
