package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/wal/batch"
)

// wire is the network of one member, which can be cut.
type wire struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case w.cut:
		c.Close()
		return nil, errors.New("the wire is cut")
	}
	w.conns = append(w.conns, c)
	return c, nil
}

func (w *wire) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.conns {
		c.Close()
	}
}

// member is a consumer that commits what it has processed, and from which
// nothing is taken between the two.
type member struct {
	cl   *kgo.Client
	wire *wire
	stop context.CancelFunc
	done chan struct{}
}

// storm is a group whose members come and go.
type storm struct {
	p        *process
	consumer bool // the consumer protocol
	members  []*member
	zombies  []*kmsg.OffsetCommitRequest // what those that went would commit
	left     sync.WaitGroup

	mu   sync.Mutex
	seen map[[2]int64]bool // partition and offset of the records that were processed
}

func (s *storm) join() {
	w := &wire{}
	opts := []kgo.Opt{kgo.Dialer(w.dial), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), kgo.SessionTimeout(3 * time.Second), kgo.HeartbeatInterval(500 * time.Millisecond), kgo.RebalanceTimeout(20 * time.Second),
		kgo.FetchMaxWait(200 * time.Millisecond), kgo.RequestRetries(3)}
	if s.consumer {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	}
	ctx, stop := context.WithCancel(s.p.t.Context())
	m := &member{cl: s.p.client(opts...), wire: w, stop: stop, done: make(chan struct{})}
	s.members = append(s.members, m)
	go func() {
		defer close(m.done)
		for ctx.Err() == nil {
			fs := m.cl.PollFetches(ctx)
			if fs.NumRecords() > 0 {
				s.mu.Lock()
				fs.EachRecord(func(r *kgo.Record) { s.seen[[2]int64{int64(r.Partition), r.Offset}] = true })
				s.mu.Unlock()
				// Refused where the group has gone on without this member: the next one reads them again.
				_ = m.cl.CommitRecords(ctx, fs.Records()...)
			}
			m.cl.AllowRebalance()
		}
	}()
}

// leave takes a member away. One that dies says nothing: its session times out.
func (s *storm) leave(i int, dies bool) {
	m := s.members[i]
	s.members = append(s.members[:i], s.members[i+1:]...)
	if id, generation := m.cl.GroupMetadata(); id != "" {
		s.zombies = append(s.zombies, s.commit(id, generation))
	}
	if dies {
		m.wire.sever()
	}
	m.stop()
	s.left.Go(func() {
		<-m.done
		m.cl.CloseAllowingRebalance()
	})
}

func (s *storm) commit(id string, generation int32) *kmsg.OffsetCommitRequest {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation = "g", id, generation
	rt, rp := kmsg.NewOffsetCommitRequestTopic(), kmsg.NewOffsetCommitRequestTopicPartition()
	rt.Topic, rp.Offset = "t", 0
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

// commitByName is an OffsetCommit that names its topic.
type commitByName struct{ *kmsg.OffsetCommitRequest }

func (commitByName) MaxVersion() int16 { return 9 }

// assigned is how many members the group has, and how often each partition is assigned, if it is stable.
func (s *storm) assigned(ctx context.Context, cl *kgo.Client) (members int, partitions map[int32]int, err error) {
	partitions = map[int32]int{}
	if s.consumer {
		req := kmsg.NewPtrConsumerGroupDescribeRequest()
		req.Groups = []string{"g"}
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return 0, nil, err
		}
		g := resp.Groups[0]
		if g.ErrorCode != 0 || g.State != "Stable" {
			return 0, nil, fmt.Errorf("state %s, error %d", g.State, g.ErrorCode)
		}
		for _, m := range g.Members {
			for _, rt := range m.Assignment.TopicPartitions {
				for _, i := range rt.Partitions {
					partitions[i]++
				}
			}
		}
		return len(g.Members), partitions, nil
	}
	gs, err := kadm.NewClient(cl).DescribeGroups(ctx, "g")
	if err != nil {
		return 0, nil, err
	}
	g := gs["g"]
	if g.Err != nil || g.State != "Stable" {
		return 0, nil, fmt.Errorf("state %s, error %v", g.State, g.Err)
	}
	for _, m := range g.Members {
		if c, ok := m.Assigned.AsConsumer(); ok {
			for _, rt := range c.Topics {
				for _, i := range rt.Partitions {
					partitions[i]++
				}
			}
		}
	}
	return len(g.Members), partitions, nil
}

