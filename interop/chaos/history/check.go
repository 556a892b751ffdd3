package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Kind names what is wrong.
type Kind string

const (
	Lost        Kind = "acknowledged record lost"
	Twice       Kind = "record twice"
	Disordered  Kind = "order of a producer broken"
	Divergent   Kind = "different records at one offset"
	Gap         Kind = "gap in the offsets"
	EpochBack   Kind = "leader epoch lower than that of a record before"
	Skipped     Kind = "record not shown to a reader that went on behind it"
	WentBack    Kind = "a reader was shown an offset again"
	Aborted     Kind = "aborted or undecided record shown at read_committed"
	Torn        Kind = "part of a committed transaction missing"
	OffsetBack  Kind = "committed offset of a group went back"
	Vanished    Kind = "a record was shown that is not there any more"
	Unprocessed Kind = "record not processed though its offset is committed"
	Outdated    Kind = "older record of a key shown than was acknowledged"
	Undeleted   Kind = "deleted record shown"
)

// Anomaly is something that the cluster promises not to do.
type Anomaly struct {
	Kind   Kind
	Where  Partition
	Offset int64 // -1: none
	What   string
}

func (a Anomaly) String() string {
	if a.Offset < 0 {
		return fmt.Sprintf("%s: %s-%d: %s", a.Kind, a.Where.Topic, a.Where.Index, a.What)
	}
	return fmt.Sprintf("%s: %s-%d, offset %d: %s", a.Kind, a.Where.Topic, a.Where.Index, a.Offset, a.What)
}

func (r Record) String() string {
	switch {
	case r.Control:
		return fmt.Sprintf("marker %08x", r.Sum)
	}
	s := fmt.Sprintf("%s/%d", r.Producer, r.Number)
	if r.Txn != "" {
		s += " in " + r.Txn
	}
	if r.Tombstone {
		s += ", a tombstone"
	}
	return s
}

// Check finds what is wrong with a history, sorted by kind, partition and offset. A history without final readers has
// nothing that records could be missing from: that is an error of who noted it, and panics.
func Check(h *History) []Anomaly {
	c := &check{h: h, at: map[Partition]map[int64]*Read{}, differ: map[place]bool{}, seen: make([]map[Partition][]*Read, len(h.Readers)),
		final: -1, committed: -1, compacted: map[string]bool{}, start: map[Partition]int64{}}
	for _, t := range h.Compacted {
		c.compacted[t] = true
	}
	for _, s := range h.Starts {
		c.start[s.Partition] = s.Offset
	}
	for i, r := range h.Readers {
		c.seen[i] = map[Partition][]*Read{}
		switch {
		case r.Final && !r.Committed && c.final < 0:
			c.final = i
		case r.Final && r.Committed && c.committed < 0:
			c.committed = i
		}
	}
	if c.final < 0 || c.committed < 0 {
		panic("history: there is no final reader of one of the isolation levels")
	}
	c.reads()
	c.log()
	c.readers()
	c.transactions()
	c.acknowledged()
	c.keys()
	c.producers()
	c.offsets()
	c.derived()
	slices.SortStableFunc(c.found, func(a, b Anomaly) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), comparePartitions(a.Where, b.Where), cmp.Compare(a.Offset, b.Offset))
	})
	return c.found
}

func comparePartitions(a, b Partition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Index, b.Index))
}

type place struct {
	p Partition
	o int64
}

type check struct {
	h     *History
	found []Anomaly

	at               map[Partition]map[int64]*Read // the first read of each offset
	differ           map[place]bool
	seen             []map[Partition][]*Read // by reader, in the order of reading
	final, committed int                     // the readers whose word counts for what there is and what is visible
	there, visible   map[Partition]map[int64]*Read
	shown            map[string]*Read // the first record of a transaction that is visible
	compacted        map[string]bool  // topics
	start            map[Partition]int64
}

func (c *check) add(k Kind, p Partition, offset int64, format string, args ...any) {
	c.found = append(c.found, Anomaly{k, p, offset, fmt.Sprintf(format, args...)})
}

