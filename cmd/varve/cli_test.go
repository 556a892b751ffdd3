package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/varve/varve/internal/admin"
	"github.com/varve/varve/internal/child"
)

type result struct {
	code        int
	out, errOut string
}

// varve runs a command line in this process.
func varve(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return varveContext(context.Background(), strings.NewReader(stdin), nil, args...)
}

func varveContext(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) result {
	root := newRoot()
	var out, errOut bytes.Buffer
	if stdout == nil {
		stdout = &out
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(&errOut)
	code := run(ctx, root, &errOut)
	return result{code, out.String(), errOut.String()}
}

func (r result) want(t *testing.T, code int, out, errOut string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.errOut, errOut) {
		t.Errorf("exit %d\nstdout %q\nstderr %q\nwant %d, stdout with %q, stderr with %q", r.code, r.out, r.errOut, code, out, errOut)
	}
	if r.code != 0 && strings.Count(r.errOut, "\n") != 1 {
		t.Errorf("the message is not one line: %q", r.errOut)
	}
}

// Everything that is wrong with a command line itself: exit 2, one line that says what would be right, and no broker is
// asked (there is none).
func TestUsageErrors(t *testing.T) {
	for _, c := range []struct{ args, message string }{
		{"topics", `unknown command "topics"; did you mean topic?`},
		{"frobnicate --deep", `unknown command "frobnicate"; there are:`},
		{"topic", "varve topic: which of alter, create, delete, describe, list?"},
		{"topic creat x", `unknown command "creat"; did you mean create?`},
		{"topic create", "the topic's name is missing"},
		{"topic create a/b", `topic name "a/b": only letters`},
		{"topic create a a", `topic "a" is given twice`},
		{"topic create a --partitions 0", "must be a number from 1"},
		{"topic create a --partitions 3 -p 4", "the flag is given twice"},
		{"topic create a --config retention.ms", "must be name=value"},
		{"topic create a --config x=1 --config x=2", `"x" is given twice`},
		{"topic alter a", "nothing to alter"},
		{"topic alter a --config x=1 --delete-config x", `"x" is named twice`},
		{"topic list extra", `unexpected argument "extra"`},
		{"topic list --bootstrap-server localhost", `must be host:port, like 127.0.0.1:9092`},
		{"topic list --bootstrap-server localhost:99999", "from 1 to 65535"},
		{"topic list --request-timeout -5s", "must not be negative"},
		{"topic list --request-timeout 5", "must be a duration with its unit"},
		{"topic list -o yaml", "must be table or json"},
		{"topic list --nope", "unknown flag: --nope (see varve topic list --help)"},
		{"produce", "the topic's name is missing"},
		{"produce t u", `unexpected argument "u"`},
		{"produce t --acks 2", "must be one of all, 1, 0"},
		{"produce t --acks 1 --idempotent", "--idempotent needs --acks all"},
		{"produce t --compression lzma", "must be one of none, gzip"},
		{"produce t --batch-bytes 10MBs", "must be a number of bytes, like"},
		{"produce t --batch-bytes 1", "from 1024 to"},
		{"produce t --linger -1ms", "must not be negative"},
		{"produce t --partition -1", "must be a number from 0"},
		{"produce t --key k --key-separator :", "give one of the two"},
		{"produce t --header novalue", "must be name=value"},
		{"produce t --delimiter ab", "must be one byte"},
		{"produce t --key-separator \\q", `unknown escape \q`},
		{"produce t --timestamp tomorrow", `"tomorrow" is not a time; expected`},
		{"produce t --input json --null-marker x", "JSON says all of that itself"},
		{"produce t --keep-partition", "needs --input json"},
		{"consume t --offset soon", "must be earliest, latest, an offset like 42"},
		{"consume t --offset 5 --from-beginning", "give one of them"},
		{"consume t --offset 5 --offset 6", "the flag is given twice"},
		{"consume t --max 0", "must be a number from 1"},
		{"consume t --timeout -1s", "must not be negative"},
		{"consume t --partition 1,1", "given twice"},
		{"consume t --partition -1", "must be a number from 0"},
		{"consume t --format %q", "unknown %q"},
		{"consume t --format 5%", "ends in a single %"},
		{"consume t -o json --format %v", "are for -o text"},
		{"consume t --group g --offset 5", "must be earliest or latest"},
		{"consume t --group g --partition 1", "do not go with --group"},
		{"config describe", "what to describe is missing"},
		{"config describe topic", "the name of the topic is missing"},
		{"config describe brokers", `"brokers" is none of topic, broker`},
		{"config describe broker one", "named by its node.id"},
		{"config describe cluster 1", "takes no name"},
		{"config alter topic t", "nothing to alter"},
		{"config alter topic t --delete a=b", "without a value"},
		{"group list --state busy", `there is no "busy"; there are: Empty, PreparingRebalance`},
		{"group list --type share", `there is no "share"; there are: classic, consumer`},
		{"group describe", "the group's name is missing"},
		{"group describe g g", `group "g" is given twice`},
		{"group delete", "the group's name is missing"},
		{"group reset-offsets g --topic t", "reset to what? one of --to-earliest, --to-latest"},
		{"group reset-offsets g --topic t --to-latest --to-offset 3", "--to-latest and --to-offset contradict each other"},
		{"group reset-offsets g --topic t --to-latest=false", "leaves nothing to reset to"},
		{"group reset-offsets g --to-latest", "of which topics? --topic or --all-topics"},
		{"group reset-offsets g --to-latest --topic t --all-topics", "--all-topics and --topic contradict each other"},
		{"group reset-offsets g --to-latest --topic t --execute --dry-run", "--execute and --dry-run contradict each other"},
		{"group reset-offsets g --to-latest --topic t --topic t:0", `"t" is given twice; several partitions are given as t:0,1`},
		{"group reset-offsets g --to-latest --topic t:0,x", `must be a number from 0, not "x"`},
		{"group reset-offsets g --to-latest --topic t:0,0", "partition 0 is given twice"},
		{"group reset-offsets g --to-latest --topic t:", `must be a number from 0, not ""`},
		{"group reset-offsets g --to-latest --topic a/b", "only letters, digits"},
		{"group reset-offsets g --topic t --to-datetime noon", `"noon" is not a time; expected`},
		{"group reset-offsets g --topic t --by-duration P1M", "in ISO 8601 days to seconds, like P1DT2H"},
		{"group reset-offsets g --topic t --by-duration -5m", "must not be negative"},
		{"group reset-offsets g --topic t --shift-by few", "must be a number of records"},
		{"group reset-offsets g --topic t --to-offset -1", "must be an offset"},
		{"cluster", "varve cluster: which of brokers, status?"},
		{"cluster status x", `unexpected argument "x"`},
		{"partition list a a", `topic "a" is given twice`},
		{"partition delete-records t", "the topic and the partition"},
		{"partition delete-records t 0", "say --before which offset"},
		{"partition delete-records t first --before 3", `a partition is named by its number, as in 3; not "first"`},
		{"partition delete-records t 0 --before -2", "an offset, or -1 for the high watermark"},
		{"reassign plan", "plan what? --topic, or --from-broker"},
		{"reassign plan --topic t --from-broker 1", "give one of the two"},
		{"reassign plan --from-broker 1 --replication-factor 2", "--replication-factor goes with --topic"},
		{"reassign plan --topic t --brokers 1,x", `as in 1,2,3; not "x"`},
		{"reassign plan --topic t --brokers 1,1", "broker 1 is given twice"},
		{"reassign plan --from-broker -1", "must be a node.id"},
		{"reassign apply", "the plan's file is missing"},
		{"reassign cancel", "cancel what? topics by name, or --all"},
		{"reassign cancel t --all", "cancel what? topics by name, or --all"},
		{"tier status --admin-url 127.0.0.1:9644", "must be a URL like http://127.0.0.1:9644"},
		{"tier status a b", `unexpected argument "b"`},
		{"tier retired a", `unexpected argument "a"`},
		{"tier verify a b", `unexpected argument "b"`},
		{"tier verify", "which cluster? --config FILE names the server.properties of one of its brokers, --data-dir DIR the directory of a varve dev"},
		{"tier verify --data-dir d --config f", "give one of them"},
		{"tier verify ..", `".." cannot be a topic name`},
		{"version now", `unexpected argument "now"`},
	} {
		r := varve(t, "", strings.Fields(c.args)...)
		if r.code != exitUsage || !strings.Contains(r.errOut, c.message) || strings.Count(r.errOut, "\n") != 1 {
			t.Errorf("varve %s: exit %d, %q; want 2 and %q", c.args, r.code, r.errOut, c.message)
		}
	}
}

