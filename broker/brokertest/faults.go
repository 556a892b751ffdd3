package brokertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering/objstore"
)

// event is a fault that the seed has planned: what, to whom, for how long, and how long after the one before.
type event struct {
	fault *fault
	after time.Duration
	lasts time.Duration
	rnd   *rand.Rand // of its details
}

// fault is a kind of fault. do has it happen, last and end; it says to whom, or that it did not apply.
type fault struct {
	name   string
	weight int
	alone  bool // it begins when all replicas are in sync and no other lasts, and is over when they are again
	do     func(f *faults, e *event, note func(string, ...any))
}

// wipes says whether a disk is lost, or something on it.
func (f *fault) wipes() bool {
	return slices.Contains([]string{"wipe", "join-stale", "old-disk", "flip-end"}, f.name)
}

// applies says whether there is what it happens to.
func (f *fault) applies(has features) bool {
	return !strings.HasPrefix(f.name, "worker-") || has.has(compacted)
}

var kinds = []*fault{
	{"kill", 6, false, kill(false, anyNode)},
	{"power", 8, false, kill(true, anyNode)},
	{"kill-leader", 3, false, kill(false, leaderNode)},
	{"power-leader", 4, false, kill(true, leaderNode)},
	{"power-controller", 3, false, kill(true, controllerNode)},
	{"kill-all", 1, false, killAll(false)},
	{"power-all", 3, false, killAll(true)},
	{"restart", 3, false, restart},
	{"wipe", 3, true, wipe},
	{"join-late", 3, true, joinLate},
	{"join-stale", 3, true, joinStale},
	{"old-disk", 2, true, oldDisk},
	{"flip-end", 3, true, flipEnd},
	{"pause", 5, false, pause(anyNode)},
	{"pause-leader", 3, false, pause(leaderNode)},
	{"pause-controller", 2, false, pause(controllerNode)},
	{"isolate", 4, false, cut(true, true)},
	{"deaf", 3, false, cut(false, true)},
	{"mute", 3, false, cut(true, false)},
	{"cut-pair", 5, false, cutPair},
	{"slow", 4, false, slow},
	{"slow-disk", 6, false, slowDisk},
	{"etcd-cut", 4, false, etcdCut},
	{"etcd-away", 2, false, etcdAway},
	{"etcd-lossy", 5, false, etcdLossy},
	{"session", 4, false, expire},
	{"bucket-away", 3, false, bucketAway},
	{"bucket-errors", 5, false, bucketErrors},
	{"bucket-hangs", 3, false, bucketHangs},
	{"move", 6, false, move},
	{"elect", 3, false, elect},
	{"drain", 2, false, drain},
	{"worker-kill", 8, false, workerKill},
	{"worker-pause", 8, false, workerPause},
	{"worker-etcd", 5, false, workerEtcd},
}

// faults has the plan of a seed happen.
type faults struct {
	c *Cluster
	w *workload

	mu      sync.Mutex
	busy    map[int32]bool // nodes to which something happens
	lasting int
	wg      sync.WaitGroup
}

// plan draws faults for a time.
func plan(rnd *rand.Rand, d time.Duration, names []string, has features) (events []event) {
	var bag []*fault
	for _, f := range kinds {
		if (len(names) == 0 || slices.Contains(names, f.name)) && f.applies(has) {
			for range f.weight {
				bag = append(bag, f)
			}
		}
	}
	for at := time.Duration(0); at < d; {
		e := event{
			fault: bag[rnd.IntN(len(bag))], after: time.Duration(rnd.Int64N(int64(2500 * time.Millisecond))),
			lasts: time.Duration(50+rnd.Int64N(4500)) * time.Millisecond, rnd: rand.New(rand.NewPCG(rnd.Uint64(), rnd.Uint64())),
		}
		at += e.after + e.lasts/4
		events = append(events, e)
	}
	return events
}

