package coordinator

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// TxnOffsetCommit serves key 28 in the form of OffsetCommit, with topics by name. The records are appended as a batch of
// their own, transactional and without sequence as in Kafka; ticket goes with it to the log, if that is a TicketLog.
func (c *Coordinator) TxnOffsetCommit(ctx context.Context, req *kmsg.OffsetCommitRequest, by group.Txn, ticket any) *kmsg.OffsetCommitResponse {
	if req.Group == "" {
		return group.CommitError(req, protocol.CodeInvalidGroupID)
	}
	r, code := request[*kmsg.OffsetCommitResponse](ctx, c.host, req.Group, c.o.ReplyTimeout, func(token uint64) group.Command {
		return &group.Commit{Token: token, Req: req, Topics: c.topics(), Txn: &by, Ticket: ticket}
	})
	if code != protocol.CodeNone {
		r = group.CommitError(req, code)
	}
	return r
}

// WriteMarker has a marker written to a partition, behind whatever waits to be written there, and does not wait. done is
// told, once, when it is committed and what it decides has been taken over, or with a code.
func (c *Coordinator) WriteMarker(partition int32, m *group.EndTxn, done func(code int16)) {
	c.mu.Lock()
	s := c.shards[partition]
	if c.closed {
		s = nil
	}
	if s != nil {
		c.wg.Add(1)
	}
	c.mu.Unlock()
	if s == nil {
		done(protocol.CodeNotCoordinator)
		return
	}
	o := op[*groupMachine, group.Command]{token: c.tokens.Add(1), call: newCall()}
	own := *m
	own.Token = o.token
	o.cmd = &own
	if code := s.submit(o); code != protocol.CodeNone {
		c.wg.Done()
		done(code)
		return
	}
	// No time limit: the shard answers whatever was handed in, at the latest when it leaves.
	go func() {
		defer c.wg.Done()
		a := <-o.call.answer
		if a.resp != nil {
			a.code = a.resp.(*kmsg.WriteTxnMarkersResponse).Markers[0].Topics[0].Partitions[0].ErrorCode
		}
		done(a.code)
	}()
}
