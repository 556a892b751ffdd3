package manifest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// datadriven has the flag -rewrite; ours does the same for binary files.
func rewriting() bool {
	f := flag.Lookup("rewrite")
	return f != nil && f.Value.String() == "true"
}

// bench is a head with the pages that were written for it, as a bucket keeps
// them: for ever.
type bench struct {
	head   *Head
	rev    int64
	hw     int64
	limits Limits
	bucket map[Suffix]Write
	cached map[Suffix]bool // pages at hand; nil: all
	serial uint16
	labels map[string]Entry
	names  map[Suffix]string
}

func newBench() *bench {
	return &bench{head: &Head{}, hw: math.MaxInt64, limits: DefaultLimits, bucket: map[Suffix]Write{}, labels: map[string]Entry{}, names: map[Suffix]string{}}
}

func (b *bench) page(r PageRef) *Page {
	if b.cached != nil && !b.cached[r.Suffix] {
		return nil
	}
	return b.read(r)
}

func (b *bench) read(r PageRef) *Page {
	w, ok := b.bucket[r.Suffix]
	if !ok {
		return nil
	}
	p, err := DecodePage(w.Body, r)
	if err != nil {
		panic(err)
	}
	return p
}

func (b *bench) apply(e Edit) (*Result, error) {
	res, err := b.head.Apply(e, Input{HighWatermark: b.hw, Rev: b.rev, Page: b.page, Limits: b.limits, NewSuffix: func() Suffix {
		b.serial++
		return Suffix{'p', byte(b.serial), byte(b.serial >> 8)}
	}})
	if err != nil {
		return nil, err
	}
	// What is committed is what was encoded.
	h, err := DecodeHead(res.Head.Encode())
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(h, res.Head) {
		return nil, fmt.Errorf("head changed by encoding:\n%+v\n%+v", res.Head, h)
	}
	for _, w := range res.Writes {
		b.bucket[w.Ref.Suffix] = w
		b.names[w.Ref.Suffix] = fmt.Sprintf("page%d", w.Ref.Suffix[1])
	}
	b.head = h
	b.rev++
	return res, nil
}

func (b *bench) show() string {
	var s strings.Builder
	h := b.head
	fmt.Fprintf(&s, "v%d epoch=%d", b.rev, h.Epoch)
	if h.LogStart > 0 {
		fmt.Fprintf(&s, " log-start=%d", h.LogStart)
	}
	s.WriteByte('\n')
	ref := func(indent string, r PageRef) {
		fmt.Fprintf(&s, "%s%d-%d %s: %d entries\n", indent, r.Base, r.Last, b.names[r.Suffix], r.Entries)
	}
	if h.Index != nil {
		ref("  index ", *h.Index)
		for _, r := range b.read(*h.Index).Refs {
			ref("    ", r)
		}
	}
	for _, r := range h.Pages {
		ref("  ", r)
	}
	for _, e := range h.Tail {
		fmt.Fprintf(&s, "  %d-%d %s", e.Base, e.Last, b.names[e.Suffix])
		if e.Last < h.LogStart {
			s.WriteString(" dead")
		}
		s.WriteByte('\n')
	}
	return s.String()
}

func (b *bench) entry(fields []string, epoch int32) (Entry, error) {
	r := strings.SplitN(fields[0], "-", 2)
	base, err1 := strconv.ParseInt(r[0], 10, 64)
	last, err2 := strconv.ParseInt(r[1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return Entry{}, err
	}
	name := fields[1]
	if e, ok := b.labels[name]; ok && e.Base == base && e.Last == last {
		return e, nil
	}
	e := Entry{Base: base, Last: last, Epoch: epoch, Bytes: 1000, FooterPos: 1008, FooterLen: 99, MaxTimestamp: last}
	copy(e.Suffix[:], name)
	for _, f := range fields[2:] {
		k, v, _ := strings.Cut(f, "=")
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return Entry{}, err
		}
		switch k {
		case "epoch":
			e.Epoch = int32(n)
		case "time":
			e.MaxTimestamp = n
		case "kind":
			e.Kind = Kind(n)
		default:
			return Entry{}, fmt.Errorf("unknown field %q", k)
		}
	}
	b.names[e.Suffix] = name
	b.labels[name] = e
	return e, nil
}

