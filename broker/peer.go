package broker

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/wal/slab"
)

// Requests among brokers. They come over the inter-broker listener, from a peer
// that has proved to be a broker of this cluster: it knows the cluster's secret,
// which is in etcd. The proof is mutual, is of this connection alone, and names
// both ends; the secret is not sent.
//
//	SaslHandshake     mechanism VARVE-BROKER
//	SaslAuthenticate  version, id of the caller, id of the one it means, a nonce of its own
//	      answer      a nonce, HMAC-SHA256(secret, "answers", both ids, both nonces)
//	SaslAuthenticate  HMAC-SHA256(secret, "calls", both ids, both nonces)
//
// Bytes on the connection are not protected by it: brokers that talk over a
// network that others can write to need TLS below.

const (
	peerMechanism = "VARVE-BROKER"
	peerVersion   = 1
	nonceBytes    = 16
	helloBytes    = 1 + 4 + 4 + nonceBytes
)

var (
	keySASLHandshake    = kmsg.SASLHandshake.Int16()
	keySASLAuthenticate = kmsg.SASLAuthenticate.Int16()
	keyEnvelope         = kmsg.Envelope.Int16()
)

// registerPeerAPIs is what is served on the inter-broker listener alone, and not
// advertised.
func (b *Broker) registerPeerAPIs() {
	b.among.handle(keySASLHandshake, b.peerHandshake)
	b.among.handle(keySASLAuthenticate, b.peerAuthenticate)
	b.among.handle(keyEnvelope, b.envelope)
}

// peerProof is where a connection is on its way to be a broker's.
type peerProof struct {
	began bool
	id    int32
	proof []byte // that is expected; nil before the first message
}

func (b *Broker) peerHandshake(_ context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.SASLHandshakeRequest)
	resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
	resp.SupportedMechanisms = []string{peerMechanism}
	if req.Mechanism != peerMechanism || len(b.opts.ClusterSecret) == 0 {
		resp.ErrorCode = protocol.CodeUnsupportedSASLMechanism
		return resp
	}
	r.c.proof = peerProof{began: true}
	return resp
}

func (b *Broker) peerAuthenticate(_ context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.SASLAuthenticateRequest)
	resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
	p := &r.c.proof
	refuse := func(code int16, why string) kmsg.Response {
		*p = peerProof{}
		b.ev.PeerRefused()
		if b.refusedLog.Allow() {
			b.log.Warn("a connection to the inter-broker listener is not another broker's", "remote", r.c.nc.RemoteAddr().String(), "why", why)
		}
		resp.ErrorCode, resp.ErrorMessage = code, kmsg.StringPtr("Authentication failed.")
		r.p.closeIt = true
		return resp
	}
	switch m := req.SASLAuthBytes; {
	case !p.began:
		return refuse(protocol.CodeIllegalSASLState, "SaslAuthenticate without SaslHandshake")
	case p.proof == nil:
		if len(m) != helloBytes || m[0] != peerVersion {
			return refuse(protocol.CodeSASLAuthenticationFailed, "it speaks another version of the handshake")
		}
		from, to := int32(binary.BigEndian.Uint32(m[1:])), int32(binary.BigEndian.Uint32(m[5:]))
		if to != b.opts.BrokerID {
			return refuse(protocol.CodeSASLAuthenticationFailed, fmt.Sprintf("it means broker %d: an advertised address leads here that should not", to))
		}
		own := make([]byte, nonceBytes)
		rand.Read(own)
		theirs := m[9:]
		p.id, p.proof = from, peerMAC(b.opts.ClusterSecret, "calls", from, to, theirs, own)
		resp.SASLAuthBytes = append(own, peerMAC(b.opts.ClusterSecret, "answers", from, to, theirs, own)...)
		return resp
	case !hmac.Equal(m, p.proof):
		return refuse(protocol.CodeSASLAuthenticationFailed, "it does not know the cluster's secret")
	}
	r.c.peer = &peer{id: p.id}
	*p = peerProof{}
	return resp
}

// peer is the broker at the other end of a connection.
type peer struct{ id int32 }

func peerMAC(secret []byte, who string, from, to int32, nonces ...[]byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(who))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(from)))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(to)))
	for _, n := range nonces {
		h.Write(n)
	}
	return h.Sum(nil)
}

