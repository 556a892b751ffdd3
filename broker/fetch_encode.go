package broker

import (
	"encoding/binary"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
)

var fetchEncoders = sync.Pool{New: func() any { return new(protocol.FetchEncoder) }}

// encodeFetch lays out the answer around the records, which stay where they
// are: the parts go to the socket in one vectored write. free gives the
// skeleton back once they are sent.
func encodeFetch(h protocol.RequestHeader, req *kmsg.FetchRequest, session int32, results []fetchResult, copies bool, leaders *newLeaders) (parts net.Buffers, free func()) {
	e := fetchEncoders.Get().(*protocol.FetchEncoder)
	topics := 0
	for i := range results {
		if i == 0 || !sameTopic(&results[i-1], &results[i]) {
			topics++
		}
	}
	e.Begin(h, 0, 0, session, topics)
	for i := 0; i < len(results); {
		n := 1
		for i+n < len(results) && sameTopic(&results[i], &results[i+n]) {
			n++
		}
		k := results[i].w.p.key
		e.Topic(k.topic, k.id, n)
		for _, res := range results[i : i+n] {
			p := protocol.FetchPartition{
				Index: res.w.p.key.index, ErrorCode: res.code,
				HighWatermark: res.view.HighWatermark, LastStableOffset: res.view.LastStableOffset, LogStartOffset: res.view.LogStart,
				PreferredReadReplica: res.preferredReplica, CurrentLeader: leaders.of(res.code, k.topic, k.id, res.w.p.key.index),
			}
			if req.IsolationLevel == 1 && res.code == 0 {
				p.AbortedTransactions = make([]protocol.AbortedTransaction, 0, len(res.aborted))
				for _, a := range res.aborted {
					p.AbortedTransactions = append(p.AbortedTransactions, protocol.AbortedTransaction{ProducerID: a.ProducerID, FirstOffset: a.FirstOffset})
				}
			}
			if res.divergeEpoch >= 0 {
				p.DivergingEpoch = &protocol.EpochEndOffset{Epoch: res.divergeEpoch, EndOffset: res.divergeEnd}
			}
			if copies && res.code == 0 {
				p.Tags = []protocol.Tag{{Number: remoteEndTag, Value: binary.BigEndian.AppendUint64(nil, uint64(res.view.RemoteEnd))}}
			}
			e.Partition(&p, res.chunks)
		}
		i += n
	}
	return net.Buffers(e.Finish(leaders.endpoints)), func() {
		e.Reset()
		fetchEncoders.Put(e)
	}
}

func sameTopic(a, b *fetchResult) bool {
	return a.w.p.key.topic == b.w.p.key.topic && a.w.p.key.id == b.w.p.key.id
}

// noView is what an answer shows of a partition that is not served here.
var noView = partition.View{HighWatermark: -1, LastStableOffset: -1, LogStart: -1}
