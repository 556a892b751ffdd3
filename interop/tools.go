package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
)

var javaOptions = child.JavaOptions

// The classes behind the shell scripts of the distribution, which only set the class path.
var toolClasses = map[string]string{
	"kafka-topics":              "org.apache.kafka.tools.TopicCommand",
	"kafka-configs":             "kafka.admin.ConfigCommand",
	"kafka-get-offsets":         "org.apache.kafka.tools.GetOffsetShell",
	"kafka-delete-records":      "org.apache.kafka.tools.DeleteRecordsCommand",
	"kafka-consumer-groups":     "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
	"kafka-groups":              "org.apache.kafka.tools.GroupsCommand",
	"kafka-console-producer":    "org.apache.kafka.tools.ConsoleProducer",
	"kafka-console-consumer":    "org.apache.kafka.tools.consumer.ConsoleConsumer",
	"kafka-producer-perf-test":  "org.apache.kafka.tools.ProducerPerformance",
	"kafka-consumer-perf-test":  "org.apache.kafka.tools.ConsumerPerformance",
	"kafka-e2e-latency":         "org.apache.kafka.tools.EndToEndLatency",
	"kafka-verifiable-producer": "org.apache.kafka.tools.VerifiableProducer",
	"kafka-verifiable-consumer": "org.apache.kafka.tools.VerifiableConsumer",
	"kafka-transactions":        "org.apache.kafka.tools.TransactionsCommand",
	"kafka-log-dirs":            "org.apache.kafka.tools.LogDirsCommand",
	"kafka-broker-api-versions": "org.apache.kafka.tools.BrokerApiVersionsCommand",
}

// tool runs one of the command-line tools.
func (h *harness) tool(ctx context.Context, stdin, name string, args ...string) (string, error) {
	class, found := toolClasses[name]
	if !found {
		panic(name)
	}
	out, err := h.exec(ctx, stdin, "java", slices.Concat(javaOptions, []string{"-cp", h.installed.jars + "/*", class, "--bootstrap-server", h.boot}, args)...)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return out, err
}

// expect is a run that must print each of the wanted texts.
func (h *harness) expect(ctx context.Context, want []string, name string, args ...string) error {
	out, err := h.tool(ctx, "", name, args...)
	if err != nil {
		return err
	}
	return contains(out, name+" "+strings.Join(args, " "), want...)
}

func contains(out, what string, want ...string) error {
	for _, w := range want {
		if !regexp.MustCompile(w).MatchString(out) {
			return fmt.Errorf("%s: nothing like %q in:\n%s", what, w, tail(out, 1500))
		}
	}
	return nil
}

// refuse is a run that must end with an error that reads like want.
func (h *harness) refuse(ctx context.Context, want, name string, args ...string) error {
	out, err := h.tool(ctx, "", name, args...)
	if err == nil {
		return fmt.Errorf("%s %s: went through:\n%s", name, strings.Join(args, " "), out)
	}
	return contains(err.Error(), name+" "+strings.Join(args, " "), want)
}

// tools runs the chains beside each other; what is in a chain goes in order.
func (h *harness) tools(ctx context.Context) {
	var wg sync.WaitGroup
	for _, chain := range []func(context.Context){h.toolsTopics, h.toolsConfigs, h.toolsRecords, h.toolsGroups, h.toolsMembers, h.toolsTransactions, h.toolsState, h.toolsCopier, h.toolsLoad} {
		wg.Go(func() { chain(ctx) })
	}
	wg.Wait()
}

