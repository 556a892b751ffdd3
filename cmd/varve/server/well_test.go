package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/compaction/picker"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal/batch"
)

// What fails for a moment is nobody's trouble, and what goes on failing is, whatever the reason is each time.
func TestTrouble(t *testing.T) {
	var k trouble
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	for _, c := range []struct {
		minute int
		err    error
		want   string // of what has lasted five minutes; empty: nothing
	}{
		{0, nil, ""},
		{10, errors.New("etcd elects"), ""},
		{14, errors.New("etcd elects"), ""},
		{16, nil, ""},
		{20, errors.New("t-0: corrupt"), ""},
		{24, errors.New("bucket: slow down"), ""},
		{25, errors.Join(errors.New("t-0: corrupt"), errors.New("bucket: slow down")), "since 1970-01-01T00:20:00Z: t-0: corrupt; bucket: slow down"},
		{90, errors.New("t-0: corrupt"), "since 1970-01-01T00:20:00Z: t-0: corrupt"},
		{91, nil, ""},
		{92, errors.New("t-0: corrupt"), ""},
	} {
		k.note(at(c.minute), c.err)
		err := k.lasting(at(c.minute), 5*time.Minute)
		if (err != nil) != (c.want != "") || err != nil && !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("minute %d: %v, want %q", c.minute, err, c.want)
		}
	}
}

// What the worker is told of a topic: its settings, and to keep tombstones for as long as brokers may not have heard of what
// was compacted.
func TestWorkersTopic(t *testing.T) {
	s, err := Open(context.Background(), options(t, t.TempDir(), map[string]string{"remote.storage.url": "mem://", "log.cleaner.backoff.ms": "7000"}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	adm := kadm.NewClient(clientOf(t, s))
	set := func(v string) *string { return &v }
	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{
		"cleanup.policy": set("compact,delete"), "delete.retention.ms": set("1000"), "file.delete.delay.ms": set("9223372036854775807"), "segment.ms": set("5000"), "segment.bytes": set("2000000"),
		"compression.type": set("zstd"), "min.compaction.lag.ms": set("11"), "max.compaction.lag.ms": set("12"), "min.cleanable.dirty.ratio": set("0.25"), "retention.ms": set("13"), "retention.bytes": set("14"),
	}, "t"); err != nil {
		t.Fatal(err)
	}
	got, ok := s.compactor.topic(s.node.Image().Topic("t").ID)
	want := picker.Policy{Compact: true, Delete: true, MinDirtyRatio: 0.25, MinLag: 11, MaxLag: 12, DeleteRetention: 1000 + 2*7000, RetentionMs: 13, RetentionBytes: 14, SegmentBytes: 2_000_000, SegmentMs: 5000}
	if !ok || got.Name != "t" || got.Policy != want || got.Codec != batch.Zstd || got.DeleteDelay != tiering.MaxDeleteDelay {
		t.Errorf("%v %+v", ok, got)
	}
	// A broker of the topics of others, for mixed objects.
	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"file.delete.delay.ms": set("1234")}, "u"); err != nil {
		t.Fatal(err)
	}
	if d, none := s.deleteDelay(s.node.Image().Topic("u").ID), s.deleteDelay([16]byte{1}); d != 1234*time.Millisecond || none != 0 {
		t.Errorf("file.delete.delay.ms is %v, of a topic that does not exist %v", d, none)
	}
}

// varve dev serves clients while its compaction fails, and says that it does.
func TestFailingCompactionInDev(t *testing.T) {
	s, err := Open(context.Background(), options(t, t.TempDir(), map[string]string{"remote.storage.url": "mem://"}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	told := false
	for try := 0; try < 100 && !told; try++ { // what is noted here stays until the worker is looked at again
		s.compactor.trouble.note(time.Now().Add(-time.Hour), errors.New("t-0: corrupt"))
		told = true
		for _, path := range []string{"/readyz", "/healthz"} {
			code, b := body(t, s.AdminURL()+path)
			if code != 200 {
				t.Errorf("%s: %d %s", path, code, b)
			}
			told = told && strings.Contains(b, `"warnings":["compaction has been failing since `) && strings.Contains(b, "t-0: corrupt")
		}
	}
	if !told {
		t.Error("nothing is said of compaction that has been failing for an hour")
	}
	s.compactor.trouble.note(time.Now(), nil)
	if code, b := body(t, s.AdminURL()+"/readyz"); code != 200 || strings.Contains(b, "warnings") {
		t.Errorf("all is well: %d %s", code, b)
	}
	_, text := body(t, s.AdminURL()+"/metrics")
	for _, line := range []string{
		`varve_compaction_max_delay_seconds{partition="",topic=""} 0`, `varve_compaction_dirtiest_ratio{partition="",topic=""} 0`,
		`varve_compaction_max_wait_seconds{partition="",topic=""} 0`, `varve_compaction_max_failing_seconds{partition="",topic=""} 0`,
		"varve_compaction_delayed_partitions 0", "varve_compaction_failing_bytes 0",
		"varve_tier_retired_objects 0", "varve_tier_retired_bytes 0", "varve_tier_retired_oldest_seconds 0", "varve_tier_deleted_topics 0",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
}

// There is one series of each figure, however many partitions there are.
func TestLagMetrics(t *testing.T) {
	lag := compaction.Lag{Dirty: compaction.Worst{Topic: "a", Partition: 3, Value: 0.75}, Delay: compaction.Worst{Topic: "b", Value: 90}, Delayed: 2}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newLagMetrics(func() compaction.Lag { return lag }))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range families {
		if len(f.Metric) != 1 {
			t.Errorf("%s has %d series", f.GetName(), len(f.Metric))
		}
		labels := ""
		for _, l := range f.Metric[0].Label {
			labels += " " + l.GetName() + "=" + l.GetValue()
		}
		got[f.GetName()] = strings.TrimSpace(labels)
	}
	if got["varve_compaction_dirtiest_ratio"] != "partition=3 topic=a" || got["varve_compaction_max_delay_seconds"] != "partition=0 topic=b" ||
		got["varve_compaction_max_wait_seconds"] != "partition= topic=" || len(got) != 6 {
		t.Errorf("%v", got)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
