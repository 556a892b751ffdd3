package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/varve/varve/wal/batch"
)

// budget bounds the bytes that requests, or responses, hold at one time over
// all connections. A connection waits for its share before it reads a frame's
// body, so that back-pressure reaches the socket and not the heap.
//
// Large requests have at most half of it together: a few connections that send
// the largest frames allowed, slowly, hold up each other and nobody else.
type budget struct {
	sem   *semaphore.Weighted
	large *semaphore.Weighted // taken first
	max   int64
}

func newBudget(total int64) *budget {
	total = max(total, 2)
	return &budget{sem: semaphore.NewWeighted(total), large: semaphore.NewWeighted(total / 2), max: total}
}

// isLarge is what acquire and release agree on.
func (b *budget) isLarge(n int64) bool { return n > b.max/64 }

// acquire waits for n bytes and returns what to give back: never more than
// half of the budget, so that one frame above it is served alone.
func (b *budget) acquire(ctx context.Context, n int64) (int64, error) {
	n = min(max(n, 0), b.max/2)
	if b.isLarge(n) {
		if err := b.large.Acquire(ctx, n); err != nil {
			return 0, err
		}
	}
	if err := b.sem.Acquire(ctx, n); err != nil {
		if b.isLarge(n) {
			b.large.Release(n)
		}
		return 0, err
	}
	return n, nil
}

func (b *budget) release(n int64) {
	if n <= 0 {
		return
	}
	b.sem.Release(n)
	if b.isLarge(n) {
		b.large.Release(n)
	}
}

// free says whether no more than most bytes are held now.
func (b *budget) free(most int64) bool {
	for _, x := range []struct {
		sem *semaphore.Weighted
		n   int64
	}{{b.sem, b.max - most}, {b.large, b.max/2 - most}} {
		if x.n <= 0 {
			continue
		}
		if !x.sem.TryAcquire(x.n) {
			return false
		}
		x.sem.Release(x.n)
	}
	return true
}

// Charged is nil, or which requests or answers are counted as holding more than most bytes. It is for simulations: once
// nobody asks for anything nothing may stay counted, or there would be less and less room for those who ask next.
func (b *Broker) Charged(most int64) error {
	switch {
	case !b.requests.free(most):
		return fmt.Errorf("broker: requests are counted with more than %d bytes", most)
	case b.responses.n.Load() > most || b.wasted.n.Load() > most:
		return fmt.Errorf("broker: answers are counted with %d bytes, and %d of what they lie in", b.responses.n.Load(), b.wasted.n.Load())
	case b.responses.n.Load() < 0 || b.wasted.n.Load() < 0:
		return fmt.Errorf("broker: answers are counted with %d bytes, and %d of what they lie in: more was taken off than was added", b.responses.n.Load(), b.wasted.n.Load())
	}
	for _, o := range []*opening{b.opening, b.heavy} {
		if n := o.max - most; n > 0 && !o.sem.TryAcquire(n) {
			return fmt.Errorf("broker: what is opened is counted with more than %d bytes", most)
		} else if n > 0 {
			o.sem.Release(n)
		}
	}
	return nil
}

// opening bounds what a few bytes of a sender become that has the choice: the
// batches that are opened here at one time, and requests that name very much.
type opening struct {
	sem *semaphore.Weighted
	max int64
}

func newOpening(total int64) *opening {
	total = max(total, 1<<20)
	return &opening{semaphore.NewWeighted(total), total}
}

// open calls f with how much a batch may inflate to: limit, or less if it
// cannot be read piece by piece and there is no more room than that.
func (o *opening) open(ctx context.Context, b []byte, limit int, f func(limit int) error) error {
	n := min(batch.Whole(b), int64(limit), o.max)
	if n == 0 {
		return f(limit)
	}
	return o.with(ctx, n, f)
}

func (o *opening) with(ctx context.Context, n int64, f func(limit int) error) error {
	n = min(n, o.max)
	if err := o.sem.Acquire(ctx, n); err != nil {
		return err
	}
	defer o.sem.Release(n)
	return f(int(n))
}

// recompress is batch.Recompress, which has all of a batch in memory. Most are
// not as small as a few thousandths of their content, and ask for room for that
// only when they turn out to be.
func (o *opening) recompress(ctx context.Context, b []byte, to batch.Codec, level, limit int) (again []byte, err error) {
	for n := min(limit, max(1<<20, 16*len(b))); ; n = limit {
		err = o.with(ctx, int64(n), func(n int) (err error) {
			again, err = batch.Recompress(b, to, level, n)
			return err
		})
		if !errors.Is(err, batch.ErrInflated) || n == limit {
			return again, err
		}
	}
}

// gauge counts bytes that are held and cannot be waited for, against a bound
// that makes whoever adds to it hold back.
type gauge struct {
	n   atomic.Int64
	max int64
}

func (g *gauge) add(n int64) { g.n.Add(n) }

// take adds n if the bound allows it.
func (g *gauge) take(n int64) bool {
	if g.n.Add(n) <= g.max {
		return true
	}
	g.n.Add(-n)
	return false
}

func (g *gauge) exhausted() bool { return g.n.Load() >= g.max }
