package objstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fileTemp is where bodies are written before they get their name. It starts with a dot, which no key may.
const fileTemp = ".tmp"

// fileTempAge is how old an unfinished body must be before Open takes it for the remains of a crash. Several
// processes may share the directory, so it is far above any deadline of a Put.
const fileTempAge = 24 * time.Hour

// File is a bucket in a directory. A key is the path below it.
//
// Put writes to a temporary name, fsyncs, links the final name (which fails if it exists, so nothing is ever
// overwritten), and fsyncs every directory that got an entry. A crash leaves either the whole object or a file in
// .tmp. All access goes through os.Root: neither a key nor a symbolic link planted in the directory leads out of it.
type File struct {
	dir  string
	root *os.Root
	// mkdir keeps removal of emptied directories (write side) apart from creation of a directory and the link into
	// it (read side) within this process; across processes Put repeats the pair.
	mkdir sync.RWMutex

	keepFree   int64 // bytes that bodies of keepPrefix leave of the disk
	keepPrefix string
}

// OpenFile opens the bucket in dir. With create the directory is made if it is missing; its parent must exist.
func OpenFile(dir string, create bool) (*File, error) {
	if create {
		if err := os.Mkdir(dir, 0o755); err == nil {
			if err := syncDirPath(path.Dir(dir)); err != nil {
				return nil, fmt.Errorf("create bucket directory %s: %w", dir, err)
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create bucket directory %s: %w", dir, fileError(err))
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: no directory %s (make it, or mount it, before the start)", ErrNoBucket, dir)
		}
		return nil, fmt.Errorf("open bucket directory %s: %w", dir, fileError(err))
	}
	f := &File{dir: dir, root: root}
	if err := f.prepare(); err != nil {
		root.Close()
		return nil, fmt.Errorf("open bucket directory %s: %w", dir, fileError(err))
	}
	return f, nil
}

func (f *File) prepare() error {
	if err := f.root.Mkdir(fileTemp, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := f.root.Open(fileTemp)
	if err != nil {
		return err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > fileTempAge {
			f.root.Remove(fileTemp + "/" + e.Name())
		}
	}
	return nil
}

// fileError maps errors of the file system to this package's.
func fileError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return fmt.Errorf("%w (%w)", ErrClosed, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

func syncDirPath(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (f *File) syncDir(dir string) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (f *File) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	if err := CheckKey(key); err != nil {
		return opError(OpPut, f, "", err)
	}
	return opError(OpPut, f, key, f.put(ctx, key, body, size, crc))
}

func (f *File) put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.room(key, size); err != nil {
		return fileError(err)
	}
	temp := fileTemp + "/" + rand.Text()
	w, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: directory is gone: %w", ErrNoBucket, err)
		}
		return fileError(err)
	}
	defer f.root.Remove(temp)
	err = copyBody(ctx, w, body, size, crc)
	if err == nil {
		// A failed fsync is never repeated: the file is thrown away, the caller's next attempt writes another one.
		err = w.Sync()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fileError(err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.publish(temp, key); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return f.same(key, size, crc)
		}
		return fileError(err)
	}
	return nil
}

