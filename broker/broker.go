// Package broker serves Kafka's protocol over the log, the bucket and the
// cluster metadata: listeners and connections, the partitions that this broker
// leads, one file per API key.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/varve/varve/broker/coordinator"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/producer"
)

// Log is what the broker asks of the write-ahead log; see package wal.
type Log interface {
	Partitions() []wal.Recovered
	Damaged() bool
	AdmitPartition(lin lineage.Lineage) error
	Create(topicID [16]byte, partition int32, start int64, lin lineage.Lineage, snapshot []byte, done func(error)) wal.PartitionID
	Drop(p wal.PartitionID, done func(error))
	Skip(p wal.PartitionID, to int64) (wal.Recovered, bool)
	CanSkip(p wal.PartitionID, to int64) (wal.Recovered, bool)
	Reserve(ctx context.Context, class wal.Class, bytes int64) error
	ReserveAll(ctx context.Context, class wal.Class, bytes []int64) error
	Unreserve(bytes int64)
	Admit(p wal.PartitionID) error
	Append(a *wal.Append)
	Epoch(p wal.PartitionID, epoch int32, start int64, done func(error))
	Snapshot(p wal.PartitionID, offset int64, snapshot []byte, done func(error))
	ProducerSnapshot(p wal.PartitionID) (snapshot []byte, offset int64, err error)
	Read(p wal.PartitionID, offset int64, maxBytes int, upTo int64) (wal.Run, error)
	Find(p wal.PartitionID, timestamp, from, upTo int64) (base int64, found bool, err error)
	MaxTimestamp(p wal.PartitionID, from, upTo int64) (timestamp, base int64, found bool, err error)
	Bounds(p wal.PartitionID) (start, end int64)
	BytesBetween(p wal.PartitionID, from, to int64) int64
	Trim(p wal.PartitionID, start int64, done func(error))
	Truncate(p wal.PartitionID, offset int64, done func(error))
	HighWatermark(p wal.PartitionID, hw int64)
	SetReclaimable(p wal.PartitionID, below int64)
	SetStuck(p wal.PartitionID, stuck bool)
	Stats() wal.Stats
}

// Tier is what the broker asks of the object storage part; see package tiering.
type Tier interface {
	Lead(ctx context.Context, r tiering.Replica) (tiering.State, error)
	Moved()
	Resign(topicID [16]byte, partition int32)
	Peek(ctx context.Context, topicID [16]byte, partition int32) (tiering.State, error)
	Changed(ctx context.Context, since int64, f func(topicID [16]byte, partition int32, s tiering.State)) (rev int64, err error)
	State(topicID [16]byte, partition int32) (tiering.State, bool)
	Read(ctx context.Context, topicID [16]byte, partition int32, offset int64, maxBytes int) (tiering.Run, error)
	ReadCommitted(ctx context.Context, topicID [16]byte, partition int32, offset int64, maxBytes int, stable, known int64) (tiering.Committed, error)
	FindTimestamp(ctx context.Context, topicID [16]byte, partition int32, timestamp int64) (tiering.Run, bool, error)
	MaxTimestamp(ctx context.Context, topicID [16]byte, partition int32, from, to, floor int64) (offset, timestamp int64, ok bool, err error)
	Aborted(ctx context.Context, topicID [16]byte, partition int32, from, to, known int64) ([]producer.Aborted, error)
	Tail(ctx context.Context, topicID [16]byte, partition int32) (lineage.Lineage, []byte, int64, error)
	AdvanceLogStart(ctx context.Context, topicID [16]byte, partition int32, to int64) (int64, error)
}

// Metadata is what the broker asks of the cluster metadata; see package
// metadata.
type Metadata interface {
	Image() *image.Image
	Incarnation() [16]byte
	CreateTopics(ctx context.Context, topics []controller.NewTopic, validateOnly bool) []controller.Result
	DeleteTopics(ctx context.Context, topics []controller.TopicRef) []controller.Result
	CreatePartitions(ctx context.Context, topics []controller.Growth, validateOnly bool) []controller.Result
	AlterConfigs(ctx context.Context, resources []controller.AlterResource, incremental, validateOnly bool) []controller.Result
	AllocateProducerIDs(ctx context.Context) (first int64, count int32, err error)
	AlterPartition(ctx context.Context, c controller.AlterPartition) controller.Reply
	Do(ctx context.Context, c controller.Command) controller.Reply
	Execute(ctx context.Context, command []byte) ([]byte, error)
	BrokerEpoch() int64
	EndSession(ctx context.Context, id int32, incarnation [16]byte) error
	Suspect(ctx context.Context, id int32, incarnation [16]byte) error
}

