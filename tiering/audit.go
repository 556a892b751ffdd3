package tiering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// Fault is a kind of what an audit finds.
type Fault string

// The faults.
const (
	FaultManifest Fault = "manifest" // a head or page that cannot be read
	FaultCoverage Fault = "coverage" // offsets that no entry covers
	FaultMissing  Fault = "missing"  // an object that is named and not there
	FaultCorrupt  Fault = "corrupt"  // an object whose bytes are not those that are named
	FaultOrphan   Fault = "orphan"   // an object that nobody names, and that should have been deleted
)

// Faults lists all kinds.
var Faults = []Fault{FaultManifest, FaultCoverage, FaultMissing, FaultCorrupt, FaultOrphan}

// Advice says what to do about a fault.
func (f Fault) Advice() string {
	switch f {
	case FaultManifest:
		return "stop the compaction workers; restore the object from an older version if the bucket keeps any, or the manifest from the state published in the bucket"
	case FaultCoverage:
		return "stop the compaction workers and delete nothing: the records may lie in objects that no manifest names"
	case FaultMissing, FaultCorrupt:
		return "restore the object from an older version or a copy of the bucket; else these records are lost, and reading them fails until the log start is moved past them (DeleteRecords)"
	case FaultOrphan:
		return "look at varve_tier_failures_total and the brokers' logs for why it was not deleted; it does no harm but its price"
	}
	return ""
}

// Finding is something that must not be.
type Finding struct {
	Fault      Fault
	Topic      string // its name, or its id where the name is not known
	Partition  int32
	Base, Last int64  // the offsets that it is about; -1: none in particular
	Object     string // its key, if it is about one
	What       string
}

func (f Finding) String() string {
	s := string(f.Fault) + ":"
	if f.Topic != "" {
		s += fmt.Sprintf(" %s-%d", f.Topic, f.Partition)
	}
	if f.Base >= 0 {
		s += fmt.Sprintf(" offsets %d to %d", f.Base, f.Last)
	}
	if f.Object != "" {
		s += " object " + f.Object
	}
	return s + ": " + f.What
}

// AuditOptions say how deep to look, and at what.
type AuditOptions struct {
	Data bool // read every block and every batch header, not only the footers
	// Topic gives a topic its name; partitions for which ok is false are not looked at. nil: all are.
	Topic func(id [16]byte) (name string, ok bool)
	// Rate, if not nil, is asked for leave to read so many bytes.
	Rate     func(ctx context.Context, bytes int64) error
	Parallel int           // objects at once; 8
	Found    func(Finding) // called with each finding as it is made, one at a time; may be nil
	Progress func(Audit)   // called behind each partition; may be nil
}

// Audit is what an audit found.
type Audit struct {
	Partitions, Entries, Pages int
	Bytes                      int64         // of record batches in the entries
	Counts                     map[Fault]int // of what must not be: gaps, dangling names, wrong bytes
	Problems                   []Finding     // the first of it
	Unnamed                    []UnnamedInfo // what no head names: garbage, or on its way
}

// maxProblems bounds what is kept: in a bucket that was emptied, everything is missing.
const maxProblems = 10_000

// UnnamedInfo is an object below data/ or page/ that no head names.
type UnnamedInfo struct {
	objstore.Info
	Topic     string // as in a Finding; empty for a mixed object
	Partition int32
}

// Err is nil if there is no problem.
func (a *Audit) Err() error {
	if len(a.Problems) == 0 {
		return nil
	}
	n := 0
	for _, k := range a.Counts {
		n += k
	}
	return fmt.Errorf("tiering: %d problems, the first: %v", n, a.Problems[0])
}

