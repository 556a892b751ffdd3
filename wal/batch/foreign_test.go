package batch

// Batches by implementations that share no code with this package: kmsg with franz-go's compressor, and
// segmentio's kafka-go. Each writes what we read, and reads what we write.

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var rewrite = flag.Bool("rewrite", false, "write the files in testdata anew")

var codecs = []Codec{None, Gzip, Snappy, LZ4, Zstd}

// rec is a record as a test writes it down: absolute time.
type rec struct {
	ts         int64
	key, value []byte
	headers    []RecordHeader
}

const t0 = 1_700_000_000_000

func sampleRecords() []rec {
	rs := []rec{
		{t0, []byte("k0"), []byte("v0"), nil},
		{t0 + 5, nil, []byte("no key"), nil},
		{t0 - 7, []byte("tombstone"), nil, nil},
		{t0, []byte{}, []byte{}, []RecordHeader{{"h", []byte("1")}, {"h", nil}, {"", []byte{}}}},
		{t0 + 1<<33, []byte("far"), bytes.Repeat([]byte("varve "), 9000), nil},
	}
	for i := range 40 {
		rs = append(rs, rec{t0 + int64(i), fmt.Appendf(nil, "key-%d", i), fmt.Appendf(nil, `{"n":%d,"text":"the same words again"}`, i), nil})
	}
	return rs
}

