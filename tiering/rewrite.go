package tiering

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
	"github.com/varve/varve/wal/slab"
)

// What a compaction worker does with a partition that it has claimed:
//
//	Remote      which entries there are                                  nothing
//	ReadEntries their batches                                            nothing
//	Rewrite     PUT under a name never used before, verify               an orphan
//	Replace     a head that names the new instead of the old: the        a head that nobody read back
//	            commit point, with the claim compared
//	retire      publication, grace, head read again, DELETE              objects nobody names
//
// An orphan is dead as soon as its claim is: nobody else can commit it.

// Remote is the remote part of a partition as one committed head has it.
type Remote struct {
	TopicID   [16]byte
	Partition int32
	Rev       int64 // 0: there is no head
	Head      *manifest.Head
	Entries   []RemoteEntry // oldest first; dead ones are left out, but not the newest
}

// RemoteEntry is an entry and the list that it stands in: a replaced run stands in one.
type RemoteEntry struct {
	manifest.Entry
	Page int
}

func (r *Remote) key() partitionKey { return partitionKey{r.TopicID, r.Partition} }

// Remote reads a partition's head, and the pages that it names.
func (t *Tier) Remote(ctx context.Context, topicID [16]byte, partition int32) (*Remote, error) {
	v, err := t.load(ctx, partitionKey{topicID, partition})
	if err != nil {
		return nil, err
	}
	return t.remote(ctx, partitionKey{topicID, partition}, v.head, v.rev)
}

// RemoteOf is Remote for a head that was read before.
func (t *Tier) RemoteOf(ctx context.Context, s StoredHead) (*Remote, error) {
	key := partitionKey{s.TopicID, s.Partition}
	h, err := manifest.DecodeHead(s.Head)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s at revision %d: %w", key, s.Rev, err)
	}
	return t.remote(ctx, key, h, s.Rev)
}

func (t *Tier) remote(ctx context.Context, key partitionKey, h *manifest.Head, rev int64) (*Remote, error) {
	r := &Remote{TopicID: key.topic, Partition: key.index, Rev: rev, Head: h}
	refs := h.Pages
	if h.Index != nil {
		p, err := t.page(ctx, key, *h.Index)
		if err != nil {
			return nil, fmt.Errorf("manifest of %s: %w", key, err)
		}
		refs = slices.Concat(p.Refs, refs)
	}
	take := func(list []manifest.Entry, page int) {
		for _, e := range list {
			if !h.Dead(e) {
				r.Entries = append(r.Entries, RemoteEntry{e, page})
			}
		}
	}
	for i, ref := range refs {
		if ref.Last < h.LogStart {
			continue
		}
		p, err := t.page(ctx, key, ref)
		if err != nil {
			return nil, fmt.Errorf("manifest of %s: %w", key, err)
		}
		take(p.Entries, i)
	}
	take(h.Tail, len(refs))
	return r, nil
}

// EntryFooter is the footer of an entry. Without lineage and producers, unless the whole of it is asked for, it is kept
// in memory and shared: nobody may change it.
func (t *Tier) EntryFooter(ctx context.Context, topicID [16]byte, partition int32, e manifest.Entry, whole bool) (*Footer, error) {
	key := partitionKey{topicID, partition}
	if whole {
		return t.footer(ctx, key, e, true)
	}
	o, err := t.open(ctx, key, e)
	if err != nil {
		return nil, err
	}
	return o.footer, nil
}

// AbortedIn lists the aborted transactions with an offset in [from, to), by the footers that r names, wherever their
// markers are.
func (t *Tier) AbortedIn(ctx context.Context, r *Remote, from, to int64) ([]producer.Aborted, error) {
	return t.abortedIn(ctx, r.key(), t.newView(r.key(), r.Head, r.Rev), from, to, 0)
}

const (
	rewriteRead   = 4 << 20 // bytes of one ranged read
	rewriteBytes  = 12 << 20
	rewritePieces = 16 // reads that are under way or waiting to be looked at, of rewriteBytes together
)

// EntryBlocks is an entry and what its footer says of where its batches are.
type EntryBlocks struct {
	manifest.Entry
	Blocks []Block
}