func TestNoBroker(t *testing.T) {
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"topic", "list"}, {"produce", "t"}, {"consume", "t"}, {"group", "list"}, {"config", "describe", "cluster"},
	} {
		varve(t, "x\n", append(args, "-b", addr)...).want(t, exitFailed, "", "cannot reach "+addr+": connection refused; is a broker running there? `varve dev` starts one")
	}
	varve(t, "", "tier", "status", "--admin-url", "http://"+addr).want(t, exitFailed, "", "cannot reach the admin listener at http://"+addr)
	varve(t, "", "topic", "list", "-b", "no-such-host.invalid:9092").want(t, exitFailed, "", "does not resolve")
}

// A server that takes the connection and says nothing is given up on after
// --request-timeout, by each command, and not when the client library would.
func TestSilentBroker(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	addr := ln.Addr().String()
	var wg sync.WaitGroup
	for _, args := range [][]string{{"topic", "list"}, {"produce", "t"}, {"consume", "t"}, {"group", "list"}} {
		wg.Go(func() {
			began := time.Now()
			varve(t, "x\n", append(args, "-b", addr, "--request-timeout", "200ms")...).want(t, exitFailed, "", "cannot reach "+addr+": no answer within 200ms")
			if took := time.Since(began); took > 9*time.Second { // the library's own patience is 10 s
				t.Errorf("%v ended after %v", args, took)
			}
		})
	}
	wg.Wait()
}

