package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/internal/install"
)

// brokers are what the tests run against.
type brokers struct {
	seeds    string
	replicas int // of each topic
	list     []broker
	close    func() error
}

// broker is one that can be killed.
type broker struct {
	name string
	kill func() error
	// start runs it again on what it has left, and returns once it serves.
	start func(context.Context) error
}

var kinds = map[string]func(ctx context.Context, o options, dir string) (*brokers, error){
	"varve": oneVarve, "cluster": threeVarve, "kafka": oneKafka,
}

// one runs a broker behind a gate, or at its own address where connections are to be refused while it is away.
func one(ctx context.Context, o options, name string, start func(ctx context.Context, addr, admin, advertised string) (*child.Process, error)) (*brokers, error) {
	var addrs [3]string // which clients are told, its own, and a second one
	for i := range addrs {
		var err error
		if addrs[i], err = child.FreeAddr(); err != nil {
			return nil, err
		}
	}
	var g *gate
	if o.refuse {
		addrs[0] = addrs[1]
	} else {
		var err error
		if g, err = openGate(addrs[0], addrs[1]); err != nil {
			return nil, err
		}
	}
	var p *child.Process
	up := func(ctx context.Context) (err error) {
		p, err = start(ctx, addrs[1], addrs[2], "PLAINTEXT://"+addrs[0])
		return err
	}
	end := func() error {
		if p != nil {
			p.Kill()
		}
		if g != nil {
			g.Close()
		}
		return nil
	}
	if err := up(ctx); err != nil {
		return nil, errors.Join(err, end())
	}
	kill := func() error {
		p.Kill()
		return nil
	}
	return &brokers{seeds: addrs[0], replicas: 1, list: []broker{{name, kill, up}}, close: end}, nil
}

func oneVarve(ctx context.Context, o options, dir string) (*brokers, error) {
	return one(ctx, o, "varve dev", func(ctx context.Context, addr, admin, advertised string) (*child.Process, error) {
		v, err := child.StartVarveAt(ctx, o.varve, filepath.Join(dir, "varve"), addr, admin, "advertised.listeners="+advertised, "wal.max.bytes=4294967296")
		if err != nil {
			return nil, err
		}
		return v.Process, nil
	})
}

// oneKafka has the one setting of `varve dev` that is not Kafka's default and matters here.
func oneKafka(ctx context.Context, o options, dir string) (*brokers, error) {
	cache, err := install.Open("varve-interop")
	if err != nil {
		return nil, err
	}
	installed, err := cache.Folder(os.DirFS("interop"), "java", func(dir string) error { return install.Jars(ctx, dir) })
	if err := errors.Join(err, cache.Close()); err != nil {
		return nil, err
	}
	return one(ctx, o, "Apache Kafka", func(ctx context.Context, addr, controller, advertised string) (*child.Process, error) {
		return child.StartKafkaAt(ctx, filepath.Join(installed, "jars"), filepath.Join(dir, "kafka"), addr, controller,
			"advertised.listeners="+advertised, "group.initial.rebalance.delay.ms=0")
	})
}

// threeVarve is the cluster of `make cluster-up`, on free ports, each broker behind a gate of its own.
func threeVarve(ctx context.Context, o options, dir string) (_ *brokers, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var gates []*gate
	co := cluster.Options{
		Dir: filepath.Join(dir, "cluster"), FreePorts: true, Varve: []string{o.varve}, Servers: []string{self},
		Config:  func(id int32) string { return filepath.Join("deploy", fmt.Sprintf("broker-%d.properties", id)) },
		Workers: 2, WorkerConfig: filepath.Join("deploy", "compactor.properties"),
	}
	if !o.refuse {
		co.Advertised = func(id int32) string { return gates[id-1].listener.Addr().String() }
	}
	c, err := cluster.New(co)
	if err != nil {
		return nil, err
	}
	b := &brokers{replicas: len(c.Brokers), close: func() error {
		_, err := c.Down()
		for _, g := range gates {
			g.Close()
		}
		return err
	}}
	seeds := c.Bootstrap()
	for i, s := range c.Brokers {
		b.list = append(b.list, broker{s.Name, s.Kill, s.Start})
		if o.refuse {
			continue
		}
		addr, err := child.FreeAddr()
		if err != nil {
			return nil, errors.Join(err, b.close())
		}
		g, err := openGate(addr, s.Addr)
		if err != nil {
			return nil, errors.Join(err, b.close())
		}
		gates, seeds[i] = append(gates, g), addr
	}
	b.seeds = strings.Join(seeds, ",")
	if _, err := c.Up(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}
