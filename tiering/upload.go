package tiering

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// candidate is a partition that may be uploaded now.
type candidate struct {
	l       *leader
	verdict verdict
	pending
	limit int64 // bytes to take at most
}

// idleTicks is how many ticks pass without a look at the partitions when nobody
// has said that there is something to see.
const idleTicks = 8

// uploadLoop looks at every led partition now and then, and at once when an
// upload has ended or a leadership has begun. A partition without new records
// costs it a few loads, and while none has any, nothing.
func (t *Tier) uploadLoop() {
	tick := min(max(t.o.FlushInterval/8, 20*time.Millisecond), time.Second)
	timer := time.NewTimer(tick)
	defer timer.Stop()
	var pause pauser
	idle, next := 0, time.Time{}
	for {
		woken := false
		select {
		case <-t.ctx.Done():
			return
		case <-timer.C:
		case <-t.wake:
			woken = true
		}
		idle++
		if moved := t.moved.Swap(false); moved || woken || idle >= idleTicks || !time.Now().Before(next) || t.urgent() {
			next = t.schedule(&pause)
			idle = 0
		}
		timer.Reset(tick)
	}
}

// Moved tells that the high watermark of some partition may have moved: what is
// not told is found a little later.
func (t *Tier) Moved() {
	if !t.moved.Load() {
		t.moved.Store(true)
	}
}

// pauser slows uploads down while the bucket fails: one attempt at a time, after
// a pause that doubles. The first success ends it, and the backlog drains.
type pauser struct {
	mu      sync.Mutex
	fails   int
	until   time.Time
	running int
}

// begin tells whether an attempt may be made now, and counts it.
func (p *pauser) begin(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails > 0 && (p.running > 0 || now.Before(p.until)) {
		return false
	}
	p.running++
	return true
}

func (p *pauser) end(err error, o *Options) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	switch {
	case err == nil:
		p.fails = 0
	case bucketFault(err):
		d := min(o.MinBackoff<<min(p.fails, 20), o.MaxBackoff)
		if d <= 0 {
			d = o.MaxBackoff
		}
		p.fails++
		p.until = time.Now().Add(jittered(d))
	}
}

// bucketFault tells whether an upload failed for a reason that the next one will
// meet too.
func bucketFault(err error) bool {
	return objstore.ClassOf(err) != objstore.ClassOther || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrForeign)
}

func (t *Tier) urgent() bool { return t.o.Urgent != nil && t.o.Urgent() }

// schedule starts what is due, and tells when it has to look again even if nothing moves.
func (t *Tier) schedule(pause *pauser) (again time.Time) {
	now := time.Now()
	urgent := t.urgent()
	again = now.Add(time.Hour)
	var big, small []candidate
	due := false
	for _, l := range t.leaders() {
		if l.unread.Load() && !l.busy.Load() && l.ctx.Err() == nil {
			again = now
			t.spawn(func() { t.readBackLater(l) })
		}
		next, hw := l.next.Load(), l.r.HighWatermark()
		t.tellStuck(l, next, hw, now)
		if hw <= next {
			continue
		}
		if l.busy.Load() || l.ctx.Err() != nil || !l.ready(now) {
			again = now
			continue
		}
		c := candidate{l: l}
		c.bytes, c.oldestMs = l.r.Pending(next)
		p := l.r.Policy()
		// What alone could not be uploaded is due when it is tried again, for its producers may be waiting for that; and by
		// itself, so that it has nothing else uploaded before its time.
		alone := l.isAlone()
		if c.verdict = decide(p, &t.o, c.pending, now.UnixMilli(), l.jitter(next), urgent || alone); c.verdict == flush && alone {
			c.verdict = own
		}
		c.limit = min(target(p, &t.o), c.bytes) // what arrives before it is sealed has no memory reserved
		switch c.verdict {
		case own:
			big = append(big, c)
		case flush, follow:
			due = due || c.verdict == flush
			small = append(small, c)
		}
		if c.verdict == own || c.verdict == flush {
			again = now
		} else if at := time.UnixMilli(restsUntil(p, &t.o, c.pending, l.jitter(next))); at.Before(again) {
			again = at
		}
	}
	byAge := func(a, b candidate) int { return int(min(max(a.oldestMs-b.oldestMs, -1), 1)) }
	if due {
		// Whatever has little to say goes along, so that all of it costs one
		// upload per interval.
		slices.SortFunc(small, byAge)
		for len(small) > 0 {
			n, bytes := 0, int64(0)
			for n < len(small) && n < t.o.MixedSections && (n == 0 || bytes+small[n].bytes <= t.o.MixedBytes) {
				bytes += small[n].bytes
				n++
			}
			if !t.start(pause, now, slices.Clone(small[:n])) {
				return again
			}
			small = small[n:]
		}
	}
	slices.SortFunc(big, byAge)
	for _, c := range big {
		if !t.start(pause, now, []candidate{c}) {
			return again
		}
	}
	return again
}

