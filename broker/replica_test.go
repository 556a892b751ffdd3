package broker

import (
	"errors"
	"slices"
	"testing"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/batch"
)

// The clock is set back by more than an hour: what was appended before must grow
// old from now on, and what is appended later must be marked, or nothing of a
// quiet partition is uploaded before the clock has caught up.
func TestAgesWhenTheClockGoesBack(t *testing.T) {
	const before, after = 10_000_000, 5_000_000
	r := &replica{}
	r.mark(0, before)
	r.mark(10, before+ageStep)
	r.rewind(after)
	for _, a := range r.ages {
		if a.ms != after {
			t.Errorf("records from %d on are marked %d, %d ms ahead of the clock", a.offset, a.ms, a.ms-after)
		}
	}
	r.mark(20, after-ageStep) // and once more
	r.mark(30, after)
	if n := len(r.ages); r.ages[n-1] != (ageMark{30, after}) {
		t.Errorf("the newest mark is %+v", r.ages[n-1])
	}
	for i, a := range r.ages {
		if a.ms > after || i > 0 && a.ms < r.ages[i-1].ms {
			t.Errorf("mark %d: %+v", i, a)
		}
	}
}

// deafTier is told that a high watermark has moved, and nothing else.
type deafTier struct{ Tier }

func (deafTier) Moved() {}

// told keeps what a request was answered.
type told struct{ codes []int16 }

func (s *told) settle(code int16) { s.codes = append(s.codes, code) }

func (s *told) is(codes ...int16) bool { return slices.Equal(s.codes, codes) }

// A batch that is sent again is acknowledged when the first one would be: not
// before it is durable, never if the log fails, and for acks=all not before the
// high watermark has passed it.
func TestRepetitionsWaitForTheFirst(t *testing.T) {
	leads := func(end, hw int64, isr ...int32) *replica {
		r := &replica{b: &Broker{tier: deafTier{}}, started: true, watches: map[*watch]struct{}{}}
		r.st = partition.New(1, partition.Recovered{LogEnd: end, HighWatermark: hw})
		if _, err := r.st.Lead(partition.Term{Epoch: 1, Replicas: []int32{1, 2}, ISR: isr, MinISR: 1}); err != nil {
			t.Fatal(err)
		}
		r.publish()
		return r
	}
	add := func(r *replica, n int32, to settler) int64 {
		base := r.st.View().LogEnd
		r.st.Appended(batch.Header{BaseOffset: base, LastOffsetDelta: n - 1, ProducerID: -1}, nil)
		end := base + int64(n)
		r.waiting = append(r.waiting, appendWait{end: end, commit: to})
		return end
	}

	r := leads(0, 0, 1)
	var first, all, one, none told
	end := add(r, 5, &first)
	r.waitCommitted(end, -1, &all)
	r.waitCommitted(end, 1, &one)
	r.waitCommitted(end, 0, &none)
	if !all.is() || !one.is() || !none.is(protocol.CodeNone) {
		t.Errorf("before the sync: acks=all %v, acks=1 %v, acks=0 %v", all, one, none)
	}
	r.durable(end, nil)
	if !first.is(protocol.CodeNone) || !all.is(protocol.CodeNone) || !one.is(protocol.CodeNone) {
		t.Errorf("after the sync: the first %v, acks=all %v, acks=1 %v", first, all, one)
	}

	// The log fails, and the repetition has got past its reservation.
	first, all, one = told{}, told{}, told{}
	end = add(r, 5, &first)
	r.durable(end, errors.New("fsync failed"))
	r.waitCommitted(end, -1, &all)
	r.waitCommitted(end, 1, &one)
	if !first.is(protocol.CodeKafkaStorageError) || !all.is(protocol.CodeKafkaStorageError) || !one.is(protocol.CodeKafkaStorageError) {
		t.Errorf("after a failed sync: the first %v, acks=all %v, acks=1 %v", first, all, one)
	}

	// Durable here since before a restart, and not on the other replica yet.
	r = leads(10, 5, 1, 2)
	all, one = told{}, told{}
	r.waitCommitted(10, 1, &one)
	r.waitCommitted(10, -1, &all)
	if !one.is(protocol.CodeNone) || !all.is() {
		t.Errorf("durable and not committed: acks=1 %v, acks=all %v", one, all)
	}
	r.st.FollowerDurable(2, 10)
	if _, to, _ := r.settle(10); to != nil {
		to.settle(protocol.CodeNone)
	}
	if !all.is(protocol.CodeNone) {
		t.Errorf("committed: acks=all %v", all)
	}
}
