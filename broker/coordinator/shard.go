package coordinator

import (
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// machine is the state machine of one partition, as its shard drives it: groups, or transactional ids. C are its commands
// and R its results; everything that a command is about has a key, the id of a group or a transactional id. All is called
// by the shard's goroutine.
type machine[C, R any] interface {
	// Handle decides on a command and changes nothing.
	Handle(now time.Time, c C) (R, outcome)
	// Record is the record number i of a result.
	Record(r R, i int) (key, value []byte)
	// Apply takes over a record of the log: one that is replayed, or one of this shard that has just been committed.
	// Records of transactional batches come here as others do, and so do those of control batches; the header tells. The
	// bytes are the shard's. An error means that the record was passed over.
	Apply(h batch.Header, offset int64, key, value []byte) error
	// Settle takes over the rest of a result when its records have been applied, and answers.
	Settle(now time.Time, r R)
	// Fail answers for a command that could not be appended.
	Fail(r R, code int16)
	// Loaded comes once, after the replay; it may lead to commands.
	Loaded(now time.Time) []C
	// Led comes after Loaded, and whenever the epoch has changed without a replay.
	Led(epoch int32)
	// Deadline is when the key needs a tick.
	Deadline(key string) (time.Time, bool)
	// Grows says whether the command takes memory, and what for.
	Grows(c C) growth
	Keys() []string // in order
	Bytes() int64
	Count() tally
}

// outcome is what a shard has to know of a result.
type outcome struct {
	key     string
	records int     // to be appended together; none: nothing to wait for
	header  *header // of their batch; nil: a plain one, with whatever else is to be appended
	more    bool    // the command was bounded and should be repeated once this part is committed
	moves   bool    // the key's deadline may have come closer
	later   bool    // the command was not handled: the machine brings it back with shard.resume
}

// header is what batches have that belong to a transaction. Results that want the same header may share a batch, but for
// control records, which are alone.
type header struct {
	producerID    int64
	producerEpoch int16
	transactional bool
	control       bool
	ticket        any // handed to a TicketLog with the batch; comparable
}

// growth is how a command takes memory. Beyond the bound nothing new may come; what is there goes on, and has half as much
// in reserve for that.
type growth int8

const (
	noGrowth growth = iota
	fresh           // something new
	further         // more of something that is there
)

// tally is what a machine holds, as of when it was asked; Stats of its coordinator knows the type.
type tally interface{ line() []any } // as a line of the log

// kind is what shards of one sort have in common.
type kind[M machine[C, R], C, R any] struct {
	name    string // of the state, in lines of the log
	machine func(s *shard[M, C, R]) M
	of      func(c C) subject
	tick    func(key string) C
	expire  func(key string) C // the regular search comes to a key
	// refused answers for the requests that a command of the shard's own has taken along, if it is not handled. nil: none does.
	refused func(m M, c C, code int16)
	// once says of a command of the shard's own that nothing but itself brings about what it does: if it could not be appended, it
	// is repeated, and no tick does instead. nil: there is none.
	once func(c C) bool
}

// subject is what a shard has to know of a command.
type subject struct {
	key    string
	access access
	tick   bool
}

// access is which commands of one key may be under way together: see group.AccessOf.
type access int8

const (
	free access = iota
	shared
	member
	exclusive
)

// shard hosts the state machine of one partition. Everything but the part under mu belongs to the goroutine of run.
type shard[M machine[C, R], C, R any] struct {
	o         *Options
	ev        *Events
	k         *kind[M, C, R]
	full      func(growth) bool
	partition int32
	log       *slog.Logger
	ctx       context.Context
	cancel    context.CancelFunc
	wg        *sync.WaitGroup // of the host: what run starts ends before the host is closed
	wake      chan struct{}   // holds one: something under mu has changed
	bytes     atomic.Int64    // of state

	mu      sync.Mutex
	epoch   int32
	active  bool // loaded
	stopped bool
	queue   []op[M, C]
	landed  []landed[M, C, R] // appends that are done, in any order
	held    int               // commands that wait at a gate, or for what the machine needs to handle them
	writing int               // commands whose append is under way
	tally   tally             // of the machine, at most countEvery old; nil: not loaded

	m         M
	ledIn     int32                  // the epoch that the machine knows of
	calls     map[uint64]*call       // requests that were handled and not answered
	gates     map[string]*gate[M, C] // keys that something is under way for
	deadlines deadlines
	armed     map[string]deadline // key -> its entry in deadlines that counts

	builder  *batch.Builder
	header   *header          // of what is in builder
	writes   []write[M, C, R] // whose records are in builder
	inflight int              // batches whose append is under way
	sent     uint64           // batches sent so far
	settled  uint64           // of which so many have landed, one after the other
	early    map[uint64]landed[M, C, R]
	nHeld    int
	nLater   int
	nWriting int
	sweep    []C // what the regular search still has to look at
	expireAt time.Time
	countAt  time.Time
	dirty    bool
	loggedAt time.Time // of the last failed append that was logged
}

// maxInflight is how many batches of a shard are under way at most before further records wait to be batched together.
const maxInflight = 4

// retryAfter is how long a deadline waits whose consequence could not be appended.
const retryAfter = time.Second

// op is what is asked of a shard: a command, or a read of its state.
type op[M, C any] struct {
	cmd     C
	read    func(M) // not nil: there is no command
	stable  string  // of a read: the key whose appends under way it must see; "" none
	token   uint64
	call    *call // who asks; nil for the shard's own commands
	resumed bool  // the command was handled before, and put off: see outcome.later
	code    int16 // of one that is resumed: why it is not to be handled after all; 0: it is
}

// call is a request that waits in its handler's goroutine.
type call struct{ answer chan answer }

type answer struct {
	resp kmsg.Response
	code int16 // if resp is nil
}

func newCall() *call { return &call{answer: make(chan answer, 1)} }

// write is a command whose records are being appended.
type write[M, C, R any] struct {
	r      R
	out    outcome
	access access
	op     op[M, C]
}

// landed is a batch of which the log has said what became of it.
type landed[M, C, R any] struct {
	nth    uint64 // of those that were sent
	writes []write[M, C, R]
	h      batch.Header
	bytes  int
	began  time.Time
	base   int64
	err    error
}

// gate keeps commands of one key apart that must not be under way together. Whoever has to wait waits in order, and
// those that come later wait behind.
type gate[M, C any] struct {
	shared    int
	exclusive bool
	waiting   []op[M, C]
	ticking   bool // a tick waits already
}

func (g *gate[M, C]) admits(a access) bool {
	switch a {
	case free:
		return true
	case exclusive:
		return !g.exclusive && g.shared == 0
	default:
		return !g.exclusive
	}
}

func newShard[M machine[C, R], C, R any](h *host[M, C, R], partition, epoch int32) *shard[M, C, R] {
	s := &shard[M, C, R]{o: &h.o, ev: &h.ev, k: &h.kind, full: h.full, wg: &h.wg, partition: partition, epoch: epoch, wake: make(chan struct{}, 1),
		log:   h.log.With("partition", partition),
		calls: map[uint64]*call{}, gates: map[string]*gate[M, C]{}, armed: map[string]deadline{},
		early: map[uint64]landed[M, C, R]{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.builder = batch.NewBuilder()
	s.builder.Codec = h.o.Codec
	return s
}

// promote takes over a new epoch and says whether the shard has to be loaded again.
func (s *shard[M, C, R]) promote(epoch int32) (reload bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return true
	case epoch <= s.epoch:
		return false
	case epoch == s.epoch+1:
		s.epoch = epoch
		s.signal()
		return false
	}
	return true
}

// stop makes run return; it does not wait.
func (s *shard[M, C, R]) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
}

func (s *shard[M, C, R]) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// submit queues an op, or says with which code to refuse it.
func (s *shard[M, C, R]) submit(o op[M, C]) int16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return protocol.CodeNotCoordinator
	case !s.active:
		return protocol.CodeCoordinatorLoadInProgress
	case len(s.queue)+s.held >= s.o.QueueLength:
		s.ev.Refused(s.partition, protocol.CodeCoordinatorNotAvailable)
		return protocol.CodeCoordinatorNotAvailable
	}
	s.queue = append(s.queue, o)
	s.signal()
	return protocol.CodeNone
}

