package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
)

// bucket is Varve's object store while replays are measured: a MinIO server, or
// a directory where there is none.
type bucket struct {
	minio    *minio.Client
	endpoint string
	dir      string
}

const bucketName = "bench"

// startBucket is what has to be there before Varve starts.
func startBucket(ctx context.Context, r *runner, run *setupRun) ([]string, error) {
	dir := filepath.Join(r.dir, run.setup.Name+"-bucket")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	settings := []string{
		// Objects as large as they are in the field, and what is left over soon.
		"remote.flush.interval.ms=10000",
		// Less than is replayed, so that a second replay comes from the bucket like the first.
		fmt.Sprintf("remote.cache.memory.bytes=%d", max(r.replay/3, 64<<20)),
		"wal.max.bytes=12884901888",
	}
	if r.minio == "" {
		run.shared, run.stop = &bucket{dir: dir}, func() { os.RemoveAll(dir) }
		return append(settings, "remote.storage.url=file://"+dir), nil
	}
	addr, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	server, err := child.StartMinIO(ctx, r.minio, dir, addr)
	if err != nil {
		return nil, err
	}
	run.stop = func() { server.Kill(); os.RemoveAll(dir) }
	creds := filepath.Join(dir, "credentials")
	if err := child.WriteCredentials(creds); err != nil {
		return nil, err
	}
	cl, err := minio.New(addr, &minio.Options{Creds: credentials.NewStaticV4(child.MinIOUser, child.MinIOPassword, "")})
	if err != nil {
		return nil, err
	}
	run.shared = &bucket{minio: cl, endpoint: addr}
	return append(settings, "remote.storage.url=minio://"+addr+"/"+bucketName+"/log?create=true&credentials_file="+url.QueryEscape(creds)), nil
}

// The topics that are replayed.
const (
	manyTopic = "replay-16"
	oneTopic  = "replay-1"
	mostTopic = "replay-64" // not in the quick form
	tailTopic = "replay-tail"
)

// fillReplay produces what is replayed and waits until it is in the object
// stores and gone from the local logs.
func fillReplay(ctx context.Context, r *runner, run *setupRun) error {
	for _, kind := range []string{kafka, varve} {
		b := run.brokers[kind]
		began := time.Now()
		topics := map[string]int{manyTopic: 16, oneTopic: 1}
		if !r.quick {
			topics[mostTopic] = 64
		}
		for topic, parts := range topics {
			size := r.replay
			switch topic {
			case oneTopic:
				size /= 4
			case mostTopic:
				size /= 2
			}
			if err := r.fill(ctx, b, topic, parts, size); err != nil {
				return fmt.Errorf("filling %s on %s: %w", topic, kind, err)
			}
		}
		if err := r.createTopic(ctx, b, tailTopic, 16, b.replicas(), 16<<10); err != nil {
			return err
		}
		if err := r.offloaded(ctx, b); err != nil {
			return fmt.Errorf("%s keeps its local log: %w", kind, err)
		}
		r.say("%s has what is replayed in its object store after %.0f s", kind, time.Since(began).Seconds())
		if err := r.warmReplay(ctx, b); err != nil {
			return fmt.Errorf("warming up the replay of %s: %w", kind, err)
		}
	}
	return nil
}

