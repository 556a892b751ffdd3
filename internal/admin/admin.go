// Package admin serves the admin listener: metrics, health, readiness and the tier status that `varve tier status`
// prints. It only reads: no endpoint changes anything, so GET and HEAD are the only methods served.
//
// What must hold, because the listener has no authentication:
//
//   - It is on loopback unless it is configured otherwise, and then it says so in the log.
//   - On loopback, a Host header that names another machine is refused. Without this, a web page that a person opens
//     could reach the listener through a name that it resolves to 127.0.0.1.
//   - Profiles are served only on a loopback listener, to a loopback peer. X-Forwarded-* headers are never read, so
//     they cannot make a peer look local.
//   - Every request is bounded: header size, body, time, how many connections, how many at once. A stuck probe function
//     costs the requests that wait for it, never the process.
package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// DefaultListen is the address of the admin listener where none is configured.
const DefaultListen = "127.0.0.1:9644"

// ErrUnknownTopic is what Options.Tier returns (wrapped or bare) for a topic that does not exist; it becomes a 404.
var ErrUnknownTopic = errors.New("unknown topic")

// TierStatus says where the records of one partition are. [LogStart, RemoteEnd) is in the bucket, [LocalStart,
// HighWatermark) on this broker's disk; a partition is drained when LocalStart == RemoteEnd == HighWatermark.
type TierStatus struct {
	Topic         string `json:"topic"`
	Partition     int32  `json:"partition"`
	LogStart      int64  `json:"log_start"`
	LocalStart    int64  `json:"local_start"`
	RemoteEnd     int64  `json:"remote_end"`
	HighWatermark int64  `json:"high_watermark"`
	Objects       int64  `json:"objects"`       // live entries of the committed manifest
	Bytes         int64  `json:"bytes"`         // their size in the bucket
	UploadLagMs   int64  `json:"upload_lag_ms"` // age of the oldest committed record that is not in the bucket; 0 if none
}

// Retired is an object that waits to be deleted from the bucket, or a deleted topic with all its objects.
type Retired struct {
	Object    string    `json:"object"`    // empty: a deleted topic
	Topic     string    `json:"topic"`     // empty: an object of several partitions, or of a topic that is gone
	Partition int32     `json:"partition"` // -1: of a deleted topic
	Bytes     int64     `json:"bytes"`     // of record batches that were let go; 0: not known
	Since     time.Time `json:"since"`
	Earliest  time.Time `json:"earliest"` // when it is deleted, if no manifest names it then
}

// Options say what to serve and where. Nil functions are answered with 404, except Health and Ready, which then
// always succeed.
type Options struct {
	Listen   string              // host:port; empty means DefaultListen
	Registry prometheus.Gatherer // the process's own registry; never Prometheus's default one
	Health   func() error        // nil: alive. An errors.Join becomes several reasons
	Ready    func() error        // nil: able to do what it is for
	Warn     func() error        // what is not well although it is ready: told beside the answer of both, whose status it does not change
	Tier     func(topic string) ([]TierStatus, error)
	Retired  func() ([]Retired, error)
	Logger   *slog.Logger
}

// Bounds of the listener. They are not settings: nobody has a reason to raise them, and a probe or a scraper stays
// far below.
const (
	maxConnections = 128
	maxInFlight    = 32
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
	maxTopicName   = 249
	answerTimeout  = 10 * time.Second
	closeTimeout   = 2 * time.Second
)

// Server is the running admin listener. Open starts it, Close returns after its goroutine has ended.
type Server struct {
	http *http.Server
	ln   net.Listener
	done chan struct{}
	once sync.Once
	err  error
}

// Open listens and serves until Close.
func Open(o Options) (*Server, error) {
	if o.Listen == "" {
		o.Listen = DefaultListen
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("admin.listener %s: %w", o.Listen, err)
	}
	local := isLoopback(ln.Addr().String())
	if !local {
		o.Logger.Warn("the admin listener has no authentication and is reachable from other machines; put it on 127.0.0.1 unless the network is trusted",
			"admin.listener", ln.Addr().String())
	}
	s := &Server{
		ln:   netutil.LimitListener(ln, maxConnections),
		done: make(chan struct{}),
		http: &http.Server{
			Handler:           Handler(o, local),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      90 * time.Second, // a CPU profile may run for a minute
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		},
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
			o.Logger.Error("admin listener stopped", "error", err)
		}
	}()
	return s, nil
}

// Addr is the address that was bound, with the port that was chosen if the configured one was 0.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// URL is the base URL of the listener, as --admin-url wants it.
func (s *Server) URL() string { return "http://" + s.ln.Addr().String() }

// Close stops accepting, gives running requests a moment, and cuts those that remain. It may be called more than once.
func (s *Server) Close() error {
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			s.err = s.http.Close()
		}
		<-s.done
	})
	return s.err
}

