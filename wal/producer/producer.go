// Package producer folds the batches of one partition into what the broker must know of the producers that wrote
// them: which sequence number each may send next, which of its retries are already in the log, which
// transactions are open, and which were aborted.
//
// The state is a fold: State.Apply, in offset order, over the batches of the log is the only thing that changes
// what is known of a producer, at run time, at recovery and when an object's footer is made. State.Check decides
// about a batch before it is appended and changes nothing. Two parties that start from the same snapshot and
// apply the same batches therefore agree, byte for byte in what Encode returns, as long as they also agree on when
// Expire, TrimAborted and Commit were called.
//
// The package is pure: no clock, no disk, no lock. A State is not safe for concurrent use; its owner holds the
// partition's lock.
package producer

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/varve/varve/wal/batch"
)

const (
	// Remembered is how many of its latest batches are remembered for each producer. A producer may have that
	// many requests in flight and so retry any of them.
	Remembered = 5

	// DefaultLimit is how many producers are remembered for a partition. Nothing limits how many producer ids a
	// client asks for, so something must limit what each of them leaves here.
	DefaultLimit = 10_000

	// maxDecided bounds the list of transactions whose marker is not known to be committed yet.
	maxDecided = 256

	noOffset         = -1
	noCoordinator    = -1
	codeOutOfOrder   = 45 // OUT_OF_ORDER_SEQUENCE_NUMBER
	codeEpoch        = 47 // INVALID_PRODUCER_EPOCH
	codeTxnState     = 48 // INVALID_TXN_STATE
	codeCoordinator  = 52 // TRANSACTION_COORDINATOR_FENCED
	codeTooManyOpen  = 89 // THROTTLING_QUOTA_EXCEEDED
	strictTxnVersion = 2
)

// State is what is known of the producers of one partition.
type State struct {
	limit   int
	entries map[int64]*entry

	open    []OpenTxn // ascending by first offset
	aborted []Aborted // ascending by last offset, which is the order of their markers
	decided []decided // ended, with a marker not known to be below the high watermark; ascending by last offset
}

type entry struct {
	epoch            int16
	batches          int8 // how many of last are in use
	coordinatorEpoch int32
	lastTimestamp    int64 // of the last batch or marker, as stamped
	lastOffset       int64 // of the last batch or marker
	txnFirst         int64 // first offset of the open transaction, or noOffset
	last             [Remembered]sent

	// seen is when Expire or Late first saw the producer after its last write, 0 before that. It is not part of
	// what replicas agree on.
	seen int64
}

type sent struct {
	lastSeq    int32
	delta      int32 // last offset - first offset
	lastOffset int64
	timestamp  int64
}

func (s sent) firstOffset() int64 { return s.lastOffset - int64(s.delta) }

func (s sent) firstSeq() int32 {
	if s.lastSeq < s.delta {
		return int32(int64(s.lastSeq) - int64(s.delta) + math.MaxInt32 + 1)
	}
	return s.lastSeq - s.delta
}

func (e *entry) lastSeq() int32 {
	if e.batches == 0 {
		return batch.NoSequence
	}
	return e.last[e.batches-1].lastSeq
}

func (e *entry) stateOffset() int64 {
	if e.batches == 0 {
		return e.lastOffset
	}
	return e.last[e.batches-1].lastOffset
}

func (e *entry) setEpoch(epoch int16) {
	if e.epoch != epoch {
		e.epoch, e.batches = epoch, 0
	}
}

func (e *entry) remember(s sent) {
	if e.batches == Remembered {
		copy(e.last[:], e.last[1:])
		e.batches--
	}
	e.last[e.batches] = s
	e.batches++
}

// OpenTxn is a transaction that has data in the partition and no marker yet.
type OpenTxn struct {
	ProducerID  int64
	FirstOffset int64
}

