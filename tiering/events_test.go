package tiering

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/tiering/objstore"
)

// The log has a line for each kind of failure of a duty, now and then, and one when it is over.
func TestFailuresSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f failures
		reset, denied := fmt.Errorf("put: %w", objstore.ErrUnavailable), fmt.Errorf("put: %w", objstore.ErrDenied)
		began := time.Now()
		for i, step := range []struct {
			after time.Duration
			duty  Duty
			err   error
			say   bool
		}{
			{0, Upload, nil, false},
			{0, Upload, reset, true},
			{time.Second, Upload, reset, false},
			{0, Upload, denied, true},
			{0, Upload, reset, false},
			{0, Upload, denied, false},
			{0, Collect, denied, true},
			{logEvery - time.Second, Upload, reset, true},
			{0, Upload, denied, false},
			{time.Second, Upload, denied, true},
		} {
			time.Sleep(step.after)
			since, say := f.set(step.duty, step.err)
			if say != step.say || step.err != nil && step.duty == Upload && !since.Equal(began) {
				t.Errorf("step %d: says %t, failing since %s", i, say, since.Sub(began))
			}
		}
		if !errors.Is(f.get(), objstore.ErrDenied) {
			t.Errorf("the last: %v", f.get())
		}
		if since, say := f.set(Upload, nil); !say || !since.Equal(began) {
			t.Errorf("over: says %t, failed since %s", say, since.Sub(began))
		}
		if _, say := f.set(Upload, reset); !say {
			t.Error("it fails anew, and nothing is said")
		}
	})
}