// own queues a command of the shard's own. There are as many of them as the machine asks for; no bound refuses them.
func (s *shard[M, C, R]) own(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.queue = append(s.queue, op[M, C]{cmd: c})
		s.signal()
	}
}

// do runs f in the shard's goroutine, unless the shard has been stopped.
func (s *shard[M, C, R]) do(f func(M)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.queue = append(s.queue, op[M, C]{read: f})
		s.signal()
	}
}

// run loads the shard and serves it until it is stopped.
func (s *shard[M, C, R]) run() {
	defer s.leave()
	if !s.load() {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.mu.Lock()
		stopped, queue, done, epoch := s.stopped, s.queue, s.landed, s.epoch
		s.queue, s.landed = nil, nil
		s.mu.Unlock()
		if stopped {
			s.mu.Lock()
			s.queue = append(queue, s.queue...) // leave answers them
			s.mu.Unlock()
			return
		}
		if epoch != s.ledIn {
			s.ledIn = epoch
			s.m.Led(epoch)
		}
		now := time.Now()
		for _, l := range done {
			s.early[l.nth] = l
		}
		for l, ok := s.early[s.settled]; ok; l, ok = s.early[s.settled] {
			delete(s.early, s.settled)
			s.settled++
			s.land(l, now)
		}
		for _, o := range queue {
			s.admit(o, now)
		}
		s.fire(now)
		busy := s.search(now)
		s.flush()
		s.bytes.Store(s.m.Bytes())
		if s.dirty && !now.Before(s.countAt) {
			s.count(now)
		}
		s.mu.Lock()
		s.held, s.writing = s.nHeld+s.nLater, s.nWriting
		s.mu.Unlock()
		if busy {
			continue
		}
		rest := time.Until(s.next())
		if len(s.deadlines) > 0 {
			rest = min(rest, lookAgain)
		}
		timer.Reset(rest)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.ctx.Done():
		}
	}
}

