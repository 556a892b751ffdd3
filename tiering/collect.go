package tiering

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

// Deleting. An object goes only after a committed head without it, after a grace
// period longer than readers keep an old head, after a published state without
// it, and after the head, read again, still lacks it. An object that no head ever
// named goes only if none can name it any more: the remote end has passed its
// base, or its writer's epoch is dead and a head read later lacks it. A listing
// only ever proposes.

// condemned is an object that is probably garbage.
type condemned struct {
	name  manifest.Name
	rev   int64         // of the head that no longer names it; 0: never named
	delay time.Duration // at least, from since on; of a mixed object, from dead on: its topics are known once it was read
	of    [16]byte      // of a mixed object: the topic whose delay it is
	bytes int64         // of it, or of the section that was let go; 0: not known
	never bool          // its upload failed here: no commit was or will be told its name
	since time.Time
	dead  time.Time // first found dead, if others may have let go of it
	again time.Time // undecided: not before
	tries int
}

// mixed tells whether it is data of several partitions, whose name says of none.
func (c *condemned) mixed() bool { return c.name.Kind == manifest.Mixed && !c.name.Page }

const maxCondemned = 100_000

// MaxDeleteDelay is the longest delay that is kept to: longer ones count as this one.
const MaxDeleteDelay = 30 * 365 * 24 * time.Hour

type collector struct {
	mu    sync.Mutex
	list  map[string]condemned
	tombs map[[16]byte]tomb
	mixed map[manifest.Suffix]mixedHint
}

// tomb is a deleted topic of which not everything is gone.
type tomb struct {
	name  string
	since time.Time // when this process heard of it
}

// mixedHint remembers a section that keeps a mixed object alive, so that the
// object need not be read again to find one.
type mixedHint struct {
	key  partitionKey
	base int64
}

const (
	maxHints   = 64 << 10
	maxUnknown = 1000 // mixed objects that one sweep proposes
)

func (g *collector) init() {
	g.list = make(map[string]condemned)
	g.tombs = make(map[[16]byte]tomb)
	g.mixed = make(map[manifest.Suffix]mixedHint)
}

// condemn proposes an object; proposing it again starts its grace anew. What
// finds no room is found by the sweep.
func (g *collector) condemn(c condemned) { g.propose(c, true) }

func (g *collector) propose(c condemned, again bool) bool {
	key := c.name.Key()
	c.since = time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	was, there := g.list[key]
	if there && !again || !there && len(g.list) >= maxCondemned {
		return false
	}
	c.rev, c.delay, c.bytes = max(c.rev, was.rev), max(c.delay, was.delay), max(c.bytes, was.bytes)
	if c.mixed() {
		c.delay = 0
	}
	g.list[key] = c
	return !there
}

func (g *collector) forget(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range keys {
		delete(g.list, k)
	}
}

// spare takes an object off the list that was found to be named, unless it was
// proposed again while it was judged.
func (g *collector) spare(key string, c condemned) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.list[key].since.Equal(c.since) {
		delete(g.list, key)
	}
}

// later asks about an object again after d, unless it was proposed again while it
// was judged.
func (g *collector) later(key string, c condemned, d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now, ok := g.list[key]; ok && now.since.Equal(c.since) {
		c.again, c.tries = time.Now().Add(d), c.tries+1
		g.list[key] = c
	}
}

func (t *Tier) collectLoop() {
	for sleep(t.ctx, t.o.CollectInterval) {
		err := t.collect(t.ctx)
		if t.ctx.Err() == nil {
			t.outcome(Collect, err)
		}
	}
}

// fate of a proposed object.
type fate int

const (
	undecided fate = iota
	named
	dead
)

// bench is what one round of collecting knows: heads, epochs and claims read in
// this round, after the grace of what is judged was over.
type bench struct {
	t     *Tier
	known map[partitionKey]standing
}

// standing is what decides about the objects of a partition, all as of one
// revision: once an epoch or a claim is dead, a head that lacks an object of
// theirs will lack it for ever.
type standing struct {
	view  *view
	epoch int32    // -1: no such partition
	claim *[4]byte // tag of the present claim, if there is one
	err   error    // what stands there cannot be read
}

