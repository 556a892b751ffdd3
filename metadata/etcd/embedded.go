package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/status"
)

// ErrLocked: another process has the data directory open.
var ErrLocked = errors.New("metadata: etcd directory is in use by another process")

// Server is an etcd of one member inside this process, without listeners.
type Server struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	lock   *os.File
	dir    string
	room   *room
	once   sync.Once

	closing    *atomic.Bool
	endReaders func() // nil: there are none
}

// dataDir is where etcd keeps what it keeps, below the directory that Embedded is given.
const dataDir = "data"

// Embedded starts etcd in dir and returns when it serves. Every write is
// fsynced before it is acknowledged.
//
// Importing etcd's server registers its metrics in the Prometheus default
// registry; Varve's metrics have a registry of their own, so they do not show.
func Embedded(dir string, logger *slog.Logger) (*Server, error) {
	return embedded(dir, logger, func(*embed.Config) {})
}

func embedded(dir string, logger *slog.Logger, tune func(*embed.Config)) (*Server, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	// etcd waits for its file lock without end and without a word; ours
	// answers.
	lock, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
	}

	r := &room{dir: dir, log: logger}
	if err := r.prepare(); err != nil {
		lock.Close()
		return nil, err
	}

	closing := new(atomic.Bool)
	cfg := embed.NewConfig()
	cfg.Name = "varve"
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.Dir = filepath.Join(dir, dataDir)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls, cfg.ListenPeerUrls = nil, nil, nil
	// A single member elects itself; there is nobody whose heartbeat could be
	// late.
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = false
	// Nobody reads them again: it is the only member.
	cfg.MaxWalFiles, cfg.MaxSnapFiles = 2, 2
	// Watches that fall behind by more load the image again.
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, "10000"
	words := lastWords{log: logger, room: r, exit: os.Exit}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(logger, closing).WithOptions(
		zap.WrapCore(func(c zapcore.Core) zapcore.Core { return listener{c, r} }), zap.WithFatalHook(words), zap.WithPanicHook(words)))

	tune(cfg)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("start etcd in %s: %w", dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		lock.Close()
		return nil, fmt.Errorf("start etcd in %s: %w", dir, err)
	case <-time.After(time.Minute):
		e.Close()
		lock.Close()
		return nil, fmt.Errorf("start etcd in %s: not ready after a minute", dir)
	}
	r.keep(e.Server.Backend().Size)
	return &Server{etcd: e, client: v3client.New(e.Server), lock: lock, dir: dir, room: r, closing: closing}, nil
}

// Room is nil, or why the process may end: the disk has not room for what etcd may need.
func (s *Server) Room() error {
	if s.room.unprepared.Load() {
		return fmt.Errorf("the disk of %s had no room for the next file of etcd's log; the process ends when the present one is full: start it again when there is room", s.dir)
	}
	if short := s.room.short.Load(); short > 0 {
		return fmt.Errorf("the disk of %s has no room for %d bytes that are to be set aside for etcd; the process ends when they are needed", s.dir, short)
	}
	return nil
}

// Client returns the in-process client. It ends with the server.
func (s *Server) Client() *clientv3.Client { return s.client }

// Close stops the server. Whatever it acknowledged is on disk.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.closing.Store(true)
		if s.endReaders != nil {
			s.endReaders()
		}
		s.client.Close()
		s.room.close()
		s.etcd.Close()
		s.lock.Close()
	})
	return nil
}

// DialOptions say how to reach an etcd.
type DialOptions struct {
	Endpoints []string // host:port or URLs
	// TLS by PEM files; used if any is set. CAFile verifies the server (the
	// system's authorities if empty), CertFile and KeyFile authenticate us.
	CAFile, CertFile, KeyFile string
	ServerName                string // expected in the certificate, if not the endpoint's host
	User, Password            string
	Prefix                    string        // of all keys of this cluster, see Options: where the user may read
	Timeout                   time.Duration // to connect, 5 s if zero
	Logger                    *slog.Logger
}

