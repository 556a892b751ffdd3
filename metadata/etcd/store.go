// Package etcd keeps the cluster's metadata in etcd: which keys there are, what
// bytes they hold, and which transaction changes them. README.md of the parent
// folder has the table.
package etcd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
)

// Errors that callers branch on.
var (
	// ErrNotController: the election is not held any more; nothing was written.
	ErrNotController = errors.New("metadata: not the controller")
	// ErrConflict: a key moved since it was read; nothing was written.
	ErrConflict = errors.New("metadata: conflict")
	// ErrFenced: the leader epoch moved on; the commit was not and will never be applied.
	ErrFenced = errors.New("metadata: fenced by a later leader epoch")
	// ErrAmbiguous: the store did not answer; the write may have been applied
	// or may yet be.
	ErrAmbiguous = errors.New("metadata: outcome unknown")
	// ErrUnavailable: the store could not be reached and nothing was written.
	ErrUnavailable = errors.New("metadata: store unavailable")
	// ErrNoSpace: etcd's space quota is used up (its NOSPACE alarm).
	ErrNoSpace = errors.New("metadata: etcd is out of space")
	// ErrRevisionRegressed: etcd is at an earlier revision than it was: it was
	// restored from a backup. Nothing is committed or deleted any more.
	ErrRevisionRegressed = errors.New("metadata: etcd went back to an earlier revision")
	// ErrCompacted: the watch cannot go on from where it stood; load again.
	ErrCompacted = errors.New("metadata: watch position compacted")
)

const (
	// maxOps is etcd's default --max-txn-ops, which bounds compares and puts
	// of a transaction each.
	maxOps = 128
	// maxTxnBytes keeps a transaction below etcd's default request limit of 1.5 MiB.
	maxTxnBytes = 1 << 20
	// pageKeys is the number of keys per range request when loading.
	pageKeys = 4096
)

// Options of a Store. Client is required.
type Options struct {
	Client *clientv3.Client
	// Prefix of all keys of this cluster, "/varve/default/" if empty.
	Prefix string
	// RequestTimeout of one attempt of one request, 5 s if zero.
	RequestTimeout time.Duration
	// SeenRevision is the highest revision that this process's predecessor saw
	// (Store.Revision before it ended); zero if unknown.
	SeenRevision int64
	// Alone says that etcd is inside of this process: whoever had a session
	// before has ended.
	Alone  bool
	Logger *slog.Logger
}

// Store reads and writes one cluster's metadata.
type Store struct {
	client    *clientv3.Client
	keys      keys
	timeout   time.Duration
	log       *slog.Logger
	alone     bool
	seen      atomic.Int64
	regressed atomic.Bool
	full      atomic.Bool // the last write was refused for want of space

	hedge  time.Duration // after which a request is sent once more
	hedges hedges

	// barrier is the revision of the barrier key as this controller wrote it last; 0: it has not yet.
	barrier atomic.Int64
}

// New returns a store over a client. It sends nothing.
func New(o Options) *Store {
	o.Prefix = prefixOf(o.Prefix)
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{client: o.Client, keys: keys{o.Prefix}, timeout: o.RequestTimeout, hedge: o.RequestTimeout / hedgeShare, alone: o.Alone, log: o.Logger}
	s.seen.Store(o.SeenRevision)
	return s
}

func prefixOf(p string) string {
	if p == "" {
		p = "/varve/default/"
	}
	if !strings.HasSuffix(p, "/") {
		p += "/"
	}
	return p
}

// Revision is the highest revision seen. Remember it across restarts.
func (s *Store) Revision() int64 { return s.seen.Load() }

// Regressed says whether etcd was found at an earlier revision than before.
// It stays so: only a restart with another SeenRevision ends it.
func (s *Store) Regressed() bool { return s.regressed.Load() }

// Saw notes a revision that an earlier process had seen.
func (s *Store) Saw(revision int64) {
	for cur := s.seen.Load(); revision > cur && !s.seen.CompareAndSwap(cur, revision); cur = s.seen.Load() {
	}
}

// OutOfSpace says whether etcd refused the last write because its space quota
// is used up.
func (s *Store) OutOfSpace() bool { return s.full.Load() }

