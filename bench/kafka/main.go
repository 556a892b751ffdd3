// Command kafka measures Varve and Apache Kafka side by side on this machine
// and writes a report: the workloads are a table of values in workloads.go, a
// runner measures them in interleaved blocks beside a floor, what was measured
// is held against a table of goals, and all of it becomes a page.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/varve/varve/internal/cluster"
)

type options struct {
	varve, only, dir, report, json string
	seconds, warmup                float64
	quick, long, plan, noMinio     bool
	cluster                        bool
	from                           string
	repeats                        int
	logGB, replayMB, limit         float64
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == bareCommand {
		fmt.Fprintln(os.Stderr, "kafka:", bareMain(os.Args[2:]))
		os.Exit(1)
	}
	cluster.Serve(os.Args[1:]) // where it is called as etcd, or as the S3 server, of a cluster
	var o options
	flag.StringVar(&o.varve, "varve", "", "Varve's binary (default: it is built)")
	flag.StringVar(&o.only, "only", "", "only these workloads, comma-separated: W2 means all of W2, W2-tuned that one")
	flag.StringVar(&o.dir, "dir", "", "where the brokers' data goes, about 35 GB at most (default: the temporary directory)")
	flag.StringVar(&o.report, "report", "", "the report (default bench/REPORT.md, or bench/REPORT-cluster.md; with -quick bench/REPORT-quick.md, with -only bench/REPORT-only.md)")
	flag.StringVar(&o.json, "json", "", "everything that was measured, as JSON (default: beside the report)")
	flag.Float64Var(&o.seconds, "seconds", 0, "length of a side (default 20, quick 4); some workloads take a part of it")
	flag.Float64Var(&o.warmup, "warmup", 0, "seconds of load after a broker's start (default 20, quick 4)")
	flag.BoolVar(&o.quick, "quick", false, "the form of ten minutes: short sides, one block, fewer rows")
	flag.BoolVar(&o.long, "long", false, "also the rows that do not fit into an hour: transactions and groups, 1,000, 4,000 and 20,000 partitions, numbers between")
	flag.BoolVar(&o.cluster, "cluster", false, "the workloads of clusters of three brokers, rather than of one broker")
	flag.StringVar(&o.from, "from", "", "measure nothing: put the JSON of earlier runs of one build together into a report, comma-separated, for machines that are not free for so long; -only leaves the others out")
	flag.BoolVar(&o.plan, "plan", false, "print what would run and about how long it takes")
	flag.BoolVar(&o.noMinio, "no-minio", false, "replay from a directory rather than from a MinIO server")
	flag.IntVar(&o.repeats, "repeats", 1, "blocks of a row that may be measured again because their floor moved")
	flag.Float64Var(&o.limit, "limit", 60, "minutes: no block is measured again where the run would take longer by that")
	flag.Float64Var(&o.logGB, "log-gb", 0, "size of the log that a restart after kill -9 meets (default 10, quick 1)")
	flag.Float64Var(&o.replayMB, "replay-mb", 0, "size of what is replayed (default 2048, quick 256)")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "kafka: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.from != "" {
		return together(o)
	}
	ws, err := choose(o.only, o.quick, o.long, o.cluster)
	if err != nil {
		return err
	}
	clusters := !slices.ContainsFunc(ws, func(w workload) bool { return !w.Cluster })
	if o.report == "" {
		o.report = filepath.Join("bench", reportName(clusters, o.quick, o.only != ""))
	}
	r := newRunner(o)
	if o.plan {
		for _, w := range ws {
			fmt.Printf("%-10s %-8s %d cases, %d blocks, sides of %s  %s\n", w.Key, r.plannedOf(w).Round(time.Second), len(w.Cases), w.blocks(o.quick), r.seconds(w), w.Title)
		}
		fmt.Println("about", r.planned(ws).Round(time.Minute))
		return nil
	}
	if err := r.install(ctx, o, ws); err != nil {
		return fmt.Errorf("installing what is measured: %w", err)
	}
	if r.dir, err = os.MkdirTemp(o.dir, "varve-bench-"); err == nil {
		r.dir, err = filepath.Abs(r.dir) // Kafka's programs have a working directory of their own
	}
	if err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	defer r.close()

	rep := &report{Cluster: clusters, Began: time.Now(), Machine: describeMachine(r.dir, r.varve), Commands: commands(), Form: r.form(clusters), Profiles: map[string]string{}, Varve: map[string]string{}}
	if strings.HasPrefix(rep.Machine.FileSystem, "tmpfs") {
		rep.Notes = append(rep.Notes, "**The data is on tmpfs: an fsync costs nothing there, and nothing here says anything about durable writes.**")
	}
	if files, err := raiseFiles(200_000); err != nil || files < 15_000 {
		rep.Notes = append(rep.Notes, fmt.Sprintf("Only %d files may be open (%v): the rows with thousands of partitions or connections may fail.", files, err))
	}
	r.say("%d workloads, about %s", len(ws), r.planned(ws).Round(time.Minute))
	failed := r.run(ctx, ws)
	for _, t := range r.tables {
		for _, name := range t.Setups {
			for _, s := range setups {
				if s.Name != name {
					continue
				}
				if s.Kafka != nil {
					rep.Profiles[s.Kafka.Name] = s.Kafka.Note
				}
				if s.Varve != nil {
					program := "varve dev"
					if s.Brokers > 0 {
						program = "varve broker"
					}
					rep.Varve[name] = "defaults of `" + program + "`, and " + strings.Join(slices.Concat(s.Varve, s.Notes), ", ")
				}
			}
		}
	}
	rep.Took, rep.Tables = time.Since(rep.Began).Round(time.Second).String(), r.tables
	rep.evaluate()
	if failed != nil {
		// What is there of it is kept, but not in the place of a whole one.
		o.report = strings.TrimSuffix(o.report, filepath.Ext(o.report)) + ".partial" + filepath.Ext(o.report)
		rep.Notes = append(rep.Notes, "**The run was ended before its end.**")
	}
	return errors.Join(failed, rep.save(o))
}

