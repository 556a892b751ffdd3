package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	noteNoShare   = "there are no share groups yet"
	noteNoStreams = "there are no streams groups yet"
)

// GroupConfig is what holds for a group of the consumer protocol.
type GroupConfig struct {
	SessionTimeout     time.Duration
	HeartbeatInterval  time.Duration
	AssignmentInterval time.Duration // 0: none
}

// consumerGroups reads what a broker has for such groups, and the bounds of what they set for themselves.
func consumerGroups(num func(name string) int64) (own, least, most GroupConfig) {
	ms := func(name string) time.Duration { return Milliseconds(num("group.consumer." + name)) }
	own = GroupConfig{ms("session.timeout.ms"), ms("heartbeat.interval.ms"), ms("assignment.interval.ms")}
	least = GroupConfig{ms("min.session.timeout.ms"), ms("min.heartbeat.interval.ms"), 0}
	most = GroupConfig{ms("max.session.timeout.ms"), ms("max.heartbeat.interval.ms"), Milliseconds(anyHigh)}
	return own, least, most
}

// Group is what holds for a group that has set these values for itself. Values that are beyond the broker's bounds,
// which may be narrower than when they were set, count as the bound.
func (c *BrokerConfig) Group(values map[string]string) GroupConfig {
	g := c.GroupConsumer
	if len(values) == 0 {
		return g
	}
	set := func(to *time.Duration, name string, least, most time.Duration) {
		if v, ok := values[name]; ok && groups.byName[name].Validate(v) == nil {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			*to = min(max(Milliseconds(n), least), most)
		}
	}
	set(&g.SessionTimeout, "consumer.session.timeout.ms", c.GroupConsumerMin.SessionTimeout, c.GroupConsumerMax.SessionTimeout)
	set(&g.HeartbeatInterval, "consumer.heartbeat.interval.ms", c.GroupConsumerMin.HeartbeatInterval, c.GroupConsumerMax.HeartbeatInterval)
	set(&g.AssignmentInterval, "consumer.assignment.interval.ms", 0, c.GroupConsumerMax.AssignmentInterval)
	return g
}

