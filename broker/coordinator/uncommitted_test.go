package coordinator

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/broker/protocol"
)

// tailLog is a log whose end is not committed before it is told so.
type tailLog struct {
	*memLog
	ends      chan int64 // that are waited for
	committed chan struct{}
}

func newTailLog(l *memLog) *tailLog { return &tailLog{l, make(chan int64, 100), make(chan struct{})} }

func (l *tailLog) Committed(ctx context.Context, _ int32, end int64) error {
	l.ends <- end
	select {
	case <-l.committed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestUncommittedDecision: a coordinator dies with the decision to commit on its way to the other replicas. The next one finds it, and
// may die as well before it is committed; then it has never been. So no marker is written before that.
func TestUncommittedDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, k := newMemLog(), &marked{}
		c := transactions(t, log, k, Options{})
		x := &txnClient{c: c, id: "x"}
		expect(t, "init", x.init(time.Minute), 0)
		expect(t, "add", x.add("t"), 0)
		log.hold()
		go x.end(5, true)
		synctest.Wait()
		c.Close()
		expect(t, "markers", len(k.list()), 0)

		tail := newTailLog(log)
		next := NewTransactions(Options{Log: tail, Markers: k}, 1)
		defer next.Close()
		next.Elected(0, 2)
		time.Sleep(time.Minute / 2)
		synctest.Wait()
		_, end := log.Extent(0)
		expect(t, "waits for", <-tail.ends, end)
		expect(t, "markers before it is committed", strings.Join(k.list(), ", "), "")
		expect(t, "its state", (&txnClient{c: next, id: "x"}).state(), protocol.Name(protocol.CodeCoordinatorLoadInProgress))
		close(tail.committed)
		synctest.Wait()
		expect(t, "markers", len(k.list()), 2)
	})
}

// TestUncommittedOffset: nor is an offset told that may yet be lost.
func TestUncommittedOffset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		c := one(t, log, Options{})
		expect(t, "commit", commit(c, "g", "", -1, 0, 7), 0)
		log.hold()
		go commit(c, "g", "", -1, 0, 8)
		synctest.Wait()
		c.Close()

		tail := newTailLog(log)
		next := New(Options{Log: tail}, 1)
		defer next.Close()
		next.Elected(0, 2)
		synctest.Wait()
		_, code := fetch(next, "g", 0, false)
		expect(t, "offset before it is committed", code, protocol.CodeCoordinatorLoadInProgress)
		close(tail.committed)
		synctest.Wait()
		off, _ := fetch(next, "g", 0, false)
		expect(t, "offset", off, 8)
	})
}
