package batch

import (
	"fmt"
	"testing"
)

func benchBatch(b *testing.B, codec Codec) []byte {
	bb := NewBuilder()
	bb.Codec = codec
	for i := range 200 {
		bb.Add(t0+int64(i), fmt.Appendf(nil, "key-%06d", i),
			fmt.Appendf(nil, `{"flight":%d,"origin":"FRA","destination":"%c%c%c","delay":%d,"distance":%d,"remark":"a sentence that most records of this kind have in common"}`,
				i, 'A'+i%7, 'A'+i%11, 'A'+i%13, i%60, i*17%5000))
	}
	p, err := bb.Build()
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func inflatedSize(b *testing.B, p []byte) int64 {
	q, err := Recompress(p, None, 0, 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	return int64(len(q))
}

func BenchmarkHeaderAndCRC(b *testing.B) {
	p := benchBatch(b, None)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		h, err := ParseHeader(p)
		if err != nil || h.CheckClient() != nil || VerifyCRC(p) != nil {
			b.Fatal("unsound")
		}
		SetBaseOffset(p, 1)
	}
}

func eachCodec(b *testing.B, f func(b *testing.B, p []byte)) {
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			p := benchBatch(b, c)
			b.SetBytes(inflatedSize(b, p))
			b.ReportAllocs()
			f(b, p)
		})
	}
}

func BenchmarkCheckRecords(b *testing.B) {
	eachCodec(b, func(b *testing.B, p []byte) {
		for b.Loop() {
			if _, err := CheckRecords(p, 1<<20, CheckOptions{RequireKey: true, MinTimestamp: 1, MaxTimestamp: 1 << 62}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRecords(b *testing.B) {
	eachCodec(b, func(b *testing.B, p []byte) {
		for b.Loop() {
			for _, err := range Records(p, 1<<20) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkDeflate(b *testing.B) {
	plain := benchBatch(b, None)
	for _, c := range codecs[1:] {
		b.Run(c.String(), func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Recompress(plain, c, DefaultLevel, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
