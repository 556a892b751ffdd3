package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// costs is what the broker has used since it started: calls of read and write as the kernel counts them, times its threads
// went to sleep, and from its metrics allocations, their bytes, seconds of waiting for locks (of all goroutines together)
// and of the collector, and syncs of its log. Empty for the floor, which has no metrics.
func (s *server) costs() map[string]float64 {
	out := map[string]float64{}
	if s.admin == "" {
		return out
	}
	add := func(text, sep string, names map[string]string) {
		for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
			name, value, _ := strings.Cut(sc.Text(), sep)
			if as, ok := names[name]; ok {
				v, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
				out[as] += v
			}
		}
	}
	resp, err := http.Get("http://" + s.admin + "/metrics")
	if err != nil {
		return out
	}
	defer resp.Body.Close()
	var text strings.Builder
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		fmt.Fprintln(&text, sc.Text())
	}
	add(text.String(), " ", map[string]string{
		"go_memstats_mallocs_total": "mallocs", "go_memstats_alloc_bytes_total": "alloc", "varve_wal_sync_seconds_count": "syncs",
		"go_sync_mutex_wait_total_seconds_total": "locks", "go_cpu_classes_gc_total_cpu_seconds_total": "gc",
	})
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	if b, err := os.ReadFile(proc + "io"); err == nil {
		add(string(b), ":", map[string]string{"syscr": "reads", "syscw": "writes"})
	}
	tasks, _ := os.ReadDir(proc + "task")
	for _, t := range tasks {
		if b, err := os.ReadFile(proc + "task/" + t.Name() + "/status"); err == nil {
			add(string(b), ":", map[string]string{"voluntary_ctxt_switches": "sleeps"})
		}
	}
	return out
}

// runMatrix prints what one request costs the broker, over sizes, partitions and connections.
func runMatrix(tmp string) error {
	fmt.Printf("what one request costs the broker; %d s each; 5 in flight on each of at most 100 connections, 1 on each of 1,000\n\n", *seconds)
	fmt.Println("| request | bytes | partitions | connections | requests/s | MB/s | CPU us | of it GC us | reads | writes | sleeps | allocations | bytes allocated | waiting for locks us | requests a sync |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		for _, *parts = range []int{1, 100, 10_000} {
			if err := matrixOf(tmp, size); err != nil {
				return err
			}
		}
	}
	return nil
}

func matrixOf(tmp string, size int) error {
	raw, err := oneBatch(size)
	if err != nil {
		return err
	}
	s, err := start(tmp, false)
	if err != nil {
		return err
	}
	defer s.stop()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = kadm.NewClient(cl).CreateTopic(context.Background(), int32(*parts), 1, map[string]*string{"max.message.bytes": kmsg.StringPtr("16777216")}, "wire")
	if err != nil {
		return err
	}
	for _, *conns = range []int{1, 100, 1_000} {
		*depth = 5
		if *conns == 1_000 {
			*depth = 1
			if size > 16<<10 {
				continue // a gigabyte of requests in flight: nobody's load
			}
		}
		label := fmt.Sprintf("%d-%d-partitions-%d-connections", size, *parts, *conns)
		r, err := load(s, "produce-"+label, func(part int32) []byte { return produceFrame(part, raw) })
		if err != nil {
			return err
		}
		costsOf("produce", size, r, float64(r.requests)*float64(size))
		from, err := tail(s.addr, size)
		if err != nil {
			return err
		}
		if r, err = load(s, "fetch-"+label, func(part int32) []byte { return fetchFrame(part, from(part), size) }); err != nil {
			return err
		}
		costsOf("fetch", size, r, float64(r.bytes))
	}
	return nil
}

func costsOf(what string, size int, r result, bytes float64) {
	n := max(float64(r.requests), 1)
	seconds := r.took.Seconds()
	syncs := "-"
	if what == "produce" {
		syncs = fmt.Sprintf("%.1f", n/max(r.costs["syncs"], 1))
	}
	fmt.Printf("| %s | %d | %d | %d | %.0f | %.0f | %.1f | %.2f | %.2f | %.2f | %.2f | %.1f | %.0f | %.1f | %s |\n", what, size, *parts, *conns, n/seconds, bytes/1e6/seconds,
		1e6*r.cpu.Seconds()/n, 1e6*r.costs["gc"]/n, r.costs["reads"]/n, r.costs["writes"]/n, r.costs["sleeps"]/n,
		r.costs["mallocs"]/n, r.costs["alloc"]/n, 1e6*r.costs["locks"]/n, syncs)
}
