package config

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// Reasons that several settings share.
const (
	noteThreads   = "goroutines are scheduled by the runtime; there is no pool of a fixed size to set"
	noteNoTLS     = "listeners with TLS do not exist yet"
	noteNoSASL    = "listeners with SASL do not exist yet"
	noteNoQuota   = "quotas do not exist yet"
	noteNoACL     = "there is no authorizer yet, and everyone who can connect may do everything: keep listeners on a private network"
	noteNoPlugin  = "there is no JVM here to load a class"
	noteManifest  = "the metadata of objects is kept in etcd and in the bucket, not in a topic"
	noteOtherTier = "object storage is built in and needs no plugin: set remote.storage.url"
	noteEtcd      = "etcd keeps the cluster's metadata here: that of etcd.endpoints"
)

var securityProtocols = []string{"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"}

// brokerDefs are Kafka's settings of a broker.
func brokerDefs() []*Def {
	const dflt = null
	var d []*Def
	add := func(more ...*Def) { d = append(d, more...) }

	// Listeners and network.
	add(
		texts("listeners", "PLAINTEXT://:9092", "Where the broker listens: name://host:port, separated by commas; an empty host means every interface.", checked(
			"a comma-separated list of name://host:port", checkListeners)),
		texts("advertised.listeners", dflt, "The addresses that clients are told to connect to, as name://host:port; without it, those of listeners.", checked(
			"a comma-separated list of name://host:port", checkListeners)),
		text("listener.security.protocol.map", "SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT",
			"The security protocol of each listener name, as name:protocol, separated by commas.", checked(
				"a comma-separated list of name:protocol", func(v string) error { _, err := parseProtocolMap(v); return err })),
		text("inter.broker.listener.name", dflt, "The listener that brokers use among themselves."),
		choice("security.inter.broker.protocol", "PLAINTEXT", "The security protocol that brokers use among themselves.", securityProtocols),
		integer("num.network.threads", "3", "Threads that read requests and write responses.", 1, anyHigh, clusterWide, noted(noteThreads)),
		integer("num.io.threads", "8", "Threads that process requests.", 1, anyHigh, clusterWide, noted(noteThreads)),
		integer("background.threads", "10", "Threads for background work.", 1, anyHigh, clusterWide, noted(noteThreads)),
		integer("queued.max.requests", "500", "How many requests may wait for a thread.", 1, anyHigh,
			warned("requests are handled as they are read; queued.max.request.bytes bounds what they hold together")),
		long("queued.max.request.bytes", "-1", "How many bytes of requests may be in flight before no more are read; -1: a share of memory.max.bytes.", anyLow, anyHigh),
		integer("socket.request.max.bytes", "104857600", "The largest request.", 1, anyHigh),
		integer("socket.send.buffer.bytes", "102400", "The socket's send buffer; -1: the system's default.", -1, anyHigh),
		integer("socket.receive.buffer.bytes", "102400", "The socket's receive buffer; -1: the system's default.", -1, anyHigh),
		integer("socket.listen.backlog.size", "50", "How many connections may wait to be accepted.", 1, anyHigh, noted("the system's limit is used")),
		integer("max.connections", "2147483647", "How many connections the broker has at most.", 0, anyHigh, clusterWide),
		integer("max.connections.per.ip", "2147483647", "How many connections one address has at most.", 0, anyHigh, clusterWide),
		text("max.connections.per.ip.overrides", "", "Other limits for some IP addresses, as address:count, separated by commas.", clusterWide, checked(
			"a comma-separated list of address:count", func(v string) error { _, err := parseOverrides(v); return err })),
		integer("max.connection.creation.rate", "2147483647", "How many connections a second each listener accepts at most; 0 counts as 1, as in Kafka.", 0, anyHigh, clusterWide),
		long("connections.max.idle.ms", "600000", "After how long without a request a connection is closed; 0 or less: never.", anyLow, anyHigh),
		long("connections.max.reauth.ms", "0", "How long an authenticated session lasts.", anyLow, anyHigh, warned(noteNoSASL)),
		integer("max.request.partition.size.limit", "2000", "How many partitions one DescribeTopicPartitions response lists at most.", 1, anyHigh),
		integer("request.timeout.ms", "30000", "How long a request to another broker may take.", anyLow, anyHigh, noted("10 s beyond what the request itself waits for")),
	)

	// Identity.
	add(
		integer("node.id", dflt, "The number of this broker in the cluster.", 0, anyHigh),
		integer("broker.id", "-1", "The former name of node.id.", -1, anyHigh),
		text("broker.rack", dflt, "The rack or zone of this broker, for placement and for consumers that name theirs."),
		text("replica.selector.class", dflt, "How a replica is chosen for a consumer that names its rack: nothing or RackAwareReplicaSelector sends it to an in-sync replica in that rack, LeaderSelector to the leader.", checked(
			"org.apache.kafka.common.replica.RackAwareReplicaSelector, org.apache.kafka.common.replica.LeaderSelector or nothing", func(v string) error {
				if v != "" && !strings.HasSuffix(v, ".RackAwareReplicaSelector") && !strings.HasSuffix(v, ".LeaderSelector") {
					return errors.New(noteNoPlugin)
				}
				return nil
			})),
		text("cluster.id", dflt, "The id of the cluster; a broker that finds another one in etcd or on its disk does not start."),
	)

	// Defaults of topics.
	add(
		boolean("auto.create.topics.enable", "true", "Whether asking for a topic that does not exist creates it."),
		integer("num.partitions", "1", "The partitions of a topic that is created without saying how many.", 1, anyHigh),
		integer("default.replication.factor", "1", "The replicas of a topic that is created without saying how many.", 1, 32767),
		boolean("delete.topic.enable", "true", "Whether topics can be deleted."),
		class("create.topic.policy.class.name", dflt, "A class that may refuse topics.", refused(noteNoPlugin)),
		class("alter.config.policy.class.name", dflt, "A class that may refuse settings.", refused(noteNoPlugin)),
	)

	// Log and retention.
	add(
		texts("log.dirs", dflt, "The directory of this broker's log.", checked("one directory", oneDirectory)),
		texts("log.dir", dflt, "The directory of this broker's log, if log.dirs is not set.", checked("one directory", oneDirectory)),
		integer("log.retention.hours", "168", "The default of retention.ms in hours; negative: for ever.", anyLow, anyHigh),
		integer("log.retention.minutes", dflt, "The default of retention.ms in minutes; negative: for ever.", anyLow, anyHigh),
		integer("log.roll.hours", "168", "The default of segment.ms in hours.", 1, anyHigh),
		integer("log.roll.jitter.hours", "0", "The default of segment.jitter.ms in hours.", 0, anyHigh),
		long("log.retention.check.interval.ms", "300000", "How often retention looks for what may go.", 1, anyHigh),
		long("log.flush.scheduler.interval.ms", maxLong, "How often the log looks for what to sync.", anyLow, anyHigh, noted(noteAlwaysSynced)),
		integer("log.flush.offset.checkpoint.interval.ms", "60000", "How often recovery points are written.", 0, anyHigh, noted("the log carries them")),
		integer("log.flush.start.offset.checkpoint.interval.ms", "60000", "How often start offsets are written.", 0, anyHigh, noted("the log carries them")),
		integer("num.recovery.threads.per.data.dir", "2", "Threads that read the log at start.", 1, anyHigh, clusterWide, warned("one pass over one log needs no pool")),
		long("replica.high.watermark.checkpoint.interval.ms", "5000", "How often high watermarks are written.", anyLow, anyHigh, noted("the log carries them")),
	)

	// Compaction.
	add(
		boolean("log.cleaner.enable", "true", "Whether varve dev runs a compaction worker inside; varve compactor is one of its own."),
		integer("log.cleaner.threads", "1", "How many partitions the compaction worker works on at a time.", 0, anyHigh, clusterWide),
		long("log.cleaner.dedupe.buffer.size", "134217728", "The memory of the compaction worker's tables of keys, of all its threads together; a key takes 24 bytes.", anyLow, anyHigh, clusterWide),
		integer("log.cleaner.io.buffer.size", "524288", "The compaction worker's read and write buffers.", 0, anyHigh, clusterWide,
			noted("objects are read by ranges of 4 MiB, three at a time for each thread")),
		double("log.cleaner.io.buffer.load.factor", "0.9", "How full the table of keys may be.", 0, 1, clusterWide),
		double("log.cleaner.io.max.bytes.per.second", "1.7976931348623157E308", "How much the compaction worker reads and writes a second at most.",
			0, 1.7976931348623157e308, clusterWide),
		long("log.cleaner.backoff.ms", "15000", "How long the compaction worker rests when there is nothing to do, and how often brokers look what it has done.", 0, anyHigh, clusterWide),
	)

	// Replication.
	add(
		long("replica.lag.time.max.ms", "30000", "After how long behind the leader a replica leaves the in-sync set.", anyLow, anyHigh),
		integer("num.replica.fetchers", "1", "How many connections a broker fetches through from each other broker.", 1, anyHigh, clusterWide,
			warned("one connection carries all partitions from each other broker")),
		integer("replica.fetch.max.bytes", "1048576", "How much a replica fetches of one partition at a time.", 0, anyHigh),
		integer("replica.fetch.min.bytes", "1", "How much a replica waits for.", anyLow, anyHigh),
		integer("replica.fetch.wait.max.ms", "500", "How long a replica waits for it.", anyLow, anyHigh),
		integer("replica.fetch.response.max.bytes", "10485760", "How much a replica fetches at a time.", 0, anyHigh),
		integer("replica.fetch.backoff.ms", "1000", "How long a replica rests after an error.", 0, anyHigh),
		integer("replica.socket.timeout.ms", "30000", "How long a replica's request may take.", anyLow, anyHigh, noted("10 s beyond replica.fetch.wait.max.ms")),
		integer("replica.socket.receive.buffer.bytes", "65536", "A replica's socket buffer.", anyLow, anyHigh, noted("the system's default is used")),
		boolean("auto.leader.rebalance.enable", "true", "Whether leadership goes back to the preferred replicas by itself."),
		long("leader.imbalance.check.interval.seconds", "300", "How often it is checked whether it should.", 1, anyHigh),
		integer("leader.imbalance.per.broker.percentage", "10", "How much imbalance is left alone.", 0, anyHigh),
		boolean("follower.fetch.last.tiered.offset.enable", "true", "Whether a new replica begins at the end of what is in object storage.",
			warned("a new replica always begins there, and never copies what is in object storage")),
		boolean("controlled.shutdown.enable", "true", "Whether a broker that stops hands its leaderships over first."),
		integer("controlled.shutdown.max.retries", "3", "How often it tries again, while other replicas are not in sync.", 0, anyHigh),
		long("controlled.shutdown.retry.backoff.ms", "5000", "How long it waits for them each time.", 1, anyHigh),
		list("cordoned.log.dirs", "", "The log directories that are given no new replicas: * or none, for a broker has one directory. What `varve broker drain` sets.", nil, perBroker,
			checked("* or nothing", func(v string) error {
				if v != "" && v != "*" {
					return errors.New("it is neither")
				}
				return nil
			})),
		integer("broker.session.timeout.ms", "2000", "After how long without a heartbeat a broker is taken for dead.", 100, anyHigh),
		integer("broker.heartbeat.interval.ms", "300", "How often a broker sends heartbeats.", 10, anyHigh),
		integer("initial.broker.registration.timeout.ms", "60000", "How long a broker tries to register when it starts.", 1, anyHigh),
	)

	// Fetch.
	add(
		integer("fetch.max.bytes", "57671680", "The largest response to a fetch.", 1024, anyHigh),
		integer("max.incremental.fetch.session.cache.slots", "1000", "How many fetch sessions are kept.", 0, anyHigh),
		integer("fetch.purgatory.purge.interval.requests", "1000", "How often finished waiters are purged.", anyLow, anyHigh, noted("a waiter is gone when it is done")),
		integer("producer.purgatory.purge.interval.requests", "1000", "How often finished waiters are purged.", anyLow, anyHigh, noted("a waiter is gone when it is done")),
		integer("delete.records.purgatory.purge.interval.requests", "1", "How often finished waiters are purged.", anyLow, anyHigh, noted("a waiter is gone when it is done")),
	)

	// Groups and offsets.
	add(
		integer("offsets.topic.num.partitions", "50", "The partitions of the topic of group state.", 1, anyHigh),
		short("offsets.topic.replication.factor", "3", "The replicas of the topic of group state; no more than there are brokers.", 1, anyHigh),
		integer("offsets.topic.segment.bytes", "104857600", "segment.bytes of the topic of group state.", 1, anyHigh),
		integer("offsets.topic.compression.codec", "0", "The codec of group state: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.", 0, 4),
		integer("offsets.load.buffer.size", "5242880", "How much is read at a time when a coordinator loads.", 1, anyHigh, noted("the log hands out runs of its own size")),
		integer("offsets.retention.minutes", "10080", "How long the offsets of an empty group are kept.", 1, anyHigh),
		long("offsets.retention.check.interval.ms", "600000", "How often expired offsets are looked for.", 1, anyHigh),
		integer("offsets.commit.timeout.ms", "5000", "How long a commit may wait for its replicas.", 1, anyHigh),
		short("offsets.commit.required.acks", "-1", "The acknowledgements that a commit needs.", anyLow, anyHigh, refused("a commit waits for all in-sync replicas")),
		integer("offset.metadata.max.bytes", "4096", "The longest metadata of a committed offset.", 0, anyHigh),
		integer("group.min.session.timeout.ms", "6000", "The shortest session timeout of a group member.", anyLow, anyHigh),
		integer("group.max.session.timeout.ms", "1800000", "The longest session timeout of a group member.", anyLow, anyHigh),
		integer("group.initial.rebalance.delay.ms", "3000", "How long a new group waits for more members before its first rebalance.", anyLow, anyHigh),
		integer("group.max.size", "2147483647", "How many members a group has at most.", 1, anyHigh),
		list("group.coordinator.rebalance.protocols", "classic,consumer", "The group protocols that are offered.", []string{"classic", "consumer", "share", "streams"}),
		integer("group.coordinator.threads", "4", "Threads of the group coordinator.", 1, anyHigh, noted(noteThreads)),
		integer("group.coordinator.append.linger.ms", "5", "How long the group coordinator gathers writes.", -1, anyHigh, noted("writes are gathered while the disk is busy, and never wait for more")),
		integer("group.consumer.session.timeout.ms", "45000", "The session timeout of groups of the consumer protocol.", 1, anyHigh),
		integer("group.consumer.heartbeat.interval.ms", "5000", "The heartbeat interval of groups of the consumer protocol.", 1, anyHigh),
		integer("group.consumer.min.session.timeout.ms", "45000", "The shortest such session timeout.", 1, anyHigh),
		integer("group.consumer.max.session.timeout.ms", "60000", "The longest such session timeout.", 1, anyHigh),
		integer("group.consumer.min.heartbeat.interval.ms", "5000", "The shortest such heartbeat interval.", 1, anyHigh),
		integer("group.consumer.max.heartbeat.interval.ms", "15000", "The longest such heartbeat interval.", 1, anyHigh),
		integer("group.consumer.max.size", "2147483647", "How many members such a group has at most.", 1, anyHigh),
		list("group.consumer.assignors", "uniform,range", "The assignors of such groups, the first being the default.", []string{"uniform", "range"}),
		integer("group.consumer.assignment.interval.ms", "0", "The shortest time between two assignments of such a group. 0 assigns as soon as something changes.", 0, anyHigh),
		integer("group.consumer.regex.refresh.interval.ms", "600000", "How often it is looked again which topics the expressions of such a group match.", 10000, anyHigh, noted("they are matched again when topics change, and nothing but the topics' names decides what they match")),
		choice("group.consumer.migration.policy", "bidirectional", "Which way groups may change their protocol.", []string{"bidirectional", "upgrade", "downgrade", "disabled"}),
	)

	// Transactions and idempotence.
	add(
		integer("transaction.max.timeout.ms", "900000", "The longest transaction timeout that a producer may ask for.", 1, anyHigh),
		integer("transactional.id.expiration.ms", "604800000", "How long an unused transactional id is kept.", 1, anyHigh),
		integer("transaction.state.log.num.partitions", "50", "The partitions of the topic of transaction state.", 1, anyHigh),
		short("transaction.state.log.replication.factor", "3", "The replicas of the topic of transaction state.", 1, anyHigh),
		integer("transaction.state.log.min.isr", "2", "min.insync.replicas of the topic of transaction state.", 1, anyHigh),
		integer("transaction.state.log.segment.bytes", "104857600", "segment.bytes of the topic of transaction state.", 1, anyHigh),
		integer("transaction.state.log.load.buffer.size", "5242880", "How much is read at a time when a coordinator loads.", 1, anyHigh, noted("the log hands out runs of its own size")),
		integer("transaction.abort.timed.out.transaction.cleanup.interval.ms", "10000", "How often transactions that timed out are looked for.", 1, anyHigh, noted("a transaction is aborted when its time is over, not at intervals")),
		integer("transaction.remove.expired.transaction.cleanup.interval.ms", "3600000", "How often expired transactional ids are looked for.", 1, anyHigh),
		integer("add.partitions.to.txn.retry.backoff.ms", "20", "After how long a partition that begins a transaction asks again, when the coordinator says that the last one is not complete.", 1, anyHigh),
		integer("add.partitions.to.txn.retry.backoff.max.ms", "100", "How long a producer that begins its next transaction, or takes its id over, waits for the last one to be complete before it is told CONCURRENT_TRANSACTIONS: in the coordinator (15 s at most), and in the partition that asks it again.", 0, anyHigh),
		boolean("transaction.partition.verification.enable", "true", "Whether a transactional write is checked with its coordinator. Produce 12 and later add their partitions there whatever this says.", clusterWide),
		boolean("transaction.two.phase.commit.enable", "false", "Whether producers may take part in a two-phase commit.", warned("two-phase commit does not exist yet: a producer that asks for it is refused")),
		integer("producer.id.expiration.ms", "86400000", "How long an idle producer is protected against duplicates, at least.", 1, anyHigh, clusterWide),
		integer("producer.id.expiration.check.interval.ms", "600000", "How often producers that are to be forgotten are looked for.", 1, anyHigh),
	)

	// Object storage.
	add(
		boolean("remote.log.storage.system.enable", "true", "Whether there is object storage. There always is.",
			checked("true", func(v string) error {
				if !strings.EqualFold(v, "true") {
					return errors.New("object storage is the long-term store and cannot be switched off; for a trial, remote.storage.url=file:///some/directory needs no service")
				}
				return nil
			})),
		long("remote.log.manager.task.interval.ms", "30000", "How often each partition is looked at for what to upload.", 1, anyHigh,
			warned("remote.flush.interval.ms decides when a partition is looked at")),
		integer("remote.log.manager.copier.thread.pool.size", "10", "How many uploads run at a time.", 1, anyHigh, clusterWide),
		integer("remote.log.manager.expiration.thread.pool.size", "10", "How many deletions run at a time.", 1, anyHigh, clusterWide, warned("objects are deleted in bulk requests, one after the other")),
		integer("remote.log.manager.follower.thread.pool.size", "2", "Threads that follow the leader's uploads.", 1, anyHigh, clusterWide, warned("followers learn of them with what they fetch")),
		integer("remote.log.manager.thread.pool.size", "2", "Threads of the former scheduler.", 1, anyHigh, noted(noteThreads)),
		integer("remote.log.reader.threads", "10", "How many reads from object storage run at a time.", 1, anyHigh, clusterWide),
		integer("remote.log.reader.max.pending.tasks", "100", "How many reads may wait; more are answered empty and asked for again.", 1, anyHigh),
		long("remote.log.manager.copy.max.bytes.per.second", maxLong, "How much is uploaded a second at most.", 1, anyHigh, clusterWide),
		long("remote.log.manager.fetch.max.bytes.per.second", maxLong, "How much is read from object storage a second at most.", 1, anyHigh, clusterWide),
		integer("remote.log.manager.copy.quota.window.num", "11", "The samples over which the upload rate is measured.", 1, anyHigh, noted("the rate is bounded as it goes, without windows")),
		integer("remote.log.manager.copy.quota.window.size.seconds", "1", "The length of a sample.", 1, anyHigh, noted("the rate is bounded as it goes, without windows")),
		integer("remote.log.manager.fetch.quota.window.num", "11", "The samples over which the read rate is measured.", 1, anyHigh, noted("the rate is bounded as it goes, without windows")),
		integer("remote.log.manager.fetch.quota.window.size.seconds", "1", "The length of a sample.", 1, anyHigh, noted("the rate is bounded as it goes, without windows")),
		long("remote.log.index.file.cache.total.size.bytes", "1073741824", "The cache of indexes of what is in object storage.", 1, anyHigh, clusterWide,
			warned("footers share the cache that remote.cache.memory.bytes bounds")),
		integer("remote.fetch.max.wait.ms", "500", "How long a fetch waits for object storage before it is answered without; the read goes on and is there for the next fetch.", 1, anyHigh, clusterWide),
		long("remote.list.offsets.request.timeout.ms", "30000", "How long a lookup by time may take in object storage.", 1, anyHigh, clusterWide),
		text("remote.log.storage.manager.class.name", dflt, "The plugin for an object store.", warned(noteOtherTier)),
		text("remote.log.storage.manager.class.path", dflt, "Where the plugin lies.", warned(noteOtherTier)),
		text("remote.log.storage.manager.impl.prefix", "rsm.config.", "The prefix of the plugin's settings.", warned(noteOtherTier)),
		text("remote.log.metadata.manager.class.name", "org.apache.kafka.server.log.remote.metadata.storage.TopicBasedRemoteLogMetadataManager", "The plugin for objects' metadata.", warned(noteManifest)),
		text("remote.log.metadata.manager.class.path", dflt, "Where the plugin lies.", warned(noteManifest)),
		text("remote.log.metadata.manager.impl.prefix", "rlmm.config.", "The prefix of the plugin's settings.", warned(noteManifest)),
		text("remote.log.metadata.manager.listener.name", dflt, "The listener that the plugin connects to.", warned(noteManifest)),
		integer("remote.log.metadata.custom.metadata.max.bytes", "128", "The longest metadata of a plugin's own.", 0, anyHigh, warned(noteManifest)),
		integer("remote.log.metadata.topic.num.partitions", "50", "The partitions of the topic of objects' metadata.", 1, anyHigh, warned(noteManifest)),
		short("remote.log.metadata.topic.replication.factor", "3", "The replicas of that topic.", 1, anyHigh, warned(noteManifest)),
		integer("remote.log.metadata.topic.min.isr", "2", "min.insync.replicas of that topic.", 1, anyHigh, warned(noteManifest)),
		long("remote.log.metadata.topic.retention.ms", "-1", "retention.ms of that topic.", -1, anyHigh, warned(noteManifest)),
	)

	// Security.
	add(
		list("sasl.enabled.mechanisms", "GSSAPI", "The SASL mechanisms that are offered.", nil, perBroker, warned(noteNoSASL)),
		choice("ssl.client.auth", "none", "Whether clients must have a certificate.", []string{"required", "requested", "none"}, perBroker, warned(noteNoTLS)),
		text("ssl.principal.mapping.rules", "DEFAULT", "How a certificate's name becomes a principal.", warned(noteNoTLS)),
		text("ssl.keystore.location", dflt, "The file of the key and its certificates.", perBroker, warned(noteNoTLS)),
		text("ssl.keystore.type", "PEM", "The format of that file.", perBroker, warned(noteNoTLS)),
		password("ssl.keystore.password", "The password of that file.", perBroker, warned(noteNoTLS)),
		password("ssl.keystore.key", "The private key itself, as PEM.", perBroker, warned(noteNoTLS)),
		password("ssl.keystore.certificate.chain", "The certificates themselves, as PEM.", perBroker, warned(noteNoTLS)),
		password("ssl.key.password", "The password of the private key.", perBroker, warned(noteNoTLS)),
		text("ssl.truststore.location", dflt, "The file of the trusted certificates.", perBroker, warned(noteNoTLS)),
		text("ssl.truststore.type", "PEM", "The format of that file.", perBroker, warned(noteNoTLS)),
		password("ssl.truststore.password", "The password of that file.", perBroker, warned(noteNoTLS)),
		password("ssl.truststore.certificates", "The trusted certificates themselves, as PEM.", perBroker, warned(noteNoTLS)),
		text("sasl.oauthbearer.jwks.endpoint.url", dflt, "Where the keys that sign tokens are published.", warned(noteNoSASL)),
		list("sasl.oauthbearer.expected.audience", dflt, "The audiences that a token may be for.", nil, warned(noteNoSASL)),
		text("sasl.oauthbearer.expected.issuer", dflt, "The issuer that a token must have.", warned(noteNoSASL)),
		integer("sasl.server.max.receive.size", "524288", "The largest SASL message.", anyLow, anyHigh, warned(noteNoSASL)),
		text("authorizer.class.name", "", "The authorizer.", refused(noteNoACL)),
		text("super.users", "", "The principals that may do everything.", warned(noteNoACL)),
		boolean("allow.everyone.if.no.acl.found", "true", "Whether a resource without ACLs is open to everyone.", checked("true", func(v string) error {
			if !strings.EqualFold(v, "true") {
				return errors.New(noteNoACL)
			}
			return nil
		})),
	)

	// Quotas.
	add(
		integer("quota.window.num", "11", "The samples over which a client's rate is measured.", 1, anyHigh, warned(noteNoQuota)),
		integer("quota.window.size.seconds", "1", "The length of a sample.", 1, anyHigh, warned(noteNoQuota)),
		long("leader.replication.throttled.rate", maxLong, "How much a leader sends a second to throttled replicas at most.", 0, anyHigh, clusterWide),
		long("follower.replication.throttled.rate", maxLong, "How much a throttled replica fetches a second at most.", 0, anyHigh, clusterWide),
	)

	// What gives topics' settings their defaults has their type, range and default, and can be changed for the
	// whole cluster at any time.
	have := map[string]bool{}
	for _, x := range d {
		have[x.Name] = true
	}
	for _, t := range topics.sorted {
		for i, s := range t.Synonyms {
			if have[s.Name] {
				continue
			}
			have[s.Name] = true
			b := *t
			b.Name, b.Scope, b.Update, b.Synonyms = s.Name, ScopeBroker, ClusterWide, nil
			b.Doc = "The default of " + t.Name + ". " + t.Doc
			if len(t.Synonyms) > 1 && i == 0 {
				// Unset, it leaves the word to its coarser brothers.
				b.Default, b.Null = "", true
			}
			d = append(d, &b)
		}
	}
	byName := map[string]*Def{}
	for _, x := range d {
		x.Scope = ScopeBroker
		byName[x.Name] = x
	}
	for _, t := range topics.sorted {
		for _, s := range t.Synonyms {
			if len(t.Synonyms) > 1 {
				byName[s.Name].Synonyms = others(t.Synonyms, s.Name)
			}
		}
	}
	byName["node.id"].Synonyms = []Unit{{"broker.id", 1}}
	byName["log.dirs"].Synonyms = []Unit{{"log.dir", 1}}
	return d
}

