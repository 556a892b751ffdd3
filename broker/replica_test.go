package broker

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/lineage"
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

// deafLog is a log in the same position.
type deafLog struct{ Log }

func (deafLog) HighWatermark(wal.PartitionID, int64) {}

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
		r.view.Store(&partition.View{})
		r.st = partition.New(1, partition.Recovered{LogEnd: end, HighWatermark: hw})
		if _, err := r.st.Lead(partition.Term{Epoch: 1, Replicas: []int32{1, 2}, ISR: isr, MinISR: 1}, 0); err != nil {
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
	r.durable(0, end, nil)
	if !first.is(protocol.CodeNone) || !all.is(protocol.CodeNone) || !one.is(protocol.CodeNone) {
		t.Errorf("after the sync: the first %v, acks=all %v, acks=1 %v", first, all, one)
	}

	// The log fails, and the repetition has got past its reservation.
	first, all, one = told{}, told{}, told{}
	end = add(r, 5, &first)
	r.durable(0, end, errors.New("fsync failed"))
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
	r.st.Fetched(2, 1, 10, 0)
	if _, to, _ := r.settle(10); to != nil {
		to.settle(protocol.CodeNone)
	}
	if !all.is(protocol.CodeNone) {
		t.Errorf("committed: acks=all %v", all)
	}
}

// fullLog has no room for a while, and keeps what is appended.
type fullLog struct {
	Log
	wait     func()
	appended []*wal.Append
	reserved int64
}

func (l *fullLog) Reserve(_ context.Context, _ wal.Class, n int64) error {
	l.wait()
	l.reserved += n
	return nil
}
func (l *fullLog) Unreserve(n int64)    { l.reserved -= n }
func (l *fullLog) Append(a *wal.Append) { l.appended = append(l.appended, a) }

// A coordinator's batch waits for room in the log. Meanwhile the partition is
// led in other epochs, and has been loaded by the coordinator of the last: it
// must not come in behind that one's back. Markers and offsets of transactions
// come with a ticket, and are held to the same.
func TestAppendOutlastsLeadership(t *testing.T) {
	run := func() []byte {
		b := batch.NewBuilder()
		b.Add(1, []byte("k"), []byte("v"))
		run, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	for _, tc := range []struct {
		name   string
		ticket any
		run    []byte
	}{
		{"plain", nil, run()},
		{"marker", txnMarker{producerID: 7, commit: true}, batch.Marker(7, 0, true, 0, 1)},
	} {
		for _, moves := range []bool{false, true} {
			log := &fullLog{wait: func() {}}
			b := &Broker{tier: deafTier{}, log_: log, ctx: t.Context()}
			r := &replica{b: b, topic: offsetsTopic, started: true, watches: map[*watch]struct{}{}}
			r.st = partition.New(1, partition.Recovered{})
			lead := func(epoch int32) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.term = partition.Term{Epoch: epoch, Replicas: []int32{1}, ISR: []int32{1}, MinISR: 1}
				if _, err := r.st.Lead(r.term, 0); err != nil {
					t.Fatal(err)
				}
				r.publish()
			}
			lead(3)
			if moves {
				log.wait = func() { lead(5) }
			}
			b.replicas = &replicas{b: b, byName: map[string][]*replica{offsetsTopic: {r}}}
			var got []error
			topicLog{b, offsetsTopic}.AppendWith(0, 3, tc.run, tc.ticket, func(_ int64, err error) { got = append(got, err) })
			switch {
			case !moves && (len(log.appended) != 1 || len(got) != 0):
				t.Errorf("%s: %d appended, told %v", tc.name, len(log.appended), got)
			case moves && (len(log.appended) != 0 || len(got) != 1 || got[0] == nil || r.st.View().LogEnd != 0 || log.reserved != 0):
				t.Errorf("%s, in another epoch: %d appended, told %v, log end %d, %d bytes reserved", tc.name, len(log.appended), got, r.st.View().LogEnd, log.reserved)
			}
		}
	}
}

// savingLog keeps where producer state was saved.
type savingLog struct {
	fullLog
	saved []int64
}

func (l *savingLog) Snapshot(_ wal.PartitionID, offset int64, _ []byte, _ func(error)) {
	l.saved = append(l.saved, offset)
}

// A restart reads the local log from the last producer state on: a partition without idempotent producers has one that is
// as young as that of others, and one at rest is not saved again.
func TestCheckpointOfWhatHasGrown(t *testing.T) {
	log := &savingLog{fullLog: fullLog{wait: func() {}}}
	b := &Broker{tier: deafTier{}, log_: log, ctx: t.Context()}
	r := &replica{b: b, topic: "t", started: true, watches: map[*watch]struct{}{}}
	r.st = partition.New(1, partition.Recovered{})
	r.term = partition.Term{Epoch: 1, Replicas: []int32{1}, ISR: []int32{1}, MinISR: 1}
	if _, err := r.st.Lead(r.term, 0); err != nil {
		t.Fatal(err)
	}
	r.publish()
	b.replicas = &replicas{b: b, byName: map[string][]*replica{"t": {r}}}
	grow := func() {
		b := batch.NewBuilder()
		b.Add(1, []byte("k"), []byte("v"))
		run, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		topicLog{r.b, "t"}.AppendWith(0, 1, run, nil, func(int64, error) {})
	}
	r.snapshot() // nothing is there yet
	grow()
	grow()
	r.snapshot()
	r.snapshot()
	grow()
	r.snapshotFor(2) // the last reaches up to there
	r.snapshot()
	r.snapshotFor(3)
	if want := []int64{2, 3}; !slices.Equal(log.saved, want) {
		t.Errorf("saved at %v, want %v", log.saved, want)
	}
}

