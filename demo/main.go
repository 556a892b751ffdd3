// Command demo shows what Varve is for, on real data: produce a data set, let it be sealed and uploaded, let the local
// copy go, replay the whole log from object storage, and compare it record by record.
//
// It exits with 1 on any difference.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	topic      = "flights"
	partitions = 6
)

type options struct {
	binary string
	keep   bool
	wait   time.Duration
	sets   []string
}

func main() {
	var o options
	flag.StringVar(&o.binary, "varve", filepath.Join("bin", "varve"), "the varve binary to run")
	flag.BoolVar(&o.keep, "keep", false, "keep the data folder and say where it is")
	flag.DurationVar(&o.wait, "wait", 3*time.Minute, "how long upload and reclaim may take")
	flag.Func("set", "a setting for varve dev, name=value (repeatable)", func(s string) error { o.sets = append(o.sets, s); return nil })
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func run(ctx context.Context, o options) (err error) {
	flights, err := loadFlights(ctx, say)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "varve-demo-")
	if err != nil {
		return err
	}
	if o.keep {
		say("data folder: %s", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	b, err := startBroker(ctx, o.binary, dir, o.sets)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	say("varve dev serves %s, admin listener %s", b.kafka, b.adminURL)

	if err := createTopic(ctx, b.kafka); err != nil {
		return err
	}
	written, err := produce(ctx, b.kafka, flights)
	if err != nil {
		return err
	}
	say("%d records acknowledged; waiting for them to be in the bucket and gone from the local disk", len(flights))
	drainStart := time.Now()
	status, err := waitDrained(ctx, b, written, o.wait)
	if err != nil {
		return err
	}
	drained := time.Since(drainStart)
	before, err := b.requests(ctx)
	if err != nil {
		return err
	}
	first, err := replay(ctx, b.kafka, flights, written)
	if err != nil {
		return fmt.Errorf("first replay: %w", err)
	}
	middle, err := b.requests(ctx)
	if err != nil {
		return err
	}
	if middle["get"] == before["get"] {
		return errors.New("the replay read nothing from the bucket, so it did not come from object storage")
	}
	second, err := replay(ctx, b.kafka, flights, written)
	if err != nil {
		return fmt.Errorf("second replay: %w", err)
	}
	after, err := b.requests(ctx)
	if err != nil {
		return err
	}

	var objects, stored int64
	for _, s := range status {
		objects += s.Objects
		stored += s.Bytes
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	mbs := func(d time.Duration) string {
		return fmt.Sprintf("%.1f MB/s, %.0f records/s (%.2f s)", float64(written.bytes)/1e6/d.Seconds(), float64(len(flights))/d.Seconds(), d.Seconds())
	}
	fmt.Fprintln(tw)
	fmt.Fprintf(tw, "data set\t%s@%s, %s\n", packageName, packageVersion, packageFile)
	fmt.Fprintf(tw, "records\t%d in %d partitions\n", len(flights), partitions)
	fmt.Fprintf(tw, "bytes\t%.1f MB of keys, values and headers\n", float64(written.bytes)/1e6)
	fmt.Fprintf(tw, "in\t%s\n", mbs(written.took))
	fmt.Fprintf(tw, "uploaded and reclaimed\t%.1f s after the last acknowledgement\n", drained.Seconds())
	fmt.Fprintf(tw, "objects\t%d, %.1f MB (zstd)\n", objects, float64(stored)/1e6)
	fmt.Fprintf(tw, "replayed\t%s\n", mbs(first))
	fmt.Fprintf(tw, "replayed again\t%s\n", mbs(second))
	fmt.Fprintf(tw, "requests to the bucket\t%s\n", breakdown(nil, before)+" until drained")
	fmt.Fprintf(tw, "\t%s\n", breakdown(before, middle)+" in the first replay")
	fmt.Fprintf(tw, "\t%s\n", breakdown(middle, after)+" in the second")
	fmt.Fprintf(tw, "compared\tkey, value, headers, timestamp, order of each partition: no difference, twice\n")
	return tw.Flush()
}

// createTopic makes a topic whose records are kept forever in the bucket (they are of 2001) and as briefly as possible
// on the local disk.
func createTopic(ctx context.Context, addr string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	one, forever := "1", "-1"
	resp, err := kadm.NewClient(cl).CreateTopic(ctx, partitions, 1, map[string]*string{
		"retention.ms":          &forever,
		"local.retention.ms":    &one,
		"local.retention.bytes": &one,
	}, topic)
	if err == nil {
		err = resp.Err
	}
	if err != nil {
		return fmt.Errorf("creating topic %s: %w %s", topic, err, resp.ErrMessage)
	}
	return nil
}

// written is what the broker acknowledged: for each partition, the flights in the order of their offsets.
type written struct {
	parts [partitions][]int32
	bytes int64
	took  time.Duration
}

func produce(ctx context.Context, addr string, flights []flight) (*written, error) {
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(addr),
		kgo.DefaultProduceTopic(topic),
		kgo.RequiredAcks(kgo.AllISRAcks()), // idempotent, which is the client's default with these acks
		kgo.ProducerBatchCompression(kgo.ZstdCompression()),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.ProducerLinger(5*time.Millisecond),
	)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()

	type place struct {
		partition int32
		offset    int64
	}
	w := &written{}
	places := make([]place, len(flights))
	var mu sync.Mutex
	var failure error
	start := time.Now()
	for i := range flights {
		f := &flights[i]
		r := &kgo.Record{Key: f.key, Value: f.value, Timestamp: f.time}
		for _, h := range f.headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: h.value})
		}
		w.bytes += f.bytes()
		cl.Produce(ctx, r, func(r *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil && failure == nil {
				failure = fmt.Errorf("producing flight %d: %w", i, err)
			}
			places[i] = place{r.Partition, r.Offset}
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return nil, fmt.Errorf("producing: %w", err)
	}
	w.took = time.Since(start)
	mu.Lock()
	defer mu.Unlock()
	if failure != nil {
		return nil, failure
	}

	// One idempotent producer on an empty topic: offsets of a partition are 0, 1, 2, ... in the order of producing. The
	// flights are walked in that order, so that a gap, a duplicate and a swap all show here.
	for i, p := range places {
		if p.partition < 0 || p.partition >= partitions {
			return nil, fmt.Errorf("flight %d was acknowledged in partition %d", i, p.partition)
		}
		if want := int64(len(w.parts[p.partition])); p.offset != want {
			return nil, fmt.Errorf("flight %d was acknowledged at %d/%d, expected offset %d", i, p.partition, p.offset, want)
		}
		w.parts[p.partition] = append(w.parts[p.partition], int32(i))
	}
	return w, nil
}

// waitDrained waits until everything acknowledged is in the bucket and nothing of it on the local disk.
func waitDrained(ctx context.Context, b *broker, w *written, wait time.Duration) ([]tierStatus, error) {
	deadline := time.After(wait)
	for {
		list, err := b.tier(ctx, topic)
		why := ""
		switch {
		case err != nil:
			why = err.Error()
		case len(list) != partitions:
			why = fmt.Sprintf("%d partitions have a tier status, expected %d", len(list), partitions)
		}
		for _, s := range list {
			want := int64(len(w.parts[s.Partition%partitions]))
			switch {
			case s.LogStart != 0:
				return nil, fmt.Errorf("partition %d: log start is %d although retention.ms is -1", s.Partition, s.LogStart)
			case s.HighWatermark != want:
				why = fmt.Sprintf("partition %d: high watermark %d, acknowledged %d", s.Partition, s.HighWatermark, want)
			case s.RemoteEnd != s.HighWatermark:
				why = fmt.Sprintf("partition %d: remote end %d, high watermark %d", s.Partition, s.RemoteEnd, s.HighWatermark)
			case s.LocalStart != s.RemoteEnd:
				why = fmt.Sprintf("partition %d: local start %d, remote end %d", s.Partition, s.LocalStart, s.RemoteEnd)
			}
		}
		if why == "" {
			return list, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-b.exited:
			return nil, b.died()
		case <-deadline:
			return nil, fmt.Errorf("not drained after %s: %s", wait, why)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// maxSilence is how long a replay may bring nothing.
const maxSilence = time.Minute

// replay reads the topic from its beginning and compares every record with the flight that was written there.
func replay(ctx context.Context, addr string, flights []flight, w *written) (time.Duration, error) {
	begin := map[int32]kgo.Offset{}
	missing := 0
	for p := range w.parts {
		begin[int32(p)] = kgo.NewOffset().At(0)
		missing += len(w.parts[p])
	}
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(addr),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: begin}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxPartitionBytes(8<<20),
	)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	var next [partitions]int64
	start := time.Now()
	for missing > 0 {
		pollCtx, cancel := context.WithTimeout(ctx, maxSilence)
		fs := cl.PollFetches(pollCtx)
		cancel()
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := fs.Err(); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("no record for %s", maxSilence)
			}
			return 0, fmt.Errorf("%w; %d records are missing, next offsets %v", err, missing, next)
		}
		for r := range fs.RecordsAll() {
			p := r.Partition
			if r.Offset != next[p] {
				return 0, fmt.Errorf("partition %d: offset %d where %d was expected", p, r.Offset, next[p])
			}
			if r.Offset >= int64(len(w.parts[p])) {
				return 0, fmt.Errorf("partition %d: a record at offset %d that nobody produced", p, r.Offset)
			}
			if diff := flights[w.parts[p][r.Offset]].compare(r); diff != "" {
				return 0, fmt.Errorf("partition %d offset %d: %s", p, r.Offset, diff)
			}
			next[p]++
			missing--
		}
	}
	return time.Since(start), nil
}