func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		b := newBench()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			num := func(key string, or int64) int64 {
				if d.HasArg(key) {
					d.ScanArgs(t, key, &or)
				}
				return or
			}
			switch d.Cmd {
			case "new":
				b = newBench()
				b.limits.Tail, b.limits.Keep = int(num("tail", 12)), int(num("keep", 4))
				b.limits.Page, b.limits.Pages, b.limits.Index = int(num("page", 1500)), int(num("pages", 16)), int(num("index", 1<<16))
				return ""
			case "high-watermark":
				b.hw = num("at", b.hw)
				return ""
			case "at-hand":
				b.cached = nil
				if d.HasArg("none") {
					b.cached = map[Suffix]bool{}
				}
				return ""
			case "edit":
				e := Edit{Epoch: int32(num("epoch", int64(b.head.Epoch)))}
				for line := range strings.Lines(d.Input) {
					f := strings.Fields(line)
					switch f[0] {
					case "add":
						x, err := b.entry(f[1:], e.Epoch)
						if err != nil {
							t.Fatal(err)
						}
						e.Add = append(e.Add, x)
					case "old", "new":
						if e.Replace == nil {
							e.Replace = &Replace{}
						}
						x, err := b.entry(f[1:], e.Epoch)
						if err != nil {
							t.Fatal(err)
						}
						if f[0] == "old" {
							e.Replace.Old = append(e.Replace.Old, x)
						} else {
							e.Replace.New = append(e.Replace.New, x)
						}
					case "log-start":
						e.LogStart, _ = strconv.ParseInt(f[1], 10, 64)
					default:
						t.Fatalf("unknown line %q", line)
					}
				}
				res, err := b.apply(e)
				if err != nil {
					return err.Error() + "\n"
				}
				out := ""
				for _, w := range res.Writes {
					out += "write " + b.names[w.Ref.Suffix] + "\n"
				}
				for _, r := range res.Gone {
					out += "gone " + b.names[r.Suffix] + "\n"
				}
				return out + b.show()
			case "find":
				e, ok, err := b.head.Find(num("offset", 0), b.page)
				return b.answer(e, ok, err)
			case "find-time":
				e, ok, err := b.head.FindTimestamp(num("at", 0), num("from", 0), b.page)
				return b.answer(e, ok, err)
			case "ends":
				n, bytes := b.head.Totals()
				return fmt.Sprintf("remote [%d, %d), next base %d, %d entries, %d bytes\n",
					b.head.RemoteStart(), b.head.RemoteEnd(), b.head.NextBase(), n, bytes)
			}
			t.Fatalf("unknown command %q", d.Cmd)
			return ""
		})
	})
}

func (b *bench) answer(e Entry, ok bool, err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	if !ok {
		return "nothing\n"
	}
	return fmt.Sprintf("%d-%d %s\n", e.Base, e.Last, b.names[e.Suffix])
}

