package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Check is CheckCost for those to whom the estimate is nothing.
func Check(key, version int16, body []byte) error {
	_, err := CheckCost(key, version, body)
	return err
}

// The schema is that of kmsg: the same keys, versions and flexible versions.
func TestSchemaHasEveryRequest(t *testing.T) {
	for key := int16(0); key <= kmsg.MaxKey; key++ {
		r := kmsg.RequestForKey(key)
		flexibleFrom, maxVersion, ok := versionsOf(key)
		if ok != (r != nil) {
			t.Errorf("key %d: in the schema %v, in kmsg %v", key, ok, r != nil)
		}
		if r == nil {
			continue
		}
		if maxVersion != r.MaxVersion() {
			t.Errorf("key %d: newest version %d, in kmsg %d", key, maxVersion, r.MaxVersion())
		}
		for v := int16(0); v <= maxVersion; v++ {
			if r.SetVersion(v); r.IsFlexible() != (v >= flexibleFrom) {
				t.Errorf("key %d version %d: flexible in kmsg %v", key, v, r.IsFlexible())
			}
		}
	}
}

// What kmsg encodes, Check accepts to the last byte; any part of it, and anything more, it does not. What Check accepts,
// kmsg decodes, to the same message.
func TestEveryVersionRoundTrips(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	everyVersion(func(key, version int16) {
		for round := range rounds {
			f := newFiller(uint64(key)<<32 | uint64(version)<<16 | uint64(round))
			body := f.request(key, version).AppendTo(nil)
			if err := Check(key, version, body); err != nil {
				t.Errorf("%s version %d round %d: %v\n%x", kmsg.NameForKey(key), version, round, err, body)
				return
			}
			r := kmsg.RequestForKey(key)
			r.SetVersion(version)
			if err := r.ReadFrom(body); err != nil {
				t.Errorf("%s version %d round %d: checked, but kmsg says %v", kmsg.NameForKey(key), version, round, err)
			}
			if again := r.AppendTo(nil); !bytes.Equal(again, body) {
				t.Errorf("%s version %d round %d: kmsg re-encodes\n%x\nas\n%x", kmsg.NameForKey(key), version, round, body, again)
			}
			for n := range body {
				if err := Check(key, version, body[:n:n]); !errors.Is(err, ErrMalformed) {
					t.Errorf("%s version %d round %d: the first %d of %d bytes: %v", kmsg.NameForKey(key), version, round, n, len(body), err)
				}
			}
			for n, wrong := range map[int]bool{1: false, 5: false, maxStray: false, maxStray + 1: true} {
				stray := bytes.Repeat([]byte{1}, n)
				if err := Check(key, version, append(bytes.Clone(body), stray...)); errors.Is(err, ErrMalformed) != wrong {
					t.Errorf("%s version %d round %d: with %d bytes after it: %v", kmsg.NameForKey(key), version, round, n, err)
				}
			}
			w := walk{b: body, end: len(body), limit: math.MaxInt64}
			if w.run(&schemas[key].versions[version], 1); w.pos != len(body) {
				t.Errorf("%s version %d round %d: the walk ends at %d of %d", kmsg.NameForKey(key), version, round, w.pos, len(body))
			}
		}
	})
}

// place is where an encoded request has something with a length.
type place struct {
	op  *op
	pos int
}

// places walks a well-formed body like Check does, and notes what it passes.
func places(p *program, body []byte) []place {
	var out []place
	pos := 0
	var run func(p *program)
	length := func(o *op, width int) int {
		out = append(out, place{o, pos})
		if o.compact {
			u, n := binary.Uvarint(body[pos:])
			pos += n
			return int(u) - 1
		}
		pos += width
		if width == 2 {
			return int(int16(binary.BigEndian.Uint16(body[pos-2:])))
		}
		return int(int32(binary.BigEndian.Uint32(body[pos-4:])))
	}
	run = func(p *program) {
		for i := range p.ops {
			o := &p.ops[i]
			switch o.code {
			case opSkip:
				pos += int(o.n)
			case opString:
				pos += max(0, length(o, 2))
			case opBytes:
				pos += max(0, length(o, 4))
			case opArrayFixed:
				pos += max(0, length(o, 4)) * int(o.n)
			case opArray:
				for range max(0, length(o, 4)) {
					run(o.elem)
				}
			case opNullStruct:
				out = append(out, place{o, pos})
				pos++
				if body[pos-1] == 1 {
					run(o.elem)
				}
			case opTags:
				out = append(out, place{o, pos})
				count, n := binary.Uvarint(body[pos:])
				pos += n
				for range count {
					tag, n := binary.Uvarint(body[pos:])
					pos += n
					size, n := binary.Uvarint(body[pos:])
					pos += n
					after := pos + int(size)
					for j := range o.tags {
						if o.tags[j].tag == uint32(tag) {
							run(&o.tags[j].program)
						}
					}
					pos = after
				}
			}
		}
	}
	run(p)
	return out
}

