package history

import (
	"fmt"
	"slices"
	"testing"
)

// A day in which all is well, as the tests below begin: a producer, two transactions of which one is aborted, a
// processor, a group, one reader that reads along and the final ones.
type story struct{ *History }

const (
	along = iota
	alongCommitted
	finalAll
	finalCommitted
	otherAll
	otherCommitted
)

var (
	in  = Partition{"in", 0}
	out = Partition{"out", 0}
)

func well() *story {
	s := &story{&History{Txns: map[string]*Txn{}, Readers: []Reader{
		along: {Name: "along", Steady: true}, alongCommitted: {Name: "along, committed", Steady: true, Committed: true},
		finalAll: {Name: "replica 1", Final: true}, finalCommitted: {Name: "replica 1, committed", Final: true, Committed: true},
		otherAll: {Name: "replica 2", Final: true}, otherCommitted: {Name: "replica 2, committed", Final: true, Committed: true},
	}}}
	s.Txns["t1"], s.Txns["t2"], s.Txns["t3"] = &Txn{Done, 10}, &Txn{Not, 0}, &Txn{Unknown, 20}
	for n := range int64(4) {
		s.put(in, n, rec("a", n, ""), true)
	}
	// Two transactions copy 0 and 1; the second of them was aborted, and the third does again what it did.
	s.put(out, 0, rec("copy", 0, "t1"), true)
	s.put(out, 1, rec("copy", 1, "t1"), true)
	s.put(out, 2, Record{Control: true, Sum: 1}, false)
	s.put(out, 3, rec("copy", 2, "t2"), false)
	s.put(out, 4, Record{Control: true, Sum: 2}, false)
	s.put(out, 5, rec("copy", 2, "t3"), true)
	s.put(out, 6, rec("copy", 3, "t3"), true)
	s.put(out, 7, Record{Control: true, Sum: 3}, false)
	s.Produces = append(s.Produces, Produce{in, rec("a", 4, ""), Unknown, -1}) // it has not come
	s.Derived = []Derived{{"in", "out", "copy"}}
	s.Commits = []Commit{{in, "g", 12, 2}, {in, "g", 22, 4}}
	s.Offsets = []Offset{{in, "g", 1, -1}, {in, "g", 15, 2}, {in, "g", 18, 4}, {in, "g", 25, 4}}
	return s
}

func rec(producer string, number int64, txn string) Record {
	return Record{Producer: producer, Number: number, Txn: txn, Sum: uint32(number)}
}

// put has a record acknowledged and read by all who may see it.
func (s *story) put(p Partition, offset int64, r Record, visible bool) {
	if !r.Control {
		s.Produces = append(s.Produces, Produce{p, r, Done, offset})
	}
	for i, who := range s.Readers {
		if who.Committed && !visible || r.Control && !who.Final {
			continue
		}
		rd := Read{Partition: p, Record: r, Reader: i, At: 30, Offset: offset, Epoch: -1}
		if who.Final {
			rd.Epoch, rd.Batch = 3, uint32(100+offset)
		}
		s.Reads = append(s.Reads, rd)
	}
}

// drop has an offset not shown to some readers.
func (s *story) drop(p Partition, offset int64, readers ...int) {
	s.Reads = slices.DeleteFunc(s.Reads, func(r Read) bool {
		return r.Partition == p && r.Offset == offset && slices.Contains(readers, r.Reader)
	})
}

// change changes what readers were shown at an offset.
func (s *story) change(p Partition, offset int64, f func(*Read), readers ...int) {
	for i := range s.Reads {
		if r := &s.Reads[i]; r.Partition == p && r.Offset == offset && (len(readers) == 0 || slices.Contains(readers, r.Reader)) {
			f(r)
		}
	}
}

var everybody = []int{along, alongCommitted, finalAll, finalCommitted, otherAll, otherCommitted}

// planted is what is wrong with a day that was well.
type planted struct {
	name string
	do   func(*story)
	want []string // kind: place
}

