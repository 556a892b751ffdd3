package floor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"
)

// conn is one connection: requests in order, answers in order. One that is idle
// is a goroutine and no buffer; answers have a goroutine while there are any.
type conn struct {
	s  *Server
	nc *net.TCPConn

	mu      sync.Mutex
	answers []*answer // owed, in the order of the requests
	sending bool
	ended   bool
}

// answer is what one request gets.
type answer struct {
	c     *conn
	ready bool // under the connection's lock
	none  bool // acks=0
	head  []byte
	parts net.Buffers // behind the head
}

// buffer is what requests are read into, several of them where they are short.
// It is used again when the last one has been dealt with.
type buffer struct {
	b    []byte
	refs atomic.Int32
	pool *sync.Pool
}

func (s *Server) buffer(size int) *buffer {
	class := bits.Len(uint(max(size, readBytes) - 1))
	b, ok := s.buffers[class].Get().(*buffer)
	if !ok {
		b = &buffer{b: make([]byte, 1<<class), pool: &s.buffers[class]}
	}
	b.refs.Store(1)
	return b
}

func (b *buffer) release() {
	if b.refs.Add(-1) == 0 {
		b.pool.Put(b)
	}
}

const readBytes = 256 << 10

func (s *Server) serve(nc *net.TCPConn) {
	c := &conn{s: s, nc: nc}
	err := c.read()
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	nc.Close()
	var sys *net.OpError
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) && !errors.As(err, &sys) {
		fmt.Fprintln(os.Stderr, "floor:", err)
	}
}

// read reads whatever is there into a buffer, handles the whole requests in it
// where they lie, and takes what is left of it on to the next.
func (c *conn) read() error {
	raw, err := c.nc.SyscallConn()
	if err != nil {
		return err
	}
	var cur *buffer
	var r, w int // cur.b[r:w] has not been handled
	defer func() {
		if cur != nil {
			cur.release()
		}
	}()
	for {
		need := 4
		for w-r >= 4 {
			need = 4 + int(binary.BigEndian.Uint32(cur.b[r:]))
			if need < 14 || need > len(c.s.ring)/4 { // more would not fit into the ring beside what is being read
				return fmt.Errorf("a request of %d bytes", need-4)
			}
			if w-r < need {
				break
			}
			cur.refs.Add(1)
			if err := c.handle(cur.b[r+4:r+need], cur); err != nil {
				return err
			}
			r, need = r+need, 4
		}
		switch {
		case cur == nil:
		case r == w:
			cur.release()
			cur, r, w = nil, 0, 0
		case len(cur.b)-r < need || len(cur.b) == w:
			next := c.s.buffer(need)
			w = copy(next.b, cur.b[r:w])
			cur.release()
			cur, r = next, 0
		}
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			if cur == nil {
				cur = c.s.buffer(readBytes)
			}
			end := len(cur.b)
			if need > readBytes { // it has the buffer for itself: what comes behind it would be copied
				end = r + need
			}
			for rerr = unix.EINTR; rerr == unix.EINTR; {
				n, rerr = unix.Read(int(fd), cur.b[w:end])
			}
			if rerr != unix.EAGAIN {
				return true
			}
			if w == 0 { // nobody knows how long it is idle
				cur.release()
				cur = nil
			}
			return false
		})
		switch {
		case err != nil:
			return err
		case rerr != nil:
			return rerr
		case n == 0:
			return io.EOF
		}
		w += n
	}
}

// owe makes room for an answer behind those of earlier requests.
func (c *conn) owe(correlation []byte) *answer {
	a := &answer{c: c, head: make([]byte, 4, 128)}
	a.head = append(a.head, correlation...)
	c.mu.Lock()
	c.answers = append(c.answers, a)
	c.mu.Unlock()
	return a
}

// done says that an answer can go.
func (a *answer) done() {
	a.c.mu.Lock()
	a.ready = true
	a.c.mu.Unlock()
	a.c.send()
}

// send sees to it that what is ready, in order, is sent.
func (c *conn) send() {
	c.mu.Lock()
	start := !c.sending && len(c.answers) > 0 && c.answers[0].ready
	c.sending = c.sending || start
	c.mu.Unlock()
	if start {
		go c.write()
	}
}

