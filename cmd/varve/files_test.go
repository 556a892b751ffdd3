package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

// Connections that idle, as many as clients can get, leave the broker the files that it needs: the log begins its next segments.
func TestFewFiles(t *testing.T) {
	p := startProcess(t, t.TempDir(), "wal.segment.bytes=1048576", "wal.max.bytes=33554432")
	p.createTopic("t")
	cl := p.client(kgo.ProducerBatchCompression(kgo.NoCompression()))
	produce := func(n int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range n {
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: bytes.Repeat([]byte("x"), 100_000)}).FirstErr(); err != nil {
				t.Fatalf("%v; the broker said:\n%s", err, strings.Join(p.lines(), "\n"))
			}
		}
	}
	produce(1) // the client has its connections
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: 200}, nil); err != nil {
		t.Fatal(err)
	}
	for range 250 {
		if c, err := net.DialTimeout("tcp", p.Addr, time.Second); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	eventually(t, func() error {
		if said := strings.Join(p.lines(), "\n"); !strings.Contains(said, "100 connections are what the limit of open files of this process leaves") {
			return context.DeadlineExceeded
		}
		return nil
	})
	begun := p.metric("varve_produced_bytes_total")
	produce(60)
	if more := p.metric("varve_produced_bytes_total") - begun; more < 5<<20 {
		t.Errorf("%.0f bytes of log: the test needs several segments", more)
	}
}
