package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
)

func clusterCommand() *cobra.Command {
	cmd := group("cluster", "The brokers of a cluster, and how it is")
	conn := addConnection(cmd)
	cmd.AddCommand(clusterStatus(conn), clusterBrokers(conn))
	return cmd
}

func partitionCommand() *cobra.Command {
	cmd := group("partition", "Partitions: which of them lack replicas, who leads them, where they begin")
	conn := addConnection(cmd)
	cmd.AddCommand(partitionList(conn), partitionElect(conn), partitionDeleteRecords(conn))
	return cmd
}

// describedCluster is what the brokers say of themselves, fenced ones included.
func describedCluster(s *session) (*kmsg.DescribeClusterResponse, error) {
	req := kmsg.NewPtrDescribeClusterRequest()
	req.EndpointType, req.IncludeFencedBrokers = 1, true
	resp, err := req.RequestWith(s.ctx, s.kgo)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return nil, s.failed("describing the cluster", err)
	}
	slices.SortFunc(resp.Brokers, func(a, b kmsg.DescribeClusterResponseBroker) int { return int(a.NodeID) - int(b.NodeID) })
	return resp, nil
}

// toController is a Metadata request that the client sends to the controller, as it does the requests of administration.
type toController struct{ *kmsg.MetadataRequest }

func (toController) IsAdminRequest() {}

