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
}

// acks is how acknowledgements came in one partition.
type acks struct {
	last    time.Time
	longest time.Duration // without one
	n       int
}

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

// expect begins the time that passes until the first acknowledgement.
func (l *ledger) expect(p history.Partition) { l.acks[p] = &acks{last: time.Now()} }

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
				now := time.Now()
				a.longest, a.last = max(a.longest, now.Sub(a.last)), now
				a.n++
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

// silent says where nothing was acknowledged since a time.
func (l *ledger) silent(since time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, a := range l.acks {
		if a.n == 0 || a.last.Before(since) {
			return fmt.Errorf("%s-%d: nothing was acknowledged since %s", p.Topic, p.Index, a.last.Format(time.TimeOnly))
		}
	}
	return nil
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
	var worst history.Partition
	var longest time.Duration
	for p, a := range l.acks {
		if a.longest > longest {
			worst, longest = p, a.longest
		}
	}
	return fmt.Sprintf("%d records acknowledged of %d; %d transactions committed, %d aborted, %d unknown; %d reads; %d offsets committed, %d asked for; longest without an acknowledgement %s in %s-%d",
		acked, len(l.h.Produces), committed, aborted, unknown, len(l.h.Reads), len(l.h.Commits), len(l.h.Offsets), longest.Round(time.Millisecond), worst.Topic, worst.Index)
}

// gaps lists the longest time without an acknowledgement of every partition.
func (l *ledger) gaps() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, p := range partitionsOf(l.acks) {
		fmt.Fprintf(&b, " %s-%d %.1fs", p.Topic, p.Index, l.acks[p].longest.Seconds())
	}
	return b.String()
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
