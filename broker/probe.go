package broker

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// Probes: whether another broker answers (controller.Probes says what for). A probe
// goes the way of every request among brokers, over the inter-broker listener and
// through dispatch, as an Envelope of
//
//	{"kind": "Probe", "about": {"id": 3, "incarnation": "...", "timeoutMs": 500}}
//
// whose answer is
//
//	{"stalledMs": 0, "said": 1}
//
// about is another broker that the one who is asked is to ask; said what came of it,
// as a number of controller.Outcome. Whoever knows of no probes refuses the envelope,
// and has answered.
//
// A connection is used several times, and not for ever: a listener that accepts
// nobody any more does not end those that it has. The other way round, one that
// is at its bound refuses a new connection, and serves the old.

const (
	probePrefix = `{"kind":"Probe"`
	// probeReuse is how often a connection is used for probes.
	probeReuse = 4
)

type probeRequest struct {
	Kind  string      `json:"kind"`
	About *probeAbout `json:"about,omitempty"`
}

type probeAbout struct {
	ID          int32  `json:"id"`
	Incarnation string `json:"incarnation"`
	TimeoutMs   int64  `json:"timeoutMs"`
}

type probeReply struct {
	StalledMs int64              `json:"stalledMs"`
	Said      controller.Outcome `json:"said,omitempty"`
}

// probes are the connections for them, kept apart from those for other requests:
// what is held up among these must not hold up the question whether it is.
type probes struct {
	mu   sync.Mutex
	kept map[peerKey]*probeLink
	over bool
}

type probeLink struct {
	*link
	used int
}

// take returns the connection that is kept to a process, or nil.
func (p *probes) take(key peerKey) *probeLink {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kept[key]
	delete(p.kept, key)
	return k
}

// give keeps a connection for the next probe, and none to other processes of that id.
func (p *probes) give(key peerKey, k *probeLink) {
	p.mu.Lock()
	var old []*probeLink
	for other, l := range p.kept {
		if other.id == key.id {
			old = append(old, l)
			delete(p.kept, other)
		}
	}
	if p.over {
		old = append(old, k)
	} else {
		if p.kept == nil {
			p.kept = map[peerKey]*probeLink{}
		}
		p.kept[key] = k
	}
	p.mu.Unlock()
	for _, l := range old {
		l.close()
	}
}

func (p *probes) close() {
	p.mu.Lock()
	all := p.kept
	p.kept, p.over = nil, true
	p.mu.Unlock()
	for _, k := range all {
		k.close()
	}
}

// Probe asks a broker whether it answers, or, with about, whether that one answers
// it (metadata.Prober).
func (b *Broker) Probe(ctx context.Context, to, about *image.Broker) controller.Probed {
	req := probeRequest{Kind: "Probe"}
	if about != nil {
		end, ok := ctx.Deadline()
		if !ok {
			end = time.Now().Add(peerTimeout)
		}
		// Less than is waited for here.
		req.About = &probeAbout{ID: about.ID, Incarnation: hex.EncodeToString(about.Incarnation[:]), TimeoutMs: time.Until(end).Milliseconds() * 2 / 3}
	}
	return b.probe(ctx, to, req, false)
}

// Stalled is for how long this broker's log has been waiting for its disk.
func (b *Broker) Stalled() time.Duration { return b.log_.Stats().Stalled }

