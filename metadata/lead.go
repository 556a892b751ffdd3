package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

const (
	// maxQueued commands wait for the controller; the next is refused.
	maxQueued = 1024
	// maxBatch commands are decided and written together.
	maxBatch = 256
	// maxAttempts at a batch whose outcome was open or whose keys had moved.
	maxAttempts = 8

	codeUnknownServerError int16 = -1
	codeRequestTimedOut    int16 = 7
	codeNotController      int16 = 41

	notController = "This is not the correct controller for this cluster."
)

// pending is a command on its way through the controller.
type pending struct {
	command controller.Command
	ctx     context.Context
	reply   controller.Reply
	// revision that shows the effects, 0 if there are none.
	revision  int64
	attempted bool // an earlier handling had effects
	done      chan struct{}
}

// lead campaigns whenever nobody holds the election, and controls while this
// node does.
func (n *Node) lead() {
	defer n.wg.Done()
	const shortest = 50 * time.Millisecond
	delay := shortest
	failed := 0 // campaigns in a row
	for n.ctx.Err() == nil {
		n.mu.Lock()
		lease, moved := n.lease, n.published
		n.mu.Unlock()
		im := n.Image()
		if lease != 0 && (im.Controller == image.NoLeader || im.Controller == n.o.BrokerID) {
			if wait := n.abstain(im); wait > 0 {
				select {
				case <-moved:
				case <-n.wake:
				case <-time.After(wait):
				case <-n.ctx.Done():
				}
				continue
			}
			// If the image still names an earlier incarnation of this broker,
			// the campaign finds out.
			epoch, won, err := n.store.Campaign(n.ctx, lease, n.o.BrokerID, n.incarnation)
			if won && n.control(epoch) {
				delay, failed = shortest, 0
				continue
			}
			switch {
			case err == nil:
				failed = 0
			case n.ctx.Err() == nil:
				if failed++; told(failed) {
					n.log.Warn("campaign failed", "in_a_row", failed, "error", err)
				}
			}
			if won || err != nil || im.Controller == n.o.BrokerID {
				sleep(n.ctx, delay)
				delay = min(2*delay, time.Second)
				continue
			}
		}
		delay, failed = shortest, 0
		select {
		case <-moved:
		case <-n.wake:
		case <-n.ctx.Done():
		}
	}
}