// A long random life: whatever the edits, the entries cover [first base, remote
// end) exactly once, lookups agree with a plain list, and every page is either
// named, reported gone, or behind an index page.
func TestRandomLife(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		b := newBench()
		b.limits = Limits{Tail: 2 + rng.IntN(4), Keep: 1 + rng.IntN(2), Page: 2 + rng.IntN(5), Pages: 1 + rng.IntN(3), Index: 1000}
		var all []Entry // everything ever added, oldest first
		gone := map[Suffix]bool{}
		serial := uint16(0)
		fresh := func(base, last int64) Entry {
			serial++
			return Entry{Base: base, Last: last, Epoch: b.head.Epoch, Bytes: 1 + rng.Int64N(1000), FooterPos: 2000, FooterLen: 10,
				FooterCRC: rng.Uint32(), MaxTimestamp: rng.Int64N(100), Created: rng.Int64(), Suffix: Suffix{'e', byte(serial), byte(serial >> 8)}}
		}
		for range 60 {
			e := Edit{Epoch: b.head.Epoch + int32(rng.IntN(10)/9)}
			next := slices.Clone(all)
			switch op := rng.IntN(10); {
			case op < 7:
				base := b.head.NextBase()
				x := fresh(base, base+rng.Int64N(20))
				x.Epoch = e.Epoch
				if base > b.head.RemoteEnd() {
					next = nil
				}
				e.Add, next = []Entry{x}, append(next, x)
			case op < 9:
				e.LogStart = b.head.LogStart + rng.Int64N(30)
			default:
				// A run within the tail, as the compaction worker would merge it.
				if len(b.head.Tail) < 2 {
					continue
				}
				old := b.head.Tail[:1+rng.IntN(len(b.head.Tail)-1)]
				x := fresh(old[0].Base, old[len(old)-1].Last)
				x.Kind, x.Epoch = Rewritten, old[len(old)-1].Epoch
				e.Replace = &Replace{Old: slices.Clone(old), New: []Entry{x}}
				i := slices.Index(next, old[0])
				next = slices.Replace(next, i, i+len(old), x)
			}
			before := b.head
			res, err := b.apply(e)
			if err != nil {
				t.Fatalf("seed %d: %+v on %+v: %v", seed, e, before, err)
			}
			all = next
			for _, r := range res.Gone {
				gone[r.Suffix] = true
			}
			b.verify(t, seed, all)
			for _, w := range res.Writes {
				if gone[w.Ref.Suffix] {
					t.Fatalf("seed %d: page %v written and gone", seed, w.Ref)
				}
			}
		}
		named := map[Suffix]bool{}
		for _, r := range b.head.Named() {
			named[r.Suffix] = true
			for _, x := range b.page(r).Refs {
				named[x.Suffix] = true
			}
		}
		for s := range b.bucket {
			if named[s] && gone[s] {
				t.Fatalf("seed %d: page %x is named and gone", seed, s)
			}
			if !named[s] && !gone[s] {
				t.Fatalf("seed %d: page %x was lost", seed, s)
			}
		}
	}
}

func (b *bench) verify(t *testing.T, seed uint64, all []Entry) {
	t.Helper()
	h := b.head
	var live []Entry
	for _, e := range all {
		if e.Last >= h.LogStart {
			live = append(live, e)
		}
	}
	var got []Entry
	for at := int64(0); ; {
		e, ok, err := h.Find(at, b.page)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got = append(got, e)
		at = e.Next()
	}
	if !slices.Equal(got, live) {
		t.Fatalf("seed %d: walked\n%v\nwant\n%v", seed, got, live)
	}
	if n, ok := h.Newest(); len(all) > 0 && (!ok || n != all[len(all)-1]) {
		t.Fatalf("seed %d: newest %v", seed, n)
	}
	for range 5 {
		ts, from := rand.Int64N(110), h.LogStart+rand.Int64N(50)
		i := slices.IndexFunc(live, func(e Entry) bool { return e.Last >= from && e.MaxTimestamp >= ts })
		e, ok, err := h.FindTimestamp(ts, from, b.page)
		if err != nil || ok != (i >= 0) || ok && e != live[i] {
			t.Fatalf("seed %d: time %d from %d: %v %v %v", seed, ts, from, e, ok, err)
		}
	}
}

