package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/internal/skew"
)

// A fault happens to some processes, lasts, and is over. Two may last at a time, of different processes; what they are,
// when and for how long is decided by the seed. What they meet is not: machines are not that regular.
type fault struct {
	name  string
	alone bool // it begins when no other lasts and all replicas are in sync, and lasts until they are again
	long  bool // it lasts for longLasts more; of all faults it is taken every third time only
	net   bool // of the network
	disk  bool // of the disk
	fsync bool // of fsyncs
	clock bool // of the clock
	// pick says which processes it happens to; false: not now.
	pick func(*nemesis, context.Context) ([]string, bool)
	// do does it to them, has it last, and heals it.
	do func(*nemesis, context.Context, []string, time.Duration) error
}

// longLasts is longer than anybody waits for anything: than a request among brokers may take (40 s, of which 30 s are for
// markers), replica.lag.time.max.ms and a Java client's request.timeout.ms (30 s), the transactions here (10 s).
const longLasts = 42 * time.Second

var faults = []fault{
	{name: "none", pick: nobody, do: func(_ *nemesis, ctx context.Context, _ []string, d time.Duration) error { wait(ctx, d); return nil }},
	{name: "kill", pick: anyBroker, do: killed},
	{name: "kill-leader", pick: leaderBroker, do: killed},
	{name: "kill-controller", pick: controllerBroker, do: killed},
	{name: "pause", pick: anyBroker, do: paused},
	{name: "pause-leader", pick: leaderBroker, do: paused},
	{name: "pause-long", long: true, pick: leaderBroker, do: paused},
	{name: "kill-after-fsync", fsync: true, pick: leaderReplica, do: afterFsync(killed)},
	{name: "pause-after-fsync", fsync: true, pick: leaderReplica, do: afterFsync(outlasted)},
	{name: "restart", pick: anyBroker, do: restarted},
	{name: "rolling-restart", alone: true, pick: allBrokers, do: restarted},
	{name: "crash-all", alone: true, pick: allBrokers, do: killed},
	{name: "wipe", alone: true, pick: anyBroker, do: wiped},
	{name: "etcd-kill", pick: anyMember, do: killed},
	{name: "etcd-kill-leader", pick: leaderMember, do: killed},
	{name: "etcd-pause", pick: anyMember, do: paused},
	{name: "etcd-pause-leader", pick: leaderMember, do: paused},
	{name: "etcd-away", pick: allMembers, do: paused},
	{name: "etcd-crash", pick: allMembers, do: killed},
	{name: "etcd-away-long", alone: true, long: true, pick: everybody, do: etcdAway},
	{name: "etcd-full", alone: true, pick: everybody, do: etcdFull},
	{name: "etcd-slow-disk", alone: true, fsync: true, pick: everybody, do: etcdSlowDisk},
	{name: "s3-away", pick: bucket, do: paused},
	{name: "s3-kill", pick: bucket, do: killed},
	{name: "s3-ambiguous", pick: bucket, do: ambiguous},
	{name: "s3-away-long", long: true, pick: bucket, do: paused},
	{name: "compactor-kill", pick: anyWorker, do: killed},
	{name: "compactor-pause", pick: anyWorker, do: paused},
	{name: "compactor-cut", net: true, pick: anyWorker, do: unlinked},
	{name: "move", pick: nobody, do: moved},
	{name: "elect", pick: nobody, do: elected},
	{name: "drain", pick: anyReplica, do: drained},
	{name: "grow", pick: nobody, do: grown},
	{name: "power-loss", alone: true, disk: true, pick: allBrokers, do: powerLost},
	{name: "power-loss-one", disk: true, pick: anyBroker, do: powerLost},
	{name: "disk-gone", disk: true, pick: anyReplica, do: diskGone}, // who writes nothing does not learn of it
	{name: "disk-full", disk: true, pick: anyBroker, do: diskFilled},
	{name: "slow-disk", fsync: true, pick: leaderReplica, do: slowDisk(func(time.Duration) time.Duration { return 500 * time.Millisecond })},
	{name: "disk-stalls", fsync: true, pick: leaderReplica, do: slowDisk(func(lasts time.Duration) time.Duration { return lasts })},
	{name: "cut", net: true, pick: anyBroker, do: unlinked},
	{name: "flap", net: true, pick: anyBroker, do: flapped},
	{name: "cut-leader", net: true, pick: leaderBroker, do: unlinked},
	{name: "isolate", net: true, pick: leaderBroker, do: cut(true, true, servers)},
	{name: "cut-brokers", net: true, pick: anyBroker, do: cut(true, true, otherBrokers)},
	{name: "isolate-long", net: true, long: true, pick: leaderBroker, do: cut(true, true, servers)},
	{name: "cut-brokers-long", net: true, long: true, pick: leaderBroker, do: cut(true, true, otherBrokers)},
	{name: "cut-etcd", net: true, pick: anyBroker, do: cut(true, true, members)},
	{name: "etcd-compact", net: true, pick: anyBroker, do: etcdCompacted},
	{name: "etcd-slow-leader", net: true, pick: leaderMember, do: slowed},
	{name: "cut-pair", net: true, pick: twoBrokers, do: cut(true, true, second)},
	{name: "one-way", net: true, pick: twoBrokers, do: cut(true, false, second)},
	{name: "slow-link", net: true, pick: anyBroker, do: slowed},
	{name: "deaf", net: true, pick: anyBroker, do: cut(false, true, otherBrokers)},
	{name: "clock", clock: true, pick: anyClock, do: jumped},
	{name: "clock-leader", clock: true, pick: leaderBroker, do: jumped},
	{name: "clock-all", clock: true, pick: allClocks, do: jumped},
	{name: "clock-strobe", clock: true, pick: anyClock, do: strobed},
}

