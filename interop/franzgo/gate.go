package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// gate is the address of a broker that is there all the time: while the broker is away, connections are accepted and wait
// until it is back. What is under way when it goes is lost, as without a gate.
type gate struct {
	listener net.Listener
	to       string // the broker's own address
	done     chan struct{}
	wg       sync.WaitGroup
}

func openGate(addr, to string) (*gate, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	g := &gate{listener: l, to: to, done: make(chan struct{})}
	g.wg.Go(g.accept)
	return g, nil
}

// Close ends all connections, and returns when they have ended.
func (g *gate) Close() {
	close(g.done)
	g.listener.Close()
	g.wg.Wait()
}

func (g *gate) accept() {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			select {
			case <-g.done:
				return
			case <-time.After(10 * time.Millisecond): // of files there may be none left, for a while
				continue
			}
		}
		g.wg.Go(func() { g.serve(c) })
	}
}

func (g *gate) serve(client net.Conn) {
	defer client.Close()
	var broker net.Conn
	for {
		var err error
		if broker, err = net.DialTimeout("tcp", g.to, time.Second); err == nil {
			break
		}
		select {
		case <-g.done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	defer broker.Close()
	// The first end of either side ends both.
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, broker}, {broker, client}} {
		g.wg.Go(func() {
			io.Copy(way[0], way[1])
			ended <- struct{}{}
		})
	}
	select {
	case <-g.done:
	case <-ended:
	}
}
