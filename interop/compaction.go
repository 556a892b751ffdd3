package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/wal/batch"
)

// The same log is written to Apache Kafka and to Varve, and what each compacts it to is compared: the records that a
// consumer sees, and the batches as they are stored.

const (
	compactKeys   = 40
	compactSteps  = 120 // batches and transactions
	compactRounds = 40  // at most, of a filler and a look at both
	fillerKey     = "filler"
)

// compactTopics differ in what becomes of tombstones and markers: their time comes at once, or not while this runs.
var compactTopics = map[string]string{"compaction-gone": "200", "compaction-stays": "86400000"}

// compacter is a broker that compacts what it is given.
type compacter struct {
	name  string
	addr  string
	admin string // URL of Varve's metrics
	cl    *kgo.Client
	adm   *kadm.Client
	end   func()
}

func (h *harness) compaction(ctx context.Context, varve string) {
	dir := filepath.Join(h.work, "compaction")
	var both []*compacter
	want := map[string][]*kgo.Record{}
	defer func() {
		for _, b := range both {
			b.adm.Close()
			b.end()
		}
	}()
	if !h.check("compaction", "Apache Kafka and Varve are given the same log: overwritten keys, tombstones, transactions, codecs, headers", func() error {
		for _, start := range []func(context.Context, string, string) (*compacter, error){h.compactingKafka, compactingVarve} {
			b, err := start(ctx, dir, varve)
			if err != nil {
				return err
			}
			if b.cl, err = kgo.NewClient(kgo.SeedBrokers(b.addr)); err != nil {
				b.end()
				return err
			}
			b.adm = kadm.NewClient(b.cl)
			both = append(both, b)
		}
		began := time.Now().Add(-2 * time.Hour).UnixMilli()
		for topic, retention := range compactTopics {
			for _, b := range both {
				log, err := b.write(ctx, topic, retention, began)
				if err != nil {
					return fmt.Errorf("%s: %w", b.name, err)
				}
				want[topic] = newest(log, topic == "compaction-stays")
			}
		}
		return nil
	}) {
		return
	}
	for _, topic := range []string{"compaction-gone", "compaction-stays"} {
		h.check("compaction", topic+": the same records are left at the same offsets, and what else is left differs only as README.md says", func() error {
			return h.compacted(ctx, both[0], both[1], topic, want[topic])
		})
	}
	h.check("compaction", "objects were replaced and deleted while clients read them", func() error { return h.sweep(ctx, both[1]) })
}

// sweep has clients read a topic from its beginning again and again while all of it is compacted and deleted under them.
func (h *harness) sweep(ctx context.Context, v *compacter) error {
	const topic, keys = "compaction-swept", 60
	set := func(s string) *string { return &s }
	if _, err := v.adm.CreateTopic(ctx, 2, 1, map[string]*string{"cleanup.policy": set("compact"), "min.cleanable.dirty.ratio": set("0.01"), "file.delete.delay.ms": set("0")}, topic); err != nil {
		return err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(v.addr), kgo.DefaultProduceTopic(topic), kgo.TransactionalID(topic))
	if err != nil {
		return err
	}
	defer cl.Close()
	// Every second transaction is aborted.
	turn := func(ctx context.Context, n int) error {
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		var rs []*kgo.Record
		for k := range keys {
			r := &kgo.Record{Key: fmt.Appendf(nil, "key-%d", k), Value: fmt.Append(nil, n)}
			if n%2 == 0 {
				r.Value = []byte("aborted")
			}
			rs = append(rs, r)
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			return err
		}
		return cl.EndTransaction(ctx, kgo.TransactionEndTry(n%2 == 1))
	}
	if err := turn(ctx, 1); err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	written := make(chan error, 1)
	go func() {
		var err error
		for n := 2; err == nil && writing.Err() == nil; n++ {
			if err = turn(ctx, n); err == nil {
				time.Sleep(5 * time.Millisecond)
			}
		}
		written <- err
	}()
	of := &harness{report: h.report, installed: h.installed, work: h.work, boot: v.addr, node: 1, started: h.started, slots: h.slots}
	var wg sync.WaitGroup
	for _, client := range []string{"java", "confluent"} {
		wg.Go(func() { of.program(ctx, client, "sweep", plan{Sweep: planSweep{topic, keys, 40}}) })
	}
	wg.Wait()
	stop()
	if err := <-written; err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	resp, err := http.Get(v.admin + "/metrics")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), "varve_tier_deleted_objects_total "); ok {
			if n, err := strconv.ParseFloat(rest, 64); err != nil || n < 20 {
				return fmt.Errorf("only %s objects were deleted meanwhile", rest)
			}
			return nil
		}
	}
	return errors.New("the broker does not say how many objects it deleted")
}

