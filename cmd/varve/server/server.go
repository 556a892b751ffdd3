// Package server wires a broker together: configuration in, everything open,
// serving; and closed again in the opposite order. It decides nothing. It is
// the one place that knows all of wal, tiering, metadata and broker.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/config"
	"github.com/varve/varve/internal/admin"
	"github.com/varve/varve/metadata"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/vfs"
)

// Options are what a server is made of.
type Options struct {
	Config *config.BrokerConfig
	// Dev embeds etcd under DataDir, keeps objects there unless
	// remote.storage.url says otherwise, and goes on from object storage by
	// itself when the log directory was lost.
	Dev     bool
	DataDir string

	AcceptCorruptLog bool
	// AcceptBucket takes a bucket for the cluster's that lacks what says so.
	AcceptBucket bool
	// AcceptLoss lets partitions whose only log was lost go on from the end of
	// their object storage part.
	AcceptLoss bool

	Logger  *slog.Logger
	Version string

	// Of tests: another file system for the log, another bucket, an etcd that
	// several brokers share, another network; after how many small objects a
	// compaction worker makes one of them (0: as many as are worth it).
	FS     vfs.FS
	Bucket objstore.Bucket
	Etcd   *clientv3.Client
	Listen func(address string) (net.Listener, error)
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Merge  int
}

// What is asked of a server too early, and too late.
var (
	errStarting = errors.New("the broker is starting")
	errStopping = errors.New("the broker is shutting down")
)

// Server is a running broker.
type Server struct {
	o         Options
	log       *slog.Logger
	metrics   *metrics
	etcd      *etcd.Server
	chunks    *cache.Cache
	client    *clientv3.Client
	wal       *wal.Log
	bucket    objstore.Bucket
	away      bool // the bucket did not answer when it was opened
	node      *metadata.Node
	tier      *tiering.Tier
	broker    *broker.Broker
	admin     *admin.Server
	compactor *compactor
	endpoints []image.Endpoint
	memory    memory

	up      atomic.Bool // everything is open and served
	closing atomic.Bool
	failed  chan error
	stop    context.CancelFunc
	wg      sync.WaitGroup
	started time.Time
}

// memory is how memory.max.bytes is divided.
type memory struct {
	total, requests, responses, walQueue, walCache, walIndex, tierCache, groups, txns int64
}

// divide gives each consumer of memory its share; settings that name one
// themselves are kept.
func divide(c *config.BrokerConfig) memory {
	m := memory{total: c.MemoryMaxBytes}
	// Together 78 %: the rest is for what is not counted, such as stacks,
	// metadata, and what the collector has not taken back yet.
	share := func(percent int64, set int64) int64 {
		if set > 0 {
			return set
		}
		return m.total / 100 * percent
	}
	m.requests = share(10, max(c.QueuedMaxRequestBytes, 0))
	m.responses = share(10, 0)
	m.walQueue = min(share(6, c.WALQueueBytes), 1<<30)
	// What a tail consumer has not read yet, and no more: buffers that come back soon are still in the processor's
	// cache when the next request is read into them.
	m.walCache = share(20, c.WALCacheBytes)
	if c.WALCacheBytes == 0 {
		m.walCache = min(m.walCache, 128<<20)
	}
	m.walIndex = share(4, 0)
	m.tierCache = share(9, c.RemoteCacheMemoryBytes)
	m.groups = share(5, 0)
	m.txns = share(2, 0)
	return m
}

