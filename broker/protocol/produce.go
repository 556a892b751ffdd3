package protocol

import (
	"encoding/binary"
	"fmt"
)

// ProduceRequest is a Produce request (key 0) decoded in place: TransactionalID, topic names and records are parts of the
// frame, and topics and partitions lie in slices that the next Decode uses again. A connection owns one, and decodes
// into it without allocating.
//
// The frame must therefore stay unchanged for as long as any of it is in use, and nothing of a request may be used after
// the next Decode into the same struct. Records that go on to the log keep the frame's buffer alive by its reference count,
// not by this struct.
type ProduceRequest struct {
	TransactionalID []byte // nil: null
	Acks            int16
	TimeoutMillis   int32
	Topics          []ProduceTopic

	partitions []ProducePartition
}

// ProduceTopic has a name up to version 12, and an id from version 13 on.
type ProduceTopic struct {
	Name       []byte
	ID         [16]byte
	Partitions []ProducePartition
}

// ProducePartition is the records for one partition, as they came: neither their framing nor their checksums have been
// looked at.
type ProducePartition struct {
	Index   int32
	Records []byte // nil: null
}

// The versions that Decode knows: before 3 records are of a format that Kafka 4 no longer takes.
const (
	minProduce, maxProduce      = 3, 13
	produceFlexible, produceIDs = 9, 13
)

// MaxPartitions bounds the partitions that one request may name: a few bytes name one, and its place in the request and in the answer takes some
// two hundred. A cluster has no more (metadata/controller.DefaultMaxPartitions).
const MaxPartitions = 200_000

// What a ProduceRequest keeps for the next Decode: 128 KB of partitions and 72 KB of topics at most.
const (
	keepPartitions = 4096
	keepTopics     = 1024
)

// How the lengths of a version are written, for walk.
var (
	requiredLength = [2]op{{}, {compact: true}}
	nullableLength = [2]op{{nullable: true}, {compact: true, nullable: true}}
)

// Decode reads a body. It refuses what Check refuses, so a Produce body need not pass Check first; ErrTooCostly is
// returned by its own, smaller, needs of memory. After an error the request is empty.
func (r *ProduceRequest) Decode(version int16, body []byte) error {
	r.Reset()
	if version < minProduce || version > maxProduce {
		return fmt.Errorf("%w: key 0 version %d", ErrUnsupportedVersion, version)
	}
	w := walk{b: body, end: len(body), limit: MaxAlloc(len(body))}
	if !r.decode(&w, version) || !w.atEnd() {
		r.Reset()
		return &BodyError{Key: 0, Version: version, Offset: w.pos, What: w.bad}
	}
	return nil
}

// Reset empties the request and lets go of the frame; the slices are kept for the next Decode.
func (r *ProduceRequest) Reset() {
	if cap(r.partitions) > keepPartitions {
		r.partitions = nil
	}
	if cap(r.Topics) > keepTopics {
		r.Topics = nil
	}
	clear(r.Topics)
	clear(r.partitions)
	*r = ProduceRequest{Topics: r.Topics[:0], partitions: r.partitions[:0]}
}

