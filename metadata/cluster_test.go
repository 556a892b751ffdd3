package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

var bg = context.Background()

// eventually waits for something that must come; how long it takes is not
// asserted.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// recorder notes what the controller did by itself.
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) add(e controller.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s %d", e.Kind, e.Broker))
}

func (r *recorder) has(e string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.events, e)
}

func partitionState(n *Node, topic string, i int) image.Partition {
	return *n.Image().Topic(topic).Partitions[i]
}

// Three brokers: one is elected, the others say so; it dies, another takes
// over and moves the leaders; it comes back.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	var rec recorder
	var nodes [4]*Node
	var links [4]*link
	for id := int32(1); id <= 3; id++ {
		o := c.options(id)
		client, l := newLink(c.server.Client())
		o.Store = etcd.New(etcd.Options{Client: client})
		o.SessionTimeout, o.HeartbeatInterval = 3*time.Second, 100*time.Millisecond // a machine that is slow must not elect another
		o.BrokerConfig = func() map[string]string {
			return map[string]string{"default.replication.factor": "3", "num.partitions": "6", "min.insync.replicas": "2"}
		}
		o.Events.Controlled = rec.add
		nodes[id], links[id] = open(t, o), l
		if id == 3 {
			// The only one that passes commands on; the first answer gets lost.
			answers := 0
			nodes[id].SetForward(func(ctx context.Context, to *image.Broker, command []byte) ([]byte, error) {
				reply, err := nodes[to.ID].Execute(ctx, command)
				if answers++; answers == 1 {
					return nil, errors.New("connection reset")
				}
				return reply, err
			})
		}
		register(t, nodes[id])
	}
	if !nodes[1].IsController() || nodes[2].IsController() || nodes[3].IsController() {
		t.Fatal("the first is the controller")
	}
	create(t, nodes[1], "t", -1)
	eventually(t, "the topic on all nodes", func() bool {
		return nodes[2].Image().Topic("t") != nil && nodes[3].Image().Topic("t") != nil
	})
	if p := partitionState(nodes[2], "t", 0); len(p.Replicas) != 3 || len(p.ISR) != 3 || len(nodes[2].Image().Topic("t").Partitions) != 6 {
		t.Fatalf("%+v", p)
	}
	r := nodes[2].CreateTopics(bg, []controller.NewTopic{{Name: "u", Partitions: 1, ReplicationFactor: 1}}, false)
	if len(r) != 1 || r[0].ErrorCode != 41 {
		t.Fatalf("%+v", r)
	}
	// Created once, and not refused because it is there already.
	r = nodes[3].CreateTopics(bg, []controller.NewTopic{{Name: "v", Partitions: 2, ReplicationFactor: 3}}, false)
	if len(r) != 1 || r[0].ErrorCode != 0 || nodes[3].Image().Topic("v") == nil || nodes[3].Image().Topic("v").ID != r[0].ID {
		t.Fatalf("%+v", r)
	}
	r = nodes[3].CreateTopics(bg, []controller.NewTopic{{Name: "v", Partitions: 2, ReplicationFactor: 3}}, false)
	if len(r) != 1 || r[0].ErrorCode != 36 {
		t.Fatalf("%+v", r)
	}
	if _, _, err := nodes[3].AllocateProducerIDs(bg); err != nil {
		t.Fatal(err)
	}

	// Broker 1 is cut off. It goes on serving its image, and says that it is
	// not well; the others elect a controller, which moves the leaders.
	led := 0
	for _, p := range nodes[1].Image().Topic("t").Partitions {
		if p.Leader == 1 {
			led++
		}
	}
	links[1].Cut()
	eventually(t, "broker 1 fenced", func() bool { b := nodes[3].Image().Broker(1); return b != nil && b.Fenced })
	for i, p := range nodes[3].Image().Topic("t").Partitions {
		if p.Leader == 1 || p.Leader == image.NoLeader || len(p.ISR) != 2 {
			t.Fatalf("partition %d: %+v", i, p)
		}
	}
	eventually(t, "broker 1 unwell", func() bool { return nodes[1].Healthy() != nil })
	if nodes[1].Image().Topic("t") == nil {
		t.Fatal("the image does not serve")
	}
	if r := nodes[1].CreateTopics(bg, []controller.NewTopic{{Name: "v"}}, false); r[0].ErrorCode != 7 {
		t.Fatalf("%+v", r)
	}
	var boss *Node
	eventually(t, "a controller", func() bool {
		for _, n := range nodes[2:] {
			if n.IsController() {
				boss = n
			}
		}
		return boss != nil
	})
	create(t, boss, "w", 1)

	// It returns, is admitted under a new epoch, and sees what it missed.
	before, was := nodes[1].BrokerEpoch(), nodes[1].Image().ControllerEpoch
	links[1].Mend()
	eventually(t, "broker 1 back", func() bool {
		b := nodes[1].Image().Broker(1)
		return !b.Fenced && b.Epoch > before && b.Epoch == nodes[1].BrokerEpoch() && nodes[1].Image().Topic("w") != nil && nodes[1].Healthy() == nil
	})
	// What it began as the controller it may still be waiting for, and not know that this is over. It writes nothing any more,
	// whatever it knows: the election of that epoch is compared with each write.
	if _, err := nodes[1].store.Commit(bg, was, nodes[1].Image(), []image.Change{image.SetConfig{ConfigKey: image.ConfigKey{Type: 4}, Values: map[string]string{"num.partitions": "9"}}}); !errors.Is(err, etcd.ErrNotController) {
		t.Fatalf("a change by a controller that is none any more: %v", err)
	}
	eventually(t, "one controller", func() bool {
		im := nodes[1].Image()
		return im.Controller == boss.o.BrokerID && im.ControllerEpoch > was && boss.IsController() && !nodes[1].IsController()
	})
	if r := nodes[1].CreateTopics(bg, []controller.NewTopic{{Name: "v"}}, false); r[0].ErrorCode != 41 {
		t.Fatalf("%+v", r)
	}
	// A leader proposes 1 back into an ISR.
	p := partitionState(boss, "t", 0)
	leader := nodes[p.Leader]
	reply := boss.AlterPartition(bg, controller.AlterPartition{Broker: p.Leader, BrokerEpoch: leader.BrokerEpoch(), Partitions: []controller.Proposal{{
		TopicID: boss.Image().Topic("t").ID, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch,
		ISR: []controller.ISRMember{{Broker: 1, Epoch: nodes[1].BrokerEpoch()}, {Broker: 2, Epoch: -1}, {Broker: 3, Epoch: -1}}}}})
	if reply.ErrorCode != 0 || reply.Partitions[0].ErrorCode != 0 || len(partitionState(boss, "t", 0).ISR) != 3 {
		t.Fatalf("%+v", reply)
	}

	// A clean close is noticed at once, without waiting for the lease.
	boss.Close()
	if err := boss.Healthy(); err == nil {
		t.Fatal("closed and healthy")
	}
	eventually(t, "the closed broker fenced", func() bool {
		b := nodes[1].Image().Broker(boss.o.BrokerID)
		return b.Fenced && nodes[1].Image().Controller != image.NoLeader
	})
	if !rec.has("fenced 1") {
		t.Fatal(rec.events)
	}
}

