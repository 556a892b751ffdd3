package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
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