// start begins one upload if there is a slot and memory for it.
func (t *Tier) start(pause *pauser, now time.Time, group []candidate) bool {
	need := int64(maxBodyBuf)
	for _, c := range group {
		need += c.limit
	}
	need = min(need, t.o.UploadBytes)
	slots := t.slots.Load()
	if !slots.TryAcquire(1) {
		return false
	}
	if !t.memory.TryAcquire(need) {
		slots.Release(1)
		return false
	}
	if !pause.begin(now) {
		t.memory.Release(need)
		slots.Release(1)
		return false
	}
	for _, c := range group {
		c.l.busy.Store(true)
	}
	done := func(uploaded bool, err error) {
		pause.end(err, &t.o)
		for _, c := range group {
			c.l.busy.Store(false)
		}
		slots.Release(1)
		if uploaded {
			t.kick() // there may be more; without progress the next tick is soon enough
		}
	}
	ok := t.spawn(func() {
		freed := sync.OnceFunc(func() { t.memory.Release(need) })
		defer freed()
		uploaded, err := t.upload(group, freed)
		done(uploaded, err)
	})
	if !ok {
		t.memory.Release(need)
		done(false, ErrClosed)
	}
	return ok
}

// ready tells whether the partition's own pause is over.
func (l *leader) ready(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !now.Before(l.retryAt)
}

// frozenAfter is how long a high watermark must stand still below the end of the log to count as stuck: with replicas enough it moves
// with every fetch of the followers.
const frozenAfter = 10 * time.Second

// tellStuck tells a partition's replica whether its records cannot go: copies are disabled, the partition's own upload fails, or they are not committed.
func (t *Tier) tellStuck(l *leader, next, hw int64, now time.Time) {
	still, stuck := &l.still, false
	if hw != still.at {
		still.at, still.since, still.below = hw, now, false
	}
	if now.Sub(still.since) >= frozenAfter {
		switch _, _, _, end := l.r.Extent(); {
		case end <= hw: // there is nothing to commit
			still.since, still.below = now, false
		case still.below:
			stuck = true
		default: // since a moment ago, maybe
			still.since, still.below = now, true
		}
	}
	l.mu.Lock()
	if l.alone && hw <= next { // what it was has been deleted, or has expired
		l.alone, l.err, l.fails, l.retryAt = false, nil, 0, time.Time{}
	}
	stuck = stuck || l.alone
	over := l.said && !stuck
	if over {
		l.said = false
	}
	l.mu.Unlock()
	stuck = stuck || l.r.Policy().CopyDisabled
	if stuck || l.told != toldNo {
		l.r.Stuck(stuck)
		if stuck && l.ctx.Err() != nil {
			l.r.Stuck(false) // resigned meanwhile
		}
	}
	if over {
		t.log.Info("partition can be uploaded again", "topic", l.name, "partition", l.key.index)
	}
	if l.told = toldNo; stuck {
		l.told = toldYes
	}
}

func (l *leader) isAlone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alone
}

// outcome notes the end of an upload of this partition.
func (l *leader) outcome(err error, o *Options) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	if err == nil {
		l.fails, l.retryAt, l.alone = 0, time.Time{}, false
		return
	}
	if !bucketFault(err) { // else the pauser says when
		l.retryAt = time.Now().Add(jittered(min(o.MinBackoff<<min(l.fails, 16), o.MaxBackoff)))
		l.fails++
	}
}

// stuck notes a failure that concerns one partition alone. It stands until that
// partition's next upload succeeds, however well others do.
func (t *Tier) stuck(l *leader, d Duty, err error) {
	l.outcome(err, &t.o)
	t.ev.Failed(d, fmt.Errorf("%s: %w", l.key, err))
	l.mu.Lock()
	l.alone = true
	say := l.logged.IsZero() || time.Since(l.logged) >= logEvery
	if say {
		l.logged, l.said = time.Now(), true
	}
	l.mu.Unlock()
	if say {
		t.log.Error("partition cannot be uploaded and is tried again", "topic", l.name, "partition", l.key.index, "duty", string(d), "err", err)
	}
}

