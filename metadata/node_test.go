package metadata

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

func testLogger(t testing.TB) *slog.Logger {
	if os.Getenv("VARVE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func startEtcd(t testing.TB, dir string) *etcd.Server {
	t.Helper()
	s, err := etcd.Embedded(dir, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func uuid(b byte) (id [16]byte) { id[0], id[15] = b, b; return id }

type cluster struct {
	t      testing.TB
	server *etcd.Server
}

func (c cluster) options(id int32) Options {
	o := c.baseOptions(id)
	o.Store = etcd.New(etcd.Options{Client: c.server.Client(), Logger: testLogger(c.t)})
	return o
}

func (c cluster) baseOptions(id int32) Options {
	return Options{
		BrokerID: id, WAL: uuid(byte(id)), Place: fmt.Sprint("disk ", id),
		Endpoints: []image.Endpoint{{Listener: "PLAINTEXT", Host: "127.0.0.1", Port: 9092, Protocol: "PLAINTEXT"}},
		Logger:    testLogger(c.t).With("node", id),
	}
}

func open(t testing.TB, o Options) *Node {
	t.Helper()
	n, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func register(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := n.Register(ctx); err != nil {
		t.Fatal(err)
	}
}

func (c cluster) join(id int32) *Node {
	c.t.Helper()
	n := open(c.t, c.options(id))
	register(c.t, n)
	return n
}

func create(t testing.TB, n *Node, name string, partitions int32) controller.Result {
	t.Helper()
	r := n.CreateTopics(context.Background(), []controller.NewTopic{{Name: name, Partitions: partitions, ReplicationFactor: -1}}, false)
	if len(r) != 1 || r[0].ErrorCode != 0 {
		t.Fatalf("create %s: %+v", name, r)
	}
	return r[0]
}

// Ten thousand partitions, in one topic and in ten thousand: created in one
// request each, and led in a raised epoch after a restart.
func TestTenThousandPartitions(t *testing.T) {
	dir := t.TempDir()
	c := cluster{t, startEtcd(t, dir)}
	o := c.options(1)
	o.MaxPartitions = 30_000
	n := open(t, o)
	register(t, n)

	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	h0 := heap()
	begin := time.Now()
	create(t, n, "wide", 10_000)
	t.Logf("1 topic x 10,000 partitions: %v, heap +%d KiB", time.Since(begin).Round(time.Millisecond), (heap()-h0)>>10)
	if got := len(n.Image().Topic("wide").Partitions); got != 10_000 {
		t.Fatal(got)
	}
	h0 = heap()
	begin = time.Now()
	var many []controller.NewTopic
	for i := range 10_000 {
		many = append(many, controller.NewTopic{Name: fmt.Sprintf("t-%d", i), Partitions: 1, ReplicationFactor: 1})
	}
	for _, r := range n.CreateTopics(context.Background(), many, false) {
		if r.ErrorCode != 0 {
			t.Fatalf("%+v", r)
		}
	}
	t.Logf("10,000 topics x 1 partition: %v, heap +%d KiB", time.Since(begin).Round(time.Millisecond), (heap()-h0)>>10)

	begin = time.Now()
	n.Close()
	t.Logf("close: %v", time.Since(begin).Round(time.Millisecond))
	c.server.Close()
	begin = time.Now()
	c.server = startEtcd(t, dir)
	t.Logf("etcd start: %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	o = c.options(1)
	n = open(t, o)
	t.Logf("load: %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	register(t, n)
	t.Logf("register (20,000 epochs raised): %v", time.Since(begin).Round(time.Millisecond))
	for topic := range n.Image().AllTopics() {
		for i, p := range topic.Partitions {
			if p.Leader != 1 || p.LeaderEpoch != 1 {
				t.Fatalf("%s-%d: %+v", topic.Name, i, p)
			}
		}
	}
	begin = time.Now()
	r := n.DeleteTopics(context.Background(), []controller.TopicRef{{Name: "wide"}})
	t.Logf("delete of 10,000 partitions: %v", time.Since(begin).Round(time.Millisecond))
	if r[0].ErrorCode != 0 || n.Image().Topic("wide") != nil || n.Image().NumPartitions() != 10_000 {
		t.Fatalf("%+v", r)
	}
	if dead := n.Image().Deleted(); len(dead) != 1 || dead[0].Partitions != 10_000 {
		t.Fatalf("%+v", dead)
	}
}
