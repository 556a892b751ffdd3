package crc32c

import (
	"math/rand/v2"
	"testing"
)

// TestThen joins checksums of pieces of all lengths around the bytes of a length's number, and of random ones.
func TestThen(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	all := make([]byte, 1<<20)
	for i := range all {
		all[i] = byte(r.Uint32())
	}
	lengths := []int{0, 1, 2, 7, 8, 21, 255, 256, 257, 1000, 65535, 65536, 65537, 1<<20 - 300}
	for range 200 {
		lengths = append(lengths, r.IntN(1<<20-300))
	}
	for _, n := range lengths {
		a := all[:r.IntN(300)]
		b := all[len(a):][:n]
		if got, want := Then(Checksum(a), Checksum(b), ShiftOf(n)), Checksum(all[:len(a)+n]); got != want {
			t.Fatalf("%d and %d bytes: %08x, not %08x", len(a), n, got, want)
		}
		seed := r.Uint32()
		if got, want := Then(seed, Checksum(b), ShiftOf(n)), Update(seed, b); got != want {
			t.Fatalf("%d bytes after the seed %08x: %08x, not %08x", n, seed, got, want)
		}
	}
}

// TestShiftOf adds lengths up, to beyond what memory holds.
func TestShiftOf(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		a, b := int(r.Uint64N(1<<(1+r.Uint64N(61)))), int(r.Uint64N(1<<(1+r.Uint64N(61))))
		if got, want := mul(uint32(ShiftOf(a)), uint32(ShiftOf(b))), uint32(ShiftOf(a+b)); got != want {
			t.Fatalf("%d and %d bytes: %08x, not %08x", a, b, got, want)
		}
	}
	if s := ShiftOf(0); Then(7, 0, s) != 7 {
		t.Fatalf("no bytes shift by %08x", s)
	}
}

func BenchmarkThen(b *testing.B) {
	c := uint32(1)
	for b.Loop() {
		c = Then(c, 5, ShiftOf(16<<10+61))
	}
}
