package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/vfs"
)

// headTier is a remote part that has a manifest head, or none that can be read.
type headTier struct {
	deafTier
	state tiering.State
	lin   lineage.Lineage // of the newest object
	err   error           // of whoever looks before it leads
	away  *bool           // the bucket: no object can be read; nil: it is there
}

func (t headTier) Peek(context.Context, [16]byte, int32) (tiering.State, error) {
	return t.state, t.err
}

func (t headTier) Lead(context.Context, tiering.Replica) (tiering.State, error) { return t.state, nil }

func (t headTier) Tail(context.Context, [16]byte, int32) (lineage.Lineage, []byte, int64, error) {
	if t.away != nil && *t.away {
		return nil, nil, 0, errors.New("away")
	}
	return t.lin, nil, t.state.RemoteEnd, nil
}

// shownMetadata shows one partition.
type shownMetadata struct {
	Metadata
	im *image.Image
}

func (m shownMetadata) Image() *image.Image { return m.im }

func showing(id [16]byte, p image.Partition) shownMetadata {
	return shownMetadata{im: image.Empty().Apply(image.Delta{Revision: 1, Changes: []image.Change{
		image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id}, State: p}, image.SetTopic{ID: id, Name: "t", Partitions: 1},
	}})}
}

// uncleanly is a replica on broker 1 that is elected in epoch 9, with no other in sync.
func uncleanly(t *testing.T, log Log, tier Tier) *replica {
	events := &Events{}
	events.fill()
	id := [16]byte{1}
	b := &Broker{opts: Options{BrokerID: 1}, log_: log, tier: tier, ev: events, log: slog.New(slog.DiscardHandler), sessions: newSessions(1, 1<<20), ctx: t.Context(),
		failures: newFailures(),
		meta:     showing(id, image.Partition{Leader: 1, LeaderEpoch: 9, Replicas: []int32{1, 2}, ISR: []int32{1}, Recovering: true})}
	b.cfg.Store(&config.BrokerConfig{MaxProducersPerPartition: 100})
	r := &replica{b: b, topicID: id, topic: "t", working: make(chan struct{}, 1), watches: map[*watch]struct{}{},
		term: partition.Term{Epoch: 9, Replicas: []int32{1, 2}, ISR: []int32{1}, MinISR: 1}}
	r.view.Store(&partition.View{Epoch: -1})
	return r
}

// put appends one batch of n records, which is durable then, and returns it.
func put(t *testing.T, l *wal.Log, id wal.PartitionID, epoch int32, base, n int64) []byte {
	t.Helper()
	b := batch.NewBuilder()
	for i := range n {
		b.Add(1, nil, []byte{byte(base + i)})
	}
	run, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	batch.SetBaseOffset(run, base)
	batch.SetLeaderEpoch(run, epoch)
	if err := l.Reserve(t.Context(), wal.ClassClient, int64(len(run))); err != nil {
		t.Fatal(err)
	}
	durable := make(chan error)
	l.Append(&wal.Append{Partition: id, LeaderEpoch: epoch, BaseOffset: base, LastOffset: base + n - 1, Run: run, Done: func(err error) { durable <- err }})
	if err := <-durable; err != nil {
		t.Fatal(err)
	}
	return run
}

// damagedLog is the disk of a log that held [0, 6) of a partition of topic 1 in epoch 3, in three blocks, of which that with [2, 4) is damaged.
func damagedLog(t *testing.T) (*vfs.Mem, wal.Options) {
	t.Helper()
	fs := vfs.NewMem()
	o := wal.Options{FS: fs, Dir: "wal", ClusterID: "c", SegmentBytes: 1 << 20, MaxBytes: 16 << 20, Logger: slog.New(slog.DiscardHandler)}
	l, err := wal.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	id := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	l.Epoch(id, 3, 0, nil)
	var runs [][]byte
	for base := int64(0); base < 6; base += 2 {
		runs = append(runs, put(t, l, id, 3, base, 2))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("wal")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		image := fs.Bytes("wal/" + name)
		if at := bytes.Index(image, runs[1]); at >= 0 {
			image[at+len(runs[1])-1] ^= 1
			fs.Put("wal/"+name, image)
			return fs, o
		}
	}
	t.Fatal("the second block is in no file")
	return nil, o
}

