package protocol

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// compareProduce says where a decoded request differs from kmsg's.
func compareProduce(t *testing.T, got *ProduceRequest, want *kmsg.ProduceRequest) {
	t.Helper()
	if (got.TransactionalID == nil) != (want.TransactionID == nil) || want.TransactionID != nil && string(got.TransactionalID) != *want.TransactionID {
		t.Errorf("transactional id %q", got.TransactionalID)
	}
	if got.Acks != want.Acks || got.TimeoutMillis != want.TimeoutMillis || len(got.Topics) != len(want.Topics) {
		t.Fatalf("got acks %d, timeout %d, %d topics, want %d, %d, %d", got.Acks, got.TimeoutMillis, len(got.Topics), want.Acks, want.TimeoutMillis, len(want.Topics))
	}
	for i, wt := range want.Topics {
		gt := got.Topics[i]
		if string(gt.Name) != wt.Topic || gt.ID != wt.TopicID || len(gt.Partitions) != len(wt.Partitions) {
			t.Fatalf("topic %d: %q %x %d partitions, want %q %x %d", i, gt.Name, gt.ID, len(gt.Partitions), wt.Topic, wt.TopicID, len(wt.Partitions))
		}
		for j, wp := range wt.Partitions {
			gp := gt.Partitions[j]
			if gp.Index != wp.Partition || !bytes.Equal(gp.Records, wp.Records) || (gp.Records == nil) != (wp.Records == nil) {
				t.Errorf("topic %d partition %d: %d %x, want %d %x", i, j, gp.Index, gp.Records, wp.Partition, wp.Records)
			}
		}
	}
}

