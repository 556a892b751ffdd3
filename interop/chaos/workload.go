package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
)

// The work of a round, on topics of its own:
//
//	idempotent producers ------> in  --> two processors of the group "process" --> out
//	                                 --> two members of the group "readers"
//	transactional producers ---> txn, kept
//	an idempotent producer ----> kept, which is compacted
//
// and readers in every rack, at both isolation levels, read all of it along. Clients are used as their makers want it:
// what fails is begun again with a new client, and the old one's word for what became of it stands. They try again every
// 100 ms for as long as their limits of time allow, as the Java client does: a number of tries would be used up by a
// failover that takes a little longer, and what follows (a new session, the old transaction, its member of the group) takes
// several times as long as the failover.
type workload struct {
	l         *ledger
	bootstrap []string
	round     int
	seed      uint64
	breaks    string // what clients do wrong, for the check to find
	note      func(format string, args ...any)

	in, out, txn, kept string
	inID               [16]byte
	partitions         int32
	feeds, reads, ends atomic.Bool // whether producers, then the groups, then the readers are to end

	producers, groups, readers sync.WaitGroup
	unfinished                 atomic.Pointer[error]
}

// What clients can be told to do wrong.
const (
	breaksAcks      = "acks"      // producers have the leader alone acknowledge
	breaksIsolation = "isolation" // readers of committed records read all
)

const (
	sessions    = 2 // of each kind
	keys        = 60
	recordsEach = 6 * time.Millisecond
)

func newWorkload(l *ledger, bootstrap []string, round int, seed uint64, partitions int32, note func(string, ...any)) *workload {
	w := &workload{l: l, bootstrap: bootstrap, round: round, seed: seed, partitions: partitions, note: note}
	w.in, w.out, w.txn, w.kept = fmt.Sprintf("in-%d", round), fmt.Sprintf("out-%d", round), fmt.Sprintf("txn-%d", round), fmt.Sprintf("kept-%d", round)
	for _, t := range w.topics() {
		for p := range partitions {
			l.expect(history.Partition{Topic: t, Index: p})
		}
	}
	l.h.Derived = []history.Derived{{In: w.in, Out: w.out, Producer: w.group("process")}}
	l.h.Compacted = append([]string{w.kept}, internal...)
	return w
}

func (w *workload) topics() []string         { return []string{w.in, w.out, w.txn, w.kept} }
func (w *workload) group(kind string) string { return fmt.Sprintf("%s-%d", kind, w.round) }
func (w *workload) rnd(n int) *rand.Rand     { return rand.New(rand.NewPCG(w.seed, uint64(w.round*100+n))) }
func (w *workload) options(o ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{kgo.SeedBrokers(w.bootstrap...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(-1),
		kgo.MetadataMinAge(100 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }), kgo.RequestRetries(1000),
		kgo.DialTimeout(2 * time.Second), kgo.ProduceRequestTimeout(3 * time.Second), kgo.RequestTimeoutOverhead(3 * time.Second),
		kgo.ProducerLinger(0)}, o...)
}

func (w *workload) start() {
	for i := range sessions {
		w.producers.Go(func() { w.produce(fmt.Sprintf("p%d", i), nil) })
		w.producers.Go(func() { w.transact(i) })
		w.groups.Go(func() { w.process(i) })
		w.groups.Go(func() { w.member(i) })
	}
	w.producers.Go(func() { w.produce("k", w.rnd(30)) })
	for i := range 3 {
		w.readers.Go(func() { w.readAlong(i) })
	}
	w.readers.Go(w.ask)
}

// pause waits, and says whether the work goes on.
func (w *workload) pause(d time.Duration, over *atomic.Bool) bool {
	time.Sleep(d)
	return !over.Load()
}

// keyed is a record with one of the keys of the compacted topic, each of which has one partition.
func (w *workload) keyed(rnd *rand.Rand, r history.Record) (history.Partition, history.Record) {
	k := rnd.Int32N(keys)
	r.Key, r.Tombstone = fmt.Sprintf("key-%d", k), rnd.IntN(10) == 0
	return history.Partition{Topic: w.kept, Index: k % w.partitions}, r
}

