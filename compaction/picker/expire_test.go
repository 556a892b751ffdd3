package picker

import (
	"math"
	"testing"

	"github.com/varve/varve/tiering/manifest"
)

// Records of a partition whose small objects are merged go within segment.ms after retention.ms, whether it is written
// to at one rate or more and more.
func TestMergedRecordsExpire(t *testing.T) {
	const minute = 60_000
	for _, c := range []struct {
		retention, segment int64 // minutes
		growth             float64
	}{{70, 70, 1}, {70, 70, math.Pow(2, 1.0/64)}, {1000, 200, 1}, {7 * 1440, 7 * 1440, 1}} {
		pol := Policy{Delete: true, MaxLag: math.MaxInt64, RetentionMs: c.retention * minute, RetentionBytes: -1, SegmentBytes: 1 << 30, SegmentMs: c.segment * minute}
		var p Partition
		oldest := map[int64]int64{} // of the entry that begins there
		now, size, worst, merged := int64(1)<<40, 1000.0, int64(0), 0
		for i := range min(8*c.retention, 30_000) {
			if now, size = now+minute, size*c.growth; size > 4e6 {
				break
			}
			p.Entries = append(p.Entries, Entry{Entry: manifest.Entry{Base: i, Last: i, Bytes: int64(size), MaxTimestamp: now, Created: now}, MinTimestamp: -1})
			oldest[i], p.FirstUnstable = now-minute, i+1
			for jobs := Pick(p, pol, Limits{}, now); len(jobs) > 0; jobs = Pick(p, pol, Limits{}, now) {
				if p = carryOut(nil, p, jobs[0]); jobs[0].Kind == Merge {
					merged++
				}
				for p.Entries[0].Last < p.LogStart {
					p.Entries = p.Entries[1:]
				}
				for j := range p.Entries { // what the worker knows
					if p.Entries[j].MinTimestamp = -1; j == 0 && p.Entries[j].Kind == manifest.Rewritten {
						p.Entries[j].MinTimestamp = oldest[p.Entries[j].Base]
					}
				}
			}
			worst = max(worst, now-oldest[p.Entries[0].Base])
		}
		if most := (c.retention + c.segment + 2) * minute; worst > most || worst < c.retention*minute || merged == 0 {
			t.Errorf("%+v: the oldest record is %d minutes old, %d merges", c, worst/minute, merged)
		}
	}
}
