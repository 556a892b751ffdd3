// Package manifest says which objects make up the remote part of a partition.
//
// A manifest is a head, a few hundred bytes in the metadata store, and pages in
// the bucket that the head names. Replacing the head is the one commit point of
// tiering: an object that no head names, directly or through a page, is garbage,
// and what a head names is served.
//
//	head                       index page            page
//	  log start                  page ─────────────▶   0-999     own
//	  index ─────────────────▶   page ────────▶ ...    1000-1999 mixed
//	  pages ──▶ page                                   ...
//	  tail: the newest entries
//
// Entries cover [remote start, remote end) without gap or overlap, oldest first:
// index, pages, tail. An edit either appends at the remote end, moves the log
// start, or replaces an exact run of entries by others that cover the same
// offsets; Apply checks it and gives the new head together with the pages that
// must be in the bucket before the head is committed. Entries wholly below the
// log start are dead: a page may still hold them, but the head says they are
// gone. The newest entry is never dead, wherever the log start is: its footer
// holds the lineage and the producer state from which a new replica begins.
//
// The package is pure. What it needs from a page it is given; if the page is not
// at hand it answers with *NeedPage and the caller loads it and asks again.
package manifest

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
)

// What callers branch on. Refused edits change nothing.
var (
	ErrFenced   = errors.New("manifest: fenced")
	ErrGap      = errors.New("manifest: entry does not begin at the remote end")
	ErrBound    = errors.New("manifest: above the high watermark")
	ErrEpoch    = errors.New("manifest: epoch goes back")
	ErrEntry    = errors.New("manifest: malformed entry")
	ErrReplaced = errors.New("manifest: not an exact run of entries")
	ErrFull     = errors.New("manifest: index page is full")
	ErrCorrupt  = errors.New("manifest: corrupt")
)

// Kind says how an object's name is made and what it holds.
type Kind uint8

const (
	// Own is an object with one section, of this partition, uploaded by its leader.
	Own Kind = iota
	// Mixed is an object with sections of several partitions.
	Mixed
	// Rewritten is an object with one section, made by the compaction worker from
	// others that cover the same offsets.
	Rewritten
	kinds
)

