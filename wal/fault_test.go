package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

// TestFailureEndsTheLog lets each write and each fsync fail once, in turn. From then on nothing is acknowledged, the
// owner is told once, and what was acknowledged before is there after a restart.
func TestFailureEndsTheLog(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpWrite, vfs.OpSync, vfs.OpRename, vfs.OpSyncDir, vfs.OpOpen} {
		for n := 1; ; n += 3 {
			mem := vfs.NewMem()
			fs := vfs.NewFaulty(mem)
			o := testOptions(fs)
			l := mustOpen(t, o)
			p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
			var fatal atomic.Int32
			l.o.Fatal = func(error) { fatal.Add(1) }
			var count atomic.Int32
			fs.Decide(func(x vfs.Op, name string) vfs.Fault {
				if x == op && count.Add(1) == int32(n) {
					return vfs.Fault{Err: syscall.EIO}
				}
				return vfs.Fault{}
			})
			var acked []byte
			var mu sync.Mutex
			failed := 0
			var wg sync.WaitGroup
			tried := 0
			for i := range int64(40) {
				b := mkBatch(i, 1, 2000, i, byte(i))
				wg.Add(1)
				if err := appendAsync(l, p, i, b, 1, i, func(err error) {
					defer wg.Done()
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err != nil:
						failed++
						if !errors.Is(err, ErrFailed) {
							t.Errorf("%s %d: %v", op, n, err)
						}
					case failed > 0:
						t.Errorf("%s %d: acknowledged after a failure", op, n)
					default:
						acked = append(acked, b...)
					}
				}); err != nil {
					wg.Done()
					if !errors.Is(err, ErrFailed) {
						t.Fatal(err)
					}
					break
				}
				tried++
				if i%4 == 0 {
					wg.Wait()
				}
			}
			wg.Wait()
			hit := count.Load() >= int32(n)
			if hit {
				for range 1000 {
					if l.Failed() != nil && fatal.Load() == 1 {
						break
					}
					time.Sleep(time.Millisecond)
				}
				if !errors.Is(l.Failed(), syscall.EIO) || fatal.Load() != 1 {
					t.Fatalf("%s %d: failed with %v, told %d times", op, n, l.Failed(), fatal.Load())
				}
				if err := l.Reserve(context.Background(), ClassClient, 1); !errors.Is(err, ErrFailed) {
					t.Fatalf("%s %d: reserved after the failure: %v", op, n, err)
				}
				if err := wait(func(done func(error)) { l.Trim(p, 0, done) }); !errors.Is(err, ErrFailed) {
					t.Fatalf("%s %d: control record after the failure: %v", op, n, err)
				}
			}
			l.Close()
			fs.Decide(nil)
			for seed := range uint64(3) {
				o.FS = mem.Crash(seed)
				l = mustOpen(t, o)
				_, end := l.Bounds(p)
				got, err := readAll(l, p, 0, end, 1<<20)
				if err != nil || !bytes.HasPrefix(got, acked) || len(got) > tried*2000 {
					t.Fatalf("%s %d: %d bytes after restart, %d acknowledged, %v", op, n, len(got), len(acked), err)
				}
				l.Close()
			}
			if !hit {
				break
			}
		}
	}
}

// TestFailedSyncLies is a file system that counts pages as clean once their fsync has failed, as most do: the process
// that comes next reads them, and no fsync of its own makes them durable. What it acknowledges on top of them must
// survive all the same.
func TestFailedSyncLies(t *testing.T) {
	for _, size := range []int{900, 30_000} {
		for seed := range uint64(4) {
			mem := vfs.NewMem()
			fs := vfs.NewFaulty(mem)
			o := testOptions(fs)
			o.SegmentBytes = 256 << 10
			l := mustOpen(t, o)
			p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
			want := mustAppend(t, l, p, 0, 1, 1000)
			fs.Decide(func(op vfs.Op, name string) vfs.Fault {
				if op != vfs.OpSync {
					return vfs.Fault{}
				}
				mem.Forget(name)
				return vfs.Fault{Err: syscall.EIO}
			})
			lost := mkBatch(1, 1, size, 1, 1)
			if err := wait(func(done func(error)) {
				if err := appendAsync(l, p, 1, lost, 1, 1, done); err != nil {
					done(err)
				}
			}); !errors.Is(err, ErrFailed) {
				t.Fatalf("append whose fsync failed: %v", err)
			}
			l.Close()
			fs.Decide(nil)
			l = mustOpen(t, o)
			if _, end := l.Bounds(p); end == 2 { // not acknowledged: it may be there, or not
				want = append(want, lost...)
			}
			_, end := l.Bounds(p)
			want = append(want, mustAppend(t, l, p, end, 1, 1000)...)
			l.Close()
			o.FS = mem.Crash(seed)
			l = mustOpen(t, o)
			if r := l.Partitions()[0]; r.Suspect || r.End != end+1 {
				t.Fatalf("%d bytes, seed %d: recovered %+v, want the end at %d", size, seed, r, end+1)
			}
			if got, err := readAll(l, p, 0, end+1, 1<<20); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, seed %d: %d bytes read, want %d; %v", size, seed, len(got), len(want), err)
			}
			mustClose(t, l)
		}
	}
}

func TestShortWrites(t *testing.T) {
	mem := vfs.NewMem()
	fs := vfs.NewFaulty(mem)
	o := testOptions(fs)
	o.idle = time.Hour // else how many writes there are depends on the machine
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	var n atomic.Int32
	fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpWrite && strings.HasSuffix(name, segmentSuffix) && n.Add(1)%2 == 0 {
			return vfs.Fault{Short: 1 + int(n.Load())*37%3000}
		}
		return vfs.Fault{}
	})
	var want []byte
	for i := range int64(10) {
		want = append(want, mustAppend(t, l, p, i, 1, 1500)...)
	}
	fs.Decide(nil)
	mustClose(t, l)
	o.FS = mem.Crash(1)
	l = mustOpen(t, o)
	if got, err := readAll(l, p, 0, 10, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
	}
	mustClose(t, l)
}

