package broker_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

const (
	topicResource  = 2
	brokerResource = 4
)

func newTopic(name string, partitions int32, rf int16, configs ...string) kmsg.CreateTopicsRequestTopic {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, rf
	for i := 0; i+1 < len(configs); i += 2 {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = configs[i], &configs[i+1]
		t.Configs = append(t.Configs, c)
	}
	return t
}

func (c *client) create(validateOnly bool, topics ...kmsg.CreateTopicsRequestTopic) []kmsg.CreateTopicsResponseTopic {
	c.t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.ValidateOnly, req.Topics = 30_000, validateOnly, topics
	return c.do(at(7, req)).(*kmsg.CreateTopicsResponse).Topics
}

func (c *client) topics() []string {
	c.t.Helper()
	var names []string
	for _, t := range c.do(at(12, kmsg.NewPtrMetadataRequest())).(*kmsg.MetadataResponse).Topics {
		names = append(names, *t.Topic)
	}
	return names
}

// TestCreateTopics: what cannot be created, and that nothing of it is (B27).
func TestCreateTopics(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("exists", 1)
	assigned := func(lists ...[]int32) kmsg.CreateTopicsRequestTopic {
		nt := newTopic("x", -1, -1)
		for i, l := range lists {
			a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
			a.Partition, a.Replicas = int32(i), l
			nt.ReplicaAssignment = append(nt.ReplicaAssignment, a)
		}
		return nt
	}
	numbered := assigned([]int32{0})
	numbered.NumPartitions = 1
	gap := assigned([]int32{0})
	gap.ReplicaAssignment[0].Partition = 1
	twice := assigned([]int32{0}, []int32{0})
	twice.ReplicaAssignment[1].Partition = 0
	null := newTopic("x", 1, 1, "retention.ms", "")
	null.Configs[0].Value = nil
	self := y.do(at(12, kmsg.NewPtrMetadataRequest())).(*kmsg.MetadataResponse).Brokers[0].NodeID
	const (
		partitions = protocol.CodeInvalidPartitions
		factor     = protocol.CodeInvalidReplicationFactor
		assignment = protocol.CodeInvalidReplicaAssignment
		invalid    = protocol.CodeInvalidRequest
		config     = protocol.CodeInvalidConfig
		policy     = protocol.CodePolicyViolation
	)
	for _, tc := range []struct {
		name  string
		topic kmsg.CreateTopicsRequestTopic
		codes []int16
	}{
		{"0 partitions", newTopic("x", 0, 1), []int16{partitions}},
		{"-2 partitions", newTopic("x", -2, 1), []int16{partitions}},
		{"-2^31 partitions", newTopic("x", math.MinInt32, 1), []int16{partitions}},
		{"10^7 partitions", newTopic("x", 10_000_000, 1), []int16{partitions, policy}},
		{"2^31-1 partitions", newTopic("x", math.MaxInt32, 1), []int16{partitions, policy}},
		{"replication factor 0", newTopic("x", 1, 0), []int16{factor}},
		{"replication factor 2 of 1 broker", newTopic("x", 1, 2), []int16{factor}},
		{"replication factor 32767", newTopic("x", 1, math.MaxInt16), []int16{factor}},
		{"replication factor -2", newTopic("x", 1, -2), []int16{factor}},
		{"a broker that is not", assigned([]int32{77}), []int16{assignment}},
		{"a broker twice", assigned([]int32{self, self}), []int16{assignment}},
		{"no broker", assigned([]int32{}), []int16{assignment}},
		{"broker -1", assigned([]int32{-1}), []int16{assignment}},
		{"assignment and a number of partitions", numbered, []int16{invalid}},
		{"assignment with a gap", gap, []int16{assignment}},
		{"assignment of a partition twice", twice, []int16{assignment}},
		{"unknown setting", newTopic("x", 1, 1, "no.such", "1"), []int16{config}},
		{"a broker's setting", newTopic("x", 1, 1, "sasl.enabled.mechanisms", "PLAIN"), []int16{config}},
		{"a password", newTopic("x", 1, 1, "ssl.keystore.password", "secret"), []int16{config}},
		{"wrong type", newTopic("x", 1, 1, "retention.ms", "a week"), []int16{config}},
		{"null value", null, []int16{config, invalid}},
		{"retention -2", newTopic("x", 1, 1, "retention.ms", "-2"), []int16{config}},
		{"above 2^63-1", newTopic("x", 1, 1, "retention.ms", "9223372036854775808"), []int16{config}},
		{"local retention above retention", newTopic("x", 1, 1, "retention.ms", "1000", "local.retention.ms", "2000"), []int16{config}},
		{"compaction lags that cross", newTopic("x", 1, 1, "min.compaction.lag.ms", "2000", "max.compaction.lag.ms", "1000"), []int16{config}},
		{"unknown cleanup policy", newTopic("x", 1, 1, "cleanup.policy", "burn"), []int16{config}},
		{"no object storage", newTopic("x", 1, 1, "remote.storage.enable", "false"), []int16{config}},
		{"a large value", newTopic("x", 1, 1, "leader.replication.throttled.replicas", strings.Repeat("1:1,", 8000)), []int16{config}},
		{"it exists", newTopic("exists", 1, 1), []int16{protocol.CodeTopicAlreadyExists}},
	} {
		for _, validateOnly := range []bool{true, false} {
			got := y.create(validateOnly, tc.topic)
			if len(got) != 1 || !slices.Contains(tc.codes, got[0].ErrorCode) || got[0].TopicID != [16]byte{} {
				t.Errorf("%s: %s, id %x", tc.name, protocol.Name(got[0].ErrorCode), got[0].TopicID)
			} else if got[0].ErrorMessage == nil || *got[0].ErrorMessage == "" {
				t.Errorf("%s: %s and no message", tc.name, protocol.Name(got[0].ErrorCode))
			}
		}
	}
	if got := y.create(false, newTopic("x", 1, 1), newTopic("good", 1, 1), newTopic("x", 2, 1)); len(got) != 2 {
		t.Errorf("one name twice: %d answers", len(got))
	} else {
		for _, r := range got {
			if (r.Topic == "good") != (r.ErrorCode == 0) || r.Topic == "x" && r.ErrorCode != invalid {
				t.Errorf("one name twice: %s %s", r.Topic, protocol.Name(r.ErrorCode))
			}
		}
	}
	if got := y.create(true, newTopic("x", 1, 1)); got[0].ErrorCode != 0 {
		t.Errorf("validate only: %s", protocol.Name(got[0].ErrorCode))
	}
	if got := y.create(false); len(got) != 0 {
		t.Errorf("no topics: %d answers", len(got))
	}
	if got := y.topics(); !slices.Equal(got, []string{"exists", "good"}) {
		t.Errorf("topics afterwards: %q", got)
	}
	// Many in one request: as many as there may be, and more.
	var many []kmsg.CreateTopicsRequestTopic
	for i := range 10_000 {
		many = append(many, newTopic(fmt.Sprintf("many-%d", i), 1, 1))
	}
	for _, r := range y.create(true, many...) {
		if r.ErrorCode != 0 {
			t.Fatalf("one of 10,000: %s", protocol.Name(r.ErrorCode))
		}
	}
	for _, r := range y.create(false, append(many, newTopic("one-more", 1, 1))...) {
		if r.ErrorCode != invalid {
			t.Fatalf("one of 10,001: %s", protocol.Name(r.ErrorCode))
		}
	}
	for i := range many {
		many[i].NumPartitions = 1000
	}
	refused := 0
	for _, r := range y.create(true, many...) {
		if r.ErrorCode != 0 {
			refused++
		}
	}
	if refused == 0 {
		t.Error("10,000,000 partitions in one request are possible")
	}
	// Defaults, and times that make no sense.
	for i, ms := range []int32{0, -1, math.MinInt32, math.MaxInt32} {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis, req.Topics = ms, []kmsg.CreateTopicsRequestTopic{newTopic(fmt.Sprintf("default-%d", i), -1, -1)}
		if r := y.do(at(7, req)).(*kmsg.CreateTopicsResponse).Topics[0]; r.ErrorCode != 0 || r.NumPartitions < 1 || r.ReplicationFactor != 1 || r.TopicID == [16]byte{} || len(r.Configs) == 0 {
			t.Errorf("timeout %d: %+v", ms, r)
		}
	}
	y.unharmed("creations")
}

