package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
)

func ptr(s string) *string { return &s }

func admin(t *testing.T, b *servertest.Broker) *kadm.Client {
	t.Helper()
	return kadm.NewClient(b.Client())
}

// topicConfig is one setting of a topic as described.
func topicConfig(t *testing.T, adm *kadm.Client, topic, name string) *kadm.Config {
	t.Helper()
	rcs, err := adm.DescribeTopicConfigs(patience(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := rcs.On(topic, nil)
	if err != nil || rc.Err != nil {
		t.Fatalf("describe configs of %s: %v %v", topic, err, rc.Err)
	}
	for i := range rc.Configs {
		if rc.Configs[i].Key == name {
			return &rc.Configs[i]
		}
	}
	t.Fatalf("%s has no setting %s", topic, name)
	return nil
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestTopics(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	adm, ctx := admin(t, b), patience(t)
	r, err := adm.CreateTopic(ctx, 4, 1, map[string]*string{"retention.ms": ptr("12345"), "cleanup.policy": ptr("delete")}, "a")
	if err != nil {
		t.Fatal(err)
	}
	if r.NumPartitions != 4 || r.ReplicationFactor != 1 || r.ID == (kadm.TopicID{}) {
		t.Errorf("created: %+v", r)
	}
	_, err = adm.CreateTopic(ctx, 1, 1, nil, "a")
	wantErr(t, "create again", err, kerr.TopicAlreadyExists)
	_, err = adm.CreateTopic(ctx, 1, 1, nil, "not/a name")
	wantErr(t, "name", err, kerr.InvalidTopicException)
	_, err = adm.CreateTopic(ctx, 1, 1, nil, strings.Repeat("x", 250))
	wantErr(t, "long name", err, kerr.InvalidTopicException)
	_, err = adm.CreateTopic(ctx, 0, 1, nil, "zero")
	wantErr(t, "no partition", err, kerr.InvalidPartitions)
	_, err = adm.CreateTopic(ctx, 1, 3, nil, "three")
	wantErr(t, "three replicas", err, kerr.InvalidReplicationFactor)
	_, err = adm.CreateTopic(ctx, 1, 1, map[string]*string{"retention.ms": ptr("soon")}, "bad")
	wantErr(t, "bad value", err, kerr.InvalidConfig)
	_, err = adm.CreateTopic(ctx, 1, 1, map[string]*string{"no.such.setting": ptr("1")}, "bad")
	wantErr(t, "unknown setting", err, kerr.InvalidConfig)
	if v, err := adm.ValidateCreateTopics(ctx, 2, 1, nil, "only-checked", "a"); err != nil || v["only-checked"].Err != nil {
		t.Errorf("validate: %v %v", v, err)
	} else {
		wantErr(t, "validate", v["a"].Err, kerr.TopicAlreadyExists)
	}
	// Defaults of the broker.
	if r, err := adm.CreateTopic(ctx, -1, -1, nil, "defaults"); err != nil || r.NumPartitions != 1 || r.ReplicationFactor != 1 {
		t.Errorf("defaults: %+v %v", r, err)
	}

	list, err := adm.ListTopics(ctx)
	if err != nil || !slices.Equal(list.Names(), []string{"a", "defaults"}) || len(list["a"].Partitions) != 4 || list["a"].ID != r.ID {
		t.Fatalf("list: %v %v", list, err)
	}
	for _, p := range list["a"].Partitions {
		if p.Leader != 1 || !slices.Equal(p.Replicas, []int32{1}) || !slices.Equal(p.ISR, []int32{1}) || p.Err != nil {
			t.Errorf("partition %+v", p)
		}
	}

	if rs, err := adm.UpdatePartitions(ctx, 6, "a"); err != nil || rs["a"].Err != nil {
		t.Errorf("more partitions: %v %v", rs, err)
	}
	if rs, _ := adm.UpdatePartitions(ctx, 5, "a"); !errors.Is(rs["a"].Err, kerr.InvalidPartitions) {
		t.Errorf("fewer partitions: %v", rs["a"].Err)
	}
	if rs, _ := adm.ValidateUpdatePartitions(ctx, 9, "a"); rs["a"].Err != nil {
		t.Errorf("validate partitions: %v", rs["a"].Err)
	}
	kgoProduce(t, b.Addr(), "a", []rec{{partition: 5, value: []byte("in a new one"), ts: baseTime}})
	if list, _ := adm.ListTopics(ctx, "a"); len(list["a"].Partitions) != 6 {
		t.Errorf("%d partitions", len(list["a"].Partitions))
	}

	if rs, err := adm.ListPartitionReassignments(ctx, list.TopicsSet()); err != nil || len(rs) != 0 {
		t.Errorf("reassignments: %v %v", rs, err)
	}
	// A topic of the same name is another topic.
	if _, err := adm.DeleteTopic(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	_, err = adm.DeleteTopic(ctx, "a")
	wantErr(t, "delete again", err, kerr.UnknownTopicOrPartition)
	again, err := adm.CreateTopic(ctx, 1, 1, nil, "a")
	if err != nil || again.ID == r.ID {
		t.Fatalf("created again: %+v %v", again, err)
	}
	adm = admin(t, b) // without what the other one remembers
	if ends, err := adm.ListEndOffsets(ctx, "a"); err != nil || len(ends["a"]) != 1 || ends["a"][0].Offset != 0 {
		t.Errorf("the new topic ends at %v (%v)", ends, err)
	}
	if got := topicConfig(t, adm, "a", "retention.ms"); got.Source == kmsg.ConfigSourceDynamicTopicConfig {
		t.Errorf("the new topic has the old one's settings: %+v", got)
	}
}

func TestConfigs(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"log.retention.hours": "7"}})
	b.CreateTopic("c", 1, "max.message.bytes", "2000")
	adm, ctx := admin(t, b), patience(t)
	source := func(name string) string {
		c := topicConfig(t, adm, "c", name)
		out := fmt.Sprintf("%s=%s from %v:", name, c.MaybeValue(), c.Source)
		for _, s := range c.Synonyms {
			v := "null"
			if s.Value != nil {
				v = *s.Value
			}
			out += fmt.Sprintf(" %s=%s(%v)", s.Key, v, s.Source)
		}
		return out
	}
	check := func(name, want string) {
		t.Helper()
		if got := source(name); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
	check("max.message.bytes", "max.message.bytes=2000 from DYNAMIC_TOPIC_CONFIG: max.message.bytes=2000(DYNAMIC_TOPIC_CONFIG) message.max.bytes=1048588(DEFAULT_CONFIG)")
	check("retention.ms", "retention.ms=25200000 from STATIC_BROKER_CONFIG: log.retention.hours=7(STATIC_BROKER_CONFIG) log.retention.hours=168(DEFAULT_CONFIG)")
	check("segment.bytes", "segment.bytes=1073741824 from DEFAULT_CONFIG: log.segment.bytes=1073741824(DEFAULT_CONFIG)")

	alter := func(cs ...kadm.AlterConfig) error {
		rs, err := adm.AlterTopicConfigs(ctx, cs, "c")
		if err != nil {
			return err
		}
		return rs[0].Err
	}
	if err := alter(kadm.AlterConfig{Op: kadm.SetConfig, Name: "retention.ms", Value: ptr("1000000")}, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: "max.message.bytes"}); err != nil {
		t.Fatal(err)
	}
	check("retention.ms", "retention.ms=1000000 from DYNAMIC_TOPIC_CONFIG: retention.ms=1000000(DYNAMIC_TOPIC_CONFIG) log.retention.hours=7(STATIC_BROKER_CONFIG) log.retention.hours=168(DEFAULT_CONFIG)")
	check("max.message.bytes", "max.message.bytes=1048588 from DEFAULT_CONFIG: message.max.bytes=1048588(DEFAULT_CONFIG)")
	if err := alter(kadm.AlterConfig{Op: kadm.AppendConfig, Name: "cleanup.policy", Value: ptr("compact")}); err != nil {
		t.Error(err)
	}
	if got := topicConfig(t, adm, "c", "cleanup.policy").MaybeValue(); got != "delete,compact" {
		t.Errorf("appended: %s", got)
	}
	if err := alter(kadm.AlterConfig{Op: kadm.SubtractConfig, Name: "cleanup.policy", Value: ptr("compact")}); err != nil {
		t.Error(err)
	}
	wantErr(t, "unknown", alter(kadm.AlterConfig{Op: kadm.SetConfig, Name: "retention.mss", Value: ptr("1")}), kerr.InvalidConfig)
	wantErr(t, "bad value", alter(kadm.AlterConfig{Op: kadm.SetConfig, Name: "segment.bytes", Value: ptr("-5")}), kerr.InvalidConfig)
	// All or nothing.
	wantErr(t, "half bad", alter(kadm.AlterConfig{Op: kadm.SetConfig, Name: "retention.ms", Value: ptr("5")}, kadm.AlterConfig{Op: kadm.SetConfig, Name: "cleanup.policy", Value: ptr("maybe")}), kerr.InvalidConfig)
	check("retention.ms", "retention.ms=1000000 from DYNAMIC_TOPIC_CONFIG: retention.ms=1000000(DYNAMIC_TOPIC_CONFIG) log.retention.hours=7(STATIC_BROKER_CONFIG) log.retention.hours=168(DEFAULT_CONFIG)")

	// A dynamic default of the cluster is below the topic and above the file.
	if rs, err := adm.AlterBrokerConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "log.retention.ms", Value: ptr("777")}}); err != nil || rs[0].Err != nil {
		t.Fatalf("cluster default: %v %v", rs, err)
	}
	servertest.Eventually(t, func() error {
		got, want := source("retention.ms"), "retention.ms=1000000 from DYNAMIC_TOPIC_CONFIG: retention.ms=1000000(DYNAMIC_TOPIC_CONFIG) log.retention.ms=777(DYNAMIC_DEFAULT_BROKER_CONFIG) log.retention.hours=7(STATIC_BROKER_CONFIG) log.retention.hours=168(DEFAULT_CONFIG)"
		if got != want {
			return fmt.Errorf("\n got %s\nwant %s", got, want)
		}
		return nil
	})
	// The old request replaces everything.
	if rs, err := adm.AlterTopicConfigsState(ctx, []kadm.AlterConfig{{Name: "min.insync.replicas", Value: ptr("1")}}, "c"); err != nil || rs[0].Err != nil {
		t.Fatalf("replace: %v %v", rs, err)
	}
	check("retention.ms", "retention.ms=777 from DYNAMIC_DEFAULT_BROKER_CONFIG: log.retention.ms=777(DYNAMIC_DEFAULT_BROKER_CONFIG) log.retention.hours=7(STATIC_BROKER_CONFIG) log.retention.hours=168(DEFAULT_CONFIG)")
	// Settings survive a restart.
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	check("retention.ms", "retention.ms=777 from DYNAMIC_DEFAULT_BROKER_CONFIG: log.retention.ms=777(DYNAMIC_DEFAULT_BROKER_CONFIG) log.retention.hours=7(STATIC_BROKER_CONFIG) log.retention.hours=168(DEFAULT_CONFIG)")

	bc, err := adm.DescribeBrokerConfigs(ctx, 1)
	if err != nil || bc[0].Err != nil {
		t.Fatalf("broker: %v %v", bc, err)
	}
	seen := map[string]*kadm.Config{}
	for i := range bc[0].Configs {
		seen[bc[0].Configs[i].Key] = &bc[0].Configs[i]
	}
	if c := seen["log.retention.hours"]; c == nil || c.MaybeValue() != "7" || c.Source != kmsg.ConfigSourceStaticBrokerConfig {
		t.Errorf("log.retention.hours: %+v", c)
	}
	if c := seen["message.max.bytes"]; c == nil || c.MaybeValue() != "1048588" || c.Source != kmsg.ConfigSourceDefaultConfig {
		t.Errorf("message.max.bytes: %+v", c)
	}
	_, err = adm.DescribeTopicConfigs(ctx, "nobody")
	if err != nil {
		t.Error(err)
	}
}

