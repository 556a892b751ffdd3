package coordinator

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

func txnCommit(c *Coordinator, by group.Txn, g string, partition int32, offset int64) int16 {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.Generation = 9, g, -1
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = "t"
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return c.TxnOffsetCommit(bg, req, by, nil).Topics[0].Partitions[0].ErrorCode
}

func endTxn(c *Coordinator, by group.Txn, commit bool) int16 {
	done := make(chan int16, 1)
	c.WriteMarker(0, &group.EndTxn{By: by, Commit: commit, CoordinatorEpoch: 3}, func(code int16) { done <- code })
	return <-done
}

// fenced gives the log what a partition knows of producers.
func (l *memLog) fenced() {
	st := producer.New()
	l.check = func(run []byte) error {
		h, err := batch.ParseHeader(run)
		if err != nil {
			return err
		}
		if h.Control() {
			_, coordinatorEpoch, err := batch.ControlMarker(run)
			if err != nil {
				return err
			}
			if v := st.CheckMarker(h.ProducerID, h.ProducerEpoch, coordinatorEpoch, 1); v.Kind == producer.Refuse {
				return AppendFailed(v.Code)
			}
		} else if v := st.Check(h, 0); v.Kind == producer.Refuse {
			return AppendFailed(v.Code)
		}
		st.Apply(h, run)
		return nil
	}
}

// TestTxnBatches: what of a transaction is written, and that plain commits in between do not get into its batches.
func TestTxnBatches(t *testing.T) {
	log := newMemLog()
	log.fenced()
	c := one(t, log, Options{Codec: batch.Gzip})
	log.hold()
	codes := make(chan int16, 8)
	step := func(n int, f func() int16) {
		go func() { codes <- f() }()
		until(t, func() bool { return log.tried() == n })
	}
	step(1, func() int16 { return commit(c, "g", "", -1, 0, 1) })
	step(2, func() int16 { return txnCommit(c, group.Txn{ProducerID: 7, ProducerEpoch: 2}, "g", 0, 2) })
	step(3, func() int16 { return commit(c, "g", "", -1, 1, 3) })
	step(4, func() int16 { return endTxn(c, group.Txn{ProducerID: 7, ProducerEpoch: 2}, true) })
	if off, code := fetch(c, "g", 0, false); off != -1 || code != 0 {
		t.Fatalf("before anything is committed: %d, %d", off, code)
	}
	log.release()
	for range 4 {
		expect(t, "code", <-codes, 0)
	}
	type line struct {
		producer           int64
		epoch              int16
		seq                int32
		txn, control, gzip bool
	}
	var got []line
	for _, b := range log.batches[0] {
		h, err := batch.ParseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, line{h.ProducerID, h.ProducerEpoch, h.BaseSequence, h.Transactional(), h.Control(), h.Codec() == batch.Gzip})
	}
	want := []line{{-1, -1, -1, false, false, true}, {7, 2, -1, true, false, true}, {-1, -1, -1, false, false, true}, {7, 2, -1, true, true, false}}
	if !slices.Equal(got, want) {
		t.Errorf("batches %+v,\nwant %+v", got, want)
	}
	if m := batch.Marker(7, 2, true, 3, 0); !bytes.Equal(m[batch.HeaderSize:], log.batches[0][3][batch.HeaderSize:]) {
		t.Error("the marker's record is not that of every other marker")
	}
	off, _ := fetch(c, "g", 0, true)
	expect(t, "offset", off, 2)
}

