package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/datadriven"
)

// A story is what somebody gives the broker (a file, variables, flags) and what the broker makes of it.
func TestBuildStories(t *testing.T) {
	datadriven.Walk(t, "testdata/build", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var env, set []string
			m := Machine{Hostname: "host.example"}
			show := ""
			dev := false
			for _, a := range d.CmdArgs {
				switch a.Key {
				case "env":
					env = append(env, a.Vals...)
				case "set":
					set = append(set, a.Vals...)
				case "required":
					m.Required = a.Vals
				case "no-broker":
					m.NoBroker = true
				case "brokers":
					d.ScanArgs(t, "brokers", &m.Brokers)
				case "memory":
					d.ScanArgs(t, "memory", &m.MemoryBytes)
				case "show":
					show = strings.Join(a.Vals, ",")
				case "dev":
					dev = true
				default:
					d.Fatalf(t, "unknown argument %s", a.Key)
				}
			}
			input := strings.NewReplacer("<BOM>", "\ufeff", "<CRLF>", "\r", "<NUL>", "\x00", "<FF>", "\xff").Replace(d.Input)
			var out strings.Builder
			fail := func(err error) string {
				var e *Error
				if !errors.As(err, &e) {
					d.Fatalf(t, "%T %v", err, err)
				}
				for _, p := range e.Problems {
					fmt.Fprintf(&out, "error: %s\n", p)
				}
				return out.String()
			}
			file, err := ParseProperties("server.properties", []byte(input))
			if err != nil {
				return fail(err)
			}
			if d.Cmd == "parse" {
				for _, n := range file.names() {
					fmt.Fprintf(&out, "%s: %q = %q\n", file[n].Origin, n, file[n].Value)
				}
				return out.String()
			}
			flags, err := FromFlags(set)
			if err != nil {
				return fail(err)
			}
			layers := []Settings{file, FromEnvironment(env), flags}
			if dev {
				layers = append([]Settings{FromMode("varve dev", DevDefaults())}, layers...)
			}
			c, warnings, err := Build(Merge(layers...), m)
			for _, w := range warnings {
				fmt.Fprintf(&out, "warning: %s\n", w)
			}
			if err != nil {
				return fail(err)
			}
			switch show {
			case "":
				out.WriteString("ok\n")
			case "listeners":
				for _, l := range c.Listeners {
					fmt.Fprintf(&out, "%+v\n", l)
				}
			default:
				v := reflect.ValueOf(*c)
				for _, f := range strings.Split(show, ",") {
					x := v.FieldByName(f)
					if !x.IsValid() {
						d.Fatalf(t, "no field %s", f)
					}
					fmt.Fprintf(&out, "%s: %v\n", f, x.Interface())
				}
			}
			return out.String()
		})
	})
}

