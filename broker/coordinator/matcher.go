package coordinator

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/pattern"
	"github.com/varve/varve/broker/protocol"
)

// matcher finds which topics regular expressions match, beside the shards: it may take long, and the groups of a shard
// should not wait for one of them. Matching takes time in proportion to the lengths of the expression and of all names
// together. An expression that takes more processor time than a client may have is refused; and one is matched at a
// time, of those that people write and of large ones each, so that nobody waits long for others'.
//
// What was found is kept for a while, for all who ask the same: the members of a group do.
type matcher struct {
	simple, large chan struct{} // hold one

	mu    sync.Mutex
	found map[matchKey]*matching // under way, or kept
	kept  []matchKey             // oldest first
}

type matchKey struct {
	expr    string
	version int64 // of the topics
}

type matching struct {
	done chan struct{}
	m    group.Matched
	err  error // it was given up before its turn
}

const (
	// matchBudget and matchEach are the processor time that an expression may take: so much, and so much more for each
	// topic.
	matchBudget = 50 * time.Millisecond
	matchEach   = 5 * time.Microsecond
	// simpleCost is what expressions that people write do not reach.
	simpleCost  = 500
	keptMatches = 32
)

func newMatcher() *matcher {
	return &matcher{simple: make(chan struct{}, 1), large: make(chan struct{}, 1), found: map[matchKey]*matching{}}
}

// match finds what an expression matches, or waits for who is about to. An error: ctx has ended before.
func (x *matcher) match(ctx context.Context, expr string, view group.Topics) (*group.Matched, error) {
	key := matchKey{expr, view.Version()}
	f := &matching{done: make(chan struct{})}
	x.mu.Lock()
	if other := x.found[key]; other != nil {
		x.mu.Unlock()
		select {
		case <-other.done:
			return &other.m, other.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	x.found[key] = f
	x.mu.Unlock()
	lane := x.simple
	if pattern.Cost(expr) > simpleCost {
		lane = x.large
	}
	select {
	case lane <- struct{}{}:
	case <-ctx.Done():
		f.err = ctx.Err()
		x.mu.Lock()
		delete(x.found, key)
		x.mu.Unlock()
		close(f.done)
		return nil, f.err
	}
	f.m = group.Matched{Expr: expr, Version: key.version}
	f.m.Topics, f.m.Err = matchWithin(expr, view)
	<-lane
	close(f.done)
	x.mu.Lock()
	if x.kept = append(x.kept, key); len(x.kept) > keptMatches {
		delete(x.found, x.kept[0])
		x.kept = slices.Delete(x.kept, 0, 1)
	}
	x.mu.Unlock()
	return &f.m, nil
}

// matchWithin matches within the budget.
func matchWithin(expr string, view group.Topics) ([]string, error) {
	runtime.LockOSThread() // whose time is measured
	defer runtime.UnlockOSThread()
	n := len(view.Names())
	budget, began := matchBudget+time.Duration(n)*matchEach, threadTime()
	return group.Match(expr, view, func() error {
		if threadTime()-began > budget {
			return fmt.Errorf("it takes more than %v to match it against the names of %d topics", budget, n)
		}
		return nil
	})
}

// threadTime is the processor time that the calling thread has used.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		panic(fmt.Sprintf("coordinator: getrusage: %v", err)) // there is no reason that is not a mistake here
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// match has the shard repeat a command when it is known what an expression matches.
func (m *groupMachine) match(c *group.ConsumerHeartbeat, expr string) {
	m.s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(m.s.ctx, m.s.o.ReplyTimeout)
		defer cancel()
		found, err := m.matcher.match(ctx, expr, c.Topics)
		if err != nil {
			m.s.resume(c.Token, c, protocol.CodeCoordinatorNotAvailable) // clients ask again
			return
		}
		again := *c
		again.Matched = found
		m.s.resume(c.Token, &again, protocol.CodeNone)
	})
}
