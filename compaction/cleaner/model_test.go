package cleaner

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// Random histories against a model that knows every record that was ever written and states Kafka's rules over that,
// record by record. The model and the log must agree exactly; and what consumers and producers rely on is checked
// without the model's rules:
//
//   - a consumer that reads the log in two parts, at most delete.retention.ms apart and with any number of rounds in
//     between, ends with the newest value of each key and without the deleted ones;
//   - a read_committed consumer, from any offset to any other, sees no aborted and every committed record that is left;
//   - a producer's state that is folded from what is left knows the same epochs, sequences and open transactions;
//   - what lies above the end of a round's table is all there.
//
// VARVE_TEST_SEED repeats one history, VARVE_LONG runs many more.
func TestHistories(t *testing.T) {
	if s := os.Getenv("VARVE_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		newHistory(t, seed).run()
		return
	}
	n := uint64(400)
	if os.Getenv("VARVE_LONG") != "" {
		n = 20_000
	}
	var all seen
	for seed := range n {
		h := newHistory(t, seed)
		h.run()
		all.add(h.seen)
		if t.Failed() {
			return
		}
	}
	// A generator that stopped making what the rules are about would make the test pass for nothing.
	for what, n := range map[string]int{"rounds": all.rounds, "full tables": all.full, "broken off": all.broken, "resumed": all.resumed, "passes without a scan": all.passes,
		"tombstones gone": all.tombstones, "aborted records gone": all.aborted, "markers gone": all.markers, "null keys gone": all.nulls,
		"batches emptied": all.emptied, "batches cut by the end": all.cut, "large batches made anew": all.large, "consumers": all.consumers, "producers": all.producers, "read committed": all.readers} {
		if n == 0 {
			t.Errorf("%s: none in %d histories", what, all.rounds)
		}
	}
	t.Logf("%+v", all)
}

type seen struct {
	rounds, full, broken, resumed, passes, tombstones, aborted, markers, nulls, emptied, cut, large, consumers, producers, readers int
}

func (s *seen) add(o seen) {
	s.rounds += o.rounds
	s.full += o.full
	s.broken += o.broken
	s.resumed += o.resumed
	s.passes += o.passes
	s.tombstones += o.tombstones
	s.aborted += o.aborted
	s.markers += o.markers
	s.nulls += o.nulls
	s.emptied += o.emptied
	s.cut += o.cut
	s.large += o.large
	s.consumers += o.consumers
	s.producers += o.producers
	s.readers += o.readers
}

// fact is a batch that was written, and what the model says is left of it.
type fact struct {
	base, last int64
	pid        int64
	epoch      int16
	seq        int32
	txn        *txn // nil: none
	control    bool
	commit     bool
	appendTime bool
	codec      batch.Codec
	records    []*record
	max        int64

	gone    bool
	horizon int64 // 0: none
}

type record struct {
	offset, ts int64
	key, value []byte
	headers    []batch.RecordHeader
	gone       bool
}

type txn struct {
	pid         int64
	first, last int64 // last: the marker; MaxInt64 while it is open
	aborted     bool
	facts       []*fact
}

func (x *txn) ended() bool { return x.last != math.MaxInt64 }

type client struct {
	pid   int64
	epoch int16
	seq   int32
	open  *txn
	txns  bool // writes in transactions
}

// object is what a manifest entry would name.
type object struct {
	base, last int64
	batches    [][]byte
	aborted    []producer.Aborted
}

type history struct {
	t    *testing.T
	seed uint64
	rnd  *rand.Rand

	now       int64
	retention int64
	forgetful bool // some rounds are told nothing of the producers
	forgotten bool // a round was told nothing of the producers
	keys      int
	key       string // that all begin with
	clients   []*client
	pids      int64

	facts   []*fact
	txns    []*txn
	next    int64
	known   *producer.State // of all that was written
	pending [][]byte        // not in an object yet
	objects []object
	clean   int64 // end of the last completed round
	reach   int64 // largest end of a table

	before map[int64]bool // producers whose transaction may have begun before the pass did

	readers []reader
	seen    seen
}

// reader is a consumer that has read a part of the log into a map.
type reader struct {
	at     int64
	since  int64
	values map[string]string
}

