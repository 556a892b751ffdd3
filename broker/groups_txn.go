package broker

import "github.com/varve/varve/wal"

// offsetsMarker ends a transaction in a partition of the offsets topic: the
// offsets that were committed in it count from then on, or never.
//
// The group coordinator is to be told of it here, once it is committed and
// before done is.
func (b *Broker) offsetsMarker(r *replica, m txnMarker, done func(code int16)) {
	r.writeMarker(m, wal.ClassInternal, func(_ int64, code int16) { done(code) })
}
