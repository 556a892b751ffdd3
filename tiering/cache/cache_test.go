package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/wal/slab"
)

// source is an object whose chunks can be told apart, and whose loads can be counted, held up and spoiled.
type source struct {
	key   string
	n     int
	size  int
	loads atomic.Int64 // calls of Load
	asked sync.Map     // chunk -> *atomic.Int64
	gate  chan struct{}
	fail  func(i int) error
	next  *source
	delay time.Duration
}

func (s *source) want(i int) []byte {
	b := make([]byte, s.size)
	r := rand.New(rand.NewPCG(uint64(i), uint64(len(s.key))+uint64(s.key[len(s.key)-1])))
	for k := 0; k+8 <= len(b); k += 8 {
		binary.LittleEndian.PutUint64(b[k:], r.Uint64())
	}
	return b
}

func (s *source) asks(i int) int64 {
	v, ok := s.asked.Load(i)
	if !ok {
		return 0
	}
	return v.(*atomic.Int64).Load()
}

func (s *source) object() *Object {
	o := &Object{Key: s.key, Chunks: s.n, Len: func(int) int { return s.size }}
	o.Load = func(ctx context.Context, first int, dst [][]byte) (int, error) {
		s.loads.Add(1)
		if s.gate != nil {
			select {
			case <-s.gate:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		if s.delay > 0 {
			time.Sleep(s.delay)
		}
		for k := range dst {
			v, _ := s.asked.LoadOrStore(first+k, new(atomic.Int64))
			v.(*atomic.Int64).Add(1)
			if s.fail != nil {
				if err := s.fail(first + k); err != nil {
					return k, err
				}
			}
			copy(dst[k], s.want(first+k))
		}
		return len(dst), nil
	}
	if s.next != nil {
		nx := s.next.object()
		o.Next = func(context.Context) (*Object, error) { return nx, nil }
	}
	return o
}

func open(t testing.TB, o Options) *Cache {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func check(t testing.TB, c interface {
	Get(context.Context, *Object, int) (*slab.Buf, error)
}, s *source, o *Object, i int) {
	t.Helper()
	b, err := c.Get(context.Background(), o, i)
	if err != nil {
		t.Fatalf("chunk %d: %v", i, err)
	}
	if !bytes.Equal(b.Bytes(), s.want(i)) {
		t.Fatalf("chunk %d of %s: wrong bytes", i, s.key)
	}
	b.Release()
}

const kib = 1 << 10

func TestHitAndMiss(t *testing.T) {
	c := open(t, Options{MemoryBytes: 256 * kib, ChunkBytes: 16 * kib})
	s := &source{key: "a", n: 4, size: 16 * kib}
	o := s.object()
	for range 3 {
		for i := range s.n {
			check(t, c, s, o, i)
		}
	}
	if st := c.Stats(); st.Misses != 4 || st.MemoryHits != 8 || st.Loads != 4 || st.MemoryBytes != 64*kib || st.ReservedBytes != 0 {
		t.Fatalf("%+v", st)
	}
	for _, i := range []int{-1, 4} {
		if _, err := c.Get(context.Background(), o, i); !errors.Is(err, ErrChunk) {
			t.Fatalf("chunk %d: %v", i, err)
		}
	}
}

func TestSingleFlight(t *testing.T) {
	c := open(t, Options{MemoryBytes: 256 * kib, ChunkBytes: 16 * kib})
	s := &source{key: "a", n: 1, size: 16 * kib, gate: make(chan struct{})}
	o := s.object()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { check(t, c, s, o, 0) })
	}
	for c.Stats().Joined != 49 {
		time.Sleep(time.Millisecond)
	}
	close(s.gate)
	wg.Wait()
	if s.loads.Load() != 1 {
		t.Fatalf("%d loads", s.loads.Load())
	}
}

// A load goes on when nobody waits for it any more, and its result is there for the next.
func TestLoadOutlivesWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Options{MemoryBytes: 256 * kib, ChunkBytes: 16 * kib})
		s := &source{key: "a", n: 1, size: 16 * kib, delay: 10 * time.Second}
		o := s.object()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := c.Get(ctx, o, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if st := c.Stats(); st.LoadsInFlight != 1 {
			t.Fatalf("%+v", st)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		check(t, c, s, o, 0)
		if st := c.Stats(); st.MemoryHits != 1 || s.loads.Load() != 1 {
			t.Fatalf("%+v", st)
		}
		c.Close()
	})
}

