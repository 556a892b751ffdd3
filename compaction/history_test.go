package compaction

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "varve-compaction-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	spoolDir = dir
	batch.Apart = apart()
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// apart has functions run by a goroutine of no bubble.
func apart() func(func()) {
	var one sync.Mutex
	next, done := make(chan func()), make(chan struct{})
	go func() {
		for f := range next {
			f()
			done <- struct{}{}
		}
	}()
	return func(f func()) {
		one.Lock()
		defer one.Unlock()
		next <- f
		<-done
	}
}

var histories = flag.Int("histories", 2000, "how many histories TestHistories makes")

// Random histories: producers of all kinds write, the leader uploads, a worker compacts, purges and merges; meanwhile
// requests fail, the worker dies at any of them, loses its claim and does not know it, log starts and policies move,
// leaders change. After each step what is read is held against all that was ever written (verify), what is committed and
// deleted against the rules of tiering (world); in the end nothing is left to do and no garbage is left.
//
// VARVE_TEST_SEED repeats one history, as far as the choices of the runtime do not matter. VARVE_LONG runs many more, from
// that one on.
func TestHistories(t *testing.T) {
	from, n := uint64(0), uint64(*histories)
	if s := os.Getenv("VARVE_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		from, n = seed, 1
	}
	if os.Getenv("VARVE_LONG") != "" {
		n = 100_000
	}
	all := made{}
	for seed := from; seed < from+n; seed++ {
		synctest.Test(t, func(t *testing.T) { newHistory(t, seed, all).run() })
		if t.Failed() {
			return
		}
	}
	t.Log(all)
	if n == 1 {
		return
	}
	// A generator that stopped making what this is about would make the test pass for nothing.
	for _, what := range []string{"compact", "purge", "merge", "rounds of several jobs", "tables too small", "tombstones gone", "aborted gone", "crashes", "crashes before a commit", "crashes after a commit",
		"crashes at a put", "faults", "zombies", "claimed elsewhere", "commits rebased", "log starts moved", "policies changed", "leaders changed", "leaders restarted", "mixed sections",
		"swaps in pages", "objects deleted", "consumers", "open transactions", "work thrown away", "claims left behind", "heads changed between reads"} {
		if all[what] == 0 {
			t.Errorf("%s: none in %d histories", what, n)
		}
	}
}

// made counts what histories were made of.
type made map[string]int

type client struct {
	pid   int64
	epoch int16
	seq   int32
	open  *txn
	txns  bool
}

type history struct {
	*world
	seed  uint64
	rnd   *rand.Rand
	made  made
	skew  time.Duration // of the workers' clock
	parts []*partition
	side  map[*partition]*writers

	broker *process
	leader *tiering.Tier
	worker *workers
	table  int64
	limits picker.Limits
	window int

	consumers []*consumer
}

// writers are who writes to a partition.
type writers struct {
	keys    int
	clients []*client
	pids    int64
}

func newHistory(t *testing.T, seed uint64, all made) *history {
	h := &history{world: newWorld(t), seed: seed, rnd: rand.New(rand.NewPCG(seed, 0x636f6d70)), made: all, side: map[*partition]*writers{}}
	h.label = fmt.Sprintf("seed %d", seed)
	h.table = cleaner.SlotSize * int64(2+h.rnd.IntN(20))
	h.limits = picker.Limits{Bytes: 300 << h.rnd.IntN(6), Target: 200 << h.rnd.IntN(5), Fanin: 2 + h.rnd.IntN(3)}
	if h.chance(50) {
		h.window = 1 // the smallest: many batches are not held inflated
	}
	if h.chance(50) {
		h.world.limits = manifest.Limits{Tail: 2 + h.rnd.IntN(3), Keep: 1 + h.rnd.IntN(2), Page: 2 + h.rnd.IntN(4), Pages: 1 + h.rnd.IntN(2), Index: 1000}
	}
	if h.chance(30) {
		h.meta = 1 // nothing is kept
	}
	for i := range 1 + h.rnd.IntN(2) {
		policy := picker.Policy{Compact: h.chance(85), DeleteRetention: []int64{0, 10_000, 60_000, 600_000}[h.rnd.IntN(4)], MaxLag: math.MaxInt64, RetentionMs: -1, RetentionBytes: -1,
			MinDirtyRatio: []float64{0, 0, 0.3}[h.rnd.IntN(3)]}
		p := h.partition(byte(i+1), int32(i), policy)
		if h.chance(30) {
			p.topic.Codec, p.topic.Level = batch.Codec(h.rnd.IntN(5)), batch.DefaultLevel
		}
		if h.chance(50) {
			p.tierOpts.SegmentBytes = 200 + h.rnd.Int64N(1000)
		}
		h.parts = append(h.parts, p)
		s := &writers{keys: 1 + h.rnd.IntN(8)}
		for range 1 + h.rnd.IntN(3) {
			s.client(h.chance(50))
		}
		h.side[p] = s
	}
	return h
}

