package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

// hang produces a transactional batch of a producer that no coordinator knows.
func hang(t *testing.T, b *servertest.Broker, topic string, producerID int64) {
	t.Helper()
	bb := batch.NewBuilder()
	bb.ProducerID, bb.ProducerEpoch, bb.BaseSequence, bb.Transactional = producerID, 3, 0, true
	bb.Add(time.Now().UnixMilli(), nil, []byte("hangs"))
	run, err := bb.Build()
	if err != nil {
		t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.TransactionID, req.Acks, req.TimeoutMillis = kmsg.StringPtr("unknown"), -1, 10_000
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: topic, Partitions: []kmsg.ProduceRequestTopicPartition{{Records: run}}}}
	resp, err := req.RequestWith(t.Context(), b.Client(kgo.MaxVersions(kversion.V3_6_0())))
	if err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatal(err, resp)
	}
}

func TestTxn(t *testing.T) {
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"transaction.partition.verification.enable": "false", "transaction.state.log.num.partitions": "2"}})
	b.CreateTopic("t", 1)
	cl := b.Client(kgo.TransactionalID("tx\x1b[2J"), kgo.DefaultProduceTopic("t"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, kgo.StringRecord("a")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) result {
		t.Helper()
		return varve(t, "", append(append([]string{"txn"}, args...), "--bootstrap-server", b.Addr())...)
	}
	const nothing = "TRANSACTIONAL ID  STATE  PRODUCER ID  COORDINATOR\n"
	run("list").want(t, 0, `tx\x1b[2J         Ongoing`, "")
	run("list", "--state", "Empty").want(t, 0, nothing, "")
	run("list", "--state", "Open").want(t, 2, "", `there is no state "Open"; there are: Empty, Ongoing`)
	run("describe", "tx\x1b[2J").want(t, 0, "t-0", "")
	run("list", "--state", "ongoing").want(t, 0, "Ongoing", "")
	run("list", "--older-than", "1ms", "--pattern", "t.*").want(t, 0, "Ongoing", "")
	run("list", "--older-than", "1h").want(t, 0, nothing, "")
	run("list", "--pattern", "x.*").want(t, 0, nothing, "")
	run("list", "--pattern", "(").want(t, 2, "", `--pattern "(" is no regular expression`)
	run("list", "--older-than", "-1s").want(t, 2, "", "--older-than -1s is negative")
	run("describe", "").want(t, 2, "", "the transactional id is empty")
	run("describe", "a", "a").want(t, 2, "", `transactional id "a" is given twice`)
	run("describe", "nobody").want(t, 1, "", `transactional id "nobody"`)
	var ds []describedTxn
	if err := json.Unmarshal([]byte(run("describe", "tx\x1b[2J", "-o", "json").out), &ds); err != nil || len(ds) != 1 || ds[0].State != "Ongoing" ||
		fmt.Sprint(ds[0].Partitions) != "[{t 0}]" {
		t.Errorf("%v: %+v", err, ds)
	}

	run("abort", "t").want(t, 2, "", "the topic and the partition is missing")
	run("abort", "t", "x", "--start-offset", "0").want(t, 2, "", "the partition must be a number")
	run("abort", "t", "0").want(t, 2, "", "which transaction?")
	run("abort", "t", "7", "--start-offset", "0").want(t, 1, "", "t-7")
	run("abort", "t", "0", "--start-offset", "9").want(t, 1, "", "no transaction began at offset 9; open ones began at 0")
	run("abort", "t", "0", "--start-offset", "0").want(t, 1, "", "the transaction does not hang")
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	servertest.Eventually(t, func() error {
		if r := run("list"); !strings.Contains(r.out, "CompleteCommit") {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	run("abort", "t", "0", "--start-offset", "0").want(t, 1, "", "no transaction is open in the partition")

	stable := func() int64 {
		t.Helper()
		o, err := kadm.NewClient(b.Client()).ListCommittedOffsets(ctx, "t")
		if err != nil || o.Error() != nil {
			t.Fatal(err, o.Error())
		}
		at, _ := o.Lookup("t", 0)
		return at.Offset
	}
	hang(t, b, "t", 4711)
	if at := stable(); at != 2 {
		t.Fatalf("with a hanging transaction the last stable offset is %d", at)
	}
	// Only what no coordinator knows hangs, and only what is as old as that.
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, kgo.StringRecord("goes on")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for _, where := range [][]string{nil, {"--topic", "t"}, {"--topic", "t:0"}} {
		var hanging []hangingTxn
		r := run(append([]string{"find-hanging", "--max-transaction-timeout", "0s", "-o", "json"}, where...)...)
		if err := json.Unmarshal([]byte(r.out), &hanging); err != nil || r.code != 0 || len(hanging) != 1 || hanging[0].StartOffset != 2 || hanging[0].ProducerID != 4711 {
			t.Errorf("%v: %v: %+v", where, err, r)
		}
	}
	const none = "TOPIC  PARTITION  START-OFFSET  PRODUCER ID  EPOCH  LAST RECORD\n"
	run("find-hanging").want(t, 0, none, "")
	run("find-hanging", "--max-transaction-timeout", "0s").want(t, 0, "t      0          2             4711         3      20", "")
	run("find-hanging", "--topic", "t:1").want(t, 1, "", "topic t partition 1: there is no such partition; the topic has 1")
	run("find-hanging", "--topic", "none").want(t, 1, "", "topic none")
	run("find-hanging", "--max-transaction-timeout", "-1s").want(t, 2, "", "must not be negative")
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}

	run("abort", "t", "0", "--start-offset", "2", "--dry-run").want(t, 0, "producer 4711, epoch 3, would be aborted", "")
	if at := stable(); at != 2 {
		t.Fatalf("after a dry run the last stable offset is %d", at)
	}
	run("abort", "t", "0", "--start-offset", "2").want(t, 0, "producer 4711, epoch 3, aborted", "")
	run("find-hanging", "--max-transaction-timeout", "0s").want(t, 0, none, "")
	servertest.Eventually(t, func() error { // the marker of the one that committed may still be on its way
		if at := stable(); at != 6 {
			return fmt.Errorf("after the abort the last stable offset is %d", at)
		}
		return nil
	})

	// By force, also what a coordinator knows.
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, kgo.StringRecord("b")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r := run("abort", "t", "0", "--start-offset", "6", "--force", "-o", "json")
	var a abortedTxn
	if err := json.Unmarshal([]byte(r.out), &a); err != nil || r.code != 0 || !a.Aborted || a.StartOffset != 6 {
		t.Errorf("%v: %+v", err, r)
	}
	if at := stable(); at != 8 {
		t.Fatalf("after the abort by force the last stable offset is %d", at)
	}
}
