package broker_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

// Places in a record batch.
const (
	atBaseOffset      = 0
	atLength          = 8
	atLeaderEpoch     = 12
	atMagic           = 16
	atCRC             = 17
	atAttributes      = 21
	atLastOffsetDelta = 23
	atBaseTimestamp   = 27
	atMaxTimestamp    = 35
	atProducerID      = 43
	atProducerEpoch   = 51
	atBaseSequence    = 53
	atCount           = 57
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// resum makes the CRC of a bent batch right.
func resum(b []byte) []byte {
	binary.BigEndian.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
	return b
}

// put overwrites a place of a batch and makes its CRC right.
func put(b []byte, at int, v any) []byte {
	b = bytes.Clone(b)
	if _, err := binary.Encode(b[at:], binary.BigEndian, v); err != nil {
		panic(err)
	}
	return resum(b)
}

// around is a batch of count records whose record section is what it is given.
func around(attributes int16, count int32, section []byte) []byte {
	b := plain(1).bytes()[:batch.HeaderSize]
	b = append(b, section...)
	binary.BigEndian.PutUint32(b[atLength:], uint32(len(b)-12))
	binary.BigEndian.PutUint16(b[atAttributes:], uint16(attributes))
	binary.BigEndian.PutUint32(b[atLastOffsetDelta:], uint32(count-1))
	binary.BigEndian.PutUint32(b[atCount:], uint32(count))
	return resum(b)
}

// record is one record of the given fields: ints are varints, the rest is as is.
func record(fields ...any) []byte {
	var b []byte
	for _, f := range fields {
		switch f := f.(type) {
		case int:
			b = binary.AppendVarint(b, int64(f))
		case byte:
			b = append(b, f)
		case string:
			b = append(b, f...)
		case []byte:
			b = append(b, f...)
		}
	}
	return append(binary.AppendVarint(nil, int64(len(b))), b...)
}

func squeeze(codec batch.Codec, b []byte) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	switch codec {
	case batch.Gzip:
		w, _ = gzip.NewWriterLevel(&out, gzip.BestSpeed)
	case batch.LZ4:
		w = lz4.NewWriter(&out)
	case batch.Zstd:
		w, _ = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	case batch.Snappy:
		return snappy.Encode(nil, b)
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func (c *client) latest(topic string, partition int32) int64 {
	c.t.Helper()
	return c.listOffset(topic, partition, -1).Offset
}

func (c *client) listOffset(topic string, partition int32, ts int64) kmsg.ListOffsetsResponseTopicPartition {
	c.t.Helper()
	return c.listOffsetAt(11, topic, partition, ts)
}

func (c *client) listOffsetAt(version int16, topic string, partition int32, ts int64) kmsg.ListOffsetsResponseTopicPartition {
	c.t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(version)
	req.ReplicaID = -1
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = partition, ts, -1
	req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{rp}}}
	return c.do(req).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
}

// stored is what a partition holds, as a consumer gets it.
func (c *client) stored(topic string, partition int32, offset int64) []byte {
	c.t.Helper()
	req := fetchReq(12, topic, fetchPart(partition, offset))
	req.MaxWaitMillis = 0
	p := c.do(req).(*kmsg.FetchResponse).Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		c.t.Fatalf("fetch of %s-%d at %d: %s", topic, partition, offset, protocol.Name(p.ErrorCode))
	}
	return p.RecordBatches
}

func describe(p kmsg.ProduceResponseTopicPartition) string {
	s := protocol.Name(p.ErrorCode)
	if p.ErrorMessage != nil {
		s += ": " + *p.ErrorMessage
	}
	return s
}

