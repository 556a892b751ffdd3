package load

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consumer is one client that reads partitions of its own.
type consumer struct {
	cl   *kgo.Client
	mu   sync.Mutex
	hist *hdrhistogram.Histogram
}

func (c *consumer) close() { c.cl.Close() }

const (
	atEnd   = false
	atStart = true
)

// Extent is the offsets of a topic's partitions: [Start, End).
type Extent struct{ Start, End int64 }

// Extents asks for the offsets of a topic.
func Extents(ctx context.Context, bootstrap []string, topic string) (map[int32]Extent, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap...), kgo.ClientID("varve-bench"), kgo.DisableClientMetrics())
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("load: first offsets of %s: %w", topic, err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("load: last offsets of %s: %w", topic, err)
	}
	out := map[int32]Extent{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err != nil {
			err = fmt.Errorf("load: last offset of %s-%d: %w", topic, o.Partition, o.Err)
			return
		}
		s, _ := starts.Lookup(topic, o.Partition)
		out[o.Partition] = Extent{s.Offset, o.Offset}
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("load: topic %s has no partitions", topic)
	}
	return out, err
}

// openConsumers opens the consumers of all groups, each with its part of the
// partitions, from the start or from the present end.
func (r *run) openConsumers(ctx context.Context, fromStart bool) ([]*consumer, error) {
	if r.spec.Consumers == 0 {
		return nil, nil
	}
	ext, err := Extents(ctx, r.spec.Bootstrap, r.spec.sink())
	if err != nil {
		return nil, err
	}
	r.extents = ext
	if r.spec.Partitions == 0 {
		r.spec.Partitions = len(ext)
	}
	isolation := kgo.ReadUncommitted()
	if r.spec.Processors > 0 {
		isolation = kgo.ReadCommitted()
	}
	per := r.spec.Consumers / r.spec.Groups
	var out []*consumer
	for i := range r.spec.Consumers {
		mine := map[int32]kgo.Offset{}
		for p, x := range ext {
			if int(p)%per != i%per {
				continue
			}
			at := x.End
			if fromStart {
				at = x.Start
			}
			mine[p] = kgo.NewOffset().At(at)
		}
		c := &consumer{hist: newHistogram()}
		cl, err := kgo.NewClient(append(r.options("varve-bench-c"+strconv.Itoa(i), fetchHook{r}),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{r.spec.sink(): mine}),
			kgo.FetchIsolationLevel(isolation),
			kgo.FetchMaxBytes(int32(r.spec.FetchMaxBytes)),
			kgo.FetchMaxPartitionBytes(int32(r.spec.PartitionMaxBytes)),
			kgo.FetchMinBytes(int32(r.spec.FetchMinBytes)),
			kgo.FetchMaxWait(r.spec.FetchMaxWait),
			kgo.BrokerMaxReadBytes(int32(min(2*r.spec.FetchMaxBytes+(16<<20), 1<<30))),
		)...)
		if err != nil {
			return out, fmt.Errorf("load: consumer: %w", err)
		}
		c.cl = cl
		out = append(out, c)
		r.ends = append(r.ends, c)
	}
	return out, nil
}

// consume reads until ctx ends, or until every partition has been read to the
// end that upTo says.
func (r *run) consume(ctx context.Context, c *consumer, upTo func(partition int32, next int64) (done bool)) {
	for {
		fs := c.cl.PollFetches(ctx)
		if fs.IsClientClosed() || ctx.Err() != nil {
			return
		}
		fs.EachError(func(_ string, _ int32, err error) {
			if !errors.Is(err, context.Canceled) {
				r.failed(err)
			}
		})
		measuring := r.measuring.Load()
		now := time.Now()
		done := false
		c.mu.Lock()
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			bytes := int64(0)
			for _, rec := range p.Records {
				bytes += int64(len(rec.Key) + len(rec.Value))
				if r.stamped && measuring && len(rec.Key) == 16 && binary.BigEndian.Uint64(rec.Key) == uint64(r.id) {
					record(c.hist, now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(rec.Key[8:])))))
				}
			}
			if measuring { // before it is said how far this is, as that may end the measurement
				r.consumed.records.Add(int64(len(p.Records)))
				r.consumed.bytes.Add(bytes)
			}
			if upTo != nil && len(p.Records) > 0 {
				done = upTo(p.Partition, p.Records[len(p.Records)-1].Offset+1)
			}
		})
		c.mu.Unlock()
		if done {
			return
		}
	}
}

