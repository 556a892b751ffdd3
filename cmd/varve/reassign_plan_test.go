package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func replicasOf(list []placed) (out [][]int32) {
	for _, p := range list {
		out = append(out, p.Replicas)
	}
	return out
}

func placedAs(lists ...[]int32) (out []placed) {
	for i, l := range lists {
		out = append(out, placed{"t", int32(i), l})
	}
	return out
}

func TestPlan(t *testing.T) {
	flat := func(ids ...int32) map[int32]string {
		m := map[int32]string{}
		for _, id := range ids {
			m[id] = ""
		}
		return m
	}
	racks := map[int32]string{1: "a", 2: "a", 3: "b", 4: "b"}
	for _, c := range []struct {
		name  string
		now   [][]int32
		racks map[int32]string
		rf    int
		want  string
	}{
		{"what is even stays", [][]int32{{1, 2}, {2, 3}, {3, 1}}, flat(1, 2, 3), 0, "[[1 2] [2 3] [3 1]]"},
		{"a new broker takes its share", [][]int32{{1, 2}, {2, 1}, {1, 2}}, flat(1, 2, 3), 0, "[[3 1] [2 3] [1 2]]"},
		{"grown", [][]int32{{1}, {2}, {3}}, flat(1, 2, 3), 2, "[[3 2] [2 1] [1 3]]"},
		{"shrunk", [][]int32{{1, 2, 3}, {2, 3, 1}}, flat(1, 2, 3), 1, "[[1] [2]]"},
		{"off a broker that is not named", [][]int32{{3, 1}}, flat(1, 2), 0, "[[1 2]]"},
		{"one replica in each rack", [][]int32{{1}, {2}, {3}, {4}}, racks, 2, "[[1 3] [2 4] [3 1] [4 2]]"},
		{"not more even at the price of a rack", [][]int32{{1, 3}, {1, 3}, {1, 3}}, map[int32]string{1: "a", 3: "b", 4: "b"}, 0, "[[4 1] [3 1] [1 3]]"},
	} {
		now := placedAs(c.now...)
		got, err := planSpread(now, now, c.racks, c.rf)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if s := fmt.Sprint(replicasOf(got)); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
	if _, err := planSpread(placedAs([]int32{1}), nil, flat(1, 2), 3); err == nil {
		t.Error("three replicas on two brokers")
	}
	// What a drain moves goes where its rack is not yet; what cannot go keeps its place
	// and counts for nobody.
	now := placedAs([]int32{1, 3}, []int32{1, 2, 3}, []int32{1})
	next, stay := planDrain([]replaced{{now[0], []int32{3}}, {now[1], []int32{2, 3}}, {now[2], nil}}, now, map[int32]string{2: "a", 3: "b"})
	if fmt.Sprint(replicasOf(next), replicasOf(stay)) != "[[2 3] [3]] [[1 2 3]]" {
		t.Error(next, stay)
	}
	now = placedAs([]int32{1, 2}, []int32{2, 3}, []int32{3, 1}, []int32{1, 3})
	got, err := planEvacuation(now, now, flat(2, 3), 1)
	if s := fmt.Sprint(replicasOf(got)); err != nil || s != "[[2 3] [3 2] [3 2]]" {
		t.Errorf("evacuated: %s %v", s, err)
	}
	if _, err := planEvacuation(placedAs([]int32{1, 2}), nil, flat(2), 1); err == nil {
		t.Error("two replicas on one broker")
	}
}

// Whatever the beginning, a plan is even, keeps racks apart where that can be,
// names each broker once, and is left alone by the next plan.
func TestPlansAreEven(t *testing.T) {
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		n := 2 + rnd.IntN(6)
		racks := map[int32]string{}
		for id := range n {
			racks[int32(id)] = ""
		}
		var now []placed
		for i := range 1 + rnd.IntN(30) {
			p := placed{"t", int32(i), nil}
			for _, id := range rnd.Perm(n + 2)[:1+rnd.IntN(min(n, 3))] {
				p.Replicas = append(p.Replicas, int32(id))
			}
			now = append(now, p)
		}
		rf := 1 + rnd.IntN(min(n, 4))
		got, err := planSpread(now, now, racks, rf)
		if err != nil {
			t.Fatal(seed, err)
		}
		count, led := map[int32]int{}, map[int32]int{}
		for _, p := range got {
			led[p.Replicas[0]]++
			for i, id := range p.Replicas {
				if _, ok := racks[id]; !ok || slices.Contains(p.Replicas[:i], id) {
					t.Fatalf("seed %d: %v", seed, p)
				}
				count[id]++
			}
			if len(p.Replicas) != rf {
				t.Fatalf("seed %d: %v of %d", seed, p, rf)
			}
		}
		least, most := len(now)+1, 0
		for id := range racks {
			least, most = min(least, count[id]), max(most, count[id])
		}
		if most-least > 1 {
			t.Fatalf("seed %d: from %d to %d replicas: %v", seed, least, most, got)
		}
		again, err := planSpread(got, got, racks, 0)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
			t.Fatalf("seed %d: planned again: %v\nbefore: %v (%v)", seed, again, got, err)
		}
	}
}
