package main

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/interop/chaos/history"
)

// ledger notes the history of a round, in one order for all clients, and the figures that are printed.
type ledger struct {
	mu    sync.Mutex
	clock int64
	h     history.History
	acks  map[history.Partition]*acks

	healed time.Time // when the last fault was
	faults []span    // that are over
	load   float64   // of the machine, the highest that was seen
}

// acks is how acknowledgements came in one partition.
type acks struct {
	last    time.Time
	longest gap       // without one
	gaps    []gap     // of at least shownGap
	back    time.Time // the first since ledger.healed
	n       int
}

// gap is a time without an acknowledgement, between two.
type gap struct{ from, to time.Time }

func (g gap) length() time.Duration { return g.to.Sub(g.from) }

// span is how long a fault lasted, from when it was about to happen until all of it was healed.
type span struct {
	gap
	what string
}

const (
	// shownGap is what a partition may be without acknowledgements and no word is made of it.
	shownGap = 10 * time.Second
	// maxShown bounds the lines of a round that tell of such times.
	maxShown = 20
)

func newLedger() *ledger {
	return &ledger{h: history.History{Txns: map[string]*history.Txn{}}, acks: map[history.Partition]*acks{}}
}

// now counts up. Called with mu held.
func (l *ledger) now() int64 {
	l.clock++
	return l.clock
}

func (l *ledger) time() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now()
}

// expect has acknowledgements counted. What passes until the first is none of the gaps: that faults come only then is seen to.
func (l *ledger) expect(p history.Partition) { l.acks[p] = &acks{} }

// add takes an acknowledgement.
func (a *acks) add(now, healed time.Time) {
	if a.n++; a.n > 1 {
		g := gap{a.last, now}
		if g.length() > a.longest.length() {
			a.longest = g
		}
		if g.length() >= shownGap {
			a.gaps = append(a.gaps, g)
		}
	}
	a.last = now
	if a.back.IsZero() && !healed.IsZero() && now.After(healed) {
		a.back = now
	}
}

// send produces a record that says what it is; then is told whether it was acknowledged, if it is not nil.
func (l *ledger) send(produce func(context.Context, *kgo.Record, func(*kgo.Record, error)), p history.Partition, r history.Record, size int, then func(error)) {
	txn := r.Txn
	if txn == "" {
		txn = "-"
	}
	says := fmt.Appendf(nil, "%s %d %s ", r.Producer, r.Number, txn)
	value := slices.Clone(says)
	for i := 0; len(value) < size; i++ {
		value = append(value, byte('a'+(int(r.Number)+i)%26))
	}
	k := &kgo.Record{Topic: p.Topic, Partition: p.Index, Value: value}
	if r.Key != "" {
		k.Key, k.Headers = []byte(r.Key), []kgo.RecordHeader{{Key: saysHeader, Value: says}}
	}
	if r.Tombstone {
		k.Value = nil
	}
	r.Sum = checksum(k)
	l.mu.Lock()
	i := len(l.h.Produces)
	l.h.Produces = append(l.h.Produces, history.Produce{Partition: p, Record: r, Offset: -1})
	l.mu.Unlock()
	produce(context.Background(), k, func(k *kgo.Record, err error) {
		l.mu.Lock()
		if err == nil {
			w := &l.h.Produces[i]
			w.Outcome, w.Offset = history.Done, k.Offset
			if a := l.acks[p]; a != nil {
				a.add(time.Now(), l.healed)
			}
		}
		l.mu.Unlock()
		if then != nil {
			then(err)
		}
	})
}

// saysHeader is where a record with a key says what it is, for a tombstone has no value.
const saysHeader = "says"

func checksum(r *kgo.Record) uint32 {
	s := crc32.Update(crc32.ChecksumIEEE(r.Value), crc32.IEEETable, r.Key)
	for _, h := range r.Headers {
		s = crc32.Update(s, crc32.IEEETable, h.Value)
	}
	return s
}

// parse is what a record says of itself.
func parse(r *kgo.Record) history.Record {
	rec := history.Record{Sum: checksum(r)}
	if r.Attrs.IsControl() {
		rec.Control = true
		return rec
	}
	says := r.Value
	if len(r.Headers) == 1 && r.Headers[0].Key == saysHeader {
		says = r.Headers[0].Value
		rec.Key, rec.Tombstone = string(r.Key), r.Value == nil
	}
	f := strings.SplitN(string(says), " ", 4)
	if n, err := strconv.ParseInt(at(f, 1), 10, 64); err == nil && len(f) == 4 {
		rec.Producer, rec.Number, rec.Txn = f[0], n, f[2]
		if rec.Txn == "-" {
			rec.Txn = ""
		}
		return rec
	}
	// Nobody here has sent it: a record of a coordinator.
	rec.Producer, rec.Number = "others", r.Offset
	return rec
}

func at(f []string, i int) string {
	if i < len(f) {
		return f[i]
	}
	return ""
}

// reader adds one who reads.
func (l *ledger) reader(r history.Reader) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Readers = append(l.h.Readers, r)
	return len(l.h.Readers) - 1
}

