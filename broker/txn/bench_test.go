package txn

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// BenchmarkTransaction is a whole transaction of one producer: partitions added, commit, markers.
func BenchmarkTransaction(b *testing.B) {
	for _, partitions := range []int{1, 100} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) {
			s, now, id := NewShard(Config{}), time.UnixMilli(1<<40), "x"
			do := func(c Command) Result {
				r := s.Handle(now, c)
				if r.NeedProducerID {
					r = s.Handle(now, &Supplied{Command: c, ProducerID: now.UnixMilli()})
				}
				for _, rec := range r.Records {
					if err := s.Apply(rec); err != nil {
						b.Fatal(err)
					}
				}
				s.Settle(now, r)
				return r
			}
			req := kmsg.NewPtrInitProducerIDRequest()
			req.TransactionalID, req.TransactionTimeoutMillis = &id, 60_000
			do(&Init{Token: 1, Req: req})
			add := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
			add.Topic = "t"
			for p := range partitions {
				add.Partitions = append(add.Partitions, int32(p))
			}
			b.ReportAllocs()
			for b.Loop() {
				m := s.entries[id].m
				txn := kmsg.NewAddPartitionsToTxnRequestTransaction()
				txn.TransactionalID, txn.ProducerID, txn.ProducerEpoch = id, m.producerID, m.epoch
				txn.Topics = append(txn.Topics, add)
				do(&AddPartitions{Token: 1, Version: 5, Txn: txn})
				end := kmsg.NewPtrEndTxnRequest()
				end.Version, end.TransactionalID, end.ProducerID, end.ProducerEpoch, end.Commit = 5, id, m.producerID, m.epoch, true
				r := do(&End{Token: 1, Req: end})
				if r.Markers == nil {
					b.Fatalf("no markers: %s", response(r.Replies[0].Response))
				}
				do(&MarkersWritten{ID: id, Order: r.Markers.Order, Topics: r.Markers.Topics})
				now = now.Add(time.Millisecond)
			}
			if m := s.entries[id].m; m.state != CompleteCommit {
				b.Fatal(m.text())
			}
		})
	}
}