// lookAgain is how long run rests at most while something has a deadline. Those of transactions are of the wall clock, for they
// are in records; a timer that was set while the clock was an hour behind would be late by an hour once it goes right again. Kafka's
// coordinator looks as often (transaction.abort.timed.out.transaction.cleanup.interval.ms).
const lookAgain = 10 * time.Second

// next is when run has something to do by itself.
func (s *shard[M, C, R]) next() time.Time {
	at := s.expireAt
	if s.dirty && s.countAt.Before(at) {
		at = s.countAt
	}
	if len(s.deadlines) > 0 && s.deadlines[0].at.Before(at) {
		at = s.deadlines[0].at
	}
	return at
}

// leave answers everybody who still waits.
func (s *shard[M, C, R]) leave() {
	s.mu.Lock()
	s.stopped = true
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	s.cancel()
	gone := answer{code: protocol.CodeNotCoordinator}
	for _, o := range queue {
		s.refuse(o, gone.code)
	}
	for _, g := range s.gates {
		for _, o := range g.waiting {
			s.refuse(o, gone.code)
		}
	}
	for _, c := range s.calls {
		c.answer <- gone
	}
	s.ev.Unloaded(s.partition)
}

func (s *shard[M, C, R]) refuse(o op[M, C], code int16) {
	if o.call != nil {
		delete(s.calls, o.token) // if it had been put off
		o.call.answer <- answer{code: code}
	}
}

// about is what an op is about.
func (s *shard[M, C, R]) about(o op[M, C]) subject {
	switch {
	case o.read == nil:
		return s.k.of(o.cmd)
	case o.stable == "":
		return subject{access: free}
	}
	return subject{key: o.stable, access: exclusive}
}

