package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/bench/load"
)

func benchFailover() *cobra.Command {
	f := load.Failover{Warmup: 2 * time.Second, Before: 5 * time.Second, After: 15 * time.Second}
	var partitions, replicas, record int64 = 300, 3, 100
	var command string
	cmd := &cobra.Command{
		Use:   "failover TOPIC --command COMMAND",
		Short: "How long partitions take no record when a broker is lost, or stopped, or anything else is done",
		Long: `Keeps one record in flight to each partition of a topic, does what --command says (by sh -c: kill -9 a broker, restart it, stop
etcd) and reports the longest time between two acknowledgements of a partition: over all partitions, and by the broker that
led them before. Where not every broker has a replica of each partition, what those without one on a broker took is shown by it, before and
after. The same before the command says what the load itself is good for. The topic is made if it is not there.`,
		Args: arguments("TOPIC", 1, 1),
	}
	conn := addConnection(cmd)
	out := addOutput(cmd)
	fl := cmd.Flags()
	fl.StringVar(&command, "command", "", "what is done, in a shell")
	fl.Var(intValue{&partitions, 1, 100_000, "a number from 1"}, "partitions", "of the topic, if it is made")
	fl.Var(intValue{&replicas, 1, 1000, "a number from 1"}, "replication-factor", "of the topic, if it is made")
	fl.Var(intValue{&record, 0, 1 << 20, "bytes"}, "record-bytes", "size of a record")
	fl.Var(durationValue{d: &f.Before}, "before", "how long is measured before the command")
	fl.Var(durationValue{d: &f.After}, "after", "how long is measured after it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if command == "" {
			return usagef("--command is missing: what is to be done, as in --command 'kill -9 4711'")
		}
		seeds, err := conn.seeds()
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		if err := makeTopic(ctx, seeds, args[0], int32(partitions), int16(replicas)); err != nil {
			return err
		}
		f.Bootstrap, f.Topic, f.RecordBytes = seeds, args[0], int(record)
		f.Event = func(ctx context.Context) error {
			if out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(out))
			}
			return nil
		}
		r, err := load.MeasureFailover(ctx, f)
		if err != nil {
			return err
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), r)
		}
		t := newTable("GAPS", "PARTITIONS", "P50 MS", "P99 MS", "MAX MS", "RECORDS/S")
		row := func(what string, g load.Gaps) {
			ms := func(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }
			t.row(what, g.Partitions, ms(g.P50), ms(g.P99), ms(g.Max), strconv.FormatFloat(g.Rate, 'f', 0, 64))
		}
		row("before", r.Steady)
		row("after", r.Event)
		for _, id := range slices.Sorted(maps.Keys(r.Leaders)) {
			row(fmt.Sprintf("after, led by %d", id), r.Leaders[id])
		}
		for _, id := range slices.Sorted(maps.Keys(r.Elsewhere)) {
			row(fmt.Sprintf("before, none on %d", id), r.Elsewhere[id].Steady)
			row(fmt.Sprintf("after, none on %d", id), r.Elsewhere[id].Event)
		}
		if err := t.writeTo(cmd.OutOrStdout()); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d records acknowledged, %d given up\n", r.Records, r.Errors)
		if r.Errors > 0 {
			return fmt.Errorf("%d records were given up, the first: %s", r.Errors, r.Error)
		}
		return nil
	}
	return cmd
}

// makeTopic makes a topic unless it is there, and waits until its replicas are in sync.
func makeTopic(ctx context.Context, seeds []string, topic string, partitions int32, replicas int16) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	topics, err := adm.ListTopics(ctx, topic)
	if err != nil {
		return err
	}
	if !topics.Has(topic) {
		if _, err := adm.CreateTopic(ctx, partitions, replicas, nil, topic); err != nil {
			return fmt.Errorf("create topic %s: %w", topic, err)
		}
	}
	return load.Settled(ctx, cl, topic, 0)
}
