package etcd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
)

// ErrLeaseGone: the lease ran out; whatever was bound to it is gone.
var ErrLeaseGone = errors.New("metadata: lease expired")

// ErrDuplicateBroker: another live process is registered under this broker id.
var ErrDuplicateBroker = errors.New("metadata: another process is registered under this broker id")

// Grant takes a lease. etcd counts in whole seconds; what it granted is
// returned.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (lease int64, granted time.Duration, err error) {
	tctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	secs := int64((ttl + time.Second - 1) / time.Second)
	// One that is granted twice over runs out by itself.
	resp, _, err := hedged(tctx, &s.hedges, s.hedge, 2, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		return s.client.Grant(ctx, max(secs, 1))
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%w: lease: %w", ErrUnavailable, err)
	}
	return int64(resp.ID), time.Duration(resp.TTL) * time.Second, nil
}

// KeepAlive renews a lease once; ErrLeaseGone if it has expired. It does not wait
// for a member of etcd that hangs: others can renew it as well.
func (s *Store) KeepAlive(ctx context.Context, lease int64) error {
	_, _, err := hedged(ctx, &s.hedges, s.hedge/2, 3, func(ctx context.Context) (*clientv3.LeaseKeepAliveResponse, error) {
		return s.client.KeepAliveOnce(ctx, clientv3.LeaseID(lease))
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return ErrLeaseGone
	}
	if err != nil {
		return fmt.Errorf("%w: keep lease alive: %w", ErrUnavailable, err)
	}
	return nil
}

// Revoke ends a lease and with it the session and the election bound to it.
func (s *Store) Revoke(ctx context.Context, lease int64) error {
	tctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, _, err := hedged(tctx, &s.hedges, s.hedge, 2, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return s.client.Revoke(ctx, clientv3.LeaseID(lease))
	})
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("%w: revoke lease: %w", ErrUnavailable, err)
	}
	return nil
}

// Register writes the session of a broker, bound to its lease, and returns the
// revision, which becomes the broker's epoch. held, unless nil, is what the log
// directory was compared with: nobody may have changed it since (ErrConflict).
//
// A session of another process is taken over at once where it is known that this
// process has ended: it had the same log directory, in the same place, which
// nobody else can have open; or etcd is inside of this process. Any other may be
// alive, also one that shows the same WAL: a directory can be copied, and a disk
// be mounted by another machine. Then ErrDuplicateBroker is returned until its
// lease runs out.
func (s *Store) Register(ctx context.Context, me image.Session, held *HeldMark) (revision int64, err error) {
	key := s.keys.session(me.ID)
	value := encodeSession(me)
	resp, err := s.get(ctx, key)
	if err != nil {
		return 0, err
	}
	if len(resp.Kvs) > 0 {
		kv := resp.Kvs[0]
		old, err := decode[sessionValue](key, kv.Value)
		switch {
		case err != nil:
			return 0, err
		case string(kv.Value) == value && kv.Lease == me.Lease:
			return kv.ModRevision, nil // an earlier attempt of ours
		case !s.alone && (old.Place == "" || old.Place != me.Place) && old.Incarnation != hex.EncodeToString(me.Incarnation[:]):
			return 0, duplicate(old, me)
		}
		// Ends the old process's election too.
		if err := s.Revoke(ctx, old.Lease); err != nil {
			return 0, err
		}
	}
	cmps := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	if held != nil {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(s.keys.mark(me.ID)), "=", held.Revision))
	}
	txn, err := s.txn(ctx, cmps, []clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(clientv3.LeaseID(me.Lease)))}, nil)
	if err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return 0, ErrLeaseGone
		}
		return 0, fmt.Errorf("register broker %d: %w", me.ID, err)
	}
	if !txn.Succeeded {
		return 0, fmt.Errorf("%w: registration of broker %d", ErrConflict, me.ID)
	}
	return txn.Header.Revision, nil
}

// duplicate says who has the id, and what to do.
func duplicate(old sessionValue, me image.Session) error {
	where := "nowhere"
	if len(old.Endpoints) > 0 {
		where = net.JoinHostPort(old.Endpoints[0].Host, strconv.Itoa(int(old.Endpoints[0].Port)))
	}
	what := "give each broker a node.id of its own, or end that one"
	if old.WAL == hex.EncodeToString(me.WAL[:]) {
		what = "its log directory has the same identity as this one's and is in another place, so that one of the two is a copy: end that process if this one is to take its place, " +
			"or give this one an empty log.dirs and a node.id of its own"
	}
	return fmt.Errorf("%w: broker %d, which clients find at %s (incarnation %s): %s", ErrDuplicateBroker, me.ID, where, old.Incarnation, what)
}

// Campaign takes the election if nobody holds it. won is also true if an
// earlier attempt with the same lease had won.
func (s *Store) Campaign(ctx context.Context, lease int64, broker int32, incarnation [16]byte) (epoch int64, won bool, err error) {
	key := s.keys.controller()
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(key, encode(controllerValue{formatVersion, broker, hex.EncodeToString(incarnation[:])}),
			clientv3.WithLease(clientv3.LeaseID(lease)))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return 0, false, ErrLeaseGone
		}
		return 0, false, fmt.Errorf("campaign: %w", err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, true, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 1 && kvs[0].Lease == lease {
		return kvs[0].CreateRevision, true, nil
	}
	return 0, false, nil
}

// ProducerIDBlock is the number of producer ids handed out at a time.
const ProducerIDBlock = 1000

// AllocateProducerIDs takes the next block of producer ids. A block whose
// transaction got no answer is left unused.
func (s *Store) AllocateProducerIDs(ctx context.Context) (first int64, count int32, err error) {
	key := s.keys.producerIDs()
	for {
		resp, err := s.get(ctx, key)
		if err != nil {
			return 0, 0, err
		}
		var next, rev int64
		if len(resp.Kvs) > 0 {
			v, err := decode[producerValue](key, resp.Kvs[0].Value)
			if err != nil {
				return 0, 0, err
			}
			next, rev = v.Next, resp.Kvs[0].ModRevision
		}
		txn, err := s.txn(ctx,
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", rev)},
			[]clientv3.Op{clientv3.OpPut(key, encode(producerValue{formatVersion, next + ProducerIDBlock}))}, nil)
		if err != nil && !errors.Is(err, ErrAmbiguous) {
			return 0, 0, fmt.Errorf("allocate producer ids: %w", err)
		}
		if err == nil && txn.Succeeded {
			return next, ProducerIDBlock, nil
		}
		if ctx.Err() != nil {
			return 0, 0, fmt.Errorf("allocate producer ids: %w: %w", ErrUnavailable, ctx.Err())
		}
	}
}