// TestManyTopicsInOneRequest: there are no quotas yet, and so the bound of a
// request is what stands between a client and the broker. As many topics as it
// allows are made, within a share of the memory, while others are served (B27).
func TestManyTopicsInOneRequest(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	const n = 10_000
	var many []kmsg.CreateTopicsRequestTopic
	for i := range n {
		many = append(many, newTopic(fmt.Sprintf("many-%d", i), 1, 1))
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC()
	before := heap()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.Topics = 120_000, many
	at(7, req)
	maker := dial(t, b)
	f, id := maker.frame(req)
	maker.send(f)
	answered := make(chan struct{})
	var answer []byte
	var err error
	go func() {
		defer close(answered)
		maker.nc.SetDeadline(time.Time{}) // as long as it takes: under the race detector half a minute
		var size [4]byte
		if _, err = io.ReadFull(maker.r, size[:]); err == nil {
			answer = make([]byte, binary.BigEndian.Uint32(size[:]))
			_, err = io.ReadFull(maker.r, answer)
		}
	}()
	peak, served := uint64(0), 0
	for waiting := true; waiting; {
		y.unharmed("while 10,000 topics are made")
		served++
		peak = max(peak, heap())
		select {
		case <-answered:
			waiting = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	resp, err := decode(req, answer, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.(*kmsg.CreateTopicsResponse).Topics {
		if r.ErrorCode != 0 {
			t.Fatalf("%s: %s", r.Topic, protocol.Name(r.ErrorCode))
		}
	}
	if got := len(y.topics()); got != n {
		t.Errorf("%d topics", got)
	}
	y.must("many-9999", 0, 1)
	// What is garbage already counts: the collector runs when it likes.
	if peak > before+512<<20 {
		t.Errorf("%d MiB more memory in use", (peak-before)>>20)
	}
	runtime.GC()
	if after := heap(); after > before+n*(16<<10) {
		t.Errorf("%d bytes are kept for a topic", (after-before)/n)
	}
	t.Logf("another client was served %d times; %d MiB more memory at most", served, (int64(peak)-int64(before))>>20)
	y.unharmed("10,000 topics")
}

// TestDeleteTopics and more partitions for them (B27).
func TestDeleteTopics(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("a", 2)
	b.CreateTopic("b", 1)
	id := y.topicID("a")
	ref := func(name string, id [16]byte) kmsg.DeleteTopicsRequestTopic {
		r := kmsg.NewDeleteTopicsRequestTopic()
		r.TopicID = id
		if name != "" {
			r.Topic = &name
		}
		return r
	}
	remove := func(refs ...kmsg.DeleteTopicsRequestTopic) (codes []int16) {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis, req.Topics = 30_000, refs
		for _, r := range y.do(at(6, req)).(*kmsg.DeleteTopicsResponse).Topics {
			codes = append(codes, r.ErrorCode)
		}
		return codes
	}
	const invalid = protocol.CodeInvalidRequest
	for name, tc := range map[string]struct{ got, want []int16 }{
		"unknown name":       {remove(ref("c", [16]byte{})), []int16{protocol.CodeUnknownTopicOrPartition}},
		"unknown id":         {remove(ref("", [16]byte{9})), []int16{protocol.CodeUnknownTopicID}},
		"name and id":        {remove(ref("a", id)), []int16{invalid}},
		"neither":            {remove(ref("", [16]byte{})), []int16{invalid}},
		"unknown name twice": {remove(ref("c", [16]byte{}), ref("d", [16]byte{}), ref("c", [16]byte{})), []int16{invalid, protocol.CodeUnknownTopicOrPartition}},
		"none":               {remove(), nil},
	} {
		if !slices.Equal(tc.got, tc.want) {
			t.Errorf("%s: %v, expected %v", name, tc.got, tc.want)
		}
	}
	for _, code := range remove(ref("a", [16]byte{}), ref("a", [16]byte{}), ref("", id)) {
		if code != invalid {
			t.Errorf("one topic by name, by name, and by id: %s", protocol.Name(code))
		}
	}
	grow := func(validateOnly bool, topics ...kmsg.CreatePartitionsRequestTopic) (codes []int16) {
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis, req.ValidateOnly, req.Topics = 30_000, validateOnly, topics
		for _, r := range y.do(at(3, req)).(*kmsg.CreatePartitionsResponse).Topics {
			codes = append(codes, r.ErrorCode)
		}
		return codes
	}
	growth := func(topic string, count int32, lists ...[]int32) kmsg.CreatePartitionsRequestTopic {
		g := kmsg.NewCreatePartitionsRequestTopic()
		g.Topic, g.Count = topic, count
		for _, l := range lists {
			g.Assignment = append(g.Assignment, kmsg.CreatePartitionsRequestTopicAssignment{Replicas: l})
		}
		return g
	}
	for _, tc := range []struct {
		name  string
		g     kmsg.CreatePartitionsRequestTopic
		codes []int16
	}{
		{"as many", growth("a", 2), []int16{protocol.CodeInvalidPartitions}},
		{"fewer", growth("a", 1), []int16{protocol.CodeInvalidPartitions}},
		{"0", growth("a", 0), []int16{protocol.CodeInvalidPartitions}},
		{"-1", growth("a", -1), []int16{protocol.CodeInvalidPartitions}},
		{"2^31-1", growth("a", math.MaxInt32), []int16{protocol.CodeInvalidPartitions, protocol.CodePolicyViolation}},
		{"unknown topic", growth("c", 3), []int16{protocol.CodeUnknownTopicOrPartition}},
		{"too few assigned", growth("a", 4, []int32{0}), []int16{protocol.CodeInvalidReplicaAssignment}},
		{"a broker that is not", growth("a", 3, []int32{77}), []int16{protocol.CodeInvalidReplicaAssignment}},
		{"no broker", growth("a", 3, []int32{}), []int16{protocol.CodeInvalidReplicaAssignment}},
	} {
		if got := grow(false, tc.g); len(got) != 1 || !slices.Contains(tc.codes, got[0]) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	if got := grow(false, growth("a", 3), growth("a", 4)); !slices.Equal(got, []int16{invalid}) {
		t.Errorf("one topic twice: %v", got)
	}
	if got := grow(true, growth("a", 3)); !slices.Equal(got, []int16{0}) {
		t.Errorf("validate only: %v", got)
	}
	if p := y.listOffset("a", 2, -1); p.ErrorCode != protocol.CodeUnknownTopicOrPartition {
		t.Errorf("the third partition: %s", protocol.Name(p.ErrorCode))
	}
	if got := grow(false, growth("a", 3)); !slices.Equal(got, []int16{0}) {
		t.Errorf("to 3: %v", got)
	}
	y.must("a", 2, 1)
	if got := remove(ref("", id), ref("b", [16]byte{})); !slices.Equal(got, []int16{0, 0}) {
		t.Errorf("both: %v", got)
	}
	if p := y.listOffset("a", 0, -1); p.ErrorCode != protocol.CodeUnknownTopicOrPartition {
		t.Errorf("a deleted topic: %s", protocol.Name(p.ErrorCode))
	}
	y.unharmed("deletions")
}

type op struct {
	name  string
	op    kmsg.IncrementalAlterConfigOp
	value string // "-": null
}

type alteration struct {
	kind kmsg.ConfigResourceType
	name string
	ops  []op
}

func (c *client) alter(validateOnly bool, alterations ...alteration) (codes []int16) {
	c.t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.ValidateOnly = validateOnly
	for _, a := range alterations {
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = a.kind, a.name
		for _, o := range a.ops {
			cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			cfg.Name, cfg.Op = o.name, o.op
			if o.value != "-" {
				cfg.Value = &o.value
			}
			r.Configs = append(r.Configs, cfg)
		}
		req.Resources = append(req.Resources, r)
	}
	for _, r := range c.do(at(1, req)).(*kmsg.IncrementalAlterConfigsResponse).Resources {
		codes = append(codes, r.ErrorCode)
	}
	return codes
}

// overrides are the settings of a topic that are its own.
func (c *client) overrides(topic string) map[string]string {
	c.t.Helper()
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: topicResource, ResourceName: topic}}
	out := map[string]string{}
	r := c.do(at(4, req)).(*kmsg.DescribeConfigsResponse).Resources[0]
	if r.ErrorCode != 0 {
		c.t.Fatalf("DescribeConfigs of %s: %s", topic, protocol.Name(r.ErrorCode))
	}
	for _, cfg := range r.Configs {
		if cfg.Source == kmsg.ConfigSourceDynamicTopicConfig {
			out[cfg.Name] = *cfg.Value
		}
	}
	return out
}

// TestAlterConfigs: what is refused changes nothing of its resource, and what
// is beside it is done (B28).
func TestAlterConfigs(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("a", 1, "retention.ms", "1000000")
	b.CreateTopic("b", 1)
	const (
		set, del, app, sub = kmsg.IncrementalAlterConfigOpSet, kmsg.IncrementalAlterConfigOpDelete, kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract
		config             = protocol.CodeInvalidConfig
		invalid            = protocol.CodeInvalidRequest
	)
	for _, tc := range []struct {
		name  string
		ops   []op
		codes []int16
	}{
		{"unknown setting", []op{{"no.such", set, "1"}}, []int16{config}},
		{"no name", []op{{"", set, "1"}}, []int16{invalid, config}},
		{"wrong type", []op{{"retention.ms", set, "x"}}, []int16{config}},
		{"empty number", []op{{"retention.ms", set, ""}}, []int16{config}},
		{"a float for a number", []op{{"retention.ms", set, "1.5"}}, []int16{config}},
		{"above int", []op{{"max.message.bytes", set, "2147483648"}}, []int16{config}},
		{"negative", []op{{"max.message.bytes", set, "-1"}}, []int16{config}},
		{"retention -2", []op{{"retention.ms", set, "-2"}}, []int16{config}},
		{"min ISR 0", []op{{"min.insync.replicas", set, "0"}}, []int16{config}},
		{"not a boolean", []op{{"unclean.leader.election.enable", set, "maybe"}}, []int16{config}},
		{"a secret", []op{{"sasl.jaas.config", set, "password=x"}}, []int16{config}},
		{"a large value", []op{{"leader.replication.throttled.replicas", set, strings.Repeat("1:1,", 8000)}}, []int16{config}},
		{"null", []op{{"retention.ms", set, "-"}}, []int16{invalid, config}},
		{"a setting twice", []op{{"retention.ms", set, "1"}, {"retention.ms", set, "2"}}, []int16{invalid, config}},
		{"operation 9", []op{{"retention.ms", 9, "1"}}, []int16{invalid}},
		{"operation -1", []op{{"retention.ms", -1, "1"}}, []int16{invalid}},
		{"append to what is no list", []op{{"retention.ms", app, "1"}}, []int16{config, invalid}},
		{"append of what is no policy", []op{{"cleanup.policy", app, "burn"}}, []int16{config}},
		{"good and bad", []op{{"retention.ms", set, "5"}, {"no.such", set, "1"}}, []int16{config}},
		{"good and crossing", []op{{"retention.ms", set, "5"}, {"local.retention.ms", set, "6"}}, []int16{config}},
	} {
		for _, validateOnly := range []bool{true, false} {
			got := y.alter(validateOnly, alteration{topicResource, "a", tc.ops}, alteration{topicResource, "b", []op{{"segment.ms", set, "60000"}}})
			if len(got) != 2 || !slices.Contains(tc.codes, got[0]) || got[1] != 0 {
				t.Errorf("%s: %v", tc.name, got)
			}
			if o := y.overrides("a"); len(o) != 1 || o["retention.ms"] != "1000000" {
				t.Fatalf("%s has changed the topic to %v", tc.name, o)
			}
		}
	}
	for _, tc := range []struct {
		a    alteration
		want []int16
	}{
		{alteration{topicResource, "unknown", nil}, []int16{protocol.CodeUnknownTopicOrPartition}},
		{alteration{topicResource, "a/b", nil}, []int16{protocol.CodeInvalidTopicException, protocol.CodeUnknownTopicOrPartition}},
		{alteration{1, "a", nil}, []int16{invalid}},
		{alteration{127, "a", nil}, []int16{invalid}},
		{alteration{-1, "a", nil}, []int16{invalid}},
		{alteration{brokerResource, "one", nil}, []int16{invalid}},
		{alteration{brokerResource, "99", nil}, []int16{invalid}},
		{alteration{brokerResource, "", []op{{"no.such", set, "1"}}}, []int16{config, invalid}},
		{alteration{brokerResource, "", []op{{"listeners", set, "PLAINTEXT://:1"}}}, []int16{config, invalid}},
		{alteration{32, "", []op{{"consumer.session.timeout.ms", set, "1"}}}, []int16{invalid}},
	} {
		if got := y.alter(false, tc.a); len(got) != 1 || !slices.Contains(tc.want, got[0]) {
			t.Errorf("%+v: %v, expected %v", tc.a, got, tc.want)
		}
	}
	for _, code := range y.alter(false, alteration{topicResource, "a", []op{{"retention.ms", set, "5"}}}, alteration{topicResource, "a", []op{{"retention.ms", set, "6"}}}) {
		if code != invalid {
			t.Errorf("a resource twice: %s", protocol.Name(code))
		}
	}
	// And the sound ones, one after the other.
	for _, tc := range []struct {
		op   op
		want map[string]string
	}{
		{op{"cleanup.policy", app, "compact"}, map[string]string{"retention.ms": "1000000", "cleanup.policy": "delete,compact"}},
		{op{"cleanup.policy", sub, "delete"}, map[string]string{"retention.ms": "1000000", "cleanup.policy": "compact"}},
		{op{"retention.ms", del, "-"}, map[string]string{"cleanup.policy": "compact"}},
		{op{"retention.ms", del, "-"}, map[string]string{"cleanup.policy": "compact"}},
		{op{"retention.ms", set, "-1"}, map[string]string{"retention.ms": "-1", "cleanup.policy": "compact"}},
	} {
		if got := y.alter(false, alteration{topicResource, "a", []op{tc.op}}); !slices.Equal(got, []int16{0}) {
			t.Errorf("%+v: %v", tc.op, got)
		}
		if got := y.overrides("a"); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%+v: %v, expected %v", tc.op, got, tc.want)
		}
	}
	// The old API replaces everything.
	req := kmsg.NewPtrAlterConfigsRequest()
	res := kmsg.NewAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = topicResource, "a"
	for _, n := range []string{"flush.ms", "no.such"} {
		res.Configs = append(res.Configs, kmsg.AlterConfigsRequestResourceConfig{Name: n, Value: kmsg.StringPtr("5")})
	}
	for i, want := range []int16{config, 0} {
		res.Configs = res.Configs[:2-i]
		req.Resources = []kmsg.AlterConfigsRequestResource{res}
		if got := y.do(at(2, req)).(*kmsg.AlterConfigsResponse).Resources[0]; got.ErrorCode != want {
			t.Errorf("AlterConfigs: %s, expected %s", protocol.Name(got.ErrorCode), protocol.Name(want))
		}
	}
	if got := y.overrides("a"); fmt.Sprint(got) != fmt.Sprint(map[string]string{"flush.ms": "5"}) {
		t.Errorf("after AlterConfigs: %v", got)
	}
	// A string longer than any string may be is no request (KIP-482).
	c := dial(t, b)
	f, _ := c.frame(at(1, &kmsg.IncrementalAlterConfigsRequest{Resources: []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: topicResource, ResourceName: "a",
		Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: "leader.replication.throttled.replicas", Value: kmsg.StringPtr(strings.Repeat("1:1,", 1<<18))}}}}}))
	c.send(f)
	c.ends("a value of 1 MB")
	y.unharmed("alterations")
}

