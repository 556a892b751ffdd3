package server

import (
	"context"
	"log/slog"
	"testing"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering/objstore"
)

// A broker that is closed has others lead before it stops serving; the last one
// has nobody, and does not wait.
func TestCloseHandsOver(t *testing.T) {
	store, err := etcd.Embedded(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	bucket := objstore.NewMem()
	open := func(id string) *Server {
		o := options(t, t.TempDir(), map[string]string{"node.id": id})
		o.Etcd, o.Bucket = store.Client(), bucket
		s, err := Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := open("1")
	defer first.Close(context.Background())
	second := open("2")
	results := first.node.CreateTopics(context.Background(), []controller.NewTopic{
		{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: []controller.Assignment{{Partition: 0, Replicas: []int32{2, 1}}}},
	}, false)
	if results[0].ErrorCode != 0 {
		t.Fatalf("%+v", results)
	}
	state := func(s *Server) image.Partition { return *s.node.Image().Topic("t").Partitions[0] }
	if p := state(first); p.Leader != 2 || len(p.ISR) != 2 {
		t.Fatalf("%+v", p)
	}
	if err := second.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if b, p := second.node.Image().Broker(2), state(second); !b.ShuttingDown || b.Fenced || p.Leader != 1 || p.LeaderEpoch != 1 {
		t.Fatalf("as the broker that was closed saw it last: %+v, partition %+v", b, p)
	}
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if b, p := first.node.Image().Broker(1), state(first); b.ShuttingDown || p.Leader != 1 {
		t.Fatalf("as the last one saw it: %+v, partition %+v", b, p)
	}
}
