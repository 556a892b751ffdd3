package txn

import (
	"bufio"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRecordsOfOld reads records as earlier versions and as Kafka wrote them: each line of the file is what a record says,
// its key and its value. The file only grows.
func TestRecordsOfOld(t *testing.T) {
	lines := oldRecords(t)
	if len(lines) < 9 {
		t.Fatalf("%d records", len(lines))
	}
	for _, l := range lines {
		if got := text(l.r); got != l.said {
			t.Errorf("line %d: %s, want %s", l.n, got, l.said)
		}
		if err := NewShard(Config{}).Apply(l.r); err != nil {
			t.Errorf("line %d: %v", l.n, err)
		}
	}
}

type oldRecord struct {
	n    int
	said string
	r    Record
}

func oldRecords(t testing.TB) (rs []oldRecord) {
	f, err := os.Open("testdata/records.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		n++
		parts := strings.Split(sc.Text(), " | ")
		if len(parts) != 3 {
			t.Fatalf("line %d has %d parts", n, len(parts))
		}
		key, err := hex.DecodeString(parts[1])
		value, err2 := hex.DecodeString(parts[2])
		if err != nil || err2 != nil {
			t.Fatalf("line %d: %v %v", n, err, err2)
		}
		r := Record{Key: key, Value: value}
		if len(value) == 0 {
			r.Value = nil
		}
		rs = append(rs, oldRecord{n, parts[0], r})
	}
	return rs
}

// TestRecordsWritten compares what is written with those of the file that say the same.
func TestRecordsWritten(t *testing.T) {
	want := map[string]Record{}
	for _, l := range oldRecords(t) {
		if _, ok := want[l.said]; !ok {
			want[l.said] = l.r
		}
	}
	topics := []Topic{{"a", []int32{0, 2}}, {"b", []int32{7}}}
	m := metadata{producerID: 42, previousID: 42, nextID: -1, last: -1, epoch: 3, timeout: 60000, state: Ongoing, topics: topics, updated: 1700000000000, started: 1699999999000, version: 2}
	ended := m
	ended.state, ended.epoch, ended.nextID, ended.last = PrepareCommit, 32767, 99, 32766
	again := metadata{producerID: 42, previousID: 42, nextID: -1, epoch: 4, last: 3, timeout: 60000, updated: 1700000000000, started: -1}
	empty := metadata{producerID: 42, previousID: -1, nextID: -1, last: -1, timeout: 1000, updated: 5, started: -1}
	complete := metadata{producerID: 42, previousID: -1, nextID: -1, last: -1, epoch: 3, timeout: 1000, state: CompleteAbort, updated: 5, started: 4}
	for _, r := range []Record{recordOf("tx", m, 2), recordOf("tx", ended, 2), recordOf("tx", again, 1), recordOf("tx", empty, 0), recordOf("tx", complete, 0), tombstone("tx")} {
		w, ok := want[text(r)]
		if !ok {
			t.Errorf("%s is not in the file", text(r))
			continue
		}
		if string(w.Key) != string(r.Key) || string(w.Value) != string(r.Value) {
			t.Errorf("%s\nis written as %x %x\nwant          %x %x", text(r), r.Key, r.Value, w.Key, w.Value)
		}
	}
}

// samples are records of every version that may lie in a log.
func samples() (rs []Record) {
	topics := []Topic{{"t", []int32{0, 1}}}
	for st := Empty; st <= CompleteAbort; st++ {
		for version := range int16(3) {
			rs = append(rs, recordOf("x", metadata{producerID: 5, previousID: 4, nextID: -1, last: -1, epoch: 1, timeout: 1000, state: st, topics: topics, updated: 2, started: 1, version: version}, version))
		}
	}
	return append(rs, tombstone("x"))
}

func TestHostileRecords(t *testing.T) {
	good := recordOf("x", metadata{producerID: 5, previousID: 4, nextID: -1, last: -1, epoch: 1, state: Ongoing, topics: []Topic{{"t", []int32{0}}}}, 2)
	// A million topics in few bytes, in both versions.
	many0 := append([]byte{0, 0}, make([]byte, 15)...)
	many0 = append(many0, 0, 15, 255, 255)
	many0 = append(many0, make([]byte, 1<<20)...)
	many1 := append([]byte{0, 1}, make([]byte, 15)...)
	many1 = append(many1, 0xff, 0xff, 0x3f)
	many1 = append(many1, make([]byte, 1<<20)...)
	for _, x := range []struct {
		r       Record
		unknown bool
	}{
		{r: Record{}},
		{r: Record{Key: []byte{0}}},
		{r: Record{Key: []byte{0, 0, 0, 9}}},
		{r: Record{Key: []byte{0, 1, 0, 0}}, unknown: true},
		{r: Record{Key: []byte{0, 1, 0, 0}, Value: good.Value}, unknown: true},
		{r: Record{Key: good.Key, Value: []byte{}}},
		{r: Record{Key: good.Key, Value: []byte{0}}},
		{r: Record{Key: good.Key, Value: []byte{0, 2}}, unknown: true},
		{r: Record{Key: good.Key, Value: []byte{255, 255}}, unknown: true},
		{r: Record{Key: good.Key, Value: good.Value[:10]}},
		{r: Record{Key: good.Key, Value: good.Value[:len(good.Value)-1]}},
		{r: Record{Key: good.Key, Value: recordOf("x", metadata{producerID: -1}, 2).Value}},
		{r: Record{Key: good.Key, Value: recordOf("x", metadata{epoch: -1}, 2).Value}},
		{r: Record{Key: good.Key, Value: recordOf("x", metadata{version: -1}, 2).Value}},
		{r: Record{Key: good.Key, Value: recordOf("x", metadata{state: Dead}, 2).Value}},
		{r: Record{Key: good.Key, Value: recordOf("x", metadata{state: PrepareEpochFence}, 2).Value}},
		{r: Record{Key: good.Key, Value: recordOf("x", metadata{state: -1}, 2).Value}},
		{r: Record{Key: good.Key, Value: many0}},
		{r: Record{Key: good.Key, Value: many1}},
	} {
		s := NewShard(Config{})
		if err := s.Apply(good); err != nil {
			t.Fatal(err)
		}
		before := dump(s)
		var err error
		allocs := testing.AllocsPerRun(1, func() { err = s.Apply(x.r) })
		if err == nil || errors.Is(err, ErrUnknownVersion) != x.unknown {
			t.Errorf("%x %.20x: %v", x.r.Key, x.r.Value, err)
		}
		if allocs > 20 {
			t.Errorf("%x %.20x: %v allocations", x.r.Key, x.r.Value, allocs)
		}
		if got := dump(s); got != before {
			t.Errorf("%x %.20x changes the state to\n%s", x.r.Key, x.r.Value, got)
		}
	}
}

// Whatever is in the table has a way out, but for Dead and for a fence, which never lasts.
func TestTransitions(t *testing.T) {
	for from := Empty; from <= PrepareEpochFence; from++ {
		n := 0
		for to := Empty; to <= PrepareEpochFence; to++ {
			if legal(from, to) {
				n++
			}
		}
		if n == 0 != (from == Dead) {
			t.Errorf("%d ways out of %s", n, from)
		}
	}
	for _, x := range [][2]State{{Empty, PrepareCommit}, {PrepareCommit, PrepareAbort}, {PrepareAbort, PrepareCommit}, {PrepareCommit, CompleteAbort},
		{PrepareAbort, CompleteCommit}, {PrepareCommit, Ongoing}, {Ongoing, Empty}, {Ongoing, CompleteCommit}, {CompleteCommit, PrepareCommit}, {Ongoing, Dead}} {
		if legal(x[0], x[1]) {
			t.Errorf("from %s to %s", x[0], x[1])
		}
	}
}

func TestConfig(t *testing.T) {
	if c := (Config{}).filled(); c.MaxTimeout != DefaultMaxTimeout || c.Expiration != DefaultExpiration || c.TransactionVersion != 2 || c.MaxPartitions != DefaultMaxPartitions {
		t.Errorf("%+v", c)
	}
	// What is set to 0 is 0.
	if c := (Config{MaxTimeout: time.Second}).filled(); c.TransactionVersion != 0 || c.Expiration != 0 || c.MaxBytes != DefaultMaxBytes {
		t.Errorf("%+v", c)
	}
}

func TestUnion(t *testing.T) {
	have := []Topic{{"b", []int32{1, 5}}, {"d", []int32{0}}}
	got := union(have, []Topic{{"d", nil}, {"c", []int32{4, 4, 2}}, {"b", []int32{3}}, {"a", nil}, {"c", []int32{9}}, {"b", []int32{1}}})
	if s := places(got); s != " b[1 3 5] c[2 4 9] d[0]" {
		t.Error(s)
	}
	if s := places(have); s != " b[1 5] d[0]" {
		t.Errorf("have is now %s", s)
	}
	for topic, p := range map[string]int32{"b": 3, "c": 9, "d": 0} {
		if !has(got, topic, p) || has(got, topic, p+100) || has(got, topic+"x", p) {
			t.Error(topic, p)
		}
	}
}

// The oldest transaction and the numbers of states, for metrics.
func TestCounts(t *testing.T) {
	s := NewShard(Config{})
	if _, ok := s.Oldest(); ok {
		t.Error("an empty shard has a transaction")
	}
	for i, st := range []State{Empty, Ongoing, Ongoing, PrepareAbort, CompleteCommit} {
		m := metadata{producerID: int64(i), previousID: -1, nextID: -1, last: -1, state: st, started: int64(100 - i)}
		if err := s.Apply(recordOf(string(rune('a'+i)), m, 2)); err != nil {
			t.Fatal(err)
		}
	}
	if at, ok := s.Oldest(); !ok || at.UnixMilli() != 98 {
		t.Error(at, ok)
	}
	if got := s.Counts(); got != [...]int{1, 2, 0, 1, 1, 0, 0, 0} {
		t.Error(got)
	}
}
