//go:build !race

package vfs

import "unsafe"

const (
	cacheLine = 64
	// streamMin is the length from which streaming pays.
	streamMin = 4 * cacheLine
)

// Stream is copy, past the processor's cache: what is put together for the disk is not read here again, and its lines are
// where the disk, or the machine that plays one, has read them last. Under a hypervisor that is another processor, and a
// store that must call each line back from there was seen to take five times as long.
func Stream(dst, src []byte) int {
	n := min(len(dst), len(src))
	if n < streamMin {
		return copy(dst, src)
	}
	dst, src = dst[:n], src[:n]
	head := int(-uintptr(unsafe.Pointer(&dst[0])) & (cacheLine - 1))
	copy(dst[:head], src)
	lines := (n - head) &^ (cacheLine - 1)
	streamLines(&dst[head], &src[head], lines)
	copy(dst[head+lines:], src[head+lines:])
	return n
}

// streamLines copies n bytes, whole lines and at least one, to where a line begins. They are visible to all when it returns.
//
//go:noescape
func streamLines(dst, src *byte, n int)
