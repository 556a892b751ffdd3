package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/compaction/cleaner"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/config"
	"github.com/varve/varve/internal/admin"
	"github.com/varve/varve/metadata"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// workerID stands for the broker in what a worker publishes.
const workerID = math.MaxInt32

// compactor is a compaction worker over a cluster's metadata and bucket.
type compactor struct {
	name    string
	node    *metadata.Node
	static  map[string]string
	log     *slog.Logger
	tier    *tiering.Tier
	worker  *compaction.Worker
	lost    <-chan struct{} // of the last lease; owned by run
	alone   bool            // in a process of its own, whose memory is the worker's
	trouble trouble

	mu     sync.Mutex
	topics map[[16]byte]resolved
	now    config.Cleaner // the settings as they stand
	rev    int64          // of the settings of all brokers that they were made of
}

// unseen is how long brokers may give readers what a worker has replaced: they look for that once in
// log.cleaner.backoff.ms. A reader that begins then has delete.retention.ms from there.
func unseen(c config.Cleaner) time.Duration { return 2 * c.Backoff }

// cleaner returns the settings as they stand: those of the worker's file, and what was changed for all brokers while
// they run.
func (k *compactor) cleaner() config.Cleaner {
	var all map[string]string
	rev := int64(0)
	if e := k.node.Image().ConfigEntry(image.BrokerResource, ""); e != nil {
		all, rev = e.Values, e.Revision
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if rev == k.rev {
		return k.now
	}
	k.rev = rev
	next, _, err := config.Build(config.Merge(config.FromMode("the worker's own configuration", k.static), config.FromMode("the cluster's dynamic configuration", all)),
		config.Machine{Hostname: "localhost", NoBroker: true})
	if err != nil {
		k.log.Error("settings changed while the worker runs cannot be used: the last ones stay", "err", err)
		return k.now
	}
	k.now = next.Cleaner
	if k.alone {
		debug.SetMemoryLimit(WorkerMemory(next))
	}
	return k.now
}

func settingsOf(c config.Cleaner) compaction.Settings {
	return compaction.Settings{Threads: c.Threads, TableBytes: c.DedupeBytes, LoadFactor: c.LoadFactor, BytesPerSecond: c.BytesPerSecond, Backoff: c.Backoff}
}

// resolved is what a topic's settings came to, and what they were.
type resolved struct {
	topic   compaction.Topic
	rev     int64 // of the topic
	cluster int64 // of the settings of all brokers
}

func newCompactor(c *config.BrokerConfig, store *etcd.Store, node *metadata.Node, bucket objstore.Bucket, tie *bond, clusterID string, log *slog.Logger,
	events tiering.Events, m *compactionMetrics, merge int) (*compactor, error) {
	host, _ := os.Hostname()
	k := &compactor{name: fmt.Sprintf("%s/%d", host, os.Getpid()), node: node, static: c.Static, log: log, now: c.Cleaner, topics: make(map[[16]byte]resolved)}
	manifests := manifests{node.Manifests()}
	grace := c.RemoteDeleteGrace
	var err error
	k.tier, err = tiering.Open(tiering.Options{
		Bucket: bucket, Manifests: manifests, ClusterID: clusterID, BrokerID: workerID, Worker: true, SpoolDir: c.Cleaner.SpoolDir,
		Grace: grace, RequestTimeout: c.RemoteRequestTimeout, UploadTimeout: 4 * c.RemoteRequestTimeout,
		CollectInterval: min(max(grace/6, 100*time.Millisecond), 10*time.Second),
		PublishInterval: min(max(grace/2, 500*time.Millisecond), time.Minute),
		DeleteDelay: func(id [16]byte) time.Duration {
			t, _ := k.topic(id)
			return t.DeleteDelay
		},
		Shared: tie.confirm,
		Logger: log.With("part", "tiering"), Events: events,
	})
	if err != nil {
		return nil, fmt.Errorf("tiering of the compaction worker: %w", err)
	}
	k.worker, err = compaction.New(compaction.Options{
		Tier: k.tier, Store: manifests, Name: k.name, Topic: k.topic,
		Lease: func(ctx context.Context) (int64, <-chan struct{}, error) {
			return store.Lease(ctx, c.Cleaner.SessionTimeout)
		},
		Settings: settingsOf(c.Cleaner), Changed: func() compaction.Settings { return settingsOf(k.cleaner()) }, Limits: picker.Limits{Bytes: c.Cleaner.JobBytes, Requests: c.Cleaner.JobRequests, Target: c.Cleaner.ObjectBytes, Fanin: merge},
		Scrubs: scrubs{store}, ScrubInterval: c.Cleaner.ScrubInterval, ScrubData: c.Cleaner.ScrubData,
		OrphanAge: 24*time.Hour + 2*min(grace, tiering.MaxDeleteDelay) + min(c.RemoteSweepInterval, tiering.MaxDeleteDelay),
		Logger:    log.With("part", "compaction"), Events: m.events(),
	})
	if err != nil {
		k.tier.Close()
		return nil, fmt.Errorf("compaction worker: %w", err)
	}
	m.reg.MustRegister(newLagMetrics(k.worker.Lag))
	return k, nil
}

// run works until ctx ends, and gives the lease back.
func (k *compactor) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { k.watch(ctx) })
	k.worker.Run(ctx)
	wg.Wait()
	if k.lost != nil {
		<-k.lost
	}
}