// TestRebalanceStorm: members come and go faster than their group settles,
// some without a word, while it reads and commits (F43). No committed offset
// goes back, nobody who has gone can commit, and after the storm the group
// settles and has read everything. VARVE_LONG=1: 200 members for a minute, and
// the group has 10 s to settle.
func TestRebalanceStorm(t *testing.T) {
	members, partitions, lasts, settles := 20, int32(30), 4*time.Second, 3*time.Minute
	if os.Getenv("VARVE_LONG") != "" {
		members, partitions, lasts, settles = 200, 200, time.Minute, 10*time.Second
	}
	for _, protocol := range []string{"classic", "consumer"} {
		t.Run(protocol, func(t *testing.T) {
			p := startProcess(t, t.TempDir(), "group.min.session.timeout.ms=1000", "group.consumer.min.session.timeout.ms=1000",
				"group.consumer.session.timeout.ms=3000", "group.consumer.min.heartbeat.interval.ms=100", "group.consumer.heartbeat.interval.ms=500")
			s := &storm{p: p, consumer: protocol == "consumer", seen: map[[2]int64]bool{}}
			s.rage(members, partitions, lasts, settles)
		})
	}
}

func (s *storm) rage(members int, partitions int32, lasts, settles time.Duration) {
	t, p := s.p.t, s.p
	cl := p.client(kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), partitions, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	var once sync.Once
	finish := func() {
		once.Do(func() { close(over) })
		wg.Wait()
		for len(s.members) > 0 {
			s.leave(0, true)
		}
		s.left.Wait()
	}
	defer finish()
	wg.Go(func() { // what there is to read
		for i := 0; ; i++ {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr(); err != nil && t.Context().Err() == nil {
				t.Errorf("produce: %v", err)
				return
			}
			select {
			case <-over:
				return
			case <-time.After(3 * time.Millisecond):
			}
		}
	})
	watcher := kadm.NewClient(p.client())
	committed := make([]int64, partitions)
	watch := func() error {
		os, err := watcher.FetchOffsets(t.Context(), "g")
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		var bad error
		os.Each(func(o kadm.OffsetResponse) {
			if o.At < committed[o.Partition] {
				bad = fmt.Errorf("the committed offset of partition %d went back from %d to %d", o.Partition, committed[o.Partition], o.At)
			}
			committed[o.Partition] = o.At
		})
		return bad
	}
	wg.Go(func() {
		for {
			if err := watch(); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	for range members {
		s.join()
	}
	rnd := rand.New(rand.NewPCG(43, 1))
	moves := 0
	for end := time.Now().Add(lasts); time.Now().Before(end); moves++ {
		s.leave(rnd.IntN(len(s.members)), rnd.IntN(3) == 0)
		s.join()
		time.Sleep(lasts / time.Duration(2*members))
	}
	begun := time.Now()
	if err := child.Eventually(t.Context(), 3*time.Minute, func() error {
		n, by, err := s.assigned(t.Context(), cl)
		switch {
		case err != nil:
			return err
		case n != members || len(by) != int(partitions):
			return fmt.Errorf("%d members have %d partitions", n, len(by))
		}
		for i, times := range by {
			if times != 1 {
				return fmt.Errorf("partition %d is assigned %d times", i, times)
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("after the storm: %v", err)
	}
	took := time.Since(begun)
	t.Logf("%d members, %d of them replaced: settled %s after the storm", members, moves, took.Round(time.Millisecond))
	if took > settles {
		t.Errorf("the group settled %s after the storm, not within %s", took, settles)
	}
	once.Do(func() { close(over) })
	wg.Wait()
	if t.Failed() {
		return
	}
	ends, err := adm.ListEndOffsets(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
	eventually(t, func() error {
		if err := watch(); err != nil {
			return err
		}
		for i, at := range committed {
			if o, _ := ends.Lookup("t", int32(i)); at != o.Offset {
				return fmt.Errorf("partition %d: committed %d of %d", i, at, o.Offset)
			}
		}
		return nil
	})
	s.mu.Lock()
	if int64(len(s.seen)) != total || total == 0 {
		t.Errorf("%d of %d records were processed", len(s.seen), total)
	}
	s.mu.Unlock()
	if len(s.zombies) == 0 {
		t.Error("nobody left who had been in")
	}
	for _, req := range s.zombies {
		resp, err := cl.Broker(1).RetriableRequest(t.Context(), commitByName{req})
		if err != nil {
			t.Fatal(err)
		}
		if code := resp.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode; code != kerr.UnknownMemberID.Code {
			t.Errorf("a commit of %s, which is gone: %v", req.MemberID, kerr.ErrorForCode(code))
		}
	}
	if err := watch(); err != nil {
		t.Error(err)
	}
}

func (p *process) initProducerID(ctx context.Context, cl *kgo.Client, txn *string) (*kmsg.InitProducerIDResponse, error) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID, req.TransactionTimeoutMillis = txn, 60_000
	return req.RequestWith(ctx, cl)
}

// append1 produces one record of a producer, and returns the error that the broker answers.
func (p *process) append1(cl *kgo.Client, topic string, id int64, epoch int16, sequence int32) error {
	p.t.Helper()
	bb := batch.NewBuilder()
	bb.ProducerID, bb.ProducerEpoch, bb.BaseSequence = id, epoch, sequence
	bb.Add(time.Now().UnixMilli(), nil, binary.BigEndian.AppendUint64(nil, uint64(id)))
	records, err := bb.Build()
	if err != nil {
		p.t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30_000
	rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	rt.Topic, rp.Records = topic, records
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := cl.Broker(1).RetriableRequest(p.t.Context(), byName{req})
	if err != nil {
		p.t.Fatal(err)
	}
	return kerr.ErrorForCode(resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode)
}

// byName is a produce request that names its topic.
type byName struct{ *kmsg.ProduceRequest }

func (byName) MaxVersion() int16 { return 11 }

// TestProducerIDStorm: everybody asks for producer ids at once, with and
// without a transactional id, while the broker is killed (F49). Nobody gets an
// id and epoch that another has.
func TestProducerIDStorm(t *testing.T) {
	p := startProcess(t, t.TempDir())
	adm := kadm.NewClient(p.client())
	// The coordinator's topic exists before the storm.
	eventually(t, func() error {
		name := "first"
		r, err := p.initProducerID(t.Context(), p.client(), &name)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(r.ErrorCode)
	})
	type producer struct {
		id    int64
		epoch int16
	}
	var (
		mu       sync.Mutex
		given    = map[producer]bool{}
		newest   [3]producer // of each transactional id
		answered atomic.Int64
		over     = make(chan struct{})
		wg       sync.WaitGroup
	)
	for i := range 30 {
		cl := p.client()
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				var txn *string
				if i < 15 {
					name := fmt.Sprint("txn-", i%len(newest))
					txn = &name
				}
				r, err := p.initProducerID(t.Context(), cl, txn)
				if err != nil || r.ErrorCode != 0 {
					continue // the broker is away, or another is asking with the same transactional id
				}
				got := producer{r.ProducerID, r.ProducerEpoch}
				mu.Lock()
				if given[got] {
					t.Errorf("%+v was given out twice", got)
				}
				given[got] = true
				if txn != nil {
					// Answers overtake each other; the newest counts.
					if n := &newest[i%len(newest)]; got.id > n.id || got.id == n.id && got.epoch > n.epoch {
						*n = got
					}
				}
				mu.Unlock()
				answered.Add(1)
			}
		})
	}
	for range 3 {
		before := answered.Load()
		eventually(t, func() error {
			if answered.Load() < before+300 {
				return fmt.Errorf("%d producer ids since the broker came back", answered.Load()-before)
			}
			return nil
		})
		p.restart()
	}
	close(over)
	wg.Wait()
	t.Logf("%d producer ids and epochs", len(given))
	for i, n := range newest {
		if n.id == 0 && n.epoch == 0 {
			t.Errorf("txn-%d never got a producer id", i)
			continue
		}
		d, err := adm.DescribeTransactions(t.Context(), fmt.Sprint("txn-", i))
		if err != nil {
			t.Fatal(err)
		}
		// What was being written when the broker was killed may have come after what was answered.
		got := d[fmt.Sprint("txn-", i)]
		if got.Err != nil || got.ProducerID < n.id || got.ProducerID == n.id && got.ProducerEpoch < n.epoch {
			t.Errorf("txn-%d: %+v, but %+v was given out", i, got, n)
		}
	}
}

// TestProducersExpire: thousands of producers write a record each and are
// gone (F49). The partition forgets them, and transactional ids are forgotten;
// who is still there, and who comes back, writes no record twice.
func TestProducersExpire(t *testing.T) {
	p := startProcess(t, t.TempDir(), "producer.id.expiration.ms=3000", "producer.id.expiration.check.interval.ms=500",
		"transactional.id.expiration.ms=3000", "transaction.remove.expired.transaction.cleanup.interval.ms=500")
	p.createTopic("t")
	cl := p.client()
	adm := kadm.NewClient(cl)
	var ids []int64
	for range 2000 {
		r, err := p.initProducerID(t.Context(), cl, nil)
		if err != nil || r.ErrorCode != 0 {
			t.Fatal(r, err)
		}
		ids = append(ids, r.ProducerID)
	}
	work := make(chan int64)
	var wg sync.WaitGroup
	for range 20 {
		cl := p.client()
		wg.Go(func() {
			for id := range work {
				if err := p.append1(cl, "t", id, 0, 0); err != nil {
					t.Errorf("producer %d: %v", id, err)
				}
			}
		})
	}
	for _, id := range ids {
		work <- id
	}
	close(work)
	wg.Wait()
	producers := func() (int, error) {
		d, err := adm.DescribeProducers(t.Context(), kadm.TopicsSet{"t": {0: {}}})
		if err != nil {
			return 0, err
		}
		return len(d.SortedProducers()), nil
	}
	// One stays, and is known by its last batch for as long as it does.
	stays, sequence := ids[0], int32(1)
	eventually(t, func() error {
		if err := p.append1(cl, "t", stays, 0, sequence); err != nil {
			t.Fatalf("the producer that stays, sequence %d: %v", sequence, err)
		}
		sequence++
		if n, err := producers(); err != nil || n != 1 {
			return fmt.Errorf("%d producers, %v", n, err)
		}
		return nil
	})
	end := func() int64 {
		os, err := adm.ListEndOffsets(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		o, _ := os.Lookup("t", 0)
		return o.Offset
	}
	if got, want := end(), int64(len(ids))+int64(sequence)-1; got != want {
		t.Errorf("%d records, want %d", got, want)
	}
	if err := p.append1(cl, "t", stays, 0, sequence-1); err != nil {
		t.Errorf("a batch sent again: %v", err)
	}
	if got, want := end(), int64(len(ids))+int64(sequence)-1; got != want {
		t.Errorf("a batch sent again: %d records, want %d", got, want)
	}
	if err := p.append1(cl, "t", stays, 0, sequence+7); !errors.Is(err, kerr.OutOfOrderSequenceNumber) {
		t.Errorf("a batch too early: %v", err)
	}
	// Epochs: the last one there is, and those before it are no more.
	if err := p.append1(cl, "t", stays, math.MaxInt16, 0); err != nil {
		t.Errorf("the last epoch: %v", err)
	}
	for _, epoch := range []int16{0, math.MaxInt16 - 1} {
		if err := p.append1(cl, "t", stays, epoch, 0); !errors.Is(err, kerr.InvalidProducerEpoch) {
			t.Errorf("epoch %d after the last: %v", epoch, err)
		}
	}

	// A transactional producer that was away for longer than its id is kept.
	name := "away"
	txn := p.client(kgo.TransactionalID(name), kgo.DefaultProduceTopic("t"))
	transact := func() {
		t.Helper()
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := txn.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := txn.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		r, err := p.initProducerID(t.Context(), cl, &name)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(r.ErrorCode)
	})
	transact()
	eventually(t, func() error {
		d, err := adm.DescribeTransactions(t.Context(), name)
		if err != nil {
			return err
		}
		if got := d[name]; !errors.Is(got.Err, kerr.TransactionalIDNotFound) {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	r, err := p.initProducerID(t.Context(), cl, &name)
	if err != nil || r.ErrorCode != 0 || r.ProducerEpoch != 0 {
		t.Errorf("a transactional id that was forgotten: %+v, %v", r, err)
	}
}

// TestEpochsRunOut: a transactional id is initialized until its epochs are
// used up (F49). It goes on with another producer id, over a crash as well, and
// who has the last epoch of the old one is fenced. VARVE_LONG=1; without it,
// the first epochs only.
func TestEpochsRunOut(t *testing.T) {
	times := 300
	if os.Getenv("VARVE_LONG") != "" {
		times = 1<<15 + 300
	}
	p := startProcess(t, t.TempDir())
	cl := p.client()
	name := "often"
	var last *kmsg.InitProducerIDResponse
	ids, fenced := 0, 0
	for i := range times {
		if i == times-100 {
			p.restart()
		}
		var r *kmsg.InitProducerIDResponse
		eventually(t, func() (err error) {
			if r, err = p.initProducerID(t.Context(), cl, &name); err != nil {
				return err
			}
			return kerr.ErrorForCode(r.ErrorCode)
		})
		switch {
		case last == nil || r.ProducerID != last.ProducerID:
			ids++
			if r.ProducerEpoch != 0 || last != nil && (last.ProducerEpoch < math.MaxInt16-1 || r.ProducerID < last.ProducerID) {
				t.Fatalf("after %+v comes %+v", last, r)
			}
			if last != nil {
				req := kmsg.NewPtrEndTxnRequest()
				req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = name, last.ProducerID, last.ProducerEpoch, true
				resp, err := req.RequestWith(t.Context(), cl)
				if err != nil {
					t.Fatal(err)
				}
				if err := kerr.ErrorForCode(resp.ErrorCode); !errors.Is(err, kerr.InvalidProducerIDMapping) && !errors.Is(err, kerr.ProducerFenced) && !errors.Is(err, kerr.InvalidProducerEpoch) {
					t.Errorf("the last epoch of the id that is used up: %v", err)
				}
				fenced++
			}
		case r.ProducerEpoch <= last.ProducerEpoch || r.ProducerEpoch == math.MaxInt16:
			t.Fatalf("after %+v comes %+v", last, r)
		}
		last = r
	}
	if want := 1 + times>>15; ids != want || fenced != want-1 {
		t.Errorf("%d producer ids for %d initializations, want %d", ids, times, want)
	}
}