// TestTxnStable: what is pending is said to be, and what is refused is told as what it is.
func TestTxnStable(t *testing.T) {
	log := newMemLog()
	log.fenced()
	c := one(t, log, Options{})
	p := group.Txn{ProducerID: 7, ProducerEpoch: 1}
	expect(t, "plain commit", commit(c, "g", "", -1, 0, 1), 0)
	expect(t, "commit", txnCommit(c, p, "g", 0, 2), 0)
	stable := func() (int64, int16) {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Version, req.RequireStable, req.Group = 7, true, "g"
		req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0}}}
		r := c.OffsetFetch(bg, req)
		expect(t, "group's code", r.ErrorCode, 0)
		return r.Topics[0].Partitions[0].Offset, r.Topics[0].Partitions[0].ErrorCode
	}
	off, code := stable()
	expect(t, "offset while pending", off, -1)
	expect(t, "code while pending", code, protocol.CodeUnstableOffsetCommit)
	off, _ = fetch(c, "g", 0, false)
	expect(t, "offset for who does not mind", off, 1)
	until(t, func() bool { st := c.Stats(); return st.Pending == 1 && st.Txns == 1 })
	expect(t, "an earlier epoch", txnCommit(c, group.Txn{ProducerID: 7}, "g", 0, 3), protocol.CodeInvalidProducerEpoch)
	expect(t, "no producer", txnCommit(c, group.Txn{ProducerID: -1}, "g", 0, 3), protocol.CodeInvalidProducerIDMapping)
	expect(t, "no group", txnCommit(c, p, "", 0, 3), protocol.CodeInvalidGroupID)
	expect(t, "abort in the next epoch", endTxn(c, group.Txn{ProducerID: 7, ProducerEpoch: 2}, false), 0)
	off, code = stable()
	expect(t, "offset after the abort", off, 1)
	expect(t, "code after the abort", code, 0)
	// The partition refuses the zombie; nothing that the groups know does.
	expect(t, "a zombie", txnCommit(c, p, "g", 0, 9), protocol.CodeInvalidProducerEpoch)
	expect(t, "a zombie's marker", endTxn(c, p, true), protocol.CodeInvalidProducerEpoch)
	expect(t, "a marker again", endTxn(c, group.Txn{ProducerID: 7, ProducerEpoch: 2}, false), 0)
	off, code = stable()
	expect(t, "offset at the end", off, 1)
	expect(t, "code at the end", code, 0)
}

// TestTxnAcrossElections: what is pending outlives the coordinator, and the marker finds it.
func TestTxnAcrossElections(t *testing.T) {
	log := newMemLog()
	c := one(t, log, Options{})
	p := group.Txn{ProducerID: 7}
	expect(t, "commit", txnCommit(c, p, "g", 0, 2), 0)
	c.Resigned(0)
	expect(t, "marker for nobody", endTxn(c, p, true), protocol.CodeNotCoordinator)
	c.Elected(0, 2)
	until(t, func() bool { return c.Ready(0) })
	until(t, func() bool { return c.Stats().Pending == 1 })
	off, _ := fetch(c, "g", 0, false)
	expect(t, "offset before the marker", off, -1)
	expect(t, "marker", endTxn(c, p, true), 0)
	// The log has both now; and once more, for a marker whose answer was lost.
	for epoch := int32(3); epoch < 6; epoch += 2 {
		c.Elected(0, epoch+1) // not the next one: loaded again
		until(t, func() bool { return c.Ready(0) })
		off, _ = fetch(c, "g", 0, true)
		expect(t, "offset after the marker", off, 2)
		expect(t, "marker again", endTxn(c, p, true), 0)
	}
	log.hold()
	res, tried := make(chan int16, 2), log.tried()
	go func() { res <- txnCommit(c, p, "g", 0, 3) }()
	until(t, func() bool { return log.tried() > tried && c.Stats().Writing == 1 })
	go func() { res <- endTxn(c, p, true) }()
	until(t, func() bool { return c.Stats().Writing == 2 })
	c.Resigned(0) // both are in the log, and nobody is told
	expect(t, "told", <-res, protocol.CodeNotCoordinator)
	expect(t, "told", <-res, protocol.CodeNotCoordinator)
	log.release()
	c.Elected(0, 9)
	until(t, func() bool { return c.Ready(0) })
	off, _ = fetch(c, "g", 0, true)
	expect(t, "offset of who was not told", off, 3)
}

// TestToldInAnyOrder: what the log has is taken over in the log's order, whatever order it tells of it in.
func TestToldInAnyOrder(t *testing.T) {
	log := newMemLog()
	c := one(t, log, Options{})
	p := group.Txn{ProducerID: 7}
	log.hold()
	codes := make(chan int16, 4)
	for i, f := range []func() int16{
		func() int16 { return commit(c, "g", "", -1, 0, 1) },
		func() int16 { return txnCommit(c, p, "g", 0, 2) },
		func() int16 { return endTxn(c, p, true) },
		func() int16 { return commit(c, "g", "", -1, 1, 3) },
	} {
		go func() { codes <- f() }()
		until(t, func() bool { return log.tried() == i+1 })
	}
	log.releaseIn(slices.Reverse[[]func()])
	for range 4 {
		expect(t, "code", <-codes, 0)
	}
	for p, want := range []int64{2, 3} {
		off, code := fetch(c, "g", int32(p), true)
		expect(t, "code", code, 0)
		expect(t, "offset", off, want)
	}
	until(t, func() bool { return c.Stats().Pending == 0 })
}

