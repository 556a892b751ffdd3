package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
)

// toolsState reads the internal topics as Kafka's own formatters do, which say nothing of a record that they cannot read.
func (h *harness) toolsState(ctx context.Context) {
	const topic, offsets, txns = "tools-state", "__consumer_offsets", "__transaction_state"
	h.check("tools", "kafka-console-consumer: the formatters of offsets, groups and transactions", func() error {
		if _, err := h.admin.CreateTopic(ctx, 1, 1, nil, topic); err != nil {
			return err
		}
		// What the groups of the other checks do is there too; these are alone in their groups and transactions.
		member, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.ClientID("tools-state-client"), kgo.ConsumerGroup("tools-state-classic"), kgo.ConsumeTopics(topic),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.InstanceID("tools-state-instance"), kgo.MaxVersions(kversion.V3_6_0()))
		if err != nil {
			return err
		}
		defer member.Close()
		var commit kadm.Offsets
		commit.Add(kadm.Offset{Topic: topic, At: 41, LeaderEpoch: 7, Metadata: "first"})
		if err := h.admin.CommitAllOffsets(ctx, "tools-state-simple", commit); err != nil {
			return err
		}
		commit = nil
		commit.Add(kadm.Offset{Topic: topic, At: 42, LeaderEpoch: -1, Metadata: "note"})
		if err := h.admin.CommitAllOffsets(ctx, "tools-state-simple", commit); err != nil {
			return err
		}
		commit = nil
		commit.Add(kadm.Offset{Topic: topic, At: 43, LeaderEpoch: 7, Metadata: "kept"})
		if err := h.admin.CommitAllOffsets(ctx, "tools-state-kept", commit); err != nil {
			return err
		}
		deleted, err := h.admin.DeleteOffsets(ctx, "tools-state-simple", kadm.TopicsSet{topic: {0: {}}})
		if err == nil {
			err = deleted.Error()
		}
		if err != nil {
			return err
		}
		p, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.TransactionalID("tools-state-txn"), kgo.TransactionTimeout(61*time.Second), kgo.DefaultProduceTopic(topic))
		if err != nil {
			return err
		}
		defer p.Close()
		if err := p.BeginTransaction(); err != nil {
			return err
		}
		if err := p.ProduceSync(ctx, kgo.StringRecord("v")).FirstErr(); err != nil {
			return err
		}
		pid, _, err := p.ProducerID(ctx)
		if err == nil {
			err = p.EndTransaction(ctx, kgo.TryCommit)
		}
		if err != nil {
			return err
		}
		if fs := member.PollFetches(ctx); fs.Err() != nil { // its group is complete
			return fs.Err()
		}
		type line = struct{ Key, Value struct{ Data map[string]any } }
		// format is what a formatter prints of a group or transactional id.
		format := func(topic, formatter, named, name string) (lines []line, err error) {
			out, err := h.formatted(ctx, topic, formatter, name)
			if err != nil {
				return nil, err
			}
			for dec := json.NewDecoder(strings.NewReader(out)); ; {
				var l line
				if err := dec.Decode(&l); errors.Is(err, io.EOF) {
					return lines, nil
				} else if err != nil {
					return nil, fmt.Errorf("%s: %w: %s", formatter, err, tail(out, 1000))
				}
				if l.Key.Data[named] == name {
					lines = append(lines, l)
				}
			}
		}
		want := func(what string, got map[string]any, fields map[string]any) error {
			for _, f := range slices.Sorted(maps.Keys(fields)) {
				if fmt.Sprint(got[f]) != fmt.Sprint(fields[f]) {
					return fmt.Errorf("%s: %s is %v, want %v, in %v", what, f, got[f], fields[f], got)
				}
			}
			return nil
		}
		lines, err := format(offsets, "OffsetsMessageFormatter", "group", "tools-state-simple")
		if err != nil {
			return err
		}
		// The topic is compacted: of the key that was committed twice and deleted the last record is there in any case, of the
		// other key its only one.
		written := []map[string]any{{"offset": 41, "leaderEpoch": 7, "metadata": "first"}, {"offset": 42, "leaderEpoch": -1, "metadata": "note"}, nil}
		if len(lines) == 0 || len(lines) > len(written) {
			return fmt.Errorf("%d records of two commits and a deletion: %v", len(lines), lines)
		}
		for i, fields := range written[len(written)-len(lines):] {
			err = errors.Join(err, want("key", lines[i].Key.Data, map[string]any{"topic": topic, "partition": 0}), want("value", lines[i].Value.Data, fields))
			if fields == nil && lines[i].Value.Data != nil {
				err = errors.Join(err, fmt.Errorf("a deletion has the value %v", lines[i].Value.Data))
			}
		}
		if err != nil {
			return err
		}
		if lines, err = format(offsets, "OffsetsMessageFormatter", "group", "tools-state-kept"); err != nil {
			return err
		}
		if len(lines) != 1 {
			return fmt.Errorf("%d records of one commit: %v", len(lines), lines)
		}
		if err := want("value", lines[0].Value.Data, map[string]any{"offset": 43, "leaderEpoch": 7, "metadata": "kept"}); err != nil {
			return err
		}
		if lines, err = format(offsets, "GroupMetadataMessageFormatter", "group", "tools-state-classic"); err != nil {
			return err
		}
		if len(lines) == 0 {
			return errors.New("nothing of the group")
		}
		g := lines[len(lines)-1].Value.Data
		if err := want("the group", g, map[string]any{"protocolType": "consumer", "generation": 1, "protocol": "cooperative-sticky"}); err != nil {
			return err
		}
		members, _ := g["members"].([]any)
		if len(members) != 1 {
			return fmt.Errorf("members: %v", g)
		}
		m, _ := members[0].(map[string]any)
		if err := want("the member", m, map[string]any{"groupInstanceId": "tools-state-instance", "clientId": "tools-state-client"}); err != nil {
			return err
		}
		if m["memberId"] != g["leader"] || m["subscription"] == "" || m["assignment"] == "" {
			return fmt.Errorf("the member: %v of %v", m, g)
		}
		if lines, err = format(txns, "TransactionLogMessageFormatter", "transactionalId", "tools-state-txn"); err != nil {
			return err
		}
		var states []string
		for _, l := range lines {
			if err := want("the transaction", l.Value.Data, map[string]any{"producerId": pid, "transactionTimeoutMs": 61000}); err != nil {
				return err
			}
			states = append(states, fmt.Sprint(l.Value.Data["transactionStatus"]))
		}
		// Empty, Ongoing, PrepareCommit, CompleteCommit; of a compacted topic the last of them.
		if got := strings.Join(slices.Compact(states), " "); got == "" || !strings.HasSuffix("0 1 2 4", got) && !strings.HasSuffix("0 1 2", got) {
			return fmt.Errorf("the states of the transaction are %s", got)
		}
		return nil
	})
}

