package compaction_test

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
)

// keyed is a partition of so many keys that are overwritten at random all day: first each once, then so many records a
// day. Nothing of it is kept; a batch is made anew whenever it is read.
type keyed struct {
	keys, perDay int64
	perBatch     int64
	value        []byte
	born         time.Time

	mu        sync.Mutex
	committed int64
	bytes     int64 // of a batch
}

func (k *keyed) TopicID() [16]byte  { return [16]byte{7} }
func (k *keyed) TopicName() string  { return "keyed" }
func (k *keyed) Partition() int32   { return 0 }
func (k *keyed) LeaderEpoch() int32 { return 1 }
func (k *keyed) Stuck(bool)         {}

func (k *keyed) HighWatermark() int64 {
	n := k.keys + int64(float64(k.perDay)*time.Since(k.born).Hours()/24)
	return n / k.perBatch * k.perBatch
}

func (k *keyed) Extent() (logStart, localStart, highWatermark, logEnd int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	hw := k.HighWatermark()
	return 0, min(k.committed, hw), hw, hw
}

// at is when a record was appended.
func (k *keyed) at(offset int64) time.Time {
	return k.born.Add(time.Duration(float64(max(0, offset+1-k.keys)) / float64(k.perDay) * 24 * float64(time.Hour)))
}

func (k *keyed) Pending(from int64) (bytes, oldestMs int64) {
	n := k.HighWatermark() - from
	if n <= 0 {
		return 0, 0
	}
	return n / k.perBatch * k.bytes, k.at(from).UnixMilli()
}

// key is whose record stands at an offset.
func (k *keyed) key(offset int64) int64 {
	if offset < k.keys {
		return offset
	}
	x := uint64(offset) * 0x9e3779b97f4a7c15 // splitmix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return int64((x ^ x>>31) % uint64(k.keys))
}

func (k *keyed) build(base int64) ([]byte, error) {
	bb := batch.NewBuilder()
	at := k.at(base).UnixMilli()
	for o := base; o < base+k.perBatch; o++ {
		bb.Add(at, binary.BigEndian.AppendUint64(nil, uint64(k.key(o))), k.value)
	}
	b, err := bb.Build()
	if err != nil {
		return nil, err
	}
	batch.SetBaseOffset(b, base)
	batch.SetLeaderEpoch(b, 1)
	return b, nil
}

func (k *keyed) Read(offset int64, maxBytes int, upTo int64) (tiering.Run, error) {
	r := tiering.Run{Base: offset, Next: offset, Release: func() {}}
	for n := 0; r.Next < upTo && n < maxBytes; r.Next += k.perBatch {
		b, err := k.build(r.Next)
		if err != nil {
			return tiering.Run{}, err
		}
		r.Chunks, n = append(r.Chunks, b), n+len(b)
	}
	return r, nil
}

func (k *keyed) Lineage() lineage.Lineage { return lineage.Lineage{}.Assign(1, 0) }
func (k *keyed) Policy() tiering.Policy {
	return tiering.Policy{RetentionMs: -1, RetentionBytes: -1, LocalRetentionMs: -2, LocalRetentionBytes: -2, CopyLagBytes: -1, SegmentBytes: 1 << 30, SegmentMs: 7 * 24 * 3600 * 1000}
}

func (k *keyed) Committed(st tiering.State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.committed = max(k.committed, st.RemoteEnd)
}

// A day of 10 GB over a million keys of 1 KiB, everything scaled down by the same factor: how often are its bytes
// rewritten? And if it is 4 GB, whose flushes are small enough to be merged before their round?
//
// With min.cleanable.dirty.ratio=0.5 a round begins when more is dirty than clean. So a round writes at most as much as
// came in since the last one, and reads three times that: what is dirty twice, what is clean once.
func TestHowOftenDirtyDataIsRewritten(t *testing.T) {
	const record = 38 // bytes of one here, instead of 1 KiB
	keys := int64(20_000)
	if os.Getenv("VARVE_LONG") == "1" {
		keys = 1_000_000
	}
	scaled := func(bytes float64) int64 { return int64(bytes * float64(keys) * record / 1e9) }
	t.Run("10 GB", func(t *testing.T) { rewritten(t, keys, keys*10, scaled, 3.5, 1.2) })
	t.Run("4 GB", func(t *testing.T) { rewritten(t, keys, keys*4, scaled, 4.5, 2.3) })
}

