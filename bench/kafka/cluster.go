package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
)

// members are the processes of a cluster under test.
type members struct {
	nodes   []*node
	running int // so many of the nodes are started with the cluster; the others are added by a measurement
	// beside are the processes that the brokers need: etcd, the S3 server. Kafka's controllers are in its brokers.
	beside func() []int
	end    func() // all of it
}

// node is one broker of a cluster.
type node struct {
	id    int32
	addr  string
	pid   func() int // 0: it does not run
	start func(context.Context) error
	stop  func() error // in good order
	kill  func() error
}

// first are the nodes that are started with the cluster.
func (m *members) first() []*node { return m.nodes[:m.running] }

func (m *members) node(id int32) *node { return m.nodes[id-1] }

func (m *members) alive() error {
	for _, n := range m.first() {
		if n.pid() == 0 {
			return fmt.Errorf("broker %d does not run", n.id)
		}
	}
	return nil
}

// clusterSettings are what every broker of Varve's cluster has, so that it is Kafka's.
var clusterSettings = []string{
	"default.replication.factor=3", "min.insync.replicas=2", "group.initial.rebalance.delay.ms=0",
	// Three logs share the disk.
	"wal.max.bytes=8589934592",
}

// newVarveCluster is a cluster of Varve with etcd and an S3 server beside it. This program is both of these: see main.
func (r *runner) newVarveCluster(s *setup) (*broker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.dir, s.Name+"-varve")
	c, err := cluster.New(cluster.Options{
		Dir: dir, Brokers: s.Brokers + s.Spare, Spare: s.Spare, FreePorts: true, Varve: []string{r.varve}, Servers: []string{self},
		Set: append(append([]string{}, s.Varve...), clusterSettings...),
	})
	if err != nil {
		return nil, err
	}
	m := &members{running: s.Brokers, beside: func() []int {
		list := []int{c.S3.PID()}
		for _, e := range c.Etcd {
			list = append(list, e.PID())
		}
		return list
	}, end: func() {
		for _, s := range c.Servers() {
			if s.Running() {
				s.Kill()
			}
		}
	}}
	for _, b := range c.Brokers {
		m.nodes = append(m.nodes, &node{id: b.ID, addr: b.Addr, pid: b.PID, start: b.Start, stop: b.Stop, kill: b.Kill})
	}
	return &broker{kind: varve, addr: c.Brokers[0].Addr, admin: c.Brokers[0].Admin, dir: dir, members: m, start: func(ctx context.Context, _ *broker) error {
		_, err := c.Up(ctx)
		return err
	}}, nil
}

// newKafkaCluster is a cluster of Kafka whose first brokers are its controllers too.
func (r *runner) newKafkaCluster(s *setup) (*broker, error) {
	dir := filepath.Join(r.dir, s.Name+"-kafka")
	var nodes []*kafkaNode
	var voters []string
	id := clusterID()
	for i := range s.Brokers + s.Spare {
		n := &kafkaNode{id: i + 1, dir: filepath.Join(dir, strconv.Itoa(i+1)), cluster: id}
		var err error
		if n.addr, err = child.FreeAddr(); err != nil {
			return nil, err
		}
		if i < s.Brokers {
			if n.controller, err = child.FreeAddr(); err != nil {
				return nil, err
			}
			voters = append(voters, strconv.Itoa(n.id)+"@"+n.controller)
		}
		nodes = append(nodes, n)
	}
	m := &members{running: s.Brokers, beside: func() []int { return nil }}
	for _, n := range nodes {
		n.voters = voters
		m.nodes = append(m.nodes, r.kafkaMember(n, *s.Kafka))
	}
	m.end = func() {
		for _, n := range m.nodes {
			n.kill()
		}
	}
	return &broker{kind: kafka, addr: nodes[0].addr, dir: dir, members: m, start: func(ctx context.Context, _ *broker) error {
		// Together: a controller serves when most of them do.
		errs := make([]error, m.running)
		var wg sync.WaitGroup
		for i, n := range m.first() {
			wg.Go(func() { errs[i] = n.start(ctx) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for _, n := range m.first() {
			for id := range int32(m.running) {
				if err := child.Eventually(ctx, time.Minute, func() error { return knows(ctx, n.addr, id+1) }); err != nil {
					return err
				}
			}
		}
		return nil
	}}, nil
}

// kafkaMember is a node of Kafka's as a member of a cluster.
func (r *runner) kafkaMember(k *kafkaNode, p profile) *node {
	var mu sync.Mutex
	var proc *child.Process
	running := func() *child.Process {
		mu.Lock()
		defer mu.Unlock()
		if proc == nil {
			return nil
		}
		select {
		case <-proc.Ended():
			return nil
		default:
			return proc
		}
	}
	return &node{
		id: int32(k.id), addr: k.addr,
		pid: func() int {
			if p := running(); p != nil {
				return p.PID()
			}
			return 0
		},
		start: func(ctx context.Context) error {
			started, err := k.start(ctx, r.jars, p)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				proc = started
			}
			return err
		},
		stop: func() error {
			p := running()
			if p == nil {
				return nil
			}
			p.Patience = 3 * time.Minute
			// A JVM that was told to end exits with 143, however well it ended.
			if err := p.Stop(); errors.Is(err, child.ErrStays) {
				return err
			}
			return nil
		},
		kill: func() error {
			if p := running(); p != nil {
				p.Kill()
			}
			return nil
		},
	}
}

// cpuOf is the CPU time that processes have used.
func cpuOf(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		if t, err := load.Times(pid); err == nil {
			sum += t.CPU
		}
	}
	return sum
}