// stuck is why records of the partition that should be in the bucket are not, or nil.
func (l *leader) stuck() error {
	l.mu.Lock()
	err := l.err
	l.mu.Unlock()
	if err == nil || l.ctx.Err() != nil || l.r.Policy().CopyDisabled {
		return nil
	}
	if _, _, hw, _ := l.r.Extent(); hw <= l.view.Load().head.NextBase() {
		return nil // they have expired meanwhile
	}
	return fmt.Errorf("upload of %s (topic %q): %w", l.key, l.name, err)
}

// jitter is a number in [0, 1) that differs between partitions and objects.
func (l *leader) jitter(base int64) float64 {
	h := fnv.New32a()
	h.Write(l.key.topic[:])
	h.Write([]byte{byte(l.key.index), byte(l.key.index >> 8), byte(base), byte(base >> 8), byte(base >> 16)})
	return float64(h.Sum32()) / (1 << 32)
}

func (t *Tier) readBackLater(l *leader) {
	select {
	case <-l.edit:
	default:
		return
	}
	defer func() { l.edit <- struct{}{} }()
	if l.unread.Load() {
		t.readBack(l.ctx, l)
	}
}

const uploadTries = 3

// upload seals, uploads, verifies and commits one object. The error is that of
// the object; what concerns one partition alone is noted with it.
func (t *Tier) upload(group []candidate, freed func()) (uploaded bool, err error) {
	began := time.Now()
	if err := t.adopt(t.ctx); err != nil { // before anything is read: this may fail for long
		for _, c := range group {
			c.l.outcome(err, &t.o)
		}
		if t.ctx.Err() == nil {
			t.outcome(Upload, err)
		}
		return false, err
	}
	b := newBuilder(t.o.BlockBytes)
	defer b.body.release()
	kind := manifest.Own
	if len(group) > 1 {
		kind = manifest.Mixed
	}
	type sealed struct {
		l *leader
		s *sectionBuilder
	}
	var parts []sealed
	var first error
	footers := int64(0)
	fail := func(l *leader, err error) {
		if l.ctx.Err() != nil {
			return // resigned meanwhile
		}
		first = err
		t.stuck(l, Upload, fmt.Errorf("seal: %w", err))
	}
	for _, c := range group {
		if t.ctx.Err() != nil {
			return false, t.ctx.Err()
		}
		mark := b.mark()
		s, err := t.seal(b, c)
		if err != nil {
			if bodyTouched := b.reset(mark); !bodyTouched {
				fail(c.l, err)
				continue
			}
			// Bytes of the failed section are in the body already and cannot be
			// told from good ones later: leave them out by starting over without
			// this partition.
			fail(c.l, err)
			rest := slices.DeleteFunc(slices.Clone(group), func(o candidate) bool { return o.l == c.l })
			if len(rest) == 0 {
				return false, err
			}
			b.body.release()
			return t.upload(rest, freed)
		}
		if s == nil {
			continue
		}
		parts = append(parts, sealed{c.l, s})
		// Producer state goes into the footers, and nobody knows how much of it there
		// is before it is folded. The partitions that are left out are next.
		if footers += s.f.size(); footers > t.o.MixedBytes {
			break
		}
	}
	if len(parts) == 0 {
		return false, first
	}
	if len(parts) == 1 {
		kind = manifest.Own
	}
	dataEnd := b.body.size
	if err := b.finish(); err != nil {
		for _, p := range parts {
			p.l.outcome(err, &t.o)
		}
		t.outcome(Upload, err)
		return false, err
	}
	one := parts[0]
	var suffix manifest.Suffix
	ctx := t.ctx
	if len(parts) == 1 {
		ctx = one.l.ctx
	}
	for try := range uploadTries {
		if try > 0 && !sleep(ctx, jittered(t.o.MinBackoff<<try)) {
			break
		}
		suffix = newSuffix()
		name := one.s.entry(kind, suffix).Name(one.l.key.topic, one.l.key.index)
		if err = t.put(ctx, name.Key(), &b.body, dataEnd); err == nil {
			break
		}
		// It may be there all the same, or appear later: another attempt takes
		// another name, and this one is garbage.
		t.gc.condemn(condemned{name: name, never: true})
		if !objstore.Retriable(err) && !errors.Is(err, ErrCorrupt) || errors.Is(err, objstore.ErrDenied) || errors.Is(err, objstore.ErrNoBucket) {
			break
		}
	}
	if err != nil {
		for _, p := range parts {
			if p.l.ctx.Err() == nil {
				p.l.outcome(err, &t.o)
			}
		}
		if ctx.Err() == nil {
			t.outcome(Upload, err)
		}
		return false, err
	}
	t.outcome(Upload, nil)
	bytes := b.body.size
	b.body.release()
	freed() // from here on only commits are waited for
	t.ev.Uploaded(len(parts), bytes, time.Since(began))
	t.log.Debug("object uploaded", "sections", len(parts), "bytes", bytes, "took", time.Since(began))

	var g errgroup.Group
	g.SetLimit(t.o.Commits)
	for _, p := range parts {
		g.Go(func() error {
			err := t.append(p.l, p.s.entry(kind, suffix))
			switch {
			case err == nil:
				p.l.outcome(nil, &t.o)
				p.l.mu.Lock()
				f := p.s.fold
				p.l.fold = &f
				p.l.mu.Unlock()
			case errors.Is(err, errSuperseded), errors.Is(err, ErrFenced), errors.Is(err, manifest.ErrFenced):
				// Somebody else's object took the place. This one is an orphan.
				p.l.outcome(err, &t.o)
				t.gc.condemn(condemned{name: p.s.entry(kind, suffix).Name(p.l.key.topic, p.l.key.index)})
				t.log.Info("object not committed", "partition", p.l.key.String(), "err", err)
			case p.l.ctx.Err() == nil:
				t.gc.condemn(condemned{name: p.s.entry(kind, suffix).Name(p.l.key.topic, p.l.key.index)})
				t.stuck(p.l, Commit, err)
				if bucketFault(err) {
					return err // of a page: the pauser must hear of it, or the same is uploaded again at once
				}
			}
			return nil
		})
	}
	return true, g.Wait()
}

