package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// CommitSpec is a load of offset commits: clients that each have one under way
// at a time, and go through the groups in turn.
type CommitSpec struct {
	Bootstrap  []string
	Topic      string
	Partitions int // in a commit, from 0
	Groups     int
	Committers int
	Warmup     time.Duration
	Duration   time.Duration
	Broker     []int
}

// Commits loads a broker with offset commits of groups that have no members, as
// those of consumers that assign their partitions themselves. Ack of the result
// is from sending a commit to its answer.
func Commits(ctx context.Context, s CommitSpec) (*Result, error) {
	if s.Groups < 1 || s.Committers < 1 || s.Partitions < 1 {
		return nil, fmt.Errorf("load: %d groups, %d committers, %d partitions: each has to be 1 at least", s.Groups, s.Committers, s.Partitions)
	}
	spec := &Spec{Bootstrap: s.Bootstrap, Topic: s.Topic, Warmup: s.Warmup, Duration: s.Duration, Broker: s.Broker}
	if err := spec.defaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newRun(spec)
	var clients []*producer // a client and a histogram
	defer func() { closeAll(clients) }()
	for i := range s.Committers {
		cl, err := kgo.NewClient(r.options("varve-bench-o" + strconv.Itoa(i))...)
		if err != nil {
			return nil, err
		}
		clients = append(clients, &producer{r: r, cl: cl, hist: newHistogram()})
	}
	topics, err := kadm.NewClient(clients[0].cl).ListTopics(ctx, s.Topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("load: topic %s: %w", s.Topic, err)
	}
	id := topics[s.Topic].ID
	// One commit of each, so that connections and coordinators are known.
	if err := each(len(clients), func(i int) error { return clients[i].commit(ctx, &s, id, i%s.Groups, 0) }); err != nil {
		return nil, fmt.Errorf("load: a first commit: %w", err)
	}
	var commits atomic.Int64
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for n := int64(1); ctx.Err() == nil; n++ {
				at := time.Now()
				err := c.commit(ctx, &s, id, (i+int(n)*len(clients))%s.Groups, n)
				switch {
				case ctx.Err() != nil || !r.measuring.Load():
				case err != nil:
					r.failed(err)
				default:
					commits.Add(1)
					c.mu.Lock()
					record(c.hist, time.Since(at))
					c.mu.Unlock()
				}
			}
		})
	}
	r.hists = clients
	res, err := r.measure(ctx, nil, nil)
	n := commits.Load()
	cancel()
	wg.Wait()
	if err != nil {
		return nil, err
	}
	res.What, res.CommitsPerSecond, res.Ack = "commits", float64(n)/res.Seconds, r.ackLatency()
	if n == 0 {
		return nil, fmt.Errorf("load: no offsets were committed: %s", res.LastError)
	}
	return res, nil
}

// commit commits an offset for each of the first partitions.
func (p *producer) commit(ctx context.Context, s *CommitSpec, id kadm.TopicID, group int, offset int64) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = "varve-bench-"+strconv.Itoa(group), -1
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic, t.TopicID = s.Topic, id // by id from version 10 on
	for i := range int32(s.Partitions) {
		part := kmsg.NewOffsetCommitRequestTopicPartition()
		part.Partition, part.Offset = i, offset
		t.Partitions = append(t.Partitions, part)
	}
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, p.cl)
	if err != nil {
		return err
	}
	n := 0
	for _, t := range resp.Topics {
		for _, part := range t.Partitions {
			if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
				return fmt.Errorf("commit of %s, partition %d: %w", req.Group, part.Partition, err)
			}
			n++
		}
	}
	if n != s.Partitions {
		return fmt.Errorf("commit of %s: answered for %d of %d partitions", req.Group, n, s.Partitions)
	}
	return nil
}

// RebalanceSpec is a group of real clients that only share partitions.
type RebalanceSpec struct {
	Bootstrap  []string
	Topic      string
	Partitions int
	Members    int
	Protocol   string        // classic, with cooperative-sticky, or consumer
	Patience   time.Duration // with each rebalance; 0: two minutes
	Broker     []int
}

// Rebalances is how long it took each time until every partition was owned by
// one member, and every member had its share.
type Rebalances struct {
	Start  Rebalance `json:"start"` // all members at once
	Leave  Rebalance `json:"leave"` // one has left
	Join   Rebalance `json:"join"`  // one more has come
	Broker *Usage    `json:"broker,omitempty"`
	Client Usage     `json:"client"`
}

// Rebalance is one of them.
type Rebalance struct {
	Seconds  float64 `json:"seconds"`
	Requests int64   `json:"requests"` // about the group, of all members until then
}

// groupKeys are the requests that a member sends about its group.
var groupKeys = []int16{int16(kmsg.OffsetFetch), int16(kmsg.FindCoordinator), int16(kmsg.JoinGroup), int16(kmsg.Heartbeat), int16(kmsg.LeaveGroup), int16(kmsg.SyncGroup), int16(kmsg.ConsumerGroupHeartbeat)}

type groupHook struct{ requests *atomic.Int64 }

func (h groupHook) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if err == nil && slices.Contains(groupKeys, key) {
		h.requests.Add(1)
	}
}

