package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
)

// MaxHeadBytes bounds a manifest head. Heads are about 1 KiB; all of them live
// in etcd's memory.
const MaxHeadBytes = 64 << 10

// Manifests keeps the manifest heads: one key per partition, whose bytes belong
// to tiering. Heads are written by partition leaders and the collector, not by
// the controller; what orders them is the head's own revision, and what keeps a
// deposed leader out is the leader epoch, compared in the same transaction.
type Manifests struct{ s *Store }

// Manifests returns the manifest heads of the cluster.
func (s *Store) Manifests() *Manifests { return &Manifests{s} }

// CommitRequest replaces a head.
type CommitRequest struct {
	TopicID     [16]byte
	Partition   int32
	Rev         int64  // revision of the head that was read, 0 if there was none
	LeaderEpoch int32  // epoch that the committer leads in
	Claim       *Claim // of a compaction worker that commits: compared instead of the leader epoch
	Head        []byte
}

// Load reads a head; rev is 0 if there is none. The read is linearizable.
func (m *Manifests) Load(ctx context.Context, topicID [16]byte, partition int32) (head []byte, rev int64, err error) {
	resp, err := m.s.get(ctx, m.s.keys.manifest(topicID, partition))
	if err != nil {
		return nil, 0, fmt.Errorf("load manifest: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	return resp.Kvs[0].Value, resp.Kvs[0].ModRevision, nil
}

// Commit replaces the head if it is still at the revision that was read and the
// partition's leader epoch is still the committer's; it returns the head's new
// revision. The errors:
//
//	ErrFenced     the epoch moved on (or the claim is gone, or the topic): never applied, except if an
//	              earlier attempt within this call was and the head moved since; load to know
//	ErrConflict   the head moved: load, rebase, commit again (an earlier attempt within this
//	              call may be what the present head was built on)
//	ErrAmbiguous  ctx ended before the outcome was known; the write may still be applied
//	others        not applied
//
// An attempt without an answer is sent again, the same transaction, until one
// is answered: it either applies, or its compares fail and the head tells
// whether the earlier attempt did. A read alone would not tell, since the
// earlier attempt may apply after the read; but once the head's revision or the
// epoch has moved it cannot apply any more.
func (m *Manifests) Commit(ctx context.Context, r CommitRequest) (rev int64, err error) {
	if len(r.Head) == 0 || len(r.Head) > MaxHeadBytes {
		return 0, fmt.Errorf("metadata: manifest head of %d bytes, allowed 1 to %d", len(r.Head), MaxHeadBytes)
	}
	head, epoch := m.s.keys.manifest(r.TopicID, r.Partition), m.s.keys.epoch(r.TopicID, r.Partition)
	cmps := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(head), "=", r.Rev),
		clientv3.Compare(clientv3.Value(epoch), "=", epochValue(r.LeaderEpoch)),
	}
	put := []clientv3.Op{clientv3.OpPut(head, string(r.Head))}
	look := []clientv3.Op{clientv3.OpGet(head), clientv3.OpGet(epoch)}
	if r.Claim != nil {
		claim := m.s.keys.claim(r.TopicID, r.Partition)
		cmps = []clientv3.Cmp{cmps[0], clientv3.Compare(clientv3.Value(claim), "=", r.Claim.value()), clientv3.Compare(clientv3.CreateRevision(epoch), ">", 0)}
		look = append(look, clientv3.OpGet(claim))
	}

	retried := false
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		resp, err := m.s.txn(ctx, cmps, put, look)
		switch {
		case err == nil && resp.Succeeded:
			return resp.Header.Revision, nil
		case err == nil:
			return m.lost(r, retried, resp)
		case errors.Is(err, ErrAmbiguous):
			retried = true
			if pause(ctx, delay) {
				continue
			}
			return 0, fmt.Errorf("commit manifest: %w", err)
		case retried:
			// This attempt was refused, but the one before it may have been
			// applied.
			return 0, fmt.Errorf("commit manifest: %w: %w", ErrAmbiguous, err)
		default:
			return 0, fmt.Errorf("commit manifest: %w", err)
		}
	}
}

