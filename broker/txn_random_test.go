package broker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/vfs"
)

// txnWorld is a broker, several producers, and what a reader of committed records
// has to see of them.
type txnWorld struct {
	t   *testing.T
	rng *rand.Rand
	b   *servertest.Broker
	y   *client

	parts     []*txnPart
	producers []*txnProducer
	values    int
}

type txnPart struct {
	topic   string
	index   int32
	end     int64
	records []txnRecord
}

type txnRecord struct {
	seen
	txn *txnOf // nil: in none
}

// txnOf is one transaction.
type txnOf struct {
	producer  *txnProducer
	ended     bool
	committed bool
	first     map[*txnPart]int64
}

type txnProducer struct {
	id    int64
	epoch int16
	seq   map[*txnPart]int32
	bumps bool // transaction version 2
	hangs bool
	txn   *txnOf
}

func (w *txnWorld) connect() {
	w.t.Helper()
	w.y = dial(w.t, w.b)
	for _, p := range w.parts {
		servertest.Eventually(w.t, func() error {
			if r := w.y.listOffset(p.topic, p.index, -1); r.ErrorCode != 0 {
				return fmt.Errorf("%s-%d: %s", p.topic, p.index, protocol.Name(r.ErrorCode))
			}
			return nil
		})
	}
}

// cut ends the broker as a power failure would, in the middle of a request, and
// starts another on what is left.
func (w *txnWorld) cut(frame []byte) {
	w.t.Helper()
	w.y.send(frame)
	time.Sleep(time.Duration(w.rng.IntN(3000)) * time.Microsecond)
	if err := w.b.PowerFailure(w.rng.Uint64(), nil); err != nil {
		w.t.Fatal(err)
	}
	w.connect()
}

func (w *txnWorld) restart() {
	w.t.Helper()
	if err := w.b.Restart(nil); err != nil {
		w.t.Fatal(err)
	}
	w.connect()
}

// produce sends a batch of a producer, or of none, until it is acknowledged.
func (w *txnWorld) produce(x *txnProducer, p *txnPart, cut bool) {
	w.t.Helper()
	n := 1 + w.rng.IntN(3)
	s := plain(0)
	var values []string
	for range n {
		w.values++
		values = append(values, fmt.Sprintf("%d %s", w.values, strings.Repeat("x", w.rng.IntN(3000))))
		s.Add(time.Now().UnixMilli(), nil, []byte(values[len(values)-1]))
	}
	req := produceReq(9, -1, p.topic, p.index, nil)
	if x != nil {
		if x.txn == nil {
			x.txn = &txnOf{producer: x, first: map[*txnPart]int64{}}
		}
		s.ProducerID, s.ProducerEpoch, s.BaseSequence, s.Transactional = x.id, x.epoch, x.seq[p], true
		x.seq[p] += int32(n)
		version := int16(11)
		if x.bumps {
			version = 12
		}
		req = txnReq(version, p.topic, p.index, nil)
	} else {
		cut = false // sent again it would be there twice, and rightly
	}
	req.Topics[0].Partitions[0].Records = s.bytes()
	if cut {
		f, _ := w.y.frame(req)
		w.cut(f)
	}
	got := w.y.do(req).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	if got.ErrorCode != 0 || got.BaseOffset != p.end {
		w.t.Fatalf("produce to %s-%d: %s at %d, expected %d", p.topic, p.index, describe(got), got.BaseOffset, p.end)
	}
	var txn *txnOf
	if x != nil {
		txn = x.txn
		if _, ok := txn.first[p]; !ok {
			txn.first[p] = p.end
		}
	}
	for _, v := range values {
		p.records = append(p.records, txnRecord{seen{p.end, v}, txn})
		p.end++
	}
}

