package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

const testPartitions = 3

var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// base of the timestamps: neither now nor round.
const baseTime = 1_600_000_000_123

// sample is one of each kind of record, in several partitions. A record's
// partition is its timestamp modulo the number of partitions, so that every
// client can be told where it goes.
func sample() []rec {
	kinds := []rec{
		{key: []byte("k"), value: []byte("v")},
		{value: []byte("no key")},
		{key: []byte{}, value: []byte("empty key")},
		{key: []byte("null value")},
		{key: []byte("empty value"), value: []byte{}},
		{key: []byte("headers"), value: []byte("x"), headers: []header{{"a", []byte("1")}, {"b", []byte("2")}, {"a", []byte("again")}}},
		{key: []byte("empty header"), value: []byte("x"), headers: []header{{"", []byte("no name")}, {"e", []byte{}}}},
		{key: []byte("großer Schlüssel ✓"), value: text(1, 3000)},
		{key: []byte("large"), value: text(2, 100_000)},
	}
	var out []rec
	for i := range 4 * len(kinds) {
		r := kinds[i%len(kinds)]
		// Not monotone: a timestamp is the client's affair.
		r.ts = baseTime + int64(i*7%100)
		r.partition = int32(r.ts % testPartitions)
		if len(r.value) > 0 && i%5 == 0 {
			r.value = append(slices.Clone(r.value), strconv.Itoa(i)...)
		}
		out = append(out, r)
	}
	return out
}

// client is one of the client libraries: how it writes records, and how it
// reads a topic of which it is told how many records it has.
type client struct {
	name    string
	produce func(t *testing.T, addr, topic, codec string, rs []rec)
	consume func(t *testing.T, addr, topic string, n int) []rec
	// What the library cannot tell apart or express when it reads.
	blind func(rec) rec
}

// noNulls is for libraries that read a null as an empty value.
func noNulls(r rec) rec {
	if len(r.key) == 0 {
		r.key = nil
	}
	if len(r.value) == 0 {
		r.value = nil
	}
	r.headers = slices.Clone(r.headers)
	for i := range r.headers {
		if len(r.headers[i].value) == 0 {
			r.headers[i].value = nil
		}
	}
	return r
}

var libraries = []client{
	{"franz-go", produceKgo, func(t *testing.T, addr, topic string, n int) []rec { return kgoConsume(t, addr, topic, n) }, nil},
	{"sarama", func(t *testing.T, addr, topic, codec string, rs []rec) {
		produceSarama(t, addr, topic, codec, sarama.V2_1_0_0, rs)
	}, func(t *testing.T, addr, topic string, n int) []rec {
		return consumeSarama(t, addr, topic, sarama.V2_1_0_0, n)
	}, nil},
	{"kafka-go", produceKafkaGo, consumeKafkaGo, noNulls},
	{"kcat", nil, consumeKcat, nil},
}

func kgoCodec(codec string) kgo.Opt {
	return kgo.ProducerBatchCompression(map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}[codec])
}

func produceKgo(t *testing.T, addr, topic, codec string, rs []rec) {
	kgoProduce(t, addr, topic, rs, kgoCodec(codec))
}

func saramaConfig(v sarama.KafkaVersion) *sarama.Config {
	c := sarama.NewConfig()
	c.Version = v
	c.ClientID = "e2e"
	c.Producer.Return.Successes = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Partitioner = sarama.NewManualPartitioner
	// Without it, sarama now and then sends its first batch twice: it closes a
	// connection that it is still opening for another partition.
	c.Producer.Idempotent, c.Net.MaxOpenRequests = true, 1
	c.Consumer.Return.Errors = true
	c.Consumer.MaxWaitTime = 20 * time.Millisecond // closing a consumer waits for its fetch
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	return c
}

