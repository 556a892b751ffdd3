package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// The controller's own heartbeats: while this node is elected, it asks all other
// brokers whether they answer, all the time, and has controller.Probes judge what
// comes of it. What follows is written by the controller's loop like everything
// else (controller.Env.Responds).

// Prober asks other brokers whether they answer.
type Prober interface {
	// Probe asks broker to whether it answers, or, with about, whether that one
	// answers it. It returns what came of it before ctx ended, which has a deadline.
	Probe(ctx context.Context, to, about *image.Broker) controller.Probed
	// Stalled is for how long this broker has been waiting for its own log's disk.
	Stalled() time.Duration
}

// SetProber has this node, when it is the controller, find out whether brokers
// answer. Call it before Start and Register.
func (n *Node) SetProber(p Prober) { n.prober = p }

// hint is somebody's word that a broker may be gone.
type hint struct {
	broker      int32
	incarnation [16]byte
}

// Suspect tells the controller that a connection to another broker broke, so that
// it asks that one at once. The error says that it was not told.
func (n *Node) Suspect(ctx context.Context, id int32, incarnation [16]byte) error {
	if n.IsController() {
		n.hinted(hint{id, incarnation})
		return nil
	}
	im := n.Image()
	to := im.Broker(im.Controller)
	if to == nil || to.ID == id || to.ID == n.o.BrokerID || n.forward == nil {
		return fmt.Errorf("metadata: nobody to tell that broker %d does not answer", id)
	}
	raw, err := controller.EncodeCommand(controller.Suspect{Broker: id, Incarnation: incarnation}, false)
	if err != nil {
		return err
	}
	if raw, err = n.forward(ctx, to, raw); err != nil {
		return err
	}
	var v replyValue
	if err = json.Unmarshal(raw, &v); err == nil && v.ErrorCode != 0 {
		err = errors.New(v.Message)
	}
	return err
}

func (n *Node) hinted(h hint) {
	select {
	case n.hints <- h:
	default: // there are enough of them
	}
}

var (
	// errBlind: the controller does not see what is written.
	errBlind = errors.New("metadata: the watch shows nothing new")
	// errCutOff: the controller is in no position to judge others, or does not answer them.
	errCutOff = errors.New("metadata: this broker is cut off from the others")
)

const (
	// abstention is for how many session timeouts a broker that was cut off does not
	// campaign, so that another can be elected.
	abstention = 5
	// resignEvery bounds how often a broker gives up an election because it is cut off:
	// where all are, somebody has to be the controller.
	resignEvery = time.Minute
	// graceTimeouts is how many session timeouts a process has to answer for the first time.
	graceTimeouts = 8
)

// stayAware ends the controller's work when its watch shows nothing new.
func (n *Node) stayAware(ctx context.Context, cancel context.CancelCauseFunc) {
	for sleep(ctx, n.o.HeartbeatInterval) {
		if n.blind() {
			cancel(errBlind)
			return
		}
	}
}

// giveUp has somebody else be elected.
func (n *Node) giveUp(epoch int64, why error) {
	n.log.Warn("this broker gives up being the controller", "epoch", epoch, "why", why)
	if errors.Is(why, errCutOff) {
		n.mu.Lock()
		n.resigned = time.Now()
		n.abstains = n.resigned.Add(abstention * n.o.SessionTimeout)
		n.mu.Unlock()
	}
	n.resign(epoch)
}

func (n *Node) resign(epoch int64) {
	ctx, cancel := context.WithTimeout(n.ctx, n.o.SessionTimeout)
	defer cancel()
	if err := n.store.Resign(ctx, epoch); err != nil && n.ctx.Err() == nil {
		n.log.Warn("the election could not be given up", "epoch", epoch, "error", err)
	}
}

