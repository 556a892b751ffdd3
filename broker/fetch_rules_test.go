package broker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/slab"
	"github.com/varve/varve/wal/vfs"
)

func fetchPart(index int32, offset int64) kmsg.FetchRequestTopicPartition {
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = index, offset, 1<<20
	p.CurrentLeaderEpoch, p.LastFetchedEpoch, p.LogStartOffset = -1, -1, -1
	return p
}

// fetchReq is a fetch without a session.
func fetchReq(version int16, topic string, parts ...kmsg.FetchRequestTopicPartition) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(version)
	req.ReplicaID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = -1, 60_000, 1, 50<<20
	req.SessionID, req.SessionEpoch = 0, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.Partitions = topic, parts
	if len(parts) > 0 {
		req.Topics = append(req.Topics, t)
	}
	return req
}

func (c *client) fetch(req *kmsg.FetchRequest) *kmsg.FetchResponse {
	c.t.Helper()
	return c.do(req).(*kmsg.FetchResponse)
}

// only is the one partition of an answer.
func only(t testing.TB, resp *kmsg.FetchResponse) kmsg.FetchResponseTopicPartition {
	t.Helper()
	if resp.ErrorCode != 0 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		t.Fatalf("answer is not of one partition: %s, %+v", protocol.Name(resp.ErrorCode), resp.Topics)
	}
	return resp.Topics[0].Partitions[0]
}

// must produces n records and returns the offset of the first.
func (c *client) must(topic string, partition int32, n int) int64 {
	c.t.Helper()
	var p kmsg.ProduceResponseTopicPartition
	servertest.Eventually(c.t, func() error {
		p = produceTo(c, 9, -1, topic, partition, plain(n).bytes())
		switch p.ErrorCode {
		case 0:
		case protocol.CodeNotLeaderOrFollower: // just started
			return fmt.Errorf("produce to %s-%d: %s", topic, partition, describe(p))
		default:
			c.t.Fatalf("produce to %s-%d: %s", topic, partition, describe(p))
		}
		return nil
	})
	return p.BaseOffset
}

func (c *client) topicID(topic string) [16]byte {
	c.t.Helper()
	return c.do(&kmsg.MetadataRequest{Version: 12, Topics: []kmsg.MetadataRequestTopic{{Topic: &topic}}}).(*kmsg.MetadataResponse).Topics[0].TopicID
}

func (c *client) leaderEpoch(topic string) int32 {
	c.t.Helper()
	return c.do(&kmsg.MetadataRequest{Version: 12, Topics: []kmsg.MetadataRequestTopic{{Topic: &topic}}}).(*kmsg.MetadataResponse).Topics[0].Partitions[0].LeaderEpoch
}

func (c *client) deleteTopic(topic string) {
	c.t.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{topic}
	if r := c.do(at(5, req)).(*kmsg.DeleteTopicsResponse); r.Topics[0].ErrorCode != 0 {
		c.t.Fatalf("delete %s: %s", topic, protocol.Name(r.Topics[0].ErrorCode))
	}
}

// TestFetchLimits: sizes, waits and offsets at and beyond their bounds (B17).
func TestFetchLimits(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("f", 2)
	for range 10 {
		y.must("f", 0, 10)
	}
	size := len(plain(10).bytes())
	for _, n := range []int32{0, 1, -1, math.MinInt32, math.MaxInt32} {
		for _, version := range []int16{4, 6, 7, 11, 12} {
			req := fetchReq(version, "f", fetchPart(0, 0))
			req.MaxBytes = n
			if p := only(t, y.fetch(req)); p.ErrorCode != 0 || len(p.RecordBatches) < size {
				t.Errorf("max bytes %d, v%d: %s, %d bytes", n, version, protocol.Name(p.ErrorCode), len(p.RecordBatches))
			}
			req = fetchReq(version, "f", fetchPart(0, 0))
			req.Topics[0].Partitions[0].PartitionMaxBytes = n
			if p := only(t, y.fetch(req)); p.ErrorCode != 0 || len(p.RecordBatches) < size {
				t.Errorf("partition max bytes %d, v%d: %s, %d bytes", n, version, protocol.Name(p.ErrorCode), len(p.RecordBatches))
			}
		}
	}
	for _, offset := range []int64{-1, -2, math.MinInt64, 101, math.MaxInt64} {
		if p := only(t, y.fetch(fetchReq(12, "f", fetchPart(0, offset)))); p.ErrorCode != protocol.CodeOffsetOutOfRange {
			t.Errorf("offset %d: %s", offset, protocol.Name(p.ErrorCode))
		}
	}
	for _, index := range []int32{-1, 2, math.MaxInt32} {
		if p := only(t, y.fetch(fetchReq(12, "f", fetchPart(index, 0)))); p.ErrorCode != protocol.CodeUnknownTopicOrPartition {
			t.Errorf("partition %d: %s", index, protocol.Name(p.ErrorCode))
		}
	}
	// An offset inside of a batch gets that batch.
	if h, err := batch.ParseHeader(y.stored("f", 0, 37)); err != nil || h.BaseOffset != 30 {
		t.Errorf("offset 37 is served from %d, %v", h.BaseOffset, err)
	}
	// At the end with nothing to wait for.
	for _, wait := range []int32{0, -1, math.MinInt32} {
		req := fetchReq(12, "f", fetchPart(0, 100))
		req.MaxWaitMillis = wait
		if p := only(t, y.fetch(req)); p.ErrorCode != 0 || len(p.RecordBatches) != 0 || p.HighWatermark != 100 {
			t.Errorf("max wait %d: %+v", wait, p)
		}
	}
	for _, least := range []int32{0, -1, math.MinInt32} {
		req := fetchReq(12, "f", fetchPart(0, 100))
		req.MinBytes, req.MaxWaitMillis = least, math.MaxInt32
		only(t, y.fetch(req))
	}
	req := fetchReq(12, "f", fetchPart(0, 0)) // more asked for than may be given
	req.MinBytes, req.MaxBytes, req.MaxWaitMillis = math.MaxInt32, 100, 1000
	only(t, y.fetch(req))
	for _, version := range []int16{4, 6, 7, 12} {
		for _, level := range []int8{0, 1, 2, 7, -1} {
			req := fetchReq(version, "f", fetchPart(0, 0))
			req.IsolationLevel = level
			resp := y.fetch(req)
			code, records := resp.ErrorCode, 0
			for _, topic := range resp.Topics {
				for _, p := range topic.Partitions {
					code, records = max(code, p.ErrorCode), records+len(p.RecordBatches)
				}
			}
			want := int16(protocol.CodeInvalidRequest)
			if level == 0 || level == 1 {
				want = 0
			}
			if code != want || records > 0 != (want == 0) || resp.SessionID != 0 && want != 0 {
				t.Errorf("v%d, isolation level %d: %s, %d bytes", version, level, protocol.Name(code), records)
			}
		}
	}
	// Who says that it is a replica is none (CVE-2018-1288), and gets nothing.
	for _, version := range []int16{4, 11, 14} {
		req := fetchReq(version, "f", fetchPart(0, 50))
		if version >= 13 {
			req.Topics[0].TopicID = y.topicID("f")
		}
		req.ReplicaID = 1
		if p := only(t, y.fetch(req)); p.ErrorCode != protocol.CodeClusterAuthorizationFailed || len(p.RecordBatches) > 0 {
			t.Errorf("replica id 1, v%d: %s", version, protocol.Name(p.ErrorCode))
		}
	}
	req = fetchReq(15, "", fetchPart(0, 50))
	req.Topics[0].TopicID = y.topicID("f")
	req.ReplicaState.ID, req.ReplicaState.Epoch = 0, 1
	if p := only(t, y.fetch(req)); p.ErrorCode != protocol.CodeClusterAuthorizationFailed {
		t.Errorf("replica state: %s", protocol.Name(p.ErrorCode))
	}
	y.unharmed("limits of fetches")
}

