package etcd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

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

	// Unnamed are the objects that no manifest named, by the suffixes of their names, and since which pass, in ms. It is
	// kept beside the pass: LastScrub, which is asked every minute, does not read it.
	Unnamed map[[12]byte]int64 `json:"-"`
}

// MaxUnnamed is how many unnamed objects may be noted: 27 bytes each, in one request.
const MaxUnnamed = 10_000

// unnamedValue has the objects that were first seen together together.
type unnamedValue struct {
	V    int           `json:"v"`
	Seen []unnamedSeen `json:"seen"`
}

type unnamedSeen struct {
	Since   int64    `json:"since"` // ms
	Objects []string `json:"objects"`
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

// Unnamed reads the objects that no manifest named at the last pass that was completed, and since when, in ms.
func (s *Store) Unnamed(ctx context.Context) (map[[12]byte]int64, error) {
	key := s.keys.unnamed()
	resp, err := s.get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read what the last scrub found unnamed: %w", err)
	}
	out := make(map[[12]byte]int64)
	if len(resp.Kvs) == 0 {
		return out, nil
	}
	v, err := decode[unnamedValue](key, resp.Kvs[0].Value)
	if err != nil {
		return nil, err
	}
	for _, seen := range v.Seen {
		for _, o := range seen.Objects {
			var suffix [12]byte
			if n, err := hex.Decode(suffix[:], []byte(o)); err != nil || n != len(suffix) {
				return nil, fmt.Errorf("%w: %q: object %q", ErrFormat, key, o)
			}
			out[suffix] = seen.Since
		}
	}
	return out, nil
}

// encodeUnnamed is the same bytes for the same objects.
func encodeUnnamed(unnamed map[[12]byte]int64) string {
	by := make(map[int64][]string)
	for suffix, since := range unnamed {
		by[since] = append(by[since], hex.EncodeToString(suffix[:]))
	}
	v := unnamedValue{V: formatVersion, Seen: []unnamedSeen{}}
	for _, since := range slices.Sorted(maps.Keys(by)) {
		slices.Sort(by[since])
		v.Seen = append(v.Seen, unnamedSeen{since, by[since]})
	}
	return encode(v)
}

// BeginScrub makes worker the one that makes a pass, until EndScrub or until its lease ends; ok is false if there is
// another. After an error it may be the one all the same, until EndScrub.
func (s *Store) BeginScrub(ctx context.Context, worker string, lease int64) (ok bool, err error) {
	key := s.keys.scrubbing()
	value := encode(scrubbingValue{formatVersion, worker, lease})
	resp, err := s.txnOnce(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
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
		if len(p.Unnamed) > MaxUnnamed {
			return fmt.Errorf("end the scrub: %d unnamed objects, at most %d can be noted", len(p.Unnamed), MaxUnnamed)
		}
		ops = append(ops, clientv3.OpPut(s.keys.scrubbed(), encode(*p)), clientv3.OpPut(s.keys.unnamed(), encodeUnnamed(p.Unnamed)))
	}
	_, err := s.txnOnce(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", encode(scrubbingValue{formatVersion, worker, lease}))}, ops, nil)
	if err != nil {
		return fmt.Errorf("end the scrub: %w", err)
	}
	return nil
}
