package group

import (
	"fmt"
	"slices"
	"testing"
)

// However few are asked for, they are the first in order: of all groups, topics and partitions.
func TestCommitted(t *testing.T) {
	s := NewShard(Config{})
	var all []Committed
	for g := range 60 {
		for topic := range g % 3 { // some groups have none
			for p := range int32(2) {
				c := Committed{fmt.Sprint("g", g), fmt.Sprint("t", topic), p, int64(g)}
				if err := s.Apply(offsetRecord(c.Group, c.Topic, c.Partition, Offset{Offset: c.Offset})); err != nil {
					t.Fatal(err)
				}
				all = append(all, c)
			}
		}
	}
	slices.SortFunc(all, Committed.Compare)
	if s.Offsets() != len(all) {
		t.Errorf("%d offsets, want %d", s.Offsets(), len(all))
	}
	for n := range len(all) + 10 {
		if got := s.Committed(n, 249); !slices.Equal(got, all[:min(n, len(all))]) {
			t.Fatalf("the first %d are %v", n, got)
		}
	}
	short := slices.DeleteFunc(slices.Clone(all), func(c Committed) bool { return len(c.Group) > 2 })
	if got := s.Committed(1000, 2); !slices.Equal(got, short) {
		t.Errorf("of names of 2 bytes: %v", got)
	}
}
