package coordinator

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// TestNamesCount: a group's name may be longer than all else that is known of it.
func TestNamesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := one(t, newMemLog(), Options{MaxBytes: 1 << 20})
		n := 0
		for ; n < 1000; n++ {
			if r := join(c, fmt.Sprint(strings.Repeat("g", 32_000), n), "", nil); r.ErrorCode != protocol.CodeMemberIDRequired {
				expect(t, "code", r.ErrorCode, protocol.CodeCoordinatorNotAvailable)
				break
			}
			synctest.Wait()
		}
		if n < 10 || n > 40 {
			t.Errorf("%d groups with names of 32,000 bytes in 1 MiB", n)
		}
	})
}

// TestMembersGrow: members come with little, and then offer, or are assigned, ever more. Those with too much are refused, and
// those that say what they said before go on.
func TestMembersGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topics := group.NewTopics(1, []group.Topic{{ID: [16]byte{1}, Name: "t", Partitions: 3}})
		c := one(t, newMemLog(), Options{MaxBytes: 1 << 20, Topics: func() group.Topics { return topics }})
		const members = 20
		grown := func(what string, more func(i int) int16, same func(i int) int16) {
			t.Helper()
			refused := 0
			for i := range members {
				switch code := more(i); code {
				case 0:
				case protocol.CodeCoordinatorNotAvailable:
					refused++
				default:
					t.Fatalf("%s: %s", what, protocol.Name(code))
				}
				synctest.Wait()
			}
			time.Sleep(2 * countEvery)
			synctest.Wait()
			if b := c.Stats().Bytes; refused == 0 || b > 2<<20 {
				t.Errorf("%s: %d refused, %d bytes", what, refused, b)
			}
			expect(t, what+": who says nothing new", same(0), 0)
		}

		// Leaders of groups of one, with assignments.
		js := make([]*kmsg.JoinGroupResponse, members)
		var wg sync.WaitGroup
		for i := range members {
			wg.Go(func() { js[i] = enter(c, fmt.Sprint("g", i)) })
		}
		wg.Wait()
		grown("assignments", func(i int) int16 {
			req := kmsg.NewPtrSyncGroupRequest()
			req.Version, req.Group, req.Generation, req.MemberID = 5, fmt.Sprint("g", i), js[i].Generation, js[i].MemberID
			req.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: js[i].MemberID, MemberAssignment: make([]byte, 200<<10)}}
			return c.SyncGroup(bg, req).ErrorCode
		}, func(i int) int16 { return heartbeat(c, fmt.Sprint("g", i), js[i].MemberID, js[i].Generation) })
		for i := range members {
			expect(t, "leave", leave(c, fmt.Sprint("g", i), js[i].MemberID), 0)
		}
		synctest.Wait()

		beat := func(i int, epoch int32, names []string) int16 {
			req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
			req.Version, req.Group, req.MemberID, req.MemberEpoch = 1, fmt.Sprint("h", i), "m", epoch
			req.SubscribedTopicNames = names
			if epoch == 0 {
				req.RebalanceTimeoutMillis, req.Topics = 60_000, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			}
			return c.ConsumerGroupHeartbeat(bg, req, "client", "/127.0.0.1").ErrorCode
		}
		for i := range members {
			expect(t, "join", beat(i, 0, []string{"t"}), 0)
		}
		grown("subscriptions", func(i int) int16 {
			var names []string
			for j := range 1000 {
				names = append(names, fmt.Sprintf("%0200d", j))
			}
			return beat(i, 1, names)
		}, func(i int) int16 { return beat(members-1, 1, nil) })
	})
}

// TestForgottenDeadlines: groups that come and go within their session timeouts leave nothing that waits for these to pass.
func TestForgottenDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := one(t, newMemLog(), Options{})
		for i := range 1000 {
			g := fmt.Sprint("g", i)
			r := join(c, g, "", nil)
			expect(t, "join", r.ErrorCode, protocol.CodeMemberIDRequired)
			expect(t, "leave", leave(c, g, r.MemberID), 0)
		}
		synctest.Wait()
		s := c.all()[0]
		if len(s.armed) > 0 || len(s.deadlines) > 2*fewDeadlines {
			t.Errorf("%d keys are armed, %d deadlines kept", len(s.armed), len(s.deadlines))
		}
	})
}