// nemesis has the faults happen.
type nemesis struct {
	c      *cluster.Cluster
	net    *network // nil: there is none
	disks  *disks   // nil: there are none
	fsyncs *fsyncs  // nil: nothing can be done about them
	// clocks are those of brokers and workers, by name; nil: they all have the machine's.
	clocks map[string]*skew.Clock
	varve  string // the command
	adm    *kadm.Client
	rnd    *rand.Rand
	note   func(string, ...any)
	list   []fault
	rare   bool // faults that last long are to be

	l  *ledger // of the round
	in string  // the topic that clients write to without a word to etcd

	mu   sync.Mutex
	busy map[string]bool // processes that something happens to
}

// server is a process by its name.
func (n *nemesis) server(name string) *cluster.Server {
	for _, s := range n.c.Servers() {
		if s.Name == name {
			return s
		}
	}
	panic("chaos: there is no process " + name)
}

// run has faults happen for a while, and returns when all of them are healed.
func (n *nemesis) run(ctx context.Context, d time.Duration) error {
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	lasting := 0
	state := func() (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return lasting, failed
	}
	for time.Now().Before(end) && ctx.Err() == nil {
		f := n.list[n.rnd.IntN(len(n.list))]
		lasts := time.Second + time.Duration(n.rnd.IntN(6000))*time.Millisecond
		if f.long {
			if n.rare && n.rnd.IntN(3) > 0 {
				continue
			}
			lasts += longLasts
		}
		rest := time.Duration(n.rnd.IntN(3000)) * time.Millisecond
		for {
			count, err := state()
			if err != nil {
				wg.Wait()
				return err
			}
			if count == 0 || !f.alone && count < 2 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if f.alone {
			if _, err := inSync(ctx, n.adm); err != nil {
				wg.Wait()
				return fmt.Errorf("before %s: %w", f.name, err)
			}
		}
		names, ok := f.pick(n, ctx)
		if !ok || !n.take(names) {
			continue
		}
		mu.Lock()
		lasting++
		mu.Unlock()
		wg.Go(func() {
			n.note("%s %v for %s", f.name, names, lasts.Round(100*time.Millisecond))
			from := time.Now()
			err := f.do(n, ctx, names, lasts)
			n.l.lasted(fmt.Sprintf("%s %v", f.name, names), from, time.Now())
			if err == nil && f.alone {
				_, err = inSync(ctx, n.adm)
			}
			n.note("%s %v healed", f.name, names)
			n.give(names)
			mu.Lock()
			defer mu.Unlock()
			lasting--
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s %v: %w", f.name, names, err))
			}
		})
		time.Sleep(rest)
	}
	wg.Wait()
	_, err := state()
	return err
}

func (n *nemesis) take(names []string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		if n.busy[name] {
			return false
		}
	}
	for _, name := range names {
		n.busy[name] = true
	}
	return true
}

func (n *nemesis) give(names []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		delete(n.busy, name)
	}
}