func (b *bench) look(ctx context.Context, key partitionKey) (standing, error) {
	if _, ok := b.known[key]; !ok {
		if err := b.read(ctx, []partitionKey{key}); err != nil {
			return standing{}, err
		}
	}
	s := b.known[key]
	return s, s.err
}

// read reads how partitions stand, in one request.
func (b *bench) read(ctx context.Context, keys []partitionKey) error {
	ids := make([]PartitionID, len(keys))
	for i, k := range keys {
		ids[i] = PartitionID{k.topic, k.index}
	}
	// Before the question: commits go on, and may be newer than the answer.
	seen := make([]int64, len(keys))
	b.t.mu.Lock()
	for i, k := range keys {
		seen[i] = b.t.seen[k]
	}
	b.t.mu.Unlock()
	c, cancel := context.WithTimeout(ctx, b.t.o.RequestTimeout)
	list, err := b.t.store.Standing(c, ids)
	cancel()
	if err != nil {
		return fmt.Errorf("read how %s and %d others stand: %w", keys[0], len(keys)-1, err)
	}
	for i, key := range keys {
		b.known[key] = b.standing(key, list[i], seen[i])
	}
	return nil
}

// standing is what an answer says, which may not be older than what was seen before the question.
func (b *bench) standing(key partitionKey, s Standing, seen int64) standing {
	out := standing{epoch: -1}
	if s.Exists {
		out.epoch = s.LeaderEpoch
	}
	if s.Claim != nil {
		out.claim = &s.Claim.Tag
	}
	if out.view, out.err = b.t.viewOf(key, s.Head, s.Rev); out.err != nil {
		return out
	}
	if s.Rev < seen {
		// Also where there is no head and no partition, as long as no tombstone
		// said so: a metadata store that was wiped knows nothing, and everything
		// would look like garbage.
		out.err = fmt.Errorf("manifest of %s: %w: revision %d, seen %d", key, ErrRegressed, s.Rev, seen)
	}
	return out
}

// judge decides about a section, or an object of its own.
func (b *bench) judge(ctx context.Context, key partitionKey, base int64, epoch int32, kind manifest.Kind, suffix manifest.Suffix) (fate, error) {
	s, err := b.look(ctx, key)
	if err != nil {
		return undecided, err
	}
	v, current := s.view, s.epoch
	is, err := b.t.names(ctx, key, v.head, base, suffix)
	switch {
	case err != nil:
		return undecided, err
	case is:
		return named, nil
	case current < 0:
		return dead, nil // nobody commits for a deleted topic
	case kind == manifest.Rewritten:
		// The claim under which it was written decides, neither a leader's epoch nor the log start: it may be about
		// to take the place of an entry that the log start lies in.
		if s.claim == nil || *s.claim != [4]byte(suffix[:4]) {
			return dead, nil
		}
		return undecided, nil
	case v.rev != 0 && base < v.head.RemoteEnd():
		return dead, nil
	case epoch < current || epoch < v.head.Epoch:
		return dead, nil
	}
	return undecided, nil
}

// judgePage decides about a page: it belongs to the commit that was to replace
// the head of one revision.
func (b *bench) judgePage(ctx context.Context, n manifest.Name) (fate, error) {
	key := partitionKey{n.TopicID, n.Partition}
	s, err := b.look(ctx, key)
	if err != nil {
		return undecided, err
	}
	v, current := s.view, s.epoch
	is, err := b.t.namesPage(ctx, key, v.head, n.Suffix)
	switch {
	case err != nil:
		return undecided, err
	case is:
		return named, nil
	case current < 0, n.Base < v.rev, n.Epoch < current:
		return dead, nil
	}
	return undecided, nil
}

// names tells whether a head names an object's section, as one that is not dead.
func (t *Tier) names(ctx context.Context, key partitionKey, h *manifest.Head, base int64, suffix manifest.Suffix) (bool, error) {
	if n, ok := h.Newest(); ok && n.Suffix == suffix && n.Base == base {
		return true, nil
	}
	// A section that begins below the log start may reach above it.
	var e manifest.Entry
	var ok bool
	err := t.withPages(ctx, key, func(page func(manifest.PageRef) *manifest.Page) (err error) {
		e, ok, err = h.Find(base, page)
		return err
	})
	return ok && e.Suffix == suffix && e.Base == base, err
}