// TestLimitsWhileRunning: what is changed for all brokers reaches the object
// storage part of one that runs.
func TestLimitsWhileRunning(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("l", 1)
	adm, ctx := admin(t, b), patience(t)
	alter := func(c kadm.AlterConfig) {
		t.Helper()
		if rs, err := adm.AlterBrokerConfigs(ctx, []kadm.AlterConfig{c}); err != nil || rs[0].Err != nil {
			t.Fatalf("%s: %v %v", c.Name, rs, err)
		}
	}
	const rate = "remote.log.manager.copy.max.bytes.per.second"
	alter(kadm.AlterConfig{Op: kadm.SetConfig, Name: rate, Value: ptr("1")})
	if err := b.Client().ProduceSync(ctx, &kgo.Record{Topic: "l", Value: make([]byte, 1000)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// Ten flush intervals. The record takes a quarter of an hour at this rate.
	time.Sleep(time.Second)
	list, err := b.Server().TierStatus("l")
	if err != nil || len(list) != 1 || list[0].HighWatermark != 1 || list[0].RemoteEnd != 0 {
		t.Errorf("with %s=1: %+v, %v", rate, list, err)
	}
	alter(kadm.AlterConfig{Op: kadm.DeleteConfig, Name: rate})
	b.Remote("l", false)
}

func TestSaramaClusterAdmin(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	for _, v := range []sarama.KafkaVersion{sarama.V2_1_0_0, sarama.V2_4_0_0, sarama.V3_6_0_0, sarama.MaxVersion} {
		t.Run(v.String(), func(t *testing.T) {
			adm, err := sarama.NewClusterAdmin([]string{b.Addr()}, saramaConfig(v))
			if err != nil {
				t.Fatal(err)
			}
			defer adm.Close()
			topic := "admin-" + v.String()
			if err := adm.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 2, ReplicationFactor: 1, ConfigEntries: map[string]*string{"retention.ms": ptr("99999")}}, false); err != nil {
				t.Fatal(err)
			}
			if err := adm.CreatePartitions(topic, 3, nil, false); err != nil {
				t.Error(err)
			}
			if err := adm.AlterConfig(sarama.TopicResource, topic, map[string]*string{"retention.ms": ptr("88888")}, false); err != nil {
				t.Error(err)
			}
			if v.IsAtLeast(sarama.V2_3_0_0) {
				if err := adm.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{"max.message.bytes": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: ptr("5000000")}}, false); err != nil {
					t.Error(err)
				}
			}
			//lint:ignore SA1019 programs that call it are what is tested
			es, err := adm.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{"retention.ms"}})
			if err != nil || len(es) != 1 || es[0].Value != "88888" {
				t.Errorf("config %v %v", es, err)
			}
			list, err := adm.ListTopics()
			if err != nil || list[topic].NumPartitions != 3 {
				t.Errorf("list: %v %v", list[topic], err)
			}
			md, err := adm.DescribeTopics([]string{topic, "nobody"})
			if err != nil || len(md) != 2 || len(md[0].Partitions) != 3 || md[1].Err != sarama.ErrUnknownTopicOrPartition {
				t.Errorf("describe: %v %v", md, err)
			}
			brokers, controller, err := adm.DescribeCluster()
			if err != nil || len(brokers) != 1 || controller != 1 || brokers[0].Addr() != b.Addr() {
				t.Errorf("cluster: %v %d %v", brokers, controller, err)
			}
			produceSarama(t, b.Addr(), topic, "none", v, sample())
			if err := adm.DeleteRecords(topic, map[int32]int64{0: 3}); err != nil {
				t.Error(err)
			}
			cl, err := sarama.NewClient([]string{b.Addr()}, saramaConfig(v))
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if o, err := cl.GetOffset(topic, 0, sarama.OffsetOldest); err != nil || o != 3 {
				t.Errorf("log start %d %v", o, err)
			}
			if dirs, err := adm.DescribeLogDirs([]int32{1}); err != nil || len(dirs[1]) != 1 {
				t.Errorf("log dirs: %v %v", dirs, err)
			}
			if err := adm.DeleteTopic(topic); err != nil {
				t.Error(err)
			}
		})
	}
}

