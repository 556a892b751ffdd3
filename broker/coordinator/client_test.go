package coordinator

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
)

// tinyBroker serves what a consumer needs besides the group APIs: one broker, one topic of six empty partitions.
type tinyBroker struct {
	c    *Coordinator
	ln   net.Listener
	port int32
}

const tinyPartitions = 6

var tinyTopic = [16]byte{1, 2, 3}

func (b *tinyBroker) answer(ctx context.Context, req kmsg.Request) kmsg.Response {
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		return b.c.JoinGroup(ctx, req, "client", "/127.0.0.1")
	case *kmsg.SyncGroupRequest:
		return b.c.SyncGroup(ctx, req)
	case *kmsg.HeartbeatRequest:
		return b.c.Heartbeat(ctx, req)
	case *kmsg.LeaveGroupRequest:
		return b.c.LeaveGroup(ctx, req)
	case *kmsg.OffsetCommitRequest:
		for i := range req.Topics {
			req.Topics[i].Topic = "t"
		}
		return b.c.OffsetCommit(ctx, req)
	case *kmsg.OffsetFetchRequest:
		for i := range req.Groups {
			for j := range req.Groups[i].Topics {
				req.Groups[i].Topics[j].Topic = "t"
			}
		}
		r := b.c.OffsetFetch(ctx, req)
		for i := range r.Groups {
			for j := range r.Groups[i].Topics {
				r.Groups[i].Topics[j].TopicID = tinyTopic
			}
		}
		return r
	case *kmsg.OffsetDeleteRequest:
		return b.c.OffsetDelete(ctx, req)
	case *kmsg.DescribeGroupsRequest:
		return b.c.DescribeGroups(ctx, req)
	case *kmsg.ListGroupsRequest:
		return b.c.ListGroups(ctx, req)
	case *kmsg.DeleteGroupsRequest:
		return b.c.DeleteGroups(ctx, req)
	case *kmsg.FindCoordinatorRequest:
		r := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
		r.Host, r.Port = "127.0.0.1", b.port
		for _, k := range req.CoordinatorKeys {
			r.Coordinators = append(r.Coordinators, kmsg.FindCoordinatorResponseCoordinator{Key: k, Host: "127.0.0.1", Port: b.port})
		}
		return r
	case *kmsg.MetadataRequest:
		r := req.ResponseKind().(*kmsg.MetadataResponse)
		r.Brokers = []kmsg.MetadataResponseBroker{{Host: "127.0.0.1", Port: b.port}}
		name := "t"
		t := kmsg.MetadataResponseTopic{Topic: &name, TopicID: tinyTopic}
		for p := range int32(tinyPartitions) {
			t.Partitions = append(t.Partitions, kmsg.MetadataResponseTopicPartition{Partition: p, Replicas: []int32{0}, ISR: []int32{0}})
		}
		r.Topics = append(r.Topics, t)
		return r
	case *kmsg.ListOffsetsRequest:
		r := req.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, t := range req.Topics {
			rt := kmsg.ListOffsetsResponseTopic{Topic: t.Topic}
			for _, p := range t.Partitions {
				rt.Partitions = append(rt.Partitions, kmsg.ListOffsetsResponseTopicPartition{Partition: p.Partition, Timestamp: -1, LeaderEpoch: -1})
			}
			r.Topics = append(r.Topics, rt)
		}
		return r
	case *kmsg.FetchRequest:
		time.Sleep(20 * time.Millisecond)
		return req.ResponseKind()
	case *kmsg.ApiVersionsRequest:
		r := req.ResponseKind().(*kmsg.ApiVersionsResponse)
		r.ApiKeys = []kmsg.ApiVersionsResponseApiKey{{ApiKey: 1, MinVersion: 4, MaxVersion: 12}, {ApiKey: 2, MinVersion: 1, MaxVersion: 6},
			{ApiKey: 3, MaxVersion: 12}, {ApiKey: 8, MinVersion: 2, MaxVersion: 10}, {ApiKey: 9, MinVersion: 1, MaxVersion: 10}, {ApiKey: 10, MaxVersion: 4},
			{ApiKey: 11, MaxVersion: 9}, {ApiKey: 12, MaxVersion: 4}, {ApiKey: 13, MaxVersion: 5}, {ApiKey: 14, MaxVersion: 5}, {ApiKey: 15, MaxVersion: 6},
			{ApiKey: 16, MaxVersion: 5}, {ApiKey: 18, MaxVersion: 3}, {ApiKey: 42, MaxVersion: 2}, {ApiKey: 47}}
		return r
	}
	return nil
}

func (b *tinyBroker) serve(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			return
		}
		h, body, err := protocol.ParseHeader(frame)
		if err != nil {
			return
		}
		req := kmsg.RequestForKey(h.Key)
		req.SetVersion(h.Version)
		if err := req.ReadFrom(body); err != nil {
			return
		}
		resp := b.answer(ctx, req)
		if resp == nil {
			return
		}
		resp.SetVersion(h.Version)
		if _, err := conn.Write(protocol.AppendResponse(nil, h, resp)); err != nil {
			return
		}
	}
}

