// Package brokertest simulates whole clusters: the real brokers of package server in one process, with a network, disks, an
// etcd and a bucket in memory, all of which fail as a seed says, in the fake time of testing/synctest. Clients work
// meanwhile; in the end everything that was promised to them is checked. README.md says what is simulated and checked.
//
// A seed replays its faults and what each client does, not the order of goroutines that can run at the same time: that is
// the scheduler's. Most failures come again with their seed all the same, since between two of its events a bubble runs
// until all wait.
package brokertest

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
)

// Options of a run.
type Options struct {
	Seed   uint64
	Dir    string        // empty, on the real disk
	Log    slog.Handler  // of the brokers; nil: none
	Faults []string      // only these; nil: all
	With   []string      // exactly these features; nil: those that the seed chooses
	For    time.Duration // how long faults happen; zero: 8 s
}

// Run simulates one cluster in a bubble of testing/synctest. It returns what went wrong, or "", and what was done.
func Run(o Options) (wrong, done string) {
	if o.For == 0 {
		o.For = 8 * time.Second
	}
	rnd := pcg(o.Seed, "plan")
	brokers := 3
	if rnd.IntN(3) == 0 {
		brokers = 4
	}
	has := choose(o.Seed, o.With)
	c := newCluster(o.Seed, o.Dir, o.Log, brokers, has)
	w := newWorkload(c, 1+rnd.Int32N(2), has)
	c.etcd.committed, c.objs.deleting = w.watch, w.deleting
	events := plan(rnd, o.For, o.Faults, has)
	one := true // a topic of a single replica, which no disk may be lost of
	for _, e := range events {
		one = one && !e.fault.wipes()
	}
	late := c.nodes[len(c.nodes)-1] // it joins while all is under way, if there are four
	for _, n := range c.nodes {
		if brokers == 3 || n != late {
			n.Start()
		}
	}
	defer c.Close()
	if err := w.createTopics(one); err != nil {
		c.fail("topics were not created: %v", err)
		return c.report(), ""
	}
	w.start(one)
	for _, k := range c.workers {
		k.Start()
	}
	f := &faults{c: c, w: w, busy: map[int32]bool{}}
	if brokers == 4 {
		f.wg.Go(func() {
			time.Sleep(time.Duration(rnd.Int64N(int64(o.For))))
			c.note("%-16s broker %d", "add", late.id)
			late.Start()
		})
	}
	time.Sleep(time.Second)
	f.run(events)
	c.note("all is healed")
	w.finish()
	if c.failed() {
		return c.report(), w.figures()
	}
	return "", w.figures()
}

func (w *workload) createTopics(one bool) error {
	k := w.client("create")
	defer k.close()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.TimeoutMillis = 7, 2500
	settings := w.features.topics()
	for _, name := range append([]string{topicIn, topicOut, topicTxn, topicOne}, slices.Sorted(maps.Keys(settings))...) {
		t := kmsg.NewCreateTopicsRequestTopic()
		with(&t, settings[name])
		t.Topic, t.NumPartitions, t.ReplicationFactor = name, w.partitions, 3
		if name == topicOne {
			if !one {
				continue
			}
			t.NumPartitions, t.ReplicationFactor = 1, 1
			min := kmsg.NewCreateTopicsRequestTopicConfig()
			min.Name, min.Value = "min.insync.replicas", kmsg.StringPtr("1")
			t.Configs = append(t.Configs, min)
		}
		req.Topics = append(req.Topics, t)
	}
	return eventually(30*time.Second, func() error {
		resp, err := k.ask(k.anyBroker(), req)
		if err != nil {
			return err
		}
		for _, t := range resp.(*kmsg.CreateTopicsResponse).Topics {
			if err := kerr.ErrorForCode(t.ErrorCode); err != nil && err != kerr.TopicAlreadyExists {
				return fmt.Errorf("%s: %w", t.Topic, err)
			}
		}
		return nil
	})
}

// figures say how much was done.
func (w *workload) figures() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	acked, txns := 0, 0
	for i := range w.h.Produces {
		if w.h.Produces[i].Offset >= 0 {
			acked++
		}
	}
	for _, t := range w.h.Txns {
		if t.Outcome == history.Done {
			txns++
		}
	}
	return fmt.Sprintf("%s: %d of %d records acknowledged, %d of %d transactions committed, %d reads, %d commits of offsets, %.0f s simulated",
		w.features, acked, len(w.h.Produces), txns, len(w.h.Txns), len(w.h.Reads), len(w.h.Commits), w.c.now().Seconds())
}
