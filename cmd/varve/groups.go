package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func groupCommand() *cobra.Command {
	cmd := group("group", "List, describe and delete consumer groups, reset their offsets")
	conn := addConnection(cmd)
	cmd.AddCommand(groupList(conn), groupDescribe(conn), groupReset(conn), groupDelete(conn))
	return cmd
}

// checkGroupNames refuses what no broker has, before one is asked. Anything but nothing may be a group's name.
func checkGroupNames(names []string) error {
	seen := make(map[string]bool, len(names))
	for _, n := range names {
		switch {
		case n == "":
			return usagef("the group's name is empty")
		case seen[n]:
			return usagef("group %q is given twice", n)
		}
		seen[n] = true
	}
	return nil
}

type listedGroup struct {
	Group        string `json:"group"`
	State        string `json:"state"`
	Type         string `json:"type"`
	ProtocolType string `json:"protocol_type"`
	Coordinator  int32  `json:"coordinator"`
}

var (
	groupStates = []string{"Empty", "PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling", "Stable", "Dead"}
	groupTypes  = []string{"classic", "consumer"}
)

// filter returns the words of a flag as they are written in the list of those that there are.
func filter(flag string, words, known []string) ([]string, error) {
	var out []string
	for _, w := range words {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, w) })
		if i < 0 {
			return nil, usagef("%s: there is no %q; there are: %s", flag, w, strings.Join(known, ", "))
		}
		out = append(out, known[i])
	}
	return out, nil
}

func groupList(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List groups", Args: arguments("", 0, 0)}
	states := cmd.Flags().StringArray("state", nil, "only those in this state (repeatable): "+strings.Join(groupStates, ", "))
	types := cmd.Flags().StringArray("type", nil, "only those of this protocol (repeatable): "+strings.Join(groupTypes, ", "))
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		inStates, err := filter("--state", *states, groupStates)
		if err != nil {
			return err
		}
		ofTypes, err := filter("--type", *types, groupTypes)
		if err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		list, err := listGroups(s, inStates, ofTypes)
		if err != nil && len(list) == 0 {
			return s.failed("listing groups", err)
		}
		var failed error
		if err != nil { // some brokers answered, and what they said is of use
			failed = s.failed("listing groups", err)
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else {
			t := newTable("GROUP", "STATE", "TYPE", "PROTOCOL", "COORDINATOR")
			for _, g := range list {
				t.row(g.Group, dash(g.State), g.Type, dash(g.ProtocolType), g.Coordinator)
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		return errors.Join(err, failed)
	}
	return cmd
}

// listGroups asks every broker. A broker that does not know a filter leaves it out, so that it is applied here again; the
// state of a group a broker before 2.6 does not tell at all.
func listGroups(s *session, states, types []string) ([]listedGroup, error) {
	req := kmsg.NewPtrListGroupsRequest()
	req.StatesFilter, req.TypesFilter = states, types
	list := []listedGroup{}
	err := everyBroker(s, req, func(id int32, resp *kmsg.ListGroupsResponse) error {
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			return err
		}
		if resp.Version < 4 && len(states) > 0 {
			return fmt.Errorf("broker %d is too old to tell the states of groups; leave out --state", id)
		}
		for _, g := range resp.Groups {
			l := listedGroup{g.Group, g.GroupState, strings.ToLower(g.GroupType), g.ProtocolType, id}
			if l.Type == "" {
				l.Type = "classic" // what there was before groups had types
			}
			if (len(states) == 0 || slices.Contains(states, l.State)) && (len(types) == 0 || slices.Contains(types, l.Type)) {
				list = append(list, l)
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b listedGroup) int { return strings.Compare(a.Group, b.Group) })
	if err != nil {
		err = s.conn.explain(err)
	}
	return list, err
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// offsetOrDash is an offset or a count, of which -1 says that there is none.
func offsetOrDash(n int64) string {
	if n < 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

type describedGroup struct {
	Group           string           `json:"group"`
	State           string           `json:"state"`
	Type            string           `json:"type"`          // classic, consumer
	ProtocolType    string           `json:"protocol_type"` // consumer, or what else a classic group is for
	Protocol        string           `json:"protocol"`      // the assignor
	Coordinator     int32            `json:"coordinator"`
	Epoch           int32            `json:"epoch"`            // of a group of the consumer protocol; -1
	AssignmentEpoch int32            `json:"assignment_epoch"` // of the same
	Members         []describedMemb  `json:"members"`
	Offsets         []describedGroff `json:"offsets"`
	TotalLag        int64            `json:"total_lag"` // of the partitions that have a commit
}

type describedMemb struct {
	Member     string         `json:"member"`
	Instance   string         `json:"instance,omitempty"`
	Client     string         `json:"client"`
	Host       string         `json:"host"`
	Epoch      int32          `json:"epoch"` // of a member of the consumer protocol; -1
	Assignment []assignedPart `json:"assignment"`
	Target     []assignedPart `json:"target,omitempty"` // what it is to have, where that is something else
}

type assignedPart struct {
	Topic      string  `json:"topic"`
	Partitions []int32 `json:"partitions"`
}

type describedGroff struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // -1: nothing committed
	LogStart  int64  `json:"log_start"` // -1: not known
	LogEnd    int64  `json:"log_end"`   // the high watermark; -1: not known
	Lag       int64  `json:"lag"`       // -1: nothing committed, or not known
	Member    string `json:"member"`
	Error     string `json:"error,omitempty"`
}

func groupDescribe(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "describe GROUP...", Short: "Describe groups: members, committed offsets, lag", Args: arguments("the group's name", 1, -1)}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkGroupNames(args); err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		described, failed := describeGroups(s, args)
		list := []describedGroup{}
		var errs []error
		for _, name := range args {
			if err := failed[name]; err != nil {
				errs = append(errs, fmt.Errorf("group %q: %w", name, err))
				continue
			}
			list = append(list, *described[name])
		}
		lags, err := offsetsOf(s, list)
		if err != nil {
			return s.failed("describing groups", err)
		}
		whole := list[:0]
		for _, g := range list {
			if err := lags[g.Group].err; err != nil {
				errs = append(errs, fmt.Errorf("committed offsets of group %q: %w", g.Group, s.conn.explain(err)))
				continue
			}
			g.Offsets = lags[g.Group].offsets
			for _, o := range g.Offsets {
				g.TotalLag += max(o.Lag, 0)
			}
			whole = append(whole, g)
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), whole)
		} else {
			err = printGroups(cmd, whole)
		}
		return errors.Join(err, joinErrors(errs))
	}
	return cmd
}

