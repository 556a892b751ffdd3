package coordinator

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// toy is a machine that does what it is told, and keeps a list of what it was given to apply.
type toy struct {
	s       *shard[*toy, toyCommand, toyCommand]
	mu      sync.Mutex
	applied []string
	done    []string
	led     []int32
	due     map[string]time.Time
}

type toyCommand struct {
	key   string
	n     int // records
	h     *header
	later func(c toyCommand)
	what  string
}

func (m *toy) Handle(_ time.Time, c toyCommand) (toyCommand, outcome) {
	if c.later != nil {
		c.later(c)
		return c, outcome{key: c.key, later: true}
	}
	return c, outcome{key: c.key, records: c.n, header: c.h, moves: true}
}

func (m *toy) Record(c toyCommand, i int) (key, value []byte) {
	if c.h != nil && c.h.control {
		return binary.BigEndian.AppendUint32(nil, 1), []byte{0, 0, 0, 0, 0, 7} // a commit
	}
	return []byte(c.key), fmt.Append(nil, c.what, i)
}

func (m *toy) Apply(h batch.Header, offset int64, key, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.Control() {
		m.applied = append(m.applied, fmt.Sprintf("%d: marker of %d/%d", offset, h.ProducerID, h.ProducerEpoch))
		return nil
	}
	m.applied = append(m.applied, fmt.Sprintf("%d: %s %s of %d/%d in %d %v", offset, key, value, h.ProducerID, h.ProducerEpoch, h.RecordCount, h.Transactional()))
	return nil
}

func (m *toy) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = append(m.done, what)
}

func (m *toy) list() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint(m.done)
}

func (m *toy) Settle(_ time.Time, c toyCommand)    { m.note(c.what) }
func (m *toy) Fail(c toyCommand, code int16)       { m.note(fmt.Sprint(c.what, " failed with ", code)) }
func (m *toy) Loaded(time.Time) []toyCommand       { return nil }
func (m *toy) Led(epoch int32)                     { m.mu.Lock(); defer m.mu.Unlock(); m.led = append(m.led, epoch) }
func (m *toy) Grows(toyCommand) growth             { return noGrowth }
func (m *toy) Keys() []string                      { return nil }
func (m *toy) Bytes() int64                        { return 0 }
func (m *toy) Count() tally                        { return toyTally{} }
func (m *toy) Deadline(k string) (time.Time, bool) { at, ok := m.due[k]; return at, ok }

type toyTally struct{}

func (toyTally) line() []any { return nil }

// toys is a host of toys that has loaded its only partition.
func toys(t *testing.T, log *memLog) (*host[*toy, toyCommand, toyCommand], *toy) {
	var last *toy
	h := newHost(Options{Log: log}, kind[*toy, toyCommand, toyCommand]{name: "toys",
		machine: func(s *shard[*toy, toyCommand, toyCommand]) *toy {
			last = &toy{s: s}
			return last
		},
		of:   func(c toyCommand) subject { return subject{c.key, exclusive, c.what == "tick"} },
		tick: func(key string) toyCommand { return toyCommand{key: key, what: "tick"} },
	}, 1)
	h.Elected(0, 1)
	t.Cleanup(h.Close)
	until(t, func() bool { return h.Ready(0) })
	return h, last
}

// TestHeaders lets plain and transactional records and markers come together while the log is busy: those of the same
// header share a batch, markers are alone, the order is that of the commands, and a replay says the same of every record as
// its commit did.
func TestHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		h, m := toys(t, log)
		one, two, marker := &header{producerID: 1, transactional: true}, &header{producerID: 2, producerEpoch: 3, transactional: true},
			&header{producerID: 1, transactional: true, control: true}
		log.hold()
		for i := range maxInflight { // so that all that follows is gathered
			m.s.own(toyCommand{key: fmt.Sprint("f", i), n: 1, what: "full"})
			synctest.Wait()
		}
		for i, c := range []toyCommand{{n: 2, what: "plain"}, {n: 1, what: "plain"}, {n: 1, h: one, what: "one"}, {n: 1, h: &header{producerID: 1, transactional: true}, what: "one"},
			{n: 1, h: two, what: "two"}, {n: 1, h: marker, what: "marker"}, {n: 1, h: marker, what: "marker"}, {n: 1, what: "plain"}} {
			c.key = fmt.Sprint("k", i)
			m.s.own(c)
		}
		synctest.Wait()
		log.release()
		synctest.Wait()
		want := []string{"0: f0 full0 of -1/-1 in 1 false", "1: f1 full0 of -1/-1 in 1 false", "2: f2 full0 of -1/-1 in 1 false", "3: f3 full0 of -1/-1 in 1 false",
			"4: k0 plain0 of -1/-1 in 3 false", "5: k0 plain1 of -1/-1 in 3 false", "6: k1 plain0 of -1/-1 in 3 false",
			"7: k2 one0 of 1/0 in 2 true", "8: k3 one0 of 1/0 in 2 true", "9: k4 two0 of 2/3 in 1 true",
			"10: marker of 1/0", "11: marker of 1/0", "12: k7 plain0 of -1/-1 in 1 false"}
		if !slices.Equal(m.applied, want) {
			t.Errorf("applied %q", m.applied)
		}
		h.Close()
		if _, next := toys(t, log); !slices.Equal(next.applied, want) {
			t.Errorf("replayed %q", next.applied)
		}
	})
}

// TestLater is a command that is put off: it comes back, or fails, and whoever waits is answered once.
func TestLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemLog()
		h, m := toys(t, log)
		var got answer
		ask := func(o op[*toy, toyCommand]) {
			o.token, o.call = h.tokens.Add(1), newCall()
			if code := m.s.submit(o); code != protocol.CodeNone {
				got = answer{code: code}
				return
			}
			got = await(bg, o.call, time.Hour)
		}
		var resume func(code int16)
		put := toyCommand{key: "k", what: "put off", later: func(c toyCommand) {
			c.later = nil
			resume = func(code int16) { m.s.resume(h.tokens.Load(), c, code) }
		}}
		go ask(op[*toy, toyCommand]{cmd: put})
		synctest.Wait()
		resume(protocol.CodeRequestTimedOut)
		synctest.Wait()
		expect(t, "code", got.code, protocol.CodeRequestTimedOut)

		// One of the shard's own is ticked a second later, though the machine has no deadline.
		put.later = func(c toyCommand) { m.s.resume(0, c, protocol.CodeRequestTimedOut) }
		m.s.own(put)
		time.Sleep(retryAfter - 1)
		synctest.Wait()
		expect(t, "ticks", m.list(), "[]")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		expect(t, "ticks", m.list(), "[tick]")

		// Whoever waits is sent away with the shard, wherever the command is: here at a gate, after it has come back.
		log.hold()
		m.s.own(toyCommand{key: "k", n: 1, what: "in the way"})
		put.key = "other"
		put.later = func(toyCommand) {
			resume = func(code int16) { m.s.resume(h.tokens.Load(), toyCommand{key: "k", n: 1, what: "behind"}, code) }
		}
		go ask(op[*toy, toyCommand]{cmd: put})
		synctest.Wait()
		expect(t, "put off", m.s.nLater, 1)
		resume(0)
		synctest.Wait()
		expect(t, "at a gate", m.s.nHeld, 1)
		got = answer{}
		h.Resigned(0)
		synctest.Wait()
		expect(t, "code", got.code, protocol.CodeNotCoordinator)
	})
}

func TestLed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := toys(t, newMemLog())
		h.Elected(0, 2)
		synctest.Wait()
		expect(t, "epochs", fmt.Sprint(m.led), "[1 2]")
	})
}
