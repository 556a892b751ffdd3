// Package picker decides what is done next with the remote part of a partition: what has expired, what to compact,
// which tombstones may go, which small objects become one.
//
// Pick is a function of the partition's entries, its topic's settings, limits and the time. What it returns is a plan:
// whoever carries it out claims the partition, reads, rewrites, and commits group by group in the order of the offsets.
//
//	entries   [ own ][ rewritten ][mixed][mixed][ own ][mixed][mixed][mixed]
//	          0            clean end ^                 ^ bound        ^ remote end
//	          | each key once        | dirty            | may not be rewritten yet
//
// The bound is where the earliest open transaction begins and, in a compacted topic, where the first dirty entry is
// that holds records younger than min.compaction.lag.ms. Nothing at or above it is compacted, purged or merged; only
// retention, as in Kafka, asks neither.
//
// The package is pure: no clock, no disk, no goroutine.
package picker

import (
	"cmp"
	"math"
	"slices"

	"github.com/varve/varve/tiering/manifest"
)

// Entry is an entry of the manifest, with what its footer and the cleaner's summary say of the object.
type Entry struct {
	manifest.Entry
	// Page tells the lists of the manifest apart, tail and pages: an edit replaces a run in one of them.
	Page int
	// MinTimestamp is the smallest timestamp of its batches in ms, -1 if none has one or it is not known: of what a
	// broker has uploaded, where MaxTimestamp is little later, it need not be.
	MinTimestamp int64
	// HorizonBytes is about what goes when Horizon, a time in ms, has passed; 0: nothing will. Of objects that are
	// merged, the latest horizon counts.
	Horizon, HorizonBytes int64
}

// time is how old its newest record is: without timestamps, as of the upload.
func (e *Entry) time() int64 {
	if e.MaxTimestamp >= 0 {
		return e.MaxTimestamp
	}
	return e.Created
}

// since is how old its oldest record may be.
func (e *Entry) since() int64 {
	switch {
	case e.MinTimestamp >= 0:
		return e.MinTimestamp
	case e.MaxTimestamp >= 0:
		return min(e.MaxTimestamp, e.Created)
	}
	return e.Created
}

// oldest is about how old the oldest record of an entry is: what it is made of came behind the entry before it.
func (p *Partition) oldest(e Entry) int64 {
	if i := after(p.Entries, e.Base); i > 0 {
		return min(e.since(), p.Entries[i-1].time())
	}
	return e.since()
}

// Partition is what is known of a partition's remote part.
type Partition struct {
	Entries  []Entry // oldest first, without a gap; dead ones may be among them
	LogStart int64
	// LocalBytes is what the partition holds above its remote end, for retention.bytes.
	LocalBytes int64
	// CleanEnd is where the last completed round of compaction ended, 0 if there was none.
	CleanEnd int64
	// FirstUnstable is the first offset of the earliest transaction that is open at the remote end; the remote end if
	// none is.
	FirstUnstable int64
	// Round is a round that was begun and not completed.
	Round Round
}

// Round says how far a round of compaction that one job cannot complete has come: its table reaches from the clean end
// to End, and everything below Next has been filtered with it. Zero: no round.
type Round struct{ End, Next int64 }

// Policy is what a topic's settings say. Times are in ms.
type Policy struct {
	Compact, Delete bool    // cleanup.policy
	MinDirtyRatio   float64 // min.cleanable.dirty.ratio
	MinLag, MaxLag  int64   // min. and max.compaction.lag.ms
	DeleteRetention int64   // delete.retention.ms
	RetentionMs     int64   // -1: for ever
	RetentionBytes  int64   // -1: all
	SegmentBytes    int64   // segment.bytes; 0: not said
	SegmentMs       int64   // segment.ms; 0: not said
}

// Limits bound a job and say what is worth one. The zero value of a field is its default.
type Limits struct {
	Bytes     int64   // that one job reads and writes; 16 GiB
	Requests  int64   // to the object store by one job; 4,096
	Target    int64   // bytes of a full object, if segment.bytes does not say less; 256 MiB
	ReadBytes int64   // of one ranged read; 4 MiB, as package tiering reads for a worker
	PartBytes int64   // of one part of an upload; 8 MiB
	Fanin     int     // how many objects are merged if they do not fill half of one; DefaultFanin
	Purge     float64 // the share of an object that must have reached its horizon to be worth rewriting it at once; 0.1
}

