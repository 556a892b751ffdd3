package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// TopicConfig is what a topic's settings come to, typed.
type TopicConfig struct {
	CleanupPolicy       []string // empty: everything is kept
	Compact, Delete     bool
	RetentionMs         int64 // -1: for ever
	RetentionBytes      int64 // -1: all
	LocalRetentionMs    int64 // -2: while there is room, -1: for ever
	LocalRetentionBytes int64 // -2: while there is room, -1: all

	RemoteCopyDisable  bool
	RemoteCopyLagMs    int64 // -1: as long as local retention
	RemoteCopyLagBytes int64 // -1: RemoteCopyLagMs alone decides

	SegmentBytes    int
	SegmentMs       int64
	SegmentJitterMs int64

	MaxMessageBytes       int
	MinInsyncReplicas     int
	UncleanLeaderElection bool

	CompressionType string // "producer": as it arrives
	GzipLevel       int    // -1: the codec's default
	LZ4Level        int
	ZstdLevel       int

	LogAppendTime        bool
	TimestampBeforeMaxMs int64
	TimestampAfterMaxMs  int64

	MinCleanableDirtyRatio float64
	MinCompactionLagMs     int64
	MaxCompactionLagMs     int64
	DeleteRetentionMs      int64
	FileDeleteDelayMs      int64

	LeaderThrottledReplicas   []string
	FollowerThrottledReplicas []string
}

// CompressionLevel is the level that goes with CompressionType.
func (c *TopicConfig) CompressionLevel() int {
	switch c.CompressionType {
	case "gzip":
		return c.GzipLevel
	case "lz4":
		return c.LZ4Level
	case "zstd":
		return c.ZstdLevel
	}
	return 0
}

// Resolver finds the values that count, in layers of a broker: what was set for it while it ran, what was
// set for all brokers while they ran, its file. Any may be nil.
type Resolver struct {
	BrokerDynamic  map[string]string // config resource BROKER "1"
	ClusterDynamic map[string]string // config resource BROKER ""
	Static         map[string]string
}

// Synonym is one place where a value could come from, and what is there.
type Synonym struct {
	Name   string
	Value  string
	Source Source
}

// Resolve is Resolver.Topic for a caller that has the four maps.
func Resolve(topicOverrides, brokerDynamic, clusterDynamic, static map[string]string) *TopicConfig {
	return Resolver{brokerDynamic, clusterDynamic, static}.Topic(topicOverrides)
}

// brokerSynonyms lists, in the order in which they count, the values under any of the names: all names of
// one layer before the next layer.
func (r Resolver) brokerSynonyms(names []string) []Synonym {
	var out []Synonym
	for _, layer := range []struct {
		values map[string]string
		source Source
	}{{r.BrokerDynamic, DynamicBroker}, {r.ClusterDynamic, DynamicDefaultBroker}, {r.Static, StaticBroker}} {
		for _, n := range names {
			if v, ok := layer.values[n]; ok {
				out = append(out, Synonym{Name: n, Value: v, Source: layer.source})
			}
		}
	}
	for _, n := range names {
		if d := brokers.byName[n]; d != nil && !d.Null {
			out = append(out, Synonym{Name: n, Value: d.Default, Source: Default})
		}
	}
	return out
}

// TopicSynonyms lists, in the order in which they count, where the value of a topic's setting can come
// from, as DescribeConfigs shows it: a setting of the broker keeps its name, value and unit.
func (r Resolver) TopicSynonyms(name string, overrides map[string]string) []Synonym {
	var out []Synonym
	if v, ok := overrides[name]; ok {
		out = append(out, Synonym{Name: name, Value: v, Source: DynamicTopic})
	}
	d := topics.byName[name]
	if d == nil {
		return out
	}
	names := make([]string, 0, 3)
	for _, s := range d.Synonyms {
		names = append(names, s.Name)
	}
	out = append(out, r.brokerSynonyms(names)...)
	if len(names) == 0 {
		out = append(out, Synonym{Name: name, Value: d.Default, Source: Default})
	}
	return out
}

// Synonyms does the same for a broker's setting.
func (r Resolver) Synonyms(name string) []Synonym {
	names := []string{name}
	if d := brokers.byName[name]; d != nil && name != "node.id" {
		names = namesOf(d)
	}
	return r.brokerSynonyms(names)
}

