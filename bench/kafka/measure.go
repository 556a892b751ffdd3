package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
)

// A measurement is what a case does that is not simply a load. It may bring
// several samples.
type measurement func(ctx context.Context, r *runner, run *setupRun, b *broker, d time.Duration) ([]sample, error)

// serves tries until a record of the topic has been produced to partition 0 and
// another one, older, has been fetched from it.
func (b *broker) serves(ctx context.Context, topic string) error {
	return child.Eventually(ctx, 5*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		cl, err := b.client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableIdempotentWrite(),
			kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }), kgo.MetadataMinAge(50*time.Millisecond),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
		if err != nil {
			return err
		}
		defer cl.Close()
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: []byte("is anybody there")}).FirstErr(); err != nil {
			return err
		}
		fs := cl.PollRecords(ctx, 1)
		if err := fs.Err(); err != nil {
			return err
		}
		if fs.NumRecords() == 0 {
			return fmt.Errorf("%s has nothing in partition 0", topic)
		}
		return nil
	})
}

// idle measures what a broker uses while nobody asks for anything.
func idle(ctx context.Context, r *runner, _ *setupRun, b *broker, _ time.Duration) ([]sample, error) {
	d := 10 * time.Second
	if r.quick {
		d = 5 * time.Second
	}
	if err := pause(ctx, d/2); err != nil { // what a load has left behind comes to rest
		return nil, err
	}
	share, rss, err := usedIn(ctx, b, d)
	return []sample{{mIdle: share, mRSS: rss}}, err
}

// usedIn is a process's CPU time in percent of a core, and its memory in MB.
func usedIn(ctx context.Context, b *broker, d time.Duration) (percent, rss float64, err error) {
	before, err := load.Times(b.process.PID())
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, 0, err
	}
	after, err := load.Times(b.process.PID())
	if err != nil {
		return 0, 0, err
	}
	return 100 * (after.CPU - before.CPU).Seconds() / time.Since(began).Seconds(), float64(after.RSS) / 1e6, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// offsetCommits measures commits of offsets: of ten partitions each, by clients
// that go through a thousand groups.
func offsetCommits(committers int) measurement {
	return func(ctx context.Context, r *runner, _ *setupRun, b *broker, d time.Duration) ([]sample, error) {
		topic := r.topicName("commits")
		const partitions = 10
		if err := r.createTopic(ctx, b, topic, partitions, b.replicas(), 0); err != nil {
			return nil, err
		}
		defer r.deleteTopic(b, topic)
		before := machineNow()
		res, err := load.Commits(ctx, load.CommitSpec{
			Bootstrap: []string{b.addr}, Topic: topic, Partitions: partitions, Groups: 1000, Committers: committers,
			Warmup: r.ramp(0), Duration: d, Broker: []int{b.process.PID()},
		})
		if err != nil {
			return nil, err
		}
		s := sampleOf(res)
		s[mOthers] = max(0, machineNow().coresSince(before)-res.Client.Cores-res.Broker.Cores)
		return []sample{s}, nil
	}
}

// rebalances measures how long a group takes until everybody has its share.
func rebalances(protocol string) measurement {
	return func(ctx context.Context, r *runner, _ *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		topic := r.topicName("rebalance-" + protocol)
		const partitions, members = 1000, 200
		if err := r.createTopic(ctx, b, topic, partitions, b.replicas(), 0); err != nil {
			return nil, err
		}
		defer r.deleteTopic(b, topic)
		res, err := load.MeasureRebalances(ctx, load.RebalanceSpec{
			Bootstrap: []string{b.addr}, Topic: topic, Partitions: partitions, Members: members, Protocol: protocol, Broker: []int{b.process.PID()},
		})
		if err != nil {
			return nil, err
		}
		s := sample{
			mAllStart: res.Start.Seconds, mReqStart: float64(res.Start.Requests),
			mAllLeave: res.Leave.Seconds, mReqLeave: float64(res.Leave.Requests),
			mAllJoin: res.Join.Seconds, mReqJoin: float64(res.Join.Requests),
			mCores: res.Broker.Cores, mClient: res.Client.Cores, mRSS: float64(res.Broker.PeakRSS) / 1e6,
		}
		return []sample{s}, nil
	}
}

