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
	"github.com/twmb/franz-go/pkg/kgo"

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
