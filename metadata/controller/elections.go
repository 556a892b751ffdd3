package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/varve/varve/metadata/image"
)

// maxSettled bounds the partitions that settle changes at a time.
const maxSettled = 1000

// settle looks after partitions whose state is not to stay as it is: those
// without a leader get one as soon as somebody can lead, brokers that shut down
// or do not answer hand over what they lead and leave the ISRs that can do without
// them, brokers that are not to lead hand over, replicas whose log was cut yield to
// others, and reassignments end. It walks over all partitions, but only while there is
// something of the kind.
func settle(im *image.Image, env Env) ([]image.Change, []Event) {
	stopping := slices.ContainsFunc(im.Brokers(), func(b *image.Broker) bool { return b.ShuttingDown && !b.Fenced })
	unresponsive := func(id int32) bool { b := im.Broker(id); return b != nil && b.Unresponsive && !b.Fenced }
	silent := !env.Hold && slices.ContainsFunc(im.Brokers(), func(b *image.Broker) bool { return unresponsive(b.ID) })
	of := electable(im, env)
	there := func(id int32) bool { return running(im, id) }
	marked := of // an old copy without a mark of its own is waited for: what it acknowledged could not be told from what it is a copy of
	marked.alive = func(id int32) bool { return of.alive(id) && !im.Broker(id).Stale }
	resting := len(of.reserve) > 0 && !env.Hold
	if im.Unsettled() == 0 && !stopping && !resting {
		return nil, nil
	}
	var changes []image.Change
	var elected, unclean, handed, relieved, deserted, yielded, reassigned tally
	for t := range im.AllTopics() {
		least := minISR(im, env, t)
		for i, p := range t.Partitions {
			if len(changes) == maxSettled {
				break
			}
			next := *p
			if p.Leader == image.NoLeader {
				if elect(&next, of, least); next.Leader != image.NoLeader {
					elected.add(t, i)
				} else if !env.Hold && isUnclean(im, env, t) && !slices.ContainsFunc(union(p.ISR, p.ELR), im.Alive) && electUnclean(&next, marked, nil) {
					unclean.add(t, i)
				}
			} else {
				if stopping && handOver(im, &next, of, there, least) {
					handed.add(t, i)
				}
				if leader := next.Leader; resting && of.reserve[leader] && slices.ContainsFunc(difference(next.ISR, next.Cut), of.willing) {
					elect(&next, of, least)
					if !unresponsive(leader) {
						relieved.add(t, i)
					}
				}
				if silent && (leave(&next, unresponsive, there, least) || next.Leader != p.Leader && unresponsive(p.Leader)) {
					deserted.add(t, i)
				}
				if yield(&next, of, there, least) {
					yielded.add(t, i)
				} else if !env.Hold && finish(&next, of, least) {
					reassigned.add(t, i)
				}
			}
			if !same(p, &next) {
				changes = append(changes, setPartition(t.ID, i, next))
			}
		}
	}
	var events []Event
	for _, e := range []struct {
		tally
		kind, what string
	}{
		{elected, "elected", "%d partitions have a leader again, %s the first"},
		{unclean, "unclean", "%d partitions, %s the first, are led by a replica that was not in sync, because none that was is left (unclean.leader.election.enable): " +
			"what it had not copied, and is not in object storage, is lost"},
		{handed, "shutting-down", "%d partitions, %s the first, go on without a broker that shuts down"},
		{relieved, "relieved", "%d partitions, %s the first, are led by others than a broker that is not to lead (leadership.enable)"},
		{deserted, "relieved", "%d partitions, %s the first, go on without a broker that does not answer"},
		{yielded, "yielded", "%d partitions, %s the first, are led by others than a replica whose log was cut at its end, which is in sync again when it has caught up"},
		{reassigned, "reassigned", "%d partitions, %s the first, have the replicas that they were to have"},
	} {
		if e.n > 0 {
			events = append(events, Event{Kind: e.kind, Broker: image.NoLeader, Count: e.n, Message: fmt.Sprintf(e.what, e.n, e.first)})
		}
	}
	return changes, events
}

// tally counts partitions and remembers the first.
type tally struct {
	n     int
	first string
}

func (c *tally) add(t *image.Topic, index int) {
	if c.n++; c.n == 1 {
		c.first = fmt.Sprintf("%s-%d", t.Name, index)
	}
}

// handOver takes brokers that shut down out of a partition as far as others can
// do without them: the leadership goes to another in-sync replica, if there is
// one that can lead, and who does not lead leaves the ISR, unless too few would
// stay. It reports whether it changed anything.
func handOver(im *image.Image, p *image.Partition, of candidates, there func(int32) bool, minISR int) (changed bool) {
	ends := func(id int32) bool { b := im.Broker(id); return b != nil && b.ShuttingDown && !b.Fenced }
	if ends(p.Leader) && slices.ContainsFunc(difference(p.ISR, p.Cut), of.here(of.alive)) {
		elect(p, of, minISR)
		changed = true
	}
	return leave(p, ends, there, minISR) || changed
}

