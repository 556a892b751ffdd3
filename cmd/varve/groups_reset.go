package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

type resetOffset struct {
	Group     string `json:"group"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // before; -1: nothing
	Offset    int64  `json:"offset"`    // after
	Clipped   bool   `json:"clipped"`   // what was asked for is outside of the log
	Executed  bool   `json:"executed"`  // false: --execute was not given
}

// resetTo are the places that offsets can be reset to; exactly one is given.
type resetTo struct {
	earliest, latest bool
	datetime         string
	duration         time.Duration
	shift            int64
	offset           int64
	flag             string // which
}

var resetFlags = []string{"to-earliest", "to-latest", "to-datetime", "by-duration", "shift-by", "to-offset"}

func (r *resetTo) add(f *pflag.FlagSet) {
	f.BoolVar(&r.earliest, "to-earliest", false, "to the first offset of the log")
	f.BoolVar(&r.latest, "to-latest", false, "to the end of the log")
	f.StringVar(&r.datetime, "to-datetime", "", "to the first record of this time or later (ISO 8601, UTC unless it has a zone), or the end")
	f.Var(ageValue{&r.duration}, "by-duration", "to the first record of this long ago or later, or the end: 90m, or P1DT2H")
	f.Var(intValue{&r.shift, math.MinInt64, math.MaxInt64, "a number of records, negative: back"}, "shift-by", "by this many offsets from what is committed; negative: back")
	f.Var(intValue{&r.offset, 0, math.MaxInt64, "an offset"}, "to-offset", "to this offset")
	for _, name := range []string{"by-duration", "shift-by", "to-offset"} {
		f.Lookup(name).DefValue = ""
	}
}

// check reads the moment, if it is one, and finds which flag it is.
func (r *resetTo) check(cmd *cobra.Command, now time.Time) (since time.Time, err error) {
	var given []string
	for _, name := range resetFlags {
		if cmd.Flags().Changed(name) {
			given = append(given, name)
		}
	}
	switch {
	case len(given) == 0:
		return since, usagef("%s: reset to what? one of --%s", cmd.CommandPath(), strings.Join(resetFlags, ", --"))
	case len(given) > 1:
		return since, usagef("%s: --%s and --%s contradict each other; give one", cmd.CommandPath(), given[0], given[1])
	}
	r.flag = given[0]
	switch {
	case r.flag == "to-earliest" && !r.earliest, r.flag == "to-latest" && !r.latest:
		return since, usagef("%s: --%s=false leaves nothing to reset to; one of --%s", cmd.CommandPath(), r.flag, strings.Join(resetFlags, ", --"))
	case r.flag == "to-datetime":
		if since, err = parseTime(r.datetime, now); err != nil {
			return since, usagef("--to-datetime: %w", err)
		}
	case r.flag == "by-duration":
		since = now.Add(-r.duration)
	}
	return since, nil
}

// ageValue is a duration from zero, as Go or as ISO 8601 writes it.
type ageValue struct{ d *time.Duration }

func (v ageValue) String() string {
	if v.d == nil {
		return "0s"
	}
	return v.d.String()
}
func (v ageValue) Type() string { return "duration" }
func (v ageValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		if d, err = parseISODuration(s); err != nil {
			return err
		}
	}
	if d < 0 {
		return errors.New("must not be negative: it is how long ago")
	}
	*v.d = d
	return nil
}

var isoDuration = regexp.MustCompile(`^P(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:\.\d{1,9})?)S)?)?$`)

// parseISODuration reads PnDTnHnMnS, of which every part may be left out but not all. Months and years have no length.
func parseISODuration(s string) (time.Duration, error) {
	bad := errors.New("must be a duration like 90m or 36h, or in ISO 8601 days to seconds, like P1DT2H or PT30M")
	m := isoDuration.FindStringSubmatch(s)
	if m == nil || m[1]+m[2]+m[3]+m[4] == "" || strings.HasSuffix(s, "T") {
		return 0, bad
	}
	total := 0.0
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second} {
		if m[i+1] != "" {
			n, err := strconv.ParseFloat(m[i+1], 64)
			if err != nil {
				return 0, bad
			}
			total += n * float64(unit)
		}
	}
	if total > float64(100*365*24*time.Hour) {
		return 0, errors.New("is more than a hundred years")
	}
	return time.Duration(total), nil
}

// topicPartitions is what --topic names: partitions by topic, nil: all of the topic.
type topicPartitions map[string][]int32

func parseTopicPartitions(list []string) (topicPartitions, error) {
	out := topicPartitions{}
	for _, s := range list {
		topic, parts, some := strings.Cut(s, ":")
		if err := checkTopicName(topic); err != nil {
			return nil, usagef("--topic %q: %w", s, err)
		}
		if _, dup := out[topic]; dup {
			return nil, usagef("--topic: %q is given twice; several partitions are given as %s:0,1", topic, topic)
		}
		out[topic] = nil
		if !some {
			continue
		}
		for p := range strings.SplitSeq(parts, ",") {
			n, err := strconv.ParseInt(p, 10, 32)
			if err != nil || n < 0 {
				return nil, usagef("--topic %q: a partition must be a number from 0, not %q; like %s:0,1", s, p, topic)
			}
			if slices.Contains(out[topic], int32(n)) {
				return nil, usagef("--topic %q: partition %d is given twice", s, n)
			}
			out[topic] = append(out[topic], int32(n))
		}
	}
	return out, nil
}

func groupReset(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reset-offsets GROUP",
		Short: "Set the committed offsets of a group that has no members",
		Long: `Set the committed offsets of a group that has no members.