// formatted is what kafka-console-consumer prints with a formatter of the partition that has the state of a group or
// transactional id. The partition may have markers too, which are not printed: then the tool ends when nothing has come for a while.
func (h *harness) formatted(ctx context.Context, topic, formatter, name string) (string, error) {
	ends, err := h.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return "", err
	}
	hash := int32(0) // Java's String.hashCode of ASCII
	for _, c := range []byte(name) {
		hash = 31*hash + int32(c)
	}
	partition := max(hash, -hash) % int32(len(ends[topic]))
	end, _ := ends.Lookup(topic, partition)
	return h.tool(ctx, "", "kafka-console-consumer", "--topic", topic, "--partition", strconv.Itoa(int(partition)), "--offset", "earliest",
		"--formatter", "org.apache.kafka.tools.consumer."+formatter, "--max-messages", strconv.FormatInt(end.Offset, 10), "--timeout-ms", "30000")
}

// toolsCopier copies a topic with the program that Kafka's own system tests copy with, which aborts every third
// transaction or so, and is killed in between and started anew: the copy has every record once, in order.
func (h *harness) toolsCopier(ctx context.Context) {
	const records = 1200
	for _, mode := range []string{"assigned", "group"} {
		h.check("tools", "TransactionalMessageCopier, killed and restarted / "+mode, func() error {
			in, out := "tools-copy-in-"+mode, "tools-copy-out-"+mode
			if _, err := h.admin.CreateTopics(ctx, 1, 1, nil, in, out); err != nil {
				return err
			}
			cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.DefaultProduceTopic(in))
			if err != nil {
				return err
			}
			defer cl.Close()
			for i := range records {
				cl.Produce(ctx, kgo.StringRecord(strconv.Itoa(i)), nil)
			}
			if err := cl.Flush(ctx); err != nil {
				return err
			}
			if err := h.copy(ctx, in, out, mode, records/3); err != nil {
				return err
			}
			if err := h.copy(ctx, in, out, mode, 0); err != nil {
				return err
			}
			return h.once(ctx, out, records)
		})
	}
}

