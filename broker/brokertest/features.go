package brokertest

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// features are what some seeds have, and others not: each costs time.
type features []string

const (
	compacted = "compacted" // a topic is, and workers compact and merge what is in the bucket
	retained  = "retained"  // records of a topic are deleted, by retention.ms and by DeleteRecords
	renewed   = "renewed"   // a topic is deleted and created again, under load
	classic   = "classic"   // members of a group come and go, by the classic protocol
	consumer  = "consumer"  // and by the consumer protocol
	crowded   = "crowded"   // clients ask for more than they take, and little room is left for requests
)

// allFeatures are of how many seeds in twelve.
var allFeatures = []struct {
	name   string
	chance int
}{{compacted, 6}, {retained, 4}, {renewed, 4}, {classic, 3}, {consumer, 3}, {crowded, 3}}

func (f features) has(name string) bool { return slices.Contains(f, name) }

// choose draws the features of a seed; only, if it is not nil, are they.
func choose(seed uint64, only []string) (f features) {
	rnd := pcg(seed, "features")
	for _, a := range allFeatures {
		if rnd.IntN(12) < a.chance && only == nil || slices.Contains(only, a.name) {
			f = append(f, a.name)
		}
	}
	return f
}

func (f features) String() string {
	if len(f) == 0 {
		return "no feature"
	}
	return strings.Join(f, ", ")
}

// topics are those that the features need, with their settings.
func (f features) topics() map[string]map[string]string {
	t := map[string]map[string]string{}
	if f.has(compacted) {
		t[topicKept] = map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.2", "delete.retention.ms": "1000"}
	}
	if f.has(retained) {
		t[topicShort] = map[string]string{"retention.ms": strconv.Itoa(retentionMs)}
	}
	return t
}

// settings are what the features need of every broker and worker.
func (f features) settings() map[string]string {
	s := map[string]string{
		// What nothing names goes, within a run.
		"remote.sweep.interval.ms": "4000", "log.segment.delete.delay.ms": "1000", "log.retention.check.interval.ms": "500",
		"log.cleaner.backoff.ms": "500", "log.cleaner.session.timeout.ms": "2000", "log.cleaner.scrub.interval.ms": "0", "log.cleaner.object.bytes": strconv.Itoa(1 << 20),
		"group.initial.rebalance.delay.ms": "200", "group.min.session.timeout.ms": "1000",
		"group.consumer.min.session.timeout.ms": "1000", "group.consumer.session.timeout.ms": strconv.Itoa(int(memberSession.Milliseconds())),
		"group.consumer.min.heartbeat.interval.ms": "100", "group.consumer.heartbeat.interval.ms": strconv.Itoa(int(memberBeats.Milliseconds())),
	}
	if f.has(crowded) {
		s["queued.max.request.bytes"], s["socket.request.max.bytes"] = strconv.Itoa(2<<20), strconv.Itoa(2<<20)
	}
	return s
}

// with has a topic with some settings.
func with(t *kmsg.CreateTopicsRequestTopic, settings map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = name, kmsg.StringPtr(settings[name])
		t.Configs = append(t.Configs, c)
	}
}
