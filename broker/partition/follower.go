package partition

import (
	"fmt"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// A follower copies what its leader has, byte for byte:
//
//	Follow                metadata names another leader, or another epoch of it
//	Position -> fetch     everything below the position is durable here: asking from there says so
//	Diverged -> Truncated the leader's log is another from some offset on (KIP-279, in the answer to a
//	                      fetch as of KIP-595): what is not the leader's goes
//	Copy -> Copied        a batch of the answer is checked, queued to the log, and counted
//	LeaderAt              the leader's high watermark, log start and remote end
//	Durable               the log has it: the next position may be asked for

// Follow makes this broker a follower in the term t, of whose leader it is to
// copy. An older term than the current one is refused.
func (s *State) Follow(t Term) error {
	if t.Epoch < s.term.Epoch {
		return fmt.Errorf("partition: following in epoch %d refused: already in epoch %d", t.Epoch, s.term.Epoch)
	}
	if s.role != Follower || t.Epoch > s.term.Epoch {
		s.voidGuards()
		clear(s.followers)
		s.proposed = nil
		s.leaderHW = 0
	}
	s.role, s.term = Follower, t
	return nil
}

// Position is where a follower's next fetch begins.
type Position struct {
	Offset    int64
	LastEpoch int32 // latest epoch of its lineage, -1 without one
}

// Position returns where to go on, and whether everything below it is durable
// here: a fetch from an offset tells the leader that what is below is, so none
// may be sent before.
func (s *State) Position() (p Position, durable bool) {
	p = Position{Offset: s.logEnd, LastEpoch: noEpoch}
	if last, ok := s.lineage.Latest(); ok {
		p.LastEpoch = last.Epoch
	}
	return p, s.durable == s.logEnd
}

// Diverged takes the leader's word that its log of the largest epoch up to the
// follower's last one is of the given epoch, and ends at end. It returns the
// offset from which on this log is to be cut; what is cut may say that the log
// diverges again, further down.
//
// suspect says that this would cut what has been below a high watermark and is
// not in the bucket: no history of an in-sync replica leads there. Such a log
// has to be replaced as a whole once the replica is out of the ISR.
func (s *State) Diverged(epoch int32, end int64) (to int64, suspect bool) {
	to = min(end, s.logEnd)
	if _, own := s.lineage.EndOffset(epoch, s.logEnd); own >= 0 {
		to = min(to, own)
	}
	return to, to < s.hw
}

// Truncated tells that the log was cut at offset to; producers is the state of
// the producers there.
func (s *State) Truncated(to int64, producers *producer.State) {
	if to > s.logEnd {
		panic(fmt.Sprintf("partition: log that ends at %d truncated at %d", s.logEnd, to))
	}
	s.logEnd = to
	s.durable = min(s.durable, to)
	s.hw = min(s.hw, to)
	s.logStart = min(s.logStart, to)
	s.lineage = s.lineage.TruncateEnd(to)
	s.producers = producers
	s.producers.Commit(s.hw)
}

// Copy checks a batch that the leader sent and that is to follow what ends at the
// given position. It changes nothing: a run of batches is checked as a whole,
// each at the position After the one before, and then applied.
func (s *State) Copy(h batch.Header, at Position) error {
	switch {
	case s.role != Follower:
		return fmt.Errorf("not a follower but %v", s.role)
	case h.BaseOffset != at.Offset:
		return fmt.Errorf("a batch at offset %d, after the end %d", h.BaseOffset, at.Offset)
	case h.NextOffset() <= h.BaseOffset:
		return fmt.Errorf("a batch at offset %d of %d offsets", h.BaseOffset, h.NextOffset()-h.BaseOffset)
	case h.LeaderEpoch < 0:
		return fmt.Errorf("a batch at offset %d without a leader epoch", h.BaseOffset)
	case h.LeaderEpoch > s.term.Epoch:
		return fmt.Errorf("a batch of leader epoch %d in epoch %d", h.LeaderEpoch, s.term.Epoch)
	case h.LeaderEpoch < at.LastEpoch:
		return fmt.Errorf("a batch of leader epoch %d after one of %d", h.LeaderEpoch, at.LastEpoch)
	}
	return nil
}

// After is the position behind a batch.
func After(h batch.Header) Position {
	return Position{Offset: h.NextOffset(), LastEpoch: h.LeaderEpoch}
}

// Copied applies a batch that Copy let in and that is queued in the log. began
// says that a leader epoch begins with it, which the log has to record before.
func (s *State) Copied(h batch.Header, b []byte) (began bool) {
	if last, ok := s.lineage.Latest(); !ok || h.LeaderEpoch > last.Epoch {
		s.lineage = s.lineage.Assign(h.LeaderEpoch, h.BaseOffset)
		began = true
	}
	s.Appended(h, b)
	return began
}

// LeaderAt takes the leader's high watermark, its log start and the end of
// what is committed in the bucket. It reports whether anything moved.
func (s *State) LeaderAt(hw, logStart, remoteEnd int64) bool {
	if s.role != Follower {
		return false
	}
	s.leaderHW = max(s.leaderHW, hw)
	// What the bucket has and what was deleted can be ahead of what is here.
	lifted := s.LiftTo(min(remoteEnd, s.logEnd), min(logStart, s.logEnd))
	return s.advance() || lifted
}
