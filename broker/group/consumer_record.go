package group

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/varve/varve/broker/group/assignor"
)

// Key versions of the consumer protocol's records: Kafka's.
const (
	keyConsumerGroup     = 3  // group -> group epoch, hash of the subscribed topics
	keyConsumerTopics    = 4  // group -> partitions of the subscribed topics; before Kafka 4.1, read and removed
	keyConsumerMember    = 5  // group, member -> who it is and what it subscribes to
	keyConsumerTarget    = 6  // group -> group epoch that the target is of
	keyConsumerAssigned  = 7  // group, member -> what it is meant to have
	keyConsumerCurrent   = 8  // group, member -> its epoch and what it has
	keyConsumerRegex     = 16 // group, regular expression -> topics that it matches
	consumerValueVersion = 0  // of all of them
)

func consumerKey(kind int16, names ...string) []byte {
	n := 2
	for _, s := range names {
		n += 2 + len(s)
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, n), uint16(kind))
	for _, s := range names {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

func consumerTombstone(kind int16, names ...string) Record {
	return Record{Key: consumerKey(kind, names...)}
}

// value writes the flexible encoding of KIP-482: lengths are unsigned varints, one more than they say where null is
// possible, and tagged fields end each structure.
type value struct{ b []byte }

func newValue(n int) *value {
	v := &value{b: make([]byte, 0, n)}
	v.int16(consumerValueVersion)
	return v
}
func (v *value) int8(n int8)   { v.b = append(v.b, byte(n)) }
func (v *value) int16(n int16) { v.b = binary.BigEndian.AppendUint16(v.b, uint16(n)) }
func (v *value) int32(n int32) { v.b = binary.BigEndian.AppendUint32(v.b, uint32(n)) }
func (v *value) int64(n int64) { v.b = binary.BigEndian.AppendUint64(v.b, uint64(n)) }
func (v *value) length(n int)  { v.b = binary.AppendUvarint(v.b, uint64(n)) }
func (v *value) array(n int)   { v.length(n + 1) }
func (v *value) string(s string) {
	v.length(len(s) + 1)
	v.b = append(v.b, s...)
}
func (v *value) nullable(s *string) {
	if s == nil {
		v.length(0)
		return
	}
	v.string(*s)
}
func (v *value) strings(ss []string) {
	v.array(len(ss))
	for _, s := range ss {
		v.string(s)
	}
}
func (v *value) noTags() { v.length(0) }

// tag writes the only tagged field of a structure.
func (v *value) tag(id int, field []byte) {
	v.length(1)
	v.length(id)
	v.length(len(field))
	v.b = append(v.b, field...)
}

func consumerGroupRecord(group string, epoch int32, hash int64) Record {
	v := newValue(20)
	v.int32(epoch)
	if hash == 0 {
		v.noTags()
	} else {
		v.tag(0, binary.BigEndian.AppendUint64(nil, uint64(hash)))
	}
	return Record{consumerKey(keyConsumerGroup, group), v.b}
}

func consumerMemberRecord(group string, m *consumerMember) Record {
	v := newValue(int(m.size()))
	v.nullable(m.instance)
	v.nullable(m.rack)
	v.string(m.clientID)
	v.string(m.clientHost)
	v.strings(m.topics)
	if m.regex == "" {
		v.nullable(nil)
	} else {
		v.string(m.regex)
	}
	v.int32(millis(m.rebalance))
	v.nullable(m.assignor)
	if m.classic == nil {
		v.tag(0, []byte{0}) // null: without the tag Kafka takes the member for one of the classic protocol
	} else {
		var c value
		c.int8(1) // not null
		c.int32(millis(m.classic.session))
		c.array(len(m.classic.protocols))
		for _, p := range m.classic.protocols {
			c.string(p.name)
			c.string(string(p.metadata))
			c.noTags()
		}
		c.noTags()
		v.tag(0, c.b)
	}
	return Record{consumerKey(keyConsumerMember, group, m.id), v.b}
}

func consumerTargetRecord(group string, epoch int32, at int64) Record {
	v := newValue(20)
	v.int32(epoch)
	if at == 0 {
		v.noTags()
	} else {
		v.tag(0, binary.BigEndian.AppendUint64(nil, uint64(at)))
	}
	return Record{consumerKey(keyConsumerTarget, group), v.b}
}

func consumerAssignedRecord(group, member string, a assignor.Assignment) Record {
	v := newValue(64)
	v.array(len(a))
	for _, t := range sortedIDs(a) {
		v.b = append(v.b, t[:]...)
		v.array(len(a[t]))
		for _, p := range a[t] {
			v.int32(p)
		}
		v.noTags()
	}
	v.noTags()
	return Record{consumerKey(keyConsumerAssigned, group, member), v.b}
}

func (v *value) holding(h holding) {
	v.array(len(h))
	for _, t := range h.topics() {
		v.b = append(v.b, t[:]...)
		v.array(len(h[t]))
		for _, p := range h[t] {
			v.int32(p.partition)
		}
		var e value
		e.array(len(h[t]))
		for _, p := range h[t] {
			e.int32(p.epoch)
		}
		v.tag(0, e.b)
	}
}

func consumerCurrentRecord(group string, m *consumerMember) Record {
	v := newValue(64)
	v.int32(m.epoch)
	v.int32(m.previous)
	v.int8(int8(m.state))
	v.holding(m.assigned)
	v.holding(m.revoking)
	v.noTags()
	return Record{consumerKey(keyConsumerCurrent, group, m.id), v.b}
}

func consumerRegexRecord(group, regex string, r resolved) Record {
	v := newValue(64)
	v.strings(r.topics)
	v.int64(r.version)
	v.int64(r.at)
	v.noTags()
	return Record{consumerKey(keyConsumerRegex, group, regex), v.b}
}

// consumerRecord is a record of the consumer protocol in parts.
type consumerRecord struct {
	kind  int16
	group string
	name  string // the member or regular expression
	gone  bool   // a tombstone

	epoch  int32 // of the group or the target
	hash   int64
	at     int64           // when the target was made
	member *consumerMember // keyConsumerMember: without epochs and holdings; keyConsumerCurrent: only these
	target assignor.Assignment
	regex  resolved
}

// isConsumer says whether a key is of the consumer protocol.
func isConsumer(key []byte) bool {
	if len(key) < 2 {
		return false
	}
	k := int16(binary.BigEndian.Uint16(key))
	return k >= keyConsumerGroup && k <= keyConsumerCurrent || k == keyConsumerRegex
}

// reader reads what value writes. What it returns shares nothing with its bytes. After an error it reads zeros, and
// no count that it returns is larger than the bytes that are left.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("is cut short")

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.err = errShort
		return nil
	}
	x := r.b[:n]
	r.b = r.b[n:]
	return x
}
func (r *reader) int8() int8 {
	if x := r.take(1); x != nil {
		return int8(x[0])
	}
	return 0
}
func (r *reader) int16() int16 {
	if x := r.take(2); x != nil {
		return int16(binary.BigEndian.Uint16(x))
	}
	return 0
}
func (r *reader) int32() int32 {
	if x := r.take(4); x != nil {
		return int32(binary.BigEndian.Uint32(x))
	}
	return 0
}
func (r *reader) int64() int64 {
	if x := r.take(8); x != nil {
		return int64(binary.BigEndian.Uint64(x))
	}
	return 0
}
func (r *reader) id() (t topicID) {
	copy(t[:], r.take(16))
	return t
}

