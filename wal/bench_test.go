package wal

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

// bareLoop is what the log is measured against, by the same appenders: a queue, one goroutine that takes all of it, one
// write of the buffers as they are, one fdatasync, and the waiters are told. No checksum, no index, no memory of anything.
type bareLoop struct {
	f     vfs.File
	size  int64
	mu    sync.Mutex
	queue []bareItem
	wake  chan struct{}
	syncs atomic.Int64
}

type bareItem struct {
	b    []byte
	done func(error)
}

func newBare(b *testing.B, dir string) *bareLoop {
	// As much space as the log goes round in: a device (or the host of a virtual one) takes writes to a small
	// region far faster.
	l := &bareLoop{size: 10 * 128 << 20, wake: make(chan struct{}, 1)}
	var err error
	if l.f, err = (vfs.OS{Buffered: true}).Create(filepath.Join(dir, "bare")); err != nil {
		b.Fatal(err)
	}
	for off := int64(0); off < l.size+64<<20; off += int64(len(zeros)) {
		l.f.WriteAt(zeros[:], off)
	}
	l.f.Sync()
	return l
}

func (l *bareLoop) run() {
	var spare []bareItem
	var vector [][]byte
	pos := int64(0)
	for range l.wake {
		for {
			l.mu.Lock()
			items := l.queue
			l.queue = spare[:0]
			l.mu.Unlock()
			if len(items) == 0 {
				spare = items
				break
			}
			for left := items; len(left) > 0; {
				vector = vector[:0]
				n, size := 0, 0
				for n < len(left) && (n == 0 || size+len(left[n].b) <= maxBlockBytes) {
					vector = append(vector, left[n].b)
					size += len(left[n].b)
					n++
				}
				if pos+int64(size) > l.size {
					pos = 0
				}
				if _, err := l.f.WriteVAt(vector, pos); err != nil {
					panic(err)
				}
				if err := l.f.Sync(); err != nil {
					panic(err)
				}
				pos += int64(size)
				l.syncs.Add(1)
				for _, it := range left[:n] {
					it.done(nil)
				}
				left = left[n:]
			}
			clear(items)
			spare = items
		}
	}
}

