package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

var bg = context.Background()

// one is a coordinator of a topic with one partition, elected and loaded.
func one(t testing.TB, log *memLog, o Options) *Coordinator {
	o.Log = log
	if o.Groups.InitialRebalanceDelay == 0 {
		o.Groups.InitialRebalanceDelay = time.Second // so that members that start together join together
	}
	c := New(o, 1)
	c.Elected(0, 1)
	until(t, func() bool { return c.Ready(0) })
	t.Cleanup(c.Close)
	return c
}

func until(t testing.TB, f func() bool) {
	for range 20_000 {
		if f() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("does not happen")
}

func join(c *Coordinator, g, member string, instance *string) *kmsg.JoinGroupResponse {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version, req.Group, req.MemberID, req.InstanceID = 9, g, member, instance
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.ProtocolType = 10_000, 60_000, "consumer"
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", []byte("meta")
	req.Protocols = append(req.Protocols, p)
	return c.JoinGroup(bg, req, "client", "/127.0.0.1")
}

// enter joins with the member id that the coordinator demands.
func enter(c *Coordinator, g string) *kmsg.JoinGroupResponse {
	r := join(c, g, "", nil)
	if r.ErrorCode != protocol.CodeMemberIDRequired {
		return r
	}
	return join(c, g, r.MemberID, nil)
}

func syncGroup(c *Coordinator, g string, j *kmsg.JoinGroupResponse) *kmsg.SyncGroupResponse {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Version, req.Group, req.Generation, req.MemberID = 5, g, j.Generation, j.MemberID
	for _, m := range j.Members {
		a := kmsg.NewSyncGroupRequestGroupAssignment()
		a.MemberID, a.MemberAssignment = m.MemberID, []byte("for "+m.MemberID)
		req.GroupAssignment = append(req.GroupAssignment, a)
	}
	return c.SyncGroup(bg, req)
}

func heartbeat(c *Coordinator, g, member string, gen int32) int16 {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.Generation = 4, g, member, gen
	return c.Heartbeat(bg, req).ErrorCode
}

func commit(c *Coordinator, g, member string, gen int32, partition int32, offset int64) int16 {
	return commitTopic(c, g, member, gen, "t", partition, offset)
}

func commitTopic(c *Coordinator, g, member string, gen int32, topic string, partition int32, offset int64) int16 {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.MemberID, req.Generation = 9, g, member, gen
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = topic
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return c.OffsetCommit(bg, req).Topics[0].Partitions[0].ErrorCode
}

func fetch(c *Coordinator, g string, partition int32, stable bool) (int64, int16) {
	return fetchTopic(c, g, "t", partition, stable)
}

func fetchTopic(c *Coordinator, g, topic string, partition int32, stable bool) (int64, int16) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Version, req.RequireStable = 8, stable
	gr := kmsg.NewOffsetFetchRequestGroup()
	gr.Group = g
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic, t.Partitions = topic, []int32{partition}
	gr.Topics = append(gr.Topics, t)
	req.Groups = append(req.Groups, gr)
	r := c.OffsetFetch(bg, req).Groups[0]
	if r.ErrorCode != 0 {
		return -2, r.ErrorCode
	}
	return r.Topics[0].Partitions[0].Offset, 0
}

func leave(c *Coordinator, g, member string) int16 {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Version, req.Group, req.MemberID = 2, g, member
	return c.LeaveGroup(bg, req).ErrorCode
}

func state(c *Coordinator, g string) string {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Version, req.Groups = 5, []string{g}
	return c.DescribeGroups(bg, req).Groups[0].State
}

func expect[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// formed is a stable group of n members, the leader first.
func formed(t testing.TB, c *Coordinator, g string, n int) []*kmsg.JoinGroupResponse {
	t.Helper()
	joins := make([]*kmsg.JoinGroupResponse, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			joins[i] = enter(c, g)
			for joins[i].ErrorCode == 0 {
				s := syncGroup(c, g, joins[i])
				if s.ErrorCode == 0 {
					return
				}
				joins[i] = join(c, g, joins[i].MemberID, nil)
			}
		})
	}
	wg.Wait()
	for i, j := range joins {
		expect(t, "join", j.ErrorCode, 0)
		if j.LeaderID == j.MemberID {
			joins[0], joins[i] = joins[i], joins[0]
		}
	}
	expect(t, "state", state(c, g), "Stable")
	return joins
}

func TestPartitionFor(t *testing.T) {
	// The hashes are what Java's String.hashCode() says, the partitions where Kafka has the groups' records.
	for _, x := range []struct {
		group     string
		hash      int32
		partition int32
	}{
		{"", 0, 0}, {"a", 97, 47}, {"abc", 96354, 4}, {"grüße", 98768023, 23}, {"consumer-group-1", 147483020, 20}, {"😀", 1772899, 49},
		{"orders", -1008770331, 31}, {"console-consumer", -648006740, 40}, {"billing", -109829509, 9},
		{"polygenelubricants", -2147483648, 0},
	} {
		if got := PartitionOf(x.group, 50); got != x.partition {
			t.Errorf("%q, whose hash is %d: partition %d, want %d", x.group, x.hash, got, x.partition)
		}
	}
	expect(t, "no topic", PartitionOf("abc", 0), -1)
}

func TestGroupLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{Groups: group.Config{InitialRebalanceDelay: 3 * time.Second}})
		began := time.Now()
		js := formed(t, c, "g", 2)
		expect(t, "initial delay, extended once", time.Since(began), 6*time.Second)
		a, b := js[0], js[1]
		expect(t, "commit", commit(c, "g", a.MemberID, 1, 0, 42), 0)
		expect(t, "old generation", commit(c, "g", a.MemberID, 0, 0, 43), protocol.CodeIllegalGeneration)
		if off, code := fetch(c, "g", 0, true); off != 42 || code != 0 {
			t.Fatal(off, code)
		}

		// b falls silent; a hears of it and goes on alone.
		for range 3 {
			time.Sleep(3 * time.Second)
			expect(t, "heartbeat", heartbeat(c, "g", a.MemberID, 1), 0)
		}
		time.Sleep(time.Second + time.Millisecond)
		expect(t, "heartbeat", heartbeat(c, "g", a.MemberID, 1), protocol.CodeRebalanceInProgress)
		expect(t, "heartbeat of b", heartbeat(c, "g", b.MemberID, 1), protocol.CodeUnknownMemberID)
		a = join(c, "g", a.MemberID, nil)
		expect(t, "generation", a.Generation, 2)
		expect(t, "members", len(a.Members), 1)
		expect(t, "sync", syncGroup(c, "g", a).ErrorCode, 0)

		// a falls silent too.
		time.Sleep(10 * time.Second)
		synctest.Wait()
		expect(t, "state", state(c, "g"), "Empty")
		time.Sleep(time.Second)
		heartbeat(c, "g", "", 0)
		synctest.Wait()
		st := c.Stats()
		expect(t, "stats", fmt.Sprint(st.Shards, st.Loading, st.Groups, st.Members, st.Offsets), "1 0 map[{classic Empty}:1] 0 1")

		// What is written is what Kafka's tools read.
		kinds := map[string]int{}
		for _, r := range log.records(t, 0) {
			switch {
			case r.Key[1] == 1:
				var k kmsg.OffsetCommitKey
				var v kmsg.OffsetCommitValue
				if err := errors.Join(k.ReadFrom(r.Key), v.ReadFrom(r.Value)); err != nil || v.Version != 3 || v.Offset != 42 {
					t.Fatal(err, v)
				}
				kinds["offset"]++
			case r.Key[1] == 2:
				var k kmsg.GroupMetadataKey
				var v kmsg.GroupMetadataValue
				if err := errors.Join(k.ReadFrom(r.Key), v.ReadFrom(r.Value)); err != nil || v.Version != 3 || k.Group != "g" {
					t.Fatal(err, v)
				}
				kinds[fmt.Sprintf("group of %d", len(v.Members))]++
			}
		}
		expect(t, "records", fmt.Sprint(kinds), "map[group of 0:1 group of 1:1 group of 2:1 offset:1]")
	})
}

func TestReplyWaitsForCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{ReplyTimeout: time.Hour})
		j := formed(t, c, "g", 1)[0]
		expect(t, "commit", commit(c, "g", j.MemberID, 1, 0, 1), 0)

		log.hold()
		var answered, read atomic.Int32
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				expect(t, "commit", commit(c, "g", j.MemberID, 1, 0, int64(10+i)), 0)
				answered.Add(1)
			})
			synctest.Wait() // one after the other, so that the last is the last
		}
		wg.Go(func() {
			off, code := fetch(c, "g", 0, true)
			expect(t, "stable offset", off, 19)
			expect(t, "code", code, 0)
			read.Add(1)
		})
		synctest.Wait()
		// Nothing is told before it is committed; what is not committed is not shown; heartbeats go on.
		expect(t, "answers", answered.Load()+read.Load(), 0)
		off, _ := fetch(c, "g", 0, false)
		expect(t, "offset", off, 1)
		expect(t, "heartbeat", heartbeat(c, "g", j.MemberID, 1), 0)
		if st := c.Stats(); st.Writing != 10 {
			t.Fatal(st)
		}
		expect(t, "batches", log.appends, 2+maxInflight)

		log.release()
		wg.Wait()
		off, _ = fetch(c, "g", 0, false)
		expect(t, "offset", off, 19)
		// The six that came while four appends were under way went together.
		expect(t, "batches", log.appends, 2+maxInflight+1)
	})
}

