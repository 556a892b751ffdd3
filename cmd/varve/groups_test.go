package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

func startForGroups(t *testing.T) *servertest.Broker {
	t.Helper()
	return servertest.Start(t, servertest.Options{Settings: map[string]string{
		"offsets.topic.num.partitions": "2", "group.initial.rebalance.delay.ms": "0",
		"group.consumer.heartbeat.interval.ms": "100", "group.consumer.min.heartbeat.interval.ms": "50",
	}})
}

// fill produces n records with timestamps of one second after the other from base on.
func fill(t *testing.T, b *servertest.Broker, topic string, partition int32, n int, base time.Time) {
	t.Helper()
	cl := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range n {
		r := &kgo.Record{Topic: topic, Partition: partition, Value: []byte("v"), Timestamp: base.Add(time.Duration(i) * time.Second)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// reads runs a member that commits what it read, until the test or the caller ends it.
func reads(t *testing.T, b *servertest.Broker, group, topic string, opts ...kgo.Opt) (stop func()) {
	t.Helper()
	cl := b.Client(append([]kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ClientID("client of " + group), kgo.FetchMaxWait(50 * time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitInterval(100 * time.Millisecond)}, opts...)...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			cl.PollFetches(ctx)
		}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
			cl.LeaveGroup()
		}
	}
	t.Cleanup(stop)
	return stop
}

func describedJSON(t *testing.T, r result) []describedGroup {
	t.Helper()
	var gs []describedGroup
	if err := json.Unmarshal([]byte(r.out), &gs); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	return gs
}

func TestGroupsOfBothProtocols(t *testing.T) {
	b := startForGroups(t)
	b.CreateTopic("t", 2)
	fill(t, b, "t", 0, 5, time.UnixMilli(1_000_000))
	run := func(args ...string) result {
		t.Helper()
		return varve(t, "", append(append([]string{"group"}, args...), "--bootstrap-server", b.Addr())...)
	}
	run("list").want(t, 0, "GROUP  STATE  TYPE  PROTOCOL  COORDINATOR\n", "")
	run("describe", "nobody\x1b[2J").want(t, 1, "", `group "nobody\x1b[2J": the group does not exist; `+"`varve group list`")
	run("delete", "nobody").want(t, 1, "", `deleting group "nobody": the group does not exist`)
	run("delete", "nobody", "--if-exists").want(t, 0, "nobody  false", "")

	stops := map[string]func(){
		"classic":  reads(t, b, "classic", "t", kgo.InstanceID("one")),
		"consumer": reads(t, b, "consumer", "t", kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer())),
	}
	for name, stop := range stops {
		// Its member has read everything of partition 0 and committed it; there is nothing in partition 1.
		var g describedGroup
		servertest.Eventually(t, func() error {
			r := run("describe", name, "-o", "json")
			gs := describedJSON(t, r)
			if len(gs) != 1 || gs[0].State != "Stable" || len(gs[0].Members) != 1 || len(gs[0].Offsets) != 2 || gs[0].Offsets[0].Committed != 5 {
				return fmt.Errorf("%+v", r)
			}
			g = gs[0]
			return nil
		})
		m := g.Members[0]
		if g.Type != name || g.ProtocolType != "consumer" || g.Protocol == "" || m.Client != "client of "+name || !strings.Contains(m.Host, "127.0.0.1") || m.Member == "" ||
			fmt.Sprint(m.Assignment) != "[{t [0 1]}]" || m.Target != nil {
			t.Errorf("%+v", g)
		}
		if (g.Epoch > 0) != (name == "consumer") || (m.Epoch > 0) != (name == "consumer") || (m.Instance == "one") != (name == "classic") {
			t.Errorf("%+v", g)
		}
		want := []describedGroff{{"t", 0, 5, 0, 5, 0, m.Member, ""}, {"t", 1, -1, 0, 0, -1, m.Member, ""}}
		if g.Offsets[1].Committed == 0 { // a client may commit the start of what is empty
			want[1].Committed, want[1].Lag = 0, 0
		}
		if !slices.Equal(g.Offsets, want) {
			t.Errorf("%+v, want %+v", g.Offsets, want)
		}
		run("describe", name).want(t, 0, "t:0,1", "")
		run("list", "--type", strings.ToUpper(name), "--state", "stable").want(t, 0, name, "")
		run("list", "--type", name, "--state", "Empty").want(t, 0, "GROUP  STATE  TYPE  PROTOCOL  COORDINATOR\n", "")

		refused := `group "` + name + `" is active (state Stable, members: 1), and its offsets can be reset only while it has no members; nothing was changed: stop its consumers`
		run("reset-offsets", name, "--all-topics", "--to-earliest").want(t, 1, "", refused)
		run("reset-offsets", name, "--all-topics", "--to-earliest", "--execute").want(t, 1, "", refused)
		run("delete", name).want(t, 1, "", `deleting group "`+name+`": the group has members; stop its consumers`)

		stop()
		if name == "classic" { // a static member stays when its client goes, until somebody says that it left
			if _, err := kadm.NewClient(b.Client()).LeaveGroup(t.Context(), kadm.LeaveGroup(name).InstanceIDs("one")); err != nil {
				t.Fatal(err)
			}
		}
		servertest.Eventually(t, func() error {
			if gs := describedJSON(t, run("describe", name, "-o", "json")); len(gs) != 1 || gs[0].State != "Empty" || gs[0].Offsets[0].Member != "" {
				return fmt.Errorf("%+v", gs)
			}
			return nil
		})
		run("reset-offsets", name, "--topic", "t:0", "--to-offset", "2", "--execute").want(t, 0, "t      0          5          2           true", "")
		if gs := describedJSON(t, run("describe", name, "-o", "json")); gs[0].Offsets[0].Committed != 2 || gs[0].Offsets[0].Lag != 3 || gs[0].TotalLag != 3 {
			t.Errorf("%+v", gs)
		}
		run("delete", name, "nobody").want(t, 1, "true", `deleting group "nobody"`)
		run("describe", name).want(t, 1, "", "the group does not exist")
	}
}

