package broker

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/wal"
)

// maxLeading bounds how many partitions take up their role at one time: each
// reads one manifest head.
const maxLeading = 64

// replicas are the partitions that this broker has a replica of. They follow
// the metadata image: apply is called with each new one, from one goroutine.
type replicas struct {
	b *Broker

	mu        sync.RWMutex
	byID      map[[16]byte][]*replica // index is the partition; nil where the replica is elsewhere
	byName    map[string][]*replica
	recovered map[logKey]*wal.Recovered // local logs found at start that nobody has claimed yet

	multi    atomic.Int64 // how many have other replicas: while none has, nobody looks after ISRs
	trimming atomic.Int64 // how many have local.retention.*: while none has, nobody looks for what may leave the log

	admitted bool          // as of the last image; used by apply alone
	leading  chan struct{} // a token per role being taken up
	wg       sync.WaitGroup
}

type logKey struct {
	topicID [16]byte
	index   int32
}

func newReplicas(b *Broker, recovered []wal.Recovered) *replicas {
	rs := &replicas{
		b: b, byID: map[[16]byte][]*replica{}, byName: map[string][]*replica{},
		recovered: make(map[logKey]*wal.Recovered, len(recovered)),
		leading:   make(chan struct{}, maxLeading),
	}
	for i := range recovered {
		rec := &recovered[i]
		rs.recovered[logKey{rec.TopicID, rec.Partition}] = rec
	}
	return rs
}

func at(list []*replica, index int32) *replica {
	if index < 0 || int(index) >= len(list) {
		return nil
	}
	return list[index]
}

// find returns the replica of a topic's partition, or nil.
func (rs *replicas) find(topic string, index int32) *replica {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return at(rs.byName[topic], index)
}

// name returns a topic's name as a string that is kept, where the topic has
// replicas here.
func (rs *replicas) name(b []byte) string {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	for _, r := range rs.byName[string(b)] {
		if r != nil {
			return r.topic
		}
	}
	return string(b)
}

// byKey returns the replica that a fetch names, or nil.
func (rs *replicas) byKey(k partitionKey) *replica {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	if k.topic != "" {
		return at(rs.byName[k.topic], k.index)
	}
	return at(rs.byID[k.id], k.index)
}

// LogEnd is where the log of a partition on this broker ends, 0 without a replica.
func (b *Broker) LogEnd(topicID [16]byte, partition int32) int64 {
	r := b.replicas.byKey(partitionKey{id: topicID, index: partition})
	if r == nil {
		return 0
	}
	return r.view.Load().LogEnd
}

// all lists every replica here.
func (rs *replicas) all() []*replica {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	var out []*replica
	for _, list := range rs.byID {
		for _, r := range list {
			if r != nil {
				out = append(out, r)
			}
		}
	}
	return out
}

// apply brings the replicas in line with the image next. Before this process
// is admitted (its registration stands and every epoch it led has been raised)
// it leads nothing: no process may append in an epoch that an earlier one
// opened.
func (rs *replicas) apply(prev, next *image.Image) {
	admitted := rs.b.admitted(next)
	if prev == nil || admitted && !rs.admitted {
		prev = image.Empty()
	}
	rs.admitted = admitted
	changes := image.Diff(prev, next)
	// What is gone goes first: a topic of the same name may have come with the
	// same image, and the group coordinator knows its partitions by number only.
	for _, tc := range changes.Topics {
		if tc.Next == nil {
			rs.dropTopic(tc.Prev)
			rs.b.groups.TopicDeleted(tc.Prev.Name)
		}
	}
	for i := range changes.Topics {
		tc := &changes.Topics[i]
		t := tc.Next
		if t == nil {
			continue
		}
		cfg := rs.b.resolveTopic(next, t)
		list := rs.list(t)
		changed := tc.Partitions
		if tc.Config {
			changed = nil
			for i := range t.Partitions {
				changed = append(changed, int32(i))
			}
		}
		for _, index := range changed {
			if int(index) >= len(t.Partitions) || t.Partitions[index] == nil {
				continue
			}
			p := t.Partitions[index]
			r := at(list, index)
			if !slices.Contains(p.Replicas, rs.b.opts.BrokerID) {
				if r != nil {
					rs.drop(r)
				}
				continue
			}
			if r == nil {
				r = rs.open(t, index)
			}
			rs.configure(r, cfg)
			rs.follow(r, p, cfg.MinInsyncReplicas)
		}
	}
	if len(changes.Configs) > 0 {
		// A broker's dynamic defaults change what topics resolve to.
		resolved := map[[16]byte]*config.TopicConfig{}
		for _, r := range rs.all() {
			t := next.TopicByID(r.topicID)
			if t == nil {
				continue
			}
			if resolved[t.ID] == nil {
				resolved[t.ID] = rs.b.resolveTopic(next, t)
			}
			rs.configure(r, resolved[t.ID])
			if int(r.index) < len(t.Partitions) && t.Partitions[r.index] != nil {
				rs.follow(r, t.Partitions[r.index], resolved[t.ID].MinInsyncReplicas)
			}
		}
	}
	if admitted {
		rs.sweep(next)
	}
}

// list returns the slots of a topic, long enough for all its partitions.
func (rs *replicas) list(t *image.Topic) []*replica {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	list := rs.byID[t.ID]
	if len(list) < len(t.Partitions) {
		// A copy: readers hold the old slice.
		list = append(slices.Clone(list), make([]*replica, len(t.Partitions)-len(list))...)
		rs.byID[t.ID], rs.byName[t.Name] = list, list
	}
	return list
}

