package metadata

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// reach says which brokers answer which.
type reach struct {
	mu      sync.Mutex
	cut     map[[2]int32]bool // the first gets no answer of the second
	stalled map[int32]time.Duration
}

func newReach() *reach {
	return &reach{cut: map[[2]int32]bool{}, stalled: map[int32]time.Duration{}}
}

func (r *reach) Cut(from, to int32, cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut[[2]int32{from, to}] = cut
}

func (r *reach) Stall(id int32, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stalled[id] = d
}

// prober asks as a broker would, without a network.
type prober struct {
	r  *reach
	id int32
}

func (p prober) Stalled() time.Duration {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	return p.r.stalled[p.id]
}

func (p prober) Probe(ctx context.Context, to, about *image.Broker) controller.Probed {
	p.r.mu.Lock()
	cut, stalled := p.r.cut[[2]int32{p.id, to.ID}], p.r.stalled[to.ID]
	p.r.mu.Unlock()
	if cut {
		<-ctx.Done()
		return controller.Probed{Outcome: controller.Unanswered}
	}
	got := controller.Probed{Outcome: controller.Answered, Stalled: stalled}
	if about != nil {
		ask, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		got.Said = prober{p.r, to.ID}.Probe(ask, about, nil).Outcome
	}
	return got
}

func probed(t *testing.T, c cluster, r *reach, rec *recorder, brokers int32) (nodes []*Node) {
	nodes = []*Node{nil}
	for id := int32(1); id <= brokers; id++ {
		o := c.options(id)
		o.SessionTimeout, o.HeartbeatInterval = time.Second, 100*time.Millisecond
		o.BrokerConfig = func() map[string]string {
			return map[string]string{"default.replication.factor": "3", "min.insync.replicas": "2"}
		}
		o.Events.Controlled = rec.add
		n := open(t, o)
		n.SetProber(prober{r, id})
		register(t, n)
		nodes = append(nodes, n)
	}
	create(t, nodes[1], "t", 6)
	return nodes
}

// leads counts the partitions of t that a broker leads, and those that it is in sync with.
func leads(n *Node, id int32) (led, insync int) {
	if n.Image().Topic("t") == nil {
		return -1, -1
	}
	for _, p := range n.Image().Topic("t").Partitions {
		if p.Leader == id {
			led++
		}
		for _, b := range p.ISR {
			if b == id {
				insync++
			}
		}
	}
	return led, insync
}

// A broker that has a session and answers nobody leads nothing that others can lead,
// until it answers again.
func TestUnresponsiveBroker(t *testing.T) {
	t.Parallel()
	c, r, rec := cluster{t, startEtcd(t, t.TempDir())}, newReach(), &recorder{}
	nodes := probed(t, c, r, rec, 3)
	if led, _ := leads(nodes[1], 3); led == 0 {
		t.Fatal("broker 3 leads nothing")
	}
	r.Cut(1, 3, true)
	r.Cut(2, 3, true)
	eventually(t, "broker 3 is relieved", func() bool {
		led, insync := leads(nodes[2], 3)
		return led == 0 && insync == 0 && nodes[2].Image().Broker(3).Unresponsive
	})
	if im := nodes[2].Image(); im.Broker(3).Fenced || im.Session(3) == nil || im.Active(3) || nodes[3].Healthy() != nil {
		t.Fatalf("%+v", im.Broker(3))
	}
	r.Cut(1, 3, false)
	r.Cut(2, 3, false)
	eventually(t, "it answers", func() bool { return nodes[2].Image().Active(3) })

	// Its log's disk hangs, and it says so.
	r.Stall(2, time.Minute)
	eventually(t, "broker 2 is relieved", func() bool { led, _ := leads(nodes[3], 2); return led == 0 && !nodes[3].Image().Active(2) })
	r.Stall(2, 0)
	eventually(t, "it answers", func() bool { return nodes[3].Image().Active(2) })
	for _, e := range []string{"unresponsive 3", "responsive 3", "unresponsive 2", "responsive 2"} {
		if !rec.has(e) {
			t.Errorf("%q is not among %q", e, rec.events)
		}
	}
	for _, e := range []string{"unresponsive 1", "fenced 1", "fenced 2", "fenced 3"} {
		if rec.has(e) {
			t.Error(rec.events)
		}
	}
}

// A controller that is cut off judges nobody: another takes its place, and finds it
// unresponsive.
func TestControllerCutOff(t *testing.T) {
	t.Parallel()
	c, r, rec := cluster{t, startEtcd(t, t.TempDir())}, newReach(), &recorder{}
	nodes := probed(t, c, r, rec, 3)
	if !nodes[1].IsController() {
		t.Fatal("the first is the controller")
	}
	for _, other := range []int32{2, 3} {
		r.Cut(1, other, true)
		r.Cut(other, 1, true)
	}
	eventually(t, "broker 1 is relieved", func() bool {
		led, _ := leads(nodes[2], 1)
		return led == 0 && nodes[2].Image().Broker(1).Unresponsive && nodes[2].Image().Controller != 1 && !nodes[1].IsController()
	})
	for _, other := range []int32{2, 3} {
		r.Cut(1, other, false)
		r.Cut(other, 1, false)
	}
	eventually(t, "it answers", func() bool { return nodes[2].Image().Active(1) })

	// One that reaches the others and is not reached by them is no better.
	boss := nodes[2].Image().Controller
	for _, other := range []int32{1, 2, 3} {
		if other != boss {
			r.Cut(other, boss, true)
		}
	}
	eventually(t, "the controller that does not answer is relieved", func() bool {
		led, _ := leads(nodes[1], boss)
		return led == 0 && nodes[1].Image().Broker(boss).Unresponsive && nodes[1].Image().Controller != boss
	})
	for id, e := range map[int32]string{1: "", 2: "unresponsive 2", 3: "unresponsive 3"} {
		if e != "" && id != boss && rec.has(e) {
			t.Error(rec.events)
		}
	}
	for _, e := range []string{"fenced 1", "fenced 2", "fenced 3"} {
		if rec.has(e) {
			t.Error(rec.events)
		}
	}
}
