package brokertest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/varve/varve/interop/chaos/history"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
)

// watch looks at every write to etcd: manifest heads (I6, and the order in them), leader epochs, who is in sync. Called with
// the store's lock held.
func (w *workload) watch(s *store, events []*mvccpb.Event) {
	for _, ev := range events {
		part, id, index, ok := keyOf(string(ev.Kv.Key))
		if !ok {
			continue
		}
		p := history.Partition{Topic: s.named(id), Index: index}
		if ev.Type != mvccpb.Event_PUT {
			if part == "manifest" {
				if h, err := manifest.DecodeHead(ev.PrevKv.Value); err == nil {
					w.names(p, id, h, &manifest.Head{})
				}
			}
			if part == "manifest" && s.kvs[etcdPrefix+"/image/topic/"+id] != nil {
				w.c.fail("I7: %s-%d: the manifest of a topic that there is is deleted", p.Topic, p.Index)
			}
			continue
		}
		switch part {
		case "partition":
			var old *partitionState
			if ev.PrevKv != nil {
				old = decode[partitionState](ev.PrevKv.Value)
			}
			w.members(s, p, id, old, decode[partitionState](ev.Kv.Value))
		case "epoch":
			if ev.PrevKv != nil && number(ev.Kv.Value) <= number(ev.PrevKv.Value) {
				w.c.fail("%s-%d: leader epoch %s after %s", p.Topic, p.Index, ev.Kv.Value, ev.PrevKv.Value)
			}
			w.mu.Lock()
			w.epochs[p] = int32(number(ev.Kv.Value))
			w.mu.Unlock()
		case "manifest":
			h, err := manifest.DecodeHead(ev.Kv.Value)
			if err != nil {
				w.c.fail("I7: %s-%d: %v", p.Topic, p.Index, err)
				continue
			}
			w.head(s, p, id, ev, h)
			w.mu.Lock()
			w.remote[term{p, h.Epoch}] = h.RemoteEnd()
			w.mu.Unlock()
		}
	}
}

// head checks a write of a manifest head. Called with the store's lock held.
func (w *workload) head(s *store, p history.Partition, id string, ev *mvccpb.Event, h *manifest.Head) {
	old := &manifest.Head{}
	if ev.PrevKv != nil {
		var err error
		if old, err = manifest.DecodeHead(ev.PrevKv.Value); err != nil {
			return // it is said of the write before
		}
	}
	key := "/" + id + "/" + fmt.Sprintf("%07d", p.Index)
	claim := read[claimState](s, "/claim"+key)
	// A worker changes which objects there are, and nothing else; it needs no epoch, but its claim.
	worker := claim != nil && ev.PrevKv != nil && h.Epoch == old.Epoch && h.RemoteEnd() == old.RemoteEnd() && h.LogStart == old.LogStart
	if kv := s.kvs[etcdPrefix+"/epoch"+key]; kv == nil || !worker && number(kv.Value) != int64(h.Epoch) {
		w.c.fail("I6: %s-%d: a manifest head of epoch %d is committed, the epoch is %v, the claim %v", p.Topic, p.Index, h.Epoch, kv, claim)
	}
	for _, e := range h.Tail {
		there := slices.ContainsFunc(old.Tail, func(o manifest.Entry) bool { return o.Suffix == e.Suffix })
		if tag := hex.EncodeToString(e.Suffix[:4]); e.Kind == manifest.Rewritten && !there && (claim == nil || claim.Tag != tag) {
			w.c.fail("I6: %s-%d: object %x at %d is committed by the worker of tag %s, the claim is %v", p.Topic, p.Index, e.Suffix, e.Base, tag, claim)
		}
	}
	w.names(p, id, old, h)
	if h.LogStart > old.LogStart {
		w.logStart(p, old.LogStart, h.LogStart)
	}
	if h.RemoteEnd() < old.RemoteEnd() || h.LogStart < old.LogStart || h.Epoch < old.Epoch || h.Compaction.CleanEnd < old.Compaction.CleanEnd {
		w.c.fail("I7: %s-%d: the manifest goes back: epoch %d, log start %d, remote end %d, clean end %d after %d, %d, %d, %d", p.Topic, p.Index,
			h.Epoch, h.LogStart, h.RemoteEnd(), h.Compaction.CleanEnd, old.Epoch, old.LogStart, old.RemoteEnd(), old.Compaction.CleanEnd)
	}
}

// claimState is a worker's claim as it lies in etcd.
type claimState struct {
	Worker string `json:"worker"`
	Tag    string `json:"tag"`
}

// keyOf takes the key of a partition's state, of its epoch or of its manifest head apart.
func keyOf(key string) (part, id string, index int32, ok bool) {
	f := strings.Split(strings.TrimPrefix(strings.TrimPrefix(key, etcdPrefix+"/"), "image/"), "/")
	if len(f) != 3 || f[0] != "epoch" && f[0] != "manifest" && f[0] != "partition" {
		return "", "", 0, false
	}
	n, err := strconv.Atoi(f[2])
	return f[0], f[1], int32(n), err == nil
}

