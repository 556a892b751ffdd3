// Command franzgo runs franz-go's own integration tests of its client, unmodified, against a broker, or against brokers
// that are killed with SIGKILL all the while: what `go test github.com/twmb/franz-go/pkg/kgo` says, what of it is about
// records that were lost, doubled or put out of order, and which tests met how many kills. The suite's other variables
// (KGO_TEST_CHAOS=1, KGO_LOG_LEVEL) are taken from the environment. To be started in the root of the repository.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/varve/varve/internal/cluster"
)

const suite = "github.com/twmb/franz-go/pkg/kgo"

// etl are the tests that go on over a broker's end: they produce, and chains of groups copy from topic to topic, with
// members that come and go. Those of share groups are not among them.
const etl = "^(TestGroupETL|TestTxnEtl)$"

type options struct {
	varve, against, run string
	records, count      int
	every, limit        time.Duration
	refuse, keep        bool
}

func main() {
	cluster.Serve(os.Args[1:])
	var o options
	flag.StringVar(&o.varve, "varve", "bin/varve", "the broker's binary")
	flag.StringVar(&o.against, "against", "varve", "varve: one `varve dev`; cluster: the three brokers of make cluster-up, with three replicas; kafka: Apache Kafka, for calibration")
	flag.StringVar(&o.run, "run", "", "the tests, as for go test; the default is all, and with --kill-every "+etl)
	flag.IntVar(&o.records, "records", 50_000, "KGO_TEST_RECORDS, that each test copies")
	flag.IntVar(&o.count, "count", 1, "how many times, in a row, against the same brokers")
	flag.DurationVar(&o.every, "kill-every", 0, "kill a broker this long after the last one that was killed serves again, one after the other; 0: never")
	flag.BoolVar(&o.refuse, "refuse", false, "a broker that is away refuses connections; without this a proxy in front of it accepts them, and they wait until it is back")
	flag.DurationVar(&o.limit, "limit", 15*time.Minute, "of each run: tests that have not ended then have failed")
	flag.BoolVar(&o.keep, "keep", false, "keep the working directory, with what the tests and brokers printed and the data, also when all passed")
	flag.Parse()
	if flag.NArg() > 0 || kinds[o.against] == nil {
		flag.Usage()
		os.Exit(2)
	}
	if o.run == "" && o.every > 0 {
		o.run = etl
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	passed, failed, skipped, err := o.all(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "franzgo:", err)
		failed++
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// all does all runs, and adds up their tests and subtests.
func (o options) all(ctx context.Context) (passed, failed, skipped int, err error) {
	if o.varve, err = filepath.Abs(o.varve); err != nil {
		return 0, 0, 0, err
	}
	dir, err := os.MkdirTemp("", "varve-franzgo-")
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() {
		if !o.keep && err == nil && failed == 0 {
			err = os.RemoveAll(dir)
			return
		}
		fmt.Println("working directory:", dir)
	}()
	b, err := kinds[o.against](ctx, o, dir)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for i := range o.count {
		s, err := o.once(ctx, b, filepath.Join(dir, fmt.Sprintf("suite-%d.log", i+1)))
		if s != nil {
			s.print(os.Stdout)
			p, f, k := s.counts()
			passed, failed, skipped = passed+p, failed+f, skipped+k
		}
		if err != nil {
			return passed, failed, skipped, fmt.Errorf("run %d: %w", i+1, err)
		}
	}
	return passed, failed, skipped, nil
}

// once does one run, with a log of all that it prints. Tests that fail are no error.
func (o options) once(ctx context.Context, b *brokers, log string) (*results, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	args := []string{"test", "-json", "-count=1", "-timeout", o.limit.String()}
	if o.run != "" {
		args = append(args, "-run", o.run)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, suite)...)
	set := map[string]string{"KGO_SEEDS": b.seeds, "KGO_TEST_RF": strconv.Itoa(b.replicas), "KGO_TEST_RECORDS": strconv.Itoa(o.records)}
	cmd.Env = os.Environ()
	var shown []string
	for _, name := range slices.Sorted(maps.Keys(set)) {
		shown = append(shown, name+"="+set[name])
	}
	cmd.Env = append(cmd.Env, shown...)
	// The tests are a process of their own, that would go on without the one that started them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = f
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	fmt.Printf("%s go %s\n", strings.Join(shown, " "), strings.Join(cmd.Args[1:], " "))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &results{tests: map[string]*test{}}
	var killing sync.WaitGroup
	begin := sync.OnceFunc(func() { // not before the tests are built
		if o.every > 0 {
			killing.Go(func() {
				if err := b.killAll(ctx, o.every, s.kill); err != nil {
					cancel(err)
				}
			})
		}
	})
	err = s.read(out, f, begin)
	ended := cmd.Wait()
	if cause := context.Cause(ctx); cause != nil {
		ended = cause
	}
	cancel(nil)
	killing.Wait()
	var exit *exec.ExitError
	if errors.As(ended, &exit) && len(s.tests) > 0 {
		ended = nil // some test failed, which the results tell
	}
	return s, errors.Join(err, ended)
}

// killAll kills one broker after the other and starts it again, until ctx is done; then all are there.
func (b *brokers) killAll(ctx context.Context, every time.Duration, killed func() (back func())) error {
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
		next := b.list[i%len(b.list)]
		back := killed()
		if err := next.kill(); err != nil {
			return err
		}
		// Also when the tests have just ended: the next run begins with all brokers.
		if err := next.start(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("%s does not come back: %w", next.name, err)
		}
		back()
	}
}
