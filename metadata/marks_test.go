package metadata

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

// Directories are opened, copied, given marks, and their processes killed at every
// step, while writes to etcd are carried out late. One that has been given etcd's
// mark, or was copied from it since, is never taken for stale; any other always is.
func TestMarks(t *testing.T) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("VARVE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("VARVE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	type dir struct {
		last, next [16]byte
		at         int // how many marks etcd had been given, as of the one that this has
	}
	found, fine := 0, 0
	for range 300 {
		dirs := []*dir{{}}
		var held etcd.HeldMark
		given := 0
		late := func() {} // a write to etcd that is on its way
		var session int64 // of which it is
		put := func(d *dir, of int64, was etcd.HeldMark) func() {
			mark := d.next
			return func() {
				if of != session || was.Revision != held.Revision {
					return
				}
				given++
				held = etcd.HeldMark{Mark: mark, Revision: was.Revision + 1}
				for _, d := range dirs {
					if d.next == mark {
						d.at = given
					}
				}
			}
		}
		for range 40 {
			d := dirs[rnd.IntN(len(dirs))]
			if rnd.IntN(4) == 0 {
				c := *d
				dirs = append(dirs, &c)
				continue
			}
			// A process starts on it.
			if rnd.IntN(2) == 0 {
				late()
			}
			known := held
			old := known.Revision > 0 && stale(known.Mark, d.last, d.next)
			if old != (d.at < given) {
				t.Fatalf("stale: %v; it has mark %d of %d: %x %x, etcd %x", old, d.at, given, d.last, d.next, held.Mark)
			}
			if old {
				found++
			} else {
				fine++
			}
			session++
			late()
			late = func() {}
			sent := false
			for range rnd.IntN(5) {
				if !sent {
					if rnd.IntN(5) == 0 {
						break // killed before it is admitted
					}
					d.last, d.next = successor(known, d.last, d.next)
					sent = true
					if rnd.IntN(5) == 0 {
						break // killed with the directory written, and etcd not
					}
				}
				write := put(d, session, known)
				switch rnd.IntN(4) {
				case 0:
					late = write // no answer, and it is carried out some time, or never
				case 1:
					write() // no answer
				default:
					write()
					known, sent = held, false
				}
				if rnd.IntN(5) == 0 {
					late()
					late = func() {}
				}
				if known.Revision != held.Revision && sent && held.Mark == d.next {
					known, sent = held, false // it was told at the next attempt
				}
			}
		}
	}
	if found == 0 || fine == 0 {
		t.Fatalf("%d stale, %d not", found, fine)
	}
	t.Logf("%d stale, %d not", found, fine)
}

// Etcd that was restored, or begun anew, is behind the directory: that is no reason
// to distrust the directory.
func TestMarksOfAnEtcdThatWentBack(t *testing.T) {
	last, next := newMark(7), newMark(8)
	for _, held := range []etcd.HeldMark{{}, {Revision: 3, Mark: newMark(2)}} {
		if held.Revision > 0 && stale(held.Mark, last, next) {
			t.Fatal("stale")
		}
		l, n := successor(held, last, next)
		if number(n) <= number(next) || held.Revision > 0 && stale(held.Mark, l, n) {
			t.Fatalf("%+v: %x %x", held, l, n)
		}
		if stale(n, l, n) || !stale(n, last, next) {
			t.Fatalf("%+v: %x %x", held, l, n)
		}
	}
}

// directory is a log directory, as far as marks go.
type directory struct {
	mu         sync.Mutex
	last, next [16]byte
	cut        bool
	written    int64
	refuse     error
}

func (d *directory) Marks() (last, next [16]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last, d.next
}

func (d *directory) SetMarks(last, next [16]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return d.refuse
	}
	d.last, d.next, d.cut = last, next, false
	return nil
}

func (d *directory) CutTail() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

func (d *directory) Written() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

func (d *directory) grow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written++
}

func (d *directory) copy() *directory {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &directory{last: d.last, next: d.next, cut: d.cut, written: d.written}
}

// admitted waits until one node knows that another was admitted, and returns the
// other's session.
func admitted(t *testing.T, by, n *Node) *image.Session {
	t.Helper()
	eventually(t, "admitted", func() bool {
		b, s := by.Image().Broker(n.o.BrokerID), by.Image().Session(n.o.BrokerID)
		return b != nil && b.Incarnation == n.Incarnation() && !b.Fenced && s != nil && s.Incarnation == n.Incarnation()
	})
	return by.Image().Session(n.o.BrokerID)
}