// TestShortReads lets each read end early once, in turn, while the log is opened and while it is read. That is an error
// and never the end of the log: what a disk does not give now must not be cut off.
func TestShortReads(t *testing.T) {
	mem := vfs.NewMem()
	fs := vfs.NewFaulty(mem)
	o := testOptions(fs)
	o.CacheBytes = 1
	o.IndexBytes = 1 // runs are read from the footers again
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	var want []byte
	const records = 80
	for i := range int64(records) {
		want = append(want, mustAppend(t, l, p, i, 1, 3000)...)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole := func(what string) {
		t.Helper()
		_, end := l.Bounds(p)
		got, err := readAll(l, p, 0, end, 50_000)
		if r := l.Partitions()[0]; err != nil || end != records || r.Suspect || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes of %d, end %d, %v; %+v", what, len(got), len(want), end, err, r)
		}
	}
	refused := 0
	for n := int32(1); ; n++ {
		var count atomic.Int32
		fs.Decide(func(op vfs.Op, name string) vfs.Fault {
			if op == vfs.OpRead && count.Add(1) == n {
				return vfs.Fault{Short: 1 + int(n)*37%2000}
			}
			return vfs.Fault{}
		})
		var err error
		if l, err = Open(o); err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("read %d: %v", n, err)
			}
			refused++
			fs.Decide(nil)
			l = mustOpen(t, o)
		}
		fs.Decide(nil)
		whole(fmt.Sprintf("read %d of the start ended early", n))
		l.Close()
		if count.Load() < n {
			break
		}
	}
	if refused == 0 {
		t.Error("no start was refused")
	}
	l = mustOpen(t, o)
	failed := 0
	for n := int32(1); n < 2*records; n += 3 {
		var count atomic.Int32
		fs.Decide(func(op vfs.Op, name string) vfs.Fault {
			if op == vfs.OpRead && count.Add(1) == n {
				return vfs.Fault{Short: 1 + int(n)*37%2000}
			}
			return vfs.Fault{}
		})
		got, err := readAll(l, p, 0, records, 1)
		fs.Decide(nil)
		switch {
		case err == nil && !bytes.Equal(got, want), err != nil && !errors.Is(err, syscall.EIO):
			t.Fatalf("read %d ended early: %d bytes, %v", n, len(got), err)
		case err != nil:
			failed++
		}
	}
	if failed == 0 {
		t.Error("no read failed")
	}
	whole("afterwards")
	mustClose(t, l)
}

func TestReadFlips(t *testing.T) {
	noLeak(t)
	fs := vfs.NewFaulty(vfs.NewMem())
	o := testOptions(fs)
	o.CacheBytes = 1
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	var want []byte
	for i := range int64(30) {
		want = append(want, mustAppend(t, l, p, i, 1, 2000)...)
	}
	for bit := 1; bit < 16000; bit += 97 {
		fs.Decide(func(op vfs.Op, name string) vfs.Fault {
			if op == vfs.OpRead {
				return vfs.Fault{Flip: bit}
			}
			return vfs.Fault{}
		})
		if r, err := l.Read(p, int64(bit%30), 1, 30); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %d bytes served, %v", bit, r.Bytes, err)
		}
	}
	fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpRead {
			return vfs.Fault{Err: syscall.EIO}
		}
		return vfs.Fault{}
	})
	if _, err := l.Read(p, 3, 1, 30); !errors.Is(err, syscall.EIO) {
		t.Fatalf("read error: %v", err)
	}
	fs.Decide(nil)
	if got, err := readAll(l, p, 0, 30, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	if l.Stats().CorruptReads == 0 {
		t.Error("not counted")
	}
	mustClose(t, l)
}

// fill appends until the class is refused, also when the keeper has come round, and returns the new end.
func fill(t *testing.T, l *Log, p PartitionID, end int64, class Class) int64 {
	t.Helper()
	refused := 0
	for range 10000 {
		b := mkBatch(end, 1, 3000, end, byte(end))
		if err := l.Reserve(context.Background(), class, int64(len(b))); err != nil {
			if !errors.Is(err, ErrNoSpace) {
				t.Fatal(err)
			}
			if refused++; refused > 50 {
				return end
			}
			time.Sleep(time.Millisecond)
			continue
		}
		refused = 0
		if err := wait(func(done func(error)) {
			l.Append(&Append{Partition: p, BaseOffset: end, LastOffset: end, Run: b, Class: class, Done: done})
		}); err != nil {
			t.Fatal(err)
		}
		end++
	}
	t.Fatal("never refused")
	return 0
}

// TestBound fills the log: clients are refused first, then internal topics, then replication; control records go
// on; what is told to be reclaimable is given back, and everything goes on by itself.
func TestBound(t *testing.T) {
	var mu sync.Mutex
	var full []bool
	o := testOptions(vfs.NewMem())
	// Blocks that claim would thin out a segment on a slow machine, so that what is in it could be carried.
	o.idle = time.Hour
	o.MaxBytes = 12 * o.SegmentBytes
	o.Events.Full = func(f bool) { mu.Lock(); full = append(full, f); mu.Unlock() }
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	client := fill(t, l, p, 0, ClassClient)
	if s := l.Stats(); !s.Full || !s.Short() {
		t.Errorf("not full: %+v", s)
	}
	internal := fill(t, l, p, client, ClassInternal)
	replication := fill(t, l, p, internal, ClassReplication)
	if internal <= client || replication <= internal {
		t.Fatalf("refused at %d, %d, %d", client, internal, replication)
	}
	for range 8 {
		if err := wait(func(done func(error)) { l.HighWatermark(p, 1); l.Epoch(p, 1, replication, done) }); err != nil {
			t.Fatal(err)
		}
	}
	if start, _ := l.Bounds(p); start != 0 {
		t.Fatalf("reclaimed without being told: start %d", start)
	}
	if _, err := readAll(l, p, 0, replication, 1<<20); err != nil {
		t.Fatal(err)
	}
	if l.Stats().Bytes > o.MaxBytes {
		t.Fatalf("%d bytes used, bound %d", l.Stats().Bytes, o.MaxBytes)
	}
	bound := replication / 2
	l.SetReclaimable(p, bound)
	end := replication
	for range 10000 {
		if b := mkBatch(end, 1, 100, 0, 0); l.Reserve(context.Background(), ClassClient, int64(len(b))) == nil {
			l.Unreserve(int64(len(b)))
			break
		}
		time.Sleep(time.Millisecond)
	}
	end = fill(t, l, p, end, ClassClient)
	start, _ := l.Bounds(p)
	if end == replication || start == 0 || start > bound {
		t.Fatalf("after reclaim: [%d, %d), bound %d", start, end, bound)
	}
	if _, err := l.Read(p, start-1, 1, end); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("read of what was given back: %v", err)
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	r := l.Partitions()[0]
	if r.Start != start || r.End != end || r.Suspect {
		t.Fatalf("recovered %+v, want [%d, %d)", r, start, end)
	}
	if _, err := readAll(l, p, start, end, 1<<20); err != nil {
		t.Fatal(err)
	}
	// Trimmed data goes without need.
	if err := wait(func(done func(error)) { l.Trim(p, end, done) }); err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		if l.Stats().Segments <= 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := l.Stats().Segments; n > 2 {
		t.Errorf("%d segments in use for nothing", n)
	}
	mustClose(t, l)
	mu.Lock()
	defer mu.Unlock()
	if len(full) < 2 || !full[0] || full[1] {
		t.Errorf("told to be full: %v", full)
	}
}

