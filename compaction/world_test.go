package compaction

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

var bg = context.Background()

const (
	grace    = 10 * time.Second
	interval = 5 * time.Second // of publishing and collecting
	flush    = 8 * time.Second
)

// world is a bucket, a metadata store, and what uses them. Every commit and every deletion is looked at on its way:
//
//   - a head names only what is in the bucket, and its rewritten sections are those they replace, as far as readers,
//     replicas and producers go by the footers;
//   - nothing is deleted that a head or the published state names, nor before its grace is over;
//   - no name is used twice.
type world struct {
	t      testing.TB
	mem    *objstore.Mem
	bucket *objstore.Faulty
	store  *ledger
	limits manifest.Limits
	meta   int64 // memory for footers and pages; 0: the default
	sweep  time.Duration
	label  string

	mu      sync.Mutex
	put     map[string]bool
	pages   map[manifest.Suffix]*manifest.Page
	parts   map[key]*partition
	unnamed map[string]time.Time // when a head that lacks it was committed
	seen    map[string]int       // what there was
}

type key struct {
	topic [16]byte
	index int32
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, sweep: 40 * time.Second, mem: objstore.NewMem(), put: map[string]bool{}, pages: map[manifest.Suffix]*manifest.Page{}, parts: map[key]*partition{}, unnamed: map[string]time.Time{}, seen: map[string]int{}}
	w.store = &ledger{tiering.NewMemManifests(), w}
	w.bucket = objstore.NewFaulty(&guard{w.mem, w}, 1)
	return w
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s: %s", w.label, fmt.Sprintf(format, args...))
}

// errorf is fatalf for what does not run in the goroutine of the test.
func (w *world) errorf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("%s: %s", w.label, fmt.Sprintf(format, args...))
}

// ledger is the metadata store.
type ledger struct {
	*tiering.MemManifests
	w *world
}

func (l *ledger) Commit(ctx context.Context, r tiering.CommitRequest) (int64, error) {
	was, _, err := l.MemManifests.Load(ctx, r.TopicID, r.Partition)
	if err != nil {
		return 0, err
	}
	rev, err := l.MemManifests.Commit(ctx, r)
	if err == nil {
		l.w.committed(r, was)
	} else if r.Claim != nil {
		l.w.mu.Lock()
		if errors.Is(err, tiering.ErrFenced) {
			l.w.seen["work thrown away"]++
		} else {
			l.w.seen["commits rebased"]++
		}
		l.w.mu.Unlock()
	}
	return rev, err
}

func (l *ledger) Delete(ctx context.Context, topicID [16]byte, index int32, rev int64) error {
	err := l.MemManifests.Delete(ctx, topicID, index, rev)
	if err == nil {
		l.w.mu.Lock()
		l.w.parts[key{topicID, index}].named = nil
		l.w.mu.Unlock()
	}
	return err
}

