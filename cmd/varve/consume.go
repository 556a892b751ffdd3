package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

type consumeFlags struct {
	conn *connection
	out  *outputFlag

	fromBeginning, exitAtEnd, quiet bool
	offset, timestamp               string
	max                             int64
	partitions                      []int32
	group, format, null, isolation  string
	timeout                         time.Duration
}

func consumeCommand() *cobra.Command {
	f := &consumeFlags{isolation: "read_uncommitted"}
	cmd := &cobra.Command{
		Use:   "consume TOPIC",
		Short: "Print the records of a topic",
		Long: `Prints records from where the flags say (default: those that arrive from now on) until Ctrl-C, --max, --timeout or
--exit-at-end. Order holds within a partition.

Format verbs:
` + formatHelp,
		Example: `  varve consume clicks --from-beginning --exit-at-end --format '%p %o %T %k %v\n'
  varve consume clicks --offset -10 --partition 0 --max 10 -o json
  varve consume clicks --timestamp 2026-01-31T00:00:00Z --timeout 5s`,
		Args: arguments("the topic's name", 1, 1),
	}
	f.conn = addConnection(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&f.fromBeginning, "from-beginning", false, "from the first record there is; the same as --offset earliest")
	fl.StringVar(&f.offset, "offset", "latest", "earliest, latest, an offset, or -N for the last N of each partition")
	fl.StringVar(&f.timestamp, "timestamp", "", "from the first record at or after: ms since 1970, RFC 3339, a date, or -15m")
	fl.VarP(intValue{&f.max, 1, math.MaxInt64, "a number from 1"}, "max", "n", "end after this many records")
	fl.Lookup("max").DefValue = ""
	fl.Int32SliceVarP(&f.partitions, "partition", "p", nil, "only these partitions (default: all)")
	fl.StringVarP(&f.group, "group", "g", "", "consume as a member of this group and commit what was printed; --offset and --timestamp hold where it has no commit")
	fl.StringVarP(&f.format, "format", "f", `%v\n`, "what to print for a record")
	fl.StringVar(&f.null, "null-marker", "", "what a null key or value prints as")
	fl.Var(oneOf{&f.isolation, []string{"read_uncommitted", "read_committed"}}, "isolation", "read_committed leaves out aborted and open transactions")
	fl.Var(durationValue{d: &f.timeout}, "timeout", "end when no record came for this long")
	fl.Lookup("timeout").DefValue = ""
	fl.BoolVarP(&f.exitAtEnd, "exit-at-end", "e", false, "end at what was the end of each partition when the command started")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "no progress and no notes on stderr; errors still show")
	f.out = addOutput(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) }
	return cmd
}

// startAt is where to begin in each partition, as the flags say it.
type startAt struct {
	kind string // "earliest", "latest", "offset", "last", "timestamp"
	n    int64  // offset, number of records, or ms
}

func (f *consumeFlags) start(cmd *cobra.Command, now time.Time) (startAt, error) {
	set := cmd.Flags().Changed
	if (set("offset") && set("timestamp")) || (f.fromBeginning && (set("offset") || set("timestamp"))) {
		return startAt{}, usagef("--from-beginning, --offset and --timestamp each say where to begin; give one of them")
	}
	if set("timestamp") {
		t, err := parseTime(f.timestamp, now)
		if err != nil {
			return startAt{}, usagef("--timestamp: %w", err)
		}
		return startAt{"timestamp", sinceMs(t)}, nil
	}
	if f.fromBeginning {
		return startAt{kind: "earliest"}, nil
	}
	return parseOffset(f.offset)
}

func parseOffset(s string) (startAt, error) {
	switch s {
	case "earliest", "latest":
		return startAt{kind: s}, nil
	}
	digits, last := strings.CutPrefix(s, "-")
	n, err := strconv.ParseUint(digits, 10, 63)
	switch {
	case err != nil || (last && n == 0):
		return startAt{}, usagef("--offset %q: must be earliest, latest, an offset like 42, or -10 for the last 10", s)
	case last:
		return startAt{"last", int64(n)}, nil
	}
	return startAt{"offset", int64(n)}, nil
}

