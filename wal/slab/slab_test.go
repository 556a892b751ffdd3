package slab

import (
	"sync"
	"testing"
)

func TestClasses(t *testing.T) {
	for _, tc := range []struct{ n, charge int }{
		{0, 512}, {1, 512}, {512, 512}, {513, 1024}, {4097, 8192}, {65536, 65536}, {65537, 131072},
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
	if !poisonOnRelease {
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
