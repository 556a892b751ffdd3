package group

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// crowd is members of a group that say and hear what clients do, with appends that succeed at once.
type crowd struct {
	shard   *Shard
	now     time.Time
	view    *view
	members []*consumer
	beats   int
	records int
}

func newCrowd(n, topics int, partitions int32) *crowd {
	c := &crowd{shard: NewShard(Config{}), now: time.UnixMilli(1 << 40), view: &view{version: 1}}
	for i := range topics {
		c.view = c.view.with(fmt.Sprint("t", i), byte(i), partitions)
	}
	for i := range n {
		c.members = append(c.members, &consumer{id: fmt.Sprintf("member-%05d", i), full: true, topics: c.view.Names(), has: map[spot]bool{}, told: map[spot]bool{}})
	}
	return c
}

func (c *crowd) beat(b *testing.B, m *consumer) {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch = 1, "g", m.id, m.epoch
	if m.full {
		req.RebalanceTimeoutMillis, req.SubscribedTopicNames, req.Topics = 300_000, m.topics, m.owned()
	} else if m.said != "" {
		req.Topics = m.owned()
	}
	m.full, m.said = false, ""
	r := c.shard.Handle(c.now, &ConsumerHeartbeat{Token: 1, Req: req, ClientID: "c", ClientHost: "/h", Topics: c.view})
	for _, rec := range r.Records {
		if err := c.shard.Apply(rec); err != nil {
			b.Fatal(err)
		}
	}
	c.shard.Settle(c.now, r)
	c.beats++
	c.records += len(r.Records)
	resp := r.Replies[0].Response.(*kmsg.ConsumerGroupHeartbeatResponse)
	if resp.ErrorCode != 0 {
		b.Fatal(resp.ErrorCode, deref(resp.ErrorMessage))
	}
	m.epoch = resp.MemberEpoch
	if resp.Assignment != nil {
		clear(m.has)
		for _, t := range resp.Assignment.Topics {
			for _, p := range t.Partitions {
				m.has[spot{t.TopicID, p}] = true
			}
		}
		m.said = "changed" // tells it with the next heartbeat
	}
}

// settle lets all members speak in turn until the group is stable, and says in how many rounds.
func (c *crowd) settle(b *testing.B) (rounds int) {
	for c.shard.groups["g"] == nil || c.shard.groups["g"].state() != Stable {
		if rounds++; rounds > 100 {
			b.Fatal("the group does not come to rest")
		}
		for _, m := range c.members {
			c.beat(b, m)
		}
	}
	return rounds
}

// 200 members, 1,000 partitions.
func BenchmarkConsumerRebalance(b *testing.B) {
	b.Run("all join", func(b *testing.B) {
		for b.Loop() {
			c := newCrowd(200, 10, 100)
			rounds := c.settle(b)
			b.ReportMetric(float64(c.beats), "heartbeats")
			b.ReportMetric(float64(c.records), "records")
			b.ReportMetric(float64(rounds), "rounds")
		}
	})
	b.Run("one more", func(b *testing.B) {
		c := newCrowd(201, 10, 100)
		last := c.members[200]
		c.members = c.members[:200]
		c.settle(b)
		c.members = append(c.members, last)
		for b.Loop() {
			b.StopTimer()
			leave := kmsg.NewPtrConsumerGroupHeartbeatRequest()
			leave.Version, leave.Group, leave.MemberID, leave.MemberEpoch = 1, "g", last.id, -1
			r := c.shard.Handle(c.now, &ConsumerHeartbeat{Token: 1, Req: leave, Topics: c.view})
			for _, rec := range r.Records {
				c.shard.Apply(rec)
			}
			c.shard.Settle(c.now, r)
			clear(last.has)
			last.epoch, last.full = 0, true
			c.members = c.members[:200]
			c.settle(b)
			c.members = append(c.members, last)
			c.beats, c.records = 0, 0
			b.StartTimer()
			c.beat(b, last)
			rounds := c.settle(b)
			b.ReportMetric(float64(c.beats), "heartbeats")
			b.ReportMetric(float64(c.records), "records")
			b.ReportMetric(float64(rounds), "rounds")
		}
	})
}

// A heartbeat that has nothing new, which is what nearly all of them are.
func BenchmarkConsumerHeartbeat(b *testing.B) {
	c := newCrowd(200, 10, 100)
	c.settle(b)
	for _, m := range c.members {
		c.beat(b, m)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c.beat(b, c.members[i%len(c.members)])
		i++
	}
}
