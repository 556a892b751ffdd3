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
		b := TakePages(4 << 20)
		defer GivePages(b)
		for name, bufs := range map[string][][]byte{"one piece": {b[:size]}, "two": {b[:100], b[100:size]}, "one that begins anywhere": {b[1 : size+1]}} {
			if n, err := writeDirect(int(f.Fd()), bufs, size, 0); n != 0 || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%s: %d bytes of %d written, %v", name, n, size, err)
			}
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

// Pages are whole, nobody else's, and go round.
func TestPages(t *testing.T) {
	a, b := TakePages(4<<20), TakePages(4<<20)
	for _, p := range [][]byte{a, b} {
		if len(p) != 4<<20 || cap(p) != len(p) || uintptr(unsafe.Pointer(&p[0]))%hugePage != 0 {
			t.Errorf("%d bytes (%d) at %p", len(p), cap(p), &p[0])
		}
	}
	a[0], b[0], a[len(a)-1], b[len(b)-1] = 1, 2, 3, 4
	if a[0] != 1 || a[len(a)-1] != 3 {
		t.Error("two have the same memory")
	}
	GivePages(a)
	GivePages(b)
	if c := TakePages(2 << 20); len(c) != 2<<20 {
		t.Errorf("%d bytes", len(c))
	}
	c, d := TakePages(4<<20), TakePages(4<<20)
	if &c[0] != &b[0] || &d[0] != &a[0] {
		t.Error("what was given back is not taken again")
	}
	GivePages(c)
	GivePages(d)
}

// What is begun is written when it has been waited for, and what the disk says of it is said then.
func TestBeginWrite(t *testing.T) {
	if !canDirect(t, t.TempDir()) {
		t.Log("this disk has no direct writes: nothing is begun")
	}
	pages := TakePages(4 << 20)
	defer GivePages(pages)
	rand.NewChaCha8([32]byte{5}).Read(pages)
	s := takeStage()
	s.queue.open()
	none := s.queue.none
	s.giveBack()
	stagesFree := func() int { stages.Lock(); defer stages.Unlock(); return len(stages.free) }
	before := stagesFree()
	for _, buffered := range []bool{false, true} {
		f, err := OS{Buffered: buffered}.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := f.(AsyncWriter)
		can := !buffered && !none && canDirect(t, t.TempDir())
		for i, n := range []int{directAlign, 27 * directAlign, len(pages)} {
			off := int64(i) * directAlign
			if got := w.BeginWrite(pages[:n], off); got != can {
				t.Fatalf("buffered=%v: %d bytes are begun to be written: %v, want %v", buffered, n, got, can)
			} else if !got {
				continue
			}
			if wrote, err := w.EndWrite(); err != nil || wrote != int64(n) {
				t.Fatalf("%d bytes of %d written, %v", wrote, n, err)
			}
			got := make([]byte, n)
			if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, pages[:n]) {
				t.Errorf("%d bytes are not what was written (%v)", n, err)
			}
		}
		size, _ := f.Size()
		for name, c := range map[string]struct {
			b   []byte
			off int64
		}{"nothing": {nil, 0}, "part of a page": {pages[:100], 0}, "memory that begins anywhere": {pages[8 : directAlign+8], 0}, "at part of a page": {pages[:directAlign], 512}} {
			if w.BeginWrite(c.b, c.off) {
				t.Errorf("%s is begun to be written", name)
			}
		}
		if after, _ := f.Size(); after != size {
			t.Errorf("what is not begun has been written: %d bytes, %d before", after, size)
		}
	}
	for _, room := range []int64{0, 3 * directAlign, 1 << 20, 8 << 20} {
		s := beginDirect(sealed(t, room), pages, 0)
		if s == nil {
			if !none {
				t.Fatal("there is a queue, and it is not used")
			}
			break
		}
		n, err := s.end()
		if want := min(room, int64(len(pages))); n != want || (want < int64(len(pages))) != errors.Is(err, unix.EPERM) {
			t.Errorf("%d bytes written of %d, %v; want %d", n, len(pages), err, want)
		}
	}
	if got := stagesFree(); got != before {
		t.Errorf("%d stages are free, %d before", got, before)
	}
	// Where the kernel gives no queue, nothing is begun.
	s = takeStage()
	ctx, was := s.queue.ctx, s.queue.none
	s.queue.ctx, s.queue.none = 0, true
	s.giveBack()
	if beginDirect(sealed(t, 1<<20), pages[:directAlign], 0) != nil {
		t.Error("begun without a queue")
	}
	s.queue.ctx, s.queue.none = ctx, was
}

// What is begun on a disk that then refuses it is written through the page cache.
func TestBeginWriteRefused(t *testing.T) {
	f, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0) // see TestDirectRefused
	if err != nil {
		t.Fatal(err)
	}
	f.(*osFile).direct = direct{fd: fd, tried: true}
	b := TakePages(2 << 20)
	defer GivePages(b)
	copy(b, bytes.Repeat([]byte("page"), directAlign))
	if !f.(AsyncWriter).BeginWrite(b[:2*directAlign], directAlign) {
		return // no queue; TestBeginWrite says so
	}
	if n, err := f.(AsyncWriter).EndWrite(); err != nil || n != 2*directAlign {
		t.Fatalf("%d bytes written, %v", n, err)
	}
	got := make([]byte, 2*directAlign)
	if _, err := f.ReadAt(got, directAlign); err != nil || !bytes.Equal(got, b[:len(got)]) {
		t.Errorf("what was written is not read (%v)", err)
	}
}
