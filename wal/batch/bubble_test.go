package batch

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Codecs that are made in one bubble of fake time are used in the next, with more at a time than are kept.
func TestCodecsInFakeTime(t *testing.T) {
	next, done := make(chan func()), make(chan struct{})
	var making sync.Mutex
	go func() {
		for f := range next {
			f()
			done <- struct{}{}
		}
	}()
	defer close(next)
	defer func(before func(func())) { Apart = before }(Apart)
	Apart = func(f func()) {
		making.Lock()
		defer making.Unlock()
		next <- f
		<-done
	}
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			var wg sync.WaitGroup
			for range 2 * idle {
				wg.Go(func() {
					b := NewBuilder()
					b.Codec = Zstd
					b.Add(0, nil, make([]byte, 100_000))
					run, err := b.Build()
					if err != nil {
						t.Error(err)
						return
					}
					for _, err := range Records(run, 1<<20) {
						if err != nil {
							t.Error(err)
						}
						time.Sleep(time.Second) // the others have theirs
					}
				})
			}
			wg.Wait()
		})
	}
}
