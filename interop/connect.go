package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
)

const (
	connectTopic = "connect-lines"
	connectLines = 1000 // before the worker is killed, while it is, and after
)

// connect runs a distributed worker of Kafka Connect with a source that reads a file and a sink that writes one.
func (h *harness) connect(ctx context.Context) {
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	dir := filepath.Join(h.work, "connect")
	from, to := filepath.Join(dir, "from.txt"), filepath.Join(dir, "to.txt")
	var worker *child.Process
	defer func() {
		if worker != nil {
			worker.Kill()
		}
	}()
	var lines []string
	// write appends lines to the source's file.
	write := func() error {
		f, err := os.OpenFile(from, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		for range connectLines {
			lines = append(lines, fmt.Sprintf("line %d", len(lines)))
			fmt.Fprintln(f, lines[len(lines)-1])
		}
		return f.Close()
	}
	var addr string
	if !h.check("connect", "a distributed worker, a file source with exactly-once support, a file sink: every line arrives", func() error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := write(); err != nil {
			return err
		}
		if _, err := h.admin.CreateTopic(ctx, 1, 1, nil, connectTopic); err != nil {
			return err
		}
		var err error
		if addr, err = child.FreeAddr(); err != nil {
			return err
		}
		if worker, err = h.worker(ctx, dir, addr); err != nil {
			return err
		}
		for name, config := range map[string]map[string]string{
			"interop-source": {"connector.class": "org.apache.kafka.connect.file.FileStreamSourceConnector", "tasks.max": "1", "file": from, "topic": connectTopic, "exactly.once.support": "required"},
			"interop-sink":   {"connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "tasks.max": "1", "file": to, "topics": connectTopic},
		} {
			if err := put(ctx, "http://"+addr+"/connectors/"+name+"/config", config); err != nil {
				return fmt.Errorf("%w\n%s", err, worker.Tail())
			}
		}
		if err := arrived(ctx, to, lines); err != nil {
			return fmt.Errorf("%w\n%s", err, worker.Tail())
		}
		return h.connectGroups(ctx, "Stable", 1)
	}) {
		return
	}
	h.check("connect", "the worker is killed and restarted: every line arrives, and is in the topic once", func() error {
		if err := write(); err != nil {
			return err
		}
		time.Sleep(rand.N(time.Second)) // the source looks once a second
		worker.Kill()
		err := write()
		if err != nil {
			return err
		}
		if worker, err = h.worker(ctx, dir, addr); err != nil {
			return err
		}
		if err := arrived(ctx, to, lines); err != nil {
			return fmt.Errorf("%w\n%s", err, worker.Tail())
		}
		// The sink writes again what it had not committed; the topic has it once.
		return h.topicHas(ctx, connectTopic, lines)
	})
	h.check("connect", "the worker ends by SIGTERM", func() error {
		worker.Stop() // a JVM that a signal ends exits with 143
		worker = nil
		return h.connectGroups(ctx, "Empty", 0)
	})
}

// connectGroups waits until the group of the worker, which is not one of consumers, and that of its sink are in a state.
func (h *harness) connectGroups(ctx context.Context, state string, members int) error {
	return child.Eventually(ctx, 30*time.Second, func() error {
		groups, err := h.admin.DescribeGroups(ctx, "interop-connect", "connect-interop-sink")
		if err != nil {
			return err
		}
		for group, protocol := range map[string]string{"interop-connect": "connect", "connect-interop-sink": "consumer"} {
			if g := groups[group]; g.Err != nil || g.State != state || g.ProtocolType != protocol || len(g.Members) != members {
				return fmt.Errorf("group %s: %v, state %q, protocol %q, %d members; want state %s", group, g.Err, g.State, g.ProtocolType, len(g.Members), state)
			}
		}
		return nil
	})
}

func (h *harness) worker(ctx context.Context, dir, addr string) (*child.Process, error) {
	settings := []string{
		"bootstrap.servers=" + h.boot, "listeners=http://" + addr, "group.id=interop-connect",
		"config.storage.topic=connect-configs", "offset.storage.topic=connect-offsets", "status.storage.topic=connect-status",
		"config.storage.replication.factor=1", "offset.storage.replication.factor=1", "status.storage.replication.factor=1",
		"offset.storage.partitions=3", "status.storage.partitions=2", "offset.flush.interval.ms=500",
		"key.converter=org.apache.kafka.connect.storage.StringConverter", "value.converter=org.apache.kafka.connect.storage.StringConverter",
		"exactly.once.source.support=enabled", "plugin.discovery=service_load",
		// A killed worker and its sink are missed after this time.
		"session.timeout.ms=6000", "heartbeat.interval.ms=1000", "scheduled.rebalance.max.delay.ms=0",
		"consumer.session.timeout.ms=6000", "consumer.heartbeat.interval.ms=1000", "consumer.auto.offset.reset=earliest",
		// The sink has only what the source has committed.
		"consumer.isolation.level=read_committed",
	}
	file := filepath.Join(dir, "worker.properties")
	if err := os.WriteFile(file, []byte(strings.Join(settings, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("java", slices.Concat(javaOptions, []string{"-cp", h.installed.jars + "/*", "org.apache.kafka.connect.cli.ConnectDistributed", file})...)
	cmd.Dir = dir
	return child.Start(ctx, &child.Process{Name: "the Connect worker", Log: filepath.Join(dir, "worker.log"), Patience: 2 * time.Minute}, cmd, func() error {
		answer, err := http.Get("http://" + addr + "/connectors")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("GET /connectors: %s", answer.Status)
		}
		return nil
	})
}

// put gives a connector its configuration. While the worker still joins its group it answers 409 or 503.
func put(ctx context.Context, url string, config map[string]string) error {
	body, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return child.Eventually(ctx, time.Minute, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode/100 != 2 {
			text, _ := io.ReadAll(answer.Body)
			return fmt.Errorf("PUT %s: %s\n%s", url, answer.Status, text)
		}
		return nil
	})
}

// arrived waits until a file has all of the lines.
func arrived(ctx context.Context, file string, lines []string) error {
	return child.Eventually(ctx, 2*time.Minute, func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		missing := map[string]bool{}
		for _, l := range lines {
			missing[l] = true
		}
		for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			delete(missing, l)
		}
		if len(missing) > 0 {
			return fmt.Errorf("%d of %d lines have not arrived in %s", len(missing), len(lines), file)
		}
		return nil
	})
}

// topicHas is an error unless the committed records of a topic's partition have these values, in order.
func (h *harness) topicHas(ctx context.Context, topic string, want []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ends, err := h.admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return err
	}
	end, _ := ends.Lookup(topic, 0)
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer cl.Close()
	var got []string
	for next := int64(0); next < end.Offset; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("at offset %d of %d: %w", next, end.Offset, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if !r.Attrs.IsControl() {
				got = append(got, string(r.Value))
			}
		})
	}
	for i, w := range want {
		if i >= len(got) || got[i] != w {
			return fmt.Errorf("%s has %d records, of which %d are as they should be; want %d", topic, len(got), i, len(want))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%s has %d records, want %d", topic, len(got), len(want))
	}
	return nil
}
