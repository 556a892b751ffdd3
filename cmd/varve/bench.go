package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/term"

	"github.com/varve/varve/bench/floor"
	"github.com/varve/varve/bench/load"
)

func benchCommand() *cobra.Command {
	cmd := group("bench", "Put a broker under load and measure it", benchRun("produce"), benchRun("consume"), benchRun("e2e"), benchRun("txn"), benchReplay(), benchFailover(), benchReassign(), benchFloor())
	cmd.Long = `Puts any Kafka-protocol broker under load and measures what it does.

With --rate the load is open-loop: every record has an intended send time and its latency counts from then, so that a
broker that stalls is charged for all the records that it kept waiting. Without --rate records are sent as fast as they are
taken; latency then says how long the client's buffer is.

A broker on this machine is found by its port, and its CPU time and memory are reported. --floor measures, with
the same load, a server that does the least work that can be called a durable broker: quote figures as ratios to it, for
machines differ and are shared.`
	return cmd
}

type benchFlags struct {
	conn *connection
	out  *outputFlag
	spec load.Spec
	what string

	partitions                                         int64
	acks, codec, payload                               string
	rateUnit                                           string
	batch, record, buffer, fetchMax, partMax, fetchMin int64
	producers, consumers, groups, keys, inFlight       int64
	processors, txnRecords                             int64
	floor                                              time.Duration
	floorDir                                           string
	floorBytes                                         int64
	pids                                               []int
	quiet                                              bool
}

// defaults are those of a client that nobody has tuned, so that figures are what users will see.
func newBenchFlags(what string) *benchFlags {
	return &benchFlags{
		what: what, acks: "all", codec: "none", payload: string(load.Random),
		batch: 16 << 10, record: 1 << 10, buffer: 32 << 20, fetchMax: 50 << 20, partMax: 1 << 20, fetchMin: 1,
		producers: 1, consumers: 1, groups: 1, inFlight: 5, partitions: 16, processors: 1, floorBytes: 1 << 30,
		spec: load.Spec{Duration: 10 * time.Second, Warmup: 2 * time.Second, FetchMaxWait: 500 * time.Millisecond},
	}
}

func (f *benchFlags) common(cmd *cobra.Command) {
	f.conn = addConnection(cmd)
	fl := cmd.Flags()
	fl.IntSliceVar(&f.pids, "broker-pid", nil, "the broker's process, if it is on this machine (default: whoever listens at --bootstrap-server)")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "no progress on stderr")
	f.out = addOutput(cmd)
}

func (f *benchFlags) fetching(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.Var(bytesValue{&f.fetchMax, 1, 1 << 30}, "fetch-max-bytes", "largest answer to a fetch")
	fl.Var(bytesValue{&f.partMax, 1, 1 << 30}, "partition-max-bytes", "of one partition in an answer")
	fl.Var(bytesValue{&f.fetchMin, 1, 1 << 30}, "fetch-min-bytes", "what an answer waits for")
	fl.Var(durationValue{d: &f.spec.FetchMaxWait}, "fetch-max-wait", "how long it waits")
}

func (f *benchFlags) floorFlags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.Var(durationValue{&f.floor, true}, "floor", "how long to measure the floor too; 0 to leave it out")
	fl.StringVar(&f.floorDir, "floor-dir", "", "where the floor's file is, which should be the broker's disk (default: the temporary directory)")
	fl.Var(bytesValue{&f.floorBytes, 64 << 20, 64 << 30}, "floor-bytes", "how long it is; a replay's floor has as much memory, and half of it to read")
}

