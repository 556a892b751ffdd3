package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
)

// Two histories of one partition, each of which was led alone, by an operator's
// word. The second is in the bucket when the first, longer one is elected again:
// what was uploaded stays, and nobody is shown anything else at these offsets.
func TestUncleanLeaderHasAnotherHistory(t *testing.T) {
	bucket := objstore.NewFaulty(objstore.NewMem(), 1)
	brokers := servertest.StartCluster(t, 3, servertest.Options{Bucket: bucket})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cl := brokers[2].Client(kgo.MetadataMinAge(50 * time.Millisecond))
	adm := kadm.NewClient(cl)
	bucket.SetOutage(true)

	create := kmsg.NewPtrCreateTopicsRequest()
	create.TimeoutMillis = 30_000
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "a", -1, -1
	assigned := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
	assigned.Replicas = []int32{1, 2}
	topic.ReplicaAssignment = append(topic.ReplicaAssignment, assigned)
	create.Topics = append(create.Topics, topic)
	if resp, err := create.RequestWith(ctx, cl); err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatal(resp, err)
	}
	servertest.Agree(t, brokers)
	leads := func(leader int32, isr ...int32) {
		t.Helper()
		servertest.Eventually(t, func() error {
			topics, err := adm.ListTopics(ctx, "a")
			if err != nil {
				return err
			}
			if p := topics["a"].Partitions[0]; p.Leader != leader || !slices.Equal(p.ISR, isr) {
				return fmt.Errorf("leader %d, in sync %v", p.Leader, p.ISR)
			}
			return nil
		})
	}
	elect := func() {
		t.Helper()
		r, err := adm.ElectLeaders(ctx, kadm.ElectLiveReplica, kadm.TopicsSet{"a": {0: {}}})
		if err == nil {
			err = r["a"][0].Err
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	write := func(what string, n int) (written []string) {
		t.Helper()
		for i := range n {
			v := fmt.Sprint(what, " ", i)
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "a", Value: []byte(v)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			written = append(written, v)
		}
		return written
	}
	read := func() {
		t.Helper()
		c := brokers[2].Client(kgo.ConsumeTopics("a"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		defer c.Close()
		var got []string
		for len(got) < len(want) {
			fs := c.PollFetches(ctx)
			if ctx.Err() != nil {
				t.Fatalf("%d records of %d", len(got), len(want))
			}
			fs.EachRecord(func(r *kgo.Record) {
				if r.Offset != int64(len(got)) {
					t.Fatalf("offset %d after %d records", r.Offset, len(got))
				}
				got = append(got, string(r.Value))
			})
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %q", got)
		}
	}

	leads(1, 1, 2)
	want = write("both", 10)
	brokers[1].Stop()
	leads(1, 1)
	write("alone and never uploaded", 60)
	brokers[0].Stop()
	leads(-1, 1)
	if err := brokers[1].Restart(nil); err != nil {
		t.Fatal(err)
	}
	elect()
	leads(2, 2)
	want = append(want, write("uploaded", 20)...)
	bucket.SetOutage(false)
	brokers[1].Remote("a", false)
	brokers[1].Stop()
	leads(-1, 2)
	if err := brokers[0].Restart(nil); err != nil {
		t.Fatal(err)
	}
	elect()
	leads(1, 1)
	want = append(want, write("after", 5)...)
	read()
	if err := brokers[1].Restart(nil); err != nil {
		t.Fatal(err)
	}
	leads(1, 1, 2)
	brokers[0].Stop()
	leads(2, 2)
	read()
	want = append(want, write("later", 5)...)
	read()
}
