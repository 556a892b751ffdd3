package brokertest

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/varve/varve/cmd/varve/server"
	"github.com/varve/varve/config"
)

// worker is the host of a compaction worker: the real one, as `varve compactor` runs it. It has etcd and the bucket, and
// nothing else that others see.
type worker struct {
	c    *Cluster
	id   int
	keys int // that its table of keys has room for

	mu   sync.Mutex
	proc *workerProcess // nil: none
	runs int
	wg   sync.WaitGroup
}

// workerProcess is one run of a worker. It is killed as a broker is.
type workerProcess struct {
	ctx    context.Context
	kill   context.CancelFunc
	etcd   *etcdLink
	bucket *bucketLink

	mu  sync.Mutex
	srv *server.Compactor // nil until it is open
}

func (c *Cluster) addWorker(rnd *rand.Rand) {
	k := &worker{c: c, id: len(c.workers) + 1, keys: 1000}
	if rnd.IntN(2) == 0 {
		k.keys = 3 + rnd.IntN(10) // rounds end before the log does
	}
	c.workers = append(c.workers, k)
}

func (k *worker) settings() map[string]string {
	s := (&node{c: k.c}).settings()
	for _, name := range []string{"node.id", "listeners", "advertised.listeners", "broker.rack", "log.dirs"} {
		delete(s, name)
	}
	s["log.cleaner.dedupe.buffer.size"] = strconv.Itoa(24 * (k.keys*10/9 + 2))
	s["log.cleaner.spool.dir"] = k.c.dir
	return s
}

// Start starts a process on a host that has none.
func (k *worker) Start() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.proc != nil {
		panic("brokertest: a worker is started that runs")
	}
	k.runs++
	ctx, kill := context.WithCancel(context.Background())
	seed := k.c.seed*1000 + 900 + uint64(k.id)*30 + uint64(k.runs)
	p := &workerProcess{ctx: ctx, kill: kill, etcd: newEtcdLink(ctx, k.c.etcd, seed), bucket: newBucketLink(ctx, k.c.store, seed)}
	k.proc = p
	runs := k.runs
	k.wg.Go(func() { k.run(p, runs) })
}

func (k *worker) run(p *workerProcess, runs int) {
	log := slog.New(alarms{k.c, k.c.log}).With("w", k.id, "run", runs)
	cfg, _, err := config.Build(config.FromMode("simulation", k.settings()), config.Machine{Hostname: "worker", MemoryBytes: 16 << 30, NoBroker: true})
	if err != nil {
		panic(err)
	}
	for p.ctx.Err() == nil {
		srv, err := server.OpenCompactor(p.ctx, server.Options{Config: cfg, Logger: log, Bucket: p.bucket, Etcd: p.etcd.client(), Merge: 4})
		if err != nil {
			log.Warn("the worker did not start", "err", err)
			sleep(p.ctx, time.Second)
			continue
		}
		p.mu.Lock()
		p.srv = srv
		p.mu.Unlock()
		srv.Run(p.ctx)
		if err := srv.Close(); err != nil {
			log.Debug("closed", "err", err)
		}
	}
}

// running is the process of the host, or nil.
func (k *worker) running() *workerProcess {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.proc
}

// Kill ends the process at once.
func (k *worker) Kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.proc != nil {
		k.proc.kill()
		k.proc = nil
	}
}

// Healthy is nil, or why the worker does not get on.
func (k *worker) Healthy() error {
	p := k.running()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	srv := p.srv
	p.mu.Unlock()
	if srv == nil {
		return errNotUp
	}
	return srv.Healthy()
}

var errNotUp = errors.New("not up")

// Faults of workers.

func (f *faults) worker(e *event) (*worker, *workerProcess) {
	k := f.c.workers[e.rnd.IntN(len(f.c.workers))]
	return k, k.running()
}

// workerKill ends a worker in the midst of what it does; another takes its place.
func workerKill(f *faults, e *event, note func(string, ...any)) {
	k, p := f.worker(e)
	if p == nil {
		return
	}
	note("worker %d for %s", k.id, e.lasts/4)
	k.Kill()
	time.Sleep(e.lasts / 4)
	k.Start()
}

// workerPause stops a worker from doing anything until its claims may have gone to another, and has it go on.
func workerPause(f *faults, e *event, note func(string, ...any)) {
	k, p := f.worker(e)
	if p == nil {
		return
	}
	note("worker %d for %s", k.id, e.lasts)
	p.etcd.Cut(true)
	p.bucket.Hold(true)
	time.Sleep(e.lasts)
	p.etcd.Cut(false)
	p.bucket.Hold(false)
	note("worker %d goes on", k.id)
}

// workerEtcd takes etcd from a worker: it may go on with the bucket.
func workerEtcd(f *faults, e *event, note func(string, ...any)) {
	k, p := f.worker(e)
	if p == nil {
		return
	}
	note("worker %d for %s", k.id, e.lasts)
	p.etcd.Cut(true)
	time.Sleep(e.lasts)
	p.etcd.Cut(false)
	note("worker %d has etcd again", k.id)
}
