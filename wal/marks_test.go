package wal

import (
	"errors"
	"os"
	"testing"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/vfs"
)

// The marks of a directory are there after a crash at any operation that replaces
// them: the old ones, or the new ones.
func TestMarks(t *testing.T) {
	mem := vfs.NewMem()
	o := testOptions(mem)
	l := mustOpen(t, o)
	if last, next := l.Marks(); last != [16]byte{} || next != [16]byte{} {
		t.Fatal("a new directory has marks")
	}
	if err := l.SetMarks([16]byte{}, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	olds, news := 0, 0
	for at := 1; ; at++ {
		fs := mem.Clone()
		o := testOptions(fs)
		l := mustOpen(t, o)
		fs.CrashAt(at)
		err := l.SetMarks([16]byte{1}, [16]byte{2})
		l.Close()
		for seed := range uint64(20) {
			o.FS = fs.Crash(seed)
			l := mustOpen(t, o)
			switch last, next := l.Marks(); {
			case last == [16]byte{1} && next == [16]byte{2}:
				news++
			case last == [16]byte{} && next == [16]byte{1} && err != nil:
				olds++
			default:
				t.Fatalf("crashed at %d, %v: %x %x", at, err, last, next)
			}
			mustClose(t, l)
		}
		if err == nil {
			break
		}
	}
	if olds == 0 || news == 0 {
		t.Fatalf("%d times the old ones, %d times the new ones", olds, news)
	}
}

// Marks that are damaged, or of another directory, are none. Those of a later version
// are refused.
func TestDamagedMarks(t *testing.T) {
	mem := vfs.NewMem()
	o := testOptions(mem)
	l := mustOpen(t, o)
	if err := l.SetMarks([16]byte{1}, [16]byte{2}); err != nil {
		t.Fatal(err)
	}
	uuid := l.UUID()
	mustClose(t, l)
	good := mem.Bytes("wal/marks")
	none := func(what string, b []byte) {
		t.Helper()
		fs := mem.Clone()
		fs.Put("wal/marks", b)
		o := testOptions(fs)
		l := mustOpen(t, o)
		if last, next := l.Marks(); last != [16]byte{} || next != [16]byte{} || l.CutTail() {
			t.Errorf("%s: %x %x", what, last, next)
		}
		mustClose(t, l)
	}
	for i := range good {
		b := append([]byte(nil), good...)
		b[i] ^= 1
		none("flipped", b)
		none("short", good[:i])
	}
	none("long", append(append([]byte(nil), good...), 0))
	none("of another directory", marks{next: [16]byte{3}}.encode([16]byte{9}))

	b := marks{next: [16]byte{3}}.encode(uuid)
	b[8] = 2
	le.PutUint32(b[marksSize-4:], crc32c.Checksum(b[:marksSize-4]))
	mem.Put("wal/marks", b)
	if _, err := Open(testOptions(mem)); !errors.Is(err, ErrVersion) {
		t.Fatalf("marks of version 2: %v", err)
	}
}

// That a block was cut off is said until somebody has taken note of it, also by the
// processes after the one that did it, wherever that was killed.
func TestCutTailIsRemembered(t *testing.T) {
	f := makeFixture(t, 6, false)
	name := f.newest(t, f.fs)
	image := f.fs.Bytes(name)
	image[f.ends[5]-4096+150] ^= 4
	f.fs.Put(name, image)
	whole := false
	for at := 1; !whole; at++ {
		fs := f.fs.Clone()
		o := f.o
		o.FS = fs
		fs.CrashAt(at)
		l, err := Open(o)
		if err == nil {
			whole = !fs.Crashed()
			l.Close()
		}
		for seed := range uint64(5) {
			o.FS = fs.Crash(seed)
			if whole {
				o.FS = fs.Clone()
			}
			l := mustOpen(t, o)
			if !l.CutTail() {
				t.Fatalf("killed at operation %d of the start, and the next does not know (seed %d)", at, seed)
			}
			mustClose(t, l)
		}
	}
	o := f.o
	o.FS = f.fs
	l := mustOpen(t, o)
	if err := l.SetMarks([16]byte{1}, [16]byte{2}); err != nil || l.CutTail() {
		t.Fatal(err, l.CutTail())
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	if l.CutTail() {
		t.Fatal("said again")
	}
	mustClose(t, l)
}

// A directory has a place of its own, which a copy of it is not.
func TestPlace(t *testing.T) {
	o := testOptions(nil)
	o.Dir = t.TempDir()
	l := mustOpen(t, o)
	here := l.Place()
	if here == "" {
		t.Fatal("no place: the kernel does not say which boot it is")
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	if l.Place() != here {
		t.Fatalf("%s, before %s", l.Place(), here)
	}
	mustClose(t, l)
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	o.Dir = other
	uuid := l.UUID()
	l = mustOpen(t, o)
	if l.UUID() != uuid || l.Place() == here {
		t.Fatalf("%x at %s, copied from %x at %s", l.UUID(), l.Place(), uuid, here)
	}
	mustClose(t, l)
}