// What a replica says that it has is what it would lead with, and it is damaged if it could not lead: what is damaged may be in the bucket.
func TestToldIsWhatWouldLead(t *testing.T) {
	disk, o := damagedLog(t)
	for _, c := range []struct {
		name      string
		remoteEnd int64
		away      bool // nobody can say what the remote end is
		accepts   bool
		damaged   bool
		end       int64 // told
		leads     int64 // from where it leads; -1: it refuses
	}{
		{name: "nothing in the bucket", damaged: true, end: 2, leads: -1},
		{name: "the damage is in the bucket in part", remoteEnd: 3, damaged: true, end: 2, leads: -1},
		{name: "the damage is in the bucket", remoteEnd: 4, end: 6, leads: 6},
		{name: "and some of what is above", remoteEnd: 6, end: 2, leads: 6},
		{name: "and more than was here", remoteEnd: 8, end: 2, leads: 8},
		{name: "the bucket is not known", remoteEnd: 4, away: true, damaged: true, end: 2, leads: 6},
		{name: "the loss is accepted", remoteEnd: 1, accepts: true, end: 2, leads: 2},
		{name: "the loss is accepted where there is none", remoteEnd: 4, accepts: true, end: 6, leads: 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := o
			o.FS = disk.Clone()
			l, err := wal.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			tier := headTier{state: tiering.State{RemoteEnd: c.remoteEnd, LeaderEpoch: 3}, lin: lineage.Lineage{{Epoch: 3, Start: 0}}}
			if c.away {
				tier.err = errors.New("away")
			}
			r := uncleanly(t, l, tier)
			r.b.opts.AcceptCorruptLog = c.accepts
			r.recov = &l.Partitions()[0]
			r.pid.Store(uint64(r.recov.ID))
			if r.recov.End != 2 || r.recov.ClaimedEnd != 6 || !r.recov.Suspect {
				t.Fatalf("found: %+v", r.recov)
			}
			for range 2 { // the second tells what the first has changed
				told := r.held(t.Context())
				if told.Damaged != c.damaged || told.LogEnd != c.end || told.LeaderEpoch != 3 || !told.Told {
					t.Errorf("told: %+v", told)
				}
			}
			if start, end := l.Bounds(r.localID()); start != 0 || end != 2 {
				t.Errorf("asked, the log is [%d, %d)", start, end)
			}
			tier.err = nil
			r.b.tier = tier
			err = r.tryLead(t.Context())
			switch {
			case c.leads < 0:
				if !errors.Is(err, errSuspect) {
					t.Errorf("leads: %v", err)
				}
			case err != nil:
				t.Error(err)
			case r.view.Load().LogEnd != c.leads:
				t.Errorf("leads from %d on", r.view.Load().LogEnd)
			}
		})
	}
}

// A replica that has given up its log itself, for the bucket has all of it, does not take it for lost when the bucket is away for a moment then.
func TestGivenUpIsNotLost(t *testing.T) {
	disk, o := damagedLog(t)
	o.FS = disk.Clone()
	l, err := wal.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	away := true
	for _, found := range []bool{true, false} { // at start, or it has followed with it
		away = true
		r := uncleanly(t, l, headTier{state: tiering.State{RemoteEnd: 8, LeaderEpoch: 3}, lin: lineage.Lineage{{Epoch: 3, Start: 0}}, away: &away})
		if found {
			r.recov = &l.Partitions()[0]
			r.pid.Store(uint64(r.recov.ID))
		} else {
			r.st = partition.New(1, partition.Recovered{LogEnd: 6, HighWatermark: 6, Lineage: lineage.Lineage{{Epoch: 3, Start: 0}}})
			r.pid.Store(uint64(l.Create([16]byte{1}, 0, 6, nil, nil, nil)))
			r.view.Store(&partition.View{Role: partition.Leader, Epoch: 4, LogEnd: 6, HighWatermark: 6}) // it has led
		}
		givenUp(t, r, &away)
	}
}

func givenUp(t *testing.T, r *replica, away *bool) {
	t.Helper()
	for range 2 {
		if err := r.tryLead(t.Context()); err == nil || errors.Is(err, errSuspect) {
			t.Errorf("while the bucket is away: %v", err)
		}
		if told := r.held(t.Context()); told.Damaged || told.LogEnd != -1 {
			t.Errorf("told: %+v", told)
		}
		if v := r.view.Load(); v.Role != partition.Offline {
			t.Errorf("shown to readers: %+v", v)
		}
	}
	*away = false
	if err := r.tryLead(t.Context()); err != nil || r.view.Load().LogEnd != 8 {
		t.Errorf("leads from %d on: %v", r.view.Load().LogEnd, err)
	}
}