func produceSarama(t *testing.T, addr, topic, codec string, v sarama.KafkaVersion, rs []rec) {
	t.Helper()
	c := saramaConfig(v)
	if err := c.Producer.Compression.UnmarshalText([]byte(codec)); err != nil {
		t.Fatal(err)
	}
	p, err := sarama.NewSyncProducer([]string{addr}, c)
	if err != nil {
		t.Fatalf("sarama %v: %v", v, err)
	}
	defer p.Close()
	var ms []*sarama.ProducerMessage
	for _, r := range rs {
		m := &sarama.ProducerMessage{Topic: topic, Partition: r.partition, Timestamp: time.UnixMilli(r.ts)}
		if r.key != nil {
			m.Key = sarama.ByteEncoder(r.key)
		}
		if r.value != nil {
			m.Value = sarama.ByteEncoder(r.value)
		}
		for _, h := range r.headers {
			m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.key), Value: h.value})
		}
		ms = append(ms, m)
	}
	if err := p.SendMessages(ms); err != nil {
		t.Fatalf("sarama %v: produce to %s with %s: %v", v, topic, codec, err)
	}
}

func consumeSarama(t *testing.T, addr, topic string, v sarama.KafkaVersion, n int) []rec {
	t.Helper()
	cl, err := sarama.NewClient([]string{addr}, saramaConfig(v))
	if err != nil {
		t.Fatalf("sarama %v: %v", v, err)
	}
	defer cl.Close()
	c, err := sarama.NewConsumerFromClient(cl)
	if err != nil {
		t.Fatalf("sarama %v: %v", v, err)
	}
	defer c.Close()
	var out []rec
	partitions, err := c.Partitions(topic)
	if err != nil {
		t.Fatalf("sarama %v: %v", v, err)
	}
	for _, p := range partitions {
		end, err := cl.GetOffset(topic, p, sarama.OffsetNewest)
		if err != nil {
			t.Fatalf("sarama %v: %v", v, err)
		}
		pc, err := c.ConsumePartition(topic, p, sarama.OffsetOldest)
		if err != nil {
			t.Fatalf("sarama %v: %v", v, err)
		}
		for next := int64(0); next < end; {
			select {
			case m := <-pc.Messages():
				r := rec{partition: m.Partition, offset: m.Offset, key: m.Key, value: m.Value, ts: m.Timestamp.UnixMilli()}
				for _, h := range m.Headers {
					r.headers = append(r.headers, header{string(h.Key), h.Value})
				}
				out = append(out, r)
				next = m.Offset + 1
			case err := <-pc.Errors():
				t.Fatalf("sarama %v: %v", v, err)
			case <-patience(t).Done():
				t.Fatalf("sarama %v: %d of %d records of %s", v, len(out), n, topic)
			}
		}
		pc.AsyncClose()
	}
	sortRecs(out)
	return out
}

func produceKafkaGo(t *testing.T, addr, topic, codec string, rs []rec) {
	t.Helper()
	// The shared transport remembers for seconds which topics there are.
	tr := &kafka.Transport{}
	defer tr.CloseIdleConnections()
	w := &kafka.Writer{
		Addr: kafka.TCP(addr), Topic: topic, RequiredAcks: kafka.RequireAll, BatchTimeout: 10 * time.Millisecond, Transport: tr,
		Balancer:    kafka.BalancerFunc(func(m kafka.Message, _ ...int) int { return int(m.Time.UnixMilli() % testPartitions) }),
		Compression: map[string]kafka.Compression{"gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd}[codec],
	}
	defer w.Close()
	if err := w.WriteMessages(patience(t), kafkaGoMessages(rs)...); err != nil {
		t.Fatalf("kafka-go: produce to %s with %s: %v", topic, codec, err)
	}
}

func kafkaGoMessages(rs []rec) (out []kafka.Message) {
	for _, r := range rs {
		m := kafka.Message{Key: r.key, Value: r.value, Time: time.UnixMilli(r.ts)}
		for _, h := range r.headers {
			m.Headers = append(m.Headers, kafka.Header{Key: h.key, Value: h.value})
		}
		out = append(out, m)
	}
	return out
}

func fromKafkaGo(m kafka.Message) rec {
	r := rec{partition: int32(m.Partition), offset: m.Offset, key: m.Key, value: m.Value, ts: m.Time.UnixMilli()}
	for _, h := range m.Headers {
		r.headers = append(r.headers, header{h.Key, h.Value})
	}
	return r
}

func consumeKafkaGo(t *testing.T, addr, topic string, n int) []rec {
	t.Helper()
	var out []rec
	for p := range testPartitions {
		conn, err := kafka.DialLeader(patience(t), "tcp", addr, topic, p)
		if err != nil {
			t.Fatal(err)
		}
		_, end, err := conn.ReadOffsets()
		conn.Close()
		if err != nil {
			t.Fatalf("kafka-go: %v", err)
		}
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{addr}, Topic: topic, Partition: p, MaxWait: 50 * time.Millisecond})
		for next := int64(0); next < end; {
			m, err := r.ReadMessage(patience(t))
			if err != nil {
				t.Fatalf("kafka-go: %d of %d records of %s: %v", len(out), n, topic, err)
			}
			out = append(out, fromKafkaGo(m))
			next = m.Offset + 1
		}
		r.Close()
	}
	sortRecs(out)
	return out
}