// reads compares all reads of an offset, and looks at whether a record may be shown at all.
func (c *check) reads() {
	for i := range c.h.Reads {
		r := &c.h.Reads[i]
		who := c.h.Readers[r.Reader]
		c.seen[r.Reader][r.Partition] = append(c.seen[r.Reader][r.Partition], r)
		offsets := c.at[r.Partition]
		if offsets == nil {
			offsets = map[int64]*Read{}
			c.at[r.Partition] = offsets
		}
		first := offsets[r.Offset]
		// An offset is told of once, however many read it.
		differ := func(format string, args ...any) {
			if k := (place{r.Partition, r.Offset}); !c.differ[k] {
				c.differ[k] = true
				c.add(Divergent, r.Partition, r.Offset, format, args...)
			}
		}
		switch {
		case first == nil:
			offsets[r.Offset] = r
		case first.Record != r.Record:
			differ("%s was shown %v, %s was shown %v", c.h.Readers[first.Reader].Name, first.Record, who.Name, r.Record)
		case first.Epoch >= 0 && r.Epoch >= 0 && first.Epoch != r.Epoch:
			differ("%s was shown leader epoch %d, %s was shown %d", c.h.Readers[first.Reader].Name, first.Epoch, who.Name, r.Epoch)
		case first.Batch != 0 && r.Batch != 0 && first.Batch != r.Batch && !c.compacted[r.Topic]:
			differ("the batch that %s was given has other bytes than the one that %s was given", c.h.Readers[first.Reader].Name, who.Name)
		case first.Batch == 0 && r.Batch != 0 || first.Epoch < 0 && r.Epoch >= 0:
			offsets[r.Offset] = r // it says more
		}
		if !who.Committed || r.Txn == "" {
			continue
		}
		switch t := c.h.Txns[r.Txn]; {
		case t == nil:
			c.add(Aborted, r.Partition, r.Offset, "%s was shown %v, a transaction that nobody began", who.Name, r.Record)
		case t.Outcome == Not:
			c.add(Aborted, r.Partition, r.Offset, "%s was shown %v, which was aborted", who.Name, r.Record)
		case t.Asked == 0 || r.At < t.Asked:
			c.add(Aborted, r.Partition, r.Offset, "%s was shown %v before anybody asked for its commit", who.Name, r.Record)
		}
	}
}

// log makes what there is, and what is visible, from what the first final readers saw.
func (c *check) log() {
	index := func(reader int) map[Partition]map[int64]*Read {
		all := map[Partition]map[int64]*Read{}
		for p, reads := range c.seen[reader] {
			all[p] = make(map[int64]*Read, len(reads))
			for _, r := range reads {
				all[p][r.Offset] = r
			}
		}
		return all
	}
	c.there, c.visible = index(c.final), index(c.committed)
	for p, offsets := range c.at {
		for o, r := range offsets {
			if c.there[p][o] == nil && !c.compacted[p.Topic] && o >= c.start[p] {
				c.add(Vanished, p, o, "%s was shown %v", c.h.Readers[r.Reader].Name, r.Record)
			}
		}
	}
	for p, offsets := range c.there {
		next, epoch := c.start[p], int32(-1)
		for _, o := range sorted(offsets) {
			if o < c.start[p] {
				c.add(Undeleted, p, o, "the log starts at %d", c.start[p])
				continue
			}
			if o > next && !c.compacted[p.Topic] {
				c.add(Gap, p, next, "nothing is there; the next record is at %d", o)
			}
			if e := offsets[o].Epoch; e < epoch {
				c.add(EpochBack, p, o, "leader epoch %d behind %d", e, epoch)
			}
			next, epoch = o+1, max(epoch, offsets[o].Epoch)
		}
	}
}

// readers looks at whether readers were shown everything on their way, and nothing again.
func (c *check) readers() {
	for i, who := range c.h.Readers {
		if !who.Steady && !who.Final {
			continue
		}
		partitions := c.seen[i]
		if who.Final {
			// Who was shown nothing at all of a partition, too.
			partitions = map[Partition][]*Read{}
			for p := range c.there {
				partitions[p] = c.seen[i][p]
			}
		}
		for p, reads := range partitions {
			shown := make(map[int64]bool, len(reads))
			last := int64(-1)
			for _, r := range reads {
				if r.Offset <= last {
					c.add(WentBack, p, r.Offset, "%s was at %d already", who.Name, last)
				}
				shown[r.Offset], last = true, max(last, r.Offset)
			}
			due := c.there[p]
			if who.Committed {
				due = c.visible[p]
			}
			if c.compacted[p.Topic] {
				due = nil // keys knows what is
			}
			for o, r := range due {
				if shown[o] || r.Control && !who.Final || o < c.start[p] {
					continue
				}
				if who.Final || len(reads) > 0 && o > reads[0].Offset && o < last {
					c.add(Skipped, p, o, "%s was not shown %v", who.Name, r.Record)
				}
			}
		}
	}
}

