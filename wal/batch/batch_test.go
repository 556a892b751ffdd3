package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// raw puts a header before a section, with every field consistent unless edit says otherwise.
func raw(codec Codec, count int, section []byte, edit ...func(b []byte)) []byte {
	b := make([]byte, HeaderSize, HeaderSize+len(section))
	b = append(b, section...)
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-overhead))
	binary.BigEndian.PutUint32(b[offLeaderEpoch:], math.MaxUint32)
	b[offMagic] = 2
	b[offAttributes+1] = byte(codec)
	binary.BigEndian.PutUint32(b[offLastOffsetDelta:], uint32(count-1))
	binary.BigEndian.PutUint64(b[offProducerID:], math.MaxUint64)
	binary.BigEndian.PutUint16(b[offProducerEpoch:], math.MaxUint16)
	binary.BigEndian.PutUint32(b[offBaseSequence:], math.MaxUint32)
	binary.BigEndian.PutUint32(b[offRecordCount:], uint32(count))
	for _, f := range edit {
		f(b)
	}
	setCRC(b)
	return b
}

// body is a record from its fields, with a length of its own.
func body(fields ...any) []byte {
	var p []byte
	for _, f := range fields {
		switch f := f.(type) {
		case int:
			p = appendVarint(p, int64(f))
		case int64:
			p = appendVarint(p, f)
		case byte:
			p = append(p, f)
		case string:
			p = append(p, f...)
		case []byte:
			p = append(p, f...)
		}
	}
	return append(appendVarint(nil, int64(len(p))), p...)
}

func pack(t testing.TB, c Codec, section []byte) []byte {
	t.Helper()
	p, err := deflate(nil, c, DefaultLevel, section)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestHeaderBounds(t *testing.T) {
	good := ourBatch(t, sampleRecords(), None)
	set := func(off int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[off:], v)
		return b
	}
	for _, tc := range []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, ErrShort},
		{"one byte", good[:1], ErrShort},
		{"header cut", good[:60], ErrShort},
		{"records cut", good[:len(good)-1], ErrShort},
		{"header only", good[:61], ErrShort},
		{"magic 0, shorter than a header", append(make([]byte, 16), 0, 0, 0), ErrMagic},
		{"magic 1", set(offMagic, 1), ErrMagic},
		{"magic 3", set(offMagic, 3), ErrMagic},
		{"magic -1", set(offMagic, 0xff), ErrMagic},
		{"length 0", set(offLength, 0, 0, 0, 0), ErrLength},
		{"length 48", set(offLength, 0, 0, 0, 48), ErrLength},
		{"length negative", set(offLength, 0xff, 0xff, 0xff, 0xff), ErrLength},
		{"length 2^31-1", set(offLength, 0x7f, 0xff, 0xff, 0xff), ErrShort},
		{"length one too long", set(offLength, binary.BigEndian.AppendUint32(nil, uint32(len(good)-11))...), ErrShort},
		{"more behind it", append(bytes.Clone(good), 1, 2, 3), nil},
		{"empty batch", raw(None, 0, nil), nil},
	} {
		if _, err := ParseHeader(tc.b); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if _, err := PeekHeader(good[:61]); err != nil {
		t.Error("a header alone:", err)
	}
}

func TestVerifyCRC(t *testing.T) {
	good := ourBatch(t, sampleRecords()[:3], Gzip)
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		err := VerifyCRC(b)
		covered := i >= offCRC
		if covered != errors.Is(err, ErrCRC) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	if err := VerifyCRC(good[:10]); !errors.Is(err, ErrShort) {
		t.Error(err)
	}
}

func TestSetters(t *testing.T) {
	b := kmsgBatch(t, sampleRecords(), Zstd)
	SetBaseOffset(b, math.MaxInt64-1000)
	SetLeaderEpoch(b, math.MaxInt32)
	if err := VerifyCRC(b); err != nil {
		t.Fatal("offset and epoch lie before what is checksummed:", err)
	}
	h, _ := ParseHeader(b)
	if h.BaseOffset != math.MaxInt64-1000 || h.LeaderEpoch != math.MaxInt32 || h.LastOffset() != math.MaxInt64-956 || h.NextOffset() != math.MaxInt64-955 {
		t.Fatalf("%+v", h)
	}
	before := bytes.Clone(b[HeaderSize:])
	SetLogAppendTime(b, t0+99)
	if err := VerifyCRC(b); err != nil {
		t.Fatal(err)
	}
	h, _ = ParseHeader(b)
	if !h.LogAppendTime() || h.MaxTimestamp != t0+99 || h.BaseTimestamp != t0 || h.Codec() != Zstd || !bytes.Equal(before, b[HeaderSize:]) {
		t.Fatalf("%+v", h)
	}
	for _, r := range collect(t, b) {
		if r.ts != t0+99 {
			t.Fatal("records count as of the append:", r.ts)
		}
	}
}

