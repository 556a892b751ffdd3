package protocol

import (
	"encoding/binary"
	"fmt"
	"math"
)

// FetchEncoder writes Fetch responses (key 1, versions 4 to 18) around record batches that stay where they are. What it
// yields is a list of byte slices for one writev: the frame's own bytes, the skeleton, cut where records go, and between
// the cuts the chunks that the caller has handed in.
//
//	Begin   size, correlation id, throttle time, error, session id, number of topics
//	Topic   name or id, number of partitions
//	Partition  index, error, offsets, aborted transactions, length of records | chunks ... | tagged fields
//	Finish  tagged fields, and the size goes to the front
//
// The numbers of topics and partitions stand before them as varints, so they are given in advance; a response of other
// numbers is the caller's mistake and panics. An encoder is used again for the next response of its connection: after
// Finish the parts are valid until Begin, and Begin must wait until they have been written.
type FetchEncoder struct {
	version    int16
	skeleton   []byte
	cuts       []cut
	chunks     [][]byte
	parts      [][]byte
	bytes      int // of chunks
	topics     int // still to come
	partitions int // still to come in this topic
}

// cut says that chunks up to the n-th (exclusive) belong before skeleton[at:].
type cut struct{ at, n int }

// What an encoder keeps for the next response: more than 1,000 partitions need.
const (
	keepSkeleton = 128 << 10
	keepParts    = 4096
)

const minFetch, maxFetch, fetchFlexible = 4, 18, 12

// FetchPartition is the answer for one partition, but for its records. The zero value is not an empty answer: offsets
// that are not known are -1, as is PreferredReadReplica when there is none; FetchError sets all of them.
type FetchPartition struct {
	Index                int32
	ErrorCode            int16
	HighWatermark        int64
	LastStableOffset     int64
	LogStartOffset       int64                // v5+
	AbortedTransactions  []AbortedTransaction // nil: null, as read_uncommitted has it
	PreferredReadReplica int32                // v11+

	DivergingEpoch *EpochEndOffset // v12+, tag 0: where the fetcher's log parts from ours
	CurrentLeader  *LeaderEpoch    // v12+, tag 1: whom to ask instead
	SnapshotID     *EpochEndOffset // v12+, tag 2
	Tags           []Tag           // v12+: ascending, above 2
}

// FetchError is a partition that has an error instead of records.
func FetchError(index int32, code int16) FetchPartition {
	return FetchPartition{
		Index: index, ErrorCode: code,
		HighWatermark: -1, LastStableOffset: -1, LogStartOffset: -1, PreferredReadReplica: -1,
	}
}

// AbortedTransaction tells a read_committed consumer whose records to drop from where on.
type AbortedTransaction struct {
	ProducerID  int64
	FirstOffset int64
}

// EpochEndOffset is a leader epoch and the offset at which it ends.
type EpochEndOffset struct {
	Epoch     int32
	EndOffset int64
}

// Tag is a tagged field that Kafka does not know; clients skip it.
type Tag struct {
	Number uint32
	Value  []byte
}

// Begin starts the response to the request of that header. Error code and session id are not sent before version 7.
func (e *FetchEncoder) Begin(h RequestHeader, throttleMillis int32, errorCode int16, sessionID int32, topics int) {
	if h.Version < minFetch || h.Version > maxFetch {
		panic(fmt.Sprintf("protocol: fetch response of version %d", h.Version))
	}
	e.Reset()
	e.version, e.topics = h.Version, topics
	b := appendResponseHeader(e.skeleton, h.CorrelationID, e.flexible())
	b = binary.BigEndian.AppendUint32(b, uint32(throttleMillis))
	if e.version >= 7 {
		b = binary.BigEndian.AppendUint16(b, uint16(errorCode))
		b = binary.BigEndian.AppendUint32(b, uint32(sessionID))
	}
	e.skeleton = appendCount(b, e.flexible(), topics)
}

// Reset lets go of the records of the last response, once it has been written. Begin does the same.
func (e *FetchEncoder) Reset() {
	if cap(e.skeleton) > keepSkeleton || cap(e.parts) > keepParts {
		*e = FetchEncoder{}
		return
	}
	clear(e.chunks)
	clear(e.parts)
	*e = FetchEncoder{skeleton: e.skeleton[:0], cuts: e.cuts[:0], chunks: e.chunks[:0], parts: e.parts[:0]}
}

// SetThrottle changes the throttle time of the response, which may depend on its size; before or after Finish.
func (e *FetchEncoder) SetThrottle(millis int32) {
	at := 8
	if e.flexible() {
		at = 9
	}
	binary.BigEndian.PutUint32(e.skeleton[at:], uint32(millis))
}

// Topic starts the next topic: by name up to version 12, by id from 13 on.
func (e *FetchEncoder) Topic(name string, id [16]byte, partitions int) {
	if e.topics == 0 || e.partitions != 0 {
		panic(fmt.Sprintf("protocol: fetch response: topic %q with %d topics and %d partitions to come", name, e.topics, e.partitions))
	}
	b := e.skeleton
	if e.version >= 13 {
		b = append(b, id[:]...)
	} else {
		b = appendString(b, e.flexible(), name)
	}
	b = appendCount(b, e.flexible(), partitions)
	if partitions == 0 && e.flexible() {
		b = append(b, 0)
	}
	e.skeleton = b
	e.topics--
	e.partitions = partitions
}

