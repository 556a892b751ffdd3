package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/broker/txn"
)

// marked are the partitions of transactions in memory: what markers they have got, in order.
type marked struct {
	mu     sync.Mutex
	got    []string
	code   func(topic string, partition int32) int16 // nil: 0
	gone   map[string]bool
	held   map[string]func() // attempts whose outcome is not told yet
	hold   func(topic string, partition int32) bool
	under  map[string]bool // attempts under way
	both   bool            // two at a time at one partition
	epochs []int32         // of the coordinator
}

func (k *marked) Exists(topic string, _ int32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.gone[topic]
}

func (k *marked) Write(topic string, partition int32, m *txn.Markers, done func(int16)) {
	k.mu.Lock()
	at := fmt.Sprint(topic, "-", partition)
	var code int16
	if k.code != nil {
		code = k.code(topic, partition)
	}
	if code == 0 {
		k.got = append(k.got, fmt.Sprintf("%s %d/%d %v", at, m.ProducerID, m.ProducerEpoch, m.Commit))
		k.epochs = append(k.epochs, m.CoordinatorEpoch)
	}
	if k.under == nil {
		k.under, k.held = map[string]bool{}, map[string]func(){}
	}
	k.both = k.both || k.under[at]
	k.under[at] = true
	tell := func() {
		k.mu.Lock()
		delete(k.under, at)
		k.mu.Unlock()
		done(code)
	}
	if k.hold != nil && k.hold(topic, partition) {
		k.held[at] = tell
		tell = nil
	}
	k.mu.Unlock()
	if tell != nil {
		go tell()
	}
}

func (k *marked) Send() {}

func (k *marked) list() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(slices.Values(k.got))
}

func (k *marked) release(at string) {
	k.mu.Lock()
	tell := k.held[at]
	delete(k.held, at)
	k.mu.Unlock()
	tell()
}

// txnClient is a producer that knows what it was told.
type txnClient struct {
	c     *Transactions
	id    string
	pid   int64
	epoch int16
}

// endPatience is that of a coordinator whose test does not say otherwise.
const endPatience = 100 * time.Millisecond

func transactions(t testing.TB, log Log, k Markers, o Options) *Transactions {
	o.Log, o.Markers, o.Patience = log, k, cmp.Or(o.Patience, endPatience)
	if o.ProducerID == nil {
		var mu sync.Mutex
		next := int64(1000)
		o.ProducerID = func(context.Context) (int64, error) {
			mu.Lock()
			defer mu.Unlock()
			next++
			return next, nil
		}
	}
	c := NewTransactions(o, 1)
	c.Elected(0, 1)
	until(t, func() bool { return c.Ready(0) })
	t.Cleanup(c.Close)
	return c
}

func (x *txnClient) init(timeout time.Duration) int16 {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.Version, req.TransactionalID, req.TransactionTimeoutMillis = 5, &x.id, int32(timeout.Milliseconds())
	r := x.c.InitProducerID(bg, req)
	if r.ErrorCode == 0 {
		x.pid, x.epoch = r.ProducerID, r.ProducerEpoch
	}
	return r.ErrorCode
}

// add puts partitions 0 and 1 of a topic into the transaction, as the partition does for producers of version 2.
func (x *txnClient) add(topic string) int16 { return x.addOrVerify(topic, false) }

// verify asks whether they are in it, as the partition does for producers below version 2.
func (x *txnClient) verify(topic string) int16 { return x.addOrVerify(topic, true) }

func (x *txnClient) addOrVerify(topic string, verify bool) int16 {
	a := kmsg.NewAddPartitionsToTxnRequestTransaction()
	a.TransactionalID, a.ProducerID, a.ProducerEpoch, a.VerifyOnly = x.id, x.pid, x.epoch, verify
	a.Topics = []kmsg.AddPartitionsToTxnRequestTransactionTopic{{Topic: topic, Partitions: []int32{0, 1}}}
	return x.c.AddPartitionsToTxn(bg, 5, []kmsg.AddPartitionsToTxnRequestTransaction{a})[0].Transactions[0].Topics[0].Partitions[0].ErrorCode
}