// One struct, used again and again, decodes what kmsg decodes.
func TestProduceDecodesAsKmsg(t *testing.T) {
	var r ProduceRequest
	for version := int16(minProduce); version <= maxProduce; version++ {
		for round := range uint64(100) {
			f := newFiller(uint64(version)<<32 | round)
			f.elements = func(r *rand.Rand) int { return r.IntN(6) }
			body := f.request(0, version).AppendTo(nil)
			want := kmsg.NewPtrProduceRequest()
			want.Version = version
			if err := want.ReadFrom(body); err != nil {
				t.Fatal(err)
			}
			if err := r.Decode(version, body); err != nil {
				t.Fatalf("version %d: %v", version, err)
			}
			compareProduce(t, &r, want)
			if t.Failed() {
				t.Fatalf("version %d round %d", version, round)
			}
			for n := range body {
				if err := r.Decode(version, body[:n:n]); !errors.Is(err, ErrMalformed) || len(r.Topics) != 0 {
					t.Fatalf("version %d round %d: the first %d of %d bytes: %v", version, round, n, len(body), err)
				}
			}
		}
	}
	for _, v := range []int16{-1, 0, 2, 14} {
		if err := r.Decode(v, nil); !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

// Decode and Check agree on every mutation of a request: what is malformed to one is malformed to the other, for the
// same reason.
func TestProduceDecodeAgreesWithCheck(t *testing.T) {
	agree := func(version int16, body []byte) {
		t.Helper()
		var r ProduceRequest
		var a, b *BodyError
		errors.As(r.Decode(version, body), &a)
		errors.As(Check(0, version, body), &b)
		if (a == nil) != (b == nil) || a != nil && (a.What != b.What || a.Offset != b.Offset) && a.What != badArray && b.What != badArray && a.What != badShort {
			t.Errorf("version %d: Decode says %v, Check says %v\n%x", version, a, b, body)
		}
	}
	for version := int16(minProduce); version <= maxProduce; version++ {
		f := newFiller(uint64(version))
		f.elements = func(r *rand.Rand) int { return 2 }
		body := f.request(0, version).AppendTo(nil)
		for i := range body {
			for _, c := range []byte{0, 1, 2, 0x40, 0x7f, 0x80, 0xfe, 0xff, body[i] + 1, body[i] - 1} {
				b := bytes.Clone(body)
				b[i] = c
				agree(version, b)
			}
			agree(version, append(bytes.Clone(body[:i]), body[i+1:]...))
			agree(version, append(append(bytes.Clone(body[:i]), 0), body[i:]...))
		}
	}
}

func TestProduceDecodeIsBounded(t *testing.T) {
	// Empty names, no partitions, no tags: three bytes that become 64.
	const topics = 1 << 20
	body := append([]byte{0, 0, 1, 0, 0, 0, 0}, appendUvarint(nil, topics+1)...)
	for range topics {
		body = append(body, 1, 1, 0)
	}
	body = append(body, 0)
	var r ProduceRequest
	var err error
	if got := allocated(func() { err = r.Decode(9, body) }); got > 4096 || !errors.Is(err, ErrTooCostly) {
		t.Errorf("%d bytes allocated: %v", got, err)
	}
	// What one large request has needed is not kept for ever.
	if err := r.Decode(9, produceRequest(9, 3*keepPartitions, 1)); err != nil {
		t.Fatal(err)
	}
	r.Reset()
	if cap(r.partitions) > keepPartitions {
		t.Errorf("%d partitions are kept", cap(r.partitions))
	}
}

func TestProduceDecodeDoesNotAllocate(t *testing.T) {
	f := newFiller(5)
	f.noNull = true
	f.elements = func(r *rand.Rand) int { return 5 + r.IntN(20) }
	body := f.request(0, 9).AppendTo(nil)
	var r ProduceRequest
	for range 3 { // until the slices have grown
		if err := r.Decode(9, body); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = r.Decode(9, body) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// One encoder, used again and again, writes what kmsg writes.
func TestProduceEncodesAsKmsg(t *testing.T) {
	var e ProduceEncoder
	for version := int16(minProduce); version <= maxProduce; version++ {
		for round := range uint64(200) {
			f := newFiller(uint64(version)<<32 | round)
			f.unknownTags = false
			r := kmsg.NewPtrProduceResponse()
			f.fill(reflect.ValueOf(r).Elem())
			r.Version = version
			if version < 10 {
				r.Brokers = nil // kmsg sends these from version 9 on, Kafka from 10
			}
			h := RequestHeader{Key: 0, Version: version, CorrelationID: int32(round)}
			e.Begin(h, len(r.Topics))
			for i := range r.Topics {
				topic := &r.Topics[i]
				e.Topic(topic.Topic, topic.TopicID, len(topic.Partitions))
				for j := range topic.Partitions {
					p := &topic.Partitions[j]
					if version < 10 || f.IntN(2) == 0 {
						p.CurrentLeader = kmsg.NewProduceResponseTopicPartitionCurrentLeader()
					}
					out := ProducedPartition{
						Index: p.Partition, ErrorCode: p.ErrorCode, BaseOffset: p.BaseOffset, LogAppendTime: p.LogAppendTime,
						LogStartOffset: p.LogStartOffset, ErrorMessage: p.ErrorMessage,
					}
					for _, re := range p.ErrorRecords {
						out.RecordErrors = append(out.RecordErrors, RecordError{re.RelativeOffset, re.ErrorMessage})
					}
					if l := p.CurrentLeader; l.LeaderID != -1 || l.LeaderEpoch != -1 {
						out.CurrentLeader = &LeaderEpoch{l.LeaderID, l.LeaderEpoch}
					}
					e.Partition(&out)
				}
			}
			var endpoints []NodeEndpoint
			for _, b := range r.Brokers {
				endpoints = append(endpoints, NodeEndpoint{b.NodeID, b.Host, b.Port, b.Rack})
			}
			got, want := e.Finish(r.ThrottleMillis, endpoints), AppendResponse(nil, h, r)
			if !bytes.Equal(got, want) {
				t.Fatalf("version %d round %d:\n%x, want\n%x", version, round, got, want)
			}
		}
	}
}

func TestProduceMiscountsPanic(t *testing.T) {
	for name, f := range map[string]func(e *ProduceEncoder){
		"a version below":      func(e *ProduceEncoder) { e.Begin(RequestHeader{Version: 2}, 0) },
		"a topic missing":      func(e *ProduceEncoder) { e.Finish(0, nil) },
		"a partition missing":  func(e *ProduceEncoder) { e.Topic("", [16]byte{}, 1); e.Finish(0, nil) },
		"a topic too many":     func(e *ProduceEncoder) { e.Topic("", [16]byte{}, 0); e.Topic("", [16]byte{}, 0) },
		"a partition too many": func(e *ProduceEncoder) { e.Topic("", [16]byte{}, 0); e.Partition(&ProducedPartition{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			var e ProduceEncoder
			e.Begin(RequestHeader{Version: 12}, 1)
			f(&e)
		}()
	}
}

func BenchmarkProduceEncode(b *testing.B) {
	h := RequestHeader{Key: 0, Version: 11}
	b.Run("varve-1", func(b *testing.B) {
		b.ReportAllocs()
		var e ProduceEncoder
		for b.Loop() {
			e.Begin(h, 1)
			e.Topic("a-topic", [16]byte{}, 1)
			e.Partition(&ProducedPartition{BaseOffset: 5, LogAppendTime: -1})
			e.Finish(0, nil)
		}
	})
	b.Run("kmsg-1", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			r := kmsg.NewPtrProduceResponse()
			r.Version = 11
			t := kmsg.NewProduceResponseTopic()
			p := kmsg.NewProduceResponseTopicPartition()
			t.Topic, p.BaseOffset = "a-topic", 5
			t.Partitions = append(t.Partitions, p)
			r.Topics = append(r.Topics, t)
			dst = AppendResponse(dst[:0], h, r)
		}
	})
}

func FuzzProduce(f *testing.F) {
	for version := int16(minProduce); version <= maxProduce; version++ {
		f.Add(version, newFiller(uint64(version)).request(0, version).AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, version int16, body []byte) {
		if version < minProduce || version > maxProduce {
			return
		}
		var r ProduceRequest
		err, checked := r.Decode(version, body), Check(0, version, body)
		if errors.Is(err, ErrTooCostly) || errors.Is(checked, ErrTooCostly) {
			return
		}
		if (err == nil) != (checked == nil) {
			t.Fatalf("Decode says %v, Check says %v", err, checked)
		}
		if err != nil {
			return
		}
		want := kmsg.NewPtrProduceRequest()
		want.Version = version
		if err := want.ReadFrom(body); err != nil {
			t.Fatal(err)
		}
		compareProduce(t, &r, want)
	})
}

func BenchmarkProduceDecode(b *testing.B) {
	for _, c := range []struct {
		name string
		n    int
	}{{"1", 1}, {"100", 100}, {"1000", 1000}} {
		body := produceRequest(11, c.n, 1024)
		b.Run("varve-"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			var r ProduceRequest
			for b.Loop() {
				if err := r.Decode(11, body); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("kmsg-"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := kmsg.NewPtrProduceRequest()
				r.Version = 11
				if err := r.ReadFrom(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
