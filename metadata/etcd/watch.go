package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
)

// ErrSilent: whoever serves the watch does not say any more how far it is.
var ErrSilent = errors.New("metadata: the watch is silent")

// WatchOptions say from where a watch goes on, and when it is given up.
type WatchOptions struct {
	After int64 // changes of later revisions are delivered
	// Every is how often the member of etcd that serves the watch is asked how far
	// it is; zero for never. One that hangs keeps its connections, so that a watch
	// there would be broken and not look it.
	Every time.Duration
	// Patience is how long nothing may come of that before the watch is given up.
	Patience time.Duration
	// Alive is called, if set, as long as the watch is known to be well: something came
	// of it, or is being delivered, and nothing asked has gone unanswered.
	Alive func()
}

// Watch delivers every change of the image after the given revision, one delta
// per revision in order, until ctx ends or the watch breaks. It returns
// ErrCompacted when the position is gone and the image must be loaded again, and
// ErrSilent when another member should be tried.
func (s *Store) Watch(ctx context.Context, o WatchOptions, f func(image.Delta) error) error {
	w, end := s.watcher()
	defer end()
	v := newVigil(time.Now(), o.Patience, s.Revision())
	var wg sync.WaitGroup
	defer wg.Wait()
	wctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	if o.Every > 0 {
		wg.Go(func() { s.keepVigil(wctx, cancel, w, v, o) })
	}
	// From the last revision that is known, which is passed over: of a watch that
	// begins in the future etcd does not say how far it is.
	ch := w.Watch(wctx, s.keys.image(), clientv3.WithPrefix(), clientv3.WithRev(max(o.After, 1)))
	v.open()
	if o.Every > 0 {
		request(wctx, w, o.Every)
	}
	for resp := range ch {
		if resp.CompactRevision != 0 {
			return fmt.Errorf("%w: wanted %d, oldest is %d", ErrCompacted, o.After+1, resp.CompactRevision)
		}
		if err := resp.Err(); err != nil {
			return fmt.Errorf("%w: watch: %w", ErrUnavailable, err)
		}
		shown := resp.Header.Revision
		if n := len(resp.Events); n > 0 {
			// Not the header's: what a watch that is behind is sent is followed by more.
			shown = resp.Events[n-1].Kv.ModRevision
		}
		v.work()
		// All events of a revision arrive in one response (fragments are not
		// asked for), and revisions ascend.
		for i := 0; i < len(resp.Events); {
			rev := resp.Events[i].Kv.ModRevision
			d := image.Delta{Revision: rev}
			for ; i < len(resp.Events) && resp.Events[i].Kv.ModRevision == rev; i++ {
				kv := resp.Events[i].Kv
				value := nonNil(kv.Value)
				if resp.Events[i].Type == clientv3.EventTypeDelete {
					value = nil
				}
				c, err := s.keys.change(string(kv.Key), value, kv.CreateRevision)
				if err != nil {
					return fmt.Errorf("watch: %w", err)
				}
				if c != nil {
					d.Changes = append(d.Changes, c)
				}
			}
			if rev <= o.After {
				continue
			}
			if err := f(d); err != nil {
				return err
			}
		}
		if v.heard(time.Now(), shown, len(resp.Events) > 0) && o.Alive != nil {
			o.Alive()
		}
	}
	if errors.Is(context.Cause(wctx), ErrSilent) {
		return fmt.Errorf("%w: %w", ErrUnavailable, ErrSilent)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: watch closed", ErrUnavailable)
}

// watcher is what one watch goes through, and how that is ended. Over a network
// each has its own: the client's common one would put a watch that takes the
// place of another on the same stream to the same member, behind what that one
// has not answered.
func (s *Store) watcher() (clientv3.Watcher, func()) {
	if s.client.ActiveConnection() == nil {
		return s.client.Watcher, func() {} // in this process
	}
	w := clientv3.NewWatcher(s.client)
	return w, func() { w.Close() }
}

// keepVigil asks how far the watch is until it ends, and ends it if nobody says.
func (s *Store) keepVigil(ctx context.Context, cancel context.CancelCauseFunc, w clientv3.Watcher, v *vigil, o WatchOptions) {
	t := time.NewTicker(o.Every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if v.silent(now) {
			cancel(ErrSilent)
			return
		}
		if o.Alive != nil && v.well() {
			o.Alive()
		}
		if v.ask(now, s.Revision()) {
			request(ctx, w, o.Every)
		}
	}
}

// request asks how far the watch is. What fails of it shows as silence.
func request(ctx context.Context, w clientv3.Watcher, most time.Duration) {
	if ctx.Err() != nil {
		return // or it would open a stream of its own
	}
	ctx, stop := context.WithTimeout(ctx, most)
	defer stop()
	w.RequestProgress(ctx)
}

// vigil is what is known of whether a watch is current. A question is answered by
// whatever shows the revision that was known when it was put: an answer of a
// member that lags behind the others is none.
type vigil struct {
	patience time.Duration

	mu     sync.Mutex
	opened bool      // there is somebody to ask
	asked  time.Time // when the question was put that is not answered; zero: all are
	wants  int64     // the revision that answers it
	times  int       // how often it was put, or would have been
	last   time.Time // when something came
	busy   bool      // what came is being worked on
}

// newVigil begins with the question whether the watch comes about at all.
func newVigil(now time.Time, patience time.Duration, seen int64) *vigil {
	return &vigil{patience: patience, asked: now, wants: seen}
}

func (v *vigil) open() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opened = true
}

func (v *vigil) work() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.busy = true
}

// ask notes that the question is put again, or a new one; false: there is nobody
// to put it to yet.
func (v *vigil) ask(now time.Time, seen int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.asked.IsZero() {
		v.asked, v.wants, v.times = now, seen, 0
	}
	v.times++
	return v.opened
}

// heard notes what came: all up to a revision has been worked on. It reports whether
// that is a sign of life.
func (v *vigil) heard(now time.Time, revision int64, events bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.busy = false
	answered := !v.asked.IsZero() && revision >= v.wants
	if answered {
		v.asked = time.Time{}
	}
	if events || answered {
		v.last = now
	}
	return events || answered
}

// well says that nothing is waited for.
func (v *vigil) well() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.busy || v.asked.IsZero()
}

// silent says that nothing came for too long of a question that was put more than
// once: a process that was stopped meanwhile has not asked. A watch that has not
// come about is given up earlier; that takes no time where it does.
func (v *vigil) silent(now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.asked.IsZero() || v.busy || v.times < 2 {
		return false
	}
	since, patience := v.asked, v.patience
	if v.last.After(since) {
		since = v.last
	}
	if !v.opened {
		patience /= 2
	}
	return now.Sub(since) >= patience
}
