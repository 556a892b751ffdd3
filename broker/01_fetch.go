package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
	"github.com/varve/varve/wal/slab"
)

// Fetch (key 1), versions 4 to 18.
//
// Behavior:
//   - What is hot or cold is decided in one place, read: offsets at or above
//     the local start come from the log (memory first), the others from the
//     bucket. All cold partitions of a request load in parallel, and hot ones
//     never wait for them; a load goes on when the request has been answered,
//     so that the next fetch finds it in the cache.
//   - A fetch that finds less than min.bytes parks on its session: it costs
//     nothing per partition until one of them grows. Its deadline is the
//     connection writer's timer.
//   - At least one batch is returned if there is one, whatever the limits.
//   - A consumer in a rack is sent to an in-sync replica of its rack (KIP-392);
//     followers serve what is below the high watermark that they know of, and
//     send the consumer back when they are not in sync, or do not hear from the leader.
//   - A fetch of another broker, which has proved to be one, is a follower's: it
//     is sent what is not durable here yet, and its offset says what is durable
//     there.
//
// Versions: 7 sessions, 12 divergence by epoch, 13 topic ids, 15 replica
// state, 16 endpoints of a new leader.

// fetch is one Fetch request on its way to an answer.
type fetch struct {
	b       *Broker
	p       *pending
	req     *kmsg.FetchRequest
	ctx     context.Context
	s       *session
	keep    bool // the session outlives the request
	full    bool // the answer names every partition
	max     int64
	copier  *copier // nil: a consumer's
	started time.Time
	end     time.Time // when the client stops waiting

	results []fetchResult
	cold    []int // indexes of results that wait for the bucket
	have    int64
	urgent  bool // an error or a divergence: answer now
	watched bool // a session of this request only: its watches are set
	charged int64
	wasted  int64 // of what the buffers of the answer take beside its records
}

// parkedFetch is a fetch that waits for its session to grow.
type parkedFetch struct {
	f    *fetch
	have int64
	want int64
}

func (p *parkedFetch) resume() { p.f.p.c.guard(p.f.p, func() { p.f.resume(p) }) }

// fetchResult is the answer for one partition.
type fetchResult struct {
	w                *watch
	code             int16
	view             partition.View
	chunks           [][]byte
	bytes            int
	next             int64
	release          func()
	aborted          []producer.Aborted
	divergeEpoch     int32
	divergeEnd       int64
	cold             bool
	coldMax          int
	skipped          bool // not looked at: the answer is full
	preferredReplica int32
}

func (b *Broker) fetch(r *request) error {
	defer r.buf.Release()
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(r.hdr.Version)
	if err := req.ReadFrom(r.body); err != nil {
		return fmt.Errorf("%w: Fetch v%d: %v", protocol.ErrMalformed, r.hdr.Version, err)
	}
	f := &fetch{b: b, p: r.p, req: req, ctx: r.ctx, started: time.Now()}
	f.p.fetch = true
	f.max = int64(min(max(req.MaxBytes, 0), int32(b.conf().FetchMaxBytes)))
	wait := time.Duration(min(max(req.MaxWaitMillis, 0), maxFetchWaitMs)) * time.Millisecond
	f.end = f.started.Add(wait)

	// Only brokers replicate (CVE-2018-1288: a forged follower moves the high
	// watermark).
	replica := req.ReplicaID >= 0 || req.ReplicaState.ID >= 0
	if replica && r.c.peer != nil && r.c.peer.id == req.ReplicaState.ID {
		f.copier = &copier{id: req.ReplicaState.ID, epoch: req.ReplicaState.Epoch}
	}
	if code := f.open(); code != 0 {
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		resp.ErrorCode = code
		r.p.respond(resp)
		return nil
	}
	if replica && f.copier == nil {
		f.refuseAll(protocol.CodeClusterAuthorizationFailed)
		f.finish()
		return nil
	}
	if !knownIsolation(req.IsolationLevel) { // in an answer that has no code for all of it
		f.refuseAll(protocol.CodeInvalidRequest)
		f.finish()
		return nil
	}
	f.evaluate(f.take(nil))
	f.settle()
	return nil
}

