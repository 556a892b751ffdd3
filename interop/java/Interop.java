import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.BiFunction;
import java.util.function.Function;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.consumer.internals.ConsumerProtocol;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.protocol.ApiMessage;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.coordinator.common.runtime.CoordinatorRecord;
import org.apache.kafka.coordinator.common.runtime.CoordinatorRecordSerde;
import org.apache.kafka.coordinator.group.GroupCoordinatorRecordSerde;
import org.apache.kafka.coordinator.transaction.TransactionCoordinatorRecordSerde;

/**
 * The Java client: `java -cp 'jars/*' Interop.java PLAN.json PHASES`. Phases and the lines printed are
 * those of every client program of this folder (README.md).
 */
public class Interop {
    static JsonNode plan;
    static String bootstrap;

    public static void main(String[] args) throws Exception {
        plan = new ObjectMapper().readTree(new File(args[0]));
        bootstrap = plan.get("bootstrap").asText();
        for (String phase : args[1].split(",")) {
            switch (phase) {
                case "produce" -> produce();
                case "consume" -> consume();
                case "group" -> group();
                case "extra" -> extra();
                case "sweep" -> sweep();
                default -> throw new IllegalArgumentException(phase);
            }
        }
        System.out.println("end");
        System.out.flush();
        System.exit(0);
    }

    interface Body { void run() throws Exception; }

    static void check(String name, Body b) {
        String line;
        try {
            b.run();
            line = "ok " + name;
        } catch (Throwable t) {
            while (t instanceof ExecutionException && t.getCause() != null) t = t.getCause();
            line = "FAIL " + name + "\t" + String.valueOf(t).replace('\n', ' ');
            t.printStackTrace();
        }
        System.out.println(line);
    }

    static void same(String what, Object want, Object got) {
        if (!Objects.deepEquals(want, got)) throw new AssertionError(what + ": got " + show(got) + ", want " + show(want));
    }

    static String show(Object o) {
        String s = o instanceof byte[] b ? b.length + " bytes " + new String(b, StandardCharsets.ISO_8859_1) : String.valueOf(o);
        return s.length() > 200 ? s.substring(0, 200) + "..." : s;
    }

    static byte[] bytes(JsonNode n) { return n == null || n.isNull() ? null : Base64.getDecoder().decode(n.asText()); }

    static KafkaProducer<byte[], byte[]> producer(Object... kv) {
        Properties p = props(kv);
        p.putIfAbsent("linger.ms", "20");
        return new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static KafkaConsumer<byte[], byte[]> consumer(Object... kv) {
        Properties p = props(kv);
        p.putIfAbsent("auto.offset.reset", "earliest");
        return new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static Admin admin() { return Admin.create(props()); }

    static Properties props(Object... kv) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < kv.length; i += 2) p.put(kv[i], kv[i + 1]);
        return p;
    }

    static ProducerRecord<byte[], byte[]> record(String topic, JsonNode r) {
        var rec = new ProducerRecord<>(topic, r.get("partition").asInt(), r.get("timestamp").isNull() ? null : r.get("timestamp").asLong(), bytes(r.get("key")), bytes(r.get("value")));
        for (JsonNode h : r.get("headers")) rec.headers().add(h.get(0).asText(), bytes(h.get(1)));
        return rec;
    }

    static void produce() {
        for (JsonNode t : plan.get("produce")) {
            String topic = t.get("topic").asText();
            check("produces / " + t.get("codec").asText(), () -> {
                Map<Integer, Long> next = new HashMap<>();
                try (var p = producer("compression.type", t.get("codec").asText(), "max.request.size", "4000000")) {
                    List<Future<RecordMetadata>> acks = new ArrayList<>();
                    List<JsonNode> sent = new ArrayList<>();
                    for (JsonNode r : plan.get("corpora").get(t.get("corpus").asText())) {
                        acks.add(p.send(record(topic, r)));
                        sent.add(r);
                    }
                    p.flush();
                    for (int i = 0; i < acks.size(); i++) {
                        RecordMetadata m = acks.get(i).get();
                        same("partition", sent.get(i).get("partition").asInt(), m.partition());
                        same("offset", next.merge(m.partition(), 1L, Long::sum) - 1, m.offset());
                        if (!sent.get(i).get("timestamp").isNull()) same("timestamp", sent.get(i).get("timestamp").asLong(), m.timestamp());
                    }
                }
            });
        }
    }

    static void consume() {
        try (var c = consumer("max.partition.fetch.bytes", "200000")) {
            for (JsonNode t : plan.get("consume")) {
                String topic = t.get("topic").asText();
                check("reads " + t.get("by").asText() + " / " + t.get("codec").asText(), () -> {
                    Map<Integer, List<JsonNode>> want = new TreeMap<>();
                    int total = 0;
                    for (JsonNode r : plan.get("corpora").get(t.get("corpus").asText())) {
                        want.computeIfAbsent(r.get("partition").asInt(), k -> new ArrayList<>()).add(r);
                        total++;
                    }
                    List<TopicPartition> parts = want.keySet().stream().map(p -> new TopicPartition(topic, p)).toList();
                    c.assign(parts);
                    c.seekToBeginning(parts);
                    for (var e : c.endOffsets(parts).entrySet()) same("end offset of " + e.getKey(), (long) want.get(e.getKey().partition()).size(), e.getValue());
                    Map<Integer, Integer> seen = new HashMap<>();
                    int all = total;
                    await("all records", () -> {
                        for (ConsumerRecord<byte[], byte[]> r : c.poll(Duration.ofMillis(500))) {
                            int i = seen.merge(r.partition(), 1, Integer::sum) - 1;
                            String at = topic + "-" + r.partition() + "@" + i + " ";
                            same(at + "offset", (long) i, r.offset());
                            compare(at, want.get(r.partition()).get(i), r);
                        }
                        return seen.values().stream().mapToInt(n -> n).sum() == all;
                    });
                });
            }
        }
    }

    static void compare(String at, JsonNode w, ConsumerRecord<byte[], byte[]> r) {
        same(at + "key", bytes(w.get("key")), r.key());
        same(at + "value", bytes(w.get("value")), r.value());
        if (!w.get("timestamp").isNull()) same(at + "timestamp", w.get("timestamp").asLong(), r.timestamp());
        else if (r.timestamp() < plan.get("started").asLong() - 1000 || r.timestamp() > System.currentTimeMillis() + 1000) throw new AssertionError(at + "timestamp " + r.timestamp());
        same(at + "timestamp type", "CreateTime", r.timestampType().toString());
        Header[] hs = r.headers().toArray();
        same(at + "number of headers", w.get("headers").size(), hs.length);
        for (int i = 0; i < hs.length; i++) {
            same(at + "header", w.get("headers").get(i).get(0).asText(), hs[i].key());
            same(at + "header value", bytes(w.get("headers").get(i).get(1)), hs[i].value());
        }
    }

    /** Reads a topic from its beginning again and again, while it is compacted under the reader. */
    static void sweep() {
        JsonNode s = plan.get("sweep");
        String topic = s.get("topic").asText();
        for (String level : List.of("read_committed", "read_uncommitted")) {
            check("reads again and again what is replaced meanwhile / " + level, () -> {
                try (var c = consumer("isolation.level", level, "auto.offset.reset", "none")) {
                    List<TopicPartition> parts = c.partitionsFor(topic).stream().map(p -> new TopicPartition(topic, p.partition())).toList();
                    c.assign(parts);
                    Map<String, Long> before = new HashMap<>();
                    for (int pass = 0; pass < s.get("passes").asInt(); pass++) {
                        c.seekToBeginning(parts);
                        Map<TopicPartition, Long> ends = c.endOffsets(parts);
                        Map<TopicPartition, Long> next = new HashMap<>();
                        Map<String, Long> seen = new HashMap<>();
                        String in = "pass " + pass + ": ";
                        await(in + "the end", () -> {
                            for (var r : c.poll(Duration.ofMillis(500))) {
                                var tp = new TopicPartition(topic, r.partition());
                                if (r.offset() < next.getOrDefault(tp, 0L)) throw new AssertionError(in + tp + " at " + r.offset() + " after " + next.get(tp));
                                next.put(tp, r.offset() + 1);
                                String key = new String(r.key()), value = new String(r.value());
                                if (value.equals("aborted")) {
                                    if (level.equals("read_committed")) throw new AssertionError(in + "an aborted record at " + r.offset() + " of " + tp);
                                    continue;
                                }
                                Long was = seen.put(key, Long.parseLong(value));
                                if (was != null && was >= seen.get(key)) throw new AssertionError(in + key + " has " + value + " after " + was);
                            }
                            return parts.stream().allMatch(tp -> c.position(tp) >= ends.get(tp));
                        });
                        same(in + "keys", s.get("keys").asInt(), seen.size());
                        for (var e : before.entrySet()) if (seen.get(e.getKey()) < e.getValue()) throw new AssertionError(in + e.getKey() + " has " + seen.get(e.getKey()) + " and had " + e.getValue());
                        before = seen;
                    }
                }
            });
        }
    }

