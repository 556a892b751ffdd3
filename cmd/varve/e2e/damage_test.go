package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
)

// TestForgottenPartition damages the record with which a partition begins, so
// that the log knows nothing of it any more. It is not begun anew as if it had
// never been, until an operator says so; other topics can be made.
func TestForgottenPartition(t *testing.T) {
	t.Parallel()
	faulty := objstore.NewFaulty(objstore.NewMem(), 1)
	b := servertest.Start(t, servertest.Options{Bucket: faulty})
	b.CreateTopic("f", 1, "retention.ms", "-1")
	kgoProduce(t, b.Addr(), "f", []rec{{value: []byte("uploaded")}})
	b.Remote("f", false)
	faulty.Inject(objstore.Fault{Op: objstore.OpPut, Kind: objstore.Deny})
	kgoProduce(t, b.Addr(), "f", []rec{{value: []byte("not uploaded")}})
	topics, err := admin(t, b).ListTopics(patience(t), "f")
	if err != nil {
		t.Fatal(err)
	}
	id := topics["f"].ID
	if err := b.Restart(func() { flipInLog(t, b, id[:]) }); err != nil {
		t.Fatal(err)
	}
	cl := b.Client()
	for range 5 {
		if run, err := fetchOnce(patience(t), cl, "f", 0, 0, 1<<20); !errors.Is(err, kerr.KafkaStorageError) {
			t.Fatalf("%d bytes and %v from a partition that lacks an acknowledged record", len(run), err)
		}
	}
	// Metadata has a leader for it: whoever looks after the broker is told otherwise.
	if n := metricOf(t, b, "varve_unserved_partitions"); n != 1 {
		t.Errorf("%v partitions are said not to be served", n)
	}
	if text := ready(t, b); !strings.Contains(text, "f-0") || !strings.Contains(text, "--accept-corrupt-log") {
		t.Errorf("/readyz says %s", text)
	}
	b.CreateTopic("g", 1)
	kgoProduce(t, b.Addr(), "g", []rec{{value: []byte("new")}})
	b.AcceptCorruptLog()
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	if text := ready(t, b); strings.Contains(text, "f-0") {
		t.Errorf("/readyz says %s", text)
	}
	kgoProduce(t, b.Addr(), "f", []rec{{value: []byte("more")}})
	got := kgoConsume(t, b.Addr(), "f", 2)
	if string(got[0].value) != "uploaded" || string(got[1].value) != "more" {
		t.Fatalf("%q and %q", got[0].value, got[1].value)
	}
	if got := kgoConsume(t, b.Addr(), "g", 1); string(got[0].value) != "new" {
		t.Fatalf("%q", got[0].value)
	}
}

// flipInLog flips a bit of the first place in the log that holds these bytes.
func flipInLog(t *testing.T, b *servertest.Broker, what []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(b.Dir(), "wal", "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		image, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(image, what); at >= 0 {
			image[at] ^= 1
			if err := os.WriteFile(name, image, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%q is not in the log", what)
}

// TestDamagedLog flips a bit in the local log of a broker that is the only
// replica, in a record that the bucket has, or in one that only the log has
// with acknowledged records behind it. What the bucket has is no loss, and all
// is served. Otherwise nobody is served as if nothing had been lost, until an
// operator says so.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	const uploaded, all = 3, 6
	for _, damaged := range []int{0, 1, 2, 3, 4} {
		t.Run(fmt.Sprintf("record %d of %d with %d uploaded", damaged, all, uploaded), func(t *testing.T) {
			t.Parallel()
			faulty := objstore.NewFaulty(objstore.NewMem(), 1)
			b := servertest.Start(t, servertest.Options{Bucket: faulty})
			b.CreateTopic("d", 1, "retention.ms", "-1")
			value := func(i int) []byte { return fmt.Appendf(nil, "record number %d of the damaged log", i) }
			for i := range all {
				if i == uploaded {
					b.Remote("d", false)
					faulty.Inject(objstore.Fault{Op: objstore.OpPut, Kind: objstore.Deny})
				}
				// Each is a block of its own.
				kgoProduce(t, b.Addr(), "d", []rec{{value: value(i)}})
			}
			if err := b.Restart(func() { flipInLog(t, b, value(damaged)) }); err != nil {
				t.Fatal(err)
			}
			check := func(n int) {
				t.Helper()
				kgoProduce(t, b.Addr(), "d", []rec{{value: []byte("more")}})
				got := kgoConsume(t, b.Addr(), "d", n+1)
				for i, r := range got {
					want := value(i)
					if i == n {
						want = []byte("more")
					}
					if !bytes.Equal(r.value, want) {
						t.Fatalf("record %d is %q, want %q", i, r.value, want)
					}
				}
			}
			if damaged < uploaded {
				check(all)
				return
			}
			cl := b.Client()
			for range 5 {
				run, err := fetchOnce(patience(t), cl, "d", 0, 0, 1<<20)
				if !errors.Is(err, kerr.KafkaStorageError) {
					t.Fatalf("%d bytes and %v from a partition that lacks acknowledged records", len(run), err)
				}
			}
			b.AcceptCorruptLog()
			if err := b.Restart(nil); err != nil {
				t.Fatal(err)
			}
			check(damaged)
		})
	}
}

// A replica whose log turns out to be damaged at a restart gives up what it had, whether it leads or follows, and copies
// it from the others; no operator is needed, and nothing that was acknowledged is lost.
func TestDamagedReplica(t *testing.T) {
	for _, what := range []string{"a record", "the partition's beginning"} {
		t.Run(what, func(t *testing.T) {
			brokers := servertest.StartCluster(t, 3, servertest.Options{Settings: map[string]string{"remote.flush.interval.ms": "3600000", "remote.object.bytes": "1073741824"}})
			brokers[0].CreateReplicated("t", 2, 3, "min.insync.replicas", "2")
			inSync(t, brokers[0], "t", 3)
			cl := clientOf(brokers, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
			put(t, cl, "t", 0, 40)
			topics, err := kadm.NewClient(cl).ListTopics(patience(t), "t")
			if err != nil {
				t.Fatal(err)
			}
			damaged := []byte("value 20")
			if what != "a record" {
				id := topics["t"].ID
				damaged = id[:]
			}
			// Each in turn: it leads, or follows, one partition or both.
			for i, b := range brokers {
				if err := b.Restart(func() { flipInLog(t, b, damaged) }); err != nil {
					t.Fatal(err)
				}
				put(t, cl, "t", 40+10*i, 10)
				inSync(t, brokers[(i+1)%3], "t", 3)
			}
			for _, b := range brokers {
				readAll(t, b, "t", 70)
			}
		})
	}
}
