package cleaner

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// newTable returns one with room for exactly so many keys.
func newTable(t testing.TB, keys int, load float64) *Table {
	t.Helper()
	tab, err := NewTable(int64(math.Ceil(float64(keys)/load+2))*SlotSize, load, [16]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	tab.Reset(int64(keys))
	tab.max = keys
	return tab
}

// Against a map, at every load, with keys that come again in any order, up to and beyond what fits.
func TestTableAgainstMap(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		load := []float64{0.1, 0.5, 0.9, 1}[rnd.IntN(4)]
		tab, err := NewTable(int64(2+rnd.IntN(300))*SlotSize, load, [16]byte{byte(seed)})
		if err != nil {
			continue // too small for this load: TestTableSize
		}
		for range 3 {
			tab.Reset(int64(rnd.IntN(400)))
			want := map[string]int64{}
			refused := 0
			for range 500 {
				key := fmt.Sprint(rnd.IntN(300))
				offset := rnd.Int64N(1000)
				_, known := want[key]
				switch ok := tab.Put([]byte(key), offset); {
				case ok:
					want[key] = max(want[key], offset)
				case known || len(want) < tab.Cap():
					t.Fatalf("seed %d: key %s refused with %d of %d", seed, key, tab.Len(), tab.Cap())
				default:
					refused++
				}
				if tab.Len() != len(want) {
					t.Fatalf("seed %d: %d keys, want %d", seed, tab.Len(), len(want))
				}
			}
			for i := range 300 {
				key := fmt.Sprint(i)
				w, ok := want[key]
				if !ok {
					w = -1
				}
				if got := tab.Newest([]byte(key)); got != w {
					t.Fatalf("seed %d: newest of %s is %d, want %d", seed, key, got, w)
				}
			}
		}
	}
}

func TestTableSize(t *testing.T) {
	for _, tc := range []struct {
		bytes int64
		load  float64
		ok    bool
	}{
		{0, 0.9, false}, {-1, 0.9, false}, {SlotSize, 0.9, false}, {2*SlotSize - 1, 0.9, false}, {2 * SlotSize, 0.9, true}, {2 * SlotSize, 0.4, false},
		{1000, 0, false}, {1000, -1, false}, {1000, 1.1, false}, {1000, math.NaN(), false}, {1000, 1, true},
	} {
		tab, err := NewTable(tc.bytes, tc.load, [16]byte{})
		if (err == nil) != tc.ok {
			t.Errorf("%d bytes, load %v: %v", tc.bytes, tc.load, err)
		}
		if err == nil && (tab.Cap() < 1 || !tab.Put([]byte("k"), 7) || tab.Newest([]byte("k")) != 7 || tab.Newest([]byte("x")) != -1) {
			t.Errorf("%d bytes, load %v: no room for a key", tc.bytes, tc.load)
		}
	}
	tab, err := NewTable(1<<20, 0.9, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{0, 1, 10, 1000} {
		if tab.Reset(n); int64(tab.Cap()) < n || int64(tab.Cap()) > n+2 {
			t.Errorf("room for %d keys where %d may come", tab.Cap(), n)
		}
	}
	if tab.Reset(math.MaxInt64); tab.Cap() != 1<<20/SlotSize*9/10 {
		t.Errorf("room for %d keys in 1 MiB", tab.Cap())
	}
}

// The secret decides where keys fall.
func TestTableIsKeyed(t *testing.T) {
	a, b := newTable(t, 10, 0.9), newTable(t, 10, 0.9)
	b.secret[0]++
	if a.hash([]byte("k")) == b.hash([]byte("k")) {
		t.Fatal("the secret does not enter the hash")
	}
	if c := newTable(t, 10, 0.9); c.hash([]byte("k")) != a.hash([]byte("k")) || a.hash(nil) == a.hash([]byte{0}) {
		t.Fatal("the key does not, or more than key and secret does")
	}
}

func benchTable(b *testing.B, fill float64, f func(tab *Table, n int, key []byte, i int)) {
	const keys = 1 << 20
	tab := newTable(b, keys, 0.9)
	key := make([]byte, 16)
	n := int(fill * float64(tab.Cap()))
	for i := range n {
		binary.BigEndian.PutUint64(key, uint64(i))
		if !tab.Put(key, int64(i)) {
			b.Fatal("full")
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		f(tab, n, key, i)
	}
}

func BenchmarkTable(b *testing.B) {
	at := func(key []byte, i int) []byte {
		binary.BigEndian.PutUint64(key, uint64(i)*0x9e3779b97f4a7c15>>1) // in no order
		return key
	}
	b.Run("put", func(b *testing.B) {
		tab := newTable(b, 1<<20, 0.9)
		key := make([]byte, 16)
		b.ReportAllocs()
		b.ResetTimer()
		for i := range b.N {
			if !tab.Put(at(key, i), int64(i)) {
				tab.Reset(1 << 20)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		benchTable(b, 1, func(tab *Table, n int, key []byte, i int) {
			binary.BigEndian.PutUint64(key, uint64(i%n))
			tab.Put(key, int64(i))
		})
	})
	b.Run("found", func(b *testing.B) {
		benchTable(b, 1, func(tab *Table, n int, key []byte, i int) {
			binary.BigEndian.PutUint64(key, uint64(i)*0x9e3779b97f4a7c15%uint64(n))
			if tab.Newest(key) < 0 {
				b.Fatal("lost")
			}
		})
	})
	b.Run("missed", func(b *testing.B) {
		benchTable(b, 1, func(tab *Table, n int, key []byte, i int) {
			binary.BigEndian.PutUint64(key, uint64(n+i))
			if tab.Newest(key) >= 0 {
				b.Fatal("found")
			}
		})
	})
}
