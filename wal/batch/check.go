package batch

import (
	"fmt"
	"math"
)

// Kafka's codes for what a check can find.
const (
	codeInvalidTimestamp int16 = 32
	codeInvalidRecord    int16 = 87
)

// MaxRecordErrors is how many errors a check lists before it only goes on counting.
const MaxRecordErrors = 256

// InvalidError is a rule of the protocol that a batch breaks though its bytes are sound.
type InvalidError struct {
	Code    int16 // INVALID_RECORD (87) or INVALID_TIMESTAMP (32)
	Message string
}

func (e *InvalidError) Error() string { return "batch: " + e.Message }

func invalid(format string, args ...any) error {
	return &InvalidError{Code: codeInvalidRecord, Message: fmt.Sprintf(format, args...)}
}

// CheckClient applies the rules that Kafka has for a batch that a client sends and that show in the header:
// the offsets span exactly the records, no control batch, a sequence with a producer id and a producer id with a
// transaction, timestamps of the client. It returns an *InvalidError.
func (h Header) CheckClient() error {
	switch {
	case h.LastOffsetDelta < 0:
		return invalid("batch has an invalid offset range: last offset delta %d", h.LastOffsetDelta)
	case h.RecordCount <= 0:
		return invalid("batch reports %d records", h.RecordCount)
	case h.LastOffsetDelta == math.MaxInt32 || h.LastOffsetDelta+1 != h.RecordCount:
		return invalid("batch spans %d offsets and reports %d records", int64(h.LastOffsetDelta)+1, h.RecordCount)
	case h.Control():
		return invalid("clients may not write control batches")
	case !h.Codec().Valid():
		return invalid("unknown compression codec %d", h.Attributes&attrCodec)
	case h.HasProducer() && h.BaseSequence < 0:
		return invalid("producer id %d with base sequence %d", h.ProducerID, h.BaseSequence)
	case h.HasProducer() && h.ProducerEpoch < 0:
		return invalid("producer id %d with epoch %d", h.ProducerID, h.ProducerEpoch)
	case h.Transactional() && !h.HasProducer():
		return invalid("transactional batch without a producer id")
	case h.HasDeleteHorizon():
		return invalid("clients may not set a delete horizon")
	case h.LogAppendTime():
		return &InvalidError{Code: codeInvalidTimestamp, Message: "producers may not set the timestamp type to LogAppendTime"}
	}
	return nil
}

// CheckOptions are the rules of a topic. The zero value of a bound does not mean zero: set both, or neither.
type CheckOptions struct {
	RequireKey                 bool  // compacted topic
	MinTimestamp, MaxTimestamp int64 // ms, both inclusive; both 0: any time
}

// TimestampRange is the range that message.timestamp.before.max.ms and .after.max.ms leave around now, with no
// overflow for their default of 2^63-1.
func TimestampRange(now, beforeMax, afterMax int64) (lo, hi int64) {
	lo, hi = now-beforeMax, now+afterMax
	if beforeMax > 0 && lo > now {
		lo = math.MinInt64
	}
	if afterMax > 0 && hi < now {
		hi = math.MaxInt64
	}
	return lo, hi
}

// RecordError is what is wrong with one record.
type RecordError struct {
	Index   int32 // of the record in its batch
	Code    int16 // INVALID_RECORD (87) or INVALID_TIMESTAMP (32)
	Message string
}

// Report is what a full check found out.
type Report struct {
	Errors       []RecordError // of single records; at most MaxRecordErrors
	Failed       int           // records with an error
	MaxTimestamp int64         // over all records, NoTimestamp if there is none; the header may say otherwise
}

// CheckRecords inflates b, which is exactly one batch, and checks all of it: as many records as the header
// counts, each well formed, with offset deltas 0, 1, 2 ..., nothing after the last, and the rules of opts. It
// returns the errors of single records, for the response to the producer, or an error for the whole batch:
// ErrInflated, ErrCodec, ErrRecord, ErrTrailing, an *InvalidError, or one of ParseHeader. It needs a window of 64 KiB
// and the decoder's, whatever the batch inflates to (a zstd frame with a window above 4 MiB: up to maxInflated).
func CheckRecords(b []byte, maxInflated int, opts CheckOptions) ([]RecordError, error) {
	rep, err := Inspect(b, maxInflated, opts)
	return rep.Errors, err
}

// Inspect is CheckRecords with all it learns.
func Inspect(b []byte, maxInflated int, opts CheckOptions) (Report, error) {
	rep := Report{MaxTimestamp: NoTimestamp}
	bounded := opts.MinTimestamp != 0 || opts.MaxTimestamp != 0
	var index int32
	fail := func(code int16, format string, args ...any) {
		if rep.Failed++; len(rep.Errors) < MaxRecordErrors {
			rep.Errors = append(rep.Errors, RecordError{Index: index, Code: code, Message: fmt.Sprintf(format, args...)})
		}
	}
	err := scan(b, maxInflated, func(h Header, r *Record) bool {
		t := h.Timestamp(*r)
		overflow := !h.LogAppendTime() && (r.TimestampDelta > 0) != (t > h.BaseTimestamp) && r.TimestampDelta != 0
		switch {
		case r.OffsetDelta != index:
			fail(codeInvalidRecord, "offset delta %d, expected %d", r.OffsetDelta, index)
		case opts.RequireKey && r.Key == nil:
			fail(codeInvalidRecord, "a compacted topic takes no record without a key")
		case overflow:
			fail(codeInvalidTimestamp, "timestamp delta %d overflows base timestamp %d", r.TimestampDelta, h.BaseTimestamp)
		case bounded && t != NoTimestamp && (t < opts.MinTimestamp || t > opts.MaxTimestamp):
			fail(codeInvalidTimestamp, "timestamp %d is out of range [%d, %d]", t, opts.MinTimestamp, opts.MaxTimestamp)
		}
		if !overflow {
			rep.MaxTimestamp = max(rep.MaxTimestamp, t)
		}
		index++
		return true
	})
	return rep, err
}
