package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve/varve/wal/batch"
)

// toolsTransactions runs every command of kafka-transactions.
func (h *harness) toolsTransactions(ctx context.Context) {
	const topic, id, name = "tools-txn", "tools-txn-id", "kafka-transactions"
	h.check("tools", name+": list, describe, describe-producers, forceTerminateTransaction", func() error {
		if _, err := h.admin.CreateTopic(ctx, 1, 1, nil, topic); err != nil {
			return err
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.TransactionalID(id), kgo.TransactionTimeout(10*time.Minute), kgo.DefaultProduceTopic(topic))
		if err != nil {
			return err
		}
		defer cl.Close()
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		if err := cl.ProduceSync(ctx, kgo.StringRecord("open")).FirstErr(); err != nil {
			return err
		}
		pid, epoch, err := cl.ProducerID(ctx)
		if err != nil {
			return err
		}
		for _, q := range []struct {
			want string
			args []string
		}{
			{fmt.Sprintf(`(?m)^%s\s+%d\s+%d\s+Ongoing`, id, h.node, pid), []string{"list"}},
			{fmt.Sprintf(`(?m)^%d\s+%s\s+%d\s+%d\s+Ongoing\s+\d+\s+\d+\s+\d+\s+%s-0`, h.node, id, pid, epoch, topic), []string{"describe", "--transactional-id", id}},
			{fmt.Sprintf(`(?m)^%d\s+%d\s+-?\d+\s+0\s+\d+\s+0\s*$`, pid, epoch), []string{"describe-producers", "--topic", topic, "--partition", "0"}},
			{``, []string{"forceTerminateTransaction", "--transactionalId", id}},
		} {
			if err := h.expect(ctx, []string{q.want}, name, q.args...); err != nil {
				return err
			}
		}
		// The abort's marker goes to the partition when the coordinator gets to it.
		if err := h.stableAt(ctx, topic, 2); err != nil {
			return err
		}
		if err := cl.EndTransaction(ctx, kgo.TryCommit); err == nil {
			return errors.New("its producer has committed what was aborted")
		}
		return h.refuse(ctx, `[Nn]ot ?[Ff]ound|could not be found`, name, "describe", "--transactional-id", "tools-txn-none")
	})
	h.check("tools", name+": find-hanging, and abort of what it finds", func() error {
		const topic = "tools-hangs"
		if _, err := h.admin.CreateTopic(ctx, 1, 1, nil, topic); err != nil {
			return err
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot))
		if err != nil {
			return err
		}
		defer cl.Close()
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("before")}).FirstErr(); err != nil {
			return err
		}
		pid, err := h.hang(ctx, topic)
		if err != nil {
			return err
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("behind")}).FirstErr(); err != nil {
			return err
		}
		if err := h.stableAt(ctx, topic, 1); err != nil {
			return err
		}
		row := fmt.Sprintf(`(?m)^%s\s+0\s+%d\s+0\s+-1\s+1\s+\d+\s+2\d\s*$`, topic, pid)
		if err := h.expect(ctx, []string{row}, name, "find-hanging", "--broker-id", strconv.Itoa(int(h.node))); err != nil {
			return err
		}
		if err := h.refuse(ctx, `Could not find any open transactions starting at offset 0`, name, "abort", "--topic", topic, "--partition", "0", "--start-offset", "0"); err != nil {
			return err
		}
		if _, err := h.tool(ctx, "", name, "abort", "--topic", topic, "--partition", "0", "--start-offset", "1"); err != nil {
			return err
		}
		if err := h.stableAt(ctx, topic, 4); err != nil {
			return err
		}
		return h.expect(ctx, []string{`^Topic\s[^\n]*\n$`}, name, "find-hanging", "--topic", topic)
	})
}

// hang leaves a transaction in partition 0 of a topic that no coordinator knows, begun 20 minutes ago: what brokers
// without verification let happen. It returns the producer's id.
func (h *harness) hang(ctx context.Context, topic string) (int64, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.MaxVersions(kversion.V3_6_0()))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	init := kmsg.NewPtrInitProducerIDRequest()
	producer, err := init.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(producer.ErrorCode)
	}
	if err != nil {
		return 0, err
	}
	bb := batch.NewBuilder()
	bb.ProducerID, bb.ProducerEpoch, bb.BaseSequence, bb.Transactional = producer.ProducerID, producer.ProducerEpoch, 0, true
	bb.Add(time.Now().Add(-20*time.Minute).UnixMilli(), nil, []byte("hangs"))
	run, err := bb.Build()
	if err != nil {
		return 0, err
	}
	req := kmsg.NewPtrProduceRequest()
	req.TransactionID, req.Acks, req.TimeoutMillis = kmsg.StringPtr("tools-hangs"), -1, 10_000
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: topic, Partitions: []kmsg.ProduceRequestTopicPartition{{Records: run}}}}
	const verification = "transaction.partition.verification.enable"
	set := func(c kadm.AlterConfig) error {
		answers, err := h.admin.AlterBrokerConfigs(ctx, []kadm.AlterConfig{c})
		for _, a := range answers {
			err = errors.Join(err, a.Err)
		}
		return err
	}
	if err := set(kadm.AlterConfig{Op: kadm.SetConfig, Name: verification, Value: kadm.StringPtr("false")}); err != nil {
		return 0, err
	}
	// The setting may take a moment to be in force: until then the batch is refused.
	deadline := time.Now().Add(30 * time.Second)
	for {
		answer, err := req.RequestWith(ctx, cl)
		if err != nil {
			return 0, err
		}
		p := answer.Topics[0].Partitions[0]
		if p.ErrorCode == 0 {
			break
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the batch that is to hang: %w", kerr.ErrorForCode(p.ErrorCode))
		}
		time.Sleep(100 * time.Millisecond)
	}
	return producer.ProducerID, set(kadm.AlterConfig{Op: kadm.DeleteConfig, Name: verification})
}

// stableAt waits for the last stable offset of partition 0 of a topic.
func (h *harness) stableAt(ctx context.Context, topic string, want int64) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		offsets, err := h.admin.ListCommittedOffsets(ctx, topic)
		if err == nil {
			err = offsets.Error()
		}
		if err != nil {
			return err
		}
		at, _ := offsets.Lookup(topic, 0)
		if at.Offset == want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the last stable offset of %s-0 is %d, want %d", topic, at.Offset, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
