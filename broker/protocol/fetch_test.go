package protocol

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// randomFetchResponse is a response of kmsg with everything in it that an encoder can be given.
func randomFetchResponse(version int16, seed uint64) *kmsg.FetchResponse {
	f := newFiller(seed)
	f.unknownTags = false
	f.elements = func(r *rand.Rand) int { return r.IntN(4) }
	r := kmsg.NewPtrFetchResponse()
	f.fill(reflect.ValueOf(r).Elem())
	r.Version = version
	if version < 16 {
		r.Brokers = nil // kmsg sends them from version 12 on, Kafka from 16
	}
	for i := range r.Topics {
		for j := range r.Topics[i].Partitions {
			p := &r.Topics[i].Partitions[j]
			if p.RecordBatches == nil {
				p.RecordBatches = []byte{}
			}
			if f.IntN(2) == 0 {
				p.DivergingEpoch = kmsg.NewFetchResponseTopicPartitionDivergingEpoch()
			}
			if f.IntN(2) == 0 {
				p.CurrentLeader = kmsg.NewFetchResponseTopicPartitionCurrentLeader()
			}
			if f.IntN(2) == 0 {
				p.SnapshotID = kmsg.NewFetchResponseTopicPartitionSnapshotID()
			}
			if f.IntN(3) == 0 {
				p.UnknownTags.Set(1000, f.bytes(200))
				p.UnknownTags.Set(70000, f.bytes(10))
			}
		}
	}
	return r
}

// encodeFetch gives a response of kmsg to an encoder; the records of each partition in up to four chunks.
func encodeFetch(e *FetchEncoder, h RequestHeader, r *kmsg.FetchResponse, rnd *rand.Rand) [][]byte {
	e.Begin(h, r.ThrottleMillis, r.ErrorCode, r.SessionID, len(r.Topics))
	for i := range r.Topics {
		t := &r.Topics[i]
		e.Topic(t.Topic, t.TopicID, len(t.Partitions))
		for j := range t.Partitions {
			p := &t.Partitions[j]
			out := FetchPartition{
				Index: p.Partition, ErrorCode: p.ErrorCode, HighWatermark: p.HighWatermark, LastStableOffset: p.LastStableOffset,
				LogStartOffset: p.LogStartOffset, PreferredReadReplica: p.PreferredReadReplica,
			}
			if p.AbortedTransactions != nil {
				out.AbortedTransactions = []AbortedTransaction{}
			}
			for _, a := range p.AbortedTransactions {
				out.AbortedTransactions = append(out.AbortedTransactions, AbortedTransaction{a.ProducerID, a.FirstOffset})
			}
			if d := p.DivergingEpoch; d.Epoch != -1 || d.EndOffset != -1 {
				out.DivergingEpoch = &EpochEndOffset{d.Epoch, d.EndOffset}
			}
			if l := p.CurrentLeader; l.LeaderID != -1 || l.LeaderEpoch != -1 {
				out.CurrentLeader = &LeaderEpoch{l.LeaderID, l.LeaderEpoch}
			}
			if s := p.SnapshotID; s.Epoch != -1 || s.EndOffset != -1 {
				out.SnapshotID = &EpochEndOffset{s.Epoch, s.EndOffset}
			}
			p.UnknownTags.Each(func(number uint32, value []byte) {
				out.Tags = append(out.Tags, Tag{number, value})
			})
			var chunks [][]byte
			rest := p.RecordBatches
			for len(rest) > 0 && len(chunks) < 3 {
				n := rnd.IntN(len(rest) + 1)
				chunks = append(chunks, rest[:n])
				rest = rest[n:]
			}
			e.Partition(&out, append(chunks, rest))
		}
	}
	var endpoints []NodeEndpoint
	for _, b := range r.Brokers {
		endpoints = append(endpoints, NodeEndpoint{b.NodeID, b.Host, b.Port, b.Rack})
	}
	return e.Finish(endpoints)
}

// One encoder, used again and again, writes what kmsg writes, and no copy of a record is made.
func TestFetchEncodesAsKmsg(t *testing.T) {
	var e FetchEncoder
	for version := int16(minFetch); version <= maxFetch; version++ {
		for round := range uint64(200) {
			seed := uint64(version)<<32 | round
			r := randomFetchResponse(version, seed)
			h := RequestHeader{Key: 1, Version: version, CorrelationID: int32(seed)}
			want := AppendResponse(nil, h, r)
			parts := encodeFetch(&e, h, r, rand.New(rand.NewPCG(seed, 1)))
			got := bytes.Join(parts, nil)
			if !bytes.Equal(got, want) {
				t.Fatalf("version %d round %d:\n%x, want\n%x", version, round, got, want)
			}
			if e.Size() != len(want) {
				t.Fatalf("version %d round %d: size %d, want %d", version, round, e.Size(), len(want))
			}
			e.SetThrottle(77)
			r.ThrottleMillis = 77
			if got := bytes.Join(parts, nil); !bytes.Equal(got, AppendResponse(nil, h, r)) {
				t.Fatalf("version %d round %d: throttled", version, round)
			}
			in := map[*byte]bool{}
			for _, p := range parts {
				if len(p) == 0 {
					t.Fatalf("version %d round %d: an empty part", version, round)
				}
				in[unsafe.SliceData(p)] = true
			}
			for _, topic := range r.Topics {
				for _, p := range topic.Partitions {
					// The first chunk begins where the records do, unless it was empty; the test's chunks then begin there too.
					if len(p.RecordBatches) > 0 && !in[unsafe.SliceData(p.RecordBatches)] {
						t.Fatalf("version %d round %d: records were copied", version, round)
					}
				}
			}
		}
	}
}