func (r *ProduceRequest) decode(w *walk, version int16) bool {
	flexible := 0
	if version >= produceFlexible {
		flexible = 1
	}
	required, nullable := &requiredLength[flexible], &nullableLength[flexible]

	n, ok := w.stringLength(nullable)
	if !ok {
		return false
	}
	r.TransactionalID = w.take(n)
	if w.end-w.pos < 6 {
		return w.fail(badShort)
	}
	r.Acks = int16(w.b[w.pos])<<8 | int16(w.b[w.pos+1])
	r.TimeoutMillis = w.int32At(w.pos + 2)
	w.pos += 6

	// The smallest topic is an empty name or an id, no partitions, and no tags; the smallest partition an index and null.
	leastTopic, leastPartition := 2+4, 4+4
	switch {
	case version >= produceIDs:
		leastTopic, leastPartition = 16+1+1, 4+1+1
	case flexible == 1:
		leastTopic, leastPartition = 1+1+1, 4+1+1
	}
	topics, ok := w.count(required, leastTopic, 64)
	if !ok {
		return false
	}
	if cap(r.Topics) < topics {
		r.Topics = make([]ProduceTopic, 0, topics)
	}
	named := 0
	for range topics {
		r.Topics = append(r.Topics, ProduceTopic{})
		t := &r.Topics[len(r.Topics)-1]
		if version >= produceIDs {
			if w.end-w.pos < 16 {
				return w.fail(badShort)
			}
			copy(t.ID[:], w.b[w.pos:])
			w.pos += 16
		} else {
			n, ok := w.stringLength(required)
			if !ok {
				return false
			}
			t.Name = w.take(n)
		}
		partitions, ok := w.count(required, leastPartition, 32)
		if !ok {
			return false
		}
		if named += partitions; named > MaxPartitions {
			return w.fail(badCost)
		}
		// A topic's partitions are one run of r.partitions. When that is full it is replaced, never moved: the runs of the
		// topics before stay where they are.
		if cap(r.partitions)-len(r.partitions) < partitions {
			r.partitions = make([]ProducePartition, 0, max(partitions, min(2*cap(r.partitions), keepPartitions)))
		}
		at := len(r.partitions)
		r.partitions = r.partitions[:at+partitions]
		t.Partitions = r.partitions[at : at+partitions : at+partitions]
		for i := range t.Partitions {
			p := &t.Partitions[i]
			if w.end-w.pos < 4 {
				return w.fail(badShort)
			}
			p.Index = w.int32At(w.pos)
			w.pos += 4
			n, ok := w.length(nullable)
			if !ok {
				return false
			}
			if n > w.end-w.pos {
				return w.fail(badShort)
			}
			p.Records = w.take(n)
			if flexible == 1 && !w.tags(nil) {
				return false
			}
		}
		if flexible == 1 && !w.tags(nil) {
			return false
		}
	}
	return flexible == 0 || w.tags(nil)
}

// take returns the next n bytes, which are known to be there; nil for a length of -1.
func (w *walk) take(n int) []byte {
	if n < 0 {
		return nil
	}
	b := w.b[w.pos : w.pos+n : w.pos+n]
	w.pos += n
	return b
}

func (w *walk) int32At(pos int) int32 {
	b := w.b[pos : pos+4]
	return int32(b[0])<<24 | int32(b[1])<<16 | int32(b[2])<<8 | int32(b[3])
}

// count reads an array's length and charges its elements.
func (w *walk) count(o *op, least, size int) (int, bool) {
	n, ok := w.length(o)
	if !ok || n == 0 {
		return 0, ok
	}
	if n > (w.end-w.pos)/least {
		return 0, w.fail(badArray)
	}
	return n, w.charge(int64(n) * int64(size))
}

// ProduceEncoder writes Produce responses (key 0, versions 3 to 13) into a buffer of its own that the next Begin uses again.
// kmsg spends more on one, by reflection over its tagged fields, than the rest of a small Produce costs.
type ProduceEncoder struct {
	version    int16
	frame      []byte
	topics     int // still to come
	partitions int // still to come in this topic
}

// ProducedPartition is the answer for one partition. The zero value is not an error's: there the offsets and the time are
// -1, as ProduceError sets them.
type ProducedPartition struct {
	Index          int32
	ErrorCode      int16
	BaseOffset     int64
	LogAppendTime  int64         // ms; -1 unless the topic's timestamps are LogAppendTime
	LogStartOffset int64         // v5+
	RecordErrors   []RecordError // v8+
	ErrorMessage   *string       // v8+
	CurrentLeader  *LeaderEpoch  // v10+, tag 0
}

// RecordError says which record of a batch is to blame.
type RecordError struct {
	Index   int32 // in the batch
	Message *string
}

// ProduceError is a partition whose records were refused.
func ProduceError(index int32, code int16) ProducedPartition {
	return ProducedPartition{Index: index, ErrorCode: code, BaseOffset: -1, LogAppendTime: -1, LogStartOffset: -1}
}

