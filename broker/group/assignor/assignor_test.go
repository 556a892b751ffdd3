package assignor

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func id(n byte) (t [16]byte) { t[15] = n; return t }

// parse reads a group: topics "1:6" (id:partitions, and racks of each partition "1:2:a+b/c") and members
// "A[#instance][@rack]=1,2 [has 1:0-2,5]". The result is in the same notation.
func parse(t testing.TB, topics string, members ...string) (ts []Topic, ms []Member) {
	var n byte
	var k int32
	for f := range strings.FieldsSeq(topics) {
		parts := strings.Split(f, ":")
		if _, err := fmt.Sscan(parts[0]+" "+parts[1], &n, &k); err != nil {
			t.Fatal(err)
		}
		topic := Topic{ID: id(n), Partitions: k}
		if len(parts) > 2 {
			for r := range strings.SplitSeq(parts[2], "/") {
				topic.Racks = append(topic.Racks, strings.Split(r, "+"))
			}
		}
		ts = append(ts, topic)
	}
	for _, s := range members {
		who, owned, _ := strings.Cut(s, " has ")
		name, subs, _ := strings.Cut(who, "=")
		name, rack, _ := strings.Cut(name, "@")
		name, instance, static := strings.Cut(name, "#")
		m := Member{ID: name, Rack: rack, Topics: map[[16]byte]struct{}{}, Owned: Assignment{}}
		if static {
			m.Instance = &instance
		}
		for x := range strings.SplitSeq(subs, ",") {
			if x != "" {
				fmt.Sscan(x, &n)
				m.Topics[id(n)] = struct{}{}
			}
		}
		for x := range strings.FieldsSeq(owned) {
			topic, ps, _ := strings.Cut(x, ":")
			fmt.Sscan(topic, &n)
			for p := range strings.SplitSeq(ps, ",") {
				from, to, ok := strings.Cut(p, "-")
				if !ok {
					to = from
				}
				var a, b int32
				fmt.Sscan(from+" "+to, &a, &b)
				for ; a <= b; a++ {
					m.Owned[id(n)] = append(m.Owned[id(n)], a)
				}
			}
		}
		ms = append(ms, m)
	}
	return ts, ms
}

