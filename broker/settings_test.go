package broker_test

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

// TestSettings: settings of the broker that other tests leave at their
// defaults do what they say.
func TestSettings(t *testing.T) {
	b := startQuiet(t,
		"delete.topic.enable", "False",
		"max.request.partition.size.limit", "3",
		"fetch.max.bytes", "1024",
		"max.incremental.fetch.session.cache.slots", "1",
		"offset.metadata.max.bytes", "10",
		"offsets.topic.num.partitions", "3",
		"offsets.topic.segment.bytes", "2000000",
		"group.min.session.timeout.ms", "7000",
		"group.max.session.timeout.ms", "8000",
		"group.max.size", "1",
		"log.message.timestamp.after.max.ms", "60000",
		"log.message.timestamp.before.max.ms", "90000",
		"max.connections.per.ip", "0",
		"max.connections.per.ip.overrides", "127.0.0.1:30",
	)
	y := newBystander(t, b) // max.connections.per.ip.overrides: or nobody is let in
	b.CreateTopic("s", 4)

	for version := int16(1); version <= 6; version++ {
		req := kmsg.NewPtrDeleteTopicsRequest()
		topic := kmsg.NewDeleteTopicsRequestTopic()
		topic.Topic = kmsg.StringPtr("s")
		req.TopicNames, req.Topics = []string{"s"}, []kmsg.DeleteTopicsRequestTopic{topic}
		want := protocol.CodeTopicDeletionDisabled
		if version < 3 {
			want = protocol.CodeInvalidRequest
		}
		if r := y.do(at(version, req)).(*kmsg.DeleteTopicsResponse).Topics; len(r) != 1 || r[0].ErrorCode != want {
			t.Errorf("delete.topic.enable, v%d: %+v", version, r)
		}
	}

	dp := kmsg.NewPtrDescribeTopicPartitionsRequest()
	dp.ResponsePartitionLimit, dp.Topics = math.MaxInt32, []kmsg.DescribeTopicPartitionsRequestTopic{{Topic: "s"}}
	if r := y.do(dp).(*kmsg.DescribeTopicPartitionsResponse); len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 3 || r.NextCursor == nil || r.NextCursor.Partition != 3 {
		t.Errorf("max.request.partition.size.limit: %+v", r)
	}

	large := sent{batch.NewBuilder()}
	large.Add(time.Now().UnixMilli(), nil, make([]byte, 300))
	for range 10 {
		if p := produceTo(y.client, 9, -1, "s", 0, large.bytes()); p.ErrorCode != 0 {
			t.Fatal(describe(p))
		}
	}
	req := fetchReq(12, "s", fetchPart(0, 0))
	if n := len(only(t, y.fetch(req)).RecordBatches); n == 0 || n > 1024 {
		t.Errorf("fetch.max.bytes: %d bytes", n)
	}
	req.SessionEpoch = 0
	if first, second := y.fetch(req).SessionID, y.fetch(req).SessionID; first == 0 || second != 0 {
		t.Errorf("max.incremental.fetch.session.cache.slots: sessions %d and %d", first, second)
	}

	for _, tc := range []struct {
		off  time.Duration
		code int16
	}{{0, 0}, {50 * time.Second, 0}, {70 * time.Second, protocol.CodeInvalidTimestamp}, {-80 * time.Second, 0}, {-100 * time.Second, protocol.CodeInvalidTimestamp}} {
		s := sent{batch.NewBuilder()}
		s.Add(time.Now().Add(tc.off).UnixMilli(), nil, []byte("v"))
		if p := produceTo(y.client, 9, -1, "s", 1, s.bytes()); p.ErrorCode != tc.code {
			t.Errorf("log.message.timestamp.*.max.ms: %v from now: %s", tc.off, describe(p))
		}
	}

	fc := kmsg.NewPtrFindCoordinatorRequest()
	fc.CoordinatorKeys = []string{"g"}
	if r := y.do(at(4, fc)).(*kmsg.FindCoordinatorResponse); r.Coordinators[0].ErrorCode != 0 {
		t.Fatalf("no coordinator: %s", protocol.Name(r.Coordinators[0].ErrorCode))
	}
	md := kmsg.NewPtrMetadataRequest()
	md.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr("__consumer_offsets")}}
	if r := y.do(at(12, md)).(*kmsg.MetadataResponse).Topics[0]; len(r.Partitions) != 3 {
		t.Errorf("offsets.topic.num.partitions: %d", len(r.Partitions))
	}
	dc := kmsg.NewPtrDescribeConfigsRequest()
	dc.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: topicResource, ResourceName: "__consumer_offsets", ConfigNames: []string{"segment.bytes"}}}
	if r := y.do(at(4, dc)).(*kmsg.DescribeConfigsResponse).Resources[0].Configs; len(r) != 1 || *r[0].Value != "2000000" {
		t.Errorf("offsets.topic.segment.bytes: %+v", r)
	}

	commit := func(version int16, metadata string, partition int32) int16 {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = "g", -1
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.Metadata = partition, 1, &metadata
		req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "s", TopicID: y.topicID("s"), Partitions: []kmsg.OffsetCommitRequestTopicPartition{p}}}
		r := y.do(at(version, req)).(*kmsg.OffsetCommitResponse).Topics
		if len(r) != 1 || len(r[0].Partitions) != 1 || r[0].Partitions[0].Partition != partition || version >= 10 && r[0].TopicID != y.topicID("s") {
			t.Fatalf("commit for partition %d: %+v", partition, r)
		}
		return r[0].Partitions[0].ErrorCode
	}
	for version := int16(2); version <= 10; version++ {
		if code := commit(version, "0123456789", 0); code != 0 {
			t.Errorf("offset.metadata.max.bytes, v%d: %s", version, protocol.Name(code))
		}
		if code := commit(version, "0123456789x", 0); code != protocol.CodeOffsetMetadataTooLarge {
			t.Errorf("offset.metadata.max.bytes, v%d: %s", version, protocol.Name(code))
		}
		for _, partition := range []int32{4, -1, math.MaxInt32, math.MinInt32} {
			if code := commit(version, "", partition); code != protocol.CodeUnknownTopicOrPartition {
				t.Errorf("commit for partition %d of 4, v%d: %s", partition, version, protocol.Name(code))
			}
		}
	}

	join := func(group string, session int32) int16 {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.ProtocolType = group, session, 1000, "consumer"
		req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range"}}
		return y.do(at(3, req)).(*kmsg.JoinGroupResponse).ErrorCode
	}
	for session, want := range map[int32]int16{6999: protocol.CodeInvalidSessionTimeout, 7000: 0, 8000: 0, 8001: protocol.CodeInvalidSessionTimeout} {
		if code := join(fmt.Sprint("j", session), session); code != want {
			t.Errorf("group.*.session.timeout.ms: %d ms: %s", session, protocol.Name(code))
		}
	}
	if code := join("j7000", 7000); code != protocol.CodeGroupMaxSizeReached {
		t.Errorf("group.max.size: %s", protocol.Name(code))
	}
	y.unharmed("settings")
}