func kmsgBatch(t testing.TB, rs []rec, codec Codec) []byte {
	t.Helper()
	var section []byte
	maxTS := rs[0].ts
	for i, r := range rs {
		maxTS = max(maxTS, r.ts)
		k := kmsg.Record{TimestampDelta64: r.ts - rs[0].ts, OffsetDelta: int32(i), Key: r.key, Value: r.value}
		for _, h := range r.headers {
			k.Headers = append(k.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		body := k.AppendTo(nil)[1:] // after the one byte that a length of zero takes
		k.Length = int32(len(body))
		section = k.AppendTo(section)
	}
	if codec != None {
		kc := map[Codec]kgo.CompressionCodec{Gzip: kgo.GzipCompression(), Snappy: kgo.SnappyCompression(), LZ4: kgo.Lz4Compression(), Zstd: kgo.ZstdCompression()}[codec]
		c, err := kgo.DefaultCompressor(kc)
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		var used kgo.CompressionCodecType
		section, used = c.Compress(&buf, section)
		if int8(used) != int8(codec) {
			t.Fatalf("compressor used %d", used)
		}
		section = bytes.Clone(section)
	}
	kb := kmsg.RecordBatch{
		FirstOffset: 42, Length: int32(49 + len(section)), PartitionLeaderEpoch: 7, Magic: 2, Attributes: int16(codec),
		LastOffsetDelta: int32(len(rs) - 1), FirstTimestamp: rs[0].ts, MaxTimestamp: maxTS,
		ProducerID: 9, ProducerEpoch: 3, FirstSequence: 11, NumRecords: int32(len(rs)), Records: section,
	}
	b := kb.AppendTo(nil)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func kafkaGoBatch(t testing.TB, rs []rec, codec Codec) []byte {
	t.Helper()
	var records []protocol.Record
	for i, r := range rs {
		var hs []protocol.Header
		for _, h := range r.headers {
			hs = append(hs, protocol.Header{Key: h.Key, Value: h.Value})
		}
		records = append(records, protocol.Record{Offset: int64(i), Time: time.UnixMilli(r.ts), Key: nullable(r.key), Value: nullable(r.value), Headers: hs})
	}
	attr := protocol.Attributes(compress.Compression(codec))
	rset := protocol.RecordSet{Version: 2, Attributes: attr, Records: protocol.NewRecordReader(records...)}
	var buf bytes.Buffer
	if _, err := rset.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()[4:] // after the size of the record set
}

func nullable(b []byte) protocol.Bytes {
	if b == nil {
		return nil
	}
	return protocol.NewBytes(b)
}

func ourBatch(t testing.TB, rs []rec, codec Codec) []byte {
	t.Helper()
	bb := NewBuilder()
	bb.Codec = codec
	for _, r := range rs {
		bb.Add(r.ts, r.key, r.value, r.headers...)
	}
	b, err := bb.Build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func collect(t testing.TB, b []byte) []rec {
	t.Helper()
	h, err := ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	var out []rec
	for r, err := range Records(b, 8<<20) {
		if err != nil {
			t.Fatal(err)
		}
		if int(r.OffsetDelta) != len(out) {
			t.Fatalf("offset delta %d at %d", r.OffsetDelta, len(out))
		}
		out = append(out, rec{h.Timestamp(r), r.Key, r.Value, r.Headers})
	}
	return out
}

func sameRecords(t testing.TB, got, want []rec, nullsKept bool) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		ok := g.ts == w.ts && bytes.Equal(g.key, w.key) && bytes.Equal(g.value, w.value) && len(g.headers) == len(w.headers)
		if nullsKept {
			ok = ok && reflect.DeepEqual(g.headers, w.headers) && (g.key == nil) == (w.key == nil) && (g.value == nil) == (w.value == nil)
		}
		if !ok {
			t.Fatalf("record %d:\n got %+v\nwant %+v", i, g, w)
		}
	}
}

func TestReadsBatchesOfOthers(t *testing.T) {
	for _, codec := range codecs {
		for name, b := range map[string][]byte{
			"kmsg":     kmsgBatch(t, sampleRecords(), codec),
			"kafka-go": kafkaGoBatch(t, sampleRecords(), codec),
		} {
			t.Run(fmt.Sprintf("%s/%v", name, codec), func(t *testing.T) {
				h, err := ParseHeader(b)
				if err != nil {
					t.Fatal(err)
				}
				if h.Codec() != codec || h.Size() != len(b) || int(h.RecordCount) != len(sampleRecords()) {
					t.Fatalf("header %+v of %d bytes", h, len(b))
				}
				if err := VerifyCRC(b); err != nil {
					t.Fatal(err)
				}
				sameRecords(t, collect(t, b), sampleRecords(), name == "kmsg")
				if errs, err := CheckRecords(b, 8<<20, CheckOptions{}); err != nil || len(errs) > 0 {
					t.Fatal(errs, err)
				}
				if name == "kmsg" {
					want := Header{BaseOffset: 42, Length: int32(len(b) - 12), LeaderEpoch: 7, Magic: 2, CRC: h.CRC, Attributes: int16(codec),
						LastOffsetDelta: 44, BaseTimestamp: t0, MaxTimestamp: t0 + 1<<33, ProducerID: 9, ProducerEpoch: 3, BaseSequence: 11, RecordCount: 45}
					if h != want {
						t.Fatalf("\n got %+v\nwant %+v", h, want)
					}
				}
			})
		}
	}
}

func TestOthersReadOurs(t *testing.T) {
	for _, codec := range codecs {
		t.Run(codec.String(), func(t *testing.T) {
			b := ourBatch(t, sampleRecords(), codec)
			rp := kmsg.NewFetchResponseTopicPartition()
			rp.RecordBatches, rp.HighWatermark = b, 1000
			fp, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t"}, &rp, kgo.DefaultDecompressor(), nil)
			if fp.Err != nil {
				t.Fatal(fp.Err)
			}
			var got []rec
			for _, r := range fp.Records {
				var hs []RecordHeader
				for _, h := range r.Headers {
					hs = append(hs, RecordHeader{h.Key, h.Value})
				}
				got = append(got, rec{r.Timestamp.UnixMilli(), r.Key, r.Value, hs})
			}
			sameRecords(t, got, sampleRecords(), false)

			framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
			var rset protocol.RecordSet
			if _, err := rset.ReadFrom(bytes.NewReader(framed)); err != nil {
				t.Fatal(err)
			}
			got = nil
			for {
				r, err := rset.Records.ReadRecord()
				if err != nil {
					break
				}
				var hs []RecordHeader
				for _, h := range r.Headers {
					hs = append(hs, RecordHeader{h.Key, h.Value})
				}
				k, _ := protocol.ReadAll(r.Key)
				v, _ := protocol.ReadAll(r.Value)
				got = append(got, rec{r.Time.UnixMilli(), k, v, hs})
			}
			sameRecords(t, got, sampleRecords(), false)
		})
	}
}

// The files in testdata are what every later version of this package must be able to read.
func TestSampleFiles(t *testing.T) {
	for _, codec := range codecs {
		for name, build := range map[string]func(testing.TB, []rec, Codec) []byte{"kmsg": kmsgBatch, "kafka-go": kafkaGoBatch, "varve": ourBatch} {
			path := filepath.Join("testdata", fmt.Sprintf("v2-%s-%v.batch", name, codec))
			if *rewrite {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, build(t, sampleRecords(), codec), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyCRC(b); err != nil {
				t.Fatal(path, err)
			}
			sameRecords(t, collect(t, b), sampleRecords(), name != "kafka-go")
		}
	}
}
