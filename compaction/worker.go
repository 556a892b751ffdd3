// Package compaction is the worker that keeps what is in the bucket as its topics want it: it compacts, takes away
// tombstones and markers whose time has come, and makes few large objects of many small ones, while brokers append and
// clients read. What is to be done is said by package picker, what is left of a batch by package cleaner; here are
// claims, reading, writing and commits.
//
// Any number of workers share the work. One job, step by step, and what a crash after it leaves:
//
//	claim     the partition, bound to the worker's lease                       a claim that ends with the lease
//	plan      read the head again, pick the first job                          -
//	scan      the keys of the dirty range into the table                       -
//	filter    a group of entries into one object on local disk                 -
//	upload    PUT under a name never used before, verify                       an orphan, dead with the claim
//	commit    a head that names the new object instead of the old ones, and    a head that is served; the old objects,
//	          how far the round has come: the commit point                     which nobody names
//	delete    grace, publication, the head read again (package tiering)        -
//
// Groups are committed oldest first. A round is completed by the commit of its last group, which moves the clean end.
// Nothing that was planned or written outlives the claim: a commit compares it, and a worker that was cut off throws its
// work away.
package compaction

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/wal/batch"
)

// Topic is what a topic's settings say of the worker's duties.
type Topic struct {
	Name        string
	Policy      picker.Policy
	Codec       batch.Codec // of compression.type; cleaner.KeepCodec for producer
	Level       int
	DeleteDelay time.Duration // file.delete.delay.ms
}

// Settings are what may change while a worker runs.
type Settings struct {
	Threads        int           // partitions at a time; 1
	TableBytes     int64         // of all tables of keys together; 128 MiB
	LoadFactor     float64       // of a table; 0.9
	BytesPerSecond float64       // read and written; 0: no bound
	Backoff        time.Duration // rest when there is nothing to do; 15 s
}

func (s *Settings) defaults() {
	s.Threads = max(s.Threads, 1)
	if s.TableBytes <= 0 {
		s.TableBytes = 128 << 20
	}
	if s.LoadFactor <= 0 {
		s.LoadFactor = 0.9
	}
	if s.Backoff <= 0 {
		s.Backoff = 15 * time.Second
	}
}

// Options are what a worker is made of. Those without a default are required.
type Options struct {
	Tier  *tiering.Tier // opened with Worker set
	Store tiering.ManifestStore
	// Lease takes a lease and keeps it alive until ctx ends. lost is closed when it is gone, or may be.
	Lease func(ctx context.Context) (id int64, lost <-chan struct{}, err error)
	// Topic finds a topic; ok is false for one that does not exist.
	Topic func(id [16]byte) (t Topic, ok bool)
	Name  string // who this worker is, for people

	Settings
	// Changed returns the settings as they stand. Nil: they stay. The rate counts at once, threads and tables from the
	// next look at all partitions on, as far as jobs that are under way leave memory for other tables.
	Changed func() Settings
	Recheck time.Duration // how long a partition whose head has not moved is left alone; 5 minutes
	Limits  picker.Limits
	Window  int // how much of one inflated batch each thread holds at one time; 0: 16 MiB

	Scrubs        Scrubs        // nil: there is no scrubbing
	ScrubInterval time.Duration // from the end of a pass to the beginning of the next; 0: there is none
	ScrubData     bool          // read every block, not only the footers
	OrphanAge     time.Duration // an object that nobody names for so long, beside what file.delete.delay.ms says, is a finding; 24 hours

	Now    func() time.Time
	Logger *slog.Logger
	Events Events
}

// Events tell what happens. Any may be nil; none may block.
type Events struct {
	Done   func(Done)                                   // a job came to its end
	Failed func(topic string, partition int32, _ error) // one did not, and will be tried again
	Lost   func()                                       // the lease, and all claims with it
	Round  func(Round)                                  // all partitions were looked at

	Scrubbed    func(Pass)            // what the last pass came to, whoever made it; told again and again
	ScrubFound  func(tiering.Finding) // by a pass that goes on
	ScrubFailed func(error)           // a pass could not be made, and will be tried again
}

// Done is a job that was carried out, as a whole or to where the claim or the topic ended.
type Done struct {
	Topic         string
	Partition     int32
	Kind          picker.Kind
	Objects, Made int   // replaced, written
	Read, Written int64 // bytes of batches
	Records, Kept int64 // that were looked at and are left; 0 for a merge
	NullKeys      int64
	Took          time.Duration
}

