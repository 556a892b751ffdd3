package group

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group/assignor"
)

// Members of both protocols in one group, while its consumers are replaced one by one (group.consumer.migration.policy).
// A group is of the consumer protocol as soon as one member is, and of the classic protocol again when the last such
// member is gone. In between the coordinator assigns to the others too: their JoinGroup is a heartbeat that says what
// they own, their generation is the member epoch, SyncGroup fetches what they may have, and Heartbeat tells them when
// to join again.

func (c *Config) mayUpgrade() bool {
	return c.MigrationPolicy == "bidirectional" || c.MigrationPolicy == "upgrade"
}
func (c *Config) mayDowngrade() bool {
	return c.MigrationPolicy == "bidirectional" || c.MigrationPolicy == "downgrade"
}

// classicSubscription is what a consumer of the classic protocol offers with each of its assignors.
type classicSubscription struct {
	version int16
	topics  []string
	owned   map[string][]int32
	rack    *string
}

// count is a number of elements of at least so many bytes each, of an encoding that is not flexible.
func (r *reader) count(least int) int {
	n := int(r.int32())
	if n > len(r.b)/least {
		r.err = errShort
		return 0
	}
	return n
}

func (r *reader) topicPartitions() map[string][]int32 {
	m := map[string][]int32{}
	for n := r.count(6); n > 0 && r.err == nil; n-- {
		name := r.keyString()
		for k := r.count(4); k > 0 && r.err == nil; k-- {
			m[name] = append(m[name], r.int32())
		}
	}
	return m // without topics of no partitions
}

// readSubscription reads a subscription; later versions begin as the last known one does.
func readSubscription(b []byte) (s classicSubscription, ok bool) {
	r := &reader{b: b}
	s.version = r.int16()
	for n := r.count(2); n > 0 && r.err == nil; n-- {
		s.topics = append(s.topics, r.keyString())
	}
	slices.Sort(s.topics)
	s.topics = slices.Compact(s.topics)
	if n := r.int32(); n > 0 {
		r.take(int(n)) // the assignor's own
	}
	if s.version >= 1 {
		s.owned = r.topicPartitions()
	}
	if s.version >= 2 {
		r.int32() // generation
	}
	if s.version >= 3 {
		if n := r.int16(); n >= 0 {
			rack := string(r.take(int(n)))
			s.rack = &rack
		}
	}
	return s, r.err == nil && s.version >= 0
}

// readAssignment reads what a leader of the classic protocol assigned.
func readAssignment(b []byte) map[string][]int32 {
	if len(b) == 0 {
		return nil
	}
	r := &reader{b: b}
	r.int16()
	m := r.topicPartitions()
	if r.err != nil {
		return nil
	}
	return m
}

