package coordinator

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/varve/varve/broker/group"
)

// What is committed is told in order over all shards, so that with a bound it is always the same part, and all of it is
// counted.
func TestCommitted(t *testing.T) {
	c := New(Options{Log: newMemLog()}, 3)
	t.Cleanup(c.Close)
	for p := range int32(3) {
		c.Elected(p, 1)
	}
	until(t, func() bool { return c.Ready(0) && c.Ready(1) && c.Ready(2) })
	long := "g" + strings.Repeat("x", 20)
	var want []group.Committed
	shards := map[int32]bool{}
	for _, g := range []string{"g0", "g1", "g2", "g3", "g4", "g5", long} {
		shards[c.PartitionFor(g)] = true
		for p := range int32(3) {
			expect(t, "commit", commit(c, g, "", -1, p, int64(100+p)), 0)
			if g != long {
				want = append(want, group.Committed{Group: g, Topic: "t", Partition: p, Offset: int64(100 + p)})
			}
		}
	}
	expect(t, "shards", len(shards), 3)
	for n := range 25 {
		got, total := c.Committed(bg, n, 10)
		expect(t, "total", total, 21)
		expect(t, fmt.Sprint("the first ", n), fmt.Sprint(got), fmt.Sprint(want[:min(n, len(want))]))
	}

	// A shard that is not served has nothing to tell, and nobody waits when there is no time.
	lost := c.PartitionFor("g0")
	c.Resigned(lost)
	got, total := c.Committed(bg, 100, 100)
	expect(t, "in all", len(got), total)
	if total == 0 || total >= 21 {
		t.Errorf("%d offsets without one of three shards", total)
	}
	for _, o := range got {
		if c.PartitionFor(o.Group) == lost {
			t.Errorf("%+v is of the shard that is gone", o)
		}
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	for range 100 { // a shard may be quicker than the end of the context
		if _, n := c.Committed(ctx, 100, 100); n > total {
			t.Errorf("%d offsets, of %d", n, total)
		}
	}
}