func newHistory(t *testing.T, seed uint64) *history {
	rnd := rand.New(rand.NewPCG(seed, 0x76617276))
	h := &history{t: t, seed: seed, rnd: rnd, now: 1_000_000, retention: []int64{0, 10, 100, 1000}[rnd.IntN(4)], keys: 1 + rnd.IntN(12), known: producer.New()}
	h.forgetful = rnd.IntN(5) == 0
	h.key = strings.Repeat("key", []int{1, 1, 21, 50}[rnd.IntN(4)]) // with the smallest window, one of more than 64 bytes is long
	if rnd.IntN(4) == 0 {
		h.known.SetLimit(1 + rnd.IntN(4))
	}
	for range 1 + rnd.IntN(5) {
		h.client(rnd.IntN(2) == 0)
	}
	return h
}

func (h *history) client(txns bool) {
	h.pids++
	h.clients = append(h.clients, &client{pid: h.pids, txns: txns})
}

func (h *history) fatalf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d, round %d: %s", h.seed, h.seen.rounds, fmt.Sprintf(format, args...))
}

func (h *history) chance(percent int) bool { return h.rnd.IntN(100) < percent }

func (h *history) run() {
	for range 2 + h.rnd.IntN(12) {
		for range h.rnd.IntN(15) {
			h.write()
		}
		h.upload()
		for range h.rnd.IntN(3) {
			h.now += h.rnd.Int64N(150)
			h.round()
			h.checkAll()
		}
	}
}

func (h *history) write() {
	c := h.clients[h.rnd.IntN(len(h.clients))]
	switch {
	case h.chance(15):
		h.data(nil)
	case c.txns && c.open != nil && h.chance(30):
		h.mark(c, h.chance(50))
	case c.txns && c.open == nil && h.chance(8): // a marker that comes again, or fences
		h.mark(c, h.chance(50))
	case h.chance(3):
		h.client(h.chance(50))
	default:
		h.data(c)
	}
}

// data writes a batch, of a client or of nobody.
func (h *history) data(c *client) {
	b := batch.NewBuilder()
	f := &fact{base: h.next, pid: -1, epoch: -1, seq: -1, codec: batch.Codec(h.rnd.IntN(5)), appendTime: h.chance(20)}
	if h.chance(50) {
		f.codec = batch.None
	}
	if c != nil {
		f.pid, f.epoch, f.seq = c.pid, c.epoch, c.seq
		if c.txns {
			if c.open == nil {
				c.open = &txn{pid: c.pid, first: h.next, last: math.MaxInt64}
				h.txns = append(h.txns, c.open)
			}
			f.txn = c.open
			c.open.facts = append(c.open.facts, f)
			b.Transactional = true
			if h.chance(10) {
				f.seq = -1 // as a group coordinator writes
			}
		}
	}
	b.BaseOffset, b.LeaderEpoch, b.Codec, b.LogAppendTime = f.base, int32(f.base/50), f.codec, f.appendTime
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = f.pid, f.epoch, f.seq
	ts := h.now - h.rnd.Int64N(1000)
	if h.chance(5) {
		ts = batch.NoTimestamp
	}
	for i := range 1 + h.rnd.IntN(5) {
		r := &record{offset: h.next + int64(i), ts: ts, key: []byte{}}
		if ts != batch.NoTimestamp {
			r.ts += h.rnd.Int64N(50)
		}
		if k := h.rnd.IntN(h.keys); k > 0 {
			r.key = []byte(fmt.Sprint(h.key, k))
		}
		if h.chance(5) {
			r.key = nil
		}
		if !h.chance(30) {
			r.value = fmt.Appendf(nil, "value %d", r.offset)
		}
		for range h.rnd.IntN(3) {
			r.headers = append(r.headers, batch.RecordHeader{Key: "h", Value: fmt.Append(nil, r.offset)})
		}
		b.Add(r.ts, r.key, r.value, r.headers...)
		f.records = append(f.records, r)
		f.last = r.offset
	}
	f.max = slices.MaxFunc(f.records, func(a, b *record) int { return int(a.ts - b.ts) }).ts
	if f.appendTime {
		for _, r := range f.records {
			r.ts = f.max
		}
	}
	if f.seq >= 0 {
		c.seq += int32(len(f.records))
	}
	raw, err := b.Build()
	if err != nil {
		h.fatalf("%v", err)
	}
	h.append(f, raw)
}