// restart ends a broker in good order and measures how long it takes from
// starting it to the first record produced and fetched.
func restart(ctx context.Context, r *runner, run *setupRun, b *broker, _ time.Duration) ([]sample, error) {
	topic := r.topicName("restart")
	if err := r.createTopic(ctx, b, topic, 1, b.replicas(), 0); err != nil {
		return nil, err
	}
	defer r.deleteTopic(b, topic)
	if err := b.serves(ctx, topic); err != nil {
		return nil, err
	}
	b.process.Patience = 3 * time.Minute
	// A JVM that was told to end exits with 143, however well it ended.
	if err := b.process.Stop(); err != nil && (b.kind == varve || errors.Is(err, child.ErrStays)) {
		return nil, err
	}
	took, err := b.reopen(ctx, topic)
	return []sample{{mStart: took.Seconds()}}, err
}

// reopen starts a broker on the data that it has.
func (b *broker) reopen(ctx context.Context, topic string) (time.Duration, error) {
	began := time.Now()
	if err := b.open(ctx); err != nil {
		return 0, err
	}
	if err := b.serves(ctx, topic); err != nil {
		return 0, fmt.Errorf("%s does not serve: %w", b.kind, err)
	}
	return time.Since(began), nil
}

// crash fills a broker's log, kills it under load, and measures how long it
// takes until it serves again; some times. It may have topics that nobody uses
// beside the one that is loaded, and a share of the log.
func crash(cold int, share float64, times int) measurement {
	return func(ctx context.Context, r *runner, run *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		return r.crash(ctx, run, b, cold, share*r.logGB, times)
	}
}

func (r *runner) crash(ctx context.Context, run *setupRun, b *broker, cold int, logGB float64, times int) ([]sample, error) {
	if free, need := freeBytes(r.dir), int64(logGB*1e9)+(4<<30); free < need {
		return nil, fmt.Errorf("%.0f GB are free, %.0f are needed", float64(free)/1e9, float64(need)/1e9)
	}
	defer b.close()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	if cold > 0 {
		if err := r.coldTopics(ctx, b, cold); err != nil {
			return nil, err
		}
	}
	topic := r.topicName("crash")
	if err := r.createTopic(ctx, b, topic, 16, b.replicas(), 1<<20); err != nil {
		return nil, err
	}
	spec := load.Spec{
		Bootstrap: []string{b.addr}, Topic: topic, Producers: 4, RecordBytes: 4 << 10, Payload: load.Random, BatchBytes: 1 << 20,
		Linger: 10 * time.Millisecond, Acks: "all", Duration: time.Hour,
	}
	full, stop := context.WithCancel(ctx)
	defer stop()
	spec.Progress = func(p load.Progress) {
		if float64(p.Bytes) >= logGB*1e9 {
			stop()
		}
	}
	if _, err := load.Run(full, spec); err != nil && full.Err() == nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var out []sample
	for range times {
		// Killed in the middle of what it does all day; its clients come back by themselves.
		loaded, end := context.WithCancel(ctx)
		var producing sync.WaitGroup
		spec.Rate, spec.Progress = 20_000, nil
		producing.Go(func() { load.Run(loaded, spec) })
		err := pause(ctx, 2*time.Second)
		size := sizeOf(b.dir)
		b.process.Kill()
		if err == nil && b.kind == varve {
			began := time.Now()
			_, p, berr := r.startBare(ctx, "restart", b.dir)
			if berr == nil {
				run.bare = append(run.bare, floorRun{Sample: sample{mRestart: time.Since(began).Seconds()}})
				p.Kill()
			}
			err = berr
		}
		var took time.Duration
		if err == nil {
			took, err = b.reopen(ctx, topic)
		}
		end()
		producing.Wait()
		if err != nil {
			return out, err
		}
		out = append(out, sample{mRestart: took.Seconds(), mLogGB: float64(size) / 1e9})
		if r.quick {
			break
		}
	}
	return out, nil
}

// sizeOf is what the files below a directory take on disk.
func sizeOf(dir string) int64 {
	var n int64
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n += blocksOf(path)
		}
		return nil
	})
	return n
}

