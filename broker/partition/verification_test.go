package partition

import (
	"testing"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// first is the header of a transactional batch.
func first(id int64, epoch int16, seq int32) batch.Header {
	b := batch.NewBuilder()
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = id, epoch, seq, true
	b.Add(1, nil, nil)
	raw, err := b.Build()
	if err != nil {
		panic(err)
	}
	h, _ := batch.ParseHeader(raw)
	return h
}

func leading(t *testing.T, limit int) *State {
	t.Helper()
	p := producer.New()
	p.SetLimit(limit)
	s := New(1, Recovered{Producers: p})
	if _, err := s.Lead(Term{Epoch: 1, Replicas: []int32{1}, ISR: []int32{1}, MinISR: 1}, 0); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *State) try(h batch.Header, g Guard) int16 {
	d := s.Decide(Ask{Header: h, Verify: true, Guard: g}, 0)
	if d.Kind == Append {
		h.BaseOffset = d.Base
		s.Appended(h, nil)
	}
	return d.Code
}

func TestGuards(t *testing.T) {
	s := leading(t, 10)
	h := first(7, 3, 0)
	if code := s.try(h, Guard{}); code != codeNotLeader {
		t.Errorf("without a guard: %d", code)
	}
	g := s.BeginVerification(h, false)
	if again := s.BeginVerification(h, false); again != g {
		t.Errorf("one transaction has guards %v and %v", g, again)
	}
	other := s.BeginVerification(first(8, 0, 0), false)
	if code := s.try(h, other); code != codeInvalidTxnState {
		t.Errorf("with the guard of another: %d", code)
	}
	if code := s.try(h, g); code != 0 {
		t.Errorf("with its guard: %d", code)
	}
	if s.Verification(first(7, 3, 1), 0) != NotNeeded {
		t.Error("asked again within a transaction")
	}
	if s.Verification(first(7, 4, 0), 0) != Needed {
		t.Error("not asked at a new epoch while the transaction of the old one is open")
	}

	// A zombie that is told no takes nothing from who has replaced it.
	g = s.BeginVerification(first(9, 1, 0), false)
	if now := s.BeginVerification(first(9, 2, 0), false); now != g {
		t.Error("another guard")
	}
	s.EndVerification(first(9, 1, 0), g)
	if code := s.try(first(9, 2, 0), g); code != 0 {
		t.Errorf("after the zombie's end: %d", code)
	}
	g = s.BeginVerification(first(10, 1, 0), false)
	s.EndVerification(first(10, 1, 0), g)
	if code := s.try(first(10, 1, 0), g); code != codeInvalidTxnState {
		t.Errorf("after a no: %d", code)
	}

	// Of transaction version 2, a marker ends the transaction of the epoch before.
	// The one of this transaction, were it to be aborted meanwhile, is an epoch above.
	for marked, want := range map[int16]int16{4: 0, 5: 0, 6: codeProducerEpoch} {
		id := 20 + int64(marked)
		g = s.BeginVerification(first(id, 5, 0), true)
		raw := batch.Marker(id, marked, true, 0, 1)
		h, err := batch.ParseHeader(raw)
		if err != nil {
			t.Fatal(err)
		}
		h.BaseOffset = s.View().LogEnd
		s.Appended(h, raw)
		if code := s.try(first(id, 5, 0), g); code != want {
			t.Errorf("at epoch 5, after a marker of epoch %d: %d, want %d", marked, code, want)
		}
	}

	// A leadership that ends takes all of them along.
	g = s.BeginVerification(first(11, 1, 0), false)
	s.Resign(2)
	if _, err := s.Lead(Term{Epoch: 3, Replicas: []int32{1}, ISR: []int32{1}, MinISR: 1}, 0); err != nil {
		t.Fatal(err)
	}
	h = first(11, 1, 0)
	if code := s.try(h, g); code != codeNotLeader {
		t.Errorf("with a guard of the leadership before: %d", code)
	}
	if s.Verification(h, 0) != Needed {
		t.Error("not asked again in the new leadership")
	}
	if code := s.try(h, s.BeginVerification(h, false)); code != 0 {
		t.Errorf("with a guard of this leadership: %d", code)
	}
}

// Verifications that lead to nothing take bounded memory, and go.
func TestVerificationsAreBounded(t *testing.T) {
	const limit = 5
	s := leading(t, limit)
	for id := range int64(limit) {
		if s.Verification(first(id, 0, 0), 0) != Needed {
			t.Fatalf("the verification of producer %d is refused", id)
		}
		s.BeginVerification(first(id, 0, 0), false)
	}
	if s.Verification(first(99, 0, 0), 0) != Refused || s.Verification(first(1, 0, 0), 0) != Needed {
		t.Error("no bound, or none that lets those in that are under way")
	}
	s.ExpireProducers(1000, 500)
	s.ExpireProducers(1499, 500)
	if s.Verification(first(99, 0, 0), 0) != Refused {
		t.Error("gone too soon")
	}
	s.ExpireProducers(1500, 500)
	if s.Verification(first(99, 0, 0), 0) != Needed {
		t.Error("they do not go")
	}
}

// A producer that has a transaction open is not forgotten, however long it is
// silent; nor is what its marker must find.
func TestOpenTransactionsDoNotExpire(t *testing.T) {
	s := leading(t, 10)
	h := first(1, 0, 0)
	if code := s.try(h, s.BeginVerification(h, false)); code != 0 {
		t.Fatal(code)
	}
	s.ExpireProducers(1, 10)
	s.ExpireProducers(1<<40, 10)
	if epoch, open := s.Producers().InTransaction(1); !open || epoch != 0 {
		t.Fatal("a producer with an open transaction is forgotten")
	}
	raw := batch.Marker(1, 0, true, 0, 5)
	m, _ := batch.ParseHeader(raw)
	d := s.DecideMarker(Marker{ProducerID: 1})
	m.BaseOffset = d.Base
	s.Appended(m, raw)
	s.ExpireProducers(1<<40, 10)
	s.ExpireProducers(1<<40+10, 10)
	if s.Producers().Len() != 0 {
		t.Error("a producer without a transaction is never forgotten")
	}
}
