// Package servertest runs a whole broker inside a test process: the real log on
// a temporary directory, the real embedded etcd, a bucket in memory (or the
// one given), real sockets on loopback.
package servertest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
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
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/cmd/varve/server"
	"github.com/varve/varve/config"
	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/vfs"
)

// Options of a broker under test.
type Options struct {
	// Settings are Kafka's, over those of `varve dev` and the small sizes that
	// tests want.
	Settings map[string]string
	// Of is what differs between the brokers of a cluster; it may be nil.
	Of     func(id int) map[string]string
	Bucket objstore.Bucket // nil: one in memory that outlives restarts
	FS     vfs.FS          // of the log; nil: the operating system's
	Log    io.Writer       // what the broker says; nil: nowhere
}

// Broker is a broker under test.
type Broker struct {
	tb testing.TB
	o  Options
	// acceptCorruptLog is what the flag of that name does.
	acceptCorruptLog bool

	dir    string
	addr   string
	s      *server.Server
	bucket *objstore.Faulty // if FS is a vfs.Mem

	// Of a cluster.
	id   int
	etcd *clientv3.Client
}

// Start runs a broker until the test ends.
func Start(tb testing.TB, o Options) *Broker {
	tb.Helper()
	if o.Bucket == nil {
		o.Bucket = objstore.NewMem()
	}
	b := &Broker{tb: tb, o: o, dir: tb.TempDir(), addr: freeAddr(tb), id: 1}
	if _, ok := o.FS.(*vfs.Mem); ok {
		b.bucket = objstore.NewFaulty(o.Bucket, 1)
		b.o.Bucket = b.bucket
	}
	b.start()
	return b
}

func (b *Broker) start() {
	b.tb.Helper()
	if err := b.open(); err != nil {
		b.tb.Fatal(err)
	}
	b.tb.Cleanup(b.Stop)
}

// Secret is the cluster's, by which its brokers know each other.
func (b *Broker) Secret() []byte {
	b.tb.Helper()
	secret, err := etcd.New(etcd.Options{Client: b.etcd, Prefix: b.s.EtcdPrefix()}).EnsureSecret(context.Background())
	if err != nil {
		b.tb.Fatal(err)
	}
	return secret
}

// LoseSession has the broker's session run out, and waits until it has
// registered again, as the same process.
func (b *Broker) LoseSession() {
	b.tb.Helper()
	session := func() (lease int64) {
		all, err := b.etcd.Get(context.Background(), b.s.EtcdPrefix(), clientv3.WithPrefix())
		if err != nil {
			b.tb.Fatal(err)
		}
		for _, kv := range all.Kvs {
			if strings.HasSuffix(string(kv.Key), fmt.Sprintf("image/session/%010d", b.id)) {
				lease = kv.Lease
			}
		}
		return lease
	}
	before := session()
	if _, err := b.etcd.Revoke(context.Background(), clientv3.LeaseID(before)); err != nil {
		b.tb.Fatal(err)
	}
	Eventually(b.tb, func() error {
		if now := session(); now == 0 || now == before {
			return fmt.Errorf("broker %d has no new session", b.id)
		}
		return nil
	})
}

// StartCluster runs n brokers, with the ids 1 to n, over one etcd and one bucket.
func StartCluster(tb testing.TB, n int, o Options) []*Broker {
	tb.Helper()
	store, err := etcd.Embedded(tb.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { store.Close() })
	if o.Bucket == nil {
		o.Bucket = objstore.NewMem()
	}
	brokers := make([]*Broker, n)
	for i := range brokers {
		brokers[i] = &Broker{tb: tb, o: o, dir: tb.TempDir(), addr: freeAddr(tb), id: i + 1, etcd: store.Client()}
		brokers[i].start()
	}
	return brokers
}

func freeAddr(tb testing.TB) string {
	tb.Helper()
	addr, err := child.FreeAddr()
	if err != nil {
		tb.Fatal(err)
	}
	return addr
}