// room is ENOSPC if the body would take what is to be left of the disk.
func (f *File) room(key string, size int64) error {
	if f.keepFree == 0 || !strings.HasPrefix(key, f.keepPrefix) {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free-size < f.keepFree {
		return fmt.Errorf("%d bytes are free, of which %d are kept: %w", free, f.keepFree, syscall.ENOSPC)
	}
	return nil
}

// publish gives the body its name and makes the name durable.
func (f *File) publish(temp, key string) error {
	var err error
	// Another process may remove an emptied directory between our mkdir and our link.
	for range 10 {
		f.mkdir.RLock()
		var made string
		if made, err = f.makeDirs(path.Dir(key)); err == nil {
			err = f.link(temp, key)
		}
		f.mkdir.RUnlock()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		// The entry of the object, then the entries of the directories on the way to it, up to the first that was
		// there already.
		for dir := path.Dir(key); ; dir = path.Dir(dir) {
			if err := f.syncDir(dir); err != nil {
				return err
			}
			if made == "" || dir == "." || dir == path.Dir(made) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: directory is gone: %w", ErrNoBucket, err)
}

// makeDirs makes dir and its parents and returns the topmost one that was missing, "" if none was.
func (f *File) makeDirs(dir string) (made string, err error) {
	if dir == "." {
		return "", nil
	}
	err = f.root.Mkdir(dir, 0o755)
	switch {
	case err == nil:
		return dir, nil
	case errors.Is(err, fs.ErrExist):
		// Perhaps made by someone else a moment ago, whose fsync of the parent may come after our Put has returned:
		// a young directory counts as made here. An fsync of a directory without changes costs next to nothing.
		if info, err := f.root.Stat(dir); err == nil && time.Since(info.ModTime()) < 10*time.Second {
			if made, err = f.makeDirs(path.Dir(dir)); made == "" {
				made = dir
			}
			return made, err
		}
		return "", nil
	case errors.Is(err, fs.ErrNotExist):
		if made, err = f.makeDirs(path.Dir(dir)); err != nil {
			return "", err
		}
		if err = f.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if made == "" {
			made = dir
		}
		return made, nil
	}
	return "", err
}

// link names temp key if key is free. Where the file system has no hard links, a look and a rename must do: keys
// are unique per attempt, so only a broken caller could lose the race between the two.
func (f *File) link(temp, key string) error {
	err := f.root.Link(temp, key)
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.EMLINK) {
		return err
	}
	if _, serr := f.root.Lstat(key); serr == nil {
		return fs.ErrExist
	} else if !errors.Is(serr, fs.ErrNotExist) {
		return serr
	}
	return f.root.Rename(temp, key)
}

// same tells an earlier attempt at this very object from another object under its name.
func (f *File) same(key string, size int64, crc uint32) error {
	r, err := f.root.Open(key)
	if err != nil {
		return fileError(err)
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return fileError(err)
	}
	if info.Mode().IsRegular() && info.Size() == size {
		h := crc32.New(castagnoli)
		if _, err := io.Copy(h, r); err != nil {
			return fileError(err)
		}
		if h.Sum32() == crc {
			// The earlier attempt may have died between its link and its fsyncs.
			if err := r.Sync(); err != nil {
				return fileError(err)
			}
			for dir := path.Dir(key); ; dir = path.Dir(dir) {
				if err := f.syncDir(dir); err != nil {
					return fileError(err)
				}
				if dir == "." {
					return nil
				}
			}
		}
	}
	return ErrExists
}

// open returns the regular file of key and its size.
func (f *File) open(ctx context.Context, key string) (*os.File, int64, error) {
	if err := CheckKey(key); err != nil {
		return nil, 0, err
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	r, err := f.root.Open(key)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil, 0, f.missing()
		}
		return nil, 0, fileError(err)
	}
	info, err := r.Stat()
	if err != nil || !info.Mode().IsRegular() {
		r.Close()
		if err == nil {
			err = ErrNotExist // a directory is no object
		}
		return nil, 0, fileError(err)
	}
	return r, info.Size(), nil
}

// missing tells a missing object from a missing bucket: whoever takes the second for the first takes all history
// for deleted.
func (f *File) missing() error {
	if _, err := f.root.Stat(fileTemp); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: directory is gone or emptied", ErrNoBucket)
	}
	return ErrNotExist
}

func (f *File) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	r, size, err := f.open(ctx, key)
	if err != nil {
		return nil, opError(OpGet, f, key, err)
	}
	err = checkRange(key, off, length)
	if err == nil && off+length > size {
		err = fmt.Errorf("%w: [%d,%d) of %d bytes", ErrRange, off, off+length, size)
	}
	if err != nil {
		r.Close()
		return nil, opError(OpGet, f, key, err)
	}
	body := struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(r, off, length), r}
	return &exactReader{ctx: ctx, r: body, key: key, left: length, classify: fileError}, nil
}