// envelope carries out a command that another broker passes on to this one, the
// controller.
func (b *Broker) envelope(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.EnvelopeRequest)
	resp := req.ResponseKind().(*kmsg.EnvelopeResponse)
	if r.c.peer == nil {
		resp.ErrorCode = protocol.CodeClusterAuthorizationFailed
		return resp
	}
	if out, ok := b.probed(ctx, req.RequestData); ok {
		resp.ResponseData = out
		return resp
	}
	out, err := b.meta.Execute(ctx, req.RequestData)
	if err != nil {
		b.log.Error("a command of another broker cannot be carried out", "broker", r.c.peer.id, "err", err)
		resp.ErrorCode = protocol.CodeUnsupportedVersion
		return resp
	}
	resp.ResponseData = out
	return resp
}

// link is a connection to another broker, for one request at a time.
type link struct {
	to   int32
	nc   net.Conn
	in   *bufio.Reader // of nc: a small answer comes with one read
	form *kmsg.RequestFormatter
	next int32 // correlation id
	out  []byte
	size [4]byte
}

const (
	dialTimeout = 2 * time.Second
	// peerTimeout is how long an answer of another broker may take, beyond the
	// time that the request itself allows for.
	peerTimeout = 10 * time.Second
	// peerReadBuffer holds the answer of a round in which little came. What is longer is read past it, into its own memory.
	peerReadBuffer = 32 << 10
	// maxPeerResponse bounds an answer: a fetch of replica.fetch.response.max.bytes
	// exceeds it by one batch at most, the largest of which is below 2 GiB.
	maxPeerResponse = 1<<31 - 1
)

// dial connects to another broker and has both ends prove who they are.
func (b *Broker) dial(ctx context.Context, to *image.Broker) (*link, error) {
	l, _ := b.conf().InterBroker()
	ep, ok := to.Endpoint(l.Name)
	if !ok {
		return nil, fmt.Errorf("broker %d advertises no listener %s, which inter.broker.listener.name says is among brokers", to.ID, l.Name)
	}
	addr := net.JoinHostPort(ep.Host, strconv.Itoa(int(ep.Port)))
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := b.opts.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to broker %d at %s: %w", to.ID, addr, err)
	}
	k := &link{to: to.ID, nc: nc, in: bufio.NewReaderSize(nc, peerReadBuffer), form: kmsg.NewRequestFormatter(kmsg.FormatterClientID(fmt.Sprintf("varve-broker-%d", b.opts.BrokerID)))}
	if err := k.prove(ctx, b.opts.ClusterSecret, b.opts.BrokerID); err != nil {
		nc.Close()
		return nil, fmt.Errorf("broker %d at %s: %w", to.ID, addr, err)
	}
	return k, nil
}

func (k *link) close() { k.nc.Close() }

// prove is the caller's part of the handshake.
func (k *link) prove(ctx context.Context, secret []byte, self int32) error {
	hs := kmsg.NewPtrSASLHandshakeRequest()
	hs.Version, hs.Mechanism = 1, peerMechanism
	hsResp := hs.ResponseKind().(*kmsg.SASLHandshakeResponse)
	if err := k.ask(ctx, hs, hsResp, dialTimeout); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if hsResp.ErrorCode != 0 {
		return fmt.Errorf("the listener is not for brokers of this version (error %d)", hsResp.ErrorCode)
	}
	own := make([]byte, nonceBytes)
	rand.Read(own)
	hello := binary.BigEndian.AppendUint32([]byte{peerVersion}, uint32(self))
	hello = append(binary.BigEndian.AppendUint32(hello, uint32(k.to)), own...)
	answer, err := k.authenticate(ctx, hello)
	if err != nil {
		return err
	}
	if len(answer) != nonceBytes+sha256.Size || !hmac.Equal(answer[nonceBytes:], peerMAC(secret, "answers", self, k.to, own, answer[:nonceBytes])) {
		return errors.New("it does not know this cluster's secret: another cluster's broker has this address")
	}
	_, err = k.authenticate(ctx, peerMAC(secret, "calls", self, k.to, own, answer[:nonceBytes]))
	return err
}

