package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/internal/child"
)

// The read-process-write workload:
//
//	feeder -> in -> processes of the group "classic"  -> out-classic-a,  out-classic-b  -> reader of committed records
//	             -> processes of the group "consumer" -> out-consumer-a, out-consumer-b ->
//
// Every process is killed at random, and so is the broker. Input records are
// numbered per key. An output has, for every key, every number, once, in
// order: whatever was read twice was aborted, whatever was written was read.
const (
	input         = "in"
	workers       = 2  // processes of a group
	keys          = 40 // of the input
	ahead         = 6_000
	roundPatience = 90 * time.Second
)

var groups = []string{"classic", "consumer"}

func outputs(group string) []string { return []string{"out-" + group + "-a", "out-" + group + "-b"} }

type pipeline struct {
	varve, dir    string
	processorLogs string // where processors, whose clients say what they do, leave their logs; "": in dir, without that
	addr, adm     string
	partitions    int
	breaks        string
	rnd           *rand.Rand
	broker        *child.Varve
	workers       []*worker
	started       uint64 // processes, ever
	failures      map[string]int

	cl     *kgo.Client
	next   [keys]uint64 // numbers of the inputs
	total  atomic.Int64 // inputs that are acknowledged
	failed atomic.Pointer[error]
	feeds  atomic.Bool // whether there are to be more
}

// worker is a place in a group, and the process that has it now.
type worker struct {
	group, id string
	version   int // of transactions; every process of this place has the other one than that before it
	process   *child.Process
}

func runTransactions(ctx context.Context, varve string, rounds, partitions int, seed uint64, breaks, logs string) error {
	varve, err := filepath.Abs(varve)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "varve-crash-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if logs != "" {
		if logs, err = filepath.Abs(logs); err == nil {
			err = os.MkdirAll(logs, 0o755)
		}
		if err != nil {
			return err
		}
	}
	p := &pipeline{varve: varve, dir: dir, processorLogs: logs, partitions: partitions, breaks: breaks, rnd: rand.New(rand.NewPCG(seed, 1)), failures: map[string]int{}}
	if p.addr, err = child.FreeAddr(); err != nil {
		return err
	}
	if p.adm, err = child.FreeAddr(); err != nil {
		return err
	}
	defer p.end()
	if err := p.run(ctx, rounds); err != nil {
		return fmt.Errorf("%w\n%s", err, p.logs())
	}
	fmt.Printf("crash: transactions: %d rounds, %d processes, %d inputs, each in %d outputs, once, in order, from the log and without it (seed %d)\n",
		rounds, p.started, p.total.Load(), len(groups)*2, seed)
	return nil
}

func (p *pipeline) run(ctx context.Context, rounds int) error {
	if err := p.startBroker(ctx); err != nil {
		return err
	}
	var err error
	p.cl, err = kgo.NewClient(kgo.SeedBrokers(p.addr), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)), kgo.ProducerLinger(0),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.RecordDeliveryTimeout(5*time.Minute), kgo.UnknownTopicRetries(-1))
	if err != nil {
		return err
	}
	defer p.cl.Close()
	adm := kadm.NewClient(p.cl)
	topics := []string{input}
	for _, g := range groups {
		topics = append(topics, outputs(g)...)
	}
	one := "1"
	rs, err := adm.CreateTopics(ctx, int32(p.partitions), 1, map[string]*string{"local.retention.bytes": &one}, topics...)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}

	var readers []*reader
	for _, g := range groups {
		for _, topic := range outputs(g) {
			r, err := p.newReader(topic)
			if err != nil {
				return err
			}
			defer r.cl.Close()
			readers = append(readers, r)
		}
		for i := range workers {
			p.workers = append(p.workers, &worker{group: g, id: fmt.Sprintf("%s-%d", g, i), version: 1 + i%2})
		}
	}
	for _, w := range p.workers {
		if err := p.startWorker(ctx, w); err != nil {
			return err
		}
	}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	for _, r := range readers {
		wg.Go(func() { p.fail(r.run(running)) })
	}
	p.feeds.Store(true)
	fed := make(chan struct{})
	go func() { defer close(fed); p.feed(running, readers) }()
	defer func() { stop(); <-fed }()

	for round := 1; round <= rounds; round++ {
		what, err := p.round(ctx, readers)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		least, most := span(readers)
		fmt.Printf("round %d: %s; %d inputs, %d to %d read back\n", round, what, p.total.Load(), least, most)
	}
	p.feeds.Store(false)
	<-fed
	if err := p.cl.Flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	// Everything arrives, and nothing else does.
	if err := p.watched(ctx, roundPatience, func() error { return p.arrived(readers) }); err != nil {
		return err
	}
	if err := p.watched(ctx, roundPatience, func() error { return p.settled(ctx, adm, topics) }); err != nil {
		return err
	}
	for _, w := range p.workers {
		w.process.Kill()
		w.process = nil
	}
	stop()
	wg.Wait()
	if e := p.failed.Load(); e != nil {
		return *e
	}
	return p.replay(ctx, adm, topics, readers)
}

