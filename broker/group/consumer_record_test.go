package group

import (
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/broker/group/assignor"
)

// goldenConsumer are records byte by byte as Kafka's schemas say, spaces between the fields.
var goldenConsumer = []struct {
	name       string
	key, value string
	want       consumerRecord
	again      Record // what is written for it; nil: nothing like it
}{
	{"group", "0003 0001 67", "0000 00000005 01 00 08 0102030405060708",
		consumerRecord{kind: 3, group: "g", epoch: 5, hash: 0x0102030405060708}, consumerGroupRecord("g", 5, 0x0102030405060708)},
	{"group, before 4.1", "0003 0001 67", "0000 00000005 00", consumerRecord{kind: 3, group: "g", epoch: 5}, consumerGroupRecord("g", 5, 0)},
	// The creation time of KIP-1282 is not known here.
	{"group, of a later version", "0003 0001 67", "0000 00000005 02 00 08 0000000000000009 01 08 00000199ffffffff",
		consumerRecord{kind: 3, group: "g", epoch: 5, hash: 9}, Record{}},
	{"topics, before 4.1", "0004 0001 67", "0000 02 000102030405060708090a0b0c0d0e0f 02 74 00000003 01 00 00", consumerRecord{kind: 4, group: "g"}, Record{}},
	{"member", "0005 0001 67 0002 6d31", "0000 00 00 02 63 03 2f68 03 02 74 02 75 00 0000ea60 00 01 00 01 00",
		consumerRecord{kind: 5, group: "g", name: "m1", member: &consumerMember{id: "m1", clientID: "c", clientHost: "/h", topics: []string{"t", "u"}, rebalance: time.Minute}},
		consumerMemberRecord("g", &consumerMember{id: "m1", clientID: "c", clientHost: "/h", topics: []string{"t", "u"}, rebalance: time.Minute})},
	{"member without the field that says which protocol", "0005 0001 67 0002 6d31", "0000 00 00 02 63 03 2f68 03 02 74 02 75 00 0000ea60 00 00",
		consumerRecord{kind: 5, group: "g", name: "m1", member: &consumerMember{id: "m1", clientID: "c", clientHost: "/h", topics: []string{"t", "u"}, rebalance: time.Minute}}, Record{}},
	{"member with everything", "0005 0001 67 0001 6d", "0000 02 69 02 72 02 63 03 2f68 01 04 742e2a 0000ea60 08 756e69666f726d 01 00 01 00",
		consumerRecord{kind: 5, group: "g", name: "m", member: &consumerMember{id: "m", instance: ptr("i"), rack: ptr("r"), clientID: "c", clientHost: "/h", regex: "t.*", rebalance: time.Minute, assignor: ptr("uniform")}},
		consumerMemberRecord("g", &consumerMember{id: "m", instance: ptr("i"), rack: ptr("r"), clientID: "c", clientHost: "/h", regex: "t.*", rebalance: time.Minute, assignor: ptr("uniform")})},
	{"member of the classic protocol", "0005 0001 67 0001 6d", "0000 00 00 01 01 02 02 74 00 00000008 00 01 00 10 01 00000009 02 06 72616e6765 02 ff 00 00",
		consumerRecord{kind: 5, group: "g", name: "m", member: &consumerMember{id: "m", topics: []string{"t"}, rebalance: 8 * time.Millisecond, classic: &classicPart{9 * time.Millisecond, []protocol{{"range", []byte{0xff}}}}}},
		consumerMemberRecord("g", &consumerMember{id: "m", topics: []string{"t"}, rebalance: 8 * time.Millisecond, classic: &classicPart{9 * time.Millisecond, []protocol{{"range", []byte{0xff}}}}})},
	{"member of the classic protocol that offers nothing", "0005 0001 67 0001 6d", "0000 00 00 01 01 02 02 74 00 00000008 00 01 00 07 01 00000009 01 00",
		consumerRecord{kind: 5, group: "g", name: "m", member: &consumerMember{id: "m", topics: []string{"t"}, rebalance: 8 * time.Millisecond}}, Record{}},
	{"target", "0006 0001 67", "0000 00000005 00", consumerRecord{kind: 6, group: "g", epoch: 5}, consumerTargetRecord("g", 5, 0)},
	{"target, 4.3", "0006 0001 67", "0000 00000005 01 00 08 0000000000000001", consumerRecord{kind: 6, group: "g", epoch: 5, at: 1}, consumerTargetRecord("g", 5, 1)},
	{"assigned", "0007 0001 67 0001 6d", "0000 02 000102030405060708090a0b0c0d0e0f 03 00000000 00000002 00 00",
		consumerRecord{kind: 7, group: "g", name: "m", target: assignor.Assignment{sampleID: {0, 2}}}, consumerAssignedRecord("g", "m", assignor.Assignment{sampleID: {0, 2}})},
	{"assigned nothing", "0007 0001 67 0001 6d", "0000 01 00", consumerRecord{kind: 7, group: "g", name: "m", target: assignor.Assignment{}}, consumerAssignedRecord("g", "m", nil)},
	{"current", "0008 0001 67 0001 6d", "0000 00000005 00000004 01 02 000102030405060708090a0b0c0d0e0f 02 00000001 01 00 05 02 00000003 02 000102030405060708090a0b0c0d0e0f 02 00000002 01 00 05 02 00000004 00",
		consumerRecord{kind: 8, group: "g", name: "m", member: &consumerMember{id: "m", epoch: 5, previous: 4, state: memberUnrevoked, assigned: holding{sampleID: {{1, 3}}}, revoking: holding{sampleID: {{2, 4}}}}},
		consumerCurrentRecord("g", &consumerMember{id: "m", epoch: 5, previous: 4, state: memberUnrevoked, assigned: holding{sampleID: {{1, 3}}}, revoking: holding{sampleID: {{2, 4}}}})},
	// Without epochs of its own a partition has the member's.
	{"current, before epochs of partitions", "0008 0001 67 0001 6d", "0000 00000005 00000004 00 02 000102030405060708090a0b0c0d0e0f 03 00000002 00000001 00 01 00",
		consumerRecord{kind: 8, group: "g", name: "m", member: &consumerMember{id: "m", epoch: 5, previous: 4, assigned: holding{sampleID: {{1, 5}, {2, 5}}}, revoking: holding{}}}, Record{}},
	{"regular expression", "0010 0001 67 0003 742e2a", "0000 03 03 7431 03 7432 0000000000000007 0000000000000008 00",
		consumerRecord{kind: 16, group: "g", name: "t.*", regex: resolved{[]string{"t1", "t2"}, 7, 8}}, consumerRegexRecord("g", "t.*", resolved{[]string{"t1", "t2"}, 7, 8})},
	{"group removed", "0003 0001 67", "", consumerRecord{kind: 3, group: "g", gone: true}, consumerTombstone(3, "g")},
	{"member removed", "0008 0001 67 0001 6d", "", consumerRecord{kind: 8, group: "g", name: "m", gone: true}, consumerTombstone(8, "g", "m")},
}