// Open brings a broker up. When it returns, clients are served.
func Open(ctx context.Context, o Options) (s *Server, err error) {
	s = &Server{o: o, log: o.Logger, metrics: newMetrics(), failed: make(chan error, 1), started: time.Now()}
	defer func() {
		if err != nil {
			s.Close(context.Background())
			s = nil
		}
	}()
	c := o.Config
	s.memory = divide(c)
	// What is not counted (goroutines, metadata, garbage) has the rest; the
	// collector works harder before the bound is reached.
	debug.SetMemoryLimit(s.memory.total / 20 * 17)

	// First, so that whoever watches is told that the broker starts, however
	// long that takes. Where the address is taken, what is said about the
	// directories below says more: it is often the same broker twice.
	var adminErr error
	if c.AdminListener != "" {
		s.admin, adminErr = admin.Open(admin.Options{Listen: c.AdminListener, Registry: s.metrics.reg, Health: s.health, Ready: s.ready, Warn: s.warn, Tier: s.TierStatus, Retired: s.retired, Logger: s.log})
	}
	seenFile := filepath.Join(c.LogDir, "metadata.seen")
	seen, err := metadata.ReadSeen(seenFile)
	if err != nil {
		return s, err
	}
	if seen.Cluster != "" && c.ClusterID != "" && c.ClusterID != seen.Cluster {
		return s, fmt.Errorf("cluster.id is %q, and %s has the log of a broker of cluster %q: it does not start with another cluster's name", c.ClusterID, c.LogDir, seen.Cluster)
	}
	store, err := s.openStore(ctx, seen.Cluster != "")
	if err != nil {
		return s, err
	}
	if err := os.MkdirAll(c.LogDir, 0o700); err != nil {
		return s, fmt.Errorf("log.dirs: %w", err)
	}
	store.Saw(seen.Revision)
	var clusterID string
	var secret []byte
	known, bucketless := seen.Cluster != "", false
	err = s.patiently(ctx, func() (err error) {
		token, err := store.Probe(ctx)
		if err != nil {
			return err
		}
		bucketless = token == ""
		if clusterID, err = store.EnsureCluster(ctx, first(seen.Cluster, c.ClusterID)); err != nil {
			return err
		}
		if secret, err = store.EnsureSecret(ctx); err != nil || known {
			return err
		}
		known, err = store.Known(ctx, c.NodeID) // its directory is another: it may have lost its disk
		return err
	})
	if err != nil {
		return s, fmt.Errorf("metadata: %w", remembered(err, seenFile))
	}

	var b atomic.Pointer[broker.Broker]
	if s.wal, err = s.openLog(ctx, clusterID, func() {
		if b := b.Load(); b != nil {
			b.Checkpoint()
		}
	}, func(begin bool) {
		if b := b.Load(); b != nil {
			b.Telling(begin)
		}
	}); err != nil {
		return s, err
	}
	if adminErr != nil {
		return s, adminErr
	}
	// Where the cluster has a bucket, one that is not there is not it: it would be made, and then refused.
	if s.bucket, err = s.openBucket(ctx, known, o.Dev && (bucketless || o.AcceptBucket), s.metrics.store.events()); err != nil {
		if o.Dev && errors.Is(err, objstore.ErrNoBucket) {
			err = fmt.Errorf("%w. The cluster has a bucket, and this one is not there: name the one that it has, or, where that is lost, have this one made with --accept-bucket", err)
		}
		return s, err
	}
	tie := &bond{store: store, cluster: clusterID, bucket: s.bucket, broker: c.NodeID, founds: true, accepts: o.AcceptBucket, memory: inMemory(c), log: s.log}
	if err = tie.early(ctx, s.away); err != nil {
		return s, fmt.Errorf("remote.storage.url: %w", err)
	}
	// Before anything of the cluster is changed: a process that cannot have its
	// addresses must not have raised epochs or accepted a loss.
	bound, endpoints, err := broker.Bind(c, o.Listen, s.log)
	if err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			bound.Close()
		}
	}()
	s.endpoints = endpoints
	var advertised []image.Endpoint
	for i, ep := range endpoints {
		if c.Listeners[i].Advertised {
			advertised = append(advertised, ep)
		}
	}
	among, _ := c.InterBroker()
	options := metadata.Options{
		Store: store, BrokerID: c.NodeID, Rack: c.Rack, Endpoints: advertised, InterBroker: among.Name, AcceptLoss: o.Dev || o.AcceptLoss,
		WAL: s.wal.UUID(), Place: s.wal.Place(), Marks: s.wal,
		BalanceInterval: c.BalanceInterval, BalancePercentage: c.BalancePercentage, HandOverTries: c.HandOverTries, HandOverWait: c.HandOverWait,
		SessionTimeout: c.SessionTimeout, HeartbeatInterval: c.HeartbeatInterval, CompactionInterval: c.EtcdCompaction,
		BrokerConfig: func() map[string]string { return c.Static }, SeenFile: seenFile, Logger: s.log.With("part", "metadata"),
		Events: metadataEvents(s.metrics.reg),
	}
	if err = s.patiently(ctx, func() (err error) { s.node, err = metadata.Open(ctx, options); return err }); err != nil {
		return s, fmt.Errorf("metadata: %w", err)
	}
	if err = ahead(s.wal.Partitions(), s.node.Image()); err != nil {
		return s, fmt.Errorf("metadata: %w", err)
	}
	if err = s.reach(ctx, store, advertised); err != nil {
		return s, err
	}
	if s.tier, err = s.openTier(clusterID, tie); err != nil {
		return s, err
	}
	if s.broker, err = broker.New(broker.Options{
		BrokerID: c.NodeID, ClusterID: clusterID, Settings: c,
		RequestBytes: s.memory.requests, ResponseBytes: s.memory.responses, GroupBytes: s.memory.groups, TxnBytes: s.memory.txns,
		Log: s.wal, Tier: s.tier, Metadata: s.node, Logger: s.log.With("part", "broker"), Events: s.metrics.brokerEvents(),
		AcceptCorruptLog: o.AcceptCorruptLog, Version: o.Version, Reconfigure: s.reconfigure, ClusterSecret: secret, Dial: o.Dial,
	}); err != nil {
		return s, err
	}
	b.Store(s.broker)
	s.node.Subscribe(s.broker.Follow)
	s.node.SetForward(s.broker.ForwardToController)
	s.node.SetProber(s.broker)
	register, cancel := context.WithTimeout(ctx, c.RegistrationTimeout)
	defer cancel()
	if err = s.node.Register(register); err != nil {
		return s, fmt.Errorf("register with the cluster: %w", err)
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.broker.Run(run)
	}()
	if o.Dev && c.Cleaner.Enable && c.Cleaner.Threads > 0 {
		if s.compactor, err = newCompactor(c, store, s.node, s.bucket, &bond{store: store, cluster: clusterID, bucket: s.bucket, memory: inMemory(c), log: s.log}, clusterID, s.log, s.metrics.tier, newCompactionMetrics(s.metrics.reg), o.Merge); err != nil {
			return s, err
		}
		s.wg.Go(func() { s.compactor.run(run) })
	}
	s.takeOver(ctx)
	s.broker.Serve(bound)
	s.metrics.watch(s)
	s.up.Store(true)
	return s, nil
}

