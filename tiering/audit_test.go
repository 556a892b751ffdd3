package tiering

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

// audited is three objects of one partition, and what an audit says of them.
type audited struct {
	*world
	f    *fakeLog
	head *manifest.Head
	rev  int64
}

func inAudit(t *testing.T, f func(t *testing.T, a *audited)) {
	inWorld(t, func(t *testing.T, w *world) {
		x, log := w.open(), newLog(1, 0)
		w.lead(x, log)
		for range 3 {
			log.plain(t, 5, 10, 100)
			w.drained(x, log)
		}
		w.check(x, log)
		x.Close()
		raw, rev, err := w.store.Load(bg, log.id, 0)
		if err != nil {
			t.Fatal(err)
		}
		a := &audited{world: w, f: log, rev: rev}
		if a.head, err = manifest.DecodeHead(raw); err != nil || len(a.head.Tail) != 3 {
			t.Fatalf("%+v %v", a.head, err)
		}
		f(t, a)
	})
}

func (a *audited) key(i int) string { return a.head.Tail[i].Key(a.f.id, 0) }

// rewrite puts what change makes of an object in its place.
func (a *audited) rewrite(key string, change func([]byte) []byte) {
	a.t.Helper()
	size, err := a.mem.Head(bg, key)
	if err != nil {
		a.t.Fatal(err)
	}
	b, err := objstore.ReadRange(bg, a.mem, key, 0, size)
	if err != nil {
		a.t.Fatal(err)
	}
	b = change(slices.Clone(b))
	a.mem.Delete(bg, []string{key})
	if err := a.mem.Put(bg, key, strings.NewReader(string(b)), int64(len(b)), objstore.CRC32C(b)); err != nil {
		a.t.Fatal(err)
	}
}

// commit puts another head in the place of the one there is.
func (a *audited) commit(change func(h *manifest.Head)) {
	a.t.Helper()
	h := *a.head
	h.Tail = slices.Clone(h.Tail)
	change(&h)
	if _, err := a.store.Commit(bg, CommitRequest{TopicID: a.f.id, Rev: a.rev, LeaderEpoch: 1, Head: h.Encode()}); err != nil {
		a.t.Fatal(err)
	}
}

func (a *audited) finds(o AuditOptions, want ...Fault) []Finding {
	a.t.Helper()
	told := 0
	o.Found = func(Finding) { told++ }
	got, err := Check(bg, a.bucket, a.store, o)
	if err != nil {
		a.t.Fatal(err)
	}
	var faults []Fault
	total := 0
	for _, p := range got.Problems {
		faults = append(faults, p.Fault)
	}
	for _, n := range got.Counts {
		total += n
	}
	if !slices.Equal(faults, want) || told != len(want) || total != len(want) {
		a.t.Errorf("found %v (told of %d, counted %v), want %v", got.Problems, told, got.Counts, want)
	}
	return got.Problems
}

