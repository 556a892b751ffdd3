package brokertest

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// greedy asks for more than it takes: it announces requests and does not send them, sends others and does not read what is
// answered, and sends what is no request. Others have to get on beside it, and nothing of it may stay counted (I12).
func (w *workload) greedy(i int) {
	k := w.client(fmt.Sprintf("greedy %d", i))
	for !w.feeds.Load() {
		time.Sleep(time.Duration(k.rnd.IntN(400)) * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		nc, err := w.c.net.Dial(ctx, k.host, fmt.Sprintf("10.0.0.%d:%d", k.anyBroker(), brokerPort))
		cancel()
		if err != nil {
			continue
		}
		nc.SetDeadline(time.Now().Add(time.Second))
		var b []byte
		switch k.rnd.IntN(4) {
		case 0: // a part of a large request
			p := w.all(topicIn)[0]
			b = k.form.AppendRequest(nil, produceRequest(9, p, nil, 1, make([]byte, 1<<10+k.rnd.IntN(200<<10))), 1)
			b = b[:4+k.rnd.IntN(len(b)-4)]
		case 1: // many answers
			for n := range int32(1 + k.rnd.IntN(40)) {
				req := kmsg.NewPtrFetchRequest()
				req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 12, 500, 1, 8<<20, -1
				for _, p := range w.all(topicIn, topicOut, topicTxn) {
					t, rp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
					t.Topic, rp.Partition, rp.CurrentLeaderEpoch, rp.FetchOffset, rp.PartitionMaxBytes = p.Topic, p.Index, -1, k.rnd.Int64N(200), 1<<20
					t.Partitions = append(t.Partitions, rp)
					req.Topics = append(req.Topics, t)
				}
				b = k.form.AppendRequest(b, req, n)
			}
		case 2: // a whole request, of bytes that mean nothing
			b = k.form.AppendRequest(nil, produceRequest(9, w.all(topicIn)[0], nil, 1, make([]byte, k.rnd.IntN(100<<10))), 1)
		default: // no request at all
			b = binary.BigEndian.AppendUint32(nil, uint32(k.rnd.IntN(200<<10)))
			for range k.rnd.IntN(1000) {
				b = append(b, byte(k.rnd.Uint32()))
			}
		}
		nc.Write(b)
		time.Sleep(time.Duration(k.rnd.IntN(1000)) * time.Millisecond)
		nc.Close()
	}
}

// uncharged says whether no broker counts more as held by requests and answers than brokers among themselves hold.
func (c *Cluster) uncharged() error {
	const most = 256 << 10
	for _, n := range c.nodes {
		p := n.running()
		if p == nil {
			continue
		}
		<-p.up
		if p.srv == nil {
			return fmt.Errorf("broker %d is not up", n.id)
		}
		if err := p.srv.Charged(most); err != nil {
			return fmt.Errorf("broker %d: %w", n.id, err)
		}
	}
	return nil
}
