package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Cleaner is what a compaction worker goes by.
type Cleaner struct {
	Enable         bool
	Threads        int     // partitions at a time
	DedupeBytes    int64   // of all tables of keys
	LoadFactor     float64 // of a table
	BytesPerSecond float64 // read and written
	Backoff        time.Duration
	SpoolDir       string // "": the system's
	ObjectBytes    int64
	JobBytes       int64
	JobRequests    int64
	SessionTimeout time.Duration
	ScrubInterval  time.Duration
	ScrubData      bool
}

// BrokerConfig is a broker's configuration, typed. Where a field is 0 and the setting's meaning of 0 is
// "derived", the caller derives it from what it knows of the machine.
type BrokerConfig struct {
	NodeID    int32
	ClusterID string // empty: take the cluster's
	Rack      string
	LogDir    string

	// Listeners and network.
	Listeners                    []Listener
	QueuedMaxRequestBytes        int64 // -1: derived
	SocketRequestMaxBytes        int
	SocketSendBufferBytes        int // -1: the system's
	SocketReceiveBufferBytes     int // -1: the system's
	MaxConnections               int
	MaxConnectionsPerIP          int
	MaxConnectionsPerIPOverrides map[string]int // by host or address
	MaxConnectionCreationRate    int            // a second
	ConnectionsMaxIdle           time.Duration  // 0: for ever
	MaxRequestPartitions         int
	AdminListener                string        // host:port, empty: none
	GroupLagMaxPartitions        int           // of which the lag is a metric
	BalanceInterval              time.Duration // leader.imbalance.check.interval.seconds; 0: never
	BalancePercentage            int           // leader.imbalance.per.broker.percentage
	HandOverTries                int           // controlled.shutdown.max.retries and one; 0: a broker that stops hands nothing over
	HandOverWait                 time.Duration // controlled.shutdown.retry.backoff.ms
	SessionTimeout               time.Duration
	HeartbeatInterval            time.Duration
	RegistrationTimeout          time.Duration

	// Topics.
	AutoCreateTopics         bool
	NumPartitions            int32
	DefaultReplicationFactor int16
	DeleteTopics             bool
	FullValidation           bool // record.validation=full
	RetentionCheckInterval   time.Duration
	ProducerIDExpiration     time.Duration

	// Of followers: how far behind they may be and stay in sync; how they fetch.
	ReadFromLeader                                                           bool // consumers that name their rack are not sent to a follower (KIP-392)
	ReplicaLagMax, ReplicaFetchWait, ReplicaFetchBackoff                     time.Duration
	ReplicaFetchMinBytes, ReplicaFetchMaxBytes, ReplicaFetchResponseMaxBytes int
	LeaderThrottledRate, FollowerThrottledRate                               int64 // bytes a second, of replicas that topics list

	ProducerExpiryInterval time.Duration // how often producers to be forgotten are looked for
	// VerifyTransactions has transactional batches of older clients checked with
	// the transaction coordinator.
	VerifyTransactions       bool
	MaxProducersPerPartition int

	// Fetch.
	FetchMaxBytes     int
	FetchSessionSlots int

	// Transactions.
	TxnMaxTimeout         time.Duration
	TransactionalIDExpiry time.Duration // after which an unused transactional id is forgotten
	TxnExpiryInterval     time.Duration // how often those are looked for
	AddToTxnBackoff       time.Duration // between two questions of a partition whose coordinator waits for markers
	AddToTxnMax           time.Duration // for which producers are spared CONCURRENT_TRANSACTIONS
	TxnTopicPartitions    int32
	TxnTopicReplication   int16
	TxnTopicMinISR        int
	TxnTopicSegmentBytes  int

	// Groups and offsets.
	OffsetsTopicPartitions        int32
	OffsetsTopicReplicationFactor int16
	OffsetsTopicSegmentBytes      int
	OffsetsTopicCodec             int8
	OffsetsRetention              time.Duration
	OffsetsRetentionCheckInterval time.Duration
	OffsetsCommitTimeout          time.Duration
	OffsetMetadataMaxBytes        int
	GroupMinSessionTimeout        time.Duration
	GroupMaxSessionTimeout        time.Duration
	GroupInitialRebalanceDelay    time.Duration
	GroupMaxSize                  int
	GroupProtocols                []string // group.coordinator.rebalance.protocols, classic among them
	GroupConsumerMaxSize          int
	GroupConsumerAssignors        []string // the first is the default
	GroupConsumerMigrationPolicy  string
	GroupConsumer                 GroupConfig // of groups that set nothing for themselves
	GroupConsumerMin              GroupConfig // what groups can set at least
	GroupConsumerMax              GroupConfig // and at most

	// Memory and the log.
	MemoryMaxBytes  int64 // 0: derived
	WALMaxBytes     int64 // 0: derived
	WALSegmentBytes int64
	WALQueueBytes   int64 // 0: derived
	WALCacheBytes   int64 // 0: derived
	WALDirectIO     bool

	// Object storage.
	RemoteStorageURL             string
	RemoteFlushInterval          time.Duration
	RemoteObjectBytes            int64
	RemoteDeleteGrace            time.Duration
	RemoteSweepInterval          time.Duration
	RemoteRequestTimeout         time.Duration
	RemoteCacheMemoryBytes       int64 // 0: derived
	RemoteCacheDiskBytes         int64 // 0: none
	RemoteCacheDir               string
	RemoteUploads                int // at a time
	RemoteReads                  int // at a time
	Cleaner                      Cleaner
	RemoteMaxPendingReads        int
	RemoteCopyMaxBytesPerSecond  int64 // MaxInt64: no bound
	RemoteFetchMaxBytesPerSecond int64 // MaxInt64: no bound
	RemoteFetchMaxWait           time.Duration
	RemoteListOffsetsTimeout     time.Duration

	// etcd.
	EtcdEndpoints      []string
	EtcdPrefix         string
	EtcdUser           string
	EtcdPassword       string
	EtcdPasswordFile   string
	EtcdTLSCAFile      string
	EtcdTLSCertFile    string
	EtcdTLSKeyFile     string
	EtcdTLSServerName  string
	EtcdDialTimeout    time.Duration
	EtcdRequestTimeout time.Duration
	EtcdCompaction     time.Duration // 0: never

	LogLevel  string
	LogFormat string

	// Static is what was set, by name: the values of source STATIC_BROKER_CONFIG.
	Static map[string]string
}

