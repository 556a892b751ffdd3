package etcd

import (
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A claim is taken once, read back, compared by commits, and goes with the lease, when it is given back, or with the topic.
func TestClaims(t *testing.T) {
	s := newStore(t)
	samples(t, s)
	m := s.Manifests()
	lease, _, err := s.Grant(bg, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	claim := Claim{Worker: "host/1", Tag: [4]byte{1, 2, 3, 250}, Lease: lease}
	other := Claim{Worker: "host/2", Tag: [4]byte{9}, Lease: lease}
	if err := m.Claim(bg, id(1), 1, claim); err != nil {
		t.Fatal(err)
	}
	if err := m.Claim(bg, id(1), 1, claim); err != nil {
		t.Errorf("the same claim again, as after an answer that was lost: %v", err)
	}
	if err := m.Claim(bg, id(1), 1, other); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second worker: %v", err)
	}
	if err := m.Claim(bg, id(77), 0, claim); !errors.Is(err, ErrFenced) {
		t.Errorf("a partition that does not exist: %v", err)
	}
	if c, ok, err := m.Claimed(bg, id(1), 1); err != nil || !ok || c.Worker != claim.Worker || c.Tag != claim.Tag {
		t.Fatalf("read back: %+v %v %v", c, ok, err)
	}
	n := 0
	if err := m.Claims(bg, func(topic [16]byte, partition int32, c Claim) error {
		if n++; topic != id(1) || partition != 1 || c.Tag != claim.Tag {
			t.Errorf("claim of %x-%d: %+v", topic, partition, c)
		}
		return nil
	}); err != nil || n != 1 {
		t.Errorf("%d claims, %v", n, err)
	}

	_, rev, err := m.Load(bg, id(1), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Commit(bg, CommitRequest{TopicID: id(1), Partition: 1, Rev: rev, Claim: &other, Head: []byte("x")}); !errors.Is(err, ErrFenced) {
		t.Errorf("commit under somebody else's claim: %v", err)
	}
	if rev, err = m.Commit(bg, CommitRequest{TopicID: id(1), Partition: 1, Rev: rev, Claim: &claim, Head: []byte("x")}); err != nil {
		t.Errorf("commit under the claim: %v", err)
	}
	// One that is not the other's to give back stays.
	if err := m.Unclaim(bg, id(1), 1, other); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := m.Claimed(bg, id(1), 1); !ok {
		t.Error("given back by somebody else")
	}
	if err := s.Revoke(bg, lease); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := m.Claimed(bg, id(1), 1); ok || err != nil {
		t.Errorf("the claim outlives its lease (%v)", err)
	}
	if _, err := m.Commit(bg, CommitRequest{TopicID: id(1), Partition: 1, Rev: rev, Claim: &claim, Head: []byte("y")}); !errors.Is(err, ErrFenced) {
		t.Errorf("commit after the lease: %v", err)
	}
	if err := m.Claim(bg, id(1), 1, claim); !errors.Is(err, ErrLeaseGone) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("claim with a lease that is gone: %v", err)
	}

	// What is left when a topic is forgotten goes with it.
	if lease, _, err = s.Grant(bg, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	claim.Lease = lease
	if err := m.Claim(bg, id(1), 1, claim); err != nil {
		t.Fatal(err)
	}
	must[*clientv3.PutResponse](t)(s.client.Put(bg, s.keys.deleted(id(1)), `{"v":1,"name":"one","partitions":2}`))
	if err := m.DropTombstone(bg, id(1)); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := m.Claimed(bg, id(1), 1); ok || err != nil {
		t.Errorf("the claim outlives its topic (%v)", err)
	}
}

// One worker at a time makes a pass, and its result is everybody's.
func TestScrubs(t *testing.T) {
	s := newStore(t)
	if p, err := s.LastScrub(bg); p != nil || err != nil {
		t.Fatalf("before the first: %+v %v", p, err)
	}
	a, _, err := s.Grant(bg, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := s.Grant(bg, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(worker string, lease int64, want bool) {
		t.Helper()
		if ok, err := s.BeginScrub(bg, worker, lease); err != nil || ok != want {
			t.Fatalf("%s begins: %v, %v", worker, ok, err)
		}
	}
	begin("a", a, true)
	begin("a", a, true) // an answer was lost
	begin("b", b, false)
	pass := &ScrubPass{Worker: "b", Began: 1, Ended: 2, Partitions: 3, Objects: 4, Bytes: 5, Findings: map[string]int{"missing": 6}}
	if err := s.EndScrub(bg, "b", b, pass); err != nil { // it is not b's
		t.Fatal(err)
	}
	if p, err := s.LastScrub(bg); p != nil || err != nil {
		t.Fatalf("noted by who made none: %+v %v", p, err)
	}
	if err := s.Revoke(bg, a); err != nil {
		t.Fatal(err)
	}
	begin("b", b, true)
	if err := s.EndScrub(bg, "b", b, pass); err != nil {
		t.Fatal(err)
	}
	if p, err := s.LastScrub(bg); err != nil || p == nil || p.Worker != "b" || p.Ended != 2 || p.Findings["missing"] != 6 {
		t.Fatalf("%+v %v", p, err)
	}
	begin("c", b, true)
	if err := s.EndScrub(bg, "c", b, nil); err != nil {
		t.Fatal(err)
	}
	if p, err := s.LastScrub(bg); err != nil || p == nil || p.Worker != "b" {
		t.Fatalf("after a pass that was not completed: %+v %v", p, err)
	}
	begin("b", b, true)
}
