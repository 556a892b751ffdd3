package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// appendRequest makes a frame without its size.
func appendRequest(key, version int16, clientID *string, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, 4711)
	if clientID == nil {
		b = append(b, 0xff, 0xff)
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(len(*clientID)))
		b = append(b, *clientID...)
	}
	if flexibleFrom, _, ok := versionsOf(key); ok && version >= flexibleFrom {
		b = append(b, 0)
	}
	return append(b, body...)
}

// The header that franz-go writes is the header that is read, in every version of every key.
func TestHeaderOfEveryVersion(t *testing.T) {
	id := "a client"
	formatter := kmsg.NewRequestFormatter(kmsg.FormatterClientID(id))
	everyVersion(func(key, version int16) {
		if key == 7 && version == 0 {
			return // the one request with header v0; Kafka no longer knows it
		}
		r := newFiller(uint64(key)).request(key, version)
		frame := formatter.AppendRequest(nil, r, 4711)[4:]
		h, body, err := ParseHeader(frame)
		if err != nil {
			t.Errorf("%s version %d: %v", kmsg.NameForKey(key), version, err)
			return
		}
		if h.Key != key || h.Version != version || h.CorrelationID != 4711 || h.ClientID == nil || *h.ClientID != id {
			t.Errorf("%s version %d: %+v", kmsg.NameForKey(key), version, h)
		}
		if !bytes.Equal(body, r.AppendTo(nil)) {
			t.Errorf("%s version %d: body of %d bytes", kmsg.NameForKey(key), version, len(body))
		}
		for n := range len(frame) - len(body) {
			if _, _, err := ParseHeader(frame[:n:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s version %d: the first %d bytes: %v", kmsg.NameForKey(key), version, n, err)
			}
		}
	})
}

func TestHeaderClientID(t *testing.T) {
	h, _, err := ParseHeader(appendRequest(3, 1, nil, nil))
	if err != nil || h.ClientID != nil {
		t.Errorf("null: %+v %v", h, err)
	}
	empty := ""
	h, _, err = ParseHeader(appendRequest(3, 12, &empty, nil))
	if err != nil || h.ClientID == nil || *h.ClientID != "" {
		t.Errorf("empty: %+v %v", h, err)
	}
	long := strings.Repeat("x", MaxClientID+1)
	if _, _, err = ParseHeader(appendRequest(3, 1, &long, nil)); !errors.Is(err, ErrMalformed) {
		t.Errorf("long: %v", err)
	}
	frame := appendRequest(3, 1, &empty, nil)
	binary.BigEndian.PutUint16(frame[8:], 0xfffe)
	if _, _, err = ParseHeader(frame); !errors.Is(err, ErrMalformed) {
		t.Errorf("length -2: %v", err)
	}

	id := "same"
	frame = appendRequest(3, 1, &id, nil)
	h, _, _ = ParseHeader(frame)
	if n := testing.AllocsPerRun(10, func() {
		if again, _, _ := ParseHeaderAfter(frame, h.ClientID); again.ClientID != h.ClientID {
			t.Error("another pointer")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// B8. The correlation id is there even when the rest cannot be read.
func TestHeaderFromTheFuture(t *testing.T) {
	h, _, err := ParseHeader(appendRequest(KeyApiVersions, 99, nil, []byte("whatever")))
	if !errors.Is(err, ErrUnsupportedVersion) || h.CorrelationID != 4711 || h.Version != 99 {
		t.Errorf("version 99: %+v %v", h, err)
	}
	h, _, err = ParseHeader(appendRequest(200, 0, nil, nil))
	if !errors.Is(err, ErrUnknownKey) || h.CorrelationID != 4711 || h.Key != 200 {
		t.Errorf("key 200: %+v %v", h, err)
	}
	if _, _, err = ParseHeader(appendRequest(3, -1, nil, nil)); !errors.Is(err, ErrUnsupportedVersion) {
		t.Errorf("version -1: %v", err)
	}
}

// The response header is flexible with the message, but never for ApiVersions.
func TestResponseOfEveryVersion(t *testing.T) {
	everyVersion(func(key, version int16) {
		r := kmsg.RequestForKey(key)
		r.SetVersion(version)
		resp := r.ResponseKind()
		prefix := []byte("before")
		got := AppendResponse(prefix, RequestHeader{Key: key, Version: version, CorrelationID: 4711}, resp)
		want := binary.BigEndian.AppendUint32(nil, 4711)
		if r.IsFlexible() && key != 18 {
			want = append(want, 0)
		}
		want = resp.AppendTo(want)
		want = append(binary.BigEndian.AppendUint32([]byte("before"), uint32(len(want))), want...)
		if !bytes.Equal(got, want) {
			t.Errorf("%s version %d: got %x, want %x", kmsg.NameForKey(key), version, got, want)
		}
	})
	// A version that is not known is answered in version 0.
	got := AppendResponse(nil, RequestHeader{Key: 18, Version: 99, CorrelationID: 1}, UnsupportedVersion())
	if want := []byte{0, 0, 0, 16, 0, 0, 0, 1, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4}; !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestServedVersionsAreInTheSchema(t *testing.T) {
	last := int16(-1)
	for _, v := range Supported() {
		if v.Key <= last {
			t.Errorf("%s is out of order", v.Name)
		}
		last = v.Key
		if _, maxVersion, ok := versionsOf(v.Key); !ok || v.Min > v.Max || v.Max > maxVersion || v.AdvertisedMin > v.Min {
			t.Errorf("%s: %+v, the schema has 0-%d", v.Name, v, maxVersion)
		}
		if got, ok := Served(v.Key); !ok || got != v {
			t.Errorf("Served(%d): %+v %v", v.Key, got, ok)
		}
		if v.AdvertisedMin != v.Min && v.Key != 0 {
			t.Errorf("%s is advertised from %d", v.Name, v.AdvertisedMin)
		}
		// kmsg's names differ in the case of acronyms, and one older name.
		if name := kmsg.NameForKey(v.Key); !strings.EqualFold(name, v.Name) && v.Key != 45 {
			t.Errorf("key %d: %s, in kmsg %s", v.Key, v.Name, name)
		}
	}
	for _, key := range []int16{-1, 4, 5, 6, 7, 93, 94, 95, 127, 128, 1000} {
		if v, ok := Served(key); ok {
			t.Errorf("Served(%d) = %+v", key, v)
		}
	}
	if v, _ := Served(0); v.Min != 3 || v.AdvertisedMin != 0 || v.Max != 13 {
		t.Errorf("Produce: %+v", v)
	}
}

func TestCodesAreThoseOfKafka(t *testing.T) {
	for code := CodeUnknownServerError; code <= CodeControllerIDNotRegistered; code++ {
		want := "NONE"
		if e := kerr.TypedErrorForCode(code); e != nil {
			want = e.Message
		}
		if code == CodeNotLeaderOrFollower {
			want = "NOT_LEADER_OR_FOLLOWER" // kerr has the older name
		}
		if got := Name(code); got != want {
			t.Errorf("%d: %s, want %s", code, got, want)
		}
		if (Message(code) == "") != (code == CodeNone) {
			t.Errorf("%d: message %q", code, Message(code))
		}
	}
	for _, code := range []int16{-2, 137, -32768, 32767} {
		if Name(code) != "UNKNOWN_SERVER_ERROR" || Message(code) == "" {
			t.Errorf("%d: %s %q", code, Name(code), Message(code))
		}
	}
	if !Retriable(CodeNotLeaderOrFollower) || Retriable(CodeNone) || Retriable(CodeInvalidRecord) {
		t.Error("Retriable")
	}
}
