package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/varve/varve/cmd/varve/servertest"
)

func TestReadPlan(t *testing.T) {
	for _, c := range []struct{ plan, message string }{
		{`{"version":1,"partitions":[{"topic":"a","partition":0,"replicas":[1,2],"log_dirs":["any","any"]}]}`, ""},
		{`{"version":1,"partitions":[]}`, ""},
		{``, "is not a plan in JSON"},
		{`[1]`, "is not a plan in JSON"},
		{`{"partitions":[]}`, "has version 0"},
		{`{"version":2,"partitions":[]}`, "has version 2"},
		{`{"version":1,"partitions":[{"partition":0,"replicas":[1]}]}`, "is no partition"},
		{`{"version":1,"partitions":[{"topic":"a","partition":-1,"replicas":[1]}]}`, "is no partition"},
		{`{"version":1,"partitions":[{"topic":"a","partition":0}]}`, "a-0 has no replicas"},
		{`{"version":1,"partitions":[{"topic":"a","partition":0,"replicas":[1]},{"topic":"a","partition":0,"replicas":[2]}]}`, "a-0 is there twice"},
		{`{"version":1,"partitions":[{"topic":"a","partition":0,"replicas":[99999999999]}]}`, "is not a plan in JSON"},
	} {
		_, err := readPlan(strings.NewReader(c.plan), "plan.json")
		if (err == nil) != (c.message == "") || err != nil && !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: %v, want %q", c.plan, err, c.message)
		}
	}
}