// Replay reads a topic from its first offset to where it ended when the replay
// began, with Consumers clients. There is no warm-up: what is measured is how
// long it takes. It ends early, with an error, when ctx does.
func Replay(ctx context.Context, spec Spec) (*Result, error) {
	spec.Producers, spec.Groups, spec.Warmup = 0, 1, 0
	spec.Consumers = max(spec.Consumers, 1)
	spec.Duration = max(spec.Duration, time.Hour)
	if err := spec.defaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newRun(&spec)
	var cons []*consumer
	var err error
	if spec.Raw {
		r.extents, err = Extents(ctx, spec.Bootstrap, spec.Topic)
		spec.Partitions = len(r.extents)
	} else {
		cons, err = r.openConsumers(ctx, atStart)
	}
	defer closeAll(cons)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	left := map[int32]int64{}
	for p, x := range r.extents {
		if x.End > x.Start {
			left[p] = x.End
		}
	}
	if len(left) == 0 {
		return nil, fmt.Errorf("load: topic %s is empty: there is nothing to replay", spec.Topic)
	}
	ended := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	var rawErr error
	read := func() {
		if spec.Raw {
			ends := maps.Clone(left)
			wg.Go(func() {
				rawErr = r.replayRaw(ctx, ends)
				close(ended)
			})
		}
		for _, c := range cons {
			wg.Go(func() {
				r.consume(ctx, c, func(p int32, next int64) bool {
					mu.Lock()
					defer mu.Unlock()
					if end, ok := left[p]; ok && next >= end {
						delete(left, p)
					}
					if len(left) == 0 {
						once.Do(func() { close(ended) })
						return true
					}
					return false
				})
			})
		}
	}
	res, err := r.measure(ctx, ended, read)
	cancel()
	wg.Wait()
	if err = cmp.Or(rawErr, err); err != nil { // why nothing came says more than that nothing did
		return nil, err
	}
	res.What, res.Load.DurationSeconds = "replay", 0
	return res, nil
}

// Add makes a replay and another one of the same data one result.
func (r *Result) Add(o *Result) {
	r.Seconds += o.Seconds
	r.Errors += o.Errors
	c, oc := r.Consumed, o.Consumed
	c.Records, c.Bytes, c.Batches, c.WireBytes, c.Requests = c.Records+oc.Records, c.Bytes+oc.Bytes, c.Batches+oc.Batches, c.WireBytes+oc.WireBytes, c.Requests+oc.Requests
	c.RecordsPerSecond, c.MBPerSecond = float64(c.Records)/r.Seconds, float64(c.Bytes)/1e6/r.Seconds
	add := func(u *Usage, ou Usage) {
		u.CPUSeconds += ou.CPUSeconds
		u.Cores, u.PeakRSS = u.CPUSeconds/r.Seconds, max(u.PeakRSS, ou.PeakRSS)
	}
	add(&r.Client, o.Client)
	if r.Broker != nil && o.Broker != nil {
		add(r.Broker, *o.Broker)
		r.Broker.SecondsPerGB = r.Broker.CPUSeconds / (float64(c.Bytes) / 1e9)
	}
}

// fetchHook counts what a consumer's client reads.
type fetchHook struct{ r *run }

func (h fetchHook) OnFetchBatchRead(_ kgo.BrokerMetadata, _ string, _ int32, m kgo.FetchBatchMetrics) {
	if h.r.measuring.Load() {
		h.r.consumed.batches.Add(1)
		h.r.consumed.batchRecords.Add(int64(m.NumRecords))
		h.r.consumed.batchBytes.Add(int64(m.CompressedBytes) + batchHeader)
	}
}

func (h fetchHook) OnBrokerRead(_ kgo.BrokerMetadata, key int16, n int, _, _ time.Duration, err error) {
	if key == 1 && err == nil && h.r.measuring.Load() {
		h.r.consumed.requests.Add(1)
		h.r.consumed.wire.Add(int64(n))
	}
}