// committed looks at a head that took the place of another.
func (w *world) committed(r tiering.CommitRequest, was []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.parts[key{r.TopicID, r.Partition}]
	h, err := manifest.DecodeHead(r.Head)
	if err != nil {
		w.errorf("committed head of %s: %v", p.name, err)
		return
	}
	entries, pages := w.entries(p, h)
	named := make(map[string]bool)
	for _, k := range pages {
		named[k] = true
	}
	for _, e := range entries {
		if !h.Dead(e) {
			named[e.Key(p.id, p.index)] = true
		}
	}
	for k := range named {
		if _, err := w.mem.Head(bg, k); err != nil {
			w.errorf("a head of %s names %s: %v", p.name, k, err)
		}
	}
	now := time.Now()
	for k := range p.named {
		if !named[k] {
			w.unnamed[k] = now
		}
	}
	p.named = named
	p.mu.Lock()
	p.reach = max(p.reach, h.Compaction.CleanEnd, h.Compaction.End)
	p.progress = max(p.progress, h.Compacted())
	p.mu.Unlock()
	var old []manifest.Entry
	oldHead := &manifest.Head{}
	if len(was) > 0 {
		if oldHead, err = manifest.DecodeHead(was); err != nil {
			w.errorf("head of %s: %v", p.name, err)
			return
		}
		old, _ = w.entries(p, oldHead)
	}
	if r.Claim == nil {
		if n, ok := h.Newest(); ok && n.Kind != manifest.Rewritten {
			p.tail = w.footer(p, n)
		}
		if h.Compaction != oldHead.Compaction {
			w.errorf("a leader of %s changed how far compaction has come: %+v after %+v", p.name, h.Compaction, oldHead.Compaction)
		}
		return
	}
	// What a worker may change, and what not.
	if h.LogStart != oldHead.LogStart || h.Epoch != oldHead.Epoch || h.RemoteEnd() != oldHead.RemoteEnd() {
		w.errorf("a worker changed log start, epoch or remote end of %s: %+v after %+v", p.name, h, oldHead)
	}
	if c := h.Compaction; c.CleanEnd < oldHead.Compaction.CleanEnd {
		w.errorf("the clean end of %s went back: %+v after %+v", p.name, c, oldHead.Compaction)
	} else if c.End > 0 {
		w.seen["rounds of several jobs"]++
	} else if was := oldHead.Compaction; was.End > 0 && c.CleanEnd < was.End {
		w.seen["rounds cut short"]++
	} else if c.CleanEnd > oldHead.Compaction.CleanEnd && !slices.ContainsFunc(entries, func(e manifest.Entry) bool { return e.Next() == c.CleanEnd }) {
		w.seen["tables too small"]++
	}
	for _, e := range entries {
		if slices.Contains(old, e) || h.Dead(e) {
			continue
		}
		w.seen["swaps"]++
		if len(h.Tail) == 0 || e.Base < h.Tail[0].Base {
			w.seen["swaps in pages"]++
		}
		if e.Kind != manifest.Rewritten || [4]byte(e.Suffix[:4]) != r.Claim.Tag {
			w.errorf("entry %d-%d of %s, %v, suffix %x, claim %x", e.Base, e.Last, p.name, e.Kind, e.Suffix, r.Claim.Tag)
		}
		var run []manifest.Entry
		for _, o := range old {
			if o.Base <= e.Last && o.Last >= e.Base {
				run = append(run, o)
			}
		}
		if len(run) == 0 || run[0].Base != e.Base || run[len(run)-1].Last != e.Last {
			w.errorf("entry %d-%d of %s in the place of %v", e.Base, e.Last, p.name, run)
			continue
		}
		first, last, f := w.footer(p, run[0]), w.footer(p, run[len(run)-1]), w.footer(p, e)
		if f == nil || first == nil || last == nil {
			continue
		}
		if f.Prev != first.Prev || f.Epoch != last.Epoch || e.Epoch != last.Epoch || f.Created != last.Created || !f.Lineage.Equal(last.Lineage) || !bytes.Equal(f.Producers, last.Producers) ||
			!slices.Equal(f.OpenStart, first.OpenStart) || !slices.Equal(f.OpenEnd, last.OpenEnd) || f.MaxTimestamp != e.MaxTimestamp {
			w.errorf("footer of %d-%d of %s\n%+v\nin the place of\n%+v\n%+v", e.Base, e.Last, p.name, f, first, last)
		}
		if e == entries[len(entries)-1] && (p.tail == nil || !bytes.Equal(f.Producers, p.tail.Producers) || !f.Lineage.Equal(p.tail.Lineage)) {
			w.errorf("the newest footer of %s is not the leader's any more", p.name)
		}
	}
}

// entries lists all entries of a head, dead ones included, and the keys of its pages.
func (w *world) entries(p *partition, h *manifest.Head) (list []manifest.Entry, keys []string) {
	page := func(r manifest.PageRef) *manifest.Page {
		k := r.Key(p.id, p.index)
		keys = append(keys, k)
		if have := w.pages[r.Suffix]; have != nil {
			return have
		}
		raw, err := objstore.ReadRange(bg, w.mem, k, 0, int64(r.Size))
		if err != nil {
			w.errorf("page of %s: %v", p.name, err)
			return &manifest.Page{}
		}
		pg, err := manifest.DecodePage(raw, r)
		if err != nil {
			w.errorf("page of %s: %v", p.name, err)
			return &manifest.Page{}
		}
		w.pages[r.Suffix] = pg
		return pg
	}
	refs := h.Pages
	if h.Index != nil {
		refs = slices.Concat(page(*h.Index).Refs, refs)
	}
	for _, r := range refs {
		if r.Last < h.LogStart {
			continue // its entries are dead
		}
		list = append(list, page(r).Entries...)
	}
	return append(list, h.Tail...), keys
}

