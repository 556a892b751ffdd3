package cache

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/varve/varve/wal/slab"
)

// Stream is one reader's way through objects. It recognises sequential reading and fetches ahead of it, twice as
// far with each step, up to Options.ReadaheadBytes and to its share of what readahead may hold: many readers that each
// wanted all of it would be given single chunks, and a request costs a store more than the bytes of a chunk. A jump
// starts over. It holds no chunks and needs no closing.
type Stream struct {
	c *Cache

	mu       sync.Mutex
	obj      *Object // of the last Get
	last     int     // its chunk
	window   int     // chunks to keep ahead
	ahead    int     // first chunk of obj not yet asked for
	crossing bool    // a goroutine is fetching ahead in the objects behind obj
}

// NewStream returns the stream of a new reader. Several goroutines may share one, but sequences interleaved in one
// stream look like jumps.
func (c *Cache) NewStream() *Stream { return &Stream{c: c} }

// Get returns chunk i of o as Cache.Get does, and fetches ahead.
func (s *Stream) Get(ctx context.Context, o *Object, i int) (*slab.Buf, error) {
	again := s.step(o, i)
	return s.c.get(ctx, o, i, !again)
}

// step notes that chunk i of o is being read and starts readahead; again means that it was the last one read too.
// Readahead starts before the chunk itself is waited for, so both travel together.
func (s *Stream) step(o *Object, i int) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.obj != nil && s.obj.Key == o.Key
	switch {
	case same && i == s.last:
		return true
	case same && i == s.last+1:
	case s.obj != nil && !same && i == 0 && s.last == s.obj.Chunks-1:
		s.ahead = 0 // what the crossing fetched already is found cached
	default:
		s.obj, s.last, s.window, s.ahead = o, i, 0, i+1
		return false
	}
	s.obj, s.last = o, i
	s.ahead = max(s.ahead, i+1)
	s.window = min(max(firstWindow, s.window*2), max(1, s.c.share(s)/s.c.o.ChunkBytes))
	// Asking again only when half of the window is used up makes runs of several chunks, each one request.
	if left := s.ahead - (i + 1); left > s.window/2 {
		return false
	}
	end := i + 1 + s.window
	if s.ahead < o.Chunks {
		s.ahead += s.c.Prefetch(o, s.ahead, min(end, o.Chunks)-s.ahead)
	}
	if end > o.Chunks && s.ahead >= o.Chunks && o.Next != nil && !s.crossing {
		s.crossing = s.c.background(func(ctx context.Context) { s.cross(ctx, o, end-o.Chunks) })
	}
	return false
}

// firstWindow is how many chunks are fetched ahead once a reader has read two that follow each other.
const firstWindow = 4

// activeFor is how long a stream counts as one that reads ahead.
const activeFor = 2 * time.Second

// share is how many bytes a stream, which is one that reads ahead now, may be ahead.
func (c *Cache) share(s *Stream) int {
	now := c.now()
	c.activeMu.Lock()
	defer c.activeMu.Unlock()
	c.active[s] = now
	if now-c.activeSwept > int64(activeFor/8) {
		c.activeSwept = now
		maps.DeleteFunc(c.active, func(_ *Stream, seen int64) bool { return now-seen > int64(activeFor) })
	}
	return int(min(int64(c.o.ReadaheadBytes), c.aheadLimit()/int64(len(c.active))))
}

// cross fetches n chunks ahead in the objects behind o.
func (s *Stream) cross(ctx context.Context, o *Object, n int) {
	defer func() {
		s.mu.Lock()
		s.crossing = false
		s.mu.Unlock()
	}()
	// Small objects may come in long chains, each costing a footer: a few are enough to hide one round trip.
	for hops := 0; n > 0 && hops < 16 && o.Next != nil; hops++ {
		next, err := o.Next(ctx)
		if err != nil || next == nil {
			return // the reader will meet the error itself
		}
		want := min(n, next.Chunks)
		if s.c.Prefetch(next, 0, want) < want {
			return // no room
		}
		n -= want
		o = next
	}
}

// background runs f in a goroutine that Close waits for, with a context that ends with the cache or LoadTimeout. It
// tells whether it was started.
func (c *Cache) background(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		ctx, cancel := context.WithTimeout(c.ctx, c.o.LoadTimeout)
		defer cancel()
		f(ctx)
	}()
	return true
}