// Round is what a look at all partitions found.
type Round struct {
	Partitions int
	Jobs       int // partitions in which there is something to do
	Working    int // of them, those that somebody here works on
	Failing    int
	Claimed    int     // partitions that others were found to work on, since the last look
	MaxDirty   float64 // the largest share of bytes that is dirty of what may be compacted of a partition
	Took       time.Duration
}

func (o *Options) defaults() error {
	if o.Tier == nil || o.Store == nil || o.Lease == nil || o.Topic == nil {
		return errors.New("compaction: Options need a Tier, a Store, a Lease and a Topic")
	}
	o.Settings.defaults()
	if o.Changed == nil {
		o.Changed = func() Settings { return o.Settings }
	}
	if o.Recheck <= 0 {
		o.Recheck = 5 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OrphanAge <= 0 {
		o.OrphanAge = 24 * time.Hour
	}
	if o.Events.Scrubbed == nil {
		o.Events.Scrubbed = func(Pass) {}
	}
	if o.Events.ScrubFound == nil {
		o.Events.ScrubFound = func(tiering.Finding) {}
	}
	if o.Events.ScrubFailed == nil {
		o.Events.ScrubFailed = func(error) {}
	}
	if o.Events.Done == nil {
		o.Events.Done = func(Done) {}
	}
	if o.Events.Failed == nil {
		o.Events.Failed = func(string, int32, error) {}
	}
	if o.Events.Lost == nil {
		o.Events.Lost = func() {}
	}
	if o.Events.Round == nil {
		o.Events.Round = func(Round) {}
	}
	return nil
}

type partitionKey struct {
	topic [16]byte
	index int32
}

// Worker compacts. Run does the work.
type Worker struct {
	o     Options
	log   *slog.Logger
	limit atomic.Pointer[limiter]

	held *semaphore.Weighted // bytes of batches that cannot be opened piece by piece

	lively atomic.Pointer[time.Time] // when work last got on; nil: Run does not run

	mu       sync.Mutex
	known    map[partitionKey]known
	horizons map[manifest.Suffix]horizon    // of rewritten objects: what their footers say
	err      error                          // why the last look at all partitions failed
	left     map[partitionKey]tiering.Claim // that could not be given back
	crew     crew
}

// known is what is remembered of a partition between two looks.
type known struct {
	rev    int64
	policy Topic
	again  time.Time // not before, if the head has not moved
	dirty  float64
	behind picker.Behind
	round  manifest.Compaction // of the head that was looked at
	waits  time.Time           // since when a round is due and has come no further; zero: none is
	fails  int
	failed time.Time // first of fails
	retry  time.Time // not before, after a failure
	err    error
}

type horizon struct {
	at, bytes int64
	min       int64 // the smallest timestamp, -1 without one
}

const maxHorizons = 1 << 20

// heldBytes bounds what batches that cannot be opened piece by piece take of all threads together. It is what one zstd
// frame may ask for; what needs more, a raw snappy block, has all of it.
const heldBytes = 128 << 20

// New makes a worker.
func New(o Options) (*Worker, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	w := &Worker{o: o, log: o.Logger, known: make(map[partitionKey]known), left: make(map[partitionKey]tiering.Claim), horizons: make(map[manifest.Suffix]horizon),
		held: semaphore.NewWeighted(heldBytes)}
	if err := w.crew.set(w.settings()); err != nil {
		return nil, err
	}
	return w, nil
}

// settings are those that count now.
func (w *Worker) settings() Settings {
	s := w.o.Changed()
	s.defaults()
	return s
}

// Healthy is nil, or why compaction does not get on: of all partitions, or of one.
func (w *Worker) Healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	for _, k := range w.known {
		if k.fails >= 3 {
			return k.err
		}
	}
	return nil
}

// Run works until ctx ends.
func (w *Worker) Run(ctx context.Context) {
	defer w.lively.Store(nil)
	for ctx.Err() == nil {
		w.alive()
		if err := w.session(ctx); err != nil && ctx.Err() == nil {
			w.log.Error("compaction worker does not get on and is tried again", "err", err)
			w.fail(err)
			sleep(ctx, min(w.settings().Backoff, 5*time.Second))
		}
	}
}

func (w *Worker) fail(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
}

