package tiering

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

// datadriven has the flag -rewrite; ours does the same for binary files.
var rewrite = flag.Bool("rewrite", false, "write the sample files anew")

// sample is an object of three sections: transactions and epochs in the first.
func sample(t testing.TB) (*builder, []*sectionBuilder) {
	b := newBuilder(400)
	var out []*sectionBuilder
	for i := range int32(3) {
		f := Footer{TopicID: [16]byte{7, byte(i)}, Partition: i, Base: int64(i) * 1000, Epoch: 4, Created: 1_790_000_000_000}
		if i > 0 {
			f.Prev = Link{f.Base, 0xfeed}
		}
		s := b.section(f, fold{state: producer.New(), at: f.Base})
		at := f.Base
		add := func(raw []byte) {
			batch.SetBaseOffset(raw, at)
			batch.SetLeaderEpoch(raw, 4)
			h, err := batch.ParseHeader(raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.add(h, raw); err != nil {
				t.Fatal(err)
			}
			at = h.NextOffset()
		}
		bb := batch.NewBuilder()
		for n := range 4 {
			for r := range 3 {
				bb.Add(1_789_999_000_000+int64(100*n-r), []byte{byte(r)}, bytes.Repeat([]byte{byte(n)}, 60))
			}
			if i == 0 && n < 3 {
				bb.ProducerID, bb.Transactional, bb.BaseSequence = int64(500+n), true, 0
			} else {
				bb.ProducerID, bb.Transactional, bb.BaseSequence = -1, false, -1
			}
			raw, err := bb.Build()
			if err != nil {
				t.Fatal(err)
			}
			add(raw)
			bb.Reset()
		}
		if i == 0 {
			add(batch.Marker(500, 0, false, 3, 1_789_999_001_000))
			add(batch.Marker(501, 0, true, 3, 1_789_999_001_000))
		}
		s.end(lineage.Lineage{}.Assign(1, 0).Assign(4, 500), 0)
		out = append(out, s)
	}
	if err := b.finish(); err != nil {
		t.Fatal(err)
	}
	return b, out
}

func bytesOf(t testing.TB, b *body) []byte {
	raw, err := io.ReadAll(b.reader())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func bucketOf(t testing.TB, key string, raw []byte) *objstore.Mem {
	m := objstore.NewMem()
	if err := m.Put(context.Background(), key, bytes.NewReader(raw), int64(len(raw)), objstore.CRC32C(raw)); err != nil {
		t.Fatal(err)
	}
	return m
}

// What version 1 wrote is readable for ever.
func TestObjectVersion1(t *testing.T) {
	b, sections := sample(t)
	defer b.body.release()
	raw := bytesOf(t, &b.body)
	if crc32.Checksum(raw, castagnoli) != b.body.crc {
		t.Error("checksum of the whole object")
	}
	const path = "testdata/v1.object"
	if *rewrite {
		os.MkdirAll("testdata", 0o755)
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m := bucketOf(t, "data/x", stored)
	list, err := ReadDirectory(bg, m, "data/x")
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	for i, s := range list {
		f, err := ReadFooter(bg, m, "data/x", s)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*f, sections[i].f) {
			t.Errorf("footer\n%+v\nwant\n%+v", *f, sections[i].f)
		}
		e := sections[i].entry(manifest.Mixed, manifest.Suffix{})
		if section(partitionKey{f.TopicID, f.Partition}, e) != s {
			t.Errorf("entry %+v, directory %+v", e, s)
		}
		next := f.Base
		for _, k := range f.Blocks {
			data := stored[k.Pos : k.Pos+int64(k.Len)]
			if err := checkBlock("x", k, data); err != nil {
				t.Error(err)
			}
			if len(data) > 400 {
				t.Errorf("block of %d bytes", len(data))
			}
			batch.Walk(data, func(h batch.Header, raw []byte) error {
				if h.BaseOffset != next {
					t.Errorf("batch at %d, not %d", h.BaseOffset, next)
				}
				next = h.NextOffset()
				return batch.VerifyCRC(raw)
			})
		}
		if next != f.Last+1 {
			t.Errorf("ends at %d, not %d", next, f.Last+1)
		}
	}
	f := sections[0].f
	if len(f.Aborted) != 1 || f.Aborted[0].ProducerID != 500 || len(f.OpenEnd) != 1 || f.OpenEnd[0].ProducerID != 502 || len(f.OpenStart) != 0 || f.Records != 14 {
		t.Errorf("%+v", f)
	}
	// Cut anywhere, or with any byte flipped, it is an error or the same answer.
	for i := range stored {
		bad := slices.Clone(stored)
		bad[i] ^= 1 << (i % 8)
		for _, raw := range [][]byte{bad, stored[:i]} {
			m := bucketOf(t, "data/x", raw)
			got, err := ReadDirectory(bg, m, "data/x")
			if err != nil && !errors.Is(err, ErrCorrupt) || err == nil && !slices.Equal(got, list) {
				t.Fatalf("byte %d: %v %v", i, got, err)
			}
			for j, s := range list {
				f, err := ReadFooter(bg, m, "data/x", s)
				if err == nil && !reflect.DeepEqual(*f, sections[j].f) {
					t.Fatalf("byte %d: another footer", i)
				}
			}
		}
	}
}

// A footer with a delete horizon is one of version 2; its sample file is read for ever.
func TestFooterVersion2(t *testing.T) {
	b, sections := sample(t)
	defer b.body.release()
	f := sections[0].f
	f.Horizon, f.HorizonBytes = 1_790_000_500_000, 1234
	raw := f.Encode()
	const path = "testdata/v2.footer"
	if *rewrite {
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, stored) {
		t.Error("version 2 is not written as before")
	}
	got, err := DecodeFooter(stored)
	if err != nil || !reflect.DeepEqual(*got, f) {
		t.Errorf("%+v, %v; want %+v", got, err, f)
	}
	for i := range stored {
		if _, err := DecodeFooter(stored[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d: %v", i, err)
		}
	}
	for v, want := range map[byte]error{0: ErrCorrupt, 1: ErrCorrupt, 2: nil, 3: ErrCorrupt} { // version 1 has nothing at the end
		stored[len(footerMagic)] = v
		if _, err := DecodeFooter(stored); !errors.Is(err, want) {
			t.Errorf("as version %d: %v", v, err)
		}
	}
	one := sections[0].f.Encode()
	one[len(footerMagic)] = footerHorizon
	if _, err := DecodeFooter(append(one, 2, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a horizon of no bytes: %v", err)
	}
}

func TestBody(t *testing.T) {
	var b body
	defer b.release()
	var want []byte
	for i := range 3000 {
		p := bytes.Repeat([]byte{byte(i)}, i%1500)
		want = append(want, p...)
		b.Write(p)
	}
	if !bytes.Equal(bytesOf(t, &b), want) {
		t.Fatal("another body")
	}
	for _, r := range [][2]int{{0, 1}, {4095, 2}, {4096, 1}, {1 << 20, 1 << 20}, {len(want) - 1, 1}, {0, len(want)}} {
		got := make([]byte, r[1])
		if n, err := b.ReadAt(got, int64(r[0])); err != nil || n != r[1] || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
			t.Errorf("at %d: %d %v", r[0], n, err)
		}
	}
	if n, err := b.ReadAt(make([]byte, 10), int64(len(want)-3)); n != 3 || err != io.EOF {
		t.Errorf("%d %v", n, err)
	}
}

// Every field of footer, directory, tail and publication is hostile: errors, no
// panic, no more memory than the input justifies. Checksums are made to fit, or
// nothing behind them would be reached.
func FuzzFooter(f *testing.F) {
	_, sections := sample(f)
	for _, s := range sections {
		f.Add(s.f.Encode())
		s.f.Horizon, s.f.HorizonBytes = 5, 5
		f.Add(s.f.Encode())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		x, err := DecodeFooter(raw)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		y, err := DecodeFooter(x.Encode())
		if err != nil {
			t.Fatalf("%+v: %v", x, err)
		}
		x.Lineage, y.Lineage = nil, nil
		if !reflect.DeepEqual(x, y) {
			t.Fatalf("%+v\n%+v", x, y)
		}
		// A cut into chunks never panics, whatever the footer says.
		o := &opened{footer: x, firsts: chunksOf(x.Blocks, 1<<20)}
		for i := range o.firsts {
			if o.chunkLen(i) <= 0 {
				t.Fatalf("chunk %d of %+v", i, x.Blocks)
			}
		}
		o.chunkAt(x.Last)
	})
}

func FuzzDirectory(f *testing.F) {
	b, _ := sample(f)
	raw := bytesOf(f, &b.body)
	f.Add(raw[len(raw)-tailSize-200:len(raw)-tailSize], uint32(3), int64(1000))
	f.Fuzz(func(t *testing.T, dir []byte, sections uint32, pos int64) {
		if len(dir) > 1<<16 {
			return
		}
		head := make([]byte, 64)
		obj := slices.Concat(head, dir, encodeTail(64, dir, int(sections)))
		list, err := ReadDirectory(bg, bucketOf(t, "data/x", obj), "data/x")
		if err == nil {
			for _, s := range list {
				ReadFooter(bg, bucketOf(t, "data/x", obj), "data/x", s)
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		tail := encodeTail(pos, dir, int(sections))
		decodeTail(tail, int64(len(obj)))
	})
}

func FuzzPublication(f *testing.F) {
	p := &Publication{ClusterID: "c", BrokerID: 3, Created: 5, Heads: []PublishedHead{{StoredHead{[16]byte{1}, 2, []byte("head"), 77}, "topic"}}, Deleted: []Tombstone{{[16]byte{2}, "gone", 5}}}
	raw := p.Encode()
	f.Add(raw[len(pubMagic) : len(raw)-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := append([]byte(pubMagic), b...)
		sum := crc32.Checksum(raw, castagnoli)
		raw = append(raw, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
		p, err := DecodePublication(raw)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if q, err := DecodePublication(p.Encode()); err != nil || !reflect.DeepEqual(p, q) {
			t.Fatalf("%+v %+v %v", p, q, err)
		}
	})
}

func TestPublicationVersion1(t *testing.T) {
	p := &Publication{ClusterID: "cluster", BrokerID: 3, Created: 1_790_000_000_000,
		Heads:   []PublishedHead{{StoredHead{[16]byte{1}, 2, []byte("head"), 77}, "topic"}},
		Deleted: []Tombstone{{[16]byte{2}, "gone", 5}}}
	const path = "testdata/v1.state"
	if *rewrite {
		if err := os.WriteFile(path, p.Encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodePublication(raw)
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("%+v %v", got, err)
	}
	for i := range raw {
		bad := slices.Clone(raw)
		bad[i] ^= 1
		if _, err := DecodePublication(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
}

func TestDecide(t *testing.T) {
	o := &Options{}
	o.defaults()
	day := int64(24 * 3600 * 1000)
	p := keepAll
	lag := func(ms, bytes int64) Policy { q := p; q.CopyLagMs, q.CopyLagBytes = ms, bytes; return q }
	for _, c := range []struct {
		name   string
		p      Policy
		bytes  int64
		age    int64
		urgent bool
		want   verdict
	}{
		{"nothing", p, 0, day, false, wait},
		{"young and small", p, 100, 1000, false, follow},
		{"old and small", p, 100, 60_000, false, flush},
		{"old, not so small", p, 5 << 20, 60_000, false, own},
		{"young, not so small", p, 5 << 20, 1000, false, wait},
		{"full", p, 64 << 20, 0, false, own},
		{"segment.bytes", func() Policy { q := p; q.SegmentBytes = 1 << 20; return q }(), 1 << 20, 0, false, own},
		{"segment.ms", func() Policy { q := p; q.SegmentMs = 1000; return q }(), 100, 1000, false, flush},
		{"segment.ms with jitter", func() Policy { q := p; q.SegmentMs, q.SegmentJitterMs = 1000, 800; return q }(), 100, 600, false, flush},
		{"flush interval of its own", func() Policy { q := p; q.FlushIntervalMs = 10; return q }(), 100, 10, false, flush},
		{"copy disabled", func() Policy { q := p; q.CopyDisabled = true; return q }(), 1 << 30, day, true, wait},
		{"lag by time", lag(day, -1), 1 << 30, day - 1, false, wait},
		{"lag by time is over", lag(day, -1), 1 << 30, day, false, own},
		{"lag by time and size", lag(day, 1000), 1000, 1, false, wait},
		{"lag by size is over", lag(day, 1000), 1001, day / 2, false, flush},
		{"no lag in bytes", lag(day, 0), 10, 0, false, follow},
		{"lag follows retention for ever", lag(-1, -1), 10, 365 * day, false, wait},
		{"lag and no room", lag(-1, -1), 10, 10, true, flush},
		{"clock gone back", p, 10, -5000, false, follow},
	} {
		w := pending{c.bytes, day*1000 - c.age}
		if got := decide(c.p, o, w, day*1000, 0.5, c.urgent); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestStrayKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		// What others put below our prefix is not ours to delete.
		for _, k := range []string{"data/readme.txt", "data/00/mixed-zz", "other/x"} {
			if err := w.mem.Put(bg, k, strings.NewReader("x"), 1, objstore.CRC32C([]byte("x"))); err != nil {
				t.Fatal(err)
			}
		}
		x, f := w.open(), newLog(1, 0)
		w.lead(x, f)
		f.plain(t, 1, 1, 1)
		w.drained(x, f)
		sleep(bg, 1e12)
		if a := w.check(x, f); len(a.Unnamed) != 2 {
			t.Errorf("%v", a.Unnamed)
		}
	})
}

// Timestamps are the client's to choose: a block of any may follow one of any other.
func TestTimestampsOfAllSizes(t *testing.T) {
	all := []int64{-1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}
	for _, first := range all {
		for _, second := range all {
			_, sections := sample(t)
			f := sections[1].f
			f.Bytes = 200
			f.Blocks = []Block{{Base: f.Base, Pos: 8, Len: 100, MaxTimestamp: first}, {Base: f.Base + 1, Pos: 108, Len: 100, MaxTimestamp: second}}
			got, err := DecodeFooter(f.Encode())
			if err != nil || !slices.Equal(got.Blocks, f.Blocks) {
				t.Errorf("%d, then %d: %v", first, second, err)
			}
		}
	}
}
