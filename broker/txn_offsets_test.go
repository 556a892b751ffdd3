package broker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/coordinator"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/vfs"
)

// inTransaction is a request to commit offset in partition 0 of topics.
func inTransaction(version int16, group string, id int64, epoch int16, offset int64, topics ...string) *kmsg.TxnOffsetCommitRequest {
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.SetVersion(version)
	req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch = "tx", group, id, epoch
	for _, topic := range topics {
		rt := kmsg.NewTxnOffsetCommitRequestTopic()
		rt.Topic = topic
		rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		rp.Offset = offset
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
	}
	return req
}

// commitTxn is the code that each partition of a request is answered with.
func (c *client) commitTxn(req *kmsg.TxnOffsetCommitRequest) (codes []int16) {
	c.t.Helper()
	for _, t := range c.do(req).(*kmsg.TxnOffsetCommitResponse).Topics {
		for _, p := range t.Partitions {
			codes = append(codes, p.ErrorCode)
		}
	}
	return codes
}

// stableOffset is partition 0 as a reader that wants what is decided gets it.
func (c *client) stableOffset(group, topic string) (offset int64, code int16) {
	c.t.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	gt := kmsg.NewOffsetFetchRequestGroupTopic()
	gt.Topic, gt.Partitions = topic, []int32{0}
	g.Topics = append(g.Topics, gt)
	req.Groups = append(req.Groups, g)
	r := c.do(at(9, req)).(*kmsg.OffsetFetchResponse).Groups[0]
	if r.ErrorCode != 0 {
		return -1, r.ErrorCode
	}
	return r.Topics[0].Partitions[0].Offset, r.Topics[0].Partitions[0].ErrorCode
}

// txnOffsets is a broker with a topic t, a topic u, and a group's offset of t.
type txnOffsets struct {
	*bystander
	partition int32 // of the offsets topic, of the group g
}

func newTxnOffsets(t *testing.T, settings ...string) *txnOffsets {
	b := startQuiet(t, settings...)
	x := &txnOffsets{newBystander(t, b), coordinator.PartitionOf("g", 2)}
	b.CreateTopic("t", 1)
	b.CreateTopic("u", 1)
	x.commit("g", "t", 1)
	return x
}

func (x *txnOffsets) wants(what string, got, want any) {
	x.t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		x.t.Errorf("%s: %s, expected %s", what, g, w)
	}
}

// shows checks what both sorts of readers get of t; unstable is 88 while
// something is pending.
func (x *txnOffsets) shows(what string, offset int64, code int16) {
	x.t.Helper()
	x.wants(what+": the committed offset", x.committed("g", "t"), offset)
	stable, got := x.stableOffset("g", "t")
	x.wants(what+": code with RequireStable", protocol.Name(got), protocol.Name(code))
	if code == 0 {
		x.wants(what+": the stable offset", stable, offset)
	}
}

func (x *txnOffsets) ends(what string, id int64, epoch int16, commit bool, code int16) {
	x.t.Helper()
	servertest.Eventually(x.t, func() error {
		switch got := x.end(end(1, id, epoch, commit, 0, 0, offsetsTopic, x.partition)); got {
		case code:
		case protocol.CodeNotLeaderOrFollower:
			return fmt.Errorf("%s: %s", what, protocol.Name(got)) // being loaded
		default:
			x.t.Fatalf("%s: %s, expected %s", what, protocol.Name(got), protocol.Name(code))
		}
		return nil
	})
}

// again restarts the broker and waits until its groups are there.
func (x *txnOffsets) again() {
	x.t.Helper()
	if err := x.b.Restart(nil); err != nil {
		x.t.Fatal(err)
	}
	x.client = dial(x.t, x.b)
	x.committed("g", "t")
}