func (h *history) mark(c *client, commit bool) {
	if h.chance(40) { // the coordinator raises the epoch
		c.epoch++
		c.seq = 0
	}
	f := &fact{base: h.next, last: h.next, pid: c.pid, epoch: c.epoch, seq: -1, control: true, commit: commit, txn: c.open, max: h.now}
	if c.open != nil {
		c.open.last, c.open.aborted = h.next, !commit
		c.open = nil
	}
	raw := batch.Marker(c.pid, c.epoch, commit, 1, h.now)
	batch.SetBaseOffset(raw, h.next)
	batch.SetLeaderEpoch(raw, int32(h.next/50))
	h.append(f, raw)
}

func (h *history) append(f *fact, raw []byte) {
	hdr, err := batch.ParseHeader(raw)
	if err != nil {
		h.fatalf("%v", err)
	}
	h.known.Apply(hdr, raw)
	h.facts = append(h.facts, f)
	h.next = f.last + 1
	h.pending = append(h.pending, raw)
}

// upload makes objects of what is pending.
func (h *history) upload() {
	for len(h.pending) > 0 {
		n := 1 + h.rnd.IntN(min(6, len(h.pending)))
		o := object{batches: h.pending[:n:n]}
		first, _ := batch.ParseHeader(o.batches[0])
		last, _ := batch.ParseHeader(o.batches[n-1])
		o.base, o.last = first.BaseOffset, last.LastOffset()
		for _, x := range h.txns {
			if x.ended() && x.aborted && x.last >= o.base && x.last <= o.last {
				o.aborted = append(o.aborted, producer.Aborted{ProducerID: x.pid, FirstOffset: x.first, LastOffset: x.last})
			}
		}
		h.objects = append(h.objects, o)
		h.pending = h.pending[n:]
	}
}

// stable is the last stable offset.
func (h *history) stable() int64 {
	at := h.next
	for _, x := range h.txns {
		if !x.ended() {
			at = min(at, x.first)
		}
	}
	return at
}

func (h *history) open(at int64) (open []producer.OpenTxn) {
	for _, x := range h.txns {
		if x.first < at && x.last >= at {
			open = append(open, producer.OpenTxn{ProducerID: x.pid, FirstOffset: x.first})
		}
	}
	return open
}

func (h *history) options(end int64) Options {
	o := Options{DirtyStart: h.clean, End: end, Now: h.now, DeleteRetention: h.retention, Codec: KeepCodec, Window: 1 << 20}
	if h.forgetful && h.chance(50) {
		h.forgotten = true
	} else {
		o.Producers = h.known
	}
	if h.chance(50) {
		o.Window = 1 // the smallest
	}
	if h.chance(30) {
		o.Codec, o.Level = batch.Codec(h.rnd.IntN(5)), batch.DefaultLevel
	}
	for _, ob := range h.objects {
		o.Aborted = append(o.Aborted, ob.aborted...)
	}
	h.rnd.Shuffle(len(o.Aborted), func(i, j int) { o.Aborted[i], o.Aborted[j] = o.Aborted[j], o.Aborted[i] })
	return o
}

// round cleans, breaks off now and then, and goes on or does not.
func (h *history) round() {
	if len(h.objects) == 0 {
		return
	}
	h.seen.rounds++
	stable := h.stable()
	end := h.objects[h.rnd.IntN(len(h.objects))].last + 1
	if h.chance(20) {
		end -= h.rnd.Int64N(3)
	}
	end = min(max(end, h.clean), stable)
	o := h.options(end)
	keys := 1 + h.rnd.IntN(2*h.keys)
	if h.chance(15) { // only what has reached its horizon, in some of the objects
		h.seen.passes++
		from := h.rnd.IntN(len(h.objects))
		h.filter(o, newTable(h.t, 1, 0.9), from, from+1+h.rnd.IntN(len(h.objects)-from), false)
		return
	}
	to := len(h.objects)
	if h.chance(25) {
		to = h.rnd.IntN(len(h.objects))
	}
	tableEnd, filtered := h.filter(o, newTable(h.t, keys, 0.9), 0, to, true)
	if filtered < tableEnd && h.chance(50) {
		// Another worker goes on, with the same range, and now and then less memory.
		h.seen.resumed++
		again := h.options(tableEnd)
		again.Now = h.now + h.rnd.Int64N(50)
		h.now = again.Now
		at := slices.IndexFunc(h.objects, func(ob object) bool { return ob.base == filtered })
		smaller := h.chance(20)
		if smaller {
			keys = 1 + h.rnd.IntN(keys)
		}
		was := tableEnd
		tableEnd, filtered = h.filter(again, newTable(h.t, keys, 0.9), at, len(h.objects), true)
		if tableEnd > was || tableEnd < was && !smaller {
			h.fatalf("a round that goes on has a table up to %d, not %d", tableEnd, was)
		}
	}
	if filtered < tableEnd {
		h.seen.broken++
		return
	}
	h.clean = max(h.clean, tableEnd)
}