func benchRun(what string) *cobra.Command {
	f := newBenchFlags(what)
	cmd := &cobra.Command{
		Use:   what + " [TOPIC]",
		Short: map[string]string{"produce": "Measure producing", "consume": "Measure consuming the newest records while somebody produces", "e2e": "Measure the time from a producer to a consumer", "txn": "Measure transactions that read, write and commit offsets"}[what],
		Args:  arguments("the topic's name", 0, 1),
	}
	cmd.Long = map[string]string{
		"produce": "Produces to TOPIC (default varve-bench, created with --partitions where it is missing) and reports throughput,\nacknowledgement latency, and what the requests really looked like.",
		"consume": "Consumes what others produce to TOPIC, from its present end. The floor, measured afterwards, is produced to at the rate that was\nseen, in records and batches of the sizes that were seen, not compressed.",
		"e2e":     "Produces and consumes in one process, so that one clock measures from the intended send time to the moment a consumer\nhas the record.",
		"txn":     "Producers write to TOPIC; clients of one group read it and write what they read to the topic --to, in transactions that commit\ntheir offsets too; consumers read what is committed. A transaction ends after --every, or with --records as soon as it has\nso many, and the next begins at once. Without --rate producers are just ahead of the transactions, and end-to-end latency\ncounts from a transaction's beginning. With --producers 0 nothing is read: transactions are of records that are made up.",
	}[what]
	f.common(cmd)
	fl := cmd.Flags()
	count := func(v *int64, name, usage string) { fl.Var(intValue{v, 1, 100_000, "a number from 1"}, name, usage) }
	fl.Var(durationValue{d: &f.spec.Duration}, "duration", "how long to measure")
	fl.Var(durationValue{&f.spec.Warmup, true}, "warmup", "how long to load before that")
	if what != "consume" {
		if what == "txn" {
			fl.Var(intValue{&f.producers, 0, 100_000, "a number from 0"}, "producers", "clients that produce what is read; 0: nothing is read")
			count(&f.processors, "processors", "clients that run transactions")
			fl.Var(durationValue{&f.spec.TxnEvery, true}, "every", "how long a transaction lasts (default 100ms, unless --records says how many)")
			fl.Var(intValue{&f.txnRecords, 0, 1_000_000, "a number from 0"}, "records", "of a transaction, back to back; 0: --every says when it ends")
			fl.StringVar(&f.spec.Output, "to", "", "the topic that transactions write to, created where it is missing (default: TOPIC-out)")
		} else {
			count(&f.producers, "producers", "clients that produce")
		}
		fl.Var(intValue{&f.partitions, 1, 1_000_000, "a number from 1"}, "partitions", "of the topic, if it has to be created")
		fl.Var(bytesValue{&f.record, 0, 64 << 20}, "record-bytes", "size of a value")
		fl.Var(intValue{&f.keys, 0, 10_000_000, "a number from 0"}, "keys", "different keys, given in turn; 0 for none")
		fl.Var(oneOf{&f.payload, load.Payloads}, "payload", "what values are: random does not compress, json compresses to a quarter with gzip and zstd, to less than half with lz4 and snappy")
		fl.StringVar(&f.rateUnit, "rate", "", "records a second of all producers together, or bytes as in 50MB (default: as fast as they are taken)")
		fl.Var(bytesValue{&f.batch, 1 << 10, 64 << 20}, "batch-bytes", "largest batch before compression")
		fl.Var(durationValue{&f.spec.Linger, true}, "linger", "how long a batch waits for more records")
		fl.VarP(oneOf{&f.codec, []string{"none", "gzip", "snappy", "lz4", "zstd"}}, "compression", "z", "compression of the batches")
		fl.Var(oneOf{&f.acks, []string{"all", "1", "0", "-1"}}, "acks", "who must have a record before it counts")
		fl.BoolVar(&f.spec.Idempotent, "idempotent", false, "produce idempotently")
		count(&f.inFlight, "in-flight", "requests of one client that are not answered")
		fl.Var(bytesValue{&f.buffer, 1 << 16, 16 << 30}, "buffer-bytes", "records of one client that are not acknowledged")
	}
	if what != "txn" { // a floor knows no transactions
		f.floorFlags(cmd)
	}
	if what != "produce" {
		count(&f.consumers, "consumers", "clients that consume, of all groups")
		if what != "txn" {
			count(&f.groups, "groups", "how many times everything is consumed")
		}
		f.fetching(cmd)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) }
	return cmd
}

func benchReplay() *cobra.Command {
	f := newBenchFlags("replay")
	cmd := &cobra.Command{
		Use:   "replay TOPIC",
		Short: "Measure reading a topic from its first offset to its present end",
		Args:  arguments("the topic's name", 1, 1),
	}
	cmd.Long = `Reads TOPIC from its first offset to its present end. The floor, measured afterwards, has half of --floor-bytes in memory, in records
and batches of the sizes that were seen, not compressed, and is read over and over: what comes from a disk or a bucket has that as its
upper bound.`
	f.common(cmd)
	f.floorFlags(cmd)
	cmd.Flags().Var(intValue{&f.consumers, 1, 100_000, "a number from 1"}, "consumers", "clients that share the partitions")
	cmd.Flags().BoolVar(&f.spec.Raw, "raw", false, "plain fetches, batches counted and their checksums verified: leaves out what a client makes of the records")
	f.fetching(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) }
	return cmd
}

