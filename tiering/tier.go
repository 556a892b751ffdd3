// Package tiering moves sealed layers of the log to the bucket and reads them
// back: object format, uploader, manifest commits, cold reads, retention,
// collection of garbage.
//
// A partition's remote part is what its committed manifest head says (package
// manifest). The order in which things happen, and what a crash between them
// leaves:
//
//	seal      read batches below the high watermark, cut blocks, fold producers    nothing
//	upload    PUT under a name never used before                                   an orphan
//	verify    HEAD, read the footers back, compare                                 an orphan
//	spill     PUT and verify a page, now and then                                  an orphan page
//	commit    replace the head: the commit point                                   a head that nobody read back
//	read back load the head; tell the replica, whose log may reclaim               objects that are served
//	retire    a later head without the object                                      an object nobody names
//	collect   grace, publication, head read again, DELETE                          -
//
// Lock ordering: leader.edit (a slot that serialises edits of one head, held
// across I/O), then Tier.mu, then collector.mu. No method of a Replica is called
// with any of the mutexes held.
package tiering

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/lineage"
)

// What callers branch on.
var (
	ErrOutOfRange = errors.New("tiering: offset is not in the remote part")
	ErrNotLed     = errors.New("tiering: partition is not led here")
	ErrCorrupt    = errors.New("tiering: corrupt object")
	ErrForeign    = errors.New("tiering: bucket belongs to another cluster")
	ErrRegressed  = errors.New("tiering: manifest is older than one seen before")
	ErrClosed     = errors.New("tiering: closed")
)

// Run is a run of whole record batches, from the one that holds the offset asked
// for. Release gives the memory back, which is Held bytes, if that is known; the chunks
// are invalid after it.
type Run struct {
	Chunks     [][]byte
	Base, Next int64
	Held       int64
	Release    func()
}

func (r *Run) bytes() (n int64) {
	for _, c := range r.Chunks {
		n += int64(len(c))
	}
	return n
}

// Policy is what a topic's resolved configuration says about tiering. Values in
// ms and bytes as Kafka has them; the zero value of a limit is that limit.
type Policy struct {
	SegmentBytes, SegmentMs, SegmentJitterMs int64
	FlushIntervalMs                          int64 // at most; 0: Options.FlushInterval
	RetentionMs, RetentionBytes              int64 // -1: for ever, all
	LocalRetentionMs, LocalRetentionBytes    int64 // -2: while there is room
	CopyLagMs, CopyLagBytes                  int64 // see copyLag
	CopyDisabled                             bool
	Delete, Compact                          bool  // what cleanup.policy has
	DeleteDelayMs                            int64 // file.delete.delay.ms: from retirement to deletion, at least
}

// Replica is what the uploader asks of a partition that this broker leads. Its
// methods may be called from any goroutine.
type Replica interface {
	TopicID() [16]byte
	TopicName() string
	Partition() int32
	LeaderEpoch() int32
	// HighWatermark is that of Extent, and costs next to nothing: it is asked of every partition every second.
	HighWatermark() int64
	// Extent is all zero while the broker does not lead.
	Extent() (logStart, localStart, highWatermark, logEnd int64)
	// Pending tells how many bytes lie between from and the high watermark, and
	// when (ms) the oldest of them was appended.
	Pending(from int64) (bytes int64, oldestMs int64)
	// Read returns batches from the one that holds offset, the last of them below
	// upTo and below the high watermark.
	Read(offset int64, maxBytes int, upTo int64) (Run, error)
	Lineage() lineage.Lineage
	Policy() Policy
	// Committed is called with every head as read back after a commit.
	Committed(State)
	// Stuck is called with true as long as records cannot be uploaded for a reason that concerns this partition alone, again and
	// again, and with false when that is over.
	Stuck(stuck bool)
}

// State is what a committed head says, and how uploading goes.
type State struct {
	LogStart, RemoteStart, RemoteEnd int64
	Compacted                        int64 // below it the remote part may lack what local logs still have
	Objects                          int
	Bytes                            int64 // of record batches in the bucket
	LeaderEpoch                      int32
	Rev                              int64
	UploadLag                        time.Duration // age of the oldest record that may be uploaded and is not
	LastError                        error         // why the last upload failed; nil once one has succeeded
}