// control is the controller: it runs until the election is lost. False: it
// could not even begin.
func (n *Node) control(epoch int64) bool {
	ctx, cancel := context.WithCancelCause(n.ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel(nil)
		wg.Wait()
		if why := context.Cause(ctx); errors.Is(why, errBlind) || errors.Is(why, errCutOff) {
			n.giveUp(epoch, why)
		}
	}()
	wg.Go(func() { n.stayAware(ctx, cancel) })
	// Everything that earlier controllers wrote must be in the image before
	// anything is decided upon it.
	if err := n.resync(ctx, epoch, 0); err != nil {
		if n.ctx.Err() == nil {
			n.log.Warn("elected, but not able to begin", "error", err)
		}
		return false
	}
	n.log.Info("this broker is the controller", "epoch", epoch)
	n.mu.Lock()
	n.leading = epoch
	n.mu.Unlock()
	if f := n.o.Events.Elected; f != nil {
		f(epoch)
	}
	if n.prober != nil {
		wg.Go(func() { n.probe(ctx, cancel) })
	}
	defer func() {
		n.mu.Lock()
		n.leading, n.responds = 0, nil
		n.mu.Unlock()
		if why := context.Cause(ctx); errors.Is(why, errBlind) {
			n.failQueued(why)
		}
		n.drain()
		n.log.Info("this broker is not the controller any more", "epoch", epoch)
		if f := n.o.Events.Deposed; f != nil {
			f(epoch)
		}
	}()

	var balance <-chan time.Time
	if n.o.BalanceInterval > 0 {
		tick := time.NewTicker(n.o.BalanceInterval)
		defer tick.Stop()
		balance = tick.C
	}
	for {
		n.mu.Lock()
		moved := n.published
		n.mu.Unlock()
		im := n.Image()
		if im.Controller != n.o.BrokerID || im.ControllerEpoch != epoch {
			return true
		}
		hold := time.Until(n.holdUntil())
		env := n.env(im)
		env.Hold = hold > 0
		if changes, events := controller.Reconcile(im, env); len(changes) > 0 {
			if !n.reconcile(ctx, epoch, im, changes, events) {
				return true
			}
			continue
		}
		var held <-chan time.Time
		var timer *time.Timer
		if env.Hold {
			timer = time.NewTimer(hold)
			held = timer.C
		}
		var batch []*pending
		select {
		case c := <-n.commands:
			batch = append(batch, c)
		case <-moved:
		case <-held:
		case <-n.judged:
		case <-balance:
			if !n.balance(ctx, epoch) {
				return true
			}
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		if n.ctx.Err() != nil {
			n.fail(batch, codeRequestTimedOut, errClosed)
			return true
		}
		if ctx.Err() != nil {
			n.fail(batch, codeNotController, etcd.ErrNotController)
			return true
		}
		for len(batch) > 0 && len(batch) < maxBatch {
			select {
			case c := <-n.commands:
				batch = append(batch, c)
				continue
			default:
			}
			break
		}
		if len(batch) > 0 && !n.execute(ctx, epoch, batch) {
			return true
		}
	}
}

// reconcile writes what the image called for. False: the election is lost or
// the node closed.
func (n *Node) reconcile(ctx context.Context, epoch int64, im *image.Image, changes []image.Change, events []controller.Event) bool {
	begin := time.Now()
	next, err := n.commit(ctx, epoch, im, changes)
	if err == nil {
		if n.await(ctx, func(im *image.Image) bool { return im.Revision >= next.Revision }) != nil {
			return false
		}
		n.tell(events, begin)
		if f := n.o.Events.Committed; f != nil {
			f(0, len(changes), time.Since(begin))
		}
		return true
	}
	if f := n.o.Events.Failed; f != nil {
		f(0, err, !errors.Is(err, etcd.ErrNotController))
	}
	n.log.Warn("the controller could not write", "error", err)
	// What the image calls for will be called for again: not in a tight loop.
	return n.resync(ctx, epoch, next.Revision) == nil && sleep(ctx, 50*time.Millisecond)
}

// commit is Store.Commit, and tells of the leaders that it made.
func (n *Node) commit(ctx context.Context, epoch int64, base *image.Image, changes []image.Change) (*image.Image, error) {
	next, err := n.store.Commit(ctx, epoch, base, changes)
	if f := n.o.Events.Leaders; f != nil { // also of what was written before it failed
		if elected, unclean := controller.Elected(base, next, changes); elected > 0 {
			f(elected, unclean)
		}
	}
	return next, err
}

// tell says what the controller did.
func (n *Node) tell(events []controller.Event, begin time.Time) {
	for _, e := range events {
		level := slog.LevelInfo
		switch e.Kind {
		case "fenced", "disk-lost", "disk-stale", "data-lost", "offline", "cleaned", "unclean", "unresponsive":
			level = slog.LevelWarn
		}
		n.log.Log(n.ctx, level, e.Message, "event", e.Kind, "broker", e.Broker, "count", e.Count, "took", time.Since(begin))
		if f := n.o.Events.Controlled; f != nil {
			f(e)
		}
	}
}

// maxBalanced bounds the leaderships that move in one batch.
const maxBalanced = 1000

// balance gives leaderships back, batch by batch. False: stop controlling.
func (n *Node) balance(ctx context.Context, epoch int64) bool {
	for {
		p := &pending{ctx: n.ctx, done: make(chan struct{}), command: controller.Balance{Percentage: n.o.BalancePercentage, Limit: maxBalanced}}
		if !n.execute(ctx, epoch, []*pending{p}) {
			return false
		}
		if p.reply.ErrorCode != 0 || len(p.reply.Events) == 0 || p.reply.Events[0].Count < maxBalanced {
			return true
		}
	}
}

// resync waits until the image shows everything written so far, at least the
// given revision: after it, a transaction whose outcome was open has been
// applied and is seen, or will fail its compares.
func (n *Node) resync(ctx context.Context, epoch, revision int64) error {
	failed := 0
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		rev, err := n.store.Barrier(ctx, epoch)
		if err == nil {
			return n.await(ctx, func(im *image.Image) bool { return im.Revision >= max(rev, revision) })
		}
		if errors.Is(err, etcd.ErrNotController) || ctx.Err() != nil || errors.Is(err, etcd.ErrRevisionRegressed) {
			return err
		}
		if failed++; told(failed) {
			n.log.Warn("the controller cannot reach the store", "in_a_row", failed, "error", err)
		}
		n.failQueued(err)
		if !sleep(ctx, delay) {
			return ctx.Err()
		}
	}
}

