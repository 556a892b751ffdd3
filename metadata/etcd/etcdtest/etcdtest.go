// Package etcdtest runs an etcd of several members in the process of a test. The way to
// each can be frozen: connections stay, and nothing comes through any more, as with a
// process that was stopped. The members go on reaching each other.
package etcdtest

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/varve/varve/internal/child"
)

// Cluster is an etcd that runs.
type Cluster struct{ ways []*way }

// Start starts members, and ends them with the test.
func Start(t testing.TB, members int) *Cluster {
	t.Helper()
	// Files of the log are filled before they are used.
	wal.SegmentSizeBytes = 8 << 20
	addresses := free(t, 2*members)
	var all []string
	for i := range members {
		all = append(all, fmt.Sprintf("m%d=http://%s", i, addresses[2*i]))
	}
	c := &Cluster{}
	var started []*embed.Etcd
	dir := t.TempDir()
	for i := range members {
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir, cfg.InitialCluster = fmt.Sprintf("m%d", i), filepath.Join(dir, fmt.Sprint(i)), strings.Join(all, ",")
		peer, client := []url.URL{{Scheme: "http", Host: addresses[2*i]}}, []url.URL{{Scheme: "http", Host: addresses[2*i+1]}}
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls, cfg.ListenClientUrls, cfg.AdvertiseClientUrls = peer, peer, client, client
		cfg.UnsafeNoFsync = true // no machine fails here
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		started = append(started, e)
	}
	for i, e := range started {
		select {
		case <-e.Server.ReadyNotify():
		case err := <-e.Err():
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatal("a member of etcd is not ready after a minute")
		}
		w := newWay(t, addresses[2*i+1])
		t.Cleanup(w.close)
		c.ways = append(c.ways, w)
	}
	return c
}

// free returns addresses that nobody listens on.
func free(t testing.TB, n int) (addresses []string) {
	for range n {
		addr, err := child.FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, addr)
	}
	return addresses
}

// Endpoints of the members, for etcd.Dial.
func (c *Cluster) Endpoints() (out []string) {
	for _, w := range c.ways {
		out = append(out, "http://"+w.l.Addr().String())
	}
	return out
}

// Freeze has nothing come through to a member any more, or again.
func (c *Cluster) Freeze(member int, frozen bool) {
	w := c.ways[member]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen = frozen
	w.changed.Broadcast()
}

// way passes on what comes to an address.
type way struct {
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond
	frozen  bool
	closed  bool
	conns   map[net.Conn]struct{}
}

func newWay(t testing.TB, to string) *way {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{l: l, to: to, conns: map[net.Conn]struct{}{}}
	w.changed.L = &w.mu
	w.wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.serve(near) })
		}
	})
	return w
}

func (w *way) serve(near net.Conn) {
	defer near.Close()
	if !w.pass() {
		return
	}
	far, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer far.Close()
	if !w.add(near, far) {
		return
	}
	defer w.remove(near, far)
	var both sync.WaitGroup
	both.Go(func() { w.copy(near, far) })
	both.Go(func() { w.copy(far, near) })
	both.Wait()
}

func (w *way) copy(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if !w.pass() {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			w.pass() // its end is not told either
			return
		}
	}
}

// pass waits while the way is frozen; false: it is over.
func (w *way) pass() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.frozen && !w.closed {
		w.changed.Wait()
	}
	return !w.closed
}

func (w *way) add(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		w.conns[c] = struct{}{}
	}
	return !w.closed
}

func (w *way) remove(conns ...net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		delete(w.conns, c)
	}
}

func (w *way) close() {
	w.mu.Lock()
	w.closed = true
	w.changed.Broadcast()
	for c := range w.conns {
		c.Close()
	}
	w.mu.Unlock()
	w.l.Close()
	w.wg.Wait()
}
