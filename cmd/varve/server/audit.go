package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/tiering/objstore"
)

// Auditor looks at a cluster's bucket by what etcd says should be there. It needs no broker and changes nothing.
type Auditor struct {
	s     *Server // of which it has the connections
	store *etcd.Store
	close func() error // the metadata of a directory; nil: there is none
	im    *image.Image
}

// OpenAuditor connects to the metadata and the bucket of a cluster that exists. With dataDir, it is what varve dev has
// there, whether it runs or not, but for what the configuration says otherwise.
func OpenAuditor(ctx context.Context, c *config.BrokerConfig, dataDir string, log *slog.Logger) (a *Auditor, err error) {
	ownBucket := dataDir != "" && c.RemoteStorageURL == ""
	if ownBucket {
		dir, err := filepath.Abs(filepath.Join(dataDir, "objects"))
		if err != nil {
			return nil, err
		}
		of := *c
		of.RemoteStorageURL = objstore.FileURL(dir)
		c = &of
	}
	s := &Server{o: Options{Config: c, Logger: log}, log: log}
	a = &Auditor{s: s}
	defer func() {
		if err != nil {
			a.Close()
			a = nil
		}
	}()
	if dataDir != "" && len(c.EtcdEndpoints) == 0 {
		var client *clientv3.Client
		client, a.close, err = etcd.OpenReader(ctx, filepath.Join(dataDir, "etcd"), etcd.DialOptions{Prefix: c.EtcdPrefix, Timeout: c.EtcdDialTimeout, Logger: log.With("part", "etcd")})
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return a, fmt.Errorf("%s holds no metadata of a varve dev: name what its --data-dir is", dataDir)
		case errors.Is(err, etcd.ErrNoReaders):
			return a, fmt.Errorf("a process has %s open and lets nobody look; it has logged why (%w): stop it first", dataDir, err)
		case err != nil:
			return a, err
		}
		a.store = etcd.New(etcd.Options{Client: client, Prefix: c.EtcdPrefix, RequestTimeout: c.EtcdRequestTimeout, Logger: log.With("part", "metadata")})
	} else if a.store, err = s.openStore(ctx, false); err != nil {
		return a, err
	}
	if a.im, err = a.store.Load(ctx); err != nil {
		return a, fmt.Errorf("metadata: %w", err)
	}
	if a.im.ClusterID == "" {
		return a, fmt.Errorf("etcd holds no cluster under etcd.prefix=%s", c.EtcdPrefix)
	}
	if s.bucket, err = s.openBucket(ctx, false, false, newStoreMetrics(prometheus.NewRegistry()).events()); err != nil {
		if ownBucket && errors.Is(err, objstore.ErrNoBucket) {
			err = fmt.Errorf("%w; if varve dev was given another remote.storage.url, give it here with --set", err)
		}
		return a, err
	}
	owner, err := tiering.Owner(ctx, s.bucket)
	if err != nil {
		return a, fmt.Errorf("remote.storage.url: %w", err)
	}
	if owner != "" && owner != a.im.ClusterID {
		return a, fmt.Errorf("remote.storage.url: %s is the bucket of cluster %s, etcd holds cluster %s", s.bucket, owner, a.im.ClusterID)
	}
	return a, nil
}

// Check audits one topic, or all.
func (a *Auditor) Check(ctx context.Context, topic string, o tiering.AuditOptions) (*tiering.Audit, error) {
	if topic != "" && a.im.Topic(topic) == nil {
		return nil, fmt.Errorf("topic %q does not exist", topic)
	}
	o.Topic = func(id [16]byte) (string, bool) {
		t := a.im.TopicByID(id)
		if t == nil {
			return "", false // deleted, or made since
		}
		return t.Name, topic == "" || t.Name == topic
	}
	return tiering.Check(ctx, a.s.bucket, manifests{a.store.Manifests()}, o)
}

// Close ends the connections.
func (a *Auditor) Close() error {
	var errs []error
	if a.s.bucket != nil {
		errs = append(errs, a.s.bucket.Close())
	}
	if a.s.client != nil {
		errs = append(errs, a.s.client.Close())
	}
	if a.close != nil {
		errs = append(errs, a.close())
	}
	return errors.Join(errs...)
}