// warmReplay replays for a while, which no warm-up of a load does: Kafka's first
// replay of 2 GB took three times as long as its last, for what reads remote
// segments was not compiled.
func (r *runner) warmReplay(ctx context.Context, b *broker) error {
	d := r.warmup / 2
	if b.kind == varve {
		d = max(d/4, time.Second)
	}
	limit, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for limit.Err() == nil {
		if _, err := load.Replay(limit, load.Spec{Bootstrap: []string{b.addr}, Topic: manyTopic, Consumers: 4, Raw: true}); err != nil && limit.Err() == nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (r *runner) fill(ctx context.Context, b *broker, topic string, partitions int, size int64) error {
	// Segments as large as Varve's objects are by default.
	configs := []string{"local.retention.bytes=1"}
	if b.kind == kafka {
		configs = append(configs, "remote.storage.enable=true", "segment.bytes=67108864")
	}
	if err := r.createTopic(ctx, b, topic, partitions, b.replicas(), 64<<10, configs...); err != nil {
		return err
	}
	full, stop := context.WithCancel(ctx)
	defer stop()
	_, err := load.Run(full, load.Spec{
		Bootstrap: []string{b.addr}, Topic: topic, Producers: 4, RecordBytes: 1 << 10, Payload: load.Random, BatchBytes: 64 << 10,
		Linger: 5 * time.Millisecond, Acks: "all", Duration: time.Hour,
		Progress: func(p load.Progress) {
			if p.Bytes >= size {
				stop()
			}
		},
	})
	if err != nil && full.Err() == nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if b.kind != kafka {
		return nil
	}
	// Kafka uploads only segments that are closed: a record after segment.ms closes the last one.
	return r.roll(ctx, b, topic, partitions)
}

func (r *runner) roll(ctx context.Context, b *broker, topic string, partitions int) error {
	cl, err := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableIdempotentWrite())
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	set := func(ms string) error {
		changed, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "segment.ms", Value: &ms}}, topic)
		if err == nil {
			_, err = changed.On(topic, nil)
		}
		return err
	}
	if err := set("1000"); err != nil {
		return err
	}
	for range 2 {
		if err := pause(ctx, 1500*time.Millisecond); err != nil {
			return err
		}
		for p := range int32(partitions) {
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: p, Value: make([]byte, 1024)}).FirstErr(); err != nil {
				return err
			}
		}
	}
	return set("604800000")
}

