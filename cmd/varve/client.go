package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const defaultBootstrap = "127.0.0.1:9092"

// connection is what every client command has: where the brokers are and how long to wait for an answer.
type connection struct {
	bootstrap string
	wait      time.Duration
}

// addConnection adds the connection flags to a command and to all below it.
func addConnection(cmd *cobra.Command) *connection {
	c := &connection{wait: 30 * time.Second}
	f := cmd.PersistentFlags()
	f.StringVarP(&c.bootstrap, "bootstrap-server", "b", defaultBootstrap, "brokers to start from, host:port[,host:port...]")
	f.Var(durationValue{d: &c.wait}, "request-timeout", "how long to wait for a broker's answer")
	return c
}

func (c *connection) seeds() ([]string, error) {
	var seeds []string
	for _, s := range strings.Split(c.bootstrap, ",") {
		s = strings.TrimSpace(s)
		host, port, err := net.SplitHostPort(s)
		if err != nil || host == "" {
			return nil, usagef("--bootstrap-server %q: must be host:port, like %s", s, defaultBootstrap)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, usagef("--bootstrap-server %q: the port must be from 1 to 65535", s)
		}
		seeds = append(seeds, s)
	}
	return seeds, nil
}

// open connects and makes sure that a broker answers, so that everything after it can tell "no broker" from "the
// broker says no".
func (c *connection) open(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	seeds, err := c.seeds()
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(seeds...),
		kgo.ClientID("varve-cli"),
		kgo.DialTimeout(min(c.wait, 10*time.Second)),
		// The first exchange on a connection heeds this alone and no context; the client takes no less than 100 ms.
		kgo.RequestTimeoutOverhead(max(min(c.wait, 10*time.Second), 100*time.Millisecond)),
		kgo.RetryTimeout(c.wait),
		kgo.MetadataMinAge(250 * time.Millisecond), // a topic that was just created is looked up soon
		kgo.DisableClientMetrics(),
	}, opts...)...)
	if err != nil {
		return nil, usageError{err} // options that contradict each other
	}
	pingCtx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	if err := cl.Ping(pingCtx); err != nil {
		cl.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, c.unreachable(err)
	}
	return cl, nil
}

func (c *connection) unreachable(err error) error {
	hint := "is a broker running there? `varve dev` starts one, --bootstrap-server names another"
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cannot reach %s: connection refused; %s", c.bootstrap, hint)
	case errors.As(err, &dns):
		return fmt.Errorf("cannot reach %s: the name %q does not resolve; correct --bootstrap-server", c.bootstrap, dns.Name)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("cannot reach %s: no answer within %s; %s", c.bootstrap, c.wait, hint)
	}
	return fmt.Errorf("cannot reach %s: %w; %s", c.bootstrap, err, hint)
}

// admin opens a client for admin requests and a context that bounds them.
func (c *connection) admin(ctx context.Context) (*session, error) {
	cl, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	reqCtx, cancel := context.WithTimeout(ctx, c.wait)
	adm := kadm.NewClient(cl)
	adm.SetTimeoutMillis(int32(min(c.wait.Milliseconds(), 1<<30)))
	return &session{Client: adm, kgo: cl, ctx: reqCtx, parent: ctx, conn: c, cancel: cancel}, nil
}

// session is one admin command's client. Its context bounds the whole command: admin commands are short.
type session struct {
	*kadm.Client
	kgo    *kgo.Client
	ctx    context.Context
	parent context.Context
	conn   *connection
	cancel func()
}

// renew gives a command that goes on for longer the time for another answer.
func (s *session) renew() {
	s.cancel()
	s.ctx, s.cancel = context.WithTimeout(s.parent, s.conn.wait)
}

func (s *session) close() {
	s.cancel()
	s.kgo.Close()
}

// everyBroker asks each broker, and calls f with the answer and the id of each that gave one. It returns the first error:
// of a broker that did not answer, or of f.
func everyBroker[R kmsg.Response](s *session, req kmsg.Request, f func(id int32, resp R) error) (first error) {
	for _, shard := range s.kgo.RequestSharded(s.ctx, req) {
		err := shard.Err
		if err == nil {
			err = f(shard.Meta.NodeID, shard.Resp.(R))
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// failed says what was attempted and why it failed, in words that help.
func (s *session) failed(what string, err error) error {
	if s.parent.Err() != nil {
		return context.Cause(s.parent)
	}
	return fmt.Errorf("%s: %w", what, s.conn.explain(err))
}

// explain rewords the errors that a person meets most.
func (c *connection) explain(err error) error {
	var shards *kadm.ShardErrors
	if errors.As(err, &shards) && len(shards.Errs) > 0 {
		err = shards.Errs[0].Err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %s within %s (--request-timeout)", c.bootstrap, c.wait)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("a broker refused the connection; its advertised.listeners must be reachable from here: %w", err)
	}
	return brokerError(err, "")
}

// brokerError words a Kafka error: what it means, then its name for those who search for it. A message from the broker
// itself is better than any general one.
func brokerError(err error, message string) error {
	var ke *kerr.Error
	if !errors.As(err, &ke) {
		return err
	}
	if message != "" && message != ke.Message {
		return codedError{fmt.Sprintf("%s (%s)", strings.TrimSuffix(message, "."), ke.Message), ke}
	}
	text := map[*kerr.Error]string{
		kerr.UnknownTopicOrPartition: "it does not exist; `varve topic list` shows what does, `varve topic create` makes it",
		kerr.TopicAlreadyExists:      "it exists already; --if-not-exists accepts that",
		kerr.MessageTooLarge:         "the batch is above the topic's max.message.bytes; lower --batch-bytes or raise the setting",
		kerr.NotEnoughReplicas:       "too few replicas in sync, or the broker's WAL is at its bound",
		kerr.GroupIDNotFound:         "the group does not exist; `varve group list` shows what does",
		kerr.NonEmptyGroup:           "the group has members; stop its consumers, or wait until their sessions have timed out (`varve group describe` shows them)",
		kerr.TransactionalIDNotFound: "the transactional id is not known; `varve txn list` shows what is",
		kerr.CoordinatorNotAvailable: "the coordinator is not available",
	}[ke]
	if text == "" {
		text = strings.TrimSuffix(ke.Description, ".")
	}
	return codedError{fmt.Sprintf("%s (%s)", text, ke.Message), ke}
}

// codedError has the words of brokerError and still is the Kafka error for errors.Is.
type codedError struct {
	text string
	kind error
}

func (e codedError) Error() string { return e.text }
func (e codedError) Unwrap() error { return e.kind }

// joinErrors is one error of several, on one line.
func joinErrors(errs []error) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	texts := make([]string, 0, 4)
	for i, e := range errs {
		if i == 3 {
			texts = append(texts, fmt.Sprintf("and %d more", len(errs)-i))
			break
		}
		texts = append(texts, e.Error())
	}
	return joined{strings.Join(texts, "; "), errs}
}

type joined struct {
	text string
	errs []error
}

func (j joined) Error() string   { return j.text }
func (j joined) Unwrap() []error { return j.errs }
