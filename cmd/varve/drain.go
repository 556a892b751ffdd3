package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/metadata/image"
)

// A drain has no state of its own: the mark is two settings of the broker, what
// moves are reassignments, and what is left to do follows from where replicas are.
// So it can be stopped anywhere, and whoever runs the command again goes on.

// drainPoll is how often a drain looks how far it is.
const drainPoll = 500 * time.Millisecond

func brokerDrain() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain ID",
		Short: "Move all leaderships and then all replicas off a broker",
		Long: `Marks the broker, so that it is given no new replicas (cordoned.log.dirs) and leads only what nobody else in sync can
(leadership.enable); others lead at once. Then its replicas go elsewhere, as few as that takes, no two of a partition into
the same rack if there are racks enough, and the command waits until the broker has none.

Where the other brokers cannot hold a partition's replication factor its replica stays, and the exit code is 1; with
--leaders-only all replicas stay, as is enough for a restart. The command may be stopped at any time: what has begun goes on,
and the same command again goes on with the rest. ` + "`varve broker undrain`" + ` takes the mark away.`,
		Example: "  varve broker drain 3\n  varve broker drain 3 --leaders-only",
		Args:    arguments("the broker's node.id", 1, 1),
	}
	conn := addConnection(cmd)
	leadersOnly := cmd.Flags().Bool("leaders-only", false, "move leaderships alone")
	atOnce := int64(100)
	cmd.Flags().Var(intValue{&atOnce, 1, math.MaxInt32, "a number from 1"}, "at-once", "partitions that move at a time")
	out := addOutput(cmd)
	cmd.RunE = conn.onBroker(func(cmd *cobra.Command, s *session, id int32) error {
		if err := markDrained(s, id, true); err != nil {
			return err
		}
		d := drain{s: s, broker: id, atOnce: int(atOnce), leadersOnly: *leadersOnly, progress: func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }}
		err := d.run()
		if err != nil {
			return err
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), d.drainState)
		} else {
			t := newTable("BROKER", "LEADS", "REPLICAS")
			t.row(id, d.Leads, d.Replicas)
			err = t.writeTo(cmd.OutOrStdout())
		}
		switch {
		case err != nil:
			return err
		case len(d.Stay) > 0 && !d.leadersOnly:
			first := d.Stay[0]
			return fmt.Errorf("%d partitions keep their replica on broker %d, %s-%d the first: it has %d replicas, and the other brokers that take replicas cannot hold as many, or are away (`varve reassign status` shows what is on the way to one); bring it back, add a broker, or lower the replication factor (`varve reassign plan`), and drain again",
				len(d.Stay), id, first.Topic, first.Partition, len(first.Replicas))
		case d.Leads > 0:
			return fmt.Errorf("broker %d still leads %d partitions, of which nobody else is in sync that may lead: they have one replica, or `varve cluster brokers` shows who is away or drained", id, d.Leads)
		}
		return nil
	})
	return cmd
}

func brokerUndrain() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undrain ID",
		Short: "Let a broker take replicas and lead again",
		Long: `Takes the mark of ` + "`varve broker drain`" + ` away. The broker leads again what it is the preferred leader of and in sync with; no
replica goes back by itself (` + "`varve reassign plan --topic`" + ` spreads them). Moves that are under way go on; ` + "`varve reassign cancel`" + ` ends them.`,
		Args: arguments("the broker's node.id", 1, 1),
	}
	conn := addConnection(cmd)
	cmd.RunE = conn.onBroker(func(cmd *cobra.Command, s *session, id int32) error {
		if err := markDrained(s, id, false); err != nil {
			return err
		}
		details, err := placements(s)
		if err != nil {
			return s.failed("listing partitions", err)
		}
		preferred := kadm.TopicsSet{}
		details.EachPartition(func(p kadm.PartitionDetail) {
			if len(p.Replicas) > 0 && p.Replicas[0] == id {
				preferred.Add(p.Topic, p.Partition)
			}
		})
		led := 0
		if len(preferred) > 0 {
			results, err := s.ElectLeaders(s.ctx, kadm.ElectPreferredReplica, preferred)
			if err != nil {
				return s.failed("electing the preferred leaders", err)
			}
			for _, t := range results {
				for _, r := range t {
					led += count(r.Err == nil || errors.Is(r.Err, kerr.ElectionNotNeeded))
				}
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "broker %d takes replicas and leaderships again; it leads %d partitions as their preferred leader\n", id, led)
		return nil
	})
	return cmd
}

