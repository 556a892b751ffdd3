// Package lineage is the history of a partition's leader epochs: for each epoch, the offset at which it began
// to write. Two replicas find where their logs part by comparing it (KIP-101, KIP-279), and a consumer learns from
// it that what it read was cut off (KIP-320).
//
// A Lineage is a value. Its functions return new slices and never change the one they are given, so a reader
// may keep what it got.
//
// It is made of the epochs that were opened, not of the batches that were written: the latest epoch is in it
// before anything has been appended in it. An epoch that ended where it began gives its place to the next.
package lineage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/varve/varve/wal/crc32c"
)

// Entry is the first offset of an epoch.
type Entry struct {
	Epoch int32
	Start int64
}

// Lineage is in ascending order of epoch and of start, both strictly.
type Lineage []Entry

// Undefined is the answer of EndOffset for what is not known, for both epoch and offset.
const Undefined = -1

// ErrCorrupt says that bytes are no encoded lineage.
var ErrCorrupt = errors.New("lineage: corrupt")

// Assign records that epoch begins at start. Entries that say otherwise give way: those of the same or a later
// epoch, and those that start there or later, for what they described has been cut off or never written. An epoch
// that is already the latest keeps the start it has.
func (l Lineage) Assign(epoch int32, start int64) Lineage {
	if epoch < 0 || start < 0 {
		panic(fmt.Sprintf("lineage: epoch %d at offset %d", epoch, start))
	}
	if n := len(l); n > 0 && l[n-1].Epoch == epoch && l[n-1].Start <= start {
		return slices.Clip(l)
	}
	keep := len(l)
	for keep > 0 && (l[keep-1].Epoch >= epoch || l[keep-1].Start >= start) {
		keep--
	}
	out := make(Lineage, keep, keep+1)
	copy(out, l)
	return append(out, Entry{epoch, start})
}

// EndOffset answers OffsetForLeaderEpoch: the largest epoch that is not above the asked one, and where it
// ended, which is where the next one began. For the latest epoch that is the end of the log. It answers (-1, -1)
// when the asked epoch is later than all, or undefined, or nothing is known. When the asked epoch is older than
// all, the answer is that epoch itself with the start of the oldest one known: a log that shares an epoch
// with this one only below that offset shares nothing that is still here.
func (l Lineage) EndOffset(epoch int32, logEnd int64) (foundEpoch int32, end int64) {
	n := len(l)
	switch {
	case epoch < 0 || n == 0 || epoch > l[n-1].Epoch:
		return Undefined, Undefined
	case epoch == l[n-1].Epoch:
		return epoch, logEnd
	}
	next := sort.Search(n, func(i int) bool { return l[i].Epoch > epoch })
	if next == 0 {
		return epoch, l[0].Start
	}
	return l[next-1].Epoch, l[next].Start
}

// TruncateEnd forgets the epochs that began at offset or later: the log now ends there.
func (l Lineage) TruncateEnd(offset int64) Lineage {
	n := sort.Search(len(l), func(i int) bool { return l[i].Start >= offset })
	return slices.Clone(l[:n:n])
}

// TruncateStart forgets what lies below offset: the log now starts there. The epoch that offset belongs to stays,
// and begins there.
func (l Lineage) TruncateStart(offset int64) Lineage {
	n := sort.Search(len(l), func(i int) bool { return l[i].Start > offset })
	if n == 0 {
		return slices.Clone(l)
	}
	out := slices.Clone(l[n-1:])
	out[0].Start = offset
	return out
}

// EpochAt returns the epoch in which offset was or would be written, or Undefined below the first.
func (l Lineage) EpochAt(offset int64) int32 {
	n := sort.Search(len(l), func(i int) bool { return l[i].Start > offset })
	if n == 0 {
		return Undefined
	}
	return l[n-1].Epoch
}

// Start returns where epoch began.
func (l Lineage) Start(epoch int32) (int64, bool) {
	i := sort.Search(len(l), func(i int) bool { return l[i].Epoch >= epoch })
	if i == len(l) || l[i].Epoch != epoch {
		return 0, false
	}
	return l[i].Start, true
}

// Latest returns the last entry.
func (l Lineage) Latest() (Entry, bool) {
	if len(l) == 0 {
		return Entry{}, false
	}
	return l[len(l)-1], true
}

// Range returns the lineage of the offsets in [from, to): the epoch that from belongs to, beginning at from, and
// those that begin before to. It is what an object that holds these offsets records.
func (l Lineage) Range(from, to int64) Lineage { return l.TruncateEnd(to).TruncateStart(from) }

// Equal reports whether two lineages are the same.
func (l Lineage) Equal(m Lineage) bool { return slices.Equal(l, m) }

// The encoding is
//
//	1 byte  magic 0xE1    1 byte  version 1
//	uvarint number of entries, then for each: uvarint epoch, uvarint start, as differences to the entry
//	before (the first: to zero)
//	4 bytes CRC-32C of all before, big-endian
const (
	magic    = 0xE1
	version  = 1
	maxCount = 1 << 20
)

// Encode returns the lineage as bytes that carry a version and a checksum.
func (l Lineage) Encode() []byte {
	b := make([]byte, 0, 8+6*len(l))
	b = append(b, magic, version)
	b = binary.AppendUvarint(b, uint64(len(l)))
	var prev Entry
	for _, e := range l {
		b = binary.AppendUvarint(b, uint64(e.Epoch-prev.Epoch))
		b = binary.AppendUvarint(b, uint64(e.Start-prev.Start))
		prev = e
	}
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
}

// Decode reads what Encode wrote; b is exactly that. It returns ErrCorrupt.
func Decode(b []byte) (Lineage, error) {
	if len(b) < 7 || b[0] != magic {
		return nil, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
	}
	body := b[:len(b)-4]
	if crc32c.Checksum(body) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: checksum mismatch", ErrCorrupt)
	}
	if b[1] != version {
		return nil, fmt.Errorf("%w: version %d, this program reads %d", ErrCorrupt, b[1], version)
	}
	p := body[2:]
	next := func() (uint64, bool) {
		v, n := binary.Uvarint(p)
		if n <= 0 {
			return 0, false
		}
		p = p[n:]
		return v, true
	}
	count, ok := next()
	if !ok || count > maxCount || count > uint64(len(p)/2) {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", ErrCorrupt, count, len(p))
	}
	l := make(Lineage, 0, count)
	var prev Entry
	for i := range count {
		de, ok1 := next()
		ds, ok2 := next()
		e := Entry{prev.Epoch + int32(de), prev.Start + int64(ds)}
		if !ok1 || !ok2 || de > 1<<31-1 || ds > 1<<63-1 || e.Epoch < 0 || e.Start < 0 || (i > 0 && (de == 0 || ds == 0)) {
			return nil, fmt.Errorf("%w: entry %d", ErrCorrupt, i)
		}
		l = append(l, e)
		prev = e
	}
	if len(p) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrCorrupt, len(p))
	}
	return l, nil
}
