package metadata

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/varve/varve/metadata/controller"
)

// What a node and its embedded etcd cost when nothing happens, with 10,000
// partitions. VARVE_IDLE=30s runs it.
func TestIdleCost(t *testing.T) {
	d, err := time.ParseDuration(os.Getenv("VARVE_IDLE"))
	if err != nil {
		t.Skip("VARVE_IDLE=30s measures the idle cost")
	}
	c := cluster{t, startEtcd(t, t.TempDir())}
	n := c.join(1)
	create(t, n, "wide", 10_000)
	time.Sleep(2 * time.Second)
	cpu := func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := cpu()
	time.Sleep(d)
	used := cpu() - before
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("%.2f %% of a core idle, heap %d MiB, from the system %d MiB", 100*used.Seconds()/d.Seconds(), m.HeapAlloc>>20, m.Sys>>20)
}

func BenchmarkCreateTopic(b *testing.B) {
	c := cluster{b, startEtcd(b, b.TempDir())}
	n := c.join(1)
	b.ResetTimer()
	for i := range b.N {
		create(b, n, fmt.Sprintf("t-%d", i), 1)
	}
}

// 1,000 partitions per request.
func BenchmarkCreate1000(b *testing.B) {
	c := cluster{b, startEtcd(b, b.TempDir())}
	o := c.options(1)
	o.MaxPartitions = 10_000_000
	n := open(b, o)
	register(b, n)
	b.ResetTimer()
	for i := range b.N {
		name := fmt.Sprintf("t-%d", i)
		create(b, n, name, 1000)
		b.StopTimer()
		n.DeleteTopics(bg, []controller.TopicRef{{Name: name}})
		b.StartTimer()
	}
}
