package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/varve/varve/compaction"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/manifest"
)

// openTier opens the object storage part over the bucket and the manifest
// heads in etcd.
func (s *Server) openTier(clusterID string, tie *bond) (*tiering.Tier, error) {
	c := s.o.Config
	dir := c.RemoteCacheDir
	if dir == "" && c.RemoteCacheDiskBytes > 0 {
		dir = filepath.Join(c.LogDir, "cache")
	}
	chunks, err := cache.Open(cache.Options{
		MemoryBytes: s.memory.tierCache, Dir: dir, DiskBytes: c.RemoteCacheDiskBytes, Identity: clusterID + "/1",
		Loads: c.RemoteReads, Logger: s.log.With("part", "cache"),
	})
	if err != nil {
		return nil, fmt.Errorf("remote.cache: %w", err)
	}
	s.chunks = chunks
	t, err := tiering.Open(tiering.Options{
		Bucket: s.bucket, Manifests: manifests{s.node.Manifests()}, Cache: chunks, ClusterID: clusterID, BrokerID: c.NodeID,
		Limits: tierLimits(c), UploadBytes: max(s.memory.total/10, 16<<20),
		MetaBytes:     max(s.memory.total/50, 4<<20),
		FlushInterval: c.RemoteFlushInterval, TargetBytes: c.RemoteObjectBytes, Grace: c.RemoteDeleteGrace, SweepInterval: c.RemoteSweepInterval,
		RequestTimeout: c.RemoteRequestTimeout, RetentionInterval: c.RetentionCheckInterval,
		// The one long request: a whole object goes out in it.
		UploadTimeout: 4 * c.RemoteRequestTimeout,
		// What is deleted waits for a published state without it and for the
		// collector's round: a short grace asks for short waits there as well.
		CollectInterval: min(max(c.RemoteDeleteGrace/6, 100*time.Millisecond), 10*time.Second),
		PublishInterval: min(max(c.RemoteDeleteGrace/2, 500*time.Millisecond), time.Minute),

		DeleteDelay: s.deleteDelay, Shared: tie.confirm,
		// Uploads hurry before producers have to be refused.
		Urgent: func() bool { return s.wal.Stats().Short() },
		Logger: s.log.With("part", "tiering"), Events: s.metrics.tier,
	})
	if err != nil {
		return nil, fmt.Errorf("tiering: %w", err)
	}
	return t, nil
}

// deleteDelay is file.delete.delay.ms of a topic, whoever leads it; 0 where there is none.
func (s *Server) deleteDelay(id [16]byte) time.Duration {
	im := s.node.Image()
	t := im.TopicByID(id)
	if t == nil {
		return 0
	}
	c := config.Resolver{
		BrokerDynamic:  im.Config(image.BrokerResource, strconv.Itoa(int(s.o.Config.NodeID))),
		ClusterDynamic: im.Config(image.BrokerResource, ""),
		Static:         s.o.Config.Static,
	}.Topic(t.Config)
	return config.Milliseconds(c.FileDeleteDelayMs)
}

// tierLimits are the settings of object storage that may change while the
// broker runs.
func tierLimits(c *config.BrokerConfig) tiering.Limits {
	return tiering.Limits{
		Uploads: c.RemoteUploads, UploadRate: unbounded(c.RemoteCopyMaxBytesPerSecond),
		Reads: c.RemoteReads, ReadRate: unbounded(c.RemoteFetchMaxBytesPerSecond),
		ProducerExpiration: c.ProducerIDExpiration,
	}
}

// unbounded turns Kafka's largest number into tiering's 0.
func unbounded(n int64) int64 {
	if n == 1<<63-1 {
		return 0
	}
	return n
}

// manifests are the heads in etcd as tiering asks for them.
type manifests struct{ m *etcd.Manifests }

// translate turns the store's errors into those that tiering branches on.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, etcd.ErrFenced):
		return fmt.Errorf("%w: %w", tiering.ErrFenced, err)
	case errors.Is(err, etcd.ErrConflict):
		return fmt.Errorf("%w: %w", tiering.ErrConflict, err)
	case errors.Is(err, etcd.ErrClaimed):
		return fmt.Errorf("%w: %w", tiering.ErrClaimed, err)
	case errors.Is(err, etcd.ErrAmbiguous):
		return fmt.Errorf("%w: %w", tiering.ErrAmbiguous, err)
	}
	return err
}

func (a manifests) Load(ctx context.Context, topicID [16]byte, partition int32) ([]byte, int64, error) {
	head, rev, err := a.m.Load(ctx, topicID, partition)
	return head, rev, translate(err)
}

func (a manifests) Commit(ctx context.Context, r tiering.CommitRequest) (int64, error) {
	rev, err := a.m.Commit(ctx, etcd.CommitRequest{TopicID: r.TopicID, Partition: r.Partition, Rev: r.Rev, LeaderEpoch: r.LeaderEpoch,
		Claim: (*etcd.Claim)(r.Claim), Head: r.Head})
	return rev, translate(err)
}

