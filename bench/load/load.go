// Package load puts a Kafka-protocol broker under load and measures what it
// does: producers, consumers, both at once, and replays of what is there.
//
// Load is open-loop: every record has an intended send time that depends on
// the rate alone, and its latency counts from then. A broker that stalls for a
// second is charged that second on every record that should have been sent in
// it, and not on the few that happened to be under way ("coordinated
// omission"). Without a rate the producers send as fast as records are taken;
// latency then counts from when the client took the record, and says how long
// the client's buffer is rather than how fast the broker answers.
package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Spec is what is asked of a run. Counts and rates are for all clients
// together.
type Spec struct {
	Bootstrap []string
	Topic     string
	// Partitions of the topic, to be told with the result. 0: not known.
	Partitions int

	Producers int
	Consumers int

	RecordBytes int     // of a value
	Keys        int     // different keys, given in turn and hashed to partitions; 0: no keys
	Payload     Payload // what values look like
	Rate        float64 // records a second; 0: as fast as they are taken

	BatchBytes  int // largest batch before compression
	Linger      time.Duration
	Codec       string // none, gzip, snappy, lz4, zstd
	Acks        string // all, 1, 0
	Idempotent  bool   // needs acks=all
	InFlight    int    // requests of one client; 0: 5, as the Java client
	BufferBytes int    // of one client, records not yet acknowledged; 0: 32 MiB, as the Java client

	FetchMaxBytes     int // of one fetch; 0: 50 MiB, as the Java client
	PartitionMaxBytes int // 0: 1 MiB, as the Java client
	FetchMinBytes     int
	FetchMaxWait      time.Duration // 0: 500 ms
	// Groups is how many times everything is consumed: each consumer belongs to
	// one, and shares the partitions with the others of it. 0: one.
	Groups int

	// Raw is for a replay: plain fetches, of whose batches only header and checksum are looked at. What a client library
	// makes of the records, on the broker's own cores, is left out.
	Raw bool

	// Processors run transactions: they read Topic as one group and write what
	// they read to Output, their offsets with it. Without Producers they read
	// nothing and write records of their own. Consumers read Output, and only what
	// is committed. Without a rate Producers are just ahead of the processors, and
	// latency counts from the beginning of the transaction.
	Processors int
	Output     string
	TxnEvery   time.Duration // a transaction ends after that,
	TxnRecords int           // or when it has so many records; the next begins at once

	Warmup   time.Duration // not measured
	Duration time.Duration // measured

	// Broker are the processes whose CPU time and memory are sampled.
	Broker []int
	// Progress, if set, is told once a second what has been done so far.
	Progress func(Progress)
}

// Progress is how far a run is.
type Progress struct {
	Warming bool
	Records int64
	Bytes   int64
	Elapsed time.Duration
}

// Result is what was measured, between the end of the warm-up and the end.
type Result struct {
	What    string  `json:"what"`
	Load    *Ran    `json:"load"`
	Seconds float64 `json:"seconds"`

	Produced *Side `json:"produced,omitempty"`
	Consumed *Side `json:"consumed,omitempty"`

	// Ack is from the intended send time to the acknowledgement, EndToEnd to
	// the moment at which a consumer has the record.
	Ack      *Latency `json:"ack_ms,omitempty"`
	EndToEnd *Latency `json:"end_to_end_ms,omitempty"`

	Transactions *Transactions `json:"transactions,omitempty"`
	// Commit is from asking for the end of a transaction to its answer: the last
	// records and the offsets are waited for in it.
	Commit *Latency `json:"commit_ms,omitempty"`

	CommitsPerSecond float64 `json:"offset_commits_per_second,omitempty"`

	Broker *Usage `json:"broker,omitempty"`
	Client Usage  `json:"client"`

	Errors    int64  `json:"errors"`
	LastError string `json:"last_error,omitempty"`

	Floor *Result `json:"floor,omitempty"`
}

// Side is the traffic in one direction.
type Side struct {
	Records          int64   `json:"records"`
	Bytes            int64   `json:"bytes"` // keys and values
	RecordsPerSecond float64 `json:"records_per_second"`
	MBPerSecond      float64 `json:"mb_per_second"` // 10^6 bytes of keys and values
	// What was on the wire: batches as they are stored, and requests.
	Batches         int64   `json:"batches"`
	WireBytes       int64   `json:"wire_bytes"` // of requests, or of responses for consumers
	Requests        int64   `json:"requests"`
	RecordsPerBatch float64 `json:"records_per_batch"`
	BytesPerBatch   float64 `json:"bytes_per_batch"`
	BytesPerRequest float64 `json:"bytes_per_request"`
	// Intended is the rate that was asked for, in records a second; a run that
	// stays behind it was not open-loop to the end.
	Intended float64 `json:"intended_records_per_second,omitempty"`
}

