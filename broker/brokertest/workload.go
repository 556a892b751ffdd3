package brokertest

import (
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
)

// workload is what clients do, and the history of what they were told:
//
//	idempotent producers ------> in  --> a processor for each partition --> out
//	producers without acks ---->         a reader that commits its offsets
//	                                     a group with members that come and go (features)
//	transactional producers ---> txn, kept, short
//	an idempotent producer ----> one (a topic with a single replica)
//	                       ----> kept (compacted), short (records are deleted), gone (the topic is)
//
// and readers in every zone that read all of it along, from leaders and followers.
type workload struct {
	c          *Cluster
	partitions int32
	features   features

	mu      sync.Mutex
	clock   int64
	h       history.History
	clients int
	marks   map[term]int64              // the highest high watermark that a leader has told in an epoch
	remote  map[term]int64              // the remote end that was committed in an epoch
	ends    map[history.Partition]int64 // behind the last record that was acknowledged by all in-sync replicas
	epochs  map[history.Partition]int32 // the leader epoch in etcd
	deleted deletions
	gone    incarnations
	naming  naming
	owners  owners

	feeds, groups, reads        atomic.Bool // whether producers, then groups, then readers are to end
	producing, grouped, reading sync.WaitGroup
}

type term struct {
	p     history.Partition
	epoch int32
}

const (
	topicIn, topicOut, topicTxn, topicOne = "in", "out", "txn", "one"
	topicKept, topicShort, topicGone      = "kept", "short", "gone"
	processGroup, readerGroup             = "process", "readers"
)

func newWorkload(c *Cluster, partitions int32, f features) *workload {
	w := &workload{c: c, partitions: partitions, features: f, h: history.History{
		Txns: map[string]*history.Txn{}, Derived: []history.Derived{{In: topicIn, Out: topicOut, Producer: processGroup}},
	}, marks: map[term]int64{}, remote: map[term]int64{}, ends: map[history.Partition]int64{}, epochs: map[history.Partition]int32{},
		deleted: newDeletions(), owners: newOwners(), naming: newNaming()}
	if f.has(compacted) {
		w.h.Compacted = []string{topicKept, "__consumer_offsets", "__transaction_state"}
	}
	return w
}

func (w *workload) brokers() int32 { return int32(len(w.c.nodes)) }

func (w *workload) all(topics ...string) (list []history.Partition) {
	for _, t := range topics {
		for i := range w.partitions {
			list = append(list, history.Partition{Topic: t, Index: i})
		}
	}
	return list
}

// now counts up. Called with mu held.
func (w *workload) now() int64 {
	w.clock++
	return w.clock
}

func (w *workload) time() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now()
}

func (w *workload) reader(r history.Reader) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.h.Readers = append(w.h.Readers, r)
	return len(w.h.Readers) - 1
}

// sent notes records that are about to be sent, and returns where the first is noted.
func (w *workload) sent(p history.Partition, records []history.Record) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := len(w.h.Produces)
	for _, r := range records {
		w.h.Produces = append(w.h.Produces, history.Produce{Partition: p, Record: r, Offset: -1})
	}
	return at
}

// acked notes that a batch is acknowledged by all in-sync replicas.
func (w *workload) acked(p history.Partition, b pendingBatch, base int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range b.n {
		w.h.Produces[b.at+i].Outcome, w.h.Produces[b.at+i].Offset = history.Done, base+int64(i)
	}
	w.ends[p] = max(w.ends[p], base+int64(b.n))
	if p.Topic == topicShort {
		w.deleted.there[p] = append(w.deleted.there[p], stamp{base, base + int64(b.n), b.made})
	}
}

// shown notes what a reader was shown; final readers know of leader epochs and batches.
func (w *workload) shown(reader int, f fetched, final bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, i := w.now(), 0
	for _, r := range f.records {
		rd := history.Read{Partition: history.Partition{Topic: r.Topic, Index: r.Partition}, Record: parse(r), Reader: reader, At: now, Offset: r.Offset, Epoch: -1}
		if final {
			for f.sums[i].Last < r.Offset {
				i++
			}
			rd.Epoch, rd.Batch = r.LeaderEpoch, f.sums[i].Sum
		}
		w.h.Reads = append(w.h.Reads, rd)
	}
}

