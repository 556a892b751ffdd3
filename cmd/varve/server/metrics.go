package server

import (
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/coordinator"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/slab"
)

// metrics are the process's own: nothing is registered with Prometheus's
// default registry, where embedded libraries put theirs.
type metrics struct {
	reg *prometheus.Registry

	requests      *prometheus.CounterVec
	responseTime  *prometheus.HistogramVec
	sent          prometheus.Counter
	connections   prometheus.Gauge
	refusedConns  prometheus.Counter
	produced      prometheus.Counter
	producedRecs  prometheus.Counter
	fetched       prometheus.Counter
	produceErrs   *prometheus.CounterVec
	walRefused    prometheus.Counter
	coldFailed    prometheus.Counter
	localFailed   prometheus.Counter
	badInput      prometheus.Counter
	panics        prometheus.Counter
	restarts      prometheus.Counter
	leaders       prometheus.Gauge
	peersRefused  prometheus.Counter
	copied        prometheus.Counter
	corruptCopies prometheus.Counter
	txnsEnded     *prometheus.CounterVec
	rebalances    *prometheus.CounterVec
	coordinators  *coordinatorMetrics

	store storeMetrics
	tier  tiering.Events
}

// storeMetrics are those of whoever talks to the bucket: brokers and compaction workers.
type storeMetrics struct {
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	time     *prometheus.HistogramVec
}

func newStoreMetrics(reg *prometheus.Registry) storeMetrics {
	m := storeMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "varve_objstore_requests_total", Help: "Calls to the bucket, by operation and outcome."}, []string{"operation", "outcome"}),
		bytes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "varve_objstore_bytes_total", Help: "Bytes moved by calls to the bucket."}, []string{"operation"}),
		time: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "varve_objstore_request_seconds", Help: "Duration of calls to the bucket.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14)}, []string{"operation"}),
	}
	reg.MustRegister(m.requests, m.bytes, m.time)
	return m
}

func newMetrics() *metrics {
	m := &metrics{reg: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		m.reg.MustRegister(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		m.reg.MustRegister(g)
		return g
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14)}, labels)
		m.reg.MustRegister(h)
		return h
	}
	m.requests = counters("varve_requests_total", "Requests answered, by API.", "api")
	m.responseTime = histogram("varve_request_seconds", "Time from a request's last byte to the first byte of its answer, by API.", "api")
	m.sent = counter("varve_response_bytes_total", "Bytes of answers sent.")
	m.connections = gauge("varve_connections", "Client connections open.")
	m.refusedConns = counter("varve_connections_refused_total", "Connections refused by max.connections and its kin.")
	m.produced = counter("varve_produced_bytes_total", "Bytes of record batches appended for clients.")
	m.producedRecs = counter("varve_produced_records_total", "Records appended for clients.")
	m.fetched = counter("varve_fetched_bytes_total", "Bytes of record batches sent to clients.")
	m.produceErrs = counters("varve_produce_errors_total", "Partitions of produce requests refused, by error.", "error")
	m.walRefused = counter("varve_wal_refused_appends_total", "Appends refused because the write-ahead log has no room: wal.max.bytes, or its disk.")
	m.coldFailed = counter("varve_cold_read_errors_total", "Reads from object storage that failed.")
	m.localFailed = counter("varve_wal_read_errors_total", "Reads of the local log that failed; what object storage has is read from there.")
	m.badInput = counter("varve_bad_input_total", "Connections closed because of what arrived on them.")
	m.panics = counter("varve_request_panics_total", "Request handlers that failed: each is a defect.")
	m.restarts = counter("varve_restarts_at_remote_end_total", "Partitions whose local log was lost and that went on from object storage.")
	m.leaders = gauge("varve_leader_partitions", "Partitions that this broker leads and serves.")
	m.peersRefused = counter("varve_broker_authentication_failures_total", "Connections to the inter-broker listener that were to be another broker's, and were not.")
	m.copied = counter("varve_replicated_bytes_total", "Bytes of record batches copied from leaders, durable here.")
	m.corruptCopies = counter("varve_replication_corrupt_total", "Answers of leaders that were damaged or cannot be right.")
	m.rebalances = counters("varve_group_rebalances_total", "Rebalances that began of groups coordinated here, by protocol.", "protocol")
	m.txnsEnded = counters("varve_transactions_total", "Transactions that ended here, by outcome: commit, abort, fenced (another producer took the id over), timeout.", "outcome")
	// From the beginning, so that the first one is a step that a rate sees.
	for _, p := range []string{"classic", "consumer"} {
		m.rebalances.WithLabelValues(p)
	}
	for _, o := range []string{"commit", "abort", "fenced", "timeout"} {
		m.txnsEnded.WithLabelValues(o)
	}

	m.store, m.tier = newStoreMetrics(m.reg), tierEvents(m.reg)
	m.coordinators = newCoordinatorMetrics(m.reg)
	m.gauge("varve_buffers_bytes", "Bytes of pooled buffers held by requests, caches and responses.", func() float64 { return float64(slab.InUse()) })
	return m
}