// TestShort: what may go is room, though it is kept for readers as long as nobody needs its room.
func TestShort(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.MaxBytes = 12 * o.SegmentBytes
	l := mustOpen(t, o)
	defer mustClose(t, l)
	p, q := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{1}, 1, 0, nil, nil, nil)
	mustAppend(t, l, q, 0, 1, 100) // always in the way, and small enough to be carried
	end := fill(t, l, p, 0, ClassClient)
	eventually := func(what string, ok func(s Stats) bool) {
		t.Helper()
		var s Stats
		for range 5000 {
			if s = l.Stats(); ok(s) {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Errorf("%s: %+v", what, s)
	}
	eventually("full", func(s Stats) bool { return s.Full && s.Short() && s.PinnedBytes == int64(s.Segments)*o.SegmentBytes })
	half := end / 2
	l.SetReclaimable(p, half)
	eventually("half of it may go", func(s Stats) bool {
		return !s.Full && !s.Short() && s.PinnedBytes < s.MaxBytes/4*3 && s.PinnedBytes > s.MaxBytes/8
	})
	l.SetReclaimable(p, end)
	eventually("all of it may go", func(s Stats) bool {
		return !s.Short() && s.PinnedBytes <= 2*o.SegmentBytes && s.Bytes > s.MaxBytes/4*3 && s.Segments > 4
	})
	// And it fills up again.
	eventually("full again", func(s Stats) bool {
		if !s.Full {
			end = fill(t, l, p, end, ClassClient) // refused also while the keeper has not come round
		}
		return s.Full && s.Short()
	})
}

// lazy is a file system that cannot set space aside: a full disk is met by a write in the middle of a file.
type lazy struct{ vfs.FS }

type lazyFile struct{ vfs.File }

func (lazyFile) Allocate(int64) error { return nil }

func (f lazy) Create(name string) (vfs.File, error) {
	file, err := f.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return lazyFile{file}, nil
}

// TestDiskFull is a disk that is full while the log's own bound is far, at every size that matters, so that it fills
// at a roll as well as between two: produce is refused, reads and control records go on, so does a restart on the full
// disk, and it passes when there is space again.
func TestDiskFull(t *testing.T) {
	for _, allocates := range []bool{true, false} {
		for thirds := range int64(15) {
			mem := vfs.NewMem()
			o := testOptions(mem)
			if !allocates {
				o.FS = lazy{mem}
			}
			limit := 4*o.SegmentBytes + thirds*o.SegmentBytes/3
			what := fmt.Sprintf("disk of %d bytes, allocating %v", limit, allocates)
			mem.SetLimit(limit)
			l := mustOpen(t, o)
			p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
			var end int64
			for range 3 {
				// Reserve waits while the log hopes for another file.
				end = fill(t, l, p, end, ClassClient)
				if l.Failed() != nil {
					t.Fatalf("%s: %v", what, l.Failed())
				}
				if got, err := readAll(l, p, 0, end, 1<<20); err != nil || len(got) != int(end)*3000 {
					t.Fatalf("%s: %d bytes of %d records, %v", what, len(got), end, err)
				}
				if err := wait(func(done func(error)) { l.Epoch(p, 1, end, done) }); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				mustClose(t, l)
				l = mustOpen(t, o)
				if _, e := l.Bounds(p); e != end {
					t.Fatalf("%s: ends at %d after a restart, want %d", what, e, end)
				}
			}
			mem.SetLimit(0)
			for range 5000 {
				if l.Reserve(context.Background(), ClassClient, 10) == nil {
					l.Unreserve(10)
					break
				}
				time.Sleep(time.Millisecond)
			}
			for range 20 {
				mustAppend(t, l, p, end, 1, 3000)
				end++
			}
			mustClose(t, l)
		}
	}
}

// TestFullDiskPassesUnderLoad has producers who come back more often than the log looks whether the disk is still full:
// each of them makes the log look for segments to give back, and that must not put off the other.
func TestFullDiskPassesUnderLoad(t *testing.T) {
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.retry = 300 * time.Millisecond
	mem.SetLimit(6 * o.SegmentBytes)
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	end := fill(t, l, p, 0, ClassClient)
	if st := l.Stats(); !st.DiskFull {
		t.Fatalf("not full: %+v", st)
	}
	mem.SetLimit(0)
	for begin := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		err := l.Reserve(context.Background(), ClassClient, 3000)
		if err == nil {
			l.Unreserve(3000)
			break
		}
		if !errors.Is(err, ErrNoSpace) || time.Since(begin) > 30*time.Second {
			t.Fatalf("with room on the disk: %v; %+v", err, l.Stats())
		}
	}
	mustAppend(t, l, p, end, 1, 3000)
	mustClose(t, l)
}

// TestTooManyOpenFiles lets no file be opened for a while: to prepare one, to begin a segment, or both. Clients are refused,
// what was taken waits, the log says why once, and goes on by itself. It is closed meanwhile, or lives to see the end of it.
func TestTooManyOpenFiles(t *testing.T) {
	for name, ops := range map[string][]vfs.Op{
		"prepare": {vfs.OpCreate}, "begin": {vfs.OpOpen}, "both": {vfs.OpCreate, vfs.OpOpen},
	} {
		for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
			for _, closed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v/closed=%v", name, errno, closed), func(t *testing.T) {
					mem := vfs.NewMem()
					fs := vfs.NewFaulty(mem)
					var log syncBuffer
					o := testOptions(fs)
					o.Logger = slog.New(slog.NewTextHandler(&log, nil))
					l := mustOpen(t, o)
					p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
					fs.Decide(func(op vfs.Op, _ string) vfs.Fault {
						if slices.Contains(ops, op) {
							return vfs.Fault{Err: &os.PathError{Op: "open", Err: errno}}
						}
						return vfs.Fault{}
					})
					var want []byte
					var end int64
					var wg sync.WaitGroup
					var failed atomic.Int32
					acked := make([]atomic.Bool, 10_000)
					add := func() error {
						at := end
						b := mkBatch(at, 1, 3000, at, byte(at))
						wg.Add(1)
						err := appendAsync(l, p, at, b, 1, at, func(err error) {
							defer wg.Done()
							acked[at].Store(err == nil)
							if err != nil {
								failed.Add(1)
							}
						})
						if err != nil {
							wg.Done()
							return err
						}
						want = append(want, b...)
						end++
						return nil
					}
					for {
						// The log tries again all the time, and has hope meanwhile.
						if err := add(); errors.Is(err, ErrNoSpace) && l.Stats().NoFiles {
							break
						} else if err != nil && !errors.Is(err, ErrNoSpace) {
							t.Fatal(err)
						}
					}
					if err := l.Failed(); err != nil {
						t.Fatal(err)
					}
					if closed {
						err := l.Close()
						wg.Wait()
						// What waits for a segment's file ends with the log; what waits for a prepared one need not.
						if (name == "begin" || err != nil && !errors.Is(err, ErrNoSpace)) && !errors.Is(err, errno) {
							t.Fatalf("closed with %v", err)
						}
					} else {
						fs.Decide(nil)
						for {
							if err := add(); err == nil {
								break
							} else if !errors.Is(err, ErrNoSpace) {
								t.Fatal(err)
							}
							time.Sleep(time.Millisecond)
						}
						wg.Wait()
						if n := failed.Load(); n > 0 || l.Failed() != nil {
							t.Fatalf("%d of %d appends failed; %v", n, end, l.Failed())
						}
						for l.Stats().Full {
							time.Sleep(time.Millisecond)
						}
						mustClose(t, l)
					}
					if n := strings.Count(log.String(), "too many open files: "); n == 0 || n > len(ops) || !strings.Contains(log.String(), "ulimit -n, LimitNOFILE=") {
						t.Errorf("told %d times:\n%s", n, log.String())
					}
					o.FS = mem.Crash(1)
					l = mustOpen(t, o)
					defer mustClose(t, l)
					_, to := l.Bounds(p)
					for i := range end {
						if acked[i].Load() && i >= to {
							t.Fatalf("%d was acknowledged, the log ends at %d", i, to)
						}
					}
					if got, err := readAll(l, p, 0, to, 1<<20); err != nil || !bytes.Equal(got, want[:to*3000]) {
						t.Fatalf("%d bytes of %d records, %v", len(got), to, err)
					}
				})
			}
		}
	}
}

