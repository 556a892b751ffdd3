package group

import (
	"maps"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// CommitError answers an OffsetCommit with one code for every partition.
func CommitError(req *kmsg.OffsetCommitRequest, code int16) *kmsg.OffsetCommitResponse {
	resp := kmsg.NewPtrOffsetCommitResponse()
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetCommitResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// mayCommit says whether the sender may commit for the group. Who has no generation commits only while nobody else
// could own the partitions: while the group is empty.
func (t *turn) mayCommit(req *kmsg.OffsetCommitRequest) int16 {
	if t.e == nil {
		switch {
		case req.Generation < 0:
			return codeNone // offsets without a group: admin clients, assigned consumers
		case req.Version >= 9:
			return codeGroupIDNotFound
		}
		return codeIllegalGeneration
	}
	g := t.e.group
	if req.Generation < 0 && g.state == Empty {
		return codeNone
	}
	if req.Generation < 0 && req.MemberID == "" && req.InstanceID == nil {
		return codeUnknownMemberID
	}
	if code := g.check(req.MemberID, req.InstanceID); code != codeNone {
		return code
	}
	if req.Generation != g.generation {
		return codeIllegalGeneration
	}
	if g.state == CompletingRebalance {
		return codeRebalanceInProgress // it knows the generation, but not yet what it owns in it
	}
	return codeNone
}

func (t *turn) commit(c *Commit) {
	req := c.Req
	var code int16
	var each func(*kmsg.OffsetCommitRequestTopic, int32) int16
	switch {
	case c.Txn != nil:
		code = t.mayCommitTxn(c)
		t.r.Txn, t.r.Ticket = c.Txn, c.Ticket
	case t.e != nil && t.e.consumer != nil:
		code, each = t.mayCommitConsumer(c)
	default:
		code = t.mayCommit(req)
	}
	if len(req.Group) > maxString {
		code = codeInvalidGroupID
	} else if code == codeNone && commitBytes(req) > maxCommit {
		code = codeInvalidCommitOffsetSize
	}
	resp := CommitError(req, code)
	t.reply(c.Token, resp)
	if code != codeNone {
		return
	}
	now := t.now.UnixMilli()
	expires := int64(-1)
	if req.Version >= 2 && req.Version <= 4 && req.RetentionTimeMillis >= 0 {
		expires = math.MaxInt64
		if req.RetentionTimeMillis < math.MaxInt64-now {
			expires = now + req.RetentionTimeMillis
		}
	}
	for i, topic := range req.Topics {
		for j, p := range topic.Partitions {
			o := Offset{Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Committed: now, Expires: expires}
			if req.Version < 6 {
				o.LeaderEpoch = -1
			}
			if p.Metadata != nil {
				o.Metadata = *p.Metadata
			}
			if each != nil {
				if code := each(&topic, p.Partition); code != codeNone {
					resp.Topics[i].Partitions[j].ErrorCode = code
					continue
				}
			}
			if longer(o.Metadata, min(t.cfg.OffsetMetadataMax, maxString)) {
				resp.Topics[i].Partitions[j].ErrorCode = codeOffsetMetadataTooLarge
				continue
			}
			t.r.Records = append(t.r.Records, offsetRecord(t.id, topic.Topic, p.Partition, o))
		}
	}
	if c.Txn != nil {
		return // no heartbeat, and nothing is committed before the marker
	}
	if n := len(t.r.Records); n > 0 {
		t.note(Note{Kind: NoteCommitted, N: n})
	}
	if t.e != nil && (t.e.group.state == Stable || t.e.group.state == PreparingRebalance) {
		t.touch(t.e.group.members[req.MemberID])
	}
}

// maxCommit bounds the records of one commit: each has the group's name, of a partition that costs four bytes to ask for.
const maxCommit = 32 << 20

// commitBytes is about what the records of a commit take.
func commitBytes(req *kmsg.OffsetCommitRequest) (n int) {
	for _, t := range req.Topics {
		n += len(t.Partitions) * (offsetBytes + len(req.Group) + len(t.Topic))
		for _, p := range t.Partitions {
			if p.Metadata != nil {
				n += len(*p.Metadata)
			}
		}
	}
	return n
}

// Adds says whether a commit takes more memory than what it replaces: an offset that there was none of, or more metadata.
func (s *Shard) Adds(req *kmsg.OffsetCommitRequest) bool {
	e := s.groups[req.Group]
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			if e == nil {
				return true
			}
			old, ok := e.offsets[t.Topic][p.Partition]
			if !ok || p.Metadata != nil && len(*p.Metadata) > len(old.Metadata) {
				return true
			}
		}
	}
	return false
}