// etcd away for everyone for longer than the sessions last: nobody is fenced
// when it is back, and the leaders stay.
func TestOutage(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	var rec recorder
	var nodes []*Node
	var links []*link
	var warned []*warnings
	for id := int32(1); id <= 2; id++ {
		o := c.options(id)
		client, l := newLink(c.server.Client())
		o.Store = etcd.New(etcd.Options{Client: client})
		o.SessionTimeout, o.HeartbeatInterval = time.Second, 50*time.Millisecond
		o.Events.Controlled = rec.add
		warned = append(warned, &warnings{})
		o.Logger = slog.New(warned[len(warned)-1])
		n := open(t, o)
		register(t, n)
		nodes, links = append(nodes, n), append(links, l)
	}
	create(t, nodes[0], "t", 4)
	before := nodes[0].Image()
	eventually(t, "the topic on the other node", func() bool { return nodes[1].Image().Topic("t") != nil })
	for _, l := range links {
		l.Cut()
	}
	watcher := etcd.New(etcd.Options{Client: c.server.Client()})
	eventually(t, "all sessions gone", func() bool {
		im, err := watcher.Load(bg)
		return err == nil && len(im.Sessions()) == 0 && im.Controller == image.NoLeader
	})
	for _, n := range nodes {
		eventually(t, "unwell", func() bool { return n.Healthy() != nil })
		if n.Image().Topic("t") == nil {
			t.Fatal("the image does not serve")
		}
	}
	// What goes on failing is said less and less often.
	for i, n := range nodes {
		inARow := func() int {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.watchFailed
		}
		eventually(t, "five failures in a row", func() bool { return inARow() >= 5 })
		if said, failed := warned[i].count("metadata watch broke off"), inARow(); said < 3 || said > bits.Len(uint(failed))+1 {
			t.Errorf("broker %d has warned of %d failures %d times", i+1, failed, said)
		}
	}
	for _, l := range links {
		l.Mend()
	}
	eventually(t, "all well", func() bool {
		for _, n := range nodes {
			im := n.Image()
			if n.Healthy() != nil || im.Session(1) == nil || im.Session(2) == nil || im.Controller == image.NoLeader ||
				im.Broker(n.o.BrokerID).Epoch != n.BrokerEpoch() {
				return false
			}
		}
		return true
	})
	time.Sleep(1200 * time.Millisecond) // the time for which fencing was held is over
	for _, e := range []string{"fenced 1", "fenced 2"} {
		if rec.has(e) {
			t.Fatal(rec.events)
		}
	}
	for i, p := range nodes[0].Image().Topic("t").Partitions {
		if was := before.Topic("t").Partitions[i]; p.Leader != was.Leader || p.LeaderEpoch != was.LeaderEpoch {
			t.Fatalf("partition %d was %+v, is %+v", i, was, p)
		}
	}
	create(t, nodes[slices.IndexFunc(nodes, (*Node).IsController)], "u", 1)
}

