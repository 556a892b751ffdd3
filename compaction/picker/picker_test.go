package picker

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/varve/varve/tiering/manifest"
)

const mib = 1 << 20

// A story describes a partition, an entry a line, and asks what to do:
//
//	partition [clean=] [start=] [unstable=] [local=] [round=end/next]
//	<base>-<last> <MiB> [own|mixed|rewritten] [max=] [min=] [created=] [horizon=time/KiB] [page=]
//	pick [policy] [limits] now=
//	due [policy] [limits] now=
//	dirty [policy] now=
//	behind [policy]
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		var p Partition
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "partition":
				p = parse(t, d)
				return ""
			case "pick":
				return show(Pick(p, policy(t, d), limits(t, d), arg(t, d, "now", int64(1000))))
			case "dirty":
				return fmt.Sprintf("%.2f\n", Dirty(p, policy(t, d), arg(t, d, "now", int64(1000))))
			case "behind":
				b := BehindOf(p, policy(t, d))
				ms := func(t int64) string {
					if t == math.MaxInt64 {
						return "never"
					}
					return fmt.Sprint(t)
				}
				return fmt.Sprintf("%.1f MiB, the oldest of %s, late from %s\n", float64(b.Bytes)/mib, ms(b.Oldest), ms(b.Late))
			case "due":
				due := Due(p, policy(t, d), limits(t, d), arg(t, d, "now", int64(1000)))
				if due == math.MaxInt64 {
					return "never\n"
				}
				return fmt.Sprintf("%d\n", due)
			}
			t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
			return ""
		})
	})
}

func arg[T any](t *testing.T, d *datadriven.TestData, key string, def T) T {
	if d.HasArg(key) {
		d.ScanArgs(t, key, &def)
	}
	return def
}

func parse(t *testing.T, d *datadriven.TestData) Partition {
	var p Partition
	for line := range strings.Lines(d.Input) {
		e := Entry{Entry: manifest.Entry{Kind: manifest.Own, MaxTimestamp: 0}, MinTimestamp: -1}
		size := 0.0
		var kind string
		fields := strings.Fields(line)
		if _, err := fmt.Sscanf(strings.Join(fields[:3], " "), "%d-%d %g %s", &e.Base, &e.Last, &size, &kind); err != nil {
			t.Fatalf("%s: %q: %v", d.Pos, line, err)
		}
		e.Bytes = int64(size * mib)
		e.Kind = map[string]manifest.Kind{"own": manifest.Own, "mixed": manifest.Mixed, "rewritten": manifest.Rewritten}[kind]
		for _, f := range fields[3:] {
			key, v, _ := strings.Cut(f, "=")
			var n, m int64
			fmt.Sscanf(v, "%d/%d", &n, &m)
			switch key {
			case "max":
				e.MaxTimestamp = n
			case "min":
				e.MinTimestamp = n
			case "created":
				e.Created = n
			case "page":
				e.Page = int(n)
			case "horizon":
				e.Horizon, e.HorizonBytes = n, m<<10
			default:
				t.Fatalf("%s: %q", d.Pos, f)
			}
		}
		p.Entries = append(p.Entries, e)
	}
	p.LogStart, p.CleanEnd, p.LocalBytes = arg(t, d, "start", int64(0)), arg(t, d, "clean", int64(0)), arg(t, d, "local", int64(0))*mib
	p.FirstUnstable = arg(t, d, "unstable", p.Entries[len(p.Entries)-1].Next())
	if d.HasArg("round") {
		fmt.Sscanf(arg(t, d, "round", ""), "%d/%d", &p.Round.End, &p.Round.Next)
	}
	return p
}