func TestCheck(t *testing.T) {
	finds(t, well, []planted{
		{"all is well", func(*story) {}, nil},
		{"the last acknowledged record is gone", func(s *story) { s.drop(in, 3, everybody...) }, []string{"acknowledged record lost: in-0 3"}},
		{"another record has its place", func(s *story) {
			s.change(in, 3, func(r *Read) { r.Record = rec("a", 4, "") })
		}, []string{"acknowledged record lost: in-0 3"}},
		{"it is there, and hidden", func(s *story) { s.drop(in, 3, alongCommitted, finalCommitted, otherCommitted) },
			[]string{"acknowledged record lost: in-0 3"}},
		{"a retry was appended again", func(s *story) { s.put(in, 4, rec("a", 3, ""), true); s.put(out, 8, rec("copy", 4, ""), true) },
			[]string{"record twice: in-0 4"}},
		{"an input was copied by two transactions", func(s *story) { s.put(out, 8, rec("copy", 3, "t1"), true) },
			[]string{"record twice: out-0 8"}},
		{"an aborted attempt is in the log twice", func(s *story) { s.put(out, 8, rec("copy", 2, "t2"), false) },
			[]string{"record twice: out-0 8"}},
		{"a later record overtook", func(s *story) {
			s.put(in, 4, rec("a", 9, ""), true)
			s.put(in, 5, rec("a", 8, ""), true)
			s.put(out, 8, rec("copy", 4, ""), true)
			s.put(out, 9, rec("copy", 5, ""), true)
		}, []string{"order of a producer broken: in-0 5"}},
		{"a reader saw another record", func(s *story) {
			s.change(in, 1, func(r *Read) { r.Record = rec("b", 1, "") }, along)
		}, []string{"different records at one offset: in-0 1"}},
		{"the bytes differ in nothing but the checksum of the value", func(s *story) {
			s.change(in, 1, func(r *Read) { r.Sum++ }, otherCommitted)
		}, []string{"different records at one offset: in-0 1"}},
		{"replicas have the record in another epoch", func(s *story) {
			s.change(in, 1, func(r *Read) { r.Epoch = 4 }, otherAll, otherCommitted)
		}, []string{"different records at one offset: in-0 1"}},
		{"replicas have other bytes around the record", func(s *story) {
			s.change(in, 1, func(r *Read) { r.Batch = 1 }, otherAll)
		}, []string{"different records at one offset: in-0 1"}},
		{"one offset was acknowledged for two", func(s *story) { s.Produces[len(s.Produces)-1] = Produce{in, rec("a", 4, ""), Done, 2} },
			[]string{"acknowledged record lost: in-0 2", "different records at one offset: in-0 2"}},
		{"there is a hole where nothing was acknowledged", func(s *story) {
			s.put(in, 5, rec("a", 5, ""), true)
			s.put(out, 8, rec("copy", 5, ""), true)
		}, []string{"gap in the offsets: in-0 4"}},
		{"an old leader's record lies behind a new one's", func(s *story) {
			for o := range int64(2) {
				s.change(in, o, func(r *Read) { r.Epoch = 4 })
			}
		}, []string{"leader epoch lower than that of a record before: in-0 2", "leader epoch lower than that of a record before: in-0 3"}},
		{"a replica has less", func(s *story) { s.drop(in, 3, otherAll) },
			[]string{"record not shown to a reader that went on behind it: in-0 3"}},
		{"a replica has nothing", func(s *story) {
			for o := range int64(4) {
				s.drop(in, o, otherAll)
			}
		}, []string{
			"record not shown to a reader that went on behind it: in-0 0", "record not shown to a reader that went on behind it: in-0 1",
			"record not shown to a reader that went on behind it: in-0 2", "record not shown to a reader that went on behind it: in-0 3"}},
		{"a replica has no marker", func(s *story) { s.drop(out, 4, otherAll) },
			[]string{"record not shown to a reader that went on behind it: out-0 4"}},
		{"who reads along was taken past a record", func(s *story) { s.drop(in, 2, along) },
			[]string{"record not shown to a reader that went on behind it: in-0 2"}},
		{"who reads along has not come to the end", func(s *story) { s.drop(in, 3, along); s.drop(in, 2, along) }, nil},
		{"who reads along was taken back", func(s *story) {
			s.Reads = append(s.Reads, Read{Partition: in, Record: rec("a", 1, ""), Reader: along, At: 31, Offset: 1, Epoch: -1})
		}, []string{"a reader was shown an offset again: in-0 1"}},
		{"an aborted record is shown", func(s *story) {
			s.Reads = append(s.Reads, Read{Partition: out, Record: rec("copy", 2, "t2"), Reader: alongCommitted, At: 31, Offset: 3, Epoch: -1})
		}, []string{"a reader was shown an offset again: out-0 3", "aborted or undecided record shown at read_committed: out-0 3"}},
		{"nobody has asked for the commit", func(s *story) { s.Txns["t3"].Asked = 0 }, repeat(6, "aborted or undecided record shown at read_committed: out-0 %d", 5, 5, 5, 6, 6, 6)},
		{"it is shown before somebody has", func(s *story) { s.change(out, 5, func(r *Read) { r.At = 19 }, alongCommitted) },
			[]string{"aborted or undecided record shown at read_committed: out-0 5"}},
		{"half of a committed transaction", func(s *story) { s.drop(out, 1, alongCommitted, finalCommitted, otherCommitted) },
			[]string{"part of a committed transaction missing: out-0 1", "record not processed though its offset is committed: in-0 1"}},
		{"half of one whose commit was not answered", func(s *story) { s.drop(out, 6, alongCommitted, finalCommitted, otherCommitted) },
			[]string{"part of a committed transaction missing: out-0 6", "record not processed though its offset is committed: in-0 3"}},
		{"all of one whose commit was not answered, and which was done again", func(s *story) {
			s.drop(out, 5, alongCommitted, finalCommitted, otherCommitted)
			s.drop(out, 6, alongCommitted, finalCommitted, otherCommitted)
			s.Txns["t4"] = &Txn{Done, 25}
			s.put(out, 8, rec("copy", 2, "t4"), true)
			s.put(out, 9, rec("copy", 3, "t4"), true)
		}, nil},
		{"the group is told an older offset", func(s *story) { s.Offsets = append(s.Offsets, Offset{in, "g", 26, 2}) },
			[]string{"committed offset of a group went back: in-0 2"}},
		{"the group is told that it has none", func(s *story) { s.Offsets = append(s.Offsets, Offset{in, "g", 26, -1}) },
			[]string{"committed offset of a group went back: in-0"}},
		{"it asked before the acknowledgement", func(s *story) { s.Offsets = append(s.Offsets, Offset{in, "g", 22, 2}) }, nil},
		{"a reader saw what did not survive", func(s *story) {
			s.Reads = append(s.Reads, Read{Partition: in, Record: rec("a", 4, ""), Reader: along, At: 9, Offset: 4, Epoch: -1})
		}, []string{"a record was shown that is not there any more: in-0 4"}},
		{"an input was passed over", func(s *story) {
			s.put(in, 4, rec("a", 4, ""), true)
		}, []string{"record not processed though its offset is committed: in-0 4"}},
	})
}

