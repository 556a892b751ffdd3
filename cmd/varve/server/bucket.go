package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
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
// Of two that are the first, one takes back what it has left. Everybody else reads the name, and then the object, once in its life. An
// operator's --accept-bucket leaves another object, and then its name in etcd, while no other broker runs: who runs would go on with
// the bucket that it has confirmed.
type bond struct {
	store   *etcd.Store
	cluster string // its id
	bucket  objstore.Bucket
	broker  int32 // who this is; of a broker
	founds  bool  // a broker: leaves the object if nobody has
	accepts bool  // an operator says that the bucket is the one; so it is given another object
	memory  bool  // the bucket is of this process: nobody else can have it, and at the next start it is another
	log     *slog.Logger

	own          string // the name that this process would give it
	marked, left bool   // by this process, and not yet known to be right
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
	if token == "" {
		if !b.founds {
			return errUnnamed
		}
		if token, err = b.found(ctx); err != nil {
			return err
		}
	}
	if b.left && token == b.own {
		b.marked, b.left = false, false // for good
		return nil
	}
	err = objstore.ConfirmProbe(ctx, b.bucket, token, bondWait)
	if errors.Is(err, objstore.ErrNotShared) && b.accepts {
		err = b.accept(ctx, token, err)
	}
	if errors.Is(err, objstore.ErrNotShared) {
		b.takeBack(ctx)
	}
	return err
}

// found makes the bucket the cluster's, if it is the first. It returns the name that is in etcd then.
func (b *bond) found(ctx context.Context) (token string, err error) {
	// No slip at the first start may make another's bucket the cluster's; nor, of a cluster from before there were such names, an empty one.
	id, err := tiering.Owner(ctx, b.bucket)
	if err != nil {
		return "", err
	}
	if id == "" && !b.accepts {
		of, uploaded, err := tiering.Uploaded(ctx, manifests{b.store.Manifests()})
		if err != nil {
			return "", err
		}
		if uploaded {
			return "", fmt.Errorf("%w: records of this cluster are in object storage, of %s among others, and %s has never been a cluster's", objstore.ErrNotShared, of, b.bucket)
		}
	}
	if err := b.leave(ctx); err != nil {
		return "", err
	}
	return b.store.EnsureProbe(ctx, b.own)
}

// leave marks the bucket, and leaves in it the object of this process.
func (b *bond) leave(ctx context.Context) error {
	made, err := tiering.Mark(ctx, b.bucket, b.cluster)
	if err != nil {
		return err
	}
	b.marked = b.marked || made
	if b.own == "" {
		var name [16]byte
		rand.Read(name[:])
		b.own = hex.EncodeToString(name[:])
	}
	if err := objstore.WriteProbe(ctx, b.bucket, b.own); err != nil {
		return fmt.Errorf("leave in the bucket what it is known by: %w", err)
	}
	b.left = true
	return nil
}

// accept makes this bucket the cluster's in the place of the one that is known by token.
func (b *bond) accept(ctx context.Context, token string, why error) error {
	im, err := b.store.Load(ctx)
	if err != nil {
		return err
	}
	var running []string
	for _, s := range im.Sessions() {
		if s.ID != b.broker {
			running = append(running, strconv.Itoa(int(s.ID)))
		}
	}
	if len(running) > 0 {
		// One that was told the same may have been first.
		now, err := b.store.Probe(ctx)
		switch {
		case err != nil:
			return err
		case now != token:
			return objstore.ConfirmProbe(ctx, b.bucket, now, bondWait)
		}
		return fmt.Errorf("%w. It is not taken while others go on with the bucket that they have: stop all compaction workers and brokers (these run: %s), and start this one first", why, strings.Join(running, ", "))
	}
	b.log.Warn("the bucket is taken for the cluster's, because --accept-bucket says so", "err", why)
	if err := b.leave(ctx); err != nil {
		return err
	}
	now, err := b.store.ReplaceProbe(ctx, token, b.own)
	if err != nil {
		return err
	}
	if now == b.own {
		b.marked, b.left = false, false
		return nil
	}
	return objstore.ConfirmProbe(ctx, b.bucket, now, bondWait)
}

// takeBack removes what this process has left in a bucket that is not the cluster's.
func (b *bond) takeBack(ctx context.Context) {
	if b.left {
		if err := objstore.RemoveProbe(ctx, b.bucket, b.own); err != nil {
			b.log.Warn("an object that nothing names stays in the bucket", "object", "probe/"+b.own, "err", err)
			return
		}
		b.left = false
	}
	if !b.marked {
		return
	}
	// Another broker may have been told meanwhile to take it.
	if token, err := b.store.Probe(ctx); err != nil || !errors.Is(objstore.ConfirmProbe(ctx, b.bucket, token, 0), objstore.ErrNotShared) {
		return
	}
	if err := tiering.Unmark(ctx, b.bucket); err != nil {
		b.log.Warn("the bucket stays marked as this cluster's, and no other can begin with it before that object is removed", "object", "cluster", "err", err)
		return
	}
	b.marked = false
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
		return fmt.Errorf("%w. Where the bucket was emptied, copied without that object, or another one at the cluster's first start, --accept-bucket has the first broker that starts, when all others and all compaction workers have ended, take it nevertheless", err)
	case err != nil:
		b.log.Warn("whether the bucket is the one that the cluster's other brokers have is not known yet: nothing is uploaded before it is", "err", err)
	}
	return nil
}

func inMemory(c *config.BrokerConfig) bool { return strings.HasPrefix(c.RemoteStorageURL, "mem:") }