func (b *Broker) open() error {
	defaults := config.DevDefaults()
	for k, v := range map[string]string{
		"listeners":                "PLAINTEXT://" + b.addr,
		"log.dirs":                 filepath.Join(b.dir, "wal"),
		"admin.listener":           "127.0.0.1:0",
		"remote.flush.interval.ms": "100",
		"wal.segment.bytes":        "4194304",
		"wal.max.bytes":            "1073741824",
		"memory.max.bytes":         "1073741824",
		"node.id":                  strconv.Itoa(b.id),
	} {
		defaults[k] = v
	}
	var set []string
	for k, v := range b.o.Settings {
		set = append(set, k+"="+v)
	}
	if b.o.Of != nil {
		for k, v := range b.o.Of(b.id) {
			set = append(set, k+"="+v)
		}
	}
	brokers := 1
	if b.etcd != nil {
		brokers = 0 // not known at start
	}
	flags, err := config.FromFlags(set)
	if err != nil {
		return err
	}
	cfg, _, err := config.Build(config.Merge(config.FromMode("test", defaults), flags), config.Machine{Hostname: "127.0.0.1", MemoryBytes: 4 << 30, Brokers: brokers})
	if err != nil {
		return err
	}
	var w io.Writer = io.Discard
	if b.o.Log != nil {
		w = b.o.Log
	}
	if os.Getenv("VARVE_TEST_LOG") != "" {
		w = os.Stderr
	}
	s, err := server.Open(context.Background(), server.Options{
		Config: cfg, Dev: true, DataDir: b.dir, Bucket: unclosed{b.o.Bucket}, FS: b.o.FS, AcceptCorruptLog: b.acceptCorruptLog, Etcd: b.etcd,
		Logger: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test",
	})
	b.s = s
	return err
}

// unclosed keeps a bucket over a restart of the broker.
type unclosed struct{ objstore.Bucket }

func (unclosed) Close() error { return nil }

// Addr is the bootstrap server.
func (b *Broker) Addr() string { return b.addr }

// Dir is where the broker keeps what it keeps; the log is in Dir()/wal.
func (b *Broker) Dir() string { return b.dir }

// AdminURL is where metrics and health are.
func (b *Broker) AdminURL() string { return b.s.AdminURL() }

// Server is the running server.
func (b *Broker) Server() *server.Server { return b.s }

// Stop ends the broker in order; stopping twice is no error.
func (b *Broker) Stop() {
	if b.s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s := b.s
	b.s = nil
	if err := s.Close(ctx); err != nil && b.tb.Context().Err() == nil {
		b.tb.Logf("close: %v", err)
	}
}

// Restart stops the broker, lets meanwhile do something to what it left, and
// starts it again on the same directory and address.
func (b *Broker) Restart(meanwhile func()) error {
	b.tb.Helper()
	b.Stop()
	if meanwhile != nil {
		meanwhile()
	}
	return b.open()
}

// AcceptCorruptLog is what the flag of that name does, from the next restart on.
func (b *Broker) AcceptCorruptLog() { b.acceptCorruptLog = true }

// RestartOn starts the broker again on another disk, such as what a crash left
// of the one it had.
func (b *Broker) RestartOn(disk vfs.FS) error {
	b.tb.Helper()
	b.Stop()
	b.o.FS = disk
	return b.open()
}

// PowerFailure takes the power of a broker whose FS is a vfs.Mem, and starts it
// again on what that left of the disk. The process goes on for a moment, and
// meanwhile may wait for its clients; of what it still takes nothing reaches the
// bucket.
func (b *Broker) PowerFailure(seed uint64, meanwhile func()) error {
	b.tb.Helper()
	b.bucket.SetOutage(true)
	disk := b.o.FS.(*vfs.Mem).Crash(seed)
	if meanwhile != nil {
		meanwhile()
	}
	b.Stop()
	b.bucket.SetOutage(false)
	return b.RestartOn(disk)
}

// Client is a franz-go client of the broker, closed when the test ends.
func (b *Broker) Client(opts ...kgo.Opt) *kgo.Client {
	b.tb.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.addr)}, opts...)...)
	if err != nil {
		b.tb.Fatal(err)
	}
	b.tb.Cleanup(cl.Close)
	return cl
}

// CreateTopic makes a topic with settings given as name, value, name, value.
func (b *Broker) CreateTopic(name string, partitions int32, settings ...string) {
	b.tb.Helper()
	b.CreateReplicated(name, partitions, 1, settings...)
}

// CreateReplicated is CreateTopic with a replication factor. Every broker that runs
// has heard of the topic then.
func (b *Broker) CreateReplicated(name string, partitions int32, replicas int16, settings ...string) {
	b.tb.Helper()
	conf := map[string]*string{}
	for i := 0; i+1 < len(settings); i += 2 {
		conf[settings[i]] = &settings[i+1]
	}
	cl := b.Client()
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(context.Background(), partitions, replicas, conf, name); err != nil {
		b.tb.Fatalf("create topic %s: %v", name, err)
	}
	brokers, err := adm.ListBrokers(context.Background())
	if err != nil {
		b.tb.Fatalf("brokers that hear of topic %s: %v", name, err)
	}
	for _, at := range brokers.NodeIDs() {
		Eventually(b.tb, func() error {
			req := kmsg.NewPtrMetadataRequest()
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = &name
			req.Topics = append(req.Topics, t)
			resp, err := req.RequestWith(context.Background(), cl.Broker(int(at)))
			if err != nil {
				return nil // it does not run
			}
			return kerr.ErrorForCode(resp.Topics[0].ErrorCode)
		})
	}
}

