package compaction

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// run is one job under a claim.
type run struct {
	w     *Worker
	r     *tiering.Remote
	topic Topic
	claim tiering.Claim
	job   picker.Job
	table *cleaner.Table // of the thread that is at it
	stats Done
}

func (r *run) do(ctx context.Context) error {
	switch r.job.Kind {
	case picker.Compact:
		return r.compact(ctx)
	case picker.Purge:
		return r.purge(ctx)
	case picker.Merge:
		return r.merge(ctx)
	}
	return fmt.Errorf("a job of kind %s is not the worker's", r.job.Kind)
}

// footer is the footer of an entry: all of it, or without lineage and producers.
func (r *run) footer(ctx context.Context, e manifest.Entry, whole bool) (*tiering.Footer, error) {
	return r.w.o.Tier.EntryFooter(ctx, r.r.TopicID, r.r.Partition, e, whole)
}

// open reads the footers of entries side by side, and returns them together with where the batches are.
func (r *run) open(ctx context.Context, entries []manifest.Entry) (list []tiering.EntryBlocks, footers []*tiering.Footer, err error) {
	footers = make([]*tiering.Footer, len(entries))
	g, c := errgroup.WithContext(ctx)
	g.SetLimit(footersAtOnce)
	for i, e := range entries {
		g.Go(func() (err error) { footers[i], err = r.footer(c, e, false); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for i, e := range entries {
		list = append(list, tiering.EntryBlocks{Entry: e, Blocks: footers[i].Blocks})
	}
	return list, footers, nil
}

const footersAtOnce = 16

// read calls f for the batches of entries from the block that holds from on.
func (r *run) read(ctx context.Context, list []tiering.EntryBlocks, from int64, f func(batch.Header, []byte) error) error {
	return r.w.o.Tier.ReadEntries(ctx, r.r.TopicID, r.r.Partition, list, from, r.w.throttle, func(h batch.Header, raw []byte) error {
		r.stats.Read += int64(len(raw))
		return f(h, raw)
	})
}

func plain(g []picker.Entry) (out []manifest.Entry) {
	for _, e := range g {
		out = append(out, e.Entry)
	}
	return out
}

// round begins a round of the cleaner that filters [base, to) and scans [dirtyStart, end).
func (r *run) round(ctx context.Context, dirtyStart, end, base, to int64, records int64) (*cleaner.Round, error) {
	newest := r.r.Entries[len(r.r.Entries)-1].Entry
	last, err := r.footer(ctx, newest, true)
	if err != nil {
		return nil, err
	}
	producers, at, err := producer.Decode(last.Producers)
	if err != nil || at != newest.Next() {
		return nil, fmt.Errorf("producer state at %d, found that of %d: %w", newest.Next(), at, errors.Join(tiering.ErrCorrupt, err))
	}
	aborted, err := r.w.o.Tier.AbortedIn(ctx, r.r, min(base, dirtyStart), max(to, end))
	if err != nil {
		return nil, fmt.Errorf("aborted transactions: %w", err)
	}
	first, err := r.footer(ctx, r.job.Groups[0][0].Entry, false)
	if err != nil {
		return nil, err
	}
	o := cleaner.Options{
		DirtyStart: dirtyStart, End: end, Now: r.w.o.Now().UnixMilli(), DeleteRetention: r.topic.Policy.DeleteRetention,
		Codec: r.topic.Codec, Level: r.topic.Level, Window: r.w.o.Window, Checked: true, Aborted: aborted, Producers: producers,
		Hold: func(n int64) (func(), error) { return r.w.hold(ctx, n) }, Check: func() error { return context.Cause(ctx) },
	}
	if first.Base > r.r.Entries[0].Base {
		o.Open = first.OpenStart
	}
	r.table.Reset(records)
	return cleaner.NewRound(o, r.table), nil
}

var errEnough = errors.New("enough")

// compact scans the dirty range and filters the groups, as far as the table reaches.
func (r *run) compact(ctx context.Context) error {
	j := &r.job
	var entries []manifest.Entry
	for _, e := range r.r.Entries {
		if e.Last >= j.DirtyStart && e.Base < j.TableEnd {
			entries = append(entries, e.Entry)
		}
	}
	dirty, footers, err := r.open(ctx, entries)
	if err != nil {
		return err
	}
	records := int64(0)
	for _, f := range footers {
		records += f.Records
	}
	round, err := r.round(ctx, j.DirtyStart, j.TableEnd, j.Base, j.End, records)
	if err != nil {
		return err
	}
	err = r.read(ctx, dirty, j.DirtyStart, func(h batch.Header, raw []byte) error {
		more, err := round.Scan(h, raw)
		if err == nil && !more {
			err = errEnough
		}
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("scan from %d: %w", j.DirtyStart, err)
	}
	end := round.TableEnd()
	state := r.r.Head.Compaction
	if end <= state.CleanEnd {
		return fmt.Errorf("the round does not get beyond the clean end %d", state.CleanEnd)
	}
	if end <= state.Next {
		// The round was begun with a larger table, which has gone over everything below Next: each key is there once, and no
		// tombstone has anything older to delete. With this one it gets no further, however often it is tried.
		return r.commit(ctx, nil, nil, &manifest.Compaction{CleanEnd: state.Next}, horizon{})
	}
	for i, g := range j.Groups {
		if g[0].Base >= end || !r.wanted() {
			break // the table did not come so far
		}
		next := manifest.Compaction{CleanEnd: state.CleanEnd, End: end, Next: min(g[len(g)-1].Next(), end)}
		if next.Next == end {
			next = manifest.Compaction{CleanEnd: end}
		}
		// How far an unchanged group has brought the round need not be written each time.
		last := i == len(j.Groups)-1 || next.CleanEnd == end
		if err := r.filter(ctx, round, g, &next, last); err != nil {
			return err
		}
	}
	return nil
}

// wanted tells whether the topic is still to be compacted: a job may take hours, and who has changed cleanup.policy wants to
// keep what is left.
func (r *run) wanted() bool {
	t, ok := r.w.o.Topic(r.r.TopicID)
	return ok && t.Policy.Compact
}

// purge takes from the groups, which are in the clean range, what has reached its horizon.
func (r *run) purge(ctx context.Context) error {
	clean := r.r.Head.Compaction.CleanEnd
	round, err := r.round(ctx, clean, clean, r.job.Base, r.job.End, 0)
	if err != nil {
		return err
	}
	for _, g := range r.job.Groups {
		if !r.wanted() {
			break
		}
		if err := r.filter(ctx, round, g, nil, false); err != nil {
			return err
		}
	}
	return nil
}

// filter makes one object of what is left of a group, and commits it.
func (r *run) filter(ctx context.Context, round *cleaner.Round, g []picker.Entry, state *manifest.Compaction, must bool) error {
	o, err := r.object(ctx, g)
	if err != nil {
		return err
	}
	defer o.Close()
	end := g[len(g)-1].Last
	list, footers, err := r.open(ctx, plain(g))
	if err != nil {
		return err
	}
	err = r.read(ctx, list, 0, func(h batch.Header, raw []byte) error {
		out, err := round.Filter(h, raw, h.LastOffset() == end)
		if err != nil || out == nil {
			return err
		}
		if h, err = batch.ParseHeader(out); err != nil {
			return err
		}
		return o.Add(h, out)
	})
	if err != nil {
		return fmt.Errorf("filter %d-%d: %w", g[0].Base, end, err)
	}
	sum := round.Cut()
	r.stats.Records += sum.RecordsIn
	r.stats.Kept += sum.Records
	r.stats.NullKeys += sum.NullKeys
	if len(g) == 1 && !sum.Changed() {
		// The footer may have promised that something goes, and this pass could not tell that it may. What is
		// expected now counts from here on, or the same would be tried for ever.
		r.w.remember(g[0].Suffix, horizon{sum.Horizon, sum.HorizonBytes, footers[0].MinTimestamp})
		if state == nil || !must {
			return nil
		}
		return r.commit(ctx, nil, nil, state, horizon{})
	}
	return r.commit(ctx, g, &upload{o, sum.Aborted}, state, horizon{at: sum.Horizon, bytes: sum.HorizonBytes, min: o.MinTimestamp()})
}

// merge makes one object of each group; every batch stays as it is.
func (r *run) merge(ctx context.Context) error {
	for _, g := range r.job.Groups {
		if err := r.mergeGroup(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) mergeGroup(ctx context.Context, g []picker.Entry) error {
	o, err := r.object(ctx, g)
	if err != nil {
		return err
	}
	defer o.Close()
	list, footers, err := r.open(ctx, plain(g))
	if err != nil {
		return err
	}
	var aborted []producer.Aborted
	var h horizon
	for _, f := range footers {
		aborted = append(aborted, f.Aborted...)
		h.at, h.bytes = max(h.at, f.Horizon), h.bytes+f.HorizonBytes
	}
	if err := r.read(ctx, list, 0, o.Add); err != nil {
		return fmt.Errorf("copy %d-%d: %w", g[0].Base, g[len(g)-1].Last, err)
	}
	h.min = o.MinTimestamp()
	return r.commit(ctx, g, &upload{o, aborted}, nil, h)
}

// object begins the object that takes the place of a group.
func (r *run) object(ctx context.Context, g []picker.Entry) (*tiering.Rewrite, error) {
	first, err := r.footer(ctx, g[0].Entry, false)
	if err != nil {
		return nil, err
	}
	end := g[len(g)-1].Entry
	last, err := r.footer(ctx, end, true)
	if err != nil {
		return nil, err
	}
	return r.w.o.Tier.NewRewrite(first, last, end.Epoch)
}

type upload struct {
	o       *tiering.Rewrite
	aborted []producer.Aborted
}

// commit uploads the object that was made of g, if any, and puts it in the place of g together with the state of the
// round.
func (r *run) commit(ctx context.Context, g []picker.Entry, u *upload, state *manifest.Compaction, h horizon) error {
	rep := tiering.Replacement{Compaction: state, Delay: r.topic.DeleteDelay, Topic: r.topic.Name}
	if u != nil {
		if err := r.w.throttle(ctx, u.o.Size()); err != nil {
			return err
		}
		e, err := u.o.Upload(ctx, r.claim, u.aborted, h.at, h.bytes)
		if err != nil {
			return err
		}
		rep.New = []manifest.Entry{e}
		rep.Old = plain(g)
	}
	if err := r.w.o.Tier.Replace(ctx, r.r.TopicID, r.r.Partition, r.claim, rep); err != nil {
		for _, e := range rep.New {
			r.w.o.Tier.Discard(r.r.TopicID, r.r.Partition, e) // judged by the head and the claim before it goes
		}
		return err
	}
	for _, e := range rep.New {
		r.w.remember(e.Suffix, h)
		r.stats.Objects, r.stats.Made, r.stats.Written = r.stats.Objects+len(rep.Old), r.stats.Made+1, r.stats.Written+e.Bytes
	}
	return nil
}