// Each kind of damage is found, and said where it is.
func TestAuditFinds(t *testing.T) {
	one := func(t *testing.T, a *audited, list []Finding, i int) {
		t.Helper()
		e := a.head.Tail[i]
		if len(list) != 1 || list[0].Base != e.Base || list[0].Last != e.Last || list[0].Object != a.key(i) || list[0].Topic != "events" || list[0].Partition != 0 {
			t.Errorf("%+v", list)
		}
		if list[0].Fault.Advice() == "" || !strings.Contains(list[0].String(), a.key(i)) {
			t.Errorf("%v", list[0])
		}
	}
	named := AuditOptions{Topic: func([16]byte) (string, bool) { return "events", true }}
	for name, f := range map[string]func(t *testing.T, a *audited){
		"an object that is gone": func(t *testing.T, a *audited) {
			a.mem.Delete(bg, []string{a.key(1)})
			one(t, a, a.finds(named, FaultMissing), 1)
		},
		"a footer that was changed": func(t *testing.T, a *audited) {
			a.rewrite(a.key(2), func(b []byte) []byte { b[a.head.Tail[2].FooterPos+9] ^= 1; return b })
			one(t, a, a.finds(named, FaultCorrupt), 2)
		},
		"an object that ends early": func(t *testing.T, a *audited) {
			a.rewrite(a.key(0), func(b []byte) []byte { return b[:a.head.Tail[0].FooterPos] })
			one(t, a, a.finds(named, FaultCorrupt), 0)
		},
		"a byte of the data, which only reading it finds": func(t *testing.T, a *audited) {
			a.rewrite(a.key(1), func(b []byte) []byte { b[200] ^= 1; return b })
			a.finds(named)
			deep := named
			deep.Data = true
			one(t, a, a.finds(deep, FaultCorrupt), 1)
		},
		"a log that starts below its first entry": func(t *testing.T, a *audited) {
			a.commit(func(h *manifest.Head) { h.Tail = h.Tail[1:] })
			list := a.finds(named, FaultCoverage)
			if list[0].Base != 0 || list[0].Last != a.head.Tail[0].Last {
				t.Errorf("%+v", list)
			}
		},
		"a page that was changed": func(t *testing.T, a *audited) {
			p := (&manifest.Page{Entries: a.head.Tail[:2]}).Encode()
			ref := manifest.PageRef{Last: a.head.Tail[1].Last, Entries: 2, Bytes: a.head.Tail[0].Bytes + a.head.Tail[1].Bytes, Rev: a.rev, Epoch: 1, Suffix: newSuffix(), Size: int32(len(p)), CRC: objstore.CRC32C(p)}
			key := ref.Key(a.f.id, 0)
			if err := a.mem.Put(bg, key, strings.NewReader(string(p)), int64(len(p)), objstore.CRC32C(p)); err != nil {
				t.Fatal(err)
			}
			a.commit(func(h *manifest.Head) { h.Pages, h.Tail = []manifest.PageRef{ref}, h.Tail[2:] })
			a.finds(named)
			a.rewrite(key, func(b []byte) []byte { b[20] ^= 1; return b })
			list := a.finds(named, FaultManifest)
			if list[0].Base != 0 || list[0].Last != ref.Last || list[0].Object != key {
				t.Errorf("%+v", list)
			}
			a.mem.Delete(bg, []string{key})
			a.finds(named, FaultManifest)
		},
		"a head that nobody can read": func(t *testing.T, a *audited) {
			if _, err := a.store.Commit(bg, CommitRequest{TopicID: a.f.id, Rev: a.rev, LeaderEpoch: 1, Head: []byte("?")}); err != nil {
				t.Fatal(err)
			}
			a.finds(named, FaultManifest)
		},
		"a topic that is not asked about": func(t *testing.T, a *audited) {
			a.mem.Delete(bg, []string{a.key(1)})
			a.finds(AuditOptions{Topic: func([16]byte) (string, bool) { return "", false }})
		},
		"a byte that was changed on its way": func(t *testing.T, a *audited) {
			a.bucket.Inject(objstore.Fault{Op: objstore.OpGet, Kind: objstore.Flip, Count: 1})
			a.finds(named)
			if a.bucket.Fired() == 0 {
				t.Error("none was")
			}
		},
	} {
		t.Run(name, func(t *testing.T) { inAudit(t, f) })
	}
}

// A store that does not answer is no finding but an audit that could not be made.
func TestAuditOfABucketThatIsAway(t *testing.T) {
	inAudit(t, func(t *testing.T, a *audited) {
		for _, op := range []objstore.Op{objstore.OpList, objstore.OpGet} {
			a.bucket.Inject(objstore.Fault{Op: op, Kind: objstore.FailBefore})
			if got, err := Check(bg, a.bucket, a.store, AuditOptions{}); !errors.Is(err, objstore.ErrUnavailable) {
				t.Errorf("%s: %+v %v", op, got, err)
			}
			a.bucket.Clear()
		}
		a.store.Hook = func(op string, _ [16]byte, _ int32, after bool) error {
			if op == "load" && !after {
				return errors.New("etcd is away")
			}
			return nil
		}
		if got, err := Check(bg, a.bucket, a.store, AuditOptions{}); err == nil {
			t.Errorf("%+v", got)
		}
	})
}