func (f *benchFlags) run(cmd *cobra.Command, args []string) error {
	seeds, err := f.conn.seeds()
	if err != nil {
		return err
	}
	s := &f.spec
	s.Bootstrap, s.Topic = seeds, "varve-bench"
	if len(args) > 0 {
		s.Topic = args[0]
		if err := checkTopicName(s.Topic); err != nil {
			return err
		}
	}
	s.RecordBytes, s.Keys, s.Payload = int(f.record), int(f.keys), load.Payload(f.payload)
	s.BatchBytes, s.Codec, s.Acks, s.InFlight, s.BufferBytes = int(f.batch), f.codec, f.acks, int(f.inFlight), int(f.buffer)
	s.FetchMaxBytes, s.PartitionMaxBytes, s.FetchMinBytes = int(f.fetchMax), int(f.partMax), int(f.fetchMin)
	s.Groups = int(f.groups)
	if f.what == "produce" || f.what == "e2e" || f.what == "txn" {
		s.Producers = int(f.producers)
	}
	if f.what == "txn" {
		s.Processors, s.TxnRecords = int(f.processors), int(f.txnRecords)
		switch {
		case s.TxnRecords > 0 && s.TxnEvery > 0:
			return usagef("a transaction ends either after --every or with --records")
		case s.TxnRecords == 0 && s.Producers == 0:
			return usagef("--producers 0 needs --records: nothing else says when a transaction has enough")
		case s.TxnRecords == 0 && s.TxnEvery == 0:
			s.TxnEvery = 100 * time.Millisecond
		}
		if s.Output == "" {
			s.Output = s.Topic + "-out"
		}
		if err := checkTopicName(s.Output); err != nil {
			return err
		}
		if s.Output == s.Topic {
			return usagef("--to has to be another topic than the one that is read")
		}
	}
	if f.what != "produce" {
		s.Consumers = int(f.consumers)
	}
	if s.Rate, err = parseRate(f.rateUnit, s.RecordBytes); err != nil {
		return usagef("--rate: %w", err)
	}
	if s.Idempotent && s.Acks != "all" && s.Acks != "-1" {
		return usagef("--idempotent needs --acks all")
	}
	if s.Keys > 0 && s.Consumers > 0 {
		return usagef("--keys has no place where records are timed from end to end: the key carries the time")
	}
	if s.Consumers%s.Groups != 0 {
		return usagef("--consumers %d cannot be shared evenly by --groups %d", s.Consumers, s.Groups)
	}
	ctx := cmd.Context()
	if err := f.prepare(ctx); err != nil {
		return err
	}
	var base *load.Result
	if f.floor > 0 && s.Producers > 0 {
		if base, err = f.measureFloor(ctx, *s); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
	}
	s.Broker = f.pids
	if len(s.Broker) == 0 {
		for _, seed := range seeds {
			if pid, err := load.Listener(seed); err == nil {
				s.Broker = append(s.Broker, pid)
			}
		}
	}
	if !f.quiet && term.IsTerminal(int(os.Stderr.Fd())) {
		s.Progress = progressLine(f.what)
		defer fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	var res *load.Result
	if f.what == "replay" {
		res, err = load.Replay(ctx, *s)
	} else {
		res, err = load.Run(ctx, *s)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if f.floor > 0 && s.Producers == 0 { // what it has to do is known only now
		if base, err = f.measureFloor(ctx, like(*s, res)); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
	}
	res.What, res.Floor = f.what, base
	if f.out.json() {
		return writeJSON(cmd.OutOrStdout(), res)
	}
	return benchTable(cmd.OutOrStdout(), res)
}

// prepare makes the topic where it is to be produced to and is missing.
func (f *benchFlags) prepare(ctx context.Context) error {
	adm, err := f.conn.admin(ctx)
	if err != nil {
		return err
	}
	defer adm.close()
	if f.spec.Producers == 0 && f.spec.Processors == 0 {
		topics, err := adm.ListTopics(adm.ctx, f.spec.Topic)
		if err == nil {
			err = topics.Error()
		}
		if err != nil {
			return adm.failed("topic "+f.spec.Topic, err)
		}
		f.spec.Partitions = len(topics[f.spec.Topic].Partitions)
		return nil
	}
	// A batch before compression may be longer than its records: one that was asked for must not be refused.
	limit := strconv.FormatInt(max(f.batch+(1<<16), 1048588), 10)
	topics := []string{f.spec.Topic}
	if f.spec.Processors > 0 {
		topics = append(topics, f.spec.Output)
	}
	for _, topic := range topics {
		_, err = adm.CreateTopic(adm.ctx, int32(f.partitions), -1, map[string]*string{"max.message.bytes": &limit}, topic)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return adm.failed("create topic "+topic, err)
		}
	}
	// It may have been there before. One that was made now may not be known everywhere yet.
	f.spec.Partitions = int(f.partitions)
	if topics, err := adm.ListTopics(adm.ctx, f.spec.Topic); err == nil && len(topics[f.spec.Topic].Partitions) > 0 {
		f.spec.Partitions = len(topics[f.spec.Topic].Partitions)
	}
	return nil
}

// like is a producer of what was consumed: as many records, of the same size, in batches of the same size.
func like(s load.Spec, res *load.Result) load.Spec {
	c := res.Consumed
	s.Producers, s.Acks, s.Codec, s.Payload = 1, "all", "none", load.Random
	s.RecordBytes = int(c.Bytes / max(c.Records, 1))
	s.BatchBytes = max(int(c.BytesPerBatch), s.RecordBytes+1<<10)
	s.Rate = c.RecordsPerSecond / float64(max(s.Groups, 1))
	s.Linger = time.Duration(c.RecordsPerBatch / s.Rate * float64(time.Second))
	return s
}

// measureFloor runs the load against a floor in a process of its own.
func (f *benchFlags) measureFloor(ctx context.Context, s load.Spec) (*load.Result, error) {
	addr, pid, stop, err := f.startFloor(s.Partitions)
	if err != nil {
		return nil, err
	}
	defer stop()
	s.Bootstrap, s.Topic, s.Progress = []string{addr}, "floor", nil
	if f.what != "replay" {
		s.Duration, s.Warmup, s.Broker = f.floor, min(s.Warmup, time.Second), []int{pid}
		return load.Run(ctx, s)
	}
	fill := s
	fill.Rate, fill.Linger, fill.Consumers, fill.Warmup, fill.Duration = 0, 5*time.Millisecond, 0, 0, time.Hour
	full, cancel := context.WithCancel(ctx)
	defer cancel()
	fill.Progress = func(p load.Progress) {
		if p.Bytes > f.floorBytes/2 {
			cancel()
		}
	}
	if _, err := load.Run(full, fill); err != nil && full.Err() == nil {
		return nil, err
	}
	s.Producers, s.Broker = 0, []int{pid}
	var sum *load.Result
	for began := time.Now(); sum == nil || time.Since(began) < f.floor; {
		res, err := load.Replay(ctx, s)
		if err != nil {
			return nil, err
		}
		if sum != nil {
			res.Add(sum)
		}
		sum = res
	}
	return sum, nil
}

func (f *benchFlags) startFloor(partitions int) (addr string, pid int, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", 0, nil, err
	}
	addr = l.Addr().String()
	l.Close()
	args := []string{"bench", "floor", "--listen", addr, "--partitions", strconv.Itoa(partitions), "--file", strconv.FormatInt(f.floorBytes, 10)}
	if f.what == "replay" {
		args = append(args, "--memory", strconv.FormatInt(f.floorBytes, 10))
	}
	if f.floorDir != "" {
		args = append(args, "--dir", f.floorDir)
	}
	child := exec.Command(self, args...)
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		return "", 0, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	stop = func() {
		child.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr, child.Process.Pid, stop, nil
		}
		select {
		case err := <-ended:
			return "", 0, nil, fmt.Errorf("the server of the floor ended: %v", err)
		default:
		}
		if time.Since(began) > time.Minute {
			stop()
			return "", 0, nil, fmt.Errorf("the server of the floor does not answer at %s", addr)
		}
	}
}

