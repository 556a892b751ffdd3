package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/slab"
)

// TestRestartsUnderLoad: an idempotent producer does not notice that its
// broker is restarted again and again: every record is there, once, in order,
// whether it is in the local log or has left it.
func TestRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	restarts := 10
	if long {
		restarts = 50
	}
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("local", 3)
	b.CreateTopic("remote", 3, "local.retention.bytes", "1")
	cl := newKgo(t, b.Addr(), append(eager, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(time.Millisecond), kgo.MaxBufferedRecords(2000))...)
	var stop atomic.Bool
	var n int
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; !stop.Load(); n++ {
			for _, topic := range []string{"local", "remote"} {
				cl.Produce(patience(t), &kgo.Record{Topic: topic, Partition: int32(n % 3), Value: []byte(strconv.Itoa(n))}, func(_ *kgo.Record, err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}
			if n%50 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	for i := range restarts {
		time.Sleep(time.Duration(20+i*37%200) * time.Millisecond)
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if err := cl.Flush(patience(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records per topic over %d restarts", n, restarts)
	for _, topic := range []string{"local", "remote"} {
		next := map[int32]int{0: 0, 1: 1, 2: 2}
		for _, r := range kgoConsume(t, b.Addr(), topic, n) {
			if string(r.value) != strconv.Itoa(next[r.partition]) {
				t.Fatalf("%s: %v, want %d", topic, r, next[r.partition])
			}
			next[r.partition] += 3
		}
		total := int64(0)
		for p := range int32(3) {
			total += endOffset(t, b, topic, p)
		}
		if total != int64(n) {
			t.Errorf("%s: %d records, %d were acknowledged", topic, total, n)
		}
	}
}

// resident is the memory that the Go runtime has from the system and has not
// given back.
func resident() int64 {
	s := []rtmetrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	rtmetrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestOpenLoop: producers that do not wait for answers, on 100 partitions, and
// a consumer beside them, in a process of their own. Memory stays below
// memory.max.bytes.
func TestOpenLoop(t *testing.T) {
	d := 5 * time.Second
	if long {
		d = 30 * time.Second
	}
	const bound = 512 << 20
	debug.FreeOSMemory()
	// Not a bucket in memory, which would count.
	bucket, err := objstore.Open(t.Context(), "file://"+t.TempDir(), objstore.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	b := servertest.Start(t, servertest.Options{Bucket: bucket, Settings: map[string]string{"memory.max.bytes": strconv.Itoa(bound), "wal.segment.bytes": "33554432"}})
	b.CreateTopic("load", 100, "local.retention.bytes", "1000000")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	clients := exec.CommandContext(patience(t), exe, "-test.run=^TestOpenLoopClients$", "-test.v")
	clients.Env = append(os.Environ(), "VARVE_E2E_LOAD="+b.Addr(), "VARVE_E2E_LOAD_FOR="+d.String())
	before := cpu(t)
	done := make(chan error, 1)
	go func() {
		out, err := clients.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		t.Logf("%s", out)
		done <- err
	}()
	var most, mostSlab int64
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			running = false
		case <-time.After(20 * time.Millisecond):
			most, mostSlab = max(most, resident()), max(mostSlab, slab.InUse())
		}
	}
	t.Logf("broker: at most %d MiB of memory, of which %d MiB pooled buffers; bound %d MiB; %.1f CPU seconds", most>>20, mostSlab>>20, bound>>20, (cpu(t) - before).Seconds())
	if most > bound {
		t.Errorf("%d bytes of memory, memory.max.bytes is %d", most, bound)
	}
}

// TestOpenLoopClients is the other process of TestOpenLoop.
func TestOpenLoopClients(t *testing.T) {
	addr := os.Getenv("VARVE_E2E_LOAD")
	if addr == "" {
		t.Skip("runs as a part of TestOpenLoop")
	}
	d, err := time.ParseDuration(os.Getenv("VARVE_E2E_LOAD_FOR"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := patience(t)
	var acked, dropped atomic.Int64
	var finished atomic.Bool
	in := newKgo(t, addr, kgo.ConsumeTopics("load"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	var wg sync.WaitGroup
	var consumed int64
	wg.Go(func() {
		for ctx.Err() == nil && (!finished.Load() || consumed < acked.Load()) {
			poll, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			consumed += int64(in.PollFetches(poll).NumRecords())
			cancel()
		}
	})
	cl := newKgo(t, addr, kgo.DefaultProduceTopic("load"), kgo.ProducerLinger(5*time.Millisecond), kgo.MaxBufferedRecords(20_000))
	const perSecond = 20_000
	value := text(1, 1024)
	sent, began := 0, time.Now()
	for time.Since(began) < d {
		for due := int(time.Since(began).Seconds() * perSecond); sent < due; sent++ {
			// An open loop: what finds no place is counted and dropped.
			cl.TryProduce(ctx, &kgo.Record{Key: []byte(strconv.Itoa(sent)), Value: value}, func(_ *kgo.Record, err error) {
				switch err {
				case nil:
					acked.Add(1)
				case kgo.ErrMaxBuffered:
					dropped.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Millisecond)
	}
	if err := cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	finished.Store(true)
	wg.Wait()
	t.Logf("%d records of 1 KiB sent in %v, %d acknowledged, %d dropped by the client, %d consumed", sent, d, acked.Load(), dropped.Load(), consumed)
	if consumed != acked.Load() || acked.Load()+dropped.Load() != int64(sent) {
		t.Error("these do not add up")
	}
}

// TestManyPartitions reports what many partitions cost.
func TestManyPartitions(t *testing.T) {
	n := 1000
	if long {
		n = 10_000
	}
	runtime.GC()
	empty := resident()
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"remote.flush.interval.ms": "1000"}})
	ctx := patience(t)
	began := time.Now()
	step := func(what string) {
		t.Helper()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		t.Logf("%d partitions: %s in %v; heap %d MiB, memory %d MiB (%d MiB before), pooled buffers %d MiB, %d goroutines",
			n, what, time.Since(began).Round(time.Millisecond), m.HeapAlloc>>20, resident()>>20, empty>>20, slab.InUse()>>20, runtime.NumGoroutine())
		began = time.Now()
	}
	adm := kadm.NewClient(b.Client())
	adm.SetTimeoutMillis(600_000)
	const perTopic = 1000
	var topics []string
	for i := range n / perTopic {
		topic := fmt.Sprintf("many-%d", i)
		if _, err := adm.CreateTopic(ctx, perTopic, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
		topics = append(topics, topic)
	}
	step("created")
	produce := func(what string) {
		t.Helper()
		cl := newKgo(t, b.Addr(), append(eager, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		defer cl.Close()
		var rs []*kgo.Record
		for _, topic := range topics {
			for p := range int32(perTopic) {
				rs = append(rs, &kgo.Record{Topic: topic, Partition: p, Value: []byte(what)})
			}
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce("first")
	step("produced one record each")
	for _, topic := range topics {
		b.Remote(topic, false)
	}
	step("all in the bucket")
	idle := func(what string) {
		t.Helper()
		d := 2 * time.Second
		if long {
			d = 20 * time.Second
		}
		before := cpu(t)
		time.Sleep(d)
		t.Logf("%d partitions: %s: %.1f %% of a core", n, what, float64(cpu(t)-before)/float64(d)*100)
		began = time.Now()
	}
	idle("idle")
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	servertest.Eventually(t, func() error {
		resp, err := http.Get(b.AdminURL() + "/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
	step("restarted")
	produce("second")
	step("produced to all again")
	for _, topic := range topics {
		rs := kgoConsume(t, b.Addr(), topic, 2*perTopic)
		for i, r := range rs {
			if want := []string{"first", "second"}[i%2]; string(r.value) != want || r.offset != int64(i%2) || r.partition != int32(i/2) {
				t.Fatalf("%s: %v, want %s", topic, r, want)
			}
		}
	}
	step("all consumed")
	cl := newKgo(t, b.Addr(), kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()))
	go func() {
		for t.Context().Err() == nil {
			cl.PollFetches(t.Context())
		}
	}()
	idle("idle, with a consumer of all of them that waits")
}