// remembered says of an error that etcd is not what this broker remembers what is to be done.
func remembered(err error, seenFile string) error {
	if errors.Is(err, etcd.ErrRevisionRegressed) {
		return fmt.Errorf("%w (remembered in %s). %s", err, seenFile, setBack)
	}
	return fmt.Errorf("%w (as remembered in %s: if log.dirs names another broker's directory, that is why)", err, seenFile)
}

// setBack is for whoever is woken because brokers do not start.
const setBack = "etcd was restored from a backup, or etcd.endpoints names another one. This broker does not start, and has changed nothing there: " +
	"what was acknowledged since then is in the brokers' logs and in the bucket, and that etcd does not know of it. " +
	"Bring back the etcd that is not behind, and start the broker again"

// ahead is an error if a log has a leader epoch that etcd has not reached. Nobody leads in one before it is there, so etcd has gone
// back; that shows also where its revision does not, such as after `--bump-revision`. To go on would give the same epochs
// to other leaders, and drop the logs of topics that were made since.
func ahead(logs []wal.Recovered, im *image.Image) error {
	for _, r := range logs {
		p := im.Partition(r.TopicID, r.Partition)
		last, ok := r.Lineage.Latest()
		if p == nil || !ok || last.Epoch <= p.LeaderEpoch {
			continue
		}
		return fmt.Errorf("%w: the log of %s-%d has records of leader epoch %d, and etcd knows of %d. %s",
			etcd.ErrRevisionRegressed, im.TopicByID(r.TopicID).Name, r.Partition, last.Epoch, p.LeaderEpoch, setBack)
	}
	return nil
}

