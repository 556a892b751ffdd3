package broker

import (
	"encoding/binary"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
)

// outbox has the markers that go to other brokers. A transaction's markers for one
// broker are one request, and so are those of all transactions that wait while
// enough requests are under way: a request is answered when the slowest of its
// markers is committed, so that one alone would hold up those after it.
type outbox struct {
	mu    sync.Mutex
	lanes map[int32]*lane
}

// lane is what goes to one broker.
type lane struct {
	to      *image.Broker // as it was known last
	waiting []sentMarker
	sending int
}

// sentMarker is a marker on its way; done is told when it is committed, or why
// that is not known.
type sentMarker struct {
	txnMarker
	topic string
	index int32
	term  int32 // leader epoch of the partition
	done  func(code int16)
}

const (
	// maxMarkerRequests bounds the requests under way to one broker: half of the
	// connections to it, so that others find one.
	maxMarkerRequests = maxLinks / 2
	// maxMarkersSent bounds the markers of one request.
	maxMarkersSent = 10_000
)

func (o *outbox) add(to *image.Broker, m sentMarker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.lanes[to.ID]
	if l == nil {
		if o.lanes == nil {
			o.lanes = map[int32]*lane{}
		}
		l = &lane{}
		o.lanes[to.ID] = l
	}
	l.to, l.waiting = to, append(l.waiting, m)
}

// send has what waits on its way, as far as requests may be under way; the rest
// goes as soon as one of these has been answered.
func (o *outbox) send(b *Broker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.lanes {
		for len(l.waiting) > 0 && l.sending < maxMarkerRequests {
			l.sending++
			go o.drain(b, l, l.to, l.take())
		}
	}
}

// take returns the markers of the next request. Called with the outbox's mu held.
func (l *lane) take() []sentMarker {
	n := min(len(l.waiting), maxMarkersSent)
	batch := l.waiting[:n:n]
	if l.waiting = l.waiting[n:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	return batch
}

// drain sends one request after the other, until nothing waits.
func (o *outbox) drain(b *Broker, l *lane, to *image.Broker, batch []sentMarker) {
	for len(batch) > 0 {
		b.sendMarkers(to, batch)
		o.mu.Lock()
		to, batch = l.to, l.take()
		if len(batch) == 0 {
			l.sending--
		}
		o.mu.Unlock()
	}
}

// sendMarkers has another broker append markers, in one request.
func (b *Broker) sendMarkers(to *image.Broker, batch []sentMarker) {
	req := kmsg.NewPtrWriteTxnMarkersRequest()
	req.Version = 2
	type spot struct {
		marker, topic int
		partition     int32
	}
	done := make(map[spot][]func(int16), len(batch))
	entries := map[txnMarker]int{}
	topics := map[txnMarker]map[string]int{}
	terms := map[[2]int][]byte{} // by marker and topic
	for _, m := range batch {
		i, ok := entries[m.txnMarker]
		if !ok {
			i = len(req.Markers)
			entries[m.txnMarker], topics[m.txnMarker] = i, map[string]int{}
			e := kmsg.NewWriteTxnMarkersRequestMarker()
			e.ProducerID, e.ProducerEpoch, e.CoordinatorEpoch = m.producerID, m.producerEpoch, m.coordinatorEpoch
			e.Committed, e.TransactionVersion = m.commit, m.transactionVersion
			req.Markers = append(req.Markers, e)
		}
		e := &req.Markers[i]
		j, ok := topics[m.txnMarker][m.topic]
		if !ok {
			j = len(e.Topics)
			topics[m.txnMarker][m.topic] = j
			t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
			t.Topic = m.topic
			e.Topics = append(e.Topics, t)
		}
		at := spot{i, j, m.index}
		if done[at] == nil {
			e.Topics[j].Partitions = append(e.Topics[j].Partitions, m.index)
			terms[[2]int{i, j}] = binary.BigEndian.AppendUint32(terms[[2]int{i, j}], uint32(m.term))
		}
		done[at] = append(done[at], m.done)
	}
	for at, list := range terms {
		req.Markers[at[0]].Topics[at[1]].UnknownTags.Set(termsTag, list)
	}
	tell := func(at spot, code int16) {
		for _, f := range done[at] {
			f(code)
		}
		delete(done, at)
	}
	resp := req.ResponseKind().(*kmsg.WriteTxnMarkersResponse)
	rest := protocol.CodeUnknownServerError // of what is not in the answer
	// A marker may be written twice.
	if err := b.peers.ask(b.ctx, to, req, resp, markersTimeout+peerTimeout, true); err != nil {
		if b.failures.markers.Allow() {
			b.log.Warn("markers did not reach the leader of their partitions, and are sent again", "broker", to.ID, "markers", len(batch),
				"topic", batch[0].topic, "partition", batch[0].index, "err", err)
		}
		rest = protocol.CodeNotLeaderOrFollower
	} else {
		for i := range resp.Markers {
			for j := range resp.Markers[i].Topics {
				for _, p := range resp.Markers[i].Topics[j].Partitions {
					tell(spot{i, j, p.Partition}, p.ErrorCode)
				}
			}
		}
	}
	for at := range done {
		tell(at, rest)
	}
}