// Refuse makes the answer an error's; its message and record errors stay.
func (p *ProducedPartition) Refuse(code int16) {
	p.ErrorCode, p.BaseOffset, p.LogAppendTime, p.LogStartOffset = code, -1, -1, -1
}

// Begin starts the response to the request of that header; what Finish has returned before is overwritten.
func (e *ProduceEncoder) Begin(h RequestHeader, topics int) {
	if h.Version < minProduce || h.Version > maxProduce {
		panic(fmt.Sprintf("protocol: produce response of version %d", h.Version))
	}
	if cap(e.frame) > keepSkeleton {
		e.frame = nil
	}
	*e = ProduceEncoder{version: h.Version, frame: e.frame[:0], topics: topics}
	b := appendResponseHeader(e.frame, h.CorrelationID, e.flexible())
	e.frame = appendCount(b, e.flexible(), topics)
}

// Topic starts the next topic: by name up to version 12, by id from 13 on.
func (e *ProduceEncoder) Topic(name string, id [16]byte, partitions int) {
	if e.topics == 0 || e.partitions != 0 {
		panic(fmt.Sprintf("protocol: produce response: topic %q with %d topics and %d partitions to come", name, e.topics, e.partitions))
	}
	if e.version >= produceIDs {
		e.frame = append(e.frame, id[:]...)
	} else {
		e.frame = appendString(e.frame, e.flexible(), name)
	}
	e.frame = appendCount(e.frame, e.flexible(), partitions)
	if partitions == 0 && e.flexible() {
		e.frame = append(e.frame, 0)
	}
	e.topics--
	e.partitions = partitions
}

// Partition adds the next partition of the topic.
func (e *ProduceEncoder) Partition(p *ProducedPartition) {
	if e.partitions == 0 {
		panic(fmt.Sprintf("protocol: produce response: partition %d, and none to come", p.Index))
	}
	e.partitions--
	b := binary.BigEndian.AppendUint32(e.frame, uint32(p.Index))
	b = binary.BigEndian.AppendUint16(b, uint16(p.ErrorCode))
	b = binary.BigEndian.AppendUint64(b, uint64(p.BaseOffset))
	b = binary.BigEndian.AppendUint64(b, uint64(p.LogAppendTime))
	if e.version >= 5 {
		b = binary.BigEndian.AppendUint64(b, uint64(p.LogStartOffset))
	}
	if e.version >= 8 {
		b = appendCount(b, e.flexible(), len(p.RecordErrors))
		for _, r := range p.RecordErrors {
			b = binary.BigEndian.AppendUint32(b, uint32(r.Index))
			b = appendNullableString(b, e.flexible(), r.Message)
			if e.flexible() {
				b = append(b, 0)
			}
		}
		b = appendNullableString(b, e.flexible(), p.ErrorMessage)
	}
	if e.flexible() {
		if p.CurrentLeader != nil && e.version >= 10 {
			b = appendCurrentLeader(append(b, 1), 0, p.CurrentLeader)
		} else {
			b = append(b, 0)
		}
		if e.partitions == 0 {
			b = append(b, 0) // the topic's
		}
	}
	e.frame = b
}

// Finish ends the response and returns the frame, size included. Endpoints are sent from version 10 on.
func (e *ProduceEncoder) Finish(throttleMillis int32, endpoints []NodeEndpoint) []byte {
	if e.topics != 0 || e.partitions != 0 {
		panic(fmt.Sprintf("protocol: produce response with %d topics and %d partitions to come", e.topics, e.partitions))
	}
	e.frame = binary.BigEndian.AppendUint32(e.frame, uint32(throttleMillis))
	if e.flexible() {
		if e.version < 10 {
			endpoints = nil
		}
		e.frame = appendEndpoints(e.frame, endpoints)
	}
	binary.BigEndian.PutUint32(e.frame, uint32(len(e.frame)-4))
	return e.frame
}

func (e *ProduceEncoder) flexible() bool { return e.version >= produceFlexible }
