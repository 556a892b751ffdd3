package cleaner

import (
	"fmt"
	"testing"

	"github.com/varve/varve/wal/batch"
)

// benchLog is a log of 64 batches of 100 records of about 150 bytes. Every key comes as often as repeats says.
func benchLog(b *testing.B, codec batch.Codec, repeats int) (log [][]byte, size int64) {
	next := int64(0)
	for i := range 64 {
		bb := batch.NewBuilder()
		bb.BaseOffset, bb.Codec = next, codec
		for j := range 100 {
			bb.Add(1_700_000_000_000+next, fmt.Appendf(nil, "key-%08d", (i*100+j)%(6400/repeats)),
				fmt.Appendf(nil, `{"id":%d,"origin":"FRA","destination":"%c%c%c","remark":"a sentence that most records of this kind have in common"}`, next, 'A'+j%7, 'A'+j%11, 'A'+j%13))
			next++
		}
		size += int64(bb.Size())
		p, err := bb.Build()
		if err != nil {
			b.Fatal(err)
		}
		log = append(log, p)
	}
	return log, size
}

// BenchmarkScan is per inflated byte of the log.
func BenchmarkScan(b *testing.B) {
	for c := batch.None; c <= batch.Zstd; c++ {
		b.Run(c.String(), func(b *testing.B) {
			log, size := benchLog(b, c, 2)
			tab := newTable(b, 10_000, 0.9)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				tab.Reset(6400)
				scanAll(b, NewRound(Options{End: 1 << 40, Codec: KeepCodec, Window: 1 << 20}, tab), log)
			}
		})
	}
}

func scanAll(b *testing.B, r *Round, log [][]byte) {
	for _, p := range log {
		h, _ := batch.ParseHeader(p)
		if _, err := r.Scan(h, p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFilter is per inflated byte of the log: half of the records go, or none, which costs no deflating.
func BenchmarkFilter(b *testing.B) {
	for c := batch.None; c <= batch.Zstd; c++ {
		for _, repeats := range []int{1, 2} {
			b.Run(fmt.Sprintf("%v/%d%%", c, 100-100/repeats), func(b *testing.B) {
				log, size := benchLog(b, c, repeats)
				// Each second record of a batch is hidden, so that all batches are made anew.
				if repeats == 2 {
					half, _ := benchLog(b, c, 1)
					log = half
				}
				tab := newTable(b, 10_000, 0.9)
				r := NewRound(Options{End: 1 << 40, Codec: KeepCodec, Window: 1 << 20}, tab)
				scanAll(b, r, log)
				if repeats == 2 {
					for i := 0; i < 6400; i += 2 {
						tab.Put(fmt.Appendf(nil, "key-%08d", i), 1<<39)
					}
				}
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					r.next = 0
					for _, p := range log {
						h, _ := batch.ParseHeader(p)
						out, err := r.Filter(h, p, false)
						if err != nil || out == nil {
							b.Fatal(err)
						}
					}
				}
				if s := r.Cut(); s.RecordsIn != s.Records*int64(repeats) {
					b.Fatalf("%+v", s)
				}
			})
		}
	}
}
