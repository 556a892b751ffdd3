package group

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group/assignor"
	"github.com/varve/varve/broker/pattern"
)

// ConsumerHeartbeat is a ConsumerGroupHeartbeat request: joining, going on and leaving in one (KIP-848).
type ConsumerHeartbeat struct {
	Token                uint64
	Req                  *kmsg.ConsumerGroupHeartbeatRequest
	ClientID, ClientHost string
	Suffix               string // unique: the member id, if version 0 asks for one
	Topics               Topics

	// Elsewhere: what takes time with expressions is done by the caller, beside the shard. It has looked whether the
	// request's is one (BadRegex: what is wrong with it), and when Result.NeedMatch asks for it, finds what an
	// expression matches and repeats the command with that.
	Elsewhere bool
	BadRegex  error
	Matched   *Matched

	// Of the group's configuration; 0 stands for Config's.
	Session, Interval, AssignmentInterval time.Duration
}

// GroupID is the group that the command is about.
func (c *ConsumerHeartbeat) GroupID() string { return c.Req.Group }

// Defaults of Config for the consumer protocol, Kafka's.
const (
	DefaultConsumerSession  = 45 * time.Second
	DefaultConsumerInterval = 5 * time.Second
)

// regexRefresh is how old what an expression matched may at least be, however often topics come and go.
const regexRefresh = 10 * time.Second

// refusal is an error that a client is told.
type refusal struct {
	code int16
	text string
}