// append commits an entry at the remote end.
func (t *Tier) append(l *leader, e manifest.Entry) error {
	return t.commit(l.ctx, l, func(h *manifest.Head, page func(manifest.PageRef) *manifest.Page) (*manifest.Edit, error) {
		if have, ok := h.Newest(); ok && have.Suffix == e.Suffix && have.Base == e.Base {
			return nil, nil
		}
		if e.Base >= h.RemoteEnd() {
			return &manifest.Edit{Add: []manifest.Entry{e}}, nil
		}
		have, ok, err := h.Find(e.Base, page)
		if err != nil {
			return nil, err
		}
		if ok && have.Suffix == e.Suffix && have.Base == e.Base {
			return nil, nil // an earlier attempt was applied
		}
		return nil, fmt.Errorf("%w: %d-%d, remote end %d, log start %d", errSuperseded, e.Base, e.Last, h.RemoteEnd(), h.LogStart)
	})
}

type bodyMark struct {
	size     int64
	sections int
}

func (b *builder) mark() bodyMark { return bodyMark{b.body.size, len(b.sections)} }

// reset takes the last section back; it tells whether bytes of it are in the body.
func (b *builder) reset(m bodyMark) bool {
	b.sections = b.sections[:m.sections]
	return b.body.size != m.size
}

