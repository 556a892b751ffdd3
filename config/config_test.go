package config

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// rows reads a table of testdata: fields by line, comments and empty lines left out.
func rows(t *testing.T, name string) [][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 0 && f[0] != "#" {
			out = append(out, f)
		}
	}
	return out
}

// here takes what stands after => if something does.
func here(v string) string {
	if _, after, ok := strings.Cut(v, "=>"); ok {
		return after
	}
	return v
}

func checkRow(t *testing.T, d *Def, typ, dflt string) {
	t.Helper()
	if d.Type.String() != typ {
		t.Errorf("%s is %v, want %s", d.Name, d.Type, typ)
	}
	want := strings.Trim(here(dflt), `"`)
	if d.Null != (want == "null") || (!d.Null && d.Default != want) {
		t.Errorf("%s has the default %q (null: %v), want %q", d.Name, d.Default, d.Null, want)
	}
}

func TestEverySettingOfKafka(t *testing.T) {
	updates := map[Update]string{ReadOnly: "read-only", PerBroker: "per-broker", ClusterWide: "cluster-wide"}
	tp := rows(t, "kafka-topics")
	for _, r := range tp {
		d, ok := Topic(r[0])
		if !ok {
			t.Errorf("topic setting %s is missing", r[0])
			continue
		}
		checkRow(t, d, r[1], r[2])
		var syn []string
		for _, s := range d.Synonyms {
			syn = append(syn, s.Name)
			if _, ok := Broker(s.Name); !ok {
				t.Errorf("%s, the broker's setting for %s, is missing", s.Name, d.Name)
			}
		}
		if got, want := strings.Join(syn, " "), strings.Join(r[3:], " "); got != want {
			t.Errorf("%s: synonyms %s, want %s", d.Name, got, want)
		}
	}
	if len(tp) != len(Topics()) {
		t.Errorf("%d topic settings, the table has %d", len(Topics()), len(tp))
	}
	for _, r := range rows(t, "kafka-brokers") {
		d, ok := Broker(r[0])
		if !ok {
			t.Errorf("broker setting %s is missing", r[0])
			continue
		}
		checkRow(t, d, r[1], r[2])
		if got := updates[d.Update]; got != here(r[3]) {
			t.Errorf("%s is %s, want %s", d.Name, got, r[3])
		}
	}
	gr := rows(t, "kafka-groups")
	for _, r := range gr {
		if d, ok := Group(r[0]); ok {
			checkRow(t, d, r[1], r[2])
		} else {
			t.Errorf("group setting %s is missing", r[0])
		}
	}
	if len(gr) != len(Groups()) {
		t.Errorf("%d group settings, the table has %d", len(Groups()), len(gr))
	}
	for name, want := range map[string]string{"metrics": "list ", "interval.ms": "int 300000", "match": "list "} {
		if d, ok := ClientMetrics(name); !ok || d.Type.String()+" "+d.Default != want {
			t.Errorf("client metrics %s: %+v", name, d)
		}
	}
}