func (k *compactor) close() error { return k.tier.Close() }

// parts is what the worker has of tiering; nil if there is none.
func (k *compactor) parts() *tiering.Tier {
	if k == nil {
		return nil
	}
	return k.tier
}

// topic says what the worker has to know of a topic.
func (k *compactor) topic(id [16]byte) (compaction.Topic, bool) {
	im := k.node.Image()
	t := im.TopicByID(id)
	if t == nil {
		return compaction.Topic{}, false
	}
	var all map[string]string
	cluster := int64(0)
	if e := im.ConfigEntry(image.BrokerResource, ""); e != nil {
		all, cluster = e.Values, e.Revision
	}
	late := unseen(k.cleaner()).Milliseconds()
	k.mu.Lock()
	defer k.mu.Unlock()
	if r, ok := k.topics[id]; ok && r.rev == t.Revision && r.cluster == cluster {
		return r.topic, true
	}
	if len(k.topics) > im.NumTopics()+1000 {
		clear(k.topics) // of topics that are gone
	}
	c := config.Resolver{ClusterDynamic: all, Static: k.static}.Topic(t.Config)
	out := compaction.Topic{
		Name: t.Name, Codec: cleaner.KeepCodec, Level: batch.DefaultLevel, DeleteDelay: min(config.Milliseconds(c.FileDeleteDelayMs), tiering.MaxDeleteDelay),
		Policy: picker.Policy{
			Compact: c.Compact, Delete: c.Delete, MinDirtyRatio: c.MinCleanableDirtyRatio, MinLag: c.MinCompactionLagMs, MaxLag: c.MaxCompactionLagMs,
			DeleteRetention: addUpTo(c.DeleteRetentionMs, late), RetentionMs: c.RetentionMs, RetentionBytes: c.RetentionBytes, SegmentBytes: int64(c.SegmentBytes), SegmentMs: c.SegmentMs,
		},
	}
	if codec, ok := batch.ParseCodec(c.CompressionType); ok {
		out.Codec = codec
		if codec == batch.Gzip || codec == batch.LZ4 || codec == batch.Zstd {
			out.Level = c.CompressionLevel()
		}
	}
	k.topics[id] = resolved{out, t.Revision, cluster}
	return out, true
}