// Whatever is asked for at once, memory held and reserved stays within the bound.
func TestBoundHoldsDownloadsIncluded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 128 * kib // 8 chunks
		c := open(t, Options{MemoryBytes: bound, ChunkBytes: 16 * kib, Loads: 64})
		s := &source{key: "a", n: 100, size: 16 * kib, delay: time.Second}
		o := s.object()
		var wg sync.WaitGroup
		for i := range s.n {
			wg.Go(func() { check(t, c, s, o, i) })
		}
		for range 20 {
			synctest.Wait()
			if st := c.Stats(); st.MemoryBytes+st.ReservedBytes > bound {
				t.Errorf("%d held + %d reserved, bound %d", st.MemoryBytes, st.ReservedBytes, bound)
			}
			time.Sleep(500 * time.Millisecond)
		}
		wg.Wait()
		c.Close()
	})
}

// A chunk larger than the bound still loads, alone, and is not kept.
func TestOversizedChunk(t *testing.T) {
	c := open(t, Options{MemoryBytes: 64 * kib, ChunkBytes: 16 * kib})
	big := &source{key: "b", n: 2, size: 200 * kib}
	o := big.object()
	check(t, c, big, o, 0)
	check(t, c, big, o, 1)
	if st := c.Stats(); st.MemoryBytes > 64*kib || st.ReservedBytes != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestErrorsAreNotCached(t *testing.T) {
	c := open(t, Options{MemoryBytes: 256 * kib, ChunkBytes: 16 * kib})
	boom := errors.New("boom")
	var bad atomic.Bool
	bad.Store(true)
	s := &source{key: "a", n: 3, size: 16 * kib, fail: func(i int) error {
		if i == 1 && bad.Load() {
			return boom
		}
		return nil
	}}
	o := s.object()
	if _, err := c.Get(context.Background(), o, 1); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	bad.Store(false)
	check(t, c, s, o, 1)
}

// A run of readahead that fails at one chunk harms only readers of that chunk.
func TestRunFailsInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Options{MemoryBytes: 1024 * kib, ChunkBytes: 16 * kib})
		boom := errors.New("boom")
		s := &source{key: "a", n: 8, size: 16 * kib, delay: time.Second, fail: func(i int) error {
			if i == 3 {
				return boom
			}
			return nil
		}}
		o := s.object()
		if got := c.Prefetch(o, 0, 8); got != 8 {
			t.Fatal(got)
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if i == 3 {
					if _, err := c.Get(context.Background(), o, i); !errors.Is(err, boom) {
						t.Errorf("chunk 3: %v", err)
					}
					return
				}
				check(t, c, s, o, i)
			})
		}
		wg.Wait()
		c.Close()
	})
}

// A scan of much more than fits leaves the chunks that are read again and again in memory.
func TestScanResistance(t *testing.T) {
	c := open(t, Options{MemoryBytes: 320 * kib, ChunkBytes: 16 * kib, ReadaheadBytes: 16 * kib})
	hot := &source{key: "hot", n: 8, size: 16 * kib}
	cold := &source{key: "cold", n: 2000, size: 16 * kib}
	ho, co := hot.object(), cold.object()
	for range 5 {
		for i := range hot.n {
			check(t, c, hot, ho, i)
		}
	}
	st := c.NewStream()
	for i := range cold.n {
		check(t, st, cold, co, i)
		check(t, st, cold, co, i) // a reader comes back to a chunk before it goes on
		if i%100 == 0 {
			for k := range hot.n {
				check(t, c, hot, ho, k)
			}
		}
	}
	if n := hot.loads.Load(); n != int64(hot.n) {
		t.Fatalf("the hot chunks were loaded %d times", n)
	}
}

func TestReadaheadGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := &source{key: "2", n: 40, size: 16 * kib, delay: 100 * time.Millisecond}
		first := &source{key: "1", n: 40, size: 16 * kib, delay: 100 * time.Millisecond, next: second}
		c := open(t, Options{MemoryBytes: 4096 * kib, ChunkBytes: 16 * kib, ReadaheadBytes: 256 * kib, RunBytes: 128 * kib})
		fo := first.object()
		so, _ := fo.Next(context.Background())
		st := c.NewStream()
		begin := time.Now()
		for i := range 40 {
			check(t, st, first, fo, i)
		}
		for i := range 40 {
			check(t, st, second, so, i)
		}
		took := time.Since(begin)
		stats := c.Stats()
		// One by one it takes 80 rounds of 100 ms.
		if took > 2500*time.Millisecond {
			t.Errorf("80 chunks took %v", took)
		}
		if loads := first.loads.Load() + second.loads.Load(); loads > 30 {
			t.Errorf("%d loads: readahead does not ask for runs", loads)
		}
		for i := range 40 {
			if first.asks(i) != 1 || second.asks(i) != 1 {
				t.Errorf("chunk %d asked for %d and %d times", i, first.asks(i), second.asks(i))
			}
		}
		t.Logf("%v, %d loads, %+v", took, first.loads.Load()+second.loads.Load(), stats)
		// Jumping about fetches nothing ahead.
		before := c.Stats().Readahead
		random := &source{key: "r", n: 100, size: 16 * kib}
		ro := random.object()
		st = c.NewStream()
		for _, i := range []int{50, 3, 77, 12, 90, 5} {
			check(t, st, random, ro, i)
		}
		synctest.Wait()
		if got := c.Stats().Readahead - before; got != 0 {
			t.Errorf("%d chunks fetched ahead of random reads", got)
		}
		c.Close()
	})
}

// Streams that stop reading leave their readahead behind; it must not stop the readahead of others for good, and never
// breaks the bound.
func TestAbandonedReadahead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Options{MemoryBytes: 1024 * kib, ChunkBytes: 16 * kib, ReadaheadBytes: 256 * kib})
		for k := range 20 {
			s := &source{key: fmt.Sprint("s", k), n: 100, size: 16 * kib}
			o := s.object()
			st := c.NewStream()
			for i := range 20 {
				check(t, st, s, o, i)
			}
			synctest.Wait()
			time.Sleep(aheadAge * 2 / 3)
		}
		stats := c.Stats()
		if stats.MemoryBytes+stats.ReservedBytes > stats.MemoryMax {
			t.Errorf("%+v", stats)
		}
		if stats.Readahead < 20*15 {
			t.Errorf("only %d chunks were fetched ahead", stats.Readahead)
		}
		c.Close()
	})
}

