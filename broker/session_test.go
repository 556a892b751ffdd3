package broker

import (
	"testing"
	"time"
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
		s.lastUsed = now.UnixMilli()
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