// Partition adds the next partition of the topic, with its records in any number of chunks, whole batches in order. No
// records are sent as empty, as Kafka does, not as null.
func (e *FetchEncoder) Partition(p *FetchPartition, chunks [][]byte) {
	if e.partitions == 0 {
		panic(fmt.Sprintf("protocol: fetch response: partition %d, and none to come", p.Index))
	}
	e.partitions--
	b := binary.BigEndian.AppendUint32(e.skeleton, uint32(p.Index))
	b = binary.BigEndian.AppendUint16(b, uint16(p.ErrorCode))
	b = binary.BigEndian.AppendUint64(b, uint64(p.HighWatermark))
	b = binary.BigEndian.AppendUint64(b, uint64(p.LastStableOffset))
	if e.version >= 5 {
		b = binary.BigEndian.AppendUint64(b, uint64(p.LogStartOffset))
	}
	if p.AbortedTransactions == nil {
		b = appendCount(b, e.flexible(), -1)
	} else {
		b = appendCount(b, e.flexible(), len(p.AbortedTransactions))
		for _, a := range p.AbortedTransactions {
			b = binary.BigEndian.AppendUint64(b, uint64(a.ProducerID))
			b = binary.BigEndian.AppendUint64(b, uint64(a.FirstOffset))
			if e.flexible() {
				b = append(b, 0)
			}
		}
	}
	if e.version >= 11 {
		b = binary.BigEndian.AppendUint32(b, uint32(p.PreferredReadReplica))
	}

	n := 0
	for _, c := range chunks {
		n += len(c)
		if len(c) > 0 {
			e.chunks = append(e.chunks, c)
		}
	}
	if n > math.MaxInt32 {
		panic(fmt.Sprintf("protocol: fetch response: %d bytes of partition %d", n, p.Index))
	}
	b = appendCount(b, e.flexible(), n) // the length of bytes is written as that of an array
	if n > 0 {
		e.bytes += n
		e.cuts = append(e.cuts, cut{len(b), len(e.chunks)})
	}
	if e.flexible() {
		b = appendPartitionTags(b, p)
		if e.partitions == 0 {
			b = append(b, 0) // the topic's
		}
	}
	e.skeleton = b
}

func appendPartitionTags(b []byte, p *FetchPartition) []byte {
	count := len(p.Tags)
	for _, set := range []bool{p.DivergingEpoch != nil, p.CurrentLeader != nil, p.SnapshotID != nil} {
		if set {
			count++
		}
	}
	b = appendUvarint(b, uint32(count))
	if d := p.DivergingEpoch; d != nil {
		b = append(b, 0, 4+8+1)
		b = binary.BigEndian.AppendUint32(b, uint32(d.Epoch))
		b = binary.BigEndian.AppendUint64(b, uint64(d.EndOffset))
		b = append(b, 0)
	}
	if p.CurrentLeader != nil {
		b = appendCurrentLeader(b, 1, p.CurrentLeader)
	}
	if s := p.SnapshotID; s != nil {
		b = append(b, 2, 8+4+1)
		b = binary.BigEndian.AppendUint64(b, uint64(s.EndOffset))
		b = binary.BigEndian.AppendUint32(b, uint32(s.Epoch))
		b = append(b, 0)
	}
	for _, t := range p.Tags {
		b = appendUvarint(b, t.Number)
		b = appendUvarint(b, uint32(len(t.Value)))
		b = append(b, t.Value...)
	}
	return b
}

// Finish ends the response and returns its parts, fit to be net.Buffers. Endpoints are sent from version 16 on.
func (e *FetchEncoder) Finish(endpoints []NodeEndpoint) [][]byte {
	if e.topics != 0 || e.partitions != 0 {
		panic(fmt.Sprintf("protocol: fetch response with %d topics and %d partitions to come", e.topics, e.partitions))
	}
	b := e.skeleton
	if e.flexible() {
		if e.version < 16 {
			endpoints = nil
		}
		b = appendEndpoints(b, endpoints)
	}
	e.skeleton = b
	if e.Size() > math.MaxInt32 {
		panic(fmt.Sprintf("protocol: fetch response of %d bytes", e.Size()))
	}
	binary.BigEndian.PutUint32(b, uint32(e.Size()-4))

	from, chunk := 0, 0
	for _, c := range e.cuts {
		e.parts = append(e.parts, b[from:c.at:c.at])
		e.parts = append(e.parts, e.chunks[chunk:c.n]...)
		from, chunk = c.at, c.n
	}
	if from < len(b) {
		e.parts = append(e.parts, b[from:])
	}
	return e.parts
}

// Size is the bytes of the frame so far, size field included.
func (e *FetchEncoder) Size() int { return len(e.skeleton) + e.bytes }

func (e *FetchEncoder) flexible() bool { return e.version >= fetchFlexible }