func policy(t *testing.T, d *datadriven.TestData) Policy {
	return Policy{Compact: d.HasArg("compact"), Delete: d.HasArg("delete"), MinDirtyRatio: float64(arg(t, d, "ratio", 50)) / 100,
		MinLag: arg(t, d, "min-lag", int64(0)), MaxLag: arg(t, d, "max-lag", int64(math.MaxInt64)), DeleteRetention: arg(t, d, "delete-retention", int64(100)),
		RetentionMs: arg(t, d, "retention-ms", int64(-1)), RetentionBytes: arg(t, d, "retention-mib", int64(-1)) * retainedUnit(d), SegmentBytes: arg(t, d, "segment", int64(0)) * mib}
}

func retainedUnit(d *datadriven.TestData) int64 {
	if d.HasArg("retention-mib") {
		return mib
	}
	return 1
}

func limits(t *testing.T, d *datadriven.TestData) Limits {
	return Limits{Bytes: arg(t, d, "bytes", int64(0)) * mib, Requests: arg(t, d, "requests", int64(0)), Target: arg(t, d, "target", int64(64)) * mib,
		Fanin: arg(t, d, "fanin", 4)}
}

func show(jobs []Job) string {
	var w strings.Builder
	for _, j := range jobs {
		fmt.Fprintf(&w, "%v [%d, %d)", j.Kind, j.Base, j.End)
		if j.Kind == Compact {
			fmt.Fprintf(&w, " scan [%d, %d)", j.DirtyStart, j.TableEnd)
		}
		if j.Kind != Expire {
			fmt.Fprintf(&w, " worth %.2f", j.Worth)
		}
		if j.Urgent {
			w.WriteString(" urgent")
		}
		if j.Kind != Expire {
			fmt.Fprintf(&w, "; reads %.1f MiB, writes %.1f MiB, %d requests", float64(j.Cost.Read)/mib, float64(j.Cost.Written)/mib, j.Cost.Requests)
		}
		for _, g := range j.Groups {
			fmt.Fprintf(&w, "\n  %d-%d", g[0].Base, g[len(g)-1].Last)
			if len(g) > 1 {
				fmt.Fprintf(&w, " of %d", len(g))
			}
		}
		w.WriteByte('\n')
	}
	if len(jobs) == 0 {
		return "nothing\n"
	}
	return w.String()
}

// Whatever the partition: jobs are made of its entries, in order and without a gap in a group, in one list of the
// manifest, below the bound, within the limits or of one step; and a worker that carries out the first job again and
// again comes to an end.
func TestPlans(t *testing.T) {
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
		}
		now := int64(100_000)
		p, pol, l := random(rnd, now)
		for step := 0; ; step++ {
			if step > 1000 {
				fail("no end: %s", show(Pick(p, pol, l, now)))
			}
			jobs := Pick(p, pol, l, now)
			for i, j := range jobs {
				if msg := check(p, pol, l, now, j); msg != "" {
					fail("%s in %s", msg, show(jobs[i:i+1]))
				}
				for _, k := range jobs[:i] {
					if j.Base < k.End && k.Base < j.End && !(k.Kind == Expire && j.Kind == Compact) {
						fail("overlap: %s", show(jobs))
					}
				}
				if i > 0 && Compare(jobs[i-1], j) > 0 {
					fail("order: %s", show(jobs))
				}
			}
			if len(jobs) == 0 {
				break
			}
			if jobs[0].Kind == Expire && rnd.IntN(3) == 0 {
				if jobs = jobs[1:]; len(jobs) == 0 {
					break // the leader does not do it
				}
			}
			p = carryOut(rnd, p, jobs[0])
		}
	}
}