var sampleID = topicID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

func ptr(s string) *string { return &s }

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConsumerRecords(t *testing.T) {
	for _, x := range goldenConsumer {
		r := Record{Key: unhex(t, x.key)}
		if x.value != "" {
			r.Value = unhex(t, x.value)
		}
		if !isConsumer(r.Key) {
			t.Errorf("%s: not taken for one of the consumer protocol", x.name)
		}
		got, err := decodeConsumer(r)
		if err != nil || !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: %+v %+v %v", x.name, got, got.member, err)
		}
		if x.again.Key != nil && (fmt.Sprintf("%x", x.again.Key) != fmt.Sprintf("%x", r.Key) || fmt.Sprintf("%x", x.again.Value) != fmt.Sprintf("%x", r.Value)) {
			t.Errorf("%s is written as\n%x %x\nnot\n%x %x", x.name, x.again.Key, x.again.Value, r.Key, r.Value)
		}
		// Cut short anywhere, it is an error and changes nothing.
		for n := range r.Value {
			s := NewShard(Config{})
			cut := Record{r.Key, r.Value[:n]}
			if x.want.kind == keyConsumerTopics {
				break // not read
			}
			if err := s.Apply(cut); err == nil || len(s.GroupIDs()) > 0 {
				t.Errorf("%s: %d of %d bytes are accepted: %v", x.name, n, len(r.Value), err)
			}
		}
		for n := range r.Key {
			if _, err := decodeConsumer(Record{r.Key[:n], r.Value}); err == nil {
				t.Errorf("%s: %d bytes of the key are accepted", x.name, n)
			}
		}
	}
	kinds := map[int16]bool{}
	for _, x := range goldenConsumer {
		kinds[x.want.kind] = true
	}
	if got := slices.Sorted(maps.Keys(kinds)); !slices.Equal(got, []int16{3, 4, 5, 6, 7, 8, 16}) {
		t.Errorf("records of %v", got)
	}
}

// Counts and lengths that the bytes cannot hold must not take memory.
func TestHostileConsumerRecords(t *testing.T) {
	for _, x := range []struct{ key, value string }{
		{"0005 0001 67 0001 6d", "0000 00 00 01 01 ffffffff07"},
		{"0005 0001 67 0001 6d", "0000 ffffffff07"},
		{"0007 0001 67 0001 6d", "0000 ffffffff07 00000000000000000000000000000000000000"},
		{"0008 0001 67 0001 6d", "0000 00000005 00000004 00 ffffffffffffffffffff01"},
		{"0008 0001 67 0001 6d", "0000 00000005 00000004 00 02 000102030405060708090a0b0c0d0e0f 02 00000001 01 00 09 03 00000003 00000003 01 00"},
		{"0003 0001 67", "0000 00000005 01 00 ffffffff07"},
		{"0003 0001 67", "0001 00000005 00"},
		{"0003 ffff", "0000 00000005 00"},
	} {
		r := Record{unhex(t, x.key), unhex(t, x.value)}
		s := NewShard(Config{})
		if err := s.Apply(r); err == nil || len(s.GroupIDs()) > 0 {
			t.Errorf("%s %s: %v", x.key, x.value, err)
		}
		if n := testing.AllocsPerRun(5, func() { s.Apply(r) }); n > 30 {
			t.Errorf("%s %s: %v allocations", x.key, x.value, n)
		}
	}
}

func FuzzConsumerRecord(f *testing.F) {
	for _, x := range goldenConsumer {
		k, _ := hex.DecodeString(strings.ReplaceAll(x.key, " ", ""))
		v, _ := hex.DecodeString(strings.ReplaceAll(x.value, " ", ""))
		f.Add(k, v)
	}
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if !isConsumer(k) {
			return
		}
		s := NewShard(Config{})
		if s.Apply(Record{k, v}) != nil && len(s.GroupIDs()) > 0 {
			t.Fatal("a record that is refused leaves something")
		}
	})
}
