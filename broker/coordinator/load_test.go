package coordinator

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/wal/batch"
)

// history is a log that compaction has not reached, made as it is read: commits of ten thousand partitions by a hundred
// groups, over and over. Batches come in rounds:
//
//	plain    100 commits
//	txn      100 commits in a transaction of producer n%producers
//	plain    100 commits
//	marker   of the transaction of the round before; every third aborts
//
// so that a transaction is always under way across the next one. The last has no marker.
type history struct {
	rounds int64
	peak   uint64        // most memory in use when a read began
	reads  int           // so many
	gate   chan struct{} // the last read waits for it; nil: it does not
	began  atomic.Bool   // the last read has
}

const (
	inRound   = 301
	inBatch   = 100
	producers = 50
	parts     = 10_000
)

// number is what the record i of the data batch k of a round commits, which is also its place among all commits.
func (*history) number(round int64, k, i int) int64 { return round*3*inBatch + int64(k*inBatch+i) }

func (l *history) Extent(int32) (int64, int64) { return 0, l.rounds * inRound }

func (l *history) Append(int32, int32, []byte, func(int64, error)) {
	panic("nothing is appended to a history")
}

func (l *history) Read(_ context.Context, _ int32, offset int64, maxBytes int) ([][]byte, int64, func(), error) {
	// What is not in use any more is not in memory either.
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	l.peak = max(l.peak, m.HeapAlloc)
	l.reads++
	var run []byte
	for ; offset < l.rounds*inRound && len(run) < maxBytes; offset += inRound {
		run = l.round(run, offset/inRound)
	}
	if offset == l.rounds*inRound && l.gate != nil {
		l.began.Store(true)
		<-l.gate
	}
	return [][]byte{run}, offset, func() { clear(run) }, nil
}

func (l *history) round(run []byte, n int64) []byte {
	for k := range 3 {
		b := batch.NewBuilder()
		b.BaseOffset = n*inRound + int64(k*inBatch)
		if k == 1 {
			b.Transactional, b.ProducerID, b.ProducerEpoch = true, n%producers, 0
		}
		for i := range inBatch {
			c := l.number(n, k, i)
			key := kmsg.OffsetCommitKey{Version: 1, Group: fmt.Sprint("g", c/inBatch%100), Topic: "topic", Partition: int32(c % parts)}
			value := kmsg.OffsetCommitValue{Version: 3, Offset: c, LeaderEpoch: -1, CommitTimestamp: c, ExpireTimestamp: -1}
			b.Add(c, key.AppendTo(nil), value.AppendTo(nil))
		}
		p, err := b.Build()
		if err != nil {
			panic(err)
		}
		run = append(run, p...)
	}
	m := batch.Marker((n+producers-1)%producers, 0, (n-1)%3 != 0, 0, 0)
	batch.SetBaseOffset(m, n*inRound+3*inBatch)
	return append(run, m...)
}

// want is what has been committed for a partition at the end of the history.
func (l *history) want(partition int64) int64 {
	for c := (l.rounds*3*inBatch-1-partition)/parts*parts + partition; c >= 0; c -= parts {
		round, k := c/(3*inBatch), c/inBatch%3
		if k != 1 || round < l.rounds-1 && round%3 != 0 {
			return c
		}
	}
	return -1
}

// TestLoadHistory: a million commits that compaction has not reached are loaded in the memory of what they come to.
func TestLoadHistory(t *testing.T) {
	log := &history{rounds: 3334, gate: make(chan struct{})}
	type report struct {
		partition, keys int
		records         int64
		took            time.Duration
	}
	loaded := make(chan report, 1)
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := New(Options{Log: log, Events: &Events{Loaded: func(p int32, keys int, records, _ int64, took time.Duration) {
		loaded <- report{int(p), keys, records, took}
	}}}, 1)
	defer c.Close()
	began := time.Now()
	c.Elected(0, 1)
	until(t, log.began.Load)
	expect(t, "commit while loading", txnCommit(c, group.Txn{ProducerID: 1}, "g0", 0, 1), 14)
	close(log.gate)
	r := <-loaded
	if r.keys != 100 || r.records != log.rounds*inRound || r.took <= 0 || r.took > time.Since(began) {
		t.Errorf("loaded: %+v, in at most %s", r, time.Since(began))
	}
	st := c.Stats()
	if st.Offsets != parts || st.Pending != inBatch || st.Txns != 1 {
		t.Errorf("%+v", st)
	}
	for p := range int64(parts) {
		if off, code := fetchTopic(c, fmt.Sprint("g", p/inBatch), "topic", int32(p), false); code != 0 || off != log.want(p) {
			t.Fatalf("partition %d: %d (code %d), want %d", p, off, code, log.want(p))
		}
	}
	grown := int64(log.peak) - int64(before.HeapAlloc)
	if grown > 8<<20 || log.reads < 5 {
		t.Errorf("%d MiB are in use at the worst of %d reads of %d KiB", grown>>20, log.reads, DefaultLoadBytes>>10)
	}
	t.Logf("%d records, at most %d KiB in use between reads", r.records, grown>>10) // the time is that of making them: see BenchmarkLoad
}
