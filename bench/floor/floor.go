// Package floor is a server that does the least work that can be called a
// durable Kafka broker, so that a measured figure has something to be held
// against: the same client and framing, a checksum over every batch, one shared
// file, group commit with fdatasync, an answer; nothing else. There are no
// topics (any name has the given number of partitions), no checks of what
// clients send, no replication, no recovery, no cache: it forgets everything,
// and its file is written round and round. A broker that reaches it does
// nothing that does not have to be done.
package floor

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"
)

// Options of a floor.
type Options struct {
	Dir        string // where the file is
	FileBytes  int64  // its size; 0: 1 GiB
	Partitions int32  // of every topic
	NoSync     bool   // acknowledge what is in the page cache
	BeforeSync func() // called before every group commit; for a disk that stalls
}

// Server is a floor that is running.
type Server struct {
	o    Options
	l    net.Listener
	host string
	port int32
	file *os.File

	partitions []partition
	produced   atomic.Int64 // a producer id each

	mu   sync.Mutex
	q    []write
	wake chan struct{}
	pos  int64

	newData atomic.Pointer[chan struct{}] // closed when there is more to fetch
}

// partition is where its newest batches are in the file.
type partition struct {
	assigned int64 // offset of the next batch; the writer's

	mu   sync.Mutex
	next int64 // offset after what can be fetched
	at   []placed
}

type placed struct {
	p          *partition
	base, next int64 // offsets
	pos        int64
	n          int
	lap        int64 // bytes written before this one, by which it is known to be overwritten
}

// write is one request's batches on their way to the file.
type write struct {
	batches [][]byte
	parts   []int32
	done    func()
}

// Open makes the file, zero-filled, and begins to serve at l.
func Open(l net.Listener, o Options) (*Server, error) {
	if o.FileBytes == 0 {
		o.FileBytes = 1 << 30
	}
	host, p, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(o.Dir, "floor"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, 1<<20)
	for n := int64(0); n < o.FileBytes; n += int64(len(zero)) {
		if _, err := f.Write(zero); err != nil {
			f.Close()
			return nil, fmt.Errorf("floor: fill %s: %w", f.Name(), err)
		}
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return nil, err
	}
	s := &Server{o: o, l: l, host: host, port: int32(port), file: f, partitions: make([]partition, o.Partitions), wake: make(chan struct{}, 1)}
	c := make(chan struct{})
	s.newData.Store(&c)
	go s.write()
	go s.accept()
	return s, nil
}

// Close stops listening and removes the file; connections end with their
// clients.
func (s *Server) Close() error {
	err := s.l.Close()
	os.Remove(s.file.Name())
	return err
}

func (s *Server) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		go s.serve(c)
	}
}

// write is the group commit: everything queued becomes one vectored write and
// one fdatasync.
func (s *Server) write() {
	var vec [][]byte
	var at []placed
	var written int64
	for range s.wake {
		s.mu.Lock()
		q := s.q
		s.q = nil
		s.mu.Unlock()
		if len(q) == 0 {
			continue
		}
		vec = vec[:0]
		n := int64(0)
		for i := range q {
			for _, b := range q[i].batches {
				vec = append(vec, b)
				n += int64(len(b))
			}
		}
		if s.pos+n > s.o.FileBytes {
			s.pos = 0
		}
		pos := s.pos
		at = at[:0]
		for i := range q {
			for j, b := range q[i].batches {
				p := &s.partitions[q[i].parts[j]]
				binary.BigEndian.PutUint64(b, uint64(p.assigned))
				x := placed{p: p, base: p.assigned, pos: pos, n: len(b), lap: written}
				p.assigned += int64(binary.BigEndian.Uint32(b[23:])) + 1
				x.next = p.assigned
				at = append(at, x)
				pos += int64(len(b))
				written += int64(len(b))
			}
		}
		off := s.pos
		for v := vec; len(v) > 0; {
			k := min(len(v), 1024)
			m, err := unix.Pwritev(int(s.file.Fd()), v[:k], off)
			if err != nil {
				panic(fmt.Sprintf("floor: write: %v", err))
			}
			off += int64(m)
			v = v[k:] // short writes do not happen on a local file with room
		}
		if s.o.BeforeSync != nil {
			s.o.BeforeSync()
		}
		if !s.o.NoSync {
			if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
				panic(fmt.Sprintf("floor: fdatasync: %v", err))
			}
		}
		s.pos = pos
		for _, x := range at {
			x.p.show(x, written-s.o.FileBytes/2)
		}
		for i := range q {
			q[i].done()
		}
		c := make(chan struct{})
		close(*s.newData.Swap(&c))
	}
}

