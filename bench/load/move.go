package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Move gives partitions of a topic other replicas, and returns how long that took until none of them was being moved any more.
func Move(ctx context.Context, cl *kgo.Client, topic string, to map[int32][]int32) (time.Duration, error) {
	adm := kadm.NewClient(cl)
	var req kadm.AlterPartitionAssignmentsReq
	set := kadm.TopicsSet{}
	for p, replicas := range to {
		req.Assign(topic, p, replicas)
		set.Add(topic, p)
	}
	began := time.Now()
	resp, err := adm.AlterPartitionAssignments(ctx, req)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("load: moving partitions of %s: %w", topic, err)
	}
	for {
		moving, err := adm.ListPartitionReassignments(ctx, set)
		if err != nil {
			return 0, fmt.Errorf("load: partitions of %s that are being moved: %w", topic, err)
		}
		took := time.Since(began)
		if len(moving[topic]) == 0 {
			return took, placed(ctx, adm, topic, to)
		}
		if !pause(ctx, 10*time.Millisecond) {
			return 0, context.Cause(ctx)
		}
	}
}

// placed waits until the partitions are seen where they were to go: a move that was given up is over too. Metadata may come later
// than the end of a move is told.
func placed(ctx context.Context, adm *kadm.Client, topic string, to map[int32][]int32) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		topics, err := adm.ListTopics(ctx, topic)
		if err == nil {
			err = topics[topic].Err
		}
		for p, want := range to {
			if got := topics[topic].Partitions[p].Replicas; err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("partition %d was to move to %v, and is on %v", p, want, got)
			}
		}
		if err == nil {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("load: topic %s: %w", topic, err)
		}
	}
}

// CreateOn makes a topic whose partitions have the replicas that are named, the first of them its leader.
func CreateOn(ctx context.Context, cl *kgo.Client, topic string, replicas [][]int32) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 60_000
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topic, -1, -1
	for p, ids := range replicas {
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Partition, a.Replicas = int32(p), ids
		t.ReplicaAssignment = append(t.ReplicaAssignment, a)
	}
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("load: create topic %s: %w", topic, err)
	}
	return Settled(ctx, cl, topic, len(replicas))
}

// Settled waits until every partition of a topic has a leader and all its replicas in sync. partitions is how many there are; 0:
// as many as there are seen.
func Settled(ctx context.Context, cl *kgo.Client, topic string, partitions int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	adm := kadm.NewClient(cl)
	for {
		topics, err := adm.ListTopics(ctx, topic)
		if err == nil {
			err = topics[topic].Err
		}
		lacking := 0
		for _, p := range topics[topic].Partitions {
			if p.Err != nil || p.Leader < 0 || len(p.ISR) < len(p.Replicas) {
				lacking++
			}
		}
		switch n := len(topics[topic].Partitions); {
		case err == nil && n > 0 && (n == partitions || partitions == 0) && lacking == 0:
			return nil
		case err == nil:
			err = fmt.Errorf("%d of %d partitions, %d of them without a leader or with replicas that are not in sync", n, partitions, lacking)
		}
		if !pause(ctx, 100*time.Millisecond) {
			return fmt.Errorf("load: topic %s: %w", topic, err)
		}
	}
}

// Fill produces bytes to a topic, in batches of 1 MiB, evenly over its partitions.
func Fill(ctx context.Context, bootstrap []string, topic string, partitions int, bytes int64) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(1000<<10), kgo.MaxBufferedBytes(32<<20), kgo.ProducerLinger(10*time.Millisecond), kgo.DisableIdempotentWrite(),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.DisableClientMetrics())
	if err != nil {
		return fmt.Errorf("load: fill %s: %w", topic, err)
	}
	defer cl.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	values := Random.Values(fillRecord, 1)
	failed := func(_ *kgo.Record, err error) {
		if err != nil {
			cancel(err)
		}
	}
	for i := range (bytes + fillRecord - 1) / fillRecord {
		if ctx.Err() != nil {
			break
		}
		// A batch's worth to a partition, then the next one.
		cl.Produce(ctx, &kgo.Record{Partition: int32(i/15) % int32(partitions), Value: values[i%int64(len(values))]}, failed)
	}
	err = cl.Flush(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("load: fill %s: %w", topic, err)
	}
	return nil
}

const fillRecord = 64 << 10

