package tiering

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	mrand "math/rand/v2"
	"slices"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

func newSuffix() (s manifest.Suffix) {
	rand.Read(s[:]) // never fails
	return s
}

// jittered spreads a pause over half to three halves of d.
func jittered(d time.Duration) time.Duration {
	return d/2 + time.Duration(mrand.Int64N(int64(d)+1))
}

// load reads a head from the store.
func (t *Tier) load(ctx context.Context, key partitionKey) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
	defer cancel()
	raw, rev, err := t.store.Load(ctx, key.topic, key.index)
	if err != nil {
		return nil, fmt.Errorf("load manifest of %s: %w", key, err)
	}
	return t.viewOf(key, raw, rev)
}

// viewOf makes a view of a stored head; rev is 0 if there is none.
func (t *Tier) viewOf(key partitionKey, raw []byte, rev int64) (v *view, err error) {
	head := &manifest.Head{}
	if rev != 0 {
		if head, err = manifest.DecodeHead(raw); err != nil {
			return nil, fmt.Errorf("manifest of %s at revision %d: %w", key, rev, err)
		}
	}
	return t.newView(key, head, rev), nil
}

func (t *Tier) newView(key partitionKey, head *manifest.Head, rev int64) *view {
	v := &view{head: head, rev: rev, loaded: time.Now()}
	v.objects, v.bytes = head.Totals()
	// Dead entries are in the tail as long as a page stands before it, and in the
	// oldest page.
	peek := func(r manifest.PageRef) *manifest.Page {
		p, _ := t.meta.peek(r.Key(key.topic, key.index)).(*manifest.Page)
		return p
	}
	var lists [][]manifest.Entry
	if named := head.Named(); len(named) > 0 {
		if p := peek(named[0]); p != nil {
			if len(p.Refs) > 0 {
				for _, r := range p.Refs {
					if r.Last < head.LogStart {
						v.objects, v.bytes = v.objects-r.Entries, v.bytes-r.Bytes
					} else if r.Base < head.LogStart {
						if q := peek(r); q != nil {
							lists = append(lists, q.Entries)
						}
					}
				}
			} else {
				lists = append(lists, p.Entries)
			}
		}
	}
	lists = append(lists, head.Tail)
	for _, list := range lists {
		for _, e := range list {
			if e.Last < head.LogStart {
				v.objects, v.bytes = v.objects-1, v.bytes-e.Bytes
			}
		}
	}
	return v
}

// live returns the bytes in entries that are not dead, exactly.
func (t *Tier) live(ctx context.Context, key partitionKey, h *manifest.Head) (bytes int64, err error) {
	err = t.withPages(ctx, key, func(page func(manifest.PageRef) *manifest.Page) error {
		_, bytes = h.Totals()
		refs := h.Pages
		if h.Index != nil {
			p := page(*h.Index)
			if p == nil {
				return &manifest.NeedPage{Ref: *h.Index}
			}
			refs = append(slices.Clone(p.Refs), refs...)
		}
		dead := func(list []manifest.Entry) {
			for _, e := range list {
				if e.Last < h.LogStart {
					bytes -= e.Bytes
				}
			}
		}
		for _, r := range refs {
			if r.Last < h.LogStart {
				bytes -= r.Bytes
			} else if r.Base < h.LogStart {
				p := page(r)
				if p == nil {
					return &manifest.NeedPage{Ref: r}
				}
				dead(p.Entries)
			}
		}
		dead(h.Tail)
		return nil
	})
	return bytes, err
}

