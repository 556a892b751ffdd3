package cache

// Eviction is S3-FIFO (Yang et al., SOSP 2023): a small queue that everything new passes through, a main queue for
// what was asked for again, and a ghost queue that remembers what fell out of the small one. A scan runs through the
// small queue and never touches main. While there is room nothing is evicted, whatever queue it is in, so a log
// that fits is served from here on its second replay.
//
// One queue is added to the paper's: ahead holds what readahead has fetched and nobody has read yet. Such a chunk is
// about to be used, which is the one thing its age does not tell, so it goes last. Its bytes are bounded by
// whoever adds to it; what waits too long (its reader went away) is moved to the small queue by expire.
//
// The policy is a plain value without lock, clock or I/O.

// Key names one chunk.
type Key struct {
	Object string // object key; never reused for other bytes
	Chunk  int
}

type queueID uint8

const (
	queueNone queueID = iota
	queueSmall
	queueMain
	queueAhead
	queueGhost
)

// maxFreq caps the count of accesses, so that a chunk once popular is not kept for ever.
const maxFreq = 3

// node is one chunk in the policy. It is in exactly one queue.
type node struct {
	key        Key
	weight     int64
	freq       uint8
	in         queueID
	added      int64 // time at which readahead brought it, in the caller's unit
	prev, next *node
}

// queue is a FIFO list; head is the newest.
type queue struct {
	root   node
	weight int64
	len    int
}

func (q *queue) init() { q.root.prev, q.root.next = &q.root, &q.root }

func (q *queue) push(n *node, id queueID) {
	n.in = id
	n.prev, n.next = &q.root, q.root.next
	n.prev.next, n.next.prev = n, n
	q.weight += n.weight
	q.len++
}

func (q *queue) remove(n *node) {
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
	n.in = queueNone
	q.weight -= n.weight
	q.len--
}

func (q *queue) oldest() *node {
	if q.len == 0 {
		return nil
	}
	return q.root.prev
}

type policy struct {
	capacity                  int64 // in the unit of weights
	small, main, ahead, ghost queue
	ghosts                    map[Key]*node
}

func newPolicy(capacity int64) *policy {
	p := &policy{capacity: capacity, ghosts: map[Key]*node{}}
	for _, q := range []*queue{&p.small, &p.main, &p.ahead, &p.ghost} {
		q.init()
	}
	return p
}

func (p *policy) queue(id queueID) *queue {
	switch id {
	case queueSmall:
		return &p.small
	case queueMain:
		return &p.main
	case queueAhead:
		return &p.ahead
	}
	panic("cache: node in no queue")
}

// weight is what all queues but the ghosts hold.
func (p *policy) weight() int64 { return p.small.weight + p.main.weight + p.ahead.weight }

// add takes a chunk in; ahead says that it was fetched before anybody asked for it.
func (p *policy) add(key Key, weight int64, ahead bool, now int64) *node {
	n := &node{key: key, weight: weight, added: now}
	if g := p.ghosts[key]; g != nil {
		p.ghost.remove(g)
		delete(p.ghosts, key)
		p.main.push(n, queueMain)
		return n
	}
	if ahead {
		p.ahead.push(n, queueAhead)
	} else {
		p.small.push(n, queueSmall)
	}
	return n
}

// touch notes an access. The first one of a chunk fetched ahead is the access that the fetch was for, so it does not
// count as a second.
func (p *policy) touch(n *node) {
	if n.in == queueAhead {
		p.ahead.remove(n)
		p.small.push(n, queueSmall)
		return
	}
	n.freq = min(n.freq+1, maxFreq)
}

// expire gives up on what readahead brought before the given time and nobody has read.
func (p *policy) expire(before int64) {
	for n := p.ahead.oldest(); n != nil && n.added < before; n = p.ahead.oldest() {
		p.ahead.remove(n)
		p.small.push(n, queueSmall)
	}
}

func (p *policy) remove(n *node) { p.queue(n.in).remove(n) }

// evict chooses a chunk, takes it out and returns it; nil if there is none. Each turn either returns or takes one off
// a bounded count, so it ends.
func (p *policy) evict() *node {
	for {
		if n := p.small.oldest(); n != nil && (p.small.weight > p.capacity/10 || p.main.len == 0) {
			p.small.remove(n)
			// More than one access beside the one that fetched it: two readers that follow each other closely through
			// old data are still one scan.
			if n.freq > 1 {
				n.freq = 0
				p.main.push(n, queueMain)
				continue
			}
			p.remember(n)
			return n
		}
		if n := p.main.oldest(); n != nil {
			p.main.remove(n)
			if n.freq > 0 {
				n.freq--
				p.main.push(n, queueMain)
				continue
			}
			return n
		}
		if n := p.ahead.oldest(); n != nil {
			p.ahead.remove(n)
			return n
		}
		return nil
	}
}

// remember keeps the name of what left the small queue, for as many bytes as the main queue may have.
func (p *policy) remember(n *node) {
	g := &node{key: n.key, weight: n.weight}
	p.ghosts[g.key] = g
	p.ghost.push(g, queueGhost)
	for p.ghost.weight > p.capacity*9/10 && p.ghost.len > 1 {
		old := p.ghost.oldest()
		p.ghost.remove(old)
		delete(p.ghosts, old.key)
	}
}
