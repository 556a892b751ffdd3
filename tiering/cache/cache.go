// Package cache is the bounded cache of cold reads: chunks of immutable objects, in memory and in a slot file on
// disk.
//
// A chunk is a piece of an object as its owner cuts it (Object.Len), typically some blocks of about 1 MiB together.
// What enters the cache was loaded and verified by Object.Load; object keys are never reused for other bytes, so
// nothing is ever invalidated for correctness.
//
// Bound: memory held by the cache plus memory reserved for downloads in flight stays below Options.MemoryBytes.
// Room is made before a download begins; a download that finds none waits until another one has ended. A chunk that a
// reader still holds after its eviction is the reader's to account for (slab.Buf.Charge).
//
// Single flight: any number of readers of one chunk cause one load. A load belongs to the cache, not to who asked: it
// goes on when every waiter's context has ended, so that the next fetch finds the chunk.
//
// Lock ordering: Stream.mu, then Cache.mu. No I/O, no loader and no waiting happens under either.
package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/varve/varve/wal/slab"
)

// Object is what the cache must know of an object to read it. One value per object is built (with its footer) and
// reused by all readers; the fields do not change.
type Object struct {
	// Key is the object's key in the bucket, or anything else that is never used for other bytes, nor for the same ones
	// cut into other chunks: the slot file outlives the process (see Options.Identity).
	Key string
	// Chunks is the number of chunks.
	Chunks int
	// Len is the size of chunk i in bytes, above zero. It is called under a lock: a look into a table. A chunk of at most Options.ChunkBytes takes one slot of the
	// disk tier, a larger one several.
	Len func(i int) int
	// Load fills dst[k], of Len(first+k) bytes, with chunk first+k, by one ranged read if it can, and verifies what it
	// got. It returns how many chunks, from the first, are filled and right; n == len(dst) exactly if err is nil.
	// ctx ends with the cache or after Options.LoadTimeout. Retrying is the loader's business.
	Load func(ctx context.Context, first int, dst [][]byte) (n int, err error)
	// Next returns the object behind this one for readahead across the seam, or nil. May be nil; may block.
	Next func(ctx context.Context) (*Object, error)
}

// Options configure a cache. Zero values take the defaults named.
type Options struct {
	MemoryBytes    int64         // bound of the memory tier and downloads in flight; 64 MiB
	Dir            string        // directory of the slot file; empty: no disk tier
	DiskBytes      int64         // size the slot file may reach; 0: no disk tier
	Identity       string        // whose objects these are and how they are cut (cluster id, version of the cut): a slot file of another is emptied
	ChunkBytes     int           // size of a slot; 1 MiB
	Loads          int           // loads running at once; 16
	RunBytes       int           // most that readahead asks of one Load; 8 MiB
	ReadaheadBytes int           // most that one stream fetches ahead; 32 MiB, at most a quarter of MemoryBytes
	LoadTimeout    time.Duration // 2 minutes
	DiskWriteBytes int64         // bytes per second written to the slot file; 0: no bound
	Logger         *slog.Logger
	Events         Events
}

// Events tell what happens, from the goroutines where it happens. Any may be nil; none may block.
type Events struct {
	Loaded    func(object string, chunks int, bytes int64, took time.Duration, err error) // a Load has ended
	DiskError func(err error)                                                             // the slot file failed or held damaged bytes
}

// Stats is a snapshot of counters and gauges.
type Stats struct {
	MemoryHits, DiskHits, Misses, Joined int64 // one per Get: Joined waited for a load that was under way

	MemoryBytes, MemoryMax int64 // held, without reservations
	ReservedBytes          int64 // for loads in flight
	AheadBytes             int64 // fetched ahead or on the way, not yet read
	MemoryChunks           int

	DiskBytes, DiskMax int64
	DiskChunks         int

	MemoryEvictions, DiskEvictions int64
	Loads, LoadErrors, LoadedBytes int64
	LoadsInFlight, LoadsQueued     int
	Readahead                      int64 // chunks fetched ahead
	DiskReads, DiskWrites          int64 // chunks
	DiskSkipped                    int64 // chunks evicted from memory before they could be written
	DiskCorrupt, DiskErrors        int64
}

// ErrClosed is what Get returns once the cache is closed.
var ErrClosed = errors.New("chunk cache is closed")

// ErrChunk is a request for a chunk the object does not have, or whose length is not above zero.
var ErrChunk = errors.New("no such chunk")

