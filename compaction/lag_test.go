package compaction

import (
	"context"
	"testing"
	"time"

	"github.com/varve/varve/tiering"
)

// What is dirty, late, waits or fails is told with the partition of which it is worst, and no more when it is over.
func TestLag(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		lazy := compacted
		lazy.MinDirtyRatio, lazy.MaxLag = 1, time.Hour.Milliseconds() // compacted when it has to be
		p, q := s.lead(1, lazy), s.lead(2, compacted)
		k := s.work(single)
		defer k.close()
		want := func(when string, want Lag) {
			t.Helper()
			if l := k.Lag(); l != want {
				t.Errorf("%s:\n got %+v\nwant %+v", when, l, want)
			}
		}
		want("nothing is known", Lag{})
		put := s.now()
		s.put(p, "a=1")
		s.upload()
		if n := s.round(k); n != 0 {
			t.Fatalf("%d jobs", n)
		}
		dirty := Worst{Topic: "topic-1", Value: 1}
		want("not due", Lag{Dirty: dirty})

		other := tiering.Claim{Worker: "other", Tag: [4]byte{1}, Lease: -1}
		if err := s.store.Claim(bg, q.id, q.index, other); err != nil {
			t.Fatal(err)
		}
		s.put(q, "b=1")
		s.upload()
		s.round(k)
		due := s.now()
		s.skew += 30 * time.Minute
		s.round(k)
		l := k.Lag()
		if l.Dirty.Value != 1 || l.Waiting != (Worst{"topic-2", 0, s.now().Sub(due).Seconds()}) || l.Delayed != 0 {
			t.Errorf("claimed elsewhere: %+v", l)
		}
		s.skew += 45 * time.Minute
		l = k.Lag()
		if l.Delayed != 1 || l.Delay != (Worst{"topic-1", 0, float64(s.now().UnixMilli()-put.UnixMilli()-3_600_000) / 1000}) {
			t.Errorf("later than max.compaction.lag.ms: %+v", l)
		}
		if err := s.store.Unclaim(bg, q.id, q.index, other); err != nil {
			t.Fatal(err)
		}
		s.finish(k)
		want("all is done", Lag{})

		for where, damage := range map[string]func(b []byte) []byte{
			"a batch":  func(b []byte) []byte { b[50] ^= 1; return b },         // the job fails
			"a footer": func(b []byte) []byte { b[len(b)-100] ^= 1; return b }, // the look
		} {
			s.put(q, "b=2")
			s.upload()
			entries := s.live(q)
			e := entries[len(entries)-1]
			restore := s.tamper(e.Key(q.id, q.index), damage)
			k.Round(bg, k.lease)
			if len(k.failures()) != 1 {
				t.Fatalf("an object whose %s is damaged is compacted", where)
			}
			s.skew += 10 * time.Second
			l = k.Lag()
			if l.Failing != (Worst{"topic-2", 0, 10}) || l.FailingBytes != e.Bytes {
				t.Errorf("%s is damaged, %d dirty bytes cannot be compacted: %+v", where, e.Bytes, l)
			}
			restore()
			s.skew += time.Minute
			s.finish(k)
			want("mended", Lag{})
		}
	})
}

// A worker that does nothing at all for long is told from one that rests, or waits for what it may read and write.
func TestStuck(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.lead(1, compacted)
		s.three(p)
		k := s.worker(s.now, func(o *Options, _ *tiering.Options) {
			o.Lease = func(context.Context) (int64, <-chan struct{}, error) { return 1000, make(chan struct{}), nil }
		})
		defer k.close()
		fine := func(when string) {
			t.Helper()
			if err := k.Stuck(30 * time.Minute); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		fine("before it runs")
		began, hangs, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
		k.pauseAt("put data", func() {
			close(began)
			time.Sleep(20 * time.Minute)
			fine("a request that takes long")
			time.Sleep(20 * time.Minute)
			if k.Stuck(30*time.Minute) == nil {
				t.Error("nothing was done for 40 minutes")
			}
			close(hangs)
		})
		ctx, cancel := context.WithCancel(bg)
		go func() { k.Run(ctx); close(over) }()
		<-began
		<-hangs
		for range 5 {
			time.Sleep(time.Hour)
			fine("it rests")
		}
		if p.head().Compaction.CleanEnd != p.end() {
			t.Errorf("%+v", p.head())
		}
		cancel()
		<-over
		time.Sleep(time.Hour)
		fine("it is over")
	})
}