// knownIsolation refuses what asks for records in another way than Kafka knows: read_uncommitted (0), read_committed (1).
// Kafka fails at them with UNKNOWN_SERVER_ERROR.
func knownIsolation(level int8) bool { return level == 0 || level == 1 }

// maxFetchWaitMs bounds max.wait.ms: a client that asks for more is answered
// empty and asks again.
const maxFetchWaitMs = 10 * 60 * 1000

// open finds or makes the session and applies what the request says of its
// partitions. It returns a top-level error code.
func (f *fetch) open() int16 {
	req := f.req
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	if n > protocol.MaxPartitions || req.Version >= 7 && !knownIsolation(req.IsolationLevel) {
		return protocol.CodeInvalidRequest
	}
	if req.SessionEpoch != 0 && req.SessionEpoch != -1 {
		s := f.b.sessions.find(req.SessionID) // 0 is no session's
		if s == nil {
			return protocol.CodeFetchSessionIDNotFound
		}
		s.mu.Lock()
		if s.busy || s.epoch != req.SessionEpoch || s.watches == nil || s.copies != (f.copier != nil) {
			s.mu.Unlock()
			return protocol.CodeInvalidFetchSessionEpoch
		}
		s.busy = true
		s.mu.Unlock()
		f.s, f.keep = s, true
		if !f.update() {
			// It was closed in between, or would be too large: the client
			// goes on with a full request.
			f.b.sessions.remove(req.SessionID)
			return protocol.CodeFetchSessionIDNotFound
		}
		return 0
	}
	if req.SessionID != 0 {
		f.b.sessions.remove(req.SessionID)
	}
	f.full = true
	f.s = &session{watches: make(map[partitionKey]*watch, n), busy: true, lastUsed: f.started}
	if f.copier != nil {
		f.s.copies, f.s.of = true, f.copier.id
	}
	f.update()
	if req.SessionEpoch == 0 && req.Version >= 7 && n > 0 && f.b.sessions.create(f.s, f.started) {
		f.keep = true
		f.s.epoch = 1
		f.attach()
	}
	return 0
}

// update applies the partitions of the request to the session and lists them
// as ones to look at. It reports false when the session has ended, or has no
// room for them: a session must not grow without end by small requests.
func (f *fetch) update() bool {
	s, byID := f.s, f.req.Version >= 13
	var added, dropped []*watch
	fits := true
	s.mu.Lock()
	if s.watches == nil {
		s.mu.Unlock()
		return false
	}
	before := len(s.watches)
	for i := range f.req.Topics {
		t := &f.req.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			k := partitionKey{topic: t.Topic, index: p.Partition}
			if byID {
				k = partitionKey{id: t.TopicID, index: p.Partition}
			}
			w := s.watches[k]
			if w == nil && !f.full && (len(s.watches) >= protocol.MaxPartitions || !s.copies && f.b.sessions.full(len(s.watches)-before)) {
				fits = false
				continue
			}
			if w == nil {
				w = &watch{s: s, r: f.b.replicas.byKey(k)}
				w.p.toldHW, w.p.toldLogStart, w.p.toldRemoteEnd = -1, -1, -1
				s.watches[k] = w
				if f.full {
					s.order = append(s.order, w)
				} else {
					added = append(added, w)
				}
			}
			w.p.key = k
			w.p.fetchOffset, w.p.maxBytes = p.FetchOffset, p.PartitionMaxBytes
			w.p.currentEpoch, w.p.lastFetchedEpoch = p.CurrentLeaderEpoch, p.LastFetchedEpoch
			w.p.news = true
			if s.copies {
				// A follower that says where it stands may have begun anew, and may not have
				// heeded the last answer: it is told where the leader stands in any case.
				w.p.toldHW = -1
			}
			if !w.dirty {
				w.dirty = true
				s.dirty = append(s.dirty, w)
			}
		}
	}
	for i := range f.req.ForgottenTopics {
		t := &f.req.ForgottenTopics[i]
		for _, index := range t.Partitions {
			k := partitionKey{topic: t.Topic, index: index}
			if byID {
				k = partitionKey{id: t.TopicID, index: index}
			}
			if w := s.watches[k]; w != nil {
				delete(s.watches, k)
				w.gone = true
				dropped = append(dropped, w)
			}
		}
	}
	if f.keep {
		f.b.sessions.partitions.Add(int64(len(s.watches) - before))
	}
	s.mu.Unlock()
	for _, w := range added {
		if w.r != nil {
			w.r.addWatch(w)
		}
	}
	for _, w := range dropped {
		if w.r != nil {
			w.r.dropWatch(w)
		}
	}
	return fits
}