// execute decides a batch of commands, each upon the effects of those before
// it, and writes what they change. False: stop controlling.
func (n *Node) execute(ctx context.Context, epoch int64, batch []*pending) bool {
	begin := time.Now()
	live := batch[:0]
	for _, p := range batch {
		if err := p.ctx.Err(); err != nil {
			n.fail([]*pending{p}, codeRequestTimedOut, err)
			continue
		}
		live = append(live, p)
	}
	batch = live
	for attempt := 1; len(batch) > 0; attempt++ {
		base := n.Image()
		env := n.env(base)
		tentative := base
		var changes []image.Change
		for _, p := range batch {
			env.Retry = p.attempted
			made, reply := controller.Handle(tentative, env, p.command)
			p.reply = reply
			if len(made) > 0 {
				p.attempted = true
				tentative = tentative.Apply(image.Delta{Changes: made})
				changes = append(changes, made...)
			}
		}
		next, err := n.commit(ctx, epoch, base, changes)
		if err == nil {
			for _, p := range batch {
				if p.attempted {
					// What an earlier attempt did is shown by now as well.
					p.revision = next.Revision
				}
				close(p.done)
				n.tell(p.reply.Events, begin)
			}
			if f := n.o.Events.Committed; f != nil {
				f(len(batch), len(changes), time.Since(begin))
			}
			// The next decision is taken upon the published image.
			return n.await(ctx, func(im *image.Image) bool { return im.Revision >= next.Revision }) == nil
		}
		retry := attempt < maxAttempts && (errors.Is(err, etcd.ErrConflict) || errors.Is(err, etcd.ErrAmbiguous))
		if f := n.o.Events.Failed; f != nil {
			f(len(batch), err, retry)
		}
		n.log.Warn("the controller could not write", "commands", len(batch), "changes", len(changes), "attempt", attempt, "error", err)
		switch {
		case errors.Is(err, etcd.ErrNotController):
			n.fail(batch, codeNotController, err)
			return false
		case !retry:
			n.fail(batch, codeRequestTimedOut, err)
			batch = nil
		}
		if err := n.resyncFor(ctx, epoch, next.Revision, batch); err != nil {
			code := codeRequestTimedOut
			if errors.Is(err, etcd.ErrNotController) {
				code = codeNotController
			}
			n.fail(batch, code, err)
			if errors.Is(err, etcd.ErrNotController) || ctx.Err() != nil {
				return false
			}
			return n.resync(ctx, epoch, next.Revision) == nil
		}
	}
	return true
}

// resyncFor is resync for commands that wait: it gives up after a session
// timeout, so that they get an answer.
func (n *Node) resyncFor(ctx context.Context, epoch, revision int64, batch []*pending) error {
	if len(batch) == 0 {
		return n.resync(ctx, epoch, revision)
	}
	deadline := time.Now().Add(n.o.SessionTimeout)
	for delay := 20 * time.Millisecond; ; delay *= 2 {
		rev, err := n.store.Barrier(ctx, epoch)
		if err == nil {
			return n.await(ctx, func(im *image.Image) bool { return im.Revision >= max(rev, revision) })
		}
		if errors.Is(err, etcd.ErrNotController) || ctx.Err() != nil || time.Now().After(deadline) || !sleep(ctx, delay) {
			return err
		}
	}
}

// fail answers commands that were not, or not certainly, carried out.
func (n *Node) fail(batch []*pending, code int16, err error) {
	for _, p := range batch {
		p.reply = controller.Fail(p.command, code, message(err))
		p.revision = 0
		close(p.done)
	}
}

