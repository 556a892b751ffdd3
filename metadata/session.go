package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

// Register joins the cluster and returns when the controller, which may be this
// node, has admitted this incarnation: the epoch of every partition that an
// earlier incarnation led is raised, and the subscribers have seen it.
func (n *Node) Register(ctx context.Context) error {
	n.Start()
	if err := n.register(ctx); err != nil {
		return err
	}
	n.mu.Lock()
	first := !n.registered
	n.registered = true
	n.mu.Unlock()
	if first {
		n.wg.Add(2)
		go n.session()
		go n.lead()
		if n.o.CompactionInterval > 0 {
			n.wg.Add(1)
			go n.compact()
		}
		if n.o.Marks != nil {
			n.wg.Add(1)
			go n.mark()
		}
	}
	err := n.await(ctx, func(im *image.Image) bool {
		b := im.Broker(n.o.BrokerID)
		return b != nil && !b.Fenced && b.Incarnation == n.incarnation && b.Epoch == n.BrokerEpoch()
	})
	if err != nil {
		return fmt.Errorf("metadata: broker %d was not admitted: %w", n.o.BrokerID, err)
	}
	return n.awaitDelivered(ctx, n.Image().Revision)
}

// register takes a lease and writes the session, trying until ctx ends.
func (n *Node) register(ctx context.Context) error {
	var duplicateSince time.Time
	failed := 0
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		lease, ttl, err := n.store.Grant(ctx, n.o.SessionTimeout)
		if err == nil {
			if ttl > n.o.SessionTimeout+time.Second {
				n.log.Warn("etcd grants longer leases than asked: a dead broker is noticed later", "asked", n.o.SessionTimeout, "granted", ttl)
			}
			if err = n.registerWith(ctx, lease); err == nil {
				n.poke()
				return nil
			}
			n.store.Revoke(ctx, lease) // else it runs out by itself
		}
		if errors.Is(err, etcd.ErrRevisionRegressed) || errors.Is(err, etcd.ErrFormat) {
			return fmt.Errorf("register broker %d: %w", n.o.BrokerID, err)
		}
		if errors.Is(err, etcd.ErrDuplicateBroker) {
			if duplicateSince.IsZero() {
				duplicateSince = time.Now()
				n.log.Warn("another process is registered under this broker id: waiting for its session to end", "broker", n.o.BrokerID)
			}
			// A session that outlives its lease is being kept alive.
			if time.Since(duplicateSince) > 2*n.o.SessionTimeout+2*time.Second {
				return err
			}
			delay = min(delay, n.o.HeartbeatInterval)
		} else if failed++; told(failed) {
			n.log.Warn("registration failed, trying again", "broker", n.o.BrokerID, "in_a_row", failed, "error", err)
		}
		if !sleep(ctx, delay) {
			return fmt.Errorf("register broker %d: %w", n.o.BrokerID, err)
		}
	}
}

// registerWith writes the session once.
func (n *Node) registerWith(ctx context.Context, lease int64) error {
	held, old, err := n.compare(ctx)
	if err != nil {
		return err
	}
	revision, err := n.store.Register(ctx, image.Session{
		ID: n.o.BrokerID, Incarnation: n.incarnation, Rack: n.o.Rack, Endpoints: n.o.Endpoints, InterBroker: n.o.InterBroker,
		WAL: n.o.WAL, Lease: lease, AcceptLoss: n.o.AcceptLoss,
		Place: n.o.Place, Stale: old, Cut: n.o.Marks != nil && n.o.Marks.CutTail(),
	}, held)
	if err != nil {
		return err
	}
	if old {
		n.log.Warn("the log directory is an old one: another, of which it is a copy, or that it was restored from, has come further; "+
			"this broker is in no ISR of what others have a replica of until it has copied what they have", "broker", n.o.BrokerID)
	}
	n.mu.Lock()
	n.lease, n.brokerEpoch, n.lastBeat = lease, revision, time.Now()
	n.marking = marking{}
	if held != nil {
		n.marking.held = *held // nobody else changes it: only who has the session can
	}
	n.mu.Unlock()
	return nil
}

// session keeps the lease alive and registers again, as the same incarnation
// with a new broker epoch, when it was lost.
func (n *Node) session() {
	defer n.wg.Done()
	missed := 0 // heartbeats in a row
	for sleep(n.ctx, n.o.HeartbeatInterval) {
		n.mu.Lock()
		lease := n.lease
		n.mu.Unlock()
		ctx, cancel := context.WithTimeout(n.ctx, max(n.o.HeartbeatInterval, n.o.SessionTimeout/2))
		err := n.store.KeepAlive(ctx, lease)
		cancel()
		if n.ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			n.mu.Lock()
			n.lastBeat = time.Now()
			n.mu.Unlock()
			if missed > 0 {
				n.log.Info("heartbeats are answered again", "missed", missed)
			}
			missed = 0
		case errors.Is(err, etcd.ErrLeaseGone):
			n.log.Warn("the session ran out: registering again", "broker", n.o.BrokerID)
			n.mu.Lock()
			n.lease, n.lastOutage = 0, time.Now()
			n.mu.Unlock()
			if f := n.o.Events.SessionLost; f != nil {
				f()
			}
			for n.ctx.Err() == nil {
				if err := n.register(n.ctx); err == nil {
					break
				} else if n.ctx.Err() == nil {
					n.log.Error("registering again failed", "error", err)
					sleep(n.ctx, n.o.SessionTimeout)
				}
			}
			n.noteOutage()
			missed = 0
		default:
			// Often enough to see that it lasts, not at every heartbeat.
			if missed%32 == 0 {
				n.log.Warn("heartbeat not answered", "in_a_row", missed+1, "error", err)
			}
			missed++
			n.mu.Lock()
			late := time.Since(n.lastBeat) > n.o.SessionTimeout/2
			n.mu.Unlock()
			if late {
				n.noteOutage()
			}
		}
	}
}

// noteOutage remembers that the store was away just now. For one session
// timeout after it is back, nobody is fenced: the sessions of brokers that
// could not reach it ran out as well, and they are about to return.
func (n *Node) noteOutage() {
	n.mu.Lock()
	n.lastOutage = time.Now()
	n.mu.Unlock()
}

// holdUntil is the time before which no broker is fenced. A process that has
// just started does not know what was before it.
func (n *Node) holdUntil() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	last := n.started
	if n.lastOutage.After(last) {
		last = n.lastOutage
	}
	return last.Add(n.o.SessionTimeout)
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// EndSession ends the session of another broker, whose process is known to have
// ended, so that nobody waits for its lease to run out. If that was wrong, the
// broker registers again, and has lost its leaderships.
func (n *Node) EndSession(ctx context.Context, id int32, incarnation [16]byte) error {
	s := n.Image().Session(id)
	if s == nil || s.Incarnation != incarnation || id == n.o.BrokerID {
		return nil
	}
	if err := n.store.Revoke(ctx, s.Lease); err != nil && !errors.Is(err, etcd.ErrLeaseGone) {
		return fmt.Errorf("metadata: end the session of broker %d: %w", id, err)
	}
	return nil
}
