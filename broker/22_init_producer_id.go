package broker

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/singleflight"

	"github.com/varve/varve/broker/protocol"
)

// InitProducerId (key 22), versions 0 to 5.
//
// Behavior: an idempotent producer gets an id that no other producer of the
// cluster ever had, with epoch 0. Ids come from blocks that the metadata store
// hands out once each; what is left of a block when the process ends is never
// used. A producer with a transactional id gets the id and the epoch that its
// coordinator decides on (package txn), and whoever had that id is fenced.

func (b *Broker) initProducerID(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.InitProducerIDRequest)
	resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if (req.ProducerID == -1) != (req.ProducerEpoch == -1) {
		// As in Kafka: the one says nothing without the other.
		resp.ErrorCode = protocol.CodeInvalidRequest
		return resp
	}
	if req.TransactionalID != nil {
		if *req.TransactionalID == "" {
			resp.ErrorCode = protocol.CodeInvalidRequest
			return resp
		}
		return b.txns.InitProducerID(ctx, req)
	}
	id, err := b.pids.next(ctx, b.meta)
	if err != nil {
		b.log.Warn("no producer id to give out", "err", err)
		resp.ErrorCode = protocol.CodeCoordinatorLoadInProgress // retriable: clients ask again
		return resp
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	return resp
}

// producerIDs hands out the ids of one block after the other.
type producerIDs struct {
	asking singleflight.Group // one block is asked for at a time

	mu      sync.Mutex
	at, end int64
}

func (p *producerIDs) take() (int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at >= p.end {
		return 0, false
	}
	p.at++
	return p.at - 1, true
}

func (p *producerIDs) next(ctx context.Context, meta Metadata) (int64, error) {
	for {
		if id, ok := p.take(); ok {
			return id, nil
		}
		_, err, _ := p.asking.Do("block", func() (any, error) {
			p.mu.Lock()
			left := p.end - p.at
			p.mu.Unlock()
			if left > 0 {
				return nil, nil // another request has just brought one
			}
			first, count, err := meta.AllocateProducerIDs(ctx)
			if err != nil {
				return nil, err
			}
			p.mu.Lock()
			p.at, p.end = first, first+int64(count)
			p.mu.Unlock()
			return nil, nil
		})
		if err != nil {
			return 0, err
		}
	}
}