// session works for as long as one lease lasts.
func (w *Worker) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lease, lost, err := w.o.Lease(ctx)
	if err != nil {
		return fmt.Errorf("compaction worker's lease: %w", err)
	}
	go func() {
		select {
		case <-lost:
			w.o.Events.Lost()
			cancel()
		case <-ctx.Done():
		}
	}()
	if w.o.Scrubs != nil && w.o.ScrubInterval > 0 {
		var wg sync.WaitGroup
		wg.Go(func() { w.scrubLoop(ctx, lease) })
		defer wg.Wait()
		defer cancel()
	}
	w.rounds(ctx, lease)
	return nil // the lease was lost, or it is over
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// look looks at every partition, apart from those that somebody works on, and queues those in which there is something to
// do, the most worthwhile first.
func (w *Worker) look(ctx context.Context) (err error) {
	began := time.Now()
	w.giveBack(ctx)
	s := w.settings()
	w.mu.Lock()
	small := w.crew.set(s)
	queued := w.crew.look()
	w.mu.Unlock()
	if small != nil {
		w.log.Error("table of keys too small: the last one stays", "log.cleaner.dedupe.buffer.size", s.TableBytes, "log.cleaner.threads", s.Threads)
	}
	var heads []tiering.StoredHead
	if err := w.o.Store.Range(ctx, func(h tiering.StoredHead) error { heads = append(heads, h); return nil }); err != nil {
		return fmt.Errorf("read manifests: %w", err)
	}
	present := make(map[partitionKey]bool, len(heads))
	var found []candidate
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(looksAtOnce)
	for _, h := range heads {
		present[partitionKey{h.TopicID, h.Partition}] = true
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if c, ok := w.lookAt(ctx, h, queued); ok {
				mu.Lock()
				found = append(found, c)
				mu.Unlock()
			}
			return nil
		})
	}
	g.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return picker.Compare(a.job, b.job) })
	stats := Round{Partitions: len(heads)}
	w.mu.Lock()
	stats.Jobs, stats.Working, stats.Claimed = w.crew.found(found)
	for key, k := range w.known {
		if !present[key] {
			delete(w.known, key)
			continue
		}
		stats.MaxDirty = max(stats.MaxDirty, k.dirty)
		if k.fails > 0 {
			stats.Failing++
		}
	}
	w.mu.Unlock()
	stats.Took = time.Since(began)
	w.o.Events.Round(stats)
	return nil
}

// failed leaves a partition alone for a while.
func (w *Worker) failed(key partitionKey, topic Topic, err error) {
	w.mu.Lock()
	k := w.known[key]
	if k.policy.Name == "" {
		k.policy.Name = topic.Name // it was never looked at
	}
	if k.fails == 0 {
		k.failed = w.o.Now()
	}
	k.fails, k.err = k.fails+1, err
	k.retry = w.o.Now().Add(min(w.settings().Backoff<<min(k.fails-1, 8), 10*time.Minute))
	w.known[key] = k
	w.mu.Unlock()
	w.log.Error("partition cannot be compacted and is tried again", "topic", topic.Name, "partition", key.index, "tries", k.fails, "err", err)
	w.o.Events.Failed(topic.Name, key.index, err)
}

// looksAtOnce is how many partitions are looked at side by side, each of which may read pages and footers.
const looksAtOnce = 8