// Machine is what only the caller can know; zero values are unknown.
type Machine struct {
	Hostname    string
	MemoryBytes int64 // of the container or the machine
	Brokers     int   // of the cluster, where it is certain
	// Required are the settings that must be set, such as remote.storage.url for a broker of a cluster.
	Required []string
	// NoBroker: the process is none, so nothing has to say which broker it is and where its log is.
	NoBroker bool
}

// DevDefaults are the settings that differ for a single process that embeds everything.
func DevDefaults() map[string]string {
	return map[string]string{
		"node.id":                                  "1",
		"listeners":                                "PLAINTEXT://127.0.0.1:9092",
		"remote.flush.interval.ms":                 "1000",
		"remote.delete.grace.ms":                   "60000",
		"offsets.topic.replication.factor":         "1",
		"transaction.state.log.replication.factor": "1",
		"transaction.state.log.min.isr":            "1",
		"group.initial.rebalance.delay.ms":         "0",
	}
}

type builder struct {
	set  Settings
	bad  problems
	warn problems
}

// Build turns settings into a configuration. The warnings are about names that nobody knows and settings that have
// no effect. The error is an *Error with everything that is wrong: it names where each value was written, and
// what would be right.
func Build(set Settings, m Machine) (*BrokerConfig, []Problem, error) {
	b := &builder{set: set}
	for _, name := range set.names() {
		b.check(name, set[name])
	}
	c := b.fill(m)
	b.contradictions(c, m)
	return c, b.warn, b.bad.err()
}