// namesOf puts a broker's setting and its synonyms in the order in which they count.
func namesOf(d *Def) []string {
	for _, t := range topics.sorted {
		if len(t.Synonyms) > 1 && slices.ContainsFunc(t.Synonyms, func(u Unit) bool { return u.Name == d.Name }) {
			var names []string
			for _, u := range t.Synonyms {
				names = append(names, u.Name)
			}
			return names
		}
	}
	return []string{d.Name}
}

// Value returns what counts for a topic's setting, in the topic's unit, and where it comes from.
func (r Resolver) Value(name string, overrides map[string]string) (string, Source) {
	d := topics.byName[name]
	if d == nil {
		return "", Default
	}
	for _, s := range r.TopicSynonyms(name, overrides) {
		if v, ok := d.convert(s); ok {
			return v, s.Source
		}
	}
	return d.Default, Default
}

// convert turns a synonym's value into the topic's unit. A value that is not sound does not count: the store may
// hold what an older or newer version accepted.
func (d *Def) convert(s Synonym) (string, bool) {
	v := strings.TrimSpace(s.Value)
	if s.Source != DynamicTopic {
		if b := brokers.byName[s.Name]; b != nil && b.Validate(v) != nil {
			return "", false
		}
		for _, u := range d.Synonyms {
			if u.Name != s.Name {
				continue
			}
			n, err := strconv.ParseInt(v, 10, 64)
			switch {
			case err != nil:
			case n < 0 && strings.HasPrefix(s.Name, "log.retention.") && d.Name == "retention.ms":
				return "-1", true
			case u.Factor > 1 && n > math.MaxInt64/u.Factor:
				return maxLong, true
			case u.Factor > 1:
				return strconv.FormatInt(n*u.Factor, 10), true
			}
		}
	}
	return v, d.Validate(v) == nil
}

// Topic returns a topic's settings, typed.
func (r Resolver) Topic(overrides map[string]string) *TopicConfig {
	get := func(name string) string { v, _ := r.Value(name, overrides); return v }
	long := func(name string) int64 { n, _ := strconv.ParseInt(get(name), 10, 64); return n }
	integer := func(name string) int { return int(long(name)) }
	boolean := func(name string) bool { v, _ := parseBool(get(name)); return v }
	ratio, _ := strconv.ParseFloat(get("min.cleanable.dirty.ratio"), 64)
	policy := ParseList(get("cleanup.policy"))
	return &TopicConfig{
		CleanupPolicy: policy, Compact: slices.Contains(policy, "compact"), Delete: slices.Contains(policy, "delete"),
		RetentionMs: long("retention.ms"), RetentionBytes: long("retention.bytes"),
		LocalRetentionMs: long("local.retention.ms"), LocalRetentionBytes: long("local.retention.bytes"),
		RemoteCopyDisable: boolean("remote.log.copy.disable"), RemoteCopyLagMs: long("remote.copy.lag.ms"), RemoteCopyLagBytes: long("remote.copy.lag.bytes"),
		SegmentBytes: integer("segment.bytes"), SegmentMs: long("segment.ms"), SegmentJitterMs: long("segment.jitter.ms"),
		MaxMessageBytes: integer("max.message.bytes"), MinInsyncReplicas: integer("min.insync.replicas"),
		UncleanLeaderElection: boolean("unclean.leader.election.enable"),
		CompressionType:       get("compression.type"), GzipLevel: integer("compression.gzip.level"), LZ4Level: integer("compression.lz4.level"),
		ZstdLevel:     integer("compression.zstd.level"),
		LogAppendTime: get("message.timestamp.type") == "LogAppendTime", TimestampBeforeMaxMs: long("message.timestamp.before.max.ms"),
		TimestampAfterMaxMs:    long("message.timestamp.after.max.ms"),
		MinCleanableDirtyRatio: ratio, MinCompactionLagMs: long("min.compaction.lag.ms"), MaxCompactionLagMs: long("max.compaction.lag.ms"),
		DeleteRetentionMs: long("delete.retention.ms"), FileDeleteDelayMs: long("file.delete.delay.ms"),
		LeaderThrottledReplicas: ParseList(get("leader.replication.throttled.replicas")), FollowerThrottledReplicas: ParseList(get("follower.replication.throttled.replicas")),
	}
}

// UnknownError is a name that is no setting of its resource.
type UnknownError struct{ Name, Hint string }

