package broker_test

import (
	"bufio"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

var labelValues = regexp.MustCompile(`[a-z]+="([^"]*)"(,?)`)

// groupSeries are the series of groups that a scrape shows, but those that are 0.
func groupSeries(t *testing.T, b *servertest.Broker) map[string]float64 {
	t.Helper()
	resp, err := http.Get(b.AdminURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out := map[string]float64{}
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		series, value, _ := strings.Cut(sc.Text(), "} ")
		if !strings.HasPrefix(series, "varve_group") {
			continue
		}
		if !strings.Contains(series, "{") { // no labels: the value is still there
			series, value, _ = strings.Cut(series, " ")
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", sc.Text(), err)
		}
		name, labels, _ := strings.Cut(strings.TrimPrefix(series, "varve_"), "{")
		if v != 0 || name == "group_lag_records" {
			out[name+" "+labelValues.ReplaceAllString(labels, "$1$2")] = v
		}
	}
	if sc.Err() != nil {
		t.Fatal(sc.Err())
	}
	return out
}

// wantSeries waits for a scrape that shows just that: the numbers may be two seconds old.
func wantSeries(t *testing.T, b *servertest.Broker, want map[string]float64) {
	t.Helper()
	servertest.Eventually(t, func() error {
		if got := groupSeries(t, b); !maps.Equal(got, want) {
			return fmt.Errorf("%v\nwant %v", got, want)
		}
		return nil
	})
}

func TestGroupMetrics(t *testing.T) {
	settings := map[string]string{"offsets.topic.num.partitions": "5", "group.initial.rebalance.delay.ms": "0", "metrics.group.lag.max.partitions": "4"}
	for pair := range slices.Chunk(quickConsumers, 2) {
		settings[pair[0]] = pair[1]
	}
	b := servertest.Start(t, servertest.Options{Settings: settings})
	b.CreateTopic("t", 2)
	wantSeries(t, b, map[string]float64{})
	y := newBystander(t, b)
	for _, name := range []string{`varve_group_rebalances_total{protocol="classic"}`, `varve_group_rebalances_total{protocol="consumer"}`,
		`varve_transactions_total{outcome="commit"}`, `varve_transactions_total{outcome="timeout"}`} {
		if n := y.metric(name); n != 0 { // a series that is not there at first fails the test
			t.Errorf("%s is %v before anything happened", name, n)
		}
	}
	cl := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce := func(n int, partition int32) {
		t.Helper()
		for range n {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: partition, Value: []byte("v")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	produce(10, 0)
	adm := kadm.NewClient(cl)
	commit := func(group string, partition int32, at int64) {
		t.Helper()
		var os kadm.Offsets
		os.AddOffset("t", partition, at, -1)
		if err := adm.CommitAllOffsets(t.Context(), group, os); err != nil {
			t.Fatal(err)
		}
	}
	commit("a", 0, 3)
	commit("b", 0, 10)
	wantSeries(t, b, map[string]float64{"groups classic,Empty": 2, "group_committed_offsets ": 2, "group_lag_partitions shown": 2,
		"group_lag_records a,0,t": 7, "group_lag_records b,0,t": 0})

	// It follows what is written and what is committed; beyond the bound partitions are counted only.
	produce(2, 0)
	produce(1, 1)
	commit("a", 0, 5)
	commit("c", 0, 12)
	commit("c", 1, 0)
	commit("d", 0, 12)
	commit("e", 0, 12)
	want := map[string]float64{"groups classic,Empty": 5, "group_committed_offsets ": 6, "group_lag_partitions shown": 4, "group_lag_partitions beyond": 2,
		"group_lag_records a,0,t": 7, "group_lag_records b,0,t": 2, "group_lag_records c,0,t": 0, "group_lag_records c,1,t": 1}
	wantSeries(t, b, want)

	// Members of either protocol. What a member reads it commits only when it is told to.
	classic := b.Client(kgo.ConsumerGroup("m"), kgo.ConsumeTopics("t"), kgo.DisableAutoCommit(), kgo.FetchMaxWait(50*time.Millisecond))
	classic.PollFetches(t.Context())
	joinGroup(b, t, nil, kgo.ConsumeTopics("t"), kgo.DisableAutoCommit())
	servertest.Eventually(t, func() error {
		got := groupSeries(t, b)
		if got["groups classic,Stable"] != 1 || got["groups consumer,Stable"] != 1 || got["group_members "] != 2 ||
			got["group_rebalances_total classic"] < 1 || got["group_rebalances_total consumer"] < 1 {
			return fmt.Errorf("%v", got)
		}
		for k, v := range want {
			if got[k] != v {
				return fmt.Errorf("%s is %v, want %v", k, got[k], v)
			}
		}
		return nil
	})

	// A group that is gone has no lag, and others are shown in its place.
	if r, err := adm.DeleteGroup(t.Context(), "a"); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	servertest.Eventually(t, func() error {
		got := groupSeries(t, b)
		if _, there := got["group_lag_records a,0,t"]; there || got["group_lag_partitions shown"] != 4 || got["group_lag_partitions beyond"] != 1 {
			return fmt.Errorf("%v", got)
		}
		if _, there := got["group_lag_records d,0,t"]; !there {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// TestGroupLagOfACluster: the lag of a partition is shown by who coordinates the group, whoever leads it.
func TestGroupLagOfACluster(t *testing.T) {
	brokers := servertest.StartCluster(t, 2, servertest.Options{})
	brokers[0].CreateTopic("t", 4)
	cl := brokers[0].Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	adm := kadm.NewClient(cl)
	leaders := map[int32]bool{}
	servertest.Eventually(t, func() error {
		ts, err := adm.ListTopics(t.Context(), "t")
		if err != nil {
			return err
		}
		for _, p := range ts["t"].Partitions {
			leaders[p.Leader] = p.Leader >= 0
		}
		if len(ts["t"].Partitions) < 4 {
			return fmt.Errorf("%+v", ts["t"])
		}
		return nil
	})
	if len(leaders) != 2 {
		t.Fatalf("the leaders are %v: there is nothing to ask", leaders)
	}
	var os kadm.Offsets
	want := map[string]float64{"group_lag_partitions shown": 4}
	for p := range int32(4) {
		for range p + 1 {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: p, Value: []byte("v")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		os.AddOffset("t", p, 1, -1)
		want[fmt.Sprintf("group_lag_records g,%d,t", p)] = float64(p)
	}
	if err := adm.CommitAllOffsets(t.Context(), "g", os); err != nil {
		t.Fatal(err)
	}
	servertest.Eventually(t, func() error {
		got := map[string]float64{}
		for _, b := range brokers {
			for series, v := range groupSeries(t, b) {
				if strings.HasPrefix(series, "group_lag") {
					got[series] += v
				}
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("%v\nwant %v", got, want)
		}
		return nil
	})
}
