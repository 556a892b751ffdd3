package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What a caller branches on. All of them are wrapped with where the frame went wrong.
var (
	// ErrMalformed: the bytes are not a message of that key and version. The stream behind it cannot be trusted; Kafka
	// closes the connection.
	ErrMalformed = errors.New("protocol: malformed request")

	// ErrUnknownKey: no such API key. Nothing behind the correlation id can be read; Kafka closes the connection.
	ErrUnknownKey = errors.New("protocol: unknown api key")

	// ErrUnsupportedVersion: the key is known, the version is not. An ApiVersions request is then answered with a body of
	// version 0 and CodeUnsupportedVersion; any other closes the connection, since the version fixes the answer's shape.
	ErrUnsupportedVersion = errors.New("protocol: unsupported version")

	// ErrTooCostly: well-formed, but decoding it would allocate out of proportion to its size (see MaxAlloc).
	ErrTooCostly = errors.New("protocol: request would allocate out of proportion")
)

// KeyApiVersions is the one key whose response header never becomes flexible.
const KeyApiVersions int16 = 18

// MaxClientID bounds a client id in bytes. Kafka has no bound but the field's own 32,767; a client id is kept for the
// life of a connection and appears in logs and quota tables.
const MaxClientID = 4096

// MaxTags bounds the tagged fields of one section. Tags are numbered from zero as a message evolves, and no message has had
// more than a handful in its life.
const MaxTags = 64

// RequestHeader is what stands before every request body.
type RequestHeader struct {
	Key, Version  int16
	CorrelationID int32
	ClientID      *string // nil: null
}

// ParseHeader splits a frame (without its 4-byte size) into header and body; body is a part of frame.
//
// On ErrUnknownKey and ErrUnsupportedVersion the header's key, version and correlation id are valid, so that an
// ApiVersions request from the future can be answered. Header v1 ends with the client id; header v2, which goes with the
// flexible versions of each key, has tagged fields after it. The client id is not compact even there.
func ParseHeader(frame []byte) (RequestHeader, []byte, error) {
	return ParseHeaderAfter(frame, nil)
}

// ParseHeaderAfter is ParseHeader for the next request of a connection: when the client id equals the previous one, that
// pointer is used again and nothing is allocated.
func ParseHeaderAfter(frame []byte, previous *string) (RequestHeader, []byte, error) {
	var h RequestHeader
	if len(frame) < 8 {
		return h, nil, fmt.Errorf("%w: header of %d bytes", ErrMalformed, len(frame))
	}
	h.Key = int16(binary.BigEndian.Uint16(frame))
	h.Version = int16(binary.BigEndian.Uint16(frame[2:]))
	h.CorrelationID = int32(binary.BigEndian.Uint32(frame[4:]))
	flexibleFrom, maxVersion, ok := versionsOf(h.Key)
	if !ok {
		return h, nil, fmt.Errorf("%w: %d", ErrUnknownKey, h.Key)
	}
	if h.Version < 0 || h.Version > maxVersion {
		return h, nil, fmt.Errorf("%w: key %d version %d", ErrUnsupportedVersion, h.Key, h.Version)
	}
	b := frame[8:]
	if len(b) < 2 {
		return h, nil, fmt.Errorf("%w: header without client id", ErrMalformed)
	}
	n := int(int16(binary.BigEndian.Uint16(b)))
	b = b[2:]
	switch {
	case n == -1:
	case n < 0 || n > len(b) || n > MaxClientID:
		return h, nil, fmt.Errorf("%w: client id of %d bytes", ErrMalformed, n)
	default:
		if previous != nil && *previous == string(b[:n]) {
			h.ClientID = previous
		} else {
			id := string(b[:n])
			h.ClientID = &id
		}
		b = b[n:]
	}
	if h.Version >= flexibleFrom {
		rest, ok := skipTags(b)
		if !ok {
			return h, nil, fmt.Errorf("%w: tagged fields of the header", ErrMalformed)
		}
		b = rest
	}
	return h, b, nil
}

// skipTags steps over a tagged-field section none of whose fields is known. Tags are strictly ascending, so that a section
// has no duplicates; each takes at least two bytes, so that a count cannot promise more than the frame can hold, and there
// are at most MaxTags.
func skipTags(b []byte) ([]byte, bool) {
	count, n := uvarint(b)
	if n <= 0 || count > MaxTags || int(count) > (len(b)-n)/2 {
		return nil, false
	}
	b = b[n:]
	last := int64(-1)
	for ; count > 0; count-- {
		tag, n := uvarint(b)
		if n <= 0 || int64(tag) <= last {
			return nil, false
		}
		last = int64(tag)
		b = b[n:]
		size, n := uvarint(b)
		if n <= 0 || uint64(size) > uint64(len(b)-n) {
			return nil, false
		}
		b = b[n+int(size):]
	}
	return b, true
}

// uvarint reads an unsigned varint of at most 32 bits and returns its length, 0 when it is cut off, longer than five
// bytes, above 32 bits, or longer than it need be: the last byte of a number of several bytes is never zero.
func uvarint(b []byte) (uint32, int) {
	if len(b) > 0 && b[0] < 0x80 { // nearly always
		return uint32(b[0]), 1
	}
	var x uint32
	for i := 0; i < 5 && i < len(b); i++ {
		c := b[i]
		if i == 4 && c > 0x0f {
			return 0, 0
		}
		x |= uint32(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 {
				return 0, 0
			}
			return x, i + 1
		}
	}
	return 0, 0
}

func appendUvarint(dst []byte, x uint32) []byte {
	for x >= 0x80 {
		dst = append(dst, byte(x)|0x80)
		x >>= 7
	}
	return append(dst, byte(x))
}
