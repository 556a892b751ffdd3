package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// The bare programs are this executable, as they are that of the harness.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == bareCommand {
		if err := bareMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// All of a bucket arrives, at however many readers, and no more than was asked for.
func TestBareReplay(t *testing.T) {
	r := newRunner(options{})
	r.dir = t.TempDir()
	k := &bucket{dir: t.TempDir()}
	total := int64(0)
	for i, size := range []int64{1, 9 << 20, 8 << 20, 100} {
		if err := os.WriteFile(filepath.Join(k.dir, fmt.Sprint(i)), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		total += size
	}
	for _, c := range []struct {
		consumers   int
		limit, want int64
	}{{1, 1 << 40, total}, {3, 1 << 40, total}, {2, 5, 1 + 8<<20}} {
		parts, err := k.parts(t.Context(), c.limit)
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for _, p := range parts {
			sum += p.to - p.from
		}
		if sum != c.want {
			t.Errorf("parts of %d bytes up to %d, want %d", sum, c.limit, c.want)
		}
		arg, err := json.Marshal(bareStore{Dir: k.dir, Limit: c.limit})
		if err != nil {
			t.Fatal(err)
		}
		addr, p, err := r.startBare(t.Context(), "replay", string(arg))
		if err != nil {
			t.Fatal(err)
		}
		var arrived atomic.Int64
		errs := make(chan error, c.consumers)
		for range c.consumers {
			go func() { errs <- readBare(t.Context(), addr, &arrived) }()
		}
		for range c.consumers {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		p.Kill()
		if got := arrived.Load(); got != c.want {
			t.Errorf("%d bytes arrive at %d readers, want %d", got, c.consumers, c.want)
		}
		s, err := r.replayBare(t.Context(), k, c.consumers, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		if s[mReplay] <= 0 || s[mRSS] <= 0 {
			t.Errorf("%d consumers: %v", c.consumers, s)
		}
		for name := range s {
			metricOf(name)
		}
	}
	if _, err := r.replayBare(t.Context(), &bucket{dir: t.TempDir()}, 1, 1<<40); err == nil {
		t.Error("an empty bucket is replayed")
	}
}

// A run that is short, or of a part, leaves the report of a whole one alone.
func TestReportNames(t *testing.T) {
	seen := map[string]bool{}
	for _, clusters := range []bool{false, true} {
		for _, quick := range []bool{false, true} {
			for _, part := range []bool{false, true} {
				name := reportName(clusters, quick, part)
				if seen[name] || strings.Contains(name, "cluster") != clusters {
					t.Errorf("clusters %v, quick %v, part %v: %s", clusters, quick, part, name)
				}
				seen[name] = true
			}
		}
	}
	if got := reportName(false, false, false); got != "REPORT.md" {
		t.Errorf("a whole run writes %s", got)
	}
}

// A bare restart needs a log.
func TestBareRestart(t *testing.T) {
	r := newRunner(options{})
	r.dir = t.TempDir()
	log := t.TempDir()
	if _, _, err := r.startBare(t.Context(), "restart", log); err == nil {
		t.Error("restarted on nothing")
	}
	for i := range 2 {
		if err := os.WriteFile(filepath.Join(log, fmt.Sprintf("%016x.wal", i)), make([]byte, 3<<20+5), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, p, err := r.startBare(t.Context(), "restart", log)
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
}
