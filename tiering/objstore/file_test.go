package objstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const time6 = 6 * time.Second

func openDir(t *testing.T, dir string) *File {
	t.Helper()
	f, err := OpenFile(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func putBytes(b Bucket, key string, data []byte) error {
	return b.Put(context.Background(), key, bytes.NewReader(data), int64(len(data)), CRC32C(data))
}

func tree(t *testing.T, dir string) (out []string) {
	t.Helper()
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); err == nil && rel != "." {
			out = append(out, rel)
		}
		return err
	})
	return out
}

// Symbolic links planted in the directory lead nowhere outside it.
func TestFileSymlinkEscape(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644)
	f := openDir(t, dir)
	os.Symlink(outside, filepath.Join(dir, "out"))
	os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "link"))
	ctx := context.Background()
	for _, key := range []string{"out/secret", "link"} {
		if _, err := f.GetRange(ctx, key, 0, 1); err == nil {
			t.Errorf("read %s", key)
		}
		if _, err := f.Head(ctx, key); err == nil {
			t.Errorf("head %s", key)
		}
	}
	if err := putBytes(f, "out/new", []byte("x")); err == nil {
		t.Error("wrote outside")
	}
	if err := f.Delete(ctx, []string{"out/secret"}); err == nil {
		t.Error("deleted outside")
	}
	if got := tree(t, outside); len(got) != 1 {
		t.Errorf("outside: %q", got)
	}
	if infos, _, err := f.List(ctx, "", "", 0); err != nil || len(infos) != 0 {
		t.Errorf("%v %v", infos, err)
	}
}

// A body that does not arrive leaves nothing behind, neither under its name nor beside it.
func TestFileFailedPutLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f := openDir(t, dir)
	if err := f.Put(context.Background(), "a/b", bytes.NewReader([]byte("abc")), 3, 1); !errors.Is(err, ErrChecksum) {
		t.Fatal(err)
	}
	if got := tree(t, dir); len(got) != 1 || got[0] != fileTemp {
		t.Errorf("%q", got)
	}
	if err := putBytes(f, "a/b", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(context.Background(), []string{"a/b"}); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, dir); len(got) != 1 || got[0] != fileTemp {
		t.Errorf("after delete: %q", got)
	}
}

// What a crash leaves in .tmp is removed once it is old, and is never listed.
func TestFileRemainsOfACrash(t *testing.T) {
	dir := t.TempDir()
	openDir(t, dir)
	old, young := filepath.Join(dir, fileTemp, "old"), filepath.Join(dir, fileTemp, "young")
	os.WriteFile(old, []byte("x"), 0o644)
	os.WriteFile(young, []byte("x"), 0o644)
	when := time.Now().Add(-fileTempAge - time.Minute)
	os.Chtimes(old, when, when)
	f := openDir(t, dir)
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Error("old remains are kept")
	}
	if _, err := os.Stat(young); err != nil {
		t.Error("a body that may be under way was removed")
	}
	if infos, _, err := f.List(context.Background(), "", "", 0); err != nil || len(infos) != 0 {
		t.Errorf("%v %v", infos, err)
	}
}

// A directory that is emptied or unmounted under us is a missing bucket, not a bucket without objects.
func TestFileDirectoryGone(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "bucket")
	f, err := OpenFile(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := putBytes(f, "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(dir)
	if _, err := f.GetRange(ctx, "a", 0, 1); !errors.Is(err, ErrNoBucket) {
		t.Errorf("get: %v", err)
	}
	if _, err := f.Head(ctx, "a"); !errors.Is(err, ErrNoBucket) {
		t.Errorf("head: %v", err)
	}
	if err := putBytes(f, "b", []byte("x")); !errors.Is(err, ErrNoBucket) {
		t.Errorf("put: %v", err)
	}
}

func TestFileClosed(t *testing.T) {
	f := openDir(t, t.TempDir())
	f.Close()
	if err := putBytes(f, "a", []byte("x")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := f.Head(context.Background(), "a"); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// Two processes over one directory: puts and deletes in the same places do not disturb each other.
func TestFileSharedDirectory(t *testing.T) {
	dir := t.TempDir()
	a, b := openDir(t, dir), openDir(t, dir)
	errs := make(chan error, 4)
	for g, f := range []*File{a, b, a, b} {
		go func() {
			for i := range 100 {
				key := fmt.Sprintf("x/y/%d-%d", g, i)
				if err := putBytes(f, key, []byte(key)); err != nil {
					errs <- err
					return
				}
				if err := f.Delete(context.Background(), []string{key}); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := putBytes(a, "x/last", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Head(context.Background(), "x/last"); err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

// Bodies that would take what is to be left of the disk are refused, until there is room; others are not.
func TestFileKeepFree(t *testing.T) {
	for keep, want := range map[int64]error{1: nil, 1 << 60: ErrUnavailable} {
		b, err := Open(t.Context(), FileURL(t.TempDir()), Options{KeepFree: keep, KeepFreePrefix: "data/"})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if err := putBytes(b, "data/a", []byte("a")); !errors.Is(err, want) || want != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("with %d bytes to be left: %v, want %v", keep, err, want)
		}
		if err := putBytes(b, "state/a", []byte("a")); err != nil {
			t.Errorf("with %d bytes to be left, of another prefix: %v", keep, err)
		}
	}
}