// TestFetchPartitions: as many partitions as fit into a request, and more than
// are served (B17).
func TestFetchPartitions(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("f", 1)
	y.must("f", 0, 1)
	var parts []kmsg.FetchRequestTopicPartition
	for i := range int32(200_000) {
		parts = append(parts, fetchPart(i, 0))
	}
	_, live := allocated(func() {
		resp := y.fetch(fetchReq(12, "f", parts...))
		if got := resp.Topics[0].Partitions; len(got) != 200_000 || len(got[0].RecordBatches) == 0 || got[1].ErrorCode != protocol.CodeUnknownTopicOrPartition {
			t.Errorf("200,000 partitions: %d answers", len(got))
		}
		if resp := y.fetch(fetchReq(12, "f", append(parts, fetchPart(200_000, 0))...)); resp.ErrorCode != protocol.CodeInvalidRequest {
			t.Errorf("200,001 partitions: %s", protocol.Name(resp.ErrorCode))
		}
	})
	if live > 256<<20 {
		t.Errorf("%d MiB are left of requests that are over", live>>20)
	}
	// The same partition very often.
	for i := range parts {
		parts[i].Partition = 0
	}
	if resp := y.fetch(fetchReq(12, "f", parts...)); len(resp.Topics) != 1 || len(resp.Topics[0].Partitions[0].RecordBatches) == 0 {
		t.Errorf("one partition 200,000 times: %d topics", len(resp.Topics))
	}
	// A session grows by small requests: it must not without end.
	req := fetchReq(12, "f", parts[:1]...)
	req.SessionEpoch = 0
	id := y.fetch(req).SessionID
	if id == 0 {
		t.Fatal("no session")
	}
	ended := false
	_, live = allocated(func() {
		for epoch := int32(1); epoch < 10 && !ended; epoch++ {
			for i := range parts {
				parts[i].Partition = epoch*200_000 + int32(i)
			}
			req = fetchReq(12, "f", parts...)
			req.SessionID, req.SessionEpoch = id, epoch
			switch code := y.fetch(req).ErrorCode; code {
			case 0:
			case protocol.CodeInvalidRequest, protocol.CodeFetchSessionIDNotFound:
				ended = true
			default:
				t.Fatalf("session of %d partitions: %s", epoch*200_000, protocol.Name(code))
			}
		}
	})
	if !ended {
		t.Errorf("a session of 2,000,000 partitions is kept; the heap grew by %d MiB", live>>20)
	}
	// A name that is none is not an id that is none: old clients do not know the code of that.
	for version := int16(4); version <= 13; version++ {
		want := protocol.CodeUnknownTopicOrPartition
		if version >= 13 {
			want = protocol.CodeUnknownTopicID
		}
		req := fetchReq(version, "", fetchPart(0, 0))
		if got := only(t, y.fetch(req)); got.ErrorCode != want {
			t.Errorf("v%d, no topic: %s", version, protocol.Name(got.ErrorCode))
		}
	}
	y.unharmed("many partitions")
}