// While a group's members are being written nobody else can change them.
func TestWritesOfOneGroupAreOrdered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{ReplyTimeout: time.Hour})
		expect(t, "commit", commit(c, "g", "", -1, 0, 1), 0)
		log.hold()
		var wg sync.WaitGroup
		wg.Go(func() {
			req := kmsg.NewPtrDeleteGroupsRequest()
			req.Groups = []string{"g", "g"}
			r := c.DeleteGroups(bg, req)
			expect(t, "answers", len(r.Groups), 1)
			expect(t, "delete", r.Groups[0].ErrorCode, 0)
		})
		synctest.Wait()
		// The group is being deleted: who joins or commits now comes after.
		var order []string
		var mu sync.Mutex
		did := func(s string) { mu.Lock(); order = append(order, s); mu.Unlock() }
		wg.Go(func() {
			expect(t, "commit", commit(c, "g", "", -1, 1, 7), 0)
			did("commit")
		})
		synctest.Wait()
		wg.Go(func() {
			expect(t, "join", enter(c, "g").ErrorCode, 0)
			did("join")
		})
		synctest.Wait()
		expect(t, "nothing yet", len(order), 0)
		expect(t, "state", state(c, "g"), "Empty")
		log.release()
		wg.Wait()
		expect(t, "order", len(order), 2)
		off, _ := fetch(c, "g", 0, false)
		expect(t, "deleted offset", off, -1)
		off, _ = fetch(c, "g", 1, false)
		expect(t, "new offset", off, 7)
	})
}

func TestFailedAppend(t *testing.T) {
	for _, x := range []struct {
		err  error
		code int16
	}{
		{errors.New("disk full"), protocol.CodeCoordinatorNotAvailable},
		{AppendFailed(protocol.CodeNotEnoughReplicas), protocol.CodeCoordinatorNotAvailable},
		{fmt.Errorf("wrapped: %w", AppendFailed(protocol.CodeNotLeaderOrFollower)), protocol.CodeNotCoordinator},
		{AppendFailed(protocol.CodeMessageTooLarge), protocol.CodeUnknownServerError},
	} {
		synctest.Test(t, func(t *testing.T) {
			log := newMemLog()
			var failed atomic.Int32
			c := one(t, log, Options{Events: &Events{AppendFailed: func(int32, error) { failed.Add(1) }}})
			js := formed(t, c, "g", 2)
			a := js[0]
			expect(t, "commit", commit(c, "g", a.MemberID, 1, 0, 5), 0)
			fail := func(on bool) {
				log.failWith(func(int32) error {
					if on {
						return x.err
					}
					return nil
				})
			}
			fail(true)
			expect(t, "commit", commit(c, "g", a.MemberID, 1, 0, 6), x.code)
			off, _ := fetch(c, "g", 0, false)
			expect(t, "offset", off, 5)
			fail(false)
			expect(t, "commit", commit(c, "g", a.MemberID, 1, 0, 6), 0)

			// The leader's assignment fails; followers stay parked, and the leader repeats it.
			b := js[1]
			for _, m := range []**kmsg.JoinGroupResponse{&a, &b} {
				go func() { *m = join(c, "g", (*m).MemberID, nil) }()
				synctest.Wait()
			}
			expect(t, "generation", a.Generation, 2)
			expect(t, "generation", b.Generation, 2)
			fail(true)
			var follower *kmsg.SyncGroupResponse
			go func() { follower = syncGroup(c, "g", b) }()
			synctest.Wait()
			expect(t, "sync", syncGroup(c, "g", a).ErrorCode, x.code)
			expect(t, "follower waits", follower, nil)
			expect(t, "state", state(c, "g"), "CompletingRebalance")
			fail(false)
			expect(t, "sync", syncGroup(c, "g", a).ErrorCode, 0)
			synctest.Wait()
			expect(t, "follower", string(follower.MemberAssignment), "for "+b.MemberID)

			// A deadline whose consequence cannot be written comes again, every second.
			expect(t, "leave", leave(c, "g", b.MemberID), 0)
			a = join(c, "g", a.MemberID, nil)
			expect(t, "sync", syncGroup(c, "g", a).ErrorCode, 0)
			fail(true)
			before := failed.Load()
			time.Sleep(10*time.Second + 5500*time.Millisecond)
			synctest.Wait()
			expect(t, "tries", failed.Load()-before, 6)
			expect(t, "state", state(c, "g"), "Stable")
			fail(false)
			time.Sleep(time.Second)
			synctest.Wait()
			expect(t, "state", state(c, "g"), "Empty")
		})
	}
}

func TestStalledLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{WritesLength: 3})
		j := formed(t, c, "g", 1)[0]
		log.hold()
		began := time.Now()
		expect(t, "commit", commit(c, "g", j.MemberID, 1, 0, 1), protocol.CodeCoordinatorNotAvailable)
		expect(t, "after", time.Since(began), DefaultReplyTimeout)
		// Heartbeats are answered all the same: a log that hangs must not cost the group its members.
		for range 20 {
			expect(t, "heartbeat", heartbeat(c, "g", j.MemberID, 1), 0)
			time.Sleep(3 * time.Second)
		}
		go commit(c, "g", j.MemberID, 1, 0, 2)
		go commit(c, "g", j.MemberID, 1, 0, 2)
		synctest.Wait()
		began = time.Now()
		expect(t, "one too many", commit(c, "g", j.MemberID, 1, 0, 2), protocol.CodeCoordinatorNotAvailable)
		expect(t, "at once", time.Since(began), 0)
		log.release()
		synctest.Wait()
		off, _ := fetch(c, "g", 0, false)
		expect(t, "offset", off, 2)
	})
}

func TestLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		log.readErr = errors.New("bucket away")
		b := batch.NewBuilder()
		b.Add(1, []byte{0}, nil) // what a client with too much permission may produce
		b.Add(1, []byte{0, 10, 0, 1, 'x'}, []byte{0, 0})
		b.Add(1, []byte{0, 2, 0, 1, 'g'}, []byte{0, 3, 0, 0, 0, 0, 0, 0})
		run, _ := b.Build()
		log.Append(0, 1, run, func(int64, error) {})
		var failures, bad atomic.Int32
		c := New(Options{Log: log, Events: &Events{LoadFailed: func(int32, error) { failures.Add(1) }, BadRecord: func(int32, int64, error) { bad.Add(1) }}}, 0)
		t.Cleanup(c.Close)
		expect(t, "without a topic", commit(c, "g", "", -1, 0, 1), protocol.CodeCoordinatorNotAvailable)
		c.SetPartitions(1)
		expect(t, "not led", commit(c, "g", "", -1, 0, 1), protocol.CodeNotCoordinator)
		c.Elected(0, 1)
		synctest.Wait()
		expect(t, "loading", commit(c, "g", "", -1, 0, 1), protocol.CodeCoordinatorLoadInProgress)
		expect(t, "heartbeat", heartbeat(c, "g", "m", 1), 0)
		expect(t, "sync", syncGroup(c, "g", &kmsg.JoinGroupResponse{MemberID: "m", Generation: 1}).ErrorCode, protocol.CodeRebalanceInProgress)
		expect(t, "list", c.ListGroups(bg, kmsg.NewPtrListGroupsRequest()).ErrorCode, protocol.CodeCoordinatorLoadInProgress)
		_, code := fetch(c, "g", 0, false)
		expect(t, "fetch", code, protocol.CodeCoordinatorLoadInProgress)
		expect(t, "ready", c.Ready(0), false)
		expect(t, "loading", c.Stats().Load, Load{Shards: 1, Loading: 1})
		time.Sleep(time.Minute)
		if n := failures.Load(); n < 20 || n > 80 {
			t.Fatal(n, "tries in a minute")
		}
		log.mu.Lock()
		log.readErr = nil
		log.mu.Unlock()
		time.Sleep(15 * time.Second)
		expect(t, "ready", c.Ready(0), true)
		expect(t, "bad records", bad.Load(), 2)
		expect(t, "loaded", c.Stats().Load, Load{Shards: 1})
		expect(t, "commit", commit(c, "g", "", -1, 0, 1), 0)
	})
}

func TestTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		old := one(t, log, Options{})
		js := formed(t, old, "g", 3)
		expect(t, "commit", commit(old, "g", js[1].MemberID, 1, 0, 9), 0)

		// Who waits for a rebalance is sent to the new coordinator.
		var parked *kmsg.JoinGroupResponse
		go func() { parked = join(old, "g", js[0].MemberID, nil) }()
		synctest.Wait()
		expect(t, "parked", parked, nil)
		old.Resigned(0)
		synctest.Wait()
		expect(t, "parked", parked.ErrorCode, protocol.CodeNotCoordinator)
		expect(t, "heartbeat", heartbeat(old, "g", js[0].MemberID, 1), protocol.CodeNotCoordinator)

		next := one(t, log, Options{})
		expect(t, "state", state(next, "g"), "Stable")
		for _, j := range js {
			expect(t, "heartbeat", heartbeat(next, "g", j.MemberID, 1), 0)
			expect(t, "assignment", string(syncGroup(next, "g", &kmsg.JoinGroupResponse{MemberID: j.MemberID, Generation: 1}).MemberAssignment), "for "+j.MemberID)
		}
		off, _ := fetch(next, "g", 0, false)
		expect(t, "offset", off, 9)
		// Members have their session timeout from the takeover on.
		time.Sleep(9 * time.Second)
		expect(t, "state", state(next, "g"), "Stable")
		time.Sleep(2 * time.Second)
		expect(t, "state", state(next, "g"), "Empty")
	})
}

func TestEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		var loads atomic.Int32
		c := one(t, log, Options{Events: &Events{Loaded: func(int32, int, int64, int64, time.Duration) { loads.Add(1) }}})
		js := formed(t, c, "g", 2)
		log.mu.Lock()
		log.epochs[0] = 2
		log.mu.Unlock()
		// A zombie: somebody else leads in epoch 2.
		expect(t, "commit", commit(c, "g", js[0].MemberID, 1, 0, 1), protocol.CodeNotCoordinator)
		// It was this broker: nothing is lost, not even who waits.
		c.Elected(0, 2)
		expect(t, "commit", commit(c, "g", js[0].MemberID, 1, 0, 1), 0)
		expect(t, "loads", loads.Load(), 1)
		c.Elected(0, 1) // late news
		expect(t, "commit", commit(c, "g", js[0].MemberID, 1, 0, 2), 0)
		// Somebody else led in epoch 3, and may have written.
		log.mu.Lock()
		log.epochs[0] = 4
		log.mu.Unlock()
		c.Elected(0, 4)
		until(t, func() bool { return c.Ready(0) })
		expect(t, "loads", loads.Load(), 2)
		expect(t, "commit", commit(c, "g", js[0].MemberID, 1, 0, 3), 0)
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		refused := atomic.Int32{}
		c := one(t, log, Options{QueueLength: 5, MaxBytes: 20_000, ReplyTimeout: time.Hour,
			Events: &Events{Refused: func(int32, int16) { refused.Add(1) }}})
		n := 0
		for ; ; n++ {
			if code := commit(c, fmt.Sprintf("g%d", n), "", -1, 0, 1); code != 0 {
				expect(t, "code", code, protocol.CodeCoordinatorNotAvailable)
				break
			}
		}
		if n < 5 || n > 100 {
			t.Fatalf("%d groups in 20,000 bytes", n)
		}
		expect(t, "a group that exists", commit(c, "g0", "", -1, 0, 2), 0)
		expect(t, "join", enter(c, "new").ErrorCode, protocol.CodeCoordinatorNotAvailable)
		expect(t, "refused", refused.Load(), 2)

		// Commands that wait at a gate count as queued.
		log.hold()
		go func() {
			req := kmsg.NewPtrDeleteGroupsRequest()
			req.Groups = []string{"g0"}
			c.DeleteGroups(bg, req)
		}()
		synctest.Wait()
		for range 5 {
			go commit(c, "g0", "", -1, 0, 3)
			synctest.Wait()
		}
		expect(t, "queued", c.Stats().Queued, 5)
		expect(t, "being appended", c.Stats().Writing, 1)
		expect(t, "one too many", commit(c, "g0", "", -1, 0, 3), protocol.CodeCoordinatorNotAvailable)
		expect(t, "refused", refused.Load(), 3)
		log.release()
		synctest.Wait()
		off, _ := fetch(c, "g0", 0, false)
		expect(t, "offset", off, -1) // deleted, and there is no room for it to be created again
	})
}

// TestOffsetBounds has one group commit offsets of ever more partitions, and then ever more metadata: it is refused what
// takes more memory, and goes on with what it has.
func TestOffsetBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := one(t, newMemLog(), Options{MaxBytes: 20_000})
		n := int32(0)
		for ; commit(c, "g", "", -1, n, 1) == 0; n++ {
			if n == 1000 {
				t.Fatal("offsets of 1000 partitions")
			}
			synctest.Wait()
		}
		time.Sleep(2 * countEvery)
		synctest.Wait()
		if b := c.Stats().Bytes; b < 30_000 || b > 30_200 {
			t.Errorf("%d bytes", b)
		}
		expect(t, "one that is there", commit(c, "g", "", -1, n-1, 2), 0)
		off, _ := fetch(c, "g", n-1, false)
		expect(t, "offset", off, 2)
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version, req.Group, req.Generation = 9, "g", -1
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = "t"
		rp := kmsg.NewOffsetCommitRequestTopicPartition()
		rp.Offset, rp.Metadata = 3, kmsg.StringPtr("much more than there was")
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		expect(t, "with metadata", c.OffsetCommit(bg, req).Topics[0].Partitions[0].ErrorCode, protocol.CodeCoordinatorNotAvailable)
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{Groups: group.Config{OffsetsRetention: time.Hour}, ExpiryInterval: time.Minute})
		const groups = 3 * sweepStep
		for i := range groups {
			expect(t, "commit", commit(c, fmt.Sprintf("g%d", i), "", -1, 0, 1), 0)
		}
		c.TopicDeleted("other")
		time.Sleep(50 * time.Minute)
		expect(t, "commit", commit(c, "g7", "", -1, 0, 1), 0)
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		l := c.ListGroups(bg, kmsg.NewPtrListGroupsRequest())
		if len(l.Groups) != 1 || l.Groups[0].Group != "g7" {
			t.Fatal(l.Groups)
		}
		c.TopicDeleted("t")
		synctest.Wait()
		expect(t, "groups", len(c.ListGroups(bg, kmsg.NewPtrListGroupsRequest()).Groups), 0)
	})
}

