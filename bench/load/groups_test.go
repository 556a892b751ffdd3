package load_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/cmd/varve/servertest"
)

// serve runs a broker: a floor knows neither groups nor transactions.
func serve(t *testing.T, topics ...string) *servertest.Broker {
	t.Helper()
	s := servertest.Start(t, servertest.Options{Settings: map[string]string{"group.initial.rebalance.delay.ms": "0", "offsets.topic.num.partitions": "3", "transaction.state.log.num.partitions": "3",
		"group.consumer.heartbeat.interval.ms": "200", "group.consumer.min.heartbeat.interval.ms": "200"}})
	for _, topic := range topics {
		s.CreateTopic(topic, 4)
	}
	return s
}

func transactions(s *servertest.Broker) load.Spec {
	return load.Spec{
		Bootstrap: []string{s.Addr()}, Topic: "in", Output: "out", RecordBytes: 100, Payload: load.Random, FetchMaxWait: 50 * time.Millisecond,
		Producers: 1, Processors: 2, Consumers: 1, Idempotent: true, Warmup: 200 * time.Millisecond, Duration: 3 * time.Second, Broker: []int{os.Getpid()},
	}
}

// runLong measures for longer and longer until there is something to report: on a machine that does something else, the
// first seconds may see no transaction's end.
func runLong(t *testing.T, s load.Spec) *load.Result {
	t.Helper()
	for ; ; s.Duration *= 3 {
		r, err := load.Run(t.Context(), s)
		if err == nil {
			return r
		}
		if !strings.Contains(err.Error(), "no transaction was committed") || s.Duration > time.Minute {
			t.Fatal(err)
		}
	}
}

// What goes in at a rate comes out of the transactions once, and what is reported adds up.
func TestTransactionsOfAnInterval(t *testing.T) {
	s := transactions(serve(t, "in", "out"))
	s.Rate, s.TxnEvery = 500, 50*time.Millisecond
	s.Warmup = time.Millisecond // what gathering the group left behind must not be measured
	r := runLong(t, s)
	x := r.Transactions
	if r.Errors > 0 || r.EndToEnd == nil || r.Commit == nil || x.Aborted > 0 {
		t.Fatalf("%+v, %+v", r, x)
	}
	// What is under way at the ends of the measured time blurs it.
	if in, out := r.Produced.Records, r.Consumed.Records; out < in/2 || out > 2*in {
		t.Errorf("%d records in, %d out", in, out)
	}
	if in := float64(x.Committed) * x.PerCommit; in < 0.5*float64(r.Consumed.Records) || in > 2*float64(r.Consumed.Records) {
		t.Errorf("%d transactions of %.1f records, but %d records are committed", x.Committed, x.PerCommit, r.Consumed.Records)
	}
	// Nobody sees a record before its transaction's end: on the average half an interval passes.
	if r.EndToEnd.Mean < 15 {
		t.Errorf("end to end %+v with transactions of 50 ms", r.EndToEnd)
	}
	if x.CPUPerTxn <= 0 || r.What != "txn" {
		t.Errorf("%s: %+v", r.What, x)
	}
}

// Back to back: transactions of so many records, of what is read or of what is made up.
func TestTransactionsBackToBack(t *testing.T) {
	b := serve(t, "in", "out")
	for _, producers := range []int{1, 0} {
		s := transactions(b)
		s.Producers, s.TxnRecords, s.Processors = producers, 5, 3
		r := runLong(t, s)
		if x := r.Transactions; r.Errors > 0 || x.Committed == 0 || x.PerCommit != 5 || r.EndToEnd == nil || r.Consumed.Records == 0 {
			t.Errorf("%d producers: %+v, %+v", producers, r, r.Transactions)
		}
		if (r.Produced != nil) != (producers > 0) {
			t.Errorf("%d producers: produced %+v", producers, r.Produced)
		}
	}
}

