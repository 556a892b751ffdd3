package brokertest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/tiering/objstore"
)

// A topic that is deleted and created again under the same name, again and again, while producers and readers are at it. They
// name it by its id, so that there is no doubt which one they mean; in the history each has a name of its own, and the last
// one has the topic's in the end.
//
// What may not be: a record of one in another, an offset that goes on where the other ended, a manifest of one that is gone
// (watch), and objects of it that stay.

// incarnations are the topics that have had the name.
type incarnations struct {
	now    atomic.Pointer[incarnation]
	before []*incarnation // deleted; owned by renew, and by finish when that has ended
}

type incarnation struct {
	id   [16]byte
	name string      // in the history
	over atomic.Bool // it is deleted: nobody produces to it any more
}

// inHistory is what the history calls a topic.
func inHistory(topic string, id [16]byte) string {
	if topic == topicGone {
		return topicGone + " " + hex.EncodeToString(id[:])
	}
	return topic
}

// byID takes the id from a name that the history has for one of those.
func byID(name string) (id [16]byte, ok bool) {
	s, ok := strings.CutPrefix(name, topicGone+" ")
	if !ok {
		return id, false
	}
	return topicID(s), true
}

// topicOf is the name that brokers know.
func topicOf(name string) string {
	if _, ok := byID(name); ok {
		return topicGone
	}
	return name
}

// named is what the history calls the topic of an id in etcd. Called with the store's lock held.
func (s *store) named(id string) string {
	if name := s.topicName(id); name != topicGone {
		return name
	}
	return topicGone + " " + id
}

func (w *workload) partitionsOf(x *incarnation) []history.Partition { return w.all(x.name) }

// renew has the topic created, lets it live for a while, and deletes it.
func (w *workload) renew() {
	k := w.client("renew")
	defer k.close()
	var producers sync.WaitGroup
	defer producers.Wait()
	for n := 0; ; n++ {
		x, err := w.create(k)
		if err != nil {
			w.c.fail("I11: topic %s is not created: %v", topicGone, err)
			return
		}
		w.c.note("%-16s %s for the %d. time", "created", x.name, n+1)
		w.gone.now.Store(x)
		for i := range 2 {
			producers.Go(func() { w.produceUntil(fmt.Sprintf("gone%d.%d", n, i), w.partitionsOf(x), &x.over) })
		}
		for end := time.Now().Add(time.Duration(500+k.rnd.IntN(4000)) * time.Millisecond); time.Now().Before(end) && !w.feeds.Load(); {
			time.Sleep(50 * time.Millisecond)
		}
		if w.feeds.Load() {
			x.over.Store(true)
			return
		}
		if err := w.deleteTopic(k, x.id); err != nil {
			w.c.fail("I11: topic %s is not deleted: %v", topicGone, err)
			return
		}
		w.c.note("%-16s %s", "deleted", x.name)
		w.gone.before = append(w.gone.before, x)
		time.AfterFunc(time.Duration(k.rnd.IntN(1000))*time.Millisecond, func() { x.over.Store(true) })
		if k.rnd.IntN(2) == 0 {
			time.Sleep(time.Duration(k.rnd.IntN(1500)) * time.Millisecond)
		}
	}
}

// patience is how long an administrator tries: the cluster is well again before.
const patience = 90 * time.Second

// create makes the topic, and returns it when some broker shows one that was not there before.
func (w *workload) create(k *client) (x *incarnation, err error) {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.TimeoutMillis = 7, 2500
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topicGone, w.partitions, 3
	req.Topics = append(req.Topics, t)
	known := func(id [16]byte) bool {
		return slices.ContainsFunc(w.gone.before, func(x *incarnation) bool { return x.id == id })
	}
	err = eventually(patience, func() error {
		m, err := k.refresh()
		if err != nil {
			return err
		}
		for _, t := range m.Topics {
			// A broker may show the one before still.
			if *t.Topic == topicGone && !known(t.TopicID) {
				x = &incarnation{id: t.TopicID, name: inHistory(topicGone, t.TopicID)}
				return nil
			}
		}
		resp, err := k.ask(k.anyBroker(), req)
		if err == nil {
			err = kerr.ErrorForCode(resp.(*kmsg.CreateTopicsResponse).Topics[0].ErrorCode)
		}
		if err == nil {
			err = errors.New("no broker shows it yet")
		}
		return err
	})
	return x, err
}

