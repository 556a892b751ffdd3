package broker

import (
	"context"
	"fmt"
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

func (l reclaimedLog) MaxTimestamp(_ wal.PartitionID, from, upTo int64) (ts, base int64, found bool) {
	x := l.x
	x.move()
	for o := max(from, x.start); o < upTo; o++ {
		if h, _ := batch.ParseHeader(x.batches[o]); !found || h.MaxTimestamp > ts {
			ts, base, found = h.MaxTimestamp, o, true
		}
	}
	return ts, base, found
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

func (t reclaimedTier) State([16]byte, int32) (tiering.State, bool) {
	s := tiering.State{RemoteEnd: t.x.start, MaxTimestamp: -1}
	for _, b := range t.x.batches[:t.x.start] {
		h, _ := batch.ParseHeader(b)
		s.MaxTimestamp = max(s.MaxTimestamp, h.MaxTimestamp)
	}
	return s, true
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
