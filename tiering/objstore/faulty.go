package objstore

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// Kind is what a Fault does to a call.
type Kind int

const (
	FailBefore   Kind = iota // error; the store was not asked
	FailAfter                // the store did it, the caller gets an error: a request that timed out after success
	Delay                    // Fault.Delay first, then as usual
	Hang                     // until the caller's context ends; the store is not asked
	HangAfter                // the store did it, then as Hang
	Throttle                 // ErrThrottled (503), not asked
	Deny                     // ErrDenied (403), not asked
	NoBucket                 // ErrNoBucket (404), not asked
	Missing                  // ErrNotExist although the object is there (get, head)
	Truncate                 // get: the body ends after half its bytes, as a cut connection shows it (ErrTruncated)
	ShortBody                // get: the body ends after half its bytes with a plain io.EOF, as a lying store shows it
	WrongRange               // get: the right number of bytes from another place of the object
	Flip                     // get: one bit of the body is flipped
	StaleList                // list: answers as of the first list ever made through this wrapper with the same arguments
	EmptyList                // list: nothing
	DropFromList             // list: every second key is left out
)

var kindNames = [...]string{"fail before", "fail after", "delay", "hang", "hang after", "throttle", "deny", "no bucket", "missing",
	"truncate", "short body", "wrong range", "flip", "stale list", "empty list", "drop from list"}

func (k Kind) String() string { return kindNames[k] }

// Fault is one line of a fault script. A call takes the first fault, in order of injection, that matches it.
type Fault struct {
	Op    Op      // only this operation; empty: all
	Key   string  // only keys (list: prefixes) that contain this; empty: all. A delete matches by any of its keys
	Nth   int     // only the n-th call (from 1) that Op and Key match, counted from the injection on; 0: each
	Count int     // only this many times; 0: without end
	Prob  float64 // only with this probability, by the wrapper's seed; 0: always
	Kind  Kind
	Err   error         // FailBefore, FailAfter: this instead of ErrUnavailable
	Delay time.Duration // Delay
	// Do, if set, runs before the fault takes effect, outside every lock: a test's hook into the call. An error
	// from it becomes the call's error.
	Do func(ctx context.Context, op Op, key string) error
}

type injected struct {
	Fault
	seen, fired int
	removed     bool
}

// Faulty passes calls on to another bucket, except for those its script spoils.
type Faulty struct {
	b Bucket

	mu     sync.Mutex
	rnd    *rand.Rand
	faults []*injected
	outage bool
	calls  map[Op]int
	fired  int
	lists  map[string]listed
}

type listed struct {
	infos []Info
	more  bool
}

// NewFaulty wraps b; seed drives the faults that have a probability.
func NewFaulty(b Bucket, seed uint64) *Faulty {
	return &Faulty{b: b, rnd: rand.New(rand.NewPCG(seed, 0x6661756c7479)), calls: map[Op]int{}, lists: map[string]listed{}}
}

// Inject adds a fault to the script; remove takes it out again.
func (f *Faulty) Inject(fault Fault) (remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := &injected{Fault: fault}
	f.faults = append(f.faults, in)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		in.removed = true
	}
}

// Clear empties the script and ends an outage.
func (f *Faulty) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.outage = nil, false
}

// SetOutage switches the store off (every call fails with ErrUnavailable at once) or on again.
func (f *Faulty) SetOutage(off bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outage = off
}

// Calls returns how many calls of op were made, spoiled ones included.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Fired returns how many calls were spoiled, those of an outage not counted.
func (f *Faulty) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// pick counts the call and returns the fault it takes, if any, and a random number for its details.
func (f *Faulty) pick(op Op, keys ...string) (fault *Fault, outage bool, r uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	if f.outage {
		return nil, true, 0
	}
	for _, in := range f.faults {
		if in.removed || in.Op != "" && in.Op != op || !anyContains(keys, in.Key) {
			continue
		}
		in.seen++
		if fault != nil || in.Nth > 0 && in.seen != in.Nth || in.Count > 0 && in.fired >= in.Count {
			continue
		}
		if in.Prob > 0 && f.rnd.Float64() >= in.Prob {
			continue
		}
		in.fired++
		f.fired++
		copied := in.Fault
		fault = &copied
	}
	return fault, false, f.rnd.Uint64()
}

func anyContains(keys []string, part string) bool {
	for _, k := range keys {
		if strings.Contains(k, part) {
			return true
		}
	}
	return part == "" || len(keys) == 0
}

