package brokertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
)

// client speaks the protocol to the brokers, one request at a time, from one goroutine.
type client struct {
	w       *workload
	name    string
	host    string
	rnd     *rand.Rand
	form    *kmsg.RequestFormatter
	links   map[int32]*clientLink
	leaders map[history.Partition]leader
	coords  map[string]int32 // by kind and key
	over    *atomic.Bool     // nil, or when nothing is delivered any more
}

type leader struct{ id, epoch int32 }

type clientLink struct {
	nc   net.Conn
	next int32
}

func (w *workload) client(name string) *client {
	w.mu.Lock()
	w.clients++
	host := clientHost + strconv.Itoa(w.clients)
	w.mu.Unlock()
	return &client{
		w: w, name: name, host: host, rnd: pcg(w.c.seed, name), form: kmsg.NewRequestFormatter(kmsg.FormatterClientID(name)),
		links: map[int32]*clientLink{}, leaders: map[history.Partition]leader{}, coords: map[string]int32{},
	}
}

func (k *client) close() {
	for id := range k.links {
		k.drop(id)
	}
}

func (k *client) drop(id int32) {
	if l := k.links[id]; l != nil {
		l.nc.Close()
		delete(k.links, id)
	}
}

// requestTimeout is how long a client waits for an answer before it gives the connection up.
const requestTimeout = 3 * time.Second

// ask sends one request and waits for its answer.
func (k *client) ask(id int32, req kmsg.Request) (kmsg.Response, error) {
	answers, err := k.askAll(id, []kmsg.Request{req})
	if err != nil {
		return nil, err
	}
	return answers[0], nil
}

// askAll sends requests one behind the other, then waits for the answers. With an error, those that came are returned.
func (k *client) askAll(id int32, reqs []kmsg.Request) ([]kmsg.Response, error) {
	l := k.links[id]
	if l == nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		nc, err := k.w.c.net.Dial(ctx, k.host, fmt.Sprintf("10.0.0.%d:%d", id, brokerPort))
		if err != nil {
			return nil, err
		}
		l = &clientLink{nc: nc}
		k.links[id] = l
	}
	l.nc.SetDeadline(time.Now().Add(requestTimeout))
	first := l.next
	for _, req := range reqs {
		if _, err := l.nc.Write(k.form.AppendRequest(nil, req, l.next)); err != nil {
			k.drop(id)
			return nil, err
		}
		l.next++
	}
	var answers []kmsg.Response
	for i, req := range reqs {
		resp, err := l.answer(req, first+int32(i))
		if err != nil {
			k.drop(id)
			return answers, err
		}
		answers = append(answers, resp)
	}
	return answers, nil
}

