package image

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
)

// The table against a map, over random edits: contents, order, and that no
// earlier version changes.
func TestTableModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 20 {
		tab := newTable[int, *int](cmp.Compare[int])
		model := map[int]*int{}
		type version struct {
			tab   table[int, *int]
			model map[int]*int
		}
		var versions []version
		space := 1 + rnd.IntN(2000)
		for step := range 3000 {
			k := rnd.IntN(space)
			if rnd.IntN(10) < 6 {
				v := new(int)
				tab, model[k] = tab.with(k, v), v
			} else {
				tab = tab.without(k)
				delete(model, k)
			}
			if step%500 == 0 {
				m := map[int]*int{}
				for k, v := range model {
					m[k] = v
				}
				versions = append(versions, version{tab, m})
			}
		}
		versions = append(versions, version{tab, model})
		for i, v := range versions {
			checkTable(t, v.tab, v.model)
			for _, w := range versions[i:] {
				checkDiff(t, v.tab, w.tab, v.model, w.model)
			}
		}
	}
}

func checkTable(t *testing.T, tab table[int, *int], model map[int]*int) {
	t.Helper()
	if tab.len() != len(model) {
		t.Fatalf("%d entries, want %d", tab.len(), len(model))
	}
	last := -1
	tab.each(func(k int, v *int) bool {
		if k <= last || model[k] != v {
			t.Fatalf("key %d after %d", k, last)
		}
		last = k
		if got, ok := tab.get(k); !ok || got != v {
			t.Fatalf("get %d", k)
		}
		return true
	})
	for _, c := range tab.chunks {
		if len(c.keys) == 0 || len(c.keys) > chunkMax || len(c.keys) != len(c.vals) {
			t.Fatalf("chunk of %d keys", len(c.keys))
		}
	}
	if _, ok := tab.get(-7); ok {
		t.Fatal("found what is not there")
	}
}

func checkDiff(t *testing.T, a, b table[int, *int], ma, mb map[int]*int) {
	t.Helper()
	want := map[int][2]*int{}
	for k, v := range ma {
		if mb[k] != v {
			want[k] = [2]*int{v, mb[k]}
		}
	}
	for k, v := range mb {
		if ma[k] != v {
			want[k] = [2]*int{ma[k], v}
		}
	}
	last := -1
	diffTables(a, b, func(k int, x, y *int) {
		if w, ok := want[k]; !ok || k <= last || w != [2]*int{x, y} {
			t.Fatalf("diff of key %d", k)
		}
		last = k
		delete(want, k)
	})
	if len(want) > 0 {
		t.Fatalf("diff misses %d keys", len(want))
	}
}

func id(n int) (id [16]byte) { copy(id[:], fmt.Sprintf("%016d", n)); return id }

func wide(n int) *Image {
	d := Delta{Revision: 1}
	for i := range n {
		d.Changes = append(d.Changes, SetPartition{PartitionRef{id(0), int32(i)}, Partition{Leader: 1, Replicas: []int32{1}, ISR: []int32{1}}})
	}
	d.Changes = append(d.Changes, SetTopic{ID: id(0), Name: "wide", Partitions: int32(n)})
	for i := 1; i <= n; i++ {
		d.Changes = append(d.Changes,
			SetPartition{PartitionRef{id(i), 0}, Partition{Leader: 1, Replicas: []int32{1}, ISR: []int32{1}}},
			SetTopic{ID: id(i), Name: fmt.Sprintf("t-%06d", i), Partitions: 1})
	}
	return Empty().Apply(d)
}