func (w *world) footer(p *partition, e manifest.Entry) *tiering.Footer {
	f, err := tiering.ReadFooter(bg, w.mem, e.Key(p.id, p.index), tiering.Section{TopicID: p.id, Partition: p.index, Base: e.Base, Last: e.Last,
		Epoch: e.Epoch, FooterPos: e.FooterPos, FooterLen: e.FooterLen, FooterCRC: e.FooterCRC})
	if err != nil {
		w.errorf("footer of %d-%d of %s: %v", e.Base, e.Last, p.name, err)
	}
	return f
}

// guard looks at what is deleted.
type guard struct {
	objstore.Bucket
	w *world
}

func (g *guard) Delete(ctx context.Context, keys []string) error {
	w := g.w
	w.mu.Lock()
	for _, k := range keys {
		if !strings.HasPrefix(k, manifest.DataPrefix) && !strings.HasPrefix(k, manifest.PagePrefix) {
			continue
		}
		w.seen["objects deleted"]++
		for _, p := range w.parts {
			if p.named[k] && !p.dropped {
				w.errorf("%s is deleted, and a head of %s names it", k, p.name)
			}
		}
		if at, ok := w.unnamed[k]; ok && time.Since(at) < grace {
			w.errorf("%s is deleted %v after a head let go of it", k, time.Since(at))
		}
	}
	w.mu.Unlock()
	return g.Bucket.Delete(ctx, keys)
}

// process is who asks bucket and store, and may die at any request, before it is sent or before its answer arrives.
// From then on nothing it does has an effect.
type process struct {
	w *world

	mu      sync.Mutex
	ops     int
	seen    []string // operations, if trace is set
	trace   bool
	crashAt int // 0: does not
	died    func()
	after   bool
	dead    bool
	where   string
	fail    func(what string) (before, after error) // nil: nothing fails
	pauseAt int
	pause   func()
}

var (
	errDead     = errors.New("the process is dead")
	errInjected = errors.New("injected")
)

func (p *process) do(what string, f func() error) error {
	p.mu.Lock()
	if p.dead {
		p.mu.Unlock()
		return errDead
	}
	p.ops++
	if p.trace {
		p.seen = append(p.seen, what)
	}
	mine := p.ops == p.crashAt
	if mine && !p.after {
		p.die("before " + what)
		p.mu.Unlock()
		return errDead
	}
	var pause func()
	if p.pauseAt > 0 && p.ops >= p.pauseAt && p.pause != nil {
		pause, p.pause, p.where = p.pause, nil, what
	}
	var before, after error
	if p.fail != nil {
		before, after = p.fail(what)
	}
	p.mu.Unlock()
	if pause != nil {
		pause()
	}
	if before != nil {
		return before
	}
	err := f()
	p.mu.Lock()
	defer p.mu.Unlock()
	if mine {
		p.die("after " + what)
	}
	if p.dead {
		return errDead
	}
	if err == nil {
		err = after
	}
	return err
}

func (p *process) die(where string) {
	p.dead, p.where = true, where
	if p.died != nil {
		p.died()
	}
}

type processBucket struct {
	objstore.Bucket
	p *process
}

func (b processBucket) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	w := b.p.w
	w.mu.Lock()
	if w.put[key] && key != "cluster" { // the mark has one name and one content
		w.errorf("%s is written twice", key)
	}
	w.put[key] = true
	w.mu.Unlock()
	return b.p.do("put "+key, func() error { return b.Bucket.Put(ctx, key, body, size, crc) })
}

func (b processBucket) GetRange(ctx context.Context, key string, off, n int64) (r io.ReadCloser, err error) {
	err = b.p.do("get "+key, func() error { r, err = b.Bucket.GetRange(ctx, key, off, n); return err })
	return r, err
}

func (b processBucket) Head(ctx context.Context, key string) (n int64, err error) {
	err = b.p.do("head "+key, func() error { n, err = b.Bucket.Head(ctx, key); return err })
	return n, err
}

func (b processBucket) List(ctx context.Context, prefix, after string, limit int) (l []objstore.Info, more bool, err error) {
	err = b.p.do("list "+prefix, func() error { l, more, err = b.Bucket.List(ctx, prefix, after, limit); return err })
	return l, more, err
}

func (b processBucket) Delete(ctx context.Context, keys []string) error {
	if p := b.p; p.trace {
		p.mu.Lock()
		for _, k := range keys[1:] {
			p.seen = append(p.seen, "delete "+k)
		}
		p.mu.Unlock()
	}
	return b.p.do("delete "+keys[0], func() error { return b.Bucket.Delete(ctx, keys) })
}