// DefaultFanin is Limits.Fanin where nothing is said. A small object that is merged costs two reads, however many are;
// the two writes of the new one and of a page of the manifest are shared by them. README.md has the figures.
const DefaultFanin = 64

func (l *Limits) defaults() {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Bytes, 16<<30)
	def(&l.Requests, 4096)
	def(&l.Target, 256<<20)
	def(&l.ReadBytes, 4<<20)
	def(&l.PartBytes, 8<<20)
	if l.Fanin <= 0 {
		l.Fanin = DefaultFanin
	}
	if l.Purge <= 0 {
		l.Purge = 0.1
	}
}

// Kind is what a job does.
type Kind uint8

const (
	// Expire moves the log start to End: retention lets go what is below. Only the leader does that.
	Expire Kind = iota
	// Compact scans [DirtyStart, TableEnd) and filters the groups. If they do not reach the table's end, the round is
	// not completed, and the next job goes on.
	Compact
	// Purge filters the groups without a scan: of the clean range, what has reached its horizon goes.
	Purge
	// Merge makes one object of each group and leaves every batch as it is.
	Merge
)

var kindNames = [...]string{"expire", "compact", "purge", "merge"}

func (k Kind) String() string { return kindNames[k] }

// Cost is what a job takes at most, as far as the entries tell: nothing is assumed to go.
type Cost struct{ Read, Written, Requests int64 }

func (c Cost) add(o Cost) Cost {
	return Cost{c.Read + o.Read, c.Written + o.Written, c.Requests + o.Requests}
}

// Job is something to do.
type Job struct {
	Kind      Kind
	Base, End int64     // the offsets that it rewrites, or lets go: [Base, End)
	Groups    [][]Entry // what goes into one object each, in order
	Cost      Cost

	DirtyStart, TableEnd int64 // Compact: what it scans

	// Urgent: a setting promises it by now, or a round that others wait for is not completed.
	Urgent bool
	// Worth compares jobs of one kind: the share of the bytes that is dirty, or that is likely to go; objects saved
	// for each MiB that is written.
	Worth float64
}

// Compare sorts jobs, of one partition or of many, the most worthwhile first: what is free, what is promised, what frees
// bytes by its settings' measure, what only saves requests.
func Compare(a, b Job) int {
	class := func(j Job) int {
		if j.Kind == Compact && !j.Urgent {
			return int(j.Kind) + 1
		} else if j.Kind > Compact {
			return int(j.Kind) + 1
		}
		return int(j.Kind)
	}
	return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(b.Worth, a.Worth), cmp.Compare(a.Base, b.Base))
}