// offsets lists what ListOffsets answers for partition 0 of a topic.
func offsets(t *testing.T, f func(context.Context, ...string) (kadm.ListedOffsets, error), topic string) kadm.ListedOffset {
	t.Helper()
	l, err := f(patience(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	o, ok := l.Lookup(topic, 0)
	if !ok || o.Err != nil {
		t.Fatalf("offsets of %s: %v %v", topic, ok, o.Err)
	}
	return o
}

// TestListOffsets: by time over timestamps that go up and down, in batches of
// several sizes and codecs, while the records are in the local log and after
// they have gone to the bucket.
func TestListOffsets(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"log.retention.check.interval.ms": "200"}})
	b.CreateTopic("o", 1, "retention.ms", "-1")
	b.CreateTopic("empty", 1)
	adm := admin(t, b)
	var all []rec
	for i, codec := range []string{"none", "zstd", "lz4", "gzip", "snappy", "none", "zstd"} {
		var rs []rec
		for j := range 5 + 11*i {
			// Saw teeth that rise and fall; the largest is in the middle.
			ts := baseTime + int64((i*977+j*131)%1000)*10
			if i == 3 && j == 7 {
				ts = baseTime + 20_000
			}
			rs = append(rs, rec{ts: ts, value: text(i*100+j, 50)})
		}
		kgoProduce(t, b.Addr(), "o", rs, kgoCodec(codec), kgo.ProducerLinger(0))
		all = append(all, rs...)
	}
	all = number(all)
	end := int64(len(all))
	after := func(ts int64) rec {
		for _, r := range all {
			if r.ts >= ts {
				return r
			}
		}
		return rec{offset: end, ts: -1}
	}
	check := func(t *testing.T) {
		if o := offsets(t, adm.ListStartOffsets, "o"); o.Offset != 0 {
			t.Errorf("earliest %+v", o)
		}
		if o := offsets(t, adm.ListEndOffsets, "o"); o.Offset != end || o.Timestamp != -1 {
			t.Errorf("latest %+v, want %d", o, end)
		}
		if o := offsets(t, adm.ListCommittedOffsets, "o"); o.Offset != end {
			t.Errorf("last stable %+v", o)
		}
		want := after(baseTime + 20_000)
		if o := offsets(t, adm.ListMaxTimestampOffsets, "o"); o.Offset != want.offset || o.Timestamp != want.ts {
			t.Errorf("max timestamp %+v, want %v", o, want)
		}
		for ts := int64(baseTime - 5); ts <= baseTime+10_050; ts += 55 {
			want := after(ts)
			o := offsets(t, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
				return adm.ListOffsetsAfterMilli(ctx, ts, topics...)
			}, "o")
			if o.Offset != want.offset || o.Timestamp != want.ts {
				t.Fatalf("at %d: %d @%d, want %v", ts, o.Offset, o.Timestamp, want)
			}
		}
		o := offsets(t, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return adm.ListOffsetsAfterMilli(ctx, baseTime+20_001, topics...)
		}, "o")
		if o.Offset != end {
			t.Errorf("after the last: %+v", o)
		}
	}
	t.Run("local", check)
	if o := offsets(t, adm.ListLocalLogStartOffsets, "o"); o.Offset != 0 {
		t.Errorf("local start %+v", o)
	}
	for what, f := range map[string]func(context.Context, ...string) (kadm.ListedOffsets, error){
		"start": adm.ListStartOffsets, "end": adm.ListEndOffsets, "local": adm.ListLocalLogStartOffsets,
	} {
		if o := offsets(t, f, "empty"); o.Offset != 0 {
			t.Errorf("empty topic: %s %+v", what, o)
		}
	}
	for what, f := range map[string]func(context.Context, ...string) (kadm.ListedOffsets, error){"max timestamp": adm.ListMaxTimestampOffsets, "remote": adm.ListLatestRemoteOffsets} {
		if o := offsets(t, f, "empty"); o.Offset != -1 {
			t.Errorf("empty topic: %s %+v", what, o)
		}
	}
	if rs, err := adm.AlterTopicConfigs(patience(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "local.retention.bytes", Value: ptr("1")}}, "o"); err != nil || rs[0].Err != nil {
		t.Fatal(rs, err)
	}
	b.Remote("o", true)
	if o := offsets(t, adm.ListLatestRemoteOffsets, "o"); o.Offset != end-1 {
		t.Errorf("latest tiered %+v, want %d", o, end-1)
	}
	if o := offsets(t, adm.ListLocalLogStartOffsets, "o"); o.Offset != end {
		t.Errorf("local start %+v, want %d", o, end)
	}
	t.Run("remote", check)
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	t.Run("remote after a restart", check)
}

