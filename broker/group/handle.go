package group

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// turn is the handling of one command: a clone of the group to work on, and the result as it grows.
type turn struct {
	cfg *Config
	now time.Time
	id  string
	e   *entry   // nil if the shard does not know the group
	g   *classic // the clone; e.group is not touched
	r   Result

	txns map[int64]*openTxn // of all groups
}

// Handle decides what a command leads to and changes nothing: see the package comment for what to do with the
// result.
func (s *Shard) Handle(now time.Time, c Command) Result {
	t := &turn{cfg: &s.cfg, now: now, id: c.GroupID(), txns: s.txns}
	t.e = s.groups[t.id]
	t.r.Group, t.r.at = t.id, now
	if t.e != nil {
		t.r.version = t.e.version
	}
	switch c := c.(type) {
	case *Heartbeat:
		t.r.token = c.Token
		if t.e != nil && t.e.consumer != nil {
			t.consumerClassicHeartbeat(c)
		} else {
			t.heartbeat(c)
		}
		return t.r
	case *Commit:
		t.r.token = c.Token
		t.commit(c)
		return t.r
	case *EndTxn:
		t.r.token, t.r.Marker, t.r.Ticket = c.Token, c, c.Ticket
		t.reply(c.Token, markerReply(codeNone))
		return t.r
	case *DeleteOffsets:
		t.r.token = c.Token
		t.deleteOffsets(c)
		return t.r
	case *Delete:
		t.r.token = c.Token
		t.delete(c)
		return t.r
	case *DropTopic:
		t.dropTopic(c)
		return t.r
	case *Expire:
		t.expire()
		return t.r
	case *ConsumerHeartbeat:
		t.r.token = c.Token
		t.consumerHeartbeat(c)
		return t.r
	case *Sync:
		if t.e != nil && t.e.consumer != nil {
			t.r.token = c.Token
			t.consumerSync(c)
			return t.r
		}
	case *Leave:
		if t.e != nil && t.e.consumer != nil {
			t.r.token = c.Token
			t.consumerLeaveClassic(c)
			return t.r
		}
	case *Tick:
		if t.e != nil && t.e.consumer != nil {
			t.consumerTick()
			return t.r
		}
	case *Shrink:
		if t.e != nil && t.e.consumer != nil {
			return t.r // no more members join; those that are there stay, as in Kafka
		}
	}

	if t.e != nil {
		t.g = t.e.group.clone()
	} else {
		t.g = newClassic(now.UnixMilli())
	}
	switch c := c.(type) {
	case *Join:
		t.r.token = c.Token
		if t.e == nil || t.e.consumer == nil {
			t.join(c)
			break
		}
		if len(t.e.consumer.members) > 0 {
			t.g = nil
			t.consumerJoin(c)
			return t.r
		}
		// Nobody is in it: a group of the consumer protocol becomes one of the classic protocol.
		if t.join(c); len(t.g.members)+len(t.g.pending) > 0 {
			t.r.Records = append(t.consumerTombstones(), t.r.Records...)
			t.r.converts = true
		}
	case *Sync:
		t.r.token = c.Token
		t.sync(c)
	case *Leave:
		t.r.token = c.Token
		t.leave(c)
	case *Tick:
		t.tick()
	case *Shrink:
		if t.g.state == Stable || t.g.state == CompletingRebalance {
			t.prepare("the group is above group.max.size")
		}
	default:
		panic(fmt.Sprintf("group: unknown command %T", c))
	}
	t.r.next = t.g
	return t.r
}

