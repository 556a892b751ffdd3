package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// errLineTooLong is a line above the limit; the rest of the input is not read, because what follows the limit would be
// taken for a line of its own.
var errLineTooLong = errors.New("line is too long")

// readLine returns the next line without its delimiter, in memory of its own, or io.EOF. A last line without a
// delimiter is a line. Memory is bounded by max, whatever comes in.
func readLine(br *bufio.Reader, delim byte, max int) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice(delim)
		if err == nil {
			part = part[:len(part)-1]
		}
		if len(line)+len(part) > max {
			return nil, errLineTooLong
		}
		switch {
		case err == nil:
			if line == nil {
				line = make([]byte, 0, len(part))
			}
			return append(line, part...), nil
		case errors.Is(err, bufio.ErrBufferFull):
			line = append(line, part...)
		case errors.Is(err, io.EOF) && len(line)+len(part) > 0:
			return append(line, part...), nil
		default:
			return nil, err
		}
	}
}

// lineFormat says how a line of input becomes a record.
type lineFormat struct {
	json         bool
	timestampSep []byte // empty: no timestamp in the line
	keySep       []byte // empty: no key in the line
	key          []byte // the key of every record, nil: none
	null         *string
	headers      []kgo.RecordHeader
	timestamp    time.Time // of every record; zero: now
	partition    int32     // of every record; -1: by key
	keepPart     bool      // json: the partition is that of the input
}

// parse builds a record of a line; the record keeps parts of the line.
func (f *lineFormat) parse(line []byte, now time.Time) (*kgo.Record, error) {
	if f.json {
		return f.parseJSON(line)
	}
	r := &kgo.Record{Key: f.key, Headers: f.headers, Timestamp: f.timestamp, Partition: max(f.partition, 0)}
	if len(f.timestampSep) > 0 {
		ts, rest, ok := bytes.Cut(line, f.timestampSep)
		if !ok {
			return nil, fmt.Errorf("no timestamp: the separator %q is not in the line", f.timestampSep)
		}
		t, err := parseTime(string(ts), now)
		if err != nil {
			return nil, err
		}
		r.Timestamp, line = t, rest
	}
	if len(f.keySep) > 0 {
		key, rest, ok := bytes.Cut(line, f.keySep)
		if !ok {
			return nil, fmt.Errorf("no key: the separator %q is not in the line", f.keySep)
		}
		r.Key, line = f.nulled(key), rest
	}
	r.Value = f.nulled(line)
	return r, nil
}

// nulled is b, or nil if it is the null marker. b is never nil otherwise: an empty value and a null one differ.
func (f *lineFormat) nulled(b []byte) []byte {
	if f.null != nil && string(b) == *f.null {
		return nil
	}
	return b
}

// jsonRecord is one record as a line of JSON: what `varve consume -o json` prints and `varve produce --input json`
// reads. A key or value that is not UTF-8 is null beside its base64 form.
type jsonRecord struct {
	Topic         string       `json:"topic"`
	Partition     *int32       `json:"partition"`
	Offset        int64        `json:"offset"`
	Timestamp     *int64       `json:"timestamp"` // ms
	TimestampType string       `json:"timestamp_type,omitempty"`
	Key           *string      `json:"key"`
	KeyBase64     []byte       `json:"key_base64,omitempty"`
	Value         *string      `json:"value"`
	ValueBase64   []byte       `json:"value_base64,omitempty"`
	Headers       []jsonHeader `json:"headers"`
}

type jsonHeader struct {
	Key         string  `json:"key"`
	Value       *string `json:"value"`
	ValueBase64 []byte  `json:"value_base64,omitempty"`
}

func (f *lineFormat) parseJSON(line []byte) (*kgo.Record, error) {
	var j jsonRecord
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("not a record: %w; expected an object like {\"key\":\"k\",\"value\":\"v\",\"headers\":[{\"key\":\"h\",\"value\":\"x\"}],\"timestamp\":1700000000000}", err)
	}
	if d.More() {
		return nil, errors.New("more than one JSON value in the line; there must be one object per line")
	}
	r := &kgo.Record{Headers: f.headers, Timestamp: f.timestamp, Partition: max(f.partition, 0)}
	r.Key, r.Value = either(j.Key, j.KeyBase64), either(j.Value, j.ValueBase64)
	if r.Key == nil {
		r.Key = f.key
	}
	for _, h := range j.Headers {
		// f.headers is shared by all records and has no spare capacity: this append copies it.
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: either(h.Value, h.ValueBase64)})
	}
	if j.Timestamp != nil && f.timestamp.IsZero() {
		if *j.Timestamp < 0 {
			return nil, fmt.Errorf("timestamp %d: must be milliseconds since 1970", *j.Timestamp)
		}
		r.Timestamp = time.UnixMilli(*j.Timestamp)
	}
	if f.keepPart {
		if j.Partition == nil || *j.Partition < 0 {
			return nil, errors.New("no partition, which --keep-partition needs")
		}
		r.Partition = *j.Partition
	}
	return r, nil
}

func either(s *string, b []byte) []byte {
	switch {
	case b != nil:
		return b
	case s != nil:
		return []byte(*s)
	}
	return nil
}

// split is the inverse of either: a string if the bytes are one, else base64.
func split(b []byte) (*string, []byte) {
	switch {
	case b == nil:
		return nil, nil
	case utf8.Valid(b):
		s := string(b)
		return &s, nil
	}
	return nil, b
}
