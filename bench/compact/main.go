// Command compact measures a compaction worker as it runs in a cluster: a broker, a member of etcd and an S3 server as
// processes, a topic of keyed records that are overwritten at random, and then a `varve compactor` over what is in the
// bucket.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/internal/install"
)

type options struct {
	varve, dir, codec, payload string
	gb, stream, rate, day      float64
	keys, value, batch         int
	minio                      bool
	profile                    string
	set                        string
}

func main() {
	cluster.Serve(os.Args[1:])
	var o options
	flag.StringVar(&o.varve, "varve", "bin/varve", "the program")
	flag.StringVar(&o.dir, "dir", "", "where everything is kept, and removed afterwards (default: a new temporary directory)")
	flag.Float64Var(&o.gb, "gb", 5, "GB of keys and values to compact")
	flag.Float64Var(&o.stream, "stream", 0, "GB of further records of the same keys that come in when the worker has done with those, while it works")
	flag.Float64Var(&o.day, "day", 10, "GB that come in a day, as far as flushes and rests go: these are shortened by as much as -rate is faster")
	flag.Float64Var(&o.rate, "rate", 20, "MB of keys and values that come in a second with -stream")
	flag.IntVar(&o.keys, "keys", 1_000_000, "different keys")
	flag.IntVar(&o.value, "value", 1024, "bytes of a value")
	flag.IntVar(&o.batch, "batch", 64<<10, "bytes of a batch before compression")
	flag.StringVar(&o.codec, "codec", "none", "of the batches: none or zstd")
	flag.StringVar(&o.payload, "payload", "json", "of the values: json or random")
	flag.BoolVar(&o.minio, "minio", false, "objects in a MinIO server that make interop has built, instead of the S3 server of the tests")
	flag.StringVar(&o.profile, "profile", "", "write the worker's CPU profile to this file")
	flag.StringVar(&o.set, "set", "", "settings of the worker, as name=value,...")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "compact:", err)
		os.Exit(1)
	}
}

const topic = "bench-compact"

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp(o.dir, "varve-compact-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	minio := ""
	if o.minio {
		found := false
		if minio, found = install.FindMinIO(); !found {
			return errors.New("there is no MinIO server: make interop builds one")
		}
	}
	binary, err := filepath.Abs(o.varve)
	if err != nil {
		return err
	}
	flush := "5000"
	if o.stream > 0 {
		flush = strconv.FormatInt(max(o.shortened(time.Minute), 100), 10)
	}
	c, err := cluster.New(cluster.Options{Dir: dir, Brokers: 1, Etcd: 1, FreePorts: true, Varve: []string{binary}, Servers: []string{self}, MinIO: minio,
		Set: []string{"remote.flush.interval.ms=" + flush, "default.replication.factor=1", "wal.max.bytes=17179869184"}})
	if err != nil {
		return err
	}
	if _, err := c.Up(ctx); err != nil {
		return err
	}
	defer c.Down()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Bootstrap()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(int32(o.batch)),
		kgo.ProducerLinger(20*time.Millisecond), kgo.MaxBufferedRecords(100_000), kgo.ProducerBatchCompression(map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "zstd": kgo.ZstdCompression()}[o.codec]))
	if err != nil {
		return err
	}
	defer cl.Close()
	policy, soon := "compact", "1000"
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 1, map[string]*string{"cleanup.policy": &policy, "file.delete.delay.ms": &soon}, topic); err != nil {
		return err
	}
	sent, err := fill(ctx, cl, o, o.records(o.gb), 0)
	if err != nil {
		return err
	}
	if err := uploaded(ctx, cl, sent*99/100); err != nil {
		return err
	}
	w, err := start(ctx, c, binary, dir, o)
	if err != nil {
		return err
	}
	defer w.Kill()
	before, err := w.idle(ctx, nil)
	if err != nil {
		return err
	}
	if err := w.tell(before, nil); err != nil || o.stream == 0 {
		return err
	}
	n := o.records(o.stream)
	if _, err := fill(ctx, cl, o, n, o.rate*1e6); err != nil {
		return err
	}
	if err := uploaded(ctx, cl, sent+n*99/100); err != nil {
		return err
	}
	after, err := w.idle(ctx, before)
	if err != nil {
		return err
	}
	return w.tell(after, before)
}