func (h *harness) toolsTopics(ctx context.Context) {
	h.check("tools", "kafka-topics: create, list, describe", func() error {
		if err := h.expect(ctx, []string{`Created topic tools-topics\.`}, "kafka-topics", "--create", "--topic", "tools-topics", "--partitions", "3", "--replication-factor", "1", "--config", "retention.ms=3600000"); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`(?m)^tools-topics$`}, "kafka-topics", "--list"); err != nil {
			return err
		}
		want := []string{`Topic: tools-topics\tTopicId: [-\w]{22}\tPartitionCount: 3\tReplicationFactor: 1\tConfigs: .*retention\.ms=3600000`}
		for p := range 3 {
			want = append(want, fmt.Sprintf(`Topic: tools-topics\tPartition: %d\tLeader: %d\tReplicas: %[2]d\tIsr: %[2]d\t`, p, h.node))
		}
		if err := h.expect(ctx, want, "kafka-topics", "--describe", "--topic", "tools-topics"); err != nil {
			return err
		}
		// Partitions and replicas left to the broker.
		if err := h.expect(ctx, []string{`Created topic tools-default\.`}, "kafka-topics", "--create", "--topic", "tools-default"); err != nil {
			return err
		}
		return h.expect(ctx, []string{`^\s*$`}, "kafka-topics", "--describe", "--unavailable-partitions")
	})
	h.check("tools", "kafka-topics: more partitions, refusals, delete", func() error {
		if _, err := h.tool(ctx, "", "kafka-topics", "--alter", "--topic", "tools-topics", "--partitions", "5"); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`PartitionCount: 5`, `Partition: 4\tLeader: `}, "kafka-topics", "--describe", "--topic", "tools-topics"); err != nil {
			return err
		}
		for _, r := range []struct {
			want string
			args []string
		}{
			{`already exists`, []string{"--create", "--topic", "tools-topics"}},
			{`retention\.ms`, []string{"--create", "--topic", "tools-bad", "--config", "retention.ms=soon"}},
			{`[Rr]eplication factor`, []string{"--create", "--topic", "tools-bad", "--replication-factor", "3"}},
			{`partitions`, []string{"--alter", "--topic", "tools-topics", "--partitions", "2"}},
			{`does not exist`, []string{"--describe", "--topic", "tools-none"}},
			{`does not exist`, []string{"--delete", "--topic", "tools-none"}},
		} {
			if err := h.refuse(ctx, r.want, "kafka-topics", r.args...); err != nil {
				return err
			}
		}
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--if-not-exists", "--topic", "tools-topics"); err != nil {
			return err
		}
		if _, err := h.tool(ctx, "", "kafka-topics", "--delete", "--topic", "tools-topics"); err != nil {
			return err
		}
		out, err := h.tool(ctx, "", "kafka-topics", "--list")
		if err == nil && slices.Contains(strings.Fields(out), "tools-topics") {
			err = errors.New("a deleted topic is listed")
		}
		return err
	})
	h.check("tools", "kafka-broker-api-versions", func() error {
		return h.expect(ctx, []string{regexp.QuoteMeta(h.boot) + ` \(id: ` + strconv.Itoa(int(h.node)), `Produce\(0\): 0 to 13 \[usable: 13\]`, `Fetch\(1\): 4 to 18 \[usable: 18\]`, `ListOffsets\(2\): 1 to 11 \[usable: 11\]`,
			`Metadata\(3\): 0 to 13 \[usable: 13\]`, `ApiVersions\(18\): 0 to \d+ \[usable: \d+\]`}, "kafka-broker-api-versions")
	})
}