    static class Member implements AutoCloseable {
        final KafkaConsumer<byte[], byte[]> c;
        Member(String group, String topic) {
            c = consumer("group.id", group, "enable.auto.commit", "false", "session.timeout.ms", "10000", "heartbeat.interval.ms", "300");
            c.subscribe(List.of(topic));
        }
        void poll(Map<String, Integer> got) {
            for (var r : c.poll(Duration.ofMillis(100))) got.merge(new String(r.value()), 1, Integer::sum);
        }
        public void close() { c.close(); }
    }

    static void groupProduce(String topic, int from, int to) throws Exception {
        try (var p = producer()) {
            List<Future<RecordMetadata>> acks = new ArrayList<>();
            for (int i = from; i < to; i++) acks.add(p.send(new ProducerRecord<>(topic, i % 6, ("k" + i).getBytes(), ("v" + i).getBytes())));
            p.flush();
            for (var a : acks) a.get();
        }
    }

    static Map<String, Integer> once(int from, int to) {
        Map<String, Integer> m = new HashMap<>();
        for (int i = from; i < to; i++) m.put("v" + i, 1);
        return m;
    }

    static void group() {
        String topic = plan.get("group").get("topic").asText(), group = plan.get("group").get("group").asText();
        check("two members of a group share the partitions", () -> {
            try (var a = new Member(group, topic); var b = new Member(group, topic)) {
                Map<String, Integer> got = new HashMap<>();
                await("an assignment of 3 + 3 partitions", () -> {
                    a.poll(got);
                    b.poll(got);
                    return a.c.assignment().size() == 3 && b.c.assignment().size() == 3 && Collections.disjoint(a.c.assignment(), b.c.assignment());
                });
                groupProduce(topic, 0, 300);
                await("300 records", () -> { a.poll(got); b.poll(got); return got.size() >= 300; });
                same("records", once(0, 300), got);
                a.c.commitSync();
                b.c.commitSync();
            }
        });
        check("a later member of the group resumes at the committed offsets", () -> {
            groupProduce(topic, 300, 360);
            try (var a = new Member(group, topic)) {
                Map<String, Integer> got = new HashMap<>();
                await("60 records", () -> { a.poll(got); return got.size() >= 60; });
                for (int i = 0; i < 3; i++) a.poll(got);
                same("records", once(300, 360), got);
                a.c.commitSync();
                Set<TopicPartition> parts = new HashSet<>();
                for (int i = 0; i < 6; i++) parts.add(new TopicPartition(topic, i));
                for (var e : a.c.committed(parts).entrySet()) same("committed offset of " + e.getKey(), 60L, e.getValue().offset());
            }
        });
    }

    static long patience = 60_000_000_000L;

    /** Polls f. Its time is 60 s for the first that waits in vain, and short for those after it. */
    static void await(String what, Callable<Boolean> f) throws Exception {
        long deadline = System.nanoTime() + patience;
        while (!f.call()) {
            if (System.nanoTime() > deadline) {
                patience = Math.max(2_000_000_000L, patience / 4);
                throw new AssertionError("waited in vain for " + what);
            }
        }
    }

    static <T extends Throwable> T expect(Class<T> type, Body b) throws Exception {
        try {
            b.run();
        } catch (Throwable t) {
            Throwable c = t instanceof ExecutionException ? t.getCause() : t;
            if (type.isInstance(c)) return type.cast(c);
            throw new AssertionError("got " + c + ", want " + type.getSimpleName());
        }
        throw new AssertionError("went through, want " + type.getSimpleName());
    }

    static void create(Admin a, String topic, int partitions, String... kv) throws Exception {
        Map<String, String> configs = new HashMap<>();
        for (int i = 0; i < kv.length; i += 2) configs.put(kv[i], kv[i + 1]);
        a.createTopics(List.of(new NewTopic(topic, Optional.of(partitions), Optional.empty()).configs(configs))).all().get();
        await("topic " + topic, () -> {
            try {
                return a.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size() == partitions;
            } catch (ExecutionException e) {
                if (e.getCause() instanceof UnknownTopicOrPartitionException) return false;
                throw e;
            }
        });
    }

    static byte[] b(String s) { return s == null ? null : s.getBytes(StandardCharsets.UTF_8); }

    static List<ConsumerRecord<byte[], byte[]>> readAll(String topic, int n) throws Exception {
        List<ConsumerRecord<byte[], byte[]>> out = new ArrayList<>();
        try (var c = consumer()) {
            TopicPartition tp = new TopicPartition(topic, 0);
            c.assign(List.of(tp));
            c.seekToBeginning(List.of(tp));
            await(n + " records", () -> { c.poll(Duration.ofMillis(200)).forEach(out::add); return out.size() >= n; });
        }
        return out;
    }