// What must hold for every row of every table.
func TestTablesAreSound(t *testing.T) {
	for _, list := range [][]*Def{Topics(), Brokers(), Groups(), ClientMetricsDefs()} {
		for i, d := range list {
			if i > 0 && list[i-1].Name >= d.Name {
				t.Errorf("%s is not in order", d.Name)
			}
			if d.Doc == "" || d.Expect == "" || !strings.HasSuffix(d.Doc, ".") {
				t.Errorf("%s lacks its documentation: %q, %q", d.Name, d.Doc, d.Expect)
			}
			if !d.Null {
				if err := d.Validate(d.Default); err != nil {
					t.Errorf("the default of %s is not valid: %v", d.Name, err)
				}
			}
			if (d.Handling == Enforced) != (d.Note == "") {
				t.Errorf("%s: a setting has a note if and only if it is not enforced", d.Name)
			}
			if strings.ContainsAny(d.Name, " _") || strings.TrimSpace(d.Note) != d.Note {
				t.Errorf("%s: %q", d.Name, d.Note)
			}
		}
	}
	for _, d := range Brokers() {
		if _, ok := foreign[d.Name]; ok {
			t.Errorf("%s is a setting and listed as none", d.Name)
		}
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, tc := range []struct {
		name, value string
		want        string // part of the error, empty for a sound value
	}{
		{"retention.ms", "-1", ""},
		{"retention.ms", " 5 ", ""},
		{"retention.ms", "-2", "at least -1"},
		{"retention.ms", "7d", "write it without a unit: 604800000"},
		{"retention.ms", "9223372036854775808", "whole number"},
		{"retention.ms", "1.5", "whole number"},
		{"retention.ms", "", "whole number"},
		{"retention.bytes", "-5", ""},
		{"retention.bytes", "10 MBs", "write it without a unit: 10485760"},
		{"retention.bytes", "10 apples", "whole number of bytes"},
		{"segment.bytes", "1048575", "at least 1048576"},
		{"segment.bytes", "2147483648", "whole number"},
		{"segment.bytes", "1GiB", "write it without a unit: 1073741824"},
		{"local.retention.ms", "-3", "at least -2"},
		{"cleanup.policy", "compact,delete", ""},
		{"cleanup.policy", " compact , delete ", ""},
		{"cleanup.policy", "", ""},
		{"cleanup.policy", "compact,compact", "there twice"},
		{"cleanup.policy", "compact,", "empty"},
		{"cleanup.policy", "Compact", "none of them"},
		{"remote.storage.enable", "TRUE", ""},
		{"remote.storage.enable", "false", "cannot be switched off"},
		{"remote.storage.enable", "yes", "true"},
		{"compression.type", "zstd", ""},
		{"compression.type", "brotli", "one of uncompressed"},
		{"compression.gzip.level", "0", "from 1 to 9, or -1"},
		{"compression.gzip.level", "-1", ""},
		{"compression.zstd.level", "-131072", ""},
		{"compression.zstd.level", "23", "from -131072 to 22"},
		{"min.cleanable.dirty.ratio", "1.01", "from 0 to 1"},
		{"min.cleanable.dirty.ratio", "NaN", "a number"},
		{"min.cleanable.dirty.ratio", "1e-3", ""},
		{"message.timestamp.type", "createtime", "one of CreateTime"},
		{"leader.replication.throttled.replicas", "*", ""},
		{"leader.replication.throttled.replicas", "0:1,1:2", ""},
		{"leader.replication.throttled.replicas", "0-1", "partition:broker"},
		{"min.insync.replicas", "0", "at least 1"},
		{"errors.deadletterqueue.group.enable", "true", "no share groups"},
		{"errors.deadletterqueue.group.enable", "false", ""},
		{"max.message.bytes", long, "at most"},
		{"compression.type", "a\x00b", "not valid text"},
		{"compression.type", "a\xffb", "not valid text"},
		{"compression.type", "line\nbreak", `"line\nbreak"`},
	} {
		d, _ := Topic(tc.name)
		err := d.Validate(tc.value)
		if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s=%.20q: %v, want %q", tc.name, tc.value, err, tc.want)
		}
		if err != nil && (len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\n\x00") || !utf8.ValidString(err.Error())) {
			t.Errorf("%s: an error that cannot be logged: %q", tc.name, err)
		}
	}
	for name, bad := range map[string]string{
		"listeners": "9092", "advertised.listeners": "PLAINTEXT://host", "listener.security.protocol.map": "A:B", "log.retention.hours": "2h",
		"max.connections.per.ip.overrides": "host", "remote.storage.url": "http://x", "etcd.endpoints": "localhost:2379", "admin.listener": "9644",
		"create.topic.policy.class.name": "a.B", "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer", "log.dirs": "/a,/b",
		"remote.log.storage.system.enable": "false", "memory.max.bytes": "1000", "offsets.topic.replication.factor": "40000", "etcd.prefix": "varve/",
		"add.partitions.to.txn.retry.backoff.ms": "0", "add.partitions.to.txn.retry.backoff.max.ms": "-1", "group.consumer.regex.refresh.interval.ms": "9999",
	} {
		d, ok := Broker(name)
		if !ok {
			t.Fatal(name)
		}
		if err := d.Validate(bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, bad, err)
		}
	}
	d, _ := Broker("etcd.password")
	if err := d.Validate("se\x00cret"); err == nil || strings.Contains(err.Error(), "cret") {
		t.Error("a password is shown:", err)
	}
	if got := unitHint("log.retention.hours", "7d"); got != "write it without a unit: 168" {
		t.Error(got)
	}
}

