package group

import (
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// consumerCommand is the part of a story that is told of the consumer protocol. A topic's id is the first letter of its
// name.
func (s *story) consumerCommand(a args) bool {
	switch a.d.Cmd {
	case "topics":
		s.view = &view{version: s.view.version + 1, byName: map[string]Topic{}}
		for _, x := range a.d.CmdArgs {
			n, racks, _ := strings.Cut(x.Vals[0], ":")
			t := Topic{ID: topicID{15: x.Key[0]}, Name: x.Key, Partitions: int32(number(a.t, n))}
			for r := range strings.SplitSeq(racks, "/") {
				if r != "" {
					t.Racks = append(t.Racks, strings.Split(r, "+"))
				}
			}
			s.view.byName[x.Key] = t
		}
	case "beat":
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		req.Version, req.Group = int16(a.num("v", 1)), a.pos(1)
		if req.Group == "-" {
			req.Group = ""
		}
		req.MemberID, req.MemberEpoch = a.str("member", ""), int32(a.num("epoch", 0))
		req.InstanceID, req.RackID, req.ServerAssignor, req.SubscribedTopicRegex = a.opt("instance"), a.opt("rack"), a.opt("assignor"), a.opt("regex")
		if req.MemberEpoch == 0 {
			req.RebalanceTimeoutMillis = 30_000
			req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		}
		if d := a.dur("rebalance", 0); d != 0 {
			req.RebalanceTimeoutMillis = int32(d.Milliseconds())
		}
		switch topics := a.str("topics", ""); topics {
		case "":
		case "none":
			req.SubscribedTopicNames = []string{}
		default:
			req.SubscribedTopicNames = strings.Split(topics, ",")
		}
		switch owned := a.str("owned", ""); owned {
		case "":
		case "none":
			req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		default:
			req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			for _, p := range pairs(owned) {
				req.Topics = append(req.Topics, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: topicID{15: p[0][0]}, Partitions: []int32{int32(number(a.t, p[1]))}})
			}
		}
		s.token++
		s.names[s.token] = a.pos(0)
		s.suffix++
		s.do(&ConsumerHeartbeat{Token: s.token, Req: req, ClientID: a.pos(0), ClientHost: "/h", Suffix: fmt.Sprint("made-", s.suffix), Topics: s.view,
			Session: a.dur("session", 0), Interval: a.dur("interval", 0)})
	case "describe-consumer":
		g := s.shard.DescribeConsumer(a.pos(0), s.view)
		if g.ErrorCode != 0 {
			fmt.Fprintf(&s.out, "%s%s: %s\n", g.Group, code(g.ErrorCode), *g.ErrorMessage)
			return true
		}
		fmt.Fprintf(&s.out, "%s %s epoch=%d assignment-epoch=%d assignor=%s\n", g.Group, g.State, g.Epoch, g.AssignmentEpoch, g.AssignorName)
		for _, m := range g.Members {
			fmt.Fprintf(&s.out, "  %s%s epoch=%d type=%d client=%s%s topics=%v regex=%s has", m.MemberID, instance(m.InstanceID), m.MemberEpoch, m.MemberType, m.ClientID, m.ClientHost, m.SubscribedTopics, deref(m.SubscribedTopicRegex))
			for _, t := range m.Assignment.TopicPartitions {
				fmt.Fprintf(&s.out, " %s:%v", t.Topic, t.Partitions)
			}
			s.out.WriteString(" target")
			for _, t := range m.TargetAssignment.TopicPartitions {
				fmt.Fprintf(&s.out, " %s:%v", t.Topic, t.Partitions)
			}
			s.out.WriteString("\n")
		}
	default:
		return false
	}
	return true
}

func beatText(r *kmsg.ConsumerGroupHeartbeatResponse) string {
	if r.ErrorCode != 0 {
		return "beat" + code(r.ErrorCode) + ": " + deref(r.ErrorMessage)
	}
	s := fmt.Sprintf("beat member=%s epoch=%d", *r.MemberID, r.MemberEpoch)
	if r.HeartbeatIntervalMillis != 5000 {
		s += fmt.Sprintf(" interval=%s", time.Duration(r.HeartbeatIntervalMillis)*time.Millisecond)
	}
	if r.Assignment != nil {
		s += " assignment"
		for _, t := range r.Assignment.Topics {
			s += fmt.Sprintf(" %c:%v", t.TopicID[15], t.Partitions)
		}
	}
	return s
}

// consumerText is a record of the consumer protocol, for people.
func consumerText(r Record) string {
	d, err := decodeConsumer(r)
	if err != nil {
		return err.Error()
	}
	has := func(h holding) string {
		s := ""
		for _, t := range h.topics() {
			s += fmt.Sprintf(" %c:", t[15])
			for i, p := range h[t] {
				if i > 0 {
					s += ","
				}
				s += fmt.Sprintf("%d@%d", p.partition, p.epoch)
			}
		}
		return s
	}
	what := map[int16]string{3: "group", 4: "topics", 5: "member", 6: "target", 7: "meant", 8: "current", 16: "regex"}[d.kind]
	s := strings.TrimSpace(what + " " + d.group + " " + d.name)
	switch {
	case d.gone:
		return s + ": null"
	case d.kind == keyConsumerMember:
		m := d.member
		s += fmt.Sprintf(":%s client=%s topics=%v", instance(m.instance), m.clientID, m.topics)
		if m.regex != "" {
			s += " regex=" + m.regex
		}
		if m.classic != nil {
			s += fmt.Sprintf(" classic=%s", m.classic.session)
			for _, p := range m.classic.protocols {
				s += fmt.Sprintf(" %s:%q", p.name, p.metadata)
			}
		}
	case d.kind == keyConsumerAssigned:
		s += ":"
		for _, t := range sortedIDs(d.target) {
			s += fmt.Sprintf(" %c:%v", t[15], d.target[t])
		}
	case d.kind == keyConsumerCurrent:
		m := d.member
		s += fmt.Sprintf(": epoch=%d/%d %s has%s", m.epoch, m.previous, []string{"STABLE", "UNREVOKED", "UNRELEASED"}[m.state], has(m.assigned))
		if len(m.revoking) > 0 {
			s += " gives" + has(m.revoking)
		}
	case d.kind == keyConsumerRegex:
		s += fmt.Sprintf(": %v", d.regex.topics)
	default:
		s += fmt.Sprintf(": epoch=%d", d.epoch)
	}
	return s
}

// assignmentBytes is a leader's assignment if it is written as one: asg+topic-0+topic-1.
func assignmentBytes(s string) []byte {
	ts := assignmentOfText(s)
	if ts == nil {
		return []byte(s)
	}
	return (&kmsg.ConsumerMemberAssignment{Topics: ts}).AppendTo(nil)
}

func assignmentOfText(s string) (ts []kmsg.ConsumerMemberAssignmentTopic) {
	s, ok := strings.CutPrefix(s, "asg+")
	if !ok {
		return nil
	}
	for x := range strings.SplitSeq(s, "+") {
		name, p, _ := strings.Cut(x, "-")
		if len(ts) == 0 || ts[len(ts)-1].Topic != name {
			ts = append(ts, kmsg.ConsumerMemberAssignmentTopic{Topic: name})
		}
		var n int32
		if _, err := fmt.Sscan(p, &n); err == nil {
			ts[len(ts)-1].Partitions = append(ts[len(ts)-1].Partitions, n)
		}
	}
	return ts
}