// Fail is what to answer when a result's append failed with that code. Requests that the result would have
// answered beside its own stay parked, as the state that they wait in stays.
func Fail(r Result, code int16) []Reply {
	if r.token == 0 {
		return nil
	}
	for _, rep := range r.Replies {
		if rep.Token != r.token {
			continue
		}
		switch resp := rep.Response.(type) {
		case *kmsg.JoinGroupResponse:
			return []Reply{{r.token, joinError("", code)}}
		case *kmsg.SyncGroupResponse:
			return []Reply{{r.token, syncError(code)}}
		case *kmsg.LeaveGroupResponse:
			l := kmsg.NewPtrLeaveGroupResponse()
			l.ErrorCode = code
			return []Reply{{r.token, l}}
		case *kmsg.OffsetCommitResponse:
			for i := range resp.Topics {
				for j := range resp.Topics[i].Partitions {
					if p := &resp.Topics[i].Partitions[j]; p.ErrorCode == codeNone {
						p.ErrorCode = code
					}
				}
			}
			return []Reply{{r.token, resp}}
		case *kmsg.OffsetDeleteResponse:
			d := kmsg.NewPtrOffsetDeleteResponse()
			d.ErrorCode = code
			return []Reply{{r.token, d}}
		case *kmsg.DeleteGroupsResponse:
			return []Reply{{r.token, deleteReply(r.Group, code)}}
		case *kmsg.WriteTxnMarkersResponse:
			return []Reply{{r.token, markerReply(code)}}
		case *kmsg.ConsumerGroupHeartbeatResponse:
			return []Reply{{r.token, consumerError(&refusal{code: code})}}
		default:
			panic(fmt.Sprintf("group: no failure of a %T", resp))
		}
	}
	if r.converts {
		return []Reply{{r.token, joinError("", code)}}
	}
	return nil
}

func (t *turn) reply(token uint64, resp kmsg.Response) {
	t.r.Replies = append(t.r.Replies, Reply{token, resp})
}

func (t *turn) note(n Note) {
	n.Group = t.id
	if t.g != nil {
		n.Generation, n.Members = t.g.generation, len(t.g.members)
	}
	t.r.Notes = append(t.r.Notes, n)
}

// renew gives the member its session timeout anew.
func (t *turn) renew(m *member) { t.expect(m.id, m.session) }

func (t *turn) expect(id string, within time.Duration) {
	t.r.sessions = append(t.r.sessions, session{member: id, by: t.now.Add(within)})
}

// drop removes a member and its deadline. Its parked requests are answered so that a client that is still there
// begins again.
func (t *turn) drop(id string) {
	if m := t.g.members[id]; m != nil {
		if m.joining != 0 {
			t.reply(m.joining, joinError("", codeUnknownMemberID))
		}
		if m.syncing != 0 {
			t.reply(m.syncing, syncError(codeUnknownMemberID))
		}
	}
	t.g.remove(id)
	t.r.sessions = append(t.r.sessions, session{member: id})
}

// ---- JoinGroup

func joinError(memberID string, code int16) *kmsg.JoinGroupResponse {
	r := kmsg.NewPtrJoinGroupResponse()
	r.MemberID, r.ErrorCode = memberID, code
	return r
}

func (t *turn) join(c *Join) {
	req, g := c.Req, t.g
	refuse := func(memberID string, code int16) { t.reply(c.Token, joinError(memberID, code)) }
	switch {
	case req.Group == "" || len(req.Group) > maxString:
		refuse(req.MemberID, codeInvalidGroupID)
		return
	case fromMillis(req.SessionTimeoutMillis) < t.cfg.MinSessionTimeout || fromMillis(req.SessionTimeoutMillis) > t.cfg.MaxSessionTimeout:
		refuse(req.MemberID, codeInvalidSessionTimeout)
		return
	case !t.bounded(c):
		t.note(Note{Kind: NoteRefused, Member: req.MemberID, Reason: "the member's metadata is too large"})
		refuse(req.MemberID, codeInvalidRequest)
		return
	case t.e == nil && req.MemberID != "":
		refuse(req.MemberID, codeUnknownMemberID)
		return
	}
	ps := make([]protocol, 0, len(req.Protocols))
	for _, p := range req.Protocols {
		// A name that comes twice must not count as two members' offer.
		if !slices.ContainsFunc(ps, func(q protocol) bool { return q.name == p.Name }) {
			ps = append(ps, protocol{name: p.Name, metadata: p.Metadata})
		}
	}
	switch {
	case !t.accepts(c):
		t.note(Note{Kind: NoteRefused, Member: req.MemberID, Reason: "the group is full"})
		known := g.members[req.MemberID] != nil
		if req.MemberID != "" {
			t.drop(req.MemberID)
		}
		refuse("", codeGroupMaxSizeReached)
		if known {
			t.maybeComplete()
		}
	case !g.supports(req.ProtocolType, ps):
		refuse(req.MemberID, codeInconsistentGroupProtocol)
	case req.MemberID == "" && req.InstanceID != nil:
		id := *req.InstanceID + "-" + c.Suffix
		if old, ok := g.static[*req.InstanceID]; ok {
			t.replaceStatic(c, old, id, ps)
		} else {
			t.addMember(c, id, ps)
		}
	case req.MemberID == "":
		id := c.ClientID + "-" + c.Suffix
		if req.Version >= 4 {
			// KIP-394: a client whose answer is lost must not leave a member behind, so it first learns its name.
			g.pending[id] = t.now.Add(fromMillis(req.SessionTimeoutMillis))
			refuse(id, codeMemberIDRequired)
			return
		}
		t.addMember(c, id, ps)
	default:
		t.rejoin(c, ps)
	}
}

// maxString is the longest string that a record's fields can hold.
const maxString = 1<<15 - 1

// maxProtocols is how many protocols a member may offer; clients offer one to five.
const maxProtocols = 256

func (t *turn) bounded(c *Join) bool {
	if len(c.Req.Protocols) > maxProtocols {
		return false
	}
	n := 0
	for _, p := range c.Req.Protocols {
		if len(p.Name) > maxString {
			return false
		}
		n += 64 + len(p.Name) + len(p.Metadata)
	}
	instance := 0
	if c.Req.InstanceID != nil {
		instance = len(*c.Req.InstanceID)
	}
	const suffix = 64
	return n <= t.cfg.MaxMemberBytes && len(c.ClientID)+suffix <= maxString && len(c.ClientHost) <= maxString &&
		instance+suffix <= maxString && len(c.Req.ProtocolType) <= maxString && len(c.Req.MemberID) <= maxString
}

// accepts says whether the group has room. While it rebalances those count that have joined, so that of a group that
// is too large the last to join are refused.
func (t *turn) accepts(c *Join) bool {
	g, m := t.g, t.g.members[c.Req.MemberID]
	if m == nil {
		if c.Req.MemberID == "" && len(g.pending) >= t.cfg.MaxPending {
			return false
		}
		if t.e != nil && t.e.bytes > t.cfg.MaxGroupBytes {
			return false
		}
	}
	if g.state != Empty && c.Req.MemberID == "" && c.Req.InstanceID != nil && g.static[*c.Req.InstanceID] != "" {
		return true // replaces a member
	}
	switch g.state {
	case Empty:
		return true
	case PreparingRebalance:
		return (m != nil && m.joining != 0) || g.joined() < t.cfg.MaxSize
	default:
		return m != nil || len(g.members) < t.cfg.MaxSize
	}
}

func timeouts(req *kmsg.JoinGroupRequest) (session, rebalance time.Duration) {
	session = fromMillis(req.SessionTimeoutMillis)
	if req.Version == 0 || req.RebalanceTimeoutMillis < 0 {
		return session, session // version 0 had one timeout for both
	}
	return session, fromMillis(req.RebalanceTimeoutMillis)
}

func (t *turn) addMember(c *Join, id string, ps []protocol) {
	g := t.g
	m := &member{id: strings.Clone(id), instance: own(c.Req.InstanceID), clientID: strings.Clone(c.ClientID),
		clientHost: strings.Clone(c.ClientHost), protocols: ps, fresh: true, joining: c.Token}
	m.session, m.rebalance = timeouts(c.Req)
	if g.state == PreparingRebalance && g.initial {
		g.grown = true
	}
	g.add(m, strings.Clone(c.Req.ProtocolType))
	// Its session timeout means nothing to a member that does not know that it is one.
	t.expect(m.id, t.cfg.NewMemberTimeout)
	t.rebalanceOrComplete("member " + m.id + " joins" + because(c.Req.Reason))
}

func because(reason *string) string {
	if reason == nil || *reason == "" {
		return ""
	}
	r := *reason
	if len(r) > 256 {
		r = r[:256]
	}
	return ": " + r
}

// update takes over what a member says of itself when it joins again.
func (t *turn) update(c *Join, id string, ps []protocol) {
	m := t.g.edit(id)
	if m.joining != 0 {
		// The same member joins twice; whoever waits for the first answer waits in vain.
		t.reply(m.joining, joinError(id, codeRebalanceInProgress))
	}
	m.protocols = ps
	m.session, m.rebalance = timeouts(c.Req)
	m.joining = c.Token
}

// rejoin is a JoinGroup with a member id.
func (t *turn) rejoin(c *Join, ps []protocol) {
	g, id := t.g, c.Req.MemberID
	if _, ok := g.pending[id]; ok {
		if c.Req.InstanceID != nil {
			t.reply(c.Token, joinError(id, codeUnknownMemberID)) // ids are handed out to dynamic members only
			return
		}
		t.addMember(c, id, ps)
		return
	}
	if code := g.check(id, c.Req.InstanceID); code != codeNone {
		t.reply(c.Token, joinError(id, code))
		return
	}
	same := g.members[id].offers(ps)
	switch {
	case g.state == PreparingRebalance:
		t.update(c, id, ps)
		t.maybeComplete()
	case g.state == CompletingRebalance && same:
		// It did not get the answer to its first JoinGroup.
		t.reply(c.Token, t.joined(g.members[id]))
	case g.state == Stable && same && g.leader != id:
		t.reply(c.Token, t.joined(g.members[id]))
	case g.state == Stable || g.state == CompletingRebalance:
		why := "member " + id + " changes what it offers"
		if same {
			why = "leader " + id + " joins again" // how a leader asks for a new assignment
		}
		t.update(c, id, ps)
		t.rebalanceOrComplete(why + because(c.Req.Reason))
	default:
		t.reply(c.Token, joinError(id, codeUnknownMemberID))
	}
}

// joined is the answer to a member of the current generation. The leader learns who the members are.
func (t *turn) joined(m *member) *kmsg.JoinGroupResponse {
	g := t.g
	r := kmsg.NewPtrJoinGroupResponse()
	r.Generation, r.MemberID, r.LeaderID, r.Protocol = g.generation, m.id, g.leader, g.protocol
	protocolType := g.protocolType
	r.ProtocolType = &protocolType
	if m.id == g.leader {
		r.Members = t.roster()
	}
	return r
}

func (t *turn) roster() []kmsg.JoinGroupResponseMember {
	var ms []kmsg.JoinGroupResponseMember
	for _, id := range t.g.ids() {
		m := t.g.members[id]
		rm := kmsg.NewJoinGroupResponseMember()
		rm.MemberID, rm.InstanceID = m.id, m.instance
		if t.g.protocol != nil {
			rm.ProtocolMetadata = m.metadata(*t.g.protocol)
		}
		ms = append(ms, rm)
	}
	return ms
}

// replaceStatic puts a new process in the place of an old one with the same instance id (KIP-345). The old one is
// fenced. If nothing that the group agreed on changes, the new one takes over the assignment without a rebalance.
func (t *turn) replaceStatic(c *Join, old, id string, ps []protocol) {
	g := t.g
	before := g.members[old]
	leader := g.leader // as an old client must see it: see below
	if before.joining != 0 {
		t.reply(before.joining, joinError(old, codeFencedInstanceID))
	}
	if before.syncing != 0 {
		t.reply(before.syncing, syncError(codeFencedInstanceID))
	}
	m := *before
	m.id, m.joining, m.syncing = strings.Clone(id), c.Token, 0
	m.clientID, m.clientHost = strings.Clone(c.ClientID), strings.Clone(c.ClientHost)
	m.protocols = ps
	m.session, m.rebalance = timeouts(c.Req)
	m.fresh = false
	delete(g.members, old)
	g.members[m.id] = &m
	g.static[*m.instance] = m.id
	if g.leader == old {
		g.leader = m.id
	}
	if _, ok := g.unsynced[old]; ok {
		delete(g.unsynced, old)
		g.unsynced[m.id] = struct{}{}
	}
	t.r.sessions = append(t.r.sessions, session{member: old})
	t.renew(&m)
	t.note(Note{Kind: NoteFenced, Member: old, Reason: "instance " + *m.instance + " is now " + m.id})

	switch g.state {
	case Stable:
		if chosen := g.choose(); g.protocol == nil || chosen != *g.protocol {
			t.rebalanceOrComplete("static member " + m.id + " changes the protocol that the group chooses")
			return
		}
		g.edit(m.id).joining = 0
		g.subscribe()
		t.r.Records = append(t.r.Records, groupRecord(t.id, g))
		resp := t.joined(&m)
		switch {
		case c.Req.Version >= 9:
			// KIP-814: a leader must be told not to assign anew, as nobody would listen.
			resp.SkipAssignment = m.id == g.leader
		default:
			// A client that cannot be told is led to believe that the leader is still who it was.
			resp.LeaderID, resp.Members = leader, nil
		}
		t.reply(c.Token, resp)
	case CompletingRebalance:
		// The leader may be assigning to the old member id already; the new one would get nothing.
		t.prepare("static member " + m.id + " joins" + because(c.Req.Reason))
	default:
		t.maybeComplete()
	}
}

// rebalanceOrComplete starts a rebalance, or if one is under way looks whether it can go on.
func (t *turn) rebalanceOrComplete(reason string) {
	if t.g.state == PreparingRebalance {
		t.maybeComplete()
		return
	}
	t.prepare(reason)
}

// prepare starts the join phase of a rebalance.
func (t *turn) prepare(reason string) {
	g := t.g
	if g.state == CompletingRebalance {
		for _, id := range g.ids() {
			m := g.edit(id)
			m.assignment = nil
			if m.syncing != 0 {
				t.reply(m.syncing, syncError(codeRebalanceInProgress))
				m.syncing = 0
				t.renew(m)
			}
		}
	}
	clear(g.unsynced)
	g.syncBy = time.Time{}
	t.note(Note{Kind: NoteRebalance, Reason: reason})

	first := g.state == Empty
	g.transition(PreparingRebalance, t.now)
	g.initial = first
	switch {
	case first:
		// The first rebalance of a group waits: members that start together should join together (KIP-134).
		g.grown = false
		g.delay = t.cfg.InitialRebalanceDelay
		g.delayLeft = max(g.rebalanceTimeout()-g.delay, 0)
		g.joinBy = t.now.Add(g.delay)
	case g.allJoined():
		t.complete()
	default:
		g.joinBy = t.now.Add(g.rebalanceTimeout())
	}
}

// maybeComplete ends the join phase if everybody has joined, unless it is the initial delay that is waited for.
func (t *turn) maybeComplete() {
	if g := t.g; g.state == PreparingRebalance && !g.initial && g.allJoined() {
		t.complete()
	}
}

// complete ends the join phase: who has not joined is out, static members excepted.
func (t *turn) complete() {
	g := t.g
	g.joinBy = time.Time{}
	for _, id := range g.ids() {
		if m := g.members[id]; m.joining == 0 && m.instance == nil {
			t.note(Note{Kind: NoteMemberExpired, Member: id, Reason: "did not join within the rebalance timeout"})
			t.drop(id)
		}
	}
	if len(g.members) > 0 && g.members[g.leader].joining == 0 {
		g.leader = ""
		for _, id := range g.ids() {
			if g.members[id].joining != 0 {
				g.leader = id
				break
			}
		}
		if g.leader == "" {
			// Only static members, none of which joined: their session timeouts decide.
			g.leader = g.ids()[0]
			g.joinBy = t.now.Add(max(g.rebalanceTimeout(), time.Second))
			return
		}
	}
	g.initial, g.grown = false, false
	clear(g.unsynced)
	g.generation++
	if len(g.members) == 0 {
		g.protocol = nil
		g.transition(Empty, t.now)
		g.subscribe()
		t.r.Records = append(t.r.Records, groupRecord(t.id, g))
		t.note(Note{Kind: NoteEmpty})
		return
	}
	chosen := g.choose()
	g.protocol = &chosen
	g.transition(CompletingRebalance, t.now)
	g.subscribe()
	for _, id := range g.ids() {
		m := g.edit(id)
		if m.joining != 0 {
			t.reply(m.joining, t.joined(m))
			m.joining = 0
		}
		m.fresh = false
		t.renew(m)
		g.unsynced[id] = struct{}{}
	}
	g.syncBy = t.now.Add(g.rebalanceTimeout())
	t.note(Note{Kind: NoteGeneration})
}

// ---- SyncGroup

func syncError(code int16) *kmsg.SyncGroupResponse {
	r := kmsg.NewPtrSyncGroupResponse()
	r.ErrorCode, r.MemberAssignment = code, []byte{}
	return r
}

func differs(said *string, is string) bool { return said != nil && is != "" && *said != is }

func (t *turn) sync(c *Sync) {
	req, g := c.Req, t.g
	refuse := func(code int16) { t.reply(c.Token, syncError(code)) }
	chosen := ""
	if g.protocol != nil {
		chosen = *g.protocol
	}
	switch code := g.check(req.MemberID, req.InstanceID); {
	case req.Group == "":
		refuse(codeInvalidGroupID)
	case g.state == Empty:
		refuse(codeUnknownMemberID)
	case code != codeNone:
		refuse(code)
	case req.Generation != g.generation:
		refuse(codeIllegalGeneration)
	case differs(req.ProtocolType, g.protocolType) || differs(req.Protocol, chosen):
		refuse(codeInconsistentGroupProtocol)
	case g.state == PreparingRebalance:
		refuse(codeRebalanceInProgress)
	case g.state == Stable:
		delete(g.unsynced, req.MemberID)
		t.endSyncPhase()
		t.reply(c.Token, t.synced(g.members[req.MemberID]))
	case req.MemberID == g.leader:
		t.assign(c)
	default:
		m := g.edit(req.MemberID)
		if m.syncing != 0 {
			t.reply(m.syncing, syncError(codeRebalanceInProgress))
		}
		m.syncing = c.Token
		delete(g.unsynced, m.id)
	}
}

func (t *turn) endSyncPhase() {
	if len(t.g.unsynced) == 0 {
		t.g.syncBy = time.Time{}
	}
}

func (t *turn) synced(m *member) *kmsg.SyncGroupResponse {
	r := kmsg.NewPtrSyncGroupResponse()
	protocolType := t.g.protocolType
	r.ProtocolType, r.Protocol, r.MemberAssignment = &protocolType, t.g.protocol, m.assignment
	if r.MemberAssignment == nil {
		r.MemberAssignment = []byte{}
	}
	return r
}

// assign takes over the leader's assignment: the group is stable once it is committed. Members that the leader
// forgot get nothing, and members that it made up are ignored.
func (t *turn) assign(c *Sync) {
	g, n := t.g, 0
	given := make(map[string][]byte, len(c.Req.GroupAssignment))
	for _, a := range c.Req.GroupAssignment {
		n += len(a.MemberAssignment)
		given[a.MemberID] = a.MemberAssignment
	}
	if n > t.cfg.MaxAssignmentBytes {
		t.note(Note{Kind: NoteRefused, Member: c.Req.MemberID, Reason: "the assignment is too large"})
		t.reply(c.Token, syncError(codeInvalidRequest))
		return
	}
	delete(g.unsynced, g.leader)
	for _, id := range g.ids() {
		m := g.edit(id)
		m.assignment, m.held = given[id], nil
	}
	g.transition(Stable, t.now)
	t.endSyncPhase()
	t.r.Records = append(t.r.Records, groupRecord(t.id, g))
	for _, id := range g.ids() {
		m := g.members[id] // edited above
		switch {
		case id == g.leader:
			t.reply(c.Token, t.synced(m))
			if m.syncing != 0 {
				t.reply(m.syncing, syncError(codeRebalanceInProgress))
			}
		case m.syncing != 0:
			t.reply(m.syncing, t.synced(m))
		default:
			continue
		}
		m.syncing = 0
		t.renew(m)
	}
	t.note(Note{Kind: NoteStable})
}

// ---- Heartbeat

func (t *turn) heartbeat(c *Heartbeat) {
	r := kmsg.NewPtrHeartbeatResponse()
	t.reply(c.Token, r)
	switch {
	case c.Req.Group == "":
		r.ErrorCode = codeInvalidGroupID
		return
	case t.e == nil:
		r.ErrorCode = codeUnknownMemberID
		return
	}
	g := t.e.group
	if r.ErrorCode = g.check(c.Req.MemberID, c.Req.InstanceID); r.ErrorCode != codeNone {
		return
	}
	if c.Req.Generation != g.generation {
		r.ErrorCode = codeIllegalGeneration
		return
	}
	if g.state == PreparingRebalance {
		r.ErrorCode = codeRebalanceInProgress
	}
	t.touch(g.members[c.Req.MemberID])
}

func (t *turn) touch(m *member) {
	if m != nil && !m.fresh {
		t.r.sessions = append(t.r.sessions, session{member: m.id, by: t.now.Add(m.session), touch: true})
	}
}

// ---- LeaveGroup

func (t *turn) leave(c *Leave) {
	req, g := c.Req, t.g
	resp := kmsg.NewPtrLeaveGroupResponse()
	if req.Group == "" {
		resp.ErrorCode = codeInvalidGroupID
		t.reply(c.Token, resp)
		return
	}
	who := req.Members
	if req.Version < 3 {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = req.MemberID
		who = []kmsg.LeaveGroupRequestMember{m}
	}
	left := 0
	for _, m := range who {
		id, code := m.MemberID, codeNone
		_, pending := g.pending[id]
		switch {
		case t.e == nil:
			code = codeUnknownMemberID
		case id == "":
			// An operator removes a static member by its instance id.
			code = codeUnknownMemberID
			if m.InstanceID != nil {
				if holder, ok := g.static[*m.InstanceID]; ok {
					id, code = holder, codeNone
				}
			}
		case pending:
		default:
			code = g.check(id, m.InstanceID)
		}
		if code == codeNone {
			t.note(Note{Kind: NoteMemberLeft, Member: id, Reason: "left" + because(m.Reason)})
			t.drop(id)
			left++
		}
		rm := kmsg.NewLeaveGroupResponseMember()
		rm.MemberID, rm.InstanceID, rm.ErrorCode = m.MemberID, m.InstanceID, code
		resp.Members = append(resp.Members, rm)
	}
	if req.Version < 3 {
		resp.ErrorCode, resp.Members = resp.Members[0].ErrorCode, nil
	}
	t.reply(c.Token, resp)
	if left == 0 {
		return
	}
	switch g.state {
	case Stable, CompletingRebalance:
		t.prepare(fmt.Sprintf("%d members left", left))
	case PreparingRebalance:
		t.maybeComplete()
	}
}

// ---- Deadlines

// tick does what is due. Several things can be; each may end the others' reason.
func (t *turn) tick() {
	g := t.g
	if t.e == nil {
		return
	}
	due := func(by time.Time) bool { return !by.IsZero() && !by.After(t.now) }
	for _, id := range slices.Sorted(maps.Keys(g.pending)) {
		if due(g.pending[id]) {
			t.drop(id)
			if g.state == PreparingRebalance && g.allJoined() {
				t.complete()
			}
		}
	}
	var late []string
	for _, id := range g.ids() {
		if m := g.members[id]; !m.excused() && due(t.e.sessions[id]) {
			late = append(late, id)
		}
	}
	for _, id := range late {
		// An earlier one's removal may have completed a phase that answered this one and renewed its session.
		if m := g.members[id]; m == nil || m.excused() || t.renewed(id) {
			continue
		}
		t.note(Note{Kind: NoteMemberExpired, Member: id, Reason: "not heard of within its session timeout"})
		t.drop(id)
		switch {
		case g.state == Stable || g.state == CompletingRebalance:
			t.prepare("member " + id + " was not heard of within its session timeout")
		case g.state == PreparingRebalance && g.allJoined():
			t.complete()
		}
	}
	if g.state == PreparingRebalance && due(g.joinBy) {
		if g.initial && g.grown && g.delayLeft > 0 {
			g.grown = false
			next := min(t.cfg.InitialRebalanceDelay, g.delayLeft)
			g.delayLeft = max(g.delayLeft-g.delay, 0)
			g.delay = next
			g.joinBy = t.now.Add(next)
		} else {
			t.complete()
		}
	}
	if (g.state == CompletingRebalance || g.state == Stable) && due(g.syncBy) {
		g.syncBy = time.Time{}
		if len(g.unsynced) > 0 {
			for _, id := range slices.Sorted(maps.Keys(g.unsynced)) {
				t.note(Note{Kind: NoteMemberExpired, Member: id, Reason: "did not sync within the rebalance timeout"})
				t.drop(id)
			}
			t.prepare("members did not sync within the rebalance timeout")
		}
	}
}

// renewed says whether this turn has moved the member's deadline.
func (t *turn) renewed(id string) bool {
	return slices.ContainsFunc(t.r.sessions, func(s session) bool { return s.member == id && s.by.After(t.now) })
}