// Nothing of a password may be shown, wherever it stands.
func TestSecretsAreNotShown(t *testing.T) {
	const canary = "hunter2-canary"
	set, err := ParseProperties("f", []byte("etcd.password="+canary+"${x}\nssl.keystore.password="+canary+"\nssl.keystore.key="+canary+"\netcd.password.file=/x\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, warnings, err := Build(set, Machine{})
	if err == nil || len(warnings) == 0 {
		t.Fatal("expected complaints")
	}
	if s := err.Error() + fmt.Sprint(warnings); strings.Contains(s, canary) {
		t.Error(s)
	}
	r := Resolver{Static: set.Plain()}
	for _, e := range r.DescribeBroker() {
		if e.Value != nil && strings.Contains(*e.Value, canary) {
			t.Error(e.Name)
		}
		for _, s := range e.Synonyms {
			if s.Value != nil && strings.Contains(*s.Value, canary) {
				t.Error(e.Name)
			}
		}
	}
}

// The name of every setting survives the way through the environment.
func TestEnvironmentNames(t *testing.T) {
	for _, d := range Brokers() {
		s := FromEnvironment([]string{EnvName(d.Name) + "=v=w"})
		if s[d.Name].Value != "v=w" || len(s) != 1 {
			t.Errorf("%s: %v", d.Name, s)
		}
	}
	if EnvName("node.id") != "VARVE_NODE_ID" {
		t.Error(EnvName("node.id"))
	}
	if s := FromEnvironment([]string{"VARVE_ZOOKEEPER_CLIENTCNXNSOCKET=x"}); s["zookeeper.clientCnxnSocket"].Value != "x" {
		t.Error(s)
	}
	if s := FromEnvironment([]string{"PATH=x", "VARVE_", "VARVE_=x", "VARVE", ""}); len(s) != 0 {
		t.Error(s)
	}
}

func TestMilliseconds(t *testing.T) {
	for in, want := range map[int64]time.Duration{0: 0, 1500: 1500 * time.Millisecond, -1: -time.Millisecond, 1<<63 - 1: 9223372036854 * time.Millisecond, -1 << 63: -9223372036854 * time.Millisecond} {
		if got := Milliseconds(in); got != want {
			t.Errorf("%d: %d, want %d", in, got, want)
		}
	}
}

// Every setting that is enforced for brokers reaches the typed configuration or a topic's: changing its value
// changes something there.
func TestEnforcedSettingsReachSomewhere(t *testing.T) {
	base := map[string]string{"node.id": "1", "log.dirs": "/d", "listeners": "PLAINTEXT://h:9092,A://h:9093", "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,A:PLAINTEXT"}
	build := func(name, value string) (*BrokerConfig, *TopicConfig) {
		set := map[string]string{}
		for n, v := range base {
			set[n] = v
		}
		if name != "" {
			set[name] = value
		}
		if name == "log.dir" {
			delete(set, "log.dirs")
		}
		if name == "broker.id" {
			delete(set, "node.id")
		}
		c, _, _ := Build(FromMode("test", set), Machine{})
		topic := Resolver{Static: c.Static}.Topic(nil)
		c.Static = nil
		return c, topic
	}
	other := map[string]string{
		"listeners": "PLAINTEXT://h:9,A://h:9093", "advertised.listeners": "PLAINTEXT://x:1", "listener.security.protocol.map": "A:PLAINTEXT",
		"inter.broker.listener.name": "A", "log.dirs": "/e", "log.dir": "/e", "broker.id": "7", "node.id": "7", "remote.storage.url": "mem://",
		"max.connections.per.ip.overrides": "10.0.0.1:1", "log.cleanup.policy": "compact", "log.message.timestamp.type": "LogAppendTime",
		"compression.type": "lz4", "record.validation": "full", "etcd.endpoints": "http://a:1", "admin.listener": "", "log.level": "warn", "log.format": "json",
		"etcd.prefix": "/x", "log.cleaner.min.cleanable.ratio": "0.25", "memory.max.bytes": "99999999", "wal.max.bytes": "9999999999", "compression.gzip.level": "5", "offsets.topic.compression.codec": "4",
		"replica.selector.class":            "org.apache.kafka.common.replica.LeaderSelector",
		"log.cleaner.io.buffer.load.factor": "0.5", "log.cleaner.io.max.bytes.per.second": "1000", "log.cleaner.job.max.bytes": "99999999",
		"group.coordinator.rebalance.protocols": "classic", "group.consumer.assignors": "range", "group.consumer.migration.policy": "upgrade",
	}
	// These decide whether the broker starts, and nothing else, or are the controller's.
	gates := map[string]bool{"cordoned.log.dirs": true, "leadership.enable": true, "security.inter.broker.protocol": true, "remote.log.storage.system.enable": true, "allow.everyone.if.no.acl.found": true}
	b0, t0 := build("", "")
	for _, d := range Brokers() {
		if d.Handling != Enforced || gates[d.Name] {
			continue
		}
		v := other[d.Name]
		if _, ok := other[d.Name]; !ok {
			switch d.Type {
			case Boolean:
				v = "true"
				if d.Default == "true" {
					v = "false"
				}
			case Int, Long, Short:
				for _, try := range []string{"7", "300", "5000", "2000000", "-1"} {
					if d.Validate(try) == nil && try != d.Default {
						v = try
						break
					}
				}
			default:
				v = "other"
			}
		}
		if err := d.Validate(v); err != nil {
			t.Errorf("%s: %v", d.Name, err)
			continue
		}
		b1, t1 := build(d.Name, v)
		if reflect.DeepEqual(b0, b1) && reflect.DeepEqual(t0, t1) {
			t.Errorf("%s=%s changes nothing", d.Name, v)
		}
	}
	for _, d := range Topics() {
		if d.Handling != Enforced || d.Name == "remote.storage.enable" {
			continue
		}
		v := map[string]string{"cleanup.policy": "compact", "compression.type": "lz4", "message.timestamp.type": "LogAppendTime", "segment.bytes": "2000000",
			"min.cleanable.dirty.ratio": "0.1", "remote.log.copy.disable": "true", "unclean.leader.election.enable": "true",
			"leader.replication.throttled.replicas": "*", "follower.replication.throttled.replicas": "*"}[d.Name]
		if v == "" {
			v = "7"
		}
		if reflect.DeepEqual(t0, Resolver{}.Topic(map[string]string{d.Name: v})) {
			t.Errorf("topic: %s=%s changes nothing", d.Name, v)
		}
	}
}

func FuzzParseProperties(f *testing.F) {
	for _, p := range []string{"testdata/build/files", "testdata/build/broker"} {
		if b, err := os.ReadFile(p); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte("a=b\\\n c\nd : e\n#x\n!y\nf\\u0041=1"))
	f.Fuzz(func(t *testing.T, in []byte) {
		set, err := ParseProperties("f", in)
		if err != nil {
			if !utf8.ValidString(err.Error()) || strings.Contains(err.Error(), "\x00") {
				t.Fatalf("%q", err)
			}
			return
		}
		// What was read can be written down and read again.
		var out strings.Builder
		esc := strings.NewReplacer(`\`, `\\`, "=", `\=`, ":", `\:`, "#", `\#`, "!", `\!`, " ", `\ `, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\f", `\f`)
		for _, n := range set.names() {
			fmt.Fprintf(&out, "%s=%s\n", esc.Replace(n), esc.Replace(set[n].Value))
		}
		again, err := ParseProperties("f", []byte(out.String()))
		if err != nil {
			t.Fatalf("%v\n%q", err, out.String())
		}
		if !reflect.DeepEqual(again.Plain(), set.Plain()) {
			t.Fatalf("%q\n%q", again.Plain(), set.Plain())
		}
		_, _, _ = Build(set, Machine{})
	})
}

// A value that is set while brokers run counts as it was validated: without the blanks around it.
func TestBlanksAroundValues(t *testing.T) {
	base := map[string]string{"node.id": "1", "log.dirs": "/d", "listeners": "PLAINTEXT://h:9092", "remote.storage.url": "mem://"}
	c, _, err := Build(Merge(FromMode("the file", base), FromMode("dynamic", map[string]string{
		"max.connections": " 1000", "producer.id.expiration.ms": "86400000 ", "transaction.partition.verification.enable": " true",
		"remote.log.manager.fetch.max.bytes.per.second": "\t1000", "max.connections.per.ip.overrides": " 127.0.0.1:5 , [::1]:6",
	})), Machine{Hostname: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxConnections != 1000 || c.ProducerIDExpiration != 24*time.Hour || !c.VerifyTransactions || c.MaxConnectionsPerIPOverrides["::1"] != 6 || c.MaxConnectionsPerIPOverrides["127.0.0.1"] != 5 {
		t.Errorf("%+v", c)
	}
}

func TestOverrides(t *testing.T) {
	for in, want := range map[string]map[string]int{
		"127.0.0.1:200": {"127.0.0.1": 200}, "0:0:0:0:0:0:0:1:7": {"::1": 7}, "[2001:DB8::0001]:3": {"2001:db8::1": 3}, "::ffff:10.1.2.3:4": {"10.1.2.3": 4},
		"localhost:5": nil, "10.0.0.1": nil, "10.0.0.1:-1": nil, "10.0.0.1:x": nil, ":3": nil, "10.0.0.0/8:3": nil,
	} {
		got, err := parseOverrides(in)
		if (err != nil) != (want == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
}