// lost says why the compares failed.
func (m *Manifests) lost(r CommitRequest, retried bool, resp *clientv3.TxnResponse) (int64, error) {
	heads := resp.Responses[0].GetResponseRange().Kvs
	epochs := resp.Responses[1].GetResponseRange().Kvs
	if retried && len(heads) == 1 && heads[0].ModRevision > r.Rev && string(heads[0].Value) == string(r.Head) {
		return heads[0].ModRevision, nil // the attempt that got no answer
	}
	if r.Claim != nil {
		claims := resp.Responses[2].GetResponseRange().Kvs
		switch {
		case len(epochs) == 0:
			return 0, fmt.Errorf("commit manifest: %w: the topic is deleted", ErrFenced)
		case len(claims) == 0 || string(claims[0].Value) != r.Claim.value():
			return 0, fmt.Errorf("commit manifest: %w: the claim of %s is gone", ErrFenced, r.Claim.Worker)
		}
	} else if len(epochs) == 0 || string(epochs[0].Value) != epochValue(r.LeaderEpoch) {
		have := "the topic is deleted"
		if len(epochs) > 0 {
			have = string(epochs[0].Value)
		}
		return 0, fmt.Errorf("commit manifest in epoch %d: %w: %s", r.LeaderEpoch, ErrFenced, have)
	}
	var rev int64
	if len(heads) > 0 {
		rev = heads[0].ModRevision
	}
	return 0, fmt.Errorf("commit manifest: %w: head at revision %d, read at %d", ErrConflict, rev, r.Rev)
}

// Delete removes the head of a deleted topic's partition, once its objects are
// gone. ErrConflict if the head moved or the topic is not deleted.
func (m *Manifests) Delete(ctx context.Context, topicID [16]byte, partition int32, rev int64) error {
	head, buried := m.s.keys.manifest(topicID, partition), m.s.keys.deleted(topicID)
	resp, err := m.s.txn(ctx,
		[]clientv3.Cmp{
			clientv3.Compare(clientv3.ModRevision(head), "=", rev),
			clientv3.Compare(clientv3.CreateRevision(buried), ">", 0),
		},
		[]clientv3.Op{clientv3.OpDelete(head)}, []clientv3.Op{clientv3.OpGet(head)})
	if err != nil {
		return fmt.Errorf("delete manifest: %w", err)
	}
	if !resp.Succeeded {
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 {
			return nil // already gone
		}
		return fmt.Errorf("delete manifest: %w", ErrConflict)
	}
	return nil
}

// Head is one manifest head.
type Head struct {
	TopicID   [16]byte
	Partition int32
	Head      []byte
	Rev       int64
}

// Range calls f for every head, of deleted topics too, by ascending topic id
// and partition, all as of one revision, until f returns an error.
func (m *Manifests) Range(ctx context.Context, f func(Head) error) error {
	return m.walk(ctx, m.s.keys.allManifests(), f)
}

// Changed calls f for every head that was written after revision since, all as of the revision that it returns.
func (m *Manifests) Changed(ctx context.Context, since int64, f func(Head) error) (revision int64, err error) {
	if since > 0 {
		// There is no such key. The answer says how far the store is: of one in which nothing was written there is nothing to
		// read, and it would go through all heads to find that out.
		resp, err := m.s.get(ctx, m.s.keys.allManifests())
		if err != nil {
			return 0, fmt.Errorf("read the store's revision: %w", err)
		}
		if resp.Header.Revision <= since {
			return since, nil
		}
	}
	err = m.s.scanSince(ctx, m.s.keys.allManifests(), since, m.each(f), &revision)
	return revision, err
}

// RangeTopic is Range for one topic.
func (m *Manifests) RangeTopic(ctx context.Context, topicID [16]byte, f func(Head) error) error {
	return m.walk(ctx, m.s.keys.manifests(topicID), f)
}

func (m *Manifests) walk(ctx context.Context, prefix string, f func(Head) error) error {
	return m.s.scan(ctx, prefix, m.each(f), nil)
}

func (m *Manifests) each(f func(Head) error) func(entry) error {
	return func(e entry) error {
		ref, err := partitionRef(e.key, strings.TrimPrefix(e.key, m.s.keys.allManifests()))
		if err != nil {
			return err
		}
		return f(Head{ref.TopicID, ref.Index, e.value, e.revision})
	}
}