// ValidateGroup checks the settings of a group, with the bounds that the broker sets.
func (r Resolver) ValidateGroup(values map[string]string) error {
	if err := ValidateGroup(values); err != nil {
		return err
	}
	own, least, most := consumerGroups(func(name string) int64 {
		n, _ := strconv.ParseInt(r.brokerValue(name), 10, 64)
		return n
	})
	for _, x := range []struct {
		name        string
		to          *time.Duration
		least, most time.Duration
	}{
		{"session.timeout.ms", &own.SessionTimeout, least.SessionTimeout, most.SessionTimeout},
		{"heartbeat.interval.ms", &own.HeartbeatInterval, least.HeartbeatInterval, most.HeartbeatInterval},
	} {
		v, ok := values["consumer."+x.name]
		if !ok {
			continue
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		d := Milliseconds(n)
		switch {
		case d < x.least:
			return &ConflictError{"consumer." + x.name, fmt.Sprintf("consumer.%s=%s is less than group.consumer.min.%s=%d", x.name, v, x.name, x.least.Milliseconds())}
		case d > x.most:
			return &ConflictError{"consumer." + x.name, fmt.Sprintf("consumer.%s=%s is more than group.consumer.max.%s=%d", x.name, v, x.name, x.most.Milliseconds())}
		}
		*x.to = d
	}
	if own.SessionTimeout <= own.HeartbeatInterval {
		return &ConflictError{"consumer.session.timeout.ms", fmt.Sprintf("a session timeout of %d ms is not more than the heartbeat interval of %d ms",
			own.SessionTimeout.Milliseconds(), own.HeartbeatInterval.Milliseconds())}
	}
	return nil
}

// brokerValue is what counts for a broker's setting; a value that is not sound is passed over.
func (r Resolver) brokerValue(name string) string {
	d := brokers.byName[name]
	for _, s := range r.Synonyms(name) {
		if v := strings.TrimSpace(s.Value); d.Validate(v) == nil {
			return v
		}
	}
	return d.Default
}

// ofBroker says which of the broker's settings holds where a group sets nothing.
func ofBroker(name string) option {
	return func(d *Def) { d.Synonyms = []Unit{{Name: name, Factor: 1}} }
}

// groupDefs are the settings of a group (config resource type 32). Those of a kind of group that does not exist
// yet can be set, and are warned about: tools set them before the group is there.
func groupDefs() []*Def {
	defs := []*Def{
		integer("consumer.session.timeout.ms", "45000", "After how long without a heartbeat a member is taken for gone, within group.consumer.min/max.session.timeout.ms.", 1, anyHigh, ofBroker("group.consumer.session.timeout.ms")),
		integer("consumer.heartbeat.interval.ms", "5000", "How often members send heartbeats, within group.consumer.min/max.heartbeat.interval.ms.", 1, anyHigh, ofBroker("group.consumer.heartbeat.interval.ms")),
		integer("consumer.assignment.interval.ms", "0", "The shortest time between two assignments of a group. 0 assigns as soon as something changes.", 0, anyHigh, ofBroker("group.consumer.assignment.interval.ms")),
		boolean("consumer.assignor.offload.enable", "true", "Whether assignments are computed beside the coordinator's own work.",
			noted("an assignment is computed where it does not hold up other groups")),

		integer("share.session.timeout.ms", "45000", "After how long without a heartbeat a member is taken for gone.", 1, anyHigh, warned(noteNoShare)),
		integer("share.heartbeat.interval.ms", "5000", "How often members send heartbeats.", 1, anyHigh, warned(noteNoShare)),
		integer("share.record.lock.duration.ms", "30000", "How long a fetched record is locked.", 1000, 3_600_000, warned(noteNoShare)),
		integer("share.delivery.count.limit", "5", "How often a record is delivered at most.", 2, math.MaxInt16, warned(noteNoShare)),
		integer("share.partition.max.record.locks", "2000", "How many records of a partition may be locked.", 100, 10_000, warned(noteNoShare)),
		text("share.auto.offset.reset", "latest", "Where a new group begins: latest, earliest, or by_duration:<ISO 8601 duration>.", warned(noteNoShare)),
		choice("share.isolation.level", "read_uncommitted", "Whether records of open and aborted transactions are delivered.",
			[]string{"read_committed", "read_uncommitted"}, warned(noteNoShare)),
		boolean("share.renew.acknowledge.enable", "true", "Whether members may renew a lock.", warned(noteNoShare)),
		integer("share.assignment.interval.ms", "1000", "The shortest time between two assignments of a group.", 0, anyHigh, warned(noteNoShare)),

		integer("streams.session.timeout.ms", "45000", "After how long without a heartbeat a member is taken for gone.", 1, anyHigh, warned(noteNoStreams)),
		integer("streams.heartbeat.interval.ms", "5000", "How often members send heartbeats.", 1, anyHigh, warned(noteNoStreams)),
		integer("streams.num.standby.replicas", "0", "How many standby copies of each task there are.", 0, anyHigh, warned(noteNoStreams)),
		integer("streams.initial.rebalance.delay.ms", "3000", "How long a new group waits for more members before its first assignment.", 0, anyHigh, warned(noteNoStreams)),
		integer("streams.num.warmup.replicas", "2", "How many tasks may be warming up elsewhere at a time.", 1, anyHigh, warned(noteNoStreams)),
		long("streams.acceptable.recovery.lag", "10000", "How far behind a copy may be to count as caught up.", 0, anyHigh, warned(noteNoStreams)),
		integer("streams.task.offset.interval.ms", "60000", "How often members report their tasks' offsets.", 1, anyHigh, warned(noteNoStreams)),
		text("streams.assignor.name", null, "The assignor of the group.", warned(noteNoStreams)),
		list("streams.rack.aware.assignment.tags", "", "The client tags over which standby copies are spread.", nil, warned(noteNoStreams)),

		text("errors.deadletterqueue.topic.name", "", "The topic for records that could not be processed.", warned(noteNoShare)),
		boolean("errors.deadletterqueue.copy.record.enable", "false", "Whether such a record is copied whole.", warned(noteNoShare)),
	}
	for _, d := range defs {
		d.Scope, d.Update = ScopeGroup, ClusterWide
	}
	return defs
}

// clientMetricsDefs are the settings of a client metrics subscription (config resource type 16).
func clientMetricsDefs() []*Def {
	const later = "clients are not asked for their metrics yet"
	defs := []*Def{
		list("metrics", "", "The prefixes of the metrics that clients send; an empty list: none.", nil, warned(later)),
		integer("interval.ms", "300000", "How often clients send them.", 100, 3_600_000, warned(later)),
		list("match", "", "Which clients, as key=pattern.", nil, warned(later)),
	}
	for _, d := range defs {
		d.Scope, d.Update = ScopeClientMetrics, ClusterWide
	}
	return defs
}
