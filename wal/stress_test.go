package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/wal/vfs"
)

// stressed is a partition as whoever drives it knows it. Of one goroutine, but for acked and the end of what was acknowledged.
type stressed struct {
	id      PartitionID
	ops     []stressOp
	acked   atomic.Int64 // operations known durable: a prefix
	durable atomic.Int64 // where the partition ended then
	batches []modelBatch
	end     int64
	below   int64 // told to SetReclaimable
	trimmed int64
	snapped atomic.Int64
	stuck   bool
}

// stressOp is an append of a batch, or, without bytes, a truncation to base.
type stressOp struct{ batch modelBatch }

func (o stressOp) apply(b []modelBatch) []modelBatch {
	if o.batch.bytes != nil {
		return append(b, o.batch)
	}
	n := len(b)
	for n > 0 && b[n-1].base >= o.batch.base {
		n--
	}
	return b[:n:n]
}

func (p *stressed) op(o stressOp, end int64) func(error) {
	p.ops = append(p.ops, o)
	p.batches = o.apply(p.batches)
	n := int64(len(p.ops))
	return func(err error) {
		if err == nil {
			p.acked.Store(n)
			p.durable.Store(end)
		}
	}
}

// read compares everything that is there with the model.
func (p *stressed) read(l *Log, batches []modelBatch, end int64) error {
	start, got := l.Bounds(p.id)
	if got != end || start > max(p.below, p.trimmed) {
		return fmt.Errorf("partition %d is [%d, %d), want [at most %d, %d)", p.id, start, got, max(p.below, p.trimmed), end)
	}
	for {
		b, err := readAll(l, p.id, start, end, 9000)
		if now, _ := l.Bounds(p.id); errors.Is(err, ErrOutOfRange) && now > start && now <= max(p.below, p.trimmed) {
			start = now
			continue
		}
		if err != nil {
			return fmt.Errorf("partition %d: %w", p.id, err)
		}
		var want []byte
		for _, x := range batches {
			if x.next > start {
				want = append(want, x.bytes...)
			}
		}
		if !bytes.Equal(b, want) {
			return fmt.Errorf("partition %d [%d, %d): %d bytes, want %d", p.id, start, end, len(b), len(want))
		}
		return nil
	}
}

// recovered says whether the partition is what it was after some of its operations, at least those that were acknowledged.
func (p *stressed) recovered(l *Log, acked int64, r Recovered) error {
	var why error
	var batches []modelBatch
	if r.Suspect {
		return fmt.Errorf("partition %d is suspect", p.id)
	}
	for n := 0; n <= len(p.ops); n++ {
		if n > 0 {
			batches = p.ops[n-1].apply(batches)
		}
		end := int64(0)
		if len(batches) > 0 {
			end = batches[len(batches)-1].next
		}
		if int64(n) < acked || end != r.End {
			continue
		}
		err := p.read(l, batches, end)
		if err == nil {
			p.batches, p.end, p.ops = batches, end, p.ops[:n]
			p.acked.Store(int64(n))
			p.durable.Store(end)
			return nil
		}
		why = err
	}
	return fmt.Errorf("partition %d [%d, %d) is none of its states after %d of %d operations: %w", p.id, r.Start, r.End, acked, len(p.ops), why)
}

// TestStressAtTheBound is many partitions in a log that is full all the time: some are uploaded, some cannot be, some change. There
// is always room again, nothing that was acknowledged is lost, and what is copied has a bound.
func TestStressAtTheBound(t *testing.T) {
	rounds := uint64(4)
	if *long {
		rounds = 2000
	}
	for seed := range rounds {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { stress(t, seed+1) }) {
			return
		}
	}
}

