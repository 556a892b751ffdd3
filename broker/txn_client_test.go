package broker_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/vfs"
)

const txnTopic = "__transaction_state"

// startTxn runs a broker with few partitions of transaction state.
func startTxn(t testing.TB, settings ...string) *servertest.Broker {
	return startQuiet(t, append([]string{"transaction.state.log.num.partitions", "3"}, settings...)...)
}

// within is the time that a test gives a client.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// transactional is franz-go's producer. Older ones end and add to transactions as clients did before transaction version 2.
func transactional(b *servertest.Broker, id string, old bool, opts ...kgo.Opt) *kgo.Client {
	opts = append([]kgo.Opt{kgo.TransactionalID(id), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionTimeout(time.Minute)}, opts...)
	if old {
		opts = append(opts, kgo.MaxVersions(kversion.V3_6_0()))
	}
	return b.Client(opts...)
}

func produce(t testing.TB, cl *kgo.Client, topic string, partition int32, value string) error {
	t.Helper()
	return cl.ProduceSync(within(t), &kgo.Record{Topic: topic, Partition: partition, Value: []byte(value)}).FirstErr()
}

func mustProduce(t testing.TB, cl *kgo.Client, topic string, partition int32, value string) {
	t.Helper()
	if err := produce(t, cl, topic, partition, value); err != nil {
		t.Fatalf("produce %s: %v", value, err)
	}
}

func begin(t testing.TB, cl *kgo.Client) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
}

func endTxn(t testing.TB, cl *kgo.Client, commit bool) {
	t.Helper()
	if err := cl.EndTransaction(within(t), kgo.TransactionEndTry(commit)); err != nil {
		t.Fatalf("end of a transaction: %v", err)
	}
}

// committedValues are the values that a reader of committed records sees of a topic, in order of partitions.
func committedValues(t testing.TB, b *servertest.Broker, topic string, partitions int32) (values []string) {
	t.Helper()
	c := dial(t, b)
	for p := range partitions {
		got, _ := c.readCommitted(topic, p, 0, 1<<20)
		for _, s := range got {
			values = append(values, s.value)
		}
	}
	return values
}

func expectCommitted(t testing.TB, b *servertest.Broker, topic string, partitions int32, want ...string) {
	t.Helper()
	var got []string
	servertest.Eventually(t, func() error { // markers come a little after EndTxn is answered
		if got = committedValues(t, b, topic, partitions); !slices.Equal(got, want) {
			return fmt.Errorf("a reader of committed records sees %q, want %q", got, want)
		}
		return nil
	})
}