// Check audits a bucket against the heads: every offset of [remote start, remote
// end) covered exactly once, every object that is named there and the one that is
// meant, and what else there is. Nothing is changed. An error means that the
// audit could not be made, as when the store does not answer; what it found wrong is in the Audit.
//
// The cluster may work meanwhile. A head is read just before its objects are looked for; one that is not there is a
// finding only if the head, read again, still names it. What is uploaded or collected meanwhile may show up as unnamed.
func Check(ctx context.Context, b objstore.Bucket, store ManifestStore, o AuditOptions) (*Audit, error) {
	if o.Parallel <= 0 {
		o.Parallel = 8
	}
	a := &auditor{o: o, b: b, store: store, Audit: Audit{Counts: make(map[Fault]int)}}
	// The first listing comes first of all: what is named later than listed is no garbage.
	unnamed := make(map[manifest.Suffix]struct{})
	err := a.list(ctx, func(_ objstore.Info, n manifest.Name, ok bool) {
		if ok {
			unnamed[n.Suffix] = struct{}{}
		}
	})
	if err != nil {
		return nil, err
	}
	a.name = func(s manifest.Suffix) { delete(unnamed, s) }
	var keys []partitionKey
	err = store.Range(ctx, func(h StoredHead) error {
		keys = append(keys, partitionKey{h.TopicID, h.Partition})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		name, ok := a.topic(key.topic)
		if !ok {
			continue
		}
		a.Partitions++
		if err := a.partition(ctx, key, name); err != nil {
			return nil, err
		}
		if o.Progress != nil {
			o.Progress(a.Audit)
		}
	}
	// What is not named may be gone meanwhile, as it should.
	err = a.list(ctx, func(i objstore.Info, n manifest.Name, ok bool) {
		u := UnnamedInfo{Info: i}
		if _, is := unnamed[n.Suffix]; ok && !is {
			return
		}
		if ok && (n.Page || n.Kind != manifest.Mixed) {
			u.Topic, u.Partition = fmt.Sprintf("%x", n.TopicID), n.Partition
			if name, ok := a.topic(n.TopicID); ok {
				u.Topic = name
			}
		}
		a.Unnamed = append(a.Unnamed, u)
	})
	if err != nil {
		return nil, err
	}
	return &a.Audit, nil
}

// Check audits the bucket; see the function of that name.
func (t *Tier) Check(ctx context.Context, o AuditOptions) (*Audit, error) {
	return Check(ctx, t.bucket, t.store, o)
}

type auditor struct {
	Audit
	o     AuditOptions
	b     objstore.Bucket
	store ManifestStore
	name  func(manifest.Suffix)

	mu sync.Mutex // findings, while entries are looked at side by side
}

func (a *auditor) topic(id [16]byte) (string, bool) {
	if a.o.Topic == nil {
		return fmt.Sprintf("%x", id), true
	}
	return a.o.Topic(id)
}

// list calls f for every object that may be named.
func (a *auditor) list(ctx context.Context, f func(i objstore.Info, n manifest.Name, ok bool)) error {
	for _, prefix := range []string{manifest.DataPrefix, manifest.PagePrefix} {
		for after, more := "", true; more; {
			var list []objstore.Info
			err := a.again(ctx, func(ctx context.Context) (err error) {
				list, more, err = a.b.List(ctx, prefix, after, objstore.MaxList)
				return err
			})
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			for _, i := range list {
				n, ok := manifest.ParseKey(i.Key)
				f(i, n, ok)
				after = i.Key
			}
			more = more && len(list) > 0
		}
	}
	return nil
}

func (a *auditor) found(f Finding) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.Counts[f.Fault]++; len(a.Problems) < maxProblems {
		a.Problems = append(a.Problems, f)
	}
	if a.o.Found != nil {
		a.o.Found(f)
	}
}

const (
	auditTries   = 4
	auditTimeout = time.Minute // of one request
)

