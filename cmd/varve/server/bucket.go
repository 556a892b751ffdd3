package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
)

// bond ties a cluster to one bucket. Every broker and every worker is told by its own configuration which it is. With another
// than the others', a leader would upload what it has, enter it into the manifest that all share, and give the log's
// copy back: from then on everybody else finds nothing where acknowledged records should be.
//
// The first broker ever leaves an object of a random name, then that name in etcd: the commit point. Of two that are the first, one
// removes its object again. Everybody else reads the name, and then the object.
type bond struct {
	store   *etcd.Store
	cluster string // its id
	bucket  objstore.Bucket
	founds  bool // a broker: leaves the object if nobody has
	accepts bool // an operator says that the bucket is the one; so the object is written again
	memory  bool // the bucket is of this process: nobody else can have it, and at the next start it is another
	log     *slog.Logger

	own string // the name that this process would give it
}

// At a start: how long the bucket is asked, and an object that is not there looked for again, which a network file system may show late.
const (
	bondTimeout = 5 * time.Second
	bondWait    = time.Second
)

// confirm is nil if the bucket is the cluster's, objstore.ErrNotShared or tiering.ErrForeign if it is not, and another error if that cannot be
// found out now. One at a time.
func (b *bond) confirm(ctx context.Context) error {
	if b.memory {
		return nil
	}
	token, err := b.store.Probe(ctx)
	if err != nil || token == "" && !b.founds {
		return err
	}
	if token == "" {
		// A bucket that is known by its object is the cluster's for good: no slip at the first start may make another's that.
		id, err := tiering.Owner(ctx, b.bucket)
		if err == nil && id != "" && id != b.cluster {
			err = fmt.Errorf("%w: %s is of cluster %q, and this is %q", tiering.ErrForeign, b.bucket, id, b.cluster)
		}
		if err != nil {
			return err
		}
		if b.own == "" {
			var name [16]byte
			rand.Read(name[:])
			b.own = hex.EncodeToString(name[:])
		}
		if err := objstore.WriteProbe(ctx, b.bucket, b.own); err != nil {
			return fmt.Errorf("leave in the bucket what it is known by: %w", err)
		}
		if token, err = b.store.EnsureProbe(ctx, b.own); err != nil || token == b.own {
			return err
		}
		if err := objstore.RemoveProbe(ctx, b.bucket, b.own); err != nil {
			b.log.Warn("an object that nothing names stays in the bucket", "object", "probe/"+b.own, "err", err)
		}
	}
	err = objstore.ConfirmProbe(ctx, b.bucket, token, bondWait)
	if errors.Is(err, objstore.ErrNotShared) && b.accepts {
		b.log.Warn("the bucket is taken for the cluster's, because --accept-bucket says so", "err", err)
		return objstore.WriteProbe(ctx, b.bucket, token)
	}
	return err
}

// early is confirm before anything of the cluster is changed. A bucket that does not answer (away) keeps nobody from starting, nor
// from starting soon: before something is uploaded, it will have.
func (b *bond) early(ctx context.Context, away bool) error {
	if away {
		return nil
	}
	c, cancel := context.WithTimeout(ctx, bondTimeout)
	defer cancel()
	err := b.confirm(c)
	switch {
	case errors.Is(err, tiering.ErrForeign):
		return err
	case errors.Is(err, objstore.ErrNotShared):
		return fmt.Errorf("%w. Where the bucket was emptied, copied without that object, or another one at the cluster's first start, --accept-bucket has a broker take it nevertheless", err)
	case err != nil:
		b.log.Warn("whether the bucket is the one that the cluster's other brokers have is not known yet: nothing is uploaded before it is", "err", err)
	}
	return nil
}

func inMemory(c *config.BrokerConfig) bool { return strings.HasPrefix(c.RemoteStorageURL, "mem:") }