// page returns a page of a partition, from memory or from the bucket.
func (t *Tier) page(ctx context.Context, key partitionKey, ref manifest.PageRef) (*manifest.Page, error) {
	name := ref.Key(key.topic, key.index)
	v, err := t.meta.get(ctx, name, t.spawn, func() (any, int64, error) {
		var p *manifest.Page
		err := t.read(t.ctx, func(ctx context.Context) error {
			raw, err := objstore.ReadRange(ctx, t.bucket, name, 0, int64(ref.Size))
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			if p, err = manifest.DecodePage(raw, ref); err != nil {
				t.ev.Corrupt(name, err)
				return fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
		return p, pageCost(p), nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*manifest.Page), nil
}

// read runs one small read of the bucket in the pool of reads, with a deadline;
// what was damaged on its way is read once more.
func (t *Tier) read(ctx context.Context, f func(context.Context) error) (err error) {
	reads := t.reads.Load()
	if err := reads.Acquire(ctx, 1); err != nil {
		return err
	}
	defer reads.Release(1)
	for range 2 {
		c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
		err = f(c)
		cancel()
		if err == nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, objstore.ErrTruncated) {
			return err
		}
	}
	return err
}

// spawn starts a goroutine that Close waits for.
func (t *Tier) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		f()
	}()
	return true
}

// withPages runs f, which looks at a head, with the pages it turns out to need: f
// is run again from its beginning for each page that was not at hand. So what it
// needs at one time is few pages; a scan remembers how far it came.
func (t *Tier) withPages(ctx context.Context, key partitionKey, f func(page func(manifest.PageRef) *manifest.Page) error) error {
	at := make(map[manifest.Suffix]*manifest.Page)
	page := func(r manifest.PageRef) *manifest.Page {
		if p := at[r.Suffix]; p != nil {
			return p
		}
		p, _ := t.meta.peek(r.Key(key.topic, key.index)).(*manifest.Page)
		if p != nil {
			at[r.Suffix] = p
		}
		return p
	}
	for {
		err := f(page)
		var need *manifest.NeedPage
		if !errors.As(err, &need) {
			return err
		}
		p, err := t.page(ctx, key, need.Ref)
		if err != nil {
			return err
		}
		if len(at) > 8 {
			clear(at) // a scan over many pages goes on from the one it stopped at
		}
		at[need.Ref.Suffix] = p
	}
}

// put uploads an object, whole, under a name nobody used before, and makes sure
// that it is there as planned: the store checks the checksum, and its size and
// last bytes, from the footers on, are read back.
func (t *Tier) put(ctx context.Context, key string, b *body, verifyFrom int64) error {
	if err := t.adopt(ctx); err != nil {
		return err
	}
	if err := throttle(ctx, t.upRate, b.size); err != nil {
		return err
	}
	c, cancel := context.WithTimeout(ctx, t.o.UploadTimeout)
	err := t.bucket.Put(c, key, b.reader(), b.size, b.crc)
	cancel()
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	c, cancel = context.WithTimeout(ctx, t.o.RequestTimeout)
	defer cancel()
	size, err := t.bucket.Head(c, key)
	if err != nil {
		return fmt.Errorf("verify %s: %w", key, err)
	}
	if size != b.size {
		return fmt.Errorf("verify %s: %w: %d bytes, %d were written", key, ErrCorrupt, size, b.size)
	}
	for pos := verifyFrom; pos < b.size; {
		n := min(b.size-pos, maxBodyBuf)
		got, err := objstore.ReadRange(c, t.bucket, key, pos, n)
		if err != nil {
			return fmt.Errorf("verify %s: %w", key, err)
		}
		want := make([]byte, n)
		b.ReadAt(want, pos)
		if crc32.Checksum(got, castagnoli) != crc32.Checksum(want, castagnoli) {
			return fmt.Errorf("verify %s: %w: what is read back from %d on is not what was written", key, ErrCorrupt, pos)
		}
		pos += n
	}
	return nil
}

// errSuperseded: the remote end has passed the entry and another took its place.
var errSuperseded = errors.New("the remote end has passed this object")

// edit is a change of a head, made again for each head it is tried on. It
// returns nil if there is nothing to change (any more).
type edit func(h *manifest.Head, page func(manifest.PageRef) *manifest.Page) (*manifest.Edit, error)

// commit edits the head of a led partition. When it returns nil the edit is in a
// committed head, by this call or an earlier one, and l.view has it.
func (t *Tier) commit(ctx context.Context, l *leader, change edit) error {
	select {
	case <-l.edit:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ctx.Done():
		return fmt.Errorf("commit manifest of %s: %w", l.key, ErrNotLed)
	}
	defer func() { l.edit <- struct{}{} }()
	ctx, cancel := both(ctx, l.ctx)
	defer cancel()
	backoff := t.o.MinBackoff
	for {
		v, err := t.newest(ctx, l)
		if err != nil {
			return fmt.Errorf("manifest of %s: %w", l.key, err)
		}
		var res *manifest.Result
		added := 0
		err = t.withPages(ctx, l.key, func(page func(manifest.PageRef) *manifest.Page) error {
			e, err := change(v.head, page)
			if err != nil || e == nil {
				res = nil
				return err
			}
			e.Epoch, added = l.epoch, len(e.Add)
			_, _, hw, _ := l.r.Extent()
			res, err = v.head.Apply(*e, manifest.Input{HighWatermark: hw, Rev: v.rev, NewSuffix: newSuffix, Page: page, Limits: t.limits})
			return err
		})
		if vanished(err) { // a page: a compaction worker may have put another in its place
			if fresh, lerr := t.load(ctx, l.key); lerr == nil && fresh.rev > v.rev {
				t.tell(l, fresh)
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("edit manifest of %s: %w", l.key, err)
		}
		if res == nil {
			return nil
		}
		for i, w := range res.Writes {
			if err := t.putPage(ctx, l.key, w); err != nil {
				for _, w := range res.Writes[:i+1] {
					t.gc.condemn(t.pageOf(l.key, w.Ref, 0))
				}
				return err
			}
		}
		req := CommitRequest{TopicID: l.key.topic, Partition: l.key.index, Rev: v.rev, LeaderEpoch: l.epoch, Head: res.Head.Encode()}
		rev, err := t.send(ctx, req)
		if err == nil {
			t.committed(ctx, l, v, res, rev, added)
			return nil
		}
		for _, w := range res.Writes {
			t.gc.condemn(t.pageOf(l.key, w.Ref, 0))
		}
		switch {
		case errors.Is(err, ErrConflict):
			t.ev.Conflict()
			fresh, lerr := t.load(ctx, l.key)
			if lerr != nil {
				return lerr
			}
			if fresh.rev < v.rev {
				return fmt.Errorf("manifest of %s: %w: revision %d, was %d", l.key, ErrRegressed, fresh.rev, v.rev)
			}
			// Another leader or the compaction worker got in between, or an earlier
			// request of ours whose answer was lost: what it did stands, ours is
			// made again on top of it.
			t.tell(l, fresh)
			if fresh.rev == v.rev {
				if !sleep(ctx, jittered(backoff)) {
					return ctx.Err()
				}
				backoff = min(2*backoff, t.o.MaxBackoff)
			}
		case errors.Is(err, ErrFenced):
			// An earlier attempt may have been applied before the epoch moved.
			fresh, lerr := t.load(ctx, l.key)
			if lerr != nil {
				return fmt.Errorf("commit manifest of %s: %w (and the head cannot be read: %w)", l.key, err, lerr)
			}
			t.adoptView(l, fresh)
			again := t.withPages(ctx, l.key, func(page func(manifest.PageRef) *manifest.Page) error {
				e, err := change(fresh.head, page)
				if err == nil && e != nil {
					err = ErrFenced
				}
				return err
			})
			if again == nil {
				return nil
			}
			t.ev.Fenced()
			l.cancel() // this leadership is over; the broker will hear of it
			return fmt.Errorf("commit manifest of %s: %w", l.key, err)
		default:
			return fmt.Errorf("commit manifest of %s: %w", l.key, err)
		}
	}
}

// both returns a context that ends when either does.
func both(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

// send sends the same transaction until its outcome is known. A transaction
// without an answer may be applied later, after a read that lacks it; so nothing
// but its own success, or the head's revision or the epoch having moved, tells.
func (t *Tier) send(ctx context.Context, req CommitRequest) (int64, error) {
	backoff := t.o.MinBackoff
	for {
		c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
		rev, err := t.store.Commit(c, req)
		cancel()
		if err == nil || errors.Is(err, ErrConflict) || errors.Is(err, ErrFenced) {
			t.outcome(Commit, nil) // the store answers
			return rev, err
		}
		if ctx.Err() != nil {
			return rev, err
		}
		// Not applied, or not known to be: in both cases the same request is the
		// right one to send, for as long as we lead. While the metadata store is
		// away the objects that wait here are in the bucket already.
		t.outcome(Commit, err)
		if !sleep(ctx, jittered(backoff)) {
			return 0, err
		}
		backoff = min(2*backoff, t.o.MaxBackoff)
	}
}

func (t *Tier) pageOf(key partitionKey, ref manifest.PageRef, rev int64) condemned {
	return condemned{name: manifest.Name{Page: true, TopicID: key.topic, Partition: key.index, Base: ref.Rev, Epoch: ref.Epoch, Suffix: ref.Suffix}, rev: rev}
}

func (t *Tier) putPage(ctx context.Context, key partitionKey, w manifest.Write) error {
	var b body
	defer b.release()
	b.Write(w.Body)
	name := w.Ref.Key(key.topic, key.index)
	if err := t.put(ctx, name, &b, 0); err != nil {
		return err
	}
	t.meta.put(name, w.Page, pageCost(w.Page))
	return nil
}

// committed takes over a head that was just committed, reads it back, and hands
// over to the collector what it no longer names.
func (t *Tier) committed(ctx context.Context, l *leader, old *view, res *manifest.Result, rev int64, added int) {
	v := t.newView(l.key, res.Head, rev)
	l.unread.Store(true)
	t.adoptView(l, v)
	t.ev.Committed(added)
	t.retire(ctx, l, old, v, res.Gone)
	t.readBack(ctx, l)
}

// adoptView makes v the partition's view if it is newer.
func (t *Tier) adoptView(l *leader, v *view) {
	l.mu.Lock()
	if was := l.view.Load(); was != nil && was.rev > v.rev {
		l.mu.Unlock()
		return
	}
	l.view.Store(v)
	l.next.Store(v.head.NextBase())
	l.mu.Unlock()
	t.mu.Lock()
	t.seen[l.key] = max(t.seen[l.key], v.rev)
	t.mu.Unlock()
}

// newest is the leadership's view, unless a newer head has been seen published: that of a compaction worker, which has
// committed since. Then the head is read again, and if it is still older, the store has lost something.
func (t *Tier) newest(ctx context.Context, l *leader) (*view, error) {
	v := l.view.Load()
	t.mu.Lock()
	seen := t.seen[l.key]
	t.mu.Unlock()
	if v.rev >= seen {
		return v, nil
	}
	fresh, err := t.load(ctx, l.key)
	if err != nil {
		return nil, err
	}
	if fresh.rev < seen {
		return nil, fmt.Errorf("%w: revision %d, seen %d", ErrRegressed, fresh.rev, seen)
	}
	t.adoptView(l, fresh)
	return l.view.Load(), nil
}

// byView runs a read of what the leadership's view names. A compaction worker may have put others in the place of
// objects and pages, which the leader hears of with its next commit; so if something has vanished, the head is read again.
func (t *Tier) byView(ctx context.Context, l *leader, f func(*view) error) error {
	v := l.view.Load()
	err := f(v)
	if !vanished(err) {
		return err
	}
	fresh, lerr := t.load(ctx, l.key)
	if lerr != nil {
		return fmt.Errorf("%w (and the manifest cannot be read again: %w)", err, lerr)
	}
	if fresh.rev <= v.rev {
		return err
	}
	t.adoptView(l, fresh)
	return f(fresh)
}

// readBack loads the head after a commit and only then tells the replica, whose
// log may reclaim what the head covers: what is told was read from committed
// state (I2). If it cannot be loaded now the scheduler tries again.
func (t *Tier) readBack(ctx context.Context, l *leader) {
	have := l.view.Load() // before the read: a sweep may take over what a compaction worker commits meanwhile
	v, err := t.load(ctx, l.key)
	if err != nil {
		t.outcome(Commit, err)
		return
	}
	if v.rev < have.rev {
		t.outcome(Commit, fmt.Errorf("manifest of %s: %w: revision %d, committed %d", l.key, ErrRegressed, v.rev, have.rev))
		return
	}
	t.outcome(Commit, nil)
	t.tell(l, v)
}

// tell takes over a head that was loaded from the store, and tells the replica.
// The caller edits the head. A head that a later leader has committed tells
// nothing of this replica's log, which may have gone on in another way: taken for
// its own, it would be a high watermark over records that nobody else has.
func (t *Tier) tell(l *leader, v *view) {
	t.adoptView(l, v)
	l.unread.Store(false)
	if l.ctx.Err() == nil && v.head.Epoch <= l.epoch {
		l.r.Committed(v.state(l.epoch))
	}
}

// deleteDelay is the topic's file.delete.delay.ms.
func (l *leader) deleteDelay() time.Duration {
	return time.Duration(min(l.r.Policy().DeleteDelayMs, MaxDeleteDelay.Milliseconds())) * time.Millisecond
}

// retire hands what the new head does not name any more to the collector. If a
// page that is needed cannot be read, the sweep finds the objects later.
func (t *Tier) retire(ctx context.Context, l *leader, old, next *view, gone []manifest.PageRef) {
	for _, r := range gone {
		t.gc.condemn(t.pageOf(l.key, r, next.rev))
	}
	if next.head.LogStart == old.head.LogStart && next.head.RemoteStart() == old.head.RemoteStart() && !goneNewest(old.head, next.head) {
		return
	}
	objects, bytes := 0, int64(0)
	delay := l.deleteDelay()
	err := t.entries(ctx, l.key, old.head, func(e manifest.Entry) (bool, error) {
		if !next.head.Dead(e) {
			return false, nil
		}
		objects, bytes = objects+1, bytes+e.Bytes
		t.gc.condemn(condemned{name: e.Name(l.key.topic, l.key.index), rev: next.rev, delay: delay, bytes: e.Bytes})
		return true, nil
	})
	if err != nil {
		t.log.Warn("objects below the log start are left to the sweep", "partition", l.key.String(), "err", err)
	}
	if objects > 0 {
		t.ev.Retired(objects, bytes)
		t.log.Info("log start moved past objects", "topic", l.name, "partition", l.key.index, "log_start", next.head.LogStart,
			"objects", objects, "bytes", bytes)
	}
}

// goneNewest tells whether the entry that was kept for its footer alone has a
// successor.
func goneNewest(old, next *manifest.Head) bool {
	e, ok := old.Newest()
	return ok && e.Last < old.LogStart && next.Dead(e)
}

// entries calls f for each entry that is not dead, oldest first, and for the
// newest in any case, until f returns false.
func (t *Tier) entries(ctx context.Context, key partitionKey, h *manifest.Head, f func(manifest.Entry) (bool, error)) error {
	seen := false
	newest, any := h.Newest()
	for at := int64(0); ; {
		var e manifest.Entry
		var ok bool
		err := t.withPages(ctx, key, func(page func(manifest.PageRef) *manifest.Page) (err error) {
			e, ok, err = h.Find(at, page)
			return err
		})
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		seen = e.Suffix == newest.Suffix && e.Base == newest.Base
		more, err := f(e)
		if err != nil || !more {
			return err
		}
		at = e.Next()
	}
	if any && !seen {
		_, err := f(newest)
		return err
	}
	return nil
}

// pageCost is about what a decoded page takes in memory.
func pageCost(p *manifest.Page) int64 { return int64(200 + 120*(len(p.Entries)+len(p.Refs))) }

// Uploaded says whether a head names what was uploaded, and of which partition.
func Uploaded(ctx context.Context, m ManifestStore) (of string, uploaded bool, err error) {
	errFound := errors.New("found")
	err = m.Range(ctx, func(s StoredHead) error {
		h, err := manifest.DecodeHead(s.Head)
		if err != nil {
			return fmt.Errorf("manifest of %s at revision %d: %w", partitionKey{s.TopicID, s.Partition}, s.Rev, err)
		}
		if h.RemoteEnd() > 0 {
			of = partitionKey{s.TopicID, s.Partition}.String()
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return of, true, nil
	}
	return "", false, err
}