// connections opens n connections, each of which asks once for what a client
// asks first, and measures what they cost while nothing happens on them.
func connections(n int) measurement {
	return func(ctx context.Context, r *runner, run *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		return r.fresh(ctx, run, b, func(b *broker) (sample, error) {
			d := 10 * time.Second
			if r.quick {
				d = 3 * time.Second
			}
			if err := pause(ctx, 2*time.Second); err != nil {
				return nil, err
			}
			_, rss, err := usedIn(ctx, b, 500*time.Millisecond)
			if err != nil {
				return nil, err
			}
			conns, err := connect(ctx, b.addr, n)
			defer closeConns(conns)
			if err != nil {
				return nil, fmt.Errorf("after %d connections: %w", len(conns), err)
			}
			if err := pause(ctx, 2*time.Second); err != nil {
				return nil, err
			}
			share, with, err := usedIn(ctx, b, d)
			return sample{mConnOpen: float64(len(conns)), mConnRSS: (with - rss) * 1e6 / 1024 / float64(n), mConnCPU: share, mRSS: with}, err
		})
	}
}

// churn lets connections come and go at a rate, beside some that stay, and
// measures how soon they are served and what they cost.
func churn(perSecond, idle int) measurement {
	return func(ctx context.Context, r *runner, run *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		return r.fresh(ctx, run, b, func(b *broker) (sample, error) {
			conns, err := connect(ctx, b.addr, idle)
			defer closeConns(conns)
			if err != nil {
				return nil, err
			}
			const seconds = 10
			n := seconds * perSecond
			took := make([]float64, n)
			errs := make(chan error, n)
			before, err := load.Times(b.process.PID())
			if err != nil {
				return nil, err
			}
			hello := greeting()
			begin := time.Now()
			for i := range n {
				due := begin.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
				if err := pause(ctx, time.Until(due)); err != nil {
					return nil, err
				}
				go func() {
					c, err := greet(ctx, b.addr, net.IPv4(127, 0, 0, byte(2+i%16)), hello)
					took[i] = float64(time.Since(due).Microseconds()) / 1000
					if err == nil {
						c.Close()
					}
					errs <- err
				}()
			}
			for range n {
				err = errors.Join(err, <-errs)
			}
			if err != nil {
				return nil, err
			}
			spent := time.Since(begin).Seconds()
			after, err := load.Times(b.process.PID())
			slices.Sort(took)
			return sample{
				mChurn: float64(n) / spent, mChurn50: took[n/2], mChurn99: took[n*99/100],
				mChurnCPU: 1000 * (after.CPU - before.CPU).Seconds() / float64(n), mRSS: float64(after.RSS) / 1e6,
			}, err
		})
	}
}

// fresh measures a broker that has just been started, and beside Varve the floor:
// one that has served before has memory that it can use again, and hides what
// connections cost.
func (r *runner) fresh(ctx context.Context, run *setupRun, b *broker, measure func(*broker) (sample, error)) ([]sample, error) {
	if b.process != nil {
		b.process.Kill()
	}
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	greeted := func(b *broker) (sample, error) {
		some, err := connect(ctx, b.addr, 100)
		closeConns(some)
		if err != nil {
			return nil, err
		}
		return measure(b)
	}
	s, err := greeted(b)
	if err != nil || b.kind != varve {
		return []sample{s}, err
	}
	f, err := r.startFloor(ctx, 1, "--file", "64MiB", "--memory", "64MiB")
	if err != nil {
		return nil, err
	}
	defer f.end()
	bare, err := greeted(&broker{kind: "the floor", addr: f.addr, process: f.Process})
	run.bare = append(run.bare, floorRun{Sample: bare})
	return []sample{s}, err
}

func closeConns(cs []net.Conn) {
	for _, c := range cs {
		c.Close()
	}
}

// greeting is what a client asks first.
func greeting() []byte {
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("idle"))
	hello := kmsg.NewPtrApiVersionsRequest()
	hello.Version, hello.ClientSoftwareName, hello.ClientSoftwareVersion = 3, "bench", "1"
	names := kmsg.NewPtrMetadataRequest()
	names.Version, names.Topics = 8, []kmsg.MetadataRequestTopic{}
	return slices.Concat(f.AppendRequest(nil, hello, 1), f.AppendRequest(nil, names, 2))
}

