package broker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// An unclean election loses records. Who orders one can be shown before which
// those are, as far as anybody who is there knows; and of the replicas that are
// there the one leads that has most. So they are asked what they have:
//
//	OffsetForLeaderEpoch, logTag    among brokers: the last leader epoch and the log end of a replica, whoever
//	                                leads, and the highest high watermark that it has heard of
//	ElectLeaders, type ElectShow    the answers of all replicas, and who would lead; nothing is elected
//	ElectLeaders, type 1 (unclean)  the answers go to the controller with the command
//	        with LeaderTag          the one that is named leads, or nobody: it is who was shown
//
// Nobody writes to a partition without a leader: what a replica has told stands
// until somebody leads.

const (
	// ElectShow is a type of election that is none, and not Kafka's: a broker that
	// does not know it refuses it, as it would not a tagged field.
	ElectShow = 0x76
	// LogsTag is the tagged field of a partition in the answer to ElectShow: an
	// UncleanElection in JSON.
	LogsTag = 0x7663
	// LeaderTag is the tagged field of a request for an unclean election that names
	// the one broker that may be elected: its id, 4 bytes.
	LeaderTag = 0x7664
	// logTag is the tagged field of a partition by which a broker asks another one
	// what it has of it, without a value; in the answer the high watermark (8
	// bytes) and whether the log is damaged (1 byte).
	logTag = 0x7665

	// maxShownElections bounds the partitions of which one request is shown what
	// there is: each costs a read of its manifest head.
	maxShownElections = 100
	// logsTimeout bounds the wait for a broker that is asked what it has.
	logsTimeout = 2 * time.Second
	// headsTimeout bounds how long a broker that is asked reads manifest heads, of
	// all partitions together: whoever asks is to be answered before it gives up.
	headsTimeout = logsTimeout / 4
)

// ReplicaLog is what one replica has of a partition, as its broker tells.
type ReplicaLog struct {
	Broker        int32 `json:"broker"`
	InSync        bool  `json:"in_sync"` // or eligible: it has everything that was acknowledged
	Alive         bool  `json:"alive"`
	Told          bool  `json:"told"`           // the rest is known
	LeaderEpoch   int32 `json:"leader_epoch"`   // the last one in its log, -1: none
	LogEnd        int64 `json:"log_end"`        // -1: it has no log of the partition
	HighWatermark int64 `json:"high_watermark"` // the highest that it has heard of, -1: none
	Damaged       bool  `json:"damaged"`        // it cannot lead before an operator accepts what is left
}

// UncleanElection is what an unclean election would do, as far as the brokers that
// are there know.
type UncleanElection struct {
	Leader    int32        `json:"leader"`     // there is one, and none is elected; -1: there is none
	Elect     int32        `json:"elect"`      // who would lead; -1: nobody can
	RemoteEnd int64        `json:"remote_end"` // everything below is in the bucket, and stays
	Committed int64        `json:"committed"`  // everything below was acknowledged; there may have been more
	Replicas  []ReplicaLog `json:"replicas"`
}

// Lost is the range of offsets that are lost for certain if a replica leads: from
// where it goes on to what is known to have been acknowledged. From is the same as
// to if there are none.
func (u *UncleanElection) Lost(l ReplicaLog) (from, to int64) {
	from = max(l.LogEnd, u.RemoteEnd)
	return from, max(u.Committed, from)
}

// Of returns what a broker has.
func (u *UncleanElection) Of(broker int32) ReplicaLog {
	if at := slices.IndexFunc(u.Replicas, func(l ReplicaLog) bool { return l.Broker == broker }); at >= 0 {
		return u.Replicas[at]
	}
	return ReplicaLog{Broker: broker, LeaderEpoch: -1, LogEnd: -1, HighWatermark: -1}
}