func random(rnd *rand.Rand, now int64) (Partition, Policy, Limits) {
	p := Partition{}
	at, page := rnd.Int64N(100), 0
	for range 1 + rnd.IntN(30) {
		e := Entry{Entry: manifest.Entry{Base: at, Last: at + rnd.Int64N(50), Kind: manifest.Kind(rnd.IntN(3)), Bytes: 1 + rnd.Int64N(int64(1)<<(10+rnd.IntN(17)))},
			Page: page, MinTimestamp: -1}
		e.Created = now - 20_000 + at
		e.MaxTimestamp = now - rnd.Int64N(20_000) - 1
		if rnd.IntN(10) == 0 {
			e.MaxTimestamp = -1
		} else if rnd.IntN(2) == 0 {
			e.MinTimestamp = e.MaxTimestamp - rnd.Int64N(1000)
		}
		if rnd.IntN(3) == 0 {
			e.Horizon, e.HorizonBytes = now-5000+rnd.Int64N(10_000), rnd.Int64N(e.Bytes)
		}
		if rnd.IntN(6) == 0 {
			page++
		}
		p.Entries = append(p.Entries, e)
		at = e.Next()
	}
	end := at
	some := func() int64 {
		if rnd.IntN(2) == 0 {
			return p.Entries[rnd.IntN(len(p.Entries))].Next()
		}
		return rnd.Int64N(end + 1)
	}
	p.LogStart, p.CleanEnd, p.FirstUnstable, p.LocalBytes = p.Entries[0].Base, 0, end, rnd.Int64N(mib)
	if rnd.IntN(2) == 0 {
		p.CleanEnd = some()
	}
	if rnd.IntN(3) == 0 {
		p.FirstUnstable = some()
	}
	p.CleanEnd = min(p.CleanEnd, p.FirstUnstable)
	if rnd.IntN(4) == 0 {
		p.LogStart = some()
	}
	pol := Policy{Compact: rnd.IntN(3) > 0, Delete: rnd.IntN(2) == 0, MinDirtyRatio: rnd.Float64(), MaxLag: math.MaxInt64, DeleteRetention: rnd.Int64N(2000),
		RetentionMs: -1, RetentionBytes: -1, SegmentBytes: rnd.Int64N(64 * mib)}
	if rnd.IntN(3) == 0 {
		pol.MinLag = rnd.Int64N(20_000)
	}
	if rnd.IntN(3) == 0 {
		pol.MaxLag = pol.MinLag + 1 + rnd.Int64N(20_000)
	}
	if rnd.IntN(3) == 0 {
		pol.RetentionMs = rnd.Int64N(25_000)
	}
	if rnd.IntN(3) == 0 {
		pol.RetentionBytes = rnd.Int64N(256 * mib)
	}
	l := Limits{}
	if rnd.IntN(2) == 0 {
		l = Limits{Bytes: 1 + rnd.Int64N(200*mib), Requests: 1 + rnd.Int64N(300), Target: 1 + rnd.Int64N(64*mib), Fanin: 2 + rnd.IntN(8)}
	}
	return p, pol, l
}

