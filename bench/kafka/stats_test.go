package main

import (
	"slices"
	"testing"
)

func TestSteady(t *testing.T) {
	for _, c := range []struct {
		name   string
		blocks int
		floors [][]float64
		ok     []bool
	}{
		{"all alike", 3, [][]float64{{100, 105, 95, 100}}, []bool{true, true, true}},
		{"one floor fell: the blocks on both sides of it do not count", 3, [][]float64{{100, 60, 100, 100}}, []bool{false, false, true}},
		{"the last floor fell", 3, [][]float64{{100, 100, 100, 60}}, []bool{true, true, false}},
		{"it rose", 3, [][]float64{{100, 100, 100, 130}}, []bool{true, true, false}},
		{"exactly at the limit", 1, [][]float64{{100, 80}}, []bool{true}},
		{"two floors, beyond", 1, [][]float64{{100, 79}}, []bool{false}},
		{"a second case of the row moved", 2, [][]float64{{100, 100, 100}, {100, 100, 50}}, []bool{true, false}},
		{"no floor at all", 2, nil, []bool{true, true}},
		{"one floor only, because the run was ended", 1, [][]float64{{100}}, []bool{true}},
		{"a floor of nothing", 1, [][]float64{{0, 0}}, []bool{true}},
	} {
		ok, worst := steady(c.blocks, c.floors)
		if !slices.Equal(ok, c.ok) {
			t.Errorf("%s: %v (moved by %v), want %v", c.name, ok, worst, c.ok)
		}
	}
}

func TestMedian(t *testing.T) {
	in := []float64{3, 1, 2}
	if got := median(in); got != 2 {
		t.Errorf("median of three: %v", got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median of four: %v", got)
	}
	if !slices.Equal(in, []float64{3, 1, 2}) {
		t.Errorf("the argument was sorted in place: %v", in)
	}
	if got := median(nil); got == got {
		t.Errorf("median of nothing: %v, want NaN", got)
	}
}

func TestRatioOf(t *testing.T) {
	r, ok := ratioOf([]float64{100, 200, 100}, []float64{150, 200, 250})
	if !ok || r.Value != 2 || r.Low != 1 || r.High != 2.5 || r.Pairs != 3 {
		t.Errorf("%+v %v", r, ok)
	}
	// Fewer on one side: pairs as far as they go, medians of all.
	r, ok = ratioOf([]float64{100, 100}, []float64{150})
	if !ok || r.Value != 1.5 || r.Pairs != 1 {
		t.Errorf("%+v %v", r, ok)
	}
	for _, c := range [][2][]float64{{nil, {1}}, {{1}, nil}, {{0}, {1}}} {
		if r, ok := ratioOf(c[0], c[1]); ok {
			t.Errorf("ratio of %v: %+v", c, r)
		}
	}
}

func TestOrderIsAPalindrome(t *testing.T) {
	for block := range 2 {
		ps := order(2, block, true)
		if len(ps) != 8 {
			t.Fatalf("%d sides, want 8", len(ps))
		}
		count := map[place]int{}
		for i, p := range ps {
			q := ps[len(ps)-1-i]
			if p.Case != q.Case || p.Broker != q.Broker {
				t.Errorf("block %d: side %d is %+v, its mirror %+v", block, i, p, q)
			}
			count[p]++
		}
		for p, n := range count {
			if n != 1 {
				t.Errorf("block %d: %+v is measured %d times", block, p, n)
			}
		}
	}
	if a, b := order(1, 0, true)[0].Broker, order(1, 1, true)[0].Broker; a == b {
		t.Errorf("both blocks begin with %s", a)
	}
	if n := len(order(3, 0, false)); n != 6 {
		t.Errorf("one way: %d sides, want 6", n)
	}
}
