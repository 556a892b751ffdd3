package main

import "time"

// What the parts of a run take, by experience.
const (
	sideOverhead  = 2750 * time.Millisecond // a topic made and deleted, the disk come to rest; and a tenth of the side, for what was written
	floorOverhead = 1500 * time.Millisecond
	setupOverhead = 10 * time.Second // both brokers started
)

// dear are the measurements and setups that take longer than a side.
var dear = map[string]time.Duration{
	"W8-idle": 50 * time.Second, "W8-start": 45 * time.Second, "W11": 80 * time.Second, "W11-more": 80 * time.Second, "W14": 120 * time.Second, "W14-churn": 60 * time.Second,
	"W18": 110 * time.Second, "W18-10k": 6 * time.Minute, "W8-4k": 2 * time.Minute, "W8-20k": 4 * time.Minute,
	"groups-rebalance": 4 * time.Minute,
	"tiered":           90 * time.Second, "4k": 25 * time.Second, "10k": 60 * time.Second, "20k": 3 * time.Minute, "1k": 5 * time.Second,
	"W16": 4 * time.Minute, "W17": 2 * time.Minute, "W17-size": 4 * time.Minute, "rf3": 15 * time.Second, "grow": 15 * time.Second,
}

// planned is about how long the workloads take.
func (r *runner) planned(ws []workload) time.Duration {
	var sum time.Duration
	seen := map[string]bool{}
	for name := range r.running {
		seen[name] = true
	}
	for _, w := range ws {
		sum += r.plannedOf(w)
		for _, s := range w.setups() {
			if !seen[s] {
				seen[s] = true
				sum += r.scaled(dear[s])
				if s != "fresh" && s != "crash" {
					sum += setupOverhead + r.warmup + r.warmup/4
				}
			}
		}
	}
	return sum
}

func (r *runner) plannedOf(w workload) time.Duration {
	if d, ok := dear[w.Key]; ok {
		return r.scaled(d)
	}
	sides, floors := 0, 0
	var ramps time.Duration
	for _, p := range order(len(w.Cases), 0, w.back(r.quick)) {
		if c := w.Cases[p.Case]; c.Only == "" || c.Only == p.Broker {
			sides++
			ramps += r.ramp(c.Partitions)
		}
	}
	for _, c := range w.Cases {
		if c.Floor {
			floors++
		}
	}
	n := w.blocks(r.quick)
	return time.Duration(n)*(time.Duration(sides)*(r.seconds(w)*11/10+sideOverhead)+ramps) + time.Duration((n+1)*floors)*(r.floor+r.ramp(0)+floorOverhead)
}

// scaled is what the quick form makes of it: smaller sizes.
func (r *runner) scaled(d time.Duration) time.Duration {
	if r.quick {
		return d / 3
	}
	return d
}
