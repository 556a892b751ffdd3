package brokertest

import (
	"context"
	"fmt"
	"time"

	"github.com/varve/varve/interop/chaos/history"
	"github.com/varve/varve/tiering/manifest"
)

// naming is which objects the heads name, as far as the heads themselves say: their tails and their pages. Guarded by the store's
// lock.
type naming struct {
	by   map[string]map[history.Partition]string // the epoch keys of those that name an object
	left map[string]time.Duration                // when the last head was committed without it
}

// deleteGrace is remote.delete.grace.ms.
const deleteGrace = 4 * time.Second

func newNaming() naming {
	return naming{by: map[string]map[history.Partition]string{}, left: map[string]time.Duration{}}
}

// objectsOf are the objects that a head names.
func objectsOf(h *manifest.Head, id string, index int32) map[string]bool {
	keys, topic := map[string]bool{}, topicID(id)
	for _, e := range h.Tail {
		if !h.Dead(e) { // what the log start has passed is named no more
			keys[e.Key(topic, index)] = true
		}
	}
	for _, r := range h.Named() {
		keys[r.Key(topic, index)] = true
	}
	return keys
}

// names takes note of what a head names, or does no more, and looks whether it is there. Called with the store's lock held.
func (w *workload) names(p history.Partition, id string, old, now *manifest.Head) {
	had, has := objectsOf(old, id, p.Index), objectsOf(now, id, p.Index)
	for key := range has {
		if had[key] {
			continue
		}
		if _, err := w.c.objs.Head(context.Background(), key); err != nil {
			w.c.fail("I7: %s-%d: a head names %s: %v", p.Topic, p.Index, key, err)
		}
		if w.naming.by[key] == nil {
			w.naming.by[key] = map[history.Partition]string{}
		}
		w.naming.by[key][p] = fmt.Sprintf("/epoch/%s/%07d", id, p.Index)
		delete(w.naming.left, key)
	}
	for key := range had {
		if has[key] {
			continue
		}
		if delete(w.naming.by[key], p); len(w.naming.by[key]) == 0 {
			w.naming.left[key] = w.c.now() // or a page names it from now on
		}
	}
}

// deleting looks at an object that is about to be deleted: no head of a topic that there is names it, and none has for a while.
func (w *workload) deleting(key string) {
	s := w.c.etcd
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, epoch := range w.naming.by[key] {
		if s.kvs[etcdPrefix+epoch] != nil {
			w.c.fail("I7: object %s is deleted, and %s-%d names it", key, p.Topic, p.Index)
		}
	}
	if at, ok := w.naming.left[key]; ok && w.c.now()-at < deleteGrace {
		w.c.fail("I7: object %s is deleted %s after a head named it", key, w.c.now()-at)
	}
}
