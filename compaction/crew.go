package compaction

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
)

// The worker looks at all partitions again and again, and its threads work on what a look has found. Neither waits for
// the other: while a thread is at a partition for an hour, looks pass that partition over, and other threads go on with
// what has become dirty meanwhile.
//
//	look      every backoff, or at once when a thread has nothing to do after something was done:
//	          the queue anew, the most worthwhile first
//	thread    takes the first of the queue, claims it, works, takes the next; ends when there is none
//
// What was read of a partition before a thread was done with it says nothing any more: a look that began before leaves it
// to the next one.

// candidate is a partition in which there is something to do.
type candidate struct {
	key   partitionKey
	rev   int64     // of the head that says so
	until time.Time // when it is to be looked at again, though its head has not moved
	topic Topic
	job   picker.Job
}

// crew is who does what: the queue, the partitions that threads are at, and their tables of keys. The worker's lock
// guards it.
type crew struct {
	s      Settings // as of the last look
	queue  []candidate
	at     map[partitionKey]bool // somebody works on
	left   map[partitionKey]bool // somebody has stopped to work on, since the look began
	done   int                   // jobs, since the look began
	others int                   // partitions that others worked on, since the last look

	idle  []*cleaner.Table // of the settings as they are
	bytes int64            // of all tables, also of settings as they were: never more than those of the present ones
}

// set makes the settings those that count from now on. It changes nothing if a table by them had no room for a key.
func (c *crew) set(s Settings) error {
	if c.s.Threads > 0 && c.s.TableBytes == s.TableBytes && c.s.LoadFactor == s.LoadFactor && c.s.Threads == s.Threads {
		return nil
	}
	if err := cleaner.CheckTable(s.TableBytes/int64(s.Threads), s.LoadFactor); err != nil {
		return err
	}
	for _, t := range c.idle {
		c.bytes -= t.Bytes()
	}
	c.s, c.idle = s, nil
	return nil
}

// look notes that a look begins. It returns what the last one has found and nobody has taken, which stays queued.
func (c *crew) look() map[partitionKey]candidate {
	c.left, c.done = make(map[partitionKey]bool), 0
	queued := make(map[partitionKey]candidate, len(c.queue))
	for _, q := range c.queue {
		queued[q.key] = q
	}
	return queued
}

// found notes what the look has found, the most worthwhile first, and tells in how many partitions there is something to
// do, or may be for all that is known.
func (c *crew) found(list []candidate) (jobs, working, others int) {
	c.queue = nil
	for _, q := range list {
		if !c.taken(q.key) { // since it was looked at
			c.queue = append(c.queue, q)
		}
	}
	others, c.others = c.others, 0
	if len(c.queue)+len(c.at) == 0 {
		// A worker that has nothing to do keeps no tables: it may be inside a broker, whose heap may grow to double of what is held.
		for _, t := range c.idle {
			c.bytes -= t.Bytes()
		}
		c.idle = nil
	}
	jobs = len(c.queue) + len(c.at)
	for key := range c.left {
		if !c.at[key] {
			jobs++
		}
	}
	return jobs, len(c.at), others
}

// taken tells whether somebody works on a partition, or has since the look began.
func (c *crew) taken(key partitionKey) bool { return c.at[key] || c.left[key] }

// take gives a thread that has nothing to do a partition, and a table for it.
func (c *crew) take() (q candidate, t *cleaner.Table, ok bool) {
	if len(c.queue) == 0 || len(c.at) >= c.s.Threads {
		return q, nil, false
	}
	if n := len(c.idle); n > 0 {
		t, c.idle = c.idle[n-1], c.idle[:n-1]
	} else if t = c.table(); t == nil {
		return q, nil, false
	}
	q, c.queue = c.queue[0], c.queue[1:]
	if c.at == nil {
		c.at = make(map[partitionKey]bool)
	}
	c.at[q.key] = true
	return q, t, true
}