// addUpTo is the sum, or the largest number.
func addUpTo(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// compactionMetrics are those of a worker.
type compactionMetrics struct {
	reg *prometheus.Registry

	jobs, failed, read, written, records, kept, nulls       *prometheus.CounterVec
	seconds                                                 *prometheus.CounterVec
	lost                                                    prometheus.Counter
	pending, working, failing, dirty, partitions, lastRound prometheus.Gauge

	scrubFound                                               *prometheus.CounterVec
	scrubFindings                                            *prometheus.GaugeVec
	scrubFailed                                              prometheus.Counter
	scrubEnded, scrubSeconds, scrubbedObjects, scrubbedBytes prometheus.Gauge
}

func newCompactionMetrics(reg *prometheus.Registry) *compactionMetrics {
	kinds := []string{picker.Compact.String(), picker.Purge.String(), picker.Merge.String()}
	counters := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"job"})
		reg.MustRegister(c)
		for _, k := range kinds {
			c.WithLabelValues(k)
		}
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &compactionMetrics{
		reg:        reg,
		jobs:       counters("varve_compaction_jobs_total", "Jobs that the compaction worker carried out, by kind."),
		seconds:    counters("varve_compaction_seconds_total", "Time spent on them."),
		read:       counters("varve_compaction_read_bytes_total", "Bytes of record batches read by them; what is scanned and filtered counts twice."),
		written:    counters("varve_compaction_written_bytes_total", "Bytes of record batches written by them."),
		records:    counters("varve_compaction_records_total", "Records that they went over."),
		kept:       counters("varve_compaction_kept_records_total", "Records that were left of those."),
		nulls:      counters("varve_compaction_null_keys_total", "Records without a key that were dropped from compacted topics."),
		lost:       prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_compaction_leases_lost_total", Help: "Times that the worker's lease ran out and its work was thrown away."}),
		pending:    gauge("varve_compaction_pending_partitions", "Partitions in which there was something to do when all were last looked at."),
		working:    gauge("varve_compaction_working_partitions", "Those of them that the worker's threads were at."),
		failing:    gauge("varve_compaction_failing_partitions", "Partitions whose last job failed."),
		dirty:      gauge("varve_compaction_max_dirty_ratio", "Largest share of a partition's bytes in object storage that could be compacted and has not been: what is younger than min.compaction.lag.ms does not count."),
		partitions: gauge("varve_compaction_partitions", "Partitions that the worker knows of."),
		lastRound:  gauge("varve_compaction_last_round_timestamp_seconds", "When all partitions were last looked at."),
	}
	m.failed = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "varve_compaction_failures_total", Help: "Jobs, and looks at a partition, that failed and are tried again, by topic."}, []string{"topic"})
	reg.MustRegister(m.lost, m.failed)
	m.scrubFound = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "varve_scrub_found_total", Help: "Findings of this worker's scrubs, as they are made, by fault: manifest, coverage, missing, corrupt, orphan. " +
		"The log says which objects and what to do."}, []string{"fault"})
	m.scrubFindings = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "varve_scrub_findings", Help: "Findings of the last scrub that was completed, whichever worker made it, by fault. Anything but 0 is for somebody to look at."}, []string{"fault"})
	m.scrubFailed = prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_scrub_failures_total", Help: "Scrubs that could not be completed and are tried again."})
	reg.MustRegister(m.scrubFound, m.scrubFindings, m.scrubFailed)
	m.scrubEnded = gauge("varve_scrub_last_timestamp_seconds", "When the last scrub was completed, by whichever worker; 0: none was.")
	m.scrubSeconds = gauge("varve_scrub_last_seconds", "How long it took.")
	m.scrubbedObjects = gauge("varve_scrub_last_objects", "Objects that it looked for.")
	m.scrubbedBytes = gauge("varve_scrub_last_bytes", "Bytes of record batches that they hold.")
	for _, f := range tiering.Faults {
		m.scrubFound.WithLabelValues(string(f))
		m.scrubFindings.WithLabelValues(string(f))
	}
	return m
}

func (m *compactionMetrics) events() compaction.Events {
	return compaction.Events{
		Done: func(d compaction.Done) {
			k := d.Kind.String()
			m.jobs.WithLabelValues(k).Inc()
			m.seconds.WithLabelValues(k).Add(d.Took.Seconds())
			m.read.WithLabelValues(k).Add(float64(d.Read))
			m.written.WithLabelValues(k).Add(float64(d.Written))
			m.records.WithLabelValues(k).Add(float64(d.Records))
			m.kept.WithLabelValues(k).Add(float64(d.Kept))
			m.nulls.WithLabelValues(k).Add(float64(d.NullKeys))
		},
		Failed: func(topic string, _ int32, _ error) { m.failed.WithLabelValues(topic).Inc() },
		Lost:   m.lost.Inc,
		Round: func(r compaction.Round) {
			m.pending.Set(float64(r.Jobs))
			m.working.Set(float64(r.Working))
			m.failing.Set(float64(r.Failing))
			m.dirty.Set(r.MaxDirty)
			m.partitions.Set(float64(r.Partitions))
			m.lastRound.SetToCurrentTime()
		},
		Scrubbed: func(p compaction.Pass) {
			m.scrubEnded.Set(float64(p.Ended.UnixMilli()) / 1000)
			m.scrubSeconds.Set(p.Ended.Sub(p.Began).Seconds())
			m.scrubbedObjects.Set(float64(p.Objects))
			m.scrubbedBytes.Set(float64(p.Bytes))
			for _, f := range tiering.Faults {
				m.scrubFindings.WithLabelValues(string(f)).Set(float64(p.Findings[f]))
			}
		},
		ScrubFound:  func(f tiering.Finding) { m.scrubFound.WithLabelValues(string(f.Fault)).Inc() },
		ScrubFailed: func(error) { m.scrubFailed.Inc() },
	}
}

