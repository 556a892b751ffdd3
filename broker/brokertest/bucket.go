package brokertest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/varve/varve/tiering/objstore"
)

// bucket is the one bucket behind all processes. It watches that no key is written twice (I8), and has others look at what is
// deleted.
type bucket struct {
	*objstore.Mem
	mu       sync.Mutex
	written  map[string]uint32 // the checksum of every key ever written
	wrong    func(format string, args ...any)
	deleting func(key string) // nil: nobody looks
}

func newBucket(wrong func(string, ...any)) *bucket {
	return &bucket{Mem: objstore.NewMem(), written: map[string]uint32{}, wrong: wrong}
}

func (b *bucket) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	b.mu.Lock()
	before, again := b.written[key]
	b.written[key] = crc
	b.mu.Unlock()
	if again {
		// The same bytes once more are the second attempt at what may have failed.
		if _, err := b.Head(ctx, key); err != nil || before != crc {
			b.wrong("I8: object %s is written a second time, after it was deleted or with other bytes", key)
		}
	}
	return b.Mem.Put(ctx, key, body, size, crc)
}

func (b *bucket) Delete(ctx context.Context, keys []string) error {
	for _, k := range keys {
		if b.deleting != nil {
			b.deleting(k)
		}
	}
	return b.Mem.Delete(ctx, keys)
}

// bucketLink is a process's way to the bucket: it takes time and ends with the process, but what was asked for before
// may be carried out after that.
type bucketLink struct {
	objstore.Bucket
	ctx context.Context // of the process

	mu      sync.Mutex
	changed sync.Cond
	rnd     *rand.Rand
	held    bool
}

func newBucketLink(ctx context.Context, b objstore.Bucket, seed uint64) *bucketLink {
	l := &bucketLink{Bucket: b, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 0x627563))}
	l.changed.L = &l.mu
	return l
}

// Hold has requests wait until it is called again without.
func (l *bucketLink) Hold(held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = held
	l.changed.Broadcast()
}

// way takes the time there.
func (l *bucketLink) way(ctx context.Context, most time.Duration) error {
	wake := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	defer context.AfterFunc(l.ctx, wake)()
	l.mu.Lock()
	for l.held && ctx.Err() == nil && l.ctx.Err() == nil {
		l.changed.Wait()
	}
	t := time.NewTimer(time.Duration(l.rnd.Int64N(int64(most))))
	l.mu.Unlock()
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-l.ctx.Done():
	}
	if ctx.Err() != nil || l.ctx.Err() != nil {
		return fmt.Errorf("%w: the process has ended or gave up", objstore.ErrUnavailable)
	}
	return nil
}

const (
	putTakes = 60 * time.Millisecond
	getTakes = 15 * time.Millisecond
)

func (l *bucketLink) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	if err := l.way(ctx, putTakes); err != nil {
		return err
	}
	if err := l.Bucket.Put(ctx, key, body, size, crc); err != nil {
		return err
	}
	return l.way(ctx, getTakes)
}

func (l *bucketLink) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	if err := l.way(ctx, getTakes); err != nil {
		return nil, err
	}
	return l.Bucket.GetRange(ctx, key, off, length)
}

func (l *bucketLink) Head(ctx context.Context, key string) (int64, error) {
	if err := l.way(ctx, getTakes); err != nil {
		return 0, err
	}
	return l.Bucket.Head(ctx, key)
}

func (l *bucketLink) List(ctx context.Context, prefix, after string, limit int) ([]objstore.Info, bool, error) {
	if err := l.way(ctx, getTakes); err != nil {
		return nil, false, err
	}
	return l.Bucket.List(ctx, prefix, after, limit)
}

func (l *bucketLink) Delete(ctx context.Context, keys []string) error {
	if err := l.way(ctx, putTakes); err != nil {
		return err
	}
	return l.Bucket.Delete(ctx, keys)
}

// Close leaves the bucket to the others.
func (l *bucketLink) Close() error { return nil }