// before acts on a fault ahead of the real call; an error means that the call must not be made.
func (f *Faulty) before(ctx context.Context, op Op, key string, fault *Fault, outage bool) error {
	if outage {
		return opError(op, f, key, fmt.Errorf("%w: injected outage", ErrUnavailable))
	}
	if fault == nil {
		return nil
	}
	if fault.Do != nil {
		if err := fault.Do(ctx, op, key); err != nil {
			return opError(op, f, key, err)
		}
	}
	fail := func(err error) error { return opError(op, f, key, fmt.Errorf("%w: injected (%v)", err, fault.Kind)) }
	switch fault.Kind {
	case FailBefore:
		return fail(fault.err())
	case Throttle:
		return fail(ErrThrottled)
	case Deny:
		return fail(ErrDenied)
	case NoBucket:
		return fail(ErrNoBucket)
	case Missing:
		if op == OpGet || op == OpHead {
			return fail(ErrNotExist)
		}
	case Hang:
		<-ctx.Done()
		return fail(ctx.Err())
	case Delay:
		t := time.NewTimer(fault.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	return nil
}

func (fault *Fault) err() error {
	if fault.Err != nil {
		return fault.Err
	}
	return ErrUnavailable
}

// after acts on a fault behind a real call that succeeded.
func (f *Faulty) after(ctx context.Context, op Op, key string, fault *Fault, err error) error {
	if err != nil || fault == nil {
		return err
	}
	switch fault.Kind {
	case FailAfter:
		return opError(op, f, key, fmt.Errorf("%w: injected (%v)", fault.err(), fault.Kind))
	case HangAfter:
		<-ctx.Done()
		return opError(op, f, key, fmt.Errorf("%w: injected (%v)", ctx.Err(), fault.Kind))
	}
	return nil
}

func (f *Faulty) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc32c uint32) error {
	fault, outage, _ := f.pick(OpPut, key)
	if err := f.before(ctx, OpPut, key, fault, outage); err != nil {
		return err
	}
	return f.after(ctx, OpPut, key, fault, f.b.Put(ctx, key, body, size, crc32c))
}

func (f *Faulty) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	fault, outage, rnd := f.pick(OpGet, key)
	if err := f.before(ctx, OpGet, key, fault, outage); err != nil {
		return nil, err
	}
	from := off
	if fault != nil && fault.Kind == WrongRange {
		switch size, err := f.b.Head(ctx, key); {
		case err != nil:
			return nil, err
		case off > 0:
			from = off - 1
		case off+length < size:
			from = off + 1
		}
	}
	r, err := f.b.GetRange(ctx, key, from, length)
	if err = f.after(ctx, OpGet, key, fault, err); err != nil {
		if r != nil {
			r.Close()
		}
		return nil, err
	}
	if fault != nil && length > 0 {
		switch fault.Kind {
		case Truncate:
			return &exactReader{ctx: ctx, r: limited(r, length/2), key: key, left: length}, nil
		case ShortBody:
			return limited(r, length/2), nil
		case Flip:
			return &flipper{ReadCloser: r, at: int64(rnd % uint64(length)), bit: byte(1) << (rnd >> 61)}, nil
		}
	}
	return r, nil
}

func limited(r io.ReadCloser, n int64) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, n), r}
}

// flipper flips one bit of the byte at at.
type flipper struct {
	io.ReadCloser
	at  int64
	bit byte
}

func (f *flipper) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= f.bit
	}
	f.at -= int64(n)
	return n, err
}

func (f *Faulty) Head(ctx context.Context, key string) (int64, error) {
	fault, outage, _ := f.pick(OpHead, key)
	if err := f.before(ctx, OpHead, key, fault, outage); err != nil {
		return 0, err
	}
	size, err := f.b.Head(ctx, key)
	return size, f.after(ctx, OpHead, key, fault, err)
}

func (f *Faulty) List(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	fault, outage, _ := f.pick(OpList, prefix)
	if err := f.before(ctx, OpList, prefix, fault, outage); err != nil {
		return nil, false, err
	}
	infos, more, err := f.b.List(ctx, prefix, after, limit)
	if err := f.after(ctx, OpList, prefix, fault, err); err != nil {
		return nil, false, err
	}
	id := fmt.Sprintf("%s\x00%s\x00%d", prefix, after, limit)
	f.mu.Lock()
	first, known := f.lists[id]
	if !known {
		first = listed{infos, more}
		if len(f.lists) < 1000 {
			f.lists[id] = first
		}
	}
	f.mu.Unlock()
	if fault != nil {
		switch fault.Kind {
		case StaleList:
			return append([]Info(nil), first.infos...), first.more, nil
		case EmptyList:
			return nil, false, nil
		case DropFromList:
			var kept []Info
			for i, in := range infos {
				if i%2 == 1 {
					kept = append(kept, in)
				}
			}
			return kept, more, nil
		}
	}
	return infos, more, nil
}

func (f *Faulty) Delete(ctx context.Context, keys []string) error {
	fault, outage, _ := f.pick(OpDelete, keys...)
	key := ""
	if len(keys) > 0 {
		key = keys[0]
	}
	if err := f.before(ctx, OpDelete, key, fault, outage); err != nil {
		return err
	}
	return f.after(ctx, OpDelete, key, fault, f.b.Delete(ctx, keys))
}

// AbortIncomplete passes on; it is not counted and not spoiled.
func (f *Faulty) AbortIncomplete(ctx context.Context, before time.Time) (int, error) {
	if a, ok := f.b.(MultipartAborter); ok {
		return a.AbortIncomplete(ctx, before)
	}
	return 0, nil
}

func (f *Faulty) String() string { return f.b.String() }
func (f *Faulty) Close() error   { return f.b.Close() }
