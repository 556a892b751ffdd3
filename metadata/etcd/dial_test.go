package etcd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/varve/varve/internal/child"
)

func textLogger(w *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(io.Writer(w), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// An etcd that listens with TLS, asks for a client certificate and for a
// password.
func TestDial(t *testing.T) {
	dir := t.TempDir()
	ca, server, other := certificates(t, dir)
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}

	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "varve", filepath.Join(dir, "etcd")
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	u, _ := url.Parse("https://" + addr)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls, cfg.ListenPeerUrls = []url.URL{*u}, []url.URL{*u}, nil
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = server+".pem", server+".key"
	cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = ca+".pem", true
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(slog.New(slog.DiscardHandler), new(atomic.Bool)))
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	<-e.Server.ReadyNotify()

	good := DialOptions{Endpoints: []string{addr}, CAFile: ca + ".pem", CertFile: server + ".pem", KeyFile: server + ".key"}
	c, err := Dial(bg, good)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := New(Options{Client: c, Prefix: "/tls"})
	if _, err := s.EnsureCluster(bg, ""); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*DialOptions){
		"no certificate of ours":   func(o *DialOptions) { o.CertFile, o.KeyFile = "", "" },
		"a foreign authority":      func(o *DialOptions) { o.CAFile = other + ".pem" },
		"a certificate and no key": func(o *DialOptions) { o.KeyFile = "" },
		"a missing file":           func(o *DialOptions) { o.CAFile = ca + ".nope" },
		"a file that is no PEM":    func(o *DialOptions) { o.CAFile = filepath.Join(dir, "text") },
		"no endpoints":             func(o *DialOptions) { o.Endpoints = nil },
	} {
		os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o600)
		o := good
		o.Timeout = 500 * time.Millisecond
		change(&o)
		if c, err := Dial(bg, o); err == nil {
			c.Close()
			t.Errorf("connected with %s", what)
		}
	}

	// A user where nobody is asked for one is worth a warning, and not one for
	// every attempt of the client to log in.
	logged := new(syncBuffer)
	o := good
	o.User, o.Password, o.Logger = "varve", "pass", slog.New(slog.NewTextHandler(logged, nil))
	u0, err := Dial(bg, o)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := u0.Get(bg, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := u0.Grant(bg, 60); err != nil {
			t.Fatal(err)
		}
	}
	u0.Close()
	if text := logged.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "etcd.user is set and etcd does not ask for it") {
		t.Errorf("logged\n%s", text)
	}

	// Passwords.
	auth := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(bg, 2*time.Minute)
	defer cancel()
	auth(second(c.RoleAdd(ctx, "root")))
	auth(second(c.UserAdd(ctx, "root", "secret")))
	auth(second(c.UserGrantRole(ctx, "root", "root")))
	auth(second(c.RoleAdd(ctx, "varve")))
	auth(second(c.RoleGrantPermission(ctx, "varve", "/varve/", clientv3.GetPrefixRangeEnd("/varve/"), clientv3.PermissionType(clientv3.PermReadWrite))))
	auth(second(c.UserAdd(ctx, "varve", "pass")))
	auth(second(c.UserGrantRole(ctx, "varve", "varve")))
	auth(second(c.RoleAdd(ctx, "other")))
	auth(second(c.RoleGrantPermission(ctx, "other", "/other/", clientv3.GetPrefixRangeEnd("/other/"), clientv3.PermissionType(clientv3.PermReadWrite))))
	auth(second(c.UserAdd(ctx, "other", "pass")))
	auth(second(c.UserGrantRole(ctx, "other", "other")))
	auth(second(c.AuthEnable(ctx)))
	o = good
	o.User, o.Password = "varve", "wrong"
	o.Timeout = time.Minute // checking a password is slow on purpose
	if _, err := Dial(bg, o); err == nil || !strings.Contains(err.Error(), "authentication failed") {
		t.Fatal(err)
	}
	o.Password = "pass"
	u1, err := Dial(bg, o)
	if err != nil {
		t.Fatal(err)
	}
	defer u1.Close()
	if _, err := New(Options{Client: u1}).EnsureCluster(bg, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Client: u1, Prefix: "/elsewhere"}).EnsureCluster(bg, ""); err == nil {
		t.Fatal("wrote where the user may not")
	}
	// A user who may see nothing but another cluster's keys.
	o.User = "other"
	if c, err := Dial(bg, o); err == nil {
		c.Close()
		t.Error("connected although the cluster's keys may not be read")
	}
	o.Prefix = "/other"
	u2, err := Dial(bg, o)
	if err != nil {
		t.Fatal(err)
	}
	defer u2.Close()
	if _, err := New(Options{Client: u2, Prefix: o.Prefix}).EnsureCluster(bg, ""); err != nil {
		t.Fatal(err)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// What cannot be reached is said with the reason, and once.
func TestDialNobody(t *testing.T) {
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	logged := new(syncBuffer)
	_, err = Dial(bg, DialOptions{Endpoints: []string{"http://" + addr}, Timeout: time.Second, Logger: slog.New(slog.NewTextHandler(logged, nil))})
	if err == nil || !strings.Contains(err.Error(), "http://"+addr) || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "within 1s") {
		t.Errorf("%v", err)
	}
	// The warnings of the client, of which there is one for each attempt of a
	// call.
	core := zapLogger(slog.New(slog.NewTextHandler(logged, nil)), new(atomic.Bool))
	before := strings.Count(logged.String(), "level=WARN")
	for range 5 {
		core.Warn("an attempt failed")
	}
	core.Warn("something else")
	if n := strings.Count(logged.String(), "level=WARN") - before; n != 2 {
		t.Errorf("%d warnings, want one of each\n%s", n, logged)
	}
}

// certificates writes an authority, a certificate it signed for 127.0.0.1, and
// another authority.
func certificates(t *testing.T, dir string) (ca, server, other string) {
	t.Helper()
	serial := int64(0)
	write := func(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: parent == nil, BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			parent, parentKey = c, key
		} else {
			c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(dir, name)
		for file, block := range map[string]*pem.Block{
			base + ".pem": {Type: "CERTIFICATE", Bytes: der},
			base + ".key": {Type: "EC PRIVATE KEY", Bytes: keyDER},
		} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return c, key
	}
	cert, key := write("authority", nil, nil)
	write("node", cert, key)
	write("stranger", nil, nil)
	return filepath.Join(dir, "authority"), filepath.Join(dir, "node"), filepath.Join(dir, "stranger")
}
