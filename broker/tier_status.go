package broker

import (
	"cmp"
	"slices"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/tiering"
)

// TierStatus is how far a partition that this broker leads is in object
// storage.
type TierStatus struct {
	Topic         string
	Partition     int32
	LogStart      int64
	LocalStart    int64
	RemoteEnd     int64
	HighWatermark int64
	Objects       int
	Bytes         int64 // of record batches in the bucket
	UploadLagMs   int64 // age of the oldest record that may be uploaded and is not
}

// TierStatus describes the partitions that this broker leads, of one topic or
// of all (""), ascending.
func (b *Broker) TierStatus(topic string) []TierStatus {
	var out []TierStatus
	for _, r := range b.replicas.all() {
		v := r.view.Load()
		if topic != "" && r.topic != topic || v.Role != partition.Leader {
			continue
		}
		st := TierStatus{Topic: r.topic, Partition: r.index, LogStart: v.LogStart, LocalStart: max(r.localStart(), v.LogStart), RemoteEnd: v.RemoteEnd, HighWatermark: v.HighWatermark}
		if s, ok := b.tier.State(r.topicID, r.index); ok {
			st.Objects, st.Bytes, st.UploadLagMs = s.Objects, s.Bytes, s.UploadLag.Milliseconds()
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b TierStatus) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return out
}

// Policy is what the topic's settings say about tiering (tiering.Replica).
func (r *replica) Policy() tiering.Policy {
	c := r.cfg()
	p := tiering.Policy{
		SegmentBytes: int64(c.SegmentBytes), SegmentMs: c.SegmentMs, SegmentJitterMs: c.SegmentJitterMs,
		RetentionMs: c.RetentionMs, RetentionBytes: c.RetentionBytes,
		LocalRetentionMs: c.LocalRetentionMs, LocalRetentionBytes: c.LocalRetentionBytes,
		CopyLagMs: c.RemoteCopyLagMs, CopyLagBytes: c.RemoteCopyLagBytes, CopyDisabled: c.RemoteCopyDisable,
		Delete: c.Delete, Compact: c.Compact, DeleteDelayMs: c.FileDeleteDelayMs,
	}
	return p
}
