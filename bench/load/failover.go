package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Failover says how the loss of a broker is measured: by one record in flight to
// each partition of a topic, again and again, before and after an event.
type Failover struct {
	Bootstrap   []string
	Topic       string        // is there
	RecordBytes int           // 100 if zero
	Pause       time.Duration // between two records of a partition; 20 ms if zero
	Warmup      time.Duration // not measured: the first records find out who leads
	Before      time.Duration // undisturbed
	After       time.Duration // from the event on, however long that takes
	Event       func(ctx context.Context) error
}

// Gaps are the longest times between two acknowledgements of a partition, in
// milliseconds, over partitions.
type Gaps struct {
	Partitions int     `json:"partitions"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	Max        float64 `json:"max_ms"`
	Rate       float64 `json:"records_per_s"` // acknowledged, of all of them
}

// FailoverResult is what a Failover measured.
type FailoverResult struct {
	Partitions int   `json:"partitions"`
	Records    int64 `json:"records"`
	Errors     int64 `json:"errors"` // records that the client gave up; with retries there are none
	Steady     Gaps  `json:"steady"` // before the event: what the load itself is good for
	Event      Gaps  `json:"event"`
	// By who led before the event: partitions of others show what the event does to them.
	Leaders map[int32]Gaps `json:"by_former_leader"`
	// By broker, of the partitions that had no replica there, where that is some: to these nothing is to happen when it is lost.
	Elsewhere map[int32]Bystanders `json:"without_replica_on,omitempty"`
	Error     string               `json:"error,omitempty"` // the first record's that was given up
}

// Bystanders are partitions to which nothing happens, before and after the event.
type Bystanders struct {
	Steady Gaps `json:"steady"`
	Event  Gaps `json:"event"`
}

// MeasureFailover runs it.
func MeasureFailover(ctx context.Context, f Failover) (*FailoverResult, error) {
	if f.RecordBytes == 0 {
		f.RecordBytes = 100
	}
	if f.Pause == 0 {
		f.Pause = 20 * time.Millisecond
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(f.Bootstrap...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		// The client is not to be what is waited for.
		kgo.MetadataMinAge(50*time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	if err != nil {
		return nil, fmt.Errorf("load: failover: %w", err)
	}
	defer cl.Close()
	topics, err := kadm.NewClient(cl).ListTopics(ctx, f.Topic)
	if err == nil {
		err = topics[f.Topic].Err
	}
	if err != nil {
		return nil, fmt.Errorf("load: topic %s: %w", f.Topic, err)
	}
	leaders, replicas := map[int32]int32{}, map[int32][]int32{}
	for _, p := range topics[f.Topic].Partitions {
		leaders[p.Partition], replicas[p.Partition] = p.Leader, p.Replicas
	}

	res := &FailoverResult{Partitions: len(leaders), Leaders: map[int32]Gaps{}}
	run, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var mu sync.Mutex
	longest, count := map[int32]time.Duration{}, map[int32]int{} // since reset
	since := time.Now()
	lastAt := map[int32]time.Time{}
	var records atomic.Int64
	value := make([]byte, f.RecordBytes)
	for p := range leaders {
		wg.Go(func() {
			for run.Err() == nil {
				err := cl.ProduceSync(run, &kgo.Record{Topic: f.Topic, Partition: p, Value: value}).FirstErr()
				now := time.Now()
				mu.Lock()
				switch {
				case err == nil:
					if at, ok := lastAt[p]; ok {
						longest[p] = max(longest[p], now.Sub(at))
					}
					lastAt[p] = now
					count[p]++
					records.Add(1)
				case run.Err() == nil:
					if res.Errors++; res.Errors == 1 {
						res.Error = err.Error()
					}
				}
				mu.Unlock()
				pause(run, f.Pause)
			}
		})
	}
	// take returns what there was since the last call; a gap that is still open
	// counts as far as it has come.
	take := func() map[int32]seen {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		out := map[int32]seen{}
		for p, at := range lastAt {
			out[p] = seen{gap: max(longest[p], now.Sub(at)), rate: float64(count[p]) / now.Sub(since).Seconds()}
		}
		clear(longest)
		clear(count)
		since = now
		return out
	}
	if !pause(ctx, f.Warmup) {
		return nil, ctx.Err()
	}
	// And until each partition has taken a record: those of a new topic may not serve yet.
	for began := time.Now(); len(take()) < len(leaders) && time.Since(began) < time.Minute; {
		if !pause(ctx, 100*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
	if !pause(ctx, f.Before) {
		return nil, ctx.Err()
	}
	steady := take()
	if len(steady) < len(leaders) {
		return nil, fmt.Errorf("load: %d of %d partitions of %s took a record before the event", len(steady), len(leaders), f.Topic)
	}
	res.Steady = gapsOf(slices.Collect(maps.Values(steady)))
	if f.Event == nil {
		return nil, errors.New("load: failover without an event")
	}
	if err := f.Event(ctx); err != nil {
		return nil, fmt.Errorf("load: the event failed: %w", err)
	}
	if !pause(ctx, f.After) {
		return nil, ctx.Err()
	}
	gaps := take()
	res.Event = gapsOf(slices.Collect(maps.Values(gaps)))
	by := map[int32][]seen{}
	for p, s := range gaps {
		by[leaders[p]] = append(by[leaders[p]], s)
	}
	for leader, list := range by {
		res.Leaders[leader] = gapsOf(list)
	}
	res.Elsewhere = bystanders(replicas, steady, gaps)
	res.Records = records.Load()
	return res, nil
}

// bystanders sorts partitions by the brokers that have no replica of them.
func bystanders(replicas map[int32][]int32, steady, event map[int32]seen) map[int32]Bystanders {
	out := map[int32]Bystanders{}
	for id := range brokersOf(replicas) {
		var before, after []seen
		for p, at := range replicas {
			if !slices.Contains(at, id) {
				before, after = append(before, steady[p]), append(after, event[p])
			}
		}
		if len(before) > 0 {
			out[id] = Bystanders{gapsOf(before), gapsOf(after)}
		}
	}
	return out
}

func brokersOf(replicas map[int32][]int32) map[int32]bool {
	out := map[int32]bool{}
	for _, at := range replicas {
		for _, id := range at {
			out[id] = true
		}
	}
	return out
}

// seen is what became of a partition: its longest gap, and the records per second
// that it took.
type seen struct {
	gap  time.Duration
	rate float64
}

func gapsOf(list []seen) Gaps {
	slices.SortFunc(list, func(a, b seen) int { return cmp.Compare(a.gap, b.gap) })
	at := func(q float64) float64 {
		return float64(list[min(len(list)-1, int(q*float64(len(list))))].gap.Microseconds()) / 1000
	}
	g := Gaps{Partitions: len(list), P50: at(0.5), P99: at(0.99), Max: at(1)}
	for _, s := range list {
		g.Rate += s.rate
	}
	return g
}

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
