package txn

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Record is a record of __transaction_state. A nil value is a tombstone.
type Record struct {
	Key, Value []byte
}

// ErrUnknownVersion is in the error of a record that a later version of Kafka or Varve wrote. Nothing is known of it; what
// an older record said of the same id still stands.
var ErrUnknownVersion = errors.New("txn: a record of a version that is not known")

const (
	keyVersion      = 0
	maxValueVersion = 1
	flexibleVersion = 1 // of values; from then on they have tags

	// lastEpochTag is the last producer epoch, an int16, -1 if it is not there. Kafka after 4.3 writes it (KAFKA-20357).
	lastEpochTag = 4
)

// valueVersion is the version in which values are written: the one with tags once transaction.version says that every
// broker of the cluster can read them (KIP-915).
func valueVersion(transactionVersion int16) int16 {
	if transactionVersion >= 1 {
		return flexibleVersion
	}
	return 0
}

func recordKey(id string) []byte {
	k := kmsg.TxnMetadataKey{Version: keyVersion, TransactionalID: id}
	return k.AppendTo(make([]byte, 0, 4+len(id)))
}

func tombstone(id string) Record { return Record{Key: recordKey(id)} }

func recordOf(id string, m metadata, transactionVersion int16) Record {
	v := kmsg.NewTxnMetadataValue()
	v.Version = valueVersion(transactionVersion)
	v.ProducerID, v.ProducerEpoch, v.TimeoutMillis = m.producerID, m.epoch, m.timeout
	v.State = kmsg.TransactionState(m.state)
	v.LastUpdateTimestamp, v.StartTimestamp = m.updated, m.started
	v.PreviousProducerID, v.NextProducerID, v.ClientTransactionVersion = m.previousID, m.nextID, m.version
	if m.last != -1 {
		v.UnknownTags.Set(lastEpochTag, binary.BigEndian.AppendUint16(nil, uint16(m.last)))
	}
	if m.state != Empty {
		v.Topics = make([]kmsg.TxnMetadataValueTopic, 0, len(m.topics)) // null says Empty
		for _, t := range m.topics {
			v.Topics = append(v.Topics, kmsg.TxnMetadataValueTopic{Topic: t.Topic, Partitions: t.Partitions})
		}
	}
	return Record{Key: recordKey(id), Value: v.AppendTo(make([]byte, 0, 96+sizeOf(m.topics)))}
}

// decode reads a record. It keeps nothing of its bytes.
func decode(r Record) (id string, m *metadata, err error) {
	if len(r.Key) < 2 {
		return "", nil, fmt.Errorf("txn: record key of %d bytes", len(r.Key))
	}
	if v := int16(binary.BigEndian.Uint16(r.Key)); v != keyVersion {
		return "", nil, fmt.Errorf("%w: key version %d", ErrUnknownVersion, v)
	}
	var k kmsg.TxnMetadataKey
	if err := k.ReadFrom(r.Key); err != nil {
		return "", nil, fmt.Errorf("txn: record key: %w", err)
	}
	id = k.TransactionalID
	switch {
	case r.Value == nil:
		return id, nil, nil
	case len(r.Value) < 2:
		return id, nil, fmt.Errorf("txn: value of %q: %d bytes", id, len(r.Value))
	}
	if v := int16(binary.BigEndian.Uint16(r.Value)); v < 0 || v > maxValueVersion {
		return id, nil, fmt.Errorf("%w: value version %d of %q", ErrUnknownVersion, v, id)
	}
	if !plausible(r.Value) {
		return id, nil, fmt.Errorf("txn: value of %q: more topics than its %d bytes hold", id, len(r.Value))
	}
	var v kmsg.TxnMetadataValue
	if err := v.ReadFrom(r.Value); err != nil {
		return id, nil, fmt.Errorf("txn: value of %q: %w", id, err)
	}
	m = &metadata{producerID: v.ProducerID, previousID: v.PreviousProducerID, nextID: v.NextProducerID, epoch: v.ProducerEpoch,
		timeout: v.TimeoutMillis, state: State(v.State), updated: v.LastUpdateTimestamp, started: v.StartTimestamp,
		version: v.ClientTransactionVersion}
	switch {
	case m.state < Empty || m.state > CompleteAbort:
		return id, nil, fmt.Errorf("txn: value of %q: state %d", id, m.state)
	case m.producerID < 0 || m.epoch < 0 || m.version < 0:
		return id, nil, fmt.Errorf("txn: value of %q: producer id %d, epoch %d, transaction version %d", id, m.producerID, m.epoch, m.version)
	}
	if m.state != Empty {
		var ts []Topic
		for _, t := range v.Topics {
			ts = append(ts, Topic{t.Topic, t.Partitions})
		}
		m.topics = union(nil, ts)
	}
	m.last = m.endedFrom() // all that records of old tell
	v.UnknownTags.Each(func(tag uint32, b []byte) {
		if tag == lastEpochTag && len(b) == 2 {
			m.last = int16(binary.BigEndian.Uint16(b))
		}
	})
	return id, m, nil
}

// plausible says whether the count of topics fits the value's bytes. kmsg's decoder allocates by the count alone, fifty
// times the bytes; what comes here passed a checksum, but a client may have produced it.
func plausible(b []byte) bool {
	const at = 2 + 8 + 2 + 4 + 1 // version, producer id, epoch, timeout, state
	if len(b) < at {
		return false
	}
	version, b := binary.BigEndian.Uint16(b), b[at:]
	if version >= flexibleVersion {
		n, used := binary.Uvarint(b) // one more than the count
		return used > 0 && n <= uint64(len(b)) && 3*n <= 3+uint64(len(b)-used)
	}
	if len(b) < 4 {
		return false
	}
	return 6*int64(int32(binary.BigEndian.Uint32(b))) <= int64(len(b)-4)
}
