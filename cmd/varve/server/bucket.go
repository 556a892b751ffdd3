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
// The first broker ever marks the bucket as the cluster's, leaves an object of a random name, then that name in etcd: the commit point.
// Of two that are the first, one takes back what it has left. Everybody else reads the name, and then the object. An operator's
// --accept-bucket leaves another object, and then its name in etcd: the bucket that had the first one is the cluster's no more.
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

// errUnnamed says that a worker asks before the first broker has come to its bucket.
var errUnnamed = errors.New("no broker has left in its bucket yet what the cluster's bucket is known by")

// confirm is nil if the bucket is the cluster's, objstore.ErrNotShared or tiering.ErrForeign if it is not, and another error if that cannot be
// found out now. One at a time.
func (b *bond) confirm(ctx context.Context) error {
	if b.memory {
		return nil
	}
	token, err := b.store.Probe(ctx)
	if err != nil {
		return err
	}
	marked := false
	if token == "" {
		if !b.founds {
			return errUnnamed
		}
		if token, marked, err = b.found(ctx); err != nil || token == b.own {
			return err
		}
	}
	err = objstore.ConfirmProbe(ctx, b.bucket, token, bondWait)
	if !errors.Is(err, objstore.ErrNotShared) {
		return err
	}
	if b.accepts {
		return b.accept(ctx, token, err)
	}
	if marked {
		b.tidy("cluster", tiering.Unmark(ctx, b.bucket))
	}
	return err
}

// found makes the bucket the cluster's, if it is the first. It returns the name that is in etcd then, and whether the bucket
// has been marked by this.
func (b *bond) found(ctx context.Context) (token string, marked bool, err error) {
	// No slip at the first start may make another's bucket the cluster's; nor, of a cluster from before there were such names, an empty one.
	id, err := tiering.Owner(ctx, b.bucket)
	if err != nil {
		return "", false, err
	}
	if id == "" && !b.accepts {
		of, uploaded, err := tiering.Uploaded(ctx, manifests{b.store.Manifests()})
		if err != nil {
			return "", false, err
		}
		if uploaded {
			return "", false, fmt.Errorf("%w: records of this cluster are in object storage, of %s among others, and %s has never been a cluster's", objstore.ErrNotShared, of, b.bucket)
		}
	}
	if marked, err = tiering.Mark(ctx, b.bucket, b.cluster); err != nil {
		return "", false, err
	}
	if err := b.leave(ctx); err != nil {
		return "", marked, err
	}
	if token, err = b.store.EnsureProbe(ctx, b.own); err == nil && token != b.own {
		b.tidy("probe/"+b.own, objstore.RemoveProbe(ctx, b.bucket, b.own))
	}
	return token, marked, err
}

// leave leaves in the bucket the object of this process.
func (b *bond) leave(ctx context.Context) error {
	if b.own == "" {
		var name [16]byte
		rand.Read(name[:])
		b.own = hex.EncodeToString(name[:])
	}
	if err := objstore.WriteProbe(ctx, b.bucket, b.own); err != nil {
		return fmt.Errorf("leave in the bucket what it is known by: %w", err)
	}
	return nil
}

// accept makes this bucket the cluster's in the place of the one that was known by token. Another broker that is told the
// same at the same time may be first.
func (b *bond) accept(ctx context.Context, token string, why error) error {
	if _, err := tiering.Mark(ctx, b.bucket, b.cluster); err != nil {
		return err
	}
	b.log.Warn("the bucket is taken for the cluster's, because --accept-bucket says so", "err", why)
	if err := b.leave(ctx); err != nil {
		return err
	}
	now, err := b.store.ReplaceProbe(ctx, token, b.own)
	if err != nil || now == b.own {
		return err
	}
	b.tidy("probe/"+b.own, objstore.RemoveProbe(ctx, b.bucket, b.own))
	return objstore.ConfirmProbe(ctx, b.bucket, now, bondWait)
}

func (b *bond) tidy(object string, err error) {
	if err != nil {
		b.log.Warn("an object that nothing names stays in the bucket", "object", object, "err", err)
	}
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
	case errors.Is(err, errUnnamed):
		return nil // asked again before anything is changed
	case errors.Is(err, objstore.ErrNotShared):
		return fmt.Errorf("%w. Where the bucket was emptied, copied without that object, or another one at the cluster's first start, --accept-bucket has a broker take it nevertheless", err)
	case err != nil:
		b.log.Warn("whether the bucket is the one that the cluster's other brokers have is not known yet: nothing is uploaded before it is", "err", err)
	}
	return nil
}

func inMemory(c *config.BrokerConfig) bool { return strings.HasPrefix(c.RemoteStorageURL, "mem:") }
