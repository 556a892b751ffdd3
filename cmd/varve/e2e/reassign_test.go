package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
)

// A partition grows from one broker to three, moves, returns and shrinks while it
// is written to; its leader goes where it is preferred; and a broker that has
// nothing of it any more is taken out. Every record is there once.
func TestReassignment(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	adm := kadm.NewClient(brokers[0].Client())
	create := kmsg.NewPtrCreateTopicsRequest()
	create.TimeoutMillis = 30_000
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "a", -1, -1
	assigned := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
	assigned.Replicas = []int32{1}
	minISR := kmsg.NewCreateTopicsRequestTopicConfig()
	minISR.Name, minISR.Value = "min.insync.replicas", kmsg.StringPtr("2")
	topic.ReplicaAssignment, topic.Configs = append(topic.ReplicaAssignment, assigned), append(topic.Configs, minISR)
	create.Topics = append(create.Topics, topic)
	if resp, err := create.RequestWith(ctx, brokers[0].Client()); err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatal(resp, err)
	}
	servertest.Agree(t, brokers)
	state := func() kadm.PartitionDetail {
		t.Helper()
		topics, err := adm.ListTopics(ctx, "a")
		if err != nil || topics["a"].Err != nil {
			t.Fatal(err, topics["a"].Err)
		}
		return topics["a"].Partitions[0]
	}
	alter := func(target ...int32) error {
		var req kadm.AlterPartitionAssignmentsReq
		req.Assign("a", 0, target)
		if len(target) == 0 {
			req = kadm.AlterPartitionAssignmentsReq{}
			req.CancelAssign("a", 0)
		}
		resp, err := adm.AlterPartitionAssignments(ctx, req)
		if err != nil {
			return err
		}
		return resp.Error()
	}
	settled := func(want ...int32) {
		t.Helper()
		servertest.Eventually(t, func() error {
			moving, err := adm.ListPartitionReassignments(ctx, kadm.TopicsSet{"a": {0: {}}})
			if err != nil {
				return err
			}
			if p := state(); len(moving) > 0 || !slices.Equal(p.Replicas, want) || len(p.ISR) != len(want) {
				return fmt.Errorf("replicas %v, in sync %v, leader %d; moving: %v", p.Replicas, p.ISR, p.Leader, moving)
			}
			return nil
		})
	}

	// Somebody writes all the time, and waits for each record.
	var n atomic.Int64
	writer := brokers[0].Client(seeds(brokers), kgo.MetadataMinAge(50*time.Millisecond))
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			r := &kgo.Record{Topic: "a", Key: []byte(strconv.FormatInt(n.Load(), 10))}
			if err := writer.ProduceSync(ctx, r).FirstErr(); err != nil {
				stopped <- err
				return
			}
			n.Add(1)
		}
	}()
	more := func() {
		t.Helper()
		servertest.Eventually(t, func() func() error {
			from := n.Load()
			return func() error {
				if n.Load() < from+5 {
					return fmt.Errorf("%d records", n.Load()-from)
				}
				return nil
			}
		}())
	}

	more()
	for _, target := range [][]int32{{1, 2, 3}, {3, 2, 1}, {3, 2}, {2}, {1, 3}} {
		if err := alter(target...); err != nil {
			t.Fatal(target, err)
		}
		settled(target...)
		if p := state(); !slices.Contains(target, p.Leader) {
			t.Fatalf("%d leads %v", p.Leader, target)
		}
		more()
	}
	if err := alter(); err == nil {
		t.Fatal("a reassignment that is over was cancelled")
	}
	results, err := adm.ElectLeaders(ctx, kadm.ElectPreferredReplica, kadm.TopicsSet{"a": {0: {}}})
	if err != nil {
		t.Fatal(err)
	}
	if r := results["a"][0]; r.Err != nil && state().Leader != 1 {
		t.Fatalf("leader %d: %v", state().Leader, r.Err)
	}
	more()

	// Broker 2 has nothing of it, ends, and is taken out.
	brokers[1].Stop()
	unregister := kmsg.NewPtrUnregisterBrokerRequest()
	unregister.BrokerID = 2
	servertest.Eventually(t, func() error { // as soon as it is fenced
		resp, err := unregister.RequestWith(ctx, brokers[0].Client())
		if err == nil && resp.ErrorCode != 0 {
			err = fmt.Errorf("error %d: %s", resp.ErrorCode, *resp.ErrorMessage)
		}
		return err
	})
	if err := alter(1, 2); err == nil {
		t.Fatal("a replica on a broker that is not registered")
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	for _, b := range []*servertest.Broker{brokers[0], brokers[2]} {
		readAll(t, b, "a", int(n.Load()))
	}
}