func benchFloor() *cobra.Command {
	var listen, dir string
	var partitions, memory, file int64 = 16, 256 << 20, 1 << 30
	var noSync, buffered bool
	cmd := &cobra.Command{
		Use:   "floor",
		Short: "Serve the floor: the least work that can be called a durable broker",
		Long: `Serves just enough of Kafka's protocol to be produced to and consumed from: a checksum over every batch, one shared
file, group commit with fdatasync, an answer; nothing else. It writes around the page cache, and serves what it has in memory.
It forgets everything, and its file is written round and round.`,
		Args: arguments("", 0, 0),
	}
	fl := cmd.Flags()
	fl.StringVar(&listen, "listen", "127.0.0.1:0", "where to serve")
	fl.StringVar(&dir, "dir", "", "where its file is (default: a new folder in the temporary directory)")
	fl.Var(intValue{&partitions, 1, 1_000_000, "a number from 1"}, "partitions", "of every topic")
	fl.Var(bytesValue{&file, 64 << 20, 64 << 30}, "file", "how long its file is")
	fl.Var(bytesValue{&memory, 64 << 20, 64 << 30}, "memory", "for what was written last, of which half can be consumed")
	fl.BoolVar(&noSync, "no-fsync", false, "acknowledge what is not on the disk yet")
	fl.BoolVar(&buffered, "buffered", false, "write through the page cache")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dir == "" {
			d, err := os.MkdirTemp("", "varve-floor-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(d)
			dir = d
		}
		s, err := floor.Open(listen, floor.Options{Dir: dir, FileBytes: file, MemoryBytes: memory, Partitions: int32(partitions), NoSync: noSync, Buffered: buffered})
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "the floor serves at %s\n", s.Addr())
		<-cmd.Context().Done()
		return s.Close()
	}
	return cmd
}