// A cluster as an operator goes through it: what there is, a topic that gets more
// replicas, a broker that is emptied, one that is away, and a move that is called off.
func TestReassign(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	b := brokers[0]
	run := func(stdin string, args ...string) result {
		t.Helper()
		return varve(t, stdin, append(args, "--bootstrap-server", b.Addr())...)
	}
	b.CreateReplicated("t", 6, 1)
	settled := func() {
		t.Helper()
		servertest.Eventually(t, func() error {
			if r := run("", "reassign", "status", "-o", "json"); r.code != 0 || r.out != "[]\n" {
				return fmt.Errorf("exit %d: %s%s", r.code, r.out, r.errOut)
			}
			return nil
		})
		servertest.Agree(t, brokers)
	}
	partitions := func(args ...string) (list []partitionState) {
		t.Helper()
		r := run("", append([]string{"partition", "list", "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(r.out), &list); err != nil {
			t.Fatal(err, r)
		}
		return list
	}

	run("", "cluster", "status").want(t, 0, "brokers                           3\n", "")
	run("", "cluster", "brokers").want(t, 0, b.Addr()+"  -     true        false   false         -        2      2\n", "")
	run("", "partition", "list", "--under-replicated", "--offline", "--under-min-isr").want(t, 0, "TOPIC  PARTITION", "")
	for _, args := range [][]string{{"reassign", "status", "nope"}, {"reassign", "status", "t", "nope"}, {"reassign", "cancel", "nope"}} {
		run("", args...).want(t, 1, "", "topic nope: it does not exist")
	}
	run("", "reassign", "plan", "--from-broker", "9").want(t, 1, "", "there is no broker 9")
	run("", "partition", "list", "nope").want(t, 1, "", "topic nope: it does not exist")

	// The plan alone changes nothing.
	rollback := filepath.Join(t.TempDir(), "rollback.json")
	plan := run("", "reassign", "plan", "--topic", "t", "--replication-factor", "2", "--rollback", rollback)
	plan.want(t, 0, `"version": 1`, "6 partitions change, 6 replicas are copied")
	if list := partitions("t"); len(list) != 6 || len(list[0].Replicas) != 1 {
		t.Fatalf("%+v", list)
	}
	run(plan.out, "reassign", "apply", "-", "--keep-replication-factor").want(t, 1, "", "The replication factor is changed from 1 to 2")
	file := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(file, []byte(plan.out), 0o600); err != nil {
		t.Fatal(err)
	}
	run("", "reassign", "apply", file).want(t, 0, "t      5", "")
	settled()
	run("", "reassign", "apply", file).want(t, 0, "t      5", "") // harmless
	count := map[int32]int{}
	for _, p := range partitions() {
		for _, id := range p.ISR {
			count[id]++
		}
	}
	if count[1] != 4 || count[2] != 4 || count[3] != 4 {
		t.Fatalf("in sync: %v", count)
	}
	run("", "reassign", "plan", "--topic", "t").want(t, 0, `"partitions": []`, "0 partitions change")
	back, err := os.ReadFile(rollback)
	if err != nil {
		t.Fatal(err)
	}
	run(string(back), "reassign", "apply", "-").want(t, 0, "", "")
	settled()
	if list := partitions("t"); len(list) != 6 || len(list[0].Replicas) != 1 {
		t.Fatalf("rolled back: %+v", list)
	}

	// While replicas are being added nothing lacks: they are not counted before they are all there, by the brokers neither.
	adm := kadm.NewClient(b.Client())
	throttle := func(op kadm.IncrementalOp) {
		t.Helper()
		if _, err := adm.AlterBrokerConfigs(t.Context(), []kadm.AlterConfig{{Op: op, Name: "follower.replication.throttled.rate", Value: kadm.StringPtr("0")}}); err != nil {
			t.Fatal(err)
		}
	}
	throttle(kadm.SetConfig)
	b.CreateReplicated("slow", 1, 1, "min.insync.replicas", "2", "follower.replication.throttled.replicas", "*")
	all := []int32{1, 2, 3}
	first := partitions("slow")[0].Leader
	all[0], all[first-1] = all[first-1], all[0]
	run(fmt.Sprintf(`{"version":1,"partitions":[{"topic":"slow","partition":0,"replicas":[%d,%d,%d]}]}`, all[0], all[1], all[2]), "reassign", "apply", "-").want(t, 0, "slow   0", "")
	servertest.Agree(t, brokers)
	if p := partitions("slow")[0]; len(p.Replicas) != 3 || len(p.ISR) != 1 || p.UnderReplicated || p.UnderMinISR || p.MinISR != 1 {
		t.Errorf("while replicas are added: %+v", p)
	}
	run("", "cluster", "status").want(t, 0, "being reassigned                  1\n", "")
	for _, name := range []string{"varve_under_replicated_partitions", "varve_under_min_isr_partitions"} {
		if n := metric(brokers[first-1].AdminURL(), name); n != 0 {
			t.Errorf("%s is %v", name, n)
		}
	}
	throttle(kadm.DeleteConfig)
	settled()
	run("", "topic", "delete", "slow").want(t, 0, "", "")
	servertest.Agree(t, brokers)

	// Broker 3 is emptied.
	run("", "reassign", "plan", "--from-broker", "3", "--brokers", "3").want(t, 1, "", "no replica can be placed on broker 3")
	run("", "reassign", "plan", "--from-broker", "3", "--brokers", "9").want(t, 1, "", "no replica can be placed on broker 9")
	plan = run("", "reassign", "plan", "--from-broker", "3")
	plan.want(t, 0, `"topic": "t"`, "2 partitions change, 2 replicas are copied")
	run(plan.out, "reassign", "apply", "-").want(t, 0, "", "")
	settled()
	run("", "cluster", "brokers").want(t, 0, brokers[2].Addr()+"  -     false       false   false         -        0      0\n", "")

	// One that waits for a broker that is away, and is called off.
	target := func(replicas string) string {
		return fmt.Sprintf(`{"version":1,"partitions":[{"topic":"t","partition":0,"replicas":[%s]}]}`, replicas)
	}
	run(target("1,3"), "reassign", "apply", "-").want(t, 0, "t      0", "")
	settled()
	brokers[2].Stop()
	servertest.Eventually(t, func() error {
		if r := run("", "partition", "list", "--under-replicated"); !strings.Contains(r.out, "t      0          1       1,3       1    3                 under-replicated") {
			return fmt.Errorf("%s%s", r.out, r.errOut)
		}
		return nil
	})
	servertest.Agree(t, brokers)
	run("", "cluster", "status").want(t, 0, "fenced brokers                    3\n", "")
	run(target("2,1,3"), "reassign", "apply", "-").want(t, 0, "t      0", "")
	servertest.Eventually(t, func() error {
		if r := run("", "reassign", "status", "t"); !strings.Contains(r.out, "t      0          1       2,1,3   2       -         2 of 3   ?") {
			return fmt.Errorf("%s%s", r.out, r.errOut)
		}
		return nil
	})
	run("", "reassign", "plan", "--topic", "t").want(t, 1, "", "t-0 is being reassigned already")
	run("", "reassign", "plan", "--topic", "t", "--brokers", "1,3").want(t, 1, "", "broker 3 is away")
	run("", "reassign", "cancel", "t").want(t, 0, "t      0          -", "")
	settled()
	if p := partitions("t")[0]; len(p.Replicas) != 2 || p.Leader != 1 {
		t.Fatalf("called off: %+v", p)
	}
	run("", "reassign", "cancel", "--all").want(t, 0, "", "")
}