func (e *UnknownError) Error() string {
	s := "Unknown config name: " + quoteName(e.Name)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// ConflictError is a setting that does not go with another one.
type ConflictError struct{ Name, Message string }

func (e *ConflictError) Error() string { return e.Message }

// MaxOverrides is how many settings one resource can have. It is above the number of settings there are.
const MaxOverrides = 1000

// ValidateTopic checks a topic's overrides, one by one and together, with Kafka's defaults for what they leave
// out. The error names the setting: a *ValueError, *UnknownError or *ConflictError.
func ValidateTopic(overrides map[string]string) error { return Resolver{}.ValidateTopic(overrides) }

// ValidateTopic checks a topic's overrides with the broker's settings for what they leave out.
func (r Resolver) ValidateTopic(overrides map[string]string) error {
	if err := validateEach(&topics, overrides, formerTopics); err != nil {
		return err
	}
	c := r.Topic(overrides)
	local := func(what string, local, total int64) error {
		name := "local.retention." + what
		switch {
		case local == -2 || total == -1:
			return nil
		case local == -1:
			return &ConflictError{name, fmt.Sprintf("%s must not be -1 as retention.%s is %d", name, what, total)}
		case local > total:
			return &ConflictError{name, fmt.Sprintf("%s=%d must not be more than retention.%s=%d", name, local, what, total)}
		}
		return nil
	}
	lag := func(what string, lag, local int64) error {
		if local >= 0 && lag > local {
			name := "remote.copy.lag." + what
			return &ConflictError{name, fmt.Sprintf("%s=%d must not be more than local.retention.%s=%d, after which records leave the disk", name, lag, what, local)}
		}
		return nil
	}
	if c.MinCompactionLagMs > c.MaxCompactionLagMs {
		return &ConflictError{"min.compaction.lag.ms", fmt.Sprintf("min.compaction.lag.ms=%d must not be more than max.compaction.lag.ms=%d", c.MinCompactionLagMs, c.MaxCompactionLagMs)}
	}
	if err := local("ms", c.LocalRetentionMs, c.RetentionMs); err != nil {
		return err
	}
	if err := local("bytes", c.LocalRetentionBytes, max(c.RetentionBytes, -1)); err != nil {
		return err
	}
	if err := lag("ms", c.RemoteCopyLagMs, c.LocalRetentionMs); err != nil {
		return err
	}
	if err := lag("bytes", c.RemoteCopyLagBytes, c.LocalRetentionBytes); err != nil {
		return err
	}
	if c.RemoteCopyDisable {
		// What is not uploaded can only go by retention, so the two must agree.
		for _, p := range []struct {
			what         string
			local, total int64
		}{{"ms", c.LocalRetentionMs, c.RetentionMs}, {"bytes", c.LocalRetentionBytes, c.RetentionBytes}} {
			if p.local != -2 && p.local != p.total {
				return &ConflictError{"local.retention." + p.what, fmt.Sprintf("with remote.log.copy.disable=true, local.retention.%s must be -2 or the same as retention.%s=%d, for nothing more is copied",
					p.what, p.what, p.total)}
			}
		}
	}
	return nil
}

// brokerName is the setting under which a broker's file has a topic's setting.
func (r Resolver) brokerName(topic string) string {
	d := topics.byName[topic]
	if d == nil || len(d.Synonyms) == 0 {
		return topic
	}
	for _, s := range d.Synonyms {
		if _, ok := r.Static[s.Name]; ok {
			return s.Name
		}
	}
	return d.Synonyms[0].Name
}

// validateEach checks names and values, in order of names so that the same input has the same error.
func validateEach(t *table, values map[string]string, former map[string]string) error {
	if len(values) > MaxOverrides {
		return &ConflictError{"", fmt.Sprintf("%d settings are more than there are", len(values))}
	}
	names := make([]string, 0, len(values))
	for n := range values {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		d := t.byName[n]
		if d == nil {
			hint := former[n]
			if near, ok := nearestIn(t, n); hint == "" && ok {
				hint = "did you mean " + near + "?"
			}
			return &UnknownError{n, hint}
		}
		if err := d.Validate(values[n]); err != nil {
			return err
		}
	}
	return nil
}

func nearestIn(t *table, name string) (string, bool) {
	if len(name) > 200 {
		return "", false
	}
	best, dist := "", 1+max(2, len(name)/4)
	for _, d := range t.sorted {
		if n := distance(name, d.Name, dist); n < dist {
			best, dist = d.Name, n
		}
	}
	return best, best != ""
}

// ValidateBroker checks what is to be set for a broker while it runs, or for all when perBroker is false.
func ValidateBroker(values map[string]string, perBroker bool) error {
	names := make([]string, 0, len(values))
	for n := range values {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		d := brokers.byName[n]
		switch {
		case d == nil:
			hint, ok := Foreign(n)
			if near, is := Nearest(n); !ok && is {
				hint = "did you mean " + near + "?"
			}
			return &UnknownError{n, hint}
		case d.Update == ReadOnly:
			return &ConflictError{n, n + " cannot be changed while brokers run: set it in the broker's configuration and restart it"}
		case d.Update == PerBroker && !perBroker:
			return &ConflictError{n, n + " belongs to one broker and cannot be set for all"}
		}
		if err := d.Validate(values[n]); err != nil {
			return err
		}
	}
	// What a broker refuses in its file it could not take over while it runs either, and nothing else that is
	// changed along with it.
	if v, ok := values["max.connections.per.ip"]; ok && strings.TrimSpace(v) == "0" && values["max.connections.per.ip.overrides"] == "" {
		return &ConflictError{"max.connections.per.ip", "max.connections.per.ip=0: nobody could connect; 0 goes with max.connections.per.ip.overrides"}
	}
	if v, ok := values["log.retention.ms"]; ok && strings.TrimSpace(v) == "0" {
		return &ConflictError{"log.retention.ms", "log.retention.ms=0: records would be gone at once: it is -1 (for ever) or at least 1"}
	}
	// The same rules hold among defaults of topics as among topics' own.
	return Resolver{ClusterDynamic: values}.ValidateTopic(nil)
}

// ValidateGroup checks the settings of a group, ValidateClientMetrics those of a client metrics subscription.
func ValidateGroup(values map[string]string) error { return validateEach(&groups, values, nil) }
func ValidateClientMetrics(values map[string]string) error {
	return validateEach(&clientMetrics, values, nil)
}

// Kafka's numbers of config resources.
const (
	ResourceTopic         int8 = 2
	ResourceBroker        int8 = 4
	ResourceBrokerLogger  int8 = 8
	ResourceClientMetrics int8 = 16
	ResourceGroup         int8 = 32
)

func tableOf(resource int8) *table {
	switch resource {
	case ResourceTopic:
		return &topics
	case ResourceBroker:
		return &brokers
	case ResourceGroup:
		return &groups
	case ResourceClientMetrics:
		return &clientMetrics
	}
	return nil
}

// ValidateResource checks all that a resource would have set for itself: a topic's overrides, what is set for a
// broker (name "1") or for all (name "") while they run, a group's or a client metrics subscription's settings.
func (r Resolver) ValidateResource(resource int8, name string, values map[string]string) error {
	switch resource {
	case ResourceTopic:
		return r.ValidateTopic(values)
	case ResourceBroker:
		if err := ValidateBroker(values, name != ""); err != nil {
			return err
		}
		if name == "" {
			r.ClusterDynamic = values
		} else {
			r.BrokerDynamic = values
		}
		return r.ValidateTopic(nil)
	case ResourceGroup:
		return r.ValidateGroup(values)
	case ResourceClientMetrics:
		return ValidateClientMetrics(values)
	}
	return &ConflictError{name, fmt.Sprintf("resources of type %d have no settings", resource)}
}

// IsList reports whether a resource's setting is a list, to which APPEND and SUBTRACT apply.
func IsList(resource int8, setting string) bool {
	t := tableOf(resource)
	return t != nil && t.byName[setting] != nil && t.byName[setting].IsList()
}

// DefaultValue is the value that a resource's setting has if the resource sets none, and that APPEND and SUBTRACT
// begin with.
func (r Resolver) DefaultValue(resource int8, setting string) string {
	if resource == ResourceTopic {
		v, _ := r.Value(setting, nil)
		return v
	}
	if d := groups.byName[setting]; resource == ResourceGroup && d != nil && len(d.Synonyms) > 0 {
		return r.brokerValue(d.Synonyms[0].Name)
	}
	if t := tableOf(resource); t != nil && t.byName[setting] != nil {
		return t.byName[setting].Default
	}
	return ""
}