// reach is reachable, asked again for as long as there can be the session of a process that has ended: one broker takes
// another's place with its address, or all come back with another listener.
func (s *Server) reach(ctx context.Context, store *etcd.Store, advertised []image.Endpoint) error {
	c, im, said := s.o.Config, s.node.Image(), false
	for end := time.Now().Add(2*c.SessionTimeout + 2*time.Second); ; {
		err := reachable(im, c.NodeID, c, advertised)
		if err == nil || time.Now().After(end) {
			return err
		}
		if !said {
			said = true
			s.log.Warn("another broker is in the way; it is waited for, because its process may have ended", "err", err)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
		if next, err := store.Load(ctx); err == nil {
			im = next
		}
	}
}

// reachable is an error if this broker, advertising these endpoints, could not reach those that run, or could not be told from one of
// them. It would be given replicas that it cannot copy, and could be elected controller.
func reachable(im *image.Image, id int32, c *config.BrokerConfig, advertised []image.Endpoint) error {
	among, ok := c.InterBroker()
	if !ok {
		return nil
	}
	named := func(eps []image.Endpoint) (image.Endpoint, bool) {
		i := slices.IndexFunc(eps, func(ep image.Endpoint) bool { return ep.Listener == among.Name })
		if i < 0 {
			return image.Endpoint{}, false
		}
		return eps[i], true
	}
	own, _ := named(advertised)
	for _, s := range im.Sessions() {
		if s.ID == id {
			continue
		}
		switch ep, ok := named(s.Endpoints); {
		case !ok:
			var have []string
			for _, ep := range s.Endpoints {
				have = append(have, ep.Listener)
			}
			return fmt.Errorf("inter.broker.listener.name: it is %s here, and broker %d, which runs, advertises no listener of that name: there is %s. All brokers of a cluster use one name",
				among.Name, s.ID, strings.Join(have, ", "))
		case s.InterBroker != "" && s.InterBroker != among.Name:
			return fmt.Errorf("inter.broker.listener.name: it is %s here, and %s on broker %d, which runs and serves other brokers on no other. All brokers of a cluster use one name", among.Name, s.InterBroker, s.ID)
		case ep.Host == own.Host && ep.Port == own.Port:
			return fmt.Errorf("advertised.listeners: %s://%s:%d is where broker %d, which runs, is reached: give each broker an address of its own", ep.Listener, ep.Host, ep.Port, s.ID)
		}
	}
	return nil
}

// errNoCluster says that no broker has ever started on this etcd.
var errNoCluster = errors.New("etcd holds no cluster")

// existing returns the id of the cluster that etcd holds. What is no broker makes none: with a wrong etcd.prefix it would
// be well, and do nothing.
func (s *Server) existing(ctx context.Context, store *etcd.Store) (id string, err error) {
	im, err := store.Load(ctx)
	if err != nil {
		return "", err
	}
	if im.ClusterID == "" {
		return "", fmt.Errorf("%w under etcd.prefix=%s", errNoCluster, s.o.Config.EtcdPrefix)
	}
	return store.EnsureCluster(ctx, s.o.Config.ClusterID)
}

// patiently tries again what etcd did not answer: it may be electing, or about to
// be up. A process that waits is of more use than one that somebody has to start
// again.
func (s *Server) patiently(ctx context.Context, f func() error) error {
	for end, delay := time.Now().Add(s.o.Config.RegistrationTimeout), 100*time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		err := f()
		away := errors.Is(err, errNoCluster) || errors.Is(err, etcd.ErrUnavailable) || errors.Is(err, etcd.ErrAmbiguous) || errors.Is(err, context.DeadlineExceeded)
		if err == nil || !away || time.Now().After(end) {
			return err
		}
		what := "etcd does not answer yet and is waited for"
		if errors.Is(err, errNoCluster) {
			what = "there is no cluster yet: a broker that starts is waited for"
		}
		s.log.Warn(what, "err", err, "retry_in", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// takeOver gives the partitions that this broker leads a moment to begin before
// clients are let in, which the listeners' queues hold meanwhile: some clients
// that are told "not the leader" come back seconds later. What takes longer
// holds up nobody else.
func (s *Server) takeOver(ctx context.Context) {
	for end := time.Now().Add(2 * time.Second); s.broker.Ready() != nil && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(2 * time.Millisecond)
	}
}

// reconfigure builds the configuration again with what was changed while
// brokers run laid over what this one was started with. What needs a restart
// cannot be changed that way, so only limits differ.
func (s *Server) reconfigure(cluster, own map[string]string) (*config.BrokerConfig, error) {
	c := s.o.Config
	// What the controller goes by is no setting of this process, and is refused in its file.
	own = maps.Clone(own)
	delete(own, "cordoned.log.dirs")
	delete(own, "leadership.enable")
	static := maps.Clone(c.Static)
	if c.MemoryMaxBytes > 0 && static != nil { // a share of the machine, if it is not set
		static["memory.max.bytes"] = strconv.FormatInt(c.MemoryMaxBytes, 10)
	}
	set := config.Merge(config.FromMode("the broker's own configuration", static), config.FromMode("the cluster's dynamic configuration", cluster), config.FromMode("the broker's dynamic configuration", own))
	next, _, err := config.Build(set, config.Machine{Hostname: "localhost"})
	if err != nil {
		return nil, err
	}
	// Decided once, at start.
	next.Listeners, next.Static, next.MemoryMaxBytes, next.ClusterID = c.Listeners, c.Static, c.MemoryMaxBytes, c.ClusterID
	s.tier.SetLimits(tierLimits(next))
	s.chunks.SetLoads(next.RemoteReads)
	return next, nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// openStore starts the embedded etcd, or connects to the cluster's. One that does
// not answer keeps a broker from its first start, for the address may be wrong;
// at a later one (before) it is waited for.
func (s *Server) openStore(ctx context.Context, before bool) (*etcd.Store, error) {
	c := s.o.Config
	if s.o.Etcd != nil {
		return etcd.New(etcd.Options{Client: s.o.Etcd, Prefix: c.EtcdPrefix, RequestTimeout: c.EtcdRequestTimeout, Logger: s.log.With("part", "metadata")}), nil
	}
	if len(c.EtcdEndpoints) == 0 {
		if !s.o.Dev {
			return nil, errors.New("etcd.endpoints is not set: name the etcd servers that hold this cluster's metadata, as in etcd.endpoints=http://10.0.0.1:2379,http://10.0.0.2:2379")
		}
		e, err := unlocked(ctx, etcd.ErrLocked, func() (*etcd.Server, error) {
			return etcd.Embedded(filepath.Join(s.o.DataDir, "etcd"), s.log.With("part", "etcd"))
		})
		if err != nil {
			return nil, err
		}
		s.etcd = e
		if err := e.ServeReaders(); err != nil {
			s.log.Warn("varve tier verify --data-dir can look at this directory only while no process has it open", "err", err)
		}
		return etcd.New(etcd.Options{Client: e.Client(), Prefix: c.EtcdPrefix, RequestTimeout: c.EtcdRequestTimeout, Alone: true, Logger: s.log.With("part", "metadata")}), nil
	}
	password := c.EtcdPassword
	if c.EtcdPasswordFile != "" {
		b, err := os.ReadFile(c.EtcdPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("etcd.password.file: %w", err)
		}
		password = trimNewline(string(b))
	}
	options := etcd.DialOptions{
		Endpoints: c.EtcdEndpoints, CAFile: c.EtcdTLSCAFile, CertFile: c.EtcdTLSCertFile, KeyFile: c.EtcdTLSKeyFile, ServerName: c.EtcdTLSServerName,
		User: c.EtcdUser, Password: password, Prefix: c.EtcdPrefix, Timeout: c.EtcdDialTimeout, Logger: s.log.With("part", "etcd"),
	}
	dial := func() (err error) { s.client, err = etcd.Dial(ctx, options); return err }
	patiently := func(f func() error) error { return f() }
	if before {
		patiently = func(f func() error) error { return s.patiently(ctx, f) }
	}
	if err := patiently(dial); err != nil {
		return nil, fmt.Errorf("etcd.endpoints: %w", err)
	}
	client := s.client
	return etcd.New(etcd.Options{Client: client, Prefix: c.EtcdPrefix, RequestTimeout: c.EtcdRequestTimeout, Logger: s.log.With("part", "metadata")}), nil
}

// lockPatience is how long a process waits for a directory that another has open: one that was killed takes a moment to be gone.
const lockPatience = 3 * time.Second

// unlocked opens a directory, and waits for another process to be gone.
func unlocked[T any](ctx context.Context, locked error, open func() (T, error)) (T, error) {
	for until := time.Now().Add(lockPatience); ; {
		v, err := open()
		if !errors.Is(err, locked) || time.Now().After(until) {
			return v, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return v, err
		}
	}
}

func trimNewline(v string) string {
	for len(v) > 0 && (v[len(v)-1] == '\n' || v[len(v)-1] == '\r') {
		v = v[:len(v)-1]
	}
	return v
}

// openLog opens the write-ahead log.
func (s *Server) openLog(ctx context.Context, clusterID string, checkpoint func(), telling func(bool)) (*wal.Log, error) {
	c := s.o.Config
	fs := s.o.FS
	if fs == nil {
		fs = vfs.OS{Buffered: !c.WALDirectIO, KeepFree: s.keepFree(c.LogDir)}
	}
	free, size, err := fs.Free(c.LogDir)
	if err != nil {
		return nil, fmt.Errorf("log.dirs: %w", err)
	}
	bound := s.logBound(free, size, used(c.LogDir))
	events := s.metrics.walEvents()
	events.Telling = telling
	o := wal.Options{
		FS: fs, Dir: c.LogDir, ClusterID: clusterID, BrokerID: c.NodeID,
		SegmentBytes: c.WALSegmentBytes, MaxBytes: bound, QueueBytes: s.memory.walQueue, CacheBytes: s.memory.walCache, IndexBytes: s.memory.walIndex,
		Logger: s.log.With("part", "wal"), Events: events, Checkpoint: checkpoint,
		Fatal: func(err error) {
			select {
			case s.failed <- err:
			default:
			}
		},
	}
	l, err := unlocked(ctx, wal.ErrLocked, func() (*wal.Log, error) { return wal.Open(o) })
	if err != nil {
		return nil, fmt.Errorf("log.dirs: %w", err)
	}
	return l, nil
}

// keepFree is what the log and the bucket leave of the disk of dir: an etcd inside this process ends it where the disk that
// they share is full, and without it nobody could delete anything. 0 if they share none.
func (s *Server) keepFree(dir string) int64 {
	if s.etcd == nil {
		return 0
	}
	var own, other unix.Stat_t
	var disk unix.Statfs_t
	err := unix.Stat(dir, &other)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Stat(filepath.Dir(dir), &other) // it is made there
	}
	if err := errors.Join(err, unix.Stat(s.o.DataDir, &own), unix.Statfs(s.o.DataDir, &disk)); err != nil || own.Dev != other.Dev {
		return 0
	}
	return min(256<<20, int64(disk.Blocks)*int64(disk.Bsize)/20)
}

// logBound is wal.max.bytes, or, if that is not set, 80 % of what the log has
// and could have of its disk. What others have taken of the disk for now does
// not count against what was set: where they leave no room the disk is full,
// which passes when they do, while a bound stays as it is.
func (s *Server) logBound(free, size, used int64) int64 {
	c := s.o.Config
	bound := c.WALMaxBytes
	if bound == 0 {
		// Not less than it has: a restart on a disk that has become full is no
		// reason to be at the bound as well.
		bound = max((free+used)/10*8, used)
		s.log.Info("wal.max.bytes is not set: the log may use 80 % of its disk's free space", "bytes", bound, "dir", c.LogDir)
		return bound
	}
	if most := size / 10 * 9; bound > most {
		s.log.Warn("wal.max.bytes is more than the disk has: the log may use 90 % of the disk", "wal.max.bytes", bound, "bytes", most, "dir", c.LogDir)
		bound = most
	}
	if bound > free+used {
		s.log.Warn("the disk has less room than wal.max.bytes: the log is full when the disk is", "wal.max.bytes", bound, "bytes", free+used, "dir", c.LogDir)
	}
	return bound
}

// used is how much of its disk the log has already.
func used(dir string) (n int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			n += i.Size()
		}
	}
	return n
}