// Tiered waits until all of a topic is in object storage. A broker that says nothing of a latest tiered offset (KIP-1005)
// for all of d is an error.
func Tiered(ctx context.Context, cl *kgo.Client, topic string, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	adm := kadm.NewClient(cl)
	for {
		ends, err := adm.ListEndOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		var lacking, partitions int64
		if err == nil {
			req := kmsg.NewPtrListOffsetsRequest()
			req.ReplicaID = -1
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = topic
			for p := range ends[topic] {
				r := kmsg.NewListOffsetsRequestTopicPartition()
				r.Partition, r.Timestamp = p, latestTiered
				t.Partitions = append(t.Partitions, r)
			}
			req.Topics = append(req.Topics, t)
			var resp *kmsg.ListOffsetsResponse
			if resp, err = req.RequestWith(ctx, cl); err == nil {
				for _, t := range resp.Topics {
					for _, p := range t.Partitions {
						err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))
						if n := ends[topic][p.Partition].Offset - 1 - p.Offset; n > 0 {
							lacking += n
							partitions++
						}
					}
				}
			}
		}
		if err == nil && lacking == 0 {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("%d records of %d partitions are not in object storage", lacking, partitions)
		}
		if !pause(ctx, 250*time.Millisecond) {
			return fmt.Errorf("load: topic %s after %s: %w", topic, d, err)
		}
	}
}

// latestTiered asks ListOffsets for the last offset in object storage.
const latestTiered = -5

// SizeMoves says how it is measured what moving a partition takes, and whether that depends on what is stored of it: for each
// size there is a topic of one partition, which is moved there and back in turn with the others, while it is written to.
type SizeMoves struct {
	Bootstrap []string
	Topic     string // what the topics' names begin with
	Bytes     []int64
	From, To  int32 // brokers
	Moves     int   // of each
	Tiered    bool  // all is in object storage before it is moved
	// Progress, if set, is told what is done.
	Progress func(string)
}

// SizeMove is what moving a partition of one size took.
type SizeMove struct {
	Bytes   int64     `json:"bytes"`
	Seconds []float64 `json:"seconds"` // of each move
	GapMs   []float64 `json:"gap_ms"`  // the longest time between two acknowledgements, with each move
	Records int64     `json:"records"` // acknowledged meanwhile
	Errors  int64     `json:"errors"`  // records that the client gave up
	Error   string    `json:"error,omitempty"`
}

// MeasureSizeMoves makes the topics, moves them, and deletes them.
func MeasureSizeMoves(ctx context.Context, s SizeMoves) ([]SizeMove, error) {
	say := s.Progress
	if say == nil {
		say = func(string) {}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.Bootstrap...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("load: moves: %w", err)
	}
	defer cl.Close()
	out := make([]SizeMove, len(s.Bytes))
	name := func(i int) string { return fmt.Sprintf("%s-%d", s.Topic, s.Bytes[i]) }
	for i, n := range s.Bytes {
		out[i].Bytes = n
		if err := CreateOn(ctx, cl, name(i), [][]int32{{s.From}}); err != nil {
			return nil, err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			if _, err := kadm.NewClient(cl).DeleteTopic(ctx, name(i)); err != nil {
				say(fmt.Sprintf("delete topic %s: %v", name(i), err))
			}
		}()
		began := time.Now()
		if err := Fill(ctx, s.Bootstrap, name(i), 1, n); err != nil {
			return nil, err
		}
		filled := time.Since(began)
		if s.Tiered {
			// As fast as 10 MB/s at the least: who is slower uploads nothing.
			if err := Tiered(ctx, cl, name(i), time.Minute+time.Duration(n/10)*time.Microsecond); err != nil {
				return nil, err
			}
		}
		say(fmt.Sprintf("%s: %.1f GB produced in %.1f s, in place after %.1f s", name(i), float64(n)/1e9, filled.Seconds(), time.Since(began).Seconds()))
	}
	for m := range s.Moves {
		to := s.To
		if m%2 == 1 {
			to = s.From
		}
		for i := range out {
			o := &out[i]
			var took time.Duration
			res, err := MeasureFailover(ctx, Failover{
				Bootstrap: s.Bootstrap, Topic: name(i), Warmup: 300 * time.Millisecond, Before: 300 * time.Millisecond, After: 500 * time.Millisecond,
				Event: func(ctx context.Context) (err error) {
					took, err = Move(ctx, cl, name(i), map[int32][]int32{0: {to}})
					return err
				},
			})
			if err != nil {
				return nil, err
			}
			o.Seconds, o.GapMs = append(o.Seconds, took.Seconds()), append(o.GapMs, res.Event.Max)
			o.Records += res.Records
			if o.Errors += res.Errors; o.Error == "" {
				o.Error = res.Error
			}
			say(fmt.Sprintf("%s: moved to broker %d in %.3f s, longest gap %.0f ms", name(i), to, took.Seconds(), res.Event.Max))
		}
	}
	return out, nil
}
