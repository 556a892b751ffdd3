"""confluent-kafka (librdkafka): `confluent.py PLAN.json PHASES`. The phases are those of every client program (README.md)."""

from common import bootstrap, check, compare, plan, records, run, same, wait, wanted

from confluent_kafka import OFFSET_BEGINNING, TIMESTAMP_CREATE_TIME, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType


def producer(**kw):
    return Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, **{k.replace("_", "."): v for k, v in kw.items()}})


def send(p, acks, topic, **kw):
    """Produces and, when it is acknowledged, writes (partition, offset) to its place in acks."""
    i = len(acks)
    acks.append(None)

    def done(err, m):
        acks[i] = err if err else (m.partition(), m.offset())

    while True:
        try:
            return p.produce(topic, on_delivery=done, **kw)
        except BufferError:
            p.poll(0.1)


def produce():
    for t in plan["produce"]:

        def body():
            p = producer(compression_type=t["codec"], message_max_bytes=4000000)
            acks, want, offsets = [], [], {}
            for r in records(t["corpus"]):
                o = offsets.get(r["partition"], 0)
                offsets[r["partition"]] = o + 1
                want.append((r["partition"], o))
                kw = {} if r["timestamp"] is None else {"timestamp": r["timestamp"]}
                send(p, acks, t["topic"], key=r["key"], value=r["value"], headers=r["headers"], partition=r["partition"], **kw)
            same("left in the queue", 0, p.flush(60))
            same("acknowledged", want, acks)

        check("produces / " + t["codec"], body)


def consumer(**kw):
    return Consumer({"bootstrap.servers": bootstrap, "enable.auto.commit": False, "auto.offset.reset": "earliest", **{k.replace("_", "."): v for k, v in kw.items()}})


def consume():
    c = consumer(group_id="confluent-reads", max_partition_fetch_bytes=200000)
    for t in plan["consume"]:

        def body():
            want = wanted(t["corpus"])
            for p, rs in want.items():
                same("offsets of partition %d" % p, (0, len(rs)), c.get_watermark_offsets(TopicPartition(t["topic"], p), timeout=30))
            c.assign([TopicPartition(t["topic"], p, OFFSET_BEGINNING) for p in sorted(want)])
            seen = {p: 0 for p in want}

            def more():
                for m in c.consume(500, timeout=0.2):
                    if m.error():
                        raise KafkaException(m.error())
                    if m.topic() != t["topic"]:
                        continue
                    i = seen[m.partition()]
                    seen[m.partition()] += 1
                    kind, ts = m.timestamp()
                    same("timestamp type", TIMESTAMP_CREATE_TIME, kind)
                    compare("%s-%d@%d" % (t["topic"], m.partition(), i), want[m.partition()][i], m.offset(), m.key(), m.value(), ts, m.headers() or [])
                return sum(seen.values()) == sum(len(p) for p in want.values())

            wait("all records", more)

        check("reads %s / %s" % (t["by"], t["codec"]), body)
    c.close()


def group():
    topic, name = plan["group"]["topic"], plan["group"]["group"]

    def member():
        c = consumer(group_id=name, session_timeout_ms=10000, heartbeat_interval_ms=300)
        c.subscribe([topic])
        return c

    def fill(first, last):
        p, acks = producer(), []
        for i in range(first, last):
            send(p, acks, topic, key=b"k%d" % i, value=b"v%d" % i, partition=i % 6)
        same("left in the queue", 0, p.flush(60))
        same("acknowledged", True, all(isinstance(a, tuple) for a in acks))

    def poll(c, got):
        for m in c.consume(500, timeout=0.1):
            if m.error():
                raise KafkaException(m.error())
            got[m.value()] = got.get(m.value(), 0) + 1

    def once(first, last):
        return {b"v%d" % i: 1 for i in range(first, last)}

    def share():
        a, b, got = member(), member(), {}

        def settled():
            poll(a, got)
            poll(b, got)
            x, y = ({tp.partition for tp in c.assignment()} for c in (a, b))
            return len(x) == 3 and len(y) == 3 and not x & y

        def all_there():
            poll(a, got)
            poll(b, got)
            return len(got) >= 300

        wait("an assignment of 3 + 3 partitions", settled)
        fill(0, 300)
        wait("300 records", all_there)
        same("records", once(0, 300), got)
        a.commit(asynchronous=False)
        b.commit(asynchronous=False)
        a.close()
        b.close()

    def resume():
        fill(300, 360)
        a, got = member(), {}

        def all_there():
            poll(a, got)
            return len(got) >= 60

        wait("60 records", all_there)
        for _ in range(3):
            poll(a, got)
        same("records", once(300, 360), got)
        a.commit(asynchronous=False)
        for tp in a.committed([TopicPartition(topic, p) for p in range(6)], timeout=30):
            same("committed offset of %d" % tp.partition, 60, tp.offset)
        a.close()

    check("two members of a group share the partitions", share)
    check("a later member of the group resumes at the committed offsets", resume)


