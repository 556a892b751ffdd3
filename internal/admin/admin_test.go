package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func get(t *testing.T, h http.Handler, method, target string, edit func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "127.0.0.1:55555"
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func testOptions() Options {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_test_total", Help: "A counter."})
	reg.MustRegister(c)
	c.Add(7)
	return Options{
		Registry: reg,
		Tier: func(topic string) ([]TierStatus, error) {
			switch topic {
			case "gone":
				return nil, fmt.Errorf("%w: gone", ErrUnknownTopic)
			case "sick":
				return nil, errors.New("manifest unreadable")
			case "empty":
				return nil, nil
			}
			return []TierStatus{
				{Topic: "b", Partition: 0},
				{Topic: "a", Partition: 1, LogStart: 1, LocalStart: 2, RemoteEnd: 3, HighWatermark: 4, Objects: 5, Bytes: 1 << 40, UploadLagMs: 6},
				{Topic: "a", Partition: 0},
			}, nil
		},
	}
}

func TestEndpoints(t *testing.T) {
	o := testOptions()
	o.Ready = func() error {
		return fmt.Errorf("starting: %w", errors.New("etcd has no leader"))
	}
	h := Handler(o, true)
	for _, c := range []struct {
		target string
		code   int
		body   string
	}{
		{"http://127.0.0.1:9644/healthz", 200, `{"status":"ok"}`},
		{"http://localhost/readyz", 503, `{"status":"unavailable","reasons":["starting: etcd has no leader"]}`},
		{"http://[::1]:9644/metrics", 200, "varve_test_total 7"},
		{"http://127.0.0.1/v1/tier?topic=gone", 404, `topic \"gone\" does not exist`},
		{"http://127.0.0.1/v1/tier?topic=sick", 500, "manifest unreadable"},
		{"http://127.0.0.1/v1/tier?topic=empty", 200, "[]\n"},
		{"http://127.0.0.1/v1/tier?topic=" + strings.Repeat("x", 250), 400, "at most 249"},
		{"http://127.0.0.1/v1/tier", 200, `{"topic":"a","partition":1,"log_start":1,"local_start":2,"remote_end":3,"high_watermark":4,"objects":5,"bytes":1099511627776,"upload_lag_ms":6}`},
		{"http://127.0.0.1/nothing", 404, ""},
		{"http://127.0.0.1/debug/pprof/", 200, "goroutine"},
		{"http://127.0.0.1/debug/pprof/../../etc/passwd", 307, ""},
	} {
		w := get(t, h, "GET", c.target, nil)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("GET %s: %d %q, want %d with %q", c.target, w.Code, w.Body, c.code, c.body)
		}
	}
}