// observe notes the revision of an answer to a request that was sent when
// floor was the highest revision seen. All requests that come here are
// linearizable, so an answer below the floor means that etcd lost revisions.
// Comparing with the revision seen now instead would condemn an answer that
// was merely overtaken by another.
func (s *Store) observe(floor, rev int64) error {
	s.Saw(rev)
	if rev < floor && !s.regressed.Swap(true) {
		s.log.Error("etcd is at an earlier revision than it was: restored from a backup? Nothing is committed or deleted until an operator decides",
			"revision", rev, "seen", floor)
	}
	if s.regressed.Load() {
		return fmt.Errorf("%w: %d, was %d", ErrRevisionRegressed, rev, floor)
	}
	return nil
}

// txn sends one transaction, and once more if it is not answered soon. An error
// that is not ErrAmbiguous means that it was not applied. A copy may be carried
// out after the answer: the compares of a transaction that was applied must fail
// from then on, as they do where they are of revisions, or where it writes a key
// that goes with a lease alone.
func (s *Store) txn(ctx context.Context, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
	resp, _, err := s.send(ctx, 2, cmps, then, els)
	return resp, err
}

// txnOnce is txn for what must not come again late: it sends it once.
func (s *Store) txnOnce(ctx context.Context, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
	resp, _, err := s.send(ctx, 1, cmps, then, els)
	return resp, err
}

// send is txn, at most so many times. It says how often it was sent: of all but one
// it is open whether, and when, they are carried out.
func (s *Store) send(ctx context.Context, most int, cmps []clientv3.Cmp, then, els []clientv3.Op) (resp *clientv3.TxnResponse, sent int, err error) {
	if s.regressed.Load() {
		return nil, 0, ErrRevisionRegressed
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	floor := s.seen.Load()
	tctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, sent, err = hedged(tctx, &s.hedges, s.hedge, most, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).If(cmps...).Then(then...).Else(els...).Commit()
	})
	if err != nil {
		err = classify(err)
		if errors.Is(err, ErrNoSpace) && !s.full.Swap(true) {
			s.log.Error("etcd's space quota is used up: metadata and manifests cannot be changed until it is compacted, defragmented and its alarm disarmed")
		}
		if sent > 1 && !errors.Is(err, ErrAmbiguous) {
			err = fmt.Errorf("%w: %w", ErrAmbiguous, err) // of one attempt; the other may have been applied
		}
		return nil, sent, err
	}
	if resp.Succeeded && len(then) > 0 && s.full.Swap(false) {
		s.log.Info("etcd has room again")
	}
	if err := s.observe(floor, resp.Header.Revision); err != nil && !resp.Succeeded {
		return nil, sent, err
	}
	if sent > 1 && !resp.Succeeded && len(then) > 0 {
		return nil, sent, fmt.Errorf("%w: refused when it was sent again, perhaps because it had been applied", ErrAmbiguous)
	}
	return resp, sent, nil
}

// get reads at the latest revision, linearizably.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	floor := s.seen.Load()
	tctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, _, err := hedged(tctx, &s.hedges, s.hedge, 2, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.client.Get(ctx, key, opts...)
	})
	if err != nil {
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil, fmt.Errorf("%w: read of %q", ErrCompacted, key)
		}
		return nil, fmt.Errorf("%w: read of %q: %w", ErrUnavailable, key, err)
	}
	if err := s.observe(floor, resp.Header.Revision); err != nil {
		return nil, err
	}
	return resp, nil
}

// gets reads keys at one revision, the latest, linearizably, in their order; the revision of one that is not there is 0.
func (s *Store) gets(ctx context.Context, keys []string) ([]entry, error) {
	floor := s.seen.Load()
	tctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ops := make([]clientv3.Op, len(keys))
	for i, k := range keys {
		ops[i] = clientv3.OpGet(k)
	}
	resp, err := s.client.Txn(tctx).Then(ops...).Commit()
	if err != nil {
		return nil, fmt.Errorf("%w: read of %q and %d more: %w", ErrUnavailable, keys[0], len(keys)-1, err)
	}
	if err := s.observe(floor, resp.Header.Revision); err != nil {
		return nil, err
	}
	out := make([]entry, len(keys))
	for i, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().Kvs {
			out[i] = entry{key: keys[i], value: kv.Value, created: kv.CreateRevision, revision: kv.ModRevision}
		}
	}
	return out, nil
}

