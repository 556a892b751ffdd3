package group

import (
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group/assignor"
)

// applyConsumer is Apply for the records of the consumer protocol. A group is there from its first record to the
// tombstone of its epoch, which is the last of those that remove it.
func (s *Shard) applyConsumer(r Record) error {
	d, err := decodeConsumer(r)
	if err != nil {
		return err
	}
	e := s.groups[d.group]
	if d.gone && (e == nil || e.consumer == nil) {
		return nil
	}
	if e == nil {
		e = s.entry(d.group)
	}
	if e.consumer == nil {
		// Member ids that were handed out for the classic protocol are worth nothing any more.
		e.consumer, e.group = newConsumers(), newClassic(-1)
		e.revokes, e.rejoins, e.seen, e.viewed = map[string]revocation{}, map[string]revocation{}, map[string]int64{}, 0
		clear(e.sessions)
	}
	c := e.consumer
	switch d.kind {
	case keyConsumerGroup:
		if d.gone {
			e.consumer, e.revokes, e.rejoins, e.seen = nil, nil, nil, nil
			clear(e.sessions)
			break
		}
		c.epoch, c.hash = d.epoch, d.hash
	case keyConsumerTopics:
		c.legacy = !d.gone
	case keyConsumerTarget:
		c.targetEpoch, c.assignedAt = d.epoch, d.at
	case keyConsumerAssigned:
		c.bytes -= targetSize(c.target[d.name])
		delete(c.target, d.name)
		if !d.gone {
			c.target[d.name] = d.target
			c.bytes += targetSize(d.target)
		}
	case keyConsumerMember:
		if d.gone {
			c.put(d.name, nil)
			break
		}
		m := d.member
		if old := c.members[d.name]; old != nil {
			m.epoch, m.previous, m.state, m.assigned, m.revoking = old.epoch, old.previous, old.state, old.assigned, old.revoking
			c.describe(m)
			break
		}
		m.assigned, m.revoking = holding{}, holding{}
		c.put(d.name, m)
	case keyConsumerCurrent:
		// The record of who it is comes first and is removed last, but compaction may have left only a newer one of
		// that: then this one is of a member to come.
		m := &consumerMember{id: d.name}
		if old := c.members[d.name]; old != nil {
			copied := *old
			m = &copied
		} else if d.gone {
			break
		}
		m.epoch, m.previous, m.state, m.assigned, m.revoking = 0, 0, memberStable, holding{}, holding{}
		if !d.gone {
			m.epoch, m.previous, m.state, m.assigned, m.revoking = d.member.epoch, d.member.previous, d.member.state, d.member.assigned, d.member.revoking
		}
		c.put(d.name, m)
	case keyConsumerRegex:
		c.bytes -= c.regexes[d.name].size()
		delete(c.regexes, d.name)
		if !d.gone {
			c.regexes[d.name] = d.regex
			c.bytes += d.regex.size()
		}
	}
	s.weigh(e)
	s.tidy(d.group, e)
	return nil
}

// settleConsumer takes over what of a group of the consumer protocol is not in the log.
func (e *entry) settleConsumer(now time.Time, r Result) {
	set := func(deadlines map[string]revocation, xs []revocation) {
		for _, x := range xs {
			if x.by.IsZero() || e.consumer.members[x.member] == nil {
				delete(deadlines, x.member)
				continue
			}
			x.by = x.by.Add(now.Sub(r.at))
			deadlines[x.member] = x
		}
	}
	set(e.revokes, r.revokes)
	set(e.rejoins, r.rejoins)
	for _, x := range r.seen {
		e.seen[x.expr] = x.version
	}
	for expr := range e.seen {
		if _, ok := e.consumer.regexes[expr]; !ok {
			delete(e.seen, expr)
		}
	}
	if r.viewed != 0 {
		e.viewed = r.viewed
	}
}

// mayFetch says whether a member may fetch the offsets of its group: an earlier epoch's owner would begin where another
// goes on.
func (s *Shard) mayFetch(req *kmsg.OffsetFetchRequestGroup) int16 {
	e := s.groups[req.Group]
	if e == nil || e.consumer == nil || req.MemberID == nil && req.MemberEpoch < 0 {
		return codeNone
	}
	id := ""
	if req.MemberID != nil {
		id = *req.MemberID
	}
	m := e.consumer.members[id]
	switch {
	case m == nil:
		return codeUnknownMemberID
	case m.epoch != req.MemberEpoch:
		return codeStaleMemberEpoch
	}
	return codeNone
}

// DescribeConsumer answers one group of a ConsumerGroupDescribe request. Partitions of topics that are not there any
// more are left out.
func (s *Shard) DescribeConsumer(id string, view Topics) kmsg.ConsumerGroupDescribeResponseGroup {
	resp := kmsg.NewConsumerGroupDescribeResponseGroup()
	resp.Group = id
	e := s.groups[id]
	if e == nil || e.consumer == nil {
		resp.ErrorCode = codeGroupIDNotFound
		msg := fmt.Sprintf("Group %s not found.", id)
		if e != nil {
			msg = fmt.Sprintf("Group %s is not a consumer group.", id)
		}
		resp.ErrorMessage = &msg
		return resp
	}
	c := e.consumer
	resp.State, resp.Epoch, resp.AssignmentEpoch = c.stateName(), c.epoch, c.targetEpoch
	resp.AssignorName = c.assignorName(s.cfg.ConsumerAssignors[0])
	for _, id := range c.ids() {
		m := c.members[id]
		rm := kmsg.NewConsumerGroupDescribeResponseGroupMember()
		rm.MemberID, rm.InstanceID, rm.RackID, rm.MemberEpoch = m.id, m.instance, m.rack, m.epoch
		rm.ClientID, rm.ClientHost, rm.SubscribedTopics = m.clientID, m.clientHost, m.topics
		if m.regex != "" {
			rm.SubscribedTopicRegex = &m.regex
		}
		has := assignor.Assignment{}
		for t, ps := range m.assigned {
			for _, p := range ps {
				has[t] = append(has[t], p.partition)
			}
		}
		rm.Assignment.TopicPartitions = described(has, view)
		rm.TargetAssignment.TopicPartitions = described(c.target[id], view)
		rm.MemberType = 1
		if m.classic != nil {
			rm.MemberType = 0
		}
		resp.Members = append(resp.Members, rm)
	}
	return resp
}

func described(a assignor.Assignment, view Topics) (ts []kmsg.AssignmentTopicPartition) {
	for _, id := range sortedIDs(a) {
		t, ok := view.ByID(id)
		if !ok {
			continue
		}
		tp := kmsg.NewAssignmentTopicPartition()
		tp.TopicID, tp.Topic, tp.Partitions = id, t.Name, slices.Clone(a[id])
		ts = append(ts, tp)
	}
	return ts
}