// TestListOffsetsBehindLogStart: the record with the largest timestamp is gone, and the batch and the object that it is
// in are not, while the records are in the local log and after they have gone to the bucket.
func TestListOffsetsBehindLogStart(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"log.retention.check.interval.ms": "200"}})
	b.CreateTopic("o", 1, "retention.ms", "-1")
	adm := admin(t, b)
	kgoProduce(t, b.Addr(), "o", []rec{{ts: baseTime + 5000}, {ts: baseTime + 1000}, {ts: baseTime + 2000}}, kgoCodec("none"), kgo.ProducerLinger(time.Second))
	deleteTo := func(offset int64) {
		t.Helper()
		o := kadm.Offsets{}
		o.AddOffset("o", 0, offset, -1)
		if rs, err := adm.DeleteRecords(patience(t), o); err != nil || rs.Error() != nil {
			t.Fatal(err, rs.Error())
		}
	}
	expect := func(what string, offset, ts int64) {
		t.Helper()
		if o := offsets(t, adm.ListMaxTimestampOffsets, "o"); o.Offset != offset || o.Timestamp != ts {
			t.Errorf("%s: the largest timestamp is %d at offset %d, want %d at %d", what, o.Timestamp, o.Offset, ts, offset)
		}
	}
	since := func(what string, ts, offset int64) {
		t.Helper()
		o := offsets(t, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return adm.ListOffsetsAfterMilli(ctx, ts, topics...)
		}, "o")
		if o.Offset != offset {
			t.Errorf("%s: since %d offset %d, want %d", what, ts-baseTime, o.Offset, offset)
		}
	}
	deleteTo(1)
	for _, what := range []string{"local", "remote"} {
		if what == "remote" {
			if rs, err := adm.AlterTopicConfigs(patience(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "local.retention.bytes", Value: ptr("1")}}, "o"); err != nil || rs[0].Err != nil {
				t.Fatal(rs, err)
			}
			b.Remote("o", true)
			if o := offsets(t, adm.ListLocalLogStartOffsets, "o"); o.Offset != 3 {
				t.Errorf("local start %+v", o)
			}
		}
		expect(what, 2, baseTime+2000)
		since(what, baseTime, 1)
		since(what, baseTime+1500, 2)
		since(what, baseTime+2001, 3) // nothing: a client goes to the end
	}
	deleteTo(3)
	expect("nothing left", -1, -1)
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("d", 2)
	kgoProduce(t, b.Addr(), "d", []rec{{partition: 1, value: text(1, 5000), ts: baseTime}}, kgoCodec("none"))
	adm, ctx := admin(t, b), patience(t)
	m, err := adm.BrokerMetadata(ctx)
	if err != nil || m.Controller != 1 || m.Cluster == "" || len(m.Brokers) != 1 || fmt.Sprintf("%s:%d", m.Brokers[0].Host, m.Brokers[0].Port) != b.Addr() {
		t.Errorf("metadata: %+v %v", m, err)
	}
	dc, err := kmsg.NewPtrDescribeClusterRequest().RequestWith(ctx, b.Client())
	if err != nil || dc.ErrorCode != 0 || dc.ClusterID != m.Cluster || dc.ControllerID != 1 || len(dc.Brokers) != 1 || dc.Brokers[0].NodeID != 1 {
		t.Errorf("cluster: %+v %v", dc, err)
	}
	dirs, err := adm.DescribeAllLogDirs(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	dirs.Each(func(d kadm.DescribedLogDir) {
		if p, ok := d.Topics.Lookup("d", 1); ok {
			found = true
			if p.Size < 5000 || d.TotalBytes <= 0 || d.UsableBytes <= 0 {
				t.Errorf("log dir %+v", d)
			}
		}
	})
	if !found {
		t.Errorf("log dirs: %v", dirs)
	}
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	for _, name := range []string{"d", "nobody"} {
		rt := kmsg.NewDescribeTopicPartitionsRequestTopic()
		rt.Topic = name
		req.Topics = append(req.Topics, rt)
	}
	req.ResponsePartitionLimit = 100
	dtp, err := req.RequestWith(ctx, b.Client())
	if err != nil || len(dtp.Topics) != 2 {
		t.Fatalf("%+v %v", dtp, err)
	}
	for _, x := range dtp.Topics {
		switch *x.Topic {
		case "d":
			if x.ErrorCode != 0 || len(x.Partitions) != 2 || x.Partitions[0].LeaderID != 1 {
				t.Errorf("%+v", x)
			}
		default:
			if x.ErrorCode != kerr.UnknownTopicOrPartition.Code {
				t.Errorf("%+v", x)
			}
		}
	}
}