// TestBatches: what no producer may send for a partition, by its header (B10).
// A refusal is of the partition, leaves nothing in the log, and the partition
// beside it is served.
func TestBatches(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("batches", 2, "max.message.bytes", "100000")
	ok := plain(3).bytes()
	const (
		corrupt = protocol.CodeCorruptMessage
		invalid = protocol.CodeInvalidRecord
	)
	zstdBatch := func() []byte { s := plain(3); s.Codec = batch.Zstd; return s.bytes() }()
	big := plain(1)
	big.Add(0, nil, make([]byte, 100_000))
	for _, tc := range []struct {
		name    string
		version int16
		send    []byte
		codes   []int16
	}{
		{"bad CRC", 9, func() []byte { b := bytes.Clone(ok); b[len(b)-1] ^= 1; return b }(), []int16{corrupt}},
		{"magic 0", 9, put(ok, atMagic, int8(0)), []int16{invalid}},
		{"magic 1", 9, put(ok, atMagic, int8(1)), []int16{invalid}},
		{"magic 3", 9, put(ok, atMagic, int8(3)), []int16{invalid}},
		{"magic -1", 9, put(ok, atMagic, int8(-1)), []int16{invalid}},
		{"length one short", 9, put(ok, atLength, int32(len(ok)-13)), []int16{corrupt, invalid}},
		{"length one long", 9, put(ok, atLength, int32(len(ok)-11)), []int16{corrupt, invalid}},
		{"length 0", 9, put(ok, atLength, int32(0)), []int16{corrupt, invalid}},
		{"length -1", 9, put(ok, atLength, int32(-1)), []int16{corrupt, invalid}},
		{"length 2^31-1", 9, put(ok, atLength, int32(math.MaxInt32)), []int16{corrupt, invalid}},
		{"length -2^31", 9, put(ok, atLength, int32(math.MinInt32)), []int16{corrupt, invalid}},
		{"last offset delta above count", 9, put(ok, atLastOffsetDelta, int32(3)), []int16{invalid}},
		{"last offset delta below count", 9, put(ok, atLastOffsetDelta, int32(1)), []int16{invalid}},
		{"last offset delta -1", 9, put(ok, atLastOffsetDelta, int32(-1)), []int16{invalid}},
		{"last offset delta 2^31-1", 9, put(ok, atLastOffsetDelta, int32(math.MaxInt32)), []int16{invalid}},
		{"count 0", 9, put(ok, atCount, int32(0)), []int16{invalid}},
		{"count 0 and delta -1", 9, put(put(ok, atCount, int32(0)), atLastOffsetDelta, int32(-1)), []int16{invalid}},
		{"count -1", 9, put(ok, atCount, int32(-1)), []int16{invalid}},
		{"count 2^31-1", 9, put(ok, atCount, int32(math.MaxInt32)), []int16{invalid}},
		{"two batches", 9, append(bytes.Clone(ok), ok...), []int16{invalid}},
		{"a batch and a half", 9, append(bytes.Clone(ok), ok[:30]...), []int16{invalid}},
		{"half a batch", 9, ok[:len(ok)/2], []int16{invalid}},
		{"a header and nothing else", 9, ok[:batch.HeaderSize], []int16{invalid}},
		{"three bytes", 9, ok[:3], []int16{invalid}},
		{"no bytes", 9, []byte{}, []int16{invalid}},
		{"null", 9, nil, []int16{invalid}},
		{"no bytes, v3", 3, []byte{}, []int16{invalid}},
		{"null, v3", 3, nil, []int16{invalid}},
		{"control", 9, put(ok, atAttributes, int16(0x20)), []int16{invalid}},
		{"transaction without a producer", 9, put(ok, atAttributes, int16(0x10)), []int16{invalid}},
		{"delete horizon", 9, put(ok, atAttributes, int16(0x40)), []int16{invalid}},
		{"LogAppendTime", 9, put(ok, atAttributes, int16(8)), []int16{protocol.CodeInvalidTimestamp}},
		{"codec 5", 9, put(ok, atAttributes, int16(5)), []int16{invalid, protocol.CodeUnsupportedCompressionType}},
		{"codec 7", 9, put(ok, atAttributes, int16(7)), []int16{invalid, protocol.CodeUnsupportedCompressionType}},
		{"producer without sequence", 9, put(put(ok, atProducerID, int64(5)), atProducerEpoch, int16(0)), []int16{invalid}},
		{"producer without epoch", 9, put(put(ok, atProducerID, int64(5)), atBaseSequence, int32(0)), []int16{invalid}},
		{"too large", 9, big.bytes(), []int16{protocol.CodeMessageTooLarge}},
		{"zstd in v3", 3, zstdBatch, []int16{protocol.CodeUnsupportedCompressionType}},
		{"zstd in v6", 6, zstdBatch, []int16{protocol.CodeUnsupportedCompressionType}},
	} {
		end := y.latest("batches", 0)
		req := produceReq(tc.version, -1, "batches", 0, tc.send)
		good := kmsg.NewProduceRequestTopicPartition()
		good.Partition, good.Records = 1, ok
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, good)
		resp := y.do(req).(*kmsg.ProduceResponse)
		p := resp.Topics[0].Partitions
		if !slices.Contains(tc.codes, p[0].ErrorCode) || p[0].BaseOffset != -1 {
			t.Errorf("%s: %s, offset %d", tc.name, describe(p[0]), p[0].BaseOffset)
		}
		if p[1].ErrorCode != 0 || p[1].BaseOffset < 0 {
			t.Errorf("%s: the sound partition beside it: %s", tc.name, describe(p[1]))
		}
		if now := y.latest("batches", 0); now != end {
			t.Errorf("%s: the end of the log moved from %d to %d", tc.name, end, now)
		}
	}
	// These look odd and are allowed: offsets and epochs of a client mean nothing.
	for name, send := range map[string][]byte{
		"base offset 2^63-1":  put(ok, atBaseOffset, int64(math.MaxInt64)),
		"base offset -1":      put(ok, atBaseOffset, int64(-1)),
		"leader epoch 2^31-1": put(ok, atLeaderEpoch, int32(math.MaxInt32)),
		"zstd, v7":            zstdBatch,
	} {
		if p := produceTo(y.client, 7, -1, "batches", 0, send); p.ErrorCode != 0 {
			t.Errorf("%s: %s", name, describe(p))
		}
	}
	// What the fetch returns has offsets and epoch of the log.
	next := int64(0)
	for next < y.latest("batches", 0) {
		batch.Walk(y.stored("batches", 0, next), func(h batch.Header, one []byte) error {
			if h.BaseOffset != next || h.LeaderEpoch < 0 || h.LeaderEpoch == math.MaxInt32 || batch.VerifyCRC(one) != nil {
				t.Errorf("batch at %d: %+v", next, h)
			}
			next = h.NextOffset()
			return nil
		})
	}
	y.unharmed("bad batches")
}