// compare says how a record differs from the flight, or "".
func (f *flight) compare(r *kgo.Record) string {
	switch {
	case !bytes.Equal(r.Key, f.key):
		return fmt.Sprintf("key %q, expected %q", r.Key, f.key)
	case !bytes.Equal(r.Value, f.value):
		return fmt.Sprintf("value %q, expected %q", r.Value, f.value)
	case !r.Timestamp.Equal(f.time):
		return fmt.Sprintf("timestamp %s, expected %s", r.Timestamp.UTC(), f.time)
	case len(r.Headers) != len(f.headers):
		return fmt.Sprintf("%d headers, expected %d", len(r.Headers), len(f.headers))
	}
	for i, h := range f.headers {
		if r.Headers[i].Key != h.key || !bytes.Equal(r.Headers[i].Value, h.value) {
			return fmt.Sprintf("header %s=%q, expected %s=%q", r.Headers[i].Key, r.Headers[i].Value, h.key, h.value)
		}
	}
	return ""
}

// breakdown prints the requests between two moments, by operation.
func breakdown(before, after map[string]float64) string {
	var ops []string
	for op := range after {
		ops = append(ops, op)
	}
	sort.Strings(ops)
	var parts []string
	sum := 0.0
	for _, op := range ops {
		if n := after[op] - before[op]; n > 0 {
			parts = append(parts, fmt.Sprintf("%.0f %s", n, op))
			sum += n
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return fmt.Sprintf("%.0f (%s)", math.Round(sum), strings.Join(parts, ", "))
}
