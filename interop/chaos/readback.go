package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/interop/chaos/history"
)

// internal topics are read back from every replica too.
var internal = []string{"__consumer_offsets", "__transaction_state"}

// inSync waits until every partition has all its replicas in sync, and returns the topics.
func inSync(ctx context.Context, adm *kadm.Client) (kadm.TopicDetails, error) {
	var topics kadm.TopicDetails
	err := child.Eventually(ctx, patience, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var err error
		if topics, err = adm.ListTopicsWithInternal(ctx); err != nil {
			return err
		}
		var bad error
		for _, p := range topics.TopicsSet().Sorted() {
			for _, i := range p.Partitions {
				d := topics[p.Topic].Partitions[i]
				if d.Err != nil || d.Leader < 0 || len(d.ISR) != len(d.Replicas) || len(d.Replicas) != brokers {
					bad = fmt.Errorf("%s-%d: leader %d, replicas %v, in sync %v, %v", p.Topic, i, d.Leader, d.Replicas, d.ISR, d.Err)
				}
			}
		}
		return bad
	})
	return topics, err
}

// settled waits until the groups have read and committed everything, and no transaction is open.
func (w *workload) settled(ctx context.Context, adm *kadm.Client, cl *kgo.Client) (ends kadm.ListedOffsets, err error) {
	err = child.Eventually(ctx, patience, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var err error
		if ends, err = adm.ListEndOffsets(ctx, w.topics()...); err != nil {
			return err
		}
		if err := ends.Error(); err != nil {
			return err
		}
		stable, err := adm.ListCommittedOffsets(ctx, w.topics()...)
		if err != nil {
			return err
		}
		var bad error
		ends.Each(func(o kadm.ListedOffset) {
			if s, ok := stable.Lookup(o.Topic, o.Partition); !ok || s.Err != nil || s.Offset != o.Offset {
				bad = fmt.Errorf("%s-%d: log end %d, last stable offset %d (%v)", o.Topic, o.Partition, o.Offset, s.Offset, s.Err)
			}
		})
		for _, kind := range []string{"process", "readers"} {
			offsets, err := w.groupOffsets(ctx, cl, w.group(kind))
			if err != nil {
				return fmt.Errorf("group %s: %w", w.group(kind), err)
			}
			for p := range w.partitions {
				if end, _ := ends.Lookup(w.in, p); end.Offset != offsets[p] {
					bad = fmt.Errorf("group %s, %s-%d: committed %d, log end %d", w.group(kind), w.in, p, offsets[p], end.Offset)
				}
			}
		}
		return bad
	})
	return ends, err
}

// compacted waits until no more than a quarter is left of what was acknowledged in the compacted topic.
func (w *workload) compacted(ctx context.Context, cl *kgo.Client, topics kadm.TopicDetails) error {
	all := w.l.acknowledged(w.kept)
	return child.Eventually(ctx, patience, func() error {
		ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, w.kept)
		if err == nil {
			err = ends.Error()
		}
		l := newLedger()
		for p := int32(0); p < w.partitions && err == nil; p++ {
			end, _ := ends.Lookup(w.kept, p)
			err = l.readReplica(ctx, cl, 0, 1, topics[w.kept], p, end.Offset, true)
		}
		if left := len(l.h.Reads); err == nil && left > all/4 {
			err = fmt.Errorf("%s: %d records are there of %d acknowledged ones: they were to be compacted", w.kept, left, all)
		} else if err == nil {
			w.note("%d records are left of %d acknowledged ones that have keys", left, all)
		}
		return err
	})
}

// verify looks at the whole bucket: everything that is named is there as it was written, and, soon, nothing else.
func (n *nemesis) verify(ctx context.Context) error {
	args := []string{"tier", "verify", "-q", "--set", "etcd.endpoints=" + n.c.Describe().Etcd[0].Client, "--set", "remote.storage.url=" + n.c.BucketURL()}
	if err := n.once(ctx, append(args, "--data")...); err != nil {
		return err
	}
	return child.Eventually(ctx, patience, func() error { return n.once(ctx, append(args, "--unnamed")...) })
}

// readBack reads all partitions from every replica, at both isolation levels, and notes what was read.
func (l *ledger) readBack(ctx context.Context, cl *kgo.Client, topics kadm.TopicDetails, names []string) error {
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(ctx, names...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets: %w", err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 2*brokers)
	for i := range errs {
		id, committed := int32(1+i/2), i%2 == 1
		name := fmt.Sprintf("replica %d", id)
		if committed {
			name += ", committed"
		}
		reader := l.reader(history.Reader{Name: name, Committed: committed, Final: true})
		wg.Go(func() {
			for _, t := range names {
				for _, p := range topics[t].Partitions.Numbers() {
					end, _ := ends.Lookup(t, p)
					if err := l.readReplica(ctx, cl, reader, id, topics[t], p, end.Offset, committed); err != nil {
						errs[i] = fmt.Errorf("%s: %s-%d: %w", name, t, p, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// readReplica reads [0, end) of a partition from one broker.
func (l *ledger) readReplica(ctx context.Context, cl *kgo.Client, reader int, id int32, t kadm.TopicDetail, p int32, end int64, committed bool) error {
	deadline := time.Now().Add(patience)
	for next := int64(0); next < end; {
		req := kmsg.NewPtrFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 200, 1, 8<<20
		opts := kgo.ProcessFetchPartitionOpts{KeepControlRecords: !committed, Offset: next, Topic: t.Topic, Partition: p, IsolationLevel: kgo.ReadUncommitted()}
		if committed {
			req.IsolationLevel, opts.IsolationLevel = 1, kgo.ReadCommitted()
		}
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic, rt.TopicID = t.Topic, t.ID
		rp := kmsg.NewFetchRequestTopicPartition()
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = p, next, 4<<20
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			answer, err := cl.Broker(int(id)).RetriableRequest(ctx, req)
			if err != nil {
				return err
			}
			resp := answer.(*kmsg.FetchResponse)
			if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
				return err
			}
			if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
				return fmt.Errorf("the answer has no such partition")
			}
			part := &resp.Topics[0].Partitions[0]
			if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
				return err
			}
			sums := history.BatchSums(part.RecordBatches)
			if len(sums) == 0 {
				return fmt.Errorf("nothing came; high watermark %d", part.HighWatermark)
			}
			fetched, _ := kgo.ProcessFetchPartition(opts, part, kgo.DefaultDecompressor(), nil)
			if fetched.Err != nil {
				return fetched.Err
			}
			l.shown(reader, fetched.Records, func(o int64) uint32 {
				i := sort.Search(len(sums), func(i int) bool { return sums[i].Last >= o })
				return sums[i].Sum
			})
			next = sums[len(sums)-1].Last + 1
			deadline = time.Now().Add(patience)
			return nil
		}()
		if err != nil {
			// It may not know yet that the leader has committed the last records.
			if ctx.Err() != nil || time.Now().After(deadline) {
				return fmt.Errorf("at offset %d of %d: %w", next, end, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

func partitionsOf[V any](m map[history.Partition]V) []history.Partition {
	var list []history.Partition
	for p := range m {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b history.Partition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Index, b.Index))
	})
	return list
}