// A head stays at about 1 KiB and a page at about 60 KiB, with numbers as large
// as they get in practice.
func TestSizes(t *testing.T) {
	b := newBench()
	rng := rand.New(rand.NewPCG(1, 2))
	head, page := 0, 0
	base := int64(1) << 40
	b.head.LogStart = base
	created := int64(1_790_000_000_000)
	for i := range 60_000 {
		var s Suffix
		for j := range s {
			s[j] = byte(rng.Uint32())
		}
		n := 50_000 + rng.Int64N(50_000)
		created += 60_000 + rng.Int64N(1000)
		bytes := 60<<20 + rng.Int64N(8<<20)
		e := Entry{Base: base, Last: base + n - 1, Epoch: int32(100 + i/10000), Suffix: s, Bytes: bytes, FooterPos: bytes + 8, FooterLen: 9000 + rng.Int32N(100),
			FooterCRC: rng.Uint32(), MaxTimestamp: created - rng.Int64N(100_000), Created: created}
		b.rev = int64(1_000_000_000 + i*1000)
		res, err := b.apply(Edit{Epoch: e.Epoch, Add: []Entry{e}})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range res.Writes {
			page = max(page, len(w.Body))
		}
		for _, r := range res.Gone {
			delete(b.bucket, r.Suffix) // or the test would hold gigabytes
		}
		base += n
		head = max(head, len(res.Head.Encode()))
	}
	t.Logf("60,000 objects: head at most %d bytes, page at most %d", head, page)
	if head > 1500 || page > 80<<10 {
		t.Errorf("head of %d bytes, page of %d", head, page)
	}
}

func sample() *Head {
	e := func(base, last int64, kind Kind, s string) Entry {
		x := Entry{Base: base, Last: last, Epoch: 5, Kind: kind, Bytes: 1 << 20, FooterPos: 1<<20 + 8, FooterLen: 321, FooterCRC: 0xdeadbeef,
			MaxTimestamp: 1_700_000_000_000 + base, Created: 1_700_000_060_000 + base}
		copy(x.Suffix[:], s)
		return x
	}
	r := func(base, last int64, s string) PageRef {
		x := PageRef{Base: base, Last: last, Entries: 3, Bytes: 3 << 20, MaxTimestamp: 1_700_000_000_000 + base, Rev: 77, Epoch: 4, Size: 200, CRC: 0xcafe}
		copy(x.Suffix[:], s)
		return x
	}
	index := r(0, 9999, "index")
	return &Head{Epoch: 6, LogStart: 1234, Index: &index, Pages: []PageRef{r(10000, 19999, "page-one"), r(20000, 29999, "page-two")},
		Tail: []Entry{e(30000, 30999, Own, "own"), e(31000, 31499, Mixed, "mixed"), e(31500, 40000, Rewritten, "rewritten")}}
}

// What earlier versions wrote is readable for ever; version 2 is that of a head that has been compacted.
func TestVersions(t *testing.T) {
	h, compacted := sample(), sample()
	compacted.Compaction = Compaction{CleanEnd: 31000, End: 40001, Next: 31500}
	p := &Page{Entries: h.Tail}
	ix := &Page{Refs: h.Pages}
	for name, f := range map[string]struct {
		raw  []byte
		read func([]byte) (any, error)
		want any
	}{
		"v1.head":  {h.Encode(), func(b []byte) (any, error) { return DecodeHead(b) }, h},
		"v2.head":  {compacted.Encode(), func(b []byte) (any, error) { return DecodeHead(b) }, compacted},
		"v1.page":  {p.Encode(), func(b []byte) (any, error) { return decodePage(b) }, p},
		"v1.index": {ix.Encode(), func(b []byte) (any, error) { return decodePage(b) }, ix},
	} {
		path := "testdata/" + name
		if rewriting() {
			if err := os.WriteFile(path, f.raw, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.read(raw)
		if err != nil || !reflect.DeepEqual(got, f.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, f.want)
		}
		if !bytes.Equal(raw, f.raw) {
			t.Errorf("%s is not written as before", name)
		}
		for i := range raw {
			bad := slices.Clone(raw)
			bad[i] ^= 1 << (i % 8)
			if _, err := f.read(bad); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s with byte %d flipped: %v", name, i, err)
			}
			if _, err := f.read(raw[:i]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s cut to %d: %v", name, i, err)
			}
		}
	}
}