// abstain is for how long this node should not campaign; zero: it may.
func (n *Node) abstain(im *image.Image) time.Duration {
	if n.blind() {
		return n.o.HeartbeatInterval
	}
	n.mu.Lock()
	wait := time.Until(n.abstains)
	n.mu.Unlock()
	if wait <= 0 {
		return 0
	}
	if im.Controller == n.o.BrokerID {
		n.resign(im.ControllerEpoch) // the first time it did not work
	}
	return min(wait, n.o.SessionTimeout)
}

// noteProcesses notes when processes were first seen. Those of the image that this
// node began with are known since long ago.
func (n *Node) noteProcesses(prev, next *image.Image) {
	for _, b := range next.Brokers() {
		if was := prev.Broker(b.ID); was != b && (was == nil || was.Incarnation != b.Incarnation) {
			n.mu.Lock()
			n.seen[b.ID] = process{b.Incarnation, time.Now()}
			n.mu.Unlock()
		}
	}
}

// process is a broker's process and since when it is known.
type process struct {
	incarnation [16]byte
	since       time.Time
}

func (n *Node) knownSince(id int32, incarnation [16]byte) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.seen[id]; ok && p.incarnation == incarnation {
		return p.since
	}
	return time.Time{}
}

// probe asks the other brokers until ctx ends.
func (n *Node) probe(ctx context.Context, cancel context.CancelCauseFunc) {
	p := controller.NewProbes(controller.ProbeOptions{
		Self: n.o.BrokerID, Started: n.started, Every: max(n.o.HeartbeatInterval, n.o.SessionTimeout/4), Patience: n.o.SessionTimeout * 3 / 2,
		Grace: graceTimeouts * n.o.SessionTimeout, Known: n.knownSince,
	})
	timeout := n.o.SessionTimeout / 2
	answers := make(chan controller.Answer)
	var wg sync.WaitGroup
	defer wg.Wait()
	put := func(im *image.Image, q controller.Question) {
		to, about := im.Broker(q.To), im.Broker(q.About)
		a := controller.Answer{Question: q}
		if about != nil {
			a.Incarnation = about.Incarnation
		}
		wg.Go(func() {
			if to != nil && about != nil {
				most := timeout
				if q.To == q.About {
					about = nil
				} else {
					most += timeout / 2 // it has to find out
				}
				ask, stop := context.WithTimeout(ctx, most)
				r := n.prober.Probe(ask, to, about)
				stop()
				a.Probed = r
			}
			select {
			case answers <- a:
			case <-ctx.Done():
			}
		})
	}
	ended := map[int32][16]byte{}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		im := n.Image()
		ask, next := p.Ask(time.Now(), im)
		for _, q := range ask {
			put(im, q)
		}
		again.Reset(time.Until(next))
		select {
		case a := <-answers:
			p.Told(time.Now(), a)
		case h := <-n.hints:
			p.Hint(time.Now(), h.broker, h.incarnation)
		case <-again.C:
		case <-ctx.Done():
			return
		}
		j := p.Judge(time.Now(), n.Image(), n.prober.Stalled())
		n.judge(j.Responds)
		for id, incarnation := range j.Gone {
			if ended[id] == incarnation {
				continue
			}
			ended[id] = incarnation
			n.log.Warn("a broker's address refuses connections: its session is ended", "broker", id)
			wg.Go(func() {
				if err := n.EndSession(ctx, id, incarnation); err != nil && ctx.Err() == nil {
					n.log.Warn("the session of a broker that is gone was not ended, and runs out", "broker", id, "error", err)
				}
			})
		}
		if j.CutOff != "" {
			n.mu.Lock()
			often := !n.resigned.IsZero() && time.Since(n.resigned) < resignEvery
			n.mu.Unlock()
			if !often {
				cancel(fmt.Errorf("%w: %s", errCutOff, j.CutOff))
				return
			}
		}
	}
}

// judge passes on what is thought of the brokers.
func (n *Node) judge(responds map[int32]controller.Response) {
	n.mu.Lock()
	same := maps.Equal(n.responds, responds)
	if !same {
		n.responds = responds
	}
	n.mu.Unlock()
	if !same {
		select {
		case n.judged <- struct{}{}:
		default:
		}
	}
}