func (s *writers) client(txns bool) {
	s.pids++
	s.clients = append(s.clients, &client{pid: s.pids, txns: txns})
}

func (h *history) chance(percent int) bool { return h.rnd.IntN(100) < percent }

// now is the workers' clock.
func (h *history) now() time.Time { return time.Now().Add(h.skew) }

func (h *history) openLeader() {
	h.broker = &process{w: h.world}
	h.leader = h.tier(h.broker, nil)
	for _, p := range h.parts {
		p.lead(h.leader)
	}
}

func (h *history) openWorker() *workers {
	table := h.table
	if h.chance(25) { // less than whoever began a round had
		table = cleaner.SlotSize * int64(2+h.rnd.IntN(4))
	}
	return h.world.worker(h.now, func(o *Options, _ *tiering.Options) { o.TableBytes, o.Limits, o.Window = table, h.limits, h.window })
}

func (h *history) run() {
	h.openLeader()
	h.worker = h.openWorker()
	defer func() {
		h.worker.close()
		h.leader.Close()
	}()
	for range 2 + h.rnd.IntN(3) {
		h.append()
		for range 1 + h.rnd.IntN(2) {
			h.skew += time.Duration(h.rnd.Int64N(40_000)) * time.Millisecond
			h.round()
			h.check()
			if h.t.Failed() {
				return
			}
		}
		if h.chance(30) {
			h.change()
		}
	}
	h.settle()
}

// append writes to the partitions and waits until that is in the bucket.
func (h *history) append() {
	for _, p := range h.parts {
		for range h.rnd.IntN(12) {
			h.write(p)
		}
	}
	time.Sleep(flush + time.Second)
	for _, p := range h.parts {
		p.drained(h.leader)
	}
}

func (h *history) write(p *partition) {
	s := h.side[p]
	c := s.clients[h.rnd.IntN(len(s.clients))]
	switch {
	case h.chance(15):
		h.data(p, nil)
	case c.txns && c.open != nil && h.chance(40), c.txns && c.open == nil && h.chance(5):
		h.mark(p, c, h.chance(50))
	case h.chance(3):
		s.client(h.chance(50))
	default:
		h.data(p, c)
	}
}

// data writes a batch, of a client or of nobody.
func (h *history) data(p *partition, c *client) {
	b := batch.NewBuilder()
	f := &fact{}
	next := p.end()
	b.LogAppendTime = h.chance(10)
	if h.chance(50) {
		b.Codec = batch.Codec(h.rnd.IntN(5))
	}
	if c != nil {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = c.pid, c.epoch, c.seq
		if c.txns {
			if c.open == nil {
				c.open = &txn{pid: c.pid, first: next, last: math.MaxInt64}
				p.txns = append(p.txns, c.open)
			}
			f.txn, b.Transactional = c.open, true
		}
	}
	ts := time.Now().UnixMilli() - h.rnd.Int64N(1000)
	latest := int64(0)
	for i := range 1 + h.rnd.IntN(4) {
		r := record{offset: next + int64(i), ts: ts + h.rnd.Int64N(50), key: fmt.Appendf(nil, "key%d", h.rnd.IntN(h.side[p].keys))}
		if h.chance(4) {
			r.key = nil
		}
		if !h.chance(30) {
			r.value = fmt.Appendf(nil, "value %d %s", r.offset, strings.Repeat("x", h.rnd.IntN(40)))
		}
		if h.chance(20) {
			r.headers = append(r.headers, batch.RecordHeader{Key: "h", Value: []byte{byte(i)}})
		}
		b.Add(r.ts, r.key, r.value, r.headers...)
		latest = max(latest, r.ts)
		f.records = append(f.records, r)
	}
	if b.LogAppendTime {
		for i := range f.records {
			f.records[i].ts = latest
		}
	}
	if c != nil {
		c.seq += int32(len(f.records))
	}
	raw, err := b.Build()
	if err != nil {
		h.fatalf("%v", err)
	}
	p.append(f, raw, h.now().UnixMilli())
}

func (h *history) mark(p *partition, c *client, commit bool) {
	if h.chance(30) { // the coordinator raises the epoch
		c.epoch++
		c.seq = 0
	}
	f := &fact{txn: c.open, commit: commit}
	if c.open != nil {
		c.open.last, c.open.aborted = p.end(), !commit
		c.open = nil
	}
	p.append(f, batch.Marker(c.pid, c.epoch, commit, 1, time.Now().UnixMilli()), h.now().UnixMilli())
}

