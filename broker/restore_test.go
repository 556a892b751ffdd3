package broker

import (
	"context"
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