// TestFetchWaits: a fetch that has to wait is answered when there is
// something, or when there is nothing to wait for any more.
func TestFetchWaits(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("w", 3)
	b.CreateTopic("gone", 1)
	park := func(req *kmsg.FetchRequest) (*client, int32) {
		c := dial(t, b)
		f, id := c.frame(req)
		c.send(f)
		y.do(at(12, kmsg.NewPtrMetadataRequest())) // gives it time to be seen; right either way
		return c, id
	}
	await := func(what string, c *client, req *kmsg.FetchRequest, id int32) *kmsg.FetchResponse {
		t.Helper()
		got, err := c.answer()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		resp, err := decode(req, got, id)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return resp.(*kmsg.FetchResponse)
	}
	for _, wait := range []int32{600_000, math.MaxInt32} {
		for _, session := range []int32{-1, 0} {
			for _, acks := range []int16{-1, 1, 0} {
				end := y.latest("w", 0)
				req := fetchReq(12, "w", fetchPart(0, end), fetchPart(1, 0))
				req.MaxWaitMillis, req.SessionEpoch = wait, session
				c, id := park(req)
				if acks == 0 {
					f, _ := y.frame(produceReq(9, 0, "w", 0, plain(1).bytes()))
					y.send(f)
				} else {
					produceTo(y.client, 9, acks, "w", 0, plain(1).bytes())
				}
				resp := await("one record", c, req, id)
				n := 0
				for _, p := range resp.Topics[0].Partitions {
					n += len(p.RecordBatches)
				}
				if n == 0 {
					t.Errorf("woken without records: %+v", resp.Topics)
				}
			}
		}
	}
	// As much as was asked for, and not before.
	req := fetchReq(12, "w", fetchPart(1, 0), fetchPart(2, 0))
	req.MinBytes = 5 * int32(len(plain(1).bytes()))
	c, id := park(req)
	for range 3 {
		y.must("w", 1, 1)
		y.must("w", 2, 1)
	}
	n := 0
	for _, p := range await("min bytes", c, req, id).Topics[0].Partitions {
		n += len(p.RecordBatches)
	}
	if n < int(req.MinBytes) {
		t.Errorf("%d bytes, where at least %d were asked for", n, req.MinBytes)
	}
	// Requests behind it wait for it: answers leave in order.
	req = fetchReq(12, "w", fetchPart(0, y.latest("w", 0)))
	c, id = park(req)
	md := at(12, kmsg.NewPtrMetadataRequest())
	f, mid := c.frame(md)
	c.send(f)
	y.must("w", 0, 1)
	await("the fetch before", c, req, id)
	if got, err := c.answer(); err != nil {
		t.Fatal(err)
	} else if _, err := decode(md, got, mid); err != nil {
		t.Fatal(err)
	}
	// The topic is deleted.
	req = fetchReq(12, "gone", fetchPart(0, 0))
	c, id = park(req)
	y.deleteTopic("gone")
	if p := only(t, await("a deleted topic", c, req, id)); p.ErrorCode == 0 {
		t.Errorf("the topic is deleted, the fetch says %+v", p)
	}
	// Connections that end while they wait leave nothing behind.
	_, live := allocated(func() {
		for range 300 {
			req := fetchReq(12, "w", fetchPart(0, y.latest("w", 0)), fetchPart(1, 6))
			req.MaxWaitMillis = math.MaxInt32
			c, _ := park(req)
			c.nc.Close()
		}
		y.unharmed("fetches that were given up")
		servertest.Eventually(t, func() error { // long before the time that they would have waited
			if n := y.metric("varve_connections"); n > 50 {
				return fmt.Errorf("%v connections are open", n)
			}
			return nil
		})
	})
	if live > 32<<20 {
		t.Errorf("%d MiB are left of fetches that were given up", live>>20)
	}
	y.must("w", 0, 1)
	// The broker ends.
	req = fetchReq(12, "w", fetchPart(0, y.latest("w", 0)))
	c, id = park(req)
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := c.answer(); err == nil {
		if _, err := decode(req, got, id); err != nil {
			t.Error(err)
		}
	}
	c.ends("a broker that stops")
}