// Swells says whether a command of a member, or of one that was handed its id, takes more memory than what it replaces: what
// members offer or subscribe to, and what leaders assign, may be a thousand times as large as it was.
func (s *Shard) Swells(c Command) bool {
	e := s.groups[c.GroupID()]
	if e == nil {
		return false
	}
	switch c := c.(type) {
	case *Join:
		n := 0
		for _, p := range c.Req.Protocols {
			n += len(p.Name) + len(p.Metadata)
		}
		return n > e.offered(c.Req.MemberID)
	case *Sync:
		n := 0
		for _, a := range c.Req.GroupAssignment {
			n += len(a.MemberAssignment)
		}
		if n == 0 || e.consumer != nil {
			return false // of one that does not lead, or is not asked what others may have
		}
		for _, m := range e.group.members {
			n -= len(m.assignment)
		}
		return n > 0
	case *ConsumerHeartbeat:
		if c.Req.MemberEpoch < 0 || e.consumer == nil || c.Req.SubscribedTopicNames == nil && c.Req.SubscribedTopicRegex == nil {
			return false
		}
		n := 0
		for _, name := range c.Req.SubscribedTopicNames {
			n += len(name)
		}
		if c.Req.SubscribedTopicRegex != nil {
			n += len(*c.Req.SubscribedTopicRegex)
		}
		if m := e.consumer.members[c.Req.MemberID]; m != nil {
			n -= len(m.regex)
			for _, name := range m.topics {
				n -= len(name)
			}
		}
		return n > 0
	}
	return false
}

// offered is how many bytes a member offers; 0 if it is none.
func (e *entry) offered(member string) (n int) {
	var ps []protocol
	if m := e.group.members[member]; m != nil {
		ps = m.protocols
	} else if e.consumer != nil {
		if m := e.consumer.members[member]; m != nil && m.classic != nil {
			ps = m.classic.protocols
		}
	}
	for _, p := range ps {
		n += len(p.name) + len(p.metadata)
	}
	return n
}

// longer says whether s has more than max characters. The setting speaks of bytes, but what Kafka counts are Java's
// characters; a record's string field holds 32,767 bytes whatever the setting says.
func longer(s string, max int) bool {
	if len(s) <= max {
		return false
	}
	if len(s) > maxString {
		return true
	}
	n := 0
	for _, r := range s {
		n++
		if r > 0xffff && r != utf8.RuneError {
			n++
		}
	}
	return n > max
}