// lookAt says what is most worth doing with a partition, by a head that was read. One that has not moved is left alone for
// a while, and so is one that failed, or that somebody works on. One that was queued already, and has not moved, stays so.
func (w *Worker) lookAt(ctx context.Context, h tiering.StoredHead, queued map[partitionKey]candidate) (candidate, bool) {
	w.looked()
	key := partitionKey{h.TopicID, h.Partition}
	topic, ok := w.o.Topic(h.TopicID)
	if !ok {
		return candidate{}, false // deleted; its objects are the collector's
	}
	w.mu.Lock()
	k, taken := w.known[key], w.crew.taken(key)
	w.mu.Unlock()
	if taken {
		return candidate{}, false
	}
	now := w.o.Now()
	if c, ok := queued[key]; ok && c.rev == h.Rev && c.topic == topic && now.Before(c.until) {
		return c, true
	}
	if now.Before(k.retry) || k.rev == h.Rev && k.policy == topic && now.Before(k.again) {
		return candidate{}, false
	}
	var found picked
	r, err := w.o.Tier.RemoteOf(ctx, h)
	if err == nil {
		found, err = w.pick(ctx, r, topic)
	}
	if err != nil {
		if ctx.Err() == nil {
			if found.behind.Bytes > 0 {
				w.mu.Lock()
				k := w.known[key]
				k.behind = found.behind
				w.known[key] = k
				w.mu.Unlock()
			}
			w.failed(key, topic, fmt.Errorf("look at %s-%d: %w", topic.Name, key.index, err))
		}
		return candidate{}, false
	}
	next := known{rev: h.Rev, policy: topic, again: now.Add(w.o.Recheck), dirty: found.dirty, behind: found.behind, round: found.round,
		fails: k.fails, failed: k.failed, err: k.err}
	if found.ok && found.job.Kind == picker.Compact {
		if next.waits = k.waits; next.waits.IsZero() || found.round != k.round {
			next.waits = now
		}
	}
	until := next.again
	if due := time.UnixMilli(found.due); due.Before(next.again) {
		next.again = due
		if due.After(now) {
			until = due
		}
	}
	if found.ok {
		next.again = now // until it is done
	} else {
		next.fails, next.err = 0, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.crew.taken(key) {
		return candidate{}, false // meanwhile
	}
	w.known[key] = next
	return candidate{key: key, rev: h.Rev, until: until, topic: topic, job: found.job}, found.ok
}

// picked is what there is to do in a partition.
type picked struct {
	job    picker.Job
	ok     bool
	dirty  float64 // the share of its bytes
	round  manifest.Compaction
	behind picker.Behind
	due    int64 // when there may be more to do, in ms
}

// pick says what is most worth doing in r, apart from what only the leader does. Footers are read only as far as the
// answer depends on them.
func (w *Worker) pick(ctx context.Context, r *tiering.Remote, topic Topic) (out picked, err error) {
	out.due = math.MaxInt64
	if len(r.Entries) == 0 {
		return out, nil
	}
	c := r.Head.Compaction
	p := picker.Partition{LogStart: r.Head.LogStart, CleanEnd: c.CleanEnd, Round: picker.Round{End: c.End, Next: c.Next}, FirstUnstable: r.Head.RemoteEnd()}
	for i, e := range r.Entries {
		x := picker.Entry{Entry: e.Entry, Page: e.Page, MinTimestamp: -1}
		expires := topic.Policy.Delete && topic.Policy.RetentionMs >= 0
		if e.Kind == manifest.Rewritten && (topic.Policy.Compact || expires && i == 0) {
			h, err := w.horizonOf(ctx, r, e.Entry)
			if err != nil {
				return picked{}, err
			}
			// It may have been made of objects of many days.
			x.Horizon, x.HorizonBytes, x.MinTimestamp = h.at, h.bytes, h.min
		}
		p.Entries = append(p.Entries, x)
	}
	now := w.o.Now().UnixMilli()
	out.dirty = picker.Dirty(p, topic.Policy, now)
	out.round, out.behind = c, picker.BehindOf(p, topic.Policy)
	out.due = picker.Due(p, topic.Policy, w.o.Limits, now)
	first := func() bool {
		for _, j := range picker.Pick(p, topic.Policy, w.o.Limits, now) {
			if j.Kind != picker.Expire {
				out.job, out.ok = j, true
				return true
			}
		}
		out.job, out.ok = picker.Job{}, false
		return false
	}
	if !first() {
		return out, nil
	}
	newest := r.Entries[len(r.Entries)-1].Entry
	f, err := w.o.Tier.EntryFooter(ctx, r.TopicID, r.Partition, newest, false)
	if err != nil {
		return out, err // what is behind is known all the same
	}
	for _, o := range f.OpenEnd {
		p.FirstUnstable = min(p.FirstUnstable, o.FirstOffset)
	}
	out.dirty = picker.Dirty(p, topic.Policy, now)
	first()
	return out, nil
}

func (w *Worker) horizonOf(ctx context.Context, r *tiering.Remote, e manifest.Entry) (horizon, error) {
	w.mu.Lock()
	h, ok := w.horizons[e.Suffix]
	w.mu.Unlock()
	if ok {
		return h, nil
	}
	f, err := w.o.Tier.EntryFooter(ctx, r.TopicID, r.Partition, e, false)
	if err != nil {
		return horizon{}, err
	}
	h = horizon{f.Horizon, f.HorizonBytes, f.MinTimestamp}
	w.remember(e.Suffix, h)
	return h, nil
}

func (w *Worker) remember(s manifest.Suffix, h horizon) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.horizons) >= maxHorizons {
		clear(w.horizons)
	}
	w.horizons[s] = h
}

// maxSteps bounds how many jobs are done under one claim: the steps of a round that one job cannot complete.
const maxSteps = 64