// needKcat finds kcat. Continuous integration installs it, so there its
// absence is a failure.
func needKcat(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("kcat"); err != nil {
		const how = "kcat is not installed: apt-get install -y kcat (Debian, Ubuntu), brew install kcat (macOS)"
		if os.Getenv("CI") == "true" {
			t.Fatal(how)
		}
		t.Skip(how)
	}
}

func kcat(t *testing.T, stdin string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(patience(t), "kcat", args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader([]byte(stdin)), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("kcat %q: %v\n%s", args, err, errs.Bytes())
	}
	return out.Bytes()
}

type kcatRecord struct {
	Partition int32
	Offset    int64
	TS        int64
	TSType    string
	Key       *string
	Payload   *string
	Headers   []*string
}

func fromKcat(t *testing.T, out []byte) (rs []rec) {
	t.Helper()
	bytesOf := func(s *string) []byte {
		if s == nil {
			return nil
		}
		return []byte(*s)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var k kcatRecord
		if err := dec.Decode(&k); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("kcat: %v", err)
		}
		r := rec{partition: k.Partition, offset: k.Offset, ts: k.TS, key: bytesOf(k.Key), value: bytesOf(k.Payload)}
		for i := 0; i+1 < len(k.Headers); i += 2 {
			r.headers = append(r.headers, header{*k.Headers[i], bytesOf(k.Headers[i+1])})
		}
		rs = append(rs, r)
	}
	sortRecs(rs)
	return rs
}

