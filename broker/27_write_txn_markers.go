package broker

import (
	"context"
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

// writeMarker appends a marker at the leader, which has to be this broker. done
// is told once: when the marker is committed on all in-sync replicas, or with
// the error for which it was not appended. Neither the call nor done waits for
// anything.
func (b *Broker) writeMarker(topic string, index int32, m txnMarker, done func(code int16)) {
	rep := b.replicas.find(topic, index)
	if rep == nil {
		done(b.missingNamed(topic, index))
		return
	}
	if topic == offsetsTopic {
		b.offsetsMarker(rep, m, done)
		return
	}
	// The log may have no room in its queue, and who calls may be the one that
	// makes some.
	go func() {
		ctx, cancel := context.WithTimeout(b.ctx, internalAppendTimeout)
		defer cancel()
		rep.appendMarker(ctx, m, wal.ClassInternal, done)
	}()
}

// appendMarker appends a marker. It waits for room in the log, and not for the
// disk; done is told what became of it.
func (r *replica) appendMarker(ctx context.Context, m txnMarker, class wal.Class, done func(code int16)) {
	if r.view.Load().Role != partition.Leader {
		done(r.notServing())
		return
	}
	run := batch.Marker(m.producerID, m.producerEpoch, m.commit, m.coordinatorEpoch, time.Now().UnixMilli())
	if class == wal.ClassClient {
		if err := r.b.log_.Admit(r.localID()); err != nil {
			code, _ := r.b.appendCode(err)
			done(code)
			return
		}
	}
	r.appendOwn(ctx, &appendArgs{bytes: run, marker: m.partition(), class: class}, func(_ int64, code int16) { done(code) })
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
					write = func(_ context.Context, topic string, index int32, m txnMarker, done func(int16)) {
						b.writeMarker(topic, index, m, done)
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
		b.writeMarker(topic, index, m, done)
		return
	}
	rep.appendMarker(ctx, m, wal.ClassClient, done)
}
