package tiering

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"sync"
)

func (k partitionKey) compare(o partitionKey) int {
	return cmp.Or(bytes.Compare(k.topic[:], o.topic[:]), cmp.Compare(k.index, o.index))
}

// meta keeps footers and pages in memory: decoded, verified, immutable, by key
// of what never changes. Least recently used goes first. One load per key at a
// time; a load goes on when whoever asked first has left.
type meta struct {
	max int64

	mu      sync.Mutex
	bytes   int64
	entries map[string]*list.Element
	order   *list.List // front: most recently used
	flights map[string]*flight
}

type metaEntry struct {
	key   string
	value any
	cost  int64
}

type flight struct {
	done  chan struct{}
	value any
	err   error
}

func newMeta(max int64) *meta {
	return &meta{max: max, entries: make(map[string]*list.Element), order: list.New(), flights: make(map[string]*flight)}
}

// peek returns what is kept, or nil.
func (m *meta) peek(key string) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil {
		m.order.MoveToFront(e)
		return e.Value.(*metaEntry).value
	}
	return nil
}

// put keeps a value.
func (m *meta) put(key string, value any, cost int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries[key] != nil {
		return
	}
	m.entries[key] = m.order.PushFront(&metaEntry{key, value, cost})
	m.bytes += cost
	for m.bytes > m.max && m.order.Len() > 1 {
		m.remove(m.order.Back())
	}
}

func (m *meta) remove(e *list.Element) {
	x := m.order.Remove(e).(*metaEntry)
	delete(m.entries, x.key)
	m.bytes -= x.cost
}

// drop forgets a key.
func (m *meta) drop(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil {
		m.remove(e)
	}
}

// get returns what is kept or loads it. spawn starts the load's goroutine, or
// tells that it cannot.
func (m *meta) get(ctx context.Context, key string, spawn func(func()) bool, load func() (any, int64, error)) (any, error) {
	m.mu.Lock()
	if e := m.entries[key]; e != nil {
		m.order.MoveToFront(e)
		v := e.Value.(*metaEntry).value
		m.mu.Unlock()
		return v, nil
	}
	f, first := m.flights[key], false
	if f == nil {
		f, first = &flight{done: make(chan struct{})}, true
		m.flights[key] = f
	}
	m.mu.Unlock()
	if first {
		land := func(v any, cost int64, err error) {
			if err == nil {
				m.put(key, v, cost)
			}
			m.mu.Lock()
			f.value, f.err = v, err
			delete(m.flights, key)
			m.mu.Unlock()
			close(f.done)
		}
		if !spawn(func() { land(load()) }) {
			land(nil, 0, ErrClosed)
		}
	}
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
