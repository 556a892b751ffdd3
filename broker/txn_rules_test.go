package broker_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

// unverified is the setting with which raw transactional batches of Produce
// below 12 are taken without a coordinator.
const unverified = "transaction.partition.verification.enable"

// inTxn is a transactional batch of n records.
func inTxn(id int64, epoch int16, seq int32, n int) []byte {
	s := plain(n)
	s.ProducerID, s.ProducerEpoch, s.BaseSequence, s.Transactional = id, epoch, seq, true
	return s.bytes()
}

func txnReq(version int16, topic string, partition int32, records []byte) *kmsg.ProduceRequest {
	req := produceReq(version, -1, topic, partition, records)
	req.TransactionID = kmsg.StringPtr("tx")
	return req
}

func (c *client) produceTxn(version int16, topic string, partition int32, records []byte) kmsg.ProduceResponseTopicPartition {
	c.t.Helper()
	return c.do(txnReq(version, topic, partition, records)).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
}

func (c *client) mustTxn(topic string, partition int32, records []byte) int64 {
	c.t.Helper()
	p := c.produceTxn(9, topic, partition, records)
	if p.ErrorCode != 0 {
		c.t.Fatalf("produce in a transaction to %s-%d: %s", topic, partition, describe(p))
	}
	return p.BaseOffset
}

// end is a request for one marker.
func end(version int16, id int64, epoch int16, commit bool, coordinatorEpoch int32, txnVersion int8, topic string, partitions ...int32) *kmsg.WriteTxnMarkersRequest {
	req := kmsg.NewPtrWriteTxnMarkersRequest()
	req.SetVersion(version)
	m := kmsg.NewWriteTxnMarkersRequestMarker()
	m.ProducerID, m.ProducerEpoch, m.Committed, m.CoordinatorEpoch, m.TransactionVersion = id, epoch, commit, coordinatorEpoch, txnVersion
	t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
	t.Topic, t.Partitions = topic, partitions
	m.Topics = append(m.Topics, t)
	req.Markers = append(req.Markers, m)
	return req
}

func (c *client) end(req *kmsg.WriteTxnMarkersRequest) int16 {
	c.t.Helper()
	resp := c.do(req).(*kmsg.WriteTxnMarkersResponse)
	if len(resp.Markers) != 1 || len(resp.Markers[0].Topics) != 1 || len(resp.Markers[0].Topics[0].Partitions) != 1 {
		c.t.Fatalf("answer is not of one marker: %+v", resp)
	}
	return resp.Markers[0].Topics[0].Partitions[0].ErrorCode
}

// stable is the last stable offset, as ListOffsets shows it.
func (c *client) stable(topic string, partition int32) int64 {
	c.t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(9)
	req.ReplicaID, req.IsolationLevel = -1, 1
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = partition, -1, -1
	req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{rp}}}
	p := c.do(req).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		c.t.Fatalf("ListOffsets of %s-%d: %s", topic, partition, protocol.Name(p.ErrorCode))
	}
	return p.Offset
}

// seen is a record as a reader of committed records gets it.
type seen struct {
	offset int64
	value  string
}

// readCommitted reads from an offset to the last stable one, as the Java
// consumer takes answers apart, and returns where it has come to.
func (c *client) readCommitted(topic string, partition int32, from int64, maxBytes int32) (out []seen, next int64) {
	c.t.Helper()
	for next = from; ; {
		part := fetchPart(partition, next)
		part.PartitionMaxBytes = maxBytes
		req := fetchReq(12, topic, part)
		req.IsolationLevel, req.MaxWaitMillis, req.MinBytes = 1, 20, 1
		p := only(c.t, c.fetch(req))
		if p.ErrorCode != 0 {
			c.t.Fatalf("fetch of %s-%d at %d: %s", topic, partition, next, protocol.Name(p.ErrorCode))
		}
		if p.AbortedTransactions == nil {
			c.t.Fatalf("fetch of %s-%d at %d: no list of aborted transactions", topic, partition, next)
		}
		ahead := slices.Clone(p.AbortedTransactions)
		slices.SortFunc(ahead, func(a, b kmsg.FetchResponseTopicPartitionAbortedTransaction) int {
			return cmp.Compare(a.FirstOffset, b.FirstOffset)
		})
		skipped := map[int64]bool{}
		at := next
		err := batch.Walk(p.RecordBatches, func(h batch.Header, b []byte) error {
			next = h.NextOffset()
			for len(ahead) > 0 && ahead[0].FirstOffset <= h.LastOffset() {
				skipped[ahead[0].ProducerID] = true
				ahead = ahead[1:]
			}
			if h.Control() {
				if commit, _, err := batch.ControlMarker(b); err == nil && !commit {
					delete(skipped, h.ProducerID)
				}
				return nil
			}
			if h.Transactional() && skipped[h.ProducerID] {
				return nil
			}
			for r, err := range batch.Records(b, 1<<20) {
				if err != nil {
					return err
				}
				if o := h.BaseOffset + int64(r.OffsetDelta); o >= from {
					out = append(out, seen{o, string(r.Value)})
				}
			}
			return nil
		})
		if err != nil {
			c.t.Fatal(err)
		}
		if next >= p.LastStableOffset {
			return out, next
		}
		if next == at && len(p.RecordBatches) > 0 {
			c.t.Fatalf("fetch of %s-%d at %d gets nowhere", topic, partition, next)
		}
	}
}

