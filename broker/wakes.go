package broker

import (
	"sync"
	"sync/atomic"
)

// wakes puts together the answers that one fsync makes ready. While the log
// tells the callers of a block that it is durable, connections whose writers
// would be woken are listed, each once, and woken when all have been told: a
// connection with ten produce requests in the block then sends ten answers in
// one system call, where a writer that is woken by the first of them sends
// that one alone and the rest behind it.
//
// Whoever completes an answer at that time for another reason waits for the
// end of the telling, which does not block and takes microseconds.
type wakes struct {
	held atomic.Bool // changed with mu held

	mu   sync.Mutex
	list []*conn
}

// hold lists c as one to wake later. False: it is to be woken now.
func (w *wakes) hold(c *conn) bool {
	if !w.held.Load() {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.held.Load() {
		return false
	}
	if !c.wakeOwed {
		c.wakeOwed = true
		w.list = append(w.list, c)
	}
	return true
}

// telling is told by the log when it begins to tell, and when it has told.
func (w *wakes) telling(begin bool) {
	w.mu.Lock()
	if begin {
		w.held.Store(true)
		w.mu.Unlock()
		return
	}
	w.held.Store(false)
	for _, c := range w.list {
		c.wakeOwed = false
		c.wake()
	}
	clear(w.list)
	w.list = w.list[:0]
	w.mu.Unlock()
}

// Telling is for wal.Events.
func (b *Broker) Telling(begin bool) { b.wakes.telling(begin) }
