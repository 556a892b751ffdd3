package cleaner

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// SlotSize is what one key takes in a Table, in bytes.
const SlotSize = 24

// Table maps keys to their newest offsets, in memory that is taken once and bounded: a key takes 24 bytes however
// long it is, for the table holds 128 bits of its hash.
//
// The hash is SHA-256 of a secret and the key, cut to 128 bits. Two keys that fell together would count as one, and the
// older record of the two would be lost. Among n keys that happens with a probability of at most n^2/2^129: for the
// 2^27 keys of a table of 3 GiB, once in 2^75 rounds. Nobody who does not know the secret can bring it about, as
// anybody can with MD5.
//
// Collisions of places are resolved Robin Hood style: a key further from home takes the place of one that is nearer to
// its own. At a load of 0.9 a search then looks at five or six slots, whether the key is there or not.
type Table struct {
	secret [16]byte
	buf    []byte // secret and key, to be hashed
	all    []slot
	slots  []slot // those of this round
	load   float64
	n, max int
}

// slot is a key's. Only next tells that there is one.
type slot struct {
	hi, lo uint64
	next   int64 // newest offset + 1; 0: free
}

// NewTable returns a table that takes the given number of bytes and is filled up to load, a share of it between 0 and
// 1. The secret is random and stays here.
func NewTable(bytes int64, load float64, secret [16]byte) (*Table, error) {
	if err := CheckTable(bytes, load); err != nil {
		return nil, err
	}
	t := &Table{secret: secret, all: make([]slot, bytes/SlotSize), load: load}
	t.Reset(math.MaxInt64)
	return t, nil
}

// CheckTable says why there is no table of so many bytes, if so.
func CheckTable(bytes int64, load float64) error {
	if n := bytes / SlotSize; n < 2 || !(load > 0) || load > 1 || int(float64(n)*load) < 1 {
		return fmt.Errorf("cleaner: a table of %d bytes filled up to %v has no room for a key: a key takes %d bytes", bytes, load, SlotSize)
	}
	return nil
}

// Bytes is the memory that the table takes.
func (t *Table) Bytes() int64 { return int64(len(t.all)) * SlotSize }

// Fits tells whether NewTable would make a table like this one.
func (t *Table) Fits(bytes int64, load float64) bool {
	return int64(len(t.all)) == bytes/SlotSize && t.load == load
}

// Reset empties the table. It then has room for records different keys, as far as its memory allows: what a small
// round does not need is not cleared.
func (t *Table) Reset(records int64) {
	n := len(t.all)
	if need := float64(records)/t.load + 2; need < float64(n) {
		n = int(need)
	}
	t.slots = t.all[:n]
	clear(t.slots)
	// One slot stays free, so that every search ends.
	t.n, t.max = 0, max(1, min(int(float64(n)*t.load), n-1))
}

// Len is how many keys the table holds, Cap how many it can.
func (t *Table) Len() int { return t.n }
func (t *Table) Cap() int { return t.max }

// Put notes that key has a record at offset. It returns false, and changes nothing, if the key is new and the table
// full.
func (t *Table) Put(key []byte, offset int64) bool {
	s := t.hash(key)
	at, d, found := t.find(s)
	if found {
		t.slots[at].next = max(t.slots[at].next, offset+1)
		return true
	}
	if t.n == t.max {
		return false
	}
	t.n++
	for s.next = offset + 1; ; at, d = t.after(at), d+1 {
		p := &t.slots[at]
		if p.next == 0 {
			*p = s
			return true
		}
		if e := t.distance(*p, at); e < d {
			*p, s, d = s, *p, e
		}
	}
}

// Newest is the newest offset noted for key, -1 if there is none.
func (t *Table) Newest(key []byte) int64 {
	if t.n == 0 {
		return -1
	}
	if at, _, found := t.find(t.hash(key)); found {
		return t.slots[at].next - 1
	}
	return -1
}

// find returns where the key is or, if it is not there, where it would be put, and how far that is from its home.
func (t *Table) find(s slot) (at, d int, found bool) {
	for at = t.home(s); ; at, d = t.after(at), d+1 {
		p := t.slots[at]
		if p.next == 0 {
			return at, d, false
		}
		if p.hi == s.hi && p.lo == s.lo {
			return at, d, true
		}
		if t.distance(p, at) < d {
			return at, d, false
		}
	}
}

func (t *Table) home(s slot) int {
	at, _ := bits.Mul64(s.hi, uint64(len(t.slots)))
	return int(at)
}

func (t *Table) after(at int) int {
	if at++; at == len(t.slots) {
		return 0
	}
	return at
}

// distance is how far a slot's key is from its home.
func (t *Table) distance(s slot, at int) int {
	d := at - t.home(s)
	if d < 0 {
		d += len(t.slots)
	}
	return d
}

func (t *Table) hash(key []byte) slot {
	t.buf = append(append(t.buf[:0], t.secret[:]...), key...)
	sum := sha256.Sum256(t.buf)
	return slot{hi: binary.BigEndian.Uint64(sum[:]), lo: binary.BigEndian.Uint64(sum[8:])}
}