func (x *txnClient) end(version int16, commit bool) int16 {
	req := kmsg.NewPtrEndTxnRequest()
	req.Version, req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = version, x.id, x.pid, x.epoch, commit
	r := x.c.EndTxn(bg, req)
	if r.ErrorCode == 0 && version >= 5 {
		x.pid, x.epoch = r.ProducerID, r.ProducerEpoch
	}
	return r.ErrorCode
}

func (x *txnClient) state() string {
	req := kmsg.NewPtrDescribeTransactionsRequest()
	req.TransactionalIDs = []string{x.id}
	s := x.c.DescribeTransactions(bg, req).TransactionStates[0]
	if s.ErrorCode != 0 {
		return protocol.Name(s.ErrorCode)
	}
	return s.State
}

// timesOut waits for the end of the second transaction, which has just begun: 10 s later, not earlier.
func timesOut(t *testing.T, x *txnClient, k *marked) {
	t.Helper()
	time.Sleep(10*time.Second - time.Millisecond)
	synctest.Wait()
	expect(t, "state", x.state(), "Ongoing")
	time.Sleep(time.Millisecond)
	synctest.Wait()
	expect(t, "state", x.state(), "CompleteAbort")
	expect(t, "markers", fmt.Sprint(k.list()), "[t-0 1001/1 true t-0 1001/2 false t-1 1001/1 true t-1 1001/2 false]")
}

func TestTransactionLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &marked{}
		c := transactions(t, newMemLog(), k, Options{Transactions: txn.Config{Expiration: time.Hour, MaxTimeout: time.Minute, TransactionVersion: 2}, ExpiryInterval: time.Minute})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(10*time.Second), 0)
		expect(t, "producer id", x.pid, 1001)
		expect(t, "add", x.add("t"), 0)
		expect(t, "state", x.state(), "Ongoing")
		expect(t, "end", x.end(5, true), 0)
		synctest.Wait()
		expect(t, "state", x.state(), "CompleteCommit")
		expect(t, "markers", fmt.Sprint(k.list()), "[t-0 1001/1 true t-1 1001/1 true]")
		expect(t, "epoch", x.epoch, 1)

		// One that takes too long is aborted when its time is over, not earlier.
		expect(t, "add", x.add("t"), 0)
		timesOut(t, x, k)
		expect(t, "commit", x.end(5, true), protocol.CodeProducerFenced)

		// And an id that nobody uses is forgotten.
		time.Sleep(time.Hour + 2*time.Minute)
		synctest.Wait()
		expect(t, "state", x.state(), "TRANSACTIONAL_ID_NOT_FOUND")
		expect(t, "ids", len(c.Stats().IDs), 0)
	})
}

// TestTimeoutAfterRetry: the abort of a transaction that took too long cannot be appended and is to be tried again; before it
// is, the transaction is committed after all, and the next begins. That one has a timeout of its own.
func TestTimeoutAfterRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, k := newMemLog(), &marked{}
		c := transactions(t, log, k, Options{})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(10*time.Second), 0)
		expect(t, "add", x.add("t"), 0)
		log.failWith(func(int32) error { return AppendFailed(protocol.CodeNotEnoughReplicas) })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		expect(t, "state", x.state(), "Ongoing")
		log.failWith(nil)
		expect(t, "end", x.end(5, true), 0)
		synctest.Wait()
		expect(t, "add", x.add("t"), 0)
		timesOut(t, x, k)
	})
}

func TestMarkersAreTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, k := newMemLog(), &marked{gone: map[string]bool{}}
		var mu sync.Mutex
		bad := map[string]int16{}
		k.code = func(topic string, partition int32) int16 {
			mu.Lock()
			defer mu.Unlock()
			return bad[fmt.Sprint(topic, partition)]
		}
		set := func(at string, code int16) { mu.Lock(); defer mu.Unlock(); bad[at] = code }
		c := transactions(t, log, k, Options{})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(10*time.Second), 0)
		expect(t, "add", x.add("t"), 0)
		expect(t, "add", x.add("u"), 0)
		set("t1", protocol.CodeNotLeaderOrFollower)
		set("u0", protocol.CodeUnknownTopicOrPartition)
		set("u1", protocol.CodeTransactionCoordinatorFenced)
		expect(t, "end", x.end(5, true), 0)
		time.Sleep(time.Minute)
		expect(t, "state", x.state(), "PrepareCommit")
		expect(t, "markers", fmt.Sprint(k.list()), "[t-0 1001/1 true]")
		// Whoever comes meanwhile is told to come again, soon.
		began := time.Now()
		expect(t, "add", x.add("t"), protocol.CodeConcurrentTransactions)
		expect(t, "after", time.Since(began), endPatience)
		expect(t, "init", (&txnClient{c: c, id: "x"}).init(10*time.Second), protocol.CodeConcurrentTransactions)
		expect(t, "after", time.Since(began), 2*endPatience)
		expect(t, "end", x.end(5, true), protocol.CodeConcurrentTransactions)
		expect(t, "after", time.Since(began), 2*endPatience)
		// A topic that is gone needs no marker; the others get theirs when they can.
		k.mu.Lock()
		k.gone["u"] = true
		k.mu.Unlock()
		time.Sleep(2 * maxMarkerBackoff)
		expect(t, "state", x.state(), "PrepareCommit")
		set("t1", 0)
		time.Sleep(maxMarkerBackoff)
		synctest.Wait()
		expect(t, "state", x.state(), "CompleteCommit")
		expect(t, "markers", fmt.Sprint(k.list()), "[t-0 1001/1 true t-1 1001/1 true]")
	})
}

// TestBacklogOfGoneTopics deletes a topic while the markers of more of its partitions than are tried at a time wait for
// their turn: they need none any more, and those of other topics behind them still get theirs.
func TestBacklogOfGoneTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &marked{gone: map[string]bool{}, hold: func(string, int32) bool { return true }}
		c := transactions(t, newMemLog(), k, Options{})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(time.Minute), 0)
		for i := range 2 * maxAttempts {
			expect(t, "add", x.add(fmt.Sprintf("t%04d", i)), 0)
		}
		expect(t, "add", x.add("z"), 0)
		expect(t, "end", x.end(5, true), 0)
		synctest.Wait()
		k.mu.Lock()
		first := slices.Collect(maps.Keys(k.held))
		for i := range 2 * maxAttempts {
			k.gone[fmt.Sprintf("t%04d", i)] = true
		}
		k.hold = nil
		k.mu.Unlock()
		expect(t, "under way", len(first), maxAttempts)
		for _, at := range first {
			k.release(at)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(t, "state", x.state(), "CompleteCommit")
		expect(t, "markers", fmt.Sprint(k.list()[maxAttempts:]), "[z-0 1001/1 true z-1 1001/1 true]")
	})
}

// TestMarkersOnce asks for markers again while some are written and some are on their way: none goes to a partition that
// has it, and none while another is on its way there, or it would end the next transaction of a producer that keeps its epoch.
func TestMarkersOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, k := newMemLog(), &marked{hold: func(_ string, p int32) bool { return p == 1 }}
		c := transactions(t, log, k, Options{})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(10*time.Second), 0)
		expect(t, "add", x.add("t"), 0)
		expect(t, "end", x.end(4, true), 0)
		synctest.Wait()
		c.Elected(0, 2)
		synctest.Wait()
		c.Elected(0, 3)
		synctest.Wait()
		expect(t, "markers", fmt.Sprint(k.list()), "[t-0 1001/0 true t-1 1001/0 true]")
		expect(t, "state", x.state(), "PrepareCommit")

		// The last record cannot be appended for a while: what is written is not written again.
		log.failWith(func(int32) error { return AppendFailed(protocol.CodeNotEnoughReplicas) })
		k.release("t-1")
		time.Sleep(10 * time.Second)
		expect(t, "state", x.state(), "PrepareCommit")
		log.failWith(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		expect(t, "state", x.state(), "CompleteCommit")
		expect(t, "markers", fmt.Sprint(k.list()), "[t-0 1001/0 true t-1 1001/0 true]")
		if k.both {
			t.Error("two attempts at a time at one partition")
		}
	})
}

