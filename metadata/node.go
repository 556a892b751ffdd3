// Package metadata is one broker's view of the cluster and its membership in
// it: it publishes images of the metadata as they change, keeps the broker
// registered, takes part in the election of the controller and, once elected,
// decides and writes everything that is the controller's to write.
//
// What is decided is in the package controller, which knows no store and no
// clock; what is stored is in the package etcd. This package has the
// goroutines:
//
//	watch    follows the store, publishes images, calls subscribers
//	remember writes the highest revision seen to a file, if asked to
//	session  keeps the lease alive, registers again when it was lost
//	lead     campaigns; while elected, runs commands one batch at a time
//	probe    while elected, asks the other brokers whether they answer
//	compact  while elected, lets the store forget old revisions
//	mark     gives the log directory marks, by which an old copy of it is known
package metadata

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

// Options of a Node. Store is required; to Register, so are BrokerID, WAL and
// Endpoints.
type Options struct {
	Store     *etcd.Store
	BrokerID  int32
	Rack      string
	Endpoints []image.Endpoint
	// InterBroker is the listener of Endpoints for other brokers.
	InterBroker string
	WAL         [16]byte // identity of the log directory
	Place       string   // where that is; see image.Session. "" if it is not known
	Marks       Marks    // of the log directory; nil: it has none
	// AcceptLoss lets partitions whose only replica was on a log directory
	// that this broker lost go on from their remote end, without an operator's
	// command.
	AcceptLoss bool

	// CompactionInterval is how often the controller lets etcd forget what was
	// overwritten before the last time. Each manifest commit leaves a copy of
	// the head behind, and etcd by itself keeps all of them until its space is
	// used up. Zero: somebody else compacts.
	CompactionInterval time.Duration

	// BalanceInterval is how often the controller gives leaderships back to the
	// preferred leaders of brokers that miss more than BalancePercentage of them;
	// zero for never.
	BalanceInterval   time.Duration
	BalancePercentage int
	// HandOverTries is how often BeginShutdown waits, for HandOverWait each time,
	// until others lead; zero for not at all.
	HandOverTries int
	HandOverWait  time.Duration

	SessionTimeout    time.Duration // 2 s if zero; etcd rounds up to seconds
	HeartbeatInterval time.Duration // 300 ms if zero

	// BrokerConfig returns the broker's static settings, by Kafka's names:
	// num.partitions, default.replication.factor, min.insync.replicas,
	// unclean.leader.election.enable, delete.topic.enable are used here.
	BrokerConfig func() map[string]string
	// Checks of configs; see controller.Env. Nil means those of the package
	// config.
	ValidateTopic    func(overrides map[string]string) error
	ValidateResource func(resourceType int8, name string, values map[string]string) error
	IsList           func(resourceType int8, setting string) bool
	DefaultValue     func(resourceType int8, setting string) string
	// MaxPartitionsPerRequest and MaxPartitions bound what CreateTopics and
	// CreatePartitions make; zero means controller's defaults.
	MaxPartitionsPerRequest int
	MaxPartitions           int

	// SeenFile remembers the cluster and the highest revision seen, every few
	// seconds and at Close; "" for none. What an earlier process wrote
	// (ReadSeen) is checked by Open.
	SeenFile string

	Logger *slog.Logger
	Events Events
}

// Events are called, if set, as things happen; they must not block.
type Events struct {
	Published   func(im *image.Image)                         // a new image
	Resynced    func(reason error)                            // the watch broke off and the image was loaded again
	Elected     func(epoch int64)                             // this node became the controller
	Deposed     func(epoch int64)                             // and is not any more
	SessionLost func()                                        // the lease ran out
	Controlled  func(controller.Event)                        // what the controller did by itself
	Leaders     func(elected, unclean int)                    // partitions that the controller gave a leader, or another; of these, one that was not in sync
	Committed   func(commands, changes int, d time.Duration)  // a batch of the controller
	Failed      func(commands int, err error, retryable bool) // a batch that was not (wholly) written
}