// openBucket opens the bucket and looks whether it is there. A store that does
// not answer keeps a broker from its first start, for the address may be wrong,
// and from no later one (before): while it is away the log takes what comes, as
// it would have without the restart.
func (s *Server) openBucket(ctx context.Context, before, create bool, events objstore.Events) (objstore.Bucket, error) {
	b := s.o.Bucket
	if b == nil {
		url := s.o.Config.RemoteStorageURL
		if url == "" {
			if !s.o.Dev {
				return nil, errors.New("remote.storage.url is not set: name the bucket, as in remote.storage.url=s3://bucket/prefix?region=eu-central-1")
			}
			dir, err := filepath.Abs(filepath.Join(s.o.DataDir, "objects"))
			if err != nil {
				return nil, err
			}
			url = objstore.FileURL(dir)
		}
		if inMemory(s.o.Config) {
			s.log.Warn("remote.storage.url names memory: what has left the local log is lost when this process ends", "remote.storage.url", url)
		}
		o := objstore.Options{Create: create, Logger: s.log.With("part", "objstore")}
		if loc, err := objstore.ParseURL(url); err == nil && loc.Dir != "" {
			// Not what says which objects there are: without it nothing could be deleted.
			o.KeepFree, o.KeepFreePrefix = s.keepFree(loc.Dir), manifest.DataPrefix
		}
		if before {
			o.Away = func(err error) {
				s.away = true
				s.log.Warn("the bucket does not answer: starting without it, uploads go on when it does", "err", err)
			}
		}
		var err error
		if b, err = objstore.Open(ctx, url, o); err != nil {
			return nil, fmt.Errorf("remote.storage.url: %w", err)
		}
	}
	return objstore.Observe(b, events), nil
}

