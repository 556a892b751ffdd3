package wal

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

var long = flag.Bool("long", false, "run the long forms: every byte, and every crash point with many seeds")

// model is what a log should hold, as a function of the operations so far.
type model struct {
	parts map[PartitionID]*modelPart
}

type modelPart struct {
	start, end int64
	lin        lineage.Lineage
	snap       string
	snapAt     int64
	batches    []modelBatch
}

type modelBatch struct {
	base, next int64
	bytes      []byte
}

func (m *model) clone() *model {
	c := &model{parts: map[PartitionID]*modelPart{}}
	for id, p := range m.parts {
		x := *p
		x.batches = slices.Clone(p.batches)
		c.parts[id] = &x
	}
	return c
}

// script drives a log and keeps, for every prefix of the operations, what the log should hold. Operations of one
// partition and of all of them are queued by one goroutine, so the log's order is the script's.
type script struct {
	rng    *rand.Rand
	l      *Log
	ops    []func(m *model)
	mu     sync.Mutex
	acked  int // operations known durable: a prefix, since done is told in order
	failed bool
	live   *model // after all operations
	ids    []PartitionID
	// below is the highest bound given to SetReclaimable: below it the local start may move up by itself.
	below map[PartitionID]int64
	// dropped are partitions that the script has dropped. When the log is out of space that may take effect before
	// what was queued before it.
	dropped map[PartitionID]bool
	asked   map[PartitionID]int64 // trims, which may take effect early in the same way
}

func newScript(seed uint64) *script {
	return &script{rng: rand.New(rand.NewPCG(seed, 7)), live: &model{parts: map[PartitionID]*modelPart{}}, below: map[PartitionID]int64{}, dropped: map[PartitionID]bool{}, asked: map[PartitionID]int64{}}
}

// op records an operation and returns the function to be told when it is durable.
func (s *script) op(change func(m *model)) func(error) {
	change(s.live)
	s.ops = append(s.ops, change)
	n := len(s.ops)
	return func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.failed = true
			return
		}
		if s.failed {
			panic("acknowledged after a failure")
		}
		s.acked = n
	}
}

func (s *script) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed || s.l.Failed() != nil
}

// step does one random operation.
func (s *script) step() {
	l, rng := s.l, s.rng
	if len(s.ids) == 0 || len(s.ids) < 5 && rng.IntN(12) == 0 {
		topic := [16]byte{byte(len(s.ids)), 9}
		start := int64(rng.IntN(3) * 100)
		lin := lineage.Lineage{{Epoch: 1, Start: start}}
		snap := ""
		if rng.IntN(2) == 0 {
			snap = fmt.Sprintf("created at %d", start)
		}
		// The id is known after the call: the model learns it through a variable.
		var id PartitionID
		done := s.op(func(m *model) {
			if id != 0 {
				m.parts[id] = &modelPart{start: start, end: start, lin: lin, snap: snap, snapAt: start}
			}
		})
		id = l.Create(topic, int32(len(s.ids)), start, lin, []byte(snap), done)
		s.ops[len(s.ops)-1](s.live)
		s.ids = append(s.ids, id)
		return
	}
	id := s.ids[rng.IntN(len(s.ids))]
	p := s.live.parts[id]
	switch n := rng.IntN(40); {
	case n < 26:
		records := 1 + rng.IntN(3)
		base := p.end
		b := mkBatch(base, records, 61+rng.IntN(2500), int64(rng.IntN(1000)), byte(rng.IntN(256)))
		mb := modelBatch{base, base + int64(records), b}
		if err := l.Reserve(context.Background(), ClassInternal, int64(len(b))); err != nil {
			return
		}
		buf := slab.Get(len(b))
		copy(buf.Bytes(), b)
		done := s.op(func(m *model) {
			q := m.parts[id]
			if q == nil {
				return
			}
			q.batches = append(q.batches, mb)
			q.end = mb.next
		})
		l.Append(&Append{Partition: id, BaseOffset: base, LastOffset: mb.next - 1, Run: buf.Bytes(), Buf: buf, Done: done})
		buf.Release()
	case n < 29 && len(p.batches) > 0:
		to := p.batches[rng.IntN(len(p.batches))].base
		if to < s.below[id] || to < p.start {
			return // the broker never cuts what is committed to object storage
		}
		done := s.op(func(m *model) {
			q := m.parts[id]
			if q == nil {
				return
			}
			for len(q.batches) > 0 && q.batches[len(q.batches)-1].base >= to {
				q.batches = q.batches[:len(q.batches)-1]
			}
			q.end, q.lin = to, q.lin.TruncateEnd(to)
			if q.snapAt > to {
				q.snap, q.snapAt = "", 0
			}
		})
		l.Truncate(id, to, done)
	case n < 32:
		e, _ := p.lin.Latest()
		epoch, at := e.Epoch+1, p.end
		done := s.op(func(m *model) {
			if q := m.parts[id]; q != nil {
				q.lin = q.lin.Assign(epoch, at)
			}
		})
		l.Epoch(id, epoch, at, done)
	case n < 34 && p.end > p.start:
		to := p.start + rng.Int64N(p.end-p.start+1)
		s.asked[id] = max(s.asked[id], to)
		done := s.op(func(m *model) {
			if q := m.parts[id]; q != nil {
				q.start = max(q.start, to)
			}
		})
		l.Trim(id, to, done)
	case n < 37:
		snap, at := strings.Repeat(fmt.Sprintf("state at %d;", p.end), 1+rng.IntN(100)), p.end
		done := s.op(func(m *model) {
			if q := m.parts[id]; q != nil {
				q.snap, q.snapAt = snap, at
			}
		})
		l.Snapshot(id, at, []byte(snap), done)
	case n < 39 && p.end > p.start:
		to := p.start + rng.Int64N(p.end-p.start+1)
		if to > s.below[id] {
			s.below[id] = to
			l.SetReclaimable(id, to)
		}
	case n == 39 && len(s.ids) > 2 && rng.IntN(4) == 0:
		i := slices.Index(s.ids, id)
		s.ids = slices.Delete(s.ids, i, i+1)
		s.dropped[id] = true
		done := s.op(func(m *model) { delete(m.parts, id) })
		l.Drop(id, done)
	}
}

