package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
)

// inSync waits until every partition of a topic has n replicas in sync, and
// returns who leads the first.
func inSync(t *testing.T, b *servertest.Broker, topic string, n int) (leader int32) {
	t.Helper()
	adm := kadm.NewClient(b.Client(kgo.MetadataMinAge(10 * time.Millisecond))) // answers are cached for that long
	servertest.Eventually(t, func() error {
		topics, err := adm.ListTopics(context.Background(), topic)
		if err != nil {
			return err
		}
		td := topics[topic]
		if td.Err != nil || len(td.Partitions) == 0 {
			return fmt.Errorf("%s: %v", topic, td.Err)
		}
		for _, p := range td.Partitions {
			if len(p.ISR) != n {
				return fmt.Errorf("%s-%d: leader %d, replicas %v, isr %v", topic, p.Partition, p.Leader, p.Replicas, p.ISR)
			}
		}
		leader = td.Partitions[0].Leader
		return nil
	})
	return leader
}

// put produces n records and returns the offset behind them, by partition.
func put(t *testing.T, cl *kgo.Client, topic string, from, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := from; i < from+n; i++ {
		r := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "%d", i), Value: fmt.Appendf(nil, "value %d", i)}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

// readAll reads a topic to its end and checks that it holds each of n records once.
func readAll(t *testing.T, b *servertest.Broker, topic string, n int, opts ...kgo.Opt) {
	t.Helper()
	cl := b.Client(append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))...)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	seen := map[string]int{}
	for len(seen) < n {
		fs := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("%d of %d records: %v", len(seen), n, errors.Join(err, fs.Err()))
		}
		fs.EachRecord(func(r *kgo.Record) { seen[string(r.Key)]++ })
	}
	for k, times := range seen {
		if times != 1 {
			t.Errorf("record %s is there %d times", k, times)
		}
	}
}

func byID(brokers []*servertest.Broker, id int32) *servertest.Broker { return brokers[id-1] }