// attach ties every partition of a new session to its replica.
func (f *fetch) attach() {
	for _, w := range f.s.order {
		if w.r != nil {
			w.r.addWatch(w)
		}
	}
}

// take empties the session's list of partitions to look at, after those that
// are looked at again.
func (f *fetch) take(again []*watch) []*watch {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	list := again
	seen := len(again)
	for _, w := range f.s.dirty {
		w.dirty = false
		if w.gone || (seen > 0 && slices.Contains(again[:seen], w)) {
			continue
		}
		list = append(list, w)
	}
	f.s.dirty = f.s.dirty[:0]
	return list
}

// evaluate reads the given partitions as far as the limits allow.
func (f *fetch) evaluate(list []*watch) {
	for _, w := range list {
		res := fetchResult{w: w, divergeEpoch: -1, preferredReplica: -1}
		f.read(&res, f.max-f.have)
		if res.code != 0 || res.divergeEpoch >= 0 || res.preferredReplica >= 0 {
			f.urgent = true
		}
		f.have += int64(res.bytes)
		if res.cold {
			f.cold = append(f.cold, len(f.results))
		}
		f.results = append(f.results, res)
	}
}

// read is the one place where hot and cold are decided.
func (f *fetch) read(res *fetchResult, room int64) {
	w := res.w
	p := &w.p
	r := w.r
	if r == nil || r.view.Load().Role == partition.Offline {
		// The topic may have come, gone, or come again since.
		if now := f.b.replicas.byKey(p.key); now != r {
			if r != nil {
				r.dropWatch(w)
			}
			w.r = now
			if now != nil && f.keep {
				now.addWatch(w)
			}
			r = now
		}
	}
	if r == nil {
		if f.req.Version >= 13 {
			res.code = f.b.missingID(p.key.id, p.key.index)
		} else {
			res.code = f.b.missingNamed(p.key.topic, p.key.index)
		}
		res.view = noView
		return
	}
	v := *r.view.Load()
	res.view = v
	// Consumers may read from any replica since version 11 (KIP-392).
	if v.Role != partition.Leader && (v.Role != partition.Follower || f.copier != nil || f.req.Version < 11) {
		res.code = r.notServing()
		res.view = noView
		return
	}
	if res.code = partition.CheckEpoch(v.Epoch, p.currentEpoch); res.code != 0 {
		return
	}
	if v.Role == partition.Follower && !r.fresh() {
		// Clients that are refused here go on asking here, some of them: this they all understand.
		if p := f.b.meta.Image().Partition(r.topicID, r.index); p != nil && p.Leader >= 0 && p.Leader != f.b.opts.BrokerID {
			res.preferredReplica, res.view = p.Leader, noView
			return
		}
	}
	// Before the range: a client that is ahead of a log that has lost records
	// is to go on where they part, and not where its reset policy sends it.
	if p.lastFetchedEpoch >= 0 && (p.lastFetchedEpoch != v.Epoch || p.fetchOffset < v.EpochStart || p.fetchOffset > v.LogEnd) {
		epoch, end := r.endOfEpoch(p.lastFetchedEpoch)
		if epoch < 0 || end < 0 {
			// From an epoch that has not been yet: as Kafka answers it.
			res.code = protocol.CodeOffsetOutOfRange
			return
		}
		if epoch < p.lastFetchedEpoch || end < p.fetchOffset {
			res.divergeEpoch, res.divergeEnd = epoch, end
			return
		}
	}
	if p.fetchOffset < v.LogStart || p.fetchOffset > v.LogEnd {
		res.code = protocol.CodeOffsetOutOfRange
		return
	}
	if f.copier != nil {
		if p.news {
			moved, code := r.fetched(f.copier, v.Epoch, p.fetchOffset)
			if res.code = code; code != 0 {
				return
			}
			p.news = false
			if moved {
				v = *r.view.Load()
				res.view = v
			}
		}
		if p.fetchOffset < r.localStart() {
			res.code = protocol.CodeOffsetMovedToTieredStorage
			return
		}
	}
	throttled := f.copier != nil && r.sendsThrottled(f.copier.id)
	if throttled && p.fetchOffset < v.LogEnd && f.b.sending.exceeded() {
		res.skipped = true
		return
	}
	if f.copier == nil && v.Role == partition.Leader {
		if res.preferredReplica = r.nearest(f.req.Rack, p.fetchOffset); res.preferredReplica >= 0 {
			return
		}
	}
	bound := v.HighWatermark
	if f.copier != nil {
		bound = v.LogEnd
	}
	if f.req.IsolationLevel == 1 {
		bound = v.LastStableOffset
	}
	if p.fetchOffset >= bound {
		return
	}
	limit := int64(max(p.maxBytes, 0))
	first := f.have == 0
	if f.b.responses.exhausted() {
		limit = min(limit, 1)
	}
	limit = min(limit, room)
	if limit <= 0 && !first {
		res.skipped = true
		return
	}
	if p.fetchOffset < r.servedStart() && f.copier == nil {
		res.cold, res.coldMax = true, int(max(limit, 1))
		return
	}
	run, err := f.b.log_.Read(r.localID(), p.fetchOffset, int(max(limit, 1)), bound)
	if err != nil {
		if f.copier != nil && errors.Is(err, wal.ErrOutOfRange) {
			res.code = protocol.CodeOffsetMovedToTieredStorage // reclaimed in between
			return
		}
		if errors.Is(err, wal.ErrOutOfRange) && p.fetchOffset < r.localStart() {
			res.cold, res.coldMax = true, int(max(limit, 1)) // reclaimed in between
			return
		}
		f.b.ev.LocalReadFailed()
		if f.b.failures.localRead.Allow() {
			f.b.log.Error("read of the local log failed", "partition", r.String(), "offset", p.fetchOffset, "remote_end", v.RemoteEnd, "err", err)
		}
		if p.fetchOffset < v.RemoteEnd && f.copier == nil {
			// What the disk cannot give, the bucket still has.
			res.cold, res.coldMax = true, int(max(limit, 1))
			return
		}
		res.code = protocol.CodeKafkaStorageError
		return
	}
	if run.Bytes == 0 || (!first && int64(run.Bytes) > limit) {
		run.Release()
		res.skipped = run.Bytes > 0
		return
	}
	if f.req.IsolationLevel == 1 {
		res.aborted, _ = r.aborted(p.fetchOffset, run.Next)
		if p.fetchOffset < r.localStart() {
			// The local log has let go of it since, and the list may be short.
			run.Release()
			res.aborted, res.cold, res.coldMax = nil, true, int(max(limit, 1))
			return
		}
	}
	if throttled {
		f.b.sending.took(run.Bytes)
	}
	f.take1(res, run.Chunks, run.Bytes, run.Next, run.Held(), run.Release)
}