func TestVersion(t *testing.T) {
	varve(t, "", "version").want(t, 0, "varve dev, commit ", "")
	varve(t, "", "version", "-o", "json").want(t, 0, `"version": "dev"`, "")
}

func TestTopics(t *testing.T) {
	f := startFake(t)
	b := "--bootstrap-server=" + f.addr()
	varve(t, "", "topic", "list", b, "-o", "json").want(t, 0, "[]\n", "")
	varve(t, "", "topic", "create", "clicks", b, "--partitions", "3", "--config", "retention.ms=-1").want(t, 0, "clicks  3           1            true", "")
	varve(t, "", "topic", "create", "clicks", b).want(t, 1, "", "varve: creating topic clicks: it exists already; --if-not-exists accepts that (TOPIC_ALREADY_EXISTS)")
	varve(t, "", "topic", "create", "clicks", "views", b, "--if-not-exists", "-o", "json").want(t, 0, `"partitions": 3`, "")
	varve(t, "", "topic", "create", "wide", b, "-r", "3").want(t, 1, "", `larger than 1,\x1b[2J the number of brokers (INVALID_REPLICATION_FACTOR)`)
	varve(t, "", "topic", "create", "dry", b, "--dry-run").want(t, 0, "false", "")
	varve(t, "", "topic", "list", b).want(t, 0, "TOPIC   PARTITIONS  REPLICATION\nclicks  3           1\nviews   1           1\n", "")
	f.create("__internal", 1)
	if r := varve(t, "", "topic", "list", b); strings.Contains(r.out, "__internal") {
		t.Errorf("internal topic listed: %s", r.out)
	}
	varve(t, "", "topic", "list", b, "--internal").want(t, 0, "__internal", "")
	varve(t, "", "topic", "describe", "clicks", b).want(t, 0, "config  retention.ms=-1", "")
	var d []describedTopic
	if err := json.Unmarshal([]byte(varve(t, "", "topic", "describe", "clicks", b, "-o", "json").out), &d); err != nil {
		t.Fatal(err)
	}
	if len(d) != 1 || len(d[0].Partitions) != 3 || d[0].Partitions[2].Leader != 1 || d[0].Configs["retention.ms"] != "-1" || len(d[0].Configs) != 1 {
		t.Errorf("described: %+v", d)
	}
	varve(t, "", "topic", "describe", "nope", b).want(t, 1, "", "topic nope: it does not exist; `varve topic list` shows what does")
	varve(t, "", "topic", "describe", "nope", "clicks", b, "-o", "json").want(t, 1, `"topic": "clicks"`, "topic nope")

	// The partitions are refused, so the setting beside them is not applied either.
	varve(t, "", "topic", "alter", "clicks", b, "--partitions", "2", "--config", "a=b").want(t, 1, "", "the topic has as many already (INVALID_PARTITIONS)")
	f.look(func() {
		if f.topics["clicks"].configs["a"] != "" {
			t.Error("half of the change was applied")
		}
	})
	varve(t, "", "topic", "alter", "clicks", b, "--config", "retention.mss=1").want(t, 1, "", "unknown setting retention.mss; retention.ms? (INVALID_CONFIG)")
	varve(t, "", "topic", "alter", "clicks", b, "--partitions", "5", "--config", "a=b", "--delete-config", "retention.ms", "--dry-run").want(t, 0, "", "")
	f.look(func() {
		if len(f.topics["clicks"].parts) != 3 {
			t.Error("--dry-run added partitions")
		}
	})
	varve(t, "", "topic", "alter", "clicks", b, "--partitions", "5", "--config", "a=b", "--delete-config", "retention.ms").want(t, 0, "config  a=b", "")

	varve(t, "", "topic", "delete", "views", "nope", b).want(t, 1, "views  true", "deleting topic nope: it does not exist; --if-exists accepts that")
	varve(t, "", "topic", "delete", "nope", b, "--if-exists", "-o", "json").want(t, 0, `"deleted": false`, "")
}