// round does one thing to a processor, and one to the broker, at random, and
// expects every output to move afterwards.
func (p *pipeline) round(ctx context.Context, readers []*reader) (string, error) {
	if err := p.moves(ctx, readers); err != nil {
		return "", err
	}
	var what string
	w := p.workers[p.rnd.IntN(len(p.workers))]
	p.pause(400)
	switch p.rnd.IntN(4) {
	case 0, 1:
		what = w.id + " killed"
		w.process.Kill()
		if err := p.startWorker(ctx, w); err != nil {
			return "", err
		}
	case 2:
		// It stands still until its group has gone on without it, or almost.
		d := time.Duration(500+p.rnd.IntN(4000)) * time.Millisecond
		what = fmt.Sprintf("%s stood still for %s", w.id, d)
		syscall.Kill(w.process.PID(), syscall.SIGSTOP)
		time.Sleep(d)
		syscall.Kill(w.process.PID(), syscall.SIGCONT)
	case 3:
		// A zombie: another has its transactional id when it comes back.
		what = w.id + " replaced while it stood still"
		old := w.process
		syscall.Kill(old.PID(), syscall.SIGSTOP)
		if err := p.startWorker(ctx, w); err != nil {
			return "", err
		}
		p.pause(2000)
		syscall.Kill(old.PID(), syscall.SIGCONT)
		p.pause(1000)
		old.Kill()
	}
	p.pause(400)
	p.broker.Kill()
	if p.rnd.IntN(3) == 0 {
		// Both at once: whoever is started first finds what the other has left.
		w := p.workers[p.rnd.IntN(len(p.workers))]
		what += ", " + w.id + " killed with the broker"
		w.process.Kill()
		if err := p.startWorker(ctx, w); err != nil {
			return "", err
		}
	}
	if err := p.startBroker(ctx); err != nil {
		return "", err
	}
	return what + ", broker killed", nil
}

func (p *pipeline) pause(most int) { time.Sleep(time.Duration(p.rnd.IntN(most)) * time.Millisecond) }

// moves waits until every reader has seen something new.
func (p *pipeline) moves(ctx context.Context, readers []*reader) error {
	before := make([]int64, len(readers))
	for i, r := range readers {
		before[i] = r.count.Load()
	}
	return p.watched(ctx, roundPatience, func() error {
		for i, r := range readers {
			if r.count.Load() == before[i] {
				return fmt.Errorf("nothing new in %s since the round began", r.topic)
			}
		}
		return nil
	})
}

// watched is child.Eventually that starts processors anew that have ended, and
// ends at the first failure of a check.
func (p *pipeline) watched(ctx context.Context, d time.Duration, f func() error) error {
	var bad error
	err := child.Eventually(ctx, d, func() error {
		if e := p.failed.Load(); e != nil {
			bad = *e
			return nil
		}
		for _, w := range p.workers {
			if w.process == nil {
				continue
			}
			select {
			case <-w.process.Ended():
				p.failures[lastLine(w.process.Log)]++
				if bad = p.startWorker(ctx, w); bad != nil {
					return nil
				}
			default:
			}
		}
		return f()
	})
	return errors.Join(bad, err)
}

