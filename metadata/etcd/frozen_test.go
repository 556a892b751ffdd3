package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/etcd/etcdtest"
	"github.com/varve/varve/metadata/image"
)

// A member of etcd that hangs keeps its connections. A watch that it serves is noticed
// to be silent, and goes on at another, with nothing missing; leases are renewed and
// transactions carried out meanwhile.
func TestFrozenMember(t *testing.T) {
	c := etcdtest.Start(t, 3)
	client, err := Dial(bg, DialOptions{Endpoints: c.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s := New(Options{Client: client, Prefix: "/frozen", RequestTimeout: 5 * time.Second})
	must[string](t)(s.EnsureCluster(bg, ""))
	im := must[*image.Image](t)(s.Load(bg))
	lease, _, err := s.Grant(bg, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	epoch, won, err := s.Campaign(bg, lease, 1, [16]byte{1})
	if !won {
		t.Fatal(err)
	}

	// As a node watches: again where it ended.
	ctx, cancel := context.WithCancel(bg)
	var seen, alive atomic.Int64
	seen.Store(im.Revision)
	silent := make(chan error, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			o := WatchOptions{After: seen.Load(), Every: 50 * time.Millisecond, Patience: 400 * time.Millisecond, Alive: func() { alive.Add(1) }}
			err := s.Watch(ctx, o, func(d image.Delta) error {
				if d.Revision <= seen.Load() {
					t.Errorf("revision %d after %d", d.Revision, seen.Load())
				}
				seen.Store(d.Revision)
				return nil
			})
			if ctx.Err() == nil {
				silent <- err
			}
		}
	}()
	defer func() { cancel(); <-done }()
	arrives := func(what string) {
		t.Helper()
		rev := must[int64](t)(s.Barrier(bg, epoch)) // of the key that says nothing
		own := must[*image.Image](t)(s.Commit(bg, epoch, must[*image.Image](t)(s.Load(bg)), []image.Change{
			image.SetConfig{ConfigKey: image.ConfigKey{Type: 32, Name: fmt.Sprint("g", rev)}, Values: map[string]string{"x": what}}}))
		until(t, "the watch delivers "+what, func() bool { return seen.Load() >= own.Revision })
	}
	arrives("the first")
	// An idle watch is known to be well, again and again, and does not end.
	before := alive.Load()
	until(t, "the watch is well", func() bool { return alive.Load() > before+20 })
	if len(silent) > 0 {
		t.Fatal(<-silent)
	}

	moved := 0
	for range 3 {
		for m := range 3 {
			c.Freeze(m, true)
			for range 6 {
				// What a broker gives a heartbeat of a session of two seconds.
				hb, stop := context.WithTimeout(bg, time.Second)
				if err := s.KeepAlive(hb, lease); err != nil {
					t.Errorf("with member %d frozen: %v", m, err)
				}
				stop()
			}
			arrives(fmt.Sprintf("with member %d frozen", m))
			for len(silent) > 0 {
				if err := <-silent; !errors.Is(err, ErrSilent) {
					t.Errorf("with member %d frozen: %v", m, err)
				}
				moved++
			}
			c.Freeze(m, false)
		}
	}
	// It is on one of the three when that freezes, three times over.
	if moved == 0 {
		t.Error("the watch was at no member that froze")
	}
	t.Logf("the watch was taken up elsewhere %d times", moved)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// What answers a question about how far a watch is, and what does not.
func TestVigil(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(1_000_000 + ms)) }
	v := newVigil(at(0), time.Second, 10)
	// A watch that does not come about is given up after half the time, when it was
	// looked at more than once.
	if v.ask(at(200), 10) || v.silent(at(900)) {
		t.Error("given up after one look")
	}
	v.ask(at(400), 10)
	if v.silent(at(499)) || !v.silent(at(500)) {
		t.Error("not given up after half a second")
	}
	v.open()
	if v.silent(at(999)) || !v.silent(at(1000)) {
		t.Error("a watch that came about has a second")
	}
	// Events of earlier revisions show that somebody is there, and not how far.
	v.work()
	if v.silent(at(5000)) {
		t.Error("given up while its events are worked on")
	}
	if !v.heard(at(5000), 9, true) || v.well() {
		t.Error("revision 9 is a sign of life, and no answer")
	}
	if v.silent(at(5999)) || !v.silent(at(6000)) {
		t.Error("a second from the last event")
	}
	if !v.heard(at(6000), 10, true) || !v.well() {
		t.Error("revision 10 is the answer")
	}
	if v.silent(at(60000)) {
		t.Error("silent, and nothing was asked")
	}
	// A member that lags answers, and shows less than was known when it was asked.
	v.ask(at(60000), 20)
	v.ask(at(60300), 25)
	v.ask(at(60600), 30)
	if v.heard(at(60700), 19, false) || v.heard(at(60900), 19, false) || !v.silent(at(61000)) {
		t.Error("an answer that shows too little is taken for one")
	}
	if !v.heard(at(61000), 20, false) {
		t.Error("revision 20 is the answer")
	}
	if v.silent(at(70000)) {
		t.Error("silent, and everything is answered")
	}
}

// A transaction that is sent twice is carried out once, and says so or that it does
// not know.
func TestHedged(t *testing.T) {
	var h hedges
	type result = *clientv3.TxnResponse
	never := func(ctx context.Context) (result, error) { <-ctx.Done(); return nil, ctx.Err() }
	answer := &clientv3.TxnResponse{}
	calls := atomic.Int64{}
	second := func(ctx context.Context) (result, error) {
		if calls.Add(1) == 1 {
			return never(ctx)
		}
		return answer, nil
	}
	if r, sent, err := hedged(bg, &h, time.Millisecond, 2, second); r != answer || sent != 2 || err != nil {
		t.Error(r, sent, err)
	}
	// It ends with its context, here as soon as all are sent.
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	calls.Store(0)
	third := func(ctx context.Context) (result, error) {
		if calls.Add(1) == 3 {
			cancel()
		}
		return never(ctx)
	}
	if _, sent, err := hedged(ctx, &h, time.Millisecond, 3, third); sent != 3 || !errors.Is(err, context.Canceled) {
		t.Error(sent, err)
	}
	if _, sent, err := hedged(bg, &h, time.Hour, 3, func(context.Context) (result, error) { return nil, rpctypes.ErrNoLeader }); sent != 1 || !errors.Is(err, rpctypes.ErrNoLeader) {
		t.Error(sent, err)
	}
	// An error of one does not end the other.
	calls.Store(0)
	fails := make(chan struct{})
	if r, sent, err := hedged(bg, &h, time.Millisecond, 2, func(ctx context.Context) (result, error) {
		if calls.Add(1) == 2 {
			defer close(fails)
			return nil, rpctypes.ErrTimeout
		}
		<-fails
		return answer, nil
	}); r != answer || sent != 2 || err != nil {
		t.Error(r, sent, err)
	}
	// There are only so many.
	if n := h.n.Load(); n != 0 {
		t.Errorf("%d copies are under way", n)
	}
	h.n.Store(maxHedges)
	ctx, cancel = context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	if _, sent, err := hedged(ctx, &h, time.Millisecond, 2, never); sent != 1 || err == nil {
		t.Error(sent, err)
	}
}
