package producer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/crc32c"
)

func rewriting() bool {
	f := flag.Lookup("rewrite")
	return f != nil && f.Value.String() == "true"
}

const t0 = 1_700_000_000_000

// log is a partition's log with its state, as a broker runs it: check, append, apply.
type log struct {
	s       *State
	end     int64
	batches [][]byte
}

type write struct {
	id    int64
	epoch int16
	seq   int32
	count int32
	txn   bool
	ts    int64
}

func (w write) build() []byte {
	b := batch.NewBuilder()
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = w.id, w.epoch, w.seq, w.txn
	for i := range w.count {
		b.Add(t0+w.ts+int64(i), []byte("k"), []byte("v"))
	}
	p, err := b.Build()
	if err != nil {
		panic(err)
	}
	return p
}

func (l *log) append(b []byte) {
	batch.SetBaseOffset(b, l.end)
	h, err := batch.ParseHeader(b)
	if err != nil {
		panic(err)
	}
	l.s.Apply(h, b)
	l.end = h.NextOffset()
	l.batches = append(l.batches, b)
}

func (l *log) write(w write) Verdict {
	b := w.build()
	h, _ := batch.ParseHeader(b)
	v := l.s.Check(h, 0)
	if v.Kind == Accept {
		l.append(b)
	}
	return v
}

func (l *log) marker(id int64, epoch int16, commit bool, coordinator int32, version int16) Verdict {
	v := l.s.CheckMarker(id, epoch, coordinator, version)
	if v.Kind == Accept {
		l.append(batch.Marker(id, epoch, commit, coordinator, t0))
	}
	return v
}

func show(l *log) string {
	var w strings.Builder
	for p := range l.s.Producers() {
		fmt.Fprintf(&w, "  producer %d epoch %d sequence %d", p.ID, p.Epoch, p.LastSequence)
		if p.CoordinatorEpoch >= 0 {
			fmt.Fprintf(&w, " coordinator %d", p.CoordinatorEpoch)
		}
		if p.TxnFirstOffset >= 0 {
			fmt.Fprintf(&w, " in a transaction from %d", p.TxnFirstOffset)
		}
		w.WriteByte('\n')
	}
	return w.String()
}

