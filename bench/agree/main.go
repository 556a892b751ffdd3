// Command agree loads one broker with varve bench and with the generators that
// others trust, in turn: kafka-producer-perf-test and kafka-consumer-perf-test,
// and rdkafka_performance where it is named. A generator that is wrong shows as
// one that differs from the others.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
)

var (
	binary  = flag.String("varve", "bin/varve", "Varve's binary")
	jars    = flag.String("kafka-jars", "", "a folder with Kafka's tools and what they need (default: what make interop has installed)")
	rdkafka = flag.String("rdkafka", "", "librdkafka's rdkafka_performance, as its examples build it (default: left out)")
	seconds = flag.Float64("seconds", 8, "how long each measures")
	rounds  = flag.Int("rounds", 3, "how often, in turn; medians are shown")
	dir     = flag.String("dir", "", "where the broker's data goes (default: the temporary directory)")
	linger  = flag.Int("linger", 5, "how long a batch waits for more records, ms")
	delay   = flag.Duration("delay", 0, "how far away the broker is made to be, to and fro: latencies that a client's own way of counting is a small part of")
	rates   = flag.String("rates", "5000,20000,0", "offered records/s; 0: as fast as they are taken; empty: only what is read")
)

// The load is the same for all: one producer, records of 1 KiB, batches of 16
// KiB, acks=all, five requests in flight, no idempotence. librdkafka
// has a partition in a request, so that five of those would be all that it waits
// for: its number of requests is left at its default.
const (
	record     = 1024
	batch      = 16384
	inFlight   = 5
	partitions = 16
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "agree:", err)
		os.Exit(1)
	}
}

// figures are what a generator says of a run: records a second, and latencies in
// milliseconds, which are 0 where it does not say them.
type figures struct{ rate, mean, p50, p99 float64 }

// generator runs a load against topic: rate records a second (0: as many as are
// taken) for about the time that count records take, or reads count of them.
type generator struct {
	name    string
	produce func(ctx context.Context, topic string, rate float64, count int) (figures, error)
	consume func(ctx context.Context, topic string, count int) (figures, error)
}

type agree struct {
	addr string
	java []string // up to the class
}

func run(ctx context.Context) error {
	if *jars == "" {
		if cache, err := os.UserCacheDir(); err == nil {
			if found, _ := filepath.Glob(filepath.Join(cache, "varve-interop", "java-*", "jars")); len(found) > 0 {
				*jars = found[len(found)-1]
			}
		}
		if *jars == "" {
			return errors.New("the tools of Kafka are not there: make interop installs them, -kafka-jars names another folder")
		}
	}
	tmp, err := os.MkdirTemp(*dir, "varve-agree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if *binary, err = filepath.Abs(*binary); err != nil {
		return err
	}
	settings := []string{"remote.flush.interval.ms=600000", "remote.object.bytes=1099511627776", "wal.max.bytes=17179869184"}
	var far net.Listener
	if *delay > 0 {
		if far, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		defer far.Close()
		settings = append(settings, "advertised.listeners=PLAINTEXT://"+far.Addr().String())
	}
	b, err := child.StartVarve(ctx, *binary, tmp, settings...)
	if err != nil {
		return err
	}
	defer b.Kill()
	addr := b.Addr
	if far != nil {
		addr = far.Addr().String()
		go passOn(far, b.Addr, *delay/2)
	}
	a := &agree{addr: addr, java: []string{"-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", filepath.Join(*jars, "*")}}
	all := []generator{{"varve bench", a.varveProduce, a.varveConsume}, {"kafka-*-perf-test", a.javaProduce, a.javaConsume}}
	if *rdkafka != "" {
		all = append(all, generator{"rdkafka_performance", a.rdkafkaProduce, a.rdkafkaConsume})
	}

	head := []string{"offered"}
	for _, g := range all {
		head = append(head, g.name, "")
	}
	fmt.Printf("| %s |\n|%s\n", strings.Join(head[:len(head)-1], " | ")+" | ", strings.Repeat("---|", len(head)))
	const most = 200_000 // records for each second of a run without a rate, of those that are told a number and not a time
	topics := 0
	for f := range strings.SplitSeq(*rates, ",") {
		if f == "" {
			continue
		}
		rate, err := strconv.ParseFloat(strings.TrimSpace(f), 64)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%.0f records/s", rate)
		count := int(rate * *seconds)
		if rate == 0 {
			what, count = "as fast as they are taken", int(most**seconds)
		}
		if err := a.compare(what, all, func(g generator) (figures, error) {
			topics++
			topic := fmt.Sprintf("agree-%d", topics)
			if err := a.create(ctx, topic); err != nil {
				return figures{}, err
			}
			defer output(ctx, *binary, "topic", "delete", topic, "--bootstrap-server", a.addr) // the disk is finite
			return g.produce(ctx, topic, rate, count)
		}); err != nil {
			return err
		}
	}
	// What is read is the same for all.
	if err := a.create(ctx, "agree-read"); err != nil {
		return err
	}
	count := int(most * *seconds) // so much that starting is a small part of it
	if _, err := a.javaProduce(ctx, "agree-read", 0, count); err != nil {
		return err
	}
	// The first to read has the disk to wait for, as the log was written around the page cache.
	if _, err := a.varveConsume(ctx, "agree-read", count); err != nil {
		return err
	}
	return a.compare(fmt.Sprintf("%d records, read", count), all, func(g generator) (figures, error) { return g.consume(ctx, "agree-read", count) })
}

