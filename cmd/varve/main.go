// Command varve is the broker and its command line: `varve dev` and `varve broker` serve, the other commands are
// clients of any Kafka-protocol broker.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes. Scripts branch on them, so they are part of the interface.
const (
	exitOK     = 0
	exitFailed = 1   // what was asked could not be done, or not all of it
	exitUsage  = 2   // the command line itself is wrong; nothing was attempted
	exitSignal = 128 // plus the signal's number
)

func main() {
	ctx, stop := withSignals(context.Background())
	defer stop()
	os.Exit(run(ctx, newRoot(), os.Stderr))
}

// signalled is the cause of a context that a signal cancelled.
type signalled struct{ sig syscall.Signal }

func (s signalled) Error() string {
	if s.sig == syscall.SIGINT {
		return "interrupted"
	}
	return "stopped by " + s.sig.String()
}

// withSignals returns a context that the first SIGINT, SIGTERM or SIGHUP cancels; the second one kills the process in
// the ordinary way, so that a drain that hangs can be ended from the keyboard. Under nohup, SIGHUP stays ignored.
//
// SIGPIPE is caught (and left at that) so that a write to a closed pipe returns EPIPE and the command can end in
// order, as a group member must leave its group.
func withSignals(parent context.Context) (context.Context, func()) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(parent)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(c, syscall.SIGHUP)
	}
	go func() {
		select {
		case s := <-c:
			signal.Stop(c)
			cancel(signalled{s.(syscall.Signal)})
		case <-ctx.Done():
			signal.Stop(c)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// run executes the command and turns its error into one line on stderr and an exit code.
func run(ctx context.Context, root *cobra.Command, stderr io.Writer) int {
	err := root.ExecuteContext(ctx)
	var sig signalled
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, syscall.EPIPE) && toPipe(err):
		// Whoever read our output has had enough. As `cat` and `seq`: quiet, and the code of SIGPIPE.
		return exitSignal + int(syscall.SIGPIPE)
	case errors.As(err, &sig):
		fmt.Fprintln(stderr, "varve: "+visible(err.Error()))
		return exitSignal + int(sig.sig)
	case errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &sig):
		fmt.Fprintln(stderr, "varve: "+sig.Error())
		return exitSignal + int(sig.sig)
	}
	fmt.Fprintln(stderr, "varve: "+visible(err.Error()))
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// toPipe tells a write to a pipe from one to a connection, which may break in the same way.
func toPipe(err error) bool {
	var of *net.OpError
	return !errors.As(err, &of)
}
