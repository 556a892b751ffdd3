package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// event is a line of `go test -json`.
type event struct {
	Time                 time.Time
	Action, Test, Output string
}

// test is what is known of a test or subtest.
type test struct {
	verdict      string // pass, fail, skip; empty: it has not ended
	began, ended time.Time
	unchecked    bool     // it passed, and did not compare what it read
	messages     []string // of its failures
}

// results of a run.
type results struct {
	tests     map[string]*test
	order     []string // in which they began
	anomalies []string
	closing   []string // what the runner prints of the whole package

	mu    sync.Mutex
	kills []time.Time
	away  time.Duration // that a broker was missing, in all
}

// kill notes that a broker is killed now, and back that it serves again.
func (s *results) kill() (back func()) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kills = append(s.kills, now)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.away += time.Since(now)
	}
}

var (
	// message is a failure as package testing prints it.
	message = regexp.MustCompile(`^\s+\S+_test\.go:\d+: (.*)`)
	// remark is one that is not a failure.
	remark = regexp.MustCompile(`completed in |deleting (topic|group) |FAILED TESTING`)
	// anomaly is what the tests say of records that are not there, there twice, in another order or others than were sent.
	anomaly = regexp.MustCompile(`saw double offset.*|got \d+ keys != exp.*|got key \d+ != exp \d+|unexpected out of order key.*|produced offsets out of order.*|expected first produced record.*|consumed too much.*|lost records; .*|body not what was expected`)
	// unchecked is said by a test that gives up comparing what it read, and passes.
	unchecked = regexp.MustCompile(`skipping validation`)
)

// read takes the events in to their end, and copies to log what the tests print. It calls begin when the first test begins.
func (s *results) read(events io.Reader, log io.Writer, begin func()) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				e = event{Action: "output", Output: string(line)}
			}
			if _, err := io.WriteString(log, e.Output); err != nil {
				return err
			}
			if e.Action == "run" {
				begin()
			}
			s.add(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *results) add(e event) {
	if a := anomaly.FindString(e.Output); a != "" && !slices.Contains(s.anomalies, a) {
		s.anomalies = append(s.anomalies, a)
	}
	if e.Test == "" {
		if e.Action == "output" {
			s.closing = append(s.closing, strings.TrimRight(e.Output, "\n"))
		}
		return
	}
	t := s.tests[e.Test]
	if t == nil {
		t = &test{}
		s.tests[e.Test] = t
		s.order = append(s.order, e.Test)
	}
	switch e.Action {
	case "run":
		t.began = e.Time
	case "pass", "fail", "skip":
		t.verdict, t.ended = e.Action, e.Time
	case "output":
		if unchecked.MatchString(e.Output) {
			t.unchecked = true
		}
		if m := message.FindStringSubmatch(e.Output); m != nil && !remark.MatchString(m[1]) && len(t.messages) < 3 {
			t.messages = append(t.messages, m[1])
		}
	}
}

// counts are of tests and subtests. One that has not ended has failed; its parents have not ended either.
func (s *results) counts() (passed, failed, skipped int) {
	for _, t := range s.tests {
		switch t.verdict {
		case "pass":
			passed++
		case "skip":
			skipped++
		default:
			failed++
		}
	}
	return passed, failed, skipped
}

// print tells of each test that met a kill or did not pass, and then of the run.
func (s *results) print(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	verdicts, lenient := map[string]int{}, 0
	for _, name := range s.order {
		t := s.tests[name]
		verdict, ended := t.verdict, t.ended
		if verdict == "" || ended.IsZero() {
			verdict, ended = "not ended", time.Now()
		}
		verdicts[verdict]++
		kills := 0
		for _, k := range s.kills {
			if k.After(t.began) && k.Before(ended) {
				kills++
			}
		}
		note := ""
		if verdict == "pass" && t.unchecked {
			note = ", and did not compare what it read"
			lenient++
		}
		if kills > 0 || verdict != "pass" {
			fmt.Fprintf(w, "%-9s %s: %.1f s, %d kills%s\n", verdict, name, ended.Sub(t.began).Seconds(), kills, note)
		}
		if verdict != "pass" {
			for _, m := range t.messages {
				fmt.Fprintf(w, "          %.300s\n", m)
			}
		}
	}
	for i, a := range s.anomalies {
		if i == 20 {
			fmt.Fprintln(w, "records: ...")
			break
		}
		fmt.Fprintln(w, "records:", a)
	}
	fmt.Fprintf(w, "%d kills, %.1f s without a broker; ", len(s.kills), s.away.Seconds())
	for _, v := range slices.Sorted(maps.Keys(verdicts)) {
		fmt.Fprintf(w, "%d %s, ", verdicts[v], v)
	}
	fmt.Fprintf(w, "%d of those that passed did not compare what they read; %d reports of records lost, doubled, out of order or changed\n", lenient, len(s.anomalies))
	for _, line := range s.closing[max(0, len(s.closing)-4):] {
		fmt.Fprintln(w, "go test:", line)
	}
}
