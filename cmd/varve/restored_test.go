package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/metadata"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
)

// restored is a cluster whose etcd is set back to what it was earlier, and forward again.
type restored struct {
	*cluster.Cluster
	t      *testing.T
	client *clientv3.Client
	cl     *kgo.Client
	adm    *kadm.Client
	acked  map[string]*ledger // by topic
	newest map[string]string  // by key of the compacted topic
	last   int
}

// stopEtcd kills the members, whose directories then have everything that was written.
func (c *restored) stopEtcd() {
	c.t.Helper()
	for _, e := range c.Etcd {
		if err := e.Kill(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// startEtcd starts all members, each on what it finds in its directory.
func (c *restored) startEtcd() {
	c.t.Helper()
	errs := make([]error, len(c.Etcd))
	var wg sync.WaitGroup
	for i, e := range c.Etcd { // together: each serves when a quorum is there
		wg.Go(func() { errs[i] = e.Start(c.t.Context()) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		c.t.Fatal(err)
	}
}

// saveEtcd copies the directories of members that do not run.
func (c *restored) saveEtcd(to string) {
	c.t.Helper()
	for _, e := range c.Etcd {
		if err := os.CopyFS(filepath.Join(to, e.Name), os.DirFS(e.Dir)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// restoreEtcd puts copies in the place of what the members have.
func (c *restored) restoreEtcd(from string) {
	c.t.Helper()
	for _, e := range c.Etcd {
		if err := errors.Join(os.RemoveAll(e.Dir), os.CopyFS(e.Dir, os.DirFS(filepath.Join(from, e.Name)))); err != nil {
			c.t.Fatal(err)
		}
	}
}

// revision is etcd's.
func (c *restored) revision() int64 {
	c.t.Helper()
	var rev int64
	eventually(c.t, func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		resp, err := c.client.Get(ctx, "x")
		if err == nil {
			rev = resp.Header.Revision
		}
		return err
	})
	return rev
}

// entries is what etcd has, by key: the revision at which it was written, and whether it goes with a lease.
func (c *restored) entries() map[string]string {
	c.t.Helper()
	all := map[string]string{}
	eventually(c.t, func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		resp, err := c.client.Get(ctx, "/varve", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			if kv.Lease == 0 { // others go when nobody keeps them
				all[string(kv.Key)] = fmt.Sprint("revision ", kv.ModRevision)
			}
		}
		return nil
	})
	return all
}

// unwritten has nothing be written to etcd since.
func (c *restored) unwritten(since map[string]string, by string) {
	c.t.Helper()
	now := c.entries()
	if !maps.Equal(since, now) {
		c.t.Errorf("%s writes to an etcd of long ago:\n%v\n%v before", by, now, since)
	}
}

// compacted is how many jobs the worker has done.
func (c *restored) jobs() (n int) {
	c.t.Helper()
	resp, err := http.Get(c.Workers[0].Admin + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, `varve_compaction_jobs_total{job="compact"} `); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n
}

// overwrite has a value of its own acknowledged for each of a few keys, several times.
func (c *restored) overwrite() {
	c.t.Helper()
	for range 10 {
		for k := range 5 {
			c.last++
			r := &kgo.Record{Topic: "kept", Key: fmt.Append(nil, "key-", k), Value: fmt.Append(nil, c.last)}
			if err := c.cl.ProduceSync(c.t.Context(), r).FirstErr(); err != nil {
				c.t.Fatal(err)
			}
			c.newest[string(r.Key)] = string(r.Value)
		}
	}
}

// put has records acknowledged by all in-sync replicas.
func (c *restored) put(topic string, n int) {
	c.t.Helper()
	if c.acked[topic] == nil {
		c.acked[topic] = &ledger{}
	}
	l := c.acked[topic]
	for range n {
		k := l.number()
		r := &kgo.Record{Topic: topic, Value: numbered(k, 500)}
		if err := c.cl.ProduceSync(c.t.Context(), r).FirstErr(); err != nil {
			c.t.Fatal(err)
		}
		l.acked(r.Offset, k)
	}
}

func (c *restored) create(topic string, settings map[string]*string) {
	c.t.Helper()
	if _, err := c.adm.CreateTopic(c.t.Context(), 1, -1, settings, topic); err != nil {
		c.t.Fatal(err)
	}
	c.inSync(topic)
}

func (c *restored) inSync(topics ...string) (leader, epoch int32) {
	c.t.Helper()
	eventually(c.t, func() error {
		list, err := c.adm.ListTopics(c.t.Context(), topics...)
		if err != nil {
			return err
		}
		for _, topic := range topics {
			p, ok := list[topic].Partitions[0]
			if leader, epoch = p.Leader, p.LeaderEpoch; !ok || p.Err != nil || leader < 1 || len(p.ISR) != 3 {
				return fmt.Errorf("%s: leader %d, in sync %v, %v", topic, p.Leader, p.ISR, p.Err)
			}
		}
		return nil
	})
	return leader, epoch
}

// published waits until the bucket knows of the partition's head as it is.
func (c *restored) published(topic string) {
	c.t.Helper()
	bucket, err := objstore.Open(c.t.Context(), c.BucketURL(), objstore.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	defer bucket.Close()
	heads := etcd.New(etcd.Options{Client: c.client, Prefix: "/varve"}).Manifests()
	list, err := c.adm.ListTopics(c.t.Context(), topic)
	if err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, func() error {
		_, rev, err := heads.Load(c.t.Context(), list[topic].ID, 0)
		if err != nil || rev == 0 {
			return fmt.Errorf("head of %s at revision %d: %w", topic, rev, err)
		}
		all, err := tiering.ReadPublished(c.t.Context(), bucket)
		if err == nil && !slices.ContainsFunc(all, func(h tiering.PublishedHead) bool { return h.TopicID == list[topic].ID && h.Rev == rev }) {
			err = fmt.Errorf("the head of %s at revision %d is not published", topic, rev)
		}
		return err
	})
}

// files are the hashes of what is below a directory.
func files(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	all := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		all[path] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// missing are those of the files before that are not there any more, or are others.
func missing(before, after map[string][32]byte) (list []string) {
	for path, sum := range before {
		if now, ok := after[path]; !ok {
			list = append(list, path+" is gone")
		} else if now != sum {
			list = append(list, path+" is another")
		}
	}
	slices.Sort(list)
	return list
}

// objects are what is in the bucket, by where the S3 server keeps it: data, pages of manifests, published states.
func (c *restored) objects() map[string][32]byte {
	all := files(c.t, c.S3.Dir)
	maps.DeleteFunc(all, func(path string, _ [32]byte) bool {
		return !slices.ContainsFunc([]string{"/data/", "/page/"}, func(s string) bool { return strings.Contains(path, s) })
	})
	return all
}

func startRestored(t *testing.T) *restored {
	t.Helper()
	c := &restored{t: t, acked: map[string]*ledger{}, newest: map[string]string{}, Cluster: cluster.Start(t, processes(cluster.Options{Workers: 1, Set: []string{
		"default.replication.factor=3", "min.insync.replicas=2", "remote.flush.interval.ms=300", "etcd.dial.timeout.ms=2000",
		// What is let go of is published, and deleted, soon.
		"remote.delete.grace.ms=1000", "log.cleaner.backoff.ms=200",
	}}))}
	var members []string
	for _, e := range c.Describe().Etcd {
		members = append(members, e.Client)
	}
	var err error
	if c.client, err = etcd.Dial(t.Context(), etcd.DialOptions{Endpoints: members}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.client.Close() })
	c.cl = c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerBatchCompression(kgo.NoCompression()))
	c.adm = kadm.NewClient(c.cl)
	return c
}

// TestRestoredEtcd: etcd is set back to what it was before a topic was made, leaders were elected and records acknowledged,
// first under brokers that run and then under ones that start (F19). Those that run change and delete nothing any more, and say so;
// those that start refuse to, and say what happened and what to do, and leave the log directory as it is. A compaction
// worker adds nothing to the old state. With the right state everything that was acknowledged is there.
func TestRestoredEtcd(t *testing.T) {
	c := startRestored(t)
	text := func(s string) *string { return &s }
	if err := c.Workers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	c.create("before", nil)
	c.put("before", 50)
	c.published("before")
	c.create("kept", map[string]*string{"cleanup.policy": text("compact"), "min.cleanable.dirty.ratio": text("0.01"), "local.retention.bytes": text("1"),
		"file.delete.delay.ms": text("1000")})
	c.overwrite() // after the other, with which it would share an object
	c.published("kept")

	states := t.TempDir()
	old, right := filepath.Join(states, "old"), filepath.Join(states, "right")
	c.stopEtcd()
	c.saveEtcd(old)
	c.startEtcd()
	backup := c.revision()

	// What the backup names is compacted, and deleted.
	had := c.objects()
	if err := c.Workers[0].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if gone := missing(had, c.objects()); c.jobs() == 0 || len(gone) == 0 {
			return fmt.Errorf("%d jobs of compaction are done, and %d objects are deleted", c.jobs(), len(gone))
		}
		return nil
	})
	c.create("since", nil)
	c.put("since", 50)
	c.put("before", 50)
	_, epoch := c.inSync("before")
	for _, b := range c.Brokers { // each remembers how far etcd was; leaders move, and epochs rise
		if err := b.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.inSync("before", "since")
	}
	c.put("since", 50)
	c.put("before", 50)
	if _, now := c.inSync("before"); now <= epoch {
		t.Fatalf("leader epoch %d, and %d before all brokers were started again", now, epoch)
	}
	c.published("before")
	c.published("since")
	c.put("since", 20) // of this the bucket may have nothing

	// Under brokers and a worker that run.
	c.stopEtcd()
	c.saveEtcd(right)
	c.restoreEtcd(old)
	objects := c.objects()
	c.startEtcd()
	entries := c.entries()
	for _, s := range []*cluster.Server{c.Brokers[0].Server, c.Brokers[1].Server, c.Brokers[2].Server, c.Workers[0].Server} {
		eventually(t, func() error {
			log, err := os.ReadFile(s.Log())
			if err == nil && !bytes.Contains(log, []byte("etcd is at an earlier revision than it was")) {
				err = fmt.Errorf("%s does not say that etcd went back", s.Name)
			}
			return err
		})
	}
	for _, b := range c.Brokers {
		resp, err := http.Get(b.Admin + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		said, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(said), "went back to an earlier revision") {
			t.Errorf("broker %d says of its health: %s", b.ID, said)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	if _, err := c.adm.CreateTopic(ctx, 1, -1, nil, "meanwhile"); err == nil {
		t.Error("a topic is made, in an etcd of long ago")
	}
	// Records are taken as while etcd is away: what is acknowledged is on as many logs as ever.
	acknowledged := 0
	l := c.acked["since"]
	for range 20 {
		k := l.number()
		r := &kgo.Record{Topic: "since", Value: numbered(k, 500)}
		if err := c.cl.ProduceSync(ctx, r).FirstErr(); err == nil {
			l.acked(r.Offset, k)
			acknowledged++
		}
	}
	cancel()
	t.Logf("%d of 20 records were acknowledged by brokers that have found an old etcd", acknowledged)
	c.unwritten(entries, "a broker or worker that runs")

	// Under brokers that start.
	for _, b := range c.Brokers {
		if err := b.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Workers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	leased := c.revision() // of what went with the leases of brokers
	for _, b := range c.Brokers {
		seenFile := filepath.Join(b.Dir, "metadata.seen")
		seen, err := metadata.ReadSeen(seenFile)
		if err != nil || seen.Revision <= backup {
			t.Fatalf("broker %d remembers revision %d (%v), and the backup is of %d", b.ID, seen.Revision, err, backup)
		}
		logs := files(t, b.Dir)
		err = b.Start(t.Context())
		if err == nil {
			t.Fatalf("broker %d serves, with an etcd of long ago", b.ID)
		}
		for _, want := range []string{
			"exit status 1", "etcd went back to an earlier revision", fmt.Sprintf(", was %d (remembered in %s)", seen.Revision, seenFile), "restored from a backup",
			"start the broker again",
		} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("broker %d does not say %q: %v", b.ID, want, err)
			}
		}
		if bad := missing(logs, files(t, b.Dir)); len(bad) > 0 {
			t.Errorf("broker %d did not start, and %q", b.ID, bad)
		}
	}
	// Without that memory, as after a revision that was lifted by hand, the logs tell.
	b := c.Brokers[0]
	seenFile := filepath.Join(b.Dir, "metadata.seen")
	seen, err := os.ReadFile(seenFile)
	if err := errors.Join(err, os.Remove(seenFile)); err != nil {
		t.Fatal(err)
	}
	if err = b.Start(t.Context()); err == nil {
		t.Fatalf("broker %d serves, with an etcd of long ago", b.ID)
	}
	for _, want := range []string{"exit status 1", "has records of leader epoch", "restored from a backup", "start the broker again"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("broker %d does not say %q: %v", b.ID, want, err)
		}
	}
	if err := os.WriteFile(seenFile, seen, 0o600); err != nil {
		t.Fatal(err)
	}
	c.unwritten(entries, "a broker that starts")
	// A worker remembers nothing. What the old manifests name of the compacted topic is gone, or, where it is not yet, the bucket
	// has newer ones.
	if err := c.Workers[0].Start(t.Context()); err != nil {
		t.Logf("the worker: %v", err)
	}
	eventually(t, func() error {
		log, err := os.ReadFile(c.Workers[0].Log())
		if err == nil && !bytes.Contains(log, []byte("object does not exist")) && !bytes.Contains(log, []byte("older than one seen before")) {
			err = errors.New("the worker does not say that it cannot get on")
		}
		return err
	})
	time.Sleep(3 * time.Second)
	c.unwritten(entries, "a worker that starts")
	t.Logf("etcd was at revision %d, and is at %d with a worker that cannot get on", leased, c.revision())
	if err := c.Workers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if bad := missing(objects, c.objects()); len(bad) > 0 {
		t.Errorf("in the bucket, %q", bad)
	}

	// The right one is back.
	c.stopEtcd()
	c.restoreEtcd(right)
	c.startEtcd()
	for _, b := range c.Brokers {
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Workers[0].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.inSync("before", "since", "kept")
	c.overwrite()
	for topic, l := range c.acked {
		c.put(topic, 10)
		l.checkWith(t, c.Client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())), 0)
	}
	found := map[string]string{}
	in := c.Client(t, kgo.ConsumeTopics("kept"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for !maps.Equal(found, c.newest) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		fs := in.PollFetches(ctx)
		cancel()
		if err := fs.Err(); err != nil {
			t.Fatalf("read %v of %v: %v", found, c.newest, err)
		}
		fs.EachRecord(func(r *kgo.Record) { found[string(r.Key)] = string(r.Value) })
	}
}