func brokerUnregister() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unregister ID",
		Short: "Forget a broker that has ended and will not come back",
		Long: `Has the cluster forget a broker: it is not shown any more, and nothing is placed on it. The broker must have ended, and must not count
among those that have everything of a partition: ` + "`varve broker drain`" + ` it first, or reassign what it has, for what is assigned to it stays
assigned. One that is started again under that id registers anew; where it was drained, ` + "`varve broker undrain`" + ` takes that mark away.`,
		Args: arguments("the broker's node.id", 1, 1),
	}
	conn := addConnection(cmd)
	cmd.RunE = conn.onBroker(func(cmd *cobra.Command, s *session, id int32) error {
		req := kmsg.NewPtrUnregisterBrokerRequest()
		req.BrokerID = id
		resp, err := req.RequestWith(s.ctx, s.kgo)
		if err != nil {
			return s.failed("unregistering", err)
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			if errors.Is(err, kerr.BrokerIDNotRegistered) {
				return fmt.Errorf("broker %d is not registered", id)
			}
			if resp.ErrorMessage != nil && *resp.ErrorMessage != "" {
				return fmt.Errorf("broker %d stays registered: %s", id, *resp.ErrorMessage)
			}
			return s.failed("unregistering", err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "broker %d is not registered any more\n", id)
		return nil
	})
	return cmd
}

// onBroker runs a command about the broker that its argument names.
func (c *connection) onBroker(run func(cmd *cobra.Command, s *session, id int32) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		id, err := parseBroker(args[0])
		if err != nil {
			return err
		}
		s, err := c.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		return run(cmd, s, id)
	}
}

func parseBroker(s string) (int32, error) {
	id, err := strconv.ParseInt(s, 10, 32)
	if err != nil || id < 0 {
		return 0, usagef("a broker is named by its node.id, as in 3; not %q", s)
	}
	return int32(id), nil
}

// markDrained sets or removes what says that a broker is to hold nothing.
func markDrained(s *session, id int32, on bool) error {
	c, err := describedCluster(s)
	if err != nil {
		return err
	}
	asked := int32(-1) // whoever is there: the broker itself may be away
	for _, b := range c.Brokers {
		if !b.IsFenced && (asked < 0 || b.NodeID == c.ControllerID) {
			asked = b.NodeID
		}
	}
	if !slices.ContainsFunc(c.Brokers, func(b kmsg.DescribeClusterResponseBroker) bool { return b.NodeID == id }) {
		return fmt.Errorf("there is no broker %d; `varve cluster brokers` shows which there are", id)
	}
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(id))
	for _, set := range []struct{ name, value string }{{image.CordonedSetting, "*"}, {image.LeadershipSetting, "false"}} {
		e := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		e.Name, e.Op = set.name, kmsg.IncrementalAlterConfigOpDelete
		if on {
			e.Op, e.Value = kmsg.IncrementalAlterConfigOpSet, &set.value
		}
		r.Configs = append(r.Configs, e)
	}
	req.Resources = append(req.Resources, r)
	what := fmt.Sprintf("marking broker %d", id)
	resp, err := req.RequestWith(s.ctx, s.kgo.Broker(int(asked)))
	if err != nil {
		return s.failed(what, err)
	}
	for _, r := range resp.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return fmt.Errorf("%s: %w", what, brokerError(err, deref(r.ErrorMessage)))
		}
	}
	return nil
}

// drainState is how far a drain is.
type drainState struct {
	Broker   int32    `json:"broker"`
	Leads    int      `json:"leads"`
	Replicas int      `json:"replicas"` // those that are about to go, too
	Moving   int      `json:"moving"`
	Stay     []placed `json:"stay"` // what the other brokers cannot hold
}

