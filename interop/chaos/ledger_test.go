package main

import (
	"slices"
	"testing"
	"time"

	"github.com/varve/varve/interop/chaos/history"
)

// What passes without acknowledgements is told with when it was and what lasted then, and how long a partition took after the
// last fault is counted from there.
func TestGaps(t *testing.T) {
	began := time.Now()
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	l := newLedger()
	a, b := history.Partition{Topic: "t", Index: 0}, history.Partition{Topic: "t", Index: 1}
	for _, p := range []history.Partition{a, b} {
		l.expect(p)
	}
	if l.silent() == nil {
		t.Error("nothing was acknowledged, and nobody says so")
	}
	add := func(p history.Partition, times ...float64) {
		for _, s := range times {
			l.acks[p].add(at(s), l.healed)
		}
	}
	add(a, 50, 51, 62.5, 63, 90) // the first 50 s are no gap
	add(b, 1, 2, 11)
	l.lasted("kill [broker-1]", at(40), at(49))
	l.lasted("cut [broker-2]", at(45), at(52))
	l.lasted("pause [broker-3]", at(62), at(70))
	if err := l.silent(); err != nil {
		t.Error(err)
	}
	if list, want := l.longest(), " t-0 27.0s t-1 9.0s"; list != want {
		t.Errorf("longest: %q, want %q", list, want)
	}
	want := []string{
		"t-0 was without an acknowledgement for 11.5s, 51.0s to 62.5s: cut [broker-2] (45.0s to 52.0s) pause [broker-3] (62.0s to 70.0s)",
		"t-0 was without an acknowledgement for 27.0s, 63.0s to 90.0s: pause [broker-3] (62.0s to 70.0s)",
	}
	if got, worst := l.gaps(began); !slices.Equal(got, want) || worst != 20*time.Second {
		t.Errorf("gaps: %q; by %v", got, worst)
	}

	l.healed = at(95)
	add(a, 95) // not after
	add(b, 96, 99)
	if l.silent() == nil {
		t.Error("t-0 was not acknowledged since all is healed, and nobody says so")
	}
	add(a, 103, 104)
	if err := l.silent(); err != nil {
		t.Error(err)
	}
	if worst, took := l.recovered("t"); worst != a || took != 8*time.Second {
		t.Errorf("recovered: %v after %v", worst, took)
	}
	if n := l.counts("t"); n[a] != 8 || n[b] != 5 {
		t.Errorf("acknowledged: %v", n)
	}
}
