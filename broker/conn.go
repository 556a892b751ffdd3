package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/slab"
)

// maxPipelined bounds the requests of one connection that are read but not
// answered. Kafka handles one at a time and leaves the rest in the socket;
// here produce requests are appended in the order they arrive while earlier
// ones wait for their fsync.
const maxPipelined = 256

// maxUnsent bounds the answers of one connection that are complete and not
// sent: above it nothing more is read. A client that asks and does not read is
// held back by its socket and not remembered by the heap.
const maxUnsent = 1 << 20

// coalesceBytes bounds how much of several ready responses one writev takes.
const coalesceBytes = 1 << 20

// conn is one client connection: a reader goroutine that cuts frames, decides,
// and starts what takes long, and a writer goroutine that sends the responses
// in the order of the requests.
//
// Lock ordering: mu is a leaf.
type conn struct {
	b        *Broker
	nc       net.Conn
	listener *listener
	frames   *frameReader
	ctx      context.Context
	cancel   context.CancelFunc
	log      *slog.Logger

	clientID   *string                 // of the last request: the same string is kept
	produceReq protocol.ProduceRequest // decoded into again and again; used by the reader alone
	txns       txnQueue
	held       heldBack

	peer  *peer     // the broker that has proved to be at the other end; used by the reader alone
	proof peerProof // on the way there

	softwareName    string
	softwareVersion string

	mu      sync.Mutex
	queue   []*pending // answers owed, oldest first
	closing bool       // the reader has ended: answer what is owed, then close
	signal  chan struct{}
	slots   chan struct{} // one per pending answer: back-pressure for pipelining

	wakeOwed bool // guarded by Broker.wakes

	unsent atomic.Int64  // bytes of complete answers that are not sent
	sent   chan struct{} // told when unsent falls
}

// pending is one response owed to a connection.
type pending struct {
	c        *conn
	hdr      protocol.RequestHeader
	start    time.Time
	state    atomic.Int32 // owed, ready, or abandoned
	parts    net.Buffers  // what to send; nil sends nothing (acks=0)
	bytes    int
	release  func()       // after parts were sent, or dropped
	charge   atomic.Int64 // request bytes to give back to the budget, once
	deadline time.Time
	expire   func() // called once by the writer when deadline passed and the answer is first in line
	fetch    bool   // a Fetch: parked for more records, and not for a commit
	closeIt  bool   // the connection ends after this answer
}

// complete hands the answer to the writer. It may be called from any
// goroutine, once, and does not block.
func (p *pending) complete(parts net.Buffers, release func()) {
	p.parts, p.release = parts, release
	for _, b := range parts {
		p.bytes += len(b)
	}
	p.c.unsent.Add(int64(p.bytes))
	p.finish()
}

func (p *pending) finish() {
	p.uncharge()
	if !p.state.CompareAndSwap(owed, ready) {
		// The connection ended first: nobody will send it.
		if p.release != nil {
			p.release()
		}
		return
	}
	p.c.poke()
}

func (p *pending) uncharge() { p.c.b.requests.release(p.charge.Swap(0)) }

func (p *pending) isReady() bool { return p.state.Load() == ready }

// park gives the answer a deadline: when it passes while the answer is first
// in line, the connection's writer calls expire, once. For a connection that has
// ended it reports false, and expire is the caller's to call. One timer per connection serves all its waits:
// answers leave in order, so only the first can be late.
func (p *pending) park(deadline time.Time, expire func()) bool {
	c := p.c
	c.mu.Lock()
	if p.state.Load() == abandoned {
		c.mu.Unlock()
		return false
	}
	if c.closing && p.fetch {
		deadline = time.Time{}
	}
	p.deadline, p.expire = deadline, expire
	c.mu.Unlock()
	c.poke()
	return true
}

// States of a pending answer.
const (
	owed int32 = iota
	ready
	abandoned
)

// respond encodes resp as the answer.
func (p *pending) respond(resp kmsg.Response) {
	b := protocol.AppendResponse(nil, p.hdr, resp)
	var release func()
	if n := int64(cap(b)); n >= countedResponse {
		p.c.b.responses.add(n)
		release = func() { p.c.b.responses.add(-n) }
	}
	p.complete(net.Buffers{b}, release)
}

