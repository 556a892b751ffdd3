package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
)

// Auditor looks at a cluster's bucket by what etcd says should be there. It needs no broker and changes nothing.
type Auditor struct {
	s     *Server // of which it has the connections
	store *etcd.Store
	im    *image.Image
}

// OpenAuditor connects to the metadata and the bucket of a cluster that exists.
func OpenAuditor(ctx context.Context, c *config.BrokerConfig, log *slog.Logger) (a *Auditor, err error) {
	s := &Server{o: Options{Config: c, Logger: log}, log: log}
	a = &Auditor{s: s}
	defer func() {
		if err != nil {
			a.Close()
			a = nil
		}
	}()
	if a.store, err = s.openStore(ctx, false); err != nil {
		return a, err
	}
	if a.im, err = a.store.Load(ctx); err != nil {
		return a, fmt.Errorf("metadata: %w", err)
	}
	if a.im.ClusterID == "" {
		return a, fmt.Errorf("etcd holds no cluster under etcd.prefix=%s", c.EtcdPrefix)
	}
	if s.bucket, err = s.openBucket(ctx, false, newStoreMetrics(prometheus.NewRegistry()).events()); err != nil {
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
	return errors.Join(errs...)
}