func (c *conn) write() {
	var bufs net.Buffers
	for {
		bufs = bufs[:0]
		c.mu.Lock()
		n := 0
		for n < len(c.answers) && c.answers[n].ready && len(bufs) < 512 {
			a := c.answers[n]
			n++
			if a.none {
				continue
			}
			size := len(a.head) - 4
			for _, p := range a.parts {
				size += len(p)
			}
			binary.BigEndian.PutUint32(a.head, uint32(size))
			bufs = append(append(bufs, a.head), a.parts...)
		}
		c.answers = append(c.answers[:0], c.answers[n:]...)
		c.sending = n > 0 && !c.ended
		again := c.sending
		c.mu.Unlock()
		if !again {
			return
		}
		v := bufs
		if _, err := v.WriteTo(c.nc); err != nil {
			c.mu.Lock()
			c.ended, c.sending = true, false
			c.mu.Unlock()
			c.nc.Close()
			return
		}
	}
}

// The versions served: the newest before tagged fields, which need less code.
var served = map[int16][2]int16{0: {3, 8}, 1: {4, 11}, 2: {1, 5}, 3: {0, 8}, 18: {0, 3}, 22: {0, 1}}

// handle deals with a request, which it lets go of.
func (c *conn) handle(b []byte, in *buffer) error {
	key, version := int16(binary.BigEndian.Uint16(b)), int16(binary.BigEndian.Uint16(b[2:]))
	if v, ok := served[key]; key != 18 && (!ok || version < v[0] || version > v[1]) {
		in.release()
		return fmt.Errorf("key %d version %d is not served", key, version)
	}
	f := fields{b: b[8:]}
	f.text()
	a := c.owe(b[4:8])
	var err error
	switch key {
	case 0:
		err = c.produce(f, version, a, in)
	case 1:
		err = c.fetch(f, version, a, in)
	default:
		err = c.other(key, version, f.b, a)
		in.release()
		a.done()
	}
	return err
}

// other are the requests that come once.
func (c *conn) other(key, version int16, body []byte, a *answer) error {
	var resp kmsg.Response
	if key == 18 {
		r := kmsg.NewPtrApiVersionsResponse()
		if resp = r; version > 3 {
			version, r.ErrorCode = 0, 35 // UNSUPPORTED_VERSION
		}
		for k, v := range served {
			r.ApiKeys = append(r.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: k, MinVersion: v[0], MaxVersion: v[1]})
		}
	} else {
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		if err := req.ReadFrom(body); err != nil {
			return err
		}
		switch req := req.(type) {
		case *kmsg.MetadataRequest:
			resp = c.s.metadata(req)
		case *kmsg.ListOffsetsRequest:
			resp = c.s.offsets(req)
		case *kmsg.InitProducerIDRequest:
			r := kmsg.NewPtrInitProducerIDResponse()
			r.ProducerID = c.s.produced.Add(1)
			resp = r
		}
	}
	resp.SetVersion(version)
	a.head = resp.AppendTo(a.head)
	return nil
}

// fields reads a request's fields in turn. Behind the end all are zero, and bad
// is set.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.b) {
		f.bad, f.b = true, nil
		return make([]byte, min(max(n, 0), 8))
	}
	b := f.b[:n]
	f.b = f.b[n:]
	return b
}

func (f *fields) i16() int   { return int(int16(binary.BigEndian.Uint16(f.take(2)))) }
func (f *fields) i32() int   { return int(int32(binary.BigEndian.Uint32(f.take(4)))) }
func (f *fields) i64() int64 { return int64(binary.BigEndian.Uint64(f.take(8))) }

func (f *fields) text() []byte { return f.take(max(f.i16(), 0)) }