// gauge registers a value that is read when asked for.
func (m *metrics) gauge(name, help string, f func() float64) {
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// counter registers a count that is kept elsewhere.
func (m *metrics) counter(name, help string, f func() float64) {
	m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
}

func (m *metrics) brokerEvents() *broker.Events {
	// Looked up once: an answer is on the hot path. And when it is first
	// answered: most APIs of the table are not served, and each is 17 series.
	type perAPI struct {
		once sync.Once
		n    prometheus.Counter
		t    prometheus.Observer
	}
	apis := map[int16]*perAPI{}
	names := map[int16]string{}
	for _, v := range protocol.Supported() {
		apis[v.Key], names[v.Key] = new(perAPI), v.Name
	}
	e := &broker.Events{
		Connections:       func(n int) { m.connections.Set(float64(n)) },
		ConnectionRefused: m.refusedConns.Inc,
		Response: func(key int16, bytes int, took time.Duration) {
			if a, ok := apis[key]; ok {
				a.once.Do(func() { a.n, a.t = m.requests.WithLabelValues(names[key]), m.responseTime.WithLabelValues(names[key]) })
				a.n.Inc()
				a.t.Observe(took.Seconds())
			}
			m.sent.Add(float64(bytes))
		},
		Produced: func(records int32, bytes int) {
			m.producedRecs.Add(float64(records))
			m.produced.Add(float64(bytes))
		},
		ProduceFailed:        func(code int16) { m.produceErrs.WithLabelValues(protocol.Name(code)).Inc() },
		AppendRefused:        m.walRefused.Inc,
		Fetched:              func(n int64) { m.fetched.Add(float64(n)) },
		ColdReadFailed:       m.coldFailed.Inc,
		LocalReadFailed:      m.localFailed.Inc,
		BadInput:             func(error) { m.badInput.Inc() },
		Panic:                m.panics.Inc,
		RestartedAtRemoteEnd: m.restarts.Inc,
		GroupRebalanced:      func(protocol string) { m.rebalances.WithLabelValues(protocol).Inc() },
		TransactionEnded:     func(outcome string) { m.txnsEnded.WithLabelValues(outcome).Inc() },
		PeerRefused:          m.peersRefused.Inc,
		Copied:               func(n int) { m.copied.Add(float64(n)) },
		CorruptCopy:          m.corruptCopies.Inc,
		LeaderStarted:        m.leaders.Inc,
		LeaderStopped:        m.leaders.Dec,
	}
	m.coordinators.listen(e)
	return e
}

func (m storeMetrics) events() objstore.Events {
	return objstore.Events{End: func(e objstore.Event) {
		outcome := "ok"
		if e.Err != nil {
			outcome = string(objstore.ClassOf(e.Err))
		}
		m.requests.WithLabelValues(string(e.Op), outcome).Inc()
		m.bytes.WithLabelValues(string(e.Op)).Add(float64(e.Bytes))
		m.time.WithLabelValues(string(e.Op)).Observe(e.Duration.Seconds())
	}}
}

func (m *metrics) walEvents() wal.Events {
	sync := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "varve_wal_sync_seconds", Help: "Duration of the log's fsyncs.", Buckets: prometheus.ExponentialBuckets(0.00005, 2, 16)})
	corrupt := prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_wal_corruptions_total", Help: "Places of the log whose bytes are not those that were written."})
	carried := prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_wal_carried_bytes_total", Help: "Bytes re-appended so that their segment could be reclaimed."})
	reclaimed := prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_wal_reclaimed_segments_total", Help: "Segments given back."})
	m.reg.MustRegister(sync, corrupt, carried, reclaimed)
	return wal.Events{
		Block:     func(_ int, _ int64, took time.Duration) { sync.Observe(took.Seconds()) },
		Reclaimed: func(uint64) { reclaimed.Inc() },
		Carried:   func(n int64) { carried.Add(float64(n)) },
		Corrupt:   func(string) { corrupt.Inc() },
	}
}