func refuse(code int16, format string, args ...any) *refusal {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

func consumerError(r *refusal) *kmsg.ConsumerGroupHeartbeatResponse {
	resp := kmsg.NewPtrConsumerGroupHeartbeatResponse()
	resp.ErrorCode = r.code
	if r.text != "" {
		resp.ErrorMessage = &r.text
	}
	return resp
}

func (t *turn) consumerHeartbeat(c *ConsumerHeartbeat) {
	r := t.validConsumer(c)
	var resp *kmsg.ConsumerGroupHeartbeatResponse
	if r == nil {
		if c.Req.MemberEpoch < 0 {
			resp, r = t.consumerLeave(c)
		} else {
			resp, r = t.consumerGoOn(c)
		}
	}
	if r == needMatch {
		expr := t.r.NeedMatch
		t.discard()
		t.r.NeedMatch = expr
		return
	}
	if r != nil {
		t.discard()
		resp = consumerError(r)
	}
	t.reply(c.Token, resp)
}

// needMatch ends a turn that cannot be decided without knowing what an expression matches: see Result.NeedMatch.
var needMatch = new(refusal)

// discard forgets what was begun of a command that is refused after all.
func (t *turn) discard() {
	t.r = Result{Group: t.r.Group, Notes: t.r.Notes, token: t.r.token, at: t.r.at, version: t.r.version}
}

// validConsumer says what is wrong with a request by itself.
func (t *turn) validConsumer(c *ConsumerHeartbeat) *refusal {
	req := c.Req
	empty := func(s *string) bool { return s != nil && strings.TrimSpace(*s) == "" }
	invalid := func(text string) *refusal { return refuse(codeInvalidRequest, "%s", text) }
	switch {
	case empty(&req.MemberID) && (req.Version >= 1 || req.MemberEpoch > 0 || req.MemberEpoch == epochLeave):
		return invalid("MemberId can't be empty.")
	case empty(&req.Group):
		return invalid("GroupId can't be empty.")
	case empty(req.InstanceID):
		return invalid("InstanceId can't be empty.")
	case empty(req.RackID):
		return invalid("RackId can't be empty.")
	}
	switch {
	case req.MemberEpoch == epochJoin:
		switch {
		case req.RebalanceTimeoutMillis == -1:
			return invalid("RebalanceTimeoutMs must be provided in first request.")
		case req.Topics == nil || len(req.Topics) > 0:
			return invalid("TopicPartitions must be empty when (re-)joining.")
		case req.SubscribedTopicNames == nil && req.SubscribedTopicRegex == nil:
			return invalid("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.")
		}
	case req.MemberEpoch == epochLeaveStatic && req.InstanceID == nil:
		return invalid("InstanceId can't be null.")
	case req.MemberEpoch < epochLeaveStatic:
		return invalid("MemberEpoch is invalid.")
	}
	if req.ServerAssignor != nil && (!slices.Contains(t.cfg.ConsumerAssignors, *req.ServerAssignor) || assignor.ByName(*req.ServerAssignor) == nil) {
		return refuse(codeUnsupportedAssignor, "ServerAssignor %.100s is not supported. Supported assignors: %s.", *req.ServerAssignor, strings.Join(t.cfg.ConsumerAssignors, ", "))
	}
	if err := c.badRegex(); err != nil {
		return invalidRegex(*req.SubscribedTopicRegex, err)
	}
	n := len(c.ClientID) + len(c.ClientHost)
	longest := max(len(req.Group), len(req.MemberID), len(c.ClientID), len(c.ClientHost))
	for _, s := range []*string{req.InstanceID, req.RackID, req.SubscribedTopicRegex} {
		if s != nil {
			n, longest = n+len(*s), max(longest, len(*s))
		}
	}
	for _, s := range req.SubscribedTopicNames {
		n, longest = n+16+len(s), max(longest, len(s))
	}
	if n > t.cfg.MaxMemberBytes || longest > maxString {
		return invalid("The member's metadata is too large.")
	}
	return nil
}

func (c *ConsumerHeartbeat) badRegex() error {
	if c.Elsewhere {
		return c.BadRegex
	}
	return BadRegex(c.Req)
}

// BadRegex is what is wrong with the expression of a request, if it has one.
func BadRegex(req *kmsg.ConsumerGroupHeartbeatRequest) error {
	if req.SubscribedTopicRegex == nil || *req.SubscribedTopicRegex == "" {
		return nil
	}
	_, err := pattern.Compile(*req.SubscribedTopicRegex)
	return err
}

func invalidRegex(expr string, err error) *refusal {
	return refuse(codeInvalidRegex, "SubscribedTopicRegex `%.200s` is not a valid regular expression: %v.", expr, err)
}

// passed says that so long has passed since a moment, in ms since the epoch, that is in the log. What has yet to come is of a clock that was
// set back since, this one or another coordinator's: nobody is to wait until it gets there.
func (t *turn) passed(since int64, d time.Duration) bool {
	now := t.now.UnixMilli()
	return now < since || now-since >= d.Milliseconds()
}

func (t *turn) unknownMember(id string) *refusal {
	return refuse(codeUnknownMemberID, "Member %.100s is not a member of group %s.", id, t.id)
}

// checkEpoch fences a member whose epoch is not the one that it was told. The one before will do if it has nothing but
// what it may have: then it did not get the last answer. With epochJoin it has given everything up and begins anew, as who is fenced
// has to, or one whose request to leave was lost (KIP-848): it is told what it may have, which it may not have known of.
func checkEpoch(m *consumerMember, epoch int32, owned []kmsg.ConsumerGroupHeartbeatRequestTopic) *refusal {
	switch {
	case epoch == epochJoin:
	case epoch > m.epoch:
		return refuse(codeFencedMemberEpoch, "The consumer group member has a greater member epoch (%d) than the one known by the group coordinator (%d). The member must abandon all its partitions and rejoin.", epoch, m.epoch)
	case epoch < m.epoch && (epoch != m.previous || !ownsOnly(owned, m.assigned)):
		return refuse(codeFencedMemberEpoch, "The consumer group member has a smaller member epoch (%d) than the one known by the group coordinator (%d). The member must abandon all its partitions and rejoin.", epoch, m.epoch)
	}
	return nil
}

// staticMember is the member with that instance id, if it is the one that asks.
func (t *turn) staticMember(instance, id string) (*consumerMember, *refusal) {
	holder, ok := t.e.consumer.static[instance]
	switch {
	case !ok:
		return nil, refuse(codeUnknownMemberID, "Instance id %.100s is unknown.", instance)
	case holder != id:
		return nil, refuse(codeFencedInstanceID, "Static member %.100s with instance id %.100s was fenced by member %s.", id, instance, holder)
	}
	return t.e.consumer.members[holder], nil
}

// consumerLeave removes a member, or notes that a static one will be back.
func (t *turn) consumerLeave(c *ConsumerHeartbeat) (*kmsg.ConsumerGroupHeartbeatResponse, *refusal) {
	req := c.Req
	if t.e == nil || t.e.consumer == nil {
		return nil, t.noConsumerGroup()
	}
	m := t.e.consumer.members[req.MemberID]
	if req.InstanceID != nil {
		var r *refusal
		if m, r = t.staticMember(*req.InstanceID, req.MemberID); r != nil {
			return nil, r
		}
	} else if m == nil {
		return nil, t.unknownMember(req.MemberID)
	}
	if req.MemberEpoch == epochLeaveStatic {
		away := *m
		away.epoch, away.state, away.revoking = epochLeaveStatic, memberStable, holding{} // who is away has nothing to give up
		t.r.Records = append(t.r.Records, consumerCurrentRecord(t.id, &away))
		t.r.revokes = append(t.r.revokes, revocation{member: m.id})
		t.note(Note{Kind: NoteMemberLeft, Member: m.id, Reason: "left, to come back"})
	} else {
		t.fence([]string{m.id})
		t.note(Note{Kind: NoteMemberLeft, Member: m.id, Reason: "left"})
	}
	resp := kmsg.NewPtrConsumerGroupHeartbeatResponse()
	resp.MemberID, resp.MemberEpoch = &m.id, req.MemberEpoch
	return resp, nil
}

func (t *turn) noConsumerGroup() *refusal {
	if t.e != nil && t.e.group.state != Empty {
		return refuse(codeGroupIDNotFound, "Group %s is not a consumer group.", t.id)
	}
	return refuse(codeGroupIDNotFound, "Consumer group %s not found.", t.id)
}

// fence removes members for good. What they had is free, and the group's epoch says that it has to be assigned.
func (t *turn) fence(ids []string) {
	c := t.e.consumer
	left := maps.Clone(c.members)
	for _, id := range ids {
		delete(left, id)
	}
	if t.downgrade(left) {
		return
	}
	for _, id := range ids {
		t.forget(id)
	}
	t.dropRegexes(left)
	t.r.Records = append(t.r.Records, consumerGroupRecord(t.id, c.epoch+1, c.hash))
	t.r.moves = true
	t.note(Note{Kind: NoteRebalance, Consumer: true, Generation: c.epoch + 1, Members: len(left), Reason: fmt.Sprintf("%d members are gone", len(ids))})
	if len(left) == 0 {
		t.note(Note{Kind: NoteEmpty, Generation: c.epoch + 1})
	}
}

// dropRegexes forgets what expressions matched that none of the members has.
func (t *turn) dropRegexes(members map[string]*consumerMember) {
	used := map[string]bool{}
	for _, m := range members {
		used[m.regex] = true
	}
	for _, expr := range slices.Sorted(maps.Keys(t.e.consumer.regexes)) {
		if !used[expr] {
			t.r.Records = append(t.r.Records, consumerTombstone(keyConsumerRegex, t.id, expr))
		}
	}
}

// consumerGoOn is a heartbeat of a member or of one that joins.
func (t *turn) consumerGoOn(c *ConsumerHeartbeat) (*kmsg.ConsumerGroupHeartbeatResponse, *refusal) {
	req := c.Req
	join := req.MemberEpoch == epochJoin
	group, upgraded := newConsumers(), false // only to be read
	switch {
	case t.e != nil && t.e.consumer != nil:
		group = t.e.consumer
	case !join:
		return nil, t.noConsumerGroup()
	case t.e != nil && t.e.group.state != Empty:
		upgraded = true
		if group = t.upgrade(c.Topics); group == nil {
			return nil, t.noConsumerGroup()
		}
	case t.e != nil && t.e.saved:
		// Nobody is in it: a group of the classic protocol becomes one of the consumer protocol.
		t.r.Records = append(t.r.Records, groupTombstone(t.id))
	}
	id := req.MemberID
	if id == "" {
		id = c.Suffix
	}
	m, old, r := t.consumerMember(c, group, id)
	if r != nil {
		return nil, r
	}
	was := m
	m = updated(m, c)
	next, r := t.advance(step{group: group, was: was, m: m, old: old, owned: req.Topics, topics: c.Topics, match: c.match, upgraded: upgraded, interval: cmp.Or(c.AssignmentInterval, t.cfg.ConsumerAssignmentInterval)})
	if r != nil {
		return nil, r
	}
	interval, timeout := cmp.Or(c.Interval, t.cfg.ConsumerInterval), cmp.Or(c.Session, t.cfg.ConsumerSession)
	t.r.sessions = append(t.r.sessions, session{member: id, by: t.now.Add(timeout), touch: len(t.r.Records) == 0})
	t.r.moves = t.r.moves || group.members[id] == nil

	resp := kmsg.NewPtrConsumerGroupHeartbeatResponse()
	resp.MemberID, resp.MemberEpoch, resp.HeartbeatIntervalMillis = &next.id, next.epoch, millis(interval)
	full := join || req.RebalanceTimeoutMillis != -1 && (req.SubscribedTopicNames != nil || req.SubscribedTopicRegex != nil) && req.Topics != nil
	if full || !samePartitions(was.assigned, next.assigned) {
		resp.Assignment = assignmentOf(next.assigned)
	}
	return resp, nil
}

// step is a member's turn: what it was, with what it says of itself now, who it was before if it took another's place.
type step struct {
	group       *consumers
	was, m, old *consumerMember
	owned       []kmsg.ConsumerGroupHeartbeatRequestTopic // nil: it does not say
	topics      Topics
	match       func(expr string) (names []string, known bool, err error)
	interval    time.Duration // how old the last target has to be before there is another (KIP-1263)
	upgraded    bool          // the group was one of the classic protocol: what its leader assigned, if it came to that, need not be all
}

// advance is what a heartbeat does, or a JoinGroup of a member of the classic protocol. It returns the member as it is
// afterwards.
func (t *turn) advance(s step) (*consumerMember, *refusal) {
	group, was, m, old, id := s.group, s.was, s.m, s.old, s.m.id
	members := group.members // with what this request changes
	overlay := func() {
		members = maps.Clone(group.members)
		if old != nil {
			delete(members, old.id)
		}
		members[id] = m
	}

	// 1. What the member says of itself; and what the group reads.
	bump := group.epoch == 0 || s.upgraded
	if old != nil || group.members[id] == nil || !sameMember(was, m) {
		t.r.Records = append(t.r.Records, consumerMemberRecord(t.id, m))
	}
	if !slices.Equal(was.topics, m.topics) || was.regex != m.regex {
		bump = true
	}
	regexes := group.regexes
	if m.regex != "" {
		found, known := group.regexes[m.regex]
		seen := t.e != nil && t.e.seen[m.regex] >= s.topics.Version()
		if !known || !seen && found.version != s.topics.Version() && t.passed(found.at, regexRefresh) {
			names, there, err := s.match(m.regex)
			switch {
			case !there:
				t.r.NeedMatch = m.regex
				return nil, needMatch
			case err != nil && !known:
				return nil, invalidRegex(m.regex, err)
			case err != nil: // there are more topics now, and they take too long: it stays at those that it had
				names = found.topics
			}
			if known && slices.Equal(names, found.topics) {
				t.r.seen = append(t.r.seen, seenRegex{m.regex, s.topics.Version()})
			} else {
				regexes = maps.Clone(regexes)
				regexes[m.regex] = resolved{topics: names, version: s.topics.Version(), at: t.now.UnixMilli()}
				t.r.Records = append(t.r.Records, consumerRegexRecord(t.id, m.regex, regexes[m.regex]))
				bump = true
			}
		}
	}
	if was.regex != "" && was.regex != m.regex && t.e != nil && t.e.consumer != nil {
		overlay()
		t.dropRegexes(members)
	}
	epoch := group.epoch
	var names []string
	if bump || t.e == nil || s.topics.Version() > t.e.viewed {
		overlay()
		names = allTopics(members, regexes)
		hash := hashTopics(s.topics, names)
		t.r.viewed = s.topics.Version()
		if bump || hash != group.hash {
			epoch++
			if group.legacy {
				t.r.Records = append(t.r.Records, consumerTombstone(keyConsumerTopics, t.id))
			}
			t.r.Records = append(t.r.Records, consumerGroupRecord(t.id, epoch, hash))
			t.note(Note{Kind: NoteRebalance, Consumer: true, Generation: epoch, Members: len(members), Reason: "the group's members, their subscriptions or topics have changed"})
		}
	}

	// 2. Who is meant to have what.
	target, targetEpoch := group.target[id], group.targetEpoch
	if old != nil {
		target = group.target[old.id]
	}
	if epoch > group.targetEpoch && (group.targetEpoch == 0 || s.upgraded || t.passed(group.assignedAt, s.interval)) {
		overlay()
		if names == nil {
			names = allTopics(members, regexes)
		}
		target = t.assignTarget(s.topics, group, members, regexes, names, m, old)
		targetEpoch = epoch
		t.r.Records = append(t.r.Records, consumerTargetRecord(t.id, epoch, t.now.UnixMilli()))
		t.note(Note{Kind: NoteGeneration, Generation: epoch, Members: len(members)})
	} else if old != nil {
		t.r.Records = append(t.r.Records, consumerAssignedRecord(t.id, id, target))
	}

	// 3. A step of the member's own way there. A target that is older than its subscription does not count for topics that
	// it has left: it would read what nobody asks for.
	left := false
	if epoch > targetEpoch {
		names := (&consumers{regexes: regexes}).subscription(m)
		reads := func(id topicID) bool {
			topic, ok := s.topics.ByID(id)
			_, found := slices.BinarySearch(names, topic.Name)
			return ok && found
		}
		target = maps.Clone(target)
		maps.DeleteFunc(target, func(id topicID, _ []int32) bool { return !reads(id) })
		for id := range m.assigned {
			left = left || !reads(id)
		}
	}
	next := reconcile(m, targetEpoch, target, left, s.owned, func(topic topicID, p int32) string { return group.owner[topic][p] })
	if next != m || old != nil {
		t.r.Records = append(t.r.Records, consumerCurrentRecord(t.id, next))
		by := time.Time{}
		if next.state == memberUnrevoked {
			by = t.now.Add(next.rebalance)
			t.r.moves = true
		}
		t.r.revokes = append(t.r.revokes, revocation{member: id, by: by, epoch: next.epoch})
	}
	return next, nil
}

// consumerMember is the member that a heartbeat is from: one of the group, or a new one. A static member that was away
// comes back as another: old is who it was then.
func (t *turn) consumerMember(c *ConsumerHeartbeat, group *consumers, id string) (m, old *consumerMember, r *refusal) {
	req := c.Req
	known := group.members[id]
	join := req.MemberEpoch == epochJoin
	if req.InstanceID != nil {
		holder := group.members[group.static[*req.InstanceID]]
		switch {
		case !join:
			if m, r = t.staticMember(*req.InstanceID, id); r != nil {
				return nil, nil, r
			}
			return m, nil, checkEpoch(m, req.MemberEpoch, req.Topics)
		case holder != nil && holder != known && (holder.epoch != epochLeaveStatic && holder.classic == nil || known != nil):
			return nil, nil, refuse(codeUnreleasedInstanceID, "Static member %.100s with instance id %.100s cannot join the group because the instance id is owned by %s member.", id, *req.InstanceID, holder.id)
		case holder != nil && (holder.epoch == epochLeaveStatic || holder.classic != nil):
			m, old = t.takeOver(holder, id)
			return m, old, nil
		}
	}
	switch {
	case known != nil:
		return known, nil, checkEpoch(known, req.MemberEpoch, req.Topics)
	case !join:
		return nil, nil, t.unknownMember(id)
	case len(group.members) >= t.cfg.ConsumerMaxSize || t.e != nil && t.e.bytes > t.cfg.MaxGroupBytes:
		t.note(Note{Kind: NoteRefused, Member: id, Reason: "the group is full"})
		return nil, nil, refuse(codeGroupMaxSizeReached, "The consumer group has reached its maximum capacity of %d members.", t.cfg.ConsumerMaxSize)
	}
	return &consumerMember{id: strings.Clone(id), assigned: holding{}, revoking: holding{}}, nil, nil
}

// takeOver puts a new process in the place of a static member: it has what the old one had.
func (t *turn) takeOver(holder *consumerMember, id string) (m, old *consumerMember) {
	back := *holder
	back.id = strings.Clone(id)
	back.epoch, back.previous, back.state, back.revoking = 0, 0, memberStable, holding{}
	if holder.id == id {
		return &back, nil
	}
	t.forget(holder.id)
	t.note(Note{Kind: NoteFenced, Member: holder.id, Reason: "instance " + *holder.instance + " is now " + id})
	return &back, holder
}

// forget removes what there is of a member.
func (t *turn) forget(id string) {
	t.r.Records = append(t.r.Records, consumerTombstone(keyConsumerCurrent, t.id, id), consumerTombstone(keyConsumerAssigned, t.id, id),
		consumerTombstone(keyConsumerMember, t.id, id))
	t.r.sessions = append(t.r.sessions, session{member: id})
	t.r.revokes = append(t.r.revokes, revocation{member: id})
	t.r.rejoins = append(t.r.rejoins, revocation{member: id})
}

// updated is the member with what a request says of it. What is null there stays.
func updated(m *consumerMember, c *ConsumerHeartbeat) *consumerMember {
	req, u := c.Req, *m
	if req.InstanceID != nil {
		u.instance = own(req.InstanceID)
	}
	if req.RackID != nil {
		u.rack = own(req.RackID)
	}
	if req.RebalanceTimeoutMillis != -1 {
		u.rebalance = fromMillis(max(req.RebalanceTimeoutMillis, 0))
	}
	if req.ServerAssignor != nil {
		u.assignor = own(req.ServerAssignor)
	}
	if req.SubscribedTopicNames != nil {
		u.topics = nil
		for _, s := range req.SubscribedTopicNames {
			u.topics = append(u.topics, strings.Clone(s))
		}
		slices.Sort(u.topics)
		u.topics = slices.Compact(u.topics)
	}
	if req.SubscribedTopicRegex != nil {
		u.regex = strings.Clone(*req.SubscribedTopicRegex)
	}
	if u.clientID != c.ClientID || u.clientHost != c.ClientHost {
		u.clientID, u.clientHost = strings.Clone(c.ClientID), strings.Clone(c.ClientHost)
	}
	u.classic = nil
	if sameMember(m, &u) {
		return m
	}
	return &u
}

// sameMember compares what the member's record says.
func sameMember(a, b *consumerMember) bool {
	eq := func(x, y *string) bool { return x == y || x != nil && y != nil && *x == *y }
	if (a.classic == nil) != (b.classic == nil) || a.classic != nil && (a.classic.session != b.classic.session || !(&member{protocols: a.classic.protocols}).offers(b.classic.protocols)) {
		return false
	}
	return a.id == b.id && eq(a.instance, b.instance) && eq(a.rack, b.rack) && eq(a.assignor, b.assignor) && a.clientID == b.clientID && a.clientHost == b.clientHost &&
		slices.Equal(a.topics, b.topics) && a.regex == b.regex && a.rebalance == b.rebalance
}

// allTopics are the names that members subscribe to, in order.
func allTopics(members map[string]*consumerMember, regexes map[string]resolved) []string {
	set := map[string]struct{}{}
	exprs := map[string]struct{}{}
	for _, m := range members {
		for _, name := range m.topics {
			set[name] = struct{}{}
		}
		if m.regex != "" {
			exprs[m.regex] = struct{}{}
		}
	}
	for expr := range exprs {
		for _, name := range regexes[expr].topics {
			set[name] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// assignTarget assigns the topics to the members, writes what is new of it, and returns what m is meant to have. The
// assignor starts from the last target rather than from what members have: a rebalance that is overtaken by the next
// need not be undone.
func (t *turn) assignTarget(view Topics, group *consumers, members map[string]*consumerMember, regexes map[string]resolved, names []string, m, old *consumerMember) assignor.Assignment {
	var topics []assignor.Topic
	ids := map[string]topicID{}
	for _, name := range names {
		if topic, ok := view.ByName(name); ok {
			topics = append(topics, assignor.Topic{ID: topic.ID, Partitions: topic.Partitions, Racks: topic.Racks})
			ids[name] = topic.ID
		}
	}
	order := slices.Sorted(maps.Keys(members))
	ms := make([]assignor.Member, 0, len(members))
	scratch := consumers{regexes: regexes}
	for _, id := range order {
		cm := members[id]
		am := assignor.Member{ID: id, Instance: cm.instance, Topics: map[topicID]struct{}{}, Owned: group.target[id]}
		if old != nil && id == m.id {
			am.Owned = group.target[old.id]
		}
		if cm.rack != nil {
			am.Rack = *cm.rack
		}
		for _, name := range scratch.subscription(cm) {
			if topic, ok := ids[name]; ok {
				am.Topics[topic] = struct{}{}
			}
		}
		ms = append(ms, am)
	}
	assign := assignor.ByName(preferred(members, t.cfg.ConsumerAssignors[0]))
	if assign == nil {
		assign = assignor.Uniform // a preference that another version wrote
	}
	target := assign(topics, ms)
	for _, id := range order {
		was, ok := group.target[id]
		if !ok || !assignor.Equal(was, target[id]) {
			t.r.Records = append(t.r.Records, consumerAssignedRecord(t.id, id, target[id]))
		}
	}
	return target[m.id]
}

func assignmentOf(h holding) *kmsg.ConsumerGroupHeartbeatResponseAssignment {
	a := kmsg.NewConsumerGroupHeartbeatResponseAssignment()
	for _, id := range h.topics() {
		t := kmsg.NewConsumerGroupHeartbeatResponseAssignmentTopic()
		t.TopicID = id
		for _, p := range h[id] {
			t.Partitions = append(t.Partitions, p.partition)
		}
		a.Topics = append(a.Topics, t)
	}
	return &a
}

// consumerTick removes the members that were not heard of, or did not give up partitions, in time.
func (t *turn) consumerTick() {
	due := func(by time.Time) bool { return !by.IsZero() && !by.After(t.now) }
	c := t.e.consumer
	var late []string
	for _, id := range c.ids() {
		reason := ""
		if r, ok := t.e.revokes[id]; ok && due(r.by) && c.members[id].state == memberUnrevoked && c.members[id].epoch == r.epoch {
			reason = "did not give up partitions within the rebalance timeout"
		}
		if due(t.e.rejoins[id].by) {
			reason = "did not join or sync within the rebalance timeout"
		}
		if due(t.e.sessions[id]) {
			reason = "not heard of within its session timeout"
		}
		if reason != "" {
			late = append(late, id)
			t.note(Note{Kind: NoteMemberExpired, Generation: c.epoch, Members: len(c.members), Member: id, Reason: reason})
		}
	}
	if len(late) > 0 {
		t.fence(late)
	}
}

// consumerTombstones remove an empty group.
func (t *turn) consumerTombstones() (rs []Record) {
	c := t.e.consumer
	for _, expr := range slices.Sorted(maps.Keys(c.regexes)) {
		rs = append(rs, consumerTombstone(keyConsumerRegex, t.id, expr))
	}
	rs = append(rs, consumerTombstone(keyConsumerTarget, t.id))
	if c.legacy {
		rs = append(rs, consumerTombstone(keyConsumerTopics, t.id))
	}
	return append(rs, consumerTombstone(keyConsumerGroup, t.id))
}

// mayCommitConsumer says whether the sender may commit for a group of the consumer protocol. A member of either protocol
// may that knows its epoch; with an earlier one it may for what it has had since then, also if it is about to give it up:
// each says so of a partition (KIP-1251).
func (t *turn) mayCommitConsumer(c *Commit) (code int16, each func(topic *kmsg.OffsetCommitRequestTopic, p int32) int16) {
	req, g := c.Req, t.e.consumer
	if req.Generation < 0 && len(g.members) == 0 {
		return codeNone, nil
	}
	m := g.members[req.MemberID]
	if m == nil {
		return codeUnknownMemberID, nil
	}
	stale := codeStaleMemberEpoch
	if m.classic != nil {
		stale = codeIllegalGeneration
	}
	switch {
	case m.classic == nil && c.Txn == nil && req.Version < 9:
		return codeUnsupportedVersion, nil
	case req.Generation == m.epoch:
		return codeNone, nil
	case req.Generation > m.epoch || req.Generation < 0:
		return stale, nil
	}
	return codeNone, func(topic *kmsg.OffsetCommitRequestTopic, p int32) int16 {
		id := topic.TopicID
		if id == (topicID{}) && c.Topics != nil {
			known, _ := c.Topics.ByName(topic.Topic)
			id = known.ID
		}
		h, ok := m.assigned.has(id, p)
		if !ok {
			h, ok = m.revoking.has(id, p)
		}
		if ok && h.epoch <= req.Generation {
			return codeNone
		}
		return stale
	}
}
