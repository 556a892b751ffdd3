package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

func groupCommand() *cobra.Command {
	cmd := group("group", "List and describe consumer groups")
	conn := addConnection(cmd)
	cmd.AddCommand(groupList(conn), groupDescribe(conn))
	return cmd
}

type listedGroup struct {
	Group        string `json:"group"`
	State        string `json:"state"`
	ProtocolType string `json:"protocol_type"`
	Coordinator  int32  `json:"coordinator"`
}

func groupList(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List groups", Args: arguments("", 0, 0)}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		groups, err := s.ListGroups(s.ctx)
		if err != nil {
			return s.failed("listing groups", err)
		}
		list := []listedGroup{}
		for _, g := range groups.Sorted() {
			list = append(list, listedGroup{g.Group, g.State, g.ProtocolType, g.Coordinator})
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		t := newTable("GROUP", "STATE", "TYPE", "COORDINATOR")
		for _, g := range list {
			t.row(g.Group, dash(g.State), dash(g.ProtocolType), g.Coordinator)
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type describedGroup struct {
	Group        string           `json:"group"`
	State        string           `json:"state"`
	ProtocolType string           `json:"protocol_type"`
	Protocol     string           `json:"protocol"`
	Coordinator  int32            `json:"coordinator"`
	Members      []describedMemb  `json:"members"`
	Offsets      []describedGroff `json:"offsets"`
	TotalLag     int64            `json:"total_lag"`
}

type describedMemb struct {
	Member   string `json:"member"`
	Instance string `json:"instance,omitempty"`
	Client   string `json:"client"`
	Host     string `json:"host"`
}

type describedGroff struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // -1: nothing committed
	LogStart  int64  `json:"log_start"`
	LogEnd    int64  `json:"log_end"`
	Lag       int64  `json:"lag"`
	Member    string `json:"member"`
	Error     string `json:"error,omitempty"`
}

func groupDescribe(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "describe GROUP...", Short: "Describe groups: members, committed offsets, lag", Args: arguments("the group's name", 1, -1)}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		lags, err := s.Lag(s.ctx, args...)
		if err != nil {
			return s.failed("describing groups", err)
		}
		list := []describedGroup{}
		var errs []error
		for _, name := range args {
			l, ok := lags[name]
			if !ok {
				errs = append(errs, fmt.Errorf("group %q: the broker did not answer for it", name))
				continue
			}
			if err := l.Error(); errors.Is(err, kerr.GroupIDNotFound) || err == nil && l.State == "Dead" && len(l.Lag) == 0 {
				if g, ok, err := describeConsumers(s.ctx, s.Client, name); err != nil {
					errs = append(errs, fmt.Errorf("group %q: %w", name, conn.explain(err)))
					continue
				} else if ok {
					list = append(list, g)
					continue
				}
			}
			if err := l.Error(); err != nil {
				errs = append(errs, fmt.Errorf("group %q: %w", name, conn.explain(err)))
				continue
			}
			if l.State == "Dead" && len(l.Lag) == 0 {
				// Before DescribeGroups v6 a group that does not exist is called dead.
				errs = append(errs, fmt.Errorf("group %q: %w", name, brokerError(kerr.GroupIDNotFound, "")))
				continue
			}
			g := describedGroup{Group: name, State: l.State, ProtocolType: l.ProtocolType, Protocol: l.Protocol,
				Coordinator: l.Coordinator.NodeID, Members: []describedMemb{}, Offsets: []describedGroff{}}
			for _, m := range l.Members {
				g.Members = append(g.Members, describedMemb{m.MemberID, deref(m.InstanceID), m.ClientID, m.ClientHost})
			}
			for _, p := range l.Lag.Sorted() {
				o := describedGroff{Topic: p.Topic, Partition: p.Partition, Committed: p.Commit.At, LogStart: p.Start.Offset, LogEnd: p.End.Offset, Lag: p.Lag}
				if p.Member != nil {
					o.Member = p.Member.MemberID
				}
				if p.Err != nil {
					o.Error = brokerError(p.Err, "").Error()
				} else {
					g.TotalLag += max(p.Lag, 0)
				}
				g.Offsets = append(g.Offsets, o)
			}
			list = append(list, g)
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else {
			err = printGroups(cmd, list)
		}
		return errors.Join(err, joinErrors(errs))
	}
	return cmd
}

// describeConsumers describes a group of the consumer protocol (KIP-848), which DescribeGroups knows nothing of; false if
// there is none of that name.
func describeConsumers(ctx context.Context, adm *kadm.Client, name string) (describedGroup, bool, error) {
	groups, err := adm.DescribeConsumerGroups(ctx, name)
	if err != nil {
		return describedGroup{}, false, nil // a broker that does not know the request has no such groups
	}
	d, ok := groups[name]
	switch {
	case !ok || errors.Is(d.Err, kerr.GroupIDNotFound) || errors.Is(d.Err, kerr.UnsupportedVersion):
		return describedGroup{}, false, nil
	case d.Err != nil:
		return describedGroup{}, false, d.Err
	}
	g := describedGroup{Group: name, State: d.State, ProtocolType: "consumer", Protocol: d.AssignorName,
		Coordinator: d.Coordinator.NodeID, Members: []describedMemb{}, Offsets: []describedGroff{}}
	owner := map[string]map[int32]string{}
	all := d.AssignedPartitions()
	for _, m := range d.Members {
		g.Members = append(g.Members, describedMemb{m.MemberID, deref(m.InstanceID), m.ClientID, m.ClientHost})
		for topic, ps := range m.Assignment {
			if owner[topic] == nil {
				owner[topic] = map[int32]string{}
			}
			for p := range ps {
				owner[topic][p] = m.MemberID
			}
		}
	}
	committed, err := adm.FetchOffsets(ctx, name)
	if err != nil {
		return g, false, err
	}
	committed.Each(func(o kadm.OffsetResponse) { all.Add(o.Topic, o.Partition) })
	topics := all.Topics()
	if len(topics) == 0 {
		return g, true, nil
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return g, false, err
	}
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return g, false, err
	}
	for _, t := range all.Sorted() {
		for _, p := range t.Partitions {
			o := describedGroff{Topic: t.Topic, Partition: p, Committed: -1, LogStart: -1, LogEnd: -1, Lag: -1, Member: owner[t.Topic][p]}
			if c, ok := committed.Lookup(t.Topic, p); ok {
				o.Committed = c.At
			}
			start, ok1 := starts.Lookup(t.Topic, p)
			end, ok2 := ends.Lookup(t.Topic, p)
			switch {
			case !ok1 || !ok2:
				o.Error = brokerError(kerr.UnknownTopicOrPartition, "").Error()
			case start.Err != nil:
				o.Error = brokerError(start.Err, "").Error()
			case end.Err != nil:
				o.Error = brokerError(end.Err, "").Error()
			default:
				o.LogStart, o.LogEnd = start.Offset, end.Offset
				o.Lag = max(end.Offset-max(o.Committed, start.Offset), 0)
				g.TotalLag += o.Lag
			}
			g.Offsets = append(g.Offsets, o)
		}
	}
	return g, true, nil
}

func printGroups(cmd *cobra.Command, list []describedGroup) error {
	for i, g := range list {
		if i > 0 {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		head := newTable("group", g.Group)
		head.row("state", dash(g.State))
		head.row("protocol", dash(g.ProtocolType)+" "+dash(g.Protocol))
		head.row("coordinator", g.Coordinator)
		head.row("members", len(g.Members))
		head.row("lag", g.TotalLag)
		if err := head.writeTo(cmd.OutOrStdout()); err != nil {
			return err
		}
		if len(g.Offsets) == 0 {
			continue
		}
		t := newTable("TOPIC", "PARTITION", "COMMITTED", "LOG-START", "LOG-END", "LAG", "MEMBER", "")
		for _, o := range g.Offsets {
			t.row(o.Topic, o.Partition, o.Committed, o.LogStart, o.LogEnd, o.Lag, dash(o.Member), o.Error)
		}
		if err := t.writeTo(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	return nil
}
