package etcd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/varve/varve/metadata/image"
)

var rewrite = flag.Bool("rewrite-golden", false, "write testdata anew (only for a new format version, never for an existing one)")

// One etcd serves all tests of the package, each below a prefix of its own.
var shared struct {
	once   sync.Once
	server *Server
	dir    string
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if shared.server != nil {
		shared.server.Close()
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

func client(t testing.TB) *clientv3.Client {
	t.Helper()
	shared.once.Do(func() {
		var err error
		if shared.dir, err = os.MkdirTemp("", "varve-etcd-"); err != nil {
			t.Fatal(err)
		}
		if shared.server, err = Embedded(shared.dir, nil); err != nil {
			t.Fatal(err)
		}
	})
	return shared.server.Client()
}

func newStore(t testing.TB) *Store {
	return New(Options{Client: client(t), Prefix: "/test/" + t.Name()})
}

var bg = context.Background()

func id(n byte) (id [16]byte) { id[0], id[15] = n, n; return id }

// elect makes this test the controller.
func elect(t testing.TB, s *Store) (epoch int64) {
	t.Helper()
	lease, _, err := s.Grant(bg, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	epoch, won, err := s.Campaign(bg, lease, 1, id(1))
	if err != nil || !won {
		t.Fatal(won, err)
	}
	return epoch
}

func topic(n byte, name string, partitions int, config map[string]string) (changes []image.Change) {
	for i := range partitions {
		changes = append(changes, image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id(n), Index: int32(i)},
			State: image.Partition{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, Replicas: []int32{1, 2}, ISR: []int32{1}, ELR: []int32{2}}})
	}
	return append(changes, image.SetTopic{ID: id(n), Name: name, Partitions: int32(partitions), Config: config})
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func samples(t testing.TB, s *Store) {
	must[string](t)(s.EnsureCluster(bg, "c2FtcGxlIGNsdXN0ZXIgaQ"))
	lease, _, err := s.Grant(bg, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := []image.Endpoint{{Listener: "PLAINTEXT", Host: "host", Port: 9092, Protocol: "PLAINTEXT"}}
	must[int64](t)(s.Register(bg, image.Session{ID: 1, Incarnation: id(0xa), Rack: "r", Endpoints: endpoints, WAL: id(0xb), Lease: lease, AcceptLoss: true}, nil))
	epoch, _, err := s.Campaign(bg, lease, 1, id(0xa))
	if err != nil {
		t.Fatal(err)
	}
	changes := []image.Change{image.SetBroker{Broker: image.Broker{ID: 1, Epoch: 3, Incarnation: id(0xa), Rack: "r", Endpoints: endpoints, WAL: id(0xb), Fenced: true}}}
	changes = append(changes, topic(1, "orders", 2, map[string]string{"retention.ms": "1000", "cleanup.policy": "compact,delete"})...)
	changes = append(changes, topic(2, "gone", 3, nil)...)
	changes = append(changes,
		image.SetConfig{ConfigKey: image.ConfigKey{Type: image.BrokerResource}, Values: map[string]string{"log.retention.ms": "5"}},
		image.SetConfig{ConfigKey: image.ConfigKey{Type: image.GroupResource, Name: "a/b"}, Values: map[string]string{"x": "y"}},
		image.BuryTopic{Tombstone: image.Tombstone{ID: id(2), Name: "gone", Partitions: 3}})
	must[*image.Image](t)(s.Commit(bg, epoch, image.Empty(), changes))
	must[int64](t)(s.Barrier(bg, epoch))
	must[int64](t)(s.Manifests().Commit(bg, CommitRequest{TopicID: id(1), Partition: 1, LeaderEpoch: 5, Head: []byte("head bytes belong to tiering")}))
	if _, _, err := s.AllocateProducerIDs(bg); err != nil {
		t.Fatal(err)
	}
	// What came later.
	other, _, err := s.Grant(bg, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	session := must[int64](t)(s.Register(bg, image.Session{ID: 2, Incarnation: id(0xc), Endpoints: endpoints, WAL: id(0xd), Lease: other, Place: "boot/1/2", Stale: true, Cut: true}, &HeldMark{}))
	must[HeldMark](t)(s.PutMark(bg, 2, session, HeldMark{}, id(0xd), id(0xe)))
	doubtful := topic(3, "doubtful", 1, nil)
	p := doubtful[0].(image.SetPartition)
	p.State.Cut = []int32{2}
	doubtful[0] = p
	must[*image.Image](t)(s.Commit(bg, epoch, image.Empty(), doubtful))
}

// Values of format version 1, as every later version must read them. The files
// are never to be written again; a new format version gets files of its own.
func TestFormatVersion1(t *testing.T) {
	keysFile, imageFile := filepath.Join("testdata", "v1_keys.txt"), filepath.Join("testdata", "v1_image.txt")
	if *rewrite {
		s := newStore(t)
		samples(t, s)
		var b strings.Builder
		for _, kv := range must[*clientv3.GetResponse](t)(s.client.Get(bg, s.keys.prefix, clientv3.WithPrefix())).Kvs {
			fmt.Fprintf(&b, "%s %s\n", strings.TrimPrefix(string(kv.Key), s.keys.prefix), kv.Value)
		}
		os.WriteFile(keysFile, []byte(b.String()), 0o644)
	}
	s := New(Options{Client: client(t), Prefix: "/test/v1-opened/"})
	f, err := os.Open(keysFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), " ")
		must[*clientv3.PutResponse](t)(s.client.Put(bg, s.keys.prefix+key, value))
	}
	got := dump(must[*image.Image](t)(s.Load(bg)))
	if *rewrite {
		os.WriteFile(imageFile, []byte(got), 0o644)
	}
	if want := string(must[[]byte](t)(os.ReadFile(imageFile))); got != want {
		t.Fatalf("read:\n%s\nwant:\n%s", got, want)
	}
	// The rest is not part of the image.
	head, rev, err := s.Manifests().Load(bg, id(1), 1)
	if err != nil || rev == 0 || string(head) != "head bytes belong to tiering" {
		t.Fatalf("%q %d %v", head, rev, err)
	}
	if _, err := s.Manifests().Commit(bg, CommitRequest{TopicID: id(1), Partition: 1, Rev: rev, LeaderEpoch: 5, Head: []byte("next")}); err != nil {
		t.Fatalf("the epoch as stored in version 1 does not compare equal: %v", err)
	}
	if first, n, err := s.AllocateProducerIDs(bg); first != 1000 || n != 1000 || err != nil {
		t.Fatal(first, n, err)
	}
	// What is written now are the same bytes.
	w := New(Options{Client: client(t), Prefix: "/test/v1-written/"})
	samples(t, w)
	all := func(s *Store) (out []string) {
		for _, kv := range must[*clientv3.GetResponse](t)(s.client.Get(bg, s.keys.prefix, clientv3.WithPrefix())).Kvs {
			v := string(kv.Value)
			if strings.Contains(v, `"created"`) || strings.Contains(v, `"lease"`) || strings.HasPrefix(v, "next") || strings.HasPrefix(v, "head") || strings.Contains(v, `"next"`) {
				v = "(differs)"
			}
			out = append(out, strings.TrimPrefix(string(kv.Key), s.keys.prefix)+" "+v)
		}
		return out
	}
	if a, b := all(s), all(w); !slices.Equal(a, b) {
		t.Fatalf("format version 1 is:\n%s\nwritten now:\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
}

func dump(im *image.Image) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s controller %d\n", im.ClusterID, im.Controller)
	for _, x := range im.Sessions() {
		x := *x
		x.Revision, x.Lease = 0, 0
		// As below.
		fmt.Fprintf(&b, "session %s\n", strings.NewReplacer(" Place: Stale:false Cut:false", "", " InterBroker: ", " ").Replace(fmt.Sprintf("%+v", x)))
	}
	for _, x := range im.Brokers() {
		x := *x
		x.Revision = 0
		// A field that version 1 has got since.
		fmt.Fprintf(&b, "broker %s\n", strings.NewReplacer(" ShuttingDown:false", "", " Unresponsive:false", "", " Stale:false", "").Replace(fmt.Sprintf("%+v", x)))
	}
	for _, x := range im.Topics() {
		fmt.Fprintf(&b, "topic %s %x internal=%v config=%v\n", x.Name, x.ID, x.Internal, x.Config)
		for i, p := range x.Partitions {
			p := *p
			p.Revision = 0
			fmt.Fprintf(&b, "  %d %s\n", i, strings.Replace(fmt.Sprintf("%+v", p), " Cut:[]", "", 1))
		}
	}
	for _, typ := range []int8{image.BrokerResource, image.ClientMetricsResource, image.GroupResource} {
		for _, c := range im.Configs(typ) {
			fmt.Fprintf(&b, "config %d %q %v\n", typ, c.Name, c.Values)
		}
	}
	for _, x := range im.Deleted() {
		fmt.Fprintf(&b, "deleted %s %x %d\n", x.Name, x.ID, x.Partitions)
	}
	fmt.Fprintf(&b, "loose %v\n", im.Loose(10))
	return b.String()
}

// A value of an unknown version, and a damaged one, are named and refused.
func TestUnreadable(t *testing.T) {
	for _, c := range []struct{ key, value, says string }{
		{"image/topic/" + strings.Repeat("0", 32), `{"v":2,"name":"x","partitions":1}`, "version 2"},
		{"image/topic/" + strings.Repeat("0", 32), `{"v":2,"name":["changed"]}`, "version 2"},
		{"image/topic/" + strings.Repeat("0", 32), `{"v":1,"name":"x","partitions":100000000}`, "100000000 partitions"},
		{"image/topic/short", `{"v":1,"name":"x","partitions":1}`, "bad id"},
		{"image/partition/" + strings.Repeat("0", 32) + "/9999999999", `{"v":1}`, "key"},
		{"image/partition/" + strings.Repeat("0", 32) + "/-1", `{"v":1}`, "key"},
		{"image/partition/" + strings.Repeat("0", 32) + "/0", ``, "JSON"},
		{"image/broker/x", `{"v":1}`, "key"},
		{"image/broker/1", `{"v":1,"incarnation":"zz"}`, "bad id"},
		{"image/config/300/x", `{"v":1}`, "key"},
	} {
		s := New(Options{Client: client(t), Prefix: "/test/unreadable/" + c.key + c.value})
		must[*clientv3.PutResponse](t)(s.client.Put(bg, s.keys.prefix+c.key, c.value))
		if _, err := s.Load(bg); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %v", c.key, c.value, err)
		}
	}
	// Parts that a later version adds are none of our business.
	s := newStore(t)
	must[*clientv3.PutResponse](t)(s.client.Put(bg, s.keys.prefix+"image/unheard-of/x", "?"))
	must[*image.Image](t)(s.Load(bg))
}

// What a load reads and what a watch delivers are the same image at every
// revision, and the controller's own copy is too.
func TestWatchEqualsLoad(t *testing.T) {
	s := newStore(t)
	must[string](t)(s.EnsureCluster(bg, ""))
	start := must[*image.Image](t)(s.Load(bg))
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	var mu sync.Mutex
	watched := start
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, WatchOptions{After: start.Revision}, func(d image.Delta) error {
			mu.Lock()
			defer mu.Unlock()
			if d.Revision <= watched.Revision {
				t.Errorf("revision %d after %d", d.Revision, watched.Revision)
			}
			watched = watched.Apply(d)
			return nil
		})
	}()
	epoch := elect(t, s)
	own := must[*image.Image](t)(s.Load(bg))
	steps := [][]image.Change{
		topic(1, "a", 300, nil),
		topic(2, "b", 1, map[string]string{"k": "v"}),
		{image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id(1), Index: 7}, State: image.Partition{Leader: 2, LeaderEpoch: 6}}},
		append(topic(1, "a", 301, nil)[300:301], image.SetTopic{ID: id(1), Name: "a", Partitions: 301}),
		append([]image.Change{image.BuryTopic{Tombstone: image.Tombstone{ID: id(1), Name: "a", Partitions: 301}}}, topic(3, "a", 2, nil)...),
		{image.DropPartition{PartitionRef: image.PartitionRef{TopicID: id(9), Index: 1}}},
		{image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id(9), Index: 1}}},
		{image.DropPartition{PartitionRef: image.PartitionRef{TopicID: id(9), Index: 1}}},
	}
	for _, changes := range steps {
		own = must[*image.Image](t)(s.Commit(bg, epoch, own, changes))
		rev := must[int64](t)(s.Barrier(bg, epoch))
		loaded := must[*image.Image](t)(s.Load(bg))
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			im := watched
			mu.Unlock()
			if im.Revision >= own.Revision && im.Revision >= 0 && (len(changes) == 0 || dump(im) == dump(loaded)) {
				if dump(own) != dump(loaded) {
					t.Fatalf("own:\n%s\nloaded:\n%s", dump(own), dump(loaded))
				}
				if !sameRevisions(im, loaded) || !sameRevisions(own, loaded) {
					t.Fatal("revisions differ")
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("at %d, watch does not arrive:\n%s\nloaded:\n%s", rev, dump(im), dump(loaded))
			}
		}
	}
	// Names and epochs beside the image.
	for name, want := range map[string]string{"name/": "name/a name/b", "epoch/" + strings.Repeat("0", 2): ""} {
		var got []string
		for _, kv := range must[*clientv3.GetResponse](t)(s.client.Get(bg, s.keys.prefix+name, clientv3.WithPrefix())).Kvs {
			got = append(got, strings.TrimPrefix(string(kv.Key), s.keys.prefix))
		}
		sort.Strings(got)
		if strings.Join(got, " ") != want {
			t.Fatalf("%s: %v", name, got)
		}
	}
	if n := must[*clientv3.GetResponse](t)(s.client.Get(bg, s.keys.prefix+"epoch/", clientv3.WithPrefix(), clientv3.WithCountOnly())).Count; n != 3 {
		t.Fatalf("%d epoch keys, want those of the three partitions left", n)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func sameRevisions(a, b *image.Image) bool {
	c := image.Diff(a, b)
	return len(c.Topics) == 0 && len(c.Brokers) == 0 && len(c.Configs) == 0
}

// Nothing is written without the election, or over a key that moved.
func TestCommitCompares(t *testing.T) {
	s := newStore(t)
	lease, _, err := s.Grant(bg, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	epoch, won, err := s.Campaign(bg, lease, 1, id(1))
	if !won || err != nil {
		t.Fatal(won, err)
	}
	base := must[*image.Image](t)(s.Load(bg))
	im := must[*image.Image](t)(s.Commit(bg, epoch, base, topic(1, "t", 1, nil)))
	part := func(leader int32) []image.Change {
		return []image.Change{image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id(1)}, State: image.Partition{Leader: leader, LeaderEpoch: 6}}}
	}
	next := must[*image.Image](t)(s.Commit(bg, epoch, im, part(2)))
	// A transaction that was delayed: decided upon im, arriving after next.
	if _, err := s.Commit(bg, epoch, im, part(3)); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	// The same name under another id.
	if _, err := s.Commit(bg, epoch, next, topic(2, "t", 1, nil)); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	if err := s.Revoke(bg, lease); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(bg, epoch, next, part(3)); !errors.Is(err, ErrNotController) {
		t.Fatal(err)
	}
	if _, err := s.Barrier(bg, epoch); !errors.Is(err, ErrNotController) {
		t.Fatal(err)
	}
	later := elect(t, s)
	if _, err := s.Commit(bg, epoch, next, part(3)); !errors.Is(err, ErrNotController) {
		t.Fatal(err)
	}
	if im := must[*image.Image](t)(s.Commit(bg, later, next, part(3))); im.Topic("t").Partitions[0].Leader != 3 {
		t.Fatal("not written")
	}
}