// refused are the errors that etcd gives without applying the request. Every
// other error leaves the outcome open.
var refused = []error{
	rpctypes.ErrEmptyKey, rpctypes.ErrKeyNotFound, rpctypes.ErrTooManyOps, rpctypes.ErrDuplicateKey,
	rpctypes.ErrRequestTooLarge, rpctypes.ErrTooManyRequests, rpctypes.ErrLeaseNotFound,
	rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken,
	rpctypes.ErrInvalidAuthMgmt, rpctypes.ErrAuthOldRevision, rpctypes.ErrCorrupt, rpctypes.ErrCompacted, rpctypes.ErrFutureRev,
}

// classify says what an error of a write means.
func classify(err error) error {
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	for _, e := range refused {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrAmbiguous, err)
}

// EnsureCluster returns the cluster's id, creating it at the first start of the
// first broker: want if given, else a random one.
func (s *Store) EnsureCluster(ctx context.Context, want string) (string, error) {
	id := want
	if id == "" {
		var b [16]byte
		rand.Read(b[:])
		id = base64.RawURLEncoding.EncodeToString(b[:])
	}
	key := s.keys.cluster()
	raw, err := s.ensure(ctx, key, encode(clusterValue{formatVersion, id, time.Now().UnixMilli()}))
	if err != nil {
		return "", fmt.Errorf("the cluster's identity: %w", err)
	}
	v, err := decode[clusterValue](key, raw)
	if err != nil {
		return "", err
	}
	if want != "" && v.ID != want {
		return v.ID, fmt.Errorf("metadata: etcd holds cluster %q, not %q", v.ID, want)
	}
	return v.ID, nil
}

// secretBytes is the size of the cluster's secret.
const secretBytes = 32

// EnsureSecret returns the secret by which brokers prove to each other that they
// are of this cluster, drawing it at the first start of the first one. Who can
// read etcd is trusted with everything anyway.
func (s *Store) EnsureSecret(ctx context.Context) ([]byte, error) {
	secret := make([]byte, secretBytes)
	rand.Read(secret)
	key := s.keys.secret()
	raw, err := s.ensure(ctx, key, encode(secretValue{formatVersion, secret}))
	if err != nil {
		return nil, fmt.Errorf("the cluster's secret: %w", err)
	}
	v, err := decode[secretValue](key, raw)
	if err != nil {
		return nil, err
	}
	if len(v.Secret) != secretBytes {
		return nil, fmt.Errorf("%w: the cluster's secret has %d bytes", ErrFormat, len(v.Secret))
	}
	return v.Secret, nil
}