// rewritten counts for as long as it takes until so many times as many records have come as there are keys.
func rewritten(t *testing.T, keys, perDay int64, scaled func(float64) int64, mostRead, mostWritten float64) {
	const over = 16
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var broker, worker bill
		mem, store := objstore.NewMem(), tiering.NewMemManifests()
		o := tiering.Options{
			ClusterID: "c", Grace: time.Minute, BrokerID: 1, Bucket: broker.of(mem), Manifests: billed{store, &broker},
			TargetBytes: scaled(64 << 20), OwnBytes: scaled(4 << 20), MixedBytes: scaled(32 << 20), BlockBytes: int(max(scaled(256<<10), 4<<10)),
		}
		leader, err := tiering.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		k := &keyed{keys: keys, perDay: perDay, perBatch: max(perDay/24/3600/4, 10), value: make([]byte, 20), born: time.Now()}
		first, err := k.build(0)
		if err != nil {
			t.Fatal(err)
		}
		k.bytes = int64(len(first))
		store.SetEpoch(k.TopicID(), 0, 1)
		if _, err := leader.Lead(ctx, k); err != nil {
			t.Fatal(err)
		}
		wo := o
		wo.Worker, wo.SpoolDir, wo.BrokerID, wo.Bucket, wo.Manifests = true, t.TempDir(), math.MaxInt32, worker.of(mem), billed{store, &worker}
		tier, err := tiering.Open(wo)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		type sum struct{ jobs, objects, made, read, written int64 }
		done := map[picker.Kind]sum{}
		w, err := compaction.New(compaction.Options{
			Tier: tier, Store: wo.Manifests, Settings: compaction.Settings{TableBytes: max(2*cleaner.SlotSize*keys, 1<<16)},
			Limits: picker.Limits{Bytes: scaled(16 << 30), Target: scaled(256 << 20), ReadBytes: scaled(4 << 20), PartBytes: scaled(8 << 20)},
			Lease:  func(context.Context) (int64, <-chan struct{}, error) { return 1, nil, nil },
			Topic: func([16]byte) (compaction.Topic, bool) {
				return compaction.Topic{Name: "keyed", Codec: cleaner.KeepCodec, DeleteDelay: time.Minute,
					Policy: picker.Policy{Compact: true, MinDirtyRatio: 0.5, MaxLag: math.MaxInt64, DeleteRetention: 24 * 3600 * 1000, RetentionMs: -1, RetentionBytes: -1, SegmentBytes: scaled(1 << 30)}}, true
			},
			Events: compaction.Events{
				Done: func(d compaction.Done) {
					mu.Lock()
					defer mu.Unlock()
					s := done[d.Kind]
					done[d.Kind] = sum{s.jobs + 1, s.objects + int64(d.Objects), s.made + int64(d.Made), s.read + d.Read, s.written + d.Written}
				},
				Failed: func(_ string, _ int32, err error) { t.Error(err) },
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { w.Run(ctx) })
		keysIn := time.Duration(float64(24*time.Hour) * float64(keys) / float64(perDay)) // until as many records have come as there are keys
		time.Sleep(3 * keysIn)                                                           // each has been compacted at least once
		mu.Lock()
		clear(done)
		mu.Unlock()
		from, requests, uploads := k.HighWatermark(), worker.since(nil), broker.since(nil)
		time.Sleep(over * keysIn)
		dirty := float64((k.HighWatermark() - from) / k.perBatch * k.bytes)
		requests, uploads = worker.since(requests), broker.since(uploads)
		cancel()
		wg.Wait()
		tier.Close()
		leader.Close()
		mu.Lock()
		defer mu.Unlock()
		read, written := 0.0, 0.0
		for _, kind := range []picker.Kind{picker.Compact, picker.Purge, picker.Merge} {
			s := done[kind]
			read, written = read+float64(s.read)/dirty, written+float64(s.written)/dirty
			t.Logf("%-8s %3d jobs: %d objects become %d; for each dirty byte %.2f read, %.2f written", kind, s.jobs, s.objects, s.made, float64(s.read)/dirty, float64(s.written)/dirty)
		}
		t.Logf("%d keys, %.0f MB; %.2f read, %.2f written for each dirty byte\nworker %v\nbroker %v", keys, dirty/1e6, read, written, requests, uploads)
		if s := done[picker.Compact].jobs; s < over/2 || s > over {
			t.Errorf("%d rounds while records came for each key %d times", s, over)
		}
		if read > mostRead || written > mostWritten {
			t.Errorf("each dirty byte is read %.2f times, and %.2f bytes are written for it", read, written)
		}
	})
}