// TestDeleteRecords: up to the high watermark and no further (B18).
func TestDeleteRecords(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("d", 2)
	b.CreateTopic("compacted", 1, "cleanup.policy", "compact")
	b.CreateTopic("both", 1, "cleanup.policy", "compact,delete")
	for _, topic := range []string{"d", "compacted", "both"} {
		y.must(topic, 0, 10)
		y.must(topic, 0, 10)
	}
	y.do(at(4, &kmsg.FindCoordinatorRequest{CoordinatorKeys: []string{"g"}})) // makes the offsets topic
	del := func(topic string, partition int32, offset int64) kmsg.DeleteRecordsResponseTopicPartition {
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.TimeoutMillis = 30_000
		req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: offset}}}}
		return y.do(at(2, req)).(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0]
	}
	for _, tc := range []struct {
		topic     string
		partition int32
		offset    int64
		code      int16
		low       int64
	}{
		{"d", 0, 21, protocol.CodeOffsetOutOfRange, -1},
		{"d", 0, math.MaxInt64, protocol.CodeOffsetOutOfRange, -1},
		{"d", 0, -2, protocol.CodeOffsetOutOfRange, -1},
		{"d", 0, math.MinInt64, protocol.CodeOffsetOutOfRange, -1},
		{"d", 0, 0, 0, 0},
		{"d", 0, 7, 0, 7},
		{"d", 0, 3, 0, 7},
		{"d", 1, -1, 0, 0},
		{"d", 2, 0, protocol.CodeUnknownTopicOrPartition, -1},
		{"unknown", 0, 0, protocol.CodeUnknownTopicOrPartition, -1},
		{"", 0, 0, protocol.CodeUnknownTopicOrPartition, -1},
		{"compacted", 0, 5, protocol.CodePolicyViolation, -1},
		{"both", 0, 5, 0, 5},
		{"__consumer_offsets", 0, 0, protocol.CodeInvalidTopicException, -1},
	} {
		if p := del(tc.topic, tc.partition, tc.offset); p.ErrorCode != tc.code || p.LowWatermark != tc.low {
			t.Errorf("%s-%d below %d: %s, low watermark %d", tc.topic, tc.partition, tc.offset, protocol.Name(p.ErrorCode), p.LowWatermark)
		}
	}
	if p := y.listOffset("d", 0, -2); p.Offset != 7 {
		t.Errorf("earliest offset %d", p.Offset)
	}
	if p := only(t, y.fetch(fetchReq(12, "d", fetchPart(0, 6)))); p.ErrorCode != protocol.CodeOffsetOutOfRange {
		t.Errorf("fetch below the log start: %s", protocol.Name(p.ErrorCode))
	}
	if p := only(t, y.fetch(fetchReq(12, "d", fetchPart(0, 7)))); p.ErrorCode != 0 || p.LogStartOffset != 7 || len(p.RecordBatches) == 0 {
		t.Errorf("fetch at the log start: %+v", p)
	}
	if p := del("d", 0, -1); p.ErrorCode != 0 || p.LowWatermark != 20 {
		t.Errorf("all: %+v", p)
	}
	if at := y.must("d", 0, 1); at != 20 {
		t.Errorf("the next record is at %d", at)
	}
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	if at := y.must("d", 0, 1); at != 21 {
		t.Errorf("after a restart the next record is at %d", at)
	}
	if p := y.listOffset("d", 0, -2); p.Offset != 20 {
		t.Errorf("earliest offset %d after a restart", p.Offset)
	}
	y.unharmed("DeleteRecords")
}