// Probe returns the token of the probe by which the cluster's bucket is known, or "" if no broker has left one.
func (s *Store) Probe(ctx context.Context) (string, error) {
	key := s.keys.bucket()
	resp, err := s.get(ctx, key)
	if err != nil {
		return "", fmt.Errorf("the probe of the cluster's bucket: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return "", nil
	}
	v, err := decode[bucketValue](key, resp.Kvs[0].Value)
	return v.Probe, err
}

// EnsureProbe returns the token of the probe by which the cluster's bucket is known: token, if it is the first.
func (s *Store) EnsureProbe(ctx context.Context, token string) (string, error) {
	key := s.keys.bucket()
	raw, err := s.ensure(ctx, key, encode(bucketValue{formatVersion, token}))
	if err != nil {
		return "", fmt.Errorf("the probe of the cluster's bucket: %w", err)
	}
	v, err := decode[bucketValue](key, raw)
	return v.Probe, err
}

// ReplaceProbe makes token the one by which the cluster's bucket is known, if it still is was. It returns the one that it is.
func (s *Store) ReplaceProbe(ctx context.Context, was, token string) (string, error) {
	key, value := s.keys.bucket(), encode(bucketValue{formatVersion, token})
	for {
		_, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", encode(bucketValue{formatVersion, was}))}, []clientv3.Op{clientv3.OpPut(key, value)}, nil)
		switch {
		case errors.Is(err, ErrAmbiguous) && ctx.Err() == nil:
			// Whether or not it was applied, the next attempt finds out, or changes nothing.
			if !pause(ctx, 100*time.Millisecond) {
				return "", fmt.Errorf("the probe of the cluster's bucket: %w", err)
			}
		case err != nil:
			return "", fmt.Errorf("the probe of the cluster's bucket: %w", err)
		default:
			return s.Probe(ctx)
		}
	}
}

// Known says whether a broker of that id has ever been admitted to the cluster.
func (s *Store) Known(ctx context.Context, id int32) (bool, error) {
	resp, err := s.get(ctx, s.keys.broker(id), clientv3.WithKeysOnly())
	if err != nil {
		return false, err
	}
	return len(resp.Kvs) > 0, nil
}

// ensure returns what a key holds, after giving it a value if it has none.
func (s *Store) ensure(ctx context.Context, key, value string) ([]byte, error) {
	// The read finds out about an etcd that went back, before anything is
	// written into it.
	if _, err := s.get(ctx, key, clientv3.WithKeysOnly()); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	for {
		resp, err := s.txn(ctx,
			[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(key, value)},
			[]clientv3.Op{clientv3.OpGet(key)})
		switch {
		case errors.Is(err, ErrAmbiguous) && ctx.Err() == nil:
			// Whether or not it was applied, the next attempt finds out.
			if !pause(ctx, 100*time.Millisecond) {
				return nil, fmt.Errorf("create: %w", err)
			}
		case err != nil:
			return nil, fmt.Errorf("create: %w", err)
		case resp.Succeeded:
			return []byte(value), nil
		default:
			return resp.Responses[0].GetResponseRange().Kvs[0].Value, nil
		}
	}
}

// Load reads the whole image at one revision.
func (s *Store) Load(ctx context.Context) (*image.Image, error) {
	var d image.Delta
	err := s.scan(ctx, s.keys.image(), func(kv entry) error {
		c, err := s.keys.change(kv.key, kv.value, kv.created)
		if err != nil {
			return err
		}
		if c != nil {
			d.Changes = append(d.Changes, image.At{Revision: kv.revision, Change: c})
		}
		return nil
	}, &d.Revision)
	if err != nil {
		return nil, fmt.Errorf("load metadata: %w", err)
	}
	return image.Empty().Apply(d), nil
}

type entry struct {
	key               string
	value             []byte
	revision, created int64
}

// scan reads every key below prefix at one revision, page by page.
func (s *Store) scan(ctx context.Context, prefix string, f func(entry) error, revision *int64) error {
	return s.scanSince(ctx, prefix, 0, f, revision)
}

// scanSince is scan for the keys that were written after a revision.
func (s *Store) scanSince(ctx context.Context, prefix string, since int64, f func(entry) error, revision *int64) error {
	end := clientv3.GetPrefixRangeEnd(prefix)
	from, rev := prefix, int64(0)
	for {
		resp, err := s.get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageKeys), clientv3.WithRev(rev), clientv3.WithMinModRev(since+1))
		if err != nil {
			return err
		}
		if rev == 0 {
			rev = resp.Header.Revision
			if revision != nil {
				*revision = rev
			}
		}
		for _, kv := range resp.Kvs {
			if err := f(entry{string(kv.Key), nonNil(kv.Value), kv.ModRevision, kv.CreateRevision}); err != nil {
				return err
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// nonNil keeps an empty value apart from a deleted key.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Commit writes changes decided upon base, in order, in as few transactions as
// etcd's limits allow, each comparing that the election of that epoch is still
// held and that no key has moved since base. A change is never split. It
// returns base with everything applied that was written, also when it fails
// halfway: ErrNotController, ErrConflict, ErrNoSpace and ErrUnavailable mean
// that the change after the returned image was not written, ErrAmbiguous that
// it may have been or may yet be.
func (s *Store) Commit(ctx context.Context, epoch int64, base *image.Image, changes []image.Change) (*image.Image, error) {
	b := batch{keys: s.keys, touched: make(map[string]bool)}
	b.reset()
	flush := func() error {
		if len(b.changes) == 0 {
			return nil
		}
		cmps := append([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.keys.controller()), "=", epoch)}, b.cmps...)
		if rev := s.barrier.Load(); rev > 0 {
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(s.keys.barrier()), "=", rev))
		}
		resp, sent, err := s.send(ctx, 2, cmps, b.ops, []clientv3.Op{clientv3.OpGet(s.keys.controller())})
		if err != nil {
			return err
		}
		if sent > 1 && resp.Succeeded {
			// The other copy may be carried out yet, and not every compare fails by then: a topic that was made and
			// deleted since is absent again, and would come back.
			if _, err := s.Barrier(ctx, epoch); err != nil {
				return fmt.Errorf("%w: %w", ErrAmbiguous, err)
			}
		}
		if !resp.Succeeded {
			kvs := resp.Responses[0].GetResponseRange().Kvs
			if len(kvs) == 0 || kvs[0].CreateRevision != epoch {
				return ErrNotController
			}
			return fmt.Errorf("%w: a key moved since revision %d", ErrConflict, base.Revision)
		}
		if len(b.ops) > 0 { // else the revision is that of somebody else's write
			base = base.Apply(image.Delta{Revision: resp.Header.Revision, Changes: b.changes})
		}
		b.reset()
		return nil
	}
	for _, c := range changes {
		if !b.fits(c) {
			if err := flush(); err != nil {
				return base, err
			}
		}
		b.add(base, c)
	}
	return base, flush()
}