// countedResponse is the size from which an answer counts among the bytes of
// all responses. Smaller ones are bounded by their number.
const countedResponse = 4 << 10

// poke has the writer look at the queue again: at once, or together with the
// others that an fsync concerns.
func (c *conn) poke() {
	if !c.b.wakes.hold(c) {
		c.wake()
	}
}

func (c *conn) wake() {
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

func newConn(b *Broker, l *listener, nc net.Conn) *conn {
	ctx, cancel := context.WithCancel(b.ctx)
	return &conn{
		b: b, nc: nc, listener: l,
		frames: newFrameReader(nc),
		ctx:    ctx, cancel: cancel,
		log:    b.log.With("remote", nc.RemoteAddr().String()),
		signal: make(chan struct{}, 1),
		slots:  make(chan struct{}, maxPipelined),
		sent:   make(chan struct{}, 1),
	}
}

// serve runs the connection to its end.
func (c *conn) serve() {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		c.write()
	}()
	err := c.read()
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.poke()
	// Nobody waits for records any more, though a minute of max.wait.ms may be
	// left; commits that are under way are still answered.
	c.wakeParked()
	if err != nil && !errors.Is(err, errDraining) {
		c.logEnd(err)
	}
	if err != nil && !owesAnswers(err) {
		// The stream is broken: nobody reads the answers.
		c.cancel()
		c.nc.Close()
	}
	wg.Wait()
	c.cancel()
	c.nc.Close()
	c.txns.wg.Wait()
	c.frames.drop()
}

// owesAnswers tells whether a reader that ended with err leaves a peer that
// still reads: what it asked for before is answered then. To drop the answer to
// a produce that was committed would make its client write it again.
func owesAnswers(err error) bool {
	for _, e := range []error{io.EOF, errDraining, errFrame, errUnanswerable, protocol.ErrMalformed, protocol.ErrUnknownKey, protocol.ErrUnsupportedVersion, protocol.ErrTooCostly} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// errUnanswerable is a request that failed and has no answer (acks=0).
var errUnanswerable = errors.New("broker: a request without an answer failed")

func (c *conn) logEnd(err error) {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled),
		errors.Is(err, os.ErrDeadlineExceeded):
		c.log.Debug("connection ended", "err", err)
	case errors.Is(err, errFrame), errors.Is(err, protocol.ErrMalformed), errors.Is(err, protocol.ErrUnknownKey),
		errors.Is(err, protocol.ErrUnsupportedVersion), errors.Is(err, protocol.ErrTooCostly):
		c.b.ev.BadInput(err)
		if c.b.badInputLog.Allow() {
			c.log.Warn("connection closed: what arrived is not a request that can be served", "err", err)
		}
	default:
		c.log.Debug("connection broken", "err", err)
	}
}

// read handles requests until the stream ends or breaks.
func (c *conn) read() error {
	var charge int64
	frameStarted := func() { c.nc.SetReadDeadline(time.Now().Add(frameTimeout)) }
	admitFrame := func(ctx context.Context, size int) error {
		n, err := c.b.requests.acquire(ctx, int64(size))
		if err != nil {
			return err
		}
		charge = n
		if size > readBufferSize {
			frameStarted() // anew: the wait for memory was not the client's
		}
		return nil
	}
	for {
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
		if err := c.holdBack(); err != nil {
			return err
		}
		var idle time.Time // zero: no deadline
		if d := c.b.conf().ConnectionsMaxIdle; d > 0 {
			idle = time.Now().Add(d)
		}
		c.nc.SetReadDeadline(idle)
		// Only now: Close tells the readers by a deadline in the past, which
		// the one just set may have put off.
		if c.b.draining.Load() {
			return errDraining
		}
		charge = 0
		frame, buf, err := c.frames.next(c.ctx, c.b.conf().SocketRequestMaxBytes, frameStarted, admitFrame)
		if err != nil {
			c.b.requests.release(charge)
			if c.b.draining.Load() {
				return errDraining
			}
			return err
		}
		if err := c.handle(frame, buf, charge); err != nil {
			return err
		}
	}
}