// Options are what a broker is made of.
type Options struct {
	BrokerID  int32
	ClusterID string
	Settings  *config.BrokerConfig
	// Reconfigure returns the settings with those laid over them that were
	// changed while brokers run: for all brokers, then for this one.
	Reconfigure func(cluster, broker map[string]string) (*config.BrokerConfig, error)
	// RequestBytes and ResponseBytes bound what requests and responses hold
	// in memory at one time, over all connections.
	RequestBytes, ResponseBytes int64
	// GroupBytes bounds the state of consumer groups; 0 is a default.
	GroupBytes int64
	// TxnBytes bounds the state of transactional ids; 0 is a default.
	TxnBytes int64

	// ClusterSecret is what brokers prove to each other that they know. Without
	// one, no other broker is believed.
	ClusterSecret []byte
	// Dial connects to another broker; nil: by TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Log      Log
	Tier     Tier
	Metadata Metadata
	Logger   *slog.Logger
	Events   *Events

	// AcceptCorruptLog serves what is intact of partitions whose local log
	// has corrupt blocks: an operator's decision, with the loss stated.
	AcceptCorruptLog bool
	// Version is what the broker calls itself in DescribeCluster and logs.
	Version string
}

// Broker serves clients. New makes it, Follow ties it to the metadata, Serve
// accepts connections, Close drains and ends it.
type Broker struct {
	opts   Options
	cfg    atomic.Pointer[config.BrokerConfig]
	log    *slog.Logger
	log_   Log
	wakes  wakes
	tier   Tier
	meta   Metadata
	ev     *Events
	apis   apiTable
	among  apiTable // beside them, on the inter-broker listener
	peers  peers
	outbox outbox
	start  time.Time

	probes     probes
	suspicions chan suspicion

	requests  *budget
	coldReads atomic.Int64 // reads of object storage under way or waiting
	responses *gauge
	opening   *opening
	heavy     *opening // requests that are decoded and answered with much more than they were sent as
	wasted    *gauge   // of the buffers that answers lie in, what is not of the answers

	replicas *replicas
	fetchers *fetchers
	sending  throttle     // leader.replication.throttled.rate
	copying  throttle     // follower.replication.throttled.rate
	shrinks  atomic.Int64 // replicas that left an ISR of a partition led here
	expands  atomic.Int64 // and that joined one
	sessions *sessions
	groups   *coordinator.Coordinator
	txns     *coordinator.Transactions
	pids     producerIDs
	topics   atomic.Pointer[topicView] // what groups of the consumer protocol see

	verifyTransaction txnVerifier

	// What a client can cause again and again is logged at a bounded rate.
	badInputLog *rate.Limiter
	failures    failures
	refusals    producerRefusals
	refusedLog  *rate.Limiter // of who says to be another broker, and is not: no flood of anything else hides it

	ctx      context.Context
	cancel   context.CancelFunc
	draining atomic.Bool

	mu        sync.Mutex
	listeners []*listener
	conns     map[*conn]struct{}
	perIP     map[string]int
	wg        sync.WaitGroup
}

