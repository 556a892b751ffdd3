package txn

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/pattern"
)

// Config bounds and times what transactions do. While MaxTimeout is 0, every setting of Kafka's that is 0 takes its default;
// otherwise 0 means 0, as transaction.version may be. Of Varve's own bounds 0 always means the default.
type Config struct {
	MaxTimeout         time.Duration // transaction.max.timeout.ms
	Expiration         time.Duration // transactional.id.expiration.ms
	TransactionVersion int16         // the finalized level of the feature transaction.version

	// Bounds of Varve's own; Kafka leaves both to the size of a record.
	MaxPartitions int   // of one transaction
	MaxBytes      int64 // of the topics of one transaction, about as many as a record has
}

// Defaults of Config, Kafka's where Kafka has them.
const (
	DefaultMaxTimeout         = 15 * time.Minute
	DefaultExpiration         = 7 * 24 * time.Hour
	DefaultTransactionVersion = 2
	DefaultMaxPartitions      = 100_000
	DefaultMaxBytes           = 900 << 10 // so that a record is below the 1 MiB that a topic takes by default
)

func (c Config) filled() Config {
	if c.MaxTimeout == 0 {
		c.MaxTimeout = DefaultMaxTimeout
		c.Expiration = cmp.Or(c.Expiration, DefaultExpiration)
		c.TransactionVersion = cmp.Or(c.TransactionVersion, DefaultTransactionVersion)
	}
	c.MaxPartitions = cmp.Or(c.MaxPartitions, DefaultMaxPartitions)
	c.MaxBytes = cmp.Or(c.MaxBytes, DefaultMaxBytes)
	return c
}

// Shard is the transactional ids of one partition of __transaction_state. Its methods must not be called at the same time.
type Shard struct {
	cfg     Config
	epoch   int32 // of the coordinator
	entries map[string]*entry
	bytes   int64
	orders  uint64 // counts Prepare records
}

// entry is what a shard knows of one transactional id.
type entry struct {
	m       metadata
	version int // counts Settle, to catch results that were overtaken
	bytes   int64

	last     int16 // as in m; records without tags have no room for it
	unmarked map[place]struct{}
	order    uint64 // of the markers
}

// place is a partition that has no marker yet.
type place struct {
	topic     string
	partition int32
}

// NewShard returns a shard without transactional ids.
func NewShard(cfg Config) *Shard {
	return &Shard{cfg: cfg.filled(), epoch: -1, entries: map[string]*entry{}}
}

const (
	entryBytes = 256 // about what an id costs beside its length
	placeBytes = 64  // and a partition that has no marker
)

func (e *entry) size(id string) int64 {
	return entryBytes + int64(len(id)) + sizeOf(e.m.topics) + placeBytes*int64(len(e.unmarked))
}

// weigh counts an entry's memory anew.
func (s *Shard) weigh(id string, e *entry) {
	n := e.size(id)
	s.bytes += n - e.bytes
	e.bytes = n
}

// Bytes is about the memory that the shard holds.
func (s *Shard) Bytes() int64 { return s.bytes }

// Counts are the numbers of transactional ids by state.
func (s *Shard) Counts() (states [PrepareEpochFence + 1]int) {
	for _, e := range s.entries {
		states[e.m.state]++
	}
	return states
}

// Oldest is when the oldest of the transactions began that have not ended.
func (s *Shard) Oldest() (at time.Time, ok bool) {
	for _, e := range s.entries {
		if e.m.state == Ongoing {
			if t := time.UnixMilli(e.m.started); !ok || t.Before(at) {
				at, ok = t, true
			}
		}
	}
	return at, ok
}

// IDs are the transactional ids in order.
func (s *Shard) IDs() []string { return slices.Sorted(maps.Keys(s.entries)) }

// Has says whether the shard knows the transactional id.
func (s *Shard) Has(id string) bool { return s.entries[id] != nil }

// Ending says whether markers of the id's transaction are being written.
func (s *Shard) Ending(id string) bool {
	e := s.entries[id]
	return e != nil && e.m.state.prepared()
}

// Apply takes over what a record of the log says. It is the same for a log that is replayed and for records just committed,
// and does not mind which older records of the same key compaction has removed. Malformed records and those of unknown
// versions (ErrUnknownVersion) change nothing and are reported.
func (s *Shard) Apply(r Record) error {
	id, m, err := decode(r)
	if err != nil {
		return err
	}
	e := s.entries[id]
	if m == nil {
		if e != nil {
			s.bytes -= e.bytes
			delete(s.entries, id)
		}
		return nil
	}
	if e == nil {
		e = &entry{}
		s.entries[id] = e
	}
	e.m, e.last, e.unmarked = *m, m.last, nil
	if m.state.prepared() {
		s.orders++
		e.order = s.orders
		e.unmarked = make(map[place]struct{}, count(m.topics))
		for _, t := range m.topics {
			for _, p := range t.Partitions {
				e.unmarked[place{t.Topic, p}] = struct{}{}
			}
		}
	}
	s.weigh(id, e)
	return nil
}

// Settle takes over the part of a result that is not in the log. It comes after Apply of the result's records; the
// coordinator's epoch may have changed since Handle, so the markers that are to be written get theirs now.
func (s *Shard) Settle(_ time.Time, r Result) {
	e := s.entries[r.ID]
	if r.Markers != nil {
		r.Markers.CoordinatorEpoch, r.Markers.Order = s.epoch, e.order
	}
	if !r.settles || e == nil {
		return
	}
	if e.version != r.version {
		panic(fmt.Sprintf("txn: %q: a result decided at version %d settles at %d", r.ID, r.version, e.version))
	}
	e.version++
	e.last = r.last
	for _, t := range r.marked {
		for _, p := range t.Partitions {
			delete(e.unmarked, place{t.Topic, p})
		}
	}
	s.weigh(r.ID, e)
}