// run does so many operations, and now and then waits for all to be durable. It returns when the log has failed.
func (s *script) run(steps int) {
	for range steps {
		if s.ended() {
			return
		}
		if s.l.Stats().FreeSegments < 2 {
			// Object storage catches up before even control records have to wait.
			for _, id := range s.ids {
				s.below[id] = max(s.below[id], s.live.parts[id].end)
				s.l.SetReclaimable(id, s.below[id])
			}
		}
		s.step()
		if s.rng.IntN(3) == 0 && len(s.ids) > 0 {
			wait(func(done func(error)) { s.l.Epoch(s.ids[0], -1, -1, done) }) // changes nothing
		}
	}
}

// matches compares what was recovered with the model after some prefix of the operations.
func (s *script) matches(l *Log, m *model) error {
	rec := map[PartitionID]Recovered{}
	for _, r := range l.Partitions() {
		rec[r.ID] = r
	}
	for id := range rec {
		if m.parts[id] == nil {
			return fmt.Errorf("partition %d is there", id)
		}
	}
	for id, p := range m.parts {
		r, ok := rec[id]
		switch {
		case !ok && s.dropped[id]:
			delete(m.parts, id)
			continue
		case !ok:
			return fmt.Errorf("partition %d is not there", id)
		case r.Suspect:
			return fmt.Errorf("partition %d is suspect", id)
		case r.End != p.end:
			return fmt.Errorf("partition %d ends at %d, want %d", id, r.End, p.end)
		case !r.Lineage.Equal(p.lin):
			return fmt.Errorf("partition %d has lineage %v, want %v", id, r.Lineage, p.lin)
		case string(r.Snapshot) != p.snap:
			return fmt.Errorf("partition %d has another snapshot: %d bytes at %d, want %d at %d", id, len(r.Snapshot), r.SnapshotOffset, len(p.snap), p.snapAt)
		case r.Start < p.start && r.Start != r.End || r.Start > max(p.start, s.below[id], s.asked[id]):
			return fmt.Errorf("partition %d starts at %d, want %d to %d", id, r.Start, p.start, max(p.start, s.below[id]))
		}
		var want []byte
		for _, b := range p.batches {
			if b.next > r.Start {
				want = append(want, b.bytes...)
			}
		}
		got, err := readAll(l, id, r.Start, r.End, 3000)
		if err != nil {
			return fmt.Errorf("partition %d: %w", id, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("partition %d [%d, %d) (model %d): %d bytes read, want %d", id, r.Start, r.End, p.start, len(got), len(want))
		}
	}
	return nil
}

// check says whether the log holds a prefix of the operations with all that were acknowledged (I4), and returns the
// script's state at that prefix.
func (s *script) check(t *testing.T, l *Log, what string) {
	t.Helper()
	m := &model{parts: map[PartitionID]*modelPart{}}
	var why error
	for n := 0; n <= len(s.ops); n++ {
		if n > 0 {
			s.ops[n-1](m)
		}
		if n < s.acked {
			continue
		}
		if err := s.matches(l, m.clone()); err == nil {
			s.matches(l, m)
			s.ops, s.acked, s.live = s.ops[:n], n, m.clone()
			s.ids = s.ids[:0]
			for id := range m.parts {
				s.ids = append(s.ids, id)
			}
			slices.Sort(s.ids)
			return
		} else {
			why = errors.Join(why, fmt.Errorf("after %d: %w", n, err))
		}
	}
	t.Fatalf("%s: no prefix of %d operations, %d of them acknowledged, is what was recovered:\n%v", what, len(s.ops), s.acked, why)
}

func crashOptions(fs vfs.FS) Options {
	o := testOptions(fs)
	o.MaxBytes = 10 * o.SegmentBytes
	o.CacheBytes = 8 << 10 // most reads are from disk
	o.paged = true
	o.Events.Corrupt = func(what string) { panic("a crash damages nothing: " + what) }
	return o
}

// TestCrashEverywhere runs a script until the file system dies at its nth operation, for every n; then it opens the
// log as the machine would after losing power, and compares. Then the script goes on, crashes again, and is
// compared again: recovery leaves nothing behind that a second crash could bring up.
func TestCrashEverywhere(t *testing.T) {
	seeds, step := 2, 1
	if *long {
		seeds = 40
	}
	if testing.Short() {
		seeds, step = 1, 7
	}
	points := 0
	for seed := range uint64(seeds) {
		for n := 1 + int(seed)%step; ; n += step {
			fs := vfs.NewMem()
			fs.CrashAt(n)
			s := newScript(seed)
			l, err := Open(crashOptions(fs))
			if err == nil {
				s.l = l
				s.run(150)
				l.Close()
			}
			points++
			done := !fs.Crashed()
			if n%2 == 1 {
				fs = fs.Kill()
				fs.CrashAt(1 + n/2%60) // in the start, or soon after
				if l, err := Open(crashOptions(fs)); err == nil {
					l.Close()
				}
			}
			for round := range 3 {
				what := fmt.Sprintf("seed %d, crash at operation %d, round %d", seed, n, round)
				if round == 1 {
					fs = fs.Kill() // not powered off
				} else {
					fs = fs.Crash(seed*1000 + uint64(n))
				}
				l, err := Open(crashOptions(fs))
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				s.l, s.failed = l, false
				s.check(t, l, what)
				for id, below := range s.below {
					l.SetReclaimable(id, below)
				}
				if round < 2 {
					fs.CrashAt(40 + n%30)
					s.run(40)
				}
				l.Close()
			}
			if done {
				break
			}
		}
	}
	t.Logf("%d crash points", points)
}

// TestKillAndReopen is many lives of one log, with everything that reclaim does in between.
func TestKillAndReopen(t *testing.T) {
	fs := vfs.NewMem()
	s := newScript(99)
	lives := 12
	if *long {
		lives = 200
	}
	reclaimed, carried := int64(0), int64(0)
	for life := range lives {
		l := mustOpen(t, crashOptions(fs))
		s.l, s.failed = l, false
		s.check(t, l, fmt.Sprintf("life %d", life))
		for id, below := range s.below {
			l.SetReclaimable(id, below)
		}
		s.run(150)
		// What was not told to be durable is by now, or is not.
		mustClose(t, l)
		if !s.failed {
			s.acked = len(s.ops)
		}
		st := l.Stats()
		reclaimed, carried = reclaimed+st.Reclaimed, carried+st.CarriedBytes
		fs = fs.Crash(uint64(life))
	}
	t.Logf("%d segments reclaimed, %d bytes carried", reclaimed, carried)
	if reclaimed == 0 || carried == 0 {
		t.Errorf("%d segments reclaimed, %d bytes carried: the script does not reach what it is there for", reclaimed, carried)
	}
}
