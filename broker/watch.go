package broker

import (
	"sync"
	"time"
)

// A watch ties one partition of a fetch session to its replica. When the
// partition changes (more below the high watermark, another log start, another
// leader), the replica puts the watch on its session's list of partitions to
// look at. So a session of a thousand idle partitions costs nothing while
// nothing happens, and a fetch looks only at what moved.
type watch struct {
	s *session
	r *replica // nil while the partition is unknown here

	// Guarded by s.mu.
	p     sessionPartition
	dirty bool // on s.dirty
	gone  bool // forgotten by the client
}

// touched lists a partition as one to look at; n is how many bytes came below
// the high watermark, or wakeNow for a change that a parked fetch must see at
// once. decided says that records below the last stable offset have become more
// than that: the end of a transaction, of a few bytes, may show any number of
// them to who reads committed records. It reports false for a watch that nobody
// looks at any more.
func (w *watch) touched(n int64, decided bool) bool {
	s := w.s
	s.mu.Lock()
	if w.gone {
		s.mu.Unlock()
		return false
	}
	if !w.dirty {
		w.dirty = true
		s.dirty = append(s.dirty, w)
	}
	var wake *parkedFetch
	if f := s.parked; f != nil {
		f.have += n
		if f.have >= f.want || decided && f.f.req.IsolationLevel == 1 {
			s.parked = nil
			wake = f
		}
	}
	s.mu.Unlock()
	if wake != nil {
		go wake.resume()
	}
	return true
}

// wakeNow is more than any fetch waits for.
const wakeNow = int64(1) << 60

func (r *replica) addWatch(w *watch) {
	r.watchMu.Lock()
	r.watches[w] = struct{}{}
	if w.s.copies {
		r.copiers.Add(1)
	}
	r.watchMu.Unlock()
}

func (r *replica) dropWatch(w *watch) {
	r.watchMu.Lock()
	r.forget(w)
	r.watchMu.Unlock()
}

// forget takes a watch away. Called with watchMu held.
func (r *replica) forget(w *watch) {
	if _, ok := r.watches[w]; ok && w.s.copies {
		r.copiers.Add(-1)
	}
	delete(r.watches, w)
}

// grown tells the watches that n more bytes are below the high watermark; see
// touched. Followers have them already, and are told the high watermark with
// what they are sent next.
func (r *replica) grown(n int64, decided bool) {
	r.watchMu.Lock()
	for w := range r.watches {
		more := n
		if w.s.copies && n != wakeNow {
			more = 0
		}
		if !w.touched(more, decided) {
			// Its session ended while the watch was being set.
			r.forget(w)
		}
	}
	r.watchMu.Unlock()
}

// appended tells the followers that n more bytes are at the end of the log.
func (r *replica) appended(n int64) {
	if r.copiers.Load() == 0 {
		return
	}
	r.watchMu.Lock()
	for w := range r.watches {
		if w.s.copies && !w.touched(n, false) {
			r.forget(w)
		}
	}
	r.watchMu.Unlock()
}

// changed tells the watches that the partition is not what it was.
func (r *replica) changed() { r.grown(wakeNow, false) }

// session is the partitions that one consumer reads: kept over requests
// (KIP-227) or made for a single one.
//
// Lock ordering: a replica's watchMu comes before mu, a connection's mu after
// it; nothing else is called out under mu.
type session struct {
	id     int32 // 0: not kept
	copies bool  // of a follower,
	of     int32 // the broker

	mu       sync.Mutex
	epoch    int32 // of the next request
	watches  map[partitionKey]*watch
	order    []*watch // of a full request: the client's order
	dirty    []*watch // to look at, oldest first
	parked   *parkedFetch
	lastUsed time.Time
	busy     bool      // a request is being answered
	hastened time.Time // of a follower: until then no fetch is held for long
}

// partitionKey names a partition as the request did: by id from version 13 on.
type partitionKey struct {
	id    [16]byte
	topic string
	index int32
}

// sessionPartition is what the client said of a partition, and what it was
// told of it.
type sessionPartition struct {
	key              partitionKey
	fetchOffset      int64
	maxBytes         int32
	currentEpoch     int32
	lastFetchedEpoch int32
	toldHW           int64
	toldLogStart     int64
	toldRemoteEnd    int64 // a follower
	news             bool  // a follower has said where it stands, and it has not been noted
}

// next lists what the session's next request is to look at beside what has changed
// since: first what was left out, last what was served, as in Kafka. Else a consumer
// that is behind on many partitions would be sent those that come first, as much
// as fits, and nothing of the others before it has caught up with these. Called
// with mu held.
func (s *session) next(again, served []*watch) {
	for _, list := range [][]*watch{again, served} {
		for _, w := range list {
			if !w.dirty && !w.gone {
				w.dirty = true
				s.dirty = append(s.dirty, w)
			}
		}
	}
	if len(served) == 0 || len(served) == len(s.dirty) {
		return
	}
	// One that was served and has grown meanwhile stands where it grew.
	had := make(map[*watch]struct{}, len(served))
	for _, w := range served {
		had[w] = struct{}{}
	}
	last := make([]*watch, 0, len(served))
	kept := s.dirty[:0]
	for _, w := range s.dirty {
		if _, ok := had[w]; ok {
			last = append(last, w)
		} else {
			kept = append(kept, w)
		}
	}
	s.dirty = append(kept, last...)
}

// detach ends a session: no replica refers to it any more. It returns how many
// partitions it had.
func (s *session) detach() int {
	s.mu.Lock()
	watches := s.watches
	s.watches = nil
	s.dirty, s.order = nil, nil
	for _, w := range watches {
		w.gone = true
	}
	s.mu.Unlock()
	for _, w := range watches {
		if w.r != nil {
			w.r.dropWatch(w)
		}
	}
	return len(watches)
}