// TestProduceRequests: what is wrong with the request around the batches (B14).
func TestProduceRequests(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("p", 2)
	ok := plain(1).bytes()
	for _, acks := range []int16{2, -2, math.MaxInt16, math.MinInt16} {
		for _, version := range []int16{3, 8, 9, 12} {
			if p := produceTo(y.client, version, acks, "p", 0, ok); p.ErrorCode != protocol.CodeInvalidRequiredAcks {
				t.Errorf("acks=%d v%d: %s", acks, version, describe(p))
			}
		}
	}
	if end := y.latest("p", 0); end != 0 {
		t.Errorf("%d records of refused requests were written", end)
	}
	for _, ms := range []int32{0, -1, 1, math.MaxInt32, math.MinInt32} {
		for _, acks := range []int16{1, -1} {
			req := produceReq(9, acks, "p", 0, ok)
			req.TimeoutMillis = ms
			p := y.do(req).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
			if p.ErrorCode != 0 {
				// The timeout is for other replicas, of which there are none.
				t.Errorf("timeout %d, acks=%d: %s", ms, acks, describe(p))
			}
		}
	}
	for topic, code := range map[string]int16{"p": protocol.CodeUnknownTopicOrPartition, "unknown": protocol.CodeUnknownTopicOrPartition} {
		for _, index := range []int32{-1, 2, math.MaxInt32, math.MinInt32} {
			if p := produceTo(y.client, 9, -1, topic, index, ok); p.ErrorCode != code || p.Partition != index {
				t.Errorf("%s-%d: %s", topic, index, describe(p))
			}
		}
	}
	// acks=0 has no answer; an error ends the connection.
	c := dial(t, b)
	f, _ := c.frame(produceReq(9, 0, "p", 1, ok))
	c.send(f)
	if end := c.latest("p", 1); end > 1 {
		t.Errorf("acks=0: end %d", end)
	}
	f, _ = c.frame(produceReq(9, 0, "unknown", 0, ok))
	c.send(f)
	c.ends("acks=0 to an unknown topic")

	// The same partition twice: two answers, and nothing is lost of either.
	end := y.latest("p", 0)
	req := produceReq(9, -1, "p", 0, ok)
	req.Topics[0].Partitions = append(req.Topics[0].Partitions, req.Topics[0].Partitions[0])
	req.Topics[0].Partitions[1].Records = plain(2).bytes()
	req.Topics = append(req.Topics, req.Topics[0])
	resp := y.do(req).(*kmsg.ProduceResponse)
	at := end
	for _, rt := range resp.Topics {
		for i, p := range rt.Partitions {
			if p.ErrorCode != 0 || p.BaseOffset != at {
				t.Errorf("partition named four times, answer %d: %s, offset %d, expected %d", i, describe(p), p.BaseOffset, at)
			}
			at += int64(i) + 1
		}
	}
	if now := y.latest("p", 0); now != at {
		t.Errorf("end of log %d, expected %d", now, at)
	}

	// As many partitions as fit.
	many := kmsg.NewPtrProduceRequest()
	many.Acks, many.TimeoutMillis = -1, 1000
	mt := kmsg.NewProduceRequestTopic()
	mt.Topic = "p"
	for i := range int32(200_000) {
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition = i + 10
		mt.Partitions = append(mt.Partitions, rp)
	}
	many.Topics = append(many.Topics, mt)
	_, live := allocated(func() {
		got := y.do(at9(many)).(*kmsg.ProduceResponse).Topics[0].Partitions
		if len(got) != 200_000 || got[199_999].ErrorCode != protocol.CodeUnknownTopicOrPartition {
			t.Errorf("200,000 partitions: %d answers", len(got))
		}
	})
	if live > 128<<20 {
		t.Errorf("200,000 partitions left %d MiB behind", live>>20)
	}
	// More than a cluster has, of one topic or of two.
	for _, topics := range []int{1, 2} {
		more := kmsg.NewPtrProduceRequest()
		more.Acks, more.TimeoutMillis = -1, 1000
		for range topics {
			mt := kmsg.NewProduceRequestTopic()
			mt.Topic, mt.Partitions = "p", make([]kmsg.ProduceRequestTopicPartition, 200_002/topics)
			more.Topics = append(more.Topics, mt)
		}
		c := dial(t, b)
		f, _ := c.frame(at9(more))
		c.send(f)
		if got, err := c.answer(); err == nil {
			t.Errorf("200,002 partitions of %d topics are answered with %d bytes", topics, len(got))
		}
	}

	// By id.
	md := y.do(&kmsg.MetadataRequest{Version: 12, Topics: []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr("p")}}}).(*kmsg.MetadataResponse)
	mixed := produceReq(13, -1, "", 0, ok)
	mixed.Topics[0].TopicID = md.Topics[0].TopicID
	for _, id := range [][16]byte{{}, {1, 2, 3}} {
		other := kmsg.NewProduceRequestTopic()
		other.TopicID, other.Partitions = id, mixed.Topics[0].Partitions
		mixed.Topics = append(mixed.Topics, other)
	}
	for i, rt := range y.do(mixed).(*kmsg.ProduceResponse).Topics {
		want := []int16{0, protocol.CodeUnknownTopicID, protocol.CodeUnknownTopicID}[i]
		if rt.Partitions[0].ErrorCode != want || rt.TopicID != mixed.Topics[i].TopicID {
			t.Errorf("by id %x: %s", rt.TopicID, describe(rt.Partitions[0]))
		}
	}
	y.unharmed("bad produce requests")
}