// TestDescribe: cursors that nobody gave out, and answers that must not be
// thousands of times as large as what asks for them (B30).
func TestDescribe(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("a", 3)
	b.CreateTopic("b", 2)
	b.CreateTopic("wide", 1000)
	type place struct {
		topic     string
		partition int32
	}
	page := func(limit int32, cursor *place, topics ...string) (got []place, next *place, codes []int16) {
		req := kmsg.NewPtrDescribeTopicPartitionsRequest()
		req.ResponsePartitionLimit = limit
		for _, n := range topics {
			req.Topics = append(req.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: n})
		}
		if cursor != nil {
			req.Cursor = &kmsg.DescribeTopicPartitionsRequestCursor{Topic: cursor.topic, Partition: cursor.partition}
		}
		resp := y.do(req).(*kmsg.DescribeTopicPartitionsResponse)
		for _, rt := range resp.Topics {
			codes = append(codes, rt.ErrorCode)
			for _, p := range rt.Partitions {
				got = append(got, place{*rt.Topic, p.Partition})
			}
		}
		if resp.NextCursor != nil {
			next = &place{resp.NextCursor.Topic, resp.NextCursor.Partition}
		}
		return got, next, codes
	}
	for _, limit := range []int32{1, 2, 3, 4, 5, 6} {
		var all []place
		var cursor *place
		for range 10 {
			got, next, _ := page(limit, cursor, "b", "a")
			if len(got) > int(limit) {
				t.Errorf("limit %d: %d partitions", limit, len(got))
			}
			all = append(all, got...)
			if cursor = next; next == nil {
				break
			}
		}
		if cursor != nil || !slices.Equal(all, []place{{"a", 0}, {"a", 1}, {"a", 2}, {"b", 0}, {"b", 1}}) {
			t.Errorf("limit %d: %v, cursor %v", limit, all, cursor)
		}
	}
	for _, limit := range []int32{0, -1, math.MinInt32, math.MaxInt32} {
		for _, c := range []place{{"", 0}, {"a", -1}, {"a", math.MaxInt32}, {"a", math.MinInt32}, {"zzz", 5}, {"\xff", 1}, {"b", 2}} {
			page(limit, &c)
			page(limit, &c, "a", "a", "unknown", "a/b", "")
		}
	}
	if _, _, codes := page(100, nil, "a/b", "unknown", "unknown"); !slices.Equal(codes, []int16{protocol.CodeInvalidTopicException, protocol.CodeUnknownTopicOrPartition}) {
		t.Errorf("unknown topics: %v", codes)
	}
	invalid := []int16{protocol.CodeInvalidRequest, protocol.CodeInvalidRequest}
	for _, c := range []place{{"", 0}, {"a", -1}, {"aa", 0}, {"unknown", 0}, {"wide", 1}} {
		if got, next, codes := page(100, &c, "b", "a"); len(got) != 0 || next != nil || !slices.Equal(codes, invalid) {
			t.Errorf("cursor %v for the topics a and b: %v, %v, %v", c, got, next, codes)
		}
	}
	if got, next, _ := page(2, nil, "0-unknown", "a"); !slices.Equal(got, []place{{"a", 0}, {"a", 1}}) || next == nil || *next != (place{"a", 2}) {
		t.Errorf("an unknown topic counts as a partition: %v, then %v", got, next)
	}
	for _, kind := range []int8{-1, 0, 2, 9} {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.EndpointType = kind
		if r := y.do(at(2, req)).(*kmsg.DescribeClusterResponse); r.ErrorCode == 0 {
			t.Errorf("endpoints of type %d are described", kind)
		}
	}
	for kind, names := range map[kmsg.ConfigResourceType]map[string]int16{
		topicResource:  {"": protocol.CodeInvalidTopicException, "a/b": protocol.CodeInvalidTopicException, "unknown": protocol.CodeUnknownTopicOrPartition},
		brokerResource: {"x": protocol.CodeInvalidRequest, "77": protocol.CodeInvalidRequest, "-1": protocol.CodeInvalidRequest},
		1:              {"a": protocol.CodeInvalidRequest}, 127: {"": protocol.CodeInvalidRequest}, -1: {"": protocol.CodeInvalidRequest},
		16: {"": protocol.CodeInvalidRequest}, 32: {"": protocol.CodeInvalidRequest},
	} {
		for name, want := range names {
			req := kmsg.NewPtrDescribeConfigsRequest()
			req.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: kind, ResourceName: name}}
			if r := y.do(at(4, req)).(*kmsg.DescribeConfigsResponse).Resources; len(r) != 1 || r[0].ErrorCode != want {
				t.Errorf("DescribeConfigs of type %d, %q: %+v", kind, name, r)
			}
		}
	}
	// As in Kafka, a list of no names asks for every setting.
	some := kmsg.NewPtrDescribeConfigsRequest()
	for _, names := range [][]string{nil, {}, {"retention.ms"}} {
		some.Resources = append(some.Resources[:0], kmsg.DescribeConfigsRequestResource{ResourceType: topicResource, ResourceName: "a", ConfigNames: names})
		if n := len(y.do(at(4, some)).(*kmsg.DescribeConfigsResponse).Resources[0].Configs); (n == 1) != (len(names) == 1) || n == 0 {
			t.Errorf("DescribeConfigs of the names %q, %v, has %d settings", names, names == nil, n)
		}
	}

	// Small requests for large answers.
	const times = 20_000
	md := kmsg.NewPtrMetadataRequest()
	dc := kmsg.NewPtrDescribeConfigsRequest()
	dc.IncludeDocumentation, dc.IncludeSynonyms = true, true
	dg := kmsg.NewPtrDescribeGroupsRequest()
	of := kmsg.NewPtrOffsetFetchRequest()
	dp := kmsg.NewPtrDescribeTopicPartitionsRequest()
	dp.ResponsePartitionLimit = math.MaxInt32
	ld := kmsg.NewPtrDescribeLogDirsRequest()
	cg := kmsg.NewPtrConsumerGroupDescribeRequest()
	dt := kmsg.NewPtrDescribeTransactionsRequest()
	fc := kmsg.NewPtrFindCoordinatorRequest()
	rm := kmsg.NewPtrDeleteGroupsRequest()
	lg := kmsg.NewPtrListGroupsRequest()
	lt := kmsg.NewPtrListTransactionsRequest()
	for range times {
		cg.Groups = append(cg.Groups, "g")
		dt.TransactionalIDs = append(dt.TransactionalIDs, "x")
		fc.CoordinatorKeys = append(fc.CoordinatorKeys, "g")
		rm.Groups = append(rm.Groups, "g")
		lg.StatesFilter, lg.TypesFilter = append(lg.StatesFilter, "Stable"), append(lg.TypesFilter, "classic")
		lt.StateFilters, lt.ProducerIDFilters = append(lt.StateFilters, "Ongoing"), append(lt.ProducerIDFilters, 7)
		md.Topics = append(md.Topics, kmsg.MetadataRequestTopic{Topic: kmsg.StringPtr("wide")})
		dc.Resources = append(dc.Resources, kmsg.DescribeConfigsRequestResource{ResourceType: topicResource, ResourceName: "a"})
		dg.Groups = append(dg.Groups, "g")
		of.Groups = append(of.Groups, kmsg.OffsetFetchRequestGroup{Group: "g"})
		dp.Topics = append(dp.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: "wide"})
		ld.Topics = append(ld.Topics, kmsg.DescribeLogDirsRequestTopic{Topic: "wide", Partitions: []int32{0, 0}})
	}
	for _, req := range []kmsg.Request{at(12, md), at(4, dc), at(5, dg), at(9, of), at(0, dp), at(4, ld), at(1, cg), at(0, dt), at(4, fc), at(2, rm), at(5, lg), at(1, lt)} {
		f, _ := y.frame(req)
		y.send(f)
		got, err := y.answer()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > 1<<20 && len(got) > 20*len(f) {
			t.Errorf("%s: %d bytes in answer to %d", kmsg.NameForKey(req.Key()), len(got), len(f))
		}
	}
	if dirs := y.do(at(4, ld)).(*kmsg.DescribeLogDirsResponse).Dirs; len(dirs) != 1 || len(dirs[0].Topics) != 1 || len(dirs[0].Topics[0].Partitions) != 1 {
		t.Errorf("DescribeLogDirs of one partition, named again and again, has it more than once")
	}
	y.unharmed("descriptions")
}