// TestTxnOffsetCommit: offsets of a transaction count from its marker on, or never, whatever comes in between.
func TestTxnOffsetCommit(t *testing.T) {
	x := newTxnOffsets(t, unverified, "false")
	const unstable = protocol.CodeUnstableOffsetCommit
	for version := range int16(5) {
		for i, commit := range []bool{true, false} {
			name := fmt.Sprintf("v%d, commit=%v", version, commit)
			id, offset := 100+int64(version), int64(10*version)+int64(i)+2
			before := x.committed("g", "t")
			x.wants(name, x.commitTxn(inTransaction(version, "g", id, 0, offset, "t", "u")), []int16{0, 0})
			x.shows(name+", pending", before, unstable)
			x.ends(name, id, 0, commit, 0)
			if commit {
				before = offset
			}
			x.shows(name+", decided", before, 0)
			x.ends(name+", marker again", id, 0, commit, 0)
			x.shows(name+", decided twice", before, 0)
		}
	}
	last := x.committed("g", "t")

	// A restart in the middle, and one after the marker.
	x.wants("before a restart", x.commitTxn(inTransaction(3, "g", 7, 0, 500, "t")), []int16{0})
	x.again()
	x.shows("restarted", last, unstable)
	x.ends("marker after a restart", 7, 0, true, 0)
	x.shows("marker after a restart", 500, 0)
	x.again()
	x.shows("restarted after the marker", 500, 0)

	// A plain commit after a pending one is the later.
	x.wants("pending", x.commitTxn(inTransaction(3, "g", 7, 0, 600, "t", "u")), []int16{0, 0})
	x.commit("g", "t", 550)
	x.shows("overtaken", 550, unstable)
	x.ends("overtaken", 7, 0, true, 0)
	x.shows("overtaken, decided", 550, 0)
	x.wants("not overtaken", x.committed("g", "u"), 600)
	x.again()
	x.shows("overtaken, restarted", 550, 0)

	// The marker of a later epoch ends the transaction and the producer.
	x.wants("pending", x.commitTxn(inTransaction(3, "g", 7, 0, 700, "t")), []int16{0})
	x.ends("aborted in the next epoch", 7, 1, false, 0)
	x.wants("zombie", x.commitTxn(inTransaction(3, "g", 7, 0, 701, "t")), []int16{protocol.CodeInvalidProducerEpoch})
	x.ends("zombie's marker", 7, 0, true, protocol.CodeInvalidProducerEpoch)
	x.shows("zombie", 550, 0)
	x.again()
	x.wants("zombie after a restart", x.commitTxn(inTransaction(3, "g", 7, 0, 701, "t")), []int16{protocol.CodeInvalidProducerEpoch})
	x.shows("zombie after a restart", 550, 0)

	// Read from object storage.
	if codes := x.alter(false, alteration{topicResource, offsetsTopic, []op{{"local.retention.bytes", kmsg.IncrementalAlterConfigOpSet, "1"}}}); codes[0] != 0 {
		t.Fatal(protocol.Name(codes[0]))
	}
	x.wants("pending", x.commitTxn(inTransaction(3, "g", 8, 0, 800, "t")), []int16{0})
	x.b.Remote(offsetsTopic, true)
	x.again()
	x.shows("pending in the bucket", 550, unstable)
	x.ends("marker here, records there", 8, 0, true, 0)
	x.shows("marker here, records there", 800, 0)
	x.b.Remote(offsetsTopic, true)
	x.again()
	x.shows("both in the bucket", 800, 0)

	// The group goes, and what is pending with it.
	x.wants("pending", x.commitTxn(inTransaction(3, "g", 8, 0, 900, "t", "u")), []int16{0, 0})
	del := kmsg.NewPtrDeleteGroupsRequest()
	del.Groups = []string{"g"}
	x.wants("DeleteGroups", x.do(at(2, del)).(*kmsg.DeleteGroupsResponse).Groups[0].ErrorCode, 0)
	x.shows("deleted", -1, 0)
	x.ends("marker of a deleted group", 8, 0, true, 0)
	x.shows("deleted, decided", -1, 0)
	x.again()
	x.shows("deleted, restarted", -1, 0)
	x.unharmed("offsets of transactions")
}

