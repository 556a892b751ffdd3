package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func txnCommand() *cobra.Command {
	cmd := group("txn", "List and describe transactions, find and abort hanging ones")
	conn := addConnection(cmd)
	cmd.AddCommand(txnList(conn), txnDescribe(conn), txnFindHanging(conn), txnAbort(conn))
	return cmd
}

type listedTxn struct {
	ID          string `json:"transactional_id"`
	State       string `json:"state"`
	ProducerID  int64  `json:"producer_id"`
	Coordinator int32  `json:"coordinator"`
}

var txnStates = []string{"Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort"}

func txnList(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List transactional ids and the states of their transactions", Args: arguments("", 0, 0)}
	states := cmd.Flags().StringArray("state", nil, "only those in this state (repeatable): "+strings.Join(txnStates, ", "))
	older := cmd.Flags().Duration("older-than", 0, "only those whose transaction has been open for longer than this, as 15m")
	pattern := cmd.Flags().String("pattern", "", "only those whose id this regular expression matches as a whole")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for i, st := range *states {
			at := slices.IndexFunc(txnStates, func(s string) bool { return strings.EqualFold(s, st) })
			if at < 0 {
				return usagef("--state: there is no state %q; there are: %s", st, strings.Join(txnStates, ", "))
			}
			(*states)[i] = txnStates[at] // brokers know it by this spelling only
		}
		if *older < 0 {
			return usagef("--older-than %s is negative", *older)
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		list, failed := listTxns(s, *states, *older, *pattern)
		if failed != nil {
			if failed = s.failed("listing transactions", failed); len(list) == 0 {
				return failed
			}
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else {
			t := newTable("TRANSACTIONAL ID", "STATE", "PRODUCER ID", "COORDINATOR")
			for _, l := range list {
				t.row(l.ID, l.State, l.ProducerID, l.Coordinator)
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		return errors.Join(err, failed)
	}
	return cmd
}

// listTxns asks every broker. One that does not know a filter would leave it out and list everything.
func listTxns(s *session, states []string, older time.Duration, pattern string) ([]listedTxn, error) {
	req := kmsg.NewPtrListTransactionsRequest()
	req.StateFilters = states
	needs := int16(0)
	if older > 0 {
		req.DurationFilterMillis, needs = older.Milliseconds(), 1
	}
	if pattern != "" {
		req.TransactionalIDPattern, needs = &pattern, 2
	}
	list := []listedTxn{}
	err := everyBroker(s, req, func(id int32, resp *kmsg.ListTransactionsResponse) error {
		switch {
		case resp.ErrorCode == kerr.InvalidRegularExpression.Code:
			return usagef("--pattern %q is no regular expression", pattern)
		case resp.ErrorCode != 0:
			return kerr.ErrorForCode(resp.ErrorCode)
		case resp.Version < needs:
			return fmt.Errorf("broker %d is too old to filter by age or by pattern; leave out --older-than and --pattern", id)
		}
		for _, t := range resp.TransactionStates {
			list = append(list, listedTxn{t.TransactionalID, t.TransactionState, t.ProducerID, id})
		}
		return nil
	})
	slices.SortFunc(list, func(a, b listedTxn) int { return strings.Compare(a.ID, b.ID) })
	return list, err
}

type describedTxn struct {
	ID            string             `json:"transactional_id"`
	State         string             `json:"state"`
	ProducerID    int64              `json:"producer_id"`
	ProducerEpoch int16              `json:"producer_epoch"`
	Coordinator   int32              `json:"coordinator"`
	TimeoutMs     int32              `json:"timeout_ms"`
	StartMs       int64              `json:"start_ms"` // -1: it had no transaction yet
	Partitions    []describedTxnPart `json:"partitions"`
}

type describedTxnPart struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
}

func txnDescribe(conn *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "describe ID...", Short: "Describe transactional ids: producer, state, partitions of the transaction",
		Args: arguments("the transactional id", 1, -1)}
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for i, id := range args {
			if id == "" {
				return usagef("the transactional id is empty")
			}
			if slices.Contains(args[:i], id) {
				return usagef("transactional id %q is given twice", id)
			}
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		txns, err := s.DescribeTransactions(s.ctx, args...)
		if err != nil {
			return s.failed("describing transactions", err)
		}
		list := []describedTxn{}
		var errs []error
		for _, id := range args {
			t, ok := txns[id]
			switch {
			case !ok:
				errs = append(errs, fmt.Errorf("transactional id %q: the broker did not answer for it", id))
				continue
			case t.Err != nil:
				errs = append(errs, fmt.Errorf("transactional id %q: %w", id, conn.explain(t.Err)))
				continue
			}
			d := describedTxn{ID: id, State: t.State, ProducerID: t.ProducerID, ProducerEpoch: t.ProducerEpoch, Coordinator: t.Coordinator,
				TimeoutMs: t.TimeoutMillis, StartMs: t.StartTimestamp, Partitions: []describedTxnPart{}}
			for _, topic := range t.Topics.Sorted() {
				for _, p := range topic.Partitions {
					d.Partitions = append(d.Partitions, describedTxnPart{topic.Topic, p})
				}
			}
			list = append(list, d)
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else {
			t := newTable("TRANSACTIONAL ID", "STATE", "PRODUCER ID", "EPOCH", "COORDINATOR", "TIMEOUT", "AGE", "PARTITIONS")
			for _, d := range list {
				var ps []string
				for _, p := range d.Partitions {
					ps = append(ps, fmt.Sprintf("%s-%d", p.Topic, p.Partition))
				}
				t.row(d.ID, d.State, d.ProducerID, d.ProducerEpoch, d.Coordinator, time.Duration(d.TimeoutMs)*time.Millisecond, txnAge(d), dash(strings.Join(ps, ",")))
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		return errors.Join(err, joinErrors(errs))
	}
	return cmd
}

// txnAge is how long a transaction has been going on that has not ended.
func txnAge(d describedTxn) string {
	if d.State != "Ongoing" || d.StartMs < 0 {
		return "-"
	}
	return time.Since(time.UnixMilli(d.StartMs)).Truncate(time.Second).String()
}

type hangingTxn struct {
	Topic           string `json:"topic"`
	Partition       int32  `json:"partition"`
	StartOffset     int64  `json:"start_offset"`
	ProducerID      int64  `json:"producer_id"`
	ProducerEpoch   int16  `json:"producer_epoch"`
	LastTimestampMs int64  `json:"last_timestamp_ms"`
}

func txnFindHanging(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "find-hanging",
		Short: "Find transactions that are open in a partition and that no coordinator knows",
		Long: `Find transactions that are open in a partition and that no coordinator knows, so that nobody will ever end them. Readers of
committed records do not come past them; ` + "`varve txn abort`" + ` ends one.

A transaction that was written to a short while ago is not looked at: the longest that its coordinator lets it go on, that is
transaction.max.timeout.ms of the brokers, is what --max-transaction-timeout should be.`,
		Example: "  varve txn find-hanging\n  varve txn find-hanging --topic clicks:0,3 --topic views --max-transaction-timeout 1m",
		Args:    arguments("", 0, 0),
	}
	topics := cmd.Flags().StringArray("topic", nil, "only in a topic, or in some partitions of it as topic:0,1 (repeatable)")
	age := 15 * time.Minute
	cmd.Flags().Var(durationValue{&age, true}, "max-transaction-timeout", "only those whose last record is older than this")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		where, err := parseTopicPartitions(*topics)
		if err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		set, err := partitionsOf(s, where)
		if err != nil {
			return err
		}
		before := time.Now().Add(-age).UnixMilli()
		hanging, errs := findHanging(s, set, func(p kadm.DescribedProducer) bool { return p.LastTimestamp <= before })
		list := []hangingTxn{}
		for _, p := range hanging {
			list = append(list, hangingTxn{p.Topic, p.Partition, p.CurrentTxnStartOffset, p.ProducerID, p.ProducerEpoch, p.LastTimestamp})
		}
		if out.json() {
			err = writeJSON(cmd.OutOrStdout(), list)
		} else {
			t := newTable("TOPIC", "PARTITION", "START-OFFSET", "PRODUCER ID", "EPOCH", "LAST RECORD")
			for _, l := range list {
				t.row(l.Topic, l.Partition, l.StartOffset, l.ProducerID, l.ProducerEpoch, time.UnixMilli(l.LastTimestampMs).UTC().Format(time.RFC3339))
			}
			err = t.writeTo(cmd.OutOrStdout())
		}
		return errors.Join(err, joinErrors(errs))
	}
	return cmd
}

// partitionsOf are the partitions that --topic names, all that there are if it names none.
func partitionsOf(s *session, where topicPartitions) (kadm.TopicsSet, error) {
	m, err := s.Metadata(s.ctx, slices.Sorted(maps.Keys(where))...)
	if err != nil {
		return nil, s.failed("looking up the partitions of topics", err)
	}
	var set kadm.TopicsSet
	var errs []error
	for _, t := range m.Topics.Sorted() {
		switch parts := where[t.Topic]; {
		case t.Err != nil && len(where) == 0:
			// It has been deleted since it was listed.
		case t.Err != nil:
			errs = append(errs, fmt.Errorf("topic %s: %w", t.Topic, brokerError(t.Err, "")))
		case len(parts) == 0:
			set.Add(t.Topic, t.Partitions.Numbers()...)
		default:
			for _, p := range parts {
				if _, ok := t.Partitions[p]; !ok {
					errs = append(errs, fmt.Errorf("topic %s partition %d: there is no such partition; the topic has %d", t.Topic, p, len(t.Partitions)))
				}
			}
			set.Add(t.Topic, parts...)
		}
	}
	return set, joinErrors(errs)
}

// findHanging are the transactions that hang among those open in partitions that are suspected, in order.
//
// Leaders are asked, then coordinators, then leaders again: what was open at the same offset before and after was open when
// the coordinators were asked. A coordinator has a partition in a transaction before the first record is written there, and
// until the marker is; so a transaction that it had not there is not its own.
func findHanging(s *session, set kadm.TopicsSet, suspected func(kadm.DescribedProducer) bool) ([]kadm.DescribedProducer, []error) {
	open, errs := openTxns(s, set)
	open = slices.DeleteFunc(open, func(p kadm.DescribedProducer) bool { return !suspected(p) })
	open, err := unknown(s, open)
	if err != nil {
		return nil, append(errs, err)
	}
	var again kadm.TopicsSet
	for _, p := range open {
		again.Add(p.Topic, p.Partition)
	}
	still, more := openTxns(s, again)
	return slices.DeleteFunc(open, func(p kadm.DescribedProducer) bool {
		return !slices.ContainsFunc(still, func(q kadm.DescribedProducer) bool {
			return p.Topic == q.Topic && p.Partition == q.Partition && p.ProducerID == q.ProducerID && p.CurrentTxnStartOffset == q.CurrentTxnStartOffset
		})
	}), append(errs, more...)
}

// describedAtATime is of how many partitions the producers are asked for at a time: brokers bound their answers.
const describedAtATime = 100

// openTxns are the transactions open in partitions, in order.
func openTxns(s *session, set kadm.TopicsSet) ([]kadm.DescribedProducer, []error) {
	type at struct {
		topic     string
		partition int32
	}
	var all []at
	for _, t := range set.Sorted() {
		for _, p := range t.Partitions {
			all = append(all, at{t.Topic, p})
		}
	}
	var open []kadm.DescribedProducer
	var errs []error
	for some := range slices.Chunk(all, describedAtATime) {
		var ask kadm.TopicsSet
		for _, a := range some {
			ask.Add(a.topic, a.partition)
		}
		got, err := s.DescribeProducers(s.ctx, ask)
		if err != nil {
			return open, append(errs, s.failed("describing producers", err))
		}
		for _, a := range some {
			p, ok := got[a.topic].Partitions[a.partition]
			switch {
			case !ok:
				errs = append(errs, fmt.Errorf("producers of %s-%d: the broker did not answer for it", a.topic, a.partition))
			case p.Err != nil:
				errs = append(errs, fmt.Errorf("producers of %s-%d: %w", a.topic, a.partition, brokerError(p.Err, p.ErrMessage)))
			}
			for _, x := range p.ActiveProducers.Sorted() {
				if x.CurrentTxnStartOffset >= 0 {
					open = append(open, x)
				}
			}
		}
	}
	return open, errs
}

// unknown are those transactions that no coordinator knows.
func unknown(s *session, open []kadm.DescribedProducer) ([]kadm.DescribedProducer, error) {
	if len(open) == 0 {
		return nil, nil // without ids all transactions would be listed
	}
	ids := map[int64]struct{}{}
	for _, p := range open {
		ids[p.ProducerID] = struct{}{}
	}
	listed, err := s.ListTransactions(s.ctx, slices.Sorted(maps.Keys(ids)), nil)
	if err != nil {
		return nil, s.failed("listing transactions", err)
	}
	if len(listed) == 0 {
		return open, nil
	}
	txns, err := s.DescribeTransactions(s.ctx, listed.TransactionalIDs()...)
	if err != nil {
		return nil, s.failed("describing transactions", err)
	}
	for _, t := range txns.Sorted() {
		// An id that has expired since it was listed had no transaction.
		if t.Err != nil && !errors.Is(t.Err, kerr.TransactionalIDNotFound) {
			return nil, fmt.Errorf("transactional id %q: %w", t.TxnID, brokerError(t.Err, ""))
		}
		open = slices.DeleteFunc(open, func(p kadm.DescribedProducer) bool {
			_, in := t.Topics[p.Topic][p.Partition]
			return in && t.ProducerID == p.ProducerID
		})
	}
	return open, nil
}

type abortedTxn struct {
	Topic            string `json:"topic"`
	Partition        int32  `json:"partition"`
	StartOffset      int64  `json:"start_offset"`
	ProducerID       int64  `json:"producer_id"`
	ProducerEpoch    int16  `json:"producer_epoch"`
	CoordinatorEpoch int32  `json:"coordinator_epoch"`
	LastTimestampMs  int64  `json:"last_timestamp_ms"`
	Aborted          bool   `json:"aborted"` // false: --dry-run
}

func txnAbort(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "abort TOPIC PARTITION --start-offset N",
		Short: "Abort a hanging transaction in a partition",
		Long: `Abort the transaction that began at an offset of a partition, by writing its marker to that partition alone.

It is for a transaction that hangs: its coordinator knows nothing of it, so nobody will ever end it, and readers of committed
records do not come past it. A transaction that its coordinator knows is left alone: its producer ends it, or its timeout. With --force
it is aborted all the same, and may end otherwise in its other partitions.`,
		Example: "  varve txn abort clicks 3 --start-offset 1042 --dry-run",
		Args:    arguments("the topic and the partition", 2, 2),
	}
	start := int64(-1)
	cmd.Flags().Var(intValue{&start, 0, math.MaxInt64, "an offset"}, "start-offset", "the first offset of the transaction: the partition's last stable offset")
	cmd.Flags().Lookup("start-offset").DefValue = ""
	dry := cmd.Flags().Bool("dry-run", false, "show what would be aborted, abort nothing")
	force := cmd.Flags().Bool("force", false, "abort it although its coordinator knows it")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		topic := args[0]
		if err := checkTopicName(topic); err != nil {
			return err
		}
		n, err := strconv.ParseInt(args[1], 10, 32)
		if err != nil || n < 0 {
			return usagef("%s: the partition must be a number from 0, not %q", cmd.CommandPath(), args[1])
		}
		if start < 0 {
			return usagef("%s: which transaction? --start-offset says where it began; `varve txn find-hanging` shows those that hang", cmd.CommandPath())
		}
		partition := int32(n)
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		where := fmt.Sprintf("%s-%d", topic, partition)
		var set kadm.TopicsSet
		set.Add(topic, partition)
		producers, err := s.DescribeProducers(s.ctx, set)
		if err != nil {
			return s.failed("describing the producers of "+where, err)
		}
		p, ok := producers[topic].Partitions[partition]
		if !ok {
			return fmt.Errorf("producers of %s: the broker did not answer for it", where)
		}
		if p.Err != nil {
			return fmt.Errorf("producers of %s: %w", where, brokerError(p.Err, p.ErrMessage))
		}
		var hangs *kadm.DescribedProducer
		var open []string
		for _, x := range p.ActiveProducers.Sorted() {
			if x.CurrentTxnStartOffset == start {
				hangs = &x
			}
			if x.CurrentTxnStartOffset >= 0 {
				open = append(open, strconv.FormatInt(x.CurrentTxnStartOffset, 10))
			}
		}
		if hangs == nil {
			if len(open) == 0 {
				return fmt.Errorf("%s: no transaction is open in the partition", where)
			}
			return fmt.Errorf("%s: no transaction began at offset %d; open ones began at %s", where, start, strings.Join(open, ", "))
		}
		if !*force {
			if err := notKnown(s.ctx, s, *hangs); err != nil {
				return err
			}
		}
		a := abortedTxn{topic, partition, start, hangs.ProducerID, hangs.ProducerEpoch, max(hangs.CoordinatorEpoch, 0), hangs.LastTimestamp, !*dry}
		if a.Aborted {
			resp, err := s.WriteTxnMarkers(s.ctx, kadm.TxnMarkers{ProducerID: a.ProducerID, ProducerEpoch: a.ProducerEpoch, CoordinatorEpoch: a.CoordinatorEpoch, Topics: set})
			if err != nil {
				return s.failed("aborting the transaction in "+where, err)
			}
			r, ok := resp[a.ProducerID].Topics[topic].Partitions[partition]
			if !ok {
				return fmt.Errorf("aborting the transaction in %s: the broker did not answer for it", where)
			}
			if r.Err != nil {
				return fmt.Errorf("aborting the transaction in %s: %w", where, brokerError(r.Err, ""))
			}
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), a)
		}
		what := "aborted"
		if *dry {
			what = "would be aborted"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: the transaction from offset %d of producer %d, epoch %d, %s; its last record is of %s\n", visible(where), start,
			a.ProducerID, a.ProducerEpoch, what, time.UnixMilli(a.LastTimestampMs).UTC().Format(time.RFC3339))
		return err
	}
	return cmd
}

// notKnown is an error if a coordinator knows the transaction that a producer has open in a partition.
func notKnown(ctx context.Context, s *session, p kadm.DescribedProducer) error {
	ids, err := s.ListTransactions(ctx, []int64{p.ProducerID}, nil)
	if err != nil {
		return s.failed("listing the transactions of the producer", err)
	}
	if len(ids) == 0 {
		return nil
	}
	txns, err := s.DescribeTransactions(ctx, ids.TransactionalIDs()...)
	if err != nil {
		return s.failed("describing the transactions of the producer", err)
	}
	for _, t := range txns.Sorted() {
		if t.Err != nil {
			return fmt.Errorf("transactional id %q: %w", t.TxnID, brokerError(t.Err, ""))
		}
		if _, in := t.Topics[p.Topic][p.Partition]; in && t.ProducerID == p.ProducerID {
			return fmt.Errorf("%s-%d: the transaction does not hang: transactional id %q has it in state %s, and ends it at the latest %s after its beginning; --force aborts it all the same",
				p.Topic, p.Partition, t.TxnID, t.State, time.Duration(t.TimeoutMillis)*time.Millisecond)
		}
	}
	return nil
}
