package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/tiering/objstore"
)

// keyed is what was written to the keys of a compacted topic, and what became of it. Each key has one writer.
type keyed struct {
	mu   sync.Mutex
	keys map[string][]keyedWrite
}

// keyedWrite is one; its number is its place in the key's list.
type keyedWrite struct {
	tombstone bool
	outcome   fate
}

type fate int

const (
	unanswered fate = iota // not answered, or the transaction's end was not
	acked
	aborted
)

// next makes the next write of a key.
func (k *keyed) next(key string, tombstone bool) *kgo.Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.keys[key])
	k.keys[key] = append(k.keys[key], keyedWrite{tombstone: tombstone})
	r := &kgo.Record{Key: []byte(key), Headers: []kgo.RecordHeader{{Key: "n", Value: []byte(strconv.Itoa(n))}}}
	if !tombstone {
		r.Value = []byte(key + " " + strconv.Itoa(n) + strings.Repeat(".", n%200))
	}
	return r
}

func numberOf(r *kgo.Record) int {
	for _, h := range r.Headers {
		if h.Key == "n" {
			n, _ := strconv.Atoi(string(h.Value))
			return n
		}
	}
	return -1
}

func (k *keyed) became(o fate, records ...*kgo.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range records {
		k.keys[string(r.Key)][numberOf(r)].outcome = o
	}
}

// check compares what a reader of committed records was shown, from the first record to the last, with what was written
// before it began: of each key the newest acknowledged write or one after it, and nothing that was aborted.
func (k *keyed) check(shown []*kgo.Record, before map[string]int) (errs []error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	last := map[string]int{}
	for _, r := range shown {
		key, n := string(r.Key), numberOf(r)
		if n < 0 || n >= len(k.keys[key]) {
			errs = append(errs, fmt.Errorf("%s: a record that nobody wrote: %v at %d", key, n, r.Offset))
			continue
		}
		w := k.keys[key][n]
		if w.outcome == aborted {
			errs = append(errs, fmt.Errorf("%s: number %d at offset %d was aborted", key, n, r.Offset))
		}
		if w.tombstone != (r.Value == nil) || !w.tombstone && !strings.HasPrefix(string(r.Value), key+" "+strconv.Itoa(n)) {
			errs = append(errs, fmt.Errorf("%s: number %d is %.20q", key, n, r.Value))
		}
		if was, ok := last[key]; ok && n <= was {
			errs = append(errs, fmt.Errorf("%s: number %d at offset %d comes behind %d", key, n, r.Offset, was))
		}
		last[key] = n
	}
	for key, newest := range before {
		if got, there := last[key]; there {
			if got < newest {
				errs = append(errs, fmt.Errorf("%s: number %d is the newest, %d was acknowledged", key, got, newest))
			}
			continue
		}
		gone := false // a tombstone may be gone, and what it deleted with it
		for _, w := range k.keys[key][newest:] {
			gone = gone || w.tombstone && w.outcome != aborted
		}
		if !gone {
			errs = append(errs, fmt.Errorf("%s: nothing of it is there, number %d was acknowledged", key, newest))
		}
	}
	return errs
}

// newest is the newest acknowledged write of each key.
func (k *keyed) newest() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]int{}
	for key, list := range k.keys {
		for n, w := range list {
			if w.outcome == acked {
				out[key] = n
			}
		}
	}
	return out
}

func (k *keyed) acked() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, list := range k.keys {
		for _, w := range list {
			if w.outcome == acked {
				n++
			}
		}
	}
	return n
}

func (k *keyed) options(c *cluster.Cluster, o ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{kgo.SeedBrokers(c.Bootstrap()...), kgo.DefaultProduceTopic("kept"), kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.DialTimeout(2 * time.Second), kgo.RequestTimeoutOverhead(3 * time.Second), kgo.RecordDeliveryTimeout(30 * time.Second)}, o...)
}

// write has idempotent producers, one after the other, overwrite keys until ctx ends. Each has keys of its own: what one sent
// last may arrive after the next has begun.
func (k *keyed) write(ctx context.Context, t *testing.T, c *cluster.Cluster, rnd *rand.Rand) {
	for session := 0; ctx.Err() == nil; session++ {
		cl, err := kgo.NewClient(k.options(c)...)
		if err != nil {
			t.Error(err)
			return
		}
		var failed atomic.Bool
		for ctx.Err() == nil && !failed.Load() {
			r := k.next(fmt.Sprintf("plain-%d-%d", session, rnd.IntN(40)), rnd.IntN(10) == 0)
			cl.Produce(context.Background(), r, func(r *kgo.Record, err error) {
				if err != nil {
					failed.Store(true)
					return
				}
				k.became(acked, r)
			})
			time.Sleep(time.Duration(rnd.IntN(8)) * time.Millisecond)
		}
		cl.Flush(context.Background())
		cl.Close()
	}
}

