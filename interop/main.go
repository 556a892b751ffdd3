// Command interop runs the clients and command-line tools that others wrote,
// unmodified, against a broker, and compares what comes back with what was
// sent. It installs them from their registries into a cache.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/varve/varve/internal/child"
)

// parts are what --only and --skip name, in the order in which they are printed in the usage text.
var parts = []string{"java", "kafka-python", "confluent", "kafkajs", "platformatic", "kcat", "tools", "streams", "connect", "compaction", "restore", "minio"}

func main() {
	varve := flag.String("varve", "bin/varve", "the broker's binary")
	bootstrap := flag.String("bootstrap", "", "test the broker at HOST:PORT instead of starting one (for calibration: Apache Kafka)")
	only := flag.String("only", "", "only these, comma-separated: "+strings.Join(parts, ", "))
	skip := flag.String("skip", "", "all but these")
	keep := flag.Bool("keep", false, "keep the working directory: plans, logs of the programs, the broker's data and log")
	verbose := flag.Bool("v", false, "print every check by itself")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "interop: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	chosen, err := choose(*only, *skip)
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rep := &report{start: time.Now(), verbose: *verbose}
	if err := run(ctx, rep, chosen, *varve, *bootstrap, *keep); err != nil {
		rep.fail("interop", "runs", err)
	}
	passed, failed := rep.finish()
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// startVarve runs a broker of its own on free ports.
func startVarve(ctx context.Context, varve, dir string, settings ...string) (*child.Varve, error) {
	return child.StartVarve(ctx, varve, dir, append([]string{"wal.max.bytes=4294967296"}, settings...)...)
}

func choose(only, skip string) (map[string]bool, error) {
	chosen := map[string]bool{}
	for _, p := range parts {
		chosen[p] = only == ""
	}
	for list, on := range map[string]bool{only: true, skip: false} {
		for name := range strings.SplitSeq(list, ",") {
			if name == "" {
				continue
			}
			if !slices.Contains(parts, name) {
				return nil, fmt.Errorf("there is no %q; there are: %s", name, strings.Join(parts, ", "))
			}
			chosen[name] = on
		}
	}
	return chosen, nil
}

func run(ctx context.Context, rep *report, chosen map[string]bool, varve, bootstrap string, keep bool) error {
	varve, err := filepath.Abs(varve)
	if err != nil {
		return err
	}
	for _, part := range []string{"compaction", "restore", "minio"} { // which start brokers of their own
		if bootstrap != "" && chosen[part] {
			chosen[part] = false
			rep.skip(part, "object storage", "the broker under test is another's")
		}
	}
	if bootstrap == "" {
		if _, err := os.Stat(varve); err != nil {
			return fmt.Errorf("%w (make build makes it)", err)
		}
	}
	installed, err := installAll(ctx, chosen)
	if err != nil {
		return fmt.Errorf("installing what is tested: %w", err)
	}
	rep.start = time.Now()
	work, err := os.MkdirTemp("", "varve-interop-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Println("working directory:", work)
	} else {
		defer os.RemoveAll(work)
	}
	h := &harness{report: rep, installed: installed, work: work, boot: bootstrap, slots: make(chan struct{}, 3), started: time.Now().UnixMilli()}
	var broker *child.Varve
	if bootstrap == "" {
		broker, err = startVarve(ctx, varve, filepath.Join(work, "broker"))
		if err != nil {
			return err
		}
		defer broker.Stop()
		h.boot = broker.Addr
	}
	if err := h.prepare(ctx, chosen); err != nil {
		return fmt.Errorf("preparing the broker at %s: %w", h.boot, err)
	}
	defer h.admin.Close()

	var wg sync.WaitGroup
	wg.Go(func() { h.clients(ctx, chosen) })
	if chosen["tools"] {
		wg.Go(func() { h.tools(ctx) })
	}
	if chosen["streams"] {
		wg.Go(func() { h.streams(ctx) })
	}
	if chosen["connect"] {
		wg.Go(func() { h.connect(ctx) })
	}
	if chosen["compaction"] {
		wg.Go(func() { h.compaction(ctx, varve) })
	}
	if chosen["restore"] {
		wg.Go(func() { h.restore(ctx, varve) })
	}
	if chosen["minio"] {
		wg.Go(func() { h.minio(ctx, varve) })
	}
	wg.Wait()
	if broker != nil {
		rep.check("varve", "SIGTERM drains and exits 0", broker.Stop)
	}
	return ctx.Err()
}

// report counts and prints. A check named "what / item" is printed together with its siblings, on one
// line: "what: item item item".
type report struct {
	mu             sync.Mutex
	start          time.Time
	verbose        bool
	passed, failed int
	pending        []*siblings
}

type siblings struct {
	client, what string
	items        []string
}

func (r *report) check(client, name string, f func() error) bool {
	if err := f(); err != nil {
		r.fail(client, name, err)
		return false
	}
	r.ok(client, name)
	return true
}

func (r *report) ok(client, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed++
	what, item, grouped := strings.Cut(name, " / ")
	if !grouped || r.verbose {
		r.print("ok", client, name)
		return
	}
	for _, s := range r.pending {
		if s.client == client && s.what == what {
			s.items = append(s.items, item)
			return
		}
	}
	r.pending = append(r.pending, &siblings{client, what, []string{item}})
}

// flush prints the collected siblings of a client.
func (r *report) flush(client string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = slices.DeleteFunc(r.pending, func(s *siblings) bool {
		if client != "" && s.client != client {
			return false
		}
		r.print("ok", s.client, s.what+": "+strings.Join(s.items, " "))
		return true
	})
}

func (r *report) fail(client, name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	r.print("FAIL", client, name+": "+strings.TrimSpace(err.Error()))
}

func (r *report) skip(client, name, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.print("skip", client, name+": "+why)
}

func (r *report) print(verdict, client, text string) {
	fmt.Printf("%6.1fs %-4s %-12s %s\n", time.Since(r.start).Seconds(), verdict, client, text)
}

func (r *report) finish() (passed, failed int) {
	r.flush("")
	return r.passed, r.failed
}
