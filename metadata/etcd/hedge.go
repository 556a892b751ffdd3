package etcd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The client sends each request to one member of etcd, another each time, and
// waits for its answer as long as the connection stands, which it does for some
// ten seconds where the member hangs. So what is not answered soon is sent once
// more: with one member of three that hangs, the second goes to another.

const (
	// hedgeShare of a request's timeout is how long its answer is waited for alone.
	hedgeShare = 10
	// maxHedges bounds the copies that are under way: an etcd that is slow for all is
	// not made slower by them.
	maxHedges = 16
)

// hedges counts copies under way.
type hedges struct{ n atomic.Int64 }

func (h *hedges) take() bool {
	if h.n.Add(1) <= maxHedges {
		return true
	}
	h.n.Add(-1)
	return false
}

// hedged calls f, and again each time that no answer has come for a while, at
// most so many times in all. The first answer counts, an error only if no other
// attempt is under way, or if it is etcd's own word. sent is how often f was
// called. All calls have ended when it returns.
func hedged[R any](ctx context.Context, h *hedges, after time.Duration, most int, f func(context.Context) (R, error)) (r R, sent int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	type answer struct {
		r   R
		err error
	}
	answers := make(chan answer, most)
	send := func(extra bool) {
		sent++
		wg.Go(func() {
			if extra {
				defer h.n.Add(-1)
			}
			r, err := f(ctx)
			answers <- answer{r, err}
		})
	}
	send(false)
	again := time.NewTimer(after)
	defer again.Stop()
	for left := 1; ; {
		select {
		case a := <-answers:
			left--
			if a.err == nil || left == 0 || errors.Is(a.err, rpctypes.ErrLeaseNotFound) || errors.Is(a.err, rpctypes.ErrCompacted) {
				return a.r, sent, a.err
			}
		case <-again.C:
			if sent < most && h.take() {
				send(true)
				left++
			}
			again.Reset(after)
		}
	}
}