func TestNearest(t *testing.T) {
	for in, want := range map[string]string{
		"num.partition": "num.partitions", "log.retention.hour": "log.retention.hours", "auto_create_topics_enable": "auto.create.topics.enable",
		"defualt.replication.factor": "default.replication.factor", "nodeid": "node.id", "retention.mss": "retention.ms",
		"completely.unknown.thing.of.somebody": "", "": "", strings.Repeat("a", 1000): "",
	} {
		if got, _ := Nearest(in); got != want {
			t.Errorf("%.30s: %s, want %s", in, got, want)
		}
	}
}

func TestResolve(t *testing.T) {
	r := Resolver{}
	def := r.Topic(nil)
	if def.RetentionMs != 604800000 || def.SegmentBytes != 1<<30 || !def.Delete || def.Compact || def.MaxMessageBytes != 1048588 || def.LocalRetentionMs != -2 ||
		def.TimestampAfterMaxMs != 3600000 || def.TimestampBeforeMaxMs != math.MaxInt64 || def.MinInsyncReplicas != 1 || def.CompressionType != "producer" ||
		def.LZ4Level != 9 || def.ZstdLevel != 3 || def.GzipLevel != -1 || def.MinCleanableDirtyRatio != 0.5 || def.SegmentMs != 604800000 || def.DeleteRetentionMs != 86400000 {
		t.Errorf("%+v", def)
	}
	for _, tc := range []struct {
		what     string
		r        Resolver
		override map[string]string
		value    string
		source   Source
	}{
		{"hours", Resolver{Static: map[string]string{"log.retention.hours": "2"}}, nil, "7200000", StaticBroker},
		{"minutes before hours", Resolver{Static: map[string]string{"log.retention.hours": "2", "log.retention.minutes": "3"}}, nil, "180000", StaticBroker},
		{"ms before minutes", Resolver{Static: map[string]string{"log.retention.ms": "9", "log.retention.minutes": "3"}}, nil, "9", StaticBroker},
		{"for ever in hours", Resolver{Static: map[string]string{"log.retention.hours": "-7"}}, nil, "-1", StaticBroker},
		{"for longer than can be counted", Resolver{Static: map[string]string{"log.retention.hours": "2147483647"}}, nil, "7730941129200000", StaticBroker},
		{"cluster before file", Resolver{ClusterDynamic: map[string]string{"log.retention.ms": "8"}, Static: map[string]string{"log.retention.ms": "9"}}, nil, "8", DynamicDefaultBroker},
		{"broker before cluster", Resolver{BrokerDynamic: map[string]string{"log.retention.ms": "7"}, ClusterDynamic: map[string]string{"log.retention.ms": "8"}}, nil, "7", DynamicBroker},
		{"topic before all", Resolver{BrokerDynamic: map[string]string{"log.retention.ms": "7"}}, map[string]string{"retention.ms": "6"}, "6", DynamicTopic},
		{"what is not sound does not count", Resolver{Static: map[string]string{"log.retention.ms": "x", "log.retention.minutes": "1"}}, map[string]string{"retention.ms": "-9"}, "60000", StaticBroker},
		{"nothing", Resolver{}, nil, "604800000", Default},
	} {
		if v, s := tc.r.Value("retention.ms", tc.override); v != tc.value || s != tc.source {
			t.Errorf("%s: %s from %d, want %s from %d", tc.what, v, s, tc.value, tc.source)
		}
	}
	c := Resolve(map[string]string{"cleanup.policy": "compact,delete", "message.timestamp.type": "LogAppendTime", "compression.type": "zstd", "compression.zstd.level": "7"}, nil, nil,
		map[string]string{"min.insync.replicas": "2"})
	if !c.Compact || !c.Delete || !c.LogAppendTime || c.CompressionLevel() != 7 || c.MinInsyncReplicas != 2 {
		t.Errorf("%+v", c)
	}
	if c := Resolve(map[string]string{"cleanup.policy": ""}, nil, nil, nil); c.Compact || c.Delete || len(c.CleanupPolicy) != 0 {
		t.Errorf("an empty policy keeps everything: %+v", c)
	}
}

