// Package crc32c is CRC-32C (Castagnoli, RFC 3720 appendix B.4) with what hash/crc32 lacks: the checksum of bytes
// that follow each other, from theirs.
//
// A record batch comes with a checksum of nearly all its bytes, and the log writes one over the same bytes that begins
// with the segment's seed. Being linear, the second follows from the first with two multiplications in GF(2)[x]/P, and
// the bytes are read once, where they arrive, instead of once more by the goroutine that everybody waits for.
package crc32c

import "hash/crc32"

const poly = 0x82f63b78 // reflected

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the checksum of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, table) }

// Update returns the checksum of what crc is the checksum of, followed by b.
func Update(crc uint32, b []byte) uint32 { return crc32.Update(crc, table, b) }

// Shift is what n bytes that follow do to the checksum of what stands before them: Then applies it. It is x^8n mod P.
type Shift uint32

// powers[i][k] is x^(8*k*256^i) mod P.
var powers = func() (t [8][256]uint32) {
	x8 := uint32(1) << 23 // x^8; x^0 is the top bit
	for i := range t {
		t[i][0] = 1 << 31
		for k := 1; k < 256; k++ {
			t[i][k] = mul(t[i][k-1], x8)
		}
		x8 = mul(t[i][255], x8)
	}
	return t
}()

// ShiftOf returns the shift of n bytes. n is not negative.
func ShiftOf(n int) Shift {
	s := uint32(1) << 31
	for i := 0; n > 0; i++ {
		if k := n & 255; k != 0 {
			if s == 1<<31 {
				s = powers[i][k]
			} else {
				s = mul(s, powers[i][k])
			}
		}
		n >>= 8
	}
	return Shift(s)
}

// Then returns the checksum of a followed by b, from that of a, that of b, and b's shift.
func Then(a, b uint32, s Shift) uint32 { return mul(uint32(s), a) ^ b }

// mul multiplies two polynomials modulo P. Their top bits are the coefficients of x^0.
func mul(a, b uint32) uint32 {
	var p uint32
	for range 32 {
		p ^= b & uint32(int32(a)>>31)
		a <<= 1
		b = b>>1 ^ poly&-(b&1)
	}
	return p
}