// parseRate reads records a second, or bytes a second with a unit.
func parseRate(s string, recordBytes int) (float64, error) {
	if s == "" {
		return 0, nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		if n <= 0 || math.IsInf(n, 0) || math.IsNaN(n) {
			return 0, fmt.Errorf("%q: must be above 0", s)
		}
		return n, nil
	}
	n, err := parseBytes(s)
	for i, unit := range []string{"KB", "MB", "GB"} { // as rates of networks and disks are given
		if d, ok := strings.CutSuffix(s, unit); ok {
			var x float64
			x, err = strconv.ParseFloat(strings.TrimSpace(d), 64)
			n = int64(x * math.Pow10(3*(i+1)))
		}
	}
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q: must be records a second (50000) or bytes a second (50MB, 50MiB)", s)
	}
	if recordBytes == 0 {
		return 0, errors.New("bytes a second of records without bytes")
	}
	return float64(n) / float64(recordBytes), nil
}

func progressLine(what string) func(load.Progress) {
	var last load.Progress
	return func(p load.Progress) {
		if p.Warming {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s: warming up", what)
			return
		}
		rate := float64(p.Bytes-last.Bytes) / max((p.Elapsed-last.Elapsed).Seconds(), 0.001)
		last = p
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s: %s, %d records, %s/s", what, p.Elapsed.Round(time.Second), p.Records, humanBytes(int64(rate)))
	}
}

