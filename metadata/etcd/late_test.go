package etcd

import (
	"context"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
)

// keptKV keeps what transactions consist of, so that a copy can come late.
type keptKV struct {
	clientv3.KV
	kept []*keptTxn
}

type keptTxn struct {
	clientv3.Txn
	cmps      []clientv3.Cmp
	then, els []clientv3.Op
}

func (k *keptKV) Txn(ctx context.Context) clientv3.Txn {
	t := &keptTxn{Txn: k.KV.Txn(ctx)}
	k.kept = append(k.kept, t)
	return t
}

func (t *keptTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.cmps = c; t.Txn.If(c...); return t }
func (t *keptTxn) Then(o ...clientv3.Op) clientv3.Txn { t.then = o; t.Txn.Then(o...); return t }
func (t *keptTxn) Else(o ...clientv3.Op) clientv3.Txn { t.els = o; t.Txn.Else(o...); return t }

// A transaction that made a topic is carried out a second time when the topic has been deleted: it must not come back. That
// its keys are absent, as they were, is no reason; that the controller wrote its barrier since is one against it.
func TestLateCommit(t *testing.T) {
	s := newStore(t)
	must[string](t)(s.EnsureCluster(bg, ""))
	epoch := elect(t, s)
	must[int64](t)(s.Barrier(bg, epoch))
	kv := &keptKV{KV: s.client.KV}
	s.client.KV = kv
	im := must[*image.Image](t)(s.Commit(bg, epoch, must[*image.Image](t)(s.Load(bg)), topic(1, "a", 3, nil)))
	if len(kv.kept) != 1 {
		t.Fatalf("%d transactions", len(kv.kept))
	}
	late := kv.kept[0]
	s.client.KV = kv.KV
	again := func() *clientv3.TxnResponse {
		resp, err := s.client.Txn(bg).If(late.cmps...).Then(late.then...).Else(late.els...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if again().Succeeded {
		t.Fatal("carried out twice, while the topic is there")
	}
	must[int64](t)(s.Barrier(bg, epoch)) // as after every transaction of which a copy is under way
	must[*image.Image](t)(s.Commit(bg, epoch, im, []image.Change{image.BuryTopic{Tombstone: image.Tombstone{ID: id(1), Name: "a", Partitions: 3}}}))
	if again().Succeeded {
		t.Fatal("the deleted topic is there again")
	}
	if im = must[*image.Image](t)(s.Load(bg)); im.Topic("a") != nil {
		t.Fatalf("%+v", im.Topic("a"))
	}
}
