package e2e_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/vfs"
)

// acked counts up values and remembers at which offset each was acknowledged.
type acked struct {
	mu sync.Mutex
	at map[int64]uint64
}

// produceUntil produces to partition 0 of topic, a value at a time in flight
// windows of 64, until stop is closed or a record is refused for good.
func produceUntil(t *testing.T, cl *kgo.Client, topic string, a *acked, stop <-chan struct{}) {
	t.Helper()
	var n uint64
	for {
		var wg sync.WaitGroup
		for range 64 {
			v := binary.BigEndian.AppendUint64(nil, n)
			k := n
			n++
			wg.Add(1)
			cl.Produce(context.Background(), &kgo.Record{Topic: topic, Value: append(v, make([]byte, 500)...)}, func(r *kgo.Record, err error) {
				defer wg.Done()
				if err == nil {
					a.mu.Lock()
					a.at[r.Offset] = k
					a.mu.Unlock()
				}
			})
		}
		wg.Wait()
		select {
		case <-stop:
			return
		default:
		}
	}
}

func (a *acked) snapshot() map[int64]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[int64]uint64, len(a.at))
	for k, v := range a.at {
		out[k] = v
	}
	return out
}

// verifyThere reads the topic from the beginning and compares it with what was
// acknowledged.
func verifyThere(t *testing.T, b *servertest.Broker, topic string, want map[int64]uint64) {
	t.Helper()
	var last int64 = -1
	for o := range want {
		last = max(last, o)
	}
	if last < 0 {
		t.Fatal("nothing was acknowledged")
	}
	cl := b.Client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	found, next := 0, int64(0)
	for next <= last {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("read back at %d of %d: %v", next, last, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != next {
				t.Errorf("offset %d where %d was due", r.Offset, next)
			}
			next = r.Offset + 1
			if v, ok := want[r.Offset]; ok {
				found++
				if got := binary.BigEndian.Uint64(r.Value); got != v {
					t.Errorf("offset %d: record %d, but %d was acknowledged there", r.Offset, got, v)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
	if found != len(want) {
		t.Errorf("%d of %d acknowledged records are there", found, len(want))
	}
}

// Power fails while an idempotent producer writes: what was not synced may be
// lost, torn or kept. Whatever was acknowledged before is there.
func TestPowerLoss(t *testing.T) {
	b := servertest.Start(t, servertest.Options{FS: vfs.NewMem()})
	b.CreateTopic("power", 1)
	a := &acked{at: map[int64]uint64{}}
	for round := range uint64(4) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Add(1)
		cl := b.Client(kgo.ProducerLinger(0), kgo.RecordDeliveryTimeout(20*time.Second))
		go func() {
			defer wg.Done()
			produceUntil(t, cl, "power", a, stop)
		}()
		before := len(a.snapshot())
		servertest.Eventually(t, func() error {
			if n := len(a.snapshot()); n < before+2000 {
				return fmt.Errorf("%d records acknowledged", n)
			}
			return nil
		})
		want := a.snapshot()
		if err := b.PowerFailure(round, func() { close(stop); wg.Wait() }); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		verifyThere(t, b, "power", want)
		// What was acknowledged by the process that had no power any more does
		// not count, and the next round may put other records there.
		a.mu.Lock()
		a.at = want
		a.mu.Unlock()
	}
}

// An fsync fails once: the log has failed, the process is told to end, nothing
// is acknowledged after it. A restart finds everything that was acknowledged.
func TestFsyncFails(t *testing.T) {
	mem := vfs.NewMem()
	disk := vfs.NewFaulty(mem)
	b := servertest.Start(t, servertest.Options{FS: disk})
	b.CreateTopic("eio", 1)
	a := &acked{at: map[int64]uint64{}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	cl := b.Client(kgo.ProducerLinger(0), kgo.RecordDeliveryTimeout(5*time.Second))
	go func() {
		defer wg.Done()
		produceUntil(t, cl, "eio", a, stop)
	}()
	servertest.Eventually(t, func() error {
		if n := len(a.snapshot()); n < 1000 {
			return fmt.Errorf("%d records acknowledged", n)
		}
		return nil
	})
	var failed atomic.Bool
	disk.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpSync && strings.HasSuffix(name, ".wal") && failed.CompareAndSwap(false, true) {
			return vfs.Fault{Err: syscall.EIO}
		}
		return vfs.Fault{}
	})
	err := <-b.Server().Failed()
	if !errors.Is(err, syscall.EIO) {
		t.Fatalf("the server ended with %v", err)
	}
	n := len(a.snapshot())
	close(stop)
	wg.Wait()
	if after := len(a.snapshot()); after > n {
		t.Logf("%d answers were on their way when the log failed", after-n)
	}
	// The page cache is not to be believed after a failed fsync: what counts is
	// what had reached the disk. All that was acknowledged had, whenever.
	want := a.snapshot()
	if err := b.RestartOn(mem.Crash(1)); err != nil {
		t.Fatal(err)
	}
	verifyThere(t, b, "eio", want)
}

// The disk is full: producers get a retriable error, consumers go on, and when
// there is room again everything does, by itself.
func TestDiskFull(t *testing.T) {
	disk := vfs.NewFaulty(vfs.NewMem())
	b := servertest.Start(t, servertest.Options{FS: disk, Settings: map[string]string{
		"wal.segment.bytes": "1048576", "remote.flush.interval.ms": "600000",
	}})
	b.CreateTopic("full", 1)
	var full atomic.Bool
	full.Store(true)
	disk.Decide(func(op vfs.Op, _ string) vfs.Fault {
		if full.Load() && (op == vfs.OpAllocate || op == vfs.OpCreate) {
			return vfs.Fault{Err: syscall.ENOSPC}
		}
		return vfs.Fault{}
	})
	a := &acked{at: map[int64]uint64{}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	cl := b.Client(kgo.ProducerLinger(0))
	go func() {
		defer wg.Done()
		produceUntil(t, cl, "full", a, stop)
	}()
	diskFull := func(want float64) func() error {
		return func() error {
			if m := metrics(t, b); m["varve_wal_full"] != want || m["varve_wal_disk_full"] != want {
				return fmt.Errorf("varve_wal_full %v, varve_wal_disk_full %v, want %v", m["varve_wal_full"], m["varve_wal_disk_full"], want)
			}
			return nil
		}
	}
	refused := func() float64 { return metricOf(t, b, `varve_produce_errors_total{error="NOT_ENOUGH_REPLICAS"}`) }
	servertest.Eventually(t, func() error {
		if refused() == 0 {
			return errors.New("no producer was refused")
		}
		return nil
	})
	servertest.Eventually(t, diskFull(1))
	verifyThere(t, b, "full", a.snapshot())
	full.Store(false)
	before := len(a.snapshot())
	servertest.Eventually(t, func() error {
		if n := len(a.snapshot()); n < before+5000 {
			return fmt.Errorf("%d records acknowledged, %d before there was room", n, before)
		}
		return nil
	})
	close(stop)
	wg.Wait()
	servertest.Eventually(t, diskFull(0))
	verifyThere(t, b, "full", a.snapshot())
}

// metricOf reads one metric, labels included; 0 when it is not there yet.
func metricOf(t *testing.T, b *servertest.Broker, name string) float64 {
	t.Helper()
	return metrics(t, b)[name]
}
