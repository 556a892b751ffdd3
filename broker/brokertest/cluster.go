package brokertest

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/varve/varve/cmd/varve/server"
	"github.com/varve/varve/config"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/vfs"
)

// Cluster is a whole cluster: brokers on hosts of their own, and what they share.
//
// Lock ordering: the store's, then the workload's, then mu. Links and disks have locks of their own, which are leaves, as
// is the network's. Nobody waits for time to pass while holding one of them: a mutex that is held over a wait stops the
// clock of a bubble.
type Cluster struct {
	seed  uint64
	dir   string // for the little that is not in the simulated disks: which revision of etcd a broker saw
	start time.Time
	log   slog.Handler // nil: nothing is logged
	net   *network
	etcd  *store
	objs  *bucket
	store *objstore.Faulty // before it: the faults of the bucket itself, which all brokers meet
	nodes []*node

	features features
	workers  []*worker

	mu    sync.Mutex
	wrong []string // what the cluster promises not to do and did
	notes []string // what the faults were
}

// node is a broker's host: it outlives processes, and its disk does too.
type node struct {
	c    *Cluster
	id   int32
	host string

	mu   sync.Mutex
	mem  *vfs.Mem
	proc *process      // nil: none
	last chan struct{} // closed when the last process has ended altogether
	runs int
	wg   sync.WaitGroup // processes that have not ended altogether
}

// process is one run of a broker. Killing it cuts off everything by which it acts; then it is closed, so that its
// goroutines end, to no effect.
type process struct {
	n      *node
	ctx    context.Context // all it does is over when it is
	kill   context.CancelFunc
	disk   *disk
	etcd   *etcdLink
	bucket *bucketLink
	up     chan struct{} // closed when srv is set, or Open has failed
	srv    *server.Server
	err    error
	done   chan struct{}
}

const (
	brokerPort = 9092
	clientHost = "10.0.1."
)

func newCluster(seed uint64, dir string, log slog.Handler, brokers int, f features) *Cluster {
	c := &Cluster{seed: seed, dir: dir, start: time.Now(), log: log, net: newNetwork(seed), etcd: newStore(), features: f}
	c.objs = newBucket(c.fail)
	c.store = objstore.NewFaulty(c.objs, seed)
	for id := int32(1); id <= int32(brokers); id++ {
		c.add(id)
	}
	if f.has(compacted) {
		rnd := pcg(seed, "workers")
		for range 1 + rnd.IntN(2) {
			c.addWorker(rnd)
		}
	}
	return c
}

func (c *Cluster) add(id int32) *node {
	n := &node{c: c, id: id, host: fmt.Sprintf("10.0.0.%d", id), mem: vfs.NewMem()}
	c.nodes = append(c.nodes, n)
	return n
}

func (c *Cluster) now() time.Duration { return time.Since(c.start) }

// fail notes that something is wrong.
func (c *Cluster) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, fmt.Sprintf("%8.3fs  ", c.now().Seconds())+fmt.Sprintf(format, args...))
}

// failed says whether something is wrong.
func (c *Cluster) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.wrong) > 0
}

// note notes a fault.
func (c *Cluster) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line := fmt.Sprintf("%8.3fs  ", c.now().Seconds()) + fmt.Sprintf(format, args...)
	c.notes = append(c.notes, line)
	if c.log != nil {
		slog.New(c.log).Info("fault: " + line)
	}
}

