// Package cleaner is log compaction as a function of batches: which records of a log are the newest of their keys, and
// what remains of each batch.
//
// A Round goes over a log twice. Scan notes the newest offset of every key in the dirty range, in a Table of bounded
// size; Filter then takes from every batch below the table's end what Kafka's rules let go. What the table could not
// hold is left for the next round.
//
//	log start           dirty start                 end of the table       first uncleanable offset
//	    |  clean: each key once  |  dirty, in the table     |  dirty, untouched     |
//	    +------------------------+--------------------------+-----------------------+-----------
//	Filter: ---------------------------------------------->|
//	Scan:                         ------------------------>|
//
// After the round, the end of its table is the next dirty start. The rules are those of Kafka's cleaner and of
// KIP-534:
//
//   - A record goes if its key has a newer one below the end; one without a key goes at once.
//   - A tombstone (null value) that is the newest of its key stays until its delete horizon. The first round that has
//     the whole batch in its table sets the horizon: now + delete.retention.ms, in the place of the base timestamp.
//   - What a transaction wrote that was aborted goes and never counts as the newest of its key. A marker stays while
//     any batch of its transaction does, and from then on until a horizon of its own. The entry of an aborted
//     transaction stays exactly as long as its marker: without the entry a reader would take what is left of the
//     transaction for committed, without the marker it would take for aborted what comes after.
//   - The batch that a producer's epoch and sequence are known from stays, emptied if need be.
//   - Offsets never change, nor does the range of a batch that stays.
//
// Where the rules of Kafka's cleaner leave something to chance, this is stricter. A batch that the table's end cuts in two gets
// no horizon yet and, if it was aborted, stays whole: its tombstones have not met the older records that they delete. A
// marker that a producer's epoch is known from keeps its record, for an emptied one says nothing. And a log that
// contradicts the list of aborted transactions is an error.
//
// The package is pure: no clock, no disk, no goroutine.
package cleaner