// take1 puts records into a partition's answer and charges them. They lie in
// buffers that others share, of held bytes: one batch keeps the whole request
// that it came with, or the chunk of an object, until a slow client has read the
// answer. What is kept for nothing is bounded too: beyond that, records are
// copied.
func (f *fetch) take1(res *fetchResult, chunks [][]byte, bytes int, next int64, held int64, release func()) {
	if waste := held - int64(bytes); waste > int64(bytes) {
		if f.b.wasted.take(waste) {
			f.wasted += waste
		} else {
			own := slab.Get(bytes)
			at := 0
			for _, c := range chunks {
				at += copy(own.Bytes()[at:], c)
			}
			release()
			chunks, release = [][]byte{own.Bytes()}, own.Release
		}
	}
	res.chunks, res.bytes, res.next, res.release = chunks, bytes, next, release
	f.charged += int64(bytes)
	f.b.responses.add(int64(bytes))
}

// settle answers, waits for the bucket, or parks.
func (f *fetch) settle() {
	for {
		if len(f.cold) > 0 {
			go f.p.c.guard(f.p, f.loadCold)
			return
		}
		if f.enough() {
			f.finish()
			return
		}
		if !f.keep && !f.watched {
			// A fetch without a session watches only while it waits. What
			// grew before the watches were set is found by looking again.
			f.watched = true
			f.attach()
			f.again(true)
			continue
		}
		parked := &parkedFetch{f: f, have: f.have, want: int64(f.req.MinBytes)}
		s := f.s
		s.mu.Lock()
		if len(s.dirty) > 0 {
			s.mu.Unlock()
			f.again(false)
			continue
		}
		if now := time.Now(); now.Before(s.hastened) {
			f.end = now.Add(min(f.end.Sub(now), hastenedWait))
		}
		s.parked = parked
		// Under the lock: as soon as it is released the fetch may be woken and park
		// again, and this deadline must not take the place of that one.
		waits := f.p.park(f.end, func() { f.expire(parked) })
		s.mu.Unlock()
		if !waits {
			f.expire(parked)
		}
		return
	}
}