// described is what DescribeTransactions says of an id, once f likes it.
func described(t testing.TB, b *servertest.Broker, id string, f func(kadm.DescribedTransaction) bool) kadm.DescribedTransaction {
	t.Helper()
	adm := kadm.NewClient(b.Client())
	var d kadm.DescribedTransaction
	servertest.Eventually(t, func() error {
		ds, err := adm.DescribeTransactions(within(t), id)
		if err != nil {
			return err
		}
		if d = ds[id]; d.Err != nil || !f(d) {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	return d
}

func inState(state string) func(kadm.DescribedTransaction) bool {
	return func(d kadm.DescribedTransaction) bool { return d.State == state }
}

func TestTransactionsOfAClient(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%v", old), func(t *testing.T) {
			b := startTxn(t)
			b.CreateTopic("t", 3)
			cl := transactional(b, "tx", old)
			if _, _, err := cl.ProducerID(within(t)); err != nil {
				t.Fatal(err)
			}
			described(t, b, "tx", inState("Empty"))

			begin(t, cl)
			mustProduce(t, cl, "t", 0, "a0")
			mustProduce(t, cl, "t", 2, "a2")
			d := described(t, b, "tx", inState("Ongoing"))
			if ps := d.Topics["t"]; len(ps) != 2 || d.TimeoutMillis != 60_000 || time.Since(time.UnixMilli(d.StartTimestamp)) > time.Minute {
				t.Errorf("described as %+v", d)
			}
			expectCommitted(t, b, "t", 3)
			endTxn(t, cl, true)
			expectCommitted(t, b, "t", 3, "a0", "a2")
			described(t, b, "tx", inState("CompleteCommit"))

			// One right after the other: the markers of the last are still being written.
			for i := range 10 {
				begin(t, cl)
				mustProduce(t, cl, "t", 0, fmt.Sprint("b", i))
				mustProduce(t, cl, "t", 1, fmt.Sprint("c", i))
				endTxn(t, cl, i%2 == 0)
			}
			expectCommitted(t, b, "t", 3, "a0", "b0", "b2", "b4", "b6", "b8", "c0", "c2", "c4", "c6", "c8", "a2")
			described(t, b, "tx", inState("CompleteAbort"))

			// A transaction without partitions.
			begin(t, cl)
			endTxn(t, cl, true)
			begin(t, cl)
			endTxn(t, cl, false)
			begin(t, cl)
			mustProduce(t, cl, "t", 1, "last")
			endTxn(t, cl, true)
			expectCommitted(t, b, "t", 3, "a0", "b0", "b2", "b4", "b6", "b8", "c0", "c2", "c4", "c6", "c8", "last", "a2")

			// The next one with the id fences the first.
			begin(t, cl)
			mustProduce(t, cl, "t", 0, "of the zombie")
			next := transactional(b, "tx", old)
			begin(t, next)
			mustProduce(t, next, "t", 0, "of the next")
			if err := produce(t, cl, "t", 0, "of the zombie"); !errors.Is(err, kerr.ProducerFenced) && !errors.Is(err, kerr.InvalidProducerEpoch) {
				t.Errorf("a fenced producer was told %v", err)
			}
			if err := cl.EndTransaction(within(t), kgo.TryCommit); err == nil {
				t.Error("a fenced producer committed")
			}
			endTxn(t, next, true)
			expectCommitted(t, b, "t", 3, "a0", "b0", "b2", "b4", "b6", "b8", "of the next", "c0", "c2", "c4", "c6", "c8", "last", "a2")
		})
	}
}

// What no coordinator would take is refused for what it is by a broker that knows of no coordinator yet.
func TestTimeoutBeforeCoordinator(t *testing.T) {
	b := startTxn(t, "transaction.max.timeout.ms", "2000")
	y := newBystander(t, b)
	for timeout, want := range map[int32]int16{-1: protocol.CodeInvalidTransactionTimeout, 0: protocol.CodeInvalidTransactionTimeout, 2001: protocol.CodeInvalidTransactionTimeout, 2000: protocol.CodeCoordinatorNotAvailable} {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID, req.TransactionTimeoutMillis = kmsg.StringPtr("tx"), timeout
		if r := y.do(at(5, req)).(*kmsg.InitProducerIDResponse); r.ErrorCode != want || r.ProducerID != -1 || r.ProducerEpoch != -1 {
			t.Errorf("a timeout of %d ms: %s, id %d, epoch %d; want %s", timeout, protocol.Name(r.ErrorCode), r.ProducerID, r.ProducerEpoch, protocol.Name(want))
		}
	}
}

func TestTransactionTimesOut(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%v", old), func(t *testing.T) {
			b := startTxn(t, "transaction.max.timeout.ms", "30000")
			b.CreateTopic("t", 1)
			cl := transactional(b, "tx", old)
			if _, _, err := cl.ProducerID(within(t)); !errors.Is(err, kerr.InvalidTransactionTimeout) {
				t.Errorf("a timeout above transaction.max.timeout.ms: %v", err)
			}
			cl = transactional(b, "tx", old, kgo.TransactionTimeout(time.Second)) // in which a record has to be written
			begin(t, cl)
			mustProduce(t, cl, "t", 0, "late")
			described(t, b, "tx", inState("CompleteAbort"))
			if err := cl.EndTransaction(within(t), kgo.TryCommit); err == nil {
				t.Error("a transaction that had timed out was committed")
			}
			other := transactional(b, "tx", old, kgo.TransactionTimeout(30*time.Second))
			begin(t, other)
			mustProduce(t, other, "t", 0, "in time")
			endTxn(t, other, true)
			expectCommitted(t, b, "t", 1, "in time")
		})
	}
}