// offloaded waits until the object store has nearly all of what is replayed,
// and the local log nothing of that.
func (r *runner) offloaded(ctx context.Context, b *broker) error {
	return child.Eventually(ctx, 4*time.Minute, func() error {
		if b.kind == kafka {
			var local int64
			for _, topic := range []string{manyTopic, oneTopic, mostTopic} {
				dirs, _ := filepath.Glob(filepath.Join(b.dir, "data", topic+"-*"))
				for _, d := range dirs {
					logs, _ := filepath.Glob(filepath.Join(d, "*.log"))
					for _, l := range logs {
						local += blocksOf(l)
					}
				}
			}
			if local > r.replay/100 {
				return fmt.Errorf("%d MB are still there", local/1e6)
			}
			return nil
		}
		resp, err := http.Get(b.admin + "/v1/tier")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var list []struct {
			Topic         string `json:"topic"`
			LocalStart    int64  `json:"local_start"`
			HighWatermark int64  `json:"high_watermark"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			return err
		}
		if len(list) == 0 {
			return errors.New("the tier status is empty")
		}
		for _, s := range list {
			if s.Topic != tailTopic && strings.HasPrefix(s.Topic, "replay-") && s.LocalStart < s.HighWatermark {
				return fmt.Errorf("%s: local from %d, end %d", s.Topic, s.LocalStart, s.HighWatermark)
			}
		}
		return nil
	})
}

// replays reads a topic from its first offset. For Varve it measures what the
// bucket gives to plain parallel GETs, right before.
func replays(topic string, consumers int, raw bool) measurement {
	return func(ctx context.Context, r *runner, run *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		if err := dropCaches(); err != nil {
			r.say("the page cache is not dropped: %v", err)
		}
		get := 0.0
		if b.kind == varve {
			var err error
			if get, err = run.shared.(*bucket).parallelGET(ctx, r.replay/2); err != nil {
				return nil, fmt.Errorf("raw GET: %w", err)
			}
			if err := dropCaches(); err != nil {
				r.say("the page cache is not dropped: %v", err)
			}
			// A floor that fails is no fault of the broker's, which is measured all the same.
			var floor floorRun
			if floor.Sample, err = r.replayBare(ctx, run.shared.(*bucket), consumers, r.replay/2); err != nil {
				floor.Error = "the bare replay: " + err.Error()
			}
			run.bare = append(run.bare, floor)
			if err := dropCaches(); err != nil {
				r.say("the page cache is not dropped: %v", err)
			}
		}
		before, _ := b.counter("varve_tier_read_bytes_total")
		limit, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		res, err := load.Replay(limit, load.Spec{Bootstrap: []string{b.addr}, Topic: topic, Consumers: consumers, Raw: raw, Broker: []int{b.process.PID()}})
		if err != nil {
			return nil, err
		}
		s := sampleOf(res)
		s[mReplay] = res.Consumed.MBPerSecond
		delete(s, mConsumed)
		if b.kind == varve {
			s[mRawGET], s[mOfRaw] = get, s[mReplay]/get
			after, err := b.counter("varve_tier_read_bytes_total")
			if err != nil {
				return nil, err
			}
			s[mFromStore] = min((after-before)/float64(res.Consumed.Bytes), 1)
		}
		return []sample{s}, nil
	}
}

// tail measures end-to-end latency at a low rate on a topic of its own, alone
// or while everything else is replayed over and over.
func tail(replaying bool) measurement {
	return func(ctx context.Context, r *runner, run *setupRun, b *broker, d time.Duration) ([]sample, error) {
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		var replayed atomic.Int64
		if replaying {
			wg.Go(func() {
				for ctx.Err() == nil {
					res, err := load.Replay(ctx, load.Spec{
						Bootstrap: []string{b.addr}, Topic: manyTopic, Consumers: 1,
						Progress: func(p load.Progress) { replayed.Store(max(replayed.Load(), p.Bytes)) },
					})
					if err == nil {
						replayed.Add(res.Consumed.Bytes)
					} else if ctx.Err() == nil {
						r.say("the replay beside the tail: %v", err)
						return
					}
				}
			})
		}
		s, err := r.load(ctx, load.Spec{
			Bootstrap: []string{b.addr}, Broker: []int{b.process.PID()}, Topic: tailTopic, Producers: 2, Consumers: 2, RecordBytes: 1 << 10, Payload: load.Random,
			Rate: 2000, BatchBytes: 16 << 10, Acks: "all", Warmup: 2 * time.Second, Duration: d,
		})
		if err != nil {
			return nil, err
		}
		if replaying && replayed.Load() == 0 {
			return nil, errors.New("nothing was replayed meanwhile")
		}
		return []sample{s}, nil
	}
}

// counter reads one of Varve's metrics.
func (b *broker) counter(name string) (float64, error) {
	if b.admin == "" {
		return 0, nil
	}
	resp, err := http.Get(b.admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}

// dropCaches makes cold data cold. Only root may.
func dropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0) }

// part is a range of an object.
type part struct {
	name     string
	from, to int64
}

// parts are the bucket's objects in ranges of 8 MiB, up to limit bytes.
func (k *bucket) parts(ctx context.Context, limit int64) ([]part, error) {
	var parts []part
	var total int64
	add := func(name string, size int64) {
		for from := int64(0); from < size && total < limit; from += 8 << 20 {
			to := min(from+8<<20, size)
			parts = append(parts, part{name, from, to})
			total += to - from
		}
	}
	if err := k.list(ctx, add); err != nil {
		return nil, err
	}
	if total == 0 {
		return nil, errors.New("the bucket is empty")
	}
	return parts, nil
}

// parallelGET reads objects of the bucket, up to limit bytes, in ranges of
// 8 MiB, eight at a time, and does nothing with them. MB/s.
func (k *bucket) parallelGET(ctx context.Context, limit int64) (float64, error) {
	parts, err := k.parts(ctx, limit)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	var next, total atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			b := make([]byte, 8<<20)
			for i := next.Add(1) - 1; i < int64(len(parts)) && first.Load() == nil; i = next.Add(1) - 1 {
				n := parts[i].to - parts[i].from
				if err := k.get(ctx, parts[i], b[:n]); err != nil {
					first.CompareAndSwap(nil, &err)
				}
				total.Add(n)
			}
		})
	}
	wg.Wait()
	if err := first.Load(); err != nil {
		return 0, *err
	}
	return float64(total.Load()) / 1e6 / time.Since(began).Seconds(), nil
}

func (k *bucket) list(ctx context.Context, add func(name string, size int64)) error {
	if k.minio == nil {
		return filepath.WalkDir(k.dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				add(path, info.Size())
			}
			return err
		})
	}
	for o := range k.minio.ListObjectsIter(ctx, bucketName, minio.ListObjectsOptions{Prefix: "log/data/", Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		add(o.Key, o.Size)
	}
	return nil
}

// get fills b with a range.
func (k *bucket) get(ctx context.Context, p part, b []byte) error {
	if k.minio == nil {
		f, err := os.Open(p.name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.ReadAt(b, p.from)
		return err
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(p.from, p.to-1); err != nil {
		return err
	}
	obj, err := k.minio.GetObject(ctx, bucketName, p.name, o)
	if err != nil {
		return err
	}
	defer obj.Close()
	_, err = io.ReadFull(obj, b)
	return err
}
