package etcd

import (
	"context"
	"encoding/hex"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// HeldMark is the mark of a broker's log directory as etcd has it.
type HeldMark struct {
	WAL, Mark [16]byte
	Revision  int64 // 0: there is none
}

func heldMark(key string, resp *clientv3.GetResponse) (HeldMark, error) {
	if len(resp.Kvs) == 0 {
		return HeldMark{}, nil
	}
	v, err := decode[markValue](key, resp.Kvs[0].Value)
	if err != nil {
		return HeldMark{}, err
	}
	h := HeldMark{Revision: resp.Kvs[0].ModRevision}
	if h.WAL, err = unhex(key, v.WAL); err == nil {
		h.Mark, err = unhex(key, v.Mark)
	}
	return h, err
}

// Mark reads the mark of a broker's log directory.
func (s *Store) Mark(ctx context.Context, id int32) (HeldMark, error) {
	resp, err := s.get(ctx, s.keys.mark(id))
	if err != nil {
		return HeldMark{}, err
	}
	return heldMark(s.keys.mark(id), resp)
}

// PutMark replaces the mark of a broker's log directory, if that is the one held,
// for the process that has the session of that revision. It is sent again, with
// the same mark, after an error that leaves open whether it was written; then it
// finds what it wrote. ErrConflict: the session is over.
func (s *Store) PutMark(ctx context.Context, id int32, session int64, held HeldMark, wal, mark [16]byte) (HeldMark, error) {
	key := s.keys.mark(id)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.keys.session(id)), "=", session), clientv3.Compare(clientv3.ModRevision(key), "=", held.Revision)},
		[]clientv3.Op{clientv3.OpPut(key, encode(markValue{formatVersion, hex.EncodeToString(wal[:]), hex.EncodeToString(mark[:])}))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return held, fmt.Errorf("mark of broker %d: %w", id, err)
	}
	if resp.Succeeded {
		return HeldMark{wal, mark, resp.Header.Revision}, nil
	}
	now, err := heldMark(key, (*clientv3.GetResponse)(resp.Responses[0].GetResponseRange()))
	if err == nil && (now.WAL != wal || now.Mark != mark) {
		err = fmt.Errorf("%w: mark of broker %d", ErrConflict, id)
	}
	return now, err
}
