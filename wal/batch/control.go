package batch

import (
	"encoding/binary"
	"fmt"
)

// A transaction marker is a control batch of one record: key {int16 version, int16 type}, value {int16 version,
// int32 coordinator epoch}, big-endian. Later versions may append fields.
const (
	markerAbort  = 0
	markerCommit = 1

	// markerLimit is far above what a marker needs; a control batch is never large.
	markerLimit = 64 << 10
)

// Marker builds the control batch that ends a transaction. Its base offset is 0 until it is assigned.
func Marker(producerID int64, producerEpoch int16, commit bool, coordinatorEpoch int32, timestamp int64) []byte {
	b := NewBuilder()
	b.ProducerID, b.ProducerEpoch = producerID, producerEpoch
	b.Transactional, b.Control = true, true
	key, value := MarkerRecord(commit, coordinatorEpoch)
	b.Add(timestamp, key, value)
	p, err := b.Build()
	if err != nil {
		panic(err) // one small uncompressed record
	}
	return p
}

// MarkerRecord is the one record of a marker's batch.
func MarkerRecord(commit bool, coordinatorEpoch int32) (key, value []byte) {
	key = []byte{0, 0, 0, markerAbort}
	if commit {
		key[3] = markerCommit
	}
	return key, binary.BigEndian.AppendUint32([]byte{0, 0}, uint32(coordinatorEpoch))
}

// ControlMarker reads the transaction marker of b, which is exactly one control batch. Any other control
// record, and a batch that compaction has emptied, is ErrControl.
func ControlMarker(b []byte) (commit bool, coordinatorEpoch int32, err error) {
	h, err := ParseHeader(b)
	if err != nil {
		return false, 0, err
	}
	if !h.Control() {
		return false, 0, fmt.Errorf("%w: not a control batch", ErrControl)
	}
	for r, err := range Records(b, markerLimit) {
		if err != nil {
			return false, 0, err
		}
		return ReadMarker(r.Key, r.Value)
	}
	return false, 0, fmt.Errorf("%w: no records", ErrControl)
}

// ReadMarker reads the record of a control batch. One that is no transaction marker is ErrControl.
func ReadMarker(key, value []byte) (commit bool, coordinatorEpoch int32, err error) {
	if len(key) < 4 {
		return false, 0, fmt.Errorf("%w: key of %d bytes", ErrControl, len(key))
	}
	version, kind := int16(binary.BigEndian.Uint16(key)), int16(binary.BigEndian.Uint16(key[2:]))
	if version < 0 || (kind != markerAbort && kind != markerCommit) {
		return false, 0, fmt.Errorf("%w: version %d, type %d", ErrControl, version, kind)
	}
	if len(value) < 6 || int16(binary.BigEndian.Uint16(value)) < 0 {
		return false, 0, fmt.Errorf("%w: value of %d bytes", ErrControl, len(value))
	}
	return kind == markerCommit, int32(binary.BigEndian.Uint32(value[2:])), nil
}