func (k Kind) String() string {
	switch k {
	case Own:
		return "own"
	case Mixed:
		return "mixed"
	case Rewritten:
		return "rewritten"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Suffix is the random part of an object's name, new for every attempt.
type Suffix [12]byte

// Entry is one section of one object: a range of the partition's offsets.
type Entry struct {
	Base, Last   int64 // offsets, both inclusive
	Epoch        int32 // leader epoch in which it was uploaded
	Kind         Kind
	Suffix       Suffix
	Bytes        int64  // of record batches in the section
	FooterPos    int64  // of the section's footer in the object
	FooterLen    int32  // bytes
	FooterCRC    uint32 // CRC32C of the footer, which holds those of the blocks: an object that is not the one named is noticed
	MaxTimestamp int64  // ms, largest of the section's batches; -1: none has a timestamp
	Created      int64  // ms, when the upload began
}

// Next is the offset after the entry.
func (e Entry) Next() int64 { return e.Last + 1 }

func (e Entry) check() error {
	if e.Base < 0 || e.Last < e.Base || e.Last == math.MaxInt64 || e.Epoch < 0 || e.Kind >= kinds || e.Bytes <= 0 ||
		e.FooterPos < 0 || e.FooterLen <= 0 || e.FooterPos > math.MaxInt64-int64(e.FooterLen) || e.MaxTimestamp < -1 {
		return fmt.Errorf("%w: %+v", ErrEntry, e)
	}
	return nil
}

// PageRef names a page and sums it up.
type PageRef struct {
	Base, Last   int64 // offsets its entries cover
	Entries      int64 // entries below it; dead ones count until the page goes
	Bytes        int64 // of record batches below it
	MaxTimestamp int64
	Rev          int64 // revision of the head on which the page was built
	Epoch        int32 // of who wrote it
	Suffix       Suffix
	Size         int32  // of the page in bytes
	CRC          uint32 // CRC32C of the page
}

// Next is the offset after the page.
func (r PageRef) Next() int64 { return r.Last + 1 }

// Page is the content of a page: entries, or for an index page the pages.
type Page struct {
	Entries []Entry
	Refs    []PageRef
}

// Head is the committed state of a partition's remote part. It is immutable.
type Head struct {
	Epoch    int32 // highest leader epoch that committed
	LogStart int64
	Index    *PageRef // the oldest pages, once there are many
	Pages    []PageRef
	Tail     []Entry // oldest first; empty only if nothing was ever uploaded

	Compaction Compaction
}

// Compaction says how far the compaction worker has come. Below CleanEnd every
// key is there once. A round that was begun and not completed has a table of the
// keys in [CleanEnd, End), and everything below Next has been filtered with it.
type Compaction struct{ CleanEnd, End, Next int64 }

// Compacted is the offset below which the remote part may lack what the local
// logs still have.
func (h *Head) Compacted() int64 {
	return min(max(h.Compaction.CleanEnd, h.Compaction.Next), h.RemoteEnd())
}

// RemoteEnd is the offset after the newest entry, 0 if there is none.
func (h *Head) RemoteEnd() int64 {
	if n := len(h.Tail); n > 0 {
		return h.Tail[n-1].Next()
	}
	return 0
}

// RemoteStart is the first offset that can be read from the bucket; with nothing
// to read, the remote end.
func (h *Head) RemoteStart() int64 { return min(max(h.LogStart, h.Base()), h.RemoteEnd()) }

// NextBase is where the next object must begin: no offset below it can enter the
// manifest any more.
func (h *Head) NextBase() int64 { return max(h.RemoteEnd(), h.LogStart) }

// Base is where the oldest entry begins, dead or not; 0 if there is none.
func (h *Head) Base() int64 {
	switch {
	case h.Index != nil:
		return h.Index.Base
	case len(h.Pages) > 0:
		return h.Pages[0].Base
	case len(h.Tail) > 0:
		return h.Tail[0].Base
	}
	return 0
}

// Newest is the newest entry.
func (h *Head) Newest() (Entry, bool) {
	if n := len(h.Tail); n > 0 {
		return h.Tail[n-1], true
	}
	return Entry{}, false
}

// Totals counts entries and bytes, dead ones in pages that are still named
// included.
func (h *Head) Totals() (entries, bytes int64) {
	for _, p := range h.Named() {
		entries, bytes = entries+p.Entries, bytes+p.Bytes
	}
	for _, e := range h.Tail {
		entries, bytes = entries+1, bytes+e.Bytes
	}
	return entries, bytes
}

// Dead tells whether an entry that the manifest holds or held at some time lies
// wholly below the log start and is not the newest.
func (h *Head) Dead(e Entry) bool {
	newest, ok := h.Newest()
	return e.Last < h.LogStart && !(ok && newest.Suffix == e.Suffix && newest.Base == e.Base)
}

// Named lists the pages that the head names itself, the index page first.
func (h *Head) Named() []PageRef {
	if h.Index == nil {
		return h.Pages
	}
	return append([]PageRef{*h.Index}, h.Pages...)
}

// Limits are the sizes at which a manifest folds. They are not part of the
// format: a head made under others is valid.
type Limits struct {
	Tail  int // entries in the head; above it the tail is spilled into the newest page
	Keep  int // newest entries that stay in the head
	Page  int // entries to a page
	Pages int // pages in the head; above it all but the newest go to the index page
	Index int // pages in the index page
}

// DefaultLimits keep a head at about 1 KiB and a page at about 60 KiB.
var DefaultLimits = Limits{Tail: 12, Keep: 4, Page: 1500, Pages: 16, Index: 1 << 16}

// Edit is one change. Its parts are applied in the order of the fields.
type Edit struct {
	Epoch    int32 // of the leader that commits
	Replace  *Replace
	Add      []Entry
	LogStart int64 // new log start; at or below the present one: no change

	Compaction *Compaction // how far it has come now; nil: no change
}

// Replace puts New in the place of Old. Both are runs without gaps over the same
// offsets, and Old is exactly as the manifest has it.
type Replace struct {
	Old, New []Entry
}

// Input is what Apply needs beside head and edit.
type Input struct {
	HighWatermark int64
	Rev           int64               // revision of the head that is edited
	NewSuffix     func() Suffix       // random, for the names of pages
	Page          func(PageRef) *Page // a page that is at hand, or nil
	Limits        Limits              // zero: DefaultLimits
}

// NeedPage is the error for a page that is not at hand.
type NeedPage struct{ Ref PageRef }

func (n *NeedPage) Error() string {
	return fmt.Sprintf("manifest: page %d-%d is needed", n.Ref.Base, n.Ref.Last)
}

// Write is a page that must be in the bucket before the head is committed.
type Write struct {
	Ref  PageRef
	Page *Page
	Body []byte
}

// Result is an accepted edit: the head to commit, the pages to write first, and
// those that the old head named and the new one does not.
type Result struct {
	Head   *Head
	Writes []Write
	Gone   []PageRef
}

// Apply checks an edit against a head and carries it out. h is not changed.
func (h *Head) Apply(e Edit, in Input) (*Result, error) {
	if in.Limits == (Limits{}) {
		in.Limits = DefaultLimits
	}
	if e.Epoch < h.Epoch {
		return nil, fmt.Errorf("%w: epoch %d, current %d", ErrFenced, e.Epoch, h.Epoch)
	}
	b := &builder{in: in, epoch: e.Epoch, h: &Head{
		Epoch: e.Epoch, LogStart: h.LogStart, Index: h.Index, Pages: slices.Clone(h.Pages), Tail: slices.Clone(h.Tail),
		Compaction: h.Compaction,
	}}
	if c := e.Compaction; c != nil {
		if c.CleanEnd < h.Compaction.CleanEnd {
			return nil, fmt.Errorf("%w: compaction %+v after %+v", ErrReplaced, *c, h.Compaction)
		}
		if c.CleanEnd > h.RemoteEnd() || c.End > h.RemoteEnd() || c.Next > h.RemoteEnd() || c.End != 0 && (c.End <= c.CleanEnd || c.Next > c.End) || c.End == 0 && c.Next != 0 {
			return nil, fmt.Errorf("%w: compaction %+v after %+v, remote end %d", ErrBound, *c, h.Compaction, h.RemoteEnd())
		}
		b.h.Compaction = *c
	}
	if e.Replace != nil {
		if err := b.replace(*e.Replace); err != nil {
			return nil, err
		}
	}
	for _, a := range e.Add {
		if err := b.add(a); err != nil {
			return nil, err
		}
	}
	if e.LogStart > b.h.LogStart {
		if e.LogStart > in.HighWatermark {
			return nil, fmt.Errorf("%w: log start %d, high watermark %d", ErrBound, e.LogStart, in.HighWatermark)
		}
		b.h.LogStart = e.LogStart
	}
	b.trim()
	if err := b.fold(); err != nil {
		return nil, err
	}
	return b.result(h), nil
}

type builder struct {
	in    Input
	epoch int32
	h     *Head
	wrote []Write
}

func (b *builder) page(r PageRef) (*Page, error) {
	for _, w := range b.wrote {
		if w.Ref == r {
			return w.Page, nil
		}
	}
	if b.in.Page != nil {
		if p := b.in.Page(r); p != nil {
			return p, nil
		}
	}
	return nil, &NeedPage{r}
}

// add appends an entry. It begins at the remote end; or, where the log start has
// passed the remote end, with the batch that holds the log start. Then nothing
// before it can be read any more and all of it leaves the manifest.
func (b *builder) add(e Entry) error {
	if err := e.check(); err != nil {
		return err
	}
	end, h := b.h.RemoteEnd(), b.h
	if prev, ok := h.Newest(); ok && e.Epoch < prev.Epoch {
		return fmt.Errorf("%w: entry %d-%d of epoch %d after one of %d", ErrEpoch, e.Base, e.Last, e.Epoch, prev.Epoch)
	}
	if e.Epoch > b.epoch {
		return fmt.Errorf("%w: entry %d-%d of epoch %d, committed in %d", ErrEpoch, e.Base, e.Last, e.Epoch, b.epoch)
	}
	switch {
	case e.Base == end:
	case h.LogStart > end && e.Base > end && e.Base <= h.LogStart && e.Last >= h.LogStart:
		h.Index, h.Pages, h.Tail = nil, nil, nil
	default:
		return fmt.Errorf("%w: entry %d-%d, remote end %d, log start %d", ErrGap, e.Base, e.Last, end, h.LogStart)
	}
	if e.Last >= b.in.HighWatermark {
		return fmt.Errorf("%w: entry %d-%d, high watermark %d", ErrBound, e.Base, e.Last, b.in.HighWatermark)
	}
	h.Tail = append(h.Tail, e)
	return nil
}

// trim lets go of what is below the log start: entries of the tail except the
// newest, and pages.
func (b *builder) trim() {
	h := b.h
	if h.Index != nil && h.Index.Last < h.LogStart {
		h.Index = nil
	}
	if h.Index == nil {
		n := 0
		for n < len(h.Pages) && h.Pages[n].Last < h.LogStart {
			n++
		}
		h.Pages = h.Pages[n:]
		if len(h.Pages) == 0 {
			h.Pages = nil
			n = 0
			for n < len(h.Tail)-1 && h.Tail[n].Last < h.LogStart {
				n++
			}
			h.Tail = h.Tail[n:]
		}
	}
}

// fold spills the tail into the newest page and the pages into the index page.
func (b *builder) fold() error {
	h, lim := b.h, b.in.Limits
	if len(h.Tail) <= lim.Tail {
		return nil
	}
	spilled := h.Tail[:len(h.Tail)-lim.Keep]
	h.Tail = slices.Clone(h.Tail[len(h.Tail)-lim.Keep:])
	if n := len(h.Pages); n > 0 && h.Pages[n-1].Entries < int64(lim.Page) {
		p, err := b.page(h.Pages[n-1])
		if err != nil {
			return err
		}
		spilled = append(slices.Clone(live(p.Entries, h.LogStart)), spilled...)
		h.Pages = h.Pages[:n-1]
	}
	for part := range slices.Chunk(spilled, lim.Page) {
		h.Pages = append(h.Pages, b.write(&Page{Entries: slices.Clone(part)}))
	}
	if len(h.Pages) <= lim.Pages {
		return nil
	}
	var refs []PageRef
	if h.Index != nil {
		p, err := b.page(*h.Index)
		if err != nil {
			return err
		}
		for i, r := range p.Refs {
			if r.Last >= h.LogStart {
				refs = slices.Clone(p.Refs[i:])
				break
			}
		}
	}
	old := len(h.Pages) - 1
	refs = append(refs, h.Pages[:old]...)
	if len(refs) > lim.Index {
		return fmt.Errorf("%w: %d pages", ErrFull, len(refs))
	}
	index := b.write(&Page{Refs: refs})
	h.Index, h.Pages = &index, slices.Clone(h.Pages[old:])
	return nil
}

func live(entries []Entry, start int64) []Entry {
	n := sort.Search(len(entries), func(i int) bool { return entries[i].Last >= start })
	return entries[n:]
}

func (b *builder) write(p *Page) PageRef {
	body := p.Encode()
	r := PageRef{MaxTimestamp: -1, Rev: b.in.Rev, Epoch: b.epoch, Suffix: b.in.NewSuffix(), Size: int32(len(body)), CRC: checksum(body)}
	for i, e := range p.Entries {
		if i == 0 {
			r.Base = e.Base
		}
		r.Last, r.Entries, r.Bytes, r.MaxTimestamp = e.Last, r.Entries+1, r.Bytes+e.Bytes, max(r.MaxTimestamp, e.MaxTimestamp)
	}
	for i, e := range p.Refs {
		if i == 0 {
			r.Base = e.Base
		}
		r.Last, r.Entries, r.Bytes, r.MaxTimestamp = e.Last, r.Entries+e.Entries, r.Bytes+e.Bytes, max(r.MaxTimestamp, e.MaxTimestamp)
	}
	b.wrote = append(b.wrote, Write{r, p, body})
	return r
}

// replace works on the one list of entries that the run lies in, the tail or a
// page: a run never crosses from one to the other, for the compaction worker
// picks it so. What grows beyond a page stays in it until the next spill.
func (b *builder) replace(r Replace) error {
	if len(r.Old) == 0 || len(r.New) == 0 {
		return fmt.Errorf("%w: empty", ErrReplaced)
	}
	for i, e := range r.New {
		if err := e.check(); err != nil {
			return err
		}
		if i > 0 && e.Base != r.New[i-1].Next() {
			return fmt.Errorf("%w: new entries leave a gap before %d", ErrReplaced, e.Base)
		}
		if i > 0 && e.Epoch < r.New[i-1].Epoch {
			return fmt.Errorf("%w: entry %d-%d of epoch %d after one of %d", ErrEpoch, e.Base, e.Last, e.Epoch, r.New[i-1].Epoch)
		}
	}
	first, last := r.Old[0], r.Old[len(r.Old)-1]
	if r.New[0].Base != first.Base || r.New[len(r.New)-1].Last != last.Last {
		return fmt.Errorf("%w: %d-%d for %d-%d", ErrReplaced, r.New[0].Base, r.New[len(r.New)-1].Last, first.Base, last.Last)
	}
	h := b.h
	if len(h.Tail) > 0 && first.Base >= h.Tail[0].Base {
		tail, err := swap(h.Tail, r)
		if err != nil {
			return err
		}
		h.Tail = tail
		return nil
	}
	rewrite := func(refs []PageRef, i int) error {
		p, err := b.page(refs[i])
		if err != nil {
			return err
		}
		entries, err := swap(p.Entries, r)
		if err != nil {
			return err
		}
		refs[i] = b.write(&Page{Entries: entries})
		return nil
	}
	if i := indexOf(h.Pages, first.Base); i < len(h.Pages) && h.Pages[i].Base <= first.Base {
		return rewrite(h.Pages, i)
	}
	if h.Index != nil {
		p, err := b.page(*h.Index)
		if err != nil {
			return err
		}
		refs := slices.Clone(p.Refs)
		if i := indexOf(refs, first.Base); i < len(refs) && refs[i].Base <= first.Base {
			if err := rewrite(refs, i); err != nil {
				return err
			}
			index := b.write(&Page{Refs: refs})
			h.Index = &index
			return nil
		}
	}
	return fmt.Errorf("%w: %d-%d is not there", ErrReplaced, first.Base, last.Last)
}

func swap(in []Entry, r Replace) ([]Entry, error) {
	i := slices.Index(in, r.Old[0])
	if i < 0 || len(in)-i < len(r.Old) || !slices.Equal(in[i:i+len(r.Old)], r.Old) {
		return nil, fmt.Errorf("%w: %d-%d is not there", ErrReplaced, r.Old[0].Base, r.Old[len(r.Old)-1].Last)
	}
	if i > 0 && in[i-1].Epoch > r.New[0].Epoch || i+len(r.Old) < len(in) && in[i+len(r.Old)].Epoch < r.New[len(r.New)-1].Epoch {
		return nil, fmt.Errorf("%w: replacement of %d-%d", ErrEpoch, r.New[0].Base, r.New[len(r.New)-1].Last)
	}
	return slices.Concat(in[:i], r.New, in[i+len(r.Old):]), nil
}

// result keeps of the pages written only those that something still names, and
// finds the ones that lost their name.
func (b *builder) result(old *Head) *Result {
	named := make(map[Suffix]bool)
	for _, r := range b.h.Named() {
		named[r.Suffix] = true
	}
	for _, w := range slices.Backward(b.wrote) { // an index page comes after the pages it names
		if named[w.Ref.Suffix] {
			for _, r := range w.Page.Refs {
				named[r.Suffix] = true
			}
		}
	}
	res := &Result{Head: b.h}
	for _, w := range b.wrote {
		if named[w.Ref.Suffix] {
			res.Writes = append(res.Writes, w)
		}
	}
	gone := func(r PageRef) {
		if !named[r.Suffix] {
			res.Gone = append(res.Gone, r)
		}
	}
	for _, r := range old.Named() {
		gone(r)
	}
	if old.Index != nil && !named[old.Index.Suffix] && b.in.Page != nil {
		// Pages behind the old index: named again by the new one, or gone. If the
		// old index page is not at hand they are left to the search for garbage.
		if p := b.in.Page(*old.Index); p != nil {
			if b.h.Index != nil {
				if q, err := b.page(*b.h.Index); err == nil {
					for _, r := range q.Refs {
						named[r.Suffix] = true
					}
				}
			}
			for _, r := range p.Refs {
				gone(r)
			}
		}
	}
	return res
}

// indexOf returns the index of the page that offset lies in or, if there is none,
// of the first behind it.
func indexOf(refs []PageRef, offset int64) int {
	return sort.Search(len(refs), func(i int) bool { return refs[i].Last >= offset })
}

// Find returns the entry that holds offset, or the first behind it that is not
// dead. ok is false at and behind the remote end. The only error is *NeedPage.
func (h *Head) Find(offset int64, page func(PageRef) *Page) (e Entry, ok bool, err error) {
	if start := h.RemoteStart(); offset < start {
		offset = start
	}
	in := func(entries []Entry) (Entry, bool, error) {
		if l := live(entries, offset); len(l) > 0 {
			return l[0], true, nil
		}
		return Entry{}, false, nil
	}
	if len(h.Tail) > 0 && offset >= h.Tail[0].Base || len(h.Pages) == 0 && h.Index == nil {
		return in(h.Tail)
	}
	refs := h.Pages
	if h.Index != nil && offset <= h.Index.Last {
		p := page(*h.Index)
		if p == nil {
			return Entry{}, false, &NeedPage{*h.Index}
		}
		refs = p.Refs
	}
	if i := indexOf(refs, offset); i < len(refs) {
		p := page(refs[i])
		if p == nil {
			return Entry{}, false, &NeedPage{refs[i]}
		}
		return in(p.Entries)
	}
	return in(h.Tail)
}

// FindTimestamp returns the first entry at or behind offset from, not dead,
// whose largest timestamp is ts or later. It looks at all maxima: timestamps are
// not monotone. The only error is *NeedPage.
func (h *Head) FindTimestamp(ts, from int64, page func(PageRef) *Page) (e Entry, ok bool, err error) {
	from = max(from, h.LogStart)
	in := func(entries []Entry) bool {
		for _, x := range live(entries, from) {
			if x.MaxTimestamp >= ts {
				e, ok = x, true
				return true
			}
		}
		return false
	}
	skip := func(r PageRef) bool { return r.Last < from || r.MaxTimestamp < ts }
	pages := func(refs []PageRef) (bool, error) {
		for _, r := range refs {
			if skip(r) {
				continue
			}
			p := page(r)
			if p == nil {
				return false, &NeedPage{r}
			}
			if in(p.Entries) {
				return true, nil
			}
		}
		return false, nil
	}
	if h.Index != nil && !skip(*h.Index) {
		p := page(*h.Index)
		if p == nil {
			return Entry{}, false, &NeedPage{*h.Index}
		}
		if done, err := pages(p.Refs); done || err != nil {
			return e, ok, err
		}
	}
	if done, err := pages(h.Pages); done || err != nil {
		return e, ok, err
	}
	in(h.Tail)
	return e, ok, nil
}
