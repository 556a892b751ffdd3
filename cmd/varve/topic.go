package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func topicCommand() *cobra.Command {
	cmd := group("topic", "Create, list, describe, alter and delete topics")
	conn := addConnection(cmd)
	cmd.AddCommand(topicCreate(conn), topicList(conn), topicDescribe(conn), topicAlter(conn), topicDelete(conn))
	return cmd
}

// topicID prints an id as Kafka's tools do.
func topicID(id kadm.TopicID) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// parseConfigs reads repeated name=value flags; a name given twice is a mistake.
func parseConfigs(flag string, list []string) (map[string]string, error) {
	m := make(map[string]string, len(list))
	for _, s := range list {
		name, value, err := keyValue(flag, s)
		if err != nil {
			return nil, err
		}
		if _, dup := m[name]; dup {
			return nil, usagef("%s: %q is given twice", flag, name)
		}
		m[name] = value
	}
	return m, nil
}

type createdTopic struct {
	Topic             string `json:"topic"`
	ID                string `json:"id"`
	Partitions        int32  `json:"partitions"`
	ReplicationFactor int16  `json:"replication_factor"`
	Created           bool   `json:"created"` // false: it existed (--if-not-exists) or --dry-run
}

func topicCreate(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "create TOPIC...",
		Short:   "Create topics",
		Example: "  varve topic create clicks --partitions 12 --config retention.ms=-1 --config cleanup.policy=delete",
		Args:    arguments("the topic's name", 1, -1),
	}
	partitions, rf := int64(-1), int64(-1)
	f := cmd.Flags()
	f.VarP(intValue{&partitions, 1, math.MaxInt32, "a number from 1"}, "partitions", "p", "partitions (default: the broker's num.partitions)")
	f.VarP(intValue{&rf, 1, math.MaxInt16, "a number from 1"}, "replication-factor", "r", "replicas of each partition (default: the broker's default.replication.factor)")
	// The broker's defaults are -1 on the wire, which would read oddly as a default value here.
	f.Lookup("partitions").DefValue, f.Lookup("replication-factor").DefValue = "", ""
	configs := f.StringArrayP("config", "c", nil, "a topic setting, name=value (repeatable)")
	ifNotExists := f.Bool("if-not-exists", false, "a topic that exists already is no error")
	dry := f.Bool("dry-run", false, "let the broker check it, create nothing")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkTopicNames(args); err != nil {
			return err
		}
		settings, err := parseConfigs("--config", *configs)
		if err != nil {
			return err
		}
		values := make(map[string]*string, len(settings))
		for k, v := range settings {
			values[k] = &v
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		create := s.CreateTopics
		if *dry {
			create = s.ValidateCreateTopics
		}
		resps, err := create(s.ctx, int32(partitions), int16(rf), values, args...)
		if err != nil {
			return s.failed("creating "+strings.Join(args, ", "), err)
		}
		var list []createdTopic
		var errs []error
		for _, name := range args {
			r := resps[name]
			switch {
			case r.Err == nil:
				list = append(list, createdTopic{name, topicID(r.ID), r.NumPartitions, r.ReplicationFactor, !*dry})
			case *ifNotExists && errors.Is(r.Err, kerr.TopicAlreadyExists):
				list = append(list, createdTopic{Topic: name})
			case errors.Is(r.Err, kerr.TopicAlreadyExists):
				errs = append(errs, fmt.Errorf("creating topic %s: %w", name, brokerError(r.Err, "")))
			default:
				errs = append(errs, fmt.Errorf("creating topic %s: %w", name, brokerError(r.Err, r.ErrMessage)))
			}
		}
		// A topic that existed has its own shape, not the one that was asked for.
		var existing []string
		for _, t := range list {
			if !t.Created && !*dry {
				existing = append(existing, t.Topic)
			}
		}
		if len(existing) > 0 {
			details, err := s.ListTopicsWithInternal(s.ctx, existing...)
			if err != nil {
				return s.failed("looking up "+strings.Join(existing, ", "), err)
			}
			for i, t := range list {
				if d, ok := details[t.Topic]; ok && !t.Created {
					list[i] = createdTopic{t.Topic, topicID(d.ID), int32(len(d.Partitions)), int16(d.Partitions.NumReplicas()), false}
				}
			}
		}
		var created []string
		for _, t := range list {
			if t.Created {
				created = append(created, t.Topic)
			}
		}
		s.everywhere(created, func(t kmsg.MetadataResponseTopic) bool { return !isUnknown(t) })
		if err := printCreated(cmd, out, list); err != nil {
			return err
		}
		return joinErrors(errs)
	}
	return cmd
}