// transact has transactions overwrite keys of their own until ctx ends, a quarter of them aborted.
func (k *keyed) transact(ctx context.Context, t *testing.T, c *cluster.Cluster, rnd *rand.Rand) {
	for ctx.Err() == nil {
		cl, err := kgo.NewClient(k.options(c, kgo.TransactionalID("keyed"), kgo.TransactionTimeout(10*time.Second))...)
		if err != nil {
			t.Error(err)
			return
		}
		for good := true; good && ctx.Err() == nil; {
			good = k.transaction(cl, rnd)
		}
		cl.Close()
	}
}

func (k *keyed) transaction(cl *kgo.Client, rnd *rand.Rand) (good bool) {
	if cl.BeginTransaction() != nil {
		time.Sleep(100 * time.Millisecond)
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var list []*kgo.Record
	for range 1 + rnd.IntN(15) {
		list = append(list, k.next(fmt.Sprintf("txn-%d", rnd.IntN(20)), rnd.IntN(12) == 0))
	}
	err := cl.ProduceSync(ctx, list...).FirstErr()
	if err != nil || rnd.IntN(4) == 0 {
		if cl.AbortBufferedRecords(ctx) != nil {
			return false
		}
		// Never asked to be committed: whatever becomes of the request.
		k.became(aborted, list...)
		return cl.EndTransaction(ctx, kgo.TryAbort) == nil && err == nil
	}
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return false // whether it was committed nobody knows
	}
	k.became(acked, list...)
	return true
}

// endKey begins the keys of records that only say how far a reader has to read: what is at the very end of a partition may be
// a marker, or be gone.
const endKey = "end-"

// readCommitted reads everything that is committed when it is called.
func readCommitted(ctx context.Context, c *cluster.Cluster, topic string, partitions int32) ([]*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	from, left := map[int32]kgo.Offset{}, map[int32]int64{}
	var ends []*kgo.Record
	for p := range partitions {
		from[p] = kgo.NewOffset().AtStart()
		ends = append(ends, &kgo.Record{Topic: topic, Partition: p, Key: fmt.Appendf(nil, "%s%d-%d", endKey, p, time.Now().UnixNano()), Value: []byte("end")})
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Bootstrap()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(200*time.Millisecond), kgo.DialTimeout(2*time.Second), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	if err := cl.ProduceSync(ctx, ends...).FirstErr(); err != nil {
		return nil, err
	}
	for _, r := range ends {
		left[r.Partition] = r.Offset
	}
	var out []*kgo.Record
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%d records were read, and not those at %v: %w", len(out), left, err)
		}
		for _, e := range fetches.Errors() {
			return nil, fmt.Errorf("%s-%d: %w", e.Topic, e.Partition, e.Err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if end, ok := left[r.Partition]; ok && r.Offset >= end {
				delete(left, r.Partition)
			}
			if !strings.HasPrefix(string(r.Key), endKey) {
				out = append(out, r)
			}
		})
	}
	return out, nil
}

// metric reads a figure of a worker; 0 if it is not there.
func metric(admin, name string) float64 {
	resp, err := http.Get(admin + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(string(v)), 64)
			return f
		}
	}
	return 0
}

// The check finds what it is there for.
func TestKeyedCheck(t *testing.T) {
	k := &keyed{keys: map[string][]keyedWrite{}}
	write := func(key string, tombstone bool, o fate) *kgo.Record {
		r := k.next(key, tombstone)
		k.became(o, r)
		return r
	}
	a0, a1, a2 := write("a", false, acked), write("a", false, acked), write("a", false, unanswered)
	b0, b1 := write("b", false, acked), write("b", true, acked)
	c0, c1 := write("c", false, acked), write("c", false, aborted)
	before := k.newest()
	for name, shown := range map[string][]*kgo.Record{
		"": {a0, a1, b0, b1, c0}, "compacted": {a1, c0}, "what was not answered": {a2, c0}, "a tombstone that is still there": {a1, b1, c0},
	} {
		if errs := k.check(shown, before); len(errs) > 0 {
			t.Errorf("%s: %v", name, errs)
		}
	}
	forged := *a1
	forged.Value = []byte("a 7")
	for name, shown := range map[string][]*kgo.Record{
		"the newest is lost": {a0, c0}, "a key is lost": {a1}, "what was deleted is back": {a1, b0, c0}, "aborted": {a1, c0, c1},
		"out of order": {a1, a0, a1, c0}, "other bytes": {&forged, c0},
	} {
		if len(k.check(shown, before)) == 0 {
			t.Errorf("%s: nothing was found", name)
		}
	}
}