// placements are the partitions of the topics named, or of all, as the controller has them: with its list of what is being
// reassigned go its replicas. Another broker hears of both some milliseconds later, and of a move that is over would
// show the replicas of before, the old and the new together, as those that are to stay.
func placements(s *session, topics ...string) (kadm.TopicDetails, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	answer, err := s.kgo.Request(s.ctx, toController{req})
	if err != nil {
		return nil, err
	}
	resp := answer.(*kmsg.MetadataResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	out := kadm.TopicDetails{}
	for _, t := range resp.Topics {
		d := kadm.TopicDetail{Topic: deref(t.Topic), ID: t.TopicID, IsInternal: t.IsInternal, Partitions: kadm.PartitionDetails{}, Err: kerr.ErrorForCode(t.ErrorCode)}
		for _, p := range t.Partitions {
			d.Partitions[p.Partition] = kadm.PartitionDetail{
				Topic: d.Topic, Partition: p.Partition, Leader: p.Leader, LeaderEpoch: p.LeaderEpoch,
				Replicas: p.Replicas, ISR: p.ISR, OfflineReplicas: p.OfflineReplicas, Err: kerr.ErrorForCode(p.ErrorCode),
			}
		}
		out[d.Topic] = d
	}
	return out, nil
}

// stale is nil, or says that the broker which answered does not hear from etcd.
func stale(c *kmsg.DescribeClusterResponse) (err error) {
	c.UnknownTags.Each(func(tag uint32, why []byte) {
		if tag == broker.StaleTag {
			err = fmt.Errorf("what is shown may be old, and nobody is elected: %s", why)
		}
	})
	return err
}

// partitionState is one partition and what it lacks.
type partitionState struct {
	Topic           string  `json:"topic"`
	Partition       int32   `json:"partition"`
	Leader          int32   `json:"leader"` // -1: none
	Replicas        []int32 `json:"replicas"`
	ISR             []int32 `json:"isr"`
	OfflineReplicas []int32 `json:"offline_replicas"`
	MinISR          int     `json:"min_isr,omitempty"` // 0: not asked for, or not known
	Offline         bool    `json:"offline"`
	UnderReplicated bool    `json:"under_replicated"`
	UnderMinISR     bool    `json:"under_min_isr"`
}

func (p partitionState) lacks() string {
	var out []string
	for _, l := range []struct {
		is   bool
		what string
	}{{p.Offline, "offline"}, {p.UnderReplicated, "under-replicated"}, {p.UnderMinISR, "under-min-isr"}} {
		if l.is {
			out = append(out, l.what)
		}
	}
	return strings.Join(out, ",")
}

// partitionStates lists the partitions of the topics named, or of all. A topic of
// those named that is not there is an error beside the others' partitions. moving
// is what is being reassigned: as for Kafka's tools and metrics, and for the brokers that
// count min.insync.replicas, replicas that are only being added do not lack yet.
func partitionStates(s *session, moving []movingPartition, topics ...string) ([]partitionState, error) {
	adding := map[topicPartition]int{}
	for _, m := range moving {
		adding[topicPartition{m.Topic, m.Partition}] = len(m.Adding)
	}
	details, err := placements(s, topics...)
	if err != nil {
		return nil, s.failed("listing partitions", err)
	}
	var errs []error
	var names []string
	for _, d := range details.Sorted() {
		if d.Err != nil {
			errs = append(errs, fmt.Errorf("topic %s: %w", d.Topic, brokerError(d.Err, "")))
			continue
		}
		names = append(names, d.Topic)
	}
	least := map[string]int{}
	if len(names) > 0 {
		configs, err := s.DescribeTopicConfigs(s.ctx, names...)
		if err != nil {
			return nil, s.failed("looking up min.insync.replicas", err)
		}
		for _, rc := range configs {
			for _, c := range rc.Configs {
				if n, err := strconv.Atoi(c.MaybeValue()); err == nil && c.Key == "min.insync.replicas" {
					least[rc.Name] = n
				}
			}
		}
	}
	list := []partitionState{}
	for _, name := range names {
		for _, p := range details[name].Partitions.Sorted() {
			assigned := len(p.Replicas) - adding[topicPartition{name, p.Partition}]
			st := partitionState{
				Topic: name, Partition: p.Partition, Leader: p.Leader, Replicas: ids(p.Replicas), ISR: ids(p.ISR), OfflineReplicas: ids(p.OfflineReplicas),
				MinISR: min(least[name], assigned), Offline: p.Leader < 0, UnderReplicated: len(p.ISR) < assigned,
			}
			st.UnderMinISR = len(p.ISR) < st.MinISR
			list = append(list, st)
		}
	}
	return list, joinErrors(errs)
}

type clusterState struct {
	ID              string  `json:"cluster_id"`
	Controller      int32   `json:"controller"`
	Brokers         int     `json:"brokers"`
	Fenced          []int32 `json:"fenced_brokers"`
	Unresponsive    []int32 `json:"unresponsive_brokers"` // with a session, and silent
	Topics          int     `json:"topics"`
	Partitions      int     `json:"partitions"`
	Offline         int     `json:"offline_partitions"`
	UnderReplicated int     `json:"under_replicated_partitions"`
	UnderMinISR     int     `json:"under_min_isr_partitions"`
	NotPreferred    int     `json:"not_preferred_leaders"` // led by another replica than the first
	Reassigning     int     `json:"reassigning_partitions"`
	Stale           string  `json:"stale,omitempty"` // why what is shown may be old
}

func clusterStatus(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Brokers that are away, partitions that lack replicas, what is under way",
		Long:  "Exit code 0 if every partition has a leader and min.insync.replicas in sync, 1 if not, and if that is not known because the brokers do not hear from etcd.",
		Args:  arguments("", 0, 0),
	}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		c, err := describedCluster(s)
		if err != nil {
			return err
		}
		moving, err := reassigning(s, nil)
		if err != nil {
			return err
		}
		list, err := partitionStates(s, moving)
		if err != nil {
			return err
		}
		st := clusterState{ID: c.ClusterID, Controller: c.ControllerID, Brokers: len(c.Brokers), Fenced: []int32{}, Unresponsive: []int32{}, Partitions: len(list), Reassigning: len(moving)}
		for _, b := range c.Brokers {
			if b.IsFenced {
				st.Fenced = append(st.Fenced, b.NodeID)
			} else if stateOf(b).unresponsive {
				st.Unresponsive = append(st.Unresponsive, b.NodeID)
			}
		}
		topics := map[string]bool{}
		for _, p := range list {
			topics[p.Topic] = true
			st.Offline += count(p.Offline)
			st.UnderReplicated += count(p.UnderReplicated)
			st.UnderMinISR += count(p.UnderMinISR)
			st.NotPreferred += count(!p.Offline && len(p.Replicas) > 0 && p.Leader != p.Replicas[0])
		}
		st.Topics = len(topics)
		old := stale(c)
		if old != nil {
			st.Stale = old.Error()
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), st)
		} else {
			t := newTable("cluster", st.ID)
			t.row("controller", st.Controller)
			t.row("brokers", st.Brokers)
			t.row("fenced brokers", idList(st.Fenced))
			t.row("unresponsive brokers", idList(st.Unresponsive))
			t.row("topics", st.Topics)
			t.row("partitions", st.Partitions)
			t.row("offline", st.Offline)
			t.row("under min.insync.replicas", st.UnderMinISR)
			t.row("under-replicated", st.UnderReplicated)
			t.row("not led by the preferred replica", st.NotPreferred)
			t.row("being reassigned", st.Reassigning)
			err = t.writeTo(cmd.OutOrStdout())
		}
		if err == nil && st.Offline+st.UnderMinISR > 0 {
			err = fmt.Errorf("%d partitions have no leader, %d fewer in sync than min.insync.replicas; `varve partition list --offline` and --under-min-isr show them", st.Offline, st.UnderMinISR)
		}
		return errors.Join(old, err)
	}
	return cmd
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