// produce is an idempotent producer: it sends to every partition of the input in turn, or, with rnd, to keys of the compacted
// topic, until its records are all answered.
func (w *workload) produce(name string, rnd *rand.Rand) {
	next := make([]int64, w.partitions)
	for session := 0; !w.feeds.Load(); session++ {
		var failed atomic.Pointer[error]
		opts := w.options()
		if w.breaks == breaksAcks {
			opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
		}
		cl, err := kgo.NewClient(opts...)
		if err != nil {
			panic(err)
		}
		producer := fmt.Sprintf("%s.%d", name, session)
		for i := 0; failed.Load() == nil && w.pause(recordsEach, &w.feeds); i++ {
			if cl.BufferedProduceRecords() > 2000 {
				continue
			}
			p, r := history.Partition{Topic: w.in, Index: int32(i) % w.partitions}, history.Record{Producer: producer}
			if rnd != nil {
				p, r = w.keyed(rnd, r)
			}
			r.Number = next[p.Index]
			w.l.send(cl.Produce, p, r, 100+i%700, func(err error) {
				if err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			})
			next[p.Index]++
		}
		if e := failed.Load(); e != nil {
			w.note("producer %s begins anew: %v", producer, *e)
		}
		w.flush(cl, "producer "+producer)
		cl.Close()
	}
}

// flush waits until all that was sent is answered, however that is; who waits longer than patience hangs.
func (w *workload) flush(cl *kgo.Client, who string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cl.Flush(ctx); err != nil {
		w.fail(fmt.Errorf("%s: %d records were not answered within %s", who, cl.BufferedProduceRecords(), patience))
	}
}

func (w *workload) fail(err error) { w.unfinished.CompareAndSwap(nil, &err) }

// transact has transactions of some partitions committed, aborted, or left open by a producer that goes away.
func (w *workload) transact(i int) {
	rnd := w.rnd(10 + i)
	id := fmt.Sprintf("txn-%d-%d", w.round, i)
	next := make([]int64, w.partitions)
	for n := 0; !w.feeds.Load(); {
		cl, err := kgo.NewClient(w.options(kgo.TransactionalID(id), kgo.TransactionTimeout(10*time.Second))...)
		if err != nil {
			panic(err)
		}
		for !w.feeds.Load() {
			n++
			txn := fmt.Sprintf("%s.%d", id, n)
			again, err := w.transaction(cl, rnd, id, txn, next)
			if err != nil {
				w.note("transaction %s: %v", txn, err)
			}
			if !again {
				break
			}
		}
		cl.Close()
	}
}

// transaction is one; it says whether the client is still good.
func (w *workload) transaction(cl *kgo.Client, rnd *rand.Rand, id, txn string, next []int64) (good bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cl.BeginTransaction(); err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	w.l.begin(txn)
	var failed atomic.Pointer[error]
	for range 1 + rnd.IntN(20) {
		p, r := history.Partition{Topic: w.txn, Index: rnd.Int32N(w.partitions)}, history.Record{Producer: id, Txn: txn}
		if rnd.IntN(3) == 0 {
			p, r = w.keyed(rnd, r)
		}
		r.Number = next[p.Index]
		w.l.send(cl.Produce, p, r, 100+rnd.IntN(400), func(err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
		next[p.Index]++
		if rnd.IntN(4) == 0 {
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
		}
	}
	how := rnd.IntN(20)
	if how == 0 { // gone: its coordinator, or its successor, aborts it
		return false, nil
	}
	w.flush(cl, "transactional producer "+id)
	if e := failed.Load(); e != nil {
		err, how = *e, 1
	}
	if how < 5 {
		w.l.ended(txn, history.Not)
		if e := cl.EndTransaction(ctx, kgo.TryAbort); e != nil {
			return false, errors.Join(err, fmt.Errorf("abort: %w", e))
		}
		return err == nil, err
	}
	w.l.asks(txn)
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		if ctx.Err() != nil {
			w.fail(fmt.Errorf("transaction %s: its commit was not answered within %s: %w", txn, patience, err))
		}
		return false, fmt.Errorf("commit: %w", err)
	}
	w.l.ended(txn, history.Done)
	return true, nil
}

// shownPhase is how long something may take a processor and no word is made of it.
const shownPhase = 2 * time.Second

// phases tells what a processor spends its time on, where that is long: what the gaps of the output are made of.
type phases struct {
	note  func(string, ...any)
	doing string // "": nothing that is looked at
	since time.Time
}

// turn begins another phase, or goes on with the same one.
func (p *phases) turn(to string) {
	if to == p.doing {
		return
	}
	now := time.Now()
	if d := now.Sub(p.since); p.doing != "" && d >= shownPhase {
		p.note("%s: %.1fs", p.doing, d.Seconds())
	}
	p.doing, p.since = to, now
}

// process reads the input as a member of a group, and writes each record to the same partition of the output, in
// transactions that have the offsets too. A processor that begins anew has its transactional id initialised first, as Kafka
// Streams does: that ends what its predecessor has left open, whose offsets nobody is told before.
func (w *workload) process(i int) {
	rnd, group := w.rnd(20+i), w.group("process")
	id := fmt.Sprintf("%s-%d", group, i)
	reader := w.l.reader(history.Reader{Name: fmt.Sprintf("processor %d", i), Committed: true})
	var assigned atomic.Int32
	count := func(n int32) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, m map[string][]int32) { assigned.Add(n * int32(len(m[w.in]))) }
	}
	opts := w.options(kgo.TransactionalID(id), kgo.TransactionTimeout(10*time.Second), kgo.ConsumerGroup(group), kgo.ConsumeTopics(w.in),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(200*time.Millisecond),
		kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(500*time.Millisecond), kgo.RebalanceTimeout(10*time.Second), kgo.Rack("zone-1"),
		kgo.OnPartitionsAssigned(count(1)), kgo.OnPartitionsRevoked(count(-1)), kgo.OnPartitionsLost(count(-1)))
	if w.round%2 == 0 {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	} else {
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	at := phases{note: func(format string, args ...any) { w.note("processor "+id+": "+format, args...) }}
	for n := 0; !w.reads.Load(); {
		assigned.Store(0)
		s, err := kgo.NewGroupTransactSession(opts...)
		if err != nil {
			panic(err)
		}
		at.turn("initialising its transactional id")
		err = w.initialised(s.Client())
		if err != nil {
			w.pause(time.Second, &w.reads) // nobody is there to be asked
		}
		for err == nil && !w.reads.Load() {
			n++
			var good bool
			txn := fmt.Sprintf("%s.%d", id, n)
			if good, err = w.processed(s, rnd, reader, group, txn, &assigned, &at); err != nil {
				w.note("processor %s: %v", txn, err)
				if good {
					err = nil
				}
			}
		}
		at.turn("closing")
		s.Close()
		at.turn("")
	}
}

