// Command chaos has faults happen to a cluster of processes under load, and then proves that clients were told and shown
// nothing that the cluster promises not to do: three brokers with all replicas on each, a spare one, two compaction workers,
// three members of etcd and an S3 server, killed, stopped, cut off, emptied, without power. What is checked is in package history; README.md
// has the table of faults.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/internal/skew"
	"github.com/varve/varve/interop/chaos/history"
)

const (
	brokers    = 3 // with replicas of all partitions
	spare      = 4 // a broker that has none, but for what faults move to it
	workers    = 2 // of compaction
	partitions = 4 // of each topic
	// patience bounds everything that has to come about when the faults are over. What takes longer hangs.
	patience = 3 * time.Minute
	// processorsTake is what processors may take beyond what a partition that clients write to may take: one that was lost is
	// waited for by its group as long as its session (6 s) and then a rebalance (10 s) last, and its transaction (10 s).
	processorsTake = 26 * time.Second
)

// lags are replica.lag.time.max.ms: with the first a follower that was cut off leaves the in-sync replicas in time for what
// follows from it; the other is the default, with which it mostly is back before.
var lags = [2]string{"3000", "30000"}

// Late is what is said of a partition that takes longer than it may to be written to again.
const Late history.Kind = "not acknowledged again in time"

type options struct {
	varve   string
	rounds  int
	lasts   time.Duration
	seed    uint64
	breaks  string
	back    time.Duration // within which everything has to be acknowledged again
	keep    time.Duration // beyond the faults; logs are kept of a partition that was without acknowledgements for longer
	network *network
	clock   bool // the clocks of brokers and workers can be set

	lag atomic.Int32 // of lags, for brokers that start
}

func main() {
	gated(os.Args[1:])
	cluster.Serve(os.Args[1:])
	varve := flag.String("varve", "bin/varve", "the brokers' binary")
	rounds := flag.Int("rounds", 5, "how many rounds")
	lasts := flag.Duration("faults-for", 40*time.Second, "how long faults happen in a round")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "decides which faults come, when and for how long")
	names := flag.String("faults", "", "which ones, separated by commas; empty: all")
	breaks := flag.String("break", "", "what clients do wrong, to see it found: acks, isolation")
	back := flag.Duration("back-within", 20*time.Second, "after the last fault every partition that clients write to has to be acknowledged again within this; what processors write to, 26s later")
	keep := flag.Duration("keep-logs-of", 20*time.Second, "keep the logs of a run in which a partition was without acknowledgements for longer than this beyond the longest fault that lasted meanwhile")
	clock := flag.Bool("clock", false, "build brokers and workers whose clock can be set, which takes minutes the first time, and have it jump")
	flag.Parse()
	if *breaks != "" && *breaks != breaksAcks && *breaks != breaksIsolation {
		fmt.Fprintf(os.Stderr, "chaos: there is no --break %q\n", *breaks)
		os.Exit(2)
	}
	if os.Getenv(insideNetwork) == "" {
		code, ok, why := enterNetwork()
		if ok {
			os.Exit(code)
		}
		fmt.Printf("chaos: no network namespaces here (%v): all processes are on 127.0.0.1, and the network has no faults\n", why)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, &options{varve: *varve, rounds: *rounds, lasts: *lasts, seed: *seed, breaks: *breaks, back: *back, keep: *keep, clock: *clock}, *names)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		if code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

func run(ctx context.Context, o *options, names string) (code int, err error) {
	if o.varve, err = filepath.Abs(o.varve); err != nil {
		return 2, err
	}
	if os.Getenv(insideNetwork) != "" {
		o.network, err = newNetwork([]string{"broker-1", "broker-2", "broker-3", "broker-4", "compactor-1", "compactor-2", "etcd-1", "etcd-2", "etcd-3", "s3"})
		if err != nil {
			return 2, err
		}
		defer o.network.close()
	}
	dir, err := os.MkdirTemp("", "varve-chaos-")
	if err != nil {
		return 2, err
	}
	fmt.Printf("chaos: seed %d, in %s\n", o.seed, dir)
	done, anomalies, beyond, err := o.run(ctx, dir, names)
	switch {
	case err != nil || anomalies > 0:
	case beyond > o.keep:
		err = keepLogs(dir)
		fmt.Printf("chaos: the logs are kept, in %s: a partition was without an acknowledgement for %.1fs longer than any fault lasted meanwhile\n", dir, beyond.Seconds())
	default:
		err = os.RemoveAll(dir)
	}
	fmt.Printf("chaos: %d rounds, %d anomalies\n", done, anomalies)
	switch {
	case anomalies > 0:
		return 1, fmt.Errorf("seed %d; histories, logs and data are in %s", o.seed, dir)
	case err != nil:
		return 1, fmt.Errorf("seed %d: %w; logs and data are in %s", o.seed, err, dir)
	}
	return 0, nil
}