// Aborted is a transaction that ended with an abort marker, as Fetch lists it for read_committed consumers.
type Aborted struct {
	ProducerID  int64
	FirstOffset int64
	LastOffset  int64 // of the marker
	// LastStableOffset is where the log was stable just after this transaction ended. A reader that is done
	// below it needs none of the later aborted transactions.
	LastStableOffset int64
}

type decided struct{ first, last int64 }

// Producer is what DescribeProducers shows.
type Producer struct {
	ID               int64
	Epoch            int16
	LastSequence     int32 // -1: none in this epoch
	LastTimestamp    int64
	CoordinatorEpoch int32 // -1: no marker yet
	TxnFirstOffset   int64 // -1: no open transaction
	// StateOffset is the last offset of the batch that LastSequence is from or, without one in this epoch, of the
	// producer's last batch or marker. Who folds a log that still holds it learns epoch and sequence from it.
	StateOffset int64
}

// New returns the state of an empty log.
func New() *State { return &State{limit: DefaultLimit} }

// SetLimit bounds how many producers are remembered. Those that wrote last longest ago are forgotten first,
// a few at a time; one with an open transaction never is.
func (s *State) SetLimit(n int) { s.limit = max(n, 1) }

// Limit is how many producers are remembered.
func (s *State) Limit() int { return s.limit }

// Known says whether anything is known of a producer's batches.
func (s *State) Known(id int64) bool {
	e := s.entries[id]
	return e != nil && (e.batches > 0 || e.epoch != batch.NoProducerEpoch)
}

// InTransaction says whether a producer has a transaction open, and its epoch.
func (s *State) InTransaction(id int64) (epoch int16, open bool) {
	e := s.entries[id]
	if e == nil {
		return batch.NoProducerEpoch, false
	}
	return e.epoch, e.txnFirst != noOffset
}

// Len is the number of producers remembered.
func (s *State) Len() int { return len(s.entries) }

// Clone returns a copy that shares nothing with s.
func (s *State) Clone() *State {
	c := &State{limit: s.limit, open: slices.Clone(s.open), aborted: slices.Clone(s.aborted), decided: slices.Clone(s.decided)}
	if len(s.entries) > 0 {
		c.entries = make(map[int64]*entry, len(s.entries))
		all := make([]entry, 0, len(s.entries))
		for id, e := range s.entries {
			all = append(all, *e)
			c.entries[id] = &all[len(all)-1]
		}
	}
	return c
}

// Kind is what to do with a batch.
type Kind int8

const (
	Accept    Kind = iota // append it
	Duplicate             // it is in the log: answer with the offset it got then
	Refuse                // answer with the error
)

// Verdict is the answer of Check.
type Verdict struct {
	Kind       Kind
	BaseOffset int64 // Duplicate: of the batch in the log
	LastOffset int64 // Duplicate
	Timestamp  int64 // Duplicate: its max timestamp, which is the append time in a topic that stamps that
	Code       int16 // Refuse: Kafka's error code
	Message    string
}

