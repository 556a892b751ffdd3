package e2e_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
)

// compacting are settings by which everything is in the bucket at once and is compacted at once.
func compacting(more ...string) map[string]string {
	s := map[string]string{
		"remote.flush.interval.ms": "100", "log.cleaner.backoff.ms": "100", "log.cleaner.min.cleanable.ratio": "0.01",
		"offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1",
	}
	for i := 0; i < len(more); i += 2 {
		s[more[i]] = more[i+1]
	}
	return s
}

// compacted waits until a look at all partitions that began after the call has found nothing to do.
func compacted(t testing.TB, b *servertest.Broker) {
	t.Helper()
	looks, last := 0, metric(t, b, "varve_compaction_last_round_timestamp_seconds")
	servertest.Eventually(t, func() error {
		if at := metric(t, b, "varve_compaction_last_round_timestamp_seconds"); at != last {
			looks, last = looks+1, at
		}
		if n := metric(t, b, "varve_compaction_pending_partitions"); looks < 2 || n > 0 {
			return fmt.Errorf("%v partitions are to be compacted, seen in the look number %d", n, looks)
		}
		return nil
	})
}

var (
	offsetCommits = flag.Int("offset-commits", 0, "offsets that TestCoordinatorLoadsCompactedState commits; 0: 30,000, or 10,000,000 with VARVE_LONG=1")
	takeovers     = flag.Int("takeovers", 0, "times that it takes a transactional id over; 0: 300, or 1,000,000 with VARVE_LONG=1")
)