// held is what this broker has of the partition, whoever leads it. It says of a log
// that it is damaged where tryLead would refuse to go on with it, and of one whose
// damage is in the bucket what tryLead would go on with. So of a log that recovery
// found suspect the manifest head is read; where that cannot be, or not before ctx
// ends, the bucket counts as empty. Nothing is changed: who asks may elect nobody.
func (r *replica) held(ctx context.Context) ReplicaLog {
	l := ReplicaLog{Broker: r.b.opts.BrokerID, Told: true, LeaderEpoch: -1, LogEnd: -1, HighWatermark: -1}
	r.mu.Lock()
	suspect := r.st == nil && r.recov != nil && r.recov.Suspect
	r.mu.Unlock()
	remoteEnd := int64(0)
	if suspect {
		if state, err := r.b.tier.Peek(ctx, r.topicID, r.index); err == nil {
			remoteEnd = state.RemoteEnd
		} else if r.b.failures.damage.Allow() {
			r.b.log.Warn("what is damaged of a local log may be in object storage: that is not known", "partition", r.String(), "err", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.st != nil:
		if last, ok := r.st.Lineage().Latest(); ok {
			l.LeaderEpoch = last.Epoch
		}
		l.LogEnd, l.HighWatermark = r.st.View().LogEnd, r.st.Heard()
	case r.recov != nil:
		rec := *r.recov
		if rec.Suspect && rec.ClaimedEnd > remoteEnd {
			if whole, ok := r.b.log_.CanSkip(rec.ID, remoteEnd); ok {
				rec = whole
			} else {
				l.Damaged = !r.b.opts.AcceptCorruptLog
			}
		}
		if last, ok := rec.Lineage.Latest(); ok {
			l.LeaderEpoch = last.Epoch
		}
		l.LogEnd, l.HighWatermark = rec.End, rec.HighWatermark
	case r.b.log_.Damaged() && !r.b.opts.AcceptCorruptLog && !r.dropped:
		// That there is no log may be the damage, if there can have been one.
		p := r.b.meta.Image().Partition(r.topicID, r.index)
		l.Damaged = p != nil && p.LeaderEpoch > 0
	}
	return l
}

// heldOf is held of many replicas. Their manifest heads are read beside each other.
func heldOf(ctx context.Context, replicas []*replica) map[*replica]ReplicaLog {
	if len(replicas) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, headsTimeout)
	defer cancel()
	logs := make([]ReplicaLog, len(replicas))
	var g errgroup.Group
	g.SetLimit(64)
	for i, r := range replicas {
		g.Go(func() error {
			logs[i] = r.held(ctx)
			return nil
		})
	}
	g.Wait()
	of := make(map[*replica]ReplicaLog, len(replicas))
	for i, r := range replicas {
		of[r] = logs[i]
	}
	return of
}

// asksForLog says whether another broker asks what this one has of a partition.
func asksForLog(tags *kmsg.Tags) (asks bool) {
	tags.Each(func(tag uint32, _ []byte) { asks = asks || tag == logTag })
	return asks
}

// tell answers that.
func (l *ReplicaLog) tell(out *kmsg.OffsetForLeaderEpochResponseTopicPartition) {
	out.LeaderEpoch, out.EndOffset = l.LeaderEpoch, l.LogEnd
	rest := binary.BigEndian.AppendUint64(nil, uint64(l.HighWatermark))
	if l.Damaged {
		rest = append(rest, 1)
	} else {
		rest = append(rest, 0)
	}
	out.UnknownTags.Set(logTag, rest)
}

// logsOf asks the brokers that are there what they have of partitions. Those that
// do not exist are left out.
func (b *Broker) logsOf(ctx context.Context, im *image.Image, names []controller.PartitionName) map[controller.PartitionName][]ReplicaLog {
	logs := make(map[controller.PartitionName][]ReplicaLog, len(names))
	ask := map[int32][]controller.PartitionName{}
	for _, name := range names {
		p := partitionOf(im, name)
		if p == nil || logs[name] != nil {
			continue
		}
		for _, id := range p.Replicas {
			l := ReplicaLog{Broker: id, InSync: slices.Contains(p.ISR, id) || slices.Contains(p.ELR, id), Alive: im.Active(id), LeaderEpoch: -1, LogEnd: -1, HighWatermark: -1}
			logs[name] = append(logs[name], l)
			if l.Alive {
				ask[id] = append(ask[id], name)
			}
		}
	}
	timeout := logsTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(end)/2) // the rest is for what is done with the answers
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id, names := range ask {
		wg.Go(func() {
			told := b.askLogs(ctx, im.Broker(id), names)
			mu.Lock()
			defer mu.Unlock()
			for name, l := range told {
				if at := slices.IndexFunc(logs[name], func(l ReplicaLog) bool { return l.Broker == id }); at >= 0 {
					l.Broker, l.InSync, l.Alive = id, logs[name][at].InSync, true
					logs[name][at] = l
				}
			}
		})
	}
	wg.Wait()
	return logs
}

func partitionOf(im *image.Image, name controller.PartitionName) *image.Partition {
	if t := im.Topic(name.Topic); t != nil {
		return im.Partition(t.ID, name.Partition)
	}
	return nil
}

// askLogs asks one broker, this one or another, and returns what it told.
func (b *Broker) askLogs(ctx context.Context, to *image.Broker, names []controller.PartitionName) map[controller.PartitionName]ReplicaLog {
	told := make(map[controller.PartitionName]ReplicaLog, len(names))
	if to.ID == b.opts.BrokerID {
		var replicas []*replica
		for _, name := range names {
			if r := b.replicas.find(name.Topic, name.Partition); r != nil {
				replicas = append(replicas, r)
			}
		}
		for r, l := range heldOf(ctx, replicas) {
			told[controller.PartitionName{Topic: r.topic, Partition: r.index}] = l
		}
		return told
	}
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.Version, req.ReplicaID = 4, b.opts.BrokerID
	for _, name := range names {
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != name.Topic {
			t := kmsg.NewOffsetForLeaderEpochRequestTopic()
			t.Topic = name.Topic
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		p.Partition = name.Partition
		p.UnknownTags.Set(logTag, nil)
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, p)
	}
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	if err := b.peers.ask(ctx, to, req, resp, logsTimeout, true); err != nil {
		b.log.Warn("a broker does not tell what it has of partitions without a leader", "broker", to.ID, "partitions", len(names), "err", err)
		return nil
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			p := &resp.Topics[i].Partitions[j]
			p.UnknownTags.Each(func(tag uint32, v []byte) {
				if tag == logTag && len(v) == 9 && p.ErrorCode == 0 {
					told[controller.PartitionName{Topic: resp.Topics[i].Topic, Partition: p.Partition}] = ReplicaLog{
						Told: true, LeaderEpoch: p.LeaderEpoch, LogEnd: p.EndOffset, HighWatermark: int64(binary.BigEndian.Uint64(v)), Damaged: v[8] != 0}
				}
			})
		}
	}
	return told
}