// upgrade makes a group of the classic protocol one of the consumer protocol, with the members that it has and with what
// they have. It returns nil if that may not be, or is not possible: not all groups are of consumers.
func (t *turn) upgrade(view Topics) *consumers {
	g := t.e.group
	if !t.cfg.mayUpgrade() || g.protocolType != consumerType || len(g.members) >= t.cfg.ConsumerMaxSize {
		return nil
	}
	c := newConsumers()
	c.epoch = max(g.generation, 0)
	c.targetEpoch = c.epoch
	var current []Record
	for _, id := range g.ids() {
		m := g.members[id]
		if len(m.protocols) == 0 {
			return nil
		}
		s, ok := readSubscription(m.protocols[0].metadata)
		if !ok {
			return nil
		}
		cm := &consumerMember{id: id, instance: m.instance, rack: s.rack, clientID: m.clientID, clientHost: m.clientHost, topics: s.topics,
			rebalance: m.rebalance, classic: &classicPart{m.session, m.protocols}, epoch: c.epoch, previous: c.epoch, assigned: holding{}, revoking: holding{}}
		for topic, ps := range m.held {
			cm.assigned[topic] = slices.Clone(ps)
		}
		c.give(cm, readAssignment(m.assignment), view)
		c.put(id, cm)
		t.expect(id, m.session)
		if m.joining != 0 {
			t.reply(m.joining, joinError(id, codeRebalanceInProgress))
		}
		if m.syncing != 0 {
			t.reply(m.syncing, syncError(codeRebalanceInProgress))
		}
	}
	for _, id := range g.ids() {
		// What it said that it owns it may still have, if its leader has not given it to another: it may not have heard
		// yet that it has to give it up (KIP-429), or take part in a rebalance that followed on another.
		cm := *c.members[id]
		said, _ := readSubscription(g.members[id].protocols[0].metadata)
		c.give(&cm, said.owned, view)
		c.put(id, &cm)
		target := assignor.Assignment{}
		for topic, ps := range cm.assigned {
			for _, p := range ps {
				target[topic] = append(target[topic], p.partition)
			}
		}
		c.target[id] = target
		t.r.Records = append(t.r.Records, consumerMemberRecord(t.id, &cm))
		current = append(current, consumerAssignedRecord(t.id, id, target), consumerCurrentRecord(t.id, &cm))
	}
	c.hash = hashTopics(view, allTopics(c.members, c.regexes))
	if t.e.saved {
		t.r.Records = append([]Record{groupTombstone(t.id)}, t.r.Records...)
	}
	t.r.Records = append(t.r.Records, consumerGroupRecord(t.id, c.epoch, c.hash))
	t.r.Records = append(append(t.r.Records, current...), consumerTargetRecord(t.id, c.targetEpoch, 0))
	t.r.moves = true
	return c
}

// give adds partitions to what a member has, as far as nobody has them: a leader may assign what it likes, but here a
// partition has one owner.
func (c *consumers) give(m *consumerMember, has map[string][]int32, view Topics) {
	for _, name := range slices.Sorted(maps.Keys(has)) {
		topic, ok := view.ByName(name)
		if !ok {
			continue
		}
		more := holding{}
		for _, p := range has[name] {
			if c.owner[topic.ID][p] == "" {
				more[topic.ID] = append(more[topic.ID], held{p, c.epoch})
			}
		}
		m.assigned = union(m.assigned, more)
	}
}

// union is what is in either, each partition once.
func union(a, b holding) holding {
	u := maps.Clone(a)
	for t, ps := range b {
		all := slices.Concat(u[t], ps)
		slices.SortStableFunc(all, func(x, y held) int { return int(x.partition) - int(y.partition) })
		u[t] = slices.CompactFunc(all, func(x, y held) bool { return x.partition == y.partition })
	}
	return u
}

// downgrade makes the group one of the classic protocol if only members of that are left, and says whether it did. They
// rebalance. The log says that the group is empty until they have: a rebalance under way is not in it, and what members
// had in the meantime would not be a generation's assignment.
func (t *turn) downgrade(left map[string]*consumerMember) bool {
	c := t.e.consumer
	if !t.cfg.mayDowngrade() || len(left) == 0 || len(left) > t.cfg.MaxSize {
		return false
	}
	g := newClassic(t.now.UnixMilli())
	g.generation = c.epoch
	for _, id := range slices.Sorted(maps.Keys(left)) {
		m := left[id]
		if m.classic == nil {
			return false
		}
		g.add(&member{id: id, instance: m.instance, clientID: m.clientID, clientHost: m.clientHost, session: m.classic.session,
			rebalance: m.rebalance, protocols: m.classic.protocols, held: union(m.assigned, m.revoking)}, consumerType)
	}
	chosen := g.choose()
	if chosen == "" {
		return false
	}
	empty := newClassic(t.now.UnixMilli())
	empty.generation, empty.protocolType = c.epoch, consumerType
	t.r.Records = append(t.r.Records, groupRecord(t.id, empty))
	for _, id := range c.ids() {
		t.forget(id)
	}
	t.r.Records = append(t.r.Records, t.consumerTombstones()...)
	g.protocol, g.state = &chosen, Stable
	t.g = g
	for _, id := range g.ids() {
		t.renew(g.members[id])
	}
	t.prepare("the last member of the consumer protocol is gone")
	t.r.next = t.g
	return true
}

