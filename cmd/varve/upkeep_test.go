package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/internal/cluster"
)

// What an operator does to a cluster of processes is no error to applications: every broker is ended in order and
// started again, one after the other, and then etcd's leader is killed, under an idempotent producer and the two
// members of a group. No produce, poll or commit reports an error, and every record is there once and read in order.
//
// A group that is still forming when its coordinator moves is another matter: a rebalance of the classic protocol is kept by
// the coordinator alone, in Kafka as well, so that members which joined at one and come to the next with that generation have to
// join again, and franz-go says so. So all begins when the group is stable.
func TestUpkeepUnderLoad(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Set: []string{
		"default.replication.factor=3", "min.insync.replicas=2", "offsets.topic.replication.factor=3", "offsets.topic.num.partitions=2",
	}}))
	adm := kadm.NewClient(c.Client(t, kgo.MetadataMinAge(50*time.Millisecond)))
	if _, err := adm.CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	servertest.AgreeAt(t, c.Bootstrap()...)
	inSync := func() {
		t.Helper()
		eventually(t, func() error {
			topics, err := adm.ListTopicsWithInternal(t.Context())
			if err != nil {
				return err
			}
			topics.EachPartition(func(p kadm.PartitionDetail) {
				if p.Err != nil || len(p.ISR) != 3 {
					err = fmt.Errorf("%s-%d: leader %d, in sync %v, %v", p.Topic, p.Partition, p.Leader, p.ISR, p.Err)
				}
			})
			return err
		})
	}

	var l ledger
	var loads sync.WaitGroup
	stop, over := make(chan struct{}), make(chan struct{})
	producer := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.DefaultProduceTopic("t"))
	loads.Go(func() {
		l.produce(producer, "t", stop, func(err error) { t.Errorf("a record was given up: %v", err) })
	})
	var mu sync.Mutex
	next := int64(0) // what the group has read, in the order of the log
	for i := range 2 {
		member := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.InstanceID(fmt.Sprint(i)),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(), kgo.FetchMaxWait(100*time.Millisecond))
		loads.Go(func() {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				fs := member.PollFetches(ctx)
				cancel()
				fs.EachError(func(topic string, p int32, err error) {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("member %d, %q-%d: %v", i, topic, p, err)
					}
				})
				mu.Lock()
				fs.EachRecord(func(r *kgo.Record) {
					if r.Offset > next {
						t.Errorf("member %d: offset %d after %d", i, r.Offset, next-1)
					}
					next = max(next, r.Offset+1)
					if n, ok := l.numberAt(r.Offset); ok && n != binary.BigEndian.Uint64(r.Value) {
						t.Errorf("offset %d: another record than was acknowledged there", r.Offset)
					}
				})
				mu.Unlock()
				if fs.NumRecords() > 0 {
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					if err := member.CommitUncommittedOffsets(ctx); err != nil {
						t.Errorf("member %d: commit: %v", i, err)
					}
					cancel()
				}
				member.AllowRebalance()
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	endAll := sync.OnceFunc(func() { close(over) })
	endProducer := sync.OnceFunc(func() { close(stop) })
	defer func() { endProducer(); endAll(); loads.Wait() }()
	more := func() {
		t.Helper()
		before := l.len()
		eventually(t, func() error {
			if n := l.len(); n < before+500 {
				return fmt.Errorf("%d records acknowledged of 500", n-before)
			}
			return nil
		})
	}

	eventually(t, func() error { return stable(t.Context(), adm, "g", 2) })
	more()
	inSync()
	for _, b := range c.Brokers {
		if err := b.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		more()
		inSync()
	}
	leader := etcdLeader(t, c)
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	more()
	if other := etcdLeader(t, c); other.Name == leader.Name {
		t.Errorf("%s leads, and is not there", other.Name)
	}
	more()
	if err := leader.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	more()
	inSync()
	endProducer()
	eventually(t, func() error {
		ends, err := adm.ListEndOffsets(t.Context(), "t")
		if err != nil {
			return err
		}
		end, _ := ends.Lookup("t", 0)
		mu.Lock()
		defer mu.Unlock()
		if next != end.Offset {
			return fmt.Errorf("the group has read up to %d of %d", next, end.Offset)
		}
		return nil
	})
	endAll()
	loads.Wait()
	l.checkWith(t, c.Client(t, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 0)
}

// stable is an error until a group has so many members, and nothing is left to be agreed upon.
func stable(ctx context.Context, adm *kadm.Client, group string, members int) error {
	groups, err := adm.DescribeGroups(ctx, group)
	if err == nil {
		err = groups.Error()
	}
	if g := groups[group]; err == nil && (g.State != "Stable" || len(g.Members) != members) {
		err = fmt.Errorf("group %s is %s, with %d members", group, g.State, len(g.Members))
	}
	return err
}

// etcdLeader waits until some member of etcd leads.
func etcdLeader(t *testing.T, c *cluster.Cluster) (leader *cluster.Server) {
	t.Helper()
	eventually(t, func() error {
		for i, e := range c.Describe().Etcd {
			cl, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Client}, DialTimeout: time.Second})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			st, err := cl.Status(ctx, e.Client)
			cancel()
			cl.Close()
			if err == nil && st.Leader == st.Header.MemberId {
				leader = c.Etcd[i]
				return nil
			}
		}
		return errors.New("no member of etcd leads")
	})
	return leader
}
