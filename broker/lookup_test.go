package broker

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
)

// reclaimed is a partition of which the log gives back all but the last batch
// while a lookup by time is under way: until then the log has everything, then
// the bucket has what is below.
type reclaimed struct {
	batches [][]byte // one record each, at offsets 0, 1, ...
	start   int64    // of the log
	moves   int      // how often it still moves, by one batch
}

type reclaimedLog struct {
	Log
	x *reclaimed
}

type reclaimedTier struct {
	Tier
	x *reclaimed
}

func (x *reclaimed) move() {
	if x.moves > 0 {
		x.moves, x.start = x.moves-1, x.start+1
	}
}

func (x *reclaimed) since(ts, from, to int64) int64 {
	for o := from; o < to; o++ {
		if h, _ := batch.ParseHeader(x.batches[o]); h.MaxTimestamp >= ts {
			return o
		}
	}
	return -1
}

func (l reclaimedLog) Find(_ wal.PartitionID, ts, from, upTo int64) (int64, bool, error) {
	x := l.x
	x.move()
	o := x.since(ts, max(from, x.start), upTo)
	return o, o >= 0, nil
}

func (l reclaimedLog) MaxTimestamp(_ wal.PartitionID, from, upTo int64) (ts, base int64, found bool, err error) {
	x := l.x
	x.move()
	for o := max(from, x.start); o < upTo; o++ {
		if h, _ := batch.ParseHeader(x.batches[o]); !found || h.MaxTimestamp > ts {
			ts, base, found = h.MaxTimestamp, o, true
		}
	}
	return ts, base, found, nil
}

func (x *reclaimed) run(o int64) ([][]byte, int64) { return [][]byte{x.batches[o]}, o + 1 }

func (l reclaimedLog) Bounds(wal.PartitionID) (int64, int64) {
	return l.x.start, int64(len(l.x.batches))
}

func (l reclaimedLog) Read(_ wal.PartitionID, o int64, _ int, _ int64) (wal.Run, error) {
	if o < l.x.start {
		return wal.Run{}, fmt.Errorf("%w: %d", wal.ErrOutOfRange, o)
	}
	chunks, next := l.x.run(o)
	return wal.Run{Chunks: chunks, Base: o, Next: next, Bytes: len(chunks[0])}, nil
}

func (t reclaimedTier) FindTimestamp(_ context.Context, _ [16]byte, _ int32, ts int64) (tiering.Run, bool, error) {
	o := t.x.since(ts, 0, t.x.start)
	if o < 0 {
		return tiering.Run{Release: func() {}}, false, nil
	}
	chunks, next := t.x.run(o)
	return tiering.Run{Chunks: chunks, Base: o, Next: next, Release: func() {}}, true, nil
}

func (t reclaimedTier) MaxTimestamp(_ context.Context, _ [16]byte, _ int32, from, to, floor int64) (offset, timestamp int64, ok bool, err error) {
	if to > t.x.start {
		return 0, 0, false, fmt.Errorf("[%d, %d) is not in the bucket, which ends at %d", from, to, t.x.start)
	}
	offset, timestamp, ok = largest(t.x.batches, from, to)
	return offset, timestamp, ok && timestamp >= floor, nil
}

// largest is the first record with the largest timestamp in the offsets [from, to) of some batches, looked for in the plainest way.
func largest(batches [][]byte, from, to int64) (offset, timestamp int64, ok bool) {
	for _, b := range batches {
		h, _ := batch.ParseHeader(b)
		for rec, err := range batch.Records(b, 1<<20) {
			o, ts := h.BaseOffset+int64(rec.OffsetDelta), h.Timestamp(rec)
			if err == nil && o >= from && o < to && ts >= 0 && (!ok || ts > timestamp) {
				offset, timestamp, ok = o, ts, true
			}
		}
	}
	return offset, timestamp, ok
}

// What a lookup by time finds does not depend on where the records are, also
// while they leave the local log under it.
func TestLookupsWhileTheLogIsReclaimed(t *testing.T) {
	stamps := []int64{10, 50, 20, 60, 30, 40}
	for moves := range len(stamps) {
		fresh := func() *replica {
			x := &reclaimed{moves: moves}
			for o, ts := range stamps {
				b := batch.NewBuilder()
				b.BaseOffset = int64(o)
				b.Add(ts, nil, []byte("v"))
				one, err := b.Build()
				if err != nil {
					t.Fatal(err)
				}
				x.batches = append(x.batches, one)
			}
			r := &replica{b: &Broker{log_: reclaimedLog{x: x}, tier: reclaimedTier{x: x}, opening: newOpening(1 << 20)}}
			r.pid.Store(1)
			return r
		}
		end := int64(len(stamps))
		v := partition.View{Role: partition.Leader, LogEnd: end, HighWatermark: end}
		for _, c := range []struct{ ts, offset int64 }{{0, 0}, {10, 0}, {11, 1}, {45, 1}, {55, 3}} {
			if o, _, ok, err := fresh().findTimestamp(context.Background(), v, end, c.ts); !ok || err != nil || o != c.offset {
				t.Errorf("%d moves, since %d: offset %d, %v, %v; expected %d", moves, c.ts, o, ok, err, c.offset)
			}
		}
		if o, _, ok, err := fresh().findTimestamp(context.Background(), v, end, 61); ok || err != nil {
			t.Errorf("%d moves, since 61: offset %d, %v", moves, o, err)
		}
		if o, ts, ok, err := fresh().maxTimestamp(context.Background(), v, end); !ok || err != nil || o != 3 || ts != 60 {
			t.Errorf("%d moves, the largest: %d at offset %d, %v, %v", moves, ts, o, ok, err)
		}
	}
}

