package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
)

// The one replica that was in sync is away, and two that had fallen behind are there: one of them leads only when an
// operator has accepted as many lost offsets as they know of, and it is the one that has more; also when it is asked for as
// Kafka's tools do.
func TestElect(t *testing.T) {
	bucket := objstore.NewFaulty(objstore.NewMem(), 1)
	// Out of sync, a replica copies what comes with one fetch, four records, and then hardly anything.
	brokers := servertest.StartCluster(t, 4, servertest.Options{Bucket: bucket, Settings: map[string]string{
		"follower.replication.throttled.rate": "1", "min.insync.replicas": "1",
	}})
	bucket.SetOutage(true)
	const size = 200 << 10
	b := brokers[3]
	run := func(args ...string) result {
		t.Helper()
		return varve(t, "", append(args, "--bootstrap-server", b.Addr())...)
	}
	cl := b.Client(kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(kgo.NoCompression()))
	create := kmsg.NewPtrCreateTopicsRequest()
	create.TimeoutMillis = 30_000
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "t", -1, -1
	assigned := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
	assigned.Replicas = []int32{1, 2, 3}
	topic.ReplicaAssignment = append(topic.ReplicaAssignment, assigned)
	c := kmsg.NewCreateTopicsRequestTopicConfig()
	c.Name, c.Value = "follower.replication.throttled.replicas", kmsg.StringPtr("*")
	topic.Configs = append(topic.Configs, c)
	create.Topics = append(create.Topics, topic)
	if resp, err := create.RequestWith(t.Context(), cl); err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatal(resp, err)
	}
	isr := func(want string) {
		t.Helper()
		servertest.Eventually(t, func() error {
			var list []partitionState
			r := run("partition", "list", "t", "-o", "json")
			if err := json.Unmarshal([]byte(r.out), &list); err != nil {
				return err
			}
			if len(list) != 1 {
				return fmt.Errorf("%d partitions: %s%s", len(list), r.out, r.errOut)
			}
			if got := fmt.Sprintf("%d %v", list[0].Leader, list[0].ISR); got != want {
				return fmt.Errorf("leader and ISR are %s, not %s", got, want)
			}
			return nil
		})
		servertest.Agree(t, brokers)
	}
	write := func(n int) {
		t.Helper()
		for range n {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: make([]byte, size)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	shown := func(code int, errOut string) (e shownElection) {
		t.Helper()
		r := run("partition", "elect", "--unclean", "t", "0", "-o", "json")
		r.want(t, code, "", errOut)
		if err := json.Unmarshal([]byte(r.out), &e); err != nil {
			t.Fatal(err, r)
		}
		return e
	}

	isr("1 [1 2 3]")
	write(1)
	brokers[1].Stop()
	isr("1 [1 3]")
	write(6)
	brokers[2].Stop()
	isr("1 [1]")
	write(20)
	for _, late := range brokers[1:3] {
		if err := late.Restart(nil); err != nil {
			t.Fatal(err)
		}
	}
	const all = 27
	servertest.Eventually(t, func() error {
		e := shown(0, "")
		for _, id := range []int32{2, 3} {
			if l := e.Of(id); !l.Told || l.HighWatermark != all {
				return fmt.Errorf("broker %d: %+v", id, l)
			}
		}
		return nil
	})
	run("partition", "elect", "--unclean", "t", "0").want(t, 0, "t-0 is led by broker 1: there is nothing to elect\n", "")

	// A reassignment tells what the three have yet to copy.
	plan := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(plan, []byte(`{"version":1,"partitions":[{"topic":"t","partition":0,"replicas":[1,2,3,4]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	run("reassign", "apply", plan).want(t, 0, "t      0", "")
	servertest.Eventually(t, func() error {
		var list []movingPartition
		if err := json.Unmarshal([]byte(run("reassign", "status", "-o", "json").out), &list); err != nil {
			return err
		}
		e, copied := shown(0, ""), int64(0)
		for _, id := range []int32{2, 3, 4} {
			copied += max(e.Of(id).LogEnd, 0)
		}
		if len(list) != 1 || list[0].Left == nil || *list[0].Left != 3*all-copied || copied == 0 {
			return fmt.Errorf("%+v, of 3 x %d offsets %d are copied", list, all, copied)
		}
		return nil
	})
	run("reassign", "cancel", "t").want(t, 0, "t      0", "")
	isr("1 [1]")
	brokers[0].Stop()
	isr("-1 [1]")

	e := shown(1, "nothing is done: --accept-loss")
	two, three := e.Of(2), e.Of(3)
	switch {
	case e.Leader != -1 || e.Elect != 3 || e.Elected || e.Committed != all || e.RemoteEnd != 0:
		t.Errorf("%+v", e)
	case two.InSync || two.LogEnd < 1 || two.LogEnd >= three.LogEnd || three.LogEnd >= all:
		t.Errorf("broker 2: %+v, broker 3: %+v", two, three)
	case e.LostFrom != three.LogEnd || e.LostTo != all:
		t.Errorf("lost are %d to %d, of what 3 has: %+v", e.LostFrom, e.LostTo, three)
	case !e.Of(1).InSync || e.Of(1).Alive || e.Of(1).Told:
		t.Errorf("broker 1: %+v", e.Of(1))
	}
	lost := e.LostTo - e.LostFrom
	r := run("partition", "elect", "--unclean", "t", "0")
	r.want(t, 1, fmt.Sprintf("Broker 3 would lead from offset %d on: %d offsets are lost, %d to 26, and whatever was acknowledged from 27 on", e.LostFrom, lost, e.LostFrom),
		fmt.Sprintf("nothing is done: --accept-loss %d has broker 3 lead t-0", lost))
	r.want(t, 1, "Nothing is lost if one of those that were in sync comes back with its log: broker 1.\n", "")
	run("partition", "elect", "--unclean", "t", "0", "--accept-loss", fmt.Sprint(lost-1)).want(t, 1, "would lead", fmt.Sprintf("broker 3 lacks %d offsets of t-0", lost))
	isr("-1 [1]")
	results, err := kadm.NewClient(cl).ElectLeaders(t.Context(), kadm.ElectLiveReplica, kadm.TopicsSet{"t": {0: {}}})
	if err == nil {
		err = results["t"][0].Err
	}
	if err != nil {
		t.Fatal(err)
	}
	isr("3 [3]")
	at := func() int64 {
		t.Helper()
		r := cl.ProduceSync(t.Context(), kgo.SliceRecord(nil))
		if err := r.FirstErr(); err != nil {
			t.Fatal(err)
		}
		return r[0].Record.Offset
	}
	if o := at(); o != three.LogEnd {
		t.Errorf("it goes on at offset %d: broker 3 had everything below %d", o, three.LogEnd)
	}
	run("partition", "elect", "--unclean", "t", "0", "--accept-loss", "0").want(t, 0, "t-0 is led by broker 3", "")
	run("partition", "elect", "--unclean", "t", "7").want(t, 1, "", "There is no such partition")

	// And with the word of an operator alone.
	brokers[2].Stop()
	isr("-1 [3]")
	e = shown(1, "nothing is done: --accept-loss")
	if e.Elect != 2 || e.LostFrom != e.Of(2).LogEnd {
		t.Errorf("%+v", e)
	}
	run("partition", "elect", "--unclean", "t", "0", "--accept-loss", fmt.Sprint(e.lost())).want(t, 0, fmt.Sprintf("Broker 2 leads from offset %d on", e.LostFrom), "")
	isr("2 [2]")
	if o := at(); o != e.LostFrom {
		t.Errorf("it goes on at offset %d, not %d", o, e.LostFrom)
	}

	// Who has another history comes back, is in sync, and leads where it is the preferred one.
	bucket.SetOutage(false)
	brokers[1].Remote("t", false) // what it copies is throttled
	if err := brokers[0].Restart(nil); err != nil {
		t.Fatal(err)
	}
	servertest.Eventually(t, func() error {
		if r := run("partition", "elect", "--preferred", "t"); r.code != 0 {
			return fmt.Errorf("exit %d: %s", r.code, r.errOut)
		}
		return nil
	})
	run("partition", "elect", "--preferred", "t", "0").want(t, 0, "t      0          leads already\n", "")
	run("partition", "elect", "--preferred").want(t, 0, "TOPIC  PARTITION  PREFERRED REPLICA\n", "")
	run("partition", "elect", "--preferred", "nope").want(t, 1, "", "it does not exist")

	run("partition", "elect").want(t, exitUsage, "", "say --preferred or --unclean")
	run("partition", "elect", "--preferred", "--unclean", "t", "0").want(t, exitUsage, "", "say --preferred or --unclean")
	run("partition", "elect", "--unclean", "t").want(t, exitUsage, "", "--unclean is for one partition")
	run("partition", "elect", "--preferred", "t", "0", "--accept-loss", "1").want(t, exitUsage, "", "--accept-loss belongs to --unclean")
	run("partition", "elect", "--unclean", "t", "x").want(t, exitUsage, "", "a partition is named by its number")
	run("partition", "elect", "--unclean", "t", "0", "--accept-loss", "-1").want(t, exitUsage, "", "a number of offsets")
}

// What is lost is counted from where the replica goes on: from the end of what is in object storage, if that is later.
func TestLostOffsets(t *testing.T) {
	for _, tc := range []struct {
		end, remote, committed int64
		from, to               int64
	}{
		{end: 10, remote: 0, committed: 30, from: 10, to: 30},
		{end: 10, remote: 20, committed: 30, from: 20, to: 30},
		{end: -1, remote: 20, committed: 20, from: 20, to: 20},
		{end: 40, remote: 20, committed: 30, from: 40, to: 40}, // what it has beyond was not acknowledged, or nobody is left who knows
	} {
		u := broker.UncleanElection{RemoteEnd: tc.remote, Committed: tc.committed}
		if from, to := u.Lost(broker.ReplicaLog{LogEnd: tc.end}); from != tc.from || to != tc.to {
			t.Errorf("%+v: lost are %d to %d", tc, from, to)
		}
	}
}