// errAbandoned marks a flight that ended without an attempt at its chunk: a readahead that was given up, or a run whose
// earlier chunk failed. Whoever waited for it tries again in a load of its own.
var errAbandoned = errors.New("load given up before this chunk")

// Cache is a chunk cache. All methods may be called concurrently.
type Cache struct {
	o      Options
	begin  time.Time
	ctx    context.Context // of all loads
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	policy   *policy
	entries  map[Key]*entry
	flights  map[Key]*flight
	reserved int64 // by running jobs
	ahead    int64 // estimated bytes of readahead jobs queued or running
	loads    waiting
	reads    waiting // of the slot file; a queue of their own: they must not stand behind loads from a store that hangs
	running  int     // jobs that load
	runAhead int     // of these, readahead
	reading  int     // jobs that read the slot file
	disk     *disk
	stats    Stats

	activeMu    sync.Mutex
	active      map[*Stream]int64 // streams that read ahead, and when they last did
	activeSwept int64
}

// entry is a chunk in memory. The cache holds one reference to buf.
type entry struct {
	node *node
	buf  *slab.Buf
}

// flight is one chunk on its way. Its outcome (buf, err) is written once, under Cache.mu, before done is closed; the
// waiters counted then own one reference to buf each.
type flight struct {
	key     Key
	job     *job
	ahead   bool // began as readahead
	waiters int
	ended   bool
	done    chan struct{}
	buf     *slab.Buf
	err     error
}

// job is a load of consecutive chunks of one object, or a read of one chunk from the slot file.
type job struct {
	obj     *Object
	first   int
	flights []*flight
	charge  int64
	ahead   bool // nobody has asked for it yet
	started bool
	slots   *slotEntry // set: read these slots, pinned
}

// waiting are jobs that have not started, oldest first. A job of prefetch that was promoted is in both; it is passed over
// in prefetch.
type waiting struct {
	demand, prefetch []*job
}

// queueFor is where j waits.
func (c *Cache) queueFor(j *job) *waiting {
	if j.slots != nil {
		return &c.reads
	}
	return &c.loads
}

// enqueue lets j wait for its turn; c.mu is held.
func (c *Cache) enqueue(j *job) {
	q := c.queueFor(j)
	if j.ahead {
		c.ahead += j.charge
		q.prefetch = append(q.prefetch, j)
	} else {
		q.demand = append(q.demand, j)
	}
}

