package broker

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Clients share the slots that there are; followers find room whatever clients do,
// one session each, and clients get no more slots by their going.
func TestFollowersGoBeforeClients(t *testing.T) {
	c := newSessions(2, 10)
	now := time.Now()
	made := func(s *session, partitions int) bool {
		s.watches = map[partitionKey]*watch{}
		for i := range partitions {
			s.watches[partitionKey{topic: "t", index: int32(i)}] = &watch{s: s}
		}
		s.lastUsed = now
		return c.create(s, now)
	}
	follower := func(id int32) *session { return &session{copies: true, of: id} }
	a, b := &session{}, &session{}
	if !made(a, 1) || !made(b, 1) || made(&session{}, 1) {
		t.Fatal("two slots are not two")
	}
	f, g := follower(1), follower(2)
	if !made(f, 100) || !made(g, 1) {
		t.Fatal("no room for a follower")
	}
	if c.find(f.id) != f || c.find(g.id) != g || c.find(a.id) != a || c.find(b.id) != b {
		t.Fatal("a session made way")
	}
	again := follower(1)
	if !made(again, 1) || c.find(f.id) != nil || c.find(again.id) != again {
		t.Fatal("a follower has two sessions")
	}
	// The oldest that goes is a client's.
	now = now.Add(2 * sessionEvictAfter)
	for c.partitions.Load() >= 10 { // what f had is given back behind the scenes
		time.Sleep(time.Millisecond)
	}
	d := &session{}
	if !made(d, 1) || c.find(again.id) != again || c.find(g.id) != g {
		t.Fatal("a client took a follower's place")
	}
	if !made(&session{}, 1) || made(&session{}, 1) {
		t.Fatal("not two of the clients are new")
	}
	c.remove(g.id)
	if made(&session{}, 1) {
		t.Fatal("a client took the slot that a follower never had")
	}
}

// A follower that names a partition is told the high watermark again, though it is the one that it was told last: the
// answer may have come when the follower was in another leader epoch, and was not heeded. A consumer is not.
func TestFollowersAreToldAgain(t *testing.T) {
	for _, copies := range []bool{true, false} {
		s := &session{copies: copies, watches: map[partitionKey]*watch{}}
		w := &watch{s: s, p: sessionPartition{toldHW: 7}}
		s.watches[partitionKey{topic: "t"}] = w
		req := kmsg.NewPtrFetchRequest()
		req.Version = 12
		req.Topics = []kmsg.FetchRequestTopic{{Topic: "t", Partitions: []kmsg.FetchRequestTopicPartition{{FetchOffset: 7}}}}
		f := &fetch{req: req, s: s}
		if !f.update() {
			t.Fatal("the session has ended")
		}
		if want := map[bool]int64{true: -1, false: 7}[copies]; w.p.toldHW != want {
			t.Errorf("of a follower: %v: told %d, want %d", copies, w.p.toldHW, want)
		}
	}
}