// TestRealClient lets franz-go's consumers form a group, share partitions, come, go, come back, and commit.
func TestRealClient(t *testing.T) {
	log := newMemLog()
	c := one(t, log, Options{Groups: group.Config{InitialRebalanceDelay: 50 * time.Millisecond, MinSessionTimeout: 100 * time.Millisecond}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b := &tinyBroker{c: c, ln: ln, port: int32(ln.Addr().(*net.TCPAddr).Port)}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go b.serve(conn)
		}
	}()

	var mu sync.Mutex
	owned := map[string][]int32{}
	consumer := func(name string, opts ...kgo.Opt) *kgo.Client {
		move := func(add bool) func(context.Context, *kgo.Client, map[string][]int32) {
			return func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
				mu.Lock()
				defer mu.Unlock()
				for _, p := range ps["t"] {
					owned[name] = slices.DeleteFunc(owned[name], func(q int32) bool { return q == p })
					if add {
						owned[name] = append(owned[name], p)
					}
				}
			}
		}
		cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(ln.Addr().String()), kgo.ConsumeTopics("t"), kgo.ConsumerGroup("g"),
			kgo.DisableAutoCommit(), kgo.HeartbeatInterval(50 * time.Millisecond), kgo.SessionTimeout(30 * time.Second), // no slow machine takes a member away
			kgo.OnPartitionsAssigned(move(true)), kgo.OnPartitionsRevoked(move(false)), kgo.OnPartitionsLost(move(false))}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for !cl.PollFetches(bg).IsClientClosed() {
			}
		}()
		return cl
	}
	shared := func(names ...string) {
		t.Helper()
		until(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			var all []int32
			for _, n := range names {
				if len(owned[n]) != tinyPartitions/len(names) {
					return false
				}
				all = append(all, owned[n]...)
			}
			slices.Sort(all)
			return slices.Equal(all, []int32{0, 1, 2, 3, 4, 5})
		})
	}
	ctx, cancel := context.WithTimeout(bg, time.Minute)
	defer cancel()

	a := consumer("a")
	shared("a")
	bb := consumer("b")
	shared("a", "b")
	cc := consumer("c")
	shared("a", "b", "c")

	adm := kadm.NewClient(a)
	d, err := adm.DescribeGroups(ctx, "g")
	if err != nil || d["g"].Err != nil || d["g"].State != "Stable" || len(d["g"].Members) != 3 || d["g"].Protocol != "cooperative-sticky" {
		t.Fatal(err, d)
	}
	if got := d.AssignedPartitions()["t"]; len(got) != tinyPartitions {
		t.Fatal(got)
	}
	l, err := adm.ListGroups(ctx, "stable")
	if err != nil || len(l) != 1 || l["g"].ProtocolType != "consumer" {
		t.Fatal(err, l)
	}
	mu.Lock()
	p := owned["a"][0]
	mu.Unlock()
	var commitErr error
	a.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{"t": {p: {Epoch: 3, Offset: 77}}}, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		commitErr = err
		if err == nil {
			expect(t, "commit", resp.Topics[0].Partitions[0].ErrorCode, 0)
		}
	})
	if commitErr != nil {
		t.Fatal(commitErr)
	}
	o, err := adm.FetchOffsets(ctx, "g")
	if at, ok := o.Lookup("t", p); err != nil || !ok || at.At != 77 || at.LeaderEpoch != 3 {
		t.Fatal(err, o)
	}

	bb.Close() // leaves
	shared("a", "c")

	// The coordinator moves, to where nothing is known but the log.
	c.Resigned(0)
	time.Sleep(100 * time.Millisecond)
	c.Elected(0, 5)
	until(t, func() bool { return c.Ready(0) })
	dd := consumer("d")
	shared("a", "c", "d")
	cc.Close()
	dd.Close()
	shared("a")
	other, err := kgo.NewClient(kgo.SeedBrokers(ln.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	adm = kadm.NewClient(other)
	if r, err := adm.DeleteGroups(ctx, "g"); err != nil || r["g"].Err == nil {
		t.Fatal("a group with members was deleted", err)
	}
	a.Close()

	// Static members come back to what they had.
	s1 := consumer("s1", kgo.InstanceID("one"))
	s2 := consumer("s2", kgo.InstanceID("two"))
	shared("s1", "s2")
	mu.Lock()
	had := slices.Sorted(slices.Values(owned["s2"]))
	mu.Unlock()
	s2.Close()
	s3 := consumer("s3", kgo.InstanceID("two"))
	until(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(slices.Sorted(slices.Values(owned["s3"])), had)
	})
	s1.Close()
	s3.Close()
	if r, err := adm.LeaveGroup(ctx, kadm.LeaveGroup("g").InstanceIDs("one", "two").Reason("test")); err != nil || !r.Ok() {
		t.Fatal(err, r)
	}
	if r, err := adm.DeleteGroups(ctx, "g"); err != nil || r["g"].Err != nil {
		t.Fatal(err, r)
	}
}