// settings are those of every broker: small, so that logs roll, are uploaded and reclaimed within seconds.
func (n *node) settings() map[string]string {
	s := map[string]string{
		"node.id":   strconv.Itoa(int(n.id)),
		"listeners": fmt.Sprintf("PLAINTEXT://%s:%d", n.host, brokerPort), "advertised.listeners": fmt.Sprintf("PLAINTEXT://%s:%d", n.host, brokerPort),
		"admin.listener": "", "broker.rack": fmt.Sprintf("zone-%d", n.id),
		"log.dirs":         filepath.Join(n.c.dir, strconv.Itoa(int(n.id))),
		"memory.max.bytes": strconv.Itoa(8 << 30), "wal.segment.bytes": strconv.Itoa(1 << 20), "wal.max.bytes": strconv.Itoa(16 << 20),
		"remote.flush.interval.ms": "1000", "remote.delete.grace.ms": "4000", "remote.request.timeout.ms": "3000", "remote.object.bytes": strconv.Itoa(1 << 20),
		"remote.cache.memory.bytes": strconv.Itoa(8 << 20), "log.local.retention.ms": "2000",
		"default.replication.factor": "3", "min.insync.replicas": "2", "num.partitions": "2", "auto.create.topics.enable": "false",
		"offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1",
		"replica.lag.time.max.ms": "3000", "replica.fetch.backoff.ms": "200", "leader.imbalance.check.interval.seconds": "10",
		"etcd.request.timeout.ms": "1500", "controlled.shutdown.retry.backoff.ms": "1000", "transaction.max.timeout.ms": "60000",
	}
	maps.Copy(s, n.c.features.settings())
	return s
}

// Start starts a process on a host that has none.
func (n *node) Start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil {
		panic("brokertest: a broker is started that runs")
	}
	n.runs++
	ctx, kill := context.WithCancel(context.Background())
	seed := n.c.seed*1000 + uint64(n.id)*100 + uint64(n.runs)
	p := &process{
		n: n, ctx: ctx, kill: kill, disk: newDisk(ctx, n.mem, seed), etcd: newEtcdLink(ctx, n.c.etcd, seed), bucket: newBucketLink(ctx, n.c.store, seed),
		up: make(chan struct{}), done: make(chan struct{}),
	}
	n.proc = p
	before := n.last
	n.last = p.done
	n.c.net.Restore(n.host)
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		if before != nil {
			<-before // it would write to the same file of the real disk
		}
		p.run()
	}()
}