// A coordinator that is loaded reads what compaction has left of what was written to its topic, whether or not the local
// log still has all of it. With VARVE_LONG=1 it is a day of a busy cluster, and how long loading takes is told:
//
//	VARVE_LONG=1 go test -v -timeout 2h -run TestCoordinatorLoadsCompactedState ./cmd/varve/e2e [-args -offset-commits N -takeovers N]
func TestCoordinatorLoadsCompactedState(t *testing.T) {
	total := func(set, small, large int) int {
		if set == 0 && long {
			return large
		}
		return cmp.Or(set, small)
	}
	all, allTakeovers := total(*offsetCommits, 30_000, 10_000_000), total(*takeovers, 300, 1_000_000)
	keys, ids := max(1, min(1000, all/300)), max(1, min(1000, allTakeovers/300))
	commits, takeovers := all/keys, allTakeovers/ids // of each
	settings := compacting("log.cleaner.enable", "false")
	ctx := patience(t)
	var bucket objstore.Bucket
	if long {
		ctx = t.Context() // as long as it takes
		settings["wal.max.bytes"] = "8589934592"
		var err error
		if bucket, err = objstore.OpenFile(filepath.Join(t.TempDir(), "objects"), true); err != nil {
			t.Fatal(err)
		}
	}
	b := servertest.Start(t, servertest.Options{Settings: settings, Bucket: bucket})
	b.CreateTopic("busy", int32(keys))
	cl := b.Client(eager...)
	servertest.Eventually(t, func() error {
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.CoordinatorKey = "busy"
		resp, err := find.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err
	})
	commit := func(offset int64) error {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = "busy", -1
		topic := kmsg.NewOffsetCommitRequestTopic()
		topic.Topic = "busy"
		for p := range int32(keys) {
			part := kmsg.NewOffsetCommitRequestTopicPartition()
			part.Partition, part.Offset = p, offset
			topic.Partitions = append(topic.Partitions, part)
		}
		req.Topics = append(req.Topics, topic)
		resp, err := cl.Broker(1).RetriableRequest(ctx, commitV8{req})
		if err != nil {
			return err
		}
		for _, p := range resp.(*kmsg.OffsetCommitResponse).Topics[0].Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return err
			}
		}
		return nil
	}
	takeOver := func(cl *kgo.Client, id int) error {
		init := kmsg.NewPtrInitProducerIDRequest()
		init.TransactionalID, init.TransactionTimeoutMillis = kmsg.StringPtr(fmt.Sprintf("busy-%d", id)), 60_000
		resp, err := init.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err
	}
	servertest.Eventually(t, func() error { return commit(0) })
	began := time.Now()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w + 1; i < commits && !t.Failed(); i += 4 {
				if err := commit(int64(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	// And transactional ids that are taken over again and again; a connection has one such request at a time.
	for w := range min(ids, 64) {
		own := b.Client(eager...)
		wg.Go(func() {
			for i := range takeovers {
				for id := w; id < ids; id += 64 {
					if err := takeOver(own, id); err != nil {
						t.Errorf("%d is taken over for the %dth time: %v", id, i, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if err := commit(int64(commits)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d offset commits over %d keys, and %d transactional ids taken over %d times each, in %v", keys*(commits+1), keys, ids, takeovers, time.Since(began).Round(time.Second))
	restart := func(wiped bool) {
		t.Helper()
		if err := b.Restart(func() {
			if !wiped {
				return
			}
			if err := os.RemoveAll(filepath.Join(b.Dir(), "wal")); err != nil {
				t.Fatal(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	type figures struct{ records, bytes float64 }
	loaded := func(when, which string) figures {
		t.Helper()
		of := func(name string) float64 { return metric(t, b, name, "coordinator", which) }
		servertest.Eventually(t, func() error {
			if of("varve_coordinator_partition_load_seconds_count") == 0 {
				return fmt.Errorf("%s: the state of the %s coordinator is not loaded", when, which)
			}
			return nil
		})
		f := figures{of("varve_coordinator_load_records_total"), of("varve_coordinator_load_bytes_total")}
		t.Logf("%s, the %s coordinator has loaded %.0f records in %.0f bytes in %.1f ms", when, which, f.records, f.bytes, 1000*of("varve_coordinator_partition_load_seconds_sum"))
		return f
	}
	kept := func(when string) {
		t.Helper()
		fetch := kmsg.NewPtrOffsetFetchRequest()
		fetch.Group = "busy"
		group := kmsg.NewOffsetFetchRequestGroup()
		group.Group = "busy"
		fetch.Groups = append(fetch.Groups, group)
		resp, err := fetch.RequestWith(ctx, b.Client(eager...))
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, topic := range resp.Groups[0].Topics {
			for _, p := range topic.Partitions {
				if seen++; p.Offset != int64(commits) {
					t.Errorf("%s: partition %d is at %d, want %d", when, p.Partition, p.Offset, commits)
				}
			}
		}
		if seen != keys {
			t.Errorf("%s: %d offsets, want %d", when, seen, keys)
		}
	}
	coordinators := map[string]struct{ written, keys int }{"group": {keys * (commits + 1), keys}, "transaction": {ids * takeovers, ids}}

	when := "before the worker has begun"
	restart(false)
	for which, c := range coordinators {
		if f := loaded(when, which); f.records < float64(c.written) {
			t.Errorf("%s: %v records of the %s coordinator were loaded of %d", when, f.records, which, c.written)
		}
	}
	kept(when)
	settings["log.cleaner.enable"] = "true"
	restart(false)
	for _, wiped := range []bool{false, true} {
		b.Remote("__consumer_offsets", false)
		b.Remote("__transaction_state", false)
		compacted(t, b)
		restart(wiped)
		when := map[bool]string{false: "compacted", true: "compacted, and the log wiped"}[wiped]
		for which, c := range coordinators {
			most := float64(15 * c.keys)
			if f := loaded(when, which); f.records == 0 || f.records > most || f.bytes > most*200 { // a record has less than 200 bytes, and its batch
				t.Errorf("%s: to load the state of the %s coordinator, %v records in %v bytes were read of %d that were written", when, which, f.records, f.bytes, c.written)
			}
		}
		kept(when)
	}
}

// commitV8 names topics: their ids are not known here.
type commitV8 struct{ *kmsg.OffsetCommitRequest }

func (commitV8) MaxVersion() int16 { return 8 }

// Consumers that read a compacted topic from its beginning, again and again, while every object under them is replaced
// and deleted, are never told of an error, shown nothing twice or out of order, and miss no key.
func TestReadersWhileObjectsAreReplaced(t *testing.T) {
	const topic, partitions, keys = "swept", 3, 40
	passes, rounds, gone := 10, 30.0, 100.0 // of each reader; compactions; deleted objects
	if long {
		passes, rounds, gone = 300, 1500, 5000
	}
	b := servertest.Start(t, servertest.Options{Settings: compacting("remote.delete.grace.ms", "1000")})
	b.CreateTopic(topic, partitions, "cleanup.policy", "compact", "file.delete.delay.ms", "0", "segment.bytes", "1048576")
	ctx, stop := context.WithCancel(patience(t))
	defer stop()

	// What has been acknowledged and, of transactions, committed: the newest record of each key.
	type newest struct {
		n         int
		partition int32
		offset    int64
	}
	var mu sync.Mutex
	have := map[string]newest{}
	acknowledged := func(rs ...*kgo.Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range rs {
			n, _ := strconv.Atoi(strings.TrimLeft(string(r.Value), "v"))
			if was := have[string(r.Key)]; was.offset <= r.Offset {
				have[string(r.Key)] = newest{n, r.Partition, r.Offset}
			}
		}
	}
	var wg sync.WaitGroup
	// Each writer has keys of its own, whose values count.
	write := func(name string, cl *kgo.Client, send func(n int, rs []*kgo.Record) error) {
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				var rs []*kgo.Record
				for k := range keys {
					rs = append(rs, &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "%s-%d", name, k), Value: fmt.Appendf(nil, "%s%d", strings.Repeat("v", 100), n)})
				}
				if err := send(n, rs); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.ZstdCompression()} {
		cl := b.Client(append(eager, kgo.ProducerBatchCompression(codec))...)
		write(fmt.Sprintf("plain%d", i), cl, func(_ int, rs []*kgo.Record) error {
			err := cl.ProduceSync(ctx, rs...).FirstErr()
			if err == nil {
				acknowledged(rs...)
			}
			return err
		})
	}
	cl := b.Client(append(eager, kgo.TransactionalID("swept"))...)
	write("txn", cl, func(n int, rs []*kgo.Record) error {
		commit := n%2 == 0
		if !commit {
			for _, r := range rs {
				r.Value = []byte("aborted")
			}
		}
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			return err
		}
		err := cl.EndTransaction(ctx, kgo.TransactionEndTry(commit))
		if err == nil && commit {
			acknowledged(rs...)
		}
		return err
	})

	var readers sync.WaitGroup
	read := func(name string, committed bool) {
		level := kgo.ReadUncommitted()
		if committed {
			level = kgo.ReadCommitted()
		}
		// One client for all passes: they are the partitions of one fetch session that come and go.
		cl := b.Client(append(eager, kgo.FetchIsolationLevel(level), kgo.FetchMaxWait(100*time.Millisecond), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{}))...)
		adm := kadm.NewClient(b.Client(eager...))
		readers.Go(func() {
			for pass := 0; ctx.Err() == nil; pass++ {
				if t.Failed() {
					return
				}
				enough := pass >= passes && metric(t, b, "varve_compaction_jobs_total", "job", "compact") >= rounds && metric(t, b, "varve_tier_deleted_objects_total") >= gone
				if enough {
					return
				}
				mu.Lock()
				want := map[string]newest{}
				for k, v := range have {
					want[k] = v
				}
				mu.Unlock()
				list := adm.ListEndOffsets
				if committed {
					list = adm.ListCommittedOffsets
				}
				ends, err := list(ctx, topic)
				if err == nil {
					err = ends.Error()
				}
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("%s: %v", name, err)
					}
					return
				}
				from, left := map[int32]kgo.Offset{}, map[int32]int64{}
				ends.Each(func(o kadm.ListedOffset) {
					if o.Offset > 0 {
						from[o.Partition], left[o.Partition] = kgo.NewOffset().AtStart(), o.Offset
					}
				})
				cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
				next, seen := map[int32]int64{}, map[string]int{}
				for len(left) > 0 {
					fetches := cl.PollFetches(ctx)
					if ctx.Err() != nil {
						return
					}
					fetches.EachError(func(_ string, p int32, err error) { t.Errorf("%s, pass %d, partition %d: %v", name, pass, p, err) })
					fetches.EachRecord(func(r *kgo.Record) {
						if r.Offset < next[r.Partition] {
							t.Errorf("%s, pass %d: offset %d of partition %d after %d", name, pass, r.Offset, r.Partition, next[r.Partition]-1)
						}
						if next[r.Partition] = r.Offset + 1; next[r.Partition] >= left[r.Partition] {
							delete(left, r.Partition)
						}
						key, value := string(r.Key), string(r.Value)
						if value == "aborted" {
							if committed {
								t.Errorf("%s, pass %d: an aborted record at offset %d of partition %d", name, pass, r.Offset, r.Partition)
							}
							return
						}
						n, err := strconv.Atoi(strings.TrimLeft(value, "v"))
						if err != nil || n <= seen[key] {
							t.Errorf("%s, pass %d: %s has %q after %d", name, pass, key, value, seen[key])
						}
						seen[key] = n
					})
					if t.Failed() {
						return
					}
				}
				cl.RemoveConsumePartitions(map[string][]int32{topic: {0, 1, 2}})
				for key, w := range want {
					if o, ok := ends.Lookup(topic, w.partition); ok && w.offset < o.Offset && seen[key] < w.n {
						t.Errorf("%s, pass %d: of %s the newest that was seen is %d; %d was acknowledged before, at offset %d of partition %d", name, pass, key, seen[key], w.n, w.offset, w.partition)
					}
				}
			}
		})
	}
	for i := range 2 {
		read(fmt.Sprintf("read_committed %d", i), true)
		read(fmt.Sprintf("read_uncommitted %d", i), false)
	}
	readers.Wait()
	if ctx.Err() != nil {
		t.Errorf("%v: %v rounds of compaction, %v objects deleted", ctx.Err(), metric(t, b, "varve_compaction_jobs_total", "job", "compact"), metric(t, b, "varve_tier_deleted_objects_total"))
	}
	stop()
	wg.Wait()
}

// metric is a value of the broker's metrics; 0 if it is not there.
func metric(t testing.TB, b *servertest.Broker, name string, label ...string) float64 {
	t.Helper()
	resp, err := http.Get(b.AdminURL() + "/metrics")
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
		return 0
	}
	for i := 0; i < len(label); i += 2 {
		name += fmt.Sprintf("{%s=%q}", label[i], label[i+1])
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Error(err)
			}
			return v
		}
	}
	return 0
}