var short = Partition{"short", 0}

// deleted is a day on which what was at the beginning of a log was deleted when some had read it.
func deleted() *story {
	s := well()
	for n := range int64(6) {
		s.put(short, n, rec("s", n, ""), true)
	}
	for n := range int64(3) {
		s.drop(short, n, finals...)
	}
	s.Starts = []Start{{short, 3}}
	return s
}

func TestDeleted(t *testing.T) {
	finds(t, deleted, []planted{
		{"all is well", func(*story) {}, nil},
		{"the log starts later than it says", func(s *story) { s.drop(short, 3, everybody...) },
			[]string{"acknowledged record lost: short-0 3", "gap in the offsets: short-0 3"}},
		{"a record of the rest is gone", func(s *story) { s.drop(short, 5, everybody...) }, []string{"acknowledged record lost: short-0 5"}},
		{"a replica lacks one of the rest", func(s *story) { s.drop(short, 4, otherAll) },
			[]string{"record not shown to a reader that went on behind it: short-0 4"}},
		{"a record of the rest was shown and is gone", func(s *story) {
			s.Reads = append(s.Reads, Read{Partition: short, Record: rec("s", 6, ""), Reader: along, At: 31, Offset: 6, Epoch: -1})
		}, []string{"a record was shown that is not there any more: short-0 6"}},
		{"a deleted record is shown", func(s *story) {
			s.Reads = slices.Insert(s.Reads, 0, Read{Partition: short, Record: rec("s", 2, ""), Reader: finalAll, At: 30, Offset: 2, Epoch: 3})
		}, []string{"deleted record shown: short-0 2"}},
		{"who reads along came when some were deleted", func(s *story) { s.drop(short, 1, along); s.drop(short, 2, along) }, nil},
		{"who reads along was taken past one of the rest", func(s *story) { s.drop(short, 4, along) },
			[]string{"record not shown to a reader that went on behind it: short-0 4"}},
		{"another record has a deleted one's place", func(s *story) {
			s.change(short, 1, func(r *Read) { r.Record = rec("s", 9, "") }, along)
		}, []string{"different records at one offset: short-0 1"}},
	})
}

