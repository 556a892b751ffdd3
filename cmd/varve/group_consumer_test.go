package main

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

// TestGroupDescribeConsumers: a group of the consumer protocol is described as others are, by APIs of its own.
func TestGroupDescribeConsumers(t *testing.T) {
	s := servertest.Start(t, servertest.Options{Settings: map[string]string{"offsets.topic.num.partitions": "1"}})
	s.CreateTopic("t", 2)
	b := "--bootstrap-server=" + s.Addr()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cl := s.Client(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()), kgo.ClientID("reader"),
		kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for range 3 {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("v")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; n < 3; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			t.Fatal(err)
		}
		n += fs.NumRecords()
	}
	if err := cl.CommitUncommittedOffsets(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	varve(t, "", "group", "describe", "g", b).want(t, 0, "protocol     consumer uniform", "")
	r := varve(t, "", "group", "describe", "g", b, "-o", "json")
	for _, want := range []string{`"state": "Stable"`, `"client": "reader"`, `"committed": 3`, `"log_end": 4`, `"total_lag": 1`, `"partition": 1`} {
		r.want(t, 0, want, "")
	}
	varve(t, "", "group", "list", b).want(t, 0, "g      Stable", "")
	varve(t, "", "group", "describe", "none", b).want(t, 1, "", `group "none"`)
}