// TestFetchSessions: incremental fetches as KIP-227 has them (B17).
func TestFetchSessions(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("s", 3)
	y.must("s", 0, 1)
	const topic = "s"
	var id, epoch int32
	fetch := func(parts ...kmsg.FetchRequestTopicPartition) *kmsg.FetchRequest {
		req := fetchReq(12, topic, parts...)
		req.MaxWaitMillis = 0
		req.SessionID, req.SessionEpoch = id, epoch
		return req
	}
	// step sends the session's next request and says what it answers: for
	// each partition p, p:records or p!error.
	step := func(req *kmsg.FetchRequest) string {
		t.Helper()
		resp := y.fetch(req)
		if resp.ErrorCode != 0 {
			return protocol.Name(resp.ErrorCode)
		}
		if id != 0 && resp.SessionID != id {
			t.Errorf("session %d answers as session %d", id, resp.SessionID)
		}
		epoch++
		var out []string
		for _, rt := range resp.Topics {
			for _, p := range rt.Partitions {
				n := int32(0)
				batch.Walk(p.RecordBatches, func(h batch.Header, _ []byte) error { n += h.RecordCount; return nil })
				s := fmt.Sprintf("%d:%d", p.Partition, n)
				if p.ErrorCode != 0 {
					s = fmt.Sprintf("%d!%s", p.Partition, protocol.Name(p.ErrorCode))
				}
				out = append(out, s)
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	wants := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, expected %q", what, got, want)
		}
	}
	open := func() {
		t.Helper()
		id, epoch = 0, 0
		req := fetch(fetchPart(0, 1), fetchPart(1, 0))
		resp := y.fetch(req)
		if resp.ErrorCode != 0 || resp.SessionID == 0 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 2 {
			t.Fatalf("a new session: %+v", resp)
		}
		id, epoch = resp.SessionID, 1
	}
	open()
	wants("nothing happened", step(fetch()), "")
	wants("nothing happened, again", step(fetch()), "")
	y.must(topic, 1, 2)
	wants("one partition grew", step(fetch()), "1:2")
	wants("the client did not move on", step(fetch()), "1:2")
	wants("now it did", step(fetch(fetchPart(1, 2))), "")
	wants("a partition more", step(fetch(fetchPart(2, 0))), "2:0")
	y.must(topic, 2, 3)
	y.must(topic, 0, 1)
	wants("two grew", step(fetch()), "0:1 2:3")
	wants("one moved on", step(fetch(fetchPart(0, 2))), "2:3")
	req := fetch()
	req.ForgottenTopics = []kmsg.FetchRequestForgottenTopic{{Topic: topic, Partitions: []int32{2, 77}}}
	wants("one is forgotten", step(req), "")
	y.must(topic, 2, 1)
	wants("and stays so", step(fetch()), "")
	wants("it comes back", step(fetch(fetchPart(2, 3))), "2:1")
	wants("an offset out of range", step(fetch(fetchPart(2, 99))), "2!OFFSET_OUT_OF_RANGE")
	wants("and again", step(fetch()), "2!OFFSET_OUT_OF_RANGE")
	wants("and mended", step(fetch(fetchPart(2, 4))), "2:0")
	wants("an unknown partition", step(fetch(fetchPart(9, 0))), "9!UNKNOWN_TOPIC_OR_PARTITION")
	req = fetch()
	req.ForgottenTopics = []kmsg.FetchRequestForgottenTopic{{Topic: topic, Partitions: []int32{9}}}
	wants("and forgotten", step(req), "")

	// The log start moves: the client is told, with no records.
	dr := kmsg.NewPtrDeleteRecordsRequest()
	dr.TimeoutMillis = 30_000
	dr.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 1, Offset: 1}}}}
	if p := y.do(at(2, dr)).(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0]; p.ErrorCode != 0 || p.LowWatermark != 1 {
		t.Fatalf("DeleteRecords: %+v", p)
	}
	wants("the log start moved", step(fetch()), "1:0")
	wants("once", step(fetch()), "")

	// Epochs and ids that are not.
	keepID, keepEpoch := id, epoch
	for _, e := range []int32{keepEpoch - 1, keepEpoch + 1, math.MaxInt32, -2, math.MinInt32} {
		epoch = e
		wants(fmt.Sprintf("epoch %d, where %d is due", e, keepEpoch), step(fetch()), "INVALID_FETCH_SESSION_EPOCH")
	}
	epoch = 3
	for _, forged := range []int32{0, -1, keepID ^ 1, math.MaxInt32, math.MinInt32} {
		id = forged
		wants(fmt.Sprintf("session id %d", forged), step(fetch()), "FETCH_SESSION_ID_NOT_FOUND")
	}
	id, epoch = keepID, keepEpoch
	wants("none of which harmed it", step(fetch()), "")

	// Closed by its client, in a request that still fetches.
	closing := fetch(fetchPart(0, 0))
	closing.SessionEpoch = -1
	if resp := y.fetch(closing); resp.SessionID != 0 || len(resp.Topics) != 1 {
		t.Errorf("the last request of a session: %+v", resp)
	}
	wants("a closed session", step(fetch()), "FETCH_SESSION_ID_NOT_FOUND")

	// A new one in the place of an old one.
	open()
	old := id
	req = fetch(fetchPart(0, 0))
	req.SessionEpoch = 0
	if resp := y.fetch(req); resp.SessionID == 0 || resp.SessionID == old {
		t.Errorf("session %d replaced by %d", old, resp.SessionID)
	}
	wants("the replaced one", step(fetch()), "FETCH_SESSION_ID_NOT_FOUND")

	// Two requests of one session at the same time: the second is refused, as
	// it cannot know its epoch; nothing hangs.
	open()
	parked := fetch()
	parked.MaxWaitMillis = 60_000
	c := dial(t, b)
	f, fid := c.frame(parked)
	c.send(f)
	stolen := dial(t, b)
	for range 20 {
		second := fetch()
		second.SessionEpoch = epoch + 5
		if code := stolen.fetch(second).ErrorCode; code != protocol.CodeInvalidFetchSessionEpoch {
			t.Errorf("a second request: %s", protocol.Name(code))
		}
	}
	// And a stranger closes it meanwhile.
	closing = fetch()
	closing.SessionEpoch = -1
	stolen.fetch(closing)
	y.must(topic, 0, 1)
	c.nc.Close()
	_ = fid
	y.unharmed("sessions")
}

