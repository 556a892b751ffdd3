package group

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestRecordsOfOld reads records as earlier versions and as Kafka wrote them: each line of the file is what a record
// says, its key and its value. The file only grows.
func TestRecordsOfOld(t *testing.T) {
	f, err := os.Open("testdata/records.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for sc := bufio.NewScanner(f); sc.Scan(); n++ {
		said, kv, ok := strings.Cut(sc.Text(), " | ")
		k, v, ok2 := strings.Cut(kv, " | ")
		key, err := hex.DecodeString(k)
		value, err2 := hex.DecodeString(v)
		if !ok || !ok2 || err != nil || err2 != nil {
			t.Fatalf("line %d: %v %v", n+1, err, err2)
		}
		r := Record{Key: key, Value: value}
		if v == "" {
			r.Value = nil
		}
		if got := text(r); got != said {
			t.Errorf("line %d: %s, want %s", n+1, got, said)
		}
		if err := NewShard(Config{}).Apply(r); err != nil {
			t.Errorf("line %d: %v", n+1, err)
		}
	}
	if n < 8 && os.Getenv("PRINT_RECORDS") == "" {
		t.Fatalf("%d records", n)
	}
	if os.Getenv("PRINT_RECORDS") == "" {
		return
	}
	for _, r := range samples() {
		fmt.Printf("%s | %x | %x\n", text(r), r.Key, r.Value)
	}
}

// samples are records of every version that may lie in a log.
func samples() (rs []Record) {
	rs = append(rs, offsetRecord("g", "t", 3, Offset{Offset: 5, LeaderEpoch: 2, Metadata: "m", Committed: 7, Expires: -1}),
		offsetRecord("g", "t", 3, Offset{Offset: 5, LeaderEpoch: 2, Committed: 7, Expires: 9}), offsetTombstone("g", "t", 3), groupTombstone("g"))
	for v := range int16(4) {
		val := kmsg.OffsetCommitValue{Version: v, Offset: 11, LeaderEpoch: 4, Metadata: "x", CommitTimestamp: 1, ExpireTimestamp: 2}
		rs = append(rs, Record{Key: offsetKey("g", "t", 0), Value: val.AppendTo(nil)})
		gv := kmsg.GroupMetadataValue{Version: v, ProtocolType: "consumer", Generation: 6, Protocol: kmsg.StringPtr("range"), Leader: kmsg.StringPtr("a"), CurrentStateTimestamp: 3,
			Members: []kmsg.GroupMetadataValueMember{{MemberID: "a", InstanceID: kmsg.StringPtr("one"), ClientID: "c", ClientHost: "/h", RebalanceTimeoutMillis: 8, SessionTimeoutMillis: 9,
				Subscription: metadata("sub/t"), Assignment: []byte{1}}}}
		rs = append(rs, Record{Key: groupKey("g"), Value: gv.AppendTo(nil)})
	}
	return rs
}

func TestHostileRecords(t *testing.T) {
	s := NewShard(Config{})
	for _, r := range []Record{
		{},
		{Key: []byte{0}},
		{Key: []byte{0, 1, 0, 9}},
		{Key: groupKey("g"), Value: []byte{0}},
		{Key: groupKey("g"), Value: []byte{0, 4, 1, 1, 1, 1}},
		{Key: offsetKey("g", "t", 0), Value: []byte{0, 99}},
		{Key: offsetKey("g", "t", 0), Value: []byte{0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 3}},
		// A million members in 30 bytes.
		{Key: groupKey("g"), Value: []byte{0, 3, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 255, 255, 0, 0, 0, 0}},
	} {
		if err := s.Apply(r); err == nil {
			t.Errorf("%x %x is accepted", r.Key, r.Value)
		}
	}
	if n := testing.AllocsPerRun(10, func() {
		s.Apply(Record{Key: groupKey("g"), Value: []byte{0, 3, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 255, 255, 0, 0, 0, 0}})
	}); n > 20 {
		t.Errorf("%v allocations", n)
	}
	// Keys of protocols to come are somebody else's.
	if err := s.Apply(Record{Key: []byte{0, 10, 0, 0}, Value: []byte{0, 0}}); err != nil || len(s.GroupIDs()) != 0 {
		t.Error(err, s.GroupIDs())
	}
}

func TestLonger(t *testing.T) {
	for _, x := range []struct {
		s    string
		max  int
		want bool
	}{{"abcd", 4, false}, {"abcde", 4, true}, {"grüß", 4, false}, {"😀😀", 4, false}, {"😀😀a", 4, true}, {strings.Repeat("ü", 20_000), 30_000, true}} {
		if got := longer(x.s, x.max); got != x.want {
			t.Errorf("%.10q longer than %d: %v", x.s, x.max, got)
		}
	}
}

func TestConfig(t *testing.T) {
	if c := (Config{}).filled(); c.MinSessionTimeout != DefaultMinSessionTimeout || c.OffsetMetadataMax != DefaultOffsetMetadataMax || c.MaxSize != MaxMembers {
		t.Errorf("%+v", c)
	}
	// What is set to 0 is 0.
	if c := (Config{MaxSessionTimeout: DefaultMaxSessionTimeout}).filled(); c.MinSessionTimeout != 0 || c.OffsetMetadataMax != 0 || c.MaxMemberBytes != DefaultMaxMemberBytes {
		t.Errorf("%+v", c)
	}
}
