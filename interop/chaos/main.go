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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/interop/chaos/history"
)

const (
	brokers    = 3 // with replicas of all partitions
	spare      = 4 // a broker that has none, but for what faults move to it
	workers    = 2 // of compaction
	partitions = 4 // of each topic
	// patience bounds everything that has to come about when the faults are over. What takes longer hangs.
	patience = 3 * time.Minute
)

type options struct {
	varve   string
	rounds  int
	lasts   time.Duration
	seed    uint64
	breaks  string
	network *network
}

func main() {
	cluster.Serve(os.Args[1:])
	varve := flag.String("varve", "bin/varve", "the brokers' binary")
	rounds := flag.Int("rounds", 5, "how many rounds")
	lasts := flag.Duration("faults-for", 40*time.Second, "how long faults happen in a round")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "decides which faults come, when and for how long")
	names := flag.String("faults", "", "which ones, separated by commas; empty: all")
	breaks := flag.String("break", "", "what clients do wrong, to see it found: acks, isolation")
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
	code, err := run(ctx, options{varve: *varve, rounds: *rounds, lasts: *lasts, seed: *seed, breaks: *breaks}, *names)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		if code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

func run(ctx context.Context, o options, names string) (code int, err error) {
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
	done, anomalies, err := o.run(ctx, dir, names)
	if err == nil && anomalies == 0 {
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

func choose(names string, net, disk bool) (list []fault, err error) {
	for _, name := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' }) {
		i := slices.IndexFunc(faults, func(f fault) bool { return f.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no fault %q", name)
		}
		if faults[i].net && !net {
			return nil, fmt.Errorf("fault %q wants network namespaces", name)
		}
		if faults[i].disk && !disk {
			return nil, fmt.Errorf("fault %q wants disks of its own", name)
		}
		list = append(list, faults[i])
	}
	if names == "" {
		list = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return f.net && !net || f.disk && !disk })
	}
	return list, nil
}

func (o *options) run(ctx context.Context, dir, names string) (done, anomalies int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	co := cluster.Options{
		Dir: dir, FreePorts: true, Brokers: spare, Workers: workers, Varve: []string{o.varve}, Servers: []string{self},
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
			return []string{fmt.Sprintf("broker.rack=zone-%d", id), fmt.Sprintf("wal.direct.io=%v", id == 1)}
		},
	}
	if o.network != nil {
		co.Place = o.network.place
	}
	c, err := cluster.New(co)
	if err != nil {
		return 0, 0, err
	}
	n := &nemesis{c: c, net: o.network, varve: o.varve, rnd: rand.New(rand.NewPCG(o.seed, 1)), busy: map[string]bool{}}
	if o.network != nil {
		if n.disks, err = newDisks(c, dir); err != nil {
			fmt.Printf("chaos: no disks of their own for the brokers here (%v), and none of their faults\n", err)
		} else {
			defer n.disks.close()
		}
	}
	if n.list, err = choose(names, o.network != nil, n.disks != nil); err != nil {
		return 0, 0, err
	}
	if _, err := c.Up(ctx); err != nil {
		return 0, 0, err
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
		return 0, 0, err
	}
	defer cl.Close()
	n.adm, n.note = kadm.NewClient(cl), note
	if err := n.command(ctx, "broker", "drain", fmt.Sprint(spare)); err != nil {
		return 0, 0, err
	}
	for round := 1; round <= o.rounds && ctx.Err() == nil; round++ {
		note("round %d", round)
		l := newLedger()
		found, err := o.round(ctx, n, l, cl, round)
		if ctx.Err() != nil {
			return done, anomalies, errors.Join(err, ctx.Err())
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
		note("round %d: longest without an acknowledgement:%s", round, l.gaps())
		done++
		if anomalies > 0 {
			file := filepath.Join(dir, fmt.Sprintf("history-%d.json", round))
			if err := l.write(file); err != nil {
				note("%v", err)
			}
			return done, anomalies, nil
		}
	}
	return done, anomalies, ctx.Err()
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
			wait(watch, 200*time.Millisecond)
		}
	}()
	defer watched()
	if err := child.Eventually(ctx, patience, func() error { return l.silent(time.Time{}) }); err != nil {
		return nil, fmt.Errorf("before any fault: %w", err)
	}
	if err := n.run(ctx, o.lasts); err != nil {
		return nil, err
	}

	// All is healed. Every partition takes records again, and every replica catches up.
	healed := time.Now()
	if err := child.Eventually(ctx, patience, func() error { return l.silent(healed) }); err != nil {
		return nil, fmt.Errorf("%s after the last fault: %w", patience, err)
	}
	acked := time.Since(healed)
	if _, err := inSync(ctx, adm); err != nil {
		return nil, fmt.Errorf("%s after the last fault: %w", patience, err)
	}
	n.note("all partitions acknowledge %.1fs after the last fault, all replicas are in sync after %.1fs", acked.Seconds(), time.Since(healed).Seconds())
	quiet := time.Now()
	w.feeds.Store(true)
	w.producers.Wait()
	if _, err := w.settled(ctx, adm, cl); err != nil {
		return nil, fmt.Errorf("%s after the last record: %w", patience, err)
	}
	end()
	if e := w.unfinished.Load(); e != nil {
		return nil, *e
	}
	topics, err := inSync(ctx, adm)
	if err != nil {
		return nil, err
	}
	n.note("everything is processed, and no transaction is open, after %.1fs", time.Since(quiet).Seconds())
	if err := w.compacted(ctx, cl, topics); err != nil {
		return nil, fmt.Errorf("%s after the last record: %w", patience, err)
	}
	reads := time.Now()
	var audit sync.WaitGroup
	var audited error
	audit.Go(func() { audited = n.verify(ctx) })
	err = l.readBack(ctx, cl, topics, slices.Concat(w.topics(), internal))
	audit.Wait()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading back: %w", err), audited)
	}
	if audited != nil {
		return history.Check(&l.h), audited
	}
	n.note("everything is read, and in the bucket is what the manifests name and nothing else, after %.1fs", time.Since(reads).Seconds())
	watched()
	if err := <-fallen; err != nil {
		return nil, err
	}
	found := history.Check(&l.h)
	if _, err := adm.DeleteTopics(ctx, w.topics()...); err != nil {
		return found, fmt.Errorf("delete topics: %w", err)
	}
	return found, nil
}