def extra():
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def result(futures):
        return {k: f.result(30) for k, f in futures.items()}

    def topics():
        name = "confluent-admin"
        result(admin.create_topics([NewTopic(name, 2, 1, config={"retention.ms": "7200000"})]))
        wait("the topic", lambda: name in admin.list_topics(timeout=30).topics)
        result(admin.create_partitions([NewPartitions(name, 4)]))
        wait("4 partitions", lambda: len(admin.list_topics(name, timeout=30).topics[name].partitions) == 4)
        res = ConfigResource(ResourceType.TOPIC, name)
        same("retention.ms", "7200000", admin.describe_configs([res])[res].result(30)["retention.ms"].value)
        change = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[ConfigEntry("retention.ms", "3600000", incremental_operation=AlterConfigOpType.SET)])
        result(admin.incremental_alter_configs([change]))
        wait("the change", lambda: admin.describe_configs([res])[res].result(30)["retention.ms"].value == "3600000")
        try:
            result(admin.create_topics([NewTopic(name, 2, 1)]))
            raise AssertionError("made twice")
        except KafkaException as e:
            same("error", KafkaError.TOPIC_ALREADY_EXISTS, e.args[0].code())
        result(admin.delete_topics([name]))
        wait("deletion", lambda: name not in admin.list_topics(timeout=30).topics)

    def idempotent():
        p, acks = producer(enable_idempotence=True, batch_size=300, linger_ms=0), []
        for i in range(5000):
            send(p, acks, "confluent-idem", key=b"k", value=b"%d" % i, partition=0)
        same("left in the queue", 0, p.flush(60))
        same("acknowledged", [(0, i) for i in range(5000)], acks)

    def times():
        p, acks = producer(linger_ms=0), []
        base = plan["started"] - 600000
        for i in range(5):
            send(p, acks, "confluent-times", value=b"%d" % i, partition=0, timestamp=base + 1000 * i)
            p.flush(30)
        tp = TopicPartition("confluent-times", 0)
        for what, spec, want in (
            ("earliest", OffsetSpec.earliest(), 0),
            ("latest", OffsetSpec.latest(), 5),
            ("max timestamp", OffsetSpec.max_timestamp(), 4),
            ("by time", OffsetSpec.for_timestamp(base + 1500), 2),
        ):
            same(what, want, admin.list_offsets({tp: spec})[tp].result(30).offset)

    def transactional(name):
        p = producer(transactional_id=name, linger_ms=0)
        p.init_transactions(60)
        return p

    def values(topic, isolation):
        """Everything there is in partition 0 up to its end, as a consumer of this isolation level sees it."""
        c = consumer(group_id="confluent-txn-reads", isolation_level=isolation, enable_partition_eof=True)
        c.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        got, ends = [], []

        def more():
            for m in c.consume(500, timeout=0.2):
                if m.error() and m.error().code() == KafkaError._PARTITION_EOF:
                    ends.append(m.offset())
                elif m.error():
                    raise KafkaException(m.error())
                else:
                    got.append(m.value().decode())
            return ends

        wait("the end of " + topic, more)
        c.close()
        return got

    def create(name, partitions):
        result(admin.create_topics([NewTopic(name, partitions, 1)]))
        wait("the topic", lambda: name in admin.list_topics(timeout=30).topics)

    def commits():
        create("confluent-txn", 1)
        p, want, everything = transactional("confluent-txn"), [], []
        for n in range(6):
            p.begin_transaction()
            acks, vs = [], ["%d/%d" % (n, i) for i in range(20)]
            for v in vs:
                send(p, acks, "confluent-txn", value=v.encode(), partition=0)
            same("left in the queue", 0, p.flush(60))
            # 20 records and a marker for each transaction
            same("acknowledged", [(0, 21 * n + i) for i in range(20)], acks)
            everything += vs
            if n % 3 == 1:
                p.abort_transaction(60)
            else:
                p.commit_transaction(60)
                want += vs
        p.begin_transaction()
        send(p, [], "confluent-txn", value=b"open", partition=0)
        same("left in the queue", 0, p.flush(60))
        same("read_committed", want, values("confluent-txn", "read_committed"))
        same("read_uncommitted", everything + ["open"], values("confluent-txn", "read_uncommitted"))
        p.commit_transaction(60)
        same("read_committed, at the end", want + ["open"], values("confluent-txn", "read_committed"))

    def fences():
        create("confluent-fence", 1)
        a = transactional("confluent-fence")
        a.begin_transaction()
        send(a, [], "confluent-fence", value=b"a", partition=0)
        same("left in the queue", 0, a.flush(60))
        b = transactional("confluent-fence")  # aborts what a had begun
        b.begin_transaction()
        send(b, [], "confluent-fence", value=b"b", partition=0)
        try:
            a.commit_transaction(60)
            raise AssertionError("a fenced producer has committed")
        except KafkaException as e:
            same("error", KafkaError._FENCED, e.args[0].code())
            same("fatal", True, e.args[0].fatal())
        b.commit_transaction(60)
        same("records", ["b"], values("confluent-fence", "read_committed"))

    def offsets(protocol):
        name = "confluent-txn-" + protocol
        create(name + "-in", 2)
        create(name + "-out", 1)
        p, acks = producer(), []
        for i in range(200):
            send(p, acks, name + "-in", value=b"v%d" % i, partition=i % 2)
        same("left in the queue", 0, p.flush(60))
        kw = {} if protocol == "consumer" else dict(session_timeout_ms=10000, heartbeat_interval_ms=300)
        p, done, n = transactional(name), 0, 0
        # Two lives of the processor. Every other transaction is aborted, and its input read again.
        for target in (60, 200):
            c = consumer(group_id=name, group_protocol=protocol, isolation_level="read_committed", **kw)
            c.subscribe([name + "-in"])
            while done < target:
                got = []

                def some():
                    got.extend(c.consume(30, timeout=0.2))
                    return got

                wait("input", some)
                p.begin_transaction()
                for m in got:
                    if m.error():
                        raise KafkaException(m.error())
                    send(p, [], name + "-out", value=m.value(), partition=0)
                p.send_offsets_to_transaction(c.position(c.assignment()), c.consumer_group_metadata(), 60)
                n += 1
                if n % 2 == 1:
                    p.abort_transaction(60)
                    for tp in c.committed(c.assignment(), timeout=30):
                        c.seek(TopicPartition(tp.topic, tp.partition, max(tp.offset, 0)))
                else:
                    p.commit_transaction(60)
                    done += len(got)
            if target == 200:
                for tp in c.committed([TopicPartition(name + "-in", x) for x in range(2)], timeout=30):
                    same("committed offset of %d" % tp.partition, 100, tp.offset)
            c.close()
        same("output", sorted("v%d" % i for i in range(200)), sorted(values(name + "-out", "read_committed")))

    check("admin client: create, list, describe, alter, grow, delete", topics)
    check("idempotent producer", idempotent)
    check("offsets by time", times)
    check("transactions: commit, abort, and what is open", commits)
    check("transactions: a second producer fences the first", fences)
    for protocol in ("classic", "consumer"):
        check("transactions: send_offsets_to_transaction / group.protocol=" + protocol, lambda: offsets(protocol))


def sweep():
    """Reads a topic from its beginning again and again, while it is compacted under the reader."""
    topic, keys, passes = (plan["sweep"][k] for k in ("topic", "keys", "passes"))
    for level in ("read_committed", "read_uncommitted"):

        def body():
            c = consumer(group_id="confluent-sweep", isolation_level=level, auto_offset_reset="error")
            parts = [TopicPartition(topic, p, OFFSET_BEGINNING) for p in c.list_topics(topic, timeout=30).topics[topic].partitions]
            before = {}
            for n in range(passes):
                c.assign(parts)
                ends = {p.partition: c.get_watermark_offsets(p, timeout=30)[1] for p in parts}
                after, seen = {p: 0 for p in ends}, {}

                def more():
                    for m in c.consume(500, timeout=0.2):
                        if m.error():
                            raise KafkaException(m.error())
                        at = "pass %d: offset %d of partition %d" % (n, m.offset(), m.partition())
                        if m.offset() < after[m.partition()]:
                            raise AssertionError("%s after %d" % (at, after[m.partition()]))
                        after[m.partition()] = m.offset() + 1
                        if m.value() == b"aborted":
                            if level == "read_committed":
                                raise AssertionError(at + " was aborted")
                            continue
                        if int(m.value()) <= seen.get(m.key(), 0):
                            raise AssertionError("%s: %r has %r after %d" % (at, m.key(), m.value(), seen[m.key()]))
                        seen[m.key()] = int(m.value())
                    return all(after[p] >= end for p, end in ends.items())

                wait("the end of pass %d" % n, more)
                same("keys in pass %d" % n, keys, len(seen))
                for k, v in before.items():
                    if seen[k] < v:
                        raise AssertionError("pass %d: %r has %d and had %d" % (n, k, seen[k], v))
                before = seen
            c.close()

        check("reads again and again what is replaced meanwhile / " + level, body)


run(dict(produce=produce, consume=consume, group=group, extra=extra, sweep=sweep))
