//go:build !amd64 || race

package vfs

// Stream is copy, which the race detector sees.
func Stream(dst, src []byte) int { return copy(dst, src) }
