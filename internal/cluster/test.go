package cluster

import (
	"os"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Start runs a cluster until a test ends, and shows the ends of its logs if the test fails. The servers beside the
// brokers are this test binary, whose TestMain has to begin with Serve(os.Args[1:]). What is not said in o is: a
// directory of the test, free ports, and sizes that tests want.
func Start(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	if o.Dir == "" {
		o.Dir = tb.TempDir()
	}
	o.FreePorts = true
	o.Servers = []string{os.Args[0]}
	o.Set = append([]string{
		"wal.segment.bytes=4194304", "wal.max.bytes=268435456", "memory.max.bytes=268435456",
		"remote.flush.interval.ms=1000", "group.initial.rebalance.delay.ms=0",
	}, o.Set...)
	c, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, s := range c.Servers() {
			if tb.Failed() {
				tb.Logf("%s: %s", s.Name, s.Tail())
			}
			if s.Running() {
				if err := s.Kill(); err != nil {
					tb.Error(err)
				}
			}
		}
	})
	if _, err := c.Up(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return c
}

// Client is a client of the cluster, closed when the test ends.
func (c *Cluster) Client(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.Bootstrap()...)}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cl.Close)
	return cl
}
