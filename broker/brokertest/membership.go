package brokertest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/varve/varve/interop/chaos/history"
	"github.com/varve/varve/metadata/image"
)

// Who is in an ISR. Two things are held against what the metadata says, at the very write that says it: what the brokers'
// records say of whoever joins, and what the log of whoever joins ends with.

// partitionState is a partition's state as it lies in etcd.
type partitionState struct {
	Leader         int32   `json:"leader"`
	LeaderEpoch    int32   `json:"epoch"`
	PartitionEpoch int32   `json:"pepoch"`
	Replicas       []int32 `json:"replicas"`
	ISR            []int32 `json:"isr"`
	ELR            []int32 `json:"elr"`
}

// brokerState is a broker's record there.
type brokerState struct {
	Epoch       int64  `json:"epoch"`
	Incarnation string `json:"incarnation"`
	Fenced      bool   `json:"fenced"`
	Stopping    bool   `json:"shuttingDown"`
}

// read is a JSON value of the store, nil if there is none. Called with the store's lock held.
func read[V any](s *store, key string) *V {
	kv := s.kvs[etcdPrefix+key]
	if kv == nil {
		return nil
	}
	return decode[V](kv.Value)
}

func decode[V any](b []byte) *V {
	v := new(V)
	if err := json.Unmarshal(b, v); err != nil {
		panic(fmt.Sprintf("brokertest: a value in etcd: %q: %v", b, err))
	}
	return v
}

func brokerKey(id int32) string { return fmt.Sprintf("/image/broker/%010d", id) }

func partitionKey(id string, index int32) string {
	return fmt.Sprintf("/image/partition/%s/%07d", id, index)
}

// stateOf is a partition's state now, nil if there is none.
func (c *Cluster) stateOf(id string, index int32) *partitionState {
	c.etcd.mu.Lock()
	defer c.etcd.mu.Unlock()
	return read[partitionState](c.etcd, partitionKey(id, index))
}

func (c *Cluster) brokerOf(id int32) *brokerState {
	c.etcd.mu.Lock()
	defer c.etcd.mu.Unlock()
	return read[brokerState](c.etcd, brokerKey(id))
}

// members checks a write of a partition's state. Called with the store's lock held.
func (w *workload) members(s *store, p history.Partition, id string, old, now *partitionState) {
	wrong := func(format string, args ...any) {
		w.c.fail("%s-%d: %s: %+v after %+v", p.Topic, p.Index, fmt.Sprintf(format, args...), *now, old)
	}
	for _, m := range now.ISR {
		if !slices.Contains(now.Replicas, m) || slices.Contains(now.ELR, m) {
			wrong("%d is in sync, and no replica or not in sync as well", m)
		}
	}
	if now.Leader >= 0 && !slices.Contains(now.ISR, now.Leader) {
		wrong("the leader is not in sync")
	}
	if old == nil {
		return
	}
	if now.PartitionEpoch <= old.PartitionEpoch || now.LeaderEpoch < old.LeaderEpoch || now.Leader != old.Leader && now.LeaderEpoch == old.LeaderEpoch {
		wrong("an epoch does not go on")
	}
	for _, m := range now.ISR {
		if slices.Contains(old.ISR, m) || slices.Contains(old.ELR, m) {
			continue // it had everything before
		}
		b := read[brokerState](s, brokerKey(m))
		if b == nil || b.Fenced || b.Stopping {
			wrong("%d joins the ISR, and its record says %+v", m, b)
			continue
		}
		epoch, end, ok := w.c.standing(m, id, p.Index)
		if !ok || epoch != b.Epoch {
			continue // a process that is gone, or not admitted yet, is not the one that is meant
		}
		if floor := w.exposed(p); end < floor {
			wrong("I1: %d joins the ISR, its log ends at %d, and everything below %d was acknowledged, or shown below a high watermark", m, end, floor)
		}
	}
}