// Dial connects to an etcd and checks that it answers.
func Dial(ctx context.Context, o DialOptions) (*clientv3.Client, error) {
	if len(o.Endpoints) == 0 {
		return nil, errors.New("metadata: no etcd endpoints")
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg := clientv3.Config{
		Endpoints:            o.Endpoints,
		DialTimeout:          o.Timeout,
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		Username:             o.User,
		Password:             o.Password,
		Logger:               zapLogger(o.Logger, new(atomic.Bool)),
		MaxCallRecvMsgSize:   256 << 20,
		// gRPC's default waits up to two minutes between attempts to connect;
		// an etcd that is back should be found within a heartbeat or two.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: o.Timeout,
		})},
	}
	if strings.HasPrefix(o.Endpoints[0], "unix:") {
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority("localhost")) // else it is the path
	}
	tls, err := loadTLS(o)
	if err != nil {
		return nil, err
	}
	cfg.TLS = tls
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %v: %w", o.Endpoints, err)
	}
	tctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	_, _, err = hedged(tctx, new(hedges), o.Timeout/hedgeShare, 3, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return c.Get(ctx, prefixOf(o.Prefix)+"probe")
	})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = fmt.Errorf("no answer within %s: %w%s", o.Timeout, err, unreachable(ctx, c))
		}
		c.Close()
		return nil, fmt.Errorf("connect to etcd at %v: %w", o.Endpoints, err)
	}
	if o.User != "" {
		if _, err := c.Authenticate(tctx, o.User, o.Password); errors.Is(err, rpctypes.ErrAuthNotEnabled) {
			o.Logger.Warn("etcd.user is set and etcd does not ask for it: authentication is not enabled there, whoever reaches it can change the cluster", "etcd.user", o.User)
		}
	}
	return c, nil
}

// unreachable says why no connection came about. The client's own call only
// knows that time ran out; one that does not wait for a connection is told the
// last reason for which there is none.
func unreachable(ctx context.Context, c *clientv3.Client) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := etcdserverpb.NewKVClient(c.ActiveConnection()).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("/varve/probe")}, grpc.WaitForReady(false))
	if err == nil || ctx.Err() != nil {
		return ""
	}
	return " (" + status.Convert(err).Message() + ")"
}

// zapLogger hands etcd's log to slog: its warnings as ours, everything it
// calls information as debug. etcd logs at ERROR what a clean start and a clean
// stop do (a missing listener, closed pipes), hence no level above Warn.
//
// A warning that comes again within ten seconds is debug too: the client has
// one for every attempt of every call while an etcd is away.
func zapLogger(l *slog.Logger, closing *atomic.Bool) *zap.Logger {
	return zap.New(slogCore{l: l.With("component", "etcd"), closing: closing, warned: &warned{at: map[string]time.Time{}}})
}

type slogCore struct {
	l       *slog.Logger
	fields  []zapcore.Field
	closing *atomic.Bool // everything is expected while it closes
	warned  *warned
}

// warned remembers when each message was last a warning. Messages are constants
// of etcd's source, so there is a bound to how many.
type warned struct {
	mu sync.Mutex
	at map[string]time.Time
}

const warnEvery = 10 * time.Second

func (w *warned) again(message string, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.at[message]) < warnEvery {
		return true
	}
	w.at[message] = now
	return false
}

func slogLevel(l zapcore.Level) slog.Level {
	if l >= zapcore.WarnLevel {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return c.l.Enabled(context.Background(), slogLevel(l))
}

func (c slogCore) With(f []zapcore.Field) zapcore.Core {
	return slogCore{c.l, append(append([]zapcore.Field(nil), c.fields...), f...), c.closing, c.warned}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// expected are warnings about what is so on purpose here, or at the first start.
var expected = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true, // there is no listener
	"simple token is not cryptographically signed":                                         true, // nor authentication
	"Failed to detect schema version":                                                      true, // new directory
	"failed to update storage version":                                                     true,
	"failed to update cluster version":                                                     true, // closed right after the start
	"failed to lock file":                                                                  true, // of its log, and wanted still
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slogLevel(e.Level)
	if expected[e.Message] || c.closing.Load() || level == slog.LevelWarn && c.warned.again(e.Message, e.Time) {
		level = slog.LevelDebug
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(fields)+len(c.fields))
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			attrs = append(attrs, slog.Any(f.Key, v))
		}
	}
	// Said once, by Dial.
	if cause, ok := enc.Fields["error"].(string); ok && strings.Contains(cause, rpctypes.ErrAuthNotEnabled.Error()) {
		level = slog.LevelDebug
	}
	c.l.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

func (c slogCore) Sync() error { return nil }
