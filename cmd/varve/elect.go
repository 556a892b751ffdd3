package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
)

func partitionElect(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "elect {--preferred [TOPIC [PARTITION]] | --unclean TOPIC PARTITION}",
		Short: "Have preferred replicas lead, or one that was not in sync where nobody else is left",
		Long: `With --preferred, the first replica of every partition leads it, or of those of a topic, or of one partition, where
it is there and in sync: nothing is lost.

With --unclean, one partition without a leader. A partition has none when every replica that has all that was acknowledged
is away; it has one again, and loses nothing, when one of them comes back with its log. What one of the others lacks is
lost for good. So the command asks every broker that is there what it has, and prints it with what is known to be lost:
from the end of the chosen replica's log, or of what is in object storage, to the highest high watermark that anybody has
heard of. What was acknowledged after that, nobody who is there knows of. Nothing is done without --accept-loss and at least
that number of offsets; then the replica with the latest leader epoch and the longest log of it leads; one whose log is damaged, only where all are.`,
		Example: "  varve partition elect --preferred\n  varve partition elect --unclean clicks 3\n  varve partition elect --unclean clicks 3 --accept-loss 190",
		Args:    arguments("", 0, 2),
	}
	f := cmd.Flags()
	preferredOnly := f.Bool("preferred", false, "have the first replicas lead")
	unclean := f.Bool("unclean", false, "show what is lost if a replica leads that was not in sync")
	accept := int64(-1)
	f.Var(intValue{&accept, 0, math.MaxInt64, "a number of offsets, from 0"}, "accept-loss", "with --unclean: have it lead, if no more offsets than this are known to be lost")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *preferredOnly == *unclean:
			return usagef("say --preferred or --unclean: %s", cmd.UseLine())
		case *unclean && len(args) < 2:
			return usagef("--unclean is for one partition: the topic and the partition are named")
		case accept >= 0 && !*unclean:
			return usagef("--accept-loss belongs to --unclean: preferred replicas that are in sync lose nothing")
		}
		partition := int32(-1)
		if len(args) > 0 {
			if err := checkTopicNames(args[:1]); err != nil {
				return err
			}
		}
		if len(args) > 1 {
			n, err := parsePartition(args[1])
			if err != nil {
				return err
			}
			partition = n
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		if *unclean {
			return electUnclean(cmd, s, out, args[0], partition, accept)
		}
		return electPreferred(cmd, s, out, args, partition)
	}
	return cmd
}

// electedPartition is what came of a preferred election.
type electedPartition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Result    string `json:"result"` // elected, leads already, or why not
}

func electPreferred(cmd *cobra.Command, s *session, out *outputFlag, args []string, partition int32) error {
	var set kadm.TopicsSet
	if len(args) > 0 {
		details, err := s.ListTopicsWithInternal(s.ctx, args[0])
		if err == nil {
			err = details.Error()
		}
		if err != nil {
			return s.failed("topic "+args[0], err)
		}
		set = details.TopicsSet()
		if partition >= 0 {
			set = kadm.TopicsSet{}
			set.Add(args[0], partition)
		}
	}
	results, err := s.ElectLeaders(s.ctx, kadm.ElectPreferredReplica, set)
	if err != nil {
		return s.failed("electing the preferred leaders", err)
	}
	list := []electedPartition{}
	var errs []error
	for _, t := range slices.Sorted(maps.Keys(results)) {
		for _, p := range slices.Sorted(maps.Keys(results[t])) {
			r := results[t][p]
			e := electedPartition{t, p, "elected"}
			switch {
			case errors.Is(r.Err, kerr.ElectionNotNeeded):
				e.Result = "leads already"
			case r.Err != nil:
				err := brokerError(r.Err, r.ErrMessage)
				e.Result = err.Error()
				errs = append(errs, fmt.Errorf("%s-%d: %w", t, p, err))
			}
			list = append(list, e)
		}
	}
	if out.json() {
		err = writeJSON(cmd.OutOrStdout(), list)
	} else {
		t := newTable("TOPIC", "PARTITION", "PREFERRED REPLICA")
		for _, e := range list {
			t.row(e.Topic, e.Partition, e.Result)
		}
		err = t.writeTo(cmd.OutOrStdout())
	}
	if err != nil {
		return err
	}
	return joinErrors(errs)
}

// shownElection is an unclean election as it is printed.
type shownElection struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	broker.UncleanElection
	// Offsets that are known to be lost: [from, to).
	LostFrom int64 `json:"lost_from"`
	LostTo   int64 `json:"lost_to"`
	Elected  bool  `json:"elected"`
}

func (e *shownElection) lost() int64 { return e.LostTo - e.LostFrom }

func (e *shownElection) name() string { return fmt.Sprintf("%s-%d", e.Topic, e.Partition) }

// away are the brokers that have everything, or might: those that were in sync.
func (e *shownElection) away() (in []int32) {
	for _, l := range e.Replicas {
		if l.InSync {
			in = append(in, l.Broker)
		}
	}
	return in
}

