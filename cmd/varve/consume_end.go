package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/wal/batch"
)

// Where --exit-at-end is when no more records come.
//
// The client shows records. What it passes over, it passes over in silence: batches of which compaction has left
// nothing but the header, and aborted transactions, whose marker may have been taken away as well. If the log ends
// with them, the last record before the end has been seen and the end has not. So when nothing has come for a while,
// the leaders are asked for what is behind the last record of each partition. A partition is at its end when batches
// without anything to see reach there; an answer without batches says nothing, for it may be that they were not at
// hand in time.

// The first look comes after lookAfter without a record, the next ones after twice as long each, up to lookAtMost. One
// look reads about lookBytes, lookPartition of each partition at a time: a batch that has something to see is the
// client's to read, and is as soon as there is one.
const (
	lookAfter     = time.Second
	lookAtMost    = 30 * time.Second
	lookBytes     = 16 << 20
	lookFetch     = 1 << 20
	lookPartition = 64 << 10
	// lookInflated is what the records of a batch may inflate to, or it is left to the client.
	lookInflated = 64 << 20
)

// endSearch is how far --exit-at-end has come.
type endSearch struct {
	ends map[int32]int64 // partitions that are not at their end yet; nil without --exit-at-end
	next map[int32]int64 // of those: all before it has been seen, or has nothing to see

	at    time.Time     // of the next look
	pause time.Duration // before it
}

func newEndSearch() endSearch {
	return endSearch{ends: make(map[int32]int64), next: make(map[int32]int64)}
}

// progressed notes that a record of a partition that is not at its end has come.
func (s *endSearch) progressed(now time.Time) { s.pause, s.at = lookAfter, now.Add(lookAfter) }

// found notes that a partition has nothing to see before next.
func (s *endSearch) found(p int32, next int64) {
	if s.next[p] = max(s.next[p], next); s.next[p] >= s.ends[p] {
		delete(s.ends, p)
		delete(s.next, p)
	}
}

// look asks the leaders, until a time or as long as an answer may take. What fails is asked again at the next look: the
// client's own requests go on meanwhile, and it is the client that reports what is wrong.
func (c *consumption) look(ctx context.Context, until time.Time) {
	latest := time.Now().Add(c.f.conn.wait)
	if !until.IsZero() && until.Before(latest) {
		latest = until
	}
	ctx, cancel := context.WithDeadline(ctx, latest)
	defer cancel()
	defer func() {
		c.pause = min(2*c.pause, lookAtMost)
		c.at = time.Now().Add(c.pause)
	}()
	d, err := c.lookUp(ctx, c.cl)
	if err != nil {
		return
	}
	led := make(map[int32][]int32)
	for _, p := range slices.Sorted(maps.Keys(c.ends)) {
		if l, ok := d.Partitions[p]; ok && l.Err == nil && l.Leader >= 0 {
			led[l.Leader] = append(led[l.Leader], p)
		}
	}
	for _, leader := range slices.Sorted(maps.Keys(led)) {
		c.lookAt(ctx, c.cl.Broker(int(leader)), led[leader])
	}
}

// lookAt asks one leader for its partitions, again and again as long as that gets anywhere.
func (c *consumption) lookAt(ctx context.Context, leader *kgo.Broker, parts []int32) {
	for read := 0; len(parts) > 0 && read < lookBytes; {
		req := kmsg.NewPtrFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 500, 1, lookFetch
		if c.f.isolation == "read_committed" {
			req.IsolationLevel = 1
		}
		t := kmsg.NewFetchRequestTopic()
		t.Topic = c.topic
		for _, p := range parts {
			rp := kmsg.NewFetchRequestTopicPartition()
			rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = p, c.next[p], lookPartition
			t.Partitions = append(t.Partitions, rp)
		}
		req.Topics = append(req.Topics, t)
		resp, err := leader.RetriableRequest(ctx, fetchByName{req})
		if err != nil {
			return
		}
		f := resp.(*kmsg.FetchResponse)
		moved := false
		for _, rt := range f.Topics {
			for i := range rt.Partitions {
				rp := &rt.Partitions[i]
				end, asked := c.ends[rp.Partition]
				if !asked {
					continue
				}
				read += len(rp.RecordBatches)
				next := c.next[rp.Partition]
				to, more := nothingToSee(rp.RecordBatches, rp.AbortedTransactions, next, end)
				if rp.ErrorCode == 0 {
					c.found(rp.Partition, to)
				}
				if rp.ErrorCode != 0 || more || to >= end {
					parts = without(parts, rp.Partition)
					to = end
				}
				moved = moved || to > next // of those that are left, some may have had no room in the answer
			}
		}
		if f.ErrorCode != 0 || !moved {
			return
		}
	}
}

func without(list []int32, p int32) []int32 {
	return slices.DeleteFunc(list, func(q int32) bool { return p == q })
}

// fetchByName is a Fetch of the last version that names topics.
type fetchByName struct{ *kmsg.FetchRequest }

func (fetchByName) MaxVersion() int16 { return 12 }

// nothingToSee goes over fetched batches, of which those before next have been seen, up to the first that has a record
// for the reader in [next, end). It returns the offset behind what is passed over, and whether there is such a
// batch, or one that cannot be read. aborted are the transactions that were aborted, for a reader of committed
// records; markers are not for readers. A last batch that is cut off does not count.
func nothingToSee(raw []byte, aborted []kmsg.FetchResponseTopicPartitionAbortedTransaction, next, end int64) (to int64, more bool) {
	aborted = slices.Clone(aborted)
	slices.SortFunc(aborted, func(a, b kmsg.FetchResponseTopicPartitionAbortedTransaction) int {
		return int(min(max(a.FirstOffset-b.FirstOffset, -1), 1))
	})
	hidden := make(map[int64]bool) // producers whose transaction was aborted
	for to = next; to < end && len(raw) > 0; {
		h, err := batch.PeekHeader(raw)
		if err != nil {
			return to, len(raw) >= batch.HeaderSize
		}
		if h.Size() > len(raw) {
			return to, false
		}
		b := raw[:h.Size():h.Size()]
		raw = raw[h.Size():]
		for len(aborted) > 0 && aborted[0].FirstOffset <= h.LastOffset() {
			hidden[aborted[0].ProducerID] = true
			aborted = aborted[1:]
		}
		switch {
		case h.Control():
			delete(hidden, h.ProducerID) // its next transaction may be another matter
		case h.Transactional() && hidden[h.ProducerID]:
		case h.NextOffset() <= next:
		default:
			for r, err := range batch.Records(b, lookInflated) {
				if o := h.BaseOffset + int64(r.OffsetDelta); err != nil || o >= next && o < end {
					return to, true
				}
			}
		}
		to = max(to, h.NextOffset())
	}
	return to, false
}
