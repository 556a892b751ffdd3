package tiering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
	"github.com/varve/varve/wal/slab"
)

// opened is a section ready to be read: its footer, cut into the cache's chunks.
type opened struct {
	key    string
	entry  manifest.Entry
	footer *Footer
	firsts []int // index of each chunk's first block
	object *cache.Object
}

// current returns the view of a partition: of one led here the head as last
// committed, else one that is at most ViewAge old, and fresh if asked for.
func (t *Tier) current(ctx context.Context, key partitionKey, fresh bool) (*view, error) {
	t.mu.Lock()
	l, v := t.led[key], t.views[key]
	t.mu.Unlock()
	if l != nil && !fresh {
		return l.view.Load(), nil
	}
	if l == nil && v != nil && !fresh && time.Since(v.loaded) < t.o.ViewAge {
		return v, nil
	}
	v, err := t.load(ctx, key)
	if err != nil {
		return nil, err
	}
	if l != nil {
		t.adoptView(l, v)
		return l.view.Load(), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.views[key]; have != nil && have.rev > v.rev {
		return have, nil
	}
	if len(t.views) >= maxViews {
		for k, old := range t.views { // any that is old; the map has no order to speak of
			if time.Since(old.loaded) >= t.o.ViewAge {
				delete(t.views, k)
			}
		}
		if len(t.views) >= maxViews {
			clear(t.views)
		}
	}
	t.views[key] = v
	return v, nil
}

const maxViews = 16 << 10

// open gets a section ready to be read.
func (t *Tier) open(ctx context.Context, key partitionKey, e manifest.Entry) (*opened, error) {
	name := e.Key(key.topic, key.index)
	id := fmt.Sprintf("%s@%d", name, e.FooterPos)
	v, err := t.meta.get(ctx, id, t.spawn, func() (any, int64, error) {
		f, err := t.footer(t.ctx, key, e, false)
		if err != nil {
			return nil, 0, err
		}
		o := &opened{key: name, entry: e, footer: f, firsts: chunksOf(f.Blocks, t.o.ChunkBytes)}
		o.object = &cache.Object{Key: id, Chunks: len(o.firsts), Len: o.chunkLen,
			Load: func(ctx context.Context, first int, dst [][]byte) (int, error) {
				return t.loadChunks(ctx, o, first, dst)
			},
			Next: func(ctx context.Context) (*cache.Object, error) {
				n, err := t.at(ctx, key, e.Next(), false)
				if err != nil || n == nil {
					return nil, err
				}
				return n.object, nil
			}}
		return o, int64(400 + 40*len(f.Blocks) + 8*len(o.firsts) + 32*(len(f.Aborted)+len(f.OpenEnd)+len(f.OpenStart))), nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*opened), nil
}

// chunksOf groups blocks into chunks of at most limit bytes, or one block.
func chunksOf(blocks []Block, limit int) (firsts []int) {
	size := 0
	for i, k := range blocks {
		if i == 0 || size+int(k.Len) > limit {
			firsts, size = append(firsts, i), 0
		}
		size += int(k.Len)
	}
	return firsts
}

// blocks of chunk i.
func (o *opened) blocks(i int) []Block {
	end := len(o.footer.Blocks)
	if i+1 < len(o.firsts) {
		end = o.firsts[i+1]
	}
	return o.footer.Blocks[o.firsts[i]:end]
}

func (o *opened) chunkLen(i int) int {
	b := o.blocks(i)
	last := b[len(b)-1]
	return int(last.Pos + int64(last.Len) - b[0].Pos)
}

// chunkAt is the chunk that holds offset.
func (o *opened) chunkAt(offset int64) int {
	return max(0, sort.Search(len(o.firsts), func(i int) bool { return o.footer.Blocks[o.firsts[i]].Base > offset })-1)
}

// loadChunks fills dst from one ranged read and checks every block, before
// anybody sees a byte. Damaged or missing bytes are asked for once more: a store
// or a proxy may have answered wrongly once.
func (t *Tier) loadChunks(ctx context.Context, o *opened, first int, dst [][]byte) (n int, err error) {
	for try := range 3 {
		if try > 0 && !sleep(ctx, jittered(50*time.Millisecond<<try)) {
			return n, ctx.Err()
		}
		var m int
		m, err = t.loadOnce(ctx, o, first+n, dst[n:])
		n += m
		if err == nil {
			t.outcome(Fetch, nil)
			return n, nil
		}
		if errors.Is(err, objstore.ErrNotExist) || ctx.Err() != nil {
			return n, err
		}
	}
	t.outcome(Fetch, err)
	return n, err
}

func (t *Tier) loadOnce(ctx context.Context, o *opened, first int, dst [][]byte) (int, error) {
	start := o.blocks(first)[0].Pos
	last := o.blocks(first + len(dst) - 1)
	end := last[len(last)-1].Pos + int64(last[len(last)-1].Len)
	if err := throttle(ctx, t.readRate, end-start); err != nil {
		return 0, err
	}
	// A request that hangs leaves time for another.
	ctx, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
	defer cancel()
	r, err := t.bucket.GetRange(ctx, o.key, start, end-start)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", o.key, err)
	}
	defer r.Close()
	for i := range dst {
		if err := readFull(r, dst[i]); err != nil {
			return i, fmt.Errorf("read %s: %w", o.key, err)
		}
		at := 0
		for _, k := range o.blocks(first + i) {
			if err := checkBlock(o.key, k, dst[i][at:at+int(k.Len)]); err != nil {
				t.ev.Corrupt(o.key, err)
				return i, err
			}
			at += int(k.Len)
		}
	}
	return len(dst), nil
}

// find returns the entry that holds offset or the first behind it, nil at the
// remote end.
func (t *Tier) find(ctx context.Context, key partitionKey, v *view, offset int64) (e *manifest.Entry, err error) {
	err = t.withPages(ctx, key, func(page func(manifest.PageRef) *manifest.Page) error {
		x, ok, err := v.head.Find(offset, page)
		if ok {
			e = &x
		}
		return err
	})
	return e, err
}

// at opens the section that holds offset, nil at the remote end.
func (t *Tier) at(ctx context.Context, key partitionKey, offset int64, fresh bool) (*opened, error) {
	v, err := t.current(ctx, key, fresh)
	if err != nil {
		return nil, err
	}
	e, err := t.find(ctx, key, v, offset)
	if err != nil || e == nil {
		return nil, err
	}
	return t.open(ctx, key, *e)
}

// vanished tells whether an object may have been replaced behind our back: then
// the manifest is read again, and the read made once more.
func vanished(err error) bool { return errors.Is(err, objstore.ErrNotExist) }

// twice runs a read on the view at hand and, if that turns out to be old, on a
// fresh one.
func (t *Tier) twice(ctx context.Context, key partitionKey, f func(v *view) error) error {
	v, err := t.current(ctx, key, false)
	if err != nil {
		return err
	}
	if err = f(v); vanished(err) || errors.Is(err, ErrOutOfRange) {
		fresh, ferr := t.current(ctx, key, true)
		if ferr != nil {
			return fmt.Errorf("%w (and the manifest cannot be read again: %w)", err, ferr)
		}
		if fresh.rev == v.rev && !vanished(err) {
			return err
		}
		err = f(fresh)
	}
	return err
}

// mergeEntries is how many sections one Read may take its batches from.
const mergeEntries = 16

// aheadEntries is how many sections behind those of a Read are opened for a reader
// that goes on: where little is written, each flush makes a small one, and a
// coordinator that loads its state reads them all.
const aheadEntries = 4 * mergeEntries

// openAhead has the sections from an offset on opened, and their first chunks
// fetched as far as there is room. What is at hand costs a look.
func (t *Tier) openAhead(key partitionKey, v *view, at int64) {
	t.spawn(func() {
		for range aheadEntries {
			e, err := t.find(t.ctx, key, v, at)
			if err != nil || e == nil {
				return
			}
			at = e.Next()
			t.spawn(func() {
				if o, err := t.open(t.ctx, key, *e); err == nil {
					t.chunks.Prefetch(o.object, 0, 1)
				}
			})
		}
	})
}

// Read returns record batches from the one that holds offset, whole batches up
// to about maxBytes but at least one, from [RemoteStart, RemoteEnd) of the
// partition. They may come from several objects. Any committed object can be
// read, whoever leads. ErrOutOfRange outside.
func (t *Tier) Read(ctx context.Context, topicID [16]byte, partition int32, offset int64, maxBytes int) (Run, error) {
	key := partitionKey{topicID, partition}
	var out Run
	err := t.twice(ctx, key, func(v *view) (err error) {
		out, err = t.readFrom(ctx, key, v, offset, maxBytes)
		return err
	})
	if err != nil {
		return Run{}, fmt.Errorf("read %s at %d: %w", key, offset, err)
	}
	t.ev.ReadCold(out.bytes())
	return out, nil
}

func (t *Tier) readFrom(ctx context.Context, key partitionKey, v *view, offset int64, maxBytes int) (Run, error) {
	if offset < v.head.RemoteStart() || offset >= v.head.RemoteEnd() {
		return Run{}, fmt.Errorf("%w: [%d, %d)", ErrOutOfRange, v.head.RemoteStart(), v.head.RemoteEnd())
	}
	// Sections are opened side by side: behind small ones there is another
	// footer to wait for.
	var list []manifest.Entry
	sum := int64(0)
	for at := offset; len(list) < mergeEntries && (len(list) == 0 || sum < int64(maxBytes)); {
		e, err := t.find(ctx, key, v, at)
		if err != nil {
			return Run{}, err
		}
		if e == nil {
			break
		}
		list, at = append(list, *e), e.Next()
		if len(list) > 1 || e.Bytes < int64(maxBytes) {
			sum += e.Bytes
		}
		if e.Bytes >= int64(maxBytes) {
			break
		}
	}
	sections := make([]*opened, len(list))
	errs := make([]error, len(list))
	var g errgroup.Group
	for i, e := range list {
		g.Go(func() error {
			sections[i], errs[i] = t.open(ctx, key, e)
			if errs[i] == nil && i > 0 {
				t.chunks.Prefetch(sections[i].object, 0, 1)
			}
			return nil
		})
	}
	st := t.streams.get(key, offset, t.chunks)
	if st.next > 0 && len(list) == mergeEntries {
		t.openAhead(key, v, list[len(list)-1].Next())
	}
	g.Wait()
	if errs[0] != nil {
		return Run{}, errs[0]
	}
	var held []*slab.Buf
	release := func() {
		for _, b := range held {
			b.Release()
		}
		held = nil
	}
	run := Run{Base: -1, Next: offset}
	bytes := 0
	full := false
sections:
	for i, o := range sections {
		if errs[i] != nil {
			break // what came before it can be served; the next read meets the error
		}
		c := 0
		if i == 0 {
			c = o.chunkAt(offset)
		}
		for ; c < len(o.firsts); c++ {
			buf, err := st.stream.Get(ctx, o.object, c)
			if err != nil {
				if len(run.Chunks) > 0 {
					break sections
				}
				release()
				return Run{}, err
			}
			part := buf.Bytes()
			from, to := -1, 0
			err = batch.Walk(part, func(h batch.Header, raw []byte) error {
				if h.BaseOffset < o.entry.Base || h.LastOffset() > o.entry.Last {
					return fmt.Errorf("%w: batch %d-%d", ErrCorrupt, h.BaseOffset, h.LastOffset())
				}
				if full || h.LastOffset() < offset {
					to += len(raw)
					return nil
				}
				if bytes > 0 && bytes+len(raw) > maxBytes {
					full = true
					return nil
				}
				if from < 0 {
					from = to
				}
				if run.Base < 0 {
					run.Base = h.BaseOffset
				}
				to += len(raw)
				bytes += len(raw)
				run.Next = h.NextOffset()
				return nil
			})
			if err != nil {
				buf.Release()
				t.ev.Corrupt(o.key, err)
				if len(run.Chunks) > 0 {
					break sections
				}
				release()
				return Run{}, fmt.Errorf("chunk %d of %s: %w: %w", c, o.key, ErrCorrupt, err)
			}
			if from < 0 {
				buf.Release()
			} else {
				end := from
				batch.Walk(part[from:], func(h batch.Header, raw []byte) error {
					if h.LastOffset() < run.Next {
						end += len(raw)
					}
					return nil
				})
				held = append(held, buf)
				run.Held += int64(buf.Charge())
				run.Chunks = append(run.Chunks, part[from:end:end])
			}
			if full || bytes >= maxBytes {
				break sections
			}
		}
	}
	if len(run.Chunks) == 0 {
		release()
		return Run{}, fmt.Errorf("%w: nothing from %d on", ErrOutOfRange, offset)
	}
	st.next = run.Next
	t.streams.put(key, st)
	run.Release = release
	return run, nil
}

// FindTimestamp returns the first batch that has a record, at or behind the log
// start, whose time is ts or later. found is false if the remote part has none.
func (t *Tier) FindTimestamp(ctx context.Context, topicID [16]byte, partition int32, ts int64) (out Run, found bool, err error) {
	key := partitionKey{topicID, partition}
	err = t.twice(ctx, key, func(v *view) (err error) {
		out, found, err = t.findTimestamp(ctx, key, v, ts)
		return err
	})
	if err != nil {
		return Run{}, false, fmt.Errorf("find time %d in %s: %w", ts, key, err)
	}
	return out, found, nil
}

// maxInflated bounds what one batch may inflate to while its timestamps are
// looked at; no more than a window of it is in memory at one time.
const maxInflated = 1 << 30

func (t *Tier) findTimestamp(ctx context.Context, key partitionKey, v *view, ts int64) (Run, bool, error) {
	for from := v.head.RemoteStart(); ; {
		var e manifest.Entry
		var ok bool
		err := t.withPages(ctx, key, func(page func(manifest.PageRef) *manifest.Page) (err error) {
			e, ok, err = v.head.FindTimestamp(ts, from, page)
			var need *manifest.NeedPage
			if errors.As(err, &need) {
				from = max(from, need.Ref.Base) // nothing before that page
			}
			return err
		})
		if err != nil || !ok || from >= v.head.RemoteEnd() {
			return Run{Release: func() {}}, false, err
		}
		o, err := t.open(ctx, key, e)
		if err != nil {
			return Run{}, false, err
		}
		for c := o.chunkAt(v.head.LogStart); c < len(o.firsts); c++ {
			if !slices.ContainsFunc(o.blocks(c), func(k Block) bool { return k.MaxTimestamp >= ts }) {
				continue
			}
			buf, err := t.chunks.Get(ctx, o.object, c)
			if err != nil {
				return Run{}, false, err
			}
			run, found, err := t.firstSince(ctx, buf.Bytes(), ts, v.head.LogStart)
			if found {
				run.Release = buf.Release
				return run, true, nil
			}
			buf.Release()
			if err != nil && (ctx.Err() != nil || errors.Is(err, batch.ErrInflated)) {
				return Run{}, false, fmt.Errorf("chunk %d of %s: %w", c, o.key, err)
			}
			if err != nil {
				return Run{}, false, fmt.Errorf("chunk %d of %s: %w: %w", c, o.key, ErrCorrupt, err)
			}
		}
		from = e.Next() // a header may promise a time that no record has
	}
}

// inflate runs f, which goes over the records of a batch for their timestamps, with what it may inflate to at most, in bytes.
func (t *Tier) inflate(ctx context.Context, raw []byte, f func(limit int) error) error {
	limit := int64(maxInflated)
	if n := min(batch.Whole(raw), t.o.UploadBytes/2); n > 0 {
		if err := t.opening.Acquire(ctx, n); err != nil {
			return err
		}
		defer t.opening.Release(n)
		limit = min(limit, n)
	}
	return f(int(limit))
}

// hasSince tells whether a batch has a record at or behind start of time ts or later.
func (t *Tier) hasSince(ctx context.Context, raw []byte, ts, start int64) (ok bool, err error) {
	err = t.inflate(ctx, raw, func(limit int) (err error) {
		_, _, ok, err = batch.FirstAtOrAfter(raw, ts, start, math.MaxInt64, limit)
		return err
	})
	return ok, err
}

// firstSince returns the first batch of a chunk with a record at or behind start
// of time ts or later.
func (t *Tier) firstSince(ctx context.Context, part []byte, ts, start int64) (run Run, found bool, err error) {
	errFound := errors.New("found")
	err = batch.Walk(part, func(h batch.Header, raw []byte) error {
		if h.MaxTimestamp < ts || h.LastOffset() < start || h.Control() {
			return nil
		}
		switch ok, err := t.hasSince(ctx, raw, ts, start); {
		case err != nil && (ctx.Err() != nil || errors.Is(err, batch.ErrInflated)):
			return err
		case !ok:
			return nil // nor is a batch that no consumer can read an answer
		}
		run = Run{Chunks: [][]byte{raw}, Base: h.BaseOffset, Next: h.NextOffset()}
		return errFound
	})
	if errors.Is(err, errFound) {
		return run, true, nil
	}
	return Run{}, false, err
}

// Aborted lists the aborted transactions with records in [from, to) whose marker
// is in the remote part, ascending by first offset. A transaction that is open at
// the end of what is read may end in a later object; so later footers are looked
// at until those that were open have ended. The remote part is known to reach
// known at least: on a broker that does not lead, the manifest at hand may be
// older, and lack the object with the marker.
func (t *Tier) Aborted(ctx context.Context, topicID [16]byte, partition int32, from, to, known int64) (out []producer.Aborted, err error) {
	key := partitionKey{topicID, partition}
	err = t.twice(ctx, key, func(v *view) error {
		out, err = t.abortedIn(ctx, key, v, from, to, known)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("aborted transactions of %s in [%d, %d): %w", key, from, to, err)
	}
	return out, nil
}

// Committed is what ReadCommitted returns.
type Committed struct {
	Run
	Aborted []producer.Aborted // whose marker is below End, ascending by first offset
	End     int64              // of the remote part
}

// ReadCommitted is Read and Aborted, below stable, of one and the same manifest. That matters where compaction puts
// others in the place of objects: one takes away an aborted transaction's records, a later one its marker and what lists
// it, and records of the one with the list of the other would be shown as committed, or hide what comes after.
func (t *Tier) ReadCommitted(ctx context.Context, topicID [16]byte, partition int32, offset int64, maxBytes int, stable, known int64) (out Committed, err error) {
	key := partitionKey{topicID, partition}
	err = t.twice(ctx, key, func(v *view) error {
		out.Run, err = t.readFrom(ctx, key, v, offset, maxBytes)
		if err != nil {
			return err
		}
		out.End = v.head.RemoteEnd()
		if out.Aborted, err = t.abortedIn(ctx, key, v, offset, min(out.Next, stable), known); err != nil {
			out.Release()
		}
		return err
	})
	if err != nil {
		return Committed{}, fmt.Errorf("read %s at %d: %w", key, offset, err)
	}
	t.ev.ReadCold(out.bytes())
	return out, nil
}

func (t *Tier) abortedIn(ctx context.Context, key partitionKey, v *view, from, to, known int64) (out []producer.Aborted, err error) {
	open := make(map[int64]int64) // producer id -> first offset, below to
	for at := from; ; {
		e, err := t.find(ctx, key, v, at)
		if err != nil {
			return nil, err
		}
		if e == nil {
			if end := v.head.RemoteEnd(); len(open) > 0 && end < known {
				return nil, fmt.Errorf("%w: the manifest ends at %d, before %d", ErrOutOfRange, end, known)
			}
			break
		}
		if e.Base >= to && len(open) == 0 {
			break
		}
		o, err := t.open(ctx, key, *e)
		if err != nil {
			return nil, err
		}
		for _, a := range o.footer.Aborted {
			if a.FirstOffset < to && a.LastOffset >= from {
				out = append(out, a)
			}
		}
		clear(open)
		for _, x := range o.footer.OpenEnd {
			if x.FirstOffset < to {
				open[x.ProducerID] = x.FirstOffset
			}
		}
		at = e.Next()
	}
	slices.SortStableFunc(out, func(a, b producer.Aborted) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	return out, nil
}

// Tail returns the lineage and the producer snapshot at the remote end: where a
// replica that is new or lost its log begins. All zero if nothing was uploaded.
func (t *Tier) Tail(ctx context.Context, topicID [16]byte, partition int32) (lin lineage.Lineage, snapshot []byte, remoteEnd int64, err error) {
	key := partitionKey{topicID, partition}
	err = t.twice(ctx, key, func(v *view) error {
		e, ok := v.head.Newest()
		if !ok {
			return nil
		}
		f, err := t.footer(ctx, key, e, true)
		if err != nil {
			return err
		}
		lin, snapshot, remoteEnd = f.Lineage, f.Producers, e.Next()
		return nil
	})
	if err != nil {
		return nil, nil, 0, fmt.Errorf("tail of %s: %w", key, err)
	}
	return lin, snapshot, remoteEnd, nil
}