func finds(t *testing.T, day func() *story, list []planted) {
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) {
			s := day()
			c.do(s)
			var got []string
			for _, a := range Check(s.History) {
				where := fmt.Sprintf("%s: %s-%d", a.Kind, a.Where.Topic, a.Where.Index)
				if a.Offset >= 0 {
					where += fmt.Sprint(" ", a.Offset)
				}
				got = append(got, where)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("found\n%q\nwant\n%q\n%v", got, c.want, Check(s.History))
			}
		})
	}
}

var (
	kept   = Partition{"kept", 0}
	finals = []int{finalAll, finalCommitted, otherAll, otherCommitted}
)

func keyed(number int64, key, txn string) Record {
	r := rec("k", number, txn)
	r.Key = key
	return r
}

func tombstone(number int64, key, txn string) Record {
	r := keyed(number, key, txn)
	r.Tombstone = true
	return r
}

// compacted is a day with a compacted topic: whoever reads along sees all of it, and in the end the older values are gone, on one
// replica the tombstone too.
func compacted() *story {
	s := well()
	s.Compacted = []string{"kept"}
	s.put(kept, 0, keyed(0, "a", ""), true)
	s.put(kept, 1, keyed(1, "b", ""), true)
	s.put(kept, 2, keyed(2, "a", ""), true)
	s.put(kept, 3, tombstone(3, "b", ""), true)
	s.put(kept, 4, keyed(4, "c", "t1"), true)
	s.put(kept, 5, keyed(5, "c", "t2"), false)
	s.put(kept, 6, Record{Control: true, Sum: 9}, false)
	s.drop(kept, 0, finals...)
	s.drop(kept, 1, finals...)
	s.drop(kept, 3, otherAll, otherCommitted)
	s.drop(kept, 6, otherAll)
	s.change(kept, 2, func(r *Read) { r.Batch = 1 }, otherAll)
	return s
}

// first has a reader shown a record before all others.
func (s *story) first(offset int64, r Record, reader int) {
	s.Reads = slices.Insert(s.Reads, 0, Read{Partition: kept, Record: r, Reader: reader, At: 30, Offset: offset, Epoch: 3})
}