// A replica that is taken out of the ISR may be all that the high watermark has waited for. Who copies and who reads is
// told then, though nothing is appended or fetched any more.
func TestShrunkISRIsTold(t *testing.T) {
	b := &Broker{tier: deafTier{}, log_: deafLog{}, opts: Options{BrokerID: 1}}
	r := &replica{b: b, started: true, leads: true, lastSeen: 1, role: func() {}, watches: map[*watch]struct{}{}}
	r.view.Store(&partition.View{})
	r.term = partition.Term{Epoch: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1, 2, 3}, MinISR: 2}
	r.st = partition.New(1, partition.Recovered{LogEnd: 10})
	if _, err := r.st.Lead(r.term, 0); err != nil {
		t.Fatal(err)
	}
	r.st.Fetched(2, 1, 10, 0)
	r.publish()
	follower, consumer := &watch{s: &session{copies: true}}, &watch{s: &session{}}
	r.addWatch(follower)
	r.addWatch(consumer)
	rs := &replicas{b: b, admitted: true}
	rs.follow(r, &image.Partition{Leader: 1, LeaderEpoch: 1, PartitionEpoch: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1, 2}}, 2)
	if hw := r.view.Load().HighWatermark; hw != 10 || !follower.dirty || !consumer.dirty {
		t.Errorf("high watermark %d; the follower is told: %t, the consumer: %t", hw, follower.dirty, consumer.dirty)
	}
}

// A log was dropped, for another that ends earlier, before the disk had written all of it: that it is written by then says
// nothing of the other.
func TestDurableOfADroppedLog(t *testing.T) {
	r := &replica{b: &Broker{tier: deafTier{}, log_: deafLog{}}, started: true, watches: map[*watch]struct{}{}}
	r.view.Store(&partition.View{})
	r.pid.Store(2)
	r.st = partition.New(1, partition.Recovered{LogEnd: 10})
	r.term = partition.Term{Epoch: 1, Replicas: []int32{1}, ISR: []int32{1}, MinISR: 1}
	if _, err := r.st.Lead(r.term, 0); err != nil {
		t.Fatal(err)
	}
	r.st.Appended(batch.Header{BaseOffset: 10, LastOffsetDelta: 4, ProducerID: -1}, nil)
	r.publish()
	var waits told
	r.waiting = append(r.waiting, appendWait{end: 15, commit: &waits})
	for _, end := range []int64{12, 15, 50} {
		r.durable(1, end, nil)
		r.durable(1, end, wal.ErrOutOfRange) // refused, for it was dropped before
	}
	if !waits.is() {
		t.Errorf("who waits for the next log is told %v", waits)
	}
	if v, end := r.view.Load(), r.st.DurableEnd(); v.HighWatermark != 10 || end != 10 {
		t.Errorf("high watermark %d, durable %d", v.HighWatermark, end)
	}
	r.durable(2, 15, nil)
	if v := r.view.Load(); v.HighWatermark != 15 || !waits.is(protocol.CodeNone) {
		t.Errorf("high watermark %d, who waits for it is told %v", v.HighWatermark, waits)
	}
}

// outcome is what an append was answered.
type outcome chan int16

func (o outcome) settle(code int16) { o <- code }

// A follower may hear before its leader that it is to have a replica: what it says until then is not noted, and it is told so; what it says
// then counts, and it is to be in sync.
func TestFollowerAheadOfItsLeader(t *testing.T) {
	r := uncleanly(t, beganAt(t, 3, 0, 4), headTier{state: tiering.State{RemoteEnd: 4, LeaderEpoch: 3}, lin: lineage.Lineage{{Epoch: 3, Start: 0}}})
	r.term = partition.Term{Epoch: 9, PartitionEpoch: 1, Replicas: []int32{1}, ISR: []int32{1}, MinISR: 1}
	if err := r.tryLead(t.Context()); err != nil {
		t.Fatal(err)
	}
	proposed := func() []partition.Member {
		r.mu.Lock()
		defer r.mu.Unlock()
		p, _ := r.st.ProposeISR(r.b.uptimeMs()+60_000, 30_000, func(int32) int64 { return 5 })
		return p.ISR
	}
	two := &copier{id: 2, epoch: 5}
	end := r.view.Load().LogEnd
	if _, code := r.fetched(two, 9, end); code != protocol.CodeUnknownLeaderEpoch || proposed() != nil {
		t.Errorf("not yet a replica: %s, proposed %v", protocol.Name(code), proposed())
	}
	if _, code := r.fetched(two, 8, end); code != protocol.CodeNotLeaderOrFollower {
		t.Errorf("in another epoch: %s", protocol.Name(code))
	}
	r.mu.Lock()
	r.term.Replicas, r.term.PartitionEpoch = []int32{1, 2}, 2
	if _, err := r.st.Lead(r.term, 1); err != nil {
		t.Fatal(err)
	}
	r.mu.Unlock()
	if proposed() != nil {
		t.Errorf("before it has said anything again: proposed %v", proposed())
	}
	if _, code := r.fetched(two, 9, end); code != 0 {
		t.Errorf("a replica: %s", protocol.Name(code))
	}
	if p := proposed(); len(p) != 2 || p[1] != (partition.Member{Broker: 2, Epoch: 5}) {
		t.Errorf("proposed: %v", p)
	}
}

