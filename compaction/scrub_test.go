package compaction

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

// memScrubs is what workers share, in memory.
type memScrubs struct {
	mu     sync.Mutex
	last   Pass
	who    string
	passes int
	ending error // of the next End
}

func (m *memScrubs) Last(context.Context) (Pass, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last, nil
}

func (m *memScrubs) Unnamed(context.Context) (map[manifest.Suffix]time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last.Unnamed, nil
}

func (m *memScrubs) Begin(_ context.Context, worker string, _ int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.who != "" && m.who != worker {
		return false, nil
	}
	m.who = worker
	return true, nil
}

func (m *memScrubs) End(_ context.Context, worker string, _ int64, p *Pass) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.who != worker {
		return nil
	}
	m.who = ""
	if err := m.ending; err != nil {
		m.ending = nil
		return err
	}
	if p != nil {
		m.last = *p
		m.passes++
	}
	return nil
}

// scrubbed is a bucket whose one partition names one object, and workers that scrub it every hour.
type scrubbed struct {
	t      *testing.T
	bucket *objstore.Faulty
	mem    objstore.Bucket
	store  *tiering.MemManifests
	scrubs *memScrubs

	mu     sync.Mutex
	found  []tiering.Finding
	told   Pass
	failed int
}

func inScrub(t *testing.T, f func(t *testing.T, s *scrubbed)) {
	synctest.Test(t, func(t *testing.T) {
		mem := objstore.NewMem()
		f(t, &scrubbed{t: t, mem: mem, bucket: objstore.NewFaulty(mem, 1), store: tiering.NewMemManifests(), scrubs: &memScrubs{}})
	})
}

func (s *scrubbed) run(name string) (stop func()) {
	s.t.Helper()
	tier, err := tiering.Open(tiering.Options{Bucket: s.bucket, Manifests: s.store, ClusterID: "test", Worker: true, RequestTimeout: time.Second})
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := New(Options{
		Tier: tier, Store: s.store, Name: name, Settings: Settings{TableBytes: 1 << 16}, Scrubs: s.scrubs, ScrubInterval: time.Hour,
		Lease: func(context.Context) (int64, <-chan struct{}, error) { return 1, make(chan struct{}), nil },
		Topic: func(id [16]byte) (Topic, bool) { return Topic{Name: "events"}, id == [16]byte{1} },
		Events: Events{
			ScrubFound: func(f tiering.Finding) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.found = append(s.found, f)
			},
			Scrubbed: func(p Pass) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.told = p
			},
			ScrubFailed: func(error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.failed++
			},
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
		tier.Close()
	}
}

// after waits and returns what was found since the last call, and how many passes there were in all.
func (s *scrubbed) after(d time.Duration) (found []tiering.Finding, passes int) {
	time.Sleep(d)
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	found, s.found = s.found, nil
	s.scrubs.mu.Lock()
	defer s.scrubs.mu.Unlock()
	return found, s.scrubs.passes
}

func (s *scrubbed) put(e manifest.Entry) string {
	s.t.Helper()
	key := e.Key([16]byte{1}, 0)
	if err := s.mem.Put(s.t.Context(), key, strings.NewReader("x"), 1, objstore.CRC32C([]byte("x"))); err != nil {
		s.t.Fatal(err)
	}
	return key
}

var lostEntry = manifest.Entry{Base: 0, Last: 9, Epoch: 1, Kind: manifest.Rewritten, Suffix: manifest.Suffix{7}, Bytes: 100, FooterPos: 108, FooterLen: 50}

// A pass is made when one is due, by one worker, and all are told what it came to.
func TestScrub(t *testing.T) {
	inScrub(t, func(t *testing.T, s *scrubbed) {
		stopA, stopB := s.run("a"), s.run("b")
		if found, passes := s.after(30 * time.Minute); len(found) != 0 || passes != 1 {
			t.Errorf("in the first half hour: %v, %d passes", found, passes)
		}
		head := &manifest.Head{Epoch: 1, Tail: []manifest.Entry{lostEntry}}
		if _, err := s.store.Commit(t.Context(), tiering.CommitRequest{TopicID: [16]byte{1}, LeaderEpoch: 1, Head: head.Encode()}); err != nil {
			t.Fatal(err)
		}
		found, passes := s.after(time.Hour)
		if len(found) != 1 || found[0].Fault != tiering.FaultMissing || found[0].Topic != "events" || found[0].Last != 9 || passes != 2 {
			t.Errorf("%v, %d passes", found, passes)
		}
		if want := map[tiering.Fault]int{tiering.FaultMissing: 1}; !maps.Equal(s.told.Findings, want) || s.told.Partitions != 1 || s.told.Objects != 1 {
			t.Errorf("told %+v", s.told)
		}
		stopA()
		stopB()
		// One that was made lately is not made again by a process that is new.
		stop := s.run("c")
		if _, passes := s.after(20 * time.Minute); passes != 2 {
			t.Errorf("%d passes", passes)
		}
		// Away: tried again, and no finding.
		s.bucket.SetOutage(true)
		found, passes = s.after(time.Hour)
		if len(found) != 0 || passes != 2 || s.failed == 0 {
			t.Errorf("without the bucket: %v, %d passes, %d failed", found, passes, s.failed)
		}
		s.bucket.SetOutage(false)
		s.scrubs.mu.Lock()
		s.scrubs.ending = errors.New("etcd is away")
		s.scrubs.mu.Unlock()
		if found, passes = s.after(30 * time.Minute); len(found) != 2 || passes != 3 {
			t.Errorf("afterwards: %v, %d passes", found, passes)
		}
		stop()
	})
}