func at9(req kmsg.Request) kmsg.Request { return at(9, req) }

// TestSequences: idempotent producers (B15).
func TestSequences(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("s", 1)
	newID := func() int64 {
		resp := y.do(at(4, &kmsg.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1, TransactionTimeoutMillis: 1000})).(*kmsg.InitProducerIDResponse)
		if resp.ErrorCode != 0 || resp.ProducerEpoch != 0 {
			t.Fatalf("InitProducerId: %+v", resp)
		}
		return resp.ProducerID
	}
	idempotent := func(id int64, epoch int16, seq int32, n int) []byte {
		s := plain(n)
		s.ProducerID, s.ProducerEpoch, s.BaseSequence = id, epoch, seq
		return s.bytes()
	}
	send := func(id int64, epoch int16, seq int32, n int) kmsg.ProduceResponseTopicPartition {
		return produceTo(y.client, 9, -1, "s", 0, idempotent(id, epoch, seq, n))
	}
	wants := func(what string, p kmsg.ProduceResponseTopicPartition, code int16, offset int64) {
		t.Helper()
		if p.ErrorCode != code || code == 0 && p.BaseOffset != offset {
			t.Errorf("%s: %s at %d, expected %s at %d", what, describe(p), p.BaseOffset, protocol.Name(code), offset)
		}
	}
	const (
		gap   = protocol.CodeOutOfOrderSequenceNumber
		stale = protocol.CodeInvalidProducerEpoch
	)
	id := newID()
	other := newID()
	if id == other {
		t.Fatal("one id for two producers")
	}
	wants("first", send(id, 0, 0, 2), 0, 0)
	wants("second", send(id, 0, 2, 1), 0, 2)
	wants("a retry of the first", send(id, 0, 0, 2), 0, 0)
	wants("a retry of the second", send(id, 0, 2, 1), 0, 2)
	wants("a retry cut otherwise", send(id, 0, 0, 1), gap, 0)
	wants("a gap", send(id, 0, 4, 1), gap, 0)
	wants("next", send(id, 0, 3, 1), 0, 3)
	for i := range int32(5) {
		wants("more", send(id, 0, 4+i, 1), 0, 4+int64(i))
	}
	wants("a retry of what is not remembered", send(id, 0, 0, 2), gap, 0)
	wants("a retry of the fifth last", send(id, 0, 4, 1), 0, 4)
	wants("another producer", send(other, 0, 0, 1), 0, 9)
	wants("a new epoch not from 0", send(id, 1, 9, 1), gap, 0)
	wants("a new epoch", send(id, 1, 0, 1), 0, 10)
	wants("the old epoch", send(id, 0, 9, 1), stale, 0)
	wants("a foreign id in the middle", send(1<<40, 3, 77, 1), 0, 11)
	wants("and its gap", send(1<<40, 3, 79, 1), gap, 0)
	wants("just below the wrap", send(other, 1, 0, 1), 0, 12)
	wants("up to 2^31-1", send(1<<41, 0, math.MaxInt32-1, 2), 0, 13)
	wants("0 follows", send(1<<41, 0, 0, 1), 0, 15)
	wants("over the wrap", send(1<<42, 0, math.MaxInt32, 3), 0, 16)
	wants("its retry", send(1<<42, 0, math.MaxInt32, 3), 0, 16)
	wants("2 follows", send(1<<42, 0, 2, 1), 0, 19)
	wants("epoch 32767", send(1<<43, math.MaxInt16, 0, 1), 0, 20)

	// Retries while the original is on its way get its offset, and only then.
	id = newID()
	pipelined := id
	var frames []byte
	var ids []int32
	var reqs []kmsg.Request
	for i := range 20 {
		req := produceReq(9, -1, "s", 0, idempotent(id, 0, int32(i/4), 1))
		f, n := y.frame(req)
		frames, ids, reqs = append(frames, f...), append(ids, n), append(reqs, req)
	}
	y.send(frames)
	for i := range 20 {
		got, err := y.answer()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := decode(reqs[i], got, ids[i])
		if err != nil {
			t.Fatal(err)
		}
		wants(fmt.Sprintf("pipelined %d", i), resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0], 0, 21+int64(i/4))
	}
	if end := y.latest("s", 0); end != 26 {
		t.Errorf("end of log %d, expected 26", end)
	}

	// What was refused comes first, though nothing is known of the producer: of batches on their way the first found no
	// partition, and the second would.
	late := func(c *client, id int64, epoch int16, seq int32) kmsg.ProduceResponseTopicPartition {
		return produceTo(c, 9, -1, "late", 0, idempotent(id, epoch, seq, 2))
	}
	id, other = newID(), newID()
	wants("no partition yet", late(y.client, id, 0, 2), protocol.CodeUnknownTopicOrPartition, 0)
	wants("nor for the one before", late(y.client, id, 0, 0), protocol.CodeUnknownTopicOrPartition, 0)
	wants("nor for another", late(y.client, other, 0, 5), protocol.CodeUnknownTopicOrPartition, 0)
	b.CreateTopic("late", 1)
	wants("what follows it", late(y.client, id, 0, 4), gap, 0)
	wants("what was refused second", late(y.client, id, 0, 2), gap, 0)
	wants("what was refused first", late(y.client, id, 0, 0), 0, 0)
	wants("what follows it again", late(y.client, id, 0, 2), 0, 2)
	wants("the other with another epoch", late(y.client, other, 1, 7), 0, 4)
	id = newID()
	wants("not where the partition knows it", produceTo(y.client, 9, -1, "later", 0, idempotent(id, 0, 0, 1)), protocol.CodeUnknownTopicOrPartition, 0)
	b.CreateTopic("later", 1)
	elsewhere := dial(t, b)
	wants("of another connection", produceTo(elsewhere, 9, -1, "later", 0, idempotent(id, 0, 3, 1)), 0, 0)
	wants("then", produceTo(y.client, 9, -1, "later", 0, idempotent(id, 0, 4, 1)), 0, 1)

	// A restart forgets none of it.
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	servertest.Eventually(t, func() error {
		if p := y.listOffset("s", 0, -1); p.ErrorCode != 0 {
			return fmt.Errorf("after the restart: %s", protocol.Name(p.ErrorCode))
		}
		return nil
	})
	id = pipelined
	wants("a retry after the restart", send(id, 0, 4, 1), 0, 25)
	wants("a gap after the restart", send(id, 0, 6, 1), gap, 0)
	wants("next after the restart", send(id, 0, 5, 1), 0, 26)
	y.unharmed("sequences")
}

