package wal

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestPartTable compares the table with a map, under random changes and readers beside them.
func TestPartTable(t *testing.T) {
	var table partTable
	rnd := rand.New(rand.NewPCG(1, 2))
	want := map[PartitionID]*part{}
	const ids = 20 * partsOfPage
	stop := make(chan struct{})
	var readers sync.WaitGroup
	defer func() { close(stop); readers.Wait() }()
	for range 2 {
		readers.Go(func() {
			for id := PartitionID(0); ; id = (id + 1) % ids {
				if p := table.get(id); p != nil && p.id != id {
					t.Errorf("looked for %d, found %d", id, p.id)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	check := func(id PartitionID) {
		if got := table.get(id); got != want[id] {
			t.Fatalf("%d: %v, want %v", id, got, want[id])
		}
	}
	for step := range 100_000 {
		id := PartitionID(rnd.IntN(ids))
		if step%20_000 > 15_000 { // pages empty themselves
			delete(want, id)
			table.remove(id)
		} else if rnd.IntN(3) > 0 {
			want[id] = newPart(id)
			table.put(want[id])
		} else {
			delete(want, id)
			table.remove(id)
		}
		check(id)
		check(PartitionID(rnd.IntN(ids)))
		if table.count() != len(want) {
			t.Fatalf("step %d: %d of them, want %d", step, table.count(), len(want))
		}
	}
	pages := map[PartitionID]bool{}
	for id := range want {
		pages[id/partsOfPage] = true
		check(id)
	}
	if n := len(table.directory()); n != len(pages) {
		t.Errorf("%d pages, want %d: those of whom nobody is left are kept", n, len(pages))
	}
	check(1 << 60)
	all := table.empty()
	if len(all) != len(want) || table.count() != 0 || len(table.directory()) != 0 {
		t.Errorf("%d taken out of %d, %d left", len(all), len(want), table.count())
	}
	for _, p := range all {
		if want[p.id] != p {
			t.Errorf("taken out: %d, which was not in", p.id)
		}
	}
}