func (h *harness) toolsConfigs(ctx context.Context) {
	const topic = "tools-configs"
	entity := []string{"--entity-type", "topics", "--entity-name", topic}
	with := func(args ...string) []string { return slices.Concat(entity, args) }
	h.check("tools", "kafka-configs: alter, describe with sources, delete", func() error {
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--topic", topic, "--config", "retention.ms=3600000"); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`Completed updating config for topic ` + topic}, "kafka-configs", with("--alter", "--add-config", "max.message.bytes=2000000,cleanup.policy=[delete,compact]")...); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`max\.message\.bytes=2000000 sensitive=false synonyms=\{DYNAMIC_TOPIC_CONFIG:max\.message\.bytes=2000000, DEFAULT_CONFIG:message\.max\.bytes=1048588\}`,
			`retention\.ms=3600000 sensitive=false synonyms=\{DYNAMIC_TOPIC_CONFIG:retention\.ms=3600000`, `cleanup\.policy=delete,compact `}, "kafka-configs", with("--describe")...); err != nil {
			return err
		}
		if _, err := h.tool(ctx, "", "kafka-configs", with("--alter", "--delete-config", "max.message.bytes")...); err != nil {
			return err
		}
		out, err := h.tool(ctx, "", "kafka-configs", with("--describe")...)
		if err == nil && strings.Contains(out, "max.message.bytes") {
			err = fmt.Errorf("still there:\n%s", out)
		}
		if err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`max\.message\.bytes=1048588 sensitive=false synonyms=\{DEFAULT_CONFIG:message\.max\.bytes=1048588\}`, `segment\.bytes=1073741824 `, `compression\.type=producer `},
			"kafka-configs", with("--describe", "--all")...); err != nil {
			return err
		}
		return h.refuse(ctx, `no\.such\.setting`, "kafka-configs", with("--alter", "--add-config", "no.such.setting=1")...)
	})
	h.check("tools", "kafka-configs: of a broker", func() error {
		id := strconv.Itoa(int(h.node))
		if err := h.expect(ctx, []string{`node\.id=` + id + ` sensitive=false synonyms=\{STATIC_BROKER_CONFIG:node\.id=` + id, `message\.max\.bytes=1048588 sensitive=false synonyms=\{DEFAULT_CONFIG:`},
			"kafka-configs", "--entity-type", "brokers", "--entity-name", id, "--describe", "--all"); err != nil {
			return err
		}
		if _, err := h.tool(ctx, "", "kafka-configs", "--entity-type", "brokers", "--entity-default", "--alter", "--add-config", "log.retention.bytes=123456789"); err != nil {
			return err
		}
		return errors.Join(h.expect(ctx, []string{`log\.retention\.bytes=123456789 sensitive=false synonyms=\{DYNAMIC_DEFAULT_BROKER_CONFIG:log\.retention\.bytes=123456789`},
			"kafka-configs", "--entity-type", "brokers", "--entity-default", "--describe"),
			h.expect(ctx, []string{`Completed`}, "kafka-configs", "--entity-type", "brokers", "--entity-default", "--alter", "--delete-config", "log.retention.bytes"))
	})
}

