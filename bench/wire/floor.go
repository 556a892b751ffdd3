package main

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// serveFloor is the bare server: the least work that can be called a durable
// produce, and a fetch from memory.
func serveFloor(addr, dir string) error {
	f, err := os.Create(filepath.Join(dir, "floor"))
	if err != nil {
		return err
	}
	const fileBytes = 1 << 30
	zero := make([]byte, 1<<20)
	for range fileBytes / len(zero) {
		if _, err := f.Write(zero); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	w := &floorWriter{f: f, wake: make(chan struct{}, 1), size: fileBytes}
	go w.run()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go floorConn(c, w)
	}
}

type floorItem struct {
	buf  []byte
	done chan<- []byte
}

type floorWriter struct {
	f    *os.File
	mu   sync.Mutex
	q    []floorItem
	wake chan struct{}
	pos  int64
	size int64
}

func (w *floorWriter) run() {
	var vec [][]byte
	for range w.wake {
		w.mu.Lock()
		q := w.q
		w.q = nil
		w.mu.Unlock()
		vec = vec[:0]
		n := int64(0)
		for _, it := range q {
			vec = append(vec, it.buf)
			n += int64(len(it.buf))
		}
		if len(vec) == 0 {
			continue
		}
		if w.pos+n > w.size {
			w.pos = 0
		}
		for off, v := w.pos, vec; len(v) > 0; {
			k := min(len(v), 1024)
			m, err := unix.Pwritev(int(w.f.Fd()), v[:k], off)
			if err != nil {
				panic(err)
			}
			off += int64(m)
			v = v[k:] // short writes do not happen on a local file with room
		}
		if err := unix.Fdatasync(int(w.f.Fd())); err != nil {
			panic(err)
		}
		w.pos += n
		for _, it := range q {
			it.done <- it.buf
		}
	}
}

var floorTable = crc32.MakeTable(crc32.Castagnoli)

// The smallest answers that the load accepts: it reads sizes only.
var produceAnswer = append([]byte{0, 0, 0, 40}, make([]byte, 40)...)

func floorConn(c net.Conn, w *floorWriter) {
	defer c.Close()
	done := make(chan []byte, 64)
	answers := make(chan net.Buffers, 64)
	free := make(chan []byte, 64)
	go func() {
		for b := range done {
			give(free, b)
			answers <- net.Buffers{produceAnswer}
		}
	}()
	go func() {
		for a := range answers {
			bufs := a
			for len(answers) > 0 && len(bufs) < 64 {
				bufs = append(bufs, <-answers...)
			}
			if _, err := bufs.WriteTo(c); err != nil {
				return
			}
		}
	}()
	var served []byte
	r := newFloorReader(c)
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		var b []byte
		select {
		case b = <-free:
		default:
		}
		if cap(b) < n {
			b = make([]byte, n)
		}
		b = b[:n]
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		if key := binary.BigEndian.Uint16(b); key == 1 {
			// A fetch: the size asked for, from memory.
			size := int(binary.BigEndian.Uint32(b[8+2+4+1+4+4+4:]))
			if len(served) < size {
				served = make([]byte, size)
			}
			skeleton := make([]byte, 4, 64)
			binary.BigEndian.PutUint32(skeleton, uint32(60+size))
			answers <- net.Buffers{append(skeleton, make([]byte, 60)...), served[:size]}
			give(free, b)
			continue
		}
		crc32.Checksum(b, floorTable)
		w.mu.Lock()
		w.q = append(w.q, floorItem{b, done})
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// give keeps a buffer for the next request.
func give(free chan []byte, b []byte) {
	select {
	case free <- b:
	default:
	}
}

// newFloorReader reads small frames through a buffer and large ones straight.
func newFloorReader(c net.Conn) io.Reader { return &floorReader{c: c, buf: make([]byte, 128<<10)} }

type floorReader struct {
	c    net.Conn
	buf  []byte
	r, w int
}

func (f *floorReader) Read(p []byte) (int, error) {
	if f.r == f.w {
		if len(p) >= len(f.buf) {
			return f.c.Read(p)
		}
		n, err := f.c.Read(f.buf)
		if n == 0 {
			return 0, err
		}
		f.r, f.w = 0, n
	}
	n := copy(p, f.buf[f.r:f.w])
	f.r += n
	return n, nil
}
