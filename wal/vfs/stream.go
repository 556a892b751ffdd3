//go:build !amd64 || race

package vfs

// stream is copy, which the race detector sees.
func stream(dst, src []byte) int { return copy(dst, src) }