// TestFetchSessionsAreFair: of a session's partitions that all have more than
// fits, each has its turn, those that grow all the time included.
func TestFetchSessionsAreFair(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	const parts, rounds = 4, 12
	b.CreateTopic("f", parts)
	for p := range int32(parts) {
		for range rounds {
			y.must("f", p, 10)
		}
	}
	var first []kmsg.FetchRequestTopicPartition
	for p := range int32(parts) {
		first = append(first, fetchPart(p, 0))
	}
	req := fetchReq(12, "f", first...)
	req.MaxBytes, req.SessionEpoch = 10, 0 // one batch fits
	resp := y.fetch(req)
	id := resp.SessionID
	if id == 0 {
		t.Fatalf("no session: %s", protocol.Name(resp.ErrorCode))
	}
	var offsets [parts]int64
	served := 0
	for epoch := int32(1); epoch <= parts*rounds/2; epoch++ {
		var moved []kmsg.FetchRequestTopicPartition
		for _, tr := range resp.Topics {
			for _, p := range tr.Partitions {
				if len(p.RecordBatches) > 0 {
					served++
					offsets[p.Partition] += 10
					moved = append(moved, fetchPart(p.Partition, offsets[p.Partition]))
				}
			}
		}
		y.must("f", 0, 10)
		req := fetchReq(12, "f", moved...)
		req.MaxBytes, req.SessionID, req.SessionEpoch = 10, id, epoch
		if resp = y.fetch(req); resp.ErrorCode != 0 {
			t.Fatalf("epoch %d: %s", epoch, protocol.Name(resp.ErrorCode))
		}
	}
	if served != parts*rounds/2 {
		t.Errorf("%d of %d answers had a batch", served, parts*rounds/2)
	}
	for p, at := range offsets {
		if at != 10*rounds/2 {
			t.Errorf("partition %d has come to %d, expected %d: all to %v", p, at, 10*rounds/2, offsets)
		}
	}
}

// TestFetchSessionsContended: many connections use, forge, replace and close
// the same sessions at once. Only safety is asked for.
func TestFetchSessionsContended(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("s", 4)
	ids := make(chan int32, 1000)
	var wg sync.WaitGroup
	for g := range 8 {
		c := dial(t, b)
		wg.Add(1)
		go func() {
			defer wg.Done()
			id, epoch := int32(0), int32(0)
			for i := range 150 {
				req := fetchReq(12, "s", fetchPart(int32(i)%4, 0), fetchPart(int32(i+1)%4, 0), fetchPart(int32(1000+i+g), 0))
				req.MaxWaitMillis = int32(i % 3)
				req.SessionID, req.SessionEpoch = id, epoch
				f, _ := c.frame(req)
				if _, err := c.nc.Write(f); err != nil {
					t.Error(err)
					return
				}
				got, err := c.answer()
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := decode(req, got, c.next)
				if err != nil {
					t.Error(err)
					return
				}
				epoch++
				if s := resp.(*kmsg.FetchResponse).SessionID; s != 0 {
					select {
					case ids <- s:
					default:
					}
				}
				if i%3 == 0 {
					select {
					case id = <-ids:
						epoch = int32(i%4) - 1
					default:
						id, epoch = 0, 0
					}
				}
			}
		}()
	}
	wg.Wait()
	y.unharmed("contended sessions")
}

// TestFetchRecreated: a topic is deleted and made again under a session. By
// name the session goes on with the new one; by id the old one is gone.
func TestFetchRecreated(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("r", 1)
	y.must("r", 0, 5)
	id := y.topicID("r")
	byName := fetchReq(12, "r", fetchPart(0, 5))
	byID := fetchReq(13, "", fetchPart(0, 5))
	byID.Topics[0].TopicID = id
	for _, req := range []*kmsg.FetchRequest{byName, byID} {
		req.SessionEpoch, req.MaxWaitMillis = 0, 0
		resp := y.fetch(req)
		if only(t, resp).ErrorCode != 0 || resp.SessionID == 0 {
			t.Fatalf("%+v", resp)
		}
		req.SessionID, req.SessionEpoch, req.Topics = resp.SessionID, 1, nil
	}
	step := func(req *kmsg.FetchRequest) *kmsg.FetchResponse {
		resp := y.fetch(req)
		req.SessionEpoch++
		return resp
	}
	y.deleteTopic("r")
	if p := only(t, step(byName)); p.ErrorCode != protocol.CodeUnknownTopicOrPartition {
		t.Errorf("deleted, by name: %s", protocol.Name(p.ErrorCode))
	}
	if p := only(t, step(byID)); p.ErrorCode != protocol.CodeUnknownTopicID {
		t.Errorf("deleted, by id: %s", protocol.Name(p.ErrorCode))
	}
	b.CreateTopic("r", 1)
	if p := only(t, step(byName)); p.ErrorCode != protocol.CodeOffsetOutOfRange {
		t.Errorf("made again, by name at offset 5: %s", protocol.Name(p.ErrorCode))
	}
	if p := only(t, step(byID)); p.ErrorCode != protocol.CodeUnknownTopicID {
		t.Errorf("made again, by the old id: %s", protocol.Name(p.ErrorCode))
	}
	y.must("r", 0, 1)
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.Partitions = "r", []kmsg.FetchRequestTopicPartition{fetchPart(0, 0)}
	byName.Topics = []kmsg.FetchRequestTopic{rt}
	if p := only(t, step(byName)); p.ErrorCode != 0 || len(p.RecordBatches) == 0 {
		t.Errorf("made again, by name at offset 0: %+v", p)
	}
	// A session that watches the new one is woken by it.
	byName.Topics[0].Partitions[0].FetchOffset = 1
	byName.MaxWaitMillis = 600_000
	f, n := y.frame(byName)
	y.send(f)
	c := dial(t, b)
	c.must("r", 0, 1)
	got, err := y.answer()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := decode(byName, got, n)
	if err != nil {
		t.Fatal(err)
	}
	if p := only(t, resp.(*kmsg.FetchResponse)); len(p.RecordBatches) == 0 {
		t.Errorf("woken with nothing: %+v", p)
	}
	y.unharmed("a topic that was made again")
}

