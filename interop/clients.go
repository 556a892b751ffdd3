package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// harness is what all checks share.
type harness struct {
	*report
	installed *installation
	work      string
	boot      string
	node      int32
	started   int64
	admin     *kadm.Client
	slots     chan struct{} // bounds the processes that run at a time: two cores, and a JVM each
	producing []string      // the chosen clients
	mu        sync.Mutex
	missing   map[string]bool // topics that their client did not produce as it should
}

var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// runs says how each client program is started; kcat has none and is driven from here.
var runs = map[string]func(in *installation) []string{
	"java": func(in *installation) []string {
		return append(append([]string{"java"}, javaOptions...), "-cp", in.jars+"/*", in.java+"/Interop.java")
	},
	"kafka-python": func(in *installation) []string {
		return []string{in.python + "/venv/bin/python", in.python + "/kafka_python.py"}
	},
	"confluent": func(in *installation) []string {
		return []string{in.python + "/venv/bin/python", in.python + "/confluent.py"}
	},
	"kafkajs":      func(in *installation) []string { return []string{"node", in.node + "/kafkajs.mjs"} },
	"platformatic": func(in *installation) []string { return []string{"node", in.node + "/platformatic.mjs"} },
}

func topicsOf(client string) []planTopic {
	var out []planTopic
	for _, codec := range codecs {
		out = append(out, planTopic{Topic: "interop-" + client + "-" + codec, By: client, Codec: codec, Corpus: corpusOf(client)})
	}
	return out
}

// prepare makes the topics that clients produce to and read from.
func (h *harness) prepare(ctx context.Context, chosen map[string]bool) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot))
	if err != nil {
		return err
	}
	h.admin = kadm.NewClient(cl)
	h.missing = map[string]bool{}
	brokers, err := h.admin.ListBrokers(ctx)
	if err != nil {
		return err
	}
	if len(brokers) != 1 {
		return fmt.Errorf("%d brokers; the checks are for one", len(brokers))
	}
	h.node = brokers[0].NodeID
	var names, groups []string
	for _, client := range parts {
		if _, program := runs[client]; !chosen[client] || !program && client != "kcat" {
			continue
		}
		h.producing = append(h.producing, client)
		for _, t := range topicsOf(client) {
			names = append(names, t.Topic)
		}
		groups = append(groups, "interop-group-"+client)
	}
	for _, want := range []struct {
		partitions int32
		names      []string
	}{{corpusPartitions, names}, {6, groups}} {
		if len(want.names) == 0 {
			continue
		}
		created, err := h.admin.CreateTopics(ctx, want.partitions, 1, nil, want.names...)
		if err == nil {
			err = created.Error()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clients has every client produce, and then every client read what all have produced.
func (h *harness) clients(ctx context.Context, chosen map[string]bool) {
	corpora := corpora(h.started)
	each := func(f func(client string)) {
		var wg sync.WaitGroup
		for _, client := range h.producing {
			wg.Go(func() {
				f(client)
				h.flush(client)
			})
		}
		wg.Wait()
	}
	each(func(client string) {
		if client == "kcat" {
			h.kcatProduce(ctx, corpora["kcat"])
			return
		}
		h.program(ctx, client, "produce", plan{Corpora: corpora, Produce: topicsOf(client)})
	})
	var produced []planTopic
	for _, client := range h.producing {
		for _, t := range topicsOf(client) {
			if h.missing[t.Topic] {
				continue
			}
			h.check(client, "is stored with its codec / "+t.Codec, func() error { return h.codecOf(ctx, t.Topic, t.Codec) })
			produced = append(produced, t)
		}
		h.flush(client)
	}
	each(func(client string) {
		if client == "kcat" {
			h.kcatConsume(ctx, corpora, produced)
			h.kcatGroup(ctx)
			h.kcatQueries(ctx)
			return
		}
		h.program(ctx, client, "consume,group,extra", plan{Corpora: corpora, Consume: produced,
			Group: planGroup{Topic: "interop-group-" + client, Group: "interop-" + client}})
	})
	if chosen["java"] {
		h.check("java", "a recompressed topic has the topic's codec", func() error { return h.codecOf(ctx, "java-recompress", "zstd") })
	}
}

// program runs a client's program on a plan and takes over its verdicts: lines "ok NAME",
// "FAIL NAME<tab>WHY", "skip NAME<tab>WHY", and in the end "end".
func (h *harness) program(ctx context.Context, client, phases string, p plan) {
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	if err := h.runProgram(ctx, client, phases, p); err != nil {
		if phases == "produce" {
			for _, t := range p.Produce {
				h.lack(client, "produces / "+t.Codec)
			}
		}
		h.fail(client, phases, err)
	}
}

func (h *harness) runProgram(ctx context.Context, client, phases string, p plan) error {
	p.Bootstrap, p.Node, p.Started = h.boot, h.node, h.started
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	base := filepath.Join(h.work, client+"-"+strings.ReplaceAll(phases, ",", "-"))
	if err := os.WriteFile(base+".json", b, 0o644); err != nil {
		return err
	}
	args := append(runs[client](h.installed), base+".json", phases)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = h.work
	cmd.WaitDelay = 5 * time.Second
	errs, err := os.Create(base + ".err")
	if err != nil {
		return err
	}
	defer errs.Close()
	cmd.Stderr = errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := false
	for sc := bufio.NewScanner(out); sc.Scan(); {
		verdict, rest, _ := strings.Cut(sc.Text(), " ")
		name, why, _ := strings.Cut(rest, "\t")
		switch verdict {
		case "ok":
			h.ok(client, rest)
		case "FAIL":
			h.lack(client, name)
			h.fail(client, name, errors.New(why))
		case "skip":
			h.lack(client, name)
			h.skip(client, name, why)
		case "end":
			ended = true
		}
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	if err == nil && !ended {
		err = errors.New("it ended without saying so")
	}
	if err != nil {
		log, _ := os.ReadFile(base + ".err")
		return fmt.Errorf("the program: %w\n%s", err, tail(string(log), 2000))
	}
	return nil
}

// lack notes that nobody can read what a client has not produced.
func (h *harness) lack(client, check string) {
	if codec, found := strings.CutPrefix(check, "produces / "); found {
		h.mu.Lock()
		h.missing["interop-"+client+"-"+codec] = true
		h.mu.Unlock()
	}
}

// codecOf compares the codec of a topic's batches. A client may leave a batch as it is when compressing
// would make it larger, so some, not all, must have it, and none another.
func (h *harness) codecOf(ctx context.Context, topic, codec string) error {
	want := uint8(0)
	for i, c := range codecs {
		if c == codec {
			want = uint8(i)
		}
	}
	ends, err := h.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	if err := ends.Error(); err != nil {
		return err
	}
	var total int64
	ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	counts := map[uint8]int64{}
	for n := int64(0); n < total; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return fmt.Errorf("after %d of %d records: %w", n, total, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			counts[r.Attrs.CompressionType()]++
			n++
		})
	}
	for c := range counts {
		if c != 0 && c != want {
			return fmt.Errorf("%s: records by codec %v, want only codec %d", topic, counts, want)
		}
	}
	if counts[want] == 0 {
		return fmt.Errorf("%s: records by codec %v, want some of codec %d", topic, counts, want)
	}
	return nil
}

// exec runs a command to its end within two minutes, with stdin, and returns its stdout. An error carries stderr.
func (h *harness) exec(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = h.work
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s\n%s", filepath.Base(name), err, tail(out.String(), 1000), tail(errs.String(), 1000))
	}
	return out.String(), nil
}