func tierEvents(reg *prometheus.Registry) tiering.Events {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	uploaded := counter("varve_tier_uploaded_objects_total", "Objects uploaded and verified.")
	uploadedBytes := counter("varve_tier_uploaded_bytes_total", "Bytes of the objects uploaded and verified.")
	committed := counter("varve_tier_commits_total", "Manifest heads committed.")
	conflicts := counter("varve_tier_conflicts_total", "Commits that were rebased on a head that had moved.")
	fenced := counter("varve_tier_fenced_total", "Commits refused because the leader epoch had moved on.")
	deleted := counter("varve_tier_deleted_objects_total", "Objects deleted from the bucket.")
	cold := counter("varve_tier_read_bytes_total", "Bytes of record batches read from object storage.")
	corrupt := counter("varve_tier_corrupt_objects_total", "Reads from the bucket whose bytes were not those that were written.")
	orphans := counter("varve_tier_orphans_total", "Objects found that no manifest names.")
	failed := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "varve_tier_failures_total", Help: "Background work on object storage that failed and is tried again, by duty."}, []string{"duty"})
	reg.MustRegister(failed)
	return tiering.Events{
		Uploaded: func(_ int, bytes int64, _ time.Duration) {
			uploaded.Inc()
			uploadedBytes.Add(float64(bytes))
		},
		Committed: func(int) { committed.Inc() },
		Conflict:  conflicts.Inc,
		Fenced:    fenced.Inc,
		Failed:    func(d tiering.Duty, _ error) { failed.WithLabelValues(string(d)).Inc() },
		Deleted:   func(n int) { deleted.Add(float64(n)) },
		ReadCold:  func(n int64) { cold.Add(float64(n)) },
		Corrupt:   func(string, error) { corrupt.Inc() },
		Orphans:   func(n int) { orphans.Add(float64(n)) },
	}
}

