package broker

import "testing"

// The clock is set back by more than an hour: what was appended before must grow
// old from now on, and what is appended later must be marked, or nothing of a
// quiet partition is uploaded before the clock has caught up.
func TestAgesWhenTheClockGoesBack(t *testing.T) {
	const before, after = 10_000_000, 5_000_000
	r := &replica{}
	r.mark(0, before)
	r.mark(10, before+ageStep)
	r.rewind(after)
	for _, a := range r.ages {
		if a.ms != after {
			t.Errorf("records from %d on are marked %d, %d ms ahead of the clock", a.offset, a.ms, a.ms-after)
		}
	}
	r.mark(20, after-ageStep) // and once more
	r.mark(30, after)
	if n := len(r.ages); r.ages[n-1] != (ageMark{30, after}) {
		t.Errorf("the newest mark is %+v", r.ages[n-1])
	}
	for i, a := range r.ages {
		if a.ms > after || i > 0 && a.ms < r.ages[i-1].ms {
			t.Errorf("mark %d: %+v", i, a)
		}
	}
}