// faulty stands between the store and etcd.
type faulty struct {
	clientv3.KV
	mu sync.Mutex
	// txn decides what becomes of the next transactions; commit sends it.
	txn func(commit func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error)
}

type faultyTxn struct {
	clientv3.Txn
	f *faulty
}

func (f *faulty) Txn(ctx context.Context) clientv3.Txn { return &faultyTxn{f.KV.Txn(ctx), f} }

func (x *faultyTxn) If(c ...clientv3.Cmp) clientv3.Txn  { x.Txn = x.Txn.If(c...); return x }
func (x *faultyTxn) Then(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Then(o...); return x }
func (x *faultyTxn) Else(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Else(o...); return x }
func (x *faultyTxn) Commit() (*clientv3.TxnResponse, error) {
	x.f.mu.Lock()
	hook := x.f.txn
	x.f.mu.Unlock()
	if hook == nil {
		return x.Txn.Commit()
	}
	return hook(x.Txn.Commit)
}

func newFaulty(t testing.TB) (*Store, *faulty) {
	c := client(t)
	f := &faulty{KV: c.KV}
	w := clientv3.NewCtxClient(bg)
	w.KV, w.Lease, w.Watcher = f, c.Lease, c.Watcher
	return New(Options{Client: w, Prefix: "/test/" + t.Name(), RequestTimeout: 200 * time.Millisecond}), f
}

