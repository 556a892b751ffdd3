package metadata

import (
	"context"
	"slices"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// BeginShutdown has other brokers lead what this one leads, while it still serves,
// and keeps it from being elected again. It returns when that is done, or when it
// will not be: after the time that Options allow for replicas that lag, or at once
// where there is nobody else or the store is away.
func (n *Node) BeginShutdown(ctx context.Context) {
	begin, handedOver := time.Now(), func(im *image.Image) bool { return controller.Leading(im, n.o.BrokerID) == 0 }
	led := controller.Leading(n.Image(), n.o.BrokerID)
	for range n.o.HandOverTries {
		others := slices.ContainsFunc(n.Image().Brokers(), func(b *image.Broker) bool { return b.ID != n.o.BrokerID && n.Image().Active(b.ID) })
		if !others || n.reachable() != nil {
			return
		}
		try, cancel := context.WithTimeout(ctx, max(n.o.HandOverWait, n.o.SessionTimeout))
		reply := n.do(try, controller.BeginShutdown{Broker: n.o.BrokerID, Incarnation: n.incarnation})
		cancel()
		if reply.ErrorCode != 0 {
			n.log.Warn("the controller does not know that this broker shuts down", "error", reply.Message)
			if !sleep(ctx, n.o.HandOverWait) {
				return
			}
			continue
		}
		wait, cancel := context.WithTimeout(ctx, n.o.HandOverWait)
		err := n.await(wait, handedOver)
		cancel()
		if err == nil {
			n.log.Info("other brokers lead what this one led", "partitions", led, "took", time.Since(begin))
			return
		}
		if ctx.Err() != nil {
			return
		}
	}
	if left := controller.Leading(n.Image(), n.o.BrokerID); left > 0 {
		n.log.Warn("partitions could not be handed over before the shutdown: their other replicas are not in sync", "partitions", left, "took", time.Since(begin))
	}
}
