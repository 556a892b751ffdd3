package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
)

func reassignCommand() *cobra.Command {
	cmd := group("reassign", "Move partitions to other brokers, change their number of replicas")
	conn := addConnection(cmd)
	cmd.AddCommand(reassignPlan(conn), reassignApply(conn), reassignStatus(conn), reassignCancel(conn))
	return cmd
}

// reassignment is a plan, in the format of kafka-reassign-partitions. It may name a directory for each replica,
// which a broker of one directory has no use for.
type reassignment struct {
	Version    int      `json:"version"`
	Partitions []placed `json:"partitions"`
}

// maxPlan bounds the plan that is read: 200,000 partitions need about 20 MB.
const maxPlan = 256 << 20

func readPlan(r io.Reader, name string) (reassignment, error) {
	var plan reassignment
	b, err := io.ReadAll(io.LimitReader(r, maxPlan+1))
	switch {
	case err != nil:
		return plan, fmt.Errorf("reading %s: %w", name, err)
	case len(b) > maxPlan:
		return plan, fmt.Errorf("%s is longer than %d bytes", name, maxPlan)
	}
	if err := json.Unmarshal(b, &plan); err != nil {
		return plan, fmt.Errorf("%s is not a plan in JSON, as `varve reassign plan` prints it: %w", name, err)
	}
	if plan.Version != 1 {
		return plan, fmt.Errorf(`%s has version %d; "version": 1 is known`, name, plan.Version)
	}
	seen := map[string]bool{}
	for _, p := range plan.Partitions {
		key := fmt.Sprintf("%s-%d", p.Topic, p.Partition)
		switch {
		case p.Topic == "" || p.Partition < 0:
			return plan, fmt.Errorf("%s: %q is no partition", name, key)
		case len(p.Replicas) == 0:
			return plan, fmt.Errorf("%s: %s has no replicas", name, key)
		case seen[key]:
			return plan, fmt.Errorf("%s: %s is there twice", name, key)
		}
		seen[key] = true
	}
	return plan, nil
}

// openPlan reads the plan in a file, or in standard input for "-".
func openPlan(cmd *cobra.Command, path string) (reassignment, error) {
	if path == "-" {
		return readPlan(cmd.InOrStdin(), "standard input")
	}
	f, err := os.Open(path)
	if err != nil {
		return reassignment{}, err
	}
	defer f.Close()
	return readPlan(f, path)
}

func parseBrokers(flag, list string) ([]int32, error) {
	var out []int32
	for s := range strings.SplitSeq(list, ",") {
		id, err := strconv.ParseInt(s, 10, 32)
		if err != nil || id < 0 {
			return nil, usagef("%s: brokers are named by their node.id, as in 1,2,3; not %q", flag, s)
		}
		if slices.Contains(out, int32(id)) {
			return nil, usagef("%s: broker %d is given twice", flag, id)
		}
		out = append(out, int32(id))
	}
	return out, nil
}

func reassignPlan(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan {--topic TOPIC | --from-broker ID}",
		Short: "Print where replicas would go, as JSON for `varve reassign apply`",
		Long: `With --topic, the replicas of topics are spread evenly over the brokers; with --from-broker, those of one broker go
to others and everything else stays. As few replicas move as that allows, no two of a partition into the same rack if
there are racks enough. The plan has the partitions that change, in the format of kafka-reassign-partitions; nothing is done.`,
		Example: "  varve reassign plan --topic clicks --brokers 2,3,4 > plan.json\n  varve reassign plan --from-broker 1 | varve reassign apply -",
		Args:    arguments("", 0, 0),
	}
	f := cmd.Flags()
	topics := f.StringArray("topic", nil, "a topic to spread (repeatable)")
	from, rf := int64(-1), int64(0)
	f.Var(intValue{&from, 0, math.MaxInt32, "a node.id"}, "from-broker", "the broker that is to have no replicas any more")
	f.Lookup("from-broker").DefValue = ""
	f.Var(intValue{&rf, 1, math.MaxInt16, "a number from 1"}, "replication-factor", "replicas of each partition of --topic (default: as it is)")
	f.Lookup("replication-factor").DefValue = ""
	brokers := f.String("brokers", "", "the brokers to place replicas on, as 1,2,3 (default: all that are alive, without those that were drained or are cordoned)")
	rollback := f.String("rollback", "", "a file to write the present assignment of these partitions to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case len(*topics) == 0 && from < 0:
			return usagef("plan what? --topic, or --from-broker")
		case len(*topics) > 0 && from >= 0:
			return usagef("--topic and --from-broker: give one of the two")
		case rf > 0 && from >= 0:
			return usagef("--replication-factor goes with --topic")
		}
		if err := checkTopicNames(*topics); err != nil {
			return err
		}
		var named []int32
		if *brokers != "" {
			var err error
			if named, err = parseBrokers("--brokers", *brokers); err != nil {
				return err
			}
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		plan, before, moves, err := makePlan(s, *topics, int32(from), named, int(rf))
		if err != nil {
			return err
		}
		if *rollback != "" {
			b, err := json.MarshalIndent(before, "", "  ")
			if err == nil {
				err = os.WriteFile(*rollback, append(b, '\n'), 0o644)
			}
			if err != nil {
				return fmt.Errorf("--rollback: %w", err)
			}
		}
		if err := writeJSON(cmd.OutOrStdout(), plan); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%d partitions change, %d replicas are copied\n", len(plan.Partitions), moves)
		return nil
	}
	return cmd
}