func (c *client) producers(topic string, partition int32) kmsg.DescribeProducersResponseTopicPartition {
	c.t.Helper()
	req := kmsg.NewPtrDescribeProducersRequest()
	req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: topic, Partitions: []int32{partition}}}
	return c.do(req).(*kmsg.DescribeProducersResponse).Topics[0].Partitions[0]
}

// TestMarkers: the bytes of markers are Kafka's, and who may write which.
func TestMarkers(t *testing.T) {
	b := startQuiet(t, unverified, "false")
	y := newBystander(t, b)
	b.CreateTopic("m", 2)
	const (
		stale  = protocol.CodeInvalidProducerEpoch
		fenced = protocol.CodeTransactionCoordinatorFenced
	)
	offset := int64(0)
	wants := func(what string, got, want int16) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, expected %s", what, protocol.Name(got), protocol.Name(want))
		}
		if got == 0 {
			offset++
		}
		if end := y.latest("m", 0); end != offset {
			t.Errorf("%s: the log ends at %d, expected %d", what, end, offset)
		}
	}
	for i, commit := range []bool{true, false} {
		id, epoch := int64(70+i), int16(3+i)
		y.mustTxn("m", 0, inTxn(id, epoch, 0, 2))
		offset += 2
		before := time.Now().UnixMilli()
		wants("marker", y.end(end(1, id, epoch, commit, 0x01020304, 0, "m", 0)), 0)
		got := y.stored("m", 0, offset-1)
		h, err := batch.ParseHeader(got)
		if err != nil || batch.VerifyCRC(got[:h.Size()]) != nil {
			t.Fatalf("marker %x: %v", got, err)
		}
		if h.MaxTimestamp < before || h.MaxTimestamp > time.Now().UnixMilli() || h.BaseTimestamp != h.MaxTimestamp {
			t.Errorf("marker is of %d and %d, now is %d", h.BaseTimestamp, h.MaxTimestamp, before)
		}
		// As org.apache.kafka.common.record lays it out: one record of 16 bytes, its
		// key {version 0, type}, its value {version 0, coordinator epoch}.
		kind := byte(0)
		if commit {
			kind = 1
		}
		want := binary.BigEndian.AppendUint64(nil, uint64(offset-1))
		want = append(want, 0, 0, 0, 66)                   // length
		want = append(want, got[12:16]...)                 // leader epoch
		want = append(want, 2)                             // magic
		want = append(want, got[17:21]...)                 // checksum, verified above
		want = append(want, 0, 0x30, 0, 0, 0, 0)           // transactional, control; last offset delta
		want = append(want, got[27:43]...)                 // times, looked at above
		want = append(want, 0, 0, 0, 0, 0, 0, 0, byte(id)) // producer
		want = append(want, 0, byte(epoch))                // its epoch
		want = append(want, 0xff, 0xff, 0xff, 0xff)        // no sequence
		want = append(want, 0, 0, 0, 1)                    // one record
		want = append(want, 16<<1, 0, 0, 0, 4<<1)          // length, attributes, deltas, key length
		want = append(want, 0, 0, 0, kind)                 // key
		want = append(want, 6<<1, 0, 0, 1, 2, 3, 4, 0)     // value, no headers
		if !bytes.Equal(got[:h.Size()], want) {
			t.Errorf("commit %v: marker\n%x\nwant\n%x", commit, got[:h.Size()], want)
		}
	}

	// Epochs below transaction version 2: the marker has the records' own.
	y.mustTxn("m", 0, inTxn(80, 5, 0, 1))
	offset++
	wants("an older epoch", y.end(end(1, 80, 4, true, 0, 0, "m", 0)), stale)
	wants("the same", y.end(end(1, 80, 5, true, 9, 0, "m", 0)), 0)
	wants("once more", y.end(end(1, 80, 5, true, 9, 0, "m", 0)), 0)
	wants("an older coordinator", y.end(end(1, 80, 5, true, 8, 0, "m", 0)), fenced)
	wants("a newer coordinator", y.end(end(1, 80, 5, true, 10, 0, "m", 0)), 0)
	wants("a newer epoch", y.end(end(1, 80, 6, false, 10, 0, "m", 0)), 0)
	wants("the old epoch again", y.end(end(1, 80, 5, true, 10, 0, "m", 0)), stale)
	if p := y.produceTxn(9, "m", 0, inTxn(80, 5, 1, 1)); p.ErrorCode != stale {
		t.Errorf("records of the epoch that a marker has ended: %s", describe(p))
	}
	if at := y.mustTxn("m", 0, inTxn(80, 6, 0, 1)); at != offset {
		t.Errorf("sequence 0 of the new epoch at %d, expected %d", at, offset)
	}
	offset++

	// From transaction version 2 on it is above that of the records.
	y.mustTxn("m", 0, inTxn(81, 5, 0, 1))
	offset++
	wants("version 2, the records' epoch", y.end(end(2, 81, 5, true, 0, 2, "m", 0)), stale)
	wants("version 2", y.end(end(2, 81, 6, true, 0, 2, "m", 0)), 0)
	wants("version 2, once more", y.end(end(2, 81, 6, true, 0, 2, "m", 0)), 0)
	y.mustTxn("m", 0, inTxn(81, 6, 0, 1))
	offset++
	wants("version 2, late for the transaction before", y.end(end(2, 81, 6, false, 0, 2, "m", 0)), stale)
	if got := y.stable("m", 0); got != 11 {
		// Where the open transaction of producer 80 began.
		t.Errorf("last stable offset %d", got)
	}
	wants("of nobody known", y.end(end(1, 999, 7, true, 3, 0, "m", 0)), 0)
	wants("of nobody known, version 2", y.end(end(2, 998, 0, false, 3, 2, "m", 0)), 0)

	// What there is nothing of.
	for _, version := range []int16{1, 2} {
		for _, tc := range []struct {
			id        int64
			epoch     int16
			topic     string
			partition int32
			code      int16
		}{
			{1, 0, "none", 0, protocol.CodeUnknownTopicOrPartition}, {1, 0, "m", 2, protocol.CodeUnknownTopicOrPartition},
			{1, 0, "m", -1, protocol.CodeUnknownTopicOrPartition}, {1, 0, "m", math.MaxInt32, protocol.CodeUnknownTopicOrPartition},
			{1, 0, "__transaction_state", 0, protocol.CodeInvalidTopicException}, {-1, 0, "m", 0, protocol.CodeInvalidRequest},
			{1, -1, "m", 0, protocol.CodeInvalidRequest}, {math.MinInt64, math.MinInt16, "m", 0, protocol.CodeInvalidRequest},
		} {
			if code := y.end(end(version, tc.id, tc.epoch, true, 0, 0, tc.topic, tc.partition)); code != tc.code {
				t.Errorf("v%d, %+v: %s", version, tc, protocol.Name(code))
			}
		}
	}
	// Several markers, and a partition named twice.
	req := end(2, 500, 1, true, 0, 2, "m", 1, 1, 7)
	req.Markers = append(req.Markers, end(2, 501, 1, false, 0, 2, "m", 1).Markers[0])
	resp := y.do(req).(*kmsg.WriteTxnMarkersResponse)
	if n := y.latest("m", 1); n != 2 || len(resp.Markers) != 2 || len(resp.Markers[0].Topics[0].Partitions) != 2 ||
		resp.Markers[0].Topics[0].Partitions[0].ErrorCode != 0 || resp.Markers[0].Topics[0].Partitions[1].ErrorCode != protocol.CodeUnknownTopicOrPartition ||
		resp.Markers[1].Topics[0].Partitions[0].ErrorCode != 0 {
		t.Errorf("two markers: log of %d, %+v", n, resp)
	}
	if resp := y.do(at(1, kmsg.NewPtrWriteTxnMarkersRequest())).(*kmsg.WriteTxnMarkersResponse); len(resp.Markers) != 0 {
		t.Errorf("no markers: %+v", resp)
	}
	// More than may be asked for at once: none is written.
	many := end(2, 500, 2, true, 0, 2, "m", 1)
	for len(many.Markers) <= 100_000 {
		many.Markers = append(many.Markers, many.Markers[0])
	}
	resp = y.do(many).(*kmsg.WriteTxnMarkersResponse)
	if n := y.latest("m", 1); n != 2 || resp.Markers[0].Topics[0].Partitions[0].ErrorCode != protocol.CodeInvalidRequest {
		t.Errorf("%d markers in a request: log of %d", len(many.Markers), n)
	}
	y.unharmed("markers")
}