// Loaded says in which epoch the partition is led: after a replay, and again when the epoch has changed without one. It asks
// for all markers that are missing.
func (s *Shard) Loaded(epoch int32) (markers []Markers) {
	s.epoch = epoch
	for _, id := range s.IDs() {
		if e := s.entries[id]; e.m.state.prepared() {
			m := markersOf(id, e.m, e.left())
			m.CoordinatorEpoch, m.Order = epoch, e.order
			markers = append(markers, *m)
		}
	}
	return markers
}

func markersOf(id string, m metadata, topics []Topic) *Markers {
	return &Markers{ID: id, ProducerID: m.producerID, ProducerEpoch: m.epoch, CoordinatorEpoch: -1, Commit: m.state == PrepareCommit,
		TransactionVersion: int8(min(m.version, bumps)), Topics: topics}
}

// left are the partitions of a transaction that still have to do with it: without those that have their marker.
func (e *entry) left() (ts []Topic) {
	if !e.m.state.prepared() || len(e.unmarked) == count(e.m.topics) {
		return e.m.topics
	}
	for _, t := range e.m.topics {
		var ps []int32
		for _, p := range t.Partitions {
			if _, ok := e.unmarked[place{t.Topic, p}]; ok {
				ps = append(ps, p)
			}
		}
		if len(ps) > 0 {
			ts = append(ts, Topic{t.Topic, ps})
		}
	}
	return ts
}

// Deadline is when the id next needs a Tick. It depends on nothing but records.
func (s *Shard) Deadline(id string) (at time.Time, ok bool) {
	e := s.entries[id]
	if e == nil || e.m.state != Ongoing || e.m.timeout == noTimeout {
		return at, false
	}
	return time.UnixMilli(e.m.started).Add(time.Duration(e.m.timeout) * time.Millisecond), true
}

// Describe answers one id of a DescribeTransactions request. While markers are being written, its topics are those that
// have none yet.
func (s *Shard) Describe(id string) kmsg.DescribeTransactionsResponseTransactionState {
	d := kmsg.NewDescribeTransactionsResponseTransactionState()
	d.TransactionalID = id
	e := s.entries[id]
	switch {
	case id == "":
		d.ErrorCode = codeInvalidRequest
		return d
	case e == nil:
		d.ErrorCode = codeTransactionalIDNotFound
		return d
	}
	d.State, d.TimeoutMillis, d.StartTimestamp = e.m.state.String(), e.m.timeout, e.m.started
	d.ProducerID, d.ProducerEpoch = e.m.producerID, e.m.epoch
	for _, t := range e.left() {
		dt := kmsg.NewDescribeTransactionsResponseTransactionStateTopic()
		dt.Topic, dt.Partitions = t.Topic, slices.Clone(t.Partitions)
		d.Topics = append(d.Topics, dt)
	}
	return d
}

// Filter is what a ListTransactions request asks for.
type Filter struct {
	any      bool // states
	states   [PrepareEpochFence + 1]bool
	ids      map[int64]struct{} // empty: any
	duration time.Duration      // negative: any
	pattern  *regexp.Regexp
}

// NewFilter prepares the filters of a request. unknown are the states that there are none of. code is not 0 if the pattern
// cannot be used; it must match the whole id.
func NewFilter(req *kmsg.ListTransactionsRequest) (f Filter, unknown []string, code int16) {
	f.any, f.ids, f.duration = len(req.StateFilters) == 0, make(map[int64]struct{}, len(req.ProducerIDFilters)), -1
	for _, id := range req.ProducerIDFilters {
		f.ids[id] = struct{}{}
	}
	for _, name := range req.StateFilters {
		if i := slices.Index(stateNames[:], name); i >= 0 {
			f.states[i] = true
		} else {
			unknown = append(unknown, name)
		}
	}
	if req.DurationFilterMillis >= 0 {
		f.duration = time.Duration(min(req.DurationFilterMillis, int64(1<<63-1)/int64(time.Millisecond))) * time.Millisecond
	}
	if p := req.TransactionalIDPattern; p != nil && *p != "" {
		var err error
		if f.pattern, err = pattern.Compile(*p); err != nil {
			return f, unknown, codeInvalidRegularExpression
		}
	}
	return f, unknown, codeNone
}

// Matches says whether the id is one that the filter's pattern is about.
func (f *Filter) Matches(id string) bool { return f.pattern == nil || f.pattern.MatchString(id) }

// List answers a ListTransactions request, in order of ids. As in Kafka, an id that had no transaction since InitProducerId
// passes for one that has run for ever. The pattern is left to Matches: it may take long, and the shard is not needed for it.
func (s *Shard) List(now time.Time, f Filter) (list []kmsg.ListTransactionsResponseTransactionState) {
	for id, e := range s.entries {
		m := e.m
		_, named := f.ids[m.producerID]
		switch {
		case !f.any && !f.states[m.state],
			len(f.ids) > 0 && !named,
			f.duration >= 0 && now.Sub(time.UnixMilli(m.started)) <= f.duration:
			continue
		}
		t := kmsg.NewListTransactionsResponseTransactionState()
		t.TransactionalID, t.ProducerID, t.TransactionState = id, m.producerID, m.state.String()
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b kmsg.ListTransactionsResponseTransactionState) int {
		return cmp.Compare(a.TransactionalID, b.TransactionalID)
	})
	return list
}
