package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

type produceFlags struct {
	conn *connection
	out  *outputFlag

	acks, compression, input string
	idempotent               bool
	batchBytes               int64
	bufferBytes              int64
	linger, timeout          time.Duration
	partition                int64
	keySep, tsSep, delimiter string
	key, timestamp, null     string
	headers                  []string
	keepPartition, quiet     bool
}

func produceCommand() *cobra.Command {
	f := &produceFlags{
		acks: "all", compression: "none", input: "lines", partition: -1, delimiter: "\n",
		batchBytes: 1 << 20, bufferBytes: 64 << 20, linger: 5 * time.Millisecond, timeout: 2 * time.Minute,
	}
	cmd := &cobra.Command{
		Use:   "produce TOPIC",
		Short: "Produce records from lines on stdin",
		Long: `Reads lines from stdin and produces one record for each. The first record that fails ends it: what was read is
flushed, the report says how many records were acknowledged, and the exit code is 1. Ctrl-C ends it in the same way (a
second one kills). Memory is bounded (--buffer-bytes) whatever the length of the input.

With --input json every line is an object as 'varve consume -o json' prints it: key, value, headers, timestamp.`,
		Example: `  seq 1000 | varve produce numbers
  printf 'user1\tclick\nuser2\tNULL\n' | varve produce clicks --key-separator '\t' --null-marker NULL --header source=web
  varve consume old --from-beginning --exit-at-end -o json | varve produce new --input json --compression zstd`,
		Args: arguments("the topic's name", 1, 1),
	}
	f.conn = addConnection(cmd)
	fl := cmd.Flags()
	fl.Var(oneOf{&f.acks, []string{"all", "1", "0", "-1"}}, "acks", "who must have a record before it counts as written: all in-sync replicas, the leader, nobody")
	fl.BoolVar(&f.idempotent, "idempotent", true, "no duplicates when a request is sent again; needs --acks all (off by itself with other acks)")
	fl.VarP(oneOf{&f.compression, []string{"none", "gzip", "snappy", "lz4", "zstd"}}, "compression", "z", "compression of the batches")
	fl.Var(bytesValue{&f.batchBytes, 1 << 10, 64 << 20}, "batch-bytes", "largest batch before compression, and so the longest line")
	fl.Var(bytesValue{&f.bufferBytes, 1 << 20, 16 << 30}, "buffer-bytes", "records read and not yet acknowledged; reading waits at this bound")
	fl.Var(durationValue{&f.linger, true}, "linger", "how long a batch waits for more records")
	fl.Var(durationValue{d: &f.timeout}, "timeout", "fail when nothing was acknowledged for this long")
	fl.VarP(intValue{&f.partition, 0, math.MaxInt32, "a number from 0"}, "partition", "p", "produce to this partition (default: by the key's hash, as the Java client)")
	fl.Lookup("partition").DefValue = ""
	fl.VarP(escapedValue{&f.keySep}, "key-separator", "K", `a line is KEY, this separator, VALUE (escapes: \t \n \0 \xHH)`)
	fl.StringVarP(&f.key, "key", "k", "", "the key of every record")
	fl.StringArrayVarP(&f.headers, "header", "H", nil, "a header of every record, name=value (repeatable)")
	fl.StringVar(&f.timestamp, "timestamp", "", "the timestamp of every record: ms since 1970, RFC 3339, or -15m (default: now)")
	fl.Var(escapedValue{&f.tsSep}, "timestamp-separator", "a line is TIMESTAMP, this separator, the rest")
	fl.StringVar(&f.null, "null-marker", "", "a key or value that is exactly this is null")
	fl.Var(escapedValue{&f.delimiter}, "delimiter", "the byte that ends a line")
	fl.Var(oneOf{&f.input, []string{"lines", "json"}}, "input", "what a line is")
	fl.BoolVar(&f.keepPartition, "keep-partition", false, "with --input json: produce to the partition that the line names")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "no progress and no report on stderr; errors still show")
	f.out = addOutput(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) }
	return cmd
}