// Latency has milliseconds at the usual quantiles.
type Latency struct {
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	P9999 float64 `json:"p99_99"`
	Max   float64 `json:"max"`
	Mean  float64 `json:"mean"`
}

// histogram is in microseconds, up to ten minutes, to three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	h.RecordValue(min(max(d.Microseconds(), 1), h.HighestTrackableValue()))
}

func latencyOf(hs []*hdrhistogram.Histogram) *Latency {
	all := newHistogram()
	for _, h := range hs {
		all.Merge(h)
	}
	if all.TotalCount() == 0 {
		return nil
	}
	ms := func(us int64) float64 { return float64(us) / 1000 }
	return &Latency{
		P50: ms(all.ValueAtQuantile(50)), P90: ms(all.ValueAtQuantile(90)), P99: ms(all.ValueAtQuantile(99)),
		P999: ms(all.ValueAtQuantile(99.9)), P9999: ms(all.ValueAtQuantile(99.99)),
		Max: ms(all.Max()), Mean: all.Mean() / 1000,
	}
}

func (s *Spec) defaults() error {
	if len(s.Bootstrap) == 0 || s.Topic == "" {
		return errors.New("load: no broker or no topic to load")
	}
	if s.Producers < 0 || s.Consumers < 0 || s.Rate < 0 || s.RecordBytes < 0 {
		return fmt.Errorf("load: negative numbers of producers (%d), consumers (%d), bytes (%d) or a negative rate (%g)", s.Producers, s.Consumers, s.RecordBytes, s.Rate)
	}
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&s.BatchBytes, 16<<10)
	set(&s.InFlight, 5)
	set(&s.BufferBytes, 32<<20)
	set(&s.FetchMaxBytes, 50<<20)
	set(&s.PartitionMaxBytes, 1<<20)
	set(&s.FetchMinBytes, 1)
	set(&s.Groups, 1)
	if s.FetchMaxWait == 0 {
		s.FetchMaxWait = 500 * time.Millisecond
	}
	if s.Duration <= 0 {
		return errors.New("load: nothing to measure: the duration is 0")
	}
	if s.Keys > 0 && s.Producers+s.Processors > 0 && s.Consumers > 0 {
		return errors.New("load: keys have no place where records are timed from end to end: the key carries the time")
	}
	if s.Groups > 1 && s.Consumers%s.Groups != 0 {
		return fmt.Errorf("load: %d consumers cannot be shared evenly by %d groups", s.Consumers, s.Groups)
	}
	return s.checkTransactions()
}

// Run puts the broker under the load of spec: its producers and its consumers,
// which begin at the end of the log, and processors between them.
func Run(ctx context.Context, spec Spec) (*Result, error) {
	if err := spec.defaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newRun(&spec)
	e2e := spec.Producers+spec.Processors > 0 && spec.Consumers > 0
	if e2e {
		r.stamped = true
	}

	// Consumers stand at the end before the first record is sent.
	cons, err := r.openConsumers(ctx, atEnd)
	defer closeAll(cons)
	if err != nil {
		return nil, err
	}
	prods, err := r.openProducers(ctx)
	defer closeAll(prods)
	if err != nil {
		return nil, err
	}
	procs, err := r.openProcessors(ctx)
	defer closeAll(procs)
	if err != nil {
		return nil, err
	}
	if len(procs) > 0 && len(prods) > 0 && spec.Rate == 0 {
		r.ahead = make(chan struct{}, backlog)
	}
	var wg sync.WaitGroup
	for _, c := range cons {
		wg.Go(func() { r.consume(ctx, c, nil) })
	}
	stopProducing, stop := context.WithCancel(ctx)
	defer stop()
	begin := time.Now().Add(20 * time.Millisecond)
	var producing sync.WaitGroup
	for i, p := range prods {
		producing.Go(func() { r.produce(stopProducing, p, i, begin) })
	}
	for _, p := range procs {
		producing.Go(func() { p.process(stopProducing) })
	}
	res, err := r.measure(ctx, nil, nil)
	stop()
	producing.Wait()
	cancel()
	wg.Wait()
	if err != nil {
		return nil, err
	}
	switch {
	case len(procs) > 0:
		res.What = "txn"
		if err := r.addTransactions(res, procs); err != nil {
			return nil, err
		}
	case e2e:
		res.What = "e2e"
	case spec.Producers > 0:
		res.What = "produce"
	default:
		res.What = "consume"
	}
	return res, nil
}

type closer interface{ close() }

func closeAll[C closer](cs []C) {
	var wg sync.WaitGroup
	for _, c := range cs {
		wg.Go(c.close)
	}
	wg.Wait()
}

// options are common to all clients of a run.
func (r *run) options(id string, hooks ...kgo.Hook) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(r.spec.Bootstrap...),
		kgo.ClientID(id),
		kgo.DisableClientMetrics(),
		kgo.WithHooks(hooks...),
		kgo.MetadataMinAge(time.Second),
	}
}