func (f *fetch) enough() bool {
	return f.urgent || f.have >= int64(f.req.MinBytes) || !time.Now().Before(f.end) || f.have >= f.max || f.ctx.Err() != nil ||
		f.b.draining.Load()
}

// again looks once more at the partitions that had something and at those
// that changed, or at all of them.
func (f *fetch) again(all bool) {
	var list []*watch
	for i := range f.results {
		res := &f.results[i]
		if res.release != nil {
			res.release()
			res.release = nil
		}
		if all || res.bytes > 0 || res.skipped || res.code != 0 {
			list = append(list, res.w)
		}
	}
	f.b.responses.add(-f.charged)
	f.b.wasted.add(-f.wasted)
	f.charged, f.wasted = 0, 0
	kept := f.results[:0]
	if !all {
		for i := range f.results {
			res := f.results[i]
			if res.bytes == 0 && !res.skipped && res.code == 0 {
				kept = append(kept, res)
			}
		}
	}
	f.results, f.have, f.urgent, f.cold = kept, 0, false, nil
	list = f.take(list)
	// A partition that was empty and has grown is in both: the new look counts.
	if len(f.results) > 0 && len(list) > 0 {
		look := make(map[*watch]struct{}, len(list))
		for _, w := range list {
			look[w] = struct{}{}
		}
		f.results = slices.DeleteFunc(f.results, func(res fetchResult) bool { _, ok := look[res.w]; return ok })
	}
	f.evaluate(list)
}

// resume goes on after a partition of the session grew.
func (f *fetch) resume(p *parkedFetch) {
	f.again(false)
	f.settle()
}

// expire answers a parked fetch whose time is over; if it has just been woken,
// whoever woke it answers.
func (f *fetch) expire(p *parkedFetch) {
	f.s.mu.Lock()
	mine := f.s.parked == p
	if mine {
		f.s.parked = nil
	}
	f.s.mu.Unlock()
	if mine {
		f.finish()
	}
}

// coldGrace is how long a request that has hot records waits for cold ones: as
// long as the chunk cache needs, but no download.
const coldGrace = 5 * time.Millisecond

