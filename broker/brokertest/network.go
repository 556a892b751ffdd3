package brokertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network is a network in memory. It behaves as TCP over one that loses packets: what is sent arrives in order, late,
// or not before a cut is healed; a connection ends when one end closes it or its host dies, which the other end is told
// if there is somebody left to tell it.
type network struct {
	mu        sync.Mutex
	changed   sync.Cond // a listener came, a cut was healed
	rnd       *rand.Rand
	listeners map[string]*listener
	conns     map[*conn]struct{} // both ends of each
	cut       map[[2]string]bool // from one host to another; "" stands for any
	slow      map[[2]string]time.Duration
	silent    map[string]bool // hosts without power: nobody refuses
	deaf      map[string]bool // hosts whose listeners accept nobody: connections come about, and nobody answers
	ports     int
}

func newNetwork(seed uint64) *network {
	n := &network{
		rnd: rand.New(rand.NewPCG(seed, 0x6e6574)), listeners: map[string]*listener{}, conns: map[*conn]struct{}{},
		cut: map[[2]string]bool{}, slow: map[[2]string]time.Duration{}, silent: map[string]bool{}, deaf: map[string]bool{},
	}
	n.changed.L = &n.mu
	return n
}

const (
	maxLatency = 400 * time.Microsecond
	// windowBytes may be on their way in one direction; who sends more waits.
	windowBytes = 256 << 10
)

// link says how long a piece of data takes between two hosts; false: it does not arrive. Called with mu held.
func (n *network) link(from, to string) (time.Duration, bool) {
	for _, k := range [][2]string{{from, to}, {from, ""}, {"", to}} {
		if n.cut[k] {
			return 0, false
		}
	}
	return time.Duration(n.rnd.Int64N(int64(maxLatency))) + n.slow[[2]string{from, to}], true
}

// Cut holds back what one host sends to another; "" is any host.
func (n *network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = true
}

// Heal ends a cut. What was held back arrives now; with reset, connections that it concerned have been given up.
func (n *network) Heal(from, to string, reset bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, [2]string{from, to})
	n.changed.Broadcast()
	for c := range n.conns {
		if (from == "" || c.host == from) && (to == "" || c.peer.host == to) {
			if reset {
				c.fail(syscall.ECONNRESET)
				c.peer.fail(syscall.ECONNRESET)
			}
			c.peer.wake.Broadcast()
		}
	}
}

// Deaf has the listeners of a host accept nobody, or again.
func (n *network) Deaf(host string, deaf bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf[host] = deaf
	n.changed.Broadcast()
}

// Slow makes everything take longer from one host to another.
func (n *network) Slow(from, to string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[[2]string{from, to}] = d
}

// Kill ends all connections of a host, and its listeners. With power lost there is nobody who tells the other ends:
// they hear of it when they send something after Restore.
func (n *network) Kill(host string, power bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[host] = power
	for a, l := range n.listeners {
		if l.host == host {
			l.closed = true
			delete(n.listeners, a)
		}
	}
	n.changed.Broadcast()
	for c := range n.conns {
		if c.host != host {
			continue
		}
		c.fail(net.ErrClosed)
		if !power {
			c.peer.end(n, syscall.ECONNRESET)
		}
	}
}

// Restore has a host answer again, if only to refuse.
func (n *network) Restore(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.silent, host)
	for c := range n.conns {
		if c.host == host && c.err != nil {
			c.peer.end(n, syscall.ECONNRESET)
		}
	}
	n.changed.Broadcast()
}

type listener struct {
	n       *network
	host    string
	addr    net.Addr
	waiting []*conn
	closed  bool
}

func (n *network) Listen(address string) (net.Listener, error) {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, fmt.Errorf("listen %s: %w", address, syscall.EADDRINUSE)
	}
	l := &listener{n: n, host: addr.IP.String(), addr: addr}
	n.listeners[address] = l
	n.changed.Broadcast()
	return l, nil
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for (len(l.waiting) == 0 || l.n.deaf[l.host]) && !l.closed {
		l.n.changed.Wait()
	}
	if l.closed {
		return nil, net.ErrClosed
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	return c, nil
}

func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if !l.closed {
		l.closed = true
		delete(l.n.listeners, l.addr.String())
		for _, c := range l.waiting {
			c.fail(net.ErrClosed)
			c.peer.end(l.n, syscall.ECONNRESET)
		}
		l.n.changed.Broadcast()
	}
	return nil
}