// load is the machine's load average of the last minute, 0 where there is none.
func load() (l float64) {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(b), &l)
	}
	return l
}

// slowness is how many times longer everything may take than on a machine that does little else: a quarter of what waits for
// each processor. The cluster alone is a load of up to four for two of them.
func slowness() float64 { return max(1, load()/float64(4*runtime.NumCPU())) }

// keepLogs removes everything else.
func keepLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".log" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// lagIn is which of lags a round has. Neighbours have the same, so that it is not always those that read from the bucket.
func (o *options) lagIn(round int) int32 { return int32((o.seed + uint64(round)/2) % 2) }

// choose returns the faults that have these names, or without names all that can be had here.
func (n *nemesis) choose(names string) (list []fault, err error) {
	for _, name := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' }) {
		i := slices.IndexFunc(faults, func(f fault) bool { return f.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no fault %q", name)
		}
		if wants := n.lacks(faults[i]); wants != "" {
			return nil, fmt.Errorf("fault %q wants %s", name, wants)
		}
		list = append(list, faults[i])
	}
	if names == "" {
		list = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return n.lacks(f) != "" })
	}
	return list, nil
}

// lacks is what a fault wants and is not to be had here.
func (n *nemesis) lacks(f fault) string {
	switch {
	case f.net && n.net == nil:
		return "network namespaces"
	case f.disk && n.disks == nil:
		return "disks of its own"
	case f.fsync && n.fsyncs == nil:
		return "fsyncs that can be held"
	case f.clock && n.clocks == nil:
		return "--clock"
	}
	return ""
}

