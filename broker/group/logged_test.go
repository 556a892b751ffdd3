package group

import "fmt"

// logged is one thing that the log holds: a record, plain or of a transaction, or a marker.
type logged struct {
	Record
	txn    *Txn // nil: plain
	marker bool // ends the transaction of txn
	commit bool
}

func (l logged) apply(s *Shard) error {
	switch {
	case l.marker:
		s.ApplyMarker(*l.txn, l.commit)
	case l.txn != nil:
		return s.ApplyTxn(l.Record, *l.txn)
	default:
		return s.Apply(l.Record)
	}
	return nil
}

func (l logged) text() string {
	switch {
	case l.marker && l.commit:
		return fmt.Sprintf("commit of %d/%d", l.txn.ProducerID, l.txn.ProducerEpoch)
	case l.marker:
		return fmt.Sprintf("abort of %d/%d", l.txn.ProducerID, l.txn.ProducerEpoch)
	case l.txn != nil:
		return fmt.Sprintf("[%d/%d] %s", l.txn.ProducerID, l.txn.ProducerEpoch, text(l.Record))
	}
	return text(l.Record)
}

// pendingSize is what a shard should count for what is pending.
func pendingSize(s *Shard) (size int64) {
	for _, x := range s.txns {
		size += nodeBytes * int64(1+len(x.groups))
		for _, topics := range x.groups {
			size += nodeBytes * int64(len(topics))
			for _, ps := range topics {
				for _, o := range ps {
					size += pendingBytes + int64(len(o.Metadata))
				}
			}
		}
	}
	return size
}
