package etcd

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
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
	elsewhere, _, err := s.Grant(bg, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Claim(bg, id(1), 1, Claim{Worker: claim.Worker, Tag: [4]byte{8}, Lease: elsewhere}); !errors.Is(err, ErrClaimed) {
		t.Errorf("a worker of the same name with another lease: %v", err)
	}
	// One that was taken when its worker had given it up already: nobody would give it back.
	stray := claim
	claim.Tag = [4]byte{1, 2, 3, 251}
	if err := m.Claim(bg, id(1), 1, claim); err != nil {
		t.Errorf("the worker that has it and does not know: %v", err)
	}
	if err := m.Unclaim(bg, id(1), 1, stray); err != nil {
		t.Fatal(err)
	}
	if err := m.Claim(bg, id(77), 0, claim); !errors.Is(err, ErrFenced) {
		t.Errorf("a partition that does not exist: %v", err)
	}
	if c, ok, err := claimed(m, id(1), 1); err != nil || !ok || c.Worker != claim.Worker || c.Tag != claim.Tag {
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
	if _, ok, _ := claimed(m, id(1), 1); !ok {
		t.Error("given back by somebody else")
	}
	if err := s.Revoke(bg, lease); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := claimed(m, id(1), 1); ok || err != nil {
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
	if _, ok, err := claimed(m, id(1), 1); ok || err != nil {
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

	// What it found unnamed is everybody's, too, and the next pass decides what is left of it.
	if u, err := s.Unnamed(bg); err != nil || len(u) != 0 {
		t.Fatalf("unnamed before any was: %v %v", u, err)
	}
	unnamed := map[[12]byte]int64{{1}: 1_700_000_000_000, {0xfe, 11: 0xff}: 1_700_000_000_000, {2}: 5}
	for i := range MaxUnnamed - 3 {
		unnamed[[12]byte{3, byte(i), byte(i >> 8)}] = 1_700_000_000_000
	}
	pass.Unnamed = unnamed
	if err := s.EndScrub(bg, "b", b, pass); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Unnamed(bg); err != nil || !maps.Equal(u, unnamed) {
		t.Fatalf("%d of %d unnamed objects are read back, %v", len(u), len(unnamed), err)
	}
	begin("b", b, true)
	unnamed[[12]byte{4}] = 6
	if err := s.EndScrub(bg, "b", b, pass); err == nil {
		t.Error("more than can be noted")
	}
	pass.Unnamed = map[[12]byte]int64{{2}: 5}
	if err := s.EndScrub(bg, "b", b, pass); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Unnamed(bg); err != nil || !maps.Equal(u, pass.Unnamed) {
		t.Fatalf("%v %v", u, err)
	}
}

// claimed tells who has a partition.
func claimed(m *Manifests, topicID [16]byte, partition int32) (c Claim, ok bool, err error) {
	list, err := m.Standing(bg, []image.PartitionRef{{TopicID: topicID, Index: partition}})
	if err != nil || list[0].Claim == nil {
		return Claim{}, false, err
	}
	return *list[0].Claim, true, nil
}

// Of many partitions, some of which lack a head, a leader or a claim, each answer is the right one's.
func TestStanding(t *testing.T) {
	s := newStore(t)
	must[string](t)(s.EnsureCluster(bg, ""))
	must[*image.Image](t)(s.Commit(bg, elect(t, s), must[*image.Image](t)(s.Load(bg)), topic(1, "a", 90, nil)))
	m := s.Manifests()
	lease, _, err := s.Grant(bg, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var refs []image.PartitionRef
	for i := range int32(100) { // more than one request
		refs = append(refs, image.PartitionRef{TopicID: id(1), Index: i})
	}
	for _, i := range []int32{0, 1, 41, 42, 89} {
		must[int64](t)(m.Commit(bg, CommitRequest{TopicID: id(1), Partition: i, LeaderEpoch: 5, Head: fmt.Appendf(nil, "head %d", i)}))
	}
	if err := m.Claim(bg, id(1), 1, Claim{Worker: "host/1", Tag: [4]byte{1, 2, 3, 4}, Lease: lease}); err != nil {
		t.Fatal(err)
	}
	list, err := m.Standing(bg, refs)
	if err != nil || len(list) != len(refs) {
		t.Fatal(len(list), err)
	}
	for i, got := range list {
		head, rev, err := m.Load(bg, id(1), int32(i))
		if err != nil {
			t.Fatal(err)
		}
		epoch, exists, err := m.LeaderEpoch(bg, id(1), int32(i))
		if err != nil {
			t.Fatal(err)
		}
		if string(got.Head) != string(head) || got.Rev != rev || got.LeaderEpoch != epoch || got.Exists != exists || (got.Claim != nil) != (i == 1) || exists != (i < 90) {
			t.Errorf("%d: %+v, want %q %d %d %v", i, got, head, rev, epoch, exists)
		}
	}
	if c := list[1].Claim; c == nil || c.Worker != "host/1" || c.Tag != [4]byte{1, 2, 3, 4} {
		t.Errorf("%+v", c)
	}
}
