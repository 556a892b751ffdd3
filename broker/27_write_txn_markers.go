package broker

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
)

// WriteTxnMarkers (key 27), versions 1 and 2.
//
// Behavior: each marker becomes a control batch of one record at the leader of
// each partition it names, in Kafka's bytes. It is what ends a transaction there:
// the batches stand, and what the consumer of committed records is shown moves
// on. Coordinators send it, and admin clients that abort a hanging transaction.
//
// Commit point: the marker is below the high watermark of its partition. Until
// then the partition may still lose it, and the coordinator must not forget the
// transaction.
//
// A marker may be written again: where its transaction has ended already, it
// changes nothing. One of an epoch below the producer's, or below its
// coordinator's, is refused: INVALID_PRODUCER_EPOCH,
// TRANSACTION_COORDINATOR_FENCED.
//
// Among brokers, a marker names the leader epoch of the partition that its coordinator knows of. One that was on its
// way to a process that stood still, and has been written by the next leader since, must not end a later
// transaction of the producer when that process goes on and leads again: an epoch of its own has each
// transaction of clients with transaction version 2 alone.
//
// Versions: 2 says the transaction version (KIP-1228), from which on a marker's
// epoch lies above that of the records.

// txnMarker is the end of a transaction, for one partition.
type txnMarker struct {
	producerID         int64
	producerEpoch      int16
	coordinatorEpoch   int32
	commit             bool
	transactionVersion int8
}

// anyTerm is the leader epoch of a marker that names none.
const anyTerm int32 = -1

// markerOf is a marker, and the leader epoch in which alone it may be written.
type markerOf struct {
	txnMarker
	term int32
}

// writeMarker appends a marker at the leader, which has to be this broker, in
// the leader epoch term. done is told once: when the marker is committed on all in-sync replicas, or with
// the error for which it was not appended. Neither the call nor done waits for
// anything.
func (b *Broker) writeMarker(topic string, index, term int32, m txnMarker, done func(code int16)) {
	rep := b.replicas.find(topic, index)
	if rep == nil {
		done(b.missingNamed(topic, index))
		return
	}
	if topic == offsetsTopic {
		b.offsetsMarker(rep, markerOf{m, term}, done)
		return
	}
	// The log may have no room in its queue, and who calls may be the one that
	// makes some.
	go func() {
		ctx, cancel := context.WithTimeout(b.ctx, internalAppendTimeout)
		defer cancel()
		rep.appendMarker(ctx, markerOf{m, term}, wal.ClassInternal, done)
	}()
}

// appendMarker appends a marker. It waits for room in the log, and not for the
// disk; done is told what became of it.
func (r *replica) appendMarker(ctx context.Context, m markerOf, class wal.Class, done func(code int16)) {
	if r.view.Load().Role != partition.Leader {
		done(r.notServing())
		return
	}
	run := batch.Marker(m.producerID, m.producerEpoch, m.commit, m.coordinatorEpoch, time.Now().UnixMilli())
	a := &appendArgs{bytes: run, marker: m.partition(), class: class}
	if m.term != anyTerm {
		a.term = &m.term
	}
	r.appendOwn(ctx, a, func(_ int64, code int16) {
		if code == protocol.CodeFencedLeaderEpoch {
			code = protocol.CodeNotLeaderOrFollower // the coordinator looks who leads, and in which epoch
		}
		done(code)
	})
}

func (m txnMarker) partition() *partition.Marker {
	return &partition.Marker{ProducerID: m.producerID, ProducerEpoch: m.producerEpoch,
		CoordinatorEpoch: m.coordinatorEpoch, TransactionVersion: int16(m.transactionVersion)}
}

// maxMarkers bounds the control batches that one request may have written: an
// entry of four bytes asks for one of eighty.
const maxMarkers = 100_000

// markersTimeout is how long a request waits for its markers to be committed
// (Kafka's request.timeout.ms). They may be all the same.
const markersTimeout = 30 * time.Second

