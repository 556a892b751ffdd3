package broker

import (
	"slices"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
)

// newLeaders tells a client that asks the wrong broker who the right one is, and
// where, in the refusal itself (KIP-951). It is made for one answer.
type newLeaders struct {
	b         *Broker
	c         *conn
	im        *image.Image // taken when the first is looked up
	endpoints []protocol.NodeEndpoint
}

// of returns who leads a partition that was refused with code, or nil where that
// is not the matter or not known.
func (n *newLeaders) of(code int16, topic string, id [16]byte, index int32) *protocol.LeaderEpoch {
	if code != protocol.CodeNotLeaderOrFollower && code != protocol.CodeFencedLeaderEpoch {
		return nil
	}
	if n.im == nil {
		n.im = n.b.meta.Image()
	}
	t := n.im.TopicByID(id)
	if t == nil {
		t = n.im.Topic(topic)
	}
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil
	}
	p := t.Partitions[index]
	br := n.im.Broker(p.Leader)
	if br == nil {
		return nil
	}
	ep, ok := br.Endpoint(n.c.listener.name)
	if !ok {
		return nil
	}
	if !slices.ContainsFunc(n.endpoints, func(e protocol.NodeEndpoint) bool { return e.NodeID == br.ID }) {
		e := protocol.NodeEndpoint{NodeID: br.ID, Host: ep.Host, Port: ep.Port}
		if br.Rack != "" {
			e.Rack = &br.Rack
		}
		n.endpoints = append(n.endpoints, e)
	}
	return &protocol.LeaderEpoch{LeaderID: p.Leader, Epoch: p.LeaderEpoch}
}

// nearest is the follower that a consumer in a rack is to read from instead of
// this leader, or -1: one in its rack that is in sync, asks for more, and has what
// is asked for, the furthest of them (KIP-392). There is none while the leader is in the rack.
func (r *replica) nearest(rack string, offset int64) int32 {
	self := r.b.opts.BrokerID
	if c := r.b.conf(); rack == "" || rack == c.Rack || c.ReadFromLeader {
		return -1
	}
	im := r.b.meta.Image()
	r.mu.Lock()
	var all []partition.Lag
	if r.started && len(r.term.Replicas) > 1 {
		all = r.st.Progress(0)
	}
	r.mu.Unlock()
	best := partition.Lag{Broker: -1, End: -1}
	for _, l := range all {
		br := im.Broker(l.Broker)
		if l.Broker != self && l.InSync && l.End >= offset && l.End > best.End && br != nil && !br.Fenced && br.Rack == rack &&
			r.b.sessions.asked(l.Broker, r.b.staleAfter()) {
			best = l
		}
	}
	return best.Broker
}
