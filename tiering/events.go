package tiering

import (
	"sync"
	"time"

	"github.com/varve/varve/tiering/objstore"
)

// Duty is a kind of background work, as failures name it.
type Duty string

// The duties.
const (
	Upload    Duty = "upload"
	Commit    Duty = "commit"
	Retention Duty = "retention"
	Collect   Duty = "collect"
	Sweep     Duty = "sweep"
	Publish   Duty = "publish"
	Fetch     Duty = "read"
)

// Events tell what happens. Any may be nil; none may block.
type Events struct {
	Uploaded  func(sections int, bytes int64, took time.Duration) // an object is in the bucket and verified
	Committed func(objects int)                                   // a head was committed; objects it gained
	Conflict  func()                                              // a commit was rebased on a head that had moved
	Fenced    func()                                              // a commit of a deposed leader was refused
	Failed    func(d Duty, err error)                             // something will be tried again
	Deleted   func(objects int)                                   // objects of any kind were deleted from the bucket
	Retired   func(objects int, bytes int64)                      // entries fell below the log start
	ReadCold  func(bytes int64)                                   // record batches read from the remote part
	Corrupt   func(object string, err error)                      // bytes from the bucket were not the bytes that were written
	Published func(heads int)
	Orphans   func(found int) // by one sweep
}

func (e Events) filled() Events {
	if e.Uploaded == nil {
		e.Uploaded = func(int, int64, time.Duration) {}
	}
	if e.Committed == nil {
		e.Committed = func(int) {}
	}
	if e.Conflict == nil {
		e.Conflict = func() {}
	}
	if e.Fenced == nil {
		e.Fenced = func() {}
	}
	if e.Failed == nil {
		e.Failed = func(Duty, error) {}
	}
	if e.Deleted == nil {
		e.Deleted = func(int) {}
	}
	if e.Retired == nil {
		e.Retired = func(int, int64) {}
	}
	if e.ReadCold == nil {
		e.ReadCold = func(int64) {}
	}
	if e.Corrupt == nil {
		e.Corrupt = func(string, error) {}
	}
	if e.Published == nil {
		e.Published = func(int) {}
	}
	if e.Orphans == nil {
		e.Orphans = func(int) {}
	}
	return e
}

// failures remembers per duty whether it has been failing, so that an alarm
// stands as long as its cause and the log says it now and then, not each time.
type failures struct {
	mu   sync.Mutex
	last map[Duty]*failure
}

type failure struct {
	err    error
	since  time.Time
	logged map[objstore.Class]time.Time // when last of errors of that class
}

const logEvery = 30 * time.Second

// set notes the outcome of a duty and tells whether it is worth a line in the
// log: the first failure of each class (a store that denies access may break the
// connection before it says so), one of it every logEvery, and the success after them.
func (f *failures) set(d Duty, err error) (since time.Time, say bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, was := time.Now(), f.last[d]
	if err == nil {
		if was == nil {
			return time.Time{}, false
		}
		delete(f.last, d)
		return was.since, true
	}
	if f.last == nil {
		f.last = make(map[Duty]*failure)
	}
	if was == nil {
		was = &failure{since: now, logged: make(map[objstore.Class]time.Time)}
		f.last[d] = was
	}
	was.err = err
	class := objstore.ClassOf(err)
	if say = now.Sub(was.logged[class]) >= logEvery; say { // the zero time is long ago
		was.logged[class] = now
	}
	return was.since, say
}

func (f *failures) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range []Duty{Upload, Commit, Publish, Collect, Retention, Sweep} {
		if w := f.last[d]; w != nil {
			return w.err
		}
	}
	return nil
}

// outcome reports the end of one attempt at a duty.
func (t *Tier) outcome(d Duty, err error) {
	since, say := t.bad.set(d, err)
	if err != nil {
		t.ev.Failed(d, err)
		if say {
			t.log.Error("tiering fails and is tried again", "duty", string(d), "since", since, "err", err)
		}
	} else if say {
		t.log.Info("tiering works again", "duty", string(d), "failed_since", since)
	}
}