func showSynonyms(e Entry) string {
	var out []string
	for _, s := range e.Synonyms {
		v := "-"
		if s.Value != nil {
			v = *s.Value
		}
		out = append(out, fmt.Sprintf("%d:%s=%s", s.Source, s.Name, v))
	}
	return strings.Join(out, " ")
}

func find(t *testing.T, es []Entry, name string) Entry {
	t.Helper()
	for _, e := range es {
		if e.Name == name {
			return e
		}
	}
	t.Fatal("not described: " + name)
	return Entry{}
}

func TestDescribe(t *testing.T) {
	r := Resolver{
		ClusterDynamic: map[string]string{"log.retention.ms": "5", "min.insync.replicas": "2"},
		Static:         map[string]string{"log.retention.hours": "24", "ssl.keystore.password": "secret", "node.id": "3"},
	}
	es := r.DescribeTopic(map[string]string{"retention.ms": "4", "preallocate": "true"})
	if len(es) != len(Topics()) {
		t.Fatal(len(es))
	}
	e := find(t, es, "retention.ms")
	if *e.Value != "4" || e.Source != DynamicTopic || e.IsDefault() || e.Type != Long ||
		showSynonyms(e) != "1:retention.ms=4 3:log.retention.ms=5 4:log.retention.hours=24 5:log.retention.hours=168" {
		t.Errorf("%+v %s", e, showSynonyms(e))
	}
	if e := find(t, es, "min.insync.replicas"); *e.Value != "2" || e.Source != DynamicDefaultBroker || showSynonyms(e) != "3:min.insync.replicas=2 5:min.insync.replicas=1" {
		t.Errorf("%+v %s", e, showSynonyms(e))
	}
	if e := find(t, es, "remote.storage.enable"); *e.Value != "true" || e.Source != Default || showSynonyms(e) != "5:remote.storage.enable=true" {
		t.Errorf("%+v %s", e, showSynonyms(e))
	}
	if e := find(t, es, "preallocate"); !strings.Contains(e.Doc, "Not enforced") {
		t.Error(e.Doc)
	}
	es = r.DescribeBroker()
	if len(es) != len(Brokers()) {
		t.Fatal(len(es))
	}
	if e := find(t, es, "ssl.keystore.password"); e.Value != nil || !e.Sensitive || e.Source != StaticBroker || strings.Contains(fmt.Sprint(showSynonyms(e)), "secret") {
		t.Errorf("%+v %s", e, showSynonyms(e))
	}
	if e := find(t, es, "node.id"); *e.Value != "3" || !e.ReadOnly || e.Source != StaticBroker {
		t.Errorf("%+v", e)
	}
	if e := find(t, es, "log.retention.ms"); *e.Value != "5" || e.ReadOnly || e.Source != DynamicDefaultBroker {
		t.Errorf("%+v", e)
	}
	if e := find(t, es, "log.retention.minutes"); e.Value != nil || e.Source != Default {
		t.Errorf("%+v", e)
	}
	if es := DescribeBrokerDefaults(r.ClusterDynamic); len(es) != 2 || es[0].Name != "log.retention.ms" || es[0].Source != DynamicDefaultBroker {
		t.Errorf("%+v", es)
	}
	if e := find(t, r.DescribeGroup(map[string]string{"consumer.session.timeout.ms": "46000"}), "consumer.session.timeout.ms"); *e.Value != "46000" || e.Source != DynamicGroup {
		t.Errorf("%+v", e)
	}
	if e := find(t, DescribeClientMetrics(nil), "interval.ms"); *e.Value != "300000" || e.Source != Default {
		t.Errorf("%+v", e)
	}
}