// TestTimestamps: of records, at their bounds (B16).
func TestTimestamps(t *testing.T) {
	b := startQuiet(t, "log.retention.check.interval.ms", "50")
	y := newBystander(t, b)
	b.CreateTopic("any", 1, "message.timestamp.after.max.ms", "9223372036854775807", "retention.ms", "9223372036854775807", "segment.ms", "1")
	b.CreateTopic("default", 1)
	b.CreateTopic("recent", 1, "message.timestamp.before.max.ms", "3600000")
	b.CreateTopic("appended", 1, "message.timestamp.type", "LogAppendTime")
	one := func(ts ...int64) []byte {
		s := batch.NewBuilder()
		for _, v := range ts {
			s.Add(v, []byte("k"), []byte("v"))
		}
		return sent{s}.bytes()
	}
	now := time.Now().UnixMilli()
	century := now + 100*365*24*3600*1000
	const bad = protocol.CodeInvalidTimestamp
	for _, tc := range []struct {
		name   string
		send   []byte
		topic  string
		code   int16
		errors []int32
	}{
		{"-1", one(-1), "default", 0, nil},
		{"-2", one(-2), "default", 0, nil},
		{"-2^63", one(math.MinInt64), "default", 0, nil},
		{"0", one(0), "default", 0, nil},
		{"2^63-1", one(math.MaxInt64), "default", bad, []int32{0}},
		{"in a century", one(century), "default", bad, []int32{0}},
		{"in 50 minutes", one(now + 3_000_000), "default", 0, nil},
		{"in 70 minutes", one(now, now+4_200_000), "default", bad, []int32{1}},
		{"-1", one(-1), "any", 0, nil},
		{"-2", one(-2), "any", 0, nil},
		{"2^63-1", one(math.MaxInt64), "any", 0, nil},
		{"in a century", one(century), "any", 0, nil},
		{"0", one(now, 0, now, 1), "recent", bad, []int32{1, 3}},
		{"now", one(now), "recent", 0, nil},
		{"2 hours ago", one(now - 7_200_000), "recent", bad, []int32{0}},
		{"-2", one(-2), "recent", bad, []int32{0}},
		{"2^63-1", one(math.MaxInt64), "recent", bad, []int32{0}},
		{"0", one(0), "appended", 0, nil},
		{"2^63-1", one(math.MaxInt64), "appended", 0, nil},
	} {
		p := produceTo(y.client, 9, -1, tc.topic, 0, tc.send)
		if p.ErrorCode != tc.code {
			t.Errorf("%s to topic %s: %s", tc.name, tc.topic, describe(p))
		}
		var at []int32
		for _, e := range p.ErrorRecords {
			at = append(at, e.RelativeOffset)
		}
		if !slices.Equal(at, tc.errors) {
			t.Errorf("%s to topic %s: errors of records %v, expected %v", tc.name, tc.topic, at, tc.errors)
		}
		if (p.LogAppendTime >= now) != (tc.topic == "appended" && tc.code == 0) {
			t.Errorf("%s to topic %s: log append time %d", tc.name, tc.topic, p.LogAppendTime)
		}
	}
	batch.Walk(y.stored("appended", 0, 0), func(h batch.Header, one []byte) error {
		if !h.LogAppendTime() || h.MaxTimestamp < now || h.MaxTimestamp > now+3_600_000 || batch.VerifyCRC(one) != nil {
			t.Errorf("LogAppendTime batch: %+v", h)
		}
		return nil
	})
	for _, topic := range []string{"default", "any", "recent", "appended"} {
		for _, ts := range []int64{-1, -2, -3, 0, 1, now, math.MaxInt64} {
			if p := y.listOffset(topic, 0, ts); p.ErrorCode != 0 {
				t.Errorf("ListOffsets %d of %s: %s", ts, topic, protocol.Name(p.ErrorCode))
			}
		}
	}
	if p := y.listOffset("any", 0, math.MaxInt64); p.Offset != 2 || p.Timestamp != math.MaxInt64 {
		t.Errorf("the record of 2^63-1: %+v", p)
	}
	if p := y.listOffset("any", 0, -3); p.Offset != 2 {
		t.Errorf("the largest timestamp: %+v", p)
	}
	b.Remote("any", false) // no arithmetic of retention or of a roll overflows over these
	if end := y.latest("any", 0); end != 4 {
		t.Errorf("end of log %d", end)
	}
	y.unharmed("timestamps")
}

