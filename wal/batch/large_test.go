package batch

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

// enormous is a batch of which nobody ever held more than a few kilobytes: n records with a value of size zeros, the last of
// which has a key of keySize zeros.
func enormous(t testing.TB, c Codec, n, size, keySize int) []byte {
	t.Helper()
	out := &bounded{b: make([]byte, HeaderSize), max: 1 << 30}
	w, err := deflateTo(out, c, DefaultLevel)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 64<<10)
	fill := func(n int) {
		for n > 0 {
			k := min(n, len(zeros))
			if _, err := w.Write(zeros[:k]); err != nil {
				t.Fatal(err)
			}
			n -= k
		}
	}
	for i := range n {
		keyLen := 1
		if i == n-1 {
			keyLen = keySize
		}
		length := 1 + 1 + sizeVarint(int64(i)) + sizeVarint(int64(keyLen)) + keyLen + sizeVarint(int64(size)) + size + 1
		head := append(appendVarint(nil, int64(length)), 0, 0)
		head = appendVarint(appendVarint(head, int64(i)), int64(keyLen))
		if _, err := w.Write(head); err != nil {
			t.Fatal(err)
		}
		fill(keyLen)
		if _, err := w.Write(appendVarint(nil, int64(size))); err != nil {
			t.Fatal(err)
		}
		fill(size + 1)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := seal(out.b, Header{LeaderEpoch: -1, Attributes: int16(c), LastOffsetDelta: int32(n - 1), BaseTimestamp: t0, MaxTimestamp: t0, ProducerID: -1,
		ProducerEpoch: -1, BaseSequence: -1, RecordCount: int32(n)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What a batch inflates to is never in memory at one time, be it that it has many records, or large ones, or a key that is
// enormous by itself.
func TestSieveMemory(t *testing.T) {
	const window = 1 << 20
	for _, tc := range []struct {
		name             string
		n, size, keySize int
	}{
		{"many records", 2000, 64 << 10, 1},
		{"large records", 4, 32 << 20, 1},
		{"a large key", 2, 32 << 20, 64 << 20},
	} {
		for _, c := range []Codec{Gzip, Snappy, LZ4, Zstd} {
			b := enormous(t, c, tc.n, tc.size, tc.keySize)
			var s Sieve
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := s.Open(b, window, func(_ Header, r *Record) bool { return r.OffsetDelta%2 == 1 }); err != nil {
				t.Fatal(c, tc.name, err)
			}
			out, err := s.BuildHorizon(c, DefaultLevel, t0+1e9)
			if err != nil {
				t.Fatal(c, tc.name, err)
			}
			runtime.ReadMemStats(&after)
			// The window, twice while it grows, the decoders' and the encoders' windows, what is built.
			if got, most := after.TotalAlloc-before.TotalAlloc, uint64(40<<20+4*len(b)); got > most && !race {
				t.Errorf("%v, %s: %d bytes were taken, %d at most", c, tc.name, got, most)
			}
			if len(out) > len(b)*9/10 {
				t.Errorf("%v, %s: of %d bytes %d are left, with half of the records", c, tc.name, len(b), len(out))
			}
			rep, err := Inspect(out, 1<<30, CheckOptions{})
			if h, _ := ParseHeader(out); err != nil || h.RecordCount != int32(tc.n/2) || rep.MaxTimestamp != t0 || VerifyCRC(out) != nil {
				t.Errorf("%v, %s: %+v, %+v, %v", c, tc.name, h, rep, err)
			}
		}
	}
}

// What cannot be read piece by piece is told of before it is opened, and opened all the same.
func TestHeld(t *testing.T) {
	text := make([]byte, 3<<20) // that does not repeat nearby
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range text {
		text[i] = byte(rnd.IntN(256))
	}
	var section []byte
	for i := range 5 { // the same text once in 3 MiB
		section = append(section, body(byte(0), 0, i, 1, "k", len(text), text, 0)...)
	}
	zeros := body(byte(0), 0, 0, 1, "k", 12<<20, make([]byte, 12<<20), 0)
	far := func(window int, section []byte) []byte {
		var out bytes.Buffer
		z, err := zstd.NewWriter(&out, zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true))
		if err != nil {
			t.Fatal(err)
		}
		for len(section) > 0 {
			k := min(len(section), 1<<20)
			if _, err := z.Write(section[:k]); err != nil {
				t.Fatal(err)
			}
			section = section[k:]
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for _, tc := range []struct {
		name   string
		b      []byte
		count  int
		min    int64
		max    int64
		window int
	}{
		{"zstd, 4 MiB", raw(Zstd, 5, far(4<<20, section)), 5, 0, 0, 1 << 20},
		{"zstd, 8 MiB", raw(Zstd, 5, far(8<<20, section)), 5, 8 << 20, 8 << 20, 1 << 20},
		{"zstd, 128 MiB", raw(Zstd, 5, far(128<<20, section)), 5, 15 << 20, 17 << 20, 1 << 20},
		{"zstd, 256 MiB", raw(Zstd, 5, far(256<<20, section)), 5, 15 << 20, 17 << 20, 1 << 20},
		{"zstd, 32 MiB, held", raw(Zstd, 1, far(32<<20, zeros)), 1, 12 << 20, 13 << 20, 64 << 20},
		{"one snappy block", raw(Snappy, 1, snappy.Encode(nil, zeros)), 1, 12 << 20, 13 << 20, 1 << 20},
		{"snappy chunks", raw(Snappy, 1, pack(t, Snappy, zeros)), 1, 0, 0, 1 << 20},
		{"gzip", raw(Gzip, 1, pack(t, Gzip, zeros)), 1, 0, 0, 1 << 20},
	} {
		if n := Held(tc.b); n < tc.min || n > tc.max {
			t.Errorf("%s: %d bytes", tc.name, n)
		}
		var s Sieve
		n := 0
		if err := s.Open(tc.b, tc.window, func(_ Header, r *Record) bool { n++; return true }); err != nil || n != tc.count || s.Large() != (tc.window < 64<<20) {
			t.Errorf("%s: %v, %d records, large %v", tc.name, err, n, s.Large())
		}
	}
}

// A batch that becomes enormous under another codec is not built.
func TestSieveGrown(t *testing.T) {
	b := enormous(t, Zstd, 100, 1<<20, 1)
	var s Sieve
	if err := s.Open(b, 1<<20, func(_ Header, r *Record) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Build(None, 0); !errors.Is(err, ErrGrown) {
		t.Errorf("built without a codec: %v", err)
	}
	if _, err := s.Build(Zstd, 0); err != nil {
		t.Error(err)
	}
}
