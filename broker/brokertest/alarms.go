package brokertest

import (
	"context"
	"log/slog"
	"strings"
)

// alarms is the log of brokers and workers. It passes on what is said, if somebody listens, and fails the run at what is never said
// of a cluster whose links change nothing.
type alarms struct {
	c    *Cluster
	next slog.Handler // nil: nobody listens
}

// never are parts of messages and errors: bytes that a leader sent turned out to be others than it has.
var never = []string{
	"a batch of the leader is damaged",
	"nothing is cut while this replica counts as in sync",
	"any more, the bucket ends at",
}

func (a alarms) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError || a.next != nil && a.next.Enabled(ctx, l)
}

func (a alarms) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		text := r.Message
		r.Attrs(func(at slog.Attr) bool {
			text += " " + at.String()
			return true
		})
		for _, n := range never {
			if strings.Contains(text, n) {
				a.c.fail("a broker says: %s", text)
			}
		}
	}
	if a.next != nil && a.next.Enabled(ctx, r.Level) {
		return a.next.Handle(ctx, r)
	}
	return nil
}

func (a alarms) WithAttrs(list []slog.Attr) slog.Handler {
	if a.next != nil {
		a.next = a.next.WithAttrs(list)
	}
	return a
}

func (a alarms) WithGroup(name string) slog.Handler {
	if a.next != nil {
		a.next = a.next.WithGroup(name)
	}
	return a
}