type commit = func() (*clientv3.TxnResponse, error)

// once replaces the outcome of the next transaction only.
func (f *faulty) once(hook func(commit) (*clientv3.TxnResponse, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.txn = func(c func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
		f.mu.Lock()
		f.txn = nil
		f.mu.Unlock()
		return hook(c)
	}
}

// A partition has one worker at a time, whoever reads the claim can tell who it is, and only under the claim is a head
// replaced.
func TestClaimAnswersLost(t *testing.T) {
	s, f := newFaulty(t)
	must[*image.Image](t)(s.Commit(bg, elect(t, s), image.Empty(), topic(1, "t", 3, nil)))
	m := s.Manifests()
	lease := func() int64 {
		t.Helper()
		id, _, err := s.Lease(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	a, b := Claim{"a", [4]byte{1}, lease()}, Claim{"b", [4]byte{2}, lease()}
	if err := m.Claim(bg, id(1), 0, a); err != nil {
		t.Fatal(err)
	}
	if err := m.Claim(bg, id(1), 0, b); !errors.Is(err, ErrClaimed) || !strings.Contains(err.Error(), ": a") {
		t.Fatal(err)
	}
	if c, ok, err := claimed(m, id(1), 0); !ok || err != nil || c.Worker != "a" || c.Tag != a.Tag {
		t.Fatal(c, ok, err)
	}
	n := 0
	if err := m.Claims(bg, func(topic [16]byte, partition int32, c Claim) error {
		if n++; topic != id(1) || partition != 0 || c.Worker != "a" || c.Tag != a.Tag {
			t.Error(topic, partition, c)
		}
		return nil
	}); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	rev := must[int64](t)(m.Commit(bg, CommitRequest{TopicID: id(1), LeaderEpoch: 5, Head: []byte("the leader's")}))
	if _, err := m.Commit(bg, CommitRequest{TopicID: id(1), Rev: rev, Claim: &b, Head: []byte("another's")}); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	rev = must[int64](t)(m.Commit(bg, CommitRequest{TopicID: id(1), Rev: rev, Claim: &a, Head: []byte("the worker's")}))

	// What another gives back is not his; after the owner has, anybody may have it, also by an attempt whose answer is lost.
	if err := errors.Join(m.Unclaim(bg, id(1), 0, b), m.Claim(bg, id(1), 0, a), m.Unclaim(bg, id(1), 0, a)); err != nil {
		t.Fatal(err)
	}
	if c, ok, err := claimed(m, id(1), 0); ok || err != nil {
		t.Fatal(c, ok, err)
	}
	if _, err := m.Commit(bg, CommitRequest{TopicID: id(1), Rev: rev, Claim: &a, Head: []byte("late")}); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	f.once(func(c commit) (*clientv3.TxnResponse, error) { c(); return nil, rpctypes.ErrTimeout })
	m.Claim(bg, id(1), 0, b) // sent again by itself, or by whoever asks
	if err := m.Claim(bg, id(1), 0, b); err != nil {
		t.Fatal(err)
	}
	// A claim ends with the lease, and none is taken for a lease that has ended, or a topic that does not exist.
	if err := s.Revoke(bg, b.Lease); err != nil {
		t.Fatal(err)
	}
	if c, ok, err := claimed(m, id(1), 0); ok || err != nil {
		t.Fatal(c, ok, err)
	}
	if err := m.Claim(bg, id(1), 0, b); !errors.Is(err, ErrLeaseGone) {
		t.Fatal(err)
	}
	if err := m.Claim(bg, id(9), 0, a); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
}

func TestManifestCommit(t *testing.T) {
	s, f := newFaulty(t)
	epoch := elect(t, s)
	im := must[*image.Image](t)(s.Commit(bg, epoch, image.Empty(), topic(1, "t", 3, nil)))
	m := s.Manifests()
	setEpoch := func(e int32) {
		t.Helper()
		im = must[*image.Image](t)(s.Commit(bg, epoch, im, []image.Change{image.SetPartition{
			PartitionRef: image.PartitionRef{TopicID: id(1)}, State: image.Partition{Leader: 1, LeaderEpoch: e}}}))
	}
	lostAnswer := func(c commit) (*clientv3.TxnResponse, error) { c(); return nil, rpctypes.ErrTimeout }
	neverSent := func(commit) (*clientv3.TxnResponse, error) { return nil, rpctypes.ErrTimeout }
	put := func(rev int64, e int32, head string) (int64, error) {
		return m.Commit(bg, CommitRequest{TopicID: id(1), Rev: rev, LeaderEpoch: e, Head: []byte(head)})
	}

	if head, rev, err := m.Load(bg, id(1), 0); head != nil || rev != 0 || err != nil {
		t.Fatal(head, rev, err)
	}
	r1 := must[int64](t)(put(0, 5, "one"))
	if _, err := put(0, 5, "again"); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	if _, err := put(r1, 4, "older"); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	if _, err := put(r1, 6, "from the future"); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}

	// The answer is lost: sent again, it finds its own write.
	f.once(lostAnswer)
	r2 := must[int64](t)(put(r1, 5, "two"))
	if head, rev, _ := m.Load(bg, id(1), 0); string(head) != "two" || rev != r2 {
		t.Fatalf("%q %d, want %d", head, rev, r2)
	}
	// An ISR change does not disturb commits; a new epoch does.
	setEpoch(5)
	r3 := must[int64](t)(put(r2, 5, "three"))

	// The first attempt is delayed in the network; the second is applied, and
	// the first, arriving later, is not.
	var delayed commit
	f.once(func(c commit) (*clientv3.TxnResponse, error) { delayed = c; return nil, rpctypes.ErrTimeout })
	r4 := must[int64](t)(put(r3, 5, "four"))
	if resp, err := delayed(); err == nil && resp.Succeeded {
		t.Fatal("applied twice")
	}
	// Applied, answer lost, and somebody replaced the head before the second
	// attempt: the caller has to look.
	f.once(func(c commit) (*clientv3.TxnResponse, error) {
		r := must[*clientv3.TxnResponse](t)(c())
		must[int64](t)(newStoreAt(t, s).Manifests().Commit(bg, CommitRequest{TopicID: id(1), Rev: r.Header.Revision, LeaderEpoch: 5, Head: []byte("compacted five")}))
		return nil, rpctypes.ErrTimeout
	})
	if _, err := put(r4, 5, "five"); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	_, r5, _ := m.Load(bg, id(1), 0)

	// The epoch moves while an attempt is open: not applied, and fenced.
	f.once(func(c commit) (*clientv3.TxnResponse, error) { setEpoch(6); return nil, rpctypes.ErrTimeout })
	if _, err := put(r5, 5, "six"); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	// Applied, then the epoch moves: committed all the same.
	f.once(func(c commit) (*clientv3.TxnResponse, error) { c(); setEpoch(7); return nil, rpctypes.ErrTimeout })
	r6 := must[int64](t)(put(r5, 6, "seven"))

	// Never answered: the outcome stays open.
	f.mu.Lock()
	f.txn = neverSent
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(bg, 100*time.Millisecond)
	defer cancel()
	if _, err := m.Commit(ctx, CommitRequest{TopicID: id(1), Rev: r6, LeaderEpoch: 7, Head: []byte("eight")}); !errors.Is(err, ErrAmbiguous) {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.txn = nil
	f.mu.Unlock()
	// An attempt that cannot have been sent is not ambiguous.
	if _, err := m.Commit(ctx, CommitRequest{TopicID: id(1), Rev: r6, LeaderEpoch: 7, Head: []byte("eight")}); errors.Is(err, ErrAmbiguous) || !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	// Refused by etcd's space quota: known not to be applied...
	f.once(func(commit) (*clientv3.TxnResponse, error) { return nil, rpctypes.ErrNoSpace })
	if _, err := put(r6, 7, "nine"); !errors.Is(err, ErrNoSpace) || errors.Is(err, ErrAmbiguous) {
		t.Fatal(err)
	}
	// ...unless an earlier attempt is open.
	f.once(func(c commit) (*clientv3.TxnResponse, error) {
		f.once(func(commit) (*clientv3.TxnResponse, error) { return nil, rpctypes.ErrNoSpace })
		return nil, rpctypes.ErrTimeout
	})
	if _, err := put(r6, 7, "nine"); !errors.Is(err, ErrAmbiguous) {
		t.Fatal(err)
	}
	if _, err := put(r6, 7, ""); err == nil {
		t.Fatal("empty head accepted")
	}
	if _, err := put(r6, 7, string(make([]byte, MaxHeadBytes+1))); err == nil {
		t.Fatal("huge head accepted")
	}

	// Heads in order, of all topics or one.
	for p := int32(1); p < 3; p++ {
		must[int64](t)(m.Commit(bg, CommitRequest{TopicID: id(1), Partition: p, LeaderEpoch: 5, Head: []byte{byte(p)}}))
	}
	var got []int32
	if err := m.Range(bg, func(h Head) error { got = append(got, h.Partition); return nil }); err != nil || !slices.Equal(got, []int32{0, 1, 2}) {
		t.Fatal(got, err)
	}

	// A live topic's head cannot be deleted.
	if err := m.Delete(bg, id(1), 0, r6); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	im = must[*image.Image](t)(s.Commit(bg, epoch, im, []image.Change{
		image.BuryTopic{Tombstone: image.Tombstone{ID: id(1), Name: "t", Partitions: 3}}}))
	// The topic is deleted: no commit any more, the heads are still there.
	if _, err := put(r6, 7, "ten"); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	dead := must[[]image.Tombstone](t)(m.Deleted(bg))
	if len(dead) != 1 || dead[0].Name != "t" || dead[0].Partitions != 3 || dead[0].ID != id(1) {
		t.Fatalf("%+v", dead)
	}
	if head, rev, err := m.Load(bg, id(1), 0); string(head) != "seven" || rev != r6 || err != nil {
		t.Fatalf("%q %d %v", head, rev, err)
	}
	if err := m.Delete(bg, id(1), 0, r6-1); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	for range 2 { // the second finds it gone
		if err := m.Delete(bg, id(1), 0, r6); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := m.DropTombstone(bg, id(1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := must[*clientv3.GetResponse](t)(s.client.Get(bg, s.keys.prefix+"manifest/", clientv3.WithPrefix(), clientv3.WithCountOnly())).Count; n != 0 {
		t.Fatalf("%d heads left", n)
	}
	if dead := must[[]image.Tombstone](t)(m.Deleted(bg)); len(dead) != 0 {
		t.Fatalf("%+v", dead)
	}
}

// newStoreAt is another store over the same keys, without the faults.
func newStoreAt(t testing.TB, s *Store) *Store {
	return New(Options{Client: client(t), Prefix: s.keys.prefix})
}

// etcd restored from an old backup: a linearizable answer below a revision that
// was seen before it was asked.
func TestRevisionRegression(t *testing.T) {
	s := newStore(t)
	epoch := elect(t, s)
	must[*image.Image](t)(s.Commit(bg, epoch, image.Empty(), topic(1, "t", 1, nil)))
	if s.Revision() == 0 {
		t.Fatal("no revision seen")
	}
	old := New(Options{Client: client(t), Prefix: s.keys.prefix, SeenRevision: s.Revision() + 1_000_000})
	if _, _, err := old.Manifests().Load(bg, id(1), 0); !errors.Is(err, ErrRevisionRegressed) {
		t.Fatal(err)
	}
	if !old.Regressed() {
		t.Fatal("not noticed")
	}
	// It stays so, and nothing is sent any more.
	for _, err := range []error{
		second(old.Manifests().Commit(bg, CommitRequest{TopicID: id(1), LeaderEpoch: 5, Head: []byte("x")})),
		old.Manifests().Delete(bg, id(1), 0, 1),
		old.Manifests().DropTombstone(bg, id(1)),
		second(old.Commit(bg, epoch, image.Empty(), topic(2, "u", 1, nil))),
		second(old.Load(bg)),
	} {
		if !errors.Is(err, ErrRevisionRegressed) {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Manifests().Load(bg, id(1), 0); err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestProducerIDs(t *testing.T) {
	s, f := newFaulty(t)
	var mu sync.Mutex
	seen := map[int64]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 10 {
				first, n, err := s.AllocateProducerIDs(bg)
				mu.Lock()
				if err != nil || n != ProducerIDBlock || first%ProducerIDBlock != 0 || seen[first] {
					t.Errorf("block %d of %d, seen %v: %v", first, n, seen[first], err)
				}
				seen[first] = true
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	// A block whose answer was lost is never handed out.
	f.once(func(c commit) (*clientv3.TxnResponse, error) { c(); return nil, rpctypes.ErrTimeout })
	first, _, err := s.AllocateProducerIDs(bg)
	if err != nil || first != 41*ProducerIDBlock {
		t.Fatal(first, err)
	}
}

// A session is taken over at once from an earlier process that had the same
// directory in the same place, and from any other not before its lease has run out:
// the same directory in another place is a copy.
func TestRegister(t *testing.T) {
	s := newStore(t)
	grant := func() int64 {
		lease, _, err := s.Grant(bg, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	first := image.Session{ID: 1, Incarnation: id(1), WAL: id(9), Place: "here", Lease: grant()}
	r1 := must[int64](t)(s.Register(bg, first, nil))
	if again := must[int64](t)(s.Register(bg, first, nil)); again != r1 {
		t.Fatal("the same registration twice")
	}
	if _, won, err := s.Campaign(bg, first.Lease, 1, id(1)); !won || err != nil {
		t.Fatal(err)
	}
	heir := image.Session{ID: 1, Incarnation: id(2), WAL: id(9), Place: "here", Lease: grant(), Endpoints: []image.Endpoint{{Listener: "PLAINTEXT", Host: "broker-1", Port: 9092, Protocol: "PLAINTEXT"}}}
	r2 := must[int64](t)(s.Register(bg, heir, nil))
	if r2 <= r1 {
		t.Fatal(r2, r1)
	}
	if err := s.KeepAlive(bg, first.Lease); !errors.Is(err, ErrLeaseGone) {
		t.Fatal(err)
	}
	if _, won, err := s.Campaign(bg, heir.Lease, 1, id(2)); !won || err != nil {
		t.Fatalf("the dead process still holds the election: %v", err)
	}
	for _, c := range []struct {
		other image.Session
		says  string
	}{
		{image.Session{WAL: id(8), Place: "there"}, "give each broker a node.id of its own"},
		{image.Session{WAL: id(9), Place: "there"}, "one of the two is a copy"},
		{image.Session{WAL: id(9)}, "one of the two is a copy"}, // nobody knows
	} {
		c.other.ID, c.other.Incarnation, c.other.Lease = 1, id(3), grant()
		_, err := s.Register(bg, c.other, nil)
		if !errors.Is(err, ErrDuplicateBroker) || !strings.Contains(err.Error(), "broker 1, which clients find at broker-1:9092") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c.other, err)
		}
		if err := s.KeepAlive(bg, heir.Lease); err != nil {
			t.Fatalf("the one that lives was disturbed: %v", err)
		}
	}
	// A process that does not know any more what became of its registration.
	again := heir
	again.Lease, again.Place = grant(), ""
	must[int64](t)(s.Register(bg, again, nil))
	// Where etcd is inside of the process, nobody else is alive.
	alone := New(Options{Client: s.client, Prefix: s.keys.prefix, Alone: true})
	dev := image.Session{ID: 1, Incarnation: id(4), WAL: id(7), Lease: grant()}
	must[int64](t)(alone.Register(bg, dev, nil))
	other := image.Session{ID: 1, Incarnation: id(3), WAL: id(8), Lease: grant()}
	for range 2 {
		if err := s.Revoke(bg, dev.Lease); err != nil {
			t.Fatal(err)
		}
	}
	must[int64](t)(s.Register(bg, other, nil))
}

// The mark of a log directory is written by who has the session alone, and a
// registration with one that was read before somebody else moved it is refused.
func TestMark(t *testing.T) {
	s, f := newFaulty(t)
	lease := func() int64 {
		lease, _, err := s.Grant(bg, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	held := must[HeldMark](t)(s.Mark(bg, 1))
	if held != (HeldMark{}) {
		t.Fatal(held)
	}
	me := image.Session{ID: 1, Incarnation: id(1), WAL: id(9), Place: "here", Lease: lease()}
	session := must[int64](t)(s.Register(bg, me, &held))
	none := held
	held = must[HeldMark](t)(s.PutMark(bg, 1, session, held, id(9), id(5)))
	if got := must[HeldMark](t)(s.Mark(bg, 1)); got != held || got.Mark != id(5) || got.WAL != id(9) {
		t.Fatalf("%+v, want %+v", got, held)
	}
	// An answer that was lost is asked for again.
	f.once(func(c commit) (*clientv3.TxnResponse, error) { c(); return nil, rpctypes.ErrTimeout })
	if _, err := s.PutMark(bg, 1, session, held, id(9), id(6)); !errors.Is(err, ErrAmbiguous) {
		t.Fatal(err)
	}
	before := held
	held = must[HeldMark](t)(s.PutMark(bg, 1, session, held, id(9), id(6)))
	if held.Mark != id(6) {
		t.Fatalf("%+v", held)
	}
	if _, err := s.PutMark(bg, 1, session, before, id(9), id(7)); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	heir := image.Session{ID: 1, Incarnation: id(2), WAL: id(9), Place: "here", Lease: lease()}
	if _, err := s.Register(bg, heir, &none); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
	heir.Lease = lease()
	must[int64](t)(s.Register(bg, heir, &held))
	if _, err := s.PutMark(bg, 1, session, held, id(9), id(8)); !errors.Is(err, ErrConflict) {
		t.Fatal("a mark from a session that is over: ", err)
	}
	if got := must[HeldMark](t)(s.Mark(bg, 1)); got != held {
		t.Fatalf("%+v, want %+v", got, held)
	}
}

func TestEnsureCluster(t *testing.T) {
	s, f := newFaulty(t)
	f.once(func(c commit) (*clientv3.TxnResponse, error) { c(); return nil, rpctypes.ErrTimeout })
	made := must[string](t)(s.EnsureCluster(bg, ""))
	if len(made) != 22 {
		t.Fatalf("cluster id %q", made)
	}
	if again := must[string](t)(s.EnsureCluster(bg, made)); again != made {
		t.Fatal(again)
	}
	if got, err := s.EnsureCluster(bg, "another"); err == nil || got != made {
		t.Fatal(got, err)
	}
}

// What was acknowledged is there after a restart, a second process is told, and
// a watch position that was compacted away says so.
func TestEmbedded(t *testing.T) {
	dir := t.TempDir()
	server, err := Embedded(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Embedded(dir, nil); !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
	s := New(Options{Client: server.Client()})
	cluster := must[string](t)(s.EnsureCluster(bg, ""))
	epoch := elect(t, s)
	im := must[*image.Image](t)(s.Commit(bg, epoch, image.Empty(), topic(1, "t", 200, nil)))
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if server, err = Embedded(dir, nil); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s = New(Options{Client: server.Client(), SeenRevision: im.Revision})
	loaded := must[*image.Image](t)(s.Load(bg))
	if loaded.ClusterID != cluster || len(loaded.Topic("t").Partitions) != 200 {
		t.Fatal(dump(loaded))
	}
	must[*clientv3.CompactResponse](t)(s.client.Compact(bg, loaded.Revision))
	if err := s.Watch(bg, WatchOptions{After: 1}, func(image.Delta) error { return nil }); !errors.Is(err, ErrCompacted) {
		t.Fatal(err)
	}
}

// etcd's quota is used up: writes say so, reads and leases go on, and it ends by
// itself when there is room again.
func TestOutOfSpace(t *testing.T) {
	server, err := embedded(t.TempDir(), nil, func(c *embed.Config) { c.QuotaBackendBytes = 4 << 20 })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s := New(Options{Client: server.Client()})
	lease, _, err := s.Grant(bg, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	epoch, _, err := s.Campaign(bg, lease, 1, id(1))
	if err != nil {
		t.Fatal(err)
	}
	im := must[*image.Image](t)(s.Commit(bg, epoch, image.Empty(), topic(1, "t", 1, nil)))
	var rev int64
	for err == nil {
		var next int64
		if next, err = s.Manifests().Commit(bg, CommitRequest{TopicID: id(1), Rev: rev, LeaderEpoch: 5, Head: bytes.Repeat([]byte("x"), MaxHeadBytes)}); err == nil {
			rev = next
		}
	}
	if !errors.Is(err, ErrNoSpace) || errors.Is(err, ErrAmbiguous) || !s.OutOfSpace() {
		t.Fatal(err)
	}
	if _, err := s.Commit(bg, epoch, im, topic(2, "u", 1, nil)); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if err := s.KeepAlive(bg, lease); err != nil {
		t.Fatal(err)
	}
	if _, got, err := s.Manifests().Load(bg, id(1), 0); err != nil || got != rev {
		t.Fatal(got, rev, err)
	}
	c := server.Client()
	must[*clientv3.CompactResponse](t)(c.Compact(bg, s.Revision(), clientv3.WithCompactPhysical()))
	if err := server.etcd.Server.Backend().Defrag(); err != nil {
		t.Fatal(err)
	}
	must[*clientv3.AlarmResponse](t)(c.AlarmDisarm(bg, &clientv3.AlarmMember{}))
	must[*image.Image](t)(s.Commit(bg, epoch, im, topic(2, "u", 1, nil)))
	if s.OutOfSpace() {
		t.Fatal("still out of space")
	}
}

func TestLogFilter(t *testing.T) {
	var out bytes.Buffer
	dir := t.TempDir()
	server, err := Embedded(dir, textLogger(&out))
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	for _, line := range strings.Split(out.String(), "\n") {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") {
			t.Errorf("a clean start and stop says: %s", line)
		}
	}
}

// The epoch that a manifest commit compares with can be read by itself: the
// collector asks for it before it calls an object an orphan.
func TestLeaderEpoch(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	id := [16]byte{9}
	if _, exists, err := s.Manifests().LeaderEpoch(ctx, id, 0); exists || err != nil {
		t.Fatalf("of no partition: %v %v", exists, err)
	}
	if _, err := s.client.Put(ctx, s.keys.epoch(id, 0), epochValue(7)); err != nil {
		t.Fatal(err)
	}
	if epoch, exists, err := s.Manifests().LeaderEpoch(ctx, id, 0); epoch != 7 || !exists || err != nil {
		t.Fatalf("epoch %d, %v, %v; want 7", epoch, exists, err)
	}
	if _, err := s.client.Put(ctx, s.keys.epoch(id, 0), `{"v":99,"epoch":7}`); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Manifests().LeaderEpoch(ctx, id, 0); !errors.Is(err, ErrFormat) {
		t.Fatalf("of another version: %v", err)
	}
}
