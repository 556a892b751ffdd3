package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/internal/admin"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/metadata/etcd/etcdtest"
	"github.com/varve/varve/tiering/objstore/s3test"
)

// tieredSettings are those of brokers whose records go to the bucket within a moment and leave the log at once, and whose garbage goes within seconds.
var tieredSettings = []string{
	"wal.segment.bytes=1048576", "wal.max.bytes=67108864", "remote.flush.interval.ms=300", "remote.delete.grace.ms=1000", "remote.sweep.interval.ms=1000",
	"log.segment.delete.delay.ms=100",
}

// inParts has objects of more than 5 MiB go out in parts.
const inParts = "part_threshold=5242880&part_size=5242880"

// tiered is what was written to the topics of a cluster, one partition each, of which nothing stays in the log.
type tiered struct {
	t       *testing.T
	c       *cluster.Cluster
	adm     *kadm.Client
	topics  []string
	ledgers map[string]*ledger
	clients map[string]*kgo.Client // producers
}

// newTiered makes the topics. Those that are called large have objects of several MiB, the others of one.
func newTiered(t *testing.T, c *cluster.Cluster, replicas int16, topics ...string) *tiered {
	t.Helper()
	x := &tiered{t: t, c: c, topics: topics, ledgers: map[string]*ledger{}, clients: map[string]*kgo.Client{}}
	x.adm = kadm.NewClient(x.client())
	for i, topic := range topics {
		if err := x.create(t.Context(), topic, replicas); err != nil {
			t.Fatal(err)
		}
		// No two topics have a number in common, so that records of one are not taken for those of another.
		x.ledgers[topic], x.clients[topic] = &ledger{next: uint64(i) << 40}, x.client()
	}
	// A record is given up of which several brokers, asked one after the other, do not know the topic.
	servertest.AgreeAt(t, c.Bootstrap()...)
	return x
}

func (x *tiered) client(opts ...kgo.Opt) *kgo.Client {
	x.t.Helper()
	return x.c.Client(x.t, append([]kgo.Opt{kgo.MetadataMinAge(50 * time.Millisecond), kgo.DialTimeout(time.Second), kgo.ProducerBatchMaxBytes(512 << 10),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond })}, opts...)...)
}

func (x *tiered) create(ctx context.Context, topic string, replicas int16) error {
	segment := "1048576"
	if strings.HasPrefix(topic, "large") {
		segment = "6291456"
	}
	text := func(s string) *string { return &s }
	_, err := x.adm.CreateTopic(ctx, 1, replicas, map[string]*string{
		"local.retention.bytes": text("1"), "segment.bytes": text(segment), "file.delete.delay.ms": text("100"), "retention.ms": text("-1"),
	}, topic)
	return err
}

// write writes to topics until it is told to stop, records of many sizes, a few milliseconds apart. When that returns, everything is acknowledged.
func (x *tiered) write(topics ...string) (stop func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	for _, topic := range topics {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
			for {
				x.produce(topic, rnd.IntN(3000))
				select {
				case <-over:
					ctx, cancel := context.WithTimeout(x.t.Context(), time.Minute)
					defer cancel()
					if err := x.clients[topic].Flush(ctx); err != nil {
						x.t.Errorf("%s: a minute later: %v", topic, err)
					}
					return
				case <-time.After(time.Duration(rnd.IntN(20)) * time.Millisecond):
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(over)
		wg.Wait()
	})
}

func (x *tiered) produce(topic string, size int) {
	l := x.ledgers[topic]
	n := l.number()
	x.clients[topic].Produce(context.Background(), &kgo.Record{Topic: topic, Value: numbered(n, size)}, func(r *kgo.Record, err error) {
		if err != nil {
			x.t.Errorf("%s: a record was given up: %v", topic, err)
			return
		}
		l.acked(r.Offset, n)
	})
}

// burst writes so many bytes at once, and does not wait for them.
func (x *tiered) burst(topic string, size int) {
	for ; size > 0; size -= 60_000 {
		x.produce(topic, 60_000)
	}
}

// settled tells whether everything that was written is acknowledged. What nobody has begun to write is.
func (l *ledger) settled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.at)) == l.next&(1<<40-1)
}