// MeasureRebalances starts a group, lets a member leave and another come.
func MeasureRebalances(ctx context.Context, s RebalanceSpec) (*Rebalances, error) {
	switch {
	case len(s.Bootstrap) == 0 || s.Topic == "":
		return nil, errors.New("load: no broker or no topic to load")
	case s.Members < 2 || s.Partitions < s.Members:
		return nil, fmt.Errorf("load: %d members cannot share %d partitions, or none can leave", s.Members, s.Partitions)
	case s.Protocol != "classic" && s.Protocol != "consumer":
		return nil, fmt.Errorf("load: group protocol %q: classic and consumer are possible", s.Protocol)
	}
	if s.Patience == 0 {
		s.Patience = 2 * time.Minute
	}
	r := newRun(&Spec{Bootstrap: s.Bootstrap, Topic: s.Topic})
	group := fmt.Sprintf("varve-bench-%x", uint64(r.id))
	own := newOwners(s.Members, s.Partitions)
	var requests atomic.Int64
	var members []*consumer
	defer func() { closeAll(members) }()
	open := func(i int) error {
		opts := append(r.options("varve-bench-g"+strconv.Itoa(i), groupHook{&requests}), own.options(i)...)
		opts = append(opts, kgo.ConsumerGroup(group), kgo.ConsumeTopics(s.Topic), kgo.DisableAutoCommit(), kgo.MetadataMinAge(100*time.Millisecond))
		if s.Protocol == "consumer" {
			opts = append(opts, kgo.ServerSideBalancer())
		} else {
			opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
		}
		cl, err := kgo.NewClient(opts...)
		if err == nil {
			members = append(members, &consumer{cl: cl})
		}
		return err
	}
	out := &Rebalances{}
	broker, client := watch(s.Broker), watch([]int{os.Getpid()})
	rebalance := func(what string, into *Rebalance, do func() error) error {
		requests.Store(0)
		began := time.Now()
		if err := do(); err != nil {
			return fmt.Errorf("load: %s: %w", what, err)
		}
		if err := own.balanced(ctx, s.Patience); err != nil {
			return fmt.Errorf("load: %s: %w", what, err)
		}
		*into = Rebalance{time.Since(began).Seconds(), requests.Load()}
		// What still goes on about it comes to rest.
		select {
		case <-time.After(2 * time.Second):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := rebalance(fmt.Sprintf("%d members join", s.Members), &out.Start, func() error {
		for i := range s.Members {
			if err := open(i); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = rebalance("a member leaves", &out.Leave, func() error {
			own.expect(s.Members - 1)
			left := members[0]
			members = members[1:]
			err := left.cl.LeaveGroupContext(ctx)
			left.cl.Close()
			return err
		})
	}
	if err == nil {
		err = rebalance("a member joins", &out.Join, func() error {
			own.expect(s.Members)
			return open(s.Members)
		})
	}
	out.Client = client.stop()
	if u := broker.stop(); len(s.Broker) > 0 {
		out.Broker = &u
	}
	return out, err
}

// owners knows which members of a group have which partitions.
type owners struct {
	mu         sync.Mutex
	members    int
	partitions int
	of         map[int32]int // how many members have a partition
	has        map[int]int   // how many partitions a member has
	even       chan struct{} // closed when everything is owned, and evenly
}

func newOwners(members, partitions int) *owners {
	return &owners{members: members, partitions: partitions, of: map[int32]int{}, has: map[int]int{}, even: make(chan struct{})}
}

// expect is told of another number of members, before it changes.
func (o *owners) expect(members int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.members, o.even = members, make(chan struct{})
}

// options tell the owners what member i gets and gives away.
func (o *owners) options(i int) []kgo.Opt {
	change := func(by int) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
			for _, ps := range topics {
				o.change(i, by, ps)
			}
		}
	}
	return []kgo.Opt{kgo.OnPartitionsAssigned(change(1)), kgo.OnPartitionsRevoked(change(-1)), kgo.OnPartitionsLost(change(-1))}
}

func (o *owners) change(member, by int, partitions []int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range partitions {
		if o.of[p] += by; o.of[p] == 0 {
			delete(o.of, p)
		}
	}
	if o.has[member] += by * len(partitions); o.has[member] == 0 {
		delete(o.has, member)
	}
	if o.isEven() {
		select {
		case <-o.even:
		default:
			close(o.even)
		}
	}
}

func (o *owners) isEven() bool {
	if len(o.of) != o.partitions || len(o.has) != min(o.members, o.partitions) {
		return false
	}
	for _, n := range o.of {
		if n != 1 {
			return false
		}
	}
	least := o.partitions / o.members
	for _, n := range o.has {
		if n != least && n != least+1 {
			return false
		}
	}
	return true
}

// balanced waits until everything is owned, and evenly.
func (o *owners) balanced(ctx context.Context, patience time.Duration) error {
	o.mu.Lock()
	even := o.even
	o.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-even:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Errorf("after %s %d members of %d own %d partitions of %d, or not evenly", patience, len(o.has), o.members, len(o.of), o.partitions)
}
