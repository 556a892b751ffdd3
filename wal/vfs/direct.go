package vfs

import (
	"fmt"
	"io"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// directAlign is what O_DIRECT asks of offset, length and memory at most.
	directAlign = 4096
	// directChunk is what one write writes; the next chunk is put together meanwhile.
	directChunk = 512 << 10
	// directDepth is how many chunks of a vector are being written at a time: a disk that is asked for one thing after
	// the other is slower than one that can choose.
	directDepth = 4

	hugePage = 2 << 20
)

// stage is where a block is put together for the disk, as what is written lies wherever requests have put it: aligned
// chunks of one huge page, which goes to the disk in one piece where 4 KiB pages would be hundreds.
type stage struct {
	mem    []byte // directDepth chunks
	free   []int  // those that are not being written
	writes [directDepth]struct {
		part []byte
		off  int64
	}
	queue queue

	// Of the write under way.
	fd  int
	off int64
	n   int64 // how much of its beginning is written, of what has ended
	err error
}

// pages are those that nobody uses, by their size. They are not given back to the kernel.
var pages struct {
	sync.Mutex
	free map[int][][]byte
}

// TakePages returns n bytes, a multiple of 2 MiB, that begin with a page, of the kernel's huge ones if it has them. What they
// hold is what they held before.
func TakePages(n int) []byte {
	pages.Lock()
	if f := pages.free[n]; len(f) > 0 {
		b := f[len(f)-1]
		pages.free[n] = f[:len(f)-1]
		pages.Unlock()
		return b
	}
	pages.Unlock()
	b, _ := takePages(n)
	return b
}

// GivePages gives back what TakePages returned, and nobody uses any more.
func GivePages(b []byte) {
	pages.Lock()
	defer pages.Unlock()
	if pages.free == nil {
		pages.free = map[int][][]byte{}
	}
	pages.free[len(b)] = append(pages.free[len(b)], b)
}

// takePages gets n bytes from the kernel; mapped: not as part of the heap.
func takePages(n int) (b []byte, mapped bool) {
	m, err := unix.Mmap(-1, 0, n+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		m = make([]byte, n+hugePage)
	}
	b = m[-uintptr(unsafe.Pointer(&m[0]))&(hugePage-1):][:n:n]
	if err == nil {
		unix.Madvise(b, unix.MADV_HUGEPAGE) // a kernel without them gives small ones
	}
	return b, err == nil
}

// stages are those that nobody uses, the last one given back on top: as many as have written at a time.
var stages struct {
	sync.Mutex
	free []*stage
}

func takeStage() *stage {
	stages.Lock()
	if n := len(stages.free); n > 0 {
		s := stages.free[n-1]
		stages.free = stages.free[:n-1]
		stages.Unlock()
		return s
	}
	stages.Unlock()
	s := &stage{}
	m, mapped := takePages(directDepth * directChunk)
	s.mem = m
	s.queue.none = !mapped // the kernel's might outlive it
	s.queue.byHand = make(chan written, directDepth)
	for i := range directDepth {
		s.free = append(s.free, i)
	}
	return s
}

// giveBack is called when nothing of the stage is being written.
func (s *stage) giveBack() {
	stages.Lock()
	stages.free = append(stages.free, s)
	stages.Unlock()
}

// direct is a second way to a file, around the page cache (open(2), O_DIRECT). Pages of what it writes that are in the
// cache are dropped from it by the kernel; nothing that it writes shares a page with what is written in another way.
type direct struct {
	fd    int // -1: none
	tried bool
}

// of opens the file behind fd once more, whatever it is called by now. ok is false if the file system has no such
// thing, or there is no /proc.
func (d *direct) of(fd int) (direct int, ok bool) {
	if !d.tried {
		d.tried = true
		for {
			var err error
			if d.fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0); err == nil {
				break
			}
			d.fd = -1
			if err != unix.EINTR {
				break
			}
		}
	}
	return d.fd, d.fd >= 0
}

func (d *direct) close() {
	if d.tried && d.fd >= 0 {
		unix.Close(d.fd)
	}
	d.tried, d.fd = true, -1
}

// writeDirect writes the size bytes of bufs, which it leaves as they are, at off. Both are whole pages. n is how much of
// the beginning was written. EINVAL: not to be written in this way.
func writeDirect(fd int, bufs [][]byte, size int, off int64) (n int64, err error) {
	if len(bufs) == 1 && aligned(bufs[0]) {
		n, err := pwriteAll(fd, bufs[0], off)
		return int64(n), err
	}
	s := takeStage()
	s.fd, s.off, s.n, s.err = fd, off, int64(size), nil
	skip := 0
	for at := 0; at < size; {
		if len(s.free) == 0 {
			if e := s.queue.wait(1, s.settle); e != nil {
				return 0, e // and the stage stays away: the disk may still read from it
			}
		}
		c := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		w := &s.writes[c]
		w.part, w.off = s.mem[c*directChunk:][:min(directChunk, size-at)], off+int64(at)
		bufs, skip = gather(w.part, bufs, skip)
		at += len(w.part)
		if size <= directChunk {
			s.settle(c, 0, nil)
		} else {
			s.queue.submit(fd, c, w.part, w.off)
		}
	}
	return s.end()
}

// beginDirect begins to write b, which is all pages, at off. nil: the kernel has no queue for it.
func beginDirect(fd int, b []byte, off int64) *stage {
	s := takeStage()
	if s.queue.open(); s.queue.ctx == 0 {
		s.giveBack()
		return nil
	}
	s.fd, s.off, s.n, s.err = fd, off, int64(len(b)), nil
	c := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.writes[c].part, s.writes[c].off = b, off
	s.queue.submit(fd, c, b, off)
	return s
}

// settle takes note of what became of a chunk, and writes what is left of it.
func (s *stage) settle(c int, done int, err error) {
	w := &s.writes[c]
	if err == nil && done < len(w.part) {
		var more int
		more, err = pwriteAll(s.fd, w.part[done:], w.off+int64(done))
		done += more
	}
	if upTo := w.off - s.off + int64(done); err != nil && upTo < s.n {
		s.n, s.err = upTo, err
	}
	w.part = nil
	s.free = append(s.free, c)
}

// end waits for what is being written, and gives the stage back.
func (s *stage) end() (n int64, err error) {
	if err := s.queue.wait(directDepth-len(s.free), s.settle); err != nil {
		return 0, err // see writeDirect
	}
	n, err = s.n, s.err
	s.giveBack()
	return n, err
}

// aligned says that memory, which is not empty, begins where direct writes may.
func aligned(b []byte) bool { return uintptr(unsafe.Pointer(&b[0]))%directAlign == 0 }

// gather fills b with what bufs hold behind the first skip bytes, and returns what is left of them.
func gather(b []byte, bufs [][]byte, skip int) (rest [][]byte, skipped int) {
	for len(b) > 0 {
		n := Stream(b, bufs[0][skip:])
		b = b[n:]
		if skip += n; skip == len(bufs[0]) {
			bufs, skip = bufs[1:], 0
		}
	}
	return bufs, skip
}

func pwriteAll(fd int, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		w, err := unix.Pwrite(fd, b[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case w == 0:
			return n, io.ErrShortWrite
		default:
			n += w
		}
	}
	return n, nil
}