// initialised has a client's transactional id initialised, and with it what was left open of it aborted.
func (w *workload) initialised(cl *kgo.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, _, err := cl.ProducerID(ctx)
	if err != nil {
		w.note("a transactional id is not initialised: %v", err)
	}
	return err
}

func (w *workload) processed(s *kgo.GroupTransactSession, rnd *rand.Rand, reader int, group, txn string, assigned *atomic.Int32, at *phases) (good bool, err error) {
	switch {
	case assigned.Load() == 0:
		at.turn("polling without an assignment")
	case len(s.Client().CommittedOffsets()) == 0:
		at.turn("polling without offsets to begin at")
	default:
		at.turn("polling without records")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	fetches := s.PollRecords(ctx, 1+rnd.IntN(200))
	cancel()
	w.fetchErrors("processor", fetches)
	records := fetches.Records()
	if len(records) == 0 {
		return true, nil
	}
	at.turn("producing")
	w.l.shown(reader, records, nil)
	if err := s.Begin(); err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	w.l.begin(txn)
	var failed atomic.Pointer[error]
	for _, r := range records {
		w.l.send(s.Produce, history.Partition{Topic: w.out, Index: r.Partition}, history.Record{Producer: group, Number: r.Offset, Txn: txn}, 60+int(r.Offset%100), func(err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
	}
	w.flush(s.Client(), "processor "+txn)
	commit := failed.Load() == nil && rnd.IntN(8) > 0
	offsets := s.Client().UncommittedOffsets()
	if commit {
		w.l.asks(txn)
	} else {
		w.l.ended(txn, history.Not)
	}
	at.turn("ending a transaction")
	ctx, cancel = context.WithTimeout(context.Background(), patience)
	defer cancel()
	committed, err := s.End(ctx, kgo.TransactionEndTry(commit))
	switch {
	case err != nil:
		if ctx.Err() != nil {
			w.fail(fmt.Errorf("transaction %s: its end was not answered within %s: %w", txn, patience, err))
		}
		return false, fmt.Errorf("end: %w", err)
	case committed:
		w.l.ended(txn, history.Done)
		w.l.committed(group, offsets)
	default:
		w.l.ended(txn, history.Not)
	}
	if e := failed.Load(); e != nil {
		return true, *e
	}
	return true, nil
}

// fetchErrors notes what went wrong with fetches that the client does not get over by itself.
func (w *workload) fetchErrors(who string, fetches kgo.Fetches) {
	for _, e := range fetches.Errors() {
		var lost *kgo.ErrDataLoss
		if e.Topic == "" || errors.As(e.Err, &lost) {
			// Of the group, which the client joins again; or the client asks where the leader epoch of the last record ended that
			// it returned, and all that it has skipped since were markers and aborted records of later ones. Whether anybody was
			// really taken back is seen from the offsets.
			continue
		}
		if !errors.Is(e.Err, context.DeadlineExceeded) && !errors.Is(e.Err, context.Canceled) && !errors.Is(e.Err, kgo.ErrClientClosed) {
			w.note("%s: %s-%d: %v", who, e.Topic, e.Partition, e.Err)
		}
	}
}

// member reads the input as a member of a group, and commits what it has read.
func (w *workload) member(i int) {
	group := w.group("readers")
	reader := w.l.reader(history.Reader{Name: fmt.Sprintf("group member %d", i), Committed: true})
	opts := w.options(kgo.ConsumerGroup(group), kgo.ConsumeTopics(w.in), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(200*time.Millisecond), kgo.Rack("zone-2"),
		kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(500*time.Millisecond), kgo.RebalanceTimeout(10*time.Second), kgo.BlockRebalanceOnPoll())
	if w.round%2 == 1 {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	} else {
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		panic(err)
	}
	defer cl.CloseAllowingRebalance()
	for !w.reads.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		fetches := cl.PollRecords(ctx, 300)
		cancel()
		w.fetchErrors("group member", fetches)
		if records := fetches.Records(); len(records) > 0 {
			w.l.shown(reader, records, nil)
			w.commit(cl, group)
		}
		cl.AllowRebalance()
	}
}

func (w *workload) commit(cl *kgo.Client, group string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cl.CommitOffsetsSync(ctx, cl.UncommittedOffsets(), func(_ *kgo.Client, req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			return
		}
		type part struct {
			topic string
			p     int32
		}
		ok := map[part]bool{}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				ok[part{t.Topic + string(t.TopicID[:]), p.Partition}] = p.ErrorCode == 0
			}
		}
		acked := map[string]map[int32]kgo.EpochOffset{w.in: {}}
		for _, t := range req.Topics {
			for _, p := range t.Partitions {
				if ok[part{t.Topic + string(t.TopicID[:]), p.Partition}] {
					acked[w.in][p.Partition] = kgo.EpochOffset{Offset: p.Offset}
				}
			}
		}
		w.l.committed(group, acked)
	})
}