// A broker that is killed and started again on its disk is admitted without
// waiting for the dead process's lease, in new leader epochs.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	n := c.join(1)
	create(t, n, "t", 3)
	n.abandon()
	began := time.Now()
	n = c.join(1)
	t.Logf("admitted after %v", time.Since(began).Round(time.Millisecond))
	for i := range 3 {
		if p := partitionState(n, "t", i); p.Leader != 1 || p.LeaderEpoch != 1 {
			t.Fatalf("%+v", p)
		}
	}
	// Another disk: nobody has the data, and nobody leads, until an operator
	// says so.
	n.abandon()
	o := c.options(1)
	o.WAL, o.Place = uuid(77), "another disk"
	o.SessionTimeout = time.Second
	n = open(t, o)
	register(t, n)
	if p := partitionState(n, "t", 0); p.Leader != image.NoLeader || len(p.ISR) != 0 {
		t.Fatalf("%+v", p)
	}
	if r, err := n.AcceptLoss(bg, 1); err != nil || len(r) != 1 || r[0].Partitions != 3 {
		t.Fatal(r, err)
	}
	if p := partitionState(n, "t", 0); p.Leader != 1 || p.LeaderEpoch != 3 {
		t.Fatalf("%+v", p)
	}
	if _, err := n.AcceptLoss(bg, 9); err == nil {
		t.Fatal("accepted the loss of a broker that is not there")
	}
	// In dev the broker says so itself.
	n.Close()
	o = c.options(1)
	o.WAL, o.AcceptLoss = uuid(78), true
	n = open(t, o)
	register(t, n)
	if p := partitionState(n, "t", 0); p.Leader != 1 || p.LeaderEpoch != 4 {
		t.Fatalf("%+v", p)
	}
	// A second process under the same id, on another disk, is refused while
	// the first lives.
	o = c.options(1)
	o.WAL, o.Place, o.SessionTimeout = uuid(79), "a third disk", time.Second
	twin := open(t, o)
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	if err := twin.Register(ctx); !errors.Is(err, etcd.ErrDuplicateBroker) {
		t.Fatal(err)
	}
	if n.Healthy() != nil || !n.Image().Alive(1) {
		t.Fatal("the first was disturbed")
	}
}