func TestTransactionsThatMakeNoSense(t *testing.T) {
	for want, change := range map[string]func(*load.Spec){
		"write to":                   func(s *load.Spec) { s.Output = "" },
		"that they read":             func(s *load.Spec) { s.Output = s.Topic },
		"either after a time":        func(s *load.Spec) { s.TxnEvery = time.Second },
		"read nothing":               func(s *load.Spec) { s.Producers, s.TxnRecords, s.TxnEvery = 0, 0, time.Second },
		"negative numbers of proces": func(s *load.Spec) { s.Processors = -1 },
	} {
		s := load.Spec{Bootstrap: []string{"127.0.0.1:1"}, Topic: "in", Output: "out", Producers: 1, Processors: 1, TxnRecords: 1, Duration: time.Second}
		change(&s)
		if _, err := load.Run(t.Context(), s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestCommits(t *testing.T) {
	b := serve(t, "in")
	s := load.CommitSpec{Bootstrap: []string{b.Addr()}, Topic: "in", Partitions: 4, Groups: 20, Committers: 3, Duration: time.Second, Broker: []int{os.Getpid()}}
	r, err := load.Commits(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if r.Errors > 0 || r.CommitsPerSecond <= 0 || r.Ack == nil || r.Ack.P50 <= 0 || r.Ack.P50 > r.Ack.Max {
		t.Fatalf("%+v", r)
	}
	// Every group has an offset for every partition.
	cl := b.Client()
	for _, g := range []string{"varve-bench-0", "varve-bench-19"} {
		if n := committed(t, cl, g); n != 4 {
			t.Errorf("%s has offsets of %d partitions, want 4", g, n)
		}
	}
	s.Partitions = 5
	if _, err := load.Commits(t.Context(), s); err == nil || !strings.Contains(err.Error(), "partition 4") {
		t.Errorf("a partition that does not exist: %v", err)
	}
	s.Topic = "none"
	if _, err := load.Commits(t.Context(), s); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a topic that does not exist: %v", err)
	}
}

// Members of both protocols come to own everything, evenly, in each of the three rebalances.
func TestRebalances(t *testing.T) {
	b := serve(t, "in")
	for _, protocol := range []string{"classic", "consumer"} {
		r, err := load.MeasureRebalances(t.Context(), load.RebalanceSpec{
			Bootstrap: []string{b.Addr()}, Topic: "in", Partitions: 4, Members: 3, Protocol: protocol, Broker: []int{os.Getpid()}})
		if err != nil {
			t.Fatalf("%s: %v", protocol, err)
		}
		for _, x := range []load.Rebalance{r.Start, r.Leave, r.Join} {
			if x.Seconds <= 0 || x.Requests < 2 {
				t.Errorf("%s: %+v", protocol, r)
			}
		}
		if r.Broker == nil || r.Broker.CPUSeconds <= 0 {
			t.Errorf("%s: %+v", protocol, r.Broker)
		}
	}
	for want, s := range map[string]load.RebalanceSpec{
		"share":    {Members: 5, Partitions: 4, Protocol: "classic"},
		"protocol": {Members: 2, Partitions: 4, Protocol: "other"},
	} {
		s.Bootstrap, s.Topic = []string{b.Addr()}, "in"
		if _, err := load.MeasureRebalances(t.Context(), s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// A group that is larger than its topic is believed to be is never even.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := load.MeasureRebalances(ctx, load.RebalanceSpec{Bootstrap: []string{b.Addr()}, Topic: "in", Partitions: 5, Members: 2, Protocol: "classic", Patience: 2 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "own 4 partitions of 5") {
		t.Errorf("a topic of 4 partitions as one of 5: %v", err)
	}
}

func committed(t *testing.T, cl *kgo.Client, group string) int {
	t.Helper()
	os, err := kadm.NewClient(cl).FetchOffsets(t.Context(), group)
	if err == nil {
		err = os.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(os["in"])
}
