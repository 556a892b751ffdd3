"""kafka-python: `kafka_python.py PLAN.json PHASES`. The phases are those of every client program (README.md)."""

import threading
import time

from common import bootstrap, check, compare, plan, records, run, same, wait, wanted

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewPartitions, NewTopic

lock = threading.Lock()


def producer(**kw):
    return KafkaProducer(bootstrap_servers=bootstrap, **kw)


def produce():
    for t in plan["produce"]:

        def body():
            codec = t["codec"] if t["codec"] != "none" else None
            p = producer(compression_type=codec, linger_ms=20, max_request_size=4000000)
            offsets, acks = {}, []
            for r in records(t["corpus"]):
                o = offsets.get(r["partition"], 0)
                offsets[r["partition"]] = o + 1
                f = p.send(t["topic"], key=r["key"], value=r["value"], headers=r["headers"], partition=r["partition"], timestamp_ms=r["timestamp"])
                acks.append((r["partition"], o, f))
            p.flush()
            for part, o, f in acks:
                m = f.get(timeout=30)
                same("partition", part, m.partition)
                same("offset", o, m.offset)
            p.close()

        check("produces / " + t["codec"], body)


def consume():
    c = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, max_partition_fetch_bytes=200000)
    for t in plan["consume"]:

        def body():
            want = wanted(t["corpus"])
            parts = [TopicPartition(t["topic"], p) for p in sorted(want)]
            c.assign(parts)
            c.seek_to_beginning(*parts)
            for tp, end in c.end_offsets(parts).items():
                same("end offset of %s" % (tp,), len(want[tp.partition]), end)
            seen = {p: 0 for p in want}

            def more():
                for tp, rs in c.poll(timeout_ms=500).items():
                    for r in rs:
                        i = seen[tp.partition]
                        seen[tp.partition] += 1
                        compare("%s-%d@%d" % (t["topic"], tp.partition, i), want[tp.partition][i], r.offset, r.key, r.value, r.timestamp, list(r.headers))
                return sum(seen.values()) == sum(len(p) for p in want.values())

            wait("all records", more)

        check("reads %s / %s" % (t["by"], t["codec"]), body)
    c.close()


class Member:
    """A consumer of a group in a thread of its own: joining blocks the one that polls."""

    def __init__(self, topic, name, got):
        self.c = KafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=name, enable_auto_commit=False, auto_offset_reset="earliest", session_timeout_ms=10000, heartbeat_interval_ms=300
        )
        self.got, self.parts, self.ending, self.failure = got, set(), False, None
        self.thread = threading.Thread(target=self.poll, daemon=True)
        self.thread.start()

    def poll(self):
        try:
            while not self.ending:
                # kafka-python 3.0.12 takes itself for a member, and sends no heartbeat, after a poll whose time was over
                # between JoinGroup and the answer to SyncGroup: its time is long.
                for rs in self.c.poll(timeout_ms=2000).values():
                    for r in rs:
                        with lock:
                            self.got[r.value] = self.got.get(r.value, 0) + 1
                self.parts = {tp.partition for tp in self.c.assignment()}
            self.c.commit()
        except Exception as e:
            self.failure = e

    def end(self, then=lambda c: None):
        """Commits what was read, then closes."""
        self.ending = True
        self.thread.join(60)
        if self.failure:
            raise self.failure
        then(self.c)
        self.c.close()


def group():
    topic, name = plan["group"]["topic"], plan["group"]["group"]

    def fill(first, last):
        p = producer()
        acks = [p.send(topic, key=b"k%d" % i, value=b"v%d" % i, partition=i % 6) for i in range(first, last)]
        for a in acks:
            a.get(timeout=30)
        p.close()

    def once(first, last):
        return {b"v%d" % i: 1 for i in range(first, last)}

    def share():
        got = {}
        a, b = Member(topic, name, got), Member(topic, name, got)
        wait("an assignment of 3 + 3 partitions", lambda: len(a.parts) == 3 and len(b.parts) == 3 and not a.parts & b.parts)
        fill(0, 300)
        wait("300 records", lambda: len(got) >= 300)
        a.end()
        b.end()
        same("records", once(0, 300), got)

    def resume():
        fill(300, 360)
        got = {}
        a = Member(topic, name, got)
        wait("60 records", lambda: len(got) >= 60)
        time.sleep(0.3)

        def committed(c):
            for p in range(6):
                same("committed offset of %d" % p, 60, c.committed(TopicPartition(topic, p)))

        a.end(committed)
        same("records", once(300, 360), got)

    check("two members of a group share the partitions", share)
    check("a later member of the group resumes at the committed offsets", resume)


def extra():
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)

    def topics():
        admin.create_topics([NewTopic("kafka-python-admin", 2, 1, topic_configs={"retention.ms": "7200000"})])
        wait("the topic", lambda: "kafka-python-admin" in admin.list_topics())
        admin.create_partitions({"kafka-python-admin": NewPartitions(4)})
        wait("4 partitions", lambda: len(admin.describe_topics(["kafka-python-admin"])[0]["partitions"]) == 4)
        admin.delete_topics(["kafka-python-admin"])
        wait("deletion", lambda: "kafka-python-admin" not in admin.list_topics())

    def idempotent():
        p = producer(enable_idempotence=True, acks="all", batch_size=300)
        acks = [p.send("kafka-python-idem", key=b"k", value=b"%d" % i, partition=0) for i in range(2000)]
        same("offsets", list(range(2000)), [a.get(timeout=30).offset for a in acks])
        p.close()

    def times():
        p = producer(linger_ms=0)
        base = plan["started"] - 600000
        for i in range(5):
            p.send("kafka-python-times", value=b"%d" % i, partition=0, timestamp_ms=base + 1000 * i).get(timeout=30)
        p.close()
        tp = TopicPartition("kafka-python-times", 0)
        c = KafkaConsumer(bootstrap_servers=bootstrap)
        same("beginning", {tp: 0}, c.beginning_offsets([tp]))
        same("end", {tp: 5}, c.end_offsets([tp]))
        at = c.offsets_for_times({tp: base + 1500})[tp]
        same("by time", (2, base + 2000), (at.offset, at.timestamp))
        same("by a time after the last", None, c.offsets_for_times({tp: base + 5000})[tp])
        c.close()

    check("admin client: create, list, describe, grow, delete", topics)
    check("idempotent producer", idempotent)
    check("offsets by time", times)


run(dict(produce=produce, consume=consume, group=group, extra=extra))