// A start is not held up by what it may not open, but fails, and changes nothing.
func TestTooManyOpenFilesAtStart(t *testing.T) {
	mem := vfs.NewMem()
	fs := vfs.NewFaulty(mem)
	fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpOpen && strings.HasSuffix(name, segmentSuffix) {
			return vfs.Fault{Err: syscall.EMFILE}
		}
		return vfs.Fault{}
	})
	o := testOptions(fs)
	if _, err := Open(o); !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("opened with %v", err)
	}
	fs.Decide(nil)
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	mustAppend(t, l, p, 0, 1, 1000)
	mustClose(t, l)
}

// gate is a file system whose fsyncs can be held up, so that what is queued meanwhile comes into one block.
func gate(fs vfs.FS) (faulty *vfs.Faulty, hold func() (release func())) {
	faulty = vfs.NewFaulty(fs)
	return faulty, func() func() {
		open, held := make(chan struct{}), make(chan struct{})
		var once sync.Once
		faulty.Decide(func(op vfs.Op, name string) vfs.Fault {
			if op == vfs.OpSync && strings.HasSuffix(name, segmentSuffix) {
				once.Do(func() { close(held) })
				<-open
			}
			return vfs.Fault{}
		})
		return func() { <-held; faulty.Decide(nil); close(open) }
	}
}