func TestFetchError(t *testing.T) {
	var e FetchEncoder
	e.Begin(RequestHeader{Key: 1, Version: 12, CorrelationID: 3}, 0, 0, 0, 1)
	e.Topic("t", [16]byte{}, 1)
	p := FetchError(5, CodeNotLeaderOrFollower)
	e.Partition(&p, nil)
	parts := e.Finish(nil)
	if len(parts) != 1 {
		t.Fatalf("%d parts", len(parts))
	}
	var r kmsg.FetchResponse
	r.Version = 12
	if err := r.ReadFrom(parts[0][9:]); err != nil {
		t.Fatal(err)
	}
	got := r.Topics[0].Partitions[0]
	if got.Partition != 5 || got.ErrorCode != 6 || got.HighWatermark != -1 || got.LastStableOffset != -1 || got.LogStartOffset != -1 ||
		got.PreferredReadReplica != -1 || got.AbortedTransactions != nil || got.RecordBatches == nil || len(got.RecordBatches) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestFetchMiscountsPanic(t *testing.T) {
	for name, f := range map[string]func(e *FetchEncoder){
		"a version below": func(e *FetchEncoder) { e.Begin(RequestHeader{Version: 3}, 0, 0, 0, 0) },
		"a version above": func(e *FetchEncoder) { e.Begin(RequestHeader{Version: 19}, 0, 0, 0, 0) },
		"a topic missing": func(e *FetchEncoder) { e.Finish(nil) },
		"a topic too many": func(e *FetchEncoder) {
			e.Topic("a", [16]byte{}, 0)
			e.Topic("b", [16]byte{}, 0)
		},
		"a partition missing": func(e *FetchEncoder) {
			e.Topic("a", [16]byte{}, 1)
			e.Finish(nil)
		},
		"a partition too many": func(e *FetchEncoder) {
			e.Topic("a", [16]byte{}, 0)
			e.Partition(&FetchPartition{}, nil)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			var e FetchEncoder
			e.Begin(RequestHeader{Key: 1, Version: 12}, 0, 0, 0, 1)
			f(&e)
		}()
	}
}

// An encoder lets go of the records once told, and of what one large response has needed.
func TestFetchReset(t *testing.T) {
	var e FetchEncoder
	encode := func(partitions int) {
		e.Begin(RequestHeader{Key: 1, Version: 12}, 0, 0, 0, 1)
		e.Topic("a", [16]byte{}, partitions)
		for range partitions {
			e.Partition(&FetchPartition{}, [][]byte{{1, 2, 3}})
		}
		e.Finish(nil)
	}
	encode(10)
	e.Reset()
	for _, c := range append(e.chunks[:cap(e.chunks)], e.parts[:cap(e.parts)]...) {
		if c != nil {
			t.Error("a part is kept")
		}
	}
	encode(2 * keepParts)
	e.Reset()
	if cap(e.parts) > keepParts || cap(e.skeleton) > keepSkeleton || cap(e.chunks) > 2*keepParts {
		t.Errorf("%d parts, %d bytes, %d chunks are kept", cap(e.parts), cap(e.skeleton), cap(e.chunks))
	}
}

func BenchmarkFetchEncode(b *testing.B) {
	records := make([]byte, 16<<10)
	for _, c := range []struct {
		name string
		n    int
	}{{"1", 1}, {"100", 100}, {"1000", 1000}} {
		b.Run("varve-"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(c.n * len(records)))
			var e FetchEncoder
			chunks := [][]byte{records}
			h := RequestHeader{Key: 1, Version: 17}
			for b.Loop() {
				e.Begin(h, 0, 0, 0, 1)
				e.Topic("a-topic", [16]byte{1}, c.n)
				p := FetchPartition{HighWatermark: 100, LastStableOffset: 100, PreferredReadReplica: -1}
				for i := range c.n {
					p.Index = int32(i)
					e.Partition(&p, chunks)
				}
				e.Finish(nil)
			}
		})
		b.Run("kmsg-"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(c.n * len(records)))
			h := RequestHeader{Key: 1, Version: 17}
			var dst []byte
			for b.Loop() {
				r := kmsg.NewPtrFetchResponse()
				r.Version = 17
				r.Topics = make([]kmsg.FetchResponseTopic, 1)
				r.Topics[0].Partitions = make([]kmsg.FetchResponseTopicPartition, c.n)
				for i := range r.Topics[0].Partitions {
					p := &r.Topics[0].Partitions[i]
					p.Default()
					p.Partition, p.HighWatermark, p.LastStableOffset, p.RecordBatches = int32(i), 100, 100, records
				}
				dst = AppendResponse(dst[:0], h, r)
			}
		})
	}
}
