package main

import (
	"fmt"
	"math"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

type deletedRecords struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	LogStart  int64  `json:"log_start"`
}

// parsePartition reads an argument that names a partition of a topic.
func parsePartition(arg string) (int32, error) {
	n, err := strconv.ParseInt(arg, 10, 32)
	if err != nil || n < 0 {
		return 0, usagef("a partition is named by its number, as in 3; not %q", arg)
	}
	return int32(n), nil
}

func partitionDeleteRecords(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete-records TOPIC PARTITION --before OFFSET",
		Short: "Delete the oldest records of a partition",
		Long: `The log of the partition begins at OFFSET from then on, or where it began if that is above, wherever the records below are; -1 stands
for its high watermark, as for Kafka's tools. It is what to do about records that are damaged on the disk and that no replica has: up to where the damage
ends, as the broker's log and "varve health" say, everything is given up, and the rest is uploaded.`,
		Example: "  varve partition delete-records clicks 3 --before 190",
		Args:    arguments("the topic and the partition", 2, 2),
	}
	before := int64(-2)
	cmd.Flags().Var(intValue{&before, -1, math.MaxInt64, "an offset, or -1 for the high watermark"}, "before", "the first offset that is kept, or -1 for the high watermark")
	cmd.Flags().Lookup("before").DefValue = ""
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if before < -1 {
			return usagef("say --before which offset records are to be deleted: %s", cmd.UseLine())
		}
		if err := checkTopicNames(args[:1]); err != nil {
			return err
		}
		partition, err := parsePartition(args[1])
		if err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		var offsets kadm.Offsets
		offsets.Add(kadm.Offset{Topic: args[0], Partition: partition, At: before})
		what := fmt.Sprintf("deleting the records of %s, partition %d", args[0], partition)
		resps, err := s.DeleteRecords(s.ctx, offsets)
		if err != nil {
			return s.failed(what, err)
		}
		r, ok := resps.Lookup(args[0], partition)
		switch {
		case !ok:
			return fmt.Errorf("%s: the broker's answer does not name the partition", what)
		case r.Err != nil:
			return fmt.Errorf("%s: %w", what, brokerError(r.Err, ""))
		}
		d := deletedRecords{args[0], partition, r.LowWatermark}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), d)
		}
		t := newTable("TOPIC", "PARTITION", "LOG-START")
		t.row(d.Topic, d.Partition, d.LogStart)
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}