// consumerJoin is a JoinGroup request to a group of the consumer protocol.
func (t *turn) consumerJoin(c *Join) {
	req, group := c.Req, t.e.consumer
	refuse := func(memberID string, code int16) { t.reply(c.Token, joinError(memberID, code)) }
	known := group.members[req.MemberID]
	var ps []protocol
	for _, p := range req.Protocols {
		ps = append(ps, protocol{strings.Clone(p.Name), bytes.Clone(p.Metadata)})
	}
	switch {
	case req.Group == "" || len(req.Group) > maxString:
		refuse(req.MemberID, codeInvalidGroupID)
		return
	case fromMillis(req.SessionTimeoutMillis) < t.cfg.MinSessionTimeout || fromMillis(req.SessionTimeoutMillis) > t.cfg.MaxSessionTimeout:
		refuse(req.MemberID, codeInvalidSessionTimeout)
		return
	case !t.bounded(c):
		refuse(req.MemberID, codeInvalidRequest)
		return
	case known == nil && (req.InstanceID == nil || group.static[*req.InstanceID] == "") && (len(group.members) >= t.cfg.ConsumerMaxSize || t.e.bytes > t.cfg.MaxGroupBytes):
		t.note(Note{Kind: NoteRefused, Member: req.MemberID, Reason: "the group is full"})
		refuse("", codeGroupMaxSizeReached)
		return
	case c.Topics == nil || req.ProtocolType != consumerType || !offersCommon(group, req.MemberID, ps):
		refuse(req.MemberID, codeInconsistentGroupProtocol)
		return
	}
	said, ok := readSubscription(ps[0].metadata)
	if !ok {
		refuse(req.MemberID, codeInconsistentGroupProtocol)
		return
	}
	id := req.MemberID
	switch {
	case id == "" && req.InstanceID != nil:
		id = *req.InstanceID + "-" + c.Suffix
	case id == "":
		id = c.ClientID + "-" + c.Suffix
		if req.Version >= 4 {
			// KIP-394. Nothing is kept of it: a member id that is not known may join.
			refuse(id, codeMemberIDRequired)
			return
		}
	}
	m, old := known, (*consumerMember)(nil)
	if req.InstanceID != nil {
		holder := group.members[group.static[*req.InstanceID]]
		switch {
		case holder == nil && req.MemberID != "":
			refuse(id, codeUnknownMemberID)
			return
		case holder != nil && req.MemberID != "" && holder.id != req.MemberID:
			refuse(id, codeFencedInstanceID)
			return
		case holder != nil && req.MemberID == "":
			m, old = t.takeOver(holder, id)
		}
	}
	if m != nil && m.classic == nil && old == nil {
		refuse(id, codeUnknownMemberID) // an id of a member of the consumer protocol
		return
	}
	if m == nil && req.MemberID != "" && len(said.owned) > 0 {
		// Who is new owns nothing: this is a member that was removed, and what it had may be another's. It has to give
		// it up before it comes back.
		refuse(id, codeUnknownMemberID)
		return
	}
	if m == nil {
		m = &consumerMember{id: strings.Clone(id), assigned: holding{}, revoking: holding{}}
	}
	was, next := m, *m
	next.instance = own(req.InstanceID)
	next.rack, next.topics, next.regex, next.assignor = said.rack, said.topics, "", nil
	next.clientID, next.clientHost = strings.Clone(c.ClientID), strings.Clone(c.ClientHost)
	next.classic = &classicPart{protocols: ps}
	next.classic.session, next.rebalance = timeouts(req)
	left := maps.Clone(group.members)
	if old != nil {
		delete(left, old.id)
	}
	left[id] = &next
	if t.downgrade(left) {
		// It took the place of the last member of the consumer protocol.
		t.g.edit(id).joining = c.Token
		t.r.converts = true
		t.maybeComplete()
		return
	}
	owned := []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	for _, name := range slices.Sorted(maps.Keys(said.owned)) {
		if topic, ok := c.Topics.ByName(name); ok {
			owned = append(owned, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: topic.ID, Partitions: said.owned[name]})
		}
	}
	after, r := t.advance(step{group: group, was: was, m: &next, old: old, owned: owned, topics: c.Topics, interval: cmp.Or(c.AssignmentInterval, t.cfg.ConsumerAssignmentInterval)})
	if r != nil {
		t.discard()
		refuse(id, r.code)
		return
	}
	t.r.sessions = append(t.r.sessions, session{member: id, by: t.now.Add(next.classic.session), touch: len(t.r.Records) == 0})
	t.r.rejoins = append(t.r.rejoins, revocation{member: id, by: t.now.Add(next.rebalance)}) // it has to sync
	t.r.moves = true
	resp := kmsg.NewPtrJoinGroupResponse()
	protocolType := consumerType
	resp.MemberID, resp.Generation, resp.ProtocolType, resp.Protocol = after.id, after.epoch, &protocolType, &after.classic.protocols[0].name
	t.reply(c.Token, resp)
}

