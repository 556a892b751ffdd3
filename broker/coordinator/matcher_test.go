package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// many are n topics with names as long as they may be.
func many(version int64, n int) group.Topics {
	var list []group.Topic
	for i := range n {
		name := strings.Repeat("a", 240) + fmt.Sprint(i)
		list = append(list, group.Topic{ID: [16]byte{1, byte(i), byte(i >> 8)}, Name: name, Partitions: 1})
	}
	return group.NewTopics(version, list)
}

// bomb takes long for every name, whatever the engine.
const bomb = "(a?){990}(a?){990}b"

func subscribe(c *Coordinator, g, expr string, epoch int32) *kmsg.ConsumerGroupHeartbeatResponse {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = 1, g, "m", epoch, 60_000
	req.SubscribedTopicRegex, req.Topics = &expr, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	return c.ConsumerGroupHeartbeat(bg, req, "client", "/127.0.0.1")
}

// TestMatchBudget: an expression that takes too long is refused after a bounded processor time, one that does not gets the
// topics.
func TestMatchBudget(t *testing.T) {
	began := threadTime()
	if _, err := matchWithin(bomb, many(1, 1000)); err == nil || !strings.Contains(err.Error(), "the names of 1000 topics") {
		t.Errorf("the bomb: %v", err)
	}
	// This thread's, and that may be another one now; then it is what that one did before.
	if used, most := threadTime()-began, 10*(matchBudget+1000*matchEach); used > most {
		t.Errorf("%v of processor time, %v would be much", used, most)
	}
	var short []group.Topic
	for i := range 1000 {
		short = append(short, group.Topic{ID: [16]byte{2, byte(i), byte(i >> 8)}, Name: fmt.Sprint("orders-", i), Partitions: 1})
	}
	for expr, want := range map[string]int{"orders-1?": 1, "[a-z]+-[0-9]*": 1000, ".*[01]": 200, "b.*": 0} {
		names, err := matchWithin(expr, group.NewTopics(1, short))
		if err != nil || len(names) != want {
			t.Errorf("%s: %d topics, %v; want %d", expr, len(names), err, want)
		}
	}
}

// TestMatchingBesideTheShard: while an expression waits to be matched, other groups of the shard go on, and those with other
// expressions too.
func TestMatchingBesideTheShard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topics := many(1, 1000)
		c := one(t, newMemLog(), Options{Topics: func() group.Topics { return topics }})
		c.matcher.large <- struct{}{} // one is being matched
		var refused *kmsg.ConsumerGroupHeartbeatResponse
		go func() { refused = subscribe(c, "hostile", bomb, 0) }()
		synctest.Wait()
		r := subscribe(c, "plain", "a+[0-4]", 0)
		expect(t, "code", r.ErrorCode, 0)
		expect(t, "assigned", len(r.Assignment.Topics), 5)
		expect(t, "join of another group", enter(c, "classic").ErrorCode, 0)
		if refused != nil {
			t.Fatalf("answered: %+v", refused)
		}
		<-c.matcher.large
		synctest.Wait()
		expect(t, "the bomb", refused.ErrorCode, protocol.CodeInvalidRegularExpression)
		if !strings.Contains(*refused.ErrorMessage, "the names of 1000 topics") {
			t.Error(*refused.ErrorMessage)
		}
		expect(t, "the same again", subscribe(c, "hostile", bomb, 0).ErrorCode, protocol.CodeInvalidRegularExpression)

		// Who does not get its turn is told to come again, and nothing of it stays.
		c.matcher.large <- struct{}{}
		expect(t, "no turn", subscribe(c, "late", strings.Repeat("a?", 300), 0).ErrorCode, protocol.CodeCoordinatorNotAvailable)
		synctest.Wait()
		<-c.matcher.large
		c.matcher.mu.Lock()
		found, kept := len(c.matcher.found), len(c.matcher.kept)
		c.matcher.mu.Unlock()
		expect(t, "kept", found, kept)
	})
}

// TestMatchedTopicsChange: a member goes on when there are more topics than its expression can be matched against in time:
// it keeps those that it had.
func TestMatchedTopicsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topics := group.NewTopics(1, []group.Topic{{ID: [16]byte{9}, Name: "b", Partitions: 2}})
		c := one(t, newMemLog(), Options{Topics: func() group.Topics { return topics }})
		r := subscribe(c, "g", bomb, 0)
		expect(t, "code", r.ErrorCode, 0)
		expect(t, "assigned", len(r.Assignment.Topics[0].Partitions), 2)
		time.Sleep(time.Minute / 2)
		topics = many(2, 2000)
		expect(t, "code", subscribe(c, "g", bomb, r.MemberEpoch).ErrorCode, 0)
		topics = group.NewTopics(3, []group.Topic{{ID: [16]byte{9}, Name: "b", Partitions: 2}, {ID: [16]byte{8}, Name: "ab", Partitions: 1}})
		time.Sleep(time.Minute / 2)
		r = subscribe(c, "g", bomb, r.MemberEpoch+1)
		expect(t, "code", r.ErrorCode, 0)
		expect(t, "topics", len(r.Assignment.Topics), 2)
	})
}

// Two who ask the same have it matched once; what is given up is matched for the next who asks.
func TestMatchShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, view := newMatcher(), many(1, 10)
		x.simple <- struct{}{}
		ctx, cancel := context.WithCancel(t.Context())
		var errs [2]error
		for i := range errs {
			go func() { _, errs[i] = x.match(ctx, "a.*", view) }()
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !errors.Is(errs[0], context.Canceled) || !errors.Is(errs[1], context.Canceled) {
			t.Fatal(errs)
		}
		<-x.simple
		for range keptMatches + 5 {
			m, err := x.match(t.Context(), "a.*", view)
			if err != nil || len(m.Topics) != 10 {
				t.Fatal(m, err)
			}
			again, _ := x.match(t.Context(), "a.*", view)
			if again != m {
				t.Fatal("matched twice")
			}
			view = many(view.Version()+1, 10)
		}
		if len(x.found) != keptMatches || len(x.kept) != keptMatches {
			t.Errorf("%d and %d kept", len(x.found), len(x.kept))
		}
	})
}