// A topic with three replicas outlives its leaders, one after the other, and
// every one of them comes back into the ISR.
func TestReplication(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	brokers[1].CreateReplicated("t", 4, 3, "min.insync.replicas", "2")
	inSync(t, brokers[0], "t", 3)
	cl := clientOf(brokers, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	n := 0
	more := func(k int) { put(t, cl, "t", n, k); n += k }
	more(200)
	for range 3 {
		alive := slices.Clone(brokers)
		leader := inSync(t, brokers[0], "t", 3)
		gone := byID(brokers, leader)
		alive = slices.DeleteFunc(alive, func(b *servertest.Broker) bool { return b == gone })
		gone.Stop()
		more(100)
		readAll(t, alive[0], "t", n)
		if err := gone.Restart(nil); err != nil {
			t.Fatal(err)
		}
		more(50)
		inSync(t, alive[0], "t", 3)
	}
	for _, b := range brokers {
		readAll(t, b, "t", n)
	}
}

// fetched is how many bytes of records a broker has sent to consumers.
func fetched(t *testing.T, b *servertest.Broker) float64 {
	t.Helper()
	return metricOf(t, b, "varve_fetched_bytes_total")
}

// A consumer reads from the replica in its own rack, what is only in the bucket
// too, and from the leader when there is none (KIP-392).
func TestNearestReplica(t *testing.T) {
	racks := []string{"", "a", "b", "c"}
	brokers := servertest.StartCluster(t, 3, servertest.Options{Of: func(id int) map[string]string { return map[string]string{"broker.rack": racks[id]} }})
	brokers[0].CreateReplicated("t", 1, 3)
	leader := inSync(t, brokers[0], "t", 3)
	n := 300
	put(t, brokers[0].Client(kgo.DefaultProduceTopic("t")), "t", 0, n)
	for id := int32(1); id <= 3; id++ {
		before := map[int32]float64{}
		for other := int32(1); other <= 3; other++ {
			before[other] = fetched(t, byID(brokers, other))
		}
		readAll(t, brokers[0], "t", n, kgo.Rack(racks[id]))
		for other := int32(1); other <= 3; other++ {
			if got := fetched(t, byID(brokers, other)) - before[other]; (got > 0) != (other == id) {
				t.Errorf("a consumer in the rack of broker %d, leader %d: %.0f bytes came from broker %d", id, leader, got, other)
			}
		}
	}
	before := fetched(t, byID(brokers, leader))
	readAll(t, brokers[0], "t", n, kgo.Rack("elsewhere"))
	if fetched(t, byID(brokers, leader)) == before {
		t.Error("a consumer in a rack without a replica does not read from the leader")
	}
}

// With replica.selector.class=LeaderSelector it reads from the leader wherever it is.
func TestLeaderSelector(t *testing.T) {
	racks := []string{"", "a", "b"}
	brokers := servertest.StartCluster(t, 2, servertest.Options{Of: func(id int) map[string]string {
		return map[string]string{"broker.rack": racks[id], "replica.selector.class": "org.apache.kafka.common.replica.LeaderSelector"}
	}})
	brokers[0].CreateReplicated("t", 1, 2)
	leader := inSync(t, brokers[0], "t", 2)
	follower := 3 - leader
	put(t, brokers[0].Client(kgo.DefaultProduceTopic("t")), "t", 0, 100)
	readAll(t, brokers[0], "t", 100, kgo.Rack(racks[follower]))
	if got := fetched(t, byID(brokers, follower)); got > 0 {
		t.Errorf("%.0f bytes came from the follower", got)
	}
}

// Who asks a broker that does not lead is told who does, and where (KIP-951).
func TestNewLeaderInTheAnswer(t *testing.T) {
	brokers := servertest.StartCluster(t, 2, servertest.Options{})
	brokers[0].CreateReplicated("t", 1, 2)
	leader := inSync(t, brokers[0], "t", 2)
	other := 3 - leader
	cl := brokers[0].Client()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	topics, err := kadm.NewClient(cl).ListTopics(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	b := kmsg.NewProduceRequest()
	b.Acks, b.TimeoutMillis = -1, 1000
	bt, bp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	bt.Topic, bt.TopicID = "t", topics["t"].ID
	bp.Records = plainBatch(t, []byte("x"))
	bt.Partitions = append(bt.Partitions, bp)
	b.Topics = append(b.Topics, bt)
	got, err := cl.Broker(int(other)).Request(ctx, &b)
	if err != nil {
		t.Fatal(err)
	}
	resp := got.(*kmsg.ProduceResponse)
	p := resp.Topics[0].Partitions[0]
	if p.ErrorCode != kerr.NotLeaderForPartition.Code || p.CurrentLeader.LeaderID != leader || p.CurrentLeader.LeaderEpoch < 0 {
		t.Errorf("produce: %+v", p)
	}
	if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != leader || net.JoinHostPort(resp.Brokers[0].Host, strconv.Itoa(int(resp.Brokers[0].Port))) != byID(brokers, leader).Addr() {
		t.Errorf("produce: endpoints %+v, the leader is %d at %s", resp.Brokers, leader, byID(brokers, leader).Addr())
	}
}

// replicated are the settings of a cluster whose own topics outlive a broker.
var replicated = map[string]string{
	"default.replication.factor": "3", "min.insync.replicas": "2",
	"offsets.topic.replication.factor": "3", "offsets.topic.num.partitions": "5",
	"transaction.state.log.replication.factor": "3", "transaction.state.log.min.isr": "2", "transaction.state.log.num.partitions": "5",
	"group.initial.rebalance.delay.ms": "0",
}

func seeds(brokers []*servertest.Broker) kgo.Opt {
	var addrs []string
	for _, b := range brokers {
		addrs = append(addrs, b.Addr())
	}
	return kgo.SeedBrokers(addrs...)
}

// clientOf is a client of all brokers that is quick to look for leaders that moved.
func clientOf(brokers []*servertest.Broker, opts ...kgo.Opt) *kgo.Client {
	return brokers[0].Client(append([]kgo.Opt{seeds(brokers), kgo.MetadataMinAge(50 * time.Millisecond)}, opts...)...)
}

// All brokers are restarted, one after the other, under idempotent producers and
// a consumer group: the applications see no error, every record once and in order.
// It begins when the group is stable; see TestUpkeepUnderLoad of the command.
func TestRollingRestart(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{Settings: replicated})
	const partitions = 6
	brokers[0].CreateReplicated("t", partitions, 3)
	inSync(t, brokers[0], "t", 3)
	ctx := patience(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup

	var sent [partitions]atomic.Int64
	for p := range int32(partitions) {
		cl := clientOf(brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := sent[p].Load()
				r := &kgo.Record{Topic: "t", Partition: p, Value: strconv.AppendInt(nil, n, 10)}
				if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
					t.Errorf("partition %d, record %d: %v", p, n, err)
					return
				}
				sent[p].Add(1)
			}
		})
	}
	// The records of a partition, over both members, in the order in which they are
	// committed: from what was last committed on there may be repetitions, no gaps.
	var next [partitions]atomic.Int64
	done := make(chan struct{})
	for range 2 {
		cl := clientOf(brokers, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(), kgo.FetchMaxWait(100*time.Millisecond))
		wg.Go(func() {
			for {
				poll, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				fs := cl.PollFetches(poll)
				cancel()
				fs.EachError(func(topic string, p int32, err error) {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("consumer, %q-%d: %v", topic, p, err)
					}
				})
				fs.EachRecord(func(r *kgo.Record) {
					got, _ := strconv.ParseInt(string(r.Value), 10, 64)
					if got != r.Offset {
						t.Errorf("%s-%d: record %d at offset %d", r.Topic, r.Partition, got, r.Offset)
					}
					n := next[r.Partition].Load()
					if got > n {
						t.Errorf("%s-%d: record %d follows %d", r.Topic, r.Partition, got, n-1)
					}
					next[r.Partition].Store(max(n, got+1))
				})
				if err := cl.CommitUncommittedOffsets(ctx); err != nil {
					t.Errorf("commit: %v", err)
				}
				cl.AllowRebalance()
				select {
				case <-done:
					return
				case <-ctx.Done():
					return
				default:
				}
			}
		})
	}
	adm := kadm.NewClient(clientOf(brokers))
	servertest.Eventually(t, func() error {
		groups, err := adm.DescribeGroups(ctx, "g")
		if err == nil {
			err = groups.Error()
		}
		// As long as one has nothing, the other has been told to give half of its partitions up, and a rebalance follows.
		var has []int
		g := groups["g"]
		for _, m := range g.Members {
			n := 0
			if a, ok := m.Assigned.AsConsumer(); ok {
				for _, t := range a.Topics {
					n += len(t.Partitions)
				}
			}
			has = append(has, n)
		}
		if err == nil && (g.State != "Stable" || !slices.Equal(has, []int{partitions / 2, partitions / 2})) {
			err = fmt.Errorf("the group is %s, and its members have %v partitions", g.State, has)
		}
		return err
	})
	for _, b := range brokers {
		at := sent[0].Load()
		servertest.Eventually(t, func() error {
			if n := sent[0].Load(); n < at+20 {
				return fmt.Errorf("%d records", n-at)
			}
			return nil
		})
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
		inSync(t, brokers[0], "t", 3)
	}
	close(stop)
	servertest.Eventually(t, func() error {
		for p := range sent {
			if s, n := sent[p].Load(), next[p].Load(); n < s {
				return fmt.Errorf("partition %d: %d of %d records consumed", p, n, s)
			}
		}
		return nil
	})
	close(done)
	wg.Wait()
}