func (o *options) run(ctx context.Context, dir, names string) (done, anomalies int, beyond time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, 0, err
	}
	o.lag.Store(o.lagIn(1))
	co := cluster.Options{
		Dir: dir, FreePorts: true, Brokers: spare, Workers: workers, Ambiguous: true, Varve: []string{o.varve}, Servers: []string{self},
		Set: []string{
			"default.replication.factor=3", "min.insync.replicas=2",
			"offsets.topic.replication.factor=3", "offsets.topic.num.partitions=4",
			"transaction.state.log.replication.factor=3", "transaction.state.log.min.isr=2", "transaction.state.log.num.partitions=4",
			"wal.segment.bytes=4194304", "wal.max.bytes=268435456", "memory.max.bytes=268435456", "remote.flush.interval.ms=1000",
			// A client that ends while its coordinator is away is waited for as long as this.
			"group.consumer.min.session.timeout.ms=6000", "group.consumer.session.timeout.ms=6000",
			"group.consumer.min.heartbeat.interval.ms=500", "group.consumer.heartbeat.interval.ms=500",
			"group.initial.rebalance.delay.ms=0", "auto.create.topics.enable=false", "log.level=debug",
			// A worker's claims end while it is stopped, and all that nothing names is gone soon after the last fault.
			"log.cleaner.backoff.ms=500", "log.cleaner.session.timeout.ms=2000", "log.cleaner.dedupe.buffer.size=1048576",
			"remote.delete.grace.ms=2000", "remote.sweep.interval.ms=3000", "log.segment.delete.delay.ms=1000",
		},
		SetOf: func(id int32) []string {
			// What goes around the page cache is not lost with the power of such a disk, fsynced or not: one broker does so.
			return []string{fmt.Sprintf("broker.rack=zone-%d", id), fmt.Sprintf("wal.direct.io=%v", id == 1), "replica.lag.time.max.ms=" + lags[o.lag.Load()]}
		},
	}
	if o.network != nil {
		co.Place = o.network.place
	}
	f, err := newFsyncs(dir)
	if err != nil {
		fmt.Printf("chaos: fsyncs cannot be held here (%v), and none is slow\n", err)
	} else {
		defer f.close()
		co.Within = func(name string) []string {
			if strings.HasPrefix(name, "broker-") || strings.HasPrefix(name, "etcd-") {
				return f.begin(name)
			}
			return nil
		}
	}
	clockOf := func(name string) string { return filepath.Join(dir, name+".clock") }
	if o.clock {
		built := filepath.Join(dir, "varve")
		fmt.Println("chaos: building brokers whose clock can be set")
		if err := skew.Build(ctx, built, "./cmd/varve"); err != nil {
			return 0, 0, 0, err
		}
		co.Varve = []string{built}
		co.EnvOf = func(name string) []string { return []string{skew.Env + "=" + clockOf(name)} }
	}
	c, err := cluster.New(co)
	if err != nil {
		return 0, 0, 0, err
	}
	n := &nemesis{c: c, net: o.network, fsyncs: f, varve: o.varve, rnd: rand.New(rand.NewPCG(o.seed, 1)), busy: map[string]bool{}, rare: names == ""}
	if o.network != nil {
		if n.disks, err = newDisks(c, dir); err != nil {
			fmt.Printf("chaos: no disks of their own for the brokers here (%v), and none of their faults\n", err)
		} else {
			defer n.disks.close()
		}
	}
	if o.clock {
		n.clocks = map[string]*skew.Clock{}
		for _, s := range c.Servers() {
			if s == c.S3 || slices.Contains(c.Etcd, s) {
				continue
			}
			if n.clocks[s.Name], err = skew.New(clockOf(s.Name)); err != nil {
				return 0, 0, 0, err
			}
			defer n.clocks[s.Name].Close()
		}
	}
	if n.list, err = n.choose(names); err != nil {
		return 0, 0, 0, err
	}
	if _, err := c.Up(ctx); err != nil {
		return 0, 0, 0, err
	}
	defer func() {
		for _, s := range n.c.Servers() {
			if s.Running() {
				s.Kill()
			}
		}
	}()
	began := time.Now()
	note := func(format string, args ...any) {
		fmt.Printf("%7.1fs %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Bootstrap()...), kgo.MetadataMinAge(100*time.Millisecond), kgo.DialTimeout(2*time.Second),
		kgo.RequestTimeoutOverhead(3*time.Second))
	if err != nil {
		return 0, 0, 0, err
	}
	defer cl.Close()
	n.adm, n.note = kadm.NewClient(cl), note
	if err := n.command(ctx, "broker", "drain", fmt.Sprint(spare)); err != nil {
		return 0, 0, 0, err
	}
	for round := 1; round <= o.rounds && ctx.Err() == nil; round++ {
		if lag := o.lagIn(round); o.lag.Swap(lag) != lag {
			all, _ := allBrokers(n, ctx)
			if err := restarted(n, ctx, all, 0); err != nil {
				return done, anomalies, beyond, err
			}
		}
		note("round %d, replica.lag.time.max.ms=%s", round, lags[o.lag.Load()])
		l := newLedger()
		found, err := o.round(ctx, n, l, cl, round)
		if ctx.Err() != nil {
			return done, anomalies, beyond, errors.Join(err, ctx.Err())
		}
		if err != nil {
			// That something hangs or ends is found here, and so is what of the history is wrong already.
			anomalies++
			note("round %d: ANOMALY: stuck or ended: %v", round, err)
		}
		kinds := map[history.Kind]int{}
		for _, a := range found {
			if kinds[a.Kind]++; kinds[a.Kind] <= 5 {
				note("round %d: ANOMALY: %v", round, a)
			}
		}
		for _, k := range slices.Sorted(maps.Keys(kinds)) {
			note("round %d: %s: %d times", round, k, kinds[k])
		}
		anomalies += len(found)
		note("round %d: %s", round, l.figures())
		note("round %d: longest without an acknowledgement:%s", round, l.longest())
		lines, worst := l.gaps(began)
		beyond = max(beyond, worst)
		for i, line := range lines {
			if i == maxShown {
				note("round %d: and more", round)
				break
			}
			note("round %d: %s", round, line)
		}
		done++
		if anomalies > 0 {
			file := filepath.Join(dir, fmt.Sprintf("history-%d.json", round))
			if err := l.write(file); err != nil {
				note("%v", err)
			}
			return done, anomalies, beyond, nil
		}
	}
	return done, anomalies, beyond, ctx.Err()
}