// TestTransactionsInAPartition: what producers, markers and readers of a partition
// see of each other.
func TestTransactionsInAPartition(t *testing.T) {
	b := startQuiet(t, unverified, "false")
	y := newBystander(t, b)
	b.CreateTopic("t", 1)
	lso := func(what string, want int64) {
		t.Helper()
		if got := y.stable("t", 0); got != want {
			t.Errorf("%s: last stable offset %d, expected %d", what, got, want)
		}
		if _, next := y.readCommitted("t", 0, 0, 1<<20); next != want {
			t.Errorf("%s: a reader of committed records gets up to %d, expected %d", what, next, want)
		}
		req := fetchReq(12, "t", fetchPart(0, 0))
		req.MaxWaitMillis = 0
		if p := only(t, y.fetch(req)); p.AbortedTransactions != nil || p.HighWatermark != y.latest("t", 0) {
			t.Errorf("%s: a reader of all records: %+v", what, p)
		}
	}
	aborted := func(from int64) []kmsg.FetchResponseTopicPartitionAbortedTransaction {
		req := fetchReq(12, "t", fetchPart(0, from))
		req.IsolationLevel, req.MaxWaitMillis = 1, 0
		return only(t, y.fetch(req)).AbortedTransactions
	}
	for _, id := range []*string{nil} {
		req := produceReq(9, -1, "t", 0, inTxn(1, 0, 0, 1))
		req.TransactionID = id
		if p := y.do(req).(*kmsg.ProduceResponse).Topics[0].Partitions[0]; p.ErrorCode != protocol.CodeTransactionalIDAuthorizationFailed {
			t.Errorf("transactional batch without a transactional id: %s", describe(p))
		}
	}
	y.must("t", 0, 2) // 0, 1
	lso("no transaction", 2)
	y.mustTxn("t", 0, inTxn(1, 0, 0, 1)) // 2
	y.must("t", 0, 1)                    // 3
	y.mustTxn("t", 0, inTxn(2, 0, 0, 1)) // 4
	y.mustTxn("t", 0, inTxn(1, 0, 1, 1)) // 5
	lso("two open", 2)
	plainOf1 := plain(1)
	plainOf1.ProducerID, plainOf1.ProducerEpoch, plainOf1.BaseSequence = 1, 0, 2
	if p := produceTo(y.client, 9, -1, "t", 0, plainOf1.bytes()); p.ErrorCode != protocol.CodeInvalidTxnState {
		t.Errorf("a batch outside of the transaction that is open: %s", describe(p))
	}
	if code := y.end(end(1, 2, 0, false, 0, 0, "t", 0)); code != 0 { // 6
		t.Fatal(protocol.Name(code))
	}
	lso("the later one is aborted", 2)
	if a := aborted(0); a == nil || len(a) != 0 {
		t.Errorf("aborted below 2: %+v", a)
	}

	// A reader that waits for much is woken by the marker that shows it.
	slow := dial(t, b)
	req := fetchReq(12, "t", fetchPart(0, 2))
	req.IsolationLevel, req.MinBytes, req.MaxWaitMillis = 1, 200, 5*60_000
	f, id := slow.frame(req)
	slow.send(f)
	time.Sleep(50 * time.Millisecond)                               // it may park, or see the marker at once: both must end
	if code := y.end(end(1, 1, 0, true, 0, 0, "t", 0)); code != 0 { // 7
		t.Fatal(protocol.Name(code))
	}
	got, err := slow.answer()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := decode(req, got, id)
	if err != nil {
		t.Fatal(err)
	}
	if p := only(t, resp.(*kmsg.FetchResponse)); p.LastStableOffset != 8 || len(p.AbortedTransactions) != 1 || p.AbortedTransactions[0].ProducerID != 2 || p.AbortedTransactions[0].FirstOffset != 4 {
		t.Errorf("woken: %d, %+v", p.LastStableOffset, p.AbortedTransactions)
	}
	lso("all ended", 8)
	if a := aborted(7); len(a) != 0 {
		t.Errorf("aborted from 7 on: %+v", a)
	}
	if a := aborted(5); len(a) != 1 {
		t.Errorf("aborted from 5 on: %+v", a)
	}

	// The next one of a producer goes on with its sequence, or with 0 at a new epoch.
	y.mustTxn("t", 0, inTxn(1, 0, 2, 1)) // 8
	if p := y.produceTxn(9, "t", 0, inTxn(1, 0, 4, 1)); p.ErrorCode != protocol.CodeOutOfOrderSequenceNumber {
		t.Errorf("a gap in a transaction: %s", describe(p))
	}
	if p := y.produceTxn(9, "t", 0, inTxn(1, 0, 2, 1)); p.ErrorCode != 0 || p.BaseOffset != 8 {
		t.Errorf("a retry in a transaction: %s at %d", describe(p), p.BaseOffset)
	}
	lso("one more open", 8)

	// DescribeProducers, now and after a restart.
	check := func(when string) {
		t.Helper()
		p := y.producers("t", 0)
		if p.ErrorCode != 0 || len(p.ActiveProducers) != 2 {
			t.Fatalf("%s: %+v", when, p)
		}
		for i, want := range []kmsg.DescribeProducersResponseTopicPartitionActiveProducer{
			{ProducerID: 1, ProducerEpoch: 0, LastSequence: 2, CoordinatorEpoch: 0, CurrentTxnStartOffset: 8},
			{ProducerID: 2, ProducerEpoch: 0, LastSequence: 0, CoordinatorEpoch: 0, CurrentTxnStartOffset: -1},
		} {
			got := p.ActiveProducers[i]
			if age := time.Since(time.UnixMilli(got.LastTimestamp)); age < -time.Second || age > time.Hour {
				t.Errorf("%s: last written at %d", when, got.LastTimestamp)
			}
			got.LastTimestamp, want.UnknownTags = 0, got.UnknownTags
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %+v, expected %+v", when, got, want)
			}
		}
	}
	check("open")
	if err := b.Restart(nil); err != nil {
		t.Fatal(err)
	}
	y = newBystander(t, b)
	servertest.Eventually(t, func() error {
		if p := y.listOffset("t", 0, -1); p.ErrorCode != 0 {
			return fmt.Errorf("after the restart: %s", protocol.Name(p.ErrorCode))
		}
		return nil
	})
	check("after a restart")
	lso("after a restart", 8)
	y.mustTxn("t", 0, inTxn(1, 0, 3, 1)) // 9: it goes on
	if code := y.end(end(1, 1, 0, false, 0, 0, "t", 0)); code != 0 {
		t.Fatal(protocol.Name(code))
	}
	lso("ended after a restart", 11)
	if a := aborted(9); len(a) != 1 || a[0].FirstOffset != 8 {
		t.Errorf("aborted from 9 on: %+v", a)
	}
	for _, tc := range []struct {
		topic     string
		partition int32
		code      int16
	}{{"none", 0, protocol.CodeUnknownTopicOrPartition}, {"t", 1, protocol.CodeUnknownTopicOrPartition}, {"t", -1, protocol.CodeUnknownTopicOrPartition}, {"a/b", 0, protocol.CodeInvalidTopicException}} {
		if p := y.producers(tc.topic, tc.partition); p.ErrorCode != tc.code || len(p.ActiveProducers) != 0 {
			t.Errorf("producers of %s-%d: %s", tc.topic, tc.partition, protocol.Name(p.ErrorCode))
		}
	}
	y.unharmed("transactions")
}