// Node is one broker's metadata.
type Node struct {
	o           Options
	store       *etcd.Store
	log         *slog.Logger
	incarnation [16]byte
	started     time.Time

	markInterval time.Duration

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once // watch

	image       atomic.Pointer[image.Image]
	subscribers []func(prev, next *image.Image)
	forward     Forward

	mu        sync.Mutex
	published chan struct{} // closed when image moves
	delivered chan struct{} // closed when deliveredRevision moves
	// deliveredRevision is the revision that all subscribers have seen.
	deliveredRevision int64
	watchErr          error     // why the watch is broken; nil while it runs
	watchBroken       time.Time // since when
	watchFailed       int       // how often in a row
	watchAlive        time.Time // when it was last known to be well
	lease             int64     // 0: no session
	brokerEpoch       int64
	lastBeat          time.Time
	lastOutage        time.Time // last time that the store was found away
	leading           int64     // epoch of the election held, 0 if none
	abstains          time.Time // it does not campaign before
	resigned          time.Time // when it last gave an election up because others do not reach it
	responds          map[int32]controller.Response
	seen              map[int32]process // processes that came after this node
	closed            bool
	registered        bool
	marking           marking

	commands chan *pending
	wake     chan struct{} // the session changed: lead looks again
	prober   Prober
	judged   chan struct{} // the controller has another opinion of a broker
	hints    chan hint
}

// Open ensures that the cluster has an identity and loads the image. It starts
// nothing; Start or Register does.
func Open(ctx context.Context, o Options) (*Node, error) {
	if o.SessionTimeout == 0 {
		o.SessionTimeout = 2 * time.Second
	}
	if o.HeartbeatInterval == 0 {
		o.HeartbeatInterval = 300 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.BrokerConfig == nil {
		o.BrokerConfig = func() map[string]string { return nil }
	}
	if o.ValidateResource == nil {
		static := o.BrokerConfig
		o.ValidateResource = func(typ int8, name string, values map[string]string) error {
			return validateResource(config.Resolver{Static: static()}, typ, name, values)
		}
	}
	if o.IsList == nil {
		o.IsList = func(typ int8, name string) bool { d, ok := setting(typ, name); return ok && d.IsList() }
	}
	if o.DefaultValue == nil {
		o.DefaultValue = func(typ int8, name string) string {
			if d, ok := setting(typ, name); ok {
				return d.Default
			}
			return ""
		}
	}
	var seen Seen
	if o.SeenFile != "" {
		var err error
		if seen, err = ReadSeen(o.SeenFile); err != nil {
			return nil, err
		}
		o.Store.Saw(seen.Revision)
	}
	if got, err := o.Store.EnsureCluster(ctx, seen.Cluster); err != nil {
		if seen.Cluster != "" && got != "" && got != seen.Cluster {
			return nil, fmt.Errorf("%w: %s, but %s says %s; remove that file if this is meant", ErrForeignCluster, got, o.SeenFile, seen.Cluster)
		}
		if errors.Is(err, etcd.ErrRevisionRegressed) && o.SeenFile != "" {
			return nil, fmt.Errorf("%w (remembered in %s; remove that file to accept what etcd has now)", err, o.SeenFile)
		}
		return nil, err
	}
	im, err := o.Store.Load(ctx)
	if err != nil {
		return nil, err
	}
	n := &Node{
		o: o, store: o.Store, log: o.Logger, started: time.Now(), markInterval: markInterval,
		published: make(chan struct{}), delivered: make(chan struct{}),
		commands: make(chan *pending, maxQueued), wake: make(chan struct{}, 1), judged: make(chan struct{}, 1), hints: make(chan hint, 64),
		watchAlive: time.Now(), seen: map[int32]process{},
	}
	rand.Read(n.incarnation[:])
	n.image.Store(im)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

// Image returns the current image. It keeps serving the last one while the
// store is away.
func (n *Node) Image() *image.Image { return n.image.Load() }

// Incarnation of this process. The broker leads a partition only while the
// image's record of it names this incarnation, unfenced.
func (n *Node) Incarnation() [16]byte { return n.incarnation }

// BrokerEpoch of the current registration, 0 without one.
func (n *Node) BrokerEpoch() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.brokerEpoch
}

// IsController says whether this node holds the election.
func (n *Node) IsController() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leading != 0
}