// fallen names a process that has ended though nothing happens to it.
func (n *nemesis) fallen() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.c.Servers() {
		if !n.busy[s.Name] && !s.Running() {
			return fmt.Errorf("%s has ended by itself: %s", s.Name, s.Tail())
		}
	}
	return nil
}

// Whom it happens to.

func anyBroker(n *nemesis, _ context.Context) ([]string, bool) {
	return []string{n.c.Brokers[n.rnd.IntN(len(n.c.Brokers))].Name}, true
}

// anyReplica is a broker that is not the spare one.
func anyReplica(n *nemesis, _ context.Context) ([]string, bool) {
	return []string{n.c.Brokers[n.rnd.IntN(brokers)].Name}, true
}

func allBrokers(n *nemesis, _ context.Context) (names []string, ok bool) {
	for _, i := range n.rnd.Perm(len(n.c.Brokers)) {
		names = append(names, n.c.Brokers[i].Name)
	}
	return names, true
}

func twoBrokers(n *nemesis, ctx context.Context) ([]string, bool) {
	all, _ := allBrokers(n, ctx)
	return all[:2], true
}

// leaderBroker leads some partition.
func leaderBroker(n *nemesis, ctx context.Context) ([]string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	i := n.rnd.IntN(1000)
	topics, err := n.adm.ListTopicsWithInternal(ctx)
	if err != nil {
		return anyBroker(n, ctx)
	}
	var leaders []int32
	topics.EachPartition(func(p kadm.PartitionDetail) {
		if p.Leader > 0 {
			leaders = append(leaders, p.Leader)
		}
	})
	sort.Slice(leaders, func(i, j int) bool { return leaders[i] < leaders[j] })
	if len(leaders) == 0 {
		return nil, false
	}
	return []string{n.c.Broker(leaders[i%len(leaders)]).Name}, true
}

// leaderReplica is a leaderBroker that is not the spare one, whose log may be idle.
func leaderReplica(n *nemesis, ctx context.Context) ([]string, bool) {
	names, ok := leaderBroker(n, ctx)
	return names, ok && names[0] != n.c.Broker(spare).Name
}

func controllerBroker(n *nemesis, ctx context.Context) ([]string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	meta, err := n.adm.BrokerMetadata(ctx)
	if err != nil || meta.Controller < 1 {
		return nil, false
	}
	return []string{n.c.Broker(meta.Controller).Name}, true
}

func anyWorker(n *nemesis, _ context.Context) ([]string, bool) {
	return []string{n.c.Workers[n.rnd.IntN(len(n.c.Workers))].Name}, true
}

func anyMember(n *nemesis, _ context.Context) ([]string, bool) {
	return []string{n.c.Etcd[n.rnd.IntN(len(n.c.Etcd))].Name}, true
}

func allMembers(n *nemesis, _ context.Context) (names []string, ok bool) {
	for _, s := range n.c.Etcd {
		names = append(names, s.Name)
	}
	return names, true
}

// everybody has nothing else happen to brokers and etcd meanwhile.
func everybody(n *nemesis, ctx context.Context) ([]string, bool) {
	names, _ := allBrokers(n, ctx)
	return append(names, members(n, nil)...), true
}

func leaderMember(n *nemesis, ctx context.Context) ([]string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for i, e := range n.c.Describe().Etcd {
		cl, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Client}, DialTimeout: time.Second})
		if err != nil {
			continue
		}
		st, err := cl.Status(ctx, e.Client)
		cl.Close()
		if err == nil && st.Leader == st.Header.MemberId {
			return []string{n.c.Etcd[i].Name}, true
		}
	}
	return nil, false
}

// anyClock is a process whose clock can be set.
func anyClock(n *nemesis, ctx context.Context) ([]string, bool) {
	all, _ := allClocks(n, ctx)
	return all[n.rnd.IntN(len(all)):][:1], true
}

func allClocks(n *nemesis, _ context.Context) ([]string, bool) {
	return slices.Sorted(maps.Keys(n.clocks)), true
}

func bucket(n *nemesis, _ context.Context) ([]string, bool) { return []string{n.c.S3.Name}, true }

func nobody(*nemesis, context.Context) ([]string, bool) { return nil, true }

// What happens to them.

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func killed(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	var err error
	for _, name := range names {
		err = errors.Join(err, n.server(name).Kill())
	}
	wait(ctx, d)
	return errors.Join(err, n.start(ctx, names))
}