func (a manifests) Claim(ctx context.Context, topicID [16]byte, partition int32, c tiering.Claim) error {
	return translate(a.m.Claim(ctx, topicID, partition, etcd.Claim(c)))
}

func (a manifests) Unclaim(ctx context.Context, topicID [16]byte, partition int32, c tiering.Claim) error {
	return a.m.Unclaim(ctx, topicID, partition, etcd.Claim(c))
}

func (a manifests) Standing(ctx context.Context, partitions []tiering.PartitionID) ([]tiering.Standing, error) {
	refs := make([]image.PartitionRef, len(partitions))
	for i, p := range partitions {
		refs[i] = image.PartitionRef{TopicID: p.TopicID, Index: p.Partition}
	}
	list, err := a.m.Standing(ctx, refs)
	out := make([]tiering.Standing, len(list))
	for i, s := range list {
		out[i] = tiering.Standing{Head: s.Head, Rev: s.Rev, LeaderEpoch: s.LeaderEpoch, Exists: s.Exists, Claim: (*tiering.Claim)(s.Claim)}
	}
	return out, err
}

func (a manifests) LeaderEpoch(ctx context.Context, topicID [16]byte, partition int32) (int32, bool, error) {
	return a.m.LeaderEpoch(ctx, topicID, partition)
}

func (a manifests) Delete(ctx context.Context, topicID [16]byte, partition int32, rev int64) error {
	return translate(a.m.Delete(ctx, topicID, partition, rev))
}

func (a manifests) Range(ctx context.Context, f func(tiering.StoredHead) error) error {
	return a.m.Range(ctx, func(h etcd.Head) error {
		return f(tiering.StoredHead{TopicID: h.TopicID, Partition: h.Partition, Head: h.Head, Rev: h.Rev})
	})
}

func (a manifests) Changed(ctx context.Context, since int64, f func(tiering.StoredHead) error) (int64, error) {
	return a.m.Changed(ctx, since, func(h etcd.Head) error {
		return f(tiering.StoredHead{TopicID: h.TopicID, Partition: h.Partition, Head: h.Head, Rev: h.Rev})
	})
}

func (a manifests) Deleted(ctx context.Context) ([]tiering.Tombstone, error) {
	list, err := a.m.Deleted(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]tiering.Tombstone, 0, len(list))
	for _, t := range list {
		out = append(out, tiering.Tombstone{TopicID: t.ID, Name: t.Name, Partitions: t.Partitions})
	}
	return out, nil
}

func (a manifests) DropTombstone(ctx context.Context, topicID [16]byte) error {
	return a.m.DropTombstone(ctx, topicID)
}

// scrubs are the passes of the compaction workers, in etcd.
type scrubs struct{ s *etcd.Store }

// What a pass remembers can be noted.
var _ [etcd.MaxUnnamed - compaction.MaxUnnamed]struct{}

func (a scrubs) Last(ctx context.Context) (compaction.Pass, error) {
	p, err := a.s.LastScrub(ctx)
	if err != nil || p == nil {
		return compaction.Pass{}, err
	}
	out := compaction.Pass{Worker: p.Worker, Began: time.UnixMilli(p.Began), Ended: time.UnixMilli(p.Ended), Partitions: p.Partitions, Objects: p.Objects, Bytes: p.Bytes,
		Findings: make(map[tiering.Fault]int)}
	for f, n := range p.Findings {
		out.Findings[tiering.Fault(f)] = n
	}
	return out, nil
}

func (a scrubs) Unnamed(ctx context.Context) (map[manifest.Suffix]time.Time, error) {
	list, err := a.s.Unnamed(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[manifest.Suffix]time.Time, len(list))
	for s, since := range list {
		out[s] = time.UnixMilli(since)
	}
	return out, nil
}

func (a scrubs) Begin(ctx context.Context, worker string, lease int64) (bool, error) {
	return a.s.BeginScrub(ctx, worker, lease)
}

func (a scrubs) End(ctx context.Context, worker string, lease int64, p *compaction.Pass) error {
	if p == nil {
		return a.s.EndScrub(ctx, worker, lease, nil)
	}
	out := &etcd.ScrubPass{Worker: p.Worker, Began: p.Began.UnixMilli(), Ended: p.Ended.UnixMilli(), Partitions: p.Partitions, Objects: p.Objects, Bytes: p.Bytes,
		Findings: make(map[string]int), Unnamed: make(map[[12]byte]int64, len(p.Unnamed))}
	for f, n := range p.Findings {
		out.Findings[string(f)] = n
	}
	for s, since := range p.Unnamed {
		out.Unnamed[s] = since.UnixMilli()
	}
	return a.s.EndScrub(ctx, worker, lease, out)
}