// once reads committed records of a partition to its end: the numbers from 0 on, in order, and nothing else but markers.
func (h *harness) once(ctx context.Context, topic string, records int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var end kadm.ListedOffset
	for { // until the last marker is there
		ends, err := h.admin.ListEndOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		if err != nil {
			return err
		}
		stable, err := h.admin.ListCommittedOffsets(ctx, topic)
		if err != nil {
			return err
		}
		end, _ = ends.Lookup(topic, 0)
		if at, _ := stable.Lookup(topic, 0); at.Offset == end.Offset {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer cl.Close()
	next, markers := 0, 0
	for at := int64(0); at < end.Offset; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return fmt.Errorf("after %d of %d records, at offset %d of %d: %w", next, records, at, end.Offset, err)
		}
		for r := range fs.RecordsAll() {
			at = r.Offset + 1
			if r.Attrs.IsControl() {
				markers++
				continue
			}
			if string(r.Value) != strconv.Itoa(next) {
				return fmt.Errorf("offset %d has record %s, want %d", r.Offset, r.Value, next)
			}
			next++
		}
	}
	if next != records || markers < 2 {
		return fmt.Errorf("the copy has %d records and %d markers of transactions, want %d records", next, markers, records)
	}
	return nil
}

// copy runs the copier to its end, or kills it when it has copied so many records.
func (h *harness) copy(ctx context.Context, in, out, mode string, killAfter int) error {
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	args := slices.Concat(javaOptions, []string{"-cp", h.installed.jars + "/*", "org.apache.kafka.tools.TransactionalMessageCopier", "--broker-list", h.boot,
		"--input-topic", in, "--input-partition", "0", "--output-topic", out, "--consumer-group", "tools-copy-" + mode, "--transactional-id", "tools-copy-" + mode,
		"--transaction-size", "20", "--transaction-timeout", "10000", "--enable-random-aborts"})
	if mode == "group" {
		args = append(args, "--group-mode", "--use-group-metadata")
	}
	cmd := exec.CommandContext(ctx, "java", args...)
	cmd.Dir = h.work
	errs, err := os.Create(filepath.Join(h.work, fmt.Sprintf("copier-%s-%d.err", mode, killAfter)))
	if err != nil {
		return err
	}
	defer errs.Close()
	cmd.Stderr = errs
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	killed, last := false, ""
	for sc := bufio.NewScanner(lines); sc.Scan(); {
		last = sc.Text()
		var status struct {
			Stage          string
			TotalProcessed int
		}
		if json.Unmarshal(sc.Bytes(), &status) == nil && killAfter > 0 && status.TotalProcessed >= killAfter && !killed {
			killed = true
			_ = cmd.Process.Kill()
		}
	}
	err = cmd.Wait()
	switch {
	case killed:
		return nil
	case killAfter > 0:
		return fmt.Errorf("the copier ended before it was killed: %v, %s", err, last)
	case err != nil:
		return fmt.Errorf("the copier: %w, %s", err, last)
	}
	return nil
}