// format checks the flags about lines against each other.
func (f *produceFlags) format(cmd *cobra.Command, now time.Time) (*lineFormat, error) {
	set := cmd.Flags().Changed
	lf := &lineFormat{json: f.input == "json", keySep: []byte(f.keySep), timestampSep: []byte(f.tsSep), partition: int32(f.partition), keepPart: f.keepPartition}
	switch {
	case len(f.delimiter) != 1:
		return nil, usagef(`--delimiter: must be one byte, like \n or \0`)
	case set("key-separator") && f.keySep == "", set("timestamp-separator") && f.tsSep == "":
		return nil, usagef("a separator must not be empty")
	case set("key") && set("key-separator"):
		return nil, usagef("--key gives every record the same key, --key-separator takes it from the line; give one of the two")
	case set("timestamp") && set("timestamp-separator"):
		return nil, usagef("--timestamp gives every record the same timestamp, --timestamp-separator takes it from the line; give one of the two")
	case lf.json && (set("key-separator") || set("timestamp-separator") || set("null-marker")):
		return nil, usagef("--key-separator, --timestamp-separator and --null-marker are for --input lines; JSON says all of that itself")
	case f.keepPartition && !lf.json:
		return nil, usagef("--keep-partition needs --input json")
	case f.keepPartition && set("partition"):
		return nil, usagef("give --partition or --keep-partition, not both")
	case f.idempotent && set("idempotent") && f.acks != "all" && f.acks != "-1":
		return nil, usagef("--idempotent needs --acks all")
	}
	if set("key") {
		lf.key = []byte(f.key)
	}
	if set("null-marker") {
		lf.null = &f.null
	}
	if set("timestamp") {
		t, err := parseTime(f.timestamp, now)
		if err != nil {
			return nil, usagef("--timestamp: %w", err)
		}
		lf.timestamp = t
	}
	for _, h := range f.headers {
		name, value, err := keyValue("--header", h)
		if err != nil {
			return nil, err
		}
		lf.headers = append(lf.headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	lf.headers = lf.headers[:len(lf.headers):len(lf.headers)]
	return lf, nil
}

func (f *produceFlags) options(topic string) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.DefaultProduceTopic(topic),
		kgo.AllowAutoTopicCreation(), // the broker's auto.create.topics.enable decides
		kgo.ProducerLinger(f.linger),
		kgo.ProducerBatchMaxBytes(int32(f.batchBytes)),
		kgo.MaxBufferedBytes(int(max(f.bufferBytes, f.batchBytes))),
		// Many short lines: the bound in bytes counts what they hold, not the 300 bytes or so that each costs besides.
		kgo.MaxBufferedRecords(int(max(1000, f.bufferBytes/512))),
		// No RecordDeliveryTimeout: the client counts it from the record's own timestamp, so records of last year would
		// time out before they are sent. production keeps the time itself.
		kgo.ProduceRequestTimeout(min(f.timeout, 30*time.Second)),
	}
	switch f.acks {
	case "1":
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0":
		opts = append(opts, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()))
		if !f.idempotent {
			opts = append(opts, kgo.DisableIdempotentWrite())
		}
	}
	codec := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}[f.compression]
	opts = append(opts, kgo.ProducerBatchCompression(codec))
	if f.partition >= 0 || f.keepPartition {
		opts = append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	} else {
		opts = append(opts, kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	}
	return opts
}

