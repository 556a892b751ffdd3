package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/image"
)

// listener is one named listener: where clients reach the broker, and the
// address that metadata tells those who came this way.
type listener struct {
	b        *Broker
	name     string
	nl       net.Listener
	endpoint image.Endpoint
	creation *rate.Limiter // max.connection.creation.rate

	interBroker bool // brokers talk to this one over it
}

func (l *listener) close() { l.nl.Close() }

// limit takes over max.connection.creation.rate, also while the broker runs.
func (l *listener) limit(cfg *config.BrokerConfig) {
	if r := max(1, cfg.MaxConnectionCreationRate); r < 1<<30 { // 0: Kafka too holds each back for a second at most
		// In this order there is at no time a rate without a burst, with
		// which a wait would fail.
		l.creation.SetBurst(r)
		l.creation.SetLimit(rate.Limit(r))
		return
	}
	l.creation.SetLimit(rate.Inf)
}

// Bound are listeners that are bound and accept nobody yet: what to advertise
// has to be known before the broker registers.
type Bound struct{ listeners []*listener }

// Bind binds the configured listeners and returns what to advertise. A port
// of 0 is bound to a free one, and that one is advertised. listen binds an
// address; nil: by TCP.
func Bind(cfg *config.BrokerConfig, listen func(address string) (net.Listener, error), log *slog.Logger) (*Bound, []image.Endpoint, error) {
	if listen == nil {
		listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	bound := &Bound{}
	var out []image.Endpoint
	for _, ls := range cfg.Listeners {
		addr := net.JoinHostPort(ls.Host, fmt.Sprint(ls.Port))
		nl, err := listen(addr)
		if err != nil {
			bound.Close()
			return nil, nil, fmt.Errorf("broker: listener %s cannot listen on %s: %w", ls.Name, addr, err)
		}
		ep := image.Endpoint{Listener: ls.Name, Host: ls.AdvertisedHost, Port: int32(ls.AdvertisedPort), Protocol: ls.Protocol}
		if ls.AdvertisedPort == 0 {
			ep.Port = int32(nl.Addr().(*net.TCPAddr).Port)
		}
		if !isLoopback(ls.Host) {
			log.Warn("a plaintext listener is reachable from other machines: whoever reaches it can read, write and delete everything",
				"listener", ls.Name, "address", nl.Addr().String())
		}
		l := &listener{name: ls.Name, nl: nl, endpoint: ep, creation: rate.NewLimiter(rate.Inf, 0), interBroker: ls.InterBroker}
		l.limit(cfg)
		bound.listeners = append(bound.listeners, l)
		out = append(out, ep)
	}
	return bound, out, nil
}

// Close gives the addresses back.
func (b *Bound) Close() {
	for _, l := range b.listeners {
		l.close()
	}
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Serve accepts connections on the bound listeners until Close.
func (b *Broker) Serve(bound *Bound) {
	b.mu.Lock()
	b.listeners = bound.listeners
	for _, l := range bound.listeners {
		l.b = b
		l.limit(b.conf()) // what was changed while brokers run counts from the start
	}
	b.mu.Unlock()
	for _, l := range b.listeners {
		b.wg.Add(1)
		go func() {
			defer b.wg.Done()
			l.accept()
		}()
	}
}

// accept admits connections within the limits. One that is over a limit is
// closed at once; nothing is read from it. (Kafka does the same at
// max.connections.per.ip, and lets clients wait at max.connections.)
func (l *listener) accept() {
	b := l.b
	backoff := time.Duration(0)
	for {
		nc, err := l.nl.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: accepting resumes when
			// connections end.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			b.log.Error("connection not accepted", "listener", l.name, "err", err, "retry_in", backoff)
			time.Sleep(backoff)
			continue
		}
		backoff = 0
		l.creation.Wait(b.ctx) // hold back rather than refuse
		setBuffers(nc, b.conf())
		c := newConn(b, l, nc)
		if why := b.admit(c); why != "" {
			b.ev.ConnectionRefused()
			if b.badInputLog.Allow() {
				b.log.Warn("connection refused", "remote", nc.RemoteAddr().String(), "listener", l.name, "why", why)
			}
			c.cancel()
			nc.Close()
			continue
		}
		go func() {
			defer b.wg.Done()
			c.serve()
			b.leave(c)
		}()
	}
}

// admit counts a connection in, or says which limit it is over.
func (b *Broker) admit(c *conn) string {
	ip := remoteIP(c.nc)
	b.mu.Lock()
	defer b.mu.Unlock()
	files, limit := connectionFiles(), b.conf().MaxConnectionsPerIP
	if n, ok := b.conf().MaxConnectionsPerIPOverrides[ip]; ok {
		limit = n
	}
	switch {
	case b.draining.Load():
		return "the broker is shutting down"
	case len(b.conns) >= b.conf().MaxConnections:
		return fmt.Sprintf("max.connections=%d reached", b.conf().MaxConnections)
	case len(b.conns) >= files:
		return fmt.Sprintf("%d connections are what the limit of open files of this process leaves beside log, metadata and object storage; raise it (ulimit -n, LimitNOFILE=)", files)
	case b.perIP[ip] >= limit:
		return fmt.Sprintf("max.connections.per.ip=%d reached", limit)
	}
	b.conns[c] = struct{}{}
	b.perIP[ip]++
	b.wg.Add(1)
	b.ev.Connections(len(b.conns))
	return ""
}

// connectionFiles is how many of the files that this process may open are for connections. The others are for what must go
// on when clients take all that they can get: a log that cannot begin its next segment ends the broker.
func connectionFiles() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	n := int(limit.Cur)
	return n - min(max(n/4, 128), n/2, 1024)
}

func (b *Broker) leave(c *conn) {
	ip := remoteIP(c.nc)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	if b.perIP[ip]--; b.perIP[ip] <= 0 {
		delete(b.perIP, ip)
	}
	b.ev.Connections(len(b.conns))
}

func remoteIP(nc net.Conn) string {
	host, _, err := net.SplitHostPort(nc.RemoteAddr().String())
	if err != nil {
		return nc.RemoteAddr().String()
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String() // as max.connections.per.ip.overrides has it
	}
	return host
}

// setBuffers sets the socket's buffers where they were configured; without
// that the kernel sizes them, which it does better than a number from a file.
func setBuffers(nc net.Conn, c *config.BrokerConfig) {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	if _, set := c.Static["socket.send.buffer.bytes"]; set && c.SocketSendBufferBytes > 0 {
		t.SetWriteBuffer(c.SocketSendBufferBytes)
	}
	if _, set := c.Static["socket.receive.buffer.bytes"]; set && c.SocketReceiveBufferBytes > 0 {
		t.SetReadBuffer(c.SocketReceiveBufferBytes)
	}
}