func TestConfigs(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	b := "--bootstrap-server=" + f.addr()
	varve(t, "", "config", "alter", "topic", "t", b, "--set", "retention.ms=5").want(t, 0, "retention.ms  set     5      true", "")
	r := varve(t, "", "config", "describe", "topic", "t", b)
	r.want(t, 0, "retention.ms  5      DYNAMIC_TOPIC_CONFIG", "")
	if strings.Contains(r.out, "segment.ms") {
		t.Errorf("defaults shown without --all: %s", r.out)
	}
	varve(t, "", "config", "describe", "topic", "t", b, "--all", "-o", "json").want(t, 0, `"name": "segment.ms"`, "")
	varve(t, "", "config", "describe", "topic", "t", b, "--name", "segment.ms").want(t, 0, "604800000", "")
	varve(t, "", "config", "describe", "topic", "t", b, "--name", "segment.mss").want(t, 1, "", `topic t has no setting "segment.mss"`)
	varve(t, "", "config", "describe", "topic", "nope", b).want(t, 1, "", "describing the settings of topic nope: it does not exist")
}

func TestGroupNamesAreEscaped(t *testing.T) {
	f := startFake(t)
	b := "--bootstrap-server=" + f.addr()
	varve(t, "", "group", "list", b).want(t, 0, `readers\x1b[31m  Empty`, "")
	varve(t, "", "group", "list", b, "-o", "json").want(t, 0, `"readers\u001b[31m"`, "")
}

func TestProduceAndConsume(t *testing.T) {
	f := startFake(t)
	f.create("t", 3)
	b := "--bootstrap-server=" + f.addr()
	in := "k1\tv1\nk2\tNULL\nNULL\tv3\nk4\t"
	varve(t, in, "produce", "t", b, "-K", `\t`, "--null-marker", "NULL", "-H", "a=1", "-H", "b=", "--timestamp", "1700000000123", "-z", "zstd").
		want(t, 0, "", "4 records acknowledged to t, ")
	r := varve(t, "", "consume", "t", b, "--from-beginning", "--exit-at-end", "--null-marker", "~", "--format", `%k|%v|%K|%V|%h|%T|%D|%t|%%\n`)
	got := sortedLines(r.out)
	want := "k1|v1|2|2|a=1,b=|1700000000123|2023-11-14T22:13:20.123Z|t|%\n" +
		"k2|~|2|-1|a=1,b=|1700000000123|2023-11-14T22:13:20.123Z|t|%\n" +
		"k4||2|0|a=1,b=|1700000000123|2023-11-14T22:13:20.123Z|t|%\n" +
		"~|v3|-1|2|a=1,b=|1700000000123|2023-11-14T22:13:20.123Z|t|%"
	if r.code != 0 || got != want {
		t.Errorf("exit %d %s\n%s\nwant\n%s", r.code, r.errOut, got, want)
	}
}

