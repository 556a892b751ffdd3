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
	key := []byte{0, 0, 0, markerAbort}
	if commit {
		key[3] = markerCommit
	}
	value := binary.BigEndian.AppendUint32([]byte{0, 0}, uint32(coordinatorEpoch))
	b.Add(timestamp, key, value)
	p, err := b.Build()
	if err != nil {
		panic(err) // one small uncompressed record
	}
	return p
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
		if len(r.Key) < 4 {
			return false, 0, fmt.Errorf("%w: key of %d bytes", ErrControl, len(r.Key))
		}
		version, kind := int16(binary.BigEndian.Uint16(r.Key)), int16(binary.BigEndian.Uint16(r.Key[2:]))
		if version < 0 || (kind != markerAbort && kind != markerCommit) {
			return false, 0, fmt.Errorf("%w: version %d, type %d", ErrControl, version, kind)
		}
		if len(r.Value) < 6 || int16(binary.BigEndian.Uint16(r.Value)) < 0 {
			return false, 0, fmt.Errorf("%w: value of %d bytes", ErrControl, len(r.Value))
		}
		return kind == markerCommit, int32(binary.BigEndian.Uint32(r.Value[2:])), nil
	}
	return false, 0, fmt.Errorf("%w: no records", ErrControl)
}