// splice replaces the length at a place.
func splice(body []byte, at place, length int64) []byte {
	out := append([]byte(nil), body[:at.pos]...)
	if at.op.code == opTags {
		_, n := binary.Uvarint(body[at.pos:])
		out = binary.AppendUvarint(out, uint64(uint32(length)))
		return append(out, body[at.pos+n:]...)
	}
	if at.op.compact {
		_, n := binary.Uvarint(body[at.pos:])
		out = binary.AppendUvarint(out, uint64(uint32(length+1)))
		return append(out, body[at.pos+n:]...)
	}
	if at.op.code == opString {
		out = binary.BigEndian.AppendUint16(out, uint16(length))
		return append(out, body[at.pos+2:]...)
	}
	out = binary.BigEndian.AppendUint32(out, uint32(length))
	return append(out, body[at.pos+4:]...)
}

// B2, B3, B5, B7: in every length of every version, the inflated, the negative, and null where it is not allowed. kmsg
// alone would allocate, spin, or take them for something else.
func TestHostileLengthsAreRefused(t *testing.T) {
	seen := map[opcode]int{}
	refuse := func(key, version int16, body []byte, what string, at place) {
		t.Helper()
		if err := Check(key, version, body); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s version %d: %s at byte %d: %v", kmsg.NameForKey(key), version, what, at.pos, err)
		}
	}
	everyVersion(func(key, version int16) {
		f := newFiller(uint64(key)<<32 | uint64(version)<<16 | 7)
		f.noNull = true
		f.elements = func(*rand.Rand) int { return 1 }
		r := f.request(key, version)
		body := r.AppendTo(nil)
		if err := Check(key, version, body); err != nil {
			t.Fatalf("%s version %d: %v", kmsg.NameForKey(key), version, err)
		}
		for _, at := range places(&schemas[key].versions[version], body) {
			seen[at.op.code]++
			rest := int64(len(body) - at.pos)
			switch at.op.code {
			case opNullStruct:
				for _, c := range []byte{0, 2, 0x80, 0xfe} {
					b := bytes.Clone(body)
					b[at.pos] = c
					refuse(key, version, b, fmt.Sprintf("presence %d", int8(c)), at)
				}
				continue
			case opTags:
				for _, n := range []int64{math.MaxUint32, math.MaxInt32, rest / 2, MaxTags + 1} {
					if n > 4 {
						refuse(key, version, splice(body, at, n), fmt.Sprintf("%d tags", n), at)
					}
				}
				continue
			case opString:
				refuse(key, version, splice(body, at, math.MaxInt16), "longest string", at)
			case opBytes:
				refuse(key, version, splice(body, at, math.MaxInt32), "longest bytes", at)
				refuse(key, version, splice(body, at, rest+1), "too many bytes", at)
			default:
				refuse(key, version, splice(body, at, math.MaxInt32), "most elements", at)
				refuse(key, version, splice(body, at, math.MaxInt32-1), "most elements but one", at)
				refuse(key, version, splice(body, at, rest/int64(at.op.n)+1), "too many elements", at)
			}
			if at.op.compact {
				refuse(key, version, splice(body, at, math.MaxUint32-1), "length 2^32-2", at)
				for _, c := range [][]byte{{0x80, 0x00}, {0x81, 0x80, 0x00}, {0xff, 0xff, 0xff, 0xff, 0x1f}, {0xff, 0xff, 0xff, 0xff, 0xff, 0x01}} {
					_, n := binary.Uvarint(body[at.pos:])
					b := append(append(bytes.Clone(body[:at.pos]), c...), body[at.pos+n:]...)
					refuse(key, version, b, fmt.Sprintf("varint %x", c), at)
				}
			} else {
				refuse(key, version, splice(body, at, -2), "length -2", at)
				refuse(key, version, splice(body, at, math.MinInt16), "length -32768", at)
			}
			if !at.op.nullable {
				refuse(key, version, splice(body, at, -1), "null", at)
			}
		}
	})
	for _, c := range []opcode{opString, opBytes, opArrayFixed, opArray, opNullStruct, opTags} {
		if seen[c] == 0 {
			t.Errorf("no message has operation %d", c)
		}
	}
	t.Logf("%d arrays, %d strings, %d bytes, %d tag sections, %d nullable structs", seen[opArray]+seen[opArrayFixed], seen[opString], seen[opBytes], seen[opTags], seen[opNullStruct])
}