func (t *Tier) namesPage(ctx context.Context, key partitionKey, h *manifest.Head, suffix manifest.Suffix) (bool, error) {
	for _, r := range h.Named() {
		if r.Suffix == suffix {
			return true, nil
		}
	}
	if h.Index == nil {
		return false, nil
	}
	p, err := t.page(ctx, key, *h.Index)
	if err != nil {
		return false, err
	}
	for _, r := range p.Refs {
		if r.Suffix == suffix {
			return true, nil
		}
	}
	return false, nil
}

func (t *Tier) collect(ctx context.Context) error {
	now := time.Now()
	t.gc.mu.Lock()
	due := make(map[string]condemned)
	for k, c := range t.gc.list {
		wait := t.o.Grace
		if !c.mixed() {
			wait = max(wait, c.delay)
		}
		if now.Sub(c.since) >= wait && !now.Before(c.again) {
			due[k] = c
		}
	}
	t.gc.mu.Unlock()
	if len(due) > 0 {
		if err := t.adopt(ctx); err != nil {
			return err
		}
	}
	b := &bench{t: t, known: make(map[partitionKey]standing)}
	var failed error
	var keys []string
	for k, c := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !t.published(c) {
			continue
		}
		var f fate
		// Who else may have let go of it a moment ago: its readers and what is published need their time from when it
		// is found dead. We know when, if a head that we committed ourselves let go of all of it.
		elsewhere := c.rev == 0
		var err error
		switch {
		case c.never:
			elsewhere = false
			f = dead // whatever there is under that name, and whether or not it can be read
		case c.name.Page:
			f, err = b.judgePage(ctx, c.name)
		case c.mixed():
			f, elsewhere, err = t.judgeMixed(ctx, b, &c)
		default:
			f, err = b.judge(ctx, partitionKey{c.name.TopicID, c.name.Partition}, c.name.Base, c.name.Epoch, c.name.Kind, c.name.Suffix)
		}
		switch {
		case vanished(err) && c.mixed():
			t.gc.spare(k, c) // never arrived, or gone already
		case err != nil:
			failed = fmt.Errorf("judge %s: %w", k, err)
		case f == named:
			t.gc.spare(k, c) // who lets go of it proposes it again
		case f == dead && elsewhere && (c.dead.IsZero() || now.Sub(c.dead) < t.elsewhere(c)):
			if c.dead.IsZero() {
				c.dead = now
			}
			t.gc.later(k, c, t.elsewhere(c)-now.Sub(c.dead)) // on the second look the delay may have become another
		case f == dead:
			keys = append(keys, k)
		default:
			// Asked about less and less often: it waits for a remote end or an epoch
			// to move.
			t.gc.later(k, c, jittered(min(t.o.CollectInterval<<min(c.tries, 16), t.o.SweepInterval)))
		}
	}
	if err := t.remove(ctx, keys); err != nil {
		failed = err
	}
	if err := t.bury(ctx); err != nil {
		failed = err
	}
	return failed
}

// remove deletes objects that were judged.
func (t *Tier) remove(ctx context.Context, keys []string) error {
	for len(keys) > 0 {
		n := min(len(keys), 500)
		c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
		err := t.bucket.Delete(c, keys[:n])
		cancel()
		if err != nil {
			return fmt.Errorf("delete %d objects: %w", n, err)
		}
		t.gc.forget(keys[:n]...)
		for _, k := range keys[:n] {
			t.meta.drop(k)
		}
		t.ev.Deleted(n)
		t.log.Debug("objects deleted", "objects", n, "first", keys[0])
		keys = keys[n:]
	}
	return nil
}