// reportName is the report's file where none is named: a run that is short, or of
// a part, does not take the place of a whole one.
func reportName(clusters, quick, part bool) string {
	name := "REPORT"
	if clusters {
		name += "-cluster"
	}
	if quick {
		name += "-quick"
	}
	if part {
		name += "-only"
	}
	return name + ".md"
}

func newRunner(o options) *runner {
	pick := func(v, full, quick float64) float64 {
		switch {
		case v > 0:
			return v
		case o.quick:
			return quick
		}
		return full
	}
	seconds := func(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }
	r := &runner{
		quick: o.quick, repeats: o.repeats,
		side: seconds(pick(o.seconds, 20, 4)), warmup: seconds(pick(o.warmup, 20, 4)),
		logGB: pick(o.logGB, 10, 1), replay: int64(pick(o.replayMB, 2048, 256)) << 20,
		running: map[string]*setupRun{}, floors: map[int]*floorServer{}, probes: map[string]float64{},
	}
	if o.quick {
		r.repeats = 0
	}
	r.limit = time.Duration(o.limit * float64(time.Minute))
	r.floor = max(min(r.side/6, 3*time.Second), time.Second)
	began := time.Now()
	r.say = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	return r
}

// install brings what is not there: Kafka, Varve's binary, MinIO where it is
// needed. Without MinIO the replay is from a directory.
func (r *runner) install(ctx context.Context, o options, ws []workload) (err error) {
	if r.jars, err = installKafka(ctx); err != nil {
		return err
	}
	if o.varve == "" {
		o.varve = filepath.Join("bin", "varve")
		cmd := exec.CommandContext(ctx, "make", "-s", "build")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("make build: %w (run from the top of the tree, or name a binary with -varve)", err)
		}
	}
	if r.varve, err = filepath.Abs(o.varve); err != nil {
		return err
	}
	if _, err := os.Stat(r.varve); err != nil {
		return err
	}
	for _, w := range ws {
		if w.ID() == "W11" && !o.noMinio {
			if r.minio, err = installMinIO(ctx); err != nil {
				return fmt.Errorf("MinIO: %w (-no-minio does without)", err)
			}
			break
		}
	}
	return nil
}

// form is how the run is laid out, in a sentence.
func (r *runner) form(clusters bool) string {
	f := fmt.Sprintf("Sides of %s in W1 and W2 and of a part of that elsewhere (each table says it), three blocks for the rows with a goal (one where the goal is about idling, starting or connections) and one for the others, a warm-up of %s after each start of Kafka and of a quarter of that for Varve, floors of %s.",
		r.side, r.warmup, r.floor)
	if clusters {
		f = fmt.Sprintf("Sides of %s and less, one block, a warm-up of %s after the start of Kafka's brokers and of a quarter of that for Varve's.", r.side, r.warmup)
	}
	if r.quick {
		f = fmt.Sprintf("**The quick form**: sides of %s and less, one block, no repeats, fewer rows, a warm-up of %s. It shows that everything works; its figures are rough.", r.side, r.warmup)
	}
	return f
}

// together makes a report of those of earlier runs.
func together(o options) error {
	if o.report == "" {
		return errors.New("-from needs -report")
	}
	wanted, err := choose(o.only, false, true, o.cluster)
	if err != nil {
		return err
	}
	var reports []*report
	for name := range strings.SplitSeq(o.from, ",") {
		b, err := os.ReadFile(strings.TrimSpace(name))
		if err != nil {
			return err
		}
		rep := &report{}
		if err := json.Unmarshal(b, rep); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if o.only != "" {
			var left []string
			rep.Tables = slices.DeleteFunc(rep.Tables, func(t *table) bool {
				out := !slices.ContainsFunc(wanted, func(w workload) bool { return w.Key == t.Key })
				if out {
					left = append(left, t.Key)
				}
				return out
			})
			if len(left) > 0 {
				rep.Notes = append(rep.Notes, "Measured in the same run and left out of this page: "+strings.Join(left, ", ")+".")
			}
		}
		reports = append(reports, rep)
	}
	all, err := joined(reports)
	if err != nil {
		return err
	}
	return all.save(o)
}

// commands is how to do it again.
func commands() []string {
	args := os.Args[1:]
	cmd := "go run ./bench/kafka"
	if len(args) > 0 {
		cmd += " " + strings.Join(args, " ")
	}
	return []string{"make build", cmd}
}

func (rep *report) save(o options) error {
	if err := os.MkdirAll(filepath.Dir(o.report), 0o755); err != nil {
		return err
	}
	f, err := os.Create(o.report)
	if err != nil {
		return err
	}
	if err := errors.Join(rep.writeMarkdown(f), f.Close()); err != nil {
		return err
	}
	if o.json == "" {
		o.json = strings.TrimSuffix(o.report, filepath.Ext(o.report)) + ".json"
	}
	j, err := os.Create(o.json)
	if err != nil {
		return err
	}
	if err := errors.Join(rep.writeJSON(j), j.Close()); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "the report:", o.report)
	return nil
}