// Open starts a cache. An unusable slot file is an error; its contents are not trusted, only offered.
func Open(o Options) (*Cache, error) {
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 64 << 20
	}
	if o.ChunkBytes <= 0 {
		o.ChunkBytes = 1 << 20
	}
	if o.Loads <= 0 {
		o.Loads = 16
	}
	if o.RunBytes <= 0 {
		o.RunBytes = 8 << 20
	}
	if o.ReadaheadBytes <= 0 {
		o.ReadaheadBytes = 32 << 20
	}
	o.ReadaheadBytes = int(min(int64(o.ReadaheadBytes), o.MemoryBytes/4))
	o.RunBytes = min(o.RunBytes, o.ReadaheadBytes)
	if o.LoadTimeout <= 0 {
		o.LoadTimeout = 2 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cache{o: o, begin: time.Now(), policy: newPolicy(o.MemoryBytes), entries: map[Key]*entry{}, flights: map[Key]*flight{}, active: map[*Stream]int64{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if o.Dir != "" && o.DiskBytes > 0 {
		d, err := openDisk(o)
		if err != nil {
			c.cancel()
			return nil, fmt.Errorf("open chunk cache in %s: %w", o.Dir, err)
		}
		c.disk = d
		c.wg.Add(1)
		go c.writeBehind()
	}
	return c, nil
}

// Close ends all loads, waits for them, and lets go of every chunk. Waiters get ErrClosed. What readers hold stays
// valid.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.cancel()
	for _, q := range []*waiting{&c.loads, &c.reads} {
		for _, j := range append(q.demand, q.prefetch...) {
			c.abandon(j, ErrClosed)
		}
		*q = waiting{}
	}
	if c.disk != nil {
		c.disk.wake()
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := c.policy.evict(); n != nil; n = c.policy.evict() {
		c.entries[n.key].buf.Release()
		delete(c.entries, n.key)
	}
	if c.disk != nil {
		return c.disk.close()
	}
	return nil
}

// SetLoads changes how many loads run at once. Those that run go on.
func (c *Cache) SetLoads(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.o.Loads = max(n, 1)
	c.dispatch()
}

// Stats returns the counters so far.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.MemoryBytes, s.MemoryMax, s.MemoryChunks = c.policy.weight(), c.o.MemoryBytes, len(c.entries)
	s.ReservedBytes, s.AheadBytes = c.reserved, c.ahead+c.policy.ahead.weight
	s.LoadsInFlight, s.LoadsQueued = c.running, c.queued()
	if c.disk != nil {
		s.DiskBytes, s.DiskMax, s.DiskChunks = c.disk.usedBytes(), c.disk.maxBytes(), len(c.disk.index)
	}
	return s
}

func (c *Cache) queued() int {
	n := 0
	for _, q := range []*waiting{&c.loads, &c.reads} {
		n += len(q.demand)
		for _, j := range q.prefetch {
			if !j.started && j.ahead {
				n++
			}
		}
	}
	return n
}

// Get returns chunk i of o, one reference for the caller to release. If ctx ends first only the waiting does.
func (c *Cache) Get(ctx context.Context, o *Object, i int) (*slab.Buf, error) {
	return c.get(ctx, o, i, true)
}

// get is Get; count says whether a hit is a new access or the same reader still busy with the chunk.
func (c *Cache) get(ctx context.Context, o *Object, i int, count bool) (*slab.Buf, error) {
	if i < 0 || i >= o.Chunks || o.Len(i) <= 0 {
		return nil, fmt.Errorf("%w: %d of %d of %s", ErrChunk, i, o.Chunks, o.Key)
	}
	key := Key{o.Key, i}
	counted := false
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, ErrClosed
		}
		if e := c.entries[key]; e != nil {
			if count || e.node.in == queueAhead {
				c.policy.touch(e.node)
			}
			if !counted {
				c.stats.MemoryHits++
			}
			e.buf.Retain()
			c.mu.Unlock()
			return e.buf, nil
		}
		f := c.flights[key]
		if f != nil {
			if !counted {
				c.stats.Joined++
			}
			c.promote(f.job)
		} else {
			j := c.newJob(o, i, 1, false)
			f = j.flights[0]
			if !counted {
				if j.slots != nil {
					c.stats.DiskHits++
				} else {
					c.stats.Misses++
				}
			}
			c.enqueue(j)
		}
		counted = true
		f.waiters++
		c.dispatch()
		c.mu.Unlock()
		buf, err := c.wait(ctx, f)
		if errors.Is(err, errAbandoned) {
			continue
		}
		return buf, err
	}
}