func TestListTransactions(t *testing.T) {
	b := startTxn(t)
	b.CreateTopic("t", 1)
	y := newBystander(t, b)
	list := func(version int16, f func(*kmsg.ListTransactionsRequest)) (ids []string, resp *kmsg.ListTransactionsResponse) {
		req := kmsg.NewPtrListTransactionsRequest()
		f(req)
		resp = y.do(at(version, req)).(*kmsg.ListTransactionsResponse)
		for _, s := range resp.TransactionStates {
			ids = append(ids, s.TransactionalID+" "+s.TransactionState)
		}
		slices.Sort(ids)
		return ids, resp
	}
	if ids, resp := list(2, func(*kmsg.ListTransactionsRequest) {}); len(ids) != 0 || resp.ErrorCode != 0 {
		t.Errorf("before the topic exists: %v, %s", ids, protocol.Name(resp.ErrorCode))
	}
	for _, id := range []string{"one", "two", "three"} {
		cl := transactional(b, id, false)
		begin(t, cl)
		mustProduce(t, cl, "t", 0, id)
		if id != "two" {
			endTxn(t, cl, id == "one")
		}
	}
	described(t, b, "one", inState("CompleteCommit"))
	three := described(t, b, "three", inState("CompleteAbort"))
	for _, x := range []struct {
		name string
		f    func(*kmsg.ListTransactionsRequest)
		want string
	}{
		{"all", func(*kmsg.ListTransactionsRequest) {}, "[one CompleteCommit three CompleteAbort two Ongoing]"},
		{"by state", func(r *kmsg.ListTransactionsRequest) { r.StateFilters = []string{"Ongoing", "Nonsense"} }, "[two Ongoing]"},
		{"by producer id", func(r *kmsg.ListTransactionsRequest) { r.ProducerIDFilters = []int64{three.ProducerID} }, "[three CompleteAbort]"},
		{"by duration", func(r *kmsg.ListTransactionsRequest) { r.DurationFilterMillis = 3_600_000 }, "[]"},
		{"by pattern", func(r *kmsg.ListTransactionsRequest) { r.TransactionalIDPattern = kmsg.StringPtr("t.*") }, "[three CompleteAbort two Ongoing]"},
	} {
		ids, resp := list(2, x.f)
		if got := fmt.Sprint(ids); got != x.want || resp.ErrorCode != 0 {
			t.Errorf("%s: %s, %s; want %s", x.name, got, protocol.Name(resp.ErrorCode), x.want)
		}
	}
	servertest.Eventually(t, func() error { // the numbers may be a second old
		for name, want := range map[string]float64{"varve_transactional_ids": 3, "varve_open_transactions": 1,
			`varve_transactions_total{outcome="commit"}`: 1, `varve_transactions_total{outcome="abort"}`: 1} {
			if got := y.metric(name); got != want {
				return fmt.Errorf("%s %v, want %v", name, got, want)
			}
		}
		if age := y.metric("varve_oldest_transaction_seconds"); age <= 0 || age > 60 {
			return fmt.Errorf("the oldest transaction is %v s old", age)
		}
		return nil
	})
	if _, resp := list(0, func(r *kmsg.ListTransactionsRequest) { r.StateFilters = []string{"Nonsense"} }); !slices.Equal(resp.UnknownStateFilters, []string{"Nonsense"}) {
		t.Errorf("unknown states: %q", resp.UnknownStateFilters)
	}
	if _, resp := list(2, func(r *kmsg.ListTransactionsRequest) { r.TransactionalIDPattern = kmsg.StringPtr("(") }); resp.ErrorCode != protocol.CodeInvalidRegularExpression {
		t.Errorf("a pattern that is none: %s", protocol.Name(resp.ErrorCode))
	}
}

