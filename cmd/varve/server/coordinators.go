package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/coordinator"
)

// coordinatorMetrics tell how the two coordinators do whose state is in internal topics: group and transaction. The
// figures are Kafka's num-partitions, partition-load-time and event-queue-size.
type coordinatorMetrics struct {
	load func() (groups, txns coordinator.Load)

	loadTime                         *prometheus.HistogramVec
	loadFailed, refused, badRecords  *prometheus.CounterVec
	loadRecords, loadBytes           *prometheus.CounterVec
	partitions, queued, beingWritten *prometheus.Desc
}

var coordinatorNames = []string{"group", "transaction"}

func newCoordinatorMetrics(reg prometheus.Registerer) *coordinatorMetrics {
	which := []string{"coordinator"}
	counter := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, which)
		reg.MustRegister(v)
		for _, n := range coordinatorNames {
			v.WithLabelValues(n) // from the beginning, so that the first one is a step that a rate sees
		}
		return v
	}
	c := &coordinatorMetrics{
		loadTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "varve_coordinator_partition_load_seconds",
			Help:    "Time that reading a partition of a coordinator's state took. Its groups or transactional ids are not served meanwhile.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 12)}, which),
		loadFailed:   counter("varve_coordinator_load_errors_total", "Attempts to read a partition of a coordinator's state that failed. It is tried again, and not served until then."),
		loadRecords:  counter("varve_coordinator_load_records_total", "Records read to load partitions of a coordinator's state. Compaction keeps them few."),
		loadBytes:    counter("varve_coordinator_load_bytes_total", "Bytes of record batches read to load partitions of a coordinator's state."),
		refused:      counter("varve_coordinator_refused_total", "Requests refused because too many wait, or too much memory is in use."),
		badRecords:   counter("varve_coordinator_bad_records_total", "Records of a coordinator's state that cannot be read, and were passed over."),
		partitions:   prometheus.NewDesc("varve_coordinator_partitions", "Partitions of a coordinator's state led here, by whether they are being read or served.", []string{"coordinator", "state"}, nil),
		queued:       prometheus.NewDesc("varve_coordinator_queued_commands", "Commands that wait to be handled: behind others, or behind an append of the same group or transactional id.", which, nil),
		beingWritten: prometheus.NewDesc("varve_coordinator_appending_commands", "Commands whose records are being appended.", which, nil),
	}
	reg.MustRegister(c.loadTime)
	for _, n := range coordinatorNames {
		c.loadTime.WithLabelValues(n)
	}
	return c
}

// listen takes the events of the broker's coordinators.
func (c *coordinatorMetrics) listen(e *broker.Events) {
	inc := func(v *prometheus.CounterVec) func(string) {
		return func(which string) { v.WithLabelValues(which).Inc() }
	}
	e.CoordinatorLoaded = func(which string, records, bytes int64, took time.Duration) {
		c.loadTime.WithLabelValues(which).Observe(took.Seconds())
		c.loadRecords.WithLabelValues(which).Add(float64(records))
		c.loadBytes.WithLabelValues(which).Add(float64(bytes))
	}
	e.CoordinatorLoadFailed, e.CoordinatorRefused, e.CoordinatorBadRecord = inc(c.loadFailed), inc(c.refused), inc(c.badRecords)
}

// Describe is part of prometheus.Collector; what is counted has collectors of its own.
func (c *coordinatorMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- c.partitions
	out <- c.queued
	out <- c.beingWritten
}

// Collect is part of prometheus.Collector.
func (c *coordinatorMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	groups, txns := c.load()
	for i, l := range []coordinator.Load{groups, txns} {
		name := coordinatorNames[i]
		gauge(c.partitions, l.Loading, name, "loading")
		gauge(c.partitions, l.Shards-l.Loading, name, "active")
		gauge(c.queued, l.Queued, name)
		gauge(c.beingWritten, l.Writing, name)
	}
}