// describeGroups describes groups of either protocol, without offsets: every name is in one of the two maps. A group of
// the consumer protocol does not exist to those who ask for a classic one, and the other way round, so what is not there
// the one way is looked for the other way.
func describeGroups(s *session, names []string) (map[string]*describedGroup, map[string]error) {
	found, failed := make(map[string]*describedGroup, len(names)), make(map[string]error)
	classic, err := s.DescribeGroups(s.ctx, names...)
	var missing []string
	for _, name := range names {
		g, ok := classic[name]
		switch {
		case !ok && err != nil:
			failed[name] = s.conn.explain(err)
		case !ok:
			failed[name] = errors.New("the broker did not answer for it")
		case errors.Is(g.Err, kerr.GroupIDNotFound), g.Err == nil && g.State == "Dead":
			// Before DescribeGroups v6 a group that does not exist is called dead.
			failed[name] = brokerError(kerr.GroupIDNotFound, "")
			missing = append(missing, name)
		case g.Err != nil:
			failed[name] = brokerError(g.Err, g.ErrMessage)
		default:
			found[name] = classicGroup(g)
		}
	}
	if len(missing) == 0 {
		return found, failed
	}
	consumer, err := s.DescribeConsumerGroups(s.ctx, missing...)
	for _, name := range missing {
		g, ok := consumer[name]
		switch {
		case ok && g.Err == nil:
			found[name] = consumerGroup(g)
			delete(failed, name)
		case ok && !errors.Is(g.Err, kerr.GroupIDNotFound) && !errors.Is(g.Err, kerr.UnsupportedVersion):
			failed[name] = brokerError(g.Err, "")
		case !ok && err != nil && s.ctx.Err() != nil:
			failed[name] = s.conn.explain(err) // else the broker does not have the protocol
		}
	}
	return found, failed
}

func classicGroup(g kadm.DescribedGroup) *describedGroup {
	d := &describedGroup{Group: g.Group, State: g.State, Type: "classic", ProtocolType: g.ProtocolType, Protocol: g.Protocol,
		Coordinator: g.Coordinator.NodeID, Epoch: -1, AssignmentEpoch: -1, Members: []describedMemb{}, Offsets: []describedGroff{}}
	for _, m := range g.Members {
		dm := describedMemb{m.MemberID, deref(m.InstanceID), m.ClientID, m.ClientHost, -1, []assignedPart{}, nil}
		if c, ok := m.Assigned.AsConsumer(); ok {
			set := kadm.TopicsSet{}
			for _, t := range c.Topics {
				set.Add(t.Topic, t.Partitions...)
			}
			dm.Assignment = assigned(set)
		}
		d.Members = append(d.Members, dm)
	}
	return d
}