// deleteTopic deletes a topic by its id: a request that comes late can mean no other.
func (w *workload) deleteTopic(k *client, id [16]byte) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version, req.TimeoutMillis = 6, 2500
	t := kmsg.NewDeleteTopicsRequestTopic()
	t.TopicID = id
	req.Topics = append(req.Topics, t)
	return eventually(patience, func() error {
		resp, err := k.ask(k.anyBroker(), req)
		if err == nil {
			err = kerr.ErrorForCode(resp.(*kmsg.DeleteTopicsResponse).Topics[0].ErrorCode)
		}
		if errors.Is(err, kerr.UnknownTopicID) {
			// It was, by a request whose answer was lost; or by a broker that knows nothing of the topic yet.
			if w.c.stateOf(hex.EncodeToString(id[:]), 0) == nil {
				return nil
			}
		}
		return err
	})
}

// readRenewed reads along whichever there is.
func (w *workload) readRenewed() {
	var a *alongReader
	var x *incarnation
	for !w.reads.Load() {
		now := w.gone.now.Load()
		if now == nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if now != x {
			if a != nil {
				a.k.close()
			}
			x, a = now, w.along("reader of "+now.name, int(now.id[0])%3)
		}
		for _, p := range w.partitionsOf(x) {
			a.step(p, w.shown)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if a != nil {
		a.k.close()
	}
}

// lastIncarnation makes the history that of the last incarnation: what is noted of the others is checked here, as far as it can be.
func (w *workload) lastIncarnation() {
	now := w.gone.now.Load()
	if now == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	type place struct {
		p history.Partition
		o int64
	}
	sent := map[history.Partition]map[history.Record]bool{}
	acked := map[place]history.Record{}
	for i := range w.h.Produces {
		r := &w.h.Produces[i]
		if _, ok := byID(r.Topic); !ok {
			continue
		}
		if sent[r.Partition] == nil {
			sent[r.Partition] = map[history.Record]bool{}
		}
		sent[r.Partition][r.Record] = true
		if r.Outcome == history.Done {
			acked[place{r.Partition, r.Offset}] = r.Record
		}
		if r.Topic == now.name {
			r.Topic = topicGone
		} else {
			r.Outcome, r.Offset = history.Unknown, -1
		}
	}
	w.h.Reads = slices.DeleteFunc(w.h.Reads, func(r history.Read) bool {
		_, ok := byID(r.Topic)
		if !ok {
			return false
		}
		if !sent[r.Partition][r.Record] {
			w.c.fail("%s-%d, offset %d: %s was shown %v, which was not sent there", r.Topic, r.Index, r.Offset, w.h.Readers[r.Reader].Name, r.Record)
		}
		if want, ok := acked[place{r.Partition, r.Offset}]; ok && want != r.Record {
			w.c.fail("%s-%d, offset %d: %s was shown %v, and %v was acknowledged", r.Topic, r.Index, r.Offset, w.h.Readers[r.Reader].Name, r.Record, want)
		}
		return r.Topic != now.name
	})
	for i := range w.h.Reads {
		if r := &w.h.Reads[i]; r.Topic == now.name {
			r.Topic = topicGone
		}
	}
}

// forgotten says whether nothing is left of the topics that were deleted: no head, no tombstone, no object of their own.
func (w *workload) forgotten() error {
	deleted := map[[16]byte]bool{}
	for _, x := range w.gone.before {
		deleted[x.id] = true
		id := hex.EncodeToString(x.id[:])
		w.c.etcd.mu.Lock()
		var left string
		for key := range w.c.etcd.kvs {
			if strings.Contains(key, id) {
				left = key
			}
		}
		w.c.etcd.mu.Unlock()
		if left != "" {
			return fmt.Errorf("etcd has %s still", left)
		}
	}
	for _, prefix := range []string{manifest.DataPrefix, manifest.PagePrefix} {
		for after, more := "", true; more; {
			var list []objstore.Info
			var err error
			if list, more, err = w.c.objs.List(context.Background(), prefix, after, objstore.MaxList); err != nil {
				return err
			}
			for _, i := range list {
				after = i.Key
				if n, ok := manifest.ParseKey(i.Key); ok && deleted[n.TopicID] && (n.Page || n.Kind != manifest.Mixed) {
					return fmt.Errorf("the bucket has %s still", i.Key)
				}
			}
		}
	}
	return nil
}
