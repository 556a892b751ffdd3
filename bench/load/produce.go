package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// producer is one client that sends.
type producer struct {
	r  *run
	cl *kgo.Client

	mu   sync.Mutex
	hist *hdrhistogram.Histogram
}

func (p *producer) close() { p.cl.Close() }

// sent is a record with what its acknowledgement needs to know. The record's
// own timestamp is cut to milliseconds by the client, so the intended time
// travels as the record's context.
type sent struct {
	rec   kgo.Record
	ctx   sentContext
	at    time.Time // intended
	stamp [16]byte  // the key of a stamped record
}

type sentContext struct {
	context.Context
	of *sent
}

var sents = sync.Pool{New: func() any {
	s := new(sent)
	s.ctx = sentContext{context.Background(), s}
	return s
}}

func (r *run) openProducers(ctx context.Context) ([]*producer, error) {
	codec, err := codecOf(r.spec.Codec)
	if err != nil {
		return nil, err
	}
	var acks kgo.Acks
	switch r.spec.Acks {
	case "all", "-1", "":
		acks = kgo.AllISRAcks()
	case "1":
		acks = kgo.LeaderAck()
	case "0":
		acks = kgo.NoAck()
	default:
		return nil, fmt.Errorf("load: acks %q: all, 1 and 0 are possible", r.spec.Acks)
	}
	var out []*producer
	for i := range r.spec.Producers {
		p := &producer{r: r, hist: newHistogram()}
		opts := append(r.options("varve-bench-"+strconv.Itoa(i), produceHook{r}),
			kgo.DefaultProduceTopic(r.spec.Topic),
			kgo.RequiredAcks(acks),
			kgo.ProducerBatchMaxBytes(int32(r.spec.BatchBytes)),
			kgo.ProducerLinger(r.spec.Linger),
			kgo.ProducerBatchCompression(codec),
			kgo.MaxBufferedBytes(r.spec.BufferBytes),
			kgo.MaxBufferedRecords(max(r.spec.BufferBytes/64, 1000)),
			kgo.ProduceRequestTimeout(30*time.Second),
		)
		if !r.spec.Idempotent {
			// With it, the client keeps to five, which is what sequence numbers allow.
			opts = append(opts, kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(r.spec.InFlight))
		}
		if r.spec.Keys > 0 {
			opts = append(opts, kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
		} else {
			// As the Java client since 3.3: a batch's worth to a partition, then the next one.
			opts = append(opts, kgo.RecordPartitioner(kgo.UniformBytesPartitioner(max(r.spec.BatchBytes-100, 1), false, false, nil)))
		}
		cl, err := kgo.NewClient(opts...)
		if err != nil {
			return out, fmt.Errorf("load: producer: %w", err)
		}
		p.cl = cl
		out = append(out, p)
		r.hists = append(r.hists, p)
	}
	// Connected, and the topic known, before the clock runs.
	if len(out) > 0 {
		err = each(len(out), func(i int) error { return out[i].cl.EnsureProduceConnectionIsOpen(ctx) })
	}
	return out, err
}

// produce sends records at their intended times until ctx ends, and then waits
// for those that are under way.
func (r *run) produce(ctx context.Context, p *producer, index int, begin time.Time) {
	values := r.spec.Payload.Values(r.spec.RecordBytes, int64(index))
	keys := keysOf(r.spec.Keys)
	n := r.spec.Producers
	var interval float64 // nanoseconds between two records of this producer
	if r.spec.Rate > 0 {
		interval = 1e9 * float64(n) / r.spec.Rate
		// The producers' clocks are shifted against each other, as those of strangers are.
		begin = begin.Add(time.Duration(interval * float64(index) / float64(n)))
	}
	done := func(rec *kgo.Record, err error) { r.acked(p, rec, err) }
	send := func(i int64, at time.Time) {
		s := sents.Get().(*sent)
		s.at = at
		s.rec = kgo.Record{Value: values[i%int64(len(values))], Context: &s.ctx}
		switch {
		case r.stamped:
			binary.BigEndian.PutUint64(s.stamp[:8], uint64(r.id))
			binary.BigEndian.PutUint64(s.stamp[8:], uint64(at.UnixNano()))
			s.rec.Key = s.stamp[:]
		case len(keys) > 0:
			s.rec.Key = keys[(i*int64(n)+int64(index))%int64(len(keys))]
		}
		p.cl.Produce(ctx, &s.rec, done)
	}
	time.Sleep(time.Until(begin))
	if interval == 0 {
		for i := int64(0); ctx.Err() == nil; i++ {
			r.lead(ctx)
			send(i, time.Now())
		}
	} else {
		i := int64(0)
		for ctx.Err() == nil {
			due := int64(float64(time.Since(begin))/interval) + 1
			for ; i < due && ctx.Err() == nil; i++ {
				send(i, begin.Add(time.Duration(float64(i)*interval)))
			}
			// At most a tick late: what a timer of this system can keep.
			if next := time.Until(begin.Add(time.Duration(float64(i) * interval))); next > 0 {
				time.Sleep(max(next, tick))
			}
		}
	}
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	p.cl.Flush(flush)
}

// tick is the shortest sleep of a producer with a rate: records that are due
// within it are sent together, each with its own intended time.
const tick = 200 * time.Microsecond

func (r *run) acked(p *producer, rec *kgo.Record, err error) {
	s := rec.Context.(*sentContext).of
	switch {
	case err == nil:
		if r.measuring.Load() {
			size := int64(len(rec.Key) + len(rec.Value))
			r.produced.records.Add(1)
			r.produced.bytes.Add(size)
			p.mu.Lock()
			record(p.hist, time.Since(s.at))
			p.mu.Unlock()
		}
	case errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
	default:
		r.failed(err)
	}
	s.rec = kgo.Record{}
	sents.Put(s)
}

// produceHook counts what a producer's client writes.
type produceHook struct{ r *run }

func (h produceHook) OnProduceBatchWritten(_ kgo.BrokerMetadata, _ string, _ int32, m kgo.ProduceBatchMetrics) {
	if h.r.measuring.Load() {
		h.r.produced.batches.Add(1)
		h.r.produced.batchRecords.Add(int64(m.NumRecords))
		h.r.produced.batchBytes.Add(int64(m.CompressedBytes) + batchHeader)
	}
}

func (h produceHook) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, n int, _, _ time.Duration, err error) {
	if key == 0 && err == nil && h.r.measuring.Load() {
		h.r.produced.requests.Add(1)
		h.r.produced.wire.Add(int64(n))
	}
}

// batchHeader is the size of a record batch before its records.
const batchHeader = 61

func codecOf(name string) (kgo.CompressionCodec, error) {
	switch name {
	case "none", "":
		return kgo.NoCompression(), nil
	case "gzip":
		return kgo.GzipCompression(), nil
	case "snappy":
		return kgo.SnappyCompression(), nil
	case "lz4":
		return kgo.Lz4Compression(), nil
	case "zstd":
		return kgo.ZstdCompression(), nil
	}
	return kgo.CompressionCodec{}, fmt.Errorf("load: codec %q: none, gzip, snappy, lz4 and zstd are possible", name)
}

func keysOf(n int) [][]byte {
	if n == 0 {
		return nil
	}
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%08d", i)
	}
	return keys
}

// each runs f for 0..n-1, some at a time, and returns the first error.
func each(n int, f func(i int) error) error {
	var mu sync.Mutex
	var first error
	slots := make(chan struct{}, 32)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := f(i); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return first
}