func (h *harness) toolsRecords(ctx context.Context) {
	const topic = "tools-records"
	if !h.check("tools", "kafka-console-producer to kafka-console-consumer: keys, headers, nulls, codecs", func() error {
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--topic", topic, "--partitions", "1"); err != nil {
			return err
		}
		var want []string
		offset := 0
		for _, codec := range codecs {
			var in strings.Builder
			for i := range 20 {
				headers, key, value := fmt.Sprintf("codec:%s,n:%d", codec, i), fmt.Sprintf("k%d", i), strings.Repeat("value ", i)+"end"
				switch i {
				case 7:
					headers = "NULL"
				case 8:
					key = "NULL"
				case 9:
					value = "NULL"
				}
				fmt.Fprintf(&in, "%s\t%s\t%s\n", headers, key, value)
				if headers == "NULL" {
					headers = "NO_HEADERS"
				}
				want = append(want, fmt.Sprintf("Partition:0\tOffset:%d\t%s\t%s\t%s", offset, headers, key, value))
				offset++
			}
			if _, err := h.tool(ctx, in.String(), "kafka-console-producer", "--topic", topic, "--compression-codec", codec, "--reader-property", "parse.key=true",
				"--reader-property", "parse.headers=true", "--reader-property", "null.marker=NULL"); err != nil {
				return err
			}
		}
		out, err := h.tool(ctx, "", "kafka-console-consumer", "--topic", topic, "--from-beginning", "--max-messages", strconv.Itoa(offset), "--timeout-ms", "30000",
			"--formatter-property", "print.key=true", "--formatter-property", "print.headers=true", "--formatter-property", "print.timestamp=true",
			"--formatter-property", "print.partition=true", "--formatter-property", "print.offset=true", "--formatter-property", "null.literal=NULL")
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != len(want) {
			return fmt.Errorf("%d lines, want %d:\n%s", len(lines), len(want), tail(out, 500))
		}
		for i, line := range lines {
			stamp, rest, _ := strings.Cut(line, "\t")
			ts, err := strconv.ParseInt(strings.TrimPrefix(stamp, "CreateTime:"), 10, 64)
			if err != nil || ts < h.started || ts > time.Now().UnixMilli() || rest != want[i] {
				return fmt.Errorf("line %d: got %q, want CreateTime:... %q", i, line, want[i])
			}
		}
		return nil
	}) {
		return
	}
	h.check("tools", "kafka-get-offsets: earliest, latest, max-timestamp, by time, the tiers", func() error {
		for _, q := range [][2]string{
			{"-1", topic + ":0:100"}, {"latest", topic + ":0:100"}, {"-2", topic + ":0:0"}, {"earliest", topic + ":0:0"},
			{strconv.FormatInt(h.started, 10), topic + ":0:0"}, {strconv.FormatInt(time.Now().UnixMilli()+60_000, 10), ""},
		} {
			out, err := h.tool(ctx, "", "kafka-get-offsets", "--topic", topic, "--time", q[0])
			if err != nil {
				return err
			}
			if strings.TrimSpace(out) != q[1] {
				return fmt.Errorf("--time %s: got %q, want %q", q[0], out, q[1])
			}
		}
		// The last run's records may share a millisecond: any of them.
		if err := h.expect(ctx, []string{`^` + topic + `:0:(8|9)\d\s*$`}, "kafka-get-offsets", "--topic", topic, "--time", "max-timestamp"); err != nil {
			return err
		}
		for _, tier := range []string{"earliest-local", "latest-tiered", "earliest-pending-upload"} {
			// What they answer depends on the tier; a broker without one has no line.
			if err := h.expect(ctx, []string{`^(` + topic + `:0:\d+)?\s*$`}, "kafka-get-offsets", "--topic", topic, "--time", tier); err != nil {
				return err
			}
		}
		return nil
	})
	h.check("tools", "kafka-delete-records", func() error {
		file := filepath.Join(h.work, "delete-records.json")
		if err := os.WriteFile(file, fmt.Appendf(nil, `{"version":1,"partitions":[{"topic":%q,"partition":0,"offset":55}]}`, topic), 0o644); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`partition: ` + topic + `-0\tlow_watermark: 55`}, "kafka-delete-records", "--offset-json-file", file); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`^` + topic + `:0:55\s*$`}, "kafka-get-offsets", "--topic", topic, "--time", "earliest"); err != nil {
			return err
		}
		return h.expect(ctx, []string{`^Offset:55\t.*\nOffset:56\t`}, "kafka-console-consumer", "--topic", topic, "--from-beginning", "--max-messages", "2", "--timeout-ms", "30000", "--formatter-property", "print.offset=true")
	})
	h.check("tools", "kafka-console-consumer: from an offset of a partition", func() error {
		return h.expect(ctx, []string{`^Offset:97\t.*\nOffset:98\t.*\nOffset:99\t[^\n]*\n$`}, "kafka-console-consumer", "--topic", topic, "--partition", "0", "--offset", "97", "--max-messages", "3", "--timeout-ms", "30000", "--formatter-property", "print.offset=true")
	})
	h.check("tools", "kafka-log-dirs", func() error {
		out, err := h.tool(ctx, "", "kafka-log-dirs", "--describe", "--topic-list", topic)
		if err != nil {
			return err
		}
		var answer struct {
			Brokers []struct {
				Broker  int32
				LogDirs []struct {
					LogDir     string
					Error      *string
					Partitions []struct {
						Partition string
						Size      int64
					}
				}
			}
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "{") {
				if err := json.Unmarshal([]byte(line), &answer); err != nil {
					return err
				}
			}
		}
		if len(answer.Brokers) != 1 || answer.Brokers[0].Broker != h.node || len(answer.Brokers[0].LogDirs) != 1 {
			return fmt.Errorf("got %s", out)
		}
		d := answer.Brokers[0].LogDirs[0]
		if d.Error != nil || len(d.Partitions) != 1 || d.Partitions[0].Partition != topic+"-0" || d.Partitions[0].Size <= 0 {
			return fmt.Errorf("got %s", out)
		}
		return nil
	})
}