// transactions notes of which ones something is visible.
func (c *check) transactions() {
	c.shown = map[string]*Read{}
	for p := range c.visible {
		for _, o := range sorted(c.visible[p]) {
			if r := c.visible[p][o]; r.Txn != "" && c.shown[r.Txn] == nil {
				c.shown[r.Txn] = r
			}
		}
	}
}

// acknowledged looks for what was acknowledged, and for transactions that came apart.
func (c *check) acknowledged() {
	acked := map[place]*Produce{}
	for i := range c.h.Produces {
		w := &c.h.Produces[i]
		if w.Outcome != Done {
			continue
		}
		k := place{w.Partition, w.Offset}
		if other := acked[k]; other != nil {
			c.add(Divergent, w.Partition, w.Offset, "acknowledged for %v and for %v", other.Record, w.Record)
		}
		acked[k] = w
		there := c.there[w.Partition][w.Offset]
		switch {
		case there != nil && there.Record != w.Record:
			c.add(Lost, w.Partition, w.Offset, "%v was acknowledged, and %v is there", w.Record, there.Record)
			continue
		case c.compacted[w.Topic]:
			continue // keys knows whether it is to be there
		case w.Offset < c.start[w.Partition]:
			continue
		case there == nil:
			c.add(Lost, w.Partition, w.Offset, "%v is not there", w.Record)
			continue
		case c.visible[w.Partition][w.Offset] != nil:
			continue
		case w.Txn == "":
			c.add(Lost, w.Partition, w.Offset, "%v is there, and is not visible at read_committed", w.Record)
			continue
		}
		if t := c.h.Txns[w.Txn]; t != nil && t.Outcome == Done {
			c.add(Torn, w.Partition, w.Offset, "%v was committed, and is not visible", w.Record)
		} else if r := c.shown[w.Txn]; r != nil {
			c.add(Torn, w.Partition, w.Offset, "%v is not visible, and %v at %s-%d, offset %d, is", w.Record, r.Record, r.Topic, r.Index, r.Offset)
		}
	}
}

// keys looks at whether the readers of compacted topics were shown each key's newest record, or a later one than was
// acknowledged. Whoever reads when all is over finds no key that was deleted; who reads along may have come by when its
// tombstone was gone.
func (c *check) keys() {
	type key struct {
		p   Partition
		key string
	}
	newest := map[key]*Produce{}
	deleted := map[key]int64{} // where a tombstone is or may be, the last one
	for i := range c.h.Produces {
		w := &c.h.Produces[i]
		if !c.compacted[w.Topic] {
			continue
		}
		k, happened := key{w.Partition, w.Key}, w.Outcome
		if t := c.h.Txns[w.Txn]; t != nil && t.Outcome != Done && c.shown[w.Txn] == nil {
			if happened = t.Outcome; t.Asked == 0 {
				happened = Not
			}
		}
		if n := newest[k]; happened == Done && (n == nil || n.Offset < w.Offset) {
			newest[k] = w
		}
		if w.Tombstone && happened != Not {
			o := w.Offset
			if o < 0 {
				o = math.MaxInt64
			}
			deleted[k] = max(deleted[k], o)
		}
	}
	mayGo := func(k key) bool {
		o, ok := deleted[k]
		return ok && o >= newest[k].Offset
	}
	last := func(reader int) (of map[key]*Read, ends map[Partition]int64) {
		of, ends = map[key]*Read{}, map[Partition]int64{}
		for p, reads := range c.seen[reader] {
			for _, r := range reads {
				ends[p] = max(ends[p], r.Offset)
				if t := c.h.Txns[r.Txn]; t != nil && t.Outcome == Not {
					continue
				}
				if k := (key{p, r.Key}); of[k] == nil || of[k].Offset < r.Offset {
					of[k] = r
				}
			}
		}
		return of, ends
	}
	there, _ := last(c.committed)
	for i, who := range c.h.Readers {
		if !who.Steady && !who.Final {
			continue
		}
		shown, ends := last(i)
		for k, w := range newest {
			got := shown[k]
			switch {
			case got != nil && got.Offset >= w.Offset || got == nil && mayGo(k):
			case !who.Final && (mayGo(k) || there[k] == nil || ends[k.p] < there[k].Offset):
			case got == nil:
				c.add(Lost, k.p, w.Offset, "%s was shown nothing of key %s, and %v was acknowledged", who.Name, k.key, w.Record)
			default:
				c.add(Outdated, k.p, got.Offset, "%s was shown %v last of key %s, and %v was acknowledged at %d", who.Name, got.Record, k.key, w.Record, w.Offset)
			}
		}
	}
}