// published tells whether the published state lacks what is to be deleted: a
// cluster rebuilt from the bucket must not name it. An object is proposed once a
// committed head lacks it, so a publication that began later lacks it as well,
// whether or not a head ever named it: after a restart nobody knows.
// Partitions that are led elsewhere are published there; their objects wait two
// intervals besides, mixed ones as judgeMixed finds them.
func (t *Tier) published(c condemned) bool {
	if !t.pub.since(c.since) {
		return false
	}
	return c.mixed() || c.rev == 0 || t.leader(partitionKey{c.name.TopicID, c.name.Partition}) != nil || time.Since(c.since) >= t.elsewhere(c)
}

// Retired is an object that is probably garbage, as one process knows it, or a deleted topic, with all that heads name of it.
type Retired struct {
	Object    string    // empty: a deleted topic
	Topic     string    // of a deleted topic, its name
	TopicID   [16]byte  // of a mixed object: zero
	Partition int32     // of a deleted topic: -1
	Bytes     int64     // 0: not known
	Since     time.Time // when it was let go, or found
	Earliest  time.Time // when it may be deleted, if no head names it then
}

// Retired lists what waits to be deleted by this process. Of deleted topics the topic is listed, and not its objects: any process
// may delete them, whoever comes first.
func (t *Tier) Retired() []Retired {
	t.gc.mu.Lock()
	defer t.gc.mu.Unlock()
	out := make([]Retired, 0, len(t.gc.list))
	for key, c := range t.gc.list {
		r := Retired{Object: key, Bytes: c.bytes, Since: c.since, Earliest: c.since.Add(max(t.o.Grace, c.delay))}
		if !c.mixed() {
			r.TopicID, r.Partition = c.name.TopicID, c.name.Partition
			if c.rev != 0 && t.o.Worker {
				r.Earliest = c.since.Add(t.elsewhere(c)) // what is led elsewhere is published there
			}
		}
		if c.again.After(r.Earliest) {
			r.Earliest = c.again
		}
		out = append(out, r)
	}
	for id, x := range t.gc.tombs {
		out = append(out, Retired{Topic: x.name, TopicID: id, Partition: -1, Since: x.since, Earliest: x.since.Add(t.o.Grace)})
	}
	return out
}

// Waiting is what this process has let go of or found, and not deleted yet, in sum.
type Waiting struct {
	Objects int
	Bytes   int64     // as far as they are known
	Oldest  time.Time // when the first of them was let go, or found; zero: there is none
	Topics  int       // deleted ones of which not all is gone yet
}

// Waiting is Retired in sum.
func (t *Tier) Waiting() Waiting {
	t.gc.mu.Lock()
	defer t.gc.mu.Unlock()
	w := Waiting{Objects: len(t.gc.list), Topics: len(t.gc.tombs)}
	for _, c := range t.gc.list {
		w.Bytes += c.bytes
		if w.Oldest.IsZero() || c.since.Before(w.Oldest) {
			w.Oldest = c.since
		}
	}
	return w
}

// elsewhere is how long an object waits that partitions led by other brokers may
// have named: they publish on their own.
func (t *Tier) elsewhere(c condemned) time.Duration {
	return max(t.o.Grace, c.delay) + 2*t.o.PublishInterval
}