var (
	errShort   = errors.New("a request that ends before it should")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func (c *conn) produce(f fields, version int16, a *answer, in *buffer) error {
	f.text() // transactional id
	acks := f.i16()
	f.i32()
	w := write{from: in, answer: a}
	out := a.head
	topics := f.i32()
	out = binary.BigEndian.AppendUint32(out, uint32(topics))
	for range topics {
		name := f.text()
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(name))), name...)
		parts := f.i32()
		out = binary.BigEndian.AppendUint32(out, uint32(parts))
		for range parts {
			index, records := f.i32(), f.take(f.i32())
			if f.bad {
				in.release()
				return errShort
			}
			code := uint16(0)
			if len(records) < 61 || index >= len(c.s.partitions) || crc32.Checksum(records[21:], castagnoli) != binary.BigEndian.Uint32(records[17:]) {
				code = 2 // CORRUPT_MESSAGE
			} else {
				w.batches, w.parts = append(w.batches, records), append(w.parts, int32(index))
				w.n += int64(len(records))
			}
			out = binary.BigEndian.AppendUint32(out, uint32(index))
			out = binary.BigEndian.AppendUint16(out, code)
			out = binary.BigEndian.AppendUint64(out, 0) // offset: nobody asks for it
			out = binary.BigEndian.AppendUint64(out, ^uint64(0))
			if version >= 5 {
				out = binary.BigEndian.AppendUint64(out, 0) // log start
			}
			if version >= 8 {
				out = append(out, 0, 0, 0, 0, 0xff, 0xff) // no errors of records, no message
			}
		}
	}
	a.head, a.none = append(out, 0, 0, 0, 0), acks == 0
	c.s.mu.Lock()
	c.s.q = append(c.s.q, w)
	c.s.mu.Unlock()
	select {
	case c.s.wake <- struct{}{}:
	default:
	}
	return nil
}

// fetch answers with what is there, or waits for it.
func (c *conn) fetch(f fields, version int16, a *answer, in *buffer) error {
	f.i32() // replica
	wait, least, room := f.i32(), f.i32(), f.i32()
	f.take(1) // isolation level
	if version >= 7 {
		f.i64() // session: there is none, the client names its partitions each time
	}
	if f.bad {
		in.release()
		return errShort
	}
	head := len(a.head)
	more := *c.s.newData.Load()
	n, err := c.gather(f, version, room, a)
	if err != nil || n >= least {
		in.release()
		a.done()
		return err
	}
	go func() {
		defer in.release()
		defer a.done()
		deadline := time.NewTimer(time.Duration(wait) * time.Millisecond)
		defer deadline.Stop()
		for n < least {
			late := false
			select {
			case <-more:
			case <-deadline.C:
				late = true
			}
			a.head, a.parts = a.head[:head], nil
			more = *c.s.newData.Load()
			n, _ = c.gather(f, version, room, a)
			if late {
				return
			}
		}
	}()
	return nil
}

// gather lays out an answer: its skeleton, and for every partition what lies in
// the ring.
func (c *conn) gather(f fields, version int16, room int, a *answer) (total int, err error) {
	out := append(a.head, 0, 0, 0, 0) // throttle
	if version >= 7 {
		out = append(out, 0, 0, 0, 0, 0, 0) // error, session
	}
	first := true // the skeleton up to the first records is the answer's head
	cut := func(runs net.Buffers) {
		if first {
			a.head, first = out, false
		} else {
			a.parts = append(a.parts, out)
		}
		a.parts = append(a.parts, runs...)
		out = nil
	}
	topics := f.i32()
	out = binary.BigEndian.AppendUint32(out, uint32(topics))
	for range topics {
		name := f.text()
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(name))), name...)
		parts := f.i32()
		out = binary.BigEndian.AppendUint32(out, uint32(parts))
		for range parts {
			index := f.i32()
			if version >= 9 {
				f.i32() // leader epoch
			}
			offset := f.i64()
			if version >= 5 {
				f.i64() // log start
			}
			limit := f.i32()
			if f.bad || index < 0 || index >= len(c.s.partitions) {
				return 0, errShort
			}
			runs, n, next := c.s.find(int32(index), offset, min(limit, room))
			out = binary.BigEndian.AppendUint32(out, uint32(index))
			out = binary.BigEndian.AppendUint16(out, 0)
			out = binary.BigEndian.AppendUint64(out, uint64(next)) // high watermark
			out = binary.BigEndian.AppendUint64(out, uint64(next)) // last stable offset
			if version >= 5 {
				out = binary.BigEndian.AppendUint64(out, 0) // log start
			}
			out = append(out, 0, 0, 0, 0) // aborted transactions
			if version >= 11 {
				out = append(out, 0xff, 0xff, 0xff, 0xff)
			}
			out = binary.BigEndian.AppendUint32(out, uint32(n))
			if n > 0 {
				cut(runs)
				total += n
				room -= n
			}
		}
	}
	if first {
		a.head = out
	} else {
		a.parts = append(a.parts, out)
	}
	return total, nil
}