// TestHowPatient: add.partitions.to.txn.retry.backoff.max.ms, and half of what a reply may take, bound how long a request waits for markers.
func TestHowPatient(t *testing.T) {
	for _, c := range []struct{ set, want time.Duration }{{-1, 0}, {time.Second, time.Second}, {time.Hour, 5 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			k := &marked{hold: func(string, int32) bool { return true }}
			x := &txnClient{c: transactions(t, newMemLog(), k, Options{Patience: c.set, ReplyTimeout: 10 * time.Second}), id: "x"}
			expect(t, "init", x.init(10*time.Second), 0)
			expect(t, "add", x.add("t"), 0)
			expect(t, "end", x.end(5, true), 0)
			for what, next := range map[string]func() int16{"add": func() int16 { return x.add("t") }, "init": func() int16 { return x.init(10 * time.Second) }} {
				began := time.Now()
				expect(t, what, next(), protocol.CodeConcurrentTransactions)
				expect(t, what+" after", time.Since(began), c.want)
			}
		})
	}
}

// TestPatience begins transactions while the markers of the last are on their way: it waits for them.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &marked{hold: func(_ string, p int32) bool { return p == 1 }}
		c := transactions(t, newMemLog(), k, Options{})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(10*time.Second), 0)
		for i, next := range []func() int16{func() int16 { return x.add("t") }, func() int16 { return x.init(10 * time.Second) }} {
			expect(t, "add", x.add("t"), 0)
			expect(t, "end", x.end(5, true), 0)
			got := int16(-1)
			began := time.Now()
			go func() { got = next() }()
			if i == 0 {
				go func() { x.add("t") }() // waits as well, for the same
			}
			time.Sleep(endPatience / 2)
			synctest.Wait()
			expect(t, fmt.Sprint("waits ", i), got, -1)
			k.release("t-1")
			synctest.Wait()
			expect(t, fmt.Sprint("goes on ", i), got, 0)
			expect(t, "with the last marker", time.Since(began), endPatience/2)
			time.Sleep(time.Second)
			if x.state() == "Ongoing" {
				expect(t, "end", x.end(5, false), 0)
				synctest.Wait()
				k.release("t-1")
				synctest.Wait()
			}
		}
	})
}

// TestBeginsWithTheLastMarker: what waits for the last marker is appended with the record that the transaction is complete,
// and is answered when both are committed, or for both.
func TestBeginsWithTheLastMarker(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			log, k := newMemLog(), &marked{hold: func(_ string, p int32) bool { return p == 1 }}
			c := transactions(t, log, k, Options{})
			x := &txnClient{c: c, id: "x"}
			expect(t, "init", x.init(10*time.Second), 0)
			expect(t, "add", x.add("t"), 0)
			expect(t, "end", x.end(5, true), 0)
			synctest.Wait()
			before := log.tried()
			codes := make(chan int16, 3)
			for _, topic := range []string{"t", "u"} {
				go func() { codes <- x.add(topic) }()
			}
			late := *x // another process that takes the id over waits as well, and comes after
			go func() { codes <- late.init(10 * time.Second) }()
			synctest.Wait()
			log.hold()
			if fails {
				log.failWith(func(int32) error { return AppendFailed(protocol.CodeNotEnoughReplicas) })
			}
			k.release("t-1")
			synctest.Wait()
			expect(t, "appends", log.tried()-before, 1)
			expect(t, "answers", len(codes), 0)
			expect(t, "state", x.state(), "PrepareCommit")
			log.failWith(nil)
			log.release()
			synctest.Wait()
			if fails {
				expect(t, "answers", len(codes), 2)
				for range 2 {
					expect(t, "add", <-codes, protocol.CodeCoordinatorNotAvailable)
				}
				time.Sleep(2 * time.Second) // the markers are told of again
				expect(t, "state", x.state(), "CompleteCommit")
				expect(t, "add", x.add("u"), 0)
				return
			}
			expect(t, "answers", len(codes), 2)
			expect(t, "add", <-codes, 0)
			expect(t, "add", <-codes, 0)
			expect(t, "records", len(log.records(t, 0)), 7) // Empty, Ongoing, PrepareCommit; CompleteCommit, Ongoing twice; PrepareAbort for who takes over
			log.mu.Lock()
			expect(t, "batches", len(log.batches[0]), 5)
			log.mu.Unlock()
		})
	}
}

