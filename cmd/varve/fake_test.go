package main

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fakeBroker is just enough of a broker for the command line to talk to: topics in memory, batches stored verbatim,
// one node, no groups. Topics whose name begins with "refuse" refuse every batch; with "stall", never answer one.
type fakeBroker struct {
	t  *testing.T
	ln net.Listener

	mu     sync.Mutex
	topics map[string]*fakeTopic
	conns  map[net.Conn]bool
	closed bool
	wg     sync.WaitGroup
}

type fakeTopic struct {
	parts   []*fakePartition
	configs map[string]string
}

type fakePartition struct {
	start   int64
	batches []fakeBatch
}

type fakeBatch struct {
	base, next, maxTime int64
	b                   []byte
}

func (p *fakePartition) end() int64 {
	if n := len(p.batches); n > 0 {
		return p.batches[n-1].next
	}
	return 0
}

func startFake(t *testing.T) *fakeBroker {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeBroker{t: t, ln: ln, topics: map[string]*fakeTopic{}, conns: map[net.Conn]bool{}}
	f.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = true
			if f.closed {
				c.Close()
			}
			f.mu.Unlock()
			f.wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.mu.Lock()
		f.closed = true
		for c := range f.conns {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *fakeBroker) addr() string { return f.ln.Addr().String() }

func (f *fakeBroker) create(name string, partitions int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.createLocked(name, partitions)
}

// look runs fn while nothing changes.
func (f *fakeBroker) look(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func (f *fakeBroker) createLocked(name string, partitions int) *fakeTopic {
	t := &fakeTopic{configs: map[string]string{}}
	for range partitions {
		t.parts = append(t.parts, &fakePartition{})
	}
	f.topics[name] = t
	return t
}

var fakeVersions = map[int16][2]int16{
	0: {3, 9}, 1: {4, 11}, 2: {1, 6}, 3: {1, 9}, 18: {0, 3}, 19: {2, 6}, 20: {1, 5}, 22: {0, 4}, 32: {1, 4}, 37: {0, 3}, 44: {0, 1},
	16: {0, 4},
}

func (f *fakeBroker) serve(c net.Conn) {
	defer c.Close()
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, frame); err != nil {
			return
		}
		key, version := int16(binary.BigEndian.Uint16(frame)), int16(binary.BigEndian.Uint16(frame[2:]))
		corr := frame[4:8]
		body := frame[8:]
		if n := int16(binary.BigEndian.Uint16(body)); n >= 0 {
			body = body[n:]
		}
		body = body[2:]
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		if req.IsFlexible() {
			body = body[1:] // no tags
		}
		if err := req.ReadFrom(body); err != nil {
			f.t.Errorf("fake: key %d v%d: %v", key, version, err)
			return
		}
		resp := f.answer(req)
		if resp == nil {
			continue
		}
		resp.SetVersion(version)
		out := append(make([]byte, 4), corr...)
		if resp.IsFlexible() && key != 18 {
			out = append(out, 0)
		}
		out = resp.AppendTo(out)
		binary.BigEndian.PutUint32(out, uint32(len(out)-4))
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

func (f *fakeBroker) answer(r kmsg.Request) kmsg.Response {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch req := r.(type) {
	case *kmsg.ApiVersionsRequest:
		resp := req.ResponseKind().(*kmsg.ApiVersionsResponse)
		for k, v := range fakeVersions {
			resp.ApiKeys = append(resp.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: k, MinVersion: v[0], MaxVersion: v[1]})
		}
		return resp
	case *kmsg.MetadataRequest:
		return f.metadata(req)
	case *kmsg.ProduceRequest:
		return f.produce(req)
	case *kmsg.FetchRequest:
		return f.fetch(req)
	case *kmsg.ListOffsetsRequest:
		return f.listOffsets(req)
	case *kmsg.InitProducerIDRequest:
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ProducerID = 7
		return resp
	case *kmsg.CreateTopicsRequest:
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, t := range req.Topics {
			rt := kmsg.NewCreateTopicsResponseTopic()
			rt.Topic = t.Topic
			switch {
			case f.topics[t.Topic] != nil:
				rt.ErrorCode = kerr.TopicAlreadyExists.Code
			case t.ReplicationFactor > 1:
				rt.ErrorCode = kerr.InvalidReplicationFactor.Code
				rt.ErrorMessage = kmsg.StringPtr("replication factor 3 is larger than 1,\x1b[2J the number of brokers")
			default:
				n := max(1, int(t.NumPartitions))
				rt.NumPartitions, rt.ReplicationFactor = int32(n), 1
				if !req.ValidateOnly {
					ft := f.createLocked(t.Topic, n)
					for _, c := range t.Configs {
						ft.configs[c.Name] = *c.Value
					}
				}
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp
	case *kmsg.DeleteTopicsRequest:
		resp := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
		for _, n := range req.TopicNames {
			rt := kmsg.NewDeleteTopicsResponseTopic()
			rt.Topic = kmsg.StringPtr(n)
			if f.topics[n] == nil {
				rt.ErrorCode = kerr.UnknownTopicOrPartition.Code
			}
			delete(f.topics, n)
			resp.Topics = append(resp.Topics, rt)
		}
		return resp
	case *kmsg.CreatePartitionsRequest:
		resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
		for _, t := range req.Topics {
			rt := kmsg.NewCreatePartitionsResponseTopic()
			rt.Topic = t.Topic
			ft := f.topics[t.Topic]
			switch {
			case ft == nil:
				rt.ErrorCode = kerr.UnknownTopicOrPartition.Code
			case int(t.Count) <= len(ft.parts):
				rt.ErrorCode = kerr.InvalidPartitions.Code
				rt.ErrorMessage = kmsg.StringPtr("the topic has as many already")
			case !req.ValidateOnly:
				for len(ft.parts) < int(t.Count) {
					ft.parts = append(ft.parts, &fakePartition{})
				}
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp
	case *kmsg.DescribeConfigsRequest:
		resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
		for _, r := range req.Resources {
			rr := kmsg.NewDescribeConfigsResponseResource()
			rr.ResourceType, rr.ResourceName = r.ResourceType, r.ResourceName
			ft := f.topics[r.ResourceName]
			if ft == nil {
				rr.ErrorCode = kerr.UnknownTopicOrPartition.Code
			} else {
				for k, v := range ft.configs {
					rr.Configs = append(rr.Configs, kmsg.DescribeConfigsResponseResourceConfig{Name: k, Value: &v, Source: kmsg.ConfigSourceDynamicTopicConfig})
				}
				rr.Configs = append(rr.Configs, kmsg.DescribeConfigsResponseResourceConfig{Name: "segment.ms", Value: kmsg.StringPtr("604800000"), Source: kmsg.ConfigSourceDefaultConfig})
			}
			resp.Resources = append(resp.Resources, rr)
		}
		return resp
	case *kmsg.IncrementalAlterConfigsRequest:
		resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
		for _, r := range req.Resources {
			rr := kmsg.NewIncrementalAlterConfigsResponseResource()
			rr.ResourceType, rr.ResourceName = r.ResourceType, r.ResourceName
			ft := f.topics[r.ResourceName]
			for _, c := range r.Configs {
				if c.Name == "retention.mss" {
					rr.ErrorCode, rr.ErrorMessage = kerr.InvalidConfig.Code, kmsg.StringPtr("unknown setting retention.mss; retention.ms?")
				}
			}
			if rr.ErrorCode == 0 && !req.ValidateOnly {
				for _, c := range r.Configs {
					if c.Value == nil {
						delete(ft.configs, c.Name)
					} else {
						ft.configs[c.Name] = *c.Value
					}
				}
			}
			resp.Resources = append(resp.Resources, rr)
		}
		return resp
	case *kmsg.ListGroupsRequest:
		resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
		resp.Groups = append(resp.Groups, kmsg.ListGroupsResponseGroup{Group: "readers\x1b[31m", ProtocolType: "consumer", GroupState: "Empty"})
		return resp
	}
	f.t.Errorf("fake: unexpected request %T", r)
	return nil
}

func (f *fakeBroker) metadata(req *kmsg.MetadataRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.MetadataResponse)
	a := f.ln.Addr().(*net.TCPAddr)
	b := kmsg.NewMetadataResponseBroker()
	b.NodeID, b.Host, b.Port = 1, "127.0.0.1", int32(a.Port)
	resp.Brokers = append(resp.Brokers, b)
	resp.ControllerID = 1
	names := make([]string, 0)
	if req.Topics == nil {
		for n := range f.topics {
			names = append(names, n)
		}
	}
	for _, t := range req.Topics {
		names = append(names, *t.Topic)
		if f.topics[*t.Topic] == nil && req.AllowAutoTopicCreation && *t.Topic != "never" {
			f.createLocked(*t.Topic, 1)
		}
	}
	for _, n := range names {
		rt := kmsg.NewMetadataResponseTopic()
		rt.Topic = kmsg.StringPtr(n)
		rt.IsInternal = n == "__internal"
		ft := f.topics[n]
		if ft == nil {
			rt.ErrorCode = kerr.UnknownTopicOrPartition.Code
		} else {
			for i := range ft.parts {
				p := kmsg.NewMetadataResponseTopicPartition()
				p.Partition, p.Leader, p.LeaderEpoch = int32(i), 1, 3
				p.Replicas, p.ISR = []int32{1}, []int32{1}
				rt.Partitions = append(rt.Partitions, p)
			}
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

func (f *fakeBroker) produce(req *kmsg.ProduceRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition = p.Partition
			switch {
			case len(t.Topic) >= 5 && t.Topic[:5] == "stall":
				return nil
			case len(t.Topic) >= 6 && t.Topic[:6] == "refuse":
				rp.ErrorCode = kerr.InvalidRecord.Code
			default:
				fp := f.topics[t.Topic].parts[p.Partition]
				b := append([]byte(nil), p.Records...)
				base := fp.end()
				binary.BigEndian.PutUint64(b, uint64(base))
				rp.BaseOffset = base
				fp.batches = append(fp.batches, fakeBatch{base, base + 1 + int64(int32(binary.BigEndian.Uint32(b[23:]))), int64(binary.BigEndian.Uint64(b[35:])), b})
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	if req.Acks == 0 {
		return nil
	}
	return resp
}

func (f *fakeBroker) fetch(req *kmsg.FetchRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	found := false
	for _, t := range req.Topics {
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewFetchResponseTopicPartition()
			rp.Partition = p.Partition
			fp := f.topics[t.Topic].parts[p.Partition]
			rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = fp.end(), fp.end(), fp.start
			if p.FetchOffset < fp.start || p.FetchOffset > fp.end() {
				rp.ErrorCode = kerr.OffsetOutOfRange.Code
			}
			for _, b := range fp.batches {
				if b.next > p.FetchOffset && len(rp.RecordBatches) < int(p.PartitionMaxBytes) {
					rp.RecordBatches = append(rp.RecordBatches, b.b...)
					found = found || len(b.b) > 0
				}
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	if !found {
		f.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // a long poll, in small
		f.mu.Lock()
	}
	return resp
}

func (f *fakeBroker) listOffsets(req *kmsg.ListOffsetsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewListOffsetsResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Partition = p.Partition
			fp := f.topics[t.Topic].parts[p.Partition]
			switch {
			case p.Timestamp == -1:
				rp.Offset = fp.end()
			case p.Timestamp == -2:
				rp.Offset = fp.start
			default:
				rp.Offset = -1
				for _, b := range fp.batches {
					if b.maxTime >= p.Timestamp {
						rp.Offset = b.base
						break
					}
				}
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}