// JSON out of one topic and into another keeps keys, values, headers, nulls, bytes that are no text, and timestamps.
func TestJSONRoundTrip(t *testing.T) {
	f := startFake(t)
	f.create("a", 1)
	f.create("b", 1)
	b := "--bootstrap-server=" + f.addr()
	in := `{"key":null,"value":"","headers":[],"timestamp":1}
{"key":"k\u001b","value":null,"headers":[{"key":"h","value":null},{"key":"h","value":"x"}],"timestamp":1700000000000}
{"key_base64":"/w==","value_base64":"AP/+","headers":[{"key":"bin","value_base64":"gA=="}],"timestamp":2}
`
	varve(t, in, "produce", "a", b, "--input", "json").want(t, 0, "", "3 records acknowledged")
	first := varve(t, "", "consume", "a", b, "--from-beginning", "-e", "-o", "json")
	varve(t, first.out, "produce", "b", b, "--input", "json").want(t, 0, "", "3 records acknowledged")
	second := varve(t, "", "consume", "b", b, "--from-beginning", "-e", "-o", "json")
	if want := strings.ReplaceAll(first.out, `"topic":"a"`, `"topic":"b"`); second.out != want {
		t.Errorf("round trip:\n%s\nwant\n%s", second.out, want)
	}
	if want := `{"topic":"a","partition":0,"offset":1,"timestamp":1700000000000,"timestamp_type":"CreateTime","key":"k\u001b","value":null,"headers":[{"key":"h","value":null},{"key":"h","value":"x"}]}`; !strings.Contains(first.out, want) {
		t.Errorf("got %s\nwant %s", first.out, want)
	}
	varve(t, "{\"key\":\"k\"}\n{\"val\":1}\n", "produce", "a", b, "--input", "json").want(t, 1, "", `line 2: not a record: json: unknown field "val"`)
	varve(t, "{} {}\n", "produce", "a", b, "--input", "json").want(t, 1, "", "more than one JSON value")
	varve(t, "{}\n", "produce", "a", b, "--input", "json", "--keep-partition").want(t, 1, "", "no partition")
}

func TestConsumeBounds(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	f.create("two", 2)
	f.create("empty", 2)
	b := "--bootstrap-server=" + f.addr()
	for i := range 5 {
		varve(t, fmt.Sprintf("%d\n", i), "produce", "t", b, "-q", "--timestamp", fmt.Sprint(1000*(i+1))).want(t, 0, "", "")
		varve(t, fmt.Sprintf("%d\n", i), "produce", "two", b, "-q", "-p", fmt.Sprint(i%2)).want(t, 0, "", "")
	}
	for _, c := range []struct{ args, out string }{
		{"t --from-beginning -e", "0 1 2 3 4"},
		{"t --from-beginning --max 2", "0 1"},
		{"t --offset 3 -e", "3 4"},
		{"t --offset 5 -e", ""},
		{"t --offset -2 -e", "3 4"},
		{"t --offset -99 -e", "0 1 2 3 4"},
		{"t --timestamp 2500 -e", "2 3 4"},
		{"t --timestamp 99999 -e", ""},
		{"t --offset earliest --timeout 1s", "0 1 2 3 4"},
		{"t -e", ""},
		{"empty --from-beginning -e", ""},
		{"two --from-beginning -e -p 1", "1 3"},
		{"two --offset 3 -e", ""},
		{"t --from-beginning -e --isolation read_committed", "0 1 2 3 4"},
	} {
		r := varve(t, "", append([]string{"consume", b}, strings.Fields(c.args)...)...)
		if got := strings.Join(strings.Fields(r.out), " "); r.code != 0 || got != c.out {
			t.Errorf("consume %s: exit %d %s, %q; want %q", c.args, r.code, r.errOut, got, c.out)
		}
	}
	varve(t, "", "consume", "t", b, "--offset", "6", "-e").want(t, 1, "", "--offset 6 is beyond the end of t partition 0, whose offsets are 0 to 5")
	varve(t, "", "consume", "two", b, "--offset", "9", "-e").want(t, 1, "", "beyond the end of every partition of two")
	varve(t, "", "consume", "t", b, "-p", "7").want(t, 1, "", "--partition 7: topic t has one partition, 0")
	varve(t, "", "produce", "two", b, "-p", "7").want(t, 1, "", "--partition 7: topic two has 2 partitions, 0 to 1")
	varve(t, "", "consume", "nope", b).want(t, 1, "", "topic nope: it does not exist")
	varve(t, "", "consume", "t", b, "--from-beginning", "--max", "9", "--timeout", "1s").want(t, 1, "0\n1\n2\n3\n4\n", "no record for 1s: 5 of 9 records came")
	f.look(func() {
		p := f.topics["t"].parts[0]
		p.start, p.batches = 2, p.batches[2:]
	})
	varve(t, "", "consume", "t", b, "--offset", "1", "-e").want(t, 0, "2\n3\n4\n", "offset 1 is gone; beginning at 2")
}