// work claims a partition, looks again, and does what is most worthwhile.
func (w *Worker) work(ctx context.Context, lease int64, c candidate, table *cleaner.Table) (done int, elsewhere bool, err error) {
	claim := tiering.Claim{Worker: w.o.Name, Lease: lease}
	rand.Read(claim.Tag[:])
	switch err := w.o.Store.Claim(ctx, c.key.topic, c.key.index, claim); {
	case errors.Is(err, tiering.ErrClaimed):
		return 0, true, nil
	case errors.Is(err, tiering.ErrFenced):
		return 0, false, nil // deleted meanwhile
	case err != nil:
		// It may have been taken all the same.
		w.unclaim(ctx, c.key, claim)
		return 0, false, fmt.Errorf("claim: %w", err)
	}
	defer w.unclaim(ctx, c.key, claim)
	for done < maxSteps {
		r, err := w.o.Tier.Remote(ctx, c.key.topic, c.key.index)
		if err != nil {
			return done, false, err
		}
		var ok bool
		if c.topic, ok = w.o.Topic(c.key.topic); !ok {
			return done, false, nil // deleted meanwhile
		}
		found, err := w.pick(ctx, r, c.topic)
		if err != nil || !found.ok || done > 0 && !found.job.Urgent {
			return done, false, err
		}
		if err := w.carry(ctx, r, c, claim, found.job, table); err != nil {
			if errors.Is(err, tiering.ErrFenced) || errors.Is(err, manifest.ErrReplaced) {
				w.log.Info("work thrown away: the claim is gone, or the log start has passed", "topic", c.topic.Name, "partition", c.key.index, "err", err)
				err = nil
			}
			return done, false, err
		}
		done++
	}
	return done, false, nil
}

// carry carries out one job.
func (w *Worker) carry(ctx context.Context, r *tiering.Remote, c candidate, claim tiering.Claim, job picker.Job, table *cleaner.Table) error {
	began := time.Now()
	run := &run{w: w, r: r, topic: c.topic, claim: claim, job: job, table: table,
		stats: Done{Topic: c.topic.Name, Partition: c.key.index, Kind: job.Kind}}
	err := run.do(ctx)
	if s := &run.stats; err == nil || s.Made > 0 {
		s.Took = time.Since(began)
		w.o.Events.Done(*s)
		w.log.Info("object storage part rewritten", "topic", s.Topic, "partition", s.Partition, "job", s.Kind.String(), "objects", s.Objects, "made", s.Made,
			"read", s.Read, "written", s.Written, "records", s.Records, "kept", s.Kept, "took", s.Took)
	}
	return err
}

// unclaim gives a claim back, also when the work was called off. If that fails, the next look tries again: until the
// lease ends, which may be never, nobody else could take the partition.
func (w *Worker) unclaim(ctx context.Context, key partitionKey, c tiering.Claim) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := w.o.Store.Unclaim(ctx, key.topic, key.index, c)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.left, key)
		return
	}
	w.left[key] = c
	w.log.Warn("claim not given back and is tried again", "partition", key.index, "err", err)
}

// giveBack gives back the claims that were left behind.
func (w *Worker) giveBack(ctx context.Context) {
	w.mu.Lock()
	left := maps.Clone(w.left)
	w.mu.Unlock()
	for key, c := range left {
		w.unclaim(ctx, key, c)
	}
}

// limiter is the bound of log.cleaner.io.max.bytes.per.second, as it was when it was made.
type limiter struct {
	bytesPerSecond float64
	*rate.Limiter
}

// throttle waits until a job may read or write n bytes.
func (w *Worker) throttle(ctx context.Context, n int64) error { return w.paced(ctx, n, w.alive) }

// paced waits until n bytes may be read or written, and calls alive again and again meanwhile.
func (w *Worker) paced(ctx context.Context, n int64, alive func()) error {
	for n > 0 {
		alive()
		l := w.limit.Load()
		if b := w.settings().BytesPerSecond; l == nil || l.bytesPerSecond != b {
			next := &limiter{b, rate.NewLimiter(rate.Inf, 0)}
			if b > 0 && b < 1<<50 {
				next.Limiter = rate.NewLimiter(rate.Limit(b), int(max(b, 1)))
			}
			w.limit.CompareAndSwap(l, next) // else another thread has
			continue
		}
		if l.Limit() == rate.Inf {
			return nil
		}
		part := min(n, int64(l.Burst()), math.MaxInt32)
		if err := l.WaitN(ctx, int(part)); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// hold waits until a batch may take n bytes beside the window of its thread.
func (w *Worker) hold(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, heldBytes)
	if err := w.held.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { w.held.Release(n) }, nil
}