// ReadEntries calls f for each batch of the entries in the order of their offsets, from the block that holds offset from
// on, until f returns an error. Every block is checked before f sees a byte of it. Several ranges are asked for at once.
// rate, if not nil, is asked for leave to read so many bytes.
func (t *Tier) ReadEntries(ctx context.Context, topicID [16]byte, partition int32, entries []EntryBlocks, from int64,
	rate func(context.Context, int64) error, f func(batch.Header, []byte) error) error {
	type piece struct {
		entry  manifest.Entry
		key    string
		blocks []Block
		size   int
		buf    *slab.Buf
		err    error
	}
	room := semaphore.NewWeighted(rewriteBytes)
	need := func(p *piece) int64 { return min(int64(p.size), rewriteBytes) }
	reads := make(chan chan *piece, rewritePieces)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(reads)
		for _, e := range entries {
			blocks, key := e.Blocks, e.Key(topicID, partition)
			for len(blocks) > 1 && blocks[1].Base <= from {
				blocks = blocks[1:]
			}
			for len(blocks) > 0 {
				p := &piece{entry: e.Entry, key: key}
				n := 0
				for n < len(blocks) && (n == 0 || p.size+int(blocks[n].Len) <= rewriteRead) {
					p.size += int(blocks[n].Len)
					n++
				}
				p.blocks, blocks = blocks[:n], blocks[n:]
				if rate != nil {
					if err := rate(ctx, int64(p.size)); err != nil {
						return err
					}
				}
				if err := room.Acquire(ctx, need(p)); err != nil {
					return err
				}
				c := make(chan *piece, 1)
				select {
				case reads <- c:
				case <-ctx.Done():
					return ctx.Err()
				}
				g.Go(func() error {
					p.buf = slab.Get(p.size)
					p.err = t.readBlocks(ctx, p.key, p.blocks, p.buf.Bytes()[:p.size])
					c <- p
					return nil
				})
			}
		}
		return nil
	})
	g.Go(func() error {
		next := int64(0)
		for c := range reads {
			p := <-c
			err := p.err
			if next = max(next, p.entry.Base); err == nil {
				err = batch.Walk(p.buf.Bytes()[:p.size], func(h batch.Header, raw []byte) error {
					if h.BaseOffset < next || h.LastOffset() > p.entry.Last {
						return fmt.Errorf("%w: batch %d-%d in %d-%d of %s", ErrCorrupt, h.BaseOffset, h.LastOffset(), next, p.entry.Last, p.key)
					}
					next = h.NextOffset()
					return f(h, raw)
				})
			}
			p.buf.Release()
			room.Release(need(p))
			if err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	err := g.Wait()
	for c := range reads { // what f did not want to see
		p := <-c
		p.buf.Release()
	}
	return err
}

// readBlocks fills dst with neighbouring blocks and checks each; what was damaged on its way, or is refused for the
// moment, is asked for again.
func (t *Tier) readBlocks(ctx context.Context, key string, blocks []Block, dst []byte) (err error) {
	for try := range 4 {
		if try > 0 && !sleep(ctx, jittered(100*time.Millisecond<<try)) {
			return ctx.Err()
		}
		err = func() error {
			c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
			defer cancel()
			r, err := t.bucket.GetRange(c, key, blocks[0].Pos, int64(len(dst)))
			if err != nil {
				return fmt.Errorf("read %s: %w", key, err)
			}
			defer r.Close()
			if err := readFull(r, dst); err != nil {
				return fmt.Errorf("read %s: %w", key, err)
			}
			at := 0
			for _, k := range blocks {
				if err := checkBlock(key, k, dst[at:at+int(k.Len)]); err != nil {
					t.ev.Corrupt(key, err)
					return err
				}
				at += int(k.Len)
			}
			return nil
		}()
		if err == nil || errors.Is(err, objstore.ErrNotExist) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// Rewrite is an object in the making that is to take the place of a run of entries.
type Rewrite struct {
	t           *Tier
	b           *builder
	s           *sectionBuilder
	first, last *Footer
	epoch       int32
}

// NewRewrite begins an object in the place of the run from first to last, whose footers are given; last has lineage and
// producer state. Close it.
func (t *Tier) NewRewrite(first, last *Footer, epoch int32) (*Rewrite, error) {
	s, err := newSpool(t.o.SpoolDir)
	if err != nil {
		return nil, err
	}
	b := &builder{block: t.o.BlockBytes}
	b.body.spool = s
	b.body.Write([]byte(objectMagic))
	w := &Rewrite{t: t, b: b, first: first, last: last, epoch: epoch}
	w.s = &sectionBuilder{b: b, next: first.Base, f: Footer{TopicID: first.TopicID, Partition: first.Partition, Base: first.Base, Epoch: epoch,
		Created: last.Created, Prev: first.Prev, MinTimestamp: -1, MaxTimestamp: -1, OpenStart: first.OpenStart, OpenEnd: last.OpenEnd,
		Lineage: last.Lineage, Producers: last.Producers}}
	b.sections = []*sectionBuilder{w.s}
	return w, nil
}

// Add appends a batch.
func (w *Rewrite) Add(h batch.Header, raw []byte) error {
	if h.BaseOffset < w.s.next || h.LastOffset() > w.last.Last {
		return fmt.Errorf("%w: batch %d-%d where %d-%d is left", ErrCorrupt, h.BaseOffset, h.LastOffset(), w.s.next, w.last.Last)
	}
	return w.s.take(h, raw)
}

// Size is how many bytes of batches have been added.
func (w *Rewrite) Size() int64 { return w.s.f.Bytes }

// MinTimestamp is the smallest timestamp of what has been added, -1 if nothing has one.
func (w *Rewrite) MinTimestamp() int64 { return w.s.f.MinTimestamp }

// Upload finishes the object and puts it into the bucket under a name that begins with the claim's tag. aborted are the
// transactions whose abort marker is in it; horizon and bytes tell what goes once the delete horizon has passed. Until
// Replace has named it, it is an orphan.
func (w *Rewrite) Upload(ctx context.Context, c Claim, aborted []producer.Aborted, horizon, bytes int64) (manifest.Entry, error) {
	t, f := w.t, &w.s.f
	if w.s.next != w.last.Last+1 {
		return manifest.Entry{}, fmt.Errorf("%w: rewritten %d-%d ends at %d", ErrCorrupt, f.Base, w.last.Last, w.s.next)
	}
	w.s.cut()
	f.Last, f.Aborted, f.Horizon, f.HorizonBytes = w.last.Last, aborted, horizon, bytes
	verify := w.b.body.size
	if err := w.b.finish(); err != nil {
		return manifest.Entry{}, err
	}
	var err error
	for try := range uploadTries {
		if try > 0 && !sleep(ctx, jittered(t.o.MinBackoff<<try)) {
			break
		}
		suffix := newSuffix()
		copy(suffix[:], c.Tag[:])
		e := w.s.entry(manifest.Rewritten, suffix)
		name := e.Name(f.TopicID, f.Partition)
		if err = t.put(ctx, name.Key(), &w.b.body, verify); err == nil {
			return e, nil
		}
		t.gc.condemn(condemned{name: name, never: true})
		if !objstore.Retriable(err) && !errors.Is(err, ErrCorrupt) {
			break
		}
	}
	return manifest.Entry{}, err
}

// Close gives the memory and the disk space back.
func (w *Rewrite) Close() { w.b.body.release() }

// Discard proposes an uploaded object as garbage: it will not be committed.
func (t *Tier) Discard(topicID [16]byte, partition int32, e manifest.Entry) {
	t.gc.condemn(condemned{name: e.Name(topicID, partition), bytes: e.Bytes})
}

// Replacement is what a worker commits: New in the place of Old, both over the same offsets, and how far compaction has
// come then. Old and New may be empty, Compaction nil.
type Replacement struct {
	Old, New   []manifest.Entry
	Compaction *manifest.Compaction
	Delay      time.Duration // file.delete.delay.ms: what is replaced stays at least so long
	Topic      string        // for the published state
}

// Replace commits r under the claim, on whatever the head is now: the leader's commits and this one commute. It returns
// nil once a committed head has it. With ErrFenced the claim is gone, with manifest.ErrReplaced the old run is not there
// any more: then nothing was changed and the new objects are garbage, unless the error is ErrAmbiguous as well.
func (t *Tier) Replace(ctx context.Context, topicID [16]byte, partition int32, c Claim, r Replacement) (err error) {
	key := partitionKey{topicID, partition}
	if err := t.adopt(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("replace entries of %s: %w", key, err)
		}
	}()
	backoff := t.o.MinBackoff
	for {
		v, err := t.load(ctx, key)
		if err != nil {
			return err
		}
		t.mu.Lock()
		seen := t.seen[key]
		t.mu.Unlock()
		if v.rev < seen {
			return fmt.Errorf("%w: revision %d, seen %d", ErrRegressed, v.rev, seen)
		}
		if v.rev == 0 {
			return fmt.Errorf("%w: there is no head any more", manifest.ErrReplaced)
		}
		res, err := t.replacement(ctx, key, v, r)
		if err != nil {
			return err
		}
		if res == nil {
			t.replaced(key, v, nil, r) // by an attempt whose answer was lost
			return nil
		}
		undo := func(n int) {
			for _, w := range res.Writes[:n] {
				t.gc.condemn(t.pageOf(key, w.Ref, 0))
			}
		}
		for i, w := range res.Writes {
			if err := t.putPage(ctx, key, w); err != nil {
				undo(i + 1)
				return err
			}
		}
		rev, err := t.send(ctx, CommitRequest{TopicID: topicID, Partition: partition, Rev: v.rev, Claim: &c, Head: res.Head.Encode()})
		if err == nil {
			t.replaced(key, t.newView(key, res.Head, rev), res, r)
			return nil
		}
		undo(len(res.Writes))
		switch {
		case errors.Is(err, ErrConflict):
			t.ev.Conflict()
			if !sleep(ctx, jittered(backoff)/8) {
				return ctx.Err()
			}
			backoff = min(2*backoff, t.o.MaxBackoff)
		case errors.Is(err, ErrFenced):
			// An earlier attempt may have been applied while the claim stood.
			fresh, lerr := t.load(ctx, key)
			if lerr != nil {
				return fmt.Errorf("%w: %w (and the head cannot be read: %w)", ErrAmbiguous, err, lerr)
			}
			if again, lerr := t.replacement(ctx, key, fresh, r); lerr == nil && again == nil {
				t.replaced(key, fresh, nil, r)
				return nil
			}
			t.ev.Fenced()
			return err
		default:
			return fmt.Errorf("%w: %w", ErrAmbiguous, err)
		}
	}
}

// replacement makes the edit on one head; nil if the head has it already.
func (t *Tier) replacement(ctx context.Context, key partitionKey, v *view, r Replacement) (res *manifest.Result, err error) {
	err = t.withPages(ctx, key, func(page func(manifest.PageRef) *manifest.Page) error {
		res = nil
		e := manifest.Edit{Epoch: v.head.Epoch, Compaction: r.Compaction}
		if len(r.New) > 0 {
			have, ok, err := v.head.Find(r.New[0].Base, page)
			if err != nil {
				return err
			}
			if !ok || have != r.New[0] {
				e.Replace = &manifest.Replace{Old: r.Old, New: r.New}
			}
		}
		if e.Replace == nil && (r.Compaction == nil || v.head.Compaction == *r.Compaction || v.head.Compaction.CleanEnd > r.Compaction.CleanEnd) {
			return nil
		}
		var err error
		res, err = v.head.Apply(e, manifest.Input{HighWatermark: math.MaxInt64, Rev: v.rev, NewSuffix: newSuffix, Page: page, Limits: t.limits})
		return err
	})
	return res, err
}

// replaced hands what the new head does not name any more over to the collector, and the head to the publisher.
func (t *Tier) replaced(key partitionKey, v *view, res *manifest.Result, r Replacement) {
	t.mu.Lock()
	t.seen[key] = max(t.seen[key], v.rev)
	t.mu.Unlock()
	t.pub.mu.Lock()
	if was, ok := t.pub.own[key]; !ok || was.Rev < v.rev {
		t.pub.own[key] = PublishedHead{StoredHead{key.topic, key.index, v.head.Encode(), v.rev}, r.Topic}
	}
	t.pub.mu.Unlock()
	if res != nil {
		for _, p := range res.Gone {
			t.gc.condemn(t.pageOf(key, p, v.rev))
		}
	}
	bytes := int64(0)
	for _, e := range r.Old {
		t.gc.condemn(condemned{name: e.Name(key.topic, key.index), rev: v.rev, delay: r.Delay, bytes: e.Bytes})
		bytes += e.Bytes
	}
	t.ev.Committed(len(r.New))
	t.ev.Retired(len(r.Old), bytes)
}
