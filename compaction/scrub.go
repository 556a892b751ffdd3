package compaction

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
)

// Scrubbing: now and then everything that the manifests name is looked for, before somebody misses it. One worker at a
// time makes a pass, at the rate that compaction may read, and what it came to is remembered for all workers. Nothing
// is changed: what is wrong is told by log lines and figures. Healthy says nothing of it: no restart mends it.

// Scrubs is what workers share about their passes.
type Scrubs interface {
	// Last is the last pass that was completed, without its Unnamed; the zero Pass if there was none.
	Last(ctx context.Context) (Pass, error)
	// Unnamed is that of the last pass that was completed.
	Unnamed(ctx context.Context) (map[manifest.Suffix]time.Time, error)
	// Begin makes worker the one that makes a pass until End, or until its lease ends; false if another is.
	Begin(ctx context.Context, worker string, lease int64) (bool, error)
	// End notes what a pass came to; nil: it was not completed.
	End(ctx context.Context, worker string, lease int64, p *Pass) error
}

// Pass is one look at everything.
type Pass struct {
	Worker              string
	Began, Ended        time.Time
	Partitions, Objects int
	Bytes               int64 // of record batches that the objects hold
	Findings            map[tiering.Fault]int
	// Unnamed are objects that no manifest named, and since which pass; at most MaxUnnamed, those of the earliest
	// passes. The next pass needs it, whoever makes it.
	Unnamed map[manifest.Suffix]time.Time
}

// MaxUnnamed is how many unnamed objects a pass remembers for the next.
const MaxUnnamed = 10_000

const (
	maxScrubLog = 100 // findings of one pass that are written to the log
	scrubPoll   = time.Minute
)

// scrubLoop makes the passes that are due until ctx ends.
func (w *Worker) scrubLoop(ctx context.Context, lease int64) {
	for ctx.Err() == nil {
		wait, err := w.scrubIfDue(ctx, lease)
		if err != nil && ctx.Err() == nil {
			w.log.Error("scrub cannot be made and is tried again", "err", err)
			w.o.Events.ScrubFailed(err)
		}
		sleep(ctx, wait)
	}
}