// seal reads a partition's records from the remote end on into a section. It
// returns nil if there is nothing to seal any more.
func (t *Tier) seal(b *builder, c candidate) (*sectionBuilder, error) {
	l := c.l
	v, err := t.newest(l.ctx, l)
	if err != nil {
		return nil, err // it could not be committed: do not fill the bucket with it
	}
	base, end := v.head.NextBase(), v.head.RemoteEnd()
	_, _, hw, _ := l.r.Extent()
	if hw <= base || l.r.LeaderEpoch() != l.epoch || l.ctx.Err() != nil {
		return nil, nil
	}
	var fo fold
	err = t.byView(l.ctx, l, func(fresh *view) (err error) {
		v = fresh // with the same remote end: only we move it
		fo, err = t.foldAt(l, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	if base > end {
		t.skip(l, &fo, base)
	}
	fo.state.Expire(time.Now().UnixMilli(), t.expiryMs.Load())
	p := l.r.Policy()
	f := Footer{TopicID: l.key.topic, Partition: l.key.index, Base: base, Epoch: l.epoch, Created: time.Now().UnixMilli()}
	if newest, ok := v.head.Newest(); ok {
		f.Prev = Link{newest.Next(), newest.FooterCRC}
	}
	held := int64(-1) // batches younger than the copy lag wait, if the lag is by time alone
	if p.CopyLagMs > 0 && p.CopyLagBytes < 0 && !(t.o.Urgent != nil && t.o.Urgent()) {
		held = time.Now().UnixMilli() - p.CopyLagMs
	}
	var s *sectionBuilder
	errEnough := errors.New("enough")
	for next := base; next < hw; {
		run, err := l.r.Read(next, maxBodyBuf, hw)
		if err != nil {
			return nil, fmt.Errorf("read the log at %d: %w", next, err)
		}
		from := next
		for _, chunk := range run.Chunks {
			err = batch.Walk(chunk, func(h batch.Header, raw []byte) error {
				if h.LastOffset() >= hw || len(raw) > maxBlock {
					return fmt.Errorf("batch %d-%d of %d bytes, high watermark %d", h.BaseOffset, h.LastOffset(), len(raw), hw)
				}
				if s == nil {
					// Behind a log start in the middle of a batch the section
					// begins with that whole batch.
					if h.BaseOffset < base && h.BaseOffset >= end && h.LastOffset() >= base {
						f.Base = h.BaseOffset
					}
					s = b.section(f, fo)
				} else if s.f.Bytes+int64(len(raw)) > c.limit || held >= 0 && h.MaxTimestamp > held {
					return errEnough
				}
				if err := s.add(h, raw); err != nil {
					return err
				}
				next = h.NextOffset()
				return nil
			})
			if err != nil {
				break
			}
		}
		run.Release()
		if errors.Is(err, errEnough) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("seal from %d: %w", base, err)
		}
		if next == from {
			break // the batch that follows reaches above the high watermark
		}
		if l.ctx.Err() != nil {
			return nil, l.ctx.Err()
		}
	}
	if s == nil {
		return nil, nil
	}
	s.end(l.r.Lineage(), v.head.LogStart)
	return s, nil
}

// skip folds the batches between the remote end and a log start that has passed
// it: they are not uploaded, but a transaction may end among them, and a sequence
// go on. Where they are gone, nothing is known of any producer: one that is
// unknown may go on with any sequence, and a transaction that is still open shows
// again with its next batch; while a stale state would refuse the one and keep
// the other open for ever.
func (t *Tier) skip(l *leader, fo *fold, base int64) {
	at := fo.at
	for at < base {
		run, err := l.r.Read(at, maxBodyBuf, base)
		from := at
		if err == nil {
			for _, c := range run.Chunks {
				err = batch.Walk(c, func(h batch.Header, raw []byte) error {
					if h.BaseOffset != at {
						return fmt.Errorf("batch at %d where %d should follow", h.BaseOffset, at)
					}
					if h.ProducerID >= 0 {
						fo.state.Apply(h, raw)
					}
					at = h.NextOffset()
					return nil
				})
				if err != nil {
					break
				}
			}
			run.Release()
		}
		if err != nil {
			t.log.Info("producer state begins anew at the log start", "partition", l.key.String(), "remote_end", fo.at, "log_start", base, "err", err)
			fo.state, fo.at = producer.New(), base
			return
		}
		if at == from {
			break // the batch that follows holds the log start
		}
	}
	fo.at = at
}

// foldAt returns a copy of the producer state at the remote end: what the last
// upload left in memory, or the snapshot of the newest object.
func (t *Tier) foldAt(l *leader, v *view) (fold, error) {
	end := v.head.RemoteEnd()
	l.mu.Lock()
	have := l.fold
	l.mu.Unlock()
	if have != nil && have.at == end {
		return fold{have.state.Clone(), have.lin, end}, nil
	}
	newest, ok := v.head.Newest()
	if !ok {
		return fold{producer.New(), nil, 0}, nil
	}
	f, err := t.footer(l.ctx, l.key, newest, true)
	if err != nil {
		return fold{}, fmt.Errorf("producer state at %d: %w", end, err)
	}
	st, at, err := producer.Decode(f.Producers)
	if err != nil || at != end {
		return fold{}, fmt.Errorf("producer state at %d, found that of %d: %w", end, at, errors.Join(ErrCorrupt, err))
	}
	return fold{st, f.Lineage, at}, nil
}

// footer reads the footer of an entry. Only with full set it has lineage and
// producer state: those are large, wanted once, and not kept.
func (t *Tier) footer(ctx context.Context, key partitionKey, e manifest.Entry, full bool) (*Footer, error) {
	var f *Footer
	name := e.Key(key.topic, key.index)
	err := t.read(ctx, func(ctx context.Context) (err error) {
		f, err = ReadFooter(ctx, t.bucket, name, section(key, e))
		if errors.Is(err, ErrCorrupt) {
			t.ev.Corrupt(name, err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !full {
		f.Lineage, f.Producers = nil, nil
	}
	return f, nil
}