// New makes a broker that serves nobody yet. It takes over the partitions that
// the log recovered.
func New(o Options) (*Broker, error) {
	if o.Events == nil {
		o.Events = &Events{}
	}
	o.Events.fill()
	if o.Dial == nil {
		o.Dial = dialPeer
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := o.Settings
	b := &Broker{
		opts: o, log: o.Logger, log_: o.Log, tier: o.Tier, meta: o.Metadata, ev: o.Events,
		start:       time.Now(),
		requests:    newBudget(o.RequestBytes),
		responses:   &gauge{max: o.ResponseBytes},
		wasted:      &gauge{max: o.ResponseBytes / 2},
		opening:     newOpening(o.ResponseBytes / 2),
		heavy:       newOpening(o.ResponseBytes / 2),
		sessions:    newSessions(s.FetchSessionSlots, o.ResponseBytes/sessionPartitionBytes),
		badInputLog: rate.NewLimiter(rate.Every(time.Second), 10), failures: newFailures(),
		refusedLog: rate.NewLimiter(rate.Every(time.Second), 10),
		ctx:        ctx, cancel: cancel,
		conns: map[*conn]struct{}{}, perIP: map[string]int{},
	}
	b.suspicions = make(chan suspicion, 64)
	b.peers = peers{b: b, idle: map[peerKey][]*link{}, slots: map[int32]chan struct{}{}, lives: map[peerKey]*life{}}
	b.cfg.Store(s)
	b.sending.set(s.LeaderThrottledRate)
	b.copying.set(s.FollowerThrottledRate)
	b.topics.Store(newTopicView(o.Metadata.Image()))
	b.replicas = newReplicas(b, o.Log.Partitions())
	b.fetchers = &fetchers{b: b, byLeader: map[int32]*fetcher{}, of: map[*replica]*fetcher{}}
	b.groups = b.newGroups()
	b.txns = b.newTransactions()
	b.verifyTransaction = newTxnVerifier(b)
	b.registerAPIs()
	b.registerPeerAPIs()
	return b, nil
}

// Follow is called with every metadata image, in order, from one goroutine.
func (b *Broker) Follow(prev, next *image.Image) {
	if t := next.Topic(offsetsTopic); t != nil {
		b.groups.SetPartitions(int32(len(t.Partitions)))
	}
	if t := next.Topic(txnTopic); t != nil {
		b.txns.SetPartitions(int32(len(t.Partitions)))
	}
	b.peers.follow(prev, next)
	b.reconfigure(prev, next)
	b.followTopics(prev, next)
	b.replicas.apply(prev, next)
}

// conf is the broker's configuration as it stands.
func (b *Broker) conf() *config.BrokerConfig { return b.cfg.Load() }

// reconfigure takes over settings that were changed while the broker runs.
func (b *Broker) reconfigure(prev, next *image.Image) {
	self := strconv.Itoa(int(b.opts.BrokerID))
	cluster, own := next.Config(image.BrokerResource, ""), next.Config(image.BrokerResource, self)
	if b.opts.Reconfigure == nil || prev != nil && maps.Equal(cluster, prev.Config(image.BrokerResource, "")) && maps.Equal(own, prev.Config(image.BrokerResource, self)) {
		return
	}
	cfg, err := b.opts.Reconfigure(cluster, own)
	if err != nil {
		b.log.Error("settings changed while the broker runs cannot be used: the last ones stay", "err", err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cfg.Store(cfg)
	for _, l := range b.listeners {
		l.limit(cfg)
	}
	b.sending.set(cfg.LeaderThrottledRate)
	b.copying.set(cfg.FollowerThrottledRate)
}

// Run does what has to be done from time to time, until ctx ends: in-sync
// replicas, local retention, and forgetting producers that are gone.
func (b *Broker) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { b.keepISR(ctx) })
	wg.Go(func() { b.followCompaction(ctx) })
	wg.Go(func() { b.tellSuspicions(ctx) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	expired := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		expire := now.Sub(expired) >= b.conf().ProducerExpiryInterval
		if expire {
			expired = now
		}
		if b.replicas.trimming.Load() == 0 && !expire {
			continue
		}
		for _, r := range b.replicas.all() {
			r.retainLocally(now.UnixMilli())
			if expire {
				r.expireProducers(now.UnixMilli(), b.conf().ProducerIDExpiration.Milliseconds())
			}
		}
	}
}

// Checkpoint queues the producer state of every partition that changed since
// the last one; the log asks for it when it rolls a segment.
func (b *Broker) Checkpoint() {
	for _, r := range b.replicas.all() {
		r.snapshot()
	}
}

// admitted says whether the cluster counts this process in.
func (b *Broker) admitted(im *image.Image) bool {
	br := im.Broker(b.opts.BrokerID)
	return br != nil && !br.Fenced && br.Incarnation == b.meta.Incarnation()
}

// Ready says why the broker does not serve yet, or nil.
func (b *Broker) Ready() error {
	if !b.admitted(b.meta.Image()) {
		return errors.New("not admitted to the cluster yet")
	}
	waiting, example := 0, ""
	for _, r := range b.replicas.all() {
		r.mu.Lock()
		// A suspect partition waits for an operator, and the others must not
		// wait with it.
		if r.leads && !r.started && !errors.Is(r.offline, errSuspect) {
			waiting++
			example = r.String()
			if r.offline != nil {
				example += ": " + r.offline.Error()
			}
		}
		r.mu.Unlock()
	}
	if waiting > 0 {
		return fmt.Errorf("%d partitions do not serve yet, for one %s", waiting, example)
	}
	return nil
}

// Waits says which partitions wait for an operator, or nil. The others are served, and by the metadata these have a leader as they do.
func (b *Broker) Waits() error {
	waiting, example := 0, ""
	for _, r := range b.replicas.all() {
		r.mu.Lock()
		if r.leads && !r.started && errors.Is(r.offline, errSuspect) {
			waiting++
			example = r.String() + ": " + r.offline.Error()
		}
		r.mu.Unlock()
	}
	if waiting > 0 {
		return fmt.Errorf("%d partitions are not served, for one %s", waiting, example)
	}
	return nil
}

// Close stops accepting, lets what is under way finish until ctx ends, and
// ends every connection.
func (b *Broker) Close(ctx context.Context) error {
	b.draining.Store(true)
	b.mu.Lock()
	for _, l := range b.listeners {
		l.close()
	}
	for c := range b.conns {
		// Readers end at the next frame boundary; parked fetches answer now.
		c.nc.SetReadDeadline(time.Now())
		c.wakeParked()
	}
	b.mu.Unlock()
	b.groups.Close() // members that wait for others are sent away
	b.txns.Close()
	done := make(chan struct{})
	go func() { b.wg.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("broker: connections still open when the time to drain was over: %w", ctx.Err())
		b.mu.Lock()
		for c := range b.conns {
			b.log.Warn("connection still open when the time to drain was over", "remote", c.nc.RemoteAddr().String(), "owed", c.owed())
		}
		for c := range b.conns {
			c.cancel()
			c.nc.Close()
		}
		b.mu.Unlock()
		<-done
	}
	b.Checkpoint() // a restart has less to replay
	b.cancel()
	b.replicas.close()
	b.fetchers.close()
	b.peers.close()
	b.probes.close()
	return err
}
