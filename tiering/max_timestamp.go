package tiering

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/wal/batch"
)

// MaxTimestamp returns the first record that has the largest timestamp, in ms, of those in the offsets [from, to) of
// the remote part, at or behind its log start. ok is false if that is below floor ms, or if no record has a timestamp.
// The marker of a transaction counts as a record, as in Kafka (KIP-734).
//
// An index page, a page, an entry and a block each say how late anything below it may be, and may say too much: what
// is latest in it lies below the log start or outside [from, to), or compaction took the record and left its time in
// the header of an empty batch. So they are opened in the order of what they promise, until none promises more than
// has been found. Each of the two ends of the range costs at most one page of each kind, one footer and one chunk more
// than the answer itself does, however long the manifest is; so does each entry of which compaction took the latest
// record.
func (t *Tier) MaxTimestamp(ctx context.Context, topicID [16]byte, partition int32, from, to, floor int64) (offset, timestamp int64, ok bool, err error) {
	key := partitionKey{topicID, partition}
	var best timed
	err = t.twice(ctx, key, func(v *view) (err error) {
		best, err = t.latest(ctx, key, v, from, to, floor)
		return err
	})
	if err != nil {
		return 0, 0, false, fmt.Errorf("find the largest timestamp in [%d, %d) of %s: %w", from, to, key, err)
	}
	return best.offset, best.ts, best.offset >= 0, nil
}

// timed is a record, or the best that one could be.
type timed struct{ ts, offset int64 } // ms; -1: no record

// beats tells whether x is later than y, or as late and before it in the log.
func (x timed) beats(y timed) bool { return x.ts > y.ts || x.ts == y.ts && x.offset < y.offset }

// promise is a part of the remote part that was not opened yet, with a bound that no record in it beats. One of page,
// entry and section is set.
type promise struct {
	timed
	page    *manifest.PageRef
	entry   *manifest.Entry
	section *opened
	chunk   int // of section
}

// promises is a heap, the best of them first.
type promises []promise

func (p promises) Len() int           { return len(p) }
func (p promises) Less(i, j int) bool { return p[i].beats(p[j].timed) }
func (p promises) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *promises) Push(x any)        { *p = append(*p, x.(promise)) }
func (p *promises) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	*p = (*p)[:last]
	return x
}

// latest is MaxTimestamp in one view; the offset is -1 if there is nothing.
func (t *Tier) latest(ctx context.Context, key partitionKey, v *view, from, to, floor int64) (timed, error) {
	from = max(from, v.head.LogStart)
	best := timed{max(floor, 0) - 1, -1}
	var open promises
	// add adds a part that covers the offsets from base to last, unless it is out of question.
	add := func(ts, base, last int64, p promise) {
		p.timed = timed{ts, max(base, from)}
		if last >= from && base < to && p.beats(best) {
			heap.Push(&open, p)
		}
	}
	pages := func(refs []manifest.PageRef) {
		for i := range refs {
			r := &refs[i]
			add(r.MaxTimestamp, r.Base, r.Last, promise{page: r})
		}
	}
	entries := func(list []manifest.Entry) {
		for i := range list {
			e := &list[i]
			add(e.MaxTimestamp, e.Base, e.Last, promise{entry: e})
		}
	}
	pages(v.head.Named())
	entries(v.head.Tail)
	for len(open) > 0 {
		p := heap.Pop(&open).(promise)
		if !p.beats(best) {
			break // nor does what is left
		}
		if err := ctx.Err(); err != nil {
			return timed{}, err
		}
		switch {
		case p.page != nil:
			page, err := t.page(ctx, key, *p.page)
			if err != nil {
				return timed{}, err
			}
			pages(page.Refs)
			entries(page.Entries)
		case p.entry != nil:
			o, err := t.open(ctx, key, *p.entry)
			if err != nil {
				return timed{}, err
			}
			for c := range o.firsts {
				ts, base, last := o.sum(c)
				add(ts, base, last, promise{section: o, chunk: c})
			}
		default:
			buf, err := t.chunks.Get(ctx, p.section.object, p.chunk)
			if err != nil {
				return timed{}, err
			}
			best, err = t.latestOf(ctx, buf.Bytes(), from, to, best)
			buf.Release()
			if err != nil && (ctx.Err() != nil || errors.Is(err, batch.ErrInflated)) {
				return timed{}, fmt.Errorf("chunk %d of %s: %w", p.chunk, p.section.key, err)
			}
			if err != nil {
				return timed{}, fmt.Errorf("chunk %d of %s: %w: %w", p.chunk, p.section.key, ErrCorrupt, err)
			}
		}
	}
	return best, nil
}

// sum is the largest timestamp of the blocks of chunk i, in ms, -1 if there is none, and the offsets from base to last
// that they cover.
func (o *opened) sum(i int) (ts, base, last int64) {
	ts, base, last = -1, o.blocks(i)[0].Base, o.entry.Last
	for _, k := range o.blocks(i) {
		ts = max(ts, k.MaxTimestamp)
	}
	if i+1 < len(o.firsts) {
		last = o.blocks(i + 1)[0].Base - 1
	}
	return ts, base, last
}

// latestOf returns the best of best and the records of a chunk in the offsets [from, to). Of batches that nobody can
// read there is no record.
func (t *Tier) latestOf(ctx context.Context, part []byte, from, to int64, best timed) (timed, error) {
	type one struct {
		timed
		raw []byte
	}
	var list []one
	err := batch.Walk(part, func(h batch.Header, raw []byte) error {
		x := one{timed{h.MaxTimestamp, max(h.BaseOffset, from)}, raw}
		if h.RecordCount > 0 && h.LastOffset() >= from && h.BaseOffset < to && x.beats(best) {
			list = append(list, x)
		}
		return nil
	})
	if err != nil {
		return best, err
	}
	slices.SortFunc(list, func(a, b one) int { return cmp.Or(cmp.Compare(b.ts, a.ts), cmp.Compare(a.offset, b.offset)) })
	for _, x := range list {
		if !x.beats(best) {
			break
		}
		err := t.inflate(ctx, x.raw, func(limit int) error {
			o, ts, ok, err := batch.MaxTimestampOffset(x.raw, from, to, limit)
			if got := (timed{ts, o}); err == nil && ok && got.beats(best) {
				best = got
			}
			return err
		})
		if err != nil && (ctx.Err() != nil || errors.Is(err, batch.ErrInflated)) {
			return best, err
		}
	}
	return best, nil
}