type processStore struct {
	*ledger
	p *process
}

func (s processStore) Load(ctx context.Context, id [16]byte, i int32) (h []byte, rev int64, err error) {
	err = s.p.do("load", func() error { h, rev, err = s.ledger.Load(ctx, id, i); return err })
	return h, rev, err
}

func (s processStore) Commit(ctx context.Context, r tiering.CommitRequest) (rev int64, err error) {
	err = s.p.do("commit", func() error { rev, err = s.ledger.Commit(ctx, r); return err })
	return rev, err
}

func (s processStore) LeaderEpoch(ctx context.Context, id [16]byte, i int32) (epoch int32, exists bool, err error) {
	err = s.p.do("epoch", func() error { epoch, exists, err = s.ledger.LeaderEpoch(ctx, id, i); return err })
	return epoch, exists, err
}

func (s processStore) Claim(ctx context.Context, id [16]byte, i int32, c tiering.Claim) error {
	return s.p.do("claim", func() error { return s.ledger.Claim(ctx, id, i, c) })
}

func (s processStore) Unclaim(ctx context.Context, id [16]byte, i int32, c tiering.Claim) error {
	return s.p.do("unclaim", func() error { return s.ledger.Unclaim(ctx, id, i, c) })
}

func (s processStore) Standing(ctx context.Context, ids []tiering.PartitionID) (l []tiering.Standing, err error) {
	err = s.p.do("standing", func() error { l, err = s.ledger.Standing(ctx, ids); return err })
	return l, err
}

func (s processStore) Range(ctx context.Context, f func(tiering.StoredHead) error) error {
	return s.p.do("range", func() error { return s.ledger.Range(ctx, f) })
}

func (s processStore) Delete(ctx context.Context, id [16]byte, i int32, rev int64) error {
	return s.p.do("delete head", func() error { return s.ledger.Delete(ctx, id, i, rev) })
}

func (s processStore) Deleted(ctx context.Context) (l []tiering.Tombstone, err error) {
	err = s.p.do("deleted", func() error { l, err = s.ledger.Deleted(ctx); return err })
	return l, err
}

// tier opens one for a broker.
func (w *world) tier(p *process, change func(*tiering.Options)) *tiering.Tier {
	w.t.Helper()
	o := tiering.Options{
		Bucket: processBucket{w.bucket, p}, Manifests: processStore{w.store, p}, ClusterID: "test", BrokerID: 1, ManifestLimits: w.limits, MetaBytes: w.meta,
		FlushInterval: flush, RetentionInterval: 20 * time.Second, CollectInterval: interval, SweepInterval: w.sweep, Grace: grace,
		PublishInterval: interval, FullInterval: time.Minute, MinBackoff: 10 * time.Millisecond, MaxBackoff: time.Second,
		RequestTimeout: 5 * time.Second, UploadTimeout: 10 * time.Second, BlockBytes: 300, ChunkBytes: 700,
		DeleteDelay: func(id [16]byte) time.Duration {
			t, _ := w.topic(id)
			return t.DeleteDelay
		},
	}
	if change != nil {
		change(&o)
	}
	c, err := cache.Open(cache.Options{MemoryBytes: 1 << 20})
	if err != nil {
		w.fatalf("%v", err)
	}
	o.Cache = c
	x, err := tiering.Open(o)
	if err != nil {
		w.fatalf("%v", err)
	}
	return x
}

// workers are a worker, its Tier and its lease.
type workers struct {
	*Worker
	w     *world
	p     *process
	tier  *tiering.Tier
	lease int64

	mu     sync.Mutex
	done   []Done
	failed []error
}

var leases int64