func (k *link) authenticate(ctx context.Context, m []byte) ([]byte, error) {
	req := kmsg.NewPtrSASLAuthenticateRequest()
	req.Version, req.SASLAuthBytes = 2, m
	resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
	if err := k.ask(ctx, req, resp, dialTimeout); err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	if resp.ErrorCode != 0 {
		return nil, fmt.Errorf("authentication refused (error %d): its log says why", resp.ErrorCode)
	}
	return resp.SASLAuthBytes, nil
}

// ask sends a request and decodes the answer into resp, which keeps the bytes of
// the answer. An error leaves the connection of no use.
func (k *link) ask(ctx context.Context, req kmsg.Request, resp kmsg.Response, timeout time.Duration) error {
	_, body, err := k.exchange(ctx, req, timeout, func(n int) (*slab.Buf, []byte) { return nil, make([]byte, n) })
	if err != nil {
		return err
	}
	resp.SetVersion(req.GetVersion())
	if err := resp.ReadFrom(body); err != nil {
		return fmt.Errorf("answer of %d bytes to %s: %w", len(body), kmsg.NameForKey(req.Key()), err)
	}
	return nil
}

// exchange sends a request and reads the answer into memory that alloc gives; it
// returns the answer without its header.
func (k *link) exchange(ctx context.Context, req kmsg.Request, timeout time.Duration, alloc func(n int) (*slab.Buf, []byte)) (*slab.Buf, []byte, error) {
	stop := context.AfterFunc(ctx, func() { k.nc.SetDeadline(time.Now()) })
	defer stop()
	k.nc.SetDeadline(time.Now().Add(timeout))
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	k.next++
	k.out = k.form.AppendRequest(k.out[:0], req, k.next)
	if _, err := k.nc.Write(k.out); err != nil {
		return nil, nil, err
	}
	if cap(k.out) > keepPeerBuffer {
		k.out = nil
	}
	if _, err := io.ReadFull(k.in, k.size[:]); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint32(k.size[:])
	if n < 5 || n > maxPeerResponse {
		return nil, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	buf, body := alloc(int(n))
	fail := func(err error) (*slab.Buf, []byte, error) {
		if buf != nil {
			buf.Release()
		}
		return nil, nil, err
	}
	if _, err := io.ReadFull(k.in, body); err != nil {
		return fail(err)
	}
	if id := int32(binary.BigEndian.Uint32(body)); id != k.next {
		return fail(fmt.Errorf("an answer to request %d, when %d was asked", id, k.next))
	}
	body = body[4:]
	if req.IsFlexible() {
		if body[0] != 0 {
			return fail(errors.New("tagged fields in the header of the answer"))
		}
		body = body[1:]
	}
	return buf, body, nil
}

const keepPeerBuffer = 64 << 10

// peers are connections to other brokers for requests that are not fetches: each
// is used by one request at a time, and kept for the next.
type peers struct {
	b  *Broker
	mu sync.Mutex
	// idle are the connections that nobody uses, by broker and its incarnation.
	idle  map[peerKey][]*link
	slots map[int32]chan struct{} // a token for each request under way to a broker
	lives map[peerKey]*life
	over  bool
}

// life is a process as the metadata shows it: its context ends when it is fenced, or another has its place. What is asked of
// it by then is not waited for: a machine that went silent does not say that it will not answer, and who waits out
// a timeout of his own, half a minute, does so while another broker could answer.
type life struct {
	ctx context.Context
	end context.CancelFunc
}

var errFenced = errors.New("the broker is fenced, or has another process by now")

// bind gives a context for what is asked of a broker that was found in the metadata: it ends with the broker's life, with
// cause errFenced. stop gives it back.
func (p *peers) bind(ctx context.Context, to *image.Broker) (bound context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	key := peerKey{to.ID, to.Incarnation}
	p.mu.Lock()
	l := p.lives[key]
	if l == nil {
		l = &life{}
		l.ctx, l.end = context.WithCancel(context.Background())
		p.lives[key] = l
	}
	p.mu.Unlock()
	// Metadata that came before the look here is seen now; what comes after finds the life.
	if !to.Fenced && !lives(p.b.meta.Image(), key) {
		cancel(errFenced)
	}
	unhook := context.AfterFunc(l.ctx, func() { cancel(errFenced) })
	return ctx, func() { unhook(); cancel(nil) }
}

// lives says whether a process may be expected to answer.
func lives(im *image.Image, key peerKey) bool {
	br := im.Broker(key.id)
	return br != nil && !br.Fenced && br.Incarnation == key.incarnation
}

// follow ends the lives that are over.
func (p *peers) follow(prev, next *image.Image) {
	p.mu.Lock()
	var over []*life
	for key, l := range p.lives {
		br := next.Broker(key.id)
		gone := br == nil || br.Incarnation != key.incarnation
		// One that does not answer the controller either may still lead what nobody else can: it is asked again then.
		silent := !gone && br.Unresponsive && prev != nil && prev.Broker(key.id) != nil && !prev.Broker(key.id).Unresponsive
		if gone || silent || !lives(next, key) && (prev == nil || lives(prev, key)) {
			over = append(over, l)
			delete(p.lives, key)
		}
	}
	p.mu.Unlock()
	for _, l := range over {
		l.end()
	}
}

type peerKey struct {
	id          int32
	incarnation [16]byte
}

const (
	maxIdleLinks = 8
	// maxLinks bounds the requests, and with them the connections, that go to one
	// broker at a time: a transaction may have thousands of partitions there.
	maxLinks = 32
)

// ask sends a request to another broker. With again, a connection that was idle
// and turns out to be broken is replaced once: for requests that may be carried
// out twice.
//
// It is given up when the metadata does not show that process of the broker any more: then, as after every error
// once it was sent, it may have been carried out, or be so later.
func (p *peers) ask(ctx context.Context, to *image.Broker, req kmsg.Request, resp kmsg.Response, timeout time.Duration, again bool) error {
	ctx, stop := p.bind(ctx, to)
	defer stop()
	slot := p.slot(to.ID)
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
	case <-ctx.Done():
		return fmt.Errorf("%s to broker %d: %w", kmsg.NameForKey(req.Key()), to.ID, context.Cause(ctx))
	}
	key := peerKey{to.ID, to.Incarnation}
	for {
		k, kept := p.take(key)
		if k == nil {
			var err error
			if k, err = p.b.dial(ctx, to); err != nil {
				return err
			}
		}
		err := k.ask(ctx, req, resp, timeout)
		if err == nil {
			p.give(key, k)
			return nil
		}
		k.close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
			again = false
		}
		if !kept || !again {
			return fmt.Errorf("%s to broker %d: %w", kmsg.NameForKey(req.Key()), to.ID, err)
		}
	}
}

