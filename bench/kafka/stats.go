package main

import (
	"math"
	"slices"
)

// tolerance is how far a floor may lie from the others of its row.
const tolerance = 0.20

// floors are measured before each block and after the last one, so block i lies
// between floors i and i+1. reference is what a floor is held against: the
// median of all of them; of two, the better one, because their mean would
// excuse them both.
func reference(floors []float64) float64 {
	if len(floors) < 3 {
		return slices.Max(floors)
	}
	return median(floors)
}

// moved is how far the floors around block i lie from the reference, as a share
// of it: the farther one counts.
func moved(floors []float64, i int) float64 {
	ref := reference(floors)
	if ref <= 0 {
		return 0
	}
	far := 0.0
	for _, f := range floors[i:min(i+2, len(floors))] {
		far = max(far, math.Abs(f/ref-1))
	}
	return far
}

// steady tells for each block whether it counts. rows are the floors of each
// case that has one; a block whose floor moved in any of them does not count.
func steady(blocks int, rows [][]float64) (ok []bool, worst []float64) {
	ok, worst = make([]bool, blocks), make([]float64, blocks)
	for i := range blocks {
		for _, floors := range rows {
			if len(floors) > i {
				worst[i] = max(worst[i], moved(floors, i))
			}
		}
		ok[i] = worst[i] <= tolerance
	}
	return ok, worst
}

func median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(vs))
	if n := len(s); n%2 == 1 {
		return s[n/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// ratio is the ratio of two medians, with the least and the greatest ratio of
// the pairs that stood next to each other in time.
type ratio struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	Pairs int     `json:"pairs"`
}

// ratioOf compares b with a; the i-th of both were measured side by side.
func ratioOf(a, b []float64) (ratio, bool) {
	r := ratio{Low: math.Inf(1), High: math.Inf(-1)}
	ma := median(a)
	if len(a) == 0 || len(b) == 0 || ma == 0 {
		return r, false
	}
	r.Value = median(b) / ma
	for i := range min(len(a), len(b)) {
		if a[i] == 0 {
			continue
		}
		r.Low, r.High = min(r.Low, b[i]/a[i]), max(r.High, b[i]/a[i])
		r.Pairs++
	}
	if r.Pairs == 0 {
		return r, false
	}
	return r, true
}

// order is the sides of a block: every case on both brokers, and then all of
// it backwards, so that what drifts in the meantime weighs on all of them
// alike. Every other block begins with the other broker.
func order(cases, block int, back bool) []place {
	first, second := kafka, varve
	if block%2 == 1 {
		first, second = varve, kafka
	}
	var out []place
	for c := range cases {
		out = append(out, place{c, first, 0}, place{c, second, 0})
	}
	if !back {
		return out
	}
	for i := len(out) - 1; i >= 0; i-- {
		out = append(out, place{out[i].Case, out[i].Broker, 1})
	}
	return out
}

// place is one side's place in a block.
type place struct {
	Case   int
	Broker string
	Half   int // 0 on the way there, 1 on the way back
}