// laidOut is a partition with batches of several records: the log has them from local on, the bucket those below.
type laidOut struct {
	batches [][]byte
	local   int64
	asked   int // how often the bucket was
}

type laidOutLog struct {
	Log
	x *laidOut
}

type laidOutTier struct {
	Tier
	x *laidOut
}

func (l laidOutLog) Bounds(wal.PartitionID) (int64, int64) { return l.x.local, math.MaxInt64 }

// headers calls f with the batches of the log that end in (from, upTo].
func (l laidOutLog) headers(from, upTo int64, f func(h batch.Header, b []byte)) {
	for _, b := range l.x.batches {
		if h, _ := batch.ParseHeader(b); h.BaseOffset >= l.x.local && h.LastOffset() >= from && h.LastOffset() < upTo {
			f(h, b)
		}
	}
}

func (l laidOutLog) MaxTimestamp(_ wal.PartitionID, from, upTo int64) (ts, base int64, found bool, err error) {
	l.headers(from, upTo, func(h batch.Header, _ []byte) {
		if !found || h.MaxTimestamp > ts {
			ts, base, found = h.MaxTimestamp, h.BaseOffset, true
		}
	})
	return ts, base, found, nil
}

func (l laidOutLog) Read(_ wal.PartitionID, o int64, _ int, upTo int64) (run wal.Run, err error) {
	err = fmt.Errorf("%w: %d", wal.ErrOutOfRange, o)
	l.headers(o, upTo, func(h batch.Header, b []byte) {
		if err != nil {
			run, err = wal.Run{Chunks: [][]byte{b}, Base: h.BaseOffset, Next: h.NextOffset(), Bytes: len(b)}, nil
		}
	})
	return run, err
}

func (t laidOutTier) MaxTimestamp(_ context.Context, _ [16]byte, _ int32, from, to, floor int64) (offset, timestamp int64, ok bool, err error) {
	if t.x.asked++; from >= to || to > t.x.local {
		return 0, 0, false, fmt.Errorf("[%d, %d) is not in the bucket, which ends at %d", from, to, t.x.local)
	}
	offset, timestamp, ok = largest(t.x.batches, from, to)
	return offset, timestamp, ok && timestamp >= floor, nil
}

// The largest timestamp is that of the records between log start and bound, wherever in a batch the log start lies and
// whatever the log and the bucket have of them.
func TestMaxTimestampOfWhatIsThere(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		x := &laidOut{}
		ends := []int64{0}
		for range 6 {
			b := batch.NewBuilder()
			b.BaseOffset = ends[len(ends)-1]
			n := 1 + rnd.Int64N(3)
			for range n {
				b.Add(rnd.Int64N(12)-1, nil, []byte("v")) // some have none, some are equal
			}
			one, err := b.Build()
			if err != nil {
				t.Fatal(err)
			}
			x.batches, ends = append(x.batches, one), append(ends, b.BaseOffset+n)
		}
		r := &replica{b: &Broker{log_: laidOutLog{x: x}, tier: laidOutTier{x: x}, opening: newOpening(1 << 20)}}
		r.pid.Store(1)
		end := ends[len(ends)-1]
		for _, local := range ends {
			for start := range end + 1 {
				for _, bound := range ends {
					x.local, x.asked = local, 0
					v := partition.View{Role: partition.Leader, LogStart: start, LogEnd: end, HighWatermark: end}
					wantOffset, wantTs, want := largest(x.batches, start, bound)
					o, ts, ok, err := r.maxTimestamp(context.Background(), v, bound)
					if err != nil || ok != want || ok && (o != wantOffset || ts != wantTs) {
						t.Fatalf("seed %d, from %d below %d, the log begins at %d: %d at offset %d, %v, %v; expected %d at %d, %v",
							seed, start, bound, local, ts, o, ok, err, wantTs, wantOffset, want)
					}
					if x.asked > 0 && start >= local {
						t.Fatalf("the bucket was asked, though the log has everything from the log start %d on", start)
					}
				}
			}
		}
	}
}
