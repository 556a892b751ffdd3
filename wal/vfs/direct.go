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
	// directChunk is what one call writes; the next chunk is put together meanwhile.
	directChunk = 512 << 10
	// directDepth is how many chunks of a vector are being written at a time: a disk that is asked for one thing after
	// the other is slower than one that can choose.
	directDepth = 4
)

// bounces are aligned buffers, as what is written lies wherever requests have put it.
var bounces = sync.Pool{New: func() any {
	b := make([]byte, directChunk+directAlign)
	n := int(-uintptr(unsafe.Pointer(&b[0])) & (directAlign - 1))
	b = b[n : n+directChunk : n+directChunk]
	return &b
}}

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
	if size <= directChunk {
		b := bounces.Get().(*[]byte)
		defer bounces.Put(b)
		gather((*b)[:size], bufs, 0)
		w, err := pwriteAll(fd, (*b)[:size], off)
		return int64(w), err
	}
	type chunk struct {
		n   int
		err error
	}
	chunks := make([]chunk, (size+directChunk-1)/directChunk)
	depth := min(directDepth, len(chunks))
	free := make(chan *[]byte, depth)
	for range depth {
		free <- bounces.Get().(*[]byte)
	}
	var wg sync.WaitGroup
	skip := 0
	for i := range chunks {
		b := <-free
		part := (*b)[:min(directChunk, size-i*directChunk)]
		bufs, skip = gather(part, bufs, skip)
		write := func() {
			chunks[i].n, chunks[i].err = pwriteAll(fd, part, off+int64(i)*directChunk)
			free <- b
		}
		if i == len(chunks)-1 {
			write()
		} else {
			wg.Go(write)
		}
	}
	wg.Wait()
	for range depth {
		bounces.Put(<-free)
	}
	for _, c := range chunks {
		n += int64(c.n)
		if c.err != nil {
			return n, c.err
		}
	}
	return n, nil
}

// gather fills b with what bufs hold behind the first skip bytes, and returns what is left of them.
func gather(b []byte, bufs [][]byte, skip int) (rest [][]byte, skipped int) {
	for len(b) > 0 {
		n := copy(b, bufs[0][skip:])
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