import (
	"cmp"
	"errors"
	"fmt"
	"math"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

var (
	// ErrOrder says that batches came in another order than that of their offsets.
	ErrOrder = errors.New("cleaner: batch out of order")
	// ErrTransactions says that the log contradicts the list of aborted transactions.
	ErrTransactions = errors.New("cleaner: the aborted transactions are not those of the log")
)

// DefaultWindow is the Window of Options that do not say.
const DefaultWindow = 16 << 20

// KeepCodec is compression.type=producer: every batch keeps its codec.
const KeepCodec batch.Codec = -1

// Options are what one round goes by.
type Options struct {
	// DirtyStart is the end of the last completed round: below it, every key is there once, and no tombstone has an
	// older record.
	DirtyStart int64
	// End is the first offset that may not be cleaned: at most the first offset of the earliest open transaction.
	End int64
	// Now is the time of the round and DeleteRetention the topic's delete.retention.ms, both in ms.
	Now, DeleteRetention int64

	// Codec and Level are compression.type and its level, for batches that are made anew; Level does not count with
	// KeepCodec. A batch of which nothing goes stays as it is, whatever its codec, as in Kafka.
	Codec batch.Codec
	Level int
	// Checked says that whoever read the batches has held all their bytes against a checksum. Otherwise Scan and Filter
	// do: what is written anew would hide that it was damaged.
	Checked bool
	// Window is how much of one inflated batch is held at one time, in bytes; 0: 16 MiB. What inflates to more is gone over
	// piece by piece, twice if it has to be made anew, and then keeps its codec: under a weaker one it might become
	// enormous.
	Window int
	// Hold, if not nil, is asked for leave to hold so many bytes beside that, for one batch whose codec cannot do with
	// less. release gives them back.
	Hold func(bytes int64) (release func(), err error)
	// Check, if not nil, is asked now and then while a batch that inflates to much is gone over. Its error ends that.
	Check func() error

	// Aborted lists the aborted transactions with an offset in what is scanned or filtered, also those whose marker is
	// above that.
	Aborted []producer.Aborted
	// Open lists the transactions that are open where filtering begins, if that is not at the log start.
	Open []producer.OpenTxn
	// Producers is what is known of the producers at End or later, for the batches that must stay for it. Nil: no
	// batch stays for its producer.
	Producers *producer.State
}

// Round is one round of compaction of one partition. It is used in this order: Scan the batches from DirtyStart up to
// End, until it says that the table is complete or full; Filter all batches from the log start up to the end of the
// table, in the order of their offsets, and commit what Filter leaves in that order too: a tombstone or marker must not
// be gone before what it deletes. Only when all is committed is TableEnd the next dirty start.
//
// Without any Scan it is a pass over the clean range that only takes what has reached its delete horizon; it may Filter
// any part of that. And a round may go on where one that was broken off had come to: with the same DirtyStart, and for
// End the end of that one's table. It comes to the same table, or with less memory to a smaller one, which is then the
// one that counts.
type Round struct {
	o       Options
	table   *Table
	end     int64           // of the table
	full    bool            // the table has refused a key, at end
	last    map[int64]int64 // by producer, the last offset of the batch that must stay
	sieve   batch.Sieve
	scanned transactions
	txns    transactions
	next    int64 // what has been filtered ends here
	sum     Summary

	// Of the batch that is filtered. What is counted counts as it is when the sieve has opened the batch: to build it, it
	// may ask again.
	passed            bool  // its horizon
	tombstones, nulls int64 // bytes of tombstones that stay; records without a key

	note, stay func(batch.Header, *batch.Record) bool // noteKey, stays
}

// Summary is what a section is made of: what came in and what remained.
type Summary struct {
	BatchesIn, RecordsIn, BytesIn int64
	Batches, Records, Bytes       int64
	Emptied                       int64 // batches that remain without a record
	NullKeys                      int64 // records that went because they have no key
	Rewritten                     int64 // batches that remain with other bytes
	// HorizonBytes is about what goes when the delete horizons of what remains have passed, and Horizon the latest of
	// them. A marker that stays for another reason too is not among it.
	Horizon, HorizonBytes int64
	// Aborted lists the aborted transactions whose marker is in the section and remains: the section's footer lists
	// these and no others.
	Aborted []producer.Aborted
}

// Changed tells whether what remains is not what came in.
func (s *Summary) Changed() bool { return s.Rewritten > 0 || s.Batches < s.BatchesIn }

// NewRound begins a round. The table is emptied with Reset by its owner, who may know how many records the dirty range
// has.
func NewRound(o Options, t *Table) *Round {
	r := &Round{o: o, table: t, end: min(o.DirtyStart, o.End), last: make(map[int64]int64),
		scanned: follow(o.Aborted, nil), txns: follow(o.Aborted, o.Open)}
	r.o.Window = cmp.Or(o.Window, DefaultWindow)
	r.sieve.Check = o.Check
	r.note, r.stay = r.noteKey, r.stays
	if o.Producers != nil {
		for p := range o.Producers.Producers() {
			r.last[p.ID] = p.StateOffset
		}
	}
	return r
}

// TableEnd is the offset below which the table knows the newest record of every key of the dirty range.
func (r *Round) TableEnd() int64 { return r.end }

// Full tells whether the table could not hold all keys below End. Another round goes on at TableEnd.
func (r *Round) Full() bool { return r.full }

// Scan notes the keys of b, which is exactly one batch, h its header. more is false when nothing further needs to be
// scanned.
func (r *Round) Scan(h batch.Header, b []byte) (more bool, err error) {
	switch {
	case r.full:
		return false, nil
	case h.BaseOffset >= r.o.End: // what was there of the range before has been seen
		r.end = r.o.End
		return false, nil
	case h.NextOffset() <= r.end:
		return true, nil
	}
	if err := r.scan(h, b); err != nil {
		return false, fmt.Errorf("scan of the batch at %d: %w", h.BaseOffset, err)
	}
	if !r.full {
		r.end = min(h.NextOffset(), r.o.End)
	}
	return r.end < r.o.End && !r.full, nil
}

func (r *Round) scan(h batch.Header, b []byte) error {
	if err := r.check(h, b); err != nil {
		return err
	}
	if h.Control() {
		commit, _, err := batch.ControlMarker(b)
		if err == nil {
			_, _, _, err = r.scanned.end(h, commit)
		}
		return ignoreControl(err)
	}
	if r.scanned.data(h) {
		return nil
	}
	release, err := r.hold(b)
	if err != nil {
		return err
	}
	defer release()
	return r.sieve.Open(b, r.o.Window, r.note)
}

// noteKey is what Scan does with a record.
func (r *Round) noteKey(h batch.Header, rec *batch.Record) bool {
	offset := h.BaseOffset + int64(rec.OffsetDelta)
	if r.full || rec.Key == nil || offset < r.o.DirtyStart || offset >= r.o.End {
		return true
	}
	if !r.table.Put(rec.Key, offset) {
		r.full, r.end = true, offset
	}
	return true
}

// Filter returns what remains of b, which is exactly one batch, h its header: b itself, other bytes that are valid
// until the next call, or nil. last says that it is the last batch of a section: it stays, emptied if need be, so that
// the bytes of an object reach as far as its range.
func (r *Round) Filter(h batch.Header, b []byte, last bool) ([]byte, error) {
	if h.BaseOffset < r.next {
		return nil, fmt.Errorf("%w: at %d, after one that ends before %d", ErrOrder, h.BaseOffset, r.next)
	}
	out, err := r.filter(h, b, last)
	if err != nil {
		return nil, fmt.Errorf("batch at %d: %w", h.BaseOffset, err)
	}
	r.next = h.NextOffset()
	r.sum.BatchesIn++
	r.sum.RecordsIn += int64(max(h.RecordCount, 0))
	r.sum.BytesIn += int64(len(b))
	if out == nil {
		return nil, nil
	}
	kept, err := batch.ParseHeader(out)
	if err != nil {
		return nil, err
	}
	r.sum.Batches++
	r.sum.Records += int64(max(kept.RecordCount, 0))
	r.sum.Bytes += int64(len(out))
	if kept.RecordCount == 0 {
		r.sum.Emptied++
	}
	if &out[0] != &b[0] {
		r.sum.Rewritten++
	}
	return out, nil
}

// Cut returns the summary of what was filtered since the last Cut, or since the beginning.
func (r *Round) Cut() Summary {
	s := r.sum
	r.sum = Summary{}
	return s
}

func (r *Round) filter(h batch.Header, b []byte, last bool) ([]byte, error) {
	if err := r.check(h, b); err != nil {
		return nil, err
	}
	if at, ok := r.last[h.ProducerID]; ok && at == h.LastOffset() {
		last = true
	}
	if h.Control() {
		return r.marker(h, b, last)
	}
	aborted := r.txns.data(h)
	out, err := r.data(h, b, aborted, last)
	if err == nil && out != nil {
		r.txns.keep(h)
	}
	return out, err
}

// data is Filter for a batch of data. stay says that the batch stays even without a record.
func (r *Round) data(h batch.Header, b []byte, aborted, stay bool) ([]byte, error) {
	whole := h.NextOffset() <= r.end
	if h.BaseOffset >= r.end || aborted && !whole {
		return b, nil
	}
	if aborted || h.RecordCount == 0 {
		return emptied(h, b, stay), nil
	}
	release, err := r.hold(b)
	if err != nil {
		return nil, err
	}
	defer release()
	r.passed, r.tombstones, r.nulls = h.HasDeleteHorizon() && r.o.Now >= h.BaseTimestamp, 0, 0
	if err := r.sieve.Open(b, r.o.Window, r.stay); err != nil {
		return nil, err
	}
	tombstones := r.tombstones
	r.sum.NullKeys += r.nulls
	set := tombstones > 0 && whole && !h.HasDeleteHorizon()
	if tombstones > 0 && whole {
		r.expect(h, tombstones)
	}
	switch {
	case r.sieve.Kept() == 0:
		return emptied(h, b, stay), nil
	case r.sieve.Dropped() == 0 && !set:
		return b, nil
	}
	codec, level := r.o.Codec, r.o.Level
	if codec == KeepCodec || r.sieve.Large() && h.Codec() != batch.None && h.Codec() != codec {
		codec, level = h.Codec(), batch.DefaultLevel
	}
	if set {
		return r.sieve.BuildHorizon(codec, level, r.horizon())
	}
	return r.sieve.Build(codec, level)
}

// stays is what Filter does with a record of data.
func (r *Round) stays(h batch.Header, rec *batch.Record) bool {
	offset := h.BaseOffset + int64(rec.OffsetDelta)
	switch {
	case offset >= r.end:
		return true
	case rec.Key == nil:
		r.nulls++
		return false
	case offset < r.table.Newest(rec.Key):
		return false
	case rec.Value != nil:
		return true
	case r.passed:
		return false
	}
	r.tombstones += int64(len(rec.Key)) + recordOverhead
	return true
}

// recordOverhead is about what a tombstone takes beside its key.
const recordOverhead = 8

// marker is Filter for a control batch, which stays whole or goes.
func (r *Round) marker(h batch.Header, b []byte, stay bool) ([]byte, error) {
	commit, _, err := batch.ControlMarker(b)
	if errors.Is(err, batch.ErrControl) {
		return b, nil // no transaction ends here
	}
	if err != nil {
		return nil, err
	}
	a, listed, empty, err := r.txns.end(h, commit)
	if err != nil {
		return nil, err
	}
	empty = empty && h.NextOffset() <= r.end
	if empty && !stay && h.HasDeleteHorizon() && r.o.Now >= h.BaseTimestamp {
		return nil, nil
	}
	if listed {
		r.sum.Aborted = append(r.sum.Aborted, a)
	}
	if empty {
		if !stay { // one that stays would be waited for in vain
			r.expect(h, int64(len(b)))
		}
		if !h.HasDeleteHorizon() {
			if err := r.sieve.Open(b, r.o.Window, func(batch.Header, *batch.Record) bool { return true }); err != nil {
				return nil, err
			}
			return r.sieve.BuildHorizon(h.Codec(), batch.DefaultLevel, r.horizon())
		}
	}
	return b, nil
}

// hold asks for leave to hold what b needs beside the window.
func (r *Round) hold(b []byte) (release func(), err error) {
	if r.o.Hold != nil {
		if n := batch.Held(b); n > 0 {
			return r.o.Hold(n)
		}
	}
	return func() {}, nil
}

// expect notes what goes when the horizon of h has passed: the one it has, or the one that it gets.
func (r *Round) expect(h batch.Header, bytes int64) {
	at := r.horizon()
	if h.HasDeleteHorizon() {
		at = h.BaseTimestamp
	}
	r.sum.Horizon = max(r.sum.Horizon, at)
	r.sum.HorizonBytes += bytes
}

func (r *Round) horizon() int64 {
	if r.o.Now > math.MaxInt64-r.o.DeleteRetention {
		return math.MaxInt64
	}
	return r.o.Now + r.o.DeleteRetention
}

// emptied is what remains of a batch without records.
func emptied(h batch.Header, b []byte, stay bool) []byte {
	switch {
	case !stay:
		return nil
	case h.RecordCount == 0:
		return b
	}
	return batch.Empty(h)
}

// check looks at the header and, where nobody has, holds the bytes against their checksum.
func (r *Round) check(h batch.Header, b []byte) error {
	if h.LastOffsetDelta < 0 || h.BaseOffset < 0 || h.BaseOffset > math.MaxInt64-1-int64(h.LastOffsetDelta) || h.RecordCount < 0 {
		return fmt.Errorf("%w: offsets %d + %d, %d records", batch.ErrRecord, h.BaseOffset, h.LastOffsetDelta, h.RecordCount)
	}
	if r.o.Checked {
		return nil
	}
	return batch.VerifyCRC(b)
}

func ignoreControl(err error) error {
	if errors.Is(err, batch.ErrControl) {
		return nil
	}
	return err
}