// show says what an unclean election of a partition would do.
func (b *Broker) show(ctx context.Context, im *image.Image, name controller.PartitionName, logs []ReplicaLog) (UncleanElection, error) {
	p := partitionOf(im, name)
	u := UncleanElection{Leader: p.Leader, Elect: image.NoLeader, Replicas: logs}
	if p.Leader != image.NoLeader {
		return u, nil
	}
	state, err := b.tier.Peek(ctx, im.Topic(name.Topic).ID, name.Partition)
	if err != nil {
		return u, fmt.Errorf("read the manifest head: %w", err)
	}
	u.RemoteEnd, u.Committed = state.RemoteEnd, state.RemoteEnd
	for _, l := range logs {
		u.Committed = max(u.Committed, l.HighWatermark)
	}
	u.Elect = controller.UncleanLeader(im, p, forController(logs))
	return u, nil
}

// showElections answers ElectShow.
func (b *Broker) showElections(ctx context.Context, names []controller.PartitionName) []shownElection {
	im := b.meta.Image()
	logs := b.logsOf(ctx, im, names)
	var out []shownElection
	for _, name := range names {
		s := shownElection{PartitionResult: controller.PartitionResult{Topic: name.Topic, Partition: name.Partition}}
		if logs[name] == nil {
			s.ErrorCode, s.Message = protocol.CodeUnknownTopicOrPartition, "There is no such partition."
		} else if u, err := b.show(ctx, im, name, logs[name]); err != nil {
			s.ErrorCode, s.Message = protocol.CodeUnknownServerError, err.Error()
		} else if s.election, err = json.Marshal(u); err != nil {
			panic(fmt.Sprintf("broker: %+v as JSON: %v", u, err))
		}
		out = append(out, s)
	}
	return out
}

type shownElection struct {
	controller.PartitionResult
	election []byte
}

// forController are the answers of those who have given one.
func forController(logs []ReplicaLog) (out []controller.ReplicaLog) {
	for _, l := range logs {
		if l.Told {
			out = append(out, controller.ReplicaLog{Broker: l.Broker, LeaderEpoch: l.LeaderEpoch, LogEnd: l.LogEnd, Damaged: l.Damaged})
		}
	}
	return out
}

// leaderless are the partitions of a command that have no leader: those that are
// named, or all of them.
func leaderless(im *image.Image, c controller.ElectLeaders) (names []controller.PartitionName) {
	if !c.All {
		for _, name := range c.Partitions {
			if p := partitionOf(im, name); p != nil && p.Leader == image.NoLeader {
				names = append(names, name)
			}
		}
		return names
	}
	for t := range im.AllTopics() {
		for i, p := range t.Partitions {
			if p.Leader == image.NoLeader {
				names = append(names, controller.PartitionName{Topic: t.Name, Partition: int32(i)})
			}
		}
	}
	return names
}

// electAnyway gives a command for an unclean election what its replicas have, and
// says in the log what that was: of what is lost, nobody may be left to ask.
func (b *Broker) electAnyway(ctx context.Context, c controller.ElectLeaders) controller.Reply {
	im := b.meta.Image()
	logs := b.logsOf(ctx, im, leaderless(im, c))
	for name, l := range logs {
		c.Logs = append(c.Logs, controller.PartitionLogs{PartitionName: name, Logs: forController(l)})
	}
	slices.SortFunc(c.Logs, func(a, b controller.PartitionLogs) int { return comparePartitions(a.PartitionName, b.PartitionName) })
	reply := b.meta.Do(ctx, c)
	said := 0
	for _, r := range reply.Partitions {
		list := logs[controller.PartitionName{Topic: r.Topic, Partition: r.Partition}]
		if r.ErrorCode != 0 || list == nil || said == maxShownElections {
			continue
		}
		said++
		b.log.Warn("a leader is elected as an operator asked, in sync or not: what others had beyond it is lost", "partition", fmt.Sprintf("%s-%d", r.Topic, r.Partition), "replicas", describeLogs(list))
	}
	return reply
}

func describeLogs(list []ReplicaLog) string {
	var out []string
	for _, l := range list {
		s := fmt.Sprintf("%d:", l.Broker)
		switch {
		case !l.Alive:
			s += " away"
		case !l.Told:
			s += " no answer"
		default:
			s += fmt.Sprintf(" leader epoch %d, log end %d, high watermark %d", l.LeaderEpoch, l.LogEnd, l.HighWatermark)
		}
		if l.InSync {
			s += ", was in sync"
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}