// compactingKafka is a broker of Apache Kafka that rolls a segment with every record that is a second younger, and cleans
// whatever is dirty.
func (h *harness) compactingKafka(ctx context.Context, dir, _ string) (*compacter, error) {
	addr, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	controller, err := child.FreeAddr()
	if err != nil {
		return nil, err
	}
	p, err := child.StartKafkaAt(ctx, h.installed.jars, filepath.Join(dir, "kafka"), addr, controller,
		"transaction.state.log.num.partitions=1", "offsets.topic.num.partitions=1",
		"log.cleaner.backoff.ms=100", "log.cleaner.dedupe.buffer.size=8388608", "log.initial.task.delay.ms=100")
	if err != nil {
		return nil, err
	}
	return &compacter{name: "Kafka", addr: addr, end: p.Kill}, nil
}

func compactingVarve(ctx context.Context, dir, varve string) (*compacter, error) {
	p, err := startVarve(ctx, varve, filepath.Join(dir, "varve"), "remote.flush.interval.ms=200", "log.cleaner.backoff.ms=100", "remote.delete.grace.ms=1000")
	if err != nil {
		return nil, err
	}
	return &compacter{name: "Varve", addr: p.Addr, admin: p.Admin, end: p.Kill}, nil
}

// entry is a record of the log, as far as it is known who wrote it.
type entry struct {
	*kgo.Record
	aborted bool
}

// write makes a topic and writes the log to it, the same records in the same batches at the same offsets whoever is asked.
func (b *compacter) write(ctx context.Context, topic, retention string, began int64) (log []*entry, err error) {
	set := func(s string) *string { return &s }
	if _, err := b.adm.CreateTopic(ctx, 1, 1, map[string]*string{
		"cleanup.policy": set("compact"), "segment.ms": set("1000"), "min.cleanable.dirty.ratio": set("0.01"), "delete.retention.ms": &retention, "file.delete.delay.ms": set("100"),
	}, topic); err != nil {
		return nil, err
	}
	var clients []*kgo.Client
	client := func(opts ...kgo.Opt) error {
		cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.addr), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(time.Minute)}, opts...)...)
		if err == nil {
			clients = append(clients, cl)
		}
		return err
	}
	defer func() {
		for _, cl := range clients {
			cl.Close()
		}
	}()
	for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		if err := client(kgo.ProducerBatchCompression(codec)); err != nil {
			return nil, err
		}
	}
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.ZstdCompression(), kgo.Lz4Compression()} {
		if err := client(kgo.TransactionalID(fmt.Sprintf("%s-%d", topic, i)), kgo.TransactionTimeout(10*time.Minute), kgo.ProducerBatchCompression(codec)); err != nil {
			return nil, err
		}
	}
	plain, txns := clients[:len(codecs)], clients[len(codecs):]

	rng := mrand.New(mrand.NewPCG(5, 8))
	n, end := 0, int64(0)
	// send writes a batch of size records.
	send := func(cl *kgo.Client, size int) (sent []*entry, err error) {
		for range size {
			r := &kgo.Record{Key: fmt.Appendf(nil, "key-%d", rng.IntN(compactKeys)), Value: fmt.Appendf(nil, "value-%d-%s", n, strings.Repeat("x", rng.IntN(400))), Timestamp: time.UnixMilli(began + int64(n))}
			switch rng.IntN(6) {
			case 0:
				r.Value = nil
			case 1:
				r.Headers = []kgo.RecordHeader{{Key: "n", Value: fmt.Append(nil, n)}, {Key: "null"}, {Key: "n", Value: []byte{}}}
			case 2:
				r.Value = []byte{}
			}
			n++
			sent = append(sent, &entry{Record: r})
		}
		errs := make(chan error, size)
		for _, e := range sent {
			cl.Produce(ctx, e.Record, func(_ *kgo.Record, err error) { errs <- err })
		}
		if err := cl.Flush(ctx); err != nil {
			return nil, err
		}
		for _, e := range sent {
			if err := <-errs; err != nil {
				return nil, err
			}
			if e.Offset != end {
				return nil, fmt.Errorf("record %d is at offset %d, want %d", n, e.Offset, end)
			}
			end++
		}
		log = append(log, sent...)
		return sent, nil
	}
	// finish ends a transaction, and waits for its marker: what is written next stands behind it.
	finish := func(cl *kgo.Client, commit bool, of []*entry) error {
		if err := cl.EndTransaction(ctx, kgo.TransactionEndTry(commit)); err != nil {
			return err
		}
		for _, e := range of {
			e.aborted = !commit
		}
		end++
		return child.Eventually(ctx, time.Minute, func() error {
			ends, err := b.adm.ListEndOffsets(ctx, topic)
			if err != nil {
				return err
			}
			if e, _ := ends.Lookup(topic, 0); e.Offset != end {
				return fmt.Errorf("the log ends at %d, want %d, behind a marker", e.Offset, end)
			}
			return nil
		})
	}
	open := map[int][]*entry{} // by producer, what its transaction has written
	for range compactSteps {
		i := rng.IntN(len(txns))
		of, began := open[i]
		switch {
		case rng.IntN(2) == 0:
			if _, err := send(plain[rng.IntN(len(plain))], 1+rng.IntN(12)); err != nil {
				return nil, err
			}
			continue
		case began && rng.IntN(3) == 0:
			if err := finish(txns[i], rng.IntN(2) == 0, of); err != nil {
				return nil, err
			}
			delete(open, i)
			continue
		case !began:
			if err := txns[i].BeginTransaction(); err != nil {
				return nil, err
			}
		}
		sent, err := send(txns[i], 1+rng.IntN(6))
		if err != nil {
			return nil, err
		}
		open[i] = append(of, sent...)
	}
	for i, cl := range txns {
		if of, began := open[i]; began {
			if err := finish(cl, i == 1, of); err != nil {
				return nil, err
			}
		}
	}
	return log, nil
}

