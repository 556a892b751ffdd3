package config

import "strings"

// foreign are names that Kafka or its relatives know and that mean nothing here, with the reason. They are
// accepted, for people bring the file they have, and warned about by name.
var foreign = func() map[string]string {
	m := map[string]string{}
	put := func(reason, names string) {
		for _, n := range strings.Fields(names) {
			m[n] = reason
		}
	}
	put(noteEtcd, `
		process.roles controller.listener.names controller.quorum.voters controller.quorum.bootstrap.servers
		controller.quorum.election.timeout.ms controller.quorum.election.backoff.max.ms controller.quorum.fetch.timeout.ms
		controller.quorum.append.linger.ms controller.quorum.request.timeout.ms controller.quorum.retry.backoff.ms
		controller.quorum.auto.join.enable controller.quorum.fetch.snapshot.max.bytes controller.quorum.fetch.max.bytes
		controller.socket.timeout.ms control.plane.listener.name early.start.listeners
		metadata.log.dir metadata.log.segment.bytes metadata.log.segment.ms metadata.log.segment.min.bytes
		metadata.log.max.record.bytes.between.snapshots metadata.log.max.snapshot.interval.ms metadata.max.retention.bytes
		metadata.max.retention.ms metadata.max.idle.interval.ms metadata.version unstable.feature.versions.enable
		unstable.api.versions.enable server.max.startup.time.ms sasl.mechanism.controller.protocol
		eligible.leader.replicas.enable controller.performance.sample.period.ms controller.performance.always.log.threshold.ms
		zookeeper.connect zookeeper.connection.timeout.ms zookeeper.session.timeout.ms zookeeper.set.acl
		zookeeper.max.in.flight.requests zookeeper.metadata.migration.enable zookeeper.metadata.migration.min.batch.size
		zookeeper.clientCnxnSocket zookeeper.sync.time.ms zookeeper.ssl.client.enable zookeeper.ssl.keystore.location
		zookeeper.ssl.keystore.password zookeeper.ssl.keystore.type zookeeper.ssl.truststore.location
		zookeeper.ssl.truststore.password zookeeper.ssl.truststore.type zookeeper.ssl.protocol zookeeper.ssl.enabled.protocols
		zookeeper.ssl.cipher.suites zookeeper.ssl.endpoint.identification.algorithm zookeeper.ssl.crl.enable
		zookeeper.ssl.ocsp.enable broker.id.generation.enable reserved.broker.max.id`)
	put("it was removed in Kafka 4.0: batches are stored in format 2 and not converted", `
		log.message.format.version log.message.downconversion.enable inter.broker.protocol.version`)
	put("it was removed in Kafka 4.0: set log.message.timestamp.before.max.ms and log.message.timestamp.after.max.ms", `
		log.message.timestamp.difference.max.ms`)
	put("there are no passwords in the cluster's configuration to encode", `
		password.encoder.secret password.encoder.old.secret password.encoder.iterations password.encoder.key.length
		password.encoder.cipher.algorithm password.encoder.keyfactory.algorithm`)
	put("there is no JVM here to load a class", `
		principal.builder.class client.quota.callback.class metric.reporters kafka.metrics.reporters ssl.engine.factory.class
		sasl.client.callback.handler.class sasl.login.callback.handler.class sasl.login.class sasl.server.callback.handler.class
		security.providers auto.include.jmx.reporter config.providers group.share.persister.class.name`)
	put("metrics are served at admin.listener", `
		metrics.num.samples metrics.recording.level metrics.sample.window.ms kafka.metrics.polling.interval.secs
		confluent.support.metrics.enable`)
	put("a broker has one log directory", `
		num.replica.alter.log.dirs.threads log.dir.failure.timeout.ms
		alter.log.dirs.replication.quota.window.num alter.log.dirs.replication.quota.window.size.seconds`)
	put(noteNoQuota, `
		controller.quota.window.num controller.quota.window.size.seconds replication.quota.window.num
		replication.quota.window.size.seconds quota.producer.default quota.consumer.default`)
	put(noteNoTLS, `
		ssl.protocol ssl.provider ssl.cipher.suites ssl.enabled.protocols ssl.keymanager.algorithm ssl.trustmanager.algorithm
		ssl.endpoint.identification.algorithm ssl.secure.random.implementation ssl.allow.dn.changes ssl.allow.san.changes`)
	put(noteNoSASL, `
		sasl.jaas.config sasl.kerberos.kinit.cmd sasl.kerberos.min.time.before.relogin sasl.kerberos.principal.to.local.rules
		sasl.kerberos.service.name sasl.kerberos.ticket.renew.jitter sasl.kerberos.ticket.renew.window.factor
		sasl.login.refresh.buffer.seconds sasl.login.refresh.min.period.seconds sasl.login.refresh.window.factor
		sasl.login.refresh.window.jitter sasl.login.connect.timeout.ms sasl.login.read.timeout.ms
		sasl.login.retry.backoff.max.ms sasl.login.retry.backoff.ms sasl.mechanism.inter.broker.protocol
		sasl.oauthbearer.token.endpoint.url sasl.oauthbearer.clock.skew.seconds sasl.oauthbearer.jwks.endpoint.refresh.ms
		sasl.oauthbearer.jwks.endpoint.retry.backoff.max.ms sasl.oauthbearer.jwks.endpoint.retry.backoff.ms
		sasl.oauthbearer.scope.claim.name sasl.oauthbearer.sub.claim.name connection.failed.authentication.delay.ms
		delegation.token.master.key delegation.token.secret.key delegation.token.expiry.time.ms
		delegation.token.max.lifetime.ms delegation.token.expiry.check.interval.ms`)
	put("connecting to another broker may take 2 s; duties begin at once", `
		socket.connection.setup.timeout.ms socket.connection.setup.timeout.max.ms log.initial.task.delay.ms`)
	put("clients are not asked for their metrics yet", `telemetry.max.bytes`)
	put(noteNoShare, `
		group.share.enable group.share.delivery.count.limit group.share.heartbeat.interval.ms group.share.max.groups
		group.share.max.heartbeat.interval.ms group.share.max.record.lock.duration.ms group.share.max.session.timeout.ms
		group.share.max.size group.share.min.heartbeat.interval.ms group.share.min.record.lock.duration.ms
		group.share.min.session.timeout.ms group.share.partition.max.record.locks group.share.record.lock.duration.ms
		group.share.session.timeout.ms group.share.assignors group.share.max.share.sessions group.share.min.delivery.count.limit
		group.share.max.delivery.count.limit group.share.min.partition.max.record.locks group.share.max.partition.max.record.locks
		group.share.assignment.interval.ms share.coordinator.state.topic.num.partitions share.coordinator.state.topic.replication.factor
		share.coordinator.state.topic.min.isr share.coordinator.state.topic.segment.bytes share.coordinator.state.topic.compression.codec
		share.coordinator.threads share.coordinator.append.linger.ms share.coordinator.load.buffer.size
		share.coordinator.snapshot.update.records.per.snapshot share.coordinator.write.timeout.ms
		share.coordinator.state.topic.prune.interval.ms share.fetch.purgatory.purge.interval.requests`)
	put(noteNoStreams, `
		group.streams.session.timeout.ms group.streams.min.session.timeout.ms group.streams.max.session.timeout.ms
		group.streams.heartbeat.interval.ms group.streams.min.heartbeat.interval.ms group.streams.max.heartbeat.interval.ms
		group.streams.max.size group.streams.num.standby.replicas group.streams.max.standby.replicas
		group.streams.initial.rebalance.delay.ms`)
	put("the consumer protocol is always there", `group.coordinator.new.enable`)
	return m
}()

// foreignPrefixes are families of such names.
var foreignPrefixes = []struct{ prefix, reason string }{
	{"controller.quorum.", noteEtcd},
	{"zookeeper.", noteEtcd},
	{"listener.name.", "settings for one listener exist only for TLS and SASL, which do not exist yet"},
	{"rsm.config.", noteOtherTier},
	{"rlmm.config.", noteManifest},
	{"remote.log.metadata.", noteManifest},
	{"config.providers.", "there is no JVM here to load a class"},
	{"confluent.", "it belongs to another product"},
	{"kafka.", "it belongs to Kafka's own tools"},
	{"log4j.", "it belongs to Java's logging; set log.level and log.format"},
}

// Foreign reports whether name is a setting of Kafka that means nothing here, and why.
func Foreign(name string) (reason string, ok bool) {
	if reason, ok = foreign[name]; ok {
		return reason, true
	}
	for _, p := range foreignPrefixes {
		if strings.HasPrefix(name, p.prefix) {
			return p.reason, true
		}
	}
	return "", false
}
