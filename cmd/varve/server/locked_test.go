package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A process that was killed a moment ago may have its directory open still; one that runs keeps it.
func TestUnlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locked, other := errors.New("locked"), errors.New("other")
		open := func(after time.Duration, then error) func() (int, error) {
			until := time.Now().Add(after)
			return func() (int, error) {
				if time.Now().Before(until) {
					return 0, fmt.Errorf("open: %w", locked)
				}
				return 1, then
			}
		}
		if v, err := unlocked(t.Context(), locked, open(time.Second, nil)); v != 1 || err != nil {
			t.Errorf("gone after a second: %d, %v", v, err)
		}
		begin := time.Now()
		if _, err := unlocked(t.Context(), locked, open(time.Hour, nil)); !errors.Is(err, locked) || time.Since(begin) > 2*lockPatience {
			t.Errorf("it runs: %v after %v", err, time.Since(begin))
		}
		begin = time.Now()
		if _, err := unlocked(t.Context(), locked, open(0, other)); !errors.Is(err, other) || time.Since(begin) > 0 {
			t.Errorf("another error: %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := unlocked(ctx, locked, open(time.Hour, nil)); !errors.Is(err, locked) {
			t.Errorf("interrupted: %v", err)
		}
	})
}