// filter runs a round over the objects [from, to) and commits what remains, group by group. It returns the end of the
// table and where it stopped.
func (h *history) filter(o Options, table *Table, from, to int, scan bool) (tableEnd, filtered int64) {
	begin := h.objects[from].base
	o.Open = h.open(begin)
	h.before = map[int64]bool{}
	for _, x := range o.Open {
		h.before[x.ProducerID] = true
	}
	r := NewRound(o, table)
	if scan {
		h.scan(r)
	}
	tableEnd = r.TableEnd()
	h.reach = max(h.reach, tableEnd)
	if tableEnd > o.End || scan && tableEnd <= h.clean && h.clean < o.End {
		h.fatalf("the table ends at %d, with a range of %d to %d", tableEnd, o.DirtyStart, o.End)
	}
	if r.Full() {
		h.seen.full++
	}
	var objects []object
	i := from
	for i < to && h.objects[i].base < tableEnd {
		n := min(1+h.rnd.IntN(3), to-i)
		group := h.objects[i : i+n]
		out := object{base: group[0].base, last: group[n-1].last}
		var in [][]byte
		for _, g := range group {
			in = append(in, g.batches...)
		}
		h.model(o, tableEnd, out.base, out.last)
		for j, b := range in {
			hdr, err := batch.ParseHeader(b)
			if err != nil {
				h.fatalf("%v", err)
			}
			before := bytes.Clone(b)
			got, err := r.Filter(hdr, b, j == len(in)-1)
			if err != nil {
				h.fatalf("%v", err)
			}
			if !bytes.Equal(before, b) {
				h.fatalf("the batch at %d was written to", hdr.BaseOffset)
			}
			if got != nil {
				out.batches = append(out.batches, bytes.Clone(got))
			}
		}
		sum := r.Cut()
		out.aborted = sum.Aborted
		h.checkSummary(sum, in, out)
		objects = append(objects, out)
		i += n
	}
	filtered = h.next
	if i < len(h.objects) {
		filtered = h.objects[i].base
	}
	h.objects = slices.Concat(h.objects[:from], objects, h.objects[i:])
	return tableEnd, filtered
}

func (h *history) scan(r *Round) {
	for _, ob := range h.objects {
		for _, b := range ob.batches {
			hdr, err := batch.ParseHeader(b)
			if err != nil {
				h.fatalf("%v", err)
			}
			if hdr.LastOffset() < h.clean {
				continue
			}
			more, err := r.Scan(hdr, b)
			if err != nil {
				h.fatalf("%v", err)
			}
			if !more {
				return
			}
		}
	}
}

// model says what is left of the batches in [base, last], after a pass with a table up to end.
func (h *history) model(o Options, end, base, last int64) {
	var stays *fact // the last of the section
	for _, f := range h.facts {
		if !f.gone && f.base >= base && f.base <= last {
			stays = f
		}
	}
	horizon := o.Now + o.DeleteRetention
	for _, f := range h.facts {
		if f.gone || f.base < base || f.base > last || f.base >= end {
			continue
		}
		whole := f.last < end
		stay := f == stays || o.Producers != nil && h.source(f.pid) == f.last && f.pid >= 0
		if f.control {
			left := h.before[f.pid]
			delete(h.before, f.pid)
			if f.txn != nil {
				for _, d := range f.txn.facts {
					left = left || !d.gone
				}
			}
			switch {
			case left:
			case f.horizon == 0:
				f.horizon = horizon
			case o.Now >= f.horizon && !stay:
				f.gone = true
				h.seen.markers++
			}
			continue
		}
		aborted := f.txn != nil && f.txn.ended() && f.txn.aborted
		if !whole {
			h.seen.cut++
			if aborted {
				continue
			}
		}
		left, changed, tombstones := 0, false, false
		for _, r := range f.records {
			if r.gone {
				continue
			}
			if r.offset < end {
				expired := r.value == nil && f.horizon > 0 && o.Now >= f.horizon
				switch {
				case aborted:
					h.seen.aborted++
					r.gone = true
				case r.key == nil:
					h.seen.nulls++
					r.gone = true
				case h.newer(r, end):
					r.gone = true
				case expired:
					h.seen.tombstones++
					r.gone = true
				}
				changed = changed || r.gone
			}
			if !r.gone {
				left++
				tombstones = tombstones || r.value == nil && r.offset < end
			}
		}
		switch {
		case left == 0 && !stay:
			f.gone = true
		case left == 0:
			if changed {
				h.seen.emptied++
				f.horizon, f.codec = 0, batch.None
			}
		default:
			if tombstones && whole && f.horizon == 0 {
				f.horizon, changed = horizon, true
			}
			large := h.inflated(f) > max(o.Window, 128)
			if changed && large {
				h.seen.large++
			}
			if changed && o.Codec != KeepCodec && (!large || f.codec == batch.None) {
				f.codec = o.Codec
			}
		}
	}
}

