package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
)

// runner runs workloads, one side at a time.
type runner struct {
	varve string // binary
	jars  string
	minio string // binary; empty: object storage is a directory
	dir   string // of all data

	side    time.Duration // of a workload of scale 1
	warmup  time.Duration // of a broker that has just been started
	floor   time.Duration
	quick   bool
	repeats int // blocks of a row that may be measured again
	limit   time.Duration
	limits  time.Time // no block is measured again where the run would end after this
	ends    time.Time // when it is planned to end, if no block is measured again
	logGB   float64
	replay  int64 // bytes

	running map[string]*setupRun
	floors  map[int]*floorServer
	topics  int
	tables  []*table
	probes  map[string]float64 // what one workload needs from another

	say func(format string, args ...any)
}

// setupRun are the brokers of a setup while they run.
type setupRun struct {
	setup   *setup
	brokers map[string]*broker
	stop    func()     // what Prepare has started beside them
	shared  any        // of Prepare, for the setup's measurements
	bare    []floorRun // floors that a measurement has measured itself
}

// close ends everything that runs.
func (r *runner) close() {
	for _, name := range slices.Sorted(maps.Keys(r.running)) {
		r.end(name)
	}
	r.endFloors()
}

// alive is whether all brokers run that should.
func (s *setupRun) alive() bool {
	for _, b := range s.brokers {
		if !s.setup.Manual && b.alive() != nil {
			return false
		}
	}
	return true
}

func (r *runner) end(name string) {
	s := r.running[name]
	for _, b := range s.brokers {
		b.close()
	}
	if s.stop != nil {
		s.stop()
	}
	delete(r.running, name)
}

