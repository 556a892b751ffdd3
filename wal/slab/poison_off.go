//go:build !race && !slabdebug

package slab

// Debug says that this is a build with the race detector or with -tags slabdebug: released buffers are overwritten, and
// what else is believed on the fast path is checked.
const Debug = false
