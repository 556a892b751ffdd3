package controller

import (
	"slices"
	"testing"

	"github.com/varve/varve/metadata/image"
)

// register has a process of a broker be registered.
func (w *world) register(id int32, incarnation string, old bool) {
	w.apply(image.SetSession{Session: image.Session{ID: id, Incarnation: name16(incarnation), WAL: name16(string(rune('0' + id))), Stale: old}})
}

// settle reconciles until there is nothing left.
func (w *world) settle(t *testing.T) {
	t.Helper()
	for range 100 {
		changes, _ := Reconcile(w.im, w.env)
		if len(changes) == 0 {
			return
		}
		w.apply(changes...)
	}
	t.Fatal("it does not settle")
}

// together begins with brokers 1 to n, and a partition that some of them have.
func together(t *testing.T, n, minISR int, replicas ...int32) (w *world, p func() *image.Partition) {
	t.Helper()
	w = newWorld()
	w.env.MinISR = minISR
	for id := int32(1); id <= int32(n); id++ {
		w.register(id, string(rune('a'+id)), false)
	}
	w.settle(t)
	changes, reply := Handle(w.im, w.env, CreateTopics{Topics: []NewTopic{
		{Name: "t", ID: name16("t"), Partitions: -1, ReplicationFactor: -1, Assignments: []Assignment{{Replicas: replicas}}}}})
	if reply.Results[0].ErrorCode != 0 {
		t.Fatalf("%+v", reply)
	}
	w.apply(changes...)
	return w, func() *image.Partition { return w.im.Partition(name16("t"), 0) }
}

func (w *world) end(ids ...int32) {
	for _, id := range ids {
		w.apply(image.DropSession{ID: id})
	}
}

// 1 is in sync, and 2 eligible. The process of 1, fenced meanwhile, registers again; the controller ends between having it lead and
// letting it in, and it is killed. 2 comes back, and must not wait for it.
func TestHalfOfAReturn(t *testing.T) {
	w, p := together(t, 3, 2, 1, 2)
	w.end(2)
	w.settle(t)
	w.end(1)
	w.settle(t)
	if got := p(); got.Leader != image.NoLeader || !slices.Equal(got.ISR, []int32{1}) || !slices.Equal(got.ELR, []int32{2}) {
		t.Fatal(showPartition(got))
	}
	w.register(1, "b", false)
	changes, _ := Reconcile(w.im, w.env)
	for _, c := range changes {
		if w.apply(c); p().Leader == 1 {
			break
		}
	}
	if b := w.im.Broker(1); p().Leader != 1 || !b.Fenced {
		t.Fatalf("the controller cannot end between the two: %+v, %s", b, showPartition(p()))
	}
	w.end(1)
	w.settle(t)
	w.register(2, "c2", false)
	w.settle(t)
	if got := p(); got.Leader != 2 {
		t.Fatalf("2 is there and has everything: %s", showPartition(got))
	}
}

// All that have a partition lose their power at one moment, and the controller is another. Nothing is committed without any of them
// from then on: who is back first leads.
func TestAllAreGone(t *testing.T) {
	for first := int32(1); first <= 3; first++ {
		w, p := together(t, 4, 2, 1, 2, 3)
		w.end(1, 2, 3)
		w.settle(t)
		if got := p(); len(union(got.ISR, got.ELR)) != 3 {
			t.Errorf("all of them have everything: %s", showPartition(got))
		}
		w.register(first, "x", false)
		w.settle(t)
		if got := p(); got.Leader != first {
			t.Errorf("%d is back first, and has everything: %s", first, showPartition(got))
		}
	}
}

// 1 alone is in sync, and 2 is there and has not caught up. 1 comes back from a copy of its directory that may have less than 2 has:
// nobody leads, so that 2 cuts nothing off, until an operator has said who; then it is who has most.
func TestOldCopyOfTheLastInSync(t *testing.T) {
	w, p := together(t, 3, 1, 1, 2)
	w.end(2)
	w.settle(t)
	w.register(2, "c2", false)
	w.settle(t)
	w.register(1, "b2", true)
	w.settle(t)
	if got := p(); got.Leader != image.NoLeader || len(got.ISR)+len(got.ELR) > 0 {
		t.Fatalf("2 may have more than the copy: %s", showPartition(got))
	}
	name := PartitionName{"t", 0}
	changes, reply := Handle(w.im, w.env, ElectLeaders{Unclean: true, Partitions: []PartitionName{name},
		Logs: []PartitionLogs{{name, []ReplicaLog{{Broker: 1, LeaderEpoch: 0, LogEnd: 5}, {Broker: 2, LeaderEpoch: 0, LogEnd: 7}}}}})
	if w.apply(changes...); p().Leader != 2 {
		t.Fatalf("2 has most: %+v, %s", reply, showPartition(p()))
	}
}

