package metadata

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// forwarding are nodes that pass commands on to each other without a network.
func (c cluster) forwarding(ids int32, balance time.Duration, settings map[string]string) []*Node {
	nodes := make([]*Node, ids+1)
	for id := int32(1); id <= ids; id++ {
		o := c.options(id)
		o.BrokerConfig = func() map[string]string { return settings }
		o.HandOverTries, o.HandOverWait = 1, time.Hour
		o.BalanceInterval = balance
		nodes[id] = open(c.t, o)
		nodes[id].SetForward(func(ctx context.Context, to *image.Broker, command []byte) ([]byte, error) {
			return nodes[to.ID].Execute(ctx, command)
		})
		register(c.t, nodes[id])
	}
	return nodes
}

// sees waits until a node's image has something.
func sees(t *testing.T, n *Node, what string, ok func(*image.Image) bool) {
	t.Helper()
	eventually(t, what, func() bool { return ok(n.Image()) })
}

func (n *Node) proposeISR(t *testing.T, topic string, index int32, isr ...int32) {
	t.Helper()
	p := partitionState(n, topic, int(index))
	c := controller.AlterPartition{Broker: n.o.BrokerID, BrokerEpoch: n.BrokerEpoch(), Partitions: []controller.Proposal{{
		TopicID: n.Image().Topic(topic).ID, Partition: index, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch}}}
	for _, id := range isr {
		c.Partitions[0].ISR = append(c.Partitions[0].ISR, controller.ISRMember{Broker: id, Epoch: -1})
	}
	if r := n.AlterPartition(bg, c); r.ErrorCode != 0 || r.Partitions[0].ErrorCode != 0 {
		t.Fatalf("%+v", r)
	}
}

// Three brokers shut down, one after the other: each hands over what it leads as
// long as there is somebody, and is as any other when it is back.
func TestControlledShutdown(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	nodes := c.forwarding(3, 0, map[string]string{"default.replication.factor": "3", "num.partitions": "6", "min.insync.replicas": "2"})
	create(t, nodes[1], "t", -1)
	sees(t, nodes[3], "the topic", func(im *image.Image) bool { return im.Topic("t") != nil })

	nodes[3].BeginShutdown(bg)
	for i, p := range nodes[3].Image().Topic("t").Partitions {
		if p.Leader == 3 || p.Leader == image.NoLeader || slices.Contains(p.ISR, 3) {
			t.Fatalf("partition %d: %+v", i, p)
		}
	}
	if b := nodes[3].Image().Broker(3); !b.ShuttingDown || b.Fenced {
		t.Fatalf("%+v", b)
	}
	nodes[1].BeginShutdown(bg) // the controller
	for i, p := range nodes[1].Image().Topic("t").Partitions {
		if p.Leader != 2 || !slices.Equal(p.ISR, []int32{1, 2}) {
			t.Fatalf("partition %d: %+v", i, p)
		}
	}
	sees(t, nodes[2], "what 1 did", func(im *image.Image) bool { return im.Broker(1).ShuttingDown })
	nodes[2].BeginShutdown(bg) // nobody is left to lead
	if im := nodes[2].Image(); im.Broker(2).ShuttingDown || controller.Leading(im, 2) != 0 {
		t.Fatalf("%+v", im.Broker(2))
	}

	nodes[3].Close()
	nodes[3] = c.join(3)
	if b := nodes[3].Image().Broker(3); b.ShuttingDown || b.Fenced {
		t.Fatalf("%+v", b)
	}
}

// A broker leads on until another replica is in sync.
func TestControlledShutdownWaits(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	nodes := c.forwarding(2, 0, map[string]string{"default.replication.factor": "2"})
	create(t, nodes[1], "t", 1)
	leader := nodes[partitionState(nodes[1], "t", 0).Leader]
	id := leader.o.BrokerID
	sees(t, leader, "the topic", func(im *image.Image) bool { return im.Topic("t") != nil })
	leader.proposeISR(t, "t", 0, id)

	done := make(chan struct{})
	go func() { leader.BeginShutdown(bg); close(done) }()
	sees(t, leader, "that it shuts down", func(im *image.Image) bool { return im.Broker(id).ShuttingDown })
	if p := partitionState(leader, "t", 0); p.Leader != id {
		t.Fatalf("%+v", p)
	}
	leader.proposeISR(t, "t", 0, 1, 2)
	<-done
	if p := partitionState(leader, "t", 0); p.Leader != 3-id || p.LeaderEpoch != 1 {
		t.Fatalf("%+v", p)
	}
}

// A single broker has nothing to say to anybody.
func TestControlledShutdownAlone(t *testing.T) {
	t.Parallel()
	n := cluster{t, startEtcd(t, t.TempDir())}.forwarding(1, 0, nil)[1]
	create(t, n, "t", 1)
	before := n.Image().Revision
	n.BeginShutdown(bg)
	if im := n.Image(); im.Revision != before || im.Broker(1).ShuttingDown || partitionState(n, "t", 0).Leader != 1 {
		t.Fatalf("revision %d, before %d: %+v", im.Revision, before, im.Broker(1))
	}
}

// Leaderships go back to where they belong by themselves.
func TestLeadersAreBalanced(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	nodes := c.forwarding(2, 10*time.Millisecond, map[string]string{"default.replication.factor": "2", "num.partitions": "4"})
	create(t, nodes[1], "t", -1)
	sees(t, nodes[2], "the topic", func(im *image.Image) bool { return im.Topic("t") != nil })
	nodes[2].BeginShutdown(bg)
	for i, p := range nodes[2].Image().Topic("t").Partitions {
		if p.Leader != 1 {
			t.Fatalf("partition %d: %+v", i, p)
		}
	}
	nodes[2].Close()
	nodes[2] = c.join(2)
	sees(t, nodes[1], "broker 2", func(im *image.Image) bool { return im.Active(2) })
	for i := range nodes[1].Image().Topic("t").Partitions {
		nodes[1].proposeISR(t, "t", int32(i), 1, 2)
	}
	sees(t, nodes[1], "the preferred leaders", func(im *image.Image) bool {
		return !slices.ContainsFunc(im.Topic("t").Partitions, func(p *image.Partition) bool { return p.Leader != p.Replicas[0] })
	})
}