// finish ends the transaction of a producer.
func (w *txnWorld) finish(x *txnProducer, commit, cut bool) {
	w.t.Helper()
	epoch, version := x.epoch, int8(0)
	if x.bumps {
		epoch, version = epoch+1, 2
	}
	byTopic := map[string][]int32{}
	var topics []string
	for _, p := range w.parts {
		if _, ok := x.txn.first[p]; ok {
			if byTopic[p.topic] == nil {
				topics = append(topics, p.topic)
			}
			byTopic[p.topic] = append(byTopic[p.topic], p.index)
		}
	}
	req := end(2, x.id, epoch, commit, 0, version, topics[0], byTopic[topics[0]]...)
	for _, topic := range topics[1:] {
		req.Markers[0].Topics = append(req.Markers[0].Topics, end(2, 0, 0, commit, 0, 0, topic, byTopic[topic]...).Markers[0].Topics[0])
	}
	if cut {
		f, _ := w.y.frame(req)
		w.cut(f)
	}
	for _, topic := range w.y.do(req).(*kmsg.WriteTxnMarkersResponse).Markers[0].Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				w.t.Fatalf("marker to %s-%d: %s", topic.Topic, p.Partition, protocol.Name(p.ErrorCode))
			}
		}
	}
	for p := range x.txn.first {
		markers := w.y.latest(p.topic, p.index) - p.end
		if markers != 1 && !(cut && markers == 2) {
			w.t.Fatalf("%d markers in %s-%d", markers, p.topic, p.index)
		}
		p.end += markers
	}
	x.txn.ended, x.txn.committed = true, commit
	x.txn = nil
	if x.bumps {
		x.epoch++
		clear(x.seq)
	}
}

// stable is where the first open transaction of a partition began.
func (w *txnWorld) stable(p *txnPart) int64 {
	lso := p.end
	for _, x := range w.producers {
		if x.txn != nil {
			if first, ok := x.txn.first[p]; ok {
				lso = min(lso, first)
			}
		}
	}
	return lso
}

// expected is what a reader of committed records sees from an offset on.
func (w *txnWorld) expected(p *txnPart, from int64) (out []seen) {
	lso := w.stable(p)
	for _, r := range p.records {
		if r.offset >= from && r.offset < lso && (r.txn == nil || r.txn.committed) {
			out = append(out, r.seen)
		}
	}
	return out
}

func (w *txnWorld) check(when string) {
	w.t.Helper()
	for _, p := range w.parts {
		lso := w.stable(p)
		if got := w.y.stable(p.topic, p.index); got != lso {
			w.t.Fatalf("%s: last stable offset %d of %s-%d, expected %d", when, got, p.topic, p.index, lso)
		}
		for i := range 3 {
			from := int64(0)
			if i > 0 && lso > 0 {
				from = w.rng.Int64N(lso)
			}
			got, next := w.y.readCommitted(p.topic, p.index, from, []int32{1, 2000, 1 << 20}[w.rng.IntN(3)])
			if want := w.expected(p, from); !slices.Equal(got, want) || next < lso {
				w.t.Fatalf("%s: %s-%d from %d to %d of %d:\n%v\nexpected\n%v", when, p.topic, p.index, from, next, lso, brief(got), brief(want))
			}
		}
	}
}

func brief(list []seen) (out []string) {
	for _, x := range list {
		value, _, _ := strings.Cut(x.value, " ")
		out = append(out, fmt.Sprintf("%d:%s", x.offset, value))
	}
	return out
}

// TestRandomTransactions interleaves producers that commit, abort and hang with
// restarts and power failures, while what they write goes to the bucket and the
// local log lets go of it. A reader of committed records sees every committed
// record once and no other, wherever the pieces of a transaction are; in the end
// with nothing in the local log, with no local log at all, and when those that
// hung are ended at last. VARVE_TEST_SEED repeats a run, VARVE_LONG makes more.
func TestRandomTransactions(t *testing.T) {
	defer broker.SetVerifier(func(_ context.Context, _ string, _ int64, _ int16, topics []kmsg.AddPartitionsToTxnRequestTransactionTopic, _ bool) [][]int16 {
		codes := make([][]int16, len(topics))
		for i, t := range topics {
			codes[i] = make([]int16, len(t.Partitions))
		}
		return codes
	})()
	seeds := []uint64{1, uint64(time.Now().UnixNano())}
	if os.Getenv("VARVE_LONG") != "" {
		for range 20 {
			seeds = append(seeds, rand.Uint64())
		}
	}
	if s := os.Getenv("VARVE_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("VARVE_TEST_SEED=%d", seed), func(t *testing.T) { randomTransactions(t, seed) })
	}
}

