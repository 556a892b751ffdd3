package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
)

// members starts one member of a group per library: it hands on what it reads,
// and its stop commits and leaves.
var members = []struct {
	name  string
	start func(t *testing.T, addr, group, topic string, out func(rec)) (stop func())
}{
	{"franz-go", memberKgo},
	{"sarama", memberSarama},
	{"kafka-go", memberKafkaGo},
	{"kcat", memberKcat},
}

func memberKgo(t *testing.T, addr, group, topic string, out func(rec)) func() {
	cl := newKgo(t, addr, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { out(fromKgo(r)) })
			if err := cl.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
				t.Logf("franz-go: commit: %v", err)
			}
		}
	}()
	return func() {
		cancel()
		<-done
		if err := cl.CommitUncommittedOffsets(patience(t)); err != nil {
			t.Errorf("franz-go: commit: %v", err)
		}
		cl.Close()
	}
}

type saramaHandler struct{ out func(rec) }

func (saramaHandler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (saramaHandler) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (h saramaHandler) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for m := range c.Messages() {
		h.out(rec{partition: m.Partition, offset: m.Offset, value: m.Value})
		s.MarkMessage(m, "")
		s.Commit()
	}
	return nil
}

func memberSarama(t *testing.T, addr, group, topic string, out func(rec)) func() {
	g, err := sarama.NewConsumerGroup([]string{addr}, group, saramaConfig(sarama.V3_6_0_0))
	if err != nil {
		t.Fatalf("sarama: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		for err := range g.Errors() {
			t.Logf("sarama: %v", err)
		}
	}()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := g.Consume(ctx, []string{topic}, saramaHandler{out}); err != nil && ctx.Err() == nil {
				t.Errorf("sarama: %v", err)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
		if err := g.Close(); err != nil {
			t.Errorf("sarama: %v", err)
		}
	}
}

func memberKafkaGo(t *testing.T, addr, group, topic string, out func(rec)) func() {
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{addr}, GroupID: group, Topic: topic, MaxWait: 50 * time.Millisecond, StartOffset: kafka.FirstOffset, HeartbeatInterval: 200 * time.Millisecond,
		// Its joins are retried after five seconds otherwise.
		JoinGroupBackoff: 100 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := r.FetchMessage(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("kafka-go: %v", err)
				}
				return
			}
			out(fromKafkaGo(m))
			if err := r.CommitMessages(ctx, m); err != nil && ctx.Err() == nil {
				t.Logf("kafka-go: commit: %v", err)
			}
		}
	}()
	return func() {
		cancel()
		<-done
		if err := r.Close(); err != nil {
			t.Errorf("kafka-go: %v", err)
		}
	}
}

func memberKcat(t *testing.T, addr, group, topic string, out func(rec)) func() {
	needKcat(t)
	cmd := exec.Command("kcat", "-b", addr, "-G", group, "-X", "auto.offset.reset=earliest", "-J", "-u", "-q", "-X", "fetch.wait.max.ms=20", topic)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for dec := json.NewDecoder(stdout); ; {
			var k kcatRecord
			if err := dec.Decode(&k); err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
					t.Errorf("kcat: %v", err)
				}
				return
			}
			r := rec{partition: k.Partition, offset: k.Offset}
			if k.Payload != nil {
				r.value = []byte(*k.Payload)
			}
			out(r)
		}
	}()
	return func() {
		cmd.Process.Signal(os.Interrupt) // commits and leaves
		<-done
		cmd.Wait()
	}
}