// B7: everything empty, and everything null that may be, is a well-formed request that kmsg decodes.
func TestEmptyRequestsAreWellFormed(t *testing.T) {
	everyVersion(func(key, version int16) {
		empty := newFiller(1)
		empty.noNull = true
		empty.elements = func(*rand.Rand) int { return 0 }
		for _, r := range []kmsg.Request{kmsg.RequestForKey(key), empty.request(key, version)} {
			r.SetVersion(version)
			body := r.AppendTo(nil)
			if err := Check(key, version, body); err != nil {
				t.Errorf("%s version %d: %v", kmsg.NameForKey(key), version, err)
			}
			if err := r.ReadFrom(body); err != nil {
				t.Errorf("%s version %d: kmsg: %v", kmsg.NameForKey(key), version, err)
			}
		}
	})
}

// allocated is what f allocates, in bytes. The runtime and other goroutines of the test binary may add to it, hence the
// least of a few runs.
func allocated(f func()) int64 {
	least := int64(math.MaxInt64)
	for range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, int64(after.TotalAlloc-before.TotalAlloc))
	}
	return least
}

// The estimate of CheckCost is an upper bound of what kmsg allocates, and not an absurd one.
func TestCostBoundsWhatIsAllocated(t *testing.T) {
	const slack = 4096
	worst := 0.0
	everyVersion(func(key, version int16) {
		f := newFiller(uint64(key)<<16 | uint64(version))
		f.elements = func(r *rand.Rand) int { return r.IntN(8) }
		body := f.request(key, version).AppendTo(nil)
		cost, err := CheckCost(key, version, body)
		if err != nil {
			t.Errorf("%s version %d: %v", kmsg.NameForKey(key), version, err)
			return
		}
		got := allocated(func() {
			r := kmsg.RequestForKey(key)
			r.SetVersion(version)
			if err := r.ReadFrom(body); err != nil {
				t.Error(err)
			}
		})
		if got > cost+slack && !race {
			t.Errorf("%s version %d: %d bytes estimated, %d allocated, body of %d", kmsg.NameForKey(key), version, cost, got, len(body))
		}
		if got > 16<<10 {
			worst = max(worst, float64(cost)/float64(got))
		}
	})
	if worst > 4 {
		t.Errorf("an estimate is %.1f times what was allocated", worst)
	}
	t.Logf("largest estimate over allocation: %.2f", worst)
}

func TestCostOfLargeRequests(t *testing.T) {
	for _, c := range []struct {
		name         string
		key, version int16
		body         []byte
	}{
		{"fetch v4, 5000 partitions", 1, 4, fetchRequest(4, 5000, 1)},
		{"fetch v12, 5000 partitions", 1, 12, fetchRequest(12, 5000, 1)},
		{"fetch v17, 5000 topics", 1, 17, fetchRequest(17, 5000, 5000)},
		{"metadata v12, 5000 topics", 3, 12, metadataRequest(12, 5000)},
		{"metadata v1, 5000 topics", 3, 1, metadataRequest(1, 5000)},
		{"offset commit v8, 5000 partitions", 8, 8, offsetCommitRequest(5000)},
	} {
		cost, err := CheckCost(c.key, c.version, c.body)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := allocated(func() {
			r := kmsg.RequestForKey(c.key)
			r.SetVersion(c.version)
			_ = r.ReadFrom(c.body)
		})
		t.Logf("%s: body %d, estimate %d (%.1fx), allocated %d", c.name, len(c.body), cost, float64(cost)/float64(len(c.body)), got)
		if (got > cost+4096 || cost > 2*got) && !race {
			t.Errorf("%s: %d bytes estimated, %d allocated", c.name, cost, got)
		}
	}
}

