package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/config"
	"github.com/varve/varve/wal/batch"
)

// ListOffsets (key 2), versions 1 to 11.
//
// Behavior: by time, the first record whose timestamp is at or after the
// asked one, in the bucket first, then in the log. Timestamps are not monotone,
// so the bucket's part is searched by the maxima of its objects and blocks, the
// log by those of its runs, and the batch found is read record by record: it may
// begin below the log start. With -3, the first record that has the largest
// timestamp, in the log first, then in what the bucket has below it. What is at
// or above the last stable offset is no answer to who reads committed records.
// Where there is no answer, offset and timestamp are -1 and there is no error.
//
// Versions: 4 leader epoch, 7 the offset of the largest timestamp (-3), 8
// earliest local (-4), 9 latest tiered (-5), 11 earliest pending upload (-6).

// Timestamps with a meaning of their own.
const (
	latestOffset          = -1
	earliestOffset        = -2
	maxTimestampOffset    = -3
	earliestLocalOffset   = -4
	latestTieredOffset    = -5
	earliestPendingUpload = -6
)

// maxInflatedLookup bounds what one batch may inflate to while a lookup by
// time reads it.
const maxInflatedLookup = 1 << 30

func (b *Broker) listOffsets(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ListOffsetsRequest)
	resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	timeout := b.conf().RemoteListOffsetsTimeout
	if req.TimeoutMillis > 0 { // from version 10 on
		timeout = config.Milliseconds(int64(req.TimeoutMillis))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	refused := tooManyPartitions(req.Topics, func(t *kmsg.ListOffsetsRequestTopic) *[]kmsg.ListOffsetsRequestTopicPartition { return &t.Partitions })
	refused = refused || !knownIsolation(req.IsolationLevel)
	// As in Kafka, who asks for a partition twice is told nothing about it.
	type partitionOf struct {
		topic string
		index int32
	}
	times := make(map[partitionOf]int)
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			times[partitionOf{req.Topics[i].Topic, req.Topics[i].Partitions[j].Partition}]++
		}
	}
	for i := range req.Topics {
		t := kmsg.NewListOffsetsResponseTopic()
		t.Topic = req.Topics[i].Topic
		for j := range req.Topics[i].Partitions {
			p := &req.Topics[i].Partitions[j]
			if refused || times[partitionOf{t.Topic, p.Partition}] > 1 {
				out := kmsg.NewListOffsetsResponseTopicPartition()
				out.Partition, out.ErrorCode = p.Partition, protocol.CodeInvalidRequest
				out.Offset, out.Timestamp, out.LeaderEpoch = -1, -1, -1
				t.Partitions = append(t.Partitions, out)
				continue
			}
			t.Partitions = append(t.Partitions, b.listOffset(ctx, req, t.Topic, p))
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

func (b *Broker) listOffset(ctx context.Context, req *kmsg.ListOffsetsRequest, topic string, p *kmsg.ListOffsetsRequestTopicPartition) kmsg.ListOffsetsResponseTopicPartition {
	out := kmsg.NewListOffsetsResponseTopicPartition()
	out.Partition, out.Offset, out.Timestamp, out.LeaderEpoch = p.Partition, -1, -1, -1
	rep := b.replicas.find(topic, p.Partition)
	if rep == nil {
		out.ErrorCode = b.missingNamed(topic, p.Partition)
		return out
	}
	v := *rep.view.Load()
	if v.Role != partition.Leader {
		out.ErrorCode = rep.notServing()
		return out
	}
	if out.ErrorCode = partition.CheckEpoch(v.Epoch, p.CurrentLeaderEpoch); out.ErrorCode != 0 {
		return out
	}
	if v.HighWatermark < v.EpochStart && p.Timestamp != earliestOffset && p.Timestamp != earliestLocalOffset {
		// A leader that has just begun may know of less than the one before it
		// had committed, until its followers have fetched (KIP-207).
		out.ErrorCode = protocol.CodeOffsetNotAvailable
		if req.Version < 5 {
			out.ErrorCode = protocol.CodeLeaderNotAvailable
		}
		return out
	}
	bound := v.HighWatermark
	if req.IsolationLevel == 1 {
		bound = v.LastStableOffset
	}
	found := func(offset, timestamp int64) {
		out.Offset, out.Timestamp = offset, timestamp
		out.LeaderEpoch = rep.epochAt(offset)
		if offset == v.LogEnd {
			out.LeaderEpoch = v.Epoch
		}
	}
	minVersion := map[int64]int16{maxTimestampOffset: 7, earliestLocalOffset: 8, latestTieredOffset: 9, earliestPendingUpload: 11}
	if need, ok := minVersion[p.Timestamp]; ok && req.Version < need || p.Timestamp < earliestPendingUpload {
		out.ErrorCode = protocol.CodeUnsupportedVersion
		return out
	}
	switch p.Timestamp {
	case latestOffset:
		found(bound, -1)
	case earliestOffset:
		found(v.LogStart, -1)
	case earliestLocalOffset:
		found(max(rep.localStart(), v.LogStart), -1)
	case latestTieredOffset:
		if v.RemoteEnd > v.LogStart {
			found(v.RemoteEnd-1, -1)
		}
	case earliestPendingUpload:
		found(max(v.RemoteEnd, v.LogStart), -1)
	case maxTimestampOffset:
		offset, ts, ok, err := rep.maxTimestamp(ctx, v, bound)
		if err != nil {
			out.ErrorCode = b.lookupFailed(rep, err)
		} else if ok {
			found(offset, ts)
		}
	default:
		offset, ts, ok, err := rep.findTimestamp(ctx, v, bound, p.Timestamp)
		if err != nil {
			out.ErrorCode = b.lookupFailed(rep, err)
		} else if ok {
			found(offset, ts)
		}
	}
	return out
}

func (b *Broker) lookupFailed(rep *replica, err error) int16 {
	if b.ctx.Err() == nil && b.failures.lookup.Allow() {
		b.log.Warn("lookup by timestamp failed", "partition", rep.String(), "err", err)
	}
	return protocol.CodeRequestTimedOut
}

// settled does a lookup again when the local start has passed what it took for
// it: what it was to find there is in the bucket now, and the log, which looks
// at what it still has, would have named a later record.
func (r *replica) settled(ctx context.Context, v partition.View, lookup func(local int64) (offset, timestamp int64, ok bool, err error)) (offset, timestamp int64, ok bool, err error) {
	for {
		local := max(r.servedStart(), v.LogStart)
		offset, timestamp, ok, err = lookup(local)
		if r.localStart() <= local {
			return offset, timestamp, ok, err
		}
		if ctx.Err() != nil {
			return 0, 0, false, ctx.Err()
		}
	}
}

// findTimestamp returns the first record below bound whose timestamp is at or
// after ts.
func (r *replica) findTimestamp(ctx context.Context, v partition.View, bound, ts int64) (offset, timestamp int64, ok bool, err error) {
	return r.settled(ctx, v, func(local int64) (int64, int64, bool, error) { return r.findFrom(ctx, v, local, bound, ts) })
}

// findFrom is findTimestamp with the log looked at from local on.
func (r *replica) findFrom(ctx context.Context, v partition.View, local, bound, ts int64) (offset, timestamp int64, ok bool, err error) {
	if v.LogStart < local {
		run, found, err := r.b.tier.FindTimestamp(ctx, r.topicID, r.index, ts)
		if err != nil {
			return 0, 0, false, err
		}
		if found {
			offset, timestamp, ok, err = r.b.firstAtOrAfter(ctx, run.Chunks, ts, v.LogStart, bound)
			run.Release()
			if ok || err != nil {
				return offset, timestamp, ok, err
			}
		}
		local = max(local, min(v.RemoteEnd, bound))
	}
	for from := local; from < bound; {
		base, found, err := r.b.log_.Find(r.localID(), ts, from, bound)
		if err != nil || !found {
			return 0, 0, false, err
		}
		run, err := r.b.log_.Read(r.localID(), base, 1, bound)
		if err != nil {
			return 0, 0, false, err
		}
		offset, timestamp, ok, err = r.b.firstAtOrAfter(ctx, run.Chunks, ts, v.LogStart, bound)
		next := run.Next
		run.Release()
		if ok || err != nil {
			return offset, timestamp, ok, err
		}
		if next <= from {
			return 0, 0, false, fmt.Errorf("no progress at offset %d of the local log", from)
		}
		from = next
	}
	return 0, 0, false, nil
}

// maxTimestamp returns the first record from the log start on and below bound
// that has the largest timestamp of all of these (KIP-734). ok is false if none
// has a timestamp. As in Kafka the marker of a transaction counts as a record.
func (r *replica) maxTimestamp(ctx context.Context, v partition.View, bound int64) (offset, timestamp int64, ok bool, err error) {
	return r.settled(ctx, v, func(local int64) (int64, int64, bool, error) { return r.maxFrom(ctx, v, local, bound) })
}

// maxFrom is maxTimestamp with the log looked at from local on. The bucket is
// asked only for what is below, and only for what is as late as the log's.
func (r *replica) maxFrom(ctx context.Context, v partition.View, local, bound int64) (offset, timestamp int64, ok bool, err error) {
	offset, timestamp, ok, err = r.maxLocal(ctx, local, bound)
	if err != nil || v.LogStart >= min(local, bound) {
		return offset, timestamp, ok, err
	}
	floor := int64(0)
	if ok {
		floor = timestamp
	}
	o, ts, found, err := r.b.tier.MaxTimestamp(ctx, r.topicID, r.index, v.LogStart, min(local, bound), floor)
	if err != nil {
		return 0, 0, false, err
	}
	if found {
		return o, ts, true, nil
	}
	return offset, timestamp, ok, nil
}

// maxLocal is maxTimestamp in the offsets [from, bound) of the local log. A
// batch may promise more than it keeps: the log start, and so from, may lie
// behind its latest record. What is before and behind such a batch is looked at
// by itself.
func (r *replica) maxLocal(ctx context.Context, from, bound int64) (offset, timestamp int64, ok bool, err error) {
	timestamp = batch.NoTimestamp
	for ranges := [][2]int64{{from, bound}}; len(ranges) > 0; {
		lo, hi := ranges[len(ranges)-1][0], ranges[len(ranges)-1][1]
		ranges = ranges[:len(ranges)-1]
		if lo >= hi {
			continue
		}
		// A producer's word for the latest record of a batch is not looked into: with many that are wrong this goes over the log as often.
		if err := ctx.Err(); err != nil {
			return 0, 0, false, err
		}
		ts, base, found, err := r.b.log_.MaxTimestamp(r.localID(), lo, hi)
		if err != nil {
			return 0, 0, false, err
		}
		if !found || ts < timestamp || ts == timestamp && (!ok || base >= offset) {
			continue
		}
		run, err := r.b.log_.Read(r.localID(), base, 1, hi)
		if err != nil {
			return 0, 0, false, err
		}
		o, t, has, err := r.b.latest(ctx, run.Chunks, lo, hi)
		next := run.Next
		run.Release()
		if err != nil {
			return 0, 0, false, err
		}
		if has && (t > timestamp || t == timestamp && ok && o < offset) {
			offset, timestamp, ok = o, t, true
		}
		if !has || t < ts {
			if next <= lo {
				return 0, 0, false, fmt.Errorf("no progress at offset %d of the local log", lo)
			}
			ranges = append(ranges, [2]int64{lo, base}, [2]int64{next, hi})
		}
	}
	return offset, timestamp, ok, nil
}

// latest returns the first record of a run in the offsets [from, bound) that has
// the largest timestamp of these.
func (b *Broker) latest(ctx context.Context, chunks [][]byte, from, bound int64) (offset, timestamp int64, ok bool, err error) {
	for _, c := range chunks {
		err = batch.Walk(c, func(h batch.Header, one []byte) error {
			var o, ts int64
			var has bool
			err := b.opening.open(ctx, one, maxInflatedLookup, func(limit int) (err error) {
				o, ts, has, err = batch.MaxTimestampOffset(one, from, bound, limit)
				return err
			})
			if err != nil && (ctx.Err() != nil || errors.Is(err, batch.ErrInflated)) {
				return err
			}
			// A batch that no consumer can read is no answer.
			if err == nil && has && (!ok || ts > timestamp) {
				offset, timestamp, ok = o, ts, true
			}
			return nil
		})
		if err != nil {
			return 0, 0, false, err
		}
	}
	return offset, timestamp, ok, nil
}

// firstAtOrAfter looks through the batches of a run.
func (b *Broker) firstAtOrAfter(ctx context.Context, chunks [][]byte, ts, from, bound int64) (offset, timestamp int64, ok bool, err error) {
	for _, c := range chunks {
		err = batch.Walk(c, func(h batch.Header, one []byte) error {
			if ok || h.MaxTimestamp < ts || h.LastOffset() < from || h.Control() {
				return nil
			}
			err := b.opening.open(ctx, one, maxInflatedLookup, func(limit int) (err error) {
				offset, timestamp, ok, err = batch.FirstAtOrAfter(one, ts, from, bound, limit)
				return err
			})
			if err != nil && (ctx.Err() != nil || errors.Is(err, batch.ErrInflated)) {
				return err
			}
			return nil // a batch that no consumer can read either is no answer
		})
		if ok || err != nil {
			return offset, timestamp, ok, err
		}
	}
	return 0, 0, false, nil
}