// admit handles an op, or lets it wait at its key's gate.
func (s *shard[M, C, R]) admit(o op[M, C], now time.Time) {
	if o.resumed {
		o.resumed = false
		o.call = s.calls[o.token]
		s.nLater--
		if o.code != protocol.CodeNone {
			s.refuse(o, o.code)
			s.again(o, now)
			return
		}
	}
	on := s.about(o)
	if g := s.gates[on.key]; g != nil && on.access != free && (len(g.waiting) > 0 || !g.admits(on.access)) {
		if on.tick {
			if g.ticking {
				return
			}
			g.ticking = true
		}
		g.waiting = append(g.waiting, o)
		s.nHeld++
		return
	}
	s.handle(o, on, now)
}

// release opens a key's gate as far as the end of a write allows.
func (s *shard[M, C, R]) release(key string, a access, now time.Time) {
	g := s.gates[key]
	if a == shared {
		g.shared--
	} else {
		g.exclusive = false
	}
	for len(g.waiting) > 0 {
		o := g.waiting[0]
		on := s.about(o)
		if !g.admits(on.access) {
			return
		}
		g.waiting[0] = op[M, C]{}
		g.waiting = g.waiting[1:]
		s.nHeld--
		if on.tick {
			g.ticking = false
		}
		s.handle(o, on, now)
	}
	if g.shared == 0 && !g.exclusive {
		delete(s.gates, key)
	}
}

func (s *shard[M, C, R]) handle(o op[M, C], on subject, now time.Time) {
	if o.read != nil {
		o.read(s.m)
		return
	}
	if on.access != free && s.nWriting >= s.o.WritesLength {
		s.ev.Refused(s.partition, protocol.CodeCoordinatorNotAvailable)
		s.refuse(o, protocol.CodeCoordinatorNotAvailable)
		if o.call == nil && s.k.refused != nil {
			s.k.refused(s.m, o.cmd, protocol.CodeCoordinatorNotAvailable)
		}
		s.again(o, now)
		return
	}
	if g := s.m.Grows(o.cmd); g != noGrowth && s.full(g) {
		s.ev.Refused(s.partition, protocol.CodeCoordinatorNotAvailable)
		s.refuse(o, protocol.CodeCoordinatorNotAvailable)
		return
	}
	if o.call != nil {
		s.calls[o.token] = o.call
	}
	r, out := s.m.Handle(now, o.cmd)
	s.dirty = true
	if out.later {
		s.nLater++
		return
	}
	if out.records == 0 {
		s.settle(r, out, now)
		return
	}
	size := 0
	for i := range out.records {
		key, value := s.m.Record(r, i)
		size += len(key) + len(value) + recordOverhead
	}
	w := write[M, C, R]{r: r, out: out, access: on.access, op: o}
	if size > s.o.MaxBatch {
		s.log.Warn(s.k.name+" is too large to be written", "key", out.key, "bytes", size, "limit", s.o.MaxBatch)
		s.fail(w, protocol.CodeUnknownServerError, now)
		return
	}
	g := s.gates[out.key]
	if g == nil {
		g = &gate[M, C]{}
		s.gates[out.key] = g
	}
	if on.access == shared {
		g.shared++
	} else {
		g.exclusive = true
	}
	if s.builder.Len() > 0 && (s.builder.Size()+size > s.o.BatchBytes || !s.header.with(out.header)) {
		s.send()
	}
	s.header = out.header
	for i := range out.records {
		key, value := s.m.Record(r, i)
		s.builder.Add(now.UnixMilli(), key, value)
	}
	s.writes = append(s.writes, w)
	s.nWriting++
}

// with says whether records that want the headers may be in one batch.
func (h *header) with(other *header) bool {
	if h == nil || other == nil {
		return h == other
	}
	return *h == *other && !h.control
}

// recordOverhead is at least what a batch adds to a key and a value.
const recordOverhead = 40