// Barrier writes a key of no meaning under the election and returns its
// revision: an image at that revision or later shows everything that was
// written before, by whomever, and a Commit that is still delayed will
// fail, for it compares the revision of that key.
func (s *Store) Barrier(ctx context.Context, epoch int64) (int64, error) {
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.keys.controller()), "=", epoch)},
		[]clientv3.Op{clientv3.OpPut(s.keys.barrier(), fmt.Sprintf(`{"v":%d}`, formatVersion))}, nil)
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, ErrNotController
	}
	s.barrier.Store(resp.Header.Revision)
	return resp.Header.Revision, nil
}

// Resign ends an election that is held, so that another broker can be elected.
func (s *Store) Resign(ctx context.Context, epoch int64) error {
	key := s.keys.controller()
	_, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", epoch)}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	if err != nil {
		return fmt.Errorf("resign: %w", err)
	}
	return nil
}

// Compact forgets all values that were overwritten or deleted at revision or
// before. It is no error if somebody else has done so.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	if s.regressed.Load() {
		return ErrRevisionRegressed
	}
	tctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.client.Compact(tctx, revision)
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("%w: compact up to revision %d: %w", ErrUnavailable, revision, err)
	}
	return nil
}

// batch collects changes for one transaction.
type batch struct {
	keys    keys
	cmps    []clientv3.Cmp
	ops     []clientv3.Op
	changes []image.Change
	touched map[string]bool
	bytes   int
}

func (b *batch) reset() {
	b.cmps, b.ops, b.changes, b.bytes = nil, nil, nil, 0
	clear(b.touched)
}

// mark names what must not occur twice in a transaction: etcd refuses to write
// a key twice, or to write below a range that it deletes.
func (b *batch) mark(c image.Change) (mine, other string) {
	switch c := c.(type) {
	case image.SetBroker:
		return b.keys.broker(c.Broker.ID), ""
	case image.DropBroker:
		return b.keys.broker(c.ID), ""
	case image.SetTopic:
		return b.keys.topic(c.ID), b.keys.name(c.Name)
	case image.SetPartition:
		return b.keys.partition(c.TopicID, c.Index), ""
	case image.DropPartition:
		return b.keys.partition(c.TopicID, c.Index), ""
	case image.SetConfig:
		return b.keys.config(c.ConfigKey), ""
	case image.DropConfig:
		return b.keys.config(c.ConfigKey), ""
	case image.BuryTopic:
		return b.keys.topic(c.Tombstone.ID), b.keys.name(c.Tombstone.Name)
	}
	panic(fmt.Sprintf("metadata: the controller does not write %T", c))
}