func fetchRequest(version int16, partitions, topics int) []byte {
	r := kmsg.NewPtrFetchRequest()
	r.Version = version
	for i := range topics {
		t := kmsg.NewFetchRequestTopic()
		t.Topic = fmt.Sprintf("a-topic-%d", i)
		for p := range partitions / topics {
			fp := kmsg.NewFetchRequestTopicPartition()
			fp.Partition = int32(p)
			t.Partitions = append(t.Partitions, fp)
		}
		r.Topics = append(r.Topics, t)
	}
	return r.AppendTo(nil)
}

func metadataRequest(version int16, topics int) []byte {
	r := kmsg.NewPtrMetadataRequest()
	r.Version = version
	for i := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(fmt.Sprintf("a-topic-%d", i))
		r.Topics = append(r.Topics, t)
	}
	return r.AppendTo(nil)
}

func offsetCommitRequest(partitions int) []byte {
	r := kmsg.NewPtrOffsetCommitRequest()
	r.Version = 8
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = "a-topic"
	for p := range partitions {
		cp := kmsg.NewOffsetCommitRequestTopicPartition()
		cp.Partition = int32(p)
		cp.Metadata = kmsg.StringPtr("")
		t.Partitions = append(t.Partitions, cp)
	}
	r.Topics = append(r.Topics, t)
	return r.AppendTo(nil)
}

// B3. kmsg alone spends minutes on these seven bytes.
func TestTagCountOfSevenBytes(t *testing.T) {
	body := []byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f}
	err := Check(KeyApiVersions, 3, body)
	var at *BodyError
	if !errors.As(err, &at) || at.What != badTagCount {
		t.Fatalf("got %v", err)
	}
	// The same in the header.
	frame := append([]byte{0, 18, 0, 3, 0, 0, 0, 1, 0xff, 0xff}, 0xff, 0xff, 0xff, 0xff, 0x0f)
	if _, _, err := ParseHeader(frame); !errors.Is(err, ErrMalformed) {
		t.Fatalf("header: %v", err)
	}
}

// B3. 10 MiB of distinct unknown tags, which kmsg alone would keep in a map of hundreds of megabytes.
func TestManyTags(t *testing.T) {
	const size = 10 << 20
	var tags []byte
	count := 0
	for ; len(tags) < size; count++ {
		tags = append(appendUvarint(tags, uint32(count)), 0)
	}
	body := append(appendUvarint([]byte{1, 1}, uint32(count)), tags...)
	if err := Check(KeyApiVersions, 3, body); !errors.Is(err, ErrMalformed) {
		t.Fatalf("got %v", err)
	}
	// As many as a section may have, in every element of an array.
	body = []byte{}
	elements := size / (2*MaxTags + 3)
	body = appendUvarint(body, uint32(elements+1))
	for range elements {
		body = append(body, 1, MaxTags)
		for tag := range MaxTags {
			body = append(body, byte(tag), 0)
		}
	}
	body = append(body, 1, 0, 0, 0)
	if err := Check(3, 9, body); !errors.Is(err, ErrTooCostly) {
		t.Fatalf("got %v", err)
	}
}