// Limits are the options that may change while a Tier runs.
type Limits struct {
	Uploads            int           // objects on their way at once; 4
	UploadRate         int64         // bytes per second; 0: no bound
	Reads              int           // reads of footers and pages at once; 16
	ReadRate           int64         // bytes per second from the bucket for cold reads; 0: no bound
	ProducerExpiration time.Duration // producer.id.expiration.ms; 24 h
}

// Options configure a Tier. Zero values take the defaults named.
type Options struct {
	Bucket    objstore.Bucket
	Manifests ManifestStore
	Cache     *cache.Cache // of cold reads; nil: one of its own, in memory only
	ClusterID string
	BrokerID  int32

	Limits            // what SetLimits can change
	UploadBytes int64 // memory for objects on their way; 256 MiB
	Commits     int   // heads committed at once for one mixed object; 16
	MetaBytes   int64 // footers and pages kept in memory; 32 MiB

	FlushInterval time.Duration // what is older is sealed; 1 minute
	TargetBytes   int64         // seals an object; 64 MiB, or segment.bytes if that is less
	OwnBytes      int64         // a flush of at least this gets an object of its own; 4 MiB
	MixedBytes    int64         // a mixed object is closed at about this; 32 MiB
	MixedSections int           // or at this; 4096
	BlockBytes    int           // 256 KiB
	ChunkBytes    int           // blocks are cached together up to this; 1 MiB

	UploadTimeout     time.Duration // one PUT; 2 minutes
	RequestTimeout    time.Duration // any other request; 30 s
	MinBackoff        time.Duration // after a failed upload; 200 ms
	MaxBackoff        time.Duration // 30 s
	RetentionInterval time.Duration // 1 minute
	CollectInterval   time.Duration // 10 s
	SweepInterval     time.Duration // listing of the bucket for orphans; 1 hour, first after a tenth of it
	Grace             time.Duration // from retirement to deletion, at least; 1 minute
	PublishInterval   time.Duration // changed heads to the bucket; 1 minute
	FullInterval      time.Duration // all heads to the bucket; 1 hour
	ViewAge           time.Duration // how long the head of a partition led elsewhere is believed; 5 s

	// DeleteDelay is file.delete.delay.ms of a topic, led here or not, 0 for one that does not exist: mixed objects have
	// sections of many. It is called without a lock held. Nil: 0.
	DeleteDelay func(topicID [16]byte) time.Duration

	// Shared is nil, or why the bucket may not be the one that the others of the cluster have. It is asked before anything is
	// uploaded, replaced or deleted, until it has said once that it is; objstore.ErrNotShared if it is not. Nil: nobody else is there.
	Shared func(ctx context.Context) error

	// Worker says that this is the Tier of a compaction worker: it leads nothing, so
	// it only publishes and collects what it replaces.
	Worker   bool
	SpoolDir string // where a worker keeps what it writes until it is uploaded; the system's directory for such files

	ManifestLimits manifest.Limits // at which manifests fold; zero: manifest.DefaultLimits

	// Urgent tells that the log needs room: copy lag is ignored and what is there
	// is flushed. May be nil.
	Urgent func() bool

	Logger *slog.Logger
	Events Events
}

func (l *Limits) defaults() {
	def(&l.Uploads, 4)
	def(&l.Reads, 16)
	def(&l.ProducerExpiration, 24*time.Hour)
}

