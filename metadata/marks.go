package metadata

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
)

// Marks are what a log directory says of how far it has come, for a directory can
// be copied, and be restored as it was: then it has the identity of the one that
// went on, and not what was acknowledged since.
//
// So the directory is given another mark as it grows: a number, and a random part
// for two that count on from the same one. Etcd has the mark that was given last,
// and the order is
//
//	the directory   {last: what etcd has, next: the new one}, fsynced
//	etcd            the new one, if the session is still this process's and the mark is the
//	                one that was read: the commit point
//
// A crash in between leaves a directory that has etcd's mark, as one of the two. What
// has it as none of the two, while etcd has come further, is stale, and the session
// says so; the controller then takes the broker out of the ISRs (controller.admit).
// Only when it is admitted, and the ISRs are right, is a stale directory given a mark
// of its own, and the one that went on without it would be the stale one from then on.
// The controller is told of it (controller.Marked), and lets the broker into no ISR before:
// the other directory, which still has etcd's mark, would pass for this one.
//
// What a copy lacks of the last markInterval is not noticed. A copy of a directory
// that has not grown since lacks nothing. A directory of before there
// were marks has none, and etcd has none of it.
type Marks interface {
	// Marks returns the two that SetMarks was given last; zero without any.
	Marks() (last, next [16]byte)
	// SetMarks replaces them, durably; CutTail is false from then on.
	SetMarks(last, next [16]byte) error
	// CutTail says that the end of the log was cut off when it was opened, as a
	// block that had been begun.
	CutTail() bool
	// Written grows as the log does.
	Written() int64
}

// markInterval is how often a directory that grows is given a mark.
const markInterval = 5 * time.Second

// number is the part of a mark that grows; none is 0.
func number(mark [16]byte) uint64 { return binary.BigEndian.Uint64(mark[:]) }

func newMark(number uint64) (mark [16]byte) {
	rand.Read(mark[:])
	binary.BigEndian.PutUint64(mark[:], number)
	return mark
}

// stale says that the directory with these two marks has not come as far as the one
// that etcd's mark was given to. Where etcd has an earlier one than both, it is etcd
// that was restored.
func stale(held, last, next [16]byte) bool {
	return held != last && held != next && number(held) >= number(last)
}

// successor returns what the directory is to have next.
func successor(held etcd.HeldMark, last, next [16]byte) (newLast, newNext [16]byte) {
	newest := last
	if number(next) > number(last) {
		newest = next
	}
	switch {
	case held.Revision == 0 && number(last) == 0:
		// It is not known to have been given any: to count on from those that came to nothing would make it look further than a
		// copy of it that is given the first.
		return last, newMark(number(next) + 1)
	case held.Revision == 0, number(held.Mark) < number(last):
		return newest, newMark(number(newest) + 1)
	case stale(held.Mark, last, next):
		// Without etcd's mark it stays stale until etcd has its own.
		return [16]byte{}, newMark(max(number(held.Mark), number(newest)) + 1)
	}
	return held.Mark, newMark(number(held.Mark) + 1)
}

// compare reads the mark that etcd has, to be handed to Register, and says whether
// the log directory is stale.
func (n *Node) compare(ctx context.Context) (held *etcd.HeldMark, old bool, err error) {
	if n.o.Marks == nil {
		return nil, false, nil
	}
	h, err := n.store.Mark(ctx, n.o.BrokerID)
	if err != nil {
		return nil, false, err
	}
	// After etcd's: if it moves meanwhile, Register is refused.
	last, next := n.o.Marks.Marks()
	// One of another disk says nothing of this one, which is known to be another.
	return &h, h.Revision > 0 && h.WAL == n.o.WAL && stale(h.Mark, last, next), nil
}

// marking is what the node knows of its marks.
type marking struct {
	held etcd.HeldMark // what etcd has, as far as it is known
	sent bool          // the directory has a next one of which it is open whether etcd has it
}

// mark gives the directory its marks: the first as soon as the broker is admitted.
func (n *Node) mark() {
	defer n.wg.Done()
	var given time.Time     // the last; zero: none in this process
	var written int64       // the log as it was then
	failed, unheard := 0, 0 // in a row
	var in int64            // the session in which it was given
	for sleep(n.ctx, n.o.HeartbeatInterval) {
		session, b := n.BrokerEpoch(), n.Image().Broker(n.o.BrokerID)
		if b == nil || b.Fenced || b.Incarnation != n.incarnation || b.Epoch != session {
			continue
		}
		grown := n.o.Marks.Written()
		if b.Stale && in == session {
			ctx, cancel := context.WithTimeout(n.ctx, n.o.SessionTimeout)
			reply := n.do(ctx, controller.Marked{Broker: n.o.BrokerID, BrokerEpoch: session})
			cancel()
			if reply.ErrorCode == 0 {
				unheard = 0
			} else if unheard++; told(unheard) && n.ctx.Err() == nil {
				n.log.Warn("the controller has not been told that the old copy of the log directory has got its mark", "in_a_row", unheard, "error", reply.Message)
			}
		}
		due := given.IsZero() || b.Stale && in != session
		if !due && (grown == written || time.Since(given) < n.markInterval) {
			continue
		}
		if err := n.giveMark(session); err != nil {
			if errors.Is(err, etcd.ErrConflict) {
				n.endSession(session)
			}
			if failed++; told(failed) && n.ctx.Err() == nil {
				n.log.Warn("the log directory could not be given a mark", "in_a_row", failed, "error", err)
			}
			continue
		}
		failed, given, written, in = 0, time.Now(), grown, session
	}
}

// endSession ends a session of this process, which then registers again. Where etcd has
// another mark than the session began with, and than was given in it, this process was set
// back with its machine to an earlier time, and its session outlived that: it does not know
// what it has lost, and comparing the marks anew says so. Most often the session is over anyway.
func (n *Node) endSession(session int64) {
	n.mu.Lock()
	lease, same := n.lease, n.brokerEpoch == session
	n.mu.Unlock()
	if same {
		n.store.Revoke(n.ctx, lease) // else it is told the same again
	}
}

// giveMark gives the directory another mark, or sends again what it is open whether
// etcd has it.
func (n *Node) giveMark(session int64) error {
	n.mu.Lock()
	m := n.marking
	n.mu.Unlock()
	last, next := n.o.Marks.Marks()
	if !m.sent {
		held := m.held
		if held.WAL != n.o.WAL {
			held = etcd.HeldMark{} // of another disk
		}
		last, next = successor(held, last, next)
		if err := n.o.Marks.SetMarks(last, next); err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
		n.mu.Lock()
		if n.brokerEpoch == session {
			n.marking.sent = true
		}
		n.mu.Unlock()
	}
	held, err := n.store.PutMark(n.ctx, n.o.BrokerID, session, m.held, n.o.WAL, next)
	if err != nil {
		return err
	}
	n.mu.Lock()
	if n.brokerEpoch == session {
		n.marking = marking{held: held}
	}
	n.mu.Unlock()
	return nil
}