// TestTxnOffsetCommitRefused: what is no partition, no producer, no group; who is no member; and what is too much (B30).
func TestTxnOffsetCommitRefused(t *testing.T) {
	x := newTxnOffsets(t, unverified, "false")
	const unknown = protocol.CodeUnknownTopicOrPartition
	x.wants("an unknown topic beside a known one", x.commitTxn(inTransaction(3, "g", 7, 0, 2, "t", "missing")), []int16{0, unknown})
	x.ends("abort", 7, 0, false, 0)
	req := inTransaction(3, "g", 7, 0, 2, "t")
	req.Topics[0].Partitions = append(req.Topics[0].Partitions, kmsg.TxnOffsetCommitRequestTopicPartition{Partition: 5}, kmsg.TxnOffsetCommitRequestTopicPartition{Partition: -1})
	x.wants("partitions that are not", x.commitTxn(req), []int16{0, unknown, unknown})
	x.ends("abort", 7, 0, false, 0)
	x.wants("no topics", len(x.commitTxn(inTransaction(3, "g", 7, 0, 2))), 0)
	x.wants("no group", x.commitTxn(inTransaction(3, "", 7, 0, 2, "t")), []int16{protocol.CodeInvalidGroupID})
	x.wants("producer -1", x.commitTxn(inTransaction(3, "g", -1, -1, 2, "t")), []int16{protocol.CodeInvalidProducerIDMapping})
	x.wants("epoch -1", x.commitTxn(inTransaction(3, "g", 7, -1, 2, "t")), []int16{protocol.CodeInvalidProducerEpoch})
	long := inTransaction(3, "g", 7, 0, 2, "t")
	long.Topics[0].Partitions[0].Metadata = kmsg.StringPtr(strings.Repeat("x", 4097))
	x.wants("long metadata", x.commitTxn(long), []int16{protocol.CodeOffsetMetadataTooLarge})
	member := inTransaction(3, "g", 7, 0, 2, "t")
	member.MemberID, member.Generation = "zombie", 3
	x.wants("a member that is none", x.commitTxn(member), []int16{protocol.CodeUnknownMemberID})
	other := inTransaction(3, "not there", 7, 0, 2, "t")
	other.Generation = 3
	x.wants("a generation of no group", x.commitTxn(other), []int16{protocol.CodeIllegalGeneration})

	// A partition again and again, each time a record with the name of the group.
	many := inTransaction(3, strings.Repeat("g", 32_000), 7, 0, 2, "t")
	many.Topics[0].Partitions = slices.Repeat(many.Topics[0].Partitions, 300_000)
	var codes []int16
	total, _ := allocated(func() { codes = x.commitTxn(many) })
	if len(codes) != 300_000 || codes[0] != protocol.CodeInvalidCommitOffsetSize {
		t.Errorf("%d answers, the first %s", len(codes), protocol.Name(codes[0]))
	}
	if total > 512<<20 {
		t.Errorf("a request of 5 MB took %d MB", total>>20)
	}
	plain := kmsg.NewPtrOffsetCommitRequest()
	plain.Group, plain.Generation = many.Group, -1
	part := kmsg.NewOffsetCommitRequestTopicPartition()
	plain.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "t", Partitions: slices.Repeat([]kmsg.OffsetCommitRequestTopicPartition{part}, 300_000)}}
	x.wants("OffsetCommit of the same", x.do(at(8, plain)).(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode, protocol.CodeInvalidCommitOffsetSize)
	x.shows("after all that", 1, 0)
	x.unharmed("TxnOffsetCommit")
}

