package brokertest

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/varve/varve/wal/vfs"
)

// disk is a process's way to its disk: it takes time, may be held up, and ends with the process.
type disk struct {
	*vfs.Mem
	ctx context.Context // of the process

	mu      sync.Mutex
	changed sync.Cond
	rnd     *rand.Rand
	held    bool
	slow    bool
}

func newDisk(ctx context.Context, mem *vfs.Mem, seed uint64) *disk {
	d := &disk{Mem: mem, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 0x6469736b))}
	d.changed.L = &d.mu
	context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.changed.Broadcast()
	})
	return d
}

// Hold has operations wait until it is called again without.
func (d *disk) Hold(held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = held
	d.changed.Broadcast()
}

// Slow has every fsync take a tenth of a second and more: whoever counts on what is not synced yet is found out when the
// power goes.
func (d *disk) Slow(slow bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = slow
}

// ready waits while the disk is held up; with slow, it takes the time of an fsync.
func (d *disk) ready(slow bool) error {
	d.mu.Lock()
	for d.held && d.ctx.Err() == nil {
		d.changed.Wait()
	}
	takes := time.Duration(0)
	if slow {
		takes = 100*time.Microsecond + time.Duration(d.rnd.Int64N(int64(2*time.Millisecond)))
		if d.slow {
			takes = time.Duration(100+d.rnd.IntN(300)) * time.Millisecond
		} else if d.rnd.IntN(30) == 0 {
			takes *= 20
		}
	}
	d.mu.Unlock()
	if slow {
		time.Sleep(takes)
	}
	if d.ctx.Err() != nil {
		return vfs.ErrCrashed
	}
	return nil
}

func (d *disk) open(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &diskFile{f, d}, nil
}

func (d *disk) Create(name string) (vfs.File, error) {
	if err := d.ready(false); err != nil {
		return nil, err
	}
	return d.open(d.Mem.Create(name))
}

func (d *disk) Open(name string) (vfs.File, error) {
	if err := d.ready(false); err != nil {
		return nil, err
	}
	return d.open(d.Mem.Open(name))
}

func (d *disk) Remove(name string) error {
	if err := d.ready(false); err != nil {
		return err
	}
	return d.Mem.Remove(name)
}

func (d *disk) Rename(from, to string) error {
	if err := d.ready(false); err != nil {
		return err
	}
	return d.Mem.Rename(from, to)
}

func (d *disk) OpenDir(name string) (vfs.Dir, error) {
	dir, err := d.Mem.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return diskDir{dir, d}, nil
}

type diskDir struct {
	vfs.Dir
	d *disk
}

func (x diskDir) Sync() error {
	if err := x.d.ready(true); err != nil {
		return err
	}
	return x.Dir.Sync()
}

// Lock never finds the lock of a process before: it ended with it.
func (d *disk) Lock(name string) (io.Closer, error) { return diskLock{d.Mem.Place(name)}, nil }

type diskLock struct{ place string }

func (l diskLock) Place() string { return l.place }
func (l diskLock) Close() error  { return nil }

type diskFile struct {
	vfs.File
	d *disk
}

func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.d.ready(false); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.ready(false); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *diskFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	if err := f.d.ready(false); err != nil {
		return 0, err
	}
	return f.File.WriteVAt(bufs, off)
}

func (f *diskFile) Allocate(size int64) error {
	if err := f.d.ready(false); err != nil {
		return err
	}
	return f.File.Allocate(size)
}

func (f *diskFile) Sync() error {
	if err := f.d.ready(true); err != nil {
		return err
	}
	return f.File.Sync()
}
