package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// ErrCrashed is what every operation of a crashed Mem returns.
var ErrCrashed = errors.New("vfs: the file system has crashed")

// Mem is a file system in memory that knows what is durable. Crash clones it as a machine that lost power would
// find it: what was synced is there, and of the rest a subset that a seed decides, down to single sectors of a
// write and single entries of a directory.
type Mem struct {
	mu      sync.Mutex
	live    map[string]*inode // by name; what running code sees
	durable map[string]*inode // as of the last Sync of a directory, by name
	pending []dirOp           // since
	locks   map[string]bool
	ops     int // operations that change something, counted from 1
	crashAt int // 0: never
	dead    bool
	limit   int64  // bytes of all files; 0: none
	machine uint64 // kept by clones: what is found where it was
	// Hook, if set, is told of each operation that changes something, before it.
	Hook func(n int, op, name string)
}

type inode struct {
	data   []byte // what running code sees
	synced []byte // as of the last Sync
	writes []memWrite
}

type memWrite struct {
	off int64
	b   []byte
}

type dirOp struct {
	from, to string // to: created or renamed to; "": removed
	node     *inode
}

var machines atomic.Uint64

// NewMem returns an empty file system, of a machine of its own.
func NewMem() *Mem {
	return &Mem{live: map[string]*inode{}, durable: map[string]*inode{}, locks: map[string]bool{}, machine: machines.Add(1)}
}

// Together implements vfs.Together.
func (m *Mem) Together() bool { return true }

// CrashAt lets the file system die at the nth operation from now that changes something: that operation may have
// happened or not, no later one does. Zero takes it back.
func (m *Mem) CrashAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashAt = 0
	if n > 0 {
		m.crashAt = m.ops + n
	}
}

// Ops is how many operations have changed something.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Crashed says whether it has died.
func (m *Mem) Crashed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// SetLimit bounds the bytes of all files together; writes beyond it fail with ENOSPC.
func (m *Mem) SetLimit(n int64) {
	m.mu.Lock()
	m.limit = n
	m.mu.Unlock()
}

// Clone returns what another process would find after this one was killed: everything that was written.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMem()
	c.limit, c.machine = m.limit, m.machine
	for name, n := range m.live {
		d := slices.Clone(n.data)
		c.live[name] = &inode{data: d, synced: slices.Clone(d)}
		c.durable[name] = c.live[name]
	}
	return c
}

// Kill returns what another process finds after this one was killed, as Clone does, on a machine that still has to make durable
// what this one did not: it may lose power later.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMem()
	c.limit, c.machine = m.limit, m.machine
	same := map[*inode]*inode{}
	of := func(n *inode) *inode {
		if n != nil && same[n] == nil {
			same[n] = &inode{data: slices.Clone(n.data), synced: slices.Clone(n.synced), writes: slices.Clone(n.writes)}
		}
		return same[n]
	}
	for name, n := range m.live {
		c.live[name] = of(n)
	}
	for name, n := range m.durable {
		c.durable[name] = of(n)
	}
	for _, op := range m.pending {
		c.pending = append(c.pending, dirOp{op.from, op.to, of(op.node)})
	}
	return c
}

// Crash returns what is found after power was lost: all that was synced, and of the rest what the seed picks.
func (m *Mem) Crash(seed uint64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 0x7661727665))
	c := NewMem()
	c.limit, c.machine = m.limit, m.machine
	names := map[string]*inode{}
	for name, n := range m.durable {
		names[name] = n
	}
	for _, op := range m.pending {
		if rng.IntN(2) == 0 {
			continue
		}
		if op.from != "" {
			if names[op.from] != op.node {
				continue // what it renames or removes was not kept
			}
			delete(names, op.from)
		}
		if op.to != "" {
			names[op.to] = op.node
		}
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	for _, name := range sorted {
		n := names[name]
		d := slices.Clone(n.synced)
		for _, w := range n.writes {
			switch rng.IntN(4) {
			case 0: // lost
			case 1:
				d = put(d, w.b, w.off)
			default: // torn
				sector := int64(512)
				if rng.IntN(2) == 0 {
					sector = 4096
				}
				for at := w.off; at < w.off+int64(len(w.b)); {
					end := min((at/sector+1)*sector, w.off+int64(len(w.b)))
					if rng.IntN(2) == 0 {
						d = put(d, w.b[at-w.off:end-w.off], at)
					}
					at = end
				}
			}
		}
		c.live[name] = &inode{data: d, synced: slices.Clone(d)}
		c.durable[name] = c.live[name]
	}
	return c
}

// Forget is what a failed fsync leaves on most file systems: what was written to the file since its last good Sync
// stays visible and counts as clean, so that no later Sync makes it durable.
func (m *Mem) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.live[filepath.Clean(name)]; n != nil {
		n.writes = nil
	}
}

// Bytes returns a copy of a file's content, and Put replaces it: tests damage files with them.
func (m *Mem) Bytes(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.live[filepath.Clean(name)]; n != nil {
		return slices.Clone(n.data)
	}
	return nil
}

// Put replaces a file's content, durably.
func (m *Mem) Put(name string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := &inode{data: slices.Clone(b), synced: slices.Clone(b)}
	m.live[filepath.Clean(name)], m.durable[filepath.Clean(name)] = n, n
}