func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		l := &log{s: New()}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			num := func(key string, def int64) int64 {
				v := def
				if d.HasArg(key) {
					d.ScanArgs(t, key, &v)
				}
				return v
			}
			verdict := func(v Verdict, at int64) string {
				switch v.Kind {
				case Accept:
					return fmt.Sprintf("appended at %d, log ends at %d\n", at, l.end)
				case Duplicate:
					return fmt.Sprintf("duplicate of offsets %d to %d\n", v.BaseOffset, v.LastOffset)
				default:
					return fmt.Sprintf("error %d: %s\n", v.Code, v.Message)
				}
			}
			at := l.end
			switch d.Cmd {
			case "new":
				l = &log{s: New()}
				if n := num("limit", 0); n > 0 {
					l.s.SetLimit(int(n))
				}
				return ""
			case "write":
				v := l.write(write{id: num("id", 1), epoch: int16(num("epoch", 0)), seq: int32(num("seq", -1)), count: int32(num("n", 1)),
					txn: d.HasArg("txn"), ts: num("ts", 0)})
				return verdict(v, at) + show(l)
			case "commit", "abort":
				v := l.marker(num("id", 1), int16(num("epoch", 0)), d.Cmd == "commit", int32(num("coordinator", 0)), int16(num("version", 1)))
				return verdict(v, at) + show(l)
			case "stable":
				return fmt.Sprintf("%d\n", l.s.LastStable(num("high-watermark", l.end)))
			case "high-watermark":
				l.s.Commit(num("at", 0))
				return fmt.Sprintf("%d ended transactions remembered\n", len(l.s.decided))
			case "aborted":
				var w strings.Builder
				for _, a := range l.s.Aborted(num("from", 0), num("to", l.end)) {
					fmt.Fprintf(&w, "producer %d from %d to its marker at %d, stable up to %d\n", a.ProducerID, a.FirstOffset, a.LastOffset, a.LastStableOffset)
				}
				if w.Len() == 0 {
					return "none\n"
				}
				return w.String()
			case "trim":
				l.s.TrimAborted(num("below", 0))
				return ""
			case "expire":
				l.s.Expire(num("now", 0), num("after", 0))
				return show(l)
			case "restart":
				b := l.s.Encode(l.end)
				s, off, err := Decode(b)
				if err != nil || off != l.end {
					d.Fatalf(t, "%v %d", err, off)
				}
				s.limit = l.s.limit
				l.s = s
				return show(l)
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

func same(t *testing.T, a, b *State) {
	t.Helper()
	if !bytes.Equal(a.Encode(0), b.Encode(0)) {
		t.Fatal("states differ")
	}
}

// A broker that crashes anywhere and starts from any snapshot ends in the same state, and decides the same
// about everything that is sent again.
func TestSnapshotPlusBatchesIsTheState(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := &log{s: New()}
		l.s.SetLimit(8)
		type snap struct {
			at  int
			enc []byte
		}
		snaps := []snap{{0, New().Encode(0)}}
		next := map[int64]int32{}
		epochs := map[int64]int16{}
		for range 250 {
			id := rng.Int64N(12)
			switch rng.IntN(10) {
			case 0:
				l.marker(id, epochs[id], rng.IntN(2) == 0, int32(rng.IntN(3)), int16(rng.IntN(3)))
			case 1:
				epochs[id]++
				next[id] = 0
			case 2:
				snaps = append(snaps, snap{len(l.batches), l.s.Encode(l.end)})
			default:
				seq := next[id]
				if rng.IntN(5) == 0 {
					seq = int32(rng.IntN(40))
				}
				w := write{id: id, epoch: epochs[id], seq: seq, count: int32(rng.IntN(4)) + 1, txn: rng.IntN(2) == 0, ts: rng.Int64N(100)}
				if l.write(w).Kind == Accept {
					next[id] = seq + w.count
				}
			}
			checkInvariants(t, l)
		}
		for _, sn := range snaps {
			s, off, err := Decode(sn.enc)
			if err != nil {
				t.Fatal(err)
			}
			s.SetLimit(8)
			if !bytes.Equal(s.Encode(off), sn.enc) {
				t.Fatal("decoded and encoded again is something else")
			}
			for _, b := range l.batches[sn.at:] {
				if err := s.ApplyRun(b); err != nil {
					t.Fatal(err)
				}
			}
			same(t, s, l.s)
			for range 50 {
				id := rng.Int64N(14)
				b := write{id: id, epoch: int16(rng.IntN(4)), seq: int32(rng.IntN(60)), count: int32(rng.IntN(4)) + 1, txn: rng.IntN(2) == 0}.build()
				h, _ := batch.ParseHeader(b)
				if got, want := s.Check(h, 0), l.s.Check(h, 0); got != want {
					t.Fatalf("%+v, and before the restart %+v", got, want)
				}
			}
		}
		c := l.s.Clone()
		same(t, c, l.s)
		before := l.s.Encode(0)
		for i := range 20 {
			b := write{id: int64(100 + i), seq: 0, count: 1, txn: true}.build()
			batch.SetBaseOffset(b, l.end+int64(i))
			if err := c.ApplyRun(b); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(before, l.s.Encode(0)) {
			t.Fatal("a clone shares something with its original")
		}
	}
}

// checkInvariants compares with what can be read off the log itself.
func checkInvariants(t *testing.T, l *log) {
	t.Helper()
	open := map[int64]int64{}
	var aborted []Aborted
	for _, b := range l.batches {
		h, _ := batch.ParseHeader(b)
		if !h.Control() {
			if _, ok := open[h.ProducerID]; !ok && h.Transactional() {
				open[h.ProducerID] = h.BaseOffset
			}
			continue
		}
		if commit, _, _ := batch.ControlMarker(b); !commit {
			if first, ok := open[h.ProducerID]; ok {
				delete(open, h.ProducerID)
				stable := h.LastOffset() + 1
				for _, f := range open {
					stable = min(stable, f)
				}
				aborted = append(aborted, Aborted{h.ProducerID, first, h.LastOffset(), stable})
			}
		}
		delete(open, h.ProducerID)
	}
	if !slices.Equal(aborted, l.s.aborted) {
		t.Fatalf("aborted\n got %v\nwant %v", l.s.aborted, aborted)
	}
	first, ok := l.s.FirstUnstable()
	want := int64(math.MaxInt64)
	for _, f := range open {
		want = min(want, f)
	}
	if ok != (len(open) > 0) || (ok && first != want) || len(l.s.Open()) != len(open) {
		t.Fatalf("first unstable %d %v, want %d; open %v, want %v", first, ok, want, l.s.Open(), open)
	}
	// A reader of [from, to) needs exactly the aborted transactions that overlap it.
	if len(aborted) > 0 {
		from := aborted[len(aborted)/2].FirstOffset
		for _, to := range []int64{from + 1, from + 7, l.end} {
			var need []Aborted
			for _, a := range aborted {
				if a.LastOffset >= from && a.FirstOffset < to {
					need = append(need, a)
				}
			}
			if got := l.s.Aborted(from, to); !slices.Equal(got, need) {
				t.Fatalf("aborted in [%d, %d)\n got %v\nwant %v", from, to, got, need)
			}
		}
	}
	if n := l.s.Len(); n > l.s.limit && n > len(l.s.open)+1 {
		t.Fatalf("%d producers remembered, limit %d, %d in transactions", n, l.s.limit, len(l.s.open))
	}
}

// More transactions end above the high watermark than are remembered one by one: what is stable is known later
// than it could be, never too early.
func TestDecidedIsBounded(t *testing.T) {
	l := &log{s: New()}
	type span struct{ first, last int64 }
	var spans []span
	for i := range int32(1000) {
		first := l.end
		l.write(write{id: int64(i % 7), seq: i / 7 * 2, count: 2, txn: true})
		l.marker(int64(i%7), 0, i%2 == 0, 0, 1)
		spans = append(spans, span{first, l.end - 1})
	}
	if len(l.s.decided) > maxDecided {
		t.Fatal(len(l.s.decided))
	}
	for hw := int64(0); hw <= l.end; hw++ {
		want := hw
		for _, s := range spans {
			if s.last >= hw {
				want = min(want, s.first)
			}
		}
		if got := l.s.LastStable(hw); got > want {
			t.Fatalf("high watermark %d: stable at %d, must not be above %d", hw, got, want)
		}
	}
	if got := l.s.LastStable(l.end); got != l.end {
		t.Fatal(got, l.end)
	}
	s, _, err := Decode(l.s.Encode(l.end))
	if err != nil || s.LastStable(l.end-1) != l.s.LastStable(l.end-1) {
		t.Fatal(err)
	}
}

func TestSequenceWrap(t *testing.T) {
	l := &log{s: New()}
	l.write(write{id: 1, seq: math.MaxInt32 - 2, count: 2}) // unknown: any sequence
	if v := l.write(write{id: 1, seq: math.MaxInt32, count: 3}); v.Kind != Accept {
		t.Fatal(v)
	}
	if v := l.write(write{id: 1, seq: math.MaxInt32, count: 3}); v.Kind != Duplicate || v.BaseOffset != 2 || v.LastOffset != 4 {
		t.Fatal(v)
	}
	if v := l.write(write{id: 1, seq: 3, count: 1}); v.Kind != Refuse || v.Code != 45 {
		t.Fatal(v)
	}
	if v := l.write(write{id: 1, seq: 2, count: 1}); v.Kind != Accept {
		t.Fatal(v)
	}
}

// A batch with a hostile header that got into the log all the same must not break the fold.
func TestApplyHostileHeaders(t *testing.T) {
	s := New()
	for _, h := range []batch.Header{
		{ProducerID: math.MaxInt64, ProducerEpoch: -1, BaseSequence: math.MaxInt32, LastOffsetDelta: math.MaxInt32, BaseOffset: 1},
		{ProducerID: 0, ProducerEpoch: math.MaxInt16, BaseSequence: 0, LastOffsetDelta: 0, BaseOffset: 1 << 40, MaxTimestamp: math.MinInt64},
		{ProducerID: 5, BaseSequence: -5, Attributes: 0x10},
		{ProducerID: -1, Attributes: 0x10},
		{ProducerID: 6, Attributes: 0x30},
	} {
		s.Apply(h, nil)
		s.Check(h, 0)
	}
	b := s.Encode(7)
	got, off, err := Decode(b)
	if err != nil || off != 7 {
		t.Fatal(err)
	}
	same(t, got, s)
}

func TestSampleFile(t *testing.T) {
	l := &log{s: New()}
	for i := range int32(7) {
		l.write(write{id: 3, epoch: 2, seq: i * 2, count: 2, ts: int64(i)})
	}
	l.write(write{id: 9, seq: 0, count: 1, txn: true})
	l.write(write{id: 1 << 40, epoch: 5, seq: 0, count: 3, txn: true})
	l.marker(9, 0, false, 4, 1)
	path := filepath.Join("testdata", "v1.producers")
	if rewriting() {
		if err := os.WriteFile(path, l.s.Encode(l.end), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, off, err := Decode(b)
	if err != nil || off != l.end {
		t.Fatal(off, err)
	}
	same(t, s, l.s)
	if !bytes.Equal(b, l.s.Encode(l.end)) {
		t.Error("version 1 is written differently now: that needs a version 2")
	}
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, _, err := Decode(c); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
			}
		}
		if _, _, err := Decode(b[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	l := &log{s: New()}
	l.write(write{id: 3, epoch: 2, seq: 0, count: 2})
	l.write(write{id: 9, seq: 0, count: 1, txn: true})
	l.marker(9, 0, false, 4, 1)
	enc := l.s.Encode(l.end)
	f.Add(enc[2 : len(enc)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is put right, or nothing would get past it.
		s, off, err := Decode(seal(body))
		if err != nil {
			return
		}
		again, off2, err := Decode(s.Encode(off))
		if err != nil || off != off2 {
			t.Fatal(err)
		}
		same(t, s, again)
		s.LastStable(off)
		s.Aborted(0, off)
		s.TrimAborted(off)
		s.Expire(1, 0)
		_ = s.ApplyRun(write{id: 3, epoch: 2, seq: 2, count: 1, txn: true}.build())
		_ = s.ApplyRun(batch.Marker(3, 2, false, 0, t0))
	})
}

// Any sequence of writes and markers, from bytes: the state agrees with the log.
func FuzzSequence(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add(bytes.Repeat([]byte{3, 9, 1}, 30))
	f.Fuzz(func(t *testing.T, ops []byte) {
		l := &log{s: New()}
		l.s.SetLimit(4)
		for i := 0; i+2 < min(len(ops), 300); i += 3 {
			id, epoch := int64(ops[i]&7), int16(ops[i]>>3&3)
			if ops[i]&0x80 != 0 {
				l.marker(id, epoch, ops[i+1]&1 == 0, int32(ops[i+1]>>1&3), int16(ops[i+1]>>3&3))
			} else {
				l.write(write{id: id, epoch: epoch, seq: int32(ops[i+1]), count: int32(ops[i+2]&3) + 1, txn: ops[i+2]&4 != 0})
			}
			checkInvariants(t, l)
			s, _, err := Decode(l.s.Encode(l.end))
			if err != nil {
				t.Fatal(err)
			}
			same(t, s, l.s)
		}
	})
}

func BenchmarkCheckApply(b *testing.B) {
	s := New()
	bs := make([][]byte, 100)
	for i := range bs {
		bs[i] = write{id: int64(i), seq: 0, count: 1}.build()
	}
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		p := bs[n%100]
		h, _ := batch.ParseHeader(p)
		h.BaseSequence, h.BaseOffset = int32(n/100), n
		if v := s.Check(h, 0); v.Kind != Accept {
			b.Fatal(v)
		}
		s.Apply(h, p)
		n++
	}
}

func BenchmarkEncode(b *testing.B) {
	s := New()
	for i := range 1000 {
		p := write{id: int64(i), seq: 0, count: 1}.build()
		batch.SetBaseOffset(p, int64(i))
		if err := s.ApplyRun(p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(s.Encode(1000))))
	}
}

// seal puts magic, version and checksum around what a snapshot is made of.
func seal(body []byte) []byte {
	b := append([]byte{magic, version}, body...)
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
}

// Where a producer's epoch and last sequence are from: its last batch with a sequence in this epoch, or else the last
// thing it wrote.
func TestStateOffset(t *testing.T) {
	l := &log{s: New()}
	at := func() int64 {
		for p := range l.s.Producers() {
			return p.StateOffset
		}
		return -1
	}
	b := batch.NewBuilder()
	b.ProducerID, b.Transactional = 1, true
	add := func(epoch int16, seq int32, records int) {
		b.Reset()
		b.ProducerEpoch, b.BaseSequence = epoch, seq
		for range records {
			b.Add(t0, []byte("k"), nil)
		}
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		l.append(raw)
	}
	for i, step := range []struct {
		do   func()
		want int64
	}{
		{func() { add(0, batch.NoSequence, 2) }, 1}, // as a group coordinator writes
		{func() { add(0, 0, 3) }, 4},
		{func() { add(0, batch.NoSequence, 1) }, 4},
		{func() { l.append(batch.Marker(1, 0, true, 1, t0)) }, 4},
		{func() { l.append(batch.Marker(1, 1, true, 1, t0)) }, 7},
		{func() { l.append(batch.Marker(1, 1, true, 1, t0)) }, 8},
		{func() { add(1, 0, 2) }, 10},
	} {
		if step.do(); at() != step.want {
			t.Errorf("step %d: state of %d, want %d", i, at(), step.want)
		}
	}
}