func (l *bareLoop) append(b []byte, done func(error)) {
	l.mu.Lock()
	l.queue = append(l.queue, bareItem{b, done})
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

var benchLog struct {
	l     *Log
	bare  *bareLoop
	parts []benchPart
}

// benchPart is what whoever appends to a partition has of it, be it to the log or to the bare loop: its lock, and the next
// offset.
type benchPart struct {
	id   PartitionID
	mu   sync.Mutex
	next int64
	_    [5]int64 // none shares a line of the processor's cache
}

// benchSetup opens a log whose files have all been written once, as they have in a broker that has run for a while.
func benchSetup(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(Options{Dir: filepath.Join(dir, "wal"), ClusterID: "bench", BrokerID: 1, SegmentBytes: 128 << 20, MaxBytes: 10 * 128 << 20, QueueBytes: 512 << 20, CacheBytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	benchLog.l, benchLog.bare = l, newBare(b, dir)
	go benchLog.bare.run()
	benchLog.parts = make([]benchPart, 2000) // the second half is the bare loop's
	for i := range 1000 {
		benchLog.parts[i].id = l.Create([16]byte{1}, int32(i), 0, nil, nil, nil)
	}
	for st := l.Stats(); !b.Failed() && (st.Segments+st.FreeSegments < 10 || st.NewestGenration < 14); st = l.Stats() {
		benchAppend(b, 0, 4<<20)
	}
	benchRest()
	b.Cleanup(func() { close(benchLog.bare.wake); l.Close() })
}

// benchRest leaves nothing to do that whoever was measured before has left: what had to be carried along, as it was not said to
// be anywhere else yet, and the files that the log prepares when there is time.
func benchRest() {
	l := benchLog.l
	for i := range benchLog.parts[:1000] {
		p := &benchLog.parts[i]
		p.mu.Lock()
		l.SetReclaimable(p.id, p.next)
		p.mu.Unlock()
	}
	for raw := true; raw; time.Sleep(10 * time.Millisecond) {
		l.segMu.Lock()
		raw = slices.ContainsFunc(l.spares, func(s spare) bool { return s.raw }) || len(l.spares) < spareTarget
		l.segMu.Unlock()
	}
}

// What is appended, and the checksums that a broker has from the batches.
var (
	benchPayload = make([]byte, 4<<20)
	benchSums    = map[int]uint32{}
)

func init() {
	for i := range benchPayload {
		benchPayload[i] = byte(i*i>>8 ^ i)
	}
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20, 4 << 20} {
		benchSums[size] = crc32c.Checksum(benchPayload[:size])
	}
}

// benchAppend appends one batch to a partition and waits.
func benchAppend(b *testing.B, part int, size int) {
	buf := slab.Get(size)
	copy(buf.Bytes(), benchPayload) // as a request arrives
	done := acks.Get().(chan error)
	l := benchLog.l
	for {
		err := l.Reserve(context.Background(), ClassClient, int64(size))
		if err == nil {
			break
		}
		if err != ErrNoSpace {
			b.Error(err)
			buf.Release()
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
	p := &benchLog.parts[part]
	p.mu.Lock()
	base := p.next
	p.next++
	l.Append(&Append{Partition: p.id, BaseOffset: base, LastOffset: base, Run: buf.Bytes(), Sum: benchSums[size], Summed: true, Buf: buf, Done: func(err error) { done <- err }})
	p.mu.Unlock()
	if err := <-done; err != nil {
		b.Error(err)
	}
	buf.Release()
	acks.Put(done)
	// As often as manifests are committed under such a load, or more: every quarter of a megabyte.
	if base%int64(max(1, 256<<10/size)) == 0 {
		l.SetReclaimable(p.id, base+1) // all of it, or a thousand partitions would hold on to a megabyte each
	}
}

var acks = sync.Pool{New: func() any { return make(chan error, 1) }}

// BenchmarkAppend appends from so many goroutines, each waiting for its own, and reports beside it what the bare
// loop does with the same, in turns, within the same run.
func BenchmarkAppend(b *testing.B) {
	benchSetup(b)
	for _, partitions := range []int{1, 1000} {
		for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
			for _, appenders := range []int{1, 16, 256} {
				b.Run(fmt.Sprintf("partitions=%d/size=%d/appenders=%d", partitions, size, appenders), func(b *testing.B) {
					var logTime, bareTime, logCPU, bareCPU time.Duration
					const turns = 8
					each := func(n, appenders int, f func(worker int)) time.Duration {
						start := time.Now()
						var wg sync.WaitGroup
						for w := range appenders {
							mine := n / appenders
							if w < n%appenders {
								mine++
							}
							wg.Add(1)
							go func() {
								defer wg.Done()
								for range mine {
									f(w)
								}
							}()
						}
						wg.Wait()
						return time.Since(start)
					}
					at := make([]int, appenders)
					for i := range at {
						at[i] = i
					}
					bareAt := slices.Clone(at)
					if b.N == 1 {
						// What memory keeps is of this size then, as in a broker that has had this load for a while: buffers of
						// another are given up and new ones made at first.
						each(96<<20/size, 64, func(w int) { benchAppend(b, w%partitions, size) })
						benchRest()
					}
					b.ReportAllocs()
					b.ResetTimer()
					total, blocks, syncs := 0, benchLog.l.Stats().Blocks, benchLog.bare.syncs.Load()
					for turn := range turns {
						n := b.N/turns + min(1, b.N%turns/(turn+1))
						total += n
						cpu := processTime()
						logTime += each(n, appenders, func(w int) {
							benchAppend(b, at[w]%partitions, size)
							at[w] += appenders
						})
						b.StopTimer()
						logCPU += processTime() - cpu
						cpu = processTime()
						bareTime += each(n, appenders, func(w int) {
							buf := slab.Get(size)
							copy(buf.Bytes(), benchPayload)
							done := acks.Get().(chan error)
							p := &benchLog.parts[1000+bareAt[w]%partitions]
							bareAt[w] += appenders
							p.mu.Lock()
							p.next++
							benchLog.bare.append(buf.Bytes(), func(err error) { done <- err })
							p.mu.Unlock()
							<-done
							buf.Release()
							acks.Put(done)
						})
						bareCPU += processTime() - cpu
						b.StartTimer()
					}
					b.StopTimer()
					mb := float64(total) * float64(size) / 1e6
					b.ReportMetric(mb/logTime.Seconds(), "MB/s")
					b.ReportMetric(mb/bareTime.Seconds(), "bare-MB/s")
					b.ReportMetric(float64(total)/logTime.Seconds(), "appends/s")
					b.ReportMetric(logCPU.Seconds()*1e6/float64(total), "cpu-us/append")
					b.ReportMetric(bareCPU.Seconds()*1e6/float64(total), "bare-cpu-us/append")
					b.ReportMetric(float64(total)/float64(benchLog.l.Stats().Blocks-blocks), "appends/block")
					b.ReportMetric(float64(total)/float64(benchLog.bare.syncs.Load()-syncs), "bare-appends/block")
					b.ReportMetric(bareTime.Seconds()/logTime.Seconds(), "ratio")
				})
			}
		}
	}
}

// BenchmarkWritePath is the measurement behind the choice of direct writes: a block of so many bytes, made of pieces of
// 16 KiB, written and synced, through the page cache and around it; to pages that the cache has, as in a file that goes round
// and round, and to a file that was only allocated.
func BenchmarkWritePath(b *testing.B) {
	const fileSize = 256 << 20
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20, 16 << 20} {
		for _, fresh := range []bool{false, true} {
			for _, buffered := range []bool{true, false} {
				b.Run(fmt.Sprintf("size=%d/fresh=%v/direct=%v", size, fresh, !buffered), func(b *testing.B) {
					fs := vfs.OS{Buffered: buffered}
					dir := b.TempDir()
					var f vfs.File
					open := func() {
						var err error
						if f != nil {
							f.Close()
						}
						if f, err = fs.Create(filepath.Join(dir, "f")); err == nil {
							err = f.Allocate(fileSize)
						}
						for off := int64(0); err == nil && off < fileSize && !fresh; off += int64(len(zeros)) {
							_, err = f.WriteAt(zeros[:], off)
						}
						if err == nil {
							err = f.Sync()
						}
						if err != nil {
							b.Fatal(err)
						}
					}
					open()
					defer func() { f.Close() }()
					piece := min(size, 16<<10)
					src := make([]byte, size+1)[1:]
					var vector, v [][]byte
					for at := 0; at < size; at += piece {
						vector = append(vector, src[at:at+piece])
					}
					var cpu time.Duration
					b.SetBytes(int64(size))
					pos, from := int64(0), processTime()
					for b.Loop() {
						if pos+int64(size) > fileSize {
							if pos = 0; fresh {
								b.StopTimer()
								cpu += processTime() - from
								open()
								from = processTime()
								b.StartTimer()
							}
						}
						v = append(v[:0], vector...)
						if _, err := f.WriteVAt(v, pos); err != nil {
							b.Fatal(err)
						}
						if err := f.Sync(); err != nil {
							b.Fatal(err)
						}
						pos += int64(size)
					}
					cpu += processTime() - from
					b.ReportMetric(cpu.Seconds()*1e9/float64(b.N)/float64(size), "cpu-s/GB")
				})
			}
		}
	}
}

// processTime is the processor time that this process has taken.
func processTime() time.Duration {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