func TestDiskTier(t *testing.T) {
	dir := t.TempDir()
	o := Options{MemoryBytes: 64 * kib, Dir: dir, DiskBytes: 2048 * kib, ChunkBytes: 16 * kib, Identity: "c1"}
	c := open(t, o)
	s := &source{key: "a", n: 50, size: 16 * kib}
	obj := s.object()
	for i := range s.n {
		check(t, c, s, obj, i)
		settle(t, c)
	}
	loads := s.loads.Load()
	for i := range s.n {
		check(t, c, s, obj, i)
	}
	if s.loads.Load() != loads {
		t.Fatalf("%d loads in the second round: %+v", s.loads.Load()-loads, c.Stats())
	}
	if st := c.Stats(); st.DiskHits == 0 || st.DiskBytes > st.DiskMax {
		t.Fatalf("%+v", st)
	}
	c.Close()

	// It survives a restart,
	c = open(t, o)
	for i := range s.n {
		check(t, c, s, obj, i)
	}
	if s.loads.Load() != loads {
		t.Fatalf("%d loads after a restart", s.loads.Load()-loads)
	}
	c.Close()

	// and damage costs a load, nothing else.
	f, err := os.OpenFile(filepath.Join(dir, diskFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := f.Stat()
	for at := int64(headerSize); at < info.Size(); at += 5000 {
		var b [1]byte
		f.ReadAt(b[:], at)
		b[0] ^= 0x40
		f.WriteAt(b[:], at)
	}
	f.Close()
	var seen atomic.Int64
	o.Events.DiskError = func(error) { seen.Add(1) }
	c = open(t, o)
	for i := range s.n {
		check(t, c, s, obj, i)
	}
	if st := c.Stats(); st.DiskCorrupt == 0 || seen.Load() != st.DiskCorrupt || s.loads.Load() == loads {
		t.Fatalf("%+v", st)
	}
	c.Close()

	// Another cluster's cache is emptied.
	o.Identity = "c2"
	c = open(t, o)
	if st := c.Stats(); st.DiskChunks != 0 {
		t.Fatalf("%+v", st)
	}
	c.Close()
}

// settle waits until nothing is left to write to the slot file.
func settle(t testing.TB, c *Cache) {
	t.Helper()
	for range 5000 {
		c.mu.Lock()
		idle := len(c.disk.pending) == 0
		c.mu.Unlock()
		st := c.Stats()
		if idle && st.DiskWrites+st.DiskSkipped+st.DiskErrors >= st.LoadedBytes/int64(c.o.ChunkBytes) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("slot file does not settle: %+v", c.Stats())
}

// Chunks larger than a slot take several.
func TestDiskChunkOfSeveralSlots(t *testing.T) {
	o := Options{MemoryBytes: 256 * kib, Dir: t.TempDir(), DiskBytes: 1024 * kib, ChunkBytes: 16 * kib}
	c := open(t, o)
	s := &source{key: "a", n: 3, size: 40 * kib}
	obj := s.object()
	for i := range s.n {
		check(t, c, s, obj, i)
	}
	for c.Stats().DiskWrites != 3 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	c = open(t, o)
	for i := range s.n {
		check(t, c, s, obj, i)
	}
	if st := c.Stats(); st.DiskReads != 3 || s.loads.Load() != 3 {
		t.Fatalf("%+v", st)
	}
}

// A store that hangs does not keep readers from what the disk tier has.
func TestDiskHitsPassHangingLoads(t *testing.T) {
	o := Options{MemoryBytes: 1024 * kib, Dir: t.TempDir(), DiskBytes: 1024 * kib, ChunkBytes: 16 * kib, Loads: 2}
	c := open(t, o)
	warm := &source{key: "warm", n: 4, size: 16 * kib}
	wo := warm.object()
	for i := range warm.n {
		check(t, c, warm, wo, i)
	}
	for c.Stats().DiskWrites != 4 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	c = open(t, o)
	cold := &source{key: "cold", n: 10, size: 16 * kib, gate: make(chan struct{})}
	co := cold.object()
	var wg sync.WaitGroup
	for i := range cold.n {
		wg.Go(func() { check(t, c, cold, co, i) })
	}
	for st := c.Stats(); st.LoadsInFlight+st.LoadsQueued < cold.n; st = c.Stats() {
		time.Sleep(time.Millisecond)
	}
	for i := range warm.n {
		check(t, c, warm, wo, i)
	}
	close(cold.gate)
	wg.Wait()
}

// Readers that come and go while the store hangs leave a bounded queue.
func TestForsakenDemands(t *testing.T) {
	c := open(t, Options{MemoryBytes: 64 << 20, ChunkBytes: 4 * kib, Loads: 1})
	s := &source{key: "a", n: 3 * maxForsaken, size: 4 * kib, gate: make(chan struct{})}
	o := s.object()
	for i := range s.n {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Get(ctx, o, i)
		}()
		for {
			c.mu.Lock()
			f := c.flights[Key{"a", i}]
			asked := f != nil && f.waiters > 0
			c.mu.Unlock()
			if asked {
				break
			}
			time.Sleep(10 * time.Microsecond)
		}
		cancel()
		<-done
	}
	close(s.gate)
	check(t, c, s, o, s.n-1)
	for st := c.Stats(); st.LoadsInFlight+st.LoadsQueued > 0; st = c.Stats() {
		time.Sleep(time.Millisecond)
	}
	if n := s.loads.Load(); n > maxForsaken+2 {
		t.Errorf("%d loads", n)
	}
}

func TestDiskInUse(t *testing.T) {
	o := Options{Dir: t.TempDir(), DiskBytes: 64 << 20}
	open(t, o)
	if _, err := Open(o); err == nil {
		t.Fatal("two caches on one slot file")
	}
}

// A write error stops writing for a while and reading never.
func TestDiskWriteFails(t *testing.T) {
	o := Options{MemoryBytes: 64 * kib, Dir: t.TempDir(), DiskBytes: 1024 * kib, ChunkBytes: 16 * kib}
	c := open(t, o)
	c.disk.f.Close()
	s := &source{key: "a", n: 20, size: 16 * kib}
	obj := s.object()
	for range 2 {
		for i := range s.n {
			check(t, c, s, obj, i)
		}
	}
	for c.Stats().DiskErrors == 0 {
		time.Sleep(time.Millisecond)
	}
	if st := c.Stats(); st.DiskWrites != 0 {
		t.Fatalf("%+v", st)
	}
}

// The sample was written by version 1 of the slot file.
func TestOpensVersion1(t *testing.T) {
	s := &source{key: "v1/object", n: 3, size: 1500} // three slots each
	const sample = "testdata/chunks-v1.cache"
	shape := Options{ChunkBytes: 512, DiskBytes: 12 * (512 + entrySize), Identity: "varve"}
	if os.Getenv("VARVE_WRITE_SAMPLES") != "" {
		shape.Dir = t.TempDir()
		c := open(t, shape)
		for i := range s.n {
			check(t, c, s, s.object(), i)
		}
		for c.Stats().DiskWrites != 3 {
			time.Sleep(time.Millisecond)
		}
		c.Close()
		b, err := os.ReadFile(filepath.Join(shape.Dir, diskFile))
		if err != nil {
			t.Fatal(err)
		}
		os.MkdirAll("testdata", 0o755)
		if err := os.WriteFile(sample, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	shape.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(shape.Dir, diskFile), b, 0o644); err != nil {
		t.Fatal(err)
	}
	c := open(t, shape)
	loads := s.loads.Load()
	for i := range s.n {
		check(t, c, s, s.object(), i)
	}
	if st := c.Stats(); st.DiskReads != 3 || s.loads.Load() != loads {
		t.Fatalf("%+v", st)
	}
}

func TestClose(t *testing.T) {
	c := open(t, Options{MemoryBytes: 256 * kib, ChunkBytes: 16 * kib, Loads: 2})
	s := &source{key: "a", n: 10, size: 16 * kib, gate: make(chan struct{})}
	o := s.object()
	errs := make(chan error, s.n)
	for i := range s.n {
		go func() {
			_, err := c.Get(context.Background(), o, i)
			errs <- err
		}()
	}
	for st := c.Stats(); st.LoadsInFlight+st.LoadsQueued < s.n; st = c.Stats() {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	for range s.n {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
	if _, err := c.Get(context.Background(), o, 0); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if c.Prefetch(o, 0, 5) != 0 {
		t.Fatal("prefetch after Close")
	}
}

func TestDrop(t *testing.T) {
	c := open(t, Options{MemoryBytes: 256 * kib, ChunkBytes: 16 * kib, Dir: t.TempDir(), DiskBytes: 1024 * kib})
	s := &source{key: "a", n: 5, size: 16 * kib}
	o := s.object()
	for i := range s.n {
		check(t, c, s, o, i)
	}
	for c.Stats().DiskWrites != 5 {
		time.Sleep(time.Millisecond)
	}
	c.Drop("a", s.n)
	if st := c.Stats(); st.MemoryBytes != 0 || st.DiskChunks != 0 || st.DiskBytes != 0 {
		t.Fatalf("%+v", st)
	}
	check(t, c, s, o, 2)
}

// Many readers of everything kinds, small bounds, failing and slow loads: bytes are right, nothing leaks.
func TestStress(t *testing.T) {
	o := Options{MemoryBytes: 512 * kib, ChunkBytes: 8 * kib, Dir: t.TempDir(), DiskBytes: 1024 * kib, Loads: 4, ReadaheadBytes: 64 * kib, RunBytes: 32 * kib}
	c := open(t, o)
	var sources []*source
	var objs []*Object
	for k := range 6 {
		s := &source{key: fmt.Sprint("k", k), n: 40, size: []int{8, 8, 3, 20, 8, 1}[k] * kib}
		if k == 4 {
			var n atomic.Int64
			s.fail = func(i int) error {
				if n.Add(1)%7 == 0 {
					return errors.New("now and then")
				}
				return nil
			}
		}
		sources = append(sources, s)
	}
	for k := range sources {
		objs = append(objs, sources[k].object())
	}
	var wg sync.WaitGroup
	for g := range 12 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 15 {
				k := r.IntN(len(objs))
				st := c.NewStream()
				for i := r.IntN(30); i < 40; i++ {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(5)+1)*time.Millisecond)
					if r.IntN(3) > 0 {
						cancel()
						ctx, cancel = context.WithCancel(context.Background())
					}
					b, err := st.Get(ctx, objs[k], i)
					cancel()
					if err != nil {
						continue
					}
					if !bytes.Equal(b.Bytes(), sources[k].want(i)) {
						t.Errorf("%d/%d: wrong bytes", k, i)
					}
					b.Release()
					if r.IntN(50) == 0 {
						c.Drop(sources[k].key, 40)
					}
				}
			}
		})
	}
	wg.Wait()
	// What nobody waits for any more goes on to its end: loads, and what is read from the slot file.
	busy := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.running+c.reading+c.queued() > 0
	}
	for range 5000 {
		if !busy() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	st := c.Stats()
	if st.ReservedBytes != 0 || c.ahead != 0 || c.running != 0 || c.runAhead != 0 || c.reading != 0 || len(c.flights) != 0 || st.MemoryBytes > st.MemoryMax {
		t.Fatalf("left over: %+v ahead %d running %d/%d reading %d flights %d", st, c.ahead, c.running, c.runAhead, c.reading, len(c.flights))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.disk.index {
		if e.pins != 0 {
			t.Errorf("%v still pinned", e.key)
		}
	}
	used := map[int32]bool{}
	for _, s := range c.disk.free {
		used[s] = true
	}
	for _, e := range c.disk.index {
		for _, s := range e.slots {
			if used[s] {
				t.Fatalf("slot %d twice", s)
			}
			used[s] = true
		}
	}
}

// The policy against a model that only counts: nothing is lost, weights add up, every evict returns something while there
// is something.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 250, 1, 251, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := newPolicy(100)
		nodes := map[Key]*node{}
		for k, op := range ops {
			key := Key{"x", int(op % 37)}
			n := nodes[key]
			switch {
			case op == 239:
				p.expire(int64(k - 5))
			case op >= 240:
				v := p.evict()
				if (v == nil) != (len(nodes) == 0) {
					t.Fatalf("evict %v with %d chunks", v, len(nodes))
				}
				if v != nil {
					if nodes[v.key] != v {
						t.Fatal("evicted a stranger")
					}
					delete(nodes, v.key)
				}
			case n == nil:
				nodes[key] = p.add(key, int64(k%9+1), op%2 == 0, int64(k))
			case op >= 200:
				p.remove(n)
				delete(nodes, key)
			default:
				p.touch(n)
			}
			var sum int64
			for _, n := range nodes {
				sum += n.weight
			}
			if sum != p.weight() || p.small.len+p.main.len+p.ahead.len != len(nodes) || p.ghost.len != len(p.ghosts) {
				t.Fatalf("weights %d %d", sum, p.weight())
			}
		}
	})
}

