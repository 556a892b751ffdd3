package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// What is in the bucket already follows the topic's settings as they change: delete, compact, delete again, both; retention up and
// down; and when the topic is deleted nothing of it stays, whichever worker or collector has rewritten it.
func TestCleanupPolicyChanges(t *testing.T) {
	bucket := objstore.NewMem()
	b := servertest.Start(t, servertest.Options{Bucket: bucket, Settings: map[string]string{
		"log.cleaner.backoff.ms": "50", "log.cleaner.scrub.interval.ms": "500", "log.retention.check.interval.ms": "200",
		"remote.delete.grace.ms": "1000", "remote.sweep.interval.ms": "1000",
	}})
	b.CreateTopic("t", 1, "local.retention.bytes", "1", "min.cleanable.dirty.ratio", "0.01", "file.delete.delay.ms", "0", "delete.retention.ms", "100")
	b.CreateTopic("beside", 1) // shares objects with it
	cl := b.Client()
	adm := kadm.NewClient(cl)
	value := map[string]string{}
	round := 0
	write := func(rounds int) {
		t.Helper()
		for range rounds {
			round++
			var list []*kgo.Record
			for i := range 20 {
				key := fmt.Sprintf("k%d", i)
				value[key] = fmt.Sprintf("%s in round %d", key, round)
				list = append(list, &kgo.Record{Topic: "t", Key: []byte(key), Value: []byte(value[key])}, &kgo.Record{Topic: "beside", Value: []byte("x")})
			}
			if err := cl.ProduceSync(patience(t), list...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			b.Remote("t", false)
		}
		b.Remote("t", true)
	}
	alter := func(settings ...string) {
		t.Helper()
		var list []kadm.AlterConfig
		for i := 0; i < len(settings); i += 2 {
			list = append(list, kadm.AlterConfig{Op: kadm.SetConfig, Name: settings[i], Value: &settings[i+1]})
		}
		if rs, err := adm.AlterTopicConfigs(patience(t), list, "t"); err != nil || rs[0].Err != nil {
			t.Fatalf("%v %v", err, rs)
		}
	}
	// content is what a reader from the log start gets: how many records, and the newest of each key.
	content := func() (records int, newest map[string]string, err error) {
		list, err := b.Server().TierStatus("t")
		if err != nil || len(list) != 1 {
			return 0, nil, fmt.Errorf("status %v: %w", list, err)
		}
		newest = map[string]string{}
		for from := list[0].LogStart; from < list[0].HighWatermark; {
			run, err := fetchOnce(patience(t), cl, "t", 0, from, 1<<20)
			if err != nil {
				return 0, nil, err // the log start may have moved on
			}
			err = batch.Walk(run, func(h batch.Header, raw []byte) error {
				if from = max(from, h.NextOffset()); h.LastOffset() < list[0].LogStart {
					return nil
				}
				for r, err := range batch.Records(raw, 1<<20) {
					if err != nil {
						return err
					}
					records++
					newest[string(r.Key)] = string(r.Value)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		return records, newest, nil
	}
	becomes := func(when string, records int) {
		t.Helper()
		servertest.Eventually(t, func() error {
			n, newest, err := content()
			if err != nil {
				return fmt.Errorf("%s: %w", when, err)
			}
			if n != records {
				return fmt.Errorf("%s: %d records, want %d", when, n, records)
			}
			if records > 0 && !maps.Equal(newest, value) {
				return fmt.Errorf("%s: the newest values are %v, want %v", when, newest, value)
			}
			return nil
		})
	}
	rounds := func() float64 { return metrics(t, b)["varve_compaction_last_round_timestamp_seconds"] }
	looked := func() {
		t.Helper()
		at := rounds()
		servertest.Eventually(t, func() error {
			if rounds() < at+0.5 {
				return errors.New("the worker has not looked again")
			}
			return nil
		})
	}

	write(10)
	looked()
	becomes("cleanup.policy=delete", 200)
	alter("cleanup.policy", "compact")
	becomes("compact", 20)
	alter("cleanup.policy", "delete")
	write(5)
	looked()
	becomes("delete again", 120)
	alter("retention.ms", "1")
	becomes("nothing is kept", 0)
	alter("retention.ms", "-1")
	write(2)
	becomes("everything is kept", 40)
	alter("cleanup.policy", "compact,delete")
	becomes("both", 20)
	write(3)
	becomes("both, later", 20)
	alter("retention.ms", "1")
	becomes("both, and nothing is kept", 0)
	alter("retention.ms", "-1", "cleanup.policy", "compact")
	write(2)
	becomes("compact again", 20)
	// By size, what is compacted is not retained any less.
	alter("retention.bytes", "1")
	looked()
	becomes("compact has no retention", 20)
	alter("cleanup.policy", "delete", "retention.bytes", "-1")
	write(2)
	becomes("delete, all kept", 60)
	alter("retention.bytes", "1")
	servertest.Eventually(t, func() error {
		n, _, err := content()
		if err == nil && n >= 60 {
			err = fmt.Errorf("%d records", n)
		}
		if err != nil {
			return fmt.Errorf("retention.bytes=1: %w", err)
		}
		return nil
	})

	topics, err := adm.ListTopics(patience(t), "t")
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%x", [16]byte(topics["t"].ID))
	if _, err := adm.DeleteTopic(patience(t), "t"); err != nil {
		t.Fatal(err)
	}
	servertest.Eventually(t, func() error {
		for _, prefix := range []string{"data/", "page/"} {
			list, _, err := bucket.List(context.Background(), prefix, "", 1000)
			if err != nil {
				return err
			}
			for _, i := range list {
				if strings.Contains(i.Key, id) {
					return fmt.Errorf("the deleted topic has left %s", i.Key)
				}
			}
		}
		return nil
	})
	was := metrics(t, b)["varve_scrub_last_timestamp_seconds"]
	servertest.Eventually(t, func() error {
		if metrics(t, b)["varve_scrub_last_timestamp_seconds"] <= was {
			return errors.New("no scrub since")
		}
		return nil
	})
	if m := metrics(t, b); m["varve_scrub_found_total"] != 0 || m["varve_scrub_last_objects"] == 0 {
		t.Errorf("scrubs have found %v things, the last in %v objects", m["varve_scrub_found_total"], m["varve_scrub_last_objects"])
	}
}

// What has been compacted away does not come back when the topic's policy changes, though the local log still has it.
func TestCompactedStaysSo(t *testing.T) {
	b := servertest.Start(t, servertest.Options{Settings: compacting()})
	b.CreateTopic("t", 1, "cleanup.policy", "compact", "min.cleanable.dirty.ratio", "0.01")
	cl := b.Client()
	const keys, rounds = 10, 5
	for i := range keys * rounds {
		r := &kgo.Record{Topic: "t", Key: []byte(fmt.Sprintf("k%d", i%keys)), Value: []byte(fmt.Sprint(i))}
		if err := cl.ProduceSync(patience(t), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	first := func() (offset int64) {
		t.Helper()
		run, err := fetchOnce(patience(t), cl, "t", 0, 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		offset = -1
		err = batch.Walk(run, func(_ batch.Header, raw []byte) error {
			for r, err := range batch.Records(raw, 1<<20) {
				if err != nil {
					return err
				}
				if h, _ := batch.ParseHeader(raw); offset < 0 {
					offset = h.BaseOffset + int64(r.OffsetDelta)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return offset
	}
	b.Remote("t", false)
	servertest.Eventually(t, func() error {
		if o := first(); o < keys*(rounds-1) {
			return fmt.Errorf("the first record is at %d", o)
		}
		return nil
	})
	policy := "delete"
	rs, err := kadm.NewClient(cl).AlterTopicConfigs(patience(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &policy}}, "t")
	if err != nil || rs[0].Err != nil {
		t.Fatalf("%v %v", err, rs)
	}
	// The leader hears of the head, and with it asks what the policy is, at its next commit.
	if err := cl.ProduceSync(patience(t), &kgo.Record{Topic: "t", Key: []byte("k0"), Value: []byte("newer")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b.Remote("t", false)
	if o := first(); o < keys*(rounds-1) {
		t.Errorf("cleanup.policy=delete: the first record is at %d", o)
	}
}
