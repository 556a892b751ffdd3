package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ScrubPass is what a look at everything that the manifests name came to.
type ScrubPass struct {
	V          int            `json:"v"`
	Worker     string         `json:"worker"`
	Began      int64          `json:"began"` // ms
	Ended      int64          `json:"ended"` // ms
	Partitions int            `json:"partitions"`
	Objects    int            `json:"objects"`
	Bytes      int64          `json:"bytes"`
	Findings   map[string]int `json:"findings,omitempty"` // by fault
}

type scrubbingValue struct {
	V      int    `json:"v"`
	Worker string `json:"worker"`
	Lease  int64  `json:"lease"`
}

// LastScrub reads what the last pass that was completed came to; nil if there was none.
func (s *Store) LastScrub(ctx context.Context) (*ScrubPass, error) {
	key := s.keys.scrubbed()
	resp, err := s.get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read the last scrub: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	p, err := decode[ScrubPass](key, resp.Kvs[0].Value)
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// BeginScrub makes worker the one that makes a pass, until EndScrub or until its lease ends; ok is false if there is
// another. After an error it may be the one all the same, until EndScrub.
func (s *Store) BeginScrub(ctx context.Context, worker string, lease int64) (ok bool, err error) {
	key := s.keys.scrubbing()
	value := encode(scrubbingValue{formatVersion, worker, lease})
	resp, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(clientv3.LeaseID(lease)))}, []clientv3.Op{clientv3.OpGet(key)})
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return false, ErrLeaseGone
	case err != nil:
		return false, fmt.Errorf("begin a scrub: %w", err)
	case resp.Succeeded:
		return true, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	return len(kvs) > 0 && string(kvs[0].Value) == value, nil // an attempt without an answer
}

// EndScrub lets others make a pass, and notes what this one came to, if it was completed. One whose lease has ended
// notes nothing.
func (s *Store) EndScrub(ctx context.Context, worker string, lease int64, p *ScrubPass) error {
	key := s.keys.scrubbing()
	ops := []clientv3.Op{clientv3.OpDelete(key)}
	if p != nil {
		p.V = formatVersion
		ops = append(ops, clientv3.OpPut(s.keys.scrubbed(), encode(*p)))
	}
	_, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", encode(scrubbingValue{formatVersion, worker, lease}))}, ops, nil)
	if err != nil {
		return fmt.Errorf("end the scrub: %w", err)
	}
	return nil
}