// start starts processes, all at once: a member of etcd is not ready alone. One that cannot come up while something
// else is away is started again.
func (n *nemesis) start(ctx context.Context, names []string) error {
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			for deadline := time.Now().Add(patience); ; time.Sleep(time.Second) {
				if errs[i] = n.server(name).Start(ctx); errs[i] == nil || ctx.Err() != nil || time.Now().After(deadline) {
					return
				}
				n.note("%s did not come up, and is started again: %v", name, errs[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func paused(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	var err error
	for _, name := range names {
		err = errors.Join(err, n.server(name).Pause())
	}
	wait(ctx, d)
	for _, name := range names {
		err = errors.Join(err, n.server(name).Resume())
	}
	return err
}

// ambiguous has the bucket carry out a third of the changes without an answer, later, or twice.
func ambiguous(n *nemesis, ctx context.Context, _ []string, d time.Duration) error {
	err := n.c.Ambiguous(1. / 3)
	wait(ctx, d)
	return errors.Join(err, n.c.Ambiguous(0))
}

// etcdAway has all members of etcd stopped, for a minute at least. Nobody can be elected, nothing be created; what is led is
// written and read as before.
func etcdAway(n *nemesis, ctx context.Context, _ []string, d time.Duration) error {
	var err error
	for _, name := range members(n, nil) {
		err = errors.Join(err, n.server(name).Pause())
	}
	err = errors.Join(err, n.goesOn(ctx, max(d, time.Minute)))
	for _, name := range members(n, nil) {
		err = errors.Join(err, n.server(name).Resume())
	}
	return err
}

// etcdFull has etcd refuse everything that takes room, as it does when its quota is used up, and says so itself.
func etcdFull(n *nemesis, ctx context.Context, _ []string, d time.Duration) error {
	cl, err := n.etcd()
	if err != nil {
		return err
	}
	defer cl.Close()
	err = n.ask(ctx, func(ctx context.Context) error {
		all, err := cl.MemberList(ctx)
		if err == nil {
			_, err = clientv3.RetryMaintenanceClient(cl, cl.ActiveConnection()).Alarm(ctx,
				&etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: all.Members[0].ID, Alarm: etcdserverpb.AlarmType_NOSPACE})
		}
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(n.goesOn(ctx, 2*d), n.ask(ctx, func(ctx context.Context) error {
		_, err := cl.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		return err
	}))
}

// etcdCompacted has a broker cut off from etcd, and etcd forget what happens meanwhile: the broker's watch cannot go on
// where it was.
func etcdCompacted(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	cl, err := n.etcd()
	if err != nil {
		return err
	}
	defer cl.Close()
	heal, err := n.drop(names[0], members(n, names), true, true)
	wait(ctx, d)
	err = errors.Join(err, n.ask(ctx, func(ctx context.Context) error {
		now, err := cl.Get(ctx, "none")
		if err == nil {
			_, err = cl.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
		}
		return err
	}))
	return errors.Join(err, heal())
}

// etcd is a client of all members.
func (n *nemesis) etcd() (*clientv3.Client, error) {
	var endpoints []string
	for _, e := range n.c.Describe().Etcd {
		endpoints = append(endpoints, e.Client)
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: time.Second, Logger: zap.NewNop()})
}

// ask has f succeed, however often something else makes it fail.
func (n *nemesis) ask(ctx context.Context, f func(context.Context) error) error {
	return child.Eventually(ctx, patience, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return f(ctx)
	})
}

// goesOn waits, and says where fewer than one record a second was acknowledged meanwhile, of what needs etcd for nothing.
func (n *nemesis) goesOn(ctx context.Context, d time.Duration) error {
	const begun = 2 * time.Second // what was begun before
	wait(ctx, begun)
	before, from := n.l.counts(n.in), time.Now()
	wait(ctx, d-begun)
	after, took := n.l.counts(n.in), time.Since(from)
	if ctx.Err() != nil {
		return nil
	}
	var err error
	least := -1
	for _, p := range partitionsOf(after) {
		got := after[p] - before[p]
		if least < 0 || got < least {
			least = got
		}
		if float64(got) < took.Seconds() {
			err = errors.Join(err, fmt.Errorf("%s-%d: %d records were acknowledged in %.1fs", p.Topic, p.Index, got, took.Seconds()))
		}
	}
	n.note("%d records and more were acknowledged in every partition of %s in %.1fs", least, n.in, took.Seconds())
	return err
}

func restarted(n *nemesis, ctx context.Context, names []string, _ time.Duration) error {
	for i, name := range names {
		if i > 0 {
			if _, err := inSync(ctx, n.adm); err != nil {
				return err
			}
		}
		if err := n.server(name).Stop(); err != nil {
			return err
		}
		if err := n.start(ctx, []string{name}); err != nil {
			return err
		}
	}
	return nil
}

func wiped(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	s := n.server(names[0])
	if err := s.Kill(); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(s.Dir, "*")) // the directory itself may be a disk's
	for _, path := range old {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err != nil {
		return err
	}
	wait(ctx, d)
	return n.start(ctx, names)
}

// moved takes a replica away from every partition, each its own, and gives it back, with another order of all.
func moved(n *nemesis, ctx context.Context, _ []string, d time.Duration) error {
	topics, err := n.topics(ctx)
	if err != nil {
		return err
	}
	fewer, all := kadm.AlterPartitionAssignmentsReq{}, kadm.AlterPartitionAssignmentsReq{}
	topics.EachPartition(func(p kadm.PartitionDetail) {
		order := make([]int32, brokers)
		for i := range order {
			order[i] = int32(1 + (i+int(p.Partition)+int(d))%brokers)
		}
		fewer.Assign(p.Topic, p.Partition, order[1:])
		all.Assign(p.Topic, p.Partition, order)
	})
	n.assign(ctx, fewer)
	wait(ctx, d)
	// Whatever happens meanwhile, they come back.
	return child.Eventually(ctx, patience, func() error {
		n.assign(ctx, all)
		topics, err := n.topics(ctx)
		topics.EachPartition(func(p kadm.PartitionDetail) {
			if len(p.Replicas) != brokers {
				err = errors.Join(err, fmt.Errorf("%s-%d has the replicas %v", p.Topic, p.Partition, p.Replicas))
			}
		})
		return err
	})
}

// assign asks for replicas. That it is refused is no error: the controller may be away.
func (n *nemesis) assign(ctx context.Context, req kadm.AlterPartitionAssignmentsReq) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rs, err := n.adm.AlterPartitionAssignments(ctx, req)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		n.note("replicas are not assigned: %v", err)
	}
}

func (n *nemesis) topics(ctx context.Context) (topics kadm.TopicDetails, err error) {
	err = child.Eventually(ctx, patience, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if topics, err = n.adm.ListTopicsWithInternal(ctx); err != nil {
			return err
		}
		return topics.Error()
	})
	return topics, err
}