// What an operator is shown of replicas: nothing amiss while all are in sync, who lacks what while one is away.
func TestReplicationMetrics(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	brokers[0].CreateReplicated("t", 6, 3, "min.insync.replicas", "3")
	inSync(t, brokers[0], "t", 3)
	sum := func(of []*servertest.Broker, name string) (n float64) {
		t.Helper()
		for _, b := range of {
			n += metricOf(t, b, name)
		}
		return n
	}
	is := func(of []*servertest.Broker, want map[string]float64) {
		t.Helper()
		servertest.Eventually(t, func() error {
			for name, n := range want {
				if got := sum(of, name); got != n {
					return fmt.Errorf("%s is %v, want %v", name, got, n)
				}
			}
			return nil
		})
	}
	is(brokers, map[string]float64{
		"varve_leader_partitions": 6, "varve_follower_partitions": 12, "varve_under_replicated_partitions": 0, "varve_under_min_isr_partitions": 0,
		"varve_offline_partitions": 0, "varve_active_controller": 1, "varve_fenced_brokers": 0,
	})
	put(t, clientOf(brokers), "t", 0, 50)
	if n := sum(brokers, "varve_replicated_bytes_total"); n == 0 {
		t.Error("nothing was copied")
	}
	brokers[2].Stop()
	is(brokers[:2], map[string]float64{
		"varve_leader_partitions": 6, "varve_under_replicated_partitions": 6, "varve_under_min_isr_partitions": 6, "varve_fenced_brokers": 1, "varve_active_controller": 1,
	})
	if n := sum(brokers[:2], "varve_isr_shrinks_total"); n == 0 {
		t.Error("no replica has left an ISR")
	}
	if n := sum(brokers[:2], "varve_leader_elections_total"); n == 0 {
		t.Error("nobody was elected")
	}
	if n := sum(brokers[:2], "varve_unclean_leader_elections_total"); n != 0 {
		t.Errorf("%v unclean elections", n)
	}
}

