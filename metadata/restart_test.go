package metadata

import (
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
)

// listening starts an etcd that listens, as a cluster's etcd does.
func listening(t *testing.T, dir, addr string) *embed.Etcd {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "varve", filepath.Join(dir, "etcd")
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	u := url.URL{Scheme: "http", Host: addr}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls, cfg.ListenPeerUrls = []url.URL{u}, []url.URL{u}, nil
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-e.Server.ReadyNotify()
	return e
}

// etcd dies under a broker that is connected by the network, stays away for
// longer than a session, and comes back.
func TestEtcdRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	e := listening(t, dir, addr)
	client, err := etcd.Dial(bg, etcd.DialOptions{Endpoints: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	o := cluster{t: t}.baseOptions(1)
	o.Store = etcd.New(etcd.Options{Client: client, RequestTimeout: time.Second})
	o.SessionTimeout, o.HeartbeatInterval = time.Second, 100*time.Millisecond
	var rec recorder
	o.Events.Controlled = rec.add
	n := open(t, o)
	register(t, n)
	began := time.Now()
	create(t, n, "t", 1000)
	t.Logf("1,000 partitions over the network: %v", time.Since(began).Round(time.Millisecond))

	e.Close()
	eventually(t, "unwell", func() bool { return n.Healthy() != nil })
	if n.Image().Topic("t") == nil {
		t.Fatal("the image does not serve")
	}
	if r := n.CreateTopics(bg, []controller.NewTopic{{Name: "away"}}, false); r[0].ErrorCode != 7 {
		t.Fatalf("%+v", r)
	}
	e = listening(t, dir, addr)
	defer e.Close()
	began = time.Now()
	eventually(t, "well", func() bool { return n.Healthy() == nil && n.IsController() })
	t.Logf("well again %v after etcd was", time.Since(began).Round(time.Millisecond))
	create(t, n, "back", 1)
	if p := partitionState(n, "t", 999); p.Leader != 1 || p.LeaderEpoch != 0 {
		t.Fatalf("%+v", p)
	}
	if rec.has("fenced 1") {
		t.Fatal(rec.events)
	}
	n.Close()
}