func consumerGroup(g kadm.DescribedConsumerGroup) *describedGroup {
	d := &describedGroup{Group: g.Group, State: g.State, Type: "consumer", ProtocolType: "consumer", Protocol: g.AssignorName,
		Coordinator: g.Coordinator.NodeID, Epoch: g.Epoch, AssignmentEpoch: g.AssignmentEpoch, Members: []describedMemb{}, Offsets: []describedGroff{}}
	for _, m := range g.Members {
		dm := describedMemb{m.MemberID, deref(m.InstanceID), m.ClientID, m.ClientHost, m.MemberEpoch, assigned(m.Assignment), nil}
		if target := assigned(m.TargetAssignment); !slices.EqualFunc(target, dm.Assignment, func(a, b assignedPart) bool {
			return a.Topic == b.Topic && slices.Equal(a.Partitions, b.Partitions)
		}) {
			dm.Target = target
		}
		d.Members = append(d.Members, dm)
	}
	return d
}

func assigned(set kadm.TopicsSet) []assignedPart {
	out := []assignedPart{}
	for _, t := range set.Sorted() {
		out = append(out, assignedPart{t.Topic, t.Partitions})
	}
	return out
}

type groupOffsets struct {
	offsets []describedGroff
	err     error
}

// offsetsOf is what groups have committed and what their members have, with the extent of the partitions: one request for
// each broker, however many groups there are.
func offsetsOf(s *session, groups []describedGroup) (map[string]groupOffsets, error) {
	var names []string
	topics := map[string]bool{}
	for _, g := range groups {
		names = append(names, g.Group)
		for _, m := range g.Members {
			for _, a := range m.Assignment {
				topics[a.Topic] = true
			}
		}
	}
	fetched := s.FetchManyOffsets(s.ctx, names...)
	for _, f := range fetched {
		for topic := range f.Fetched {
			topics[topic] = true
		}
	}
	starts, ends, partly := extents(s.ctx, s, slices.Sorted(maps.Keys(topics)))
	var some *kadm.ShardErrors
	if partly != nil && (!errors.As(partly, &some) || some.AllFailed) {
		return nil, partly
	}
	out := make(map[string]groupOffsets, len(groups))
	for _, g := range groups {
		f, ok := fetched[g.Group]
		if !ok {
			f.Err = errors.New("the broker did not answer for it")
		}
		if f.Err != nil {
			out[g.Group] = groupOffsets{err: f.Err}
			continue
		}
		type place struct {
			topic     string
			partition int32
		}
		rows := map[place]*describedGroff{}
		row := func(topic string, p int32) *describedGroff {
			o := rows[place{topic, p}]
			if o == nil {
				o = &describedGroff{Topic: topic, Partition: p, Committed: -1, LogStart: -1, LogEnd: -1, Lag: -1}
				rows[place{topic, p}] = o
			}
			return o
		}
		f.Fetched.Each(func(c kadm.OffsetResponse) {
			if c.Err != nil {
				row(c.Topic, c.Partition).Error = brokerError(c.Err, "").Error()
			} else if c.At >= 0 {
				row(c.Topic, c.Partition).Committed = c.At
			}
		})
		for _, m := range g.Members {
			for _, a := range m.Assignment {
				for _, p := range a.Partitions {
					row(a.Topic, p).Member = m.Member
				}
			}
		}
		list := []describedGroff{}
		for _, o := range rows {
			o.locate(starts, ends, partly)
			list = append(list, *o)
		}
		slices.SortFunc(list, func(a, b describedGroff) int {
			return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
		})
		out[g.Group] = groupOffsets{offsets: list}
	}
	return out, nil
}

// locate fills in the extent of a partition and how far behind its end the group is; partly is why some brokers did not
// answer, if so.
func (o *describedGroff) locate(starts, ends kadm.ListedOffsets, partly error) {
	start, ok := starts.Lookup(o.Topic, o.Partition)
	if ok && start.Err == nil {
		o.LogStart = start.Offset
	}
	end, ok := ends.Lookup(o.Topic, o.Partition)
	switch {
	case o.Error != "":
	case !ok && partly != nil:
		o.Error = "its leader did not answer"
	case !ok:
		o.Error = brokerError(kerr.UnknownTopicOrPartition, "").Error()
	case end.Err != nil:
		o.Error = brokerError(end.Err, "").Error()
	default:
		o.LogEnd = end.Offset
		if o.Committed >= 0 {
			// The commit is read before the end. It may still be beyond it: after an unclean election.
			o.Lag = max(0, o.LogEnd-o.Committed)
		}
	}
}