type drain struct {
	s           *session
	broker      int32
	atOnce      int
	leadersOnly bool
	progress    func(line string)

	drainState
	next    []placed // what is to move and does not yet
	settled bool     // it leads nothing that others could lead
}

// run goes on until nothing is left that can be moved.
func (d *drain) run() error {
	said := ""
	for {
		if err := d.look(); err != nil {
			return err
		}
		line := fmt.Sprintf("broker %d leads %d partitions and has %d replicas, %d on the way", d.broker, d.Leads, d.Replicas, d.Moving)
		if line != said {
			d.progress(line)
			said = line
		}
		if d.leadersOnly {
			d.next, d.Moving = nil, 0
		}
		if len(d.next) == 0 && d.Moving == 0 && d.settled {
			return nil
		}
		if free := d.atOnce - d.Moving; free > 0 && len(d.next) > 0 {
			_, errs, err := requestReassignments(d.s, d.s.ctx, "moving", d.next[:min(free, len(d.next))])
			if err == nil {
				err = joinErrors(errs)
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-d.s.parent.Done():
			return context.Cause(d.s.parent)
		case <-time.After(drainPoll):
		}
		d.s.renew()
	}
}

// look finds out what there is, and what is to be done.
func (d *drain) look() error {
	c, err := describedCluster(d.s)
	if err != nil {
		return err
	}
	racks, lead := map[int32]string{}, map[int32]bool{}
	for _, b := range c.Brokers {
		st := stateOf(b)
		lead[b.NodeID] = !b.IsFenced && !st.resting && !st.unresponsive // the others lead only what nobody else can
		if !b.IsFenced && !st.cordoned && b.NodeID != d.broker {
			racks[b.NodeID] = deref(b.Rack)
		}
	}
	moving, err := reassigning(d.s, nil)
	if err != nil {
		return err
	}
	under := map[string]movingPartition{}
	for _, m := range moving {
		under[fmt.Sprintf("%s-%d", m.Topic, m.Partition)] = m
	}
	details, err := placements(d.s)
	if err != nil {
		return d.s.failed("listing partitions", err)
	}
	d.drainState = drainState{Broker: d.broker, Stay: []placed{}}
	d.settled = true
	var here []replaced
	var all []placed
	for _, t := range details.Sorted() {
		for _, p := range t.Partitions.Sorted() {
			m, onTheWay := under[fmt.Sprintf("%s-%d", t.Topic, p.Partition)]
			now := placed{t.Topic, p.Partition, p.Replicas}
			if onTheWay {
				now.Replicas = m.Target
			}
			all = append(all, now)
			if p.Leader == d.broker {
				d.Leads++
				others := func(id int32) bool { return id != d.broker && lead[id] }
				d.settled = d.settled && !slices.ContainsFunc(p.ISR, others)
			}
			if !slices.Contains(p.Replicas, d.broker) {
				continue
			}
			d.Replicas++
			leaves := func(id int32) bool {
				// A broker that a replica is on its way to may be gone meanwhile.
				_, takes := racks[id]
				return id == d.broker || !takes && slices.Contains(m.Adding, id)
			}
			if slices.ContainsFunc(now.Replicas, leaves) {
				here = append(here, replaced{now, slices.DeleteFunc(slices.Clone(now.Replicas), leaves)})
			} else {
				d.Moving++
			}
		}
	}
	next, stay := planDrain(here, all, racks)
	d.next, d.Stay = next, append(d.Stay, stay...)
	return nil
}

// brokerState is what Varve says of a broker beyond Kafka's fields: see
// broker.BrokerStateTag.
type brokerState struct{ cordoned, resting, unresponsive bool }

func stateOf(b kmsg.DescribeClusterResponseBroker) (st brokerState) {
	b.UnknownTags.Each(func(tag uint32, v []byte) {
		if tag == broker.BrokerStateTag && len(v) == 1 {
			st = brokerState{cordoned: v[0]&1 != 0, resting: v[0]&2 != 0, unresponsive: v[0]&4 != 0}
		}
	})
	return st
}