func consumeKcat(t *testing.T, addr, topic string, _ int) []rec {
	t.Helper()
	return fromKcat(t, kcat(t, "", "-b", addr, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-J", "-X", "fetch.wait.max.ms=20"))
}

// TestClientsReadWhatClientsWrote has every library write with every codec,
// and every library read all of it.
func TestClientsReadWhatClientsWrote(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	want := number(sample())
	for _, w := range libraries[:3] {
		for _, codec := range codecs {
			topic := w.name + "-" + codec
			b.CreateTopic(topic, testPartitions)
			w.produce(t, b.Addr(), topic, codec, sample())
		}
	}
	t.Run("codec is stored", func(t *testing.T) {
		cl := b.Client()
		for _, w := range libraries[:3] {
			for i, codec := range codecs {
				topic := w.name + "-" + codec
				run := rawFetch(t, cl, topic, int32(baseTime%testPartitions), 0, 1)
				if h, err := batch.ParseHeader(run); err != nil || int(h.Codec()) != i {
					t.Errorf("%s: stored with codec %v (%v)", topic, h.Codec(), err)
				}
			}
		}
	})
	for _, r := range libraries {
		t.Run(r.name, func(t *testing.T) {
			if r.name == "kcat" {
				needKcat(t)
			}
			for _, w := range libraries[:3] {
				for _, codec := range codecs {
					topic := w.name + "-" + codec
					exp := want
					got := r.consume(t, b.Addr(), topic, len(want))
					if r.blind != nil {
						exp, got = slices.Clone(exp), slices.Clone(got)
						for i := range exp {
							exp[i] = r.blind(exp[i])
						}
						for i := range got {
							got[i] = r.blind(got[i])
						}
					}
					compare(t, topic+" read by "+r.name, exp, got)
				}
			}
		})
	}
}

// TestKcatProduces: kcat gives all records of a run the same headers and the
// time of day.
func TestKcatProduces(t *testing.T) {
	t.Parallel()
	needKcat(t)
	b := servertest.Start(t, servertest.Options{})
	long := string(text(3, 50_000))
	cl := b.Client()
	for i, codec := range codecs {
		topic := "kcat-" + codec
		b.CreateTopic(topic, testPartitions)
		before := time.Now().UnixMilli()
		kcat(t, "k1:v1\nk2:\nno key\n:empty key\nlong:"+long, "-b", b.Addr(), "-P", "-t", topic, "-p", "0", "-K:", "-X", "compression.codec="+codec, "-X", "linger.ms=50",
			"-H", "h1=1", "-H", "h2=", "-H", "h1=again")
		// -Z makes nulls of what is empty.
		kcat(t, "gone:\n:no key", "-b", b.Addr(), "-P", "-t", topic, "-p", "2", "-K:", "-Z", "-X", "compression.codec="+codec)
		after := time.Now().UnixMilli()
		// librdkafka does not compress for a broker that does not list the oldest versions.
		if h, err := batch.ParseHeader(rawFetch(t, cl, topic, 0, 0, 5)); err != nil || int(h.Codec()) != i {
			t.Errorf("%s: stored with codec %v (%v)", topic, h.Codec(), err)
		}
		h := []header{{"h1", []byte("1")}, {"h2", []byte{}}, {"h1", []byte("again")}}
		want := number([]rec{
			{key: []byte("k1"), value: []byte("v1"), headers: h}, {key: []byte("k2"), value: []byte{}, headers: h}, {value: []byte("no key"), headers: h},
			{key: []byte{}, value: []byte("empty key"), headers: h}, {key: []byte("long"), value: []byte(long), headers: h},
			{partition: 2, key: []byte("gone")}, {partition: 2, value: []byte("no key")},
		})
		for _, r := range libraries {
			got := r.consume(t, b.Addr(), topic, len(want))
			for i := range got {
				if got[i].ts < before || got[i].ts > after {
					t.Errorf("%s: timestamp %d is not between %d and %d", topic, got[i].ts, before, after)
				}
				got[i].ts = 0
				if r.blind != nil {
					got[i] = r.blind(got[i])
				}
			}
			exp := slices.Clone(want)
			for i := range exp {
				if r.blind != nil {
					exp[i] = r.blind(exp[i])
				}
			}
			compare(t, topic+" read by "+r.name, exp, got)
		}
	}
	// kcat's other ways in: metadata, offsets by time, from a time on, the last ones.
	if out := kcat(t, "", "-b", b.Addr(), "-L", "-J", "-t", "kcat-none"); !json.Valid(out) || !bytes.Contains(out, []byte(`"partition":2`)) {
		t.Errorf("kcat -L: %s", out)
	}
	if out := kcat(t, "", "-b", b.Addr(), "-Q", "-t", "kcat-none:0:0"); !bytes.Contains(out, []byte("[0] offset 0")) {
		t.Errorf("kcat -Q: %s", out)
	}
	if got := fromKcat(t, kcat(t, "", "-b", b.Addr(), "-C", "-t", "kcat-none", "-p", "0", "-o", "-2", "-e", "-q", "-J")); len(got) != 2 || got[0].offset != 3 {
		t.Errorf("the last two: %v", got)
	}
	if got := fromKcat(t, kcat(t, "", "-b", b.Addr(), "-C", "-t", "kcat-none", "-o", "s@1", "-e", "-q", "-J")); len(got) != 7 {
		t.Errorf("from a time on: %v", got)
	}
}

// TestSaramaVersions and TestFranzVersions speak as clients of several years.
func TestSaramaVersions(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	for i, v := range []sarama.KafkaVersion{sarama.V0_11_0_0, sarama.V1_0_0_0, sarama.V2_0_0_0, sarama.V2_3_0_0, sarama.V2_8_0_0, sarama.V3_0_0_0, sarama.V3_6_0_0, sarama.V4_0_0_0, sarama.MaxVersion} {
		// Two codecs for each; over the versions, all of them.
		for _, codec := range []string{codecs[i%5], codecs[(i+2)%5]} {
			if codec == "zstd" && !v.IsAtLeast(sarama.V2_1_0_0) {
				continue
			}
			topic := "sarama-" + v.String() + "-" + codec
			b.CreateTopic(topic, testPartitions)
			produceSarama(t, b.Addr(), topic, codec, v, sample())
			want := number(sample())
			compare(t, topic, want, consumeSarama(t, b.Addr(), topic, v, len(want)))
		}
	}
}

func TestFranzVersions(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	for _, v := range []struct {
		name string
		v    *kversion.Versions
	}{
		{"1.0", kversion.V1_0_0()}, {"2.1", kversion.V2_1_0()}, {"2.4", kversion.V2_4_0()}, {"2.8", kversion.V2_8_0()}, {"3.1", kversion.V3_1_0()}, {"3.5", kversion.V3_5_0()},
		{"3.8", kversion.V3_8_0()}, {"4.0", kversion.V4_0_0()}, {"4.2", kversion.V4_2_0()},
	} {
		for _, idempotent := range []bool{true, false} {
			topic := fmt.Sprintf("franz-%s-%v", v.name, idempotent)
			b.CreateTopic(topic, testPartitions)
			opts := []kgo.Opt{kgo.MaxVersions(v.v)}
			if !idempotent {
				opts = append(opts, kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck()))
			}
			codec := "lz4"
			if v.name == "2.1" {
				codec = "zstd"
			}
			kgoProduce(t, b.Addr(), topic, sample(), append(opts, kgoCodec(codec))...)
			want := number(sample())
			compare(t, topic, want, kgoConsume(t, b.Addr(), topic, len(want), kgo.MaxVersions(v.v)))
		}
	}
}

// TestKafkaGoConn uses kafka-go's low-level connection, which speaks the
// oldest versions of all four libraries.
func TestKafkaGoConn(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	conn, err := kafka.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.CreateTopics(kafka.TopicConfig{Topic: "conn", NumPartitions: testPartitions, ReplicationFactor: 1}); err != nil {
		t.Fatal(err)
	}
	if ps, err := conn.ReadPartitions("conn"); err != nil || len(ps) != testPartitions {
		t.Fatalf("partitions: %v %v", ps, err)
	}
	var rs []rec
	for _, r := range sample() {
		if r.partition == 1 {
			rs = append(rs, r)
		}
	}
	leader, err := kafka.DialLeader(t.Context(), "tcp", b.Addr(), "conn", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	for i, c := range []kafka.CompressionCodec{nil, kafka.Gzip.Codec(), kafka.Snappy.Codec(), kafka.Lz4.Codec(), kafka.Zstd.Codec()} {
		if _, err := leader.WriteCompressedMessages(c, kafkaGoMessages(rs)...); err != nil {
			t.Fatalf("codec %d: %v", i, err)
		}
	}
	var all []rec
	for range 5 {
		all = append(all, rs...)
	}
	want := number(all)
	if _, err := leader.Seek(0, kafka.SeekStart); err != nil {
		t.Fatal(err)
	}
	var got []rec
	for len(got) < len(want) {
		bt := leader.ReadBatch(1, 1<<20)
		for {
			m, err := bt.ReadMessage()
			if err != nil {
				break
			}
			got = append(got, fromKafkaGo(m))
		}
		if err := bt.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range want {
		want[i] = noNulls(want[i])
	}
	for i := range got {
		got[i] = noNulls(got[i])
		got[i].partition = 1 // this interface leaves it out
	}
	compare(t, "conn", want, got)
	if first, last, err := leader.ReadOffsets(); err != nil || first != 0 || last != int64(len(want)) {
		t.Errorf("offsets %d to %d: %v", first, last, err)
	}
	if o, err := leader.ReadOffset(time.UnixMilli(baseTime)); err != nil || o != want[0].offset {
		t.Errorf("offset by time: %d %v", o, err)
	}
}

// TestAutoCreatedTopics: a topic is there once somebody produces to it, unless
// that is switched off.
func TestAutoCreatedTopics(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"num.partitions": "3"}})
	kgoProduce(t, b.Addr(), "auto-franz", sample(), kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(-1))
	produceSarama(t, b.Addr(), "auto-sarama", "none", sarama.V2_1_0_0, sample())
	want := number(sample())
	compare(t, "franz-go", want, kgoConsume(t, b.Addr(), "auto-franz", len(want)))
	compare(t, "sarama", want, kgoConsume(t, b.Addr(), "auto-sarama", len(want)))
	w := &kafka.Writer{Addr: kafka.TCP(b.Addr()), Topic: "auto-kafka-go", AllowAutoTopicCreation: true, BatchTimeout: time.Millisecond, RequiredAcks: kafka.RequireAll}
	defer w.Close()
	servertest.Eventually(t, func() error { return w.WriteMessages(patience(t), kafka.Message{Value: []byte("x")}) })
	kgoConsume(t, b.Addr(), "auto-kafka-go", 1)
	if _, err := exec.LookPath("kcat"); err == nil {
		kcat(t, "x\n", "-b", b.Addr(), "-P", "-t", "auto-kcat")
		kgoConsume(t, b.Addr(), "auto-kcat", 1)
	}
}

