//go:build race

package protocol

// With the race detector the compiler no longer extends a slice in place, and kmsg allocates its arrays twice.
const race = true