func TestTierIsSorted(t *testing.T) {
	var list []TierStatus
	if err := json.Unmarshal(get(t, Handler(testOptions(), true), "GET", "http://127.0.0.1/v1/tier", nil).Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, s := range list {
		got += fmt.Sprintf("%s/%d ", s.Topic, s.Partition)
	}
	if got != "a/0 a/1 b/0 " {
		t.Errorf("order %q", got)
	}
}

func TestJoinedReasons(t *testing.T) {
	o := Options{Health: func() error {
		return errors.Join(errors.New("wal: failed"), errors.Join(errors.New("bucket: denied"), errors.New("etcd: away")))
	}}
	w := get(t, Handler(o, true), "GET", "http://127.0.0.1/healthz", nil)
	want := `{"status":"unavailable","reasons":["wal: failed","bucket: denied","etcd: away"]}` + "\n"
	if w.Code != 503 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// What is not well is told beside the answer, and is no reason to say no.
func TestWarnings(t *testing.T) {
	var ready error
	h := Handler(Options{Ready: func() error { return ready }, Warn: func() error { return errors.Join(errors.New("compaction: stuck"), errors.New("etcd: away")) }}, true)
	for _, c := range []struct {
		path string
		err  error
		code int
		want string
	}{
		{"/readyz", nil, 200, `{"status":"ok","warnings":["compaction: stuck","etcd: away"]}`},
		{"/healthz", nil, 200, `{"status":"ok","warnings":["compaction: stuck","etcd: away"]}`},
		{"/readyz", errors.New("starting"), 503, `{"status":"unavailable","reasons":["starting"],"warnings":["compaction: stuck","etcd: away"]}`},
	} {
		ready = c.err
		if w := get(t, h, "GET", "http://127.0.0.1"+c.path, nil); w.Code != c.code || strings.TrimSpace(w.Body.String()) != c.want {
			t.Errorf("%s: %d %s, want %d %s", c.path, w.Code, w.Body, c.code, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	h := Handler(testOptions(), true)
	for _, c := range []struct {
		name, method, target string
		edit                 func(*http.Request)
		code                 int
	}{
		{"a page of another origin posts", "POST", "http://127.0.0.1/healthz", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		{"a browser says cross-site", "POST", "http://127.0.0.1/healthz", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		{"a name that resolves to loopback", "GET", "http://evil.example:9644/metrics", nil, 403},
		{"any post", "POST", "http://127.0.0.1/v1/tier", nil, 405},
		{"delete", "DELETE", "http://127.0.0.1/v1/tier", nil, 405},
		{"1 GB body", "GET", "http://127.0.0.1/healthz", func(r *http.Request) { r.ContentLength = 1 << 30 }, 413},
		{"a profile for a remote peer that claims to be local", "GET", "http://127.0.0.1/debug/pprof/heap", func(r *http.Request) {
			r.RemoteAddr = "192.0.2.7:1234"
			r.Header.Set("X-Forwarded-For", "127.0.0.1")
			r.Header.Set("X-Real-IP", "127.0.0.1")
		}, 403},
	} {
		if w := get(t, h, c.method, c.target, c.edit); w.Code != c.code {
			t.Errorf("%s: %d %s, want %d", c.name, w.Code, w.Body, c.code)
		}
	}
}

func TestNoProfilesOffLoopback(t *testing.T) {
	h := Handler(testOptions(), false)
	if w := get(t, h, "GET", "http://broker-1:9644/debug/pprof/heap", nil); w.Code != 404 {
		t.Errorf("profile: %d", w.Code)
	}
	if w := get(t, h, "GET", "http://broker-1:9644/metrics", nil); w.Code != 200 {
		t.Errorf("metrics: %d", w.Code)
	}
}

// A probe that hangs takes slots until none is left; then the answer is 503 at once, and the slots come back.
func TestHangingProbeIsBounded(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{}, maxInFlight)
	h := Handler(Options{Health: func() error { started <- struct{}{}; <-release; return nil }}, true)
	answers := make(chan int, maxInFlight)
	for range maxInFlight {
		go func() { answers <- get(t, h, "GET", "http://127.0.0.1/healthz", nil).Code }()
	}
	for range maxInFlight {
		<-started
	}
	if w := get(t, h, "GET", "http://127.0.0.1/readyz", nil); w.Code != 503 {
		t.Errorf("with all slots taken: %d", w.Code)
	}
	close(release)
	for range maxInFlight {
		if code := <-answers; code != 200 {
			t.Errorf("released probe: %d", code)
		}
	}
	if w := get(t, h, "GET", "http://127.0.0.1/readyz", nil); w.Code != 200 {
		t.Errorf("afterwards: %d", w.Code)
	}
}

func TestOpenClose(t *testing.T) {
	o := testOptions()
	o.Listen = "127.0.0.1:0"
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(s.URL() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || string(b) != "{\"status\":\"ok\"}\n" {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	if _, err := Open(Options{Listen: s.Addr().String()}); err == nil || !strings.Contains(err.Error(), "admin.listener "+s.Addr().String()) {
		t.Errorf("second listener on the same port: %v", err)
	}

	// A connection that sends no request does not hold up Close.
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("connection still open after Close")
	}
}