// producers looks for what came twice or out of order.
func (c *check) producers() {
	for p, offsets := range c.there {
		sent := map[Record]int64{}
		for _, o := range sorted(offsets) {
			r := offsets[o]
			if r.Control {
				continue
			}
			if before, ok := sent[r.Record]; ok {
				c.add(Twice, p, o, "%v is at %d already", r.Record, before)
			}
			sent[r.Record] = o
		}
	}
	for p, offsets := range c.visible {
		type entry struct{ offset, number int64 }
		came, last := map[string]map[int64]int64{}, map[string]entry{}
		for _, o := range sorted(offsets) {
			r := offsets[o]
			if came[r.Producer] == nil {
				came[r.Producer] = map[int64]int64{}
				last[r.Producer] = entry{number: -1}
			}
			l := last[r.Producer]
			if before, ok := came[r.Producer][r.Number]; ok {
				if c.there[p][before] == nil || c.there[p][before].Record != r.Record { // else it is said above
					c.add(Twice, p, o, "%v is visible, and so is %v at %d", r.Record, offsets[before].Record, before)
				}
			} else if r.Number < l.number {
				c.add(Disordered, p, o, "%v comes behind number %d at %d", r.Record, l.number, l.offset)
			}
			came[r.Producer][r.Number] = o
			if r.Number > l.number {
				last[r.Producer] = entry{o, r.Number}
			}
		}
	}
}

// offsets looks at whether a group was told less than it had been acknowledged before it asked.
func (c *check) offsets() {
	type key struct {
		group string
		p     Partition
	}
	commits := map[key][]Commit{}
	for _, w := range c.h.Commits {
		k := key{w.Group, w.Partition}
		commits[k] = append(commits[k], w)
	}
	for _, list := range commits {
		slices.SortStableFunc(list, func(a, b Commit) int { return cmp.Compare(a.At, b.At) })
		for i := 1; i < len(list); i++ {
			list[i].Offset = max(list[i].Offset, list[i-1].Offset)
		}
	}
	for _, r := range c.h.Offsets {
		list := commits[key{r.Group, r.Partition}]
		n, _ := slices.BinarySearchFunc(list, r.Began, func(w Commit, began int64) int { return cmp.Compare(w.At, began) })
		if n > 0 && r.Offset < list[n-1].Offset {
			c.add(OffsetBack, r.Partition, r.Offset, "group %s was told this, and %d had been acknowledged before", r.Group, list[n-1].Offset)
		}
	}
}

// derived looks at whether everything that was read was processed. That it was processed once is known from producers.
func (c *check) derived() {
	for _, d := range c.h.Derived {
		for p, offsets := range c.visible {
			if p.Topic != d.In {
				continue
			}
			out := Partition{d.Out, p.Index}
			came := map[int64]bool{}
			for _, r := range c.visible[out] {
				if r.Producer == d.Producer {
					came[r.Number] = true
				}
			}
			for o, r := range offsets {
				if !came[o] {
					c.add(Unprocessed, p, o, "%v is not in %s", r.Record, d.Out)
				}
			}
		}
	}
}

func sorted(m map[int64]*Read) []int64 {
	list := make([]int64, 0, len(m))
	for o := range m {
		list = append(list, o)
	}
	slices.Sort(list)
	return list
}