// Endpoints are where clients reach the broker.
func (s *Server) Endpoints() []image.Endpoint { return s.endpoints }

// EtcdPrefix is what the keys of this cluster begin with.
func (s *Server) EtcdPrefix() string { return s.o.Config.EtcdPrefix }

// AdminURL is where metrics and health are, or "".
func (s *Server) AdminURL() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.URL()
}

// Failed yields the error after which the process has to end.
func (s *Server) Failed() <-chan error { return s.failed }

// Standing is what a simulation holds against what the cluster believes of this broker: the epoch of its registration, and
// where its log of a partition ends, what is queued for the disk included; 0 without a replica.
func (s *Server) Standing(topicID [16]byte, partition int32) (brokerEpoch, logEnd int64) {
	return s.node.BrokerEpoch(), s.broker.LogEnd(topicID, partition)
}

// Charged is nil, or why requests or answers are counted as holding more than most bytes; see broker.Charged.
func (s *Server) Charged(most int64) error { return s.broker.Charged(most) }

// usable says why the parts must not be asked.
func (s *Server) usable() error {
	switch {
	case s.closing.Load():
		return errStopping
	case !s.up.Load():
		return errStarting
	}
	return nil
}

// health is about the process: one that starts or drains is well.
func (s *Server) health() error {
	if s.usable() != nil {
		return nil
	}
	return s.wal.Failed()
}