// shown notes what a reader was shown, after it was. sum tells the checksum of the batch of an offset; it may be nil.
func (l *ledger) shown(reader int, records []*kgo.Record, sum func(offset int64) uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, r := range records {
		rd := history.Read{Partition: history.Partition{Topic: r.Topic, Index: r.Partition}, Record: parse(r), Reader: reader, At: now,
			Offset: r.Offset, Epoch: r.LeaderEpoch}
		if sum != nil {
			rd.Batch = sum(r.Offset)
		}
		l.h.Reads = append(l.h.Reads, rd)
	}
}

func (l *ledger) begin(txn string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Txns[txn] = &history.Txn{}
}

// asks notes that the commit of a transaction is about to be asked for.
func (l *ledger) asks(txn string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Txns[txn].Asked = l.now()
}

func (l *ledger) ended(txn string, o history.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Txns[txn].Outcome = o
}

// committed notes the offsets of a group that were acknowledged.
func (l *ledger) committed(group string, offsets map[string]map[int32]kgo.EpochOffset) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for topic, ps := range offsets {
		for p, o := range ps {
			l.h.Commits = append(l.h.Commits, history.Commit{Partition: history.Partition{Topic: topic, Index: p}, Group: group, At: now, Offset: o.Offset})
		}
	}
}

func (l *ledger) told(group string, p history.Partition, began, offset int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Offsets = append(l.h.Offsets, history.Offset{Partition: p, Group: group, Began: began, Offset: offset})
}

// lasted notes a fault that is over.
func (l *ledger) lasted(what string, from, to time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, span{gap{from, to}, what})
}

// heal says that the last fault is over: from now on everything has to be acknowledged again.
func (l *ledger) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.healed = time.Now()
}

// silent says where nothing was acknowledged, in the whole round or since all is healed.
func (l *ledger) silent() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range partitionsOf(l.acks) {
		switch a := l.acks[p]; {
		case a.n == 0:
			return fmt.Errorf("%s-%d: nothing was acknowledged", p.Topic, p.Index)
		case !l.healed.IsZero() && a.back.IsZero():
			return fmt.Errorf("%s-%d: nothing was acknowledged since %s", p.Topic, p.Index, a.last.Format(time.TimeOnly))
		}
	}
	return nil
}

// recovered says how long it took after the last fault until every partition of a topic was acknowledged again, and which was
// the last. All of them were: see silent.
func (l *ledger) recovered(topic string) (worst history.Partition, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, a := range l.acks {
		if d := a.back.Sub(l.healed); p.Topic == topic && d > took {
			worst, took = p, d
		}
	}
	return worst, took
}

// weigh notes how busy the machine is.
func (l *ledger) weigh() {
	now := load()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.load = max(l.load, now)
}

// counts is how many acknowledgements came in every partition of a topic up to now.
func (l *ledger) counts(topic string) map[history.Partition]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[history.Partition]int{}
	for p, a := range l.acks {
		if p.Topic == topic {
			n[p] = a.n
		}
	}
	return n
}

// acknowledged is how many records of a topic were.
func (l *ledger) acknowledged(topic string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.h.Produces {
		if w := &l.h.Produces[i]; w.Topic == topic && w.Outcome == history.Done {
			n++
		}
	}
	return n
}

// figures are what is printed of a round.
func (l *ledger) figures() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var acked, committed, aborted, unknown int
	for i := range l.h.Produces {
		if l.h.Produces[i].Outcome == history.Done {
			acked++
		}
	}
	for _, t := range l.h.Txns {
		switch t.Outcome {
		case history.Done:
			committed++
		case history.Not:
			aborted++
		default:
			unknown++
		}
	}
	return fmt.Sprintf("%d records acknowledged of %d; %d transactions committed, %d aborted, %d unknown; %d reads; %d offsets committed, %d asked for; load average up to %.1f",
		acked, len(l.h.Produces), committed, aborted, unknown, len(l.h.Reads), len(l.h.Commits), len(l.h.Offsets), l.load)
}

// longest lists the longest time without an acknowledgement of every partition.
func (l *ledger) longest() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, p := range partitionsOf(l.acks) {
		fmt.Fprintf(&b, " %s-%d %.1fs", p.Topic, p.Index, l.acks[p].longest.length().Seconds())
	}
	return b.String()
}

// gaps tells of every long time without acknowledgements when it was, in seconds of the run, and of the faults that lasted
// meanwhile. worst is by how much the longest of these faults was shorter, at most: what is not explained by it alone.
func (l *ledger) gaps(began time.Time) (lines []string, worst time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := func(g gap) string {
		return fmt.Sprintf("%.1fs to %.1fs", g.from.Sub(began).Seconds(), g.to.Sub(began).Seconds())
	}
	for _, p := range partitionsOf(l.acks) {
		for _, g := range l.acks[p].gaps {
			line := fmt.Sprintf("%s-%d was without an acknowledgement for %.1fs, %s:", p.Topic, p.Index, g.length().Seconds(), at(g))
			covers := time.Duration(0)
			for _, f := range l.faults {
				if f.from.Before(g.to) && g.from.Before(f.to) {
					line += fmt.Sprintf(" %s (%s)", f.what, at(f.gap))
					covers = max(covers, gap{later(f.from, g.from), earlier(f.to, g.to)}.length())
				}
			}
			if covers == 0 {
				line += " no fault"
			}
			lines = append(lines, line)
			worst = max(worst, g.length()-covers)
		}
	}
	return lines, worst
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (l *ledger) write(file string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return json.NewEncoder(f).Encode(&l.h)
}
