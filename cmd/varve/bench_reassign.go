package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/varve/varve/bench/load"
)

func benchReassign() *cobra.Command {
	m := load.SizeMoves{Topic: "varve-bench-reassign"}
	var sizes []string
	var from, to, moves int64 = 1, 2, 4
	cmd := &cobra.Command{
		Use:   "reassign",
		Short: "How long a partition takes to move to another broker, by how much is stored of it",
		Long: `Makes a topic of one partition for each size, fills it, waits until all of it is in object storage, and moves the partitions
between two brokers in turn, each while it is written to. A broker that keeps all of a partition copies it; one whose partitions
are in object storage does not, and takes as long for a large one as for a small one. The topics are deleted afterwards.`,
		Args: arguments("", 0, 0),
	}
	conn := addConnection(cmd)
	out := addOutput(cmd)
	fl := cmd.Flags()
	fl.StringSliceVar(&sizes, "bytes", []string{"100MiB", "10GiB"}, "what is stored of a partition; several are separated by commas")
	fl.Var(intValue{&from, 0, 1 << 30, "a broker's id"}, "from", "the broker that has the partitions at first")
	fl.Var(intValue{&to, 0, 1 << 30, "a broker's id"}, "to", "the broker that they are moved to, and back")
	fl.Var(intValue{&moves, 1, 1000, "a number from 1"}, "moves", "of each partition")
	fl.BoolVar(&m.Tiered, "tiered", true, "wait until everything is in object storage")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		seeds, err := conn.seeds()
		if err != nil {
			return err
		}
		for _, s := range sizes {
			var n int64
			if err := (bytesValue{&n, 1, 1 << 40}).Set(s); err != nil {
				return usagef("--bytes %s: %w", s, err)
			}
			if slices.Contains(m.Bytes, n) {
				return usagef("--bytes has %s twice", s)
			}
			m.Bytes = append(m.Bytes, n)
		}
		if from == to {
			return usagef("--from and --to are the same broker")
		}
		m.Bootstrap, m.From, m.To, m.Moves = seeds, int32(from), int32(to), int(moves)
		m.Progress = func(s string) { fmt.Fprintln(os.Stderr, s) }
		list, err := load.MeasureSizeMoves(cmd.Context(), m)
		if err != nil {
			return err
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		t := newTable("MB", "MOVES", "SECONDS", "LEAST", "MOST", "LONGEST GAP MS", "RECORDS", "GIVEN UP")
		number := func(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
		var failed error
		for _, s := range list {
			at := slices.Sorted(slices.Values(s.Seconds))
			t.row(number(float64(s.Bytes)/1e6, 0), len(at), number(at[len(at)/2], 3), number(at[0], 3), number(at[len(at)-1], 3),
				number(slices.Max(s.GapMs), 1), s.Records, s.Errors)
			if s.Errors > 0 {
				failed = fmt.Errorf("%d records were given up, the first: %s", s.Errors, s.Error)
			}
		}
		if err := t.writeTo(cmd.OutOrStdout()); err != nil {
			return err
		}
		return failed
	}
	return cmd
}