// bombs are batches whose records are far larger than their bytes, as one
// value of zeros; snappy cannot get small enough.
func bombs(size int) map[string][]byte {
	r := record(byte(0), 0, 0, -1, size, make([]byte, size), 0)
	out := map[string][]byte{}
	for _, codec := range []batch.Codec{batch.Gzip, batch.LZ4, batch.Zstd} {
		out["bomb of "+codec.String()] = around(int16(codec), 1, squeeze(codec, r))
	}
	return out
}

// unsound are batches whose header is right and whose records are not.
func unsound() map[string][]byte {
	good := record(byte(0), 0, 0, 1, "k", 1, "v", 0)
	out := map[string][]byte{
		"snappy with a hostile length":  around(2, 1, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0}),
		"xerial with a hostile chunk":   around(2, 1, append([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x7f\xff\xff\xff"), 0, 0, 0)),
		"xerial with a chunk of -1":     around(2, 1, append([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff"), 0, 0, 0)),
		"xerial with a bomb in a chunk": around(2, 1, append([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x08"), 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0)),
		"fewer records than counted":    around(0, 2, good),
		"more records than counted":     around(0, 1, append(bytes.Clone(good), good...)),
		"a byte after the records":      around(0, 1, append(bytes.Clone(good), 0)),
		"2^31-1 records in a few bytes": around(0, math.MaxInt32, good),
		"no records":                    around(0, 1, nil),
		"record of length 2^31-1":       around(0, 1, append(binary.AppendVarint(nil, math.MaxInt32), good...)),
		"record of length -1":           around(0, 1, append(binary.AppendVarint(nil, -1), good...)),
		"key longer than the batch":     around(0, 1, record(byte(0), 0, 0, 1<<20, "k", 1, "v", 0)),
		"key length -2":                 around(0, 1, record(byte(0), 0, 0, -2, 1, "v", 0)),
		"offset delta beyond int32":     around(0, 1, record(byte(0), 0, math.MaxInt64, 1, "k", 1, "v", 0)),
		"offset deltas that repeat":     around(0, 2, append(bytes.Clone(good), good...)),
		"header key null":               around(0, 1, record(byte(0), 0, 0, 1, "k", 1, "v", 1, -1, -1)),
		"a million headers":             around(0, 1, record(byte(0), 0, 0, 1, "k", 1, "v", 250_000, strings.Repeat("\x00\x01", 250_000))),
		"2^31-1 headers in none":        around(0, 1, record(byte(0), 0, 0, 1, "k", 1, "v", math.MaxInt32)),
		"-1 headers":                    around(0, 1, record(byte(0), 0, 0, 1, "k", 1, "v", -1)),
		"varint without end":            around(0, 1, bytes.Repeat([]byte{0xff}, 50)),
	}
	for codec := batch.Gzip; codec <= batch.Zstd; codec++ {
		s := plain(100)
		s.Codec = codec
		whole := s.bytes()
		cut := around(int16(codec), 100, whole[batch.HeaderSize:len(whole)-10])
		out[codec.String()+" truncated"] = cut
		out[codec.String()+" of nothing"] = around(int16(codec), 1, nil)
		out[codec.String()+" of garbage"] = around(int16(codec), 1, bytes.Repeat([]byte{0xa5}, 100))
		out[codec.String()+" under another name"] = around(int16(codec)%4+1, 100, whole[batch.HeaderSize:])
		out[codec.String()+" and records after the last"] = around(int16(codec), 1, squeeze(codec, append(bytes.Clone(good), good...)))
	}
	return out
}

// countedOut are refused unopened: there are not as many bytes as records.
var countedOut = []string{"2^31-1 records in a few bytes", "fewer records than counted", "no records"}

// TestInflation: batches that show what they are only when they are opened
// (B11, B13). A topic that does not have them opened stores them, and their
// consumers see to it; where they are opened, they are refused, and it costs
// no more than a bound.
func TestInflation(t *testing.T) {
	bad := unsound()
	huge := bombs(100 << 20)
	for _, mode := range []string{"header", "full"} {
		t.Run(mode, func(t *testing.T) {
			b := startQuiet(t, "record.validation", mode)
			y := newBystander(t, b)
			b.CreateTopic("plain", 1)
			b.CreateTopic("compacted", 1, "cleanup.policy", "compact")
			b.CreateTopic("recompressed", 1, "compression.type", "zstd")
			try := func(name string, send []byte) {
				for _, topic := range []string{"plain", "compacted", "recompressed"} {
					if topic == "recompressed" && mode == "header" && send[atAttributes+1]&7 == 4 {
						continue // is of that codec already, and not opened
					}
					p := produceTo(y.client, 9, -1, topic, 0, send)
					stored := topic == "plain" && mode == "header" && !slices.Contains(countedOut, name)
					if stored && p.ErrorCode != 0 || !stored && p.ErrorCode != protocol.CodeInvalidRecord && p.ErrorCode != protocol.CodeCorruptMessage {
						t.Errorf("%s to topic %s: %s", name, topic, describe(p))
					}
				}
			}
			for name, send := range bad {
				if total, _ := allocated(func() { try(name, send) }); total > 64<<20 {
					t.Errorf("%s: %d MiB allocated", name, total>>20)
				}
			}
			for name, send := range huge {
				if len(send) > 1<<20 {
					t.Fatalf("%s has %d bytes", name, len(send))
				}
				if total, _ := allocated(func() { try(name, send) }); total > 512<<20 {
					t.Errorf("%s: %d MiB allocated", name, total>>20)
				}
			}
			// All the same the topics serve what is sound, and lookups by
			// time, which open batches, answer.
			for _, topic := range []string{"plain", "compacted", "recompressed"} {
				p := produceTo(y.client, 9, -1, topic, 0, plain(2).bytes())
				if p.ErrorCode != 0 {
					t.Fatalf("sound batch to %s: %s", topic, describe(p))
				}
				if !bytes.Contains(y.stored(topic, 0, p.BaseOffset), []byte("value 1")) && topic != "recompressed" {
					t.Errorf("topic %s does not return what was written", topic)
				}
				y.listOffset(topic, 0, 1)
				y.listOffset(topic, 0, -3)
			}
			y.unharmed("batches that inflate")
		})
	}
}

// TestLargeWindows: batches in zstd frames of a large window, which kafka-go sends
// as soon as there is more than a block of records, are opened where topics want
// it, and by lookups.
func TestLargeWindows(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	now := time.Now().UnixMilli()
	s := batch.NewBuilder()
	for i := range int64(20_000) {
		s.Add(now+i, []byte("key"), fmt.Appendf(nil, "record %d of a batch that is dense", i))
	}
	whole := sent{s}.bytes()
	section := squeeze(batch.Zstd, whole[batch.HeaderSize:])
	var h zstd.Header
	if err := h.Decode(section); err != nil || h.SingleSegment || h.WindowSize < 8<<20 {
		t.Fatalf("the frame is not as it should be: %+v, %v", h, err)
	}
	send := append(whole[:batch.HeaderSize:batch.HeaderSize], section...)
	binary.BigEndian.PutUint32(send[atLength:], uint32(len(send)-12))
	binary.BigEndian.PutUint16(send[atAttributes:], uint16(batch.Zstd))
	send = resum(send)
	for topic, setting := range map[string][]string{
		"plain": nil, "compacted": {"cleanup.policy", "compact"}, "recompressed": {"compression.type", "gzip"},
		"bounded": {"message.timestamp.before.max.ms", "3600000"}, "remote": {"local.retention.bytes", "1"},
	} {
		b.CreateTopic(topic, 1, setting...)
		if p := produceTo(y.client, 9, -1, topic, 0, bytes.Clone(send)); p.ErrorCode != 0 {
			t.Errorf("topic %s: %s", topic, describe(p))
			continue
		}
		if topic == "remote" {
			servertest.Eventually(t, func() error {
				if p := y.listOffset(topic, 0, -4); p.Offset != 20_000 {
					return fmt.Errorf("the local log begins at %d", p.Offset)
				}
				return nil
			})
		}
		if p := y.listOffset(topic, 0, now+12_345); p.ErrorCode != 0 || p.Offset != 12_345 {
			t.Errorf("topic %s: lookup finds %d, %s", topic, p.Offset, protocol.Name(p.ErrorCode))
		}
		if p := y.listOffset(topic, 0, -3); p.ErrorCode != 0 || p.Offset != 19_999 {
			t.Errorf("topic %s: the largest timestamp is at %d, %s", topic, p.Offset, protocol.Name(p.ErrorCode))
		}
	}
}

// TestLookupsOfBombs: a batch that is stored unopened is opened by a lookup by
// time, which must not hold what it inflates to.
func TestLookupsOfBombs(t *testing.T) {
	const size = 256 << 20
	b := startQuiet(t, "memory.max.bytes", strconv.Itoa(64<<20), "socket.request.max.bytes", "2000000")
	y := newBystander(t, b)
	all := bombs(size)
	var wide bytes.Buffer
	w, err := zstd.NewWriter(&wide, zstd.WithWindowSize(64<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	// In pieces, so that the frame does not say how large its content is.
	r := record(byte(0), 0, 0, -1, size, make([]byte, size), 0)
	for len(r) > 0 {
		n := min(len(r), 1<<20)
		w.Write(r[:n])
		r = r[n:]
	}
	w.Close()
	all["zstd of a large window"] = around(int16(batch.Zstd), 1, wide.Bytes())
	for name, send := range all {
		if len(send) > 1<<20 {
			continue
		}
		topic := strings.ReplaceAll(name, " ", "-")
		b.CreateTopic(topic, 1)
		if p := produceTo(y.client, 9, -1, topic, 0, send); p.ErrorCode != 0 {
			t.Fatalf("%s: %s", name, describe(p))
		}
		for _, ts := range []int64{0, -3} {
			var p kmsg.ListOffsetsResponseTopicPartition
			if total, _ := allocated(func() { p = y.listOffset(topic, 0, ts) }); total > 64<<20 {
				t.Errorf("%s, lookup of %d: %d MiB allocated for offset %d, %s", name, ts, total>>20, p.Offset, protocol.Name(p.ErrorCode))
			}
		}
	}
	y.unharmed("lookups of batches that inflate")
}

// TestKeys: compacted topics take no record without a key, and say which ones
// had none.
func TestKeys(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("compacted", 1, "cleanup.policy", "compact")
	for codec := batch.None; codec <= batch.Zstd; codec++ {
		s := batch.NewBuilder()
		s.Codec = codec
		for i := range 5 {
			key := []byte("key")
			if i%3 == 1 {
				key = nil
			}
			s.Add(time.Now().UnixMilli(), key, []byte("v"))
		}
		for _, version := range []int16{7, 8, 12} {
			p := produceTo(y.client, version, -1, "compacted", 0, sent{s}.bytes())
			var at []int32
			for _, e := range p.ErrorRecords {
				at = append(at, e.RelativeOffset)
			}
			if p.ErrorCode != protocol.CodeInvalidRecord || version >= 8 && !slices.Equal(at, []int32{1, 4}) {
				t.Errorf("%s, v%d: %s, records %v", codec, version, describe(p), at)
			}
		}
		s.Reset()
		s.Add(0, []byte{}, nil) // an empty key is a key
		if p := produceTo(y.client, 9, -1, "compacted", 0, sent{s}.bytes()); p.ErrorCode != 0 {
			t.Errorf("%s with an empty key: %s", codec, describe(p))
		}
	}
	y.unharmed("keys")
}

// TestRecompression: topics that store in a codec of their own.
func TestRecompression(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	for want, name := range []string{"uncompressed", "gzip", "snappy", "lz4", "zstd"} {
		b.CreateTopic(name, 1, "compression.type", name)
		end := int64(0)
		for codec := batch.None; codec <= batch.Zstd; codec++ {
			s := plain(50)
			s.Codec = codec
			if p := produceTo(y.client, 9, -1, name, 0, s.bytes()); p.ErrorCode != 0 || p.BaseOffset != end {
				t.Fatalf("%s to %s: %s", codec, name, describe(p))
			}
			end += 50
		}
		batch.Walk(y.stored(name, 0, 0), func(h batch.Header, one []byte) error {
			if int(h.Codec()) != want || batch.VerifyCRC(one) != nil {
				t.Errorf("topic %s holds a batch of %s", name, h.Codec())
			}
			return nil
		})
		cl := b.Client(kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		for n := 0; n < int(end); {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			fs := cl.PollFetches(ctx)
			cancel()
			if err := fs.Err(); err != nil {
				t.Fatal(err)
			}
			fs.EachRecord(func(r *kgo.Record) {
				if r.Offset != int64(n) || string(r.Value) != fmt.Sprintf("value %d", n%50) {
					t.Errorf("topic %s, offset %d: %d %q", name, n, r.Offset, r.Value)
				}
				n++
			})
		}
		cl.Close()
	}
	// What does not fit once it is opened is refused.
	b.CreateTopic("small", 1, "compression.type", "uncompressed", "max.message.bytes", "5000")
	s := batch.NewBuilder()
	s.Codec = batch.Gzip
	s.Add(time.Now().UnixMilli(), nil, make([]byte, 50_000))
	if p := produceTo(y.client, 9, -1, "small", 0, sent{s}.bytes()); p.ErrorCode != protocol.CodeMessageTooLarge {
		t.Errorf("too large when opened: %s", describe(p))
	}
	// A producer's sequence survives.
	s = batch.NewBuilder()
	s.ProducerID, s.ProducerEpoch, s.BaseSequence = 9000, 0, 0
	s.Add(time.Now().UnixMilli(), nil, []byte("v"))
	first := produceTo(y.client, 9, -1, "gzip", 0, sent{s}.bytes())
	again := produceTo(y.client, 9, -1, "gzip", 0, sent{s}.bytes())
	if first.ErrorCode != 0 || again.ErrorCode != 0 || first.BaseOffset != again.BaseOffset {
		t.Errorf("a retry after recompression: %s at %d, then %s at %d", describe(first), first.BaseOffset, describe(again), again.BaseOffset)
	}
	y.unharmed("recompression")
}