// check looks at one setting by itself.
func (b *builder) check(name string, v Value) {
	d, ok := Broker(name)
	if !ok {
		switch reason, isForeign := Foreign(name); {
		case isForeign:
			b.warn.add(v.Origin, name, "%s has no effect: %s", quoteName(name), reason)
		case topics.byName[name] != nil:
			t := topics.byName[name]
			if len(t.Synonyms) > 0 {
				b.warn.add(v.Origin, name, "%s is a topic's setting and has no effect here: its default for all topics is %s", name, t.Synonyms[0].Name)
			} else {
				b.warn.add(v.Origin, name, "%s is a topic's setting and has no effect here: set it on topics", name)
			}
		default:
			msg := quoteName(name) + " is not a setting and has no effect"
			if near, ok := Nearest(name); ok {
				msg += fmt.Sprintf("; did you mean %s?", near)
			}
			b.warn.add(v.Origin, name, "%s", msg)
		}
		return
	}
	if strings.Contains(v.Value, "${") && !d.Sensitive() {
		b.bad.add(v.Origin, name, "%s: ${...} is not replaced by anything here; the environment variable %s sets it", name, EnvName(name))
		return
	}
	if d.Null && v.Value == "" {
		return // as good as not set
	}
	if err := d.Validate(v.Value); err != nil {
		b.bad.add(v.Origin, name, "%v", err)
		return
	}
	if d.Handling == Warned && v.Value != d.Default && v.Origin.Mode == "" {
		b.warn.add(v.Origin, name, "%s has no effect: %s", name, d.Note)
	}
}

// isSet reports whether somebody wrote a value.
func (b *builder) isSet(name string) bool {
	v, ok := b.set[name]
	return ok && v.Value != ""
}

func (b *builder) origin(name string) Origin { return b.set[name].Origin }

// text returns the value that counts: what was written if it is sound, else the default.
func (b *builder) text(name string) string {
	d := brokers.byName[name]
	if v, ok := b.set[name]; ok && (d == nil || (!d.Null || v.Value != "") && d.Validate(v.Value) == nil) {
		if d != nil && d.Sensitive() {
			return v.Value
		}
		return strings.TrimSpace(v.Value) // as it was validated: what is set while brokers run may have blanks around it
	}
	if d == nil {
		return ""
	}
	return d.Default
}

func (b *builder) num(name string) int64 {
	n, _ := strconv.ParseInt(b.text(name), 10, 64)
	return n
}

func (b *builder) double(name string) float64 {
	n, _ := strconv.ParseFloat(b.text(name), 64)
	return n
}

func (b *builder) int(name string) int { return int(b.num(name)) }

func (b *builder) bool(name string) bool {
	v, _ := parseBool(b.text(name))
	return v
}

func (b *builder) ms(name string) time.Duration { return Milliseconds(b.num(name)) }

// Milliseconds turns a setting in milliseconds into a duration, stopping at the longest one there is.
func Milliseconds(n int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Millisecond)
	return time.Duration(min(max(n, -most), most)) * time.Millisecond
}

