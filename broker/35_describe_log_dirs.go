package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
)

// DescribeLogDirs (key 35), versions 1 to 4.
//
// Behavior: one directory, the write-ahead log's. A partition's size is what it
// takes in the log and in object storage together, because tools show it as
// the size of the topic. Total and usable bytes (v4) are the log's bound and
// what is left of it.

func (b *Broker) describeLogDirs(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeLogDirsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	st := b.log_.Stats()
	d := kmsg.NewDescribeLogDirsResponseDir()
	d.Dir = b.conf().LogDir
	d.TotalBytes, d.UsableBytes = st.MaxBytes, max(st.MaxBytes-st.Bytes, 0)
	topics := map[string]*kmsg.DescribeLogDirsResponseDirTopic{}
	var order []string
	add := func(r *replica) {
		v := r.view.Load()
		if v.Role != partition.Leader {
			return
		}
		t := topics[r.topic]
		if t == nil {
			nt := kmsg.NewDescribeLogDirsResponseDirTopic()
			nt.Topic = r.topic
			t = &nt
			topics[r.topic] = t
			order = append(order, r.topic)
		}
		p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
		p.Partition = r.index
		local := max(r.localStart(), v.RemoteEnd, v.LogStart)
		p.Size = b.log_.BytesBetween(r.localID(), local, v.LogEnd)
		if s, ok := b.tier.State(r.topicID, r.index); ok {
			p.Size += s.Bytes
		}
		t.Partitions = append(t.Partitions, p)
	}
	if req.Topics == nil {
		for _, r := range b.replicas.all() {
			add(r)
		}
	} else {
		for i := range req.Topics {
			for _, index := range req.Topics[i].Partitions {
				if r := b.replicas.find(req.Topics[i].Topic, index); r != nil {
					add(r)
				}
			}
		}
	}
	for _, name := range order {
		d.Topics = append(d.Topics, *topics[name])
	}
	resp.Dirs = append(resp.Dirs, d)
	return resp
}