func TestGroupResetOffsets(t *testing.T) {
	b := startForGroups(t)
	b.CreateTopic("t", 3)
	b.CreateTopic("u", 1)
	base := time.Now().Add(-time.Hour).Truncate(time.Second).UTC()
	fill(t, b, "t", 0, 10, base)
	fill(t, b, "t", 1, 4, base.Add(time.Minute))
	fill(t, b, "u", 0, 3, base)
	if _, err := kadm.NewClient(b.Client()).DeleteRecords(t.Context(), kadm.Offsets{"t": {0: {Topic: "t", At: 2}}}); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) result {
		t.Helper()
		return varve(t, "", append(append([]string{"group", "reset-offsets", "g"}, args...), "--bootstrap-server", b.Addr())...)
	}
	// what is committed of the group, by partition
	committed := func() string {
		t.Helper()
		os, err := kadm.NewClient(b.Client()).FetchOffsets(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, o := range os.Sorted() {
			s = append(s, fmt.Sprintf("%s-%d:%d", o.Topic, o.Partition, o.At))
		}
		return strings.Join(s, " ")
	}

	run("--all-topics", "--to-latest").want(t, 1, "", `group "g" has committed no offsets`)
	run("--topic", "t", "--shift-by", "1").want(t, 1, "", "nothing was changed: topic t partition 0: nothing is committed that --shift-by could shift")
	run("--topic", "nope", "--to-latest").want(t, 1, "", "nothing was changed: topic nope: it does not exist")
	run("--topic", "t:0,7", "--to-latest", "--execute").want(t, 1, "", "topic t partition 7: there is no such partition; the topic has 3")
	if got := committed(); got != "" {
		t.Fatalf("committed %s", got)
	}

	// A dry run commits nothing, and --execute makes a group that did not exist.
	run("--topic", "t", "--to-earliest").want(t, 0, "t      0          -          2           false\n", "")
	run("--topic", "t", "--to-earliest", "--dry-run").want(t, 0, "t      1          -          0           false\n", "")
	if got := committed(); got != "" {
		t.Fatalf("committed %s", got)
	}
	steps := []struct {
		args    string
		warning string
		want    string
	}{
		{"--topic t:0,1 --to-earliest", "", "t-0:2 t-1:0"},
		{"--all-topics --to-latest", "", "t-0:10 t-1:4"},
		{"--topic u --to-latest", "", "t-0:10 t-1:4 u-0:3"},
		{"--topic t:0 --shift-by -3", "", "t-0:7 t-1:4 u-0:3"},
		{"--all-topics --shift-by 2", "varve: topic t partition 1: offset 4 shifted by +2 is after the log, which ends at 4; 4 is taken\n", "t-0:9 t-1:4 u-0:3"},
		{"--topic t:0 --shift-by -9223372036854775808", "is before the log, which starts at 2; 2 is taken\n", "t-0:2 t-1:4 u-0:3"},
		{"--topic t:0 --shift-by 9223372036854775807", "is after the log, which ends at 10; 10 is taken\n", "t-0:10 t-1:4 u-0:3"},
		{"--topic t --to-offset 3", "topic t partition 2: offset 3 is after the log, which ends at 0; 0 is taken\n", "t-0:3 t-1:3 t-2:0 u-0:3"},
		{"--topic t:0 --to-offset 1", "topic t partition 0: offset 1 is before the log, which starts at 2; 2 is taken\n", "t-0:2 t-1:3 t-2:0 u-0:3"},
		// The record of the time itself is the first; without a zone it is UTC.
		{"--topic t:0 --to-datetime " + base.Add(5*time.Second).Format(time.RFC3339), "", "t-0:5 t-1:3 t-2:0 u-0:3"},
		{"--topic t:0 --to-datetime 1969-12-31T23:59:59.999Z", "", "t-0:2 t-1:3 t-2:0 u-0:3"},
		{"--topic t:0 --by-duration P25000D", "", "t-0:2 t-1:3 t-2:0 u-0:3"},
		{"--topic t:0 --to-datetime " + base.Add(5*time.Second).Format("2006-01-02T15:04:05") + ".001", "", "t-0:6 t-1:3 t-2:0 u-0:3"},
		{"--all-topics --by-duration P1D", "", "t-0:2 t-1:0 t-2:0 u-0:0"},
		{"--all-topics --by-duration PT0S", "", "t-0:10 t-1:4 t-2:0 u-0:3"},
		{"--topic t --by-duration 2h", "", "t-0:2 t-1:0 t-2:0 u-0:3"},
	}
	for _, s := range steps {
		before := committed()
		dry := run(strings.Fields(s.args)...)
		dry.want(t, 0, "false", s.warning)
		if got := committed(); got != before {
			t.Fatalf("%s: a dry run committed: %s, before %s", s.args, got, before)
		}
		r := run(append(strings.Fields(s.args), "--execute")...)
		r.want(t, 0, "true", s.warning)
		if s.warning == "" && r.errOut != "" {
			t.Errorf("%s: warned without a reason: %s", s.args, r.errOut)
		}
		if got := committed(); got != s.want {
			t.Errorf("%s: committed %s, want %s", s.args, got, s.want)
		}
		if strings.ReplaceAll(r.out, "true", "false") != dry.out {
			t.Errorf("%s: done\n%sannounced\n%s", s.args, r.out, dry.out)
		}
	}
	var list []resetOffset
	r := run("--topic", "t:1", "--to-offset", "99", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || r.code != 0 || len(list) != 1 || list[0] != (resetOffset{"g", "t", 1, 0, 4, true, false}) {
		t.Errorf("%v: %+v", err, r)
	}
}

func TestISODuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"P1D": 24 * time.Hour, "PT90M": 90 * time.Minute, "P2DT3H4M5.5S": 51*time.Hour + 4*time.Minute + 5500*time.Millisecond, "PT0S": 0,
	} {
		if d, err := parseISODuration(s); err != nil || d != want {
			t.Errorf("%s: %s, %v; want %s", s, d, err, want)
		}
	}
	for _, s := range []string{"", "P", "PT", "P1DT", "P1M", "P1Y", "1D", "PT-1H", "P1D ", "PT5", "PT1.5H", "P999999999D"} {
		if d, err := parseISODuration(s); err == nil {
			t.Errorf("%q is taken for %s", s, d)
		}
	}
}