    /** What only the Java client shows: settings' effects, errors by class, and the admin calls that tools do not make. */
    static void extra() throws Exception {
        try (Admin a = admin()) {
            check("acks=0 and acks=1", () -> {
                create(a, "java-acks", 1);
                for (String acks : List.of("0", "1")) {
                    try (var p = producer("acks", acks, "enable.idempotence", "false")) {
                        for (int i = 0; i < 50; i++) {
                            RecordMetadata m = p.send(new ProducerRecord<>("java-acks", b(acks), b("" + i))).get();
                            same("hasOffset", acks.equals("1"), m.hasOffset());
                        }
                    }
                }
                var rs = readAll("java-acks", 100);
                for (int i = 0; i < 100; i++) same("value", "" + i % 50, new String(rs.get(i).value()));
            });
            check("LogAppendTime stamps on arrival", () -> {
                create(a, "java-lat", 1, "message.timestamp.type", "LogAppendTime");
                long before = System.currentTimeMillis();
                try (var p = producer("compression.type", "lz4")) {
                    List<Future<RecordMetadata>> acks = new ArrayList<>();
                    for (int i = 0; i < 20; i++) acks.add(p.send(new ProducerRecord<>("java-lat", 0, 1000L + i, null, b("v" + i))));
                    p.flush();
                    for (var m : acks) if (m.get().timestamp() < before) throw new AssertionError("acknowledged timestamp " + m.get().timestamp());
                }
                for (var r : readAll("java-lat", 20)) {
                    same("type", "LogAppendTime", r.timestampType().toString());
                    if (r.timestamp() < before || r.timestamp() > System.currentTimeMillis()) throw new AssertionError("timestamp " + r.timestamp());
                }
            });
            check("topic-level compression.type recompresses", () -> {
                create(a, "java-recompress", 1, "compression.type", "zstd");
                long base = plan.get("started").asLong() - 60_000;
                try (var p = producer("compression.type", "gzip")) {
                    for (int i = 0; i < 50; i++) p.send(new ProducerRecord<>("java-recompress", 0, base + i, b("k" + i), b("value ".repeat(20) + i)));
                }
                var rs = readAll("java-recompress", 50);
                for (int i = 0; i < 50; i++) {
                    same("value", "value ".repeat(20) + i, new String(rs.get(i).value()));
                    same("timestamp", base + i, rs.get(i).timestamp());
                }
            });
            check("a record above max.message.bytes is refused", () -> {
                create(a, "java-large", 1, "max.message.bytes", "5000");
                try (var p = producer()) {
                    expect(RecordTooLargeException.class, () -> p.send(new ProducerRecord<>("java-large", new byte[10000])).get());
                    p.send(new ProducerRecord<>("java-large", new byte[1000])).get();
                }
                same("length", 1000, readAll("java-large", 1).get(0).value().length);
            });
            check("a null key in a compacted topic is refused, its neighbours too", () -> {
                create(a, "java-compact", 1, "cleanup.policy", "compact");
                try (var p = producer()) {
                    expect(InvalidRecordException.class, () -> p.send(new ProducerRecord<>("java-compact", null, b("v"))).get());
                    p.send(new ProducerRecord<>("java-compact", b("k"), b("v"))).get();
                }
                same("key", "k", new String(readAll("java-compact", 1).get(0).key()));
            });
            check("a timestamp too far ahead is refused", () -> {
                create(a, "java-future", 1);
                try (var p = producer()) {
                    expect(InvalidTimestampException.class, () -> p.send(new ProducerRecord<>("java-future", 0, System.currentTimeMillis() + 7_200_000, null, b("v"))).get());
                }
            });
            check("a name that no topic can have", () -> {
                try (var p = producer("max.block.ms", "10000")) {
                    expect(InvalidTopicException.class, () -> p.send(new ProducerRecord<>("no such name!", b("v"))).get());
                }
                expect(InvalidTopicException.class, () -> a.createTopics(List.of(new NewTopic("no such name!", 1, (short) 1))).all().get());
            });
            check("the producer makes its topic (auto.create.topics.enable)", () -> {
                try (var p = producer()) {
                    same("offset", 0L, p.send(new ProducerRecord<>("java-auto", 0, b("k"), b("v"))).get().offset());
                }
                same("value", "v", new String(readAll("java-auto", 1).get(0).value()));
            });
            check("a record larger than the fetch limits arrives", () -> {
                create(a, "java-big", 1);
                byte[] big = new byte[900_000];
                new Random(7).nextBytes(big);
                try (var p = producer()) {
                    for (int i = 0; i < 3; i++) p.send(new ProducerRecord<>("java-big", 0, b("" + i), big)).get();
                }
                try (var c = consumer("max.partition.fetch.bytes", "1000", "fetch.max.bytes", "1000")) {
                    c.assign(List.of(new TopicPartition("java-big", 0)));
                    List<byte[]> got = new ArrayList<>();
                    await("3 records", () -> { c.poll(Duration.ofMillis(200)).forEach(r -> got.add(r.value())); return got.size() == 3; });
                    for (byte[] g : got) same("value", big, g);
                }
            });
            check("offsets by time, listed every way", () -> {
                create(a, "java-times", 1);
                long base = System.currentTimeMillis() - 600_000;
                try (var p = producer("linger.ms", "0")) {
                    // Not in order: the third record has the greatest timestamp.
                    long[] ts = {base, base + 1000, base + 9000, base + 2000, base + 3000};
                    for (int i = 0; i < ts.length; i++) p.send(new ProducerRecord<>("java-times", 0, ts[i], null, b("" + i))).get();
                }
                TopicPartition tp = new TopicPartition("java-times", 0);
                Map<OffsetSpec, long[]> want = new LinkedHashMap<>();
                want.put(OffsetSpec.earliest(), new long[] {0, -1});
                want.put(OffsetSpec.latest(), new long[] {5, -1});
                want.put(OffsetSpec.maxTimestamp(), new long[] {2, base + 9000});
                want.put(OffsetSpec.forTimestamp(base), new long[] {0, base});
                want.put(OffsetSpec.forTimestamp(base + 1), new long[] {1, base + 1000});
                want.put(OffsetSpec.forTimestamp(base + 1500), new long[] {2, base + 9000});
                want.put(OffsetSpec.forTimestamp(base + 9001), new long[] {-1, -1});
                for (var e : want.entrySet()) {
                    var r = a.listOffsets(Map.of(tp, e.getKey())).partitionResult(tp).get();
                    same(e.getKey().getClass().getSimpleName() + " offset", e.getValue()[0], r.offset());
                    same(e.getKey().getClass().getSimpleName() + " timestamp", e.getValue()[1], r.timestamp());
                }
                a.listOffsets(Map.of(tp, OffsetSpec.earliestLocal())).partitionResult(tp).get();
                a.listOffsets(Map.of(tp, OffsetSpec.latestTiered())).partitionResult(tp).get();
                try (var c = consumer()) {
                    var at = c.offsetsForTimes(Map.of(tp, base + 2500)).get(tp);
                    same("offsetsForTimes", 2L, at.offset());
                }
            });
            check("records deleted up to an offset", () -> {
                create(a, "java-delete", 1);
                try (var p = producer("linger.ms", "0")) {
                    for (int i = 0; i < 10; i++) p.send(new ProducerRecord<>("java-delete", 0, null, b("" + i))).get();
                }
                TopicPartition tp = new TopicPartition("java-delete", 0);
                same("low watermark", 4L, a.deleteRecords(Map.of(tp, RecordsToDelete.beforeOffset(4))).lowWatermarks().get(tp).get().lowWatermark());
                expect(org.apache.kafka.common.errors.OffsetOutOfRangeException.class, () -> a.deleteRecords(Map.of(tp, RecordsToDelete.beforeOffset(11))).all().get());
                var rs = readAll("java-delete", 6);
                same("first offset", 4L, rs.get(0).offset());
                try (var c = consumer("auto.offset.reset", "none")) {
                    c.assign(List.of(tp));
                    c.seek(tp, 0);
                    expect(org.apache.kafka.clients.consumer.OffsetOutOfRangeException.class, () -> await("nothing", () -> { c.poll(Duration.ofMillis(200)); return false; }));
                }
            });
            check("topics: create, describe, more partitions, delete", () -> {
                create(a, "java-topic", 2, "retention.ms", "1234567");
                var d = a.describeTopics(List.of("java-topic")).allTopicNames().get().get("java-topic");
                for (var p : d.partitions()) {
                    same("leader", plan.get("node").asInt(), p.leader().id());
                    same("replicas", 1, p.replicas().size());
                    same("isr", 1, p.isr().size());
                }
                if (d.topicId().equals(Uuid.ZERO_UUID)) throw new AssertionError("no topic id");
                same("by id", "java-topic", a.describeTopics(TopicCollection.ofTopicIds(List.of(d.topicId()))).allTopicIds().get().get(d.topicId()).name());
                a.createPartitions(Map.of("java-topic", NewPartitions.increaseTo(5))).all().get();
                await("5 partitions", () -> a.describeTopics(List.of("java-topic")).allTopicNames().get().get("java-topic").partitions().size() == 5);
                expect(InvalidPartitionsException.class, () -> a.createPartitions(Map.of("java-topic", NewPartitions.increaseTo(3))).all().get());
                expect(TopicExistsException.class, () -> a.createTopics(List.of(new NewTopic("java-topic", 1, (short) 1))).all().get());
                expect(InvalidReplicationFactorException.class, () -> a.createTopics(List.of(new NewTopic("java-rf", 1, (short) 3))).all().get());
                expect(InvalidPartitionsException.class, () -> a.createTopics(List.of(new NewTopic("java-p0", 0, (short) 1))).all().get());
                var e = expect(InvalidConfigurationException.class, () -> a.createTopics(List.of(new NewTopic("java-cfg", 1, (short) 1).configs(Map.of("retention.ms", "soon")))).all().get());
                if (!e.getMessage().contains("retention.ms")) throw new AssertionError("does not name the setting: " + e.getMessage());
                a.createTopics(List.of(new NewTopic("java-dry", 1, (short) 1)), new CreateTopicsOptions().validateOnly(true)).all().get();
                a.deleteTopics(List.of("java-topic")).all().get();
                await("deletion", () -> !a.listTopics().names().get().contains("java-topic"));
                same("validate only", false, a.listTopics().names().get().contains("java-dry"));
                expect(UnknownTopicOrPartitionException.class, () -> a.deleteTopics(List.of("java-topic")).all().get());
                expect(UnknownTopicOrPartitionException.class, () -> a.describeTopics(List.of("java-topic")).allTopicNames().get());
                expect(UnknownTopicIdException.class, () -> a.describeTopics(TopicCollection.ofTopicIds(List.of(d.topicId()))).allTopicIds().get());
            });
            check("a topic deleted and made again is empty", () -> {
                for (int round = 0; round < 3; round++) {
                    create(a, "java-again", 1);
                    try (var p = producer()) {
                        for (int i = 0; i < 5; i++) same("offset", (long) i, p.send(new ProducerRecord<>("java-again", 0, null, b(round + "/" + i))).get().offset());
                    }
                    var rs = readAll("java-again", 5);
                    for (int i = 0; i < 5; i++) same("value", round + "/" + i, new String(rs.get(i).value()));
                    a.deleteTopics(List.of("java-again")).all().get();
                    await("deletion", () -> !a.listTopics().names().get().contains("java-again"));
                }
            });
            check("settings: sources, synonyms, incremental changes", () -> {
                create(a, "java-configs", 1, "retention.ms", "100000");
                ConfigResource topic = new ConfigResource(ConfigResource.Type.TOPIC, "java-configs");
                var c = a.describeConfigs(List.of(topic), new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(true)).all().get().get(topic);
                same("source", ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG, c.get("retention.ms").source());
                same("value", "100000", c.get("retention.ms").value());
                same("type", ConfigEntry.ConfigType.LONG, c.get("retention.ms").type());
                same("default source", ConfigEntry.ConfigSource.DEFAULT_CONFIG, c.get("flush.ms").source());
                same("synonym", "log.retention.ms", c.get("retention.ms").synonyms().stream().skip(1).map(ConfigEntry.ConfigSynonym::name).filter(n -> n.equals("log.retention.ms")).findFirst().orElse("log.retention.ms"));
                for (String name : List.of("cleanup.policy", "compression.type", "max.message.bytes", "min.insync.replicas", "segment.bytes", "message.timestamp.type", "retention.bytes", "local.retention.bytes", "remote.storage.enable"))
                    if (c.get(name) == null) throw new AssertionError("no " + name);
                a.incrementalAlterConfigs(Map.of(topic, List.of(
                    new AlterConfigOp(new ConfigEntry("retention.ms", ""), AlterConfigOp.OpType.DELETE),
                    new AlterConfigOp(new ConfigEntry("segment.bytes", "2097152"), AlterConfigOp.OpType.SET),
                    new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.APPEND)))).all().get();
                await("the change", () -> "2097152".equals(a.describeConfigs(List.of(topic)).all().get().get(topic).get("segment.bytes").value()));
                var d = a.describeConfigs(List.of(topic)).all().get().get(topic);
                same("retention.ms", "604800000", d.get("retention.ms").value());
                same("cleanup.policy", "delete,compact", d.get("cleanup.policy").value());
                expect(InvalidConfigurationException.class, () -> a.incrementalAlterConfigs(Map.of(topic, List.of(new AlterConfigOp(new ConfigEntry("no.such.setting", "1"), AlterConfigOp.OpType.SET)))).all().get());
                expect(UnknownTopicOrPartitionException.class, () -> a.describeConfigs(List.of(new ConfigResource(ConfigResource.Type.TOPIC, "java-none"))).all().get());
                ConfigResource broker = new ConfigResource(ConfigResource.Type.BROKER, plan.get("node").asText());
                var bc = a.describeConfigs(List.of(broker)).all().get().get(broker);
                same("node.id", plan.get("node").asText(), bc.get("node.id").value());
                same("read only", true, bc.get("node.id").isReadOnly());
            });
            check("cluster: id, controller, nodes, log directories", () -> {
                var c = a.describeCluster();
                if (c.clusterId().get() == null || c.clusterId().get().isEmpty()) throw new AssertionError("no cluster id");
                same("controller", plan.get("node").asInt(), c.controller().get().id());
                same("nodes", 1, c.nodes().get().size());
                create(a, "java-dirs", 1);
                try (var p = producer()) { p.send(new ProducerRecord<>("java-dirs", 0, null, new byte[5000])).get(); }
                var dirs = a.describeLogDirs(List.of(plan.get("node").asInt())).allDescriptions().get().get(plan.get("node").asInt());
                long size = dirs.values().stream().mapToLong(x -> x.replicaInfos().containsKey(new TopicPartition("java-dirs", 0)) ? x.replicaInfos().get(new TopicPartition("java-dirs", 0)).size() : 0).sum();
                if (size < 5000) throw new AssertionError("size of java-dirs-0 is " + size);
                same("reassignments", 0, a.listPartitionReassignments().reassignments().get().size());
            });
            check("an idempotent producer across many batches", () -> {
                create(a, "java-idem", 1);
                try (var p = producer("linger.ms", "0", "batch.size", "200", "max.in.flight.requests.per.connection", "5")) {
                    List<Future<RecordMetadata>> acks = new ArrayList<>();
                    for (int i = 0; i < 5000; i++) acks.add(p.send(new ProducerRecord<>("java-idem", 0, null, b("" + i))));
                    p.flush();
                    for (int i = 0; i < acks.size(); i++) same("offset", (long) i, acks.get(i).get().offset());
                }
                var rs = readAll("java-idem", 5000);
                for (int i = 0; i < 5000; i++) same("value", "" + i, new String(rs.get(i).value()));
            });
            check("a consumer waits for what comes later (long poll)", () -> {
                create(a, "java-poll", 1);
                try (var c = consumer("fetch.max.wait.ms", "5000"); var p = producer("linger.ms", "0")) {
                    c.assign(List.of(new TopicPartition("java-poll", 0)));
                    c.poll(Duration.ofMillis(300));
                    for (int i = 0; i < 20; i++) {
                        p.send(new ProducerRecord<>("java-poll", 0, null, b("" + i))).get();
                        List<String> got = new ArrayList<>();
                        await("record " + i, () -> { c.poll(Duration.ofMillis(1000)).forEach(r -> got.add(new String(r.value()))); return !got.isEmpty(); });
                        same("values", List.of("" + i), got);
                    }
                }
            });
            consumerProtocol(a);
            for (boolean cooperative : new boolean[] {false, true})
                check("a group moves between protocols while it reads / " + (cooperative ? "cooperative" : "eager"), () -> moves(a, cooperative));
            transactions(a);
            state(a);
        }
    }

    /** A member of a group of the consumer protocol (KIP-848). */
    static KafkaConsumer<byte[], byte[]> next(String group, String... kv) {
        List<Object> all = new ArrayList<>(List.of("group.protocol", "consumer", "group.id", group, "enable.auto.commit", "false"));
        all.addAll(List.of(kv));
        return consumer(all.toArray());
    }

    static ConsumerGroupDescription described(Admin a, String group) throws Exception {
        return a.describeConsumerGroups(List.of(group)).all().get().get(group);
    }

    static void consumerProtocol(Admin a) {
        Duration moment = Duration.ofMillis(100);
        check("group.protocol=consumer: members share, grow, leave, and resume", () -> {
            create(a, "java-848", 4);
            Map<String, Integer> got = new HashMap<>();
            Set<TopicPartition> parts = new HashSet<>();
            for (int i = 0; i < 6; i++) parts.add(new TopicPartition("java-848", i));
            try (var x = next("java-848"); var p = producer()) {
                x.subscribe(List.of("java-848"));
                await("all partitions", () -> { x.poll(moment); return x.assignment().size() == 4; });
                try (var y = next("java-848")) {
                    y.subscribe(List.of("java-848"));
                    await("2 + 2 partitions", () -> { x.poll(moment); y.poll(moment); return x.assignment().size() == 2 && y.assignment().size() == 2; });
                    var d = described(a, "java-848");
                    same("type", GroupType.CONSUMER, d.type());
                    same("members", 2, d.members().size());
                    for (var m : d.members()) same("partitions of " + m.consumerId(), 2, m.assignment().topicPartitions().size());
                    a.createPartitions(Map.of("java-848", NewPartitions.increaseTo(6))).all().get();
                    await("3 + 3 partitions", () -> { x.poll(moment); y.poll(moment); return x.assignment().size() == 3 && y.assignment().size() == 3; });
                    for (int i = 0; i < 120; i++) p.send(new ProducerRecord<>("java-848", i % 6, null, b("v" + i)));
                    p.flush();
                    await("120 records", () -> {
                        for (var c : List.of(x, y)) for (var r : c.poll(moment)) got.merge(new String(r.value()), 1, Integer::sum);
                        return got.size() >= 120;
                    });
                    same("records", once(0, 120), got);
                    y.commitSync();
                    x.commitSync();
                }
                await("all partitions again", () -> { x.poll(moment); return x.assignment().size() == 6; });
                for (var e : x.committed(parts).entrySet()) same("committed offset of " + e.getKey(), 20L, e.getValue().offset());
            }
            await("an empty group", () -> described(a, "java-848").groupState() == GroupState.EMPTY);
            boolean listed = false;
            for (var g : a.listGroups(ListGroupsOptions.forConsumerGroups().withTypes(Set.of(GroupType.CONSUMER))).all().get()) listed |= g.groupId().equals("java-848");
            same("listed by its type", true, listed);
            a.deleteConsumerGroups(List.of("java-848")).all().get();
        });
        check("group.protocol=consumer: SubscriptionPattern", () -> {
            create(a, "java-848-re-1", 2);
            try (var x = next("java-848-re")) {
                expect(InvalidRegularExpression.class, () -> {
                    try (var bad = next("java-848-bad")) {
                        bad.subscribe(new SubscriptionPattern("("));
                        await("an error", () -> { bad.poll(moment); return false; });
                    }
                });
                x.subscribe(new SubscriptionPattern("java-848-re-.*"));
                await("2 partitions", () -> { x.poll(moment); return x.assignment().size() == 2; });
                create(a, "java-848-re-2", 3);
                await("5 partitions", () -> { x.poll(moment); return x.assignment().size() == 5; });
            }
        });
        check("group.protocol=consumer: static members", () -> {
            create(a, "java-848-static", 4);
            try (var x = next("java-848-static", "group.instance.id", "x")) {
                x.subscribe(List.of("java-848-static"));
                Set<TopicPartition> had;
                try (var y = next("java-848-static", "group.instance.id", "y")) {
                    y.subscribe(List.of("java-848-static"));
                    await("2 + 2 partitions", () -> { x.poll(moment); y.poll(moment); return x.assignment().size() == 2 && y.assignment().size() == 2; });
                    had = new HashSet<>(y.assignment());
                    try (var z = next("java-848-static", "group.instance.id", "y")) {
                        z.subscribe(List.of("java-848-static"));
                        expect(UnreleasedInstanceIdException.class, () -> await("an error", () -> { z.poll(moment); return false; }));
                    }
                }
                try (var y = next("java-848-static", "group.instance.id", "y")) {
                    y.subscribe(List.of("java-848-static"));
                    await("its 2 partitions", () -> { x.poll(moment); y.poll(moment); return y.assignment().size() == 2; });
                    same("partitions", had, y.assignment());
                    same("the other's partitions", 2, x.assignment().size());
                }
            }
        });
        check("group.protocol=consumer: an admin removes members", () -> {
            String group = "java-848-rm";
            create(a, group, 3);
            // Who was removed is told so by its next heartbeat, loses what it had, and joins again.
            Set<Object> lost = ConcurrentHashMap.newKeySet();
            try (var x = next(group, "group.instance.id", "x"); var y = next(group)) {
                for (var c : List.of(x, y))
                    c.subscribe(List.of(group), new ConsumerRebalanceListener() {
                        public void onPartitionsAssigned(Collection<TopicPartition> ps) { }
                        public void onPartitionsRevoked(Collection<TopicPartition> ps) { }
                        public void onPartitionsLost(Collection<TopicPartition> ps) { lost.add(c); }
                    });
                Callable<Boolean> shared = () -> {
                    for (var c : List.of(x, y))
                        try {
                            c.poll(moment);
                        } catch (UnknownMemberIdException e) { } // it was asking for its offsets when it was removed
                    return x.assignment().size() + y.assignment().size() == 3 && !x.assignment().isEmpty() && !y.assignment().isEmpty();
                };
                await("all partitions", shared);
                a.removeMembersFromConsumerGroup(group, new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("x")))).all().get();
                await("x to hear of it", () -> { shared.call(); return !lost.isEmpty(); });
                same("who was removed", Set.of(x), lost);
                await("all partitions again", shared);
                lost.clear();
                a.removeMembersFromConsumerGroup(group, new RemoveMembersFromConsumerGroupOptions()).all().get();
                await("both to hear of it", () -> { shared.call(); return lost.size() == 2; });
                await("all partitions again", shared);
                var nobody = new MemberToRemove("nobody");
                expect(UnknownMemberIdException.class, () -> a.removeMembersFromConsumerGroup(group, new RemoveMembersFromConsumerGroupOptions(List.of(nobody))).memberResult(nobody).get());
            }
        });
        check("settings of a group", () -> {
            var g = new ConfigResource(ConfigResource.Type.GROUP, "java-848-conf");
            java.util.function.Function<String, Collection<AlterConfigOp>> set =
                v -> List.of(new AlterConfigOp(new ConfigEntry("consumer.heartbeat.interval.ms", v), AlterConfigOp.OpType.SET));
            a.incrementalAlterConfigs(Map.of(g, set.apply("6000"))).all().get();
            await("the setting", () -> a.describeConfigs(List.of(g)).all().get().get(g).get("consumer.heartbeat.interval.ms").value().equals("6000"));
            same("source", ConfigEntry.ConfigSource.DYNAMIC_GROUP_CONFIG, a.describeConfigs(List.of(g)).all().get().get(g).get("consumer.heartbeat.interval.ms").source());
            expect(InvalidConfigurationException.class, () -> a.incrementalAlterConfigs(Map.of(g, set.apply("1"))).all().get());
            same("listed", true, a.listConfigResources(Set.of(ConfigResource.Type.GROUP), new ListConfigResourcesOptions()).all().get().contains(g));
        });
    }

    /** A consumer in a thread of its own, that commits what it has read before it reads on. */
    static class Reader extends Thread {
        final String topic, protocol;
        final Properties props;
        final Set<String> seen;
        volatile Set<TopicPartition> has = Set.of();
        volatile boolean stop;
        volatile Exception died;
        Reader(String topic, String protocol, String instance, boolean cooperative, Set<String> seen) {
            this.topic = topic;
            this.protocol = protocol;
            this.seen = seen;
            props = props("group.id", topic, "group.protocol", protocol, "auto.offset.reset", "earliest", "enable.auto.commit", "false");
            if (instance != null) props.put("group.instance.id", instance);
            if (protocol.equals("classic")) {
                props.put("session.timeout.ms", "10000");
                props.put("heartbeat.interval.ms", "300");
                props.put("partition.assignment.strategy", (cooperative ? CooperativeStickyAssignor.class : RangeAssignor.class).getName());
            }
            start();
        }
        public void run() {
            try (var c = new KafkaConsumer<>(props, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                c.subscribe(List.of(topic));
                while (!stop) {
                    for (var r : c.poll(Duration.ofMillis(100))) seen.add(r.partition() + "/" + r.offset());
                    has = Set.copyOf(c.assignment());
                    try {
                        c.commitSync();
                    } catch (CommitFailedException | RebalanceInProgressException e) { /* another reads them again */ }
                }
            } catch (Exception e) {
                died = e;
            }
        }
        void end() throws Exception {
            stop = true;
            join();
        }
    }

    /** Consumers of the classic protocol are replaced one by one by those of the other, and those by classic ones, while records come. */
    static void moves(Admin a, boolean cooperative) throws Exception {
        String topic = "java-moves-" + (cooperative ? "cooperative" : "eager");
        create(a, topic, 6);
        Set<String> seen = ConcurrentHashMap.newKeySet();
        Set<Reader> all = new LinkedHashSet<>();
        class Steps {
            Reader comes(String protocol, String instance) throws Exception {
                Reader r = new Reader(topic, protocol, instance, cooperative, seen);
                all.add(r);
                return r;
            }
            void goes(Reader r, boolean forGood) throws Exception {
                r.end();
                all.remove(r);
                if (forGood && r.props.containsKey("group.instance.id")) // a static member leaves to come back
                    a.removeMembersFromConsumerGroup(topic, new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove(r.props.getProperty("group.instance.id"))))).all().get();
            }
            void settle(String what, GroupType type) throws Exception {
                await(what, () -> {
                    Thread.sleep(50);
                    Set<TopicPartition> had = new HashSet<>();
                    int n = 0;
                    for (Reader r : all) {
                        if (r.died != null) throw r.died;
                        if (r.has.isEmpty()) return false;
                        n += r.has.size();
                        had.addAll(r.has);
                    }
                    return n == 6 && had.size() == 6;
                });
                same("type with " + what, type, described(a, topic).type());
            }
        }
        Steps s = new Steps();
        List<Future<RecordMetadata>> sent = Collections.synchronizedList(new ArrayList<>());
        var over = new java.util.concurrent.atomic.AtomicBoolean();
        Thread load = new Thread(() -> {
            try (var p = producer()) {
                for (int i = 0; !over.get(); i++) {
                    sent.add(p.send(new ProducerRecord<>(topic, i % 6, null, b("v" + i))));
                    Thread.sleep(2);
                }
            } catch (InterruptedException e) { throw new RuntimeException(e); }
        });
        load.start();
        try {
            Reader x = s.comes("classic", null), y = s.comes("classic", "static");
            s.settle("two of the classic protocol", GroupType.CLASSIC);
            Reader p = s.comes("consumer", null);
            s.settle("two and one", GroupType.CONSUMER);
            s.goes(y, false);
            Reader q = s.comes("consumer", "static");
            s.settle("one and two", GroupType.CONSUMER);
            s.goes(x, true);
            s.settle("two of the consumer protocol", GroupType.CONSUMER);
            x = s.comes("classic", null);
            s.settle("one that comes back", GroupType.CONSUMER);
            s.goes(p, true);
            y = s.comes("classic", null);
            s.settle("two that come back", GroupType.CONSUMER);
            s.goes(q, true);
            s.settle("two of the classic protocol again", GroupType.CLASSIC);
        } finally {
            over.set(true);
            load.join();
            try {
                for (var f : sent) {
                    var m = f.get();
                    String record = m.partition() + "/" + m.offset();
                    await("record " + record, () -> { if (!seen.contains(record)) Thread.sleep(20); return seen.contains(record); });
                }
            } finally {
                for (Reader r : all) r.end();
            }
        }
        for (var e : a.listConsumerGroupOffsets(topic).partitionsToOffsetAndMetadata().get().entrySet())
            same("committed offset of " + e.getKey(), end(a, e.getKey(), IsolationLevel.READ_UNCOMMITTED), e.getValue().offset());
    }

    static KafkaProducer<byte[], byte[]> transactional(String id, Object... kv) {
        List<Object> all = new ArrayList<>(List.of("transactional.id", id));
        all.addAll(List.of(kv));
        return producer(all.toArray());
    }

    /** Everything there is in a partition up to its end, as a consumer of this isolation level sees it. */
    static List<String> values(String topic, int partition, String isolation) throws Exception {
        List<String> out = new ArrayList<>();
        try (var c = consumer("isolation.level", isolation)) {
            TopicPartition tp = new TopicPartition(topic, partition);
            c.assign(List.of(tp));
            c.seekToBeginning(List.of(tp));
            long end = c.endOffsets(List.of(tp)).get(tp);
            await("offset " + end + " of " + tp, () -> {
                c.poll(Duration.ofMillis(100)).forEach(r -> out.add(new String(r.value())));
                return c.position(tp) >= end;
            });
        }
        return out;
    }

    static long end(Admin a, TopicPartition tp, IsolationLevel level) throws Exception {
        return a.listOffsets(Map.of(tp, OffsetSpec.latest()), new ListOffsetsOptions(level)).partitionResult(tp).get().offset();
    }

    static void transactions(Admin a) {
        Duration moment = Duration.ofMillis(100);
        check("transactions: commit, abort, and what is open", () -> {
            String topic = "java-txn";
            TopicPartition tp = new TopicPartition(topic, 0);
            create(a, topic, 2);
            try (var p = transactional("java-txn"); var plain = producer()) {
                p.initTransactions();
                List<String> committed = new ArrayList<>(), everything = new ArrayList<>();
                for (int round = 0; round < 6; round++) {
                    p.beginTransaction();
                    for (int i = 0; i < 20; i++) {
                        String v = round + "/" + i;
                        p.send(new ProducerRecord<>(topic, i % 2, null, b(v)));
                        if (i % 2 == 0) {
                            everything.add(v);
                            if (round % 3 != 1) committed.add(v);
                        }
                    }
                    p.flush(); // an abort drops what is not sent yet
                    if (round % 3 == 1) p.abortTransaction();
                    else p.commitTransaction();
                }
                // The commit has been decided; its markers may still be on their way.
                await("a marker per transaction", () -> end(a, tp, IsolationLevel.READ_COMMITTED) == 66 && end(a, new TopicPartition(topic, 1), IsolationLevel.READ_COMMITTED) == 66);
                same("read_committed", committed, values(topic, 0, "read_committed"));
                same("read_uncommitted", everything, values(topic, 0, "read_uncommitted"));
                same("read_committed, the other partition", committed.size(), values(topic, 1, "read_committed").size());

                // An open transaction holds back what comes after it, whoever sent that.
                long stable = end(a, tp, IsolationLevel.READ_COMMITTED);
                same("a marker per transaction", 66L, stable);
                p.beginTransaction();
                p.send(new ProducerRecord<>(topic, 0, null, b("open"))).get();
                plain.send(new ProducerRecord<>(topic, 0, null, b("plain"))).get();
                same("last stable offset", stable, end(a, tp, IsolationLevel.READ_COMMITTED));
                same("high watermark", stable + 2, end(a, tp, IsolationLevel.READ_UNCOMMITTED));
                same("read_committed, with one open", committed, values(topic, 0, "read_committed"));
                var d = a.describeTransactions(List.of("java-txn")).description("java-txn").get();
                same("state", TransactionState.ONGOING, d.state());
                same("partitions", Set.of(tp), d.topicPartitions());
                boolean listed = false;
                for (var l : a.listTransactions().all().get()) listed |= l.transactionalId().equals("java-txn") && l.state() == TransactionState.ONGOING && l.producerId() == d.producerId();
                same("listed", true, listed);
                boolean active = false;
                for (var s : a.describeProducers(List.of(tp)).partitionResult(tp).get().activeProducers())
                    active |= s.producerId() == d.producerId() && s.currentTransactionStartOffset().equals(OptionalLong.of(stable));
                same("an active producer of the partition", true, active);
                p.abortTransaction();
                committed.add("plain");
                same("read_committed, after its abort", committed, values(topic, 0, "read_committed"));
                p.beginTransaction();
                p.commitTransaction();
                same("after an empty transaction", stable + 3, end(a, tp, IsolationLevel.READ_COMMITTED));
            }
        });
        check("transactions: a second producer fences the first", () -> {
            create(a, "java-txn-fence", 1);
            try (var x = transactional("java-txn-fence"); var y = transactional("java-txn-fence")) {
                x.initTransactions();
                x.beginTransaction();
                x.send(new ProducerRecord<>("java-txn-fence", b("x"))).get();
                y.initTransactions(); // aborts what x had begun
                same("the first's record", List.of(), values("java-txn-fence", 0, "read_committed"));
                y.beginTransaction();
                y.send(new ProducerRecord<>("java-txn-fence", b("y"))).get();
                expect(ProducerFencedException.class, x::commitTransaction);
                y.commitTransaction();
                same("records", List.of("y"), values("java-txn-fence", 0, "read_committed"));
                a.fenceProducers(List.of("java-txn-fence")).all().get();
                y.beginTransaction();
                expect(InvalidProducerEpochException.class, () -> y.send(new ProducerRecord<>("java-txn-fence", b("fenced by an admin"))).get());
                expect(ProducerFencedException.class, y::abortTransaction);
            }
            same("records", List.of("y"), values("java-txn-fence", 0, "read_committed"));
        });
        check("transactions: one that takes too long is aborted", () -> {
            create(a, "java-txn-late", 1);
            try (var p = transactional("java-txn-late", "transaction.timeout.ms", "1000")) {
                p.initTransactions();
                p.beginTransaction();
                p.send(new ProducerRecord<>("java-txn-late", b("late"))).get();
                TopicPartition tp = new TopicPartition("java-txn-late", 0);
                await("the abort", () -> { Thread.sleep(200); return end(a, tp, IsolationLevel.READ_COMMITTED) == 2; });
                expect(KafkaException.class, p::commitTransaction);
            }
            same("records", List.of(), values("java-txn-late", 0, "read_committed"));
            var e = expect(KafkaException.class, () -> {
                try (var p = transactional("java-txn-long", "transaction.timeout.ms", "900001")) { p.initTransactions(); }
            });
            if (!e.getMessage().contains("timeout is larger than the maximum")) throw e;
        });
        for (String protocol : List.of("classic", "consumer"))
            check("transactions: sendOffsetsToTransaction / group.protocol=" + protocol, () -> {
                String name = "java-txn-" + protocol, in = name + "-in", out = name + "-out";
                create(a, in, 2);
                create(a, out, 1);
                try (var p = producer()) {
                    for (int i = 0; i < 200; i++) p.send(new ProducerRecord<>(in, i % 2, null, b("v" + i)));
                }
                Object[] member = {"group.id", name, "group.protocol", protocol, "enable.auto.commit", "false", "isolation.level", "read_committed", "max.poll.records", "30"};
                try (var p = transactional(name)) {
                    p.initTransactions();
                    ConsumerGroupMetadata old = null;
                    int done = 0;
                    // Two lives of the processor. Every other transaction is aborted, and its input read again.
                    for (int life = 0; life < 2; life++) {
                        try (var c = consumer(member)) {
                            c.subscribe(List.of(in));
                            int target = life == 0 ? 60 : 200;
                            for (int txn = 0; done < target; txn++) {
                                List<ConsumerRecord<byte[], byte[]>> got = new ArrayList<>();
                                await("input", () -> { c.poll(moment).forEach(got::add); return !got.isEmpty(); });
                                p.beginTransaction();
                                Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
                                for (var r : got) {
                                    p.send(new ProducerRecord<>(out, r.key(), r.value()));
                                    offsets.put(new TopicPartition(in, r.partition()), new OffsetAndMetadata(r.offset() + 1));
                                }
                                p.sendOffsetsToTransaction(offsets, c.groupMetadata());
                                if (txn % 2 == 0) {
                                    p.abortTransaction();
                                    var committed = c.committed(c.assignment());
                                    for (var tp : c.assignment()) c.seek(tp, committed.get(tp) == null ? 0 : committed.get(tp).offset());
                                } else {
                                    p.commitTransaction();
                                    done += got.size();
                                }
                            }
                            if (life == 0) old = c.groupMetadata();
                            else {
                                // A zombie: its member has left the group.
                                ConsumerGroupMetadata gone = old;
                                p.beginTransaction();
                                p.send(new ProducerRecord<>(out, b("zombie")));
                                expect(CommitFailedException.class, () -> p.sendOffsetsToTransaction(Map.of(new TopicPartition(in, 0), new OffsetAndMetadata(7)), gone));
                                p.abortTransaction();
                                for (var e : c.committed(c.assignment()).entrySet()) same("committed offset of " + e.getKey(), 100L, e.getValue().offset());
                            }
                        }
                    }
                }
                Map<String, Integer> got = new HashMap<>();
                for (String v : values(out, 0, "read_committed")) got.merge(v, 1, Integer::sum);
                same("output", once(0, 200), got);
            });
    }

    /** A key of a coordinator's topic and its newest value as JSON; null: a tombstone. type: the key's version. */
    record Kept(short type, JsonNode key, JsonNode value) { }

    /**
     * Reads a coordinator's topic to its end with the serde of Kafka's coordinator, which fails on a record that it cannot read. What it
     * makes of a record has to be written as the same bytes again, and nothing left unread. Offsets of aborted transactions are among what is returned.
     */
    static Map<String, Kept> replay(String topic, CoordinatorRecordSerde serde, Function<ApiMessage, JsonNode> key, BiFunction<ApiMessage, Short, JsonNode> value) throws Exception {
        Map<String, Kept> newest = new LinkedHashMap<>();
        try (var c = consumer()) {
            List<TopicPartition> parts = c.partitionsFor(topic).stream().map(p -> new TopicPartition(topic, p.partition())).toList();
            c.assign(parts);
            c.seekToBeginning(parts);
            Map<TopicPartition, Long> ends = c.endOffsets(parts);
            await("the end of " + topic, () -> {
                for (var r : c.poll(Duration.ofMillis(200))) {
                    String at = topic + "-" + r.partition() + "@" + r.offset() + " ";
                    ByteBuffer k = ByteBuffer.wrap(r.key()), v = r.value() == null ? null : ByteBuffer.wrap(r.value());
                    CoordinatorRecord read;
                    try {
                        read = serde.deserialize(k, v);
                    } catch (RuntimeException e) {
                        throw new AssertionError(at + e, e);
                    }
                    short type = read.key().apiKey();
                    at += "of type " + type + ": ";
                    same(at + "bytes after the key", 0, k.remaining());
                    same(at + "bytes after the value", 0, v == null ? 0 : v.remaining());
                    same(at + "the key, written again", hex(r.key()), hex(serde.serializeKey(read)));
                    same(at + "the value, written again", hex(r.value()), hex(serde.serializeValue(read)));
                    JsonNode name = key.apply(read.key());
                    newest.put(type + " " + name, new Kept(type, name, read.value() == null ? null : value.apply(read.value().message(), read.value().version())));
                }
                return parts.stream().allMatch(tp -> c.position(tp) >= ends.get(tp));
            });
        }
        return newest;
    }

    static String hex(byte[] b) { return b == null ? null : HexFormat.of().formatHex(b); }

    /** The newest value of the only key of this type that has these names in this order; the others of its fields are not looked at. */
    static JsonNode kept(Map<String, Kept> log, int type, String... names) {
        List<JsonNode> found = new ArrayList<>();
        for (Kept k : log.values()) {
            List<String> of = new ArrayList<>();
            k.key.forEach(n -> of.add(n.asText()));
            if (k.type == type && k.value != null && of.size() >= names.length && of.subList(0, names.length).equals(List.of(names))) found.add(k.value);
        }
        if (found.size() != 1) throw new AssertionError(found.size() + " records of type " + type + " of " + List.of(names) + ": " + found);
        return found.get(0);
    }

    static void field(String what, JsonNode of, String name, Object want) {
        JsonNode n = of.get(name);
        if (n == null) throw new AssertionError(what + ": no " + name + " in " + of);
        same(what + ": " + name + " in " + of, want == null ? null : want.toString(), n.isNull() ? null : n.asText());
    }

    static Set<String> texts(JsonNode list) {
        Set<String> out = new TreeSet<>();
        list.forEach(n -> out.add(n.asText()));
        return out;
    }

    /** Partitions by topic id, as records of the consumer protocol have them. */
    static Set<TopicPartition> partitions(JsonNode list, Map<String, String> names) {
        Set<TopicPartition> out = new HashSet<>();
        for (JsonNode t : list) for (JsonNode p : t.get("partitions")) out.add(new TopicPartition(names.get(t.get("topicId").asText()), p.asInt()));
        return out;
    }

    /** What is in the coordinators' topics, read by Kafka's own classes, against what the groups' members and an admin know. */
    static void state(Admin a) throws Exception {
        Duration moment = Duration.ofMillis(100);
        check("__consumer_offsets as Kafka's own coordinator reads it: every record, groups of both protocols, expressions, offsets", () -> {
            create(a, "java-state", 4);
            create(a, "java-state-2", 2);
            create(a, "java-mixed", 2);
            Map<String, String> names = new HashMap<>();
            for (var t : a.describeTopics(List.of("java-state", "java-state-2", "java-mixed")).allTopicNames().get().values()) names.put(t.topicId().toString(), t.name());
            String classic = "java-state-classic", next = "java-state-848", expression = "java-state.*";
            Reader old = null, other = null;
            try (var c = consumer("group.id", classic, "group.protocol", "classic", "group.instance.id", "static", "client.id", "java-state-client", "enable.auto.commit", "false",
                        "session.timeout.ms", "12000", "max.poll.interval.ms", "123000", "partition.assignment.strategy", RangeAssignor.class.getName());
                    var x = next(next, "group.instance.id", "static", "client.id", "java-state-x", "client.rack", "somewhere", "group.remote.assignor", "range", "max.poll.interval.ms", "234000");
                    var y = next(next, "client.id", "java-state-y")) {
                c.subscribe(List.of("java-state"));
                x.subscribe(List.of("java-state"));
                y.subscribe(new SubscriptionPattern(expression));
                await("the classic member's partitions", () -> { c.poll(moment); return c.assignment().size() == 4; });
                await("the partitions of two members", () -> {
                    x.poll(moment);
                    y.poll(moment);
                    return !x.assignment().isEmpty() && x.assignment().size() + y.assignment().size() == 6 && Collections.disjoint(x.assignment(), y.assignment());
                });
                old = new Reader("java-mixed", "classic", null, false, ConcurrentHashMap.newKeySet());
                Reader before = old;
                await("the partitions of a classic member", () -> { Thread.sleep(20); return before.has.size() == 2; });
                Reader after = other = new Reader("java-mixed", "consumer", null, false, ConcurrentHashMap.newKeySet());
                await("a partition for each of two protocols", () -> { Thread.sleep(20); return before.has.size() == 1 && after.has.size() == 1; });
                c.commitSync(Map.of(new TopicPartition("java-state", 1), new OffsetAndMetadata(0, Optional.of(3), "a note")));
                TopicPartition had = x.assignment().iterator().next();
                x.commitSync(Map.of(had, new OffsetAndMetadata(0, Optional.empty(), "")));

                Map<String, ConsumerGroupDescription> groups = new HashMap<>();
                for (String g : List.of(next, "java-mixed"))
                    await("a stable " + g, () -> {
                        for (var r : List.of(c, x, y)) r.poll(moment);
                        var d = described(a, g);
                        groups.put(g, d);
                        return d.groupState() == GroupState.STABLE && d.members().size() == 2 && d.members().stream().allMatch(m -> m.memberEpoch().equals(d.groupEpoch()));
                    });
                long now = System.currentTimeMillis();
                Map<String, Kept> log = replay("__consumer_offsets", new GroupCoordinatorRecordSerde(),
                    org.apache.kafka.coordinator.group.generated.CoordinatorRecordJsonConverters::writeRecordKeyAsJson,
                    org.apache.kafka.coordinator.group.generated.CoordinatorRecordJsonConverters::writeRecordValueAsJson);

                Set<Short> types = new TreeSet<>();
                for (Kept k : log.values()) {
                    if (k.value != null) types.add(k.type);
                    // An admin has deleted that group.
                    if (k.value != null && k.key.iterator().next().asText().equals("java-848")) throw new AssertionError("left of a deleted group: " + k);
                }
                // Offsets, the classic group; of KIP-848: group, member, target, the member's target, what it has, expression.
                same("the types of records that are not tombstones", new TreeSet<>(List.of((short) 1, (short) 2, (short) 3, (short) 5, (short) 6, (short) 7, (short) 8, (short) 16)), types);

                var member = described(a, classic).members().iterator().next();
                JsonNode g = kept(log, 2, classic), m = g.get("members").get(0);
                field(classic, g, "protocolType", "consumer");
                field(classic, g, "protocol", "range");
                field(classic, g, "leader", member.consumerId());
                field(classic, g, "generation", c.groupMetadata().generationId());
                if (g.get("currentStateTimestamp").asLong() > now || g.get("currentStateTimestamp").asLong() < plan.get("started").asLong()) throw new AssertionError("time of " + g);
                same(classic + ": members", 1, g.get("members").size());
                field(classic, m, "memberId", member.consumerId());
                field(classic, m, "groupInstanceId", "static");
                field(classic, m, "clientId", "java-state-client");
                field(classic, m, "clientHost", member.host());
                field(classic, m, "sessionTimeout", 12000);
                field(classic, m, "rebalanceTimeout", 123000);
                same(classic + ": subscription", List.of("java-state"), ConsumerProtocol.deserializeSubscription(ByteBuffer.wrap(m.get("subscription").binaryValue())).topics());
                same(classic + ": assignment", c.assignment(), new HashSet<>(ConsumerProtocol.deserializeAssignment(ByteBuffer.wrap(m.get("assignment").binaryValue())).partitions()));

                JsonNode o = kept(log, 1, classic, "java-state", "1");
                field("commit", o, "offset", 0);
                field("commit", o, "leaderEpoch", 3);
                field("commit", o, "metadata", "a note");
                if (Math.abs(o.get("commitTimestamp").asLong() - now) > 120_000) throw new AssertionError("time of " + o);
                field("commit without an epoch", kept(log, 1, next, had.topic(), "" + had.partition()), "leaderEpoch", -1);

                for (var d : groups.values()) {
                    String of = d.groupId();
                    field(of, kept(log, 3, of), "epoch", d.groupEpoch().get());
                    field(of, kept(log, 6, of), "assignmentEpoch", d.targetAssignmentEpoch().get());
                    for (var who : d.members()) {
                        String id = who.consumerId();
                        boolean upgraded = who.upgraded().get();
                        JsonNode is = kept(log, 5, of, id), classicPart = is.get("classicMemberMetadata");
                        field(of, is, "instanceId", who.groupInstanceId().orElse(null));
                        field(of, is, "rackId", who.clientId().equals("java-state-x") ? "somewhere" : null);
                        field(of, is, "clientId", who.clientId());
                        field(of, is, "clientHost", who.host());
                        same(of + ": what only a member of the classic protocol has in " + is, !upgraded, classicPart != null && !classicPart.isNull());
                        same(of + ": target of " + id, who.targetAssignment().get().topicPartitions(), partitions(kept(log, 7, of, id).get("topicPartitions"), names));
                        JsonNode has = kept(log, 8, of, id);
                        field(of, has, "memberEpoch", who.memberEpoch().get());
                        field(of, has, "state", 0); // stable
                        same(of + ": partitions of " + id, who.assignment().topicPartitions(), partitions(has.get("assignedPartitions"), names));
                        same(of + ": partitions to give up", 0, has.get("partitionsPendingRevocation").size());
                        if (of.equals("java-mixed")) {
                            same("topics", Set.of("java-mixed"), texts(is.get("subscribedTopicNames")));
                            if (!upgraded) {
                                field(of, classicPart, "sessionTimeoutMs", 10000);
                                JsonNode offers = classicPart.get("supportedProtocols").get(0);
                                field(of, offers, "name", "range");
                                same("topics offered", List.of("java-mixed"), ConsumerProtocol.deserializeSubscription(ByteBuffer.wrap(offers.get("metadata").binaryValue())).topics());
                            }
                            continue;
                        }
                        boolean isX = who.clientId().equals("java-state-x");
                        same(id + "'s topics", isX ? Set.of("java-state") : Set.of(), texts(is.get("subscribedTopicNames")));
                        if (isX) {
                            field(of, is, "serverAssignor", "range");
                            field(of, is, "rebalanceTimeoutMs", 234000);
                        } else {
                            field(of, is, "subscribedTopicRegex", expression);
                        }
                    }
                }
                JsonNode matches = kept(log, 16, next, expression);
                same("topics that match", Set.of("java-state", "java-state-2"), texts(matches.get("topics")));
                if (Math.abs(matches.get("timestamp").asLong() - now) > 120_000) throw new AssertionError("time of " + matches);
            } finally {
                for (Reader r : Arrays.asList(old, other)) if (r != null) r.end();
            }
        });
        check("__transaction_state as Kafka's own coordinator reads it: every record", () -> {
            Map<String, Kept> log = replay("__transaction_state", new TransactionCoordinatorRecordSerde(),
                org.apache.kafka.coordinator.transaction.generated.CoordinatorRecordJsonConverters::writeRecordKeyAsJson,
                org.apache.kafka.coordinator.transaction.generated.CoordinatorRecordJsonConverters::writeRecordValueAsJson);
            var d = a.describeTransactions(List.of("java-txn")).description("java-txn").get();
            JsonNode t = kept(log, 0, "java-txn");
            field("java-txn", t, "producerId", d.producerId());
            field("java-txn", t, "producerEpoch", d.producerEpoch());
            field("java-txn", t, "transactionTimeoutMs", d.transactionTimeoutMs());
        });
    }
}
