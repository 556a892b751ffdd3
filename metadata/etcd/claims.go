package etcd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrClaimed: another worker has the partition.
var ErrClaimed = errors.New("metadata: claimed by another worker")

// Claim is a compaction worker's right to replace entries of a partition's
// manifest. It is bound to the worker's lease; whoever commits under it compares
// it in the same transaction, so that a worker that was cut off commits nothing.
type Claim struct {
	Worker string  // who, for people
	Tag    [4]byte // random, and the beginning of the names of what is written under the claim
	Lease  int64
}

func (c *Claim) value() string {
	return encode(claimValue{formatVersion, c.Worker, hex.EncodeToString(c.Tag[:])})
}

func decodeClaim(key string, raw []byte) (Claim, error) {
	v, err := decode[claimValue](key, raw)
	if err != nil {
		return Claim{}, err
	}
	c := Claim{Worker: v.Worker}
	if n, err := hex.Decode(c.Tag[:], []byte(v.Tag)[:min(len(v.Tag), 8)]); err != nil || n != 4 || len(v.Tag) != 8 {
		return Claim{}, fmt.Errorf("%w: %q: bad tag %q", ErrFormat, key, v.Tag)
	}
	return c, nil
}

// Lease takes a lease and keeps it alive until ctx ends, and then gives it back. lost is closed when it has run out, or
// may have: ttl after the last sign of life that was answered.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (id int64, lost <-chan struct{}, err error) {
	began := time.Now()
	id, ttl, err = s.Grant(ctx, ttl)
	if err != nil {
		return 0, nil, err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for alive := began; ; {
			if !pause(ctx, ttl/4) {
				end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
				s.Revoke(end, id)
				cancel()
				return
			}
			at := time.Now()
			c, cancel := context.WithTimeout(ctx, max(ttl/4, 100*time.Millisecond))
			err := s.KeepAlive(c, id)
			cancel()
			if err == nil {
				alive = at
			} else if errors.Is(err, ErrLeaseGone) || time.Since(alive) >= ttl {
				return
			}
		}
	}()
	return id, gone, nil
}

// Claim takes a partition for a worker, which works on it once at a time. ErrClaimed
// if somebody else has it, ErrLeaseGone if the lease has run out; after any other
// error the claim may have been taken, or be so later: even behind a release that
// found nothing yet. So a claim of the same worker under the same lease is one that
// it knows nothing of, and is replaced; as long as the worker lives, nobody else could
// take the partition, and nobody would work on it.
func (m *Manifests) Claim(ctx context.Context, topicID [16]byte, partition int32, c Claim) error {
	key := m.s.keys.claim(topicID, partition)
	resp, err := m.s.txnOnce(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0), clientv3.Compare(clientv3.CreateRevision(m.s.keys.epoch(topicID, partition)), ">", 0)},
		[]clientv3.Op{clientv3.OpPut(key, c.value(), clientv3.WithLease(clientv3.LeaseID(c.Lease)))},
		[]clientv3.Op{clientv3.OpGet(key)})
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrLeaseGone
	case err != nil:
		return fmt.Errorf("claim partition: %w", err)
	case resp.Succeeded:
		return nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return fmt.Errorf("claim partition: %w: the topic is deleted", ErrFenced)
	}
	if string(kvs[0].Value) == c.value() {
		return nil // an attempt without an answer
	}
	who, err := decodeClaim(key, kvs[0].Value)
	if err != nil {
		return err
	}
	if who.Worker != c.Worker || kvs[0].Lease != c.Lease {
		return fmt.Errorf("%w: %s", ErrClaimed, who.Worker)
	}
	resp, err = m.s.txnOnce(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", kvs[0].ModRevision), clientv3.Compare(clientv3.CreateRevision(m.s.keys.epoch(topicID, partition)), ">", 0)},
		[]clientv3.Op{clientv3.OpPut(key, c.value(), clientv3.WithLease(clientv3.LeaseID(c.Lease)))}, nil)
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrLeaseGone
	case err != nil:
		return fmt.Errorf("claim partition: %w", err)
	case !resp.Succeeded:
		return fmt.Errorf("%w: %s, until a moment ago", ErrClaimed, who.Worker)
	}
	return nil
}

// Unclaim gives a claim back. One that is gone already is no error.
func (m *Manifests) Unclaim(ctx context.Context, topicID [16]byte, partition int32, c Claim) error {
	key := m.s.keys.claim(topicID, partition)
	_, err := m.s.txnOnce(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", c.value())}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	if err != nil {
		return fmt.Errorf("release partition: %w", err)
	}
	return nil
}

// Claims calls f for every claim there is.
func (m *Manifests) Claims(ctx context.Context, f func(topicID [16]byte, partition int32, c Claim) error) error {
	prefix := m.s.keys.claims()
	return m.s.scan(ctx, prefix, func(e entry) error {
		ref, err := partitionRef(e.key, strings.TrimPrefix(e.key, prefix))
		if err != nil {
			return err
		}
		c, err := decodeClaim(e.key, e.value)
		if err != nil {
			return err
		}
		return f(ref.TopicID, ref.Index, c)
	}, nil)
}