func TestValidateTopic(t *testing.T) {
	m := func(kv ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			out[kv[i]] = kv[i+1]
		}
		return out
	}
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprint("x", i)] = ""
	}
	for _, tc := range []struct {
		in   map[string]string
		want string
	}{
		{nil, ""},
		{m("cleanup.policy", "compact", "remote.storage.enable", "true"), ""}, // which Kafka refuses
		{m("retention.ms", "1000", "local.retention.ms", "1000"), ""},
		{m("retention.ms", "1000", "local.retention.ms", "1001"), "local.retention.ms=1001 must not be more"},
		{m("local.retention.ms", "-1"), "must not be -1"},
		{m("local.retention.ms", "-1", "retention.ms", "-1"), ""},
		{m("local.retention.bytes", "5"), ""},
		{m("local.retention.bytes", "5", "retention.bytes", "4"), "local.retention.bytes=5 must not be more"},
		{m("local.retention.bytes", "-1", "retention.bytes", "4"), "must not be -1"},
		{m("min.compaction.lag.ms", "10", "max.compaction.lag.ms", "9"), "must not be more than max.compaction.lag.ms"},
		{m("remote.log.copy.disable", "true"), ""},
		{m("remote.log.copy.disable", "true", "local.retention.ms", "5"), "must be -2 or the same"},
		{m("remote.log.copy.disable", "true", "local.retention.ms", "5", "retention.ms", "5"), ""},
		{m("remote.copy.lag.ms", "10", "local.retention.ms", "9"), "remote.copy.lag.ms=10"},
		{m("remote.copy.lag.bytes", "10", "local.retention.bytes", "9"), "remote.copy.lag.bytes=10"},
		{m("message.format.version", "3.0"), "removed in Kafka 4.0"},
		{m("message.downconversion.enable", "true"), "removed in Kafka 4.0"},
		{m("retenton.ms", "1"), "did you mean retention.ms?"},
		{m("log.retention.ms", "1"), "Unknown config name: log.retention.ms"},
		{m("bad\nname", "1"), `"bad\nname"`},
		{m("remote.storage.enable", "false"), "cannot be switched off"},
		{m("retention.ms", "abc", "zzz", "1"), "retention.ms"}, // the first in order
		{many, "more than there are"},
	} {
		err := ValidateTopic(tc.in)
		if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%v: %v, want %q", tc.in, err, tc.want)
		}
	}
	r := Resolver{Static: m("log.retention.hours", "1")}
	if err := r.ValidateTopic(m("local.retention.ms", "7200000")); err == nil {
		t.Error("the broker's retention counts for what the topic leaves out")
	}
}

