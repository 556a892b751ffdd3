package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/tiering"
)

// What a compaction worker tells of itself.
//
//	/healthz   that a new process would get on: nothing was looked at, read or written for stuckAfter
//	/readyz    that work fails and is tried again, and has been failing for troubleAfter without a break
//
// A broker that has a worker inside serves clients all the same: there both are warnings. A partition that cannot be
// compacted, an etcd that elects or a bucket that says "slow down" is over before that, or else somebody should look.
const (
	troubleAfter = 5 * time.Minute
	troubleEvery = 5 * time.Second
	stuckAfter   = 30 * time.Minute
)

// trouble remembers since when something has been failing. The zero value is well.
type trouble struct {
	mu    sync.Mutex
	since time.Time
	err   error
}

func (t *trouble) note(now time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && t.err == nil {
		t.since = now
	}
	t.err = err
}

// lasting is nil, or what has been failing for so long.
func (t *trouble) lasting(now time.Time, long time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || now.Sub(t.since) < long {
		return nil
	}
	return fmt.Errorf("compaction has been failing since %s: %s", t.since.UTC().Format(time.RFC3339), strings.ReplaceAll(t.err.Error(), "\n", "; "))
}

// watch looks again and again whether the worker gets on, until ctx ends.
func (k *compactor) watch(ctx context.Context) {
	tick := time.NewTicker(troubleEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			k.trouble.note(now, errors.Join(k.worker.Healthy(), k.tier.Healthy(), k.node.Healthy()))
		case <-ctx.Done():
			return
		}
	}
}

func (k *compactor) stuck() error { return k.worker.Stuck(stuckAfter) }

func (k *compactor) failing() error { return k.trouble.lasting(time.Now(), troubleAfter) }

// lagMetrics are how far compaction is behind. Of each figure there is one series, of the partition where it is worst:
// there may be many partitions.
type lagMetrics struct {
	lag func() compaction.Lag

	dirty, delay, waiting, failing, delayed, bytes *prometheus.Desc

	mu     sync.Mutex
	last   compaction.Lag
	lastAt time.Time
}

// behindEvery bounds how often the partitions are gone through, whoever asks how often.
const behindEvery = time.Second

func newLagMetrics(lag func() compaction.Lag) *lagMetrics {
	worst := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help+" The labels name the partition; they are empty while it is 0.", []string{"topic", "partition"}, nil)
	}
	return &lagMetrics{
		lag:     lag,
		dirty:   worst("varve_compaction_dirtiest_ratio", "varve_compaction_max_dirty_ratio, with whose it is."),
		delay:   worst("varve_compaction_max_delay_seconds", "For how long a record has not been compacted that max.compaction.lag.ms wants compacted, at most."),
		waiting: worst("varve_compaction_max_wait_seconds", "For how long a partition has been due for compaction without anybody, here or at another worker, having come any further with it, at most; since this worker knows it."),
		failing: worst("varve_compaction_max_failing_seconds", "For how long each try of a job in a partition has failed, at most."),
		delayed: prometheus.NewDesc("varve_compaction_delayed_partitions", "Partitions with a record that max.compaction.lag.ms wants compacted by now and that is not.", nil, nil),
		bytes:   prometheus.NewDesc("varve_compaction_failing_bytes", "Bytes that have not been compacted, of partitions whose last job failed.", nil, nil),
	}
}

func (m *lagMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.dirty, m.delay, m.waiting, m.failing, m.delayed, m.bytes} {
		ch <- d
	}
}

func (m *lagMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	if time.Since(m.lastAt) >= behindEvery {
		m.last, m.lastAt = m.lag(), time.Now()
	}
	l := m.last
	m.mu.Unlock()
	worst := func(d *prometheus.Desc, w compaction.Worst) {
		partition := ""
		if w.Topic != "" {
			partition = fmt.Sprint(w.Partition)
		}
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, w.Value, w.Topic, partition)
	}
	worst(m.dirty, l.Dirty)
	worst(m.delay, l.Delay)
	worst(m.waiting, l.Waiting)
	worst(m.failing, l.Failing)
	ch <- prometheus.MustNewConstMetric(m.delayed, prometheus.GaugeValue, float64(l.Delayed))
	ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.GaugeValue, float64(l.FailingBytes))
}

// waitingMetrics registers what waits to be deleted by this process.
func waitingMetrics(reg *prometheus.Registry, tiers ...*tiering.Tier) {
	gauge := func(name, help string, of func(tiering.Waiting) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() (most float64) {
			for _, t := range tiers {
				most += of(t.Waiting())
			}
			return most
		}))
	}
	gauge("varve_tier_retired_objects", "Objects that this process has let go of, or found, and that wait to be deleted from the bucket. varve tier retired lists them.",
		func(w tiering.Waiting) float64 { return float64(w.Objects) })
	gauge("varve_tier_retired_bytes", "Their bytes, as far as they are known.", func(w tiering.Waiting) float64 { return float64(w.Bytes) })
	oldest := func() (age float64) {
		for _, t := range tiers {
			if at := t.Waiting().Oldest; !at.IsZero() {
				age = max(age, time.Since(at).Seconds())
			}
		}
		return age
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "varve_tier_retired_oldest_seconds",
		Help: "For how long the first of them has waited; 0: none does. More than remote.delete.grace.ms and file.delete.delay.ms and an hour: it is not deleted."}, oldest))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "varve_tier_deleted_topics", Help: "Deleted topics of which not everything is gone from the bucket yet."}, func() (n float64) {
		for _, t := range tiers {
			n = max(n, float64(t.Waiting().Topics))
		}
		return n
	}))
}