func TestSequences(t *testing.T) {
	for _, tc := range []struct{ base, delta, want int32 }{
		{0, 0, 0}, {5, 4, 9}, {math.MaxInt32, 0, math.MaxInt32}, {math.MaxInt32, 1, 0}, {math.MaxInt32 - 1, 4, 2},
		{math.MaxInt32, math.MaxInt32, math.MaxInt32 - 1}, {NoSequence, 3, NoSequence},
	} {
		if got := (Header{BaseSequence: tc.base, LastOffsetDelta: tc.delta}).LastSequence(); got != tc.want {
			t.Errorf("%d + %d = %d, want %d", tc.base, tc.delta, got, tc.want)
		}
	}
}

func TestWalk(t *testing.T) {
	var run []byte
	var want []int64
	for i, c := range codecs {
		b := ourBatch(t, sampleRecords(), c)
		SetBaseOffset(b, int64(i)*100)
		run = append(run, b...)
		want = append(want, int64(i)*100)
	}
	var got []int64
	size := 0
	err := Walk(run, func(h Header, b []byte) error {
		got = append(got, h.BaseOffset)
		size += len(b)
		if cap(b) != len(b) {
			t.Error("a batch must not be appended to over the next one")
		}
		return VerifyCRC(b)
	})
	if err != nil || !reflect.DeepEqual(got, want) || size != len(run) {
		t.Fatal(got, size, err)
	}
	if err := Walk(run[:len(run)-1], func(Header, []byte) error { return nil }); !errors.Is(err, ErrShort) {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	if err := Walk(run, func(Header, []byte) error { return stop }); err != stop {
		t.Fatal(err)
	}
	if err := Walk(nil, nil); err != nil {
		t.Fatal(err)
	}
}

// What a client may not send, as far as the header shows it.
func TestCheckClient(t *testing.T) {
	put32 := func(off int, v int32) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[off:], uint32(v)) }
	}
	attr := func(a byte) func([]byte) { return func(b []byte) { b[offAttributes+1] |= a } }
	pid := func(b []byte) { binary.BigEndian.PutUint64(b[offProducerID:], 5) }
	epoch := func(b []byte) { binary.BigEndian.PutUint16(b[offProducerEpoch:], 0) }
	one := body(byte(0), 0, 0, -1, -1, 0)
	for _, tc := range []struct {
		name string
		edit []func([]byte)
		code int16
	}{
		{"sound", nil, 0},
		{"sound, idempotent", []func([]byte){pid, epoch, put32(offBaseSequence, 0)}, 0},
		{"sound, transactional", []func([]byte){pid, epoch, put32(offBaseSequence, 0), attr(attrTransactional)}, 0},
		{"count 0", []func([]byte){put32(offRecordCount, 0)}, 87},
		{"count -1", []func([]byte){put32(offRecordCount, -1)}, 87},
		{"count 2^31-1", []func([]byte){put32(offRecordCount, math.MaxInt32)}, 87},
		{"last offset delta too large", []func([]byte){put32(offLastOffsetDelta, 1)}, 87},
		{"last offset delta negative", []func([]byte){put32(offLastOffsetDelta, -1)}, 87},
		{"last offset delta and count both overflow", []func([]byte){put32(offLastOffsetDelta, math.MaxInt32), put32(offRecordCount, math.MinInt32)}, 87},
		{"control", []func([]byte){attr(attrControl)}, 87},
		{"transaction without producer", []func([]byte){attr(attrTransactional)}, 87},
		{"producer without sequence", []func([]byte){pid, epoch}, 87},
		{"producer without epoch", []func([]byte){pid, put32(offBaseSequence, 0)}, 87},
		{"delete horizon", []func([]byte){attr(attrDeleteHorizon)}, 87},
		{"LogAppendTime", []func([]byte){attr(attrLogAppendTime)}, 32},
		{"codec 5", []func([]byte){attr(5)}, 87},
	} {
		h, err := ParseHeader(raw(None, 1, one, tc.edit...))
		if err != nil {
			t.Fatal(err)
		}
		var inv *InvalidError
		switch err := h.CheckClient(); {
		case tc.code == 0 && err != nil, tc.code != 0 && (!errors.As(err, &inv) || inv.Code != tc.code):
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// Records that are not what they say, in each codec: the check finds them, whatever the codec.
func TestMalformedRecords(t *testing.T) {
	ok := body(byte(0), 0, 0, -1, -1, 0)
	many := []byte{}
	for range MaxHeaders + 1 {
		many = append(many, 0, 0)
	}
	for _, tc := range []struct {
		name    string
		count   int
		section []byte
		want    error
	}{
		{"sound", 1, ok, nil},
		{"nothing where a record is counted", 1, nil, ErrRecord},
		{"one record, two counted", 2, ok, ErrRecord},
		{"two records, one counted", 1, append(bytes.Clone(ok), body(byte(0), 0, 1, -1, -1, 0)...), ErrTrailing},
		{"a byte after the last record", 1, append(bytes.Clone(ok), 0), ErrTrailing},
		{"length 0", 1, []byte{0}, ErrRecord},
		{"length -1", 1, []byte{1}, ErrRecord},
		{"length beyond the section", 1, append(appendVarint(nil, 1<<20), ok[1:]...), ErrRecord},
		{"length 2^31-1", 1, append(appendVarint(nil, math.MaxInt32), ok[1:]...), ErrRecord},
		{"length one short", 1, append(appendVarint(nil, int64(len(ok)-2)), ok[1:]...), ErrRecord},
		{"length one long", 1, append(appendVarint(nil, int64(len(ok))), ok[1:]...), ErrRecord},
		{"key longer than the record", 1, body(byte(0), 0, 0, 99, "abc", -1, 0), ErrRecord},
		{"key of 2^31-1", 1, body(byte(0), 0, 0, math.MaxInt32, "abc", -1, 0), ErrRecord},
		{"key length -2", 1, body(byte(0), 0, 0, -2, -1, 0), ErrRecord},
		{"value longer than the record", 1, body(byte(0), 0, 0, -1, 4, "abc"), ErrRecord},
		{"header count -1", 1, body(byte(0), 0, 0, -1, -1, -1), ErrRecord},
		{"header count of a million in 10 bytes", 1, body(byte(0), 0, 0, -1, -1, 1_000_000, "0123456789"), ErrRecord},
		{"headers really too many", 1, body(byte(0), 0, 0, -1, -1, MaxHeaders+1, many), ErrRecord},
		{"header key null", 1, body(byte(0), 0, 0, -1, -1, 1, -1, -1), ErrRecord},
		{"header value cut", 1, body(byte(0), 0, 0, -1, -1, 1, 1, "k", 5, "v"), ErrRecord},
		{"offset delta beyond int32", 1, body(byte(0), 0, []byte{0xff, 0xff, 0xff, 0xff, 0x1f}, -1, -1, 0), ErrRecord},
		{"varint of 6 bytes", 1, body(byte(0), 0, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0}, -1, -1, 0), ErrRecord},
		{"varlong of 11 bytes", 1, body(byte(0), bytes.Repeat([]byte{0x80}, 10), byte(0), 0, -1, -1, 0), ErrRecord},
	} {
		for _, c := range codecs {
			b := raw(c, tc.count, pack(t, c, tc.section))
			_, err := CheckRecords(b, 1<<20, CheckOptions{})
			if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
				t.Errorf("%s, %v: %v, want %v", tc.name, c, err, tc.want)
			}
			var got error
			for _, err := range Records(b, 1<<20) {
				got = err
			}
			if tc.want == nil && got != nil || !errors.Is(got, tc.want) {
				t.Errorf("%s, %v: iterating: %v, want %v", tc.name, c, got, tc.want)
			}
		}
	}
}