func TestCompacted(t *testing.T) {
	lost := func(offset int) []string {
		return repeat(4, "acknowledged record lost: kept-0 %d", offset, offset, offset, offset)
	}
	finds(t, compacted, []planted{
		{"all is well", func(*story) {}, nil},
		{"the newest value of a key is gone", func(s *story) { s.drop(kept, 2, finals...) }, lost(2)},
		{"that of a transaction", func(s *story) { s.drop(kept, 4, finals...) }, lost(4)},
		{"that of a transaction whose commit was not answered", func(s *story) {
			s.put(kept, 7, keyed(6, "c", "t3"), true)
			s.drop(kept, 7, finals...)
		}, repeat(4, "older record of a key shown than was acknowledged: kept-0 %d", 4, 4, 4, 4)},
		{"all of a partition", func(s *story) {
			for o := range int64(7) {
				s.drop(kept, o, finals...)
			}
		}, append(lost(2), lost(4)...)},
		{"one replica has an older value", func(s *story) {
			s.drop(kept, 2, otherAll)
			s.first(0, keyed(0, "a", ""), otherAll)
		}, []string{"older record of a key shown than was acknowledged: kept-0 0"}},
		{"what was deleted is back", func(s *story) { s.first(1, keyed(1, "b", ""), otherAll) },
			[]string{"older record of a key shown than was acknowledged: kept-0 1"}},
		{"a tombstone that was not answered may be there", func(s *story) {
			s.Produces = append(s.Produces, Produce{kept, tombstone(6, "a", ""), Unknown, -1})
			s.drop(kept, 2, finals...)
		}, nil},
		{"that of a transaction whose commit was not answered may, too", func(s *story) {
			s.Txns["t4"] = &Txn{Unknown, 20}
			s.Produces = append(s.Produces, Produce{kept, tombstone(6, "a", "t4"), Done, 7})
			s.drop(kept, 2, finals...)
		}, nil},
		{"not one that was written before the value", func(s *story) {
			s.Txns["t4"] = &Txn{Unknown, 20}
			s.Produces = append(s.Produces, Produce{kept, tombstone(6, "d", "t4"), Done, 7})
			s.put(kept, 8, keyed(7, "d", ""), true)
			s.drop(kept, 8, finals...)
		}, lost(8)},
		{"nor one of a transaction whose commit nobody has asked for", func(s *story) {
			s.Txns["t4"] = &Txn{Unknown, 0}
			s.Produces = append(s.Produces, Produce{kept, tombstone(6, "a", "t4"), Done, 7})
			s.drop(kept, 2, finals...)
		}, lost(2)},
		{"nor an aborted one", func(s *story) {
			s.Produces = append(s.Produces, Produce{kept, tombstone(6, "a", "t2"), Done, 7})
			s.drop(kept, 2, finals...)
		}, lost(2)},
		{"an aborted record is not the newest of its key", func(s *story) { s.drop(kept, 4, finalAll) }, []string{"acknowledged record lost: kept-0 4"}},
		{"who reads along was taken past the newest value", func(s *story) { s.drop(kept, 2, along) },
			[]string{"older record of a key shown than was acknowledged: kept-0 0"}},
		{"who reads along has not come to it", func(s *story) {
			for o := int64(1); o < 7; o++ {
				s.drop(kept, o, along)
			}
		}, nil},
		{"who reads along came when the tombstone was gone", func(s *story) { s.drop(kept, 3, along, alongCommitted) }, nil},
		{"another value", func(s *story) { s.change(kept, 2, func(r *Read) { r.Sum++ }, otherAll) },
			[]string{"different records at one offset: kept-0 2"}},
		{"another key", func(s *story) { s.change(kept, 2, func(r *Read) { r.Key = "d" }) },
			append(lost(2), "acknowledged record lost: kept-0 2")},
		{"the offsets do not ascend", func(s *story) {
			s.Reads = append(s.Reads, Read{Partition: kept, Record: keyed(2, "a", ""), Reader: otherCommitted, At: 31, Offset: 2, Epoch: 3})
		}, []string{"a reader was shown an offset again: kept-0 2"}},
	})
}

func repeat(n int, format string, args ...any) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(format, args[i]))
	}
	return all
}