func TestNames(t *testing.T) {
	id := [16]byte{1, 2, 3, 255}
	for _, n := range []Name{
		{TopicID: id, Partition: 7, Base: 123, Epoch: 4, Suffix: Suffix{9}},
		{TopicID: id, Partition: 7, Base: math.MaxInt64, Epoch: math.MaxInt32, Suffix: Suffix{9}, Kind: Rewritten},
		{Kind: Mixed, Suffix: Suffix{1, 2}},
		{Page: true, TopicID: id, Base: 99, Epoch: 1, Suffix: Suffix{3}},
	} {
		got, ok := ParseKey(n.Key())
		if !ok || got != n {
			t.Errorf("%s: %+v %v, want %+v", n.Key(), got, ok, n)
		}
	}
	for _, k := range []string{"", "data/", "data/00/", "data/00/mixed-", "data/zz/mixed-010200000000000000000000", "page/00/mixed-010200000000000000000000",
		"data/00/x-1-1-1-1", "other", "cluster", "data/00/01-02-03", strings.Replace(Name{Suffix: Suffix{1}}.Key(), "data/", "data/x", 1)} {
		if n, ok := ParseKey(k); ok {
			t.Errorf("%q parsed as %+v", k, n)
		}
	}
	prefixes := map[string]int{}
	for i := range int64(20000) {
		k := Name{TopicID: id, Base: i * 1000, Suffix: Suffix{byte(i)}}.Key()
		prefixes[k[:len("data/00")]]++
	}
	for p, n := range prefixes {
		if n > 160 {
			t.Errorf("%d of 20,000 objects below %s", n, p)
		}
	}
	if len(prefixes) != 256 {
		t.Errorf("%d prefixes", len(prefixes))
	}
}

func FuzzHead(f *testing.F) {
	f.Add(sample().Encode()[4:])
	f.Add((&Head{}).Encode()[4:])
	f.Add(body(&Page{Entries: sample().Tail}))
	f.Add(body(&Page{Refs: sample().Pages}))
	c := &Head{Tail: sample().Tail, Epoch: 6, Compaction: Compaction{CleanEnd: 31000, End: 40001, Next: 31500}}
	f.Add(c.Encode()[4 : len(c.Encode())-trailer])
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum is made to fit, or nothing behind it would be reached.
		for v := byte(version); v <= compacted; v++ {
			h, err := DecodeHead(seal(headMagic, v, b))
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
				continue
			}
			again, err := DecodeHead(h.Encode())
			if err != nil || !reflect.DeepEqual(again, h) {
				t.Fatalf("%+v became %+v, %v", h, again, err)
			}
			h.RemoteStart()
			h.Find(math.MaxInt64, func(PageRef) *Page { return nil })
			h.FindTimestamp(5, 5, func(PageRef) *Page { return nil })
			h.Compacted()
			h.Apply(Edit{Epoch: math.MaxInt32, LogStart: math.MaxInt64}, Input{HighWatermark: math.MaxInt64, NewSuffix: func() Suffix { return Suffix{} }})
			h.Apply(Edit{Epoch: math.MaxInt32, Compaction: &Compaction{CleanEnd: math.MaxInt64}}, Input{HighWatermark: math.MaxInt64})
		}
		page := seal(pageMagic, version, b)
		if p, err := decodePage(page); err == nil {
			again, err := decodePage(p.Encode())
			if err != nil || !reflect.DeepEqual(again, p) {
				t.Fatalf("%+v became %+v, %v", p, again, err)
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func body(p *Page) []byte {
	b := p.Encode()
	return b[4 : len(b)-trailer]
}

func seal(magic string, version byte, b []byte) []byte {
	out := append([]byte(magic), version)
	out = append(out, b...)
	sum := checksum(out)
	return append(out, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
}

// Timestamps are the client's to choose: any after any other must come back.
func TestTimestampsOfAllSizes(t *testing.T) {
	all := []int64{-1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}
	for _, first := range all {
		for _, second := range all {
			h := sample()
			h.Tail[0].MaxTimestamp, h.Tail[1].MaxTimestamp = first, second
			h.Pages[0].MaxTimestamp, h.Pages[1].MaxTimestamp = first, second
			got, err := DecodeHead(h.Encode())
			if err != nil || !reflect.DeepEqual(got, h) {
				t.Errorf("%d, then %d: %v", first, second, err)
			}
		}
	}
}
