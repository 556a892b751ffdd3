package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
)

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
			flip := func() {
				names, err := filepath.Glob(filepath.Join(b.Dir(), "wal", "*.wal"))
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range names {
					image, err := os.ReadFile(name)
					if err != nil {
						t.Fatal(err)
					}
					if at := bytes.Index(image, value(damaged)); at >= 0 {
						image[at] ^= 1
						if err := os.WriteFile(name, image, 0o600); err != nil {
							t.Fatal(err)
						}
						return
					}
				}
				t.Fatalf("record %d is not in the log", damaged)
			}
			if err := b.Restart(flip); err != nil {
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