func (l *clientLink) answer(req kmsg.Request, correlation int32) (kmsg.Response, error) {
	var size [4]byte
	if _, err := io.ReadFull(l.nc, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(l.nc, b); err != nil {
		return nil, err
	}
	if got := int32(binary.BigEndian.Uint32(b)); got != correlation {
		return nil, fmt.Errorf("answer %d to request %d", got, correlation)
	}
	b = b[4:]
	resp := req.ResponseKind()
	if resp.SetVersion(req.GetVersion()); resp.IsFlexible() {
		b = b[1:]
	}
	return resp, resp.ReadFrom(b)
}

// anyBroker is one of those that there are.
func (k *client) anyBroker() int32 { return 1 + k.rnd.Int32N(k.w.brokers()) }

// pause is what a client waits before it tries again.
func (k *client) pause() { time.Sleep(time.Duration(20+k.rnd.IntN(150)) * time.Millisecond) }

// refresh asks some broker who leads.
func (k *client) refresh() (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 12
	req.Topics = nil // all
	resp, err := k.ask(k.anyBroker(), req)
	if err != nil {
		return nil, err
	}
	m := resp.(*kmsg.MetadataResponse)
	for _, t := range m.Topics {
		for _, p := range t.Partitions {
			at := history.Partition{Topic: inHistory(*t.Topic, t.TopicID), Index: p.Partition}
			was := k.leaders[at]
			// Brokers do not learn of a leader at the same time.
			if p.LeaderEpoch >= was.epoch {
				k.leaders[at] = leader{p.Leader, p.LeaderEpoch}
			}
		}
	}
	return m, nil
}

// leader is the leader of a partition as far as the client knows.
func (k *client) leader(p history.Partition) (leader, bool) {
	l, ok := k.leaders[p]
	if ok && l.id >= 0 {
		return l, true
	}
	k.refresh()
	l, ok = k.leaders[p]
	return l, ok && l.id >= 0
}

func (k *client) forget(p history.Partition) {
	if l, ok := k.leaders[p]; ok {
		k.leaders[p] = leader{-1, l.epoch}
	}
}

// coordinator finds the coordinator of a group (kind 0) or a transactional id (1).
func (k *client) coordinator(kind int8, key string) (int32, error) {
	name := fmt.Sprintf("%d %s", kind, key)
	if id, ok := k.coords[name]; ok {
		return id, nil
	}
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.Version, req.CoordinatorType, req.CoordinatorKeys = 4, kind, []string{key}
	resp, err := k.ask(k.anyBroker(), req)
	if err != nil {
		return 0, err
	}
	c := resp.(*kmsg.FindCoordinatorResponse).Coordinators[0]
	if err := kerr.ErrorForCode(c.ErrorCode); err != nil {
		return 0, err
	}
	k.coords[name] = c.NodeID
	return c.NodeID, nil
}

// askCoordinator asks a coordinator; code tells the error in the answer.
func (k *client) askCoordinator(kind int8, key string, req kmsg.Request, code func(kmsg.Response) int16) (kmsg.Response, error) {
	id, err := k.coordinator(kind, key)
	if err != nil {
		return nil, err
	}
	resp, err := k.ask(id, req)
	if err == nil {
		err = kerr.ErrorForCode(code(resp))
	}
	if err != nil && (!isKafka(err) || errors.Is(err, kerr.NotCoordinator) || errors.Is(err, kerr.CoordinatorNotAvailable)) {
		delete(k.coords, fmt.Sprintf("%d %s", kind, key))
	}
	return resp, err
}

func isKafka(err error) bool {
	var e *kerr.Error
	return errors.As(err, &e)
}

// retriable says whether a request may succeed if it is sent again. A broken connection is no refusal.
func retriable(err error) bool {
	return !isKafka(err) || kerr.IsRetriable(err) || errors.Is(err, kerr.ConcurrentTransactions)
}

// message is a record's value: it says what it is, and is filled up to a size.
func message(r history.Record, size int) []byte {
	txn := r.Txn
	if txn == "" {
		txn = "-"
	}
	b := fmt.Appendf(nil, "%s %d %s ", r.Producer, r.Number, txn)
	for i := 0; len(b) < size; i++ {
		b = append(b, byte('a'+(int(r.Number)+i)%26))
	}
	return b
}

// saysHeader is where a record with a key says what it is, for a tombstone has no value.
const saysHeader = "says"

// keyed is a record of a key, with its checksum; the value is nil if it is a tombstone.
func keyed(r *history.Record, size int) kmsg.Record {
	says := message(*r, 0)
	out := kmsg.Record{Key: []byte(r.Key), Headers: []kmsg.Header{{Key: saysHeader, Value: says}}}
	if !r.Tombstone {
		out.Value = message(*r, size)
	}
	r.Sum = checksum(out.Value, out.Key, says)
	return out
}

func checksum(parts ...[]byte) (sum uint32) {
	for _, b := range parts {
		sum = crc32.Update(sum, crc32.IEEETable, b)
	}
	return sum
}

// parse is what a record says of itself.
func parse(r *kgo.Record) history.Record {
	rec := history.Record{Sum: crc32.ChecksumIEEE(r.Value)}
	if r.Attrs.IsControl() {
		rec.Control = true
		rec.Sum = crc32.Update(rec.Sum, crc32.IEEETable, r.Key)
		return rec
	}
	says := r.Value
	if len(r.Headers) == 1 && r.Headers[0].Key == saysHeader {
		says = r.Headers[0].Value
		rec.Key, rec.Tombstone = string(r.Key), r.Value == nil
		rec.Sum = checksum(r.Value, r.Key, says)
	}
	f := strings.SplitN(string(says), " ", 4)
	if len(f) == 4 {
		if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			rec.Producer, rec.Number, rec.Txn = f[0], n, f[2]
			if rec.Txn == "-" {
				rec.Txn = ""
			}
			return rec
		}
	}
	// Nobody here has sent it: a record of a coordinator.
	rec.Producer, rec.Number = "coordinator", r.Offset
	rec.Sum = crc32.Update(rec.Sum, crc32.IEEETable, r.Key)
	return rec
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchOf builds a record batch.
func batchOf(records []kmsg.Record, pid int64, epoch int16, sequence int32, transactional bool) []byte {
	now := time.Now().UnixMilli()
	rb := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(len(records) - 1), FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: pid, ProducerEpoch: epoch, FirstSequence: sequence, NumRecords: int32(len(records)),
	}
	if transactional {
		rb.Attributes = 1 << 4
	}
	for i, r := range records {
		r.OffsetDelta = int32(i)
		// The length comes first and counts what is behind it.
		body := r.AppendTo(nil)
		r.Length = int32(len(body) - 1) // that of a zero
		rb.Records = r.AppendTo(rb.Records)
	}
	b := rb.AppendTo(nil)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

// produceRequest is a request for one partition: by the name of its topic, or by the id of a topic whose name others had.
func produceRequest(version int16, p history.Partition, txn *string, acks int16, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.TransactionID, req.Acks, req.TimeoutMillis = version, txn, acks, 2000
	rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	rt.Topic, rp.Partition, rp.Records = p.Topic, p.Index, batch
	if id, ok := byID(p.Topic); ok {
		req.Version, rt.Topic, rt.TopicID = 13, "", id
	}
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

// produced is the base offset of an answer, or the error in it.
func produced(resp kmsg.Response) (int64, error) {
	p := &resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	return p.BaseOffset, kerr.ErrorForCode(p.ErrorCode)
}

// fetched is what a fetch brought.
type fetched struct {
	records   []*kgo.Record
	sums      []history.BatchSum
	next      int64 // behind the last batch
	hw, lso   int64
	preferred int32
}

// fetch asks a broker for records of a partition.
func (k *client) fetch(id int32, p history.Partition, epoch int32, offset int64, committed bool, rack string, wait time.Duration, maxBytes int32) (fetched, error) {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.Rack = 12, int32(wait.Milliseconds()), 1, 8<<20, rack
	req.SessionEpoch = -1
	opts := kgo.ProcessFetchPartitionOpts{KeepControlRecords: !committed, Offset: offset, Topic: p.Topic, Partition: p.Index, IsolationLevel: kgo.ReadUncommitted()}
	if committed {
		req.IsolationLevel, opts.IsolationLevel = 1, kgo.ReadCommitted()
	}
	rt, rp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	rt.Topic = p.Topic
	if tid, ok := byID(p.Topic); ok {
		req.Version, rt.Topic, rt.TopicID = 13, "", tid
	}
	rp.Partition, rp.CurrentLeaderEpoch, rp.FetchOffset, rp.PartitionMaxBytes = p.Index, epoch, offset, maxBytes
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	answer, err := k.ask(id, req)
	if err != nil {
		return fetched{}, err
	}
	resp := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return fetched{}, err
	}
	part := &resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
		return fetched{}, err
	}
	f := fetched{sums: history.BatchSums(part.RecordBatches), next: offset, hw: part.HighWatermark, lso: part.LastStableOffset, preferred: part.PreferredReadReplica}
	if n := len(f.sums); n > 0 {
		f.next = f.sums[n-1].Last + 1
	}
	got, _ := kgo.ProcessFetchPartition(opts, part, kgo.DefaultDecompressor(), nil)
	f.records = got.Records
	return f, got.Err
}