func (rs *replicas) open(t *image.Topic, index int32) *replica {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	k := logKey{t.ID, index}
	rec := rs.recovered[k]
	delete(rs.recovered, k)
	r := newReplica(rs.b, t, index, rec)
	rs.byID[t.ID][index] = r
	return r
}

// follow applies the partition's state to the replica: lead, follow, or neither.
func (rs *replicas) follow(r *replica, p *image.Partition, minISR int) {
	b := rs.b
	term := partition.Term{
		Epoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch,
		Replicas: p.Replicas, ISR: p.ISR, MinISR: p.MinISR(minISR),
	}
	leads := p.Leader == b.opts.BrokerID && rs.admitted
	follows := p.Leader != b.opts.BrokerID && p.Leader != image.NoLeader && rs.admitted
	rs.countMulti(r, len(p.Replicas) > 1)
	r.mu.Lock()
	same := r.lastSeen == p.LeaderEpoch && r.role != nil && r.leads == leads
	switch {
	case (leads || follows) && same:
		// The same role in the same epoch, with another ISR or minimum.
		if leads {
			b.isrChanged(r.term.ISR, term.ISR)
		}
		r.term = term
		if leads && r.started {
			before := r.view.Load()
			if _, err := r.st.Lead(term, b.uptimeMs()); err == nil {
				r.advanced(before)
				return
			}
		}
		r.mu.Unlock()
		return
	case r.role != nil && r.leads && leads:
		// Others may have led in between. Who waits for an append of the epoch before goes on waiting,
		// as long as the log is the same: tryLead tells those who can be told, and dropLocal the rest.
		r.role()
		r.mu.Unlock()
	case r.role != nil && r.leads:
		r.mu.Unlock()
		r.resign(p.LeaderEpoch, protocol.CodeNotLeaderOrFollower)
	case r.role != nil:
		r.role()
		r.role = nil
		r.mu.Unlock()
		r.stopFollowing()
	default:
		r.mu.Unlock()
	}
	r.mu.Lock()
	r.lastSeen, r.leads = p.LeaderEpoch, leads
	if !leads && !follows {
		r.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(b.ctx)
	r.role, r.term, r.started = cancel, term, false
	r.mu.Unlock()
	what, try := "leadership", r.tryLead
	if follows {
		leader := p.Leader
		what, try = "following", func(ctx context.Context) error { return r.tryFollow(ctx, leader) }
	}
	rs.wg.Add(1)
	go func() {
		defer rs.wg.Done()
		select {
		case rs.leading <- struct{}{}:
		case <-ctx.Done():
			return
		}
		first := try(ctx)
		<-rs.leading
		if first != nil {
			r.keepTrying(ctx, what, first, try)
		}
	}()
}

// configure gives a replica its topic's settings.
func (rs *replicas) configure(r *replica, cfg *config.TopicConfig) {
	was := r.config.Swap(cfg)
	if trims(was) != trims(cfg) {
		if trims(cfg) {
			rs.trimming.Add(1)
		} else {
			rs.trimming.Add(-1)
		}
	}
}

// trims says whether records that the bucket has may leave the log before it needs the room.
func trims(c *config.TopicConfig) bool {
	return c != nil && (c.LocalRetentionBytes >= 0 || c.LocalRetentionMs >= 0)
}

// countMulti notes whether a replica has others beside it.
func (rs *replicas) countMulti(r *replica, multi bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if multi == r.multi {
		return
	}
	r.multi = multi
	if multi {
		rs.multi.Add(1)
	} else {
		rs.multi.Add(-1)
	}
}

// drop ends a replica for good: its topic is deleted, or it moved away.
func (rs *replicas) drop(r *replica) {
	rs.mu.Lock()
	if list := rs.byID[r.topicID]; at(list, r.index) == r {
		list = slices.Clone(list)
		list[r.index] = nil
		rs.byID[r.topicID], rs.byName[r.topic] = list, list
	}
	rs.mu.Unlock()
	r.stop()
}

func (rs *replicas) dropTopic(t *image.Topic) {
	rs.mu.Lock()
	list := rs.byID[t.ID]
	delete(rs.byID, t.ID)
	// The name may already belong to the next topic.
	if same := rs.byName[t.Name]; len(same) == 0 || len(list) == 0 || sameList(same, list) {
		delete(rs.byName, t.Name)
	}
	rs.mu.Unlock()
	for _, r := range list {
		if r != nil {
			r.stop()
		}
	}
}

func sameList(a, b []*replica) bool { return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0] }

// sweep drops the local logs of partitions that the cluster no longer has, or
// not here.
// Only a complete image may decide that, which the one is that admits this
// process.
func (rs *replicas) sweep(im *image.Image) {
	rs.mu.Lock()
	var gone []*wal.Recovered
	for k, rec := range rs.recovered {
		p := im.Partition(k.topicID, k.index)
		if p == nil || !slices.Contains(p.Replicas, rs.b.opts.BrokerID) {
			gone = append(gone, rec)
			delete(rs.recovered, k)
		}
	}
	rs.mu.Unlock()
	for _, rec := range gone {
		rs.b.log.Info("local log of a partition that was deleted or moved away dropped", "partition", rec.Partition, "end", rec.End)
		rs.b.log_.Drop(rec.ID, nil)
	}
}

// close ends every leadership and waits for what goes on for it.
func (rs *replicas) close() {
	for _, r := range rs.all() {
		r.mu.Lock()
		if r.role != nil {
			r.role()
		}
		r.mu.Unlock()
	}
	rs.wg.Wait()
}
