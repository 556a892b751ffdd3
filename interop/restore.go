package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
)

// Kafka Streams and Kafka Connect keep what they know in compacted topics. Here these are compacted in object storage, the
// broker loses its local log, and both begin anew with nothing of their own.

const (
	restoreWords = 200 // of the table
	restoreTimes = 20  // that each is counted before
)

// restore runs the checks on a broker of its own. Each needs the one before it.
func (h *harness) restore(ctx context.Context, varve string) {
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	dir := filepath.Join(h.work, "restore")
	settings := []string{"remote.flush.interval.ms=200", "log.cleaner.backoff.ms=200", "log.cleaner.min.cleanable.ratio=0.01", "offsets.topic.num.partitions=2", "transaction.state.log.num.partitions=2"}
	broker, err := startVarve(ctx, varve, filepath.Join(dir, "broker"), settings...)
	if err != nil {
		h.fail("restore", "a broker with a compaction worker", err)
		return
	}
	defer func() { broker.Kill() }()
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr))
	if err != nil {
		h.fail("restore", "a client", err)
		return
	}
	// What is shared with the other checks of Streams and Connect, with directories and a broker of its own.
	in := &harness{report: h.report, installed: h.installed, work: filepath.Join(dir, "before"), boot: broker.Addr, admin: kadm.NewClient(cl)}
	defer in.admin.Close()
	r := &restored{harness: in, dir: dir}
	lose := func(context.Context) error {
		for _, topic := range []string{r.changelog, "connect-configs", "connect-offsets", "connect-status"} {
			if err := compactedBelow(ctx, broker, in.admin, topic); err != nil {
				return err
			}
		}
		if err := broker.Stop(); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(dir, "broker", "data", "wal")); err != nil {
			return err
		}
		again, err := child.StartVarveAt(ctx, varve, filepath.Join(dir, "broker"), broker.Addr, strings.TrimPrefix(broker.Admin, "http://"), append(settings, "wal.max.bytes=4294967296")...)
		if err == nil {
			broker = again
			in.work = filepath.Join(dir, "after")
		}
		return err
	}
	for _, c := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"a table of Kafka Streams, every word counted again and again", r.count},
		{"a worker of Kafka Connect, whose connectors are changed, paused and resumed", r.connect},
		{"their topics are compacted in object storage, and the broker's log directory is lost", lose},
		{"Streams with a new state directory has the table: every count goes on from where it was", r.recount},
		{"the Connect worker finds its connectors and offsets: every line is there once", r.reconnect},
	} {
		for _, d := range []string{in.work, filepath.Join(in.work, "connect")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				h.fail("restore", c.name, err)
				return
			}
		}
		if !h.check("restore", c.name, func() error { return c.f(ctx) }) {
			return
		}
	}
}

type restored struct {
	*harness
	dir       string
	changelog string
	lines     []string
}

// count has every word counted so often, and ends the program.
func (r *restored) count(ctx context.Context) error {
	if _, err := r.admin.CreateTopics(ctx, 1, 1, nil, streamsIn, streamsOut); err != nil {
		return err
	}
	app, err := r.wordCount(ctx)
	if err != nil {
		return err
	}
	defer func() { app.Kill() }()
	if err := r.words(ctx, 1, restoreTimes); err != nil {
		return fmt.Errorf("%w\n%s", err, app.Tail())
	}
	topics, err := r.admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	for name := range topics {
		if strings.HasSuffix(name, "-changelog") {
			r.changelog = name
		}
	}
	if r.changelog == "" {
		return fmt.Errorf("no changelog was made by Streams: %v", topics.Names())
	}
	return nil
}

func (r *restored) recount(ctx context.Context) error {
	app, err := r.wordCount(ctx)
	if err != nil {
		return err
	}
	defer func() { app.Kill() }()
	if err := r.words(ctx, restoreTimes+1, restoreTimes+1); err != nil {
		return fmt.Errorf("%w\n%s", err, app.Tail())
	}
	return nil
}

// words sends every word once for each count from first to last, and waits for the counts.
func (r *restored) words(ctx context.Context, first, last int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	ends, err := r.admin.ListEndOffsets(ctx, streamsOut)
	if err != nil {
		return err
	}
	end, _ := ends.Lookup(streamsOut, 0)
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.boot), kgo.DefaultProduceTopic(streamsIn), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{streamsOut: {0: kgo.NewOffset().At(end.Offset)}}))
	if err != nil {
		return err
	}
	defer cl.Close()
	var all []string
	for i := range restoreWords {
		all = append(all, fmt.Sprint("word", i))
	}
	for range last - first + 1 {
		if err := cl.ProduceSync(ctx, kgo.StringRecord(strings.Join(all, " "))).FirstErr(); err != nil {
			return err
		}
	}
	counts := map[string]int{}
	for n := 0; n < (last-first+1)*restoreWords; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("after %d counts: %w", n, err)
		}
		var wrong error
		fetches.EachRecord(func(rec *kgo.Record) {
			word := string(rec.Key)
			if counts[word] == 0 {
				counts[word] = first - 1
			}
			counts[word]++
			n++
			if want := strconv.Itoa(counts[word]); string(rec.Value) != want && wrong == nil {
				wrong = fmt.Errorf("%s is counted %s, want %s", word, rec.Value, want)
			}
		})
		if wrong != nil {
			return wrong
		}
	}
	return nil
}