// settled says whether the groups have committed everything, and no transaction is left open.
func (p *pipeline) settled(ctx context.Context, adm *kadm.Client, topics []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	stable, err := adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	var bad error
	ends.Each(func(o kadm.ListedOffset) {
		if s, ok := stable.Lookup(o.Topic, o.Partition); !ok || s.Err != nil || o.Err != nil || s.Offset != o.Offset {
			bad = fmt.Errorf("%s-%d: log end %d, last stable offset %d (%v, %v)", o.Topic, o.Partition, o.Offset, s.Offset, o.Err, s.Err)
		}
	})
	for _, g := range groups {
		committed, err := adm.FetchOffsets(ctx, g)
		if err != nil {
			return err
		}
		for i := range int32(p.partitions) {
			end, _ := ends.Lookup(input, i)
			if c, ok := committed.Lookup(input, i); end.Offset > 0 && (!ok || c.Err != nil || c.At != end.Offset) {
				bad = fmt.Errorf("group %s, %s-%d: committed %d, log end %d (%v)", g, input, i, c.At, end.Offset, c.Err)
			}
		}
	}
	return bad
}

// replay has everything read again when the log is gone from memory and from
// the disk: records, offsets of groups and the state of transactions come from
// objects. And from there the work goes on.
func (p *pipeline) replay(ctx context.Context, adm *kadm.Client, topics []string, before []*reader) error {
	all := append([]string{"__consumer_offsets", "__transaction_state"}, topics...)
	if err := child.Eventually(ctx, 2*time.Minute, func() error { return p.uploaded(ctx, adm, all) }); err != nil {
		return fmt.Errorf("waiting for the bucket: %w", err)
	}
	p.broker.Kill()
	if err := os.RemoveAll(filepath.Join(p.dir, "data", "wal")); err != nil {
		return err
	}
	if err := p.startBroker(ctx); err != nil {
		return err
	}
	if err := p.watched(ctx, roundPatience, func() error { return p.settled(ctx, adm, topics) }); err != nil {
		return fmt.Errorf("without the log: %w", err)
	}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	var readers []*reader
	for _, b := range before {
		r, err := p.newReader(b.topic)
		if err != nil {
			return err
		}
		defer r.cl.Close()
		readers = append(readers, r)
		wg.Go(func() { p.fail(r.run(running)) })
	}
	if err := p.watched(ctx, roundPatience, func() error { return p.arrived(readers) }); err != nil {
		return fmt.Errorf("read from objects: %w", err)
	}
	read, err := p.metric("varve_tier_read_bytes_total")
	if err != nil {
		return err
	}
	if read == 0 {
		return errors.New("nothing was read from objects")
	}
	for i, r := range readers {
		if !bytes.Equal(r.sum(), before[i].sum()) {
			return fmt.Errorf("read from objects: %s: other records at other offsets than before", r.topic)
		}
	}
	fmt.Printf("crash: transactions: read again without the log, %.1f MB from objects\n", read/1e6)
	for _, w := range p.workers {
		if err := p.startWorker(ctx, w); err != nil {
			return err
		}
	}
	p.feeds.Store(true)
	fed := make(chan struct{})
	go func() { defer close(fed); p.feed(running, readers) }()
	defer func() { stop(); <-fed }()
	if err := p.moves(ctx, readers); err != nil {
		return fmt.Errorf("without the log: %w", err)
	}
	p.feeds.Store(false)
	<-fed
	if err := p.cl.Flush(ctx); err != nil {
		return err
	}
	return p.watched(ctx, roundPatience, func() error {
		return errors.Join(p.arrived(readers), p.settled(ctx, adm, topics))
	})
}

