package cleaner

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/producer"
)

// FuzzFilter gives a round whatever bytes parse as batches, with their checksums put right so that they are looked
// into. It either refuses a batch or leaves one of the same range, whose records are a part of those that came in.
func FuzzFilter(f *testing.F) {
	add := func(b []byte, err error) {
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, int64(100), int64(1), uint8(3))
	}
	build := func(c batch.Codec) *batch.Builder {
		b := batch.NewBuilder()
		b.Codec, b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = c, 1, 0, 5, true
		b.Add(10, []byte("k"), []byte("v"), batch.RecordHeader{Key: "h"})
		b.Add(20, []byte("k"), nil)
		b.AddAt(7, 5, nil, []byte("x"))
		return b
	}
	for c := batch.None; c <= batch.Zstd; c++ {
		add(build(c).Build())
	}
	add(batch.Marker(1, 0, false, 1, 10), nil)
	add(batch.Marker(1, 0, true, 1, 10), nil)
	plain, err := build(batch.None).Build()
	if err != nil {
		f.Fatal(err)
	}
	h, _ := batch.ParseHeader(plain)
	add(batch.Empty(h), nil)
	var s batch.Sieve
	if err := s.Open(plain, 1<<20, func(batch.Header, *batch.Record) bool { return true }); err != nil {
		f.Fatal(err)
	}
	horizon, err := s.BuildHorizon(batch.None, batch.DefaultLevel, 7)
	add(slices.Concat(horizon, plain), err)

	f.Fuzz(func(t *testing.T, in []byte, end, now int64, codec uint8) {
		const limit = 256 << 10
		window := limit
		if codec&64 != 0 {
			window = 0 // the smallest
		}
		o := Options{End: end, Now: now, DeleteRetention: 5, Codec: batch.Codec(codec%6) - 1, Level: batch.DefaultLevel, Window: max(window, 1),
			Aborted: []producer.Aborted{{ProducerID: 1, FirstOffset: 3, LastOffset: 9}}}
		r := NewRound(o, newTable(t, 2, 0.9))
		each := func(do func(h batch.Header, b []byte)) {
			_ = batch.Walk(slices.Clone(in), func(h batch.Header, b []byte) error {
				binary.BigEndian.PutUint32(b[17:], crc32c.Checksum(b[21:]))
				do(h, b)
				return nil
			})
		}
		each(func(h batch.Header, b []byte) { _, _ = r.Scan(h, b) })
		each(func(h batch.Header, b []byte) {
			before := bytes.Clone(b)
			out, err := r.Filter(h, b, codec&1 == 0)
			if !bytes.Equal(before, b) {
				t.Fatal("the input was written to")
			}
			if err != nil || out == nil {
				if err == nil && codec&1 == 0 {
					t.Fatal("the last batch of a section went")
				}
				return
			}
			got, err := batch.ParseHeader(out)
			if err != nil || batch.VerifyCRC(out) != nil || got.Size() != len(out) {
				t.Fatalf("%+v, %v, %v of %d bytes", got, err, batch.VerifyCRC(out), len(out))
			}
			if got.BaseOffset != h.BaseOffset || got.LastOffset() != h.LastOffset() || got.ProducerID != h.ProducerID || got.BaseSequence != h.BaseSequence ||
				got.ProducerEpoch != h.ProducerEpoch || got.RecordCount > max(h.RecordCount, 0) || got.LeaderEpoch != h.LeaderEpoch {
				t.Fatalf("%+v of %+v", got, h)
			}
			if bytes.Equal(out, b) {
				return
			}
			var left []batch.Record
			for rec, err := range batch.Records(b, limit) {
				if errors.Is(err, batch.ErrInflated) {
					return // it was not held, and cannot be here
				}
				if err != nil && got.RecordCount > 0 {
					t.Fatalf("rewritten from a batch that does not parse: %v", err)
				}
				left = append(left, rec)
			}
			for rec, err := range batch.Records(out, 2*limit) {
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(left, func(x batch.Record) bool { return x.OffsetDelta == rec.OffsetDelta })
				if i < 0 || !same(left[i].Key, rec.Key) || !same(left[i].Value, rec.Value) || len(left[i].Headers) != len(rec.Headers) ||
					h.Timestamp(left[i]) != got.Timestamp(rec) {
					t.Fatalf("record %+v is not of the batch", rec)
				}
				left = left[i+1:]
			}
		})
	})
}