// appender is a way of printing a record.
type appender interface {
	append(dst []byte, r *kgo.Record) []byte
}

func (f *consumeFlags) run(cmd *cobra.Command, topic string) error {
	ctx := cmd.Context()
	set := cmd.Flags().Changed
	if err := checkTopicName(topic); err != nil {
		return err
	}
	at, err := f.start(cmd, time.Now())
	if err != nil {
		return err
	}
	var form appender = newJSONFormat()
	if !f.out.json() {
		if form, err = parseFormat(f.format, f.null); err != nil {
			return usagef("--format: %w", err)
		}
	}
	switch {
	case f.out.json() && (set("format") || set("null-marker")):
		return usagef("--format and --null-marker are for -o text; with -o json every field is there")
	case set("group") && f.group == "":
		return usagef("--group: the name is empty")
	case f.group != "" && (set("partition") || f.exitAtEnd):
		return usagef("--partition and --exit-at-end do not go with --group, which assigns partitions; --timeout ends a group member")
	case f.group != "" && (at.kind == "offset" || at.kind == "last"):
		return usagef("--offset with --group must be earliest or latest: it holds where the group has no commit")
	}
	for i, p := range f.partitions {
		if p < 0 {
			return usagef("--partition %d: must be a number from 0", p)
		}
		for _, q := range f.partitions[:i] {
			if p == q {
				return usagef("--partition %d is given twice", p)
			}
		}
	}

	c := &consumption{f: f, cmd: cmd, topic: topic, form: form, out: bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)}
	c.progress = !f.quiet && cmd.ErrOrStderr() == os.Stderr && isTerminal(os.Stderr) && !isTerminal(os.Stdout)
	if f.group != "" {
		err = c.openGroup(ctx, at)
	} else {
		err = c.openPartitions(ctx, at)
	}
	if err != nil {
		return err
	}
	defer c.cl.CloseAllowingRebalance()
	err = c.run(ctx)
	if c.progress {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	if ferr := c.out.Flush(); err == nil || errors.As(err, new(signalled)) {
		if ferr != nil {
			err = fmt.Errorf("writing: %w", ferr)
		}
	}
	if f.group != "" && err == nil {
		// Records that were printed are committed; after a failed write nobody saw the last ones.
		commitCtx, cancel := context.WithTimeout(context.Background(), f.conn.wait)
		defer cancel()
		if cerr := c.cl.CommitMarkedOffsets(commitCtx); cerr != nil {
			err = fmt.Errorf("committing offsets of group %s: %w", f.group, f.conn.explain(cerr))
		}
	}
	return err
}

// consumption is one run of consume.
type consumption struct {
	f     *consumeFlags
	cmd   *cobra.Command
	topic string
	form  appender
	out   *bufio.Writer
	cl    *kgo.Client

	endSearch // --exit-at-end

	count    int64
	bytes    int64
	progress bool
	lost     error // data loss that the client noticed
	away     bool  // from the group, and there was no record since
}

func (c *consumption) baseOptions() []kgo.Opt {
	level := kgo.ReadUncommitted()
	if c.f.isolation == "read_committed" {
		level = kgo.ReadCommitted()
	}
	// The client holds one fetch per broker in advance: these two bound its memory, before decompression.
	return []kgo.Opt{kgo.FetchIsolationLevel(level), kgo.FetchMaxBytes(32 << 20), kgo.FetchMaxPartitionBytes(8 << 20), kgo.FetchMaxWait(500 * time.Millisecond)}
}