// TestEpochs: leader epochs of the past and of the future (B18, KIP-320).
func TestEpochs(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("e", 1)
	y.must("e", 0, 5)
	first := y.leaderEpoch("e")
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	y.must("e", 0, 2)
	now := y.leaderEpoch("e")
	if now <= first {
		t.Fatalf("leader epoch %d after %d", now, first)
	}
	const (
		fenced  = protocol.CodeFencedLeaderEpoch
		unknown = protocol.CodeUnknownLeaderEpoch
	)
	epochEnd := func(current, epoch int32) kmsg.OffsetForLeaderEpochResponseTopicPartition {
		p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		p.CurrentLeaderEpoch, p.LeaderEpoch = current, epoch
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		req.ReplicaID = -1
		req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: "e", Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{p}}}
		return y.do(at(4, req)).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0]
	}
	for epoch, code := range map[int32]int16{-1: 0, now: 0, first: fenced, now - 1: fenced, now + 1: unknown, math.MaxInt32: unknown} {
		p := fetchPart(0, 0)
		p.CurrentLeaderEpoch = epoch
		if got := only(t, y.fetch(fetchReq(12, "e", p))); got.ErrorCode != code || (len(got.RecordBatches) > 0) != (code == 0) {
			t.Errorf("Fetch with epoch %d (now %d): %s", epoch, now, protocol.Name(got.ErrorCode))
		}
		lo := kmsg.NewPtrListOffsetsRequest()
		lo.ReplicaID = -1
		lp := kmsg.NewListOffsetsRequestTopicPartition()
		lp.Timestamp, lp.CurrentLeaderEpoch = -1, epoch
		lo.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "e", Partitions: []kmsg.ListOffsetsRequestTopicPartition{lp}}}
		if got := y.do(at(7, lo)).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]; got.ErrorCode != code {
			t.Errorf("ListOffsets with epoch %d (now %d): %s", epoch, now, protocol.Name(got.ErrorCode))
		}
		if got := epochEnd(epoch, now); got.ErrorCode != code {
			t.Errorf("OffsetForLeaderEpoch with epoch %d (now %d): %s", epoch, now, protocol.Name(got.ErrorCode))
		}
	}
	for _, tc := range []struct {
		ask, epoch int32
		end        int64
	}{{first, first, 5}, {now, now, 7}, {now + 1, -1, -1}, {math.MaxInt32, -1, -1}, {-1, -1, -1}, {math.MinInt32, -1, -1}} {
		if p := epochEnd(-1, tc.ask); p.ErrorCode != 0 || p.LeaderEpoch != tc.epoch || p.EndOffset != tc.end {
			t.Errorf("end of epoch %d (now %d): %s, epoch %d, offset %d, expected %d, %d", tc.ask, now, protocol.Name(p.ErrorCode), p.LeaderEpoch, p.EndOffset, tc.epoch, tc.end)
		}
	}
	// What a client fetched last tells whether its log is ours.
	for _, tc := range []struct {
		offset  int64
		epoch   int32
		code    int16
		diverge int64
	}{{5, first, 0, -1}, {3, first, 0, -1}, {7, first, 0, 5}, {6, first, 0, 5}, {6, now, 0, -1}, {6, now + 1, protocol.CodeOffsetOutOfRange, -1},
		// Ahead of the log's end: records were lost, and this is where.
		{20, first, 0, 5}, {20, now, 0, 7}, {8, now, 0, 7}, {20, now + 1, protocol.CodeOffsetOutOfRange, -1}, {20, -1, protocol.CodeOffsetOutOfRange, -1}} {
		p := fetchPart(0, tc.offset)
		p.LastFetchedEpoch = tc.epoch
		req := fetchReq(12, "e", p)
		req.MaxWaitMillis = 0
		got := only(t, y.fetch(req))
		if got.ErrorCode != tc.code || got.DivergingEpoch.EndOffset != tc.diverge {
			t.Errorf("at %d after epoch %d (now %d): %s, diverges at %d", tc.offset, tc.epoch, now, protocol.Name(got.ErrorCode), got.DivergingEpoch.EndOffset)
		}
	}
	y.unharmed("epochs")
}