func randomTransactions(t *testing.T, seed uint64) {
	w := &txnWorld{t: t, rng: rand.New(rand.NewPCG(seed, 5))}
	w.b = servertest.Start(t, servertest.Options{FS: vfs.NewMem(), Settings: map[string]string{
		"remote.flush.interval.ms": "100", "wal.segment.bytes": "1048576", "offsets.topic.num.partitions": "1",
	}})
	w.b.CreateTopic("hot", 2)
	w.b.CreateTopic("cold", 2, "local.retention.bytes", "1")
	for i := range int32(2) {
		w.parts = append(w.parts, &txnPart{topic: "hot", index: i}, &txnPart{topic: "cold", index: i})
	}
	w.connect()
	for i := range 6 {
		w.producers = append(w.producers, &txnProducer{id: int64(1000 + i), seq: map[*txnPart]int32{}, bumps: i%2 == 0, hangs: i >= 4})
	}
	hangFrom := 60 + w.rng.IntN(60)
	for op := range 240 {
		x, p := w.producers[w.rng.IntN(len(w.producers))], w.parts[w.rng.IntN(len(w.parts))]
		cut := w.rng.IntN(60) == 0
		switch n := w.rng.IntN(20); {
		case n == 0:
			w.produce(nil, p, false)
		case x.txn != nil && n < 6 && !(x.hangs && op > hangFrom):
			w.finish(x, w.rng.IntN(2) == 0, cut)
		default:
			w.produce(x, p, cut)
		}
		switch w.rng.IntN(60) {
		case 0:
			w.restart()
		case 1:
			w.b.Remote("cold", true)
		case 2, 3, 4:
			w.check(fmt.Sprintf("after %d", op))
		case 5, 6, 7:
			time.Sleep(time.Duration(w.rng.IntN(60)) * time.Millisecond)
		}
	}
	for _, x := range w.producers {
		if x.hangs && x.txn == nil {
			w.produce(x, w.parts[0], false)
			w.produce(x, w.parts[1], false)
		} else if !x.hangs && x.txn != nil {
			w.finish(x, true, false)
		}
	}
	for _, p := range w.parts {
		w.produce(nil, p, false) // above those that hang
	}
	w.check("with transactions that hang")
	// They hold up readers and nothing else.
	if codes := w.y.alter(false, alteration{topicResource, "hot", []op{{"local.retention.bytes", kmsg.IncrementalAlterConfigOpSet, "1"}}}); codes[0] != 0 {
		t.Fatal(protocol.Name(codes[0]))
	}
	w.b.Remote("hot", true)
	w.b.Remote("cold", true)
	w.check("from objects alone")
	w.restart()
	w.check("from objects alone, after a restart")
	if err := w.b.RestartOn(vfs.NewMem()); err != nil {
		t.Fatal(err)
	}
	w.connect()
	w.check("without the local log")
	for i, x := range w.producers {
		if x.txn != nil {
			w.produce(x, w.parts[1], false) // it goes on where it was
			w.finish(x, i%2 == 0, false)
		}
	}
	w.check("when those that hung have ended")
	w.b.Remote("hot", true)
	w.b.Remote("cold", true)
	w.check("from objects alone, in the end")
	for _, p := range w.parts {
		w.produce(nil, p, false) // the last that a reader waits for
		want := w.expected(p, 0)
		cl := w.b.Client(kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{p.topic: {p.index: kgo.NewOffset().AtStart()}}))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		var got []seen
		for len(got) == 0 || got[len(got)-1].offset < p.end-1 {
			f := cl.PollFetches(ctx)
			if err := f.Err(); err != nil {
				t.Fatalf("%s-%d after %d records of %d: %v", p.topic, p.index, len(got), len(want), err)
			}
			f.EachRecord(func(r *kgo.Record) { got = append(got, seen{r.Offset, string(r.Value)}) })
		}
		cancel()
		if !slices.Equal(got, want) {
			t.Fatalf("%s-%d, franz-go:\n%v\nexpected\n%v", p.topic, p.index, brief(got), brief(want))
		}
	}
}
