package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// recordFormat is a compiled --format: literal text and verbs.
type recordFormat struct {
	parts []formatPart
	null  string // what a null key, value or header value prints as
}

type formatPart struct {
	verb byte // 0: literal
	text string
}

const formatHelp = `%k key  %v value (also %s)  %h headers as name=value,...  %o offset  %p partition  %t topic
%T timestamp in ms  %D timestamp as RFC 3339  %K length of the key, %V of the value (-1: null)  %% a percent sign`

// parseFormat compiles a format; escapes (\n, \t, \0, \xHH) stand for bytes.
func parseFormat(s, null string) (*recordFormat, error) {
	f := &recordFormat{null: null}
	literal := func(text string) error {
		if text == "" {
			return nil
		}
		u, err := unescape(text)
		if err != nil {
			return err
		}
		f.parts = append(f.parts, formatPart{text: u})
		return nil
	}
	start := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++ // an escaped character is part of the literal, whatever it is
		case s[i] == '%':
			if err := literal(s[start:i]); err != nil {
				return nil, err
			}
			i++
			if i == len(s) {
				return nil, fmt.Errorf("ends in a single %%; write %%%% for a percent sign")
			}
			switch c := s[i]; c {
			case '%':
				f.parts = append(f.parts, formatPart{text: "%"})
			case 's':
				f.parts = append(f.parts, formatPart{verb: 'v'})
			case 'k', 'v', 'h', 'o', 'p', 't', 'T', 'D', 'K', 'V':
				f.parts = append(f.parts, formatPart{verb: c})
			default:
				return nil, fmt.Errorf("unknown %%%c; there are %%k %%v %%h %%o %%p %%t %%T %%D %%K %%V %%%%", c)
			}
			start = i + 1
		}
	}
	if err := literal(s[min(start, len(s)):]); err != nil {
		return nil, err
	}
	return f, nil
}

// append adds the record, in the format, to dst. Keys, values and header values are raw bytes: they are what the person
// asked for. Names come from a broker and are made visible.
func (f *recordFormat) append(dst []byte, r *kgo.Record) []byte {
	bytesOr := func(b []byte) []byte {
		if b == nil {
			return append(dst, f.null...)
		}
		return append(dst, b...)
	}
	length := func(b []byte) []byte {
		if b == nil {
			return append(dst, "-1"...)
		}
		return strconv.AppendInt(dst, int64(len(b)), 10)
	}
	for _, p := range f.parts {
		switch p.verb {
		case 0:
			dst = append(dst, p.text...)
		case 'k':
			dst = bytesOr(r.Key)
		case 'v':
			dst = bytesOr(r.Value)
		case 'h':
			for i, h := range r.Headers {
				if i > 0 {
					dst = append(dst, ',')
				}
				dst = append(dst, visible(h.Key)...)
				dst = append(dst, '=')
				dst = bytesOr(h.Value)
			}
		case 'o':
			dst = strconv.AppendInt(dst, r.Offset, 10)
		case 'p':
			dst = strconv.AppendInt(dst, int64(r.Partition), 10)
		case 't':
			dst = append(dst, visible(r.Topic)...)
		case 'T':
			dst = strconv.AppendInt(dst, r.Timestamp.UnixMilli(), 10)
		case 'D':
			dst = r.Timestamp.UTC().AppendFormat(dst, time.RFC3339Nano)
		case 'K':
			dst = length(r.Key)
		case 'V':
			dst = length(r.Value)
		}
	}
	return dst
}

// jsonFormat prints a record as a line of JSON.
type jsonFormat struct {
	buf bytes.Buffer
	enc *json.Encoder
}

func newJSONFormat() *jsonFormat {
	j := &jsonFormat{}
	j.enc = json.NewEncoder(&j.buf)
	j.enc.SetEscapeHTML(false)
	return j
}

func (j *jsonFormat) append(dst []byte, r *kgo.Record) []byte {
	ts := r.Timestamp.UnixMilli()
	rec := jsonRecord{Topic: r.Topic, Partition: &r.Partition, Offset: r.Offset, Timestamp: &ts, Headers: make([]jsonHeader, len(r.Headers))}
	switch r.Attrs.TimestampType() {
	case 0:
		rec.TimestampType = "CreateTime"
	case 1:
		rec.TimestampType = "LogAppendTime"
	}
	rec.Key, rec.KeyBase64 = split(r.Key)
	rec.Value, rec.ValueBase64 = split(r.Value)
	for i, h := range r.Headers {
		rec.Headers[i].Key = h.Key
		rec.Headers[i].Value, rec.Headers[i].ValueBase64 = split(h.Value)
	}
	j.buf.Reset()
	if err := j.enc.Encode(rec); err != nil {
		panic(fmt.Sprintf("record %s/%d@%d does not encode: %v", r.Topic, r.Partition, r.Offset, err)) // only strings and numbers
	}
	return escapeJSON(dst, j.buf.Bytes())
}
