package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/bench/load"
)

// What happens to a cluster under load: a broker is lost, is restarted, is added.

// failoverPartitions is how many W16 and W17 have. A record is in flight to each of them, and the next is sent so much after
// its acknowledgement.
const (
	failoverPartitions = 300
	failoverPause      = 50 * time.Millisecond
)

// failover is the load that sees for how long each partition takes no record.
func (b *broker) failover(topic string, after time.Duration, event func(context.Context) error) load.Failover {
	return load.Failover{
		Bootstrap: b.addrs(), Topic: topic, RecordBytes: 1 << 10, Pause: failoverPause,
		Warmup: 3 * time.Second, Before: 3 * time.Second, After: after, Event: event,
	}
}

// loss is what is done to a broker.
type loss struct {
	controller bool // to the one that is the controller, rather than to another
	after      time.Duration
	event      func(context.Context, *node) error
}

var (
	killed           = loss{after: 14 * time.Second, event: func(_ context.Context, n *node) error { return n.kill() }}
	killedController = loss{controller: true, after: killed.after, event: killed.event}
	restarted        = loss{after: 5 * time.Second, event: func(ctx context.Context, n *node) error {
		if err := n.stop(); err != nil {
			return err
		}
		return n.start(ctx)
	}}
)

// lose measures for how long partitions take no record when something happens to a broker that leads a third of them.
func lose(l loss) measurement {
	return func(ctx context.Context, r *runner, _ *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		topic := r.topicName("failover")
		if err := r.createTopic(ctx, b, topic, failoverPartitions, b.replicas(), 0); err != nil {
			return nil, err
		}
		defer r.deleteTopic(b, topic)
		controller, err := b.controller(ctx)
		if err != nil {
			return nil, err
		}
		victim := b.members.node(controller)
		if !l.controller {
			victim = b.members.node(controller%int32(b.members.running) + 1)
		}
		res, err := load.MeasureFailover(ctx, b.failover(topic, l.after, func(ctx context.Context) error { return l.event(ctx, victim) }))
		began := time.Now()
		if victim.pid() == 0 {
			err = errors.Join(err, victim.start(ctx))
		}
		if err == nil {
			err = b.settled(ctx, topic, failoverPartitions)
		}
		if err != nil {
			return nil, err
		}
		s := gapSample(res)
		if g, ok := res.Leaders[victim.id]; ok {
			s[mGap50], s[mGap99], s[mGapMax] = g.P50, g.P99, g.Max
		} else {
			return nil, fmt.Errorf("broker %d led no partition of %s", victim.id, topic)
		}
		for id, g := range res.Leaders {
			if id != victim.id {
				s[mGapOthers] = max(s[mGapOthers], g.Max)
			}
		}
		s[mInSync] = time.Since(began).Seconds()
		return []sample{s}, nil
	}
}

func gapSample(res *load.FailoverResult) sample {
	return sample{mGapBefore: res.Steady.Max, mErrors: float64(res.Errors), mGap50: res.Event.P50, mGap99: res.Event.P99, mGapMax: res.Event.Max}
}

// settled waits until every replica is in sync.
func (b *broker) settled(ctx context.Context, topic string, partitions int) error {
	cl, err := b.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	return load.Settled(ctx, cl, topic, partitions)
}

// controller is the broker that decides who leads. Kafka tells clients any broker, and the truth only of its quorum.
func (b *broker) controller(ctx context.Context) (int32, error) {
	cl, err := b.client()
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	if b.kind == varve {
		m, err := kadm.NewClient(cl).BrokerMetadata(ctx)
		return m.Controller, err
	}
	req := kmsg.NewPtrDescribeQuorumRequest()
	topic := kmsg.NewDescribeQuorumRequestTopic()
	topic.Topic = "__cluster_metadata"
	topic.Partitions = append(topic.Partitions, kmsg.NewDescribeQuorumRequestTopicPartition())
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Topics[0].Partitions[0].LeaderID < 1 {
		return 0, fmt.Errorf("%s does not say which broker is its controller: %+v", b.kind, resp)
	}
	return resp.Topics[0].Partitions[0].LeaderID, nil
}

