package batch

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Any part of any batch under any codec, through one Sieve: what it holds of one batch must not show in the next.
func TestSieve(t *testing.T) {
	var s Sieve
	rnd := rand.New(rand.NewPCG(1, 2))
	all := sampleRecords()
	for round := range 300 {
		rs := slices.Clone(all[:1+rnd.IntN(len(all))])
		from, to := codecs[rnd.IntN(len(codecs))], codecs[rnd.IntN(len(codecs))]
		switch rnd.IntN(6) {
		case 0:
			for i := range rs {
				rs[i].ts = -5
			}
		case 1:
			for i := range rs {
				rs[i].ts = []int64{NoTimestamp, -5, math.MaxInt64 - 3, 0}[rnd.IntN(4)]
			}
		}
		build := ourBatch
		if rnd.IntN(2) == 0 {
			build = kmsgBatch
		}
		b := build(t, rs, from)
		SetBaseOffset(b, 1000)
		SetLeaderEpoch(b, 7)
		appendTime := rnd.IntN(3) == 0
		if appendTime {
			SetLogAppendTime(b, t0+77)
		}
		before := bytes.Clone(b)
		odds := rnd.IntN(4)
		var want []rec
		var deltas []int32
		err := s.Open(b, 8<<20, func(h Header, r *Record) bool {
			in := rs[r.OffsetDelta]
			// kmsg knows no null value of a header, and a codec of ours tells null from empty.
			if !bytes.Equal(r.Key, in.key) || !bytes.Equal(r.Value, in.value) || r.Headers != nil || (r.Key == nil) != (in.key == nil) {
				t.Fatalf("record %d: %+v", r.OffsetDelta, r)
			}
			if rnd.IntN(4) < odds {
				return false
			}
			want, deltas = append(want, in), append(deltas, r.OffsetDelta)
			if appendTime {
				want[len(want)-1].ts = t0 + 77
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.Kept() != len(want) || s.Dropped() != len(rs)-len(want) {
			t.Fatalf("%d kept, %d dropped of %d, want %d", s.Kept(), s.Dropped(), len(rs), len(want))
		}
		if len(want) == 0 {
			continue
		}
		var out []byte
		horizon := int64(-1)
		if rnd.IntN(2) == 0 {
			horizon = t0 + rnd.Int64N(1<<40)
			out, err = s.BuildHorizon(to, DefaultLevel, horizon)
		} else {
			out, err = s.Build(to, DefaultLevel)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, before) {
			t.Fatal("the batch was written to")
		}
		h, err := ParseHeader(out)
		if err != nil || VerifyCRC(out) != nil || h.Size() != len(out) {
			t.Fatal(err, VerifyCRC(out))
		}
		orig, _ := ParseHeader(b)
		maxTS := want[0].ts
		for _, w := range want {
			maxTS = max(maxTS, w.ts)
		}
		if h.BaseOffset != 1000 || h.LeaderEpoch != 7 || h.LastOffsetDelta != orig.LastOffsetDelta || h.RecordCount != int32(len(want)) || h.Codec() != to ||
			h.MaxTimestamp != maxTS || h.LogAppendTime() != appendTime || h.HasDeleteHorizon() != (horizon >= 0) || horizon >= 0 && h.BaseTimestamp != horizon {
			t.Fatalf("round %d: %+v of %+v, largest time %d, horizon %d", round, h, orig, maxTS, horizon)
		}
		var got []rec
		for r, err := range Records(out, 8<<20) {
			if err != nil {
				t.Fatal(err)
			}
			if r.OffsetDelta != deltas[len(got)] {
				t.Fatalf("offset delta %d, want %d", r.OffsetDelta, deltas[len(got)])
			}
			got = append(got, rec{h.Timestamp(r), r.Key, r.Value, r.Headers})
		}
		sameRecords(t, got, want, false)
	}
}

// What a record says of itself beside its fields stays: a record is moved, not written anew.
func TestSieveKeepsAttributes(t *testing.T) {
	section := slices.Concat(body(byte(0x55), 3, 0, 1, "k", -1, 0), body(byte(0x66), 4, 1, 1, "k", 1, "v", 0))
	var s Sieve
	b := raw(None, 2, section)
	if err := s.Open(b, 0, func(_ Header, r *Record) bool { return r.OffsetDelta == 1 }); err != nil {
		t.Fatal(err)
	}
	for _, build := range []func() ([]byte, error){
		func() ([]byte, error) { return s.Build(None, 0) },
		func() ([]byte, error) { return s.BuildHorizon(None, 0, 1) },
	} {
		out, err := build()
		if err != nil {
			t.Fatal(err)
		}
		for r, err := range Records(out, 0) {
			if err != nil || r.Attributes != 0x66 || r.OffsetDelta != 1 {
				t.Fatal(r, err)
			}
		}
	}
}

func TestSieveRefuses(t *testing.T) {
	one := func(delta int) []byte { return body(byte(0), 0, delta, 1, "k", 1, "v", 0) }
	packed := ourBatch(t, sampleRecords(), Zstd)
	for _, tc := range []struct {
		name  string
		b     []byte
		limit int
		want  error
	}{
		{"in order", raw(None, 2, slices.Concat(one(0), one(1))), 0, nil},
		{"offset twice", raw(None, 2, slices.Concat(one(1), one(1))), 0, ErrRecord},
		{"offset goes back", raw(None, 2, slices.Concat(one(1), one(0))), 0, ErrRecord},
		{"negative offset", raw(None, 1, one(-1)), 0, ErrRecord},
		{"offset behind the batch", raw(None, 2, slices.Concat(one(0), one(2))), 0, ErrRecord},
		{"one record more", raw(None, 1, slices.Concat(one(0), one(1))), 0, ErrTrailing},
		{"one record less", raw(None, 2, one(0)), 0, ErrRecord},
		{"cut", packed[:len(packed)-1], 1 << 20, ErrShort},
		{"just inflates", packed, 1 << 20, nil},
		{"inflates to too much", packed, 1000, ErrInflated},
		{"no stream of its codec", raw(Gzip, 1, one(0)), 1 << 20, ErrCodec},
	} {
		var s Sieve
		if err := s.Open(tc.b, tc.limit, func(Header, *Record) bool { return true }); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// A batch of many megabytes, with records above every buffer.
func TestSieveLargeBatch(t *testing.T) {
	var rs []rec
	for i := range 12 {
		rs = append(rs, rec{t0, fmt.Appendf(nil, "k%d", i), bytes.Repeat([]byte{byte(i)}, 1<<20), nil})
	}
	var s Sieve
	for _, c := range codecs {
		b := ourBatch(t, rs, c)
		if err := s.Open(b, 16<<20, func(_ Header, r *Record) bool { return r.OffsetDelta%3 == 1 }); err != nil {
			t.Fatal(c, err)
		}
		out, err := s.BuildHorizon(c, DefaultLevel, 5)
		if err != nil {
			t.Fatal(c, err)
		}
		n := 0
		for r, err := range Records(out, 16<<20) {
			if err != nil || !bytes.Equal(r.Value, rs[r.OffsetDelta].value) {
				t.Fatal(c, err)
			}
			n++
		}
		if n != 4 {
			t.Fatal(c, n)
		}
	}
}

func TestEmpty(t *testing.T) {
	b := ourBatch(t, sampleRecords(), Zstd)
	SetBaseOffset(b, 40)
	SetLogAppendTime(b, t0)
	orig, _ := ParseHeader(b)
	orig.Attributes |= attrDeleteHorizon | attrTransactional
	orig.ProducerID, orig.ProducerEpoch, orig.BaseSequence = 5, 6, math.MaxInt32
	e := Empty(orig)
	h, err := ParseHeader(e)
	if err != nil || len(e) != MinSize || VerifyCRC(e) != nil {
		t.Fatal(err, len(e))
	}
	if h.BaseOffset != 40 || h.LastOffset() != orig.LastOffset() || h.RecordCount != 0 || h.Codec() != None || h.HasDeleteHorizon() || !h.Transactional() ||
		!h.LogAppendTime() || h.MaxTimestamp != t0 || h.ProducerID != 5 || h.ProducerEpoch != 6 || h.LastSequence() != orig.LastSequence() {
		t.Fatalf("%+v of %+v", h, orig)
	}
	if n := len(collect(t, e)); n != 0 {
		t.Fatal(n)
	}
}