// What has no other replica is led from an old copy of it: nobody else has more.
func TestOldCopyOfTheOnlyReplica(t *testing.T) {
	w, p := together(t, 3, 1, 1)
	w.register(1, "b2", true)
	w.settle(t)
	if got := p(); got.Leader != 1 || got.LeaderEpoch != 1 || !got.Recovering {
		t.Fatal(showPartition(got))
	}
}

// A machine is set back together with its memory: the process that registers again is the one that was admitted, and lacks what came
// since. It is in the ISR no more, whoever led, and while it is not admitted again nobody takes it for what it was.
func TestProcessThatWasSetBack(t *testing.T) {
	for _, set := range []int32{1, 2} {
		w, p := together(t, 3, 1, 1, 2, 3)
		was := *p()
		incarnation := string(rune('a' + set))
		w.register(set, incarnation, true)
		if running(w.im, set) || present(w.im, w.env, set) {
			t.Errorf("%d: it counts as what it was", set)
		}
		w.settle(t)
		got := p()
		if slices.Contains(got.ISR, set) || slices.Contains(got.ELR, set) || got.Leader == set {
			t.Errorf("%d has everything no more: %s", set, showPartition(got))
		}
		if led := was.Leader == set; led != (got.LeaderEpoch > was.LeaderEpoch) {
			t.Errorf("%d led: %v; %s", set, led, showPartition(got))
		}
		if b := w.im.Broker(set); !b.Stale || b.Fenced {
			t.Errorf("%+v", b)
		}
		// It registers again: that is known.
		before := p().PartitionEpoch
		w.register(set, incarnation, true)
		w.settle(t)
		if p().PartitionEpoch != before {
			t.Error(showPartition(p()))
		}
		// It has got a mark and caught up, and is set back once more.
		changes, reply := Handle(w.im, w.env, Marked{Broker: set, BrokerEpoch: w.im.Broker(set).Epoch})
		if w.apply(changes...); reply.ErrorCode != 0 || w.im.Broker(set).Stale {
			t.Errorf("%+v", reply)
		}
		got = p()
		changes, reply = Handle(w.im, w.env, AlterPartition{Broker: got.Leader, BrokerEpoch: w.im.Broker(got.Leader).Epoch, Partitions: []Proposal{
			{TopicID: name16("t"), LeaderEpoch: got.LeaderEpoch, PartitionEpoch: got.PartitionEpoch, ISR: []ISRMember{{1, -1}, {2, -1}, {3, -1}}}}})
		if w.apply(changes...); reply.Partitions[0].ErrorCode != 0 {
			t.Errorf("%+v", reply)
		}
		w.register(set, incarnation, true)
		w.settle(t)
		if got := p(); slices.Contains(got.ISR, set) || !w.im.Broker(set).Stale {
			t.Errorf("%d has everything no more: %s", set, showPartition(got))
		}
	}
}

// As above, of the only replica there is. It has forgotten what it appended in its epoch, which the bucket may have: it begins another.
func TestOnlyReplicaThatWasSetBack(t *testing.T) {
	w, p := together(t, 3, 1, 1)
	w.register(1, "b", true)
	w.settle(t)
	if got := p(); got.Leader != 1 || got.LeaderEpoch != 1 || !got.Recovering {
		t.Fatal(showPartition(got))
	}
}

// The first mark of an old copy cannot be written, for lack of room say: the copy catches up, and is in no ISR for it. What it would
// acknowledge there is not in the directory that it is a copy of, which still has etcd's mark and comes back as if nothing had been.
func TestOldCopyThatGetsNoMark(t *testing.T) {
	w, p := together(t, 3, 1, 1, 2, 3)
	w.register(2, "c2", true)
	w.settle(t)
	join := func() int16 {
		t.Helper()
		now := p()
		changes, reply := Handle(w.im, w.env, AlterPartition{Broker: now.Leader, BrokerEpoch: w.im.Broker(now.Leader).Epoch, Partitions: []Proposal{
			{TopicID: name16("t"), LeaderEpoch: now.LeaderEpoch, PartitionEpoch: now.PartitionEpoch, ISR: []ISRMember{{1, -1}, {2, -1}, {3, -1}}}}})
		w.apply(changes...)
		return reply.Partitions[0].ErrorCode
	}
	if code := join(); code != codeIneligibleReplica || w.im.MayJoin(2) {
		t.Errorf("it joins without a mark: %d, %s", code, showPartition(p()))
	}
	// What is new has it as a replica, and others in sync, unless there are none.
	for topic, replicas := range map[string][]int32{"both": {2, 3}, "alone": {2}} {
		changes, reply := Handle(w.im, w.env, CreateTopics{Topics: []NewTopic{
			{Name: topic, ID: name16(topic), Partitions: -1, ReplicationFactor: -1, Assignments: []Assignment{{Replicas: replicas}}}}})
		if w.apply(changes...); reply.Results[0].ErrorCode != 0 {
			t.Fatalf("%+v", reply)
		}
		if got := w.im.Partition(name16(topic), 0); slices.Contains(got.ISR, 2) != (topic == "alone") || got.Leader != replicas[len(replicas)-1] {
			t.Errorf("%s: %s", topic, showPartition(got))
		}
	}
	// One of another registration is not meant.
	if changes, reply := Handle(w.im, w.env, Marked{Broker: 2, BrokerEpoch: 2}); len(changes) > 0 || reply.ErrorCode != codeStaleBrokerEpoch {
		t.Errorf("%+v", reply)
	}
	changes, _ := Handle(w.im, w.env, Marked{Broker: 2, BrokerEpoch: w.im.Broker(2).Epoch})
	if w.apply(changes...); join() != codeNone || !slices.Contains(p().ISR, 2) {
		t.Errorf("it has a mark: %s", showPartition(p()))
	}
}