// passOn takes connections and passes on to addr what they bring, and back, each byte d later, until the listener is closed.
func passOn(l net.Listener, addr string, d time.Duration) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", addr)
		if err != nil {
			c.Close()
			continue
		}
		go later(far, c, d)
		go later(c, far, d)
	}
}

// later copies from one connection to another, each byte d after it came, and ends both.
func later(to, from net.Conn, d time.Duration) {
	type part struct {
		at    time.Time
		bytes []byte
	}
	parts := make(chan part, 1024) // what is on its way
	go func() {
		defer close(parts)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			if n > 0 {
				parts <- part{time.Now(), b[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range parts {
		time.Sleep(time.Until(p.at.Add(d)))
		if _, err := to.Write(p.bytes); err != nil {
			break
		}
	}
	to.Close()
	from.Close()
	for range parts { // so that the reader ends
	}
}

// compare runs the generators in turn, and prints their medians beside those of
// the first.
func (a *agree) compare(what string, all []generator, run func(generator) (figures, error)) error {
	got := make([][]figures, len(all))
	for round := range *rounds {
		for k := range all {
			i := k
			if round%2 == 1 {
				i = len(all) - 1 - k
			}
			f, err := run(all[i])
			if err != nil {
				return fmt.Errorf("%s, %s: %w", what, all[i].name, err)
			}
			fmt.Fprintf(os.Stderr, "%s, %s: %+v\n", what, all[i].name, f)
			got[i] = append(got[i], f)
		}
	}
	cells := []string{what}
	first := 0.0
	for i, fs := range got {
		of := func(get func(figures) float64) float64 {
			var vs []float64
			for _, f := range fs {
				vs = append(vs, get(f))
			}
			slices.Sort(vs)
			return vs[len(vs)/2]
		}
		rate := of(func(f figures) float64 { return f.rate })
		text := fmt.Sprintf("%.0f", rate)
		if mean := of(func(f figures) float64 { return f.mean }); mean > 0 {
			text += fmt.Sprintf("; mean %.2f ms, p50 %.2f, p99 %.2f", mean, of(func(f figures) float64 { return f.p50 }), of(func(f figures) float64 { return f.p99 }))
		}
		ratio := ""
		if i == 0 {
			first = rate
		} else {
			ratio = fmt.Sprintf("%.2f x", rate/first)
		}
		cells = append(cells, text, ratio)
	}
	cells = slices.Delete(cells, 2, 3) // the first has no ratio to itself
	fmt.Printf("| %s |\n", strings.Join(cells, " | "))
	return nil
}

func (a *agree) create(ctx context.Context, topic string) error {
	_, err := output(ctx, *binary, "topic", "create", topic, "--bootstrap-server", a.addr, "--partitions", strconv.Itoa(partitions))
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String() + errOut.String(), nil
}

// The warm-up of each is left out of its figures, where it can be.
const (
	warmup     = 2 * time.Second
	javaWarmup = 4 * time.Second // it falls behind its rate while it is compiled, and makes up for it
)

func (a *agree) varveProduce(ctx context.Context, topic string, rate float64, _ int) (figures, error) {
	args := []string{"bench", "produce", topic, "--bootstrap-server", a.addr, "--quiet", "-o", "json", "--batch-bytes", strconv.Itoa(batch), "--record-bytes", strconv.Itoa(record),
		"--linger", fmt.Sprintf("%dms", *linger), "--in-flight", strconv.Itoa(inFlight), "--warmup", warmup.String(), "--duration", fmt.Sprintf("%gs", *seconds)}
	if rate > 0 {
		args = append(args, "--rate", strconv.FormatFloat(rate, 'f', -1, 64))
	}
	res, err := a.varve(ctx, args)
	if err != nil {
		return figures{}, err
	}
	return figures{res.Produced.RecordsPerSecond, res.Ack.Mean, res.Ack.P50, res.Ack.P99}, nil
}

func (a *agree) varveConsume(ctx context.Context, topic string, _ int) (figures, error) {
	res, err := a.varve(ctx, []string{"bench", "replay", topic, "--bootstrap-server", a.addr, "--quiet", "-o", "json"})
	if err != nil {
		return figures{}, err
	}
	return figures{rate: res.Consumed.RecordsPerSecond}, nil
}

func (a *agree) varve(ctx context.Context, args []string) (*load.Result, error) {
	out, err := output(ctx, *binary, args...)
	if err != nil {
		return nil, err
	}
	var res load.Result
	return &res, json.NewDecoder(strings.NewReader(out)).Decode(&res)
}

func (a *agree) javaProduce(ctx context.Context, topic string, rate float64, count int) (figures, error) {
	throughput, warm := "-1", count/4
	if rate > 0 {
		throughput, warm = strconv.FormatFloat(rate, 'f', -1, 64), int(rate*javaWarmup.Seconds())
	}
	out, err := a.tool(ctx, "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", strconv.Itoa(count+warm), "--warmup-records", strconv.Itoa(warm),
		"--record-size", strconv.Itoa(record), "--throughput", throughput, "--bootstrap-server", a.addr, "--command-property", "acks=all", "enable.idempotence=false",
		fmt.Sprintf("batch.size=%d", batch), fmt.Sprintf("linger.ms=%d", *linger), fmt.Sprintf("max.in.flight.requests.per.connection=%d", inFlight))
	if err != nil {
		return figures{}, err
	}
	return producerPerf(out)
}

func (a *agree) javaConsume(ctx context.Context, topic string, count int) (figures, error) {
	out, err := a.tool(ctx, "org.apache.kafka.tools.ConsumerPerformance", "--topic", topic, "--num-records", strconv.Itoa(count), "--bootstrap-server", a.addr, "--timeout", "30000", "--hide-header")
	if err != nil {
		return figures{}, err
	}
	return consumerPerf(out)
}

func (a *agree) tool(ctx context.Context, class string, args ...string) (string, error) {
	return output(ctx, "java", slices.Concat(a.java, []string{class}, args)...)
}

func (a *agree) rdkafkaArgs(topic string, count int, more ...string) []string {
	return append([]string{"-b", a.addr, "-t", topic, "-c", strconv.Itoa(count)}, more...)
}

func (a *agree) rdkafkaProduce(ctx context.Context, topic string, rate float64, count int) (figures, error) {
	args := a.rdkafkaArgs(topic, count, "-P", "-s", strconv.Itoa(record), "-a", "-1", "-X", fmt.Sprintf("batch.size=%d", batch), "-X", fmt.Sprintf("linger.ms=%d", *linger),
		"-X", "queue.buffering.max.kbytes=32768")
	if rate > 0 {
		args = append(args, "-r", strconv.FormatFloat(rate, 'f', -1, 64))
	}
	out, err := output(ctx, *rdkafka, args...)
	if err != nil {
		return figures{}, err
	}
	return rdkafkaPerf(out)
}

func (a *agree) rdkafkaConsume(ctx context.Context, topic string, count int) (figures, error) {
	group := fmt.Sprintf("agree-%d", time.Now().UnixNano())
	out, err := output(ctx, *rdkafka, a.rdkafkaArgs(topic, count, "-G", group, "-X", "auto.offset.reset=earliest")...)
	if err != nil {
		return figures{}, err
	}
	return rdkafkaPerf(out)
}

// number is a figure in the words of a tool: %s stands for it.
func number(text, pattern string) (float64, error) {
	re := regexp.MustCompile(strings.Replace(regexp.QuoteMeta(pattern), "%s", `([0-9.]+)`, 1))
	all := re.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return 0, fmt.Errorf("no %q in:\n%s", pattern, text)
	}
	return strconv.ParseFloat(all[len(all)-1][1], 64)
}

func numbers(text string, patterns ...string) ([]float64, error) {
	var out []float64
	for _, p := range patterns {
		v, err := number(text, p)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// producerPerf reads the last summary of kafka-producer-perf-test, which is that
// of its steady state where it has a warm-up.
func producerPerf(out string) (figures, error) {
	v, err := numbers(out, "%s records/sec", "%s ms avg latency", "%s ms 50th", "%s ms 99th")
	if err != nil {
		return figures{}, err
	}
	return figures{v[0], v[1], v[2], v[3]}, nil
}

// consumerPerf reads the line of kafka-consumer-perf-test: the last column is
// records a second without what joining the group took.
func consumerPerf(out string) (figures, error) {
	for line := range strings.Lines(out) {
		f := strings.Split(line, ",")
		if len(f) >= 10 {
			v, err := strconv.ParseFloat(strings.TrimSpace(f[9]), 64)
			if err == nil {
				return figures{rate: v}, nil
			}
		}
	}
	return figures{}, fmt.Errorf("no line of ten columns in:\n%s", out)
}

// rdkafkaPerf reads the last summary of rdkafka_performance.
func rdkafkaPerf(out string) (figures, error) {
	v, err := number(out, "%s msgs/s")
	return figures{rate: v}, err
}
