package server

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/metadata"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// replicationMetrics are what a scrape tells of partitions and their replicas. Those that Kafka has count what it
// counts: of the partitions led here (UnderReplicatedPartitions, UnderMinIsrPartitionCount, IsrShrinksPerSec,
// IsrExpandsPerSec), or, at the controller alone, of all (OfflinePartitionsCount, ActiveControllerCount).
type replicationMetrics struct {
	stats      func() broker.ReplicationStats
	image      func() *image.Image
	controller func() bool

	underReplicated, underMinISR, unserved, following, lag, offline, active, epoch, fenced, unresponsive *prometheus.Desc
	sessions, sessionPartitions, shrinks, expands                                                        *prometheus.Desc

	mu     sync.Mutex
	last   broker.ReplicationStats
	lastAt time.Time
}

// replicationEvery bounds how often the partitions are gone through, whoever asks how often.
const replicationEvery = time.Second

func newReplicationMetrics(s *Server) *replicationMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &replicationMetrics{
		stats: s.broker.ReplicationStats, image: s.node.Image, controller: s.node.IsController,
		underReplicated:   desc("varve_under_replicated_partitions", "Partitions led here with replicas that are not in sync."),
		underMinISR:       desc("varve_under_min_isr_partitions", "Partitions led here with fewer replicas in sync than min.insync.replicas: producers with acks=all are refused."),
		unserved:          desc("varve_unserved_partitions", "Partitions that this broker is to lead and does not serve: it takes them over, or they wait for an operator, of which /readyz warns."),
		following:         desc("varve_follower_partitions", "Partitions that this broker copies from their leaders."),
		lag:               desc("varve_replication_lag_records", "How many records the follower that is furthest behind lacks, of all partitions led here, by broker.", "follower"),
		offline:           desc("varve_offline_partitions", "Partitions of the cluster without a leader; 0 at every broker but the controller."),
		active:            desc("varve_active_controller", "1 at the broker that is the controller."),
		epoch:             desc("varve_controller_epoch", "Epoch of the controller that this broker knows of."),
		fenced:            desc("varve_fenced_brokers", "Brokers of the cluster that are known and away; 0 at every broker but the controller."),
		unresponsive:      desc("varve_unresponsive_brokers", "Brokers that have a session and do not answer; 0 at every broker but the controller."),
		sessions:          desc("varve_fetch_sessions", "Incremental fetch sessions kept here (max.incremental.fetch.session.cache.slots)."),
		sessionPartitions: desc("varve_fetch_session_partitions", "Partitions in these sessions."),
		shrinks:           desc("varve_isr_shrinks_total", "Replicas that left the ISR of a partition led here."),
		expands:           desc("varve_isr_expands_total", "Replicas that joined the ISR of a partition led here."),
	}
}

func (m *replicationMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.underReplicated, m.underMinISR, m.unserved, m.following, m.lag, m.offline, m.active, m.epoch, m.fenced, m.unresponsive,
		m.sessions, m.sessionPartitions, m.shrinks, m.expands} {
		ch <- d
	}
}

func (m *replicationMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	if time.Since(m.lastAt) >= replicationEvery {
		m.last, m.lastAt = m.stats(), time.Now()
	}
	st := m.last
	m.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.underReplicated, float64(st.UnderReplicated))
	gauge(m.underMinISR, float64(st.UnderMinISR))
	gauge(m.unserved, float64(st.Unserved))
	gauge(m.following, float64(st.Following))
	for _, f := range st.Followers {
		gauge(m.lag, float64(f.Lag), f.Name())
	}
	gauge(m.sessions, float64(st.Sessions))
	gauge(m.sessionPartitions, float64(st.SessionPartitions))
	ch <- prometheus.MustNewConstMetric(m.shrinks, prometheus.CounterValue, float64(st.Shrinks))
	ch <- prometheus.MustNewConstMetric(m.expands, prometheus.CounterValue, float64(st.Expands))

	im := m.image()
	gauge(m.epoch, float64(im.ControllerEpoch))
	active, offline, fenced, unresponsive := 0, 0, 0, 0
	if m.controller() {
		active = 1
		for t := range im.AllTopics() {
			for _, p := range t.Partitions {
				if p.Leader == image.NoLeader {
					offline++
				}
			}
		}
		for _, b := range im.Brokers() {
			if b.Fenced {
				fenced++
			} else if b.Unresponsive {
				unresponsive++
			}
		}
	}
	gauge(m.active, float64(active))
	gauge(m.offline, float64(offline))
	gauge(m.fenced, float64(fenced))
	gauge(m.unresponsive, float64(unresponsive))
}

// metadataEvents counts what happens to the cluster: at the controller of the moment what that one does, at each broker
// what it meets with itself.
func metadataEvents(reg *prometheus.Registry) metadata.Events {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	elections := counter("varve_leader_elections_total", "Partitions that this broker, as the controller, gave a leader, or another one.")
	unclean := counter("varve_unclean_leader_elections_total", "Of these, the ones whose leader was not in sync: records that were acknowledged may be lost.")
	elected := counter("varve_controller_elections_total", "How often this broker became the controller.")
	lost := counter("varve_sessions_lost_total", "How often this broker's session with the cluster ran out while it ran.")
	failed := counter("varve_controller_write_failures_total", "Changes of the metadata that this broker, as the controller, could not write, or not at the first attempt.")
	loaded := counter("varve_metadata_loads_total", "How often all metadata was loaded again because changes had been missed.")
	events := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "varve_controller_events_total",
		Help: "What this broker, as the controller, did by itself: brokers admitted, fenced, found unresponsive; partitions without a leader, elected, relieved, and so on."}, []string{"event"})
	reg.MustRegister(events)
	// From the beginning, so that the first one is a step that a rate sees.
	for _, kind := range controller.EventKinds {
		events.WithLabelValues(kind)
	}
	return metadata.Events{
		Leaders: func(n, dirty int) {
			elections.Add(float64(n))
			unclean.Add(float64(dirty))
		},
		Elected:     func(int64) { elected.Inc() },
		SessionLost: lost.Inc,
		Failed:      func(int, error, bool) { failed.Inc() },
		Resynced:    func(error) { loaded.Inc() },
		Controlled:  func(e controller.Event) { events.WithLabelValues(e.Kind).Inc() },
	}
}
