package brokertest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// store is what etcd keeps, as far as Varve uses it: keys with revisions, transactions, leases, watches, compaction.
// It never fails; the way to it does (etcdLink).
type store struct {
	mu        sync.Mutex
	changed   sync.Cond
	revision  int64
	compacted int64
	kvs       map[string]*mvccpb.KeyValue // never changed in place
	events    []*mvccpb.Event             // all since the compaction, in order
	leases    map[int64]*lease
	lastLease int64
	// committed is told of every write, in order, with the store as it is behind it.
	committed func(s *store, events []*mvccpb.Event)
	// late, if it is not nil, says how much longer than others a transaction is on its way.
	late func(r *pb.TxnRequest) time.Duration
}

type lease struct {
	ttl   time.Duration
	timer *time.Timer
	keys  map[string]bool
}

func newStore() *store {
	s := &store{revision: 1, kvs: map[string]*mvccpb.KeyValue{}, leases: map[int64]*lease{}}
	s.changed.L = &s.mu
	return s
}

func (s *store) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: s.revision} }

// in says whether a key is in [from, end), as etcd writes ranges.
func in(key string, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return key == string(from)
	case len(end) == 1 && end[0] == 0:
		return key >= string(from)
	}
	return key >= string(from) && key < string(end)
}

func (s *store) read(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	switch {
	case r.Revision > s.revision:
		return nil, rpctypes.ErrGRPCFutureRev
	case r.Revision > 0 && r.Revision < s.compacted:
		return nil, rpctypes.ErrGRPCCompacted
	}
	kvs := s.kvs
	if r.Revision > 0 && r.Revision < s.revision {
		kvs = s.asOf(r.Revision)
	}
	resp := &pb.RangeResponse{Header: s.header()}
	if len(r.RangeEnd) == 0 {
		if kv := kvs[string(r.Key)]; kv != nil {
			resp.Kvs = append(resp.Kvs, kv)
		}
	} else {
		for k, kv := range kvs {
			if in(k, r.Key, r.RangeEnd) {
				resp.Kvs = append(resp.Kvs, kv)
			}
		}
		resp.Kvs = slices.DeleteFunc(resp.Kvs, func(kv *mvccpb.KeyValue) bool { return kv.ModRevision < r.MinModRevision })
		slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	}
	resp.Count = int64(len(resp.Kvs))
	if r.Limit > 0 && int64(len(resp.Kvs)) > r.Limit {
		resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
	}
	for i, kv := range resp.Kvs {
		c := &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
		if r.KeysOnly {
			c.Value = nil
		}
		resp.Kvs[i] = c
	}
	return resp, nil
}

// asOf is the keys as they were, from the events since.
func (s *store) asOf(revision int64) map[string]*mvccpb.KeyValue {
	kvs := map[string]*mvccpb.KeyValue{}
	for k, kv := range s.kvs {
		if kv.ModRevision <= revision {
			kvs[k] = kv
		}
	}
	for i := len(s.events) - 1; i >= 0 && s.events[i].Kv.ModRevision > revision; i-- {
		k := string(s.events[i].Kv.Key)
		delete(kvs, k)
		if prev := s.events[i].PrevKv; prev != nil && prev.ModRevision <= revision {
			kvs[k] = prev
		}
	}
	return kvs
}

func (s *store) put(r *pb.PutRequest, rev int64) *mvccpb.Event {
	k, old := string(r.Key), s.kvs[string(r.Key)]
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: rev, ModRevision: rev, Version: 1, Lease: r.Lease}
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		if l := s.leases[old.Lease]; l != nil {
			delete(l.keys, k)
		}
	}
	if l := s.leases[r.Lease]; l != nil {
		l.keys[k] = true
	}
	s.kvs[k] = kv
	return &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv, PrevKv: old}
}

func (s *store) remove(from, end []byte, rev int64) (events []*mvccpb.Event) {
	var names []string
	for k := range s.kvs {
		if in(k, from, end) {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	for _, k := range names {
		old := s.kvs[k]
		if l := s.leases[old.Lease]; l != nil {
			delete(l.keys, k)
		}
		delete(s.kvs, k)
		events = append(events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: rev}, PrevKv: old})
	}
	return events
}

// commit makes events a revision.
func (s *store) commit(events []*mvccpb.Event) {
	if len(events) == 0 {
		return
	}
	s.revision++
	s.events = append(s.events, events...)
	if s.committed != nil {
		s.committed(s, events)
	}
	s.changed.Broadcast()
}

