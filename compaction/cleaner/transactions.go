package cleaner

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// transactions follows the transactions of a log through one pass over it.
type transactions struct {
	aborted map[int64][]producer.Aborted // by producer, ascending
	open    map[int64]transaction
}

// transaction is what a pass has seen of one that has not ended yet.
type transaction struct {
	kept  bool // a batch of it remains, or may remain before the first one that was seen
	plain bool // a batch of it was not among the aborted ones
	gone  bool // a batch of it was
}

func follow(aborted []producer.Aborted, open []producer.OpenTxn) transactions {
	t := transactions{aborted: make(map[int64][]producer.Aborted), open: make(map[int64]transaction)}
	for _, a := range aborted {
		t.aborted[a.ProducerID] = append(t.aborted[a.ProducerID], a)
	}
	for _, l := range t.aborted {
		slices.SortFunc(l, func(a, b producer.Aborted) int { return cmp.Compare(a.LastOffset, b.LastOffset) })
	}
	for _, o := range open {
		t.open[o.ProducerID] = transaction{kept: true}
	}
	return t
}

// of returns the aborted transaction of a producer that offset lies in: in [first offset, marker].
func (t *transactions) of(producerID, offset int64) (producer.Aborted, bool) {
	l := t.aborted[producerID]
	i, _ := slices.BinarySearchFunc(l, offset, func(a producer.Aborted, offset int64) int {
		if a.LastOffset < offset {
			return -1
		}
		return 1
	})
	if i < len(l) && l[i].FirstOffset <= offset {
		return l[i], true
	}
	return producer.Aborted{}, false
}

// data notes a batch of data and tells whether it was aborted.
func (t *transactions) data(h batch.Header) (aborted bool) {
	if !h.Transactional() {
		return false
	}
	_, aborted = t.of(h.ProducerID, h.BaseOffset)
	x := t.open[h.ProducerID]
	x.gone, x.plain = x.gone || aborted, x.plain || !aborted
	t.open[h.ProducerID] = x
	return aborted
}

// keep notes that a batch of data remains.
func (t *transactions) keep(h batch.Header) {
	if h.Transactional() {
		x := t.open[h.ProducerID]
		x.kept = true
		t.open[h.ProducerID] = x
	}
}

// end notes a marker. empty says that nothing remains of its transaction.
//
// It also holds what it was told against the log: a list of aborted transactions that lacks one would have made its
// records count as committed, and one that has too many would lose committed records.
func (t *transactions) end(h batch.Header, commit bool) (a producer.Aborted, listed, empty bool, err error) {
	x := t.open[h.ProducerID]
	delete(t.open, h.ProducerID)
	a, listed = t.of(h.ProducerID, h.BaseOffset)
	switch {
	case commit && (x.gone || listed):
		err = fmt.Errorf("%w: the transaction of producer %d that is committed at %d is among the aborted ones", ErrTransactions, h.ProducerID, h.BaseOffset)
	case !commit && (x.plain || x.gone && !listed):
		err = fmt.Errorf("%w: the transaction of producer %d that is aborted at %d is not among the aborted ones", ErrTransactions, h.ProducerID, h.BaseOffset)
	case listed && a.LastOffset != h.BaseOffset:
		err = fmt.Errorf("%w: a transaction of producer %d is aborted at %d, not at %d", ErrTransactions, h.ProducerID, h.BaseOffset, a.LastOffset)
	}
	return a, listed, !x.kept, err
}