// TestTransactionsOverRestarts restarts the broker in the middle of transactions: what was begun can be ended, what was
// ended stays so, and a producer that comes back aborts what it left.
func TestTransactionsOverRestarts(t *testing.T) {
	b := startTxn(t)
	b.CreateTopic("t", 2)
	restart := func() {
		t.Helper()
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
	}
	cl := transactional(b, "tx", false)
	begin(t, cl)
	mustProduce(t, cl, "t", 0, "a")
	restart()
	mustProduce(t, cl, "t", 1, "b")
	endTxn(t, cl, true)
	restart()
	expectCommitted(t, b, "t", 2, "a", "b")
	described(t, b, "tx", inState("CompleteCommit"))

	begin(t, cl)
	mustProduce(t, cl, "t", 0, "left behind")
	before := described(t, b, "tx", inState("Ongoing"))
	restart()
	if after := described(t, b, "tx", inState("Ongoing")); after.ProducerID != before.ProducerID || after.ProducerEpoch != before.ProducerEpoch ||
		after.StartTimestamp != before.StartTimestamp || fmt.Sprint(after.Topics) != fmt.Sprint(before.Topics) {
		t.Errorf("after a restart %+v, before %+v", after, before)
	}
	next := transactional(b, "tx", false)
	begin(t, next)
	mustProduce(t, next, "t", 0, "c")
	endTxn(t, next, true)
	expectCommitted(t, b, "t", 2, "a", "c", "b")
}

// TestTransactionsOverPowerFailures cuts the power at random moments of transactions over three partitions, some of which lie
// in object storage by then. A reader of committed records sees each transaction in all of its partitions or in none, and
// those of which the producer was told the end as it was told.
func TestTransactionsOverPowerFailures(t *testing.T) {
	const partitions, rounds = 3, 6
	b := servertest.Start(t, servertest.Options{FS: vfs.NewMem(), Settings: map[string]string{"transaction.state.log.num.partitions": "2"}})
	b.CreateTopic("t", partitions)
	var mu sync.Mutex
	told := map[string]bool{} // value -> committed
	n := 0
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range uint64(rounds) {
		cl := transactional(b, "tx", round%2 == 1)
		ctx, cancel := context.WithCancel(context.Background())
		enough := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			began := n
			for ctx.Err() == nil {
				n++
				value, commit := fmt.Sprintf("%06d", n), n%3 != 0
				if cl.BeginTransaction() != nil {
					return
				}
				var rs []*kgo.Record
				for p := range int32(partitions) {
					rs = append(rs, &kgo.Record{Topic: "t", Partition: p, Value: []byte(value)})
				}
				if cl.ProduceSync(ctx, rs...).FirstErr() != nil || cl.EndTransaction(ctx, kgo.TransactionEndTry(commit)) != nil {
					return
				}
				mu.Lock()
				told[value] = commit
				mu.Unlock()
				if n == began+20 {
					close(enough)
				}
			}
		})
		select {
		case <-enough:
		case <-time.After(time.Minute):
			t.Fatalf("round %d: 20 transactions take more than a minute", round)
		}
		time.Sleep(time.Duration(rng.IntN(8000)) * time.Microsecond)
		mu.Lock()
		want := maps.Clone(told)
		mu.Unlock()
		if err := b.PowerFailure(round, func() { cancel(); wg.Wait() }); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		mu.Lock()
		told = want // what was said by a process without power does not count
		mu.Unlock()

		// Whoever comes next ends what is open.
		next := transactional(b, "tx", false)
		begin(t, next)
		mustProduce(t, next, "t", 0, fmt.Sprintf("end of round %d", round))
		endTxn(t, next, true)
		described(t, b, "tx", inState("CompleteCommit"))
		seen := map[string]int{}
		for _, v := range committedValues(t, b, "t", partitions) {
			seen[v]++
		}
		for v, k := range seen {
			if k != partitions && !strings.HasPrefix(v, "end") {
				t.Errorf("round %d: transaction %s is in %d of %d partitions", round, v, k, partitions)
			}
		}
		for v, committed := range want {
			if (seen[v] > 0) != committed {
				t.Errorf("round %d: transaction %s: committed is %v, and it is seen %d times", round, v, committed, seen[v])
			}
		}
		if len(want) < 20*int(round+1) {
			t.Errorf("round %d: %d transactions", round, len(want))
		}
	}
}