// readAlong reads everything from a rack, at one isolation level, without a group.
func (w *workload) readAlong(i int) {
	committed := i != 2
	opts := w.options(kgo.ConsumeTopics(w.topics()...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(200*time.Millisecond),
		kgo.Rack(fmt.Sprintf("zone-%d", i+1)))
	if committed && w.breaks != breaksIsolation {
		opts = append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		panic(err)
	}
	defer cl.Close()
	who := fmt.Sprintf("reader in zone %d", i+1)
	reader := w.l.reader(history.Reader{Name: who, Committed: committed, Steady: true})
	for !w.ends.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		fetches := cl.PollFetches(ctx)
		cancel()
		w.fetchErrors(who, fetches)
		w.l.shown(reader, fetches.Records(), nil)
	}
}

// ask asks for the offsets of the groups again and again.
func (w *workload) ask() {
	cl, err := kgo.NewClient(w.options(kgo.RequestRetries(2))...)
	if err != nil {
		panic(err)
	}
	defer cl.Close()
	for w.pause(300*time.Millisecond, &w.ends) {
		for _, kind := range []string{"process", "readers"} {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			w.groupOffsets(ctx, cl, w.group(kind))
			cancel()
		}
	}
}

// groupOffsets asks for a group's offsets, notes and returns them. An offset that a transaction is about to change is
// not told.
func (w *workload) groupOffsets(ctx context.Context, cl *kgo.Client, group string) (map[int32]int64, error) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	// They are named: one whose first offset is in an open transaction is left out of an answer for all that there are.
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic, t.TopicID = w.in, w.inID
	for p := range w.partitions {
		t.Partitions = append(t.Partitions, p)
	}
	g.Topics = append(g.Topics, t)
	req.Groups = append(req.Groups, g)
	began := w.l.time()
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	if len(resp.Groups) != 1 {
		return nil, fmt.Errorf("%d groups in the answer", len(resp.Groups))
	}
	if err := kerr.ErrorForCode(resp.Groups[0].ErrorCode); err != nil {
		return nil, err
	}
	offsets := map[int32]int64{}
	for _, t := range resp.Groups[0].Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 {
				offsets[p.Partition] = p.Offset
			}
		}
	}
	for p, o := range offsets {
		w.l.told(group, history.Partition{Topic: w.in, Index: p}, began, o)
	}
	return offsets, nil
}
