package wal

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// partTable finds partitions by their local ids. Every append, every read and every high watermark looks one up, on all
// cores: that takes no lock. Local ids are given out one after the other, so pages of them are full, or nearly; the
// directory of the pages is replaced whole when one comes or goes.
type partTable struct {
	pages atomic.Pointer[map[PartitionID]*partPage] // by id / partsOfPage; never changed, and nil when empty
	mu    sync.Mutex                                // held to change anything
	n     int
}

const partsOfPage = 256

type partPage struct {
	at [partsOfPage]atomic.Pointer[part]
	n  int
}

func (t *partTable) directory() map[PartitionID]*partPage {
	if m := t.pages.Load(); m != nil {
		return *m
	}
	return nil
}

// get returns nil if there is none.
func (t *partTable) get(id PartitionID) *part {
	if page := t.directory()[id/partsOfPage]; page != nil {
		return page.at[id%partsOfPage].Load()
	}
	return nil
}

func (t *partTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

func (t *partTable) put(p *part) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.directory()
	page := old[p.id/partsOfPage]
	if page == nil {
		page = new(partPage)
		pages := make(map[PartitionID]*partPage, len(old)+1)
		maps.Copy(pages, old)
		pages[p.id/partsOfPage] = page
		t.pages.Store(&pages)
	}
	if page.at[p.id%partsOfPage].Swap(p) == nil {
		page.n++
		t.n++
	}
}

func (t *partTable) remove(id PartitionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.directory()
	page := old[id/partsOfPage]
	if page == nil || page.at[id%partsOfPage].Swap(nil) == nil {
		return
	}
	t.n--
	if page.n--; page.n == 0 {
		pages := maps.Clone(old)
		delete(pages, id/partsOfPage)
		t.pages.Store(&pages)
	}
}

// all are those that there are, and some that come or go meanwhile.
func (t *partTable) all() iter.Seq[*part] {
	return func(yield func(*part) bool) {
		for _, page := range t.directory() {
			for i := range page.at {
				if p := page.at[i].Load(); p != nil && !yield(p) {
					return
				}
			}
		}
	}
}

// empty takes all of them out.
func (t *partTable) empty() []*part {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Collect(t.all())
	t.pages.Store(nil)
	t.n = 0
	return all
}
