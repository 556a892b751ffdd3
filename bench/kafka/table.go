package main

// table is what a workload measured: all of it, also what does not count.
type table struct {
	Key    string     `json:"key"`
	ID     string     `json:"workload"`
	Title  string     `json:"title"`
	Length string     `json:"length,omitempty"` // of its sides
	Setups []string   `json:"setups"`
	Cases  []caseInfo `json:"cases"`
	Sides  []side     `json:"sides"`
	Floors []floorRun `json:"floors,omitempty"`
	Blocks []block    `json:"blocks"`
	Notes  []string   `json:"notes,omitempty"`
	Failed string     `json:"failed,omitempty"` // why there is less than there should be
	Took   float64    `json:"seconds"`
}

type caseInfo struct {
	Name string `json:"name"`
	Load string `json:"load,omitempty"`
}

// side is one measurement.
type side struct {
	Block  int     `json:"block"`
	Half   int     `json:"half"`
	Case   int     `json:"case"`
	Broker string  `json:"broker"`
	Sample sample  `json:"sample,omitempty"`
	Stall  float64 `json:"io_stall_percent"` // of the time, somebody on the machine waited for the disk
	Error  string  `json:"error,omitempty"`
}

// floorRun is the floor of a case before block At (or after the last one).
type floorRun struct {
	At     int     `json:"at"`
	Case   int     `json:"case"`
	Judged float64 `json:"judged"` // what the floors of a row are compared by; 0: they are not
	Sample sample  `json:"sample"`
	Error  string  `json:"error,omitempty"`
}

// block tells whether a block counts.
type block struct {
	Moved   float64 `json:"floor_moved"`
	Counts  bool    `json:"counts"`
	Because string  `json:"because,omitempty"`
}

const unsteady = "no block was steady: all are shown"

// doubtful is whether the floor moved in every block.
func (t *table) doubtful() bool { return len(t.Blocks) > 0 && t.Blocks[0].Because == unsteady }

// judge marks the blocks that count. If none does, all do, and say so: what was
// measured is shown with its doubt rather than dropped.
func (t *table) judge() (good int) {
	var rows [][]float64
	for c := range t.Cases {
		var row []float64
		for _, f := range t.Floors {
			if f.Case == c && f.Error == "" && f.Judged > 0 {
				row = append(row, f.Judged)
			}
		}
		if len(row) > 0 {
			rows = append(rows, row)
		}
	}
	ok, worst := steady(len(t.Blocks), rows)
	for i := range t.Blocks {
		t.Blocks[i] = block{Moved: worst[i], Counts: ok[i]}
		if ok[i] {
			good++
		} else {
			t.Blocks[i].Because = "the floor moved"
		}
	}
	if good == 0 {
		for i := range t.Blocks {
			t.Blocks[i].Counts = true
			t.Blocks[i].Because = unsteady
		}
	}
	return good
}

// values are the numbers of a metric in the blocks that count, in the order in
// which they were measured.
func (t *table) values(c int, broker, metric string) []float64 {
	var out []float64
	for b := range t.Blocks {
		if !t.Blocks[b].Counts {
			continue
		}
		for half := range 2 {
			for _, s := range t.Sides {
				if s.Block == b && s.Half == half && s.Case == c && s.Broker == broker && s.Error == "" {
					if v, ok := s.Sample[metric]; ok {
						out = append(out, v)
					}
				}
			}
		}
	}
	return out
}

// floor is the median of a metric of the floors of a case.
func (t *table) floor(c int, metric string) (float64, bool) {
	var out []float64
	for _, f := range t.Floors {
		if v, ok := f.Sample[metric]; ok && f.Case == c && f.Error == "" {
			out = append(out, v)
		}
	}
	return median(out), len(out) > 0
}

func (t *table) caseOf(name string) int {
	for i, c := range t.Cases {
		if c.Name == name {
			return i
		}
	}
	return -1
}