// records is how many make so many GB.
func (o *options) records(gb float64) int64 { return int64(gb * 1e9 / float64(o.value+keyBytes)) }

const keyBytes = 16

// shortened is what a time of the day that -day speaks of comes to, in ms.
func (o *options) shortened(d time.Duration) int64 {
	return int64(d.Seconds() * 1000 * (o.day * 1e9 / 86400) / (o.rate * 1e6))
}

// uploaded waits until the partition is in object storage that far.
func uploaded(ctx context.Context, cl *kgo.Client, offset int64) error {
	// What is in the bucket is not the last flush.
	began := time.Now()
	for {
		end, err := remoteEnd(ctx, cl)
		if err != nil {
			return err
		}
		if end >= offset {
			return nil
		}
		if time.Since(began) > 5*time.Minute {
			return fmt.Errorf("%d of %d records are in the bucket", end, offset)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// fill produces n records, so many bytes a second: of the first fill every key once to begin with, then random keys.
func fill(ctx context.Context, cl *kgo.Client, o options, n int64, rate float64) (sent int64, err error) {
	values := load.Payload(o.payload).Values(o.value, 1)
	rng := rand.New(rand.NewPCG(1, 2))
	began := time.Now()
	var mu sync.Mutex
	var failed error
	for i := range n {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		key := rng.IntN(o.keys)
		if i < int64(o.keys) && rate == 0 {
			key = int(i)
		}
		if rate > 0 && i%100 == 0 {
			time.Sleep(time.Until(began.Add(time.Duration(float64(i*int64(o.value+keyBytes)) / rate * float64(time.Second)))))
		}
		cl.Produce(ctx, &kgo.Record{Key: fmt.Appendf(nil, "key-%012d", key), Value: values[int(i)%len(values)]}, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	fmt.Printf("produced %d records with %d keys in %s\n", n, min(n, int64(o.keys)), time.Since(began).Round(time.Second))
	return n, failed
}

// remoteEnd is how far the partition is in object storage.
func remoteEnd(ctx context.Context, cl *kgo.Client) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Timestamp = -5 // the last offset that is in object storage
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return 0, err
	}
	return resp.Topics[0].Partitions[0].Offset + 1, nil
}

// worker is a varve compactor.
type worker struct {
	*child.Process
	admin string
	o     options
}

func start(ctx context.Context, c *cluster.Cluster, binary, dir string, o options) (*worker, error) {
	admin, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	backoff, grace := "1000", "3600000"
	if o.stream > 0 {
		backoff, grace = strconv.FormatInt(o.shortened(15*time.Second), 10), "2000"
	}
	settings := []string{"etcd.endpoints=" + c.Describe().Etcd[0].Client, "remote.storage.url=" + c.BucketURL(), "admin.listener=" + admin,
		"log.cleaner.backoff.ms=" + backoff, "log.cleaner.spool.dir=" + dir, "remote.delete.grace.ms=" + grace}
	for s := range strings.SplitSeq(o.set, ",") {
		if s != "" {
			settings = append(settings, s)
		}
	}
	p := &child.Process{Name: "varve compactor", Log: filepath.Join(dir, "compactor.log")}
	if _, err := child.Start(ctx, p, exec.Command(binary, append([]string{"compactor"}, child.SetFlags(settings)...)...), func() error {
		return child.AnswersOK("http://" + admin + "/metrics")
	}); err != nil {
		return nil, err
	}
	if o.profile != "" {
		go func() {
			resp, err := http.Get("http://" + admin + "/debug/pprof/profile?seconds=8")
			if err != nil {
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			os.WriteFile(o.profile, b, 0o644)
		}()
	}
	return &worker{p, admin, o}, nil
}

// idle waits until the worker finds nothing to do any more, having compacted something since before.
func (w *worker) idle(ctx context.Context, before figures) (m figures, err error) {
	const job = `varve_compaction_jobs_total{job="compact"}`
	began := time.Now()
	for looks, last := 0, 0.0; ; time.Sleep(200 * time.Millisecond) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if m, err = w.figures(); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, w.Tail())
		}
		if m["varve_compaction_failing_partitions"] > 0 || time.Since(began) > time.Hour {
			return nil, fmt.Errorf("the worker does not get on\n%s", w.Tail())
		}
		if at := m["varve_compaction_last_round_timestamp_seconds"]; at != last {
			looks, last = looks+1, at
		}
		if looks >= 2 && m["varve_compaction_pending_partitions"] == 0 && m[job] > before[job] {
			return m, nil
		}
	}
}

// tell prints what the worker did from one moment to another.
func (w *worker) tell(now, before figures) error {
	o := w.o
	t, err := load.Times(w.PID())
	if err != nil {
		return err
	}
	did := func(name string) float64 { return now[name] - before[name] }
	of := func(name, kind string) float64 { return did(name + `{job="` + kind + `"}`) }
	all := func(name string) float64 { return of(name, "compact") + of(name, "purge") + of(name, "merge") }
	took := all("varve_compaction_seconds_total")
	records := of("varve_compaction_records_total", "compact")
	gb := records * float64(o.value+keyBytes) / 1e9 // of keys and values that were gone over
	if before != nil {
		gb = o.stream
		fmt.Printf("of %.2f GB that came in at %.0f MB/s, for each GB of keys and values:\n", gb, o.rate)
		for _, kind := range []string{"compact", "merge", "purge"} {
			fmt.Printf("  %-8s %.0f jobs in all, read %.2f GB, written %.2f GB\n", kind, of("varve_compaction_jobs_total", kind), of("varve_compaction_read_bytes_total", kind)/1e9/gb,
				of("varve_compaction_written_bytes_total", kind)/1e9/gb)
		}
	}
	fmt.Printf("codec %s, payload %s: %.2f GB of keys and values, %.2f GB read, %.2f GB written, %.0f of %.0f records kept, in %.1f s; dirty ratio %.2f is left\n", o.codec, o.payload, gb,
		all("varve_compaction_read_bytes_total")/1e9, all("varve_compaction_written_bytes_total")/1e9, of("varve_compaction_kept_records_total", "compact"), records, took,
		now["varve_compaction_max_dirty_ratio"])
	cpu := t.CPU.Seconds() - before["cpu"]
	now["cpu"] = t.CPU.Seconds()
	fmt.Printf("%.0f MB/s of dirty data; CPU %.2f s for each GB (%.1f s); peak memory %d MiB\n", gb*1000/took, cpu/gb, cpu, peak(w.PID())>>20)
	var requests []string
	for _, op := range []string{"get", "put", "head", "list", "delete"} {
		n := did(`varve_objstore_requests_total{operation="` + op + `",outcome="ok"}`)
		requests = append(requests, fmt.Sprintf("%s %.0f (%.0f a GB)", op, n, n/gb))
	}
	fmt.Println("requests:", strings.Join(requests, ", "))
	if b, err := os.ReadFile("/proc/loadavg"); err == nil { // with what else the machine does
		fmt.Println("load of the machine in 1, 5 and 15 minutes:", strings.Join(strings.Fields(string(b))[:3], ", "))
	}
	return nil
}

// peak is the largest resident set that a process has had.
func peak(pid int) (bytes int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// figures are metrics by name, as /metrics has them.
type figures map[string]float64

func (w *worker) figures() (figures, error) {
	resp, err := http.Get("http://" + w.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	m := figures{}
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && line[0] != '#' {
			m[line[:i]], _ = strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
		}
	}
	return m, nil
}