// elected has the first replica of every partition lead it, where it can.
func elected(n *nemesis, ctx context.Context, _ []string, _ time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := n.adm.ElectLeaders(ctx, kadm.ElectPreferredReplica, nil); err != nil {
		n.note("leaders are not elected: %v", err)
	}
	return nil
}

// drained has a broker lead nothing for a while.
func drained(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	id := strings.TrimPrefix(names[0], "broker-")
	if err := n.command(ctx, "broker", "drain", id, "--leaders-only"); err != nil {
		return err
	}
	wait(ctx, d)
	return n.command(ctx, "broker", "undrain", id)
}

// grown gives a third of the partitions a replica on the spare broker, in place of one that they have, and then empties
// it again.
func grown(n *nemesis, ctx context.Context, _ []string, d time.Duration) error {
	if err := n.command(ctx, "broker", "undrain", fmt.Sprint(spare)); err != nil {
		return err
	}
	topics, err := n.topics(ctx)
	if err != nil {
		return err
	}
	third := kadm.AlterPartitionAssignmentsReq{}
	i := 0
	for _, t := range topics.Sorted() {
		for _, p := range t.Partitions.Sorted() {
			if i++; i%3 == 0 && !slices.Contains(p.Replicas, spare) {
				next := slices.Clone(p.Replicas)
				next[(i+int(d))%len(next)] = spare
				third.Assign(p.Topic, p.Partition, next)
			}
		}
	}
	n.assign(ctx, third)
	wait(ctx, d)
	return n.command(ctx, "broker", "drain", fmt.Sprint(spare))
}

// command runs a command of the command line, until it succeeds: it goes on where it was.
func (n *nemesis) command(ctx context.Context, args ...string) error {
	args = append(args, "--bootstrap-server", strings.Join(n.c.Bootstrap(), ","))
	return child.Eventually(ctx, patience, func() error { return n.once(ctx, args...) })
}

