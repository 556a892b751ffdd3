//go:build long

// Compiles everything anew, with another clock, which takes minutes: `make test-long`.

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/internal/skew"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

// transactor runs transactions of one id, one after the other: committed, aborted, committed again. What fails is begun again
// by a new client.
type transactor struct {
	mu                    sync.Mutex
	committed, open, gone map[string]bool // by value: told to be committed; of nobody knows; aborted, or given up before the end
	failures              int
}

func (x *transactor) run(t *testing.T, c *cluster.Cluster, topic string, stop <-chan struct{}) {
	x.committed, x.open, x.gone = map[string]bool{}, map[string]bool{}, map[string]bool{}
	var cl *kgo.Client
	for n := 0; ; n++ {
		select {
		case <-stop:
			if cl != nil {
				cl.Close()
			}
			return
		default:
		}
		if cl == nil {
			var err error
			if cl, err = kgo.NewClient(kgo.SeedBrokers(c.Bootstrap()...), kgo.TransactionalID("x"), kgo.TransactionTimeout(30*time.Second), kgo.DefaultProduceTopic(topic)); err != nil {
				t.Error(err)
				return
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		v := fmt.Sprint("transaction-", n)
		err := cl.BeginTransaction()
		if err == nil {
			err = cl.ProduceSync(ctx, &kgo.Record{Value: []byte(v)}, &kgo.Record{Value: []byte(v)}).FirstErr()
		}
		commit := err == nil && n%2 == 0
		end := cl.EndTransaction(ctx, kgo.TransactionEndTry(commit))
		cancel()
		x.mu.Lock()
		switch {
		case commit && end == nil:
			x.committed[v] = true
		case commit:
			x.open[v] = true
		default:
			x.gone[v] = true
		}
		if err != nil || end != nil {
			x.failures++
			cl.Close()
			cl = nil
		}
		x.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// check reads what is committed, up to a last transaction.
func (x *transactor) check(t *testing.T, c *cluster.Cluster, topic string) {
	t.Helper()
	const last = "last"
	out := c.Client(t, kgo.TransactionalID("x"), kgo.DefaultProduceTopic(topic))
	err := out.BeginTransaction()
	if err == nil {
		err = out.ProduceSync(t.Context(), &kgo.Record{Value: []byte(last)}, &kgo.Record{Value: []byte(last)}).FirstErr()
	}
	if err := errors.Join(err, out.EndTransaction(t.Context(), kgo.TryCommit)); err != nil {
		t.Fatal(err)
	}
	in := c.Client(t, kgo.ConsumeTopics(topic), fromStart, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	defer in.Close()
	found := map[string]int{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for found[last] < 2 {
		fs := in.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("after %d transactions: %v", len(found), err)
		}
		fs.EachRecord(func(r *kgo.Record) { found[string(r.Value)]++ })
	}
	for v := range x.committed {
		if found[v] != 2 {
			t.Errorf("%s is committed, and %d of its 2 records are there", v, found[v])
		}
	}
	for v, n := range found {
		if x.gone[v] || n != 2 {
			t.Errorf("%s: %d records are shown of a transaction that was aborted: %v", v, n, x.gone[v])
		}
	}
	t.Logf("%d transactions committed, %d aborted, of %d nobody knows, %d failures", len(x.committed), len(x.gone), len(x.open), x.failures)
}

// TestClocks: the wall clocks of brokers and of a compaction worker jump by an hour, forward and back, and to and fro by half
// a minute, one and all (F21). Nobody is elected, and no replica leaves the in-sync replicas, for that; what is acknowledged and what
// is committed is there; nothing of a topic that keeps its records for a day is deleted; a transaction whose producer is
// gone is aborted soon after the clock goes right again.
//
// What is as in Kafka, and printed: with a broker whose clock is an hour ahead, records go an hour early.
func TestClocks(t *testing.T) {
	dir := t.TempDir()
	built := filepath.Join(dir, "varve")
	if err := skew.Build(t.Context(), built, "."); err != nil {
		t.Fatal(err)
	}
	clocks := map[string]*skew.Clock{}
	clock := func(name string) string { return filepath.Join(dir, name+".clock") }
	for _, name := range []string{"broker-1", "broker-2", "broker-3", "compactor-1"} {
		var err error
		if clocks[name], err = skew.New(clock(name)); err != nil {
			t.Fatal(err)
		}
		defer clocks[name].Close()
	}
	c := cluster.Start(t, cluster.Options{
		Varve: []string{built}, EnvOf: func(name string) []string { return []string{skew.Env + "=" + clock(name)} }, Etcd: 1, Workers: 1,
		Set: []string{
			"default.replication.factor=3", "min.insync.replicas=2", "remote.flush.interval.ms=500", "log.retention.check.interval.ms=500",
			"offsets.topic.num.partitions=1", "transaction.state.log.num.partitions=1", "remote.delete.grace.ms=2000", "log.cleaner.backoff.ms=500",
			// A busy machine must not be taken for a clock that jumps.
			"broker.session.timeout.ms=30000",
		},
	})
	client, err := etcd.Dial(t.Context(), etcd.DialOptions{Endpoints: []string{c.Describe().Etcd[0].Client}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	store := etcd.New(etcd.Options{Client: client, Prefix: "/varve"})
	look := func() *image.Image {
		t.Helper()
		im, err := store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	cl := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond))
	adm := kadm.NewClient(cl)
	for topic, keeps := range map[string]time.Duration{"day": 24 * time.Hour, "half-hour": 30 * time.Minute, "x": 24 * time.Hour, "left": 24 * time.Hour} {
		ms := fmt.Sprint(keeps.Milliseconds())
		if _, err := adm.CreateTopic(t.Context(), 1, -1, map[string]*string{"retention.ms": &ms}, topic); err != nil {
			t.Fatal(err)
		}
	}
	leader := func(topic string) string {
		t.Helper()
		im := look()
		return c.Broker(im.Partition(im.Topic(topic).ID, 0).Leader).Name
	}
	eventually(t, func() error {
		im := look()
		for _, topic := range im.Topics() {
			if p := im.Partition(topic.ID, 0); p == nil || len(p.ISR) != 3 {
				return fmt.Errorf("%s: %+v", topic.Name, p)
			}
		}
		return nil
	})
	for range 100 {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "half-hour", Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}

	var l ledger
	var x transactor
	stop := make(chan struct{})
	var loads sync.WaitGroup
	defer loads.Wait()
	end := sync.OnceFunc(func() { close(stop) })
	defer end()
	loads.Go(func() {
		l.produce(c.Client(t, kgo.MetadataMinAge(50*time.Millisecond)), "day", stop, func(err error) { t.Errorf("a record is refused: %v", err) })
	})
	loads.Go(func() { x.run(t, c, "x", stop) })
	group := c.Client(t, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("day"), fromStart, kgo.SessionTimeout(10*time.Second), kgo.AutoCommitInterval(500*time.Millisecond))
	loads.Go(func() {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			group.PollFetches(ctx)
			cancel()
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	eventually(t, func() error {
		if n := l.len(); n < 500 {
			return fmt.Errorf("%d records", n)
		}
		return stable(t.Context(), adm, "g", 1)
	})
	// state is what no clock changes.
	state := func() string {
		t.Helper()
		im := look()
		s := fmt.Sprintf("controller epoch %d;", im.ControllerEpoch)
		for _, b := range im.Brokers() {
			s += fmt.Sprintf(" broker %d: epoch %d, fenced %v, unresponsive %v;", b.ID, b.Epoch, b.Fenced, b.Unresponsive)
		}
		for _, topic := range im.Topics() {
			p := im.Partition(topic.ID, 0)
			s += fmt.Sprintf(" %s: leader %d, epoch %d, %d in sync;", topic.Name, p.Leader, p.LeaderEpoch, len(p.ISR))
		}
		return s
	}
	logStart := func(topic string) int64 {
		t.Helper()
		starts, err := adm.ListStartOffsets(t.Context(), topic)
		if err != nil || starts.Error() != nil {
			t.Fatal(err, starts.Error())
		}
		o, _ := starts.Lookup(topic, 0)
		return o.Offset
	}
	generation := func() string {
		t.Helper()
		g, err := adm.DescribeGroups(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(g["g"].State, " ", len(g["g"].Members))
	}
	eventually(t, func() error {
		im := look()
		if im.Topic("__transaction_state") == nil || im.Topic("__consumer_offsets") == nil {
			return errors.New("the coordinators' topics are not there yet")
		}
		return nil
	})
	eventually(t, func() error {
		im := look()
		for _, topic := range im.Topics() {
			if p := im.Partition(topic.ID, 0); len(p.ISR) != 3 {
				return fmt.Errorf("%s: %+v", topic.Name, p)
			}
		}
		return nil
	})
	before := state()
	all := []string{"broker-1", "broker-2", "broker-3", "compactor-1"}
	for _, jump := range []struct {
		what  string
		names []string
		by    []time.Duration // one after the other, again and again
	}{
		{"the leader's an hour ahead", []string{leader("day")}, []time.Duration{time.Hour}},
		{"the leader's an hour behind", []string{leader("day")}, []time.Duration{-time.Hour}},
		{"the leader's to and fro", []string{leader("day")}, []time.Duration{30 * time.Second, -30 * time.Second}},
		{"the group's coordinator's", []string{leader("__consumer_offsets")}, []time.Duration{time.Hour, -time.Hour}},
		{"the transactions' coordinator's", []string{leader("__transaction_state")}, []time.Duration{time.Hour, -time.Hour}},
		{"the worker's", all[3:], []time.Duration{time.Hour, -time.Hour}},
		{"all to and fro", all, []time.Duration{30 * time.Second, -30 * time.Second}},
		{"all an hour behind", all, []time.Duration{-time.Hour}},
		{"all an hour ahead", all, []time.Duration{time.Hour}},
	} {
		acknowledged := l.len()
		for i := 0; i < 20; i++ {
			for _, name := range jump.names {
				clocks[name].Set(jump.by[i%len(jump.by)])
			}
			time.Sleep(200 * time.Millisecond)
		}
		during := l.len()
		for _, name := range jump.names {
			clocks[name].Set(0)
		}
		eventually(t, func() error {
			if n := l.len(); n < during+100 {
				return fmt.Errorf("%d records acknowledged since the clock goes right", n-during)
			}
			return nil
		})
		x.mu.Lock()
		failures := x.failures
		x.mu.Unlock()
		t.Logf("%s: %d records acknowledged meanwhile; group %s; %d failures of transactions by now; half-hour begins at %d", jump.what, during-acknowledged, generation(), failures, logStart("half-hour"))
		if during == acknowledged {
			t.Errorf("%s: no record is acknowledged", jump.what)
		}
		if now := state(); now != before {
			t.Errorf("%s:\n%s\n%s before", jump.what, now, before)
		}
		if at := logStart("day"); at != 0 {
			t.Errorf("%s: what is to be kept for a day begins at %d", jump.what, at)
		}
	}
	end()
	loads.Wait()
	eventually(t, func() error {
		committed, err := adm.FetchOffsets(t.Context(), "g")
		if err != nil {
			return err
		}
		if o, ok := committed.Lookup("day", 0); !ok || o.At <= 0 {
			return fmt.Errorf("the group has committed %+v", o)
		}
		return nil
	})
	l.checkWith(t, c.Client(t, kgo.ConsumeTopics("day"), fromStart), 0)
	x.check(t, c, "x")

	// A transaction that nobody ends, and a clock that goes back while its coordinator waits for its timeout.
	gone := c.Client(t, kgo.TransactionalID("left"), kgo.TransactionTimeout(3*time.Second), kgo.DefaultProduceTopic("left"))
	if err := gone.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := gone.ProduceSync(t.Context(), &kgo.Record{Value: []byte("left")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	clocks[leader("__transaction_state")].Set(-time.Hour)
	time.Sleep(5 * time.Second)
	clocks[leader("__transaction_state")].Set(0)
	from := time.Now()
	eventually(t, func() error {
		ends, err := adm.ListEndOffsets(t.Context(), "left")
		if err != nil {
			return err
		}
		stable, err := adm.ListCommittedOffsets(t.Context(), "left")
		if err != nil {
			return err
		}
		e, _ := ends.Lookup("left", 0)
		s, _ := stable.Lookup("left", 0)
		if e.Offset != 2 || s.Offset != 2 { // the record and the marker
			return fmt.Errorf("the log ends at %d, and is stable up to %d", e.Offset, s.Offset)
		}
		return nil
	})
	t.Logf("the transaction that nobody ended is aborted %.1fs after the clock goes right again", time.Since(from).Seconds())
}
