package broker

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/config"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
)

// rewrittenTier is a bucket in which everything below compacted has been compacted.
type rewrittenTier struct {
	deafTier
	log       reclaimedLog
	compacted int64
	away      *bool
	read      *[]int64 // offsets that the bucket was asked for
}

func (t rewrittenTier) Peek(context.Context, [16]byte, int32) (tiering.State, error) {
	return tiering.State{RemoteEnd: t.compacted, Compacted: t.compacted}, nil
}

func (t rewrittenTier) Read(_ context.Context, _ [16]byte, _ int32, o int64, _ int) (tiering.Run, error) {
	if *t.away {
		return tiering.Run{}, errors.New("the bucket is away")
	}
	*t.read = append(*t.read, o)
	chunks, next := t.log.x.run(o)
	return tiering.Run{Chunks: chunks, Base: o, Next: next, Release: func() {}}, nil
}

// compactedReplica is a partition of six records, of which the bucket has four, compacted, and the local log all.
func compactedReplica(t *testing.T) (r *replica, away *bool, read *[]int64) {
	x := &reclaimed{}
	for o := range int64(6) {
		b := batch.NewBuilder()
		b.BaseOffset = o
		b.Add(1, []byte("k"), []byte("v"))
		one, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		x.batches = append(x.batches, one)
	}
	away, read = new(bool), new([]int64)
	log := reclaimedLog{x: x}
	b := &Broker{log_: log, tier: rewrittenTier{log: log, compacted: 4, away: away, read: read}, ctx: t.Context()}
	b.cfg.Store(&config.BrokerConfig{MaxProducersPerPartition: 100})
	r = &replica{b: b, topic: "t", working: make(chan struct{}, 1), watches: map[*watch]struct{}{}}
	r.view.Store(&partition.View{Role: partition.Leader, LogEnd: 6, HighWatermark: 6})
	r.pid.Store(1)
	b.replicas = &replicas{b: b, byName: map[string][]*replica{"t": {r}}}
	return r, away, read
}

// A follower may serve consumers as soon as it follows: what it does not know to be compacted by then it would serve
// from its log, and a reader would go on in the bucket behind tombstones that are gone.
func TestFollowerKnowsWhatIsCompacted(t *testing.T) {
	r, _, _ := compactedReplica(t)
	fs := &fetchers{b: r.b, byLeader: map[int32]*fetcher{}, of: map[*replica]*fetcher{}, over: true} // nothing is copied
	r.b.fetchers = fs
	r.b.opts.BrokerID = 1
	r.term = partition.Term{Epoch: 1, Replicas: []int32{1, 2}, ISR: []int32{1, 2}, MinISR: 1}
	r.recov = &wal.Recovered{ID: 1, End: 6, HighWatermark: 6}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.tryFollow(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if got := r.servedStart(); got != 4 {
		t.Errorf("consumers are given the log from %d on, want 4", got)
	}
	r.seen(tiering.State{Compacted: 3, RemoteEnd: 4}) // by a look that began earlier
	if got := r.servedStart(); got != 4 {
		t.Errorf("consumers are given the log from %d on, want 4: what has been compacted stays so", got)
	}
}

// A coordinator that had to begin with the log of this broker, for the bucket was away, goes on with it: what it has read
// may have been deleted by a tombstone that the bucket has no more.
func TestLoadDoesNotGoFromTheLogToTheBucket(t *testing.T) {
	for _, tc := range []struct {
		name   string
		back   int64 // the bucket is away until this offset is read
		bucket []int64
	}{
		{"never away", 0, []int64{0, 1, 2, 3}},
		{"away at first", 2, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, away, read := compactedReplica(t)
			r.seen(tiering.State{Compacted: 4, RemoteEnd: 4})
			for at := int64(0); at < 6; {
				*away = at < tc.back
				_, next, _, err := topicLog{r.b, "t"}.Read(t.Context(), 0, at, 1)
				if err != nil {
					t.Fatal(err)
				}
				at = next
			}
			if !slices.Equal(*read, tc.bucket) {
				t.Errorf("the bucket was asked for %v, want %v", *read, tc.bucket)
			}
		})
	}
}