// TestManyProducersDescribed: how much DescribeProducers is asked for, it answers
// with bounded memory (B30).
func TestManyProducersDescribed(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("p", 1)
	for i := range int64(50) {
		s := plain(1)
		s.ProducerID, s.ProducerEpoch, s.BaseSequence = i, 0, 0
		if p := produceTo(y.client, 9, -1, "p", 0, s.bytes()); p.ErrorCode != 0 {
			t.Fatal(describe(p))
		}
	}
	req := kmsg.NewPtrDescribeProducersRequest()
	for range 100 {
		req.Topics = append(req.Topics, kmsg.DescribeProducersRequestTopic{Topic: "p", Partitions: slices.Repeat([]int32{0}, 10_000)})
	}
	n := 0
	total, _ := allocated(func() {
		for _, topic := range y.do(req).(*kmsg.DescribeProducersResponse).Topics {
			for _, p := range topic.Partitions {
				n += len(p.ActiveProducers)
			}
		}
	})
	if n != 50 {
		t.Errorf("a partition named a million times is answered with %d producers, it has 50", n)
	}
	if total > 64<<20 {
		t.Errorf("a request of 4 MB took %d MB", total>>20)
	}
	y.unharmed("a million partitions")
}

// TestManyTransactions: a partition has room for so many transactions, and who
// would begin another one waits; markers always have room.
func TestManyTransactions(t *testing.T) {
	const limit = 100
	b := startQuiet(t, unverified, "false", "producer.state.max.producers", fmt.Sprint(limit))
	y := newBystander(t, b)
	b.CreateTopic("m", 1)
	var frames []byte
	var ids []int32
	var reqs []kmsg.Request
	for id := range int64(limit) {
		req := txnReq(9, "m", 0, inTxn(id, 0, 0, 1))
		f, n := y.frame(req)
		frames, ids, reqs = append(frames, f...), append(ids, n), append(reqs, req)
	}
	go y.nc.Write(frames)
	for i, req := range reqs {
		got, err := y.answer()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := decode(req, got, ids[i])
		if err != nil {
			t.Fatal(err)
		}
		if p := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]; p.ErrorCode != 0 {
			t.Fatalf("transaction %d: %s", i, describe(p))
		}
	}
	if p := y.produceTxn(9, "m", 0, inTxn(limit, 0, 0, 1)); p.ErrorCode != protocol.CodeThrottlingQuotaExceeded {
		t.Errorf("transaction %d: %s", limit+1, describe(p))
	}
	// None of those that are open is forgotten for producers that come and go.
	for id := range int64(50) {
		s := plain(1)
		s.ProducerID, s.ProducerEpoch, s.BaseSequence = 1_000_000+id, 0, 0
		if p := produceTo(y.client, 9, -1, "m", 0, s.bytes()); p.ErrorCode != 0 {
			t.Fatal(describe(p))
		}
	}
	if lso := y.stable("m", 0); lso != 0 {
		t.Errorf("last stable offset %d with every transaction open", lso)
	}
	n := 0
	for _, p := range y.producers("m", 0).ActiveProducers {
		if p.CurrentTxnStartOffset >= 0 {
			n++
		}
	}
	if n != limit {
		t.Errorf("%d transactions are known, %d are open", n, limit)
	}
	if code := y.end(end(1, 0, 0, true, 0, 0, "m", 0)); code != 0 {
		t.Fatal(protocol.Name(code))
	}
	if lso := y.stable("m", 0); lso != 1 {
		t.Errorf("last stable offset %d after the first has ended", lso)
	}
	if p := y.produceTxn(9, "m", 0, inTxn(limit, 0, 0, 1)); p.ErrorCode != 0 {
		t.Errorf("one more when one has ended: %s", describe(p))
	}
	y.unharmed("many transactions")
}