func message(err error) string {
	switch {
	case errors.Is(err, etcd.ErrNotController):
		return notController
	case errors.Is(err, etcd.ErrNoSpace):
		return "The metadata store is out of space."
	}
	return fmt.Sprintf("The metadata store did not answer: %v", err)
}

// failQueued answers what waits while the store is away.
func (n *Node) failQueued(err error) {
	for {
		select {
		case p := <-n.commands:
			n.fail([]*pending{p}, codeRequestTimedOut, err)
		default:
			return
		}
	}
}

// drain answers what was queued when the election was lost.
func (n *Node) drain() {
	for {
		select {
		case p := <-n.commands:
			n.fail([]*pending{p}, codeNotController, etcd.ErrNotController)
		default:
			return
		}
	}
}

func (n *Node) env(im *image.Image) controller.Env {
	static := n.o.BrokerConfig()
	number := func(name string, d int64) int64 {
		if v, err := strconv.ParseInt(static[name], 10, 32); err == nil && v > 0 {
			return v
		}
		return d
	}
	validateTopic := n.o.ValidateTopic
	if validateTopic == nil {
		validateTopic = config.Resolver{Static: static, ClusterDynamic: im.Config(image.BrokerResource, "")}.ValidateTopic
	}
	n.mu.Lock()
	responds := n.responds
	n.mu.Unlock()
	return controller.Env{
		Responds:                 responds,
		DefaultPartitions:        int32(number("num.partitions", 1)),
		DefaultReplicationFactor: int16(number("default.replication.factor", 1)),
		MinISR:                   int(number("min.insync.replicas", 1)),
		Unclean:                  strings.EqualFold(strings.TrimSpace(static["unclean.leader.election.enable"]), "true"),
		DeleteTopics:             !strings.EqualFold(strings.TrimSpace(static["delete.topic.enable"]), "false"),
		ValidateTopic:            validateTopic,
		ValidateResource:         n.o.ValidateResource,
		IsList:                   n.o.IsList,
		DefaultValue:             n.o.DefaultValue,
		MaxPartitionsPerRequest:  n.o.MaxPartitionsPerRequest,
		MaxPartitions:            n.o.MaxPartitions,
	}
}

// setting finds what config knows of a setting of a resource.
func setting(resourceType int8, name string) (*config.Def, bool) {
	switch resourceType {
	case image.TopicResource:
		return config.Topic(name)
	case image.BrokerResource:
		return config.Broker(name)
	case image.GroupResource:
		return config.Group(name)
	case image.ClientMetricsResource:
		return config.ClientMetrics(name)
	}
	return nil, false
}

func validateResource(r config.Resolver, resourceType int8, name string, values map[string]string) error {
	switch resourceType {
	case image.BrokerResource:
		return config.ValidateBroker(values, name != "")
	case image.GroupResource:
		return r.ValidateGroup(values)
	case image.ClientMetricsResource:
		return config.ValidateClientMetrics(values)
	}
	return fmt.Errorf("no settings are known for resource type %d", resourceType)
}

// do has the controller carry out a command, and returns its reply once the
// image that shows the effects was published here and the subscribers have seen
// it.
func (n *Node) do(ctx context.Context, c controller.Command) controller.Reply {
	if err := n.reachable(); err != nil {
		return controller.Fail(c, codeRequestTimedOut, message(err))
	}
	if !n.IsController() {
		// Nobody holds the election for a moment when a session was lost.
		wait, cancel := context.WithTimeout(ctx, 2*n.o.SessionTimeout)
		defer cancel()
		err := n.await(wait, func(im *image.Image) bool {
			return im.Controller != image.NoLeader && im.Controller != n.o.BrokerID || n.IsController()
		})
		switch {
		case err != nil, !n.IsController() && n.forward == nil:
			return controller.Fail(c, codeNotController, notController)
		case !n.IsController():
			return n.elsewhere(ctx, c)
		}
	}
	reply, _ := n.command(ctx, c, false)
	return reply
}