// everywhere returns when every broker that answers has heard of a change to topics, so that the next command, which may
// ask another broker, sees it; or after two seconds: it is made, whoever has not heard of it.
func (s *session) everywhere(names []string, heard func(kmsg.MetadataResponseTopic) bool) {
	if len(names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	brokers, err := s.ListBrokers(ctx)
	if err != nil {
		return
	}
	var asked sync.WaitGroup
	for _, b := range brokers {
		asked.Go(func() {
			req := kmsg.NewPtrMetadataRequest() // creates nothing
			for _, name := range names {
				t := kmsg.NewMetadataRequestTopic()
				t.Topic = &name
				req.Topics = append(req.Topics, t)
			}
			for {
				resp, err := req.RequestWith(ctx, s.kgo.Broker(int(b.NodeID)))
				if err != nil || !slices.ContainsFunc(resp.Topics, func(t kmsg.MetadataResponseTopic) bool { return !heard(t) }) {
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	asked.Wait()
}

func isUnknown(t kmsg.MetadataResponseTopic) bool {
	return t.ErrorCode == kerr.UnknownTopicOrPartition.Code
}

func printCreated(cmd *cobra.Command, out *outputFlag, list []createdTopic) error {
	if out.json() {
		if list == nil {
			list = []createdTopic{}
		}
		return writeJSON(cmd.OutOrStdout(), list)
	}
	if len(list) == 0 {
		return nil
	}
	t := newTable("TOPIC", "PARTITIONS", "REPLICATION", "CREATED")
	for _, c := range list {
		t.row(c.Topic, c.Partitions, c.ReplicationFactor, c.Created)
	}
	return t.writeTo(cmd.OutOrStdout())
}

type listedTopic struct {
	Topic             string `json:"topic"`
	ID                string `json:"id"`
	Internal          bool   `json:"internal"`
	Partitions        int    `json:"partitions"`
	ReplicationFactor int    `json:"replication_factor"`
}

func topicList(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List topics", Args: arguments("", 0, 0)}
	internal := cmd.Flags().Bool("internal", false, "internal topics too")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		details, err := s.ListTopicsWithInternal(s.ctx)
		if err != nil {
			return s.failed("listing topics", err)
		}
		list := []listedTopic{}
		for _, d := range details.Sorted() {
			if d.IsInternal && !*internal {
				continue
			}
			list = append(list, listedTopic{d.Topic, topicID(d.ID), d.IsInternal, len(d.Partitions), d.Partitions.NumReplicas()})
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		t := newTable("TOPIC", "PARTITIONS", "REPLICATION")
		for _, l := range list {
			t.row(l.Topic, l.Partitions, l.ReplicationFactor)
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}

type describedTopic struct {
	Topic      string               `json:"topic"`
	ID         string               `json:"id"`
	Internal   bool                 `json:"internal"`
	Partitions []describedPartition `json:"partitions"`
	Configs    map[string]string    `json:"configs"` // what was set on the topic, defaults left out
}

type describedPartition struct {
	Partition     int32   `json:"partition"`
	Leader        int32   `json:"leader"`
	LeaderEpoch   int32   `json:"leader_epoch"`
	Replicas      []int32 `json:"replicas"`
	ISR           []int32 `json:"isr"`
	Offline       []int32 `json:"offline_replicas"`
	LogStart      int64   `json:"log_start"`      // -1: not known
	HighWatermark int64   `json:"high_watermark"` // -1: not known
	Error         string  `json:"error,omitempty"`
}

func topicDescribe(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "describe TOPIC...", Short: "Describe topics: partitions, offsets, settings", Args: arguments("the topic's name", 1, -1)}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkTopicNames(args); err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		list, err := describeTopics(s, args)
		if out.json() {
			if werr := writeJSON(cmd.OutOrStdout(), list); werr != nil {
				return werr
			}
			return err
		}
		for i, d := range list {
			if i > 0 {
				fmt.Fprintln(cmd.OutOrStdout())
			}
			if werr := printTopic(cmd, d); werr != nil {
				return werr
			}
		}
		return err
	}
	return cmd
}

// describeTopics returns what could be described beside the error of what could not.
func describeTopics(s *session, names []string) ([]describedTopic, error) {
	list := []describedTopic{}
	details, err := s.ListTopicsWithInternal(s.ctx, names...)
	if err != nil {
		return list, s.failed("describing "+strings.Join(names, ", "), err)
	}
	var errs []error
	var found []string
	for _, n := range names {
		d, ok := details[n]
		if !ok || d.Err != nil {
			if d.Err == nil {
				d.Err = kerr.UnknownTopicOrPartition
			}
			errs = append(errs, fmt.Errorf("topic %s: %w", n, brokerError(d.Err, "")))
			continue
		}
		found = append(found, n)
	}
	if len(found) == 0 {
		return list, joinErrors(errs)
	}
	// Offsets and settings are shown where they can be had: a partition without a leader must not hide the rest.
	starts, _ := s.ListStartOffsets(s.ctx, found...)
	ends, _ := s.ListEndOffsets(s.ctx, found...)
	configs, _ := s.DescribeTopicConfigs(s.ctx, found...)
	for _, n := range found {
		d := details[n]
		t := describedTopic{Topic: n, ID: topicID(d.ID), Internal: d.IsInternal, Configs: map[string]string{}}
		for _, p := range d.Partitions.Sorted() {
			dp := describedPartition{
				Partition: p.Partition, Leader: p.Leader, LeaderEpoch: p.LeaderEpoch,
				Replicas: ids(p.Replicas), ISR: ids(p.ISR), Offline: ids(p.OfflineReplicas),
				LogStart: offsetOf(starts, n, p.Partition), HighWatermark: offsetOf(ends, n, p.Partition),
			}
			if p.Err != nil {
				dp.Error = brokerError(p.Err, "").Error()
			}
			t.Partitions = append(t.Partitions, dp)
		}
		for _, rc := range configs {
			if rc.Name != n || rc.Err != nil {
				continue
			}
			for _, c := range rc.Configs {
				if c.Source == 1 { // DYNAMIC_TOPIC_CONFIG: set on the topic itself
					t.Configs[c.Key] = c.MaybeValue()
				}
			}
		}
		list = append(list, t)
	}
	return list, joinErrors(errs)
}

func offsetOf(l kadm.ListedOffsets, topic string, partition int32) int64 {
	if o, ok := l.Lookup(topic, partition); ok && o.Err == nil {
		return o.Offset
	}
	return -1
}

func ids(l []int32) []int32 {
	if l == nil {
		return []int32{}
	}
	return l
}

func printTopic(cmd *cobra.Command, d describedTopic) error {
	names := make([]string, 0, len(d.Configs))
	for n := range d.Configs {
		names = append(names, n)
	}
	sort.Strings(names)
	head := newTable("topic", visible(d.Topic))
	head.row("id", d.ID)
	if d.Internal {
		head.row("internal", "true")
	}
	for _, n := range names {
		head.row("config", n+"="+d.Configs[n])
	}
	if err := head.writeTo(cmd.OutOrStdout()); err != nil {
		return err
	}
	t := newTable("PARTITION", "LEADER", "EPOCH", "REPLICAS", "ISR", "LOG-START", "HIGH-WATERMARK", "")
	for _, p := range d.Partitions {
		t.row(p.Partition, p.Leader, p.LeaderEpoch, idList(p.Replicas), idList(p.ISR), p.LogStart, p.HighWatermark, p.Error)
	}
	return t.writeTo(cmd.OutOrStdout())
}

func idList(l []int32) string {
	if len(l) == 0 {
		return "-"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(l), " ", ","), "[]")
}

func topicAlter(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "alter TOPIC",
		Short:   "Add partitions, set or remove settings of a topic",
		Example: "  varve topic alter clicks --partitions 24 --config retention.ms=86400000 --delete-config segment.ms",
		Args:    arguments("the topic's name", 1, 1),
	}
	partitions := int64(0)
	f := cmd.Flags()
	f.VarP(intValue{&partitions, 1, math.MaxInt32, "a number from 1"}, "partitions", "p", "partitions to have afterwards; never fewer than now")
	configs := f.StringArrayP("config", "c", nil, "set a setting, name=value (repeatable)")
	remove := f.StringArray("delete-config", nil, "remove a setting, so that the default holds again (repeatable)")
	dry := f.Bool("dry-run", false, "let the broker check it, change nothing")
	out := addOutput(cmd)
	f.Lookup("partitions").DefValue = ""
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		topic := args[0]
		if err := checkTopicName(topic); err != nil {
			return err
		}
		edits, err := configEdits(*configs, *remove, nil, nil, "--config", "--delete-config")
		if err != nil {
			return err
		}
		if partitions == 0 && len(edits) == 0 {
			return usagef("nothing to alter: give --partitions, --config or --delete-config")
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		// Settings and partitions are two requests. Both are checked before either is applied, so that a wrong value does
		// not leave the topic with half of what was asked.
		if err := alterTopic(s, topic, int(partitions), edits, true); err != nil {
			return err
		}
		switch {
		case *dry && !out.json():
			return nil
		case *dry: // shown is the topic as it stays
		default:
			if err := alterTopic(s, topic, int(partitions), edits, false); err != nil {
				return err
			}
		}
		list, err := describeTopics(s, []string{topic})
		if err != nil {
			return err
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		return printTopic(cmd, list[0])
	}
	return cmd
}

func alterTopic(s *session, topic string, partitions int, edits []configEdit, dry bool) error {
	if len(edits) > 0 {
		if err := alterConfigs(s, resource{resourceTopic, topic}, edits, dry); err != nil {
			return err
		}
	}
	if partitions == 0 {
		return nil
	}
	what := fmt.Sprintf("setting the partitions of topic %s to %d", topic, partitions)
	update := s.UpdatePartitions
	if dry {
		update = s.ValidateUpdatePartitions
	}
	resps, err := update(s.ctx, partitions, topic)
	if err != nil {
		return s.failed(what, err)
	}
	for _, r := range resps {
		if r.Err != nil {
			return fmt.Errorf("%s: %w", what, brokerError(r.Err, r.ErrMessage))
		}
	}
	if !dry {
		s.everywhere([]string{topic}, func(t kmsg.MetadataResponseTopic) bool { return len(t.Partitions) >= partitions })
	}
	return nil
}

type deletedTopic struct {
	Topic   string `json:"topic"`
	Deleted bool   `json:"deleted"` // false: there was none (--if-exists)
}

func topicDelete(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "delete TOPIC...", Short: "Delete topics and everything in them", Args: arguments("the topic's name", 1, -1)}
	ifExists := cmd.Flags().Bool("if-exists", false, "a topic that does not exist is no error")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkTopicNames(args); err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		resps, err := s.DeleteTopics(s.ctx, args...)
		if err != nil {
			return s.failed("deleting "+strings.Join(args, ", "), err)
		}
		list := []deletedTopic{}
		var deleted []string
		var errs []error
		for _, n := range args {
			r := resps[n]
			switch {
			case r.Err == nil:
				list, deleted = append(list, deletedTopic{n, true}), append(deleted, n)
			case *ifExists && errors.Is(r.Err, kerr.UnknownTopicOrPartition):
				list = append(list, deletedTopic{n, false})
			case errors.Is(r.Err, kerr.UnknownTopicOrPartition):
				errs = append(errs, fmt.Errorf("deleting topic %s: it does not exist; --if-exists accepts that (%w)", n, r.Err))
			default:
				errs = append(errs, fmt.Errorf("deleting topic %s: %w", n, brokerError(r.Err, r.ErrMessage)))
			}
		}
		s.everywhere(deleted, isUnknown)
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else if len(list) > 0 {
			t := newTable("TOPIC", "DELETED")
			for _, d := range list {
				t.row(d.Topic, d.Deleted)
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		if err != nil {
			return err
		}
		return joinErrors(errs)
	}
	return cmd
}