// status is what the leaders say of the topics.
func (x *tiered) status() (map[string]admin.TierStatus, error) {
	out := map[string]admin.TierStatus{}
	for _, b := range x.c.Brokers {
		list, err := fetchTier(x.t.Context(), b.Admin, "")
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			out[s.Topic] = s
		}
	}
	return out, nil
}

// drained waits until everything acknowledged is in the bucket, and none of it in a log.
func (x *tiered) drained() {
	x.t.Helper()
	eventually(x.t, func() error {
		all, err := x.status()
		if err != nil {
			return err
		}
		for _, topic := range x.topics {
			s, n := all[topic], int64(x.ledgers[topic].len())
			if s.HighWatermark < n || s.RemoteEnd < s.HighWatermark || s.LocalStart < s.RemoteEnd {
				return fmt.Errorf("%s: %d records were acknowledged: %+v", topic, n, s)
			}
		}
		return nil
	})
}

// check reads topics from an offset on, or from where they begin, and compares what is there with what was written.
func (x *tiered) check(from func(topic string) int64) {
	x.t.Helper()
	starts, err := x.adm.ListStartOffsets(x.t.Context(), x.topics...)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, topic := range x.topics {
		start, ok := starts.Lookup(topic, 0)
		if !ok || start.Err != nil {
			x.t.Fatalf("%s: where it begins: %v", topic, start.Err)
		}
		at := max(start.Offset, from(topic))
		if at >= int64(x.ledgers[topic].len()) {
			continue
		}
		cl := x.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(at)}}), kgo.FetchMaxWait(100*time.Millisecond))
		x.ledgers[topic].checkWith(x.t, cl, at)
		cl.Close()
		if x.t.Failed() {
			x.t.Fatalf("%s from offset %d on", topic, at)
		}
	}
}

// audited waits until an audit finds nothing.
func (x *tiered) audited(flags ...string) {
	x.t.Helper()
	args := append([]string{"tier", "verify", "-q", "--set", "etcd.endpoints=" + x.c.Describe().Etcd[0].Client, "--set", "remote.storage.url=" + x.c.BucketURL()}, flags...)
	eventually(x.t, func() error {
		if r := varve(x.t, "", args...); r.code != 0 {
			return fmt.Errorf("exit %d\n%s%s", r.code, r.out, r.errOut)
		}
		return nil
	})
}

