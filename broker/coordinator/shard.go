package coordinator

import (
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// shard hosts the groups of one partition. Everything but the part under mu belongs to the goroutine of run.
type shard struct {
	c         *Coordinator
	partition int32
	log       *slog.Logger
	ctx       context.Context
	cancel    context.CancelFunc
	wake      chan struct{} // holds one: something under mu has changed
	bytes     atomic.Int64  // of state

	mu      sync.Mutex
	epoch   int32
	active  bool // loaded
	stopped bool
	queue   []op
	landed  []landed // appends that are done, in order
	held    int      // commands that wait at a gate
	writing int      // commands whose append is under way
	counts  struct {
		states           [group.Stable + 1]int
		members, offsets int
		bytes            int64
	}

	state     *group.Shard
	calls     map[uint64]*call // requests that were handled and not answered
	gates     map[string]*gate // groups that something is under way for
	deadlines deadlines
	armed     map[string]time.Time // group -> its entry in deadlines that counts

	builder  *batch.Builder
	writes   []write // whose records are in builder
	inflight int     // batches whose append is under way
	nHeld    int
	nWriting int
	sweep    []group.Command // what the regular search still has to look at
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
type op struct {
	cmd    group.Command // nil for reads
	read   func(*group.Shard)
	stable string // of a read: the group whose appends under way it must see; "" none
	token  uint64
	call   *call // who asks; nil for the shard's own commands
}

// call is a request that waits in its handler's goroutine.
type call struct{ answer chan answer }

type answer struct {
	resp kmsg.Response
	code int16 // if resp is nil
}

func newCall() *call { return &call{answer: make(chan answer, 1)} }

// write is a command whose records are being appended.
type write struct {
	r      group.Result
	access group.Access
	op     op
}

// landed is a batch of which the log has said what became of it.
type landed struct {
	writes  []write
	records int
	bytes   int
	began   time.Time
	err     error
}

// gate keeps commands of one group apart that must not be under way together; see group.AccessOf. Whoever has to
// wait waits in order, and those that come later wait behind.
type gate struct {
	shared    int
	exclusive bool
	waiting   []op
	ticking   bool // a Tick waits already
}

func (g *gate) admits(a group.Access) bool {
	switch a {
	case group.Free:
		return true
	case group.Exclusive:
		return !g.exclusive && g.shared == 0
	default:
		return !g.exclusive
	}
}

func newShard(c *Coordinator, partition, epoch int32) *shard {
	s := &shard{c: c, partition: partition, epoch: epoch, wake: make(chan struct{}, 1),
		log:   c.log.With("partition", partition),
		calls: map[uint64]*call{}, gates: map[string]*gate{}, armed: map[string]time.Time{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.builder = batch.NewBuilder()
	s.builder.Codec = c.o.Codec
	return s
}

// promote takes over a new epoch and says whether the shard has to be loaded again.
func (s *shard) promote(epoch int32) (reload bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return true
	case epoch <= s.epoch:
		return false
	case epoch == s.epoch+1:
		s.epoch = epoch
		return false
	}
	return true
}

// stop makes run return; it does not wait.
func (s *shard) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
}

func (s *shard) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// submit queues an op, or says with which code to refuse it.
func (s *shard) submit(o op) int16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return protocol.CodeNotCoordinator
	case !s.active:
		return protocol.CodeCoordinatorLoadInProgress
	case len(s.queue)+s.held >= s.c.o.QueueLength:
		s.c.ev.Refused(s.partition, protocol.CodeCoordinatorNotAvailable)
		return protocol.CodeCoordinatorNotAvailable
	}
	s.queue = append(s.queue, o)
	s.signal()
	return protocol.CodeNone
}

// run loads the shard and serves it until it is stopped.
func (s *shard) run() {
	defer s.leave()
	if !s.load() {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.mu.Lock()
		stopped, queue, done := s.stopped, s.queue, s.landed
		s.queue, s.landed = nil, nil
		s.mu.Unlock()
		if stopped {
			s.mu.Lock()
			s.queue = append(queue, s.queue...) // leave answers them
			s.mu.Unlock()
			return
		}
		now := time.Now()
		for _, l := range done {
			s.land(l, now)
		}
		for _, o := range queue {
			s.admit(o, now)
		}
		s.fire(now)
		busy := s.search(now)
		s.flush()
		s.bytes.Store(s.state.Bytes())
		if s.dirty && !now.Before(s.countAt) {
			s.count(now)
		}
		s.mu.Lock()
		s.held, s.writing = s.nHeld, s.nWriting
		s.mu.Unlock()
		if busy {
			continue
		}
		timer.Reset(time.Until(s.next()))
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.ctx.Done():
		}
	}
}

