package main

import "testing"

// The words of the tools are read as they are; where a tool sums up twice, the last is what counts.
func TestFigures(t *testing.T) {
	java, err := producerPerf(`10001 records sent, 2000.1 records/sec (1.95 MB/sec), 40.1 ms avg latency, 300.0 ms max latency.
50000 records sent, 4975.1 records/sec (4.86 MB/sec), 12.31 ms avg latency, 310.00 ms max latency, 2 ms 50th, 90 ms 95th, 260 ms 99th, 300 ms 99.9th.
40000 records sent, 4999.5 records/sec (4.88 MB/sec), 0.81 ms avg latency, 35.00 ms max latency, 1 ms 50th, 2 ms 95th, 4 ms 99th, 9 ms 99.9th.
`)
	if want := (figures{4999.5, 0.81, 1, 4}); err != nil || java != want {
		t.Errorf("%+v, %v, want %+v", java, err, want)
	}
	read, err := consumerPerf("2026-01-02 03:04:05:006, 2026-01-02 03:04:07:006, 488.2813, 244.1406, 500000, 250000.0000, 310, 1690, 288.9238, 295857.9882\n")
	if want := (figures{rate: 295857.9882}); err != nil || read != want {
		t.Errorf("%+v, %v, want %+v", read, err, want)
	}
	c, err := rdkafkaPerf("% 100000 messages produced (102400000 bytes), 100000 delivered (offset 0, 0 failed) in 5002ms: 19992 msgs/s and 20.47 MB/s, 0 produce failures, 0 in queue, no compression\n")
	if want := (figures{rate: 19992}); err != nil || c != want {
		t.Errorf("%+v, %v, want %+v", c, err, want)
	}
	for _, f := range []func(string) (figures, error){producerPerf, consumerPerf, rdkafkaPerf} {
		if _, err := f("it broke down\n"); err == nil {
			t.Error("figures of a run that has none")
		}
	}
}