func (c *consumption) openGroup(ctx context.Context, at startAt) error {
	reset := kgo.NewOffset().AtEnd()
	switch at.kind {
	case "earliest":
		reset = kgo.NewOffset().AtStart()
	case "timestamp":
		reset = kgo.NewOffset().AfterMilli(at.n)
	}
	cl, err := c.f.conn.open(ctx, append(c.baseOptions(), kgo.ConsumerGroup(c.f.group), kgo.ConsumeTopics(c.topic),
		kgo.ConsumeStartOffset(reset), kgo.AutoCommitMarks(), kgo.BlockRebalanceOnPoll())...)
	if err != nil {
		return err
	}
	if _, err := c.lookUp(ctx, cl); err != nil {
		cl.CloseAllowingRebalance()
		return err
	}
	c.cl = cl
	return nil
}

// lookUp asks for the topic, so that one that does not exist is an error and not an endless wait.
func (c *consumption) lookUp(ctx context.Context, cl *kgo.Client) (kadm.TopicDetail, error) {
	ctx, cancel := context.WithTimeout(ctx, c.f.conn.wait)
	defer cancel()
	details, err := kadm.NewClient(cl).ListTopicsWithInternal(ctx, c.topic)
	if err != nil {
		return kadm.TopicDetail{}, fmt.Errorf("looking up topic %s: %w", c.topic, c.f.conn.explain(err))
	}
	d, ok := details[c.topic]
	if !ok {
		d.Err = kerr.UnknownTopicOrPartition
	}
	if d.Err != nil {
		return d, fmt.Errorf("topic %s: %w", c.topic, brokerError(d.Err, ""))
	}
	return d, nil
}