// TestLateTransactions: a metric says that a transaction is open for longer than
// any may be, and no longer when it has been ended.
func TestLateTransactions(t *testing.T) {
	defer broker.SetLateAfter(0)()
	b := startQuiet(t, unverified, "false", "transaction.max.timeout.ms", "1000")
	y := newBystander(t, b)
	b.CreateTopic("m", 3)
	late := func() float64 { return y.metric("varve_late_transactions_partitions") }
	for p := range int32(3) {
		if r := y.produceTxn(9, "m", p, inTxn(int64(p), 0, 0, 1)); r.ErrorCode != 0 {
			t.Fatal(describe(r))
		}
	}
	wants := func(n float64) {
		t.Helper()
		servertest.Eventually(t, func() error {
			if got := late(); got != n {
				return fmt.Errorf("%v partitions with late transactions, expected %v", got, n)
			}
			return nil
		})
	}
	if got := late(); got != 0 {
		t.Errorf("%v partitions with late transactions at once", got)
	}
	wants(3)
	for p := range int32(2) {
		if code := y.end(end(1, int64(p), 0, false, 0, 0, "m", p)); code != 0 {
			t.Fatal(protocol.Name(code))
		}
	}
	wants(1)
	// One that goes on is not late.
	if r := y.produceTxn(9, "m", 2, inTxn(2, 0, 1, 1)); r.ErrorCode != 0 {
		t.Fatal(describe(r))
	}
	if got := late(); got != 0 {
		t.Errorf("%v partitions with late transactions after another batch", got)
	}
}