// An operator starts 2 with the word that what is lost is lost. That is about what was lost then: when the process loses its session
// later, and by then the disk of 1 is lost, which alone had everything, it does not take over without being asked. Started anew it does.
func TestAcceptedLossIsOfTheStart(t *testing.T) {
	w, p := together(t, 3, 1, 1, 2)
	accepting := func(incarnation string) {
		w.apply(image.SetSession{Session: image.Session{ID: 2, Incarnation: name16(incarnation), WAL: name16("2"), AcceptLoss: true}})
		w.settle(t)
	}
	accepting("c2")
	w.end(2)
	w.settle(t)
	w.apply(image.SetSession{Session: image.Session{ID: 1, Incarnation: name16("b2"), WAL: name16("another")}})
	w.settle(t)
	if got := p(); got.Leader != image.NoLeader || len(got.ISR)+len(got.ELR) > 0 {
		t.Fatalf("the disk is lost: %s", showPartition(got))
	}
	accepting("c2")
	if got := p(); got.Leader != image.NoLeader {
		t.Fatalf("nobody has accepted this loss: %s", showPartition(got))
	}
	accepting("c3")
	if got := p(); got.Leader != 2 || !got.Recovering {
		t.Fatal(showPartition(got))
	}
}

// While sessions may be about to return, nobody leads in the place of one that is there who is only not known to be gone: it is open what
// that comes back with. And nobody who shuts down leaves the ISR for its sake.
func TestThoseWhoAreAwayAreNotChosen(t *testing.T) {
	w, p := together(t, 4, 2, 1, 2, 3)
	w.env.Hold = true
	w.end(2)
	w.apply(image.SetSession{Session: image.Session{ID: 1, Incarnation: name16("b2"), WAL: name16("lost")}})
	w.settle(t)
	if got := p(); got.Leader != 3 {
		t.Fatalf("3 is there: %s", showPartition(got))
	}

	w, p = together(t, 4, 2, 1, 2, 3)
	w.env.Hold = true
	w.end(1, 2)
	changes, _ := Handle(w.im, w.env, BeginShutdown{Broker: 3, Incarnation: w.im.Broker(3).Incarnation})
	w.apply(changes...)
	w.settle(t)
	if got := p(); !slices.Contains(got.ISR, 3) {
		t.Fatalf("3 alone is known to be there: %s", showPartition(got))
	}

	w, p = together(t, 4, 2, 1, 2, 3)
	w.end(1)
	w.settle(t)
	w.register(1, "b2", false)
	w.settle(t)
	now := p()
	changes, _ = Handle(w.im, w.env, AlterPartition{Broker: now.Leader, BrokerEpoch: w.im.Broker(now.Leader).Epoch, Partitions: []Proposal{
		{TopicID: name16("t"), LeaderEpoch: now.LeaderEpoch, PartitionEpoch: now.PartitionEpoch, ISR: []ISRMember{{1, -1}, {2, -1}, {3, -1}}}}})
	w.apply(changes...)
	w.env.Hold = true
	w.end(1)
	for _, c := range []Command{ElectLeaders{All: true}, BeginShutdown{Broker: 2, Incarnation: w.im.Broker(2).Incarnation}} {
		changes, _ = Handle(w.im, w.env, c)
		w.apply(changes...)
		w.settle(t)
		if got := p(); got.Leader == 1 || len(got.ISR) != 3 && got.Leader == 2 {
			t.Fatalf("%T: 1 is away: %s", c, showPartition(got))
		}
	}
}
