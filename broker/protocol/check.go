package protocol

import (
	"encoding/binary"
	"fmt"
)

// MaxAlloc is the most that decoding a body of that many bytes may allocate. Real requests of any size stay within a
// factor of 6 (many topics with short names and a partition each); elements of one or two bytes that become 40 of Go's
// are a sign of malice when there are many of them. The constant is for small requests.
func MaxAlloc(body int) int64 { return 1<<20 + 8*int64(body) }

// CheckCost walks a request body by its schema and says whether kmsg may decode it. What it accepts, ReadFrom of kmsg decodes
// without an error and within the memory that is estimated.
//
// Refused are: lengths below -1, or -1 (null) where the version does not allow null; arrays that promise more elements
// than the remaining bytes can hold at the smallest encoding of an element; strings above 32,767 bytes; varints that are
// cut off, too large, or longer than need be; tagged fields that are not strictly ascending, more than MaxTags, or whose
// size differs from what the field takes; a presence byte other than -1 and 1; a body that ends early or goes on after the
// message (but see maxStray). All of these match ErrMalformed. ErrTooCostly is for the well-formed rest whose estimate is above MaxAlloc.
//
// The walk ends at the first bad byte, and the time before it is bounded by what precedes it, so that neither a count nor
// a length can buy time. It allocates nothing unless it fails. Payloads that Kafka treats as opaque bytes (consumer
// protocol metadata and assignments, record batches, SASL tokens, telemetry) are stepped over.
//
// It also estimates the bytes that ReadFrom of kmsg allocates: structs, array elements at their size in
// Go, strings, which are copied, and maps for unknown tags. Fields of type bytes cost nothing because they point into
// the body, which therefore must live as long as the decoded request. The caller charges the estimate to its memory budget.
func CheckCost(key, version int16, body []byte) (int64, error) {
	_, maxVersion, ok := versionsOf(key)
	if !ok {
		return 0, fmt.Errorf("%w: %d", ErrUnknownKey, key)
	}
	if version < 0 || version > maxVersion {
		return 0, fmt.Errorf("%w: key %d version %d", ErrUnsupportedVersion, key, version)
	}
	p := &schemas[key].versions[version]
	w := walk{b: body, end: len(body), cost: int64(p.size), limit: MaxAlloc(len(body))}
	if !w.run(p, 1) {
		return w.cost, &BodyError{Key: key, Version: version, Offset: w.pos, What: w.bad}
	}
	if !w.atEnd() {
		return w.cost, &BodyError{Key: key, Version: version, Offset: w.pos, What: w.bad}
	}
	return w.cost, nil
}

// maxStray is how many bytes, of any value, may follow a message. Kafka ignores whatever follows, and so clients exist that
// are wrong without anybody having noticed: librdkafka 2.11 and later ends Metadata v13 with five bytes that are no field of
// it, kafka-go ends the filter of DescribeAcls v3 with a section of tags that is not in the protocol. What is longer than
// such a slip means that the two sides disagree about the fields.
const maxStray = 16

// atEnd makes sure that the message was the body.
func (w *walk) atEnd() bool {
	return len(w.b)-w.pos <= maxStray || w.fail(badTrailing)
}

// BodyError says where in a request body the walk ended and why. It matches ErrTooCostly or ErrMalformed.
type BodyError struct {
	Key, Version int16
	Offset       int // in the body
	What         string
}

func (e *BodyError) Error() string {
	return fmt.Sprintf("%v: key %d version %d, byte %d: %s", e.Unwrap(), e.Key, e.Version, e.Offset, e.What)
}

func (e *BodyError) Unwrap() error {
	if e.What == badCost {
		return ErrTooCostly
	}
	return ErrMalformed
}

const (
	badShort    = "the body ends inside a field"
	badNull     = "null where it is not allowed"
	badLength   = "negative length"
	badString   = "string above 32767 bytes"
	badArray    = "more array elements than bytes"
	badVarint   = "invalid varint"
	badPresence = "presence byte is neither -1 nor 1"
	badTagCount = "too many tagged fields"
	badTagOrder = "tagged fields out of order"
	badTagSize  = "tagged field of another size than declared"
	badTrailing = "bytes after the message"
	badCost     = "too many small elements"
)

const maxString = 1<<15 - 1

// What kmsg allocates for the unknown tags of one section: a map with room for eight, then doubling. The figures are
// upper bounds of what was measured.
const (
	costTagMap = 384
	costTag    = 192
)

// walk is the state of one CheckCost. run and what it calls return false after setting bad; pos is then the bad place.
type walk struct {
	b           []byte
	pos, end    int // end is that of the body, or of the tagged field that is being walked
	cost, limit int64
	bad         string
}

func (w *walk) fail(what string) bool {
	w.bad = what
	return false
}

func (w *walk) charge(n int64) bool {
	w.cost += n
	return w.cost <= w.limit || w.fail(badCost)
}