func TestCheckRecordsOfTopic(t *testing.T) {
	section := bytes.Join([][]byte{
		body(byte(0), 0, 0, 1, "k", -1, 0),
		body(byte(0), 1, 1, -1, -1, 0),                      // no key
		body(byte(0), 2, 5, 1, "k", -1, 0),                  // offset delta
		body(byte(0), -5000, 3, 1, "k", -1, 0),              // too old
		body(byte(0), 5000, 4, 1, "k", -1, 0),               // too new
		body(byte(0), int64(math.MaxInt64), 5, 0, -1, 0),    // overflows
		body(byte(0), int64(-t0-1), 6, 1, "k", 2, "ab", 0),  // no timestamp: passes
		body(byte(0), 7, 7, 1, "k", 3, "abc", 1, 1, "h", 0), // sound
	}, nil)
	for _, c := range codecs {
		b := raw(c, 8, pack(t, c, section), func(b []byte) { binary.BigEndian.PutUint64(b[offBaseTimestamp:], t0) })
		rep, err := Inspect(b, 1<<20, CheckOptions{RequireKey: true, MinTimestamp: t0 - 1000, MaxTimestamp: t0 + 1000})
		if err != nil {
			t.Fatal(c, err)
		}
		var got []string
		for _, e := range rep.Errors {
			got = append(got, fmt.Sprintf("%d:%d", e.Index, e.Code))
		}
		if want := "1:87 2:87 3:32 4:32 5:32"; strings.Join(got, " ") != want {
			t.Errorf("%v: %v, want %s", c, got, want)
		}
		if rep.MaxTimestamp != t0+5000 || rep.Failed != 5 {
			t.Errorf("%v: %+v", c, rep)
		}
	}
	// A batch of a million wrong records is answered with a bounded list.
	bb := NewBuilder()
	for i := range 3000 {
		bb.Add(int64(i), nil, nil)
	}
	b, _ := bb.Build()
	rep, err := Inspect(b, 1<<20, CheckOptions{RequireKey: true})
	if err != nil || len(rep.Errors) != MaxRecordErrors || rep.Failed != 3000 {
		t.Fatal(len(rep.Errors), rep.Failed, err)
	}
}