// run opens the broker, again and again, as what looks after processes would.
func (p *process) run() {
	n := p.n
	defer close(p.done)
	log := slog.New(alarms{n.c, n.c.log}).With("b", n.id, "run", n.runs)
	for p.ctx.Err() == nil {
		cfg, _, err := config.Build(config.FromMode("simulation", n.settings()), config.Machine{Hostname: n.host, MemoryBytes: 16 << 30, Brokers: len(n.c.nodes)})
		if err != nil {
			panic(err)
		}
		srv, err := server.Open(p.ctx, server.Options{
			Config: cfg, Logger: log, Version: "simulated", FS: p.disk, Bucket: p.bucket, Etcd: p.etcd.client(),
			Listen: n.c.net.Listen, Dial: func(ctx context.Context, address string) (net.Conn, error) { return n.c.net.Dial(ctx, n.host, address) },
		})
		if err == nil {
			p.srv = srv
			break
		}
		p.err = err
		log.Warn("the broker did not start", "err", err)
		sleep(p.ctx, time.Second)
	}
	close(p.up)
	if p.srv == nil {
		return
	}
	select {
	case <-p.ctx.Done():
	case err := <-p.srv.Failed():
		if p.ctx.Err() == nil {
			n.c.fail("broker %d has ended by itself: %v", n.id, err)
		}
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.srv.Close(over); err != nil {
		log.Debug("closed", "err", err)
	}
}

// running is the process of the host, or nil.
func (n *node) running() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Kill ends the process at once. What was not synced survives only as far as the operating system had it (power:
// as far as the seed wants).
func (n *node) Kill(power bool, seed uint64) {
	n.mu.Lock()
	p := n.proc
	n.proc = nil
	n.mu.Unlock()
	if p == nil {
		return
	}
	n.c.net.Kill(n.host, power)
	p.kill()
	n.mu.Lock()
	defer n.mu.Unlock()
	if power {
		n.mem = n.mem.Crash(seed)
	} else {
		n.mem = n.mem.Clone()
	}
}

// Stop ends the process in an orderly way.
func (n *node) Stop() {
	n.mu.Lock()
	p := n.proc
	n.mu.Unlock()
	if p == nil {
		return
	}
	<-p.up
	if p.srv != nil {
		ctx, cancel := context.WithTimeout(p.ctx, 8*time.Second)
		p.srv.Close(ctx)
		cancel()
	}
	n.Kill(false, 0)
}

// Wipe replaces the disk of a host without a process.
func (n *node) Wipe() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mem = vfs.NewMem()
	os.Remove(filepath.Join(n.c.dir, strconv.Itoa(int(n.id)), "metadata.seen"))
}

// Copy is the disk as it is now.
func (n *node) Copy() *vfs.Mem {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mem.Clone()
}

// Put gives a host without a process another disk.
func (n *node) Put(mem *vfs.Mem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mem = mem
}

// FlipEnd flips a bit in the last block of the log of a host without a process, and says where; wal's README has the
// bytes.
func (n *node) FlipEnd(rnd *rand.Rand) (name string, at int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	const page, header = 4096, 72
	dir := filepath.Join(n.c.dir, strconv.Itoa(int(n.id)))
	names, _ := n.mem.List(dir)
	for _, base := range slices.Backward(names) {
		generation, err := strconv.ParseUint(strings.TrimSuffix(base, ".wal"), 16, 64)
		if err != nil {
			continue
		}
		b := n.mem.Bytes(filepath.Join(dir, base))
		last, size, head, gap := 0, 0, 0, 0
		for pos := page; pos+header <= len(b); pos += (size + page - 1) / page * page {
			h := b[pos:]
			if string(h[:4]) != "VBLK" || binary.LittleEndian.Uint64(h[24:]) != generation {
				break // what is there is of the file's earlier use
			}
			last, size = pos, header+int(binary.LittleEndian.Uint32(h[56:]))
			head, gap = header+48*int(binary.LittleEndian.Uint32(h[60:])), 0
			if binary.LittleEndian.Uint16(h[6:])&1 != 0 { // paged: what is before the payloads' first page is of no meaning
				gap = (page - head%page) % page
			}
		}
		if size <= header || last+size > len(b) {
			continue // begun, or closed: it says that the block before is whole
		}
		at = header + rnd.IntN(size-header-gap)
		if at >= head {
			at += gap
		}
		at += last
		b[at] ^= 1 << rnd.IntN(8)
		n.mem.Put(filepath.Join(dir, base), b)
		return base, at
	}
	return "", 0
}

// Hold stops a process from doing anything, as SIGSTOP would, but for its clocks.
func (n *node) Hold(held bool) {
	p := n.running()
	if p == nil {
		return
	}
	if held {
		n.c.net.Cut(n.host, "")
		n.c.net.Cut("", n.host)
	} else {
		n.c.net.Heal(n.host, "", false)
		n.c.net.Heal("", n.host, false)
	}
	p.disk.Hold(held)
	p.etcd.Cut(held)
	p.bucket.Hold(held)
}

// Close ends everything.
func (c *Cluster) Close() {
	for _, n := range c.nodes {
		n.Kill(true, 0)
	}
	for _, k := range c.workers {
		k.Kill()
	}
	for _, n := range c.nodes {
		n.wg.Wait()
	}
	for _, k := range c.workers {
		k.wg.Wait()
	}
	c.etcd.stop()
}

// report is what a failure prints.
func (c *Cluster) report() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, w := range c.wrong {
		fmt.Fprintf(&b, "  wrong:  %s\n", w)
	}
	for _, n := range c.notes {
		fmt.Fprintf(&b, "  fault:  %s\n", n)
	}
	return b.String()
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func pcg(seed uint64, what string) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, b := range []byte(what) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h))
}
