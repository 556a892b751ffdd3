package load

import (
	"fmt"
	"strings"
)

// Ran is the load that a run was, with what was left to defaults: without it a
// figure cannot be had again. What does not apply is 0.
type Ran struct {
	Words      string `json:"in_words"`
	Topic      string `json:"topic"`
	Partitions int    `json:"partitions,omitempty"` // of the topic, where they are known
	Producers  int    `json:"producers,omitempty"`
	Processors int    `json:"processors,omitempty"`
	Consumers  int    `json:"consumers,omitempty"`
	Groups     int    `json:"groups,omitempty"`
	Raw        bool   `json:"raw,omitempty"`

	RecordBytes      int     `json:"record_bytes,omitempty"`
	Keys             int     `json:"keys,omitempty"`
	Payload          Payload `json:"payload,omitempty"`
	RecordsPerSecond float64 `json:"records_per_second,omitempty"` // as intended; 0: as fast as they are taken
	BatchBytes       int     `json:"batch_bytes,omitempty"`
	LingerMs         float64 `json:"linger_ms,omitempty"`
	Codec            string  `json:"codec,omitempty"`
	Acks             string  `json:"acks,omitempty"`
	Idempotent       bool    `json:"idempotent,omitempty"`
	InFlight         int     `json:"in_flight_requests,omitempty"`
	BufferBytes      int     `json:"buffer_bytes,omitempty"`
	TxnMs            float64 `json:"transaction_ms,omitempty"`
	TxnRecords       int     `json:"transaction_records,omitempty"`

	FetchMaxBytes     int     `json:"fetch_max_bytes,omitempty"`
	PartitionMaxBytes int     `json:"partition_max_bytes,omitempty"`
	FetchMinBytes     int     `json:"fetch_min_bytes,omitempty"`
	FetchMaxWaitMs    float64 `json:"fetch_max_wait_ms,omitempty"`

	WarmupSeconds   float64 `json:"warmup_seconds"`
	DurationSeconds float64 `json:"duration_seconds,omitempty"` // 0: until all is read
}

// ran is what the spec asks for once its defaults are in.
func (s *Spec) ran() *Ran {
	r := &Ran{
		Words: s.String(), Topic: s.Topic, Partitions: s.Partitions, Producers: s.Producers, Processors: s.Processors, Consumers: s.Consumers, Raw: s.Raw,
		WarmupSeconds: s.Warmup.Seconds(), DurationSeconds: s.Duration.Seconds(),
	}
	if s.Producers+s.Processors > 0 {
		r.RecordBytes, r.Keys, r.Payload, r.RecordsPerSecond, r.BatchBytes = s.RecordBytes, s.Keys, s.Payload, s.Rate, s.BatchBytes
		r.LingerMs, r.Codec, r.Acks, r.Idempotent, r.InFlight, r.BufferBytes = s.Linger.Seconds()*1000, s.Codec, s.Acks, s.Idempotent, s.InFlight, s.BufferBytes
		r.TxnMs, r.TxnRecords = s.TxnEvery.Seconds()*1000, s.TxnRecords
	}
	if s.Consumers > 0 {
		r.FetchMaxBytes, r.PartitionMaxBytes, r.FetchMinBytes, r.FetchMaxWaitMs = s.FetchMaxBytes, s.PartitionMaxBytes, s.FetchMinBytes, s.FetchMaxWait.Seconds()*1000
		r.Groups = s.Groups
	}
	return r
}

// String is the load in words.
func (s Spec) String() string {
	var p []string
	add := func(format string, args ...any) { p = append(p, fmt.Sprintf(format, args...)) }
	if s.Partitions > 0 {
		add("%d partitions", s.Partitions)
	}
	if s.Producers > 0 {
		add("%d producers", s.Producers)
	}
	if s.Processors > 0 {
		ends := fmt.Sprintf("%d records each, back to back", s.TxnRecords)
		switch {
		case s.TxnEvery > 0:
			ends = fmt.Sprintf("of %s", s.TxnEvery)
		case s.TxnRecords == 1:
			ends = "1 record each, back to back"
		}
		reads := ", reading and committing offsets in them"
		if s.Producers == 0 {
			reads = ", reading nothing"
		}
		add("%d clients with transactions (%s)%s", s.Processors, ends, reads)
	}
	switch {
	case s.Consumers > 0 && s.Processors > 0:
		add("%d consumers of what is committed", s.Consumers)
	case s.Consumers > 0 && s.Raw:
		add("%d consumers that decode no records", s.Consumers)
	case s.Consumers > 0:
		add("%d consumers in %d groups", s.Consumers, max(s.Groups, 1))
	}
	if s.Producers+s.Processors == 0 {
		add("fetches of at most %d B, %d B of a partition", s.FetchMaxBytes, s.PartitionMaxBytes)
		return strings.Join(p, ", ")
	}
	add("records of %d B (%s)", s.RecordBytes, s.Payload)
	if s.Keys > 0 {
		add("%d keys in turn", s.Keys)
	}
	add("batches of at most %d B", s.BatchBytes)
	add("linger %s", s.Linger)
	add("%s", s.Codec)
	add("acks=%s", s.Acks)
	if s.Idempotent && s.Processors == 0 {
		add("idempotent")
	}
	if s.InFlight == 0 {
		s.InFlight = 5
	}
	add("%d requests in flight each", s.InFlight)
	if s.BufferBytes > 0 {
		add("%d B buffered each", s.BufferBytes)
	}
	switch {
	case s.Rate > 0:
		add("%.0f records/s", s.Rate)
	case s.Processors > 0:
		add("as fast as transactions take them")
	default:
		add("%s", atWill)
	}
	return strings.Join(p, ", ")
}

// atWill is a load without a rate.
const atWill = "as fast as they are taken"

// Rated is the load in words where its rate is only known when it runs.
func (s Spec) Rated() string { return strings.Replace(s.String(), atWill, "at a rate", 1) }