// Dial connects from a host to an address.
func (n *network) Dial(ctx context.Context, from, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})
	defer stop()
	fail := func(err error) (net.Conn, error) { return nil, fmt.Errorf("dial %s: %w", address, err) }
	n.mu.Lock()
	var there time.Duration
	for {
		if ctx.Err() != nil {
			n.mu.Unlock()
			return fail(ctx.Err())
		}
		var ok, back bool
		there, ok = n.link(from, host)
		_, back = n.link(host, from)
		if ok && back && !n.silent[host] {
			break
		}
		n.changed.Wait()
	}
	n.mu.Unlock()
	time.Sleep(there)
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[address]
	if l == nil {
		return fail(syscall.ECONNREFUSED)
	}
	n.ports++
	near := &conn{n: n, host: from, local: &net.TCPAddr{IP: net.ParseIP(from), Port: 20000 + n.ports%40000}, remote: l.addr}
	far := &conn{n: n, host: l.host, local: l.addr, remote: near.local}
	near.peer, far.peer = far, near
	near.wake.L, far.wake.L = &n.mu, &n.mu
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	l.waiting = append(l.waiting, far)
	n.changed.Broadcast()
	return near, nil
}

// conn is one end of a connection. Everything in it is guarded by the network's lock.
type conn struct {
	n             *network
	host          string
	peer          *conn
	local, remote net.Addr

	wake   sync.Cond // something below has changed, or a time has come
	in     []piece   // what the peer has sent
	inBuf  int       // its bytes
	last   time.Time // when the last of it arrives
	eof    bool      // the peer sends no more
	eofAt  time.Time
	err    error // this end is over
	rd, wd deadline
}

// piece is data on its way.
type piece struct {
	b  []byte
	at time.Time // it arrives, if nothing is cut then
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) past() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// set is called with the network's lock held.
func (d *deadline) set(c *conn, at time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() && time.Until(at) > 0 {
		d.timer = c.after(time.Until(at))
	}
	c.wake.Broadcast()
}

// after wakes who waits, later.
func (c *conn) after(d time.Duration) *time.Timer {
	return time.AfterFunc(d, func() {
		c.n.mu.Lock()
		defer c.n.mu.Unlock()
		c.wake.Broadcast()
	})
}

// fail ends this end. Called with the network's lock held.
func (c *conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.rd.set(c, time.Time{})
	c.wd.set(c, time.Time{})
	if c.peer.err != nil {
		delete(c.n.conns, c)
		delete(c.n.conns, c.peer)
	}
}

// end tells this end that the other one is gone, unless the way is cut: then it goes on waiting. Called with the
// network's lock held.
func (c *conn) end(n *network, err error) {
	if _, ok := n.link(c.peer.host, c.host); ok {
		c.fail(err)
	}
}

func (c *conn) Read(p []byte) (int, error) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.err != nil:
			return 0, c.err
		case c.rd.past():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		_, open := n.link(c.peer.host, c.host)
		now := time.Now()
		switch {
		case !open:
		case len(c.in) > 0 && !c.in[0].at.After(now):
			k := copy(p, c.in[0].b)
			if c.in[0].b = c.in[0].b[k:]; len(c.in[0].b) == 0 {
				c.in = c.in[1:]
			}
			c.inBuf -= k
			c.peer.wake.Broadcast()
			return k, nil
		case len(c.in) > 0:
			c.after(c.in[0].at.Sub(now))
		case c.eof && !c.eofAt.After(now):
			return 0, io.EOF
		case c.eof:
			c.after(c.eofAt.Sub(now))
		}
		c.wake.Wait()
	}
}

func (c *conn) Write(p []byte) (int, error) {
	n, peer := c.n, c.peer
	n.mu.Lock()
	defer n.mu.Unlock()
	sent := 0
	for {
		switch {
		case c.err != nil:
			return sent, c.err
		case c.wd.past():
			return sent, os.ErrDeadlineExceeded
		case sent == len(p):
			return sent, nil
		}
		if peer.err != nil { // it is sent to nobody, who says so if he can be reached
			if _, ok := n.link(c.host, peer.host); ok && !n.silent[peer.host] {
				c.end(n, syscall.ECONNRESET)
			}
			return len(p), c.err
		}
		if room := windowBytes - peer.inBuf; room > 0 {
			k := min(room, len(p)-sent)
			takes, _ := n.link(c.host, peer.host)
			at := time.Now().Add(takes)
			if at.Before(peer.last) {
				at = peer.last
			}
			peer.last = at
			peer.in = append(peer.in, piece{append([]byte(nil), p[sent:sent+k]...), at})
			peer.inBuf += k
			sent += k
			peer.wake.Broadcast()
			continue
		}
		c.wake.Wait()
	}
}

func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.err == nil {
		c.peer.eof, c.peer.eofAt = true, c.peer.last
		c.peer.wake.Broadcast()
		c.fail(net.ErrClosed)
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.err == nil {
		c.rd.set(c, t)
	}
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.err == nil {
		c.wd.set(c, t)
	}
	return nil
}