func (b *batch) fits(c image.Change) bool {
	mine, other := b.mark(c)
	if b.touched[mine] || b.touched[other] {
		return false
	}
	switch c := c.(type) {
	case image.BuryTopic:
		if b.touched[b.keys.partitions(c.Tombstone.ID)] {
			return false
		}
	case image.SetPartition:
		if b.touched[b.keys.epochs(c.TopicID)] {
			return false
		}
	case image.DropPartition:
		if b.touched[b.keys.epochs(c.TopicID)] {
			return false
		}
	}
	// The most that one change adds: five operations, two compares.
	return len(b.ops)+5 <= maxOps && len(b.cmps)+1+2 <= maxOps && b.bytes < maxTxnBytes/2
}

func (b *batch) add(base *image.Image, c image.Change) {
	mine, other := b.mark(c)
	for _, m := range []string{mine, other} {
		if m != "" {
			b.touched[m] = true
		}
	}
	b.changes = append(b.changes, c)
	switch c := c.(type) {
	case image.SetBroker:
		var rev int64
		if old := base.Broker(c.Broker.ID); old != nil {
			rev = old.Revision
		}
		b.put(mine, rev, encodeBroker(c.Broker))
	case image.DropBroker:
		if old := base.Broker(c.ID); old != nil {
			b.remove(mine, old.Revision)
		}
	case image.SetTopic:
		var rev int64
		if old := base.TopicByID(c.ID); old != nil {
			rev = old.Revision
		} else {
			b.put(other, 0, encode(nameValue{formatVersion, hex.EncodeToString(c.ID[:])}))
		}
		b.put(mine, rev, encode(topicValue{formatVersion, c.Name, c.Internal, c.Partitions, c.Config}))
	case image.SetPartition:
		b.touched[b.keys.partitions(c.TopicID)] = true
		var rev int64
		old := base.StoredPartition(c.TopicID, c.Index)
		if old != nil {
			rev = old.Revision
		}
		b.put(mine, rev, encodePartition(&c.State))
		if old == nil || old.LeaderEpoch != c.State.LeaderEpoch {
			// No compare of its own: whoever writes this key writes the state
			// in the same transaction, whose revision is compared.
			b.write(b.keys.epoch(c.TopicID, c.Index), epochValue(c.State.LeaderEpoch))
		}
	case image.DropPartition:
		b.touched[b.keys.partitions(c.TopicID)] = true
		if old := base.StoredPartition(c.TopicID, c.Index); old != nil {
			b.remove(mine, old.Revision)
			b.ops = append(b.ops, clientv3.OpDelete(b.keys.epoch(c.TopicID, c.Index)))
		}
	case image.SetConfig:
		var rev int64
		if old := base.ConfigEntry(c.Type, c.Name); old != nil {
			rev = old.Revision
		}
		b.put(mine, rev, encode(configValue{formatVersion, c.Values}))
	case image.DropConfig:
		if old := base.ConfigEntry(c.Type, c.Name); old != nil {
			b.remove(mine, old.Revision)
		}
	case image.BuryTopic:
		// One transaction: the topic is gone, and with the epoch keys gone no
		// manifest of it can be committed, so whoever sees the tombstone may
		// read the heads.
		id := c.Tombstone.ID
		b.touched[b.keys.epochs(id)] = true
		if old := base.TopicByID(id); old != nil {
			b.remove(mine, old.Revision)
			b.ops = append(b.ops, clientv3.OpDelete(other))
		}
		b.write(b.keys.deleted(id), encode(tombstoneValue{formatVersion, c.Tombstone.Name, c.Tombstone.Partitions}))
		b.ops = append(b.ops,
			clientv3.OpDelete(b.keys.partitions(id), clientv3.WithPrefix()),
			clientv3.OpDelete(b.keys.epochs(id), clientv3.WithPrefix()))
	}
}

func (b *batch) put(key string, rev int64, value string) {
	b.cmps = append(b.cmps, clientv3.Compare(clientv3.ModRevision(key), "=", rev))
	b.write(key, value)
}

func (b *batch) write(key, value string) {
	b.ops = append(b.ops, clientv3.OpPut(key, value))
	b.bytes += len(key) + len(value)
}

func (b *batch) remove(key string, rev int64) {
	b.cmps = append(b.cmps, clientv3.Compare(clientv3.ModRevision(key), "=", rev))
	b.ops = append(b.ops, clientv3.OpDelete(key))
	b.bytes += len(key)
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