// Handler is what the listener serves; loopback says whether it listens on loopback only.
func Handler(o Options, loopback bool) http.Handler {
	mux := http.NewServeMux()
	quick := func(h http.HandlerFunc) http.Handler {
		return http.TimeoutHandler(h, answerTimeout, `{"error":"no answer within `+answerTimeout.String()+`"}`)
	}
	mux.Handle("GET /healthz", quick(probe(o.Health, o.Warn)))
	mux.Handle("GET /readyz", quick(probe(o.Ready, o.Warn)))
	if o.Tier != nil {
		mux.Handle("GET /v1/tier", quick(tier(o.Tier)))
	}
	if o.Retired != nil {
		mux.Handle("GET /v1/tier/retired", quick(retired(o.Retired)))
	}
	if o.Registry != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{
			Timeout:             answerTimeout,
			MaxRequestsInFlight: 4,
			// A collector that fails must not hide the others.
			ErrorHandling: promhttp.ContinueOnError,
		}))
	}
	if loopback {
		mux.Handle("GET /debug/pprof/", localPeer(pprof.Index))
		mux.Handle("GET /debug/pprof/cmdline", localPeer(pprof.Cmdline))
		mux.Handle("GET /debug/pprof/profile", localPeer(pprof.Profile))
		mux.Handle("GET /debug/pprof/symbol", localPeer(pprof.Symbol))
		mux.Handle("GET /debug/pprof/trace", localPeer(pprof.Trace))
	}
	return bounded(mux, loopback)
}

// bounded holds what is true of every request, whatever its path.
func bounded(next http.Handler, loopback bool) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	slots := make(chan struct{}, maxInFlight)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if loopback && !isLoopback(r.Host) {
			fail(w, http.StatusForbidden, "this listener is on loopback and answers only to a loopback name in the Host header")
			return
		}
		if err := crossOrigin.Check(r); err != nil {
			fail(w, http.StatusForbidden, "cross-origin request refused")
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			fail(w, http.StatusMethodNotAllowed, "this listener serves GET and HEAD only")
			return
		}
		if r.ContentLength > maxBodyBytes {
			fail(w, http.StatusRequestEntityTooLarge, "no request here has a body")
			return
		}
		// Nothing reads the body; this bounds what the server drains before it reuses the connection.
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			h.Set("Retry-After", "1")
			fail(w, http.StatusServiceUnavailable, "too many requests at once")
			return
		}
		next.ServeHTTP(w, r)
	})
}

type probeAnswer struct {
	Status   string   `json:"status"` // "ok" or "unavailable"
	Reasons  []string `json:"reasons,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

func probe(check, warn func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		a, code := probeAnswer{Status: "ok"}, http.StatusOK
		if check != nil {
			if a.Reasons = reasons(check()); a.Reasons != nil {
				a.Status, code = "unavailable", http.StatusServiceUnavailable
			}
		}
		if warn != nil {
			a.Warnings = reasons(warn())
		}
		answer(w, code, a)
	}
}

// reasons takes a joined error apart, so that each failed check is a reason of its own; nil for no error.
func reasons(err error) []string {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []string{err.Error()}
	}
	var out []string
	for _, e := range joined.Unwrap() {
		out = append(out, reasons(e)...)
	}
	return out
}

func tier(status func(string) ([]TierStatus, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		topic := r.URL.Query().Get("topic")
		if len(topic) > maxTopicName {
			fail(w, http.StatusBadRequest, fmt.Sprintf("topic: a name has at most %d characters, this one %d", maxTopicName, len(topic)))
			return
		}
		list, err := status(topic)
		switch {
		case errors.Is(err, ErrUnknownTopic):
			fail(w, http.StatusNotFound, fmt.Sprintf("topic %q does not exist", topic))
			return
		case err != nil:
			fail(w, http.StatusInternalServerError, err.Error())
			return
		case list == nil:
			list = []TierStatus{} // an array, also when empty
		}
		sort.Slice(list, func(i, j int) bool {
			if list[i].Topic != list[j].Topic {
				return list[i].Topic < list[j].Topic
			}
			return list[i].Partition < list[j].Partition
		})
		answer(w, http.StatusOK, list)
	}
}

func retired(list func() ([]Retired, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		all, err := list()
		if err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
		if all == nil {
			all = []Retired{}
		}
		slices.SortFunc(all, func(a, b Retired) int { return cmp.Or(a.Earliest.Compare(b.Earliest), cmp.Compare(a.Object, b.Object)) })
		answer(w, http.StatusOK, all)
	}
}

func localPeer(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !isLoopback(r.RemoteAddr) {
			fail(w, http.StatusForbidden, "profiles are for loopback peers only")
			return
		}
		h(w, r)
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer could not be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}

func fail(w http.ResponseWriter, code int, message string) {
	answer(w, code, struct {
		Error string `json:"error"`
	}{message})
}

// isLoopback reports whether "host", "host:port" or an address is this machine's loopback. "localhost" counts; other
// names are not resolved, because the resolver is what an attacker of the Host check controls.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