// abandon ends the node as kill -9 would: the lease stays.
func (n *Node) abandon() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
}

// A session that was lost (the process was stopped, say) is made anew without
// disturbing the leaders.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	o := c.options(1)
	lost := make(chan struct{}, 1)
	o.Events.SessionLost = func() { lost <- struct{}{} }
	n := open(t, o)
	register(t, n)
	create(t, n, "t", 2)
	before := n.BrokerEpoch()
	n.mu.Lock()
	lease := n.lease
	n.mu.Unlock()
	if err := n.store.Revoke(bg, lease); err != nil {
		t.Fatal(err)
	}
	<-lost
	eventually(t, "admitted again", func() bool {
		b := n.Image().Broker(1)
		return b.Epoch > before && b.Epoch == n.BrokerEpoch() && !b.Fenced && n.IsController()
	})
	if p := partitionState(n, "t", 0); p.Leader != 1 || p.LeaderEpoch != 0 {
		t.Fatalf("%+v", p)
	}
	create(t, n, "u", 1)
}

// The watch falls behind what etcd keeps: the image is loaded anew, and a
// subscriber that follows differences ends up with the same state.
func TestCompactedWatch(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	n := c.join(1)
	create(t, n, "old", 3)

	o := c.options(2)
	client, l := newLink(c.server.Client())
	o.Store = etcd.New(etcd.Options{Client: client})
	resynced := make(chan error, 10)
	o.Events.Resynced = func(err error) { resynced <- err }
	follower := open(t, o)
	epochs := map[string]int32{}
	var mu sync.Mutex
	follower.Subscribe(func(prev, next *image.Image) {
		mu.Lock()
		defer mu.Unlock()
		for _, tc := range image.Diff(prev, next).Topics {
			for _, i := range tc.Partitions {
				if tc.Next == nil || int(i) >= len(tc.Next.Partitions) {
					delete(epochs, fmt.Sprint(tc.Prev.Name, i))
				} else {
					epochs[fmt.Sprint(tc.Next.Name, i)] = tc.Next.Partitions[i].LeaderEpoch
				}
			}
		}
	})
	follower.Start()
	eventually(t, "the first image", func() bool { mu.Lock(); defer mu.Unlock(); return len(epochs) == 3 })
	l.Cut()
	create(t, n, "new", 2)
	if r := n.DeleteTopics(bg, []controller.TopicRef{{Name: "old"}}); r[0].ErrorCode != 0 {
		t.Fatalf("%+v", r)
	}
	n.abandon()
	n = c.join(1) // raises the epochs of "new"
	if _, err := c.server.Client().Compact(bg, n.Image().Revision); err != nil {
		t.Fatal(err)
	}
	l.Mend()
	if err := <-resynced; !errors.Is(err, etcd.ErrCompacted) {
		t.Fatal(err)
	}
	eventually(t, "the same state", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(epochs) == 2 && epochs["new0"] == 1 && epochs["new1"] == 1
	})
	create(t, n, "later", 1) // and the watch goes on
	eventually(t, "the next change", func() bool { mu.Lock(); defer mu.Unlock(); return len(epochs) == 3 })
}