func (o *Options) defaults() {
	o.Limits.defaults()
	def(&o.UploadBytes, 256<<20)
	def(&o.Commits, 16)
	def(&o.MetaBytes, 32<<20)
	def(&o.FlushInterval, time.Minute)
	def(&o.TargetBytes, 64<<20)
	def(&o.OwnBytes, 4<<20)
	def(&o.MixedBytes, 32<<20)
	// An object is in memory whole until it is in the bucket.
	o.TargetBytes, o.MixedBytes = min(o.TargetBytes, o.UploadBytes), min(o.MixedBytes, o.UploadBytes)
	def(&o.MixedSections, 4096)
	def(&o.BlockBytes, 256<<10)
	def(&o.ChunkBytes, 1<<20)
	def(&o.UploadTimeout, 2*time.Minute)
	def(&o.RequestTimeout, 30*time.Second)
	def(&o.MinBackoff, 200*time.Millisecond)
	def(&o.MaxBackoff, 30*time.Second)
	def(&o.RetentionInterval, time.Minute)
	def(&o.CollectInterval, 10*time.Second)
	def(&o.SweepInterval, time.Hour)
	def(&o.Grace, time.Minute)
	def(&o.PublishInterval, time.Minute)
	def(&o.FullInterval, time.Hour)
	def(&o.ViewAge, 5*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func def[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// partitionKey names a partition.
type partitionKey struct {
	topic [16]byte
	index int32
}

func (k partitionKey) String() string { return fmt.Sprintf("%x-%d", k.topic, k.index) }

// Tier is the remote part of the log as one broker sees it.
type Tier struct {
	o      Options
	log    *slog.Logger
	ev     Events
	bucket objstore.Bucket
	store  ManifestStore
	chunks *cache.Cache
	meta   *meta // footers and pages

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{}   // the scheduler: look now
	limits manifest.Limits // zero: the defaults

	slots     atomic.Pointer[semaphore.Weighted] // uploads; SetLimits puts another one in its place
	memory    *semaphore.Weighted                // bytes of objects on their way
	opening   *semaphore.Weighted                // bytes that batches opened for lookups inflate to; half of UploadBytes
	reads     atomic.Pointer[semaphore.Weighted]
	upRate    *rate.Limiter
	readRate  *rate.Limiter
	expiryMs  atomic.Int64           // producer.id.expiration.ms
	running   atomic.Pointer[Limits] // what SetLimits was last called with
	ownsCache bool

	mu      sync.Mutex
	closed  bool
	led     map[partitionKey]*leader
	list    []*leader // led, as the background loops walk it; nil: to be rebuilt
	views   map[partitionKey]*view
	seen    map[partitionKey]int64 // highest revision seen of heads this process led, replaced entries of, or found published
	streams streams
	bad     failures

	ours     atomic.Bool   // the bucket's mark is of this cluster, and what it has published was read
	moved    atomic.Bool   // a high watermark, since the scheduler looked
	adopting chan struct{} // holds one token while nobody finds that out
	gc       collector
	pub      publisher
}

// leader is one partition in one epoch of our leadership.
type leader struct {
	// What the scheduler looks at in passing comes first, in one cache line.
	r      Replica
	next   atomic.Int64 // of view: the offset that the next object begins with
	busy   atomic.Bool  // an upload is planned or on its way
	unread atomic.Bool  // a commit succeeded and was not read back yet

	// Of the scheduler.
	told  toldStuck
	still struct { // since when the high watermark stands still
		at    int64
		since time.Time
		below bool // it was below the end of the log then
	}

	key    partitionKey
	name   string
	epoch  int32
	ctx    context.Context
	cancel context.CancelFunc

	edit chan struct{} // holds one token while nobody edits the head
	view atomic.Pointer[view]

	mu      sync.Mutex
	err     error // of the last upload
	alone   bool  // it concerned this partition only, and none has succeeded since
	said    bool  // in the log
	logged  time.Time
	retryAt time.Time
	fails   int
	fold    *fold // producer state at the remote end; owned by who holds busy

	oldest *manifest.Entry // that was not expired when retention looked; owned by the retention loop
}

// toldStuck is what the replica was told last. A new leader does not know what its predecessor said.
type toldStuck uint8

const (
	toldNothing toldStuck = iota
	toldNo
	toldYes
)

// view is an immutable snapshot of a committed head.
type view struct {
	head   *manifest.Head
	rev    int64
	loaded time.Time
	// Of the entries that are not dead, exact if the page that the log start
	// lies in was at hand, else a little too many.
	objects, bytes int64
}

// Open starts the background work. Nothing is asked of the bucket before there
// is something to do: a broker starts and serves its log while the store is away.
func Open(o Options) (*Tier, error) {
	o.defaults()
	if o.Bucket == nil || o.Manifests == nil {
		return nil, errors.New("tiering: Options need a Bucket and Manifests")
	}
	if o.BrokerID < 0 {
		return nil, fmt.Errorf("tiering: broker id %d: what it publishes could not be read", o.BrokerID)
	}
	t := &Tier{
		o: o, log: o.Logger, ev: o.Events.filled(), bucket: o.Bucket, store: o.Manifests, chunks: o.Cache, limits: o.ManifestLimits,
		wake:   make(chan struct{}, 1),
		memory: semaphore.NewWeighted(o.UploadBytes), opening: semaphore.NewWeighted(o.UploadBytes / 2),
		led:   make(map[partitionKey]*leader),
		views: make(map[partitionKey]*view),
		seen:  make(map[partitionKey]int64),
	}
	t.upRate, t.readRate = rate.NewLimiter(rate.Inf, 0), rate.NewLimiter(rate.Inf, 0)
	t.SetLimits(o.Limits)
	if t.chunks == nil {
		c, err := cache.Open(cache.Options{Logger: o.Logger})
		if err != nil {
			return nil, fmt.Errorf("open chunk cache: %w", err)
		}
		t.chunks, t.ownsCache = c, true
	}
	t.meta = newMeta(o.MetaBytes)
	t.adopting = make(chan struct{}, 1)
	t.adopting <- struct{}{}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.gc.init()
	t.pub.init()
	loops := []func(){t.collectLoop, t.publishLoop}
	if !o.Worker {
		loops = append(loops, t.uploadLoop, t.retentionLoop, t.sweepLoop)
	}
	for _, loop := range loops {
		t.wg.Add(1)
		go func() {
			defer t.wg.Done()
			loop()
		}()
	}
	return t, nil
}

// SetLimits takes over other limits. Uploads and reads that have begun end
// under the old ones, so for a moment there can be as many as both allow.
func (t *Tier) SetLimits(l Limits) {
	l.defaults()
	setRate(t.upRate, l.UploadRate)
	setRate(t.readRate, l.ReadRate)
	t.expiryMs.Store(l.ProducerExpiration.Milliseconds())
	old := t.running.Swap(&l)
	if old == nil || old.Uploads != l.Uploads {
		t.slots.Store(semaphore.NewWeighted(int64(l.Uploads)))
	}
	if old == nil || old.Reads != l.Reads {
		t.reads.Store(semaphore.NewWeighted(int64(l.Reads)))
	}
	t.kick()
}

func setRate(l *rate.Limiter, bytes int64) {
	if bytes <= 0 {
		l.SetLimit(rate.Inf)
		return
	}
	l.SetBurst(int(min(bytes, 1<<30)))
	l.SetLimit(rate.Limit(bytes))
}

// throttle waits until n bytes may go.
func throttle(ctx context.Context, l *rate.Limiter, n int64) error {
	for n > 0 {
		part := n
		if l.Limit() != rate.Inf {
			part = min(n, int64(l.Burst()))
		}
		if err := l.WaitN(ctx, int(part)); err != nil {
			if ctx.Err() == nil && part > int64(l.Burst()) {
				continue // the bound has just been lowered
			}
			return err
		}
		n -= part
	}
	return nil
}

// Close stops everything and waits for it. Uploads under way are abandoned: what
// they left is garbage, or committed.
func (t *Tier) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	if t.ownsCache {
		return t.chunks.Close()
	}
	return nil
}

// Lead loads the partition's head and from now on uploads and applies retention,
// until Resign or until the epoch is found to have moved on. Leading again in
// another epoch replaces the leadership that was. It needs the metadata store,
// not the bucket.
func (t *Tier) Lead(ctx context.Context, r Replica) (State, error) {
	key := partitionKey{r.TopicID(), r.Partition()}
	epoch := r.LeaderEpoch()
	t.mu.Lock()
	old := t.led[key]
	t.mu.Unlock()
	if old != nil {
		// The head is read after the last leadership's edits ended.
		if err := old.stop(ctx); err != nil {
			return State{}, err
		}
	}
	v, err := t.load(ctx, key)
	if err != nil {
		return State{}, err
	}
	if v.head.Epoch > epoch {
		return State{}, fmt.Errorf("lead %s in epoch %d: %w: head of epoch %d", key, epoch, manifest.ErrFenced, v.head.Epoch)
	}
	l := &leader{key: key, name: r.TopicName(), r: r, epoch: epoch, edit: make(chan struct{}, 1)}
	l.edit <- struct{}{}
	l.ctx, l.cancel = context.WithCancel(t.ctx)
	l.view.Store(v)
	l.next.Store(v.head.NextBase())
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		l.cancel()
		return State{}, ErrClosed
	}
	if seen := t.seen[key]; v.rev < seen {
		t.mu.Unlock()
		l.cancel()
		return State{}, fmt.Errorf("lead %s: %w: revision %d, seen %d", key, ErrRegressed, v.rev, seen)
	}
	if was := t.led[key]; was != nil && was != old {
		was.cancel()
	}
	t.seen[key] = v.rev
	t.led[key] = l
	t.list = nil
	delete(t.views, key)
	t.mu.Unlock()
	t.kick()
	return v.state(epoch), nil
}

// Peek reads a partition's head, of whoever leads it. It needs the metadata
// store, not the bucket.
func (t *Tier) Peek(ctx context.Context, topicID [16]byte, partition int32) (State, error) {
	v, err := t.current(ctx, partitionKey{topicID, partition}, true)
	if err != nil {
		return State{}, err
	}
	return v.state(v.head.Epoch), nil
}

// Changed calls f with what the heads say that were written after revision since, 0 for all, and returns the revision
// up to which that was. Leaders do not hear of what a compaction worker commits before their own next commit, and others
// read by a head of up to ViewAge ago; this way both know.
func (t *Tier) Changed(ctx context.Context, since int64, f func(topicID [16]byte, partition int32, s State)) (rev int64, err error) {
	return t.store.Changed(ctx, since, func(s StoredHead) error {
		key := partitionKey{s.TopicID, s.Partition}
		h, err := manifest.DecodeHead(s.Head)
		if err != nil {
			return fmt.Errorf("manifest of %s at revision %d: %w", key, s.Rev, err)
		}
		v := t.newView(key, h, s.Rev)
		if l := t.leader(key); l != nil {
			t.adoptView(l, v)
			v = l.view.Load()
		} else {
			// What is read of it from now on is read of this: else readers would be given what was replaced for ViewAge.
			t.mu.Lock()
			if have := t.views[key]; have != nil && have.rev < v.rev {
				t.views[key] = v
			}
			t.mu.Unlock()
		}
		f(s.TopicID, s.Partition, v.state(h.Epoch))
		return nil
	})
}

// stop ends a leadership and waits until nobody edits its head.
func (l *leader) stop(ctx context.Context) error {
	l.cancel()
	select {
	case <-l.edit:
		l.edit <- struct{}{}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Resign ends the leadership. Work under way is cancelled, not waited for: its
// epoch makes it harmless.
func (t *Tier) Resign(topicID [16]byte, partition int32) {
	key := partitionKey{topicID, partition}
	t.mu.Lock()
	l := t.led[key]
	delete(t.led, key)
	t.list = nil
	t.mu.Unlock()
	if l != nil {
		l.cancel()
		l.r.Stuck(false) // another broker says so from now on, of its own log
	}
}

// leader returns the leadership of a partition, or nil.
func (t *Tier) leader(key partitionKey) *leader {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.led[key]
}

func (t *Tier) leaders() []*leader {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.list == nil {
		t.list = make([]*leader, 0, len(t.led))
		for _, l := range t.led {
			t.list = append(t.list, l)
		}
	}
	return t.list
}

func (v *view) state(epoch int32) State {
	return State{
		LogStart: v.head.LogStart, RemoteStart: v.head.RemoteStart(), RemoteEnd: v.head.RemoteEnd(), Compacted: v.head.Compacted(),
		Objects: int(v.objects), Bytes: v.bytes, LeaderEpoch: epoch, Rev: v.rev,
	}
}

// State is what is known of a partition without asking anybody: of one that is
// led here, the last head read or committed.
func (t *Tier) State(topicID [16]byte, partition int32) (State, bool) {
	key := partitionKey{topicID, partition}
	t.mu.Lock()
	l, v := t.led[key], t.views[key]
	t.mu.Unlock()
	if l == nil {
		if v == nil {
			return State{}, false
		}
		return v.state(v.head.Epoch), true
	}
	v = l.view.Load()
	s := v.state(l.epoch)
	if bytes, oldest := l.r.Pending(v.head.NextBase()); bytes > 0 && oldest > 0 {
		s.UploadLag = max(0, time.Since(time.UnixMilli(oldest)))
	}
	l.mu.Lock()
	s.LastError = l.err
	l.mu.Unlock()
	return s, true
}

// Healthy is nil, or why uploading, publishing or collecting has been failing, or
// why one partition cannot be uploaded.
func (t *Tier) Healthy() error {
	if err := t.bad.get(); err != nil {
		return err
	}
	for _, l := range t.leaders() {
		if err := l.stuck(); err != nil {
			return err
		}
	}
	return nil
}

// kick makes the scheduler look at once.
func (t *Tier) kick() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// sleep waits, and tells whether ctx still stands.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