// TestListOffsets: each special timestamp at each version (B18).
func TestListOffsets(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("l", 2)
	base := time.Now().UnixMilli() - 10_000
	for i := range int64(4) {
		s := batch.NewBuilder()
		for j := range int64(3) {
			s.Add(base+i*100+j*10, nil, []byte("v"))
		}
		if p := produceTo(y.client, 9, -1, "l", 0, sent{s}.bytes()); p.ErrorCode != 0 {
			t.Fatal(describe(p))
		}
	}
	for _, level := range []int8{0, 1, 2, 7, -1} {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID, req.IsolationLevel = -1, level
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Timestamp = -1
		req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "l", Partitions: []kmsg.ListOffsetsRequestTopicPartition{rp}}}
		p := y.do(at(6, req)).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
		want, end := int16(protocol.CodeInvalidRequest), int64(-1)
		if level == 0 || level == 1 {
			want, end = 0, 12
		}
		if p.ErrorCode != want || p.Offset != end {
			t.Errorf("isolation level %d: %s, offset %d", level, protocol.Name(p.ErrorCode), p.Offset)
		}
	}
	since := map[int64]int16{-1: 1, -2: 1, -3: 7, -4: 8, -5: 9, -6: 11}
	b.Remote("l", false)
	for version := int16(1); version <= 11; version++ {
		for ts := int64(-10); ts < 0; ts++ {
			p := y.listOffsetAt(version, "l", 0, ts)
			want := map[int64]int64{-1: 12, -2: 0, -3: 11, -4: 0, -5: 11, -6: 12}[ts]
			from, known := since[ts]
			switch {
			case !known || version < from:
				if p.ErrorCode != protocol.CodeUnsupportedVersion {
					t.Errorf("v%d, timestamp %d: %s, offset %d", version, ts, protocol.Name(p.ErrorCode), p.Offset)
				}
			case ts == -4: // the local log may have been given back
				if p.ErrorCode != 0 || p.Offset < 0 || p.Offset > 12 {
					t.Errorf("v%d, timestamp %d: %s, offset %d", version, ts, protocol.Name(p.ErrorCode), p.Offset)
				}
			case p.ErrorCode != 0 || p.Offset != want || version >= 4 && p.LeaderEpoch < 0:
				t.Errorf("v%d, timestamp %d: %s, offset %d of epoch %d, expected %d", version, ts, protocol.Name(p.ErrorCode), p.Offset, p.LeaderEpoch, want)
			}
			if known && version >= from {
				if p := y.listOffsetAt(version, "l", 1, ts); p.ErrorCode != 0 || p.Offset > 0 {
					t.Errorf("v%d, timestamp %d of an empty partition: %s, offset %d", version, ts, protocol.Name(p.ErrorCode), p.Offset)
				}
			}
		}
		for _, tc := range []struct{ ts, offset, found int64 }{
			{0, 0, base}, {base, 0, base}, {base + 1, 1, base + 10}, {base + 20, 2, base + 20}, {base + 21, 3, base + 100},
			{base + 320, 11, base + 320}, {base + 321, -1, -1}, {math.MaxInt64, -1, -1},
		} {
			if p := y.listOffsetAt(version, "l", 0, tc.ts); p.ErrorCode != 0 || p.Offset != tc.offset || p.Timestamp != tc.found {
				t.Errorf("v%d, timestamp base+%d: %s, offset %d, base+%d", version, tc.ts-base, protocol.Name(p.ErrorCode), p.Offset, p.Timestamp-base)
			}
		}
		for _, p := range []kmsg.ListOffsetsResponseTopicPartition{y.listOffsetAt(version, "l", 9, -1), y.listOffsetAt(version, "l", -1, -1),
			y.listOffsetAt(version, "unknown", 0, -1), y.listOffsetAt(version, "", 0, -1)} {
			if p.ErrorCode != protocol.CodeUnknownTopicOrPartition {
				t.Errorf("v%d, unknown partition: %s", version, protocol.Name(p.ErrorCode))
			}
		}
	}
	// A partition that is asked for twice, in one topic's entry or in two.
	twice := kmsg.NewPtrListOffsetsRequest()
	for _, partitions := range [][]int32{{0, 1, 0}, {1, 1}, {0}} {
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = "l"
		for _, p := range partitions {
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = p, -1, -1
			rt.Partitions = append(rt.Partitions, rp)
		}
		twice.Topics = append(twice.Topics, rt)
	}
	twice.Topics[0].Partitions = append(twice.Topics[0].Partitions, kmsg.ListOffsetsRequestTopicPartition{Partition: 9, Timestamp: -1, CurrentLeaderEpoch: -1})
	answers := 0
	for _, rt := range y.do(at(11, twice)).(*kmsg.ListOffsetsResponse).Topics {
		for _, p := range rt.Partitions {
			answers++
			want := protocol.CodeInvalidRequest
			if p.Partition == 9 {
				want = protocol.CodeUnknownTopicOrPartition
			}
			if p.ErrorCode != want || p.Offset != -1 {
				t.Errorf("partition %d, asked for several times: %s, offset %d", p.Partition, protocol.Name(p.ErrorCode), p.Offset)
			}
		}
	}
	if answers != 7 {
		t.Errorf("%d answers for 7 questions", answers)
	}
	y.unharmed("lookups")
}

