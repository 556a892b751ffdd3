package e2e_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

// committer writes transactions that have one record in each of some partitions.
type committer struct {
	cl         *kgo.Client
	partitions int32
}

func newCommitter(tb testing.TB, brokers []*servertest.Broker, partitions int32) *committer {
	tb.Helper()
	brokers[0].CreateReplicated("t", partitions, 3)
	cl, err := kgo.NewClient(seeds(brokers), kgo.TransactionalID("x"), kgo.DefaultProduceTopic("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cl.Close)
	return &committer{cl, partitions}
}

// commit returns how long the end of the transaction took: until the next one can
// begin in a partition of this one, which takes all markers.
func (c *committer) commit(ctx context.Context, tb testing.TB) time.Duration {
	tb.Helper()
	if err := c.cl.BeginTransaction(); err != nil {
		tb.Fatal(err)
	}
	var records []*kgo.Record
	for p := range c.partitions {
		records = append(records, &kgo.Record{Partition: p, Value: []byte("x")})
	}
	if err := c.cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		tb.Fatal(err)
	}
	end := func(how kgo.TransactionEndTry) {
		if err := c.cl.EndTransaction(ctx, how); err != nil {
			tb.Fatal(err)
		}
	}
	begin := time.Now()
	end(kgo.TryCommit)
	if err := c.cl.BeginTransaction(); err != nil {
		tb.Fatal(err)
	}
	if err := c.cl.ProduceSync(ctx, &kgo.Record{Partition: 0, Value: []byte("next")}).FirstErr(); err != nil {
		tb.Fatal(err)
	}
	took := time.Since(begin)
	end(kgo.TryAbort)
	return took
}

// The markers of a transaction go to each other broker in one request.
func TestMarkersGoTogether(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	c := newCommitter(t, brokers, 60)
	requests := func() (n float64) {
		for _, b := range brokers {
			n += metrics(t, b)[`varve_requests_total{api="WriteTxnMarkers"}`]
		}
		return n
	}
	ctx := patience(t)
	c.commit(ctx, t)
	before := requests()
	for range 5 {
		c.commit(ctx, t)
	}
	// Two for each commit, one for each abort, which is of a single partition, or none.
	if n := requests() - before; n < 5 || n > 20 {
		t.Errorf("%.0f requests for the markers of 5 transactions of 60 partitions and 5 of one", n)
	}
}

// BenchmarkCommit is a transaction of 100 partitions, with three replicas each, on
// three brokers.
func BenchmarkCommit(b *testing.B) {
	c := newCommitter(b, servertest.StartCluster(b, 3, servertest.Options{}), 100)
	ctx := patience(b)
	c.commit(ctx, b)
	var total time.Duration
	for b.Loop() {
		total += c.commit(ctx, b)
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/commit")
}