func (c *Cache) wait(ctx context.Context, f *flight) (*slab.Buf, error) {
	select {
	case <-f.done:
		return f.buf, f.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.ended {
		f.waiters--
	} else if f.buf != nil {
		f.buf.Release()
	}
	return nil, ctx.Err()
}

// newJob makes a job for n chunks and registers their flights; c.mu is held. A single chunk that the slot file has
// is read from there.
func (c *Cache) newJob(o *Object, first, n int, ahead bool) *job {
	j := &job{obj: o, first: first, ahead: ahead}
	for i := first; i < first+n; i++ {
		f := &flight{key: Key{o.Key, i}, job: j, ahead: ahead, done: make(chan struct{})}
		j.charge += estimate(o.Len(i))
		j.flights = append(j.flights, f)
		c.flights[f.key] = f
	}
	if n == 1 && c.disk != nil {
		j.slots = c.disk.pin(j.flights[0].key, o.Len(first))
	}
	return j
}

// estimate is what a buffer of n bytes will be charged: buffers come in powers of two.
func estimate(n int) int64 {
	size := int64(4 << 10)
	for size < int64(n) && size < 16<<20 {
		size *= 2
	}
	return max(size, int64(n))
}

// promote turns a readahead that somebody waits for into a load in its own right; c.mu is held.
func (c *Cache) promote(j *job) {
	if !j.ahead {
		return
	}
	j.ahead = false
	c.ahead -= j.charge
	if j.started {
		if j.slots == nil {
			c.runAhead--
		}
		return
	}
	q := c.queueFor(j)
	q.demand = append(q.demand, j)
}

// maxForsaken is how many queued demands are kept although nobody waits for them any more. Up to that, they are loaded all
// the same, for the next fetch.
const maxForsaken = 1024

// dispatch starts what may start; c.mu is held. Demands go first and in order: one that finds no room keeps those behind
// it waiting, so that a large chunk is not starved by small ones.
func (c *Cache) dispatch() {
	for _, q := range []*waiting{&c.reads, &c.loads} {
		for len(q.demand) > 0 && !c.closed {
			j := q.demand[0]
			if len(q.demand) > maxForsaken && j.forsaken() {
				c.abandon(j, errAbandoned)
			} else if !c.start(j) {
				break
			}
			q.demand = q.demand[1:]
		}
	}
	for _, q := range []*waiting{&c.reads, &c.loads} {
		for len(q.prefetch) > 0 && !c.closed {
			j := q.prefetch[0]
			if !j.started && j.ahead {
				// A quarter of the loads stays free for demands, and all memory while a demand waits for some.
				if len(c.loads.demand)+len(c.reads.demand) > 0 || j.slots == nil && c.runAhead >= max(1, c.o.Loads*3/4) || !c.start(j) {
					break
				}
			}
			q.prefetch = q.prefetch[1:]
		}
	}
}

// forsaken tells whether nobody waits for any of the job's chunks.
func (j *job) forsaken() bool {
	for _, f := range j.flights {
		if f.waiters > 0 {
			return false
		}
	}
	return true
}

// diskReads is how many chunks are read from the slot file at once.
const diskReads = 8

// start reserves memory for j and runs it, or tells that it must wait.
func (c *Cache) start(j *job) bool {
	if j.slots == nil && c.running >= c.o.Loads || j.slots != nil && c.reading >= diskReads {
		return false
	}
	for c.policy.weight()+c.reserved+j.charge > c.o.MemoryBytes {
		if !c.evict() {
			// Nothing is left but what is in flight. A chunk larger than the whole bound may go alone.
			if c.reserved == 0 && !j.ahead {
				break
			}
			return false
		}
	}
	c.reserved += j.charge
	j.started = true
	if j.slots != nil {
		c.reading++
	} else {
		c.running++
		if j.ahead {
			c.runAhead++
		}
	}
	c.wg.Add(1)
	go c.run(j)
	return true
}

// evict lets one chunk go from memory; c.mu is held.
func (c *Cache) evict() bool {
	n := c.policy.evict()
	if n == nil {
		return false
	}
	e := c.entries[n.key]
	delete(c.entries, n.key)
	e.buf.Release()
	c.stats.MemoryEvictions++
	return true
}

// run carries out a job that start has admitted.
func (c *Cache) run(j *job) {
	defer c.wg.Done()
	bufs := make([]*slab.Buf, len(j.flights))
	dst := make([][]byte, len(j.flights))
	var bytes int64
	for k := range j.flights {
		bufs[k] = slab.Get(j.obj.Len(j.first + k))
		dst[k] = bufs[k].Bytes()
		bytes += int64(len(dst[k]))
	}
	var n int
	var err error
	if j.slots != nil {
		if err = c.disk.read(j.slots, dst[0]); err == nil {
			n = 1
		} else {
			c.diskEvent(err)
			c.o.Logger.Warn("chunk cache: slot cannot be used, loading the chunk again", "dir", c.o.Dir, "error", err)
		}
	} else {
		n, err = c.load(j, dst, bytes)
	}
	c.finish(j, bufs, n, err)
}

func (c *Cache) load(j *job, dst [][]byte, bytes int64) (int, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.o.LoadTimeout)
	defer cancel()
	begin := time.Now()
	n, err := j.obj.Load(ctx, j.first, dst)
	if n < 0 || n > len(dst) || err == nil && n < len(dst) {
		err = errors.Join(err, fmt.Errorf("loader of %s filled %d of %d chunks", j.obj.Key, n, len(dst)))
		n = 0
	}
	if err != nil && n == len(dst) {
		n = 0 // it contradicts itself: nothing of it is believed
	}
	if c.o.Events.Loaded != nil {
		if err != nil {
			bytes = 0
			for _, b := range dst[:n] {
				bytes += int64(len(b))
			}
		}
		c.o.Events.Loaded(j.obj.Key, n, bytes, time.Since(begin), err)
	}
	return n, err
}

// finish publishes the first n chunks of a job and the error of the others.
func (c *Cache) finish(j *job, bufs []*slab.Buf, n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved -= j.charge
	retry := false
	if j.slots != nil {
		c.reading--
		c.disk.unpin(j.slots)
		if err != nil {
			// Damaged or unreadable slots are a miss.
			c.diskFault(j.flights[0].key, j.slots, err)
			retry = !c.closed
		} else {
			c.stats.DiskReads++
		}
	} else {
		c.running--
		if j.ahead {
			c.runAhead--
		}
		c.stats.Loads++
		if err != nil {
			c.stats.LoadErrors++
		}
	}
	if j.ahead {
		c.ahead -= j.charge
	}
	for k, f := range j.flights {
		switch {
		case k < n && !c.closed:
			if j.slots == nil {
				c.stats.LoadedBytes += int64(len(bufs[k].Bytes()))
			}
			c.publish(f, bufs[k], j.slots == nil)
		case k < n || c.closed:
			bufs[k].Release()
			c.end(f, nil, ErrClosed)
		case retry:
			// The flight goes on as a load; nobody who waits for it notices.
			bufs[k].Release()
			c.reload(j, f)
		case k == n:
			bufs[k].Release()
			c.end(f, nil, err)
		default:
			bufs[k].Release()
			c.end(f, nil, errAbandoned)
		}
	}
	// Buffers may be charged more than was estimated for them.
	for c.policy.weight()+c.reserved > c.o.MemoryBytes && c.evict() {
	}
	c.dispatch()
}