// run walks count messages of p side by side.
func (w *walk) run(p *program, count int) bool {
	for ; count > 0; count-- {
		for i := range p.ops {
			o := &p.ops[i]
			switch o.code {
			case opSkip:
				if int(o.n) > w.end-w.pos {
					return w.fail(badShort)
				}
				w.pos += int(o.n)

			case opString:
				n, ok := w.stringLength(o)
				if !ok {
					return false
				}
				if n > 0 {
					w.pos += n
					w.cost += int64(n+15) &^ 15
				}
				if n >= 0 {
					w.cost += int64(o.size)
				}
				if w.cost > w.limit {
					return w.fail(badCost)
				}

			case opBytes:
				n, ok := w.length(o)
				if !ok {
					return false
				}
				if n > w.end-w.pos {
					return w.fail(badShort)
				}
				if n > 0 {
					w.pos += n
				}

			case opArrayFixed:
				n, ok := w.arrayLength(o)
				if !ok {
					return false
				}
				w.pos += n * int(o.n)

			case opArray:
				n, ok := w.arrayLength(o)
				if !ok || !w.run(o.elem, n) {
					return false
				}

			case opNullStruct:
				if w.pos >= w.end {
					return w.fail(badShort)
				}
				switch int8(w.b[w.pos]) {
				case -1:
					w.pos++
				case 1:
					w.pos++
					if !w.charge(int64(o.size)) || !w.run(o.elem, 1) {
						return false
					}
				default:
					return w.fail(badPresence)
				}

			case opTags:
				if w.pos < w.end && w.b[w.pos] == 0 { // nearly always
					w.pos++
				} else if !w.tags(o.tags) {
					return false
				}
			}
		}
	}
	return true
}

// length reads the length of bytes or of an array; -1 is null, and allowed.
func (w *walk) length(o *op) (int, bool) {
	var n int
	if o.compact {
		u, ok := w.uvarint()
		if !ok {
			return 0, false
		}
		n = int(u) - 1
	} else {
		if w.end-w.pos < 4 {
			return 0, w.fail(badShort)
		}
		n = int(int32(binary.BigEndian.Uint32(w.b[w.pos:])))
		if n >= -1 {
			w.pos += 4
		}
	}
	if n < 0 {
		if n < -1 {
			return 0, w.fail(badLength)
		}
		if !o.nullable {
			return 0, w.fail(badNull)
		}
	}
	return n, true
}

// arrayLength returns 0 for null. It has charged the elements, and made sure that the body can hold them.
func (w *walk) arrayLength(o *op) (int, bool) {
	n, ok := w.length(o)
	if !ok || n <= 0 {
		return 0, ok
	}
	if n > (w.end-w.pos)/int(o.n) {
		return 0, w.fail(badArray)
	}
	bytes := int64(n) * int64(o.size)
	return n, w.charge(bytes + bytes/8 + 16) // an eighth for the allocator's size classes
}

// stringLength makes sure that the string is there; -1 is null.
func (w *walk) stringLength(o *op) (int, bool) {
	var n int
	if o.compact {
		u, ok := w.uvarint()
		if !ok {
			return 0, false
		}
		if u > maxString+1 {
			return 0, w.fail(badString)
		}
		n = int(u) - 1
	} else {
		if w.end-w.pos < 2 {
			return 0, w.fail(badShort)
		}
		n = int(int16(binary.BigEndian.Uint16(w.b[w.pos:])))
		if n >= -1 {
			w.pos += 2
		}
	}
	if n < 0 {
		if n < -1 {
			return 0, w.fail(badLength)
		}
		if !o.nullable {
			return 0, w.fail(badNull)
		}
		return n, true
	}
	if n > w.end-w.pos {
		return 0, w.fail(badShort)
	}
	return n, true
}

func (w *walk) uvarint() (uint32, bool) {
	if w.pos < w.end && w.b[w.pos] < 0x80 {
		w.pos++
		return uint32(w.b[w.pos-1]), true
	}
	x, n := uvarint(w.b[w.pos:w.end])
	if n == 0 {
		return 0, w.fail(badVarint)
	}
	w.pos += n
	return x, true
}

// tags walks a section of tagged fields.
func (w *walk) tags(known []taggedProgram) bool {
	count, ok := w.uvarint()
	if !ok {
		return false
	}
	if count > MaxTags || int(count) > (w.end-w.pos)/2 {
		return w.fail(badTagCount)
	}
	unknown := int64(0)
	for next := uint64(0); count > 0; count-- {
		at := w.pos
		tag, ok := w.uvarint()
		if !ok {
			return false
		}
		if uint64(tag) < next {
			w.pos = at
			return w.fail(badTagOrder)
		}
		next = uint64(tag) + 1
		size, ok := w.uvarint()
		if !ok {
			return false
		}
		if int64(size) > int64(w.end-w.pos) {
			return w.fail(badShort)
		}
		for len(known) > 0 && known[0].tag < tag {
			known = known[1:]
		}
		if len(known) == 0 || known[0].tag != tag {
			w.pos += int(size)
			unknown++
			continue
		}
		outer := w.end
		w.end = w.pos + int(size)
		if !w.run(&known[0].program, 1) {
			return false
		}
		if w.pos != w.end {
			return w.fail(badTagSize)
		}
		w.end = outer
	}
	if unknown == 0 {
		return true
	}
	return w.charge(costTagMap + unknown*costTag)
}