// A damaged log that has nothing of a partition may have lost it, if the partition has been led before.
func TestToldWithoutALog(t *testing.T) {
	disk, o := damagedLog(t)
	for _, c := range []struct {
		name             string
		epoch            int32
		whole            bool // the log
		accepts, damaged bool
	}{
		{name: "led before", epoch: 1, damaged: true},
		{name: "never led", epoch: 0},
		{name: "led before, with a log that is whole", epoch: 1, whole: true},
		{name: "led before, and the loss is accepted", epoch: 1, accepts: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := o
			o.FS = disk.Clone()
			if c.whole {
				o.FS = vfs.NewMem()
			}
			l, err := wal.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if l.Damaged() == c.whole {
				t.Fatalf("log damaged: %t", l.Damaged())
			}
			r := uncleanly(t, l, headTier{})
			r.b.opts.AcceptCorruptLog = c.accepts
			r.topicID = [16]byte{2} // of which the log knows nothing
			r.b.meta = showing(r.topicID, image.Partition{Leader: image.NoLeader, LeaderEpoch: c.epoch, Replicas: []int32{1, 2}})
			r.term.Epoch = c.epoch
			if told := r.held(t.Context()); told.Damaged != c.damaged || told.LogEnd != -1 || !told.Told {
				t.Errorf("told: %+v", told)
			}
			if err := r.tryLead(t.Context()); errors.Is(err, errSuspect) != c.damaged {
				t.Errorf("leads: %v", err)
			}
		})
	}
}

// beganAt is a log, opened again, that has [start, end) of a partition of topic 1, all of one epoch, and knows of none before.
func beganAt(t *testing.T, epoch int32, start, end int64) *wal.Log {
	t.Helper()
	o := wal.Options{FS: vfs.NewMem(), Dir: "wal", ClusterID: "c", SegmentBytes: 1 << 20, MaxBytes: 16 << 20, Logger: slog.New(slog.DiscardHandler)}
	l, err := wal.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	id := l.Create([16]byte{1}, 0, start, nil, nil, nil)
	l.Epoch(id, epoch, start, nil)
	for at := start; at < end; at++ {
		put(t, l, id, epoch, at, 1)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = wal.Open(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A log that begins where the bucket ends, or behind what was deleted, says nothing of what the bucket has. It is all that there is of its
// records: it goes on unless it cannot be of the bucket's history, or would leave a hole.
func TestLeadsBehindTheBucket(t *testing.T) {
	for _, c := range []struct {
		name                string
		epoch               int32 // of the local log
		start               int64 // where it begins; it ends at 14
		logStart, remoteEnd int64
		keeps               bool
	}{
		{"at the remote end, in a later epoch", 3, 10, 10, 10, true},
		{"at the remote end, in the same epoch", 2, 10, 10, 10, true},
		{"at the remote end, in an older epoch", 1, 10, 10, 10, false},
		{"behind deleted records", 3, 12, 12, 10, true},
		{"behind deleted records, of which it still has one", 3, 12, 13, 10, true},
		{"behind deleted records, in an older epoch", 1, 12, 12, 10, false},
		{"behind a hole", 3, 12, 10, 10, false},
		{"behind a hole, and behind deleted records", 3, 12, 11, 10, false},
		{"below the remote end, of the same history", 2, 8, 0, 10, true},
		{"below the remote end, of another history", 3, 8, 0, 10, false},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %t", c.name, restarted), func(t *testing.T) {
				l := beganAt(t, c.epoch, c.start, 14)
				rec := &l.Partitions()[0]
				if lin := (lineage.Lineage{{Epoch: c.epoch, Start: c.start}}); rec.Start != c.start || rec.End != 14 || !rec.Lineage.Equal(lin) {
					t.Fatalf("found: %+v", rec)
				}
				// Somebody led in epoch 5 and has changed the head, without an object.
				r := uncleanly(t, l, headTier{lin: lineage.Lineage{{Epoch: 2, Start: 0}},
					state: tiering.State{LogStart: c.logStart, RemoteEnd: c.remoteEnd, LeaderEpoch: 5}})
				r.pid.Store(uint64(rec.ID))
				if restarted {
					r.recov = rec
				} else {
					r.st = partition.New(1, partition.Recovered{LogStart: c.logStart, LogEnd: 14, HighWatermark: c.start, Lineage: rec.Lineage})
				}
				if err := r.tryLead(t.Context()); err != nil {
					t.Fatal(err)
				}
				least := max(c.logStart, c.remoteEnd)
				start, end := l.Bounds(r.localID())
				if v := r.view.Load(); v.LogEnd != end || start > least || v.LogStart != c.logStart {
					t.Errorf("the local log is [%d, %d), the bucket ends at %d: %+v", start, end, c.remoteEnd, v)
				}
				if kept := r.localID() == rec.ID; kept != c.keeps || kept && end != 14 || !kept && end != least {
					t.Errorf("kept: %t; it ends at %d", kept, end)
				}
			})
		}
	}
}