func (f *faults) run(events []event) {
	for i := range events {
		e := &events[i]
		time.Sleep(e.after)
		for {
			f.mu.Lock()
			n := f.lasting
			f.mu.Unlock()
			if n == 0 || n < 3 && !e.fault.alone {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if e.fault.alone && f.c.inSync(20*time.Second) != nil {
			continue
		}
		f.mu.Lock()
		f.lasting++
		f.mu.Unlock()
		over := make(chan struct{})
		f.wg.Go(func() {
			defer close(over)
			e.fault.do(f, e, func(format string, args ...any) { f.c.note("%-16s %s", e.fault.name, fmt.Sprintf(format, args...)) })
			if e.fault.alone {
				f.c.inSync(20 * time.Second)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.lasting--
		})
		if e.fault.alone {
			<-over
		}
	}
	f.wg.Wait()
}

// take reserves nodes; false: something happens to one of them already.
func (f *faults) take(nodes ...*node) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range nodes {
		if n == nil || f.busy[n.id] || n.running() == nil {
			return false
		}
	}
	for _, n := range nodes {
		f.busy[n.id] = true
	}
	return true
}

func (f *faults) give(nodes ...*node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range nodes {
		delete(f.busy, n.id)
	}
}

// Whom it happens to.

func anyNode(f *faults, e *event) *node { return f.c.nodes[e.rnd.IntN(len(f.c.nodes))] }

func leaderNode(f *faults, e *event) *node {
	im := f.c.image()
	all := im.Topics()
	t := all[e.rnd.IntN(len(all))]
	return f.c.node(t.Partitions[e.rnd.IntN(len(t.Partitions))].Leader)
}

func controllerNode(f *faults, e *event) *node { return f.c.node(f.c.image().Controller) }

func (c *Cluster) node(id int32) *node {
	if id < 1 || int(id) > len(c.nodes) {
		return nil
	}
	return c.nodes[id-1]
}

// image is the metadata as etcd has it.
func (c *Cluster) image() *image.Image {
	l := newEtcdLink(context.Background(), c.etcd, 0)
	im, err := etcd.New(etcd.Options{Client: l.client(), Prefix: etcdPrefix}).Load(context.Background())
	if err != nil {
		panic(err)
	}
	return im
}

// mark is the mark of a broker's disk as etcd has it.
func (c *Cluster) mark(id int32) (etcd.HeldMark, error) {
	l := newEtcdLink(context.Background(), c.etcd, 0)
	return etcd.New(etcd.Options{Client: l.client(), Prefix: etcdPrefix}).Mark(context.Background(), id)
}

const etcdPrefix = "/varve"

// inSync waits until every partition has a leader and all its replicas in sync.
func (c *Cluster) inSync(most time.Duration) error {
	var bad error
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		bad = nil
		for _, t := range c.image().Topics() {
			for i, p := range t.Partitions {
				if p.Leader < 0 || len(p.ISR) != len(p.Replicas) || p.Reassigning() {
					bad = fmt.Errorf("%s-%d: leader %d, replicas %v, in sync %v, eligible %v, adding %v, removing %v", t.Name, i, p.Leader, p.Replicas, p.ISR, p.ELR, p.Adding, p.Removing)
				}
			}
		}
		if bad == nil {
			return nil
		}
	}
	return bad
}

func kill(power bool, pick func(*faults, *event) *node) func(*faults, *event, func(string, ...any)) {
	return func(f *faults, e *event, note func(string, ...any)) {
		n := pick(f, e)
		if !f.take(n) {
			return
		}
		defer f.give(n)
		note("broker %d for %s", n.id, e.lasts)
		n.Kill(power, e.rnd.Uint64())
		time.Sleep(e.lasts)
		n.Start()
		note("broker %d starts", n.id)
	}
}

func killAll(power bool) func(*faults, *event, func(string, ...any)) {
	return func(f *faults, e *event, note func(string, ...any)) {
		var nodes []*node
		for _, n := range f.c.nodes {
			if f.take(n) {
				nodes = append(nodes, n)
			}
		}
		defer f.give(nodes...)
		note("%d brokers for %s", len(nodes), e.lasts)
		for _, n := range nodes {
			n.Kill(power, e.rnd.Uint64())
		}
		time.Sleep(e.lasts)
		for _, n := range nodes {
			n.Start()
			time.Sleep(time.Duration(e.rnd.IntN(400)) * time.Millisecond)
		}
		note("all started")
	}
}

func restart(f *faults, e *event, note func(string, ...any)) {
	n := anyNode(f, e)
	if !f.take(n) {
		return
	}
	defer f.give(n)
	note("broker %d", n.id)
	n.Stop()
	note("broker %d has stopped", n.id)
	time.Sleep(e.lasts / 4)
	n.Start()
}

func wipe(f *faults, e *event, note func(string, ...any)) {
	n := anyNode(f, e)
	if !f.take(n) {
		return
	}
	defer f.give(n)
	note("broker %d loses its disk", n.id)
	before := f.c.epochOf(n.id)
	n.Kill(true, 0)
	n.Wipe()
	time.Sleep(e.lasts)
	n.Start()
	f.c.returned(n.id, before)
}

// epochOf is a broker's epoch as the metadata has it.
func (c *Cluster) epochOf(id int32) int64 {
	if b := c.image().Broker(id); b != nil {
		return b.Epoch
	}
	return -1
}

// returned waits until the metadata has a broker's next process: until then it shows the one before, in sync with everything.
func (c *Cluster) returned(id int32, before int64) {
	eventually(20*time.Second, func() error {
		if now := c.epochOf(id); now == before {
			return fmt.Errorf("broker %d is in epoch %d still", id, now)
		}
		return nil
	})
}

// oldDisk has a broker come back with its disk as it was before it went on for a while.
func oldDisk(f *faults, e *event, note func(string, ...any)) {
	n := anyNode(f, e)
	if !f.take(n) {
		return
	}
	defer f.give(n)
	old := n.Copy()
	// Two marks: the copy may have the first, if etcd has got it a moment after the disk.
	for range 2 {
		before, err := f.c.mark(n.id)
		for now, end := before, time.Now().Add(10*time.Second); err == nil && now.Revision == before.Revision; now, err = f.c.mark(n.id) {
			if time.Now().After(end) {
				return // nothing is written that the copy lacks
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	note("broker %d comes back with an old disk", n.id)
	epoch := f.c.epochOf(n.id)
	n.Kill(e.rnd.IntN(2) == 0, e.rnd.Uint64())
	n.Put(old)
	time.Sleep(e.lasts / 4)
	n.Start()
	f.c.returned(n.id, epoch)
}

// flipEnd damages the end of a broker's log, which looks as if it had not been written to its end, and may have been.
func flipEnd(f *faults, e *event, note func(string, ...any)) {
	n := anyNode(f, e)
	if !f.take(n) {
		return
	}
	defer f.give(n)
	epoch := f.c.epochOf(n.id)
	n.Kill(false, 0)
	if name, at := n.FlipEnd(e.rnd); name != "" {
		note("broker %d: a bit of %s at %d", n.id, name, at)
	}
	time.Sleep(e.lasts / 8)
	n.Start()
	f.c.returned(n.id, epoch)
}

func pause(pick func(*faults, *event) *node) func(*faults, *event, func(string, ...any)) {
	return func(f *faults, e *event, note func(string, ...any)) {
		n := pick(f, e)
		if !f.take(n) {
			return
		}
		defer f.give(n)
		note("broker %d for %s", n.id, e.lasts)
		n.Hold(true)
		time.Sleep(e.lasts)
		n.Hold(false)
		note("broker %d goes on", n.id)
	}
}

func cut(out, in bool) func(*faults, *event, func(string, ...any)) {
	return func(f *faults, e *event, note func(string, ...any)) {
		n := anyNode(f, e)
		if !f.take(n) {
			return
		}
		defer f.give(n)
		note("broker %d for %s", n.id, e.lasts)
		reset := e.rnd.IntN(2) == 0
		if out {
			f.c.net.Cut(n.host, "")
			defer f.c.net.Heal(n.host, "", reset)
		}
		if in {
			f.c.net.Cut("", n.host)
			defer f.c.net.Heal("", n.host, reset)
		}
		time.Sleep(e.lasts)
		note("broker %d healed", n.id)
	}
}

// two are two different nodes, that run or not.
func two(f *faults, e *event) (a, b *node) {
	p := e.rnd.Perm(len(f.c.nodes))
	return f.c.nodes[p[0]], f.c.nodes[p[1]]
}

func cutPair(f *faults, e *event, note func(string, ...any)) {
	a, b := two(f, e)
	both, reset := e.rnd.IntN(2) == 0, e.rnd.IntN(2) == 0
	note("broker %d to %d, both ways: %t, for %s", a.id, b.id, both, e.lasts)
	f.c.net.Cut(a.host, b.host)
	defer f.c.net.Heal(a.host, b.host, reset)
	if both {
		f.c.net.Cut(b.host, a.host)
		defer f.c.net.Heal(b.host, a.host, reset)
	}
	time.Sleep(e.lasts)
	note("broker %d to %d healed", a.id, b.id)
}

func slow(f *faults, e *event, note func(string, ...any)) {
	a, b := two(f, e)
	d := time.Duration(5+e.rnd.IntN(200)) * time.Millisecond
	note("broker %d to %d takes %s, for %s", a.id, b.id, d, e.lasts)
	f.c.net.Slow(a.host, b.host, d)
	time.Sleep(e.lasts)
	f.c.net.Slow(a.host, b.host, 0)
}

// slowDisk lets other faults happen to the same broker meanwhile.
func slowDisk(f *faults, e *event, note func(string, ...any)) {
	n := anyNode(f, e)
	p := n.running()
	if p == nil {
		return
	}
	note("broker %d for %s", n.id, e.lasts)
	p.disk.Slow(true)
	time.Sleep(e.lasts)
	p.disk.Slow(false)
}

func etcdCut(f *faults, e *event, note func(string, ...any)) {
	n := anyNode(f, e)
	if !f.take(n) {
		return
	}
	defer f.give(n)
	p := n.running()
	note("broker %d for %s", n.id, e.lasts)
	p.etcd.Cut(true)
	time.Sleep(e.lasts)
	p.etcd.Cut(false)
	note("broker %d has etcd again", n.id)
}

func etcdAway(f *faults, e *event, note func(string, ...any)) {
	var nodes []*node
	for _, n := range f.c.nodes {
		if f.take(n) {
			nodes = append(nodes, n)
		}
	}
	defer f.give(nodes...)
	note("for %s", e.lasts)
	var links []*etcdLink
	for _, n := range nodes {
		links = append(links, n.running().etcd)
	}
	for _, k := range f.c.workers {
		if p := k.running(); p != nil {
			links = append(links, p.etcd)
		}
	}
	for _, l := range links {
		l.Cut(true)
	}
	time.Sleep(e.lasts)
	for _, l := range links {
		l.Cut(false)
	}
	note("etcd is back")
}

func etcdLossy(f *faults, e *event, note func(string, ...any)) {
	note("for %s", e.lasts)
	links := []*etcdLink{}
	for _, n := range f.c.nodes {
		if p := n.running(); p != nil {
			p.etcd.Lossy(true)
			links = append(links, p.etcd)
		}
	}
	for _, k := range f.c.workers {
		if p := k.running(); p != nil {
			p.etcd.Lossy(true)
			links = append(links, p.etcd)
		}
	}
	time.Sleep(e.lasts)
	for _, l := range links {
		l.Lossy(false)
	}
	note("etcd answers again")
}

// expire ends the session of a broker that is well.
func expire(f *faults, e *event, note func(string, ...any)) {
	s := f.c.image().Sessions()
	if len(s) == 0 {
		return
	}
	one := s[e.rnd.IntN(len(s))]
	note("of broker %d is over", one.ID)
	f.c.etcd.revoke(one.Lease)
}

func bucketAway(f *faults, e *event, note func(string, ...any)) {
	note("for %s", e.lasts)
	f.c.store.SetOutage(true)
	time.Sleep(e.lasts)
	f.c.store.SetOutage(false)
	note("the bucket is back")
}

// bucketErrors has requests fail, half of them after they were carried out.
func bucketErrors(f *faults, e *event, note func(string, ...any)) {
	op := []objstore.Op{objstore.OpPut, objstore.OpGet, objstore.OpHead, objstore.OpDelete, ""}[e.rnd.IntN(5)]
	note("%q for %s", op, e.lasts)
	for _, k := range []objstore.Kind{objstore.FailAfter, objstore.FailBefore, objstore.Throttle} {
		defer f.c.store.Inject(objstore.Fault{Op: op, Kind: k, Prob: 0.3})()
	}
	if op == objstore.OpGet || op == "" {
		for _, k := range []objstore.Kind{objstore.Truncate, objstore.ShortBody, objstore.Flip} {
			defer f.c.store.Inject(objstore.Fault{Op: objstore.OpGet, Kind: k, Prob: 0.1})()
		}
	}
	time.Sleep(e.lasts)
	note("the bucket is well")
}

func bucketHangs(f *faults, e *event, note func(string, ...any)) {
	note("for %s", e.lasts)
	for _, k := range []objstore.Kind{objstore.Hang, objstore.HangAfter} {
		defer f.c.store.Inject(objstore.Fault{Kind: k, Prob: 0.3})()
	}
	defer f.c.store.Inject(objstore.Fault{Kind: objstore.Delay, Prob: 0.5, Delay: time.Duration(e.rnd.IntN(2000)) * time.Millisecond})()
	time.Sleep(e.lasts)
	note("the bucket is well")
}

// move gives some partitions other replicas, in another order, and may take that back on the way.
func move(f *faults, e *event, note func(string, ...any)) {
	f.reassign(e, note, func(t *image.Topic, p *image.Partition) []int32 {
		if e.rnd.IntN(2) == 0 {
			return nil
		}
		n := min(len(p.Assigned()), len(f.c.nodes))
		if t.Name != topicOne && e.rnd.IntN(8) == 0 {
			n = 2 + e.rnd.IntN(len(f.c.nodes)-1) // another number of them
		}
		var to []int32
		for _, i := range e.rnd.Perm(len(f.c.nodes))[:n] {
			to = append(to, f.c.nodes[i].id)
		}
		return to
	})
	if e.rnd.IntN(3) == 0 {
		time.Sleep(time.Duration(e.rnd.IntN(300)) * time.Millisecond)
		f.cancel(e, note)
	}
}

// drain moves everything off one broker, if there are enough others.
func drain(f *faults, e *event, note func(string, ...any)) {
	from := anyNode(f, e).id
	f.reassign(e, note, func(t *image.Topic, p *image.Partition) []int32 {
		var to []int32
		for _, id := range p.Assigned() {
			if id != from {
				to = append(to, id)
			}
		}
		for _, i := range e.rnd.Perm(len(f.c.nodes)) {
			if id := f.c.nodes[i].id; len(to) < len(p.Assigned()) && id != from && !slices.Contains(to, id) {
				to = append(to, id)
			}
		}
		if len(to) < len(p.Assigned()) || !slices.Contains(p.Assigned(), from) {
			return nil
		}
		return to
	})
}

func (f *faults) reassign(e *event, note func(string, ...any), target func(*image.Topic, *image.Partition) []int32) {
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.TimeoutMillis = 2000
	var what []string
	for _, t := range f.c.image().Topics() {
		rt := kmsg.NewAlterPartitionAssignmentsRequestTopic()
		rt.Topic = t.Name
		for i, p := range t.Partitions {
			to := target(t, p)
			if to == nil || t.Name == topicOne && len(p.ISR) == 0 {
				continue
			}
			rp := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
			rp.Partition, rp.Replicas = int32(i), to
			rt.Partitions = append(rt.Partitions, rp)
			what = append(what, fmt.Sprintf("%s-%d to %v", t.Name, i, to))
		}
		if len(rt.Partitions) > 0 {
			req.Topics = append(req.Topics, rt)
		}
	}
	if len(what) > 0 {
		note("%s", strings.Join(what, ", "))
		f.admin(e, req)
	}
}

// cancel takes back what is being moved.
func (f *faults) cancel(e *event, note func(string, ...any)) {
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.TimeoutMillis = 2000
	var what []string
	for _, t := range f.c.image().Topics() {
		rt := kmsg.NewAlterPartitionAssignmentsRequestTopic()
		rt.Topic = t.Name
		for i, p := range t.Partitions {
			if p.Reassigning() {
				rp := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
				rp.Partition = int32(i) // without replicas
				rt.Partitions = append(rt.Partitions, rp)
				what = append(what, fmt.Sprintf("%s-%d", t.Name, i))
			}
		}
		if len(rt.Partitions) > 0 {
			req.Topics = append(req.Topics, rt)
		}
	}
	if len(what) > 0 {
		note("taken back: %s", strings.Join(what, ", "))
		f.admin(e, req)
	}
}

// elect gives leaderships back to the preferred leaders.
func elect(f *faults, e *event, note func(string, ...any)) {
	note("")
	req := kmsg.NewPtrElectLeadersRequest()
	req.Version, req.TimeoutMillis = 2, 2000
	f.admin(e, req)
}

// admin sends a request of an administrator to some broker, once.
func (f *faults) admin(e *event, req kmsg.Request) {
	k := f.w.client(fmt.Sprintf("admin %d", e.rnd.Uint32()))
	defer k.close()
	k.ask(1+e.rnd.Int32N(int32(len(f.c.nodes))), req)
}