// holdBack waits while this connection owes too much that is ready, or anything
// at all while all connections together do.
func (c *conn) holdBack() error {
	for {
		n := c.unsent.Load()
		if n == 0 || n <= maxUnsent && !c.b.responses.exhausted() {
			return nil
		}
		select {
		case <-c.sent:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
}

// errDraining ends a connection's reader at shutdown: what is owed is still
// answered.
var errDraining = errors.New("broker: shutting down")

// frameTimeout bounds the time from a frame's size to its last byte.
const frameTimeout = 60 * time.Second

// handle decodes and starts one request, whose reference to buf it owns. A returned error closes the
// connection; c.slots has one entry for the request, which the writer frees.
func (c *conn) handle(frame []byte, buf *slab.Buf, charge int64) (err error) {
	p := &pending{c: c, start: time.Now()}
	p.charge.Store(charge)
	defer func() {
		if r := recover(); r != nil {
			err = c.failed(p, r)
		}
		if err == nil {
			return
		}
		p.uncharge()
		if owesAnswers(err) && !p.isReady() {
			// Nothing follows the answers to what came before it.
			p.closeIt = true
			p.complete(nil, nil)
		}
	}()
	hdr, body, err := protocol.ParseHeaderAfter(frame, c.clientID)
	p.hdr = hdr
	if err != nil {
		if hdr.Key == protocol.KeyApiVersions && errors.Is(err, protocol.ErrUnsupportedVersion) {
			c.push(p)
			buf.Release()
			p.respond(c.b.apiVersionsUnsupported())
			return nil
		}
		buf.Release()
		return err
	}
	c.clientID = hdr.ClientID
	a := c.b.apis.find(hdr.Key)
	if a == nil && c.listener.interBroker {
		a = c.b.among.find(hdr.Key)
	}
	if a == nil {
		buf.Release()
		return fmt.Errorf("%w: %s (%d) is not served", protocol.ErrUnknownKey, protocolName(hdr.Key), hdr.Key)
	}
	if hdr.Version < a.min || hdr.Version > a.max {
		defer buf.Release()
		if hdr.Key == protocol.KeyApiVersions {
			c.push(p)
			p.respond(c.b.apiVersionsUnsupported())
			return nil
		}
		return fmt.Errorf("%w: %s v%d, where v%d to v%d are served", protocol.ErrUnsupportedVersion, a.name, hdr.Version, a.min, a.max)
	}
	cost := int64(0)
	if hdr.Key != keyProduce { // whose decoder checks as it goes
		if cost, err = protocol.CheckCost(hdr.Key, hdr.Version, body); err != nil {
			buf.Release()
			return fmt.Errorf("%s v%d: %w", a.name, hdr.Version, err)
		}
	}
	c.push(p)
	r := &request{c: c, p: p, hdr: hdr, body: body, buf: buf, ctx: c.ctx}
	if cost <= heavyCost {
		return a.serve(r)
	}
	served := false
	err = c.b.heavy.with(c.ctx, heavyFactor*cost, func(int) error {
		served = true
		return a.serve(r)
	})
	if !served {
		buf.Release()
	}
	return err
}

// A request is heavy from so many bytes on that it takes decoded. What it names
// is then looked up and answered for, in structures of many times the few bytes
// that name it: a partition of an array has four, and one of an answer about
// fifty. So heavy ones share a bound, and wait for each other.
const (
	heavyCost   = 1 << 20
	heavyFactor = 12
)

// failed is the end of a request whose handler panicked. A request must not end
// the process: the connection ends, and the stack is kept for whoever reads the
// log.
func (c *conn) failed(p *pending, r any) error {
	c.b.log.Error("request handler failed: connection closed", "api", protocolName(p.hdr.Key), "version", p.hdr.Version,
		"panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	c.b.ev.Panic()
	return fmt.Errorf("broker: request handler failed: %v", r)
}

// guard runs a part of a handler that goes on outside of the reader. If it
// panics, the answer will never be complete, so the connection ends here.
func (c *conn) guard(p *pending, f func()) {
	defer func() {
		if r := recover(); r != nil {
			c.failed(p, r)
			c.cancel()
			c.nc.Close()
		}
	}()
	f()
}

func (c *conn) push(p *pending) {
	c.mu.Lock()
	c.queue = append(c.queue, p)
	c.mu.Unlock()
}

// write sends answers in order until the connection ends.
func (c *conn) write() {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	defer c.dropQueue()
	var batch []*pending
	var bufs net.Buffers
	for {
		batch, bufs = batch[:0], bufs[:0]
		var head *pending
		bytes := 0
		c.mu.Lock()
		for len(c.queue) > 0 && c.queue[0].isReady() && (bytes == 0 || bytes+c.queue[0].bytes <= coalesceBytes) {
			p := c.queue[0]
			c.queue[0] = nil
			c.queue = c.queue[1:]
			bytes += p.bytes
			batch = append(batch, p)
			if p.closeIt {
				break
			}
		}
		if len(c.queue) == 0 {
			c.queue = nil
		} else {
			head = c.queue[0]
		}
		var deadline time.Time
		expirable := head != nil && head.expire != nil
		if expirable {
			deadline = head.deadline
		}
		closing := c.closing
		c.mu.Unlock()

		if len(batch) > 0 {
			for _, p := range batch {
				bufs = append(bufs, p.parts...)
			}
			err := c.send(bufs, bytes)
			clear(bufs)
			last := false
			for i, p := range batch {
				if p.release != nil {
					p.release()
				}
				c.b.ev.Response(p.hdr.Key, p.bytes, time.Since(p.start))
				last = last || p.closeIt
				batch[i] = nil
				<-c.slots
			}
			c.unsent.Add(-int64(bytes))
			select {
			case c.sent <- struct{}{}:
			default:
			}
			if err != nil || last {
				c.cancel()
				c.nc.Close()
				return
			}
			continue
		}
		if head == nil && closing {
			return
		}
		var expiry <-chan time.Time
		if expirable {
			timer.Reset(time.Until(deadline))
			expiry = timer.C
		}
		select {
		case <-c.signal:
		case <-expiry:
			c.mu.Lock()
			f := head.expire
			head.expire = nil
			c.mu.Unlock()
			if f != nil && !head.isReady() {
				c.guard(head, f)
			}
		case <-c.ctx.Done():
			return
		}
		timer.Stop()
	}
}

// owed names the requests that are not answered, oldest first.
func (c *conn) owed() (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.queue[:min(len(c.queue), 3)] {
		names = append(names, protocolName(p.hdr.Key))
	}
	return names
}

// send writes one vector. A peer that does not read is given time in
// proportion to what it is owed, then dropped, so that it cannot hold
// response memory for ever.
func (c *conn) send(bufs net.Buffers, n int) error {
	if len(bufs) == 0 {
		return nil
	}
	c.nc.SetWriteDeadline(time.Now().Add(writeTimeout + time.Duration(n/minWriteRate)*time.Second))
	_, err := bufs.WriteTo(c.nc)
	if err != nil {
		c.log.Debug("response not sent", "err", err)
	}
	return err
}

const (
	writeTimeout = 30 * time.Second
	minWriteRate = 64 << 10 // bytes a second, below which a reader is dropped
)

// wakeParked answers what waits for records only because its time is not over.
func (c *conn) wakeParked() {
	c.mu.Lock()
	now := time.Now()
	for _, p := range c.queue {
		if p.expire != nil && p.fetch {
			p.deadline = now
		}
	}
	c.mu.Unlock()
	c.poke()
}

// dropQueue lets go of what is still owed when the connection ends. Answers
// that are not complete yet are completed by whoever owes them, into nothing.
func (c *conn) dropQueue() {
	c.mu.Lock()
	queue := c.queue
	c.queue = nil
	var expire []func()
	for _, p := range queue {
		if p.state.CompareAndSwap(owed, abandoned) && p.expire != nil {
			f := p.expire
			expire = append(expire, func() { c.guard(p, f) })
			p.expire = nil
		}
	}
	c.mu.Unlock()
	for _, f := range expire {
		f()
	}
	for _, p := range queue {
		if p.isReady() && p.release != nil {
			p.release()
		}
	}
}