// number is the leader epoch in a value.
func number(b []byte) int64 {
	var v struct {
		Epoch int64 `json:"epoch"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		panic(fmt.Sprintf("brokertest: the value of a leader epoch: %q: %v", b, err))
	}
	return v.Epoch
}

func (s *store) topicName(id string) string {
	var v struct {
		Name string `json:"name"`
	}
	if kv := s.kvs[etcdPrefix+"/image/topic/"+id]; kv == nil || json.Unmarshal(kv.Value, &v) != nil {
		return id
	}
	return v.Name
}

const (
	// healthy is how long a cluster may take to be well again after everything was healed.
	healthy = 60 * time.Second
	settled = 60 * time.Second
)

// eventually waits for what must come.
func eventually(most time.Duration, ok func() error) error {
	var err error
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = ok(); err == nil {
			return nil
		}
	}
	return err
}

// finish has the work come to its end on a healed cluster, and checks everything.
func (w *workload) finish() {
	c := w.c
	if err := c.inSync(healthy); err != nil {
		c.fail("I11: not in sync %s after everything was healed: %v", healthy, err)
	}
	if w.features.has(retained) {
		w.retain()
	}
	w.feeds.Store(true)
	w.producing.Wait()
	k := w.client("check")
	defer k.close()
	ends := map[history.Partition]int64{}
	err := eventually(settled, func() error { return w.drained(k, ends) })
	if err != nil {
		c.fail("I11: after %s: %v", settled, err)
	}
	w.groups.Store(true)
	w.grouped.Wait()
	w.reads.Store(true)
	w.reading.Wait()
	if err != nil {
		return
	}
	if err := eventually(settled, func() error { return w.drained(k, ends) }); err != nil { // nothing comes any more
		c.fail("I11: with all clients gone, after %s: %v", settled, err)
		return
	}
	im := c.image()
	w.readBack(k, im, ends)
	if c.failed() {
		return
	}
	if err := eventually(20*time.Second, func() error { return w.uploaded(ends) }); err != nil {
		c.fail("I11: everything should be in the bucket: %v", err)
	}
	if w.features.has(compacted) {
		if err := eventually(settled, w.compactedEnough); err != nil {
			c.fail("I11: compaction: %v", err)
		}
	}
	if w.features.has(renewed) {
		if err := eventually(settled, w.forgotten); err != nil {
			c.fail("I11: deleted topics: %v", err)
		}
	}
	if err := eventually(10*time.Second, c.uncharged); err != nil {
		c.fail("I12: nobody asks for anything: %v", err)
	}
	w.audit()
	w.lastIncarnation()
	for i, a := range history.Check(&w.h) {
		c.fail("%v", a)
		if i < 3 && a.Offset >= 0 {
			for _, line := range w.saw(a.Where, a.Offset) {
				c.fail("    %s", line)
			}
		}
	}
}

// saw is what all were shown at an offset, and were told of it, in order.
func (w *workload) saw(p history.Partition, offset int64) (lines []string) {
	for i := range w.h.Produces {
		if r := &w.h.Produces[i]; r.Partition == p && r.Offset == offset {
			lines = append(lines, fmt.Sprintf("%v was acknowledged", r.Record))
		}
	}
	for i := range w.h.Reads {
		if r := &w.h.Reads[i]; r.Partition == p && r.Offset == offset {
			lines = append(lines, fmt.Sprintf("%d: %s was shown %v, epoch %d, batch %08x", r.At, w.h.Readers[r.Reader].Name, r.Record, r.Epoch, r.Batch))
		}
	}
	return lines
}

// drained says whether the group has processed everything and no transaction is open; it notes where logs end.
func (w *workload) drained(k *client, ends map[history.Partition]int64) error {
	im := w.c.image()
	for _, t := range im.Topics() {
		for i := range t.Partitions {
			p := history.Partition{Topic: inHistory(t.Name, t.ID), Index: int32(i)}
			var at [2]int64
			for isolation := range at {
				end, err := w.end(k, p, int8(isolation))
				if err != nil {
					return fmt.Errorf("%s-%d: %w", p.Topic, p.Index, err)
				}
				at[isolation] = end
			}
			if ends[p] = at[0]; at[0] != at[1] {
				return fmt.Errorf("%s-%d: high watermark %d, last stable offset %d", p.Topic, p.Index, at[0], at[1])
			}
		}
	}
	for _, group := range w.groupIDs() {
		offsets, err := w.groupOffsets(k, group, w.all(topicIn))
		if err != nil {
			return fmt.Errorf("offsets of group %s: %w", group, err)
		}
		for _, p := range w.all(topicIn) {
			// What has no records behind it is not committed either.
			if ends[p] > 0 && offsets[p] < ends[p] {
				return fmt.Errorf("group %s, %s-%d: committed %d, end %d", group, p.Topic, p.Index, offsets[p], ends[p])
			}
		}
	}
	return nil
}

func (w *workload) end(k *client, p history.Partition, isolation int8) (int64, error) {
	return w.offset(k, p, isolation, -1)
}

// offset asks a leader for the offset of a time: -1 is the end, -2 the start.
func (w *workload) offset(k *client, p history.Partition, isolation int8, timestamp int64) (int64, error) {
	l, ok := k.leader(p)
	if !ok {
		return 0, errors.New("no leader")
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version, req.ReplicaID, req.IsolationLevel = 7, -1, isolation
	t, rp := kmsg.NewListOffsetsRequestTopic(), kmsg.NewListOffsetsRequestTopicPartition()
	t.Topic, rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = topicOf(p.Topic), p.Index, timestamp, l.epoch
	t.Partitions = append(t.Partitions, rp)
	req.Topics = append(req.Topics, t)
	resp, err := k.ask(l.id, req)
	if err == nil {
		got := resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
		if err = kerr.ErrorForCode(got.ErrorCode); err == nil {
			return got.Offset, nil
		}
	}
	k.forget(p)
	return 0, err
}

// readBack reads all there is from every replica at both isolations: the leader's first.
func (w *workload) readBack(k *client, im *image.Image, ends map[history.Partition]int64) {
	starts, err := w.starts(k)
	if err != nil {
		w.c.fail("where logs start: %v", err)
		return
	}
	w.mu.Lock()
	for p, start := range starts {
		w.h.Starts = append(w.h.Starts, history.Start{Partition: p, Offset: start})
	}
	w.mu.Unlock()
	for i := range 3 {
		for _, committed := range []bool{false, true} {
			name := fmt.Sprintf("replica %d", i)
			if committed {
				name += ", committed"
			}
			reader := w.reader(history.Reader{Name: name, Committed: committed, Final: true})
			for _, t := range im.Topics() {
				for index, part := range t.Partitions {
					p := history.Partition{Topic: inHistory(t.Name, t.ID), Index: int32(index)}
					from := slices.DeleteFunc(slices.Clone(part.Replicas), func(id int32) bool { return id == part.Leader })
					from = append([]int32{part.Leader}, from...)
					if err := w.readReplica(k, reader, from[min(i, len(from)-1)], p, starts[p], ends[p], committed); err != nil {
						w.c.fail("%s: broker %d: %s-%d: %v", name, from[min(i, len(from)-1)], p.Topic, p.Index, err)
						return
					}
				}
			}
		}
	}
}

func (w *workload) readReplica(k *client, reader int, id int32, p history.Partition, start, end int64, committed bool) error {
	for next, patience := start, time.Now().Add(20*time.Second); next < end; {
		f, err := k.fetch(id, p, -1, next, committed, "", 200*time.Millisecond, 1<<20)
		if err == nil && f.next > next {
			// Coordinators may have written more since.
			f.records = slices.DeleteFunc(f.records, func(r *kgo.Record) bool { return r.Offset >= end })
			w.shown(reader, f, true)
			next = f.next
			patience = time.Now().Add(20 * time.Second)
			continue
		}
		if time.Now().After(patience) {
			return fmt.Errorf("at offset %d of %d: nothing comes; high watermark %d, %v", next, end, f.hw, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// heads are the manifests' heads as etcd has them.
type heads struct {
	tiering.ManifestStore // what an audit does not need
	m                     *etcd.Manifests
}

func (h heads) Range(ctx context.Context, f func(tiering.StoredHead) error) error {
	return h.m.Range(ctx, func(s etcd.Head) error {
		return f(tiering.StoredHead{TopicID: s.TopicID, Partition: s.Partition, Head: s.Head, Rev: s.Rev})
	})
}

func (h heads) Load(ctx context.Context, topicID [16]byte, partition int32) (head []byte, rev int64, err error) {
	return h.m.Load(ctx, topicID, partition)
}

func (c *Cluster) heads() heads {
	l := newEtcdLink(context.Background(), c.etcd, 1)
	return heads{m: etcd.New(etcd.Options{Client: l.client(), Prefix: etcdPrefix}).Manifests()}
}

// uploaded says whether everything is in committed objects.
func (w *workload) uploaded(ends map[history.Partition]int64) error {
	names := map[string]string{}
	for _, t := range w.c.image().Topics() {
		names[hex.EncodeToString(t.ID[:])] = inHistory(t.Name, t.ID)
	}
	remote := map[history.Partition]int64{}
	err := w.c.heads().Range(context.Background(), func(s tiering.StoredHead) error {
		h, err := manifest.DecodeHead(s.Head)
		if err == nil {
			remote[history.Partition{Topic: names[hex.EncodeToString(s.TopicID[:])], Index: s.Partition}] = h.NextBase()
		}
		return err
	})
	for p, end := range ends {
		if err == nil && remote[p] < end {
			err = fmt.Errorf("%s-%d: remote end %d, high watermark %d", p.Topic, p.Index, remote[p], end)
		}
	}
	return err
}

// audit checks the manifests against the bucket (I7), every batch in it.
func (w *workload) audit() {
	a, err := tiering.Check(context.Background(), w.c.objs, w.c.heads(), tiering.AuditOptions{Data: true})
	if err != nil {
		w.c.fail("I7: %v", err)
		return
	}
	for _, p := range a.Problems {
		w.c.fail("I7: %s", p)
	}
}
