package objstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mem is a bucket in memory: for tests, and for the mem:// URL. It is strongly consistent.
type Mem struct {
	name string

	mu      sync.RWMutex
	objects map[string]memObject
	keys    []string // sorted; rebuilt when dirty
	dirty   bool
}

type memObject struct {
	data     []byte // never changed after Put
	crc      uint32
	modified time.Time
}

// NewMem returns an empty bucket of its own.
func NewMem() *Mem { return &Mem{objects: map[string]memObject{}} }

// Named mem buckets outlive their Close: a broker that restarts inside one test process finds its objects again.
var (
	namedMu sync.Mutex
	named   = map[string]*Mem{}
)

func openMem(name string) *Mem {
	if name == "" {
		return NewMem()
	}
	namedMu.Lock()
	defer namedMu.Unlock()
	m := named[name]
	if m == nil {
		m = NewMem()
		m.name = name
		named[name] = m
	}
	return m
}

// memBody collects a body whose announced size is not believed: memory grows with what really arrives.
type memBody struct{ bytes.Buffer }

func (m *Mem) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	if err := CheckKey(key); err != nil {
		return opError(OpPut, m, "", err)
	}
	var w memBody
	if err := copyBody(ctx, &w, body, size, crc); err != nil {
		return opError(OpPut, m, key, err)
	}
	if err := ctx.Err(); err != nil {
		return opError(OpPut, m, key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.objects[key]; ok {
		if int64(len(old.data)) == size && old.crc == crc {
			return nil
		}
		return opError(OpPut, m, key, ErrExists)
	}
	m.objects[key] = memObject{data: w.Bytes(), crc: crc, modified: time.Now()}
	m.dirty = true
	return nil
}

func (m *Mem) get(ctx context.Context, op Op, key string) (memObject, error) {
	if err := CheckKey(key); err != nil {
		return memObject{}, opError(op, m, "", err)
	}
	if err := ctx.Err(); err != nil {
		return memObject{}, opError(op, m, key, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return memObject{}, opError(op, m, key, ErrNotExist)
	}
	return o, nil
}

func (m *Mem) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	o, err := m.get(ctx, OpGet, key)
	if err != nil {
		return nil, err
	}
	if err := checkRange(key, off, length); err != nil {
		return nil, opError(OpGet, m, "", err)
	}
	if off+length > int64(len(o.data)) {
		return nil, opError(OpGet, m, key, fmt.Errorf("%w: [%d,%d) of %d bytes", ErrRange, off, off+length, len(o.data)))
	}
	return &exactReader{ctx: ctx, r: io.NopCloser(bytes.NewReader(o.data[off : off+length])), key: key, left: length}, nil
}

func (m *Mem) Head(ctx context.Context, key string) (int64, error) {
	o, err := m.get(ctx, OpHead, key)
	return int64(len(o.data)), err
}

func (m *Mem) List(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	if err := checkList(prefix, after); err != nil {
		return nil, false, opError(OpList, m, "", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, false, opError(OpList, m, prefix, err)
	}
	limit = listLimit(limit)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirty {
		m.keys = m.keys[:0]
		for k := range m.objects {
			m.keys = append(m.keys, k)
		}
		slices.Sort(m.keys)
		m.dirty = false
	}
	i, _ := slices.BinarySearch(m.keys, prefix)
	if after >= prefix {
		j, found := slices.BinarySearch(m.keys, after)
		if found {
			j++
		}
		i = max(i, j)
	}
	var out []Info
	for ; i < len(m.keys) && strings.HasPrefix(m.keys[i], prefix); i++ {
		if len(out) == limit {
			return out, true, nil
		}
		o := m.objects[m.keys[i]]
		out = append(out, Info{Key: m.keys[i], Size: int64(len(o.data)), Modified: o.modified})
	}
	return out, false, nil
}

func (m *Mem) Delete(ctx context.Context, keys []string) error {
	for _, k := range keys {
		if err := CheckKey(k); err != nil {
			return opError(OpDelete, m, "", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return opError(OpDelete, m, "", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		if _, ok := m.objects[k]; ok {
			delete(m.objects, k)
			m.dirty = true
		}
	}
	return nil
}

func (m *Mem) String() string { return "mem://" + m.name }

// Close does nothing: the objects stay, so that a test can open what it closed.
func (m *Mem) Close() error { return nil }

// Objects returns the number of objects and their bytes, for tests.
func (m *Mem) Objects() (objects int, bytes int64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, o := range m.objects {
		bytes += int64(len(o.data))
	}
	return len(m.objects), bytes
}