// TestTxnOffsetVerification: nothing is pending in a partition that the transaction's coordinator knows nothing of
// (KIP-890).
func TestTxnOffsetVerification(t *testing.T) {
	k := &testCoordinator{began: make(chan struct{}, 1000)}
	defer broker.SetVerifier(k.verify)()
	x := newTxnOffsets(t)
	const (
		loading = protocol.CodeCoordinatorLoadInProgress
		state   = protocol.CodeInvalidTxnState
		abort   = protocol.CodeTransactionAbortable
		epoch   = protocol.CodeInvalidProducerEpoch
	)
	id := int64(1000)
	for _, tc := range []struct{ says, v1, v3, v4, v5 int16 }{
		{0, 0, 0, 0, 0},
		{abort, state, state, abort, abort},
		{state, state, state, state, state},
		{protocol.CodeProducerFenced, epoch, epoch, epoch, epoch},
		{protocol.CodeInvalidProducerIDMapping, protocol.CodeInvalidProducerIDMapping, protocol.CodeInvalidProducerIDMapping,
			protocol.CodeInvalidProducerIDMapping, protocol.CodeInvalidProducerIDMapping},
		{protocol.CodeNotCoordinator, protocol.CodeCoordinatorNotAvailable, loading, loading, loading},
		{protocol.CodeCoordinatorNotAvailable, protocol.CodeCoordinatorNotAvailable, loading, loading, loading},
		{protocol.CodeConcurrentTransactions, protocol.CodeCoordinatorNotAvailable, loading, loading, loading},
	} {
		for version, want := range map[int16]int16{1: tc.v1, 3: tc.v3, 4: tc.v4, 5: tc.v5} {
			id++
			k.set(tc.says, nil)
			name := fmt.Sprintf("v%d, coordinator says %s", version, protocol.Name(tc.says))
			got := x.commitTxn(inTransaction(version, "g", id, 2, 50, "t"))
			x.wants(name, protocol.Name(got[0]), protocol.Name(want))
			asked := k.set(0, nil)
			if line := fmt.Sprintf("tx %d/2 %s[%d] add=%v", id, offsetsTopic, x.partition, version == 5); len(asked) == 0 || asked[0] != line {
				t.Errorf("%s: asked %q, expected %q", name, asked, line)
			}
			if want != 0 {
				x.shows(name, 1, 0)
				continue
			}
			x.shows(name, 1, protocol.CodeUnstableOffsetCommit)
			x.wants(name+", once more", x.commitTxn(inTransaction(version, "g", id, 2, 51, "t")), []int16{0})
			x.wants(name+", asked for what has begun", len(k.set(0, nil)), 0)
			x.ends(name, id, 2, false, 0)
		}
	}

	// The transaction ends while the coordinator is asked: what it says then is of the past.
	hold := make(chan struct{})
	for len(k.began) > 0 {
		<-k.began
	}
	k.set(0, hold)
	slow := dial(t, x.b)
	frame, n := slow.frame(inTransaction(3, "g", 1, 0, 60, "t"))
	slow.send(frame)
	<-k.began
	x.ends("marker while it is verified", 1, 0, false, 0)
	close(hold)
	body, err := slow.answer()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := decode(inTransaction(3, "g", 1, 0, 60, "t"), body, n)
	if err != nil {
		t.Fatal(err)
	}
	x.wants("verified before the marker", protocol.Name(resp.(*kmsg.TxnOffsetCommitResponse).Topics[0].Partitions[0].ErrorCode), protocol.Name(state))
	x.shows("verified before the marker", 1, 0)

	none := inTransaction(3, "g", 1, 0, 60, "t")
	none.TransactionalID = ""
	x.wants("no transactional id", x.commitTxn(none), []int16{protocol.CodeInvalidRequest})
	x.unharmed("verification")
}

// TestTxnOffsetsThroughPowerFailures: offsets committed plainly and in transactions, while the power fails at any moment.
// Whoever was not answered asks again; what a reader is told is always what the requests come to, one after the other.
func TestTxnOffsetsThroughPowerFailures(t *testing.T) {
	for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { txnOffsetsThroughPowerFailures(t, seed) })
	}
}