func TestTimestampRange(t *testing.T) {
	for _, tc := range []struct{ now, before, after, lo, hi int64 }{
		{t0, 1000, 2000, t0 - 1000, t0 + 2000},
		{t0, math.MaxInt64, math.MaxInt64, t0 - math.MaxInt64, math.MaxInt64},
		{-5, math.MaxInt64, 0, math.MinInt64, -5},
		{math.MaxInt64, 0, 1, math.MaxInt64, math.MaxInt64},
	} {
		lo, hi := TimestampRange(tc.now, tc.before, tc.after)
		if lo != tc.lo || hi != tc.hi {
			t.Errorf("%+v: %d %d", tc, lo, hi)
		}
	}
}

// A compressed section that is not a stream of its codec, or is more than that.
func TestMalformedStreams(t *testing.T) {
	section := bytes.Repeat(body(byte(0), 0, 0, -1, 40, strings.Repeat("x", 40), 0), 1)
	hostileChunk := func(n uint32) []byte {
		p := append(bytes.Clone(xerialMagic), 0, 0, 0, 1, 0, 0, 0, 1)
		p = binary.BigEndian.AppendUint32(p, n)
		return append(p, snappy.Encode(nil, section)...)
	}
	for _, tc := range []struct {
		name  string
		codec Codec
		in    []byte
		want  error
	}{
		{"snappy chunk of 2^31-1", Snappy, hostileChunk(math.MaxInt32), ErrCodec},
		{"snappy chunk of -1", Snappy, hostileChunk(math.MaxUint32), ErrCodec},
		{"snappy chunk that ends early", Snappy, hostileChunk(5), ErrCodec},
		{"snappy header cut", Snappy, xerialMagic, ErrCodec},
		{"snappy chunk length cut", Snappy, append(append(bytes.Clone(xerialMagic), 0, 0, 0, 1, 0, 0, 0, 1), 0, 0), ErrCodec},
		{"snappy block that declares 4 GiB", Snappy, append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, "abc"...), ErrCodec},
		{"snappy block that declares 1 GiB", Snappy, append([]byte{0x80, 0x80, 0x80, 0x80, 0x04}, "abc"...), ErrCodec},
		{"snappy empty", Snappy, nil, ErrCodec},
		{"snappy with the repeat code of s2", Snappy, []byte{10, 0x00, 'a', 0x01, 0x01, 0x11, 0x00}, ErrCodec},
		{"gzip empty", Gzip, nil, ErrCodec},
		{"gzip garbage", Gzip, []byte("not gzip at all"), ErrCodec},
		{"lz4 empty", LZ4, nil, ErrCodec},
		{"lz4 legacy frame", LZ4, []byte{0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0}, ErrCodec},
		{"zstd empty", Zstd, nil, ErrCodec},
		{"zstd garbage", Zstd, []byte("not zstd at all"), ErrCodec},
		{"codec 5", 5, section, ErrCodec},
		{"codec 7", 7, section, ErrCodec},
		{"wrong codec: gzip said, zstd sent", Gzip, pack(t, Zstd, section), ErrCodec},
		{"wrong codec: zstd said, lz4 sent", Zstd, pack(t, LZ4, section), ErrCodec},
		{"wrong codec: lz4 said, snappy sent", LZ4, pack(t, Snappy, section), ErrCodec},
		{"wrong codec: snappy said, gzip sent", Snappy, pack(t, Gzip, section), ErrCodec},
	} {
		_, err := CheckRecords(raw(tc.codec, 1, tc.in), 1<<20, CheckOptions{})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	for _, c := range codecs[1:] {
		whole := pack(t, c, section)
		if _, err := CheckRecords(raw(c, 1, append(bytes.Clone(whole), "garbage"...)), 1<<20, CheckOptions{}); err == nil {
			t.Errorf("%v: garbage after the stream passes", c)
		}
		for n := range whole {
			if _, err := CheckRecords(raw(c, 1, whole[:n]), 1<<20, CheckOptions{}); err == nil {
				t.Errorf("%v: cut to %d of %d bytes passes", c, n, len(whole))
			}
		}
	}
	// A stream may be made of several, as Java's libraries allow: two headers of the chunked snappy shape.
	two := append(pack(t, Snappy, section), pack(t, Snappy, body(byte(0), 0, 1, -1, -1, 0))...)
	if errs, err := CheckRecords(raw(Snappy, 2, two), 1<<20, CheckOptions{}); err != nil || len(errs) > 0 {
		t.Error("concatenated snappy streams:", errs, err)
	}
}