// TestMinInsyncReplicas: what the topic has no replicas for is not waited for,
// as in Kafka: neither records nor groups would ever get on. That holds however
// the setting came to be (B28).
func TestMinInsyncReplicas(t *testing.T) {
	b := startQuiet(t, "min.insync.replicas", "2")
	y := newBystander(t, b)
	b.CreateTopic("default", 1)
	b.CreateTopic("own", 1, "min.insync.replicas", "3")
	b.CreateTopic("altered", 1)
	b.CreateTopic("replaced", 1)
	b.CreateTopic("raised", 1)
	set := func(v string) []op { return []op{{"min.insync.replicas", kmsg.IncrementalAlterConfigOpSet, v}} }
	if codes := y.alter(false, alteration{topicResource, "altered", set("4")}, alteration{topicResource, "raised", set("2147483647")}); !slices.Equal(codes, []int16{0, 0}) {
		t.Errorf("IncrementalAlterConfigs: %v", codes)
	}
	replace := kmsg.NewPtrAlterConfigsRequest()
	res := kmsg.NewAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = topicResource, "replaced"
	res.Configs = []kmsg.AlterConfigsRequestResourceConfig{{Name: "min.insync.replicas", Value: kmsg.StringPtr("5")}}
	replace.Resources = append(replace.Resources, res)
	if r := y.do(at(2, replace)).(*kmsg.AlterConfigsResponse).Resources[0]; r.ErrorCode != 0 {
		t.Errorf("AlterConfigs: %s", protocol.Name(r.ErrorCode))
	}
	for topic, want := range map[string]string{"own": "3", "altered": "4", "replaced": "5", "raised": "2147483647"} {
		if o := y.overrides(topic)["min.insync.replicas"]; o != want {
			t.Errorf("%s: min.insync.replicas is %q, want %s", topic, o, want)
		}
	}
	// Not below 1, whatever it is asked through, and not of a single broker: its
	// leaders would commit without replicas that the controller may elect.
	for _, tc := range []alteration{
		{topicResource, "own", set("0")}, {topicResource, "own", set("-1")}, {topicResource, "own", set("2147483648")},
		{brokerResource, "", set("0")}, {brokerResource, "1", set("1")}, {brokerResource, "1", set("2")},
	} {
		if codes := y.alter(false, tc); !slices.Equal(codes, []int16{protocol.CodeInvalidConfig}) {
			t.Errorf("%+v: %v", tc, codes)
		}
	}
	for _, v := range []string{"0", "-1", "2147483648"} {
		if r := y.create(false, newTopic("none", 1, 1, "min.insync.replicas", v))[0]; r.ErrorCode != protocol.CodeInvalidConfig {
			t.Errorf("creation with %s: %s", v, protocol.Name(r.ErrorCode))
		}
	}
	end := map[string]int64{}
	check := func(when string) {
		t.Helper()
		for _, topic := range []string{"default", "own", "altered", "replaced", "raised"} {
			for _, acks := range []int16{1, -1} {
				if p := produceTo(y.client, 9, acks, topic, 0, plain(1).bytes()); p.ErrorCode != 0 {
					t.Errorf("%s, %s, acks=%d: %s", when, topic, acks, describe(p))
				}
				if end[topic]++; y.latest(topic, 0) != end[topic] {
					t.Errorf("%s, %s, acks=%d: high watermark %d, want %d", when, topic, acks, y.latest(topic, 0), end[topic])
				}
			}
		}
		y.commit("g", "own", end["own"])
	}
	check("of the broker's file")
	if codes := y.alter(false, alteration{brokerResource, "", set("6")}); !slices.Equal(codes, []int16{0}) {
		t.Errorf("of the cluster: %v", codes)
	}
	check("of the cluster")
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	check("after a restart")
	if o := y.committed("g", "own"); o != end["own"] {
		t.Errorf("the group is committed at %d", o)
	}
}