// scrubIfDue makes a pass if the last one is long enough ago and nobody else makes one. It returns how long to wait
// before asking again.
func (w *Worker) scrubIfDue(ctx context.Context, lease int64) (wait time.Duration, err error) {
	poll := max(min(w.o.ScrubInterval/10, scrubPoll), 10*time.Millisecond)
	due := func() (bool, error) {
		last, err := w.o.Scrubs.Last(ctx)
		if err != nil || last.Ended.IsZero() {
			return err == nil, err
		}
		w.o.Events.Scrubbed(last)
		return w.o.Now().Sub(last.Ended) >= w.o.ScrubInterval, nil
	}
	if ok, err := due(); err != nil || !ok {
		return poll, err
	}
	ok, err := w.o.Scrubs.Begin(ctx, w.o.Name, lease)
	var done *Pass
	if err == nil && ok {
		// Another may have made one since it was asked for.
		if ok, err = due(); err == nil && ok {
			done, err = w.scrub(ctx)
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if eerr := w.o.Scrubs.End(end, w.o.Name, lease, done); eerr == nil && done != nil {
		w.o.Events.Scrubbed(*done)
	} else {
		err = errors.Join(err, eerr)
	}
	return poll, err
}

// scrub makes one pass.
func (w *Worker) scrub(ctx context.Context) (*Pass, error) {
	p := &Pass{Worker: w.o.Name, Began: w.o.Now()}
	before, err := w.o.Scrubs.Unnamed(ctx)
	if err != nil {
		return nil, fmt.Errorf("scrub: %w", err)
	}
	logged := 0
	found := func(f tiering.Finding) {
		w.o.Events.ScrubFound(f)
		if logged++; logged <= maxScrubLog {
			w.log.Error("scrub: what the bucket holds is not what it should", "fault", string(f.Fault), "topic", f.Topic, "partition", f.Partition,
				"from", f.Base, "to", f.Last, "object", f.Object, "what", f.What, "do", f.Fault.Advice())
		}
	}
	a, err := w.o.Tier.Check(ctx, tiering.AuditOptions{
		Data: w.o.ScrubData, Rate: func(ctx context.Context, n int64) error { return w.paced(ctx, n, func() {}) }, Found: found,
		Topic: func(id [16]byte) (string, bool) {
			t, ok := w.o.Topic(id)
			return t.Name, ok // deleted ones are the collector's
		},
	})
	if err != nil {
		return nil, fmt.Errorf("scrub: %w", err)
	}
	p.Partitions, p.Objects, p.Bytes, p.Findings = a.Partitions, a.Entries+a.Pages, a.Bytes, maps.Clone(a.Counts)
	unnamed, orphans := w.orphans(a.Unnamed, before, p.Began)
	p.Unnamed = unnamed
	for _, f := range orphans {
		p.Findings[tiering.FaultOrphan]++
		found(f)
	}
	p.Ended = w.o.Now()
	if logged > 0 {
		w.log.Error("scrub: the bucket needs somebody: see varve tier verify", "findings", logged, "of", fmt.Sprint(p.Findings), "partitions", p.Partitions, "objects", p.Objects,
			"took", p.Ended.Sub(p.Began))
	} else {
		w.log.Info("scrub: everything that is named is there", "partitions", p.Partitions, "objects", p.Objects, "bytes", p.Bytes, "took", p.Ended.Sub(p.Began))
	}
	return p, nil
}

// deleteDelay is how long file.delete.delay.ms has an object kept that nothing names: the topic's, or of a mixed object the longest
// of all. It may come twice, for who finds an object that somebody else has let go of does not know when.
func (w *Worker) deleteDelay(n manifest.Name) (d time.Duration) {
	if n.Page || n.Kind != manifest.Mixed {
		if t, ok := w.o.Topic(n.TopicID); ok {
			d = t.DeleteDelay
		}
		return d
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.known {
		d = max(d, k.policy.DeleteDelay)
	}
	return d
}

// orphans are the objects that nobody named at a pass OrphanAge ago, or longer where the topic has them kept, and that nobody names now. One look does not tell: an
// object may be on its way into a manifest, or have left one a moment ago. What the passes saw is shared, so that it does
// not matter whether a worker lives for so long.
func (w *Worker) orphans(list []tiering.UnnamedInfo, before map[manifest.Suffix]time.Time, began time.Time) (unnamed map[manifest.Suffix]time.Time, orphans []tiering.Finding) {
	type seen struct {
		suffix manifest.Suffix
		since  time.Time
	}
	var all []seen
	for _, u := range list {
		n, ok := manifest.ParseKey(u.Key)
		// Younger ones may be on their way.
		if !ok || began.Sub(u.Modified) < w.o.OrphanAge/24 {
			continue
		}
		first, ok := before[n.Suffix]
		if !ok {
			first = began
		}
		all = append(all, seen{n.Suffix, first})
		if age := began.Sub(first); age >= w.o.OrphanAge+2*w.deleteDelay(n) {
			orphans = append(orphans, tiering.Finding{Fault: tiering.FaultOrphan, Topic: u.Topic, Partition: u.Partition, Base: -1, Last: -1, Object: u.Key,
				What: fmt.Sprintf("no manifest has named it for %s, and it is still there", age.Round(time.Second))})
		}
	}
	// Where there are too many, most of them wait for their deletion, and are gone at the next pass.
	slices.SortStableFunc(all, func(a, b seen) int { return a.since.Compare(b.since) })
	unnamed = make(map[manifest.Suffix]time.Time)
	for _, s := range all[:min(len(all), MaxUnnamed)] {
		unnamed[s.suffix] = s.since
	}
	return unnamed, orphans
}
