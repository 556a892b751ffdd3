package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
)

// member opens a broker of a cluster whose brokers share an etcd.
type member struct {
	t    *testing.T
	etcd *etcd.Server
	dir  string
}

func newMember(t *testing.T) *member {
	e, err := etcd.Embedded(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return &member{t, e, t.TempDir()}
}

func (m *member) options(id int, b objstore.Bucket) Options {
	return m.with(id, b, nil)
}

func (m *member) with(id int, b objstore.Bucket, settings map[string]string) Options {
	set := map[string]string{"node.id": strconv.Itoa(id), "remote.flush.interval.ms": "100"}
	maps.Copy(set, settings)
	o := options(m.t, filepath.Join(m.dir, strconv.Itoa(id)), set)
	o.Dev, o.Etcd, o.Bucket = false, m.etcd.Client(), b
	return o
}

func (m *member) open(id int, b objstore.Bucket) (*Server, error) {
	return Open(context.Background(), m.options(id, b))
}

// A bucket that would be refused is not made: only that of a cluster that has none yet, and that which an operator says is the one.
func TestRefusedBucketIsNotMade(t *testing.T) {
	dir, buckets := t.TempDir(), t.TempDir()
	start := func(bucket string, accept bool) error {
		o := options(t, dir, map[string]string{"remote.storage.url": objstore.FileURL(filepath.Join(buckets, bucket))})
		o.AcceptBucket = accept
		s, err := Open(context.Background(), o)
		if err != nil {
			return err
		}
		return s.Close(context.Background())
	}
	there := func() (names []string) {
		entries, err := os.ReadDir(buckets)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if err := start("first", false); err != nil {
		t.Fatal(err)
	}
	if err := start("second", false); !errors.Is(err, objstore.ErrNoBucket) || !strings.Contains(err.Error(), "--accept-bucket") {
		t.Errorf("with another bucket: %v", err)
	}
	if got := there(); !slices.Equal(got, []string{"first"}) {
		t.Errorf("there are %v", got)
	}
	if err := start("first", false); err != nil {
		t.Fatal(err)
	}
	if err := start("second", true); err != nil {
		t.Fatal(err)
	}
	if got := there(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("there are %v", got)
	}
}

// A broker that is given another bucket than the cluster's does not start, whether it is a new one or was one of the cluster before,
// unless an operator says that it is the one. What would follow: it leads, uploads, and lets go of what nobody else finds.
func TestAnotherBucket(t *testing.T) {
	m := newMember(t)
	ours, other := objstore.NewMem(), objstore.NewMem()
	first, err := m.open(1, ours)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(id int) {
		t.Helper()
		s, err := m.open(id, other)
		if err == nil {
			s.Close(context.Background())
		}
		if !errors.Is(err, objstore.ErrNotShared) || !strings.Contains(err.Error(), "--accept-bucket") {
			t.Errorf("broker %d with another bucket: %v", id, err)
		}
		if first.node.Image().Broker(int32(id)) != nil && id != 2 {
			t.Errorf("broker %d was admitted", id)
		}
	}
	refused(3)
	for range 2 {
		s, err := m.open(2, ours)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	refused(2)
	o := m.options(4, other)
	if w, err := OpenCompactor(context.Background(), o); !errors.Is(err, objstore.ErrNotShared) {
		if err == nil {
			w.Close()
		}
		t.Errorf("a worker with another bucket: %v", err)
	}

	// The bucket was emptied, and an operator says so: once, and not while a broker goes on with the one that it has.
	o = m.options(2, other)
	o.AcceptBucket = true
	s, err := Open(context.Background(), o)
	if !errors.Is(err, objstore.ErrNotShared) || !strings.Contains(err.Error(), "these run: 1") {
		t.Errorf("while broker 1 runs: %v", err)
	}
	if err == nil {
		s.Close(context.Background())
	}
	if keys := names(t, other, ""); len(keys) > 0 {
		t.Errorf("those who were refused left %v", keys)
	}
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		o = m.options(2, other)
	}
	// From now on that is the bucket, and the one before is not.
	s, err = m.open(3, ours)
	if !errors.Is(err, objstore.ErrNotShared) {
		t.Errorf("with the bucket before the one that was accepted: %v", err)
	}
	if err == nil {
		s.Close(context.Background())
	}
}

// names lists what is in a bucket.
func names(t *testing.T, b objstore.Bucket, prefix string) (keys []string) {
	t.Helper()
	list, _, err := b.List(context.Background(), prefix, "", objstore.MaxList)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		keys = append(keys, i.Key)
	}
	return keys
}

// Of two clusters that are begun with one bucket, one is, before either has uploaded anything.
func TestOneBucketOfTwoClusters(t *testing.T) {
	b := objstore.NewMem()
	first, err := newMember(t).open(1, b)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close(context.Background())
	before := slices.Concat(names(t, b, "cluster"), names(t, b, "probe/"))
	second, err := newMember(t).open(1, b)
	if err == nil {
		second.Close(context.Background())
	}
	if !errors.Is(err, tiering.ErrForeign) {
		t.Errorf("begun with the bucket of another cluster: %v", err)
	}
	if after := slices.Concat(names(t, b, "cluster"), names(t, b, "probe/")); !slices.Equal(after, before) || len(after) != 2 {
		t.Errorf("in the other's bucket there is %v, and was %v", after, before)
	}
}

// A cluster of before there were names of buckets, with records in object storage, takes no bucket that has never been one's.
func TestBucketWithoutAName(t *testing.T) {
	m := newMember(t)
	b := objstore.NewMem()
	s, err := m.open(1, b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := clientOf(t, s).ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for len(names(t, b, "data/")) == 0 {
		if ctx.Err() != nil {
			t.Fatal("nothing was uploaded")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	keys := names(t, b, "probe/")
	if err := b.Delete(ctx, keys); err != nil || len(keys) != 1 {
		t.Fatalf("%v: %v", keys, err)
	}
	if resp, err := m.etcd.Client().Delete(ctx, "/varve/bucket"); err != nil || resp.Deleted != 1 {
		t.Fatalf("%+v: %v", resp, err)
	}
	empty := objstore.NewMem()
	s, err = m.open(1, empty)
	if !errors.Is(err, objstore.ErrNotShared) || !strings.Contains(err.Error(), "--accept-bucket") {
		t.Errorf("with an empty bucket: %v", err)
	}
	if err == nil {
		s.Close(context.Background())
	}
	if keys := names(t, empty, ""); len(keys) > 0 {
		t.Errorf("in it there is %v", keys)
	}
	if s, err = m.open(1, b); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// Whatever fails on the way to a bucket's name, and whenever a process ends there, the next start goes on: with the bucket that has the
// name, or, where none has, with any. Of a bucket that is not the cluster's nothing is kept.
func TestBucketNamedInSteps(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	for step := range 3 {
		prefix := fmt.Sprintf("/steps-%d/", step)
		store := etcd.New(etcd.Options{Client: m.etcd.Client(), Prefix: prefix})
		log := slog.New(slog.DiscardHandler)
		wrong, right := objstore.NewMem(), objstore.NewMem()
		begun := &bond{store: store, cluster: "c", bucket: wrong, founds: true, log: log}
		var err error
		switch step { // what has been done when the first process ends
		case 0:
			_, err = tiering.Mark(ctx, wrong, "c")
		case 1:
			err = begun.leave(ctx)
		case 2: // and another broker is first, with another bucket
			err = begun.leave(ctx)
			if err == nil {
				err = (&bond{store: store, cluster: "c", bucket: right, founds: true, log: log}).confirm(ctx)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if step == 2 {
			// It has not ended: it finds out, and takes back what it has left.
			if err := begun.confirm(ctx); !errors.Is(err, objstore.ErrNotShared) {
				t.Errorf("step %d: with another bucket than the first broker: %v", step, err)
			}
			if keys := names(t, wrong, ""); len(keys) > 0 {
				t.Errorf("step %d: %v stay", step, keys)
			}
			continue
		}
		for range 2 {
			again := &bond{store: store, cluster: "c", bucket: right, founds: true, log: log}
			if err := again.confirm(ctx); err != nil {
				t.Errorf("step %d: the next start: %v", step, err)
			}
		}
		if err := (&bond{store: store, cluster: "c", bucket: wrong, founds: true, log: log}).confirm(ctx); !errors.Is(err, objstore.ErrNotShared) {
			t.Errorf("step %d: with the bucket of the process that ended: %v", step, err)
		}
	}
}

// A worker that asks before any broker has named the bucket is not told that it is the one: it asks again.
func TestWorkerBeforeTheBucketHasAName(t *testing.T) {
	m := newMember(t)
	store := etcd.New(etcd.Options{Client: m.etcd.Client(), Prefix: "/varve/"})
	ours, other := objstore.NewMem(), objstore.NewMem()
	worker := &bond{store: store, cluster: "c", bucket: other, log: slog.New(slog.DiscardHandler)}
	if err := worker.early(t.Context(), false); err != nil {
		t.Errorf("at the worker's start: %v", err)
	}
	if err := worker.confirm(t.Context()); !errors.Is(err, errUnnamed) {
		t.Errorf("before a broker was there: %v", err)
	}
	broker := &bond{store: store, cluster: "c", bucket: ours, founds: true, log: worker.log}
	if err := broker.confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := worker.confirm(t.Context()); !errors.Is(err, objstore.ErrNotShared) {
		t.Errorf("with another bucket: %v", err)
	}
	worker.bucket = ours
	if err := worker.confirm(t.Context()); err != nil {
		t.Error(err)
	}
}

// A cluster that is begun with another's bucket takes it for its own neither then nor later.
func TestForeignBucket(t *testing.T) {
	theirs := objstore.NewMem()
	mark := "varve cluster 1\nanother\n"
	if err := theirs.Put(context.Background(), "cluster", strings.NewReader(mark), int64(len(mark)), objstore.CRC32C([]byte(mark))); err != nil {
		t.Fatal(err)
	}
	m := newMember(t)
	s, err := m.open(1, theirs)
	if err == nil {
		s.Close(context.Background())
	}
	if !errors.Is(err, tiering.ErrForeign) {
		t.Errorf("begun with the bucket of another cluster: %v", err)
	}
	if keys := names(t, theirs, ""); len(keys) != 1 {
		t.Errorf("in the other's bucket there is %v", keys)
	}
	if s, err = m.open(1, objstore.NewMem()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// Of brokers that start a cluster together, each with a bucket of its own, one does.
func TestEachItsOwnBucket(t *testing.T) {
	m := newMember(t)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var open []*Server
	refused := 0
	for id := 1; id <= 3; id++ {
		wg.Go(func() {
			b := objstore.NewMem()
			s, err := m.open(id, b)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				open = append(open, s)
			case errors.Is(err, objstore.ErrNotShared):
				refused++
				if keys := names(t, b, ""); len(keys) > 0 {
					t.Errorf("broker %d left %v in its bucket", id, keys)
				}
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range open {
		defer s.Close(context.Background())
	}
	if len(open) != 1 || refused != 2 {
		t.Errorf("%d brokers serve, %d were refused", len(open), refused)
	}
}

// A broker that starts while its bucket does not answer finds out later, before it uploads anything: then it says so, and the log keeps
// what it has.
func TestAnotherBucketThatWasAway(t *testing.T) {
	m := newMember(t)
	first, err := m.open(1, objstore.NewMem())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	mem := objstore.NewMem()
	other := objstore.NewFaulty(mem, 1)
	other.SetOutage(true)
	s, err := m.open(1, other)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := clientOf(t, s).ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	other.SetOutage(false)
	for !errors.Is(s.tier.Healthy(), objstore.ErrNotShared) {
		if ctx.Err() != nil {
			t.Fatalf("nobody says that the bucket is another: %v", s.tier.Healthy())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if keys := names(t, mem, ""); len(keys) > 0 {
		t.Errorf("in the other bucket there is %v", keys)
	}
}

// A broker that names another inter-broker listener than those that run, or has the address of one of them, does not start.
func TestBrokersReachEachOther(t *testing.T) {
	m := newMember(t)
	b := objstore.NewMem()
	first, err := Open(context.Background(), m.with(1, b, map[string]string{"listeners": "PLAINTEXT://127.0.0.1:0,FRONT://127.0.0.1:0", "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,FRONT:PLAINTEXT"}))
	if err != nil {
		t.Fatal(err)
	}
	ep := first.Endpoints()[0]
	patience := "1000"
	try := func(settings map[string]string) error {
		set := map[string]string{"broker.session.timeout.ms": patience} // what is in the way is waited for, twice as long
		maps.Copy(set, settings)
		s, err := Open(context.Background(), m.with(2, b, set))
		if err == nil {
			err = s.Close(context.Background())
		}
		return err
	}
	wrong := map[string]map[string]string{
		"advertises no listener": {"listeners": "INSIDE://127.0.0.1:0", "listener.security.protocol.map": "INSIDE:PLAINTEXT", "inter.broker.listener.name": "INSIDE"},
		"serves other brokers":   {"listeners": "FRONT://127.0.0.1:0", "listener.security.protocol.map": "FRONT:PLAINTEXT", "inter.broker.listener.name": "FRONT"},
		"an address of its own":  {"advertised.listeners": fmt.Sprintf("PLAINTEXT://%s:%d", ep.Host, ep.Port)},
	}
	for what, settings := range wrong {
		if err := try(settings); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "broker 1") {
			t.Errorf("%v: %v", settings, err)
		}
	}
	if err := try(nil); err != nil {
		t.Error(err)
	}
	// What has ended is in nobody's way: all may change their listener together, and one may have the address of another, also while the
	// session of a process that was killed is still there.
	patience = "60000"
	var ended sync.WaitGroup
	ended.Go(func() {
		time.Sleep(300 * time.Millisecond)
		if err := first.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	defer ended.Wait()
	for _, settings := range wrong {
		if err := try(settings); err != nil {
			t.Errorf("%v: %v", settings, err)
		}
	}
}

// A bucket in memory is another one at each start, and is said to be none that lasts: it keeps nobody from starting.
func TestBucketInMemory(t *testing.T) {
	m := newMember(t)
	for start := range 2 {
		s, err := Open(context.Background(), m.with(1, nil, map[string]string{"remote.storage.url": "mem://"}))
		if err != nil {
			t.Fatalf("start %d: %v", start+1, err)
		}
		s.Close(context.Background())
	}
}

// What a drain sets of a broker is the controller's: it keeps no other setting that is changed while the broker runs from it.
func TestReconfiguredWhileDrained(t *testing.T) {
	m := newMember(t)
	s, err := m.open(1, objstore.NewMem())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	own := map[string]string{"cordoned.log.dirs": "*", "leadership.enable": "false", "max.connections": "7"}
	c, err := s.reconfigure(map[string]string{"max.connections.per.ip": "5"}, own)
	if err != nil || c.MaxConnections != 7 || c.MaxConnectionsPerIP != 5 {
		t.Errorf("%+v: %v", c, err)
	}
	if len(own) != 3 {
		t.Errorf("what was given has changed: %v", own)
	}
}

// The bound of memory that a broker has taken as its share of the machine is the one by which it takes over what is changed while it
// runs.
func TestReconfiguredWithinItsMemory(t *testing.T) {
	m := newMember(t)
	o := m.with(1, objstore.NewMem(), map[string]string{"wal.cache.bytes": "200000000"})
	delete(o.Config.Static, "memory.max.bytes")
	o.Config.MemoryMaxBytes = 300_000_000 // 60 % of 500 MB
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	was := s.o.Config.SocketRequestMaxBytes
	c, err := s.reconfigure(map[string]string{"max.connections": "9"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxConnections != 9 || c.SocketRequestMaxBytes != was || c.MemoryMaxBytes != 300_000_000 {
		t.Errorf("%+v", c)
	}
	if _, there := c.Static["memory.max.bytes"]; there {
		t.Error("the bound is shown as set by somebody")
	}
}

// A broker whose directory is of another cluster than its file says does not start.
func TestAnotherClusterID(t *testing.T) {
	m := newMember(t)
	b := objstore.NewMem()
	s, err := m.open(1, b)
	if err != nil {
		t.Fatal(err)
	}
	id := s.node.Image().ClusterID
	s.Close(context.Background())
	for _, tc := range []struct {
		id     string
		starts bool
	}{{"AnotherCluster________", false}, {id, true}, {"", true}} {
		o := m.options(1, b)
		o.Config.ClusterID = tc.id
		s, err := Open(context.Background(), o)
		if err == nil {
			s.Close(context.Background())
		}
		if (err == nil) != tc.starts || err != nil && !strings.Contains(err.Error(), "cluster.id") {
			t.Errorf("cluster.id=%q in the directory of %q: %v", tc.id, id, err)
		}
	}
}
