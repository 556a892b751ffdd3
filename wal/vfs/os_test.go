package vfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// canDirect says whether the file system of dir opens files with O_DIRECT at all.
func canDirect(t *testing.T, dir string) bool {
	t.Helper()
	fd, err := unix.Open(filepath.Join(dir, "probe"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// vector cuts b into pieces of random lengths, some of them empty.
func vector(r *rand.Rand, b []byte) (v [][]byte) {
	for len(b) > 0 {
		n := min(len(b), r.IntN(3*directAlign))
		if r.IntN(8) == 0 {
			n = min(len(b), r.IntN(2*directChunk))
		}
		v = append(v, b[:n:n])
		b = b[n:]
	}
	return append(v, nil)
}

// Whatever is written, in whole pages or not, around the page cache or through it, is what is read, also of pages that
// were in the cache before.
func TestWritesAreRead(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		t.Run(fmt.Sprintf("buffered=%v", buffered), func(t *testing.T) {
			dir := t.TempDir()
			r := rand.New(rand.NewPCG(1, 2))
			fill := rand.NewChaCha8([32]byte{1})
			f, err := OS{Buffered: buffered}.Create(filepath.Join(dir, "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			const size = 16 << 20
			if err := f.Allocate(size); err != nil {
				t.Fatal(err)
			}
			model := make([]byte, size)
			got := make([]byte, size)
			for step := range 200 {
				off := int64(r.IntN(size/directAlign-1)) * directAlign
				n := (1 + r.IntN(4)) * directAlign
				switch r.IntN(4) {
				case 0: // several chunks
					n = (1 + r.IntN(2*directDepth*directChunk/directAlign)) * directAlign
				case 1: // not in pages
					off += int64(r.IntN(directAlign))
					n += r.IntN(directAlign)
				}
				n = min(n, size-int(off))
				b := make([]byte, n)
				fill.Read(b)
				if r.IntN(5) == 0 {
					_, err = f.WriteAt(b, off)
				} else {
					var w int64
					if w, err = f.WriteVAt(vector(r, b), off); err == nil && w != int64(n) {
						t.Fatalf("step %d: %d bytes of %d written", step, w, n)
					}
				}
				if err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				copy(model[off:], b)
				if r.IntN(10) == 0 {
					if err := f.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				from := r.IntN(size)
				to := min(size, from+r.IntN(1<<20))
				if _, err := f.ReadAt(got[from:to], int64(from)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got[from:to], model[from:to]) {
					t.Fatalf("step %d: [%d, %d) is not what was written", step, from, to)
				}
			}
			if of := f.(*osFile); (of.direct.tried && of.direct.fd >= 0) != (!buffered && canDirect(t, dir)) {
				t.Errorf("direct descriptor %d after whole pages were written with buffered=%v", of.direct.fd, buffered)
			}
			b, err := os.ReadFile(filepath.Join(dir, "f"))
			if err != nil || !bytes.Equal(b, model) {
				t.Errorf("the file is not what was written (%v)", err)
			}
		})
	}
}

// A reader of what is written sees it and never what was there before, while the kernel reads ahead of it into what is
// just being written.
func TestReadBehindDirectWrites(t *testing.T) {
	f, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, laps = 32 << 20, 4
	if err := f.Allocate(size); err != nil {
		t.Fatal(err)
	}
	for lap := range laps { // each over what the lap before left, some of it in the page cache
		var end atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for at := int64(0); at < size; {
				n := min(int64(len(b)), end.Load()-at)
				if n <= 0 {
					continue
				}
				if _, err := f.ReadAt(b[:n], at); err != nil {
					t.Error(err)
					return
				}
				for i, c := range b[:n] {
					if c != byte(lap+1) {
						t.Errorf("lap %d: byte %d is of lap %d", lap, at+int64(i), int(c)-1)
						return
					}
				}
				at += n
			}
		})
		r := rand.New(rand.NewPCG(uint64(lap), 1))
		for off := 0; off < size; {
			n := min(size-off, (1+r.IntN(40))*directAlign)
			if r.IntN(4) == 0 { // several chunks
				n = min(size-off, (1+r.IntN(6*directChunk/directAlign))*directAlign)
			}
			if _, err := f.WriteVAt([][]byte{bytes.Repeat([]byte{byte(lap + 1)}, n)}, int64(off)); err != nil {
				t.Fatal(err)
			}
			off += n
			end.Store(int64(off))
		}
		wg.Wait()
	}
}

// A disk that opens files for direct writes and then refuses those of whole pages is written through the page cache.
func TestDirectRefused(t *testing.T) {
	f, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// A file that answers EINVAL to whatever is not a number.
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.(*osFile).direct = direct{fd: fd, tried: true}
	want := bytes.Repeat([]byte("page"), 2*directChunk/4)
	if n, err := f.WriteVAt([][]byte{want}, 0); err != nil || n != int64(len(want)) {
		t.Fatalf("%d bytes written, %v", n, err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written is not read (%v)", err)
	}
	if f.(*osFile).direct.fd != -1 {
		t.Error("it is tried again")
	}
}

// An open directory is synced whatever has become of its name, and of the number of files that may be opened.
func TestDirIsKeptOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := OS{}.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Error(err)
	}
	if _, err := (OS{}).OpenDir(dir); !os.IsNotExist(err) {
		t.Errorf("a directory that is not there is opened: %v", err)
	}
}

// What is to be left of the disk is not allocated; what a file has already is not counted twice.
func TestKeepFree(t *testing.T) {
	dir := t.TempDir()
	free, _, err := OS{}.Free(dir)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	for _, c := range []struct {
		keep int64
		want error
	}{{0, nil}, {free / 2, nil}, {free * 2, unix.ENOSPC}} {
		f, err := OS{KeepFree: c.keep}.Create(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Allocate(size); err != c.want {
			t.Errorf("with %d bytes to be left of %d: %v, want %v", c.keep, free, err, c.want)
		}
		if c.want != nil {
			if err := (&osFile{File: f.(*osFile).File, fd: f.(*osFile).fd}).Allocate(size); err != nil {
				t.Fatal(err)
			}
			if err := f.Allocate(size); err != nil {
				t.Errorf("what is allocated already: %v", err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
