package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// ErrDiskFull says that the disk has no room for what etcd needs to start.
var ErrDiskFull = errors.New("metadata: the disk is full")

// What is set aside on the disk for etcd, which ends the process where a write of it finds none: the disk that it is on
// is also that of the log and of the bucket, and of others.
const (
	// segmentBytes is how long the files of its log are. They are allocated whole, and the next one ahead.
	segmentBytes = 32 << 20
	// segmentRoom is beyond their end: a file is left after the write that crosses it.
	segmentRoom = 4 << 20
	// databaseRoom is kept allocated beyond the end of its database, which holds 10,000 revisions and grows by what comes
	// between two of its compactions.
	databaseRoom = 64 << 20
	databaseStep = 16 << 20
	// ballastBytes is for the files that it makes anew, one of a few blocks every 10,000 entries: for each of them
	// ballastPiece is given up just before.
	ballastBytes = 4 << 20
	ballastPiece = 128 << 10

	// room is looked after so often.
	roomEvery = time.Second
)

func init() {
	wal.SegmentSizeBytes = segmentBytes
}

// room is what is set aside on the disk for etcd. Blocks are allocated beyond the end of files (FALLOC_FL_KEEP_SIZE), so that
// neither content nor length of what is etcd's is changed, and etcd may do what it wants with a file meanwhile. Where the
// file system cannot do that, there is no room.
//
//	DIR/ballast                    for small files
//	DIR/data/member/snap/db        beyond the end
//	DIR/data/member/wal/*.wal      beyond the end of the last
//	DIR/data/member/wal/{0,1}.tmp  the names between which etcd alternates for the next file of its log. It prepares one of them
//	                               right after it has begun the other, and ends at the roll after the one at which
//	                               that failed, also if there is room again: so both are kept allocated. The files that it
//	                               removes leave room for that.
type room struct {
	dir string
	log *slog.Logger

	reach atomic.Int64 // how far the database goes; 0: etcd does not run yet
	short atomic.Int64 // bytes that are missing
	// unprepared: etcd has no next file of its log, and will have none.
	unprepared atomic.Bool
	stop       chan struct{}
	done       chan struct{}
}

func (r *room) path(name string) string    { return filepath.Join(r.dir, name) }
func (r *room) walPath(name string) string { return r.path(filepath.Join(dataDir, "member/wal", name)) }
func (r *room) ballast() string            { return r.path("ballast") }

// free is what the disk has left.
func (r *room) free() int64 {
	var st unix.Statfs_t
	for {
		switch err := unix.Statfs(r.dir, &st); err {
		case nil:
			// As it is for whoever is no superuser: what is kept for those is a reserve as well.
			return int64(st.Bavail) * int64(st.Bsize)
		case unix.EINTR:
		default:
			return 0
		}
	}
}

// prepare makes what is set aside ready for a start of etcd. A first one is refused if the disk is full: it would leave a
// part of a directory. Any other is tried, as all that it must write may be there.
func (r *room) prepare() error {
	free := r.free()
	if _, err := os.Stat(r.walPath("")); errors.Is(err, fs.ErrNotExist) {
		if want := 2*wal.SegmentSizeBytes + ballastBytes; free < want {
			return fmt.Errorf("%w: %d bytes are left for %s, and etcd needs %d to start", ErrDiskFull, free, r.dir, want)
		}
		return nil
	}
	first, second := r.walPath("0.tmp"), r.walPath("1.tmp")
	unused := func(name string) bool { st, err := os.Stat(name); return err == nil && st.Size() == 0 }
	// etcd begins with the first, and has removed the one that it had prepared if it was stopped in order.
	if _, err := os.Stat(first); errors.Is(err, fs.ErrNotExist) && unused(second) {
		if err := os.Rename(second, first); err != nil {
			return fmt.Errorf("start etcd: %w", err)
		}
	}
	// It lets go of the rest of the file that it writes to, and allocates it again, which takes more for a moment where blocks
	// are free only some time after they were let go of. A file that a power failure left torn is copied.
	if free < wal.SegmentSizeBytes && unused(second) {
		if err := os.Remove(second); err != nil {
			return fmt.Errorf("start etcd: %w", err)
		}
	}
	if err := syncDir(r.walPath("")); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// keep takes what is missing, and goes on doing so until close. reach says how far the database goes.
func (r *room) keep(reach func() int64) {
	r.reach.Store(reach())
	r.take()
	r.stop, r.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(r.done)
		tick := time.NewTicker(roomEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.reach.Store(reach())
				r.take()
			case <-r.stop:
				return
			}
		}
	}()
}

func (r *room) close() {
	if r.stop != nil {
		close(r.stop)
		<-r.done
	}
}

// piece is one file's part of the room.
type piece struct {
	path  string
	bytes int64 // that are to be allocated, from the beginning on
	make  bool  // ours: made if it is missing
	whole bool  // as long as what is allocated
}