func TestProduceFailures(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	f.create("refuse", 1)
	b := "--bootstrap-server=" + f.addr()
	varve(t, "a\n", "produce", "never", b, "--timeout", "5s").want(t, 1, "", "line 1: it does not exist; `varve topic list`")
	varve(t, "a\nb\n", "produce", "refuse", b).want(t, 1, "", "(INVALID_RECORD); 0 records acknowledged")
	varve(t, "k:v\nno separator\nk:v\n", "produce", "t", b, "-K", ":").want(t, 1, "", `producing to t: line 2: no key: the separator ":" is not in the line; 1 records acknowledged`)
	varve(t, "ok\n"+strings.Repeat("x", 3000)+"\n", "produce", "t", b, "--batch-bytes", "2048").want(t, 1, "", "line 2 is longer than 2048 bytes; raise --batch-bytes")
	varve(t, "5000 five\nnow six\n", "produce", "t", b, "--timestamp-separator", " ").want(t, 1, "", `line 2: "now" is not a time`)
	varve(t, "", "produce", "t", b).want(t, 0, "", "0 records acknowledged to t")
	varve(t, "a\x00b", "produce", "t", b, "--delimiter", `\0`, "--acks", "1").want(t, 0, "", "2 records acknowledged to t")
	varve(t, "a\n", "produce", "t", b, "--acks", "0", "--linger", "0s").want(t, 0, "", "1 records sent to t")

	r := varve(t, "a\nb\n", "produce", "t", b, "-o", "json", "-q")
	var rep produceReport
	if err := json.Unmarshal([]byte(r.out), &rep); err != nil || r.code != 0 || r.errOut != "" {
		t.Fatalf("%+v %v", r, err)
	}
	if rep.Acknowledged != 2 || rep.Bytes != 2 || len(rep.Partitions) != 1 || rep.Partitions[0].LastOffset != rep.Partitions[0].FirstOffset+1 {
		t.Errorf("report %+v", rep)
	}
}

// A broken stdin is an error, not the end of the input.
func TestProduceReadError(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	r := varveContext(context.Background(), io.MultiReader(strings.NewReader("a\n"), brokenReader{}), nil, "produce", "t", "-b", f.addr())
	r.want(t, 1, "", "reading line 2: input/output error; 1 records acknowledged")
}

func TestProduceTimeout(t *testing.T) {
	f := startFake(t)
	f.create("stall", 1)
	varve(t, "a\n", "produce", "stall", "-b", f.addr(), "--timeout", "1s").want(t, 1, "", "no acknowledgement for 1s (--timeout); 0 records acknowledged, 1 without an answer")
}

// endless is an input of lines without end; it counts what was taken.
type endless struct{ taken atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
		if i%4000 == 3999 {
			b[i] = '\n'
		}
	}
	e.taken.Add(int64(len(b)))
	return len(b), nil
}