// change does one thing that is not compaction.
func (h *history) change() {
	p := h.parts[h.rnd.IntN(len(h.parts))]
	switch h.rnd.IntN(6) {
	case 0: // DeleteRecords
		if end := p.end(); end > 0 {
			if _, err := h.leader.AdvanceLogStart(bg, p.id, p.index, p.start+h.rnd.Int64N(end-p.start+1)); err != nil {
				h.fatalf("%v", err)
			}
			h.made["log starts moved"]++
		}
	case 1:
		p.set(func(t *tiering.Policy, c *picker.Policy) {
			t.Compact = !t.Compact
			t.Delete = h.chance(50)
			t.RetentionBytes = 500 + h.rnd.Int64N(2000)
		})
		h.made["policies changed"]++
	case 2:
		p.newEpoch()
		p.lead(h.leader)
		h.made["leaders changed"]++
	case 3:
		h.leader.Close()
		for _, p := range h.parts {
			p.newEpoch()
		}
		h.openLeader()
		h.consumers = nil
		h.made["leaders restarted"]++
	case 4:
		p.set(func(t *tiering.Policy, c *picker.Policy) {
			c.MinLag = []int64{0, 1000, 100_000}[h.rnd.IntN(3)]
			c.MaxLag = []int64{1000, math.MaxInt64}[h.rnd.IntN(2)]
		})
		h.made["policies changed"]++
	case 5:
		time.Sleep(2 * time.Minute) // what is garbage goes
	}
}

// round lets the worker look at all partitions once. It may die, be stopped, lose its claim, or meet faults.
func (h *history) round() {
	k := h.worker
	k.p.mu.Lock()
	k.p.ops, k.p.crashAt, k.p.pauseAt, k.p.pause, k.p.fail = 0, 0, 0, nil, nil
	at := 2 + h.rnd.IntN(30)
	tolerant := true
	idle := make(chan struct{}, 1)
	idle <- struct{}{}
	switch h.rnd.IntN(10) {
	case 0, 1:
		k.p.crashAt, k.p.after = at, h.chance(50)
	case 2, 3, 4:
		k.p.pauseAt, k.p.pause = at, func() {
			select {
			case <-idle:
				h.meanwhile()
				idle <- struct{}{}
			default: // the round is over
			}
		}
	case 5, 6:
		k.p.fail = h.faults()
	default:
		tolerant = false
	}
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	k.p.died = cancel
	k.p.mu.Unlock()
	jobs, err := k.Round(ctx, k.lease)
	<-idle // nobody is at it any more
	if h.chance(20) {
		time.Sleep(40 * time.Second) // it publishes and deletes
	}
	k.p.mu.Lock()
	dead, where, paused := k.p.dead, k.p.where, k.p.pauseAt > 0 && k.p.pause == nil
	k.p.fail, k.p.pause, k.p.crashAt = nil, nil, 0
	k.p.mu.Unlock()
	h.bucket.Clear()
	h.count(k)
	failed := k.failures()
	if !dead && !tolerant && (err != nil || len(failed) > 0) {
		h.fatalf("a round that nothing happened to: %v, %v", err, failed)
	}
	if paused && len(failed) > 0 {
		for _, err := range failed {
			if !errors.Is(err, objstore.ErrNotExist) && !errors.Is(err, tiering.ErrOutOfRange) { // an object that went meanwhile
				h.fatalf("paused at %s: %v", where, err)
			}
		}
	}
	if jobs > 0 {
		h.made["jobs"] += jobs
	}
	if dead {
		h.made["crashes"]++
		f := strings.Fields(where)
		h.made["crashes "+f[0]+" a "+f[1]]++
		if f[1] == "put" {
			h.made["crashes at a put"]++
		}
		k.close()
		next := h.openWorker()
		if h.chance(50) { // its claims stand until its lease has run out
			next.Round(bg, next.lease)
			h.count(next)
			h.check()
		}
		h.store.EndLease(k.lease)
		h.worker = next
	}
}

func (h *history) count(k *workers) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.done {
		h.made[d.Kind.String()]++
	}
	k.done = nil
}