// run measures the workloads in turn; what fails is in its table.
func (r *runner) run(ctx context.Context, ws []workload) error {
	start := time.Now()
	for i, w := range ws {
		began := time.Now()
		r.ends = began.Add(r.planned(ws[i:]))
		r.limits = start.Add(r.limit)
		t := r.workload(ctx, w)
		t.Took = time.Since(began).Seconds()
		r.tables = append(r.tables, t)
		if t.Failed != "" {
			r.say("%s: %s", w.Key, t.Failed)
		}
		r.endFloors()
		// Brokers stay for the next workload that needs them.
		later := map[string]bool{}
		for _, x := range ws[i+1:] {
			for _, s := range x.setups() {
				later[s] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(r.running)) {
			if !later[name] {
				r.end(name)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// lengthOf is how long the workload's sides and floors are, in words.
func (r *runner) lengthOf(w workload) string {
	floors := false
	long, short := time.Duration(0), time.Hour
	for _, c := range w.Cases {
		if c.Measure == nil {
			long, short, floors = max(long, r.ramp(c.Partitions)), min(short, r.ramp(c.Partitions)), floors || c.Floor
		}
	}
	var out string
	switch sides := r.seconds(w).Seconds(); {
	case long > 0:
		out = fmt.Sprintf("A side is %.3g s after %.2g s of load", sides, short.Seconds())
		if long > short {
			out = fmt.Sprintf("A side is %.3g s after %.2g to %.2g s of load", sides, short.Seconds(), long.Seconds())
		}
	case w.Scale > 0:
		out = fmt.Sprintf("A side is %.3g s", sides)
	default:
		return ""
	}
	if floors {
		out += fmt.Sprintf(", a floor %.2g s", r.floor.Seconds())
	}
	return out + "."
}

func (r *runner) workload(ctx context.Context, w workload) *table {
	t := &table{Key: w.Key, ID: w.ID(), Title: w.Title, Length: r.lengthOf(w), Setups: w.setups(), Notes: slices.Clone(w.Notes)}
	for _, c := range w.Cases {
		t.Cases = append(t.Cases, caseInfo{c.Name, c.describe()})
	}
	r.say("%s: %s", w.Key, w.Title)
	for _, name := range w.setups() {
		if err := r.prepare(ctx, name); err != nil {
			t.Failed = fmt.Sprintf("setting up %q: %v", name, err)
			return t
		}
	}
	if err := r.blocks(ctx, w, t); err != nil {
		t.Failed = err.Error()
	}
	if w.Derive != nil {
		w.Derive(t)
	}
	return t
}

// blocks measures the blocks of a workload, and again those whose floor moved.
func (r *runner) blocks(ctx context.Context, w workload, t *table) error {
	want := w.blocks(r.quick)
	for n, again := 0, 0; ; n++ {
		if n == 0 {
			if err := r.measureFloors(ctx, w, t, 0); err != nil {
				return err
			}
		}
		t.Blocks = append(t.Blocks, block{})
		for _, p := range order(len(w.Cases), n, w.back(r.quick)) {
			c := &w.Cases[p.Case]
			if c.Only != "" && c.Only != p.Broker {
				continue
			}
			if err := r.measureSide(ctx, w, c, t, n, p); err != nil {
				t.judge()
				return err
			}
		}
		if err := r.measureFloors(ctx, w, t, n+1); err != nil {
			t.judge()
			return err
		}
		good := t.judge()
		if n+1 < want {
			continue
		}
		if good >= want || again >= r.repeats {
			return nil
		}
		more := r.plannedOf(w) / time.Duration(want)
		if r.ends.Add(more).After(r.limits) {
			r.say("%s: the floor moved, and there is no time for one more block", w.Key)
			return nil
		}
		r.ends = r.ends.Add(more)
		again++
		r.say("%s: the floor moved by %.0f %%: one more block", w.Key, 100*t.Blocks[n].Moved)
	}
}

// measureSide measures one case on one broker. That it fails is a result; only
// the end of the run is an error, or of a broker.
func (r *runner) measureSide(ctx context.Context, w workload, c *kase, t *table, blk int, p place) error {
	run := r.running[c.setup(w)]
	b := run.brokers[p.Broker]
	if b == nil {
		return nil
	}
	if err := r.quiet(ctx); err != nil {
		return err
	}
	before := machineNow()
	samples, err := r.measure(ctx, w, c, run, b)
	after := machineNow()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, f := range run.bare {
		r.say("%-9s %-32s floor %s%s", w.Key, c.Name, f.Sample.line(), f.Error)
		f.At, f.Case = blk, p.Case
		t.Floors = append(t.Floors, f)
	}
	run.bare = nil
	if err != nil {
		r.say("%s %s %s: %v", w.Key, c.Name, p.Broker, err)
		t.Sides = append(t.Sides, side{Block: blk, Half: p.Half, Case: p.Case, Broker: p.Broker, Error: err.Error()})
		if run.setup.Manual {
			return nil
		}
		return b.alive()
	}
	for _, s := range samples {
		r.say("%-9s %-32s %s %s", w.Key, c.Name, p.Broker, s.line())
		t.Sides = append(t.Sides, side{Block: blk, Half: p.Half, Case: p.Case, Broker: p.Broker, Sample: s, Stall: after.stalledSince(before)})
	}
	return nil
}

func (r *runner) measure(ctx context.Context, w workload, c *kase, run *setupRun, b *broker) ([]sample, error) {
	if c.Measure != nil {
		return c.Measure(ctx, r, run, b, r.seconds(w))
	}
	spec, err := r.spec(ctx, c)
	if err != nil {
		return nil, err
	}
	replicas := c.Replicas
	if replicas == 0 {
		replicas = b.replicas()
	}
	spec.Bootstrap, spec.Broker = b.addrs(), b.pids()
	spec.Duration, spec.Warmup = r.seconds(w), r.ramp(c.Partitions)
	spec.Topic = r.topicName(w.Key)
	if err := r.room(spec, replicas); err != nil {
		return nil, err
	}
	if err := r.createTopic(ctx, b, spec.Topic, c.Partitions, replicas, spec.BatchBytes); err != nil {
		return nil, err
	}
	defer r.deleteTopic(b, spec.Topic)
	if spec.Processors > 0 {
		// The warm-up has no transactions in it: what Kafka's compiler has not seen yet is loaded longer.
		spec.Warmup = max(spec.Warmup, r.warmup/4)
		spec.Output = r.topicName(w.Key + "-out")
		if err := r.createTopic(ctx, b, spec.Output, c.Partitions, replicas, spec.BatchBytes); err != nil {
			return nil, err
		}
		defer r.deleteTopic(b, spec.Output)
	}
	var beside []int
	if b.members != nil {
		beside = b.members.beside()
	}
	before := cpuOf(beside)
	s, err := r.load(ctx, spec)
	if err != nil {
		return nil, err
	}
	if gb := (s[mMBs] + s[mConsumed]) * (spec.Duration + spec.Warmup).Seconds() / 1000; len(beside) > 0 && gb > 0 {
		s[mBeside] = (cpuOf(beside) - before).Seconds() / gb
	}
	return []sample{s}, nil
}

// room is an error where a side may fill the disk: a broker that finds it full
// is not what is measured, and others may need it too.
func (r *runner) room(spec load.Spec, replicas int) error {
	need := int64(replicas) << 31
	if spec.Rate == 0 {
		need += int64((spec.Duration + spec.Warmup).Seconds() * 700e6)
	}
	if free := freeBytes(r.dir); free < need {
		return fmt.Errorf("%.1f GB of disk are free, this may take %.1f GB", float64(free)/1e9, float64(need)/1e9)
	}
	return nil
}

// load runs a load and adds what the rest of the machine did meanwhile.
func (r *runner) load(ctx context.Context, spec load.Spec) (sample, error) {
	before, disk := machineNow(), writtenTo(r.dir)
	res, err := load.Run(ctx, spec)
	if err != nil {
		return nil, err
	}
	after := machineNow()
	s := sampleOf(res)
	if n := writtenTo(r.dir) - disk; n > 0 && res.Produced != nil {
		// What is produced in the ramp is written too, and not counted.
		measured := res.Seconds / (res.Seconds + spec.Warmup.Seconds())
		s[mDisk] = float64(n) * measured / float64(res.Produced.Bytes)
	}
	// The ramp before the measurement is not in the load's figures: its share is taken as the same.
	mine := res.Client.Cores
	if res.Broker != nil {
		mine += res.Broker.Cores
	}
	s[mOthers] = max(0, after.coresSince(before)-mine)
	return s, nil
}

// spec is a case's load, with a rate that depends on another workload.
func (r *runner) spec(ctx context.Context, c *kase) (load.Spec, error) {
	s := c.Spec
	if c.RateOf != nil {
		rate, err := c.RateOf(ctx, r)
		if err != nil {
			return s, err
		}
		s.Rate = rate
	}
	return s, nil
}

// seconds is how long a side of the workload is measured.
func (r *runner) seconds(w workload) time.Duration {
	return max(time.Duration(float64(r.side)*w.scale()), time.Second)
}

// ramp is how long clients load before a side is measured: connections,
// metadata, full buffers. A new topic of many partitions takes Kafka seconds
// in which it does next to nothing (measured: 288 partitions, 5 MB/s in the
// first four seconds, 120 MB/s over fifteen): that is not what a row compares.
func (r *runner) ramp(partitions int) time.Duration {
	d := min(r.side/8, 1500*time.Millisecond)
	if partitions >= 64 {
		d = max(r.side/7, 1800*time.Millisecond)
	}
	return d
}

// quiet waits until the disk has what was written before, so that no side pays
// for the one before it, and until nobody gives it more: brokers that idle
// prepare files for what may come, and what a deleted topic leaves is discarded
// behind the deletion's back.
func (r *runner) quiet(ctx context.Context) error {
	f, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	const window, still = 250 * time.Millisecond, 1 << 20
	for end, before := time.Now().Add(quietPatience), givenTo(r.dir); time.Now().Before(end); {
		if err := pause(ctx, window); err != nil {
			return err
		}
		now := givenTo(r.dir)
		if now-before < still {
			return nil
		}
		before = now
	}
	r.say("the disk has been busy for %s: measured all the same", quietPatience)
	return nil
}

// quietPatience is for three files of 256 MiB that are filled with zeros by the way.
const quietPatience = 15 * time.Second

func (r *runner) topicName(key string) string {
	r.topics++
	return fmt.Sprintf("bench-%s-%d", strings.ToLower(key), r.topics)
}

// createTopic makes a topic that takes batches of a size, and waits until every
// partition has a leader.
func (r *runner) createTopic(ctx context.Context, b *broker, name string, partitions, replicas, batch int, configs ...string) error {
	adm, err := b.adm()
	if err != nil {
		return err
	}
	defer adm.Close()
	// A batch before compression may be longer than its records.
	limit := fmt.Sprint(max(batch+(1<<16), 1048588))
	cfg := map[string]*string{"max.message.bytes": &limit}
	for _, c := range configs {
		k, v, _ := strings.Cut(c, "=")
		cfg[k] = &v
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if _, err := adm.CreateTopic(ctx, int32(partitions), int16(replicas), cfg, name); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create %s with %d partitions on %s: %w", name, partitions, b.kind, err)
	}
	err = child.Eventually(ctx, time.Minute, func() error {
		topics, err := adm.ListTopics(ctx, name)
		if err != nil {
			return err
		}
		if n := len(topics[name].Partitions); n != partitions {
			return fmt.Errorf("%s has %d of %d partitions on %s: %v", name, n, partitions, b.kind, topics[name].Err)
		}
		for _, p := range topics[name].Partitions {
			if p.Err != nil || p.Leader < 0 || len(p.ISR) < replicas {
				return fmt.Errorf("%s-%d on %s has no leader, or replicas that are not in sync: leader %d, in sync %v: %v", name, p.Partition, b.kind, p.Leader, p.ISR, p.Err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.prime(ctx, name, partitions)
}

// prime produces a record to every partition. A leader in the metadata does not
// mean that its log is there: Kafka makes hundreds of them for seconds, and
// that is not what a side is to measure.
func (b *broker) prime(ctx context.Context, topic string, partitions int) error {
	cl, err := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableIdempotentWrite(), kgo.RecordDeliveryTimeout(time.Minute))
	if err != nil {
		return err
	}
	defer cl.Close()
	var records []*kgo.Record
	for p := range int32(partitions) {
		records = append(records, &kgo.Record{Topic: topic, Partition: p, Value: []byte("first")})
	}
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("a first record to each partition of %s on %s: %w", topic, b.kind, err)
	}
	return nil
}

// deleteTopic gives the disk back. The run goes on if it cannot: what that
// costs is seen when the disk is full.
func (r *runner) deleteTopic(b *broker, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	adm, err := b.adm()
	if err == nil {
		defer adm.Close()
		_, err = adm.DeleteTopic(ctx, name)
	}
	if err != nil {
		r.say("delete %s on %s: %v", name, b.kind, err)
		return
	}
	time.Sleep(1200 * time.Millisecond) // Kafka's log.segment.delete.delay.ms, and its thread
}

// prepare starts the brokers of a setup, and warms them up, if they do not run.
func (r *runner) prepare(ctx context.Context, name string) error {
	if run := r.running[name]; run != nil {
		if run.alive() {
			return nil
		}
		r.say("%s: a broker has ended: both are started anew", name)
		r.end(name)
	}
	i := slices.IndexFunc(setups, func(s setup) bool { return s.Name == name })
	if i < 0 {
		return fmt.Errorf("no setup %q", name)
	}
	s := &setups[i]
	run := &setupRun{setup: s, brokers: map[string]*broker{}}
	r.running[name] = run
	err := r.open(ctx, run)
	if err != nil {
		r.end(name)
	}
	return err
}

func (r *runner) open(ctx context.Context, run *setupRun) error {
	s := run.setup
	if s.Kafka != nil {
		var b *broker
		var err error
		if s.Brokers > 0 {
			b, err = r.newKafkaCluster(s)
		} else {
			b, err = r.newKafka(s.Name, *s.Kafka)
		}
		if err != nil {
			return err
		}
		run.brokers[kafka] = b
	}
	settings := s.Varve
	if s.Before != nil {
		more, err := s.Before(ctx, r, run)
		if err != nil {
			return err
		}
		settings = slices.Concat(settings, more)
	}
	if s.Varve != nil {
		var b *broker
		var err error
		if s.Brokers > 0 {
			b, err = r.newVarveCluster(s)
		} else {
			b, err = r.newVarve(s.Name, settings)
		}
		if err != nil {
			return err
		}
		run.brokers[varve] = b
	}
	if s.Manual {
		return nil
	}
	for _, kind := range []string{kafka, varve} {
		b := run.brokers[kind]
		if b == nil {
			continue
		}
		if err := b.open(ctx); err != nil {
			return err
		}
		r.say("%s (%s) answers after %.1f s", kind, s.Name, b.started.Seconds())
		if err := r.warm(ctx, b); err != nil {
			return fmt.Errorf("warming up %s: %w", kind, err)
		}
	}
	if s.Prepare != nil {
		return s.Prepare(ctx, r, run)
	}
	return nil
}

// warm loads a broker that has just been started, so that what is measured is
// compiled: producers and consumers, batches of three sizes, one record each
// among them, and many partitions in one request, which Kafka's compiler takes
// for another program. What comes too fast waits in the clients, as it does in
// a side.
func (r *runner) warm(ctx context.Context, b *broker) error {
	d := r.warmup
	if b.kind == varve {
		d = max(d/4, time.Second) // nothing is compiled there; pools and files are made
	}
	for _, w := range []struct{ batch, partitions, record int }{{16 << 10, 16, 1 << 10}, {1 << 20, 16, 1 << 10}, {1300, 16, 1 << 10}, {16 << 10, 288, 200}} {
		topic := r.topicName("warm")
		if err := r.createTopic(ctx, b, topic, w.partitions, b.replicas(), w.batch); err != nil {
			return err
		}
		_, err := load.Run(ctx, load.Spec{
			Bootstrap: b.addrs(), Topic: topic, Producers: 4, Consumers: 2, RecordBytes: w.record, Payload: load.Random,
			Rate: 150_000, BatchBytes: w.batch, Linger: 2 * time.Millisecond, Acks: "all", Duration: d / 4,
			BufferBytes: 4 << 20, // little is left to send when it ends
		})
		r.deleteTopic(b, topic)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && b.alive() != nil:
			return b.alive()
		case err != nil: // what is too slow for a warm-up is measured all the same
			r.say("warming up %s: %v", b.kind, err)
		}
	}
	return nil
}

// floorServer is a floor in a process of its own.
type floorServer struct {
	addr string
	dir  string
	*child.Process
}

func (f *floorServer) end() {
	f.Kill()
	os.RemoveAll(f.dir)
}

func (r *runner) endFloors() {
	for n, f := range r.floors {
		f.end()
		delete(r.floors, n)
	}
}

func (r *runner) floorOf(ctx context.Context, partitions int) (*floorServer, error) {
	if f := r.floors[partitions]; f != nil {
		return f, nil
	}
	f, err := r.startFloor(ctx, partitions)
	if err == nil {
		r.floors[partitions] = f
	}
	return f, err
}

func (r *runner) startFloor(ctx context.Context, partitions int, flags ...string) (*floorServer, error) {
	addr, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	f := &floorServer{addr: addr, dir: filepath.Join(r.dir, fmt.Sprintf("floor-%d", partitions))}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, err
	}
	args := append([]string{"bench", "floor", "--listen", addr, "--dir", f.dir, "--partitions", fmt.Sprint(partitions)}, flags...)
	f.Process, err = child.Start(ctx, &child.Process{Name: "the floor", Log: filepath.Join(f.dir, "floor.log")},
		execCommand(r.varve, args...), func() error { return child.Dialled(addr) })
	return f, err
}

// measureFloors runs the loads of a workload, short, against the floor.
func (r *runner) measureFloors(ctx context.Context, w workload, t *table, at int) error {
	for i := range w.Cases {
		c := &w.Cases[i]
		if !c.Floor {
			continue
		}
		run := floorRun{At: at, Case: i}
		s, err := r.measureFloor(ctx, w, c)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			run.Error = err.Error()
			r.say("%s %s: the floor: %v", w.Key, c.Name, err)
		} else {
			run.Sample, run.Judged = s, s.judged(c.Spec.Rate > 0 || c.RateOf != nil)
			r.say("%-9s %-32s floor %s", w.Key, c.Name, s.line())
		}
		t.Floors = append(t.Floors, run)
	}
	return nil
}

func (r *runner) measureFloor(ctx context.Context, w workload, c *kase) (sample, error) {
	f, err := r.floorOf(ctx, c.Partitions)
	if err != nil {
		return nil, err
	}
	spec, err := r.spec(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := r.quiet(ctx); err != nil {
		return nil, err
	}
	spec.Bootstrap, spec.Broker = []string{f.addr}, []int{f.PID()}
	spec.Topic, spec.Duration, spec.Warmup = "floor", r.floor, r.ramp(0)
	return r.load(ctx, spec)
}

// judged is the number by which floors of a row are compared: what went
// through, or, where the rate is given, what it cost.
func (s sample) judged(rated bool) float64 {
	if rated {
		return s[mCPU]
	}
	return s[mMBs]
}

// line is a sample in one line, for whoever watches.
func (s sample) line() string {
	var b strings.Builder
	for _, m := range metrics {
		v, ok := s[m.Name]
		if ok && (!m.Plain || m.Name == mErrors && v > 0 || m.Name == mOthers || m.Name == mPerBatch) {
			fmt.Fprintf(&b, " "+m.Format+" %s,", v, m.Name)
		}
	}
	return strings.Trim(b.String(), ", ")
}
