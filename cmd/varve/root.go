package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRoot assembles the command tree.
func newRoot() *cobra.Command {
	root := group("varve", "A Kafka-protocol event log: newest layer on local disk, everything older in object storage")
	root.Long = `Varve is a Kafka-protocol event log. Brokers keep the newest layer on local disk; sealed layers go to object
storage and stay readable for as long as anyone wants.

The client commands work against any Kafka-protocol broker (--bootstrap-server).
Exit codes: 0 done, 1 failed (wholly or in part), 2 wrong command line, 128+N ended by signal N.`
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: %w (see %s --help)", cmd.CommandPath(), err, cmd.CommandPath())
	})
	root.AddCommand(serverCommands()...)
	root.AddCommand(topicCommand(), produceCommand(), consumeCommand(), configCommand(), groupCommand(), txnCommand(), clusterCommand(), partitionCommand(), reassignCommand(), tierCommand(), healthCommand(), benchCommand(), versionCommand())
	refuseRepeats(root)
	return root
}

// usageError marks an error of the command line itself: exit code 2, nothing was attempted.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// group is a command that only holds others. Cobra would print help and exit 0 for a mistyped subcommand.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		// Flags that follow a mistyped subcommand must not be what the message is about.
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				names = append(names, c.Name())
			}
		}
		have := strings.Join(names, ", ")
		if len(args) > 0 {
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("%s: unknown command %q; did you mean %s?", cmd.CommandPath(), args[0], strings.Join(near, " or "))
			}
			return usagef("%s: unknown command %q; there are: %s", cmd.CommandPath(), args[0], have)
		}
		if cmd.HasParent() {
			return usagef("%s: which of %s?", cmd.CommandPath(), have)
		}
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(subs...)
	return cmd
}

// arguments checks the positional arguments of a command: at least min, at most max (-1: any number).
func arguments(what string, min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < min:
			return usagef("%s: %s is missing: %s", cmd.CommandPath(), what, cmd.UseLine())
		case max >= 0 && len(args) > max:
			return usagef("%s: unexpected argument %q (quote an argument that has spaces): %s", cmd.CommandPath(), args[max], cmd.UseLine())
		}
		return nil
	}
}

// refuseRepeats makes every flag that holds one value refuse a second one, in the whole tree. With `--max 5 --max 50`
// one of the two was a mistake, and taking the last would do half of the time what nobody wanted. Flags that collect
// (--config, --header, --set) are meant to be repeated.
func refuseRepeats(cmd *cobra.Command) {
	wrap := func(f *pflag.Flag) {
		if _, collects := f.Value.(pflag.SliceValue); collects {
			return
		}
		if _, done := f.Value.(*onceValue); !done {
			f.Value = &onceValue{Value: f.Value}
		}
	}
	cmd.Flags().VisitAll(wrap)
	cmd.PersistentFlags().VisitAll(wrap)
	for _, c := range cmd.Commands() {
		refuseRepeats(c)
	}
}

type onceValue struct {
	pflag.Value
	set bool
}

func (o *onceValue) Set(s string) error {
	if o.set {
		return errors.New("the flag is given twice; give it once")
	}
	o.set = true
	return o.Value.Set(s)
}
