package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/internal/child"
)

// What `go test -json` says of three tests: one passes without a look at what it read, one reads a record twice, one is
// cut off.
const said = `
{"Time":"2026-01-01T00:00:00Z","Action":"start","Package":"kgo"}
{"Time":"2026-01-01T00:00:01Z","Action":"run","Package":"kgo","Test":"TestA"}
{"Time":"2026-01-01T00:00:01Z","Action":"run","Package":"kgo","Test":"TestA/one"}
{"Time":"2026-01-01T00:00:02Z","Action":"output","Package":"kgo","Test":"TestA/one","Output":"    helpers_test.go:1: pre-KIP-1251 stale commit encountered, skipping validation\n"}
{"Time":"2026-01-01T00:00:21Z","Action":"pass","Package":"kgo","Test":"TestA/one","Elapsed":20}
{"Time":"2026-01-01T00:00:03Z","Action":"run","Package":"kgo","Test":"TestA/two"}
{"Time":"2026-01-01T00:00:04Z","Action":"output","Package":"kgo","Test":"TestA/two","Output":"    testConsumer sendErr group=g: saw double offset t x p1o2\n"}
{"Time":"2026-01-01T00:00:04Z","Action":"output","Package":"kgo","Test":"TestA/two","Output":"    helpers_test.go:2: saw double offset t x p1o2\n"}
{"Time":"2026-01-01T00:00:04Z","Action":"output","Package":"kgo","Test":"TestA/two","Output":"    helpers_test.go:3: TestA/two completed in 1s\n"}
{"Time":"2026-01-01T00:00:04Z","Action":"output","Package":"kgo","Test":"TestA/two","Output":"    testConsumer sendErr group=g: poll got unexpected errs: [topic x partition 0 lost records; the client consumed to offset 7\n"}
{"Time":"2026-01-01T00:00:04Z","Action":"fail","Package":"kgo","Test":"TestA/two","Elapsed":1}
{"Time":"2026-01-01T00:00:05Z","Action":"run","Package":"kgo","Test":"TestB"}
{"Time":"2026-01-01T00:00:05Z","Action":"output","Package":"kgo","Test":"TestB","Output":"panic: OUT_OF_ORDER_SEQUENCE_NUMBER: The broker received an out of order sequence number.\n"}
not an event
{"Time":"2026-01-01T00:00:06Z","Action":"output","Package":"kgo","Output":"FAIL\tkgo\t6s\n"}
{"Time":"2026-01-01T00:00:06Z","Action":"fail","Package":"kgo","Elapsed":6}
`

func TestResults(t *testing.T) {
	s := &results{tests: map[string]*test{}}
	begun := 0
	var log bytes.Buffer
	if err := s.read(strings.NewReader(strings.TrimPrefix(said, "\n")), &log, func() { begun++ }); err != nil {
		t.Fatal(err)
	}
	at := func(text string) time.Time {
		when, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	s.kills = []time.Time{at("2026-01-01T00:00:03.5Z"), at("2026-01-01T00:00:20Z"), at("2026-01-01T00:00:22Z")}
	if p, f, k := s.counts(); p != 1 || f != 3 || k != 0 { // TestA has not ended either
		t.Errorf("%d passed, %d failed, %d skipped", p, f, k)
	}
	if begun != 4 {
		t.Errorf("%d tests began", begun)
	}
	if want := []string{"saw double offset t x p1o2", "lost records; the client consumed to offset 7"}; !reflect.DeepEqual(s.anomalies, want) {
		t.Errorf("about records: %q, want %q", s.anomalies, want)
	}
	if want := []string{"saw double offset t x p1o2"}; !reflect.DeepEqual(s.tests["TestA/two"].messages, want) {
		t.Errorf("messages: %q, want %q", s.tests["TestA/two"].messages, want)
	}
	var out bytes.Buffer
	s.print(&out)
	for _, want := range []string{
		"pass      TestA/one: 20.0 s, 2 kills, and did not compare what it read\n",
		"fail      TestA/two: 1.0 s, 1 kills\n          saw double offset t x p1o2\n",
		"\nnot ended TestB: ",
		"3 kills, 0.0 s without a broker; 1 fail, 2 not ended, 1 pass, 1 of those that passed did not compare what they read; 2 reports of records",
		"go test: FAIL\tkgo\t6s\n",
	} {
		if !strings.Contains("\n"+out.String(), want) {
			t.Errorf("nothing like %q in\n%s", want, out.String())
		}
	}
	if !strings.Contains(log.String(), "not an event\n") || !strings.Contains(log.String(), "panic: OUT_OF_ORDER") {
		t.Errorf("the log is\n%s", log.String())
	}
}

// A connection that is made while the broker is away is served once it is back, and ends when the broker does.
func TestGate(t *testing.T) {
	var addrs [2]string
	for i := range addrs {
		var err error
		if addrs[i], err = child.FreeAddr(); err != nil {
			t.Fatal(err)
		}
	}
	g, err := openGate(addrs[0], addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "ping" {
		t.Fatalf("the broker reads %q: %v", got, err)
	}
	if _, err := io.WriteString(b, "pong"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "pong" {
		t.Fatalf("the client reads %q: %v", got, err)
	}
	b.Close()
	if n, err := c.Read(got); err == nil {
		t.Fatalf("%d bytes from a broker that is gone", n)
	}
	// One that waits for a broker ends with the gate.
	l.Close()
	waits, err := net.Dial("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	g.Close()
	if _, err := waits.Read(got); err == nil {
		t.Fatal("the gate is closed, and its connection is not")
	}
	if _, err := net.Dial("tcp", addrs[0]); err == nil {
		t.Fatal("the gate is closed, and accepts")
	} else if op := new(net.OpError); !errors.As(err, &op) {
		t.Fatal(err)
	}
}
