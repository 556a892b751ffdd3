package brokertest

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
)

// threeBrokers has a cluster with its topics, all in sync. Where that fails, the cluster says so; it is to be closed in any case.
func threeBrokers(seed uint64, dir string, log slog.Handler, partitions int32, one bool) (*Cluster, *workload) {
	c := newCluster(seed, dir, log, 3, nil)
	w := newWorkload(c, partitions, nil)
	c.etcd.committed = w.watch
	for _, n := range c.nodes {
		n.Start()
	}
	err := w.createTopics(one)
	if err == nil {
		err = c.inSync(30 * time.Second)
	}
	if err != nil {
		c.fail("the cluster did not come up: %v", err)
	}
	return c, w
}

// TestIdlePartitionsMove: the replicas of partitions that nobody writes to are in long polls (replica.fetch.wait.max.ms, half
// a second) when the leader shuts down. What is then written to the new leader is acknowledged when its follower has asked
// for more, and that must not be at the end of such a poll. Time is simulated: a link takes a millisecond or so, a
// process none.
func TestIdlePartitionsMove(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, w := threeBrokers(1, dir, nil, 8, false)
		defer c.Close()
		if c.failed() {
			t.Error(c.report())
			return
		}
		k := w.client("mover")
		defer k.close()
		write := func(p history.Partition) error {
			record := plain(&history.Record{Producer: k.name, Number: time.Now().UnixNano()}, 100)
			err := error(kerr.LeaderNotAvailable)
			for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
				l, ok := k.leader(p)
				if !ok {
					continue
				}
				var resp kmsg.Response
				if resp, err = k.ask(l.id, produceRequest(9, p, nil, -1, batchOf([]kmsg.Record{record}, -1, -1, -1, false))); err == nil {
					_, err = produced(resp)
				}
				if err != nil {
					k.forget(p)
				}
			}
			return err
		}
		partitions := w.all(topicIn, topicOut, topicTxn)
		for _, p := range partitions {
			if err := write(p); err != nil {
				t.Errorf("%v before anything moved: %v", p, err)
				return
			}
		}
		time.Sleep(5 * time.Second) // all polls are long
		var led []history.Partition
		for _, p := range partitions {
			if l, _ := k.leader(p); l.id == 1 {
				led = append(led, p)
			}
		}
		if len(led) < 4 {
			t.Errorf("broker 1 leads %d of %d partitions: too few for this test", len(led), len(partitions))
			return
		}
		stopped := make(chan struct{})
		go func() { c.nodes[0].Stop(); close(stopped) }()
		moved := func() bool {
			im := c.image()
			for _, p := range led {
				if im.Topic(p.Topic).Partitions[p.Index].Leader == 1 {
					return false
				}
			}
			return true
		}
		for !moved() {
			time.Sleep(time.Millisecond)
		}
		// Of one client, one after the other: the first pays for the metadata that it has to fetch.
		for _, p := range led {
			k.forget(p)
			begin := time.Now()
			if err := write(p); err != nil {
				t.Errorf("%v: %v", p, err)
			} else if took := time.Since(begin); took > 150*time.Millisecond {
				t.Errorf("%v: a record was acknowledged %s after its partition had moved: its follower was left in a long poll", p, took)
			}
		}
		<-stopped
	})
}

// TestMarkerToASilentLeader: the leader of a partition of a transaction goes silent, as a machine does that lost its network,
// when the transaction has just been committed. Its marker is on the way to it. The partition has another leader as soon as
// the silent one's lease has run out, and that is when the marker has to be written there: the producer's next transaction
// and all readers of committed records wait for it.
func TestMarkerToASilentLeader(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, w := threeBrokers(2, dir, nil, 6, false)
		defer c.Close()
		if c.failed() {
			t.Error(c.report())
			return
		}
		id := "one"
		k := w.client(id)
		defer k.close()
		pid, epoch, ok := k.initProducer(&id, &w.feeds)
		coordinator, err := k.coordinator(1, id)
		if !ok || err != nil {
			t.Errorf("no coordinator of transactions: %v", err)
			return
		}
		if err := c.inSync(30 * time.Second); err != nil { // the coordinators' topics are there by now
			t.Error(err)
			return
		}
		s := &session{k: k, id: id, pid: pid, epoch: epoch, seq: map[history.Partition]int32{}}
		var silent int32
		var at history.Partition
		for _, p := range w.all(topicTxn) {
			if l, ok := k.leader(p); ok && l.id != coordinator && l.id != c.image().Controller {
				silent, at = l.id, p
			}
		}
		if silent == 0 {
			t.Errorf("the coordinator and the controller lead all partitions of %s: this test needs another seed", topicTxn)
			return
		}
		next := int64(0)
		write := func(txn string) bool {
			s.begin(txn)
			records, out := k.records(at, id, txn, &next)
			return s.send(at, records, out)
		}
		// After the first the coordinator has a connection to the leader, on which it sends what comes next.
		if !write("one.0") || !s.end("one.0", true) || !write("one.1") {
			t.Errorf("%v took no records of a transaction", at)
			return
		}
		// Its answer leaves when the decision is committed; the marker is on its way by then.
		if !s.end("one.1", true) {
			t.Error("the transaction was not committed")
			return
		}
		c.node(silent).Hold(true)
		defer c.node(silent).Hold(false)
		begin := time.Now()
		// Answered only when the transaction before is complete.
		if _, _, ok = k.initProducer(&id, &w.feeds); !ok {
			t.Error("no next transaction")
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the transaction was complete %s after its commit: its marker waited for a broker that is gone", took)
		}
	})
}
