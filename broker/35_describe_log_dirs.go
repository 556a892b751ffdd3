package broker

import (
	"context"
	"encoding/binary"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
)

// DescribeLogDirs (key 35), versions 1 to 4.
//
// Behavior: one directory, the write-ahead log's, with every replica that the
// broker has. A replica's size is what it takes in the log; the leader's is that of
// the log and of object storage together, because tools show the sum over brokers
// as the size of the topic. The lag is as Kafka's: by how much the end of the
// replica's log is below the high watermark that it knows. Total and usable bytes
// (v4) are the log's bound and what is left of it.

// LogEndTag is the tagged field of a partition in DescribeLogDirs (from v2 on) that
// says where the replica's log ends: 8 bytes, big-endian. Kafka tells that of
// leaders alone (ListOffsets).
const LogEndTag = 0x7663

func (b *Broker) describeLogDirs(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeLogDirsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	st := b.log_.Stats()
	d := kmsg.NewDescribeLogDirsResponseDir()
	d.Dir = b.conf().LogDir
	d.TotalBytes, d.UsableBytes = st.MaxBytes, max(st.MaxBytes-st.PinnedBytes, 0)
	topics := map[string]*kmsg.DescribeLogDirsResponseDirTopic{}
	var order []string
	add := func(r *replica) {
		v := r.view.Load()
		if v.Role == partition.Offline {
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
		p.OffsetLag = max(v.HighWatermark-v.LogEnd, 0)
		p.UnknownTags.Set(LogEndTag, binary.BigEndian.AppendUint64(nil, uint64(v.LogEnd)))
		local := max(r.localStart(), v.LogStart)
		if v.Role == partition.Leader {
			local = max(local, v.RemoteEnd)
		}
		p.Size = b.log_.BytesBetween(r.localID(), local, v.LogEnd)
		if s, ok := b.tier.State(r.topicID, r.index); ok && v.Role == partition.Leader {
			p.Size += s.Bytes
		}
		t.Partitions = append(t.Partitions, p)
	}
	if req.Topics == nil {
		for _, r := range b.replicas.all() {
			add(r)
		}
	} else {
		// Each once, however often it is named, as in Kafka: four bytes name it, and its answer takes hundreds while it is made.
		seen := map[*replica]struct{}{}
		for i := range req.Topics {
			for _, index := range req.Topics[i].Partitions {
				r := b.replicas.find(req.Topics[i].Topic, index)
				if _, again := seen[r]; r != nil && !again {
					seen[r] = struct{}{}
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