func check(p Partition, pol Policy, l Limits, now int64, j Job) string {
	l.defaults()
	target := l.Target
	if pol.SegmentBytes > 0 {
		target = min(target, pol.SegmentBytes)
	}
	if j.Kind == Expire {
		if !pol.Delete || j.End <= p.LogStart || j.Base > j.End {
			return "expires nothing"
		}
		return ""
	}
	if len(j.Groups) == 0 || len(j.Groups[0]) == 0 {
		return "no group"
	}
	next, bytes := int64(-1), int64(0)
	for _, g := range j.Groups {
		size := int64(0)
		for i, e := range g {
			at := slices.Index(p.Entries, e)
			switch {
			case at < 0:
				return "an entry that is not there"
			case i > 0 && p.Entries[at-1] != g[i-1]:
				return "a gap in a group"
			case e.Page != g[0].Page:
				return "a group over two lists"
			case next >= 0 && e.Base < next || j.Kind != Purge && next >= 0 && e.Base != next:
				return "groups out of order, or with a gap"
			case e.Last < p.LogStart:
				return "a dead entry"
			case e.Last >= p.FirstUnstable:
				return "the range of an open transaction"
			case pol.Compact && pol.MinLag > 0 && e.Last >= p.CleanEnd && e.time() > now-pol.MinLag:
				return "records within min.compaction.lag.ms"
			case j.Kind == Purge && (e.Last >= p.CleanEnd || e.HorizonBytes == 0 || e.Horizon > now):
				return "a horizon that has not passed, or is not in the clean range"
			}
			next, size = e.Next(), size+e.Bytes
		}
		if len(g) > 1 && size > target {
			return "a group above the size of an object"
		}
		if j.Kind == Merge && len(g) < 2 {
			return "merges one"
		}
		bytes += size
	}
	switch {
	case j.Base != j.Groups[0][0].Base || j.End != next:
		return "range"
	case j.Kind == Merge && j.Base < p.CleanEnd && j.Groups[0][0].Last < p.CleanEnd && j.End > p.CleanEnd:
		return "a merge over the clean end"
	case j.Cost.Written != bytes:
		return "cost"
	case !j.Cost.within(l) && j.Kind == Merge:
		return "above the limits"
	case !j.Cost.within(l) && len(j.Groups) > 1:
		return "above the limits in more than one step"
	}
	if j.Kind != Compact {
		return ""
	}
	if !pol.Compact || j.DirtyStart < p.CleanEnd || j.TableEnd <= j.DirtyStart || j.TableEnd > p.FirstUnstable {
		return "scan"
	}
	if p.Round.End == 0 && j.Base > p.Entries[0].Base && p.Entries[0].Last >= p.LogStart {
		return "a round that does not begin at the log start"
	}
	return ""
}

// carryOut is what a worker would make of a job.
func carryOut(rnd *rand.Rand, p Partition, j Job) Partition {
	if j.Kind == Expire {
		p.LogStart = j.End
		return p
	}
	tableEnd := j.TableEnd
	if j.Kind == Compact && p.Round.End == 0 && rnd.IntN(4) == 0 && tableEnd > j.DirtyStart+1 {
		tableEnd -= rnd.Int64N(tableEnd - j.DirtyStart - 1) // the table is full
	}
	var entries []Entry
	at := 0
	for _, g := range j.Groups {
		i := slices.Index(p.Entries, g[0])
		entries = append(entries, p.Entries[at:i]...)
		at = i + len(g)
		out := g[0]
		out.Last, out.Kind, out.Bytes, out.HorizonBytes = g[len(g)-1].Last, manifest.Rewritten, 0, 0
		for _, e := range g {
			out.Bytes += e.Bytes
			out.MaxTimestamp, out.Created = max(out.MaxTimestamp, e.MaxTimestamp), max(out.Created, e.Created)
			if j.Kind == Merge && e.HorizonBytes > 0 {
				out.Horizon, out.HorizonBytes = max(out.Horizon, e.Horizon), out.HorizonBytes+e.HorizonBytes
			}
		}
		entries = append(entries, out)
	}
	p.Entries = append(entries, p.Entries[at:]...)
	if j.Kind == Compact {
		p.Round = Round{tableEnd, j.End}
		if j.End >= tableEnd {
			p.CleanEnd, p.Round = tableEnd, Round{}
		}
	}
	return p
}

func BenchmarkPick(b *testing.B) {
	var p Partition
	for i := range int64(1500) {
		p.Entries = append(p.Entries, Entry{Entry: manifest.Entry{Base: i * 10, Last: i*10 + 9, Bytes: mib + i%7, Kind: manifest.Mixed, MaxTimestamp: i}, Page: int(i / 400), MinTimestamp: -1})
	}
	p.FirstUnstable, p.CleanEnd = 15_000, 6000
	b.ReportAllocs()
	for b.Loop() {
		if len(Pick(p, Policy{Compact: true, MinDirtyRatio: 0.9, MaxLag: math.MaxInt64, RetentionMs: -1, RetentionBytes: -1}, Limits{}, 1<<40)) == 0 {
			b.Fatal("nothing to do")
		}
	}
}