// floor is what a leader of an epoch may not tell a high watermark below, from now on.
func (w *workload) floor(p history.Partition, epoch int32) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	floor := w.marks[term{p, epoch}]
	for t, end := range w.remote {
		if t.p == p && t.epoch <= epoch {
			floor = max(floor, end)
		}
	}
	return floor
}

// told checks a leader's high watermark (I3).
func (w *workload) told(who string, p history.Partition, epoch int32, floor int64, f fetched) {
	if f.hw < floor {
		w.c.fail("I3: %s: %s-%d: the high watermark of epoch %d is %d, it was %d or objects were committed up to there", who, p.Topic, p.Index, epoch, f.hw, floor)
	}
	if f.lso > f.hw {
		w.c.fail("%s: %s-%d: last stable offset %d, high watermark %d", who, p.Topic, p.Index, f.lso, f.hw)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marks[term{p, epoch}] = max(w.marks[term{p, epoch}], f.hw)
}

func (w *workload) start(one bool) {
	for i := range 2 {
		w.producing.Go(func() { w.produce(fmt.Sprintf("p%d", i), w.all(topicIn)) })
		w.producing.Go(func() { w.transact(i) })
	}
	if one {
		w.producing.Go(func() { w.produce("p-one", []history.Partition{{Topic: topicOne, Index: 0}}) })
	}
	if w.features.has(compacted) {
		w.producing.Go(func() { w.produce("p-kept", w.all(topicKept)) })
	}
	if w.features.has(retained) {
		w.producing.Go(func() { w.produce("p-short", w.all(topicShort)) })
		w.producing.Go(w.deleteRecords)
	}
	if w.features.has(renewed) {
		w.producing.Go(w.renew)
		w.reading.Go(w.readRenewed)
	}
	if w.features.has(crowded) {
		for i := range 3 {
			w.producing.Go(func() { w.greedy(i) })
		}
	}
	for i := range groupMembers {
		if w.features.has(classic) {
			w.grouped.Go(func() { w.classicMember(i) })
		}
		if w.features.has(consumer) {
			w.grouped.Go(func() { w.consumerMember(i) })
		}
	}
	w.producing.Go(w.loose)
	for i := range w.partitions {
		w.grouped.Go(func() { w.process(history.Partition{Topic: topicIn, Index: i}) })
	}
	w.grouped.Go(w.member)
	w.reading.Go(w.askOffsets)
	for i := range 3 {
		w.reading.Go(func() { w.readAlong(i) })
	}
}

// records draws some records of a producer for a partition; those of the compacted topic have keys.
func (k *client) records(p history.Partition, producer, txn string, next *int64) (records []history.Record, out []kmsg.Record) {
	size := 40 + k.rnd.IntN(400)
	if k.rnd.IntN(6) == 0 {
		size = 4000 + k.rnd.IntN(24000)
	}
	for range 1 + k.rnd.IntN(4) {
		r := history.Record{Producer: producer, Number: *next, Txn: txn}
		*next++
		if p.Topic == topicKept {
			r.Key, r.Tombstone = fmt.Sprintf("key-%d", k.rnd.IntN(keys)), k.rnd.IntN(8) == 0
			out = append(out, keyed(&r, size))
		} else {
			out = append(out, plain(&r, size))
		}
		records = append(records, r)
	}
	return records, out
}

// plain is a record without a key, with its checksum.
func plain(r *history.Record, size int) kmsg.Record {
	v := message(*r, size)
	r.Sum = crc32.ChecksumIEEE(v)
	return kmsg.Record{Value: v}
}

// keys is how many a partition of the compacted topic has.
const keys = 12

// initProducer takes a producer id and epoch.
func (k *client) initProducer(txn *string, over *atomic.Bool) (pid int64, epoch int16, ok bool) {
	for !over.Load() {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.Version, req.TransactionalID, req.TransactionTimeoutMillis = 4, txn, 6000
		req.ProducerID, req.ProducerEpoch = -1, -1
		var resp kmsg.Response
		var err error
		code := func(r kmsg.Response) int16 { return r.(*kmsg.InitProducerIDResponse).ErrorCode }
		if txn == nil {
			if resp, err = k.ask(k.anyBroker(), req); err == nil {
				err = kerr.ErrorForCode(code(resp))
			}
		} else {
			resp, err = k.askCoordinator(1, *txn, req, code)
		}
		if err == nil {
			r := resp.(*kmsg.InitProducerIDResponse)
			return r.ProducerID, r.ProducerEpoch, true
		}
		k.pause()
	}
	return 0, 0, false
}

// pendingBatch is a batch on its way.
type pendingBatch struct {
	at, n int // of the history's produces
	bytes []byte
	made  int64 // ms: the timestamp of its records
}

// produce is an idempotent producer until all are to end.
func (w *workload) produce(name string, partitions []history.Partition) {
	w.produceUntil(name, partitions, &w.feeds)
}

// produceUntil is an idempotent producer: it has up to four batches of a partition on their way, and sends what was not
// acknowledged again, in order.
func (w *workload) produceUntil(name string, partitions []history.Partition, over *atomic.Bool) {
	k := w.client(name)
	defer k.close()
	if over != &w.feeds {
		k.over = over
	}
	next := make([]int64, len(partitions))
	for session := 0; !over.Load(); session++ {
		producer := fmt.Sprintf("%s.%d", name, session)
		pid, epoch, ok := k.initProducer(nil, over)
		if !ok {
			return
		}
		seq := make([]int32, len(partitions))
		for i := 0; !over.Load() && i < 60; i++ {
			at := k.rnd.IntN(len(partitions))
			p := partitions[at]
			var batches []pendingBatch
			for range 1 + k.rnd.IntN(4) {
				records, out := k.records(p, producer, "", &next[at])
				batches = append(batches, pendingBatch{w.sent(p, records), len(records), batchOf(out, pid, epoch, seq[at], false), time.Now().UnixMilli()})
				seq[at] += int32(len(records))
			}
			if !k.deliver(9, p, nil, batches) {
				break
			}
			time.Sleep(time.Duration(k.rnd.IntN(200)) * time.Millisecond)
		}
	}
}

// deliver sends batches until all are acknowledged. False: the producer has to begin anew.
func (k *client) deliver(version int16, p history.Partition, txn *string, batches []pendingBatch) bool {
	w := k.w
	for patience := time.Now().Add(40 * time.Second); len(batches) > 0; {
		if time.Now().After(patience) || k.over != nil && k.over.Load() {
			return false // unless all is well that is no mistake; then it is found elsewhere
		}
		l, ok := k.leader(p)
		if !ok {
			k.pause()
			continue
		}
		var reqs []kmsg.Request
		for _, b := range batches {
			reqs = append(reqs, produceRequest(version, p, txn, -1, b.bytes))
		}
		answers, err := k.askAll(l.id, reqs)
		var left []pendingBatch
		for i, b := range batches {
			if i >= len(answers) {
				left = append(left, b)
				continue
			}
			base, e := produced(answers[i])
			switch {
			case e == nil:
				w.acked(p, b, base)
				continue
			case errors.Is(e, kerr.OutOfOrderSequenceNumber) && len(left) > 0:
				// The one before it did not get through: it is sent again behind that.
			case errors.Is(e, kerr.OutOfOrderSequenceNumber), errors.Is(e, kerr.DuplicateSequenceNumber), errors.Is(e, kerr.UnknownProducerID):
				w.c.fail("I10: %s: %s-%d: all batches before were acknowledged, and the next is refused: %v", k.name, p.Topic, p.Index, e)
				return false
			case !retriable(e):
				return false
			}
			left = append(left, b)
			err = e
		}
		if batches = left; len(batches) > 0 {
			if err != nil {
				k.forget(p)
			}
			k.pause()
		}
	}
	return true
}

// loose produces without identity and has at most the leader acknowledge: what becomes of it is open, and makes the
// logs of leaders and followers part.
func (w *workload) loose() {
	k := w.client("loose")
	defer k.close()
	next := int64(0)
	for !w.feeds.Load() {
		p := history.Partition{Topic: topicIn, Index: k.rnd.Int32N(w.partitions)}
		if l, ok := k.leader(p); ok {
			records, out := k.records(p, "loose", "", &next)
			w.sent(p, records)
			resp, err := k.ask(l.id, produceRequest(9, p, nil, 1, batchOf(out, -1, -1, -1, false)))
			if err == nil {
				_, err = produced(resp)
			}
			if err != nil {
				k.forget(p)
			}
		}
		time.Sleep(time.Duration(k.rnd.IntN(250)) * time.Millisecond)
	}
}

// transact has transactions of some partitions committed, aborted, or left open. Half of the producers put partitions
// into a transaction by producing to them (KIP-890).
func (w *workload) transact(i int) {
	id := fmt.Sprintf("t%d", i)
	k := w.client(id)
	defer k.close()
	next := map[history.Partition]*int64{}
	for _, p := range w.all(topicTxn, topicKept, topicShort) {
		next[p] = new(int64)
	}
	for n := 0; !w.feeds.Load(); {
		pid, epoch, ok := k.initProducer(&id, &w.feeds)
		if !ok {
			return
		}
		s := &session{k: k, id: id, pid: pid, epoch: epoch, implicit: i%2 == 1, seq: map[history.Partition]int32{}}
		for good := true; good && !w.feeds.Load(); {
			n++
			good = w.transaction(s, fmt.Sprintf("%s.%d", id, n), next)
			time.Sleep(time.Duration(k.rnd.IntN(250)) * time.Millisecond)
		}
	}
}

// session is a transactional producer between two InitProducerIds.
type session struct {
	k        *client
	id       string
	pid      int64
	epoch    int16
	implicit bool
	seq      map[history.Partition]int32
	in       map[history.Partition]bool // the transaction
}

// transaction is one; false: the producer has to begin anew.
func (w *workload) transaction(s *session, txn string, next map[history.Partition]*int64) bool {
	s.begin(txn)
	for range 1 + s.k.rnd.IntN(5) {
		p := history.Partition{Topic: topicTxn, Index: s.k.rnd.Int32N(w.partitions)}
		switch n := s.k.rnd.IntN(3); {
		case n == 0 && w.features.has(compacted):
			p.Topic = topicKept
		case n == 1 && w.features.has(retained):
			p.Topic = topicShort
		}
		records, out := s.k.records(p, s.id, txn, next[p])
		if !s.send(p, records, out) {
			w.ended(txn, history.Not) // nobody has asked for its commit
			return false
		}
		if s.k.rnd.IntN(4) == 0 {
			time.Sleep(time.Duration(s.k.rnd.IntN(200)) * time.Millisecond)
		}
	}
	switch how := s.k.rnd.IntN(20); {
	case how == 0: // it is left open: the next InitProducerId aborts it, or its time is over
		w.ended(txn, history.Not)
		time.Sleep(time.Duration(s.k.rnd.IntN(8000)) * time.Millisecond)
		return false
	case how < 6:
		w.ended(txn, history.Not)
		return s.end(txn, false)
	}
	return s.end(txn, true)
}

func (w *workload) ended(txn string, o history.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.h.Txns[txn].Outcome = o
}

func (s *session) begin(txn string) {
	s.in = map[history.Partition]bool{}
	w := s.k.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.h.Txns[txn] = &history.Txn{}
}

// repeat asks the coordinator of the producer until it answers something that counts.
func (s *session) repeat(kind int8, key string, req func() kmsg.Request, code func(kmsg.Response) int16) (kmsg.Response, error) {
	for patience := time.Now().Add(40 * time.Second); ; s.k.pause() {
		resp, err := s.k.askCoordinator(kind, key, req(), code)
		if err == nil || !retriable(err) || time.Now().After(patience) {
			return resp, err
		}
	}
}

// send produces a batch to a partition in the transaction.
func (s *session) send(p history.Partition, records []history.Record, out []kmsg.Record) bool {
	version := int16(12)
	if !s.implicit {
		version = 9
		if !s.in[p] {
			_, err := s.repeat(1, s.id, func() kmsg.Request {
				req := kmsg.NewPtrAddPartitionsToTxnRequest()
				req.Version, req.TransactionalID, req.ProducerID, req.ProducerEpoch = 3, s.id, s.pid, s.epoch
				t := kmsg.NewAddPartitionsToTxnRequestTopic()
				t.Topic, t.Partitions = p.Topic, []int32{p.Index}
				req.Topics = append(req.Topics, t)
				return req
			}, func(r kmsg.Response) int16 {
				return r.(*kmsg.AddPartitionsToTxnResponse).Topics[0].Partitions[0].ErrorCode
			})
			if err != nil {
				return false
			}
		}
	}
	s.in[p] = true
	b := batchOf(out, s.pid, s.epoch, s.seq[p], true)
	at := s.k.w.sent(p, records)
	if !s.k.deliver(version, p, &s.id, []pendingBatch{{at, len(records), b, time.Now().UnixMilli()}}) {
		return false
	}
	s.seq[p] += int32(len(records))
	return true
}

// end ends the transaction. What is known of it then is noted.
func (s *session) end(txn string, commit bool) bool {
	w := s.k.w
	if commit {
		w.mu.Lock()
		w.h.Txns[txn].Asked = w.now()
		w.mu.Unlock()
	}
	version := int16(3)
	if s.implicit {
		version = 5
	}
	resp, err := s.repeat(1, s.id, func() kmsg.Request {
		req := kmsg.NewPtrEndTxnRequest()
		req.Version, req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = version, s.id, s.pid, s.epoch, commit
		return req
	}, func(r kmsg.Response) int16 { return r.(*kmsg.EndTxnResponse).ErrorCode })
	if err != nil {
		return false
	}
	if commit {
		w.ended(txn, history.Done)
	}
	if r := resp.(*kmsg.EndTxnResponse); version >= 5 {
		if r.ProducerEpoch != s.epoch || r.ProducerID != s.pid {
			clear(s.seq)
		}
		s.pid, s.epoch = r.ProducerID, r.ProducerEpoch
	}
	return true
}

// process copies a partition of the input to the same one of the output, in transactions that have the group's offset
// too. It begins where the group is, whoever was there before.
func (w *workload) process(in history.Partition) {
	id := fmt.Sprintf("%s-%d", processGroup, in.Index)
	out := history.Partition{Topic: topicOut, Index: in.Index}
	k := w.client(id)
	defer k.close()
	reader := w.reader(history.Reader{Name: id, Committed: true})
	for n := 0; !w.groups.Load(); {
		pid, epoch, ok := k.initProducer(&id, &w.groups)
		if !ok {
			return
		}
		s := &session{k: k, id: id, pid: pid, epoch: epoch, implicit: in.Index%2 == 1, seq: map[history.Partition]int32{}}
		offsets, err := w.groupOffsets(k, processGroup, []history.Partition{in})
		if err != nil {
			k.pause()
			continue
		}
		at := max(offsets[in], 0)
		for !w.groups.Load() {
			l, ok := k.leader(in)
			if !ok {
				k.pause()
				continue
			}
			f, err := k.fetch(l.id, in, l.epoch, at, true, "", 200*time.Millisecond, 16<<10)
			if err != nil {
				k.forget(in)
				k.pause()
				continue
			}
			if len(f.records) == 0 {
				at = f.next
				continue
			}
			w.shown(reader, f, false)
			n++
			txn := fmt.Sprintf("%s.%d", id, n)
			if !w.processed(s, txn, in, out, f) {
				break
			}
			at = f.next
			time.Sleep(time.Duration(k.rnd.IntN(150)) * time.Millisecond)
		}
	}
}

func (w *workload) processed(s *session, txn string, in, out history.Partition, f fetched) bool {
	s.begin(txn)
	var records []history.Record
	var copies []kmsg.Record
	for _, r := range f.records {
		rec := history.Record{Producer: processGroup, Number: r.Offset, Txn: txn}
		copies = append(copies, plain(&rec, 60))
		records = append(records, rec)
	}
	sent := s.send(out, records, copies)
	if !sent || s.k.rnd.IntN(10) == 0 {
		w.ended(txn, history.Not)
		if sent {
			s.end(txn, false)
		}
		return false
	}
	if !s.implicit {
		_, err := s.repeat(1, s.id, func() kmsg.Request {
			req := kmsg.NewPtrAddOffsetsToTxnRequest()
			req.Version, req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = 3, s.id, s.pid, s.epoch, processGroup
			return req
		}, func(r kmsg.Response) int16 { return r.(*kmsg.AddOffsetsToTxnResponse).ErrorCode })
		if err != nil {
			w.ended(txn, history.Not)
			return false
		}
	}
	_, err := s.repeat(0, processGroup, func() kmsg.Request {
		req := kmsg.NewPtrTxnOffsetCommitRequest()
		req.Version, req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch, req.Generation = 3, s.id, processGroup, s.pid, s.epoch, -1
		if s.implicit {
			req.Version = 5
		}
		t, p := kmsg.NewTxnOffsetCommitRequestTopic(), kmsg.NewTxnOffsetCommitRequestTopicPartition()
		t.Topic, p.Partition, p.Offset = in.Topic, in.Index, f.next
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		return req
	}, func(r kmsg.Response) int16 {
		return r.(*kmsg.TxnOffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
	})
	if err != nil {
		w.ended(txn, history.Not)
		return false
	}
	good := s.end(txn, true)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.h.Txns[txn].Outcome == history.Done {
		w.h.Commits = append(w.h.Commits, history.Commit{Partition: in, Group: processGroup, At: w.now(), Offset: f.next})
	}
	return good
}

// groupOffsets asks for a group's offsets, notes and returns them. One that a transaction is about to change is not
// told.
func (w *workload) groupOffsets(k *client, group string, partitions []history.Partition) (map[history.Partition]int64, error) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Version, req.RequireStable = 8, true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	for _, p := range partitions {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic, t.Partitions = p.Topic, []int32{p.Index}
		g.Topics = append(g.Topics, t)
	}
	req.Groups = append(req.Groups, g)
	began := w.time()
	resp, err := k.askCoordinator(0, group, req, func(r kmsg.Response) int16 { return r.(*kmsg.OffsetFetchResponse).Groups[0].ErrorCode })
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	offsets := map[history.Partition]int64{}
	for _, t := range resp.(*kmsg.OffsetFetchResponse).Groups[0].Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, err
			}
			at := history.Partition{Topic: t.Topic, Index: p.Partition}
			offsets[at] = p.Offset
			w.h.Offsets = append(w.h.Offsets, history.Offset{Partition: at, Group: group, Began: began, Offset: p.Offset})
		}
	}
	return offsets, nil
}

