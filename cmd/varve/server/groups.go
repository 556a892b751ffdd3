package server

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/coordinator"
)

// groupMetrics are what a scrape tells of groups. Their names are labels, which is why there is a bound: a series for
// every partition that every group reads can be millions.
type groupMetrics struct {
	stats func() coordinator.Stats
	lags  func(context.Context) broker.GroupLags

	groups, lag, partitions *prometheus.Desc

	mu     sync.Mutex
	last   broker.GroupLags
	lastAt time.Time
}

// Lag is looked up at most every lagEvery, whoever asks how often, and no longer than lagPatience: shards that do not
// answer in that time are left out.
const (
	lagEvery    = time.Second
	lagPatience = 2 * time.Second
)

func newGroupMetrics(stats func() coordinator.Stats, lags func(context.Context) broker.GroupLags) *groupMetrics {
	return &groupMetrics{
		stats: stats, lags: lags,
		groups: prometheus.NewDesc("varve_groups", "Groups coordinated here, by protocol and state.", []string{"protocol", "state"}, nil),
		lag: prometheus.NewDesc("varve_group_lag_records", "Offsets from a group's commit to the partition's high watermark. Of groups coordinated here, "+
			"as many as metrics.group.lag.max.partitions says.", []string{"group", "topic", "partition"}, nil),
		partitions: prometheus.NewDesc("varve_group_lag_partitions", "Committed offsets of groups coordinated here, by what became of their lag: shown; unknown, "+
			"as the partition is gone or its leader did not answer; beyond metrics.group.lag.max.partitions.", []string{"lag"}, nil),
	}
}

func (g *groupMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- g.groups
	out <- g.lag
	out <- g.partitions
}

func (g *groupMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counts := g.stats().Groups
	for _, k := range coordinator.GroupKinds() {
		gauge(g.groups, int64(counts[k]), k.Protocol, k.State)
	}
	l := g.look()
	beyond, is := l.Beyond, map[string]string{}
	for _, p := range l.Known {
		group := label(p.Group)
		// One series twice would fail the whole scrape. Names differ, but not always in what is left of them in a label.
		if name, ok := is[group]; ok && name != p.Group {
			beyond++
			continue
		}
		is[group] = p.Group
		gauge(g.lag, p.Records, group, p.Topic, strconv.Itoa(int(p.Partition)))
	}
	gauge(g.partitions, int64(len(l.Known)-(beyond-l.Beyond)), "shown")
	gauge(g.partitions, int64(l.Unknown), "unknown")
	gauge(g.partitions, int64(beyond), "beyond")
}

// look holds the lock until it knows: scrapes at the same time wait for one answer instead of asking once each.
func (g *groupMetrics) look() broker.GroupLags {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.lastAt) >= lagEvery {
		ctx, cancel := context.WithTimeout(context.Background(), lagPatience)
		defer cancel()
		g.last, g.lastAt = g.lags(ctx), time.Now()
	}
	return g.last
}

// label is text as a label may have it: UTF-8.
func label(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