// command has this node's own controller carry out a command; revision shows its
// effects, if it had some.
func (n *Node) command(ctx context.Context, c controller.Command, retry bool) (reply controller.Reply, revision int64) {
	fail := func(code int16, message string) (controller.Reply, int64) {
		return controller.Fail(c, code, message), 0
	}
	p := &pending{command: c, ctx: ctx, attempted: retry, done: make(chan struct{})}
	select {
	case n.commands <- p:
	default:
		return fail(codeRequestTimedOut, "The controller's queue is full.")
	}
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	for waiting := true; waiting; {
		select {
		case <-p.done:
			waiting = false
		case <-ctx.Done():
			return fail(codeRequestTimedOut, "The request timed out before the controller answered.")
		case <-n.ctx.Done():
			return fail(codeRequestTimedOut, message(errClosed))
		case <-timeout.C:
			return fail(codeRequestTimedOut, "The controller did not answer.")
		case <-time.After(100 * time.Millisecond):
			// A command queued in the instant in which the election was lost
			// has nobody to answer it.
			if !n.IsController() {
				n.drain()
			}
		}
	}
	if p.revision > 0 {
		// Done is done, also if the wait ends early.
		n.awaitDelivered(ctx, p.revision)
	}
	return p.reply, p.revision
}

// CreateTopics creates topics, or with validateOnly says what would happen.
// One result per topic, in order. The topics of results without an error are
// in Image(), and subscribers have seen them.
func (n *Node) CreateTopics(ctx context.Context, topics []controller.NewTopic, validateOnly bool) []controller.Result {
	topics = append([]controller.NewTopic(nil), topics...)
	for i := range topics {
		if topics[i].ID == [16]byte{} {
			topics[i].ID = newTopicID()
		}
	}
	return n.do(ctx, controller.CreateTopics{Topics: topics, ValidateOnly: validateOnly}).Results
}

// DeleteTopics deletes topics by name or id. One result per topic, in order.
func (n *Node) DeleteTopics(ctx context.Context, topics []controller.TopicRef) []controller.Result {
	return n.do(ctx, controller.DeleteTopics{Topics: topics}).Results
}

// CreatePartitions adds partitions to topics. One result per topic, in order.
func (n *Node) CreatePartitions(ctx context.Context, topics []controller.Growth, validateOnly bool) []controller.Result {
	return n.do(ctx, controller.CreatePartitions{Topics: topics, ValidateOnly: validateOnly}).Results
}

// AlterConfigs changes dynamic configs, incrementally or replacing them. One
// result per resource, in order.
func (n *Node) AlterConfigs(ctx context.Context, resources []controller.AlterResource, incremental, validateOnly bool) []controller.Result {
	return n.do(ctx, controller.AlterConfigs{Resources: resources, Incremental: incremental, ValidateOnly: validateOnly}).Results
}

// AlterPartition proposes in-sync replica sets; see controller.AlterPartition.
func (n *Node) AlterPartition(ctx context.Context, c controller.AlterPartition) controller.Reply {
	return n.do(ctx, c)
}

// Do has the controller carry out a command of an operator; see the command.
// The errors of the reply are Kafka's.
func (n *Node) Do(ctx context.Context, c controller.Command) controller.Reply {
	return n.do(ctx, c)
}

// AcceptLoss lets a broker lead the partitions whose data only its lost log
// directory had, from their remote end. One result per topic concerned.
func (n *Node) AcceptLoss(ctx context.Context, broker int32) ([]controller.Result, error) {
	r := n.do(ctx, controller.AcceptLoss{Broker: broker})
	if r.ErrorCode != 0 {
		return nil, fmt.Errorf("metadata: accept loss on broker %d: %s (error %d)", broker, r.Message, r.ErrorCode)
	}
	return r.Results, nil
}

// compact lets the store forget, while this node is the controller, what was
// overwritten before the last time it looked: a watch that fell behind by less
// than an interval goes on where it stood, and one further behind loads the image
// again.
func (n *Node) compact() {
	defer n.wg.Done()
	last := int64(0)
	for sleep(n.ctx, n.o.CompactionInterval) {
		if !n.IsController() {
			last = 0
			continue
		}
		next := n.store.Revision()
		if last > 0 {
			if err := n.store.Compact(n.ctx, last); err != nil && n.ctx.Err() == nil {
				n.log.Warn("etcd's old revisions cannot be compacted", "revision", last, "error", err)
			}
		}
		last = next
	}
}
