package coordinator

import (
	"context"
	"errors"
	"sort"
	"sync"
	"testing"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// memLog is the offsets topic in memory. Appends are done at once, or when released, or fail.
type memLog struct {
	mu      sync.Mutex
	batches map[int32][][]byte
	ends    map[int32]int64
	epochs  map[int32]int32 // appends of other epochs are refused; absent: any
	held    []func()        // appends whose outcome is not told yet; nil: told at once
	holding bool
	fail    func(partition int32) error // nil: succeeds
	check   func(run []byte) error      // of the producers; nil: anybody may
	readErr error
	appends int
}

func newMemLog() *memLog {
	return &memLog{batches: map[int32][][]byte{}, ends: map[int32]int64{}, epochs: map[int32]int32{}}
}

func (l *memLog) Append(partition, leaderEpoch int32, run []byte, done func(int64, error)) {
	l.mu.Lock()
	l.appends++
	var err error
	if e, ok := l.epochs[partition]; ok && e != leaderEpoch {
		err = AppendFailed(protocol.CodeFencedLeaderEpoch)
	} else if l.fail != nil {
		err = l.fail(partition)
	}
	if err == nil && l.check != nil {
		err = l.check(run)
	}
	base := int64(-1)
	if err == nil {
		base = l.ends[partition]
		batch.SetBaseOffset(run, base)
		h, perr := batch.ParseHeader(run)
		if perr != nil || h.Size() != len(run) || batch.VerifyCRC(run) != nil {
			panic("append of something that is not one batch")
		}
		l.ends[partition] = h.NextOffset()
		l.batches[partition] = append(l.batches[partition], run)
	}
	tell := func() { done(base, err) }
	if l.holding {
		l.held = append(l.held, tell)
		tell = nil
	}
	l.mu.Unlock()
	if tell != nil {
		tell()
	}
}

func (l *memLog) tried() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appends
}

func (l *memLog) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holding = true
}

func (l *memLog) release() { l.releaseIn(func([]func()) {}) }

// releaseIn tells in the order that f makes.
func (l *memLog) releaseIn(f func(held []func())) {
	l.mu.Lock()
	held := l.held
	l.held, l.holding = nil, false
	l.mu.Unlock()
	f(held)
	for _, tell := range held {
		tell()
	}
}

func (l *memLog) failWith(f func(int32) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = f
}

func (l *memLog) Read(_ context.Context, partition int32, offset int64, maxBytes int) ([][]byte, int64, func(), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readErr != nil {
		return nil, 0, nil, l.readErr
	}
	bs := l.batches[partition]
	i := sort.Search(len(bs), func(i int) bool {
		h, _ := batch.ParseHeader(bs[i])
		return h.NextOffset() > offset
	})
	// Copies that are spoiled on release: what is kept must not alias them.
	var run []byte
	next := offset
	for ; i < len(bs) && (len(run) == 0 || len(run)+len(bs[i]) <= maxBytes); i++ {
		h, _ := batch.ParseHeader(bs[i])
		run, next = append(run, bs[i]...), h.NextOffset()
	}
	if len(run) > 0 {
		return [][]byte{run}, next, func() { clear(run) }, nil
	}
	return nil, 0, nil, errors.New("out of range")
}

func (l *memLog) Extent(partition int32) (int64, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 0, l.ends[partition]
}

// records are all records of a partition.
func (l *memLog) records(t testing.TB, partition int32) (rs []group.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.batches[partition] {
		for r, err := range batch.Records(b, 1<<20) {
			if err != nil {
				t.Fatal(err)
			}
			rs = append(rs, group.Record{Key: r.Key, Value: r.Value})
		}
	}
	return rs
}