// B4. Tags are unknown, known, or hostile.
func TestTags(t *testing.T) {
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version = 15
	base := fetch.AppendTo(nil)
	base = base[:len(base)-1] // without its empty tag section
	replicaState := []byte{0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0}
	tagged := func(parts ...[]byte) []byte { return append(bytes.Clone(base), bytes.Join(parts, nil)...) }
	for _, c := range []struct {
		name string
		body []byte
		want string
	}{
		{"none", tagged([]byte{0}), ""},
		{"an unknown one", tagged([]byte{1, 50, 3}, []byte("abc")), ""},
		{"a known one", tagged([]byte{1, 1, 13}, replicaState), ""},
		{"known, then unknown", tagged([]byte{2, 1, 13}, replicaState, []byte{7, 0}), ""},
		{"unknown twice", tagged([]byte{2, 50, 0, 50, 0}), badTagOrder},
		{"known twice", tagged([]byte{2, 1, 13}, replicaState, []byte{1, 13}, replicaState), badTagOrder},
		{"descending", tagged([]byte{2, 51, 0, 50, 0}), badTagOrder},
		{"known after unknown", tagged([]byte{2, 50, 0, 1, 13}, replicaState), badTagOrder},
		{"size beyond the body", tagged([]byte{1, 50, 4}, []byte("abc")), badShort},
		{"known, size beyond the body", tagged([]byte{1, 1, 14}, replicaState), badShort},
		{"known, one byte short", tagged([]byte{1, 1, 12}, replicaState), badVarint},
		{"known, a byte too many", tagged([]byte{1, 1, 14}, replicaState, []byte{0}), badTagSize},
		{"known, empty", tagged([]byte{1, 1, 0}), badShort},
		{"known, cut off", tagged([]byte{1, 1, 13}, replicaState[:5]), badShort},
		{"more than the section says", tagged([]byte{1, 50, 0, 51, 0}, make([]byte, maxStray)), badTrailing},
		{"fewer than the section says", tagged([]byte{2, 50, 0, 51}), badTagCount},
		{"overlong count", tagged([]byte{0x80, 0}), badVarint},
		{"overlong tag", tagged([]byte{1, 0x80, 0, 0}), badVarint},
		{"overlong size", tagged([]byte{1, 50, 0x80, 0}), badVarint},
	} {
		err := Check(1, 15, c.body)
		var at *BodyError
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.As(err, &at) || at.What != c.want):
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
}