// Agree waits until the brokers that run say the same of the cluster and its topics. Who changed something was answered when the
// controller had heard of it: the others hear of it by then, too, and a client that may ask any of them is told of it.
func Agree(tb testing.TB, brokers []*Broker) {
	tb.Helper()
	var addrs []string
	for _, b := range brokers {
		if b.s != nil {
			addrs = append(addrs, b.addr)
		}
	}
	AgreeAt(tb, addrs...)
}

// AgreeAt is Agree for brokers at addresses.
func AgreeAt(tb testing.TB, addrs ...string) {
	tb.Helper()
	var asked []*kgo.Broker
	for _, addr := range addrs {
		cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
		if err != nil {
			tb.Fatal(err)
		}
		defer cl.Close()
		asked = append(asked, cl.SeedBrokers()[0])
	}
	Eventually(tb, func() error {
		var first string
		for i, b := range asked {
			said, err := heard(b)
			switch {
			case err != nil:
				return err
			case i == 0:
				first = said
			case said != first:
				return fmt.Errorf("one broker has heard\n%s\nand another\n%s", first, said)
			}
		}
		return nil
	})
}

// heard is what a broker says of the cluster and its topics, each in an order that is the same at all brokers.
func heard(b *kgo.Broker) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req := kmsg.NewPtrDescribeClusterRequest()
	req.EndpointType, req.IncludeFencedBrokers = 1, true
	resp, err := b.RetriableRequest(ctx, req)
	if err != nil {
		return "", err
	}
	cluster := resp.(*kmsg.DescribeClusterResponse)
	if resp, err = b.RetriableRequest(ctx, kmsg.NewPtrMetadataRequest()); err != nil {
		return "", err
	}
	topics := resp.(*kmsg.MetadataResponse).Topics
	slices.SortFunc(cluster.Brokers, func(a, b kmsg.DescribeClusterResponseBroker) int { return cmp.Compare(a.NodeID, b.NodeID) })
	slices.SortFunc(topics, func(a, b kmsg.MetadataResponseTopic) int { return cmp.Compare(*a.Topic, *b.Topic) })
	var out strings.Builder
	fmt.Fprintf(&out, "controller %d\n", cluster.ControllerID)
	for _, one := range cluster.Brokers {
		fmt.Fprintf(&out, "broker %d at %s:%d, fenced %v", one.NodeID, one.Host, one.Port, one.IsFenced)
		one.UnknownTags.Each(func(tag uint32, v []byte) { fmt.Fprintf(&out, ", tag %d: %x", tag, v) })
		out.WriteByte('\n')
	}
	for _, t := range topics {
		fmt.Fprintf(&out, "topic %s %x\n", *t.Topic, t.TopicID)
		for _, p := range t.Partitions {
			fmt.Fprintf(&out, "  %d: leader %d, epoch %d, replicas %v, in sync %v, offline %v\n", p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR, p.OfflineReplicas)
		}
	}
	return out.String(), nil
}

// Eventually waits until f reports no error; after a minute, or 20 with
// VARVE_LONG=1, it fails the test with the last one.
func Eventually(tb testing.TB, f func() error) {
	tb.Helper()
	patience := time.Minute
	if os.Getenv("VARVE_LONG") == "1" {
		patience = 20 * time.Minute
	}
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("still, after %s: %v", patience, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Remote waits until everything of a topic is in the bucket, and, with local
// set, until none of it is in the local log any more.
func (b *Broker) Remote(topic string, local bool) {
	b.tb.Helper()
	Eventually(b.tb, func() error {
		list, err := b.s.TierStatus(topic)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("no partition of %s is led", topic)
		}
		for _, st := range list {
			if st.RemoteEnd < st.HighWatermark {
				return fmt.Errorf("%s-%d: remote end %d, high watermark %d", st.Topic, st.Partition, st.RemoteEnd, st.HighWatermark)
			}
			if local && st.LocalStart < st.RemoteEnd {
				return fmt.Errorf("%s-%d: local start %d, remote end %d", st.Topic, st.Partition, st.LocalStart, st.RemoteEnd)
			}
		}
		return nil
	})
}