// Two compaction workers over a cluster of processes, while keys are overwritten by idempotent and transactional producers: workers
// and leaders are killed, a worker is stopped for longer than its session, bucket and etcd are away. After each, no key has lost
// its newest value, and nothing aborted is shown; at the end the bucket holds what the manifests name and nothing else, and
// when the topic is deleted nothing of it (F39, F40, K9).
func TestCompactorsUnderFaults(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Brokers: 2, Etcd: 1, Workers: 2, Set: []string{
		"default.replication.factor=2", "min.insync.replicas=1", "transaction.state.log.replication.factor=2", "transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=2", "offsets.topic.replication.factor=2", "offsets.topic.num.partitions=2",
		"log.cleaner.backoff.ms=200", "log.cleaner.session.timeout.ms=2000", "log.cleaner.scrub.interval.ms=3000", "log.cleaner.dedupe.buffer.size=1048576",
		"remote.flush.interval.ms=500", "remote.delete.grace.ms=2000", "remote.sweep.interval.ms=3000", "log.segment.delete.delay.ms=1000",
	}}))
	adm := kadm.NewClient(c.Client(t))
	text := func(s string) *string { return &s }
	if _, err := adm.CreateTopic(t.Context(), 2, 2, map[string]*string{
		"cleanup.policy": text("compact"), "min.cleanable.dirty.ratio": text("0.01"), "delete.retention.ms": text("2000"), "file.delete.delay.ms": text("1000"),
		"local.retention.bytes": text("1"),
	}, "kept"); err != nil {
		t.Fatal(err)
	}
	k := &keyed{keys: map[string][]keyedWrite{}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers sync.WaitGroup
	writers.Go(func() { k.write(ctx, t, c, rand.New(rand.NewPCG(1, 1))) })
	writers.Go(func() { k.transact(ctx, t, c, rand.New(rand.NewPCG(2, 2))) })
	defer writers.Wait()
	defer stop()

	intact := func(after string) (records int) {
		t.Helper()
		if t.Failed() {
			t.FailNow()
		}
		before := k.newest()
		var shown []*kgo.Record
		eventually(t, func() (err error) {
			shown, err = readCommitted(t.Context(), c, "kept", 2)
			return err
		})
		errs := k.check(shown, before)
		for _, err := range errs[:min(len(errs), 10)] {
			t.Errorf("after %s: %v", after, err)
		}
		if len(errs) > 0 {
			t.Fatalf("after %s: %d things are wrong of %d keys in %d records", after, len(errs), len(before), len(shown))
		}
		return len(shown)
	}
	moving := func(after string) {
		t.Helper()
		n := k.acked()
		eventually(t, func() error {
			if now := k.acked(); now <= n+20 {
				return fmt.Errorf("after %s: %d acknowledged, %d before", after, now, n)
			}
			return nil
		})
		// Both workers are there and work.
		jobs := func(i int) float64 { return metric(c.Workers[i].Admin, `varve_compaction_jobs_total{job="compact"}`) }
		was := jobs(0) + jobs(1)
		eventually(t, func() error {
			if now := jobs(0) + jobs(1); now <= was {
				return fmt.Errorf("after %s: nothing is compacted", after)
			}
			return nil
		})
		intact(after)
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	moving("the start")

	rnd := rand.New(rand.NewPCG(3, 3))
	for range 4 {
		w := c.Workers[rnd.IntN(2)]
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		must(w.Kill(), w.Start(t.Context()))
	}
	moving("kill -9 of workers")

	for _, b := range c.Brokers {
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		must(b.Kill())
		time.Sleep(time.Second)
		must(b.Start(t.Context()))
		moving("kill -9 of " + b.Name)
	}

	// Its claims go to the other, and what it was about to commit is thrown away.
	lost := metric(c.Workers[0].Admin, "varve_compaction_leases_lost_total")
	must(c.Workers[0].Pause())
	time.Sleep(4 * time.Second)
	must(c.Workers[0].Resume())
	eventually(t, func() error {
		if now := metric(c.Workers[0].Admin, "varve_compaction_leases_lost_total"); now <= lost {
			return errors.New("the worker that was stopped does not know that its lease is gone")
		}
		return nil
	})
	moving("a worker that was stopped for longer than its session")

	must(c.S3.Kill())
	time.Sleep(3 * time.Second)
	must(c.S3.Start(t.Context()))
	moving("the bucket was away")

	must(c.Etcd[0].Kill())
	time.Sleep(4 * time.Second)
	must(c.Etcd[0].Start(t.Context()))
	moving("etcd was away")

	stop()
	writers.Wait()
	eventually(t, func() error {
		if records, all := intact("the end"), k.acked(); records >= all/2 {
			return fmt.Errorf("%d records are there of %d acknowledged ones: they were to be compacted", records, all)
		}
		return nil
	})

	// With nobody writing, all that is left in the bucket is what the manifests name.
	verify := []string{"tier", "verify", "--data", "--unnamed", "-q", "--set", "etcd.endpoints=" + c.Describe().Etcd[0].Client, "--set", "remote.storage.url=" + c.BucketURL()}
	clean := func(when string) {
		t.Helper()
		var r result
		eventually(t, func() error {
			if r = varve(t, "", verify...); r.code != 0 {
				return fmt.Errorf("%s: exit %d\n%s%s", when, r.code, r.out, r.errOut)
			}
			return nil
		})
	}
	clean("at rest")
	r := varve(t, "", append(verify, "kept", "-o", "json")...)
	var found struct {
		Partitions, Objects int
		Findings            []any
	}
	if err := json.Unmarshal([]byte(r.out), &found); err != nil || r.code != 0 || found.Partitions != 2 || found.Objects == 0 || found.Findings == nil {
		t.Errorf("%+v %v %s", found, err, r.out)
	}
	for _, w := range c.Workers {
		eventually(t, func() error {
			if at := metric(w.Admin, "varve_scrub_last_timestamp_seconds"); at == 0 {
				return fmt.Errorf("%s knows of no scrub", w.Name)
			}
			return nil
		})
		for _, fault := range []string{"manifest", "coverage", "missing", "corrupt", "orphan"} {
			if n := metric(w.Admin, fmt.Sprintf("varve_scrub_found_total{fault=%q}", fault)); n != 0 {
				t.Errorf("%s has found %v times: %s", w.Name, n, fault)
			}
		}
	}

	// Now something is wrong, and found by both.
	bucket, err := objstore.Open(t.Context(), c.BucketURL(), objstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer bucket.Close()
	topics, err := adm.ListTopics(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%x", [16]byte(topics["kept"].ID))
	of := func() (keys []string) {
		for _, prefix := range []string{"data/", "page/"} {
			for after, more := "", true; more; {
				list, m, err := bucket.List(t.Context(), prefix, after, 1000)
				if err != nil {
					t.Fatal(err)
				}
				for _, i := range list {
					if after = i.Key; strings.Contains(i.Key, id) {
						keys = append(keys, i.Key)
					}
				}
				more = m
			}
		}
		return keys
	}
	keys := of()
	if len(keys) == 0 {
		t.Fatal("nothing of the topic is in the bucket")
	}
	if err := bucket.Delete(t.Context(), keys[:1]); err != nil {
		t.Fatal(err)
	}
	if r := varve(t, "", verify...); r.code != 1 || !strings.Contains(r.out, "missing: kept-") || !strings.Contains(r.out, keys[0]) || !strings.Contains(r.errOut, "1 findings in") {
		t.Errorf("exit %d %s%s", r.code, r.out, r.errOut)
	}
	for _, w := range c.Workers {
		eventually(t, func() error {
			if metric(w.Admin, `varve_scrub_findings{fault="missing"}`) != 1 {
				return fmt.Errorf("%s does not know that an object is missing", w.Name)
			}
			return nil
		})
	}

	// A topic that is deleted leaves nothing, whatever it was and whoever works on it.
	must(c.Workers[1].Pause())
	if _, err := adm.DeleteTopic(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	must(c.Workers[1].Resume())
	eventually(t, func() error {
		if keys := of(); len(keys) > 0 {
			return fmt.Errorf("%d objects of the deleted topic are still there, as %s", len(keys), keys[0])
		}
		return nil
	})
	clean("after the topic was deleted")

	// A worker makes no cluster where there is none.
	r = varve(t, "", "compactor", "--set", "etcd.endpoints="+c.Describe().Etcd[0].Client, "--set", "etcd.prefix=/elsewhere", "--set", "remote.storage.url="+c.BucketURL(),
		"--set", "admin.listener=", "--set", "initial.broker.registration.timeout.ms=500")
	if r.code != 1 || !strings.Contains(r.errOut, "etcd holds no cluster under etcd.prefix=/elsewhere") {
		t.Errorf("exit %d %s%s", r.code, r.out, r.errOut)
	}
	must(c.Workers[0].Stop(), c.Workers[1].Stop())
}