func (s *store) holds(c *pb.Compare) bool {
	kv := s.kvs[string(c.Key)]
	if kv == nil {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		kv = &mvccpb.KeyValue{}
	}
	var order int
	switch c.Target {
	case pb.Compare_CREATE:
		order = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_VERSION:
		order = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_VALUE:
		order = bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_LEASE:
		order = cmp.Compare(kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return order != 0
}

func (s *store) txn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		resp.Succeeded = resp.Succeeded && s.holds(c)
	}
	ops := r.Success
	if !resp.Succeeded {
		ops = r.Failure
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil && p.Lease != 0 && s.leases[p.Lease] == nil {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
	}
	rev := s.revision + 1
	var events []*mvccpb.Event
	for _, op := range ops {
		out := &pb.ResponseOp{}
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			events = append(events, s.put(o.RequestPut, rev))
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: s.header()}}
		case *pb.RequestOp_RequestDeleteRange:
			gone := s.remove(o.RequestDeleteRange.Key, o.RequestDeleteRange.RangeEnd, rev)
			events = append(events, gone...)
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Header: s.header(), Deleted: int64(len(gone))}}
		case *pb.RequestOp_RequestRange:
			got, err := s.read(o.RequestRange)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: got}
		default:
			panic(fmt.Sprintf("brokertest: an operation of a transaction that nobody uses: %T", o))
		}
		resp.Responses = append(resp.Responses, out)
	}
	s.commit(events)
	resp.Header = s.header()
	return resp, nil
}

func (s *store) grant(ttl int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastLease++
	id := s.lastLease
	d := time.Duration(ttl) * time.Second
	s.leases[id] = &lease{ttl: d, keys: map[string]bool{}, timer: time.AfterFunc(d, func() { s.revoke(id) })}
	return id
}

// keepAlive says whether there is such a lease still.
func (s *store) keepAlive(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[id]
	if l == nil {
		return false
	}
	l.timer.Reset(l.ttl)
	return true
}

func (s *store) revoke(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[id]
	if l == nil {
		return false
	}
	l.timer.Stop()
	delete(s.leases, id)
	var events []*mvccpb.Event
	names := make([]string, 0, len(l.keys))
	for k := range l.keys {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		events = append(events, s.remove([]byte(k), nil, s.revision+1)...)
	}
	s.commit(events)
	return true
}

// stop ends the timers, so that nothing happens any more.
func (s *store) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.leases {
		l.timer.Stop()
	}
}

// etcdLink is one process's way to the store.
type etcdLink struct {
	s   *store
	ctx context.Context // of the process: when it is over, nothing is sent or answered any more

	mu      sync.Mutex
	changed sync.Cond
	rnd     *rand.Rand
	cut     bool
	lossy   bool // answers are lost, requests are carried out after the sender has given up

	progress int // how often it was asked how far the watches are
}

func newEtcdLink(ctx context.Context, s *store, seed uint64) *etcdLink {
	l := &etcdLink{s: s, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 0x65746364))}
	l.changed.L = &l.mu
	return l
}

// client is what the broker gets.
func (l *etcdLink) client() *clientv3.Client {
	c := clientv3.NewCtxClient(l.ctx)
	c.KV, c.Lease, c.Watcher = clientv3.NewKVFromKVClient(etcdKV{l: l}, nil), etcdLease{l: l}, etcdWatcher{l: l}
	return c
}

func (l *etcdLink) Cut(cut bool) {
	l.mu.Lock()
	l.cut = cut
	l.changed.Broadcast()
	l.mu.Unlock()
	l.s.mu.Lock()
	l.s.changed.Broadcast() // the watches look again
	l.s.mu.Unlock()
}

func (l *etcdLink) Lossy(lossy bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lossy = lossy
}

func (l *etcdLink) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut || l.ctx.Err() != nil
}

var errEtcdAway = status.Error(codes.Unavailable, "etcdserver: no leader, by injection")

// call carries out a request: after a while, never, or without an answer.
func call[R any](ctx context.Context, l *etcdLink, f func() (R, error)) (R, error) {
	var none R
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer stop()
	l.mu.Lock()
	for l.cut && ctx.Err() == nil && l.ctx.Err() == nil {
		l.changed.Wait()
	}
	latency, how := 200*time.Microsecond+time.Duration(l.rnd.Int64N(int64(2*time.Millisecond))), 0
	late := time.Duration(l.rnd.Int64N(int64(3 * time.Second)))
	if l.lossy {
		how = l.rnd.IntN(6)
	}
	l.mu.Unlock()
	pause := func(d time.Duration) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return l.ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
	if err := pause(latency); err != nil {
		return none, status.FromContextError(err).Err()
	}
	switch how {
	case 1: // not carried out
		return none, errEtcdAway
	case 2: // carried out, and the answer is lost
		f()
		return none, errEtcdAway
	case 3: // carried out late, by when the sender has given up or is no more
		time.AfterFunc(late, func() { f() })
		if err := pause(late); err != nil {
			return none, status.FromContextError(err).Err()
		}
		return none, errEtcdAway
	}
	got, err := f()
	if e := pause(latency / 2); e != nil {
		return none, status.FromContextError(e).Err()
	}
	return got, err
}

type etcdKV struct {
	pb.KVClient // what is not used
	l           *etcdLink
}

func (k etcdKV) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return call(ctx, k.l, func() (*pb.RangeResponse, error) {
		k.l.s.mu.Lock()
		defer k.l.s.mu.Unlock()
		return k.l.s.read(r)
	})
}