// TestCompressionLevels: the level of a topic's codec counts where batches are
// recompressed.
func TestCompressionLevels(t *testing.T) {
	b := startQuiet(t, "message.max.bytes", "2000000")
	y := newBystander(t, b)
	// Words of a small vocabulary: what a better search for matches finds.
	var text bytes.Buffer
	for i := uint32(1); text.Len() < 500_000; i = i*1664525 + 1013904223 {
		fmt.Fprintf(&text, "w%d ", i>>16%1000)
	}
	s := sent{batch.NewBuilder()}
	s.Add(time.Now().UnixMilli(), nil, text.Bytes())
	size := func(codec, low, high string) (sizes [2]int) {
		for i, level := range []string{low, high} {
			name := codec + fmt.Sprint(i)
			b.CreateTopic(name, 1, "compression.type", codec, "compression."+codec+".level", level)
			if p := produceTo(y.client, 9, -1, name, 0, s.bytes()); p.ErrorCode != 0 {
				t.Fatalf("%s: %s", name, describe(p))
			}
			got := y.stored(name, 0, 0)
			h, err := batch.ParseHeader(got)
			if err != nil || h.Codec().String() != codec {
				t.Fatalf("%s: stored as %v, %v", name, h.Codec(), err)
			}
			sizes[i] = len(got)
		}
		return sizes
	}
	// lz4's default of 9 is its fast compressor, as in Kafka.
	for codec, levels := range map[string][2]string{"gzip": {"1", "9"}, "lz4": {"9", "17"}, "zstd": {"1", "19"}} {
		if n := size(codec, levels[0], levels[1]); n[1] >= n[0] {
			t.Errorf("compression.%s.level: %d bytes at %s, %d bytes at %s", codec, n[0], levels[0], n[1], levels[1])
		}
	}
}

// TestSettingsWithoutEffect: what is taken and has no effect is named in the log once for each request, and what is refused, or
// only asked for, is not.
func TestSettingsWithoutEffect(t *testing.T) {
	var log lines
	b := servertest.Start(t, servertest.Options{Log: &log})
	cl := b.Client()
	const idle = "num.recovery.threads.per.data.dir" // of a broker
	alter := func(validate bool, values ...string) (code int16) {
		t.Helper()
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.ValidateOnly = validate
		res := kmsg.NewIncrementalAlterConfigsRequestResource()
		res.ResourceType = kmsg.ConfigResourceTypeBroker // all of them
		for _, v := range values {
			c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			c.Name, c.Value = idle, &v
			res.Configs = append(res.Configs, c)
		}
		req.Resources = append(req.Resources, res)
		resp, err := req.RequestWith(t.Context(), cl)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Resources[0].ErrorCode
	}
	said := func() int { return log.count("a setting has no effect") }
	before := said()
	if code := alter(false, slices.Repeat([]string{"3"}, 1000)...); code == 0 || said() != before {
		t.Errorf("refused with %d, and %d lines", code, said()-before)
	}
	if code := alter(true, "3"); code != 0 || said() != before {
		t.Errorf("asked for: %d, and %d lines", code, said()-before)
	}
	if code := alter(false, "3"); code != 0 || said() != before+1 || log.count(idle) == 0 {
		t.Errorf("taken: %d, and %d lines", code, said()-before)
	}
}

// lines keeps what a broker says.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}
