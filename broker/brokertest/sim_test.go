package brokertest

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	seed  = flag.Uint64("seed", 0, "run this seed alone")
	seeds = flag.Int("seeds", 6, "run so many seeds")
	from  = flag.Uint64("from", 1, "beginning with this one")
	only  = flag.String("faults", "", "only these faults, separated by commas")
	have  = flag.String("with", "", "exactly these features, separated by commas; none: none of them")
)

// Each seed is a cluster of its own.
func TestSeeds(t *testing.T) {
	list := []uint64{*seed}
	if *seed == 0 {
		list = nil
		for i := range uint64(*seeds) {
			list = append(list, *from+i)
		}
	}
	for _, s := range list {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			o := Options{Seed: s, Dir: t.TempDir()}
			if *only != "" {
				o.Faults = strings.Split(*only, ",")
			}
			if *have != "" {
				o.With = strings.Split(*have, ",")
			}
			if testing.Verbose() && *seed != 0 {
				o.Log = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
			}
			synctest.Test(t, func(t *testing.T) {
				wrong, done := Run(o)
				if wrong != "" {
					t.Errorf("seed %d; once more: make sim SEED=%d\n%s", s, s, wrong)
				}
				t.Log(done)
			})
		})
	}
}