// A change of one partition among 20,000 copies neither the partitions nor the
// topics.
func TestSharing(t *testing.T) {
	im := wide(10_000)
	next := im.Apply(Delta{Revision: 2, Changes: []Change{
		SetPartition{PartitionRef{id(0), 77}, Partition{Leader: 2, LeaderEpoch: 1}}}})
	if im.Topic("wide").Partitions[77].Leader != 1 || next.Topic("wide").Partitions[77].Leader != 2 {
		t.Fatal("not a copy")
	}
	if next.Topic("wide").Partitions[78] != im.Topic("wide").Partitions[78] || next.Topic("t-000005") != im.Topic("t-000005") {
		t.Fatal("not shared")
	}
	if next.Topic("wide") != next.TopicByID(id(0)) {
		t.Fatal("two truths about a topic")
	}
	const rounds = 500
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range rounds {
		im.Apply(Delta{Revision: 2, Changes: []Change{
			SetPartition{PartitionRef{id(1 + i), 0}, Partition{Leader: 2, LeaderEpoch: 1}}}})
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / rounds; per > 32<<10 {
		t.Fatalf("%d bytes per change", per)
	} else {
		t.Logf("a partition of a narrow topic among 20,000: %d bytes", per)
	}
	c := Diff(im, next)
	if len(c.Topics) != 1 || !slices.Equal(c.Topics[0].Partitions, []int32{77}) || c.Topics[0].Config {
		t.Fatalf("%+v", c)
	}
}

// A topic exists from its own entry on; partitions before that are loose, and
// so are those beyond its count.
func TestCommitPoint(t *testing.T) {
	im := Empty()
	set := func(rev int64, c ...Change) { im = im.Apply(Delta{Revision: rev, Changes: c}) }
	part := func(i int32) Change { return SetPartition{PartitionRef{id(1), i}, Partition{Leader: i}} }
	set(1, part(0), part(1))
	if im.Topic("a") != nil || im.NumPartitions() != 0 || len(im.Loose(10)) != 2 {
		t.Fatalf("%+v", im.Loose(10))
	}
	set(2, SetTopic{ID: id(1), Name: "a", Partitions: 2})
	if got := im.Topic("a"); len(got.Partitions) != 2 || got.Revision != 2 || got.Partitions[1].Revision != 1 || im.Loose(10) != nil {
		t.Fatalf("%+v", got)
	}
	set(3, part(2))
	if len(im.Topic("a").Partitions) != 2 || len(im.Loose(10)) != 1 || im.Partition(id(1), 2) != nil || im.StoredPartition(id(1), 2) == nil {
		t.Fatal("partition beyond the count shows")
	}
	set(4, SetTopic{ID: id(1), Name: "a", Partitions: 3, Config: map[string]string{"x": "y"}})
	if im.NumPartitions() != 3 || im.Partition(id(1), 2).Leader != 2 || im.Config(TopicResource, "a")["x"] != "y" {
		t.Fatal("growth")
	}
	// Deleted and created anew under the same name in one revision, whatever
	// the order in which the events come.
	for _, order := range [][]Change{
		{DropTopic{id(1)}, SetPartition{PartitionRef{id(2), 0}, Partition{}}, SetTopic{ID: id(2), Name: "a", Partitions: 1}},
		{SetPartition{PartitionRef{id(2), 0}, Partition{}}, SetTopic{ID: id(2), Name: "a", Partitions: 1}, DropPartition{PartitionRef{id(1), 1}}, DropTopic{id(1)}},
	} {
		next := im.Apply(Delta{Revision: 5, Changes: order})
		if got := next.Topic("a"); got == nil || got.ID != id(2) || next.NumTopics() != 1 || next.NumPartitions() != 1 || next.TopicByID(id(1)) != nil || next.Loose(10) != nil {
			t.Fatalf("%+v", next)
		}
	}
	// A damaged store that lacks a partition does not make a nil.
	broken := im.Apply(Delta{Revision: 5, Changes: []Change{DropPartition{PartitionRef{id(1), 1}}}})
	if p := broken.Topic("a").Partitions[1]; p == nil || p.Leader != NoLeader {
		t.Fatalf("%+v", p)
	}
}

// Random changes, applied one by one, in pieces, and all at once as a load
// does, give the same image.
func TestApplyModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	random := func() Change {
		n := rnd.IntN(12)
		switch rnd.IntN(12) {
		case 0, 1, 2:
			return SetTopic{ID: id(n), Name: fmt.Sprintf("topic-%d", n), Partitions: int32(rnd.IntN(5))}
		case 3:
			return DropTopic{id(n)}
		case 4, 5, 6, 7:
			return SetPartition{PartitionRef{id(n), int32(rnd.IntN(6))}, Partition{Leader: int32(rnd.IntN(3))}}
		case 8:
			return DropPartition{PartitionRef{id(n), int32(rnd.IntN(6))}}
		case 9:
			return SetConfig{ConfigKey{BrokerResource, fmt.Sprint(n)}, map[string]string{"a": fmt.Sprint(rnd.IntN(9))}}
		case 10:
			return SetBroker{Broker{ID: int32(n), Epoch: int64(rnd.IntN(100)), Fenced: rnd.IntN(2) == 0}}
		default:
			return DropConfig{ConfigKey{BrokerResource, fmt.Sprint(n)}}
		}
	}
	for range 200 {
		one, pieces := Empty(), Empty()
		var all Delta
		for rev := int64(1); rev <= 20; rev++ {
			var changes []Change
			for range 1 + rnd.IntN(6) {
				changes = append(changes, random())
			}
			before := dump(one)
			old := one
			for _, c := range changes {
				one = one.Apply(Delta{Revision: rev, Changes: []Change{c}})
				all.Changes = append(all.Changes, At{rev, c})
			}
			if dump(old) != before {
				t.Fatal("an image changed after it was made")
			}
			pieces = pieces.Apply(Delta{Revision: rev, Changes: changes})
			all.Revision = rev
		}
		load := Empty().Apply(all)
		if a, b, c := dump(one), dump(pieces), dump(load); a != b || a != c {
			t.Fatalf("one by one:\n%s\nin pieces:\n%s\nat once:\n%s", a, b, c)
		}
		if c := Diff(one, load); !reflect.DeepEqual(c, Changes{}) {
			t.Fatalf("the same read anew differs: %+v", c)
		}
		count := 0
		for topic := range one.AllTopics() {
			count += len(topic.Partitions)
			if one.TopicByID(topic.ID) != topic {
				t.Fatal("by id and by name differ")
			}
		}
		if count != one.NumPartitions() {
			t.Fatalf("%d partitions, counted %d", one.NumPartitions(), count)
		}
	}
}

func dump(im *Image) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "rev %d partitions %d loose %v\n", im.Revision, im.NumPartitions(), im.Loose(1000))
	for t := range im.AllTopics() {
		fmt.Fprintf(&b, "%s %d rev=%d", t.Name, len(t.Partitions), t.Revision)
		for _, p := range t.Partitions {
			fmt.Fprintf(&b, " %d@%d", p.Leader, p.Revision)
		}
		fmt.Fprintln(&b)
	}
	for _, x := range im.Brokers() {
		fmt.Fprintf(&b, "%+v\n", *x)
	}
	for _, x := range im.Configs(BrokerResource) {
		fmt.Fprintf(&b, "%+v\n", *x)
	}
	return b.String()
}