// allocated runs f and returns how many bytes it allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// zstdBomb is a frame of n blocks of four bytes, each of which stands for 128 KiB of zeros.
func zstdBomb(window byte, n int) []byte {
	p := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, window}
	for i := range n {
		h := uint32(128<<10)<<3 | 1<<1
		if i == n-1 {
			h |= 1
		}
		p = append(p, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return p
}

// Sections that inflate to gigabytes are given up at the limit, and the check needs no memory for what it reads.
func TestBombs(t *testing.T) {
	zeros := make([]byte, 64<<20)
	var gz, l4 bytes.Buffer
	gw, _ := gzip.NewWriterLevel(&gz, 1)
	for range 4 {
		if _, err := gw.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	_ = gw.Close()
	lw := lz4.NewWriter(&l4)
	if _, err := lw.Write(zeros); err != nil {
		t.Fatal(err)
	}
	_ = lw.Close()
	var sn []byte
	sn = append(sn, xerialMagic...)
	sn = append(sn, 0, 0, 0, 1, 0, 0, 0, 1)
	block := snappy.Encode(nil, zeros[:32<<10])
	for range 2048 {
		sn = append(binary.BigEndian.AppendUint32(sn, uint32(len(block))), block...)
	}
	const limit = 8 << 20
	for _, tc := range []struct {
		name   string
		codec  Codec
		in     []byte
		budget uint64
	}{
		{"gzip, 256 MiB", Gzip, gz.Bytes(), 1 << 20},
		{"lz4, 64 MiB", LZ4, l4.Bytes(), 6 << 20},
		{"snappy, 64 MiB in chunks", Snappy, sn, 1 << 20},
		{"snappy, 64 MiB in one block", Snappy, snappy.Encode(nil, zeros), 1 << 20},
		{"snappy, 16 MiB in one block", Snappy, snappy.Encode(nil, zeros[:16<<20]), 1 << 20},
		{"zstd, 4 GiB, window 1 MiB", Zstd, zstdBomb(0x50, 32768), 6 << 20},
		{"zstd, 4 GiB, window 64 MiB", Zstd, zstdBomb(0x80, 32768), 5 * limit},
	} {
		// A record as long as the limit, whose value the zeros are.
		b := raw(tc.codec, 1, tc.in)
		for name, f := range map[string]func() error{
			"check": func() error { _, err := CheckRecords(b, limit, CheckOptions{}); return err },
			"recompress": func() error {
				_, err := Recompress(b, None, 0, limit)
				return err
			},
		} {
			var err error
			got := allocated(func() { err = f() })
			if name == "recompress" && !errors.Is(err, ErrInflated) || err == nil {
				t.Errorf("%s, %s: %v", tc.name, name, err)
			}
			budget := tc.budget
			if name == "recompress" {
				budget += 4 * limit
			}
			if got > budget {
				t.Errorf("%s, %s: allocated %d KiB, budget %d KiB", tc.name, name, got>>10, budget>>10)
			}
		}
	}

	// Zero-byte records: as many as fit the limit, then it ends.
	tiny := bytes.Repeat(body(byte(0), 0, 0, -1, -1, 0), 2<<20)
	for _, c := range codecs[1:] {
		b := raw(c, 2<<20, pack(t, c, tiny))
		if _, err := CheckRecords(b, 1<<20, CheckOptions{}); !errors.Is(err, ErrInflated) {
			t.Errorf("%v: %v", c, err)
		}
	}

	// A record that declares a gigabyte and has a window's worth.
	long := append(appendVarint(nil, 1<<30), 0, 0, 0)
	long = appendVarint(long, 1<<30-100)
	long = append(long, zeros[:100<<10]...)
	for _, c := range codecs[1:] {
		b := raw(c, 1, pack(t, c, long))
		var err error
		got := allocated(func() {
			for _, e := range Records(b, 2<<30) {
				err = e
			}
		})
		if !errors.Is(err, ErrRecord) || got > 8<<20 {
			t.Errorf("%v: %v, allocated %d KiB", c, err, got>>10)
		}
	}
}

func TestLargeRecords(t *testing.T) {
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	rs := []rec{{1, []byte("a"), big, nil}, {2, big[:windowSize], big[:windowSize-1], []RecordHeader{{"h", big[:200<<10]}}}, {3, nil, nil, nil}}
	for _, c := range codecs {
		b := ourBatch(t, rs, c)
		sameRecords(t, collect(t, b), rs, true)
		if errs, err := CheckRecords(b, 8<<20, CheckOptions{}); len(errs) > 0 || err != nil {
			t.Fatal(errs, err)
		}
	}
}

// Frames of large windows, as klauspost's encoder writes them when it is not told how much comes (kafka-go's producer),
// of all sizes and densities: they are read, Whole bounds what they take, and the limit holds.
func TestZstdLargeWindowSizes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1 << 10, 100 << 10, 1 << 20, 9 << 20} {
		for _, kind := range []string{"zeros", "dense", "text", "noise"} {
			section := make([]byte, size)
			for i := range section {
				switch kind {
				case "dense":
					section[i] = byte(i * i >> 7)
				case "text":
					section[i] = "a few words of text "[(i+i/100)%20]
				case "noise":
					section[i] = byte(rng.Uint32())
				}
			}
			var buf bytes.Buffer
			w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			for rest := section; len(rest) > 0; rest = rest[min(len(rest), 10_000):] {
				_, _ = w.Write(rest[:min(len(rest), 10_000)])
			}
			_ = w.Close()
			name := fmt.Sprintf("%d bytes of %s in %d", size, kind, buf.Len())
			got, err := inflateAll(nil, Zstd, buf.Bytes(), size)
			if err != nil || !bytes.Equal(got, section) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
			if _, err := inflateAll(nil, Zstd, buf.Bytes(), max(size-1, 0)); size > 0 && !errors.Is(err, ErrInflated) {
				t.Errorf("%s, with room for one byte less: %v", name, err)
			}
			b := append(bytes.Clone(ourBatch(t, sampleRecords(), None)[:HeaderSize]), buf.Bytes()...)
			binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-overhead))
			b[offAttributes+1] |= byte(Zstd)
			if n := Whole(b); n != 0 && n < int64(size) || n == 0 && size > pieceSize || n > int64(size)+2*maxZstdBlock {
				t.Errorf("%s: Whole is %d", name, n)
			}
			for cut := 1; cut < buf.Len(); cut += 1 + buf.Len()/50 {
				if _, err := inflateAll(nil, Zstd, buf.Bytes()[:cut], size); err == nil {
					t.Errorf("%s: cut to %d bytes it is read", name, cut)
				}
			}
		}
	}
}

