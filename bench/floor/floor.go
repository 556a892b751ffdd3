// Package floor is a server that does the least work that can be called a
// durable Kafka broker, so that a measured figure has something to be held
// against: the same client and framing, a checksum over every batch, one shared
// file, group commit with fdatasync, an answer; nothing else. There are no
// topics (any name has the given number of partitions), no checks of what
// clients send, no replication, no recovery: it forgets everything, and its
// file is written round and round. A broker that reaches it does nothing that
// does not have to be done.
//
// It writes well: around the page cache (O_DIRECT), to blocks that have been
// written before, from huge pages. Large blocks are written by goroutines side
// by side, where the log has the kernel do that. What it writes is laid out in a
// ring of memory, and what is fetched is sent from there.
package floor

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"
)

// Options of a floor.
type Options struct {
	Dir         string // where the file is
	FileBytes   int64  // its size; 0: 1 GiB
	MemoryBytes int64  // of the ring; half of it, the newest, can be fetched; 0: 256 MiB
	Partitions  int32  // of every topic
	Buffered    bool   // write through the page cache
	NoSync      bool   // acknowledge what is not on the disk yet
	BeforeSync  func() // called before every group commit; for a disk that stalls
}

// Server is a floor that is running.
type Server struct {
	o    Options
	l    net.Listener
	file *os.File // as it is written: around the page cache, if that can be
	ring []byte   // page-aligned

	partitions []partition
	produced   atomic.Int64 // a producer id each

	mu   sync.Mutex
	q    []write
	wake chan struct{}

	// The writer's.
	pos     int64 // in the file
	at      int64 // in the ring
	written int64 // into the ring so far, what was skipped at its end with it
	placed  []placed
	slots   chan struct{} // for chunks that are being written

	newData atomic.Pointer[chan struct{}] // closed when there is more to fetch
	buffers [32]sync.Pool                 // by the logarithm of their size
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
	pos        int64 // in the ring
	n          int
	lap        int64 // bytes written before this one, by which it is known to be overwritten
}

// write is one request's batches on their way to the file.
type write struct {
	batches [][]byte
	parts   []int32
	n       int64   // bytes of the batches
	from    *buffer // where they are until they are in the ring
	answer  *answer
}

const (
	page = 4096 // what O_DIRECT asks of offset, length and memory at most
	// chunk is what one call writes, depth how many of them at a time: a disk that is asked for one thing after the
	// other is slower than one that can choose, and the next chunk is laid out meanwhile.
	chunk = 512 << 10
	depth = 4
	// blockBytes bounds a group commit: a longer one gains nothing per byte and keeps its waiters longer.
	blockBytes = 16 << 20
)

// Open makes the file, zero-filled, and then begins to serve at addr: whoever
// can connect finds it ready.
func Open(addr string, o Options) (*Server, error) {
	if o.FileBytes == 0 {
		o.FileBytes = 1 << 30
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 256 << 20
	}
	if o.MemoryBytes < 4*blockBytes || o.FileBytes < o.MemoryBytes/4 {
		return nil, fmt.Errorf("floor: a file of %d bytes and %d of memory: a quarter of the memory, %d at least, has to fit into the file", o.FileBytes, o.MemoryBytes, blockBytes)
	}
	ring, err := unix.Mmap(-1, 0, int(o.MemoryBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("floor: %d bytes of memory: %w", o.MemoryBytes, err)
	}
	unix.Madvise(ring, unix.MADV_HUGEPAGE) // a kernel without them gives small ones
	for at := 0; at < len(ring); at += page {
		ring[at] = 0 // it is there before anything is measured
	}
	f, err := fill(filepath.Join(o.Dir, "floor"), o, ring[:1<<20])
	if err != nil {
		unix.Munmap(ring)
		return nil, fmt.Errorf("floor: %w", err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.Close()
		unix.Munmap(ring)
		return nil, err
	}
	s := &Server{
		o: o, l: l, file: f, ring: ring, partitions: make([]partition, o.Partitions),
		wake: make(chan struct{}, 1), slots: make(chan struct{}, depth),
	}
	c := make(chan struct{})
	s.newData.Store(&c)
	go s.write()
	go s.accept()
	return s, nil
}

// fill makes the file, written once with zeros so that no later sync writes
// metadata, and around the page cache where the file system can do that: pages
// in it would have to be dropped by the first to write there.
func fill(name string, o Options, zeros []byte) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if !o.Buffered {
		direct, err := os.OpenFile(name, os.O_WRONLY|unix.O_DIRECT, 0)
		if err == nil {
			f.Close()
			f = direct
		} else {
			fmt.Fprintf(os.Stderr, "floor: %s is written through the page cache: %v\n", name, err)
		}
	}
	for n := int64(0); n < o.FileBytes && err == nil; n += int64(len(zeros)) {
		_, err = f.WriteAt(zeros, n)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("fill %s: %w", name, err)
	}
	return f, nil
}

// Close stops listening and removes the file; connections end with their
// clients, and the memory with the process.
func (s *Server) Close() error {
	err := s.l.Close()
	os.Remove(s.file.Name())
	return err
}

// Addr is where it serves.
func (s *Server) Addr() *net.TCPAddr { return s.l.Addr().(*net.TCPAddr) }

func (s *Server) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		go s.serve(c.(*net.TCPConn))
	}
}