type listedBroker struct {
	ID           int32  `json:"id"`
	Host         string `json:"host"`
	Port         int32  `json:"port"`
	Rack         string `json:"rack,omitempty"`
	Controller   bool   `json:"controller"`
	Fenced       bool   `json:"fenced"`
	Unresponsive bool   `json:"unresponsive"` // has a session and answers nobody: given no leaderships
	Cordoned     bool   `json:"cordoned"`     // given no new replicas
	Resting      bool   `json:"resting"`      // leads only what nobody else can
	Leads        int    `json:"leads"`
	Replicas     int    `json:"replicas"`
}

func (b listedBroker) drained() string {
	switch {
	case b.Cordoned && b.Resting:
		return "drained"
	case b.Cordoned:
		return "cordoned"
	case b.Resting:
		return "resting"
	}
	return ""
}

func clusterBrokers(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "brokers", Short: "List the brokers, those that are away too", Args: arguments("", 0, 0)}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		c, err := describedCluster(s)
		if err != nil {
			return err
		}
		details, err := s.ListTopicsWithInternal(s.ctx)
		if err != nil {
			return s.failed("listing partitions", err)
		}
		leads, replicas := map[int32]int{}, map[int32]int{}
		details.EachPartition(func(p kadm.PartitionDetail) {
			leads[p.Leader]++
			for _, id := range p.Replicas {
				replicas[id]++
			}
		})
		list := []listedBroker{}
		for _, b := range c.Brokers {
			st := stateOf(b)
			list = append(list, listedBroker{b.NodeID, b.Host, b.Port, deref(b.Rack), b.NodeID == c.ControllerID, b.IsFenced, st.unresponsive, st.cordoned, st.resting, leads[b.NodeID], replicas[b.NodeID]})
		}
		if out.json() {
			return errors.Join(writeJSON(cmd.OutOrStdout(), list), stale(c))
		}
		t := newTable("ID", "ADDRESS", "RACK", "CONTROLLER", "FENCED", "UNRESPONSIVE", "DRAINED", "LEADS", "REPLICAS")
		for _, l := range list {
			t.row(l.ID, fmt.Sprintf("%s:%d", l.Host, l.Port), dash(l.Rack), l.Controller, l.Fenced, l.Unresponsive, dash(l.drained()), l.Leads, l.Replicas)
		}
		return errors.Join(t.writeTo(cmd.OutOrStdout()), stale(c))
	}
	return cmd
}

func partitionList(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list [TOPIC...]",
		Short:   "List partitions, all or those that lack something",
		Example: "  varve partition list --under-replicated",
		Args:    arguments("", 0, -1),
	}
	f := cmd.Flags()
	under := f.Bool("under-replicated", false, "those with replicas that are not in sync")
	offline := f.Bool("offline", false, "those without a leader")
	underMin := f.Bool("under-min-isr", false, "those with fewer replicas in sync than min.insync.replicas")
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
		moving, err := reassigning(s, nil)
		if err != nil {
			return err
		}
		list, err := partitionStates(s, moving, args...)
		if *under || *offline || *underMin {
			list = slices.DeleteFunc(list, func(p partitionState) bool {
				return !(*under && p.UnderReplicated || *offline && p.Offline || *underMin && p.UnderMinISR)
			})
		}
		if list == nil {
			return err
		}
		if c, cerr := describedCluster(s); cerr != nil {
			err = errors.Join(err, cerr)
		} else {
			err = errors.Join(err, stale(c))
		}
		if out.json() {
			if werr := writeJSON(cmd.OutOrStdout(), list); werr != nil {
				return werr
			}
			return err
		}
		t := newTable("TOPIC", "PARTITION", "LEADER", "REPLICAS", "ISR", "OFFLINE-REPLICAS", "LACKS")
		for _, p := range list {
			t.row(p.Topic, p.Partition, p.Leader, idList(p.Replicas), idList(p.ISR), idList(p.OfflineReplicas), p.lacks())
		}
		if werr := t.writeTo(cmd.OutOrStdout()); werr != nil {
			return werr
		}
		return err
	}
	return cmd
}