func electUnclean(cmd *cobra.Command, s *session, out *outputFlag, topic string, partition int32, accept int64) error {
	e, err := showElection(s, topic, partition)
	if err != nil {
		return err
	}
	var refused error
	switch {
	case e.Leader >= 0:
	case e.Elect < 0:
		refused = fmt.Errorf("no broker that has a replica of %s is there", e.name())
	case accept < 0:
		refused = fmt.Errorf("nothing is done: --accept-loss %d has broker %d lead %s", e.lost(), e.Elect, e.name())
	case e.lost() > accept:
		refused = fmt.Errorf("nothing is done: broker %d lacks %d offsets of %s that were acknowledged, and --accept-loss is %d", e.Elect, e.lost(), e.name(), accept)
	default:
		if err := orderElection(s, e); err != nil {
			return err
		}
		e.Elected = true
	}
	if out.json() {
		err = writeJSON(cmd.OutOrStdout(), e)
	} else {
		err = e.print(cmd)
	}
	if err != nil {
		return err
	}
	return refused
}

func (e *shownElection) print(cmd *cobra.Command) error {
	w := cmd.OutOrStdout()
	if e.Leader >= 0 {
		_, err := fmt.Fprintf(w, "%s is led by broker %d: there is nothing to elect\n", visible(e.name()), e.Leader)
		return err
	}
	t := newTable("BROKER", "WAS IN SYNC", "ALIVE", "LEADER EPOCH", "LOG END", "HIGH WATERMARK", "LOSES AT LEAST")
	for _, l := range e.Replicas {
		switch from, to := e.Lost(l); {
		case !l.Told && l.Alive:
			t.row(l.Broker, l.InSync, "no answer", "-", "-", "-", "-")
		case !l.Told:
			t.row(l.Broker, l.InSync, l.Alive, "-", "-", "-", "-")
		default:
			end := offsetOrDash(l.LogEnd)
			if l.Damaged {
				end += " damaged"
			}
			t.row(l.Broker, l.InSync, l.Alive, offsetOrDash(int64(l.LeaderEpoch)), end, offsetOrDash(l.HighWatermark), to-from)
		}
	}
	if err := t.writeTo(w); err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s has no leader. In object storage is everything below %d; acknowledged was everything below %d, at least.\n", visible(e.name()), e.RemoteEnd, e.Committed)
	if e.Elect >= 0 {
		tense := "would lead"
		if e.Elected {
			tense = "leads"
		}
		fmt.Fprintf(&text, "Broker %d %s from offset %d on: ", e.Elect, tense, e.LostFrom)
		if n := e.lost(); n > 0 {
			fmt.Fprintf(&text, "%d offsets are lost, %d to %d, and what", n, e.LostFrom, e.LostTo-1)
		} else {
			text.WriteString("of what is known nothing is lost; what")
		}
		fmt.Fprintf(&text, "ever was acknowledged from %d on, of which no broker that is there knows, is lost too.\n", e.LostTo)
	}
	if in := e.away(); len(in) > 0 && !e.Elected {
		fmt.Fprintf(&text, "Nothing is lost if one of those that were in sync comes back with its log: broker %s.\n", strings.ReplaceAll(idList(in), ",", ", "))
	}
	_, err := fmt.Fprint(w, text.String())
	return err
}

// showElection asks what an unclean election would do.
func showElection(s *session, topic string, partition int32) (*shownElection, error) {
	what := fmt.Sprintf("asking what the replicas of %s-%d have", topic, partition)
	p, err := askElection(s, what, topic, partition, broker.ElectShow, -1)
	if err != nil {
		return nil, err
	}
	e := &shownElection{Topic: topic, Partition: partition}
	told := false
	p.UnknownTags.Each(func(tag uint32, v []byte) {
		if tag == broker.LogsTag {
			told = true
			err = json.Unmarshal(v, &e.UncleanElection)
		}
	})
	if !told {
		err = errors.New("the broker does not say: it is of another kind or version")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	e.LostFrom, e.LostTo = e.Lost(e.Of(e.Elect))
	return e, nil
}

// orderElection has the one lead that was shown, or nobody.
func orderElection(s *session, e *shownElection) error {
	const unclean = 1
	_, err := askElection(s, "electing a leader of "+e.name(), e.Topic, e.Partition, unclean, e.Elect)
	if errors.Is(err, kerr.ElectionNotNeeded) {
		return fmt.Errorf("%s has a leader by now: nothing was elected, and nothing is lost by it", e.name())
	}
	return err
}

// askElection sends ElectLeaders for one partition; leader names who alone may be elected, -1: anybody.
func askElection(s *session, what, topic string, partition int32, kind int8, leader int32) (*kmsg.ElectLeadersResponseTopicPartition, error) {
	req := kmsg.NewPtrElectLeadersRequest()
	req.ElectionType, req.TimeoutMillis = kind, int32(min(s.conn.wait.Milliseconds(), math.MaxInt32))
	t := kmsg.NewElectLeadersRequestTopic()
	t.Topic, t.Partitions = topic, []int32{partition}
	req.Topics = append(req.Topics, t)
	if leader >= 0 {
		req.UnknownTags.Set(broker.LeaderTag, binary.BigEndian.AppendUint32(nil, uint32(leader)))
	}
	resp, err := req.RequestWith(s.ctx, s.kgo)
	if err != nil {
		return nil, s.failed(what, err)
	}
	if len(resp.Topics) == 1 && len(resp.Topics[0].Partitions) == 1 {
		p := &resp.Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			return nil, fmt.Errorf("%s: %w", what, brokerError(err, deref(p.ErrorMessage)))
		}
		return p, nil
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, s.failed(what, err)
	}
	return nil, fmt.Errorf("%s: the answer has no such partition", what)
}