// loadCold reads the cold partitions in parallel and answers with what came in
// time.
func (f *fetch) loadCold() {
	type loaded struct {
		i       int
		run     tiering.Run
		aborted []producer.Aborted
		err     error
	}
	var mu sync.Mutex
	over := false
	got := make(chan loaded, len(f.cold))
	asked := 0
	for _, i := range f.cold {
		if f.b.coldReads.Add(1) > int64(f.b.conf().RemoteReads+f.b.conf().RemoteMaxPendingReads) {
			// remote.log.reader.max.pending.tasks: answered empty, and asked
			// for again.
			f.b.coldReads.Add(-1)
			continue
		}
		asked++
		res := &f.results[i]
		r, offset, limit, stable := res.w.r, res.w.p.fetchOffset, res.coldMax, res.view.LastStableOffset
		if n := int(f.max) / len(f.cold); len(f.cold) > 1 && limit > n {
			limit = max(n, 1)
		}
		if f.b.responses.exhausted() {
			limit = 1
		}
		// Charged before it comes: many that are under way would else pass the
		// bound together.
		f.b.responses.add(int64(limit))
		go func() {
			// Not the connection's context: what has been asked of the
			// bucket goes on, so that the next fetch finds it cached.
			var run tiering.Run
			var aborted []producer.Aborted
			var err error
			if f.req.IsolationLevel == 1 {
				run, aborted, err = r.readCommitted(f.b.ctx, offset, limit, stable)
			} else {
				run, err = f.b.tier.Read(f.b.ctx, r.topicID, r.index, offset, limit)
			}
			f.b.coldReads.Add(-1)
			mu.Lock()
			defer mu.Unlock()
			defer f.b.responses.add(-int64(limit))
			if over {
				if err == nil && run.Release != nil {
					run.Release()
				}
				return
			}
			got <- loaded{i, run, aborted, err}
		}()
	}
	wait := max(time.Until(f.end), f.b.conf().RemoteFetchMaxWait)
	if f.have >= max(int64(f.req.MinBytes), 1) || f.urgent {
		wait = coldGrace
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
wait:
	for ; asked > 0; asked-- {
		select {
		case l := <-got:
			f.loaded(&f.results[l.i], l.run, l.aborted, l.err)
		case <-timer.C:
			break wait
		case <-f.ctx.Done():
			break wait
		}
	}
	mu.Lock()
	over = true
	mu.Unlock()
	// What came in between the end of the wait and now is taken along.
	for len(got) > 0 {
		l := <-got
		f.loaded(&f.results[l.i], l.run, l.aborted, l.err)
	}
	f.finish()
}

func (f *fetch) loaded(res *fetchResult, run tiering.Run, aborted []producer.Aborted, err error) {
	r, p := res.w.r, &res.w.p
	if err != nil {
		if f.b.ctx.Err() == nil {
			if f.b.failures.coldRead.Allow() {
				f.b.log.Warn("read from object storage failed", "partition", r.String(), "offset", p.fetchOffset, "err", err)
			}
			f.b.ev.ColdReadFailed()
		}
		// Retriable: the consumer asks again, with backoff, and loses nothing.
		res.code = protocol.CodeKafkaStorageError
		return
	}
	bound := res.view.HighWatermark
	if f.req.IsolationLevel == 1 {
		bound = res.view.LastStableOffset
	}
	chunks, bytes, next := clip(run.Chunks, bound)
	if bytes == 0 {
		run.Release()
		return
	}
	f.take1(res, chunks, bytes, next, run.Held, run.Release)
	f.have += int64(bytes)
	res.aborted = aborted
}

// readCommitted reads from the bucket, and lists the aborted transactions with
// records in what was read below stable, wherever their markers are. The local
// ones are listed first: what they leave out is in the bucket by then. Of what the
// bucket has, its own list counts: it may have been compacted, and an entry whose
// marker is gone would hide what comes after.
func (r *replica) readCommitted(ctx context.Context, offset int64, limit int, stable int64) (tiering.Run, []producer.Aborted, error) {
	local, remoteEnd := r.aborted(offset, stable)
	c, err := r.b.tier.ReadCommitted(ctx, r.topicID, r.index, offset, limit, stable, remoteEnd)
	if err != nil {
		return tiering.Run{}, nil, err
	}
	to := min(c.Next, stable)
	local = slices.DeleteFunc(local, func(a producer.Aborted) bool { return a.LastOffset < c.End || a.FirstOffset >= to })
	return c.Run, mergeAborted(c.Aborted, local), nil
}

// clip cuts a run of batches at the first batch that reaches bound.
func clip(chunks [][]byte, bound int64) (out [][]byte, bytes int, next int64) {
	for _, c := range chunks {
		at := 0
		for at < len(c) {
			h, err := batch.ParseHeader(c[at:])
			if err != nil || h.NextOffset() > bound {
				if at > 0 {
					out = append(out, c[:at])
					bytes += at
				}
				return out, bytes, next
			}
			at += h.Size()
			next = h.NextOffset()
		}
		out = append(out, c)
		bytes += len(c)
	}
	return out, bytes, next
}

func mergeAborted(a, b []producer.Aborted) []producer.Aborted {
	if len(b) == 0 {
		return a
	}
	seen := make(map[[2]int64]struct{}, len(a))
	for _, x := range a {
		seen[[2]int64{x.ProducerID, x.FirstOffset}] = struct{}{}
	}
	for _, x := range b {
		if _, ok := seen[[2]int64{x.ProducerID, x.FirstOffset}]; !ok {
			a = append(a, x)
		}
	}
	slices.SortFunc(a, func(x, y producer.Aborted) int { return int(x.FirstOffset - y.FirstOffset) })
	return a
}

// refuseAll answers every partition of the request with one code.
func (f *fetch) refuseAll(code int16) {
	for _, w := range f.take(nil) {
		f.results = append(f.results, fetchResult{w: w, code: code, divergeEpoch: -1, preferredReplica: -1,
			view: noView})
	}
}

// finish encodes the answer, puts the session in order for the next request,
// and hands both over.
func (f *fetch) finish() {
	s := f.s
	var again, served []*watch
	told := f.results[:0:0]
	for i := range f.results {
		res := &f.results[i]
		p := &res.w.p
		// What returned records is looked at again unless the client moves
		// on, as is what did not fit, is still loading, or is in error.
		switch {
		case res.bytes > 0:
			served = append(served, res.w)
		case res.skipped || res.cold || res.code != 0 || res.preferredReplica >= 0:
			again = append(again, res.w)
		}
		changed := res.view.HighWatermark != p.toldHW || res.view.LogStart != p.toldLogStart || f.copier != nil && res.view.RemoteEnd != p.toldRemoteEnd
		if f.full || res.bytes > 0 || res.code != 0 || res.divergeEpoch >= 0 || res.preferredReplica >= 0 || changed {
			p.toldHW, p.toldLogStart, p.toldRemoteEnd = res.view.HighWatermark, res.view.LogStart, res.view.RemoteEnd
			if res.code != 0 {
				p.toldHW = -1 // so that the end of the error is told, too
			}
			told = append(told, *res)
		}
	}
	var id int32
	if f.keep {
		s.mu.Lock()
		s.next(again, served)
		if !f.full {
			s.epoch++
			if s.epoch <= 0 {
				s.epoch = 1
			}
		}
		s.order = nil
		s.busy = false
		s.lastUsed = time.Now()
		id = s.id
		s.mu.Unlock()
	} else {
		s.detach()
	}
	parts, free := encodeFetch(f.p.hdr, f.req, id, told, f.copier != nil, &newLeaders{b: f.b, c: f.p.c})
	charged, wasted, results := f.charged, f.wasted, f.results
	release := func() {
		for i := range results {
			if results[i].release != nil {
				results[i].release()
			}
		}
		f.b.responses.add(-charged)
		f.b.wasted.add(-wasted)
		free()
	}
	if f.copier == nil {
		f.b.ev.Fetched(f.have)
	}
	f.p.complete(parts, release)
}