// pieces are what there should be, the most important first.
func (r *room) pieces() []piece {
	var out []piece
	if files, err := filepath.Glob(r.walPath("*.wal")); err == nil && len(files) > 0 {
		// Allocated unless a start found the disk full. If it is sealed meanwhile, the blocks go with it.
		out = append(out, piece{path: files[len(files)-1], bytes: wal.SegmentSizeBytes + segmentRoom})
	}
	for _, name := range []string{"0.tmp", "1.tmp"} {
		out = append(out, piece{path: r.walPath(name), bytes: wal.SegmentSizeBytes + segmentRoom, make: true})
	}
	if reach := r.reach.Load(); reach > 0 {
		end := (reach + databaseRoom + databaseStep - 1) / databaseStep * databaseStep
		out = append(out, piece{path: r.path(filepath.Join(dataDir, "member/snap/db")), bytes: end})
	}
	return append(out, piece{path: r.ballast(), bytes: ballastBytes, make: true, whole: true})
}

// take allocates what is missing and fits. What does not is left for later as a whole: a part of it would take the last
// block that somebody else could use.
func (r *room) take() {
	var missing int64
	for _, p := range r.pieces() {
		n, err := r.takePiece(p)
		if err != nil {
			r.log.Debug("no room set aside for etcd", "file", p.path, "err", err)
		}
		missing += n
	}
	switch short := r.short.Swap(missing); {
	case missing > 0 && short == 0:
		r.log.Warn("the disk has no room to set aside for etcd: the process ends when etcd needs it", "dir", r.dir, "bytes", missing, "free", r.free())
	case missing == 0 && short > 0:
		r.log.Info("room is set aside for etcd again", "dir", r.dir)
	}
}

// takePiece says how many bytes of a piece are not allocated, because of the disk.
func (r *room) takePiece(p piece) (missing int64, err error) {
	flags := os.O_WRONLY
	if p.make {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(p.path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return p.bytes, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	if missing = p.bytes - st.Blocks*512; missing <= 0 {
		return 0, nil
	}
	most, mode := r.free(), uint32(unix.FALLOC_FL_KEEP_SIZE)
	if p.whole {
		most, mode = most-ballastBytes, 0 // what was just given up is not for us
	}
	if missing > most {
		return missing, nil
	}
	for {
		switch err := unix.Fallocate(int(f.Fd()), mode, 0, p.bytes); err {
		case nil, unix.EOPNOTSUPP, unix.ENOSYS:
			return 0, nil
		case unix.EINTR:
		default:
			return missing, err
		}
	}
}

// give gives up a piece of the ballast, if there is no room without that.
func (r *room) give() {
	if r.free() >= ballastPiece {
		return
	}
	f, err := os.OpenFile(r.ballast(), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return
	}
	// Synced: a file system may count as free only what a crash does not bring back.
	if err := errors.Join(f.Truncate(max(0, st.Size-ballastPiece)), f.Sync()); err != nil {
		r.log.Debug("ballast cannot be given up", "err", err)
	}
}

// What etcd says only in its log: that it is about to make a file, and that it could not make one.
const (
	triggering = "triggering snapshot"
	unprepared = "failed to preallocate space when creating a new WAL"
)

// listener hears in etcd's log what the room must know.
type listener struct {
	zapcore.Core
	room *room
}

// Enabled implements zapcore.Core.
func (c listener) Enabled(l zapcore.Level) bool {
	return l == zapcore.InfoLevel || c.Core.Enabled(l)
}

// With implements zapcore.Core.
func (c listener) With(f []zapcore.Field) zapcore.Core { return listener{c.Core.With(f), c.room} }

// Check implements zapcore.Core.
func (c listener) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	switch e.Message {
	case triggering:
		c.room.give()
	case unprepared:
		if !c.room.unprepared.Swap(true) {
			c.room.log.Warn("etcd could not prepare the next file of its log: the process ends when the present one is full, also if there is room by then; start it again", "dir", c.room.dir)
		}
	}
	return c.Core.Check(e, ce)
}

// lastWords is what is said where etcd gives up, which would end the process without a word of ours.
type lastWords struct {
	log  *slog.Logger
	room *room
	exit func(code int)
}

// OnWrite implements zapcore.CheckWriteHook.
func (w lastWords) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	var cause error
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			cause = err
		}
	}
	free := w.room.free()
	// Not every place has kept the error.
	full := free < ballastPiece || errors.Is(cause, syscall.ENOSPC) || cause != nil && strings.Contains(cause.Error(), syscall.ENOSPC.Error())
	attrs := []slog.Attr{slog.String("dir", w.room.dir), slog.String("what", ce.Message), slog.Any("err", cause)}
	message := "etcd cannot go on, and the process ends"
	if full {
		message = "the disk is full: etcd cannot go on, and the process ends. Nothing that was acknowledged is lost; start it again when there is room"
		attrs = append(attrs, slog.Int64("free", free), slog.Int64("wanted", w.room.wanted()))
	}
	w.log.LogAttrs(context.Background(), slog.LevelError, message, attrs...)
	if ce.Level == zapcore.FatalLevel || full {
		w.exit(1)
	}
	panic(ce.Message)
}

// wanted is how many bytes are missing of what is set aside.
func (r *room) wanted() (n int64) {
	for _, p := range r.pieces() {
		var st unix.Stat_t
		if err := unix.Stat(p.path, &st); err == nil {
			n += max(0, p.bytes-st.Blocks*512)
		} else if p.make {
			n += p.bytes
		}
	}
	return n
}
