package config

import (
	"errors"
	"strconv"
	"strings"
)

const (
	maxLong = "9223372036854775807"

	noteAlwaysSynced = "every acknowledged record is synced to disk before its acknowledgement leaves"
	noteNoIndexFiles = "there are no index files of a fixed size here"
)

var compressionTypes = []string{"uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"}

// topicDefs are the settings of a topic.
func topicDefs() []*Def {
	defs := []*Def{
		list("cleanup.policy", "delete", "What happens to old records: delete drops them by age and size, compact keeps the newest of each key; an empty list keeps everything.",
			[]string{"compact", "delete"}, from("log.cleanup.policy")),
		long("retention.ms", "604800000", "How long records are kept, in local and object storage together; -1: for ever.", -1, anyHigh,
			from("log.retention.ms", Unit{"log.retention.minutes", perMinute}, Unit{"log.retention.hours", perHour})),
		long("retention.bytes", "-1", "How many bytes of each partition are kept, in local and object storage together; -1: all.", anyLow, anyHigh,
			from("log.retention.bytes")),
		long("local.retention.ms", "-2", "How long records stay on the broker's disk after they are in object storage; -2: while there is room.", -2, anyHigh,
			from("log.local.retention.ms")),
		long("local.retention.bytes", "-2", "How many bytes of each partition stay on the broker's disk after they are in object storage; -2: while there is room.", -2, anyHigh,
			from("log.local.retention.bytes")),
		boolean("remote.storage.enable", "true", "Whether sealed ranges of the log go to object storage. They always do.",
			checked("true", func(v string) error {
				if !strings.EqualFold(v, "true") {
					return errors.New("object storage is the long-term store of every topic and cannot be switched off; remote.log.copy.disable=true stops new uploads, retention.ms and retention.bytes bound what is kept")
				}
				return nil
			})),
		boolean("remote.log.copy.disable", "false", "Stops uploads: what is in object storage stays readable, new records stay on the broker's disk."),
		boolean("remote.log.delete.on.disable", "false", "Whether switching object storage off deletes what is there.",
			noted("object storage cannot be switched off, so nothing is deleted on that occasion")),
		long("remote.copy.lag.ms", "0", "How long a sealed range waits before it is uploaded; 0: not at all, -1: as long as local retention keeps it.", -1, anyHigh,
			from("log.remote.copy.lag.ms")),
		long("remote.copy.lag.bytes", "-1", "How many bytes a partition keeps back from upload; 0: none, -1: remote.copy.lag.ms alone decides.", -1, anyHigh,
			from("log.remote.copy.lag.bytes")),
		integer("segment.bytes", "1073741824", "The largest range of a partition that is sealed as one.", 1<<20, anyHigh, from("log.segment.bytes")),
		long("segment.ms", "604800000", "The longest time before a range is sealed; remote.flush.interval.ms seals it sooner.", 1, anyHigh,
			from("log.roll.ms", Unit{"log.roll.hours", perHour})),
		long("segment.jitter.ms", "0", "The largest random time taken off segment.ms, so that partitions are not sealed all at once.", 0, anyHigh,
			from("log.roll.jitter.ms", Unit{"log.roll.jitter.hours", perHour})),
		integer("segment.index.bytes", "10485760", "The size of an offset index.", 4, anyHigh, from("log.index.size.max.bytes"), noted(noteNoIndexFiles)),
		integer("index.interval.bytes", "4096", "How densely offsets are indexed.", 0, anyHigh, from("log.index.interval.bytes"),
			noted("every run of batches is indexed")),
		integer("max.message.bytes", "1048588", "The largest record batch that is accepted, after compression.", 0, anyHigh, from("message.max.bytes")),
		integer("min.insync.replicas", "1", "How many in-sync replicas must have synced a record before acks=all acknowledges it; all of a partition's replicas where it has fewer, as in Kafka.", 1, anyHigh, from("min.insync.replicas")),
		boolean("unclean.leader.election.enable", "false", "Whether a replica that is not in sync may become leader, which loses acknowledged records.",
			from("unclean.leader.election.enable")),
		choice("compression.type", "producer", "The codec in which batches are stored; producer: as they arrive.", compressionTypes, from("compression.type")),
		integer("compression.gzip.level", "-1", "The level of gzip when compression.type is gzip.", 1, 9, or("-1"), from("compression.gzip.level")),
		integer("compression.lz4.level", "9", "The level of lz4 when compression.type is lz4.", 1, 17, from("compression.lz4.level")),
		integer("compression.zstd.level", "3", "The level of zstd when compression.type is zstd.", -131072, 22, from("compression.zstd.level")),
		choice("message.timestamp.type", "CreateTime", "Whether a record has the time that its producer gave it or the time of its append.",
			[]string{"CreateTime", "LogAppendTime"}, from("log.message.timestamp.type")),
		long("message.timestamp.before.max.ms", maxLong, "How much older than the broker's time a record's timestamp may be.", 0, anyHigh,
			from("log.message.timestamp.before.max.ms")),
		long("message.timestamp.after.max.ms", "3600000", "How much later than the broker's time a record's timestamp may be.", 0, anyHigh,
			from("log.message.timestamp.after.max.ms")),
		double("min.cleanable.dirty.ratio", "0.5", "The share of the log that must be uncompacted before compaction begins.", 0, 1, from("log.cleaner.min.cleanable.ratio")),
		long("min.compaction.lag.ms", "0", "How long a record stays uncompacted at least.", 0, anyHigh, from("log.cleaner.min.compaction.lag.ms")),
		long("max.compaction.lag.ms", maxLong, "How long a record stays uncompacted at most.", 1, anyHigh, from("log.cleaner.max.compaction.lag.ms")),
		long("delete.retention.ms", "86400000", "How long a tombstone of a compacted topic is kept.", 0, anyHigh, from("log.cleaner.delete.retention.ms")),
		long("file.delete.delay.ms", "60000", "How long an object that is no longer needed is kept before it is deleted, at least.", 0, anyHigh,
			from("log.segment.delete.delay.ms")),
		long("flush.messages", maxLong, "After how many records a sync is forced.", 1, anyHigh, from("log.flush.interval.messages"), noted(noteAlwaysSynced)),
		long("flush.ms", maxLong, "After how long a sync is forced.", 0, anyHigh, from("log.flush.interval.ms", Unit{"log.flush.scheduler.interval.ms", 1}),
			noted(noteAlwaysSynced)),
		boolean("preallocate", "false", "Whether log files are allocated before they are written.", from("log.preallocate"),
			noted("log files always are")),
		list("leader.replication.throttled.replicas", "", "The replicas whose outgoing replication is throttled, as partition:broker, or * for all.", nil,
			throttled),
		list("follower.replication.throttled.replicas", "", "The replicas whose incoming replication is throttled, as partition:broker, or * for all.", nil,
			throttled),
		boolean("errors.deadletterqueue.group.enable", "false", "Whether share groups may use this topic as their dead letter queue.",
			refused("there are no share groups yet")),
	}
	for _, d := range defs {
		d.Scope = ScopeTopic
		d.Update = ClusterWide
	}
	return defs
}

// throttled checks a list of partition:broker, or the star for all.
func throttled(d *Def) {
	checked("a comma-separated list of partition:broker, or *", func(v string) error {
		if v == "*" {
			return nil
		}
		for _, it := range ParseList(v) {
			p, b, ok := strings.Cut(it, ":")
			_, err1 := strconv.ParseInt(p, 10, 32)
			_, err2 := strconv.ParseInt(b, 10, 32)
			if !ok || err1 != nil || err2 != nil {
				return errors.New(quote(it) + " is neither")
			}
		}
		return nil
	})(d)
}

// formerTopics are names that old files and scripts still carry. A broker of Kafka 4 does not know them
// either; an answer that says why is worth more than "unknown".
var formerTopics = map[string]string{
	"message.format.version":              "it was removed in Kafka 4.0: batches are stored in format 2; leave it out",
	"message.downconversion.enable":       "it was removed in Kafka 4.0: batches are not converted to older formats; leave it out",
	"message.timestamp.difference.max.ms": "it was removed in Kafka 4.0: set message.timestamp.before.max.ms and message.timestamp.after.max.ms instead",
}
