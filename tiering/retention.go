package tiering

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/varve/varve/tiering/manifest"
	"github.com/varve/varve/wal/batch"
)

// retentionLoop moves the log start of led partitions past what their topic's
// retention lets go. Only the leader decides; what is then no longer named is
// deleted by the collector.
func (t *Tier) retentionLoop() {
	for sleep(t.ctx, t.o.RetentionInterval) {
		var failed error
		for _, l := range t.leaders() {
			if l.ctx.Err() != nil {
				continue
			}
			if err := t.retain(l); err != nil && l.ctx.Err() == nil {
				failed = fmt.Errorf("retention of %s: %w", l.key, err)
			}
		}
		if t.ctx.Err() == nil {
			t.outcome(Retention, failed)
		}
	}
}

// maxExpireBytes bounds how much of the local log one pass reads to find out
// what has expired.
const maxExpireBytes = 256 << 20

func (t *Tier) retain(l *leader) error {
	p := l.r.Policy()
	if !p.Delete || p.RetentionMs < 0 && p.RetentionBytes < 0 {
		return nil
	}
	return t.byView(l.ctx, l, func(v *view) error { return t.retainBy(l, p, v) })
}

func (t *Tier) retainBy(l *leader, p Policy, v *view) error {
	now := time.Now().UnixMilli()
	start := v.head.LogStart
	local, oldest := l.r.Pending(v.head.NextBase())
	if e := l.oldest; e != nil && e.Base <= v.head.RemoteStart() && e.Last >= v.head.RemoteStart() && !expired(p, *e, retained{v.bytes, local}, now) {
		// Without a look at its page, which for most partitions of most brokers is
		// not in memory. The view's bytes may be too many, never too few.
		return nil
	}
	remote, err := t.live(l.ctx, l.key, v.head)
	if err != nil {
		return err
	}
	total := retained{remote, local}
	all := true
	err = t.entries(l.ctx, l.key, v.head, func(e manifest.Entry) (bool, error) {
		if e.Last < v.head.LogStart { // kept for its footer alone
			return false, nil
		}
		l.oldest = &e
		if all = expired(p, e, total, now); all {
			start = e.Next()
			total.remote -= e.Bytes
		}
		return all, nil
	})
	if err != nil {
		return err
	}
	// Records that are not in the bucket expire too, or a topic whose copying is
	// disabled, or a bucket that is away for longer than retention, would keep
	// them for ever.
	late := p.RetentionMs >= 0 && oldest > 0 && oldest < now-p.RetentionMs
	if all && local > 0 && (p.CopyDisabled || late || p.RetentionBytes >= 0 && local > p.RetentionBytes) {
		if start, err = t.expireLocal(l, p, max(start, v.head.NextBase()), now); err != nil {
			return err
		}
	}
	if start <= v.head.LogStart {
		return nil
	}
	_, err = t.moveLogStart(l.ctx, l, start)
	return err
}

// expireLocal returns the offset below which all local records from from on have
// expired.
func (t *Tier) expireLocal(l *leader, p Policy, from, now int64) (int64, error) {
	_, _, hw, _ := l.r.Extent()
	errStop := errors.New("not expired")
	for read := 0; from < hw && read < maxExpireBytes && l.ctx.Err() == nil; {
		run, err := l.r.Read(from, maxBodyBuf, hw)
		if err != nil {
			return from, fmt.Errorf("read the log at %d: %w", from, err)
		}
		before := from
		for _, c := range run.Chunks {
			err = batch.Walk(c, func(h batch.Header, raw []byte) error {
				ts := h.MaxTimestamp
				if ts < 0 {
					_, ts = l.r.Pending(h.BaseOffset)
				}
				gone := p.RetentionMs >= 0 && ts < now-p.RetentionMs
				if !gone && p.RetentionBytes >= 0 {
					rest, _ := l.r.Pending(h.NextOffset())
					gone = rest >= p.RetentionBytes
				}
				if !gone || h.LastOffset() >= hw {
					return errStop
				}
				from, read = h.NextOffset(), read+len(raw)
				return nil
			})
			if err != nil {
				break
			}
		}
		run.Release()
		if err != nil && !errors.Is(err, errStop) {
			return from, err
		}
		if err != nil || from == before {
			break
		}
	}
	return from, nil
}

func (t *Tier) moveLogStart(ctx context.Context, l *leader, to int64) (int64, error) {
	moved := false
	err := t.commit(ctx, l, func(h *manifest.Head, _ func(manifest.PageRef) *manifest.Page) (*manifest.Edit, error) {
		if moved = h.LogStart < to; !moved {
			return nil, nil
		}
		return &manifest.Edit{LogStart: to}, nil
	})
	if err != nil {
		return 0, err
	}
	// What could not be uploaded may be what was deleted.
	l.mu.Lock()
	again := moved && !l.retryAt.IsZero()
	if again {
		l.retryAt = time.Time{}
	}
	l.mu.Unlock()
	if again {
		t.kick()
	}
	return l.view.Load().head.LogStart, nil
}

// AdvanceLogStart moves the log start of a led partition to to, if it lies below,
// and returns what it is then: committed in the head, and told to the replica, so
// that nobody is shown what was deleted once somebody was told that it is. It
// needs the metadata store, not the bucket.
func (t *Tier) AdvanceLogStart(ctx context.Context, topicID [16]byte, partition int32, to int64) (int64, error) {
	key := partitionKey{topicID, partition}
	l := t.leader(key)
	if l == nil || l.ctx.Err() != nil {
		return 0, fmt.Errorf("log start of %s: %w", key, ErrNotLed)
	}
	start, err := t.moveLogStart(ctx, l, to)
	if err == nil {
		err = t.untilTold(ctx, l)
	}
	if err != nil {
		return 0, fmt.Errorf("log start of %s to %d: %w", key, to, err)
	}
	return start, nil
}

// untilTold waits until the replica was told of what is committed.
func (t *Tier) untilTold(ctx context.Context, l *leader) error {
	ctx, cancel := both(ctx, l.ctx)
	defer cancel()
	for l.unread.Load() {
		t.readBackLater(l)
		if l.unread.Load() && !sleep(ctx, jittered(t.o.MinBackoff)) {
			return ctx.Err()
		}
	}
	return nil
}

// firstSleep spreads the first run of a rare duty.
func firstSleep(d time.Duration) time.Duration {
	return d/20 + time.Duration(rand.Int64N(int64(d)/20+1))
}
