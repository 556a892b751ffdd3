package broker

import (
	"sync"
	"sync/atomic"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// heldBack are the batches of one connection that were refused with an error
// after which clients send them again. An idempotent producer has several on
// their way: when the first is refused because the partition has no leader yet,
// and the partition gets one before the second is looked at, the second must wait
// for the first. A partition that knows the producer sees that by the sequence. One
// that does not takes any sequence for the first (the producer may have been
// forgotten), so what was refused before is remembered here.
type heldBack struct {
	n   atomic.Int32 // len(low)
	mu  sync.Mutex
	low map[heldKey]heldBatch
}

type heldKey struct {
	topic      string
	partition  int32
	producerID int64
}

type heldBatch struct {
	epoch    int16
	sequence int32 // the lowest that was refused
}

// maxHeldBack bounds what a connection remembers.
const maxHeldBack = 1000

// refused notes that a batch was not appended, for that reason.
func (k *heldBack) refused(topic string, partition int32, records []byte, code int16) {
	h, err := batch.PeekHeader(records)
	if err != nil || !h.HasProducer() || h.BaseSequence < 0 || !protocol.Retriable(code) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := heldKey{topic, partition, h.ProducerID}
	if old, ok := k.low[at]; ok && old.epoch == h.ProducerEpoch && old.sequence <= h.BaseSequence {
		return
	} else if !ok && len(k.low) >= maxHeldBack {
		return
	}
	if k.low == nil {
		k.low = map[heldKey]heldBatch{}
	}
	k.low[at] = heldBatch{h.ProducerEpoch, h.BaseSequence}
	k.n.Store(int32(len(k.low)))
}

// before says whether a batch with a lower sequence was refused and has not come
// again. A batch that is that one, or of another epoch, ends the wait.
func (k *heldBack) before(topic string, partition int32, h batch.Header) bool {
	if k.n.Load() == 0 || !h.HasProducer() || h.BaseSequence < 0 {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := heldKey{topic, partition, h.ProducerID}
	low, ok := k.low[at]
	if !ok || low.epoch == h.ProducerEpoch && h.BaseSequence > low.sequence {
		return ok
	}
	k.forget(at)
	return false
}

// passed ends the wait of a batch for those before it: the partition knows its
// producer, which has sent them to another leader meanwhile.
func (k *heldBack) passed(topic string, partition int32, h batch.Header) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forget(heldKey{topic, partition, h.ProducerID})
}

// forget is called with mu held.
func (k *heldBack) forget(at heldKey) {
	delete(k.low, at)
	k.n.Store(int32(len(k.low)))
}