// A broker leads in epoch 3, and then sees only that it leads in epoch 9: others may have led in between. Who waits for an append of
// epoch 3 goes on waiting while the log is there, is told once the append is committed, and never that it is once the log is gone.
func TestAppendOutlivesASkippedEpoch(t *testing.T) {
	const waits int16 = -2 // told nothing
	history := lineage.Lineage{{Epoch: 3, Start: 0}}
	for _, c := range []struct {
		name       string
		isr        []int32
		remoteEnd  int64
		lin        lineage.Lineage // of the newest object
		begins     int64           // epoch 9
		told, then int16           // as soon as the broker leads; once more has been committed
	}{
		{"no other is in sync", []int32{1}, 4, history, 6, protocol.CodeNone, waits},
		{"another is in sync", []int32{1, 2}, 4, history, 6, waits, protocol.CodeNone},
		{"it was uploaded", []int32{1, 2}, 6, history, 6, protocol.CodeNone, waits},
		{"others have more in the bucket", []int32{1}, 20, history, 20, protocol.CodeNotLeaderOrFollower, waits},
		{"others have the same offsets in the bucket", []int32{1, 2}, 6, lineage.Lineage{{Epoch: 3, Start: 0}, {Epoch: 7, Start: 4}}, 6,
			protocol.CodeNotLeaderOrFollower, waits},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := beganAt(t, 3, 0, 4)
			r := uncleanly(t, l, headTier{lin: c.lin, state: tiering.State{RemoteEnd: c.remoteEnd, LeaderEpoch: 7}})
			rs := &replicas{b: r.b, admitted: true, leading: make(chan struct{}, 1)}
			r.b.replicas = rs
			r.pid.Store(uint64(l.Partitions()[0].ID))
			r.st = partition.New(1, partition.Recovered{LogEnd: 4, HighWatermark: 4, Lineage: history})
			r.term = partition.Term{Epoch: 3, Replicas: []int32{1, 2}, ISR: []int32{1, 2}, MinISR: 1}
			if _, err := r.st.Lead(r.term, 1); err != nil {
				t.Fatal(err)
			}
			r.started, r.leads, r.lastSeen, r.role = true, true, 3, func() {}
			r.publish()
			add := func(acks int16) outcome {
				b := batch.NewBuilder()
				b.Add(1, nil, nil)
				raw, err := b.Build()
				if err != nil {
					t.Fatal(err)
				}
				h, err := batch.ParseHeader(raw)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Reserve(t.Context(), wal.ClassClient, int64(len(raw))); err != nil {
					t.Fatal(err)
				}
				to := make(outcome, 2)
				if d := r.append(&appendArgs{header: h, bytes: raw, class: wal.ClassClient, acks: acks, to: to}); d.Kind != partition.Append {
					t.Fatalf("%+v", d)
				}
				return to
			}
			is := func(to outcome) int16 {
				select {
				case code := <-to:
					return code
				default:
					return waits
				}
			}
			waiter := add(-1)
			if code := <-add(1); code != protocol.CodeNone { // what is before it is durable then, too
				t.Fatal(protocol.Name(code))
			}
			if code := is(waiter); code != waits {
				t.Fatalf("told %s before the other replica has it", protocol.Name(code))
			}

			rs.follow(r, &image.Partition{Leader: 1, LeaderEpoch: 9, Replicas: []int32{1, 2}, ISR: c.isr, Recovering: true}, 1)
			rs.wg.Wait()
			if v := r.view.Load(); v.Role != partition.Leader || v.Epoch != 9 || v.EpochStart != c.begins {
				t.Fatalf("%+v", v)
			}
			if code := is(waiter); code != c.told {
				t.Errorf("led again: told %d, want %d", code, c.told)
			}
			if code := <-add(1); code != protocol.CodeNone {
				t.Fatal(protocol.Name(code))
			}
			r.fetched(&copier{id: 2, epoch: 1}, 9, r.view.Load().LogEnd)
			if v := r.view.Load(); v.HighWatermark != v.LogEnd {
				t.Fatalf("%+v", v)
			}
			if code := is(waiter); code != c.then {
				t.Errorf("after more was committed: told %d, want %d", code, c.then)
			}
		})
	}
}