// ready says why clients cannot be served, or that they can. With etcd away they
// can: a probe that said no would take every broker out of service at once.
func (s *Server) ready() error {
	if err := s.usable(); err != nil {
		return err
	}
	return errors.Join(s.wal.Failed(), s.broker.Ready())
}

// warn says what is not well while clients are served.
func (s *Server) warn() error {
	if s.usable() != nil {
		return nil
	}
	var errs []error
	if err := s.node.Healthy(); err != nil {
		errs = append(errs, fmt.Errorf("metadata cannot be changed: %w", err))
	}
	if err := s.tier.Healthy(); err != nil {
		errs = append(errs, fmt.Errorf("object storage: %w", err))
	}
	if s.etcd != nil {
		errs = append(errs, s.etcd.Room())
	}
	errs = append(errs, s.broker.Refused(), s.broker.Waits())
	if k := s.compactor; k != nil {
		errs = append(errs, k.stuck(), k.failing())
	}
	return errors.Join(errs...)
}

// TierStatus describes the partitions that this broker leads.
func (s *Server) TierStatus(topic string) ([]admin.TierStatus, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if topic != "" && s.node.Image().Topic(topic) == nil {
		return nil, fmt.Errorf("%w: %s", admin.ErrUnknownTopic, topic)
	}
	var out []admin.TierStatus
	for _, st := range s.broker.TierStatus(topic) {
		out = append(out, admin.TierStatus{
			Topic: st.Topic, Partition: st.Partition, LogStart: st.LogStart, LocalStart: st.LocalStart, RemoteEnd: st.RemoteEnd,
			HighWatermark: st.HighWatermark, Objects: int64(st.Objects), Bytes: st.Bytes, UploadLagMs: st.UploadLagMs,
		})
	}
	return out, nil
}