// drained waits until everything of a topic is in the bucket and no more than that in the logs of its leaders.
func drained(t *testing.T, brokers []*servertest.Broker, topic string, partitions int) {
	t.Helper()
	servertest.Eventually(t, func() error {
		n := 0
		for _, b := range brokers {
			list, err := b.Server().TierStatus(topic)
			if err != nil {
				return err
			}
			for _, st := range list {
				if st.RemoteEnd < st.HighWatermark || st.LocalStart < st.RemoteEnd {
					return fmt.Errorf("%s-%d: local start %d, remote end %d, high watermark %d", st.Topic, st.Partition, st.LocalStart, st.RemoteEnd, st.HighWatermark)
				}
				n++
			}
		}
		if n != partitions {
			return fmt.Errorf("%d of %d partitions are led", n, partitions)
		}
		return nil
	})
}

// A replica that comes back after its leader's log has let go of what it lacks begins at the remote end, and so does one
// that has lost its disk: what is in the bucket is not copied.
func TestReplicaBeginsAtTheRemoteEnd(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, b *servertest.Broker){
		"after a long absence": func(*testing.T, *servertest.Broker) {},
		"without its disk": func(t *testing.T, b *servertest.Broker) {
			if err := os.RemoveAll(filepath.Join(b.Dir(), "wal")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			brokers := servertest.StartCluster(t, 3, servertest.Options{})
			brokers[0].CreateReplicated("t", 2, 3, "min.insync.replicas", "1", "local.retention.bytes", "1")
			inSync(t, brokers[0], "t", 3)
			cl := clientOf(brokers, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
			n := 0
			more := func(k int) { t.Helper(); put(t, cl, "t", n, k); n += k }
			more(100)
			away, rest := brokers[2], brokers[:2]
			away.Stop()
			pad := make([]byte, 64<<10)
			ctx := patience(t)
			for range 100 { // what is not to be copied: 6.4 MB
				r := &kgo.Record{Topic: "t", Key: fmt.Appendf(nil, "%d", n), Value: pad}
				if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
					t.Fatal(err)
				}
				n++
			}
			drained(t, rest, "t", 2)
			lose(t, away)
			if err := away.Restart(nil); err != nil {
				t.Fatal(err)
			}
			inSync(t, brokers[0], "t", 3)
			if got := metricOf(t, away, "varve_replicated_bytes_total"); got > 1<<20 {
				t.Errorf("%.0f bytes were copied, although nearly all is in the bucket", got)
			}
			if got := metricOf(t, away, "varve_restarts_at_remote_end_total"); got != 2 {
				t.Errorf("%.0f partitions began at the remote end", got)
			}
			more(20)
			// It is as good as the others now.
			rest[0].Stop()
			more(20)
			inSync(t, away, "t", 2)
			rest[1].Stop()
			servertest.Eventually(t, func() error {
				r := &kgo.Record{Topic: "t", Key: fmt.Appendf(nil, "%d", n), Value: []byte("x")}
				return cl.ProduceSync(ctx, r).FirstErr()
			})
			n++
			readAll(t, away, "t", n)
		})
	}
}