// twoMembers runs a group of two until produce's n records have been read, and
// returns them by value. Both members own partitions before the first record
// is produced.
func twoMembers(t *testing.T, b *servertest.Broker, start func(*testing.T, string, string, string, func(rec)) func(), group, topic string, from, n int) {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]int{}
	var share [2]int
	var stops []func()
	for i := range 2 {
		stops = append(stops, start(t, b.Addr(), group, topic, func(r rec) {
			mu.Lock()
			defer mu.Unlock()
			seen[string(r.value)]++
			share[i]++
		}))
	}
	adm := kadm.NewClient(b.Client())
	servertest.Eventually(t, func() error {
		gs, err := adm.DescribeGroups(patience(t), group)
		if err != nil {
			return err
		}
		g := gs[group]
		if g.State != "Stable" || len(g.Members) != 2 {
			return fmt.Errorf("group %s is %s with %d members (%v)", group, g.State, len(g.Members), g.Err)
		}
		for _, m := range g.Members {
			as, ok := m.Assigned.AsConsumer()
			if !ok || len(as.Topics) == 0 || len(as.Topics[0].Partitions) == 0 {
				return fmt.Errorf("group %s: member %s has no partition", group, m.MemberID)
			}
		}
		return nil
	})
	var rs []rec
	for i := range n {
		rs = append(rs, rec{partition: int32(i % 4), value: []byte(strconv.Itoa(from + i)), ts: baseTime})
	}
	kgoProduce(t, b.Addr(), topic, rs)
	servertest.Eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) < n {
			return fmt.Errorf("group %s: %d of %d records", group, len(seen), n)
		}
		return nil
	})
	for _, stop := range stops {
		stop()
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range n {
		if seen[strconv.Itoa(from+i)] == 0 {
			t.Errorf("group %s: record %d not seen", group, from+i)
		}
	}
	if len(seen) != n {
		t.Errorf("group %s: %d different records, %d of them produced now", group, len(seen), n)
	}
	if share[0] == 0 || share[1] == 0 {
		t.Errorf("group %s: the members read %v", group, share)
	}
	ends, err := adm.ListEndOffsets(patience(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	committed, err := adm.FetchOffsets(patience(t), group)
	if err != nil {
		t.Fatal(err)
	}
	ends.Each(func(e kadm.ListedOffset) {
		if c, ok := committed.Lookup(topic, e.Partition); !ok || c.At != e.Offset {
			t.Errorf("group %s: partition %d is committed at %d, its end is %d", group, e.Partition, c.At, e.Offset)
		}
	})
}

// TestGroups: groups of two of each library share the work, and go on from
// their committed offsets after a restart of the broker.
func TestGroups(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	for _, m := range members {
		b.CreateTopic("g-"+m.name, 4)
	}
	const n = 200
	for round := range 2 {
		t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			for _, m := range members {
				t.Run(m.name, func(t *testing.T) {
					t.Parallel()
					twoMembers(t, b, m.start, "group-"+m.name, "g-"+m.name, round*n, n)
				})
			}
		})
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyCommits has many offsets committed, ten a request, and the broker started anew: it reads them all, and says how
// long that took. VARVE_LONG=1: a million, before any compaction.
func TestManyCommits(t *testing.T) {
	each := int64(20) // requests of a group
	if long {
		each = 1000
	}
	const groups, parts, inRequest = 100, 100, 10
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"offsets.topic.num.partitions": "1", "remote.flush.interval.ms": "3600000"}})
	b.CreateTopic("t", parts)
	ctx := patience(t)
	details, err := kadm.NewClient(newKgo(t, b.Addr())).ListTopics(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	id := details["t"].ID
	commit := func(cl *kgo.Client, group string, i int64) error { // the request number i of a group
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group = group
		req.Topics = []kmsg.OffsetCommitRequestTopic{{TopicID: id}}
		for k := range int64(inRequest) {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset = int32((i*inRequest+k)%parts), i
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, p)
		}
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		for _, p := range resp.Topics[0].Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return err
			}
		}
		return nil
	}
	began := time.Now()
	var wg sync.WaitGroup
	for g := range groups {
		wg.Go(func() {
			cl := newKgo(t, b.Addr()) // of its own: a connection's commits come one after the other
			for i := range each {
				if err := commit(cl, fmt.Sprint("g", g), i); err != nil {
					t.Errorf("group %d, request %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if t.Failed() {
		return
	}
	if err := b.Restart(func() {}); err != nil {
		t.Fatal(err)
	}
	adm := kadm.NewClient(newKgo(t, b.Addr()))
	for g := range groups {
		got, err := adm.FetchOffsets(ctx, fmt.Sprint("g", g))
		if err != nil {
			t.Fatal(err)
		}
		for p := range int64(parts) {
			last := each - parts/inRequest + p/inRequest
			if o, ok := got.Lookup("t", int32(p)); !ok || o.At != last {
				t.Fatalf("group %d, partition %d: %d, want %d", g, p, o.At, last)
			}
		}
	}
	m := metrics(t, b)
	loaded, secs := m[`varve_coordinator_partition_load_seconds_count{coordinator="group"}`], m[`varve_coordinator_partition_load_seconds_sum{coordinator="group"}`]
	if loaded != 1 || secs <= 0 || m[`varve_coordinator_partitions{coordinator="group",state="active"}`] != 1 {
		t.Errorf("the partition was loaded %v times, in %v s", loaded, secs)
	}
	n := each * groups * inRequest
	t.Logf("%d offsets committed in %s, loaded in %.3f s (%.0f a second)", n, took.Round(time.Millisecond), secs, float64(n)/secs)
}
