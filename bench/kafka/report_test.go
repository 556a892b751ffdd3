package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/bench/load"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

// measuredW2 is a table as a run leaves it: the first block's floor was off.
func measuredW2() *table {
	t := &table{
		Key: "W2", ID: "W2", Title: "what users run", Setups: []string{"default"},
		Length: "A side is 20 s after 1.5 s of load, a floor 3 s.",
		Cases:  []caseInfo{{Name: "linger 0", Load: "16 partitions"}},
		Blocks: make([]block, 3),
		Notes:  []string{"A note."},
	}
	for i, f := range []float64{400, 800, 800, 820} {
		t.Floors = append(t.Floors, floorRun{At: i, Judged: f, Sample: sample{mMBs: f, mCPU: 1}})
	}
	for b := range 3 {
		for half := range 2 {
			v := float64(10 * (2*b + half))
			t.Sides = append(t.Sides,
				side{Block: b, Half: half, Broker: kafka, Sample: sample{mMBs: 200 + v, mCPU: 4, mRSS: 1000, mErrors: 0, mPerBatch: 15}},
				side{Block: b, Half: half, Broker: varve, Sample: sample{mMBs: 600 + v, mCPU: 1.5, mRSS: 300, mErrors: 0, mPerBatch: 15}})
		}
	}
	t.Sides[9].Sample[mErrors] = 3
	return t
}

func TestTableJudges(t *testing.T) {
	tb := measuredW2()
	if good := tb.judge(); good != 2 {
		t.Errorf("%d blocks count, want 2", good)
	}
	if tb.Blocks[0].Counts || tb.Blocks[0].Because == "" {
		t.Errorf("the block whose floor was half counts: %+v", tb.Blocks[0])
	}
	if got := tb.values(0, kafka, mMBs); len(got) != 4 || got[0] != 220 {
		t.Errorf("values of the blocks that count: %v", got)
	}
	// None is steady: nothing is dropped, and it is said.
	for i := range tb.Floors {
		tb.Floors[i].Judged = float64(100 * (1 + 3*(i%2)))
	}
	if good := tb.judge(); good != 0 {
		t.Errorf("%d blocks are steady, want none", good)
	}
	if got := tb.values(0, kafka, mMBs); len(got) != 6 {
		t.Errorf("%d values, want all 6", len(got))
	}
	if v := (goal{Key: "W2", Case: "linger 0", Of: mMBs, Over: overKafka, Least: 1, Aim: 2}).evaluate([]*table{tb}); !v.Doubtful {
		t.Errorf("a goal does not say that no block was steady: %+v", v)
	}
	if !strings.Contains(tb.doubts(), "no block was steady") {
		t.Errorf("not said: %s", tb.doubts())
	}
}

func TestGoals(t *testing.T) {
	tb := measuredW2()
	tb.judge()
	for _, c := range []struct {
		g    goal
		want string
		v    float64
	}{
		{goal{Key: "W2", Case: "linger 0", Of: mMBs, Over: overKafka, Least: 1.5, Aim: 2.5}, aimReached, 635. / 235},
		{goal{Key: "W2", Case: "linger 0", Of: mMBs, Over: overKafka, Least: 1.5, Aim: 3}, reached, 635. / 235},
		{goal{Key: "W2", Case: "linger 0", Of: mMBs, Over: overKafka, Least: 3, Aim: 4}, notReached, 635. / 235},
		{goal{Key: "W2", Case: "linger 0", Of: mMBs, Over: overFloor, Least: 0.6, Aim: 0.6}, reached, 635. / 800},
		{goal{Key: "W2", Case: "linger 0", Of: mCPU, Over: overKafka, Least: 0.6, Aim: 0.3, Less: true}, reached, 0.375},
		{goal{Key: "W2", Case: "linger 0", Of: mRSS, Least: 200, Aim: 100, Less: true}, notReached, 300},
		{goal{Key: "W2", Case: "linger 0", Of: mRSS, Least: math.Inf(1), Aim: 100, Less: true}, "aim not reached", 300},
		{goal{Key: "W2", Case: "linger 0", Of: mRSS, Over: overCase, OverCase: "linger 0", Least: 1, Aim: 1, Less: true}, reached, 1},
		{goal{Key: "W2", Case: "linger 0", Of: mEnd99, Over: overKafka, Least: 1, Aim: 1}, notMeasured, 0},
		{goal{Key: "W2", Case: "linger 7", Of: mMBs, Over: overKafka, Least: 1, Aim: 1}, notMeasured, 0},
		{goal{Key: "W9", Case: "linger 0", Of: mMBs, Over: overKafka, Least: 1, Aim: 1}, notMeasured, 0},
		{goal{Key: "W2", Case: "linger 0", Of: mMBs, Over: overCase, OverCase: "nowhere", Least: 1, Aim: 1}, notMeasured, 0},
	} {
		got := c.g.evaluate([]*table{tb})
		if got.Result != c.want || math.Abs(got.Measured-c.v) > 1e-9 {
			t.Errorf("%s %s %s: %s %v, want %s %v", c.g.Of, c.g.Over, c.g.asked(), got.Result, got.Measured, c.want, c.v)
		}
	}
}