func (h *harness) toolsGroups(ctx context.Context) {
	const topic, group = "tools-groups", "tools-group"
	row := func(committed, end int) string {
		return fmt.Sprintf(`%s +%s +0 +%d +%d +%d +- `, group, topic, committed, end, end-committed)
	}
	h.check("tools", "kafka-consumer-groups: list, describe, state, members", func() error {
		var in strings.Builder
		for i := range 10 {
			fmt.Fprintln(&in, i)
		}
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--topic", topic, "--partitions", "1"); err != nil {
			return err
		}
		if _, err := h.tool(ctx, in.String(), "kafka-console-producer", "--topic", topic); err != nil {
			return err
		}
		out, err := h.tool(ctx, "", "kafka-console-consumer", "--topic", topic, "--group", group, "--from-beginning", "--max-messages", "10", "--timeout-ms", "30000")
		if err != nil {
			return err
		}
		if out != in.String() {
			return fmt.Errorf("the group read %q", out)
		}
		for _, q := range []struct {
			want string
			args []string
		}{
			{`(?m)^` + group + `$`, []string{"--list"}},
			{`(?m)^` + group + ` +(Classic|Consumer|-)? *Empty`, []string{"--list", "--state"}},
			{row(10, 10), []string{"--describe", "--group", group}},
			{group + ` +` + regexp.QuoteMeta(h.boot) + ` +\(` + strconv.Itoa(int(h.node)) + `\) +- +Empty +0`, []string{"--describe", "--group", group, "--state"}},
			{`#PARTITIONS\s*$`, []string{"--describe", "--group", group, "--members"}},
		} {
			if err := h.expect(ctx, []string{q.want}, "kafka-consumer-groups", q.args...); err != nil {
				return err
			}
		}
		return nil
	})
	h.check("tools", "kafka-consumer-groups: a group of the consumer protocol", func() error {
		const group = "tools-group-848"
		if _, err := h.tool(ctx, "", "kafka-console-consumer", "--topic", topic, "--group", group, "--from-beginning", "--max-messages", "10", "--timeout-ms", "60000",
			"--consumer-property", "group.protocol=consumer"); err != nil {
			return err
		}
		for _, q := range []struct {
			want string
			args []string
		}{
			{`(?m)^` + group + ` +Consumer`, []string{"--list", "--type", "consumer"}},
			{group + ` +` + topic + ` +0 +10 +10 +0 +- `, []string{"--describe", "--group", group}},
			{group + ` +` + regexp.QuoteMeta(h.boot) + ` +\(` + strconv.Itoa(int(h.node)) + `\) +\S+ +Empty +0`, []string{"--describe", "--group", group, "--state"}},
			{`\('` + group + `'\) was successful`, []string{"--delete", "--group", group}},
		} {
			if err := h.expect(ctx, []string{q.want}, "kafka-consumer-groups", q.args...); err != nil {
				return err
			}
		}
		return nil
	})
	h.check("tools", "kafka-consumer-groups: reset-offsets: dry run, export, from a file", func() error {
		reset := func(args ...string) []string {
			return slices.Concat([]string{"--group", group, "--reset-offsets"}, args)
		}
		plan, err := h.tool(ctx, "", "kafka-consumer-groups", reset("--topic", topic+":0", "--to-offset", "3", "--dry-run", "--export")...)
		if err != nil {
			return err
		}
		if err := contains(plan, "the exported plan", `"?`+topic+`"?,0,3`); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{group + ` +` + topic + ` +0 +0\s`}, "kafka-consumer-groups", reset("--all-topics", "--to-earliest")...); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{row(10, 10)}, "kafka-consumer-groups", "--describe", "--all-groups"); err != nil {
			return fmt.Errorf("after two dry runs: %w", err)
		}
		file := filepath.Join(h.work, "reset-offsets.csv")
		if err := os.WriteFile(file, []byte(plan), 0o644); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{group + ` +` + topic + ` +0 +3\s`}, "kafka-consumer-groups", reset("--from-file", file, "--execute")...); err != nil {
			return err
		}
		return h.expect(ctx, []string{group + ` +` + topic + ` +0 +3\s`}, "kafka-consumer-groups", reset("--topic", topic, "--to-current", "--execute")...)
	})
	h.check("tools", "kafka-consumer-groups: reset-offsets, delete-offsets, delete", func() error {
		for _, q := range []struct {
			offset int
			args   []string
		}{
			{0, []string{"--to-earliest"}}, {10, []string{"--to-latest"}}, {7, []string{"--shift-by", "-3"}}, {4, []string{"--to-offset", "4"}},
			{0, []string{"--to-datetime", "2020-01-01T00:00:00.000"}}, {0, []string{"--by-duration", "PT1H"}},
		} {
			args := slices.Concat([]string{"--group", group, "--topic", topic, "--reset-offsets", "--execute"}, q.args)
			if err := h.expect(ctx, []string{group + ` +` + topic + ` +0 +` + strconv.Itoa(q.offset) + `\s`}, "kafka-consumer-groups", args...); err != nil {
				return err
			}
		}
		if err := h.expect(ctx, []string{row(0, 10)}, "kafka-consumer-groups", "--describe", "--group", group); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{topic + ` +0 +Successful`}, "kafka-consumer-groups", "--delete-offsets", "--group", group, "--topic", topic); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`\('` + group + `'\) was successful`}, "kafka-consumer-groups", "--delete", "--group", group); err != nil {
			return err
		}
		out, err := h.tool(ctx, "", "kafka-consumer-groups", "--list")
		if err == nil && slices.Contains(strings.Fields(out), group) {
			err = errors.New("a deleted group is listed")
		}
		return err
	})
}

