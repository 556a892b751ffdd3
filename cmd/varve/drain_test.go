package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

// A broker is emptied, in two goes; nothing is placed on it then; it comes back. And
// one that the others cannot do without keeps its replicas, but does not lead.
func TestDrain(t *testing.T) {
	brokers := servertest.StartCluster(t, 4, servertest.Options{})
	b := brokers[0]
	run := func(args ...string) result {
		t.Helper()
		return varve(t, "", append(args, "--bootstrap-server", b.Addr())...)
	}
	b.CreateReplicated("t", 8, 3)
	b.CreateReplicated("one", 4, 1)
	cl := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for p := range int32(8) {
		if err := cl.ProduceSync(context.Background(), &kgo.Record{Topic: "t", Partition: p, Value: []byte("kept")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	states := func() (list []partitionState) {
		t.Helper()
		r := run("partition", "list", "-o", "json")
		if err := json.Unmarshal([]byte(r.out), &list); err != nil {
			t.Fatal(err, r)
		}
		return list
	}
	held := func(id int32) (replicas, leads int) {
		for _, p := range states() {
			replicas += count(slices.Contains(p.Replicas, id))
			leads += count(p.Leader == id)
		}
		return replicas, leads
	}

	run("broker", "drain").want(t, exitUsage, "", "the broker's node.id is missing")
	run("broker", "drain", "x").want(t, exitUsage, "", "a broker is named by its node.id")
	run("broker", "drain", "9").want(t, exitFailed, "", "there is no broker 9")
	run("broker", "drain", "1", "--at-once", "0").want(t, exitUsage, "", "a number from 1")

	before, led := held(1)
	if before < 6 || led < 2 {
		t.Fatalf("broker 1 has %d replicas and leads %d: the test needs some", before, led)
	}
	// It is interrupted when the first of its partitions is on the way, and goes on where it was.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	root := newRoot()
	root.SetArgs([]string{"broker", "drain", "1", "--at-once", "1", "--bootstrap-server", b.Addr()})
	root.SetOut(&bytes.Buffer{})
	root.SetErr(writeFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), " 1 on the way") || strings.Contains(string(p), fmt.Sprintf("has %d replicas", before-1)) {
			cancel()
		}
		return len(p), nil
	}))
	if err := root.ExecuteContext(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted drain: %v", err)
	}
	servertest.Agree(t, brokers)
	run("cluster", "brokers").want(t, 0, "drained", "")
	r := run("broker", "drain", "1")
	r.want(t, 0, "1       0      0\n", "")
	servertest.Agree(t, brokers)
	if replicas, leads := held(1); replicas != 0 || leads != 0 {
		t.Fatalf("%d replicas, %d leads: %s%s", replicas, leads, r.out, r.errOut)
	}
	for _, p := range states() {
		if p.UnderReplicated || p.Offline {
			t.Errorf("%+v", p)
		}
	}
	run("broker", "drain", "1", "-o", "json").want(t, 0, `"replicas": 0`, "") // nothing to do

	// Nothing is placed on it, whoever asks.
	b.CreateReplicated("new", 12, 3)
	if replicas, _ := held(1); replicas != 0 {
		t.Fatalf("%d replicas of new topics on a drained broker", replicas)
	}
	for _, args := range [][]string{{"--topic", "t", "--topic", "one", "--topic", "new", "--replication-factor", "2"}, {"--topic", "one", "--replication-factor", "3"}} {
		r := run(append([]string{"reassign", "plan"}, args...)...)
		plan, err := readPlan(strings.NewReader(r.out), "what was printed")
		if err != nil || len(plan.Partitions) == 0 {
			t.Fatal(err, r)
		}
		for _, p := range plan.Partitions {
			if slices.Contains(p.Replicas, 1) {
				t.Errorf("%v: a plan has %+v, with broker 1, which takes none", args, p)
			}
		}
	}
	adm := kadm.NewClient(b.Client())
	if _, err := adm.CreateTopic(context.Background(), 1, 4, nil, "four"); err == nil || !strings.Contains(err.Error(), "REPLICATION_FACTOR") {
		t.Fatalf("four replicas on three brokers: %v", err)
	}
	var out []listedBroker
	list := func() {
		t.Helper()
		if err := json.Unmarshal([]byte(run("cluster", "brokers", "-o", "json").out), &out); err != nil {
			t.Fatal(err)
		}
	}
	if list(); !out[0].Cordoned || !out[0].Resting || out[1].Cordoned || out[1].Resting {
		t.Fatalf("%+v", out)
	}

	// Of the other three none can be emptied of what has three replicas.
	r = run("broker", "drain", "2")
	if r.code != exitFailed || !strings.Contains(r.errOut, "it has 3 replicas, and the other brokers that take replicas cannot hold as many") {
		t.Fatalf("%+v", r)
	}
	servertest.Agree(t, brokers)
	if replicas, leads := held(2); replicas != 20 || leads != 0 {
		t.Fatalf("%d replicas, %d leads", replicas, leads)
	}
	run("broker", "drain", "2", "--leaders-only").want(t, 0, "2       0      20\n", "")

	// With all of them drained nobody hands over to another: that is said, and not waited for.
	run("broker", "drain", "3", "--leaders-only")
	if r = run("broker", "drain", "4", "--leaders-only"); r.code != exitFailed || !strings.Contains(r.errOut, "nobody else is in sync that may lead") {
		t.Errorf("%+v", r)
	}
	for _, id := range []string{"3", "4"} {
		run("broker", "undrain", id).want(t, 0, "", "")
	}

	// Both come back; who is preferred leads at once.
	run("broker", "undrain", "1").want(t, 0, "leads 0 partitions as their preferred leader", "")
	r = run("broker", "undrain", "2")
	r.want(t, 0, "leads", "")
	servertest.Agree(t, brokers)
	if _, leads := held(2); leads == 0 || !strings.Contains(r.out, fmt.Sprintf("leads %d partitions", leads)) {
		t.Fatalf("leads %d: %+v", leads, r)
	}
	if list(); out[0].Cordoned || out[0].Resting || out[1].Cordoned || out[1].Resting {
		t.Fatalf("%+v", out)
	}
	if _, err := adm.CreateTopic(context.Background(), 1, 4, nil, "four"); err != nil {
		t.Fatal(err)
	}
}

