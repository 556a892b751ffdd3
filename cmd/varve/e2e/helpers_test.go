package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

var long = os.Getenv("VARVE_LONG") == "1"

// patience ends what would otherwise hang for ever; nothing depends on it.
func patience(t testing.TB) context.Context {
	t.Helper()
	d := 2 * time.Minute
	if long {
		d = 20 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

type header struct {
	key   string
	value []byte // nil: null
}

// rec is a record as every client can express it. A nil key or value is null.
type rec struct {
	partition int32
	offset    int64
	key       []byte
	value     []byte
	headers   []header
	ts        int64 // milliseconds
}

func show(b []byte) string {
	switch {
	case b == nil:
		return "null"
	case len(b) > 40:
		return fmt.Sprintf("%q...(%d bytes)", b[:40], len(b))
	}
	return strconv.Quote(string(b))
}

func (r rec) String() string {
	s := fmt.Sprintf("%d/%d @%d %s=%s", r.partition, r.offset, r.ts, show(r.key), show(r.value))
	for _, h := range r.headers {
		s += fmt.Sprintf(" %s:%s", h.key, show(h.value))
	}
	return s
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func sameRec(a, b rec) bool {
	return a.partition == b.partition && a.offset == b.offset && a.ts == b.ts && sameBytes(a.key, b.key) && sameBytes(a.value, b.value) &&
		slices.EqualFunc(a.headers, b.headers, func(x, y header) bool { return x.key == y.key && sameBytes(x.value, y.value) })
}

func sortRecs(rs []rec) {
	slices.SortFunc(rs, func(a, b rec) int {
		if a.partition != b.partition {
			return int(a.partition - b.partition)
		}
		return int(a.offset - b.offset)
	})
}

// number gives each record the offset it has to get: the order of a partition
// is that in which its records were produced.
func number(rs []rec) []rec {
	out := slices.Clone(rs)
	next := map[int32]int64{}
	for i := range out {
		out[i].offset = next[out[i].partition]
		next[out[i].partition]++
	}
	sortRecs(out)
	return out
}

// compare reports the first differences of two sorted lists of records.
func compare(t testing.TB, what string, want, got []rec) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s: %d records, want %d", what, len(got), len(want))
	}
	bad := 0
	for i := range min(len(want), len(got)) {
		if !sameRec(want[i], got[i]) {
			t.Errorf("%s: record %d\n got %v\nwant %v", what, i, got[i], want[i])
			if bad++; bad == 3 {
				return
			}
		}
	}
}

func fromKgo(r *kgo.Record) rec {
	out := rec{partition: r.Partition, offset: r.Offset, key: r.Key, value: r.Value, ts: r.Timestamp.UnixMilli()}
	for _, h := range r.Headers {
		out.headers = append(out.headers, header{h.Key, h.Value})
	}
	return out
}

func toKgo(topic string, r rec) *kgo.Record {
	out := &kgo.Record{Topic: topic, Partition: r.partition, Key: r.key, Value: r.value, Timestamp: time.UnixMilli(r.ts)}
	for _, h := range r.headers {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: h.key, Value: h.value})
	}
	return out
}

func newKgo(t testing.TB, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addr)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// eager shortens franz-go's waits: it asks for metadata before it tries again
// what was refused, and by itself does so every few seconds only.
var eager = []kgo.Opt{kgo.MetadataMinAge(20 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond })}

func kgoProduce(t testing.TB, addr, topic string, rs []rec, opts ...kgo.Opt) {
	t.Helper()
	cl := newKgo(t, addr, append([]kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
	defer cl.Close()
	var out []*kgo.Record
	for _, r := range rs {
		out = append(out, toKgo(topic, r))
	}
	if err := cl.ProduceSync(patience(t), out...).FirstErr(); err != nil {
		t.Fatalf("franz-go: produce to %s: %v", topic, err)
	}
}

// kgoConsume reads n records of a topic from its beginning.
func kgoConsume(t testing.TB, addr, topic string, n int, opts ...kgo.Opt) []rec {
	t.Helper()
	cl := newKgo(t, addr, append([]kgo.Opt{
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		// It may ask for some partitions first, and for the others only when
		// that wait is over.
		kgo.FetchMaxWait(200 * time.Millisecond),
	}, opts...)...)
	defer cl.Close()
	var out []rec
	for ctx := patience(t); len(out) < n; {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("franz-go: %d of %d records of %s: %v", len(out), n, topic, ctx.Err())
		}
		// Errors that a consumer goes on after are not returned by franz-go.
		fs.EachError(func(topic string, p int32, err error) { t.Fatalf("franz-go: %s-%d: %v", topic, p, err) })
		fs.EachRecord(func(r *kgo.Record) { out = append(out, fromKgo(r)) })
	}
	sortRecs(out)
	return out
}

// rawFetch returns the record batches of a partition in [from, end of log) as
// the broker sent them.
func rawFetch(t testing.TB, cl *kgo.Client, topic string, partition int32, from, to int64) []byte {
	t.Helper()
	var out []byte
	servertest.Eventually(t, func() error {
		for from < to {
			run, err := fetchOnce(patience(t), cl, topic, partition, from, 1<<20)
			if err != nil {
				return err
			}
			err = batch.Walk(run, func(h batch.Header, b []byte) error {
				if err := batch.VerifyCRC(b); err != nil {
					t.Fatalf("%s-%d: batch at %d: %v", topic, partition, h.BaseOffset, err)
				}
				if h.NextOffset() <= from {
					return nil // the batch that contains the offset begins below it
				}
				out = append(out, b...)
				from = h.NextOffset()
				return nil
			})
			if err != nil {
				t.Fatalf("%s-%d at %d: %v", topic, partition, from, err)
			}
		}
		return nil
	})
	return out
}

// fetchOnce is one fetch without a session, waiting for at least one byte.
func fetchOnce(ctx context.Context, cl *kgo.Client, topic string, partition int32, offset int64, maxBytes int32) ([]byte, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 1000, 1, maxBytes
	req.SessionEpoch = -1
	// By name: the topic's id is not known here.
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = partition, offset, maxBytes, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := cl.Broker(1).RetriableRequest(ctx, fetchV12{req})
	if err != nil {
		return nil, err
	}
	f := resp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(f.ErrorCode); err != nil {
		return nil, err
	}
	if len(f.Topics) == 0 {
		return nil, nil
	}
	p := f.Topics[0].Partitions[0]
	return p.RecordBatches, kerr.ErrorForCode(p.ErrorCode)
}

// ready is what the admin listener answers to /readyz: 200, and warnings if there are any.
func ready(t testing.TB, b *servertest.Broker) string {
	t.Helper()
	resp, err := http.Get(b.AdminURL() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return string(text)
}

// fetchV12 is a fetch by topic name.
type fetchV12 struct{ *kmsg.FetchRequest }

func (fetchV12) MaxVersion() int16 { return 12 }

// metrics reads the broker's metrics; labelled ones are summed over their
// labels under the bare name, and kept under name{labels}.
func metrics(t testing.TB, b *servertest.Broker) map[string]float64 {
	t.Helper()
	resp, err := http.Get(b.AdminURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out := map[string]float64{}
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		line := sc.Text()
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			continue
		}
		out[line[:i]] += v
		if name, _, labelled := strings.Cut(line[:i], "{"); labelled {
			out[name] += v
		}
	}
	return out
}

// counting counts the requests that a bucket gets.
type counting struct {
	objstore.Bucket
	mu sync.Mutex
	n  map[objstore.Op]int
	// puts of data, not of what is published
	data int
}

func newCounting(b objstore.Bucket) *counting {
	c := &counting{n: map[objstore.Op]int{}}
	c.Bucket = objstore.Observe(b, objstore.Events{End: func(e objstore.Event) {
		c.mu.Lock()
		c.n[e.Op]++
		if e.Op == objstore.OpPut && strings.HasPrefix(e.Key, manifest.DataPrefix) {
			c.data++
		}
		c.mu.Unlock()
	}})
	return c
}

// uploads is how many objects of data were put.
func (c *counting) uploads() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.data
}

func (c *counting) count(op objstore.Op) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[op]
}

// text is n bytes that compress as text does and differ by seed.
func text(seed, n int) []byte {
	words := []string{"varve", "sediment", "layer", "season", "stream", "lake", "clay", "silt"}
	var b bytes.Buffer
	for x := uint64(seed)*2654435761 + 1; b.Len() < n; {
		x = x*6364136223846793005 + 1442695040888963407
		fmt.Fprintf(&b, "%s-%d ", words[x>>61], x>>40&0xfff)
	}
	return b.Bytes()[:n]
}