// testCoordinator answers as it is told, and notes what it is asked.
type testCoordinator struct {
	mu    sync.Mutex
	code  int16 // what it answers
	asked []string
	hold  chan struct{} // answers wait for it; nil: they do not
	began chan struct{} // told when it is asked
}

func (k *testCoordinator) verify(ctx context.Context, id string, pid int64, epoch int16, topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, add bool) [][]int16 {
	var of strings.Builder
	for _, t := range topics {
		fmt.Fprintf(&of, " %s%v", t.Topic, t.Partitions)
	}
	k.mu.Lock()
	code, hold := k.code, k.hold
	k.asked = append(k.asked, fmt.Sprintf("%s %d/%d%s add=%v", id, pid, epoch, of.String(), add))
	k.mu.Unlock()
	select {
	case k.began <- struct{}{}:
	default:
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			code = protocol.CodeRequestTimedOut
		}
	}
	codes := make([][]int16, len(topics))
	for i, t := range topics {
		codes[i] = slices.Repeat([]int16{code}, len(t.Partitions))
	}
	return codes
}

// set makes it answer code from now on, and says what it was asked before.
func (k *testCoordinator) set(code int16, hold chan struct{}) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.asked
	k.code, k.hold, k.asked = code, hold, nil
	return was
}

// TestAskingAgain: add.partitions.to.txn.retry.backoff.ms and .max.ms say how often and how long a partition asks a coordinator that waits for the
// markers of the last transaction.
func TestAskingAgain(t *testing.T) {
	k := &testCoordinator{began: make(chan struct{}, 1000)}
	defer broker.SetVerifier(k.verify)()
	for _, tc := range []struct {
		backoff, most string
		asked         int
	}{{"1", "0", 1}, {"2000", "2000", 2}} {
		b := startQuiet(t, "add.partitions.to.txn.retry.backoff.ms", tc.backoff, "add.partitions.to.txn.retry.backoff.max.ms", tc.most)
		y := newBystander(t, b)
		b.CreateTopic("v", 1)
		k.set(protocol.CodeConcurrentTransactions, nil)
		if p := y.produceTxn(12, "v", 0, inTxn(1, 0, 0, 1)); p.ErrorCode != protocol.CodeConcurrentTransactions {
			t.Error(describe(p))
		}
		if got := k.set(0, nil); len(got) != tc.asked {
			t.Errorf("every %s ms for %s ms: asked %d times, expected %d", tc.backoff, tc.most, len(got), tc.asked)
		}
	}
}