// show lets a batch be fetched, and forgets those that are about to be
// overwritten.
func (p *partition) show(x placed, oldest int64) {
	p.mu.Lock()
	p.at = append(p.at, x)
	p.next = x.next
	for len(p.at) > 1 && p.at[0].lap < oldest {
		p.at = p.at[1:]
	}
	p.mu.Unlock()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// conn is one connection: requests in order, answers in order.
type conn struct {
	s       *Server
	answers chan *answer
	free    sync.Pool
}

type answer struct {
	ready chan struct{}
	parts net.Buffers
}

func (s *Server) serve(nc net.Conn) {
	defer nc.Close()
	c := &conn{s: s, answers: make(chan *answer, 256)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		var bufs net.Buffers
		for a := range c.answers {
			<-a.ready
			bufs = append(bufs[:0], a.parts...)
		more:
			for len(bufs) < 512 {
				select {
				case b, ok := <-c.answers:
					if !ok {
						break more
					}
					select {
					case <-b.ready:
						bufs = append(bufs, b.parts...)
					default:
						// What is ready goes first; this one is waited for.
						if v := bufs; send(nc, v) != nil {
							cancel()
							drain(c.answers)
							return
						}
						<-b.ready
						bufs = append(bufs[:0], b.parts...)
					}
				default:
					break more
				}
			}
			if send(nc, bufs) != nil {
				cancel()
				drain(c.answers)
				return
			}
		}
	}()
	err := c.read(ctx, bufio.NewReaderSize(nc, 128<<10))
	close(c.answers)
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		var op *net.OpError
		if !errors.As(err, &op) {
			fmt.Fprintln(os.Stderr, "floor:", err)
		}
	}
}

func send(nc net.Conn, bufs net.Buffers) error {
	v := bufs
	_, err := v.WriteTo(nc)
	return err
}

func drain(c chan *answer) {
	for range c {
	}
}

