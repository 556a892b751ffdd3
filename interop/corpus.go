package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// A record as every client is to send and to find it. Null and empty are different things.
type record struct {
	Partition int32    `json:"partition"`
	Key       []byte   `json:"key"`
	Value     []byte   `json:"value"`
	Headers   []header `json:"headers"`
	Timestamp *int64   `json:"timestamp"` // null: the producing client's clock
}

// header marshals as [name, value].
type header [2]any

func (h header) name() string { return h[0].(string) }

func (h header) value() []byte {
	b, _ := h[1].([]byte)
	return b
}

func head(name string, value []byte) header {
	if value == nil {
		return header{name, nil}
	}
	return header{name, value}
}

const corpusPartitions = 3

// What some clients refuse to send, or send wrongly whatever the broker.
type lacks struct {
	nullHeaders bool // a header whose value is null
	nullBoth    bool // a record whose key and value are null
	disorder    bool // a timestamp below that of the batch's first record
}

// corpora are the records that clients produce; each client that is told of in corpusOf has its own.
func corpora(started int64) map[string][]record {
	return map[string][]record{
		"full":         fullCorpus(started, lacks{}),
		"kafka-python": fullCorpus(started, lacks{nullHeaders: true, nullBoth: true}),
		"kafkajs":      fullCorpus(started, lacks{nullHeaders: true}),
		"platformatic": fullCorpus(started, lacks{disorder: true}),
		"kcat":         kcatCorpus(),
	}
}

func corpusOf(client string) string {
	switch client {
	case "kafka-python", "kafkajs", "platformatic", "kcat":
		return client
	}
	return "full"
}

// fullCorpus has everything a record can have, and two records that are large.
func fullCorpus(started int64, no lacks) []record {
	rng := rand.New(rand.NewPCG(1, 2))
	var out []record
	for i := range 240 {
		r := record{Partition: int32(i % corpusPartitions), Key: fmt.Appendf(nil, "key-%d", i), Value: []byte(strings.Repeat(fmt.Sprintf("value %d ", i), 1+i%40))}
		switch {
		case i%7 == 3:
			r.Key = nil
		case i%11 == 5:
			r.Key = []byte{}
		case i%19 == 4:
			r.Key = []byte("schlüssel-\x00\xff\xfe")
		}
		switch {
		case i%13 == 6 && !(no.nullBoth && r.Key == nil):
			r.Value = nil
		case i%17 == 8:
			r.Value = []byte{}
		case i == 100:
			r.Value = make([]byte, 300_000)
			for j := range r.Value {
				r.Value[j] = byte(rng.Uint32())
			}
		case i == 200:
			r.Value = []byte(strings.Repeat("a line that compresses well\n", 9000))
		}
		if i%3 != 0 || i%5 == 0 {
			r.Headers = append(r.Headers, head("trace", fmt.Appendf(nil, "%08x", i)))
		}
		if i%10 == 4 {
			r.Headers = append(r.Headers, head("twice", []byte("first")), head("twice", []byte("second")))
		}
		if i%8 == 1 {
			r.Headers = append(r.Headers, head("binary", []byte{0, 1, 0xff, 0x80, byte(i)}), head("naïve", []byte("ünïcode")))
		}
		if i%9 == 2 {
			r.Headers = append(r.Headers, head("vide", []byte{}))
			if !no.nullHeaders {
				r.Headers = append(r.Headers, head("zero", nil))
			}
		}
		// A day ago and on, but not in order.
		ts := started - 86_400_000 + int64(i)*37
		if i%5 == 0 && !no.disorder {
			ts -= 5000
		}
		if i == 30 && !no.disorder {
			ts = 1000
		}
		r.Timestamp = &ts
		out = append(out, r)
	}
	return normal(out)
}

// kcatCorpus is what kcat can send: one set of headers per partition, no timestamps of its own, and
// with -Z no empty values.
func kcatCorpus() []record {
	var out []record
	for i := range 240 {
		r := record{Partition: int32(i % corpusPartitions), Key: fmt.Appendf(nil, "key-%d", i), Value: []byte(strings.Repeat(fmt.Sprintf("value %d ", i), 1+i%40))}
		r.Headers = kcatHeaders(r.Partition)
		switch {
		case i%7 == 3:
			r.Key = nil
		case i%19 == 4:
			r.Key = []byte("schlüssel-\xff\xfe")
		}
		switch {
		case i%13 == 6:
			r.Value = nil
		case i == 100:
			r.Value = []byte(strings.Repeat("a line that compresses well\n", 9000))
		}
		out = append(out, r)
	}
	return normal(out)
}

func kcatHeaders(partition int32) []header {
	switch partition {
	case 1:
		return []header{head("trace", []byte("0001")), head("twice", []byte("first")), head("twice", []byte("second"))}
	case 2:
		return []header{head("naïve", []byte("ünïcode")), head("zero", nil)}
	}
	return nil
}

// normal makes lists of no headers marshal as [].
func normal(rs []record) []record {
	for i := range rs {
		if rs[i].Headers == nil {
			rs[i].Headers = []header{}
		}
	}
	return rs
}

// plan is what a client program reads: python/common.py and its siblings.
type plan struct {
	Bootstrap string              `json:"bootstrap"`
	Node      int32               `json:"node"`    // the broker's id
	Started   int64               `json:"started"` // ms; no record of this run is older, unless it says so
	Corpora   map[string][]record `json:"corpora"`
	Produce   []planTopic         `json:"produce"`
	Consume   []planTopic         `json:"consume"`
	Group     planGroup           `json:"group"`
	Sweep     planSweep           `json:"sweep"`
}

// planSweep is a topic to be read from its beginning, again and again.
type planSweep struct {
	Topic  string `json:"topic"`
	Keys   int    `json:"keys"` // that are always there
	Passes int    `json:"passes"`
}

type planTopic struct {
	Topic  string `json:"topic"`
	By     string `json:"by"` // the client that produced it
	Codec  string `json:"codec"`
	Corpus string `json:"corpus"`
}

type planGroup struct {
	Topic string `json:"topic"`
	Group string `json:"group"`
}