// judgeMixed reads the directory of a mixed object and then the head of every
// partition in it, until one names it. elsewhere tells whether there are any:
// other brokers and compaction workers let go of sections as well. If it is dead,
// c gets the longest file.delete.delay.ms of the topics that there still are.
func (t *Tier) judgeMixed(ctx context.Context, b *bench, c *condemned) (res fate, elsewhere bool, err error) {
	t.gc.mu.Lock()
	hint, ok := t.gc.mixed[c.name.Suffix]
	t.gc.mu.Unlock()
	if ok {
		if f, err := b.judge(ctx, hint.key, hint.base, 0, manifest.Mixed, c.name.Suffix); err != nil {
			return undecided, false, err
		} else if f == named {
			return named, false, nil
		}
	}
	var list []Section
	key := c.name.Key()
	err = t.read(ctx, func(ctx context.Context) (err error) {
		list, err = ReadDirectory(ctx, t.bucket, key)
		if errors.Is(err, ErrCorrupt) {
			t.ev.Corrupt(key, err)
		}
		return err
	})
	if err != nil {
		return undecided, false, err
	}
	res = dead
	ahead := 1
	topics := make(map[[16]byte]bool)
	for i, s := range list {
		k := partitionKey{s.TopicID, s.Partition}
		if _, ok := b.known[k]; !ok {
			// The more are passed, the more likely all are: then a request answers for many.
			if err := b.readAhead(ctx, list[i:], ahead); err != nil {
				return undecided, false, err
			}
			ahead = min(2*ahead, maxStandings)
		}
		f, err := b.judge(ctx, k, s.Base, s.Epoch, manifest.Mixed, c.name.Suffix)
		if err != nil {
			return undecided, false, err
		}
		switch f {
		case named:
			t.gc.mu.Lock()
			if len(t.gc.mixed) >= maxHints {
				clear(t.gc.mixed)
			}
			t.gc.mixed[c.name.Suffix] = mixedHint{k, s.Base}
			t.gc.mu.Unlock()
			return named, false, nil
		case undecided:
			res = undecided
		case dead:
			if b.known[k].epoch >= 0 {
				elsewhere, topics[s.TopicID] = true, true
			}
		}
	}
	t.gc.mu.Lock()
	delete(t.gc.mixed, c.name.Suffix)
	for id := range topics {
		if _, gone := t.gc.tombs[id]; gone { // its partitions may be there for a moment longer
			delete(topics, id)
		}
	}
	t.gc.mu.Unlock()
	c.delay, c.of = 0, [16]byte{}
	if t.o.DeleteDelay != nil {
		for id := range topics {
			if d := min(t.o.DeleteDelay(id), MaxDeleteDelay); d > c.delay {
				c.delay, c.of = d, id
			}
		}
	}
	return res, elsewhere, nil
}

// maxStandings is of how many partitions one request asks: three keys of each, of
// which etcd reads 128 at a time.
const maxStandings = 32

// readAhead reads how the partitions of the first sections stand, as far as that is not known.
func (b *bench) readAhead(ctx context.Context, list []Section, n int) error {
	var keys []partitionKey
	for _, s := range list {
		k := partitionKey{s.TopicID, s.Partition}
		if _, ok := b.known[k]; ok || slices.Contains(keys, k) {
			continue
		}
		if keys = append(keys, k); len(keys) == n {
			break
		}
	}
	return b.read(ctx, keys)
}

// bury deletes the objects of deleted topics, then their heads, then the
// tombstones. What no head names is left to the sweep: the partitions do not
// exist any more.
func (t *Tier) bury(ctx context.Context) error {
	c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
	list, err := t.store.Deleted(c)
	cancel()
	if err != nil {
		return fmt.Errorf("deleted topics: %w", err)
	}
	now := time.Now()
	present := make(map[[16]byte]bool)
	var failed error
	for _, d := range list {
		present[d.TopicID] = true
		t.gc.mu.Lock()
		since, ok := now, false
		if x, there := t.gc.tombs[d.TopicID]; there {
			since, ok = x.since, true
		} else {
			t.gc.tombs[d.TopicID] = tomb{d.Name, now}
			for k, c := range t.gc.list { // file.delete.delay.ms went with the topic
				of := c.name.TopicID
				if c.mixed() {
					of = c.of // the next look finds the delay of the other topics
				}
				if of == d.TopicID {
					c.delay, c.again = 0, time.Time{}
					t.gc.list[k] = c
				}
			}
		}
		t.gc.mu.Unlock()
		if !ok {
			t.mu.Lock()
			for p := range d.Partitions {
				delete(t.seen, partitionKey{d.TopicID, p})
			}
			t.mu.Unlock()
		}
		if now.Sub(since) < t.o.Grace || !t.pub.buried(d.TopicID) {
			continue
		}
		if err := t.adopt(ctx); err != nil {
			return err
		}
		whole := true
		for p := range d.Partitions {
			err := t.buryPartition(ctx, partitionKey{d.TopicID, p})
			if err == nil {
				continue
			}
			err = fmt.Errorf("objects of deleted topic %q: %w", d.Name, err)
			if !damaged(err) {
				return err
			}
			failed, whole = err, false // what cannot be read keeps nobody else
		}
		if !whole {
			continue
		}
		if err := t.store.DropTombstone(ctx, d.TopicID); err != nil {
			return fmt.Errorf("forget deleted topic %q: %w", d.Name, err)
		}
		t.log.Info("deleted topic is gone from the bucket", "topic", d.Name)
	}
	t.gc.mu.Lock()
	for id := range t.gc.tombs {
		if !present[id] {
			delete(t.gc.tombs, id)
		}
	}
	t.gc.mu.Unlock()
	return failed
}