// TestVerification: no transaction begins in a partition that its coordinator
// knows nothing of (KIP-890).
func TestVerification(t *testing.T) {
	k := &testCoordinator{began: make(chan struct{}, 1000)}
	defer broker.SetVerifier(k.verify)()
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("v", 3)
	b.CreateTopic("w", 1)
	wants := func(what string, p kmsg.ProduceResponseTopicPartition, code int16) {
		t.Helper()
		if p.ErrorCode != code {
			t.Errorf("%s: %s, expected %s", what, describe(p), protocol.Name(code))
		}
	}
	asked := func(what string, want ...string) {
		t.Helper()
		if got := k.set(0, nil); !slices.Equal(got, want) {
			t.Errorf("%s: the coordinator was asked %q, expected %q", what, got, want)
		}
	}
	const (
		retry    = protocol.CodeNotEnoughReplicas
		state    = protocol.CodeInvalidTxnState
		gap      = protocol.CodeOutOfOrderSequenceNumber
		busy     = protocol.CodeConcurrentTransactions
		yes      = int16(0)
		longWait = 5 * time.Second
	)

	// What each answer becomes, by version of Produce.
	for _, tc := range []struct{ says, v10, v11, v12 int16 }{
		{yes, yes, yes, yes},
		{protocol.CodeTransactionAbortable, state, protocol.CodeTransactionAbortable, protocol.CodeTransactionAbortable},
		{state, state, state, state},
		{protocol.CodeNotCoordinator, retry, retry, retry},
		{protocol.CodeCoordinatorNotAvailable, retry, retry, retry},
		{protocol.CodeCoordinatorLoadInProgress, retry, retry, retry},
		{protocol.CodeNetworkException, retry, retry, retry},
		{protocol.CodeOperationNotAttempted, retry, retry, retry},
		{busy, retry, retry, busy},
		{protocol.CodeProducerFenced, protocol.CodeInvalidProducerEpoch, protocol.CodeInvalidProducerEpoch, protocol.CodeInvalidProducerEpoch},
		{protocol.CodeInvalidProducerIDMapping, protocol.CodeInvalidProducerIDMapping, protocol.CodeInvalidProducerIDMapping, protocol.CodeInvalidProducerIDMapping},
	} {
		for version, want := range map[int16]int16{9: tc.v10, 10: tc.v10, 11: tc.v11, 12: tc.v12} {
			k.set(tc.says, nil)
			id := 1000*int64(version) + int64(tc.says)
			wants(fmt.Sprintf("v%d, coordinator says %s", version, protocol.Name(tc.says)), y.produceTxn(version, "v", 0, inTxn(id, 0, 0, 1)), want)
		}
	}
	end1 := y.latest("v", 0)
	if end1 != 4 {
		t.Errorf("%d batches of 4 that were verified are in the log", end1)
	}
	k.set(yes, nil)

	// Asked once for a transaction and partition; added from version 12 on.
	wants("first", y.produceTxn(9, "v", 1, inTxn(1, 4, 0, 1)), 0)
	wants("second", y.produceTxn(9, "v", 1, inTxn(1, 4, 1, 1)), 0)
	wants("a retry", y.produceTxn(9, "v", 1, inTxn(1, 4, 0, 1)), 0)
	asked("one transaction", "tx 1/4 v[1] add=false")
	if code := y.end(end(1, 1, 4, true, 0, 0, "v", 1)); code != 0 {
		t.Fatal(protocol.Name(code))
	}
	wants("a retry of an ended one", y.produceTxn(9, "v", 1, inTxn(1, 4, 1, 1)), 0)
	wants("an old epoch", y.produceTxn(9, "v", 1, inTxn(1, 3, 0, 1)), protocol.CodeInvalidProducerEpoch)
	asked("what is not going to be appended")
	wants("the next", y.produceTxn(12, "v", 1, inTxn(1, 4, 2, 1)), 0)
	asked("the next transaction", "tx 1/4 v[1] add=true")
	if code := y.end(end(2, 1, 5, false, 0, 2, "v", 1)); code != 0 {
		t.Fatal(protocol.Name(code))
	}
	wants("version 2, not from 0", y.produceTxn(12, "v", 1, inTxn(1, 5, 3, 1)), gap)
	wants("version 2, from 0", y.produceTxn(12, "v", 1, inTxn(1, 5, 0, 1)), 0)
	wants("version 2, unknown and not from 0", y.produceTxn(12, "v", 1, inTxn(2, 5, 3, 1)), gap)
	wants("version 1, unknown and not from 0", y.produceTxn(11, "v", 1, inTxn(3, 5, 3, 1)), 0)
	k.set(yes, nil)

	// Two partitions in one request are one question, of two topics too; two
	// producers are refused.
	req := txnReq(9, "v", 1, inTxn(11, 0, 0, 1))
	more := txnReq(9, "v", 2, inTxn(11, 0, 0, 1)).Topics[0].Partitions[0]
	req.Topics[0].Partitions = append(req.Topics[0].Partitions, more)
	for _, p := range y.do(req).(*kmsg.ProduceResponse).Topics[0].Partitions {
		wants("two partitions", p, 0)
	}
	asked("two partitions", "tx 11/0 v[1 2] add=false")
	both := txnReq(12, "v", 1, inTxn(14, 0, 0, 1))
	both.Topics = append(both.Topics, txnReq(12, "w", 0, inTxn(14, 0, 0, 1)).Topics...)
	for _, t := range y.do(both).(*kmsg.ProduceResponse).Topics {
		wants("two topics", t.Partitions[0], 0)
	}
	asked("two topics", "tx 14/0 v[1] w[0] add=true")
	req.Topics[0].Partitions[0].Records, req.Topics[0].Partitions[1].Records = inTxn(12, 0, 0, 1), inTxn(13, 0, 0, 1)
	for _, p := range y.do(req).(*kmsg.ProduceResponse).Topics[0].Partitions {
		wants("two producers", p, protocol.CodeInvalidProducerIDMapping)
	}
	asked("two producers")

	// While the coordinator is silent, transactional requests of the connection
	// wait in their order and everything else goes on.
	k.set(yes, nil)
	for len(k.began) > 0 {
		<-k.began
	}
	hold := make(chan struct{})
	k.set(yes, hold)
	c := dial(t, b)
	var reqs []kmsg.Request
	var ids []int32
	var frames []byte
	const n = 20
	for i := range n {
		req := txnReq(9, "v", 2, inTxn(21, 0, int32(i), 1))
		f, id := c.frame(req)
		reqs, ids, frames = append(reqs, req), append(ids, id), append(frames, f...)
	}
	other := produceReq(9, -1, "v", 0, plain(1).bytes())
	f, id := c.frame(other)
	reqs, ids, frames = append(reqs, other), append(ids, id), append(frames, f...)
	before := y.latest("v", 0)
	c.send(frames)
	<-k.began
	servertest.Eventually(t, func() error {
		if end := y.latest("v", 0); end != before+1 {
			return fmt.Errorf("a plain produce behind a verification: the log ends at %d, expected %d", end, before+1)
		}
		return nil
	})
	base := y.latest("v", 2)
	if base != 1 {
		t.Errorf("%d records where 1 has been verified", base)
	}
	close(hold)
	for i, req := range reqs {
		got, err := c.answer()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := decode(req, got, ids[i])
		if err != nil {
			t.Fatal(err)
		}
		p := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		wants(fmt.Sprintf("pipelined %d", i), p, 0)
		if i < n && p.BaseOffset != base+int64(i) {
			t.Errorf("pipelined %d at %d, expected %d", i, p.BaseOffset, base+int64(i))
		}
	}
	if got := k.set(yes, nil); len(got) != 1 {
		t.Errorf("the coordinator was asked %d times about one transaction: %q", len(got), got)
	}

	// A marker between the answer and the append: the answer is worth nothing.
	for len(k.began) > 0 {
		<-k.began
	}
	hold = make(chan struct{})
	k.set(yes, hold)
	late := txnReq(11, "v", 2, inTxn(31, 0, 0, 1))
	f, id = c.frame(late)
	c.send(f)
	<-k.began
	if code := y.end(end(1, 31, 0, false, 0, 0, "v", 2)); code != 0 {
		t.Fatal(protocol.Name(code))
	}
	close(hold)
	got, err := c.answer()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := decode(late, got, id)
	if err != nil {
		t.Fatal(err)
	}
	wants("verified before the marker", resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0], state)
	k.set(yes, nil)
	wants("verified after the marker", y.produceTxn(11, "v", 2, inTxn(31, 0, 0, 1)), 0)

	// A lower sequence that is to be tried again is not overtaken.
	k.set(protocol.CodeCoordinatorLoadInProgress, nil)
	wants("not yet", y.produceTxn(11, "v", 2, inTxn(41, 0, 0, 2)), retry)
	k.set(yes, nil)
	wants("overtaking", y.produceTxn(11, "v", 2, inTxn(41, 0, 2, 1)), gap)
	wants("tried again", y.produceTxn(11, "v", 2, inTxn(41, 0, 0, 2)), 0)
	wants("and the one behind", y.produceTxn(11, "v", 2, inTxn(41, 0, 2, 1)), 0)

	// The coordinator says no until the last transaction is complete, and a
	// producer of version 2 need not hear of it.
	k.set(busy, nil)
	go func() {
		time.Sleep(30 * time.Millisecond)
		k.set(yes, nil)
	}()
	wants("busy for a moment", y.produceTxn(12, "v", 2, inTxn(51, 0, 0, 1)), 0)

	// acks=0: the end of the connection is the answer.
	k.set(state, nil)
	dumb := dial(t, b)
	silent := txnReq(9, "v", 2, inTxn(61, 0, 0, 1))
	silent.Acks = 0
	f, _ = dumb.frame(silent)
	dumb.send(f)
	dumb.ends("a refused batch of acks=0")
	k.set(yes, nil)

	// A client that leaves in the middle, and a broker that ends.
	for len(k.began) > 0 {
		<-k.began
	}
	hold = make(chan struct{})
	k.set(yes, hold)
	gone := dial(t, b)
	f, _ = gone.frame(txnReq(9, "v", 2, inTxn(71, 0, 0, 1)))
	gone.send(f)
	<-k.began
	gone.nc.Close()
	stays := dial(t, b)
	f, _ = stays.frame(txnReq(9, "v", 2, inTxn(72, 0, 0, 1)))
	stays.send(f)
	<-k.began
	y.unharmed("verifications")
	time.AfterFunc(100*time.Millisecond, func() { close(hold) })
	began := time.Now()
	b.Stop()
	if took := time.Since(began); took > longWait {
		t.Logf("stopping took %v", took)
	}
	if _, err := stays.answer(); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a request that was being verified is left waiting by a broker that ends")
	}
}