// inflated is how many bytes the records of a batch take now.
func (h *history) inflated(f *fact) int {
	for _, o := range h.objects {
		for _, b := range o.batches {
			if hdr, err := batch.ParseHeader(b); err == nil && hdr.BaseOffset == f.base {
				plain, err := batch.Recompress(b, batch.None, 0, 1<<20)
				if err != nil {
					h.fatalf("%v", err)
				}
				return len(plain) - batch.HeaderSize
			}
		}
	}
	h.fatalf("no batch at %d", f.base)
	return 0
}

// newer tells whether a record of the same key was committed after r, below end.
func (h *history) newer(r *record, end int64) bool {
	for _, f := range h.facts {
		if f.control || f.last <= r.offset || f.base >= end || f.txn != nil && (!f.txn.ended() || f.txn.aborted) {
			continue
		}
		for _, x := range f.records {
			if x.offset > r.offset && x.offset < end && x.key != nil && r.key != nil && bytes.Equal(x.key, r.key) {
				return true
			}
		}
	}
	return false
}

// source is the last offset of the batch that a producer's state is from, as far as it is known.
func (h *history) source(pid int64) int64 {
	at, known := int64(-1), false
	for p := range h.known.Producers() {
		if p.ID == pid {
			if known = true; h.known.Limit() < producer.DefaultLimit {
				return p.StateOffset // of what it has written since it was forgotten
			}
		}
	}
	if !known {
		return -1
	}
	sequenced, epoch := false, int16(-1)
	for _, f := range h.facts {
		if f.pid != pid {
			continue
		}
		if f.epoch != epoch {
			epoch, sequenced = f.epoch, false
		}
		if f.seq >= 0 || !sequenced {
			at = f.last
		}
		sequenced = sequenced || f.seq >= 0
	}
	return at
}

func (h *history) checkSummary(s Summary, in [][]byte, out object) {
	var n, records, size int64
	var horizons []int64
	for _, b := range out.batches {
		hdr, _ := batch.ParseHeader(b)
		n, records, size = n+1, records+int64(hdr.RecordCount), size+int64(len(b))
		if hdr.HasDeleteHorizon() {
			horizons = append(horizons, hdr.BaseTimestamp)
		}
	}
	if n != s.Batches || records != s.Records || size != s.Bytes || int64(len(in)) != s.BatchesIn ||
		(s.HorizonBytes > 0) != (s.Horizon > 0) || s.HorizonBytes > 0 && !slices.Contains(horizons, s.Horizon) {
		h.fatalf("summary %+v of %d batches, %d records, %d bytes, horizons %v", s, n, records, size, horizons)
	}
	if !s.Changed() && !slices.EqualFunc(in, out.batches, bytes.Equal) {
		h.fatalf("section %d-%d changed and does not say so", out.base, out.last)
	}
	if n == 0 {
		h.fatalf("nothing is left of section %d-%d", out.base, out.last)
	}
	if last, _ := batch.ParseHeader(out.batches[n-1]); last.LastOffset() != out.last {
		h.fatalf("section %d-%d ends at %d", out.base, out.last, last.LastOffset())
	}
}

// checkAll holds the whole log against the model and against what clients rely on.
func (h *history) checkAll() {
	log := h.log()
	h.checkModel(log)
	h.checkProducers(log)
	for range 3 {
		h.checkCommitted(log)
	}
	h.checkConsumers(log)
}

func (h *history) log() (log [][]byte) {
	for _, o := range h.objects {
		log = append(log, o.batches...)
	}
	return log
}

