package config

import "math"

const (
	noteNoShare     = "there are no share groups yet"
	noteNoStreams   = "there are no streams groups yet"
	noteNoNewGroups = "the new group protocol does not exist yet"
)

// groupDefs are the settings of a group (config resource type 32). Those of a kind of group that does not exist
// yet can be set, and are warned about: tools set them before the group is there.
func groupDefs() []*Def {
	defs := []*Def{
		integer("consumer.session.timeout.ms", "45000", "After how long without a heartbeat a member is taken for gone.", 1, anyHigh, warned(noteNoNewGroups)),
		integer("consumer.heartbeat.interval.ms", "5000", "How often members send heartbeats.", 1, anyHigh, warned(noteNoNewGroups)),
		integer("consumer.assignment.interval.ms", "1000", "The shortest time between two assignments of a group.", 0, anyHigh, warned(noteNoNewGroups)),
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