// TestOffsetForLeaderEpoch: each start of the broker is an epoch of its own,
// and a consumer can ask where the old ones ended.
func TestOffsetForLeaderEpoch(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("e", 1)
	adm := admin(t, b)
	epochOf := func() int32 {
		l, err := admin(t, b).ListTopics(patience(t), "e") // a new client remembers nothing
		if err != nil {
			t.Fatal(err)
		}
		return l["e"].Partitions[0].LeaderEpoch
	}
	var epochs []int32
	for i := range 3 {
		kgoProduce(t, b.Addr(), "e", make([]rec, 10))
		epochs = append(epochs, epochOf())
		if i == 1 {
			// The old epochs are known from the bucket as well.
			if rs, err := adm.AlterTopicConfigs(patience(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "local.retention.bytes", Value: ptr("1")}}, "e"); err != nil || rs[0].Err != nil {
				t.Fatal(rs, err)
			}
		}
		if err := b.Restart(nil); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.IsSorted(epochs) || epochs[0] == epochs[1] || epochs[1] == epochs[2] || epochOf() <= epochs[2] {
		t.Fatalf("epochs %v, now %d", epochs, epochOf())
	}
	check := func() {
		t.Helper()
		for i, want := range []int64{10, 20, 30} {
			var req kadm.OffsetForLeaderEpochRequest
			req.Add("e", 0, epochs[i])
			rs, err := adm.OffsetForLeaderEpoch(patience(t), req)
			if err != nil {
				t.Fatal(err)
			}
			if got := rs["e"][0]; got.Err != nil || got.LeaderEpoch != epochs[i] || got.EndOffset != want {
				t.Errorf("epoch %d: %+v, want end %d", epochs[i], got, want)
			}
		}
	}
	check()
	b.Remote("e", true)
	check()
}

