package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

// A log start may pass the remote end: records were deleted before the bucket had them.

// begunLog keeps what the last local log was begun with.
type begunLog struct {
	keptLog
	starts   []int64 // by id, which count from 1
	start    int64
	lin      lineage.Lineage
	snapshot []byte
	dropped  []wal.PartitionID
	appended []*wal.Append
}

func (l *begunLog) Damaged() bool                                    { return false }
func (l *begunLog) AdmitPartition(lineage.Lineage) error             { return nil }
func (l *begunLog) HighWatermark(wal.PartitionID, int64)             {}
func (l *begunLog) SetReclaimable(wal.PartitionID, int64)            {}
func (l *begunLog) Drop(id wal.PartitionID, _ func(error))           { l.dropped = append(l.dropped, id) }
func (l *begunLog) Epoch(wal.PartitionID, int32, int64, func(error)) {}

func (l *begunLog) Reserve(context.Context, wal.Class, int64) error      { return nil }
func (l *begunLog) ReserveAll(context.Context, wal.Class, []int64) error { return nil }
func (l *begunLog) Unreserve(int64)                                      {}
func (l *begunLog) Append(a *wal.Append)                                 { l.appended = append(l.appended, a) }

// Bounds are those of what was appended behind where it was begun.
func (l *begunLog) Bounds(id wal.PartitionID) (start, end int64) {
	start = l.starts[id-1]
	end = start
	for _, a := range l.appended {
		if a.Partition == id {
			end = a.LastOffset + 1
		}
	}
	return start, end
}

func (l *begunLog) Create(_ [16]byte, _ int32, start int64, lin lineage.Lineage, snapshot []byte, _ func(error)) wal.PartitionID {
	l.start, l.lin, l.snapshot = start, lin, snapshot
	l.starts = append(l.starts, start)
	return wal.PartitionID(len(l.starts))
}

// passedTier is a remote part with a log start somewhere.
type passedTier struct {
	keptTier
	lin   lineage.Lineage
	state tiering.State
}

func (t passedTier) Tail(context.Context, [16]byte, int32) (lineage.Lineage, []byte, int64, error) {
	return t.lin, t.snapshot, t.end, nil
}

func (t passedTier) Lead(context.Context, tiering.Replica) (tiering.State, error) {
	return t.state, nil
}

// emptyMetadata knows of no partition.
type emptyMetadata struct{ Metadata }

func (emptyMetadata) Image() *image.Image { return image.Empty() }

// passed is a partition of which objects have [0, 3): a transaction of producer 2 is open there, which ends at 4, and producer
// 1 goes on at 5.
func passed(t *testing.T, logStart int64) (*replica, *begunLog) {
	log := &begunLog{}
	add := func(raw []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		batch.SetBaseOffset(raw, int64(len(log.batches)))
		log.batches = append(log.batches, raw)
	}
	data := func(id int64, seq int32, txn bool) ([]byte, error) {
		b := batch.NewBuilder()
		b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = id, 0, seq, txn
		b.Add(1, nil, nil)
		return b.Build()
	}
	add(data(1, 0, false))
	add(data(2, 0, true))
	add(data(1, 1, false))
	add(data(1, 2, false))
	add(batch.Marker(2, 0, true, 0, 1), nil)
	add(data(1, 3, false))
	const end = 3
	whole := producer.New()
	for _, raw := range log.batches[:end] {
		if err := whole.ApplyRun(raw); err != nil {
			t.Fatal(err)
		}
	}
	tier := passedTier{
		keptTier: keptTier{whole: whole, snapshot: whole.Encode(end), end: end}, lin: lineage.Lineage{{Epoch: 1, Start: 0}},
		state: tiering.State{RemoteEnd: end, LogStart: logStart},
	}
	events := &Events{}
	events.fill()
	b := &Broker{log_: log, tier: tier, meta: emptyMetadata{}, ev: events, log: slog.New(slog.DiscardHandler), sessions: newSessions(1, 1<<20)}
	b.cfg.Store(&config.BrokerConfig{MaxProducersPerPartition: 100})
	r := &replica{b: b, topic: "t", working: make(chan struct{}, 1), watches: map[*watch]struct{}{}}
	r.view.Store(&partition.View{Epoch: -1})
	return r, log
}

// A replica that begins at a log start beyond the remote end does not hold what was known at the remote end against what comes.
func TestBeginsBehindDeletedRecords(t *testing.T) {
	for _, c := range []struct {
		logStart, begins int64
		epoch            int32
		open             int
	}{
		{0, 3, 1, 1},
		{3, 3, 1, 1},
		{5, 5, -1, 0},
	} {
		r, log := passed(t, c.logStart)
		st, _, err := r.startLocal(t.Context(), r.b.tier.(passedTier).state)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := st.Position()
		if p.Offset != c.begins || p.LastEpoch != c.epoch || log.start != c.begins || len(log.lin) > 0 != (c.epoch >= 0) {
			t.Errorf("log start %d: begins at %+v, the local log at %d with lineage %v", c.logStart, p, log.start, log.lin)
		}
		if n := len(st.Producers().Open()); n != c.open || len(log.snapshot) > 0 != (n > 0) {
			t.Errorf("log start %d: %d transactions open, snapshot of %d bytes", c.logStart, n, len(log.snapshot))
		}
		// The next batch of a producer that went on among what was deleted.
		h := batch.Header{BaseOffset: 5, LastOffsetDelta: 0, ProducerID: 1, ProducerEpoch: 0, BaseSequence: 3}
		if refused := st.Producers().Check(h, 0).Kind == producer.Refuse; refused != (c.logStart < 5) {
			t.Errorf("log start %d: sequence 3 refused: %t", c.logStart, refused)
		}
	}
}

