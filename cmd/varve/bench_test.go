package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/cmd/varve/servertest"
)

// TestBenchTxn: transactions are measured from what they read to what is committed, or alone, and flags that contradict each
// other are refused before anything is created.
func TestBenchTxn(t *testing.T) {
	s := servertest.Start(t, servertest.Options{Settings: map[string]string{"offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1"}})
	b := "--bootstrap-server=" + s.Addr()
	short := []string{"bench", "txn", "in", b, "--partitions=2", "--warmup=200ms", "--quiet"}
	with := func(args ...string) []string { return append(append([]string{}, short...), args...) }
	// measured measures for longer and longer until there is something to report: on a machine that does something else, a
	// second may see no transaction's end.
	measured := func(args ...string) result {
		for d := time.Second; ; d *= 3 {
			r := varve(t, "", with(append(args, "--duration="+d.String())...)...)
			if nothing := strings.Contains(r.errOut, "nothing went through in ") || strings.Contains(r.errOut, "no transaction was committed"); !nothing || d > time.Minute {
				return r
			}
		}
	}
	for _, args := range [][]string{
		with("--records=2", "--every=10ms"), with("--producers=0"), with("--to=in"), with("--to=a/b"), with("--floor=1s"), with("--keys=3"),
	} {
		varve(t, "", append(args, "--duration=1s")...).want(t, 2, "", "")
	}
	if topics := varve(t, "", "topic", "list", b); strings.Contains(topics.out, "in") {
		t.Errorf("created all the same: %s", topics.out)
	}
	r := measured("--rate=200", "--every=50ms", "--processors=2")
	for _, want := range []string{"transactions/s", "commit p99 ms", "end to end p99 ms", "consumed records/s", "CPU ms per transaction"} {
		r.want(t, 0, want, "")
	}
	r.want(t, 0, "2 clients with transactions (of 50ms)", "")
	measured("--producers=0", "--records=3", "-o", "json").want(t, 0, `"records_per_transaction": 3,`, "")
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
	// Those without a replica on a broker, where not all have one.
	partial := varve(t, "", "bench", "failover", "g", "--bootstrap-server="+brokers[0].Addr(), "--partitions=4", "--replication-factor=1", "--before=500ms", "--after=500ms", "--command=true")
	for _, want := range []string{"before, none on 1  2", "after, none on 1   2", "after, none on 2   2"} {
		partial.want(t, 0, want, "")
	}
	if strings.Contains(r.out, "none on") {
		t.Errorf("each partition has replicas on both, and yet:\n%s", r.out)
	}
}

// TestBenchFloors: producing, consuming and replaying are measured beside a floor, and say what the load was.
func TestBenchFloors(t *testing.T) {
	t.Setenv(envBeVarve, "1") // the floor is this executable, run once more
	s := servertest.Start(t, servertest.Options{})
	b := "--bootstrap-server=" + s.Addr()
	floor := []string{b, "--quiet", "--floor=300ms", "--floor-dir=" + t.TempDir(), "--floor-bytes=64MiB"}
	timed := append([]string{"--duration=500ms", "--warmup=100ms"}, floor...)
	r := varve(t, "", append([]string{"bench", "produce", "f", "--partitions=2", "--rate=5000", "--record-bytes=300", "--linger=1ms"}, timed...)...)
	for _, want := range []string{"of floor", "the load: topic f, 2 partitions, 1 producers, records of 300 B (random), batches of at most 16384 B, linger 1ms", "5000 records/s; measured for 0.5 s after a warm-up of 0.1 s"} {
		r.want(t, 0, want, "")
	}
	varve(t, "", append([]string{"bench", "replay", "f", "-o", "json", "--raw"}, floor...)...).want(t, 0, `"floor": {`, "")
	ctx, stop := context.WithCancel(t.Context())
	var producing sync.WaitGroup
	producing.Go(func() {
		load.Run(ctx, load.Spec{Bootstrap: []string{s.Addr()}, Topic: "f", Producers: 1, RecordBytes: 100, Rate: 1000, Acks: "all", Duration: time.Hour})
	})
	defer producing.Wait()
	defer stop()
	r = varve(t, "", append([]string{"bench", "consume", "f"}, timed...)...)
	r.want(t, 0, "of floor", "")
	r.want(t, 0, "the load: topic f, 2 partitions, 1 consumers in 1 groups, fetches of at most", "")
}

// TestBenchReassign: each size has a topic of its own that is moved so often and gone afterwards.
func TestBenchReassign(t *testing.T) {
	brokers := servertest.StartCluster(t, 2, servertest.Options{})
	short := func(more ...string) result {
		return varve(t, "", append([]string{"bench", "reassign", "--bootstrap-server=" + brokers[0].Addr(), "--moves=2"}, more...)...)
	}
	short("--bytes=1MiB,1048576").want(t, 2, "", "--bytes has 1048576 twice")
	short("--from=2").want(t, 2, "", "--from and --to are the same broker")
	r := short("--bytes=64KiB,1MiB", "-o", "json")
	for _, want := range []string{`"bytes": 65536,`, `"bytes": 1048576,`, `"errors": 0`} {
		r.want(t, 0, want, "")
	}
	servertest.Agree(t, brokers) // that they are deleted
	if topics := varve(t, "", "topic", "list", "--bootstrap-server="+brokers[0].Addr()); strings.Contains(topics.out, "reassign") {
		t.Errorf("topics are left: %s", topics.out)
	}
}