// Late has transactions take longer, as f says, called without a lock held; nil ends that.
func (s *store) Late(f func(r *pb.TxnRequest) time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late = f
}

func (k etcdKV) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	k.l.s.mu.Lock()
	late := k.l.s.late
	k.l.s.mu.Unlock()
	if late != nil {
		sleep(ctx, late(r)) // the sender may give up meanwhile
	}
	return call(ctx, k.l, func() (*pb.TxnResponse, error) { return k.l.s.txn(r) })
}

func (k etcdKV) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return call(ctx, k.l, func() (*pb.CompactionResponse, error) {
		s := k.l.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.Revision <= s.compacted {
			return nil, rpctypes.ErrGRPCCompacted
		}
		s.compacted = r.Revision
		s.events = slices.DeleteFunc(s.events, func(e *mvccpb.Event) bool { return e.Kv.ModRevision <= r.Revision })
		return &pb.CompactionResponse{Header: s.header()}, nil
	})
}

type etcdLease struct {
	clientv3.Lease
	l *etcdLink
}

func (e etcdLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	r, err := call(ctx, e.l, func() (*clientv3.LeaseGrantResponse, error) {
		return &clientv3.LeaseGrantResponse{ID: clientv3.LeaseID(e.l.s.grant(ttl)), TTL: ttl}, nil
	})
	return r, rpctypes.Error(err)
}

func (e etcdLease) Revoke(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	r, err := call(ctx, e.l, func() (*clientv3.LeaseRevokeResponse, error) {
		if !e.l.s.revoke(int64(id)) {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
		return &clientv3.LeaseRevokeResponse{}, nil
	})
	return r, rpctypes.Error(err)
}

func (e etcdLease) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	r, err := call(ctx, e.l, func() (*clientv3.LeaseKeepAliveResponse, error) {
		if !e.l.s.keepAlive(int64(id)) {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
		return &clientv3.LeaseKeepAliveResponse{ID: id}, nil
	})
	return r, rpctypes.Error(err)
}

type etcdWatcher struct {
	clientv3.Watcher
	l *etcdLink
}

// RequestProgress has every watch of this way that has been sent everything say so.
func (e etcdWatcher) RequestProgress(context.Context) error {
	e.l.mu.Lock()
	e.l.progress++
	e.l.mu.Unlock()
	e.l.s.mu.Lock()
	defer e.l.s.mu.Unlock()
	e.l.s.changed.Broadcast()
	return nil
}

// Watch delivers in order, a revision at a time; a cut holds it up, as the client of etcd connects again by itself.
func (e etcdWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op, s, l := clientv3.OpGet(key, opts...), e.l.s, e.l
	ch := make(chan clientv3.WatchResponse)
	ctx, cancel := context.WithCancel(ctx)
	wake := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	}
	stops := []func() bool{context.AfterFunc(ctx, wake), context.AfterFunc(l.ctx, cancel)}
	go func() {
		defer close(ch)
		defer cancel()
		defer func() {
			for _, stop := range stops {
				stop()
			}
		}()
		next, asked := op.Rev(), 0
		for {
			resp, ok := l.nextEvents(ctx, op, next, &asked)
			if !ok {
				return
			}
			l.mu.Lock()
			latency := time.Duration(l.rnd.Int64N(int64(3 * time.Millisecond)))
			l.mu.Unlock()
			time.Sleep(latency)
			select {
			case ch <- resp:
			case <-ctx.Done():
				return
			}
			if resp.CompactRevision != 0 {
				return
			}
			if n := len(resp.Events); n > 0 {
				next = resp.Events[n-1].Kv.ModRevision + 1
			}
		}
	}()
	return ch
}

// nextEvents waits for the next revision that touches what is watched, or until it is asked how far the watch is, which
// is not what it has been answered.
func (l *etcdLink) nextEvents(ctx context.Context, op clientv3.Op, from int64, answered *int) (clientv3.WatchResponse, bool) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return clientv3.WatchResponse{}, false
		}
		if !l.isCut() {
			if from <= s.compacted {
				return clientv3.WatchResponse{Header: s.header(), CompactRevision: s.compacted + 1, Canceled: true}, true
			}
			i, _ := slices.BinarySearchFunc(s.events, from, func(e *mvccpb.Event, rev int64) int { return cmp.Compare(e.Kv.ModRevision, rev) })
			var resp clientv3.WatchResponse
			for ; i < len(s.events); i++ {
				ev := s.events[i]
				if len(resp.Events) > 0 && ev.Kv.ModRevision != resp.Events[0].Kv.ModRevision {
					break
				}
				if in(string(ev.Kv.Key), op.KeyBytes(), op.RangeBytes()) {
					resp.Events = append(resp.Events, (*clientv3.Event)(ev))
				}
			}
			l.mu.Lock()
			asked := l.progress
			l.mu.Unlock()
			if len(resp.Events) > 0 || asked != *answered {
				if len(resp.Events) == 0 {
					*answered = asked
				}
				resp.Header = s.header()
				return resp, true
			}
		}
		s.changed.Wait()
	}
}