// TestTxnFull: a transaction takes memory until it ends, whichever groups it is about.
func TestTxnFull(t *testing.T) {
	c := one(t, newMemLog(), Options{MaxBytes: 2000})
	p := group.Txn{ProducerID: 7}
	refused := 0
	for i := range int32(100) {
		switch code := txnCommit(c, p, "g", i, 1); code {
		case 0:
		case protocol.CodeCoordinatorNotAvailable:
			refused++
		default:
			t.Fatal(code)
		}
	}
	if refused < 80 {
		t.Errorf("%d of 100 were refused, with %+v", refused, c.Stats())
	}
	expect(t, "marker", endTxn(c, p, false), 0)
	until(t, func() bool { return txnCommit(c, p, "g", 0, 1) == 0 })
}

// TestTxnStorm: producers commit in transactions of two partitions each, which end one way or the other, over a log that
// fails now and then, while the coordinator is elected again and again. A reader never sees one partition of a transaction
// without the other, and in the end everything is as the producers were told.
func TestTxnStorm(t *testing.T) {
	log := newMemLog()
	log.fenced()
	rnd := rand.New(rand.NewPCG(1, 28))
	var mu sync.Mutex
	log.failWith(func(int32) error {
		mu.Lock()
		defer mu.Unlock()
		if rnd.IntN(10) == 0 {
			return AppendFailed(protocol.CodeNotEnoughReplicas)
		}
		return nil
	})
	c := one(t, log, Options{})
	const producers, rounds = 8, 60
	again := func(f func() int16) int16 {
		for {
			switch code := f(); code {
			case protocol.CodeCoordinatorNotAvailable, protocol.CodeCoordinatorLoadInProgress, protocol.CodeNotCoordinator:
				time.Sleep(time.Millisecond)
			default:
				return code
			}
		}
	}
	want := make([]int64, producers)
	var wg, readers sync.WaitGroup
	stop := make(chan struct{})
	for i := range producers {
		want[i] = -1
		wg.Go(func() {
			g := fmt.Sprint("g", i%3)
			by := group.Txn{ProducerID: int64(i)}
			a, b := int32(2*i), int32(2*i+1)
			for n := range int64(rounds) {
				for _, p := range []int32{a, b} {
					if code := again(func() int16 { return txnCommit(c, by, g, p, n) }); code != 0 {
						t.Errorf("commit: %d", code)
					}
				}
				commit := (n+int64(i))%3 != 0
				if code := again(func() int16 { return endTxn(c, by, commit) }); code != 0 {
					t.Errorf("marker: %d", code)
				}
				if commit {
					want[i] = n
				}
			}
		})
		readers.Go(func() {
			last := int64(-1)
			for {
				select {
				case <-stop:
					return
				default:
				}
				req := kmsg.NewPtrOffsetFetchRequest()
				req.Version, req.Group = 7, fmt.Sprint("g", i%3)
				req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{int32(2 * i), int32(2*i + 1)}}}
				r := c.OffsetFetch(bg, req)
				if r.ErrorCode != 0 {
					continue
				}
				x, y := r.Topics[0].Partitions[0].Offset, r.Topics[0].Partitions[1].Offset
				if x != y || x < last || x >= 0 && (x+int64(i))%3 == 0 {
					t.Errorf("producer %d: %d and %d after %d", i, x, y, last)
					return
				}
				last = x
			}
		})
	}
	wg.Go(func() {
		for epoch := int32(2); epoch < 12; epoch += 2 {
			time.Sleep(5 * time.Millisecond)
			c.Elected(0, epoch+1)
		}
	})
	wg.Wait()
	close(stop)
	readers.Wait()
	for range 2 {
		for i := range producers {
			off, code := fetch(c, fmt.Sprint("g", i%3), int32(2*i), true)
			expect(t, "code", code, 0)
			expect(t, fmt.Sprint("offset of ", i), off, want[i])
		}
		c.Elected(0, 100)
		until(t, func() bool { return c.Ready(0) })
	}
}