// damaged tells whether an error is about the bytes of one manifest, not about
// the store or the bucket.
func damaged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, manifest.ErrCorrupt) || vanished(err)
}

func (t *Tier) buryPartition(ctx context.Context, key partitionKey) error {
	v, err := t.load(ctx, key)
	if err != nil || v.rev == 0 {
		return err
	}
	drop := func(list []manifest.Entry) error {
		var keys []string
		for _, e := range list {
			name := e.Name(key.topic, key.index)
			if e.Kind == manifest.Mixed {
				t.gc.condemn(condemned{name: name})
				continue
			}
			keys = append(keys, name.Key())
		}
		return t.remove(ctx, keys)
	}
	// Data before the pages that name it, pages before the head: an interrupted
	// burial begins again at the head and finds what is left.
	pages := v.head.Pages
	if v.head.Index != nil {
		if p, err := t.page(ctx, key, *v.head.Index); err == nil {
			pages = append(append([]manifest.PageRef(nil), p.Refs...), pages...)
		} else if !vanished(err) {
			return err
		}
	}
	var keys []string
	for _, r := range pages {
		p, err := t.page(ctx, key, r)
		if vanished(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := drop(p.Entries); err != nil {
			return err
		}
		keys = append(keys, r.Key(key.topic, key.index))
	}
	if err := drop(v.head.Tail); err != nil {
		return err
	}
	if err := t.remove(ctx, keys); err != nil {
		return err
	}
	if v.head.Index != nil {
		if err := t.remove(ctx, []string{v.head.Index.Key(key.topic, key.index)}); err != nil {
			return err
		}
	}
	if err := t.store.Delete(ctx, key.topic, key.index, v.rev); err != nil {
		return fmt.Errorf("delete head of %s: %w", key, err)
	}
	t.mu.Lock()
	delete(t.seen, key)
	delete(t.views, key)
	t.mu.Unlock()
	return nil
}

// sweepLoop lists the bucket now and then for what nobody proposed: leftovers of
// processes that ended.
func (t *Tier) sweepLoop() {
	pause := firstSleep(t.o.SweepInterval)
	for sleep(t.ctx, pause) {
		pause = jittered(t.o.SweepInterval)
		err := t.sweep(t.ctx)
		if err != nil {
			pause = jittered(min(t.o.SweepInterval/2, time.Minute))
		}
		if t.ctx.Err() == nil {
			t.outcome(Sweep, err)
		}
	}
}

// abortAfter lies beyond the longest deadline of a PUT anywhere in the cluster.
const abortAfter = 24 * time.Hour

func (t *Tier) sweep(ctx context.Context) error {
	if err := t.adopt(ctx); err != nil {
		return err
	}
	found, unknown := 0, 0
	gone := make(map[partitionKey]bool) // partitions that do not exist, by what was asked in this sweep
	bad := make(map[partitionKey]error) // whose manifest cannot be read: nothing of them is judged
	if err := t.refresh(ctx, bad); err != nil {
		return err
	}
	for _, prefix := range []string{manifest.DataPrefix, manifest.PagePrefix} {
		for after := ""; ; {
			c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
			list, more, err := t.bucket.List(c, prefix, after, objstore.MaxList)
			cancel()
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			for _, info := range list {
				n, ok := manifest.ParseKey(info.Key)
				if !ok || time.Since(info.Modified) < t.o.Grace {
					continue
				}
				key := partitionKey{n.TopicID, n.Partition}
				if bad[key] != nil {
					continue
				}
				suspect, err := t.suspect(ctx, n, gone)
				if damaged(err) && n.Kind != manifest.Mixed {
					bad[key] = fmt.Errorf("manifest of %s: %w", key, err)
					continue
				}
				if err != nil {
					return err
				}
				if suspect && n.Kind == manifest.Mixed && !n.Page {
					// Each costs a look into the object, once per process. The rest
					// is for later sweeps.
					if unknown++; unknown > maxUnknown {
						continue
					}
				}
				delay := time.Duration(0)
				if l := t.leader(key); l != nil {
					delay = l.deleteDelay()
				}
				if suspect && t.gc.propose(condemned{name: n, delay: delay, bytes: info.Size}, false) {
					found++
				}
			}
			if !more || len(list) == 0 {
				break
			}
			after = list[len(list)-1].Key
		}
	}
	t.ev.Orphans(found)
	if a, ok := t.bucket.(objstore.MultipartAborter); ok {
		if _, err := a.AbortIncomplete(ctx, time.Now().Add(-abortAfter)); err != nil {
			return fmt.Errorf("abort incomplete uploads: %w", err)
		}
	}
	for _, err := range bad {
		return err
	}
	return nil
}

// refresh takes over what compaction workers have committed for partitions that are led here and have been quiet since:
// by an older head, what they replaced would never be suspect. bad gets what cannot be read.
func (t *Tier) refresh(ctx context.Context, bad map[partitionKey]error) error {
	c, cancel := context.WithTimeout(ctx, t.o.UploadTimeout)
	defer cancel()
	err := t.store.Range(c, func(s StoredHead) error {
		key := partitionKey{s.TopicID, s.Partition}
		l := t.leader(key)
		if l == nil || s.Rev <= l.view.Load().rev {
			return nil
		}
		h, err := manifest.DecodeHead(s.Head)
		if err != nil {
			bad[key] = fmt.Errorf("manifest of %s at revision %d: %w", key, s.Rev, err)
			return nil
		}
		t.adoptView(l, t.newView(key, h, s.Rev))
		return nil
	})
	if err != nil {
		return fmt.Errorf("read all heads: %w", err)
	}
	return nil
}

// suspect tells whether an object that was listed deserves a closer look: by the
// heads of the partitions that are led here, and for partitions that are gone.
func (t *Tier) suspect(ctx context.Context, n manifest.Name, gone map[partitionKey]bool) (bool, error) {
	if n.Kind == manifest.Mixed && !n.Page {
		t.gc.mu.Lock()
		hint, ok := t.gc.mixed[n.Suffix]
		t.gc.mu.Unlock()
		if ok {
			if l := t.leader(hint.key); l != nil {
				alive := false
				err := t.byView(ctx, l, func(v *view) (err error) {
					alive, err = t.names(ctx, hint.key, v.head, hint.base, n.Suffix)
					return err
				})
				if damaged(err) {
					return false, nil // nothing of that partition is judged
				}
				return !alive, err
			}
			// Whoever leads that partition proposes the object when it lets go of
			// it, and whoever leads it next knows no hint.
			return t.missing(ctx, hint.key, gone)
		}
		return true, nil // judged once by its directory, which leaves a hint
	}
	key := partitionKey{n.TopicID, n.Partition}
	if l := t.leader(key); l != nil {
		is := false
		err := t.byView(ctx, l, func(v *view) (err error) {
			if n.Page {
				is, err = t.namesPage(ctx, key, v.head, n.Suffix)
			} else {
				is, err = t.names(ctx, key, v.head, n.Base, n.Suffix)
			}
			return err
		})
		return !is, err
	}
	return t.missing(ctx, key, gone)
}

// missing tells whether a partition does not exist; gone remembers the answers.
func (t *Tier) missing(ctx context.Context, key partitionKey, gone map[partitionKey]bool) (bool, error) {
	is, known := gone[key]
	if !known {
		c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
		defer cancel()
		_, exists, err := t.store.LeaderEpoch(c, key.topic, key.index)
		if err != nil {
			return false, err
		}
		is = !exists
		gone[key] = is
	}
	return is, nil
}
