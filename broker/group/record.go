package group

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Record is a record of __consumer_offsets. A nil value is a tombstone.
type Record struct {
	Key, Value []byte
}

// The versions in which keys and values are written, those of Kafka before 4.1: every tool that reads the topic
// knows them. Version 1 of an offset is written when the client set a retention of its own, as only that version
// has a field for it; it has none for the leader epoch.
const (
	offsetKeyVersion          = 1
	offsetValueVersion        = 3
	offsetValueExpiresVersion = 1
	groupKeyVersion           = 2
	groupValueVersion         = 3
)

// Offset is a committed offset.
type Offset struct {
	Offset      int64
	LeaderEpoch int32 // -1 unknown
	Metadata    string
	Committed   int64 // ms since the epoch
	Expires     int64 // ms since the epoch; -1: as offsets.retention.minutes says

	at int64 // place among the records that were applied, to tell which of two is the later
}

func offsetKey(group, topic string, partition int32) []byte {
	k := kmsg.OffsetCommitKey{Version: offsetKeyVersion, Group: group, Topic: topic, Partition: partition}
	return k.AppendTo(make([]byte, 0, 10+len(group)+len(topic)))
}

func offsetRecord(group, topic string, partition int32, o Offset) Record {
	v := kmsg.OffsetCommitValue{Version: offsetValueVersion, Offset: o.Offset, LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata,
		CommitTimestamp: o.Committed, ExpireTimestamp: o.Expires}
	if o.Expires >= 0 {
		v.Version = offsetValueExpiresVersion
	}
	return Record{Key: offsetKey(group, topic, partition), Value: v.AppendTo(make([]byte, 0, 32+len(o.Metadata)))}
}

func offsetTombstone(group, topic string, partition int32) Record {
	return Record{Key: offsetKey(group, topic, partition)}
}

func groupKey(id string) []byte {
	k := kmsg.GroupMetadataKey{Version: groupKeyVersion, Group: id}
	return k.AppendTo(make([]byte, 0, 4+len(id)))
}

func groupTombstone(id string) Record { return Record{Key: groupKey(id)} }

// groupRecord is the group as it stands at the end of a rebalance. Of what members offered, only the chosen
// protocol's metadata is kept: a new leader knows what the generation was, not what it might have been.
func groupRecord(id string, g *classic) Record {
	v := kmsg.GroupMetadataValue{Version: groupValueVersion, ProtocolType: g.protocolType, Generation: g.generation,
		Protocol: g.protocol, CurrentStateTimestamp: g.since}
	if g.leader != "" {
		v.Leader = &g.leader
	}
	n := 64 + len(id)
	for _, id := range g.ids() {
		m := g.members[id]
		var subscription []byte
		if g.protocol != nil {
			subscription = m.metadata(*g.protocol)
		}
		v.Members = append(v.Members, kmsg.GroupMetadataValueMember{MemberID: m.id, InstanceID: m.instance, ClientID: m.clientID,
			ClientHost: m.clientHost, RebalanceTimeoutMillis: millis(m.rebalance), SessionTimeoutMillis: millis(m.session),
			Subscription: subscription, Assignment: m.assignment})
		n += int(m.size())
	}
	return Record{Key: groupKey(id), Value: v.AppendTo(make([]byte, 0, n))}
}

// classicOf is the group that a record describes. It keeps nothing of the value's bytes.
func classicOf(v *kmsg.GroupMetadataValue) *classic {
	g := newClassic(v.CurrentStateTimestamp)
	if v.Version < 2 {
		g.since = -1
	}
	g.generation, g.protocolType = v.Generation, v.ProtocolType
	g.protocol = v.Protocol
	for _, mv := range v.Members {
		m := &member{id: mv.MemberID, instance: mv.InstanceID, clientID: mv.ClientID, clientHost: mv.ClientHost,
			session: fromMillis(mv.SessionTimeoutMillis), rebalance: fromMillis(mv.RebalanceTimeoutMillis),
			assignment: bytes.Clone(mv.Assignment)}
		if mv.RebalanceTimeoutMillis < 0 {
			m.rebalance = m.session
		}
		if v.Protocol != nil {
			m.protocols = []protocol{{name: *v.Protocol, metadata: bytes.Clone(mv.Subscription)}}
		}
		g.add(m, v.ProtocolType)
	}
	g.protocolType = v.ProtocolType
	g.leader = ""
	if v.Leader != nil && g.members[*v.Leader] != nil {
		g.leader = *v.Leader
	} else if len(g.members) > 0 {
		g.leader = g.ids()[0]
	}
	if len(g.members) > 0 {
		g.state, g.prev = Stable, CompletingRebalance
	}
	g.subscribe()
	return g
}

// decoded is a record in parts: an offset, a group, or a tombstone of either.
type decoded struct {
	group     string
	topic     string
	partition int32
	isOffset  bool
	offset    *Offset                  // nil: tombstone
	value     *kmsg.GroupMetadataValue // nil: tombstone
}

