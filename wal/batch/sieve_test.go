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

// Any part of any batch under any codec, held inflated or not, through one Sieve: what it holds of one batch must not show
// in the next.
func TestSieve(t *testing.T) {
	var s Sieve
	rnd := rand.New(rand.NewPCG(1, 2))
	all := sampleRecords()
	all[2].key = bytes.Repeat([]byte("long "), 100)
	all[6].key = append(bytes.Clone(all[2].key), 'r')
	all[7].key = bytes.Clone(all[2].key[1:])
	larges, longs := 0, 0
	for round := range 600 {
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
		window := []int{8 << 20, 0, 300, 900, 4000}[rnd.IntN(5)]
		longest := min(64<<10, max(window, 128)/2)
		var want []rec
		var deltas []int32
		drop := make([]bool, len(rs))
		for i, in := range rs {
			if drop[i] = rnd.IntN(4) < odds; drop[i] {
				continue
			}
			want, deltas = append(want, in), append(deltas, int32(i))
			if appendTime {
				want[len(want)-1].ts = t0 + 77
			}
		}
		stands := map[string]string{}
		err := s.Open(b, window, func(h Header, r *Record) bool {
			in := rs[r.OffsetDelta]
			if long := len(in.key) > longest; long {
				longs++
				if other, ok := stands[string(in.key)]; ok && other != string(r.Key) || len(r.Key) != longest+1 {
					t.Fatalf("%q stands for %q, and %q", r.Key, in.key, other)
				}
				stands[string(in.key)] = string(r.Key)
			} else if !bytes.Equal(r.Key, in.key) || (r.Key == nil) != (in.key == nil) {
				t.Fatalf("record %d: %+v", r.OffsetDelta, r)
			}
			if !s.Large() && !bytes.Equal(r.Value, in.value) || (r.Value == nil) != (in.value == nil) || r.Headers != nil {
				t.Fatalf("record %d: %+v", r.OffsetDelta, r)
			}
			return !drop[r.OffsetDelta]
		})
		if err != nil {
			t.Fatal(err)
		}
		different := map[string]bool{}
		for _, st := range stands {
			different[st] = true
		}
		if len(different) != len(stands) {
			t.Fatalf("the same for different keys: %q", stands)
		}
		plain, err := Recompress(b, None, 0, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		if large := len(plain)-HeaderSize > max(window, 128); s.Large() != large {
			t.Fatalf("large %v of %d bytes with a window of %d", s.Large(), len(plain)-HeaderSize, window)
		} else if large {
			larges++
			if from != None {
				to = from // another may take too much more
			}
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
	if larges < 200 || longs < 200 {
		t.Errorf("%d large batches, %d long keys", larges, longs)
	}
}

// What a record says of itself beside its fields stays: a record is moved, not written anew.
func TestSieveKeepsAttributes(t *testing.T) {
	section := slices.Concat(body(byte(0x55), 3, 0, 1, "k", -1, 0), body(byte(0x66), 4, 1, 1, "k", 1, "v", 0))
	var s Sieve
	for _, section := range [][]byte{section, slices.Concat(section, body(byte(0), 0, 2, 1, "k", 200, make([]byte, 200), 0))} {
		b := raw(None, 3, section)
		if len(section) < 100 {
			b = raw(None, 2, section)
		}
		if err := s.Open(b, 0, func(_ Header, r *Record) bool { return r.OffsetDelta == 1 }); err != nil || s.Large() != (len(section) > 200) {
			t.Fatal(err, s.Large())
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
}

// What is no sound batch is refused, whether it is held inflated or begins with so much that it is not.
func TestSieveRefuses(t *testing.T) {
	one := func(delta int) []byte { return body(byte(0), 0, delta, 1, "k", 1, "v", 0) }
	long := func(delta int) []byte { return body(byte(0), 0, delta, 500, make([]byte, 500), 1, "v", 0) }
	for _, tc := range []struct {
		name    string
		count   int
		section func(at int) []byte // with offset deltas from at on
		want    error
	}{
		{"in order", 2, func(at int) []byte { return slices.Concat(one(at), one(at+1)) }, nil},
		{"long key", 1, long, nil},
		{"offset twice", 2, func(at int) []byte { return slices.Concat(one(at+1), one(at+1)) }, ErrRecord},
		{"offset goes back", 2, func(at int) []byte { return slices.Concat(one(at+1), one(at)) }, ErrRecord},
		{"negative offset", 1, func(int) []byte { return one(-1) }, ErrRecord},
		{"offset behind the batch", 2, func(at int) []byte { return slices.Concat(one(at), one(at+2)) }, ErrRecord},
		{"one record more", 1, func(at int) []byte { return slices.Concat(one(at), one(at+1)) }, ErrTrailing},
		{"one record less", 2, one, ErrRecord},
		{"cut in the key's length", 1, func(at int) []byte { return one(at)[:4] }, ErrRecord},
		{"cut in the key", 1, func(at int) []byte { return one(at)[:5] }, ErrRecord},
		{"cut in the value's length", 1, func(at int) []byte { return one(at)[:6] }, ErrRecord},
		{"cut in the value", 1, func(at int) []byte { return one(at)[:7] }, ErrRecord},
		{"key longer than the record", 1, func(at int) []byte { return body(byte(0), 0, at, 100, "k", 1, "v", 0) }, ErrRecord},
		{"long key longer than the record", 1, func(at int) []byte { return body(byte(0), 0, at, 600, make([]byte, 500), 1, "v", 0) }, ErrRecord},
		{"key of a negative length", 1, func(at int) []byte { return body(byte(0), 0, at, -2, 1, "v", 0) }, ErrRecord},
		{"value longer than the record", 1, func(at int) []byte { return body(byte(0), 0, at, 1, "k", 100, "v", 0) }, ErrRecord},
		{"negative length", 1, func(int) []byte { return appendVarint(nil, -1) }, ErrRecord},
		{"length out of range", 1, func(int) []byte { return bytes.Repeat([]byte{0xff}, 10) }, ErrRecord},
		{"null header key", 1, func(at int) []byte { return body(byte(0), 0, at, 1, "k", 1, "v", 1, -1, 0) }, ErrRecord},
		{"longer than its fields", 1, func(at int) []byte { return body(byte(0), 0, at, 1, "k", 1, "v", 0, "more") }, ErrRecord},
		{"long key, cut", 1, func(at int) []byte { return long(at)[:200] }, ErrRecord},
		{"long key, nothing behind it", 1, func(at int) []byte { return long(at)[:507] }, ErrRecord},
		{"long key, value longer than the record", 1, func(at int) []byte { return body(byte(0), 0, at, 500, make([]byte, 500), 100, "v", 0) }, ErrRecord},
		{"long key, longer than its fields", 1, func(at int) []byte { return body(byte(0), 0, at, 500, make([]byte, 500), 1, "v", 0, "more") }, ErrRecord},
	} {
		for _, c := range codecs {
			for _, large := range []bool{false, true} {
				b := raw(c, tc.count, pack(t, c, tc.section(0)))
				if large {
					b = raw(c, tc.count+1, pack(t, c, append(body(byte(0), 0, 0, 1, "k", 1000, make([]byte, 1000), 0), tc.section(1)...)))
				}
				var s Sieve
				err := s.Open(b, 800, func(Header, *Record) bool { return true })
				if !errors.Is(err, tc.want) || s.Large() != large {
					t.Errorf("%s, %v, large %v: %v, want %v", tc.name, c, large, err, tc.want)
				}
			}
		}
	}
	packed := ourBatch(t, sampleRecords(), Zstd)
	for _, tc := range []struct {
		name string
		b    []byte
		want error
	}{
		{"sound", packed, nil},
		{"cut", packed[:len(packed)-1], ErrShort},
		{"the stream is cut", raw(Zstd, 45, packed[HeaderSize:len(packed)-1]), ErrCodec},
		{"no stream of its codec", raw(Gzip, 1, one(0)), ErrCodec},
	} {
		for _, window := range []int{0, 1 << 20} {
			var s Sieve
			if err := s.Open(tc.b, window, func(Header, *Record) bool { return true }); !errors.Is(err, tc.want) {
				t.Errorf("%s, with a window of %d: %v, want %v", tc.name, window, err, tc.want)
			}
		}
	}
	var s Sieve
	asked := 0
	s.Check = func() error {
		if asked++; asked > 2 {
			return errors.New("enough")
		}
		return nil
	}
	big := []rec{{t0, nil, make([]byte, often), nil}}
	if err := s.Open(ourBatch(t, slices.Repeat(big, 9), LZ4), 0, func(Header, *Record) bool { return true }); err == nil || asked != 3 {
		t.Errorf("Check's error is not heard: %v, asked %d times", err, asked)
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
