package metadata

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/etcd/etcdtest"
	"github.com/varve/varve/metadata/image"
)

// warnings are what nodes warned of.
type warnings struct {
	mu    sync.Mutex
	lines []string
}

func (w *warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w *warnings) WithGroup(string) slog.Handler                { return w }
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, r.Message)
	return nil
}

func (w *warnings) count(part string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.lines {
		if strings.Contains(l, part) {
			n++
		}
	}
	return n
}

// One member of three of etcd hangs, each in turn: every broker goes on hearing of what
// is decided, its heartbeats are answered, and a controller decides.
func TestFrozenEtcdMember(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t, 3)
	var rec recorder
	warned := &warnings{}
	c := cluster{t: t}
	var nodes []*Node
	for id := int32(1); id <= 3; id++ {
		client, err := etcd.Dial(bg, etcd.DialOptions{Endpoints: e.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		o := c.baseOptions(id)
		o.Store = etcd.New(etcd.Options{Client: client})
		o.SessionTimeout, o.HeartbeatInterval = 4*time.Second, 100*time.Millisecond
		o.Events.Controlled = rec.add
		o.Logger = slog.New(warned)
		n := open(t, o)
		register(t, n)
		nodes = append(nodes, n)
	}
	for m := range 3 {
		e.Freeze(m, true)
		for i := range 2 {
			name := fmt.Sprintf("t%d-%d", m, i)
			eventually(t, "a topic is created with member "+fmt.Sprint(m)+" frozen", func() bool {
				for _, n := range nodes {
					if !n.IsController() {
						continue
					}
					code := n.CreateTopics(bg, []controller.NewTopic{{Name: name, Partitions: 1, ReplicationFactor: 1}}, false)[0].ErrorCode
					return code == 0 || code == 36
				}
				return false
			})
			eventually(t, "all brokers know it with member "+fmt.Sprint(m)+" frozen", func() bool {
				for _, n := range nodes {
					if n.Image().Topic(name) == nil {
						return false
					}
				}
				return true
			})
			// And a few heartbeats more.
			for _, n := range nodes {
				for range 10 {
					n.mu.Lock()
					last := n.lastBeat
					n.mu.Unlock()
					eventually(t, "a heartbeat", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.lastBeat.After(last) })
				}
			}
		}
		e.Freeze(m, false)
	}
	if warned.count("heartbeat not answered")+warned.count("the session ran out") > 0 {
		t.Errorf("warned of %q", warned.lines)
	}
	for _, ev := range []string{"fenced 1", "fenced 2", "fenced 3"} {
		if rec.has(ev) {
			t.Error(rec.events)
		}
	}
}

// A controller that reaches etcd and sees nothing of what is written there is none: it
// gives up, and another does what it did not.
func TestBlindController(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	var rec recorder
	var nodes [4]*Node
	var links [4]*link
	for id := int32(1); id <= 3; id++ {
		o := c.options(id)
		client, l := newLink(c.server.Client())
		o.Store = etcd.New(etcd.Options{Client: client})
		o.SessionTimeout, o.HeartbeatInterval = 2*time.Second, 100*time.Millisecond
		o.BrokerConfig = func() map[string]string { return map[string]string{"default.replication.factor": "3"} }
		o.Events.Controlled = rec.add
		nodes[id], links[id] = open(t, o), l
		register(t, nodes[id])
	}
	create(t, nodes[1], "t", 6)
	links[1].Blind(true)
	nodes[3].abandon() // nobody is told
	eventually(t, "broker 3 fenced, and its partitions led by others", func() bool {
		im := nodes[2].Image()
		if b := im.Broker(3); b == nil || !b.Fenced || im.Controller != 2 {
			return false
		}
		for _, p := range im.Topic("t").Partitions {
			if p.Leader == 3 || p.Leader == image.NoLeader {
				return false
			}
		}
		return true
	})
	eventually(t, "the blind one knows that it is no controller", func() bool { return !nodes[1].IsController() })
	create(t, nodes[2], "u", 1)
	if nodes[1].Image().Topic("u") != nil {
		t.Fatal("it is not blind")
	}
	links[1].Blind(false)
	eventually(t, "it sees again", func() bool { return nodes[1].Image().Topic("u") != nil && nodes[1].Healthy() == nil })
	if rec.has("fenced 1") {
		t.Fatal(rec.events)
	}
}
