package protocol

import (
	"encoding/binary"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// AppendResponse appends a whole response frame: size, response header, body. The body's version is resp's own, which
// ResponseKind of the request has set; it differs from h.Version only where an ApiVersions request of an unknown version
// is answered in version 0.
//
// The response header has tagged fields (v1) where the message is flexible, except for ApiVersions: a client that
// does not know yet what the broker speaks must be able to read the answer, so its header is always v0.
func AppendResponse(dst []byte, h RequestHeader, resp kmsg.Response) []byte {
	at := len(dst)
	dst = appendResponseHeader(dst, h.CorrelationID, resp.IsFlexible() && resp.Key() != KeyApiVersions)
	dst = resp.AppendTo(dst)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

// appendResponseHeader leaves four bytes for the size of the frame.
func appendResponseHeader(dst []byte, correlationID int32, flexible bool) []byte {
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(correlationID))
	if flexible {
		dst = append(dst, 0)
	}
	return dst
}

// UnsupportedVersion is the answer to an ApiVersions request of a version that is not served: version 0, the error, and of
// all keys only the versions of ApiVersions itself, by which the client knows what to ask with next (KIP-511).
func UnsupportedVersion() *kmsg.ApiVersionsResponse {
	r := kmsg.NewPtrApiVersionsResponse()
	r.ErrorCode = CodeUnsupportedVersion
	v, _ := Served(KeyApiVersions)
	k := kmsg.NewApiVersionsResponseApiKey()
	k.ApiKey, k.MinVersion, k.MaxVersion = v.Key, v.AdvertisedMin, v.Max
	r.ApiKeys = append(r.ApiKeys, k)
	return r
}

// NodeEndpoint is where a broker named in a CurrentLeader listens.
type NodeEndpoint struct {
	NodeID int32
	Host   string
	Port   int32
	Rack   *string
}

// LeaderEpoch is a broker and the epoch in which it leads.
type LeaderEpoch struct {
	LeaderID int32
	Epoch    int32
}

// appendCurrentLeader appends the tagged field by which a partition that is led elsewhere says so (KIP-951).
func appendCurrentLeader(b []byte, tag byte, l *LeaderEpoch) []byte {
	b = append(b, tag, 4+4+1)
	b = binary.BigEndian.AppendUint32(b, uint32(l.LeaderID))
	b = binary.BigEndian.AppendUint32(b, uint32(l.Epoch))
	return append(b, 0)
}

// appendEndpoints appends the tagged fields that end a Produce or Fetch response: tag 0 is the endpoints, if there are any.
func appendEndpoints(b []byte, endpoints []NodeEndpoint) []byte {
	if len(endpoints) == 0 {
		return append(b, 0)
	}
	size := uvarintSize(len(endpoints) + 1)
	for _, e := range endpoints {
		size += 4 + uvarintSize(len(e.Host)+1) + len(e.Host) + 4 + 1 + 1
		if e.Rack != nil {
			size += uvarintSize(len(*e.Rack)+1) + len(*e.Rack) - 1
		}
	}
	b = append(b, 1, 0)
	b = appendUvarint(b, uint32(size))
	b = appendCount(b, true, len(endpoints))
	for _, e := range endpoints {
		b = binary.BigEndian.AppendUint32(b, uint32(e.NodeID))
		b = appendString(b, true, e.Host)
		b = binary.BigEndian.AppendUint32(b, uint32(e.Port))
		b = appendNullableString(b, true, e.Rack)
		b = append(b, 0)
	}
	return b
}

// appendCount appends the length of an array or of bytes; -1 is null.
func appendCount(b []byte, flexible bool, n int) []byte {
	if flexible {
		return appendUvarint(b, uint32(n+1))
	}
	return binary.BigEndian.AppendUint32(b, uint32(int32(n)))
}

func appendString[S string | []byte](b []byte, flexible bool, s S) []byte {
	if flexible {
		b = appendUvarint(b, uint32(len(s)+1))
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	}
	return append(b, s...)
}

func appendNullableString(b []byte, flexible bool, s *string) []byte {
	switch {
	case s != nil:
		return appendString(b, flexible, *s)
	case flexible:
		return append(b, 0)
	default:
		return append(b, 0xff, 0xff)
	}
}

func uvarintSize(x int) int {
	n := 1
	for ; x >= 0x80; x >>= 7 {
		n++
	}
	return n
}
