package load

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/bench/floor"
	"github.com/varve/varve/internal/child"
)

// serve runs a floor, which is as much of a broker as a load needs.
func serve(t *testing.T, partitions int32, beforeSync ...func()) string {
	t.Helper()
	o := floor.Options{Dir: t.TempDir(), FileBytes: 64 << 20, Partitions: partitions}
	if len(beforeSync) > 0 {
		o.BeforeSync = beforeSync[0]
	}
	s, err := floor.Open("127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.Addr().String()
}

func spec(addr string) Spec {
	return Spec{
		Bootstrap: []string{addr}, Topic: "t", RecordBytes: 100, Rate: 2000, Producers: 3,
		Warmup: 200 * time.Millisecond, Duration: time.Second, Broker: []int{os.Getpid()},
	}
}

// What goes in at a rate comes out at that rate, and what is reported adds up.
func TestEndToEnd(t *testing.T) {
	for _, codec := range []string{"none", "zstd"} {
		s := spec(serve(t, 5))
		s.Consumers, s.Groups, s.Codec, s.Idempotent, s.Payload = 4, 2, codec, true, JSON
		s.Duration = 3 * time.Second // long beside what a machine that does something else holds up
		r, err := Run(context.Background(), s)
		if err != nil {
			t.Fatal(err)
		}
		p, c := r.Produced, r.Consumed
		if r.Errors != 0 || p.Records == 0 || c.Records == 0 || r.EndToEnd == nil || r.Ack == nil {
			t.Fatalf("%+v", r)
		}
		// Both groups read everything; the ends of the measured time are blurred by what is under way.
		if got := float64(c.Records) / float64(p.Records); got < 1.5 || got > 2.5 {
			t.Errorf("%s: %d produced, %d consumed by two groups", codec, p.Records, c.Records)
		}
		if p.Bytes != p.Records*(100+16) {
			t.Errorf("%s: %d records of 100 bytes and a stamp of 16 are %d bytes", codec, p.Records, p.Bytes)
		}
		if p.RecordsPerBatch < 1 || p.BytesPerBatch <= batchHeader || p.BytesPerRequest < p.BytesPerBatch/2 {
			t.Errorf("%s: %+v", codec, p)
		}
		if r.EndToEnd.P50 <= 0 || r.EndToEnd.P50 > r.EndToEnd.P99 || r.EndToEnd.P99 > r.EndToEnd.Max {
			t.Errorf("%s: end to end %+v", codec, r.EndToEnd)
		}
		if r.Broker == nil || r.Broker.PeakRSS == 0 || r.Client.CPUSeconds == 0 {
			t.Errorf("%s: %+v, %+v", codec, r.Broker, r.Client)
		}
	}
}

// A record's latency counts from when it should have been sent: a broker that
// answers nobody for a while is charged for every record of that while.
func TestCoordinatedOmission(t *testing.T) {
	begin, stalled := time.Now(), false
	addr := serve(t, 1, func() {
		if !stalled && time.Since(begin) > 700*time.Millisecond {
			stalled = true
			time.Sleep(500 * time.Millisecond)
		}
	})
	s := spec(addr)
	s.Producers, s.BufferBytes, s.InFlight, s.BatchBytes = 1, 2000, 1, 1000 // the client's buffer is full at once
	s.Warmup, s.Duration = 0, 2*time.Second
	r, err := Run(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	// Of the records of two seconds, those of a quarter of it waited up to 500 ms.
	if r.Ack.P90 < 100 {
		t.Errorf("a stall of half a second in two is not seen: %+v", r.Ack)
	}
}

func TestReplay(t *testing.T) {
	addr := serve(t, 4)
	s := spec(addr)
	if _, err := Replay(context.Background(), s); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty topic: %v", err)
	}
	w := s
	w.Warmup = 0
	w.Idempotent = true
	if _, err := Run(context.Background(), w); err != nil {
		t.Fatal(err)
	}
	ext, err := Extents(context.Background(), s.Bootstrap, s.Topic)
	if err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, x := range ext {
		want += x.End - x.Start
	}
	s.Consumers = 2
	for _, s.Raw = range []bool{false, true} {
		r, err := Replay(context.Background(), s)
		if err != nil {
			t.Fatalf("raw %v: %v", s.Raw, err)
		}
		if r.Consumed.Records != want || want == 0 {
			t.Errorf("raw %v: replayed %d records of %d", s.Raw, r.Consumed.Records, want)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := Run(ctx, spec(addr)); err == nil {
		t.Error("a load on nobody has a result")
	} else if !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "refused") {
		t.Errorf("an error that does not say what is wrong: %v", err)
	}
}

func TestListener(t *testing.T) {
	addr := serve(t, 1)
	if pid, err := Listener(addr); err != nil || pid != os.Getpid() {
		t.Errorf("%d, %v; this process listens there and is %d", pid, err, os.Getpid())
	}
	if _, err := Listener("192.0.2.1:9092"); err == nil {
		t.Error("a process was found for an address elsewhere")
	}
}