// leave takes brokers out of the ISR as far as enough are left without them that are
// there: of one that is only not known to be gone it is open what it comes back with. It
// reports whether it changed anything.
func leave(p *image.Partition, who, there func(int32) bool, minISR int) (changed bool) {
	for _, id := range slices.Clone(p.ISR) {
		if id == p.Leader || !who(id) {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(p.ISR), func(other int32) bool { return other == id || !there(other) })
		if len(rest) >= p.MinISR(minISR) {
			resize(p, without(p.ISR, id), minISR)
			changed = true
		}
	}
	return changed
}

// Leading is the number of partitions that a broker leads and that an active
// other has a replica of: what a broker that shuts down still has to hand over.
func Leading(im *image.Image, broker int32) (n int) {
	other := func(id int32) bool { return id != broker && im.Active(id) }
	for t := range im.AllTopics() {
		for _, p := range t.Partitions {
			if p.Leader == broker && slices.ContainsFunc(p.Replicas, other) {
				n++
			}
		}
	}
	return n
}

// BeginShutdown says that a broker is about to end; see the package comment.
type BeginShutdown struct {
	Broker      int32
	Incarnation [16]byte
}

func (c BeginShutdown) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	b := im.Broker(c.Broker)
	switch {
	case b == nil || b.Fenced || b.Incarnation != c.Incarnation:
		return nil, Reply{ErrorCode: codeStaleBrokerEpoch, Message: fmt.Sprintf("Broker %d is not registered, or by another process.", c.Broker)}
	case b.ShuttingDown:
		return nil, Reply{}
	}
	next := *b
	next.ShuttingDown = true
	return []image.Change{image.SetBroker{Broker: next}}, Reply{}
}

const uncleanName = "unclean.leader.election.enable"

// isUnclean is the topic's unclean.leader.election.enable.
func isUnclean(im *image.Image, env Env, t *image.Topic) bool {
	on := env.Unclean
	for _, values := range []map[string]string{im.Config(image.BrokerResource, ""), t.Config} {
		switch v := strings.TrimSpace(values[uncleanName]); {
		case strings.EqualFold(v, "true"):
			on = true
		case strings.EqualFold(v, "false"):
			on = false
		}
	}
	return on
}

// ReplicaLog is what a replica of a partition has, as its broker tells.
type ReplicaLog struct {
	Broker      int32
	LeaderEpoch int32 // the last one in its log, -1: none
	LogEnd      int64
	Damaged     bool `json:",omitempty"` // it cannot lead before an operator accepts what is left of its log
}

// electUnclean has the replica lead, of those that are there, that has most: the
// latest leader epoch, and with it the longest log (KIP-966). What others had
// beyond that is gone. They are not in sync with it, and not eligible. Who has not
// told what it has comes after those who have, in the order of the assignment, and
// last whoever could not lead: a partition that has a leader is not given another.
func electUnclean(p *image.Partition, of candidates, logs []ReplicaLog) bool {
	has := func(id int32) ReplicaLog {
		if at := slices.IndexFunc(logs, func(l ReplicaLog) bool { return l.Broker == id }); at >= 0 {
			return logs[at]
		}
		return ReplicaLog{LeaderEpoch: -1, LogEnd: -1}
	}
	p.Leader = image.NoLeader
	var best ReplicaLog
	for _, id := range p.Replicas {
		if !of.alive(id) {
			continue
		}
		l := has(id)
		more := cmp.Or(cmp.Compare(l.LeaderEpoch, best.LeaderEpoch), cmp.Compare(l.LogEnd, best.LogEnd))
		switch {
		case best.Damaged && !l.Damaged:
			more = 1
		case l.Damaged && !best.Damaged:
			more = -1
		}
		if p.Leader == image.NoLeader || more > 0 || more == 0 && of.reserve[p.Leader] && !of.reserve[id] {
			p.Leader, best = id, l
		}
	}
	if p.Leader == image.NoLeader {
		return false
	}
	p.ISR, p.ELR = []int32{p.Leader}, nil
	p.LeaderEpoch++
	p.Recovering = true
	return true
}

// UncleanLeader is who would lead a partition that has no leader, if an operator
// asked for it now; image.NoLeader if nobody can.
func UncleanLeader(im *image.Image, p *image.Partition, logs []ReplicaLog) int32 {
	next := *p
	electUnclean(&next, electable(im, Env{}), logs)
	return next.Leader
}

// preferred has the first replica of the assignment lead, if it can without a
// loss.
func preferred(p *image.Partition, of candidates) bool {
	if len(p.Replicas) == 0 || !of.here(of.willing)(p.Replicas[0]) || !slices.Contains(p.ISR, p.Replicas[0]) || slices.Contains(p.Cut, p.Replicas[0]) {
		return false
	}
	p.Leader = p.Replicas[0]
	p.LeaderEpoch++
	return true
}