// put writes b into d at off, growing it.
func put(d, b []byte, off int64) []byte {
	if end := off + int64(len(b)); end > int64(len(d)) {
		d = append(d, make([]byte, end-int64(len(d)))...)
	}
	copy(d[off:], b)
	return d
}

// step counts an operation. It says whether the operation takes effect, and with what error it returns. Called
// with mu held.
func (m *Mem) step(op, name string) (apply bool, err error) {
	if m.dead {
		return false, ErrCrashed
	}
	m.ops++
	if m.Hook != nil {
		m.Hook(m.ops, op, name)
	}
	if m.crashAt > 0 && m.ops >= m.crashAt {
		m.dead = true
		return true, ErrCrashed
	}
	return true, nil
}

func notExist(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	apply, err := m.step("create", name)
	if apply {
		n := &inode{}
		m.live[name] = n
		m.pending = append(m.pending, dirOp{to: name, node: n})
	}
	if err != nil {
		return nil, err
	}
	return &memFile{m: m, n: m.live[name], name: name}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, ErrCrashed
	}
	n := m.live[name]
	if n == nil {
		return nil, notExist("open", name)
	}
	return &memFile{m: m, n: n, name: name}, nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.live[name]
	if n == nil {
		return notExist("remove", name)
	}
	apply, err := m.step("remove", name)
	if apply {
		delete(m.live, name)
		m.pending = append(m.pending, dirOp{from: name, node: n})
	}
	return err
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	from, to = filepath.Clean(from), filepath.Clean(to)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.live[from]
	if n == nil {
		return notExist("rename", from)
	}
	apply, err := m.step("rename", from)
	if apply {
		delete(m.live, from)
		m.live[to] = n
		m.pending = append(m.pending, dirOp{from: from, to: to, node: n})
	}
	return err
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, ErrCrashed
	}
	var out []string
	for name := range m.live {
		if base, ok := strings.CutPrefix(name, dir+string(filepath.Separator)); ok && !strings.ContainsRune(base, filepath.Separator) {
			out = append(out, base)
		}
	}
	slices.Sort(out)
	return out, nil
}

// MkdirAll implements FS; directories are there when a file is in them.
func (m *Mem) MkdirAll(string) error { return nil }

// OpenDir implements FS. There is one journal for all directories.
func (m *Mem) OpenDir(dir string) (Dir, error) { return memDir{m, dir}, nil }

type memDir struct {
	m   *Mem
	dir string
}

func (memDir) Close() error { return nil }

func (d memDir) Sync() error {
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step("syncdir", d.dir); err != nil {
		return err
	}
	m.durable = map[string]*inode{}
	for name, n := range m.live {
		m.durable[name] = n
	}
	m.pending = nil
	return nil
}

type memLock struct {
	m    *Mem
	name string
}

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.locks, l.name)
	return nil
}

// Lock implements FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[name] {
		return nil, fmt.Errorf("%w: %s", ErrLocked, name)
	}
	m.locks[name] = true
	return memLock{m, name}, nil
}

// Place is the place of a lock on that name. See Placer.
func (m *Mem) Place(name string) string {
	return fmt.Sprintf("mem-%d/%s", m.machine, filepath.Clean(name))
}

// Place implements Placer.
func (l memLock) Place() string { return l.m.Place(l.name) }

// Free implements FS.
func (m *Mem) Free(string) (free, size int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limit == 0 {
		return 1 << 40, 1 << 40, nil
	}
	return max(m.limit-m.used(), 0), m.limit, nil
}

func (m *Mem) used() (n int64) {
	for _, f := range m.live {
		n += int64(len(f.data))
	}
	return n
}

type memFile struct {
	m     *Mem
	n     *inode
	name  string
	begun later
}

// later is an AsyncWriter's write that is done when it is waited for.
type later struct {
	b   []byte
	off int64
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, ErrCrashed
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) write(b []byte, off int64) error {
	apply, err := f.m.step("write", f.name)
	if !apply {
		return err
	}
	if grow := off + int64(len(b)) - int64(len(f.n.data)); f.m.limit > 0 && grow > 0 && f.m.used()+grow > f.m.limit {
		return &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	f.n.data = put(f.n.data, b, off)
	f.n.writes = append(f.n.writes, memWrite{off, b})
	return err
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.write(slices.Clone(p), off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *memFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	all := slices.Concat(bufs...)
	if err := f.write(all, off); err != nil {
		return 0, err
	}
	return int64(len(all)), nil
}

// BeginWrite implements AsyncWriter.
func (f *memFile) BeginWrite(b []byte, off int64) bool {
	f.begun = later{b, off}
	return true
}

// EndWrite implements AsyncWriter.
func (f *memFile) EndWrite() (int64, error) { return f.WriteVAt([][]byte{f.begun.b}, f.begun.off) }

func (f *memFile) Allocate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return ErrCrashed
	}
	if f.m.limit > 0 && f.m.used()+size-int64(len(f.n.data)) > f.m.limit {
		return &fs.PathError{Op: "allocate", Path: f.name, Err: syscall.ENOSPC}
	}
	if n := size - int64(len(f.n.data)); n > 0 {
		return f.write(make([]byte, n), int64(len(f.n.data)))
	}
	return nil
}

func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if _, err := f.m.step("sync", f.name); err != nil {
		return err
	}
	// What the durable copy lacks is exactly the writes since.
	for _, w := range f.n.writes {
		f.n.synced = put(f.n.synced, w.b, w.off)
	}
	f.n.writes = nil
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *memFile) Close() error { return nil }
