package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// run is one run's counters.
type run struct {
	spec    *Spec
	id      int64 // tells this run's stamped records from those of others
	stamped bool  // keys carry the run and the intended time

	measuring atomic.Bool
	produced  counters
	consumed  counters

	hists   []*producer
	ends    []*consumer
	extents map[int32]Extent

	committed, aborted, inTxns atomic.Int64  // transactions, and records of those that were committed
	ahead                      chan struct{} // one for each record that producers are ahead of the processors; nil: no bound

	errors atomic.Int64
	mu     sync.Mutex
	last   string
}

type counters struct {
	records, bytes                    atomic.Int64
	batches, batchRecords, batchBytes atomic.Int64
	requests, wire                    atomic.Int64
}

func newRun(spec *Spec) *run { return &run{spec: spec, id: rand.Int64()} }

func (r *run) failed(err error) {
	r.errors.Add(1)
	r.mu.Lock()
	r.last = err.Error()
	r.mu.Unlock()
}

// measure lets the warm-up pass, then counts for the duration, or until ended.
// begin, if there is one, is called when counting has begun.
func (r *run) measure(ctx context.Context, ended <-chan struct{}, begin func()) (*Result, error) {
	start := time.Now()
	if r.spec.Warmup > 0 {
		if err := r.pass(ctx, nil, r.spec.Warmup, start, true); err != nil {
			return nil, err
		}
	}
	broker := watch(r.spec.Broker)
	client := watch([]int{os.Getpid()})
	r.measuring.Store(true)
	start = time.Now()
	if begin != nil {
		begin()
	}
	err := r.pass(ctx, ended, r.spec.Duration, start, false)
	r.measuring.Store(false)
	took := time.Since(start)
	res := &Result{Load: r.spec.ran(), Seconds: took.Seconds(), Client: client.stop(), Errors: r.errors.Load()}
	if len(r.spec.Broker) > 0 {
		u := broker.stop()
		res.Broker = &u
	}
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	res.LastError = r.last
	r.mu.Unlock()
	if r.spec.Producers > 0 {
		res.Produced = r.produced.side(took)
		res.Produced.Intended = r.spec.Rate
		res.Ack = r.ackLatency()
	}
	if r.spec.Consumers > 0 {
		res.Consumed = r.consumed.side(took)
		if r.stamped {
			var hs []*hdrhistogram.Histogram
			for _, c := range r.ends {
				c.mu.Lock()
				hs = append(hs, c.hist)
				c.mu.Unlock()
			}
			res.EndToEnd = latencyOf(hs)
		}
	}
	if u := res.Broker; u != nil {
		var bytes int64
		for _, s := range []*Side{res.Produced, res.Consumed} {
			if s != nil {
				bytes += s.Bytes
			}
		}
		if bytes > 0 {
			u.SecondsPerGB = u.CPUSeconds / (float64(bytes) / 1e9)
		}
	}
	if res.Produced != nil && res.Produced.Records == 0 || res.Produced == nil && res.Consumed != nil && res.Consumed.Records == 0 {
		if res.LastError != "" {
			return res, fmt.Errorf("load: nothing went through in %s: %s", took.Round(time.Millisecond), res.LastError)
		}
		return res, fmt.Errorf("load: nothing went through in %s", took.Round(time.Millisecond))
	}
	return res, nil
}

func (r *run) ackLatency() *Latency {
	var hs []*hdrhistogram.Histogram
	for _, p := range r.hists {
		p.mu.Lock()
		hs = append(hs, p.hist)
		p.mu.Unlock()
	}
	return latencyOf(hs)
}

// pass waits, and reports progress.
func (r *run) pass(ctx context.Context, ended <-chan struct{}, d time.Duration, start time.Time, warming bool) error {
	over := time.NewTimer(time.Until(start.Add(d)))
	defer over.Stop()
	var beat <-chan time.Time
	if r.spec.Progress != nil {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		beat = t.C
	}
	for {
		select {
		case <-over.C:
			return nil
		case <-ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-beat:
			r.spec.Progress(Progress{
				Warming: warming, Elapsed: time.Since(start),
				Records: r.produced.records.Load() + r.consumed.records.Load(),
				Bytes:   r.produced.bytes.Load() + r.consumed.bytes.Load(),
			})
		}
	}
}

func (c *counters) side(took time.Duration) *Side {
	s := &Side{
		Records: c.records.Load(), Bytes: c.bytes.Load(), Batches: c.batches.Load(),
		Requests: c.requests.Load(), WireBytes: c.wire.Load(),
	}
	s.RecordsPerSecond = float64(s.Records) / took.Seconds()
	s.MBPerSecond = float64(s.Bytes) / 1e6 / took.Seconds()
	if s.Batches > 0 {
		s.RecordsPerBatch = float64(c.batchRecords.Load()) / float64(s.Batches)
		s.BytesPerBatch = float64(c.batchBytes.Load()) / float64(s.Batches)
	}
	if s.Requests > 0 {
		s.BytesPerRequest = float64(s.WireBytes) / float64(s.Requests)
	}
	return s
}