// TestManyRecordsInOneBlock queues more behind one fsync than a reader accepts in a block.
func TestManyRecordsInOneBlock(t *testing.T) {
	mem := vfs.NewMem()
	fs, hold := gate(mem)
	o := testOptions(fs)
	o.SegmentBytes, o.MaxBytes = 32<<20, 8*32<<20
	l := mustOpen(t, o)
	ids := make([]PartitionID, 2*maxBlockRecords+maxBlockRecords/4)
	for i := range ids {
		ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
	}
	mustAppend(t, l, ids[0], 0, 1, 100)
	release := hold()
	done := make(chan error, 1)
	if err := appendAsync(l, ids[0], 1, mkBatch(1, 1, 100, 1, 1), 1, 1, func(err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		l.HighWatermark(id, 7)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	o.FS = mem.Crash(1)
	l = mustOpen(t, o)
	if n := len(l.Partitions()); n != len(ids) {
		t.Fatalf("%d partitions, want %d", n, len(ids))
	}
	for _, r := range l.Partitions() {
		p := l.part(r.ID)
		p.mu.Lock()
		hw := p.appliedHW
		p.mu.Unlock()
		if r.Suspect || hw != 7 {
			t.Fatalf("%+v, high watermark %d in the log", r, hw)
		}
	}
	mustClose(t, l)
}

// TestSmallAppendsInOneBlock queues as many tiny appends, none of which continues the one before, as the bytes of a
// block allow: descriptors and footer entries outweigh them, and all must fit into a segment.
func TestSmallAppendsInOneBlock(t *testing.T) {
	mem := vfs.NewMem()
	fs, hold := gate(mem)
	o := testOptions(fs)
	l := mustOpen(t, o)
	const partitions, each = 90, 4 // more blocks than one, and less than may be on its way
	ids := make([]PartitionID, partitions)
	for i := range ids {
		ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
	}
	mustAppend(t, l, ids[0], 0, 1, 100)
	release := hold()
	var wg sync.WaitGroup
	put := func(p PartitionID, at int64) {
		wg.Add(1)
		b := mkBatch(at, 1, 61, at, byte(at))
		if err := l.Reserve(context.Background(), ClassClient, int64(len(b))); err != nil {
			t.Fatal(err)
		}
		l.Append(&Append{Partition: p, LeaderEpoch: int32(at), BaseOffset: at, LastOffset: at, Run: b, Done: func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		}})
	}
	put(ids[0], 1)
	for at := range int64(each) {
		for _, id := range ids[1:] {
			put(id, at)
		}
	}
	release()
	wg.Wait()
	mustClose(t, l)
	o.FS = mem.Crash(1)
	l = mustOpen(t, o)
	for _, r := range l.Partitions()[1:] {
		if r.Suspect || r.End != each {
			t.Fatalf("%+v", r)
		}
	}
	mustClose(t, l)
}

// TestCarry pins segments with a partition that gets a little data now and then and is never reclaimable, beside one
// that is: the little is carried along, byte for byte, and nothing is pinned.
func TestCarry(t *testing.T) {
	noLeak(t)
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.MaxBytes = 10 * o.SegmentBytes
	o.CacheBytes = 1
	o.IndexBytes = 4000 // runs are read from footers again and again
	l := mustOpen(t, o)
	busy := l.Create([16]byte{1}, 0, 0, nil, []byte("busy"), nil)
	slow := l.Create([16]byte{2}, 0, 0, nil, []byte("slow"), nil)
	var want []byte
	var end, slowEnd int64
	for range 20 {
		for l.Reserve(context.Background(), ClassClient, 10000) != nil {
			time.Sleep(100 * time.Microsecond)
		}
		l.Unreserve(10000)
		want = append(want, mustAppend(t, l, slow, slowEnd, 2, 700)...)
		slowEnd += 2
		for range 40 {
			l.SetReclaimable(busy, end)
			for {
				b := mkBatch(end, 1, 3500, end, byte(end))
				err := l.Reserve(context.Background(), ClassClient, int64(len(b)))
				if errors.Is(err, ErrNoSpace) {
					time.Sleep(100 * time.Microsecond)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				buf := slab.Get(len(b))
				copy(buf.Bytes(), b)
				if err := wait(func(done func(error)) {
					l.Append(&Append{Partition: busy, BaseOffset: end, LastOffset: end, MaxTimestamp: end, Run: buf.Bytes(), Buf: buf, Done: done})
				}); err != nil {
					t.Fatal(err)
				}
				buf.Release()
				break
			}
			end++
		}
	}
	st := l.Stats()
	if st.Reclaimed < 10 || st.CarriedBytes == 0 || st.CorruptReads != 0 {
		t.Fatalf("stats %+v", st)
	}
	check := func(l *Log) {
		t.Helper()
		for _, step := range []int{1, 5000} {
			got, err := readAll(l, slow, 0, slowEnd, step)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("carried partition: %d bytes, want %d; %v", len(got), len(want), err)
			}
		}
		if n := l.BytesBetween(slow, 0, slowEnd); n != int64(len(want)) {
			t.Errorf("BytesBetween %d, want %d", n, len(want))
		}
		start, e := l.Bounds(busy)
		if e != end || start == 0 {
			t.Fatalf("busy partition: [%d, %d)", start, e)
		}
		for {
			_, err := readAll(l, busy, start, end, 100000)
			if err == nil {
				break
			}
			moved, _ := l.Bounds(busy)
			if moved == start {
				t.Fatal(err)
			}
			start = moved // given back while it was read
		}
		if base, found, err := l.Find(busy, end-5, start, end); err != nil || !found || base != end-5 {
			t.Fatalf("Find = %d, %v, %v; want %d", base, found, err, end-5)
		}
	}
	check(l)
	mustClose(t, l)
	o.FS = mem.Crash(5)
	l = mustOpen(t, o)
	for _, r := range l.Partitions() {
		if r.Suspect || string(r.Snapshot) != map[PartitionID]string{busy: "busy", slow: "slow"}[r.ID] {
			t.Fatalf("recovered %+v", r)
		}
	}
	check(l)
	mustClose(t, l)
}

// TestFrozenPartition is a partition that fills the log with what cannot be uploaded: past its share it is refused,
// alone.
func TestFrozenPartition(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.MaxBytes = 24 * o.SegmentBytes
	l := mustOpen(t, o)
	busy, frozen := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{2}, 0, 0, nil, nil, nil)
	l.SetStuck(frozen, true)
	var end, frozenEnd int64
	refused := false
	for i := 0; i < 3000 && !refused; i++ {
		l.SetReclaimable(busy, end)
		if l.Reserve(context.Background(), ClassClient, 12000) == nil {
			l.Unreserve(12000)
			mustAppend(t, l, busy, end, 1, 3000)
			end++
			if i%8 == 0 {
				mustAppend(t, l, frozen, frozenEnd, 1, 3000)
				frozenEnd++
			}
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond)
		}
		refused = errors.Is(l.Admit(frozen), ErrPartitionFull)
	}
	if !refused || l.Admit(busy) != nil {
		t.Fatalf("frozen partition refused: %v, the other: %v; %+v", refused, l.Admit(busy), l.Stats())
	}
	l.SetReclaimable(frozen, frozenEnd)
	if err := wait(func(done func(error)) { l.Trim(frozen, frozenEnd, done) }); err != nil {
		t.Fatal(err)
	}
	if err := l.Admit(frozen); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
}

// pass appends to a partition that is reclaimable at once, and fails if there is no room for it for long. It returns the new end.
func pass(t *testing.T, l *Log, p PartitionID, end, until int64) int64 {
	t.Helper()
	for waited := 0; end < until; {
		l.SetReclaimable(p, end)
		b := mkBatch(end, 1, 3000, 1000+end, byte(end))
		if err := l.Reserve(context.Background(), ClassClient, int64(len(b))); err != nil {
			if waited++; waited > 5000 {
				t.Fatalf("refused at %d of %d: %v; %+v", end, until, err, l.Stats())
			}
			time.Sleep(time.Millisecond)
			continue
		}
		if err := wait(func(done func(error)) {
			l.Append(&Append{Partition: p, BaseOffset: end, LastOffset: end, MaxTimestamp: 1000 + end, Run: b, Done: done})
		}); err != nil {
			t.Fatal(err)
		}
		end, waited = end+1, 0
	}
	return end
}

// TestFrozenBurst: a partition that cannot be uploaded has filled segments in one stretch. Those beside it go on, round the log many
// times, and nothing of it is lost.
func TestFrozenBurst(t *testing.T) {
	for name, part := range map[string]int64{"little": 16, "some": 6, "much": 3} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			mem := vfs.NewMem()
			o := testOptions(mem)
			o.MaxBytes = 24 * o.SegmentBytes
			l := mustOpen(t, o)
			busy, frozen := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{2}, 0, 0, nil, nil, nil)
			var want []byte
			var n int64
			for size := o.MaxBytes / part; int64(len(want)) < size; n++ {
				want = append(want, mustAppend(t, l, frozen, n, 1, 3000)...)
			}
			end := pass(t, l, busy, 0, 3*o.MaxBytes/3000)
			check := func() {
				t.Helper()
				if got, err := readAll(l, frozen, 0, n, 1<<20); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
				}
			}
			check()
			mustClose(t, l)
			o.FS = mem.Crash(7)
			l = mustOpen(t, o)
			check()
			pass(t, l, busy, end, end+o.MaxBytes/3000)
			check()
			mustClose(t, l)
		})
	}
}