// What has to be in memory at one time, by codec.
func TestWhole(t *testing.T) {
	around := func(c Codec, section []byte) []byte {
		b := append(bytes.Clone(ourBatch(t, sampleRecords(), None)[:HeaderSize]), section...)
		binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-overhead))
		b[offAttributes+1] |= byte(c)
		return b
	}
	large := make([]byte, 3<<20)
	for c := None; c <= Zstd; c++ {
		section, err := deflate(nil, c, DefaultLevel, large[:3<<10])
		if err != nil {
			t.Fatal(err)
		}
		if n := Whole(around(c, section)); n != 0 {
			t.Errorf("%v, small: %d", c, n)
		}
		if section, err = deflate(nil, c, DefaultLevel, large); err != nil {
			t.Fatal(err)
		}
		if n := Whole(around(c, section)); n != 0 {
			t.Errorf("%v, in pieces: %d", c, n)
		}
	}
	raw := snappy.Encode(nil, large)
	if n := Whole(around(Snappy, raw)); n != int64(len(large)) {
		t.Errorf("one block of snappy: %d", n)
	}
	framed := append(append(bytes.Clone(xerialMagic), 0, 0, 0, 1, 0, 0, 0, 1), binary.BigEndian.AppendUint32(nil, uint32(len(raw)))...)
	framed = append(framed, raw...)
	if n := Whole(around(Snappy, framed)); n != int64(len(large)) {
		t.Errorf("a large chunk of snappy: %d", n)
	}
	if n := Whole(around(Snappy, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0})); n != 0 {
		t.Errorf("snappy that is refused: %d", n)
	}
	if n := Whole([]byte("no batch")); n != 0 {
		t.Errorf("no batch: %d", n)
	}
}