func (p *peers) slot(id int32) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slots[id] == nil {
		p.slots[id] = make(chan struct{}, maxLinks)
	}
	return p.slots[id]
}

func (p *peers) take(key peerKey) (k *link, kept bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[key]
	if len(list) == 0 {
		return nil, false
	}
	k = list[len(list)-1]
	p.idle[key] = list[:len(list)-1]
	return k, true
}

func (p *peers) give(key peerKey, k *link) {
	p.mu.Lock()
	if !p.over && len(p.idle[key]) < maxIdleLinks {
		p.idle[key] = append(p.idle[key], k)
		k = nil
	}
	// Of an incarnation that is gone, nothing is kept.
	var old []*link
	for other, list := range p.idle {
		if other.id == key.id && other != key {
			old = append(old, list...)
			delete(p.idle, other)
		}
	}
	p.mu.Unlock()
	if k != nil {
		k.close()
	}
	for _, k := range old {
		k.close()
	}
}

func (p *peers) close() {
	p.mu.Lock()
	p.over = true
	var all []*link
	for _, list := range p.idle {
		all = append(all, list...)
	}
	clear(p.idle)
	p.mu.Unlock()
	for _, k := range all {
		k.close()
	}
}

// ForwardToController passes a command on to the broker that is the controller
// (metadata.Forward).
func (b *Broker) ForwardToController(ctx context.Context, to *image.Broker, command []byte) ([]byte, error) {
	req := kmsg.NewPtrEnvelopeRequest()
	req.RequestData = command
	req.ClientHostAddress = []byte{}
	resp := req.ResponseKind().(*kmsg.EnvelopeResponse)
	// The sender closes what is left open itself: it marks what it sends again.
	if err := b.peers.ask(ctx, to, req, resp, time.Minute, false); err != nil {
		return nil, err
	}
	if resp.ErrorCode != 0 {
		return nil, fmt.Errorf("broker %d did not carry out the command (error %d): its log says why", to.ID, resp.ErrorCode)
	}
	return resp.ResponseData, nil
}