// toolsMembers describes groups that have a member, of each protocol.
func (h *harness) toolsMembers(ctx context.Context) {
	const topic, name = "tools-members", "kafka-consumer-groups"
	for protocol, kind := range map[string]string{"classic": "Classic", "consumer": "Consumer"} {
		h.check("tools", name+": describe a group with a member / group.protocol="+protocol, func() error {
			topic, group := topic+"-"+protocol, "tools-members-"+protocol
			if _, err := h.admin.CreateTopic(ctx, 2, 1, nil, topic); err != nil {
				return err
			}
			opts := []kgo.Opt{kgo.SeedBrokers(h.boot), kgo.ClientID(group + "-client"), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
				kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.RecordPartitioner(kgo.ManualPartitioner())}
			if protocol == "consumer" {
				opts = append(opts, kgo.ServerSideBalancer())
			}
			cl, err := kgo.NewClient(opts...)
			if err != nil {
				return err
			}
			defer cl.Close()
			for p := range int32(2) {
				for range 5 {
					if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: p, Value: []byte("v")}).FirstErr(); err != nil {
						return err
					}
				}
			}
			polling, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			for read := 0; read < 10; {
				fetches := cl.PollFetches(polling)
				if err := fetches.Err(); err != nil {
					return err
				}
				read += fetches.NumRecords()
			}
			if err := cl.CommitUncommittedOffsets(ctx); err != nil {
				return err
			}
			member := `\S+ +/127\.0\.0\.1 +` + group + `-client`
			for _, q := range []struct {
				want []string
				args []string
			}{
				{[]string{`(?m)^` + group + ` +` + kind + ` +Stable`}, []string{"--list", "--type", "--state", "stable"}},
				{[]string{group + ` +` + topic + ` +0 +5 +5 +0 +` + member, group + ` +` + topic + ` +1 +5 +5 +0 +` + member}, []string{"--describe", "--group", group, "--offsets"}},
				{[]string{group + ` +` + member + ` +2 +.*` + topic + `:0,1`}, []string{"--describe", "--group", group, "--members", "--verbose"}},
				{[]string{group + ` +` + regexp.QuoteMeta(h.boot) + ` +\(` + strconv.Itoa(int(h.node)) + `\) +\S+ +Stable .*\b1 *\n`}, []string{"--describe", "--group", group, "--state", "--verbose"}},
			} {
				if err := h.expect(ctx, q.want, name, q.args...); err != nil {
					return err
				}
			}
			if err := h.expect(ctx, []string{`(?i)assignments can only be reset if the group .* is inactive`}, name, "--reset-offsets", "--group", group, "--topic", topic, "--to-earliest", "--execute"); err != nil {
				return err
			}
			if err := h.expect(ctx, []string{topic + ` +0 .*(?i)subscribed`}, name, "--delete-offsets", "--group", group, "--topic", topic+":0"); err != nil {
				return err
			}
			if err := h.expect(ctx, []string{`'` + group + `' could not be deleted due to: .*GroupNotEmptyException`}, name, "--delete", "--group", group); err != nil {
				return err
			}
			cl.Close() // leaves the group
			return h.expect(ctx, []string{`\('` + group + `'\) was successful`}, name, "--delete", "--group", group)
		})
	}
	h.check("tools", name+": --validate-regex", func() error {
		return errors.Join(h.expect(ctx, []string{`^\s*$|\bvalid\b`}, name, "--validate-regex", "tools-.*"), h.expect(ctx, []string{`(?i)invalid|missing`}, name, "--validate-regex", "tools-("))
	})
}