// An input larger than memory: while nobody acknowledges, no more is read than may be buffered.
func TestProduceReadsNoMoreThanItMayHold(t *testing.T) {
	f := startFake(t)
	f.create("stall", 1)
	in := &endless{}
	varveContext(context.Background(), in, nil, "produce", "stall", "-b", f.addr(), "--timeout", "2s", "--buffer-bytes", "4MiB", "-z", "none").
		want(t, 1, "", "no acknowledgement for 2s (--timeout); 0 records acknowledged")
	if n := in.taken.Load(); n > 16<<20 {
		t.Errorf("%d bytes were read, and 4 MiB may be buffered", n)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, syscall.EIO }

// Ctrl-C while stdin has nothing more to read: what was read is flushed and counted, and the code is that of the signal.
func TestProduceInterrupted(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	pr, pw := io.Pipe()
	defer pw.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		io.WriteString(pw, "a\nb\nc\n")
		for {
			f.mu.Lock()
			n := f.topics["t"].parts[0].end()
			f.mu.Unlock()
			if n == 3 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel(signalled{syscall.SIGINT})
	}()
	varveContext(ctx, pr, nil, "produce", "t", "-b", f.addr()).want(t, 130, "", "varve: interrupted; 3 records acknowledged")
}

// A record is refused while stdin stays open and silent: the command ends, it does not wait for another line.
func TestProduceFailureWhileStdinIsSilent(t *testing.T) {
	f := startFake(t)
	f.create("refuse", 1)
	pr, pw := io.Pipe()
	defer pw.Close()
	go io.WriteString(pw, "a\n")
	varveContext(context.Background(), pr, nil, "produce", "refuse", "-b", f.addr()).want(t, 1, "", "line 1: ")
}

type closedPipe struct{ after int }

func (c *closedPipe) Write(b []byte) (int, error) {
	if c.after -= len(b); c.after < 0 {
		return 0, fmt.Errorf("write |1: %w", syscall.EPIPE)
	}
	return len(b), nil
}

func TestBrokenPipeIsQuiet(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	varve(t, strings.Repeat("line\n", 100), "produce", "t", "-b", f.addr(), "-q").want(t, 0, "", "")
	for _, args := range [][]string{
		{"consume", "t", "--from-beginning"}, {"consume", "t", "--from-beginning", "-o", "json"}, {"topic", "list"}, {"topic", "describe", "t"}, {"version"},
	} {
		if args[0] != "version" {
			args = append(args, "-b", f.addr())
		}
		r := varveContext(context.Background(), strings.NewReader(""), &closedPipe{}, args...)
		if r.code != 141 || r.errOut != "" {
			t.Errorf("%v: exit %d, %q", args, r.code, r.errOut)
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestFullDiskIsAnError(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	varve(t, "a\n", "produce", "t", "-b", f.addr(), "-q").want(t, 0, "", "")
	varveContext(context.Background(), strings.NewReader(""), fullDisk{}, "consume", "t", "--from-beginning", "-b", f.addr()).want(t, 1, "", "no space left on device")
}

// Ctrl-C is how an endless consume ends; where more was asked for, it is an interruption.
func TestConsumeInterrupted(t *testing.T) {
	f := startFake(t)
	f.create("t", 1)
	varve(t, "a\n", "produce", "t", "-b", f.addr(), "-q").want(t, 0, "", "")
	for _, c := range []struct {
		args []string
		code int
	}{{nil, 0}, {[]string{"--max", "5"}, 130}} {
		ctx, cancel := context.WithCancelCause(context.Background())
		shown := writeFunc(func(p []byte) (int, error) { // it consumes
			cancel(signalled{syscall.SIGINT})
			return len(p), nil
		})
		r := varveContext(ctx, strings.NewReader(""), shown, append([]string{"consume", "t", "--from-beginning", "-b", f.addr()}, c.args...)...)
		if r.code != c.code {
			t.Errorf("%v: exit %d %s, want %d", c.args, r.code, r.errOut, c.code)
		}
	}
}

func TestTierStatus(t *testing.T) {
	srv := httptest.NewServer(admin.Handler(admin.Options{Tier: func(topic string) ([]admin.TierStatus, error) {
		switch topic {
		case "gone":
			return nil, admin.ErrUnknownTopic
		case "sick":
			return nil, errors.New("manifest unreadable")
		}
		return []admin.TierStatus{{Topic: "t", Partition: 1, LogStart: 0, LocalStart: 90, RemoteEnd: 100, HighWatermark: 120, Objects: 3, Bytes: 12345678, UploadLagMs: 1500}}, nil
	}}, true))
	defer srv.Close()
	u := "--admin-url=" + srv.URL
	varve(t, "", "tier", "status", u).want(t, 0, "t      1          0          90           100         120             3        12.3 MB  1.5s", "")
	r := varve(t, "", "tier", "status", "t", u, "-o", "json")
	var list []map[string]any
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 1 || len(list[0]) != 9 {
		t.Fatalf("%s %v", r.out, err)
	}
	for k, v := range map[string]any{"topic": "t", "partition": 1., "log_start": 0., "local_start": 90., "remote_end": 100., "high_watermark": 120., "objects": 3., "bytes": 12345678., "upload_lag_ms": 1500.} {
		if list[0][k] != v {
			t.Errorf("%s = %v, want %v", k, list[0][k], v)
		}
	}
	varve(t, "", "tier", "status", "gone", u).want(t, 1, "", `topic "gone" does not exist`)
	varve(t, "", "tier", "status", "sick", u).want(t, 1, "", "manifest unreadable")
	varve(t, "", "tier", "status", u+"/nowhere").want(t, 1, "", "is that the admin listener of a varve broker?")
}

func TestTierRetired(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	listener := func(list []admin.Retired, err error) string {
		srv := httptest.NewServer(admin.Handler(admin.Options{Retired: func() ([]admin.Retired, error) { return list, err }}, true))
		t.Cleanup(srv.Close)
		return "--admin-url=" + srv.URL
	}
	broker := listener([]admin.Retired{
		{Object: "data/b", Since: at, Earliest: at.Add(2 * time.Hour)},
		{Object: "data/a", Topic: "t", Partition: 1, Bytes: 12345678, Since: at, Earliest: at.Add(time.Hour)},
	}, nil)
	worker := listener([]admin.Retired{{Object: "data/c", Topic: "u", Since: at, Earliest: at.Add(90 * time.Minute)}, {Topic: "v", Partition: -1, Since: at, Earliest: at.Add(3 * time.Hour)}}, nil)
	r := varve(t, "", "tier", "retired", broker, worker)
	r.want(t, 0, `TOPIC  PARTITION  BYTES    SINCE                 EARLIEST              OBJECT
t      1          12.3 MB  2026-03-01T12:00:00Z  2026-03-01T13:00:00Z  data/a
u      0          -        2026-03-01T12:00:00Z  2026-03-01T13:30:00Z  data/c
-      -          -        2026-03-01T12:00:00Z  2026-03-01T14:00:00Z  data/b
v      -          -        2026-03-01T12:00:00Z  2026-03-01T15:00:00Z  (the topic is deleted)
`, "")
	var list []admin.Retired
	r = varve(t, "", "tier", "retired", broker, "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 2 || list[0].Object != "data/a" || list[0].Bytes != 12345678 || !list[0].Earliest.Equal(at.Add(time.Hour)) {
		t.Errorf("%s %v", r.out, err)
	}
	if r := varve(t, "", "tier", "retired", listener(nil, nil), "-o", "json"); r.code != 0 || strings.TrimSpace(r.out) != "[]" {
		t.Errorf("none: %+v", r)
	}
	varve(t, "", "tier", "retired", listener(nil, errors.New("the broker is starting"))).want(t, 1, "", "the broker is starting")
}

func TestHealth(t *testing.T) {
	ready := errors.Join(errors.New("starting"), errors.New("etcd has no leader"))
	var warn error
	srv := httptest.NewServer(admin.Handler(admin.Options{Ready: func() error { return ready }, Warn: func() error { return warn }}, true))
	defer srv.Close()
	u := "--admin-url=" + srv.URL
	varve(t, "", "health", u).want(t, 1, "", "not ready: starting; etcd has no leader")
	ready = nil
	varve(t, "", "health", u).want(t, 0, "ready\n", "")
	warn = errors.Join(errors.New("compaction fails"), errors.New("etcd is away"))
	if r := varve(t, "", "health", u); r.code != 0 || r.out != "ready\n" || r.errOut != "warning: compaction fails\nwarning: etcd is away\n" {
		t.Errorf("with warnings: %+v", r)
	}
	warn = nil
	varve(t, "", "health", u+"/nowhere").want(t, 1, "", "answered 404 Not Found; is that the admin listener of a varve broker or compaction worker?")
	varve(t, "", "health", "--admin-url=localhost").want(t, 2, "", "must be a URL like http://127.0.0.1:9644")
	srv.Close()
	varve(t, "", "health", u).want(t, 1, "", "connection refused; is the process running")
}

func sortedLines(s string) string {
	l := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range l {
		for j := range l[:i] {
			if l[i] < l[j] {
				l[i], l[j] = l[j], l[i]
			}
		}
	}
	return strings.Join(l, "\n")
}

// What needs a process of its own: signals, closed descriptors, a pipe whose reader goes away.
func TestProcess(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "varve")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f := startFake(t)
	f.create("t", 1)
	f.create("stall", 1)
	sh := func(script string) (string, int) {
		cmd := exec.Command("bash", "-c", script)
		cmd.Env = append(os.Environ(), "V="+bin, "B="+f.addr())
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		script, out string
		code        int
	}{
		{`seq 20000 | $V produce t -b $B -z lz4 -q && $V consume t -b $B --from-beginning -e | cksum; seq 20000 | cksum`, "", 0},
		{`set -o pipefail; $V consume t -b $B --from-beginning | head -1`, "1\n", 141},
		{`$V consume t -b $B --from-beginning --max 1 >/dev/full`, "varve: writing: write /dev/stdout: no space left on device\n", 1},
		{`$V produce t -b $B <&-`, "varve: stdin is closed; pipe the lines to produce into it\n", 1},
		{`$V produce t -b $B </dev/null`, "0 records acknowledged", 0},
		// A record that nobody answers: the first signal begins the wait for it, the second ends the process.
		{`(echo a; exec sleep 5 2>/dev/null) | $V produce stall -b $B & P=$!; sleep 1; kill -TERM $P; sleep 0.5; kill -TERM $P; wait $P`, "", 143},
	} {
		out, code := sh(c.script)
		if code != c.code || !strings.Contains(out, c.out) {
			t.Errorf("%s\nexit %d: %q; want %d with %q", c.script, code, out, c.code, c.out)
		}
		if strings.Contains(c.script, "cksum") {
			if l := strings.Split(out, "\n"); len(l) < 2 || l[0] != l[1] {
				t.Errorf("what came out is not what went in: %q", out)
			}
		}
	}
}