// Answers of the controller's transactions get lost, whether applied or not:
// commands are carried out once, and say so.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	o := c.options(1)
	client, l := newLink(c.server.Client())
	o.Store = etcd.New(etcd.Options{Client: client})
	n := open(t, o)
	register(t, n)
	var mu sync.Mutex
	count, accidents := 0, 0
	l.onTxn(func(commit func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
		mu.Lock()
		count++
		k := count
		if k%3 != 0 {
			accidents++
		}
		mu.Unlock()
		switch k % 3 {
		case 0:
			return commit()
		case 1: // applied, not answered
			commit()
			return nil, rpctypes.ErrTimeout
		default: // not applied
			return nil, rpctypes.ErrTimeout
		}
	})
	for i := range 5 {
		name := fmt.Sprintf("t%d", i)
		create(t, n, name, 100)
		if r := n.CreatePartitions(bg, []controller.Growth{{Name: name, Count: 101}}, false); r[0].ErrorCode != 0 {
			t.Fatalf("%+v", r)
		}
		v := "5"
		if r := n.AlterConfigs(bg, []controller.AlterResource{{Type: 2, Name: name, Ops: []controller.ConfigOp{{Name: "retention.ms", Value: &v}}}}, true, false); r[0].ErrorCode != 0 {
			t.Fatalf("%+v", r)
		}
		if i%2 == 0 {
			if r := n.DeleteTopics(bg, []controller.TopicRef{{Name: name}}); r[0].ErrorCode != 0 {
				t.Fatalf("%+v", r)
			}
		}
	}
	l.onTxn(nil)
	im := n.Image()
	if im.NumTopics() != 2 || im.NumPartitions() != 202 || len(im.Deleted()) != 3 || im.Config(2, "t1")["retention.ms"] != "5" {
		t.Fatalf("%d topics, %d partitions, %d deleted", im.NumTopics(), im.NumPartitions(), len(im.Deleted()))
	}
	eventually(t, "nothing left over", func() bool { return len(n.Image().Loose(10)) == 0 })
	t.Logf("%d of %d transactions had an accident", accidents, count)
}

// Many callers at once: commands are batched, each sees its own effect on
// return, and so have subscribers.
func TestConcurrentCommands(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	o := c.options(1)
	var batches atomic.Int64
	o.Events.Committed = func(commands, changes int, d time.Duration) { batches.Add(1) }
	n := open(t, o)
	var mu sync.Mutex
	known := map[string]bool{}
	last := int64(-1)
	n.Subscribe(func(prev, next *image.Image) {
		mu.Lock()
		defer mu.Unlock()
		if next.Revision <= last {
			t.Errorf("revision %d after %d", next.Revision, last)
		}
		last = next.Revision
		for _, tc := range image.Diff(prev, next).Topics {
			if tc.Next != nil {
				known[tc.Next.Name] = true
			}
		}
	})
	register(t, n)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			name := fmt.Sprintf("t-%d", i)
			create(t, n, name, 2)
			mu.Lock()
			defer mu.Unlock()
			if n.Image().Topic(name) == nil || !known[name] {
				t.Errorf("%s is not there yet", name)
			}
		}()
	}
	// The same name from many: exactly one makes it.
	made := make(chan int16, 20)
	for range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			made <- n.CreateTopics(bg, []controller.NewTopic{{Name: "same", Partitions: 1, ReplicationFactor: 1}}, false)[0].ErrorCode
		}()
	}
	wg.Wait()
	codes := map[int16]int{}
	for range 20 {
		codes[<-made]++
	}
	if codes[0] != 1 || codes[36] != 19 {
		t.Fatal(codes)
	}
	t.Logf("120 commands in %d batches", batches.Load())
	// The checks of the package config are in force.
	bad, unknown := "-7", "nonsense"
	alter := func(typ int8, name string, op controller.ConfigOp) controller.Result {
		return n.AlterConfigs(bg, []controller.AlterResource{{Type: typ, Name: name, Ops: []controller.ConfigOp{op}}}, true, false)[0]
	}
	for _, r := range []controller.Result{
		alter(image.TopicResource, "same", controller.ConfigOp{Name: "retention.ms", Value: &bad}),
		alter(image.TopicResource, "same", controller.ConfigOp{Name: unknown, Value: &bad}),
		alter(image.BrokerResource, "1", controller.ConfigOp{Name: unknown, Value: &bad}),
		alter(image.GroupResource, "g", controller.ConfigOp{Name: unknown, Value: &bad}),
		alter(image.ClientMetricsResource, "c", controller.ConfigOp{Name: unknown, Value: &bad}),
		alter(image.TopicResource, "same", controller.ConfigOp{Name: "retention.ms", Op: controller.Append, Value: &bad}),
	} {
		if r.ErrorCode != 40 || r.Message == "" {
			t.Fatalf("%+v", r)
		}
	}
	compact := "compact"
	if r := alter(image.TopicResource, "same", controller.ConfigOp{Name: "cleanup.policy", Op: controller.Append, Value: &compact}); r.ErrorCode != 0 || n.Image().Topic("same").Config["cleanup.policy"] != "delete,compact" {
		t.Fatalf("%+v %v", r, n.Image().Topic("same").Config)
	}
	if r := n.CreateTopics(bg, []controller.NewTopic{{Name: "dry", Partitions: 3, ReplicationFactor: 1}}, true); r[0].ErrorCode != 0 || r[0].Partitions != 3 || n.Image().Topic("dry") != nil {
		t.Fatalf("%+v", r)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if r := n.CreateTopics(ctx, []controller.NewTopic{{Name: "late"}}, false); r[0].ErrorCode != 7 {
		t.Fatalf("%+v", r)
	}
	n.Close()
	if r := n.CreateTopics(bg, []controller.NewTopic{{Name: "closed"}}, false); r[0].ErrorCode != 7 {
		t.Fatalf("%+v", r)
	}
}

