package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
)

const stuckLog = 32 << 20 // wal.max.bytes

func stuckBroker(t *testing.T, settings ...string) *servertest.Broker {
	s := map[string]string{"wal.max.bytes": fmt.Sprint(stuckLog), "wal.segment.bytes": "1048576"}
	for i := 0; i < len(settings); i += 2 {
		s[settings[i]] = settings[i+1]
	}
	return servertest.Start(t, servertest.Options{Settings: s})
}

// round produces several times what the log may hold.
func round(t *testing.T, b *servertest.Broker, topic string) {
	t.Helper()
	cl := newKgo(t, b.Addr(), append(eager, kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	for i := range 3 * stuckLog / 200_000 {
		if err := cl.ProduceSync(patience(t), &kgo.Record{Value: text(i, 200_000)}).FirstErr(); err != nil {
			t.Fatalf("record %d beside a partition that is stuck: %v; /readyz says %s", i, err, ready(t, b))
		}
	}
}

func alter(t *testing.T, b *servertest.Broker, topic, name, value string) {
	t.Helper()
	rs, err := admin(t, b).AlterTopicConfigs(patience(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: kadm.StringPtr(value)}}, topic)
	if err != nil || rs[0].Err != nil {
		t.Fatalf("%v %v", rs, err)
	}
}

// TestCopyDisabled: what remote.log.copy.disable=true keeps in the local log has a share of it. Beyond that the topic's own producers
// are refused; those of others are not, neither where it has filled a good part of the log before it was set.
func TestCopyDisabled(t *testing.T) {
	t.Parallel()
	b := stuckBroker(t, "remote.flush.interval.ms", "3600000", "remote.object.bytes", "1073741824")
	b.CreateTopic("off", 1, "remote.log.copy.disable", "true")
	b.CreateTopic("late", 1)
	b.CreateTopic("t", 1)
	cl := b.Client()
	put := func(topic string, i int) error {
		_, err := produceRaw(t, cl, topic, 0, plainBatch(t, text(i, 100_000)))
		return err
	}
	const late = stuckLog / 3 / 100_000
	for i := range late {
		if err := put("late", i); err != nil {
			t.Fatal(err)
		}
	}
	alter(t, b, "late", "remote.log.copy.disable", "true")
	off := 0
	var err error
	for ; err == nil && off < stuckLog/100_000; off++ {
		err = put("off", off)
	}
	off--
	if !errors.Is(err, kerr.NotEnoughReplicas) || off*100_000 > stuckLog/8 {
		t.Fatalf("after %d records: %v", off, err)
	}
	round(t, b, "t")
	for _, topic := range []string{"off", "late"} {
		if err := put(topic, 0); !errors.Is(err, kerr.NotEnoughReplicas) {
			t.Errorf("%s, which has used its share: %v", topic, err)
		}
	}
	if text := ready(t, b); !strings.Contains(text, "producers of 2 partitions are refused") || !strings.Contains(text, "remote.log.copy.disable=true") || strings.Contains(text, "at its bound") {
		t.Errorf("/readyz says %s", text)
	}
	check := func() {
		t.Helper()
		for topic, n := range map[string]int{"off": off, "late": late} {
			for i, r := range kgoConsume(t, b.Addr(), topic, n) {
				if !bytes.Equal(r.value, text(i, 100_000)) {
					t.Fatalf("%s: record %d is %s", topic, i, show(r.value))
				}
			}
		}
	}
	check()
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	check()
	cl = b.Client()
	for _, topic := range []string{"off", "late"} {
		alter(t, b, topic, "remote.log.copy.disable", "false")
	}
	round(t, b, "t")
	servertest.Eventually(t, func() error { return errors.Join(put("off", off), put("late", late)) })
	if text := ready(t, b); strings.Contains(text, "refused") {
		t.Errorf("/readyz says %s", text)
	}
	check()
}

// TestDamageInASealedSegment: a record that is damaged on the disk before it was uploaded, in a segment that recovery does not read. It
// stops its own partition's uploads, says where it is, and stops nobody else; deleting the records up to it ends that.
func TestDamageInASealedSegment(t *testing.T) {
	t.Parallel()
	b := stuckBroker(t, "remote.flush.interval.ms", "3600000", "remote.object.bytes", "1073741824")
	b.CreateTopic("d", 1)
	b.CreateTopic("t", 1)
	value := func(i int) []byte { return fmt.Appendf(nil, "record number %d of the damaged partition", i) }
	const records, bad = 6, 2
	for i := range records {
		kgoProduce(t, b.Addr(), "d", []rec{{value: value(i)}})
	}
	for i := range 30 {
		kgoProduce(t, b.Addr(), "t", []rec{{value: text(i, 200_000)}})
	}
	if err := b.Restart(func() { flipInLog(t, b, value(bad)) }); err != nil {
		t.Fatal(err)
	}
	round(t, b, "t")
	cl := b.Client()
	check := func(from int) {
		t.Helper()
		for i := from; i < records; i++ {
			run, err := fetchOnce(patience(t), cl, "d", 0, int64(i), 1)
			switch {
			case i == bad && !errors.Is(err, kerr.KafkaStorageError):
				t.Fatalf("damaged record: %d bytes, %v", len(run), err)
			case i != bad && (err != nil || !bytes.Contains(run, value(i))):
				t.Fatalf("record %d: %d bytes, %v", i, len(run), err)
			}
		}
	}
	check(0)
	if text := ready(t, b); !strings.Contains(text, `(topic \"d\")`) || !strings.Contains(text, "offsets [2, 3)") {
		t.Errorf("/readyz says %s", text)
	}
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	cl = b.Client()
	check(0)
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "d", Partition: 0, At: bad + 1})
	if rs, err := admin(t, b).DeleteRecords(context.Background(), offsets); err != nil || rs.Error() != nil {
		t.Fatalf("%v %v", rs, err)
	}
	check(bad + 1)
	b.Remote("d", false) // at once, though uploads are due every hour
	if text := ready(t, b); strings.Contains(text, `(topic \"d\")`) {
		t.Errorf("/readyz says %s", text)
	}
	check(bad + 1)
}
