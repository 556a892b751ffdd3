package batch

import (
	"bytes"
	"errors"
	"math"
	"testing"
)

// A fuzzing run that finds a crash keeps the input in testdata/fuzz; the seeds are the batches that everyone
// sends.

func FuzzWalk(f *testing.F) {
	var run []byte
	for _, c := range codecs {
		b := ourBatch(f, sampleRecords()[:3], c)
		f.Add(b)
		run = append(run, b...)
	}
	f.Add(run)
	f.Add(Marker(1, 0, true, 2, t0))
	f.Fuzz(func(t *testing.T, in []byte) {
		total := 0
		err := Walk(in, func(h Header, b []byte) error {
			if h.Size() != len(b) || len(b) < MinSize {
				t.Fatalf("batch of %d bytes with header %+v", len(b), h)
			}
			total += len(b)
			_ = VerifyCRC(b)
			_ = h.CheckClient()
			_, _ = CheckRecords(b, 1<<20, CheckOptions{RequireKey: true, MinTimestamp: 1, MaxTimestamp: math.MaxInt64})
			_, _, _ = ControlMarker(b)
			return nil
		})
		if err == nil && total != len(in) {
			t.Fatalf("walked %d of %d bytes", total, len(in))
		}
	})
}

func fuzzRecords(f *testing.F, c Codec) {
	for _, n := range []int{1, 4} {
		for _, build := range []func(testing.TB, []rec, Codec) []byte{ourBatch, kmsgBatch} {
			f.Add(build(f, sampleRecords()[:n], c)[HeaderSize:], int32(n))
		}
	}
	f.Fuzz(func(t *testing.T, section []byte, count int32) {
		const limit = 256 << 10
		b := raw(c, int(count), section)
		// The two ways to read a batch agree on whether it is sound.
		n := int32(0)
		size := 0
		var iterErr error
		deltas := true
		for r, err := range Records(b, limit) {
			if err != nil {
				iterErr = err
				break
			}
			deltas = deltas && r.OffsetDelta == n
			n++
			size += len(r.Key) + len(r.Value)
		}
		if c != None && size > limit {
			t.Fatalf("%d bytes of keys and values with a limit of %d", size, limit)
		}
		// What a Sieve makes of it does not depend on how much it holds.
		var held, not Sieve
		odd := func(_ Header, r *Record) bool { return r.OffsetDelta%2 == 1 }
		herr, nerr := held.Open(b, limit, odd), not.Open(b, 0, odd)
		if (herr == nil) != (nerr == nil) || held.Kept() != not.Kept() && herr == nil {
			t.Fatalf("held: %d, %v; not held: %d, %v", held.Kept(), herr, not.Kept(), nerr)
		}
		if herr == nil && held.Kept() > 0 {
			one, err := held.Build(None, 0)
			two, err2 := not.Build(None, 0)
			if errors.Is(err2, ErrGrown) {
				err, err2 = nil, nil
			} else if !bytes.Equal(one, two) {
				t.Fatalf("held: %x, not held: %x", one, two)
			}
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
		}
		rep, err := Inspect(b, limit, CheckOptions{})
		if (err == nil) != (iterErr == nil) {
			t.Fatalf("checked: %v, iterated: %v", err, iterErr)
		}
		if err != nil {
			return
		}
		if n != max(count, 0) {
			t.Fatalf("%d records of %d", n, count)
		}
		if deltas != (rep.Failed == 0) && len(rep.Errors) > 0 && rep.Errors[0].Code == codeInvalidRecord {
			t.Fatalf("deltas in order: %v, report %+v", deltas, rep)
		}
		// And what is sound survives another codec.
		for _, to := range codecs {
			again, err := Recompress(b, to, DefaultLevel, limit)
			if err != nil {
				t.Fatal(to, err)
			}
			plain, err := Recompress(again, None, 0, limit)
			if err != nil {
				t.Fatal(to, err)
			}
			orig, err := Recompress(b, None, 0, limit)
			if err != nil || !bytes.Equal(plain[HeaderSize:], orig[HeaderSize:]) {
				t.Fatalf("%v: the records changed (%v)", to, err)
			}
		}
	})
}

func FuzzRecordsNone(f *testing.F)   { fuzzRecords(f, None) }
func FuzzRecordsGzip(f *testing.F)   { fuzzRecords(f, Gzip) }
func FuzzRecordsSnappy(f *testing.F) { fuzzRecords(f, Snappy) }
func FuzzRecordsLZ4(f *testing.F)    { fuzzRecords(f, LZ4) }
func FuzzRecordsZstd(f *testing.F)   { fuzzRecords(f, Zstd) }

func FuzzBuilder(f *testing.F) {
	f.Add(int8(0), int64(t0), []byte("k"), []byte("v"), "h", int64(-3), true)
	f.Add(int8(4), int64(-1), []byte(nil), []byte{}, "", int64(math.MinInt64), false)
	f.Fuzz(func(t *testing.T, codec int8, ts int64, key, value []byte, hk string, step int64, null bool) {
		c := Codec(uint8(codec) % 5)
		if null {
			key = nil
		}
		want := []rec{{ts, key, value, []RecordHeader{{hk, value}, {hk, nil}}}, {ts + step, value, key, nil}, {ts, nil, nil, nil}}
		sameRecords(t, collect(t, ourBatch(t, want, c)), want, key != nil && value != nil)
	})
}