func (h *history) checkModel(log [][]byte) {
	for _, f := range h.facts {
		if f.gone {
			if f.base >= h.reach {
				h.fatalf("the batch at %d is gone, above %d", f.base, h.reach)
			}
			continue
		}
		if len(log) == 0 {
			h.fatalf("the batch at %d is gone", f.base)
		}
		b := log[0]
		log = log[1:]
		hdr, err := batch.ParseHeader(b)
		if err == nil {
			err = batch.VerifyCRC(b)
		}
		if err != nil {
			h.fatalf("batch at %d: %v", f.base, err)
		}
		if hdr.BaseOffset != f.base || hdr.LastOffset() != f.last || hdr.ProducerID != f.pid || hdr.ProducerEpoch != f.epoch || hdr.BaseSequence != f.seq ||
			hdr.LeaderEpoch != int32(f.base/50) || hdr.Control() != f.control || hdr.Transactional() != (f.txn != nil || f.control) || hdr.Codec() != f.codec {
			h.fatalf("batch %+v, want %+v", hdr, f)
		}
		if hdr.HasDeleteHorizon() != (f.horizon > 0) || f.horizon > 0 && hdr.BaseTimestamp != f.horizon {
			h.fatalf("batch at %d: horizon %v %d, want %d", f.base, hdr.HasDeleteHorizon(), hdr.BaseTimestamp, f.horizon)
		}
		if f.control {
			if commit, _, err := batch.ControlMarker(b); err != nil || commit != f.commit {
				h.fatalf("marker at %d: commit %v, %v", f.base, commit, err)
			}
			for r := range batch.Records(b, 1<<20) {
				if hdr.Timestamp(r) != f.max || hdr.MaxTimestamp != f.max {
					h.fatalf("marker at %d: time %d, want %d", f.base, hdr.Timestamp(r), f.max)
				}
			}
			continue
		}
		var left []*record
		maxTs := int64(math.MinInt64)
		for _, r := range f.records {
			if !r.gone {
				left = append(left, r)
				maxTs = max(maxTs, r.ts)
			}
		}
		for r, err := range batch.Records(b, 1<<20) {
			if err != nil || len(left) == 0 {
				h.fatalf("batch at %d: %d records too many, %v", f.base, hdr.RecordCount, err)
			}
			w := left[0]
			left = left[1:]
			if hdr.BaseOffset+int64(r.OffsetDelta) != w.offset || hdr.Timestamp(r) != w.ts || !same(r.Key, w.key) || !same(r.Value, w.value) ||
				!slices.EqualFunc(r.Headers, w.headers, func(a, b batch.RecordHeader) bool { return a.Key == b.Key && same(a.Value, b.Value) }) {
				h.fatalf("record %+v at %d, time %d, want %+v", r, hdr.BaseOffset+int64(r.OffsetDelta), hdr.Timestamp(r), w)
			}
		}
		if len(left) > 0 {
			h.fatalf("the record at %d is gone", left[0].offset)
		}
		if maxTs != math.MinInt64 && hdr.MaxTimestamp != maxTs {
			h.fatalf("batch at %d: largest time %d, want %d", f.base, hdr.MaxTimestamp, maxTs)
		}
	}
	if len(log) > 0 {
		hdr, _ := batch.ParseHeader(log[0])
		h.fatalf("the batch at %d should be gone", hdr.BaseOffset)
	}
	// Every record above what any table reached, whatever it is.
	for _, f := range h.facts {
		for _, r := range f.records {
			if r.gone && r.offset >= h.reach {
				h.fatalf("the record at %d is gone, above %d", r.offset, h.reach)
			}
		}
	}
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// checkProducers folds what is left.
func (h *history) checkProducers(log [][]byte) {
	got := map[int64]producer.Producer{}
	s := producer.New()
	for _, b := range log {
		hdr, _ := batch.ParseHeader(b)
		s.Apply(hdr, b)
	}
	for p := range s.Producers() {
		got[p.ID] = p
	}
	if a, ok := s.FirstUnstable(); ok != (h.stable() < h.next) || ok && a != h.stable() {
		h.fatalf("a transaction is open at %d: %v, want %d", a, ok, h.stable())
	}
	if h.forgotten {
		return
	}
	for p := range h.known.Producers() {
		h.seen.producers++
		g := got[p.ID]
		if h.known.Limit() < producer.DefaultLimit && p.LastSequence < 0 {
			continue // it was forgotten once; what is left may tell more
		}
		if g.Epoch != p.Epoch || g.LastSequence != p.LastSequence || g.TxnFirstOffset != p.TxnFirstOffset || g.StateOffset != p.StateOffset {
			h.fatalf("producer %+v, want %+v", g, p)
		}
		hdr := batch.Header{Magic: 2, ProducerID: p.ID, ProducerEpoch: p.Epoch, BaseSequence: p.LastSequence + 1}
		if p.TxnFirstOffset >= 0 {
			hdr = batch.TransactionalHeader(p.ID, p.Epoch)
			hdr.BaseSequence = p.LastSequence + 1
		}
		for _, d := range []int32{0, 1, -1} {
			hdr := hdr
			hdr.BaseSequence += d
			if a, b := s.Check(hdr, 0), h.known.Check(hdr, 0); hdr.BaseSequence >= 0 && a.Kind != b.Kind {
				h.fatalf("producer %d, sequence %d: %+v, want %+v", p.ID, hdr.BaseSequence, a, b)
			}
		}
		hdr.ProducerEpoch--
		if a, b := s.Check(hdr, 0), h.known.Check(hdr, 0); hdr.ProducerEpoch >= 0 && a.Kind != b.Kind {
			h.fatalf("producer %d, epoch %d: %+v, want %+v", p.ID, hdr.ProducerEpoch, a, b)
		}
	}
}

// committed reads as a read_committed consumer does, in fetches of random length.
func (h *history) committed(log [][]byte, from, to int64, f func(r *record)) {
	to = min(to, h.stable())
	for at := from; at < to; {
		i := slices.IndexFunc(log, func(b []byte) bool { hdr, _ := batch.ParseHeader(b); return hdr.LastOffset() >= at })
		if i < 0 {
			return
		}
		var fetched [][]byte
		next := at
		for range 1 + h.rnd.IntN(8) {
			if i == len(log) {
				break
			}
			hdr, _ := batch.ParseHeader(log[i])
			if hdr.NextOffset() > h.stable() {
				break
			}
			fetched, next = append(fetched, log[i]), hdr.NextOffset()
			i++
		}
		if len(fetched) == 0 {
			return
		}
		var list []producer.Aborted
		for _, o := range h.objects {
			for _, a := range o.aborted {
				if a.FirstOffset < next && a.LastOffset >= at {
					list = append(list, a)
				}
			}
		}
		slices.SortStableFunc(list, func(a, b producer.Aborted) int { return int(a.FirstOffset - b.FirstOffset) })
		dropping := map[int64]bool{}
		for _, b := range fetched {
			hdr, _ := batch.ParseHeader(b)
			for len(list) > 0 && list[0].FirstOffset <= hdr.LastOffset() {
				dropping[list[0].ProducerID] = true
				list = list[1:]
			}
			if hdr.Control() {
				if commit, _, err := batch.ControlMarker(b); err == nil && !commit {
					delete(dropping, hdr.ProducerID)
				}
				continue
			}
			if hdr.Transactional() && dropping[hdr.ProducerID] {
				continue
			}
			for r := range batch.Records(b, 1<<20) {
				if o := hdr.BaseOffset + int64(r.OffsetDelta); o >= at && o < to {
					f(&record{offset: o, key: r.Key, value: r.Value})
				}
			}
		}
		at = next
	}
}

func (h *history) checkCommitted(log [][]byte) {
	h.seen.readers++
	from := h.rnd.Int64N(h.next + 1)
	to := from + h.rnd.Int64N(h.next-from+1)
	var got, want []int64
	h.committed(log, from, to, func(r *record) { got = append(got, r.offset) })
	for _, f := range h.facts {
		if f.control || f.gone || f.txn != nil && (!f.txn.ended() || f.txn.aborted) {
			continue
		}
		for _, r := range f.records {
			if !r.gone && r.offset >= from && r.offset < min(to, h.stable()) {
				want = append(want, r.offset)
			}
		}
	}
	if !slices.Equal(got, want) {
		h.fatalf("read committed [%d, %d): %v, want %v", from, to, got, want)
	}
}

func (h *history) checkConsumers(log [][]byte) {
	read := func(r *reader, to int64) {
		h.committed(log, r.at, to, func(x *record) {
			switch {
			case x.key == nil:
			case x.value == nil:
				delete(r.values, string(x.key))
			default:
				r.values[string(x.key)] = string(x.value)
			}
		})
		r.at = min(to, h.stable())
	}
	h.readers = slices.DeleteFunc(h.readers, func(r reader) bool {
		if h.now-r.since >= h.retention {
			return true
		}
		if h.chance(50) {
			return false
		}
		h.seen.consumers++
		read(&r, h.next)
		want := map[string]string{}
		for _, f := range h.facts {
			if f.control || f.base >= h.stable() || f.txn != nil && (!f.txn.ended() || f.txn.aborted) {
				continue
			}
			for _, x := range f.records {
				switch {
				case x.key == nil:
				case x.value == nil:
					delete(want, string(x.key))
				default:
					want[string(x.key)] = string(x.value)
				}
			}
		}
		if !maps.Equal(r.values, want) {
			h.fatalf("a consumer that began at %d ends at %d with %v, want %v", r.since, h.now, r.values, want)
		}
		return true
	})
	for range 2 {
		r := reader{since: h.now, values: map[string]string{}}
		read(&r, h.rnd.Int64N(h.next+1))
		h.readers = append(h.readers, r)
	}
}

// Before a batch that cannot be opened piece by piece is, leave is asked for, and given back; what was refused is not opened.
func TestLeaveToHold(t *testing.T) {
	s := &story{state: producer.New()}
	for i := range 2 {
		b := batch.NewBuilder()
		b.Add(1, []byte("k"), bytes.Repeat([]byte{'v'}, 4<<20+i))
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw[:batch.HeaderSize], snappy.Encode(nil, raw[batch.HeaderSize:])...) // one block, as no client writes it
		binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
		raw[22] |= byte(batch.Snappy)
		binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
		s.append(raw)
	}
	var asked, held int64
	var refused error
	r := NewRound(Options{End: 2, Codec: KeepCodec, Hold: func(n int64) (func(), error) {
		if refused != nil {
			return nil, refused
		}
		asked, held = asked+n, held+n
		return func() { held -= n }, nil
	}}, newTable(t, 10, 0.9))
	want := int64(0)
	for i, b := range s.log {
		h, _ := batch.ParseHeader(b)
		if want += batch.Held(b); batch.Held(b) == 0 {
			t.Fatal("nothing is held of the batch")
		}
		if _, err := r.Scan(h, b); err != nil || asked != want || held != 0 {
			t.Errorf("scan of batch %d: asked for %d, want %d, %d is held, %v", i, asked, want, held, err)
		}
	}
	h, _ := batch.ParseHeader(s.log[0])
	refused = errors.New("called off")
	if _, err := r.Filter(h, s.log[0], false); !errors.Is(err, refused) {
		t.Errorf("refused: %v", err)
	}
	refused, asked = nil, 0
	if _, err := r.Filter(h, s.log[0], false); err != nil || asked != batch.Held(s.log[0]) || held != 0 {
		t.Errorf("filter: asked for %d, %d is held, %v", asked, held, err)
	}
}

