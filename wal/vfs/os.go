package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// OS is the operating system's file system. What WriteVAt writes in whole pages goes to the disk directly, from an
// aligned copy, where the file system can do that (O_DIRECT): through the page cache it costs a page for each 4 KiB,
// up to twice the processor time, and a sync that must first find what is dirty. Reads go through the page cache.
type OS struct {
	Buffered bool // all writes go through the page cache
	// KeepFree is what Allocate leaves of the disk, for others whose writes must not fail: it refuses with ENOSPC before.
	KeepFree int64
}

type osFile struct {
	*os.File
	fd       int
	buffered bool
	keepFree int64
	// Of the one goroutine that writes.
	direct direct
	begun  struct {
		stage *stage
		b     []byte
		off   int64
	}
}

func (o OS) file(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &osFile{File: f, fd: int(f.Fd()), buffered: o.Buffered, keepFree: o.KeepFree}, nil
}

// Together implements vfs.Together: such a piece goes to the disk as it is.
func (o OS) Together() bool { return !o.Buffered }

// Create implements FS.
func (o OS) Create(name string) (File, error) {
	return o.file(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600))
}

// Open implements FS.
func (o OS) Open(name string) (File, error) { return o.file(os.OpenFile(name, os.O_RDWR, 0)) }

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// List implements FS.
func (OS) List(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(es))
	for _, e := range es {
		out = append(out, e.Name())
	}
	slices.Sort(out)
	return out, nil
}

// MkdirAll implements FS.
func (OS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

// OpenDir implements FS.
func (OS) OpenDir(dir string) (Dir, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Lock implements FS with flock, which ends with the process however it ends.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, name)
		}
		return nil, fmt.Errorf("vfs: lock %s: %w", name, err)
	}
	return osLock{f}, nil
}

type osLock struct{ *os.File }

// bootID is drawn by the kernel when it starts: the machine, as long as it runs.
const bootID = "/proc/sys/kernel/random/boot_id"

// Place implements Placer: which file a number is, within a file system, within a running kernel. A container that is
// started again on the same volume is in the same place; a copy, another machine, and this one after it was started
// anew are not.
func (l osLock) Place() string {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return ""
	}
	var st unix.Stat_t
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Fstat(int(l.Fd()), &st)
	}
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%x/%x", strings.TrimSpace(string(boot)), st.Dev, st.Ino)
}

// Free implements FS.
func (OS) Free(dir string) (free, size int64, err error) {
	var st unix.Statfs_t
	for {
		if err := unix.Statfs(dir, &st); err == nil {
			return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
		} else if err != unix.EINTR {
			return 0, 0, err
		}
	}
}

// Sync is fdatasync: for a file whose blocks were written before, it writes data and no metadata.
func (f *osFile) Sync() error {
	for {
		if err := unix.Fdatasync(f.fd); err != unix.EINTR {
			return err
		}
	}
}

func (f *osFile) Allocate(size int64) error {
	if f.keepFree > 0 {
		var st unix.Stat_t
		var disk unix.Statfs_t
		if err := errors.Join(unix.Fstat(f.fd, &st), unix.Fstatfs(f.fd, &disk)); err != nil {
			return err
		}
		// What a file has is counted in 512 bytes, whatever the file system's blocks are.
		if more := size - st.Blocks*512; more > 0 && int64(disk.Bavail)*int64(disk.Bsize)-more < f.keepFree {
			return unix.ENOSPC
		}
	}
	for {
		switch err := unix.Fallocate(f.fd, 0, 0, size); err {
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return nil
		default:
			return err
		}
	}
}

// maxVector is the kernel's bound on the buffers of one call.
const maxVector = 1024

// WriteVAt implements File.
func (f *osFile) WriteVAt(bufs [][]byte, off int64) (n int64, err error) {
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	if !f.buffered && size > 0 && size%directAlign == 0 && off%directAlign == 0 {
		if fd, ok := f.direct.of(f.fd); ok {
			if n, err := writeDirect(fd, bufs, size, off); err != unix.EINVAL {
				return n, err
			}
			f.direct.close() // this disk wants more of it than pages: all of it again, in the other way
		}
	}
	return f.writeBuffered(bufs, off)
}

// BeginWrite implements AsyncWriter, for pages that go to the disk directly.
func (f *osFile) BeginWrite(b []byte, off int64) bool {
	if f.buffered || len(b) == 0 || len(b)%directAlign != 0 || off%directAlign != 0 || !aligned(b) {
		return false
	}
	fd, ok := f.direct.of(f.fd)
	if !ok {
		return false
	}
	f.begun.stage, f.begun.b, f.begun.off = beginDirect(fd, b, off), b, off
	return f.begun.stage != nil
}

// EndWrite implements AsyncWriter.
func (f *osFile) EndWrite() (int64, error) {
	x := f.begun
	f.begun.stage, f.begun.b = nil, nil
	n, err := x.stage.end()
	if err == unix.EINVAL {
		f.direct.close() // as in WriteVAt
		return f.writeBuffered([][]byte{x.b}, x.off)
	}
	return n, err
}

func (f *osFile) writeBuffered(bufs [][]byte, off int64) (n int64, err error) {
	for {
		for len(bufs) > 0 && len(bufs[0]) == 0 {
			bufs = bufs[1:]
		}
		if len(bufs) == 0 {
			return n, nil
		}
		w, err := unix.Pwritev(f.fd, bufs[:min(len(bufs), maxVector)], off+n)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if w == 0 {
			return n, io.ErrShortWrite
		}
		n += int64(w)
		for w > 0 {
			if w < len(bufs[0]) {
				bufs[0] = bufs[0][w:]
				break
			}
			w -= len(bufs[0])
			bufs = bufs[1:]
		}
	}
}

// Close implements File.
func (f *osFile) Close() error {
	f.direct.close()
	return f.File.Close()
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