// again lets a command of the shard's own come back later, as a tick where that does as well.
func (s *shard[M, C, R]) again(o op[M, C], now time.Time) {
	switch {
	case o.call != nil:
	case s.k.once != nil && s.k.once(o.cmd):
		time.AfterFunc(retryAfter, func() { s.own(o.cmd) })
	default:
		s.arm(deadline{now.Add(retryAfter), s.k.of(o.cmd).key, true})
	}
}

// resume brings back a command that the machine put off when it was handled, perhaps as another, or says with a code that
// there will be none. It may be called from any goroutine. token is that of the request, 0 for the shard's own commands.
func (s *shard[M, C, R]) resume(token uint64, c C, code int16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped { // or whoever waits has been answered
		s.queue = append(s.queue, op[M, C]{cmd: c, token: token, resumed: true, code: code})
		s.signal()
	}
}

// settle makes a result the state and tells everybody.
func (s *shard[M, C, R]) settle(r R, out outcome, now time.Time) {
	s.m.Settle(now, r)
	if out.moves {
		if at, ok := s.m.Deadline(out.key); ok {
			s.arm(deadline{at, out.key, false})
		} else {
			s.disarm(out.key)
		}
	}
}

// answer sends a reply to the request with that token. It is for the machine.
func (s *shard[M, C, R]) answer(token uint64, resp kmsg.Response) {
	if c := s.calls[token]; c != nil {
		delete(s.calls, token)
		c.answer <- answer{resp: resp}
	}
}

// fail answers for a command that could not be appended. The state is what it was.
func (s *shard[M, C, R]) fail(w write[M, C, R], code int16, now time.Time) {
	s.m.Fail(w.r, code)
	s.again(w.op, now)
}

// flush sends what is in the builder unless enough is under way already.
func (s *shard[M, C, R]) flush() {
	if len(s.writes) > 0 && s.inflight < maxInflight {
		s.send()
	}
}

func (s *shard[M, C, R]) send() {
	l := landed[M, C, R]{nth: s.sent, writes: s.writes, began: time.Now()}
	s.writes = nil
	s.sent++
	b := s.builder
	b.ProducerID, b.ProducerEpoch, b.Transactional, b.Control = batch.NoProducerID, batch.NoProducerEpoch, false, false
	b.Codec = s.o.Codec
	var ticket any
	if h := s.header; h != nil {
		b.ProducerID, b.ProducerEpoch, b.Transactional, b.Control = h.producerID, h.producerEpoch, h.transactional, h.control
		ticket = h.ticket
		if h.control {
			b.Codec = batch.None // as Kafka writes them: readers may not expect another
		}
	}
	run, err := b.Build()
	b.Reset()
	if err == nil {
		l.h, err = batch.ParseHeader(run)
	}
	if err != nil {
		panic(fmt.Sprintf("coordinator: %v", err)) // sizes were checked: see Options.MaxBatch
	}
	l.bytes = len(run)
	s.inflight++
	s.mu.Lock()
	epoch := s.epoch
	s.mu.Unlock()
	done := func(base int64, err error) {
		l.base, l.err = base, err
		s.mu.Lock()
		s.landed = append(s.landed, l)
		s.mu.Unlock()
		s.signal()
	}
	if log, ok := s.o.Log.(TicketLog); ok && ticket != nil {
		log.AppendWith(s.partition, epoch, run, ticket, done)
		return
	}
	s.o.Log.Append(s.partition, epoch, run, done)
}

// land ends the writes of a batch.
func (s *shard[M, C, R]) land(l landed[M, C, R], now time.Time) {
	s.inflight--
	s.nWriting -= len(l.writes)
	if l.err != nil {
		s.ev.AppendFailed(s.partition, l.err)
		if now.Sub(s.loggedAt) >= 10*time.Second {
			s.loggedAt = now
			s.log.Warn(s.k.name+" could not be appended", "err", l.err, "commands", len(l.writes))
		}
	} else {
		s.ev.Appended(s.partition, int(l.h.RecordCount), l.bytes, now.Sub(l.began))
	}
	s.dirty = true
	l.h.BaseOffset = l.base
	offset := l.base
	for _, w := range l.writes {
		if l.err != nil {
			s.fail(w, replyCode(l.err), now)
		} else {
			for i := range w.out.records {
				key, value := s.m.Record(w.r, i)
				if err := s.m.Apply(l.h, offset, key, value); err != nil {
					panic(fmt.Sprintf("coordinator: a record of this process does not read back: %v", err))
				}
				offset++
			}
			s.settle(w.r, w.out, now)
			if w.out.more {
				s.sweep = append(s.sweep, w.op.cmd)
			}
		}
		s.release(w.out.key, w.access, now)
	}
}