// openPartitions resolves where each partition begins and ends before it consumes, so that what is impossible is said
// at once and the client never has to reset.
func (c *consumption) openPartitions(ctx context.Context, at startAt) error {
	lookup, err := c.f.conn.open(ctx)
	if err != nil {
		return err
	}
	defer lookup.Close()
	d, err := c.lookUp(ctx, lookup)
	if err != nil {
		return err
	}
	parts := c.f.partitions
	if len(parts) == 0 {
		for p := range d.Partitions {
			parts = append(parts, p)
		}
	}
	for _, p := range parts {
		if _, ok := d.Partitions[p]; !ok {
			return fmt.Errorf("--partition %d: topic %s has %s", p, c.topic, partitionRange(len(d.Partitions)))
		}
	}
	sort.Slice(parts, func(i, j int) bool { return parts[i] < parts[j] })

	bounds, err := c.bounds(ctx, kadm.NewClient(lookup), parts, at)
	if err != nil {
		return err
	}
	begin := make(map[int32]kgo.Offset, len(parts))
	if c.f.exitAtEnd {
		c.endSearch = newEndSearch()
	}
	beyond := 0
	for _, p := range parts {
		b := bounds[p]
		from, note, over := at.resolve(b)
		if over {
			beyond++
		}
		if note != "" && !c.f.quiet {
			fmt.Fprintf(c.cmd.ErrOrStderr(), "varve: %s partition %d: %s\n", visible(c.topic), p, note)
		}
		begin[p] = kgo.NewOffset().At(from)
		if c.f.exitAtEnd && from < b.end {
			c.ends[p], c.next[p] = b.end, from
		}
	}
	if beyond == len(parts) {
		b := bounds[parts[0]]
		if len(parts) == 1 {
			return fmt.Errorf("--offset %d is beyond the end of %s partition %d, whose offsets are %d to %d", at.n, c.topic, parts[0], b.start, b.end)
		}
		return fmt.Errorf("--offset %d is beyond the end of every partition of %s", at.n, c.topic)
	}
	cl, err := c.f.conn.open(ctx, append(c.baseOptions(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{c.topic: begin}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // a gap must be an error, not a silent jump
		kgo.KeepControlRecords(),                    // the last record of a partition may be a transaction marker
	)...)
	if err != nil {
		return err
	}
	c.cl = cl
	return nil
}

// partitionBounds are the offsets of one partition when the command started.
type partitionBounds struct {
	start, end int64
	atTime     int64 // first offset at or after --timestamp; the end if there is none
}

// resolve says where to begin, a note if that is not where the person said, and whether it is beyond the end.
func (at startAt) resolve(b partitionBounds) (from int64, note string, beyond bool) {
	switch at.kind {
	case "earliest":
		return b.start, "", false
	case "last":
		return max(b.start, b.end-min(at.n, b.end)), "", false
	case "timestamp":
		return b.atTime, "", false
	case "offset":
		if at.n < b.start {
			return b.start, fmt.Sprintf("offset %d is gone; beginning at %d, the first there is", at.n, b.start), false
		}
		if at.n > b.end {
			return b.end, "", true
		}
		return at.n, "", false
	}
	return b.end, "", false
}

func (c *consumption) bounds(ctx context.Context, adm *kadm.Client, parts []int32, at startAt) (map[int32]partitionBounds, error) {
	ctx, cancel := context.WithTimeout(ctx, c.f.conn.wait)
	defer cancel()
	list := func(what string, l kadm.ListedOffsets, err error) (func(int32) (int64, error), error) {
		if err != nil {
			return nil, fmt.Errorf("asking for the %s of %s: %w", what, c.topic, c.f.conn.explain(err))
		}
		return func(p int32) (int64, error) {
			o, ok := l.Lookup(c.topic, p)
			if !ok {
				o.Err = errors.New("the broker did not answer for it")
			}
			if o.Err != nil {
				return 0, fmt.Errorf("asking for the %s of %s partition %d: %w", what, c.topic, p, brokerError(o.Err, ""))
			}
			return o.Offset, nil
		}, nil
	}
	l, err := adm.ListStartOffsets(ctx, c.topic)
	starts, err := list("first offset", l, err)
	if err != nil {
		return nil, err
	}
	if c.f.isolation == "read_committed" {
		l, err = adm.ListCommittedOffsets(ctx, c.topic)
	} else {
		l, err = adm.ListEndOffsets(ctx, c.topic)
	}
	ends, err := list("end", l, err)
	if err != nil {
		return nil, err
	}
	var times func(int32) (int64, error)
	if at.kind == "timestamp" {
		l, err = adm.ListOffsetsAfterMilli(ctx, at.n, c.topic)
		if times, err = list("offset at the timestamp", l, err); err != nil {
			return nil, err
		}
	}
	out := make(map[int32]partitionBounds, len(parts))
	for _, p := range parts {
		var b partitionBounds
		if b.start, err = starts(p); err != nil {
			return nil, err
		}
		if b.end, err = ends(p); err != nil {
			return nil, err
		}
		if times != nil {
			if b.atTime, err = times(p); err != nil {
				return nil, err
			}
			if b.atTime < 0 {
				b.atTime = b.end
			}
		}
		out[p] = b
	}
	return out, nil
}

// maxPoll bounds how much is printed between two looks at the clock and the signals.
const maxPoll = 10000

func (c *consumption) run(ctx context.Context) error {
	f := c.f
	started := time.Now()
	last, shown := started, started
	c.progressed(started)
	var buf []byte
	for {
		if c.ends != nil && len(c.ends) == 0 {
			return c.lost
		}
		n := maxPoll
		if f.max > 0 {
			n = int(min(int64(n), f.max-c.count))
		}
		var until time.Time // zero: without an end
		if f.timeout > 0 {
			until = last.Add(f.timeout)
		}
		wake := until
		if c.ends != nil && (wake.IsZero() || c.at.Before(wake)) {
			wake = c.at
		}
		pollCtx, cancel := ctx, context.CancelFunc(func() {})
		if !wake.IsZero() {
			pollCtx, cancel = context.WithDeadline(ctx, wake)
		}
		fs := c.cl.PollRecords(pollCtx, n)
		cancel()

		got := false // a record of a partition that is not at its end
		for r := range fs.RecordsAll() {
			if _, open := c.ends[r.Partition]; open || c.ends == nil {
				got, last, c.away = true, time.Now(), false
			}
			if !c.wanted(r) {
				continue
			}
			buf = c.form.append(buf[:0], r)
			if _, err := c.out.Write(buf); err != nil {
				return fmt.Errorf("writing: %w", err)
			}
			c.count++
			c.bytes += int64(len(r.Key) + len(r.Value))
		}
		if err := c.out.Flush(); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		if f.group != "" {
			// Marked only now that it is written: what is committed was seen.
			c.cl.MarkCommitRecords(fs.Records()...)
			c.cl.AllowRebalance()
		}
		if err := c.errors(fs); err != nil {
			return err
		}
		if c.progress && time.Since(shown) > 500*time.Millisecond {
			shown = time.Now()
			s := time.Since(started).Seconds()
			fmt.Fprintf(os.Stderr, "\r\x1b[K%d records, %s, %s/s", c.count, humanBytes(c.bytes), humanBytes(int64(float64(c.bytes)/s)))
		}
		if c.ends != nil && !time.Now().Before(c.at) {
			c.look(ctx, until)
		}
		silent := !got && !until.IsZero() && !time.Now().Before(until)
		switch {
		case f.max > 0 && c.count >= f.max:
			return c.lost
		case ctx.Err() != nil:
			if f.max == 0 && !f.exitAtEnd {
				return c.lost // an endless consume ends in this way
			}
			return fmt.Errorf("%w after %d records", context.Cause(ctx), c.count)
		case silent && c.atEnd():
			return c.lost
		case silent:
			return c.timedOut()
		}
	}
}

func (c *consumption) atEnd() bool { return c.ends != nil && len(c.ends) == 0 }

// timedOut is the end by --timeout: an error only if more had been asked for.
func (c *consumption) timedOut() error {
	switch {
	case c.lost != nil:
		return c.lost
	case c.f.max > 0:
		return fmt.Errorf("no record for %s: %d of %d records came", c.f.timeout, c.count, c.f.max)
	case c.f.exitAtEnd:
		return fmt.Errorf("no record for %s: %d partitions are not at their end", c.f.timeout, len(c.ends))
	}
	return nil
}

// wanted keeps the account of --exit-at-end and says whether to print a record.
func (c *consumption) wanted(r *kgo.Record) bool {
	if c.ends != nil {
		end, open := c.ends[r.Partition]
		if !open {
			return false
		}
		c.progressed(time.Now())
		c.found(r.Partition, r.Offset+1)
		if r.Offset >= end {
			return false
		}
	}
	return !r.Attrs.IsControl()
}

// joinsAgain says whether a member that has lost its group for that reason will be one again, as after a restart of the
// coordinator: all but what somebody has to change first.
func joinsAgain(err error) bool {
	var ke *kerr.Error
	if !errors.As(err, &ke) {
		return true // no answer
	}
	switch ke {
	case kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.FencedMemberEpoch, kerr.StaleMemberEpoch, kerr.RebalanceInProgress:
		return true
	}
	return ke.Retriable
}

func (c *consumption) note(err error) {
	if !c.f.quiet {
		fmt.Fprintln(c.cmd.ErrOrStderr(), "varve: "+visible(err.Error()))
	}
}

// errors returns the first error of a poll that ends the run.
func (c *consumption) errors(fs kgo.Fetches) error {
	var fatal error
	fs.EachError(func(topic string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		var session *kgo.ErrGroupSession
		switch {
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		case errors.As(err, &loss):
			c.lost = fmt.Errorf("%s partition %d: records from %d to %d were lost by the cluster", topic, partition, loss.ResetTo, loss.ConsumedTo)
			c.note(c.lost)
		case errors.As(err, &session) && joinsAgain(session.Err):
			if !c.away {
				c.away = true
				c.note(fmt.Errorf("group %s: not a member for now, joining again: %w", c.f.group, c.f.conn.explain(session.Err)))
			}
		case fatal == nil && errors.Is(err, kerr.OffsetOutOfRange):
			fatal = fmt.Errorf("%s partition %d: the next offset is gone: retention or a deletion moved the log start past it while it was read (%w)", topic, partition, err)
		case fatal == nil:
			fatal = fmt.Errorf("consuming %s partition %d: %w", topic, partition, c.f.conn.explain(err))
		}
	})
	return fatal
}
