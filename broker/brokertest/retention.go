package brokertest

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
	"github.com/varve/varve/tiering/manifest"
)

// A topic of which records are deleted, by their age and because somebody asks for it, while it is written and read.
//
// What may not be: a log start that moves past what is younger and nobody wanted deleted, or in another topic; one that
// goes back (watch); a record that is shown although its deletion was acknowledged before; one that should have gone and stays.

// retentionMs is retention.ms of the topic, until all is healed.
const retentionMs = 4000

// deletions are what is known of the topic. Guarded by the workload's lock.
type deletions struct {
	there map[history.Partition][]stamp // what was acknowledged
	asked map[history.Partition]int64   // below this, deletion was asked for
	acked map[term]int64                // below this, it was acknowledged when the leader epoch was so far
}

// stamp is a batch in the log.
type stamp struct {
	base, next int64
	made       int64 // ms
}

func newDeletions() deletions {
	return deletions{there: map[history.Partition][]stamp{}, asked: map[history.Partition]int64{}, acked: map[term]int64{}}
}

// logStart checks that a log start may move. Called with the store's lock held.
func (w *workload) logStart(p history.Partition, from, to int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Topic != topicShort {
		w.c.fail("I2: %s-%d: the log start moves from %d to %d, and nothing may be deleted", p.Topic, p.Index, from, to)
		return
	}
	now := time.Now().UnixMilli()
	for _, b := range w.deleted.there[p] {
		if at := max(b.base, from, w.deleted.asked[p]); at < min(b.next, to) && b.made >= now-retentionMs {
			w.c.fail("I2: %s-%d: the log start moves from %d to %d; offset %d is %d ms old, and deletion was asked for below %d",
				p.Topic, p.Index, from, to, at, now-b.made, w.deleted.asked[p])
			return
		}
	}
}

// low is what a leader of an epoch may not show anything below, from now on.
func (w *workload) low(p history.Partition, epoch int32) (low int64) {
	if p.Topic != topicShort {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for t, offset := range w.deleted.acked {
		if t.p == p && t.epoch <= epoch {
			low = max(low, offset)
		}
	}
	return low
}

// deleteRecords deletes some of what was acknowledged, or all of it, now and then.
func (w *workload) deleteRecords() {
	k := w.client("deletes")
	defer k.close()
	for !w.feeds.Load() {
		time.Sleep(time.Duration(200+k.rnd.IntN(1800)) * time.Millisecond)
		p := history.Partition{Topic: topicShort, Index: k.rnd.Int32N(w.partitions)}
		to := w.exposed(p)
		if to == 0 {
			continue
		}
		if k.rnd.IntN(3) > 0 {
			to -= k.rnd.Int64N(min(to, 40)) // not all
		}
		l, ok := k.leader(p)
		if !ok {
			continue
		}
		w.mu.Lock()
		w.deleted.asked[p] = max(w.deleted.asked[p], to)
		w.mu.Unlock()
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.Version, req.TimeoutMillis = 2, 2000
		t, rp := kmsg.NewDeleteRecordsRequestTopic(), kmsg.NewDeleteRecordsRequestTopicPartition()
		t.Topic, rp.Partition, rp.Offset = p.Topic, p.Index, to
		t.Partitions = append(t.Partitions, rp)
		req.Topics = append(req.Topics, t)
		resp, err := k.ask(l.id, req)
		if err != nil {
			k.forget(p)
			continue
		}
		got := &resp.(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0]
		if kerr.ErrorForCode(got.ErrorCode) != nil {
			k.forget(p)
			continue
		}
		if got.LowWatermark < to {
			w.c.fail("%s-%d: deleted below %d, and the log starts at %d", p.Topic, p.Index, to, got.LowWatermark)
		}
		w.mu.Lock()
		t2 := term{p, w.epochs[p]} // whoever leads by now has read the head with it, or will
		w.deleted.acked[t2] = max(w.deleted.acked[t2], to)
		w.mu.Unlock()
	}
}

// retain waits until what is too old is gone, and has all that is there kept from then on: else there would be nothing to
// look at in the end.
func (w *workload) retain() {
	k := w.client("retains")
	defer k.close()
	old := time.Now().UnixMilli() - 2*retentionMs
	err := eventually(settled, func() error {
		for _, p := range w.all(topicShort) {
			start, err := w.offset(k, p, 0, -2)
			if err != nil {
				return err
			}
			w.mu.Lock()
			list := w.deleted.there[p]
			w.mu.Unlock()
			for _, b := range list {
				if b.made < old && b.next > start {
					return fmt.Errorf("%s-%d starts at %d; offset %d is %d ms old", p.Topic, p.Index, start, b.base, time.Now().UnixMilli()-b.made)
				}
			}
		}
		return nil
	})
	if err != nil {
		w.c.fail("I11: retention: %v", err)
	}
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Version = 1
	r, c := kmsg.NewIncrementalAlterConfigsRequestResource(), kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topicShort
	c.Name, c.Op, c.Value = "retention.ms", kmsg.IncrementalAlterConfigOpSet, kmsg.StringPtr("-1")
	r.Configs = append(r.Configs, c)
	req.Resources = append(req.Resources, r)
	err = eventually(settled, func() error {
		resp, err := k.ask(k.anyBroker(), req)
		if err == nil {
			err = kerr.ErrorForCode(resp.(*kmsg.IncrementalAlterConfigsResponse).Resources[0].ErrorCode)
		}
		return err
	})
	if err != nil {
		w.c.fail("I11: retention.ms is not changed: %v", err)
	}
}

// starts notes where the log of each partition starts in the end; nothing is deleted any more.
func (w *workload) starts(k *client) (map[history.Partition]int64, error) {
	starts := map[history.Partition]int64{}
	if !w.features.has(retained) {
		return starts, nil
	}
	for _, p := range w.all(topicShort) {
		start, err := w.offset(k, p, 0, -2)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		for t, to := range w.deleted.acked {
			if t.p == p && start < to {
				w.c.fail("%s-%d: the log starts at %d, and DeleteRecords up to %d was acknowledged", p.Topic, p.Index, start, to)
			}
		}
		w.mu.Unlock()
		starts[p] = start
	}
	return starts, nil
}

// compactedEnough says whether the workers have been over what there is of the compacted topic.
func (w *workload) compactedEnough() error {
	for _, k := range w.c.workers {
		if err := k.Healthy(); err != nil {
			return fmt.Errorf("worker %d: %w", k.id, err)
		}
	}
	im := w.c.image()
	t := im.Topic(topicKept)
	for i := range t.Partitions {
		b, _, err := w.c.heads().Load(context.Background(), t.ID, int32(i))
		if err != nil {
			return err
		}
		if len(b) == 0 {
			continue // nothing was ever uploaded
		}
		h, err := manifest.DecodeHead(b)
		if err != nil {
			return err
		}
		if end := h.RemoteEnd(); end > 20 && h.Compaction.CleanEnd < end/2 {
			return fmt.Errorf("%s-%d: clean below %d, %d are there", t.Name, i, h.Compaction.CleanEnd, end)
		}
	}
	return nil
}