// decode reads a record of the classic protocol. known is false for keys of other versions: those of the consumer
// protocol are decodeConsumer's, and later ones belong to groups that this version cannot serve and are left alone.
func decode(r Record) (d decoded, known bool, err error) {
	if len(r.Key) < 2 {
		return d, true, fmt.Errorf("group: record key of %d bytes", len(r.Key))
	}
	switch v := int16(uint16(r.Key[0])<<8 | uint16(r.Key[1])); v {
	case 0, 1:
		var k kmsg.OffsetCommitKey
		if err := k.ReadFrom(r.Key); err != nil {
			return d, true, fmt.Errorf("group: offset key: %w", err)
		}
		d = decoded{group: k.Group, topic: k.Topic, partition: k.Partition, isOffset: true}
		if r.Value == nil {
			return d, true, nil
		}
		var val kmsg.OffsetCommitValue
		var read func([]byte) error
		if len(r.Value) >= 2 && r.Value[0] == 0 && r.Value[1] == flexibleOffset {
			read = func(b []byte) error { return readFlexibleOffset(b, &val) }
		} else {
			read = func(b []byte) error { return readValue(b, val.ReadFrom) }
		}
		if err := read(r.Value); err != nil {
			return d, true, fmt.Errorf("group: offset value of %q %s-%d: %w", k.Group, k.Topic, k.Partition, err)
		}
		o := Offset{Offset: val.Offset, LeaderEpoch: -1, Metadata: val.Metadata, Committed: val.CommitTimestamp, Expires: -1}
		if val.Version >= 3 {
			o.LeaderEpoch = val.LeaderEpoch
		}
		if val.Version == 1 {
			o.Expires = val.ExpireTimestamp
		}
		d.offset = &o
		return d, true, nil
	case 2:
		var k kmsg.GroupMetadataKey
		if err := k.ReadFrom(r.Key); err != nil {
			return d, true, fmt.Errorf("group: group key: %w", err)
		}
		d = decoded{group: k.Group}
		if r.Value == nil {
			return d, true, nil
		}
		val := new(kmsg.GroupMetadataValue)
		if len(r.Value) >= 2 && !plausible(r.Value) {
			return d, true, fmt.Errorf("group: group value of %q: more members than its %d bytes hold", k.Group, len(r.Value))
		}
		if err := readValue(r.Value, val.ReadFrom); err != nil {
			return d, true, fmt.Errorf("group: group value of %q: %w", k.Group, err)
		}
		d.value = val
		return d, true, nil
	default:
		return d, false, nil
	}
}

// flexibleOffset is the version of an offset that Kafka writes from 4.3 on where it knows the topic's id, which is a tag (0).
// The key names the topic.
const flexibleOffset = 4

func readFlexibleOffset(b []byte, v *kmsg.OffsetCommitValue) error {
	r := reader{b: b}
	v.Version, v.Offset, v.LeaderEpoch, v.Metadata, v.CommitTimestamp = r.int16(), r.int64(), r.int32(), r.string(), r.int64()
	r.tags(nil)
	return r.err
}

// maxValueVersion is the newest value version that is read; later ones are flexible and have tags, of which nothing
// here makes use.
const maxValueVersion = 3

// readValue refuses values of versions not known.
func readValue(b []byte, read func([]byte) error) error {
	if len(b) < 2 {
		return fmt.Errorf("%d bytes", len(b))
	}
	if v := int16(uint16(b[0])<<8 | uint16(b[1])); v < 0 || v > maxValueVersion {
		return fmt.Errorf("version %d", v)
	}
	return read(b)
}

// minMember is the least number of bytes that a member takes in any version that is read.
const minMember = 18

// plausible says whether a group value's count of members fits its bytes. kmsg's decoder allocates by the count
// alone, a hundred times the bytes; what comes here passed a checksum, but a client may have produced it.
func plausible(b []byte) bool {
	version := int(b[0])<<8 | int(b[1])
	at := 2
	str := func() {
		if at+2 > len(b) {
			at = len(b)
			return
		}
		n := int(int16(uint16(b[at])<<8 | uint16(b[at+1])))
		at += 2 + max(n, 0)
	}
	str()   // protocol type
	at += 4 // generation
	str()   // protocol
	str()   // leader
	if version >= 2 {
		at += 8 // state timestamp
	}
	if at+4 > len(b) {
		return false
	}
	n := int64(int32(uint32(b[at])<<24 | uint32(b[at+1])<<16 | uint32(b[at+2])<<8 | uint32(b[at+3])))
	return n*minMember <= int64(len(b)-at-4)
}

func millis(d time.Duration) int32 { return int32(min(d.Milliseconds(), 1<<31-1)) }

func fromMillis(ms int32) time.Duration { return time.Duration(ms) * time.Millisecond }

func own(s *string) *string {
	if s == nil {
		return nil
	}
	c := strings.Clone(*s)
	return &c
}