func (b *builder) fill(m Machine) *BrokerConfig {
	overrides, _ := parseOverrides(b.text("max.connections.per.ip.overrides"))
	c := &BrokerConfig{
		ClusterID: b.text("cluster.id"), Rack: b.text("broker.rack"),

		QueuedMaxRequestBytes: b.num("queued.max.request.bytes"),
		SocketRequestMaxBytes: b.int("socket.request.max.bytes"), SocketSendBufferBytes: b.int("socket.send.buffer.bytes"),
		SocketReceiveBufferBytes: b.int("socket.receive.buffer.bytes"), MaxConnections: b.int("max.connections"),
		MaxConnectionsPerIP: b.int("max.connections.per.ip"), MaxConnectionsPerIPOverrides: overrides,
		MaxConnectionCreationRate: b.int("max.connection.creation.rate"), ConnectionsMaxIdle: max(0, b.ms("connections.max.idle.ms")),
		MaxRequestPartitions: b.int("max.request.partition.size.limit"), AdminListener: b.text("admin.listener"),
		GroupLagMaxPartitions: b.int("metrics.group.lag.max.partitions"),
		BalancePercentage:     b.int("leader.imbalance.per.broker.percentage"), HandOverWait: b.ms("controlled.shutdown.retry.backoff.ms"),
		SessionTimeout: b.ms("broker.session.timeout.ms"), HeartbeatInterval: b.ms("broker.heartbeat.interval.ms"),
		RegistrationTimeout: b.ms("initial.broker.registration.timeout.ms"),

		AutoCreateTopics: b.bool("auto.create.topics.enable"), NumPartitions: int32(b.num("num.partitions")),
		DefaultReplicationFactor: int16(b.num("default.replication.factor")), DeleteTopics: b.bool("delete.topic.enable"),
		FullValidation: b.text("record.validation") == "full", RetentionCheckInterval: b.ms("log.retention.check.interval.ms"),
		ProducerIDExpiration: b.ms("producer.id.expiration.ms"), ProducerExpiryInterval: b.ms("producer.id.expiration.check.interval.ms"), MaxProducersPerPartition: b.int("producer.state.max.producers"),
		VerifyTransactions: b.bool("transaction.partition.verification.enable"),

		ReadFromLeader: strings.HasSuffix(b.text("replica.selector.class"), ".LeaderSelector"),
		ReplicaLagMax:  b.ms("replica.lag.time.max.ms"), ReplicaFetchWait: b.ms("replica.fetch.wait.max.ms"), ReplicaFetchBackoff: b.ms("replica.fetch.backoff.ms"),
		ReplicaFetchMinBytes: b.int("replica.fetch.min.bytes"), ReplicaFetchMaxBytes: b.int("replica.fetch.max.bytes"),
		ReplicaFetchResponseMaxBytes: b.int("replica.fetch.response.max.bytes"),
		LeaderThrottledRate:          b.num("leader.replication.throttled.rate"), FollowerThrottledRate: b.num("follower.replication.throttled.rate"),

		FetchMaxBytes: b.int("fetch.max.bytes"), FetchSessionSlots: b.int("max.incremental.fetch.session.cache.slots"),

		TxnMaxTimeout: b.ms("transaction.max.timeout.ms"), TransactionalIDExpiry: b.ms("transactional.id.expiration.ms"),
		TxnExpiryInterval: b.ms("transaction.remove.expired.transaction.cleanup.interval.ms"),
		AddToTxnBackoff:   b.ms("add.partitions.to.txn.retry.backoff.ms"), AddToTxnMax: b.ms("add.partitions.to.txn.retry.backoff.max.ms"),
		TxnTopicPartitions: int32(b.num("transaction.state.log.num.partitions")), TxnTopicReplication: int16(b.num("transaction.state.log.replication.factor")),
		TxnTopicMinISR: b.int("transaction.state.log.min.isr"), TxnTopicSegmentBytes: b.int("transaction.state.log.segment.bytes"),

		OffsetsTopicPartitions: int32(b.num("offsets.topic.num.partitions")), OffsetsTopicReplicationFactor: int16(b.num("offsets.topic.replication.factor")),
		OffsetsTopicSegmentBytes: b.int("offsets.topic.segment.bytes"), OffsetsTopicCodec: int8(b.num("offsets.topic.compression.codec")),
		OffsetsRetention: Milliseconds(b.num("offsets.retention.minutes") * perMinute), OffsetsRetentionCheckInterval: b.ms("offsets.retention.check.interval.ms"),
		OffsetsCommitTimeout: b.ms("offsets.commit.timeout.ms"), OffsetMetadataMaxBytes: b.int("offset.metadata.max.bytes"),
		GroupMinSessionTimeout: b.ms("group.min.session.timeout.ms"), GroupMaxSessionTimeout: b.ms("group.max.session.timeout.ms"),
		GroupInitialRebalanceDelay: b.ms("group.initial.rebalance.delay.ms"), GroupMaxSize: b.int("group.max.size"),
		GroupProtocols: ParseList(b.text("group.coordinator.rebalance.protocols")), GroupConsumerMaxSize: b.int("group.consumer.max.size"),
		GroupConsumerAssignors: ParseList(b.text("group.consumer.assignors")), GroupConsumerMigrationPolicy: b.text("group.consumer.migration.policy"),

		MemoryMaxBytes: b.num("memory.max.bytes"), WALMaxBytes: b.num("wal.max.bytes"), WALSegmentBytes: b.num("wal.segment.bytes"),
		WALQueueBytes: b.num("wal.queue.bytes"), WALCacheBytes: b.num("wal.cache.bytes"), WALDirectIO: b.bool("wal.direct.io"),

		RemoteStorageURL: b.text("remote.storage.url"), RemoteFlushInterval: b.ms("remote.flush.interval.ms"), RemoteObjectBytes: b.num("remote.object.bytes"),
		RemoteDeleteGrace: b.ms("remote.delete.grace.ms"), RemoteSweepInterval: b.ms("remote.sweep.interval.ms"), RemoteRequestTimeout: b.ms("remote.request.timeout.ms"),
		RemoteCacheMemoryBytes: b.num("remote.cache.memory.bytes"), RemoteCacheDiskBytes: b.num("remote.cache.disk.bytes"), RemoteCacheDir: b.text("remote.cache.dir"),
		RemoteUploads: b.int("remote.log.manager.copier.thread.pool.size"), RemoteReads: b.int("remote.log.reader.threads"),
		RemoteMaxPendingReads:       b.int("remote.log.reader.max.pending.tasks"),
		RemoteCopyMaxBytesPerSecond: b.num("remote.log.manager.copy.max.bytes.per.second"), RemoteFetchMaxBytesPerSecond: b.num("remote.log.manager.fetch.max.bytes.per.second"),
		RemoteFetchMaxWait: b.ms("remote.fetch.max.wait.ms"), RemoteListOffsetsTimeout: b.ms("remote.list.offsets.request.timeout.ms"),

		EtcdEndpoints: ParseList(b.text("etcd.endpoints")), EtcdPrefix: b.text("etcd.prefix"), EtcdUser: b.text("etcd.user"), EtcdPassword: b.text("etcd.password"),
		EtcdPasswordFile: b.text("etcd.password.file"), EtcdTLSCAFile: b.text("etcd.tls.ca.file"), EtcdTLSCertFile: b.text("etcd.tls.cert.file"),
		EtcdTLSKeyFile: b.text("etcd.tls.key.file"), EtcdTLSServerName: b.text("etcd.tls.server.name"),
		EtcdDialTimeout: b.ms("etcd.dial.timeout.ms"), EtcdRequestTimeout: b.ms("etcd.request.timeout.ms"), EtcdCompaction: b.ms("etcd.compaction.interval.ms"),

		LogLevel: b.text("log.level"), LogFormat: b.text("log.format"),
		Cleaner: Cleaner{
			Enable: b.bool("log.cleaner.enable"), Threads: b.int("log.cleaner.threads"), DedupeBytes: b.num("log.cleaner.dedupe.buffer.size"),
			LoadFactor: b.double("log.cleaner.io.buffer.load.factor"), BytesPerSecond: b.double("log.cleaner.io.max.bytes.per.second"),
			Backoff: b.ms("log.cleaner.backoff.ms"), SpoolDir: b.text("log.cleaner.spool.dir"), ObjectBytes: b.num("log.cleaner.object.bytes"),
			JobBytes: b.num("log.cleaner.job.max.bytes"), JobRequests: b.num("log.cleaner.job.max.requests"), SessionTimeout: b.ms("log.cleaner.session.timeout.ms"), ScrubInterval: b.ms("log.cleaner.scrub.interval.ms"),
			ScrubData: b.bool("log.cleaner.scrub.data"),
		},
	}
	c.GroupConsumer, c.GroupConsumerMin, c.GroupConsumerMax = consumerGroups(b.num)
	if b.bool("auto.leader.rebalance.enable") {
		c.BalanceInterval = time.Duration(min(b.num("leader.imbalance.check.interval.seconds"), 1<<31)) * time.Second
	}
	if b.bool("controlled.shutdown.enable") {
		c.HandOverTries = 1 + b.int("controlled.shutdown.max.retries")
	}
	c.Static = map[string]string{}
	for _, name := range b.set.names() {
		if d := brokers.byName[name]; d != nil && (b.set[name].Value != "" || !d.Null) {
			c.Static[name] = b.set[name].Value
		}
	}
	if !b.isSet("wal.segment.bytes") && c.WALMaxBytes > 0 {
		c.WALSegmentBytes = min(c.WALSegmentBytes, c.WALMaxBytes/8>>20<<20)
	}
	c.NodeID = b.nodeID(m)
	c.LogDir = b.text("log.dirs")
	if c.LogDir == "" && !b.isSet("log.dirs") && !b.isSet("log.dir") && !m.NoBroker {
		c.LogDir = b.text("log.dir")
	}
	c.Listeners = b.listenersOf(m.Hostname)
	return c
}