// makePlan returns what changes, what it is now, and how many replicas are new.
func makePlan(s *session, topics []string, from int32, named []int32, rf int) (plan, before reassignment, moves int, err error) {
	plan, before = reassignment{1, []placed{}}, reassignment{1, []placed{}}
	c, err := describedCluster(s)
	if err != nil {
		return plan, before, 0, err
	}
	racks := map[int32]string{}
	for _, b := range c.Brokers {
		rack := ""
		if b.Rack != nil {
			rack = *b.Rack
		}
		if named == nil && !b.IsFenced && !stateOf(b).cordoned && b.NodeID != from || slices.Contains(named, b.NodeID) {
			racks[b.NodeID] = rack
		}
		if b.IsFenced && slices.Contains(named, b.NodeID) {
			return plan, before, 0, fmt.Errorf("broker %d is away", b.NodeID)
		}
	}
	for _, id := range named {
		if _, ok := racks[id]; !ok || id == from {
			return plan, before, 0, fmt.Errorf("no replica can be placed on broker %d; `varve cluster brokers` shows which there are", id)
		}
	}
	moving, err := reassigning(s, nil) // before the replicas: a move that ends in between is over in both
	if err != nil {
		return plan, before, 0, err
	}
	details, err := placements(s)
	if err != nil {
		return plan, before, 0, s.failed("listing partitions", err)
	}
	for _, t := range topics {
		if _, ok := details[t]; !ok {
			return plan, before, 0, fmt.Errorf("topic %s: %w", t, brokerError(kerr.UnknownTopicOrPartition, ""))
		}
	}
	// One that was unregistered, or that has never been there, may have replicas all the same.
	known := from < 0 || slices.ContainsFunc(c.Brokers, func(b kmsg.DescribeClusterResponseBroker) bool { return b.NodeID == from })
	var all, some []placed
	for _, d := range details.Sorted() {
		for _, p := range d.Partitions.Sorted() {
			now := placed{d.Topic, p.Partition, p.Replicas}
			all = append(all, now)
			if !slices.Contains(topics, d.Topic) && !(from >= 0 && slices.Contains(p.Replicas, from)) {
				continue
			}
			if slices.ContainsFunc(moving, func(m movingPartition) bool { return m.Topic == d.Topic && m.Partition == p.Partition }) {
				return plan, before, 0, fmt.Errorf("%s-%d is being reassigned already; `varve reassign status` shows how far it is", d.Topic, p.Partition)
			}
			some = append(some, now)
		}
	}
	if !known && len(some) == 0 {
		return plan, before, 0, fmt.Errorf("there is no broker %d; `varve cluster brokers` shows which there are", from)
	}
	var next []placed
	if from >= 0 {
		next, err = planEvacuation(some, all, racks, from)
	} else {
		next, err = planSpread(some, all, racks, rf)
	}
	if err != nil {
		return plan, before, 0, err
	}
	for i, p := range next {
		if slices.Equal(p.Replicas, some[i].Replicas) {
			continue
		}
		plan.Partitions, before.Partitions = append(plan.Partitions, p), append(before.Partitions, some[i])
		for _, id := range p.Replicas {
			moves += count(!slices.Contains(some[i].Replicas, id))
		}
	}
	return plan, before, moves, nil
}

// moveOutcome is what became of one partition of a request.
type moveOutcome struct {
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Replicas  []int32 `json:"replicas,omitempty"`
	Error     string  `json:"error,omitempty"`
}