Without --execute it shows what would be committed, and commits nothing. Offsets outside of the log are moved to the nearest
that is inside, with a warning. All partitions are committed in one request, after everything was found to be in order. A
group that does not exist comes into being with the commit.`,
		Example: `  varve group reset-offsets readers --all-topics --to-earliest
  varve group reset-offsets readers --topic clicks:0,3 --topic views --to-datetime 2026-01-31T08:00:00Z --execute`,
		Args: arguments("the group's name", 1, 1),
	}
	var to resetTo
	to.add(cmd.Flags())
	topics := cmd.Flags().StringArray("topic", nil, "a topic, or some partitions of it as topic:0,1 (repeatable)")
	all := cmd.Flags().Bool("all-topics", false, "every partition that the group has committed an offset of")
	execute := cmd.Flags().Bool("execute", false, "commit it")
	dry := cmd.Flags().Bool("dry-run", false, "show what would be committed, commit nothing: so it is without --execute")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkGroupNames(args); err != nil {
			return err
		}
		since, err := to.check(cmd, time.Now())
		if err != nil {
			return err
		}
		switch {
		case *all && len(*topics) > 0:
			return usagef("%s: --all-topics and --topic contradict each other; give one", cmd.CommandPath())
		case !*all && len(*topics) == 0:
			return usagef("%s: of which topics? --topic or --all-topics", cmd.CommandPath())
		case *execute && *dry:
			return usagef("%s: --execute and --dry-run contradict each other; give one", cmd.CommandPath())
		}
		where, err := parseTopicPartitions(*topics)
		if err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		list, warnings, err := planReset(s, args[0], where, *all, &to, since)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			fmt.Fprintln(cmd.ErrOrStderr(), "varve: "+visible(w))
		}
		var errs []error
		if *execute {
			errs, err = executeReset(s, args[0], list)
			if err != nil {
				return err
			}
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else {
			t := newTable("TOPIC", "PARTITION", "COMMITTED", "NEW-OFFSET", "EXECUTED")
			for _, r := range list {
				t.row(r.Topic, r.Partition, offsetOrDash(r.Committed), r.Offset, r.Executed)
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		return errors.Join(err, joinErrors(errs))
	}
	return cmd
}

// planReset finds what would be committed for which partitions, and fails unless it could be done whole.
func planReset(s *session, group string, where topicPartitions, all bool, to *resetTo, since time.Time) (list []resetOffset, warnings []string, err error) {
	described, failed := describeGroups(s, []string{group})
	if err := failed[group]; err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil, fmt.Errorf("group %q: %w", group, err)
	}
	if g := described[group]; g != nil && (len(g.Members) > 0 || g.State != "Empty") {
		return nil, nil, activeGroup(group, fmt.Sprintf("is active (state %s, members: %d)", g.State, len(g.Members)))
	}
	committed := s.FetchManyOffsets(s.ctx, group)[group]
	if committed.Err != nil {
		return nil, nil, s.failed(fmt.Sprintf("committed offsets of group %q", group), committed.Err)
	}
	if all {
		where = topicPartitions{}
		committed.Fetched.Each(func(o kadm.OffsetResponse) {
			if o.At >= 0 || o.Err != nil {
				where[o.Topic] = append(where[o.Topic], o.Partition)
			}
		})
		if len(where) == 0 {
			return nil, nil, fmt.Errorf("group %q has committed no offsets, so --all-topics are none; name them with --topic", group)
		}
	}
	starts, ends, err := extents(s.ctx, s, slices.Sorted(maps.Keys(where)))
	if err != nil {
		return nil, nil, s.failed("looking up the offsets of topics", err)
	}
	at, err := to.lookup(s.ctx, s, slices.Sorted(maps.Keys(where)), starts, ends, since)
	if err != nil {
		return nil, nil, s.failed("looking up offsets by time", err)
	}
	var errs []error
	for _, topic := range slices.Sorted(maps.Keys(where)) {
		whole, ok := ends.Lookup(topic, -1) // kadm's form of an error of the topic
		switch {
		case !ok && len(ends[topic]) == 0:
			whole.Err = kerr.UnknownTopicOrPartition
		case !ok:
			whole.Err = nil
		}
		switch {
		case whole.Err == nil:
		case all && errors.Is(whole.Err, kerr.UnknownTopicOrPartition):
			warnings = append(warnings, fmt.Sprintf("topic %s: it is left out, as it does not exist any more", topic))
			continue
		default:
			errs = append(errs, fmt.Errorf("topic %s: %w", topic, brokerError(whole.Err, "")))
			continue
		}
		partitions := where[topic]
		if partitions == nil {
			partitions = slices.Collect(maps.Keys(ends[topic]))
		}
		slices.Sort(partitions)
		for _, p := range partitions {
			r, warning, err := to.one(topic, p, committed.Fetched, starts, ends, at)
			if err != nil {
				errs = append(errs, fmt.Errorf("topic %s partition %d: %w", topic, p, err))
				continue
			}
			if warning != "" {
				warnings = append(warnings, warning)
			}
			r.Group = group
			list = append(list, r)
		}
	}
	if err := joinErrors(errs); err != nil {
		return nil, nil, fmt.Errorf("nothing was changed: %w", err)
	}
	if len(list) == 0 {
		return nil, nil, fmt.Errorf("group %q has committed offsets of topics only that do not exist any more", group)
	}
	return list, warnings, nil
}

func activeGroup(group, how string) error {
	return fmt.Errorf("group %q %s, and its offsets can be reset only while it has no members; nothing was changed: "+
		"stop its consumers, or wait until their sessions have timed out, and do it again", group, how)
}

// lookup is where the partitions of topics have the offset that is asked for, where that has to be looked up.
func (r *resetTo) lookup(ctx context.Context, s *session, topics []string, starts, ends kadm.ListedOffsets, since time.Time) (kadm.ListedOffsets, error) {
	switch r.flag {
	case "to-earliest":
		return starts, nil
	case "to-latest":
		return ends, nil
	case "to-datetime", "by-duration":
		return s.ListOffsetsAfterMilli(ctx, sinceMs(since), topics...)
	}
	return nil, nil
}

// one is the new offset of one partition.
func (r *resetTo) one(topic string, p int32, committed kadm.OffsetResponses, starts, ends, at kadm.ListedOffsets) (resetOffset, string, error) {
	out := resetOffset{Topic: topic, Partition: p, Committed: -1}
	start, okStart := starts.Lookup(topic, p)
	end, okEnd := ends.Lookup(topic, p)
	switch {
	case !okStart || !okEnd:
		return out, "", fmt.Errorf("there is no such partition; the topic has %d", len(ends[topic]))
	case start.Err != nil:
		return out, "", brokerError(start.Err, "")
	case end.Err != nil:
		return out, "", brokerError(end.Err, "")
	}
	if c, ok := committed.Lookup(topic, p); ok {
		if c.Err != nil {
			return out, "", brokerError(c.Err, "")
		}
		out.Committed = max(c.At, -1)
	}
	var want int64
	switch r.flag {
	case "to-offset":
		want = r.offset
	case "shift-by":
		if out.Committed < 0 {
			return out, "", errors.New("nothing is committed that --shift-by could shift")
		}
		switch want = out.Committed + r.shift; {
		case r.shift > 0 && want < out.Committed:
			want = math.MaxInt64
		case want < 0:
			want = -1 // below every log
		}
	default:
		l, ok := at.Lookup(topic, p)
		if !ok {
			return out, "", errors.New("the broker did not answer for it")
		}
		if l.Err != nil {
			return out, "", brokerError(l.Err, "")
		}
		want = l.Offset
	}
	out.Offset = min(max(want, start.Offset), max(start.Offset, end.Offset))
	if out.Offset == want {
		return out, "", nil
	}
	if r.flag != "to-offset" && r.flag != "shift-by" {
		return out, "", nil // the log's start or end moved between two requests
	}
	out.Clipped = true
	asked := fmt.Sprintf("offset %d", want)
	if r.flag == "shift-by" {
		asked = fmt.Sprintf("offset %d shifted by %+d", out.Committed, r.shift)
	}
	if want < out.Offset {
		return out, fmt.Sprintf("topic %s partition %d: %s is before the log, which starts at %d; %d is taken", topic, p, asked, start.Offset, out.Offset), nil
	}
	return out, fmt.Sprintf("topic %s partition %d: %s is after the log, which ends at %d; %d is taken", topic, p, asked, end.Offset, out.Offset), nil
}

// executeReset commits what was planned. The broker refuses it if a member has come in the meantime.
func executeReset(s *session, group string, list []resetOffset) (errs []error, err error) {
	var commit kadm.Offsets
	for _, r := range list {
		commit.AddOffset(r.Topic, r.Partition, r.Offset, -1)
	}
	resps, err := s.CommitOffsets(s.ctx, group, commit)
	if err != nil {
		return nil, s.failed(fmt.Sprintf("committing offsets of group %q (it is not known whether they were committed; `varve group describe` shows it)", group), err)
	}
	for i, r := range list {
		o, ok := resps.Lookup(r.Topic, r.Partition)
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("topic %s partition %d: the broker did not answer for it", r.Topic, r.Partition))
		case errors.Is(o.Err, kerr.UnknownMemberID), errors.Is(o.Err, kerr.RebalanceInProgress), errors.Is(o.Err, kerr.IllegalGeneration), errors.Is(o.Err, kerr.StaleMemberEpoch):
			return nil, activeGroup(group, "has a new member")
		case o.Err != nil:
			errs = append(errs, fmt.Errorf("topic %s partition %d: %w", r.Topic, r.Partition, brokerError(o.Err, "")))
		default:
			list[i].Executed = true
		}
	}
	return errs, nil
}