// A broker's directory is copied while it runs, and the broker goes on. What comes
// back from the copy is in no ISR, however often it is started before it is admitted;
// the directory itself is trusted whatever it was that ended its process.
func TestOldCopy(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	static := func() map[string]string { return map[string]string{"default.replication.factor": "2"} }
	var rec recorder
	start := func(id int32, d *directory, place string) *Node {
		o := c.options(id)
		o.Marks, o.BrokerConfig, o.Events.Controlled = d, static, rec.add
		o.SessionTimeout, o.HeartbeatInterval = 20*time.Second, 50*time.Millisecond // nobody is fenced
		if place != "" {
			o.Place, o.SessionTimeout = place, time.Second // it does not wait for long
		}
		n := open(t, o)
		n.markInterval = 20 * time.Millisecond
		return n
	}
	first, second := &directory{}, &directory{}
	other := start(2, second, "")
	register(t, other)
	n := start(1, first, "")
	register(t, n)
	create(t, other, "t", 2)
	isr := func() (all []int32) {
		for _, p := range other.Image().Topic("t").Partitions {
			all = append(all, p.ISR...)
		}
		return all
	}
	marks := func() string {
		held, err := other.store.Mark(bg, 1)
		if err != nil {
			t.Fatal(err)
		}
		last, next := first.Marks()
		return fmt.Sprintf("%x, the directory %x %x", held.Mark, last, next)
	}
	marked := func(d *directory) {
		t.Helper()
		eventually(t, "etcd has the directory's mark", func() bool {
			held, err := other.store.Mark(bg, 1)
			_, next := d.Marks()
			return err == nil && held.Revision > 0 && held.Mark == next
		})
	}
	marked(first)

	// It grows, and gets marks; then it does not, and gets none.
	was := first.copy()
	first.grow()
	eventually(t, "another mark", func() bool { _, next := first.Marks(); return next != was.next })
	marked(first)
	time.Sleep(200 * time.Millisecond)
	before := marks()
	time.Sleep(300 * time.Millisecond)
	if now := marks(); now != before {
		t.Fatalf("marks for nothing: %s, then %s", before, now)
	}

	// Killed, with the directory written and etcd not; killed before that; and killed
	// before it is admitted, twice.
	n.abandon()
	for i := range 4 {
		switch i {
		case 1, 2:
			_, next := first.Marks()
			first.SetMarks(next, newMark(number(next)+1)) // what it sends is lost
		}
		n = start(1, first, "")
		if i == 2 || i == 3 {
			if err := n.register(bg); err != nil {
				t.Fatal(err)
			}
		} else {
			register(t, n)
		}
		if s := admitted(t, other, n); s.Stale || len(isr()) != 4 {
			t.Fatalf("start %d: %+v, in sync %v", i, s, isr())
		}
		if i < 2 {
			marked(first)
		}
		n.abandon()
	}
	n = start(1, first, "")
	register(t, n)
	marked(first)

	// The copy is started beside it, and has to go.
	twin := start(1, was.copy(), "elsewhere")
	if err := twin.Register(bg); !errors.Is(err, etcd.ErrDuplicateBroker) {
		t.Fatal(err)
	}
	if n.Healthy() != nil || other.Image().Broker(1).Incarnation != n.Incarnation() {
		t.Fatal("the first was disturbed")
	}
	twin.Close()

	// The copy takes its place; at first it is killed before it has a mark.
	n.abandon()
	old := was.copy()
	old.refuse = errors.New("no room")
	for i := range 3 {
		if i == 2 {
			old.mu.Lock()
			old.refuse = nil
			old.mu.Unlock()
		}
		n = start(1, old, "")
		register(t, n)
		if s := admitted(t, other, n); !s.Stale || len(isr()) != 2 {
			t.Fatalf("start %d: %+v, in sync %v", i, s, isr())
		}
		eventually(t, "it is said", func() bool { return rec.has("disk-stale 1") })
		if i < 2 {
			n.abandon()
		}
	}
	for i, p := range other.Image().Topic("t").Partitions {
		if p.Leader != 2 {
			t.Fatalf("partition %d: %+v", i, p)
		}
	}
	marked(old)
	// It is the broker's directory from now on, and the other an old one.
	n.abandon()
	n = start(1, old, "")
	register(t, n)
	if s := admitted(t, other, n); s.Stale {
		t.Fatalf("%+v", s)
	}
	marked(old)
	n.abandon()
	n = start(1, first, "")
	register(t, n)
	if s := admitted(t, other, n); !s.Stale {
		t.Fatalf("%+v", s)
	}
}

// The only broker there is comes back from an old copy, or an old mark: it leads what
// it has.
func TestOldCopyOfTheOnlyBroker(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	var rec recorder
	start := func(d *directory) *Node {
		o := c.options(1)
		o.Marks, o.Events.Controlled = d, rec.add
		n := open(t, o)
		register(t, n)
		return n
	}
	d := &directory{}
	n := start(d)
	create(t, n, "t", 1)
	eventually(t, "a mark", func() bool { return d.copy().next != [16]byte{} })
	eventually(t, "a mark in etcd", func() bool { h, err := n.store.Mark(bg, 1); return err == nil && h.Revision > 0 })
	n.abandon()
	n = start(&directory{})
	if p := partitionState(n, "t", 0); p.Leader != 1 || len(p.ISR) != 1 || !p.Recovering {
		t.Fatalf("%+v", p)
	}
	eventually(t, "it is said", func() bool { return rec.has("data-lost 1") && rec.has("disk-stale 1") })
}

