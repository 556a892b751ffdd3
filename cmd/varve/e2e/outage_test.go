package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// plainBatch is a batch of one uncompressed record.
func plainBatch(t testing.TB, value []byte) []byte {
	t.Helper()
	bb := batch.NewBuilder()
	bb.Add(time.Now().UnixMilli(), nil, value)
	out, err := bb.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOutage: object storage is away. Produce goes on until the log is at its
// bound, then producers are told to try again; consumers go on; nothing that
// was acknowledged is lost, over a restart neither; when the bucket is back,
// everything drains by itself.
func TestOutage(t *testing.T) {
	t.Parallel()
	faulty := objstore.NewFaulty(objstore.NewMem(), 1)
	b := servertest.Start(t, servertest.Options{Bucket: faulty, Settings: map[string]string{"wal.max.bytes": "33554432", "wal.segment.bytes": "1048576"}})
	b.CreateTopic("o", 1, "local.retention.bytes", "1", "max.message.bytes", "1000000")
	cl, adm := b.Client(), admin(t, b)
	var acked int64
	var sizes []int
	value := func(i int64) []byte { return append(fmt.Appendf(nil, "%d ", i), text(int(i), sizes[i])...) }
	produceOf := func(size int) error {
		sizes = append(sizes[:acked], size)
		o, err := produceRaw(t, cl, "o", 0, plainBatch(t, value(acked)))
		if err == nil {
			if o != acked {
				t.Fatalf("record %d is at offset %d", acked, o)
			}
			acked++
		}
		return err
	}
	const large = 200_000
	produce := func() error { return produceOf(large) }
	// fill produces until nothing is taken, however small.
	fill := func() (err error) {
		for size := large; size > 0; size /= 4 {
			for err = nil; err == nil; {
				err = produceOf(size)
			}
			if !errors.Is(err, kerr.NotEnoughReplicas) {
				t.Fatalf("the log is full: %v", err)
			}
		}
		return err
	}
	for range 10 {
		if err := produce(); err != nil {
			t.Fatal(err)
		}
	}
	b.Remote("o", true)
	// What has just been read is in the chunk cache; readers of it go on.
	check := func(what string) {
		t.Helper()
		if end := endOffset(t, b, "o", 0); end != acked {
			t.Fatalf("%s: %d records, %d were acknowledged", what, end, acked)
		}
		raw := rawFetch(t, cl, "o", 0, 0, acked)
		i := int64(0)
		if err := batch.Walk(raw, func(h batch.Header, one []byte) error {
			for r, err := range batch.Records(one, 1<<20) {
				if err != nil {
					return err
				}
				if h.BaseOffset != i || !bytes.Equal(r.Value, value(i)) {
					return fmt.Errorf("%s: offset %d holds %s, want record %d", what, h.BaseOffset, show(r.Value), i)
				}
				i++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	check("before")
	faulty.SetOutage(true)
	before := acked
	if err := fill(); !kerr.IsRetriable(err) {
		t.Errorf("not retriable: %v", err)
	}
	t.Logf("%d records taken during the outage with a log of 32 MiB", acked-before)
	if acked-before < 50 {
		t.Errorf("only %d records taken during the outage", acked-before)
	}
	check("at the bound")
	m := metrics(t, b)
	if m["varve_wal_full"] != 1 || m["varve_wal_disk_full"] != 0 || m["varve_wal_refused_appends_total"] == 0 || m[`varve_produce_errors_total{error="NOT_ENOUGH_REPLICAS"}`] == 0 {
		t.Errorf("full %v, disk full %v, refused %v", m["varve_wal_full"], m["varve_wal_disk_full"], m["varve_wal_refused_appends_total"])
	}
	servertest.Eventually(t, func() error {
		if m := metrics(t, b); m["varve_tier_failures_total"] == 0 || m[`varve_objstore_requests_total{operation="put",outcome="unavailable"}`] == 0 {
			return fmt.Errorf("failures %v", m["varve_tier_failures_total"])
		}
		return nil
	})
	// Internal topics have room kept for them: groups go on.
	var os kadm.Offsets
	os.Add(kadm.Offset{Topic: "o", Partition: 0, At: 5, LeaderEpoch: -1})
	if rs, err := adm.CommitOffsets(patience(t), "a-group", os); err != nil || rs.Error() != nil {
		t.Errorf("commit of offsets at the bound: %v %v", err, rs.Error())
	}
	// A tail that waits, waits; it is answered when there is something again.
	tail, at := make(chan error, 1), acked
	go func() {
		for {
			run, err := fetchOnce(t.Context(), cl, "o", 0, at, 1<<20)
			if err != nil || len(run) > 0 {
				tail <- err
				return
			}
		}
	}()
	if err := produce(); !errors.Is(err, kerr.NotEnoughReplicas) {
		t.Errorf("still full: %v", err)
	}
	if text := ready(t, b); !strings.Contains(text, "producers are refused: the write-ahead log is at its bound") {
		t.Errorf("/readyz says %s", text)
	}
	faulty.SetOutage(false)
	servertest.Eventually(t, produce)
	if err := <-tail; err != nil {
		t.Errorf("fetch that waited: %v", err)
	}
	b.Remote("o", true)
	check("drained")
	if m := metrics(t, b); m["varve_wal_full"] != 0 {
		t.Errorf("varve_wal_full %v", m["varve_wal_full"])
	}
	if text := ready(t, b); strings.Contains(text, "producers are refused") {
		t.Errorf("/readyz says %s", text)
	}

	// Again, with a restart while it is away and the log is full.
	faulty.SetOutage(true)
	before = acked
	fill()
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	if end := endOffset(t, b, "o", 0); end != acked {
		t.Errorf("%d records after a restart, %d acknowledged", end, acked)
	}
	rawFetch(t, cl, "o", 0, before, acked) // all of it local
	faulty.SetOutage(false)
	servertest.Eventually(t, produce)
	b.Remote("o", true)
	check("drained after a restart")
}

// TestFaults: a bucket that lies, stalls and fails. What is served is right or
// an error, and in the end everything is there, once.
func TestFaults(t *testing.T) {
	t.Parallel()
	put, get, list := objstore.OpPut, objstore.OpGet, objstore.OpList
	for _, c := range []struct {
		name    string
		faults  []objstore.Fault
		orphans bool // objects may be left that no head ever named: the hourly sweep finds them
	}{
		{"ambiguous puts", []objstore.Fault{{Op: put, Kind: objstore.FailAfter, Prob: 0.5}}, true},
		{"puts time out after success", []objstore.Fault{{Op: put, Kind: objstore.HangAfter, Prob: 0.3}}, true},
		{"slow down", []objstore.Fault{{Kind: objstore.Throttle, Prob: 0.3}}, true},
		{"slow", []objstore.Fault{{Kind: objstore.Delay, Delay: 30 * time.Millisecond}}, false},
		{"truncated", []objstore.Fault{{Op: get, Kind: objstore.Truncate, Prob: 0.4}}, true},
		{"short", []objstore.Fault{{Op: get, Kind: objstore.ShortBody, Prob: 0.4}}, true},
		{"wrong range", []objstore.Fault{{Op: get, Kind: objstore.WrongRange, Prob: 0.4}}, true},
		{"flipped bits", []objstore.Fault{{Op: get, Kind: objstore.Flip, Prob: 0.4}}, true},
		{"missing", []objstore.Fault{{Op: get, Kind: objstore.Missing, Prob: 0.3}}, true},
		{"lists lie", []objstore.Fault{{Op: list, Kind: objstore.EmptyList, Prob: 0.5}, {Op: list, Kind: objstore.DropFromList}}, false},
		{"all at once", []objstore.Fault{{Op: put, Kind: objstore.FailAfter, Prob: 0.2}, {Kind: objstore.Throttle, Prob: 0.1}, {Op: get, Kind: objstore.Flip, Prob: 0.2}, {Op: get, Kind: objstore.Truncate, Prob: 0.2}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			mem := objstore.NewMem()
			faulty := objstore.NewFaulty(mem, 7)
			settings := retentionSettings()
			settings["remote.request.timeout.ms"] = "500"
			b := servertest.Start(t, servertest.Options{Bucket: faulty, Settings: settings})
			b.CreateTopic("f", 2, "retention.ms", "-1", "local.retention.bytes", "1", "file.delete.delay.ms", "0")
			for _, f := range c.faults {
				faulty.Inject(f)
			}
			cl := b.Client()
			var want [2][]byte
			var ends [2]int64
			for round := range 3 {
				mixed(t, b, "f", 2, 5, round*100)
				for p := range int32(2) {
					end := endOffset(t, b, "f", p)
					want[p] = append(want[p], rawFetch(t, cl, "f", p, ends[p], end)...)
					ends[p] = end
				}
				b.Remote("f", true)
			}
			for p := range int32(2) {
				if got := rawFetch(t, cl, "f", p, 0, ends[p]); !bytes.Equal(got, want[p]) {
					t.Errorf("partition %d: other bytes than were written", p)
				}
			}
			if err := b.Restart(nil); err != nil { // with an empty cache
				t.Fatal(err)
			}
			for p := range int32(2) {
				if got := rawFetch(t, cl, "f", p, 0, ends[p]); !bytes.Equal(got, want[p]) {
					t.Errorf("partition %d: other bytes than were written, after a restart", p)
				}
			}
			if faulty.Fired() == 0 && !strings.HasPrefix(c.name, "lists") {
				t.Error("no fault was met")
			}
			m := metrics(t, b)
			t.Logf("%d faults; failures %v, cold reads failed %v, corrupt %v", faulty.Fired(), m["varve_tier_failures_total"], m["varve_cold_read_errors_total"], m["varve_tier_corrupt_objects_total"])
			faulty.Clear()
			for p := range int32(2) {
				if got := rawFetch(t, cl, "f", p, 0, ends[p]); !bytes.Equal(got, want[p]) {
					t.Errorf("partition %d: other bytes than were written, when the faults were over", p)
				}
			}
			if c.orphans {
				return
			}
			// The topic goes, and with it every object.
			if _, err := admin(t, b).DeleteTopics(patience(t), "f"); err != nil {
				t.Fatal(err)
			}
			eventuallyData(t, mem, func(n int, _ int64) bool { return n == 0 })
		})
	}
}

// TestAlwaysWrong: every download is spoiled. Nothing is served from it, hot
// records are, and the cache has not kept what was wrong.
func TestAlwaysWrong(t *testing.T) {
	t.Parallel()
	for _, kind := range []objstore.Kind{objstore.Flip, objstore.WrongRange, objstore.ShortBody, objstore.Truncate, objstore.Deny, objstore.Missing} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			faulty := objstore.NewFaulty(objstore.NewMem(), 3)
			b := servertest.Start(t, servertest.Options{Bucket: faulty, Settings: map[string]string{"remote.request.timeout.ms": "500", "remote.fetch.max.wait.ms": "300"}})
			b.CreateTopic("cold", 1, "retention.ms", "-1", "local.retention.bytes", "1")
			b.CreateTopic("hot", 1, "retention.ms", "-1")
			mixed(t, b, "cold", 1, 5, 1)
			cl := b.Client()
			end := endOffset(t, b, "cold", 0)
			want := rawFetch(t, cl, "cold", 0, 0, end)
			b.Remote("cold", true)
			if err := b.Restart(nil); err != nil {
				t.Fatal(err)
			}
			faulty.Inject(objstore.Fault{Op: objstore.OpGet, Kind: kind})
			failed := 0
			for range 5 {
				run, err := fetchOnce(patience(t), cl, "cold", 0, 0, 1<<20)
				if err != nil {
					if !kerr.IsRetriable(err) {
						t.Errorf("not retriable: %v", err)
					}
					failed++
				}
				if len(run) > 0 {
					t.Fatalf("%d bytes served although no download was right", len(run))
				}
			}
			kgoProduce(t, b.Addr(), "hot", []rec{{value: []byte("hot")}})
			if got := kgoConsume(t, b.Addr(), "hot", 1); string(got[0].value) != "hot" {
				t.Errorf("hot: %v", got)
			}
			servertest.Eventually(t, func() error {
				fetchOnce(patience(t), cl, "cold", 0, 0, 1<<20)
				if m := metrics(t, b); m["varve_cold_read_errors_total"] == 0 {
					return fmt.Errorf("no failed read was counted")
				}
				return nil
			})
			m := metrics(t, b)
			switch kind {
			case objstore.Flip, objstore.WrongRange:
				if m["varve_tier_corrupt_objects_total"] == 0 {
					t.Errorf("varve_tier_corrupt_objects_total is 0")
				}
			case objstore.Deny:
				if m[`varve_objstore_requests_total{operation="get",outcome="denied"}`] == 0 {
					t.Errorf("no denied request was counted")
				}
			}
			t.Logf("%d of 5 fetches failed; corrupt %v, cold reads failed %v", failed, m["varve_tier_corrupt_objects_total"], m["varve_cold_read_errors_total"])
			faulty.Clear()
			if got := rawFetch(t, cl, "cold", 0, 0, end); !bytes.Equal(got, want) {
				t.Error("other bytes than were written")
			}
		})
	}
}

// TestDeniedWrites: the credentials were revoked. Topics go on in the log, the
// metrics say so, and new credentials are enough to go on.
func TestDeniedWrites(t *testing.T) {
	t.Parallel()
	for _, kind := range []objstore.Kind{objstore.Deny, objstore.NoBucket} {
		faulty := objstore.NewFaulty(objstore.NewMem(), 3)
		b := servertest.Start(t, servertest.Options{Bucket: faulty})
		b.CreateTopic("d", 1)
		remove := faulty.Inject(objstore.Fault{Kind: kind})
		kgoProduce(t, b.Addr(), "d", []rec{{value: []byte("x")}})
		servertest.Eventually(t, func() error {
			if m := metrics(t, b); m["varve_tier_failures_total"] < 2 || m["varve_tier_failing"] != 1 {
				return fmt.Errorf("failures %v, failing %v", m["varve_tier_failures_total"], m["varve_tier_failing"])
			}
			return nil
		})
		kgoConsume(t, b.Addr(), "d", 1)
		b.CreateTopic("d2", 1)
		kgoProduce(t, b.Addr(), "d2", []rec{{value: []byte("x")}})
		remove()
		b.Remote("d", false)
		b.Remote("d2", false)
		servertest.Eventually(t, func() error {
			if m := metrics(t, b); m["varve_tier_failing"] != 0 {
				return fmt.Errorf("the alarm stands although everything is uploaded")
			}
			return nil
		})
	}
}