// write is the group commit: everything queued becomes one block and one
// fdatasync, or several if it is very much.
func (s *Server) write() {
	for range s.wake {
		s.mu.Lock()
		q := s.q
		s.q = nil
		s.mu.Unlock()
		for len(q) > 0 {
			k, n := 0, int64(0)
			for k < len(q) && (k == 0 || n+q[k].n <= blockBytes) {
				n += q[k].n
				k++
			}
			s.commit(q[:k], n)
			q = q[k:]
		}
	}
}

// commit lays n bytes of batches out in the ring, writes them meanwhile, and
// answers when they are on the disk.
func (s *Server) commit(q []write, n int64) {
	n = (n + page - 1) &^ (page - 1)
	if s.at+n > int64(len(s.ring)) {
		s.written += int64(len(s.ring)) - s.at
		s.at = 0
	}
	if s.pos+n > s.o.FileBytes {
		s.pos = 0
	}
	s.placed = s.placed[:0]
	at, begun, end := s.at, s.at, s.at+n
	var writing sync.WaitGroup
	for i := range q {
		for j, b := range q[i].batches {
			p := &s.partitions[q[i].parts[j]]
			binary.BigEndian.PutUint64(b, uint64(p.assigned))
			x := placed{p: p, base: p.assigned, pos: at, n: len(b), lap: s.written + at - s.at}
			p.assigned += int64(binary.BigEndian.Uint32(b[23:])) + 1
			x.next = p.assigned
			s.placed = append(s.placed, x)
			at += int64(copy(s.ring[at:], b))
			for at-begun >= chunk && end-begun > chunk {
				from := begun
				begun += chunk
				s.slots <- struct{}{}
				writing.Go(func() {
					s.put(from, chunk)
					<-s.slots
				})
			}
		}
		q[i].from.release()
	}
	s.put(begun, end-begun)
	writing.Wait()
	if s.o.BeforeSync != nil {
		s.o.BeforeSync()
	}
	if !s.o.NoSync {
		if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
			panic(fmt.Sprintf("floor: fdatasync: %v", err))
		}
	}
	s.at += n
	s.pos += n
	s.written += n
	for _, x := range s.placed {
		x.p.show(x, s.written-s.o.MemoryBytes/2)
	}
	for i := range q { // each connection is told once of all its answers
		c := q[i].answer.c
		c.mu.Lock()
		q[i].answer.ready = true
		c.mu.Unlock()
	}
	for i := range q {
		q[i].answer.c.send()
		q[i] = write{}
	}
	c := make(chan struct{})
	close(*s.newData.Swap(&c))
}

// put writes n bytes of the ring to where they belong in the file.
func (s *Server) put(from, n int64) {
	if _, err := s.file.WriteAt(s.ring[from:from+n], s.pos+from-s.at); err != nil {
		panic(fmt.Sprintf("floor: write: %v", err))
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

func (s *Server) metadata(req *kmsg.MetadataRequest) kmsg.Response {
	resp := kmsg.NewPtrMetadataResponse()
	resp.ClusterID = kmsg.StringPtr("floor")
	resp.ControllerID = 1
	resp.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 1, Host: s.Addr().IP.String(), Port: int32(s.Addr().Port)}}
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

// find is what lies from offset on: pieces of the ring, n bytes in all. They are
// sent from there, without a copy: what can be found is overwritten no sooner than
// half the ring has been written. A reader slower than that gets a batch whose
// checksum is wrong.
func (s *Server) find(index int32, offset int64, limit int) (runs net.Buffers, n int, next int64) {
	p := &s.partitions[index]
	p.mu.Lock()
	defer p.mu.Unlock()
	next = p.next
	i := sort.Search(len(p.at), func(i int) bool { return p.at[i].next > offset })
	end := int64(-1) // of the last run
	for ; i < len(p.at) && (n == 0 || n+p.at[i].n <= limit) && limit > 0; i++ {
		x := p.at[i]
		from := x.pos
		if x.pos == end {
			from -= int64(len(runs[len(runs)-1]))
			runs = runs[:len(runs)-1]
		}
		end = x.pos + int64(x.n)
		runs = append(runs, s.ring[from:end])
		n += x.n
	}
	return runs, n, next
}