// faults spoil some requests of a round.
func (h *history) faults() func(string) (before, after error) {
	at, n := 1+h.rnd.IntN(25), 1+h.rnd.IntN(3)
	kind := h.rnd.IntN(4)
	if kind == 3 {
		for range n {
			h.bucket.Inject(objstore.Fault{Op: objstore.OpGet, Nth: 1 + h.rnd.IntN(20), Count: 1, Kind: []objstore.Kind{objstore.Flip, objstore.Truncate, objstore.ShortBody, objstore.WrongRange}[h.rnd.IntN(4)]})
		}
		return nil
	}
	op := 0
	only := ""
	if h.chance(30) {
		only, at = []string{"commit", "put", "unclaim", "claim"}[h.rnd.IntN(4)], 1
	}
	return func(what string) (before, after error) {
		if only != "" && !strings.HasPrefix(what, only) {
			return nil, nil
		}
		if op++; op < at || op >= at+n {
			return nil, nil
		}
		h.made["faults"]++
		err := errInjected
		if strings.Contains(what, "/") || strings.HasSuffix(what, "cluster") { // a request to the bucket
			err = objstore.ErrUnavailable
		}
		if what == "unclaim" {
			h.made["claims left behind"]++
		}
		if kind == 0 {
			return err, nil
		}
		return nil, err
	}
}

// meanwhile happens while a request of the worker is on its way.
func (h *history) meanwhile() {
	k := h.worker
	switch h.rnd.IntN(7) {
	case 0:
		h.append()
	case 1:
		h.change()
	case 2: // its lease is gone, and it does not know; another goes on
		h.store.EndLease(k.lease)
		other := h.openWorker()
		h.chance(50)
		other.Round(bg, other.lease)
		h.count(other)
		other.close()
		k.lease += 1 << 20
		h.made["zombies"]++
	case 3: // another worker comes by
		other := h.openWorker()
		other.Round(bg, other.lease)
		h.made["claimed elsewhere"] += other.crew.others
		h.count(other)
		other.close()
	case 4:
		h.check()
	case 5:
		time.Sleep(time.Minute)
	case 6:
		h.change()
		h.append()
	}
}

// check holds what is read, and what the bucket has, against what was written.
func (h *history) check() {
	now := h.now().UnixMilli()
	for _, p := range h.parts {
		p.verify(h.leader, h.rnd, now, h.chance(60))
	}
	h.consumers = slices.DeleteFunc(h.consumers, func(c *consumer) bool {
		if h.chance(50) {
			return false
		}
		if c.finish(h.rnd, now) {
			h.made["consumers"]++
		}
		return true
	})
	p := h.parts[h.rnd.IntN(len(h.parts))]
	if h.chance(50) && p.topic.Policy.Compact {
		c := newConsumer(p, h.leader, now)
		if !c.read(h.rnd, c.at+h.rnd.Int64N(p.end()-c.at+1)) {
			h.consumers = append(h.consumers, c)
		}
	}
	if h.chance(30) {
		h.audit()
	}
}

// settle lets the worker do what there is to do, and what is garbage go.
func (h *history) settle() {
	for _, p := range h.parts {
		p.set(func(t *tiering.Policy, c *picker.Policy) { c.MinLag, c.MinDirtyRatio = 0, 0 })
		if p.stable() < p.end() {
			h.made["open transactions"]++
		}
	}
	for i := 0; ; i++ {
		h.skew += 11 * time.Minute // beyond every pause
		h.worker.mu.Lock()
		h.worker.done = nil
		h.worker.mu.Unlock()
		jobs, err := h.worker.Round(bg, h.worker.lease)
		failed := h.worker.failures()
		if err != nil || len(failed) > 0 {
			h.fatalf("nothing is in the way, but: %v, %v", err, failed)
		}
		if jobs == 0 {
			break
		}
		if i == 200 {
			h.fatalf("the worker always finds something to do: %+v", h.worker.done)
		}
		h.count(h.worker)
	}
	for _, p := range h.parts {
		head := p.head()
		if p.topic.Policy.Compact {
			h.mu.Lock()
			entries, _ := h.entries(p, head)
			h.mu.Unlock()
			want := head.RemoteEnd()
			for _, e := range entries {
				if e.Last >= p.stable() {
					want = e.Base
					break
				}
			}
			if want > head.RemoteStart() && head.Compaction.CleanEnd < want {
				h.fatalf("%s is clean up to %d, and could be up to %d: %+v", p.name, head.Compaction.CleanEnd, want, head.Compaction)
			}
		}
	}
	if h.chance(25) {
		time.Sleep(6 * time.Minute)
		if a := h.audit(); len(a.Unnamed) > 0 {
			h.fatalf("left in the bucket: %v", a.Unnamed)
		}
		if err := cmp.Or(h.leader.Healthy(), h.worker.Healthy(), h.worker.tier.Healthy()); err != nil {
			h.fatalf("%v", err)
		}
	} else {
		h.audit()
	}
	h.check()
	for what, n := range h.seen {
		h.made[what] += n
	}
	for _, p := range h.parts {
		for _, e := range p.head().Tail {
			if e.Kind == manifest.Mixed {
				h.made["mixed sections"]++
			}
		}
	}
}