// arrived says whether every output has every input.
func (p *pipeline) arrived(readers []*reader) error {
	if least, most := span(readers); least != p.total.Load() || most != p.total.Load() {
		return fmt.Errorf("%d inputs, %d to %d read back", p.total.Load(), least, most)
	}
	return nil
}

// uploaded says whether all of these topics is in the bucket.
func (p *pipeline) uploaded(ctx context.Context, adm *kadm.Client, topics []string) error {
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	req := kmsg.NewPtrListOffsetsRequest()
	for topic, partitions := range ends {
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic = topic
		for i := range partitions {
			q := kmsg.NewListOffsetsRequestTopicPartition()
			q.Partition, q.Timestamp = i, -5 // the last offset in object storage (KIP-1005)
			t.Partitions = append(t.Partitions, q)
		}
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, p.cl)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		for _, q := range t.Partitions {
			if end, _ := ends.Lookup(t.Topic, q.Partition); end.Err != nil || q.ErrorCode != 0 || q.Offset < end.Offset-1 {
				return fmt.Errorf("%s-%d: in the bucket up to %d, log end %d (error %d, %v)", t.Topic, q.Partition, q.Offset, end.Offset, q.ErrorCode, end.Err)
			}
		}
	}
	return nil
}

func (p *pipeline) metric(name string) (float64, error) {
	resp, err := http.Get(p.broker.Admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var sum float64
	found := false
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
			if err != nil {
				return 0, err
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}

func (p *pipeline) startBroker(ctx context.Context) (err error) {
	// Small files and small objects, sealed every second: the kills also come in the middle of an upload, and most
	// transactions begin in one object and end in another.
	p.broker, err = child.StartVarveAt(ctx, p.varve, p.dir, p.addr, p.adm, "wal.segment.bytes=4194304", "wal.max.bytes=134217728",
		"remote.flush.interval.ms=1000", "remote.object.bytes=1048576", "group.min.session.timeout.ms=1000",
		"group.consumer.min.session.timeout.ms=1000", "group.consumer.session.timeout.ms=3000",
		"group.consumer.min.heartbeat.interval.ms=100", "group.consumer.heartbeat.interval.ms=300")
	return err
}

func (p *pipeline) startWorker(ctx context.Context, w *worker) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.started++
	w.version = 3 - w.version
	args := []string{"processor", "-bootstrap", p.addr, "-group", w.group, "-id", w.id, "-in", input, "-out", strings.Join(outputs(w.group), ","),
		"-consumer=" + strconv.FormatBool(w.group == "consumer"), "-transactions", strconv.Itoa(w.version), "-seed", strconv.FormatUint(p.rnd.Uint64(), 10)}
	if p.breaks == breaksOffsets {
		args = append(args, "-break", breaksOffsets)
	}
	logs := p.dir
	if p.processorLogs != "" {
		logs = p.processorLogs
		args = append(args, "-debug")
	}
	w.process, err = child.Start(ctx, &child.Process{Name: "processor " + w.id, Log: filepath.Join(logs, fmt.Sprintf("processor-%s-%d.log", w.id, p.started))},
		exec.Command(self, args...), func() error { return nil })
	return err
}

func (p *pipeline) end() {
	for _, w := range p.workers {
		if w.process != nil {
			w.process.Kill()
		}
	}
	if p.broker != nil && p.broker.Process != nil {
		p.broker.Kill()
	}
}

// logs is what the processes have to say, for a run that has failed. It ends them.
func (p *pipeline) logs() string {
	var s strings.Builder
	for _, w := range p.workers {
		if w.process != nil {
			fmt.Fprintf(&s, "%s: %s\n%s\n", w.id, w.process.Tail(), w.process.Stacks())
		}
	}
	for line, n := range p.failures {
		fmt.Fprintf(&s, "%d processors ended with: %s\n", n, line)
	}
	if p.broker != nil && p.broker.Process != nil {
		fmt.Fprintf(&s, "the broker: %s\n%s\n", p.broker.Tail(), p.broker.Stacks())
	}
	return s.String()
}

func (p *pipeline) fail(err error) {
	if err != nil {
		p.failed.CompareAndSwap(nil, &err)
	}
}

// feed produces the inputs, at most so many ahead of the slowest reader.
func (p *pipeline) feed(ctx context.Context, readers []*reader) {
	filler := make([]byte, 100)
	for i := 0; p.feeds.Load() && ctx.Err() == nil && p.failed.Load() == nil; i++ {
		if least, _ := span(readers); p.total.Load()-least > ahead || i%20 == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		k := i * 7 % keys
		n := p.next[k]
		p.next[k]++
		value := append(binary.BigEndian.AppendUint64(nil, n), filler...)
		p.cl.Produce(ctx, &kgo.Record{Topic: input, Key: []byte(strconv.Itoa(k)), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				if ctx.Err() == nil {
					p.fail(fmt.Errorf("input: number %d of key %d was refused: %w", n, k, err))
				}
				return
			}
			p.total.Add(1)
		})
	}
}

