package main

import (
	"strings"
	"testing"

	"github.com/varve/varve/cmd/varve/servertest"
)

// TestBenchTxn: transactions are measured from what they read to what is committed, or alone, and flags that contradict each
// other are refused before anything is created.
func TestBenchTxn(t *testing.T) {
	s := servertest.Start(t, servertest.Options{Settings: map[string]string{"offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1"}})
	b := "--bootstrap-server=" + s.Addr()
	short := []string{"bench", "txn", "in", b, "--partitions=2", "--duration=1s", "--warmup=200ms", "--quiet"}
	with := func(args ...string) []string { return append(append([]string{}, short...), args...) }
	for _, args := range [][]string{
		with("--records=2", "--every=10ms"), with("--producers=0"), with("--to=in"), with("--to=a/b"), with("--floor=1s"),
	} {
		varve(t, "", args...).want(t, 2, "", "")
	}
	if topics := varve(t, "", "topic", "list", b); strings.Contains(topics.out, "in") {
		t.Errorf("created all the same: %s", topics.out)
	}
	r := varve(t, "", with("--rate=200", "--every=50ms", "--processors=2")...)
	for _, want := range []string{"transactions/s", "commit p99 ms", "end to end p99 ms", "consumed records/s", "CPU ms per transaction"} {
		r.want(t, 0, want, "")
	}
	varve(t, "", with("--producers=0", "--records=3", "-o", "json")...).want(t, 0, `"records_per_transaction": 3,`, "")
	varve(t, "", "topic", "list", b).want(t, 0, "in-out", "")
}

// TestBenchFailover: the topic is made, gaps are reported by the broker that led before, and a command that fails is not
// taken for one that changed nothing.
func TestBenchFailover(t *testing.T) {
	brokers := servertest.StartCluster(t, 2, servertest.Options{})
	short := func(command string, more ...string) result {
		return varve(t, "", append([]string{"bench", "failover", "f", "--bootstrap-server=" + brokers[0].Addr(), "--partitions=4", "--replication-factor=2",
			"--before=500ms", "--after=500ms", "--command=" + command}, more...)...)
	}
	short("").want(t, 2, "", "--command is missing")
	short("echo away; exit 3").want(t, 1, "", "exit status 3: away")
	r := short("true")
	for _, want := range []string{"before", "after, led by 1", "after, led by 2", "0 given up"} {
		r.want(t, 0, want, "")
	}
	short("true", "-o", "json").want(t, 0, `"partitions": 4,`, "")
}