// etcd is found at an earlier revision: the node says so and changes nothing.
func TestRestoredBackup(t *testing.T) {
	t.Parallel()
	server := startEtcd(t, t.TempDir())
	c := cluster{t, server}
	o := c.options(1)
	o.SeenFile = filepath.Join(t.TempDir(), "seen.json")
	n := open(t, o)
	register(t, n)
	create(t, n, "t", 1)
	n.Close()
	seen, err := ReadSeen(o.SeenFile)
	if err != nil || seen.Cluster != n.Image().ClusterID || seen.Revision < n.Image().Revision {
		t.Fatal(seen, err)
	}
	n = open(t, o) // nothing wrong yet
	n.Close()

	// An empty etcd, a backup of this one, another cluster.
	for _, c := range []struct {
		prefix string
		file   Seen
		want   error
	}{
		{"/empty/", Seen{seen.Cluster, seen.Revision + 1000}, etcd.ErrRevisionRegressed},
		{"", Seen{seen.Cluster, seen.Revision + 1000}, etcd.ErrRevisionRegressed},
		{"", Seen{"another", 1}, ErrForeignCluster},
	} {
		if err := c.file.write(o.SeenFile); err != nil {
			t.Fatal(err)
		}
		o := o
		o.Store = etcd.New(etcd.Options{Client: server.Client(), Prefix: c.prefix})
		if _, err := Open(bg, o); !errors.Is(err, c.want) {
			t.Fatalf("%+v: %v", c, err)
		}
	}
	if im, err := etcd.New(etcd.Options{Client: server.Client(), Prefix: "/empty/"}).Load(bg); err != nil || im.ClusterID != "" {
		t.Fatal("something was written into the empty etcd", err)
	}
}

// An etcd that compacts nothing by itself, as one does that nobody told to: the
// controller, and only it, lets go of what was overwritten, and who watches does
// not notice.
func TestCompaction(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	n := c.join(1) // the controller, which is not asked to
	o := c.options(2)
	o.CompactionInterval = 100 * time.Millisecond
	var resynced atomic.Int32
	o.Events.Resynced = func(error) { resynced.Add(1) }
	second := open(t, o)
	register(t, second)
	create(t, n, "a", 3)
	old := n.Image().Revision
	gone := func() bool {
		_, err := c.server.Client().Get(bg, "x", clientv3.WithRev(old))
		return errors.Is(err, rpctypes.ErrCompacted)
	}
	time.Sleep(10 * o.CompactionInterval)
	if gone() {
		t.Fatal("compacted by a broker that is not the controller")
	}
	n.Close()
	eventually(t, "another controller", second.IsController)
	eventually(t, "compaction", func() bool {
		create(t, second, fmt.Sprintf("t-%d", time.Now().UnixNano()), 1) // revisions move on
		return gone()
	})
	create(t, second, "b", 2)
	if second.Image().Topic("a") == nil || second.Image().Topic("b") == nil || resynced.Load() != 0 {
		t.Errorf("the image was loaded anew %d times", resynced.Load())
	}
}