// What nobody names is a finding only when it has been so for a day, and then it is one, however short the workers live.
func TestScrubOrphans(t *testing.T) {
	for _, lives := range []int{1000, 1, 7} {
		t.Run(fmt.Sprintf("workers live for %d hours", lives), func(t *testing.T) { scrubOrphans(t, lives) })
	}
}

func scrubOrphans(t *testing.T, lives int) {
	inScrub(t, func(t *testing.T, s *scrubbed) {
		time.Sleep(48 * time.Hour) // objects have an age
		e := lostEntry
		e.Suffix = manifest.Suffix{8}
		old := s.put(e)
		stop := s.run("0")
		defer func() { stop() }()
		found := map[bool][]int{} // in which hours; the first, the second
		for hour := range 52 {
			if hour == 24 {
				e.Suffix = manifest.Suffix{9}
				s.put(e)
			}
			if hour == 40 {
				s.mem.Delete(t.Context(), []string{old})
			}
			if hour%lives == lives-1 {
				stop()
				stop = s.run(fmt.Sprint(hour))
			}
			list, _ := s.after(time.Hour)
			for _, f := range list {
				if f.Fault != tiering.FaultOrphan || f.Topic != "events" || f.Base != -1 {
					t.Errorf("%+v", f)
				}
				found[f.Object == old] = append(found[f.Object == old], hour)
			}
		}
		// The first is seen by the pass of its second hour, for it is too young for that of its first.
		if first := found[true]; len(first) < 12 || slices.Min(first) < 24 || slices.Max(first) >= 41 {
			t.Errorf("the first is found in the hours %v", first)
		}
		if second := found[false]; len(second) == 0 || slices.Min(second) < 48 {
			t.Errorf("the second is found in the hours %v", second)
		}
	})
}

// As many are remembered as can be noted, those that were there first.
func TestScrubRemembersTheFirst(t *testing.T) {
	w := &Worker{o: Options{OrphanAge: 24 * time.Hour, Topic: func([16]byte) (Topic, bool) { return Topic{}, false }}}
	began := time.Unix(1_000_000, 0)
	var list []tiering.UnnamedInfo
	before := map[manifest.Suffix]time.Time{}
	for i := range MaxUnnamed + 10 {
		e := lostEntry
		e.Suffix = manifest.Suffix{byte(i), byte(i >> 8), byte(i >> 16)}
		list = append(list, tiering.UnnamedInfo{Info: objstore.Info{Key: e.Key([16]byte{1}, 0), Modified: began.Add(-48 * time.Hour)}})
		if i >= MaxUnnamed {
			before[e.Suffix] = began.Add(-time.Duration(i-MaxUnnamed+1) * 5 * time.Hour)
		}
	}
	unnamed, orphans := w.orphans(list, before, began)
	if len(unnamed) != MaxUnnamed || len(orphans) != 6 { // since 25, 30, 35, 40, 45 and 50 hours
		t.Errorf("%d unnamed, %d orphans", len(unnamed), len(orphans))
	}
	for s, since := range before {
		if !unnamed[s].Equal(since) {
			t.Errorf("%x is unnamed since %v, noted is %v", s, since, unnamed[s])
		}
	}
}

// What a topic has kept for longer than a day before it is deleted is no orphan meanwhile.
func TestScrubKnowsTheDelay(t *testing.T) {
	const day = 24 * time.Hour
	w := &Worker{o: Options{OrphanAge: day, Topic: func(id [16]byte) (Topic, bool) {
		return Topic{Name: "events", DeleteDelay: 2 * day}, id == [16]byte{1}
	}}, known: map[partitionKey]known{
		{topic: [16]byte{1}}: {policy: Topic{DeleteDelay: 2 * day}}, {topic: [16]byte{2}}: {policy: Topic{DeleteDelay: time.Minute}},
	}}
	began := time.Unix(10_000_000, 0)
	at := func(n manifest.Name, age time.Duration) bool {
		info := tiering.UnnamedInfo{Info: objstore.Info{Key: n.Key(), Modified: began.Add(-100 * day)}}
		_, orphans := w.orphans([]tiering.UnnamedInfo{info}, map[manifest.Suffix]time.Time{n.Suffix: began.Add(-age)}, began)
		return len(orphans) == 1
	}
	for what, n := range map[string]manifest.Name{
		"an object": {Kind: manifest.Rewritten, TopicID: [16]byte{1}}, "a page": {Page: true, TopicID: [16]byte{1}}, "a mixed object": {Kind: manifest.Mixed},
	} {
		if at(n, 5*day-time.Second) || !at(n, 5*day) {
			t.Errorf("%s: found after 5 days less a second: %v, after 5 days: %v", what, at(n, 5*day-time.Second), at(n, 5*day))
		}
	}
	if n := (manifest.Name{Kind: manifest.Own, TopicID: [16]byte{3}}); at(n, day-time.Second) || !at(n, day) {
		t.Error("an object of a topic that is not there")
	}
}
