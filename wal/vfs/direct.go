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
	m, err := unix.Mmap(-1, 0, 2*hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		m = make([]byte, 2*hugePage)
		s.queue.none = true // which might outlive it
	}
	s.mem = m[-uintptr(unsafe.Pointer(&m[0]))&(hugePage-1):][:directDepth*directChunk]
	if err == nil {
		unix.Madvise(s.mem, unix.MADV_HUGEPAGE) // a kernel without them gives small ones
	}
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
	s := takeStage()
	n = int64(size)
	// settle takes note of what became of a chunk, and writes what is left of it.
	settle := func(c int, done int, e error) {
		w := &s.writes[c]
		if e == nil && done < len(w.part) {
			var more int
			more, e = pwriteAll(fd, w.part[done:], w.off+int64(done))
			done += more
		}
		if upTo := w.off - off + int64(done); e != nil && upTo < n {
			n, err = upTo, e
		}
		s.free = append(s.free, c)
	}
	skip := 0
	for at := 0; at < size; {
		if len(s.free) == 0 {
			if e := s.queue.wait(1, settle); e != nil {
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
			settle(c, 0, nil)
		} else {
			s.queue.submit(fd, c, w.part, w.off)
		}
	}
	if e := s.queue.wait(directDepth-len(s.free), settle); e != nil {
		return 0, e
	}
	s.giveBack()
	return n, err
}

// gather fills b with what bufs hold behind the first skip bytes, and returns what is left of them.
func gather(b []byte, bufs [][]byte, skip int) (rest [][]byte, skipped int) {
	for len(b) > 0 {
		n := stream(b, bufs[0][skip:])
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