// retired lists the objects that this process is to delete.
func (s *Server) retired() ([]admin.Retired, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	var out []admin.Retired
	deleted := make(map[[16]byte]bool)
	im := s.node.Image()
	for _, t := range []*tiering.Tier{s.tier, s.compactor.parts()} {
		if t == nil {
			continue
		}
		for _, r := range t.Retired() {
			if r.Object == "" {
				if deleted[r.TopicID] {
					continue // the worker inside knows it as well
				}
				deleted[r.TopicID] = true
			}
			a := admin.Retired{Object: r.Object, Topic: r.Topic, Partition: r.Partition, Bytes: r.Bytes, Since: r.Since, Earliest: r.Earliest}
			if topic := im.TopicByID(r.TopicID); topic != nil {
				a.Topic = topic.Name
			}
			out = append(out, a)
		}
	}
	return out, nil
}

// half is a context for the first half of the time that there is: what comes
// after needs some as well.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		return context.WithTimeout(ctx, time.Until(end)/2)
	}
	return context.WithCancel(ctx)
}

// Close ends everything in the opposite order: other brokers take over what this
// one leads, clients are answered, what is queued is written, the session ends so
// that others need not wait for it.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", what, err))
		}
	}
	s.closing.Store(true)
	if s.up.Load() {
		handOver, cancel := half(ctx)
		s.node.BeginShutdown(handOver)
		cancel()
	}
	if s.stop != nil {
		s.stop()
	}
	if s.broker != nil {
		note("broker", s.broker.Close(ctx))
	}
	s.wg.Wait()
	if s.tier != nil {
		note("tiering", s.tier.Close())
	}
	if s.compactor != nil {
		note("compaction worker", s.compactor.close())
	}
	if s.chunks != nil {
		note("chunk cache", s.chunks.Close())
	}
	if s.node != nil {
		note("metadata", s.node.Close())
	}
	if s.wal != nil {
		note("log", s.wal.Close())
	}
	if s.bucket != nil {
		note("bucket", s.bucket.Close())
	}
	if s.admin != nil {
		note("admin", s.admin.Close())
	}
	if s.client != nil {
		note("etcd client", s.client.Close())
	}
	if s.etcd != nil {
		note("etcd", s.etcd.Close())
	}
	return errors.Join(errs...)
}