// A frame with a window that the streaming decoder does not take: what level 22 of the reference encoder writes when
// it does not know how much is coming.
func TestZstdLargeWindow(t *testing.T) {
	want := sampleRecords()
	plain := ourBatch(t, want, None)
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(64<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for i := HeaderSize; i < len(plain); i += 1000 {
		_, _ = w.Write(plain[i:min(i+1000, len(plain))])
		_ = w.Flush()
	}
	_ = w.Close()
	var zh zstd.Header
	if err := zh.Decode(buf.Bytes()); err != nil || zh.WindowSize <= streamWindow {
		t.Fatalf("the test needs a large window, got %d (%v)", zh.WindowSize, err)
	}
	b := bytes.Clone(plain[:HeaderSize])
	b = append(b, buf.Bytes()...)
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-overhead))
	b[offAttributes+1] |= byte(Zstd)
	setCRC(b)
	sameRecords(t, collect(t, b), want, true)
	if _, err := CheckRecords(b, 1000, CheckOptions{}); !errors.Is(err, ErrInflated) {
		t.Fatal(err)
	}
	// The limit is exact.
	if _, err := CheckRecords(b, len(plain)-HeaderSize, CheckOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestInflatedLimitIsExact(t *testing.T) {
	plain := ourBatch(t, sampleRecords(), None)
	n := len(plain) - HeaderSize
	for _, c := range codecs[1:] {
		b := ourBatch(t, sampleRecords(), c)
		if _, err := CheckRecords(b, n, CheckOptions{}); err != nil {
			t.Errorf("%v: limit equal to the content: %v", c, err)
		}
		if _, err := CheckRecords(b, n-1, CheckOptions{}); !errors.Is(err, ErrInflated) {
			t.Errorf("%v: limit one below: %v", c, err)
		}
		if _, err := Recompress(b, None, 0, n); err != nil {
			t.Errorf("%v: recompress at the limit: %v", c, err)
		}
		if _, err := Recompress(b, None, 0, n-1); !errors.Is(err, ErrInflated) {
			t.Errorf("%v: recompress one below: %v", c, err)
		}
	}
}

func TestRecompress(t *testing.T) {
	for _, from := range codecs {
		b := kmsgBatch(t, sampleRecords(), from)
		SetBaseOffset(b, 1234)
		for _, to := range codecs {
			for _, level := range []int{DefaultLevel, -131072, -1, 0, 1, 6, 9, 12, 17, 22, 99} {
				if from != None && level != DefaultLevel {
					continue
				}
				got, err := Recompress(b, to, level, 8<<20)
				if err != nil {
					t.Fatal(from, to, level, err)
				}
				if err := VerifyCRC(got); err != nil {
					t.Fatal(err)
				}
				sameRecords(t, collect(t, got), sampleRecords(), true)
				h, _ := ParseHeader(b)
				g, _ := ParseHeader(got)
				h.Attributes, h.Length, h.CRC = int16(to), g.Length, g.CRC
				if h != g {
					t.Fatalf("%v to %v:\n got %+v\nwant %+v", from, to, g, h)
				}
			}
		}
	}
}

func TestMarkers(t *testing.T) {
	b := Marker(7, 3, true, 11, t0)
	SetBaseOffset(b, 99)
	h, err := ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	if !h.Control() || !h.Transactional() || h.ProducerID != 7 || h.ProducerEpoch != 3 || h.BaseSequence != -1 || h.RecordCount != 1 || h.MaxTimestamp != t0 {
		t.Fatalf("%+v", h)
	}
	// The bytes as Kafka writes them: length 16, no attributes, deltas 0, key {0, 1}, value {0, 11}, no headers.
	if want := []byte{32, 0, 0, 0, 8, 0, 0, 0, 1, 12, 0, 0, 0, 0, 0, 11, 0}; !bytes.Equal(b[HeaderSize:], want) {
		t.Fatalf("% x\nwant % x", b[HeaderSize:], want)
	}
	if commit, epoch, err := ControlMarker(b); err != nil || !commit || epoch != 11 {
		t.Fatal(commit, epoch, err)
	}
	if commit, epoch, err := ControlMarker(Marker(7, 3, false, -1, t0)); err != nil || commit || epoch != -1 {
		t.Fatal(commit, epoch, err)
	}
	control := func(b []byte) { b[offAttributes+1] |= attrControl | attrTransactional }
	for name, b := range map[string][]byte{
		"data batch":     ourBatch(t, sampleRecords(), None),
		"empty":          raw(None, 0, nil, control),
		"no key":         raw(None, 1, body(byte(0), 0, 0, -1, 6, "\x00\x00\x00\x00\x00\x01", 0), control),
		"short key":      raw(None, 1, body(byte(0), 0, 0, 2, "\x00\x00", 6, "\x00\x00\x00\x00\x00\x01", 0), control),
		"other type":     raw(None, 1, body(byte(0), 0, 0, 4, "\x00\x00\x00\x02", 6, "\x00\x00\x00\x00\x00\x01", 0), control),
		"no value":       raw(None, 1, body(byte(0), 0, 0, 4, "\x00\x00\x00\x01", -1, 0), control),
		"negative value": raw(None, 1, body(byte(0), 0, 0, 4, "\x00\x00\x00\x01", 6, "\xff\xff\x00\x00\x00\x01", 0), control),
	} {
		if _, _, err := ControlMarker(b); !errors.Is(err, ErrControl) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A later version with more fields is still a marker.
	later := raw(None, 1, body(byte(0), 0, 0, 5, "\x00\x01\x00\x01x", 9, "\x00\x01\x00\x00\x00\x05xyz", 0), control)
	if commit, epoch, err := ControlMarker(later); err != nil || !commit || epoch != 5 {
		t.Error(commit, epoch, err)
	}
}

func TestLookupByTime(t *testing.T) {
	rs := []rec{{t0 + 5, nil, nil, nil}, {t0 + 1, nil, nil, nil}, {t0 + 9, nil, nil, nil}, {t0 + 9, nil, nil, nil}, {t0 + 2, nil, nil, nil}}
	for _, c := range codecs {
		b := ourBatch(t, rs, c)
		SetBaseOffset(b, 100)
		for ts, want := range map[int64]int64{t0: 100, t0 + 5: 100, t0 + 6: 102, t0 + 9: 102, t0 + 10: -1, math.MinInt64: 100} {
			off, at, ok, err := FirstAtOrAfter(b, ts, 0, math.MaxInt64, 1<<20)
			if err != nil || ok != (want >= 0) || (ok && (off != want || at != rs[want-100].ts)) {
				t.Errorf("%v: %d: %d %d %v %v", c, ts-t0, off, at, ok, err)
			}
		}
		for _, w := range []struct{ from, to, want int64 }{
			{0, math.MaxInt64, 102}, {102, 103, 102}, {103, 105, 103}, {104, 200, 104}, {100, 102, 100}, {101, 102, 101}, {105, 200, -1}, {0, 100, -1},
		} {
			off, at, ok, err := MaxTimestampOffset(b, w.from, w.to, 1<<20)
			if err != nil || ok != (w.want >= 0) || ok && (off != w.want || at != rs[w.want-100].ts) {
				t.Errorf("%v: in [%d, %d): %d %d %v %v, want %d", c, w.from, w.to, off, at, ok, err, w.want)
			}
		}
		SetLogAppendTime(b, t0+77)
		if off, at, ok, err := FirstAtOrAfter(b, t0+50, 0, math.MaxInt64, 1<<20); off != 100 || at != t0+77 || !ok || err != nil {
			t.Errorf("%v: %d %d %v %v", c, off, at, ok, err)
		}
		for _, from := range []int64{100, 102} {
			if off, at, ok, err := MaxTimestampOffset(b, from, math.MaxInt64, 1<<20); off != from || at != t0+77 || !ok || err != nil {
				t.Errorf("%v: from %d: %d %d %v %v", c, from, off, at, ok, err)
			}
		}
	}
	if _, _, ok, err := FirstAtOrAfter(raw(None, 0, nil), 0, 0, math.MaxInt64, 0); ok || err != nil {
		t.Error(ok, err)
	}
}

// Records stay valid when the iteration has moved on, and when other batches are read meanwhile.
func TestRecordsOutliveTheIteration(t *testing.T) {
	for _, c := range codecs {
		b := ourBatch(t, sampleRecords(), c)
		var kept []rec
		for r, err := range Records(b, 8<<20) {
			if err != nil {
				t.Fatal(err)
			}
			kept = append(kept, rec{sampleRecords()[len(kept)].ts, r.Key, r.Value, r.Headers})
			for range Records(ourBatch(t, sampleRecords()[:2], c), 8<<20) { //nolint:revive // only to use the pools
			}
		}
		sameRecords(t, kept, sampleRecords(), true)
	}
}

func TestRecordsStopsEarly(t *testing.T) {
	for _, c := range codecs {
		b := ourBatch(t, sampleRecords(), c)
		for range 100 {
			for _, err := range Records(b, 8<<20) {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		sameRecords(t, collect(t, b), sampleRecords(), true)
	}
}

func TestBuilder(t *testing.T) {
	b := NewBuilder()
	if _, err := b.Build(); err == nil {
		t.Error("an empty batch must not be built")
	}
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional, b.BaseOffset, b.LeaderEpoch = 1, 2, 3, true, 40, 5
	b.AddAt(2, 100, []byte("a"), nil)
	b.AddAt(7, 90, []byte("b"), nil)
	p, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if b.Size() != len(p) || b.Len() != 2 {
		t.Error(b.Size(), b.Len(), len(p))
	}
	h, _ := ParseHeader(p)
	if h.LastOffset() != 47 || h.RecordCount != 2 || h.BaseTimestamp != 100 || h.MaxTimestamp != 100 || !h.Transactional() || h.LastSequence() != 10 {
		t.Errorf("%+v", h)
	}
	b.Reset()
	b.LogAppendTime = true
	b.Add(5, nil, nil)
	p, _ = b.Build()
	if h, _ := ParseHeader(p); !h.LogAppendTime() || h.RecordCount != 1 || h.LastOffsetDelta != 0 {
		t.Errorf("%+v", h)
	}
	defer func() {
		if recover() == nil {
			t.Error("offset deltas that do not ascend must panic")
		}
	}()
	b.AddAt(0, 5, nil, nil)
}

func TestCodecNames(t *testing.T) {
	for _, c := range codecs {
		if got, ok := ParseCodec(c.String()); !ok || got != c {
			t.Error(c)
		}
	}
	if c, ok := ParseCodec("uncompressed"); !ok || c != None {
		t.Error("uncompressed")
	}
	if _, ok := ParseCodec("producer"); ok {
		t.Error("producer is no codec")
	}
	if Codec(6).Valid() || Codec(-1).Valid() || Codec(6).String() != "codec(6)" {
		t.Error("codec 6")
	}
}

// Decoders and encoders are shared between callers by free lists; what one of them reads is its own.
func TestConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			rs := []rec{{t0, fmt.Appendf(nil, "%d", i), bytes.Repeat([]byte{byte(i)}, 5000+i), nil}, {t0, nil, fmt.Appendf(nil, "%d", i), nil}}
			for range 5 {
				for _, c := range codecs {
					b, err := Recompress(ourBatch(t, rs, c), codecs[i%len(codecs)], DefaultLevel, 1<<20)
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := CheckRecords(b, 1<<20, CheckOptions{}); err != nil {
						t.Error(err)
					}
					// A broken stream must leave nothing behind in what it used.
					_, _ = CheckRecords(raw(c, 2, b[HeaderSize:len(b)-3]), 1<<20, CheckOptions{})
					n := 0
					for r, err := range Records(b, 1<<20) {
						if err != nil || !bytes.Equal(r.Key, rs[n].key) || !bytes.Equal(r.Value, rs[n].value) {
							t.Errorf("%v: %v %v", c, r, err)
							return
						}
						n++
					}
				}
			}
		})
	}
	wg.Wait()
}