func (h *harness) toolsLoad(ctx context.Context) {
	const records = 100_000
	h.check("tools", "kafka-producer-perf-test, kafka-consumer-perf-test", func() error {
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--topic", "tools-perf", "--partitions", "4"); err != nil {
			return err
		}
		if err := h.expect(ctx, []string{`(?m)^100000 records sent, .* records/sec`}, "kafka-producer-perf-test", "--topic", "tools-perf", "--num-records", strconv.Itoa(records), "--record-size", "512", "--throughput", "-1",
			"--command-property", "acks=all", "compression.type=lz4"); err != nil {
			return err
		}
		return h.expect(ctx, []string{`, 48\.8281, [\d.]+, 100000, `}, "kafka-consumer-perf-test", "--topic", "tools-perf", "--num-records", strconv.Itoa(records), "--timeout", "60000")
	})
	h.check("tools", "kafka-verifiable-producer to kafka-verifiable-consumer", func() error {
		const n = 3000
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--topic", "tools-verifiable", "--partitions", "1"); err != nil {
			return err
		}
		out, err := h.tool(ctx, "", "kafka-verifiable-producer", "--topic", "tools-verifiable", "--max-messages", strconv.Itoa(n), "--acks", "-1", "--repeating-keys", "10")
		if err != nil {
			return err
		}
		var e struct {
			Name         string
			Value        string
			Offset       int64
			Sent, Acked  int
			Count        int
			Success      bool
			TargetRecord int
		}
		next := 0
		each := func(out string, f func() error) error {
			for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
				if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
					return fmt.Errorf("%q: %w", sc.Text(), err)
				}
				if err := f(); err != nil {
					return err
				}
			}
			return nil
		}
		if err := each(out, func() error {
			switch e.Name {
			case "producer_send_success":
				if e.Value != strconv.Itoa(next) || e.Offset != int64(next) {
					return fmt.Errorf("value %s at offset %d, want %d", e.Value, e.Offset, next)
				}
				next++
			case "producer_send_error":
				return errors.New("a record was not acknowledged")
			}
			return nil
		}); err != nil {
			return err
		}
		if next != n {
			return fmt.Errorf("%d records acknowledged, want %d", next, n)
		}
		out, err = h.tool(ctx, "", "kafka-verifiable-consumer", "--topic", "tools-verifiable", "--group-id", "tools-verifiable", "--max-messages", strconv.Itoa(n), "--reset-policy", "earliest", "--verbose")
		if err != nil {
			return err
		}
		next = 0
		committed := false
		if err := each(out, func() error {
			switch e.Name {
			case "record_data":
				if e.Value != strconv.Itoa(next) || e.Offset != int64(next) {
					return fmt.Errorf("consumed value %s at offset %d, want %d", e.Value, e.Offset, next)
				}
				next++
			case "offsets_committed":
				committed = committed || e.Success
			}
			return nil
		}); err != nil {
			return err
		}
		if next != n || !committed {
			return fmt.Errorf("%d records consumed, want %d; offsets committed: %v", next, n, committed)
		}
		return nil
	})
	h.check("tools", "kafka-e2e-latency", func() error {
		if _, err := h.tool(ctx, "", "kafka-topics", "--create", "--topic", "tools-e2e", "--partitions", "1"); err != nil {
			return err
		}
		return h.expect(ctx, []string{`Avg latency: [\d.]+ ms`, `Percentiles: 50th = \d+`}, "kafka-e2e-latency", "--topic", "tools-e2e", "--num-records", "500", "--producer-acks", "all", "--record-size", "100", "--record-key-size", "10", "--num-headers", "2", "--record-header-key-size", "5", "--record-header-size", "8")
	})
}