// ---- Deadlines

type deadline struct {
	at    time.Time
	key   string
	retry bool // something of the shard's own failed: a tick is due whatever the machine's deadline says
}

type deadlines []deadline

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	old := *d
	x := old[len(old)-1]
	*d = old[:len(old)-1]
	return x
}

// arm makes sure that the key is looked at by then. Entries that are later stay in the heap and are recognised as stale
// when their time comes.
func (s *shard[M, C, R]) arm(d deadline) {
	if old, ok := s.armed[d.key]; ok {
		d.retry = d.retry || old.retry
		if !d.at.Before(old.at) {
			if d.retry != old.retry { // the earlier of both times does for both
				s.armed[d.key] = deadline{old.at, d.key, true}
			}
			return
		}
	}
	s.armed[d.key] = d
	heap.Push(&s.deadlines, d)
}

// disarm forgets a key that needs no tick any more. Its entry in the heap, which may be due in half an hour, goes when more are stale
// than count: else whoever makes groups and drops them again would have memory kept for them all that long.
func (s *shard[M, C, R]) disarm(key string) {
	if d, ok := s.armed[key]; !ok || d.retry {
		return
	}
	delete(s.armed, key)
	if len(s.deadlines) < 2*len(s.armed)+fewDeadlines {
		return
	}
	s.deadlines = slices.DeleteFunc(s.deadlines, func(d deadline) bool {
		armed, ok := s.armed[d.key]
		return !ok || !armed.at.Equal(d.at)
	})
	heap.Init(&s.deadlines)
}

// fewDeadlines are too few to look for stale ones among them.
const fewDeadlines = 64

func (s *shard[M, C, R]) fire(now time.Time) {
	for len(s.deadlines) > 0 && !s.deadlines[0].at.After(now) {
		d := heap.Pop(&s.deadlines).(deadline)
		armed, ok := s.armed[d.key]
		if !ok || !armed.at.Equal(d.at) {
			continue
		}
		delete(s.armed, d.key)
		at, due := s.m.Deadline(d.key)
		if due && at.After(now) {
			// Heartbeats have moved it, or it came after what is tried again now and had no entry of its own.
			s.arm(deadline{at, d.key, false})
			due = false
		}
		if !due && !armed.retry {
			continue
		}
		s.admit(op[M, C]{cmd: s.k.tick(d.key)}, now)
	}
}

// sweepStep is how many keys the regular search looks at before others get their turn.
const sweepStep = 64

// search looks for what has expired, some keys at a time, and says whether it has more to do now.
func (s *shard[M, C, R]) search(now time.Time) bool {
	if !now.Before(s.expireAt) {
		s.expireAt = now.Add(s.o.ExpiryInterval)
		if len(s.sweep) == 0 { // else the last search has not come through: the log hangs
			for _, key := range s.m.Keys() {
				s.sweep = append(s.sweep, s.k.expire(key))
			}
		}
	}
	n := min(sweepStep, len(s.sweep))
	if s.inflight >= maxInflight {
		return false // goes on when the log does
	}
	step := s.sweep[:n]
	s.sweep = s.sweep[n:]
	for _, c := range step {
		s.admit(op[M, C]{cmd: c}, now)
	}
	if len(s.sweep) == 0 {
		s.sweep = nil
	}
	return len(s.sweep) > 0
}

// countEvery is how old the numbers of Stats may be.
const countEvery = time.Second

func (s *shard[M, C, R]) count(now time.Time) {
	s.dirty, s.countAt = false, now.Add(countEvery)
	t := s.m.Count()
	s.mu.Lock()
	s.tally = t
	s.mu.Unlock()
}