// Of the requests that change the bucket, a fifth are carried out without an answer, or after their client has given up, or twice, be it seconds
// later (F34), while three brokers are written to and one is killed. Every record that was acknowledged is there once, in the bucket alone, and at the end nothing
// else is there.
func TestAmbiguousBucket(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	bucket := s3test.NewAmbiguous(0.2, seed)
	var gateway *s3test.Gateway
	c := cluster.Start(t, processes(cluster.Options{
		Etcd: 1, Bucket: inParts,
		// Room for what waits while the bucket fails: producers are not to be refused.
		Set: append(slices.Clone(tieredSettings), "min.insync.replicas=2", "remote.request.timeout.ms=700", "wal.max.bytes=268435456"),
		Front: func(name, addr string) string {
			if name != "s3" {
				return addr
			}
			gateway = s3test.NewGateway(t, addr)
			return gateway.Addr
		},
	}))
	x := newTiered(t, c, 3, "small-1", "small-2", "small-3", "small-4", "large-1", "large-2")
	gateway.Around(bucket.Around)
	lasts := 8 * time.Second
	if os.Getenv("VARVE_LONG") == "1" {
		lasts = 5 * time.Minute
	}
	stop := x.write(x.topics[:4]...)
	defer stop()
	rnd := rand.New(rand.NewPCG(seed, 2))
	killed := 0
	// Until each of what can happen to an object has happened to one.
	for end := time.Now().Add(lasts); ; time.Sleep(time.Second) {
		if large := x.topics[4+rnd.IntN(2)]; x.ledgers[large].settled() {
			x.burst(large, 7<<20)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		x.adm.DeleteRecords(ctx, x.somewhere("small-1", rnd)) // whether it is answered or not
		cancel()
		if time.Until(end) < lasts/2 && killed == 0 || killed > 0 && rnd.IntN(20) == 0 {
			killed++
			b := c.Brokers[rnd.IntN(3)]
			if err := errors.Join(b.Kill(), b.Start(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		if time.Now().After(end) && happened(bucket.Counts()) == nil {
			break
		}
		if time.Since(end) > time.Minute {
			t.Fatal(happened(bucket.Counts()))
		}
	}
	bucket.End()
	stop()
	t.Logf("%d brokers were killed; what happened to requests: %v", killed, bucket.Counts())
	eventually(t, func() error {
		for topic, l := range x.ledgers {
			if !l.settled() {
				return fmt.Errorf("%s: not everything is acknowledged", topic)
			}
		}
		return nil
	})
	x.drained()
	x.audited("--data", "--unnamed")
	// Nothing that a broker has in memory answers for the bucket.
	for _, b := range c.Brokers {
		if err := b.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range c.Brokers {
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	x.drained()
	x.check(func(string) int64 { return 0 })
	x.audited("--data", "--unnamed")
}

// happened is nil if everything has happened to some object, and to a completion of parts.
func happened(counts map[string]int) error {
	for _, what := range []string{s3test.Lost, s3test.Held, s3test.Late, s3test.Twice, s3test.Again} {
		if counts[what+" PUT data"] == 0 {
			return fmt.Errorf("no PUT of an object was %s: %v", what, counts)
		}
	}
	for what := range counts {
		if strings.HasSuffix(what, "POST ?uploadId") {
			return nil
		}
	}
	return fmt.Errorf("nothing has happened to a completion: %v", counts)
}

// somewhere is an offset of what a topic has, of the first half of it.
func (x *tiered) somewhere(topic string, rnd *rand.Rand) kadm.Offsets {
	var os kadm.Offsets
	os.Add(kadm.Offset{Topic: topic, Partition: 0, At: rnd.Int64N(int64(x.ledgers[topic].len())/2 + 1), LeaderEpoch: -1})
	return os
}

// killer has a broker be killed at a step of its work that can be seen from outside.
type killer struct {
	t       *testing.T
	broker  *cluster.Broker
	trigger string // file that the process looks for where it gives back a file of its log
	armed   atomic.Pointer[moment]
}

// moment is before or after a step.
type moment struct {
	step  string
	after bool
}

func (m moment) String() string {
	if m.after {
		return "after " + m.step
	}
	return "before " + m.step
}

// at does a step, unless the broker is killed before it. It tells whether the broker lives to hear of it.
func (k *killer) at(step string, do func()) bool {
	m := k.armed.Load()
	if m == nil || m.step != step || !k.armed.CompareAndSwap(m, nil) {
		do()
		return true
	}
	if m.after {
		do()
	}
	if err := k.broker.Kill(); err != nil {
		k.t.Errorf("%v: %v", m, err)
	}
	return false
}

// arm has the broker be killed when it comes to a moment.
func (k *killer) arm(m moment) {
	k.t.Helper()
	if m.step != givesBack {
		k.armed.Store(&m)
		return
	}
	when := "before"
	if m.after {
		when = "after"
	}
	if err := errors.Join(os.WriteFile(k.trigger+".new", []byte(when), 0o600), os.Rename(k.trigger+".new", k.trigger)); err != nil {
		k.t.Fatal(err)
	}
}

func (k *killer) disarm() {
	if k.armed.Swap(nil) != nil {
		k.t.Error("the broker has ended, and not because it was killed")
	}
	os.Remove(k.trigger)
}

// givesBack is the step at which a file of the log is given back.
const givesBack = "give back a segment"

// bucketStep names what a broker asks of the bucket.
func bucketStep(r *http.Request, body []byte) string {
	kind := func(key string) string {
		switch {
		case strings.HasPrefix(key, "data/") && strings.Contains(key, "/mixed-"):
			return "mixed object"
		case strings.HasPrefix(key, "data/"):
			return "object"
		case strings.HasPrefix(key, "page/"):
			return "page"
		case strings.HasPrefix(key, "state/full/"):
			return "full state"
		case strings.HasPrefix(key, "state/"):
			return "state"
		case key == "cluster":
			return "mark"
		}
		return "something else"
	}
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	switch {
	case q.Has("delete"):
		_, key, _ := bytes.Cut(body, []byte("<Key>"))
		return "delete " + kind(string(key))
	case q.Has("partNumber"):
		return "PUT part of " + kind(key)
	case q.Has("uploads") && r.Method == http.MethodPost:
		return "begin parts of " + kind(key)
	case q.Has("uploadId") && r.Method == http.MethodPost:
		return "join parts of " + kind(key)
	case q.Has("list-type"):
		return "list " + q.Get("prefix")
	}
	return r.Method + " " + kind(key)
}

// etcdStep names what a broker asks of etcd, if it is about a manifest.
func etcdStep(request any) string {
	head := func(key []byte) bool { return bytes.Contains(key, []byte("/manifest/")) }
	switch r := request.(type) {
	case *etcdserverpb.RangeRequest:
		if head(r.Key) && len(r.RangeEnd) == 0 {
			return "read a manifest"
		}
	case *etcdserverpb.TxnRequest:
		for _, op := range r.Success {
			switch put, del, get := op.GetRequestPut(), op.GetRequestDeleteRange(), op.GetRequestRange(); {
			case put != nil && head(put.Key):
				return "commit a manifest"
			case del != nil && bytes.Contains(del.Key, []byte("/image/deleted/")):
				return "forget a topic"
			case del != nil && head(del.Key):
				return "delete a manifest"
			case get != nil && head(get.Key):
				return "look who may name an object"
			}
		}
	}
	return ""
}

// A broker is killed before and after each step of the way of its records into the bucket, out of its log and, at last, out of the bucket: before each
// kind of request to the bucket and to etcd and when that has been answered, and where a file of the log is given back (F38). It is started
// again and goes on. Every record that was acknowledged is there once, byte for byte, and at the end nothing is in the bucket that no manifest names, and of
// the topics that were deleted there is nothing at all. In short some of the steps; with VARVE_LONG=1 all.
func TestKilledAtEveryStep(t *testing.T) {
	const (
		small   = iota // what is written all the time will do
		own            // an object of its own
		large          // one in parts
		trimmed        // the log start moves
		buried         // a topic is deleted
		starts         // when the broker starts
		first          // when it starts for the first time
	)
	steps := []struct {
		name  string
		by    int
		short string // when it is killed in the short form: before, after, both
	}{
		{"PUT mark", first, "after"},
		{"PUT full state", first, ""},
		{"GET mark", starts, ""},
		{"list state/delta/", starts, ""},
		{"PUT mixed object", small, "after"},
		{"HEAD mixed object", small, ""},
		{"GET mixed object", small, "after"},
		{"commit a manifest", small, "before after"},
		{"read a manifest", small, "after"},
		{"PUT object", own, "before"},
		{"HEAD object", own, ""},
		{"GET object", own, ""},
		{"begin parts of object", large, ""},
		{"PUT part of object", large, ""},
		{"join parts of object", large, "after"},
		{givesBack, own, "before after"},
		{"PUT page", small, "after"},
		{"HEAD page", small, ""},
		{"GET page", small, ""},
		{"PUT state", small, "before"},
		{"HEAD state", small, ""},
		{"GET state", small, ""},
		{"list data/", small, ""},
		{"list page/", small, ""},
		{"look who may name an object", trimmed, ""},
		{"delete object", trimmed, "after"},
		{"delete page", small, ""},
		{"delete a manifest", buried, ""},
		{"forget a topic", buried, ""},
	}
	k := &killer{t: t, trigger: filepath.Join(t.TempDir(), "die")}
	o := processes(cluster.Options{
		Brokers: 1, Spare: 1, Etcd: 1, Bucket: inParts, Set: tieredSettings,
		Front: func(name, addr string) string {
			if name == "s3" {
				g := s3test.NewGateway(t, addr)
				g.Around(func(r *http.Request, body []byte, forward func() *s3test.Answer) (a *s3test.Answer) {
					if !k.at(bucketStep(r, body), func() { a = forward() }) {
						return nil
					}
					return a
				})
				return g.Addr
			}
			f := etcdtest.NewFront(t, addr)
			f.Around(func(request any, forward func()) { k.at(etcdStep(request), forward) })
			return f.Addr
		},
	})
	o.Env = append(o.Env, envDieAt+"="+k.trigger)
	c := cluster.Start(t, o)
	k.broker = c.Brokers[0]

	var x *tiered
	var others *kgo.Client // writes to topics that are deleted
	checked, deleted := map[string]int64{}, 0
	long := os.Getenv("VARVE_LONG") == "1"
	start := func() error { return k.broker.Start(t.Context()) }
	// live has the broker do its work until it is killed, and starts it again, but where the first life of a cluster is looked at.
	live := func(by int) {
		stop := func() {}
		if x != nil {
			stop = x.write("small-1", "small-2")
		}
		defer stop()
		var again time.Time
		eventually(t, func() error {
			if !k.broker.Running() {
				return nil
			}
			if x == nil || time.Now().Before(again) {
				return errors.New("it was not killed")
			}
			again = time.Now().Add(time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			switch by {
			case own:
				x.burst("own", 3<<19)
			case large:
				x.burst("large", 12<<20) // so much that more than a part is waiting at once
			case trimmed: // a mixed object would live on in another partition
				x.burst("own", 3<<19)
				x.adm.DeleteRecords(ctx, x.somewhere("own", rand.New(rand.NewPCG(rand.Uint64(), 1))))
			case buried:
				name := fmt.Sprintf("gone-%d", deleted)
				if deleted++; deleted > 1 {
					x.adm.DeleteTopics(ctx, fmt.Sprintf("gone-%d", deleted-2))
				}
				if x.create(ctx, name, 1) == nil {
					others.ProduceSync(ctx, &kgo.Record{Topic: name, Value: make([]byte, 1000)})
				}
				again = again.Add(time.Second)
			}
			return errors.New("it was not killed")
		})
		k.disarm()
		if x == nil {
			return
		}
		if err := start(); err != nil {
			t.Fatal(err)
		}
	}
	whole := func() {
		t.Helper()
		x.drained()
		x.check(func(topic string) int64 { return checked[topic] })
		for _, topic := range x.topics {
			checked[topic] = int64(x.ledgers[topic].len())
		}
		flags := []string(nil)
		if long {
			flags = []string{"--unnamed"}
		}
		x.audited(flags...)
	}
	times := map[string]time.Duration{}
	for _, s := range steps {
		for _, after := range []bool{false, true} {
			m := moment{s.name, after}
			when, _, _ := strings.Cut(m.String(), " ")
			if !long && !strings.Contains(s.short, when) {
				continue
			}
			began := time.Now()
			if s.by != first && x == nil {
				if err := start(); err != nil {
					t.Fatal(err)
				}
				x = newTiered(t, c, 1, "small-1", "small-2", "own", "large")
				others = x.client()
			}
			if s.by == starts {
				if err := k.broker.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			k.arm(m)
			if !k.broker.Running() {
				if err := start(); err != nil && k.broker.Running() {
					t.Fatal(err) // else it was killed already
				}
			}
			live(s.by)
			if x != nil {
				whole()
			}
			times[m.String()] = time.Since(began)
			if t.Failed() {
				t.Fatalf("it was killed %v", m)
			}
		}
	}
	for _, what := range slices.Sorted(maps.Keys(times)) {
		t.Logf("killed %s: %.1fs", what, times[what].Seconds())
	}

	// The end: from the bucket alone, by a process that has nothing in memory; and what is not named is gone.
	topics, err := x.adm.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics.Names() {
		if strings.HasPrefix(topic, "gone-") {
			if _, err := x.adm.DeleteTopics(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(k.broker.Kill(), start()); err != nil {
		t.Fatal(err)
	}
	x.drained()
	x.check(func(string) int64 { return 0 })
	x.audited("--data", "--unnamed")
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{c.Describe().Etcd[0].Client}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	eventually(t, func() error {
		all, err := cl.Get(t.Context(), "/varve/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		manifests := 0
		for _, kv := range all.Kvs {
			if bytes.Contains(kv.Key, []byte("/image/deleted/")) {
				return fmt.Errorf("%s is still there", kv.Key)
			}
			if bytes.Contains(kv.Key, []byte("/manifest/")) {
				manifests++
			}
		}
		if manifests != len(x.topics) {
			return fmt.Errorf("%d manifests of %d partitions", manifests, len(x.topics))
		}
		return nil
	})
	if err := k.broker.Stop(); err != nil {
		t.Error(err)
	}
}
