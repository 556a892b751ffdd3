package e2e_test

import (
	"context"
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

// A coordinator that is loaded reads what compaction has left of what was written to its topic, whether or not the local
// log still has all of it.
func TestCoordinatorLoadsCompactedState(t *testing.T) {
	const keys, times = 100, 300 // committed partitions; how often
	b := servertest.Start(t, servertest.Options{Settings: compacting()})
	b.CreateTopic("busy", keys)
	cl := b.Client(eager...)
	ctx := patience(t)
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
	servertest.Eventually(t, func() error { return commit(0) })
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w + 1; i < times; i += 4 {
				if err := commit(int64(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	// And a transactional id that is taken over again and again.
	for range times {
		init := kmsg.NewPtrInitProducerIDRequest()
		init.TransactionalID, init.TransactionTimeoutMillis = kmsg.StringPtr("busy"), 60_000
		resp, err := init.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if err := commit(times); err != nil {
		t.Fatal(err)
	}
	written := map[string]float64{"group": keys * (times + 1), "transaction": times} // records, by coordinator
	for _, wiped := range []bool{false, true} {
		b.Remote("__consumer_offsets", false)
		b.Remote("__transaction_state", false)
		compacted(t, b)
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
		for which, n := range written {
			servertest.Eventually(t, func() error {
				if metric(t, b, "varve_coordinator_partition_load_seconds_count", "coordinator", which) == 0 {
					return fmt.Errorf("the state of the %s coordinator is not loaded", which)
				}
				return nil
			})
			records, bytes := metric(t, b, "varve_coordinator_load_records_total", "coordinator", which), metric(t, b, "varve_coordinator_load_bytes_total", "coordinator", which)
			if records == 0 || records > n/20 || bytes > n/20*200 { // a record has less than 200 bytes, and its batch
				t.Errorf("log wiped %v: to load the state of the %s coordinator, %v records in %v bytes were read of %v that were written", wiped, which, records, bytes, n)
			}
		}
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
				if seen++; p.Offset != times {
					t.Errorf("partition %d is at %d, want %d", p.Partition, p.Offset, times)
				}
			}
		}
		if seen != keys {
			t.Errorf("%d offsets, want %d", seen, keys)
		}
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
