package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ManifestStore keeps the manifest heads: small values, one per partition, with a
// revision that rises with every change, in the metadata store. All reads are
// linearizable.
type ManifestStore interface {
	// Load reads a head; rev is 0 if there is none.
	Load(ctx context.Context, topicID [16]byte, partition int32) (head []byte, rev int64, err error)
	// Commit replaces the head if its revision is still r.Rev and the partition's
	// leader epoch is r.LeaderEpoch. Errors: ErrFenced, ErrConflict, ErrAmbiguous;
	// after any other the commit is known not to have been applied.
	Commit(ctx context.Context, r CommitRequest) (rev int64, err error)
	// LeaderEpoch reads the partition's leader epoch; exists is false if there is
	// no such partition, or not any more. An epoch that is lower than the answer
	// cannot commit from the moment the answer was given.
	LeaderEpoch(ctx context.Context, topicID [16]byte, partition int32) (epoch int32, exists bool, err error)
	// Claim takes a partition for a compaction worker; ErrClaimed if another has it.
	Claim(ctx context.Context, topicID [16]byte, partition int32, c Claim) error
	// Unclaim gives a claim back; one that is gone is no error.
	Unclaim(ctx context.Context, topicID [16]byte, partition int32, c Claim) error
	// Standing reads what decides about the objects of partitions, in their order;
	// that of one partition is as of one revision. A claim that is not the answer,
	// and an epoch below it, cannot commit to a head after the one in the answer.
	Standing(ctx context.Context, partitions []PartitionID) ([]Standing, error)
	// Delete removes the head of a partition of a deleted topic.
	Delete(ctx context.Context, topicID [16]byte, partition int32, rev int64) error
	// Range calls f for every head there is, as of one revision.
	Range(ctx context.Context, f func(StoredHead) error) error
	// Changed calls f for every head that was written after revision since, as of the revision that it returns.
	Changed(ctx context.Context, since int64, f func(StoredHead) error) (rev int64, err error)
	// Deleted lists the topics that were deleted and whose heads may still be
	// there. No commit for their partitions can succeed.
	Deleted(ctx context.Context) ([]Tombstone, error)
	// DropTombstone forgets a deleted topic.
	DropTombstone(ctx context.Context, topicID [16]byte) error
}

// CommitRequest replaces a head.
type CommitRequest struct {
	TopicID     [16]byte
	Partition   int32
	Rev         int64  // of the head that was read, 0: there was none
	LeaderEpoch int32  // of the committer
	Claim       *Claim // of a compaction worker that commits: compared instead of the leader epoch
	Head        []byte
}

// Claim is a compaction worker's right to replace entries of one partition. It
// ends with the lease.
type Claim struct {
	Worker string
	Tag    [4]byte // random; the suffix of every object written under the claim begins with it
	Lease  int64
}

// PartitionID names a partition.
type PartitionID struct {
	TopicID   [16]byte
	Partition int32
}

// Standing is a partition's head, who leads it, and which worker has it.
type Standing struct {
	Head        []byte
	Rev         int64 // 0: there is no head
	LeaderEpoch int32
	Exists      bool // the partition does
	Claim       *Claim
}

// StoredHead is a head as Range finds it.
type StoredHead struct {
	TopicID   [16]byte
	Partition int32
	Head      []byte
	Rev       int64
}

// Tombstone is a deleted topic.
type Tombstone struct {
	TopicID    [16]byte
	Name       string
	Partitions int32
}

// What a ManifestStore answers.
var (
	ErrFenced    = errors.New("tiering: leader epoch has moved on")
	ErrConflict  = errors.New("tiering: head has moved on")
	ErrAmbiguous = errors.New("tiering: commit may or may not have been applied")
	ErrClaimed   = errors.New("tiering: partition is claimed by another worker")
)