// What is replaced, or expires, and is deleted between the reading of the head and that of the object is no finding.
func TestAuditBesideTheCollector(t *testing.T) {
	inAudit(t, func(t *testing.T, a *audited) {
		a.bucket.Inject(objstore.Fault{Op: objstore.OpGet, Key: a.key(0), Count: 1, Kind: objstore.Delay, Delay: time.Second, Do: func(context.Context, objstore.Op, string) error {
			a.commit(func(h *manifest.Head) { h.LogStart = h.Tail[1].Base })
			return a.mem.Delete(bg, []string{a.key(0)})
		}})
		a.finds(AuditOptions{Parallel: 1})
		if a.bucket.Fired() != 1 {
			t.Error("nothing happened meanwhile")
		}
	})
}

// What nobody names is listed with its topic, and what is gone before the end is not.
func TestAuditUnnamed(t *testing.T) {
	inAudit(t, func(t *testing.T, a *audited) {
		e := a.head.Tail[0]
		e.Kind, e.Suffix = manifest.Rewritten, newSuffix()
		stays := e.Key(a.f.id, 0)
		e.Suffix = newSuffix()
		goes := e.Key(a.f.id, 0)
		for _, k := range []string{stays, goes} {
			if err := a.mem.Put(bg, k, strings.NewReader("x"), 1, objstore.CRC32C([]byte("x"))); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Check(bg, a.bucket, a.store, AuditOptions{
			Topic:    func([16]byte) (string, bool) { return "events", true },
			Progress: func(Audit) { a.mem.Delete(bg, []string{goes}) },
		})
		if err != nil || len(got.Unnamed) != 1 || got.Unnamed[0].Key != stays || got.Unnamed[0].Topic != "events" || got.Unnamed[0].Size != 1 {
			t.Errorf("%+v %v", got, err)
		}
	})
}

// What waits to be deleted is listed with its size and the time before which it stays.
func TestRetired(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.opts.OwnBytes = 1 // an object for each flush
		x, f := w.open(), newLog(1, 0)
		f.policy.DeleteDelayMs = 60_000
		w.lead(x, f)
		for range 3 {
			f.plain(t, 5, 10, 100)
			w.drained(x, f)
		}
		if list := x.Retired(); len(list) != 0 {
			t.Fatalf("%+v", list)
		}
		if got := x.Waiting(); got != (Waiting{}) {
			t.Errorf("nothing waits: %+v", got)
		}
		f.set(func(p *Policy) { p.RetentionMs = 1000 })
		time.Sleep(10 * time.Second)
		list := x.Retired()
		if len(list) != 2 { // the newest stays
			t.Fatalf("%+v", list)
		}
		for _, r := range list {
			if size, err := w.mem.Head(bg, r.Object); err != nil || r.Bytes <= 0 || r.Bytes > size || r.TopicID != f.id || r.Earliest.Sub(r.Since) != time.Minute {
				t.Errorf("%+v, %d bytes, %v", r, size, err)
			}
		}
		sum := Waiting{Objects: 2, Bytes: list[0].Bytes + list[1].Bytes, Oldest: list[0].Since}
		if list[1].Since.Before(sum.Oldest) {
			sum.Oldest = list[1].Since
		}
		if got := x.Waiting(); got != sum {
			t.Errorf("%+v, want %+v", got, sum)
		}
		time.Sleep(2 * time.Minute)
		if got := x.Waiting(); got != (Waiting{}) {
			t.Errorf("afterwards: %+v", got)
		}
		if list := x.Retired(); len(list) != 0 || w.objects() != 1 {
			t.Errorf("afterwards: %+v, %d objects", list, w.objects())
		}
		x.Resign(f.id, 0)
		w.store.DeleteTopic(f.id, f.name, 1)
		time.Sleep(x.o.CollectInterval + time.Second)
		list = slices.DeleteFunc(x.Retired(), func(r Retired) bool { return r.Object != "" }) // the sweep may have seen its object
		if len(list) != 1 || list[0].Topic != f.name || list[0].TopicID != f.id || list[0].Earliest.Sub(list[0].Since) != x.o.Grace || w.objects() != 1 {
			t.Errorf("the topic is deleted: %+v, %d objects", list, w.objects())
		}
		time.Sleep(2*x.o.Grace + time.Minute)
		if list := x.Retired(); len(list) != 0 || w.objects() != 0 {
			t.Errorf("and gone: %+v, %d objects", list, w.objects())
		}
	})
}