// TestStuckShare: partitions of which the owner says that they cannot be uploaded are held to a share before the log is at its bound; all of
// them together leave most of it to the others.
func TestStuckShare(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.MaxBytes = 48 * o.SegmentBytes
	l := mustOpen(t, o)
	defer func() { mustClose(t, l) }()
	busy := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	const partitions = 12
	var ids [partitions]PartitionID
	var ends [partitions]int64
	for i := range ids {
		ids[i] = l.Create([16]byte{2}, int32(i), 0, nil, nil, nil)
		l.SetStuck(ids[i], true)
	}
	took := func() (bytes int64) {
		for i, id := range ids {
			for l.Admit(id) == nil {
				l.SetStuck(id, true) // as it is told again and again
				bytes += int64(len(mustAppend(t, l, id, ends[i], 1, 3000)))
				ends[i]++
				if bytes > o.MaxBytes/2 {
					t.Fatalf("never refused: %+v", l.Stats())
				}
			}
		}
		return bytes
	}
	if n := took(); n < o.MaxBytes/8 || n > o.MaxBytes/4+partitions*3500 {
		t.Fatalf("stuck partitions took %d of %d bytes", n, o.MaxBytes)
	}
	if err := l.Admit(ids[0]); !errors.Is(err, ErrPartitionFull) || l.Admit(busy) != nil {
		t.Fatalf("a stuck partition: %v, another one: %v", err, l.Admit(busy))
	}
	end := pass(t, l, busy, 0, 3*o.MaxBytes/3000)
	if l.Admit(ids[1]) == nil {
		t.Error("admitted again, though nothing has changed")
	}
	// What is uploaded all the same, or deleted, is room again; and so is all of it for one that is not stuck any more.
	l.SetReclaimable(ids[1], ends[1])
	if err := wait(func(done func(error)) { l.Trim(ids[2], ends[2], done) }); err != nil {
		t.Fatal(err)
	}
	l.SetStuck(ids[3], false)
	for i := 1; i <= 3; i++ {
		for range 1000 {
			if l.Admit(ids[i]) == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := l.Admit(ids[i]); err != nil {
			t.Errorf("partition %d: %v", i, err)
		}
	}
	for _, id := range ids {
		l.Drop(id, nil)
	}
	pass(t, l, busy, end, end+100)
	if n := l.stuck.Load(); n != 0 {
		t.Errorf("%d partitions counted as stuck, and there are none", n)
	}
}

// flip damages what is in one place of a log that is closed, in the middle of it, and returns what is there then.
func flip(t *testing.T, mem *vfs.Mem, what []byte) (damaged []byte) {
	t.Helper()
	for generation := range uint64(8) {
		name := "wal/" + segmentName(generation)
		b := bytes.Clone(mem.Bytes(name))
		if at := bytes.Index(b, what); at >= 0 {
			if damaged != nil {
				t.Fatal("it is in two places")
			}
			b[at+len(what)/2] ^= 4
			mem.Put(name, b)
			damaged = bytes.Clone(b[at : at+len(what)])
		}
	}
	if damaged == nil {
		t.Fatal("it is not in the log")
	}
	return damaged
}

// TestDamagedIsCarried: a run that fails its checksum, in a segment that has to go, keeps nobody else from going on. It stays what it was: an
// error for who reads it, and there to be looked into.
func TestDamagedIsCarried(t *testing.T) {
	noLeak(t)
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.MaxBytes = 16 * o.SegmentBytes
	l := mustOpen(t, o)
	busy, hurt := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{2}, 0, 0, nil, nil, nil)
	const records, bad = 40, 17
	var want [records][]byte
	for i := range int64(records) {
		ts := 1000 + i
		switch i {
		case records - 1:
			ts = damagedTS // a client may send any
		case records - 2:
			ts = math.MinInt64
		}
		want[i] = mkBatch(i, 1, 2000, ts, byte(i))
		if err := wait(func(done func(error)) {
			if err := appendAsync(l, hurt, i, want[i], 1, ts, done); err != nil {
				done(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	end := pass(t, l, busy, 0, 40)
	mustClose(t, l)
	want[bad] = flip(t, mem, want[bad])
	l = mustOpen(t, o)
	check := func() {
		t.Helper()
		for i := range int64(records) {
			got, err := readAll(l, hurt, i, i+1, 1)
			switch {
			case i == bad && (!errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "offsets [17, 18)")):
				t.Fatalf("the damaged record: %d bytes, %v", len(got), err)
			case i != bad && (err != nil || !bytes.Equal(got, want[i])):
				t.Fatalf("record %d: %d bytes, %v", i, len(got), err)
			}
		}
		// Where the answer may be in what is damaged, there is none.
		if at, _, err := l.Find(hurt, 1000+bad+1, 0, records); !errors.Is(err, ErrCorrupt) && at != bad+1 {
			t.Fatalf("a lookup by a time after the damaged record's: %d, %v", at, err)
		}
		if at, _, err := l.Find(hurt, 1000+bad, 0, records); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("a lookup by the time of the damaged record: %d, %v", at, err)
		}
	}
	check()
	reclaimed := l.Stats().Reclaimed
	end = pass(t, l, busy, end, end+2*o.MaxBytes/3000)
	if st := l.Stats(); st.Reclaimed < reclaimed+16 || st.CorruptReads == 0 {
		t.Fatalf("%+v", st)
	}
	check()
	kept := func() (n int) {
		for generation := range uint64(100) {
			n += bytes.Count(mem.Bytes("wal/"+segmentName(generation)), want[bad])
		}
		return n
	}
	if kept() == 0 {
		t.Error("what was found of the damaged record is not there any more")
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	for _, r := range l.Partitions() {
		if r.Suspect || r.ID == hurt && (r.Start != 0 || r.End != records) {
			t.Fatalf("recovered %+v", r)
		}
	}
	check()
	pass(t, l, busy, end, end+2*o.MaxBytes/3000) // carried once more
	check()
	if err := wait(func(done func(error)) { l.Trim(hurt, bad+1, done) }); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(l, hurt, bad+1, records, 1<<20); err != nil || !bytes.Equal(got, bytes.Join(want[bad+1:], nil)) {
		t.Fatal(err)
	}
	mustClose(t, l)
}

// TestDamagedSnapshotIsDropped: a producer snapshot that fails its checksum when its segment has to go keeps nobody from going on, and the owner is
// asked for another.
func TestDamagedSnapshotIsDropped(t *testing.T) {
	noLeak(t)
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.MaxBytes = 16 * o.SegmentBytes
	l := mustOpen(t, o)
	busy, hurt := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{2}, 0, 0, nil, nil, nil)
	want := mustAppend(t, l, hurt, 0, 1, 2000)
	snapshot := bytes.Repeat([]byte("producer state "), 10)
	if err := wait(func(done func(error)) { l.Snapshot(hurt, 1, snapshot, done) }); err != nil {
		t.Fatal(err)
	}
	end := pass(t, l, busy, 0, 40)
	mustClose(t, l)
	flip(t, mem, snapshot)
	var asked atomic.Int64
	o.Checkpoint = func() { asked.Add(1) }
	l = mustOpen(t, o)
	end = pass(t, l, busy, end, end+2*o.MaxBytes/3000)
	if st := l.Stats(); st.Reclaimed < 16 || asked.Load() == 0 {
		t.Fatalf("asked for snapshots %d times; %+v", asked.Load(), st)
	}
	if got, offset, err := l.ProducerSnapshot(hurt); err != nil || len(got) != 0 {
		t.Fatalf("producer snapshot %q at %d, %v", got, offset, err)
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	for _, r := range l.Partitions() {
		if r.Suspect || len(r.Snapshot) != 0 {
			t.Fatalf("recovered %+v", r)
		}
	}
	if got, err := readAll(l, hurt, 0, 1, 1); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	if err := wait(func(done func(error)) { l.Snapshot(hurt, 1, []byte("new"), done) }); err != nil {
		t.Fatal(err)
	}
	pass(t, l, busy, end, end+o.MaxBytes/3000)
	if got, offset, err := l.ProducerSnapshot(hurt); err != nil || string(got) != "new" || offset != 1 {
		t.Fatalf("producer snapshot %q at %d, %v", got, offset, err)
	}
	mustClose(t, l)
}

// A read that went wrong once is no damage: what it was of is carried as any other.
func TestReadFlipsWhileCarrying(t *testing.T) {
	noLeak(t)
	fs := vfs.NewFaulty(vfs.NewMem())
	o := testOptions(fs)
	o.MaxBytes, o.CacheBytes = 16*o.SegmentBytes, 1
	l := mustOpen(t, o)
	busy, slow := l.Create([16]byte{1}, 0, 0, nil, nil, nil), l.Create([16]byte{2}, 0, 0, nil, nil, nil)
	var want []byte
	for i := range int64(10) {
		want = append(want, mustAppend(t, l, slow, i, 1, 2000)...)
	}
	var reads atomic.Int64
	fs.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpRead && reads.Add(1)%2 == 1 {
			return vfs.Fault{Flip: 100}
		}
		return vfs.Fault{}
	})
	pass(t, l, busy, 0, 2*o.MaxBytes/3000)
	fs.Decide(nil)
	if st := l.Stats(); st.CarriedBytes == 0 || st.CorruptReads == 0 {
		t.Fatalf("%+v", st)
	}
	if got, err := readAll(l, slow, 0, 10, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	mustClose(t, l)
}

// TestCheckpointCallback says when the owner is asked for snapshots, and that they survive the segments they were
// written in.
func TestCheckpointCallback(t *testing.T) {
	o := testOptions(vfs.NewMem())
	var l *Log
	var p PartitionID
	var mu sync.Mutex
	asked := 0
	ready := make(chan struct{})
	o.Checkpoint = func() {
		<-ready
		mu.Lock()
		asked++
		n := asked
		mu.Unlock()
		_, end := l.Bounds(p)
		l.Snapshot(p, end, []byte(fmt.Sprintf("snapshot %d at %d", n, end)), nil)
	}
	l = mustOpen(t, o)
	p = l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	close(ready)
	for i := range int64(60) {
		mustAppend(t, l, p, i, 1, 3000)
	}
	time.Sleep(20 * time.Millisecond)
	if err := wait(func(done func(error)) { l.Epoch(p, 1, 60, done) }); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	n := asked
	mu.Unlock()
	mustClose(t, l)
	if n < 2 {
		t.Fatalf("asked %d times", n)
	}
	l = mustOpen(t, o)
	r := l.Partitions()[0]
	if !strings.HasPrefix(string(r.Snapshot), fmt.Sprintf("snapshot %d at ", n)) {
		t.Fatalf("snapshot %q, %d were asked for", r.Snapshot, n)
	}
	l.Close()
}

// TestControlStateBound creates partitions until the log asks to stop: however the last segments fall, it can still
// roll and be opened, and the largest append that is admitted fits beside the control state.
func TestControlStateBound(t *testing.T) {
	mem := vfs.NewMem()
	o := testOptions(mem)
	l := mustOpen(t, o)
	lin := lineage.Lineage{{Epoch: 1, Start: 0}, {Epoch: 2, Start: 5}}
	var ids []PartitionID
	for l.AdmitPartition(lin) == nil {
		var id PartitionID
		if err := wait(func(done func(error)) { id = l.Create([16]byte{1}, int32(len(ids)), 10, lin, nil, done) }); err != nil {
			t.Fatal(err)
		}
		if ids = append(ids, id); len(ids) > 1000 {
			t.Fatal("never refused")
		}
	}
	if err := l.AdmitPartition(lin); !errors.Is(err, ErrNoSpace) || len(ids) < 100 {
		t.Fatalf("refused after %d: %v", len(ids), err)
	}
	for life := range 3 {
		for i := range int64(4) {
			n := l.largest()
			if err := l.Reserve(context.Background(), ClassClient, n+1); !errors.Is(err, ErrTooLarge) {
				t.Fatalf("reserved %d bytes: %v", n+1, err)
			}
			mustAppend(t, l, ids[life], 10+i, 1, int(n))
		}
		mustClose(t, l)
		mem = mem.Crash(uint64(life))
		o.FS = mem
		l = mustOpen(t, o)
		if n := len(l.Partitions()); n != len(ids) {
			t.Fatalf("%d partitions, want %d", n, len(ids))
		}
	}
	if err := l.AdmitPartition(lin); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("after recovery: %v", err)
	}
	for _, id := range ids[3:] {
		l.Drop(id, nil)
	}
	if err := wait(func(done func(error)) { l.Epoch(ids[0], 3, 14, done) }); err != nil {
		t.Fatal(err)
	}
	if err := l.AdmitPartition(lin); err != nil {
		t.Fatalf("after most were dropped: %v", err)
	}
	mustClose(t, l)
}

// exhaust fills a log with what is needed, and then with control records until they have to wait, too. It returns its partitions
// and the offset of what was refused.
func exhaust(t *testing.T, l *Log) (ids []PartitionID, end int64) {
	t.Helper()
	for i := range int32(40) {
		ids = append(ids, l.Create([16]byte{1}, i, 0, nil, nil, nil))
	}
	round := func() error {
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, id := range ids {
			b := mkBatch(end, 1, 1300, end, byte(end)) // all that is written is needed: nothing would be gained by copying it
			if err := l.Reserve(context.Background(), ClassReplication, int64(len(b))); err != nil {
				return err // some partitions are one record ahead: the next life of the log does not care
			}
			wg.Add(1)
			l.Append(&Append{Partition: id, BaseOffset: end, LastOffset: end, Run: b, Done: func(err error) {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
			}})
		}
		end++
		return nil
	}
	for round() == nil {
	}
	for n := 0; l.Stats().FreeSegments > 0 || n < 40; n++ {
		l.Epoch(ids[n%len(ids)], int32(n), end, nil)
		time.Sleep(200 * time.Microsecond)
		if n == 10_000 {
			t.Fatalf("never without a file: %+v", l.Stats())
		}
	}
	return ids, end
}

// TestIndexOverBudgetAtTheBound uses up even the files that are kept for control records, with an index over its
// budget, which asks to seal segments early: giving a segment back must not wait for the file that it is to bring.
func TestIndexOverBudgetAtTheBound(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.MaxBytes = 24 * o.SegmentBytes
	o.IndexBytes = 1000
	l := mustOpen(t, o)
	ids, _ := exhaust(t, l)
	for _, id := range ids {
		_, e := l.Bounds(id)
		l.SetReclaimable(id, e)
	}
	servedAgain := func() bool {
		if l.Reserve(context.Background(), ClassClient, 100) != nil {
			return false
		}
		l.Unreserve(100)
		return true
	}
	for range 5000 {
		if servedAgain() {
			mustClose(t, l)
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("still no room: %+v", l.Stats())
}

// TestSmallBatchesAtTheBound fills the log with tiny batches, whose index and padding take more than they do, of which
// nothing is in object storage: appends are refused, and the log comes to rest instead of copying the same batches
// from segment to segment.
func TestSmallBatchesAtTheBound(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.SegmentBytes, o.MaxBytes = 256<<10, 10*256<<10
	l := mustOpen(t, o)
	ids := make([]PartitionID, 400)
	for i := range ids {
		ids[i] = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	for end := int64(0); err == nil; end++ {
		var wg sync.WaitGroup
		for _, id := range ids {
			b := mkBatch(end, 1, 61, end, byte(end))
			if err = l.Reserve(ctx, ClassClient, int64(len(b))); err != nil {
				break
			}
			wg.Add(1)
			l.Append(&Append{Partition: id, BaseOffset: end, LastOffset: end, Run: b, Done: func(err error) {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
			}})
		}
		wg.Wait()
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("at the bound: %v; %+v", err, l.Stats())
	}
	// Whoever comes back is refused again, each time with room in between or not.
	for range 2000 {
		if err := l.Reserve(ctx, ClassClient, 1000); err == nil {
			l.Unreserve(1000)
		} else if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("at the bound: %v; %+v", err, l.Stats())
		}
		time.Sleep(100 * time.Microsecond)
	}
	if st := l.Stats(); st.CarriedBytes > 2*o.MaxBytes {
		t.Errorf("%d bytes copied in a log of %d", st.CarriedBytes, o.MaxBytes)
	}
	mustClose(t, l)
}

// While the disk does not answer, the log says for how long; when it does, and when nothing is to be written, it says nothing.
func TestStalled(t *testing.T) {
	fs := vfs.NewFaulty(vfs.NewMem())
	o := testOptions(fs)
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	hang, hangs := make(chan struct{}), make(chan struct{}, 100)
	fs.Decide(func(op vfs.Op, _ string) vfs.Fault {
		if op == vfs.OpSync {
			hangs <- struct{}{}
			<-hang
		}
		return vfs.Fault{}
	})
	done := make(chan error, 1)
	l.Epoch(p, 1, 0, func(err error) { done <- err })
	<-hangs
	for before := l.Stats().Stalled; l.Stats().Stalled <= before || before == 0; before = l.Stats().Stalled {
		time.Sleep(time.Millisecond)
	}
	close(hang)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if d := l.Stats().Stalled; d != 0 {
		t.Errorf("stalled for %s after the end", d)
	}
}

// TestCarriedSnapshotIsOvertaken: while a snapshot was read to be carried, a newer one of the same offset became durable. It stays.
func TestCarriedSnapshotIsOvertaken(t *testing.T) {
	o := testOptions(vfs.NewMem())
	l := mustOpen(t, o)
	id := l.Create([16]byte{1}, 0, 0, nil, []byte("old"), nil)
	other := l.Create([16]byte{2}, 0, 0, nil, nil, nil)
	for end := int64(0); l.Stats().NewestGenration < 2; end++ {
		mustAppend(t, l, other, end, 1, 3000)
	}
	if err := wait(func(done func(error)) { l.Snapshot(id, 0, []byte("newer"), done) }); err != nil {
		t.Fatal(err)
	}
	if err := l.submit([]item{{kind: kindSnapshot, p: l.part(id), payload: []byte("old"), carried: true, from: 1}}); !errors.Is(err, errStale) {
		t.Errorf("a copy of the old snapshot: %v", err)
	}
	if b, offset, err := l.ProducerSnapshot(id); err != nil || offset != 0 || string(b) != "newer" {
		t.Errorf("%q at %d, %v", b, offset, err)
	}
	// What is still the newest is carried.
	if err := l.submit([]item{{kind: kindSnapshot, p: l.part(id), payload: []byte("newer"), carried: true, from: 2}}); err != nil {
		t.Error(err)
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	if r := l.Partitions()[0]; string(r.Snapshot) != "newer" {
		t.Errorf("recovered %+v", r)
	}
	mustClose(t, l)
}

// TestFilesGoInOrder: while a segment is read that was given back, the files of those behind it stay, too; else recovery would take
// would be missing either, and recovery would say so.
func TestFilesGoInOrder(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.Events.Corrupt = func(what string) { t.Error(what) }
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	end := int64(0)
	for ; l.Stats().NewestGenration < 8; end++ {
		mustAppend(t, l, p, end, 1, 3000)
	}
	l.segMu.Lock()
	read := l.segments[0]
	read.retain()
	l.segMu.Unlock()
	if err := wait(func(done func(error)) { l.Trim(p, end, done) }); err != nil {
		t.Fatal(err)
	}
	given := func(n int64) {
		t.Helper()
		for begin := time.Now(); l.stats.reclaimed.Load() < n; time.Sleep(time.Millisecond) {
			if time.Since(begin) > time.Minute {
				t.Fatalf("%d segments given back", l.stats.reclaimed.Load())
			}
		}
	}
	given(6) // all but the newest sealed one and the active one
	for l.Stats().NewestGenration < 10 {
		mustAppend(t, l, p, end, 1, 3000)
		end++
	}
	generations := func() (list []uint64) {
		t.Helper()
		names, err := fs.List(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if n, ok := parseName(name, segmentSuffix); ok {
				list = append(list, n)
			}
		}
		slices.Sort(list)
		return list
	}
	if got := generations(); len(got) != 10 {
		t.Errorf("while the first is read there are the segments %v", got)
	}
	disk := fs.Crash(1)
	read.release()
	for begin := time.Now(); generations()[0] < 7; time.Sleep(time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatalf("segments %v after the read", generations())
		}
	}
	mustClose(t, l)
	o.FS = disk
	l = mustOpen(t, o)
	if got := l.Partitions()[0]; got.End != end || got.Suspect {
		t.Errorf("recovered %+v, appended up to %d", got, end)
	}
	mustClose(t, l)
}

// syncBuffer is written by several and read meanwhile.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