// TestTopicDeletedUnheard deletes a topic while the groups that read it cannot hear of it: while their partition is being
// loaded, and while its queue is full. The next topic of that name must not begin with their offsets.
func TestTopicDeletedUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{QueueLength: 1, ReplyTimeout: time.Hour})
		expect(t, "commit", commit(c, "g", "", -1, 0, 7), 0)
		c.Resigned(0)
		log.mu.Lock()
		log.readErr = errors.New("bucket away")
		log.mu.Unlock()
		c.Elected(0, 9)
		synctest.Wait()
		c.TopicDeleted("t")
		log.mu.Lock()
		log.readErr = nil
		log.mu.Unlock()
		until(t, func() bool { return c.Ready(0) })
		synctest.Wait()
		off, _ := fetch(c, "g", 0, false)
		expect(t, "offset after loading", off, -1)

		expect(t, "commit", commit(c, "g", "", -1, 0, 8), 0)
		log.hold()
		deleting := kmsg.NewPtrOffsetDeleteRequest()
		deleting.Group = "g"
		dt := kmsg.NewOffsetDeleteRequestTopic()
		dt.Topic, dt.Partitions = "t", []kmsg.OffsetDeleteRequestTopicPartition{{Partition: 1}, {Partition: 0}}
		deleting.Topics = append(deleting.Topics, dt)
		go c.OffsetDelete(bg, deleting) // exclusive: who comes after it waits
		synctest.Wait()
		go commit(c, "g", "", -1, 1, 9)
		synctest.Wait()
		expect(t, "queue", commit(c, "g", "", -1, 1, 9), protocol.CodeCoordinatorNotAvailable)
		c.TopicDeleted("t")
		synctest.Wait()
		log.release()
		time.Sleep(time.Minute)
		for p := range int32(2) {
			off, _ = fetch(c, "g", p, false)
			expect(t, "offset after a full queue", off, -1)
		}
	})
}

// TestTopicDeletedWithoutLeader deletes a topic while nobody leads the partition of the groups that read it.
func TestTopicDeletedWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topics := group.NewTopics(1, []group.Topic{{ID: [16]byte{1}, Name: "t", Partitions: 2}, {ID: [16]byte{2}, Name: "u", Partitions: 2}})
		c := one(t, newMemLog(), Options{Topics: func() group.Topics { return topics }})
		expect(t, "commit", commit(c, "g", "", -1, 0, 7), 0)
		expect(t, "commit", commitTopic(c, "g", "", -1, "u", 0, 9), 0)
		c.Resigned(0)
		topics = group.NewTopics(2, []group.Topic{{ID: [16]byte{2}, Name: "u", Partitions: 2}})
		c.TopicDeleted("t")
		c.Elected(0, 9)
		until(t, func() bool { return c.Ready(0) })
		synctest.Wait()
		topics = group.NewTopics(3, []group.Topic{{ID: [16]byte{3}, Name: "t", Partitions: 2}, {ID: [16]byte{2}, Name: "u", Partitions: 2}})
		off, _ := fetch(c, "g", 0, false)
		expect(t, "offset of the topic that comes again", off, -1)
		off, _ = fetchTopic(c, "g", "u", 0, false)
		expect(t, "offset of another", off, 9)
	})
}

// TestTopicDeletedInVain: the log takes nothing while a topic is deleted. What had been committed of it goes all the same; what is
// committed of the next topic of that name stays.
func TestTopicDeletedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{})
		expect(t, "commit", commit(c, "g", "", -1, 0, 7), 0)
		expect(t, "commit", commit(c, "g", "", -1, 1, 7), 0)
		log.failWith(func(int32) error { return AppendFailed(protocol.CodeNotEnoughReplicas) })
		c.TopicDeleted("t")
		synctest.Wait()
		log.failWith(nil)
		expect(t, "commit of the new topic", commit(c, "g", "", -1, 0, 1), 0)
		time.Sleep(2 * retryAfter)
		synctest.Wait()
		off, _ := fetch(c, "g", 0, false)
		expect(t, "its offset", off, 1)
		off, _ = fetch(c, "g", 1, false)
		expect(t, "offset of the old topic", off, -1)
	})
}

// TestTopicComesAgain deletes a topic and creates another of its name while the log is busy: what a group commits of the
// new one stays, what it had committed of the old goes.
func TestTopicComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{ReplyTimeout: time.Hour})
		expect(t, "commit", commit(c, "g", "", -1, 0, 7), 0)
		expect(t, "commit", commit(c, "g", "", -1, 1, 7), 0)
		log.hold()
		for i := range maxInflight {
			go commit(c, fmt.Sprint("other", i), "", -1, 0, 1)
			synctest.Wait()
		}
		c.TopicDeleted("t")
		synctest.Wait()
		code := int16(-1)
		go func() { code = commit(c, "g", "", -1, 0, 1) }()
		synctest.Wait()
		log.release()
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(t, "commit of the new topic", code, 0)
		off, _ := fetch(c, "g", 0, false)
		expect(t, "its offset", off, 1)
		off, _ = fetch(c, "g", 1, false)
		expect(t, "offset of the old topic", off, -1)
	})
}

func TestOldVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := one(t, newMemLog(), Options{})
		for v := int16(2); v <= 10; v++ {
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Version, req.Group, req.Generation = v, "g", -1
			rt := kmsg.NewOffsetCommitRequestTopic()
			rt.Topic, rt.TopicID = "t", [16]byte{1}
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Offset = int64(v)
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			r := c.OffsetCommit(bg, req)
			expect(t, "version", r.Version, v)
			expect(t, "commit", r.Topics[0].Partitions[0].ErrorCode, 0)
			expect(t, "id", r.Topics[0].TopicID, [16]byte{1})
			roundTrip(t, r)
		}
		for v := int16(1); v <= 10; v++ {
			req := kmsg.NewPtrOffsetFetchRequest()
			req.Version, req.Group = v, "g"
			if v < 2 {
				req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0}}}
			}
			if v >= 8 {
				req.Groups = []kmsg.OffsetFetchRequestGroup{{Group: "g"}, {Group: "h"}}
			}
			r := c.OffsetFetch(bg, req)
			roundTrip(t, r)
			if v < 8 {
				expect(t, "offset", r.Topics[0].Partitions[0].Offset, 10)
				continue
			}
			expect(t, "offset", r.Groups[0].Topics[0].Partitions[0].Offset, 10)
			expect(t, "unknown group", len(r.Groups[1].Topics)+int(r.Groups[1].ErrorCode), 0)
		}
		c.Resigned(0)
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Version, req.Group = 1, "g"
		req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0}}}
		expect(t, "code of a partition", c.OffsetFetch(bg, req).Topics[0].Partitions[0].ErrorCode, protocol.CodeNotCoordinator)
		for v := int16(0); v <= 9; v++ {
			req := kmsg.NewPtrJoinGroupRequest()
			req.Version, req.Group = v, "g"
			r := c.JoinGroup(bg, req, "", "")
			expect(t, "join", r.ErrorCode, protocol.CodeNotCoordinator)
			roundTrip(t, r)
		}
	})
}

func roundTrip(t *testing.T, r kmsg.Response) {
	t.Helper()
	if err := r.ReadFrom(r.AppendTo(nil)); err != nil {
		t.Fatal(err)
	}
}

// TestStress runs many clients against a log that fails now and then, and a coordinator that moves. What was acknowledged
// must be there, no offset may go back, and a replay must know what the living coordinator knows.
func TestStress(t *testing.T) {
	log := newMemLog()
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(1, 2))
	log.failWith(func(int32) error {
		mu.Lock()
		defer mu.Unlock()
		if rnd.IntN(20) == 0 {
			return AppendFailed(protocol.CodeNotEnoughReplicas)
		}
		return nil
	})
	cfg := Options{Log: log, Groups: group.Config{InitialRebalanceDelay: time.Millisecond, MinSessionTimeout: time.Millisecond}}
	c := New(cfg, 2)
	var epoch atomic.Int32
	elect := func() {
		e := epoch.Add(2)
		log.mu.Lock() // as a log does, or a shard that has been stopped could still write behind the one that follows
		log.epochs[0], log.epochs[1] = e, e
		log.mu.Unlock()
		c.Elected(0, e)
		c.Elected(1, e)
	}
	elect()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	// Committers without a group: one owner for each partition, so offsets only grow.
	acked := make([]int64, 8)
	for i := range acked {
		wg.Go(func() {
			g := fmt.Sprintf("simple%d", i%4)
			for off := int64(1); ; off++ {
				select {
				case <-stop:
					return
				default:
				}
				code := commit(c, g, "", -1, int32(i), off)
				if code == 0 {
					acked[i] = off
				}
				if got, code := fetch(c, g, int32(i), i%2 == 0); code == 0 && (got > off || acked[i] > 0 && got < acked[i]) {
					t.Errorf("%s: offset %d after %d was acknowledged and %d asked for", g, got, acked[i], off)
				}
			}
		})
	}
	// Members that come and go.
	var generations atomic.Int64
	for i := range 12 {
		wg.Go(func() {
			g := fmt.Sprintf("group%d", i%3)
			member := ""
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(bg, 2*time.Second)
				req := kmsg.NewPtrJoinGroupRequest()
				req.Version, req.Group, req.MemberID = 9, g, member
				req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.ProtocolType = 500, 200, "consumer"
				if i%4 == 0 {
					req.InstanceID = kmsg.StringPtr(fmt.Sprint("instance", i))
				}
				req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte{byte(n)}}}
				j := c.JoinGroup(ctx, req, "c", "/h")
				cancel()
				switch j.ErrorCode {
				case 0, protocol.CodeMemberIDRequired:
					member = j.MemberID
				case protocol.CodeUnknownMemberID, protocol.CodeFencedInstanceID:
					member = ""
				}
				if j.ErrorCode != 0 {
					continue
				}
				generations.Add(1)
				ctx, cancel = context.WithTimeout(bg, 2*time.Second)
				sreq := kmsg.NewPtrSyncGroupRequest()
				sreq.Version, sreq.Group, sreq.Generation, sreq.MemberID, sreq.InstanceID = 5, g, j.Generation, member, req.InstanceID
				for _, m := range j.Members {
					sreq.GroupAssignment = append(sreq.GroupAssignment, kmsg.SyncGroupRequestGroupAssignment{MemberID: m.MemberID, MemberAssignment: []byte{1}})
				}
				s := c.SyncGroup(ctx, sreq)
				cancel()
				if s.ErrorCode != 0 {
					continue
				}
				commit(c, g, member, j.Generation, int32(i), int64(n))
				heartbeat(c, g, member, j.Generation)
				if n%5 == 4 {
					leave(c, g, member)
					member = ""
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(150 * time.Millisecond):
				elect()
				c.ListGroups(bg, kmsg.NewPtrListGroupsRequest())
				c.Stats()
			}
		}
	})
	time.Sleep(1500 * time.Millisecond)
	close(stop)
	wg.Wait()
	until(t, func() bool { return c.Ready(0) && c.Ready(1) })
	describe := func(c *Coordinator) string {
		var all string
		for i := range 4 {
			req := kmsg.NewPtrOffsetFetchRequest()
			req.Version = 8
			req.Groups = []kmsg.OffsetFetchRequestGroup{{Group: fmt.Sprint("simple", i)}, {Group: fmt.Sprint("group", i)}}
			for _, g := range c.OffsetFetch(bg, req).Groups {
				for _, t := range g.Topics {
					for _, p := range t.Partitions {
						all += fmt.Sprintf("%s %s %d %d\n", g.Group, t.Topic, p.Partition, p.Offset)
					}
				}
			}
		}
		return all
	}
	log.failWith(nil)
	live := describe(c)
	c.Close()
	clear(log.epochs)
	next := New(cfg, 2)
	next.Elected(0, 1)
	next.Elected(1, 1)
	until(t, func() bool { return next.Ready(0) && next.Ready(1) })
	expect(t, "replay", describe(next), live)
	for i, off := range acked {
		if got, _ := fetch(next, fmt.Sprintf("simple%d", i%4), int32(i), false); got < off || off == 0 {
			t.Errorf("partition %d: offset %d, %d was acknowledged", i, got, off)
		}
	}
	next.Close()
	if generations.Load() == 0 {
		t.Error("no group ever completed a rebalance")
	}
	t.Logf("%d members joined a generation; offsets %v", generations.Load(), acked)
}

