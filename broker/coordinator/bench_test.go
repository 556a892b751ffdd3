package coordinator

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// BenchmarkCommit commits one partition at a time from many goroutines, over a log that costs nothing.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			c := one(b, newMemLog(), Options{})
			var off atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for i := range n {
				wg.Go(func() {
					for {
						o := off.Add(1)
						if o > int64(b.N) {
							return
						}
						if code := commit(c, fmt.Sprint("g", i%8), "", -1, int32(i), o); code != 0 {
							b.Error("code", code)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	c := one(b, newMemLog(), Options{})
	j := formed(b, c, "g", 50)[0]
	b.ResetTimer()
	for b.Loop() {
		if code := heartbeat(c, "g", j.MemberID, j.Generation); code != 0 {
			b.Fatal(code)
		}
	}
}

// A rebalance of 200 members that read 1,000 partitions: of the classic protocol when one of them joins again, of the
// consumer protocol when one more comes. Members speak as soon as they have something to say; clients wait for their next
// heartbeat (3 and 5 s), so that to the seconds reported come about one such interval of the classic protocol, and of the
// consumer protocol one for each round.
const (
	crowdMembers = 200
	crowdTopics  = 10
	crowdEach    = 100 // partitions of a topic
)

func crowdTopic(i int) (name string, id [16]byte) {
	return fmt.Sprint("topic-", i), [16]byte{1, byte(i)}
}

func BenchmarkRebalance(b *testing.B) {
	b.Run("classic", func(b *testing.B) { classicRebalance(b, crowdMembers) })
	b.Run("consumer", func(b *testing.B) { consumerRebalance(b, crowdMembers) })
}

func classicRebalance(b *testing.B, n int) {
	c := one(b, newMemLog(), Options{})
	js := formed(b, c, "g", n)
	var messages atomic.Int64
	// What the leader hands out: five partitions each.
	assignments := func(j *kmsg.JoinGroupResponse) *kmsg.SyncGroupRequest {
		req := kmsg.NewPtrSyncGroupRequest()
		req.Version, req.Group, req.Generation, req.MemberID = 5, "g", j.Generation, j.MemberID
		for i, m := range j.Members {
			a := kmsg.NewConsumerMemberAssignment()
			for k := i; k < crowdTopics*crowdEach; k += len(j.Members) {
				name, _ := crowdTopic(k / crowdEach)
				a.Topics = append(a.Topics, kmsg.ConsumerMemberAssignmentTopic{Topic: name, Partitions: []int32{int32(k % crowdEach)}})
			}
			ra := kmsg.NewSyncGroupRequestGroupAssignment()
			ra.MemberID, ra.MemberAssignment = m.MemberID, a.AppendTo(nil)
			req.GroupAssignment = append(req.GroupAssignment, ra)
		}
		return req
	}
	b.ResetTimer()
	for b.Loop() {
		var wg sync.WaitGroup
		begun := make(chan struct{})
		for i := range js {
			wg.Go(func() {
				if i == 0 {
					go func() {
						for state(c, "g") == "Stable" {
							time.Sleep(100 * time.Microsecond)
						}
						close(begun)
					}()
				} else {
					<-begun
					messages.Add(1)
					if code := heartbeat(c, "g", js[i].MemberID, js[i].Generation); code != protocol.CodeRebalanceInProgress {
						b.Error("heartbeat: code", code)
					}
				}
				messages.Add(2)
				js[i] = join(c, "g", js[i].MemberID, nil)
				if code := c.SyncGroup(bg, assignments(js[i])).ErrorCode; code != 0 {
					b.Error("sync: code", code)
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/rebalance")
	b.ReportMetric(float64(messages.Load())/float64(b.N), "messages/rebalance")
}

// reader is a member of the consumer protocol, as a client is one.
type reader struct {
	id    string
	epoch int32
	has   []kmsg.ConsumerGroupHeartbeatRequestTopic
	tell  bool // what it has is not what it said last
}

func consumerRebalance(b *testing.B, n int) {
	c := one(b, newMemLog(), Options{})
	var topics []group.Topic
	var names []string
	for i := range crowdTopics {
		name, id := crowdTopic(i)
		topics, names = append(topics, group.Topic{ID: id, Name: name, Partitions: crowdEach}), append(names, name)
	}
	view := group.NewTopics(1, topics)
	var messages atomic.Int64
	beat := func(m *reader, epoch int32) {
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		req.Version, req.Group, req.MemberID, req.MemberEpoch = 1, "g", m.id, epoch
		if epoch == 0 {
			req.RebalanceTimeoutMillis, req.SubscribedTopicNames = 300_000, names
		}
		if epoch == 0 || m.tell {
			req.Topics = append([]kmsg.ConsumerGroupHeartbeatRequestTopic{}, m.has...)
		}
		m.tell = false
		messages.Add(1)
		r, code := request[*kmsg.ConsumerGroupHeartbeatResponse](bg, c.host, "g", 0, func(token uint64) group.Command {
			return &group.ConsumerHeartbeat{Token: token, Req: req, ClientID: "c", ClientHost: "/h", Topics: view}
		})
		if code != 0 || r.ErrorCode != 0 {
			b.Error("heartbeat: codes", code, r)
			return
		}
		m.epoch = r.MemberEpoch
		if r.Assignment != nil {
			m.has, m.tell = nil, true
			for _, t := range r.Assignment.Topics {
				m.has = append(m.has, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: t.TopicID, Partitions: t.Partitions})
			}
		}
	}
	everyone := func(ms []*reader) (rounds int) {
		for {
			if stable, _ := look(bg, c.host, "g", true, func(m *groupMachine) bool { return m.DescribeConsumer("g", view).State == "Stable" }); stable {
				return rounds
			}
			if rounds++; rounds > 100 {
				b.Fatal("the group does not come to rest")
			}
			var wg sync.WaitGroup
			for _, m := range ms {
				wg.Go(func() { beat(m, m.epoch) })
			}
			wg.Wait()
		}
	}
	var ms []*reader
	for i := range n - 1 {
		m := &reader{id: fmt.Sprintf("member-%04d", i)}
		beat(m, 0)
		ms = append(ms, m)
	}
	everyone(ms)
	rounds := 0
	messages.Store(0)
	b.ResetTimer()
	for b.Loop() {
		last := &reader{id: "member-last"}
		beat(last, 0)
		rounds += everyone(append(ms, last))
		b.StopTimer()
		sent := messages.Load()
		beat(last, -1)
		everyone(ms)
		messages.Store(sent)
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/rebalance")
	b.ReportMetric(float64(messages.Load())/float64(b.N), "messages/rebalance")
	b.ReportMetric(float64(rounds)/float64(b.N), "rounds/rebalance")
}

// BenchmarkLoad replays a history of one million commits to ten thousand partitions, a third of them in transactions; and
// a third of a million, each in a batch of its own.
func BenchmarkLoad(b *testing.B) {
	h := &history{rounds: 3334}
	b.Run("batch=100", func(b *testing.B) {
		log := newMemLog()
		for n := range h.rounds {
			batches(b, h.round(nil, n), func(run []byte) { log.Append(0, 1, run, func(int64, error) {}) })
		}
		load(b, log, inBatch)
	})
	b.Run("batch=1", func(b *testing.B) {
		log := newMemLog()
		for n := range h.rounds {
			batches(b, h.round(nil, n), func(run []byte) {
				if head, _ := batch.ParseHeader(run); head.Transactional() || head.BaseOffset%inRound != 0 {
					return
				}
				for rec, err := range batch.Records(run, 1<<20) {
					if err != nil {
						b.Fatal(err)
					}
					one := batch.NewBuilder()
					one.Add(1, rec.Key, rec.Value)
					p, err := one.Build()
					if err != nil {
						b.Fatal(err)
					}
					log.Append(0, 1, p, func(int64, error) {})
				}
			})
		}
		load(b, log, 0)
	})
}

// batches hands out the batches of a run one by one.
func batches(b *testing.B, run []byte, f func([]byte)) {
	for len(run) > 0 {
		head, err := batch.ParseHeader(run)
		if err != nil {
			b.Fatal(err)
		}
		f(run[:head.Size():head.Size()])
		run = run[head.Size():]
	}
}

func load(b *testing.B, log *memLog, pending int) {
	b.ReportAllocs()
	for b.Loop() {
		c := New(Options{Log: log}, 1)
		c.Elected(0, 1)
		until(b, func() bool { return c.Ready(0) })
		if st := c.Stats(); st.Offsets != parts || st.Pending != pending {
			b.Fatal(st)
		}
		c.Close()
	}
	b.ReportMetric(float64(log.ends[0])*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