func (c *conn) read(ctx context.Context, br *bufio.Reader) error {
	var head [4]byte
	for {
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if n < 10 || n > 256<<20 {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		var b []byte
		if f, ok := c.free.Get().(*[]byte); ok && cap(*f) >= n {
			b = (*f)[:n]
		} else {
			b = make([]byte, n, max(n, 4096))
		}
		if _, err := io.ReadFull(br, b); err != nil {
			return err
		}
		a := &answer{ready: make(chan struct{})}
		c.answers <- a
		if err := c.handle(ctx, b, a); err != nil {
			close(a.ready)
			return err
		}
	}
}

// The versions served: the newest before tagged fields, which need less code.
var served = map[int16][2]int16{0: {0, 8}, 1: {4, 11}, 2: {1, 5}, 3: {0, 8}, 18: {0, 3}, 22: {0, 1}}

func (c *conn) handle(ctx context.Context, b []byte, a *answer) error {
	key, version := int16(binary.BigEndian.Uint16(b)), int16(binary.BigEndian.Uint16(b[2:]))
	corr := int32(binary.BigEndian.Uint32(b[4:]))
	body := b[10:]
	if n := int16(binary.BigEndian.Uint16(b[8:])); n > 0 {
		body = body[n:]
	}
	if key == 18 && version >= 3 {
		body = body[1:] // the header's tags
	}
	req := kmsg.RequestForKey(key)
	v, ok := served[key]
	if !ok || version > v[1] {
		if key != 18 {
			return fmt.Errorf("key %d version %d is not served", key, version)
		}
		version = 0
	}
	req.SetVersion(version)
	if key == 18 && version == 0 {
		body = nil
	}
	if err := req.ReadFrom(body); err != nil {
		return err
	}
	answer := func(resp kmsg.Response) {
		resp.SetVersion(version)
		out := make([]byte, 8, 128)
		out = resp.AppendTo(out)
		binary.BigEndian.PutUint32(out, uint32(len(out)-4))
		binary.BigEndian.PutUint32(out[4:], uint32(corr))
		a.parts = net.Buffers{out}
		close(a.ready)
	}
	switch req := req.(type) {
	case *kmsg.ProduceRequest:
		c.produce(req, b, a, answer)
	case *kmsg.FetchRequest:
		go c.fetch(ctx, req, corr, a)
	case *kmsg.ApiVersionsRequest:
		resp := kmsg.NewPtrApiVersionsResponse()
		if version == 0 && int16(binary.BigEndian.Uint16(b[2:])) > 3 {
			resp.ErrorCode = 35
		}
		for k, v := range served {
			resp.ApiKeys = append(resp.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: k, MinVersion: v[0], MaxVersion: v[1]})
		}
		answer(resp)
	case *kmsg.MetadataRequest:
		answer(c.s.metadata(req))
	case *kmsg.ListOffsetsRequest:
		answer(c.s.offsets(req))
	case *kmsg.InitProducerIDRequest:
		resp := kmsg.NewPtrInitProducerIDResponse()
		resp.ProducerID = c.s.produced.Add(1)
		answer(resp)
	}
	return nil
}