// worker starts one. now is its clock.
func (w *world) worker(now func() time.Time, change func(*Options, *tiering.Options)) *workers {
	w.t.Helper()
	k := &workers{w: w, p: &process{w: w}}
	w.mu.Lock()
	leases++
	k.lease = leases
	w.mu.Unlock()
	o := Options{Name: "worker", Now: now, Settings: Settings{TableBytes: 1000 * cleaner.SlotSize, Backoff: 15 * time.Second}, Topic: w.topic, Recheck: time.Nanosecond,
		Store: processStore{w.store, k.p},
		Lease: func(context.Context) (int64, <-chan struct{}, error) {
			return 0, nil, errors.New("rounds are asked for")
		},
		Events: Events{
			Done:   func(d Done) { k.mu.Lock(); k.done = append(k.done, d); k.mu.Unlock() },
			Failed: func(_ string, _ int32, err error) { k.mu.Lock(); k.failed = append(k.failed, err); k.mu.Unlock() },
		}}
	var to tiering.Options
	if change != nil {
		change(&o, &to)
	}
	k.tier = w.tier(k.p, func(t *tiering.Options) {
		t.Worker, t.BrokerID, t.SpoolDir = true, math.MaxInt32, spoolDir
		t.RequestTimeout, t.UploadTimeout = time.Hour, time.Hour // a request may take as long as what happens meanwhile
		if to.SpoolDir != "" {
			t.SpoolDir = to.SpoolDir
		}
	})
	o.Tier = k.tier
	var err error
	if k.Worker, err = New(o); err != nil {
		w.fatalf("%v", err)
	}
	return k
}

// spoolDir is where workers write objects; TestMain sets it.
var spoolDir string

func (k *workers) close() { k.tier.Close() }

func (k *workers) failures() []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.failed
	k.failed = nil
	return out
}

func (w *world) topic(id [16]byte) (Topic, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, p := range w.parts {
		if k.topic == id && !p.dropped {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.topic, true
		}
	}
	return Topic{}, false
}

// audit looks at the whole bucket.
func (w *world) audit() *tiering.Audit {
	w.t.Helper()
	a, err := tiering.Check(bg, w.mem, w.store, tiering.AuditOptions{Data: true})
	if err == nil {
		err = a.Err()
	}
	if err != nil {
		w.fatalf("%v", err)
	}
	return a
}

// partition is a partition's log, of which nothing is ever lost, its leader, and its topic.
type partition struct {
	w     *world
	id    [16]byte
	name  string
	index int32

	mu       sync.Mutex
	epoch    int32
	facts    []*fact
	byBase   map[int64]*fact
	local    int64 // reads below it fail: reclaimed
	start    int64
	lin      lineage.Lineage
	tierOpts tiering.Policy
	topic    Topic
	txns     []*txn
	known    *producer.State
	reach    int64 // largest end of a table that was committed
	progress int64 // up to where the remote part has been filtered, ever

	// Owned by world.mu.
	named   map[string]bool // objects and pages that its head names
	tail    *tiering.Footer // of the newest object as its leader wrote it
	dropped bool            // the topic is deleted
}

// fact is a batch that was written.
type fact struct {
	h       batch.Header
	raw     []byte
	records []record
	txn     *txn // nil: none
	commit  bool // of a marker
	at      time.Time
	clock   int64 // of the workers, ms
}

type record struct {
	offset, ts int64
	key, value []byte
	headers    []batch.RecordHeader
}

type txn struct {
	pid         int64
	first, last int64 // last: the marker; MaxInt64 while it is open
	aborted     bool
}

func (x *txn) ended() bool { return x.last != math.MaxInt64 }

// committed tells whether consumers at read_committed are to see its records.
func (f *fact) committed() bool { return f.txn == nil || f.txn.ended() && !f.txn.aborted }

var keepAll = tiering.Policy{RetentionMs: -1, RetentionBytes: -1, LocalRetentionMs: -2, LocalRetentionBytes: -2, CopyLagBytes: -1, SegmentBytes: 1 << 30,
	SegmentMs: 7 * 24 * 3600 * 1000}

func (w *world) partition(id byte, index int32, policy picker.Policy) *partition {
	p := &partition{w: w, id: [16]byte{id}, name: fmt.Sprintf("topic-%d", id), index: index, epoch: 1, byBase: map[int64]*fact{}, tierOpts: keepAll,
		lin: lineage.Lineage{}.Assign(1, 0), known: producer.New()}
	p.topic = Topic{Name: p.name, Codec: cleaner.KeepCodec, Policy: policy}
	p.tierOpts.Compact, p.tierOpts.Delete = policy.Compact, policy.Delete
	w.mu.Lock()
	w.parts[key{p.id, index}] = p
	w.mu.Unlock()
	return p
}

func (p *partition) TopicID() [16]byte { return p.id }
func (p *partition) TopicName() string { return p.name }
func (p *partition) Partition() int32  { return p.index }

func (p *partition) LeaderEpoch() int32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

func (p *partition) Stuck(bool) {}

