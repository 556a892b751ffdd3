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
	gb                         float64
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
	c, err := cluster.New(cluster.Options{Dir: dir, Brokers: 1, Etcd: 1, FreePorts: true, Varve: []string{binary}, Servers: []string{self}, MinIO: minio,
		Set: []string{"remote.flush.interval.ms=5000", "default.replication.factor=1", "wal.max.bytes=17179869184"}})
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
	sent, err := fill(ctx, cl, o)
	if err != nil {
		return err
	}
	// What is in the bucket is not the last flush.
	began := time.Now()
	for {
		end, err := remoteEnd(ctx, cl)
		if err != nil {
			return err
		}
		if end >= sent*99/100 {
			break
		}
		if time.Since(began) > 5*time.Minute {
			return fmt.Errorf("%d of %d records are in the bucket", end, sent)
		}
		time.Sleep(200 * time.Millisecond)
	}
	return compact(ctx, c, binary, dir, o)
}

// fill produces records with random keys, every key once to begin with.
func fill(ctx context.Context, cl *kgo.Client, o options) (n int64, err error) {
	values := load.Payload(o.payload).Values(o.value, 1)
	rng := rand.New(rand.NewPCG(1, 2))
	n = int64(o.gb * 1e9 / float64(o.value+16))
	began := time.Now()
	var mu sync.Mutex
	var failed error
	for i := range n {
		key := rng.IntN(o.keys)
		if i < int64(o.keys) {
			key = int(i)
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

// compact runs a worker until there is nothing to do, and tells what that took.
func compact(ctx context.Context, c *cluster.Cluster, binary, dir string, o options) error {
	admin, err := child.FreeAddr()
	if err != nil {
		return err
	}
	settings := []string{"etcd.endpoints=" + c.Describe().Etcd[0].Client, "remote.storage.url=" + c.BucketURL(), "admin.listener=" + admin,
		"log.cleaner.backoff.ms=1000", "log.cleaner.spool.dir=" + dir, "remote.delete.grace.ms=3600000"}
	for s := range strings.SplitSeq(o.set, ",") {
		if s != "" {
			settings = append(settings, s)
		}
	}
	began := time.Now()
	w, err := child.Start(ctx, &child.Process{Name: "varve compactor", Log: filepath.Join(dir, "compactor.log")}, exec.Command(binary, append([]string{"compactor"}, child.SetFlags(settings)...)...), func() error {
		return child.AnswersOK("http://" + admin + "/metrics")
	})
	if err != nil {
		return err
	}
	defer w.Kill()
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
	var m map[string]float64
	for looks, last := 0, 0.0; ; time.Sleep(200 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if m, err = metrics(admin); err != nil {
			return fmt.Errorf("%w\n%s", err, w.Tail())
		}
		if m["varve_compaction_failing_partitions"] > 0 || time.Since(began) > 10*time.Minute {
			return fmt.Errorf("the worker does not get on\n%s", w.Tail())
		}
		if at := m["varve_compaction_last_round_timestamp_seconds"]; at != last {
			looks, last = looks+1, at
		}
		if looks >= 2 && m["varve_compaction_pending_partitions"] == 0 && m[`varve_compaction_jobs_total{job="compact"}`] > 0 {
			break
		}
	}
	t, err := load.Times(w.PID())
	if err != nil {
		return err
	}
	all := func(name string) (sum float64) {
		for _, kind := range []string{"compact", "purge", "merge"} {
			sum += m[name+`{job="`+kind+`"}`]
		}
		return sum
	}
	took := all("varve_compaction_seconds_total")
	records := m[`varve_compaction_records_total{job="compact"}`]
	gb := records * float64(o.value+16) / 1e9 // of keys and values that were gone over
	fmt.Printf("codec %s, payload %s: %.2f GB of keys and values, %.2f GB read, %.2f GB written, %.0f of %.0f records kept, in %.1f s\n", o.codec, o.payload, gb,
		all("varve_compaction_read_bytes_total")/1e9, all("varve_compaction_written_bytes_total")/1e9, m[`varve_compaction_kept_records_total{job="compact"}`], records, took)
	fmt.Printf("%.0f MB/s of dirty data; CPU %.2f s for each GB (%.1f s); peak memory %d MiB\n", gb*1000/took, t.CPU.Seconds()/gb, t.CPU.Seconds(), peak(w.PID())>>20)
	var requests []string
	for _, op := range []string{"get", "put", "list", "delete"} {
		n := m[`varve_objstore_requests_total{operation="`+op+`",outcome="ok"}`]
		requests = append(requests, fmt.Sprintf("%s %.0f (%.0f a GB)", op, n, n/gb))
	}
	fmt.Println("requests:", strings.Join(requests, ", "))
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

func metrics(admin string) (map[string]float64, error) {
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && line[0] != '#' {
			m[line[:i]], _ = strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
		}
	}
	return m, nil
}