// askOffsets asks for the offsets of the groups again and again.
func (w *workload) askOffsets() {
	k := w.client("asks")
	defer k.close()
	for !w.reads.Load() {
		for _, g := range w.groupIDs() {
			w.groupOffsets(k, g, w.all(topicIn))
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// member reads the input and commits what it has read.
func (w *workload) member() {
	k := w.client("member")
	defer k.close()
	reader := w.reader(history.Reader{Name: "member", Committed: true})
	at, committed := map[history.Partition]int64{}, map[history.Partition]int64{}
	for !w.groups.Load() {
		for _, p := range w.all(topicIn) {
			l, ok := k.leader(p)
			if !ok {
				continue
			}
			f, err := k.fetch(l.id, p, l.epoch, at[p], true, "", 100*time.Millisecond, 64<<10)
			if err != nil {
				k.forget(p)
				k.pause()
				continue
			}
			w.shown(reader, f, false)
			if at[p] = f.next; committed[p] == at[p] {
				continue
			}
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Version, req.Group, req.Generation = 8, readerGroup, -1
			t, rp := kmsg.NewOffsetCommitRequestTopic(), kmsg.NewOffsetCommitRequestTopicPartition()
			t.Topic, rp.Partition, rp.Offset = p.Topic, p.Index, f.next
			t.Partitions = append(t.Partitions, rp)
			req.Topics = append(req.Topics, t)
			_, err = k.askCoordinator(0, readerGroup, req, func(r kmsg.Response) int16 {
				return r.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
			})
			if err != nil {
				k.pause()
				continue
			}
			committed[p] = f.next
			w.mu.Lock()
			w.h.Commits = append(w.h.Commits, history.Commit{Partition: p, Group: readerGroup, At: w.now(), Offset: f.next})
			w.mu.Unlock()
		}
	}
}

// readAlong reads everything in a zone, from the replica that the leader sends it to.
func (w *workload) readAlong(i int) {
	a := w.along(fmt.Sprintf("reader in zone %d", i+1), i)
	defer a.k.close()
	topics := []string{topicIn, topicOut, topicTxn}
	if w.features.has(compacted) {
		topics = append(topics, topicKept)
	}
	if w.features.has(retained) {
		topics = append(topics, topicShort)
	}
	for !w.reads.Load() {
		for _, p := range w.all(topics...) {
			a.step(p, w.shown)
		}
	}
}

// alongReader goes from offset to offset, in one zone.
type alongReader struct {
	w         *workload
	k         *client
	zone      string
	committed bool
	reader    int // of the history
	at        map[history.Partition]int64
	near      map[history.Partition]int32 // where the leader has sent it
}

func (w *workload) along(name string, i int) *alongReader {
	a := &alongReader{w: w, k: w.client(name), zone: fmt.Sprintf("zone-%d", i+1), committed: i != 2, at: map[history.Partition]int64{}, near: map[history.Partition]int32{}}
	a.reader = w.reader(history.Reader{Name: name, Committed: a.committed, Steady: true})
	return a
}

// step reads once.
func (a *alongReader) step(p history.Partition, shown func(reader int, f fetched, final bool)) {
	w, k := a.w, a.k
	l, ok := k.leader(p)
	if !ok {
		return
	}
	id, fromLeader := a.near[p], false
	if id == 0 {
		id, fromLeader = l.id, true
	}
	floor, low := w.floor(p, l.epoch), w.low(p, l.epoch)
	f, err := k.fetch(id, p, l.epoch, a.at[p], a.committed, a.zone, 40*time.Millisecond, 128<<10)
	if errors.Is(err, kerr.OffsetOutOfRange) && fromLeader && p.Topic == topicShort {
		if start, err := w.offset(k, p, 0, -2); err == nil && start > a.at[p] {
			a.at[p] = start
			return
		}
	}
	if err != nil {
		delete(a.near, p)
		k.forget(p)
		k.pause()
		return
	}
	if fromLeader {
		w.told(k.name, p, l.epoch, floor, f)
		if n := len(f.records); n > 0 && f.records[0].Offset < low {
			w.c.fail("%s: %s-%d: was shown offset %d, and DeleteRecords up to %d had been acknowledged", k.name, p.Topic, p.Index, f.records[0].Offset, low)
		}
	}
	if f.preferred >= 0 {
		a.near[p] = f.preferred
		return
	}
	shown(a.reader, f, false)
	a.at[p] = f.next
	if k.rnd.IntN(20) == 0 {
		delete(a.near, p)
	}
}