// alterReassignments asks for the targets, and shows what became of it.
func alterReassignments(cmd *cobra.Command, s *session, out *outputFlag, what string, list []placed, keepRF bool) error {
	ctx := s.ctx
	if keepRF {
		ctx = kadm.ForbidAlterRf(ctx)
	}
	results, errs, err := requestReassignments(s, ctx, what, list)
	if err != nil {
		return err
	}
	if out.json() {
		err = writeJSON(cmd.OutOrStdout(), results)
	} else {
		t := newTable("TOPIC", "PARTITION", "REPLICAS", "")
		for _, o := range results {
			t.row(o.Topic, o.Partition, idList(o.Replicas), o.Error)
		}
		err = t.writeTo(cmd.OutOrStdout())
	}
	return errors.Join(err, joinErrors(errs))
}

// requestReassignments asks for the targets; nil cancels. What was refused is in
// the outcomes and, worded, in errs.
func requestReassignments(s *session, ctx context.Context, what string, list []placed) (results []moveOutcome, errs []error, err error) {
	req := kadm.AlterPartitionAssignmentsReq{}
	for _, p := range list {
		if p.Replicas == nil {
			req.CancelAssign(p.Topic, p.Partition)
		} else {
			req.Assign(p.Topic, p.Partition, p.Replicas)
		}
	}
	resps, err := s.AlterPartitionAssignments(ctx, req)
	if err != nil {
		return nil, nil, s.failed(what, err)
	}
	results = []moveOutcome{}
	for _, r := range resps.Sorted() {
		o := moveOutcome{Topic: r.Topic, Partition: r.Partition, Replicas: req[r.Topic][r.Partition]}
		if r.Err != nil {
			err := brokerError(r.Err, r.ErrMessage)
			o.Error = err.Error()
			errs = append(errs, fmt.Errorf("%s %s-%d: %w", what, r.Topic, r.Partition, err))
		}
		results = append(results, o)
	}
	return results, errs, nil
}

func reassignApply(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Begin what a plan says (- reads standard input)",
		Long: `The command returns when the reassignments have begun; ` + "`varve reassign status`" + ` shows how far they are. Applying a plan
again is harmless; another plan for a partition that is on its way takes the place of the first.`,
		Args: arguments("the plan's file", 1, 1),
	}
	keepRF := cmd.Flags().Bool("keep-replication-factor", false, "refuse a plan that changes the number of replicas")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		plan, err := openPlan(cmd, args[0])
		if err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		return alterReassignments(cmd, s, out, "reassigning", plan.Partitions, *keepRF)
	}
	return cmd
}

type movingPartition struct {
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Leader    int32   `json:"leader"`
	Target    []int32 `json:"target"`
	Adding    []int32 `json:"adding"`
	Removing  []int32 `json:"removing"`
	InSync    []int32 `json:"target_in_sync"`
	Left      *int64  `json:"offsets_left"` // that replicas of the target have yet to copy; nil: not asked, or one did not say
}