// reader reads the committed records of one output and checks each.
type reader struct {
	topic string
	cl    *kgo.Client
	next  [keys]uint64     // the number that is due
	last  map[int32]int64  // offset
	seen  map[int32][]byte // what was read at which offset, hashed
	count atomic.Int64
}

func (p *pipeline) newReader(topic string) (*reader, error) {
	level := kgo.ReadCommitted()
	if p.breaks == breaksIsolation {
		level = kgo.ReadUncommitted()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(p.addr), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(level),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.UnknownTopicRetries(-1))
	return &reader{topic: topic, cl: cl, last: map[int32]int64{}, seen: map[int32][]byte{}}, err
}

func (r *reader) run(ctx context.Context) error {
	for {
		fetches := r.cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		// Errors are no failures: the broker is away now and then. Nor is kgo.ErrDataLoss: the client asks where the epoch
		// of the last record ended that it has returned, and may long be behind that if all that followed was aborted.
		// What is really lost is missing from the numbers.
		for it := fetches.RecordIter(); !it.Done(); {
			if err := r.check(it.Next()); err != nil {
				return err
			}
		}
	}
}

func (r *reader) check(rec *kgo.Record) error {
	at := fmt.Sprintf("%s-%d, offset %d", r.topic, rec.Partition, rec.Offset)
	k, err := strconv.Atoi(string(rec.Key))
	if err != nil || k < 0 || k >= keys || len(rec.Value) < 8 {
		return fmt.Errorf("%s: not a record that was fed: key %q, %d bytes", at, rec.Key, len(rec.Value))
	}
	if last, ok := r.last[rec.Partition]; ok && rec.Offset <= last {
		return fmt.Errorf("%s: came after offset %d", at, last)
	}
	r.last[rec.Partition] = rec.Offset
	switch n := binary.BigEndian.Uint64(rec.Value); {
	case n < r.next[k]:
		return fmt.Errorf("%s: number %d of key %d where %d was due: it was there before", at, n, k, r.next[k])
	case n > r.next[k]:
		return fmt.Errorf("%s: number %d of key %d where %d was due: lost, or out of order", at, n, k, r.next[k])
	}
	r.next[k]++
	h := fnv.New64a()
	h.Write(r.seen[rec.Partition])
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(rec.Offset)))
	h.Write(rec.Key)
	h.Write(rec.Value)
	r.seen[rec.Partition] = h.Sum(nil)
	r.count.Add(1)
	return nil
}

// sum is a digest of everything that was read.
func (r *reader) sum() []byte {
	var b []byte
	for i := range int32(1024) {
		b = append(b, r.seen[i]...)
	}
	return b
}

// span is how much the slowest and the fastest reader have seen.
func span(readers []*reader) (least, most int64) {
	for i, r := range readers {
		n := r.count.Load()
		if i == 0 || n < least {
			least = n
		}
		most = max(most, n)
	}
	return least, most
}

func lastLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
