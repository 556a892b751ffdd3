package manifest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Heads and pages share one shape: three bytes that say what it is, a version,
// the body in varints, and a CRC32C of everything before it. Lists are delta
// coded: an entry begins where the one before it ended. A head that has been
// compacted has version 2 and ends with how far.
const (
	version   = 1
	compacted = 2 // version of a head with a Compaction
	headMagic = "VMH"
	pageMagic = "VMP"
	trailer   = 4

	// MaxPageBytes bounds what is read for a page.
	MaxPageBytes = 16 << 20

	minEntry = 1 + 1 + 1 + len(Suffix{}) + 1 + 1 + 1 + 4 + 1 + 1
	minRef   = 1 + 1 + 1 + 1 + 1 + 1 + len(Suffix{}) + 1 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Encode returns the head as stored.
func (h *Head) Encode() []byte {
	b := append(make([]byte, 0, 1024), headMagic...)
	if h.Compaction != (Compaction{}) {
		b = append(b, compacted)
	} else {
		b = append(b, version)
	}
	b = binary.AppendUvarint(b, uint64(h.Epoch))
	b = binary.AppendUvarint(b, uint64(h.LogStart))
	refs := h.Pages
	if h.Index != nil {
		b = append(b, 1)
		refs = append([]PageRef{*h.Index}, refs...)
	} else {
		b = append(b, 0)
	}
	b = appendRefs(b, refs)
	b = appendEntries(b, h.Tail)
	if c := h.Compaction; c != (Compaction{}) {
		for _, v := range []int64{c.CleanEnd, c.End, c.Next} {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

// Encode returns the page as stored.
func (p *Page) Encode() []byte {
	b := append(make([]byte, 0, 64+44*(len(p.Entries)+len(p.Refs))), pageMagic...)
	b = append(b, version)
	b = appendRefs(b, p.Refs)
	b = appendEntries(b, p.Entries)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func appendEntries(b []byte, list []Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	var prev Entry
	for i, e := range list {
		if i == 0 {
			b = binary.AppendUvarint(b, uint64(e.Base))
		}
		b = binary.AppendUvarint(b, uint64(e.Last-e.Base))
		b = binary.AppendVarint(b, int64(e.Epoch-prev.Epoch))
		b = append(b, byte(e.Kind))
		b = append(b, e.Suffix[:]...)
		b = binary.AppendUvarint(b, uint64(e.Bytes))
		b = binary.AppendVarint(b, e.FooterPos-e.Bytes)
		b = binary.AppendUvarint(b, uint64(e.FooterLen))
		b = binary.BigEndian.AppendUint32(b, e.FooterCRC)
		b = binary.AppendVarint(b, e.MaxTimestamp-prev.MaxTimestamp)
		b = binary.AppendVarint(b, e.Created-prev.Created)
		prev = e
	}
	return b
}

func appendRefs(b []byte, list []PageRef) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	var prev PageRef
	for i, r := range list {
		if i == 0 {
			b = binary.AppendUvarint(b, uint64(r.Base))
		}
		b = binary.AppendUvarint(b, uint64(r.Last-r.Base))
		b = binary.AppendUvarint(b, uint64(r.Entries))
		b = binary.AppendUvarint(b, uint64(r.Bytes))
		b = binary.AppendVarint(b, r.MaxTimestamp-prev.MaxTimestamp)
		b = binary.AppendVarint(b, r.Rev-prev.Rev)
		b = binary.AppendVarint(b, int64(r.Epoch-prev.Epoch))
		b = append(b, r.Suffix[:]...)
		b = binary.AppendUvarint(b, uint64(r.Size))
		b = binary.BigEndian.AppendUint32(b, r.CRC)
		prev = r
	}
	return b
}

// DecodeHead reads what Head.Encode wrote. It returns ErrCorrupt for anything
// else, a head that breaks a rule of this package included.
func DecodeHead(b []byte) (*Head, error) {
	d, err := open(b, headMagic)
	if err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	h := &Head{Epoch: d.int32(d.uint()), LogStart: d.uint()}
	indexed := d.byte()
	refs := d.refs()
	h.Tail = d.entries()
	if d.version == compacted {
		h.Compaction = Compaction{CleanEnd: d.uint(), End: d.uint(), Next: d.uint()}
		if h.Compaction == (Compaction{}) {
			d.fail("version 2 without a compaction")
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	if indexed > 1 || indexed == 1 && len(refs) == 0 {
		return nil, fmt.Errorf("head: %w: index flag %d with %d pages", ErrCorrupt, indexed, len(refs))
	}
	if n := len(refs); n > 0 && (len(h.Tail) == 0 || refs[n-1].Next() != h.Tail[0].Base) {
		return nil, fmt.Errorf("head: %w: pages end at %d, tail begins elsewhere", ErrCorrupt, refs[n-1].Next())
	}
	if n := len(h.Tail); n > 0 && h.Tail[n-1].Epoch > h.Epoch {
		return nil, fmt.Errorf("head: %w: entry of epoch %d in a head of %d", ErrCorrupt, h.Tail[n-1].Epoch, h.Epoch)
	}
	if indexed == 1 {
		h.Index, refs = &refs[0], refs[1:]
	}
	h.Pages = refs
	return h, nil
}

// DecodePage reads the page that ref names.
func DecodePage(b []byte, ref PageRef) (*Page, error) {
	if len(b) != int(ref.Size) || checksum(b) != ref.CRC {
		return nil, fmt.Errorf("page %d-%d: %w: not the page that is named", ref.Base, ref.Last, ErrCorrupt)
	}
	p, err := decodePage(b)
	if err != nil {
		return nil, fmt.Errorf("page %d-%d: %w", ref.Base, ref.Last, err)
	}
	var base, last int64
	if len(p.Refs) > 0 {
		base, last = p.Refs[0].Base, p.Refs[len(p.Refs)-1].Last
	} else {
		base, last = p.Entries[0].Base, p.Entries[len(p.Entries)-1].Last
	}
	if base != ref.Base || last != ref.Last {
		return nil, fmt.Errorf("page %d-%d: %w: covers %d-%d", ref.Base, ref.Last, ErrCorrupt, base, last)
	}
	return p, nil
}

func decodePage(b []byte) (*Page, error) {
	d, err := open(b, pageMagic)
	if err != nil {
		return nil, err
	}
	p := &Page{Refs: d.refs()}
	p.Entries = d.entries()
	if err := d.end(); err != nil {
		return nil, err
	}
	if (len(p.Refs) > 0) == (len(p.Entries) > 0) {
		return nil, fmt.Errorf("%w: %d pages and %d entries", ErrCorrupt, len(p.Refs), len(p.Entries))
	}
	return p, nil
}

// decoder reads varints until the first error, which it keeps.
type decoder struct {
	b       []byte
	version byte
	err     error
}

func open(b []byte, magic string) (*decoder, error) {
	n := len(magic)
	if len(b) < n+1+trailer || string(b[:n]) != magic {
		return nil, fmt.Errorf("%w: no %s", ErrCorrupt, magic)
	}
	if b[n] != version && !(b[n] == compacted && magic == headMagic) {
		return nil, fmt.Errorf("%w: version %d, known %d", ErrCorrupt, b[n], version)
	}
	body := b[:len(b)-trailer]
	if checksum(body) != binary.BigEndian.Uint32(b[len(b)-trailer:]) {
		return nil, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	return &decoder{b: body[n+1:], version: b[n]}, nil
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes behind the end")
	}
	return d.err
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("too short")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

// uint reads an unsigned varint that fits an int64.
func (d *decoder) uint() int64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > math.MaxInt64 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return int64(v)
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int32(v int64) int32 {
	if v < 0 || v > math.MaxInt32 {
		d.fail("number out of range")
		return 0
	}
	return int32(v)
}

// sum adds a delta; the result must not be below low.
func (d *decoder) sum(prev, delta, low int64) int64 {
	v := prev + delta
	if (delta > 0) != (v > prev) && delta != 0 || v < low {
		d.fail("number out of range")
		return low
	}
	return v
}

// timestamp adds a delta to a timestamp, modulo 2^64: from -1 to 2^63-1, which
// clients may send, is more than an int64 holds.
func (d *decoder) timestamp(prev int64) int64 {
	v := prev + d.int()
	if v < -1 {
		d.fail("number out of range")
		return -1
	}
	return v
}

func (d *decoder) bytes(n int) []byte {
	if len(d.b) < n {
		d.fail("too short")
		return make([]byte, n)
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// count reads the length of a list of which each element takes at least size
// bytes: what cannot be there is not allocated for.
func (d *decoder) count(size int) int {
	n := d.uint()
	if n > int64(len(d.b)/size) {
		d.fail("list longer than its bytes")
		return 0
	}
	return int(n)
}

// next reads a range's last offset, given where it begins.
func (d *decoder) last(base int64) int64 {
	v := d.sum(base, d.uint(), 0)
	if v == math.MaxInt64 {
		d.fail("number out of range")
		return base
	}
	return v
}

func (d *decoder) entries() []Entry {
	n := d.count(minEntry)
	if n == 0 {
		return nil
	}
	list := make([]Entry, 0, n)
	base := d.uint()
	var prev Entry
	for range n {
		e := Entry{Base: base, Last: d.last(base)}
		e.Epoch = d.int32(d.sum(int64(prev.Epoch), d.int(), int64(prev.Epoch)))
		e.Kind = Kind(d.byte())
		e.Suffix = Suffix(d.bytes(len(e.Suffix)))
		e.Bytes = d.uint()
		e.FooterPos = d.sum(e.Bytes, d.int(), 0)
		e.FooterLen = d.int32(d.uint())
		e.FooterCRC = binary.BigEndian.Uint32(d.bytes(4))
		e.MaxTimestamp = d.timestamp(prev.MaxTimestamp)
		e.Created = d.sum(prev.Created, d.int(), math.MinInt64)
		if d.err != nil {
			return nil
		}
		if err := e.check(); err != nil {
			d.fail(err.Error())
			return nil
		}
		list = append(list, e)
		prev, base = e, e.Next()
	}
	return list
}

func (d *decoder) refs() []PageRef {
	n := d.count(minRef)
	if n == 0 {
		return nil
	}
	list := make([]PageRef, 0, n)
	base := d.uint()
	var prev PageRef
	for range n {
		r := PageRef{Base: base, Last: d.last(base), Entries: d.uint(), Bytes: d.uint()}
		r.MaxTimestamp = d.timestamp(prev.MaxTimestamp)
		r.Rev = d.sum(prev.Rev, d.int(), 0)
		r.Epoch = d.int32(d.sum(int64(prev.Epoch), d.int(), 0))
		r.Suffix = Suffix(d.bytes(len(r.Suffix)))
		r.Size = d.int32(d.uint())
		r.CRC = binary.BigEndian.Uint32(d.bytes(4))
		if d.err != nil {
			return nil
		}
		if r.Size <= 0 || r.Size > MaxPageBytes || r.Entries <= 0 || r.Bytes <= 0 {
			d.fail(fmt.Sprintf("page reference %+v", r))
			return nil
		}
		list = append(list, r)
		prev, base = r, r.Next()
	}
	return list
}