// ElectLeaders is an operator's request: the preferred leaders (KIP-183), or,
// where there is no leader, any (KIP-460).
type ElectLeaders struct {
	Unclean    bool
	All        bool // of all topics; only those come back that needed an election
	Partitions []PartitionName
	// Of an unclean election: what replicas have, of the partitions of which it is
	// known; and who alone may lead, nil: anybody.
	Logs   []PartitionLogs `json:",omitempty"`
	Leader *int32          `json:",omitempty"`
}

// PartitionLogs is what the replicas of a partition have.
type PartitionLogs struct {
	PartitionName
	Logs []ReplicaLog
}

// PartitionName names a partition as clients do.
type PartitionName struct {
	Topic     string
	Partition int32
}

func (c ElectLeaders) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	of := electable(im, env)
	others := of
	if c.Leader != nil {
		others.alive = func(id int32) bool { return id == *c.Leader && of.alive(id) }
	}
	logs := make(map[PartitionName][]ReplicaLog, len(c.Logs))
	for _, l := range c.Logs {
		logs[l.PartitionName] = l.Logs
	}
	var changes []image.Change
	var reply Reply
	var unclean tally
	one := func(t *image.Topic, index int, r PartitionResult) PartitionResult {
		p := t.Partitions[index]
		next := *p
		switch {
		case c.Unclean && p.Leader != image.NoLeader || !c.Unclean && len(p.Replicas) > 0 && p.Leader == p.Replicas[0]:
			return r.fail(codeElectionNotNeeded, "Leader election not needed for topic partition.")
		case !c.Unclean:
			if !preferred(&next, of) {
				return r.fail(codePreferredNotAvailable, "The preferred leader was not available.")
			}
		default:
			if elect(&next, of, minISR(im, env, t)); next.Leader == image.NoLeader {
				if !electUnclean(&next, others, logs[PartitionName{t.Name, int32(index)}]) {
					return r.fail(codeEligibleNotAvailable, "Eligible topic partition leaders are not available.")
				}
				unclean.add(t, index)
			}
		}
		changes = append(changes, setPartition(t.ID, index, next))
		return r
	}
	if c.All {
		for t := range im.AllTopics() {
			for i := range t.Partitions {
				if r := one(t, i, PartitionResult{Topic: t.Name, Partition: int32(i)}); r.ErrorCode != codeElectionNotNeeded {
					reply.Partitions = append(reply.Partitions, r)
				}
			}
		}
	}
	seen := make(map[PartitionName]bool, len(c.Partitions))
	for _, name := range c.Partitions {
		if seen[name] {
			continue
		}
		seen[name] = true
		t, p, r := named(im, PartitionResult{Topic: name.Topic, Partition: name.Partition})
		if p != nil {
			r = one(t, int(name.Partition), r)
		}
		reply.Partitions = append(reply.Partitions, r)
	}
	if unclean.n > 0 {
		reply.Events = []Event{{Kind: "unclean", Broker: image.NoLeader, Count: unclean.n, Message: fmt.Sprintf(
			"%d partitions, %s the first, are led by a replica that was not in sync, as an operator asked: what it had not copied, and is not in object storage, is lost", unclean.n, unclean.first)}}
	}
	return changes, reply
}

// Balance gives leaderships back to the preferred leaders of brokers that more
// than Percentage of them are missing from, at most Limit at a time. The number
// is the count of the reply's event; none is no imbalance.
type Balance struct {
	Percentage int
	Limit      int
}

func (c Balance) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	of := electable(im, env)
	type share struct{ own, missing int }
	shares := map[int32]*share{}
	each := func(f func(t *image.Topic, index int, p *image.Partition)) {
		for t := range im.AllTopics() {
			for i, p := range t.Partitions {
				if len(p.Replicas) > 0 && p.Leader != image.NoLeader && !p.Reassigning() && !of.reserve[p.Replicas[0]] {
					f(t, i, p)
				}
			}
		}
	}
	each(func(_ *image.Topic, _ int, p *image.Partition) {
		s := shares[p.Replicas[0]]
		if s == nil {
			s = &share{}
			shares[p.Replicas[0]] = s
		}
		s.own++
		if p.Leader != p.Replicas[0] {
			s.missing++
		}
	})
	var changes []image.Change
	var moved tally
	each(func(t *image.Topic, i int, p *image.Partition) {
		s := shares[p.Replicas[0]]
		if moved.n == c.Limit || p.Leader == p.Replicas[0] || s.missing*100 <= c.Percentage*s.own {
			return
		}
		if next := *p; preferred(&next, of) {
			changes = append(changes, setPartition(t.ID, i, next))
			moved.add(t, i)
		}
	})
	if moved.n == 0 {
		return nil, Reply{}
	}
	return changes, Reply{Events: []Event{{Kind: "rebalanced", Broker: image.NoLeader, Count: moved.n,
		Message: fmt.Sprintf("%d partitions, %s the first, are led by their preferred replicas again", moved.n, moved.first)}}}
}