// connect opens connections from several addresses, because one has too few
// ports for very many.
func connect(ctx context.Context, addr string, n int) ([]net.Conn, error) {

	hello := greeting()
	var mu sync.Mutex
	var out []net.Conn
	var first error
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				c, err := greet(ctx, addr, net.IPv4(127, 0, 0, byte(2+i%16)), hello)
				mu.Lock()
				if err == nil {
					out = append(out, c)
				} else if first == nil {
					first = err
				}
				failed := first != nil
				mu.Unlock()
				if failed {
					return
				}
			}
		})
	}
	wg.Wait()
	if first == nil {
		first = ctx.Err()
	}
	return out, first
}

func greet(ctx context.Context, addr string, from net.IP, greeting []byte) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 30 * time.Second, KeepAlive: -1}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err = c.Write(greeting); err == nil {
		for range 2 {
			var head [4]byte
			if _, err = io.ReadFull(c, head[:]); err != nil {
				break
			}
			if _, err = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[:]))); err != nil {
				break
			}
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// thousands gives a broker topics that nobody uses.
func thousands(partitions int) func(context.Context, *runner, *setupRun) error {
	return func(ctx context.Context, r *runner, run *setupRun) error {
		for _, kind := range []string{kafka, varve} {
			if err := r.coldTopics(ctx, run.brokers[kind], partitions); err != nil {
				return err
			}
		}
		return nil
	}
}

func (r *runner) coldTopics(ctx context.Context, b *broker, partitions int) error {
	began := time.Now()
	for i := 0; i < partitions; i += 1000 {
		if err := r.createTopic(ctx, b, fmt.Sprintf("cold-%d", i), min(1000, partitions-i), b.replicas(), 0); err != nil {
			return err
		}
	}
	r.say("%s has %d partitions after %.1f s", b.kind, partitions, time.Since(began).Seconds())
	return nil
}

// fetchAlone is what fetching costs beside producing: what is left when the cost
// of producing as much without a consumer is taken away.
func fetchAlone(t *table) {
	for i := range t.Sides {
		s := &t.Sides[i]
		if s.Sample == nil || s.Sample[mConsumed] == 0 {
			continue
		}
		for _, o := range t.Sides {
			if o.Block != s.Block || o.Half != s.Half || o.Broker != s.Broker || o.Case != 0 || o.Sample == nil || o.Sample[mMBs] == 0 {
				continue
			}
			producing := o.Sample[mCores] * s.Sample[mMBs] / o.Sample[mMBs]
			// Where producing alone took more, other batches were made: there is no figure.
			if rest := s.Sample[mCores] - producing; rest > 0 {
				s.Sample[mFetchCPU] = rest / (s.Sample[mConsumed] / 1000)
			}
		}
	}
}

// share is a part of what Kafka took at most in W2.
func share(part float64) func(context.Context, *runner) (float64, error) {
	return func(ctx context.Context, r *runner) (float64, error) {
		most, err := r.kafkaMaximum(ctx)
		return part * most, err
	}
}

// kafkaMaximum is how many records a second Kafka takes in W2. If this run did
// not measure that, it is measured now.
func (r *runner) kafkaMaximum(ctx context.Context) (float64, error) {
	if v := r.probes["maximum"]; v > 0 {
		return v, nil
	}
	for _, t := range r.tables {
		if t.Key == "W2" {
			if vs := t.values(0, kafka, mRecords); len(vs) > 0 {
				r.probes["maximum"] = median(vs)
				return r.probes["maximum"], nil
			}
		}
	}
	b := r.running["default"].brokers[kafka]
	w := workloadOf("W2")
	spec := w.Cases[0].Spec
	spec.Bootstrap, spec.Topic, spec.Duration, spec.Warmup = []string{b.addr}, r.topicName("maximum"), r.seconds(w), r.ramp(0)
	if err := r.createTopic(ctx, b, spec.Topic, w.Cases[0].Partitions, b.replicas(), spec.BatchBytes); err != nil {
		return 0, err
	}
	defer r.deleteTopic(b, spec.Topic)
	res, err := load.Run(ctx, spec)
	if err != nil {
		return 0, fmt.Errorf("measuring the maximum of Kafka: %w", err)
	}
	r.probes["maximum"] = res.Produced.RecordsPerSecond
	r.say("Kafka's maximum, for rates: %.0f records/s", res.Produced.RecordsPerSecond)
	return res.Produced.RecordsPerSecond, nil
}