// watch registers what is asked of the parts when somebody looks.
func (m *metrics) watch(s *Server) {
	log := func(name, help string, f func(wal.Stats) int64) {
		m.gauge(name, help, func() float64 { return float64(f(s.wal.Stats())) })
	}
	log("varve_wal_bytes", "Bytes of the log's files, prepared ones included.", func(t wal.Stats) int64 { return t.Bytes })
	log("varve_wal_pinned_bytes", "Bytes of the log's segments that cannot be given back yet: at varve_wal_max_bytes producers are refused.", func(t wal.Stats) int64 { return t.PinnedBytes })
	log("varve_wal_max_bytes", "Bound of the log (wal.max.bytes).", func(t wal.Stats) int64 { return t.MaxBytes })
	log("varve_wal_segments", "Segments of the log in use.", func(t wal.Stats) int64 { return int64(t.Segments) })
	log("varve_wal_queue_bytes", "Bytes waiting to be written to the log.", func(t wal.Stats) int64 { return t.QueueBytes })
	log("varve_wal_cache_bytes", "Bytes of the newest records kept in memory.", func(t wal.Stats) int64 { return t.CacheBytes })
	log("varve_wal_index_bytes", "Memory of the log's run index.", func(t wal.Stats) int64 { return t.IndexBytes })
	log("varve_wal_full", "1 while producers are refused because the log is at its bound, its disk is full, or too many files are open.", func(t wal.Stats) int64 {
		if t.Full {
			return 1
		}
		return 0
	})
	log("varve_wal_disk_full", "1 while producers are refused because the log's disk is full.", func(t wal.Stats) int64 {
		if t.DiskFull {
			return 1
		}
		return 0
	})
	m.counter("varve_wal_syncs_total", "Fsyncs of the log.", func() float64 { return float64(s.wal.Stats().Syncs) })
	m.counter("varve_wal_appended_bytes_total", "Bytes appended to the log.", func() float64 { return float64(s.wal.Stats().AppendedBytes) })
	m.counter("varve_cache_hits_total", "Chunks of objects found in the cache.", func() float64 { return float64(s.chunks.Stats().MemoryHits + s.chunks.Stats().DiskHits) })
	m.counter("varve_cache_misses_total", "Chunks of objects that had to be downloaded.", func() float64 { return float64(s.chunks.Stats().Misses) })
	m.gauge("varve_tier_upload_lag_seconds", "Age of the oldest committed record, of all partitions led here, that is not in the bucket yet; 0 if there is none.", func() float64 {
		lag := int64(0)
		for _, st := range s.broker.TierStatus("") {
			lag = max(lag, st.UploadLagMs)
		}
		return float64(lag) / 1000
	})
	m.reg.MustRegister(newReplicationMetrics(s))
	tiers := []*tiering.Tier{s.tier}
	if t := s.compactor.parts(); t != nil {
		tiers = append(tiers, t)
	}
	waitingMetrics(m.reg, tiers...)
	m.gauge("varve_group_members", "Members of the groups coordinated here.", func() float64 { return float64(s.broker.GroupStats().Members) })
	m.gauge("varve_group_committed_offsets", "Offsets that groups coordinated here have committed.", func() float64 { return float64(s.broker.GroupStats().Offsets) })
	m.reg.MustRegister(newGroupMetrics(s.broker.GroupStats, s.broker.GroupLags))
	m.coordinators.load = func() (groups, txns coordinator.Load) {
		return s.broker.GroupStats().Load, s.broker.TransactionStats().Load
	}
	m.reg.MustRegister(m.coordinators)
	m.gauge("varve_open_transactions", "Transactions coordinated here that are not complete: ongoing, or with markers that are not written yet.", func() float64 {
		ids := s.broker.TransactionStats().IDs
		return float64(ids["Ongoing"] + ids["PrepareCommit"] + ids["PrepareAbort"])
	})
	m.gauge("varve_oldest_transaction_seconds", "Age of the oldest transaction coordinated here that has not ended; 0 if there is none.", func() float64 {
		if began := s.broker.TransactionStats().Oldest; !began.IsZero() {
			return max(0, time.Since(began).Seconds())
		}
		return 0
	})
	m.gauge("varve_late_transactions_partitions", "Partitions led here with a transaction whose producer has written nothing for longer than transaction.max.timeout.ms and five minutes: "+
		"it may be hanging, and holds up readers of committed records. varve txn find-hanging tells which.", func() float64 { return float64(s.broker.LateTransactions()) })
	m.gauge("varve_transactional_ids", "Transactional ids coordinated here.", func() float64 {
		n := 0
		for _, k := range s.broker.TransactionStats().IDs {
			n += k
		}
		return float64(n)
	})
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "varve_build_info", Help: "1; which build this is.",
		ConstLabels: prometheus.Labels{"version": s.o.Version, "goversion": runtime.Version()},
	}, func() float64 { return 1 }))
	m.gauge("varve_metadata_failing", "1 while metadata cannot be changed: etcd is away, full, or was set back.", func() float64 {
		if s.node.Healthy() != nil {
			return 1
		}
		return 0
	})
	m.gauge("varve_tier_failing", "1 while uploading, committing, publishing, retention or collecting fails, or a partition cannot be uploaded.", func() float64 {
		if s.tier.Healthy() != nil {
			return 1
		}
		return 0
	})
	m.gauge("varve_uptime_seconds", "Time since the broker started.", func() float64 { return time.Since(s.started).Seconds() })
	m.gauge("varve_memory_max_bytes", "Bound of memory (memory.max.bytes).", func() float64 { return float64(s.memory.total) })
	m.reg.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(
		// Where time goes that no other figure shows: waiting for locks, and the collector.
		collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/sync/mutex/wait/total:seconds$|^/cpu/classes/gc/total:cpu-seconds$`)},
	)), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