func refuse(code int16, format string, args ...any) Verdict {
	return Verdict{Kind: Refuse, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Check decides about a data batch that is about to be appended. A batch without a producer id is accepted; one
// without a sequence (what the group coordinator writes for a transaction) is held to its epoch only. Several
// batches of one append are checked and applied in turn.
//
// The rules, in this order:
//   - the same epoch and exactly the sequence range of one of the last five batches: Duplicate;
//   - an epoch below the known one: INVALID_PRODUCER_EPOCH;
//   - a new epoch begins with sequence 0, a known one goes on where it was, with 0 after 2^31-1:
//     otherwise OUT_OF_ORDER_SEQUENCE_NUMBER;
//   - a producer that is not known, because retention took its batches or it was idle for long, may begin
//     with any sequence: it cannot be told from one whose first batch this is;
//   - no plain batch in the middle of a transaction: INVALID_TXN_STATE.
//
// No rule depends on the time.
func (s *State) Check(h batch.Header, _ int64) Verdict {
	if !h.HasProducer() {
		return Verdict{}
	}
	e := s.entries[h.ProducerID]
	if e == nil {
		if len(s.entries) >= s.limit && len(s.open) >= s.limit && h.Transactional() {
			return refuse(codeTooManyOpen, "%d transactions are open in this partition; end some first", len(s.open))
		}
		return Verdict{}
	}
	sequenced := h.BaseSequence >= 0
	if sequenced && h.ProducerEpoch == e.epoch {
		first, last := h.BaseSequence, h.LastSequence()
		for _, b := range e.last[:e.batches] {
			if b.lastSeq == last && b.firstSeq() == first {
				return Verdict{Kind: Duplicate, BaseOffset: b.firstOffset(), LastOffset: b.lastOffset, Timestamp: b.timestamp}
			}
		}
	}
	switch {
	case h.ProducerEpoch < e.epoch:
		return refuse(codeEpoch, "producer %d is at epoch %d, this batch is of epoch %d", h.ProducerID, e.epoch, h.ProducerEpoch)
	case !sequenced:
	case h.ProducerEpoch != e.epoch:
		if h.BaseSequence != 0 && e.epoch != batch.NoProducerEpoch {
			return refuse(codeOutOfOrder, "producer %d begins epoch %d with sequence %d", h.ProducerID, h.ProducerEpoch, h.BaseSequence)
		}
	default:
		if want := next(e.lastSeq()); h.BaseSequence != want {
			return refuse(codeOutOfOrder, "producer %d sent sequence %d, expected %d", h.ProducerID, h.BaseSequence, want)
		}
	}
	if e.txnFirst != noOffset && !h.Transactional() {
		return refuse(codeTxnState, "producer %d has a transaction open since offset %d and sent a batch outside of it", h.ProducerID, e.txnFirst)
	}
	return Verdict{}
}

func next(seq int32) int32 {
	if seq == math.MaxInt32 {
		return 0
	}
	return seq + 1 // NoSequence: 0
}

// CheckMarker decides about a marker that a transaction coordinator wants to have written. From transaction
// version 2 on (KIP-890) the coordinator raises the epoch before it ends a transaction, so a marker of the
// known epoch is late, unless no transaction is open: then it is a retry and does no harm.
func (s *State) CheckMarker(producerID int64, epoch int16, coordinatorEpoch int32, txnVersion int16) Verdict {
	e := s.entries[producerID]
	if e == nil {
		return Verdict{}
	}
	late := epoch < e.epoch || (txnVersion >= strictTxnVersion && epoch == e.epoch && e.txnFirst != noOffset)
	switch {
	case late:
		return refuse(codeEpoch, "producer %d is at epoch %d, this marker is of epoch %d", producerID, e.epoch, epoch)
	case coordinatorEpoch < e.coordinatorEpoch:
		return refuse(codeCoordinator, "coordinator epoch %d is known for producer %d, this marker is of epoch %d",
			e.coordinatorEpoch, producerID, coordinatorEpoch)
	}
	return Verdict{}
}

// Apply folds one batch of the log, whose offsets are assigned; b is the whole batch, which only control batches
// need. It is the only mutator and takes what the log holds as decided: a replica applies what its leader
// accepted. A control batch that is no transaction marker, and one that compaction has emptied, changes nothing.
func (s *State) Apply(h batch.Header, b []byte) {
	if !h.HasProducer() {
		return
	}
	if h.Control() {
		if commit, coordinatorEpoch, err := batch.ControlMarker(b); err == nil {
			s.end(h, commit, coordinatorEpoch)
		}
		return
	}
	e := s.entry(h.ProducerID)
	e.setEpoch(h.ProducerEpoch)
	if h.BaseSequence >= 0 {
		e.remember(sent{lastSeq: h.LastSequence(), delta: h.LastOffsetDelta, lastOffset: h.LastOffset(), timestamp: h.MaxTimestamp})
	}
	e.lastTimestamp, e.lastOffset, e.seen = h.MaxTimestamp, h.LastOffset(), 0
	if h.Transactional() && e.txnFirst == noOffset {
		e.txnFirst = h.BaseOffset
		at, _ := slices.BinarySearchFunc(s.open, h.BaseOffset, byFirst)
		s.open = slices.Insert(s.open, at, OpenTxn{h.ProducerID, h.BaseOffset})
	}
	s.evict(h.ProducerID)
}

// ApplyRun folds a run of batches.
func (s *State) ApplyRun(run []byte) error {
	return batch.Walk(run, func(h batch.Header, b []byte) error {
		s.Apply(h, b)
		return nil
	})
}

func byFirst(t OpenTxn, first int64) int { return cmp.Compare(t.FirstOffset, first) }

func (s *State) end(h batch.Header, commit bool, coordinatorEpoch int32) {
	e := s.entry(h.ProducerID)
	if first := e.txnFirst; first != noOffset {
		if at, ok := slices.BinarySearchFunc(s.open, first, byFirst); ok {
			s.open = slices.Delete(s.open, at, at+1)
		}
		last := h.LastOffset()
		if !commit {
			stable := last + 1
			if len(s.open) > 0 {
				stable = s.open[0].FirstOffset
			}
			s.aborted = append(s.aborted, Aborted{h.ProducerID, first, last, stable})
		}
		s.decide(decided{first, last})
	}
	// A marker of the same epoch leaves the sequence where it was; one of a later epoch starts it again.
	e.setEpoch(h.ProducerEpoch)
	e.coordinatorEpoch = coordinatorEpoch
	e.lastTimestamp, e.lastOffset, e.txnFirst, e.seen = h.MaxTimestamp, h.LastOffset(), noOffset, 0
	s.evict(h.ProducerID)
}

// decide remembers an ended transaction until its marker is committed. When there are too many, the oldest are
// taken for one: what is stable is then known later, never too early.
func (s *State) decide(d decided) {
	if len(s.decided) == maxDecided {
		half := s.decided[:maxDecided/2]
		one := decided{half[0].first, half[len(half)-1].last}
		for _, d := range half {
			one.first = min(one.first, d.first)
		}
		s.decided = append(s.decided[:0], append([]decided{one}, s.decided[maxDecided/2:]...)...)
	}
	s.decided = append(s.decided, d)
}

func (s *State) entry(id int64) *entry {
	e := s.entries[id]
	if e == nil {
		if s.entries == nil {
			s.entries = make(map[int64]*entry)
		}
		e = &entry{epoch: batch.NoProducerEpoch, coordinatorEpoch: noCoordinator, lastTimestamp: batch.NoTimestamp, txnFirst: noOffset}
		s.entries[id] = e
	}
	return e
}

// evict forgets an eighth of the producers when there are too many: those whose last write lies furthest back in the
// log. The log's order is used and not the stamped time, which is the client's to choose.
func (s *State) evict(keep int64) {
	if len(s.entries) <= s.limit {
		return
	}
	ids := make([]int64, 0, len(s.entries))
	for id, e := range s.entries {
		if e.txnFirst == noOffset && id != keep {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b int64) int {
		return cmp.Or(cmp.Compare(s.entries[a].lastOffset, s.entries[b].lastOffset), cmp.Compare(a, b))
	})
	n := min(len(ids), len(s.entries)-s.limit+s.limit/8)
	for _, id := range ids[:n] {
		delete(s.entries, id)
	}
}

// Expire forgets the producers that have not written for expirationMs and have no open transaction. What counts is
// the time at which Expire itself first found a write, not the time stamped on the batch: data from years ago
// that is produced today must be as safe from duplicates as any other. So a producer lives at least
// expirationMs after its last write, and at most one interval between calls longer; after a restart all live
// that long again.
func (s *State) Expire(nowMs, expirationMs int64) {
	maps.DeleteFunc(s.entries, func(_ int64, e *entry) bool {
		if e.seen == 0 {
			e.seen = max(nowMs, 1)
		}
		return e.txnFirst == noOffset && nowMs-e.seen >= expirationMs
	})
}

// Late says whether a transaction is open whose producer has written nothing for longer than afterMs, counted from the
// first call of Late or Expire that saw its last write: what clients stamp is not trusted here.
func (s *State) Late(nowMs, afterMs int64) bool {
	late := false
	for _, t := range s.open {
		e := s.entries[t.ProducerID]
		if e.seen == 0 {
			e.seen = max(nowMs, 1)
		}
		late = late || nowMs-e.seen > afterMs
	}
	return late
}

// FirstUnstable returns the first offset of the earliest open transaction. See LastStable for what a consumer may
// see.
func (s *State) FirstUnstable() (offset int64, ok bool) {
	if len(s.open) == 0 {
		return 0, false
	}
	return s.open[0].FirstOffset, true
}

// LastStable returns the last stable offset: below it, every transaction has ended with a marker that is itself
// below the high watermark. An ended transaction with its marker above stays unstable, for that marker may
// still be cut off with the log's end and the transaction end the other way.
func (s *State) LastStable(highWatermark int64) int64 {
	stable := highWatermark
	if first, ok := s.FirstUnstable(); ok {
		stable = min(stable, first)
	}
	for i := len(s.decided) - 1; i >= 0 && s.decided[i].last >= highWatermark; i-- {
		stable = min(stable, s.decided[i].first)
	}
	return stable
}

// Commit says that the high watermark has reached offset, so that ended transactions below it need not be
// remembered for LastStable. It is a hint: without it, the list stays bounded all the same.
func (s *State) Commit(highWatermark int64) {
	n := sort.Search(len(s.decided), func(i int) bool { return s.decided[i].last >= highWatermark })
	s.decided = slices.Delete(s.decided, 0, n)
}

// Open returns the open transactions, ascending by first offset.
func (s *State) Open() []OpenTxn { return slices.Clone(s.open) }

// Producers iterates over the producers by ascending id.
func (s *State) Producers() iter.Seq[Producer] {
	return func(yield func(Producer) bool) {
		for _, id := range s.ids() {
			e := s.entries[id]
			if !yield(Producer{ID: id, Epoch: e.epoch, LastSequence: e.lastSeq(), LastTimestamp: e.lastTimestamp,
				CoordinatorEpoch: e.coordinatorEpoch, TxnFirstOffset: e.txnFirst, StateOffset: e.stateOffset()}) {
				return
			}
		}
	}
}

func (s *State) ids() []int64 { return slices.Sorted(maps.Keys(s.entries)) }

// Aborted returns the aborted transactions that have an offset in [from, to), ascending by marker.
func (s *State) Aborted(from, to int64) []Aborted {
	i := sort.Search(len(s.aborted), func(i int) bool { return s.aborted[i].LastOffset >= from })
	var out []Aborted
	for _, a := range s.aborted[i:] {
		if a.FirstOffset < to {
			out = append(out, a)
		}
		if a.LastStableOffset >= to {
			break // what was decided later began at or above it
		}
	}
	return out
}

// RestoreAborted remembers again what TrimAborted forgot, of the time before
// everything that is remembered.
func (s *State) RestoreAborted(list []Aborted) {
	byLast := func(a, b Aborted) int { return cmp.Compare(a.LastOffset, b.LastOffset) }
	all := append(slices.Clone(list), s.aborted...)
	slices.SortFunc(all, byLast)
	s.aborted = slices.CompactFunc(all, func(a, b Aborted) bool { return a.LastOffset == b.LastOffset })
}

// TrimAborted forgets the aborted transactions that lie wholly below offset, where nobody reads here any more.
func (s *State) TrimAborted(below int64) {
	n := sort.Search(len(s.aborted), func(i int) bool { return s.aborted[i].LastOffset >= below })
	s.aborted = slices.Delete(s.aborted, 0, n)
}
