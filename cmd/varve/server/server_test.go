package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/config"
	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/vfs"
)

func options(t *testing.T, dir string, settings map[string]string) Options {
	t.Helper()
	set := config.DevDefaults()
	for k, v := range map[string]string{
		"listeners": "PLAINTEXT://127.0.0.1:0", "admin.listener": "127.0.0.1:0", "log.dirs": filepath.Join(dir, "wal"),
		"wal.segment.bytes": "4194304", "wal.max.bytes": "268435456", "memory.max.bytes": "268435456",
	} {
		set[k] = v
	}
	for k, v := range settings {
		set[k] = v
	}
	cfg, _, err := config.Build(config.FromMode("test", set), config.Machine{Hostname: "127.0.0.1", MemoryBytes: 4 << 30, Brokers: 1})
	if err != nil {
		t.Fatal(err)
	}
	return Options{Config: cfg, Dev: true, DataDir: dir, Logger: slog.New(slog.DiscardHandler), Version: "test"}
}

func body(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// An outage of the object store does not keep a broker down that has started on
// it before. A first start, or a store that says no, is refused.
func TestStartWithTheBucketAway(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	const hangs = -1
	var status atomic.Int32 // of every answer
	over := make(chan struct{})
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := status.Load()
		if _, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); key != "" && code == 200 && r.Method != http.MethodPut {
			code = 404 // nothing is kept
		}
		if code == hangs {
			select {
			case <-r.Context().Done():
			case <-over:
			}
		} else if code != 0 {
			w.WriteHeader(int(code))
		}
	}))
	defer store.Close()
	defer close(over)
	host := strings.TrimPrefix(store.URL, "http://")
	for _, url := range []string{"minio://" + host + "/bucket?attempts=1&create=true", "s3://bucket?attempts=1&region=us-east-1&endpoint=" + store.URL} {
		dir := t.TempDir()
		start := func(code int32) error {
			status.Store(code)
			s, err := Open(context.Background(), options(t, dir, map[string]string{"remote.storage.url": url}))
			if err == nil {
				err = s.Close(context.Background())
			}
			return err
		}
		if err := start(503); !errors.Is(err, objstore.ErrUnavailable) && !errors.Is(err, objstore.ErrThrottled) {
			t.Errorf("%s: first start while it is away: %v", url, err)
		}
		for _, code := range []int32{200, 503, hangs} {
			if err := start(code); err != nil {
				t.Errorf("%s: start with the store answering %d: %v", url, code, err)
			}
		}
		if err := start(403); !errors.Is(err, objstore.ErrDenied) {
			t.Errorf("%s: start without permission: %v", url, err)
		}
	}
}

// clientOf is a client of a broker that creates the topics it names.
func clientOf(t *testing.T, s *Server) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", s.Endpoints()[0].Port)), kgo.AllowAutoTopicCreation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// What Prometheus's own linter has to say about the names, types and help of
// everything that is served, and that there are series only of what happened.
func TestMetrics(t *testing.T) {
	o := options(t, t.TempDir(), map[string]string{"remote.storage.url": "mem://", "remote.flush.interval.ms": "3600000"})
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := clientOf(t, s).ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// What waits for its upload has an age.
	time.Sleep(2 * time.Millisecond)
	text := ""
	for !strings.Contains(text, `varve_requests_total{api="Produce"}`) { // counted when its answer is sent: the client may be first
		if ctx.Err() != nil {
			t.Fatal("the produce request is not counted")
		}
		_, text = body(t, s.AdminURL()+"/metrics")
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "varve_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	series := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || name == "#" {
			continue
		}
		if !strings.HasPrefix(name, "varve_") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("a metric of somebody else: %s", name)
		}
		series[name], _ = strconv.ParseFloat(value, 64)
	}
	if n := series[`varve_requests_total{api="Produce"}`]; n != 1 {
		t.Errorf("%v produce requests", n)
	}
	if _, there := series[`varve_requests_total{api="AddRaftVoter"}`]; there {
		t.Error("a series of an API that is not served")
	}
	if lag := series["varve_tier_upload_lag_seconds"]; lag <= 0 || lag > 120 {
		t.Errorf("an upload lag of %v s", lag)
	}
	if v := series[`varve_build_info{goversion="`+runtime.Version()+`",version="test"}`]; v != 1 {
		t.Error("no varve_build_info of this build")
	}
}

// beforeLog runs something when the log is about to be opened.
type beforeLog struct {
	vfs.OS
	f func()
}

func (b beforeLog) Free(dir string) (free, size int64, err error) {
	b.f()
	return b.OS.Free(dir)
}

// Readiness begins with the first client that is served and ends before the
// last one is sent away; health does neither.
func TestReadiness(t *testing.T) {
	dir := t.TempDir()
	addr, err := child.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	looked := make(chan error, 1)
	var once sync.Once
	o := options(t, dir, map[string]string{"admin.listener": addr, "remote.storage.url": "mem://"})
	// The log's first act is to ask the disk for its free space: an admin
	// listener that answers then answers through a long recovery.
	o.FS = beforeLog{f: func() {
		once.Do(func() {
			code, b := body(t, "http://"+addr+"/readyz")
			if code != 503 || !strings.Contains(b, errStarting.Error()) {
				looked <- errors.New("readyz while it starts: " + b)
				return
			}
			if code, b := body(t, "http://"+addr+"/healthz"); code != 200 {
				looked <- errors.New("healthz while it starts: " + b)
				return
			}
			looked <- nil
		})
	}}
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-looked; err != nil {
		t.Error(err)
	}
	if code, b := body(t, s.AdminURL()+"/readyz"); code != 200 {
		t.Errorf("readyz %d %s", code, b)
	}
	// The same broker once more: what is said is which directory is in use, not
	// that a port is.
	if _, err := Open(context.Background(), options(t, dir, map[string]string{"admin.listener": addr})); err == nil || strings.Contains(err.Error(), "admin.listener") {
		t.Errorf("a second broker: %v", err)
	}
	// Another broker on the same admin port.
	if _, err := Open(context.Background(), options(t, t.TempDir(), map[string]string{"admin.listener": addr})); err == nil || strings.Count(err.Error(), "admin.listener") != 1 {
		t.Errorf("a second broker with the same admin.listener: %v", err)
	}
	s.closing.Store(true)
	if code, b := body(t, s.AdminURL()+"/readyz"); code != 503 || !strings.Contains(b, errStopping.Error()) {
		t.Errorf("readyz while it drains: %d %s", code, b)
	}
	if code, b := body(t, s.AdminURL()+"/healthz"); code != 200 {
		t.Errorf("healthz while it drains: %d %s", code, b)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