// Every goal names a workload, a case and metrics that exist: one that does not
// would be "not measured" for ever.
func TestGoalsAreMeasured(t *testing.T) {
	for _, quick := range []bool{false, true} {
		one, err := choose("", quick, false, false)
		if err != nil {
			t.Fatal(err)
		}
		three, err := choose("", quick, false, true)
		if err != nil {
			t.Fatal(err)
		}
		ws := append(one, three...)
		for _, g := range goals {
			found := 0
			for _, w := range ws {
				for _, c := range w.Cases {
					if w.Key == g.Key && (c.Name == g.Case || c.Name == g.OverCase) {
						found++
						if g.Over == overFloor && !c.Floor {
							t.Errorf("%s: %s %s has no floor", g.What, w.Key, c.Name)
						}
						if !w.Goal {
							t.Errorf("%s: %s is not marked as having a goal", g.What, w.Key)
						}
					}
				}
			}
			want := 1
			if g.Over == overCase {
				want = 2
			}
			if found != want {
				t.Errorf("%s: %d cases of %s found, want %d (quick: %v)", g.What, found, g.Key, want, quick)
			}
			metricOf(g.Of)
		}
	}
}

func TestWorkloadsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range matrix() {
		if seen[w.Key] {
			t.Errorf("%s is there twice", w.Key)
		}
		seen[w.Key] = true
		names := map[string]bool{}
		for _, c := range w.Cases {
			if names[c.Name] {
				t.Errorf("%s has %q twice", w.Key, c.Name)
			}
			names[c.Name] = true
			known := false
			for _, s := range setups {
				known = known || s.Name == c.setup(w)
			}
			if !known {
				t.Errorf("%s %s: no setup %q", w.Key, c.Name, c.setup(w))
			}
			if c.Measure == nil && (c.Partitions == 0 || c.Spec.Producers+c.Spec.Processors == 0 || c.Spec.Acks != "all") {
				t.Errorf("%s %s: %+v", w.Key, c.Name, c.Spec)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	keys := func(only string, quick bool) string {
		ws, err := choose(only, quick, false, false)
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, w := range ws {
			out = append(out, w.Key)
		}
		return strings.Join(out, " ")
	}
	if got := keys("W2-tuned, W3-more", false); got != "W3-more W2-tuned" {
		t.Errorf("by key: %s", got)
	}
	if got := keys("W18", true); got != "W18" {
		t.Errorf("by workload: %s", got)
	}
	if got := keys("W3", true); got != "W3" {
		t.Errorf("the quick form of W3: %s", got)
	}
	if got := keys("W3-more", true); got != "W3-more" {
		t.Errorf("asked for by name in the quick form: %s", got)
	}
	if got := keys("W18-10k", false); got != "W18-10k" {
		t.Errorf("a long one asked for by name: %s", got)
	}
	if got := keys("", false); strings.Contains(got, "W18-10k") || !strings.Contains(got, "W18") || strings.Contains(got, "RF3") {
		t.Errorf("long ones that nobody asked for, or ones of clusters: %s", got)
	}
	if got := keys("W17", false); got != "W17 W17-size" {
		t.Errorf("of clusters, by workload: %s", got)
	}
	if got := keys("W77", false); !strings.Contains(got, `no workload "W77"`) {
		t.Errorf("unknown: %s", got)
	}
}

func TestPlans(t *testing.T) {
	for _, c := range []struct {
		o    options
		most time.Duration
	}{{options{repeats: 1}, time.Hour}, {options{quick: true}, 10*time.Minute + 30*time.Second}, {options{cluster: true, repeats: 1}, 25 * time.Minute}} {
		ws, err := choose("", c.o.quick, false, c.o.cluster)
		if err != nil {
			t.Fatal(err)
		}
		if d := newRunner(c.o).planned(ws); d > c.most {
			t.Errorf("quick %v: planned for %s, which is more than %s", c.o.quick, d, c.most)
		}
	}
}

func TestFetchAlone(t *testing.T) {
	tb := &table{Cases: []caseInfo{{Name: "0 groups"}, {Name: "10 groups"}}, Sides: []side{
		{Case: 0, Broker: kafka, Sample: sample{mCores: 0.2, mMBs: 30}},
		{Case: 1, Broker: kafka, Sample: sample{mCores: 0.5, mMBs: 30, mConsumed: 300}},
		{Case: 1, Broker: varve, Sample: sample{mCores: 0.5, mMBs: 30, mConsumed: 300}},
		{Block: 1, Case: 0, Broker: kafka, Sample: sample{mCores: 0.6, mMBs: 30}},
		{Block: 1, Case: 1, Broker: kafka, Sample: sample{mCores: 0.5, mMBs: 30, mConsumed: 300}},
	}}
	fetchAlone(tb)
	if got := tb.Sides[1].Sample[mFetchCPU]; math.Abs(got-1) > 1e-9 {
		t.Errorf("0.3 cores for 0.3 GB/s: %v s/GB, want 1", got)
	}
	for _, i := range []int{2, 4} {
		if v, ok := tb.Sides[i].Sample[mFetchCPU]; ok {
			t.Errorf("side %d: %v, without anything to take away, or with less left than nothing", i, v)
		}
	}
}

func TestSampleOf(t *testing.T) {
	s := sampleOf(&load.Result{
		Produced: &load.Side{Bytes: 1e9, MBPerSecond: 100, RecordsPerSecond: 900, Intended: 1000, RecordsPerBatch: 15},
		Broker:   &load.Usage{CPUSeconds: 2, SecondsPerGB: 2, PeakRSS: 50e6}, Errors: 1,
	})
	for k, want := range map[string]float64{mMBs: 100, mOfRate: 0.9, mCPU: 2, mRSS: 50, mErrors: 1, mPerBatch: 15} {
		if s[k] != want {
			t.Errorf("%s is %v, want %v", k, s[k], want)
		}
	}
	if _, ok := s[mEnd99]; ok {
		t.Error("an end-to-end latency that was not measured")
	}
	for k := range s {
		metricOf(k)
	}
}

// Of transactions what counts is what comes out; what was read is not shown as produced.
func TestSampleOfTransactions(t *testing.T) {
	s := sampleOf(&load.Result{
		Seconds:  2,
		Produced: &load.Side{Bytes: 1e9, MBPerSecond: 100, RecordsPerSecond: 990, Intended: 1000}, Consumed: &load.Side{RecordsPerSecond: 980, MBPerSecond: 99},
		Ack: &load.Latency{P50: 7}, Commit: &load.Latency{P50: 3, P99: 9}, EndToEnd: &load.Latency{P99: 120},
		Transactions: &load.Transactions{Committed: 20, PerSecond: 10, PerCommit: 98, CPUPerTxn: 0.5}, Broker: &load.Usage{CPUSeconds: 2, SecondsPerGB: 2},
	})
	for k, want := range map[string]float64{mTxns: 10, mThrough: 980, mCommit50: 3, mCommit99: 9, mEnd99: 120, mPerTxn: 98, mTxnCPU: 0.5, mOfRate: 0.99} {
		if s[k] != want {
			t.Errorf("%s is %v, want %v", k, s[k], want)
		}
	}
	for _, k := range []string{mMBs, mRecords, mConsumed, mAck50, mCPU, mAborted} {
		if v, ok := s[k]; ok {
			t.Errorf("%s is shown: %v", k, v)
		}
	}
	c := sampleOf(&load.Result{Seconds: 2, CommitsPerSecond: 500, Ack: &load.Latency{P50: 2}, Broker: &load.Usage{CPUSeconds: 1, SecondsPerGB: math.Inf(1)}})
	for k, want := range map[string]float64{mOffsets: 500, mOffsetCPU: 1, mAck50: 2} {
		if c[k] != want {
			t.Errorf("%s is %v, want %v", k, c[k], want)
		}
	}
	for _, m := range []sample{s, c} {
		for k := range m {
			metricOf(k)
		}
	}
}

// A report says how long what it shows was measured.
func TestLengths(t *testing.T) {
	r := newRunner(options{})
	for key, want := range map[string]string{
		"W2": "A side is 20 s after 1.5 s of load, a floor 3 s.", "W5": "A side is 5 s after 2.9 s of load, a floor 3 s.",
		"W11-tail": "A side is 3 s.", "W18": "",
	} {
		if got := r.lengthOf(workloadOf(key)); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

// The floors of a row that is not judged by them are shown and drop no block.
func TestFloorsThatAreNotJudged(t *testing.T) {
	tb := measuredW2()
	for i := range tb.Floors {
		tb.Floors[i].Judged = 0
	}
	if good := tb.judge(); good != 3 {
		t.Errorf("%d blocks count, want all", good)
	}
	if v, ok := tb.floor(0, mMBs); !ok || v != 800 {
		t.Errorf("the floor is %v, %v", v, ok)
	}
}

// A load with transactions says what they are.
func TestDescribeTransactions(t *testing.T) {
	for _, c := range workloadOf("W13").Cases {
		got := c.describe()
		want := "back to back"
		if c.Spec.TxnEvery > 0 {
			want = "transactions (of 100ms)"
		}
		if !strings.Contains(got, want) || strings.Contains(got, "reading nothing") != (c.Spec.Producers == 0) {
			t.Errorf("%s: %s", c.Name, got)
		}
	}
}

func TestReport(t *testing.T) {
	tb := measuredW2()
	tb.judge()
	broken := &table{Key: "W9", Title: "what went wrong", Cases: []caseInfo{{Name: "a|b"}}, Failed: "Kafka has ended by itself\nits log ends: x", Blocks: []block{{Counts: true}},
		Sides: []side{{Broker: kafka, Error: "nothing went\nthrough"}}}
	r := &report{
		Began: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Took: "1m", Form: "Sides of 20s.",
		Machine:  machineInfo{CPU: "a processor", Cores: 2, MemoryGB: "8 GiB", Kernel: "Linux", FileSystem: "ext4", Go: "go", Java: "java", Kafka: "4", Varve: "v"},
		Commands: []string{"make build", "go run ./bench/kafka"}, Profiles: map[string]string{"default": "as it comes"}, Varve: map[string]string{"default": "x=y"},
		Tables: []*table{tb, broken}, Notes: []string{"a note of the run"},
	}
	r.evaluate()
	var md, js bytes.Buffer
	if err := r.writeMarkdown(&md); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "report.md")
	if *rewrite {
		if err := os.WriteFile(golden, md.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(md.Bytes(), want) {
		t.Errorf("the report is not testdata/report.md (-rewrite writes it anew):\n%s", md.String())
	}
	if err := r.writeJSON(&js); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Tables) != 2 || len(back.Tables[0].Sides) != len(tb.Sides) || len(back.Tables[0].Blocks) != 3 {
		t.Errorf("what did not count is not in the JSON either: %v", err)
	}
}

// Runs of the same programs are one report, in the order of the matrix; others are none.
func TestJoined(t *testing.T) {
	one := func(key, varve string) *report {
		return &report{Took: "1m30s", Began: time.Unix(int64(len(key)), 0), Machine: machineInfo{Varve: varve}, Commands: []string{"make build", key},
			Varve: map[string]string{key: "x"}, Tables: []*table{{Key: key}}}
	}
	all, err := joined([]*report{one("W17", "v1"), one("RF3", "v1")})
	if err != nil {
		t.Fatal(err)
	}
	if all.Took != "3m0s" || len(all.Tables) != 2 || all.Tables[0].Key != "RF3" || len(all.Varve) != 2 || len(all.Commands) != 3 || len(all.Goals) == 0 {
		t.Errorf("%+v", all)
	}
	if _, err := joined([]*report{one("W17", "v1"), one("RF3", "v2")}); err == nil {
		t.Error("runs of two builds became one")
	}
}

func TestKafkaProperties(t *testing.T) {
	got := strings.Join(kafkaFsync.properties(kafkaNode{id: 1, dir: "/d", addr: "127.0.0.1:1", controller: "127.0.0.1:2"}), "\n")
	for _, want := range []string{"listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2", "log.flush.interval.messages=1", "log.dirs=/d/data", "num.io.threads=8"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
	added := strings.Join(kafkaCluster.properties(kafkaNode{id: 4, dir: "/d", addr: "127.0.0.1:1", voters: []string{"1@127.0.0.1:2", "2@127.0.0.1:3"}}), "\n")
	for _, want := range []string{"node.id=4", "process.roles=broker\nlisteners=PLAINTEXT://127.0.0.1:1", "controller.quorum.voters=1@127.0.0.1:2,2@127.0.0.1:3", "min.insync.replicas=2"} {
		if !strings.Contains(added, want) {
			t.Errorf("no %s in:\n%s", want, added)
		}
	}
	for range 1000 {
		if id := clusterID(); strings.HasPrefix(id, "-") || len(id) != 22 {
			t.Fatalf("cluster id %q", id)
		}
	}
	if v := kafkaVersion(); !strings.HasPrefix(v, "4.") {
		t.Errorf("version %q", v)
	}
}
