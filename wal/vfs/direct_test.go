package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Whatever the lengths are, and wherever in a line of the cache the two lie.
func TestStream(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	fill := rand.NewChaCha8([32]byte{2})
	src, dst, want := make([]byte, 8<<10), make([]byte, 8<<10), make([]byte, 8<<10)
	fill.Read(src)
	for range 20_000 {
		from, to := r.IntN(200), r.IntN(200)
		n, room := r.IntN(1<<(1+r.IntN(12))), r.IntN(1<<(1+r.IntN(12)))
		if r.IntN(2) == 0 {
			room = n
		}
		fill.Read(dst[:to+room+200])
		copy(want, dst[:to+room+200])
		m := copy(want[to:to+room], src[from:from+n])
		if got := Stream(dst[to:to+room], src[from:from+n]); got != m {
			t.Fatalf("%d bytes copied of %d to %d, want %d", got, n, room, m)
		}
		if !bytes.Equal(dst[:to+room+200], want[:to+room+200]) {
			t.Fatalf("%d bytes from %d to %d are not what they were, or something beside them is not", m, from, to)
		}
	}
}

// sealed is a file of so many bytes that does not grow: a write across its end is cut short.
func sealed(t *testing.T, size int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	return fd
}

// The chunks of a vector are written side by side. How much of its beginning was written is what is before the first gap,
// with the kernel's queue, without one, and with one that takes nothing.
func TestDirectCutShort(t *testing.T) {
	kernels := map[string]func(q *queue){"queue": func(q *queue) {}, "none": func(q *queue) { q.ctx, q.none = 0, true }, "closed": func(q *queue) { q.ctx, q.none = 1, false }}
	for name, set := range kernels {
		for _, room := range []int64{0, directChunk / 2, directChunk, 5*directChunk + 3*directAlign, 11 * directChunk} {
			t.Run(fmt.Sprintf("%s/room=%d", name, room), func(t *testing.T) {
				s := takeStage()
				ctx, none := s.queue.ctx, s.queue.none
				set(&s.queue)
				s.giveBack() // what is taken next
				defer func() { s.queue.ctx, s.queue.none = ctx, none }()
				fd := sealed(t, room)
				src := make([]byte, 9*directChunk)
				rand.NewChaCha8([32]byte{3}).Read(src)
				n, err := writeDirect(fd, [][]byte{src[:100], src[100 : 3*directChunk+1], src[3*directChunk+1:]}, len(src), 0)
				want := min(room, int64(len(src)))
				if n != want || (want < int64(len(src))) != errors.Is(err, unix.EPERM) || want == int64(len(src)) && err != nil {
					t.Fatalf("%d bytes written, %v; want %d", n, err, want)
				}
				got := make([]byte, want)
				if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, src[:want]) {
					t.Errorf("the file is not what was written (%v)", err)
				}
				if len(s.free) != directDepth || s.queue.flying != 0 || len(s.queue.byHand) != 0 {
					t.Errorf("%d of %d chunks are free afterwards, %d fly", len(s.free), directDepth, s.queue.flying)
				}
				if name == "queue" && s.queue.ctx == 0 && !s.queue.none {
					t.Error("no queue was made")
				}
			})
		}
	}
}

// What was interrupted is written again, and what failed is not.
func TestOutcome(t *testing.T) {
	for res, want := range map[int64]error{0: nil, 1 << 19: nil, -int64(unix.EINTR): nil, -int64(unix.EAGAIN): nil, -int64(unix.EIO): unix.EIO, -int64(unix.ENOSPC): unix.ENOSPC, -int64(unix.EINVAL): unix.EINVAL} {
		if done, err := outcome(res); done != int(max(res, 0)) || err != want {
			t.Errorf("%d: %d bytes, %v; want %v", res, done, err, want)
		}
	}
}

// What the disk says of a write is said of the vector.
func TestDirectFull(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{directAlign, 6 * directChunk} {
		if n, err := writeDirect(int(f.Fd()), [][]byte{make([]byte, size)}, size, 0); n != 0 || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%d bytes of %d written, %v", n, size, err)
		}
	}
}

// A stage is whole pages, and goes round: who writes one block after the other has one.
func TestStages(t *testing.T) {
	f, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := takeStage()
	s.giveBack()
	if p := uintptr(unsafe.Pointer(&s.mem[0])); p%directAlign != 0 {
		t.Errorf("a stage begins at %#x, not with a page", p)
	}
	before := len(stages.free)
	for i := range 20 {
		b := make([]byte, (1+i%3*200)*directAlign)
		if n, err := f.WriteVAt([][]byte{b}, 0); err != nil || n != int64(len(b)) {
			t.Fatalf("%d bytes written, %v", n, err)
		}
	}
	if got := len(stages.free); got != before {
		t.Errorf("%d stages after 20 writes, %d before", got, before)
	}
}