// So does one that finds its log after a restart, when that begins behind what was deleted.
func TestRestoresBehindDeletedRecords(t *testing.T) {
	r, _ := passed(t, 5)
	for _, snapshot := range [][]byte{nil, r.b.tier.(passedTier).snapshot} {
		st, err := r.restore(t.Context(), &wal.Recovered{Start: 5, End: 6, HighWatermark: 6, Snapshot: snapshot}, r.b.tier.(passedTier).state)
		if err != nil {
			t.Fatal(err)
		}
		if open := st.Producers().Open(); len(open) > 0 {
			t.Errorf("open: %v", open)
		}
		if v := st.Producers().Check(batch.Header{BaseOffset: 6, ProducerID: 1, BaseSequence: 4}, 0); v.Kind == producer.Refuse {
			t.Errorf("the next sequence is refused: %+v", v)
		}
	}
}

// A leader that was not in sync, and whose log ends below the log start, appends from there on: not to what is deleted.
func TestLeadsFromTheLogStart(t *testing.T) {
	for _, recovered := range []bool{false, true} {
		r, log := passed(t, 5)
		r.term = partition.Term{Epoch: 2, Replicas: []int32{0, 1}, ISR: []int32{0}, MinISR: 1}
		if recovered {
			r.recov = &wal.Recovered{ID: 3, Start: 0, End: 4, HighWatermark: 3, Lineage: lineage.Lineage{{Epoch: 1, Start: 0}}}
		} else {
			r.st = partition.New(0, partition.Recovered{LogEnd: 4, HighWatermark: 3})
		}
		log.starts = []int64{0, 0, 0}
		r.pid.Store(3)
		if err := r.tryLead(t.Context()); err != nil {
			t.Fatal(err)
		}
		v := r.st.View()
		if v.LogStart != 5 || v.LogEnd != 5 || !slices.Contains(log.dropped, 3) || log.start != 5 {
			t.Errorf("found after a restart: %t: leads with log start %d, log end %d; begun at %d, dropped %v", recovered, v.LogStart, v.LogEnd, log.start, log.dropped)
		}
	}
}

// A replica that begins at a log start within a batch takes that batch whole, as the leader sends it; a log that has something
// takes none that overlaps.
func TestCopiesTheBatchThatHoldsTheLogStart(t *testing.T) {
	r, log := passed(t, 5)
	r.term = partition.Term{Epoch: 2, Replicas: []int32{0, 1}, ISR: []int32{1}, MinISR: 1}
	st, id, err := r.startLocal(t.Context(), r.b.tier.(passedTier).state)
	if err != nil {
		t.Fatal(err)
	}
	if !r.keep(t.Context(), st, id) || st.Follow(r.term) != nil {
		t.Fatal("it does not follow")
	}
	r.following = true
	b := batch.NewBuilder()
	for range 3 {
		b.Add(1, nil, nil)
	}
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	batch.SetBaseOffset(raw, 4)
	batch.SetLeaderEpoch(raw, 2)
	from, _ := st.Position()
	run := &copyRun{epoch: 2, from: from, records: raw, highWatermark: 7, logStart: 5, remoteEnd: 3}
	appended, err := r.copy(t.Context(), run, func(error) {})
	if err != nil || !appended {
		t.Fatalf("appended %t, %v", appended, err)
	}
	v := r.view.Load()
	p, _ := r.st.Position()
	if log.start != 4 || len(log.appended) != 1 || log.appended[0].BaseOffset != 4 || v.LogStart != 5 || v.LogEnd != 7 || p != (partition.Position{Offset: 7, LastEpoch: 2}) {
		t.Errorf("begun at %d, %d appends; %+v, %+v", log.start, len(log.appended), v, p)
	}

	r.durable(r.localID(), 7, nil)
	again := &copyRun{epoch: 2, from: p, records: slices.Clone(raw), highWatermark: 7, logStart: 5, remoteEnd: 3}
	batch.SetBaseOffset(again.records, 6)
	if appended, err := r.copy(t.Context(), again, func(error) {}); appended || !errors.Is(err, errCorruptCopy) {
		t.Errorf("one that overlaps: appended %t, %v", appended, err)
	}
	if log.start != 4 || len(log.appended) != 1 {
		t.Errorf("begun at %d, %d appends", log.start, len(log.appended))
	}
}