// Compactor is a compaction worker that is a process of its own.
type Compactor struct {
	s *Server // of which it has metadata, bucket and admin listener
	k *compactor
}

// WorkerMemory is what a compaction worker should stay below: its tables, and beside them footers, pages and metadata, and
// for each thread what it reads, inflates and uploads. Rare batches take up to 128 MiB more, of all threads together, while
// they are open (compaction/README.md says which).
func WorkerMemory(c *config.BrokerConfig) int64 {
	return c.Cleaner.DedupeBytes + 128<<20 + int64(max(c.Cleaner.Threads, 1))*(96<<20)
}

// OpenCompactor connects to the metadata and the bucket of a cluster that exists. Of the options it takes Config, Logger,
// Bucket, Etcd and Merge.
func OpenCompactor(ctx context.Context, o Options) (w *Compactor, err error) {
	c, log := o.Config, o.Logger
	s := &Server{o: Options{Config: c, Logger: log, Bucket: o.Bucket, Etcd: o.Etcd}, log: log, started: time.Now()}
	w = &Compactor{s: s}
	defer func() {
		if err != nil {
			w.Close()
			w = nil
		}
	}()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if c.AdminListener != "" {
		if s.admin, err = admin.Open(admin.Options{Listen: c.AdminListener, Registry: reg, Health: w.health, Ready: w.ready, Retired: s.retired, Logger: log}); err != nil {
			return w, err
		}
	}
	store, err := s.openStore(ctx, true)
	if err != nil {
		return w, err
	}
	var clusterID string
	if err := s.patiently(ctx, func() (err error) { clusterID, err = s.existing(ctx, store); return err }); err != nil {
		return w, fmt.Errorf("metadata: %w", err)
	}
	if s.bucket, err = s.openBucket(ctx, true, false, newStoreMetrics(reg).events()); err != nil {
		return w, err
	}
	tie := &bond{store: store, cluster: clusterID, bucket: s.bucket, memory: inMemory(c), log: log}
	if err = tie.early(ctx, s.away); err != nil {
		return w, fmt.Errorf("remote.storage.url: %w", err)
	}
	err = s.patiently(ctx, func() (err error) {
		s.node, err = metadata.Open(ctx, metadata.Options{Store: store, Logger: log.With("part", "metadata")})
		return err
	})
	if err != nil {
		return w, fmt.Errorf("metadata: %w", err)
	}
	s.node.Start()
	if w.k, err = newCompactor(c, store, s.node, s.bucket, tie, clusterID, log, tierEvents(reg), newCompactionMetrics(reg), o.Merge); err != nil {
		return w, err
	}
	w.k.alone = true
	s.compactor = w.k
	waitingMetrics(reg, w.k.tier)
	s.up.Store(true)
	return w, nil
}

// health says that only a new process would get on, or nothing.
func (w *Compactor) health() error {
	if w.s.usable() != nil {
		return nil // it starts, or ends
	}
	return w.k.stuck()
}

// ready says for how long and why no work gets done, or that it does.
func (w *Compactor) ready() error {
	if err := w.s.usable(); err != nil {
		return err
	}
	return errors.Join(w.k.stuck(), w.k.failing())
}

// Healthy is nil, or why compaction does not get on.
func (w *Compactor) Healthy() error { return w.k.worker.Healthy() }

// Name is what claims name the worker by.
func (w *Compactor) Name() string { return w.k.name }

// AdminURL is where metrics and health are, or "".
func (w *Compactor) AdminURL() string { return w.s.AdminURL() }

// Run works until ctx ends.
func (w *Compactor) Run(ctx context.Context) { w.k.run(ctx) }

// Close ends what Open began.
func (w *Compactor) Close() error {
	w.s.closing.Store(true)
	var errs []error
	if w.k != nil {
		errs = append(errs, w.k.close())
	}
	if w.s.node != nil {
		errs = append(errs, w.s.node.Close())
	}
	if w.s.bucket != nil {
		errs = append(errs, w.s.bucket.Close())
	}
	if w.s.admin != nil {
		errs = append(errs, w.s.admin.Close())
	}
	if w.s.client != nil {
		errs = append(errs, w.s.client.Close())
	}
	return errors.Join(errs...)
}