func (b *Broker) writeTxnMarkers(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	ctx, cancel := context.WithTimeout(ctx, markersTimeout)
	defer cancel()
	req := in.(*kmsg.WriteTxnMarkersRequest)
	resp := req.ResponseKind().(*kmsg.WriteTxnMarkersResponse)
	type outcome struct {
		out  *kmsg.WriteTxnMarkersResponseMarkerTopicPartition
		code atomic.Int32
	}
	const waits = 1 << 20 // no error code
	var all []*outcome
	var left atomic.Int64
	left.Store(1)
	done := make(chan struct{})
	settled := func() {
		if left.Add(-1) == 0 {
			close(done)
		}
	}
	// The answer first, whole, so that nothing of it moves any more.
	n := 0
	for i := range req.Markers {
		m := &req.Markers[i]
		om := kmsg.NewWriteTxnMarkersResponseMarker()
		om.ProducerID = m.ProducerID
		for j := range m.Topics {
			m.Topics[j].Partitions = distinct(m.Topics[j].Partitions, func(p int32) any { return p })
			t := kmsg.NewWriteTxnMarkersResponseMarkerTopic()
			t.Topic = m.Topics[j].Topic
			for _, p := range m.Topics[j].Partitions {
				op := kmsg.NewWriteTxnMarkersResponseMarkerTopicPartition()
				op.Partition = p
				t.Partitions = append(t.Partitions, op)
				n++
			}
			om.Topics = append(om.Topics, t)
		}
		resp.Markers = append(resp.Markers, om)
	}
	for i := range req.Markers {
		m := &req.Markers[i]
		marker := txnMarker{producerID: m.ProducerID, producerEpoch: m.ProducerEpoch, coordinatorEpoch: m.CoordinatorEpoch,
			commit: m.Committed, transactionVersion: m.TransactionVersion}
		for j := range m.Topics {
			topic := m.Topics[j].Topic
			var terms []int32
			if r.c != nil && r.c.peer != nil {
				terms = termsOf(&m.Topics[j])
			}
			for k, p := range m.Topics[j].Partitions {
				op := &resp.Markers[i].Topics[j].Partitions[k]
				switch {
				case n > maxMarkers, m.ProducerID < 0, m.ProducerEpoch < 0:
					op.ErrorCode = protocol.CodeInvalidRequest
					continue
				case topic == txnTopic:
					// No transaction has partitions of it.
					op.ErrorCode = protocol.CodeInvalidTopicException
					continue
				}
				o := &outcome{out: op}
				o.code.Store(waits)
				all = append(all, o)
				left.Add(1)
				write := b.writeClientMarker
				if r.c != nil && r.c.peer != nil {
					term := anyTerm
					if k < len(terms) {
						term = terms[k]
					}
					write = func(_ context.Context, topic string, index int32, m txnMarker, done func(int16)) {
						b.writeMarker(topic, index, term, m, done)
					}
				}
				write(ctx, topic, p, marker, func(code int16) {
					o.code.Store(int32(code))
					settled()
				})
			}
		}
	}
	settled()
	select {
	case <-done:
	case <-ctx.Done():
	}
	for _, o := range all {
		if code := o.code.Load(); code == waits {
			o.out.ErrorCode = protocol.CodeRequestTimedOut
		} else {
			o.out.ErrorCode = int16(code)
		}
	}
	return resp
}

// writeClientMarker is writeMarker for a client: what it asks for counts like
// what it produces, and waits for room in the log.
func (b *Broker) writeClientMarker(ctx context.Context, topic string, index int32, m txnMarker, done func(code int16)) {
	rep := b.replicas.find(topic, index)
	if rep == nil || topic == offsetsTopic {
		b.writeMarker(topic, index, anyTerm, m, done)
		return
	}
	rep.appendMarker(ctx, markerOf{m, anyTerm}, wal.ClassClient, done)
}

// termsTag is the tagged field of a marker's topic in which a coordinator names the leader epochs of its partitions,
// 4 bytes for each, in their order.
const termsTag = 0x7661

// termsOf reads that field; without it, it is empty.
func termsOf(t *kmsg.WriteTxnMarkersRequestMarkerTopic) (terms []int32) {
	t.UnknownTags.Each(func(tag uint32, v []byte) {
		if tag == termsTag && len(v) == 4*len(t.Partitions) {
			for ; len(v) > 0; v = v[4:] {
				terms = append(terms, int32(binary.BigEndian.Uint32(v)))
			}
		}
	})
	return terms
}