// TestDeleteRecords moves the log start, also in the middle of a batch, and it
// stays there.
func TestDeleteRecords(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("x", 1)
	rs := make([]rec, 100)
	for i := range rs {
		rs[i] = rec{value: fmt.Appendf(nil, "%d", i), ts: baseTime}
	}
	kgoProduce(t, b.Addr(), "x", rs)
	adm, ctx := admin(t, b), patience(t)
	del := func(at int64) (int64, error) {
		var o kadm.Offsets
		o.Add(kadm.Offset{Topic: "x", Partition: 0, At: at})
		rs, err := adm.DeleteRecords(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return rs["x"][0].LowWatermark, rs["x"][0].Err
	}
	if low, err := del(37); err != nil || low != 37 {
		t.Errorf("low watermark %d %v", low, err)
	}
	if low, err := del(10); err != nil || low != 37 {
		t.Errorf("backwards: %d %v", low, err)
	}
	_, err := del(101)
	wantErr(t, "beyond the end", err, kerr.OffsetOutOfRange)
	check := func(start int64) {
		t.Helper()
		if o := offsets(t, adm.ListStartOffsets, "x"); o.Offset != start {
			t.Errorf("log start %d, want %d", o.Offset, start)
		}
		_, err := fetchOnce(ctx, b.Client(), "x", 0, start-1, 1<<20)
		wantErr(t, "fetch below log start", err, kerr.OffsetOutOfRange)
		if start < 100 {
			if got := kgoConsume(t, b.Addr(), "x", int(100-start)); got[0].offset != start || string(got[0].value) != fmt.Sprint(start) {
				t.Errorf("first record %v", got[0])
			}
		}
	}
	check(37)
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	check(37)
	if low, err := del(-1); err != nil || low != 100 {
		t.Errorf("all: %d %v", low, err)
	}
	check(100)
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	check(100)
	kgoProduce(t, b.Addr(), "x", []rec{{value: []byte("100"), ts: baseTime}})
	if got := kgoConsume(t, b.Addr(), "x", 1); got[0].offset != 100 {
		t.Errorf("after deletion of all: %v", got[0])
	}
}