// Table entries come from a disk that may hold anything.
func FuzzParseEntry(f *testing.F) {
	f.Add(appendEntry(tableEntry{key: Key{"a/b", 7}, part: 1, parts: 3, total: 1500, crc: 5}, 512))
	f.Add(make([]byte, entrySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parseEntry(b, 512)
		if ok && !slices.Equal(appendEntry(e, 512), b) {
			t.Fatalf("%+v does not read back", e)
		}
	})
}

func BenchmarkHit(b *testing.B) {
	c := open(b, Options{MemoryBytes: 64 << 20})
	s := &source{key: "a", n: 32, size: 1 << 20}
	o := s.object()
	for i := range s.n {
		check(b, c, s, o, i)
	}
	b.RunParallel(func(pb *testing.PB) {
		st := c.NewStream()
		for i := 0; pb.Next(); i++ {
			buf, err := st.Get(context.Background(), o, i%s.n)
			if err != nil {
				b.Fatal(err)
			}
			buf.Release()
		}
	})
}

func BenchmarkDiskHit(b *testing.B) {
	c := open(b, Options{MemoryBytes: 8 << 20, Dir: b.TempDir(), DiskBytes: 128 << 20})
	s := &source{key: "a", n: 64, size: 1 << 20}
	o := s.object()
	for i := range s.n {
		check(b, c, s, o, i)
		settle(b, c)
	}
	b.SetBytes(1 << 20)
	st := c.NewStream()
	for i := 0; b.Loop(); i++ {
		buf, err := st.Get(context.Background(), o, i%s.n)
		if err != nil {
			b.Fatal(err)
		}
		buf.Release()
	}
	b.ReportMetric(float64(s.loads.Load()-int64(s.n)), "reloads")
}

func BenchmarkMissSequential(b *testing.B) {
	c := open(b, Options{MemoryBytes: 64 << 20})
	data := make([]byte, 1<<20)
	o := &Object{Key: "a", Chunks: 1 << 40, Len: func(int) int { return 1 << 20 }}
	o.Load = func(ctx context.Context, first int, dst [][]byte) (int, error) {
		for k := range dst {
			copy(dst[k], data)
		}
		return len(dst), nil
	}
	b.SetBytes(1 << 20)
	st := c.NewStream()
	for i := 0; b.Loop(); i++ {
		buf, err := st.Get(context.Background(), o, i)
		if err != nil {
			b.Fatal(err)
		}
		buf.Release()
	}
}