// A broker that has ended is forgotten, unless something needs it.
func TestUnregister(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	run := func(args ...string) result {
		t.Helper()
		return varve(t, "", append(args, "--bootstrap-server", brokers[0].Addr())...)
	}
	brokers[0].CreateReplicated("t", 2, 1)
	r := varve(t, `{"version":1,"partitions":[{"topic":"t","partition":0,"replicas":[1]},{"topic":"t","partition":1,"replicas":[3]}]}`, "reassign", "apply", "-", "--bootstrap-server", brokers[0].Addr())
	r.want(t, 0, "", "")
	servertest.Eventually(t, func() error {
		if r := run("reassign", "status", "-o", "json"); r.out != "[]\n" {
			return errors.New(r.out)
		}
		return nil
	})
	run("broker", "unregister").want(t, exitUsage, "", "the broker's node.id is missing")
	run("broker", "unregister", "9").want(t, exitFailed, "", "broker 9 is not registered")
	run("broker", "unregister", "2").want(t, exitFailed, "", "Broker 2 is alive")
	brokers[1].Stop()
	brokers[2].Stop()
	servertest.Eventually(t, func() error {
		if r := run("broker", "unregister", "2"); r.code != 0 {
			return errors.New(r.errOut)
		}
		return nil
	})
	servertest.Eventually(t, func() error {
		if r := run("broker", "unregister", "3"); !strings.Contains(r.errOut, "has one of the last copies of t-1") {
			return errors.New(r.errOut)
		}
		return nil
	})
	r = run("cluster", "brokers", "-o", "json")
	var list []listedBroker
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 2 || list[0].ID != 1 || list[1].ID != 3 {
		t.Errorf("%v: %s%s", err, r.out, r.errOut)
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }
