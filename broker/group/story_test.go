package group

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The stories under testdata are told in these commands. Time stands still but for wait; what is due on the way happens
// at its time. Whoever asks is named first, and named again when answered. Member ids are the client's name and a number.
//
//	config [size=N] [delay=D] [retention=D] [group-bytes=N] ...   a new, empty shard
//	join CLIENT GROUP [member=ID] [v=N] [instance=ID] [type=T] [protocols=a:meta,b:meta] [session=D] [rebalance=D]
//	sync CLIENT GROUP member=ID gen=N [assign=ID:bytes,...] [v=N] [protocol=P]
//	heartbeat|leave|commit|delete|delete-offsets ...
//	commit ... pid=N pepoch=N       in a transaction of that producer
//	marker pid=N pepoch=N commit|abort     the end of its transaction
//	fetch GROUP [topics] [stable]; describe GROUP; list [states=..] [types=..]; show
//	wait D
//	topics t=4 u=2 [t=2:a+b/c]   partitions of the topics from now on, with the racks of each partition
//	beat CLIENT GROUP member=ID epoch=N [v=N] [instance=ID] [topics=t,u|none] [regex=R] [owned=t:0,t:1|none] [rebalance=D] [assignor=A]
//	     [rack=R] [session=D] [interval=D]     ConsumerGroupHeartbeat; epoch=0 fills in what has to be there
//	describe-consumer GROUP
//	fail CODE      the next append fails
//	reload         a new coordinator replays the log
type story struct {
	shard  *Shard
	now    time.Time
	log    []logged
	names  map[uint64]string
	token  uint64
	suffix int
	fail   int16
	out    strings.Builder
	view   *view
}

func newStory(cfg Config) *story {
	return &story{shard: NewShard(cfg), now: time.UnixMilli(1_000_000).UTC(), names: map[uint64]string{}, view: &view{version: 1}}
}

func TestStories(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.story")
	if err != nil || len(paths) == 0 {
		t.Fatalf("stories: %v, %v", paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s := newStory(Config{})
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				s.out.Reset()
				if d.Cmd == "config" {
					s = newStory(configOf(t, d))
					return ""
				}
				s.command(t, d)
				return s.out.String()
			})
		})
	}
}

func configOf(t *testing.T, d *datadriven.TestData) (c Config) {
	for _, a := range d.CmdArgs {
		v := a.Vals[0]
		switch a.Key {
		case "size":
			c.MaxSize = number(t, v)
		case "delay":
			c.InitialRebalanceDelay = duration(t, v)
		case "retention":
			c.OffsetsRetention = duration(t, v)
		case "group-bytes":
			c.MaxGroupBytes = int64(number(t, v))
		case "member-bytes":
			c.MaxMemberBytes = number(t, v)
		case "assignment-bytes":
			c.MaxAssignmentBytes = number(t, v)
		case "pending":
			c.MaxPending = number(t, v)
		case "metadata":
			c.OffsetMetadataMax = number(t, v)
		case "interval":
			c.ConsumerAssignmentInterval = duration(t, v)
		case "policy":
			c.MigrationPolicy = v
		case "consumer-size":
			c.ConsumerMaxSize = number(t, v)
		default:
			t.Fatalf("config: %s", a.Key)
		}
	}
	return c
}

func number(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// args reads a story's arguments by name.
type args struct {
	t *testing.T
	d *datadriven.TestData
}

func (a args) str(key, def string) string {
	for _, x := range a.d.CmdArgs {
		if x.Key == key && len(x.Vals) > 0 {
			return strings.Join(x.Vals, ",")
		}
	}
	return def
}
func (a args) num(key string, def int) int {
	if s := a.str(key, ""); s != "" {
		return number(a.t, s)
	}
	return def
}
func (a args) dur(key string, def time.Duration) time.Duration {
	if s := a.str(key, ""); s != "" {
		return duration(a.t, s)
	}
	return def
}
func (a args) opt(key string) *string {
	if s := a.str(key, ""); s != "" {
		return &s
	}
	return nil
}
func (a args) has(key string) bool {
	return slices.ContainsFunc(a.d.CmdArgs, func(x datadriven.CmdArg) bool { return x.Key == key })
}
func (a args) pos(i int) string { return a.d.CmdArgs[i].Key }

func pairs(s string) (ps [][2]string) {
	if s == "" {
		return nil
	}
	for p := range strings.SplitSeq(s, ",") {
		k, v, _ := strings.Cut(p, ":")
		ps = append(ps, [2]string{k, v})
	}
	return ps
}

func (s *story) command(t *testing.T, d *datadriven.TestData) {
	a := args{t, d}
	who := func(i int) uint64 {
		s.token++
		s.names[s.token] = a.pos(i)
		return s.token
	}
	switch d.Cmd {
	case "join":
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version = int16(a.num("v", 9))
		req.Group, req.MemberID, req.InstanceID = a.pos(1), a.str("member", ""), a.opt("instance")
		req.SessionTimeoutMillis = int32(a.dur("session", 10*time.Second).Milliseconds())
		req.RebalanceTimeoutMillis = int32(a.dur("rebalance", time.Minute).Milliseconds())
		req.ProtocolType = a.str("type", "consumer")
		for _, p := range pairs(a.str("protocols", "range:m")) {
			rp := kmsg.NewJoinGroupRequestProtocol()
			rp.Name, rp.Metadata = p[0], metadata(p[1])
			req.Protocols = append(req.Protocols, rp)
		}
		if a.str("protocols", "") == "none" {
			req.Protocols = nil
		}
		s.suffix++
		s.do(&Join{Token: who(0), Req: req, ClientID: a.pos(0), ClientHost: "/10.0.0.1", Suffix: strconv.Itoa(s.suffix), Topics: s.view})
	case "sync":
		req := kmsg.NewPtrSyncGroupRequest()
		req.Version = int16(a.num("v", 5))
		req.Group, req.MemberID, req.Generation, req.InstanceID = a.pos(1), a.str("member", ""), int32(a.num("gen", 1)), a.opt("instance")
		req.Protocol, req.ProtocolType = a.opt("protocol"), a.opt("type")
		for _, p := range pairs(a.str("assign", "")) {
			ra := kmsg.NewSyncGroupRequestGroupAssignment()
			ra.MemberID, ra.MemberAssignment = p[0], assignmentBytes(p[1])
			req.GroupAssignment = append(req.GroupAssignment, ra)
		}
		s.do(&Sync{Token: who(0), Req: req, Topics: s.view})
	case "heartbeat":
		req := kmsg.NewPtrHeartbeatRequest()
		req.Version = 4
		req.Group, req.MemberID, req.Generation, req.InstanceID = a.pos(1), a.str("member", ""), int32(a.num("gen", 1)), a.opt("instance")
		s.do(&Heartbeat{Token: who(0), Req: req})
	case "leave":
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Version = int16(a.num("v", 5))
		req.Group = a.pos(1)
		req.MemberID = a.str("member", "")
		for _, p := range pairs(a.str("members", a.str("member", ""))) {
			m := kmsg.NewLeaveGroupRequestMember()
			m.MemberID = p[0]
			if p[1] != "" {
				m.InstanceID = &p[1]
			}
			req.Members = append(req.Members, m)
		}
		s.do(&Leave{Token: who(0), Req: req})
	case "commit":
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version = int16(a.num("v", 9))
		req.Group, req.MemberID, req.Generation, req.InstanceID = a.pos(1), a.str("member", ""), int32(a.num("gen", -1)), a.opt("instance")
		req.RetentionTimeMillis = a.dur("retention", -time.Millisecond).Milliseconds()
		for _, p := range pairs(a.str("offsets", "t/0:1")) {
			topic, part, _ := strings.Cut(p[0], "/")
			rt := kmsg.NewOffsetCommitRequestTopic()
			rt.Topic = topic
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = int32(number(t, part)), int64(number(t, p[1])), 7, a.opt("metadata")
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
		}
		c := &Commit{Token: who(0), Req: req, Topics: s.view}
		if pid := a.num("pid", -1); pid >= 0 {
			c.Txn = &Txn{int64(pid), int16(a.num("pepoch", 0))}
		}
		s.do(c)
	case "marker":
		s.keep(logged{txn: &Txn{int64(a.num("pid", 0)), int16(a.num("pepoch", 0))}, marker: true, commit: a.has("commit")})
	case "delete":
		s.do(&Delete{Token: who(0), Group: a.pos(1)})
	case "delete-offsets":
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = a.pos(1)
		for _, p := range pairs(a.str("offsets", "t/0:")) {
			topic, part, _ := strings.Cut(p[0], "/")
			rt := kmsg.NewOffsetDeleteRequestTopic()
			rt.Topic = topic
			rt.Partitions = []kmsg.OffsetDeleteRequestTopicPartition{{Partition: int32(number(t, part))}}
			req.Topics = append(req.Topics, rt)
		}
		s.do(&DeleteOffsets{Token: who(0), Req: req})
	case "drop-topic":
		for _, id := range s.shard.GroupsOf(a.pos(0)) {
			s.do(&DropTopic{Group: id, Topic: a.pos(0)})
		}
	case "expire":
		for _, id := range s.shard.GroupIDs() {
			s.do(&Expire{Group: id})
		}
	case "wait":
		s.wait(duration(t, a.pos(0)))
	case "fail":
		s.fail = int16(number(t, a.pos(0)))
	case "reload":
		cfg := s.shard.cfg
		if n := a.num("size", 0); n > 0 {
			cfg.MaxSize = n
		}
		s.shard = NewShard(cfg)
		for _, l := range s.log {
			if err := l.apply(s.shard); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range s.shard.Loaded(s.now) {
			s.do(c)
		}
	case "fetch":
		req := kmsg.NewOffsetFetchRequestGroup()
		req.Group = a.pos(0)
		for _, p := range pairs(a.str("offsets", "")) {
			topic, part, _ := strings.Cut(p[0], "/")
			rt := kmsg.NewOffsetFetchRequestGroupTopic()
			rt.Topic, rt.Partitions = topic, []int32{int32(number(t, part))}
			req.Topics = append(req.Topics, rt)
		}
		req.MemberID, req.MemberEpoch = a.opt("member"), int32(a.num("epoch", -1))
		resp := s.shard.Fetch(&req, a.has("stable"))
		if resp.ErrorCode != 0 {
			fmt.Fprintf(&s.out, "fetch%s\n", code(resp.ErrorCode))
		}
		for _, rt := range resp.Topics {
			for _, p := range rt.Partitions {
				fmt.Fprintf(&s.out, "%s/%d: %d epoch=%d metadata=%q%s\n", rt.Topic, p.Partition, p.Offset, p.LeaderEpoch, *p.Metadata, code(p.ErrorCode))
			}
		}
	case "describe":
		g := s.shard.Describe(a.pos(0), int16(a.num("v", 6)))
		fmt.Fprintf(&s.out, "%s %s type=%q protocol=%q%s\n", g.Group, g.State, g.ProtocolType, g.Protocol, code(g.ErrorCode))
		for _, m := range g.Members {
			fmt.Fprintf(&s.out, "  %s%s client=%s host=%s metadata=%q assignment=%q\n", m.MemberID, instance(m.InstanceID), m.ClientID, m.ClientHost,
				m.ProtocolMetadata, m.MemberAssignment)
		}
	case "list":
		split := func(s string) []string {
			if s == "" {
				return nil
			}
			return strings.Split(s, ",")
		}
		for _, g := range s.shard.List(split(a.str("states", "")), split(a.str("types", ""))) {
			fmt.Fprintf(&s.out, "%s %s %s type=%q\n", g.Group, g.GroupType, g.GroupState, g.ProtocolType)
		}
	case "show":
		s.out.WriteString(dump(s.shard, s.now))
	default:
		if !s.consumerCommand(a) {
			t.Fatalf("unknown command %s", d.Cmd)
		}
	}
}

// metadata is a subscription if it is written as one: sub/topic/topic, and what it owns: sub/topic+topic-0+topic-1.
func metadata(s string) []byte {
	names, ok := strings.CutPrefix(s, "sub/")
	if !ok {
		return []byte(s)
	}
	m := kmsg.NewConsumerMemberMetadata()
	names, owned, says := strings.Cut(names, "+")
	m.Topics = strings.Split(names, "/")
	if says {
		m.Version = 1
		for _, t := range assignmentOfText("asg+" + owned) {
			m.OwnedPartitions = append(m.OwnedPartitions, kmsg.ConsumerMemberMetadataOwnedPartition(t))
		}
	}
	return m.AppendTo(nil)
}

// do takes a command through its life, with an append that succeeds at once unless it was told to fail.
func (s *story) do(c Command) {
	r := s.shard.Handle(s.now, c)
	if len(r.Records) > 0 {
		if s.fail != 0 {
			fmt.Fprintf(&s.out, "append fails\n")
			s.replies(Fail(r, s.fail))
			s.fail = 0
			return
		}
		for _, rec := range r.Records {
			s.keep(logged{Record: rec, txn: r.Txn})
		}
	}
	s.shard.Settle(s.now, r)
	for _, n := range r.Notes {
		if n.Kind == NoteRebalance || n.Kind == NoteMemberExpired || n.Kind == NoteRefused {
			fmt.Fprintf(&s.out, "note: %s\n", strings.TrimSpace(n.Member+" "+n.Reason))
		}
	}
	s.replies(r.Replies)
}

// keep appends to the log.
func (s *story) keep(l logged) {
	s.log = append(s.log, l)
	fmt.Fprintf(&s.out, "append %s\n", l.text())
	if err := l.apply(s.shard); err != nil {
		panic(err)
	}
}

// wait lets time pass.
func (s *story) wait(d time.Duration) {
	end := s.now.Add(d)
	for {
		var at time.Time
		due := ""
		for _, id := range s.shard.GroupIDs() {
			if by, ok := s.shard.Deadline(id); ok && !by.After(end) && (due == "" || by.Before(at)) {
				due, at = id, by
			}
		}
		if due == "" {
			s.now = end
			return
		}
		if at.After(s.now) {
			s.now = at
		}
		before := s.out.Len()
		s.do(&Tick{Group: due})
		if s.out.Len() > before {
			fmt.Fprintf(&s.out, "  at %s\n", s.now.Sub(time.UnixMilli(1_000_000)))
		}
	}
}

func (s *story) replies(rs []Reply) {
	for _, r := range rs {
		name := s.names[r.Token]
		if name == "" {
			panic(fmt.Sprintf("token %d answered twice, or never asked", r.Token))
		}
		delete(s.names, r.Token)
		fmt.Fprintf(&s.out, "-> %s: %s\n", name, response(r.Response))
	}
}

func code(c int16) string {
	if c == 0 {
		return ""
	}
	return " " + codeNames[c]
}

var codeNames = map[int16]string{
	codeUnknownServerError: "UNKNOWN_SERVER_ERROR", codeOffsetMetadataTooLarge: "OFFSET_METADATA_TOO_LARGE",
	codeCoordinatorNotAvailable: "COORDINATOR_NOT_AVAILABLE", 16: "NOT_COORDINATOR", codeIllegalGeneration: "ILLEGAL_GENERATION",
	codeInconsistentGroupProtocol: "INCONSISTENT_GROUP_PROTOCOL", codeInvalidGroupID: "INVALID_GROUP_ID",
	codeUnknownMemberID: "UNKNOWN_MEMBER_ID", codeInvalidSessionTimeout: "INVALID_SESSION_TIMEOUT",
	codeRebalanceInProgress: "REBALANCE_IN_PROGRESS", codeInvalidRequest: "INVALID_REQUEST", codeNonEmptyGroup: "NON_EMPTY_GROUP",
	codeGroupIDNotFound: "GROUP_ID_NOT_FOUND", codeMemberIDRequired: "MEMBER_ID_REQUIRED",
	codeGroupMaxSizeReached: "GROUP_MAX_SIZE_REACHED", codeFencedInstanceID: "FENCED_INSTANCE_ID",
	codeGroupSubscribedToTopic: "GROUP_SUBSCRIBED_TO_TOPIC", codeUnsupportedVersion: "UNSUPPORTED_VERSION",
	codeFencedMemberEpoch: "FENCED_MEMBER_EPOCH", codeUnreleasedInstanceID: "UNRELEASED_INSTANCE_ID", codeUnsupportedAssignor: "UNSUPPORTED_ASSIGNOR",
	codeInvalidProducerEpoch: "INVALID_PRODUCER_EPOCH", codeInvalidProducerIDMapping: "INVALID_PRODUCER_ID_MAPPING", codeUnstableOffsetCommit: "UNSTABLE_OFFSET_COMMIT",
	codeStaleMemberEpoch: "STALE_MEMBER_EPOCH", codeInvalidRegex: "INVALID_REGULAR_EXPRESSION",
}

func instance(i *string) string {
	if i == nil {
		return ""
	}
	return " instance=" + *i
}

func deref(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

func response(r kmsg.Response) string {
	switch r := r.(type) {
	case *kmsg.JoinGroupResponse:
		if r.ErrorCode != 0 {
			return "join" + code(r.ErrorCode) + " member=" + r.MemberID
		}
		var ms []string
		for _, m := range r.Members {
			ms = append(ms, m.MemberID+strings.Replace(instance(m.InstanceID), " instance=", "/", 1)+":"+string(m.ProtocolMetadata))
		}
		s := fmt.Sprintf("join gen=%d member=%s leader=%s protocol=%s", r.Generation, r.MemberID, r.LeaderID, deref(r.Protocol))
		if ms != nil {
			s += " members=" + fmt.Sprintf("%q", ms)
		}
		if r.SkipAssignment {
			s += " skip-assignment"
		}
		return s
	case *kmsg.SyncGroupResponse:
		if r.ErrorCode != 0 {
			return "sync" + code(r.ErrorCode)
		}
		if a := new(kmsg.ConsumerMemberAssignment); len(r.MemberAssignment) > 4 && a.ReadFrom(r.MemberAssignment) == nil {
			s := fmt.Sprintf("sync protocol=%s/%s", deref(r.ProtocolType), deref(r.Protocol))
			for _, t := range a.Topics {
				s += fmt.Sprintf(" %s:%v", t.Topic, t.Partitions)
			}
			return s
		}
		return fmt.Sprintf("sync %q protocol=%s/%s", r.MemberAssignment, deref(r.ProtocolType), deref(r.Protocol))
	case *kmsg.HeartbeatResponse:
		return "heartbeat" + cmpOr(code(r.ErrorCode), " ok")
	case *kmsg.LeaveGroupResponse:
		s := "leave" + cmpOr(code(r.ErrorCode), " ok")
		for _, m := range r.Members {
			s += fmt.Sprintf(" [%s%s%s]", m.MemberID, instance(m.InstanceID), cmpOr(code(m.ErrorCode), " ok"))
		}
		return s
	case *kmsg.OffsetCommitResponse:
		s := "commit"
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				s += fmt.Sprintf(" %s/%d%s", t.Topic, p.Partition, cmpOr(code(p.ErrorCode), " ok"))
			}
		}
		return s
	case *kmsg.OffsetDeleteResponse:
		s := "delete-offsets" + code(r.ErrorCode)
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				s += fmt.Sprintf(" %s/%d%s", t.Topic, p.Partition, cmpOr(code(p.ErrorCode), " ok"))
			}
		}
		return s
	case *kmsg.ConsumerGroupHeartbeatResponse:
		return beatText(r)
	case *kmsg.DeleteGroupsResponse:
		return "delete " + r.Groups[0].Group + cmpOr(code(r.Groups[0].ErrorCode), " ok")
	}
	return fmt.Sprintf("%T", r)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func text(r Record) string {
	if isConsumer(r.Key) {
		return consumerText(r)
	}
	d, _, err := decode(r)
	switch {
	case err != nil:
		return err.Error()
	case d.isOffset && d.offset == nil:
		return fmt.Sprintf("%s %s/%d: null", d.group, d.topic, d.partition)
	case d.isOffset:
		s := fmt.Sprintf("%s %s/%d: %d", d.group, d.topic, d.partition, d.offset.Offset)
		if d.offset.Expires >= 0 {
			s += fmt.Sprintf(" expires=%d", d.offset.Expires)
		}
		return s
	case d.value == nil:
		return d.group + ": null"
	}
	s := fmt.Sprintf("%s: gen=%d type=%q protocol=%s leader=%s", d.group, d.value.Generation, d.value.ProtocolType, deref(d.value.Protocol), deref(d.value.Leader))
	for _, m := range d.value.Members {
		s += fmt.Sprintf(" [%s%s %q]", m.MemberID, instance(m.InstanceID), m.Assignment)
	}
	return s
}

// dump is everything that a shard knows, for people.
func dump(s *Shard, now time.Time) string {
	var b strings.Builder
	for _, id := range s.GroupIDs() {
		e := s.groups[id]
		g := e.group
		fmt.Fprintf(&b, "%s: %s gen=%d type=%q protocol=%s leader=%s", id, g.state, g.generation, g.protocolType, deref(g.protocol), g.leader)
		for _, x := range []struct {
			name string
			at   time.Time
		}{{"join-by", g.joinBy}, {"sync-by", g.syncBy}} {
			if !x.at.IsZero() {
				fmt.Fprintf(&b, " %s=+%s", x.name, x.at.Sub(now))
			}
		}
		b.WriteByte('\n')
		for _, id := range g.ids() {
			m := g.members[id]
			fmt.Fprintf(&b, "  %s%s %q", id, instance(m.instance), m.assignment)
			if m.excused() {
				b.WriteString(" parked")
			} else {
				fmt.Fprintf(&b, " session=+%s", e.sessions[id].Sub(now))
			}
			b.WriteByte('\n')
		}
		for _, id := range slices.Sorted(maps.Keys(g.pending)) {
			fmt.Fprintf(&b, "  pending %s +%s\n", id, g.pending[id].Sub(now))
		}
		for _, topic := range slices.Sorted(maps.Keys(e.offsets)) {
			for _, p := range slices.Sorted(maps.Keys(e.offsets[topic])) {
				fmt.Fprintf(&b, "  %s/%d: %d\n", topic, p, e.offsets[topic][p].Offset)
			}
		}
		for _, topic := range slices.Sorted(maps.Keys(e.open)) {
			for _, p := range slices.Sorted(maps.Keys(e.open[topic])) {
				for _, producerID := range slices.Sorted(slices.Values(e.open[topic][p])) {
					x := s.txns[producerID]
					fmt.Fprintf(&b, "  %s/%d: %d pending of %d/%d\n", topic, p, x.groups[id][topic][p].Offset, producerID, x.epoch)
				}
			}
		}
	}
	return b.String()
}