// Manifests returns the manifest heads.
func (n *Node) Manifests() *etcd.Manifests { return n.store.Manifests() }

// AllocateProducerIDs takes a block of producer ids for this broker.
func (n *Node) AllocateProducerIDs(ctx context.Context) (first int64, count int32, err error) {
	return n.store.AllocateProducerIDs(ctx)
}

// Subscribe adds a function that is called after each new image, in the order
// of revisions, from one goroutine; the first time with an empty image before.
// It must not wait for a command of this node, which waits for subscribers.
// Call it before Start and Register.
func (n *Node) Subscribe(f func(prev, next *image.Image)) {
	n.subscribers = append(n.subscribers, f)
}

// Start begins to follow the store. A node that is no broker (a tool, a
// worker) needs no more.
func (n *Node) Start() {
	n.once.Do(func() {
		n.wg.Add(1)
		go n.watch()
		if n.o.SeenFile != "" {
			n.wg.Add(1)
			go n.remember()
		}
	})
}

// remember keeps the seen file.
func (n *Node) remember() {
	defer n.wg.Done()
	last := int64(-1)
	for more := true; more; {
		if s := (Seen{n.Image().ClusterID, n.store.Revision()}); s.Revision != last && !n.store.Regressed() {
			if err := s.write(n.o.SeenFile); err != nil {
				n.log.Warn("the highest revision seen cannot be remembered", "error", err)
			}
			last = s.Revision
		}
		more = sleep(n.ctx, 10*time.Second)
	}
}

// watch publishes images until the node is closed.
func (n *Node) watch() {
	defer n.wg.Done()
	n.deliver(image.Empty(), n.Image())
	delay := 20 * time.Millisecond
	for n.ctx.Err() == nil {
		before := n.Image()
		o := etcd.WatchOptions{
			After: before.Revision, Every: min(n.o.HeartbeatInterval, n.o.SessionTimeout/8), Patience: n.o.SessionTimeout / 2, Alive: n.watchIsAlive,
		}
		err := n.store.Watch(n.ctx, o, func(d image.Delta) error {
			n.setWatchErr(nil)
			n.publish(n.Image().Apply(d))
			return nil
		})
		if n.ctx.Err() != nil {
			return
		}
		if n.Image() != before {
			delay = 20 * time.Millisecond
		}
		n.setWatchErr(err)
		// A new watch takes up after the last image. Only if that position is
		// gone, or an entry could not be read, is everything loaded again.
		if errors.Is(err, etcd.ErrCompacted) || errors.Is(err, etcd.ErrFormat) {
			inARow := n.watchFailedAgain()
			if told(inARow) {
				n.log.Warn("metadata watch broke off, loading everything", "in_a_row", inARow, "error", err)
			}
			im, loadErr := n.store.Load(n.ctx)
			if loadErr == nil {
				n.setWatchErr(nil)
				n.publish(im)
				n.watchIsAlive()
				if f := n.o.Events.Resynced; f != nil {
					f(err)
				}
				continue
			}
			n.setWatchErr(loadErr)
			if told(inARow) {
				n.log.Warn("metadata cannot be loaded", "in_a_row", inARow, "error", loadErr)
			}
		} else if inARow := n.watchFailedAgain(); told(inARow) {
			n.log.Warn("metadata watch broke off", "in_a_row", inARow, "error", err)
		}
		if !sleep(n.ctx, delay) {
			return
		}
		delay = min(2*delay, time.Second)
	}
}

func (n *Node) setWatchErr(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil && n.watchErr == nil {
		n.watchBroken = time.Now()
	}
	n.watchErr = err
}

func (n *Node) watchFailedAgain() (inARow int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watchFailed++
	return n.watchFailed
}

func (n *Node) watchIsAlive() {
	n.mu.Lock()
	failed, broken := n.watchFailed, n.watchBroken
	n.watchErr, n.watchAlive, n.watchFailed = nil, time.Now(), 0
	n.mu.Unlock()
	if failed > 1 {
		n.log.Info("metadata is followed again", "failures", failed, "after", time.Since(broken).Round(time.Millisecond))
	}
}