// probe asks over the connection that is kept, or, every so often or with fresh, over
// a new one.
func (b *Broker) probe(ctx context.Context, to *image.Broker, req probeRequest, fresh bool) controller.Probed {
	key := peerKey{to.ID, to.Incarnation}
	kept := b.probes.take(key)
	if kept != nil && !fresh && kept.used < probeReuse {
		if r, err := kept.probe(ctx, req); err == nil {
			b.probes.give(key, kept)
			return r
		}
		kept.close()
		kept = nil
	}
	k, err := b.dial(ctx, to)
	if err == nil {
		made := &probeLink{link: k}
		var r controller.Probed
		if r, err = made.probe(ctx, req); err == nil {
			if kept != nil {
				kept.close()
			}
			b.probes.give(key, made)
			return r
		}
		made.close()
	}
	if kept != nil && ctx.Err() == nil && !isTimeout(err) {
		// It was refused something that the old one has.
		if r, err := kept.probe(ctx, req); err == nil {
			kept.used = 0
			b.probes.give(key, kept)
			return r
		}
	}
	if kept != nil {
		kept.close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return controller.Probed{Outcome: controller.Refused}
	}
	return controller.Probed{Outcome: controller.Unanswered}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

func (k *probeLink) probe(ctx context.Context, what probeRequest) (controller.Probed, error) {
	timeout := peerTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = time.Until(end)
	}
	req := kmsg.NewPtrEnvelopeRequest()
	req.ClientHostAddress = []byte{}
	var err error
	if req.RequestData, err = json.Marshal(what); err != nil {
		return controller.Probed{}, err
	}
	resp := req.ResponseKind().(*kmsg.EnvelopeResponse)
	if err := k.ask(ctx, req, resp, timeout); err != nil {
		return controller.Probed{}, err
	}
	k.used++
	r := controller.Probed{Outcome: controller.Answered}
	var v probeReply
	if resp.ErrorCode == 0 && json.Unmarshal(resp.ResponseData, &v) == nil {
		r.Stalled, r.Said = time.Duration(v.StalledMs)*time.Millisecond, v.Said
	}
	return r, nil
}

// probed answers a probe; ok: it is one.
func (b *Broker) probed(ctx context.Context, data []byte) (answer []byte, ok bool) {
	if !bytes.HasPrefix(data, []byte(probePrefix)) {
		return nil, false
	}
	var req probeRequest
	if err := json.Unmarshal(data, &req); err != nil {
		return nil, false
	}
	v := probeReply{StalledMs: b.Stalled().Milliseconds()}
	if a := req.About; a != nil {
		to := b.meta.Image().Broker(a.ID)
		if to != nil && a.ID != b.opts.BrokerID && hex.EncodeToString(to.Incarnation[:]) == a.Incarnation {
			ask, cancel := context.WithTimeout(ctx, min(time.Duration(a.TimeoutMs)*time.Millisecond, peerTimeout))
			v.Said = b.probe(ask, to, probeRequest{Kind: "Probe"}, true).Outcome
			cancel()
		}
	}
	answer, err := json.Marshal(v)
	return answer, err == nil
}

// suspicions are brokers to which connections broke, on their way to the controller.
type suspicion struct {
	to      *image.Broker
	refused bool // there is no process at its address
}

// suspected notes that a connection to a broker broke.
func (b *Broker) suspected(to *image.Broker, refused bool) {
	select {
	case b.suspicions <- suspicion{to, refused}:
	default: // enough is said
	}
}

// suspectEvery bounds how often the controller is told of the same process.
const suspectEvery = 200 * time.Millisecond

// tellSuspicions tells the controller until ctx ends. Of one that refuses connections
// and cannot be told of, because it is the controller itself, the session is ended: its
// partitions, and the cluster, need not wait for its lease to run out. Where it is
// the network that refuses, the broker that is cut off by this registers again; that is
// why nobody does it twice to the same process.
func (b *Broker) tellSuspicions(ctx context.Context) {
	told := map[int32]time.Time{}
	ended := map[int32][16]byte{}
	for {
		var s suspicion
		select {
		case s = <-b.suspicions:
		case <-ctx.Done():
			return
		}
		id, incarnation := s.to.ID, s.to.Incarnation
		if time.Since(told[id]) < suspectEvery && !s.refused {
			continue
		}
		told[id] = time.Now()
		ask, cancel := context.WithTimeout(ctx, dialTimeout)
		err := b.meta.Suspect(ask, id, incarnation)
		if err != nil && s.refused && ended[id] != incarnation && ctx.Err() == nil {
			ended[id] = incarnation
			b.log.Warn("a broker's address refuses connections: its session is ended", "broker", id)
			if err = b.meta.EndSession(ask, id, incarnation); err != nil {
				b.log.Warn("the session of a broker that is gone was not ended, and runs out", "broker", id, "err", err)
			}
		}
		cancel()
	}
}