// standing is what the process of a broker says of itself: its broker epoch, and where its log of a partition ends. False: it
// is not up.
func (c *Cluster) standing(broker int32, id string, index int32) (epoch, end int64, ok bool) {
	p := c.node(broker).running()
	if p == nil {
		return 0, 0, false
	}
	select {
	case <-p.up:
	default:
		return 0, 0, false
	}
	if p.srv == nil {
		return 0, 0, false
	}
	epoch, end = p.srv.Standing(topicID(id), index)
	return epoch, end, true
}

func topicID(id string) (t [16]byte) {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != len(t) {
		panic(fmt.Sprintf("brokertest: topic id %q", id))
	}
	copy(t[:], b)
	return t
}

// exposed is what every in-sync replica has: what was acknowledged by all of them, and what is below a high watermark that
// somebody was told.
func (w *workload) exposed(p history.Partition) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.ends[p]
	for t, mark := range w.marks {
		if t.p == p {
			end = max(end, mark)
		}
	}
	return end
}

// Two faults have an ISR change while its members are lost. Both begin with a follower that is cut off from its leader and
// leaves the ISR, as it must in time, and with producers that go on without it.

// parting is the partition whose follower is cut off, and the brokers that it is about.
type parting struct {
	p                      history.Partition
	id                     string // of the topic
	leader, follower, ctrl *node
	epoch                  int32 // of the leader
}

const (
	// parts is replica.lag.time.max.ms, and what it may take beyond that until the ISR is another: a controller may have to be
	// elected first.
	parts = 3*time.Second + 6*time.Second
	// goesOn is how long producers may take to go on then: a request may have to time out.
	goesOn = 8 * time.Second
)

// part cuts off a follower that neither leads nor controls, and waits until it is out of the ISR. done gives the brokers back;
// false: there is none.
func (f *faults) part(e *event, note func(string, ...any)) (x *parting, done func(), ok bool) {
	im := f.c.image()
	t := im.Topic(topicIn)
	if t == nil {
		return nil, nil, false
	}
	for _, i := range e.rnd.Perm(len(t.Partitions)) {
		if p := t.Partitions[i]; p.Leader != im.Controller {
			x = f.partingOf(im, t, i, p)
			break
		}
	}
	if x == nil || !f.take(x.leader, x.follower, x.ctrl) {
		return nil, nil, false
	}
	give := func() { f.give(x.leader, x.follower, x.ctrl) }
	note("broker %d no longer hears broker %d, which leads %s-%d; %d controls", x.follower.id, x.leader.id, x.p.Topic, x.p.Index, x.ctrl.id)
	x.cut(f.c, true)
	moved := false
	behind := time.Now() // since when it has not had everything
	err := eventually(4*parts, func() error {
		s := f.c.stateOf(x.id, x.p.Index)
		_, has, _ := f.c.standing(x.follower.id, x.id, x.p.Index)
		if _, all, ok := f.c.standing(x.leader.id, x.id, x.p.Index); !ok || has >= all {
			behind = time.Now()
		}
		switch {
		case s == nil || s.LeaderEpoch != x.epoch:
			moved = true
		case !slices.Contains(s.ISR, x.follower.id):
		case time.Since(behind) > parts:
			f.c.fail("I11: %s-%d: %d has heard nothing of its leader for %s, lacks records, and is in the ISR still: %+v", x.p.Topic, x.p.Index, x.follower.id, time.Since(behind), *s)
			moved = true
		default:
			return fmt.Errorf("%d is in the ISR still: %+v", x.follower.id, *s)
		}
		return nil
	})
	switch {
	case moved:
		note("another leads")
	case err != nil: // nothing comes that it could lack
		note("it lacks nothing: %v", err)
	default:
		note("broker %d is out of the ISR", x.follower.id)
		before := f.w.exposed(x.p)
		err = eventually(goesOn, func() error {
			if s := f.c.stateOf(x.id, x.p.Index); s == nil || s.LeaderEpoch != x.epoch {
				moved = true
			} else if f.w.exposed(x.p) == before {
				return fmt.Errorf("nothing is acknowledged beyond %d", before)
			}
			return nil
		})
		if err != nil && !moved {
			f.c.fail("I11: %s-%d: %s after its ISR became smaller: %v", x.p.Topic, x.p.Index, goesOn, err)
		}
	}
	if moved || err != nil {
		x.cut(f.c, false)
		give()
		return nil, nil, false
	}
	return x, give, true
}