func (f *File) Head(ctx context.Context, key string) (int64, error) {
	r, size, err := f.open(ctx, key)
	if err != nil {
		return 0, opError(OpHead, f, key, err)
	}
	return size, r.Close()
}

func (f *File) List(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	if err := checkList(prefix, after); err != nil {
		return nil, false, opError(OpList, f, "", err)
	}
	l := lister{f: f, ctx: ctx, prefix: prefix, after: after, limit: listLimit(limit)}
	err := l.walk(".", "")
	if errors.Is(err, errListFull) {
		return l.out, true, nil
	}
	if err != nil {
		return nil, false, opError(OpList, f, prefix, fileError(err))
	}
	return l.out, false, nil
}

var errListFull = errors.New("page is full")

type lister struct {
	f             *File
	ctx           context.Context
	prefix, after string
	limit         int
	out           []Info
}

// walk lists below dir, whose keys start with base. Entries are visited in the order of their keys: a directory
// sorts as its name with a slash, which is behind "name-x" and "name.x".
func (l *lister) walk(dir, base string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	d, err := l.f.root.Open(dir)
	var entries []fs.DirEntry
	if err == nil {
		entries, err = d.ReadDir(-1)
		d.Close()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && dir == ".":
		return fmt.Errorf("%w: directory is gone", ErrNoBucket)
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed since its parent was read, or while it was read: it was empty
	case err != nil:
		return err
	}
	keys := make([]string, 0, len(entries))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		k := base + e.Name()
		if e.IsDir() {
			k += "/"
			// Nothing below a directory that cannot hold the prefix, or whose last possible key is not behind after.
			if !strings.HasPrefix(k, l.prefix) && !strings.HasPrefix(l.prefix, k) {
				continue
			}
			if k < l.after && !strings.HasPrefix(l.after, k) {
				continue
			}
		} else if !strings.HasPrefix(k, l.prefix) || k <= l.after {
			continue
		}
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if strings.HasSuffix(k, "/") {
			if err := l.walk(strings.TrimSuffix(k, "/"), k); err != nil {
				return err
			}
			continue
		}
		info, err := l.f.root.Lstat(k)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if len(l.out) == l.limit {
			return errListFull
		}
		l.out = append(l.out, Info{Key: k, Size: info.Size(), Modified: info.ModTime()})
	}
	return nil
}

func (f *File) Delete(ctx context.Context, keys []string) error {
	for _, k := range keys {
		if err := CheckKey(k); err != nil {
			return opError(OpDelete, f, "", err)
		}
	}
	var errs deleteErrors
	for _, k := range keys {
		if err := ctx.Err(); err != nil {
			return opError(OpDelete, f, k, err)
		}
		// Remove would take an empty directory too; that is no object.
		if info, err := f.root.Lstat(k); err != nil || info.IsDir() {
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
				errs.add(k, fileError(err))
			}
			continue
		}
		if err := f.root.Remove(k); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs.add(k, fileError(err))
			continue
		}
		f.prune(path.Dir(k))
	}
	return opError(OpDelete, f, "", errs.join())
}

// prune removes directories that Delete has emptied. A deletion lost in a crash brings back garbage, nothing
// more, so nothing is fsynced here.
func (f *File) prune(dir string) {
	f.mkdir.Lock()
	defer f.mkdir.Unlock()
	for ; dir != "."; dir = path.Dir(dir) {
		if f.root.Remove(dir) != nil {
			return
		}
	}
}

func (f *File) String() string { return "file://" + f.dir }

func (f *File) Close() error { return f.root.Close() }

// deleteErrors keeps the first few of the failures of one Delete.
type deleteErrors struct {
	errs []error
	n    int
}

func (d *deleteErrors) add(key string, err error) {
	d.n++
	if len(d.errs) < 3 {
		d.errs = append(d.errs, fmt.Errorf("%s: %w", key, err))
	}
}

func (d *deleteErrors) join() error {
	if d.n > len(d.errs) {
		return fmt.Errorf("%d keys failed: %w", d.n, errors.Join(d.errs...))
	}
	return errors.Join(d.errs...)
}