// grow adds a broker to a cluster whose partitions have so much stored, and moves the leaders of a third of the partitions to
// it while all are written to.
func grow(stored int64) measurement {
	return func(ctx context.Context, r *runner, _ *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		added := b.members.nodes[b.members.running]
		topic := r.topicName("grow")
		var replicas [][]int32
		to := map[int32][]int32{}
		for p := range int32(failoverPartitions) {
			on := []int32{p%3 + 1, (p+1)%3 + 1, (p+2)%3 + 1}
			replicas = append(replicas, on)
			if p/3%3 == 0 { // of each broker as many
				to[p] = []int32{added.id, on[1], on[2]}
			}
		}
		cl, err := b.client(kgo.MetadataMinAge(50 * time.Millisecond))
		if err != nil {
			return nil, err
		}
		defer cl.Close()
		if err := load.CreateOn(ctx, cl, topic, replicas); err != nil {
			return nil, err
		}
		defer func() {
			r.deleteTopic(b, topic)
			if err := added.stop(); err != nil {
				r.say("%s: the broker that was added does not end: %v", b.kind, err)
			}
		}()
		began := time.Now()
		if err := load.Fill(ctx, b.addrs(), topic, failoverPartitions, stored); err != nil {
			return nil, err
		}
		r.say("%s: %s has %.0f MB after %.1f s", b.kind, topic, float64(stored)/1e6, time.Since(began).Seconds())
		if b.kind == varve {
			if err := load.Tiered(ctx, cl, topic, 2*time.Minute); err != nil {
				return nil, err
			}
		}
		s := sample{}
		res, err := load.MeasureFailover(ctx, b.failover(topic, 3*time.Second, func(ctx context.Context) error {
			began := time.Now()
			if err := added.start(ctx); err != nil {
				return err
			}
			s[mStart] = time.Since(began).Seconds()
			before, err := readBy(added.pid())
			if err != nil {
				return err
			}
			took, err := load.Move(ctx, cl, topic, to)
			if err != nil {
				return err
			}
			after, err := readBy(added.pid())
			s[mMoved], s[mCopied] = took.Seconds(), float64(after-before)/1e6
			return err
		}))
		if err != nil {
			return nil, err
		}
		maps.Copy(s, gapSample(res))
		s[mStored] = float64(stored) / 1e6
		return []sample{s}, nil
	}
}

// readBy is how many bytes a process has read so far, from sockets and files alike.
func readBy(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("rchar: ")); ok {
			return strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc/%d/io has no rchar", pid)
}

// moveSizes moves partitions of several sizes there and back.
func moveSizes(sizes map[string][]int64) measurement {
	return func(ctx context.Context, r *runner, _ *setupRun, b *broker, _ time.Duration) ([]sample, error) {
		bytes := sizes[b.kind]
		var sum int64
		for _, n := range bytes {
			sum += n
		}
		// What was uploaded stays in the log for a while.
		if free, need := freeBytes(r.dir), 2*sum+(10<<30); free < need {
			return nil, fmt.Errorf("%.0f GB are free, %.0f are needed", float64(free)/1e9, float64(need)/1e9)
		}
		moves := 6
		if r.quick {
			moves = 2
		}
		list, err := load.MeasureSizeMoves(ctx, load.SizeMoves{
			Bootstrap: b.addrs(), Topic: r.topicName("size"), Bytes: bytes, From: 1, To: 2, Moves: moves, Tiered: b.kind == varve,
			Progress: func(s string) { r.say("%s %s", b.kind, s) },
		})
		if err != nil {
			return nil, err
		}
		s := sample{}
		for _, m := range list {
			at := slices.Sorted(slices.Values(m.Seconds))
			s[mErrors] += float64(m.Errors)
			switch m.Bytes {
			case smallMove:
				s[mMoveSmall], s[mMoveSmallMax] = median(at), at[len(at)-1]
			case middleMove:
				s[mMoveMiddle], s[mMoveMiddleMax] = median(at), at[len(at)-1]
			case largeMove:
				s[mMoveLarge], s[mMoveLargeMax] = median(at), at[len(at)-1]
				s[mLargeOfSmall] = s[mMoveLarge] / s[mMoveSmall]
			}
			s[mGapMax] = max(s[mGapMax], slices.Max(m.GapMs))
		}
		return []sample{s}, nil
	}
}

const (
	smallMove  = 100e6
	middleMove = 1e9
	largeMove  = 10e9
)