func (t *turn) deleteOffsets(c *DeleteOffsets) {
	resp := kmsg.NewPtrOffsetDeleteResponse()
	t.reply(c.Token, resp)
	switch {
	case c.Req.Group == "":
		resp.ErrorCode = codeInvalidGroupID
		return
	case t.e == nil:
		resp.ErrorCode = codeGroupIDNotFound
		return
	}
	g := t.e.group
	if g.state != Empty && g.protocolType != consumerType {
		resp.ErrorCode = codeNonEmptyGroup
		return
	}
	seen := map[string]map[int32]bool{}
	for _, topic := range c.Req.Topics {
		rt := kmsg.NewOffsetDeleteResponseTopic()
		rt.Topic = topic.Topic
		if seen[topic.Topic] == nil {
			seen[topic.Topic] = map[int32]bool{}
		}
		for _, p := range topic.Partitions {
			rp := kmsg.NewOffsetDeleteResponseTopicPartition()
			rp.Partition = p.Partition
			if t.e.subscribed(topic.Topic) {
				rp.ErrorCode = codeGroupSubscribedToTopic
			} else if _, ok := t.e.offsets[topic.Topic][p.Partition]; (ok || t.e.unstable(topic.Topic, p.Partition)) && !seen[topic.Topic][p.Partition] {
				seen[topic.Topic][p.Partition] = true
				t.r.Records = append(t.r.Records, offsetTombstone(t.id, topic.Topic, p.Partition))
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
}

func deleteReply(group string, code int16) *kmsg.DeleteGroupsResponse {
	resp := kmsg.NewPtrDeleteGroupsResponse()
	g := kmsg.NewDeleteGroupsResponseGroup()
	g.Group, g.ErrorCode = group, code
	resp.Groups = append(resp.Groups, g)
	return resp
}

// delete removes an empty group with all its offsets, in one append; what transactions still have pending for it goes too.
func (t *turn) delete(c *Delete) {
	switch {
	case t.e == nil:
		t.reply(c.Token, deleteReply(t.id, codeGroupIDNotFound))
		return
	case t.e.state() != Empty:
		t.reply(c.Token, deleteReply(t.id, codeNonEmptyGroup))
		return
	}
	t.reply(c.Token, deleteReply(t.id, codeNone))
	n := 0
	t.e.eachKnown(func(topic string, p int32) bool {
		t.r.Records = append(t.r.Records, offsetTombstone(t.id, topic, p))
		n++
		return true
	})
	if t.e.saved {
		t.r.Records = append(t.r.Records, groupTombstone(t.id))
	}
	if t.e.consumer != nil {
		t.r.Records = append(t.r.Records, t.consumerTombstones()...)
	}
	if len(t.e.group.pending) > 0 {
		// Members about to join find no group; they begin again.
		t.r.next = newClassic(-1)
	}
	t.note(Note{Kind: NoteDeleted, N: n})
}

func (t *turn) dropTopic(c *DropTopic) {
	if t.e == nil {
		return
	}
	for _, p := range t.e.known(c.Topic) {
		if c.Until == 0 || t.newest(c.Topic, p) <= c.Until {
			t.r.Records = append(t.r.Records, offsetTombstone(t.id, c.Topic, p))
		}
	}
}

// newest is the place of the last record of an offset of the partition, committed or pending.
func (t *turn) newest(topic string, p int32) int64 {
	at := t.e.offsets[topic][p].at
	for _, id := range t.e.open[topic][p] {
		at = max(at, t.txns[id].groups[t.id][topic][p].at)
	}
	return at
}

// eachOffset visits the group's offsets in order until f says no.
func (t *turn) eachOffset(f func(topic string, p int32, o Offset) bool) {
	for _, topic := range slices.Sorted(maps.Keys(t.e.offsets)) {
		ps := t.e.offsets[topic]
		for _, p := range slices.Sorted(maps.Keys(ps)) {
			if !f(topic, p, ps[p]) {
				return
			}
		}
	}
}

// maxExpired bounds the tombstones of one append.
const maxExpired = 4096

// expire drops offsets that nobody needs any more (KIP-211), and the group when it is empty and none are left:
//
//	group                                   an offset's retention runs from
//	without protocol type (simple)          its commit
//	of the consumer protocol                its commit, if the topic is not subscribed
//	empty                                   the time at which the group became empty
//	consumers, stable, subscription known   its commit, if the topic is not subscribed
//	any other                               never
//
// What a transaction has pending does not expire, nor does the offset that it may replace.
func (t *turn) expire() {
	if t.e == nil {
		return
	}
	g, now, keep := t.e.group, t.now.UnixMilli(), t.cfg.OffsetsRetention.Milliseconds()
	var from func(Offset) int64
	switch {
	case t.e.consumer != nil, g.protocolType == "":
		from = func(o Offset) int64 { return o.Committed }
	case g.state == Empty:
		from = func(o Offset) int64 {
			if g.since < 0 {
				return o.Committed
			}
			return g.since
		}
	case g.state == Stable && g.topics != nil:
		from = func(o Offset) int64 { return o.Committed }
	default:
		return
	}
	left, n := len(t.e.open) > 0, 0
	last, subscribed := "", t.e.subscribed("")
	t.eachOffset(func(topic string, p int32, o Offset) bool {
		if topic != last {
			last, subscribed = topic, t.e.subscribed(topic)
		}
		switch {
		case subscribed, t.e.unstable(topic, p):
			left = true
		case o.Expires >= 0 && now < o.Expires, o.Expires < 0 && now-from(o) < keep:
			left = true
		case n == maxExpired:
			t.r.More, left = true, true
			return false
		default:
			t.r.Records = append(t.r.Records, offsetTombstone(t.id, topic, p))
			n++
		}
		return true
	})
	if n > 0 {
		t.note(Note{Kind: NoteExpired, N: n})
	}
	if !left && g.state == Empty && len(g.pending) == 0 && t.e.saved {
		t.r.Records = append(t.r.Records, groupTombstone(t.id))
		t.note(Note{Kind: NoteDeleted})
	}
	if !left && t.e.consumer != nil && t.e.state() == Empty {
		t.r.Records = append(t.r.Records, t.consumerTombstones()...)
		t.note(Note{Kind: NoteDeleted})
	}
}