// Processors that read, process and write in transactions go on while every broker is restarted, and with it the
// coordinators of their groups and transactions: what they have written is there once.
func TestCoordinatorsMove(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{Settings: replicated})
	brokers[0].CreateReplicated("in", 4, 3)
	brokers[0].CreateReplicated("out", 4, 3)
	inSync(t, brokers[0], "in", 3)
	inSync(t, brokers[0], "out", 3)
	ctx, cancel := context.WithCancel(patience(t))
	defer cancel()
	in := clientOf(brokers, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	n := 0
	more := func(k int) { t.Helper(); put(t, in, "in", n, k); n += k }

	var wg sync.WaitGroup
	var written atomic.Int64
	for i := range 2 {
		s, err := kgo.NewGroupTransactSession(seeds(brokers), kgo.TransactionalID(fmt.Sprintf("p%d", i)), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("in"),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.FetchMaxWait(100*time.Millisecond), kgo.SessionTimeout(6*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		wg.Go(func() {
			for ctx.Err() == nil {
				poll, stop := context.WithTimeout(ctx, 500*time.Millisecond)
				fs := s.PollFetches(poll)
				stop()
				if fs.NumRecords() == 0 {
					continue
				}
				if err := s.Begin(); err != nil {
					t.Errorf("begin: %v", err)
					return
				}
				promise := kgo.AbortingFirstErrPromise(s.Client())
				fs.EachRecord(func(r *kgo.Record) {
					s.Produce(ctx, &kgo.Record{Topic: "out", Key: r.Key, Value: r.Value}, promise.Promise())
				})
				ok := promise.Err() == nil
				committed, err := s.End(ctx, kgo.TransactionEndTry(ok))
				if err != nil && ctx.Err() == nil {
					t.Errorf("end: %v", err)
					return
				}
				if committed {
					written.Add(int64(fs.NumRecords()))
				}
			}
		})
	}
	await := func() {
		t.Helper()
		servertest.Eventually(t, func() error {
			if w := written.Load(); w < int64(n) {
				return fmt.Errorf("%d of %d records are written", w, n)
			}
			return nil
		})
	}
	more(200)
	await()
	for _, b := range brokers {
		b.Stop()
		more(50)
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
		more(50)
		await()
		inSync(t, brokers[0], "in", 3)
	}
	cancel()
	wg.Wait()
	if w := written.Load(); w != int64(n) {
		t.Errorf("%d records were written in transactions that committed, of %d", w, n)
	}
	readAll(t, brokers[0], "out", n, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
}

// Replication to a replica that is not in sync is bounded where its topic says so (KIP-73), on both sides, while others
// are not held up.
func TestThrottledReplication(t *testing.T) {
	for _, side := range []string{"leader", "follower"} {
		t.Run(side, func(t *testing.T) {
			const rate = 1 << 20
			brokers := servertest.StartCluster(t, 2, servertest.Options{Settings: map[string]string{side + ".replication.throttled.rate": strconv.Itoa(rate), "remote.flush.interval.ms": "3600000", "remote.object.bytes": "1073741824"}})
			brokers[0].CreateReplicated("slow", 1, 2, side+".replication.throttled.replicas", "*")
			brokers[0].CreateReplicated("fast", 1, 2)
			inSync(t, brokers[0], "slow", 2)
			// In sync, it is not throttled: nothing would be acknowledged at more than the rate.
			cl := clientOf(brokers, kgo.ProducerBatchCompression(kgo.NoCompression()))
			fill := func(topic string, n int) {
				t.Helper()
				for i := range n {
					r := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "%d", i), Value: make([]byte, 256<<10)}
					if err := cl.ProduceSync(patience(t), r).FirstErr(); err != nil {
						t.Fatal(err)
					}
				}
			}
			away := byID(brokers, 3-inSync(t, brokers[0], "slow", 2))
			away.Stop()
			fill("slow", 16) // 4 MiB
			fill("fast", 16)
			began := time.Now()
			if err := away.Restart(nil); err != nil {
				t.Fatal(err)
			}
			inSync(t, brokers[0], "fast", 2)
			fast := time.Since(began)
			inSync(t, brokers[0], "slow", 2)
			slow := time.Since(began)
			// A second's worth may pass at once, and what is asked for before the bound is exceeded once more.
			if least := time.Duration(float64(4<<20-rate-1<<20) / rate * float64(time.Second)); slow < least {
				t.Errorf("4 MiB were copied in %v, at a rate of %d bytes a second", slow, rate)
			}
			t.Logf("fast after %v, slow after %v", fast, slow)
		})
	}
}

// Every broker lists the replicas that it has, with what they take in its log; what is in object storage counts once, at
// the leader.
func TestLogDirsOfReplicas(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	brokers[0].CreateReplicated("t", 1, 3)
	brokers[0].CreateReplicated("one", 1, 1)
	cl := clientOf(brokers)
	put(t, cl, "t", 0, 50)
	put(t, cl, "one", 0, 50)
	leader := inSync(t, brokers[0], "t", 3)
	sizes := func() (map[int32]int64, int) {
		t.Helper()
		all, err := kadm.NewClient(cl).DescribeAllLogDirs(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		of, ones := map[int32]int64{}, 0
		for _, dirs := range all {
			dirs.EachPartition(func(p kadm.DescribedLogDirPartition) {
				switch p.Topic {
				case "t":
					of[p.Broker] = p.Size
				case "one":
					ones++
				}
				if p.OffsetLag < 0 || p.IsFuture {
					t.Errorf("%+v", p)
				}
			})
		}
		return of, ones
	}
	before, ones := sizes()
	if len(before) != 3 || before[1] != before[2] || before[1] != before[3] || before[1] == 0 || ones != 1 {
		t.Fatalf("sizes of the replicas by broker: %v, replicas of the other topic: %d", before, ones)
	}
	byID(brokers, leader).Remote("t", false)
	servertest.Eventually(t, func() error {
		if after, _ := sizes(); after[leader] < before[leader] {
			return fmt.Errorf("sizes were %v, with all of it in object storage %v, leader %d", before, after, leader)
		}
		return nil
	})
}

// A broker that registers again, because its session ran out, is told to the leaders of partitions that nobody writes
// to as well: without its new epoch no ISR that has it in it would be taken, and the third could not come back (KIP-903).
func TestIdleReplicaRegistersAgain(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{})
	brokers[0].CreateReplicated("t", 3, 3)
	inSync(t, brokers[0], "t", 3)
	for i, b := range brokers {
		b.LoseSession()
		inSync(t, b, "t", 3)
		if err := brokers[(i+1)%3].Restart(nil); err != nil {
			t.Fatal(err)
		}
		inSync(t, b, "t", 3)
	}
}

// Replication does not depend on a fetch session: consumers may have taken all that a leader keeps.
func TestReplicationWithoutSessions(t *testing.T) {
	brokers := servertest.StartCluster(t, 3, servertest.Options{Settings: map[string]string{"max.incremental.fetch.session.cache.slots": "0"}})
	brokers[0].CreateReplicated("t", 4, 3, "min.insync.replicas", "3")
	brokers[0].CreateReplicated("idle", 2, 3)
	put(t, clientOf(brokers, kgo.RecordPartitioner(kgo.RoundRobinPartitioner())), "t", 0, 50)
	if err := brokers[1].Restart(nil); err != nil {
		t.Fatal(err)
	}
	inSync(t, brokers[0], "t", 3)
	inSync(t, brokers[0], "idle", 3)
	readAll(t, brokers[1], "t", 50)
}