// B2. Bodies of 10 MiB whose arrays promise what the bytes could just hold if elements were a byte long, and bodies
// whose elements are as small as they can be.
func TestAllocationIsProportional(t *testing.T) {
	const size = 10 << 20
	for _, c := range []struct {
		name         string
		key, version int16
		body         []byte
	}{
		{"metadata v0, promised", 3, 0, binary.BigEndian.AppendUint32(nil, size)},
		{"metadata v0, empty names", 3, 0, binary.BigEndian.AppendUint32(nil, size/2)},
		{"metadata v9, empty names", 3, 9, appendUvarint(nil, size/2+1)},
		{"delete topics v1, empty names", 20, 1, binary.BigEndian.AppendUint32(nil, size/2-4)},
		{"describe groups v0, empty names", 15, 0, binary.BigEndian.AppendUint32(nil, size/2)},
		{"fetch v4, empty topics", 1, 4, append(make([]byte, 17), binary.BigEndian.AppendUint32(nil, size/6)...)},
	} {
		body := append(c.body, make([]byte, size)...)
		var err error
		got := allocated(func() { err = Check(c.key, c.version, body) })
		if err == nil {
			t.Errorf("%s: accepted", c.name)
		}
		if got > 4096 {
			t.Errorf("%s: the refusal allocated %d bytes", c.name, got)
		}
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	body := fetchRequest(12, 100, 10)
	if n := testing.AllocsPerRun(100, func() {
		if err := Check(1, 12, body); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestUnknownKeysAndVersions(t *testing.T) {
	for _, key := range []int16{-1, 95, math.MaxInt16, math.MinInt16} {
		if err := Check(key, 0, nil); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("key %d: %v", key, err)
		}
	}
	for _, v := range []int16{-1, 99, math.MaxInt16} {
		if err := Check(KeyApiVersions, v, nil); !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

func TestBodyErrorSaysWhere(t *testing.T) {
	err := Check(3, 1, []byte{0, 0, 0, 1, 0xff, 0xfe})
	if err == nil || !strings.Contains(err.Error(), "key 3 version 1, byte 4: negative length") {
		t.Errorf("got %v", err)
	}
}

// Whatever Check accepts, kmsg decodes, within the estimate.
func FuzzBody(f *testing.F) {
	everyVersion(func(key, version int16) {
		f.Add(key, version, newFiller(uint64(key)).request(key, version).AppendTo(nil))
	})
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		cost, err := CheckCost(key, version, body)
		if err != nil {
			return
		}
		if cost > MaxAlloc(len(body)) {
			t.Fatalf("accepted at a cost of %d, body of %d", cost, len(body))
		}
		var r kmsg.Request
		got := allocated(func() {
			r = kmsg.RequestForKey(key)
			r.SetVersion(version)
			err = r.ReadFrom(body)
		})
		if err != nil {
			t.Fatalf("checked, but kmsg says %v", err)
		}
		if got > cost+64<<10 && !race {
			t.Fatalf("%d bytes estimated, %d allocated", cost, got)
		}
		if err := Check(key, version, r.AppendTo(nil)); err != nil {
			t.Fatalf("re-encoded: %v", err)
		}
	})
}

// A frame off the wire: header, then body.
func FuzzFrame(f *testing.F) {
	everyVersion(func(key, version int16) {
		f.Add(appendRequest(key, version, kmsg.StringPtr("client"), newFiller(uint64(key)).request(key, version).AppendTo(nil)))
	})
	f.Fuzz(func(t *testing.T, frame []byte) {
		h, body, err := ParseHeader(frame)
		if err != nil || Check(h.Key, h.Version, body) != nil {
			return
		}
		r := kmsg.RequestForKey(h.Key)
		r.SetVersion(h.Version)
		if err := r.ReadFrom(body); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	for _, c := range []struct {
		name         string
		key, version int16
		body         []byte
	}{
		{"produce-1", 0, 11, produceRequest(11, 1, 1024)},
		{"produce-100", 0, 11, produceRequest(11, 100, 1024)},
		{"produce-1000", 0, 11, produceRequest(11, 1000, 1024)},
		{"fetch-1", 1, 17, fetchRequest(17, 1, 1)},
		{"fetch-100", 1, 17, fetchRequest(17, 100, 1)},
		{"fetch-1000", 1, 17, fetchRequest(17, 1000, 1)},
		{"fetch-v4-1000", 1, 4, fetchRequest(4, 1000, 1)},
		{"metadata-1000", 3, 12, metadataRequest(12, 1000)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(c.key, c.version, c.body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The longest that bytes off the wire can keep the walk, per MiB of them.
func BenchmarkCheckHostile(b *testing.B) {
	const size = 10 << 20
	tagged := appendUvarint(nil, size/(2*MaxTags+3)+1)
	for len(tagged) < size {
		tagged = append(tagged, 1, MaxTags)
		for tag := range MaxTags {
			tagged = append(tagged, byte(tag), 0)
		}
	}
	names := appendUvarint(nil, size/5+1)
	for len(names) < size {
		names = append(names, 4, 'a', 'b', 'c', 0)
	}
	for _, c := range []struct {
		name         string
		key, version int16
		body         []byte
	}{
		{"tags-in-7-bytes", KeyApiVersions, 3, []byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f}},
		{"array-of-2^31", 3, 1, append([]byte{0x7f, 0xff, 0xff, 0xff}, make([]byte, size)...)},
		{"tags-everywhere", 3, 9, tagged},
		{"short-names", 3, 9, names},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.body)))
			for b.Loop() {
				if Check(c.key, c.version, c.body) == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}

func BenchmarkCompileSchemas(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		compileSchemas()
	}
}

func produceRequest(version int16, partitions, bytes int) []byte {
	r := kmsg.NewPtrProduceRequest()
	r.Version = version
	t := kmsg.NewProduceRequestTopic()
	t.Topic = "a-topic"
	for p := range partitions {
		pp := kmsg.NewProduceRequestTopicPartition()
		pp.Partition = int32(p)
		pp.Records = make([]byte, bytes)
		t.Partitions = append(t.Partitions, pp)
	}
	r.Topics = append(r.Topics, t)
	return r.AppendTo(nil)
}

// The request of librdkafka 2.11 and later for all topics: five bytes follow the message, one of them not zero.
func TestStrayBytesOfLibrdkafka(t *testing.T) {
	body := []byte{0, 0, 0, 0, 0, 1, 0, 0, 0}
	if err := Check(3, 13, body); err != nil {
		t.Fatal(err)
	}
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 13
	if err := req.ReadFrom(body); err != nil || req.Topics != nil {
		t.Fatalf("%v, topics %v", err, req.Topics)
	}
}