// TestIdempotentProducers: one producer id per session, duplicates nowhere,
// with several batches in flight.
func TestIdempotentProducers(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("idem", 3)
	const n = 3000
	cl := newKgo(t, b.Addr(), kgo.DefaultProduceTopic("idem"), kgo.ProducerBatchMaxBytes(4096))
	for i := range n {
		cl.Produce(t.Context(), &kgo.Record{Key: []byte(strconv.Itoa(i % 100)), Value: []byte(strconv.Itoa(i))}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := cl.Flush(patience(t)); err != nil {
		t.Fatal(err)
	}
	c := saramaConfig(sarama.V2_8_0_0)
	c.Producer.Partitioner = sarama.NewHashPartitioner
	p, err := sarama.NewSyncProducer([]string{b.Addr()}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var ms []*sarama.ProducerMessage
	for i := range n {
		ms = append(ms, &sarama.ProducerMessage{Topic: "idem", Key: sarama.StringEncoder(strconv.Itoa(i % 100)), Value: sarama.StringEncoder(strconv.Itoa(n + i))})
	}
	if err := p.SendMessages(ms); err != nil {
		t.Fatal(err)
	}
	last := map[string]int{}
	for _, r := range kgoConsume(t, b.Addr(), "idem", 2*n) {
		v, _ := strconv.Atoi(string(r.value))
		k := fmt.Sprintf("%d/%s/%v", r.partition, r.key, v >= n)
		if before, ok := last[k]; ok && v != before+100 {
			t.Fatalf("partition %d: key %s: %d follows %d", r.partition, r.key, v, before)
		}
		last[k] = v
	}
}

// TestLongPolls: a consumer that waits is answered by the record it waits
// for, whichever of its partitions that comes to.
func TestLongPolls(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("poll", 50)
	cl := newKgo(t, b.Addr(), kgo.ConsumeTopics("poll"), kgo.FetchMaxWait(30*time.Second), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	p := newKgo(t, b.Addr(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	ctx := patience(t)
	for i := range 100 {
		want := &kgo.Record{Topic: "poll", Partition: int32(i * 37 % 50), Value: []byte(strconv.Itoa(i))}
		if err := p.ProduceSync(ctx, want).FirstErr(); err != nil {
			t.Fatal(err)
		}
		// Would take fifty minutes if waits were ended by their time only.
		var got []*kgo.Record
		for len(got) == 0 && ctx.Err() == nil {
			got = cl.PollFetches(ctx).Records()
		}
		if len(got) != 1 || string(got[0].Value) != string(want.Value) || got[0].Partition != want.Partition {
			t.Fatalf("round %d: %v", i, got)
		}
	}
	// A fetch that finds nothing comes back empty when its time is over, with
	// a session and without.
	for _, opts := range [][]kgo.Opt{nil, {kgo.DisableFetchSessions()}} {
		ends, err := admin(t, b).ListEndOffsets(ctx, "poll")
		if err != nil || ends.Error() != nil {
			t.Fatal(err, ends.Error())
		}
		// Where the log ends now, however late the client would have looked.
		from := map[int32]kgo.Offset{}
		ends.Each(func(o kadm.ListedOffset) { from[o.Partition] = kgo.NewOffset().At(o.Offset) })
		cl := newKgo(t, b.Addr(), append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"poll": from}), kgo.FetchMaxWait(200*time.Millisecond))...)
		short, cancel := context.WithTimeout(ctx, time.Second)
		if fs := cl.PollFetches(short); fs.NumRecords() != 0 {
			t.Errorf("%d records at the end of the log", fs.NumRecords())
		}
		cancel()
		if err := p.ProduceSync(ctx, &kgo.Record{Topic: "poll", Partition: 7}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if fs := cl.PollFetches(ctx); fs.NumRecords() != 1 {
			t.Errorf("%d records instead of one", fs.NumRecords())
		}
	}
}