// once runs a command of the command line.
func (n *nemesis) once(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.varve, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("varve %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return err
}

// jumped has the wall clock of processes go an hour before the machine's, or an hour behind it, and then right again.
func jumped(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	by := time.Hour
	if d/time.Millisecond%2 == 1 {
		by = -by
	}
	n.note("the clock of %v jumps by %s", names, by)
	n.set(names, by)
	wait(ctx, d)
	n.set(names, 0)
	return nil
}

// strobed has it jump to and fro.
func strobed(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	by := 30 * time.Second
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; wait(ctx, 200*time.Millisecond) {
		n.set(names, by)
		by = -by
	}
	n.set(names, 0)
	return nil
}

func (n *nemesis) set(names []string, d time.Duration) {
	for _, name := range names {
		n.clocks[name].Set(d)
	}
}

func slowed(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	undo, err := n.net.slow(names[0])
	if err != nil {
		return err
	}
	wait(ctx, d)
	return undo()
}

func unlinked(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	if err := n.net.link(names[0], "down"); err != nil {
		return err
	}
	wait(ctx, d)
	return n.net.link(names[0], "up")
}

// flapped has the link come and go every second or so, and says how often leaders were elected meanwhile.
func flapped(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	before, err := n.topics(ctx)
	if err != nil {
		return err
	}
	from := time.Now()
	for end := from.Add(2 * d); time.Now().Before(end) && ctx.Err() == nil; wait(ctx, d/5) {
		if err := unlinked(n, ctx, names, d/5); err != nil {
			return err
		}
	}
	after, err := n.topics(ctx)
	if err != nil {
		return err
	}
	_, most, where := risen(before, after)
	n.note("leader epochs rose by %d at most%s in %.1fs of flap %v", most, where, time.Since(from).Seconds(), names)
	return nil
}

// risen says in how many partitions the leader epoch is higher than before, by how much at most, and where that is.
func risen(before, after kadm.TopicDetails) (in int, most int32, where string) {
	after.EachPartition(func(p kadm.PartitionDetail) {
		was, ok := before[p.Topic].Partitions[p.Partition]
		by := p.LeaderEpoch - was.LeaderEpoch
		if !ok || by == 0 {
			return
		}
		if in++; by > most {
			most, where = by, fmt.Sprintf(" (%s-%d)", p.Topic, p.Partition)
		}
	})
	return in, most, where
}

// sessionsLost is how often the brokers' sessions have run out since they were started, of those that run.
func (n *nemesis) sessionsLost(ctx context.Context) (lost int, err error) {
	for _, b := range n.c.Brokers {
		if !b.Running() {
			continue
		}
		l, e := metric(ctx, b.Admin, "varve_sessions_lost_total")
		lost, err = lost+int(l), errors.Join(err, e)
	}
	return lost, err
}

// metric is one of a process, without labels.
func metric(ctx context.Context, admin, name string) (value float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(text, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("%s: there is no %s", admin, name), lines.Err())
}

// cut has what a process sends to others, or what they send to it, or both come to nothing.
func cut(there, back bool, others func(*nemesis, []string) []string) func(*nemesis, context.Context, []string, time.Duration) error {
	return func(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
		heal, err := n.drop(names[0], others(n, names), there, back)
		wait(ctx, d)
		return errors.Join(err, heal())
	}
}

// drop is network.drop for several others and both directions.
func (n *nemesis) drop(name string, others []string, there, back bool) (heal func() error, err error) {
	var undo []func() error
	drop := func(from, to string) {
		u, e := n.net.drop(from, to)
		if e == nil {
			undo = append(undo, u)
		}
		err = errors.Join(err, e)
	}
	for _, other := range others {
		if there {
			drop(name, other)
		}
		if back {
			drop(other, name)
		}
	}
	return func() (err error) {
		for _, u := range undo {
			err = errors.Join(err, u())
		}
		return err
	}, err
}

func otherBrokers(n *nemesis, names []string) (others []string) {
	for _, b := range n.c.Brokers {
		if b.Name != names[0] {
			others = append(others, b.Name)
		}
	}
	return others
}

func members(n *nemesis, _ []string) []string {
	all, _ := allMembers(n, nil)
	return all
}

// servers are all others. Clients still see it: a leader that nobody else takes for one.
func servers(n *nemesis, names []string) []string {
	return slices.Concat(otherBrokers(n, names), members(n, nil), []string{n.c.S3.Name})
}

func second(_ *nemesis, names []string) []string { return names[1:] }