func stress(t *testing.T, seed uint64) {
	noLeak(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.SegmentBytes = []int64{256 << 10, 512 << 10}[rng.IntN(2)]
	o.MaxBytes = int64(10+rng.IntN(20)) * o.SegmentBytes
	o.CacheBytes = 4 << 10
	if rng.IntN(3) == 0 {
		o.IndexBytes = 4000
	}
	o.paged = rng.IntN(2) == 0
	partitions := []int{12, 60, 300}[rng.IntN(3)]
	largest := []int{200, 3000, 30000, 100000}[rng.IntN(4)]
	snapshots := []int{0, 100, 2000}[rng.IntN(3)]
	if partitions*snapshots > 30000 {
		snapshots = 100
	}
	stuckOf := []int{2, 4, 20}[rng.IntN(3)]
	what := fmt.Sprintf("seed %d: %d segments of %d, %d partitions, appends up to %d, snapshots of %d, one of %d stuck", seed, o.MaxBytes/o.SegmentBytes, o.SegmentBytes, partitions, largest, snapshots, stuckOf)
	var mu sync.Mutex
	all := map[PartitionID]*stressed{}
	var l *Log
	ready := make(chan struct{})
	o.Checkpoint = func() {
		<-ready
		if snapshots == 0 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for id, p := range all {
			if end := p.durable.Load(); end > p.snapped.Load() {
				p.snapped.Store(end)
				l.Snapshot(id, end, make([]byte, snapshots), nil)
			}
		}
	}
	o.Events.Corrupt = func(what string) { t.Error("corrupt:", what) }
	l = mustOpen(t, o)
	create := func(rng *rand.Rand, n int) *stressed {
		p := &stressed{id: l.Create([16]byte{1}, int32(n), 0, nil, nil, nil), stuck: rng.IntN(stuckOf) == 0}
		if p.stuck {
			l.SetStuck(p.id, true)
		}
		mu.Lock()
		all[p.id] = p
		mu.Unlock()
		return p
	}
	var accepted, refused atomic.Int64
	upload := func(own []*stressed) {
		for _, p := range own {
			if !p.stuck {
				p.below = max(p.below, min(p.durable.Load(), p.end))
				l.SetReclaimable(p.id, p.below)
			}
		}
	}
	var running atomic.Int64
	// drive is a worker, on its own partitions.
	drive := func(rng *rand.Rand, own []*stressed, steps int) {
		defer func() { // the others may need what these hold
			for running.Add(-1); running.Load() > 0 && !t.Failed(); time.Sleep(100 * time.Microsecond) {
				upload(own)
			}
		}()
		for step := range steps {
			i := rng.IntN(len(own))
			p := own[i]
			switch n := rng.IntN(100); {
			case n < 80:
				if !p.stuck && rng.IntN(8) == 0 {
					p.below = max(p.below, min(p.durable.Load(), p.end))
					l.SetReclaimable(p.id, p.below)
				}
				if l.Admit(p.id) != nil {
					continue
				}
				class := Class(0)
				if rng.IntN(4) == 0 {
					class = ClassReplication
				}
				size := 61 + rng.IntN(largest)
				if p.stuck { // one append may go beyond its share
					size = min(size, int(o.MaxBytes/16)/partitions)
				}
				b := mkBatch(p.end, 1+rng.IntN(3), size, rng.Int64N(1000), byte(step))
				records := int64(b[60])
				since := time.Now()
				for {
					ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
					err := l.Reserve(ctx, class, int64(len(b)))
					cancel()
					if err == nil {
						break
					}
					refused.Add(1)
					if !errors.Is(err, ErrNoSpace) || time.Since(since) > 20*time.Second {
						t.Errorf("%s: %v after %v; %+v", what, err, time.Since(since), l.Stats())
						return
					}
					upload(own)
					time.Sleep(50 * time.Microsecond)
				}
				accepted.Add(int64(len(b)))
				x := modelBatch{p.end, p.end + records, b}
				p.end = x.next
				l.Append(&Append{Partition: p.id, BaseOffset: x.base, LastOffset: x.next - 1, MaxTimestamp: 1000, Run: b, Class: class, Done: p.op(stressOp{x}, x.next)})
			case n < 84 && len(p.batches) > 0:
				to := p.batches[max(0, len(p.batches)-1-rng.IntN(4))].base
				if to < p.below || to < p.trimmed {
					continue
				}
				p.end = to
				p.durable.Store(min(p.durable.Load(), to)) // an append told meanwhile raises it: see below
				done := p.op(stressOp{modelBatch{base: to}}, to)
				if err := wait(func(told func(error)) { l.Truncate(p.id, to, func(err error) { done(err); told(err) }) }); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				p.snapped.Store(min(p.snapped.Load(), to))
			case n < 87 && p.end > 0:
				if to := rng.Int64N(min(p.durable.Load(), p.end) + 1); to > p.trimmed {
					p.trimmed = to
					l.Trim(p.id, to, nil)
				}
			case n < 89:
				if err := p.read(l, p.batches, p.end); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			case n < 94 && rng.IntN(10) == 0:
				p.below = max(p.below, min(p.durable.Load(), p.end))
				l.SetReclaimable(p.id, p.below)
				p.stuck = !p.stuck
				l.SetStuck(p.id, p.stuck)
			case n == 95 && rng.IntN(10) == 0:
				mu.Lock()
				delete(all, p.id)
				mu.Unlock()
				l.Drop(p.id, nil)
				own[i] = create(rng, step)
			case n < 98:
				l.HighWatermark(p.id, p.end)
			default:
				l.Epoch(p.id, int32(step), p.end, nil)
			}
			if t.Failed() {
				return
			}
		}
	}
	const workers = 3
	owned := [workers][]*stressed{}
	for i := range partitions {
		owned[i%workers] = append(owned[i%workers], create(rng, i))
	}
	close(ready)
	for life := range 3 {
		var wg sync.WaitGroup
		running.Store(workers)
		for w := range workers {
			wg.Add(1)
			r := rand.New(rand.NewPCG(seed, uint64(10*life+w)))
			steps := 300 + int(3*o.MaxBytes/int64(61+largest/2))/workers
			if steps = min(steps, 6000); !*long {
				steps = min(steps, 2000)
			}
			go func() { defer wg.Done(); drive(r, owned[w], steps) }()
		}
		wg.Wait()
		if t.Failed() {
			t.Logf("%s; life %d", what, life)
			t.FailNow() // without Close: it may wait for the same
		}
		acked := map[PartitionID]int64{}
		for id, p := range all {
			acked[id] = p.acked.Load()
		}
		old := l
		if life%2 == 0 {
			mem = mem.Crash(seed)
			mustClose(t, old)
		} else {
			mustClose(t, old)
			mem = mem.Crash(seed)
			for id, p := range all {
				acked[id] = p.acked.Load()
			}
		}
		if st := old.Stats(); st.CarriedBytes > 3*accepted.Load()+2*o.MaxBytes {
			t.Errorf("%s: %d bytes copied for %d that were accepted", what, st.CarriedBytes, accepted.Load())
		} else {
			t.Logf("%s: %d MB accepted, %d carried, refused %d, %d reclaimed", what, accepted.Load()>>20, st.CarriedBytes>>20, refused.Load(), st.Reclaimed)
		}
		accepted.Store(0)
		o.FS = mem
		mu.Lock()
		l = mustOpen(t, o)
		mu.Unlock()
		recs := map[PartitionID]Recovered{}
		for _, r := range l.Partitions() {
			recs[r.ID] = r
			if all[r.ID] == nil {
				l.Drop(r.ID, nil) // that may not have been durable
			}
		}
		for w := range owned {
			for i, p := range owned[w] {
				r, ok := recs[p.id]
				if !ok {
					if acked[p.id] > 0 {
						t.Fatalf("%s: partition %d is gone", what, p.id)
					}
					delete(all, p.id)
					owned[w][i] = create(rng, 1000+i)
					continue
				}
				if err := p.recovered(l, acked[p.id], r); err != nil {
					t.Fatalf("%s: life %d: %v", what, life, err)
				}
				p.snapped.Store(0)
				l.SetReclaimable(p.id, p.below)
				l.SetStuck(p.id, p.stuck)
			}
		}
	}
	mustClose(t, l)
}