func others(list []Unit, name string) []Unit {
	var out []Unit
	for _, u := range list {
		if u.Name != name {
			out = append(out, u)
		}
	}
	return out
}

func checkListeners(v string) error {
	if v == "" {
		return nil // of advertised.listeners; Build asks for at least one listener
	}
	for _, it := range ParseList(v) {
		if _, err := parseEndpoint(it); err != nil {
			return err
		}
	}
	return nil
}

func parseProtocolMap(v string) (map[string]string, error) {
	m := map[string]string{}
	for _, it := range ParseList(v) {
		name, protocol, ok := strings.Cut(it, ":")
		name, protocol = strings.ToUpper(strings.TrimSpace(name)), strings.ToUpper(strings.TrimSpace(protocol))
		switch {
		case !ok || name == "":
			return nil, errors.New(quote(it) + " is not name:protocol")
		case protocol != "PLAINTEXT" && protocol != "SSL" && protocol != "SASL_PLAINTEXT" && protocol != "SASL_SSL":
			return nil, errors.New(quote(protocol) + " is not one of " + strings.Join(securityProtocols, ", "))
		case m[name] != "":
			return nil, errors.New(name + " is there twice")
		}
		m[name] = protocol
	}
	return m, nil
}

func parseOverrides(v string) (map[string]int, error) {
	m := map[string]int{}
	for _, it := range ParseList(v) {
		i := strings.LastIndexByte(it, ':')
		if i <= 0 {
			return nil, errors.New(quote(it) + " is not address:count")
		}
		host := strings.Trim(strings.TrimSpace(it[:i]), "[]")
		n, err := strconv.ParseInt(strings.TrimSpace(it[i+1:]), 10, 32)
		if err != nil || n < 0 || host == "" {
			return nil, errors.New(quote(it) + " is not address:count")
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, errors.New(quote(host) + " is no IP address; names are not looked up")
		}
		m[ip.Unmap().String()] = int(n)
	}
	return m, nil
}

func oneDirectory(v string) error {
	if len(ParseList(v)) > 1 {
		return errors.New("a broker writes one log on one disk: name one directory, or run a broker per disk")
	}
	return nil
}
