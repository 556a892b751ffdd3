package brokertest

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
)

var (
	seed  = flag.Uint64("seed", 0, "run this seed alone")
	seeds = flag.Int("seeds", 6, "run so many seeds")
	from  = flag.Uint64("from", 1, "beginning with this one")
	only  = flag.String("faults", "", "only these faults, separated by commas")
	have  = flag.String("with", "", "exactly these features, separated by commas; none: none of them")
)

// Each seed is a cluster of its own.
func TestSeeds(t *testing.T) {
	list := []uint64{*seed}
	if *seed == 0 {
		list = nil
		for i := range uint64(*seeds) {
			list = append(list, *from+i)
		}
	}
	for _, s := range list {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			o := Options{Seed: s, Dir: t.TempDir()}
			if *only != "" {
				o.Faults = strings.Split(*only, ",")
			}
			if *have != "" {
				o.With = strings.Split(*have, ",")
			}
			if testing.Verbose() && *seed != 0 {
				o.Log = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
			}
			synctest.Test(t, func(t *testing.T) {
				wrong, done := Run(o)
				if wrong != "" {
					t.Errorf("seed %d; once more: make sim SEED=%d\n%s", s, s, wrong)
				}
				t.Log(done)
			})
		})
	}
}

// A leader that keeps its session and serves nobody is relieved of what others can lead, with its session alive and
// without being fenced; what nobody else can lead stays with it. When it is well again it is in sync, and may lead.
func TestUnresponsive(t *testing.T) {
	others := func(c *Cluster, n *node, f func(from, to string)) {
		for _, o := range c.nodes {
			if o != n {
				f(n.host, o.host)
				f(o.host, n.host)
			}
		}
	}
	for name, fault := range map[string]func(c *Cluster, n *node, on bool){
		"cut off from the brokers": func(c *Cluster, n *node, on bool) {
			if on {
				others(c, n, c.net.Cut)
			} else {
				others(c, n, func(from, to string) { c.net.Heal(from, to, true) })
			}
		},
		"listeners that accept nobody": func(c *Cluster, n *node, on bool) { c.net.Deaf(n.host, on) },
	} {
		for _, boss := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s controller=%t", name, boss), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var log slog.Handler
					if testing.Verbose() {
						log = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})
					}
					c, w := threeBrokers(11, t.TempDir(), log, 6, true)
					defer c.Close()
					k := w.client("admin")
					defer k.close()
					if c.failed() {
						t.Fatal(c.report())
					}
					time.Sleep(20 * time.Second) // nobody is new
					im := c.image()
					n := c.node(im.Controller)
					if !boss {
						n = c.node(im.Controller%3 + 1)
					}
					one := im.Topic(topicOne).Partitions[0]
					// told says whether DescribeCluster of another broker has n as one that does not answer.
					told := func(want bool) error {
						req := kmsg.NewPtrDescribeClusterRequest()
						req.Version, req.EndpointType, req.IncludeFencedBrokers = 2, 1, true
						resp, err := k.ask(n.id%3+1, req)
						if err != nil {
							return err
						}
						for _, b := range resp.(*kmsg.DescribeClusterResponse).Brokers {
							state := byte(0)
							b.UnknownTags.Each(func(tag uint32, v []byte) {
								if tag == broker.BrokerStateTag {
									state = v[0]
								}
							})
							if b.IsFenced || (state == 4) != (want && b.NodeID == n.id) {
								return fmt.Errorf("DescribeCluster: broker %d, fenced %t, state %b", b.NodeID, b.IsFenced, state)
							}
						}
						return nil
					}
					if err := told(false); err != nil {
						t.Error(err)
					}
					fault(c, n, true)
					began := time.Now()
					if err := eventually(healthy, func() error {
						im := c.image()
						for tp := range im.AllTopics() {
							for i, p := range tp.Partitions {
								if len(p.Replicas) > 1 && (p.Leader == n.id || p.Leader < 0 || len(p.ISR) != 2) {
									return fmt.Errorf("%s-%d: %+v", tp.Name, i, p)
								}
							}
						}
						return nil
					}); err != nil {
						t.Fatal(err)
					}
					t.Logf("relieved after %s", time.Since(began))
					im = c.image()
					b := im.Broker(n.id)
					if s := im.Session(n.id); s == nil || b.Fenced || !b.Unresponsive || im.Controller == n.id {
						t.Errorf("broker %d: %+v, session %+v, controller %d", n.id, b, s, im.Controller)
					}
					if err := eventually(healthy, func() error { return told(true) }); err != nil {
						t.Error(err)
					}
					if now := im.Topic(topicOne).Partitions[0]; now.Leader != one.Leader || now.LeaderEpoch != one.LeaderEpoch {
						t.Errorf("the partition of one replica was %+v, is %+v", one, now)
					}
					for _, o := range c.nodes {
						if o != n && !im.Active(o.id) {
							t.Errorf("broker %d is well: %+v", o.id, im.Broker(o.id))
						}
					}
					fault(c, n, false)
					if err := eventually(healthy, func() error {
						if im := c.image(); !im.Active(n.id) {
							return fmt.Errorf("%+v", im.Broker(n.id))
						}
						return errors.Join(told(false), c.inSync(time.Second))
					}); err != nil {
						t.Fatal(err)
					}
					if c.failed() {
						t.Error(c.report())
					}
				})
			})
		}
	}
}