// offersCommon says whether one of these protocols is one that all other members of the classic protocol offer: the
// group must be able to go back to it.
func offersCommon(c *consumers, id string, ps []protocol) bool {
	return slices.ContainsFunc(ps, func(p protocol) bool {
		for _, m := range c.members {
			if m.id != id && m.classic != nil && !slices.ContainsFunc(m.classic.protocols, func(q protocol) bool { return q.name == p.name }) {
				return false
			}
		}
		return true
	})
}

// classicMember is the member of the classic protocol that a request is from.
func (t *turn) classicMember(id string, instance *string) (*consumerMember, int16) {
	m, code := t.memberNamed(id, instance)
	if code == codeNone && m.classic == nil {
		return nil, codeUnknownMemberID
	}
	return m, code
}

// memberNamed finds a member of either protocol by what the classic one calls it.
func (t *turn) memberNamed(id string, instance *string) (*consumerMember, int16) {
	c := t.e.consumer
	if instance != nil {
		switch holder, ok := c.static[*instance]; {
		case !ok:
			return nil, codeUnknownMemberID
		case holder != id:
			return nil, codeFencedInstanceID
		}
	}
	m := c.members[id]
	if m == nil {
		return nil, codeUnknownMemberID
	}
	return m, codeNone
}

// rejoinBy says that a member has to join again, within its rebalance timeout from the first time that it is told.
func (t *turn) rejoinBy(m *consumerMember) {
	if _, told := t.e.rejoins[m.id]; !told {
		t.r.rejoins = append(t.r.rejoins, revocation{member: m.id, by: t.now.Add(m.rebalance)})
		t.r.moves = true
	}
}

