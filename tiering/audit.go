package tiering

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// AuditOptions say how deep to look.
type AuditOptions struct {
	Data bool // read every block and every batch header, not only the footers
}

// Audit is what an audit found.
type Audit struct {
	Partitions, Entries, Pages int
	Bytes                      int64
	Problems                   []string // what must not be: gaps, overlaps, dangling names, wrong bytes
	Unnamed                    []string // keys below data/ and page/ that no head names: garbage, or on its way
}

// Err is nil if there is no problem.
func (a *Audit) Err() error {
	if len(a.Problems) == 0 {
		return nil
	}
	return fmt.Errorf("tiering: %d problems, the first: %s", len(a.Problems), a.Problems[0])
}

// Check audits a bucket against the heads: every offset of [remote start, remote
// end) covered exactly once, every object that is named there and the one that is
// meant, and what else there is. Nothing is changed. An error means that the
// audit could not be made; what it found wrong is in the Audit. On a live cluster
// what is uploaded or collected meanwhile shows up as unnamed.
func Check(ctx context.Context, b objstore.Bucket, store ManifestStore, o AuditOptions) (*Audit, error) {
	a := &Audit{}
	// The listing comes first: what is named later than listed is no garbage, and
	// what is listed and named is looked for by name anyway.
	unnamed := make(map[string]bool)
	for _, prefix := range []string{manifest.DataPrefix, manifest.PagePrefix} {
		list, err := listAll(ctx, b, prefix)
		if err != nil {
			return nil, err
		}
		for _, i := range list {
			unnamed[i.Key] = true
		}
	}
	err := store.Range(ctx, func(h StoredHead) error {
		a.Partitions++
		return a.partition(ctx, b, h, o, func(key string) { delete(unnamed, key) })
	})
	if err != nil {
		return nil, err
	}
	for k := range unnamed {
		a.Unnamed = append(a.Unnamed, k)
	}
	return a, nil
}

func (a *Audit) problem(format string, args ...any) {
	a.Problems = append(a.Problems, fmt.Sprintf(format, args...))
}

func (a *Audit) partition(ctx context.Context, b objstore.Bucket, s StoredHead, o AuditOptions, name func(string)) error {
	key := partitionKey{s.TopicID, s.Partition}
	h, err := manifest.DecodeHead(s.Head)
	if err != nil {
		a.problem("%s: %v", key, err)
		return nil
	}
	page := func(r manifest.PageRef) *manifest.Page {
		k := r.Key(key.topic, key.index)
		name(k)
		a.Pages++
		raw, err := objstore.ReadRange(ctx, b, k, 0, int64(r.Size))
		if err != nil {
			a.problem("%s: page %s: %v", key, k, err)
			return nil
		}
		p, err := manifest.DecodePage(raw, r)
		if err != nil {
			a.problem("%s: %v", key, err)
		}
		return p
	}
	refs := h.Pages
	if h.Index != nil {
		if p := page(*h.Index); p != nil {
			refs = append(append([]manifest.PageRef(nil), p.Refs...), refs...)
		}
	}
	next := int64(-1)
	var link *Link
	walk := func(list []manifest.Entry) error {
		for _, e := range list {
			if next >= 0 && e.Base != next {
				a.problem("%s: entry %d-%d where %d should follow", key, e.Base, e.Last, next)
			}
			next = e.Next()
			if h.Dead(e) {
				link = nil
				continue
			}
			a.Entries++
			a.Bytes += e.Bytes
			name(e.Key(key.topic, key.index))
			if err := a.entry(ctx, b, key, e, link, o); err != nil {
				return err
			}
			link = &Link{e.Next(), e.FooterCRC}
		}
		return ctx.Err()
	}
	for _, r := range refs {
		if next >= 0 && r.Base != next {
			a.problem("%s: page %d-%d where %d should follow", key, r.Base, r.Last, next)
		}
		if r.Last < h.LogStart { // behind an index page
			name(r.Key(key.topic, key.index))
			next, link = r.Next(), nil
			continue
		}
		p := page(r)
		if p == nil {
			next, link = r.Next(), nil
			continue
		}
		if err := walk(p.Entries); err != nil {
			return err
		}
	}
	return walk(h.Tail)
}

// entry looks at one object's section. prev is the entry before it, if any.
func (a *Audit) entry(ctx context.Context, b objstore.Bucket, key partitionKey, e manifest.Entry, prev *Link, o AuditOptions) error {
	name := e.Key(key.topic, key.index)
	f, err := ReadFooter(ctx, b, name, section(key, e))
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.problem("%s: entry %d-%d: %v", key, e.Base, e.Last, err)
		return nil
	}
	if f.Bytes != e.Bytes {
		a.problem("%s: entry %d-%d of %d bytes, its object has %d", key, e.Base, e.Last, e.Bytes, f.Bytes)
	}
	if prev != nil && e.Kind != manifest.Rewritten && f.Prev.End != prev.End {
		a.problem("%s: object %d-%d was made to follow %d", key, e.Base, e.Last, f.Prev.End)
	}
	if !o.Data {
		return nil
	}
	next := f.Base
	for _, k := range f.Blocks {
		raw, err := objstore.ReadRange(ctx, b, name, k.Pos, int64(k.Len))
		if err == nil && crc32.Checksum(raw, castagnoli) != k.CRC {
			err = errors.New("checksum")
		}
		if err == nil {
			if k.Base != next && e.Kind != manifest.Rewritten {
				err = fmt.Errorf("begins at %d, not %d", k.Base, next)
			}
			werr := batch.Walk(raw, func(h batch.Header, raw []byte) error {
				if h.BaseOffset < next || h.BaseOffset > next && e.Kind != manifest.Rewritten {
					return fmt.Errorf("batch at %d where %d should follow", h.BaseOffset, next)
				}
				next = h.NextOffset()
				return batch.VerifyCRC(raw)
			})
			err = errors.Join(err, werr)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			a.problem("%s: block at %d of %s: %v", key, k.Pos, name, err)
		}
	}
	if next != e.Next() && e.Kind != manifest.Rewritten {
		a.problem("%s: object %d-%d ends at %d", key, e.Base, e.Last, next)
	}
	return nil
}