// MemManifests is a ManifestStore in memory, for tests of whatever uses a Tier.
// Unless a partition's epoch was set, any epoch not below the last that committed
// is taken for the leader's.
type MemManifests struct {
	// Hook, if set, is called with each operation ("load", "commit", ...) before
	// it and, with after true, behind it; what it returns is the caller's error.
	// An error from a hook behind a commit does not undo it. Set it before use.
	Hook func(op string, key [16]byte, partition int32, after bool) error

	mu     sync.Mutex
	rev    int64
	heads  map[partitionKey]StoredHead
	epochs map[partitionKey]int32
	claims map[partitionKey]Claim
	dead   map[[16]byte]Tombstone
}

// NewMemManifests returns an empty store.
func NewMemManifests() *MemManifests {
	return &MemManifests{heads: map[partitionKey]StoredHead{}, epochs: map[partitionKey]int32{}, claims: map[partitionKey]Claim{}, dead: map[[16]byte]Tombstone{}}
}

func (m *MemManifests) do(ctx context.Context, op string, key partitionKey, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.Hook != nil {
		if err := m.Hook(op, key.topic, key.index, false); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err := f()
	m.mu.Unlock()
	if err == nil && m.Hook != nil {
		return m.Hook(op, key.topic, key.index, true)
	}
	return err
}

// SetEpoch makes epoch the leader epoch of a partition: commits of others are
// fenced.
func (m *MemManifests) SetEpoch(topicID [16]byte, partition, epoch int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	m.epochs[partitionKey{topicID, partition}] = epoch
}

// DeleteTopic buries a topic of so many partitions.
func (m *MemManifests) DeleteTopic(topicID [16]byte, name string, partitions int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	m.dead[topicID] = Tombstone{topicID, name, partitions}
	for k := range m.epochs {
		if k.topic == topicID {
			delete(m.epochs, k)
		}
	}
}

// Load implements ManifestStore.
func (m *MemManifests) Load(ctx context.Context, topicID [16]byte, partition int32) (head []byte, rev int64, err error) {
	key := partitionKey{topicID, partition}
	err = m.do(ctx, "load", key, func() error {
		h := m.heads[key]
		head, rev = slices.Clone(h.Head), h.Rev
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return head, rev, nil
}

// Commit implements ManifestStore.
func (m *MemManifests) Commit(ctx context.Context, r CommitRequest) (rev int64, err error) {
	key := partitionKey{r.TopicID, r.Partition}
	err = m.do(ctx, "commit", key, func() error {
		epoch, known := m.epochs[key]
		_, dead := m.dead[r.TopicID]
		if r.Claim != nil {
			if have, ok := m.claims[key]; dead || !ok || have != *r.Claim {
				return fmt.Errorf("%w: the claim of %s is gone", ErrFenced, r.Claim.Worker)
			}
		} else if dead || known && epoch != r.LeaderEpoch {
			return fmt.Errorf("%w: epoch %d, current %d", ErrFenced, r.LeaderEpoch, epoch)
		}
		if have := m.heads[key].Rev; have != r.Rev {
			return fmt.Errorf("%w: revision %d, read %d", ErrConflict, have, r.Rev)
		}
		m.rev++
		rev = m.rev
		m.heads[key] = StoredHead{r.TopicID, r.Partition, slices.Clone(r.Head), rev}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return rev, nil
}

// LeaderEpoch implements ManifestStore.
func (m *MemManifests) LeaderEpoch(ctx context.Context, topicID [16]byte, partition int32) (epoch int32, exists bool, err error) {
	key := partitionKey{topicID, partition}
	err = m.do(ctx, "epoch", key, func() error {
		epoch, exists = m.leaderEpoch(key)
		return nil
	})
	return epoch, exists && err == nil, err
}

func (m *MemManifests) leaderEpoch(key partitionKey) (epoch int32, exists bool) {
	epoch, known := m.epochs[key]
	_, dead := m.dead[key.topic]
	_, used := m.heads[key]
	return epoch, !dead && (known || used)
}

// Claim implements ManifestStore.
func (m *MemManifests) Claim(ctx context.Context, topicID [16]byte, partition int32, c Claim) error {
	key := partitionKey{topicID, partition}
	return m.do(ctx, "claim", key, func() error {
		if _, dead := m.dead[topicID]; dead {
			return ErrFenced
		}
		if have, ok := m.claims[key]; ok && (have.Worker != c.Worker || have.Lease != c.Lease) {
			return fmt.Errorf("%w: %s", ErrClaimed, have.Worker)
		}
		m.rev++
		m.claims[key] = c
		return nil
	})
}

// Unclaim implements ManifestStore.
func (m *MemManifests) Unclaim(ctx context.Context, topicID [16]byte, partition int32, c Claim) error {
	key := partitionKey{topicID, partition}
	return m.do(ctx, "unclaim", key, func() error {
		if m.claims[key] == c {
			m.rev++
			delete(m.claims, key)
		}
		return nil
	})
}

// Standing implements ManifestStore.
func (m *MemManifests) Standing(ctx context.Context, partitions []PartitionID) (list []Standing, err error) {
	err = m.do(ctx, "standing", partitionKey{}, func() error {
		for _, p := range partitions {
			key := partitionKey{p.TopicID, p.Partition}
			h := m.heads[key]
			s := Standing{Head: slices.Clone(h.Head), Rev: h.Rev}
			s.LeaderEpoch, s.Exists = m.leaderEpoch(key)
			if c, ok := m.claims[key]; ok {
				s.Claim = &c
			}
			list = append(list, s)
		}
		return nil
	})
	return list, err
}

// Claimed tells who has a partition.
func (m *MemManifests) Claimed(ctx context.Context, topicID [16]byte, partition int32) (c Claim, exists bool, err error) {
	key := partitionKey{topicID, partition}
	err = m.do(ctx, "claimed", key, func() error {
		c, exists = m.claims[key]
		return nil
	})
	return c, exists && err == nil, err
}

// EndLease takes away every claim that is bound to a lease.
func (m *MemManifests) EndLease(lease int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	for k, c := range m.claims {
		if c.Lease == lease {
			delete(m.claims, k)
		}
	}
}

// Delete implements ManifestStore.
func (m *MemManifests) Delete(ctx context.Context, topicID [16]byte, partition int32, rev int64) error {
	key := partitionKey{topicID, partition}
	return m.do(ctx, "delete", key, func() error {
		h, there := m.heads[key]
		if _, dead := m.dead[topicID]; !dead || there && h.Rev != rev {
			return ErrConflict
		}
		m.rev++
		delete(m.heads, key)
		return nil
	})
}

// Range implements ManifestStore.
func (m *MemManifests) Range(ctx context.Context, f func(StoredHead) error) error {
	var all []StoredHead
	err := m.do(ctx, "range", partitionKey{}, func() error {
		for _, h := range m.heads {
			all = append(all, h)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b StoredHead) int {
		return partitionKey{a.TopicID, a.Partition}.compare(partitionKey{b.TopicID, b.Partition})
	})
	for _, h := range all {
		if err := f(h); err != nil {
			return err
		}
	}
	return nil
}

// Changed implements ManifestStore.
func (m *MemManifests) Changed(ctx context.Context, since int64, f func(StoredHead) error) (rev int64, err error) {
	m.mu.Lock()
	rev = m.rev
	m.mu.Unlock()
	return rev, m.Range(ctx, func(h StoredHead) error {
		if h.Rev <= since {
			return nil
		}
		return f(h)
	})
}

// Deleted implements ManifestStore.
func (m *MemManifests) Deleted(ctx context.Context) (list []Tombstone, err error) {
	err = m.do(ctx, "deleted", partitionKey{}, func() error {
		for _, d := range m.dead {
			list = append(list, d)
		}
		slices.SortFunc(list, func(a, b Tombstone) int { return bytes.Compare(a.TopicID[:], b.TopicID[:]) })
		return nil
	})
	return list, err
}

// DropTombstone implements ManifestStore.
func (m *MemManifests) DropTombstone(ctx context.Context, topicID [16]byte) error {
	return m.do(ctx, "drop", partitionKey{topic: topicID}, func() error {
		m.rev++
		delete(m.dead, topicID)
		return nil
	})
}