func TestInitProducerID(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	initTxn := func(version int16, id string) *kmsg.InitProducerIDResponse {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID, req.TransactionTimeoutMillis = &id, 1000
		return y.do(at(version, req)).(*kmsg.InitProducerIDResponse)
	}
	for version := int16(0); version <= 5; version++ {
		for id, want := range map[string]int16{"": protocol.CodeInvalidRequest, "t": protocol.CodeCoordinatorNotAvailable} {
			if r := initTxn(version, id); r.ErrorCode != want || r.ProducerID != -1 {
				t.Errorf("v%d, transactional id %q before there is a coordinator: %+v", version, id, r)
			}
		}
	}
	find := at(4, &kmsg.FindCoordinatorRequest{CoordinatorType: 1, CoordinatorKeys: []string{"t", ""}})
	cs := y.do(find).(*kmsg.FindCoordinatorResponse).Coordinators
	if cs[0].ErrorCode != 0 || cs[0].NodeID != 1 || cs[1].ErrorCode != protocol.CodeInvalidRequest {
		t.Fatalf("coordinators of t and of nothing: %+v", cs)
	}
	if o := y.overrides(txnTopic); o["cleanup.policy"] != "compact" || o["min.insync.replicas"] != "1" {
		t.Errorf("settings of %s: %v", txnTopic, o)
	}
	ids := map[int64]bool{}
	for version := int16(0); version <= 5; version++ {
		r := initTxn(version, "t")
		for end := time.Now().Add(patience); r.ErrorCode == protocol.CodeCoordinatorLoadInProgress && time.Now().Before(end); r = initTxn(version, "t") {
			time.Sleep(time.Millisecond)
		}
		ids[r.ProducerID] = true
		if r.ErrorCode != 0 || r.ProducerEpoch != version || len(ids) != 1 {
			t.Errorf("v%d: %+v after producer ids %v", version, r, ids)
		}
	}
	for _, tc := range []struct {
		id    int64
		epoch int16
		code  int16
	}{{-1, -1, 0}, {5, 0, 0}, {5, -1, protocol.CodeInvalidRequest}, {-1, 0, protocol.CodeInvalidRequest}, {-2, -1, protocol.CodeInvalidRequest}} {
		for version := int16(3); version <= 5; version++ {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.ProducerID, req.ProducerEpoch = tc.id, tc.epoch
			if r := y.do(at(version, req)).(*kmsg.InitProducerIDResponse); r.ErrorCode != tc.code || (r.ProducerID >= 0) != (tc.code == 0) {
				t.Errorf("v%d, id %d epoch %d: %+v", version, tc.id, tc.epoch, r)
			}
		}
	}
	seen := ids
	for range 3000 { // more than a block
		req := kmsg.NewPtrInitProducerIDRequest()
		r := y.do(at(4, req)).(*kmsg.InitProducerIDResponse)
		if r.ErrorCode != 0 || seen[r.ProducerID] {
			t.Fatalf("producer id %d: %s", r.ProducerID, protocol.Name(r.ErrorCode))
		}
		seen[r.ProducerID] = true
	}
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	deadline := time.Now().Add(patience)
	for {
		r := y.do(at(4, kmsg.NewPtrInitProducerIDRequest())).(*kmsg.InitProducerIDResponse)
		if r.ErrorCode == 0 {
			if seen[r.ProducerID] {
				t.Errorf("producer id %d again after a restart", r.ProducerID)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(protocol.Name(r.ErrorCode))
		}
		time.Sleep(10 * time.Millisecond)
	}
	y.unharmed("producer ids")
}
