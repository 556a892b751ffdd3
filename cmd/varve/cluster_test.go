package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
)

// processes is a cluster whose brokers are this binary.
func processes(o cluster.Options) cluster.Options {
	o.Varve, o.Env = []string{os.Args[0]}, []string{envBeVarve + "=1"}
	return o
}

// The cluster of `make cluster-up`, with the configuration files that the containers have too: it goes on by itself, is
// found again, is mended where a process is missing, and its end leaves what it keeps.
func TestClusterStays(t *testing.T) {
	o := processes(cluster.Options{
		Dir: t.TempDir(), FreePorts: true, Stays: true, Servers: []string{os.Args[0]},
		Config: func(id int32) string {
			return filepath.Join("..", "..", "deploy", "broker-"+strconv.Itoa(int(id))+".properties")
		},
		Workers: 2, WorkerConfig: filepath.Join("..", "..", "deploy", "compactor.properties"),
		Set: []string{"wal.segment.bytes=4194304", "wal.max.bytes=134217728"},
	})
	open := func() *cluster.Cluster {
		t.Helper()
		c, err := cluster.New(o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	up := func(want ...string) *cluster.Cluster {
		t.Helper()
		c := open()
		started, err := c.Up(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(started, want) {
			t.Fatalf("started %q, want %q", started, want)
		}
		return c
	}
	all := []string{"etcd-1", "etcd-2", "etcd-3", "s3", "broker-1", "broker-2", "broker-3", "compactor-1", "compactor-2"}
	t.Cleanup(func() {
		if _, err := open().Down(); err != nil {
			t.Error(err)
		}
	})

	up(all...)
	if again := up(); again.Describe().Bootstrap != open().Describe().Bootstrap {
		t.Error("the addresses are others")
	}
	adm := kadm.NewClient(open().Client(t))
	if _, err := adm.CreateTopic(t.Context(), -1, -1, nil, "kept"); err != nil {
		t.Fatal(err)
	}
	servertest.AgreeAt(t, open().Bootstrap()...)
	details, err := adm.ListTopics(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if n := details["kept"].Partitions.NumReplicas(); n != 3 || len(details["kept"].Partitions) != 3 {
		t.Errorf("a topic by default has %d partitions of %d replicas", len(details["kept"].Partitions), n)
	}
	configs, err := adm.DescribeTopicConfigs(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == "min.insync.replicas" && c.MaybeValue() != "2" {
			t.Errorf("min.insync.replicas is %s", c.MaybeValue())
		}
	}

	// One is killed, one hangs: the first is started again, the second is there.
	if err := errors.Join(open().Broker(2).Kill(), open().Broker(3).Pause(), open().Broker(3).Resume(), open().Etcd[0].Kill()); err != nil {
		t.Fatal(err)
	}
	c := up("etcd-1", "broker-2")
	if d := c.Describe(); d.Brokers[1].PID == 0 || d.Brokers[1].PID == d.Brokers[2].PID || d.S3.PID == 0 || d.Etcd[0].PID == 0 {
		t.Errorf("described as %+v", d)
	}

	ended, err := c.Down()
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(all[4:], all[:4])
	if !slices.Equal(ended, want) {
		t.Errorf("ended %q, want %q", ended, want)
	}
	if ended, err := open().Down(); len(ended) > 0 || err != nil {
		t.Errorf("ended %q again: %v", ended, err)
	}
	c = up(all...)
	if _, err := kadm.NewClient(c.Client(t)).DescribeTopicConfigs(t.Context(), "kept"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// What keeps a cluster from coming up is said with the words that help, and leaves nothing running.
func TestClusterFails(t *testing.T) {
	o := processes(cluster.Options{Dir: t.TempDir(), FreePorts: true, Brokers: 1, Etcd: 1, Servers: []string{os.Args[0]}})
	fails := func(o cluster.Options, meanwhile func(*cluster.Cluster), want ...string) {
		t.Helper()
		c, err := cluster.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if meanwhile != nil {
			meanwhile(c)
		}
		_, err = c.Up(t.Context())
		if err == nil {
			c.Down()
			t.Fatalf("no error; want %q", want)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q is not in %v", w, err)
			}
		}
		if d := c.Describe(); d.Brokers[0].PID != 0 || d.Etcd[0].PID != 0 || d.S3.PID != 0 {
			t.Errorf("left running: %+v", d)
		}
	}
	var taken net.Listener
	fails(o, func(c *cluster.Cluster) {
		var err error
		if taken, err = net.Listen("tcp", c.Broker(1).Addr); err != nil {
			t.Fatal(err)
		}
	}, "broker-1 cannot have "+"127.0.0.1:", "address already in use", "who has it")
	taken.Close()

	bad := o
	bad.Set = []string{"num.partitions=many"}
	fails(bad, nil, "starting broker-1", "exit status 2", `Invalid value "many" for configuration num.partitions`)
	bad = o
	bad.Servers = []string{"/bin/false"}
	fails(bad, nil, "starting etcd-1", "starting s3", "exit status 1")

	c, err := cluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Broker(1).Kill(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("killing what does not run: %v", err)
	}
	if err := c.Broker(1).Stop(); err != nil {
		t.Errorf("stopping what does not run: %v", err)
	}
	if _, err := cluster.New(cluster.Options{Dir: o.Dir, Brokers: 2}); err == nil || !strings.Contains(err.Error(), "it has 1 brokers") {
		t.Errorf("another shape in the same place: %v", err)
	}
	unlock, err := cluster.Lock(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Lock(o.Dir); err == nil {
		t.Error("two at once")
	}
	unlock()
}

// A file in Kafka's own words, as a KRaft broker has it, starts a broker once etcd and the bucket are named. What etcd
// does here is warned about, by file and line; what is said of topics holds.
func TestSeedConfiguration(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Brokers: 1, Etcd: 1}))
	d := c.Describe()
	if err := c.Broker(1).Stop(); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "server.properties")
	text := `# As Kafka has it.
broker.id=7
node.id=7
process.roles=broker,controller
listeners=PLAINTEXT://` + addr + `,CONTROLLER://127.0.0.1:9093
advertised.listeners=PLAINTEXT://` + addr + `
controller.quorum.voters=7@127.0.0.1:9093
num.network.threads=3
num.io.threads=8
log.dirs=` + filepath.Join(dir, "log") + `
num.partitions=3
default.replication.factor=3
min.insync.replicas=2
unclean.leader.election.enable=false
auto.create.topics.enable=false
log.retention.hours=168

# What Varve needs beside it.
etcd.endpoints=` + d.Etcd[0].Client + `
etcd.prefix=/seed
remote.storage.url=file://` + filepath.Join(dir, "objects") + `?create=true
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(envBeVarve, "1")
	log := filepath.Join(dir, "varve.log")
	// A port and a disk that others have not taken already.
	cmd := exec.Command(os.Args[0], "broker", "--config", file, "--set", "admin.listener=127.0.0.1:0", "--set", "wal.max.bytes=67108864")
	p, err := child.Start(t.Context(), &child.Process{Name: "varve broker", Log: log}, cmd, func() error { return child.Dialled(addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)

	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var warned []string
	for line := range strings.Lines(string(b)) {
		if w, ok := strings.CutPrefix(line, "warning: "+file+":"); ok {
			warned = append(warned, strings.TrimSpace(w))
		}
	}
	const etcd = "etcd keeps the cluster's metadata here: that of etcd.endpoints"
	want := []string{
		"7: controller.quorum.voters has no effect: " + etcd,
		"4: process.roles has no effect: " + etcd,
		"5: listener CONTROLLER is for KRaft controllers and is left out: " + etcd,
	}
	if !slices.Equal(warned, want) {
		t.Errorf("warned\n%s\nwant\n%s", strings.Join(warned, "\n"), strings.Join(want, "\n"))
	}

	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.UnknownTopicRetries(0))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), 1, 1, nil, "mine"); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "nobodys"}).FirstErr(); err == nil {
		t.Error("a topic was created though auto.create.topics.enable=false")
	}
	configs, err := adm.DescribeTopicConfigs(t.Context(), "mine")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range configs[0].Configs {
		got[c.Key] = c.MaybeValue()
	}
	for name, want := range map[string]string{"min.insync.replicas": "2", "unclean.leader.election.enable": "false", "retention.ms": "604800000"} {
		if got[name] != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
	meta, err := adm.BrokerMetadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ids := meta.Brokers.NodeIDs(); !slices.Equal(ids, []int32{7}) {
		t.Errorf("brokers %v", ids)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// Three processes: whoever leads is killed, and the next one stopped where it stands, while a producer asks for
// acknowledgements of all. Nothing that was acknowledged is lost or doubled, and whoever comes back is in sync again.
func TestLeaderKilled(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Set: []string{"default.replication.factor=3", "min.insync.replicas=2"}}))
	cl := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.DefaultProduceTopic("t"))
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	servertest.AgreeAt(t, c.Bootstrap()...)
	// led waits until n replicas are in sync and one of them, other than before, leads.
	led := func(n int, before int32) (leader int32) {
		t.Helper()
		eventually(t, func() error {
			topics, err := adm.ListTopics(t.Context(), "t")
			if err != nil {
				return err
			}
			p := topics["t"].Partitions[0]
			if leader = p.Leader; p.Err != nil || leader < 1 || leader == before || len(p.ISR) != n || len(p.Replicas) != 3 {
				return fmt.Errorf("leader %d, replicas %v, in sync %v, %v", leader, p.Replicas, p.ISR, p.Err)
			}
			return nil
		})
		return leader
	}

	var l ledger
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		l.produce(cl, "t", stop, func(err error) { t.Errorf("a record was given up: %v", err) })
	}()
	end := sync.OnceFunc(func() { close(stop); <-done })
	defer end()
	more := func() {
		t.Helper()
		before := l.len()
		eventually(t, func() error {
			if n := l.len(); n < before+500 {
				return fmt.Errorf("%d records acknowledged of 500", n-before)
			}
			return nil
		})
	}

	more()
	first := led(3, 0)
	if err := c.Broker(first).Kill(); err != nil {
		t.Fatal(err)
	}
	second := led(2, first)
	more()
	if err := c.Broker(first).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	led(3, first)
	more()

	if err := c.Broker(second).Pause(); err != nil {
		t.Fatal(err)
	}
	third := led(2, second)
	more()
	if err := c.Broker(second).Resume(); err != nil {
		t.Fatal(err)
	}
	led(3, second)
	more()
	end()

	read := func() {
		t.Helper()
		in := c.Client(t, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(50*time.Millisecond))
		l.checkWith(t, in, 0)
	}
	read()
	// The other replicas have it too.
	for _, id := range []int32{third, led(3, 0)} {
		if !c.Broker(id).Running() {
			continue
		}
		if err := c.Broker(id).Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		led(3, 0)
		read()
	}
	for _, b := range c.Brokers {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// A group's coordinator is stopped where it stands, and another takes its place. What the first is asked before it goes on it
// does not answer from what it knew: an offset that was committed since is told, or nobody's.
func TestPausedCoordinator(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Set: []string{"default.replication.factor=3", "offsets.topic.num.partitions=1", "offsets.topic.replication.factor=3", "min.insync.replicas=2"}}))
	cl := c.Client(t)
	topic, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, -1, nil, "t")
	if err != nil {
		t.Fatal(err)
	}
	// coordinator asks a broker other than the one given for another coordinator.
	coordinator := func(other int32) (id int32) {
		t.Helper()
		eventually(t, func() error {
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorKeys = []string{"g"}
			resp, err := cl.Broker(int(other%3+1)).Request(t.Context(), req)
			if err != nil {
				return err
			}
			found := resp.(*kmsg.FindCoordinatorResponse).Coordinators[0]
			if id = found.NodeID; found.ErrorCode != 0 || id == other {
				return fmt.Errorf("coordinator %d, %w", id, kerr.ErrorForCode(found.ErrorCode))
			}
			return nil
		})
		return id
	}
	// commit has an offset committed by a coordinator other than the broker given. Who is asked for it may have stood still a moment
	// ago, and name the one before.
	commit := func(at int64, other int32) {
		t.Helper()
		eventually(t, func() error {
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Group, req.Generation = "g", -1
			req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "t", TopicID: topic.ID, Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Offset: at, LeaderEpoch: -1}}}}
			resp, err := cl.Broker(int(coordinator(other))).Request(t.Context(), req)
			if err != nil {
				return err
			}
			return kerr.ErrorForCode(resp.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode)
		})
	}
	commit(1, 0)
	for at := int64(2); at < 5; at++ {
		mine := c.Client(t) // with connections of its own, one of which is there before
		var own *kgo.Broker
		ask := func() (*kmsg.OffsetFetchResponseGroup, error) {
			req := kmsg.NewPtrOffsetFetchRequest()
			g := kmsg.NewOffsetFetchRequestGroup()
			g.Group, g.Topics = "g", []kmsg.OffsetFetchRequestGroupTopic{{Topic: "t", TopicID: topic.ID, Partitions: []int32{0}}}
			req.Groups = append(req.Groups, g)
			resp, err := own.Request(t.Context(), req)
			if err != nil {
				return nil, err
			}
			return &resp.(*kmsg.OffsetFetchResponse).Groups[0], nil
		}
		var first int32
		var g *kmsg.OffsetFetchResponseGroup
		eventually(t, func() error {
			first = coordinator(0)
			own = mine.Broker(int(first))
			var err error
			if g, err = ask(); err != nil { // its client may not have heard of that broker yet
				return err
			}
			if g.ErrorCode == kerr.NotCoordinator.Code {
				return fmt.Errorf("broker %d is not the coordinator", first)
			}
			return nil
		})
		if g.ErrorCode != 0 || g.Topics[0].Partitions[0].Offset != at-1 {
			t.Fatalf("at first: %+v", g)
		}
		if err := c.Broker(first).Pause(); err != nil {
			t.Fatal(err)
		}
		told := make(chan *kmsg.OffsetFetchResponseGroup)
		commit(at, first)
		go func() {
			g, err := ask()
			if err != nil {
				t.Error(err)
			}
			told <- g
		}()
		time.Sleep(100 * time.Millisecond) // the request is on its way to it
		if err := c.Broker(first).Resume(); err != nil {
			t.Fatal(err)
		}
		if g = <-told; g == nil {
			continue
		}
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			if !errors.Is(err, kerr.NotCoordinator) {
				t.Errorf("the one that was stopped: %v", err)
			}
		} else if got := g.Topics[0].Partitions[0].Offset; got != at {
			t.Errorf("the one that was stopped says offset %d, and %d was committed", got, at)
		}
	}
}

// All brokers are killed at once, and the log of one is damaged before they come back, while it counts as in sync. It
// says so, others lead, and it copies what it had: nobody has to do anything, and nothing that was acknowledged is lost.
func TestDamagedReplicaOfAClusterThatCrashed(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Set: []string{"default.replication.factor=3", "min.insync.replicas=2", "remote.flush.interval.ms=3600000"}}))
	cl := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(kgo.NoCompression()))
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	all := func() (leader int32) {
		t.Helper()
		eventually(t, func() error {
			topics, err := adm.ListTopics(t.Context(), "t")
			if err != nil {
				return err
			}
			p := topics["t"].Partitions[0]
			if leader = p.Leader; p.Err != nil || leader < 1 || len(p.ISR) != 3 {
				return fmt.Errorf("leader %d, in sync %v, %v", leader, p.ISR, p.Err)
			}
			return nil
		})
		return leader
	}
	damaged := all()
	put := func(n int) {
		t.Helper()
		for range n {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: []byte("acknowledged-by-all")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(20)
	for _, f := range []func(*cluster.Broker) error{
		func(b *cluster.Broker) error { return b.Pause() }, // so that none sees another end
		func(b *cluster.Broker) error { return b.Kill() },
	} {
		for _, b := range c.Brokers {
			if err := f(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip(t, c.Describe().Brokers[damaged-1].Data, []byte("acknowledged-by-all"))
	// First it alone, which counts as in sync as long as nobody else says otherwise.
	if err := c.Broker(damaged).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		log, err := os.ReadFile(c.Broker(damaged).Log())
		if err == nil && !strings.Contains(string(log), "local log given up") {
			err = errors.New("the damaged log is not given up")
		}
		return err
	})
	for _, b := range c.Brokers {
		if b.ID == damaged {
			continue
		}
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	all()
	put(5)
	in := c.Client(t, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for n := 0; n < 25; {
		fs := in.PollFetches(t.Context())
		if err := fs.Err(); err != nil {
			t.Fatal(err)
		}
		n += fs.NumRecords()
	}
}

// flip flips a bit of the first place in a broker's log that holds these bytes.
func flip(t *testing.T, dir string, what []byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".wal" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(b, what)
		if at < 0 {
			return nil
		}
		b[at] ^= 1
		return cmp.Or(os.WriteFile(path, b, 0o600), fs.SkipAll)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A broker that has been of the cluster before starts while etcd or the bucket is away: it waits for the one, and goes on
// without the other, even if its disk was lost.
func TestStartWhileOthersAreAway(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Set: []string{"default.replication.factor=3", "min.insync.replicas=2", "etcd.dial.timeout.ms=1000"}}))
	cl := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.DefaultProduceTopic("t"))
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	all := func() {
		t.Helper()
		eventually(t, func() error {
			topics, err := adm.ListTopics(t.Context(), "t")
			if err != nil {
				return err
			}
			if p := topics["t"].Partitions[0]; p.Err != nil || len(p.ISR) != 3 {
				return fmt.Errorf("leader %d, in sync %v, %v", p.Leader, p.ISR, p.Err)
			}
			return nil
		})
	}
	put := func() {
		t.Helper()
		for range 10 {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: []byte("x")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	all()
	put()

	b := c.Broker(2)
	if err := errors.Join(b.Kill(), c.S3.Kill(), os.RemoveAll(c.Describe().Brokers[1].Data), b.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	put()
	if err := c.S3.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	all()

	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Etcd {
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	up := make(chan error, 1)
	go func() { up <- b.Start(t.Context()) }()
	eventually(t, func() error {
		log, err := os.ReadFile(b.Log())
		if err == nil && !strings.Contains(string(log), "etcd does not answer yet") {
			err = errors.New("the broker has not met an etcd that is away")
		}
		return err
	})
	var wg sync.WaitGroup
	for _, e := range c.Etcd { // together: each serves when a quorum is there
		wg.Go(func() {
			if err := e.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	all()
	put()
}

// Commands that show metadata say that it may be old when the brokers do not hear from etcd: who leads may be dead, and nobody is elected.
func TestStaleMetadataIsSaid(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Brokers: 1, Etcd: 1}))
	ask := [][]string{{"cluster", "status"}, {"cluster", "brokers"}, {"partition", "list"}}
	run := func(args []string) result {
		return varve(t, "", append(slices.Clone(args), "--bootstrap-server", c.Describe().Bootstrap)...)
	}
	for _, args := range ask {
		if r := run(args); r.code != 0 || strings.Contains(r.errOut, "may be old") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if err := c.Etcd[0].Pause(); err != nil {
		t.Fatal(err)
	}
	for _, args := range ask {
		servertest.Eventually(t, func() error {
			if r := run(args); r.code != exitFailed || !strings.Contains(r.errOut, "what is shown may be old, and nobody is elected") || r.out == "" {
				return fmt.Errorf("%v: %+v", args, r)
			}
			return nil
		})
	}
	if err := c.Etcd[0].Resume(); err != nil {
		t.Fatal(err)
	}
	for _, args := range ask {
		servertest.Eventually(t, func() error {
			if r := run(args); r.code != 0 {
				return fmt.Errorf("%v: %+v", args, r)
			}
			return nil
		})
	}
}