// again tries what failed again: what is wrong must be wrong each time it is read. What is not there is not asked for
// again.
func (a *auditor) again(ctx context.Context, f func(ctx context.Context) error) (err error) {
	for try := range auditTries {
		if try > 0 && !sleep(ctx, jittered(50*time.Millisecond<<try)) {
			return ctx.Err()
		}
		c, cancel := context.WithTimeout(ctx, auditTimeout)
		err = f(c)
		cancel()
		if err == nil || vanished(err) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// read reads a range, at the rate that is allowed.
func (a *auditor) read(ctx context.Context, key string, pos, length int64) ([]byte, error) {
	if a.o.Rate != nil {
		if err := a.o.Rate(ctx, length); err != nil {
			return nil, err
		}
	}
	return objstore.ReadRange(ctx, a.b, key, pos, length)
}

// wrong tells whether an error is about what the bucket holds, not about reaching it.
func wrong(err error) bool { return damaged(err) || errors.Is(err, objstore.ErrRange) }

// faultOf says which fault a wrong object is.
func faultOf(err error) Fault {
	if vanished(err) {
		return FaultMissing
	}
	return FaultCorrupt
}

func (a *auditor) head(ctx context.Context, key partitionKey) (h *manifest.Head, rev int64, err error) {
	c, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	raw, rev, err := a.store.Load(c, key.topic, key.index)
	if err != nil || rev == 0 {
		return nil, 0, err
	}
	h, err = manifest.DecodeHead(raw)
	return h, rev, err
}

func (a *auditor) page(ctx context.Context, key partitionKey, r manifest.PageRef) (p *manifest.Page, err error) {
	err = a.again(ctx, func(ctx context.Context) error {
		raw, err := a.read(ctx, r.Key(key.topic, key.index), 0, int64(r.Size))
		if err == nil {
			p, err = manifest.DecodePage(raw, r)
		}
		return err
	})
	return p, err
}

// stillNamed tells whether the head as it is now names what an older one named and what is not there: then it is lost,
// else it went by the rules.
func (a *auditor) stillNamed(ctx context.Context, key partitionKey, in func(h *manifest.Head, page func(manifest.PageRef) *manifest.Page) (bool, error)) (bool, error) {
	h, rev, err := a.head(ctx, key)
	if err != nil || rev == 0 {
		return false, err
	}
	var failed error
	named, err := in(h, func(r manifest.PageRef) *manifest.Page {
		p, err := a.page(ctx, key, r)
		if err != nil {
			failed = err
		}
		return p
	})
	switch {
	case wrong(failed):
		return false, nil // a finding of its own when the walk comes to it, or the next one
	case failed != nil:
		return false, failed
	}
	return named, err
}

func (a *auditor) partition(ctx context.Context, key partitionKey, topic string) error {
	about := func(f Fault, base, last int64, object, format string, args ...any) Finding {
		return Finding{f, topic, key.index, base, last, object, fmt.Sprintf(format, args...)}
	}
	first := len(a.Problems)
	defer func() {
		slices.SortStableFunc(a.Problems[first:], func(x, y Finding) int { return cmp.Compare(x.Base, y.Base) })
	}()
	h, rev, err := a.head(ctx, key)
	switch {
	case errors.Is(err, manifest.ErrCorrupt):
		a.found(about(FaultManifest, -1, -1, "", "%v", err))
		return nil
	case err != nil:
		return err
	case rev == 0:
		return nil // deleted meanwhile
	}

	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(a.o.Parallel)
	page := func(r manifest.PageRef) (*manifest.Page, error) {
		k := r.Key(key.topic, key.index)
		a.name(r.Suffix)
		a.Pages++
		p, err := a.page(ctx, key, r)
		if vanished(err) {
			named, nerr := a.stillNamed(ctx, key, func(h *manifest.Head, page func(manifest.PageRef) *manifest.Page) (bool, error) {
				refs := h.Named()
				if h.Index != nil {
					if p := page(*h.Index); p != nil {
						refs = slices.Concat(refs, p.Refs)
					}
				}
				return slices.ContainsFunc(refs, func(x manifest.PageRef) bool { return x.Suffix == r.Suffix }), nil
			})
			if nerr != nil || !named {
				return nil, nerr
			}
		}
		if wrong(err) {
			a.found(about(FaultManifest, r.Base, r.Last, k, "%v", err))
			return nil, nil
		}
		return p, err
	}
	// Heads and pages have no way to say that there is a gap, or an overlap, between two entries: lengths follow each
	// other, and pages are held to what names them. What they can say is that the log starts before its first entry.
	if base := h.Base(); h.RemoteEnd() > 0 && base > h.LogStart {
		a.found(about(FaultCoverage, h.LogStart, base-1, "", "the log starts at %d, and its first entry begins at %d", h.LogStart, base))
	}
	var link *Link
	walk := func(list []manifest.Entry) error {
		for _, e := range list {
			if h.Dead(e) {
				link = nil
				continue
			}
			a.Entries++
			a.Bytes += e.Bytes
			a.name(e.Suffix)
			prev := link
			g.Go(func() error {
				what, err := a.entry(ctx, key, e, prev)
				if vanished(err) {
					named, nerr := a.stillNamed(ctx, key, func(h *manifest.Head, page func(manifest.PageRef) *manifest.Page) (bool, error) {
						if n, ok := h.Newest(); ok && n.Suffix == e.Suffix && n.Base == e.Base {
							return true, nil
						}
						x, ok, err := h.Find(e.Base, page)
						return ok && x.Suffix == e.Suffix && x.Base == e.Base, err
					})
					if nerr != nil || !named {
						return nerr
					}
				}
				switch {
				case wrong(err):
					a.found(about(faultOf(err), e.Base, e.Last, e.Key(key.topic, key.index), "%v", err))
				case err != nil:
					return err
				}
				for _, w := range what {
					a.found(about(FaultCorrupt, e.Base, e.Last, e.Key(key.topic, key.index), "%s", w))
				}
				return nil
			})
			link = &Link{e.Next(), e.FooterCRC}
		}
		return ctx.Err()
	}
	err = func() error {
		refs := h.Pages
		if h.Index != nil {
			p, err := page(*h.Index)
			if err != nil {
				return err
			}
			if p != nil {
				refs = slices.Concat(p.Refs, refs)
			}
		}
		for _, r := range refs {
			if r.Last < h.LogStart { // behind an index page
				a.name(r.Suffix)
				link = nil
				continue
			}
			p, err := page(r)
			if err != nil {
				return err
			}
			if p == nil {
				link = nil
				continue
			}
			if err := walk(p.Entries); err != nil {
				return err
			}
		}
		return walk(h.Tail)
	}()
	return errors.Join(g.Wait(), err)
}

// entry looks at one object's section. prev is the entry before it, if any. An error tells that it could not be read,
// what is what is wrong with it.
func (a *auditor) entry(ctx context.Context, key partitionKey, e manifest.Entry, prev *Link) (what []string, err error) {
	name := e.Key(key.topic, key.index)
	if a.o.Rate != nil {
		if err := a.o.Rate(ctx, int64(e.FooterLen)); err != nil {
			return nil, err
		}
	}
	var f *Footer
	err = a.again(ctx, func(ctx context.Context) (err error) {
		f, err = ReadFooter(ctx, a.b, name, section(key, e))
		return err
	})
	if err != nil {
		return nil, err
	}
	if f.Bytes != e.Bytes {
		what = append(what, fmt.Sprintf("%d bytes of batches are named, its footer has %d", e.Bytes, f.Bytes))
	}
	if prev != nil && e.Kind != manifest.Rewritten && f.Prev.End != prev.End {
		what = append(what, fmt.Sprintf("it was made to follow %d, and follows %d", f.Prev.End, prev.End))
	}
	if !a.o.Data {
		return what, nil
	}
	next := f.Base
	for _, k := range f.Blocks {
		var end int64
		err := a.again(ctx, func(ctx context.Context) (err error) {
			end, err = a.block(ctx, name, k, next, e.Kind == manifest.Rewritten)
			return err
		})
		switch {
		case errors.Is(err, errBlock) || errors.Is(err, objstore.ErrRange):
			what = append(what, fmt.Sprintf("block at %d: %v", k.Pos, err))
			end = max(next, k.Base)
		case err != nil:
			return what, err
		}
		next = end
	}
	if next != e.Next() && e.Kind != manifest.Rewritten && len(what) == 0 {
		what = append(what, fmt.Sprintf("its batches end at %d", next))
	}
	return what, nil
}

// errBlock: the bytes of a block are not what they should be.
var errBlock = errors.New("not what was written")

// block reads one block whose first batch is to begin at next, or later if there may be gaps, and returns the offset behind it.
func (a *auditor) block(ctx context.Context, name string, k Block, next int64, gaps bool) (int64, error) {
	raw, err := a.read(ctx, name, k.Pos, int64(k.Len))
	if err != nil {
		return 0, err
	}
	if crc32.Checksum(raw, castagnoli) != k.CRC {
		return 0, fmt.Errorf("%w: checksum", errBlock)
	}
	if k.Base != next && !gaps {
		return 0, fmt.Errorf("%w: begins at %d, not %d", errBlock, k.Base, next)
	}
	err = batch.Walk(raw, func(h batch.Header, raw []byte) error {
		if h.BaseOffset < next || h.BaseOffset > next && !gaps {
			return fmt.Errorf("batch at %d where %d should follow", h.BaseOffset, next)
		}
		next = h.NextOffset()
		return batch.VerifyCRC(raw)
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errBlock, err)
	}
	return next, nil
}