func (b *builder) nodeID(m Machine) int32 {
	// -1 is how Kafka says that broker.id is not set.
	former := b.isSet("broker.id") && b.num("broker.id") >= 0
	switch {
	case b.isSet("node.id"):
		if former && b.num("broker.id") != b.num("node.id") {
			b.bad.add(b.origin("broker.id"), "broker.id", "broker.id=%s and node.id=%s (%s) are the same setting with two values", b.text("broker.id"), b.text("node.id"), b.origin("node.id"))
		}
		return int32(b.num("node.id"))
	case former:
		return int32(b.num("broker.id"))
	case m.NoBroker:
		return -1
	}
	b.bad.add(Origin{}, "node.id", "node.id is not set: give each broker of the cluster a number of its own, in the configuration file, as --set node.id=1 or as %s=1", EnvName("node.id"))
	return -1
}

// contradictions looks at settings that are sound one by one and not together.
func (b *builder) contradictions(c *BrokerConfig, m Machine) {
	bad := func(name, format string, args ...any) {
		b.bad.add(b.origin(name), name, "%s=%s: "+format, append([]any{name, b.text(name)}, args...)...)
	}
	if c.LogDir == "" && !b.isSet("log.dirs") && !b.isSet("log.dir") && !m.NoBroker {
		b.bad.add(Origin{}, "log.dirs", "log.dirs is not set: name the directory of this broker's log, on the disk that acknowledged records are to be safe on")
	}
	for _, name := range m.Required {
		if !b.isSet(name) && name != "node.id" && name != "log.dirs" {
			b.bad.add(Origin{}, name, "%s is not set. %s", name, brokers.byName[name].Doc)
		}
	}
	if c.QueuedMaxRequestBytes > 0 && c.QueuedMaxRequestBytes < int64(c.SocketRequestMaxBytes) {
		bad("queued.max.request.bytes", "it is less than socket.request.max.bytes=%d, so the largest request could never be read", c.SocketRequestMaxBytes)
	}
	if c.QueuedMaxRequestBytes < -1 || c.QueuedMaxRequestBytes == 0 {
		bad("queued.max.request.bytes", "it is -1 or a whole number of bytes above 0")
	}
	if n := b.num("message.max.bytes"); n > int64(c.SocketRequestMaxBytes) {
		b.warn.add(b.origin("message.max.bytes"), "message.max.bytes", "message.max.bytes=%d is more than socket.request.max.bytes=%d: a batch of that size cannot be sent", n, c.SocketRequestMaxBytes)
	}
	if c.MaxConnectionsPerIP == 0 && len(c.MaxConnectionsPerIPOverrides) == 0 {
		bad("max.connections.per.ip", "nobody could connect; 0 goes with max.connections.per.ip.overrides")
	}
	if c.HeartbeatInterval*2 > c.SessionTimeout {
		bad("broker.heartbeat.interval.ms", "two of them must fit into broker.session.timeout.ms=%d, or one lost heartbeat takes the broker out", c.SessionTimeout.Milliseconds())
	}
	if c.GroupMinSessionTimeout > c.GroupMaxSessionTimeout {
		bad("group.min.session.timeout.ms", "it is more than group.max.session.timeout.ms=%d", c.GroupMaxSessionTimeout.Milliseconds())
	}

	if !slices.Contains(c.GroupProtocols, "classic") {
		bad("group.coordinator.rebalance.protocols", "classic cannot be left out")
	}
	for _, p := range []string{"share", "streams"} {
		if slices.Contains(c.GroupProtocols, p) {
			b.warn.add(b.origin("group.coordinator.rebalance.protocols"), "group.coordinator.rebalance.protocols", "%s in group.coordinator.rebalance.protocols has no effect: there are no %s groups yet", p, p)
		}
	}
	if len(c.GroupConsumerAssignors) == 0 {
		bad("group.consumer.assignors", "there must be one")
	}
	for _, x := range []struct {
		what          string
		min, max, now time.Duration
	}{
		{"session.timeout.ms", c.GroupConsumerMin.SessionTimeout, c.GroupConsumerMax.SessionTimeout, c.GroupConsumer.SessionTimeout},
		{"heartbeat.interval.ms", c.GroupConsumerMin.HeartbeatInterval, c.GroupConsumerMax.HeartbeatInterval, c.GroupConsumer.HeartbeatInterval},
	} {
		switch {
		case x.min > x.max:
			bad("group.consumer.min."+x.what, "it is more than group.consumer.max.%s=%d", x.what, x.max.Milliseconds())
		case x.now < x.min || x.now > x.max:
			bad("group.consumer."+x.what, "it is not between group.consumer.min.%s=%d and group.consumer.max.%s=%d", x.what, x.min.Milliseconds(), x.what, x.max.Milliseconds())
		}
	}
	if c.GroupConsumer.HeartbeatInterval >= c.GroupConsumer.SessionTimeout {
		bad("group.consumer.heartbeat.interval.ms", "it is not less than group.consumer.session.timeout.ms=%d", c.GroupConsumer.SessionTimeout.Milliseconds())
	}

	// Retention: zero of a unit means nothing, less than zero means for ever.
	gone := false
	for _, name := range []string{"log.retention.ms", "log.retention.minutes", "log.retention.hours"} {
		if v := b.text(name); v != "" && b.num(name) == 0 {
			gone = true
			bad(name, "records would be gone at once: it is -1 (for ever) or at least 1")
		}
	}
	r := Resolver{Static: c.Static}
	if err := r.ValidateTopic(nil); err != nil && !gone {
		name := ""
		if v, ok := err.(*ConflictError); ok {
			name = r.brokerName(v.Name)
		}
		b.bad.add(b.origin(name), name, "%v", err)
	}
	if minISR := b.num("min.insync.replicas"); minISR > int64(c.DefaultReplicationFactor) {
		b.warn.add(b.origin("min.insync.replicas"), "min.insync.replicas", "min.insync.replicas=%d is more than default.replication.factor=%d: topics created without a replication factor acknowledge with fewer copies",
			minISR, c.DefaultReplicationFactor)
	}
	if m.Brokers > 0 && int(c.DefaultReplicationFactor) > m.Brokers {
		bad("default.replication.factor", "the cluster has %d broker(s)", m.Brokers)
	}

	// The controller places replicas and leaders, and knows no broker's file.
	for _, name := range []string{"cordoned.log.dirs", "leadership.enable"} {
		if b.isSet(name) {
			bad(name, "it is set for a broker that is known to the cluster: with varve broker drain, or varve config alter broker")
		}
	}

	// What etcd needs comes in pairs.
	if (c.EtcdTLSCertFile == "") != (c.EtcdTLSKeyFile == "") {
		name := "etcd.tls.cert.file"
		if c.EtcdTLSCertFile == "" {
			name = "etcd.tls.key.file"
		}
		bad(name, "etcd.tls.cert.file and etcd.tls.key.file go together")
	}
	if c.EtcdPassword != "" && c.EtcdPasswordFile != "" {
		b.bad.add(b.origin("etcd.password.file"), "etcd.password.file", "etcd.password and etcd.password.file are both set: one of them decides, take the other out")
	}
	if (c.EtcdUser == "") != (c.EtcdPassword == "" && c.EtcdPasswordFile == "") {
		name := "etcd.user"
		for _, n := range []string{"etcd.password", "etcd.password.file"} {
			if !b.isSet("etcd.user") && b.isSet(n) {
				name = n
			}
		}
		b.bad.add(b.origin(name), name, "etcd.user and a password (etcd.password.file or etcd.password) go together")
	}
	tls, plain := 0, 0
	for _, e := range c.EtcdEndpoints {
		if strings.HasPrefix(e, "https://") {
			tls++
		} else {
			plain++
		}
	}
	if tls > 0 && plain > 0 {
		bad("etcd.endpoints", "some are http:// and some https://")
	}
	if tls == 0 && plain > 0 {
		for _, name := range []string{"etcd.tls.ca.file", "etcd.tls.cert.file", "etcd.tls.server.name"} {
			if b.isSet(name) {
				bad(name, "the endpoints are http://, so nothing would be encrypted: write https:// in etcd.endpoints")
				break
			}
		}
	}

	if c.WALMaxBytes > 0 && c.WALMaxBytes < 4*c.WALSegmentBytes {
		bad("wal.max.bytes", "it must hold at least four files of wal.segment.bytes=%d: two are kept for records that must always fit", c.WALSegmentBytes)
	}
	b.memory(c, m, bad)
}