func (s *Server) metadata(req *kmsg.MetadataRequest) kmsg.Response {
	resp := kmsg.NewPtrMetadataResponse()
	resp.ClusterID = kmsg.StringPtr("floor")
	resp.ControllerID = 1
	resp.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 1, Host: s.host, Port: s.port}}
	for _, t := range req.Topics {
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic = t.Topic
		for i := range s.o.Partitions {
			p := kmsg.NewMetadataResponseTopicPartition()
			p.Partition, p.Leader, p.Replicas, p.ISR = i, 1, []int32{1}, []int32{1}
			topic.Partitions = append(topic.Partitions, p)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

func (s *Server) offsets(req *kmsg.ListOffsetsRequest) kmsg.Response {
	resp := kmsg.NewPtrListOffsetsResponse()
	for _, t := range req.Topics {
		topic := kmsg.NewListOffsetsResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			out := kmsg.NewListOffsetsResponseTopicPartition()
			out.Partition = p.Partition
			q := &s.partitions[p.Partition]
			q.mu.Lock()
			out.Offset = q.next
			if p.Timestamp == -2 && len(q.at) > 0 {
				out.Offset = q.at[0].base
			}
			q.mu.Unlock()
			topic.Partitions = append(topic.Partitions, out)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

func (c *conn) produce(req *kmsg.ProduceRequest, frame []byte, a *answer, answer func(kmsg.Response)) {
	resp := kmsg.NewPtrProduceResponse()
	w := write{}
	for _, t := range req.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			out := kmsg.NewProduceResponseTopicPartition()
			out.Partition = p.Partition
			if len(p.Records) < 61 || int(p.Partition) >= len(c.s.partitions) || crc32.Checksum(p.Records[21:], castagnoli) != binary.BigEndian.Uint32(p.Records[17:]) {
				out.ErrorCode = 2 // CORRUPT_MESSAGE
			} else {
				w.batches, w.parts = append(w.batches, p.Records), append(w.parts, p.Partition)
			}
			topic.Partitions = append(topic.Partitions, out)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	w.done = func() {
		if req.Acks == 0 {
			close(a.ready)
		} else {
			answer(resp)
		}
		c.free.Put(&frame)
	}
	c.s.mu.Lock()
	c.s.q = append(c.s.q, w)
	c.s.mu.Unlock()
	select {
	case c.s.wake <- struct{}{}:
	default:
	}
}

// fetch answers with what is there, or waits for it.
func (c *conn) fetch(ctx context.Context, req *kmsg.FetchRequest, corr int32, a *answer) {
	deadline := time.NewTimer(time.Duration(req.MaxWaitMillis) * time.Millisecond)
	defer deadline.Stop()
	for {
		more := *c.s.newData.Load()
		parts, n := c.s.gather(req, corr)
		if n < int(req.MinBytes) {
			select {
			case <-more:
				continue
			case <-deadline.C:
			case <-ctx.Done():
			}
		}
		a.parts = parts
		close(a.ready)
		return
	}
}

// gather lays out an answer: its skeleton, and for every partition what one
// pread brings.
func (s *Server) gather(req *kmsg.FetchRequest, corr int32) (net.Buffers, int) {
	parts := net.Buffers{nil}
	b := make([]byte, 8, 256)
	binary.BigEndian.PutUint32(b[4:], uint32(corr))
	b = binary.BigEndian.AppendUint32(b, 0) // throttle
	if req.Version >= 7 {
		b = binary.BigEndian.AppendUint16(b, 0) // error
		b = binary.BigEndian.AppendUint32(b, 0) // no session: the client names its partitions each time
	}
	total, room := 0, int(req.MaxBytes)
	flush := func(records []byte) {
		parts = append(parts, b, records)
		b = nil
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(req.Topics)))
	for _, t := range req.Topics {
		b = binary.BigEndian.AppendUint16(b, uint16(len(t.Topic)))
		b = append(b, t.Topic...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(t.Partitions)))
		for _, p := range t.Partitions {
			records, next := s.pread(p.Partition, p.FetchOffset, min(int(p.PartitionMaxBytes), room))
			b = binary.BigEndian.AppendUint32(b, uint32(p.Partition))
			b = binary.BigEndian.AppendUint16(b, 0)
			b = binary.BigEndian.AppendUint64(b, uint64(next)) // high watermark
			b = binary.BigEndian.AppendUint64(b, uint64(next)) // last stable offset
			if req.Version >= 5 {
				b = binary.BigEndian.AppendUint64(b, 0) // log start
			}
			b = binary.BigEndian.AppendUint32(b, 0) // aborted transactions
			if req.Version >= 11 {
				b = binary.BigEndian.AppendUint32(b, 0xffffffff)
			}
			b = binary.BigEndian.AppendUint32(b, uint32(len(records)))
			if len(records) > 0 {
				flush(records)
				total += len(records)
				room -= len(records)
			}
		}
	}
	parts = append(parts, b)
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	first := parts[1]
	if len(parts) == 2 {
		first = b
	}
	binary.BigEndian.PutUint32(first, uint32(n-4))
	return parts[1:], total
}

func (s *Server) pread(index int32, offset int64, limit int) (records []byte, next int64) {
	p := &s.partitions[index]
	p.mu.Lock()
	next = p.next
	i := sort.Search(len(p.at), func(i int) bool { return p.at[i].next > offset })
	var runs []placed // that lie side by side are one
	n := 0
	for ; i < len(p.at) && (n == 0 || n+p.at[i].n <= limit) && limit > 0; i++ {
		x := p.at[i]
		if k := len(runs) - 1; k >= 0 && runs[k].pos+int64(runs[k].n) == x.pos {
			runs[k].n += x.n
		} else {
			runs = append(runs, x)
		}
		n += x.n
	}
	p.mu.Unlock()
	if n == 0 {
		return nil, next
	}
	records = make([]byte, n)
	at := 0
	for _, x := range runs {
		if _, err := s.file.ReadAt(records[at:at+x.n], x.pos); err != nil {
			return nil, next
		}
		at += x.n
	}
	return records, next
}
