package slab

import (
	"runtime"
	"sync"
	"testing"
)

func TestClasses(t *testing.T) {
	for _, tc := range []struct{ n, charge int }{
		{0, 512}, {1, 512}, {512, 512}, {513, 1024}, {4097, 5120}, {16500, 20480}, {32768, 32768}, {32769, 40960}, {65536, 65536}, {65537, 81920}, {5 << 20, 5 << 20}, {5<<20 + 1, 6 << 20},
		{MaxPooled, MaxPooled}, {MaxPooled + 1, MaxPooled + 1},
	} {
		before := InUse()
		b := Get(tc.n)
		if len(b.Bytes()) != tc.n || cap(b.Bytes()) != tc.n || b.Charge() != tc.charge {
			t.Fatalf("Get(%d): len %d, cap %d, charge %d, want charge %d", tc.n, len(b.Bytes()), cap(b.Bytes()), b.Charge(), tc.charge)
		}
		if got := InUse() - before; got != int64(tc.charge) {
			t.Fatalf("Get(%d): in use grew by %d, want %d", tc.n, got, tc.charge)
		}
		b.Release()
		if InUse() != before {
			t.Fatalf("Release of %d: in use %d, want %d", tc.n, InUse(), before)
		}
	}
}

// Every size is held by its class and not by the one below, and no large class is a quarter larger than it must be.
func TestClassOfEverySize(t *testing.T) {
	for n := 1; n <= MaxPooled; n += 1 + n/50 {
		c := classOf(n)
		if sizeOf(c) < n || c > 0 && sizeOf(c-1) >= n {
			t.Fatalf("%d bytes: class %d of %d, below it %d", n, c, sizeOf(c), sizeOf(c-1))
		}
		if n > 1<<largeShift && sizeOf(c) > n+n/4+1 {
			t.Fatalf("%d bytes are held by %d", n, sizeOf(c))
		}
	}
	if classOf(MaxPooled) != classes-1 || sizeOf(classes-1) != MaxPooled {
		t.Fatalf("the last class is %d of %d", classOf(MaxPooled), sizeOf(classes-1))
	}
}

// Large buffers outlive garbage collections, up to a bound, whatever their sizes.
func TestLargeBuffersAreKept(t *testing.T) {
	b := Get(1 << 20)
	b.Release()
	runtime.GC()
	runtime.GC()
	again := Get(1<<20 - 5)
	if again != b {
		t.Error("a large buffer was not used again")
	}
	again.Release()
	for _, size := range []int{16 << 20, 1 << 20, 40 << 10, 9 << 20} {
		var held []*Buf
		for n := 0; n < 2*keepFree; n += size {
			held = append(held, Get(size))
		}
		for _, b := range held {
			b.Release()
		}
		large.mu.Lock()
		sum := 0
		for _, f := range large.free {
			for _, b := range f {
				sum += len(b.mem)
			}
		}
		if sum != large.bytes || sum > keepFree || sum < keepFree-16<<20 {
			t.Errorf("after buffers of %d: %d bytes are kept, %d are counted, %d may be", size, sum, large.bytes, keepFree)
		}
		large.mu.Unlock()
		if f := Get(size); f.Charge() >= size {
			f.Release()
		}
	}
}

func TestReleaseBelowZeroPanics(t *testing.T) {
	for name, f := range map[string]func(*Buf){"release": (*Buf).Release, "retain": (*Buf).Retain} {
		func() {
			b := Get(MaxPooled + 1) // not pooled, so nobody else can be handed it
			b.Release()
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a released buffer did not panic", name)
				}
			}()
			f(b)
		}()
	}
}

func TestPoison(t *testing.T) {
	m := make([]byte, 1000)
	poison(m)
	for i, c := range m {
		if c != 0xDB {
			t.Fatalf("byte %d is %#x", i, c)
		}
	}
	poison(nil)
	if !Debug {
		t.Skip("the effect on Release shows with -race or -tags slabdebug")
	}
	b := Get(MaxPooled + 5)
	s := b.Bytes()
	b.Release()
	if s[0] != 0xDB || s[len(s)-1] != 0xDB {
		t.Fatal("released buffer kept its content")
	}
}

func TestShared(t *testing.T) {
	before := InUse()
	var wg sync.WaitGroup
	for range 200 {
		b := Get(10000)
		for i := range b.Bytes() {
			b.Bytes()[i] = 7
		}
		for range 4 {
			b.Retain()
			wg.Add(1)
			go func() {
				defer wg.Done()
				for _, c := range b.Bytes() {
					if c != 7 {
						t.Error("content changed while held")
						break
					}
				}
				b.Release()
			}()
		}
		b.Release()
	}
	wg.Wait()
	if InUse() != before {
		t.Fatalf("in use %d after all releases, want %d", InUse(), before)
	}
}

func BenchmarkGetRelease(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Get(100 << 10).Release()
	}
}