func TestValidateBroker(t *testing.T) {
	one := func(n, v string) map[string]string { return map[string]string{n: v} }
	for _, tc := range []struct {
		in        map[string]string
		perBroker bool
		want      string
	}{
		{one("log.retention.ms", "5"), false, ""},
		{one("log.retention.ms", "5"), true, ""},
		{one("log.retention.ms", "-5"), true, "at least -1"},
		{one("log.retention.hours", "5"), true, "cannot be changed while brokers run"},
		{one("node.id", "5"), true, "cannot be changed while brokers run"},
		{one("ssl.keystore.location", "x"), true, ""},
		{one("ssl.keystore.location", "x"), false, "cannot be set for all"},
		{one("process.roles", "x"), false, "etcd"},
		{one("cordoned.log.dirs", "*"), true, ""},
		{one("cordoned.log.dirs", "/d"), true, "expected * or nothing"},
		{one("cordoned.log.dirs", "*"), false, "cannot be set for all"},
		{one("leadership.enable", "false"), false, "cannot be set for all"},
		{one("max.conections", "5"), false, "did you mean max.connections?"},
		{map[string]string{"log.local.retention.ms": "10", "log.retention.ms": "9"}, false, "must not be more"},
		{one("log.retention.ms", "0"), false, "gone at once"},
		{one("max.connections.per.ip", "0"), false, "nobody could connect"},
		{map[string]string{"max.connections.per.ip": "0", "max.connections.per.ip.overrides": "127.0.0.1:5"}, false, ""},
	} {
		err := ValidateBroker(tc.in, tc.perBroker)
		if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%v: %v, want %q", tc.in, err, tc.want)
		}
	}
	r := Resolver{Static: map[string]string{"log.retention.hours": "1", "log.cleanup.policy": "compact"}}
	for _, tc := range []struct {
		resource int8
		name     string
		in       map[string]string
		ok       bool
	}{
		{ResourceTopic, "t", one("local.retention.ms", "7200000"), false},
		{ResourceTopic, "t", one("local.retention.ms", "7"), true},
		{ResourceBroker, "", one("log.local.retention.ms", "7200000"), false},
		{ResourceBroker, "1", one("log.local.retention.ms", "7"), true},
		{ResourceBroker, "", one("ssl.key.password", "7"), false},
		{ResourceGroup, "g", one("consumer.session.timeout.ms", "7"), false},
		{ResourceGroup, "g", one("consumer.session.timeout.ms", "50000"), true},
		{ResourceGroup, "g", one("consumer.session.timeout.ms", "60001"), false},
		{ResourceGroup, "g", one("consumer.heartbeat.interval.ms", "4999"), false},
		{ResourceGroup, "g", one("consumer.heartbeat.interval.ms", "15000"), true},
		{ResourceGroup, "g", one("consumer.heartbeat.interval.ms", "15001"), false},
		{ResourceGroup, "g", one("consumer.assignment.interval.ms", "0"), true},
		{ResourceClientMetrics, "m", one("interval.ms", "7"), false},
		{ResourceBrokerLogger, "1", one("root", "INFO"), false},
	} {
		if err := r.ValidateResource(tc.resource, tc.name, tc.in); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if !IsList(ResourceTopic, "cleanup.policy") || IsList(ResourceTopic, "retention.ms") || IsList(99, "x") || !IsList(ResourceGroup, "streams.rack.aware.assignment.tags") {
		t.Error("lists")
	}
	if r.DefaultValue(ResourceTopic, "cleanup.policy") != "compact" || r.DefaultValue(ResourceGroup, "consumer.session.timeout.ms") != "45000" || r.DefaultValue(99, "") != "" {
		t.Error("default values")
	}
	if err := ValidateGroup(one("consumer.session.timeout.ms", "0")); err == nil {
		t.Error("0 ms")
	}
	if err := ValidateGroup(one("session.timeout.ms", "0")); err == nil {
		t.Error("unknown")
	}
	if err := ValidateClientMetrics(one("interval.ms", "1000")); err != nil {
		t.Error(err)
	}
}

// What a group has set for itself counts within the bounds that the broker has now; else what the broker has.
func TestGroupConfig(t *testing.T) {
	c, _, err := Build(FromMode("test", map[string]string{"node.id": "1", "log.dirs": "/d", "listeners": "PLAINTEXT://h:9092", "remote.storage.url": "mem://",
		"group.consumer.session.timeout.ms": "50000", "group.consumer.assignment.interval.ms": "700"}), Machine{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		values map[string]string
		want   string
	}{
		{nil, "50s 5s 700ms"},
		{map[string]string{"consumer.session.timeout.ms": " 46000 ", "consumer.heartbeat.interval.ms": "6000", "consumer.assignment.interval.ms": "0"}, "46s 6s 0s"},
		{map[string]string{"consumer.session.timeout.ms": "1", "consumer.heartbeat.interval.ms": "999999"}, "45s 15s 700ms"},
		{map[string]string{"consumer.session.timeout.ms": "x", "share.session.timeout.ms": "50001"}, "50s 5s 700ms"},
	} {
		g := c.Group(tc.values)
		if got := fmt.Sprint(g.SessionTimeout, g.HeartbeatInterval, g.AssignmentInterval); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.values, got, tc.want)
		}
	}
}