// TestConsumerBounds: with the memory used up, nobody joins a group of the consumer protocol, and who is in goes on.
func TestConsumerBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topics := group.NewTopics(1, []group.Topic{{ID: [16]byte{1}, Name: "t", Partitions: 3}})
		c := one(t, newMemLog(), Options{MaxBytes: 20_000, Topics: func() group.Topics { return topics }})
		beat := func(g string, epoch int32) *kmsg.ConsumerGroupHeartbeatResponse {
			req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
			req.Version, req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = 1, g, "m", epoch, 60_000
			req.SubscribedTopicNames, req.Topics = []string{"t"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			return c.ConsumerGroupHeartbeat(bg, req, "client", "/127.0.0.1")
		}
		n := 0
		for ; n < 1000; n++ {
			if code := beat(fmt.Sprintf("g%d", n), 0).ErrorCode; code != 0 {
				expect(t, "code", code, protocol.CodeCoordinatorNotAvailable)
				break
			}
		}
		if n < 5 || n > 100 {
			t.Fatalf("%d groups in 20,000 bytes", n)
		}
		expect(t, "a member that is in", beat("g0", 1).ErrorCode, 0)
		expect(t, "a member that leaves", beat("g1", -1).ErrorCode, 0)
	})
}

// TestConsumerSessionOfGroup: a group's own session timeout holds from the load on.
func TestConsumerSessionOfGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topics := group.NewTopics(1, []group.Topic{{ID: [16]byte{1}, Name: "t", Partitions: 3}})
		own := map[string]group.Settings{"slow": {Session: time.Minute, Interval: 7 * time.Second}}
		log := newMemLog()
		o := Options{Topics: func() group.Topics { return topics }, Groups: group.Config{ConsumerSession: 10 * time.Second, Of: func(id string) group.Settings { return own[id] }}}
		c := one(t, log, o)
		for _, g := range []string{"slow", "plain"} {
			req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
			req.Version, req.Group, req.MemberID, req.RebalanceTimeoutMillis = 1, g, "m", 60_000
			req.SubscribedTopicNames, req.Topics = []string{"t"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			r := c.ConsumerGroupHeartbeat(bg, req, "client", "/127.0.0.1")
			expect(t, g, r.ErrorCode, 0)
			expect(t, g, r.HeartbeatIntervalMillis, map[string]int32{"slow": 7000, "plain": 5000}[g])
		}
		c.Close()
		c = one(t, log, o)
		members := func(g string) int {
			req := kmsg.NewPtrConsumerGroupDescribeRequest()
			req.Version, req.Groups = 1, []string{g}
			return len(c.ConsumerGroupDescribe(bg, req).Groups[0].Members)
		}
		expect(t, "plain, loaded", members("plain"), 1)
		time.Sleep(11 * time.Second)
		expect(t, "plain, after its time", members("plain"), 0)
		expect(t, "slow, within its time", members("slow"), 1)
		time.Sleep(50 * time.Second)
		expect(t, "slow, after its time", members("slow"), 0)
	})
}
