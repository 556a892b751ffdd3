package broker

import (
	"errors"
	"fmt"

	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/wal"
)

// Refused says why producers are refused, all of them or those of single partitions, or nil.
func (b *Broker) Refused() error {
	var errs []error
	st := b.log_.Stats()
	if st.Full {
		errs = append(errs, errors.New("producers are refused: "+b.full(st)))
	}
	n, example := 0, ""
	for _, r := range b.replicas.all() {
		if r.view.Load().Role == partition.Leader && errors.Is(b.log_.Admit(r.localID()), wal.ErrPartitionFull) {
			if n++; n == 1 {
				example = r.String() + ": " + r.overShare()
			}
		}
	}
	if n > 0 {
		errs = append(errs, fmt.Errorf("producers of %d partitions are refused, for one %s", n, example))
	}
	return errors.Join(errs...)
}

// refusalOf says why clients are refused by a log that is full.
func refusalOf(st wal.Stats) refusal {
	switch {
	case st.DiskFull:
		return diskFull
	case st.NoFiles:
		return noFiles
	}
	return atBound
}

// full says the same for whoever is to do something about it.
func (b *Broker) full(st wal.Stats) string {
	switch refusalOf(st) {
	case diskFull:
		return "the disk of the write-ahead log is full (log.dirs)"
	case noFiles:
		return "too many open files: the write-ahead log can make no more (ulimit -n, LimitNOFILE=)"
	}
	why := fmt.Sprintf("the write-ahead log is at its bound, and %d of %d bytes (wal.max.bytes) cannot go: they are not in object storage, or behind what is not; `varve tier status` shows REMOTE-END", st.PinnedBytes, st.MaxBytes)
	if st.PinnedBy != 0 {
		for _, r := range b.replicas.all() {
			if r.localID() == st.PinnedBy {
				why += fmt.Sprintf("; the oldest are mostly of %s (%s)", r, r.notUploaded())
			}
		}
	}
	return why
}

// notUploaded says why records of the partition are not in object storage.
func (r *replica) notUploaded() string {
	v := r.view.Load()
	switch state, ok := r.b.tier.State(r.topicID, r.index); {
	case v.Role != partition.Leader:
		return "led by another broker, which uploads it"
	case r.cfg().RemoteCopyDisable:
		return "remote.log.copy.disable=true"
	case ok && state.LastError != nil:
		return "its last upload failed: " + state.LastError.Error()
	case v.HighWatermark < v.LogEnd && v.HighWatermark <= state.RemoteEnd:
		return fmt.Sprintf("%d records are not committed: its in-sync replicas are too few or do not answer", v.LogEnd-v.HighWatermark)
	}
	return "waiting for its upload"
}

// overShare says what a partition holds too much of.
func (r *replica) overShare() string {
	return "what it holds cannot be uploaded and has used its share of the write-ahead log (wal.max.bytes): " + r.notUploaded()
}