// TestBeginsInVain: too much is being appended when the last marker comes. Those who waited for it are told so, and the
// transaction is complete all the same, later.
func TestBeginsInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, k := newMemLog(), &marked{hold: func(_ string, p int32) bool { return p == 1 }}
		c := transactions(t, log, k, Options{WritesLength: 1})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(10*time.Second), 0)
		expect(t, "add", x.add("t"), 0)
		expect(t, "end", x.end(5, true), 0)
		synctest.Wait()
		code, other := int16(-1), int16(-1)
		go func() { code = x.add("t") }()
		synctest.Wait()
		log.hold()
		go func() { other = (&txnClient{c: c, id: "y"}).init(10 * time.Second) }()
		synctest.Wait()
		expect(t, "waits", code, -1)
		k.release("t-1")
		synctest.Wait()
		expect(t, "add", code, protocol.CodeCoordinatorNotAvailable)
		expect(t, "state", x.state(), "PrepareCommit")
		log.release()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect(t, "the other", other, 0)
		expect(t, "state", x.state(), "CompleteCommit")
		expect(t, "add", x.add("t"), 0)
	})
}

func TestNoProducerIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ok atomic.Bool
		var next atomic.Int64
		c := transactions(t, newMemLog(), &marked{}, Options{ProducerID: func(ctx context.Context) (int64, error) {
			if !ok.Load() {
				<-ctx.Done()
				return 0, errors.New("etcd away")
			}
			return next.Add(1), nil
		}, ReplyTimeout: time.Minute})
		x := &txnClient{c: c, id: "x"}
		began := time.Now()
		expect(t, "init", x.init(time.Second), protocol.CodeCoordinatorLoadInProgress)
		expect(t, "after", time.Since(began), supplyTimeout)
		// Others are served meanwhile, and those that wait go with the leadership.
		var code int16
		go func() { code = x.init(time.Second) }()
		synctest.Wait()
		expect(t, "state", x.state(), "TRANSACTIONAL_ID_NOT_FOUND")
		c.Resigned(0)
		synctest.Wait()
		expect(t, "init", code, protocol.CodeNotCoordinator)
		ok.Store(true)
		c.Elected(0, 5)
		until(t, func() bool { return c.Ready(0) })
		// Two at once: both get ids, the later epoch stands.
		y := &txnClient{c: c, id: "x"}
		var wg sync.WaitGroup
		for _, who := range []*txnClient{x, y} {
			wg.Go(func() { expect(t, "init", who.init(time.Second), 0) })
		}
		wg.Wait()
		expect(t, "same producer", x.pid, y.pid)
		expect(t, "epochs", x.epoch+y.epoch, 1)
	})
}

func TestTransactionBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := transactions(t, newMemLog(), &marked{}, Options{MaxBytes: 20_000})
		n := 0
		for ; ; n++ {
			if code := (&txnClient{c: c, id: fmt.Sprint("x", n)}).init(time.Second); code != 0 {
				expect(t, "code", code, protocol.CodeCoordinatorNotAvailable)
				break
			}
		}
		if n < 10 || n > 100 {
			t.Fatalf("%d ids in 20,000 bytes", n)
		}
		x := &txnClient{c: c, id: "x0"}
		expect(t, "one that exists", x.init(15*time.Minute), 0)
		expect(t, "its transaction", x.add("t"), 0)
		expect(t, "its end", x.end(5, false), 0)
		synctest.Wait()

		// Transactions of those that are there take memory too, for each partition.
		expect(t, "its next transaction", x.add("t"), 0)
		most := int64(0)
		for i := 0; ; i++ {
			if i == 400 {
				t.Fatalf("a transaction with partitions of %d topics", i)
			}
			code := x.add(fmt.Sprint("topic-", i))
			time.Sleep(2 * countEvery)
			most = max(most, c.Stats().Bytes)
			if code != 0 {
				expect(t, "code", code, protocol.CodeCoordinatorNotAvailable)
				break
			}
		}
		if most < 30_000 || most > 30_200 {
			t.Errorf("%d bytes", most)
		}
		expect(t, "its end", x.end(5, true), 0)
		synctest.Wait()
		expect(t, "and then another", x.add("t"), 0)
	})
}

