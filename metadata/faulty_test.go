package metadata

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// link is a node's connection to etcd, which can be cut, and whose
// transactions can meet with accidents.
type link struct {
	mu      sync.Mutex
	cut     bool
	blind   bool // watches show nothing any more, and do not end
	watches map[context.Context]context.CancelFunc
	mend    chan struct{}
	txn     func(commit func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error)
}

func newLink(c *clientv3.Client) (*clientv3.Client, *link) {
	l := &link{watches: map[context.Context]context.CancelFunc{}, mend: make(chan struct{})}
	w := clientv3.NewCtxClient(context.Background())
	w.KV, w.Lease, w.Watcher = linkKV{c.KV, l}, linkLease{c.Lease, l}, linkWatcher{c.Watcher, l}
	return w, l
}

// Cut breaks everything off; etcd itself goes on.
func (l *link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut, l.mend = true, make(chan struct{})
	for ctx, cancel := range l.watches {
		cancel()
		delete(l.watches, ctx)
	}
}

func (l *link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
	close(l.mend)
}

// Blind has watches that there are, and those that are made meanwhile, show nothing.
func (l *link) Blind(blind bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blind = blind
}

func (l *link) isBlind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blind
}

func (l *link) onTxn(f func(commit func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.txn = f
}

func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return rpctypes.ErrTimeout
	}
	return nil
}

type linkKV struct {
	clientv3.KV
	l *link
}

func (k linkKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := k.l.err(); err != nil {
		return nil, err
	}
	return k.KV.Get(ctx, key, opts...)
}

func (k linkKV) Txn(ctx context.Context) clientv3.Txn { return &linkTxn{k.KV.Txn(ctx), k.l} }

type linkTxn struct {
	clientv3.Txn
	l *link
}

func (x *linkTxn) If(c ...clientv3.Cmp) clientv3.Txn  { x.Txn = x.Txn.If(c...); return x }
func (x *linkTxn) Then(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Then(o...); return x }
func (x *linkTxn) Else(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Else(o...); return x }
func (x *linkTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := x.l.err(); err != nil {
		return nil, err
	}
	x.l.mu.Lock()
	f := x.l.txn
	x.l.mu.Unlock()
	if f != nil {
		return f(x.Txn.Commit)
	}
	return x.Txn.Commit()
}

type linkLease struct {
	clientv3.Lease
	l *link
}

func (k linkLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	if err := k.l.err(); err != nil {
		return nil, err
	}
	return k.Lease.Grant(ctx, ttl)
}

func (k linkLease) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	if err := k.l.err(); err != nil {
		return nil, err
	}
	return k.Lease.KeepAliveOnce(ctx, id)
}

type linkWatcher struct {
	clientv3.Watcher
	l *link
}

func (k linkWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	k.l.mu.Lock()
	defer k.l.mu.Unlock()
	if k.l.cut {
		ch := make(chan clientv3.WatchResponse)
		close(ch)
		return ch
	}
	ctx, cancel := context.WithCancel(ctx)
	k.l.watches[ctx] = cancel
	out := make(chan clientv3.WatchResponse)
	in := k.Watcher.Watch(ctx, key, opts...)
	go func() {
		defer close(out)
		mute := k.l.isBlind()
		for resp := range in {
			if mute = mute || k.l.isBlind(); mute {
				continue
			}
			select {
			case out <- resp:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

func (k linkWatcher) RequestProgress(ctx context.Context) error {
	if err := k.l.err(); err != nil {
		return err
	}
	return k.Watcher.RequestProgress(ctx)
}