// newest is what compaction has to leave of a log: the newest record of every key, aborted ones left out, and not the
// tombstones whose time has come.
func newest(log []*entry, tombstones bool) (out []*kgo.Record) {
	last := map[string]*kgo.Record{}
	for _, e := range log {
		if !e.aborted {
			last[string(e.Key)] = e.Record
		}
	}
	for _, e := range log {
		if last[string(e.Key)] == e.Record && (tombstones || e.Value != nil) {
			out = append(out, e.Record)
		}
	}
	return out
}

// fill writes a record that is a second younger than the last: Kafka rolls a segment and may clean the one before.
func (b *compacter) fill(ctx context.Context, topic string, began time.Time, i int) error {
	// Of what is to be dirty enough, the value must not be compressed away.
	v := make([]byte, 2000)
	rand.Read(v)
	r := &kgo.Record{Topic: topic, Key: []byte(fillerKey), Value: v, Timestamp: began.Add(time.Duration(i+1) * 2 * time.Second)}
	return b.cl.ProduceSync(ctx, r).FirstErr()
}

// stored is what is left of a log as it is stored.
type stored struct{ batches []batch.Header }

// cut leaves what is below end.
func (s *stored) cut(end int64) {
	s.batches = slices.DeleteFunc(s.batches, func(h batch.Header) bool { return h.BaseOffset >= end })
}

// differ is an error unless two logs have the same batches but for what README.md says: n records in all, tombstones
// among them, in the same batches; the same markers; and of batches without records at least those that Kafka has.
func differ(k, v *stored, n int) error {
	var data, markers, empty [2][]string
	var count [2]int
	for i, s := range []*stored{k, v} {
		for _, h := range s.batches {
			at := fmt.Sprintf("%d-%d", h.BaseOffset, h.LastOffset())
			switch {
			case h.Control():
				markers[i] = append(markers[i], at) // Kafka empties the last of a producer
			case h.RecordCount == 0:
				empty[i] = append(empty[i], at)
			default:
				data[i] = append(data[i], fmt.Sprintf("%s:%d", at, h.RecordCount))
				count[i] += int(h.RecordCount)
			}
		}
	}
	for i, name := range []string{"Kafka", "Varve"} {
		if count[i] != n {
			return fmt.Errorf("%s keeps %d records, want %d", name, count[i], n)
		}
	}
	for what, lists := range map[string][2][]string{"batches with records": data, "markers": markers} {
		if !slices.Equal(lists[0], lists[1]) {
			return fmt.Errorf("%s: Kafka has %v, Varve %v", what, lists[0], lists[1])
		}
	}
	for _, at := range empty[0] {
		if !slices.Contains(empty[1], at) {
			return fmt.Errorf("batches without records: Kafka has %v, Varve %v", empty[0], empty[1])
		}
	}
	return nil
}