// round has faults happen while clients work, waits until all is well again, and looks at what they were told.
func (o *options) round(ctx context.Context, n *nemesis, l *ledger, cl *kgo.Client, round int) ([]history.Anomaly, error) {
	adm := n.adm
	w := newWorkload(l, n.c.Bootstrap(), round, o.seed, partitions, n.note)
	w.breaks = o.breaks
	// Every other round its records are read from the bucket, as soon as they are there.
	config := map[string]*string{}
	if round%2 == 0 {
		config["local.retention.bytes"] = kadm.StringPtr("1")
	}
	// Those of the compacted topic always, for what is on a broker's disk is not compacted.
	compact := map[string]*string{
		"cleanup.policy": kadm.StringPtr("compact"), "local.retention.bytes": kadm.StringPtr("1"), "segment.bytes": kadm.StringPtr("1048576"),
		"min.cleanable.dirty.ratio": kadm.StringPtr("0.01"), "delete.retention.ms": kadm.StringPtr("10000"),
	}
	err := child.Eventually(ctx, patience, func() error {
		for _, t := range w.topics() {
			c := config
			if t == w.kept {
				c = compact
			}
			// It may be there, by an attempt that was not answered.
			if _, err := adm.CreateTopic(ctx, partitions, brokers, c, t); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
				return err
			}
		}
		topics, err := adm.ListTopics(ctx, w.in)
		w.inID = topics[w.in].ID
		return errors.Join(err, topics.Error())
	})
	if err != nil {
		return nil, fmt.Errorf("create topics: %w", err)
	}
	w.start()
	end := sync.OnceFunc(func() {
		w.feeds.Store(true)
		w.producers.Wait()
		w.reads.Store(true)
		w.groups.Wait()
		w.ends.Store(true)
		w.readers.Wait()
	})
	defer end()

	watch, watched := context.WithCancel(ctx)
	fallen := make(chan error, 1)
	go func() {
		defer close(fallen)
		for watch.Err() == nil {
			if err := n.fallen(); err != nil {
				fallen <- err
				return
			}
			l.weigh()
			wait(watch, 200*time.Millisecond)
		}
	}()
	defer watched()
	if err := child.Eventually(ctx, patience, l.silent); err != nil {
		return nil, fmt.Errorf("before any fault: %w", err)
	}
	n.l, n.in = l, w.in
	if err := n.run(ctx, o.lasts); err != nil {
		return nil, err
	}

	// All is healed. Every partition takes records again, soon, and every replica catches up.
	healed := time.Now()
	l.heal()
	if err := child.Eventually(ctx, patience, l.silent); err != nil {
		return nil, fmt.Errorf("%s after the last fault: %w", patience, err)
	}
	var late []history.Anomaly
	back := ""
	slow := slowness()
	for _, t := range w.topics() {
		within := o.back
		if t == w.out {
			within += processorsTake
		}
		within = time.Duration(float64(within) * slow)
		worst, took := l.recovered(t)
		if took > within {
			late = append(late, history.Anomaly{Kind: Late, Where: worst, Offset: -1, What: fmt.Sprintf("%.1fs after the last fault; it may take %s", took.Seconds(), within)})
		}
		back += fmt.Sprintf(" %s %.1fs", t, took.Seconds())
	}
	if _, err := inSync(ctx, adm); err != nil {
		return late, fmt.Errorf("%s after the last fault: %w", patience, err)
	}
	n.note("after the last fault all partitions acknowledge again:%s; all replicas are in sync after %.1fs; load average %.1f", back, time.Since(healed).Seconds(), load())
	quiet := time.Now()
	w.feeds.Store(true)
	w.producers.Wait()
	if _, err := w.settled(ctx, adm, cl); err != nil {
		return late, fmt.Errorf("%s after the last record: %w", patience, err)
	}
	end()
	if e := w.unfinished.Load(); e != nil {
		return late, *e
	}
	topics, err := inSync(ctx, adm)
	if err != nil {
		return late, err
	}
	n.note("everything is processed, and no transaction is open, after %.1fs", time.Since(quiet).Seconds())
	if err := w.compacted(ctx, cl, topics); err != nil {
		return late, fmt.Errorf("%s after the last record: %w", patience, err)
	}
	reads := time.Now()
	var audit sync.WaitGroup
	var audited error
	audit.Go(func() { audited = n.verify(ctx) })
	err = l.readBack(ctx, cl, topics, slices.Concat(w.topics(), internal))
	audit.Wait()
	if err != nil {
		return late, errors.Join(fmt.Errorf("reading back: %w", err), audited)
	}
	if audited != nil {
		return append(late, history.Check(&l.h)...), audited
	}
	n.note("everything is read, and in the bucket is what the manifests name and nothing else, after %.1fs", time.Since(reads).Seconds())
	watched()
	if err := <-fallen; err != nil {
		return late, err
	}
	found := append(late, history.Check(&l.h)...)
	if _, err := adm.DeleteTopics(ctx, w.topics()...); err != nil {
		return found, fmt.Errorf("delete topics: %w", err)
	}
	return found, nil
}