// told says which of failures in a row are logged: the first, the second, the fourth, and so on. What goes on for an hour at
// one a second is a dozen lines.
func told(inARow int) bool { return inARow&(inARow-1) == 0 }

// blind says that nothing is known of what is written, for so long that a watch at a
// member that hangs would have been noticed, and taken up elsewhere.
func (n *Node) blind() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.watchAlive) > n.o.SessionTimeout*3/2
}

func (n *Node) publish(next *image.Image) {
	prev := n.image.Swap(next)
	n.noteProcesses(prev, next)
	n.mu.Lock()
	close(n.published)
	n.published = make(chan struct{})
	n.mu.Unlock()
	n.deliver(prev, next)
	if f := n.o.Events.Published; f != nil {
		f(next)
	}
}

func (n *Node) deliver(prev, next *image.Image) {
	for _, f := range n.subscribers {
		f(prev, next)
	}
	n.mu.Lock()
	n.deliveredRevision = next.Revision
	close(n.delivered)
	n.delivered = make(chan struct{})
	n.mu.Unlock()
}

// await waits until the image satisfies ok; the error is ctx's.
func (n *Node) await(ctx context.Context, ok func(*image.Image) bool) error {
	for {
		n.mu.Lock()
		moved := n.published
		n.mu.Unlock()
		if ok(n.Image()) {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitDelivered waits until every subscriber has seen the revision.
func (n *Node) awaitDelivered(ctx context.Context, revision int64) error {
	for {
		n.mu.Lock()
		done, moved := n.deliveredRevision >= revision, n.delivered
		n.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-n.ctx.Done():
			return errClosed
		}
	}
}

var errClosed = errors.New("metadata: node closed")

// Healthy says why metadata cannot be changed now, or that it can: the store
// answers heartbeats, the watch runs, the store was not set back and has room.
func (n *Node) Healthy() error {
	if err := n.reachable(); err != nil {
		return err
	}
	if n.store.OutOfSpace() {
		return etcd.ErrNoSpace
	}
	return nil
}

// reachable is Healthy but for the store's space: only trying tells that there
// is room again.
func (n *Node) reachable() error {
	if n.store.Regressed() {
		return etcd.ErrRevisionRegressed
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errClosed
	}
	if n.watchErr != nil && time.Since(n.watchBroken) > n.o.SessionTimeout {
		return fmt.Errorf("metadata watch broken since %s: %w", n.watchBroken.Format(time.RFC3339), n.watchErr)
	}
	if since := time.Since(n.watchAlive); since > 2*n.o.SessionTimeout {
		return fmt.Errorf("%w: what was written in the last %s is not known", etcd.ErrUnavailable, since.Round(time.Millisecond))
	}
	if n.registered {
		if n.lease == 0 {
			return fmt.Errorf("%w: session lost", etcd.ErrUnavailable)
		}
		if since := time.Since(n.lastBeat); since > n.o.SessionTimeout {
			return fmt.Errorf("%w: no heartbeat answered for %s", etcd.ErrUnavailable, since.Round(time.Millisecond))
		}
	}
	return nil
}

// Close ends the registration, so that others need not wait for the lease, and
// returns when the node's goroutines have ended.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
	if n.o.SeenFile != "" && !n.store.Regressed() {
		if err := (Seen{n.Image().ClusterID, n.store.Revision()}).write(n.o.SeenFile); err != nil {
			n.log.Warn("the highest revision seen cannot be remembered", "error", err)
		}
	}
	n.mu.Lock()
	lease := n.lease
	n.lease = 0
	n.mu.Unlock()
	if lease != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), n.o.SessionTimeout)
		defer cancel()
		if err := n.store.Revoke(ctx, lease); err != nil {
			n.log.Warn("the session could not be ended, it will run out", "error", err)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newTopicID draws a topic id. Ids whose text form begins with a dash are
// skipped: command lines take them for a flag.
func newTopicID() (id [16]byte) {
	for {
		rand.Read(id[:])
		id[6] = id[6]&0x0f | 0x40
		id[8] = id[8]&0x3f | 0x80
		if base64.RawURLEncoding.EncodeToString(id[:])[0] != '-' {
			return id
		}
	}
}