// reload queues a chunk whose slots were bad as an ordinary load, keeping its flight.
func (c *Cache) reload(j *job, f *flight) {
	again := &job{obj: j.obj, first: j.first, flights: []*flight{f}, charge: j.charge, ahead: j.ahead}
	f.job = again
	c.enqueue(again)
}

// publish makes a loaded chunk resident and wakes its waiters.
func (c *Cache) publish(f *flight, buf *slab.Buf, toDisk bool) {
	e := &entry{buf: buf, node: c.policy.add(f.key, int64(buf.Charge()), f.ahead && f.waiters == 0, c.now())}
	c.entries[f.key] = e
	if f.ahead {
		c.stats.Readahead++
	}
	if toDisk && c.disk != nil {
		c.disk.want(f.key)
	}
	for range f.waiters {
		buf.Retain()
	}
	c.end(f, buf, nil)
}

// end settles a flight. It is the only place that does.
func (c *Cache) end(f *flight, buf *slab.Buf, err error) {
	f.ended, f.buf, f.err = true, buf, err
	delete(c.flights, f.key)
	close(f.done)
}

// abandon settles all flights of a job that was never started; c.mu is held.
func (c *Cache) abandon(j *job, err error) {
	if j.started {
		return
	}
	j.started = true
	if j.ahead {
		c.ahead -= j.charge
	}
	if j.slots != nil {
		c.disk.unpin(j.slots)
	}
	for _, f := range j.flights {
		c.end(f, nil, err)
	}
}

// aheadAge is how long a chunk fetched ahead waits for its reader before it loses its privilege: long enough for a
// consumer that processes between polls, short enough that readers which went away do not stop the readahead of others.
const aheadAge = 10 * time.Second

// now is the policy's clock.
func (c *Cache) now() int64 { return int64(time.Since(c.begin)) }

// aheadLimit is how much at most waits to be read: beyond half of memory, readahead would evict its own.
func (c *Cache) aheadLimit() int64 { return c.o.MemoryBytes / 2 }

// Prefetch asks for n chunks of o from the first, as far as there is room for readahead; it does not wait. It returns how
// many of them are in memory or on their way.
func (c *Cache) Prefetch(o *Object, first, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || first < 0 {
		return 0
	}
	limit := c.aheadLimit()
	end := min(first+n, o.Chunks)
	run, runBytes, i := first, 0, first
	flush := func() {
		if i > run {
			c.enqueue(c.newJob(o, run, i-run, true))
		}
		runBytes = 0
	}
	if c.ahead+c.policy.ahead.weight > limit/2 {
		c.policy.expire(c.now() - int64(aheadAge))
	}
	pending := c.ahead + c.policy.ahead.weight
	for ; i < end; i++ {
		key := Key{o.Key, i}
		size := o.Len(i)
		if size <= 0 {
			break
		}
		known := c.entries[key] != nil || c.flights[key] != nil
		onDisk := !known && c.disk != nil && c.disk.has(key)
		if known || onDisk || runBytes+size > c.o.RunBytes && i > run {
			flush()
			run = i
		}
		if known {
			run = i + 1
			continue
		}
		if pending += estimate(size); pending > limit {
			break
		}
		if onDisk {
			i++
			flush()
			i--
			run = i + 1
			continue
		}
		runBytes += size
	}
	flush()
	c.dispatch()
	return max(0, i-first)
}

// Drop forgets the chunks of an object that no longer exists. It is a courtesy: nothing wrong can be read from
// them. It looks at the first n chunks.
func (c *Cache) Drop(object string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		key := Key{object, i}
		if e := c.entries[key]; e != nil {
			c.policy.remove(e.node)
			delete(c.entries, key)
			e.buf.Release()
		}
		if c.disk != nil {
			c.disk.drop(key)
		}
	}
	c.dispatch()
}