// What a Round refuses.
func TestRefused(t *testing.T) {
	s := &story{state: producer.New()}
	for range 2 {
		b := batch.NewBuilder()
		b.Add(1, []byte("k"), []byte("v"))
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		s.append(raw)
	}
	hdr := func(i int) batch.Header { h, _ := batch.ParseHeader(s.log[i]); return h }
	fresh := func() *Round {
		return NewRound(Options{End: 2, Window: 1 << 20, Codec: KeepCodec}, newTable(t, 10, 0.9))
	}

	r := fresh()
	if _, err := r.Filter(hdr(1), s.log[1], false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Filter(hdr(0), s.log[0], false); !errors.Is(err, ErrOrder) {
		t.Errorf("out of order: %v", err)
	}
	damaged := bytes.Clone(s.log[0])
	damaged[len(damaged)-1] ^= 1
	r = fresh()
	if _, err := r.Scan(hdr(0), damaged); !errors.Is(err, batch.ErrCRC) {
		t.Errorf("scan: %v", err)
	}
	if _, err := r.Filter(hdr(0), damaged, false); !errors.Is(err, batch.ErrCRC) {
		t.Errorf("filter: %v", err)
	}
	if sum := r.Cut(); sum.BatchesIn != 0 {
		t.Errorf("a refused batch is counted: %+v", sum)
	}
	r = NewRound(Options{End: 2, Window: 10, Codec: KeepCodec}, newTable(t, 10, 0.9))
	packed, err := batch.Recompress(s.log[0], batch.Zstd, batch.DefaultLevel, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := batch.ParseHeader(packed)
	if _, err := r.Scan(h, packed); err != nil {
		t.Errorf("a batch of just ten bytes: %v", err)
	}
}