func (p *partition) HighWatermark() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end()
}

func (p *partition) Extent() (logStart, localStart, highWatermark, logEnd int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start, p.local, p.end(), p.end()
}

func (p *partition) end() int64 {
	if n := len(p.facts); n > 0 {
		return p.facts[n-1].h.NextOffset()
	}
	return 0
}

func (p *partition) Pending(from int64) (n int64, oldest int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.facts) - 1; i >= 0 && p.facts[i].h.LastOffset() >= from; i-- {
		n, oldest = n+int64(len(p.facts[i].raw)), p.facts[i].at.UnixMilli()
	}
	return n, oldest
}

func (p *partition) Read(offset int64, maxBytes int, upTo int64) (tiering.Run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset < p.local {
		return tiering.Run{}, fmt.Errorf("offset %d is below the local start %d", offset, p.local)
	}
	r := tiering.Run{Base: -1, Next: offset, Release: func() {}}
	n := 0
	for _, f := range p.facts {
		if f.h.LastOffset() < offset || f.h.LastOffset() >= upTo {
			continue
		}
		if n > 0 && n+len(f.raw) > maxBytes {
			break
		}
		if r.Base < 0 {
			r.Base = f.h.BaseOffset
		}
		r.Chunks, r.Next, n = append(r.Chunks, f.raw), f.h.NextOffset(), n+len(f.raw)
	}
	return r, nil
}

func (p *partition) Lineage() lineage.Lineage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lin
}

func (p *partition) Policy() tiering.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tierOpts
}

// Committed reclaims at once all that it may.
func (p *partition) Committed(s tiering.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.local = max(p.local, min(max(s.RemoteEnd, s.LogStart), p.end()))
	p.start = max(p.start, s.LogStart)
}

func (p *partition) set(f func(t *tiering.Policy, c *picker.Policy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.tierOpts, &p.topic.Policy)
	p.topic.Policy.Compact, p.topic.Policy.Delete = p.tierOpts.Compact, p.tierOpts.Delete
}

// append takes over a batch at the log's end.
func (p *partition) append(f *fact, raw []byte, clock int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch.SetBaseOffset(raw, p.end())
	batch.SetLeaderEpoch(raw, p.epoch)
	h, err := batch.ParseHeader(raw)
	if err != nil {
		p.w.errorf("%v", err)
		return
	}
	f.h, f.raw, f.at, f.clock = h, raw, time.Now(), clock
	p.facts = append(p.facts, f)
	p.byBase[h.BaseOffset] = f
	p.known.Apply(h, raw)
}

// stable is the last stable offset.
func (p *partition) stable() int64 {
	at := p.end()
	for _, x := range p.txns {
		if !x.ended() {
			at = min(at, x.first)
		}
	}
	return at
}

func (p *partition) newEpoch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	p.lin = p.lin.Assign(p.epoch, p.end())
}

// lead makes x the leader.
func (p *partition) lead(x *tiering.Tier) {
	p.w.t.Helper()
	p.w.store.SetEpoch(p.id, p.index, p.epoch)
	s, err := x.Lead(bg, p)
	if err != nil {
		p.w.fatalf("%v", err)
	}
	p.Committed(s)
}

// drained waits until everything is in the bucket.
func (p *partition) drained(x *tiering.Tier) {
	p.w.t.Helper()
	for i := 0; ; i++ {
		s, _ := x.State(p.id, p.index)
		if max(s.RemoteEnd, s.LogStart) >= p.HighWatermark() {
			return
		}
		if i > 300 {
			p.w.fatalf("%s-%d: remote end %d of %d: %v, %v", p.name, p.index, s.RemoteEnd, p.HighWatermark(), s.LastError, x.Healthy())
		}
		time.Sleep(time.Second)
	}
}

func (p *partition) head() *manifest.Head {
	p.w.t.Helper()
	raw, rev, err := p.w.store.MemManifests.Load(bg, p.id, p.index)
	if err != nil {
		p.w.fatalf("%v", err)
	}
	if rev == 0 {
		return &manifest.Head{}
	}
	h, err := manifest.DecodeHead(raw)
	if err != nil {
		p.w.fatalf("%v", err)
	}
	return h
}

// times is how often something was seen.
func (w *world) times(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[what]
}

func (w *world) saw(what string) {
	w.mu.Lock()
	w.seen[what]++
	w.mu.Unlock()
}