// extents are the first offsets and the high watermarks of topics, as far as they could be found: with some missing there is
// an error too.
func extents(ctx context.Context, s *session, topics []string) (starts, ends kadm.ListedOffsets, err error) {
	if len(topics) == 0 {
		return nil, nil, nil
	}
	var late error
	starts, err = s.ListStartOffsets(ctx, topics...)
	ends, late = s.ListEndOffsets(ctx, topics...)
	return starts, ends, cmp.Or(err, late)
}

func printGroups(cmd *cobra.Command, list []describedGroup) error {
	for i, g := range list {
		if i > 0 {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		head := newTable("group", g.Group)
		head.row("state", dash(g.State))
		head.row("type", g.Type)
		head.row("protocol", dash(g.ProtocolType)+" "+dash(g.Protocol))
		if g.Epoch >= 0 {
			head.row("epoch", fmt.Sprintf("%d, assigned %d", g.Epoch, g.AssignmentEpoch))
		}
		head.row("coordinator", g.Coordinator)
		head.row("members", len(g.Members))
		head.row("lag", g.TotalLag)
		if err := head.writeTo(cmd.OutOrStdout()); err != nil {
			return err
		}
		if len(g.Members) > 0 {
			t := newTable("MEMBER", "INSTANCE", "CLIENT", "HOST", "EPOCH", "ASSIGNMENT", "TARGET")
			for _, m := range g.Members {
				target := "-"
				if m.Target != nil {
					target = assignment(m.Target)
				}
				t.row(m.Member, dash(m.Instance), dash(m.Client), dash(m.Host), offsetOrDash(int64(m.Epoch)), assignment(m.Assignment), target)
			}
			if err := t.writeTo(cmd.OutOrStdout()); err != nil {
				return err
			}
		}
		if len(g.Offsets) == 0 {
			continue
		}
		t := newTable("TOPIC", "PARTITION", "COMMITTED", "LOG-START", "LOG-END", "LAG", "MEMBER", "")
		for _, o := range g.Offsets {
			t.row(o.Topic, o.Partition, offsetOrDash(o.Committed), offsetOrDash(o.LogStart), offsetOrDash(o.LogEnd), offsetOrDash(o.Lag), dash(o.Member), o.Error)
		}
		if err := t.writeTo(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	return nil
}

// assignment is a list of partitions as --topic takes it, joined by blanks.
func assignment(list []assignedPart) string {
	if len(list) == 0 {
		return "none"
	}
	var parts []string
	for _, a := range list {
		var ps []string
		for _, p := range a.Partitions {
			ps = append(ps, strconv.Itoa(int(p)))
		}
		parts = append(parts, a.Topic+":"+strings.Join(ps, ","))
	}
	return strings.Join(parts, " ")
}

type deletedGroup struct {
	Group   string `json:"group"`
	Deleted bool   `json:"deleted"` // false: it did not exist (--if-exists)
}

func groupDelete(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "delete GROUP...", Short: "Delete groups that have no members, with their committed offsets", Args: arguments("the group's name", 1, -1)}
	ifExists := cmd.Flags().Bool("if-exists", false, "a group that does not exist is no error")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkGroupNames(args); err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		resps, err := s.DeleteGroups(s.ctx, args...)
		if err != nil && len(resps) == 0 {
			return s.failed("deleting "+strings.Join(args, ", "), err)
		}
		list := []deletedGroup{}
		var errs []error
		for _, n := range args {
			r, ok := resps[n]
			switch {
			case !ok && err != nil:
				errs = append(errs, fmt.Errorf("deleting group %q: %w", n, s.conn.explain(err)))
			case !ok:
				errs = append(errs, fmt.Errorf("deleting group %q: the broker did not answer for it", n))
			case r.Err == nil:
				list = append(list, deletedGroup{n, true})
			case *ifExists && errors.Is(r.Err, kerr.GroupIDNotFound):
				list = append(list, deletedGroup{n, false})
			default:
				errs = append(errs, fmt.Errorf("deleting group %q: %w", n, brokerError(r.Err, r.ErrMessage)))
			}
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else if err = nil; len(list) > 0 {
			t := newTable("GROUP", "DELETED")
			for _, d := range list {
				t.row(d.Group, d.Deleted)
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		return errors.Join(err, joinErrors(errs))
	}
	return cmd
}