// A log whose end was cut is said so until the broker is admitted, and then forgotten.
func TestCutLog(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	var rec recorder
	start := func(id int32, d *directory) *Node {
		o := c.options(id)
		o.Marks, o.Events.Controlled, o.HeartbeatInterval = d, rec.add, 50*time.Millisecond
		o.BrokerConfig = func() map[string]string { return map[string]string{"default.replication.factor": "2"} }
		n := open(t, o)
		register(t, n)
		return n
	}
	d := &directory{}
	other := start(2, &directory{})
	n := start(1, d)
	r := other.CreateTopics(bg, []controller.NewTopic{{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: []controller.Assignment{{Replicas: []int32{1, 2}}}}}, false)
	if r[0].ErrorCode != 0 {
		t.Fatalf("%+v", r)
	}
	n.abandon()
	d.cut = true
	n = start(1, d)
	admitted(t, other, n)
	if p := partitionState(other, "t", 0); p.Leader != 2 || len(p.ISR) != 1 {
		t.Fatalf("%+v", p)
	}
	eventually(t, "it is said", func() bool { return rec.has("log-cut 1") })
	eventually(t, "forgotten", func() bool { return !d.CutTail() })
	n.abandon()
	n = start(1, d)
	if s := admitted(t, other, n); s.Cut {
		t.Fatalf("%+v", s)
	}
}

// A machine is set back together with its memory, and the broker's session outlives that or not: the process is in no ISR any more, and
// has a mark of its own from then on.
func TestMachineThatWasSetBack(t *testing.T) {
	t.Parallel()
	c := cluster{t, startEtcd(t, t.TempDir())}
	var rec recorder
	var controls atomic.Pointer[Node] // the first
	start := func(id int32, d *directory) *Node {
		o := c.options(id)
		o.Marks, o.Events.Controlled = d, rec.add
		o.BrokerConfig = func() map[string]string { return map[string]string{"default.replication.factor": "2"} }
		o.SessionTimeout, o.HeartbeatInterval = 20*time.Second, 50*time.Millisecond
		n := open(t, o)
		n.markInterval = 20 * time.Millisecond
		n.SetForward(func(ctx context.Context, _ *image.Broker, command []byte) ([]byte, error) {
			return controls.Load().Execute(ctx, command)
		})
		controls.CompareAndSwap(nil, n)
		register(t, n)
		return n
	}
	other := start(2, &directory{})
	d := &directory{}
	n := start(1, d)
	for i, name := range []string{"first", "second"} {
		create(t, other, name, 2)
		// between has the directory grow and get a mark, and something happen while it gets none.
		between := func(than int64, f func()) {
			t.Helper()
			refuse := func(err error) {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.refuse = err
			}
			d.grow()
			eventually(t, "a mark", func() bool {
				n.mu.Lock()
				defer n.mu.Unlock()
				return n.marking.held.Revision > than
			})
			refuse(errors.New("not now"))
			eventually(t, "etcd has the directory's mark", func() bool {
				n.mu.Lock()
				defer n.mu.Unlock()
				_, next := d.Marks()
				if n.marking.sent || n.marking.held.Mark != next {
					return false
				}
				f()
				return true
			})
			refuse(nil)
		}
		var was *directory
		var memory marking
		between(0, func() { was, memory = d.copy(), n.marking })
		session := n.BrokerEpoch()
		var lease, last int64
		between(memory.held.Revision, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.last, d.next = was.last, was.next
			last, lease = n.marking.held.Revision, n.lease
			n.marking = memory // all that giveMark goes by
		})
		if i == 1 {
			if err := other.store.Revoke(bg, lease); err != nil {
				t.Fatal(err)
			}
		}
		d.grow()
		eventually(t, "it registers again, as an old copy", func() bool {
			b := other.Image().Broker(1)
			return b != nil && b.Epoch > session && !b.Fenced && b.Incarnation == n.incarnation
		})
		for i, p := range other.Image().Topic(name).Partitions {
			if p.Leader != 2 || len(p.ISR) != 1 {
				t.Errorf("%s-%d: %+v", name, i, p)
			}
		}
		between(last, func() {}) // it has another
		eventually(t, "the controller knows that it has a mark", func() bool { return !other.Image().Broker(1).Stale })
	}
	if !rec.has("disk-stale 1") {
		t.Error("it is not said")
	}
}