func (f *produceFlags) run(cmd *cobra.Command, topic string) error {
	ctx := cmd.Context()
	if err := checkTopicName(topic); err != nil {
		return err
	}
	lf, err := f.format(cmd, time.Now())
	if err != nil {
		return err
	}
	in := cmd.InOrStdin()
	if in == os.Stdin && stdinClosed() {
		return errors.New("stdin is closed; pipe the lines to produce into it")
	}
	cl, err := f.conn.open(ctx, f.options(topic)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	if f.partition >= 0 {
		if err := f.checkPartition(ctx, cl, topic); err != nil {
			return err
		}
	}

	run := &production{cl: cl, lf: lf, delim: f.delimiter[0], maxLine: int(f.batchBytes), timeout: f.timeout, parts: map[int32]*producedPartition{}, failedC: make(chan struct{}), started: time.Now()}
	if lf.json {
		run.maxLine *= 8 // what is escaped or in base64 is longer in JSON than as a record
	}
	showProgress := !f.quiet && cmd.ErrOrStderr() == os.Stderr && isTerminal(os.Stderr)
	if in == os.Stdin && isTerminal(os.Stdin) {
		showProgress = false
		if !f.quiet {
			fmt.Fprintln(os.Stderr, "one record per line; Ctrl-D ends")
		}
	}
	stopped := run.run(ctx, in, func() {
		if showProgress {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s", run.status())
		}
	})
	if showProgress {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return f.report(cmd, topic, run, stopped)
}

// checkPartition refuses a partition that a topic does not have before anything is read. A topic that does not exist
// passes: it may be created by the first record.
func (f *produceFlags) checkPartition(ctx context.Context, cl *kgo.Client, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, f.conn.wait)
	defer cancel()
	details, err := kadm.NewClient(cl).ListTopics(ctx, topic)
	if err != nil {
		return fmt.Errorf("looking up topic %s: %w", topic, f.conn.explain(err))
	}
	if d, ok := details[topic]; ok && d.Err == nil {
		if _, ok := d.Partitions[int32(f.partition)]; !ok {
			return fmt.Errorf("--partition %d: topic %s has %s", f.partition, topic, partitionRange(len(d.Partitions)))
		}
	}
	return nil
}

func partitionRange(n int) string {
	if n == 1 {
		return "one partition, 0"
	}
	return fmt.Sprintf("%d partitions, 0 to %d", n, n-1)
}

// producedPartition is what was acknowledged in one partition.
type producedPartition struct {
	Partition   int32 `json:"partition"`
	Records     int64 `json:"records"`
	FirstOffset int64 `json:"first_offset"`
	LastOffset  int64 `json:"last_offset"`
}

// production is one run from the first line to the last acknowledgement.
//
// The reading goroutine parses lines and hands them to the client, which blocks it while the buffer is full. It ends at
// the end of the input, at the first line or record that fails, and when it is told to stop. It cannot be woken from
// a read of stdin: on Ctrl-C it is left there, and the process ends around it. After stop is closed it hands nothing
// more to the client, so that the counts of the report stand still.
type production struct {
	cl      *kgo.Client
	lf      *lineFormat
	delim   byte
	maxLine int
	timeout time.Duration
	started time.Time

	mu       sync.Mutex
	stopping bool
	read     int64     // lines handed to the client
	progress time.Time // of the last answer, or of the first record after a time with nothing on its way
	acked    int64
	bytes    int64 // of the keys, values and headers acknowledged
	failed   int64
	firstErr error
	failedC  chan struct{} // closed when firstErr is set
	parts    map[int32]*producedPartition
}

// grace is how long an interrupted run waits for what is already on its way.
const grace = 10 * time.Second

// run returns the cause if it was stopped from outside, else nil; tick is called twice a second.
func (p *production) run(ctx context.Context, in io.Reader, tick func()) error {
	// Not derived from ctx: an interrupt must not cancel records that are about to be acknowledged.
	sendCtx, abandon := context.WithCancel(context.Background())
	defer abandon()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		p.readAll(sendCtx, in)
	}()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	flushed := make(chan struct{})
	flush := func() {
		go func() {
			defer close(flushed)
			p.cl.Flush(sendCtx)
		}()
	}
	var cause error
	interrupted, done := ctx.Done(), finished
	var late <-chan time.Time
	failed := p.failedC
	stop := func() {
		p.mu.Lock()
		p.stopping = true
		p.mu.Unlock()
		if done != nil {
			// The reader may be in a read that never returns; what it handed over is flushed without it.
			done = nil
			flush()
		}
	}
	for {
		select {
		case now := <-ticker.C:
			tick()
			if p.overdue(now) {
				stop()
				return cause
			}
		case <-interrupted:
			cause = context.Cause(ctx)
			interrupted = nil
			late = time.After(grace)
			stop()
		case <-failed:
			failed = nil
			stop()
		case <-done:
			done = nil
			flush()
		case <-flushed:
			return cause
		case <-late:
			return cause
		}
	}
}

// overdue fails the run when records are on their way and no answer came for too long.
func (p *production) overdue(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read == p.acked+p.failed || now.Sub(p.progress) < p.timeout {
		return false
	}
	p.failLocked(fmt.Errorf("no acknowledgement for %s (--timeout)", p.timeout))
	return true
}

// fail keeps the first error and makes run stop.
func (p *production) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failLocked(err)
}

func (p *production) failLocked(err error) {
	if p.firstErr == nil {
		p.firstErr, p.stopping = err, true
		close(p.failedC)
	}
}

func (p *production) readAll(sendCtx context.Context, in io.Reader) {
	br := bufio.NewReaderSize(in, 256<<10)
	for line := int64(1); ; line++ {
		b, err := readLine(br, p.delim, p.maxLine)
		switch {
		case errors.Is(err, io.EOF):
			return
		case errors.Is(err, errLineTooLong):
			p.fail(fmt.Errorf("line %d is longer than %d bytes; raise --batch-bytes, and the topic's max.message.bytes with it", line, p.maxLine))
			return
		case err != nil:
			p.fail(fmt.Errorf("reading line %d: %w", line, err))
			return
		}
		r, err := p.lf.parse(b, time.Now())
		if err != nil {
			p.fail(fmt.Errorf("line %d: %w", line, err))
			return
		}
		p.mu.Lock()
		stop := p.stopping
		if !stop {
			if p.read == p.acked+p.failed {
				p.progress = time.Now()
			}
			p.read++
		}
		p.mu.Unlock()
		if stop {
			return
		}
		p.cl.Produce(sendCtx, r, func(r *kgo.Record, err error) { p.done(line, r, err) })
	}
}