// Deleted reads the tombstones of deleted topics, linearizably. The leader
// epoch keys of these topics are gone, so their heads can only be deleted.
func (m *Manifests) Deleted(ctx context.Context) ([]image.Tombstone, error) {
	var out []image.Tombstone
	err := m.s.scan(ctx, m.s.keys.allDeleted(), func(e entry) error {
		c, err := m.s.keys.change(e.key, e.value, e.created)
		if err != nil {
			return err
		}
		t := c.(image.SetTombstone).Tombstone
		t.Revision = e.revision
		out = append(out, t)
		return nil
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("read tombstones: %w", err)
	}
	return out, nil
}

// DropTombstone forgets a deleted topic: the tombstone and whatever heads and
// claims are left. The caller has deleted the topic's objects.
func (m *Manifests) DropTombstone(ctx context.Context, topicID [16]byte) error {
	buried := m.s.keys.deleted(topicID)
	_, err := m.s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(buried), ">", 0)},
		[]clientv3.Op{clientv3.OpDelete(buried), clientv3.OpDelete(m.s.keys.manifests(topicID), clientv3.WithPrefix()),
			clientv3.OpDelete(m.s.keys.claimsOf(topicID), clientv3.WithPrefix())}, nil)
	if err != nil {
		return fmt.Errorf("drop tombstone: %w", err)
	}
	return nil
}

// Standing is what decides about the objects of one partition, as of one revision.
type Standing struct {
	Head        []byte
	Rev         int64 // 0: there is no head
	LeaderEpoch int32
	Exists      bool // the partition does, and was not deleted
	Claim       *Claim
}

// standingsAtOnce is of how many partitions one request reads three keys: etcd takes 128 operations.
const standingsAtOnce = 128 / 3

// Standing reads how partitions stand, in their order. The reads are linearizable: a leader epoch below the answer and a
// claim that is not the answer cannot commit to a head after the one in the answer.
func (m *Manifests) Standing(ctx context.Context, parts []image.PartitionRef) (out []Standing, err error) {
	for len(parts) > 0 {
		n := min(len(parts), standingsAtOnce)
		if out, err = m.standing(ctx, out, parts[:n]); err != nil {
			return nil, fmt.Errorf("read how partitions stand: %w", err)
		}
		parts = parts[n:]
	}
	return out, nil
}

func (m *Manifests) standing(ctx context.Context, out []Standing, parts []image.PartitionRef) ([]Standing, error) {
	k := m.s.keys
	var keys []string
	for _, p := range parts {
		keys = append(keys, k.manifest(p.TopicID, p.Index), k.epoch(p.TopicID, p.Index), k.claim(p.TopicID, p.Index))
	}
	found, err := m.s.gets(ctx, keys)
	if err != nil {
		return nil, err
	}
	for f := range slices.Chunk(found, 3) {
		head, epoch, claim := f[0], f[1], f[2]
		s := Standing{Head: head.value, Rev: head.revision}
		if epoch.revision != 0 {
			v, err := decode[epochRecord](epoch.key, epoch.value)
			if err != nil {
				return nil, err
			}
			s.LeaderEpoch, s.Exists = v.Epoch, true
		}
		if claim.revision != 0 {
			c, err := decodeClaim(claim.key, claim.value)
			if err != nil {
				return nil, err
			}
			s.Claim = &c
		}
		out = append(out, s)
	}
	return out, nil
}

// LeaderEpoch reads the leader epoch that Commit compares with; exists is false
// if there is no such partition, or not any more. The read is linearizable: an
// epoch below the answer cannot commit from then on.
func (m *Manifests) LeaderEpoch(ctx context.Context, topicID [16]byte, partition int32) (epoch int32, exists bool, err error) {
	resp, err := m.s.get(ctx, m.s.keys.epoch(topicID, partition))
	if err != nil {
		return 0, false, fmt.Errorf("read leader epoch: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return 0, false, nil
	}
	v, err := decode[epochRecord](string(resp.Kvs[0].Key), resp.Kvs[0].Value)
	if err != nil {
		return 0, false, err
	}
	return v.Epoch, true, nil
}