// consumerSync tells a member of the classic protocol what it may have.
func (t *turn) consumerSync(c *Sync) {
	req := c.Req
	m, code := t.classicMember(req.MemberID, req.InstanceID)
	switch {
	case code != codeNone:
	case req.Generation != m.epoch:
		code = codeIllegalGeneration
	case differs(req.ProtocolType, consumerType) || differs(req.Protocol, m.classic.protocols[0].name) || c.Topics == nil:
		code = codeInconsistentGroupProtocol
	case t.e.consumer.epoch > m.epoch && m.state != memberUnrevoked:
		t.rejoinBy(m)
		code = codeRebalanceInProgress
	}
	if code != codeNone {
		t.reply(c.Token, syncError(code))
		return
	}
	said, _ := readSubscription(m.classic.protocols[0].metadata)
	a := kmsg.NewConsumerMemberAssignment()
	a.Version = min(said.version, 3)
	for _, id := range m.assigned.topics() {
		topic, ok := c.Topics.ByID(id)
		if !ok {
			continue
		}
		at := kmsg.NewConsumerMemberAssignmentTopic()
		at.Topic = topic.Name
		for _, p := range m.assigned[id] {
			at.Partitions = append(at.Partitions, p.partition)
		}
		a.Topics = append(a.Topics, at)
	}
	resp := kmsg.NewPtrSyncGroupResponse()
	protocolType := consumerType
	resp.ProtocolType, resp.Protocol, resp.MemberAssignment = &protocolType, &m.classic.protocols[0].name, a.AppendTo(nil)
	t.reply(c.Token, resp)
	t.r.rejoins = append(t.r.rejoins, revocation{member: m.id})
	t.r.sessions = append(t.r.sessions, session{member: m.id, by: t.now.Add(m.classic.session), touch: true})
}

// consumerClassicHeartbeat tells a member of the classic protocol to join again when there is something for it to hear:
// a newer epoch, something to give up, or something that it waits for and that is free now.
func (t *turn) consumerClassicHeartbeat(c *Heartbeat) {
	resp := kmsg.NewPtrHeartbeatResponse()
	t.reply(c.Token, resp)
	m, code := t.classicMember(c.Req.MemberID, c.Req.InstanceID)
	switch {
	case code != codeNone:
		resp.ErrorCode = code
		return
	case c.Req.Generation != m.epoch:
		resp.ErrorCode = codeIllegalGeneration
		return
	}
	group := t.e.consumer
	if m.epoch < group.epoch || m.state == memberUnrevoked || m.state == memberUnreleased && !group.waits(m) {
		resp.ErrorCode = codeRebalanceInProgress
		t.rejoinBy(m)
	}
	t.r.sessions = append(t.r.sessions, session{member: m.id, by: t.now.Add(m.classic.session), touch: true})
}

// waits says whether something that a member still has to get is another's: it joins again once, when it can have all.
func (c *consumers) waits(m *consumerMember) bool {
	for topic, ps := range c.target[m.id] {
		for _, p := range ps {
			if _, has := m.assigned.has(topic, p); !has && c.owner[topic][p] != "" {
				return true
			}
		}
	}
	return false
}

// consumerLeaveClassic is a LeaveGroup request to a group of the consumer protocol. Only members of the classic protocol
// leave by it.
func (t *turn) consumerLeaveClassic(c *Leave) {
	req := c.Req
	resp := kmsg.NewPtrLeaveGroupResponse()
	who := req.Members
	if req.Version < 3 {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = req.MemberID
		who = []kmsg.LeaveGroupRequestMember{m}
	}
	var gone []string
	for _, m := range who {
		id := m.MemberID
		if id == "" && m.InstanceID != nil {
			id = t.e.consumer.static[*m.InstanceID] // an operator removes a static member
		}
		// Members of the consumer protocol too: an operator may remove any.
		member, code := t.memberNamed(id, m.InstanceID)
		if code == codeNone && slices.Contains(gone, member.id) {
			code = codeUnknownMemberID
		}
		if code == codeNone {
			gone = append(gone, member.id)
			t.note(Note{Kind: NoteMemberLeft, Member: member.id, Reason: "left" + because(m.Reason)})
		}
		rm := kmsg.NewLeaveGroupResponseMember()
		rm.MemberID, rm.InstanceID, rm.ErrorCode = m.MemberID, m.InstanceID, code
		resp.Members = append(resp.Members, rm)
	}
	if req.Version < 3 {
		resp.ErrorCode, resp.Members = resp.Members[0].ErrorCode, nil
	}
	t.reply(c.Token, resp)
	if len(gone) > 0 {
		t.fence(gone)
	}
}
