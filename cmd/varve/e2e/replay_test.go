package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

func alterTopic(t testing.TB, b *servertest.Broker, topic string, settings ...string) {
	t.Helper()
	var cs []kadm.AlterConfig
	for i := 0; i+1 < len(settings); i += 2 {
		cs = append(cs, kadm.AlterConfig{Op: kadm.SetConfig, Name: settings[i], Value: &settings[i+1]})
	}
	rs, err := kadm.NewClient(b.Client()).AlterTopicConfigs(patience(t), cs, topic)
	if err != nil || rs[0].Err != nil {
		t.Fatalf("alter %s: %v %v", topic, rs, err)
	}
}

func endOffset(t testing.TB, b *servertest.Broker, topic string, partition int32) int64 {
	t.Helper()
	l, err := kadm.NewClient(b.Client()).ListEndOffsets(patience(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	o, ok := l.Lookup(topic, partition)
	if !ok || o.Err != nil {
		t.Fatalf("%s-%d: %v", topic, partition, o.Err)
	}
	return o.Offset
}

func startOffset(t testing.TB, b *servertest.Broker, topic string) int64 {
	t.Helper()
	l, err := kadm.NewClient(b.Client()).ListStartOffsets(patience(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	o, ok := l.Lookup(topic, 0)
	if !ok || o.Err != nil {
		t.Fatalf("%s-0: %v", topic, o.Err)
	}
	return o.Offset
}

// mixed produces batches of many sizes with every codec to all partitions.
func mixed(t testing.TB, b *servertest.Broker, topic string, partitions, rounds int, seed int) {
	t.Helper()
	for i := range rounds {
		var rs []rec
		for p := range partitions {
			for j := range 1 + (i*7+p)%23 {
				rs = append(rs, rec{partition: int32(p), key: []byte(strconv.Itoa(j)), value: text(seed+i*1000+j, 10+(i*j*97)%5000), ts: baseTime + int64(i*100+j)})
			}
		}
		kgoProduce(t, b.Addr(), topic, rs, kgoCodec(codecs[i%len(codecs)]))
	}
}

// TestReplay: what comes back from the bucket is byte for byte what the log
// had, a second time from the cache, and after a restart.
func TestReplay(t *testing.T) {
	t.Parallel()
	bucket := newCounting(objstore.NewMem())
	b := servertest.Start(t, servertest.Options{Bucket: bucket})
	const partitions = 3
	b.CreateTopic("r", partitions, "retention.ms", "-1")
	mixed(t, b, "r", partitions, 30, 1)
	cl := b.Client()
	var before [partitions][]byte
	ends := make([]int64, partitions)
	for p := range partitions {
		ends[p] = endOffset(t, b, "r", int32(p))
		before[p] = rawFetch(t, cl, "r", int32(p), 0, ends[p])
	}
	alterTopic(t, b, "r", "local.retention.bytes", "1")
	b.Remote("r", true)
	replay := func(what string) {
		t.Helper()
		for p := range partitions {
			if got := rawFetch(t, cl, "r", int32(p), 0, ends[p]); !bytes.Equal(got, before[p]) {
				t.Errorf("%s: partition %d: %d bytes differ from the %d there were", what, p, len(got), len(before[p]))
			}
		}
	}
	gets := bucket.count(objstore.OpGet)
	m := metrics(t, b)
	replay("first replay")
	m1, gets1 := metrics(t, b), bucket.count(objstore.OpGet)
	if m1["varve_tier_read_bytes_total"] == m["varve_tier_read_bytes_total"] {
		t.Error("nothing was read from object storage")
	}
	replay("second replay")
	m2, gets2 := metrics(t, b), bucket.count(objstore.OpGet)
	if gets2 != gets1 {
		t.Errorf("the second replay made %d downloads", gets2-gets1)
	}
	if m2["varve_cache_hits_total"] <= m1["varve_cache_hits_total"] || m2["varve_cache_misses_total"] != m1["varve_cache_misses_total"] {
		t.Errorf("second replay: hits %v to %v, misses %v to %v", m1["varve_cache_hits_total"], m2["varve_cache_hits_total"], m1["varve_cache_misses_total"], m2["varve_cache_misses_total"])
	}
	t.Logf("downloads: %d before, %d in the first replay, 0 in the second", gets, gets1-gets)
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	replay("after a restart")
	// Real clients see the same.
	n := int(ends[0] + ends[1] + ends[2])
	want := kgoConsume(t, b.Addr(), "r", n)
	for _, l := range libraries[1:3] {
		got := l.consume(t, b.Addr(), "r", n)
		if l.blind != nil {
			for i := range got {
				got[i] = l.blind(got[i])
			}
		}
		compare(t, "replay by "+l.name, want, got)
	}
}

// TestSeams reads from every offset of a log of which the oldest part is in
// the bucket only, then comes one that is on the local disk, then one that is
// still in memory.
func TestSeams(t *testing.T) {
	t.Parallel()
	faulty := objstore.NewFaulty(objstore.NewMem(), 1)
	b := servertest.Start(t, servertest.Options{Bucket: faulty})
	b.CreateTopic("s", 1, "retention.ms", "-1", "local.retention.bytes", "1")
	var whole []byte
	mixed(t, b, "s", 1, 8, 1)
	end := endOffset(t, b, "s", 0)
	b.Remote("s", true)
	cl := b.Client()
	whole = rawFetch(t, cl, "s", 0, 0, end)
	remote := end
	faulty.Inject(objstore.Fault{Op: objstore.OpPut, Kind: objstore.FailBefore})
	mixed(t, b, "s", 1, 8, 50)
	end = endOffset(t, b, "s", 0)
	whole = append(whole, rawFetch(t, cl, "s", 0, remote, end)...)
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	local := end
	mixed(t, b, "s", 1, 8, 90)
	end = endOffset(t, b, "s", 0)
	whole = append(whole, rawFetch(t, cl, "s", 0, local, end)...)
	st, err := b.Server().TierStatus("s")
	if err != nil || st[0].LocalStart != remote || st[0].RemoteEnd != remote || st[0].HighWatermark != end {
		t.Fatalf("%+v %v, want the seams at %d and %d", st, err, remote, end)
	}
	at := map[int64][]byte{} // offset -> rest of the log from its batch on
	rest := whole
	if err := batch.Walk(whole, func(h batch.Header, one []byte) error {
		for o := h.BaseOffset; o < h.NextOffset(); o++ {
			at[o] = rest
		}
		rest = rest[len(one):]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if int64(len(at)) != end {
		t.Fatalf("%d offsets, want %d", len(at), end)
	}
	ctx := patience(t)
	for o := range end {
		for _, size := range []int32{1, 3000, 1 << 20} {
			got, err := fetchOnce(ctx, cl, "s", 0, o, size)
			if err != nil || len(got) == 0 || !bytes.HasPrefix(at[o], got) {
				t.Fatalf("fetch at %d (seams at %d, %d) of %d bytes: %d bytes, not those of the log (%v)", o, remote, local, size, len(got), err)
			}
		}
	}
	t.Logf("%d offsets, seams at %d and %d", end, remote, local)
	compareValues := kgoConsume(t, b.Addr(), "s", int(end))
	for i, r := range compareValues {
		if r.offset != int64(i) {
			t.Fatalf("record %d has offset %d", i, r.offset)
		}
	}
}

// TestLogThatHasGoneRound: uploads hurry when the log runs out of room, and not because it keeps for readers what is in
// object storage. After several times what it may hold, a record waits for remote.flush.interval.ms as any other.
func TestLogThatHasGoneRound(t *testing.T) {
	t.Parallel()
	bucket := newCounting(objstore.NewMem())
	b := servertest.Start(t, servertest.Options{Bucket: bucket, Settings: map[string]string{
		"remote.flush.interval.ms": "3600000", "remote.object.bytes": "1048576", "wal.max.bytes": "33554432",
	}})
	b.CreateTopic("t", 1)
	cl := newKgo(t, b.Addr(), append(eager, kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	put := func(size int) {
		t.Helper()
		if err := cl.ProduceSync(patience(t), &kgo.Record{Value: text(1, size)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		put(100_000)
	}
	m := metrics(t, b)
	if m["varve_wal_reclaimed_segments_total"] == 0 {
		t.Fatal("the log has not gone round")
	}
	// What is left below an object's size waits; the records that follow do not go one by one.
	servertest.Eventually(t, func() error {
		if m = metrics(t, b); m["varve_wal_pinned_bytes"] > m["varve_wal_max_bytes"]/4 {
			return fmt.Errorf("%v bytes of a log of %v are still needed", m["varve_wal_pinned_bytes"], m["varve_wal_max_bytes"])
		}
		return nil
	})
	puts := -1
	servertest.Eventually(t, func() error {
		before := puts
		if puts = bucket.uploads(); puts != before {
			time.Sleep(1500 * time.Millisecond) // there is a look for what is due every second
			return fmt.Errorf("uploads go on: %d", puts)
		}
		return nil
	})
	for range 10 {
		put(100)
		time.Sleep(100 * time.Millisecond)
	}
	if more := bucket.uploads() - puts; more > 1 {
		m = metrics(t, b)
		t.Errorf("%d uploads for ten small records; the log has %v bytes, %v pinned, in %v segments, full %v", more, m["varve_wal_bytes"], m["varve_wal_pinned_bytes"], m["varve_wal_segments"], m["varve_wal_full"])
	}
}

// TestSlowPartitions: a thousand partitions with little traffic cost few
// uploads per flush and keep no segment of the log from being reclaimed.
func TestSlowPartitions(t *testing.T) {
	t.Parallel()
	bucket := newCounting(objstore.NewMem())
	b := servertest.Start(t, servertest.Options{Bucket: bucket, Settings: map[string]string{
		"remote.flush.interval.ms": "500", "wal.max.bytes": "33554432",
	}})
	const partitions = 1000
	b.CreateTopic("slow", partitions)
	b.CreateTopic("busy", 1, "local.retention.bytes", "1")
	now := time.Now().UnixMilli()
	var rs []rec
	for p := range partitions {
		rs = append(rs, rec{partition: int32(p), value: fmt.Appendf(nil, "slow %d", p), ts: now})
	}
	for round := range 3 {
		began := time.Now()
		puts, commits := bucket.count(objstore.OpPut), metrics(t, b)["varve_tier_commits_total"]
		kgoProduce(t, b.Addr(), "slow", rs)
		b.Remote("slow", false)
		puts = bucket.count(objstore.OpPut) - puts
		t.Logf("round %d: %d uploads, %v heads committed for %d partitions in %v", round, puts, metrics(t, b)["varve_tier_commits_total"]-commits, partitions, time.Since(began))
		if puts > partitions/50 {
			t.Errorf("round %d: %d uploads for %d partitions", round, puts, partitions)
		}
	}
	// Three times what the log may hold goes through it.
	cl := newKgo(t, b.Addr(), append(eager, kgo.DefaultProduceTopic("busy"), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	value := text(1, 100_000)
	began := time.Now()
	for range 1000 {
		cl.Produce(patience(t), &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := cl.Flush(patience(t)); err != nil {
		t.Fatal(err)
	}
	b.Remote("busy", true)
	m := metrics(t, b)
	t.Logf("100 MB through a log of 32 MiB in %v, %v appends refused meanwhile", time.Since(began), m["varve_wal_refused_appends_total"])
	t.Logf("log: %v bytes in %v segments, %v reclaimed, %v bytes carried forward", m["varve_wal_bytes"], m["varve_wal_segments"], m["varve_wal_reclaimed_segments_total"], m["varve_wal_carried_bytes_total"])
	if m["varve_wal_bytes"] > 33554432 {
		t.Errorf("the log takes %v bytes", m["varve_wal_bytes"])
	}
	check := func() {
		t.Helper()
		got := kgoConsume(t, b.Addr(), "slow", 3*partitions)
		for i, r := range got {
			if want := fmt.Sprintf("slow %d", i/3); string(r.value) != want || r.offset != int64(i%3) {
				t.Fatalf("%v, want %s", r, want)
			}
		}
	}
	check()
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	check()
}

// produceRaw sends one batch as it is.
func produceRaw(t testing.TB, cl *kgo.Client, topic string, partition int32, records []byte) (int64, error) {
	t.Helper()
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, records
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := cl.Broker(1).RetriableRequest(patience(t), produceV11{req})
	if err != nil {
		return -1, err
	}
	p := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	return p.BaseOffset, kerr.ErrorForCode(p.ErrorCode)
}

// produceV11 is a produce request by topic name.
type produceV11 struct{ *kmsg.ProduceRequest }

func (produceV11) MaxVersion() int16 { return 11 }

func idempotentBatch(t testing.TB, pid int64, seq int32, values ...string) []byte {
	t.Helper()
	bb := batch.NewBuilder()
	bb.ProducerID, bb.ProducerEpoch, bb.BaseSequence = pid, 0, seq
	for _, v := range values {
		bb.Add(baseTime, nil, []byte(v))
	}
	out, err := bb.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLostLog: the log directory is gone. What was in the bucket is all there,
// with the producers' state; the broker goes on at the remote end.
func TestLostLog(t *testing.T) {
	t.Parallel()
	faulty := objstore.NewFaulty(objstore.NewMem(), 1)
	b := servertest.Start(t, servertest.Options{Bucket: faulty})
	b.CreateTopic("l", 2, "retention.ms", "-1")
	b.CreateTopic("never", 1)
	mixed(t, b, "l", 2, 10, 1)
	cl := b.Client()
	id, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(patience(t), cl)
	if err != nil || id.ErrorCode != 0 {
		t.Fatal(id, err)
	}
	at, err := produceRaw(t, cl, "l", 0, idempotentBatch(t, id.ProducerID, 0, "a", "b", "c"))
	if err != nil {
		t.Fatal(err)
	}
	b.Remote("l", false)
	ends := []int64{endOffset(t, b, "l", 0), endOffset(t, b, "l", 1)}
	before := [][]byte{rawFetch(t, cl, "l", 0, 0, ends[0]), rawFetch(t, cl, "l", 1, 0, ends[1])}
	// These never reach the bucket.
	remove := faulty.Inject(objstore.Fault{Op: objstore.OpPut, Kind: objstore.FailBefore})
	kgoProduce(t, b.Addr(), "l", []rec{{partition: 0, value: []byte("lost")}, {partition: 1, value: []byte("lost")}})
	kgoProduce(t, b.Addr(), "never", []rec{{value: []byte("lost")}})
	if err := b.Restart(func() {
		remove()
		if err := os.RemoveAll(filepath.Join(b.Dir(), "wal")); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for p := range 2 {
		servertest.Eventually(t, func() error {
			if got := endOffset(t, b, "l", int32(p)); got != ends[p] {
				return fmt.Errorf("partition %d ends at %d, the bucket's part at %d", p, got, ends[p])
			}
			return nil
		})
		if got := rawFetch(t, cl, "l", int32(p), 0, ends[p]); !bytes.Equal(got, before[p]) {
			t.Errorf("partition %d: other bytes than before", p)
		}
	}
	if m := metrics(t, b); m["varve_restarts_at_remote_end_total"] != 2 {
		t.Errorf("varve_restarts_at_remote_end_total %v, want 2", m["varve_restarts_at_remote_end_total"])
	}
	// The duplicate is known, a gap is refused, the next sequence goes on.
	if again, err := produceRaw(t, cl, "l", 0, idempotentBatch(t, id.ProducerID, 0, "a", "b", "c")); err != nil || again != at {
		t.Errorf("duplicate: offset %d, %v; want %d", again, err, at)
	}
	if _, err := produceRaw(t, cl, "l", 0, idempotentBatch(t, id.ProducerID, 7, "x")); err != kerr.OutOfOrderSequenceNumber {
		t.Errorf("gap: %v", err)
	}
	if o, err := produceRaw(t, cl, "l", 0, idempotentBatch(t, id.ProducerID, 3, "d")); err != nil || o != ends[0] {
		t.Errorf("next: offset %d %v, want %d", o, err, ends[0])
	}
	kgoProduce(t, b.Addr(), "never", []rec{{value: []byte("first")}})
	if got := kgoConsume(t, b.Addr(), "never", 1); got[0].offset != 0 || string(got[0].value) != "first" {
		t.Errorf("never uploaded: %v", got[0])
	}
}

// TestProducerStateOverRestarts: duplicates are known after an orderly restart,
// with the batches in the local log and after they left it.
func TestProducerStateOverRestarts(t *testing.T) {
	t.Parallel()
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("p", 1, "retention.ms", "-1")
	cl := b.Client()
	id, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(patience(t), cl)
	if err != nil || id.ErrorCode != 0 {
		t.Fatal(id, err)
	}
	for i := range int32(4) {
		one := idempotentBatch(t, id.ProducerID, i*2, "x", "y")
		want := int64(i * 2)
		for try := range 2 {
			if o, err := produceRaw(t, cl, "p", 0, slices.Clone(one)); err != nil || o != want {
				t.Errorf("batch %d, try %d: offset %d %v, want %d", i, try, o, err, want)
			}
			if try == 0 {
				if i == 1 {
					alterTopic(t, b, "p", "local.retention.bytes", "1")
				}
				if i > 0 {
					b.Remote("p", i > 1)
				}
				if err := b.Restart(nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if o := endOffset(t, b, "p", 0); o != 8 {
		t.Errorf("end %d", o)
	}
}

// data is how many objects with records the bucket has, and their bytes.
func data(mem *objstore.Mem) (keys []string, bytes int64) {
	infos, _, _ := mem.List(context.Background(), "data/", "", 1000)
	for _, i := range infos {
		keys = append(keys, i.Key)
		bytes += i.Size
	}
	return keys, bytes
}

func eventuallyData(t testing.TB, mem *objstore.Mem, f func(objects int, bytes int64) bool) {
	t.Helper()
	servertest.Eventually(t, func() error {
		if keys, bytes := data(mem); !f(len(keys), bytes) {
			return fmt.Errorf("%d objects, %d bytes: %s", len(keys), bytes, strings.Join(keys, " "))
		}
		return nil
	})
}

func retentionSettings() map[string]string {
	return map[string]string{"log.retention.check.interval.ms": "100", "remote.delete.grace.ms": "1000"}
}

// TestRetention: time and size move the log start, never further than they
// say, and the objects go after the grace.
func TestRetention(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	b := servertest.Start(t, servertest.Options{Bucket: mem, Settings: retentionSettings()})
	adm := admin(t, b)
	b.CreateTopic("size", 1, "retention.bytes", "-1", "retention.ms", "-1", "file.delete.delay.ms", "0", "compression.type", "uncompressed")
	b.CreateTopic("time", 1, "retention.ms", "-1", "file.delete.delay.ms", "0")
	now := time.Now().UnixMilli()
	for i := range 10 {
		kgoProduce(t, b.Addr(), "size", []rec{{value: text(i, 10_000), ts: now}}, kgoCodec("none"))
		ts := now
		if i < 5 {
			ts = now - 3_600_000
		}
		kgoProduce(t, b.Addr(), "time", []rec{{value: text(i, 10_000), ts: ts}}, kgoCodec("none"))
		b.Remote("size", false)
		b.Remote("time", false)
	}
	_, full := data(mem)
	alterTopic(t, b, "size", "retention.bytes", "35000")
	alterTopic(t, b, "time", "retention.ms", "1800000")
	servertest.Eventually(t, func() error {
		if s, o := startOffset(t, b, "size"), startOffset(t, b, "time"); s == 0 || o == 0 {
			return fmt.Errorf("log starts at %d (size), %d (time)", s, o)
		}
		return nil
	})
	eventuallyData(t, mem, func(_ int, bytes int64) bool { return bytes < full*3/4 })
	// Not further than the policy says: four records of 10,000 bytes are
	// needed for 35,000, and five are young enough.
	if s := startOffset(t, b, "size"); s > 6 || s < 1 {
		t.Errorf("size: log start %d", s)
	}
	if s := startOffset(t, b, "time"); s > 5 || s < 1 {
		t.Errorf("time: log start %d", s)
	}
	for _, topic := range []string{"size", "time"} {
		s := startOffset(t, b, topic)
		_, err := fetchOnce(patience(t), b.Client(), topic, 0, s-1, 1<<20)
		wantErr(t, "fetch below log start of "+topic, err, kerr.OffsetOutOfRange)
		got := kgoConsume(t, b.Addr(), topic, int(10-s))
		for i, r := range got {
			if r.offset != s+int64(i) || !bytes.Equal(r.value, text(int(r.offset), 10_000)) {
				t.Errorf("%s: %v", topic, r)
			}
		}
	}
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	if s := startOffset(t, b, "size"); s < 1 || s > 6 {
		t.Errorf("size: log start %d after a restart", s)
	}

	// DeleteRecords: the objects below go.
	var o kadm.Offsets
	o.Add(kadm.Offset{Topic: "time", Partition: 0, At: -1})
	o.Add(kadm.Offset{Topic: "size", Partition: 0, At: 9})
	rs, err := adm.DeleteRecords(patience(t), o)
	if err != nil || rs.Error() != nil {
		t.Fatal(err, rs.Error())
	}
	eventuallyData(t, mem, func(_ int, bytes int64) bool { return bytes < 25_000 })
	if got := kgoConsume(t, b.Addr(), "size", 1); got[0].offset != 9 {
		t.Errorf("left: %v", got[0])
	}

	// Topics that are deleted leave nothing behind.
	if _, err := adm.DeleteTopics(patience(t), "size", "time"); err != nil {
		t.Fatal(err)
	}
	eventuallyData(t, mem, func(n int, _ int64) bool { return n == 0 })
}

// TestMixedObjectsAreDeleted: an object that many partitions share goes when
// the last of them needs it no more.
func TestMixedObjectsAreDeleted(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	b := servertest.Start(t, servertest.Options{Bucket: mem, Settings: retentionSettings()})
	var topics []string
	for i := range 20 {
		topic := fmt.Sprintf("t%d", i)
		b.CreateTopic(topic, 5, "local.retention.bytes", "1", "file.delete.delay.ms", "0")
		topics = append(topics, topic)
	}
	cl := newKgo(t, b.Addr(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	var rs []*kgo.Record
	for _, topic := range topics {
		for p := range int32(5) {
			rs = append(rs, &kgo.Record{Topic: topic, Partition: p, Value: []byte(topic)})
		}
	}
	if err := cl.ProduceSync(patience(t), rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics {
		b.Remote(topic, true)
	}
	objects, _ := data(mem)
	t.Logf("%d objects hold %d partitions", len(objects), len(rs))
	adm := admin(t, b)
	for i, topic := range topics {
		if _, err := adm.DeleteTopics(patience(t), topic); err != nil {
			t.Fatal(err)
		}
		if i == len(topics)/2 {
			for _, left := range topics[i+1:] {
				for _, r := range kgoConsume(t, b.Addr(), left, 5) {
					if string(r.value) != left {
						t.Errorf("%s: %v", left, r)
					}
				}
			}
		}
	}
	eventuallyData(t, mem, func(n int, _ int64) bool { return n == 0 })
}