func (r *reader) length() int {
	n, k := binary.Uvarint(r.b)
	if k <= 0 || n > 1<<31 {
		r.err = errShort
		return 0
	}
	r.b = r.b[k:]
	return int(n)
}

// array is the number of elements, -1 for null, each of which takes at least so many bytes.
func (r *reader) array(least int) int {
	n := r.length() - 1
	if n > len(r.b)/least {
		r.err = errShort
		return 0
	}
	return n
}

func (r *reader) nullable() *string {
	n := r.length()
	if n == 0 || r.err != nil {
		return nil
	}
	s := string(r.take(n - 1))
	return &s
}

func (r *reader) string() string {
	if s := r.nullable(); s != nil {
		return *s
	}
	return ""
}

func (r *reader) strings() (ss []string) {
	for n := r.array(1); n > 0 && r.err == nil; n-- {
		ss = append(ss, r.string())
	}
	return ss
}

// tags hands each tagged field to f and skips what f does not read of it.
func (r *reader) tags(f func(id int, field *reader)) {
	for n := r.length(); n > 0 && r.err == nil; n-- {
		id := r.length()
		field := &reader{b: r.take(r.length())}
		if f != nil && r.err == nil {
			f(id, field)
			if field.err != nil {
				r.err = field.err
			}
		}
	}
}