func (f *faults) partingOf(im *image.Image, t *image.Topic, i int, p *image.Partition) *parting {
	for _, id := range p.Replicas {
		if id != p.Leader && id != im.Controller && f.c.node(p.Leader) != nil && f.c.node(im.Controller) != nil {
			return &parting{
				p: history.Partition{Topic: t.Name, Index: int32(i)}, id: hex.EncodeToString(t.ID[:]), epoch: p.LeaderEpoch,
				leader: f.c.node(p.Leader), follower: f.c.node(id), ctrl: f.c.node(im.Controller),
			}
		}
	}
	return nil
}

// cut has leader and follower not hear each other, or hear each other again.
func (x *parting) cut(c *Cluster, cut bool) {
	for _, way := range [][2]string{{x.leader.host, x.follower.host}, {x.follower.host, x.leader.host}} {
		if cut {
			c.net.Cut(way[0], way[1])
		} else {
			c.net.Heal(way[0], way[1], false)
		}
	}
}

// joinLate has the write that lets the follower join take a second, in which it hears nothing of the leader again: what is
// acknowledged meanwhile it does not have.
func joinLate(f *faults, e *event, note func(string, ...any)) {
	x, done, ok := f.part(e, note)
	if !ok {
		return
	}
	defer done()
	joining := make(chan struct{})
	once := false
	key := etcdPrefix + partitionKey(x.id, x.p.Index)
	f.c.etcd.Late(func(r *pb.TxnRequest) time.Duration {
		for _, op := range r.Success {
			put := op.GetRequestPut()
			if put == nil || string(put.Key) != key {
				continue
			}
			f.c.etcd.mu.Lock() // two transactions may be on their way
			first := !once && slices.Contains(decode[partitionState](put.Value).ISR, x.follower.id)
			once = once || first
			f.c.etcd.mu.Unlock()
			if first {
				x.cut(f.c, true)
				close(joining)
				return time.Second
			}
		}
		return 0
	})
	x.cut(f.c, false)
	select {
	case <-joining:
		note("broker %d is about to join the ISR, and cut off again", x.follower.id)
		time.Sleep(time.Second + e.lasts/4)
	case <-time.After(5 * time.Second):
		note("it does not join")
	}
	f.c.etcd.Late(nil)
	x.cut(f.c, false)
}

// joinStale has the follower lose its disk while the proposal that it join is on its way to the controller: the one that is
// meant has caught up, and the one that is there has nothing (KIP-903).
func joinStale(f *faults, e *event, note func(string, ...any)) {
	x, done, ok := f.part(e, note)
	if !ok {
		return
	}
	defer done()
	f.c.net.Cut(x.leader.host, x.ctrl.host)
	x.cut(f.c, false)
	time.Sleep(1300 * time.Millisecond) // it has caught up, and its leader proposes it
	x.cut(f.c, true)
	was := f.c.brokerOf(x.follower.id)
	note("broker %d loses its disk, and the controller does not hear broker %d", x.follower.id, x.leader.id)
	x.follower.Kill(true, 0)
	x.follower.Wipe()
	for _, s := range f.c.image().Sessions() {
		if s.ID == x.follower.id {
			f.c.etcd.revoke(s.Lease)
		}
	}
	x.follower.Start()
	err := eventually(1200*time.Millisecond, func() error {
		if b := f.c.brokerOf(x.follower.id); was == nil || b == nil || b.Fenced || b.Incarnation == was.Incarnation {
			return fmt.Errorf("it is not back")
		}
		return nil
	})
	note("broker %d is back: %t", x.follower.id, err == nil)
	f.c.net.Heal(x.leader.host, x.ctrl.host, false)
	time.Sleep(time.Second)
	x.cut(f.c, false)
}
