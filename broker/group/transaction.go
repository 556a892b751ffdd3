package group

import (
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Offsets committed in transactions (KIP-98, 447).
//
// The records of a transaction say what the offsets will be should it commit. They are kept apart until its marker, by
// the producer that the marker names; then they all count at once, or not at all:
//
//	log:     T: t/0 = 5    plain: t/0 = 7    T: t/1 = 9    commit T
//	t/0                    7                               7: the plain commit is the later record
//	t/1                                                    9
//
// What counts is the order of the records themselves, not that of the marker: compaction keeps of a key the record with
// the highest offset, so that anything else would change what a partition says once it has been compacted.
//
// Who may write at all is not decided here alone: a producer epoch that is over is refused by the partition that the
// records are appended to, as it is for every producer (wal/producer).

// Txn is the producer in whose transaction offsets are committed.
type Txn struct {
	ProducerID    int64
	ProducerEpoch int16
}

// openTxn is what a transaction has committed so far in the groups of a shard.
type openTxn struct {
	epoch  int16                                   // highest seen
	groups map[string]map[string]map[int32]pending // group, topic, partition
}

// pending is an offset that counts if and when its transaction commits.
type pending = Offset

// pendingBytes is about what a pending offset costs beside its metadata: an offset, and the producer's id once more.
const pendingBytes = offsetBytes + 48

// nodeBytes is about what a map of few entries costs: one for a transaction, for each group in it and each topic of that.
// Most transactions have one offset, and this is nearly all that it costs.
const nodeBytes = 350

// Pending are the numbers of offsets that wait for a marker, and of transactions that they belong to.
func (s *Shard) Pending() (offsets, txns int) { return s.pendings, len(s.txns) }

// ApplyTxn is Apply for a record of a transaction. Only offsets are written in transactions; anything else changes
// nothing and is reported.
func (s *Shard) ApplyTxn(r Record, by Txn) error {
	if isConsumer(r.Key) {
		return fmt.Errorf("group: a record in a transaction of producer %d that is no offset", by.ProducerID)
	}
	d, known, err := decode(r)
	if err != nil || !known {
		return err
	}
	if !d.isOffset || d.offset == nil {
		return fmt.Errorf("group: %q: a record in a transaction of producer %d that is no offset", d.group, by.ProducerID)
	}
	s.position++
	d.offset.at = s.position
	e := s.entry(d.group)
	x := s.txns[by.ProducerID]
	if x == nil {
		x = &openTxn{groups: map[string]map[string]map[int32]pending{}}
		if s.txns == nil {
			s.txns = map[int64]*openTxn{}
		}
		s.txns[by.ProducerID] = x
		s.bytes += nodeBytes
	}
	if x.groups[d.group] == nil {
		s.bytes += nodeBytes
	}
	if x.groups[d.group][d.topic] == nil {
		s.bytes += nodeBytes
	}
	x.epoch = max(x.epoch, by.ProducerEpoch)
	ps := inner(inner(x.groups, d.group), d.topic)
	if old, ok := ps[d.partition]; ok {
		s.bytes -= int64(len(old.Metadata))
	} else {
		open := inner(e.open, d.topic)
		open[d.partition] = append(open[d.partition], by.ProducerID)
		s.pendings++
		s.bytes += pendingBytes
	}
	ps[d.partition] = *d.offset
	s.bytes += int64(len(d.offset.Metadata))
	return nil
}

// ApplyMarker takes over the end of a producer's transaction: what it committed counts from now on where nothing newer
// is known, or is dropped. It returns the notes of it. A marker without anything pending changes nothing, so that it may
// come any number of times.
func (s *Shard) ApplyMarker(by Txn, commit bool) (notes []Note) {
	x := s.txns[by.ProducerID]
	if x == nil {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(x.groups)) {
		e := s.groups[id]
		n := 0
		s.bytes -= nodeBytes
		for topic, ps := range x.groups[id] {
			s.bytes -= nodeBytes
			for p, o := range ps {
				s.close(e, by.ProducerID, topic, p, o)
				if old, ok := e.offsets[topic][p]; commit && (!ok || old.at < o.at) {
					s.putOffset(e, topic, p, o)
					n++
				}
			}
		}
		if n > 0 {
			notes = append(notes, Note{Kind: NoteCommitted, Group: id, N: n})
		}
		s.tidy(id, e)
	}
	delete(s.txns, by.ProducerID)
	s.bytes -= nodeBytes
	return notes
}

// close takes one pending offset out of the entry's books and the shard's; the transaction's are the caller's.
func (s *Shard) close(e *entry, producerID int64, topic string, p int32, o pending) {
	ids := e.open[topic][p]
	if i := slices.Index(ids, producerID); len(ids) > 1 {
		e.open[topic][p] = slices.Delete(ids, i, i+1)
	} else {
		delete(e.open[topic], p)
		if len(e.open[topic]) == 0 {
			delete(e.open, topic)
		}
	}
	s.pendings--
	s.bytes -= pendingBytes + int64(len(o.Metadata))
}

// dropPending forgets what transactions have pending for a partition: a tombstone is newer.
func (s *Shard) dropPending(id string, e *entry, topic string, p int32) {
	for _, producerID := range slices.Clone(e.open[topic][p]) {
		x := s.txns[producerID]
		ps := x.groups[id][topic]
		s.close(e, producerID, topic, p, ps[p])
		if delete(ps, p); len(ps) > 0 {
			continue
		}
		s.bytes -= nodeBytes
		if delete(x.groups[id], topic); len(x.groups[id]) > 0 {
			continue
		}
		s.bytes -= nodeBytes
		if delete(x.groups, id); len(x.groups) == 0 {
			s.bytes -= nodeBytes
			delete(s.txns, producerID)
		}
	}
}

// inner is the map under a key, made if it is not there.
func inner[K, L comparable, V any](m map[K]map[L]V, k K) map[L]V {
	in := m[k]
	if in == nil {
		in = map[L]V{}
		m[k] = in
	}
	return in
}

// unstable says whether a transaction has an offset of the partition pending.
func (e *entry) unstable(topic string, p int32) bool { return len(e.open[topic][p]) > 0 }

// eachKnown visits in order the partitions for which there is an offset, committed or pending, until f says no.
func (e *entry) eachKnown(f func(topic string, p int32) bool) {
	topics := slices.AppendSeq(slices.Collect(maps.Keys(e.offsets)), maps.Keys(e.open))
	slices.Sort(topics)
	for _, topic := range slices.Compact(topics) {
		for _, p := range e.known(topic) {
			if !f(topic, p) {
				return
			}
		}
	}
}

// known are the topic's partitions for which there is an offset, committed or pending, in order.
func (e *entry) known(topic string) []int32 {
	ps := slices.AppendSeq(slices.Collect(maps.Keys(e.offsets[topic])), maps.Keys(e.open[topic]))
	slices.Sort(ps)
	return slices.Compact(ps)
}

// mayCommitTxn says whether the sender may commit in a transaction for the group. Member and generation count if any of
// them is given: before version 3 none could be. A group that completes a rebalance takes it (KIP-447): who was assigned
// what is decided, and a member of an earlier generation is not let in. Every refusal that is about the epoch is
// ILLEGAL_GENERATION, the code that producers know.
func (t *turn) mayCommitTxn(c *Commit) int16 {
	req := c.Req
	if c.Txn.ProducerID < 0 {
		return codeInvalidProducerIDMapping
	}
	if c.Txn.ProducerEpoch < 0 {
		return codeInvalidProducerEpoch
	}
	if open := t.txns[c.Txn.ProducerID]; open != nil && c.Txn.ProducerEpoch < open.epoch {
		return codeInvalidProducerEpoch
	}
	anonymous := req.Generation < 0 && req.MemberID == "" && req.InstanceID == nil
	switch {
	case t.e == nil && req.Generation >= 0:
		return codeIllegalGeneration
	case t.e == nil:
		return codeNone
	case t.e.consumer != nil && anonymous:
		return codeNone
	case t.e.consumer != nil:
		code, each := t.mayCommitConsumer(c)
		for _, topic := range req.Topics {
			for _, p := range topic.Partitions {
				if code == codeNone && each != nil {
					code = each(&topic, p.Partition)
				}
			}
		}
		if code == codeStaleMemberEpoch {
			code = codeIllegalGeneration
		}
		return code
	}
	g := t.e.group
	if anonymous || req.Generation < 0 && g.state == Empty {
		return codeNone
	}
	if code := g.check(req.MemberID, req.InstanceID); code != codeNone {
		return code
	}
	if req.Generation != g.generation {
		return codeIllegalGeneration
	}
	return codeNone
}

func markerReply(code int16) *kmsg.WriteTxnMarkersResponse {
	resp := kmsg.NewPtrWriteTxnMarkersResponse()
	p := kmsg.NewWriteTxnMarkersResponseMarkerTopicPartition()
	p.ErrorCode = code
	t := kmsg.NewWriteTxnMarkersResponseMarkerTopic()
	t.Partitions = append(t.Partitions, p)
	m := kmsg.NewWriteTxnMarkersResponseMarker()
	m.Topics = append(m.Topics, t)
	resp.Markers = append(resp.Markers, m)
	return resp
}