// next is when run has something to do by itself.
func (s *shard) next() time.Time {
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
func (s *shard) leave() {
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
	s.c.ev.Unloaded(s.partition)
}

func (s *shard) refuse(o op, code int16) {
	if o.call != nil {
		o.call.answer <- answer{code: code}
	}
}

// admit handles an op, or lets it wait at its group's gate.
func (s *shard) admit(o op, now time.Time) {
	id, access := o.stable, group.Exclusive
	if o.cmd != nil {
		id, access = o.cmd.GroupID(), group.AccessOf(o.cmd)
	}
	if o.cmd == nil && id == "" {
		access = group.Free
	}
	if g := s.gates[id]; g != nil && access != group.Free && (len(g.waiting) > 0 || !g.admits(access)) {
		if _, ok := o.cmd.(*group.Tick); ok {
			if g.ticking {
				return
			}
			g.ticking = true
		}
		g.waiting = append(g.waiting, o)
		s.nHeld++
		return
	}
	s.handle(o, access, now)
}

// release opens a group's gate as far as the end of a write allows.
func (s *shard) release(id string, access group.Access, now time.Time) {
	g := s.gates[id]
	if access == group.Shared {
		g.shared--
	} else {
		g.exclusive = false
	}
	for len(g.waiting) > 0 {
		o := g.waiting[0]
		a := group.Exclusive
		if o.cmd != nil {
			a = group.AccessOf(o.cmd)
		}
		if !g.admits(a) {
			return
		}
		g.waiting[0] = op{}
		g.waiting = g.waiting[1:]
		s.nHeld--
		if _, ok := o.cmd.(*group.Tick); ok {
			g.ticking = false
		}
		s.handle(o, a, now)
	}
	if g.shared == 0 && !g.exclusive {
		delete(s.gates, id)
	}
}

func (s *shard) handle(o op, access group.Access, now time.Time) {
	if o.cmd == nil {
		o.read(s.state)
		return
	}
	if access != group.Free && s.nWriting >= s.c.o.WritesLength {
		s.c.ev.Refused(s.partition, protocol.CodeCoordinatorNotAvailable)
		s.refuse(o, protocol.CodeCoordinatorNotAvailable)
		s.again(o, now)
		return
	}
	if s.growing(o.cmd) && s.c.full() {
		s.c.ev.Refused(s.partition, protocol.CodeCoordinatorNotAvailable)
		s.refuse(o, protocol.CodeCoordinatorNotAvailable)
		return
	}
	if o.call != nil {
		s.calls[o.token] = o.call
	}
	r := s.state.Handle(now, o.cmd)
	s.dirty = true
	if len(r.Records) == 0 {
		s.settle(r, now)
		return
	}
	size := 0
	for _, rec := range r.Records {
		size += len(rec.Key) + len(rec.Value) + recordOverhead
	}
	w := write{r: r, access: access, op: o}
	if size > s.c.o.MaxBatch {
		s.log.Warn("group state is too large to be written", "group", r.Group, "bytes", size, "limit", s.c.o.MaxBatch)
		s.fail(w, protocol.CodeUnknownServerError, now)
		return
	}
	g := s.gates[r.Group]
	if g == nil {
		g = &gate{}
		s.gates[r.Group] = g
	}
	if access == group.Shared {
		g.shared++
	} else {
		g.exclusive = true
	}
	if s.builder.Len() > 0 && s.builder.Size()+size > s.c.o.BatchBytes {
		s.send()
	}
	for _, rec := range r.Records {
		s.builder.Add(now.UnixMilli(), rec.Key, rec.Value)
	}
	s.writes = append(s.writes, w)
	s.nWriting++
}

// recordOverhead is at least what a batch adds to a key and a value.
const recordOverhead = 40

// growing says whether the command takes memory for something new.
func (s *shard) growing(c group.Command) bool {
	switch c := c.(type) {
	case *group.Join:
		return c.Req.MemberID == ""
	case *group.Commit:
		return !s.state.Has(c.Req.Group)
	}
	return false
}

// again lets a command of the shard's own come back later.
func (s *shard) again(o op, now time.Time) {
	if o.call == nil {
		s.arm(o.cmd.GroupID(), now.Add(retryAfter))
	}
}

// settle makes a result the state and tells everybody.
func (s *shard) settle(r group.Result, now time.Time) {
	s.state.Settle(now, r)
	s.answer(r.Replies)
	for _, n := range r.Notes {
		s.tell(n)
	}
	if r.Moves() {
		if at, ok := s.state.Deadline(r.Group); ok {
			s.arm(r.Group, at)
		}
	}
}

func (s *shard) answer(replies []group.Reply) {
	for _, rep := range replies {
		if c := s.calls[rep.Token]; c != nil {
			delete(s.calls, rep.Token)
			c.answer <- answer{resp: rep.Response}
		}
	}
}

func (s *shard) tell(n group.Note) {
	s.c.ev.Group(s.partition, n)
	level := slog.LevelInfo
	if n.Kind == group.NoteCommitted || n.Kind == group.NoteExpired {
		level = slog.LevelDebug
	}
	if s.log.Enabled(s.ctx, level) {
		s.log.Log(s.ctx, level, noteText[n.Kind], "group", n.Group, "generation", n.Generation, "members", n.Members,
			"member", n.Member, "offsets", n.N, "reason", n.Reason)
	}
}

var noteText = map[group.NoteKind]string{
	group.NoteRebalance: "group rebalances", group.NoteGeneration: "group has a new generation", group.NoteStable: "group is stable",
	group.NoteEmpty: "group is empty", group.NoteMemberExpired: "member removed", group.NoteMemberLeft: "member left",
	group.NoteFenced: "static member replaced", group.NoteRefused: "member refused", group.NoteCommitted: "offsets committed",
	group.NoteExpired: "offsets expired", group.NoteDeleted: "group deleted",
}

// fail answers for a command that could not be appended. The state is what it was.
func (s *shard) fail(w write, code int16, now time.Time) {
	s.answer(group.Fail(w.r, code))
	s.again(w.op, now)
}

// flush sends what is in the builder unless enough is under way already.
func (s *shard) flush() {
	if len(s.writes) > 0 && s.inflight < maxInflight {
		s.send()
	}
}

func (s *shard) send() {
	l := landed{writes: s.writes, records: s.builder.Len(), began: time.Now()}
	s.writes = nil
	run, err := s.builder.Build()
	s.builder.Reset()
	if err != nil {
		panic(fmt.Sprintf("coordinator: %v", err)) // sizes were checked: see Options.MaxBatch
	}
	l.bytes = len(run)
	s.inflight++
	s.mu.Lock()
	epoch := s.epoch
	s.mu.Unlock()
	s.c.o.Log.Append(s.partition, epoch, run, func(_ int64, err error) {
		l.err = err
		s.mu.Lock()
		s.landed = append(s.landed, l)
		s.mu.Unlock()
		s.signal()
	})
}

// land ends the writes of a batch.
func (s *shard) land(l landed, now time.Time) {
	s.inflight--
	s.nWriting -= len(l.writes)
	if l.err != nil {
		s.c.ev.AppendFailed(s.partition, l.err)
		if now.Sub(s.loggedAt) >= 10*time.Second {
			s.loggedAt = now
			s.log.Warn("group state could not be appended", "err", l.err, "commands", len(l.writes))
		}
	} else {
		s.c.ev.Appended(s.partition, l.records, l.bytes, now.Sub(l.began))
	}
	s.dirty = true
	for _, w := range l.writes {
		if l.err != nil {
			s.fail(w, replyCode(l.err), now)
		} else {
			for _, rec := range w.r.Records {
				if err := s.state.Apply(rec); err != nil {
					panic(fmt.Sprintf("coordinator: a record of this process does not read back: %v", err))
				}
			}
			s.settle(w.r, now)
			if w.r.More {
				s.sweep = append(s.sweep, w.op.cmd)
			}
		}
		s.release(w.r.Group, w.access, now)
	}
}

// ---- Deadlines

type deadline struct {
	at    time.Time
	group string
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

// arm makes sure that the group is looked at by then. Entries that are later stay in the heap and are recognised as stale
// when their time comes.
func (s *shard) arm(id string, at time.Time) {
	if old, ok := s.armed[id]; ok && !at.Before(old) {
		return
	}
	s.armed[id] = at
	heap.Push(&s.deadlines, deadline{at, id})
}

func (s *shard) fire(now time.Time) {
	for len(s.deadlines) > 0 && !s.deadlines[0].at.After(now) {
		d := heap.Pop(&s.deadlines).(deadline)
		if at, ok := s.armed[d.group]; !ok || !at.Equal(d.at) {
			continue
		}
		delete(s.armed, d.group)
		if at, ok := s.state.Deadline(d.group); ok && at.After(now) {
			s.arm(d.group, at) // heartbeats have moved it
			continue
		} else if !ok {
			continue
		}
		s.admit(op{cmd: &group.Tick{Group: d.group}}, now)
	}
}

// sweepStep is how many groups the regular search looks at before others get their turn.
const sweepStep = 64

// search looks for offsets whose retention is over, some groups at a time, and says whether it has more to do now.
func (s *shard) search(now time.Time) bool {
	if !now.Before(s.expireAt) {
		s.expireAt = now.Add(s.c.o.ExpiryInterval)
		if len(s.sweep) == 0 { // else the last search has not come through: the log hangs
			for _, id := range s.state.GroupIDs() {
				s.sweep = append(s.sweep, &group.Expire{Group: id})
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
		s.admit(op{cmd: c}, now)
	}
	if len(s.sweep) == 0 {
		s.sweep = nil
	}
	return len(s.sweep) > 0
}

// countEvery is how old the numbers of Stats may be.
const countEvery = time.Second

func (s *shard) count(now time.Time) {
	s.dirty, s.countAt = false, now.Add(countEvery)
	states, members, offsets := s.state.Counts()
	s.mu.Lock()
	s.counts.states, s.counts.members, s.counts.offsets, s.counts.bytes = states, members, offsets, s.state.Bytes()
	s.mu.Unlock()
}

// ---- Loading

// load replays the partition. It goes on trying until it succeeds or the shard is stopped: nobody else can.
func (s *shard) load() bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		began := time.Now()
		records, err := s.replay()
		if err == nil {
			s.activate(records, began)
			return true
		}
		if s.ctx.Err() != nil {
			return false
		}
		s.c.ev.LoadFailed(s.partition, err)
		s.log.Error("group state could not be loaded", "err", err, "again_in", wait)
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return false
		}
	}
}

func (s *shard) replay() (records int64, err error) {
	s.state = group.NewShard(s.c.o.Groups)
	at, end := s.c.o.Log.Extent(s.partition)
	for at < end {
		runs, next, release, err := s.c.o.Log.Read(s.ctx, s.partition, at, s.c.o.LoadBytes)
		if err != nil {
			return 0, fmt.Errorf("coordinator: read partition %d at %d: %w", s.partition, at, err)
		}
		for _, run := range runs {
			if err = batch.Walk(run, func(h batch.Header, b []byte) error { return s.replayBatch(h, b, at, &records) }); err != nil {
				break
			}
		}
		if release != nil {
			release()
		}
		switch {
		case err != nil:
			return 0, fmt.Errorf("coordinator: replay partition %d after %d: %w", s.partition, at, err)
		case next <= at:
			return 0, fmt.Errorf("coordinator: read partition %d at %d: no progress", s.partition, at)
		case s.ctx.Err() != nil:
			return 0, s.ctx.Err()
		}
		at = next
		s.bytes.Store(s.state.Bytes())
	}
	return records, nil
}

// replayBatch applies the records of a batch. Markers are skipped; so are records that cannot be read, loudly: any
// client with permission may have produced them, and they must not keep the partition's groups from being served.
func (s *shard) replayBatch(h batch.Header, b []byte, from int64, records *int64) error {
	if h.Control() {
		return nil
	}
	if err := batch.VerifyCRC(b); err != nil {
		return err
	}
	for rec, err := range batch.Records(b, s.c.o.MaxInflated) {
		if err != nil {
			return fmt.Errorf("batch at %d: %w", h.BaseOffset, err)
		}
		offset := h.BaseOffset + int64(rec.OffsetDelta)
		if offset < from {
			continue
		}
		*records++
		if err := s.state.Apply(group.Record{Key: rec.Key, Value: rec.Value}); err != nil {
			s.c.ev.BadRecord(s.partition, offset, err)
			s.log.Warn("record of group state skipped", "offset", offset, "err", err)
		}
	}
	return nil
}

func (s *shard) activate(records int64, began time.Time) {
	now := time.Now()
	follow := s.state.Loaded(now)
	for _, id := range s.state.GroupIDs() {
		if at, ok := s.state.Deadline(id); ok {
			s.arm(id, at)
		}
	}
	for _, c := range follow {
		s.admit(op{cmd: c}, now)
	}
	s.expireAt = now.Add(s.c.o.ExpiryInterval)
	s.count(now)
	s.bytes.Store(s.state.Bytes())
	groups := len(s.state.GroupIDs())
	_, _, offsets := s.state.Counts()
	s.mu.Lock()
	s.active = true
	s.mu.Unlock()
	took := now.Sub(began)
	s.c.ev.Loaded(s.partition, groups, offsets, records, took)
	if records > 0 {
		s.log.Info("groups loaded", "groups", groups, "offsets", offsets, "records", records, "took", took)
	}
}
