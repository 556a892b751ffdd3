package image

import "sort"

// chunkMax is the most entries a chunk holds; a chunk that grows past it is
// split in two. Small enough that copying one is cheap (a few KiB), large
// enough that the list of chunks of 100,000 entries is a few thousand words.
const chunkMax = 128

// table is an immutable ordered map. An edit copies one chunk and the list of
// chunks and shares every other chunk with the table it came from, so two
// versions of a large table cost one chunk more than one version does, and
// comparing two versions skips what they share (see diffTables).
//
// A plain map would be copied whole at every change; a balanced tree shares as
// well but costs a pointer per entry and a cache miss per level.
type table[K, V any] struct {
	compare func(a, b K) int
	chunks  []*chunk[K, V]
	count   int
}

// chunk holds entries in ascending key order; never empty inside a table and
// never written after it was published.
type chunk[K, V any] struct {
	keys []K
	vals []V
}

func newTable[K, V any](compare func(a, b K) int) table[K, V] {
	return table[K, V]{compare: compare}
}

func (t table[K, V]) len() int { return t.count }

// locate returns the chunk that holds k or would receive it, the position in
// it, and whether k is there.
func (t table[K, V]) locate(k K) (ci, pos int, found bool) {
	if len(t.chunks) == 0 {
		return 0, 0, false
	}
	ci = sort.Search(len(t.chunks), func(i int) bool { return t.compare(t.chunks[i].keys[0], k) > 0 }) - 1
	if ci < 0 {
		return 0, 0, false
	}
	c := t.chunks[ci]
	pos = sort.Search(len(c.keys), func(i int) bool { return t.compare(c.keys[i], k) >= 0 })
	return ci, pos, pos < len(c.keys) && t.compare(c.keys[pos], k) == 0
}

func (t table[K, V]) get(k K) (V, bool) {
	ci, pos, found := t.locate(k)
	if !found {
		var zero V
		return zero, false
	}
	return t.chunks[ci].vals[pos], true
}

// with returns the table with k set to v.
func (t table[K, V]) with(k K, v V) table[K, V] {
	if len(t.chunks) == 0 {
		t.chunks = []*chunk[K, V]{{keys: []K{k}, vals: []V{v}}}
		t.count = 1
		return t
	}
	ci, pos, found := t.locate(k)
	old := t.chunks[ci]
	if found {
		c := &chunk[K, V]{keys: old.keys, vals: append([]V(nil), old.vals...)}
		c.vals[pos] = v
		t.chunks = replace(t.chunks, ci, 1, c)
		return t
	}
	c := &chunk[K, V]{keys: insert(old.keys, pos, k), vals: insert(old.vals, pos, v)}
	t.count++
	if n := len(c.keys); n > chunkMax {
		// Keys that arrive in ascending order (the usual case when a table is
		// loaded) would leave every chunk half full if the split were even.
		cut := n / 2
		if pos == n-1 && ci == len(t.chunks)-1 {
			cut = n - 1
		}
		left := &chunk[K, V]{keys: c.keys[:cut:cut], vals: c.vals[:cut:cut]}
		right := &chunk[K, V]{keys: append([]K(nil), c.keys[cut:]...), vals: append([]V(nil), c.vals[cut:]...)}
		t.chunks = replace(t.chunks, ci, 1, left, right)
		return t
	}
	t.chunks = replace(t.chunks, ci, 1, c)
	return t
}

// without returns the table without k.
func (t table[K, V]) without(k K) table[K, V] {
	ci, pos, found := t.locate(k)
	if !found {
		return t
	}
	t.count--
	old := t.chunks[ci]
	if len(old.keys) == 1 {
		t.chunks = replace(t.chunks, ci, 1)
		return t
	}
	c := &chunk[K, V]{keys: remove(old.keys, pos), vals: remove(old.vals, pos)}
	// Joining small neighbours keeps the list of chunks proportional to the
	// entries after many deletions.
	if ci+1 < len(t.chunks) && len(c.keys)+len(t.chunks[ci+1].keys) <= chunkMax/2 {
		next := t.chunks[ci+1]
		c.keys = append(c.keys, next.keys...)
		c.vals = append(c.vals, next.vals...)
		t.chunks = replace(t.chunks, ci, 2, c)
		return t
	}
	t.chunks = replace(t.chunks, ci, 1, c)
	return t
}

// each calls f in ascending key order until it returns false.
func (t table[K, V]) each(f func(K, V) bool) {
	for _, c := range t.chunks {
		for i := range c.keys {
			if !f(c.keys[i], c.vals[i]) {
				return
			}
		}
	}
}

// diffTables calls f for every key whose value differs, ascending: prev is the
// zero value for an added key, next for a removed one. Chunks that both tables
// share are skipped, so the cost follows the number of changes.
func diffTables[K any, V comparable](prev, next table[K, V], f func(k K, prev, next V)) {
	var zero V
	var ci, pi, cj, pj int
	for ci < len(prev.chunks) || cj < len(next.chunks) {
		switch {
		case ci == len(prev.chunks):
			c := next.chunks[cj]
			f(c.keys[pj], zero, c.vals[pj])
			cj, pj = step(c.keys, cj, pj)
			continue
		case cj == len(next.chunks):
			c := prev.chunks[ci]
			f(c.keys[pi], c.vals[pi], zero)
			ci, pi = step(c.keys, ci, pi)
			continue
		}
		a, b := prev.chunks[ci], next.chunks[cj]
		if a == b && pi == pj {
			ci, pi, cj, pj = ci+1, 0, cj+1, 0
			continue
		}
		switch c := next.compare(a.keys[pi], b.keys[pj]); {
		case c < 0:
			f(a.keys[pi], a.vals[pi], zero)
			ci, pi = step(a.keys, ci, pi)
		case c > 0:
			f(b.keys[pj], zero, b.vals[pj])
			cj, pj = step(b.keys, cj, pj)
		default:
			if a.vals[pi] != b.vals[pj] {
				f(a.keys[pi], a.vals[pi], b.vals[pj])
			}
			ci, pi = step(a.keys, ci, pi)
			cj, pj = step(b.keys, cj, pj)
		}
	}
}

func step[K any](keys []K, c, p int) (int, int) {
	if p+1 < len(keys) {
		return c, p + 1
	}
	return c + 1, 0
}

func replace[T any](s []T, at, n int, with ...T) []T {
	out := make([]T, 0, len(s)-n+len(with))
	out = append(out, s[:at]...)
	out = append(out, with...)
	return append(out, s[at+n:]...)
}

func insert[T any](s []T, at int, v T) []T { return replace(s, at, 0, v) }
func remove[T any](s []T, at int) []T      { return replace(s, at, 1) }
