package broker

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/varve/varve/config"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

type keptLog struct {
	Log
	batches [][]byte
}

func (l keptLog) Read(_ wal.PartitionID, from int64, _ int, _ int64) (wal.Run, error) {
	next := int64(len(l.batches))
	return wal.Run{Chunks: l.batches[from:], Base: from, Next: next}, nil
}

type keptTier struct {
	deafTier
	whole    *producer.State // of the remote part
	snapshot []byte
	end      int64
}

func (t keptTier) Tail(context.Context, [16]byte, int32) (lineage.Lineage, []byte, int64, error) {
	return nil, t.snapshot, t.end, nil
}

func (t keptTier) Aborted(_ context.Context, _ [16]byte, _ int32, from, to, _ int64) ([]producer.Aborted, error) {
	return t.whole.Aborted(from, to), nil
}

// A log whose own snapshot is older than what it still has begins with that of
// the newest object, which leaves out what was aborted below: readers of the log
// must still be told.
func TestRestoreFromAnObject(t *testing.T) {
	var batches [][]byte
	add := func(raw []byte) {
		batch.SetBaseOffset(raw, int64(len(batches)))
		batches = append(batches, raw)
	}
	data := func(id int64, seq int32) {
		b := batch.NewBuilder()
		b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = id, 0, seq, true
		b.Add(1, nil, nil)
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		add(raw)
	}
	data(1, 0)                           // 0
	data(2, 0)                           // 1
	add(batch.Marker(2, 0, false, 0, 1)) // 2
	data(3, 0)                           // 3
	data(2, 1)                           // 4
	add(batch.Marker(2, 0, false, 0, 1)) // 5
	const end = 6                        // of the newest object
	add(batch.Marker(3, 0, false, 0, 1)) // 6
	data(2, 2)                           // 7
	whole := producer.New()
	for _, raw := range batches[:end] {
		if err := whole.ApplyRun(raw); err != nil {
			t.Fatal(err)
		}
	}
	cut := whole.Clone()
	cut.TrimAborted(end)

	b := &Broker{log_: keptLog{batches: batches}, tier: keptTier{whole: whole, snapshot: cut.Encode(end), end: end}}
	b.cfg.Store(&config.BrokerConfig{MaxProducersPerPartition: 100})
	r := &replica{b: b}
	st, err := r.restore(context.Background(), &wal.Recovered{Start: 3, End: int64(len(batches)), HighWatermark: 8}, tiering.State{RemoteEnd: end})
	if err != nil {
		t.Fatal(err)
	}
	all := whole.Clone()
	for _, raw := range batches[end:] {
		if err := all.ApplyRun(raw); err != nil {
			t.Fatal(err)
		}
	}
	for from := int64(3); from < 8; from++ {
		for to := from + 1; to <= 8; to++ {
			if got, want := st.Producers().Aborted(from, to), all.Aborted(from, to); !slices.Equal(got, want) {
				t.Errorf("aborted in [%d, %d): %v, expected %v", from, to, got, want)
			}
		}
	}
	if got, want := st.Producers().Open(), all.Open(); !slices.Equal(got, want) {
		t.Errorf("open: %v, expected %v", got, want)
	}
}

// cutLog is a local log from start on, with its own newest snapshot.
type cutLog struct {
	keptLog
	start    int64
	snapshot []byte
	at       int64
}

func (l cutLog) Bounds(wal.PartitionID) (start, end int64) { return l.start, int64(len(l.batches)) }

func (l cutLog) ProducerSnapshot(wal.PartitionID) ([]byte, int64, error) {
	return l.snapshot, l.at, nil
}

func (l cutLog) Read(_ wal.PartitionID, from int64, _ int, upTo int64) (wal.Run, error) {
	return wal.Run{Chunks: l.batches[from:upTo], Base: from, Next: upTo}, nil
}

type cutTier struct {
	keptTier
	asked *int
}

func (t cutTier) Peek(context.Context, [16]byte, int32) (tiering.State, error) {
	*t.asked++
	return tiering.State{RemoteEnd: t.end}, nil
}

// Where a log is cut, the producers are known from the log itself, if it goes back
// far enough or has a snapshot of below; only else the bucket is asked, and where it
// knows no more either, that is said.
func TestProducersOfACut(t *testing.T) {
	var batches [][]byte
	for i := range int64(10) {
		b := batch.NewBuilder()
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = i%3, 0, int32(i/3)
		b.Add(1, nil, nil)
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		batch.SetBaseOffset(raw, i)
		batches = append(batches, raw)
	}
	at := func(end int64) *producer.State {
		s := producer.New()
		for _, raw := range batches[:end] {
			if err := s.ApplyRun(raw); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	const cut = 7
	for _, c := range []struct {
		name                  string
		start, snapshot, objs int64 // no snapshot or object: -1
		asked                 int
		fails                 error
	}{
		{"the whole log is here", 0, -1, -1, 0, nil},
		{"a snapshot below", 3, 5, 6, 0, nil},
		{"a snapshot at the cut", 3, cut, 6, 0, nil},
		{"a snapshot above, all records", 0, 9, 6, 0, nil},
		{"a snapshot above", 3, 9, 6, 1, nil},
		{"a snapshot of what is not here", 3, 2, 6, 1, nil},
		{"objects beyond the cut", 3, 9, 8, 1, errNotHere},
	} {
		asked := 0
		log := cutLog{keptLog: keptLog{batches: batches}, start: c.start}
		if c.snapshot >= 0 {
			log.snapshot, log.at = at(c.snapshot).Encode(c.snapshot), c.snapshot
		}
		tier := cutTier{asked: &asked}
		if c.objs >= 0 {
			tier.keptTier = keptTier{whole: at(c.objs), snapshot: at(c.objs).Encode(c.objs), end: c.objs}
		}
		b := &Broker{log_: log, tier: tier}
		b.cfg.Store(&config.BrokerConfig{MaxProducersPerPartition: 100})
		got, err := (&replica{b: b}).producersAt(t.Context(), cut)
		if !errors.Is(err, c.fails) || asked != c.asked {
			t.Errorf("%s: %v; the bucket was asked %d times", c.name, err, asked)
		}
		if c.fails == nil && !slices.Equal(got.Encode(cut), at(cut).Encode(cut)) {
			t.Errorf("%s: another state", c.name)
		}
	}
}
