package objstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// A directory is easily configured on every broker and shared by none: each then sees only what it wrote itself, and
// the history of a partition that moves is gone. A bucket is as easily mistyped. So before several brokers use one, each makes
// sure that it is the one that the others see: the first of all writes a probe under a random token, which then is in the
// metadata, and everybody else confirms it.

// ErrNotShared means that a probe written by another process is not visible here.
var ErrNotShared = errors.New("bucket is not the one that the cluster's other brokers see")

const probePrefix = "probe/"

func probeKey(token string) (string, error) {
	key := probePrefix + token
	if err := CheckKey(key); err != nil {
		return "", err
	}
	return key, nil
}

func probeBody(token string) []byte { return []byte("varve shared bucket probe 1\n" + token + "\n") }

// WriteProbe leaves the probe of token in the bucket. Writing it again is no error.
func WriteProbe(ctx context.Context, b Bucket, token string) error {
	key, err := probeKey(token)
	if err != nil {
		return err
	}
	body := probeBody(token)
	return b.Put(ctx, key, bytes.NewReader(body), int64(len(body)), CRC32C(body))
}

// ConfirmProbe checks that the probe of token, written by another process, is visible here. It is ErrNotShared if it
// is not; network file systems cache what is missing, and what came is not always what is there, so it looks again for up to wait.
func ConfirmProbe(ctx context.Context, b Bucket, token string, wait time.Duration) error {
	key, err := probeKey(token)
	if err != nil {
		return err
	}
	want := probeBody(token)
	for deadline := time.Now().Add(wait); ; {
		got, err := ReadRange(ctx, b, key, 0, int64(len(want)))
		switch {
		case err == nil && bytes.Equal(got, want):
			return nil
		case err != nil && !errors.Is(err, ErrRange) && !errors.Is(err, ErrNotExist):
			return fmt.Errorf("confirm shared bucket: %w", err)
		case time.Now().Before(deadline):
		case !errors.Is(err, ErrNotExist):
			return fmt.Errorf("%w: %s in %s holds something else", ErrNotShared, key, b)
		default:
			return fmt.Errorf("%w: %s is not in %s; all brokers must be given the same bucket or mount the same directory there", ErrNotShared, key, b)
		}
		t := time.NewTimer(min(wait/10+time.Millisecond, time.Second))
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("confirm shared bucket: %w", ctx.Err())
		case <-t.C:
		}
	}
}

// RemoveProbe takes the probe of token away.
func RemoveProbe(ctx context.Context, b Bucket, token string) error {
	key, err := probeKey(token)
	if err != nil {
		return err
	}
	return b.Delete(ctx, []string{key})
}
