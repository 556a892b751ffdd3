package vfs

import (
	"io"
	"sync"
	"syscall"
)

// Op names an operation for fault injection.
type Op string

// The operations that can be made to fail.
const (
	OpCreate   Op = "create"
	OpOpen     Op = "open"
	OpRemove   Op = "remove"
	OpRename   Op = "rename"
	OpSyncDir  Op = "syncdir"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpAllocate Op = "allocate"
	OpSync     Op = "sync"
)

// Fault is what happens to an operation. The zero value is that it goes well.
type Fault struct {
	Err   error // returned
	Short int   // of a write: so many bytes are written before Err, or before io.ErrShortWrite without one; of a read likewise, EIO without one
	Flip  int   // of a read that goes well: this bit of what was read is flipped, counted from 1
}

// Faulty wraps a file system with a decision for every operation. The decision is called without locks, so it may
// count, wait, or look at the name.
type Faulty struct {
	FS
	mu     sync.Mutex
	decide func(op Op, name string) Fault
}

// NewFaulty wraps fs; nothing fails until Decide says so.
func NewFaulty(fs FS) *Faulty { return &Faulty{FS: fs} }

// Decide sets what is asked for every operation; nil lets all go well.
func (f *Faulty) Decide(decide func(op Op, name string) Fault) {
	f.mu.Lock()
	f.decide = decide
	f.mu.Unlock()
}

func (f *Faulty) fault(op Op, name string) Fault {
	f.mu.Lock()
	d := f.decide
	f.mu.Unlock()
	if d == nil {
		return Fault{}
	}
	return d(op, name)
}

// Together implements vfs.Together, if the file system that is wrapped does.
func (f *Faulty) Together() bool {
	t, ok := f.FS.(Together)
	return ok && t.Together()
}

// Create implements FS.
func (f *Faulty) Create(name string) (File, error) {
	if x := f.fault(OpCreate, name); x.Err != nil {
		return nil, x.Err
	}
	return f.wrap(f.FS.Create(name))(name)
}

// Open implements FS.
func (f *Faulty) Open(name string) (File, error) {
	if x := f.fault(OpOpen, name); x.Err != nil {
		return nil, x.Err
	}
	return f.wrap(f.FS.Open(name))(name)
}

func (f *Faulty) wrap(file File, err error) func(name string) (File, error) {
	return func(name string) (File, error) {
		if err != nil {
			return nil, err
		}
		return &faultyFile{File: file, fs: f, name: name}, nil
	}
}

// Remove implements FS.
func (f *Faulty) Remove(name string) error {
	if x := f.fault(OpRemove, name); x.Err != nil {
		return x.Err
	}
	return f.FS.Remove(name)
}

// Rename implements FS.
func (f *Faulty) Rename(from, to string) error {
	if x := f.fault(OpRename, from); x.Err != nil {
		return x.Err
	}
	return f.FS.Rename(from, to)
}

// OpenDir implements FS. What fails is Sync of it.
func (f *Faulty) OpenDir(dir string) (Dir, error) {
	d, err := f.FS.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	return faultyDir{d, f, dir}, nil
}

type faultyDir struct {
	Dir
	fs   *Faulty
	name string
}

func (d faultyDir) Sync() error {
	if x := d.fs.fault(OpSyncDir, d.name); x.Err != nil {
		return x.Err
	}
	return d.Dir.Sync()
}

type faultyFile struct {
	File
	fs    *Faulty
	name  string
	begun later
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	x := f.fs.fault(OpRead, f.name)
	if x.Short > 0 && x.Short < len(p) {
		n, err := f.File.ReadAt(p[:x.Short], off)
		if err == nil {
			if err = x.Err; err == nil {
				err = syscall.EIO
			}
		}
		return n, err
	}
	if x.Err != nil {
		return 0, x.Err
	}
	n, err := f.File.ReadAt(p, off)
	if bit := x.Flip - 1; bit >= 0 && bit/8 < n {
		p[bit/8] ^= 1 << (bit % 8)
	}
	return n, err
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.WriteVAt([][]byte{p}, off)
	return int(n), err
}

func (f *faultyFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	x := f.fs.fault(OpWrite, f.name)
	if x.Short > 0 {
		var cut [][]byte
		left := x.Short
		for _, b := range bufs {
			b = b[:min(left, len(b))]
			cut = append(cut, b)
			left -= len(b)
		}
		n, err := f.File.WriteVAt(cut, off)
		if err == nil {
			if err = x.Err; err == nil {
				err = io.ErrShortWrite
			}
		}
		return n, err
	}
	if x.Err != nil {
		return 0, x.Err
	}
	return f.File.WriteVAt(bufs, off)
}

// BeginWrite implements AsyncWriter.
func (f *faultyFile) BeginWrite(b []byte, off int64) bool {
	f.begun = later{b, off}
	return true
}

// EndWrite implements AsyncWriter.
func (f *faultyFile) EndWrite() (int64, error) {
	return f.WriteVAt([][]byte{f.begun.b}, f.begun.off)
}

func (f *faultyFile) Allocate(size int64) error {
	if x := f.fs.fault(OpAllocate, f.name); x.Err != nil {
		return x.Err
	}
	return f.File.Allocate(size)
}

func (f *faultyFile) Sync() error {
	if x := f.fs.fault(OpSync, f.name); x.Err != nil {
		return x.Err
	}
	return f.File.Sync()
}