func txnOffsetsThroughPowerFailures(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 28))
	b := servertest.Start(t, servertest.Options{FS: vfs.NewMem(), Settings: map[string]string{
		unverified: "false", "offsets.topic.num.partitions": "1", "remote.flush.interval.ms": "100"}})
	x := &txnOffsets{bystander: newBystander(t, b)}
	b.CreateTopic("t", 1)
	b.CreateTopic("u", 1)
	x.commit("g", "t", 1)

	// send sends a request, perhaps for the power to fail with it, and asks until code accepts the answer.
	send := func(req kmsg.Request, code func(kmsg.Response) int16) {
		t.Helper()
		if rng.IntN(12) == 0 {
			frame, _ := x.frame(req)
			x.send(frame)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
			if err := b.PowerFailure(rng.Uint64(), nil); err != nil {
				t.Fatal(err)
			}
			x.client = dial(t, b)
		}
		servertest.Eventually(t, func() error {
			switch c := code(x.do(req)); c {
			case 0:
				return nil
			case protocol.CodeNotCoordinator, protocol.CodeCoordinatorNotAvailable, protocol.CodeCoordinatorLoadInProgress, protocol.CodeNotLeaderOrFollower,
				protocol.CodeUnknownTopicOrPartition:
				return fmt.Errorf("%T: %s", req, protocol.Name(c))
			default:
				t.Fatalf("%T: %s", req, protocol.Name(c))
				return nil
			}
		})
	}
	type place struct{ group, topic string }
	type value struct{ offset, at int64 }
	groups, topics := []string{"g", "h"}, []string{"t", "u"}
	committed, pending := map[place]value{{"g", "t"}: {1, 0}}, map[int64]map[place]value{}
	check := func(when string) {
		t.Helper()
		for _, g := range groups {
			for _, topic := range topics {
				want, ok := committed[place{g, topic}]
				if !ok {
					want.offset = -1
				}
				if got := x.committed(g, topic); got != want.offset {
					t.Fatalf("%s: %s of %s is at %d, expected %d", when, topic, g, got, want.offset)
				}
				unstable := int16(0)
				for _, ps := range pending {
					if _, ok := ps[place{g, topic}]; ok {
						unstable = protocol.CodeUnstableOffsetCommit
					}
				}
				if got, code := x.stableOffset(g, topic); code != unstable || code == 0 && got != want.offset {
					t.Fatalf("%s: %s of %s is at %d (%s), expected %d (%s)", when, topic, g, got, protocol.Name(code), want.offset, protocol.Name(unstable))
				}
			}
		}
	}
	for n := range int64(300) {
		g, topic, id := groups[rng.IntN(2)], topics[rng.IntN(2)], int64(rng.IntN(3))
		v := value{rng.Int64N(1000), n + 1}
		switch rng.IntN(6) {
		case 0, 1:
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Group, req.Generation = g, -1
			rt := kmsg.NewOffsetCommitRequestTopic()
			rt.Topic = topic
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Offset = v.offset
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			send(at(8, req), func(r kmsg.Response) int16 { return r.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode })
			committed[place{g, topic}] = v
		case 2, 3, 4:
			send(inTransaction(3, g, id, 0, v.offset, topics...), func(r kmsg.Response) int16 {
				return max(r.(*kmsg.TxnOffsetCommitResponse).Topics[0].Partitions[0].ErrorCode, r.(*kmsg.TxnOffsetCommitResponse).Topics[1].Partitions[0].ErrorCode)
			})
			if pending[id] == nil {
				pending[id] = map[place]value{}
			}
			for _, topic := range topics {
				pending[id][place{g, topic}] = v
			}
		case 5:
			commit := rng.IntN(3) > 0
			send(end(1, id, 0, commit, 0, 0, offsetsTopic, 0), func(r kmsg.Response) int16 {
				return r.(*kmsg.WriteTxnMarkersResponse).Markers[0].Topics[0].Partitions[0].ErrorCode
			})
			for p, v := range pending[id] {
				if commit && committed[p].at <= v.at {
					committed[p] = v
				}
			}
			delete(pending, id)
		}
		if rng.IntN(4) == 0 {
			check(fmt.Sprint("after ", n))
		}
	}
	check("in the end")
	x.unharmed("power failures")
}