// table makes a table, if there is memory for it.
func (c *crew) table() *cleaner.Table {
	n := c.s.TableBytes / int64(c.s.Threads)
	if c.bytes+n > c.s.TableBytes {
		return nil // jobs under way have it, from when there were fewer threads or larger tables
	}
	var secret [16]byte
	rand.Read(secret[:]) // never fails
	t, err := cleaner.NewTable(n, c.s.LoadFactor, secret)
	if err != nil {
		panic(fmt.Sprintf("compaction: a table that was found right is not: %v", err))
	}
	c.bytes += t.Bytes()
	return t
}

// give takes back what take has given.
func (c *crew) give(q candidate, t *cleaner.Table, jobs int, elsewhere bool) {
	delete(c.at, q.key)
	c.left[q.key] = true
	c.done += jobs
	if elsewhere {
		c.others++
	}
	if t.Fits(c.s.TableBytes/int64(c.s.Threads), c.s.LoadFactor) {
		c.idle = append(c.idle, t)
	} else {
		c.bytes -= t.Bytes()
	}
}

// idler tells whether a thread has nothing to do though something was done since the look began, which may have made
// more to do.
func (c *crew) idler() bool { return c.done > 0 && len(c.queue) == 0 && len(c.at) < c.s.Threads }

// start has threads work on what is queued, as many as there may be. Each tells ended when it ends.
func (w *Worker) start(ctx context.Context, lease int64, wg *sync.WaitGroup, ended func()) {
	for {
		w.mu.Lock()
		c, table, ok := w.crew.take()
		w.mu.Unlock()
		if !ok {
			return
		}
		wg.Go(func() {
			defer ended()
			for ok {
				c, table, ok = w.do(ctx, lease, c, table)
			}
		})
	}
}

// do works on a partition, and returns the next one.
func (w *Worker) do(ctx context.Context, lease int64, c candidate, t *cleaner.Table) (next candidate, table *cleaner.Table, ok bool) {
	jobs, elsewhere, err := w.work(ctx, lease, c, t)
	if err != nil && ctx.Err() == nil {
		w.failed(c.key, c.topic, fmt.Errorf("%s-%d: %w", c.topic.Name, c.key.index, err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alive()
	if k, known := w.known[c.key]; known && err == nil && !elsewhere {
		k.fails, k.err = 0, nil
		w.known[c.key] = k
	}
	w.crew.give(c, t, jobs, elsewhere)
	if ctx.Err() != nil {
		return next, nil, false
	}
	return w.crew.take()
}

// rounds looks and works until ctx ends, and all threads have.
func (w *Worker) rounds(ctx context.Context, lease int64) {
	var wg sync.WaitGroup
	defer wg.Wait()
	w.mu.Lock()
	w.crew.queue = nil // of the last lease
	w.mu.Unlock()
	ended := make(chan struct{}, 1)
	tell := func() {
		select {
		case ended <- struct{}{}:
		default:
		}
	}
	for ctx.Err() == nil {
		began := time.Now()
		w.looked()
		err := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		w.fail(err)
		if err != nil {
			w.log.Error("partitions cannot be looked at", "err", err)
		}
		w.start(ctx, lease, &wg, tell)
		w.rest(ctx, time.Since(began), ended)
	}
}

// rest waits until it is time to look again, after a look that took so long: looking takes no more than half of the time.
func (w *Worker) rest(ctx context.Context, took time.Duration, ended <-chan struct{}) {
	backoff := time.NewTimer(max(w.settings().Backoff, took))
	defer backoff.Stop()
	least := time.NewTimer(took)
	defer least.Stop()
	early := false
	for {
		w.mu.Lock()
		idler := w.crew.idler()
		w.mu.Unlock()
		if early && idler {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-backoff.C:
			return
		case <-least.C:
			early = true
		case <-ended:
		}
	}
}

// Round looks at every partition once, does in each the job that is most worthwhile, most worthwhile partitions first, and
// returns how many jobs were done. Run is not to run meanwhile.
func (w *Worker) Round(ctx context.Context, lease int64) (jobs int, err error) {
	if err := w.look(ctx); err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	w.start(ctx, lease, &wg, func() {})
	wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.crew.done, ctx.Err()
}