func show(r map[string]Assignment) string {
	var b strings.Builder
	for _, m := range slices.Sorted(maps.Keys(r)) {
		b.WriteString(m)
		a := r[m]
		for _, t := range slices.SortedFunc(maps.Keys(a), func(x, y [16]byte) int { return slices.Compare(x[:], y[:]) }) {
			fmt.Fprintf(&b, " %d:%s", t[15], strings.Trim(strings.ReplaceAll(fmt.Sprint(a[t]), " ", ","), "[]"))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// The cases are worked out by hand.
func TestCases(t *testing.T) {
	for _, x := range []struct {
		name, assignor, topics string
		members                []string
		want                   string
	}{
		{"nobody", "uniform", "1:3", nil, ""},
		{"no topics", "uniform", "", []string{"A=", "B="}, "A\nB\n"},
		{"a topic that does not exist", "uniform", "1:2", []string{"A=1,9 has 9:0"}, "A 1:0,1\n"},
		{"two topics over two", "uniform", "1:3 2:2", []string{"A=1,2", "B=1,2"}, "A 1:0,2 2:1\nB 1:1 2:0\n"},
		{"more members than partitions", "uniform", "1:2", []string{"A=1", "B=1", "C=1"}, "A 1:0\nB 1:1\nC\n"},
		{"nothing to do", "uniform", "1:4", []string{"A=1 has 1:0,3", "B=1 has 1:1-2"}, "A 1:0,3\nB 1:1,2\n"},
		{"a member comes", "uniform", "1:3 2:3", []string{"A=1,2 has 1:0,2 2:0", "B=1,2 has 1:1 2:1-2", "C=1,2"}, "A 1:0,2\nB 1:1 2:1\nC 2:0,2\n"},
		{"a member goes", "uniform", "1:3 2:3", []string{"A=1,2 has 1:0 2:0", "B=1,2 has 1:1 2:1"}, "A 1:0,2 2:0\nB 1:1 2:1,2\n"},
		{"partitions are added", "uniform", "1:5", []string{"A=1 has 1:0", "B=1 has 1:1"}, "A 1:0,2,4\nB 1:1,3\n"},
		// B owns the one more that somebody has to own, although A comes first.
		{"who has more keeps it", "uniform", "1:3", []string{"A=1 has 1:0", "B=1 has 1:1-2"}, "A 1:0\nB 1:1,2\n"},
		{"two claim the same", "uniform", "1:2", []string{"A=1 has 1:0-1", "B=1 has 1:0-1"}, "A 1:0\nB 1:1\n"},
		{"partitions that are gone", "uniform", "1:2", []string{"A=1 has 1:0,7", "B=1"}, "A 1:0\nB 1:1\n"},
		{"a topic is given up", "uniform", "1:2 2:2", []string{"A=1 has 1:0 2:0-1", "B=1 has 1:1"}, "A 1:0\nB 1:1\n"},
		{"subscriptions that differ", "uniform", "1:2 2:4", []string{"A=1", "B=1,2"}, "A 1:0,1\nB 2:0,1,2,3\n"},
		// Topic 2 is B's and C's alone; the level is two for each.
		{"a chain of subscriptions", "uniform", "1:3 2:3", []string{"A=1", "B=1,2", "C=2"}, "A 1:0,2\nB 1:1 2:1\nC 2:0,2\n"},
		{"a heavy owner gives to who may have it", "uniform", "1:4 2:1", []string{"A=1,2 has 1:0-3", "B=1", "C=2"}, "A 1:2,3\nB 1:0,1\nC 2:0\n"},
		{"racks", "uniform", "1:4:x/y/x/y", []string{"A@y=1", "B@x=1"}, "A 1:1,3\nB 1:0,2\n"},
		{"racks, then balance", "uniform", "1:4:x/x/x/y", []string{"A@y=1", "B@x=1"}, "A 1:2,3\nB 1:0,1\n"},
		{"racks do not move what stays", "uniform", "1:2:x/y", []string{"A@y=1 has 1:0", "B@x=1 has 1:1"}, "A 1:0\nB 1:1\n"},
		{"who gives, gives what is far", "uniform", "1:4:x/y/x/y", []string{"A@x=1 has 1:0-3", "B@y=1"}, "A 1:0,2\nB 1:1,3\n"},
		{"racks of subscriptions that differ", "uniform", "1:2:x/y 2:1:z", []string{"A@y=1", "B@x=1,2", "C@x=1"}, "A 1:1\nB 2:0\nC 1:0\n"},

		{"range", "range", "1:3 2:3", []string{"B=1,2", "A=1,2"}, "A 1:0,1 2:0,1\nB 1:2 2:2\n"},
		{"range of subscriptions that differ", "range", "1:3 2:3 3:2", []string{"A=1,2", "B=3", "C=2,3"}, "A 1:0,1,2 2:0,1\nB 3:0\nC 2:2 3:1\n"},
		{"range of more members than partitions", "range", "1:2", []string{"A=1", "B=1", "C=1"}, "A 1:0\nB 1:1\nC\n"},
		{"range of static members", "range", "1:3 2:3", []string{"A=1,2", "Z#1=1,2", "Y#2=1,2"}, "A 1:2 2:2\nY 1:1 2:1\nZ 1:0 2:0\n"},
		// Restarted: other member ids, the same instances.
		{"range of static members again", "range", "1:3", []string{"P#2=1", "Q#1=1"}, "P 1:2\nQ 1:0,1\n"},
		{"range does not look at what was", "range", "1:2", []string{"A=1 has 1:1", "B=1 has 1:0"}, "A 1:0\nB 1:1\n"},

		// Racks (KIP-881).
		{"range by racks", "range", "1:4:x/y/x/y", []string{"A@y=1", "B@x=1"}, "A 1:1,3\nB 1:0,2\n"},
		{"range by racks, no more than a share", "range", "1:4:x/x/x/y", []string{"A@y=1", "B@x=1"}, "A 1:2,3\nB 1:0,1\n"},
		{"who is near gets the one more", "range", "1:3:y/x/y", []string{"A@x=1", "B@y=1"}, "A 1:1\nB 1:0,2\n"},
		{"range where racks tell nothing", "range", "1:4:x+y/x+y/y+x/x+y", []string{"A@y=1", "B@x=1"}, "A 1:0,1\nB 1:2,3\n"},
		{"range of members elsewhere", "range", "1:4:x/y/x/y", []string{"A@z=1", "B=1"}, "A 1:0,1\nB 1:2,3\n"},
		{"range of somebody without a rack", "range", "1:4:x/y/x/y", []string{"A=1", "B@x=1"}, "A 1:1,3\nB 1:0,2\n"},
		{"range of topics alike", "range", "1:4:x/y/x/y 2:4:x/y/y/x", []string{"A@y=1,2", "B@x=1,2"}, "A 1:1,2 2:1,2\nB 1:0,3 2:0,3\n"},
		{"range of topics alike, one without racks", "range", "1:4:x/y/x/y 2:4", []string{"A@y=1,2", "B@x=1,2"}, "A 1:1,3 2:1,3\nB 1:0,2 2:0,2\n"},
		{"range of topics of other sizes", "range", "1:2:x/y 2:3:x/x/y", []string{"A@y=1,2", "B@x=1,2"}, "A 1:1 2:2\nB 1:0 2:0,1\n"},
		{"range of topics with other readers", "range", "1:2:x/y 2:2:y/x", []string{"A@y=1,2", "B@x=1,2", "C@x=2"}, "A 1:1 2:0\nB 1:0 2:1\nC\n"},
	} {
		ts, ms := parse(t, x.topics, x.members...)
		if got := show(ByName(x.assignor)(ts, ms)); got != x.want {
			t.Errorf("%s:\n%swant\n%s", x.name, got, x.want)
		}
	}
	if ByName("sticky") != nil {
		t.Error("an assignor that is none")
	}
}

// random is a group as it may stand after some others like it.
func random(r *rand.Rand, same bool) (ts []Topic, ms []Member) {
	racks := []string{"", "a", "b", "c"}
	for range 1 + r.IntN(5) {
		t := Topic{ID: id(byte(r.IntN(200))), Partitions: int32(r.IntN(12))}
		if r.IntN(2) == 0 {
			for range t.Partitions {
				t.Racks = append(t.Racks, []string{racks[1+r.IntN(3)], racks[1+r.IntN(3)]})
			}
		}
		ts = append(ts, t)
	}
	ts = sorted(ts)
	r.Shuffle(len(ts), func(i, j int) { ts[i], ts[j] = ts[j], ts[i] })
	for n := range 1 + r.IntN(8) {
		m := Member{ID: fmt.Sprint("m", n), Rack: racks[r.IntN(4)], Topics: map[[16]byte]struct{}{}, Owned: Assignment{}}
		if r.IntN(4) == 0 {
			i := fmt.Sprint("i", r.IntN(100), "-", n)
			m.Instance = &i
		}
		for _, t := range ts {
			if same || r.IntN(2) == 0 {
				m.Topics[t.ID] = struct{}{}
			}
		}
		ms = append(ms, m)
	}
	// Somebody owned most of the partitions, whether or not it may still have them.
	for _, t := range ts {
		for p := range t.Partitions + int32(r.IntN(2)) {
			if r.IntN(5) > 0 {
				m := &ms[r.IntN(len(ms))]
				m.Owned[t.ID] = append(m.Owned[t.ID], p)
			}
		}
	}
	return ts, ms
}

func owners(r map[string]Assignment) map[spot2]string {
	o := map[spot2]string{}
	for m, a := range r {
		for t, ps := range a {
			for _, p := range ps {
				o[spot2{t, p}] = m
			}
		}
	}
	return o
}

type spot2 struct {
	topic     [16]byte
	partition int32
}

func (a Assignment) count() (n int) {
	for _, ps := range a {
		n += len(ps)
	}
	return n
}

// check is what must be true of any assignment.
func check(t *testing.T, ts []Topic, ms []Member, got map[string]Assignment) {
	t.Helper()
	if len(got) != len(ms) {
		t.Fatalf("%d members, %d assignments", len(ms), len(got))
	}
	seen := map[spot2]bool{}
	for _, m := range ms {
		for topic, ps := range got[m.ID] {
			if _, ok := m.Topics[topic]; !ok || len(ps) == 0 || !slices.IsSorted(ps) {
				t.Fatalf("%s has %v of %d, its subscription is %v", m.ID, ps, topic[15], m.Topics)
			}
			for _, p := range ps {
				if seen[spot2{topic, p}] {
					t.Fatalf("%d-%d has two owners", topic[15], p)
				}
				seen[spot2{topic, p}] = true
			}
		}
	}
	for _, topic := range ts {
		read := slices.ContainsFunc(ms, func(m Member) bool { _, ok := m.Topics[topic.ID]; return ok })
		for p := range topic.Partitions {
			if seen[spot2{topic.ID, p}] != read {
				t.Fatalf("%d-%d: assigned %v, subscribed %v", topic.ID[15], p, !read, read)
			}
			delete(seen, spot2{topic.ID, p})
		}
	}
	if len(seen) > 0 {
		t.Fatalf("partitions that do not exist: %v", seen)
	}
}

func moved(ms []Member, got map[string]Assignment) (n int) {
	now := owners(got)
	for _, m := range ms {
		for topic, ps := range m.Owned {
			if _, ok := m.Topics[topic]; !ok {
				continue
			}
			for _, p := range ps {
				if o, ok := now[spot2{topic, p}]; ok && o != m.ID {
					n++
				}
			}
		}
	}
	return n
}

func TestUniformProperties(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		same := seed%2 == 0
		ts, ms := random(r, same)
		got := Uniform(ts, ms)
		check(t, ts, ms, got)

		least, most, total := 1<<30, 0, 0
		for _, a := range got {
			n := a.count()
			least, most, total = min(least, n), max(most, n), total+n
		}
		if same {
			if most-least > 1 {
				t.Fatalf("seed %d: from %d to %d partitions", seed, least, most)
			}
			// No assignment as even keeps more: whoever has above the average must give the rest up, but as
			// many as partitions are left over may keep one more.
			must, extra := 0, total%len(ms)
			for _, m := range ms {
				has := 0
				for _, topic := range ts {
					for _, p := range m.Owned[topic.ID] {
						if p < topic.Partitions {
							has++
						}
					}
				}
				if over := has - total/len(ms); over > 0 {
					if extra > 0 {
						over, extra = over-1, extra-1
					}
					must += over
				}
			}
			if n := moved(ms, got); n != must {
				t.Fatalf("seed %d: %d partitions moved, %d had to\n%s", seed, n, must, show(got))
			}
		} else {
			for p, o := range owners(got) {
				for _, m := range ms {
					if _, ok := m.Topics[p.topic]; ok && got[m.ID].count()+1 < got[o].count() {
						t.Fatalf("seed %d: %d-%d should move from %s to %s\n%s", seed, p.topic[15], p.partition, o, m.ID, show(got))
					}
				}
			}
		}

		// The same in another order, and from the same map, is the same; and once assigned, nothing moves.
		again := show(got)
		r.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
		slices.Reverse(ts)
		if other := show(Uniform(ts, ms)); other != again {
			t.Fatalf("seed %d: in another order\n%swas\n%s", seed, other, again)
		}
		for i := range ms {
			ms[i].Owned = got[ms[i].ID]
		}
		if other := show(Uniform(ts, ms)); other != again {
			t.Fatalf("seed %d: assigned anew\n%swas\n%s", seed, other, again)
		}
	}
}

func TestRangeProperties(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 2))
		same := seed%2 == 0
		ts, ms := random(r, same)
		got := Range(ts, ms)
		check(t, ts, ms, got)
		for _, topic := range ts {
			least, most := int32(1<<30), int32(0)
			for _, m := range ms {
				if _, ok := m.Topics[topic.ID]; !ok {
					continue
				}
				ps := got[m.ID][topic.ID]
				n := int32(len(ps))
				least, most = min(least, n), max(most, n)
				racks := slices.ContainsFunc(ts, func(t Topic) bool { return t.Racks != nil && t.Partitions == topic.Partitions })
				if n > 0 && ps[n-1]-ps[0] != n-1 && !racks {
					t.Fatalf("seed %d: %v is no range", seed, ps)
				}
				if !same {
					continue
				}
				for _, other := range ts {
					if other.Partitions == topic.Partitions && !slices.Equal(got[m.ID][other.ID], ps) {
						t.Fatalf("seed %d: topics of the same size are not assigned alike", seed)
					}
				}
			}
			if topic.Racks != nil && (!same || !slices.ContainsFunc(ts, func(o Topic) bool { return o.ID != topic.ID && o.Partitions == topic.Partitions })) {
				// Of a topic by itself, nobody with a partition from elsewhere could have had one from nearby that is with
				// somebody it is far from.
				for _, m := range ms {
					for _, o := range ms {
						far := func(m Member, p int32) bool { return m.Rack == "" || !slices.Contains(topic.Racks[p], m.Rack) }
						for _, p := range got[m.ID][topic.ID] {
							for _, q := range got[o.ID][topic.ID] {
								if same && far(m, p) && far(o, q) && !far(m, q) && !far(o, p) {
									t.Fatalf("seed %d: %s has %d and %s has %d, and both would be nearer the other way", seed, m.ID, p, o.ID, q)
								}
							}
						}
					}
				}
			}
			if most > least+1 {
				t.Fatalf("seed %d: from %d to %d partitions of a topic", seed, least, most)
			}
		}
		want := show(got)
		r.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
		slices.Reverse(ts)
		if other := show(Range(ts, ms)); other != want {
			t.Fatalf("seed %d: in another order\n%swas\n%s", seed, other, want)
		}
	}
}

func BenchmarkUniform(b *testing.B) {
	for _, same := range []bool{true, false} {
		b.Run(fmt.Sprintf("200 members 1000 partitions same=%v", same), func(b *testing.B) {
			var ts []Topic
			for n := range byte(10) {
				ts = append(ts, Topic{ID: id(n), Partitions: 100})
			}
			var ms []Member
			for i := range 200 {
				m := Member{ID: fmt.Sprint(i), Topics: map[[16]byte]struct{}{}}
				for _, t := range ts {
					if same || (i+int(t.ID[15]))%7 != 0 {
						m.Topics[t.ID] = struct{}{}
					}
				}
				ms = append(ms, m)
			}
			for b.Loop() {
				Uniform(ts, ms)
			}
		})
	}
}