// memory checks that the parts fit the whole.
func (b *builder) memory(c *BrokerConfig, m Machine, bad func(name, format string, args ...any)) {
	limit := c.MemoryMaxBytes
	if limit == 0 {
		limit = m.MemoryBytes / 10 * 6
	}
	if limit == 0 {
		return
	}
	if m.MemoryBytes > 0 && c.MemoryMaxBytes > m.MemoryBytes {
		bad("memory.max.bytes", "the machine or container has %d bytes", m.MemoryBytes)
	}
	sum := int64(0)
	var parts []string
	for _, name := range []string{"queued.max.request.bytes", "wal.queue.bytes", "wal.cache.bytes", "remote.cache.memory.bytes"} {
		if n := b.num(name); n > 0 {
			sum = addBounded(sum, n)
			parts = append(parts, fmt.Sprintf("%s=%d", name, n))
		}
	}
	if sum > limit {
		name := "memory.max.bytes"
		if !b.isSet(name) {
			name = parts[0][:strings.IndexByte(parts[0], '=')]
		}
		b.bad.add(b.origin(name), name, "%s are together more than the %d bytes of memory.max.bytes", strings.Join(parts, ", "), limit)
	}
	switch {
	case int64(c.SocketRequestMaxBytes) <= limit:
	case b.isSet("socket.request.max.bytes"):
		bad("socket.request.max.bytes", "one request could be more than the %d bytes of memory.max.bytes", limit)
	default:
		c.SocketRequestMaxBytes = int(limit / 2)
		b.warn.add(b.origin("memory.max.bytes"), "socket.request.max.bytes", "socket.request.max.bytes is taken as %d, half of the %d bytes of memory", c.SocketRequestMaxBytes, limit)
	}
}

func addBounded(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// InterBroker returns the listener that brokers use among themselves.
func (c *BrokerConfig) InterBroker() (Listener, bool) {
	i := slices.IndexFunc(c.Listeners, func(l Listener) bool { return l.InterBroker })
	if i < 0 {
		return Listener{}, false
	}
	return c.Listeners[i], true
}