func (r *reader) holding(epoch int32) holding {
	h := holding{}
	for n := r.array(18); n > 0 && r.err == nil; n-- {
		t := r.id()
		var ps []held
		for k := r.array(4); k > 0 && r.err == nil; k-- {
			ps = append(ps, held{r.int32(), epoch})
		}
		r.tags(func(id int, field *reader) {
			if id != 0 {
				return
			}
			n := field.array(4)
			if n >= 0 && n != len(ps) {
				field.err = fmt.Errorf("has %d epochs for %d partitions", n, len(ps))
				return
			}
			for i := range max(n, 0) {
				ps[i].epoch = field.int32()
			}
		})
		slices.SortFunc(ps, func(a, b held) int { return int(a.partition) - int(b.partition) })
		ps = slices.CompactFunc(ps, func(a, b held) bool { return a.partition == b.partition })
		if len(ps) > 0 {
			h[t] = ps
		}
	}
	return h
}

// keyString reads a string of a key, whose encoding is not flexible.
func (r *reader) keyString() string { return string(r.take(int(r.int16()))) }

// decodeConsumer reads a record of which isConsumer is true.
func decodeConsumer(rec Record) (c consumerRecord, err error) {
	k := &reader{b: rec.Key}
	c.kind = k.int16()
	c.group = k.keyString()
	switch c.kind {
	case keyConsumerMember, keyConsumerAssigned, keyConsumerCurrent, keyConsumerRegex:
		c.name = k.keyString()
	}
	if k.err != nil {
		return c, fmt.Errorf("group: consumer key of version %d: %w", c.kind, k.err)
	}
	if c.gone = rec.Value == nil; c.gone || c.kind == keyConsumerTopics {
		return c, nil
	}
	r := &reader{b: rec.Value}
	if v := r.int16(); r.err == nil && v != consumerValueVersion {
		return c, fmt.Errorf("group: consumer value of %q: key version %d, value version %d", c.group, c.kind, v)
	}
	switch c.kind {
	case keyConsumerGroup:
		c.epoch = r.int32()
		r.tags(func(id int, field *reader) {
			if id == 0 {
				c.hash = field.int64()
			}
		})
	case keyConsumerMember:
		m := &consumerMember{id: c.name}
		m.instance, m.rack = r.nullable(), r.nullable()
		m.clientID, m.clientHost = r.string(), r.string()
		m.topics = r.strings()
		slices.Sort(m.topics)
		m.topics = slices.Compact(m.topics)
		m.regex = r.string()
		m.rebalance = fromMillis(r.int32())
		m.assignor = r.nullable()
		r.tags(func(id int, field *reader) {
			if id != 0 || field.int8() <= 0 { // null
				return
			}
			p := &classicPart{session: fromMillis(field.int32())}
			for n := field.array(3); n > 0 && field.err == nil; n-- {
				p.protocols = append(p.protocols, protocol{field.string(), []byte(field.string())})
				field.tags(nil)
			}
			field.tags(nil)
			if len(p.protocols) > 0 { // as it always is; others may rely on it
				m.classic = p
			}
		})
		c.member = m
	case keyConsumerTarget:
		c.epoch = r.int32()
		r.tags(func(id int, field *reader) {
			if id == 0 {
				c.at = field.int64()
			}
		})
	case keyConsumerAssigned:
		c.target = assignor.Assignment{}
		for t, ps := range r.holding(0) {
			for _, p := range ps {
				c.target[t] = append(c.target[t], p.partition)
			}
		}
		r.tags(nil)
	case keyConsumerCurrent:
		m := &consumerMember{id: c.name}
		m.epoch, m.previous, m.state = r.int32(), r.int32(), memberState(r.int8())
		m.assigned, m.revoking = r.holding(m.epoch), r.holding(m.epoch)
		r.tags(nil)
		c.member = m
	case keyConsumerRegex:
		c.regex = resolved{topics: r.strings(), version: r.int64(), at: r.int64()}
		slices.Sort(c.regex.topics)
		r.tags(nil)
	}
	if r.err != nil {
		return c, fmt.Errorf("group: consumer value of %q %q: key version %d: %w", c.group, c.name, c.kind, r.err)
	}
	return c, nil
}