// Pick returns what there is to do in a partition, the most worthwhile first. No two of the jobs are about the same
// offsets, but that a round may go over what has expired. A job keeps within the limits, unless its smallest step does not: what cannot be done in small steps is still
// to be done, and Cost tells what it takes.
func Pick(p Partition, pol Policy, l Limits, now int64) []Job {
	l.defaults()
	if pol.SegmentBytes > 0 {
		l.Target = min(l.Target, pol.SegmentBytes)
	}
	for len(p.Entries) > 0 && p.Entries[0].Last < p.LogStart {
		p.Entries = p.Entries[1:]
	}
	var all []Job
	if pol.Delete {
		all = append(all, expire(&p, pol, now)...)
	}
	rest := p
	rest.Entries = p.bounded(pol, now)
	if pol.Compact {
		all = append(all, compact(&rest, pol, l, now)...)
		all = append(all, purge(&rest, pol, l, now)...)
	}
	all = append(all, merge(&rest, pol, l)...)
	slices.SortStableFunc(all, Compare)
	var jobs []Job
	for _, j := range all {
		if !slices.ContainsFunc(jobs, func(k Job) bool {
			// What has expired is not merged with what has not. But only the leader can let it go, and a round does not
			// wait for that.
			return j.Base < k.End && k.Base < j.End && !(k.Kind == Expire && j.Kind == Compact)
		}) {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// expire finds the entries at the log start that retention lets go, by the rules by which the leader does.
func expire(p *Partition, pol Policy, now int64) []Job {
	total := p.LocalBytes
	for _, e := range p.Entries {
		total += e.Bytes
	}
	n := 0
	for ; n < len(p.Entries); n++ {
		e := &p.Entries[n]
		byTime := pol.RetentionMs >= 0 && e.time() < before(now, pol.RetentionMs)
		bySize := pol.RetentionBytes >= 0 && total-e.Bytes >= pol.RetentionBytes
		if !byTime && !bySize {
			break
		}
		total -= e.Bytes
	}
	if n == 0 {
		return nil
	}
	return []Job{{Kind: Expire, Base: p.Entries[0].Base, End: p.Entries[n-1].Next()}}
}

// bounded returns the entries that may be rewritten.
func (p *Partition) bounded(pol Policy, now int64) []Entry {
	for i := range p.Entries {
		e := &p.Entries[i]
		young := pol.Compact && pol.MinLag > 0 && e.Last >= p.CleanEnd && e.time() > before(now, pol.MinLag)
		if e.Last >= p.FirstUnstable || young {
			return p.Entries[:i]
		}
	}
	return p.Entries
}

func before(now, ms int64) int64 {
	if now < math.MinInt64+ms {
		return math.MinInt64
	}
	return now - ms
}

// later is ms + wait; both may be as large as can be.
func later(ms, wait int64) int64 {
	if wait > math.MaxInt64-max(ms, 0) {
		return math.MaxInt64
	}
	return ms + wait
}

// compact plans the next step of a round. Kafka begins one when more than min.cleanable.dirty.ratio of what it would go
// over is dirty, or when something dirty is older than max.compaction.lag.ms.
//
// Of a round that the limits do not allow at once, half goes to the scan, which every step of it repeats, and half to
// what is filtered.
func compact(p *Partition, pol Policy, l Limits, now int64) []Job {
	if len(p.Entries) == 0 {
		return nil
	}
	start := max(p.CleanEnd, p.Entries[0].Base)
	first := after(p.Entries, start) // of the dirty ones
	clean, dirty := sum(p.Entries[:first]), sum(p.Entries[first:])
	if dirty == 0 {
		return nil
	}
	j := Job{Kind: Compact, DirtyStart: start, Worth: float64(dirty) / float64(clean+dirty)}
	next := 0
	if r := p.Round; r.End > start && r.Next < r.End {
		j.TableEnd, j.Urgent = min(r.End, p.Entries[len(p.Entries)-1].Next()), true
		next = after(p.Entries, r.Next)
	} else {
		for i := range p.Entries[first:] {
			j.Urgent = j.Urgent || p.Entries[first+i].since() < before(now, pol.MaxLag)
		}
		if !j.Urgent && j.Worth <= pol.MinDirtyRatio {
			return nil
		}
	}
	half := Limits{Bytes: l.Bytes / 2, Requests: l.Requests / 2}
	scanned := Cost{}
	for i, e := range p.Entries[first:] {
		c := scanned.add(read(e, l))
		if j.TableEnd == 0 || e.Base < j.TableEnd {
			if i > 0 && j.TableEnd == 0 && !c.within(half) {
				break
			}
			scanned = c
			j.End = e.Next()
		}
	}
	if j.TableEnd == 0 {
		j.TableEnd = j.End
	}
	j.Cost = scanned
	last := next
	for last < len(p.Entries) && p.Entries[last].Base < j.TableEnd {
		last++
	}
	groups := group(p.Entries[next:last], l.Target)
	if !j.take(groups, l) {
		return nil
	}
	return []Job{j}
}

// Dirty is the share that is dirty of what may be compacted: what min.cleanable.dirty.ratio is compared with.
func Dirty(p Partition, pol Policy, now int64) float64 {
	entries := p.bounded(pol, now)
	for len(entries) > 0 && entries[0].Last < p.LogStart {
		entries = entries[1:]
	}
	if dirty := sum(entries[after(entries, p.CleanEnd):]); pol.Compact && dirty > 0 {
		return float64(dirty) / float64(sum(entries))
	}
	return 0
}

// Behind is what compaction has not gone over yet of a partition, whether or not it may.
type Behind struct {
	Bytes  int64 // above the clean end
	Oldest int64 // about how old the oldest of it is, in ms; math.MaxInt64: there is none
	Late   int64 // by when max.compaction.lag.ms promises that it is gone over, in ms; math.MaxInt64: it does not
}

// BehindOf tells how far compaction is behind. What is too young for min.compaction.lag.ms or held up by an open
// transaction counts as well: the promise is broken all the same.
func BehindOf(p Partition, pol Policy) Behind {
	b := Behind{Oldest: math.MaxInt64, Late: math.MaxInt64}
	if !pol.Compact {
		return b
	}
	for i := range p.Entries {
		if e := &p.Entries[i]; e.Last >= p.CleanEnd && e.Last >= p.LogStart {
			b.Bytes += e.Bytes
			b.Oldest = min(b.Oldest, e.since())
		}
	}
	if b.Bytes > 0 {
		b.Late = later(b.Oldest, pol.MaxLag)
	}
	return b
}

// Due is when, after now, there may be more to do although nothing was added: a record has reached its lag, a tombstone
// or marker its horizon. math.MaxInt64: never.
func Due(p Partition, pol Policy, l Limits, now int64) int64 {
	l.defaults()
	next := int64(math.MaxInt64)
	at := func(ms, wait int64) {
		if t := later(ms, wait); t > now {
			next = min(next, t)
		}
	}
	if !pol.Compact {
		return next
	}
	for i := range p.Entries {
		e := &p.Entries[i]
		if e.Last >= p.CleanEnd {
			at(e.since(), later(pol.MaxLag, 1))
			at(e.time(), pol.MinLag)
		} else if e.HorizonBytes > 0 {
			at(e.Horizon, l.purgeWait(e, pol))
		}
	}
	return next
}

// purge finds, in the clean range, objects of which enough has reached its horizon, or little for so long that it is
// time: nothing that was deleted stays for more than about twice delete.retention.ms.
func purge(p *Partition, pol Policy, l Limits, now int64) (jobs []Job) {
	due := func(e Entry) bool {
		return e.HorizonBytes > 0 && e.Last < p.CleanEnd && e.Horizon <= before(now, l.purgeWait(&e, pol))
	}
	for _, run := range runs(p.Entries, due) {
		for groups := group(run, l.Target); len(groups) > 0; {
			j := Job{Kind: Purge}
			j.take(groups, l)
			goes := int64(0)
			for _, g := range j.Groups {
				for _, e := range g {
					goes += e.HorizonBytes
				}
			}
			j.Worth = float64(goes) / float64(j.Cost.Read)
			jobs = append(jobs, j)
			groups = groups[len(j.Groups):]
		}
	}
	return jobs
}

// purgeWait is how long after its horizon an entry is worth a purge.
func (l *Limits) purgeWait(e *Entry, pol Policy) int64 {
	if float64(e.HorizonBytes) >= l.Purge*float64(e.Bytes) {
		return 0
	}
	return pol.DeleteRetention
}

// merge finds runs of small objects that are worth being one; sections of mixed objects are small. The new one is at
// least twice as large as the largest that goes into it, so that a byte is rewritten at most as often as its object
// doubles until it is full; and as long as it is less than half full, there must be many.
//
// In a compacted topic there must always be many, as long as one job can go over all of it: then the next round makes few
// of them anyway, and what was merged for it would be written twice. Where a round is many jobs, larger objects let each
// of them come further.
//
// Of what expires by time, an object holds no more than a segment of segment.ms would: all of it stays as long as its newest
// record does.
func merge(p *Partition, pol Policy, l Limits) (jobs []Job) {
	target := min(l.Target, l.Bytes/2)
	clean := after(p.Entries, p.CleanEnd) // an object on both sides of it would count as dirty
	round := rewrite(p.Entries, l)
	for _, e := range p.Entries[clean:] {
		round = round.add(read(e, l))
	}
	atOnce := pol.Compact && round.within(l)
	small := func(e Entry) bool { return e.Bytes <= target/2 }
	var split func(run []Entry)
	split = func(run []Entry) {
		if len(run) < 2 {
			return
		}
		total, largest := int64(0), 0
		for i, e := range run {
			total += e.Bytes
			if e.Bytes > run[largest].Bytes {
				largest = i
			}
		}
		if total < 2*run[largest].Bytes {
			split(run[:largest])
			split(run[largest+1:])
			return
		}
		if len(run) < l.Fanin && (atOnce || total < target/2) {
			return
		}
		j := Job{Kind: Merge, Worth: float64(len(run)-1) / (float64(total)/(1<<20) + 1)}
		if j.take([][]Entry{run}, l); j.Cost.Requests > l.Requests {
			split(run[:len(run)/2])
			split(run[len(run)/2:])
			return
		}
		jobs = append(jobs, j)
	}
	for _, side := range [][]Entry{p.Entries[:clean], p.Entries[clean:]} {
		for _, run := range runs(side, small) {
			for _, g := range group(run, target) {
				if !pol.Delete || pol.RetentionMs < 0 || pol.SegmentMs <= 0 {
					split(g)
					continue
				}
				for len(g) > 0 {
					n, oldest := 1, p.oldest(g[0])
					for n < len(g) && g[n].time()-oldest <= pol.SegmentMs {
						n++
					}
					split(g[:n])
					g = g[n:]
				}
			}
		}
	}
	return jobs
}

// take gives the job as many groups as the limits allow, at least one if there is one.
func (j *Job) take(groups [][]Entry, l Limits) bool {
	for i, g := range groups {
		c := j.Cost.add(rewrite(g, l))
		if i > 0 && !c.within(l) {
			break
		}
		j.Cost, j.Groups = c, groups[:i+1]
		j.End = g[len(g)-1].Next()
	}
	if len(j.Groups) == 0 {
		return false
	}
	j.Base = j.Groups[0][0].Base
	return true
}

func (c Cost) within(l Limits) bool { return c.Read+c.Written <= l.Bytes && c.Requests <= l.Requests }

// read is what it takes to read an entry: its footer and its blocks.
func read(e Entry, l Limits) Cost {
	return Cost{Read: e.Bytes, Requests: 1 + pieces(e.Bytes, l.ReadBytes)}
}

// rewrite is what it takes to make one object of a group: the parts are begun, uploaded and completed.
func rewrite(g []Entry, l Limits) (c Cost) {
	for _, e := range g {
		c = c.add(read(e, l))
	}
	c.Written = c.Read
	c.Requests += 2 + pieces(c.Written, l.PartBytes)
	return c
}

func pieces(n, size int64) int64 { return (n + size - 1) / size }

// group cuts entries into runs that fit into one object and stand in one list of the manifest.
func group(entries []Entry, target int64) (groups [][]Entry) {
	for len(entries) > 0 {
		n, size := 1, entries[0].Bytes
		for n < len(entries) && entries[n].Page == entries[0].Page && size+entries[n].Bytes <= target {
			size += entries[n].Bytes
			n++
		}
		groups = append(groups, entries[:n:n])
		entries = entries[n:]
	}
	return groups
}

// runs returns the longest runs of entries that are all wanted.
func runs(entries []Entry, wanted func(Entry) bool) (out [][]Entry) {
	for i := 0; i < len(entries); i++ {
		n := i
		for n < len(entries) && wanted(entries[n]) {
			n++
		}
		if n > i {
			out = append(out, entries[i:n])
			i = n
		}
	}
	return out
}

func sum(entries []Entry) (n int64) {
	for _, e := range entries {
		n += e.Bytes
	}
	return n
}

// after is the index of the first entry that reaches offset.
func after(entries []Entry, offset int64) int {
	n, _ := slices.BinarySearchFunc(entries, offset, func(e Entry, offset int64) int { return cmp.Compare(e.Last, offset) })
	return n
}