func (p *production) done(line int64, r *kgo.Record, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress = time.Now()
	if err != nil {
		p.failed++
		p.failLocked(fmt.Errorf("line %d: %w", line, produceError(err)))
		return
	}
	p.acked++
	p.bytes += int64(len(r.Key) + len(r.Value))
	for _, h := range r.Headers {
		p.bytes += int64(len(h.Key) + len(h.Value))
	}
	part := p.parts[r.Partition]
	if part == nil {
		part = &producedPartition{Partition: r.Partition, FirstOffset: r.Offset, LastOffset: r.Offset}
		p.parts[r.Partition] = part
	}
	part.Records++
	part.FirstOffset = min(part.FirstOffset, r.Offset)
	part.LastOffset = max(part.LastOffset, r.Offset)
}

func produceError(err error) error {
	switch {
	case errors.Is(err, kgo.ErrMaxBuffered):
		return fmt.Errorf("larger than --buffer-bytes: %w", err)
	}
	return brokerError(err, "")
}

func (p *production) status() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := time.Since(p.started).Seconds()
	return fmt.Sprintf("%d records acknowledged, %s, %s/s, %d on their way", p.acked, humanBytes(p.bytes),
		humanBytes(int64(float64(p.bytes)/s)), p.read-p.acked-p.failed)
}

type produceReport struct {
	Topic        string               `json:"topic"`
	Acknowledged int64                `json:"acknowledged"`
	Failed       int64                `json:"failed"`
	Unknown      int64                `json:"unknown"` // sent or about to be, no answer when the run ended
	Bytes        int64                `json:"bytes"`   // of keys, values and headers acknowledged
	Seconds      float64              `json:"seconds"`
	Partitions   []*producedPartition `json:"partitions"`
	Error        string               `json:"error,omitempty"`
}

// report prints what was acknowledged and turns anything less than everything into an error. stopped is the signal
// that ended the run, if one did.
func (f *produceFlags) report(cmd *cobra.Command, topic string, p *production, stopped error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	rep := produceReport{Topic: topic, Acknowledged: p.acked, Failed: p.failed, Unknown: p.read - p.acked - p.failed,
		Bytes: p.bytes, Seconds: time.Since(p.started).Seconds(), Partitions: []*producedPartition{}}
	for _, part := range p.parts {
		if f.acks == "0" {
			// Nobody said at which offset these were written.
			part.FirstOffset, part.LastOffset = -1, -1
		}
		rep.Partitions = append(rep.Partitions, part)
	}
	sort.Slice(rep.Partitions, func(i, j int) bool { return rep.Partitions[i].Partition < rep.Partitions[j].Partition })
	word := "acknowledged"
	if f.acks == "0" {
		word = "sent"
	}
	counts := fmt.Sprintf("%d records %s", rep.Acknowledged, word)
	if rep.Failed > 0 {
		counts += fmt.Sprintf(", %d failed", rep.Failed)
	}
	if rep.Unknown > 0 {
		counts += fmt.Sprintf(", %d without an answer (they may or may not have been written)", rep.Unknown)
	}
	var err error
	switch {
	case stopped != nil && p.firstErr != nil:
		err = fmt.Errorf("%w; %s; %w", stopped, counts, p.firstErr)
	case stopped != nil:
		err = fmt.Errorf("%w; %s", stopped, counts)
	case p.firstErr != nil:
		err = fmt.Errorf("producing to %s: %w; %s", topic, p.firstErr, counts)
	}
	if err != nil {
		rep.Error = err.Error()
	}
	if f.out.json() {
		if werr := writeJSON(cmd.OutOrStdout(), rep); werr != nil && err == nil {
			err = fmt.Errorf("%s, but the report could not be written: %w", counts, werr)
		}
	} else if err == nil && !f.quiet {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s to %s, %s in %.1f s\n", counts, topic, humanBytes(rep.Bytes), rep.Seconds)
	}
	return err
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// stdinClosed reports whether the process was started with stdin closed. Go's runtime then puts /dev/null, opened for
// reading and writing, in its place; a redirection from /dev/null is opened for reading.
func stdinClosed() bool {
	var st, null unix.Stat_t
	if unix.Fstat(0, &st) != nil {
		return true
	}
	if unix.Stat("/dev/null", &null) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != null.Rdev {
		return false
	}
	flags, err := unix.FcntlInt(0, unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
}