// raw reads the batches of a topic as they are stored.
func (b *compacter) raw(ctx context.Context, topic string) (*stored, error) {
	out := &stored{}
	ends, err := b.adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, err
	}
	end, _ := ends.Lookup(topic, 0)
	described, err := b.adm.ListTopics(ctx, topic)
	if err != nil {
		return nil, err
	}
	for at := int64(0); at < end.Offset; {
		req := kmsg.NewPtrFetchRequest()
		req.MaxBytes, req.MaxWaitMillis, req.MinBytes, req.SessionEpoch = 50<<20, 500, 1, -1
		t := kmsg.NewFetchRequestTopic()
		t.Topic, t.TopicID = topic, described[topic].ID
		p := kmsg.NewFetchRequestTopicPartition()
		p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = at, 10<<20, -1
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		resp, err := req.RequestWith(ctx, b.cl.Broker(1))
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err == nil {
			err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
		}
		if err != nil {
			return nil, fmt.Errorf("%s at %d: %w", topic, at, err)
		}
		run := resp.Topics[0].Partitions[0].RecordBatches
		before := at
		err = batch.Walk(run, func(h batch.Header, raw []byte) error {
			if h.NextOffset() <= at {
				return nil
			}
			if err := batch.VerifyCRC(raw); err != nil {
				return err
			}
			at = h.NextOffset()
			out.batches = append(out.batches, h)
			return nil
		})
		if err != nil && !(errors.Is(err, batch.ErrShort) && at > before) { // an answer may end in the midst of a batch
			return nil, fmt.Errorf("%s at %d: %w", topic, at, err)
		}
		if at == before {
			return out, nil // what was there at the end has been compacted away
		}
	}
	return out, nil
}

// records reads what consumers of committed records see of a topic, without the fillers.
func (b *compacter) records(ctx context.Context, topic string) (out []*kgo.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ends, err := b.adm.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	end, _ := ends.Lookup(topic, 0)
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	for next := int64(0); next < end.Offset; { // the last record is a filler, which nothing is newer than
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("%s at %d of %d: %w", topic, next, end.Offset, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if string(r.Key) != fillerKey {
				out = append(out, r)
			}
		})
	}
	return out, nil
}

// compacted writes fillers until both have compacted all there is, and compares what consumers see of it with what has
// to be there.
func (h *harness) compacted(ctx context.Context, k, v *compacter, topic string, want []*kgo.Record) error {
	ends, err := k.adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	last, _ := ends.Lookup(topic, 0)
	mine, err := v.adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	if e, _ := mine.Lookup(topic, 0); e.Offset != last.Offset {
		return fmt.Errorf("the log ends at %d in Kafka and at %d in Varve", last.Offset, e.Offset)
	}
	began := time.Now() // markers have the time of their broker
	for i := 0; ; i++ {
		for _, b := range []*compacter{k, v} {
			if err := b.fill(ctx, topic, began, i); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond): // for both to find it and to compact it
		}
		ks, err := k.raw(ctx, topic)
		if err != nil {
			return err
		}
		vs, err := v.raw(ctx, topic)
		if err != nil {
			return err
		}
		ks.cut(last.Offset)
		vs.cut(last.Offset)
		err = differ(ks, vs, len(want))
		if err == nil {
			break
		}
		if i == compactRounds {
			return fmt.Errorf("%w\nKafka %s\nVarve %s", err, ks, vs)
		}
	}
	kr, err := k.records(ctx, topic)
	if err != nil {
		return err
	}
	vr, err := v.records(ctx, topic)
	if err != nil {
		return err
	}
	if err := sameRecords(want, kr); err != nil {
		return fmt.Errorf("of Kafka: %w", err)
	}
	if err := sameRecords(want, vr); err != nil {
		return fmt.Errorf("of Varve: %w", err)
	}
	return nil
}

// String lists the batches: their offsets, how many records they have, c for a marker, h for a delete horizon.
func (s *stored) String() string {
	var b strings.Builder
	for _, h := range s.batches {
		fmt.Fprintf(&b, " %d-%d:%d", h.BaseOffset, h.LastOffset(), h.RecordCount)
		if h.Control() {
			b.WriteByte('c')
		}
		if h.HasDeleteHorizon() {
			b.WriteByte('h')
		}
	}
	return b.String()
}

// sameRecords compares all that a consumer sees.
func sameRecords(want, got []*kgo.Record) error {
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) {
			return fmt.Errorf("%d records, want %d", len(got), len(want))
		}
		w, g := want[i], got[i]
		if w.Offset != g.Offset || !bytes.Equal(w.Key, g.Key) || !bytes.Equal(w.Value, g.Value) || (w.Value == nil) != (g.Value == nil) ||
			w.Timestamp.UnixMilli() != g.Timestamp.UnixMilli() || !slices.EqualFunc(w.Headers, g.Headers, func(a, b kgo.RecordHeader) bool {
			return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && (a.Value == nil) == (b.Value == nil)
		}) {
			return fmt.Errorf("record %d is\n%d %s=%.60q %v %v, want\n%d %s=%.60q %v %v", i, g.Offset, g.Key, g.Value, g.Timestamp.UnixMilli(), g.Headers, w.Offset, w.Key, w.Value, w.Timestamp.UnixMilli(), w.Headers)
		}
	}
	return nil
}