const restoredSource = "interop-source"

// connect runs a worker whose source is configured, paused and resumed again and again.
func (r *restored) connect(ctx context.Context) error {
	from := filepath.Join(r.dir, "from.txt")
	if _, err := r.admin.CreateTopic(ctx, 1, 1, nil, connectTopic); err != nil {
		return err
	}
	worker, url, err := r.startWorker(ctx)
	if err != nil {
		return err
	}
	defer func() { worker.Kill() }()
	for i := range 8 {
		if err := r.write(from, 50); err != nil {
			return err
		}
		if err := put(ctx, url+"/connectors/"+restoredSource+"/config", map[string]string{
			"connector.class": "org.apache.kafka.connect.file.FileStreamSourceConnector", "tasks.max": "1", "file": from, "topic": connectTopic, "exactly.once.support": "required", "batch.size": strconv.Itoa(2000 + i),
		}); err != nil {
			return fmt.Errorf("%w\n%s", err, worker.Tail())
		}
		if err := child.Eventually(ctx, time.Minute, func() error { return r.topicHas(ctx, connectTopic, r.lines) }); err != nil {
			return fmt.Errorf("%w\n%s", err, worker.Tail())
		}
	}
	worker.Stop() // a JVM that a signal ends exits with 143
	return nil
}

func (r *restored) startWorker(ctx context.Context) (*child.Process, string, error) {
	addr, err := child.FreeAddr()
	if err != nil {
		return nil, "", err
	}
	worker, err := r.worker(ctx, filepath.Join(r.work, "connect"), addr)
	return worker, "http://" + addr, err
}

// write appends n lines to the source's file.
func (r *restored) write(file string, n int) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	for range n {
		r.lines = append(r.lines, fmt.Sprintf("line %d", len(r.lines)))
		fmt.Fprintln(f, r.lines[len(r.lines)-1])
	}
	return f.Close()
}

func (r *restored) reconnect(ctx context.Context) error {
	if err := r.write(filepath.Join(r.dir, "from.txt"), 50); err != nil {
		return err
	}
	worker, url, err := r.startWorker(ctx)
	if err != nil {
		return err
	}
	defer func() { worker.Kill() }()
	if err := child.Eventually(ctx, time.Minute, func() error {
		resp, err := http.Get(url + "/connectors")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var names []string
		if err := json.NewDecoder(resp.Body).Decode(&names); err != nil {
			return err
		}
		if !slices.Equal(names, []string{restoredSource}) {
			return fmt.Errorf("the worker has the connectors %v", names)
		}
		// A source without its offsets would send its file from the beginning.
		return r.topicHas(ctx, connectTopic, r.lines)
	}); err != nil {
		return fmt.Errorf("%w\n%s", err, worker.Tail())
	}
	return nil
}

// compactedBelow waits until a topic is in object storage and has less records than offsets.
func compactedBelow(ctx context.Context, b *child.Varve, adm *kadm.Client, topic string) error {
	return child.Eventually(ctx, time.Minute, func() error {
		resp, err := http.Get(b.Admin + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			if n, ok := strings.CutPrefix(sc.Text(), "varve_compaction_pending_partitions "); ok && n != "0" {
				return fmt.Errorf("%s partitions are to be compacted", n)
			}
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		ends, err := adm.ListEndOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		if err != nil {
			return err
		}
		var offsets, records int64
		from := map[int32]kgo.Offset{}
		left := map[int32]int64{}
		ends.Each(func(o kadm.ListedOffset) {
			if offsets += o.Offset; o.Offset > 0 {
				from[o.Partition], left[o.Partition] = kgo.NewOffset().AtStart(), o.Offset
			}
		})
		if offsets == 0 {
			return fmt.Errorf("%s is empty", topic)
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.KeepControlRecords())
		if err != nil {
			return err
		}
		defer cl.Close()
		c, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		for len(left) > 0 {
			fetches := cl.PollFetches(c)
			if err := fetches.Err(); err != nil {
				return fmt.Errorf("read %s: %w", topic, err)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if records++; r.Offset+1 >= left[r.Partition] {
					delete(left, r.Partition)
				}
			})
		}
		if records >= offsets {
			return fmt.Errorf("%s has all of its %d records", topic, records)
		}
		return nil
	})
}
