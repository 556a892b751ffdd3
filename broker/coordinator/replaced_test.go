package coordinator

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/broker/protocol"
)

// replacedLog is a log of a broker that learns only by asking that it does not lead any more.
type replacedLog struct {
	*memLog
	mu    sync.Mutex
	code  int16
	asked int
}

func (l *replacedLog) Confirm(context.Context, int32) int16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	return l.code
}

// TestRepeatedEnd: a producer that keeps its epoch asks for the end of its transaction, and the coordinator that it asks was replaced
// before that transaction began: what it knows is the end of the one before. It must not say that this is it.
func TestRepeatedEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &replacedLog{memLog: newMemLog()}
		x := &txnClient{c: transactions(t, log, &marked{}, Options{}), id: "x"}
		expect(t, "init", x.init(time.Minute), 0)
		expect(t, "add", x.add("t"), 0)
		expect(t, "end", x.end(4, true), 0)
		synctest.Wait()
		expect(t, "questions while all is appended", log.asked, 0)
		expect(t, "the same again", x.end(4, true), 0)
		expect(t, "questions", log.asked, 1)

		log.code = protocol.CodeNotCoordinator
		expect(t, "the end of the next one", x.end(4, true), protocol.CodeNotCoordinator)
		log.code = protocol.CodeNone
		expect(t, "add", x.add("t"), 0)
		log.code = protocol.CodeNotCoordinator
		expect(t, "what is in it already", x.add("t"), protocol.CodeNotCoordinator)
		expect(t, "a verification", x.verify("t"), protocol.CodeNotCoordinator)
		expect(t, "a verification of what is not in it", x.verify("u"), protocol.CodeTransactionAbortable)
		log.code = protocol.CodeNone
		expect(t, "a verification, while it leads", x.verify("t"), 0)
	})
}