// dyingLog is a log whose process dies at an append: that one is in the log or not, and nobody is told of it or of any
// that follow.
type dyingLog struct {
	*memLog
	mu   sync.Mutex
	at   int // appends that are left; the last dies
	kept bool
	dead bool
}

func (l *dyingLog) Append(partition, epoch int32, run []byte, done func(int64, error)) {
	l.mu.Lock()
	l.at--
	at, dead := l.at, l.dead
	l.dead = l.at <= 0
	l.mu.Unlock()
	switch {
	case dead:
	case at > 0:
		l.memLog.Append(partition, epoch, run, done)
	case l.kept:
		l.memLog.Append(partition, epoch, run, func(int64, error) {})
	}
}

func (l *dyingLog) died() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// TestCrashes lets the process die before and after every commit point of a transaction, and a new coordinator go on. The
// producer repeats what it was not told of. The transaction must end for all partitions in the same way, as the producer was told
// if it was, and the next one must be able to begin.
func TestCrashes(t *testing.T) {
	ends := 0
	for _, version := range []int16{4, 5} {
		for _, commit := range []bool{true, false} {
			for at := 1; at <= 6; at++ {
				for _, kept := range []bool{true, false} {
					name := fmt.Sprintf("EndTxn %d, commit=%v, at append %d, kept=%v", version, commit, at, kept)
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							log, k := &dyingLog{memLog: newMemLog(), at: at, kept: kept}, &marked{}
							c := transactions(t, log, k, Options{ReplyTimeout: time.Second})
							x := &txnClient{c: c, id: "x"}
							// Every step is repeated until it succeeds, first with the old coordinator and, when that has died,
							// with the new one.
							next := func() {
								c.Close()
								log.memLog.epochs[0] = 7
								x.c = NewTransactions(Options{Log: log.memLog, Markers: k, ProducerID: func(context.Context) (int64, error) { return 9, nil }}, 1)
								x.c.Elected(0, 7)
								t.Cleanup(x.c.Close)
							}
							taken := false
							step := func(what string, f func() int16) {
								t.Helper()
								for range 200 {
									code := f()
									switch code {
									case 0:
										return
									case protocol.CodeCoordinatorNotAvailable, protocol.CodeNotCoordinator:
										if log.died() && !taken {
											taken = true
											next()
										}
									case protocol.CodeConcurrentTransactions, protocol.CodeCoordinatorLoadInProgress:
									default:
										t.Fatalf("%s: %s", what, protocol.Name(code))
									}
									time.Sleep(100 * time.Millisecond)
								}
								t.Fatalf("%s: in vain", what)
							}
							step("init", func() int16 { return x.init(10 * time.Minute) })
							step("add", func() int16 { return x.add("t") })
							step("end", func() int16 { return x.end(version, commit) })
							step("add to the next", func() int16 { return x.add("u") })
							if !taken && log.died() { // at the very end
								next()
							}
							step("end of the next", func() int16 { return x.end(version, !commit) })
							synctest.Wait()
							if log.died() {
								if !taken {
									next()
								}
								ends++
							}
							time.Sleep(time.Second)
							until(t, func() bool { return x.c.Ready(0) })
							synctest.Wait()
							want := "CompleteAbort"
							if !commit {
								want = "CompleteCommit"
							}
							expect(t, "state", x.state(), want)
							seen := map[string]bool{}
							for _, g := range slices.Compact(k.list()) {
								var part string
								var id, epoch int64
								var committed bool
								if _, err := fmt.Sscanf(g, "%s %d/%d %t", &part, &id, &epoch, &committed); err != nil {
									t.Fatal(err)
								}
								if committed != (commit == (part[0] == 't')) {
									t.Errorf("%s has the marker %q", part, g)
								}
								seen[part] = true
							}
							expect(t, "partitions with a marker", len(seen), 4)
							if k.both {
								t.Error("two attempts at a time at one partition")
							}
						})
					})
				}
			}
		}
	}
	if ends < 20 {
		t.Errorf("the process died in %d cases only", ends)
	}
}