// reassigning lists what is under way, of some topics, which exist, or (nil) of all.
func reassigning(s *session, topics []string) ([]movingPartition, error) {
	if topics != nil {
		details, err := placements(s, topics...)
		if err != nil {
			return nil, s.failed("looking topics up", err)
		}
		for _, t := range topics {
			if err := details[t].Err; err != nil {
				return nil, fmt.Errorf("topic %s: %w", t, brokerError(err, ""))
			}
		}
	}
	req := kmsg.NewPtrListPartitionReassignmentsRequest()
	req.TimeoutMillis = int32(min(s.conn.wait.Milliseconds(), math.MaxInt32))
	resp, err := req.RequestWith(s.ctx, s.kgo)
	if err == nil {
		if err = kerr.ErrorForCode(resp.ErrorCode); err != nil && resp.ErrorMessage != nil {
			err = brokerError(err, *resp.ErrorMessage)
		}
	}
	if err != nil {
		return nil, s.failed("listing reassignments", err)
	}
	list := []movingPartition{}
	var names []string
	for _, t := range resp.Topics {
		if topics != nil && !slices.Contains(topics, t.Topic) {
			continue
		}
		names = append(names, t.Topic)
		for _, p := range t.Partitions {
			m := movingPartition{Topic: t.Topic, Partition: p.Partition, Leader: -1, Target: []int32{}, Adding: ids(p.AddingReplicas), Removing: ids(p.RemovingReplicas), InSync: []int32{}}
			for _, id := range p.Replicas {
				if !slices.Contains(p.RemovingReplicas, id) {
					m.Target = append(m.Target, id)
				}
			}
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return list, nil
	}
	details, err := placements(s, names...)
	if err != nil {
		return nil, s.failed("looking up what is in sync", err)
	}
	for i := range list {
		m := &list[i]
		p, ok := details[m.Topic].Partitions[m.Partition]
		if !ok {
			continue // deleted meanwhile
		}
		m.Leader = p.Leader
		for _, id := range m.Target {
			if slices.Contains(p.ISR, id) {
				m.InSync = append(m.InSync, id)
			}
		}
	}
	return list, nil
}

// askLeft asks how many offsets are yet to be copied.
func askLeft(s *session, list []movingPartition) {
	ends := logEnds(s, list)
	for i := range list {
		m := &list[i]
		tp := topicPartition{m.Topic, m.Partition}
		end, known := ends[m.Leader][tp]
		left := int64(0)
		for _, id := range m.Target {
			if id != m.Leader && !slices.Contains(m.InSync, id) {
				e, ok := ends[id][tp]
				known = known && ok
				left += max(end-e, 0)
			}
		}
		if known {
			m.Left = &left
		}
	}
}

type topicPartition struct {
	topic     string
	partition int32
}

// logEnds asks leaders and targets, all at once, where their logs of what is being moved end. Who does not answer is
// missing: that is why something does not move.
func logEnds(s *session, list []movingPartition) map[int32]map[topicPartition]int64 {
	wanted := map[int32]map[string][]int32{}
	for _, m := range list {
		ask := m.Target
		if m.Leader >= 0 && !slices.Contains(ask, m.Leader) {
			ask = append(slices.Clone(ask), m.Leader)
		}
		for _, id := range ask {
			if wanted[id] == nil {
				wanted[id] = map[string][]int32{}
			}
			wanted[id][m.Topic] = append(wanted[id][m.Topic], m.Partition)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	ends := map[int32]map[topicPartition]int64{}
	ctx, cancel := context.WithTimeout(s.ctx, min(s.conn.wait, logEndsWait))
	defer cancel()
	for id, topics := range wanted {
		wg.Go(func() {
			req := kmsg.NewPtrDescribeLogDirsRequest()
			for name, indexes := range topics {
				req.Topics = append(req.Topics, kmsg.DescribeLogDirsRequestTopic{Topic: name, Partitions: indexes})
			}
			resp, err := req.RequestWith(ctx, s.kgo.Broker(int(id)))
			if err != nil {
				return
			}
			of := map[topicPartition]int64{}
			for _, d := range resp.Dirs {
				for _, t := range d.Topics {
					for _, p := range t.Partitions {
						p.UnknownTags.Each(func(tag uint32, v []byte) {
							if tag == broker.LogEndTag && len(v) == 8 {
								of[topicPartition{t.Topic, p.Partition}] = int64(binary.BigEndian.Uint64(v))
							}
						})
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			ends[id] = of
		})
	}
	wg.Wait()
	return ends
}

// logEndsWait bounds the wait for brokers that are away.
const logEndsWait = 3 * time.Second

func reassignStatus(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [TOPIC...]",
		Short: "What is being reassigned: how many replicas of the target are in sync, and how many offsets they have yet to copy",
		Long:  "OFFSETS-LEFT is ? while the leader or a replica of the target does not answer.",
		Args:  arguments("", 0, -1),
	}
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
		var topics []string
		if len(args) > 0 {
			topics = args
		}
		list, err := reassigning(s, topics)
		if err != nil {
			return err
		}
		askLeft(s, list)
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		t := newTable("TOPIC", "PARTITION", "LEADER", "TARGET", "ADDING", "REMOVING", "IN-SYNC", "OFFSETS-LEFT")
		for _, m := range list {
			t.row(m.Topic, m.Partition, m.Leader, idList(m.Target), idList(m.Adding), idList(m.Removing), fmt.Sprintf("%d of %d", len(m.InSync), len(m.Target)), offsetsLeft(m.Left))
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}

func offsetsLeft(n *int64) string {
	if n == nil {
		return "?"
	}
	return strconv.FormatInt(*n, 10)
}

func reassignCancel(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cancel {TOPIC... | --all}",
		Short: "Go back to the replicas there were, for reassignments under way",
		Args:  arguments("", 0, -1),
	}
	all := cmd.Flags().Bool("all", false, "of all topics")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (len(args) > 0) == *all {
			return usagef("cancel what? topics by name, or --all")
		}
		if err := checkTopicNames(args); err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		var topics []string
		if !*all {
			topics = args
		}
		moving, err := reassigning(s, topics)
		if err != nil {
			return err
		}
		var list []placed
		for _, m := range moving {
			list = append(list, placed{Topic: m.Topic, Partition: m.Partition})
		}
		return alterReassignments(cmd, s, out, "cancelling", list, false)
	}
	return cmd
}