// ---- Loading

// load replays the partition. It goes on trying until it succeeds or the shard is stopped: nobody else can.
func (s *shard[M, C, R]) load() bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		began := time.Now()
		records, bytes, end, err := s.replay()
		if log, ok := s.o.Log.(CommittedLog); ok && err == nil {
			if err = log.Committed(s.ctx, s.partition, end); err != nil {
				err = fmt.Errorf("coordinator: partition %d is not committed up to %d: %w", s.partition, end, err)
			}
		}
		if err == nil {
			s.activate(records, bytes, began)
			return true
		}
		if s.ctx.Err() != nil {
			return false
		}
		s.ev.LoadFailed(s.partition, err)
		s.log.Error(s.k.name+" could not be loaded", "err", err, "again_in", wait)
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return false
		}
	}
}

// replay returns the offset up to which it has read, too.
func (s *shard[M, C, R]) replay() (records, bytes, end int64, err error) {
	s.m = s.k.machine(s)
	at, end := s.o.Log.Extent(s.partition)
	for at < end {
		runs, next, release, err := s.o.Log.Read(s.ctx, s.partition, at, s.o.LoadBytes)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("coordinator: read partition %d at %d: %w", s.partition, at, err)
		}
		for _, run := range runs {
			bytes += int64(len(run))
			if err = batch.Walk(run, func(h batch.Header, b []byte) error { return s.replayBatch(h, b, at, &records) }); err != nil {
				break
			}
		}
		if release != nil {
			release()
		}
		switch {
		case err != nil:
			return 0, 0, 0, fmt.Errorf("coordinator: replay partition %d after %d: %w", s.partition, at, err)
		case next <= at:
			return 0, 0, 0, fmt.Errorf("coordinator: read partition %d at %d: no progress", s.partition, at)
		case s.ctx.Err() != nil:
			return 0, 0, 0, s.ctx.Err()
		}
		at = next
		s.bytes.Store(s.m.Bytes())
	}
	return records, bytes, at, nil
}

// replayBatch applies the records of a batch. Those that cannot be read are passed over, loudly: any client with
// permission may have produced them, and they must not keep the rest of the partition from being served.
func (s *shard[M, C, R]) replayBatch(h batch.Header, b []byte, from int64, records *int64) error {
	if err := batch.VerifyCRC(b); err != nil {
		return err
	}
	for rec, err := range batch.Records(b, s.o.MaxInflated) {
		if err != nil {
			return fmt.Errorf("batch at %d: %w", h.BaseOffset, err)
		}
		offset := h.BaseOffset + int64(rec.OffsetDelta)
		if offset < from {
			continue
		}
		*records++
		if err := s.m.Apply(h, offset, rec.Key, rec.Value); err != nil {
			s.ev.BadRecord(s.partition, offset, err)
			s.log.Warn("record of "+s.k.name+" skipped", "offset", offset, "err", err)
		}
	}
	return nil
}

func (s *shard[M, C, R]) activate(records, bytes int64, began time.Time) {
	now := time.Now()
	follow := s.m.Loaded(now)
	keys := s.m.Keys()
	for _, key := range keys {
		if at, ok := s.m.Deadline(key); ok {
			s.arm(deadline{at, key, false})
		}
	}
	for _, c := range follow {
		s.admit(op[M, C]{cmd: c}, now)
	}
	s.expireAt = now.Add(s.o.ExpiryInterval)
	s.count(now)
	s.bytes.Store(s.m.Bytes())
	s.mu.Lock()
	s.active = true
	epoch, t := s.epoch, s.tally
	s.mu.Unlock()
	s.ledIn = epoch
	s.m.Led(epoch)
	took := now.Sub(began)
	s.ev.Loaded(s.partition, len(keys), records, bytes, took)
	if records > 0 {
		s.log.Info(s.k.name+" loaded", append(t.line(), "records", records, "bytes", bytes, "took", took)...)
	}
}