// benchTable prints a result, beside the floor's where it was measured.
func benchTable(w io.Writer, r *load.Result) error {
	cols := []*load.Result{r}
	head := []string{r.What, "broker"}
	if r.Floor != nil {
		cols = append(cols, r.Floor)
		head = append(head, "floor", "of floor")
	}
	t := newTable(head...)
	row := func(name, format string, get func(*load.Result) (float64, bool), ratio bool) {
		cells := []any{name}
		var vs []float64
		for _, c := range cols {
			v, ok := get(c)
			if !ok {
				return
			}
			vs = append(vs, v)
			cells = append(cells, fmt.Sprintf(format, v))
		}
		if len(vs) == 2 && ratio && vs[1] > 0 {
			cells = append(cells, fmt.Sprintf("%.2f", vs[0]/vs[1]))
		}
		t.row(cells...)
	}
	side := func(name string, of func(*load.Result) *load.Side) {
		get := func(f func(*load.Side) float64) func(*load.Result) (float64, bool) {
			return func(r *load.Result) (float64, bool) {
				s := of(r)
				if s == nil {
					return 0, false
				}
				return f(s), true
			}
		}
		row(name+" MB/s", "%.1f", get(func(s *load.Side) float64 { return s.MBPerSecond }), true)
		row(name+" records/s", "%.0f", get(func(s *load.Side) float64 { return s.RecordsPerSecond }), true)
		row(name+" requests/s", "%.0f", func(r *load.Result) (float64, bool) {
			s := of(r)
			if s == nil {
				return 0, false
			}
			return float64(s.Requests) / r.Seconds, true
		}, false)
		row(name+" bytes per request", "%.0f", get(func(s *load.Side) float64 { return s.BytesPerRequest }), false)
		row(name+" records per batch", "%.1f", get(func(s *load.Side) float64 { return s.RecordsPerBatch }), false)
		row(name+" bytes per batch", "%.0f", get(func(s *load.Side) float64 { return s.BytesPerBatch }), false)
	}
	side("produced", func(r *load.Result) *load.Side { return r.Produced })
	side("consumed", func(r *load.Result) *load.Side { return r.Consumed })
	latency := func(name string, of func(*load.Result) *load.Latency) {
		for _, q := range []struct {
			name string
			get  func(*load.Latency) float64
		}{
			{"p50", func(l *load.Latency) float64 { return l.P50 }}, {"p99", func(l *load.Latency) float64 { return l.P99 }},
			{"p99.9", func(l *load.Latency) float64 { return l.P999 }}, {"max", func(l *load.Latency) float64 { return l.Max }},
			{"mean", func(l *load.Latency) float64 { return l.Mean }},
		} {
			row(name+" "+q.name+" ms", "%.2f", func(r *load.Result) (float64, bool) {
				l := of(r)
				if l == nil {
					return 0, false
				}
				return q.get(l), true
			}, true)
		}
	}
	if r.Transactions != nil {
		x := func(f func(*load.Transactions) float64) func(*load.Result) (float64, bool) {
			return func(r *load.Result) (float64, bool) {
				if r.Transactions == nil {
					return 0, false
				}
				return f(r.Transactions), true
			}
		}
		row("transactions/s", "%.1f", x(func(t *load.Transactions) float64 { return t.PerSecond }), true)
		row("records per transaction", "%.1f", x(func(t *load.Transactions) float64 { return t.PerCommit }), false)
		row("aborted transactions", "%.0f", x(func(t *load.Transactions) float64 { return float64(t.Aborted) }), false)
		row("CPU ms per transaction", "%.3f", x(func(t *load.Transactions) float64 { return t.CPUPerTxn }), true)
	}
	latency("commit", func(r *load.Result) *load.Latency { return r.Commit })
	latency("ack", func(r *load.Result) *load.Latency { return r.Ack })
	latency("end to end", func(r *load.Result) *load.Latency { return r.EndToEnd })
	usage := func(f func(*load.Usage) float64) func(*load.Result) (float64, bool) {
		return func(r *load.Result) (float64, bool) {
			if r.Broker == nil {
				return 0, false
			}
			return f(r.Broker), true
		}
	}
	row("CPU s per GB", "%.2f", usage(func(u *load.Usage) float64 { return u.SecondsPerGB }), true)
	row("CPU cores", "%.2f", usage(func(u *load.Usage) float64 { return u.Cores }), false)
	row("peak RSS MB", "%.0f", usage(func(u *load.Usage) float64 { return float64(u.PeakRSS) / 1e6 }), false)
	row("load's own CPU cores", "%.2f", func(r *load.Result) (float64, bool) { return r.Client.Cores, true }, false)
	row("errors", "%.0f", func(r *load.Result) (float64, bool) { return float64(r.Errors), true }, false)
	if err := t.writeTo(w); err != nil {
		return err
	}
	var notes []string
	if l := r.Load; l != nil {
		words := fmt.Sprintf("the load: topic %s, %s", l.Topic, l.Words)
		if l.DurationSeconds > 0 {
			words += fmt.Sprintf("; measured for %g s after a warm-up of %g s", l.DurationSeconds, l.WarmupSeconds)
		}
		notes = append(notes, words)
	}
	if r.Broker == nil {
		notes = append(notes, "the broker is not a process of this machine (or name it with --broker-pid): its CPU time is not known")
	}
	if r.Errors > 0 {
		notes = append(notes, "last error: "+r.LastError)
	}
	if p := r.Produced; p != nil && p.Intended > 0 && p.RecordsPerSecond < 0.98*p.Intended {
		notes = append(notes, fmt.Sprintf("%.0f records/s were intended: the broker, or the load itself, did not keep up, and latency grows with the length of the run", p.Intended))
	}
	if r.Client.Cores > 0.9*float64(runtime.NumCPU()) {
		notes = append(notes, "the load itself took nearly all of this machine's cores: it may be what is measured")
	}
	for _, n := range notes {
		if _, err := fmt.Fprintln(w, strings.TrimSpace(visible(n))); err != nil {
			return err
		}
	}
	return nil
}