// TestUnsynced: while the disk holds back its fsync, nobody is told of what was
// written, neither its producer nor a consumer, whichever way it asks.
func TestUnsynced(t *testing.T) {
	disk := vfs.NewFaulty(vfs.NewMem())
	b := servertest.Start(t, servertest.Options{FS: disk})
	y := newBystander(t, b)
	b.CreateTopic("u", 1)
	y.must("u", 0, 3)
	time.Sleep(2 * time.Millisecond)
	since := time.Now().UnixMilli() // later than the first three, not later than what follows
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo) // before the broker's own, which waits for the log
	disk.Decide(func(op vfs.Op, name string) vfs.Fault {
		if op == vfs.OpSync && strings.HasSuffix(name, ".wal") {
			once.Do(func() { close(held) })
			<-release
		}
		return vfs.Fault{}
	})
	type parked struct {
		*client
		req kmsg.Request
		id  int32
	}
	var waiting []parked
	park := func(req kmsg.Request) {
		c := dial(t, b)
		f, id := c.frame(req)
		c.send(f)
		waiting = append(waiting, parked{c, req, id})
	}
	for _, acks := range []int16{-1, 1} {
		park(produceReq(9, acks, "u", 0, plain(1).bytes()))
	}
	tail := fetchReq(12, "u", fetchPart(0, 3))
	park(tail)
	<-held
	// The batches are assigned their offsets before or while the disk is held;
	// what is told must not depend on which of them have come so far.
	for range 20 {
		now := fetchReq(12, "u", fetchPart(0, 3))
		now.MaxWaitMillis = 0
		if p := only(t, y.fetch(now)); p.ErrorCode != 0 || len(p.RecordBatches) > 0 || p.HighWatermark != 3 || p.LastStableOffset != 3 {
			t.Fatalf("not synced, and fetched: %s, %d bytes, high watermark %d, last stable offset %d", protocol.Name(p.ErrorCode), len(p.RecordBatches), p.HighWatermark, p.LastStableOffset)
		}
		if end := y.latest("u", 0); end != 3 {
			t.Fatalf("not synced, and the latest offset is %d", end)
		}
		if p := y.listOffset("u", 0, since); p.Offset != -1 {
			t.Fatalf("not synced, and found by its time: %+v", p)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, w := range waiting {
		w.nc.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := w.r.Peek(1); err == nil {
			t.Errorf("%s is answered before the fsync: %x", kmsg.NameForKey(w.req.Key()), n)
		}
	}
	letGo()
	for _, w := range waiting {
		got, err := w.answer()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := decode(w.req, got, w.id)
		if err != nil {
			t.Fatal(err)
		}
		switch r := resp.(type) {
		case *kmsg.ProduceResponse:
			if p := r.Topics[0].Partitions[0]; p.ErrorCode != 0 || p.BaseOffset < 3 {
				t.Errorf("synced: %s at %d", describe(p), p.BaseOffset)
			}
		case *kmsg.FetchResponse:
			if p := only(t, r); len(p.RecordBatches) == 0 {
				t.Errorf("synced, and the fetch that waited is told %+v", p)
			}
		}
	}
	if end := y.latest("u", 0); end != 5 {
		t.Errorf("synced, and the latest offset is %d", end)
	}
	if p := y.listOffset("u", 0, since); p.Offset != 3 {
		t.Errorf("synced, and by its time found at %d", p.Offset)
	}
	y.unharmed("a slow disk")
}

// TestPinnedBuffers: records are served from the buffers that their requests
// came in, and answers that nobody reads hold on to those whole. Many small
// records of large requests must not hold more than memory.max.bytes.
func TestPinnedBuffers(t *testing.T) {
	const bound = 64 << 20
	b := startQuiet(t, "memory.max.bytes", strconv.Itoa(bound), "socket.request.max.bytes", "2000000", "socket.send.buffer.bytes", "8192")
	y := newBystander(t, b)
	b.CreateTopic("p", 2)
	big := batch.NewBuilder()
	big.Add(time.Now().UnixMilli(), nil, make([]byte, 700_000))
	filler, err := big.Build()
	if err != nil {
		t.Fatal(err)
	}
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // before it connects: the window stays small
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
	}}
	nc, err := small.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	slow := &client{t: t, nc: nc, r: bufio.NewReader(nc), fmt: kmsg.NewRequestFormatter()}
	ask := func(partition int32, offset int64) {
		f, _ := slow.frame(fetchReq(12, "p", fetchPart(partition, offset)))
		slow.send(f)
	}
	before := slab.InUse()
	most := int64(0)
	for i := range int64(200) {
		req := kmsg.NewPtrProduceRequest()
		req.SetVersion(9)
		req.Acks, req.TimeoutMillis = -1, 30_000
		pt := kmsg.NewProduceRequestTopic()
		pt.Topic = "p"
		for p, records := range [][]byte{plain(1).bytes(), slices.Clone(filler)} {
			pp := kmsg.NewProduceRequestTopicPartition()
			pp.Partition, pp.Records = int32(p), records
			pt.Partitions = append(pt.Partitions, pp)
		}
		req.Topics = append(req.Topics, pt)
		for _, p := range y.do(req).(*kmsg.ProduceResponse).Topics[0].Partitions {
			if p.ErrorCode != 0 {
				t.Fatalf("produce %d: %s", i, describe(p))
			}
		}
		if i == 0 {
			ask(1, 0) // fills the sockets' buffers, and stays
		}
		ask(0, i)
		most = max(most, slab.InUse()-before)
	}
	if most > bound {
		t.Errorf("buffers of %d MiB were held at one time, memory.max.bytes is %d MiB", most>>20, bound>>20)
	}
	y.unharmed("answers that hold on to large requests")
}

// A lookup by time takes as long as its request says, from version 10 on, however long the broker's own would be.
func TestLookupTimeout(t *testing.T) {
	faulty := objstore.NewFaulty(objstore.NewMem(), 1)
	b := servertest.Start(t, servertest.Options{Bucket: faulty, Settings: map[string]string{
		"remote.list.offsets.request.timeout.ms": "3600000", "remote.flush.interval.ms": "100", "remote.cache.memory.bytes": "0", "wal.max.bytes": "33554432",
	}})
	y := newBystander(t, b)
	b.CreateTopic("t", 1, "local.retention.bytes", "1")
	now := time.Now().UnixMilli()
	for i := range 20 {
		s := sent{batch.NewBuilder()}
		s.Add(now+int64(i), nil, make([]byte, 1000))
		if p := produceTo(y.client, 9, -1, "t", 0, s.bytes()); p.ErrorCode != 0 {
			t.Fatal(describe(p))
		}
	}
	b.Remote("t", true)
	over := make(chan struct{})
	defer close(over)
	faulty.Inject(objstore.Fault{Op: objstore.OpGet, Do: func(ctx context.Context, _ objstore.Op, _ string) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return objstore.ErrUnavailable
		}
	}})
	lookup := func(timeout int32) kmsg.Request {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID, req.TimeoutMillis = -1, timeout
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Timestamp, rp.CurrentLeaderEpoch = now+10, -1
		req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "t", Partitions: []kmsg.ListOffsetsRequestTopicPartition{rp}}}
		return at(11, req)
	}
	patient := dial(t, b)
	f, _ := patient.frame(lookup(0))
	patient.send(f)
	time.Sleep(100 * time.Millisecond) // it is first
	if p := y.do(lookup(300)).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]; p.ErrorCode != protocol.CodeRequestTimedOut {
		t.Errorf("%s, offset %d, from a bucket that hangs", protocol.Name(p.ErrorCode), p.Offset)
	}
	patient.nc.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := patient.nc.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("whoever said nothing of how long it waits was answered first (%v)", err)
	}
}
