package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
)

// The two that are compared.
const (
	kafka = "Kafka"
	varve = "Varve"
)

// broker is a server under test, or a cluster of them.
type broker struct {
	kind  string // kafka or varve
	addr  string
	admin string // Varve's URL of metrics and tier status
	dir   string

	process *child.Process
	members *members                                   // of a cluster; nil: it is one process
	start   func(ctx context.Context, b *broker) error // starts it on the data it has
	started time.Duration                              // how long that took, until it answered
}

// open starts the broker and waits until it answers a client.
func (b *broker) open(ctx context.Context) error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	began := time.Now()
	if err := b.start(ctx, b); err != nil {
		return err
	}
	b.started = time.Since(began)
	return nil
}

// close ends the broker and removes what it stored. An orderly end is of no
// use to data that is thrown away, and Kafka's takes its time.
func (b *broker) close() {
	if b.process != nil {
		b.process.Kill()
	}
	if b.members != nil {
		b.members.end()
	}
	os.RemoveAll(b.dir)
}

// alive is an error if the broker has ended by itself.
func (b *broker) alive() error {
	if b.members != nil {
		return b.members.alive()
	}
	if b.process == nil {
		return fmt.Errorf("%s was not started", b.kind)
	}
	select {
	case <-b.process.Ended():
		return fmt.Errorf("%s has ended by itself\n%s", b.kind, b.process.Tail())
	default:
		return nil
	}
}

func (b *broker) client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.addrs()...), kgo.ClientID("bench"), kgo.DisableClientMetrics()}, opts...)...)
}

// addrs are where clients find it.
func (b *broker) addrs() []string {
	if b.members == nil {
		return []string{b.addr}
	}
	var list []string
	for _, n := range b.members.first() {
		list = append(list, n.addr)
	}
	return list
}

// pids are the brokers' processes.
func (b *broker) pids() []int {
	if b.members == nil {
		return []int{b.process.PID()}
	}
	var list []int
	for _, n := range b.members.nodes {
		if pid := n.pid(); pid != 0 {
			list = append(list, pid)
		}
	}
	return list
}

// replicas is how many a topic's partitions have.
func (b *broker) replicas() int {
	if b.members == nil {
		return 1
	}
	return b.members.running
}

func (b *broker) adm() (*kadm.Client, error) {
	cl, err := b.client()
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(cl), nil
}

// newKafka is a Kafka broker of a profile that is not started yet.
func (r *runner) newKafka(name string, p profile) (*broker, error) {
	addr, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	controller, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	n := kafkaNode{dir: filepath.Join(r.dir, name+"-kafka"), addr: addr, controller: controller, id: 1}
	return &broker{kind: kafka, addr: addr, dir: n.dir, start: func(ctx context.Context, b *broker) (err error) {
		b.process, err = n.start(ctx, r.jars, p)
		return err
	}}, nil
}

// newVarve is a Varve broker with settings of its own that is not started yet.
func (r *runner) newVarve(name string, settings []string) (*broker, error) {
	addr, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	admin, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	return &broker{kind: varve, addr: addr, admin: "http://" + admin, dir: filepath.Join(r.dir, name+"-varve"), start: func(ctx context.Context, b *broker) error {
		v, err := child.StartVarveAt(ctx, r.varve, b.dir, addr, admin, settings...)
		if err != nil {
			return err
		}
		b.process = v.Process
		return nil
	}}, nil
}

// What Varve is given where Kafka stores nothing but its local log: nothing is
// uploaded while a row lasts, as would be once a partition has log.segment.bytes,
// or all of them together three quarters of wal.max.bytes.
// Everything else is its default, the fsync before every acknowledgement among it.
var noUploads = []string{
	"remote.flush.interval.ms=600000",
	"remote.object.bytes=1099511627776",
	"log.segment.bytes=2147483647",
	"wal.max.bytes=34359738368",
}
